"""Who predicts: the free forecasts, models, and chains of windows."""

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
