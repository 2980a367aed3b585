"""Bring predicted frames back to a local geometry: bonds of the start, or all that hardly varies in the data."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from ..errors import DataError
from .geometry import bond_lengths, bonded_neighbours, runs_of_four, signed_volumes

#: Bonds of C-alpha chains and of heavy atoms fluctuate by less than this at 300 K (Angstrom).
BOND_SLACK = 0.1

#: And the distances of atoms two bonds apart, whose angles bend, by less than this (Angstrom); not those of beads.
ANGLE_SLACK = 0.3

SWEEPS = 500

#: Over the number of broken bounds at the busiest atom: the part of each that a sweep mends. 1 never overshoots, and
#: takes twice as many sweeps.
RELAXATION = 1.9

_CONVERGED = 1e-3

#: A distance whose standard deviation stays below this (Angstrom) is kept near its mean, others within their range.
RIGID = 0.12

#: How near: so many standard deviations, and not further than this for a bond (Angstrom). One standard deviation costs
#: twice as much accuracy, three gain little.
DEVIATIONS, RIGID_BOND = 2.0, 0.04

#: Pairs up to this many bonds apart have bounds of their own.
HOPS = 3

#: Frames, and atoms of all of them, that a geometry is read from, at most.
GEOMETRY_FRAMES, GEOMETRY_ATOMS = 20000, 2_000_000

#: Bounds that numpy sweeps over before the kernel is loaded: so many take it about as long as loading Numba. A sweep
#: costs as much as so many bounds before it looks at any, and there are at least so many where frames are broken.
COMPILED_AFTER, SWEEP_COST, FEW_SWEEPS = 3_000_000, 1000, 20

#: Numbers worked on at a time where a geometry is read, and where frames are projected.
_CHUNK, _PROJECTED = 2**21, 2**15


def keep_bonds(
    positions: NDArray[np.floating],
    bonds: NDArray[np.integer],
    lengths: NDArray[np.floating],
    *,
    slack: float = BOND_SLACK,
) -> NDArray[np.floating]:
    """Move bonded atoms, each pair along its own distance, until every bond is within `slack` of its length.

    A forecast is a mean over possible paths, and the mean of two orientations of a bond is shorter than the bond; over
    a chain of windows this adds up. The correction is SHAKE's (Ryckaert et al. 1977) with equal weights, all bonds at
    once, damped by the number of bonds that pull at an atom. It keeps the centre and the symmetries of the operator.

    Parameters
    ----------
    positions : ndarray, shape (..., N, 3)
        Angstrom.
    bonds : ndarray, shape (B, 2)
        Pairs of atoms.
    lengths : ndarray, shape (..., B)
        Lengths in Angstrom that the bonds shall have.
    slack : float
        Angstrom.

    Returns
    -------
    ndarray, shape (..., N, 3)
        New positions; the argument is not changed. What has not converged after 500 sweeps is left to the checks.
    """
    no_corners = np.zeros((0, 4), int), np.zeros(0), np.zeros(0)
    return _project(positions, (bonds, lengths - slack, lengths + slack), no_corners)


@dataclass(frozen=True)
class LocalGeometry:
    """What hardly varies in the runs of a molecule: bounds of distances, and of signed volumes, which hold handedness.

    Attributes
    ----------
    pairs : ndarray of int, shape (P, 2)
        Atoms up to three bonds apart.
    lower, upper : ndarray, shape (P,)
        Bounds of their distances in Angstrom. A distance that hardly varies (standard deviation below 0.12 A) is kept
        within two standard deviations of its mean, a bond within 0.04 A; any other within the range that was seen.
    corners : ndarray of int, shape (Q, 4)
        An atom with three of its bonded neighbours, or four atoms in a row along bonds.
    volume_lower, volume_upper : ndarray, shape (Q,)
        Range of their signed volumes that was seen, in Angstrom cubed. Both bounds of one sign keep a chiral centre,
        or the side of a torsion that was never crossed.
    closest : ndarray, shape (1,)
        Smallest distance seen of atoms more than three bonds apart, Angstrom.
    """

    pairs: NDArray[np.int64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    corners: NDArray[np.int64]
    volume_lower: NDArray[np.float64]
    volume_upper: NDArray[np.float64]
    closest: NDArray[np.float64]

    @classmethod
    def fit(cls, segments: Sequence[np.ndarray], bonds: NDArray[np.integer]) -> LocalGeometry:
        """Read the bounds off some runs.

        Parameters
        ----------
        segments : sequence of ndarray, shape (F, N, 3)
            Angstrom; molecules whole. Of more than 20000 frames in all (fewer above 100 atoms), evenly spread ones are
            used.
        bonds : ndarray, shape (B, 2)

        Raises
        ------
        DataError
            No frame.
        """
        total = sum(map(len, segments))
        if not total:
            raise DataError("a local geometry is read off frames, and there is none")
        n_atoms = segments[0].shape[1]
        thin = -(-total // min(GEOMETRY_FRAMES, max(1, GEOMETRY_ATOMS // n_atoms)))
        pairs, hops = _near_pairs(bonds, n_atoms)
        corners = _corners(bonds, n_atoms)
        chunk = max(1, _CHUNK // max(1, 3 * len(pairs), 9 * len(corners))) * thin
        low, high = np.full(len(pairs), np.inf), np.zeros(len(pairs))
        first, second = np.zeros(len(pairs)), np.zeros(len(pairs))
        volume_low, volume_high = np.full(len(corners), np.inf), np.full(len(corners), -np.inf)
        closest, near, count = np.inf, _keys(pairs, n_atoms), 0
        middle = bond_lengths(np.asarray(segments[0][:1], np.float64), pairs)[0]  # (P,); variances without cancellation
        for segment in segments:
            for k in range(0, len(segment), chunk):
                x = np.asarray(segment[k : k + chunk : thin], np.float64)  # (C, N, 3)
                d = bond_lengths(x, pairs)  # (C, P)
                low, high = np.minimum(low, d.min(0)), np.maximum(high, d.max(0))
                first, second, count = first + (d - middle).sum(0), second + ((d - middle) ** 2).sum(0), count + len(d)
                v = signed_volumes(x, corners)  # (C, Q)
                volume_low, volume_high = np.minimum(volume_low, v.min(0)), np.maximum(volume_high, v.max(0))
                closest = min(closest, *(_closest(frame, near, closest) for frame in x))
        mean = middle + first / count
        spread = np.sqrt(np.maximum(second / count - (first / count) ** 2, 0.0))  # (P,)
        slack = DEVIATIONS * spread  # (P,)
        slack = np.where(hops == 1, np.minimum(slack, RIGID_BOND), slack)
        rigid = spread < RIGID
        return cls(
            pairs,
            np.where(rigid, mean - slack, low),
            np.where(rigid, mean + slack, high),
            corners,
            volume_low,
            volume_high,
            np.array([closest if np.isfinite(closest) else 0.0]),
        )

    @classmethod
    def about(
        cls, frame: NDArray[np.floating], bonds: NDArray[np.integer], closest: float, *, angles: bool = True
    ) -> LocalGeometry:
        """Bounds about a single frame (N, 3), which is all that is known of the molecule.

        Bonds stay within 0.1 A of their lengths there and atoms two bonds apart, where `angles` are to be kept, within
        0.3 A of theirs: they are not known to be stiff in chains of beads. All others stay further apart than
        `closest`, in Angstrom. Handedness is not held: what is as little moved as can be does not turn over.
        """
        pairs, hops = _near_pairs(bonds, len(frame))
        pairs, hops = pairs[hops <= 2], hops[hops <= 2]  # (P, 2), (P,)
        lengths = bond_lengths(np.asarray(frame, np.float64), pairs)  # (P,)
        slack = np.where(hops == 1, BOND_SLACK, ANGLE_SLACK)
        loose = (hops == 2) & (not angles)
        return cls(
            pairs,
            np.where(loose, np.minimum(lengths, closest), lengths - slack),
            np.where(loose, np.inf, lengths + slack),
            np.zeros((0, 4), np.int64),
            np.zeros(0),
            np.zeros(0),
            np.array([closest]),
        )

    def project(self, positions: NDArray[np.floating]) -> NDArray[np.floating]:
        """Move the atoms, as little as it takes, until distances and volumes are within their bounds.

        Parameters
        ----------
        positions : ndarray, shape (..., N, 3)
            Angstrom; no periodic box.

        Returns
        -------
        ndarray, shape (..., N, 3)
            Centres are kept. It commutes with rotations, and not with reflections: a chiral centre that has just gone
            through its plane is brought back. What has not converged after 500 sweeps, such as the mirror image of a
            whole molecule, is left to the checks.
        """
        # A few frames at a time: the pairs that may come too close are those of all of them.
        frames = positions.reshape(-1, *positions.shape[-2:])  # (M, N, 3)
        size = max(1, _PROJECTED // max(1, 3 * len(self.pairs)))
        parts = [self._project_some(frames[k : k + size]) for k in range(0, len(frames), size)]
        return np.concatenate(parts or [frames]).reshape(positions.shape)

    def keep(self, frames: NDArray[np.floating], start: NDArray[np.floating]) -> NDArray[np.floating]:
        """:meth:`project`, in the form of ``Restored.keep``; the start of a chain has no part in it."""
        return self.project(frames)

    def outside(self, positions: NDArray[np.floating]) -> NDArray[np.float64]:
        """How far the worst distance, or volume, is out of its bounds, Angstrom; other pairs' contacts are left out.

        Parameters
        ----------
        positions : ndarray, shape (..., N, 3)

        Returns
        -------
        ndarray, shape (...)
        """
        x = np.asarray(positions, np.float64).reshape(-1, *positions.shape[-2:])  # (M, N, 3)
        lengths = bond_lengths(x, self.pairs)  # (M, P)
        worst = np.abs(lengths - np.clip(lengths, self.lower, self.upper)).max(axis=-1, initial=0.0)
        if len(self.corners):
            volumes = self.volume_lower[:, None], self.volume_upper[:, None]
            _, lack, size = _volume_excess(x.swapaxes(0, 1), self.corners, *volumes)  # (Q, M) both
            worst = np.maximum(worst, (np.abs(lack) / np.sqrt(size)).max(axis=0))
        return worst.reshape(positions.shape[:-2])

    def _project_some(self, frames: NDArray[np.floating]) -> NDArray[np.floating]:
        n_atoms = frames.shape[-2]
        near, reach = _keys(self.pairs, n_atoms), float(self.closest[0])
        found = [cKDTree(x).query_pairs(reach + 0.5, output_type="ndarray").reshape(-1, 2) for x in frames]
        others = np.unique(np.concatenate(found), axis=0)  # (C, 2): those that may come too close
        others = others[~np.isin(_keys(others, n_atoms), near)]
        bounds = (
            np.concatenate([self.pairs, others]),
            np.concatenate([self.lower, np.full(len(others), reach)]),
            np.concatenate([self.upper, np.full(len(others), np.inf)]),
        )
        return _project(frames, bounds, (self.corners, self.volume_lower, self.volume_upper))


def _project(
    positions: NDArray[np.floating],
    distances: tuple[NDArray[np.integer], NDArray[np.floating], NDArray[np.floating]],
    volumes: tuple[NDArray[np.integer], NDArray[np.floating], NDArray[np.floating]],
) -> NDArray[np.floating]:
    """Positions within bounds, by sweeps over all that are broken at once.

    A broken bound moves its atoms along its own gradient by what it lacks (Mueller et al. 2007, position based
    dynamics), in part where many are broken at the busiest of them, so that together they do not overshoot.
    """
    (pairs, lower, upper), (corners, volume_lower, volume_upper) = distances, volumes
    if not len(pairs) + len(corners):
        return positions.copy()
    frames = np.array(positions.reshape(-1, *positions.shape[-2:]), np.float64)  # (M, N, 3)
    lower, upper = (
        np.broadcast_to(b, (*positions.shape[:-2], len(pairs)) if b.ndim > 1 else b.shape).reshape(-1, len(pairs))
        for b in (lower, upper)
    )  # (M or 1, P) both
    # Written to by nobody, but Numba compiles once more for what is read-only.
    arguments = [
        np.require(a, kind, ["C", "W"])
        for a, kind in zip(
            (pairs, lower, upper, corners, volume_lower, volume_upper), (np.int64, float, float) * 2, strict=True
        )
    ]
    kernel = _kernel(len(frames) * (len(pairs) + len(corners)))
    if kernel is None:
        _swept.total += _sweep(frames, *arguments)
    else:
        kernel(frames, *arguments, SWEEPS, RELAXATION, _CONVERGED)
    return frames.reshape(positions.shape).astype(positions.dtype)


@dataclass
class _Swept:
    """What was swept over without the kernel so far, in bounds; all frames and sweeps counted."""

    total: int = 0


_swept = _Swept()


def _kernel(bounds: int) -> Callable[..., Any] | None:
    """The compiled sweeps, where they are worth loading for so many bounds of all frames: Numba takes a second, which a
    short forecast does not have."""
    if _swept.total + FEW_SWEEPS * bounds < COMPILED_AFTER and "numba" not in sys.modules:
        return None
    try:
        from .kernels import sweep
    except ImportError:  # no Numba for this Python
        return None
    return sweep


def _sweep(
    frames: NDArray[np.float64],
    pairs: NDArray[np.int64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    corners: NDArray[np.int64],
    volume_lower: NDArray[np.float64],
    volume_upper: NDArray[np.float64],
) -> int:
    """Bring frames (M, N, 3) within their bounds, in place; returns what it cost, in bounds.

    Bounds of distances are (M or 1, P), of volumes (Q,).
    """
    x = np.ascontiguousarray(frames.swapaxes(0, 1))  # (N, M, 3)
    n_atoms, n_frames = x.shape[:2]
    lower, upper = (np.broadcast_to(b, (n_frames, len(pairs))).T for b in (lower, upper))  # (P, M)
    volume_lower, volume_upper = volume_lower[:, None], volume_upper[:, None]  # (Q, 1)
    ends, arms = _incidence(pairs, n_atoms), _incidence(corners, n_atoms)
    left = np.arange(n_frames)  # frames that are not done
    count = 0
    for _ in range(SWEEPS):
        count += SWEEP_COST + len(left) * (len(pairs) + len(corners))
        y = x[:, left]  # (N, M', 3)
        d = y[pairs[:, 0]] - y[pairs[:, 1]]  # (P, M', 3)
        r = np.maximum(np.linalg.norm(d, axis=-1), 1e-6)  # (P, M')
        excess = r - np.clip(r, lower[:, left], upper[:, left])  # (P, M')
        worst = np.abs(excess).max(axis=0, initial=0.0)  # (M',)
        if len(corners):
            _, lack, size = _volume_excess(y, corners, volume_lower, volume_upper)  # (Q, M') both
            worst = np.maximum(worst, (np.abs(lack) / np.sqrt(size)).max(axis=0))
        broken = worst > _CONVERGED
        if not broken.any():
            break
        pull = (_share(excess, pairs, ends) * 0.5 * excess / r)[..., None] * d  # (P, M', 3)
        y = y - _scatter(ends, np.stack([pull, -pull], axis=1))
        if len(corners):
            gradients, lack, size = _volume_excess(y, corners, volume_lower, volume_upper)  # (Q, 4, M', 3), ...
            y -= _scatter(arms, (_share(lack, corners, arms) * lack / size)[:, None, :, None] * gradients)
        x[:, left[broken]] = y[:, broken]
        left = left[broken]
    frames[:] = x.swapaxes(0, 1)  # (M, N, 3)
    return count


def _volume_excess(
    y: NDArray[np.float64], corners: NDArray[np.integer], lower: NDArray[np.floating], upper: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Gradients of the volumes by their corners (Q, 4, M, 3), what each is out of its bounds by, and their squares."""
    u, v, w = (y[corners[:, k]] - y[corners[:, 0]] for k in (1, 2, 3))  # (Q, M, 3) each
    by_corner = [np.cross(v, w), np.cross(w, u), np.cross(u, v)]
    volume = np.sum(u * by_corner[0], axis=-1)  # (Q, M)
    gradients = np.stack([-sum(by_corner), *by_corner], axis=1)  # (Q, 4, M, 3)
    # One axis after the other: of a single frame numpy takes both for one, in another order than the compiled loop.
    size = np.maximum(np.square(gradients).sum(axis=3).sum(axis=1), 1e-6)  # (Q, M)
    return gradients, volume - np.clip(volume, lower, upper), size


