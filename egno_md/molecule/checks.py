"""Is this frame physical? Bonds, clashes, handedness and size of predicted frames, measured against a real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_matrix

from ..errors import DataError, UsageError, counted
from .geometry import bond_lengths, bonded_neighbours, radius_of_gyration, runs_of_four
from .molecule import Molecule
from .neighbors import contacts
from .possible import OVERLAP, impossible_in, possible_lengths

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


#: A bond that differs more than this from its length in the reference is off, Angstrom.
BOND_TOLERANCE = 0.5

#: Two atoms that are not bonded hardly come closer than this, Angstrom: with hydrogens, heavy atoms, C-alpha beads.
CLASH_HYDROGENS, CLASH_ATOMS, CLASH_BEADS = 1.5, 2.0, 3.0

#: Bonds longer than this (median, Angstrom) join beads, not atoms.
BEAD_BOND = 2.5

#: The radius of gyration may change by this factor either way.
SIZE_FACTOR = 1.25

#: What frames of the run itself go beyond these, a forecast may, and so many times as far.
BEYOND = 1.25

#: Signed volume (of unit vectors) from which on a centre is a pyramid; 0 is planar, 0.77 a tetrahedron.
PYRAMID = 0.5

#: Bonds shorter than this go to a hydrogen, Angstrom.
HYDROGEN_BOND = 1.15

#: Fewer runs of four bonded atoms than this say little about the handedness of the whole.
MIN_RUNS = 10


@dataclass(frozen=True)
class Limits:
    """From where on a frame has a finding; further away where frames of the run itself go there."""

    bond: float = BOND_TOLERANCE
    """How much a bond may differ from its length in the reference, Angstrom."""
    radius: tuple[float, float] = (1 / SIZE_FACTOR, SIZE_FACTOR)
    """Least and largest radius of gyration over that of the reference."""
    nearest: float = np.inf
    """How near atoms of the run come to each other, Angstrom; see :func:`nearest_contact`."""
    turned: frozenset[str] = frozenset()
    """Whether centres may be turned over ("flipped"), or frames nearer to the mirror image ("mirrored")."""

    @classmethod
    def of(cls, frames: ArrayLike, reference: ArrayLike, bonds: ArrayLike, nearest: float = np.inf) -> Limits:
        """Those beside a reference (N, 3) of frames of its run (F, N, 3): an unfolding chain changes its size, some
        centres turn over. What no molecule looks like is a finding nevertheless.

        An unsound frame of the run widens them as a sound one does.
        """
        xyz, start = np.asarray(frames, np.float64), np.asarray(reference, np.float64)
        pairs = np.asarray(bonds, np.int64).reshape(-1, 2)
        ratio = _radius_ratio(xyz, start)  # (F,)
        centres = _centres(pairs, start)
        turned = {"flipped"} if _flipped(xyz, start, centres).any() else set()
        if not len(centres) and (_handedness(xyz, start, pairs) < 0).any():
            turned.add("mirrored")
        return cls(
            bond=_beyond(BOND_TOLERANCE, float(_deviation(xyz, start, pairs).max(initial=0.0))),
            radius=(
                1 / _beyond(SIZE_FACTOR, 1 / max(float(ratio.min(initial=1.0)), 1e-9)),
                _beyond(SIZE_FACTOR, float(ratio.max(initial=1.0))),
            ),
            nearest=nearest,
            turned=frozenset(turned),
        )


def _beyond(limit: float, most: float) -> float:
    return limit if most < limit else BEYOND * most


@dataclass(frozen=True)
class PhysicalChecks:
    """What `check_frames` found, each array of shape ``(F,)``; nan or 0 in frames that are not finite."""

    finite: NDArray[np.bool_]
    """No coordinate is nan or infinite."""
    bond_deviation: NDArray[np.float64]
    """Largest difference of a bond from its length in the reference, Angstrom (0 without bonds)."""
    bonds_off: NDArray[np.int64]
    """Number of bonds that differ by more than the limit, 0.5 Angstrom."""
    clashes: NDArray[np.int64]
    """Number of pairs more than two bonds apart that are closer than `clash_distance`."""
    flipped: NDArray[np.int64]
    """Number of chiral centres whose signed volume has the other sign than in the reference."""
    handedness: NDArray[np.float64]
    """Cosine between the signed volumes of all runs of four bonded atoms and those of the reference: 1 for the same
    fold, -1 for its mirror image; nan where there are fewer than ten runs."""
    radius_ratio: NDArray[np.float64]
    """Radius of gyration (all atoms of one weight) over that of the reference."""
    drift: NDArray[np.float64]
    """Distance of the centre (all atoms of one weight) from that of the reference, Angstrom; never an error."""
    n_bonds: int
    n_centres: int
    clash_distance: float
    """Angstrom: the lesser of 2.0 (1.5 where there are hydrogens, 3.0 for C-alpha and other beads) and 85 % of the
    closest such pair in the reference."""
    impossible: NDArray[np.int64] | None = None
    """Number of bonds of a length that no molecule has, of chain links torn as by a box, and of pairs of atoms on each
    other, whatever the reference is like; None where no molecule was given."""
    worst: str = ""
    """Which of them is the worst, in words."""
    limits: Limits = Limits()
    relaxed: NDArray[np.float64] | None = None
    """By how much the atom that moved most was moved before the frame passed, Angstrom, 0 in frames that were not
    relaxed; None where none may be (see :mod:`egno_md.molecule.relax`)."""

    @property
    def ok(self) -> bool:
        """No finding in any frame."""
        return not self.messages

    @property
    def messages(self) -> tuple[str, ...]:
        """One line for each kind of finding, with the first frame it is found in; empty if all is well."""
        return self.tally.messages

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which frames have a finding (F,)."""
        return np.any(list(self._by_kind().values()), axis=0)

    def _by_kind(self) -> dict[str, NDArray[np.bool_]]:
        """Which frames have a finding of each kind (F,)."""
        least, most = self.limits.radius
        size = self.finite & ~((self.radius_ratio < most) & (self.radius_ratio > least))
        found = {
            "finite": ~self.finite,
            "bonds": self.bonds_off > 0,
            "clashes": self.clashes > 0,
            "flipped": self.flipped > 0,
            "mirrored": (self.handedness < 0) & (self.n_centres == 0),
            "impossible": self.impossible > 0 if self.impossible is not None else np.zeros(len(self.finite), bool),
            "size": size,
        }
        return {kind: frames & (kind not in self.limits.turned) for kind, frames in found.items()}

    @property
    def tally(self) -> Tally:
        """What was found, counted over the frames."""
        known = self.finite.any()
        return Tally(
            n_frames=len(self.finite),
            found={
                kind: (int(frames.sum()), int(frames.argmax()))
                for kind, frames in self._by_kind().items()
                if frames.any()
            },
            bond_deviation=float(np.nanmax(self.bond_deviation)) if known else float("nan"),
            bonds_off=int(self.bonds_off.max(initial=0)),
            clashes=int(self.clashes.max(initial=0)),
            flipped=int(self.flipped.max(initial=0)),
            radius_ratio=(float(np.nanmin(self.radius_ratio)), float(np.nanmax(self.radius_ratio)))
            if known
            else (float("nan"), float("nan")),
            drift=float(np.nanmax(self.drift)) if known else float("nan"),
            n_bonds=self.n_bonds,
            n_centres=self.n_centres,
            clash_distance=self.clash_distance,
            worst=self.worst,
            bond_limit=self.limits.bond,
            radius_limits=self.limits.radius,
            relaxed=0 if self.relaxed is None else int((self.relaxed > 0).sum()),
            relaxed_by=0.0 if self.relaxed is None else float(self.relaxed.max(initial=0.0)),
        )


