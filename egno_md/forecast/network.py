"""A Gaussian network in time: how a molecule moves about its start, by contact distance, lag and what came before.

Pairs of atoms are joined by springs that weaken with their distance at the start, ``(5 A / r)^4``, in the manner of
Yang, Song and Jernigan (2009): bonds, and the angles and torsions that they make, are stiff because they are short. The
modes of the network move independently of each other. What is known of a mode is its variogram g(t), the mean square of
``y(s + t) - y(s)`` in one direction, which is a sum of what any stationary or diffusive motion may have::

    g(t) = sum_j a_j phi_j(t),  a_j >= 0,   phi(t) = 1 - exp(-t / tau)                  relaxation
                                                     1 - (1 + t / tau) exp(-t / tau)    one that begins with a velocity
                                                     t                                  diffusion

with coefficients that depend on the stiffness of the mode alone. ``y(t) - y(0)`` is then a Gaussian process of
covariance ``(g(t) + g(s) - g(|t - s|)) / 2``: where the mode would rest need not be known. Mean and covariance of what
follows, given the frames before the start, follow by conditioning: fast noise is taken back, slow motion goes on. The
covariance does not depend on how much a start's own past moved: in a chain that past is what was drawn, and one that
moved a little less in one window would move less and less.

Lags are times, so that one network knows every spacing of frames, and its few numbers hold for any molecule.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.optimize import nnls
from scipy.spatial.distance import cdist

from ..errors import DataError
from ..molecule.geometry import superposition
from .drawn import apart, check_drawn, in_turn, moved, rigid_directions
from .forecasters import Known

#: Distance in Angstrom at which a spring has the strength 1, and the power of its weakening; no atoms count as nearer
#: than the last.
UNIT, POWER, NEAREST = 5.0, 4, 0.5

#: Modes of which each is known by itself, those above move with the stiffness that they have on average; and atoms of
#: the largest molecule whose pairs are all looked at.
MODES, MOST_ATOMS = 400, 3000

#: Atoms up to which every start has a network of its own, where there is a mean structure.
OWN_NETWORK = 100

#: Frames of past that are read, starts that a fit looks at, stiffnesses that it tells apart, times of relaxation.
PAST, STARTS, BINS, RELAXATIONS = 16, 60, 8, 12

#: Pairs of frames one stride apart that a fit needs.
FEWEST_PAIRS = 10

#: Stiffnesses at which conditional covariances are worked out; between them lies what lies between. And of how many
#: pasts and times they are kept: every window of a chain has the same ones.
GRID, KEPT = 64, 16

#: Number of squares, as if they had been seen, that say that a molecule moves as much as expected; pasts that tell, and
#: atoms of all of them, each of which has a network of its own.
AS_EXPECTED, LOOKED_AT, ATOMS_LOOKED_AT = 60.0, 20, 4000


def terms(lags: ArrayLike, taus: np.ndarray) -> NDArray[np.float64]:
    """What variograms are made of, (..., 2 J + 1), of lags (...) and J times of relaxation."""
    lags = np.abs(np.asarray(lags, float))[..., None]  # (..., 1)
    x = lags / taus  # (..., J)
    return np.concatenate([-np.expm1(-x), 1 - (1 + x) * np.exp(-x), lags / taus[-1]], axis=-1)


class Conditional(NamedTuple):
    """What follows, given what came before; of each of some motions.

    `response` (G, T, P): to displacements from the start at past times. `factor` (G, T, T): lower triangle of the
    covariance. `white` (G, P, P): makes past displacements numbers of variance 1.
    """

    response: np.ndarray
    factor: np.ndarray
    white: np.ndarray

    @classmethod
    def of(cls, amplitude: np.ndarray, taus: np.ndarray, past: np.ndarray, times: np.ndarray) -> Conditional:
        """Of motions with these coefficients (G, 2 J + 1); `past` (P,) are below 0, `times` (T,) above."""
        every = np.concatenate([past, times])
        own = terms(every, taus)  # (P + T, 2 J + 1)
        each = (own[:, None] + own[None] - terms(every[:, None] - every, taus)) / 2  # (P + T, P + T, 2 J + 1)
        whole = np.einsum("gj,tsj->gts", amplitude, each, optimize=True)
        whole += 1e-9 * np.trace(whole, axis1=1, axis2=2)[:, None, None] * np.eye(len(every)) + 1e-14 * np.eye(
            len(every)
        )
        n = len(past)
        lower = np.linalg.cholesky(whole)  # that of the past, then that of what is left of the future
        white = np.linalg.inv(lower[:, :n, :n])
        return cls(lower[:, n:, :n] @ white, lower[:, n:, n:], white)

    def at(self, place: np.ndarray) -> Conditional:
        """At places (M,) between the G motions."""
        low = np.clip(place.astype(int), 0, max(len(self.factor) - 2, 0))
        weight = (place - low)[:, None, None]
        high = np.minimum(low + 1, len(self.factor) - 1)
        return Conditional(*(part[low] + weight * (part[high] - part[low]) for part in self))


class Modes(NamedTuple):
    """Modes (N, M) of a network with the logarithm of their stiffness (M,), and that of all others where M < N."""

    vectors: np.ndarray
    stiffness: np.ndarray
    rest: float | None
    rigid: np.ndarray  # (3 N, 6), small motions as a whole

    @classmethod
    def of(cls, positions: np.ndarray) -> Modes:
        """Of one frame (N, 3).

        Raises
        ------
        DataError
            Too many atoms.
        """
        n = len(positions)
        if n > MOST_ATOMS:
            raise DataError(
                f"an elastic network joins all pairs of at most {MOST_ATOMS} atoms, found {n}: select fewer, such as "
                "'name CA'"
            )
        squares = cdist(positions, positions, "sqeuclidean")  # (N, N)
        springs = (UNIT**2 / np.maximum(squares, NEAREST**2)) ** (POWER // 2)
        np.fill_diagonal(springs, 0.0)
        matrix = np.diag(springs.sum(axis=1)) - springs
        some = None if n <= MODES else (0, MODES - 1)
        values, vectors = eigh(matrix, subset_by_index=some)
        rest = None if some is None else np.log((np.trace(matrix) - values.sum()) / (n - MODES))
        return cls(vectors, np.log(np.maximum(values, 1e-12)), rest, rigid_directions(positions))

    def apply(self, matrices: np.ndarray, beyond: np.ndarray | None, values: np.ndarray) -> np.ndarray:
        """Values (..., P, N, 3) made others (..., T, N, 3): in each mode by matrices (M, T, P), by `beyond` (T, P) in
        what is in none of them."""
        inside = self.vectors.T @ values  # (..., P, M, 3)
        moved = np.swapaxes(matrices @ np.swapaxes(inside, -2, -3), -2, -3)  # (..., T, M, 3)
        out = self.vectors @ moved
        if beyond is not None:
            left = values - self.vectors @ inside  # (..., P, N, 3)
            out += np.einsum("tp,...pnx->...tnx", beyond, left)
        return out


def own_frame(positions: np.ndarray) -> NDArray[np.float64]:
    """Rotations (S, 3, 3) into a frame of reference that frames (S, N, 3) give themselves, by the order of their atoms.

    Its axes are two waves along the atoms, made orthonormal: turned frames have turned axes. Atoms on a line, or fewer
    than three, give one axis alone; the others are then arbitrary.
    """
    n = positions.shape[-2]
    place = (np.arange(n) + 0.5) / max(n, 1)
    about = positions - positions.mean(axis=-2, keepdims=True)
    first, second = (np.cos(k * np.pi * place) @ about for k in (1, 2))  # (S, 3) both
    if n < 3:
        first, second = about[..., 0, :], np.zeros_like(second)

    def unit(vectors: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return np.where(length > 1e-9, vectors / np.maximum(length, 1e-9), otherwise)

    x = unit(first, np.broadcast_to([1.0, 0.0, 0.0], first.shape))
    least = np.eye(3)[np.argmin(np.abs(x), axis=-1)]  # (S, 3)
    other = unit(np.cross(x, least), least)
    y = unit(second - np.sum(second * x, axis=-1, keepdims=True) * x, other)
    return np.stack([x, y, np.cross(x, y)], axis=-1)


class Placed(NamedTuple):
    """Histories in a frame of reference of the body: starts (S, N, 3) about the origin, displacements from them of the
    frames before, superposed (S, P, N, 3), and rigid motion of these (S, P, 6)."""

    rotation: np.ndarray
    centre: np.ndarray
    start: np.ndarray
    before: np.ndarray
    drift: np.ndarray

    @classmethod
    def of(cls, past: np.ndarray, n_past: int, mean: np.ndarray | None = None) -> Placed:
        """Of the last `n_past` of some frames (S, P, N, 3), or as many as there are; the start superposed on `mean`."""
        past = np.asarray(past[:, -n_past:], np.float64)
        if mean is None:
            rotation, centre = own_frame(past[:, -1]), past[:, -1].mean(axis=1, keepdims=True)
        else:
            rotation, centre = superposition(past[:, -1], mean)
        frames = (past - centre[:, None]) @ rotation[:, None]  # (S, P, N, 3)
        start = frames[:, -1]
        if past.shape[1] == 1:
            return cls(rotation, centre, start, frames[:, :0], np.zeros((len(past), 0, 6)))
        before, drift = apart(frames[:, :-1], start)
        return cls(rotation, centre, start, before - start[:, None], drift)

    def back(self, frames: np.ndarray) -> np.ndarray:
        """Frames (S, ..., N, 3) in the frame of reference of the laboratory."""
        lead = (slice(None), *[None] * (frames.ndim - 3))
        return frames @ np.swapaxes(self.rotation, -1, -2)[lead] + self.centre[lead]


class Sample(NamedTuple):
    """Runs of one molecule that a network is fitted to: segments (F, N, 3) in Angstrom, and the spacing of frames."""

    segments: Sequence[np.ndarray]
    spacing: float


@dataclass(frozen=True, eq=False)
class ElasticNetwork:
    """A Gaussian network in time, see the top of this file.

    Attributes
    ----------
    taus : ndarray, shape (J,)
        Times of relaxation.
    knots : ndarray, shape (B,)
        Logarithms of the stiffnesses of :attr:`amplitude`, increasing.
    amplitude : ndarray, shape (B, 2 J + 1)
        Coefficients of the variogram, in Angstrom squared, times the stiffness. Between two of them lies what lies
        between.
    turning : ndarray, shape (2, 2 J + 1)
        Those of the rotation vector, times N and the square of the radius of gyration, and of the translation, times N,
        of the molecule as a whole: a molecule of N atoms feels N times the friction of one.
    span : ndarray, shape (2,)
        Shortest and longest lag that was seen.
    stride : float
        Of the forecast, in the unit of time of the others.
    mean : ndarray, shape (N, 3), optional
        The structure whose network is used for every start; without it that of the start.
    scale : float
        Of what is drawn, where this molecule moves more, or less, than those that the network was fitted to.
    rigid : bool
        Whether drawn futures turn and move as a whole.
    """

    taus: NDArray[np.float64]
    knots: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    turning: NDArray[np.float64]
    span: NDArray[np.float64]
    stride: float = 1.0
    mean: NDArray[np.float64] | None = None
    scale: float = 1.0
    rigid: bool = True
    _conditionals: dict[tuple, tuple[Conditional, ...]] = field(default_factory=dict, init=False, repr=False)
    name: ClassVar[str] = "elastic network"
    draws: ClassVar[bool] = True
    n_past: ClassVar[int] = PAST

    @classmethod
    def fitted(cls, known: Known) -> ElasticNetwork:
        """To the known runs, its unit of time being the stride; of a large molecule with the network of its mean
        structure."""
        lags = np.unique(np.r_[known.steps, np.round(np.geomspace(1, max(known.steps) + PAST, 16))].astype(int))
        large = OWN_NETWORK < max((x.shape[1] for x in known.segments), default=0) <= MOST_ATOMS
        return cls.fit([Sample(known.segments, 1 / known.every)], lags, known.motion.mean if large else None)

    @classmethod
    def fit(cls, samples: Iterable[Sample], lags: ArrayLike, mean: np.ndarray | None = None) -> ElasticNetwork:
        """To runs of one or several molecules.

        Parameters
        ----------
        samples : iterable of Sample
        lags : array_like
            Above 0, in the unit of the samples' spacing; those that are no whole number of frames, or longer than a
            run, are left out for it.
        mean : ndarray, shape (N, 3), optional
            Of the only molecule.

        Raises
        ------
        DataError
            Fewer than ten pairs of frames with the shortest lag, or a molecule of more than 3000 atoms.
        """
        lags = np.unique(np.asarray(lags, float))
        common = None if mean is None else Modes.of(mean)
        log_stiffness, squares, whole = [], [], []
        for sample in samples:
            for placed, frames, there in _pairs(sample, lags, mean):
                shape, motion = apart(frames[None], placed.start)  # (1, L, N, 3), (1, L, 6)
                modes = common or Modes.of(placed.start[0])
                in_modes = np.einsum("nm,lnx->lmx", modes.vectors, shape[0] - placed.start[0], optimize=True)
                row = np.full((len(lags), in_modes.shape[1]), np.nan)
                row[there] = np.mean(in_modes**2, axis=-1)  # (L, M)
                n = len(placed.start[0])
                inside = slice(min(n - 1, 1), None)  # without the motion as a whole
                log_stiffness.append(modes.stiffness[inside])
                squares.append(row[:, inside].T)
                size = n * np.array([np.mean(np.sum(placed.start[0] ** 2, axis=1)), 1.0])  # (2,)
                both = np.full((len(lags), 2), np.nan)
                both[there] = size * np.mean(motion[0].reshape(-1, 2, 3) ** 2, axis=-1)
                whole.append(both)
        if len(whole) < FEWEST_PAIRS:
            raise DataError(
                f"the {cls.name} needs at least {FEWEST_PAIRS} pairs of frames {lags[0]:g} apart, found {len(whole)}"
            )
        flat, values = np.concatenate(log_stiffness), np.concatenate(squares)  # (R,), (R, L)
        rigid = _mean(np.stack(whole))  # (L, 2)
        seen = lags[np.isfinite(rigid[:, 0])]
        taus = np.geomspace(seen[0] / 4, 4 * seen[-1], RELAXATIONS)
        groups = [g for g in np.array_split(np.argsort(flat, kind="stable"), BINS) if len(g)]
        # Softer modes move more, about as the inverse of their stiffness: what is left of that varies little in a bin.
        scaled = values * np.exp(flat)[:, None]
        amplitude = np.stack([_coefficients(lags, _mean(scaled[g]), taus) for g in groups])
        knots = np.array([flat[g].mean() for g in groups])
        knots, amplitude = np.r_[flat.min(), knots, flat.max()], amplitude[[0, *range(len(groups)), -1]]
        turning = np.stack([_coefficients(lags, column, taus) for column in rigid.T])
        return cls(taus, knots, amplitude, turning, seen[[0, -1]], mean=mean)

    @functools.cached_property
    def _common(self) -> Modes | None:
        """Modes of every start, where there is one network for all of them."""
        return None if self.mean is None else Modes.of(self.mean)

    def arrays(self) -> dict[str, NDArray]:
        """Its numbers by name, float32: what a checkpoint stores."""
        names = ("taus", "knots", "amplitude", "turning", "span")
        return {name: np.asarray(getattr(self, name), np.float32) for name in names}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray]) -> ElasticNetwork:
        """From what :meth:`arrays` gave."""
        return cls(**{name: np.asarray(value, np.float64) for name, value in arrays.items()})

    def conditional(
        self, n_before: int, times: ArrayLike, stride: float | None = None, *, ended: bool = False
    ) -> tuple[Conditional, ...]:
        """Of the motion in modes of :data:`GRID` stiffnesses, and of the two rigid motions.

        Parameters
        ----------
        n_before : int
            Frames before the start that are known, one stride apart.
        times : array_like, shape (T,)
            Strides after it.
        stride : float, optional
        ended : bool
            The last of these frames is known, the last of those "before": what lies between is left.
        """
        stride = self.stride if stride is None else stride
        key = (n_before, np.asarray(times, float).tobytes(), stride, ended)
        if key not in self._conditionals:
            if len(self._conditionals) >= KEPT:
                self._conditionals.clear()
            self._conditionals[key] = self._conditional(n_before, times, stride, ended)
        return self._conditionals[key]

    def _conditional(self, n_before: int, times: ArrayLike, stride: float, ended: bool) -> tuple[Conditional, ...]:
        past, times = stride * np.arange(-n_before, 0.0), stride * np.asarray(times, float)
        if ended:
            past, times = np.append(past, times[-1]), times[:-1]
        grid = np.linspace(self.knots[0], self.knots[-1], GRID)
        amplitude = np.stack([np.interp(grid, self.knots, column) for column in self.amplitude.T], axis=1)
        amplitude *= np.exp(-grid)[:, None]
        return tuple(Conditional.of(a, self.taus, past, times) for a in (amplitude, self.turning))

    def on_grid(self, log_stiffness: ArrayLike) -> np.ndarray:
        """Places on the grid of :meth:`conditional`."""
        low, high = self.knots[0], self.knots[-1]
        return (GRID - 1) * np.clip((np.asarray(log_stiffness) - low) / max(high - low, 1e-12), 0, 1)

    def given(self, modes: Modes, before: np.ndarray, grid: Conditional) -> Given:
        """What follows a start with these displacements before it (P, N, 3)."""
        here, (response, factor, _) = self._of_modes(modes, grid)
        mean = modes.apply(here.response, response, before)  # (T, N, 3)
        return Given(modes, mean, self.scale, here.factor, factor)

    def _of_modes(self, modes: Modes, grid: Conditional) -> tuple[Conditional, Sequence[np.ndarray | None]]:
        """Of each mode, and the parts of one for what is beyond all of them: none where nothing is."""
        beyond = [None] * 3 if modes.rest is None else [part[0] for part in grid.at(self.on_grid([modes.rest]))]
        return grid.at(self.on_grid(modes.stiffness)), beyond

    def scaled(self, known: Known) -> ElasticNetwork:
        """The same network for a molecule that moves more, or less, than expected: as much as known runs of it did."""
        squares, count, length = 0.0, 0, known.every * PAST
        pasts = [x[k : k + length : known.every] for x in known.segments for k in range(0, len(x), length)]
        pasts = [x for x in pasts if len(x) > 1]
        n_atoms = max((x.shape[1] for x in pasts), default=1)
        most = max(1, min(LOOKED_AT, ATOMS_LOOKED_AT // n_atoms))
        for past in pasts[:: -(-len(pasts) // most) or 1]:
            placed = Placed.of(past[None], PAST, self.mean)
            modes, before = self._common or Modes.of(placed.start[0]), placed.before[0]  # (P, N, 3)
            here, (*_, beyond) = self._of_modes(modes, self.conditional(len(before), [1.0])[0])
            squares += float(np.sum(modes.apply(here.white, beyond, before) ** 2))
            count += before.size
        return dataclasses.replace(self, scale=float(np.sqrt((AS_EXPECTED + squares) / (AS_EXPECTED + count))))

    def __call__(self, past, times, samples=1, generator=None):
        check_drawn(samples, generator)
        placed = Placed.of(past, self.n_past, self.mean)
        n_starts, n_before, n_atoms = placed.before.shape[:3]
        grid, whole = self.conditional(n_before, times)
        n_times = len(np.asarray(times))
        found = [
            self.given(self._common or Modes.of(start), before, grid)
            for start, before in zip(placed.start, placed.before, strict=True)
        ]
        drift = self.drift(placed, whole)  # (S, T, 6)
        out = np.empty((n_starts, samples, n_times, n_atoms, 3))
        out[:] = (placed.start[:, None] + np.stack([one.mean for one in found]))[:, None]
        if generator is None:
            return placed.back(moved(out, drift[:, None]))
        count = 3 * n_times * n_atoms
        for rows, members in in_turn(n_starts, samples, 2 * count + 6 * n_times):
            numbers = generator.standard_normal((len(rows), count + 6 * n_times))
            for row, member, own in zip(rows, members, numbers, strict=True):
                frames = out[row, member] + found[row].path(own[:count].reshape(n_times, n_atoms, 3))
                if self.rigid:
                    motion = self.turned(placed.start[row], whole, own[count:].reshape(2, n_times, 3))
                    frames = moved(frames, drift[row] + motion)
                out[row, member] = frames
        return placed.back(out)

    def ensemble(self, structure: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        """Frames (count, N, 3) about a structure (N, 3) that stands for the mean of all, each by itself.

        Two frames of a stationary motion differ by twice its variance: theirs is half of what the network moves in the
        longest time that it has seen.
        """
        still = dataclasses.replace(self, rigid=False)
        moved = still(structure[None, None], [self.span[1] / self.stride], count, generator)[0, :, 0]
        return structure + (moved - structure) / np.sqrt(2)

    def drift(self, placed: Placed, whole: Conditional) -> np.ndarray:
        """Mean rigid motion (S, T, 6)."""
        parts = placed.drift.reshape(*placed.drift.shape[:2], 2, 3)  # (S, P, 2, 3)
        return np.einsum("gtp,spgx->stgx", whole.response, parts).reshape(len(parts), -1, 6)

    def turned(self, start: np.ndarray, whole: Conditional, numbers: np.ndarray) -> np.ndarray:
        """Random rigid motion (T, 6) of a start (N, 3) about the origin, of standard normal numbers (2, T, 3)."""
        size = len(start) * np.array([np.mean(np.sum(start**2, axis=1)), 1.0])  # (2,)
        parts = whole.factor @ numbers / np.sqrt(np.maximum(size, 1e-12))[:, None, None]  # (2, T, 3)
        return np.concatenate(list(parts), axis=-1)


class Given(NamedTuple):
    """What follows one start: the mean displacement (T, N, 3), and what random paths are made of."""

    modes: Modes
    mean: np.ndarray
    scale: float
    factor: np.ndarray
    beyond: np.ndarray | None

    def path(self, numbers: np.ndarray) -> np.ndarray:
        """A path about the mean (T, N, 3) of standard normal numbers (T, N, 3); it has no rigid motion.

        The numbers belong to atoms and not to modes, whose signs, and whose order where they are equally stiff, are
        arbitrary.
        """
        path = self.scale * self.modes.apply(self.factor, self.beyond, numbers)
        flat = path.reshape(len(path), -1)  # (T, 3 N)
        return (flat - flat @ self.modes.rigid @ self.modes.rigid.T).reshape(path.shape)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation of the paths (T, N) in each direction, with the rigid motion that is taken off them."""
        variance = np.sum(self.factor**2, axis=-1)  # (M, T)
        out = np.einsum("nm,mt->tn", self.modes.vectors**2, variance)
        if self.beyond is not None:
            left = 1 - np.sum(self.modes.vectors**2, axis=1)  # (N,)
            out += np.sum(self.beyond**2, axis=-1)[:, None] * left
        return self.scale * np.sqrt(out)


