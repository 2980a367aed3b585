"""Errors as the paper defines them, and the baselines that a user has for nothing."""

from __future__ import annotations

import numpy as np

from .config import WindowSpec


def mse_per_step(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Mean squared error at every step, the mean over windows, atoms and x, y, z (section 5.1).

    Parameters
    ----------
    predicted, true : ndarray, shape (S, T, N, 3)
        Angstrom.

    Returns
    -------
    ndarray, shape (T,)
        Angstrom squared. The last entry is the paper's F-MSE, the mean of all its A-MSE. The mean squared
        displacement error of an atom is three times as large.
    """
    return np.mean((np.asarray(predicted, float) - true) ** 2, axis=(0, 2, 3))  # (T,)


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


def static(start: np.ndarray, window: WindowSpec) -> np.ndarray:
    """Baseline: the start frame stands still. ``(S, N, 3)`` gives ``(S, T, N, 3)``."""
    return np.repeat(start[:, None], window.n_times, axis=1)  # (S, T, N, 3)


def linear(start: np.ndarray, velocity: np.ndarray, window: WindowSpec) -> np.ndarray:
    """Baseline: every atom keeps its velocity (Angstrom per stride). ``(S, N, 3)`` gives ``(S, T, N, 3)``."""
    steps = np.asarray(window.targets, dtype=start.dtype)[:, None, None]  # (T, 1, 1)
    return start[:, None] + velocity[:, None] * steps  # (S, T, N, 3)
