"""The blocks of :mod:`egno_md.nn.edges` as Triton kernels: one for the forward pass, one for the backward pass.

A program takes BLOCK edges at one time point from the gathers to the end; the symbols are those of
:mod:`egno_md.nn.edges.block`. The forward kernel writes no temporary. The backward kernel writes the factors of the
weights' gradients, whose products and sums torch does. Hidden channels run in chunks of CHUNK, so that only tiles of
the weights must fit beside the messages. Sums over receivers use atomics: two runs on a GPU may differ in the last
digits. Products are in tf32: in full float32 torch's operators are as fast or faster (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from packaging.version import Version
from torch import Tensor

from egno_md.nn.edges.backend import Edges, Gradients, weight_gradients
from egno_md.nn.edges.torch import add_rows

__all__ = ["add_rows", "backward_blocks", "fits", "forward_blocks"]

if Version(triton.__version__) < Version("3.3"):
    raise ImportError(f"Triton {triton.__version__} does not compile these kernels, 3.3 does")


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="tf32", out_dtype=a.dtype)


@triton.jit
def _geometry(x, pairs, shift, start, stop, n_nodes, BLOCK: tl.constexpr, SHIFT: tl.constexpr):
    """Edges of this program, which of them exist, their rows (node, time) in the tables, and r_ij."""
    edge = start + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)  # (BLOCK,)
    here = edge < stop
    time, n_times = tl.program_id(1), tl.num_programs(1)
    i = tl.load(pairs + 2 * edge, mask=here, other=0) * n_times + time
    j = tl.load(pairs + 2 * edge + 1, mask=here, other=n_nodes) * n_times + time  # of projected
    k = j - n_nodes * n_times  # of x
    rx = tl.load(x + 3 * i, mask=here, other=0.0) - tl.load(x + 3 * k, mask=here, other=0.0)
    ry = tl.load(x + 3 * i + 1, mask=here, other=0.0) - tl.load(x + 3 * k + 1, mask=here, other=0.0)
    rz = tl.load(x + 3 * i + 2, mask=here, other=0.0) - tl.load(x + 3 * k + 2, mask=here, other=0.0)
    if SHIFT:
        rx -= tl.load(shift + 3 * edge, mask=here, other=0.0)
        ry -= tl.load(shift + 3 * edge + 1, mask=here, other=0.0)
        rz -= tl.load(shift + 3 * edge + 2, mask=here, other=0.0)
    return edge, here, i, j, rx, ry, rz


@triton.jit
def _scalars(attr, edge, here, attr_stride, time_stride, n_attr, ATTR: tl.constexpr):
    """e_ij of this program's edges, padded to a width that the matrix units take."""
    a = tl.arange(0, ATTR)
    offset = edge[:, None] * attr_stride + tl.program_id(1).to(tl.int64) * time_stride + a[None, :]
    return tl.load(attr + offset, mask=here[:, None] & (a[None, :] < n_attr), other=0.0)  # (BLOCK, ATTR)


@triton.jit
def _first_layer(
    projected, w_d, w_e, i, j, here, d2, e, k, n_attr,
    WIDTH: tl.constexpr, ATTR: tl.constexpr,
):  # fmt: skip
    """The channels k of z1."""
    mask = here[:, None] & (k[None, :] < WIDTH)
    z1 = tl.load(projected + i[:, None] * WIDTH + k[None, :], mask=mask, other=0.0)
    z1 += tl.load(projected + j[:, None] * WIDTH + k[None, :], mask=mask, other=0.0)  # (BLOCK, CHUNK)
    z1 += d2[:, None] * tl.load(w_d + k, mask=k < WIDTH, other=0.0)[None, :]
    a = tl.arange(0, ATTR)
    w = tl.load(w_e + k[None, :] * n_attr + a[:, None], mask=(k[None, :] < WIDTH) & (a[:, None] < n_attr), other=0.0)
    return z1 + _dot(e, w)


