"""A whole EGNN layer as one autograd node: a training step on small graphs, compiled by Numba.

Where the edges are few the networks on the nodes cost as much as those along the edges, and torch's bookkeeping between
them as much as either. Here nodes and edges are one function with one backward pass, and what goes into the three SiLUs
along the edges is kept for it: :mod:`egno_md.nn.edges.block` computes that again and stays bounded whatever the size.
The symbols are those of that module and of :class:`egno_md.nn.egnn.EGNNLayer`. Rows are (time, edge) or (time, node),
as the operators have them. All but the products with matrices is compiled; these stay torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from egno_md.compiled import compiled
from egno_md.nn.edges.block import _in_blocks, _keep_freed_memory
from egno_md.nn.edges.numba import _EXACT, _SUMS, _array, _sigmoid, check_nodes
from egno_md.nn.edges.products import linear
from egno_md.nn.edges.reference import MAX_SHIFT

#: Size in bytes of one temporary, (rows of a block) x (hidden width): smaller blocks are slower by Python's share.
_CACHE = 2**20


@njit(**_EXACT)
def _difference(x, shift, t, e, i, j, c):
    """A component of r_ij."""
    r = x[t, i, c] - x[t, j, c]
    return r - shift[e, c] if len(shift) else r


@compiled(_EXACT)
def _first_layer(x, p_i, p_j, receiver, sender, attr, shift, w, start, z1, a1):
    """z1 and a1 of the rows from ``start`` on; ``w`` holds the columns of w_d and W_e."""
    width = z1.shape[1]
    for row in range(len(z1)):
        t, e = (start + row) // len(receiver), (start + row) % len(receiver)
        i, j = receiver[e], sender[e]
        d2 = z1.dtype.type(0)
        for c in range(3):
            r = _difference(x, shift, t, e, i, j, c)
            d2 += r * r
        z, a, h_i, h_j, w_d = z1[row], a1[row], p_i[t, i], p_j[t, j], w[0]
        for c in range(width):
            z[c] = h_i[c] + h_j[c] + d2 * w_d[c]
        for k in range(attr.shape[2]):
            e_k, w_k = attr[t if len(attr) > 1 else 0, e, k], w[1 + k]
            for c in range(width):
                z[c] += e_k * w_k[c]
        for c in range(width):
            a[c] = z[c] * _sigmoid(z[c])


@compiled(_EXACT)
def _silu(z, a):
    """a = silu(z)."""
    for row in range(len(z)):
        for c in range(z.shape[1]):
            a[row, c] = z[row, c] * _sigmoid(z[row, c])


@compiled(_SUMS)
def _scalar(z, w, b, s):
    """s = w . silu(z) + b, the end of phi_x and of phi_v."""
    for row in range(len(z)):
        total = b[0]
        for c in range(len(w)):
            total += z[row, c] * _sigmoid(z[row, c]) * w[c]
        s[row] = total


@compiled(_EXACT)
def _receive(x, receiver, sender, shift, start, s, m, push, agg):
    """Add r_ij s_ij and m_ij to what the receivers have."""
    for row in range(len(m)):
        t, e = (start + row) // len(receiver), (start + row) % len(receiver)
        i, j = receiver[e], sender[e]
        for c in range(3):
            push[t, i, c] += _difference(x, shift, t, e, i, j, c) * s[row]
        for c in range(m.shape[1]):
            agg[t, i, c] += m[row, c]


@compiled(_EXACT)
def _receive_backward(x, receiver, sender, shift, start, g_push, g_s):
    """The gradient of s_ij."""
    for row in range(len(g_s)):
        t, e = (start + row) // len(receiver), (start + row) % len(receiver)
        i, j = receiver[e], sender[e]
        g_s[row] = 0
        for c in range(3):
            g_s[row] += _difference(x, shift, t, e, i, j, c) * g_push[t, i, c]


@compiled(_SUMS)
def _scalar_backward(z, w, b, g_s, s, g_z, g_last, g_w, g_b):
    """g_z, s once more, and what w, b and the bias before ``z`` get."""
    for row in range(len(z)):
        total, g = b[0], g_s[row]
        for c in range(len(w)):
            gate = _sigmoid(z[row, c])
            a = z[row, c] * gate
            total += a * w[c]
            g_w[c] += g * a
            g_c = g * w[c] * (gate + a - a * gate)
            g_z[row, c] = g_c
            g_last[c] += g_c
        s[row] = total
        g_b[0] += g


@compiled(_EXACT)
def _silu_backward(z, receiver, g_agg, start, a, g, g_b):
    """a = silu(z); g_z in place of the gradient of a, to which what the receivers get is added; and that of a bias."""
    for row in range(len(z)):
        if len(receiver):
            received = g_agg[(start + row) // len(receiver), receiver[(start + row) % len(receiver)]]
            for c in range(z.shape[1]):
                g[row, c] += received[c]
        for c in range(z.shape[1]):
            gate = _sigmoid(z[row, c])
            y = z[row, c] * gate
            a[row, c] = y
            g[row, c] *= gate + y - y * gate
            g_b[c] += g[row, c]


@compiled(_SUMS)
def _first_layer_backward(x, receiver, sender, attr, shift, start, z1, w_d, g_push, s, a1, g, g_w, g_r):
    """a1; g_z1 in place of its gradient; the gradients of w_d and W_e added to ``g_w``; and that of r_ij."""
    r = np.empty(3, x.dtype)
    for row in range(len(z1)):
        t, e = (start + row) // len(receiver), (start + row) % len(receiver)
        i, j = receiver[e], sender[e]
        d2, g_d2, g_w_d = g.dtype.type(0), g.dtype.type(0), g_w[0]
        for c in range(3):
            r[c] = _difference(x, shift, t, e, i, j, c)
            d2 += r[c] * r[c]
        for c in range(g.shape[1]):
            gate = _sigmoid(z1[row, c])
            y = z1[row, c] * gate
            a1[row, c] = y
            g_c = g[row, c] * (gate + y - y * gate)
            g[row, c] = g_c
            g_d2 += g_c * w_d[c]
            g_w_d[c] += g_c * d2
        for k in range(attr.shape[2]):
            e_k, g_w_k = attr[t if len(attr) > 1 else 0, e, k], g_w[1 + k]
            for c in range(g.shape[1]):
                g_w_k[c] += g[row, c] * e_k
        for c in range(3):
            g_r[row, c] = s[row] * g_push[t, i, c] + (g_d2 + g_d2) * r[c]


@compiled(_SUMS)
def _send_back(receiver, sender, start, g_r, g_z1, w, g_x, g_i, g_j, g_shift, g_attr):
    """Add what the rows get to what nodes get and, where there is room for it, the edges' own scalars."""
    width = g_z1.shape[1]
    for row in range(len(g_z1)):
        t, e = (start + row) // len(receiver), (start + row) % len(receiver)
        i, j, g = receiver[e], sender[e], g_z1[row]
        for c in range(3):
            g_x[t, i, c] += g_r[row, c]
            g_x[t, j, c] -= g_r[row, c]
            if len(g_shift):
                g_shift[e, c] -= g_r[row, c]
        at_i, at_j = g_i[t, i], g_j[t, j]
        for c in range(width):
            at_i[c] += g[c]
            at_j[c] += g[c]
        if len(g_attr):
            for k in range(g_attr.shape[2]):
                w_k, total = w[1 + k], g_z1.dtype.type(0)
                for c in range(width):
                    total += g[c] * w_k[c]
                g_attr[t if len(g_attr) > 1 else 0, e, k] += total


