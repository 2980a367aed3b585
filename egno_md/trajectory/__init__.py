"""Files, Universes and arrays: opened and checked, one clock, written whole, exchanged with mdtraj; no torch.

Lengths are in Angstrom, times in ps, boxes are ``(lx, ly, lz, alpha, beta, gamma)`` in Angstrom and degrees, as in
MDAnalysis.
"""

from .clock import Clock, frame_spacing
from .mdtraj import from_mdtraj, to_mdtraj
from .universe import in_memory_universe, input_files, open_runs, open_universe
from .writer import FrameWriter, require_targets, write_forecast

__all__ = [
    "Clock",
    "FrameWriter",
    "frame_spacing",
    "from_mdtraj",
    "in_memory_universe",
    "input_files",
    "open_runs",
    "open_universe",
    "require_targets",
    "to_mdtraj",
    "write_forecast",
]
