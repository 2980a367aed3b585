"""Errors as the paper defines them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..molecule.geometry import superposed_rmsd


def squared_errors(predicted: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Squared error of every window at every step, the mean over atoms and x, y, z (section 5.1).

    Parameters
    ----------
    predicted : array_like, shape (S, T, N, 3) or (S, samples, T, N, 3)
        Angstrom. Several samples of one window are judged by their mean.
    true : array_like, shape (S, T, N, 3)

    Returns
    -------
    ndarray, shape (S, T)
        Angstrom squared.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.ndim == true.ndim + 1:
        predicted = predicted.mean(axis=1)  # (S, T, N, 3)
    return np.mean((predicted - true) ** 2, axis=(2, 3))  # (S, T)


def both_errors(predicted: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Squared errors where the frames stand, and superposed on what came; see :func:`squared_errors`.

    Returns
    -------
    ndarray, shape (S, 2, T)
        In the laboratory's frame of reference, rigid motion included, and of the shape alone.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.ndim == true.ndim + 1:
        predicted = predicted.mean(axis=1)  # (S, T, N, 3)
    return np.stack([squared_errors(predicted, true), superposed_rmsd(predicted, true) ** 2 / 3], axis=1)  # (S, 2, T)


def mse_per_step(predicted: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Mean squared error at every step, the mean over windows, atoms and x, y, z (section 5.1).

    Parameters
    ----------
    predicted, true : array_like, shape (S, T, N, 3)
        Angstrom; see :func:`squared_errors`.

    Returns
    -------
    ndarray, shape (T,)
        Angstrom squared. The last entry is the paper's F-MSE, the mean of all its A-MSE. The mean squared
        displacement error of an atom is three times as large.
    """
    return squared_errors(predicted, true).mean(axis=0)  # (T,)


def skill(model: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``1 - MSE / MSE of the best baseline``: 1 is perfect, 0 no better than what is there for nothing.

    Parameters
    ----------
    model : ndarray, shape (..., T)
    others : ndarray, shape (K, ..., T)
        Errors of K baselines; the best one is chosen for every entry.
    """
    best = np.min(others, axis=0)  # (..., T)
    # Where the best baseline is exact, nothing can be better and an exact model is as good.
    return 1 - np.divide(model, best, out=np.where(model > 0, np.inf, 1.0), where=best > 0)
