"""What a user has for nothing: forecasts that need no network, and the register of them.

A *forecaster* is anything that is called with some past and gives frames (:class:`Forecaster`); the models of this
package are forecasters too, see :class:`egno_md.forecast.chain.ModelForecaster`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import plugins
from ..errors import DataError, ModelError, UsageError, counted
from ..models import bundled_models
from ..molecule.geometry import aligned, superposition, upright

#: Frames that a mean structure and its memory are estimated from, at most.
MOTION_FRAMES = 5000

#: A smoothed history is chosen in so many windows, and atoms of all of them, at most, and is up to so many frames long.
HISTORY_WINDOWS, HISTORY_ATOMS, LONGEST_HISTORY = 1000, 500_000, 16

#: Entry point group in which other packages name their free forecasts.
ENTRY_POINTS = "egno_md.forecasters"

_CHUNK, _NUMBERS = 256, 2**21  # frames, and numbers of whole windows, worked on at a time


@runtime_checkable
class Forecaster(Protocol):
    """Who predicts. Free forecasts, models, and what is wrapped around them are all called in this way.

    Called with ``(past, times, samples=1, generator=None)``:

    - past : ndarray, shape (S, P, N, 3). Angstrom; the last P frames of S histories, one stride apart, the start last.
      There may be more of them than the forecaster reads (:attr:`n_past`), or fewer: it uses those that are there.
    - times : array_like, shape (T,). Strides after the start, above 0.
    - samples : int. Futures to draw from each start.
    - generator : numpy.random.Generator, optional. What they are drawn with.

    It returns an ndarray of shape (S, K, T, N, 3), in Angstrom and in the frame of reference of the start. K is
    `samples`, or 1 for a forecaster that knows one future only.

    Attributes
    ----------
    name : str
        Of its column in every table.
    n_past : int
        Frames of past that it can use, the start among them.
    """

    name: str
    n_past: int

    def __call__(
        self, past: np.ndarray, times: ArrayLike, samples: int = 1, generator: np.random.Generator | None = None
    ) -> NDArray[np.floating]: ...


class FreeForecast(Forecaster, Protocol):
    """A forecaster that is fitted to runs of the molecule in an instant: what a model has to beat."""

    @classmethod
    def fitted(cls, known: Known) -> FreeForecast:
        """The forecast for a molecule of which some runs are known.

        Raises
        ------
        DataError
            The runs are too short; the forecast is then left out, and the message is shown.
        """
        ...


class Baselines(NamedTuple):
    """Free forecasts by name, and by name why others could not be fitted."""

    forecasts: dict[str, Forecaster]
    left_out: dict[str, str]


@dataclass(frozen=True, eq=False)
class Known:
    """What free forecasts are fitted to: runs of one molecule, other frames than those that are forecast.

    Attributes
    ----------
    segments : sequence of ndarray, shape (F, N, 3)
        Angstrom; without a gap, molecules whole.
    steps : tuple of int
        Strides ahead that will be asked for, increasing.
    every : int
        Frames per stride.
    """

    segments: Sequence[np.ndarray]
    steps: tuple[int, ...] = (1,)
    every: int = 1

    @functools.cached_property
    def motion(self) -> InternalMotion:
        """Mean structure and memory, fitted once for all that need them."""
        return InternalMotion.fit(self.segments, self.every)

    @functools.cached_property
    def history(self) -> int:
        """Frames whose mean errs least, the start among them; see :class:`SmoothedHistory`."""
        return SmoothedHistory.best(self)

    @functools.cached_property
    def baselines(self) -> Baselines:
        """Every registered forecast, fitted once."""
        return baselines(self)

    def windows(self, n_past: int, at_most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Windows of these runs, evenly spread, some at a time.

        Parameters
        ----------
        n_past : int
            Frames of past, the start among them.
        at_most : int
            Of more windows, evenly spread ones are used.

        Yields
        ------
        past, future : ndarray, shape (C, n_past, N, 3) and (C, T, N, 3), float64

        Raises
        ------
        DataError
            No run holds a window.
        """
        steps = np.asarray(self.steps, int)
        back, ahead = (n_past - 1) * self.every, int(steps.max()) * self.every
        starts = [(k, f) for k, x in enumerate(self.segments) for f in range(back, len(x) - ahead)]
        if not starts:
            raise DataError(
                f"a window of {n_past} frames of past and {steps.max()} strides ahead needs a run of more than "
                f"{back + ahead} frames; the longest found has {max((len(x) for x in self.segments), default=0)}"
            )
        starts = starts[:: -(-len(starts) // at_most)]
        offsets = np.r_[np.arange(1 - n_past, 1), steps] * self.every
        chunk = max(1, min(_CHUNK, _NUMBERS // (len(offsets) * self.segments[0][0].size)))
        for first in range(0, len(starts), chunk):
            some = starts[first : first + chunk]
            frames = np.stack([np.asarray(self.segments[k])[f + offsets] for k, f in some]).astype(np.float64)
            yield frames[:, :n_past], frames[:, n_past:]


def static(start: np.ndarray, steps: ArrayLike) -> np.ndarray:
    """Baseline: the start frame (S, N, 3) stands still at all T `steps`; ``(S, T, N, 3)``."""
    return np.repeat(start[:, None], len(np.asarray(steps)), axis=1)  # (S, T, N, 3)


def linear(start: np.ndarray, velocity: np.ndarray, steps: ArrayLike) -> np.ndarray:
    """Baseline: every atom keeps its velocity (Angstrom per stride) for `steps` (T,) strides; ``(S, T, N, 3)``."""
    ahead = np.asarray(steps, dtype=start.dtype)[:, None, None]  # (T, 1, 1)
    return start[:, None] + velocity[:, None] * ahead  # (S, T, N, 3)


def _start_and_velocity(past: np.ndarray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The last frame and the displacement that led to it, (S, N, 3); zero where there is one frame alone."""
    start = np.asarray(past[:, -1], np.float64)  # (S, N, 3)
    return start, start - past[:, max(-2, -past.shape[1])]


class Static:
    """The start frame stands still."""

    name: ClassVar[str] = "static"
    n_past: ClassVar[int] = 1

    @classmethod
    def fitted(cls, known: Known) -> Static:
        """Nothing is fitted."""
        return cls()

    def __call__(self, past, times, samples=1, generator=None):
        return static(_start_and_velocity(past)[0], times)[:, None]  # (S, 1, T, N, 3)


class Linear:
    """Every atom keeps the displacement of the last stride."""

    name: ClassVar[str] = "linear"
    n_past: ClassVar[int] = 2

    @classmethod
    def fitted(cls, known: Known) -> Linear:
        """Nothing is fitted."""
        return cls()

    def __call__(self, past, times, samples=1, generator=None):
        return linear(*_start_and_velocity(past), times)[:, None]  # (S, 1, T, N, 3)


@dataclass(frozen=True)
class InternalMotion:
    """What a run says about its own future once overall translation and rotation are taken off.

    Attributes
    ----------
    mean : ndarray, shape (N, 3)
        Mean structure about the origin in Angstrom, in the orientation of :func:`egno_md.molecule.geometry.upright`.
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
                f"the mean structure and its memory need a run longer than a stride of {counted(every, 'frame')}; "
                f"the longest found has {longest}"
            )
        pairs = pairs[:: -(-len(pairs) // MOTION_FRAMES)]
        mean = np.asarray(segments[pairs[0][0]][pairs[0][1]], np.float64)  # (N, 3)
        mean = mean - mean.mean(axis=0)
        for _ in range(3):  # the mean of frames aligned to the mean; converges at once for a folded molecule
            total = np.zeros_like(mean)
            for frames in _chunks(segments, pairs, 0):
                total += aligned(frames, mean).sum(axis=0)
            mean = total / len(pairs)
        mean = upright(mean)  # forecasts are fitted in its axes, and must not depend on those of the file
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
        steps = np.asarray(steps)[:, None]  # (T, 1)
        # A memory that changes its sign from stride to stride says nothing between two strides.
        factor = np.where(steps % 1 == 0, decay, np.maximum(decay, 0.0)) ** steps  # (T, N)
        path = self.mean + factor[None, :, :, None] * displaced[:, None]  # (S, T, N, 3)
        return path @ np.swapaxes(rotation, -1, -2)[:, None] + centre[:, None]  # (S, T, N, 3)


def _chunks(segments: Sequence[np.ndarray], pairs: list[tuple[int, int]], offset: int) -> Iterator[np.ndarray]:
    """The frames of `pairs` (segment, frame), moved on by `offset`, some at a time (C, N, 3)."""
    for first in range(0, len(pairs), _CHUNK):
        yield np.stack([segments[k][f + offset] for k, f in pairs[first : first + _CHUNK]])


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
    name: ClassVar[str] = "regression"
    n_past: ClassVar[int] = 2

    @classmethod
    def fitted(cls, known: Known) -> PathRegression:
        """About the mean structure of the known runs, for the steps that will be asked for."""
        return cls.fit(known.segments, known.motion.mean, known.steps, known.every)

    def __call__(self, past, times, samples=1, generator=None):
        return self.path(*_start_and_velocity(past), times)[:, None]  # (S, 1, T, N, 3)

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
        from scipy.interpolate import interp1d  # brings half of scipy, which a forecast without it need not load

        offset, by_d, by_v = (
            interp1d(self.steps, values, axis=0, fill_value="extrapolate")(np.asarray(times, float))
            for values in (self.offset, self.position, self.velocity)
        )  # (T, N, 3), (T, N), (T, N)
        rotation, centre = superposition(start, self.mean)
        displaced, moving = (start - centre) @ rotation - self.mean, velocity @ rotation  # (S, N, 3)
        path = offset + by_d[..., None] * displaced[:, None] + by_v[..., None] * moving[:, None]  # (S, T, N, 3)
        return path @ np.swapaxes(rotation, -1, -2)[:, None] + centre[:, None]


@dataclass(frozen=True)
class MeanStructure:
    """The mean structure, superposed on the start."""

    motion: InternalMotion
    name: ClassVar[str] = "mean structure"
    n_past: ClassVar[int] = 1

    @classmethod
    def fitted(cls, known: Known) -> MeanStructure:
        """The mean structure of the known runs."""
        return cls(known.motion)

    def __call__(self, past, times, samples=1, generator=None):
        return self.motion.relax(past[:, -1], times, decay=0.0)[:, None]  # (S, 1, T, N, 3)


@dataclass(frozen=True)
class AR1:
    """Displacements from the mean structure decay in the aligned frame, with one factor for each atom."""

    motion: InternalMotion
    name: ClassVar[str] = "AR(1)"
    n_past: ClassVar[int] = 1

    @classmethod
    def fitted(cls, known: Known) -> AR1:
        """Mean structure and memory of the known runs."""
        return cls(known.motion)

    def __call__(self, past, times, samples=1, generator=None):
        return self.motion.relax(past[:, -1], times)[:, None]  # (S, 1, T, N, 3)


@dataclass(frozen=True)
class SmoothedHistory:
    """The mean of the last frames, each superposed on the start: fast noise averages out, slow motion stays.

    Attributes
    ----------
    n_past : int
        Frames in the mean, the start among them. Where the past is shorter, all that is there.
    """

    n_past: int
    name: ClassVar[str] = "smoothed history"

    @classmethod
    def fitted(cls, known: Known) -> SmoothedHistory:
        """With the number of frames that errs least in the known runs."""
        return cls(known.history)

    @staticmethod
    def best(known: Known) -> int:
        """The number of frames, up to 16 and a quarter of the longest run, that errs least in the known runs."""
        longest = max((len(x) for x in known.segments), default=0)
        room = (longest - 1) // known.every - max(known.steps) + 1
        most = int(np.clip(min(room, longest // known.every // 4), 1, LONGEST_HISTORY))
        errors = np.zeros(most)  # squared, but for what is the same for all of them
        n_atoms = next((len(x[0]) for x in known.segments if len(x)), 1)
        for past, future in known.windows(most, min(HISTORY_WINDOWS, max(1, HISTORY_ATOMS // n_atoms))):
            start = past[:, -1:]  # (C, 1, N, 3)
            moved = (future - start).sum(axis=1, keepdims=True)  # (C, 1, N, 3)
            means = _running_means(past) - start  # (C, most, N, 3)
            errors += np.sum(means * (future.shape[1] * means - 2 * moved), axis=(0, 2, 3))
        return 1 + int(np.argmin(errors))

    def __call__(self, past, times, samples=1, generator=None):
        past = np.asarray(past[:, -self.n_past :], np.float64)  # (S, m, N, 3)
        return static(_running_means(past)[:, -1], times)[:, None]  # (S, 1, T, N, 3)


def _running_means(past: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of the last 1, 2, ..., m of m frames (C, m, N, 3), each superposed on the last one; (C, m, N, 3)."""
    start = past[:, -1:]  # (C, 1, N, 3)
    centre = start.mean(axis=2, keepdims=True)  # (C, 1, 1, 3)
    earlier = aligned(past[:, -2::-1], start) + centre  # (C, m - 1, N, 3), the latest first
    frames = np.concatenate([start, earlier], axis=1)  # (C, m, N, 3)
    return np.cumsum(frames, axis=1) / np.arange(1, frames.shape[1] + 1)[:, None, None]


_REGISTER: dict[str, type[FreeForecast]] = {
    cls.name: cls for cls in (Static, Linear, MeanStructure, AR1, SmoothedHistory, PathRegression)
}


#: The free forecast that is fitted to runs of others than the one at hand (:mod:`egno_md.hindcast.proteins`).
OF_PROTEINS = "elastic network of proteins"


def free_named(name: str) -> str | None:
    """The name of a free forecast as it is written, whatever its case here; None where none is called so."""
    return next((own for own in (*free_forecasts(), OF_PROTEINS) if _plain(own) == _plain(name)), None)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def require_network(model: object) -> None:
    """Refuse the name of a free forecast where a network is needed; a file or a bundled model of that name is one.

    Raises
    ------
    ModelError
        It is the name of a free forecast.
    """
    if not isinstance(model, str) or model in bundled_models() or os.path.isfile(model):
        return
    if (name := free_named(model)) is not None:
        raise ModelError(
            f"{model!r} is a free forecast, which is fitted to a run, and a network is needed here: give a bundled "
            f"model ({', '.join(bundled_models())}) or a checkpoint; {name} forecasts with egno-md predict --model "
            f'"{name}" or EGNOSurrogate(u, "{name}")'
        )


def free_forecasts() -> dict[str, type[FreeForecast]]:
    """Every free forecast by its name: those of this package, and those that other packages name as entry points.

    Another package adds a class with ``name``, ``n_past`` and ``fitted`` (:class:`FreeForecast`) by an entry point in
    the group ``egno_md.forecasters``; it is then a column in every evaluation.

    Raises
    ------
    UsageError
        An entry point that cannot be loaded, or a name that is taken.
    """
    from .drawn import Analogues, GaussianProcess, RunEnsemble  # they are made of what is in this file
    from .network import ElasticNetwork

    found = {**_REGISTER, **{cls.name: cls for cls in (GaussianProcess, ElasticNetwork, Analogues, RunEnsemble)}}
    for where, cls in plugins.loaded(ENTRY_POINTS):
        if not callable(getattr(cls, "fitted", None)) or not isinstance(getattr(cls, "name", None), str):
            raise UsageError(f"{where} must be a class with a name and a class method fitted(known)")
        if found.get(cls.name, cls) is not cls or cls.name in RESERVED:
            raise UsageError(f"{where} has the name {cls.name!r}, which is taken: give it another one")
        found[cls.name] = cls
    return found


#: Columns of a table that are not free forecasts.
RESERVED = ("model", "skill")


def baselines(known: Known) -> Baselines:
    """All that a user has for nothing: every registered free forecast, fitted to what is known.

    Parameters
    ----------
    known : Known
        Runs of the same molecule, of other frames than those that are predicted.

    Returns
    -------
    Baselines
        ``forecasts`` by name, in the order of the register; ``left_out``: why the others could not be fitted.
    """
    forecasts: dict[str, Forecaster] = {}
    left_out: dict[str, str] = {}
    for name, cls in free_forecasts().items():
        try:
            forecasts[name] = cls.fitted(known)
        except DataError as error:
            left_out[name] = str(error)
    return Baselines(forecasts, left_out)