def _incidence(members: NDArray[np.integer], n_atoms: int) -> csr_array:
    """(N, P K): 1 where an atom is that member of that bound."""
    flat = members.ravel()
    return csr_array((np.ones(len(flat)), (flat, np.arange(len(flat)))), shape=(n_atoms, len(flat)))


def _scatter(incidence: csr_array, moves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the bounds of each atom, (P, K, M, 3) to (N, M, 3)."""
    return (incidence @ moves.reshape(incidence.shape[1], -1)).reshape(-1, *moves.shape[2:])  # (N, M, 3)


def _share(excess: NDArray[np.float64], members: NDArray[np.integer], incidence: csr_array) -> NDArray[np.float64]:
    """What part of its lack each bound mends in a sweep (P, M): `RELAXATION` over the broken bounds at its atoms."""
    broken = np.repeat((excess != 0).astype(np.float64), members.shape[1], axis=0)  # (P K, M)
    busy = incidence @ broken  # (N, M)
    return np.minimum(1.0, RELAXATION / np.maximum(busy[members].max(axis=1), 1.0))  # (P, M)


def _keys(pairs: NDArray[np.integer], n_atoms: int) -> NDArray[np.integer]:
    return pairs.min(axis=1) * n_atoms + pairs.max(axis=1)


def _closest(frame: NDArray[np.float64], near: NDArray[np.integer], known: float) -> float:
    """Smallest distance of a pair that is not `near`, as far as it is below `known`."""
    pairs = cKDTree(frame).query_pairs(min(known, 6.0), output_type="ndarray").reshape(-1, 2)
    pairs = pairs[~np.isin(_keys(pairs, len(frame)), near)]
    return float(bond_lengths(frame, pairs).min(initial=np.inf))


def _near_pairs(bonds: NDArray[np.integer], n_atoms: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs up to three bonds apart (P, 2), and by how many bonds (P,)."""
    neighbours = bonded_neighbours(bonds, n_atoms)
    found: dict[tuple[int, int], int] = {}
    for i in range(n_atoms):
        shell, seen = {i}, {i}
        for hop in range(1, HOPS + 1):
            shell = {k for j in shell for k in neighbours[j]} - seen
            seen |= shell
            found.update({(i, j): hop for j in shell if i < j})
    pairs = np.array(sorted(found), dtype=np.int64).reshape(-1, 2)
    return pairs, np.array([found[i, j] for i, j in pairs.tolist()], dtype=np.int64)


def _corners(bonds: NDArray[np.integer], n_atoms: int) -> NDArray[np.int64]:
    """Each atom with three of its neighbours, and every run of four bonded atoms (Q, 4)."""
    stars = [
        [i, *three]
        for i, atoms in enumerate(bonded_neighbours(bonds, n_atoms))
        for three in itertools.islice(itertools.combinations(atoms, 3), 1)
    ]
    return np.concatenate([np.array(stars, dtype=np.int64).reshape(-1, 4), runs_of_four(bonds, n_atoms)])
