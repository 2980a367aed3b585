"""Gaussian paths: covariances over time and space from few windows, ridge regression, and what lies between steps."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_solve, eigh, solve_triangular

from ..errors import UsageError

#: Numbers of all windows that a fit keeps.
FITTED_NUMBERS = 2**23

#: Windows that a fit needs.
FEWEST_WINDOWS = 10

#: Blocks of windows whose covariances tell how certain one is; dimensions up to which space is whitened for it.
BLOCKS, WHITENED = 10, 1024

#: Folds of the known windows, in order of time; penalties of a ridge as shares of the variance; directions it keeps.
FOLDS, PENALTIES, DIRECTIONS = 4, (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), 512


class Between(NamedTuple):
    """Where some times lie between the steps that are known, step 0 among them, and how much less straight lines
    between two random values spread than the values do (the variance is to go in straight lines)."""

    upper: np.ndarray
    weight: np.ndarray
    stretch: np.ndarray

    @classmethod
    def of(cls, times: ArrayLike, knots: np.ndarray, covariance: np.ndarray, name: str) -> Between:
        """Of `times` (T,) between `knots` (K,), whose deviations have this covariance (K, K) over time."""
        times, steps = np.asarray(times, float), np.concatenate([[0.0], knots])
        if times.min(initial=1) < 0 or times.max(initial=0) > steps[-1]:
            raise UsageError(
                f"the {name} was fitted for up to {steps[-1]:g} strides ahead, found {times.max():g}: fit it for more "
                "steps, or chain windows (egno_md.forecast.chain.Chained)"
            )
        upper = np.searchsorted(steps, times).clip(1)  # (T,) among the steps with 0
        weight = (times - steps[upper - 1]) / (steps[upper] - steps[upper - 1])
        full = np.pad(covariance, (1, 0))
        before, after, both = full[upper - 1, upper - 1], full[upper, upper], full[upper - 1, upper]
        line = (1 - weight) ** 2 * before + 2 * weight * (1 - weight) * both + weight**2 * after
        wanted = (1 - weight) * before + weight * after
        return cls(upper, weight, np.sqrt(np.divide(wanted, line, out=np.ones_like(line), where=line > 0)))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values (..., K, D) at the known steps, 0 at step 0, at these times (..., T, D)."""
        values = np.concatenate([np.zeros_like(values[..., :1, :]), values], axis=-2)
        low, high = values[..., self.upper - 1, :], values[..., self.upper, :]
        return low + self.weight[:, None] * (high - low)


