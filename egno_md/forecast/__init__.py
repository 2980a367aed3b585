"""Who predicts: the free forecasts, models, and chains of windows."""

from .chain import apply_operator, check_request, forecast, forecast_times
from .device import check_precision, resolve_device

__all__ = ["apply_operator", "check_precision", "check_request", "forecast", "forecast_times", "resolve_device"]
