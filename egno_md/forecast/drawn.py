"""Forecasts without a network that draw futures: the Gaussian process of the window, analogues, and noise.

All of them work in the frame of reference of the start: internal motion is that of frames superposed on the start, and
rigid motion is apart. Called without a generator they give their mean forecast, with one they draw: every future comes
from random numbers of its own, so that it depends neither on the other starts of a batch nor on how many there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orth
from scipy.spatial.transform import Rotation

from ..errors import DataError, UsageError, counted
from ..molecule.geometry import aligned, superposition
from .forecasters import InternalMotion, Known, static
from .gaussian import FEWEST_WINDOWS, FITTED_NUMBERS, Between, Local, Noise, ridge

#: Frames of a library of analogues, numbers in it, and numbers worked on at a time.
LIBRARY_FRAMES, LIBRARY_NUMBERS, CHUNK_NUMBERS = 100_000, 2**25, 2**21

#: Windows that a fit takes at most, and steps of one that it knows (others lie between two of them).
FITTED_WINDOWS, KNOTS = 20_000, 16

#: Frames of the smoothed history that the Gaussian process reads at least, where there are so many.
HISTORY = 4

#: Analogues to choose from, at least and at most; in between the root of the number of frames.
FEWEST_ANALOGUES, MOST_ANALOGUES = 5, 100


class Seen(NamedTuple):
    """Histories, each in the frame of reference in which its start is superposed on the mean structure.

    `features` (S, 3, N, 3): displacement from the mean structure, displacement of the last stride, and smoothed history
    less the start, internal all three. `drift` (S, 6): rotation vector and translation of the last stride.
    """

    rotation: np.ndarray
    centre: np.ndarray
    features: np.ndarray
    drift: np.ndarray

    def back(self, frames: np.ndarray) -> np.ndarray:
        """Frames (S, ..., N, 3) of the body's frame of reference in that of the laboratory."""
        lead = (slice(None), *[None] * (frames.ndim - 3))
        return frames @ np.swapaxes(self.rotation, -1, -2)[lead] + self.centre[lead]


def in_body(past: np.ndarray, mean: np.ndarray, n_past: int) -> Seen:
    """The last `n_past` of some frames (S, P, N, 3), or as many as there are."""
    past = np.asarray(past[:, -n_past:], np.float64)  # (S, P, N, 3)
    rotation, centre = superposition(past[:, -1], mean)
    frames = (past - centre[:, None]) @ rotation[:, None]  # (S, P, N, 3)
    start = frames[:, -1]  # (S, N, 3)
    if past.shape[1] == 1:
        features = np.stack([start - mean, np.zeros_like(start), np.zeros_like(start)], axis=1)  # (S, 3, N, 3)
        return Seen(rotation, centre, features, np.zeros((len(past), 6)))
    earlier, motion = apart(frames[:, :-1], start)
    smoothed = (earlier - start[:, None]).sum(axis=1) / past.shape[1]  # (S, N, 3)
    features = np.stack([start - mean, start - earlier[:, -1], smoothed], axis=1)  # (S, 3, N, 3)
    return Seen(rotation, centre, features, -motion[:, -1])


