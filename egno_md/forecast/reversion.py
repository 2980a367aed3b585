"""Mean reversion of long chains: what windows spread, the next ones give back, so that a chain stays where the run was.

A forecast of one window need not know the structure that a molecule comes back to: over so short a time, standing still
errs as little. In a chain of hundreds of windows the spread of each adds to that of those before, as in a random walk,
and the molecule drifts out of all that the run has shown. Along each principal direction of the run, the slow motion of
a chain is an autoregression: a window responds to where it began by a factor rho and draws the variance s beside it. It
keeps the variance v that slow motion has in the run if it responds by sqrt(1 - s / v) in place of rho, and what rho is
more than that is given back, in equal parts of the window.

Molecules revert each by itself, and how they lie to each other does not: nobody knows whether one that left comes back.
Those that touch in every frame of the run are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..molecule.geometry import aligned, superposition
from .forecasters import Forecaster, Known
from .rolling import REVERTING, Chained, Restored
from .streams import Streams

#: Frames of the run that its directions are taken from, and folds of them; the smallest variance of a direction as a
#: share of the largest.
FRAMES, FOLDS, SMALLEST = 500, 4, 1e-6

#: Chains that are drawn, at least and at most; atoms of all of them.
FEWEST_CHAINS, CHAINS, CHAIN_ATOMS = 20, 48, 20_000

#: Directions count as those in which chains vary more than the run by so many standard errors; fewer are chance.
BEYOND_CHANCE, FEW = 2.0, 0.1

#: Directions on either side of one that tell what it draws beside itself.
BESIDE = 12

#: Molecules that are nearer than this in Angstrom in so many frames of the run are one; and the largest systems, of
#: which chains are left alone.
CONTACT, LOOKED_AT, MOST_ATOMS, MOST_BODIES = 10.0, 20, 5000, 50


@dataclass(frozen=True, eq=False)
class MeanReversion:
    """How much of the displacement from the mean structure a window gives back, so that chains vary as the run does.

    Attributes
    ----------
    bodies : sequence of ndarray
        Atoms of each body that reverts by itself.
    mean : ndarray, shape (N, 3)
        Mean structure of each about its own centre in Angstrom.
    directions : ndarray, shape (R, 3 * N)
        Principal directions of the run, all bodies together, each superposed on its mean structure; orthonormal.
    given : ndarray, shape (R + 1,)
        Share of the displacement at the start of a window that it has given back at its end; the last is that of
        displacements in none of the directions.
    """

    bodies: Sequence[NDArray[np.int64]]
    mean: NDArray[np.float64]
    directions: NDArray[np.float64]
    given: NDArray[np.float64]

    @classmethod
    def fit(
        cls, forecaster: Forecaster, known: Known, times: ArrayLike, n_past: int, bonds: ArrayLike = ()
    ) -> MeanReversion | None:
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
        bonds : array_like of int, shape (B, 2), optional
            Without any all atoms are one body.

        Returns
        -------
        MeanReversion or None
            None where chains vary no more than the run, in nine of ten directions or altogether, as those of analogues
            do; of runs that are shorter than these chains or have fewer than 20 frames to begin at; and of more than
            5000 atoms or 50 bodies.
        """
        every, length = known.every, REVERTING * len(np.asarray(times))
        starts = [(k, f) for k, x in enumerate(known.segments) for f in range((n_past - 1) * every, len(x))]
        total = sum(map(len, known.segments))
        if len(starts) < FEWEST_CHAINS or total < REVERTING * np.max(times) * every:
            return None
        thin = -(-total // FRAMES)
        frames = np.concatenate([np.asarray(x[::thin], np.float64) for x in known.segments])  # (F, N, 3)
        bodies = _bodies(frames[:: -(-len(frames) // LOOKED_AT)], bonds)
        if not bodies:
            return None
        mean = np.zeros(frames.shape[1:])
        for body in bodies:
            mean[body] = aligned(frames[:, body], known.motion.mean[body]).mean(axis=0)
        own = cls(bodies, mean, np.zeros((0, mean.size)), np.zeros(1))
        n_internal = int(sum(max(0, 3 * len(body) - 6) for body in bodies))
        directions, variance = _principal(own._displaced(frames), n_internal)
        if not len(directions):
            return None

        count = int(np.clip(CHAIN_ATOMS // len(mean), FEWEST_CHAINS, CHAINS))
        chosen = np.unique(np.linspace(0, len(starts) - 1, count).astype(int))
        places = [starts[k] for k in chosen[: len(chosen) // 2 * 2]]
        before = np.arange(1 - n_past, 1) * every
        past = np.stack([np.asarray(known.segments[k])[f + before] for k, f in places]).astype(np.float64)
        if isinstance(forecaster, Restored):
            forecaster = forecaster.inner
        half = len(past) // 2
        streams = Streams.of(0, np.tile(np.arange(half), 2), 1)
        chains = Chained(forecaster, times).collect(past, length, 1, streams)[:, 0]  # (2 C, F, N, 3)
        ends = past[:, -1], *(chains[:, k] for k in (len(np.asarray(times)) - 1, -1))
        first, after_one, last = (own._displaced(x.astype(np.float64)).reshape(2, half, -1) for x in ends)

        def products(one: np.ndarray, other: np.ndarray) -> NDArray[np.float64]:
            """Mean products along each direction, and along any of the others: (..., 3 N) both, to (R + 1,)."""
            within = np.mean((one @ directions.T) * (other @ directions.T), axis=tuple(range(one.ndim - 1)))
            whole = np.mean(np.sum(one * other, axis=-1))
            return np.append(within, (whole - within.sum()) / max(1, n_internal - len(directions)))

        # Two chains of the same random numbers differ by where they began alone.
        began = first[1] - first[0]  # (C, 3 N)
        spread = products(began, began)
        seen = spread > SMALLEST * variance
        spread = np.where(seen, spread, variance)

        def told(ends: np.ndarray) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
            """How chains that end there respond to where they began, how sure that is, and what they draw beside it."""
            ended = ends[1] - ends[0]  # (C, 3 N)
            both = products(began, ended)
            response = np.where(seen, both / spread, 1.0)
            left = products(ended, ended) - 2 * response * both + response**2 * spread
            beside = products(ends, ends) - 2 * response * products(first, ends) + response**2 * products(first, first)
            drawn = np.maximum(beside, 0) / variance
            return response, np.sqrt(np.maximum(left, 0) / spread / half), drawn

        (one, _, after_one), (all_of, unsure, after_all) = told(after_one), told(last)
        grown = all_of**2 + after_all - 1  # in variances of the run, as all that follows
        whole = variance * np.append(np.ones(len(directions)), max(0, n_internal - len(directions)))
        beyond = grown > BEYOND_CHANCE * np.hypot(2 * all_of * unsure, after_all * np.sqrt(2 / half))
        beyond &= whole > 0  # where there is no other direction, what is left there is rounding
        if np.sum(beyond) <= FEW * len(grown) or grown @ whole <= 0:
            return None
        return cls(bodies, mean, directions, _given(one, after_one, all_of, after_all, variance, half))

    def back(self, start: np.ndarray) -> NDArray[np.float64]:
        """What a window from a start (..., N, 3) gives back, in the frames of reference of the mean structures."""
        displaced = self._displaced(start)  # (..., 3 N)
        along = displaced @ self.directions.T  # (..., R)
        outside = displaced - along @ self.directions
        off = (self.given[:-1] * along) @ self.directions + self.given[-1] * outside
        return off.reshape(start.shape)

    def without(self, frames: np.ndarray, back: np.ndarray, part: ArrayLike) -> NDArray[np.float64]:
        """Frames (..., T, N, 3) without these parts (T,) of what is given back (..., N, 3)."""
        off = np.asarray(part, float)[:, None, None] * back[..., None, :, :]  # (..., T, N, 3)
        for body in self.bodies:  # they turn within a window
            turn = superposition(frames[..., body, :], self.mean[body])[0]  # (..., T, 3, 3)
            off[..., body, :] = off[..., body, :] @ np.swapaxes(turn, -1, -2)
        return frames - off

    def _displaced(self, frames: np.ndarray) -> NDArray[np.float64]:
        """Displacements (..., 3 N) of frames (..., N, 3) from the mean structure, each body superposed on its own."""
        out = np.zeros(frames.shape)
        for body in self.bodies:
            out[..., body, :] = aligned(frames[..., body, :], self.mean[body]) - self.mean[body]
        return out.reshape(*frames.shape[:-2], -1)


def _given(
    one: np.ndarray, after_one: np.ndarray, all_of: np.ndarray, after_all: np.ndarray, variance: np.ndarray, half: int
) -> NDArray[np.float64]:
    """What a window has to give back, of the responses of one window and of all (R + 1,), and what is drawn by then.

    That is in variances of the run, which are told in Angstrom**2; each is of `half` pairs of chains, the last of many
    directions.

    A displacement is slow, of a part `share` and with the memory `slow`, or fast and forgotten in a window. What slow
    motion draws in each window is `noise`; it must not add to more than the variance of the run without the fast one.
    """
    slow = np.clip(all_of / np.maximum(one, 1e-3), 0, 1) ** (1 / (REVERTING - 1))
    share = np.clip(one / np.maximum(slow, 1e-3), 0, 1)
    unknown = share * (1 - share)  # of the slow part, given the whole
    powers = np.maximum(np.sum(slow ** (2 * np.arange(1, REVERTING)[:, None]), axis=0), 1e-3)
    noise = after_all - after_one + unknown * (slow**2 - slow ** (2 * REVERTING))
    unsure = np.hypot(after_one, after_all) * np.sqrt(2 / half)
    noise, unsure = (x * variance / powers for x in (noise, unsure))
    noise = np.append(_like_those_beside(noise[:-1], unsure[:-1]), max(noise[-1], 0.0)) / variance
    fast = np.maximum(after_one - noise - slow**2 * unknown, 0)
    wanted = np.sqrt(np.maximum(1 - noise / np.maximum(1 - fast, 1e-3), 0))
    return np.clip(slow - wanted, 0, np.maximum(one, 0))


def _like_those_beside(found: np.ndarray, unsure: np.ndarray) -> NDArray[np.float64]:
    """Variances along directions (R,), nearer to the mean of those around them the less sure they are; James and Stein.

    In Angstrom, what slow motion draws in a window is much the same along directions that follow each other, and the
    chains are few: a direction along which, by chance, nothing seems to be drawn would never be called back. How far
    chains go is as the inverse of it, whose mean is larger than that of the truth by the square of what is not sure.
    """
    out = np.empty(len(found))
    for k in range(len(found)):
        around = slice(max(0, k - BESIDE), k + BESIDE + 1)
        mean, apart = found[around].mean(), found[around].var()
        chance = np.mean(unsure[around] ** 2)
        kept = max(0.0, 1 - chance / apart) if apart > 0 else 0.0
        likely = max(0.0, mean + kept * (found[k] - mean))
        out[k] = likely + kept * chance / max(likely, np.sqrt(chance), 1e-30)
    return out


def _principal(displaced: np.ndarray, n_internal: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal directions (R, D) of displacements (F, D) in order of time, and the variance along each and along any
    other of `n_internal` (R + 1,).

    Variances are those of frames that the directions were not made from, in folds and by their order: a run that is
    short beside its own memory has too much of it along its first directions, and far too little along the last ones.
    """
    from scipy.optimize import isotonic_regression  # brings half of scipy, which short forecasts need not load

    products = displaced @ displaced.T  # (F, F)
    sizes, vectors = _leading(products)
    directions = (vectors / np.sqrt(sizes)).T @ displaced  # (R, D)
    variance = np.zeros(len(sizes) + 1)
    frames = np.arange(len(displaced))
    for fold in np.array_split(frames, FOLDS):
        others = np.setdiff1d(frames, fold)
        own, vectors = _leading(products[np.ix_(others, others)])
        along = np.sum((products[np.ix_(fold, others)] @ (vectors / np.sqrt(own))) ** 2, axis=0)  # (R',)
        rest = np.trace(products[np.ix_(fold, fold)]) - along.sum()
        found = np.full(len(variance), max(0.0, rest) / max(1, n_internal - len(own)))
        found[: len(own)] = along[: len(variance)]
        variance += found / len(frames)
    variance = isotonic_regression(variance, increasing=False).x
    return directions, np.maximum(variance, SMALLEST * variance[0])


def _leading(products: np.ndarray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues (R,) of a matrix of products (F, F), the largest first, and their vectors (F, R)."""
    sizes, vectors = np.linalg.eigh(products)
    there = sizes > SMALLEST * max(sizes[-1], 1e-12)
    return sizes[there][::-1], vectors[:, there][:, ::-1]


def _bodies(frames: np.ndarray, bonds: ArrayLike) -> list[NDArray[np.int64]]:
    """Atoms of each molecule, those that are near each other in all frames (F, N, 3) taken for one; [] of too many."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    n = frames.shape[1]

    def groups(pairs: np.ndarray, n: int) -> tuple[int, NDArray[np.int32]]:
        return connected_components(coo_matrix((np.ones(len(pairs)), pairs.T), (n, n)), directed=False)

    bonds = np.asarray(bonds, int).reshape(-1, 2)
    count, molecule = groups(bonds, n) if len(bonds) else (1, np.zeros(n, int))
    if n > MOST_ATOMS or count > MOST_BODIES:
        return []
    touching: set[tuple[int, int]] | None = None
    for frame in frames if count > 1 else []:
        near = molecule[KDTree(frame).query_pairs(CONTACT, output_type="ndarray")]  # (P, 2)
        pairs = {tuple(pair) for pair in np.unique(np.sort(near, axis=1), axis=0).tolist()}
        touching = pairs if touching is None else touching & pairs
    body = groups(np.array(sorted(touching or [])).reshape(-1, 2).astype(int), count)[1][molecule]
    return [np.flatnonzero(body == k) for k in range(body.max() + 1)]
