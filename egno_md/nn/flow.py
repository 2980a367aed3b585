"""Futures drawn by conditional flow matching over the whole window, on EGNO's trunk (not in the paper).

A window of T frames is taken in the frame of reference of its start, rigid motion apart. With z a path of the base, a
Gaussian process of the window given its start x0 and displacement v, and x1 the window that followed::

    x_tau = (1 - tau) z + tau x1                     0 <= tau <= 1
    velocity = x1 - z = (x1 - x_tau) / (1 - tau)     the network predicts x1 (Lipman et al., 2023, with data as target)

At tau = 0 the path z says nothing of x1, so that what is predicted there is the mean of all futures. With m the mean of
the base, r^2 = (1 - tau)^2 + tau^2, tan(th) = tau / (1 - tau) and x - m = r y, the same flow runs on an arc::

    y = cos(th) z' + sin(th) x1',   dy/dth = cos(th) x1' - sin(th) z'        z' = z - m, x1' = x1 - m

on which nothing changes the variance where base and data have the same covariance: few Euler steps are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import UsageError
from ..specs import Spec
from .egnn import EGNNLayer, graph_centre, mlp, reduce_to, zero_last
from .egno import over_time
from .operators import Drawing, Operator, register
from .spectral import NodeEmbedding, TemporalConv, fourier_basis, time_embedding

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
    hidden, layers, modes : int
        Width H, number of layers, Fourier modes kept by the temporal convolutions.
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
    noise, noise_share : float
        A window's start is learned with noise: in this share of them, of a standard deviation that is uniform up to
        twice `noise` (in the unit of the network, usually Angstrom, or with the base "any" of its spread). The model is
        then robust to its own output.
    bond_weight, pair_weight : float
        Weights in the loss of the differences of the velocity's error along bonds, and between all pairs.
    """

    hidden: int = Field(64, ge=1)
    layers: int = Field(3, ge=1)
    modes: int = Field(2, ge=1)
    time_embedding: int = Field(16, ge=4, multiple_of=2)
    base: Literal["own", "any"] = "own"
    canonical: bool = True
    informed: bool = True
    handed: bool = False
    steps: int = Field(5, ge=1)
    noise: float = Field(0.04, ge=0)
    noise_share: float = Field(0.7, ge=0, le=1)
    bond_weight: float = Field(0.5, ge=0)
    pair_weight: float = Field(0.05, ge=0)

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


