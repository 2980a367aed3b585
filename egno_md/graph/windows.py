"""Samples for training and evaluation: (history, targets) windows that never cross the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError, counted
from ..specs import WindowSpec

if TYPE_CHECKING:
    import torch

    from ..molecule.structure import Structure
    from .builder import GraphBuilder
    from .graph import Graph

#: Runs up to this many bytes are kept in memory; longer ones stream from a file of the selected atoms.
MEMORY_LIMIT = 2 << 30


@dataclass(frozen=True)
class Run:
    """One trajectory of one system.

    Attributes
    ----------
    positions : ndarray, shape (F, N, 3), float32
        Angstrom; a numpy memmap where the frames do not fit in memory.
    builder : GraphBuilder
        Makes the graphs of this system; where none are needed its Structure alone.
    every : int
        Frames per stride of the model, so that finely saved runs give overlapping windows.
    boxes : ndarray, shape (F, 6), optional
        Lengths in Angstrom, angles in degrees.
    name : str
    velocities : ndarray, shape (F, N, 3), optional
        For windows whose velocities are stored (``WindowSpec.velocity``).
    numbers : ndarray of int, shape (F,), optional
        Of the frames in their trajectory.
    stride_ps : float, optional
        Stride in ps, where it is not that of the window.
    """

    positions: np.ndarray
    builder: GraphBuilder | Structure
    every: int = 1
    boxes: np.ndarray | None = None
    name: str = "run"
    velocities: np.ndarray | None = None
    numbers: np.ndarray | None = None
    stride_ps: float | None = None


def segments(starts: np.ndarray, window: WindowSpec, every: int = 1) -> list[tuple[int, int]]:
    """The frames that windows with these start frames read, as ranges (first, last + 1) without a gap."""
    if not len(starts):
        return []
    groups = np.split(np.asarray(starts), np.flatnonzero(np.diff(starts) > 1) + 1)
    back, ahead = frames_back(window) * every, max(window.span, int(window.velocity == "forward")) * every
    return [(int(g[0]) - back, int(g[-1]) + ahead + 1) for g in groups]


def frames_back(window: WindowSpec) -> int:
    """Strides of past that a window reads: T - 1 of a trajectory, and one more for a backward difference."""
    return window.history - 1 + (window.velocity == "backward")


def displacements(frames: np.ndarray, window: WindowSpec) -> np.ndarray:
    """Velocities in Angstrom per stride of the last `history` usable frames.

    Parameters
    ----------
    frames : ndarray, shape (history + 1, N, 3)
        Consecutive frames, one stride apart; the extra one comes first for backward differences, last for forward.

    Returns
    -------
    ndarray, shape (history, N, 3)
    """
    return np.diff(frames, axis=0)  # (history, N, 3)


def window_starts(n_frames: int, window: WindowSpec, every: int = 1) -> range:
    """Start frames whose past and targets lie inside a run of `n_frames` frames."""
    ahead = max(window.span, int(window.velocity == "forward"))
    return range(frames_back(window) * every, n_frames - ahead * every)


def split_blocks(
    n_frames: int, window: WindowSpec, *, every: int = 1, fractions: Sequence[float] = (0.6, 0.2, 0.2), blocks: int = 1
) -> list[np.ndarray]:
    """Split one run by blocks of time with a purge, so that no frame is shared between the parts.

    Parameters
    ----------
    n_frames : int
        Frames in the run.
    window : WindowSpec
    every : int
        Frames per stride.
    fractions : sequence of float
        Shares of train, validation and test (any number of parts); they sum to 1.
    blocks : int
        How often the sequence of parts repeats along the run.

    Returns
    -------
    list of ndarray of int
        Start frames of each part, increasing. A window, past included, lies wholly inside its part's block.

    Raises
    ------
    DataError
        The run is too short to give every part a window.
    """
    if not np.isclose(sum(fractions), 1.0):
        raise DataError(f"fractions must sum to 1, found {tuple(fractions)}")
    edges = np.concatenate([[0.0], np.cumsum(list(fractions) * blocks) / blocks])
    bounds = np.round(edges * n_frames).astype(int)
    parts: list[list[int]] = [[] for _ in fractions]
    for k, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        starts = window_starts(last - first, window, every)
        parts[k % len(fractions)].extend(first + s for s in starts)
    if any(len(part) == 0 for part, share in zip(parts, fractions, strict=True) if share > 0):
        smallest = min(share for share in fractions if share > 0)
        length = (frames_back(window) + window.span) * every + 1
        raise DataError(
            f"{counted(n_frames, 'frame')} in {counted(blocks, 'block')}: too few for windows of {length} frames "
            f"in every part of the split {tuple(fractions)}; at least "
            f"{int(np.ceil(length * blocks / smallest))} frames are needed"
        )
    return [np.asarray(part, dtype=int) for part in parts]


class TrajectoryWindows:
    """Windows of one or several runs as graphs.

    Each sample is a :class:`~egno_md.graph.Graph` made by the run's GraphBuilder from the start frame, with the
    targets ``y`` and, for a trajectory-to-trajectory window, ``pos_history`` and ``vel_history``.

    Parameters
    ----------
    runs : sequence of Run
    window : WindowSpec
    starts : sequence of (array of int), optional
        Start frames of each run; all that fit when None.
    """

    def __init__(self, runs: Sequence[Run], window: WindowSpec, starts: Sequence[Iterable[int]] | None = None) -> None:
        self.runs = list(runs)
        self.window = window
        if starts is None:
            starts = [window_starts(len(run.positions), window, run.every) for run in self.runs]
        self.index = [(r, int(s)) for r, run_starts in enumerate(starts) for s in run_starts]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> Graph:
        return self.sample(item)

    def history(self, item: int) -> np.ndarray:
        """The input frames of a window (frames_back + 1, N, 3), float64, as a forecast takes them."""
        r, start = self.index[item]
        run = self.runs[r]
        return run.positions[start + np.arange(-frames_back(self.window), 1) * run.every].astype(np.float64)

    def ahead(self, item: int, windows: int) -> int | None:
        """The window that many windows later, where every start frame in between is one of this data set's too."""
        r, start = self.index[item]
        there = item + windows * self.window.span * self.runs[r].every
        distance = there - item
        return there if there < len(self.index) and self.index[there] == (r, start + distance) else None

    def sample(self, item: int, noise: Callable[[tuple[int, ...]], np.ndarray] | None = None) -> Graph:
        """One window; `noise` gives what is added to its input frames, in Angstrom, for their shape."""
        r, start = self.index[item]
        run, window = self.runs[r], self.window
        last = 1 if window.velocity == "forward" else 0
        frames = start + np.arange(-frames_back(window), last + 1) * run.every
        past = run.positions[frames]
        if noise is not None:
            past = past + noise(past.shape)
        if window.velocity == "stored":
            if run.velocities is None:
                raise DataError(f"{run.name} holds no velocities: use windows with velocity='backward'")
            sequence, velocities = past, run.velocities[frames]  # (history, N, 3)
        else:
            velocities = displacements(past, window)  # (history, N, 3)
            sequence = past[1:] if window.velocity == "backward" else past[:-1]  # (history, N, 3)
        box = None if run.boxes is None else run.boxes[start]
        targets = run.positions[start + np.asarray(window.targets) * run.every]
        graph = run.builder(sequence[-1], velocities[-1], box)
        return graph._replace(
            pos_history=nodes_first(sequence) if window.history > 1 else None,  # (N, T, 3)
            vel_history=nodes_first(velocities) if window.history > 1 else None,  # (N, T, 3)
            y=nodes_first(targets),  # (N, T, 3)
            stride=None if run.stride_ps is None else graph.pos.new_tensor([run.stride_ps]),
        )


def nodes_first(frames: np.ndarray) -> torch.Tensor:
    """(T, N, 3) to (N, T, 3), float32."""
    import torch  # free forecasts need runs and no graphs

    return torch.from_numpy(np.ascontiguousarray(frames.swapaxes(0, 1), np.float32))  # (N, T, 3)
