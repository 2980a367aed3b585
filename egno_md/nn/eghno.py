"""EGHNO: the Equivariant Graph Neural Operator on the hierarchical backbone EGHN (section 5.3.2, appendix B.4)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import UsageError
from .egnn import graph_centre
from .egno import EGNOOptions, OperatorBlock, over_time, symmetry
from .operators import Operator, register
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
from .spectral import NodeEmbedding, fourier_basis


class EGHNOOutput(NamedTuple):
    """What :class:`EGHNO` returns; the loss of training is that of `pos` plus a multiple (2) of `cut_loss`."""

    pos: Tensor  # (T, N, 3)
    vel: Tensor  # (T, N, 3)
    h: Tensor  # (T, N, H)
    cut_loss: Tensor  # ()
    assignment: Tensor  # (N, K), per_time (T, N, K)


class EGHNOOptions(EGNOOptions):
    """Settings of :class:`EGHNO`: those of EGNO, `layers` being those of each block, and its own.

    Attributes
    ----------
    clusters, pooling_layers, decoder_layers : int
        K and the layers of the pooling network and of the decoder.
    placement : {"before", "end"}
        Where the temporal convolutions stand.
    assignment : {"shared", "per_time"}
        One assignment to clusters for all T, or one for every time point.
    cut_weight : float
        Weight of the cut loss in training.
    """

    clusters: int = Field(20, ge=1)
    pooling_layers: int = Field(4, ge=1)
    decoder_layers: int = Field(2, ge=1)
    placement: Literal["before", "end"] = "before"
    assignment: Literal["shared", "per_time"] = "shared"
    cut_weight: float = Field(2.0, ge=0)


class EGHNO(nn.Module):
    """The hierarchical operator: nodes, K clusters of them, and back; the whole window of T frames in one call.

    With f the node features, x0 and v0 the input (repeated T times, or a sequence), c the mean of x0 over each graph::

        h = Linear([f, emb(t)])
        x', h = EGNN_low(x0, v0, Linear(h)) on the edges;  n = x' - x0
        S = softmax( pooling( V = [x0 - c, n, v0], h ) ) on the local edges
        X, H, V = S^T x0, S^T h, S^T v0, each divided by max(sum_i S_ik, 1e-5)
        X', H' = EGNN_high(X, V, Linear(H)) on all K x K pairs with the scalar (S^T A_global S)_kl
        x = S X' + decoder( vectors [S (X' - X), x0 - S X, v0 - S V, n], scalars [h, S H'] )
        cut_loss = | row-normalised (S^T A_local S) - I |, mean over graphs (and over t with one S per time point)

    In both EGNN blocks the two temporal convolutions of :class:`~egno_md.nn.egno.OperatorBlock` act on (h, [x - c, v])
    and on (H, [X - c, V]). Without them, without the time embedding and with T = 1 this is EGHN.

    ====================  ======================================  ================================
    symbol                attribute                               source
    ====================  ======================================  ================================
    Linear, emb(t)        `embedding`                             EGNO 4.3
    EGNN_low, EGNN_high   `low_embedding`, `low`,                 EGHN, EMMP; EGNO 4.2 and 4.3
                          `high_embedding`, `high`
    pooling, S            `pooling` (`layers[l]`, `head`)         EGHN, E-Pool
    decoder               `decoder` (`layers[l]`)                 EGHN, E-UnPool
    cut_loss              :func:`~egno_md.nn.pooling.cut_loss`    EGHN
    K, M, T, H            `clusters`, `modes`, `n_times` and      EGNO appendix B.4
                          ``times``, `hidden`
    ====================  ======================================  ================================

    Two networks that the original has get no gradient: the decoder's last phi_scalar makes scalars that no loss asks
    for, and what the pooling's last phi_out does to the vectors is read by nothing (``requires_grad`` is False).

    Parameters
    ----------
    in_node, in_edge, in_local : int
        Numbers of scalars of nodes, edges and local edges.
    hidden, layers : int
        H, and the EGNN layers of each of the two blocks.
    n_times : int
        T where a call does not say.
    clusters, pooling_layers, decoder_layers : int
        K and the layers of the pooling network and of the decoder.
    placement : {"before", "end"}
        The temporal convolutions in front of every EGNN layer of both levels, or once at the end of each block.
    assignment : {"shared", "per_time"}
        One S for all T, from vectors and scalars averaged over time, or one for every time point. A cluster means
        the same thing at every time with the first alone.
    modes, time_embedding, time_conv, start
        See :class:`~egno_md.nn.egno.EGNO`. The static start is the input up to rounding.
    flat, norm, residual, reduce, handed
        See :class:`~egno_md.nn.egnn.EGNNLayer`; `norm` concerns the low level alone, as in the original code.
    """

    def __init__(
        self,
        in_node: int,
        in_edge: int,
        in_local: int,
        hidden: int = 64,
        layers: int = 4,
        *,
        n_times: int = 8,
        clusters: int = 20,
        pooling_layers: int = 4,
        decoder_layers: int = 2,
        placement: str = "before",
        assignment: str = "shared",
        modes: int = 2,
        time_embedding: int = 32,
        time_conv: str = "full",
        flat: bool = False,
        norm: bool = False,
        residual: bool = False,
        reduce: str = "sum",
        handed: bool = False,
        start: str = "paper",
    ) -> None:
        super().__init__()
        if assignment not in ("shared", "per_time"):
            raise UsageError(f"assignment must be one of shared, per_time; found {assignment!r}")
        time_conv = time_conv if modes else "none"
        self.n_times, self.clusters, self.assignment = n_times, clusters, assignment
        self.modes, self.time_conv = modes, time_conv
        options: dict[str, Any] = {
            "modes": modes,
            "time_conv": time_conv,
            "placement": placement,
            "start": start,
            "flat": flat,
            "residual": residual,
            "reduce": reduce,
            "handed": handed,
        }
        self.embedding = NodeEmbedding(in_node, hidden, time_embedding)
        self.low_embedding = nn.Linear(hidden, hidden)
        self.low = OperatorBlock(layers, hidden, in_edge, norm=norm, **options)
        self.pooling = PoolingNetwork(pooling_layers, hidden, in_local, clusters, flat=flat)
        self.high_embedding = nn.Linear(hidden, hidden)
        self.high = OperatorBlock(layers, hidden, 1, **options)
        self.decoder = Decoder(decoder_layers, 4, 2 * hidden, hidden, flat=flat)
        if start == "static":
            # S X + (x0 - S X): of the decoder's vectors the second alone, with weight 1.
            last = self.decoder.layers[-1].out_vector[-1]
            nn.init.zeros_(last.weight)
            with torch.no_grad():
                last.bias.copy_(torch.arange(len(last.bias)) == 1)

    def forward(
        self,
        h: Tensor,
        pos: Tensor,
        vel: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        *,
        local_index: Tensor,
        local_attr: Tensor,
        times: int | Tensor | None = None,
        batch: Tensor | None = None,
        edge_shift: Tensor | None = None,
        max_memory: int | None = None,
    ) -> EGHNOOutput:
        """The trajectory at `times`, the cut loss and the soft assignment.

        Parameters
        ----------
        local_index : Tensor (2, L)
            Local edges: covalent bonds, or the neighbours along a chain; row 0 receives.
        local_attr : Tensor (L, A_local)
            Their scalars.
        h, pos, vel, edge_index, edge_attr, times, batch, edge_shift, max_memory
            As for :meth:`egno_md.nn.egno.EGNO.forward`. Molecules must be whole: clusters are made of positions.

        Returns
        -------
        EGHNOOutput
            `vel` is that of the low level: the input where nothing is convolved.

        Raises
        ------
        UsageError
            For more modes than the T time points have, or shapes that do not fit together.
        """
        pos, vel, times = over_time(pos, vel, times, self.n_times)  # (T, N, 3), (T, N, 3), (T,)
        basis = None if self.time_conv == "none" else fourier_basis(len(times), self.modes, pos)
        n_graphs = 1 if batch is None else int(batch[-1]) + 1
        runs = graph_runs(batch, n_graphs, pos.shape[1])
        centres = graph_centre(pos, batch, n_graphs)  # (B, 3)
        centre = centres if batch is None else centres[batch]  # (N, 3) or (1, 3)

        low_pos, low_vel, h = self.low(
            pos,
            vel,
            self.low_embedding(self.embedding(h, times)),
            edge_index,
            edge_attr,
            centre=centre.detach(),
            basis=basis,
            edge_shift=edge_shift,
            max_memory=max_memory,
        )
        x0 = pos - centre  # (T, N, 3)
        n = low_pos - pos  # (T, N, 3)

        vectors, scalars = torch.stack([x0, n, vel], dim=-1), h  # (T, N, 3, 3), (T, N, H)
        if self.assignment == "shared":
            vectors, scalars = vectors.mean(0, keepdim=True), h.mean(0, keepdim=True)  # (1, N, 3, 3), (1, N, H)
        s = self.pooling(vectors, scalars, local_index, local_attr)  # (T or 1, N, K)

        # Of positions relative to the centre, so that a cluster without weight stays with its graph.
        weight = to_clusters(s, x0.new_ones(len(s), x0.shape[1], 1), runs).clamp(min=MIN_WEIGHT)  # (T or 1, B K, 1)
        pooled = to_clusters(s, torch.cat([x0, vel, h], dim=-1), runs) / weight  # (T, B K, 6 + H)
        big_x0, big_v, big_h = pooled.split([3, 3, h.shape[-1]], dim=-1)
        adjacency = cluster_adjacency(s, edge_index, runs, max_memory=max_memory)  # (T or 1, B, K, K)
        big_attr = adjacency.flatten(1)[..., None]  # (T or 1, B K K, 1)
        big_centre = centres.repeat_interleave(self.clusters, 0)  # (B K, 3)
        big_x = big_x0 + big_centre  # (T, B K, 3)
        big_x_new, _, big_h = self.high(
            big_x,
            big_v,
            self.high_embedding(big_h),
            cluster_edges(n_graphs, self.clusters, pos.device),
            big_attr[0] if len(s) == 1 else big_attr,
            centre=big_centre.detach(),
            basis=basis,
            max_memory=max_memory,
        )

        spread = to_nodes(s, torch.cat([big_x0, big_v, big_x_new - big_x, big_h], dim=-1), runs)  # (T, N, 9 + H)
        mean_x0, mean_v, moved, mean_h = spread.split([3, 3, 3, h.shape[-1]], dim=-1)
        vectors = torch.stack([moved, x0 - mean_x0, vel - mean_v, n], dim=-1)  # (T, N, 3, 4)
        decoded, h = self.decoder(vectors, torch.cat([h, mean_h], dim=-1))  # (T, N, 3), (T, N, H)
        loss = cut_loss(cluster_adjacency(s, local_index, runs, max_memory=max_memory))
        return EGHNOOutput(
            centre + mean_x0 + moved + decoded, low_vel, h, loss, s[0] if self.assignment == "shared" else s
        )


#: Features of the local edges that a GraphBuilder gives: the length.
IN_LOCAL = 1


def _build(in_node: int, in_edge: int, n_times: int, options: EGHNOOptions) -> EGHNO:
    values = options.model_dump(exclude={"cut_weight"})
    hidden, layers = values.pop("hidden"), values.pop("layers")
    return EGHNO(in_node, in_edge, IN_LOCAL, hidden, layers, n_times=n_times, **values)


def _loss_terms(out: EGHNOOutput, options: EGHNOOptions) -> dict[str, Tensor]:
    return {"cut": options.cut_weight * out.cut_loss}


OPERATOR = register(
    Operator("eghno", _build, EGHNOOptions, ("local_index", "local_attr"), loss_terms=_loss_terms, symmetry=symmetry)
)
