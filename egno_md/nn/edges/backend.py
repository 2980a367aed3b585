"""What the edge block asks of whoever computes it: the interface of a backend, and the inputs in the form it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from egno_md.nn.edges.products import add_linear, linear

#: Size in bytes of one temporary, (rows of a block) x (hidden width), where ``max_memory`` does not say: on the CPU
#: the size of a level-2 cache, on the GPU enough rows to fill it.
_CACHE, _GPU = 2**19, 2**26


class Backend(Protocol):
    """Who computes the blocks: a module with these functions, :mod:`.torch`, :mod:`.numba` or :mod:`.triton`."""

    def forward_blocks(
        self, edges: Edges, low: torch.dtype | None, push: Tensor, agg: Tensor
    ) -> Callable[[int, int], Callable[[], None]]:
        """A function of (start, stop) that computes the edges between them.

        What that returns adds r_ij s_ij to ``push`` (N, 3 K T) and m_ij to ``agg`` (N, H T).
        """

    def backward_blocks(
        self, edges: Edges, low: torch.dtype | None, g_push: Tensor, g_agg: Tensor, need_weights: bool
    ) -> Callable[[int, int], Gradients]:
        """A function of (start, stop) that returns the gradients of the edges between them."""

    def add_rows(self, total: Tensor, index: Tensor, rows: Tensor) -> None:
        """Add ``rows`` (edge, time) to the rows (node, time) of ``total``, ``index`` being the node of an edge."""


class Gradients(NamedTuple):
    """Gradients in a block of R = edges x T rows."""

    z1: Tensor  # (R, H1)
    r: Tensor  # (R, 3)
    weights: list[Tensor]  # of w_d, W_e, W_2, b_2, ..., W_4, b_4, summed over the block; empty where not needed


class Edges:
    """The inputs of the edge block in the form that the blocks gather from.

    Rows are (node, time) or (edge, time): one gather then takes all time points of a node.
    """

    def __init__(
        self,
        pos: Tensor,
        h: Tensor,
        edge_attr: Tensor,
        edge_shift: Tensor | None,
        weights: Sequence[Tensor],
        edges: Tensor,
    ) -> None:
        self.n_times, self.n_nodes = pos.shape[:2]
        edges, edge_attr = edges.contiguous(), edge_attr.contiguous()
        self.receiver, self.sender = edges.unbind(0)  # (E,), (E,)
        self.attr = edge_attr.transpose(0, 1) if edge_attr.dim() == 3 else edge_attr[:, None]  # (E, T or 1, A)
        self.shift = edge_shift

        w1, b1, *self.weights = weights
        width = h.shape[-1]
        self.x = self.by_node(pos)  # (N, 3 T)
        self.h = self.by_node(h).view(-1, width)  # (N T, H)
        self.w_d, self.w_i, self.w_j, self.w_e = w1.split([1, width, width, edge_attr.shape[-1]], dim=1)
        # |r|^2 enters as its three terms: the product sums them up.
        self.w_de = torch.cat([self.w_d.expand(-1, 3), self.w_e], dim=1)  # (H1, 3 + A)
        # The table has the receivers' rows first and the senders' after them; an edge is the sum of two rows.
        self.pairs = torch.stack([self.receiver, self.sender + self.n_nodes], dim=1)  # (E, 2)
        sides = ((self.w_i, b1), (self.w_j, None))
        self.projected = torch.cat([linear(self.h, w.contiguous(), b) for w, b in sides])  # (2 N T, H1)

    def by_node(self, x: Tensor) -> Tensor:
        """All time points of a node of ``x`` (T, N, C) in one row, (N, T C)."""
        return x.transpose(0, 1).reshape(self.n_nodes, -1).contiguous()  # (N, T C)

    def by_time(self, x: Tensor) -> Tensor:
        """The reverse, (T, N, C) from (N, T C) or (N T, C)."""
        return x.view(self.n_nodes, self.n_times, -1).transpose(0, 1)  # (T, N, C)

    def first_layer(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """r_ij (R, 3) and z1 (R, H1), with R = edges x T."""
        r = self.x.index_select(0, self.receiver[start:stop])  # (B, 3 T)
        r = r.sub_(self.x.index_select(0, self.sender[start:stop])).view(stop - start, -1, 3)  # (B, T, 3)
        if self.shift is not None:
            r.sub_(self.shift[start:stop, None])
        attr = self.attr[start:stop].expand(-1, self.n_times, -1)  # (B, T, A)
        scalars = torch.cat([r.square(), attr], dim=-1).flatten(0, 1)  # (R, 3 + A)
        table = self.projected.view(2 * self.n_nodes, -1)  # (2 N, T H1)
        z1 = F.embedding_bag(self.pairs[start:stop], table, mode="sum").view(len(scalars), -1)  # (R, H1)
        return r.view(-1, 3), add_linear(z1, scalars, self.w_de)

    def of_scalars(self, g_z1: Tensor) -> Tensor:
        """The sum of ``g_z1`` (R, H1) over the time points that share their edge scalars, (B, T or 1, H1)."""
        each = g_z1.view(-1, self.n_times, g_z1.shape[1])  # (B, T, H1)
        return each.sum(1, keepdim=True) if self.attr.shape[1] == 1 else each  # (B, T or 1, H1)

    def block_size(self, max_memory: int | None, live: int) -> int:
        """Edges per block such that ``live`` temporaries of the widest kind keep the bound."""
        on_cpu = self.projected.device.type == "cpu"
        threads = torch.get_num_threads() if on_cpu else 1
        budget = _CACHE if on_cpu else _GPU
        if max_memory:  # with threads, each has a block of its own, and one more waits to be added
            budget = max_memory // (live * (threads + 1 if threads > 1 else 1))
        widest = max(self.w_de.shape[1] + 16, *(w.shape[-1] for w in self.weights), *self.projected.shape[1:])
        return max(1, budget // (self.projected.element_size() * widest * self.n_times))


def weight_gradients(
    edges: Edges, start: int, stop: int, d2: Tensor, a1: Tensor, m: Tensor, g_z1: Tensor, g_z2: Tensor, g_z3: Tensor
) -> list[Tensor]:
    """Gradients of w_d, W_e, W_2, b_2, W_3 and b_3 in a block from those of the rows."""
    g_scalars, attr = edges.of_scalars(g_z1), edges.attr[start:stop].flatten(0, 1)  # (B, T or 1, H1), (B T or B, A)
    g_w_e = linear(attr.t(), g_scalars.flatten(0, 1).t()).t()  # (H1, A)
    g_w2, g_w3 = linear(g_z2.t(), a1.t()), linear(g_z3.t(), m.t())
    return [g_z1.t() @ d2, g_w_e, g_w2, g_z2.sum(0), g_w3, g_z3.sum(0)]
