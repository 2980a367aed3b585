"""What a user has for nothing: forecasts that need no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import interp1d

from ..errors import DataError
from ..molecule.geometry import aligned, superposition

#: Frames that a mean structure and its memory are estimated from, at most.
MOTION_FRAMES = 5000

_CHUNK = 256  # frames worked on at a time


def static(start: np.ndarray, steps: ArrayLike) -> np.ndarray:
    """Baseline: the start frame (S, N, 3) stands still at all T `steps`; ``(S, T, N, 3)``."""
    return np.repeat(start[:, None], len(np.asarray(steps)), axis=1)  # (S, T, N, 3)


def linear(start: np.ndarray, velocity: np.ndarray, steps: ArrayLike) -> np.ndarray:
    """Baseline: every atom keeps its velocity (Angstrom per stride) for `steps` (T,) strides; ``(S, T, N, 3)``."""
    ahead = np.asarray(steps, dtype=start.dtype)[:, None, None]  # (T, 1, 1)
    return start[:, None] + velocity[:, None] * ahead  # (S, T, N, 3)


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
