"""The networks of :mod:`egno_md.nn.flow`: the trunk of EGNO or EGHNO on a path from base to data (not in the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import UsageError
from ..specs import Spec
from .egnn import EGNNLayer, graph_centre, mlp, reduce_to, zero_last
from .egno import over_time
from .pooling import (
    MIN_WEIGHT,
    Decoder,
    PoolingNetwork,
    cluster_adjacency,
    cluster_edges,
    cut_loss,
    graph_runs,
    to_clusters,
    to_nodes,
)
from .spectral import FourierBasis, NodeEmbedding, TemporalConv, fourier_basis, time_embedding

#: 1 - tau is never taken as smaller: the velocity of the last stretch is that of here.
LEAST = 0.03
#: Scalars along an edge beside the graph's own: its length at the start, and its projection on that at every time.
OWN_EDGE = 2
#: Waves in which the coordinates on the mean structure tell one atom from another, in rad per Angstrom.
WAVES = (0.5, 1.0, 2.0)
#: Unit of the distances between atoms where the base is that of any molecule, in Angstrom.
LONG = 10.0
#: What a body says of a node where the base is that of any molecule.
ABOUT = 5


class FlowOptions(Spec):
    """Settings of :class:`Flow`.

    Attributes
    ----------
    trunk : {"egno", "eghno"}
        Layers on the nodes alone (:class:`Flow`), or on the nodes and on clusters of them (:class:`HierarchicalFlow`).
    hidden, layers, modes : int
        Width H, number of layers (of each level), Fourier modes kept by the temporal convolutions.
    time_embedding : int
        Width of the embeddings of the time and of tau (even).
    base : {"own", "any"}
        Where a path begins: a Gaussian process of each molecule of the training runs, which are then the only ones that
        the model knows; or an elastic network, which any molecule has, at any stride
        (:class:`egno_md.forecast.network.ElasticNetwork`).
    canonical : bool
        Coordinates in the frame of reference in which the start is superposed on the molecule's mean structure enter
        as scalars, and come out as some: handedness is seen, and the layers need not be equivariant for the whole to
        be. Without it, as with the base "any", the differences alone are seen.
    informed : bool
        The mean of the base enters beside the path: what it makes of the frames before the start.
    handed : bool
        SE(3)- instead of O(3)-equivariant layers, where the coordinates are not seen.
    steps : int
        Euler steps of the sampler.
    direct : bool
        One call of the network makes a window of a path of the base, and there are no steps: what a training with
        `distill` teaches it, which sets this.
    noise, noise_share : float
        A window's start is learned with noise: in this share of them, of a standard deviation that is uniform up to
        twice `noise` (in the unit of the network, usually Angstrom, or with the base "any" of its spread). The model is
        then robust to its own output.
    ends : float
        Share of the training windows whose last frame is known as well: with some of them, the model fills in what
        lies between two frames (:class:`egno_md.Interpolated`).
    bond_weight, pair_weight : float
        Weights in the loss of the differences of the velocity's error along bonds, and between all pairs.
    clusters, pooling_layers, decoder_layers : int
        K and the layers of the pooling network and of the decoder, with EGHNO's trunk.
    cut_weight : float
        Weight in the loss of the bonds between clusters, with EGHNO's trunk.
    """

    trunk: Literal["egno", "eghno"] = "egno"
    hidden: int = Field(64, ge=1)
    layers: int = Field(3, ge=1)
    modes: int = Field(2, ge=1)
    time_embedding: int = Field(16, ge=4, multiple_of=2)
    base: Literal["own", "any"] = "own"
    canonical: bool = True
    informed: bool = True
    handed: bool = False
    steps: int = Field(3, ge=1)
    direct: bool = False
    noise: float = Field(0.04, ge=0)
    noise_share: float = Field(0.7, ge=0, le=1)
    ends: float = Field(0.0, ge=0, le=1)
    bond_weight: float = Field(0.5, ge=0)
    pair_weight: float = Field(0.05, ge=0)
    clusters: int = Field(8, ge=1)
    pooling_layers: int = Field(2, ge=1)
    decoder_layers: int = Field(2, ge=1)
    cut_weight: float = Field(0.1, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _no_structure(cls, values: Any) -> Any:
        """There is no mean structure of any molecule."""
        if isinstance(values, dict) and values.get("base") == "any":
            return {**values, "canonical": False}
        return values


class FlowOutput(NamedTuple):
    """What :class:`Flow` returns."""

    pos: Tensor  # (T, N, 3), the window that is predicted
    vel: Tensor  # (T, N, 3)
    h: Tensor  # (T, N, H)


class Seen(NamedTuple):
    """What the layers of one level see beside what they change; M nodes or clusters of B graphs."""

    edge_index: Tensor  # (2, E)
    edge_attr: Tensor  # (T, E, A + 2)
    edge_shift: Tensor | None  # (E, 3), in the unit of lengths of the layers
    start: Tensor  # (M, 3)
    left: Tensor  # (B, 1), 1 - tau
    unit: Tensor  # (B, 1), spread of the base
    length_unit: float
    basis: FourierBasis
    index: Tensor  # (M,), the graph of each
    n_graphs: int
    max_memory: int | None


class Level(nn.Module):
    """The layers of nodes, or of clusters.

    Every layer, with Z = [x - x0, v, x0 - c, m - x0], m the mean of the base, s = 1 - tau and c the centre of x0::

        h <- h + LeakyReLU_0.01(conv(h))
        Z <- Z + conv(Z);  k = phi_g(norm(h))
        x <- x + s (EGNN(x, v, norm(h)) - x + Z_0 - (x - x0) + sum_a k_a Z_a)
        h <- h + phi_h(norm(h), messages)
    """

    def add_layers(self, layers: int, hidden: int, in_edge: int, channels: int, modes: int, *, handed: bool) -> Level:
        """Make the layers, `in_edge` being A and `channels` the vectors in Z: where a seed has always drawn them."""
        self.layers = nn.ModuleList(EGNNLayer(hidden, in_edge, residual=False, handed=handed) for _ in range(layers))
        self.scalar_conv = nn.ModuleList(TemporalConv(hidden, modes, 1 / hidden**2) for _ in range(layers))
        self.vector_conv = nn.ModuleList(TemporalConv(channels, modes, 0.1) for _ in range(layers))
        self.gate = nn.ModuleList(mlp(hidden, hidden, channels) for _ in range(layers))
        self.norm = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        for layer, gate, conv in zip(self.layers, self.gate, self.vector_conv, strict=True):
            layer.stand_still()
            zero_last(gate)
            nn.init.zeros_(conv.weight)
        return self

    def told(self, step: int, h: Tensor, seen: Seen) -> Tensor:
        """`h` (T, M, H) as layer number `step` begins with it."""
        return h

    def through(self, pos: Tensor, about: Sequence[Tensor], h: Tensor, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """New `pos`, velocity (T, M, 3) and `h` (T, M, H), of `pos` and the channels of Z after the first."""
        unit, step_unit = seen.unit[seen.index], (seen.left * seen.unit)[seen.index]  # (M, 1) both
        for k, (layer, norm) in enumerate(zip(self.layers, self.norm, strict=True)):
            h = self.told(k, h, seen)
            h = h + nn.functional.leaky_relu(self.scalar_conv[k](h, seen.basis), 0.01)
            vectors = torch.stack([(pos - seen.start) / unit, *about], dim=-1)  # (T, M, 3, C)
            moved = self.vector_conv[k](vectors, seen.basis)  # (T, M, 3, C)
            vectors = vectors + moved
            normed = norm(h)
            step = moved[..., 0] + (vectors * self.gate[k](normed)[..., None, :]).sum(-1)  # (T, M, 3)
            about = vectors[..., 1:].unbind(-1)
            here = pos / seen.length_unit
            new, more = layer(
                here, about[0], normed, seen.edge_index, seen.edge_attr, edge_shift=seen.edge_shift,
                max_memory=seen.max_memory,
            )  # (T, M, 3), (T, M, H)  # fmt: skip
            pos = pos + step_unit * (new - here + step)
            h = h + more
        return pos, about[0], h


class Flow(Level):
    """The window x1 from x_tau, the start and tau.

    The layers of :class:`Level`. Where the coordinates are seen, each of them begins with
    ``h <- h + SiLU(Linear(mean over nodes of h))``, and in the end ``x <- x + s phi_o(h)``. Informed of the mean m of
    the base, the network returns ``m + tau / r^2 (x_tau - m)`` and what the layers have added to x_tau: untrained, what
    is to be expected of x1 where base and data are the same Gaussian, so that its draws are those of the base.
    Uninformed, it begins with x_tau. With the base of any molecule all vectors but x0 - c are in units of the spread of
    the base, which differs with molecule and stride.

    Parameters
    ----------
    in_node, in_edge : int
        F and A.
    n_times : int
        T where a call does not say.
    options : FlowOptions
    """

    #: What is made of all that is computed.
    output: Callable[..., Any] = FlowOutput

    def __init__(self, in_node: int, in_edge: int, n_times: int, options: FlowOptions) -> None:
        super().__init__()
        hidden, layers, width = options.hidden, options.layers, options.time_embedding
        self.n_times, self.modes, self.width, self.canonical = n_times, options.modes, width, options.canonical
        self.informed, self.any = options.informed, options.base == "any"
        self.channels, self.handed = 4 if options.informed else 3, options.handed and not options.canonical
        self.embedding = NodeEmbedding(in_node, hidden, width)
        self.level = mlp(width, hidden, hidden)
        if options.canonical:
            self.atom = mlp(3 * (1 + 2 * len(WAVES)), hidden, hidden)
            self.coordinates = nn.Linear(15 if options.informed else 12, hidden)
            self.pool = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
            self.head = mlp(hidden, hidden, 3)
            zero_last(self.head)
        if self.any:
            self.about = mlp(ABOUT, hidden, hidden)
        if options.ends:
            self.end = nn.Parameter(torch.zeros(2, hidden))
        self.add_layers(layers, hidden, in_edge + OWN_EDGE, self.channels, options.modes, handed=self.handed)

    def told(self, step: int, h: Tensor, seen: Seen) -> Tensor:
        """As of :class:`Level`, of the nodes as a whole."""
        if not self.canonical:
            return h
        mean = reduce_to(h, seen.index, seen.n_graphs, mean=True)  # (T, B, H)
        return h + nn.functional.silu(self.pool[step](mean))[:, seen.index]

    def forward(
        self,
        h: Tensor,
        pos: Tensor,
        vel: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        *,
        times: int | Tensor | None = None,
        batch: Tensor | None = None,
        n_graphs: int | None = None,
        edge_shift: Tensor | None = None,
        max_memory: int | None = None,
        start: Tensor | None = None,
        level: Tensor | None = None,
        reference: Tensor | None = None,
        mean: Tensor | None = None,
        size: Tensor | None = None,
        about: Tensor | None = None,
        ended: Tensor | None = None,
        **further: Tensor | None,
    ) -> FlowOutput:
        """The window that is predicted.

        Parameters
        ----------
        h, edge_index, edge_attr, times, batch, n_graphs, edge_shift, max_memory
            As of :meth:`egno_md.nn.EGNO.forward`.
        pos : Tensor (T, N, 3) or (N, 3)
            x_tau.
        vel : Tensor (T, N, 3) or (N, 3)
            v, the displacement of the last stride.
        start : Tensor (N, 3), optional
            x0; by default the first frame of `pos`.
        level : Tensor (B,), optional
            tau; by default 0.
        reference : Tensor (N, 3), optional
            The mean structure that the start is superposed on, where the coordinates are seen.
        mean : Tensor (T, N, 3), optional
            Of the base; by default the start moved by v.
        size : Tensor (B,), optional
            Spread of the base; by default 1.
        about : Tensor (N, 5), optional
            What else is known of the nodes, with the base of any molecule; by default 1.
        ended : Tensor (B,), optional
            1 where the last frame of the window is known, and x_tau that frame at every tau; by default 0.
        **further
            What :meth:`levels` takes.

        Raises
        ------
        UsageError
            Coordinates without a reference, or what EGNO refuses.
        """
        if self.canonical and reference is None:
            raise UsageError("this operator sees coordinates about a mean structure: give reference (N, 3)")
        if start is None:
            start = pos if pos.dim() == 2 else pos[0]  # (N, 3)
        pos, vel, times = over_time(pos, vel, times, self.n_times)  # (T, N, 3), (T, N, 3), (T,)
        if n_graphs is None:
            n_graphs = 1 if batch is None else int(batch[-1]) + 1
        level = pos.new_zeros(n_graphs) if level is None else level  # (B,)
        index = torch.zeros(len(start), dtype=torch.int64, device=pos.device) if batch is None else batch  # (N,)
        units = pos.new_ones(n_graphs, 1) if size is None else size[:, None]  # (B, 1)
        unit = units[index]  # (N, 1)
        ahead = forecast = (start + vel if mean is None else mean) - start  # (T, N, 3)
        path, expected = pos, (level / ((1 - level) ** 2 + level**2))[index][:, None]  # (T, N, 3), (N, 1)
        h = self.embedding(h, times) + self.level(time_embedding(1000 * level, self.width))[index]  # (T, N, H)
        if self.canonical:
            known = _coordinates(pos, vel, start, reference)  # (T, N, 12)
            known = torch.cat([known, 3 * ahead], dim=-1) if self.informed else known  # (T, N, 15)
            h = h + self.atom(_waves(reference)) + self.coordinates(known)
        if self.any:
            h = h + self.about(pos.new_ones(len(start), ABOUT) if about is None else about)
        if ended is not None:
            last = (torch.arange(len(times), device=pos.device) == len(times) - 1)[:, None, None]  # (T, 1, 1)
            h = h + ended[index][:, None] * (self.end[0] + last * self.end[1])
        length_unit = LONG if self.any else 1.0
        seen = Seen(
            edge_index, self.edges(edge_index, edge_attr, edge_shift, pos, start, unit),
            None if edge_shift is None else edge_shift / length_unit, start, (1 - level).clamp_min(LEAST)[:, None],
            units, length_unit, fourier_basis(len(times), self.modes, pos), index, n_graphs, max_memory,
        )  # fmt: skip
        centred = (start - graph_centre(start[None], batch, n_graphs)[index]).expand_as(pos) / length_unit  # (T, N, 3)
        channels = [vel / unit, centred, *([(ahead / unit).expand_as(pos)] if self.informed else [])]
        pos, vel, h, *rest = self.levels(pos, channels, h, seen, edge_attr=edge_attr, batch=batch, **further)
        if self.canonical:
            pos = pos + seen.left[index] * self.head(h)
        if self.informed:
            pos = pos + (expected - 1) * (path - start - forecast)
        return self.output(pos, vel, h, *rest)

    def edges(
        self, edge_index: Tensor, edge_attr: Tensor, edge_shift: Tensor | None, pos: Tensor, start: Tensor, unit: Tensor
    ) -> Tensor:
        """Scalars of the edges (T, E, A + 2): what is given (E, A), length at the start, how the edge lies on that."""
        first = _along(start, edge_index, edge_shift)  # (E, 3)
        length = (first.square().sum(-1, keepdim=True) + 1e-4).sqrt()  # (E, 1)
        now = 0.3 * (_along(pos, edge_index, edge_shift) * first).sum(-1, keepdim=True)  # (T, E, 1)
        if self.any:  # how much longer the edge is than at the start
            moved = _along(pos - start, edge_index, None)  # (T, E, 3)
            now = (moved * first).sum(-1, keepdim=True) / (length * unit[edge_index[0]])  # (T, E, 1)
        attr = torch.cat([edge_attr, length], dim=-1).expand(len(pos), -1, -1)  # (T, E, A + 1)
        return torch.cat([attr, now], dim=-1)  # (T, E, A + 2)

    def levels(self, pos: Tensor, channels: list[Tensor], h: Tensor, seen: Seen, **_: Any) -> tuple[Tensor, ...]:
        """`pos`, the velocities (T, N, 3) and `h` (T, N, H) after all layers, and what else the result holds."""
        return self.through(pos, channels, h, seen)


def _along(pos: Tensor, edge_index: Tensor, edge_shift: Tensor | None) -> Tensor:
    """Vectors along the edges (..., E, 3)."""
    vectors = pos[..., edge_index[0], :] - pos[..., edge_index[1], :]
    return vectors if edge_shift is None else vectors - edge_shift


def _waves(reference: Tensor) -> Tensor:
    """What tells atoms of one molecule apart, (N, 21)."""
    angles = [wave * reference for wave in WAVES]
    return torch.cat([0.3 * reference, *(f(a) for a in angles for f in (torch.sin, torch.cos))], dim=-1)


def _coordinates(pos: Tensor, vel: Tensor, start: Tensor, reference: Tensor) -> Tensor:
    """Coordinates as scalars (T, N, 12), each of about the size of 1 in Angstrom."""
    moved = 2 * (start - reference)  # (N, 3)
    return torch.cat([2 * (pos - reference), moved.expand_as(pos), 3 * vel, 3 * (pos - start)], dim=-1)


class HierarchicalOutput(NamedTuple):
    """What :class:`HierarchicalFlow` returns."""

    pos: Tensor  # (T, N, 3), the window that is predicted
    vel: Tensor  # (T, N, 3)
    h: Tensor  # (T, N, H)
    cut_loss: Tensor  # ()
    assignment: Tensor  # (N, K)


class HierarchicalFlow(Flow):
    """The window x1 by EGHNO's trunk: nodes, K clusters of them, and back.

    With x' what :class:`Level` makes of x_tau on the edges, c the centre of x0, n = (x' - x_tau) / s, and means
    over time points::

        S = softmax( pooling( V = [x0 - c, mean n, mean v], mean h ) ) on the local edges
        X, H, V, X0, M = S^T x_tau, S^T h, S^T v, S^T x0, S^T m, each divided by max(sum_i S_ik, 1e-5)
        X', H' = Level(X, V, Linear(H)) on all K x K pairs with the scalar (S^T A S)_kl / max(sum_i S_ik, 1e-5)
        x = x' + s decoder( vectors [S (X' - X) / s, x_tau - S X, v - S V, n], scalars [h, S H'] )
        cut_loss = | row-normalised (S^T A_local S) - I |, mean over graphs

    Of :class:`~egno_md.nn.eghno.EGHNO` differs that the decoder adds to what the nodes have found, and that the number
    of edges between two clusters is one for each node of the first.

    Parameters
    ----------
    in_node, in_edge, n_times, options
        As of :class:`Flow`.
    """

    def __init__(self, in_node: int, in_edge: int, n_times: int, options: FlowOptions) -> None:
        super().__init__(in_node, in_edge, n_times, options)
        hidden, self.clusters = options.hidden, options.clusters
        self.pooling = PoolingNetwork(options.pooling_layers, hidden, 1, options.clusters)
        self.high_embedding = nn.Linear(hidden, hidden)
        self.high = Level().add_layers(
            options.layers, hidden, 1 + OWN_EDGE, self.channels, options.modes, handed=self.handed
        )
        self.decoder = Decoder(options.decoder_layers, 4, 2 * hidden, hidden)
        zero_last(self.decoder.layers[-1].out_vector)

    output = HierarchicalOutput

    def levels(
        self, pos: Tensor, channels: list[Tensor], h: Tensor, seen: Seen, *, batch: Tensor | None = None,
        local_index: Tensor | None = None, **_: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """As of :class:`Flow`, and the cut loss and S; `local_index` (2, L), the bonds, by default none."""
        k, n_graphs, start, index = self.clusters, seen.n_graphs, seen.start, seen.index
        runs = graph_runs(batch, n_graphs, pos.shape[1])
        centres = graph_centre(start[None], batch, n_graphs)  # (B, 3)
        if local_index is None:
            local_index = seen.edge_index[:, :0]  # (2, 0)
        path, step = pos, seen.left * seen.unit  # (T, N, 3), (B, 1)
        pos, vel, h = self.through(pos, channels, h, seen)
        n = (pos - path) / step[index]  # (T, N, 3)

        length = (_along(start, local_index, None).square().sum(-1, keepdim=True) + 1e-4).sqrt()  # (L, 1)
        vectors = torch.stack([channels[1].mean(0), n.mean(0), channels[0].mean(0)], dim=-1)[None]  # (1, N, 3, 3)
        s = self.pooling(vectors, h.mean(0, keepdim=True), local_index, length)  # (1, N, K)

        # Of positions relative to the centre, so that a cluster without weight stays with its graph.
        weight = to_clusters(s, start.new_ones(1, len(start), 1), runs).clamp(min=MIN_WEIGHT)  # (1, B K, 1)
        here = path - centres[index]  # (T, N, 3)
        first = (start - centres[index]).expand_as(here)  # (T, N, 3)
        pooled = to_clusters(s, torch.cat([here, first, *channels, h], dim=-1), runs) / weight  # (T, B K, 6 + ... + H)
        big, big_first, *big_channels = pooled[..., : -h.shape[-1]].split(3, dim=-1)
        around = centres.repeat_interleave(k, 0)  # (B K, 3)
        big_start, which = big_first[0] + around, torch.arange(n_graphs, device=pos.device).repeat_interleave(k)
        edges = cluster_edges(n_graphs, k, pos.device)
        adjacency = cluster_adjacency(s, seen.edge_index, runs, max_memory=seen.max_memory)  # (1, B, K, K)
        attr = (adjacency / weight.view(1, n_graphs, k, 1)).flatten()[:, None]  # (B K K, 1)
        new, _, big_h = self.high.through(
            big + around, big_channels, self.high_embedding(pooled[..., -h.shape[-1] :]),
            seen._replace(
                edge_index=edges, edge_attr=self.edges(edges, attr, None, big + around, big_start, seen.unit[which]),
                edge_shift=None, start=big_start, index=which,
            ),
        )  # fmt: skip

        moved = (new - big - around) / step[which]  # (T, B K, 3)
        spread = to_nodes(s, torch.cat([moved, big, big_channels[0], big_h], dim=-1), runs)  # (T, N, 9 + H)
        moved, mean, mean_v, mean_h = spread.split([3, 3, 3, h.shape[-1]], dim=-1)
        inside = (here - mean) / seen.length_unit  # (T, N, 3)
        decoded, more = self.decoder(
            torch.stack([moved, inside, channels[0] - mean_v, n], dim=-1), torch.cat([h, mean_h], dim=-1)
        )  # (T, N, 3), (T, N, H)
        loss = cut_loss(cluster_adjacency(s, local_index, runs, max_memory=seen.max_memory))
        return pos + step[index] * decoded, vel, h + more, loss, s[0]


def flow_network(in_node: int, in_edge: int, n_times: int, options: FlowOptions) -> Flow:
    """The network that the options ask for."""
    return (HierarchicalFlow if options.trunk == "eghno" else Flow)(in_node, in_edge, n_times, options)
