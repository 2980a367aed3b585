"""The slowest motions of a run: time-lagged independent components, a fixed grid on them, and passages between ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

#: Components; cells of the grid along each, beside those that lie outside of what the run has.
COMPONENTS, CELLS = 2, 12

#: Directions that a component is made of, at most, and frames of the run for each of them at least.
DIRECTIONS, FRAMES_EACH = 20, 20

#: Shares of the run below which and above which a frame lies at an end of the slowest component; passages from one end
#: to the other below which nothing is said of their time.
ENDS, FEWEST_PASSAGES = (0.2, 0.8), 5


@dataclass(frozen=True, eq=False)
class SlowComponents:
    """The linear combinations of some features that are remembered longest (Molgedey and Schuster 1994).

    They solve ``C(lag) w = lambda C(0) w``, with the covariances of the run about its mean, that with a lag made
    symmetric, on the leading principal components of the features. Grid and ends are those of the run that they are
    fitted to: what is compared on them has no part in them.

    Attributes
    ----------
    centre : ndarray, shape (D,)
    weights : ndarray, shape (D, C)
        Components have a variance of 1 in the run, the slowest first.
    edges : tuple of ndarray
        Of the cells along each component.
    ends : tuple of float
        Of the slowest component: a value below the first is at its lower end, one above the second at its upper end.
    """

    centre: NDArray[np.float64]
    weights: NDArray[np.float64]
    edges: tuple[NDArray[np.float64], ...]
    ends: tuple[float, float]

    @classmethod
    def fit(cls, parts: Sequence[np.ndarray], lag: int) -> SlowComponents | None:
        """From features (F, D) of the parts of a run; None where it is too short or does not move."""
        parts = [np.asarray(x, np.float64) for x in parts]
        everything = np.concatenate(parts)
        pairs = [(x[:-lag], x[lag:]) for x in parts if len(x) > lag]
        keep = min(DIRECTIONS, everything.shape[1], sum(len(x) for x, _ in pairs) // FRAMES_EACH)
        centre = everything.mean(axis=0)
        if keep < 1:
            return None
        _, strength, basis = np.linalg.svd(everything - centre, full_matrices=False)
        keep = min(keep, int(np.sum(strength > 1e-6 * max(strength[0], 1e-9))))
        if strength[0] < 1e-6 or keep < 1:
            return None
        scale = strength[:keep] / np.sqrt(len(everything))
        whitened = basis[:keep].T / scale  # (D, R); C(0) is the unit matrix there
        lagged = sum(((a - centre) @ whitened).T @ ((b - centre) @ whitened) for a, b in pairs)
        n = min(COMPONENTS, keep)
        _, vectors = eigh(lagged + lagged.T, subset_by_index=[keep - n, keep - 1])
        weights = whitened @ vectors[:, ::-1]  # (D, C)
        weights *= np.where(weights[np.argmax(np.abs(weights), axis=0), np.arange(n)] < 0, -1.0, 1.0)
        values = (everything - centre) @ weights  # (F, C)
        edges = tuple(np.linspace(column.min(), column.max(), CELLS + 1) for column in values.T)
        low, high = np.quantile(values[:, 0], ENDS)
        return cls(centre, weights, edges, (float(low), float(high)))

    def __call__(self, features: np.ndarray) -> NDArray[np.float64]:
        """Features (F, D) to components (F, C)."""
        return (features - self.centre) @ self.weights

    def histogram(self, values: np.ndarray) -> NDArray[np.float64]:
        """Counts of components (F, C) in the cells of the grid, those outside of it in cells of their own."""
        edges = [np.concatenate([[-np.inf], e[1:-1], [np.inf]]) for e in self.edges]
        outside = np.any([(v < e[0] - 1e-9) | (v > e[-1] + 1e-9) for v, e in zip(values.T, self.edges, strict=True)], 0)
        inside = np.histogramdd(values[~outside], edges)[0].ravel()
        return np.append(inside, outside.sum())

    def passages(self, parts: Sequence[np.ndarray]) -> NDArray[np.float64]:
        """Mean first passage time in frames from the lower to the upper end of the slowest component, and back, (2,).

        The frames since an end was last visited over the passages to the other one: what the end of a part cuts short
        counts as well. NaN of fewer than five passages.
        """
        frames, passages = np.zeros(2), np.zeros(2)
        for values in parts:
            x = values[:, 0]
            visited = np.where(x < self.ends[0], 0, np.where(x > self.ends[1], 1, -1))
            at = np.flatnonzero(visited >= 0)
            if not len(at):
                continue
            last = visited[at[np.searchsorted(at, np.arange(at[0], len(x)), side="right") - 1]]  # end visited last
            frames += np.bincount(last, minlength=2)
            passages += np.bincount(last[:-1][last[1:] != last[:-1]], minlength=2)
        return np.divide(frames, passages, out=np.full(2, np.nan), where=passages >= FEWEST_PASSAGES)
