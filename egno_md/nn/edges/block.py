"""The edge block that EGNO and EGHNO share: nearly all of their time goes here.

With ``r_ij = x_i - x_j - shift_ij`` and the first Linear of phi_e split by its inputs, ``W_1 = [w_d, W_i, W_j, W_e]``::

    z1 = (W_i h_i + b_1) + W_j h_j + [w_d, W_e] [|r_ij|^2, e_ij]      a1   = silu(z1)
    z2 = W_2 a1 + b_2                                                m_ij = silu(z2)
    z3 = W_3 m_ij + b_3                                              a3   = silu(z3)
    s_ij = W_4 a3 + b_4                                              agg_i = sum_j m_ij
    shift_i = clamp(mean_j r_ij s_ij, -100, 100)                     one vector for each of the K outputs of phi_x

``W_i h_i + b_1`` and ``W_j h_j`` are computed once per node and gathered; what stays per edge and time point is the
arithmetic of ``W_2`` and ``W_3``. The edges, one list for all T, go through in blocks whose temporaries stay in the
cache, and the backward pass computes them again, so nothing of the size of the edges is ever stored.
:func:`egno_md.nn.edges.reference.edge_block` is the same function written plainly.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from egno_md.errors import UsageError
from egno_md.nn.edges import reference
from egno_md.nn.edges.reference import MAX_SHIFT

#: Size in bytes of one temporary, (rows of a block) x (hidden width), where ``max_memory`` does not say: on the CPU
#: the size of a level-2 cache, on the GPU enough rows to fill it.
_CACHE, _GPU = 2**19, 2**26
#: Size of a1 in a forecast, (edges) x T x (hidden width), from which on half a second for loading Numba is soon repaid.
_COMPILED_FROM = 2**22
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

    Equal to :func:`.reference.edge_block` in values and first derivatives; there are no second derivatives.
    Any order of the edges is right; receivers in ascending order are the fastest. Under ``torch.autocast`` the products
    with W_2, W_3 and W_4 are computed in its dtype (on the CPU in the forward pass alone), everything else and both
    results in the dtype of ``pos``.

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
        phi_e and phi_x. With SiLU they take the fast path, any other activation takes the reference. phi_x has K
        outputs; the paper's has one.
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
    shift : Tensor (T, N, 3), with K > 1 (T, N, K, 3)
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

    kind = pos.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    size = edge_index.shape[1] * pos.shape[0] * weights[0].shape[0]
    worth_it = low is None and (torch.is_grad_enabled() or size >= _COMPILED_FROM)
    options = _Options(reduce == "mean", None if max_memory == "auto" else max_memory, low, worth_it)
    h, edge_attr, edge_shift = (None if x is None else x.to(pos.dtype) for x in (h, edge_attr, edge_shift))
    shift, agg = _EdgeBlock.apply(pos, h, edge_attr, edge_shift, edge_index, options, *weights)
    return (shift if shift.shape[-1] == 3 else shift.unflatten(-1, (-1, 3))), agg  # (T, N, 3) or (T, N, K, 3)


class _Options(NamedTuple):
    mean: bool
    max_memory: int | None
    low: torch.dtype | None  # autocast's dtype, where it is on
    compiled: bool  # whether there is enough to do that Numba is worth its loading


def _weights(message: nn.Sequential, coord: nn.Sequential) -> list[Tensor] | None:
    """``W_1, b_1, ..., W_4, b_4``, or None where the networks are not those of the equations above."""
    kinds = (nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear)
    layers = [*message, *coord]
    if (
        len(message) != 4
        or len(layers) != len(kinds)
        or any(type(a) is not k for a, k in zip(layers, kinds, strict=True))
    ):
        return None
    linears = layers[::2]
    if any(layer.bias is None for layer in linears):
        return None
    return [tensor for layer in linears for tensor in (layer.weight, layer.bias)]


class Backend(Protocol):
    """Who computes the blocks: this module with torch's operators, :mod:`.numba` or :mod:`.triton`."""

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


@functools.cache
def _module(name: str) -> ModuleType | None:
    """A module of kernels, where what compiles them, the package of its name, is installed and works."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(f"egno_md.nn.edges.{name}")
    except ImportError as error:  # Numba refuses a numpy that is newer than itself
        warnings.warn(f"{name} cannot be used ({error}): going on slower; 'pip install -U {name}'", stacklevel=1)
        return None


def _backend(pos: Tensor, weights: Sequence[Tensor], options: _Options) -> Backend:
    kernels: Any = None
    if pos.dtype == torch.float32 and pos.is_cuda:
        kernels = _module("triton")
        kernels = kernels if kernels is not None and kernels.fits(weights) else None
    elif pos.dtype == torch.float32 and pos.device.type == "cpu" and options.compiled:
        kernels = _module("numba")
    return kernels or sys.modules[__name__]


@functools.cache
def _has_wide_vectors() -> bool:
    """Whether oneDNN is the faster library of products.

    ``torch.addmm`` is MKL, which leaves half of the arithmetic unused on a processor with AVX-512 that Intel did not
    make; oneDNN, which torch also ships, does not. Without AVX-512 MKL is the faster one, and so is a SiLU by itself.
    """
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@functools.cache
def _has_onednn() -> bool:
    """Whether oneDNN's fused Linear and SiLU is there and right. It has no public name, hence the trial."""
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    try:
        y = torch.ops.mkldnn._linear_pointwise(x, x, None, "swish", [], "")
    except (AttributeError, RuntimeError):  # another torch, or a build without oneDNN
        return False
    return torch.allclose(y, F.silu(x @ x.t()))


