"""The blocks of :mod:`egno_md.nn.edges` on the CPU, compiled by Numba: all but the products with matrices.

The symbols are those of :mod:`egno_md.nn.edges.block`; arrays along the edges have rows (edge, time). The products stay
torch's. Between two of them a kernel goes over the rows once: what torch's operators would read and write five times
is done while it is in the level-1 cache, and the SiLU takes two thirds of the time. The machine code is stored
beside this file, or where Numba may write, and made again for another processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from egno_md.compiled import compiled
from egno_md.errors import UsageError
from egno_md.nn.edges.backend import Edges, Gradients
from egno_md.nn.edges.products import linear

# A Python number beside a float32 would make the result a float64: there is none below.
#: A product and a sum may become one instruction; sums keep their order, on which the sigmoid relies.
_EXACT = dict(nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
#: Sums along a row in any order, so that they are vectors.
_SUMS = _EXACT | {"fastmath": {"contract", "nsz", "reassoc"}}

#: 2^f for |f| <= 1/2 by its interpolant in the Chebyshev points, off by 2e-9.
_EXP2 = tuple(np.float32(c) for c in Chebyshev.interpolate(np.exp2, 6, [-0.5, 0.5]).convert(kind=Polynomial).coef)
#: log2(e) as the sum of a float32 and what that leaves out.
_LOG2E = np.float32(1 / math.log(2))
_LOG2E_REST = np.float32(1 / math.log(2) - float(_LOG2E))
_ONE, _HALF, _BOUND = np.float32(1), np.float32(0.5), np.float32(87)


@intrinsic
def _float_of_bits(typing: Any, bits: Any) -> Any:
    return types.float32(types.int32), lambda context, builder, _, args: builder.bitcast(args[0], ir.FloatType())


def _sigmoid(z):
    """1 / (1 + exp(-z)), in the precision of z."""
    raise NotImplementedError


@overload(_sigmoid, jit_options=_EXACT)
def _sigmoid_of(z):
    c0, c1, c2, c3, c4, c5, c6 = _EXP2

    def single(z):
        # exp(-z) = 2^k 2^f: an integer k goes into the exponent of a float, 2^f is a polynomial.
        x = min(max(z, -_BOUND), _BOUND)
        k = np.floor(_HALF - x * _LOG2E)
        f = -x * _LOG2E - k
        f = f - x * _LOG2E_REST
        f2 = f * f
        p = (c0 + c1 * f) + (c2 + c3 * f) * f2 + ((c4 + c5 * f) + c6 * f2) * (f2 * f2)
        return _ONE / (_ONE + p * _float_of_bits((np.int32(k) + np.int32(127)) << np.int32(23)))

    def double(z):
        return 1.0 / (1.0 + math.exp(-z))

    return single if z == types.float32 else double


@njit(**_EXACT)
def _silu_and_slope(z, slope):
    """silu(z) in place of z, and silu'(z)."""
    for c in range(len(z)):
        gate = _sigmoid(z[c])
        z[c] *= gate
        slope[c] = gate + z[c] - z[c] * gate


@njit(**_EXACT)
def _silu_of_row(z, slopes, row):
    """silu(z) in place of z and, where there is room for it, silu'(z) in a row of ``slopes``."""
    if len(slopes):
        _silu_and_slope(z, slopes[row])
    else:
        for c in range(len(z)):
            z[c] *= _sigmoid(z[c])


@compiled(_EXACT)
def _first_layer(x, projected, receiver, sender, attr, shift, w, r, a1, slope):
    """r_ij, a1 and, where there is room for it, silu'(z1); ``w`` holds the columns of w_d and W_e."""
    for e in range(len(receiver)):
        i, j = receiver[e], sender[e]
        for t in range(x.shape[1]):
            row = e * x.shape[1] + t
            for c in range(3):
                r[row, c] = x[i, t, c] - x[j, t, c]
                if len(shift):
                    r[row, c] -= shift[e, c]
            d2 = r[row, 0] * r[row, 0] + r[row, 1] * r[row, 1] + r[row, 2] * r[row, 2]
            z, h_i, h_j, w_d = a1[row], projected[i, t], projected[len(x) + j, t], w[0]
            for c in range(len(z)):
                z[c] = h_i[c] + h_j[c] + d2 * w_d[c]
            for k in range(attr.shape[2]):
                e_k, w_k = attr[e, t if attr.shape[1] > 1 else 0, k], w[1 + k]
                for c in range(len(z)):
                    z[c] += e_k * w_k[c]
            _silu_of_row(z, slope, row)


@compiled(_EXACT)
def _message(z2, b2, slope):
    """m = silu(z2 + b2) in place of z2 and, where there is room for it, the derivative."""
    for row in range(len(z2)):
        z = z2[row]
        for c in range(len(z)):
            z[c] += b2[c]
        _silu_of_row(z, slope, row)


