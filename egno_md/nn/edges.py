"""The edge block that EGNO and EGHNO share: nearly all of their time goes here.

With ``r_ij = x_i - x_j - shift_ij`` and the first Linear of phi_e split by its inputs, ``W_1 = [w_d, W_i, W_j, W_e]``::

    z1 = (W_i h_i + b_1) + W_j h_j + [w_d, W_e] [|r_ij|^2, e_ij]      a1   = silu(z1)
    z2 = W_2 a1 + b_2                                                m_ij = silu(z2)
    z3 = W_3 m_ij + b_3                                              a3   = silu(z3)
    s_ij = w_4 . a3 + b_4
    shift_i = clamp(mean_j r_ij s_ij, -100, 100)                     agg_i = sum_j m_ij

``W_i h_i + b_1`` and ``W_j h_j`` are computed once per node and gathered; what stays per edge and time point is the
arithmetic of ``W_2`` and ``W_3``. The edges, one list for all T, go through in blocks whose temporaries stay in the
cache, and the backward pass computes them again, so nothing of the size of the edges is ever stored.
:func:`egno_md.nn.reference.edge_block` is the same function written plainly.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from egno_md.errors import UsageError
from egno_md.nn import reference
from egno_md.nn.reference import MAX_SHIFT

#: Size in bytes of one temporary, (rows of a block) x (hidden width), where ``max_memory`` does not say: on the CPU
#: the size of a level-2 cache, on the GPU enough rows to fill it.
_AUTO = {"cpu": 2**20, "cuda": 2**26}
#: Temporaries of that size alive at once, counted high (the parts that are three or A wide, the allocator's slack).
_LIVE_FORWARD, _LIVE_BACKWARD = 8, 16


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
    max_memory: int | Literal["auto"] | None = None,
) -> tuple[Tensor, Tensor]:
    """Messages along the edges and both of their reductions, at every time point by itself.

    Equal to :func:`egno_md.nn.reference.edge_block` in values and first derivatives; there are no second derivatives.
    Any order of the edges is right; receivers in ascending order are the fastest. Under ``torch.autocast`` the two
    wide products are computed in its dtype, everything else stays in the dtype of ``pos``.

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
        phi_e and phi_x. With SiLU they take the fast path, any other activation takes the reference.
    edge_shift : Tensor (E, 3), optional
        The image of the sender is at ``pos[sender] + edge_shift``.
    norm : bool
        The squared distance enters divided by its own magnitude (an option of the original code; reference).
    reduce : {"sum", "mean"}
        Reduction of the messages at the receiver.
    max_memory : int or "auto", optional
        Bound in bytes of the temporaries, whatever the number of edges. What is as large as the nodes is not counted:
        ``h`` projected twice, the results, and in the backward pass the gradients. "auto" and None: what suits the
        cache.

    Returns
    -------
    shift : Tensor (T, N, 3)
        Displacement of every node by its neighbours; 0 without an edge.
    agg : Tensor (T, N, H)
        Messages received; 0 without an edge.

    Raises
    ------
    UsageError
        ``max_memory`` is neither a positive number nor "auto".
    """
    if not (max_memory in (None, "auto") or (isinstance(max_memory, int) and max_memory > 0)):
        raise UsageError(f"max_memory must be a positive number of bytes or 'auto', found {max_memory!r}")
    weights = None if norm or pos.dtype not in (torch.float32, torch.float64) else _weights(message, coord)
    if weights is None:
        return reference.edge_block(
            pos, h, edge_index, edge_attr, message, coord, edge_shift=edge_shift, norm=norm, reduce=reduce
        )

    device = pos.device.type
    kind = pos.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    options = _Options(reduce == "mean", None if max_memory == "auto" else max_memory, low)
    with torch.autocast(kind, enabled=False):
        h, edge_attr = h.to(pos.dtype), edge_attr.to(pos.dtype)
        return _EdgeBlock.apply(pos, h, edge_attr, edge_shift, *weights, edge_index, options)


class _Options(NamedTuple):
    mean: bool
    max_memory: int | None
    low: torch.dtype | None  # dtype of the wide products, where it is not that of the tensors


def _weights(message: nn.Sequential, coord: nn.Sequential) -> list[Tensor] | None:
    """``W_1, b_1, ..., w_4, b_4``, or None where the networks are not those of the equations above."""
    kinds = (nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear)
    layers = [*message, *coord]
    if len(message) != 4 or len(layers) != len(kinds) or any(type(a) is not k for a, k in zip(layers, kinds)):
        return None
    linears = layers[::2]
    if linears[-1].out_features != 1 or any(layer.bias is None for layer in linears):
        return None
    return [tensor for layer in linears for tensor in (layer.weight, layer.bias)]


@functools.cache
def _fused() -> ModuleType | None:
    """The Triton kernels, where Triton is installed (torch for CUDA brings it)."""
    return importlib.import_module("egno_md.nn.fused") if importlib.util.find_spec("triton") else None


def _kernels(pos: Tensor, weights: Sequence[Tensor]) -> ModuleType | None:
    """The module that computes a block: the Triton kernels, or None for torch's own operators."""
    kernels = _fused() if pos.is_cuda and pos.dtype == torch.float32 else None
    return kernels if kernels is not None and kernels.fits(weights) else None


