"""Shapes of molecules: lengths, signed volumes, superposition, RMSD; plain arrays in Angstrom."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def bond_lengths(positions: NDArray[np.floating], bonds: NDArray[np.integer]) -> NDArray[np.floating]:
    """Distances of bonded atoms, ``(..., N, 3)`` and ``(B, 2)`` to ``(..., B)``."""
    return np.linalg.norm(positions[..., bonds[:, 0], :] - positions[..., bonds[:, 1], :], axis=-1)


def signed_volumes(positions: NDArray[np.floating], corners: NDArray[np.integer]) -> NDArray[np.floating]:
    """Triple products of the arms from the first corner, ``(..., N, 3)`` and ``(Q, 4)`` to ``(..., Q)``."""
    u, v, w = (positions[..., corners[:, k], :] - positions[..., corners[:, 0], :] for k in (1, 2, 3))
    return np.sum(u * np.cross(v, w), axis=-1)


def bonded_neighbours(pairs: NDArray[np.int64], n_atoms: int) -> list[list[int]]:
    """The atoms that each atom is bonded to, in order."""
    found: list[set[int]] = [set() for _ in range(n_atoms)]
    for i, j in pairs.tolist():
        if i != j:
            found[i].add(j)
            found[j].add(i)
    return [sorted(atoms) for atoms in found]


def runs_of_four(pairs: NDArray[np.int64], n_atoms: int) -> NDArray[np.int64]:
    """Runs of four atoms joined by three bonds, ``(R, 4)``."""
    neighbours = bonded_neighbours(pairs, n_atoms)
    rows = [
        [i, j, k, m]
        for j in range(n_atoms)
        for k in neighbours[j]
        if j < k
        for i in neighbours[j]
        for m in neighbours[k]
        if i != k and m != j and i != m
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def rmsd(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Root mean square deviation in Angstrom over the atoms, without superposition.

    Parameters
    ----------
    predicted, true : ndarray, shape (..., N, 3)

    Returns
    -------
    ndarray, shape (...)
        ``sqrt(3 MSE)`` of the same frames.
    """
    return np.sqrt(np.mean(np.sum((np.asarray(predicted, float) - true) ** 2, axis=-1), axis=-1))


def superposition(mobile: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The rotation that brings `mobile` onto `target` (..., N, 3) best, all atoms of one weight (Kabsch).

    Returns
    -------
    rotation : ndarray, shape (..., 3, 3)
        Proper; ``(mobile - centre) @ rotation`` is nearest to the target about its own centre.
    centre : ndarray, shape (..., 1, 3)
    """
    mobile, target = np.asarray(mobile, np.float64), np.asarray(target, np.float64)
    centre = mobile.mean(axis=-2, keepdims=True)  # (..., 1, 3)
    covariance = np.swapaxes(mobile - centre, -1, -2) @ (target - target.mean(axis=-2, keepdims=True))  # (..., 3, 3)
    left, _, right = np.linalg.svd(covariance)
    # Without this a mirror image could be superposed perfectly.
    left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]
    return left @ right, centre


def aligned(mobile: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """`mobile` superposed on `target`, both (..., N, 3), about the origin."""
    rotation, centre = superposition(mobile, target)
    return (np.asarray(mobile, np.float64) - centre) @ rotation  # (..., N, 3)


def dihedrals(frames: ArrayLike, quadruples: ArrayLike) -> NDArray[np.float64]:
    """Torsions of four atoms each, 0 for cis, positive clockwise along the middle bond (IUPAC).

    Parameters
    ----------
    frames : array_like (..., N, 3)
        Angstrom; molecules whole.
    quadruples : array_like (K, 4)
        Indices of the atoms.

    Returns
    -------
    ndarray (..., K)
        Radians from -pi to pi.
    """
    frames = np.asarray(frames, np.float64)
    quadruples = np.asarray(quadruples, np.int64).reshape(-1, 4)
    corners = frames[..., quadruples, :]  # (..., K, 4, 3)
    first, middle, last = np.moveaxis(np.diff(corners, axis=-2), -2, 0)  # (..., K, 3) each
    left, right = np.cross(first, middle), np.cross(middle, last)  # (..., K, 3)
    along = np.sum(first * right, axis=-1) * np.linalg.norm(middle, axis=-1)  # (..., K)
    return np.arctan2(along, np.sum(left * right, axis=-1))


def radius_of_gyration(xyz: NDArray[np.floating]) -> NDArray[np.floating]:
    """Of every frame ``(..., N, 3)``, all atoms of one weight, Angstrom."""
    return np.sqrt(((xyz - xyz.mean(axis=-2, keepdims=True)) ** 2).sum(axis=-1).mean(axis=-1))
