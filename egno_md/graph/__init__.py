"""What a network eats: graphs, how they are made of a molecule and its frames, and the windows of runs."""

from ..molecule.atoms import select_atoms
from ..molecule.default import default_selection
from ..molecule.whole import check_whole
from .builder import GraphBuilder, radial_basis
from .graph import Graph, collate

__all__ = ["Graph", "GraphBuilder", "check_whole", "collate", "default_selection", "radial_basis", "select_atoms"]