@functools.cache
def _has_onednn() -> bool:
    """Whether torch's fused Linear and SiLU is there and right.

    ``torch.addmm`` is MKL, which leaves more than half of the arithmetic of a processor that Intel did not make unused;
    oneDNN, which torch also ships, does not. Its float32 operator has no public name, hence the trial.
    """
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    try:
        y = torch.ops.mkldnn._linear_pointwise(x, x, None, "swish", [], "")
    except (AttributeError, RuntimeError):  # another torch, or a build without oneDNN
        return False
    return torch.allclose(y, F.silu(x @ x.t()))


def _onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype != torch.float64 and torch.backends.mkldnn.enabled and _has_onednn()


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False, low: torch.dtype | None = None
) -> Tensor:
    """``x weight^T + bias`` and its SiLU, computed in ``low`` and returned in the dtype of ``x``."""
    if low is not None:
        return _linear(x.to(low), weight.to(low), None if bias is None else bias.to(low), silu=silu).to(x.dtype)
    if _onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "swish" if silu else "none", [], "")
    y = F.linear(x, weight, bias)
    return F.silu(y, inplace=True) if silu else y


def _add_linear(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``y + x weight^T``; y may be overwritten."""
    if _onednn(x):
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, None, "add")
    return y.addmm_(x, weight.t())


def _silu_backward(grad: Tensor, z: Tensor) -> Tensor:
    """``grad silu'(z)``, written over ``grad``."""
    return torch.ops.aten.silu_backward.grad_input(grad, z, grad_input=grad)


def _in_blocks(work: Callable[[int, int], None], n_edges: int, size: int) -> None:
    """Call ``work(start, stop)`` over all edges; a block that the GPU has no room for is halved and done again.

    ``work`` must not touch its results before the last of its temporaries is there.
    """
    start = 0
    while start < n_edges:
        stop = min(start + size, n_edges)
        try:
            work(start, stop)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, min(size, n_edges) // 2)
            # One message without figures: Python's own filter then says it once.
            warnings.warn("out of memory on the GPU: going on with smaller blocks of edges", stacklevel=2)
            continue
        start = stop


class _Block(NamedTuple):
    """What forward and backward both need of the edges of a block; rows are (time, edge), R = T x (edges of the block)."""

    receiver: Tensor  # (R,) flat index of (time, node)
    sender: Tensor  # (R,) the same + T N
    r: Tensor  # (R, 3)
    d2: Tensor  # (R, 1)
    attr: Tensor  # (T or 1, B, A)
    z1: Tensor  # (R, H1)


class _Edges:
    """The inputs of the edge block in the form that the blocks gather from."""

    def __init__(
        self, pos: Tensor, h: Tensor, edge_attr: Tensor, edge_shift: Tensor | None, w1: Tensor, b1: Tensor, edges: Tensor
    ) -> None:
        self.n_times, n_nodes = pos.shape[:2]
        self.n_rows = self.n_times * n_nodes
        self.edges = edges.t().contiguous()  # (E, 2)
        times = torch.arange(self.n_times, device=pos.device)[:, None, None] * n_nodes  # (T, 1, 1)
        self.offset = times + torch.tensor([0, self.n_rows], device=pos.device)  # (T, 1, 2)
        self.edge_attr = edge_attr if edge_attr.dim() == 3 else edge_attr[None]  # (T or 1, E, A)
        self.edge_shift = edge_shift

        x, self.h = pos.reshape(-1, 3), h.reshape(self.n_rows, -1)  # (T N, 3), (T N, H)
        self.x = torch.cat([x, -x])  # (2 T N, 3), so that the sum over an edge's two rows is x_i - x_j
        width = self.h.shape[1]
        self.w_d, self.w_i, self.w_j, self.w_e = w1.split([1, width, width, edge_attr.shape[-1]], dim=1)
        self.projected = torch.cat([F.linear(self.h, self.w_i, b1), F.linear(self.h, self.w_j)])  # (2 T N, H1)
        self.w_de = torch.cat([self.w_d, self.w_e], dim=1)  # (H1, 1 + A)

    def block(self, start: int, stop: int) -> _Block:
        index = (self.edges[start:stop] + self.offset).view(-1, 2)  # (R, 2)
        r = F.embedding_bag(index, self.x, mode="sum")  # (R, 3)
        if self.edge_shift is not None:
            r.view(self.n_times, -1, 3).sub_(self.edge_shift[start:stop])
        d2 = r.square().sum(-1, keepdim=True)  # (R, 1)
        attr = self.edge_attr[:, start:stop]  # (T or 1, B, A)
        scalars = torch.cat([d2.view(self.n_times, -1, 1), attr.expand(self.n_times, -1, -1)], dim=-1)  # (T, B, 1 + A)
        z1 = F.embedding_bag(index, self.projected, mode="sum")  # (R, H1)
        z1 = _add_linear(z1, scalars.flatten(0, 1), self.w_de)
        return _Block(index[:, 0].contiguous(), index[:, 1].contiguous(), r, d2, attr, z1)

    def block_size(self, options: _Options, live: int, *widths: int) -> int:
        """Edges per block such that ``live`` temporaries of the widest kind keep the bound."""
        device = self.projected.device.type
        budget = options.max_memory // live if options.max_memory else _AUTO.get(device, _AUTO["cuda"])
        row = self.projected.element_size() * max(*widths, self.w_de.shape[1] + 16)  # + 16: positions and indices
        return max(1, budget // (row * self.n_times))


class _EdgeBlock(torch.autograd.Function):
    """Forward and analytic backward, both over blocks of edges; only inputs and results are kept in between."""

    @staticmethod
    def forward(
        ctx: Any,
        pos: Tensor, h: Tensor, edge_attr: Tensor, edge_shift: Tensor | None,
        w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor, w4: Tensor, b4: Tensor,
        edge_index: Tensor, options: _Options,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        n_times, n_nodes = pos.shape[:2]
        edges = _Edges(pos, h, edge_attr, edge_shift, w1, b1, edge_index)
        push = pos.new_zeros(edges.n_rows, 3)
        agg = h.new_zeros(edges.n_rows, w2.shape[0])

        def work(start: int, stop: int) -> None:
            e = edges.block(start, stop)
            m = _linear(F.silu(e.z1, inplace=True), w2, b2, silu=True, low=options.low)  # (R, H)
            a3 = _linear(m, w3, b3, silu=True, low=options.low)  # (R, H3)
            s = torch.addmv(b4, a3, w4[0])  # (R,)
            force = e.r.mul_(s[:, None])  # (R, 3)
            agg.index_add_(0, e.receiver, m)
            push.index_add_(0, e.receiver, force)

        size = edges.block_size(options, _LIVE_FORWARD, w1.shape[0], w2.shape[0], w3.shape[0])
        _in_blocks(work, edge_index.shape[1], size)
        count = torch.bincount(edge_index[0], minlength=n_nodes).clamp(min=1).to(pos.dtype)[:, None]  # (N, 1)
        shift = (push.view(n_times, n_nodes, 3) / count).clamp_(-MAX_SHIFT, MAX_SHIFT)
        agg = agg.view(n_times, n_nodes, -1)
        if options.mean:
            agg /= count
        ctx.options = options
        ctx.save_for_backward(
            pos, h, edge_attr, edge_shift, w1, b1, w2, b2, w3, b3, w4, b4, edge_index, shift, count
        )
        return shift, agg

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_shift: Tensor, g_agg: Tensor) -> tuple[Tensor | None, ...]:
        # g_a is the gradient by a; the chain rule of the equations above, from the last to the first.
        pos, h, edge_attr, edge_shift, w1, b1, w2, b2, w3, b3, w4, b4, edge_index, shift, count = ctx.saved_tensors
        options: _Options = ctx.options
        low = options.low
        need_attr, need_shift, need_weights = *ctx.needs_input_grad[2:4], any(ctx.needs_input_grad[4:12])
        edges = _Edges(pos, h, edge_attr, edge_shift, w1, b1, edge_index)
        n = edges.n_rows
        w2_t, w3_t = w2.t().contiguous(), w3.t().contiguous()
        # Where the bound of the displacement holds, the gradient is 0.
        g_push = (g_shift.masked_fill(shift.abs() >= MAX_SHIFT, 0.0) / count).reshape(n, 3)  # (T N, 3)
        g_agg = (g_agg / count if options.mean else g_agg).reshape(n, -1)  # (T N, H)

        g_x = torch.zeros_like(edges.x)  # (2 T N, 3)
        g_projected = torch.zeros_like(edges.projected)  # (2 T N, H1)
        g_attr = torch.zeros_like(edges.edge_attr) if need_attr else None
        g_edge_shift = torch.zeros_like(edge_shift) if need_shift else None
        g_w_d, g_w_e = torch.zeros_like(edges.w_d), torch.zeros_like(edges.w_e)
        g_w2, g_b2, g_w3, g_b3, g_w4, g_b4 = (torch.zeros_like(w) for w in (w2, b2, w3, b3, w4, b4))

        def work(start: int, stop: int) -> None:
            e = edges.block(start, stop)
            a1 = F.silu(e.z1)  # (R, H1)
            z2 = _linear(a1, w2, b2, low=low)  # (R, H)
            m = F.silu(z2)
            z3 = _linear(m, w3, b3, low=low)  # (R, H3)
            a3 = F.silu(z3)
            s = torch.addmm(b4, a3, w4.t())  # (R, 1)

            g_force = g_push.index_select(0, e.receiver)  # (R, 3)
            g_s = (g_force * e.r).sum(-1, keepdim=True)  # (R, 1)
            sums = [(g_w4, g_s.t() @ a3), (g_b4, g_s.sum(0))] if need_weights else []
            g_z3 = _silu_backward(torch.mul(g_s, w4, out=a3), z3)  # (R, H3)
            if need_weights:
                sums += [(g_w3, _linear(g_z3.t(), m.t(), low=low)), (g_b3, g_z3.sum(0))]
            g_m = _linear(g_z3, w3_t, low=low).add_(g_agg.index_select(0, e.receiver))  # (R, H)
            g_z2 = _silu_backward(g_m, z2)
            if need_weights:
                sums += [(g_w2, _linear(g_z2.t(), a1.t(), low=low)), (g_b2, g_z2.sum(0))]
            g_z1 = _silu_backward(_linear(g_z2, w2_t, low=low), e.z1)  # (R, H1)
            g_static = g_z1.view(edges.n_times, stop - start, -1)  # (T, B, H1)
            if e.attr.shape[0] < edges.n_times:
                g_static = g_static.sum(0, keepdim=True)  # (1, B, H1)
            if need_weights:
                sums += [(g_w_d, g_z1.t() @ e.d2), (g_w_e, g_static.flatten(0, 1).t() @ e.attr.flatten(0, 1))]
            # r enters through the force, s_ij r_ij, and through its square.
            g_r = g_force.mul_(s).addcmul_(e.r, g_z1 @ edges.w_d, value=2.0)  # (R, 3)

            if g_attr is not None:
                g_attr[:, start:stop] = g_static @ edges.w_e
            if g_edge_shift is not None:
                g_edge_shift[start:stop] = -g_r.view(edges.n_times, -1, 3).sum(0)
            for total, part in sums:
                total += part
            for index in (e.receiver, e.sender):
                g_projected.index_add_(0, index, g_z1)
                g_x.index_add_(0, index, g_r)

        size = edges.block_size(options, _LIVE_BACKWARD, w1.shape[0], w2.shape[0], w3.shape[0])
        _in_blocks(work, edge_index.shape[1], size)
        g_i, g_j = g_projected.split(n)  # (T N, H1) each
        g_h = (g_i @ edges.w_i).addmm_(g_j, edges.w_j).view_as(h)
        g_w1 = torch.cat([g_w_d, g_i.t() @ edges.h, g_j.t() @ edges.h, g_w_e], dim=1) if need_weights else None
        g_pos = (g_x[:n] - g_x[n:]).view_as(pos)
        g_attr = None if g_attr is None else g_attr.view_as(edge_attr)
        weights = (g_w1, g_i.sum(0), g_w2, g_b2, g_w3, g_b3, g_w4, g_b4)
        return g_pos, g_h, g_attr, g_edge_shift, *(weights if need_weights else (None,) * 8), None, None
