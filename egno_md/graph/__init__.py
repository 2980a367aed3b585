"""What a network eats: graphs, how they are made of a molecule and its frames, and the windows of runs.

The names are loaded on first use: what needs no network does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Graph": ".graph",
    "GraphBuilder": ".builder",
    "check_whole": "..molecule.whole",
    "collate": ".graph",
    "default_selection": "..molecule.default",
    "radial_basis": ".builder",
    "select_atoms": "..molecule.atoms",
}

if TYPE_CHECKING:
    from ..molecule.atoms import select_atoms
    from ..molecule.default import default_selection
    from ..molecule.whole import check_whole
    from .builder import GraphBuilder, radial_basis
    from .graph import Graph, collate

__all__ = ["Graph", "GraphBuilder", "check_whole", "collate", "default_selection", "radial_basis", "select_atoms"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
