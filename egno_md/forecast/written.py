"""Forecasts beside the trajectory, as files, as a Universe in memory and as an mdtraj Trajectory."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..molecule.course import MOST_PAIRS, Course, end_of
from ..molecule.geometry import aligned, rmsd, superposed_rmsd
from ..trajectory.mdtraj import to_mdtraj
from ..trajectory.stream import record_path
from ..trajectory.universe import in_memory_universe, input_files
from ..trajectory.writer import Topology, require_targets, write_forecast
from .asked import check_flags, target_of

#: Numbers of frames of the run that a forecast is held against, at most.
ROOM = 2**23

#: What the PDB files of several futures say of their B-factors.
SPREAD = (
    "B-factors: spread of each atom between the futures, in Angstrom, the",
    "root of the mean square distance from their mean over all futures and",
    "predicted frames, each frame superposed on the start frame.",
)


class Written:
    """What an analysis with forecasts from several starts in `results` is compared, written and handed on as."""

    atoms: Any
    subject: Any
    results: Any
    spacing: float
    n_frames: int
    every: int
    substeps: int
    engine: Any

    def _measure(self) -> None:
        """Fill `results.moved` and `results.moved_superposed`, from the frames as they are, or are in their file."""
        results, shape = self.results, self.results.times.shape
        results.moved, results.moved_superposed = np.empty(shape), np.empty(shape)
        together = max(1, ROOM // (24 * len(self.atoms)))  # frames
        for i, past in enumerate(self._history):
            for k in range(0, shape[1], together):
                frames, some = results.positions[i, k : k + together], np.s_[i, k : k + together]  # (F, N, 3)
                results.moved[some] = rmsd(frames, past[-1])
                results.moved_superposed[some] = superposed_rmsd(frames, past[-1])

    def _compare(self, strides: np.ndarray) -> None:
        """Fill all kinds of `rmsd` where the trajectory has the predicted frame; reads each frame once."""
        results, shape = self.results, self.results.times.shape
        for name in ("rmsd", "rmsd_static", "rmsd_mean"):
            there = name != "rmsd_mean" or self._several()
            for kind in (name, f"{name}_superposed"):
                results[kind] = np.full(shape, np.nan) if there else None
        wanted: dict[int, list[tuple[int, int]]] = {}
        for i, frame in enumerate(self.results.frames):
            for k, ahead in enumerate(strides * self.every):
                target = self.subject.clock.shifted(frame, ahead)
                if target is not None:
                    wanted.setdefault(target, []).append((i, k))
        came: list[np.ndarray] = []
        where: list[tuple[int, int]] = []
        together = max(1, ROOM // (24 * len(self.atoms)))  # frames that are compared at once
        for target in sorted(wanted):
            try:
                true = self.subject.positions(target)  # (N, 3)
            except DataError as error:  # the forecast itself does not need the frame
                warnings.warn(f"not compared: {error}", stacklevel=2)
                continue
            came += [true] * len(wanted[target])
            where += wanted[target]
            if len(came) >= together:
                self._held_against(came, where)
                came, where = [], []
        if came:
            self._held_against(came, where)

    def _held_against(self, came: list[np.ndarray], where: list[tuple[int, int]]) -> None:
        """Fill all kinds of `rmsd` where frames (N, 3) came: at which start and step."""
        results, true = self.results, np.stack(came)  # (W, N, 3)
        rows, columns = np.array(where).T  # (W,)
        starts = np.stack([self._history[i][-1] for i in rows])  # (W, N, 3)
        # One by one: those of a streamed forecast are read from its file.
        predicted = np.stack([results.positions[i, k] for i, k in where])  # (W, N, 3)
        for name, frames in (("rmsd", predicted), ("rmsd_static", starts)):
            results[name][rows, columns] = rmsd(frames, true)
            results[f"{name}_superposed"][rows, columns] = superposed_rmsd(frames, true)
        if results.rmsd_mean is None:
            return
        for (i, k), came_here in zip(where, true, strict=True):
            members = results.ensemble[i][:, k]  # (K, N, 3)
            results.rmsd_mean[i, k] = rmsd(members.mean(axis=0), came_here)
            # Superposed on the start first: the mean of molecules that turn would shrink.
            mean = aligned(members, self._history[i][-1]).mean(axis=0)  # (N, 3)
            results.rmsd_mean_superposed[i, k] = superposed_rmsd(mean, came_here)

    def _several(self) -> bool:
        """Whether there are several futures of each start."""
        return self.results.ensemble is not None and self.results.ensemble.shape[1] > 1

    def _follow(self) -> None:
        """Fill `results.course`, of forecasts longer than a window: do they go on as the run did?"""
        results, substeps = self.results, self.substeps
        results.course = [()] * self.n_frames
        strides = results.times.shape[1] // substeps  # whole ones, which the run has as well
        count = end_of(strides)
        if results.times.shape[1] <= self.engine.n_times * substeps or not count or not self.n_frames:
            return
        places = self.subject.before(int(results.frames.max()))
        most = min(MOST_PAIRS, ROOM // (6 * len(self.atoms)))
        seconds = np.unique(np.linspace(1, len(places) - 1, most).round().astype(int)) if len(places) > 1 else []
        try:
            pairs = [self.subject.frames([places[k - 1], places[k]])[0] for k in seconds]  # (2, N, 3) each
        except DataError:  # the forecast itself does not need these frames
            return
        for i in range(self.n_frames):
            start = self._history[i][-1]
            course = Course.of(pairs, start)
            if course is not None:
                first = (strides - count + 1) * substeps - 1
                end = results.positions[i, first : strides * substeps : substeps]  # (F, N, 3)
                results.course[i] = course.findings(end, start)

    def _in_memory(self) -> Any:
        if not self.n_frames:
            return None
        frames = self.results.positions.reshape(-1, len(self.atoms), 3)  # (n_starts * horizon, N, 3)
        return in_memory_universe(self.atoms, frames, self.results.times.ravel(), boxes=self._box_array(self._boxes))

    def _box_array(self, boxes: list[np.ndarray | None]) -> np.ndarray | None:
        """One box per predicted frame, (n * horizon, 6)."""
        if any(box is None for box in boxes):
            return None
        return np.repeat(np.asarray(boxes), self.results.times.shape[1], axis=0)

    def to_mdtraj(self):
        """The forecast as an ``mdtraj.Trajectory`` (nm, ps).

        The windows of several starts stand one after the other, and time goes back at each: start k is
        ``to_mdtraj()[k * horizon : (k + 1) * horizon]``.
        """
        self._need_results()
        return to_mdtraj(self.results.universe)

    def write(self, filename: str | os.PathLike, *, with_input: bool = False, force: bool = False) -> list[Path]:
        """Write the forecast as DCD or XTC with a PDB topology beside it.

        Parameters
        ----------
        filename : str or path-like
            Target; with several starts the frame number is added to its stem, with several members their number.
        with_input : bool
            Begin with the trajectory's frames up to the start, one per stride.
        force : bool
            Replace files that exist.

        Returns
        -------
        list of Path
            The files written: trajectory and topology of every start and member.

        Raises
        ------
        UsageError, OutputError
            One of the files is an input, or exists, or cannot be written; in the first two cases none is written.
        """
        self._need_results()
        check_flags(with_input=with_input, force=force)
        filename = target_of(filename, with_input=with_input, substeps=self.substeps)
        inputs = input_files(self.atoms.universe)
        for frame in self.results.frames:  # all of them before the first is written
            for target in self._targets(filename, int(frame)):
                require_targets(target, force=force, inputs=inputs)
        files, topology = [], Topology(self.atoms)
        for i, frame in enumerate(self.results.frames):
            several = self._several()
            members = self.results.ensemble[i] if several else self.results.positions[i : i + 1]
            for target, positions in zip(self._targets(filename, frame), members, strict=True):
                times, boxes = self.results.times[i], self._box_array([self._boxes[i]])
                if with_input:
                    positions, times, boxes = self._with_input(int(frame), positions, times, boxes)
                files += write_forecast(
                    target,
                    self.atoms,
                    positions,
                    times,
                    boxes=boxes,
                    dt=self.spacing,
                    force=force,
                    recentre=True,
                    topology=topology,
                    inputs=inputs,
                    b_factors=self.results.spread[i] if several else None,
                    remarks=SPREAD if several else (),
                )
                record_path(target).unlink(missing_ok=True)  # of a long forecast that was there before
        return files

    def _targets(self, filename: Path, frame: int) -> list[Path]:
        """The file of every member."""
        if self.n_frames > 1:
            filename = filename.with_stem(f"{filename.stem}_{frame:06d}")
        members = self._asked_samples or 1
        return [filename] if members == 1 else [filename.with_stem(f"{filename.stem}_{k + 1}") for k in range(members)]

    def _input_frames(self, frame: int) -> list[int]:
        """The run up to `frame`, one frame per stride, from the last gap on; a line says where there is one."""
        numbers = self.subject.before(frame)
        clock = self.subject.clock
        if clock.usable[: max(0, numbers[0] + 1 - self.every)].any():
            warnings.warn(
                f"of the run (--with-input) the frames from {numbers[0]} (t = {clock.times[numbers[0]]:g} ps) on are "
                "written: there is a gap or an overlap before it",
                stacklevel=2,
            )
        return numbers

    def _with_input(self, frame: int, positions, times, boxes):
        """The run up to `frame`, one frame per stride, and the forecast."""
        before = max(self._trajectory.frame, 0)
        numbers = self._input_frames(frame)
        try:
            run, run_boxes = self.subject.frames(numbers)
        finally:
            self._trajectory[before]
        run_times = self.subject.clock.times[numbers]
        all_boxes = None if boxes is None or any(b is None for b in run_boxes) else np.concatenate([run_boxes, boxes])
        return np.concatenate([run, positions]), np.concatenate([run_times, times]), all_boxes

    def _need_results(self) -> None:
        if "universe" not in self.results or self.results.universe is None:
            raise UsageError("there is no forecast yet: call run() first, with at least one start frame")
