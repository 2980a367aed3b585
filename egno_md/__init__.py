"""Forecasts of molecular dynamics with equivariant graph neural operators.

The names below are loaded on first use, so that ``import egno_md`` and ``egno-md --help`` stay instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

_HOME = {
    "EGNOIntegrator": "propagator",
    "EGNOSurrogate": "analysis",
    "GraphBuilder": "graph",
    "GraphSpec": "config",
    "HybridPropagator": "propagator",
    "Model": "checkpoint",
    "ModelSpec": "config",
    "TrainSpec": "config",
    "WindowSpec": "config",
    "bundled_models": "checkpoint",
    "evaluate": "evaluation",
    "fit": "training",
    "load_model": "checkpoint",
    "open_universe": "trajectory",
    "sample": "models",
    "suggest": "evaluation",
    "surrogate_simulation": "propagator",
}

if TYPE_CHECKING:
    from .analysis import EGNOSurrogate
    from .checkpoint import Model, bundled_models, load_model
    from .config import GraphSpec, ModelSpec, TrainSpec, WindowSpec
    from .evaluation import evaluate, suggest
    from .graph import GraphBuilder
    from .models import sample
    from .propagator import EGNOIntegrator, HybridPropagator, surrogate_simulation
    from .training import fit
    from .trajectory import open_universe

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
