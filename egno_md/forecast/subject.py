"""What a model sees in a Universe: its atoms, its stride in frames, the past of a start, and runs of frames."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from MDAnalysis import AtomGroup
from MDAnalysis.exceptions import NoDataError
from numpy.typing import NDArray

from ..errors import DataError, ModelError, OutputError, UsageError, few
from ..graph.windows import MEMORY_LIMIT, Run, frames_back
from ..molecule.atoms import asked_to_be_whole, matching_atoms, select_atoms
from ..molecule.molecule import atom_label
from ..molecule.structure import Structure
from ..molecule.whole import make_whole, put_close
from ..specs import GraphSpec, WindowSpec
from ..trajectory.clock import Clock, no_positions, read_frame, trajectory_name
from ..trajectory.universe import open_sources
from .asked import whole_number

if TYPE_CHECKING:
    from ..graph.builder import GraphBuilder


class _Images:
    """In which images of the periodic box molecules stand.

    A frame is put into the images of the frame that was read before it, and, once the frames of the run are held, into
    those of the nearest of them: starts, and what they are compared with, are read in any order.
    """

    def __init__(self) -> None:
        self.last: NDArray[np.float32] | None = None
        self.moved = False  # whether any molecule was not where the file has it
        self._runs: Sequence[Run] = ()

    def hold(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._numbers = np.concatenate([run.numbers for run in runs])  # (F,)
        self._ends = np.cumsum([len(run.positions) for run in runs])

    def near(self, frame: int) -> NDArray[np.float32] | None:
        """Positions (N, 3) to which this frame is near."""
        if not self._runs:
            return self.last
        place = int(np.abs(self._numbers - frame).argmin())
        which = int(np.searchsorted(self._ends, place, side="right"))
        return self._runs[which].positions[place - self._ends[which]]


@dataclass(frozen=True)
class Subject:
    """The atoms that a model sees in a trajectory, and how it reads that trajectory.

    Attributes
    ----------
    atoms : AtomGroup
        The N atoms.
    builder : GraphBuilder or None
        Makes their graphs; None where no graph was asked for.
    window : WindowSpec or None
    clock : Clock
        Of the trajectory.
    every : int
        Frames per stride.
    name : str
        Of the run, for messages and files.
    mends : bool
        Whether molecules that the box cuts, or that jump through it, are put together, whatever the trajectory does.
    """

    atoms: AtomGroup
    builder: GraphBuilder | Structure | None
    window: WindowSpec | None
    clock: Clock
    every: int
    name: str = "run"
    mends: bool = False
    _images: _Images = field(default_factory=_Images, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        source: Any,
        graph: GraphSpec | None,
        window: WindowSpec | None = None,
        *,
        select: str | None = None,
        every: int | None = None,
        who: str = "the model",
        name: str = "run",
        builder: GraphBuilder | None = None,
    ) -> Subject:
        """The subject of a Universe or an AtomGroup; of files see :meth:`each`.

        Parameters
        ----------
        source : Universe or AtomGroup
            Its trajectory stays at its frame.
        graph : GraphSpec or None
            Whose atoms and features; None where only frames of `select` are wanted.
        window : WindowSpec, optional
            Whose stride and past; without it a stride is one frame.
        select : str, optional
            Narrows the selection of `graph`.
        every : int, optional
            Frames per stride, to be checked against the clock; read off it when None. Of a window with a range of
            strides the shortest that the run has is taken, and :attr:`window` says which.
        who : str
            What the specs belong to, for messages.
        name : str
        builder : GraphBuilder, optional
            Of the same atoms in another run of the same topology, to be used again.

        Raises
        ------
        UsageError, DataError
            A selection or frames that cannot be right.
        ModelError
            Atoms that the model was not made for, or whose features it does not know.
        SpacingError
            A stride that is not a whole number of frames, or not `every` of them.
        """
        every = None if every is None else whole_number("every", every)
        known = "all" if graph is None else graph.select
        atoms = choose_atoms(source, known, select, who=who)
        trajectory = atoms.universe.trajectory
        clock = Clock.of(atoms.universe)
        for note in clock.notes:
            warnings.warn(note, UserWarning, stacklevel=3)
        if window is None:
            stride = 1
        elif clock.usable.sum() < 2:
            stride = every or 1
        elif window.stride_range is not None:
            stride = every or max(1, int(np.ceil(window.stride_range[0] * 0.999 / clock.spacing)))
            window = window.at_stride(float(f"{stride * clock.spacing:.6g}"))
        else:
            stride = clock.per_stride(window.stride_ps, every, who=who)
        if graph is not None and builder is None:
            from ..graph.builder import GraphBuilder  # brings torch, which a forecast without a network need not load

            with _frame_with_positions(trajectory, clock):
                builder = GraphBuilder(atoms, graph)
        return cls(atoms, builder, window, clock, stride, name)

    @classmethod
    def each(
        cls,
        source: Any,
        trajectories: Sequence[str | os.PathLike],
        graph: GraphSpec | None,
        window: WindowSpec | None = None,
        *,
        dt: float | None = None,
        **options: Any,
    ) -> list[Subject]:
        """One subject for each trajectory file, every one a run of its own; or one of a Universe or AtomGroup.

        Topology, atoms and builder are made once. `dt` is the spacing of the frames in ps, where the headers are wrong;
        the other options and errors are those of :meth:`of`.
        """
        subjects: list[Subject] = []
        sources = open_sources(source, trajectories, dt)
        names = [os.path.basename(os.fspath(file)) for file in trajectories] or ["run"]
        for atoms, name in zip(sources, names, strict=True):
            builder = subjects[0].builder if subjects else None
            subjects.append(cls.of(atoms, graph, window, name=name, builder=builder, **options))
        return subjects

    @classmethod
    def plain(cls, source: Any, select: str, *, every: int = 1, name: str = "run") -> Subject:
        """The subject of forecasts that need no graph: of any atoms, a stride of `every` frames of any spacing.

        Molecules that the box cuts are put together.
        """
        every = whole_number("every", every)
        atoms = select_atoms(source, select)
        trajectory = atoms.universe.trajectory
        if every > max(1, trajectory.n_frames - 1):
            raise UsageError(
                f"every (--every) must be less than the {trajectory.n_frames} frames of the run, found {every}"
            )
        clock = Clock.of(atoms.universe)
        with _frame_with_positions(trajectory, clock):
            structure = Structure(atoms)
        return cls(atoms, structure, None, clock, every, name, mends=True)

    @property
    def end(self) -> int:
        """Number of the last frame that has positions."""
        return int(np.flatnonzero(self.clock.usable)[-1])

    @property
    def molecule(self) -> Any:
        """The atoms as arrays."""
        return self.builder.molecule

    @property
    def back(self) -> int:
        """Strides of past that a window reads."""
        return 0 if self.window is None else frames_back(self.window)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Frames whose past lies with them in one even stretch."""
        return np.concatenate([stretch[self.back * self.every :] for stretch in self.clock.stretches])

    def past(self, frame: int) -> list[int]:
        """The frames that a forecast from this one reads, the oldest first; itself alone where there is no past.

        Raises
        ------
        DataError
            A model that reads several frames lacks one of them.
        """
        found = [self.clock.shifted(frame, -k * self.every) for k in range(self.back + 1)]
        have = next((k for k, past in enumerate(found) if past is None), len(found)) - 1
        if have < 0:
            raise no_positions(self.clock, self.atoms.universe.trajectory, frame)
        if have == self.back:
            return found[::-1]
        if self.back > 1:
            later = self.starts[self.starts >= frame] if len(self.starts) else self.starts
            cure = f"start at frame {later[0]} or later" if len(later) else "use a longer run"
            if not len(later) and len(self.starts):
                cure = f"start at frame {self.starts[-1]} or earlier"
            raise DataError(f"frame {frame} has {have} strides of past, the model reads {self.back}: {cure}")
        return [frame]

    def read(
        self, frames: Sequence[int], seen: dict[int, tuple[NDArray, NDArray | None]] | None = None
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32] | None]]:
        """What a forecast reads: the past of some start frames, and the box at each of them.

        Parameters
        ----------
        frames : sequence of S int
            Start frames.
        seen : dict, optional
            Frames that were read before; kept by the caller from call to call for starts in order.

        Returns
        -------
        history : ndarray, shape (S, n_input, N, 3), float32
            Angstrom, one stride apart, the start frame last. Where a start has no past, it is repeated (velocities of
            zero), with a warning.
        boxes : list of S ndarray (6,) or None
            Lengths in Angstrom, angles in degrees.

        Raises
        ------
        DataError
            A frame that cannot be read, without positions or with positions that are not finite; or too little past.
        """
        seen = {} if seen is None else seen
        history = np.empty((len(frames), self.back + 1, len(self.atoms), 3), np.float32)
        boxes = []
        for i, frame in enumerate(map(int, frames)):
            past = self.past(frame)
            if len(past) <= self.back:
                self._warn_of_no_past(frame)
                past = [frame] * (self.back + 1)
            for k in range(self.back, -1, -1):
                if past[k] not in seen:
                    seen[past[k]] = self._frame(past[k])
                history[i, k] = seen[past[k]][0]
            boxes.append(seen[frame][1])
            # Starts come in order mostly: a stride's worth of frames behind them can be asked for again.
            for old in [f for f in seen if f < past[0]]:
                del seen[old]
        return history, boxes

    def lead(self, frame: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Up to `count` frames up to a start, one stride apart and without a gap, (P, N, 3), and the box at the start.

        Where molecules are put together, and the run is held (:meth:`settle`), they are in the images of its frames.
        """
        numbers = [int(frame)]
        while len(numbers) < count and (past := self.clock.shifted(numbers[-1], -self.every)) is not None:
            numbers.append(past)
        if not self.clock.usable[frame]:
            raise no_positions(self.clock, self.atoms.universe.trajectory, frame)
        self._images.last = None
        found, boxes = self.frames(numbers)
        return found[::-1], boxes[0]

    def settle(self, runs: Sequence[Run]) -> bool:
        """Let molecules stand in the frames of a run, in place, and in all that is read from here on, in the images in
        which they stand in the last frame of it, those of a complex next to each other.

        Molecules that moved through the box against each other would else be elsewhere in a start than in the frames
        that a forecast is fitted to. True is returned where a molecule is not where the file has it.
        """
        with _back_to(self.atoms.universe.trajectory):
            self._images.last = None
            stands, box = self._frame(int(runs[-1].numbers[-1]))  # (N, 3)
        if self.mends and self.clock.usable.sum() > 1:  # the box of one structure may be a crystal's
            stands = put_close(stands, self.molecule.bonds, box)
        shift = stands - runs[-1].positions[-1]  # whole widths of the box, but for rounding
        shift[np.abs(shift).max(axis=1) < 1e-2] = 0.0
        if shift.any():
            for run in runs:
                run.positions[:] += shift
        self._images.hold(runs)
        return bool(self._images.moved or shift.any())

    def history(self, frames: Sequence[int]) -> NDArray[np.float32]:
        """The past of some start frames, (S, n_input, N, 3); see :meth:`read`."""
        return self.read(frames)[0]

    def boxes(self, frames: Sequence[int]) -> list[NDArray[np.float32] | None]:
        """The box at each of some frames, (6,) or None."""
        return self.frames(frames)[1]

    def frames(self, frames: Sequence[int]) -> tuple[NDArray[np.float32], list[NDArray[np.float32] | None]]:
        """Positions (F, N, 3) and boxes (6,) or None of some frames; errors as in :meth:`read`."""
        found = [self._frame(int(frame)) for frame in frames]
        return np.array([positions for positions, _ in found], np.float32), [box for _, box in found]

    def some(self, count: int) -> tuple[NDArray[np.float32], list[NDArray[np.float32] | None]]:
        """Up to `count` sound frames that are evenly spread over the run, as of :meth:`frames`; what is read next is as
        if they had not been read."""
        usable = np.flatnonzero(self.clock.usable)
        found: list[tuple[NDArray[np.float32], NDArray[np.float32] | None]] = []
        last = self._images.last
        with _back_to(self.atoms.universe.trajectory):
            for k in np.unique(np.linspace(0, len(usable) - 1, count).astype(int)):
                with contextlib.suppress(DataError):  # a frame that nobody has asked for
                    found.append(self._frame(int(usable[k])))
        self._images.last = last
        positions = np.array([frame for frame, _ in found], np.float32).reshape(-1, len(self.atoms), 3)  # (F, N, 3)
        return positions, [box for _, box in found]

    def before(self, frame: int) -> list[int]:
        """The frames up to this one, it included, one per stride, as far back as they go on without a gap."""
        numbers = [int(frame)]
        while (past := self.clock.shifted(numbers[-1], -self.every)) is not None:
            numbers.append(past)
        return numbers[::-1]

    def positions(self, frame: int) -> NDArray[np.float32]:
        """Positions (N, 3) of one frame in Angstrom; errors as in :meth:`read`."""
        return self._frame(frame)[0]

    def _warn_of_no_past(self, frame: int) -> None:
        if len(self.clock.times) > 1:
            later = self.starts[np.argmin(np.abs(self.starts - frame))] if len(self.starts) else None
            cure = "" if later is None or frame == 0 else f" (frame {later} has one)"
            warnings.warn(
                f"frame {frame} has no frame one stride before it{cure}: its velocities are taken as zero", stacklevel=4
            )

    def _frame(self, frame: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Positions (N, 3) and box of one frame."""
        trajectory = self.atoms.universe.trajectory
        # Also where it stands on it: atoms may have been moved there, and the other frames know nothing of it.
        read_frame(trajectory, frame)
        try:
            positions = np.array(self.atoms.positions, np.float32)  # (N, 3)
        except NoDataError as error:
            raise no_positions(self.clock, trajectory, frame) from error
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        if len(bad):
            atoms = few((atom_label(self.atoms[int(k)]) for k in bad), 3)
            name = trajectory_name(trajectory, frame)
            raise DataError(
                f"frame {frame} of {name} has coordinates that are not finite, of {atoms}; leave the damaged frames "
                "out, or start from an intact one"
            )
        box = self.atoms.universe.dimensions
        if self.builder is not None and (self.mends or asked_to_be_whole(trajectory)):
            found = make_whole(positions, self.builder.bonds, box, near=self._images.near(frame))
            self._images.moved |= found is not positions
            self._images.last = positions = found
        return positions, None if box is None else np.array(box, np.float32)

    def runs(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        folder: Path | None = None,
        limit: int = MEMORY_LIMIT,
        progress: Callable[[int], Any] = lambda count: None,
    ) -> list[Run]:
        """The frames as runs, one for each even stretch; the trajectory is left where it was.

        Parameters
        ----------
        start, stop : int
            Frames to read, as in a slice.
        folder : Path, optional
            Where frames of more than `limit` bytes are kept (as ``<name>.f32``); without it all stay in memory.
        limit : int
            Bytes per run.
        progress : callable
            Called with 1 after each frame.

        Raises
        ------
        DataError
            A frame that cannot be read or whose coordinates are not finite, or no frame at all.
        OutputError
            The folder cannot take the frames.
        """
        trajectory = self.atoms.universe.trajectory
        first, last, _ = slice(start, stop).indices(trajectory.n_frames)
        parts = [stretch[(stretch >= first) & (stretch < last)] for stretch in self.clock.stretches]
        parts = [part for part in parts if len(part)]
        if not parts:
            raise DataError(f"{self.name}: no frame between {start} and {stop}; it has {trajectory.n_frames}")
        longer = [part for part in parts if len(part) > 1] or parts[:1]
        with _back_to(trajectory):
            return [
                self._run(part, f"{self.name}-{k}" if len(longer) > 1 else self.name, folder, limit, progress)
                for k, part in enumerate(longer)
            ]

    def _run(
        self,
        numbers: NDArray[np.int64],
        name: str,
        folder: Path | None,
        limit: int,
        progress: Callable[[int], Any],
    ) -> Run:
        shape = (len(numbers), len(self.atoms), 3)
        size = 4 * int(np.prod(shape))
        file = folder / f"{name}.f32" if folder is not None and size > limit else None
        frames = np.empty(shape if file is None else (0, *shape[1:]), np.float32)
        boxes = np.zeros((len(numbers), 6), np.float32)
        # Written as a plain file and mapped afterwards: a mapped page for which there is no room ends the interpreter.
        try:
            with contextlib.nullcontext() if file is None else open(file, "wb") as stream:
                for i, positions in enumerate(self._frames(numbers, boxes)):
                    if stream is None:
                        frames[i] = positions
                    else:
                        stream.write(positions.tobytes())
                    progress(1)
        except OSError as error:
            if file is None:
                raise
            file.unlink(missing_ok=True)
            raise OutputError(
                f"cannot keep the frames of {name} in {file} ({error}); {size / 2**30:.1f} GiB are needed: choose a "
                "work folder with more room"
            ) from error
        if file is not None:
            frames = np.memmap(file, np.float32, "r", shape=shape)
        cells = boxes if boxes[:, :3].any() else None
        return Run(frames, self.builder, self.every, cells, name, numbers=numbers)

    def _frames(self, numbers: NDArray[np.int64], boxes: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Positions (N, 3) of some frames; their boxes are filled in."""
        for i, number in enumerate(numbers):
            positions, box = self._frame(int(number))
            if box is not None:
                boxes[i] = box
            yield positions


def choose_atoms(source: Any, known: str, select: str | None = None, *, who: str = "the model") -> AtomGroup:
    """The atoms of a selection; `select` can narrow it, not leave it.

    Parameters
    ----------
    source : Universe or AtomGroup
    known : str
        The selection that the model was made for.
    select : str, optional
        Narrower.
    who : str
        For the message.

    Raises
    ------
    UsageError, DataError
        See :func:`egno_md.molecule.atoms.select_atoms`.
    ModelError
        `select` holds atoms that `known` does not.
    """
    atoms = select_atoms(source, known if select is None else select)
    if select is not None:
        foreign = atoms - matching_atoms(atoms.universe, known)
        if len(foreign):
            raise ModelError(
                f"selection {select!r} has {len(foreign)} atoms, such as {foreign[0].resname} {foreign[0].name}, that "
                f"{who} was not made for: its selection is {known!r}; narrow the selection or use another model "
                "(egno-md models)"
            )
    return atoms


@contextlib.contextmanager
def _back_to(trajectory: Any) -> Iterator[None]:
    """Leave a trajectory at the frame where it was."""
    here = max(trajectory.frame, 0)
    try:
        yield
    finally:
        if trajectory.frame != here:
            trajectory[here]


@contextlib.contextmanager
def _frame_with_positions(trajectory: Any, clock: Clock) -> Iterator[None]:
    """The current frame, or, where it holds no positions, the nearest that does."""
    usable = np.flatnonzero(clock.usable)
    with _back_to(trajectory):
        if not trajectory.ts.has_positions:
            read_frame(trajectory, int(usable[np.argmin(np.abs(usable - max(trajectory.frame, 0)))]))
        yield
