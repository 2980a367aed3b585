"""Frames between saved ones: what a molecule may have done from one to the next, both ends known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.spatial.transform import Rotation

from ..molecule.geometry import aligned, superposition
from ..molecule.local import LocalGeometry
from .forecasters import InternalMotion

#: Frames on either side that a path looks at, lags that its memory is read from, and time constants that it is made of.
NEIGHBOURS, LAGS, CONSTANTS = 3, 24, 8

#: Time constant of what is forgotten from one saved frame to the next, in spacings. The frames do not tell it: this one
#: is slow enough to be watched.
FAST = 0.5

#: Pairs of frames that follow one another below which nothing is known of their memory.
FEWEST_PAIRS = 20

#: How far out of its bounds a frame is that the projection could not bring back (Angstrom), and by which shares it is
#: then begun again nearer to a saved one.
STUCK, NEARER = 0.01, (0.25, 0.5, 0.75, 1.0)

#: Frames that drawn paths are combinations of, at most; numbers worked on at a time.
DIRECTIONS, CHUNK_NUMBERS = 128, 2**21


@dataclass(frozen=True, eq=False)
class Memory:
    """Covariance of every atom with itself some spacings later, a sum of exponentials.

    ``c_i(lag) = sum over r of amounts[i, r] exp(-lag / constants[r])``, one number for x, y and z.

    Attributes
    ----------
    constants : ndarray, shape (R,)
        Time constants in spacings of the saved frames, the first of them not read off the frames (:data:`FAST`).
    amounts : ndarray, shape (N, R)
        Angstrom squared, 0 or more.
    """

    constants: NDArray[np.float64]
    amounts: NDArray[np.float64]

    @classmethod
    def fit(cls, segments: Sequence[np.ndarray], mean: NDArray[np.float64], fast: float) -> Memory | None:
        """From frames (F, N, 3) superposed on the mean structure (N, 3); None where there are too few."""
        lags = min(LAGS, max(map(len, segments)) - 1)
        total, pairs = np.zeros((lags + 1, len(mean))), np.zeros(lags + 1)
        block = max(4 * LAGS, CHUNK_NUMBERS // mean.size)
        for frames in segments:
            for first in range(0, len(frames), block):
                x = in_body(frames[first : first + block], mean)[0]  # (F, N, 3)
                for lag in range(min(lags + 1, len(x))):
                    total[lag] += np.einsum("fnx,fnx->n", x[: len(x) - lag], x[lag:]) / 3
                    pairs[lag] += len(x) - lag
        if lags < 1 or pairs[1] < FEWEST_PAIRS:
            return None
        constants = np.concatenate([[fast], np.geomspace(max(0.7, 1.5 * fast), 2.0 * max(lags, 2), CONSTANTS)])
        trust = np.sqrt(pairs / (1.0 + np.arange(lags + 1)))  # what lies near counts most
        basis = np.exp(-np.arange(lags + 1)[:, None] / constants) * trust[:, None]  # (L, R)
        values = total / pairs[:, None] * trust[:, None]  # (L, N)
        amounts = np.stack([nnls(basis, column)[0] for column in values.T])  # (N, R)
        amounts[:, 0] += np.maximum(total[0] / pairs[0] - amounts.sum(axis=1), 0.0) + 1e-9
        return cls(constants, amounts)

    def weights(self, known: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of known times (P,) in the conditional mean at others (J,), both in spacings; (N, J, P)."""

        def covariance(lag: np.ndarray) -> np.ndarray:
            decay = np.exp(-np.abs(lag) / self.constants[:, None, None])  # (R, ., P)
            return np.einsum("nr,rjp->njp", self.amounts, decay, optimize=True)

        among = covariance(known[:, None] - known)  # (N, P, P)
        among += 1e-9 * among[:, :1, :1] * np.eye(len(known))
        to = covariance(wanted[:, None] - known)  # (N, J, P)
        return np.swapaxes(np.linalg.solve(among, np.swapaxes(to, 1, 2)), 1, 2)