class Flow(nn.Module):
    """The window x1 from x_tau, the start and tau.

    Every layer, with Z = [x - x0, v, x0 - c, m - x0], m the mean of the base, s = 1 - tau and c the centre of x0::

        h <- h + SiLU(Linear(mean over nodes of h))          where the coordinates are seen
        h <- h + LeakyReLU_0.01(conv(h))
        Z <- Z + conv(Z);  k = phi_g(norm(h))
        x <- x + s (EGNN(x, v, norm(h)) - x + Z_0 - (x - x0) + sum_a k_a Z_a)
        h <- h + phi_h(norm(h), messages)

    and, where the coordinates are seen, ``x <- x + s phi_o(h)`` in the end. Informed of m, it returns
    ``m + tau / r^2 (x_tau - m)`` and what the layers have added to x_tau: untrained, what is to be expected of x1 where
    base and data are the same Gaussian, so that its draws are those of the base. Uninformed, it begins with x_tau. With
    the base of any molecule all vectors but x0 - c are in units of the spread of the base, which differs with molecule
    and stride.

    Parameters
    ----------
    in_node, in_edge : int
        F and A.
    n_times : int
        T where a call does not say.
    options : FlowOptions
    """

    def __init__(self, in_node: int, in_edge: int, n_times: int, options: FlowOptions) -> None:
        super().__init__()
        hidden, layers, modes, width = options.hidden, options.layers, options.modes, options.time_embedding
        self.n_times, self.modes, self.width, self.canonical = n_times, modes, width, options.canonical
        self.informed, self.any = options.informed, options.base == "any"
        channels = 4 if options.informed else 3
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
        handed = options.handed and not options.canonical
        self.layers = nn.ModuleList(
            EGNNLayer(hidden, in_edge + OWN_EDGE, residual=False, handed=handed) for _ in range(layers)
        )
        self.scalar_conv = nn.ModuleList(TemporalConv(hidden, modes, 1 / hidden**2) for _ in range(layers))
        self.vector_conv = nn.ModuleList(TemporalConv(channels, modes, 0.1) for _ in range(layers))
        self.gate = nn.ModuleList(mlp(hidden, hidden, channels) for _ in range(layers))
        self.norm = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        for layer, gate, conv in zip(self.layers, self.gate, self.vector_conv, strict=True):
            layer.stand_still()
            zero_last(gate)
            nn.init.zeros_(conv.weight)

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
        basis = fourier_basis(len(times), self.modes, pos)
        if n_graphs is None:
            n_graphs = 1 if batch is None else int(batch[-1]) + 1
        level = pos.new_zeros(n_graphs) if level is None else level  # (B,)
        index = torch.zeros(len(start), dtype=torch.int64, device=pos.device) if batch is None else batch  # (N,)
        left = (1 - level).clamp_min(LEAST)[index][:, None]  # (N, 1)
        unit = pos.new_ones(len(start), 1) if size is None else size[index][:, None]  # (N, 1)
        ahead = forecast = (start + vel if mean is None else mean) - start  # (T, N, 3)
        path, expected = pos, (level / ((1 - level) ** 2 + level**2))[index][:, None]  # (T, N, 3), (N, 1)
        h = self.embedding(h, times) + self.level(time_embedding(1000 * level, self.width))[index]  # (T, N, H)
        if self.canonical:
            seen = _coordinates(pos, vel, start, reference)  # (T, N, 12)
            seen = torch.cat([seen, 3 * ahead], dim=-1) if self.informed else seen  # (T, N, 15)
            h = h + self.atom(_waves(reference)) + self.coordinates(seen)
        if self.any:
            h = h + self.about(pos.new_ones(len(start), ABOUT) if about is None else about)
        first = _along(start, edge_index, edge_shift)  # (E, 3)
        length = (first.square().sum(-1, keepdim=True) + 1e-4).sqrt()  # (E, 1)
        now = 0.3 * (_along(pos, edge_index, edge_shift) * first).sum(-1, keepdim=True)  # (T, E, 1)
        if self.any:  # how much longer the edge is than at the start
            moved = _along(pos - start, edge_index, None)  # (T, E, 3)
            now = (moved * first).sum(-1, keepdim=True) / (length * unit[edge_index[0]])  # (T, E, 1)
        attr = torch.cat([edge_attr, length], dim=-1).expand(len(pos), -1, -1)  # (T, E, A + 1)
        attr = torch.cat([attr, now], dim=-1)  # (T, E, A + 2)
        centred = (start - graph_centre(start[None], batch, n_graphs)[index]).expand_as(pos)  # (T, N, 3)
        length_unit = LONG if self.any else 1.0
        centred = centred / length_unit
        vel, ahead = vel / unit, (ahead / unit).expand_as(pos)  # (T, N, 3) both
        for k, (layer, norm) in enumerate(zip(self.layers, self.norm, strict=True)):
            if self.canonical:
                h = h + nn.functional.silu(self.pool[k](reduce_to(h, index, n_graphs, mean=True)))[:, index]
            h = h + nn.functional.leaky_relu(self.scalar_conv[k](h, basis), 0.01)
            vectors = torch.stack(
                [(pos - start) / unit, vel, centred, *([ahead] if self.informed else [])], dim=-1
            )  # (T, N, 3, C)
            moved = self.vector_conv[k](vectors, basis)  # (T, N, 3, C)
            vectors = vectors + moved
            normed = norm(h)
            step = moved[..., 0] + (vectors * self.gate[k](normed)[..., None, :]).sum(-1)  # (T, N, 3)
            vel, centred = vectors[..., 1], vectors[..., 2]
            ahead = vectors[..., -1]
            here = pos / length_unit
            new, more = layer(
                here,
                vel,
                normed,
                edge_index,
                attr,
                edge_shift=None if edge_shift is None else edge_shift / length_unit,
                max_memory=max_memory,
            )  # (T, N, 3), (T, N, H)
            pos = pos + left * unit * (new - here + step)
            h = h + more
        if self.canonical:
            pos = pos + left * self.head(h)
        if self.informed:
            pos = pos + (expected - 1) * (path - start - forecast)
        return FlowOutput(pos, vel, h)


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


