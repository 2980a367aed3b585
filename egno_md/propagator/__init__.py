"""OpenMM: the forecaster as an integrator of beads, and as the guide of all-atom dynamics.

Angstrom and ps everywhere; OpenMM's nm appear in ``common.in_nm`` and ``common.in_angstrom`` alone.
"""

from .beads import EGNOIntegrator, surrogate_simulation
from .files import RunFiles, load_simulation
from .guide import GUIDE, add_guide
from .hybrid import HybridPropagator
from .records import HybridSummary, Jump, JumpLimits

__all__ = [
    "GUIDE",
    "EGNOIntegrator",
    "HybridPropagator",
    "HybridSummary",
    "Jump",
    "JumpLimits",
    "RunFiles",
    "add_guide",
    "load_simulation",
    "surrogate_simulation",
]
