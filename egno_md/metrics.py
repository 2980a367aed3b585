"""Errors as the paper defines them, the baselines that a user has for nothing, and how certain all of it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import interp1d

from .errors import DataError, UsageError

#: Frames that a mean structure and its memory are estimated from, at most.
MOTION_FRAMES = 5000
_CHUNK = 256  # frames worked on at a time


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


# ----------------------------------------------------------------------------------------------------------- baselines


def static(start: np.ndarray, steps: ArrayLike) -> np.ndarray:
    """Baseline: the start frame (S, N, 3) stands still at all T `steps`; ``(S, T, N, 3)``."""
    return np.repeat(start[:, None], len(np.asarray(steps)), axis=1)  # (S, T, N, 3)


def linear(start: np.ndarray, velocity: np.ndarray, steps: ArrayLike) -> np.ndarray:
    """Baseline: every atom keeps its velocity (Angstrom per stride) for `steps` (T,) strides; ``(S, T, N, 3)``."""
    ahead = np.asarray(steps, dtype=start.dtype)[:, None, None]  # (T, 1, 1)
    return start[:, None] + velocity[:, None] * ahead  # (S, T, N, 3)


def superposition(mobile: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The rotation that brings `mobile` (..., N, 3) onto `target` (N, 3) best, all atoms of one weight (Kabsch).

    Returns
    -------
    rotation : ndarray, shape (..., 3, 3)
        Proper; ``(mobile - centre) @ rotation`` is nearest to ``target - target.mean(0)``.
    centre : ndarray, shape (..., 1, 3)
    """
    mobile, target = np.asarray(mobile, np.float64), np.asarray(target, np.float64)
    centre = mobile.mean(axis=-2, keepdims=True)  # (..., 1, 3)
    covariance = np.swapaxes(mobile - centre, -1, -2) @ (target - target.mean(axis=0))  # (..., 3, 3)
    left, _, right = np.linalg.svd(covariance)
    # Without this a mirror image could be superposed perfectly.
    left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]
    return left @ right, centre


