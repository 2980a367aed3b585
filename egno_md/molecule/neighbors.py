"""Radius graphs, with and without a periodic box."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from ..errors import DataError

#: Atoms up to which neighbours through a box are looked for without vesin, where torch is not loaded.
MOST_IN_TREE = 20_000

#: Width of a box in Angstrom that holds no atom any more, while its images would fill the memory.
NARROWEST = 1.0

#: Setting ``universe.dimensions`` would hold for the current frame alone.
DROP_BOX = (
    "If the system has no box, drop it with `universe.trajectory.add_transformations(MDAnalysis.transformations."
    "set_dimensions([0, 0, 0, 90, 90, 90]))` (--no-box)"
)


def box_vectors(box: ArrayLike | None) -> NDArray[np.float64] | None:
    """Box vectors as rows, or None where there is no box.

    Parameters
    ----------
    box : array_like (6,), optional
        Three lengths in Angstrom and three angles in degrees, as ``Timestep.dimensions``. Three zero lengths are
        no box.

    Returns
    -------
    ndarray (3, 3) or None

    Raises
    ------
    DataError
        The six numbers are not a box, or it is less than 1 Angstrom wide.
    """
    if box is None:
        return None
    box = np.asarray(box, dtype=np.float64)
    if box.shape == (6,) and not box[:3].any():
        return None
    vectors = _cell(box) if box.shape == (6,) and (box > 0).all() and np.isfinite(box).all() else None
    if vectors is None:
        raise DataError(
            f"the box {box.tolist()} is none: expected three lengths in Angstrom and three angles in degrees. "
            f"{DROP_BOX}."
        )
    if not (width := box_widths(vectors).min()) >= NARROWEST:
        raise DataError(f"the box {box.tolist()} is {width:.2g} A wide, less than an atom. {DROP_BOX}.")
    return vectors


def _cell(box: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Vectors of a box: a along x, b in the plane of x and y; None for angles that no box has."""
    lengths, angles = box[:3], box[3:]
    cosine = np.where(angles == 90, 0.0, np.cos(np.deg2rad(angles)))  # alpha, beta, gamma
    alpha, beta, gamma = cosine
    sine = np.sin(np.deg2rad(angles[2]))
    slant = (alpha - beta * gamma) / sine if sine else np.inf
    height = 1 - beta**2 - slant**2
    if (angles >= 180).any() or not height > 0:
        return None
    rows = [[1, 0, 0], [gamma, sine, 0], [beta, slant, np.sqrt(height)]]
    return np.array(rows, dtype=np.float64) * lengths[:, None]