@dataclass(frozen=True)
class Tally:
    """The findings of :class:`PhysicalChecks` counted over any number of frames; small, whatever their number."""

    n_frames: int
    found: dict[str, tuple[int, int]]
    """How many frames have a finding of each kind, and the first of them."""
    bond_deviation: float
    """Of the worst frame, Angstrom; nan where no frame is finite."""
    bonds_off: int
    """Of the frame with the most; so are the next two."""
    clashes: int
    flipped: int
    radius_ratio: tuple[float, float]
    """Smallest and largest."""
    drift: float
    """The furthest, Angstrom."""
    n_bonds: int
    n_centres: int
    clash_distance: float
    worst: str = ""
    bond_limit: float = BOND_TOLERANCE
    """Of :class:`Limits`; of several starts the furthest, as the next two."""
    radius_limits: tuple[float, float] = (1 / SIZE_FACTOR, SIZE_FACTOR)
    relaxed: int = 0
    """How many frames were relaxed before they passed, and by how much at most, Angstrom."""
    relaxed_by: float = 0.0

    @property
    def ok(self) -> bool:
        """No finding in any frame."""
        return not self.found

    @property
    def first(self) -> int:
        """The first frame with a finding; the number of frames where there is none."""
        return min((first for _, first in self.found.values()), default=self.n_frames)

    @property
    def tally(self) -> Tally:
        """Itself, as of :class:`PhysicalChecks`."""
        return self

    @property
    def messages(self) -> tuple[str, ...]:
        """One line for each kind of finding, with the first frame it is found in; empty if all is well."""
        worst = "nan" if np.isnan(self.bond_deviation) else f"{self.bond_deviation:.2f}"
        what = {
            "finite": "hold nan or infinite positions",
            "bonds": f"have bonds off by more than {self.bond_limit:.3g} A (up to {self.bonds_off} of {self.n_bonds}, "
            f"worst {worst} A)",
            "clashes": f"have atoms closer than {self.clash_distance:.2f} A that are not bonded (up to "
            f"{counted(self.clashes, 'pair')})",
            "flipped": f"have chiral centres turned over (up to {self.flipped} of {self.n_centres})",
            "mirrored": "are nearer to the mirror image of the start than to the start",
            "impossible": f"are no molecule: {self.worst}",
            "size": "have a radius of gyration outside of {:.2f} to {:.2f} times that of the start".format(
                *self.radius_limits
            ),
        }
        return tuple(
            f"{self.found[kind][0]} of {counted(self.n_frames, 'frame')} {text}, first frame {self.found[kind][1]}"
            for kind, text in what.items()
            if kind in self.found
        )

    def __add__(self, later: Tally) -> Tally:
        """Of these frames and those after them."""
        found = dict(self.found)
        for kind, (count, first) in later.found.items():
            before = found.get(kind)
            found[kind] = (count, self.n_frames + first) if before is None else (before[0] + count, before[1])
        return Tally(
            n_frames=self.n_frames + later.n_frames,
            found=found,
            bond_deviation=float(np.fmax(self.bond_deviation, later.bond_deviation)),
            bonds_off=max(self.bonds_off, later.bonds_off),
            clashes=max(self.clashes, later.clashes),
            flipped=max(self.flipped, later.flipped),
            radius_ratio=(
                float(np.fmin(self.radius_ratio[0], later.radius_ratio[0])),
                float(np.fmax(self.radius_ratio[1], later.radius_ratio[1])),
            ),
            drift=float(np.fmax(self.drift, later.drift)),
            n_bonds=self.n_bonds,
            n_centres=self.n_centres,
            clash_distance=self.clash_distance,
            worst=self.worst or later.worst,
            bond_limit=max(self.bond_limit, later.bond_limit),
            radius_limits=(
                min(self.radius_limits[0], later.radius_limits[0]),
                max(self.radius_limits[1], later.radius_limits[1]),
            ),
            relaxed=self.relaxed + later.relaxed,
            relaxed_by=max(self.relaxed_by, later.relaxed_by),
        )