def apart(frames: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames (S, T, N, 3) superposed on their starts (S, N, 3) about the origin, and their rigid motion (S, T, 6)."""
    turn, middle = superposition(frames, start[:, None])  # (S, T, 3, 3), (S, T, 1, 3)
    vectors = Rotation.from_matrix(turn.reshape(-1, 3, 3)).as_rotvec().reshape(*turn.shape[:2], 3)
    return (frames - middle) @ turn, np.concatenate([vectors, middle[..., 0, :]], axis=-1)


def moved(frames: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Frames (..., N, 3) about the origin with a rigid motion (..., 6): the inverse of :func:`apart`."""
    turn = Rotation.from_rotvec(motion[..., :3].reshape(-1, 3)).as_matrix().reshape(*motion.shape[:-1], 3, 3)
    return frames @ np.swapaxes(turn, -1, -2) + motion[..., None, 3:]


@dataclass(frozen=True, eq=False)
class RigidMotion:
    """Rotation and translation of the whole molecule, a Gaussian linear in those of the last stride."""

    response: NDArray[np.float64]
    """(6, T * 6)"""
    noise: Noise

    @classmethod
    def fit(cls, drift: np.ndarray, motion: np.ndarray, independent: float) -> RigidMotion:
        """From the motion of the last stride (M, 6) and that of the window (M, T, 6), both of rotation vectors in
        radians and translations in Angstrom, in the frame of reference of the body."""
        flat = motion.reshape(len(motion), -1)  # (M, T * 6)
        products = drift.T @ drift
        ridge = np.diag(1e-6 * np.diag(products) + np.diag(products) * 6 / independent + 1e-12)
        response = np.linalg.solve(products + ridge, drift.T @ flat)
        return cls(response, Noise.fit((flat - drift @ response).reshape(motion.shape)))

    def mean(self, drift: np.ndarray) -> np.ndarray:
        """(S, 6) to (S, T, 6)."""
        return (drift @ self.response).reshape(len(drift), -1, 6)


@dataclass(frozen=True, eq=False)
class GaussianProcess:
    """The window as a Gaussian process, given what is known at its start.

    In the frame in which the start is superposed on the mean structure, the mean of the internal motion is linear in
    the displacement from the mean structure, that of the last stride and the smoothed history: for every atom by itself
    (one number for x, y and z; nothing of the mean structure where that errs less on unseen folds), and what a ridge
    regression on all coordinates gains on folds that it has not seen.
    What is left over in those folds has a covariance over the whole window (:class:`Noise`): full where the windows are
    as many as its numbers, of the rank of the windows where they are fewer; and shrunk towards the product of one of
    time and one of space, up to the product itself where that is what the windows say or where they are few.

    Attributes
    ----------
    mean : ndarray, shape (N, 3)
        Mean structure about the origin in Angstrom.
    knots : ndarray, shape (T,)
        Strides ahead that were fitted. Between two of them paths are straight lines, their spread stretched so that the
        variance goes in straight lines as well.
    n_past : int
        Frames of the smoothed history, the start among them.
    kind : str
        Of the covariance: ``"full"``, ``"low-rank"`` or ``"time x space"``.
    notes : tuple of str
        What it is and how many windows a larger one needs.
    rigid : bool
        Whether drawn futures turn and move as a whole. Mean forecasts do so only as far as the last stride tells: the
        mean over all orientations is a molecule that shrinks.
    """

    mean: NDArray[np.float64]
    knots: NDArray[np.float64]
    n_past: int
    local: Local
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    basis: NDArray[np.float64]
    response: NDArray[np.float64]
    noise: Noise
    motion: RigidMotion
    kind: str
    notes: tuple[str, ...] = ()
    rigid: bool = True
    name: ClassVar[str] = "Gaussian process"
    draws: ClassVar[bool] = True

    @classmethod
    def fitted(cls, known: Known, n_past: int | None = None) -> GaussianProcess:
        """To the known runs.

        Parameters
        ----------
        known : Known
        n_past : int, optional
            Frames of past that it may read at most; by default what serves the smoothed history best.

        Raises
        ------
        DataError
            They hold fewer than ten windows.
        """
        known, n_past, n_windows, left_out = _fittable(known, cls.name, n_past)
        mean = known.motion.mean
        features, moves, drift, motion = _internal(known, n_past, mean)
        m, n_times, n_atoms = moves.shape[:3]
        independent = max(1.0, n_windows / (max(known.steps) * known.every))
        gap = -(-m * (max(known.steps) + n_past) * known.every // n_windows)
        local, left = Local.chosen(features, moves, gap)
        centre = features.mean(axis=0)  # (3, N, 3)
        features -= centre
        scale = np.sqrt(np.mean(features**2, axis=(0, 2, 3)))
        scale[scale == 0] = 1.0
        inputs, residual = (features / scale[:, None, None]).reshape(m, -1), left.reshape(m, n_times, -1)
        basis, response, residual = ridge(inputs, residual, gap)
        noise = Noise.fit(residual, rigid_directions(mean))
        numbers = n_times * n_atoms * 3
        kind = "time x space" if noise.share > 0.99 else "full" if m >= numbers else "low-rank"
        notes = []
        if m < numbers:
            notes.append(
                f"Gaussian process: {m} windows (about {independent:.0f} independent ones) for {numbers} numbers of a "
                f"window: its covariance is {kind}, {noise.share:.0%} of it the product of time and space; a full one "
                f"needs {numbers} windows"
            )
        if left_out:
            notes.append(
                f"Gaussian process: {n_times} of {left_out} steps are fitted, the others lie between two of them"
            )
        return cls(
            mean, np.asarray(known.steps, float), n_past, local, centre, scale, basis, response, noise,
            RigidMotion.fit(drift, motion, min(independent, m)), kind, tuple(notes),
        )  # fmt: skip

    def arrays(self) -> dict[str, NDArray]:
        """All numbers of it by name, those of a part of it as ``noise/rows``, float32: what a checkpoint stores."""
        return {name: np.asarray(value, np.float32) for name, value in _numbers_of(self).items()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray]) -> GaussianProcess:
        """From what :meth:`arrays` gave."""
        share = float(arrays["noise/share"])
        return _made_of(cls, arrays, "", kind="time x space" if share > 0.99 else "full or low-rank")

    def __call__(self, past, times, samples=1, generator=None):
        check_drawn(samples, generator)
        seen = in_body(past, self.mean, self.n_past)
        between = Between.of(times, self.knots, self.noise.across, self.name)
        whole = Between.of(times, self.knots, self.motion.noise.across, self.name)
        n_starts, n_atoms = past.shape[0], past.shape[2]
        out = np.empty((n_starts, samples, len(between.upper), n_atoms, 3))  # (S, K, T, N, 3)
        start = (self.mean + seen.features[:, 0])[:, None]  # (S, 1, N, 3)
        for rows in _rows(n_starts, 1, 3 * n_atoms * (len(self.knots) + 3) + len(self.basis)):
            mean = between(self.moves(seen.features[rows])).reshape(-1, len(between.upper), n_atoms, 3)
            out[rows] = (start[rows] + mean)[:, None]
        drift = whole(self.motion.mean(seen.drift))  # (S, T, 6)
        if generator is None:
            return seen.back(moved(out, drift[:, None]))
        for rows, members in in_turn(n_starts, samples, self.noise.n_numbers + 6 * n_atoms * len(self.knots)):
            numbers = generator.standard_normal((len(rows), self.noise.n_numbers + self.motion.noise.n_numbers))
            internal, turning = np.split(numbers, [self.noise.n_numbers], axis=1)
            moves = between(self.noise.paths(internal)) * between.stretch[:, None]  # (C, T, 3 N)
            frames = out[rows, members] + moves.reshape(len(rows), -1, n_atoms, 3)  # (C, T, N, 3)
            if self.rigid:
                motion = whole(self.motion.noise.paths(turning)) * whole.stretch[:, None]  # (C, T, 6)
                frames = moved(frames, drift[rows] + motion)
            out[rows, members] = frames
        return seen.back(out)

    def moves(self, features: np.ndarray) -> np.ndarray:
        """Mean displacements (S, T, 3 N) from the start at the fitted steps."""
        moves = self.local(features)  # (S, T, N, 3)
        inputs = ((features - self.centre) / self.scale[:, None, None]).reshape(
            len(features), -1
        ) @ self.basis  # (S, R)
        return moves.reshape(*moves.shape[:2], -1) + np.einsum("sr,rtd->std", inputs, self.response, optimize=True)


#: Parts of a Gaussian process and its rigid motion that have numbers of their own.
_PARTS: dict[str, type] = {"local": Local, "noise": Noise, "motion": RigidMotion}


def _numbers_of(part: Any, within: str = "") -> dict[str, Any]:
    """Arrays and numbers of a dataclass or named tuple by their place."""
    found: dict[str, Any] = {}
    for name in type(part).__annotations__:
        value = getattr(part, name)
        if name in _PARTS:
            found |= _numbers_of(value, f"{within}{name}/")
        elif isinstance(value, (np.ndarray, int, float)) and not isinstance(value, bool):
            found[within + name] = value
    return found


def _made_of(kind_of: type, arrays: Mapping[str, NDArray], within: str, **others: Any) -> Any:
    """One of these of the numbers that :func:`_numbers_of` gave."""
    values = dict(others)
    for name in kind_of.__annotations__:
        if name in _PARTS:
            values[name] = _made_of(_PARTS[name], arrays, f"{within}{name}/")
        elif within + name in arrays:
            value = np.asarray(arrays[within + name], np.float64)
            values[name] = {"n_past": int, "share": float}.get(name, np.asarray)(value)
    return kind_of(**values)


def rigid_directions(mean: np.ndarray) -> np.ndarray:
    """Small translations and rotations of a structure (N, 3), orthonormal, (3 N, 6)."""
    axes = np.eye(3)
    moves = [np.broadcast_to(axis, mean.shape) for axis in axes] + [np.cross(axis, mean) for axis in axes]
    return orth(np.stack([move.ravel() for move in moves], axis=1))  # (3 N, 6); 5 of atoms on a line


def _fittable(known: Known, name: str, most: int | None = None) -> tuple[Known, int, int, int]:
    """Runs with the steps that are fitted, frames of past (`most` at most), windows, and how many steps there were if
    not all."""
    left_out = 0
    if len(known.steps) > KNOTS:
        left_out = len(known.steps)
        chosen = np.unique(np.round(np.linspace(0, left_out - 1, KNOTS)).astype(int))
        known = dataclasses.replace(known, steps=tuple(known.steps[k] for k in chosen))
    ahead = max(known.steps) * known.every
    lengths = np.array([len(x) for x in known.segments] or [0])
    n_past = 1
    for wanted in range(2, (max(known.history, HISTORY) if most is None else most) + 1):
        # More past costs windows; a fifth of them is what it may cost.
        if (
            np.maximum(lengths - ahead - (wanted - 1) * known.every, 0).sum()
            < 0.8 * np.maximum(lengths - ahead, 0).sum()
        ):
            break
        n_past = wanted
    n_windows = int(np.maximum(lengths - ahead - (n_past - 1) * known.every, 0).sum())
    if n_windows < FEWEST_WINDOWS:
        raise DataError(
            f"the {name} needs at least {FEWEST_WINDOWS} windows of {counted(n_past, 'frame')} of past and "
            f"{max(known.steps)} strides ahead, found {n_windows}; the longest run has {lengths.max()} frames"
        )
    return known, n_past, n_windows, left_out


def _internal(known: Known, n_past: int, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features (M, 3, N, 3), displacements (M, T, N, 3), rigid motion of the past (M, 6) and the window (M, T, 6)."""
    at_most = int(np.clip(FITTED_NUMBERS // (mean.size * len(known.steps)), FEWEST_WINDOWS, FITTED_WINDOWS))
    found = []
    for past, future in known.windows(n_past, at_most):
        seen = in_body(past, mean, n_past)
        start = mean + seen.features[:, 0]  # (C, N, 3)
        frames, motion = apart((future - seen.centre[:, None]) @ seen.rotation[:, None], start)
        found.append((seen.features, frames - start[:, None], seen.drift, motion))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


@dataclass(frozen=True, eq=False)
class Analogues:
    """What followed the frames of the known runs that are most like the start, superposed on it.

    A drawn future is that of one of the nearest frames, all of one weight; the mean forecast is the mean of the
    internal motion after all of them.

    Attributes
    ----------
    mean : ndarray, shape (N, 3)
        Mean structure that frames are superposed on before they are compared.
    segments : sequence of ndarray, shape (F, N, 3)
        The runs.
    places : ndarray, shape (L, 2)
        Segment and frame of every frame of the library.
    library : ndarray, shape (L, 3 N), float32
        These frames, superposed on the mean structure.
    every, ahead : int
        Frames per stride, and strides that follow each of them.
    nearest : int
        Frames to choose from: the root of the number there are, 5 to 100.
    rigid : bool
        Whether drawn futures turn and move as a whole, as what they are taken from did.
    """

    mean: NDArray[np.float64]
    segments: Sequence[np.ndarray]
    places: NDArray[np.int64]
    library: NDArray[np.float32]
    every: int
    ahead: int
    nearest: int
    rigid: bool = True
    name: ClassVar[str] = "analogues"
    n_past: ClassVar[int] = 1
    draws: ClassVar[bool] = True

    @classmethod
    def fitted(cls, known: Known) -> Analogues:
        """All frames of the known runs that a window follows, evenly thinned to 100 000.

        Raises
        ------
        DataError
            They hold fewer than ten windows.
        """
        ahead = max(known.steps)
        places = [(k, f) for k, x in enumerate(known.segments) for f in range(len(x) - ahead * known.every)]
        if len(places) < FEWEST_WINDOWS:
            raise DataError(
                f"analogues need at least {FEWEST_WINDOWS} frames with {ahead} strides after them, found "
                f"{len(places)}; the longest run has {max((len(x) for x in known.segments), default=0)} frames"
            )
        mean = known.motion.mean
        at_most = max(FEWEST_WINDOWS, min(LIBRARY_FRAMES, LIBRARY_NUMBERS // mean.size))
        places = np.asarray(places[:: -(-len(places) // at_most)])
        library = np.empty((len(places), mean.size), np.float32)
        for rows in _rows(len(places), 1, mean.size):
            frames = np.stack([known.segments[k][f] for k, f in places[rows]])  # (C, N, 3)
            library[rows] = aligned(frames, mean).reshape(len(frames), -1)
        nearest = int(np.clip(np.sqrt(len(places)), FEWEST_ANALOGUES, MOST_ANALOGUES))
        return cls(mean, known.segments, places, library, known.every, ahead, nearest)

    def __call__(self, past, times, samples=1, generator=None):
        check_drawn(samples, generator)
        times = np.asarray(times, float)
        if times.min(initial=1) < 0 or times.max(initial=0) > self.ahead:
            raise UsageError(
                f"analogues were gathered for up to {self.ahead} strides ahead, found {times.max():g}: fit them for "
                "more steps, or chain windows (egno_md.forecast.chain.Chained)"
            )
        start = np.asarray(past[:, -1], np.float64)  # (S, N, 3)
        found = self.like(start)  # (S, k)
        out = np.empty((len(start), samples, len(times), *start.shape[1:]))  # (S, K, T, N, 3)
        if generator is None:
            for rows in _rows(len(start), 1, self.nearest * self.mean.size):
                self._follow(found[rows], start[rows], times, False, out[rows])
            return out
        for rows, members in in_turn(len(start), samples, len(times) * self.mean.size):
            chosen = (self.nearest * generator.random(len(rows))).astype(int)  # (C,)
            paths = np.empty((len(rows), 1, *out.shape[2:]))
            self._follow(found[rows, chosen][:, None], start[rows], times, self.rigid, paths)
            out[rows, members] = paths[:, 0]
        return out

    def like(self, start: np.ndarray) -> NDArray[np.int64]:
        """The nearest frames of the library (S, k) of starts (S, N, 3), the nearest first."""
        here = aligned(start, self.mean).reshape(len(start), -1)  # (S, 3 N)
        squares = np.einsum("ld,ld->l", self.library, self.library)
        out = np.empty((len(start), self.nearest), np.int64)
        for rows in _rows(len(start), 1, len(self.library)):
            distance = squares - 2 * here[rows].astype(np.float32) @ self.library.T  # (C, L)
            near = np.argpartition(distance, self.nearest - 1, axis=1)[:, : self.nearest]
            # Single precision finds them, double precision ranks them: their order is not a matter of the batch.
            exact = [np.sum((self.library[k] - x) ** 2, axis=1) for k, x in zip(near, here[rows], strict=True)]
            out[rows] = np.take_along_axis(near, np.argsort(exact, axis=1, kind="stable"), axis=1)
        return out

    def _follow(self, found: np.ndarray, start: np.ndarray, times: np.ndarray, rigid: bool, out: np.ndarray) -> None:
        """Fill in what followed frames of the library (S, k), superposed on the starts (S, N, 3), as the mean over k.

        `out` is (S, 1, T, N, 3).
        """
        one, place = np.unique(found, return_inverse=True)
        place = place.reshape(found.shape)
        first = self._frames(one, 0)  # (U, N, 3)
        centre = first.mean(axis=1, keepdims=True)  # (U, 1, 3)
        rotation, _ = superposition(first[place], start[:, None])  # (S, k, 3, 3)
        for t, time in enumerate(times * self.every):
            frame, weight = int(time), time % 1
            frames = self._after(one, frame, first, centre, rigid)  # (U, N, 3)
            if weight:
                frames += weight * (self._after(one, frame + 1, first, centre, rigid) - frames)
            moved = (frames[place] @ rotation).mean(axis=1)  # (S, N, 3)
            out[:, 0, t] = moved + start.mean(axis=1, keepdims=True)

    def _frames(self, one: np.ndarray, ahead: int) -> np.ndarray:
        """Frames of the runs (U, N, 3), so many after some of the library (U,)."""
        return np.stack([self.segments[k][f + ahead] for k, f in self.places[one]]).astype(np.float64)

    def _after(self, one: np.ndarray, ahead: int, first: np.ndarray, centre: np.ndarray, rigid: bool) -> np.ndarray:
        frames = self._frames(one, ahead)
        return frames - centre if rigid else aligned(frames, first)


@dataclass(frozen=True, eq=False)
class RunEnsemble:
    """Frames of the known runs, whichever came before: the forecast of a run without memory.

    A drawn future is a frame of the runs at every step, each by itself, superposed on the start; the mean forecast is
    the mean structure.

    Attributes
    ----------
    motion : InternalMotion
    library : ndarray, shape (L, N, 3), float32
        Frames of the runs, superposed on the mean structure.
    """

    motion: InternalMotion
    library: NDArray[np.float32]
    name: ClassVar[str] = "ensemble of the run"
    n_past: ClassVar[int] = 1
    draws: ClassVar[bool] = True

    @classmethod
    def fitted(cls, known: Known) -> RunEnsemble:
        """All frames of the known runs, evenly thinned to 100 000 (fewer of many atoms).

        Raises
        ------
        DataError
            They hold fewer than five frames.
        """
        total = sum(map(len, known.segments))
        if total < FEWEST_ANALOGUES:
            raise DataError(f"the {cls.name} needs at least {FEWEST_ANALOGUES} frames, found {total}")
        mean = known.motion.mean
        thin = -(-total // max(FEWEST_ANALOGUES, min(LIBRARY_FRAMES, LIBRARY_NUMBERS // mean.size)))
        library = [aligned(x[::thin], mean).astype(np.float32) for x in known.segments if len(x)]
        return cls(known.motion, np.concatenate(library))

    def __call__(self, past, times, samples=1, generator=None):
        check_drawn(samples, generator)
        if generator is None:
            return np.repeat(self.motion.relax(past[:, -1], times, decay=0.0)[:, None], samples, axis=1)
        start = np.asarray(past[:, -1], np.float64)  # (S, N, 3)
        n_times = len(np.asarray(times))
        out = np.empty((len(start), samples, n_times, *start.shape[1:]))  # (S, K, T, N, 3)
        for rows, members in in_turn(len(start), samples, n_times * self.motion.mean.size):
            chosen = (len(self.library) * generator.random((len(rows), n_times))).astype(int)  # (C, T)
            frames = aligned(self.library[chosen], start[rows][:, None])  # (C, T, N, 3)
            out[rows, members] = frames + start[rows].mean(axis=1)[:, None, None]
        return out


@dataclass(frozen=True, eq=False)
class NoisyStart:
    """The start frame with independent Gaussian noise: a rival of those that draw, whose spread alone is right.

    Attributes
    ----------
    knots : ndarray, shape (T,)
        Strides ahead that were fitted.
    spread : ndarray, shape (T, N)
        Standard deviation of x, y and z of every atom in Angstrom, of internal motion.
    """

    knots: NDArray[np.float64]
    spread: NDArray[np.float64]
    name: ClassVar[str] = "static + noise"
    n_past: ClassVar[int] = 1
    draws: ClassVar[bool] = True

    @classmethod
    def fitted(cls, known: Known) -> NoisyStart:
        """With the spread of the known runs."""
        mean = known.motion.mean
        known = dataclasses.replace(_fittable(known, cls.name)[0])
        moves = _internal(known, 1, mean)[1]  # (M, T, N, 3)
        return cls(np.asarray(known.steps, float), np.sqrt(np.mean(moves**2, axis=(0, 3))))

    def __call__(self, past, times, samples=1, generator=None):
        check_drawn(samples, generator)
        start = np.asarray(past[:, -1], np.float64)  # (S, N, 3)
        between = Between.of(times, self.knots, np.diag(np.mean(self.spread**2, axis=1)), self.name)
        still = static(start, times)[:, None]  # (S, 1, T, N, 3)
        if generator is None:
            return np.repeat(still, samples, axis=1)
        spread = np.sqrt(between(self.spread**2))[..., None]  # (T, N, 1)
        return still + spread * generator.standard_normal((len(start), samples, *still.shape[2:]))


def check_drawn(samples: int, generator: np.random.Generator | None) -> None:
    if samples < 1 or (samples > 1 and generator is None):
        raise UsageError(
            f"samples must be at least 1, and more than one needs a generator to draw with "
            f"(numpy.random.default_rng(seed)); found samples={samples} and generator={generator}"
        )


def _rows(count: int, members: int, numbers: int) -> Iterator[slice]:
    """Slices of so many rows that their numbers stay within bounds."""
    chunk = max(1, CHUNK_NUMBERS // max(1, members * numbers))
    for first in range(0, count, chunk):
        yield slice(first, min(first + chunk, count))


def in_turn(n_starts: int, samples: int, numbers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Starts and members of all futures in turn, so many at a time that their numbers stay within bounds."""
    for rows in _rows(n_starts * samples, 1, numbers):
        yield np.divmod(np.arange(rows.start, rows.stop), samples)