def box_widths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Perpendicular widths (3,) of a box given by its vectors (3, 3); the lengths where all angles are right."""
    normals = np.cross(vectors[[1, 2, 0]], vectors[[2, 0, 1]])
    return np.abs(np.linalg.det(vectors)) / np.linalg.norm(normals, axis=1)


def radius_graph(
    positions: ArrayLike, cutoff: float, box: ArrayLike | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Every pair of atoms within a radius, as directed edges.

    The displacement of an edge is ``x[receiver] - x[sender] - shift``: the image of the sender sits at
    ``x[sender] + shift``. In a box narrower than twice the cutoff an atom can meet several images of another one, or
    its own; each of them is an edge.

    Parameters
    ----------
    positions : array_like (N, 3)
        Angstrom; they need not be wrapped into the box.
    cutoff : float
        Angstrom.
    box : array_like (6,), optional
        Lengths (Angstrom) and angles (degrees); triclinic boxes are fine, zero lengths are no box.

    Returns
    -------
    edge_index : ndarray (2, E), int64
        Receivers and senders, sorted by receiver, then sender, then image (the image in place first). Both directions
        of a pair are there, no atom is its own neighbour in place.
    shift : ndarray (E, 3) or None
        Image vectors in Angstrom, zero where no image is crossed; None without a box.

    Raises
    ------
    DataError
        Positions that are no (N, 3) array of finite numbers, or a box that is none.
    """
    positions = np.asarray(positions, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 3 or not np.isfinite(positions).all():
        raise DataError(
            f"a radius graph needs an (N, 3) array of finite numbers, found shape {positions.shape} with "
            f"{np.size(positions) - np.isfinite(positions).sum()} values that are not finite"
        )
    vectors = box_vectors(box)
    n_atoms = len(positions)
    if vectors is None:
        pairs = cKDTree(positions).query_pairs(cutoff, output_type="ndarray")
        i, j = pairs.T.astype(np.int64)
        # One number per edge: sorting plain integers is several times faster than sorting by an index.
        keys = np.concatenate([i * n_atoms + j, j * n_atoms + i])
        keys.sort()
        return np.stack(np.divmod(keys, n_atoms)), None

    if "torch" in sys.modules or n_atoms > MOST_IN_TREE:
        from vesin import NeighborList

        i, j, images = NeighborList(cutoff=cutoff, full_list=True).compute(
            points=positions, box=vectors, periodic=True, quantities="ijS"
        )
    else:  # vesin loads torch, which takes longer than all else in a forecast without a network
        i, j, images = _in_tree(positions, cutoff, vectors)
    keys = i.astype(np.int64) * n_atoms + j.astype(np.int64)
    order = np.lexsort((*images.T, images.any(axis=1), keys))
    return np.stack(np.divmod(keys[order], n_atoms)), images[order] @ vectors


def _in_tree(
    positions: NDArray[np.float64], cutoff: float, vectors: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (E,), (E,) and images (E, 3) as vesin gives them: all atoms among all images that can be near enough."""
    fractions = positions @ np.linalg.inv(vectors)  # (N, 3)
    cells = np.floor(fractions).astype(np.int64)
    inside = fractions - cells
    reach = cutoff / box_widths(vectors)  # (3,), in widths of the box
    steps = [np.arange(-n, n + 1) for n in np.ceil(reach).astype(int)]
    shifts = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)  # (I, 3)
    moved = inside + shifts[:, None]  # (I, N, 3)
    image, atom = np.nonzero(((moved > -reach) & (moved < 1 + reach)).all(axis=-1))  # (G,)
    ghosts = cKDTree(moved[image, atom] @ vectors)
    near = cKDTree(inside @ vectors).sparse_distance_matrix(ghosts, cutoff, output_type="coo_matrix")
    i, g = near.row.astype(np.int64), near.col.astype(np.int64)
    j, shift = atom[g].astype(np.int64), shifts[image[g]]
    other = (i != j) | shift.any(axis=1)
    i, j, shift = i[other], j[other], shift[other]
    return i, j, shift + cells[i] - cells[j]


def contacts(
    positions: NDArray[np.floating], cutoff: float, box: ArrayLike | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of different atoms within a radius, in a box by their nearest images, each once.

    Parameters
    ----------
    positions : ndarray (N, 3)
        Angstrom, finite.
    cutoff : float
        Angstrom.
    box : array_like (6,), optional
        Lengths (Angstrom) and angles (degrees); zero lengths are no box.

    Returns
    -------
    pairs : ndarray (P, 2), int64
        The smaller index first, sorted.
    distances : ndarray (P,)
        Angstrom.
    """
    if box_vectors(box) is None:
        pairs = cKDTree(positions).query_pairs(cutoff, output_type="ndarray").astype(np.int64)  # (P, 2)
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        return pairs, np.linalg.norm(np.subtract(*np.asarray(positions, np.float64)[pairs.T]), axis=1)
    edges, shift = radius_graph(positions, cutoff, box)
    once = edges[0] < edges[1]
    pairs = edges[:, once].T  # (P', 2)
    delta = np.subtract(*np.asarray(positions, np.float64)[pairs.T]) - shift[once]  # (P', 3)
    distances = np.linalg.norm(delta, axis=1)  # (P',)
    if not len(pairs):
        return pairs, distances
    starts = np.flatnonzero(np.append(True, (np.diff(pairs, axis=0) != 0).any(axis=1)))  # one for each pair
    return pairs[starts], np.minimum.reduceat(distances, starts)