def check_frames(
    positions: ArrayLike,
    reference: ArrayLike,
    bonds: ArrayLike,
    *,
    boxes: ArrayLike | None = None,
    molecule: Molecule | None = None,
    limits: Limits | None = None,
) -> PhysicalChecks:
    """Measure predicted frames against a real frame of the same atoms.

    All but what no molecule looks like is relative to the reference, so that the same rules serve all atoms, heavy
    atoms and C-alpha chains, whose neighbours along the chain are given as bonds. Molecules must be whole. A chiral
    centre is an atom with three bonds or more that is a clear pyramid in the reference; atoms with just three bonds,
    one of them to a hydrogen, are nitrogens that may invert, and left out.

    Parameters
    ----------
    positions
        ``(F, N, 3)`` in Angstrom.
    reference
        ``(N, 3)`` in Angstrom: a frame of the simulation, by habit the last one the forecast started from.
    bonds
        ``(B, 2)`` integers; may be empty.
    boxes
        ``(F, 6)`` or ``(6,)`` in Angstrom and degrees: clashes are then looked for across the periodic border as well.
        The first box is taken for the reference.
    molecule
        Who the N atoms are: what no such molecule can look like is then a finding, also where the reference looks so.
    limits
        Of the run that is forecast, where frames of it go further than is allowed beside any reference.

    Raises
    ------
    UsageError
        Shapes or bonds that do not fit.
    DataError
        A reference that is not finite.
    """
    xyz = np.asarray(positions, dtype=np.float64)
    start = np.asarray(reference, dtype=np.float64)
    pairs = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
    if start.ndim != 2 or start.shape[1] != 3 or len(start) == 0:
        raise UsageError(f"the reference has the shape {start.shape}; expected (atoms, 3)")
    if xyz.ndim != 3 or xyz.shape[1:] != start.shape:
        raise UsageError(f"positions have the shape {xyz.shape}; expected (frames, {len(start)}, 3)")
    if len(pairs) and not (0 <= pairs.min() and pairs.max() < len(start)):
        raise UsageError(
            f"bonds name atom {pairs.max()} (smallest {pairs.min()}); there are {len(start)} atoms, from 0"
        )
    if not np.isfinite(start).all():
        raise DataError("the reference frame holds nan or infinite positions; take another one")
    n_frames, n_atoms = xyz.shape[:2]
    cells: list[NDArray[np.float32] | None] = [None] * n_frames
    if boxes is not None:
        given = np.asarray(boxes, dtype=np.float32)
        if given.shape not in ((6,), (n_frames, 6)):
            raise UsageError(f"boxes have the shape {given.shape}; expected ({n_frames}, 6) or (6,)")
        cells = [cell if cell[:3].any() else None for cell in np.broadcast_to(given, (n_frames, 6))]

    finite = np.asarray(np.isfinite(xyz).all(axis=(1, 2)))  # (F,)
    good = xyz[finite]  # (G, N, 3)

    def spread(values: NDArray[np.float64], missing: float = np.nan) -> NDArray[np.float64]:
        out = np.full(n_frames, missing)
        out[finite] = values
        return out  # (F,)

    deviation = _deviation(good, start, pairs)  # (G, B)
    near = _near_in_bonds(pairs, n_atoms)
    limits = Limits() if limits is None else limits
    clash_distance = _clash_distance(start, pairs, near, cells[0] if cells else None, limits.nearest)
    clashes = np.zeros(n_frames, dtype=np.int64)
    odd = np.zeros(n_frames, dtype=bool)  # frames that may be impossible
    if molecule is not None:
        possible = possible_lengths(molecule)
        lengths = bond_lengths(good, molecule.bonds)  # (G, B)
        odd[finite] = ((lengths < possible[0]) | (lengths > possible[1])).any(axis=1) | bool(len(molecule.loose))
    for i in np.flatnonzero(finite):
        close, distances = contacts(xyz[i], max(clash_distance, OVERLAP), cells[i])
        odd[i] |= bool(distances.min(initial=np.inf) < OVERLAP)
        if clash_distance > 0:  # else two atoms of the start are in one place
            clashes[i] = (~_bonded(close, near, n_atoms) & (distances <= clash_distance)).sum()

    centres = _centres(pairs, start)  # (C, 4)
    impossible, worst = None, ""
    if molecule is not None:
        impossible = np.zeros(n_frames, np.int64)
        found = [(i, impossible_in(molecule, xyz[i], cells[i], possible)) for i in np.flatnonzero(odd)]
        for i, lines in found:
            impossible[i] = len(lines)
        worst = next((lines[0] for _, lines in found if lines), "")
    return PhysicalChecks(
        finite=finite,
        bond_deviation=spread(deviation.max(axis=-1, initial=0.0)),
        bonds_off=spread((deviation > limits.bond).sum(axis=-1), 0).astype(np.int64),
        clashes=clashes,
        flipped=spread(_flipped(good, start, centres), 0).astype(np.int64),
        handedness=spread(_handedness(good, start, pairs)),
        radius_ratio=spread(_radius_ratio(good, start)),
        drift=spread(np.linalg.norm(good.mean(axis=1) - start.mean(axis=0), axis=-1)),
        n_bonds=len(pairs),
        n_centres=len(centres),
        clash_distance=clash_distance,
        impossible=impossible,
        worst=worst,
        limits=limits,
    )