def aligned(mobile: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """`mobile` (..., N, 3) superposed on `target` (N, 3), about the origin."""
    rotation, centre = superposition(mobile, target)
    return (np.asarray(mobile, np.float64) - centre) @ rotation  # (..., N, 3)


@dataclass(frozen=True)
class InternalMotion:
    """What a run says about its own future once overall translation and rotation are taken off.

    Attributes
    ----------
    mean : ndarray, shape (N, 3)
        Mean structure about the origin in Angstrom.
    decay : ndarray, shape (N,)
        AR(1) coefficient of every atom: the least squares factor from its displacement (from the mean structure, in
        the aligned frame) to the one a stride later.
    """

    mean: NDArray[np.float64]
    decay: NDArray[np.float64]

    @classmethod
    def fit(cls, segments: Sequence[np.ndarray], every: int = 1) -> InternalMotion:
        """From runs without a gap.

        Parameters
        ----------
        segments : sequence of ndarray, shape (F, N, 3)
            Angstrom; molecules whole. Of more than 5000 frames in all, evenly spread ones are used.
        every : int
            Frames per stride.

        Raises
        ------
        DataError
            No segment is longer than a stride.
        """
        pairs = [(k, f) for k, x in enumerate(segments) for f in range(len(x) - every)]
        if not pairs:
            longest = max((len(x) for x in segments), default=0)
            raise DataError(
                f"the mean structure and its memory need a run longer than a stride of {every} frame(s); the longest "
                f"found has {longest}"
            )
        pairs = pairs[:: -(-len(pairs) // MOTION_FRAMES)]
        mean = np.asarray(segments[pairs[0][0]][pairs[0][1]], np.float64)  # (N, 3)
        mean = mean - mean.mean(axis=0)
        for _ in range(3):  # the mean of frames aligned to the mean; converges at once for a folded molecule
            total = np.zeros_like(mean)
            for frames in _chunks(segments, pairs, 0):
                total += aligned(frames, mean).sum(axis=0)
            mean = total / len(pairs)
        products = np.zeros((2, len(mean)))
        for now, later in zip(_chunks(segments, pairs, 0), _chunks(segments, pairs, every), strict=True):
            here, there = (aligned(frames, mean) - mean for frames in (now, later))  # (C, N, 3)
            products += [np.sum(here * there, axis=(0, 2)), np.sum(here * here, axis=(0, 2))]
        decay = np.divide(products[0], products[1], out=np.zeros(len(mean)), where=products[1] > 0)
        return cls(mean, np.clip(decay, -1.0, 1.0))

    def relax(self, start: np.ndarray, steps: ArrayLike, decay: ArrayLike | None = None) -> NDArray[np.float64]:
        """Baseline AR(1): displacements from the mean structure decay, ``mean + decay**k (start - mean)``.

        Parameters
        ----------
        start : ndarray, shape (S, N, 3)
            Angstrom, anywhere in space; the mean structure is superposed on each.
        steps : array_like, shape (T,)
            Strides ahead.
        decay : float or array_like, shape (N,), optional
            In place of the fitted one; 0 gives the mean structure itself.

        Returns
        -------
        ndarray, shape (S, T, N, 3)
        """
        rotation, centre = superposition(start, self.mean)
        displaced = (start - centre) @ rotation - self.mean  # (S, N, 3)
        decay = np.broadcast_to(self.decay if decay is None else decay, len(self.mean))
        factor = decay ** np.asarray(steps)[:, None]  # (T, N)
        path = self.mean + factor[None, :, :, None] * displaced[:, None]  # (S, T, N, 3)
        return path @ np.swapaxes(rotation, -1, -2)[:, None] + centre[:, None]  # (S, T, N, 3)


@dataclass(frozen=True)
class PathRegression:
    """The best forecast of every atom by itself that is linear in its start: what an operator can begin with.

    In the frame in which the start is superposed on the mean structure, with d0 the displacement from it and v0 the
    velocity::

        y_i(k) = offset_i(k) + position_i(k) d0_i + velocity_i(k) v0_i

    with one number each for x, y and z (`offset`: three), fitted by least squares at every step k. The standing start
    frame, straight flight and the mean structure are special cases.

    Attributes
    ----------
    mean : ndarray, shape (N, 3)
        Mean structure about the origin in Angstrom.
    steps : ndarray, shape (K,)
        Strides ahead, from 0, where the path begins at the start.
    offset : ndarray, shape (K, N, 3)
        Angstrom.
    position, velocity : ndarray, shape (K, N)
    """

    mean: NDArray[np.float64]
    steps: NDArray[np.float64]
    offset: NDArray[np.float64]
    position: NDArray[np.float64]
    velocity: NDArray[np.float64]

    @classmethod
    def fit(
        cls, segments: Sequence[np.ndarray], mean: NDArray[np.floating], steps: ArrayLike, every: int = 1
    ) -> PathRegression:
        """From runs without a gap.

        Parameters
        ----------
        segments : sequence of ndarray, shape (F, N, 3)
            Angstrom; molecules whole. Of more than 5000 windows in all, evenly spread ones are used.
        mean : ndarray, shape (N, 3)
            Mean structure about the origin.
        steps : array_like of int, shape (T,)
            Strides ahead that are fitted, above 0.
        every : int
            Frames per stride.

        Raises
        ------
        DataError
            No segment holds a window.
        """
        steps = np.asarray(steps, int)
        ahead = int(steps.max()) * every
        starts = [(k, f) for k, x in enumerate(segments) for f in range(every, len(x) - ahead)]
        if not starts:
            raise DataError(
                f"a regression of the path needs a run of more than {every + ahead} frames; the longest found has "
                f"{max((len(x) for x in segments), default=0)}"
            )
        starts = starts[:: -(-len(starts) // MOTION_FRAMES)]
        n_atoms, n_steps, shape = len(mean), len(steps), (len(steps), len(mean), 3)
        sums = [np.zeros((n_atoms, 3)), np.zeros((n_atoms, 3)), np.zeros(shape)]  # of d0, v0 and y
        products = np.zeros((3, n_atoms))  # d0 d0, d0 v0, v0 v0
        with_y = np.zeros((2, n_steps, n_atoms))  # d0 y, v0 y
        for begin in range(0, len(starts), _CHUNK):
            some = starts[begin : begin + _CHUNK]
            frames = np.stack([np.asarray(segments[k])[f + np.r_[-every, 0, steps * every]] for k, f in some]).astype(
                np.float64
            )  # (C, T + 2, N, 3)
            rotation, centre = superposition(frames[:, 1], mean)
            frames = (frames - centre[:, None]) @ rotation[:, None]
            d, v = frames[:, 1] - mean, frames[:, 1] - frames[:, 0]  # (C, N, 3)
            y = frames[:, 2:] - mean  # (C, T, N, 3); small numbers keep their digits
            for total, part in zip(sums, (d, v, y), strict=True):
                total += part.sum(axis=0)
            products += [np.sum(a * b, axis=(0, 2)) for a, b in ((d, d), (d, v), (v, v))]
            with_y += [np.einsum("cnx,ctnx->tn", a, y) for a in (d, v)]
        mean_d, mean_v, mean_y = (total / len(starts) for total in sums)
        products -= len(starts) * np.stack([np.sum(a * b, axis=1) for a, b in
                                            ((mean_d, mean_d), (mean_d, mean_v), (mean_v, mean_v))])  # fmt: skip
        with_y -= len(starts) * np.stack([np.sum(a * mean_y, axis=2) for a in (mean_d, mean_v)])
        dd, dv, vv = products  # (N,)
        determinant = np.maximum(dd * vv - dv**2, 1e-12 * np.maximum(dd * vv, 1e-30))
        position = (vv * with_y[0] - dv * with_y[1]) / determinant  # (T, N)
        velocity = (dd * with_y[1] - dv * with_y[0]) / determinant  # (T, N)
        offset = mean + mean_y - position[..., None] * mean_d - velocity[..., None] * mean_v  # (T, N, 3)
        return cls(
            np.asarray(mean, np.float64),
            np.concatenate([[0.0], steps]),
            np.concatenate([mean[None], offset]),
            np.concatenate([np.ones((1, n_atoms)), position]),
            np.concatenate([np.zeros((1, n_atoms)), velocity]),
        )

    def path(self, start: np.ndarray, velocity: np.ndarray, times: ArrayLike) -> NDArray[np.float64]:
        """The forecast from some starts, between the fitted steps by straight lines.

        Parameters
        ----------
        start, velocity : ndarray, shape (S, N, 3)
            Angstrom, anywhere in space, and Angstrom per stride.
        times : array_like, shape (T,)
            Strides ahead.

        Returns
        -------
        ndarray, shape (S, T, N, 3)
        """
        offset, by_d, by_v = (
            interp1d(self.steps, values, axis=0, fill_value="extrapolate")(np.asarray(times, float))
            for values in (self.offset, self.position, self.velocity)
        )  # (T, N, 3), (T, N), (T, N)
        rotation, centre = superposition(start, self.mean)
        displaced, moving = (start - centre) @ rotation - self.mean, velocity @ rotation  # (S, N, 3)
        path = offset + by_d[..., None] * displaced[:, None] + by_v[..., None] * moving[:, None]  # (S, T, N, 3)
        return path @ np.swapaxes(rotation, -1, -2)[:, None] + centre[:, None]


def _chunks(segments: Sequence[np.ndarray], pairs: list[tuple[int, int]], offset: int) -> Iterator[np.ndarray]:
    """The frames of `pairs` (segment, frame), moved on by `offset`, some at a time (C, N, 3)."""
    for first in range(0, len(pairs), _CHUNK):
        yield np.stack([segments[k][f + offset] for k, f in pairs[first : first + _CHUNK]])


def baselines(
    start: np.ndarray, velocity: np.ndarray, steps: ArrayLike, motion: InternalMotion
) -> dict[str, np.ndarray]:
    """All that a user has for nothing, each (S, T, N, 3).

    Parameters
    ----------
    start, velocity : ndarray, shape (S, N, 3)
        Angstrom, Angstrom per stride.
    steps : array_like, shape (T,)
        Strides ahead.
    motion : InternalMotion
        Of other frames than those that are predicted.
    """
    return {
        "static": static(start, steps),
        "linear": linear(start, velocity, steps),
        "mean structure": motion.relax(start, steps, decay=0.0),
        "AR(1)": motion.relax(start, steps),
    }


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


# ----------------------------------------------------------------------------------------------- memory and certainty


def autocorrelation(series: ArrayLike, max_lag: int | None = None) -> NDArray[np.float64]:
    """``C(k) = <x(t) . x(t + k)> / <x . x>``; every lag is averaged over the pairs that it has.

    Parameters
    ----------
    series : array_like, shape (F,) or (F, ...)
        Deviations from what is the mean; further axes are summed over in the product.
    max_lag : int, optional
        Half of the frames when None.

    Returns
    -------
    ndarray, shape (max_lag + 1,)
        1 at lag 0; all ones for a series that is zero.
    """
    x = np.asarray(series, np.float64)
    n_frames = len(x)
    x = x.reshape(n_frames, -1)  # (F, D)
    max_lag = n_frames // 2 if max_lag is None else min(max_lag, n_frames - 1)
    size = 1 << (2 * n_frames - 1).bit_length()  # padded: no wrap around
    total = np.zeros(max_lag + 1)
    for first in range(0, x.shape[1], 64):
        spectrum = np.abs(np.fft.rfft(x[:, first : first + 64], size, axis=0)) ** 2
        total += np.fft.irfft(spectrum.sum(axis=1), size)[: max_lag + 1]
    total /= n_frames - np.arange(max_lag + 1)
    return total / total[0] if total[0] > 0 else np.ones(max_lag + 1)


def relaxation_time(correlation: np.ndarray, level: float = np.exp(-1)) -> float:
    """First lag, between two by a straight line, at which a correlation falls to `level`; nan if it does not."""
    below = np.flatnonzero(np.asarray(correlation) <= level)
    if not len(below):
        return float("nan")
    k = int(below[0])
    if k == 0:
        return 0.0
    before, after = correlation[k - 1], correlation[k]
    return float(k - 1 + (before - level) / (before - after))


def integrated_time(groups: Sequence[np.ndarray]) -> float:
    """``1 + 2 sum C(k)`` up to the first negative one: how many values of a series say as much as one that is free.

    Parameters
    ----------
    groups : sequence of ndarray, shape (S,)
        Parts of one series, in order; correlations do not reach from one to the other.
    """
    groups = [np.asarray(g, float) for g in groups if len(g) > 1]
    if not groups:
        return 1.0
    mean = np.concatenate(groups).mean()
    longest = max(len(g) for g in groups)
    products, counts = np.zeros(longest), np.zeros(longest)
    for g in groups:
        d, n = g - mean, len(g)
        size = 1 << (2 * n - 1).bit_length()
        products[:n] += np.fft.irfft(np.abs(np.fft.rfft(d, size)) ** 2, size)[:n]
        counts[:n] += n - np.arange(n)
    correlation = products / np.maximum(counts, 1)
    if correlation[0] <= 0:
        return 1.0
    correlation = correlation / correlation[0]
    negative = np.flatnonzero(correlation[: longest // 2 + 1] < 0)
    stop = int(negative[0]) if len(negative) else longest // 2 + 1
    return float(1 + 2 * correlation[1:stop].sum())


def block_bootstrap(
    values: ArrayLike, groups: ArrayLike, length: int, *, resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Means of values that are correlated, resampled in blocks (circular block bootstrap, Politis and Romano 1992).

    Parameters
    ----------
    values : array_like, shape (S, ...)
        In the order of time within each group.
    groups : array_like, shape (S,)
        Which run a value is from, in order (all of one run together); blocks wrap around within their run.
    length : int
        Values per block; a shorter run is one block.
    resamples : int
    seed : int

    Returns
    -------
    ndarray, shape (resamples, ...)
    """
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    if length < 1 or not len(values):
        raise UsageError(f"blocks need a length of at least 1 and values; found {length} and {len(values)} values")
    sums, sizes = [], []
    borders = np.flatnonzero(np.diff(groups)) + 1
    for part in np.split(values, borders):
        n = min(length, len(part))
        ring = np.concatenate([np.zeros_like(part[:1]), part, part[: n - 1]]).cumsum(axis=0)
        sums.append(ring[n:] - ring[:-n])  # of the block that starts at each value
        sizes.append(np.full(len(part), n))
    block_sums, block_sizes = np.concatenate(sums), np.concatenate(sizes)  # (S, ...), (S,)
    n_blocks = max(1, round(len(values) / block_sizes.mean()))
    rng = np.random.default_rng(seed)
    out = np.empty((resamples, *values.shape[1:]))
    for k in range(resamples):
        drawn = rng.integers(len(values), size=n_blocks)
        out[k] = block_sums[drawn].sum(axis=0) / block_sizes[drawn].sum()
    return out


def independent_blocks(groups: ArrayLike, length: int) -> int:
    """How many blocks of `length` values that do not overlap the runs hold; a shorter run is one."""
    _, counts = np.unique(np.asarray(groups), return_counts=True)
    return int(sum(max(1, n // length) for n in counts))


def jensen_shannon(first: ArrayLike, second: ArrayLike) -> float:
    """Divergence of two histograms in nats: 0 for the same shares, ln 2 = 0.693 for none in common."""
    p, q = (np.asarray(h, np.float64).ravel() / np.sum(h) for h in (first, second))
    middle = (p + q) / 2

    def relative(a: np.ndarray) -> float:
        there = a > 0
        return float(np.sum(a[there] * np.log(a[there] / middle[there])))

    return (relative(p) + relative(q)) / 2
