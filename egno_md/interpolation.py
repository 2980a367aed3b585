"""Fill in frames between the saved ones of a run."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import tempfile
import warnings
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from MDAnalysis import Universe
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from egno_md.forecast.asked import is_count
from egno_md.forecast.bridge import FAST, FEWEST_PAIRS, Bridge
from egno_md.forecast.streams import check_seed
from egno_md.forecast.subject import Subject
from egno_md.graph.windows import MEMORY_LIMIT
from egno_md.molecule.checks import Limits, check_frames, nearest_contact
from egno_md.molecule.geometry import bond_lengths, superposed_rmsd
from egno_md.molecule.molecule import Molecule
from egno_md.molecule.neighbors import box_vectors, box_widths
from egno_md.molecule.whole import make_whole
from egno_md.trajectory.formats import format_of
from egno_md.trajectory.mdtraj import source_of
from egno_md.trajectory.stream import Awaited
from egno_md.trajectory.universe import in_memory_universe, input_files, stored_universe
from egno_md.trajectory.writer import FrameWriter, require_targets, write_topology

from .errors import DataError, OutputError, UsageError, counted
from .progress import Progress

if TYPE_CHECKING:
    from .forecast.model import Model
    from .forecast.operator import OperatorWindow

#: Separate molecules up to which they are one system, whose rotation as a whole means something.
MOLECULES = 20

#: Frames that are left out and filled in again to tell what the paths are worth, at most.
JUDGED = 200

#: Stretches of them whose means say what is chance, and the value of Student's t for so many (95 %, two-sided).
BLOCKS, TWO_SIDED = 10, 2.262

#: Frames of the run that tell how near its atoms come to each other.
LOOKED_AT = 50

#: Largest number of steps from one saved frame to the next.
MOST = 1000


class Interpolated:
    """The frames of a run and others between them.

    Saved frames stay what they are, but for whole widths of the box: where the box cut a molecule, or it jumped through
    it, it is put together. What lies between them is the mean path of a Gaussian process given the saved frames on both
    sides, or paths drawn from it, brought to the local geometry of the run (:class:`~egno_md.forecast.bridge.Bridge`);
    or the paths of a model (:class:`~egno_md.forecast.filled.NetworkBridge`). Where saved frames do not follow one
    another by the spacing of the run, nothing is filled in.

    Parameters
    ----------
    universe_or_atomgroup : Universe, AtomGroup or mdtraj.Trajectory
    factor : int
        Frames that each saved one becomes: 8 puts seven between it and the next.
    select : str, optional
        MDAnalysis selection, or ``"ca"``, ``"backbone"``, ``"heavy"``; all atoms by default, with a model its atoms.
    model : Model, str or path-like, optional
        One that knows both ends of a window (``egno-md train ... --operator flow --set ends=0.5``) and this molecule;
        its window has `factor` steps, each the spacing of the run over `factor`.
    samples : int, optional
        K paths to draw, a file for each; the mean path when None.
    seed : int
        Of what is drawn: the same seed gives the same paths.
    fast_ps : float, optional
        Time constant of the fast motion, which the saved frames do not tell. Half a spacing by default, slow enough to
        be watched; the true one (for proteins in water some 0.5 ps) errs least.
    filename : str or path-like, optional
        Write there (DCD or XTC) with a PDB topology of the same stem beside it, frame by frame; with several samples
        ``out_1.xtc``, ``out_2.xtc`` ... Without it all frames are in memory.
    force : bool
        Replace files that exist. The input is never replaced.
    verbose : bool
        Show how far it is, on stderr: a bar in a terminal or notebook, elsewhere a line every half minute.

    Attributes
    ----------
    universe : Universe
        All frames, of the first sample; in memory, or on the file.
    results.times : ndarray, shape (F,)
        ps.
    results.saved : ndarray of bool, shape (F,)
        Which of them are frames of the run.
    results.positions : ndarray, shape (K, F, N, 3), or None
        Angstrom; without `filename` alone.
    results.checks : Tally
        Of all frames that were filled in.
    results.error : dict or None
        Frames of the run that were left out and filled in again from those twice as far apart: RMSD in Angstrom, each
        frame superposed on the true one, of the path (``"path"``), of straight lines (``"linear"``), how many frames
        (``"frames"``), and whether the path is nearer beyond chance (``"gains"``). None where the run is too short, and
        with a model.
    results.notes : list of str
        What is worth knowing: gaps, too few frames, molecules that were put together.
    results.files : list of Path
    atoms : AtomGroup
        The N atoms.
    spacing : float
        Of the frames filled in, ps.

    Raises
    ------
    UsageError
        An argument that cannot be right.
    ModelError
        A model that knows no ends, another molecule, or another spacing.
    DataError
        No two frames that follow one another, positions that are not finite, or a selection that is no molecule.
    OutputError
        A file exists or cannot be written.
    """

    def __init__(
        self,
        universe_or_atomgroup: Any,
        factor: int = 8,
        select: str | None = None,
        *,
        model: Model | str | os.PathLike | None = None,
        samples: int | None = None,
        seed: int = 0,
        fast_ps: float | None = None,
        filename: str | os.PathLike | None = None,
        force: bool = False,
        verbose: bool = False,
    ) -> None:
        if not is_count(factor, 2) or factor > MOST:
            raise UsageError(
                f"factor={factor!r}: a whole number from 2 (a frame between any two) to {MOST} was expected"
            )
        if samples is not None and not is_count(samples, 1):
            raise UsageError(f"samples={samples!r}: the number of paths to draw must be a whole number of at least 1")
        if fast_ps is not None and not (isinstance(fast_ps, Real) and 0 < fast_ps < math.inf):
            raise UsageError(f"fast_ps={fast_ps!r}: a time constant in ps must be above 0")
        check_seed(seed)
        self.factor, self.samples, self.seed, self.force, self.verbose = int(factor), samples, seed, force, verbose
        if model is not None and fast_ps is not None:
            raise UsageError(
                "fast_ps (--fast-ps) is what a path without a model begins with: leave it out, or the model"
            )
        loaded = _loaded(model)
        source = source_of(universe_or_atomgroup)
        self.subject = Subject.of(source, None if loaded is None else loaded.graph, select=select)
        self.atoms = self.subject.atoms
        clock = self.subject.clock
        if clock.usable.sum() < 2:
            raise DataError(
                f"{clock.name} has {counted(clock.usable.sum(), 'frame')}; two at least are needed, for others to "
                "lie between"
            )
        self.spacing = clock.spacing / self.factor
        self._window: OperatorWindow | None = None
        if loaded is not None:
            from .forecast.filled import check_fills
            from .forecast.operator import OperatorWindow

            self._window = OperatorWindow(check_fills(loaded, self.factor, clock.spacing), self.subject.builder)
        self._fast = FAST if fast_ps is None else fast_ps / clock.spacing
        self.filename = None if filename is None else Path(filename)
        self.results = Awaited()

    def run(self, start: int | None = None, stop: int | None = None, *, verbose: bool | None = None) -> Interpolated:
        """Fill in, from frame `start` to frame `stop` - 1 of the run; all of it by default.

        There is no `step`: frames are filled in between neighbours. `verbose` is taken instead of that of the
        constructor.
        """
        self.verbose = self.verbose if verbose is None else verbose
        trajectory = self.atoms.universe.trajectory
        here, count = max(trajectory.frame, 0), trajectory.n_frames
        first, last = (0 if start is None else start), (count if stop is None else stop)
        first, last = (k + count if k < 0 else k for k in (first, last))
        if not 0 <= first < last <= count:
            raise UsageError(
                f"start (--start) and stop (--stop): {start} to {stop} is no part of the run, which has the frames 0 "
                f"to {count - 1}; stop is the frame to end before, {count} the end of the run"
            )
        stretches = [s[(s >= first) & (s < last)] for s in self.subject.clock.stretches]
        stretches, twice = self._one_after_another([s for s in stretches if len(s)])
        if max(map(len, stretches), default=0) < 2:
            raise DataError(
                f"no two of the frames {first} to {last - 1} follow one another by {self.subject.clock.spacing:g} ps: "
                "there is nothing to fill in; take more of the run (start and stop)"
            )
        targets = self._targets(len(stretches))
        try:
            with tempfile.TemporaryDirectory(prefix="egno_md_") as folder:
                self._run(stretches, targets, Path(folder), [twice] if twice else [])
        finally:
            trajectory[here]
        return self

    def _one_after_another(self, stretches: list[np.ndarray]) -> tuple[list[np.ndarray], str]:
        """The stretches without what a later one tells again, joined where the later one goes on; and a line on it."""
        clock = self.subject.clock
        if len(stretches) < 2:
            return stretches, ""
        numbers = np.concatenate(stretches)
        times, slack = clock.times[numbers], 0.01 * clock.spacing
        # A run that was begun again from a checkpoint goes on from there: what was saved after it leads nowhere.
        again = np.minimum.accumulate(times[::-1])[::-1]
        kept = np.append(times[:-1] < again[1:] - slack, True)
        left_out = numbers[~kept]
        if not len(left_out):
            return stretches, ""
        if len(anew := np.flatnonzero(times[1:] <= times[0] + slack) + 1):
            frame = numbers[anew[0]]
            raise DataError(
                f"the time of {clock.name} goes back to {clock.times[frame]:g} ps at frame {frame}, and the run begins "
                f"at {times[0]:g} ps: these are several runs, or files in the wrong order; fill in one of them at a "
                f"time: end before that frame (--stop {frame}, stop={frame}) or begin with it (--start {frame}, "
                f"start={frame})"
            )
        joined: list[np.ndarray] = []
        for stretch in stretches:
            stretch = stretch[~np.isin(stretch, left_out)]
            if joined and len(stretch):
                step = clock.times[stretch[0]] - clock.times[joined[-1][-1]]
                if abs(step - clock.spacing) <= slack + clock.uncertainty:
                    stretch = np.concatenate([joined.pop(), stretch])
            if len(stretch):
                joined.append(stretch)
        low, high = clock.times[left_out].min(), clock.times[left_out].max()
        return joined, (
            f"parts of the run overlap: {counted(len(left_out), 'frame')} between {low:g} and {high:g} ps left out, "
            "where a later part begins again"
        )

    @property
    def universe(self) -> Universe:
        if "times" not in self.results:
            raise UsageError("nothing is filled in yet: call run() first")
        if self.results.files:
            return stored_universe(self.atoms, self.results.files[0])
        return in_memory_universe(self.atoms, self.results.positions[0], self.results.times, self._boxes)

    def _targets(self, n_stretches: int) -> list[Path]:
        """The file of every sample, once it is sure that they may be written."""
        if self.filename is None:
            return []
        kind = format_of(self.filename)
        if n_stretches > 1 and kind.even:
            raise UsageError(
                f"{self.filename}: the run has gaps, and a {kind.suffix.removeprefix('.').upper()} file holds evenly "
                f"spaced frames only; write XTC: {self.filename.with_suffix('.xtc')}"
            )
        several = self.samples is not None and self.samples > 1
        targets = (
            [self.filename.with_stem(f"{self.filename.stem}_{k + 1}") for k in range(self.samples)]
            if several
            else [self.filename]
        )
        for target in targets:
            require_targets(target, force=self.force, inputs=input_files(self.atoms.universe))
        return targets

    def _run(self, stretches: list[np.ndarray], targets: list[Path], folder: Path, notes: list[str]) -> None:
        results = self.results
        self.subject.positions(int(stretches[0][0]))  # bonds are looked for in a frame that has positions
        molecule = self._molecule()
        results.notes = notes
        runs, boxes = self._read(stretches, molecule, folder)
        bridge = Bridge.fit(runs, molecule.bonds, self.factor, fast=self._fast)
        if self._window is not None:
            from .forecast.filled import NetworkBridge

            bridge = NetworkBridge.of(bridge, self._window)
        gaps = len(stretches) - 1
        if gaps:
            results.notes.append(f"{counted(gaps, 'gap')} of the run, left as found")
        if bridge.memory is None and self._window is None:
            results.notes.append(
                f"fewer than {FEWEST_PAIRS} pairs of frames that follow one another: displacements go in straight lines"
            )
        # A model makes steps of one length: frames twice as far apart are none of its business.
        results.error = self._error(runs, molecule) if self._window is None else None
        clock, steps = self.subject.clock, np.arange(self.factor) / self.factor
        times, saved = [], []
        for numbers in stretches:
            ps = clock.times[numbers]
            between = ps[:-1, None] + steps * np.diff(ps)[:, None]  # (F - 1, factor)
            times.append(np.append(between.ravel(), ps[-1]))
            saved.append(np.arange(len(times[-1])) % self.factor == 0)
        results.times, results.saved = np.concatenate(times), np.concatenate(saved)
        results.checks, results.positions, results.files = None, None, []
        members = self.samples or 1
        if not targets:
            results.positions = np.empty((members, len(results.times), *runs[0].shape[1:]), np.float32)
        total = members * (len(results.times) - sum(map(len, stretches)))
        with Progress("interpolate", "frames", total, shown=self.verbose) as bar:
            for k in range(members):
                frames = self._frames(bridge, runs, boxes, molecule, k, bar)
                if targets:
                    self._write(targets[k], frames)
                    continue
                cells = []
                for f, (positions, box) in enumerate(frames):
                    results.positions[k, f] = positions
                    cells.append(box)
                self._boxes = None if any(box is None for box in cells) else np.asarray(cells)

    def _molecule(self) -> Molecule:
        molecule = Molecule.of(self.atoms)
        n, bonds = len(molecule), molecule.bonds
        graph = coo_array((np.ones(len(bonds)), tuple(bonds.T)), shape=(n, n))
        parts, which = connected_components(graph, directed=False)
        if parts > MOLECULES:
            solute, what = "protein", "the solute"
            if not hasattr(self.atoms, "resnames") or not len(self.atoms.select_atoms(solute)):
                largest = self.atoms[which == np.bincount(which).argmax()].indices
                solute, what = f"index {largest.min()}:{largest.max()}", f"the largest one, of {len(largest)} atoms"
            raise DataError(
                f"the selection holds {parts} molecules that no bond joins, and up to {MOLECULES} can be followed as "
                f"one system: choose {what}: --select {shlex.quote(solute)} (select={solute!r}), or give a topology "
                "that knows the bonds"
            )
        return molecule

    def _read(
        self, stretches: list[np.ndarray], molecule: Molecule, folder: Path
    ) -> tuple[list[np.ndarray], list[list[np.ndarray | None]]]:
        """Frames (F, N, 3) of every stretch, whole, and their boxes; in a file where they are many."""
        n_atoms, count = len(self.atoms), sum(map(len, stretches))
        path = folder / "frames.f32" if 12 * n_atoms * count > MEMORY_LIMIT else None
        frames = np.empty((0 if path else count, n_atoms, 3), np.float32)
        boxes: list[list[np.ndarray | None]] = []
        last, put, k = None, 0, 0
        try:
            with contextlib.nullcontext() if path is None else open(path, "wb") as stream:
                for numbers in stretches:
                    boxes.append([])
                    for number in numbers:
                        (positions,), (box,) = self.subject.frames([int(number)])
                        whole = _whole(positions, molecule, box, last)
                        put += whole is not positions
                        boxes[-1].append(box)
                        if stream is None:
                            frames[k] = whole
                        else:
                            stream.write(whole.tobytes())
                        last, k = whole, k + 1
        except OSError as error:
            if path is None:
                raise
            raise OutputError(
                f"cannot keep the frames of the run in {folder} ({error}); {12 * n_atoms * count / 2**30:.1f} GiB are "
                "needed: set TMPDIR to a folder with more room, or take less of the run (start and stop)"
            ) from error
        if path is not None:
            frames = np.memmap(path, np.float32, "r", shape=(count, n_atoms, 3))
        if put:
            self.results.notes.append(
                f"{counted(put, 'frame')} put together across the periodic border, by whole widths of the box"
            )
        return np.split(frames, np.cumsum([len(s) for s in stretches])[:-1]), boxes

    def _frames(
        self, bridge: Bridge, runs: list[np.ndarray], boxes: list, molecule: Molecule, member: int, bar: Progress
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """All frames (N, 3) of one sample in order, with their boxes; those filled in are checked."""
        generator = None if self.samples is None else np.random.default_rng([self.seed, member])
        share = np.arange(1, self.factor)[:, None] / self.factor
        places = [(k, i) for k, run in enumerate(runs) for i in range(len(run))]
        some = [places[j] for j in np.unique(np.linspace(0, len(places) - 1, LOOKED_AT).astype(int))]
        nearest = nearest_contact([runs[k][i] for k, i in some], molecule.bonds, [boxes[k][i] for k, i in some])
        for run, cells in zip(runs, boxes, strict=True):
            i = 0
            for filled in bridge.fill(run, generator):  # (C, J, N, 3)
                for paths in filled:
                    start, end = cells[i : i + 2]
                    between = [None] * len(paths)
                    if start is not None and end is not None:
                        between = list((start + share * (end - start)).astype(np.float32))
                    found = check_frames(
                        paths, run[i], molecule.bonds, boxes=start, molecule=molecule, limits=Limits(nearest=nearest)
                    ).tally
                    self.results.checks = found if self.results.checks is None else self.results.checks + found
                    yield run[i], start
                    yield from zip(paths, between, strict=True)
                    bar.update(len(paths))
                    i += 1
            yield run[-1], cells[-1]

    def _write(self, target: Path, frames: Iterator[tuple[np.ndarray, np.ndarray | None]]) -> None:
        times, first = self.results.times, None
        with FrameWriter(
            target, len(self.atoms), dt=self.spacing, start_time=float(times[0]), force=self.force
        ) as writer:
            for time, (positions, box) in zip(times, frames, strict=True):
                writer.write(positions, box, float(time))
                first = first or (np.array(positions), box)
        write_topology(target.with_suffix(".pdb"), self.atoms, *first, recentre=True)
        self.results.files += [target, target.with_suffix(".pdb")]

    def _error(self, runs: list[np.ndarray], molecule: Molecule) -> dict[str, Any] | None:
        """What paths and straight lines are worth where every second frame is left out."""
        halves, true, left = [], [], JUDGED
        for run in sorted(runs, key=len, reverse=True):
            length = min(len(run), 2 * left + 1)
            if length < 3:
                break
            part = np.asarray(run[: length - 1 + length % 2])
            halves.append(part[::2])
            true.append(part[1::2])
            left -= len(true[-1])
        if not halves or sum(len(half) - 1 for half in halves) < FEWEST_PAIRS:
            return None
        bridge = Bridge.fit(halves, molecule.bonds, 2, fast=self._fast / 2)
        path = np.concatenate([paths[:, 0] for half in halves for paths in bridge.fill(half)])
        linear = np.concatenate([(half[1:] + half[:-1]) / 2 for half in halves])
        wanted = np.concatenate(true)
        squares = np.stack([superposed_rmsd(found, wanted) ** 2 for found in (path, linear)])  # (2, F)
        # Frames near each other err alike: the means of stretches say how much is chance.
        less = np.array([part.mean() for part in np.array_split(squares[1] - squares[0], BLOCKS)])
        gains = bool(less.mean() > TWO_SIDED * less.std(ddof=1) / np.sqrt(BLOCKS))
        errors = np.sqrt(squares.mean(axis=1)).tolist()
        return {"path": errors[0], "linear": errors[1], "frames": len(wanted), "gains": gains}


def _loaded(model: Model | str | os.PathLike | None) -> Model | None:
    if model is None or not isinstance(model, (str, os.PathLike)):
        return model
    from .forecast.model import load_model

    return load_model(model)


def _whole(positions: np.ndarray, molecule: Molecule, box: np.ndarray | None, last: np.ndarray | None) -> np.ndarray:
    """A frame put together where the box cuts it or it jumped through the box since the last one, else itself."""
    vectors = box_vectors(box)
    if vectors is None:
        return positions
    half = box_widths(vectors).min() / 2
    apart = bond_lengths(positions, molecule.bonds).max(initial=0.0)
    moved = 0.0 if last is None else np.linalg.norm(positions - last, axis=1).max()
    if max(apart, moved) <= half:
        return positions
    whole = make_whole(positions, molecule.bonds, box, near=last)
    if last is not None and np.linalg.norm(whole - last, axis=1).max() > half:
        warnings.warn(
            "an atom moves by more than half the box from one saved frame to the next; its path may lead through the "
            "wrong image",
            UserWarning,
            stacklevel=2,
        )
    return whole
