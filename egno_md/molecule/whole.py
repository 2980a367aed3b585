"""Molecules that the periodic box cuts, or that jumped through it."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree

from ..errors import DataError, in_frame
from .geometry import bond_lengths
from .molecule import Molecule, atom_label
from .neighbors import DROP_BOX, box_vectors, box_widths

#: Molecules up to which they are parts of one thing, such as a complex; more are a liquid or a membrane.
PARTS = 20

#: Angstrom within which molecules stand next to each other as they are, C-alpha atoms alone as well: the box may be one
#: that means nothing, in which images lie upon each other. How much nearer another image has to be, otherwise.
TOUCHING, NEARER = 10.0, 1.0


def check_whole(
    atoms: Any,
    positions: NDArray[np.floating],
    bonds: NDArray[np.integer],
    box: ArrayLike | None,
    *,
    frame: int | None = None,
) -> None:
    """Refuse molecules that the periodic box cuts in two.

    Parameters
    ----------
    atoms : Molecule or AtomGroup
        The N atoms, for the message.
    positions : ndarray (N, 3)
        Angstrom.
    bonds : ndarray (B, 2)
        Pairs of atoms that belong together (bonds; for C-alpha atoms the chain).
    box : array_like (6,) or None
        Lengths and angles; without a box nothing can be broken.
    frame : int, optional
        For the message.

    Raises
    ------
    DataError
        A bond is longer than half the smallest (perpendicular) width of the box.
    """
    vectors = box_vectors(box)
    if vectors is None or not len(bonds):
        return
    half = box_widths(vectors).min() / 2
    lengths = bond_lengths(positions, bonds)  # (B,)
    if lengths.max() > half:
        worst = int(lengths.argmax())
        first, second = (_label(atoms, int(k)) for k in bonds[worst])
        raise DataError(
            f"{in_frame(frame)}{first} and {second} belong together but are {lengths[worst]:.1f} A apart, more than "
            f"half the box ({half:.1f} A): the molecule is broken by the periodic box. Make it whole with "
            "`universe.trajectory.add_transformations(MDAnalysis.transformations.unwrap(universe.atoms))` (it needs "
            "bonds: `universe.atoms.guess_bonds()`), or with the program that wrote it (`gmx trjconv -pbc whole`). "
            f"{DROP_BOX}."
        )


def make_whole(
    positions: NDArray[np.floating],
    bonds: NDArray[np.integer],
    box: ArrayLike | None,
    near: NDArray[np.floating] | None = None,
) -> NDArray[np.floating]:
    """Put atoms next to those that they are bonded to, by whole widths of the box.

    Parameters
    ----------
    positions : ndarray (N, 3)
        Angstrom.
    bonds : ndarray (B, 2)
        Pairs of atoms that belong together, in the images of each other that are nearest. An atom without any, such
        as an ion or the oxygen of a water molecule, is a molecule by itself.
    box : array_like (6,) or None
        Lengths and angles; without a box nothing is moved.
    near : ndarray (N, 3), optional
        The frame before, whole: each molecule is put into the image that is nearest to where it was.

    Returns
    -------
    ndarray (N, 3)
        Of the same kind of number. Without `near` the first atom of each molecule stays where it is.
    """
    vectors = box_vectors(box)
    if vectors is None:
        return positions
    fractions = np.asarray(positions, np.float64) @ np.linalg.inv(vectors)  # (N, 3)
    cut = np.abs(fractions[bonds[:, 0]] - fractions[bonds[:, 1]]).max(initial=0.0) > 0.5
    travel = None if near is None else fractions - np.asarray(near, np.float64) @ np.linalg.inv(vectors)  # (N, 3)
    if not cut and (travel is None or np.abs(travel).max() <= 0.5):
        return positions  # as nearly all frames are
    before, molecule = _forest(np.ascontiguousarray(bonds, np.int64).tobytes(), len(positions))
    images = np.rint(fractions[before] - fractions)  # to the atom before, of which the way on is added
    while cut and (before[before] != before).any():
        images += images[before]
        before = before[before]
    if travel is not None:
        travel += images
        size = np.bincount(molecule)
        mean = np.stack([np.bincount(molecule, column) / size for column in travel.T], axis=1)  # (M, 3)
        images -= np.rint(mean)[molecule]
    return (positions + images @ vectors).astype(positions.dtype)


def put_close(
    positions: NDArray[np.floating], bonds: NDArray[np.integer], box: ArrayLike | None
) -> NDArray[np.floating]:
    """Put the molecules of a complex next to each other, by whole widths of the box.

    Parameters
    ----------
    positions : ndarray (N, 3)
        Angstrom; every molecule whole.
    bonds : ndarray (B, 2)
        Pairs of atoms that belong to one molecule.
    box : array_like (6,) or None
        Lengths and angles; without a box nothing is moved.

    Returns
    -------
    ndarray (N, 3)
        Of the same kind of number. The largest molecule stays where it is; of more than 20 molecules all do.
    """
    vectors = box_vectors(box)
    if vectors is None:
        return positions
    _, molecule = _forest(np.ascontiguousarray(bonds, np.int64).tobytes(), len(positions))
    parts = [np.flatnonzero(molecule == k) for k in range(molecule.max() + 1)] if molecule.max() < PARTS else []
    if len(parts) < 2:
        return positions
    parts.sort(key=len, reverse=True)
    found = np.array(positions, np.float64)
    near = np.array(list(itertools.product((-1, 0, 1), repeat=3)))  # (27, 3)
    for k in range(1, len(parts)):
        there, part = found[np.concatenate(parts[:k])], found[parts[k]]
        tree = cKDTree(there)
        gap = tree.query(part)[0].min()
        if gap <= TOUCHING:
            continue
        between = (there.mean(axis=0) - part.mean(axis=0)) @ np.linalg.inv(vectors)
        shifts = (near + np.rint(between)) @ vectors  # (27, 3)
        gaps = [tree.query(part + shift)[0].min() for shift in shifts]
        best = int(np.argmin(gaps))
        if gaps[best] < gap - NEARER:
            found[parts[k]] += shifts[best]
    return found.astype(positions.dtype)


@functools.lru_cache(maxsize=4)
def _forest(bonds: bytes, n_atoms: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Of each atom the one before it on the way from the first atom of its molecule, which has itself before it, and
    the number of its molecule; kept, for frames of a run have the same bonds."""
    first, second = (np.frombuffer(bonds, np.int64) if bonds else np.empty(0, np.int64)).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(n_atoms, n_atoms))
    _, molecule = connected_components(graph, directed=False)
    roots = np.unique(molecule, return_index=True)[1]
    # Joined to one more atom they are one graph, walked once: a walk for each costs the square of their number.
    pairs = np.append(first, np.full(len(roots), n_atoms)), np.append(second, roots)
    joined = coo_array((np.ones(len(pairs[0])), pairs), shape=(n_atoms + 1, n_atoms + 1)).tocsr()
    before = breadth_first_order(joined, n_atoms, directed=False)[1][:n_atoms]
    before[roots] = roots
    return before, molecule


