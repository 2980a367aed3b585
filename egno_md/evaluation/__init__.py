"""What a forecast is worth, and what of a run is worth forecasting."""

from .evaluate import Evaluation, Part, evaluate, score
from .quality import Ensemble, Quality, quality
from .suggest import Suggestion, suggest

__all__ = ["Ensemble", "Evaluation", "Part", "Quality", "Suggestion", "evaluate", "quality", "score", "suggest"]
