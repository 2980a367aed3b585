"""Bring predicted frames back to the local geometry of the start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Bonds of C-alpha chains and of heavy atoms fluctuate by less than this at 300 K (Angstrom).
BOND_SLACK = 0.1
SWEEPS = 500
_CONVERGED = 1e-3


def bond_lengths(positions: NDArray[np.floating], bonds: NDArray[np.integer]) -> NDArray[np.floating]:
    """Distances of bonded atoms, ``(..., N, 3)`` and ``(B, 2)`` to ``(..., B)``."""
    return np.linalg.norm(positions[..., bonds[:, 0], :] - positions[..., bonds[:, 1], :], axis=-1)


def keep_bonds(
    positions: NDArray[np.floating],
    bonds: NDArray[np.integer],
    lengths: NDArray[np.floating],
    *,
    slack: float = BOND_SLACK,
) -> NDArray[np.floating]:
    """Move bonded atoms, each pair along its own distance, until every bond is within `slack` of its length.

    A forecast is a mean over possible paths, and the mean of two orientations of a bond is shorter than the bond; over
    a chain of windows this adds up. The correction is SHAKE's (Ryckaert et al. 1977) with equal weights, all bonds at
    once, damped by the number of bonds at an atom. It keeps the centre and the symmetries of the operator.

    Parameters
    ----------
    positions : ndarray, shape (..., N, 3)
        Angstrom.
    bonds : ndarray, shape (B, 2)
        Pairs of atoms.
    lengths : ndarray, shape (..., B)
        Lengths in Angstrom that the bonds shall have.
    slack : float
        Angstrom.

    Returns
    -------
    ndarray, shape (..., N, 3)
        New positions; the argument is not changed. What has not converged after 500 sweeps is left to the checks.
    """
    x = np.array(positions, np.float64)  # (..., N, 3)
    if not len(bonds):
        return x.astype(positions.dtype)
    i, j = bonds.T
    degree = np.bincount(bonds.ravel(), minlength=x.shape[-2])  # (N,)
    share = 0.5 / np.maximum(degree[i], degree[j])  # (B,)
    atoms_first = np.moveaxis(x, -2, 0)  # (N, ..., 3), a view
    for _ in range(SWEEPS):
        d = x[..., i, :] - x[..., j, :]  # (..., B, 3)
        r = np.maximum(np.linalg.norm(d, axis=-1), 1e-6)  # (..., B)
        excess = r - np.clip(r, lengths - slack, lengths + slack)  # (..., B)
        if np.abs(excess).max() < _CONVERGED:
            break
        move = np.moveaxis((share * excess / r)[..., None] * d, -2, 0)  # (B, ..., 3)
        np.subtract.at(atoms_first, i, move)
        np.add.at(atoms_first, j, move)
    return x.astype(positions.dtype)
