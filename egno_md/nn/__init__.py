"""The operators: torch only. `EGNO`, `EGHNO` and the way in for weights of the original implementation."""

from .eghno import EGHNO, EGHNOOptions, EGHNOOutput
from .egno import EGNO, EGNOOptions, EGNOOutput
from .official import from_official

__all__ = ["EGHNO", "EGHNOOptions", "EGHNOOutput", "EGNO", "EGNOOptions", "EGNOOutput", "from_official"]
