"""What a run offers to those who forecast it: frames without a gap, as many as there is room for, and their windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, counted
from ..forecast.forecasters import Known
from ..forecast.subject import Subject
from ..graph.windows import Run

#: Frames that are looked at, at most; numbers in them; and atoms in them of the whole trajectory, which has to be
#: decoded for it. The last ones count: what a run did long ago says the least about what it does next.
MOST_FRAMES, MOST_NUMBERS, MOST_DECODED = 100_000, 2**26, 2**28

#: Frames of one window: no more than this, and as many as leave so many windows for each.
WINDOW, WINDOWS_PER_STEP = 8, 5


@dataclass(frozen=True, eq=False)
class Material:
    """Frames of one run.

    Attributes
    ----------
    subject : Subject
    runs : list of Run
        Its even stretches, in order, each with the numbers of its frames.
    steps : tuple of int
        Strides ahead of a window.
    said : tuple of str
        What was left out.
    again : ndarray of int, shape (R, 2)
        Numbers of the frames that were left out because the run has them again, and where it has them.
    """

    subject: Subject
    runs: list[Run]
    steps: tuple[int, ...]
    said: tuple[str, ...]
    again: NDArray[np.int64]

    @classmethod
    def of(cls, subject: Subject, horizon: int, *, progress: Callable[[int], Any] = lambda count: None) -> Material:
        """The frames of a subject, and windows of up to `horizon` strides; `progress` is called with 1 a frame.

        Raises
        ------
        DataError
            A frame that cannot be read, or whose coordinates are not finite.
        """
        universe, n_atoms = subject.atoms.universe, len(subject.atoms)
        there = universe.trajectory.n_frames
        room = min(MOST_FRAMES, MOST_NUMBERS // (3 * n_atoms), MOST_DECODED // len(universe.atoms))
        first = max(0, there - max(room, 4 * WINDOW * subject.every))
        said = list(subject.clock.notes)
        said += [f"the last {there - first} of {there} frames are looked at"] if first else []
        runs = subject.runs(first, progress=progress)
        if subject.settle(runs):
            said.append("molecules put together across the periodic border, by whole widths of the box")
        kept = sum(len(run.positions) for run in runs)
        if kept < there - first:
            lost = counted(there - first - kept, "frame")
            said.append(f"left out: {lost} without positions, alone in time or there twice")
        runs, again = _once(runs)
        if len(again):
            said.append(f"left out: {counted(len(again), 'frame')} that the run has again later")
        return cls(subject, runs, steps_of(runs, horizon), tuple(said), again)

    @property
    def every(self) -> int:
        """Frames per stride."""
        return self.subject.every

    @property
    def stride_ps(self) -> float:
        """Time between two predicted frames."""
        return stride_of(self.subject)

    def some(self, count: int) -> tuple[NDArray[np.float32], list[NDArray[np.float32] | None]]:
        """Frames (F, N, 3) that are evenly spread over the run, `count` at most, and their boxes (6,)."""
        ends = np.cumsum([0, *(len(run.positions) for run in self.runs)])
        step = -(-ends[-1] // count)
        picked = [(run, slice(-end % step, None, step)) for run, end in zip(self.runs, ends, strict=False)]
        frames = [run.positions[part] for run, part in picked]
        boxes = [
            box
            for (run, part), some in zip(picked, frames, strict=True)
            for box in ([None] * len(some) if run.boxes is None else run.boxes[part])
        ]
        return np.concatenate(frames), boxes

    def known(self, excluded: Iterable[tuple[int, int]] = ()) -> Known:
        """What forecasts may be fitted to: all frames but those with numbers in some ranges, the last not in it.

        What follows a frame of such a range that the run has again later is left out there as well.
        """
        excluded = [one for given in excluded for one in (given, *self._later(*given))]
        pieces = []
        for run in self.runs:
            keep = np.ones(len(run.positions), bool)
            for low, high in excluded:
                keep &= (run.numbers < low) | (run.numbers >= high)
            pieces += _pieces(run.positions, keep)
        return Known(pieces, self.steps, self.every)

    def _later(self, low: int, high: int) -> list[tuple[int, int]]:
        """Where the run has the same range again, from the frame before it on; one for each way that files overlap."""
        within = self.again[(self.again[:, 0] >= low - 1) & (self.again[:, 0] < high)]
        shifts, first = np.unique(within[:, 1] - within[:, 0], return_index=True)
        begins = np.maximum(low, within[first, 0]) + shifts
        return [(int(begin), high + int(shift)) for begin, shift in zip(begins, shifts, strict=True)]


def _once(runs: list[Run]) -> tuple[list[Run], NDArray[np.int64]]:
    """Runs without the frames that another one has after them, and the numbers of those and of the others, (R, 2).

    A restart repeats some, and where a run and its parts are both given all are there twice: what is fitted to the one
    would be judged on the other.
    """
    if len(runs) == 1:
        return runs, np.zeros((0, 2), int)
    kept: list[Run] = []
    seen: dict[int, int] = {}
    again: list[tuple[int, int]] = []
    for run in reversed(runs):
        own = dict(zip(map(int, run.numbers), (hash(frame.tobytes()) for frame in run.positions), strict=True))
        for a, b in reversed(_stretches(np.array([key not in seen for key in own.values()]))):
            boxes = None if run.boxes is None else run.boxes[a:b]
            kept.insert(0, replace(run, positions=run.positions[a:b], boxes=boxes, numbers=run.numbers[a:b]))
        again = [(number, seen[key]) for number, key in own.items() if key in seen] + again
        seen = {key: number for number, key in own.items()} | seen  # of several, the one that is kept
    return kept, np.array(again, int).reshape(-1, 2)


def stride_of(subject: Subject) -> float:
    """Time between two predicted frames in ps; of a single frame what its reader says, 1 ps where it says nothing."""
    spacing = subject.clock.spacing or float(subject.atoms.universe.trajectory.ts.data.get("dt", 0.0))
    return (spacing or 1.0) * subject.every


def _pieces(positions: NDArray, keep: NDArray[np.bool_]) -> list[NDArray]:
    """The frames that are kept, in pieces without a gap."""
    return [positions[a:b] for a, b in _stretches(keep)]


def _stretches(keep: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where what is kept begins and ends, (S, 2)."""
    return np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(int))).reshape(-1, 2)


