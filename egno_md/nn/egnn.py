"""The EGNN layer (Satorras et al. 2021) for all time points at once, and the small parts that both operators share."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .edges import edge_block


def mlp(n_in: int, hidden: int, n_out: int, *, flat: bool = False, last_act: bool = False) -> nn.Sequential:
    """Linear, SiLU, Linear and, with `last_act`, SiLU again. `flat`: tanh, and four times the inner width."""
    act: type[nn.Module] = nn.Tanh if flat else nn.SiLU
    layers = [nn.Linear(n_in, 4 * hidden if flat else hidden), act(), nn.Linear(4 * hidden if flat else hidden, n_out)]
    return nn.Sequential(*layers, act()) if last_act else nn.Sequential(*layers)


def zero_last(net: nn.Sequential) -> None:
    """Make an MLP return 0 whatever comes in, until it is trained."""
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)


def full_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Have `function` of tensors ignore autocast: bf16 would round coordinates of 50 A to 0.2 A."""

    @functools.wraps(function)
    def wrapped(first: Tensor, *rest: object) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *rest)

    return wrapped


def reduce_to(values: Tensor, index: Tensor, size: int, *, mean: bool = False) -> Tensor:
    """Sum or mean over the second axis of `values` (T, M, ...) by target; a target that nothing points at gets 0.

    Returns
    -------
    Tensor (T, size, ...)
    """
    total = values.new_zeros(values.shape[0], size, *values.shape[2:]).index_add(1, index, values)
    if not mean:
        return total
    # Not bincount: the size of its result depends on the index, which a CUDA graph must not.
    count = values.new_zeros(size).index_add_(0, index, values.new_ones(1).expand(len(index))).clamp_(min=1)  # (size,)
    return total / count.view(-1, *[1] * (values.dim() - 2))


def graph_centre(pos: Tensor, batch: Tensor | None, n_graphs: int) -> Tensor:
    """Centre of every graph: the mean over its nodes and, for a sequence, over the time points given.

    Parameters
    ----------
    pos : Tensor (T, N, 3)
    batch : Tensor (N,) or None
        Graph of every node; None for a single graph.

    Returns
    -------
    Tensor (B, 3)
    """
    pos = pos.mean(0, keepdim=True)  # (1, N, 3)
    return pos.mean(1) if batch is None else reduce_to(pos, batch, n_graphs, mean=True)[0]  # (B, 3)


class EGNNLayer(nn.Module):
    """One EGNN layer, applied to every time point by itself; one edge list serves all T.

    ::

        m_ij = phi_e([ |x_i - x_j|^2, h_i, h_j, e_ij ])
        x_i <- x_i + phi_v(h_i) v_i + clamp( mean_j (x_i - x_j) phi_x(m_ij), -100, 100 )
        h_i <- phi_h([ h_i, sum_j m_ij ])                       v passes through unchanged

    ========  ============  =====================================
    symbol    attribute     shape
    ========  ============  =====================================
    phi_e     `message`     1 + 2H + A -> H -> H, SiLU after both
    phi_x     `coord`       H -> H -> 1
    phi_v     `velocity`    H -> H -> 1
    phi_h     `node`        2H -> H -> H
    ========  ============  =====================================

    Parameters
    ----------
    hidden : int
        H, width of the node scalars and messages.
    in_edge : int
        A, number of edge scalars.
    flat, norm : bool
        Options of the original code: tanh MLPs of four times the inner width; the squared distance enters as 1.
    residual : bool
        ``h <- h + phi_h(...)``, which the paper does not do.
    reduce : {"sum", "mean"}
        Reduction of the messages that enter phi_h.
    """

    def __init__(
        self,
        hidden: int,
        in_edge: int,
        *,
        flat: bool = False,
        norm: bool = False,
        residual: bool = False,
        reduce: str = "sum",
    ) -> None:
        super().__init__()
        self.norm, self.residual, self.reduce = norm, residual, reduce
        self.message = mlp(1 + 2 * hidden + in_edge, hidden, hidden, flat=flat, last_act=True)
        self.coord = mlp(hidden, hidden, 1, flat=flat)
        self.velocity = mlp(hidden, hidden, 1, flat=flat)
        self.node = mlp(2 * hidden, hidden, hidden, flat=flat)

    def forward(
        self,
        pos: Tensor,
        vel: Tensor,
        h: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        *,
        edge_shift: Tensor | None = None,
        max_memory: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New positions (T, N, 3) and scalars (T, N, H) from `pos`, `vel` (T, N, 3) and `h` (T, N, H).

        `edge_index`, `edge_attr`, `edge_shift` and `max_memory` are those of :func:`egno_md.nn.edges.edge_block`.
        """
        shift, agg = edge_block(
            pos,
            h,
            edge_index,
            edge_attr,
            self.message,
            self.coord,
            edge_shift=edge_shift,
            norm=self.norm,
            reduce=self.reduce,
            max_memory=max_memory,
        )
        pos = pos + self.velocity(h) * vel + shift  # phi_v sees h before its update
        new = self.node(torch.cat([h, agg], dim=-1))  # (T, N, H)
        return pos, h + new if self.residual else new
