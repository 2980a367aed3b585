"""Which atoms belong together: bonds from distances, links along a chain."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .molecule import Molecule
from .neighbors import radius_graph

#: Van der Waals radii in Angstrom (Bondi 1964; Mantina et al. 2009). Elements without one are not bonded by distance.
RADII = {
    "H": 1.1, "He": 1.4, "Li": 1.82, "Be": 1.53, "B": 1.92, "C": 1.7, "N": 1.55, "O": 1.52, "F": 1.47, "Ne": 1.54,
    "Na": 2.27, "Mg": 1.73, "Al": 1.84, "Si": 2.1, "P": 1.8, "S": 1.8, "Cl": 1.75, "Ar": 1.88, "K": 2.75, "Ca": 2.31,
    "Ni": 1.63, "Cu": 1.4, "Zn": 1.39, "Ga": 1.87, "Ge": 2.11, "As": 1.85, "Se": 1.9, "Br": 1.85, "Kr": 2.02,
    "Rb": 3.03, "Sr": 2.49, "Pd": 1.63, "Ag": 1.72, "Cd": 1.58, "In": 1.93, "Sn": 2.17, "Sb": 2.06, "Te": 2.06,
    "I": 1.98, "Xe": 2.16, "Cs": 3.43, "Ba": 2.68, "Pt": 1.75, "Au": 1.66, "Hg": 1.55, "Tl": 1.96, "Pb": 2.02,
    "Bi": 2.07, "Po": 1.97, "At": 2.02, "Rn": 2.2, "Fr": 3.48, "Ra": 2.83, "U": 1.86,
}  # fmt: skip

#: A bond is shorter than this part of the sum of the van der Waals radii: between heavy atoms VMD's 0.6 (MDAnalysis'
#: 0.55 misses disulfides), with a hydrogen 0.55 (0.6 takes the hydrogen bonds of salt bridges for bonds).
BOND_FACTOR, BOND_FACTOR_HYDROGEN = 0.6, 0.55

#: C-alpha atoms of neighbours along a chain are 3.8 A apart (cis 2.9 A), those of next neighbours 5 A and more;
#: MARTINI's backbone beads 3.1 to 3.9 A.
CHAIN_DISTANCE = 4.5

#: C1' atoms of neighbours along a strand are 4.5 to 6.5 A apart, P atoms 5.5 to 7.5 A, Angstrom.
NUCLEOTIDE_DISTANCE = 8.0

#: Atoms, and beads, by which residues are linked where the bonds between them are not selected, and how near these are.
LINKS = {"CA": CHAIN_DISTANCE, "BB": CHAIN_DISTANCE, "P": NUCLEOTIDE_DISTANCE}


def bonds_by_distance(
    elements: NDArray[np.str_], positions: ArrayLike, box: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Atoms close enough to be bonded, also through the box.

    Parameters
    ----------
    elements : ndarray of str (N,)
        Chemical symbols; what has no radius is bonded to nothing.
    positions : array_like (N, 3)
        Angstrom.
    box : array_like (6,), optional
        Lengths and angles.

    Returns
    -------
    ndarray (B, 2), int64
    """
    radii = np.array([RADII.get(str(symbol), 0.0) for symbol in elements])  # (N,)
    if not radii.any():
        return np.zeros((0, 2), dtype=np.int64)
    positions = np.asarray(positions)
    (row, col), shift = radius_graph(positions, 2 * BOND_FACTOR * radii.max(), box)
    delta = positions[row] - positions[col] - (0 if shift is None else shift)  # (E, 3)
    light = elements == "H"
    factor = np.where(light[row] | light[col], BOND_FACTOR_HYDROGEN, BOND_FACTOR)  # (E,)
    bonded = np.linalg.norm(delta, axis=1) < factor * (radii[row] + radii[col])
    return np.stack([row, col], axis=1)[bonded & (row < col)]  # (B, 2)


def neighbours_in_chain(residues: NDArray[np.int64], chains: NDArray[np.int64]) -> NDArray[np.int64]:
    """Atoms that follow each other along a chain, for one atom per residue, (P, 2)."""
    order = np.argsort(residues, kind="stable")
    pairs = np.stack([order[:-1], order[1:]], axis=1)  # (N - 1, 2)
    return pairs[chains[pairs[:, 0]] == chains[pairs[:, 1]]]  # (P, 2)


def within(
    pairs: NDArray[np.int64], radius: float, positions: ArrayLike, box: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Which pairs of atoms (P, 2) are within a radius (Angstrom) of each other, also through the box, (P,)."""
    n_atoms = len(np.asarray(positions))
    edges, _ = radius_graph(positions, radius, box)
    return np.isin(pairs @ [n_atoms, 1], np.array([n_atoms, 1]) @ edges)


def loose_ends(molecule: Molecule) -> NDArray[np.int64]:
    """Atoms that the numbers of their residues say are joined and that are not bonded, (K, 2).

    Residues of one chain whose numbers differ by one are joined C to N; without these, C-alpha to C-alpha. Where
    residues are missing and the others were numbered anew, that is how it should be; else the chain is torn.
    """
    none = np.zeros((0, 2), np.int64)
    if molecule.names is None or molecule.resids is None:
        return none
    alpha, residues = np.flatnonzero(molecule.names == "CA"), molecule.residues
    linked = np.isin(residues, residues[alpha])
    ends = {name: np.flatnonzero((molecule.names == name) & linked) for name in ("C", "N")}
    if not all(map(len, ends.values())):
        pairs = alpha[neighbours_in_chain(residues[alpha], molecule.chains[alpha])]
    else:
        _, of_c, of_n = np.intersect1d(residues[ends["C"]] + 1, residues[ends["N"]], return_indices=True)
        pairs = np.stack([ends["C"][of_c], ends["N"][of_n]], axis=1)  # (P, 2)
        pairs = pairs[molecule.chains[pairs[:, 0]] == molecule.chains[pairs[:, 1]]]
    pairs = pairs[np.abs(np.diff(molecule.resids[pairs], axis=1)[:, 0]) == 1]
    keys = np.sort(pairs, axis=1) @ [molecule.n_atoms, 1]
    return pairs[~np.isin(keys, molecule.bonds @ [molecule.n_atoms, 1])]  # (K, 2)