def nearest_contact(frames: ArrayLike, bonds: ArrayLike, boxes: Sequence[ArrayLike | None] | None = None) -> float:
    """Least distance in Angstrom of atoms that are more than two bonds apart, in some frames (F, N, 3) of a run.

    Infinity where none are nearer than what would be no clash anyway.
    """
    xyz, pairs = np.asarray(frames, np.float64), np.asarray(bonds, np.int64).reshape(-1, 2)
    near = _near_in_bonds(pairs, xyz.shape[1])
    found = np.inf
    for frame, box in zip(xyz, [None] * len(xyz) if boxes is None else boxes, strict=True):
        cell = None if box is None or not np.any(box) else np.asarray(box, np.float32)
        limit = _clash_limit(bond_lengths(frame, pairs)) / 0.85
        found = min(found, float(_contacts(frame, limit, near, cell)[1].min(initial=np.inf)))
    return found


def _near_in_bonds(pairs: NDArray[np.int64], n_atoms: int) -> NDArray[np.int64]:
    """Keys ``i * N + j`` (i < j) of the pairs one or two bonds apart, sorted."""
    ones = np.ones(len(pairs), dtype=np.int64)
    one = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(n_atoms, n_atoms)).tocsr()
    one = one + one.T
    reach = (one + one @ one).tocoo()
    upper = reach.row < reach.col
    return np.unique(reach.row[upper].astype(np.int64) * n_atoms + reach.col[upper])


