"""Mean reversion of long chains: what windows spread, the next ones give back, so that a chain stays where the run was.

A forecast of one window need not know the structure that a molecule comes back to: over so short a time, standing still
errs as little. In a chain of hundreds of windows the spread of each adds to that of those before, as in a random walk,
and the molecule drifts out of all that the run has shown. Along each principal direction of the run the chain is
therefore an autoregression: with the response rho of W windows to where they began, the variance s of what they draw
beside it, and the variance v of the run, a chain keeps the variance v if where it began counts sqrt(1 - s / v) after W
windows, and not rho. What is less is taken off each window, in equal parts of its time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..molecule.geometry import aligned, superposition
from .forecasters import Forecaster, Known
from .rolling import REVERTING, Chained, Restored
from .streams import Streams

#: Frames of the run that its directions are taken from, and the smallest variance of one as a share of the largest.
FRAMES, SMALLEST = 500, 1e-6

#: Chains that are drawn, at least and at most; atoms of all of them.
FEWEST_CHAINS, CHAINS, CHAIN_ATOMS = 20, 48, 20_000

#: Directions count as those in which chains vary more than the run by so many standard errors; fewer are chance.
BEYOND_CHANCE, FEW = 2.0, 0.1

#: What is left of a start that would not count at all, and the least response: their ratio is that of two numbers of
#: which neither is known better.
LEAST = 0.02


@dataclass(frozen=True, eq=False)
class MeanReversion:
    """How much of the displacement from the mean structure a window keeps, so that chains vary as the run does.

    Attributes
    ----------
    mean : ndarray, shape (N, 3)
        Mean structure of the run about the origin in Angstrom.
    directions : ndarray, shape (R, 3 * N)
        Principal directions of the run, orthonormal. Displacements in none of them are not kept at all.
    kept : ndarray, shape (R,)
        Factor of the displacement at the start of a window, at its end: 1 where nothing is to be given back.
    low, high : ndarray, shape (R,)
        How far the run goes along each direction in Angstrom: no window ends further out than what it draws.
    """

    mean: NDArray[np.float64]
    directions: NDArray[np.float64]
    kept: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def fit(cls, forecaster: Forecaster, known: Known, times: ArrayLike, n_past: int) -> MeanReversion | None:
        """From short chains that are drawn from frames of the known runs.

        Parameters
        ----------
        forecaster : Forecaster
            Of one window; it draws.
        known : Known
        times : array_like, shape (T,)
            Strides after its start that each window predicts.
        n_past : int
            Frames up to a start that it is given.

        Returns
        -------
        MeanReversion or None
            None where chains vary no more than the run, as those of analogues do, and of runs that are shorter than
            these chains or have fewer than 20 frames to begin at.
        """
        every, length = known.every, REVERTING * len(np.asarray(times))
        starts = [(k, f) for k, x in enumerate(known.segments) for f in range((n_past - 1) * every, len(x))]
        total = sum(map(len, known.segments))
        if len(starts) < FEWEST_CHAINS or total < REVERTING * np.max(times) * every:
            return None
        mean = known.motion.mean
        thin = -(-total // FRAMES)
        frames = np.concatenate([_displaced(np.asarray(x[::thin], np.float64), mean) for x in known.segments])
        _, size, directions = np.linalg.svd(frames, full_matrices=False)
        variance = size**2 / len(frames)
        there = variance > SMALLEST * variance[0]
        directions, variance = directions[there], variance[there]
        along = frames @ directions.T  # (F, R)

        count = int(np.clip(CHAIN_ATOMS // len(mean), FEWEST_CHAINS, CHAINS))
        chosen = np.unique(np.linspace(0, len(starts) - 1, count).astype(int))
        places = [starts[k] for k in chosen[: len(chosen) // 2 * 2]]
        before = np.arange(1 - n_past, 1) * every
        past = np.stack([np.asarray(known.segments[k])[f + before] for k, f in places]).astype(np.float64)
        if isinstance(forecaster, Restored):
            forecaster = forecaster.inner
        streams = Streams.of(0, np.tile(np.arange(len(past) // 2), 2), 1)
        chains = Chained(forecaster, times).collect(past, length, 1, streams)[:, 0, -1]  # (2 C, N, 3)
        first, last = (
            (_displaced(x.astype(np.float64), mean) @ directions.T).reshape(2, len(past) // 2, -1)  # (2, C, R)
            for x in (past[:, -1], chains)
        )
        # Two chains of the same random numbers differ by where they began alone.
        began, ended = first[1] - first[0], last[1] - last[0]  # (C, R)
        spread = np.maximum(np.sum(began**2, axis=0), 1e-30)
        response = np.sum(began * ended, axis=0) / spread
        drawn = np.mean((last - response * first) ** 2, axis=(0, 1)) / variance
        grown = response**2 + drawn - 1  # in variances of the run
        unsure = 2 * response * np.sqrt(np.mean((ended - response * began) ** 2, axis=0) / spread)
        chance = np.hypot(unsure, drawn * np.sqrt(2 / len(began)))
        if np.sum(grown > BEYOND_CHANCE * chance) <= FEW * len(directions):
            return None
        wanted = np.sqrt(np.clip(1 - drawn, LEAST**2, None))
        kept = np.minimum(wanted / np.maximum(response, LEAST), 1.0) ** (1 / REVERTING)
        return cls(mean, directions, kept, along.min(axis=0), along.max(axis=0))

    def __call__(self, frames: np.ndarray, start: np.ndarray, times: ArrayLike) -> NDArray[np.float64]:
        """Frames (S, K, T, N, 3) that followed starts (S, K, N, 3), with what they give back taken off."""
        part = np.asarray(times, float) / np.max(times)  # (T,)
        shape = start - start.mean(axis=-2, keepdims=True)
        displaced = (shape @ superposition(shape, self.mean)[0] - self.mean).reshape(*start.shape[:2], -1)
        along = displaced @ self.directions.T  # (S, K, R)
        outside = displaced - along @ self.directions  # (S, K, 3 N)
        end = self.kept * along
        beyond = end - np.clip(end, self.low, self.high)  # (S, K, R)
        back = (1 - self.kept ** part[:, None]) * along[:, :, None] + part[:, None] * beyond[:, :, None]  # (S, K, T, R)
        off = back @ self.directions + part[:, None] * outside[:, :, None]  # (S, K, T, 3 N)
        turn = superposition(frames, self.mean)[0]  # (S, K, T, 3, 3); molecules turn within a window
        return frames - off.reshape(frames.shape) @ np.swapaxes(turn, -1, -2)


def _displaced(frames: np.ndarray, mean: np.ndarray) -> NDArray[np.float64]:
    """Displacements (F, 3 N) of frames (F, N, 3) from the mean structure, superposed on it."""
    return (aligned(frames, mean) - mean).reshape(len(frames), -1)
