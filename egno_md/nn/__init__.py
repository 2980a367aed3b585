"""The operators: torch only. `EGNO`, `EGHNO` and the way in for weights of the original implementation."""

from .eghno import EGHNO, EGHNOOutput
from .egno import EGNO, EGNOOutput
from .official import from_official

__all__ = ["EGHNO", "EGHNOOutput", "EGNO", "EGNOOutput", "from_official"]
