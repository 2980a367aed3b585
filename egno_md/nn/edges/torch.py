"""The blocks of :mod:`egno_md.nn.edges` with torch's operators: on any device and in any precision.

The symbols are those of :mod:`egno_md.nn.edges.block`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from egno_md.nn.edges.backend import Edges, Gradients, weight_gradients
from egno_md.nn.edges.products import linear

__all__ = ["add_rows", "backward_blocks", "forward_blocks"]


def forward_blocks(
    edges: Edges, low: torch.dtype | None, push: Tensor, agg: Tensor
) -> Callable[[int, int], Callable[[], None]]:
    """See :class:`egno_md.nn.edges.backend.Backend`."""
    dtype = low or agg.dtype
    w2, b2, w3, b3, w4, b4 = (w.to(dtype) for w in edges.weights)

    def block(start: int, stop: int) -> Callable[[], None]:
        r, z1 = edges.first_layer(start, stop)
        m = linear(F.silu(z1, inplace=True).to(dtype), w2, b2, silu=True)  # (R, H)
        a3 = linear(m, w3, b3, silu=True)  # (R, H3)
        if len(w4) == 1:
            force = r.mul_(torch.addmv(b4, a3, w4[0])[:, None])  # (R, 3)
        else:
            force = (torch.addmm(b4, a3, w4.t())[:, :, None] * r[:, None]).flatten(1).to(r.dtype)  # (R, 3 K)
        receiver, m = edges.receiver[start:stop], m.to(agg.dtype)

        def add() -> None:
            add_rows(agg, receiver, m)
            add_rows(push, receiver, force)

        return add

    return block


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """See :class:`egno_md.nn.edges.backend.Backend`."""
    total.index_add_(0, index, rows.view(len(index), -1))


def backward_blocks(
    edges: Edges, low: torch.dtype | None, g_push: Tensor, g_agg: Tensor, need_weights: bool
) -> Callable[[int, int], Gradients]:
    """See :class:`egno_md.nn.edges.backend.Backend`.

    The chain rule from the last equation to the first, in full precision whatever ``low``.
    """
    w2, b2, w3, b3, w4, b4 = edges.weights

    def block(start: int, stop: int) -> Gradients:
        r, z1 = edges.first_layer(start, stop)
        receiver = edges.receiver[start:stop]  # (B,)
        a1 = F.silu(z1)  # (R, H1)
        z2 = linear(a1, w2, b2)  # (R, H)
        m = F.silu(z2)
        z3 = linear(m, w3, b3)  # (R, H3)
        a3 = F.silu(z3)
        s = torch.addmm(b4, a3, w4.t())  # (R, K)

        g_force = g_push.index_select(0, receiver).view(len(r), -1, 3)  # (R, K, 3)
        g_s = (g_force * r[:, None]).sum(-1)  # (R, K)
        last = (g_s.t() @ a3, g_s.sum(0)) if need_weights else ()
        g_a3 = torch.mul(g_s, w4, out=a3) if len(w4) == 1 else torch.mm(g_s, w4, out=a3)  # (R, H3)
        g_z3 = _silu_backward(g_a3, z3)
        g_m = linear(g_z3, w3.t()).add_(g_agg.index_select(0, receiver).view_as(m))  # (R, H)
        g_z2 = _silu_backward(g_m, z2)
        g_z1 = _silu_backward(linear(g_z2, w2.t()), z1)  # (R, H1)
        # r enters through the force, s r, and through its square.
        g_r = g_force.mul_(s[..., None]).sum(1).addcmul_(r, g_z1 @ edges.w_d, value=2.0)  # (R, 3)
        if not need_weights:
            return Gradients(g_z1, g_r, [])
        d2 = r.square().sum(-1, keepdim=True)  # (R, 1)
        return Gradients(g_z1, g_r, [*weight_gradients(edges, start, stop, d2, a1, m, g_z1, g_z2, g_z3), *last])

    return block


def _silu_backward(grad: Tensor, z: Tensor) -> Tensor:
    """``grad silu'(z)``, written over ``grad``."""
    return torch.ops.aten.silu_backward.grad_input(grad, z, grad_input=grad)
