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
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from egno_md.errors import UsageError
from egno_md.nn.edges import reference
from egno_md.nn.edges import torch as torch_backend
from egno_md.nn.edges.backend import Backend, Edges
from egno_md.nn.edges.products import linear
from egno_md.nn.edges.reference import MAX_SHIFT

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


def compiled_layer() -> ModuleType | None:
    """:mod:`egno_md.nn.edges.layer`, where Numba is installed and works."""
    return None if _module("numba") is None else importlib.import_module("egno_md.nn.edges.layer")


def _backend(pos: Tensor, weights: Sequence[Tensor], options: _Options) -> Backend:
    kernels: Any = None
    if pos.dtype == torch.float32 and pos.is_cuda:
        # In full float32 torch's operators are as fast or faster; in those of autocast nobody has measured.
        tf32 = options.low is None and torch.get_float32_matmul_precision() != "highest"
        kernels = _module("triton") if tf32 else None
        kernels = kernels if kernels is not None and kernels.fits(weights) else None
    elif pos.dtype == torch.float32 and pos.device.type == "cpu" and options.compiled:
        kernels = _module("numba")
    return kernels or torch_backend


@functools.cache
def _keep_freed_memory() -> None:
    """Have glibc keep the memory that a block gives back for the next one.

    By default it returns every large piece to the system, which clears its pages again at the next use: that can cost
    as much time as all of the arithmetic. Having seen a piece of almost 32 MiB freed, it keeps pieces up to that size
    and trims what is unused beyond twice that. The piece itself is never touched.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


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
