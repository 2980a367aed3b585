"""Functions that Numba compiles; the machine code is stored beside their file, or where Numba may write."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(options: dict[str, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator; `options` are those of :func:`numba.njit`. Where nothing can be stored, every process compiles."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            kernel = njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to store it in
            return njit(**options)(function)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            try:
                return kernel(*arguments)
            except OSError:  # compiled, but there was no room to store it
                return kernel(*arguments)

        return call

    return decorate
