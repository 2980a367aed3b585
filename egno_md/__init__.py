"""Forecasts of molecular dynamics with equivariant graph neural operators.

The names below are loaded on first use, so that ``import egno_md`` and ``egno-md --help`` stay instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

_HOME = {
    "EGNOSurrogate": "analysis",
    "GraphBuilder": "graph",
    "GraphSpec": "config",
    "Model": "checkpoint",
    "ModelSpec": "config",
    "TrainSpec": "config",
    "WindowSpec": "config",
    "bundled_models": "checkpoint",
    "load_model": "checkpoint",
    "open_universe": "trajectory",
    "sample": "models",
}

if TYPE_CHECKING:
    from .analysis import EGNOSurrogate
    from .checkpoint import Model, bundled_models, load_model
    from .config import GraphSpec, ModelSpec, TrainSpec, WindowSpec
    from .graph import GraphBuilder
    from .models import sample
    from .trajectory import open_universe

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