@functools.cache
def _keep_freed_memory() -> None:
    """Have glibc keep the memory that a block gives back for the next one.

    By default it returns every large piece to the system, which clears its pages again at the next use: that can cost
    as much time as all of the arithmetic. Having seen a piece of almost 32 MiB freed, it keeps pieces up to that size
    and trims what is unused beyond twice that. The piece itself is never touched.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


@functools.cache
def has_fast_bf16() -> bool:
    """Whether that operator also takes bf16 here: without AVX-512 or its like oneDNN refuses, torch does not."""
    try:
        return _has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except AttributeError:
        return False


def _onednn(x: Tensor) -> bool:
    if x.device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return False
    if x.dtype == torch.float32:
        return _has_wide_vectors() and _has_onednn()
    return x.dtype == torch.bfloat16 and has_fast_bf16()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False) -> Tensor:
    """``x weight^T + bias`` and its SiLU."""
    if _onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "swish" if silu else "none", [], "")
    y = F.linear(x, weight, bias)
    return F.silu(y, inplace=True) if silu else y


def _add_linear(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``y + x weight^T``; y may be overwritten."""
    if x.shape[1] > 8 and _onednn(x):  # below that MKL is the faster one, as measured
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, None, "add")
    return y.addmm_(x, weight.t())


def _silu_backward(grad: Tensor, z: Tensor) -> Tensor:
    """``grad silu'(z)``, written over ``grad``."""
    return torch.ops.aten.silu_backward.grad_input(grad, z, grad_input=grad)