class _Edges(NamedTuple):
    """What the kernels need to find the rows of the edges' nodes."""

    x: np.ndarray  # (T, N, 3)
    receiver: np.ndarray  # (E,)
    sender: np.ndarray  # (E,)
    attr: np.ndarray  # (T or 1, E, A)
    shift: np.ndarray  # (E, 3), or (0, 3)

    @classmethod
    def of(cls, pos: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_shift: Tensor | None) -> _Edges:
        receiver, sender = map(_array, edge_index.unbind(0))
        shift = np.empty((0, 3), np.float32) if edge_shift is None else _array(edge_shift)
        attr = edge_attr if edge_attr.dim() == 3 else edge_attr[None]  # (T or 1, E, A)
        return cls(_array(pos), receiver, sender, _array(attr), shift.astype(_array(pos).dtype, copy=False))


def egnn_layer(
    pos: Tensor,
    vel: Tensor,
    h: Tensor,
    edge_index: Tensor,
    edge_attr: Tensor,
    weights: Sequence[Tensor],
    *,
    edge_shift: Tensor | None = None,
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """New positions (T, N, 3) and what phi_h gives (T, N, H); the arguments of :class:`egno_md.nn.egnn.EGNNLayer`.

    ``weights`` are weight and bias of every Linear of phi_e, phi_x (of one output), phi_v and phi_h, in this order.
    First derivatives alone.

    Raises
    ------
    UsageError
        An edge to a node that is not there.
    """
    edge_attr, edge_shift = (None if x is None else x.to(pos.dtype) for x in (edge_attr, edge_shift))
    return _Layer.apply(pos, vel, h, edge_attr, edge_shift, edge_index, mean, *weights)


class _Layer(torch.autograd.Function):
    """Both passes; kept in between are the arguments of all SiLUs, and no other temporary of the size of the edges."""

    @staticmethod
    def forward(
        ctx: Any,
        pos: Tensor,
        vel: Tensor,
        h: Tensor,
        edge_attr: Tensor,
        edge_shift: Tensor | None,
        edge_index: Tensor,
        mean: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        _keep_freed_memory()
        w1, b1, w2, b2, w3, b3, w4, b4, v1, c1, v2, c2, n1, d1, n2, d2 = weights
        n_times, n_nodes, width = h.shape
        edges, nodes = _Edges.of(pos, edge_index, edge_attr, edge_shift), h.reshape(-1, width)  # (T N, H)
        check_nodes(edges.receiver, edges.sender, n_nodes)
        w_d, w_i, w_j, w_e = w1.split([1, width, width, edges.attr.shape[2]], dim=1)
        w = _array(torch.cat([w_d, w_e], dim=1).t())  # (1 + A, H1)
        tables = [linear(nodes, side.contiguous(), b) for side, b in ((w_i, b1), (w_j, None))]  # 2 of (T N, H1)
        tables = [_array(x.view(n_times, n_nodes, -1)) for x in tables]  # 2 of (T, N, H1)
        push, agg = torch.zeros_like(pos, memory_format=torch.contiguous_format), h.new_zeros(len(nodes), len(w2))
        total = (push.numpy(), agg.view(n_times, n_nodes, -1).numpy())
        last, kept = (_array(w4[0]), _array(b4)), []

        def block(start: int, stop: int) -> Callable[[], None]:
            z1, a1 = h.new_empty(2, stop - start, w.shape[1]).unbind()  # (R, H1) each
            _first_layer(edges.x, *tables, *edges[1:], w, start, z1.numpy(), a1.numpy())
            z2 = linear(a1, w2, b2)  # (R, H)
            m, s = torch.empty_like(z2), np.empty(stop - start, w.dtype)
            m_array = m.numpy()
            _silu(z2.numpy(), m_array)
            z3 = linear(m, w3, b3)  # (R, H3)
            _scalar(z3.numpy(), *last, s)

            def add() -> None:
                _receive(*edges[:3], edges.shift, start, s, m_array, *total)
                kept.extend((z1, z2, z3))

            return add

        rows = n_times * len(edges.receiver)
        _in_blocks(block, rows, _rows_of_a_block(weights, h), h.device)
        count = _count(edges, h)  # (N, 1)
        shift = push.div_(count).clamp_(-MAX_SHIFT, MAX_SHIFT)  # (T, N, 3)
        if mean:
            agg.view(n_times, n_nodes, -1).div_(count)
        z_v = linear(nodes, v1, c1)  # (T N, H)
        speed = h.new_empty(len(nodes))
        _scalar(z_v.numpy(), _array(v2[0]), _array(c2), speed.numpy())
        moved = torch.addcmul(pos, speed.view(n_times, n_nodes, 1), vel).add_(shift)  # (T, N, 3)
        z_h = linear(nodes, n1[:, :width].contiguous(), d1).addmm_(agg, n1[:, width:].t())  # (T N, H)
        a_h = torch.empty_like(z_h)
        _silu(z_h.numpy(), a_h.numpy())
        ctx.mean = mean
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            pos, vel, h, edge_attr, edge_shift, edge_index, *weights, shift, agg, z_v, z_h, *kept
        )  # fmt: skip
        return moved, linear(a_h, n2, d2).view(n_times, n_nodes, -1)  # (T, N, 3), (T, N, H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_pos: Tensor | None, g_h: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):  # which a backward pass may run under
            return _backward(ctx, g_pos, g_h)


def _rows_of_a_block(weights: Sequence[Tensor], like: Tensor) -> int:
    return max(1, _CACHE // (like.element_size() * max(len(w) for w in weights)))


def _count(edges: _Edges, like: Tensor) -> Tensor:
    """Edges that every node receives, at least 1 (N, 1)."""
    count = np.bincount(edges.receiver, minlength=edges.x.shape[1]).clip(1)
    return torch.from_numpy(count).to(like.dtype)[:, None]  # (N, 1)


def _backward(ctx: Any, g_pos: Tensor | None, g_h: Tensor | None) -> tuple[Tensor | None, ...]:
    """The chain rule from the last equation to the first."""
    pos, vel, h, edge_attr, edge_shift, edge_index, *rest = ctx.saved_tensors
    weights, (shift, agg, z_v, z_h), kept = rest[:16], rest[16:20], rest[20:]
    w1, b1, w2, b2, w3, b3, w4, b4, v1, c1, v2, c2, n1, d1, n2, d2 = weights
    n_times, n_nodes, width = h.shape
    edges, nodes = _Edges.of(pos, edge_index, edge_attr, edge_shift), h.reshape(-1, width)  # (T N, H)
    g_pos = torch.zeros_like(pos) if g_pos is None else g_pos.contiguous()
    count = _count(edges, h)  # (N, 1)

    def zeros(*tensors: Tensor) -> list[Tensor]:
        return [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in tensors]

    # phi_h; its output is not asked for in the last layer.
    g_nodes = None
    g_agg = h.new_zeros(len(nodes), len(w2))
    g_n1 = g_d1 = g_n2 = g_d2 = None
    if g_h is not None:
        g_h = g_h.reshape(-1, len(n2))
        g_z, a = linear(g_h, n2.t()), torch.empty_like(z_h)  # (T N, H)
        (g_d1,) = zeros(d1)
        _silu_backward(z_h.numpy(), *_no_edges(h), 0, a.numpy(), g_z.numpy(), g_d1.numpy())
        g_n2, g_d2 = g_h.t() @ a, g_h.sum(0)
        g_n1 = torch.cat([g_z.t() @ nodes, g_z.t() @ agg], dim=1)
        g_agg = g_z @ n1[:, width:]
        g_nodes = g_z @ n1[:, :width]
    g_agg = g_agg.view(n_times, n_nodes, -1)
    if ctx.mean:
        g_agg = g_agg / count

    # phi_v
    g_speed, speed, g_z = (g_pos * vel).sum(-1).flatten(), h.new_empty(len(nodes)), torch.empty_like(z_v)
    g_c1, g_v2, g_c2 = zeros(c1, v2, c2)
    arrays = (x.numpy() for x in (z_v, v2.detach()[0], c2.detach(), g_speed, speed, g_z, g_c1, g_v2[0], g_c2))
    _scalar_backward(*arrays)
    g_vel = speed.view(n_times, n_nodes, 1) * g_pos
    g_v1 = g_z.t() @ nodes
    g_nodes = linear(g_z, v1.t()) if g_nodes is None else g_nodes.addmm_(g_z, v1)

    # The edges; where the bound of the displacement holds, its gradient is 0.
    g_push = (g_pos.masked_fill(shift.abs() >= MAX_SHIFT, 0.0) / count).numpy()
    w_d, w_i, w_j, w_e = w1.split([1, width, width, edges.attr.shape[2]], dim=1)
    w = _array(torch.cat([w_d, w_e], dim=1).t())  # (1 + A, H1)
    g_x, g_w2, g_b2, g_w3, g_b3, g_w4, g_b4 = zeros(g_pos, w2, b2, w3, b3, w4, b4)
    g_i, g_j = h.new_zeros(2, n_times, n_nodes, len(w1))
    g_w = torch.zeros(w.shape, dtype=h.dtype)
    needs_attr, needs_shift = ctx.needs_input_grad[3:5]
    g_attr = torch.zeros(edges.attr.shape if needs_attr else (0, 0, 0), dtype=h.dtype)
    g_shift = torch.zeros(edges.shift.shape if needs_shift else (0, 3), dtype=h.dtype)
    last, received = (_array(w4[0]), _array(b4)), g_agg.numpy()
    totals = [x.numpy() for x in (g_w, g_b2, g_b3, g_w4[0], g_b4)]
    out = [x.numpy() for x in (g_x, g_i, g_j, g_shift, g_attr)]
    size = _rows_of_a_block(weights, h)

    def block(start: int, stop: int) -> Callable[[], None]:
        z1, z2, z3 = kept[3 * (start // size) : 3 * (start // size) + 3]
        g_z3, m, a1 = torch.empty_like(z3), torch.empty_like(z2), torch.empty_like(z1)
        part_w, part_b2, part_b3, part_w4, part_b4 = parts = [np.zeros_like(x) for x in totals]
        g_s, s = np.empty((2, stop - start), w.dtype)
        _receive_backward(*edges[:3], edges.shift, start, g_push, g_s)
        _scalar_backward(z3.numpy(), *last, g_s, s, g_z3.numpy(), part_b3, part_w4, part_b4)
        g_z2 = linear(g_z3, w3.t())  # (R, H)
        _silu_backward(z2.numpy(), edges.receiver, received, start, m.numpy(), g_z2.numpy(), part_b2)
        g_z1, g_r = linear(g_z2, w2.t()), np.empty((stop - start, 3), w.dtype)  # (R, H1), (R, 3)
        g_first = g_z1.numpy()
        _first_layer_backward(*edges, start, z1.numpy(), w[0], g_push, s, a1.numpy(), g_first, part_w, g_r)

        def add() -> None:
            g_w3.addmm_(g_z3.t(), m)
            g_w2.addmm_(g_z2.t(), a1)
            for total, part in zip(totals, parts, strict=True):
                total += part
            _send_back(*edges[1:3], start, g_r, g_first, w, *out)

        return add

    _in_blocks(block, n_times * len(edges.receiver), size, h.device)
    g_x += g_pos
    g_i, g_j = g_i.view(len(nodes), -1), g_j.view(len(nodes), -1)  # (T N, H1)
    g_nodes = g_nodes.addmm_(g_i, w_i).addmm_(g_j, w_j).view(h.shape)
    g_w1 = torch.cat([g_w[:1].t(), g_i.t() @ nodes, g_j.t() @ nodes, g_w[1:].t()], dim=1)
    return (
        g_x, g_vel, g_nodes,
        g_attr.view(edge_attr.shape) if needs_attr else None, g_shift if needs_shift else None, None, None,
        g_w1, g_i.sum(0), g_w2, g_b2, g_w3, g_b3, g_w4, g_b4, g_v1, g_c1, g_v2, g_c2, g_n1, g_d1, g_n2, g_d2,
    )  # fmt: skip


def _no_edges(like: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """For a SiLU on the nodes, where nothing is received."""
    return np.empty(0, np.int64), like.new_empty(0, 0, 0).numpy()
