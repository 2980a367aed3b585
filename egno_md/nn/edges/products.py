"""Products with matrices, and the library that is the fastest for them on this processor."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F


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


def add_linear(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``y + x weight^T``; y may be overwritten."""
    if x.shape[1] > 8 and _onednn(x):  # below that MKL is the faster one, as measured
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, None, "add")
    return y.addmm_(x, weight.t())