class Body(NamedTuple):
    """Starts in the frame of reference that their mean structures give, and what else the network reads.

    In the network's unit of length; N nodes of B graphs.

    Attributes
    ----------
    h, edge_index, edge_attr, edge_shift, batch, n_graphs
        See :meth:`Flow.forward`.
    local_index : Tensor (2, L) or None
        Bonds, in both directions.
    start, vel, reference : Tensor (N, 3)
    size : Tensor (B,), optional
        Spread of the base where it is that of any molecule: lengths of the window are in units of it.
    about : Tensor (N, 5), optional
        See :meth:`Flow.forward`.
    """

    h: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    edge_shift: Tensor | None
    batch: Tensor
    n_graphs: int
    local_index: Tensor | None
    start: Tensor
    vel: Tensor
    reference: Tensor
    size: Tensor | None = None
    about: Tensor | None = None


class Numbers(NamedTuple):
    """Where the random numbers of a training step come from: each graph has its own, whoever it shares its batch with.

    Attributes
    ----------
    seed : tuple of int
        Of the step.
    places : sequence of int
        Place of each graph here in the whole batch, which several processes may share out.
    whole : int
        Graphs of the whole batch.
    """

    seed: tuple[int, ...]
    places: Sequence[int]
    whole: int

    def generators(self) -> list[np.random.Generator]:
        """One for each graph here."""
        return [np.random.default_rng((*self.seed, 1, place)) for place in self.places]

    def strata(self, generators: Sequence[np.random.Generator]) -> np.ndarray:
        """Uniform numbers, one in each of as many equal parts of 0 to 1 as the whole batch has graphs."""
        order = np.random.default_rng((*self.seed, 0)).permutation(self.whole)
        return (order[list(self.places)] + np.array([g.random() for g in generators])) / self.whole  # (B,)


#: From start and velocity (N, 3) to the mean of the base (T, N, 3); and, with generators, one path for each graph.
Base = Callable[[Tensor, Tensor, Sequence[np.random.Generator] | None], tuple[Tensor, Tensor]]


def _predicted(network: nn.Module, body: Body, mean: Tensor, pos: Tensor, level: Tensor, **options: Any) -> Tensor:
    """x1 (T, N, 3) at x_tau (T, N, 3) and tau (B,), with the mean of the base (T, N, 3)."""
    return network(
        body.h, pos, body.vel.expand_as(pos), body.edge_index, body.edge_attr,
        batch=body.batch, n_graphs=body.n_graphs, edge_shift=body.edge_shift,
        start=body.start, level=level, reference=body.reference, mean=mean, size=body.size, about=body.about, **options,
    ).pos  # fmt: skip


def flow_loss(
    network: nn.Module, body: Body, base: Base, target: Tensor, numbers: Numbers, options: FlowOptions
) -> list[tuple[Tensor, int]]:
    """The loss of some windows: terms that add up, and over how many things each of them is a mean.

    Parameters
    ----------
    network : Flow
    body : Body
    base : callable
    target : Tensor (T, N, 3)
        The windows that followed, superposed on their starts.
    numbers : Numbers
    options : FlowOptions
    """
    generators = numbers.generators()
    level = torch.as_tensor(numbers.strata(generators)).to(target)  # (B,)
    unit = target.new_ones(1, 1) if body.size is None else body.size[body.batch][:, None]  # (N, 1)
    if options.noise:
        sizes = body.batch.bincount(minlength=body.n_graphs).tolist()
        parts = [_noise(g, size, options) for g, size in zip(generators, sizes, strict=True)]
        noise = unit[..., None] * torch.as_tensor(np.concatenate(parts)).to(target)  # (N, 2, 3)
        body = body._replace(start=body.start + noise[:, 0], vel=body.vel + noise[:, 1])
    mean, path = base(body.start, body.vel, generators)  # (T, N, 3) both
    at = level[body.batch][:, None]  # (N, 1)
    pos = (1 - at) * path + at * target
    error = (_predicted(network, body, mean, pos, level) - target) / ((1 - at).clamp_min(LEAST) * unit)  # (T, N, 3)
    terms = [(error.square().mean(), error.shape[1])]
    if options.bond_weight and body.local_index is not None:
        row, col = body.local_index[:, body.local_index[0] < body.local_index[1]]
        if len(row):
            terms.append((options.bond_weight * (error[:, row] - error[:, col]).square().mean(), len(row)))
    if options.pair_weight:
        terms.append((options.pair_weight * _over_pairs(error, body), body.n_graphs))
    return terms