def _pairs(
    sample: Sample, lags: np.ndarray, mean: np.ndarray | None
) -> Iterable[tuple[Placed, np.ndarray, np.ndarray]]:
    """Starts of runs, the frames that follow them (L, N, 3), and which of the lags these are."""
    frames = lags / sample.spacing
    whole = np.abs(frames - np.round(frames)) < 1e-3 * np.maximum(frames, 1)
    steps = np.round(frames).astype(int)
    if not whole.any():
        return
    first = steps[whole].min()
    starts = [(x, f) for x in sample.segments for f in range(len(x) - first)]
    for x, f in [starts[k] for k in np.unique(np.linspace(0, len(starts) - 1, STARTS).astype(int))] if starts else []:
        there = np.flatnonzero(whole & (f + steps < len(x)))
        placed = Placed.of(np.asarray(x[f])[None, None], 1, mean)
        later = (np.asarray(x[f + steps[there]], np.float64) - placed.centre[0]) @ placed.rotation[0]
        yield placed, later, there


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, of what is known; NaN where nothing is."""
    there = np.isfinite(values)
    count = there.sum(axis=0)
    return np.divide(np.where(there, values, 0).sum(axis=0), count, out=np.full(count.shape, np.nan), where=count > 0)


def _coefficients(lags: np.ndarray, squares: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """Coefficients (2 J + 1,) above 0 whose sum of terms is nearest to mean squares (L,), relative to these."""
    there = np.isfinite(squares) & (squares > 0)
    if not there.any():
        return np.zeros(2 * len(taus) + 1)
    return nnls(terms(lags[there], taus) / squares[there, None], np.ones(there.sum()))[0]