@dataclass(frozen=True, eq=False)
class Noise:
    """A Gaussian of paths (T, D): a sample covariance of them, shrunk towards one that is a product of time and space.

    With B (:attr:`rows`), L (:attr:`time`), S (:attr:`space`), d (:attr:`single`) and P the projector that leaves out
    :attr:`outside`, the covariance of the path is ``B^T B + (L L^T) x (S^T S + P d^2 P)``. The space of the product is
    shrunk towards its diagonal in the same way.
    """

    rows: NDArray[np.float64]
    """(R, T * D)"""
    time: NDArray[np.float64]
    """(T, T), lower triangle."""
    space: NDArray[np.float64]
    """(A, D)"""
    single: NDArray[np.float64]
    """(D,)"""
    outside: NDArray[np.float64]
    """(D, Q), orthonormal: directions that the paths do not have."""
    share: float
    """Share of the product in the whole."""

    @classmethod
    def fit(cls, residuals: np.ndarray, outside: np.ndarray | None = None) -> Noise:
        """From residuals (M, T, D) of mean 0, in order of time.

        A sample covariance is shrunk by its expected squared error over its squared distance from the target (Ledoit
        and Wolf 2004, equation 14), both where the target is the unit matrix. The error is that between blocks of
        windows: neighbours share frames, and a count of them says nothing.
        """
        m, n_times, n_space = residuals.shape
        outside = np.zeros((n_space, 0)) if outside is None else outside
        inner = max(1, n_space - outside.shape[1])  # a single atom has no direction that is left
        across = np.einsum("mtd,msd->ts", residuals, residuals, optimize=True) / (m * n_space)  # (T, T)
        time = np.linalg.cholesky(across + (1e-9 * np.trace(across) + 1e-30) * np.eye(n_times))
        scaled = np.linalg.solve(time, residuals)  # (M, T, D), free of time
        flat = scaled.reshape(m * n_times, n_space)
        flat = flat[:: -(-len(flat) * n_space // FITTED_NUMBERS)]
        space = _factor(flat)  # (A, D)
        variance = np.sum(space**2, axis=0) + 1e-30  # (D,)
        own = _share(flat / np.sqrt(variance), n_space)
        space = np.sqrt(1 - own) * space
        single = np.sqrt(own * variance * n_space / inner)
        if n_space <= WHITENED:
            inside = np.linalg.cholesky(space.T @ space + np.diag(single**2 + 1e-6 * variance))  # (D, D)
            scaled = solve_triangular(inside, scaled.reshape(-1, n_space).T, lower=True).T
        else:
            scaled = scaled / np.sqrt(variance)
        share = _share(scaled.reshape(m, -1), n_times * inner)
        rows = np.sqrt(1 - share) * _factor(residuals.reshape(m, -1))  # (R, T * D)
        return cls(rows, np.sqrt(share) * time, space, single, outside, share)

    @property
    def n_numbers(self) -> int:
        """Random numbers of one path."""
        return len(self.rows) + len(self.time) * (len(self.space) + len(self.single))

    @property
    def across(self) -> NDArray[np.float64]:
        """Covariance over time (T, T), the mean over space."""
        rows = self.rows.reshape(len(self.rows), len(self.time), -1)
        space = np.mean(np.sum(self.space**2, axis=0) + self.single**2)
        return np.einsum("rtd,rsd->ts", rows, rows) / rows.shape[-1] + self.time @ self.time.T * space

    def paths(self, numbers: np.ndarray) -> np.ndarray:
        """Paths (C, T, D) from standard normal numbers (C, n_numbers)."""
        n_times, n_rows, n_space = len(self.time), len(self.rows), len(self.single)
        first = numbers[:, :n_rows] @ self.rows  # (C, T * D)
        rest = numbers[:, n_rows:].reshape(len(numbers), n_times, -1)  # (C, T, A + D)
        single = rest[..., -n_space:] * self.single  # (C, T, D)
        single = single - single @ self.outside @ self.outside.T
        in_space = rest[..., :-n_space] @ self.space + single  # (C, T, D)
        return first.reshape(in_space.shape) + self.time @ in_space

    def towards(self, ends: np.ndarray) -> NDArray[np.float64]:
        """What is to be expected of paths (C, T, D) that end there (C, D): their regression on the last step."""
        rows = self.rows.reshape(len(self.rows), len(self.time), -1)  # (R, T, D)
        last, time = rows[:, -1], self.time @ self.time[-1]  # (R, D), (T,)
        factor, middle = self._last
        weights = cho_solve((factor, True), ends.T).T  # (C, D)
        along = np.einsum("cr,rtd->ctd", weights @ last.T, rows, optimize=True)
        return along + time[:, None] * (weights @ middle)[:, None]

    @functools.cached_property
    def _last(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower triangle of the covariance of the last step (D, D), and that of the product's space (D, D)."""
        inside = np.eye(len(self.single)) - self.outside @ self.outside.T
        middle = self.space.T @ self.space + inside @ (self.single[:, None] ** 2 * inside)
        last = self.rows.reshape(len(self.rows), len(self.time), -1)[:, -1]  # (R, D)
        whole = last.T @ last + (self.time[-1] @ self.time[-1]) * middle
        whole += (1e-6 * np.trace(whole) / len(whole) + 1e-30) * np.eye(len(whole))
        return np.linalg.cholesky(whole), middle


def _factor(rows: np.ndarray) -> np.ndarray:
    """At most D rows whose products are the mean product of some rows (M, D)."""
    m, d = rows.shape
    if m <= d:
        return rows / np.sqrt(m)
    products = rows.T @ rows / m
    return np.linalg.cholesky(products + (1e-9 * np.trace(products) / d + 1e-30) * np.eye(d)).T


def _share(rows: np.ndarray, rank: int) -> float:
    """How far the sample covariance of rows (M, D) is shrunk towards a unit matrix of this rank, 0 to 1."""

    def size(some: np.ndarray) -> float:
        products = some @ some.T if len(some) <= some.shape[1] else some.T @ some
        return float(np.sum(products**2)) / len(some) ** 2

    blocks = np.array_split(rows, min(BLOCKS, len(rows)))
    whole = size(rows)
    wrong = max(0.0, np.mean([size(block) for block in blocks]) - whole) / max(1, len(blocks) - 1)
    distance = whole - 2 * float(np.mean(np.sum(rows**2, axis=1))) + rank
    return 1.0 if distance <= wrong else wrong / distance


def unseen_folds(m: int, gap: int) -> list[tuple[slice, np.ndarray]]:
    """Folds of m windows in order of time, each with the windows that are used for it: those further away than `gap`.

    Where that leaves fewer than ten for one of them there are no folds.
    """
    place, borders = np.arange(m), np.linspace(0, m, FOLDS + 1).astype(int)
    folds = [slice(low, high) for low, high in zip(borders[:-1], borders[1:], strict=True)]
    seen = [(place < fold.start - gap) | (place >= fold.stop + gap) for fold in folds]
    return list(zip(folds, seen, strict=True)) if min(one.sum() for one in seen) >= FEWEST_WINDOWS else []


class Local(NamedTuple):
    """What every atom does by itself, linear in its features: ``base + sum of weight * feature``.

    `base` is (T, N, 3), `weight` (N, 3, T), with one number for x, y and z.
    """

    base: np.ndarray
    weight: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, moves: np.ndarray, pulled: bool) -> Local:
        """By least squares from features (M, 3, N, 3) and displacements (M, T, N, 3).

        Without being `pulled` towards the mean structure, nothing of it is used: the first feature, and the base.
        """
        centre, middle = features.mean(axis=0), moves.mean(axis=0)  # (3, N, 3), (T, N, 3)
        if pulled:
            features, moves = features - centre, moves - middle
        else:
            features = features * np.array([0.0, 1.0, 1.0])[:, None, None]
            centre, middle = np.zeros_like(centre), np.zeros_like(middle)
        products = np.einsum("mgnx,mhnx->ngh", features, features, optimize=True)
        products += (1e-9 * np.trace(products, axis1=1, axis2=2)[:, None, None] + 1e-12) * np.eye(3)
        weight = np.linalg.solve(products, np.einsum("mgnx,mtnx->ngt", features, moves, optimize=True))  # (N, 3, T)
        return cls(middle - np.einsum("ngt,gnx->tnx", weight, centre), weight)

    @classmethod
    def chosen(cls, features: np.ndarray, moves: np.ndarray, gap: int) -> tuple[Local, np.ndarray]:
        """Pulled or not at every step, whatever errs less in unseen folds; and what is left there (M, T, N, 3).

        Without folds nothing is pulled, and what is left is that of the windows that it was fitted to.
        """
        folds = unseen_folds(len(moves), gap)
        if not folds:
            one = cls.fit(features, moves, False)
            return one, moves - one(features)
        both = [cls.fit(features, moves, pulled) for pulled in (False, True)]
        left = [moves - one(features) for one in both]
        for fold, seen in folds:
            for rest, pulled in zip(left, (False, True), strict=True):
                rest[fold] = moves[fold] - cls.fit(features[seen], moves[seen], pulled)(features[fold])
        errors = np.array([np.sum(rest**2, axis=(0, 2, 3)) for rest in left])  # (2, T)
        pulled = errors[1] < errors[0]  # (T,)
        base = np.where(pulled[:, None, None], both[1].base, both[0].base)
        return (
            cls(base, np.where(pulled, both[1].weight, both[0].weight)),
            np.where(pulled[:, None, None], left[1], left[0]),
        )

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Displacements (S, T, N, 3)."""
        return self.base + np.einsum("ngt,sgnx->stnx", self.weight, features, optimize=True)


def ridge(inputs: np.ndarray, residual: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ridge regression of residuals (M, T, D) on inputs (M, P), with the penalty that errs least on unseen folds.

    The penalty is chosen for every step by itself, and may be infinite. Windows within `gap` of a fold are not used for
    it.

    Returns
    -------
    basis : ndarray, shape (P, R)
    response : ndarray, shape (R, T, D)
    left : ndarray, shape (M, T, D)
        What is left of each window by the regression that has not seen it.
    """
    m, n_times, n_space = residual.shape
    flat = residual.reshape(m, -1)
    folds = []
    for fold, seen in unseen_folds(m, gap):
        basis, strength, products = _directions(inputs[seen], flat[seen])
        folds.append((fold, inputs[fold] @ basis, strength, products))
    if not folds:
        return np.zeros((inputs.shape[1], 0)), np.zeros((0, n_times, n_space)), residual
    errors = np.zeros((len(PENALTIES) + 1, n_times))
    for fold, scores, strength, products in folds:
        true = residual[fold]
        errors[-1] += np.sum(true**2, axis=(0, 2))
        for k, penalty in enumerate(PENALTIES):
            found = (scores / (strength + penalty * strength.sum())) @ products
            errors[k] += np.sum((true - found.reshape(true.shape)) ** 2, axis=(0, 2))
    best = np.argmin(errors, axis=0)  # (T,)
    penalties = np.array([*PENALTIES, np.inf])[best]  # (T,)
    left = np.empty_like(residual)
    for fold, scores, strength, products in folds:
        found = np.einsum("mr,rtd->mtd", scores, _shrunk(strength, products, penalties, n_space), optimize=True)
        left[fold] = residual[fold] - found
    if not np.isfinite(penalties).any():
        return np.zeros((inputs.shape[1], 0)), np.zeros((0, n_times, n_space)), left
    basis, strength, products = _directions(inputs, flat)
    return basis, _shrunk(strength, products, penalties, n_space), left


def _directions(inputs: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading directions (P, R) of inputs (M, P), their strength (R,), and products (R, Q) with targets (M, Q)."""
    m, p = inputs.shape
    n = min(m, p)
    products = inputs.T @ inputs if p <= m else inputs @ inputs.T
    strength, vectors = eigh(products, subset_by_index=[max(0, n - DIRECTIONS), n - 1])
    there = strength > 1e-10 * max(strength[-1], 1e-300)
    strength, vectors = strength[there], vectors[:, there]
    basis = vectors if p <= m else inputs.T @ vectors / np.sqrt(strength)  # (P, R)
    return basis, strength, basis.T @ (inputs.T @ flat) if p <= m else (inputs @ basis).T @ flat


def _shrunk(strength: np.ndarray, products: np.ndarray, penalties: np.ndarray, n_space: int) -> np.ndarray:
    """Responses (R, T, D) of ridge regressions with one penalty for each step (T,)."""
    weight = 1 / (strength[:, None] + penalties * strength.sum())  # (R, T)
    return products.reshape(len(strength), len(penalties), n_space) * weight[..., None]
