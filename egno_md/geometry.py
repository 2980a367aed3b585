"""Bring predicted frames back to the local geometry of the start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Bonds of C-alpha chains and of heavy atoms fluctuate by less than this at 300 K (Angstrom).
BOND_SLACK = 0.1
SWEEPS = 100


def keep_bonds(
    positions: NDArray[np.floating], bonds: NDArray[np.integer], lengths: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Move atoms along their bonds until every bond is within 0.1 Angstrom of its length.

    A forecast is a mean over possible paths, and the mean of two orientations of a bond is shorter than the bond; over
    a chain of windows this adds up. The correction is SHAKE's (Ryckaert et al. 1977) with equal weights, in sweeps
    over all bonds at once: every atom moves by the mean of what its bonds ask for. Nothing but distances enters, so
    the symmetries of the operator are kept.

    Parameters
    ----------
    positions : ndarray, shape (..., N, 3)
        Angstrom.
    bonds : ndarray, shape (B, 2)
        Pairs of atoms.
    lengths : ndarray, shape (..., B)
        Lengths in Angstrom that the bonds shall have.

    Returns
    -------
    ndarray, shape (..., N, 3)
        New positions; the argument is not changed.
    """
    x = np.array(positions, np.float64)  # (..., N, 3)
    if not len(bonds):
        return x.astype(positions.dtype)
    i, j = bonds.T
    share = 1 / np.maximum(np.bincount(bonds.ravel(), minlength=x.shape[-2]), 1)[:, None]  # (N, 1)
    for _ in range(SWEEPS):
        d = x[..., i, :] - x[..., j, :]  # (..., B, 3)
        r = np.linalg.norm(d, axis=-1)  # (..., B)
        excess = r - np.clip(r, lengths - BOND_SLACK, lengths + BOND_SLACK)  # (..., B)
        if np.abs(excess).max() < 1e-3:
            break
        move = (0.5 * excess / np.maximum(r, 1e-6))[..., None] * d  # (..., B, 3)
        total = np.zeros_like(x)
        np.add.at(np.moveaxis(total, -2, 0), j, np.moveaxis(move, -2, 0))
        np.subtract.at(np.moveaxis(total, -2, 0), i, np.moveaxis(move, -2, 0))
        x += total * share
    return x.astype(positions.dtype)