def _contacts(
    xyz: NDArray[np.float64], cutoff: float, near: NDArray[np.int64], box: NDArray[np.float32] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs (i < j) within the cutoff that are more than two bonds apart, ``(P, 2)``, and their distances, ``(P,)``."""
    pairs, distances = contacts(xyz, cutoff, box)
    far = ~_bonded(pairs, near, len(xyz))
    return pairs[far], distances[far]


def _bonded(pairs: NDArray[np.int64], near: NDArray[np.int64], n_atoms: int) -> NDArray[np.bool_]:
    """Which of some pairs (P, 2) are one or two bonds apart, (P,)."""
    keys = pairs[:, 0] * n_atoms + pairs[:, 1]
    # np.isin takes ten times as long for the few pairs of a frame.
    return np.append(near, -1)[np.searchsorted(near, keys)] == keys


def _clash_distance(
    start: NDArray[np.float64],
    pairs: NDArray[np.int64],
    near: NDArray[np.int64],
    box: NDArray[np.float32] | None,
    nearest: float,
) -> float:
    limit = _clash_limit(bond_lengths(start, pairs))
    closest = _contacts(start, limit / 0.85, near, box)[1].min(initial=nearest)
    return float(min(limit, 0.85 * closest))


def _clash_limit(lengths: NDArray[np.float64]) -> float:
    """Distance of a clash, of atoms with bonds of these lengths (B,)."""
    if lengths.min(initial=np.inf) < HYDROGEN_BOND:
        return CLASH_HYDROGENS
    return CLASH_BEADS if len(lengths) and float(np.median(lengths)) > BEAD_BOND else CLASH_ATOMS


def _deviation(xyz: NDArray[np.float64], start: NDArray[np.float64], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Difference of each bond from its length in the reference, ``(F, B)``."""
    return np.abs(bond_lengths(xyz, pairs) - bond_lengths(start, pairs))


def _radius_ratio(xyz: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float64]:
    radius = radius_of_gyration(start)
    return radius_of_gyration(xyz) / radius if radius > 0 else np.ones(len(xyz))  # (F,)


def _flipped(xyz: NDArray[np.float64], start: NDArray[np.float64], centres: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many centres are turned over, ``(F,)``."""
    return (_pyramids(xyz, centres) * _pyramids(start, centres) < 0).sum(axis=-1)


def _handedness(xyz: NDArray[np.float64], start: NDArray[np.float64], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cosine between the signed volumes of all runs of four atoms and those of the reference, ``(F,)``."""
    runs = runs_of_four(pairs, len(start))  # (R, 4)
    if len(runs) < MIN_RUNS:
        return np.full(len(xyz), np.nan)
    there, here = _twists(start, runs), _twists(xyz, runs)  # (R,), (F, R)
    norm = np.linalg.norm(there) * np.linalg.norm(here, axis=-1)
    return np.divide(here @ there, norm, out=np.full(len(xyz), np.nan), where=norm > 0)


def _centres(pairs: NDArray[np.int64], start: NDArray[np.float64]) -> NDArray[np.int64]:
    """Chiral centres, each with its first three neighbours, ``(C, 4)``."""
    neighbours = bonded_neighbours(pairs, len(start))
    rows = [[i, *atoms[:3]] for i, atoms in enumerate(neighbours) if len(atoms) >= 3]
    centres = np.array(rows, dtype=np.int64).reshape(-1, 4)
    just_three = np.array([len(neighbours[i]) == 3 for i in centres[:, 0]], dtype=bool)
    shortest = np.linalg.norm(start[centres[:, 1:]] - start[centres[:, :1]], axis=-1).min(axis=-1, initial=np.inf)
    chiral = (np.abs(_pyramids(start, centres)) > PYRAMID) & ~(just_three & (shortest < HYDROGEN_BOND))
    return centres[chiral]


def _pyramids(xyz: NDArray[np.float64], centres: NDArray[np.int64]) -> NDArray[np.float64]:
    """Signed volume of the unit vectors from each centre to its three neighbours, ``(..., C)``."""
    arms = xyz[..., centres[:, 1:], :] - xyz[..., centres[:, :1], :]  # (..., C, 3, 3)
    arms = arms / np.maximum(np.linalg.norm(arms, axis=-1, keepdims=True), 1e-9)
    return np.linalg.det(arms)


def _twists(xyz: NDArray[np.float64], runs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Signed volume of the three unit bond vectors of each run, ``(..., R)``; changes sign in a mirror."""
    steps = np.diff(xyz[..., runs, :], axis=-2)  # (..., R, 3, 3)
    steps = steps / np.maximum(np.linalg.norm(steps, axis=-1, keepdims=True), 1e-9)
    return np.linalg.det(steps)