@compiled(_SUMS)
def _force(z3, b3, w4, b4, r, force):
    """r_ij s_ij for every output of phi_x; a3 in place of z3."""
    for row in range(len(z3)):
        z, w, s = z3[row], w4[0], b4[0]
        for c in range(len(z)):
            y = z[c] + b3[c]
            z[c] = y * _sigmoid(y)
            s += z[c] * w[c]
        for k in range(len(w4)):
            if k > 0:
                w, s = w4[k], b4[k]
                for c in range(len(z)):
                    s += z[c] * w[c]
            for c in range(3):
                force[row, 3 * k + c] = r[row, c] * s


@compiled(_SUMS)
def _force_backward(receiver, g_push, z3, b3, w4, b4, r, g_b3, g_w4, g_b4, g_r):
    """g_z3 in place of z3, the gradients of b_3, W_4 and b_4 added to theirs, and the force's share of g_r."""
    n_times = g_push.shape[1]
    a3, slope = np.empty_like(z3[0]), np.empty_like(z3[0])
    for row in range(len(z3)):
        z, g_force = z3[row], g_push[receiver[row // n_times], row % n_times]
        for c in range(len(z)):
            a3[c] = z[c] + b3[c]
            z[c] = 0
        _silu_and_slope(a3, slope)
        g_r[row] = 0
        for k in range(len(w4)):
            s, w, g_w = b4[k], w4[k], g_w4[k]
            g = g_force[3 * k : 3 * k + 3]
            g_s = g[0] * r[row, 0] + g[1] * r[row, 1] + g[2] * r[row, 2]
            for c in range(len(z)):
                s += a3[c] * w[c]
                g_w[c] += g_s * a3[c]
                z[c] += g_s * w[c] * slope[c]
            g_b4[k] += g_s
            for c in range(3):
                g_r[row, c] += s * g[c]
        for c in range(len(z)):
            g_b3[c] += z[c]


@compiled(_EXACT)
def _message_backward(receiver, g_agg, slope2, g_m, g_b2):
    """g_z2 in place of the gradient that comes from phi_x, and the gradient of b_2 added to its own."""
    n_times = g_agg.shape[1]
    for row in range(len(g_m)):
        slope, g, received = slope2[row], g_m[row], g_agg[receiver[row // n_times], row % n_times]
        for c in range(len(g)):
            g[c] = (g[c] + received[c]) * slope[c]
            g_b2[c] += g[c]


@compiled(_SUMS)
def _first_layer_backward(attr, slope1, w_d, r, g_a1, g_w, g_r):
    """g_z1 in place of the gradient of a1, the gradients of w_d and W_e added to ``g_w``, the square's share to g_r."""
    n_times = len(g_a1) // len(attr)
    for row in range(len(g_a1)):
        slope, g, g_w_d = slope1[row], g_a1[row], g_w[0]
        d2 = r[row, 0] * r[row, 0] + r[row, 1] * r[row, 1] + r[row, 2] * r[row, 2]
        g_d2 = g.dtype.type(0)
        for c in range(len(g)):
            g[c] *= slope[c]
            g_d2 += g[c] * w_d[c]
            g_w_d[c] += g[c] * d2
        for k in range(attr.shape[2]):
            e_k, g_w_k = attr[row // n_times, row % n_times if attr.shape[1] > 1 else 0, k], g_w[1 + k]
            for c in range(len(g)):
                g_w_k[c] += g[c] * e_k
        for c in range(3):
            g_r[row, c] += (g_d2 + g_d2) * r[row, c]


@compiled(_EXACT)
def _add_rows(total, index, rows):
    """Add ``rows`` (B, T, C) to the rows ``index`` of ``total`` (N, T C)."""
    for e in range(len(index)):
        target, row = total[index[e]], rows[e]
        for c in range(len(row)):
            target[c] += row[c]


def _array(tensor: Tensor) -> np.ndarray:
    """The same memory, where it is contiguous: a kernel is compiled again for another layout."""
    return tensor.detach().contiguous().numpy()


def check_nodes(receiver: np.ndarray, sender: np.ndarray, n_nodes: int) -> None:
    """Raise a UsageError for edges to nodes that are not there: the kernels would read and write beyond the end."""
    for side in (receiver, sender):
        if len(side) and not (0 <= side.min() and side.max() < n_nodes):
            raise UsageError(
                f"edge_index names nodes {side.min()} to {side.max()}, pos has {n_nodes}: count them from 0"
            )


class _Inputs:
    """What :func:`_first_layer` reads, as arrays."""

    def __init__(self, edges: Edges) -> None:
        self.nodes = (edges.n_nodes, edges.n_times)
        self.x = _array(edges.x.view(*self.nodes, 3))
        self.projected = _array(edges.projected.view(2 * edges.n_nodes, edges.n_times, -1))
        self.w = _array(torch.cat([edges.w_d, edges.w_e], dim=1).t())  # (1 + A, H1)
        self.receiver, self.sender = edges.receiver.numpy(), edges.sender.numpy()
        check_nodes(self.receiver, self.sender, edges.n_nodes)
        self.attr = edges.attr.detach().numpy()
        self.shift = None if edges.shift is None else _array(edges.shift)
        self.no_shift = np.empty((0, 3), self.x.dtype)

    def attr_of(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.attr[start:stop])  # (B, T or 1, A)

    def first_layer(self, start: int, stop: int, r: np.ndarray, a1: np.ndarray, slope: np.ndarray) -> None:
        """Fill the last three."""
        here, shift = slice(start, stop), self.no_shift if self.shift is None else self.shift[start:stop]
        edges = (self.receiver[here], self.sender[here], self.attr_of(start, stop), shift)
        _first_layer(self.x, self.projected, *edges, self.w, r, a1, slope)


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """See :class:`egno_md.nn.edges.backend.Backend`."""
    _add_rows(total.view(len(total), -1).numpy(), _array(index), rows.view(len(index), -1).numpy())


def forward_blocks(
    edges: Edges, low: torch.dtype | None, push: Tensor, agg: Tensor
) -> Callable[[int, int], Callable[[], None]]:
    """See :class:`egno_md.nn.edges.backend.Backend`."""
    w2, _, w3, *_ = edges.weights
    _, b2, _, b3, w4, b4 = map(_array, edges.weights)
    inputs, none = _Inputs(edges), np.empty((0, 0), b2.dtype)
    push_array, agg_array = push.numpy(), agg.numpy()

    def block(start: int, stop: int) -> Callable[[], None]:
        rows = (stop - start) * edges.n_times
        r, force = (np.empty((rows, n), b2.dtype) for n in (3, 3 * len(w4)))
        a1 = agg.new_empty(rows, len(edges.w_d))
        inputs.first_layer(start, stop, r, a1.numpy(), none)
        m = linear(a1, w2)  # (R, H)
        _message(m.numpy(), b2, none)
        _force(linear(m, w3).numpy(), b3, w4, b4, r, force)
        receiver = inputs.receiver[start:stop]

        def add() -> None:
            _add_rows(agg_array, receiver, m.numpy().reshape(len(receiver), -1))
            _add_rows(push_array, receiver, force.reshape(len(receiver), -1))

        return add

    return block


def backward_blocks(
    edges: Edges, low: torch.dtype | None, g_push: Tensor, g_agg: Tensor, need_weights: bool
) -> Callable[[int, int], Gradients]:
    """See :class:`egno_md.nn.edges.backend.Backend`."""
    w2, _, w3, *_ = edges.weights
    _, b2, _, b3, w4, b4 = map(_array, edges.weights)
    inputs = _Inputs(edges)
    w_d, push, agg = inputs.w[0], *(_array(g.view(*inputs.nodes, -1)) for g in (g_push, g_agg))
    n1, n, dtype = len(w_d), len(b2), b2.dtype

    def block(start: int, stop: int) -> Gradients:
        rows = (stop - start) * edges.n_times
        a1, g_r = (g_agg.new_empty(rows, width) for width in (n1, 3))
        r, slope1, slope2 = (np.empty((rows, width), dtype) for width in (3, n1, n))
        sums = [np.zeros(shape, dtype) for shape in (inputs.w.shape, n, len(b3), w4.shape, len(b4))]
        g_w1, g_b2, g_b3, g_w4, g_b4 = sums
        receiver = inputs.receiver[start:stop]
        inputs.first_layer(start, stop, r, a1.numpy(), slope1)
        m = linear(a1, w2)  # (R, H)
        _message(m.numpy(), b2, slope2)
        g_z3 = linear(m, w3)  # (R, H3)
        _force_backward(receiver, push, g_z3.numpy(), b3, w4, b4, r, g_b3, g_w4, g_b4, g_r.numpy())
        g_z2 = linear(g_z3, w3.t())  # (R, H)
        _message_backward(receiver, agg, slope2, g_z2.numpy(), g_b2)
        g_z1 = linear(g_z2, w2.t())  # (R, H1)
        _first_layer_backward(inputs.attr_of(start, stop), slope1, w_d, r, g_z1.numpy(), g_w1, g_r.numpy())
        if not need_weights:
            return Gradients(g_z1, g_r, [])
        g_w2, g_w3 = linear(g_z2.t(), a1.t()), linear(g_z3.t(), m.t())
        g_w1, g_b2, g_b3, g_w4, g_b4 = map(torch.from_numpy, sums)
        return Gradients(g_z1, g_r, [g_w1[:1].t(), g_w1[1:].t(), g_w2, g_b2, g_w3, g_b3, g_w4, g_b4])

    return block