@triton.jit(do_not_specialize=["start", "stop", "n_nodes", "attr_stride", "time_stride"])
def _forward(
    x, projected, pairs, attr, shift, w_d, w_e, w2, b2, w3, b3, w4, b4, push, agg,
    start, stop, n_nodes, attr_stride, time_stride, n_attr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ATTR: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    SHIFT: tl.constexpr,
):  # fmt: skip
    edge, here, i, j, rx, ry, rz = _geometry(x, pairs, shift, start, stop, n_nodes, BLOCK, SHIFT)
    d2 = rx * rx + ry * ry + rz * rz
    e = _scalars(attr, edge, here, attr_stride, time_stride, n_attr, ATTR)
    n = tl.arange(0, PADDED)
    z2 = tl.zeros((BLOCK, PADDED), dtype=d2.dtype) + tl.load(b2 + n, mask=n < WIDTH, other=0.0)[None, :]
    for k0 in range(0, PADDED, CHUNK):
        k = k0 + tl.arange(0, CHUNK)
        z1 = _first_layer(projected, w_d, w_e, i, j, here, d2, e, k, n_attr, WIDTH, ATTR)
        inside = (k[:, None] < WIDTH) & (n[None, :] < WIDTH)
        w = tl.load(w2 + n[None, :] * WIDTH + k[:, None], mask=inside, other=0.0)  # (CHUNK, PADDED)
        z2 += _dot(z1 * tl.sigmoid(z1), w)
    m = z2 * tl.sigmoid(z2)  # (BLOCK, PADDED), 0 in the padding
    tl.atomic_add(agg + i[:, None] * WIDTH + n[None, :], m, mask=here[:, None] & (n[None, :] < WIDTH), sem="relaxed")

    s = tl.zeros((BLOCK,), dtype=d2.dtype) + tl.load(b4)
    for k0 in range(0, PADDED, CHUNK):
        k = k0 + tl.arange(0, CHUNK)
        inside = (n[:, None] < WIDTH) & (k[None, :] < WIDTH)
        w = tl.load(w3 + k[None, :] * WIDTH + n[:, None], mask=inside, other=0.0)  # (PADDED, CHUNK)
        z3 = _dot(m, w) + tl.load(b3 + k, mask=k < WIDTH, other=0.0)[None, :]
        s += tl.sum(z3 * tl.sigmoid(z3) * tl.load(w4 + k, mask=k < WIDTH, other=0.0)[None, :], axis=1)
    tl.atomic_add(push + 3 * i, rx * s, mask=here, sem="relaxed")
    tl.atomic_add(push + 3 * i + 1, ry * s, mask=here, sem="relaxed")
    tl.atomic_add(push + 3 * i + 2, rz * s, mask=here, sem="relaxed")


@triton.jit(do_not_specialize=["start", "stop", "n_nodes", "attr_stride", "time_stride"])
def _backward(
    x, projected, pairs, attr, shift, w_d, w_e, w2, b2, w3, b3, w4, b4, g_push, g_agg,
    d2_out, a1_out, m_out, g_z1_out, g_z2_out, g_z3_out, g_w4, g_b4, g_r_out,
    start, stop, n_nodes, attr_stride, time_stride, n_attr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ATTR: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    SHIFT: tl.constexpr,
):  # fmt: skip
    edge, here, i, j, rx, ry, rz = _geometry(x, pairs, shift, start, stop, n_nodes, BLOCK, SHIFT)
    d2 = rx * rx + ry * ry + rz * rz
    e = _scalars(attr, edge, here, attr_stride, time_stride, n_attr, ATTR)
    row = (edge - start) * tl.num_programs(1) + tl.program_id(1)  # of the outputs
    n = tl.arange(0, PADDED)
    wide = here[:, None] & (n[None, :] < WIDTH)
    out = row[:, None] * WIDTH + n[None, :]

    z2 = tl.zeros((BLOCK, PADDED), dtype=d2.dtype) + tl.load(b2 + n, mask=n < WIDTH, other=0.0)[None, :]
    for k0 in range(0, PADDED, CHUNK):
        k = k0 + tl.arange(0, CHUNK)
        z1 = _first_layer(projected, w_d, w_e, i, j, here, d2, e, k, n_attr, WIDTH, ATTR)
        a1 = z1 * tl.sigmoid(z1)
        tl.store(a1_out + row[:, None] * WIDTH + k[None, :], a1, mask=here[:, None] & (k[None, :] < WIDTH))
        inside = (k[:, None] < WIDTH) & (n[None, :] < WIDTH)
        w = tl.load(w2 + n[None, :] * WIDTH + k[:, None], mask=inside, other=0.0)  # (CHUNK, PADDED)
        z2 += _dot(a1, w)
    gate = tl.sigmoid(z2)
    m = z2 * gate
    tl.store(m_out + out, m, mask=wide)

    gx = tl.load(g_push + 3 * i, mask=here, other=0.0)
    gy = tl.load(g_push + 3 * i + 1, mask=here, other=0.0)
    gz = tl.load(g_push + 3 * i + 2, mask=here, other=0.0)
    g_s = gx * rx + gy * ry + gz * rz  # (BLOCK,), 0 where there is no edge
    tl.atomic_add(g_b4, tl.sum(g_s, axis=0), sem="relaxed")
    s = tl.zeros((BLOCK,), dtype=d2.dtype) + tl.load(b4)
    g_m = tl.load(g_agg + i[:, None] * WIDTH + n[None, :], mask=wide, other=0.0)
    for k0 in range(0, PADDED, CHUNK):
        k = k0 + tl.arange(0, CHUNK)
        inside = (n[:, None] < WIDTH) & (k[None, :] < WIDTH)
        w = tl.load(w3 + k[None, :] * WIDTH + n[:, None], mask=inside, other=0.0)  # (PADDED, CHUNK)
        z3 = _dot(m, w) + tl.load(b3 + k, mask=k < WIDTH, other=0.0)[None, :]
        gate3 = tl.sigmoid(z3)
        last = tl.load(w4 + k, mask=k < WIDTH, other=0.0)
        s += tl.sum(z3 * gate3 * last[None, :], axis=1)
        tl.atomic_add(g_w4 + k, tl.sum(z3 * gate3 * g_s[:, None], axis=0), mask=k < WIDTH, sem="relaxed")
        g_z3 = g_s[:, None] * last[None, :] * gate3 * (1.0 + z3 * (1.0 - gate3))
        tl.store(g_z3_out + row[:, None] * WIDTH + k[None, :], g_z3, mask=here[:, None] & (k[None, :] < WIDTH))
        g_m += _dot(g_z3, tl.trans(w))
    g_z2 = g_m * gate * (1.0 + z2 * (1.0 - gate))
    tl.store(g_z2_out + out, g_z2, mask=wide)

    g_d2 = tl.zeros((BLOCK,), dtype=d2.dtype)
    for k0 in range(0, PADDED, CHUNK):
        k = k0 + tl.arange(0, CHUNK)
        z1 = _first_layer(projected, w_d, w_e, i, j, here, d2, e, k, n_attr, WIDTH, ATTR)
        gate1 = tl.sigmoid(z1)
        inside = (n[:, None] < WIDTH) & (k[None, :] < WIDTH)
        w = tl.load(w2 + n[:, None] * WIDTH + k[None, :], mask=inside, other=0.0)  # (PADDED, CHUNK)
        g_z1 = _dot(g_z2, w) * gate1 * (1.0 + z1 * (1.0 - gate1))
        tl.store(g_z1_out + row[:, None] * WIDTH + k[None, :], g_z1, mask=here[:, None] & (k[None, :] < WIDTH))
        g_d2 += tl.sum(g_z1 * tl.load(w_d + k, mask=k < WIDTH, other=0.0)[None, :], axis=1)
    tl.store(d2_out + row, d2, mask=here)
    tl.store(g_r_out + 3 * row, gx * s + 2.0 * g_d2 * rx, mask=here)
    tl.store(g_r_out + 3 * row + 1, gy * s + 2.0 * g_d2 * ry, mask=here)
    tl.store(g_r_out + 3 * row + 2, gz * s + 2.0 * g_d2 * rz, mask=here)


