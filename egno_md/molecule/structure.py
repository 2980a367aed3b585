"""The atoms of a forecast, once for all frames: who they are, how they are bonded, which frames of them are sound."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, few, in_frame
from .molecule import Molecule
from .whole import check_whole


class Structure:
    """The atoms of a selection.

    Parameters
    ----------
    atoms : AtomGroup or Molecule
        N atoms as chosen by :func:`egno_md.molecule.atoms.select_atoms`.

    Attributes
    ----------
    molecule : Molecule
        The atoms as arrays.
    atoms : AtomGroup or Molecule
        What the molecule was made of; for the caller, never read here.
    n_atoms : int
    bonds : ndarray (B, 2), int64
        Bonds, or links of the chain, as indices into the molecule; first index smaller, sorted.
    identity : str
        The same for the same atoms with the same bonds, whatever the file.

    Raises
    ------
    UsageError
        An UpdatingAtomGroup.
    DataError
        No atoms, an atom twice, or bonds to be guessed without coordinates.
    """

    def __init__(self, atoms: Any) -> None:
        self.molecule = Molecule.of(atoms)
        self.atoms = getattr(atoms, "atoms", atoms)

    @property
    def n_atoms(self) -> int:
        return self.molecule.n_atoms

    @property
    def bonds(self) -> NDArray[np.int64]:
        return self.molecule.bonds

    @property
    def identity(self) -> str:
        return self.molecule.identity

    def check_whole(self, positions: ArrayLike, box: ArrayLike | None, *, frame: int | None = None) -> None:
        """:func:`check_whole` with the atoms and bonds of this builder."""
        check_whole(self.molecule, np.asarray(positions), self.bonds, box, frame=frame)

    def checked(self, what: str, values: ArrayLike, frame: int | None) -> NDArray[np.float64]:
        """Positions or velocities (`what`, for the message) as float64 (N, 3), or a DataError that names the atoms."""
        array = np.array(values, dtype=np.float64)  # a copy: torch wants no read-only arrays
        if array.shape != (self.n_atoms, 3):
            raise DataError(
                f"{in_frame(frame)}the {what} have shape {array.shape}, expected ({self.n_atoms}, 3): one row for "
                "each atom of the selection that this graph was made for."
            )
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise DataError(
                f"{in_frame(frame)}the {what} of {len(bad)} of {self.n_atoms} atoms are not finite numbers: "
                f"{few((self.molecule.label(int(k)) for k in bad), 3)}. Leave the damaged frames out, or repair the "
                "trajectory."
            )
        return array