def _in_blocks(work: Callable[[int, int], Callable[[], None]], n_edges: int, size: int, device: torch.device) -> None:
    """Call ``work(start, stop)`` over all edges, then what it returns, which adds the block to the results.

    On the CPU the threads that torch may use take whole blocks each: thousands of short parallel loops would wait for
    their slowest thread thousands of times. On the GPU a block that there is no room for is halved and done again.
    """
    threads = min(torch.get_num_threads(), -(-n_edges // size)) if device.type == "cpu" else 1
    if threads > 1:
        _in_threads(work, n_edges, size, threads)
        return
    start = 0
    while start < n_edges:
        stop = min(start + size, n_edges)
        try:
            work(start, stop)()
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, min(size, n_edges) // 2)
            # One message without figures: Python's own filter then says it once.
            warnings.warn("out of memory on the GPU: going on with smaller blocks of edges", stacklevel=1)
            continue
        start = stop


def _in_threads(work: Callable[[int, int], Callable[[], None]], n_edges: int, size: int, threads: int) -> None:
    """The results are added here and in order: they do not depend on the number of threads, not even in rounding."""
    before, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def block(start: int) -> Callable[[], None]:
        with torch.inference_mode(inference), torch.no_grad():  # a new thread knows neither
            return work(start, min(start + size, n_edges))

    pending: deque[Future[Callable[[], None]]] = deque()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for start in range(0, n_edges, size):
                pending.append(pool.submit(block, start))
                if len(pending) > threads:
                    pending.popleft().result()()
            while pending:
                pending.popleft().result()()
    finally:
        torch.set_num_threads(before)


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
        return r.view(-1, 3), _add_linear(z1, scalars, self.w_de)

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


def forward_blocks(
    edges: Edges, low: torch.dtype | None, push: Tensor, agg: Tensor
) -> Callable[[int, int], Callable[[], None]]:
    """See :class:`Backend`."""
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
    """See :class:`Backend`."""
    total.index_add_(0, index, rows.view(len(index), -1))


def backward_blocks(
    edges: Edges, low: torch.dtype | None, g_push: Tensor, g_agg: Tensor, need_weights: bool
) -> Callable[[int, int], Gradients]:
    """See :class:`Backend`. The chain rule from the last equation to the first, in full precision whatever ``low``."""
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


def weight_gradients(
    edges: Edges, start: int, stop: int, d2: Tensor, a1: Tensor, m: Tensor, g_z1: Tensor, g_z2: Tensor, g_z3: Tensor
) -> list[Tensor]:
    """Gradients of w_d, W_e, W_2, b_2, W_3 and b_3 in a block from those of the rows."""
    g_scalars, attr = edges.of_scalars(g_z1), edges.attr[start:stop].flatten(0, 1)  # (B, T or 1, H1), (B T or B, A)
    g_w_e = linear(attr.t(), g_scalars.flatten(0, 1).t()).t()  # (H1, A)
    g_w2, g_w3 = linear(g_z2.t(), a1.t()), linear(g_z3.t(), m.t())
    return [g_z1.t() @ d2, g_w_e, g_w2, g_z2.sum(0), g_w3, g_z3.sum(0)]


def _without_autocast(method: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast must neither choose the dtypes in here, nor in a backward pass that runs under it."""

    @functools.wraps(method)
    def wrapped(ctx: Any, first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(ctx, first, *rest)

    return wrapped


class _EdgeBlock(torch.autograd.Function):
    """Both passes over blocks of edges; only inputs and results are kept in between."""

    @staticmethod
    @_without_autocast
    def forward(
        ctx: Any,
        pos: Tensor,
        h: Tensor,
        edge_attr: Tensor,
        edge_shift: Tensor | None,
        edge_index: Tensor,
        options: _Options,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if pos.device.type == "cpu":
            _keep_freed_memory()
        edges = Edges(pos, h, edge_attr, edge_shift, weights, edge_index)
        push = pos.new_zeros(edges.n_nodes, edges.n_times * 3 * len(weights[-1]))
        agg = pos.new_zeros(edges.n_nodes, edges.n_times * len(weights[2]))
        _in_blocks(
            _backend(pos, weights, options).forward_blocks(edges, options.low, push, agg),
            edge_index.shape[1],
            edges.block_size(options.max_memory, _LIVE_FORWARD),
            pos.device,
        )
        count = torch.zeros_like(pos[0, :, :1]).index_add_(
            0, edge_index[0], pos.new_ones(1, 1).expand(len(edges.pairs), 1)
        )
        count.clamp_(min=1)  # (N, 1)
        shift = (edges.by_time(push) / count).clamp_(-MAX_SHIFT, MAX_SHIFT)  # (T, N, 3 K)
        agg = edges.by_time(agg)  # (T, N, H)
        if options.mean:
            agg /= count
        ctx.options = options
        ctx.save_for_backward(pos, h, edge_attr, edge_shift, edge_index, shift, count, *weights)
        return shift, agg  # (T, N, 3 K), (T, N, H)

    @staticmethod
    @once_differentiable
    @_without_autocast
    def backward(ctx: Any, g_shift: Tensor, g_agg: Tensor) -> tuple[Tensor | None, ...]:
        pos, h, edge_attr, edge_shift, edge_index, shift, count, *weights = ctx.saved_tensors
        need_attr, need_shift, need_weights = *ctx.needs_input_grad[2:4], any(ctx.needs_input_grad[6:])
        options: _Options = ctx.options
        edges = Edges(pos, h, edge_attr, edge_shift, weights, edge_index)
        # Where the bound of the displacement holds, its gradient is 0.
        g_push = edges.by_node(g_shift.masked_fill(shift.abs() >= MAX_SHIFT, 0.0) / count)  # (N, 3 K T)
        g_agg = edges.by_node(g_agg / count if options.mean else g_agg)  # (N, H T)

        g_x = torch.zeros_like(edges.x)  # (N, 3 T)
        g_projected = torch.zeros_like(edges.projected).view(2 * edges.n_nodes, -1)  # (2 N, H1 T)
        g_attr = torch.zeros_like(edges.attr) if need_attr else None
        g_edge_shift = torch.zeros_like(edge_shift) if need_shift else None
        g_w_d, g_w_e = torch.zeros_like(edges.w_d), torch.zeros_like(edges.w_e)
        g_weights = [torch.zeros_like(w) for w in edges.weights]
        backend = _backend(pos, weights, options)
        block = backend.backward_blocks(edges, options.low, g_push, g_agg, need_weights)

        def work(start: int, stop: int) -> Callable[[], None]:
            g = block(start, stop)

            def add() -> None:
                if g_attr is not None:
                    g_attr[start:stop] = edges.of_scalars(g.z1) @ edges.w_e
                if g_edge_shift is not None:
                    g_edge_shift[start:stop] = -g.r.view(stop - start, -1, 3).sum(1)
                if need_weights:
                    for total, part in zip((g_w_d, g_w_e, *g_weights), g.weights, strict=True):
                        total += part
                for side in edges.pairs[start:stop].unbind(1):
                    backend.add_rows(g_projected, side, g.z1)
                g_r = g.r.view(stop - start, -1)  # (B, 3 T)
                g_x.index_add_(0, edges.receiver[start:stop], g_r)
                g_x.index_add_(0, edges.sender[start:stop], g_r, alpha=-1)

            return add

        _in_blocks(work, edge_index.shape[1], edges.block_size(options.max_memory, _LIVE_BACKWARD), pos.device)
        g_pos = edges.by_time(g_x)
        g_i, g_j = g_projected.view(2, len(edges.h), -1)  # (N T, H1) each
        g_h = edges.by_time((g_i @ edges.w_i).addmm_(g_j, edges.w_j))
        if g_attr is not None:
            g_attr = g_attr.transpose(0, 1).reshape(edge_attr.shape)
        if not need_weights:
            return g_pos, g_h, g_attr, g_edge_shift, None, None, *(None,) * len(weights)
        g_w1 = torch.cat([g_w_d, *(linear(g.t(), edges.h.t()) for g in (g_i, g_j)), g_w_e], dim=1)
        return g_pos, g_h, g_attr, g_edge_shift, None, None, g_w1, g_i.sum(0), *g_weights
