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
    "GraphSpec": "specs",
    "HybridPropagator": "propagator",
    "Interpolated": "interpolation",
    "Model": "forecast.model",
    "ModelSpec": "specs",
    "Recipe": "specs",
    "TrainSpec": "specs",
    "WindowSpec": "specs",
    "bundled_models": "models",
    "evaluate": "evaluation",
    "fit": "training",
    "load_model": "forecast.model",
    "open_universe": "trajectory",
    "sample": "models",
    "suggest": "evaluation",
    "surrogate_simulation": "propagator",
}

if TYPE_CHECKING:
    from egno_md.evaluation.evaluate import evaluate
    from egno_md.evaluation.suggest import suggest
    from egno_md.forecast.model import Model, load_model
    from egno_md.graph.builder import GraphBuilder
    from egno_md.models import bundled_models
    from egno_md.specs import GraphSpec, ModelSpec, Recipe, TrainSpec, WindowSpec
    from egno_md.training.loop import fit
    from egno_md.trajectory.universe import open_universe

    from .analysis import EGNOSurrogate
    from .interpolation import Interpolated
    from .models import sample
    from .propagator import EGNOIntegrator, HybridPropagator, surrogate_simulation

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