def check_jump(
    atoms: Any, displacements: NDArray[np.floating], box: ArrayLike | None, *, frame: int | None = None
) -> None:
    """Refuse atoms that were put back into the box since the frame before.

    Parameters
    ----------
    atoms : Molecule or AtomGroup
        The N atoms, for the message.
    displacements : ndarray (N, 3)
        Angstrom since the frame before.
    box : array_like (6,) or None
        Lengths and angles; without a box nothing can jump.
    frame : int, optional
        For the message.

    Raises
    ------
    DataError
        An atom moved more than half the smallest (perpendicular) width of the box.
    """
    vectors = box_vectors(box)
    if vectors is None:
        return
    half = box_widths(vectors).min() / 2
    moved = np.linalg.norm(displacements, axis=1)  # (N,)
    if moved.max() > half:
        raise DataError(
            f"{in_frame(frame)}{_label(atoms, int(moved.argmax()))} moved {moved.max():.1f} A since the frame before, "
            f"more than half the box ({half:.1f} A): the molecule was wrapped back into the box. Undo it with "
            "`universe.trajectory.add_transformations(MDAnalysis.transformations.nojump.NoJump())`."
        )


def _label(atoms: Any, k: int) -> str:
    return atoms.label(k) if isinstance(atoms, Molecule) else atom_label(atoms[k])