def _noise(generator: np.random.Generator, size: int, options: FlowOptions) -> np.ndarray:
    """What is added to start and velocity of one graph, (N, 2, 3) in the unit of the network."""
    strength = (generator.random() < options.noise_share) * 2 * options.noise * generator.random()
    return strength * generator.standard_normal((size, 2, 3))


def _over_pairs(error: Tensor, body: Body) -> Tensor:
    """Mean square of the differences between all pairs of nodes of a graph, the mean over graphs."""
    squares = error.square().sum(-1, keepdim=True)  # (T, N, 1)
    count = body.batch.bincount(minlength=body.n_graphs).to(error)[:, None]  # (B, 1)
    # sum_ij |e_i - e_j|^2 = 2 n sum_i |e_i|^2 - 2 |sum_i e_i|^2
    total = count * reduce_to(squares, body.batch, body.n_graphs, mean=False)  # (T, B, 1)
    total = total - reduce_to(error, body.batch, body.n_graphs, mean=False).square().sum(-1, keepdim=True)
    return (2 * total / (3 * count * (count - 1).clamp_min(1))).mean()


def draw(
    network: nn.Module,
    body: Body,
    base: Base,
    generators: Sequence[np.random.Generator] | None,
    options: FlowOptions,
    **how: Any,
) -> Tensor:
    """One future for each graph (T, N, 3), or the mean of all of them where there are no generators.

    Parameters
    ----------
    network, body, base, options
        As of :func:`flow_loss`.
    generators : sequence of B numpy.random.Generator, optional
    **how
        ``max_memory`` of :meth:`Flow.forward`.
    """
    mean, path = base(body.start, body.vel, generators)  # (T, N, 3) both
    if generators is None:
        return _predicted(network, body, mean, mean, mean.new_zeros(body.n_graphs), **how)
    y = path - mean  # (T, N, 3)
    angles = np.linspace(0, math.pi / 2, options.steps + 1)
    for angle, after in zip(angles[:-1], angles[1:], strict=True):
        sin, cos = math.sin(angle), math.cos(angle)
        level = sin / (sin + cos)
        radius = math.hypot(level, 1 - level)
        at = mean.new_full((body.n_graphs,), level)
        there = _predicted(network, body, mean, mean + radius * y, at, **how) - mean
        y = y + (after - angle) / cos * (there - sin * y)  # cos x1' - sin z', with z' = (y - sin x1') / cos
    return mean + y


def _build(in_node: int, in_edge: int, n_times: int, options: FlowOptions) -> Flow:
    return Flow(in_node, in_edge, n_times, options)


def _symmetry(options: FlowOptions) -> Literal["E(3)", "SE(3)"]:
    return "SE(3)" if options.handed or options.canonical else "E(3)"


OPERATOR = register(
    Operator(
        "flow",
        _build,
        FlowOptions,
        symmetry=_symmetry,
        drawing=Drawing(flow_loss, draw),
        usual={
            "model": {
                "hidden": 64,
                "layers": 3,
                "modes": 5,
                "time_embedding": 16,
                "handed": False,
                "length_scale": 1.0,
                "prior": "static",
            },
            "training": {"batch_size": 64, "ema_decay": 0.995},
        },
    )
)
