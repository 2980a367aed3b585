"""Where a forecast runs, and in which precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..errors import UsageError, counted


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is the GPU where there is one.

    Raises
    ------
    UsageError
        The device is unknown to torch or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise UsageError(
            f"device (--device) {str(device)!r} cannot be used here ({error}); use 'auto' or 'cpu'"
        ) from error
    return resolved


def described() -> list[str]:
    """A line for the CPU and for each GPU."""
    lines = [f"cpu: {counted(torch.get_num_threads(), 'thread')} of torch {torch.__version__}"]
    for k in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(k)
        lines.append(
            f"cuda:{k}: {about.name}, {about.total_memory / 2**30:.0f} GB, compute capability "
            f"{about.major}.{about.minor}, CUDA {torch.version.cuda}"
        )
    return lines


#: What the networks may compute in: torch's own settings, tf32 products (GPU), bf16 products (CPU and GPU).
PRECISIONS = ("float32", "tf32", "bf16")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that `device` does not have.

    Raises
    ------
    UsageError
        The precision is unknown, or the device cannot compute in it.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision (--precision) must be one of {', '.join(PRECISIONS)}; found {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(
            f"precision (--precision) 'tf32' needs an NVIDIA GPU, the forecast runs on {device.type!r}: use 'bf16', "
            "which a CPU has too, or the default 'float32'"
        )
    if precision != "float32" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise UsageError(
            f"precision (--precision) {precision!r} needs a GPU of compute capability 8.0 or higher, {device} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}: use the default 'float32'"
        )


@contextlib.contextmanager
def in_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in one of `PRECISIONS`; torch's settings are as before afterwards."""
    if precision == "bf16":
        # Nothing is cast twice in one call, and a CUDA graph must not depend on a cache that lives outside of it.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            yield
    elif precision == "tf32":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    else:
        yield
