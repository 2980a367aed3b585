"""The edge block written plainly, as the original code does it: concatenation, T copies of the edges, scatter_add.

The fast path in :mod:`egno_md.nn.edges` must reproduce it, and is timed against it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Bound of a node's displacement by its neighbours in one layer, per coordinate (section 1 of the model's definition).
MAX_SHIFT = 100.0


def edge_block(
    pos: Tensor,
    h: Tensor,
    edge_index: Tensor,
    edge_attr: Tensor,
    message: nn.Sequential,
    coord: nn.Sequential,
    *,
    edge_shift: Tensor | None = None,
    norm: bool = False,
    reduce: str = "sum",
) -> tuple[Tensor, Tensor]:
    """Messages along the edges and both of their reductions, at every time point by itself.

    ``m_ij = phi_e([|r_ij|^2, h_i, h_j, e_ij])``, ``shift_i = clamp(mean_j r_ij phi_x(m_ij), -100, 100)`` and
    ``agg_i = sum_j m_ij`` with ``r_ij = x_i - x_j`` (EGNN, Satorras et al. 2021, equations 3 to 5).

    Parameters
    ----------
    pos : Tensor (T, N, 3)
        Positions.
    h : Tensor (T, N, H)
        Node scalars.
    edge_index : Tensor (2, E)
        Row 0 receives, row 1 sends.
    edge_attr : Tensor (E, A) or (T, E, A)
        Edge scalars.
    message, coord : nn.Sequential
        phi_e and phi_x.
    edge_shift : Tensor (E, 3), optional
        The image of the sender is at ``pos[sender] + edge_shift``.
    norm : bool
        The squared distance enters divided by its own magnitude, that is as 1 (an option of the original code).
    reduce : {"sum", "mean"}
        Reduction of the messages at the receiver.

    Returns
    -------
    shift : Tensor (T, N, 3), with K > 1 outputs of phi_x (T, N, K, 3)
        Displacement of every node by its neighbours; 0 without an edge.
    agg : Tensor (T, N, H)
        Messages received; 0 without an edge.
    """
    n_times, n_nodes = pos.shape[:2]
    copies = torch.arange(n_times, device=pos.device)[:, None] * n_nodes  # (T, 1)
    row, col = (edge_index[:, None] + copies).flatten(1)  # (2, T E), a copy of the edges for every time point
    x, h = pos.flatten(0, 1), h.flatten(0, 1)  # (T N, 3), (T N, H)
    diff = x[row] - x[col]  # (T E, 3)
    if edge_shift is not None:
        diff = diff - edge_shift.repeat(n_times, 1)
    d2 = diff.square().sum(-1, keepdim=True)  # (T E, 1)
    if norm:
        d2 = nn.functional.normalize(d2, dim=-1)
    edge_attr = edge_attr.expand(n_times, *edge_attr.shape[-2:]).flatten(0, 1)  # (T E, A)
    m = message(torch.cat([d2, h[row], h[col], edge_attr], dim=-1))  # (T E, H)
    push = (coord(m)[:, :, None] * diff[:, None]).flatten(1)  # (T E, 3 K)

    shift = _segment_sum(push, row, len(x)) / _segment_sum(torch.ones_like(push), row, len(x)).clamp(min=1)
    agg = _segment_sum(m, row, len(x))
    if reduce == "mean":
        agg = agg / _segment_sum(torch.ones_like(m), row, len(x)).clamp(min=1)
    shift = shift.clamp(-MAX_SHIFT, MAX_SHIFT).view(n_times, n_nodes, -1, 3)  # (T, N, K, 3)
    return (shift[:, :, 0] if shift.shape[2] == 1 else shift), agg.view(n_times, n_nodes, -1)


def _segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum of the rows of ``values`` by target, (size, ...)."""
    total = values.new_zeros(size, values.shape[1])
    return total.scatter_add(0, index[:, None].expand_as(values), values)
