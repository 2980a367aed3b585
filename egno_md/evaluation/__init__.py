"""What a forecast is worth, and what of a run is worth forecasting."""

from .evaluate import evaluate
from .quality import Ensemble, Quality, quality
from .result import Evaluation
from .score import Part, score
from .suggest import Suggestion, suggest

__all__ = ["Ensemble", "Evaluation", "Part", "Quality", "Suggestion", "evaluate", "quality", "score", "suggest"]