def fits(weights: Sequence[Tensor]) -> bool:
    """Whether the kernels can take these networks: one width throughout, not a huge one, and one output."""
    _, _, w2, _, w3, _, w4, _ = weights
    return w2.shape == w3.shape and w2.shape[0] == w2.shape[1] <= 256 and len(w4) == 1


def _launch(kernel: Any, edges: Edges, start: int, stop: int, block: int, *out: Tensor) -> None:
    n_attr, width = edges.attr.shape[-1], edges.projected.shape[1]
    attr_stride, time_stride, _ = edges.attr.expand(-1, edges.n_times, -1).stride()
    padded = max(32, triton.next_power_of_2(width))
    kernel[(triton.cdiv(stop - start, block), edges.n_times)](
        edges.x, edges.projected, edges.pairs, edges.attr,
        edges.x if edges.shift is None else edges.shift.contiguous(),
        edges.w_d.contiguous(), edges.w_e.contiguous(), *(w.contiguous() for w in edges.weights), *out,
        start, stop, edges.n_nodes, attr_stride, time_stride, n_attr,
        WIDTH=width, PADDED=padded, ATTR=max(16, triton.next_power_of_2(n_attr)), BLOCK=block, CHUNK=32,
        SHIFT=edges.shift is not None,
        num_warps=8 if padded > 64 else 4,
    )  # fmt: skip


def forward_blocks(
    edges: Edges, low: torch.dtype | None, push: Tensor, agg: Tensor
) -> Callable[[int, int], Callable[[], None]]:
    """See :class:`egno_md.nn.edges.backend.Backend`."""
    return lambda start, stop: lambda: _launch(_forward, edges, start, stop, 64, push, agg)


def backward_blocks(
    edges: Edges, low: torch.dtype | None, g_push: Tensor, g_agg: Tensor, need_weights: bool
) -> Callable[[int, int], Gradients]:
    """See :class:`egno_md.nn.edges.backend.Backend`."""
    g_push, g_agg, width = g_push.contiguous(), g_agg.contiguous(), edges.projected.shape[1]

    def block(start: int, stop: int) -> Gradients:
        rows = (stop - start) * edges.n_times
        d2, a1, m, g_z1, g_z2, g_z3, g_r = (g_push.new_empty(rows, n) for n in (1, *(width,) * 5, 3))
        g_w4, g_b4 = g_push.new_zeros(1, width), g_push.new_zeros(1)
        out = (d2, a1, m, g_z1, g_z2, g_z3, g_w4, g_b4, g_r)
        _launch(_backward, edges, start, stop, 32, g_push, g_agg, *out)
        if not need_weights:
            return Gradients(g_z1, g_r, [])
        return Gradients(g_z1, g_r, [*weight_gradients(edges, start, stop, d2, a1, m, g_z1, g_z2, g_z3), g_w4, g_b4])

    return block