def steps_of(runs: Sequence[Run], horizon: int) -> tuple[int, ...]:
    """Strides of a window: up to eight, as many as are asked for and as leave five windows for each."""
    lengths = np.array([(len(run.positions) - 1) // run.every for run in runs])
    most = max(1, min(WINDOW, horizon))
    for ahead in range(most, 1, -1):
        if np.maximum(lengths - ahead + 1, 0).sum() >= WINDOWS_PER_STEP * ahead:
            return tuple(range(1, ahead + 1))
    return (1,)


@dataclass(frozen=True, eq=False)
class Judged:
    """Windows that are judged, and what may be known before them.

    Attributes
    ----------
    known : Known
        Frames before all of them.
    windows : list of tuple
        A run, the frames at which windows of it start, and the first frame that they may read.
    """

    known: Known
    windows: list[tuple[Run, NDArray[np.int64], int]]

    @classmethod
    def last(cls, material: Material, share: float, reach: int, at_most: int) -> Judged:
        """The windows in the last part of a run, evenly thinned to `at_most`.

        Parameters
        ----------
        material : Material
        share : float
            Of the frames.
        reach : int
            Strides of past that starts have if a quarter of the judged frames has room for it.
        at_most : int

        Raises
        ------
        DataError
            There is none.
        """
        every, ahead = material.every, material.steps[-1] * material.every
        lengths = [len(run.positions) for run in material.runs]
        cut = int(round((1 - share) * sum(lengths)))
        pieces, windows, before = [], [], 0
        for run, n in zip(material.runs, lengths, strict=True):
            middle = int(np.clip(cut - before, 0, n))
            if middle > 0:
                pieces.append(run.positions[:middle])
            past = min(reach * every, (n - middle) // 4 // every * every)
            starts = np.arange(middle + past, n - ahead)
            if len(starts):
                windows.append((run, starts, middle))
            before += n
        total = sum(len(starts) for _, starts, _ in windows)
        if not total:
            raise DataError(
                f"the last part of {counted(sum(lengths), 'frame')} has no window of "
                f"{counted(material.steps[-1], 'stride')} to judge a forecast by"
            )
        thin = -(-total // at_most)
        every_nth, seen = [], 0
        for run, starts, low in windows:
            chosen = starts[(np.arange(seen, seen + len(starts)) % thin) == 0]
            seen += len(starts)
            if len(chosen):
                every_nth.append((run, chosen, low))
        return cls(Known(pieces, material.steps, every), every_nth)
