"""Who predicts: the free forecasts, models, and chains of windows.

The names are loaded on first use: what needs no network does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Forecaster": ".forecasters",
    "Known": ".forecasters",
    "ModelForecaster": ".chain",
    "apply_operator": ".operator",
    "baselines": ".forecasters",
    "check_precision": ".device",
    "check_request": ".chain",
    "forecast": ".chain",
    "forecast_times": ".chain",
    "free_forecasts": ".forecasters",
    "resolve_device": ".device",
    "roll": ".chain",
}

if TYPE_CHECKING:
    from .chain import ModelForecaster, check_request, forecast, forecast_times, roll
    from .device import check_precision, resolve_device
    from .forecasters import Forecaster, Known, baselines, free_forecasts
    from .operator import apply_operator

__all__ = [
    "Forecaster",
    "Known",
    "ModelForecaster",
    "apply_operator",
    "baselines",
    "check_precision",
    "check_request",
    "forecast",
    "forecast_times",
    "free_forecasts",
    "resolve_device",
    "roll",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