def in_body(
    frames: np.ndarray, mean: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Displacements (F, N, 3) of frames from the mean structure, their rotations (F, 3, 3) and centres (F, 1, 3)."""
    rotation, centre = superposition(frames, mean)
    return (np.asarray(frames, np.float64) - centre) @ rotation - mean, rotation, centre


@dataclass(frozen=True, eq=False)
class Bridge:
    """Paths between saved frames, conditioned on the frames on both sides.

    Rigid motion is apart: the molecule as a whole goes straight and turns evenly from frame to frame, which is the mean
    of diffusion between two known ends. The displacement of every atom from the mean structure is a Gaussian process
    whose covariance is that of the saved frames, carried on between their lags (:class:`Memory`); its mean, given the
    frames on both sides, is the path. Every frame is then brought to the local geometry of the run, so that bonds,
    rings and handedness stay. Of a run too short to know its memory the displacements go in straight lines.

    Attributes
    ----------
    factor : int
        Steps from one saved frame to the next.
    mean : ndarray, shape (N, 3)
    memory : Memory or None
    geometry : LocalGeometry
    directions : ndarray, shape (M, N, 3)
        Displacements that drawn paths are combinations of.
    diffusion : ndarray, shape (2,)
        Variance that a centre (Angstrom squared) and a rotation vector (rad squared) gain in a spacing, for x, y and z
        each.
    """

    factor: int
    mean: NDArray[np.float64]
    memory: Memory | None
    geometry: LocalGeometry
    directions: NDArray[np.float64]
    diffusion: NDArray[np.float64]

    @classmethod
    def fit(
        cls, segments: Sequence[np.ndarray], bonds: NDArray[np.integer], factor: int, *, fast: float = FAST
    ) -> Bridge:
        """To runs of saved frames.

        Parameters
        ----------
        segments : sequence of ndarray, shape (F, N, 3)
            Angstrom; evenly spaced without a gap, molecules whole; at least one of two frames.
        bonds : ndarray, shape (B, 2)
        factor : int
            Steps from one frame to the next.
        fast : float
            Time constant in spacings of what is forgotten from one saved frame to the next.

        Raises
        ------
        DataError
            No two frames follow one another.
        """
        mean = InternalMotion.fit(segments).mean
        places = [(k, f) for k, x in enumerate(segments) for f in range(len(x))]
        most = max(2, min(DIRECTIONS, 8 * CHUNK_NUMBERS // mean.size))
        chosen = places[:: -(-len(places) // most)]
        directions = in_body(np.stack([segments[k][f] for k, f in chosen]), mean)[0]  # (M, N, 3)
        pairs = [(k, f) for k, f in places if f + 1 < len(segments[k])]
        gained = np.zeros(2)
        pairs = pairs[:: -(-len(pairs) // 1000)]
        for k, f in pairs:
            _, rotation, centre = in_body(np.asarray(segments[k][f : f + 2]), mean)
            turn = Rotation.from_matrix(rotation[0] @ rotation[1].T).as_rotvec()
            gained += [np.mean((centre[1] - centre[0]) ** 2), np.mean(turn**2)]
        return cls(
            factor, mean, Memory.fit(segments, mean, fast), LocalGeometry.fit(segments, bonds), directions,
            gained / len(pairs),
        )  # fmt: skip

    def fill(self, frames: np.ndarray, generator: np.random.Generator | None = None) -> Iterator[np.ndarray]:
        """What lies between the frames of one run.

        Parameters
        ----------
        frames : ndarray, shape (F, N, 3)
            Angstrom; evenly spaced without a gap. Read some at a time.
        generator : numpy.random.Generator, optional
            What a path is drawn with; the mean path without it.

        Yields
        ------
        ndarray, shape (C, factor - 1, N, 3)
            For the intervals from each frame to the next, in order and some at a time.
        """
        count = len(frames) - 1
        noise = None if generator is None else _Noise(self, generator)
        size = max(1, CHUNK_NUMBERS // (4 * self.factor * self.mean.size))
        known: dict[tuple[int, int], np.ndarray] = {}
        for first in range(0, count, size):
            last = min(first + size, count)  # intervals first to last - 1
            begin, end = max(0, first - NEIGHBOURS + 1), min(len(frames), last + NEIGHBOURS)
            moved, rotation, centre = in_body(np.asarray(frames[begin:end]), self.mean)
            out = np.empty((last - first, self.factor - 1, *self.mean.shape))
            for i in range(first, last):
                low, high = max(0, i - NEIGHBOURS + 1), min(len(frames), i + 1 + NEIGHBOURS)
                here = moved[low - begin : high - begin]  # (P, N, 3)
                if noise is not None:
                    at_known, between = noise.around(i, low, high)
                    here = here - at_known
                if (i - low, high - i) not in known:
                    known[i - low, high - i] = self._weights(i - low, high - i)
                path = np.einsum("njp,pnx->jnx", known[i - low, high - i], here, optimize=True)  # (J, N, 3)
                if noise is not None:
                    path = path + between
                k = i - begin
                turn, move = self._rigid(rotation[k : k + 2], centre[k : k + 2], generator)
                out[i - first] = (self.mean + path) @ np.swapaxes(turn, 1, 2) + move
            yield self._held(out, np.asarray(frames[first : last + 1]))  # (C, J, N, 3)

    def _held(self, paths: np.ndarray, saved: np.ndarray) -> np.ndarray:
        """Paths (C, J, N, 3) between saved frames (C + 1, N, 3), brought to the local geometry of the run.

        A group halfway through a turn, such as a methyl group whose hydrogens meet, may have no way back: such a frame
        begins again nearer to the saved one that is next to it.
        """
        out = self.geometry.project(paths)
        for share in NEARER:
            stuck = np.argwhere(self.geometry.outside(out) > STUCK)  # (S, 2)
            if not len(stuck):
                break
            interval, step = stuck.T
            found = paths[interval, step]  # (S, N, 3)
            near = aligned(saved[interval + (step >= self.factor // 2)], found) + found.mean(axis=1, keepdims=True)
            out[interval, step] = self.geometry.project(found + share * (near - found))
        return out

    @property
    def _steps(self) -> NDArray[np.float64]:
        return np.arange(1, self.factor) / self.factor  # (J,)

    def _weights(self, before: int, after: int) -> NDArray[np.float64]:
        """Of the frames from `before` spacings earlier to `after` - 1 later, (N, J, P)."""
        known = np.arange(-before, after, dtype=float)  # (P,)
        if self.memory is not None:
            return self.memory.weights(known, self._steps)
        straight = np.maximum(0.0, 1 - np.abs(self._steps[:, None] - known))  # (J, P)
        return np.broadcast_to(straight, (len(self.mean), *straight.shape))

    def _rigid(
        self, rotation: np.ndarray, centre: np.ndarray, generator: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rotations (J, 3, 3) and centres (J, 1, 3) between two frames."""
        step = self._steps[:, None]  # (J, 1)
        turn = Rotation.from_matrix(rotation[0].T @ rotation[1]).as_rotvec()  # (3,)
        turns, moves = step * turn, centre[0] + step * (centre[1] - centre[0])  # (J, 3)
        if generator is not None:
            walk = np.cumsum(generator.standard_normal((self.factor, 2, 3)) / np.sqrt(self.factor), axis=0)
            walk = (walk[:-1] - step[..., None] * walk[-1]) * np.sqrt(self.diffusion)[:, None]  # (J, 2, 3)
            turns, moves = turns + walk[:, 1], moves + walk[:, 0]
        return rotation[0] @ Rotation.from_rotvec(turns).as_matrix(), moves[:, None]


class _Noise:
    """A path of the process as it is without known frames, step by step: combinations of the directions seen, each an
    Ornstein-Uhlenbeck process for each time constant.

    What a drawn path adds to the conditional mean is this path less its own conditional mean (Journel and Huijbregts
    1978, conditional simulation).
    """

    def __init__(self, bridge: Bridge, generator: np.random.Generator) -> None:
        memory = bridge.memory
        self.bridge, self.generator = bridge, generator
        variance = np.mean(bridge.directions**2, axis=(0, 2)) + 1e-12  # (N,)
        if memory is None:  # nothing is known of its memory: that of one spacing
            constants, amounts = np.ones(1), variance[:, None]
        else:
            constants, amounts = memory.constants, memory.amounts
        self.scale = np.sqrt(amounts / variance[:, None] / len(bridge.directions)).T  # (R, N)
        self.decay = np.exp(-1 / (bridge.factor * constants))[:, None]  # (R, 1)
        self.state = generator.standard_normal((len(constants), len(bridge.directions)))  # (R, M)
        self.frames = {0: self._frame()}  # by step; step factor * i is that of saved frame i
        self.step = 0

    def _frame(self) -> np.ndarray:
        directions = self.bridge.directions
        combined = (self.state @ directions.reshape(len(directions), -1)).reshape(-1, *directions.shape[1:])
        return np.einsum("rn,rnx->nx", self.scale, combined, optimize=True)  # (N, 3)

    def around(self, interval: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """At saved frames low to high - 1 (P, N, 3), and between frames `interval` and the next (J, N, 3)."""
        factor = self.bridge.factor
        while self.step < (high - 1) * factor:
            fresh = self.generator.standard_normal(self.state.shape)
            self.state = self.decay * self.state + np.sqrt(1 - self.decay**2) * fresh
            self.step += 1
            self.frames[self.step] = self._frame()
        for old in [step for step in self.frames if step < low * factor]:
            del self.frames[old]
        at_known = np.stack([self.frames[k * factor] for k in range(low, high)])
        return at_known, np.stack([self.frames[interval * factor + j] for j in range(1, factor)])
