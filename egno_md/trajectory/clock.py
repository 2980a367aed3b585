"""The one rule of time: which frames follow one another, and how many of them are a stride."""

from __future__ import annotations

import itertools
import json
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import MDAnalysis as mda
import numpy as np
from MDAnalysis.coordinates.DCD import DCDReader
from MDAnalysis.coordinates.PDB import PDBReader
from MDAnalysis.coordinates.TRR import TRRReader
from MDAnalysis.coordinates.XTC import XTCReader
from MDAnalysis.lib.util import anyopen

from ..errors import DataError, EGNOError, SpacingError, counted
from .preflight import AKMA_PS, Scan, dcd_layout, mapped, original, preflight

if TYPE_CHECKING:
    from numpy.typing import NDArray


_FLOAT32_EPS = float(np.finfo(np.float32).eps)

#: What to do about times that a file does not know.
_CURE = "give the true spacing (dt= in Python, --dt on the command line)"

#: Share of the frames above which those without a neighbour at the spacing of the run make it no run.
_ALONE = 0.75

#: Headers that were walked already, by the reader of their file.
_SCANS: weakref.WeakKeyDictionary[Any, Scan] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Clock:
    """The times of a trajectory's frames, and which of them follow one another evenly.

    Attributes
    ----------
    times : ndarray, shape (F,)
        ps.
    usable : ndarray of bool, shape (F,)
        False where a frame is known to hold no positions (TRR).
    spacing : float
        ps between two frames that follow one another; where a run has several spacings, that of most frames. 0.0 for a
        frame alone whose file says nothing.
    uncertainty : float
        What rounding leaves open of the spacing, in ps; times beyond 2^24 ps are stored as even numbers.
    stretches : tuple of ndarray of int
        Frame numbers, each array evenly spaced in time. A frame that is stored twice in a row is in it once.
    name : str
        Of the trajectory, for messages.
    notes : tuple of str
        A line where the run is not one stretch: which stretches there are; and one where a DCD file may not know them.
    """

    times: NDArray[np.float64]
    usable: NDArray[np.bool_]
    spacing: float
    uncertainty: float
    stretches: tuple[NDArray[np.int64], ...]
    name: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, universe: mda.Universe) -> Clock:
        """The clock of a Universe's trajectory; the frame that it stands on is kept.

        XTC and TRR files tell the time of each frame in headers that :func:`open_universe` has walked. Of other formats
        a few frames of each file are read, and all of them where those are not evenly spaced.

        Raises
        ------
        DataError
            No frame with positions, or times that mean nothing: the format holds none, no two frames of a file
            follow one another, or hardly any do. ``dt=`` of :func:`open_universe` is the cure for headers that lie.
        """
        trajectory = universe.trajectory
        name = trajectory_name(trajectory)
        files = _files(trajectory)
        times = np.concatenate([file.times for file in files])  # (F,)
        usable = np.concatenate([file.usable for file in files])  # (F,)
        if not usable.any():
            raise DataError(
                f"none of the {len(times)} frames of {name} holds positions; save the run with positions (GROMACS: "
                "nstxout)"
            )
        exact = all(file.exact for file in files)
        frames = np.flatnonzero(usable)
        if len(frames) == 1:
            stated = _stated(trajectory) if len(times) == 1 else None
            return cls(times, usable, stated or 0.0, 0.0, (frames,), name, ())
        if not all(file.known for file in files):
            if found := _ensemble(trajectory):
                raise DataError(f"{'. '.join(found)}. Where they are a run, {_CURE}")
            raise DataError(f"{name} holds {len(times)} frames but no times; {_CURE}")
        if not np.isfinite(times[frames]).all():
            bad = frames[~np.isfinite(times[frames])][0]
            raise DataError(f"frame {bad} of {name} is at {times[bad]} ps; {_CURE}")
        spacing, uncertainty = _common_spacing(files, times[frames])
        if spacing is None:
            raise _uneven(name, np.arange(min(5, len(times))), times)
        stretches = tuple(frames[k] for k in _even(times[frames], spacing, exact))
        alone = sum(len(stretch) == 1 for stretch in stretches)
        if max(map(len, stretches)) < 2 or alone > _ALONE * len(frames):
            raise _uneven(name, np.arange(min(5, len(times))), times)
        rounding = 0.0 if exact else _rounding(times[frames])
        if rounding > 1e-3 * spacing:
            times = times.copy()
            for stretch in stretches:
                steps = spacing * np.arange(len(stretch))
                times[stretch] = np.median(times[stretch] - steps) + steps
        notes = _notes(name, times, spacing, stretches) + _doubts(trajectory)
        if found := _ensemble(trajectory):
            notes += (f"{found[0]}, and are taken for a run with a frame every {spacing:g} ps. {found[1]}",)
        return cls(times, usable, spacing, uncertainty, stretches, name, notes)

    def shifted(self, frame: int, by: float) -> int | None:
        """The frame `by` spacings after another one (before it where negative), None where there is none.

        It is looked for by its time, so that gaps do not matter which a window steps over; never across a place where
        the time goes back, for what comes after it is another run.
        """
        place = self._place[frame]
        if place < 0:
            return None
        if by == 0:
            return int(frame)
        low, high = self._sections[place]
        times = self._ordered[low:high]
        wanted, tolerance = self.times[frame] + by * self.spacing, 0.02 * self.spacing + self.uncertainty
        first, last = np.searchsorted(times, [wanted - tolerance, wanted + tolerance])
        if first == last or self.spacing == 0:
            return None
        near = last - 1 if by < 0 else first  # of a frame that is stored twice, the one on this side
        return int(self._frames[low + near])

    @property
    def _left_out(self) -> str:
        """Which frames hold no positions, for messages; empty where all do."""
        without = np.flatnonzero(~self.usable)
        if not len(without):
            return ""
        return (
            f" ({len(without)} of its {len(self.usable)} frames, such as frame {without[-1]}, hold no positions, only "
            "velocities or forces, and are left out)"
        )

    @cached_property
    def _frames(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.usable)

    @cached_property
    def _ordered(self) -> NDArray[np.float64]:
        """Times of the usable frames, increasing within a section."""
        return self.times[self._frames]

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """Number of each frame among the usable ones, -1 for the others."""
        return np.where(self.usable, np.cumsum(self.usable) - 1, -1)

    @cached_property
    def _sections(self) -> NDArray[np.int64]:
        """For every usable frame, first and last + 1 of those around it in which the time never goes back."""
        cuts = np.flatnonzero(np.diff(self._ordered) < -1e-2 * self.spacing) + 1
        bounds = np.concatenate([[0], cuts, [len(self._ordered)]])
        which = np.searchsorted(bounds, np.arange(len(self._ordered)), side="right") - 1
        return np.stack([bounds[which], bounds[which + 1]], axis=1)

    def per_stride(self, stride_ps: float, every: int | None = None, *, who: str = "the model") -> int:
        """How many frames one stride is.

        Parameters
        ----------
        stride_ps : float
        every : int, optional
            What the user says; it must agree.
        who : str
            Whose stride it is, for the message.

        Raises
        ------
        SpacingError
            A run of one frame, or a stride that is not a whole number of frames (or not `every` of them).
        """
        if len(self._frames) < 2:
            raise SpacingError(
                f"{self.name} has {counted(len(self._frames), 'frame')}{self._left_out}; a run has at least two"
            )
        ratio = stride_ps / self.spacing
        whole = round(ratio)
        slack = 1e-3 * ratio + (ratio / self.spacing) * self.uncertainty
        fits = whole >= 1 and abs(ratio - whole) <= slack
        if fits and every in (None, whole):
            return whole
        if every is not None and abs(ratio - every) <= slack:
            return int(every)
        found = f"the frames of {self.name} are {self.spacing:g} ps apart{self._left_out}"
        if every is not None and every > 1:
            found += f", so {every} of them are {every * self.spacing:g} ps"
        found += f"; {who} has a stride of {stride_ps:g} ps"
        if fits and whole > 1:
            cure = f", {whole} frames: pass every={whole} (--every {whole}) to use one frame in {whole}"
        elif fits:
            cure = ", which is 1 frame: leave every (--every) out"
        else:
            cure = (
                ", which is not a whole number of them: use a model with the stride of the run (egno-md models), or "
                f"save the run at another spacing{', with the positions of every frame' if self._left_out else ''}"
            )
        # Where frames without positions are left out, a spacing is several frames of the file.
        first, second = max(self.stretches, key=len)[:2]
        true = stride_ps / (every or 1) / int(second - first)
        raise SpacingError(
            f"{found}{cure}; if the file's header is wrong, give the true spacing: dt={true:g} (--dt {true:g})"
        )


def frame_spacing(universe: mda.Universe) -> float:
    """The one spacing of all frames in ps; :class:`Clock` is for runs with gaps.

    A trajectory with one frame has no spacing to measure: what its header says is returned, or 0.0 where it says
    nothing. Where one file of several does not go on where the one before it ended, a warning names the two frames.
    The frame that the Universe stands on is kept.

    Raises
    ------
    DataError
        The format holds no times, or the times of a file are not evenly spaced; ``dt=`` of `open_universe` is the
        cure for headers that lie.
    """
    clock = Clock.of(universe)
    trajectory = universe.trajectory
    first, different = 0, []
    for file in _files(trajectory):
        n = len(file.times)
        if n > 1:
            spacing, _ = _line(file.times, file.exact)
            if spacing is None:
                sampled = np.array(sorted({0, 1, n // 2, n - 2, n - 1}))
                raise _uneven(clock.name, first + sampled, clock.times)
            different.append(spacing)
        first += n
    tolerance = time_tolerance(clock.spacing, clock.times)
    if any(abs(other - clock.spacing) > tolerance for other in different):
        raise DataError(
            f"the files have different frame spacings ({', '.join(f'{s:g}' for s in different)} ps); "
            f"open them one by one, or, if only the stored times are wrong, {_CURE}"
        )
    first = 0
    for file in _files(trajectory)[:-1]:
        first += len(file.times)
        jump = clock.times[first] - clock.times[first - 1]
        if abs(jump - clock.spacing) > tolerance:
            warnings.warn(
                f"between frames {first - 1} and {first} the file changes and the time goes on by {jump:g} ps, not by "
                f"the frame spacing of {clock.spacing:g} ps; if the simulation did go on there, {_CURE}, otherwise do "
                "not use a history across that border",
                UserWarning,
                stacklevel=2,
            )
    return clock.spacing


def read_frame(trajectory: Any, frame: int) -> Any:
    """``trajectory[frame]``; whatever its reader raises is an error that names file and frame.

    Raises
    ------
    DataError
        The frame cannot be read.
    """
    try:
        return trajectory[int(frame)]
    except EGNOError:
        raise
    except Exception as error:
        raise unreadable(trajectory, frame, error) from error


def unreadable(trajectory: Any, frame: int, error: Exception) -> DataError:
    """The error for a frame whose reader raised `error`."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    before = f"start from a frame before it, or keep the frames up to {frame - 1}" if frame else "check the file"
    return DataError(
        f"frame {frame} of {trajectory_name(trajectory, frame)} cannot be read "
        f"({said[:300]}): it is damaged, or has other atoms than the first one; copy the file again, or {before}"
    )


def no_positions(clock: Clock, trajectory: Any, frame: int) -> DataError:
    """The error for a frame without positions; it names the nearest one that has them."""
    known = np.flatnonzero(clock.usable & (np.arange(len(clock.usable)) != frame))
    near = "" if len(known) == 0 else f" (frame {known[np.argmin(np.abs(known - frame))]} has them)"
    return DataError(
        f"frame {frame} of {trajectory_name(trajectory, frame)} holds no positions, only velocities or forces: start "
        f"from another frame{near}, or keep the frames that have positions (GROMACS: gmx trjconv -f FILE -o run.xtc)"
    )


def trajectory_name(trajectory: Any, frame: int | None = None) -> str:
    """The file, or the files, of a trajectory for messages; the one that holds `frame` where that is told."""
    names = getattr(trajectory, "filenames", None)
    if names is None:
        filename = getattr(trajectory, "filename", None)
        return "the trajectory" if filename is None else original(str(filename))
    if frame is not None:
        ends = np.cumsum([reader.n_frames for reader in trajectory.readers])
        if ends[-1] == trajectory.n_frames:
            return original(str(names[int(np.searchsorted(ends, frame, side="right"))]))
    names = [original(str(name)) for name in names]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]} ({len(names)} files)"


def time_tolerance(spacing: float, times: NDArray[np.float64]) -> float:
    return 1e-3 * abs(spacing) + _rounding(times)


def _rounding(times: NDArray[np.float64]) -> float:
    """What single precision leaves open of the difference of two of these times."""
    return 4 * _FLOAT32_EPS * float(np.abs(times).max())


def same_spacing(known: tuple[float, str] | None, found: tuple[float, str]) -> tuple[float, str]:
    """The spacing of all files, each given as (ps, name).

    Raises
    ------
    DataError
        Two files differ; both are named.
    """
    if known is None:
        return found
    if abs(known[0] - found[0]) > 1e-3 * known[0]:
        raise DataError(
            f"the frames of {known[1]} are {known[0]:g} ps apart, those of {found[1]} {found[0]:g} ps: give the stride "
            "in ps where it is a whole number of both (--stride), use files of one spacing, or, if a header is wrong, "
            "give the true spacing (--dt)"
        )
    return known


@dataclass(frozen=True)
class _File:
    """What is known of the frames of one file: times (F,) in ps, which have positions, and how far to trust them."""

    times: NDArray[np.float64]
    usable: NDArray[np.bool_]
    known: bool = True  # False: the file holds no times
    exact: bool = False  # the times are known better than single precision says
    uncertainty: float = 0.0  # what is open of the spacing nevertheless, ps


def remember_scans(universe: mda.Universe, scans: Sequence[Scan | None]) -> None:
    """Keep the headers of a Universe's files, so that nobody walks them again."""
    readers = getattr(universe.trajectory, "readers", [universe.trajectory])
    for reader, scan in zip(readers, scans, strict=True):
        if scan is not None and scan.n_frames == reader.n_frames:
            _SCANS[reader] = scan


def _files(trajectory: Any) -> list[_File]:
    """One entry for each file; one for all where MDAnalysis leaves out frames of a chain (continuous=True)."""
    readers = getattr(trajectory, "readers", [trajectory])
    here = trajectory.frame
    try:
        if sum(reader.n_frames for reader in readers) != trajectory.n_frames:
            return [_read_times(trajectory, 0, trajectory.n_frames)]
        firsts = np.cumsum([0, *(reader.n_frames for reader in readers)])
        return [_file(trajectory, reader, int(first)) for reader, first in zip(readers, firsts[:-1], strict=True)]
    finally:
        if trajectory.frame != here or here < 0:
            trajectory[max(here, 0)]


def _file(trajectory: Any, reader: Any, first: int) -> _File:
    n = reader.n_frames
    scan = _scan(reader)
    usable = np.ones(n, bool) if scan is None or scan.positions is None else scan.positions
    own = getattr(reader, "own_clock", None)
    if own is not None:
        begin, dt = own
        return _File(begin + dt * np.arange(n), usable, exact=True)
    if isinstance(reader, (XTCReader, TRRReader)) and "dt" in reader._ts_kwargs:
        return _File(reader._ts_kwargs["dt"] * np.arange(n), usable, exact=True)
    if scan is not None and scan.steps is not None:
        return _by_steps(scan, usable)
    if _stated(reader) is None:
        return _one_time(trajectory, first, reader) if n == 1 else _File(np.zeros(n), usable, known=False)
    return _read_times(trajectory, first, n)


def _scan(reader: Any) -> Scan | None:
    """The headers of an XTC or TRR file, walked here where they were not before."""
    if reader not in _SCANS and isinstance(reader, (XTCReader, TRRReader)):
        scan = preflight(str(reader.filename))
        if scan is None or scan.n_frames != reader.n_frames:
            return None
        _SCANS[reader] = scan
    return _SCANS.get(reader)


def _by_steps(scan: Scan, usable: NDArray[np.bool_]) -> _File:
    """Times of a file that counts its integration steps too: whole numbers, which do not round."""
    times, steps = scan.times, scan.steps - scan.steps[0]  # (F,)
    rounding = _rounding(times)
    if len(times) > 2 and (np.diff(steps) > 0).all():
        # All times lie on one line over the steps, each up to its rounding.
        slope = (times[-1] - times[0]) / steps[-1]
        smallest = np.diff(steps).min()
        if slope > 0 and np.abs(times - times[0] - slope * steps).max() <= rounding + 1e-3 * slope * smallest:
            open_ = rounding / 4 / steps[-1] * smallest  # two times, each rounded to the nearest number
            slope = _round(slope * smallest, open_) / smallest
            begin = float(np.median(times - slope * steps)) if rounding > 1e-3 * slope * smallest else times[0]
            uncertainty = open_ if open_ > 1e-3 * slope * smallest else 0.0
            return _File(begin + slope * steps, usable, exact=True, uncertainty=uncertainty)
    return _File(times, usable)


def _stated(reader: Any) -> float | None:
    """The spacing that a file's header says, or a user who gave ``dt=``; None where MDAnalysis makes it up."""
    if getattr(reader, "own_clock", None) is not None:
        return float(reader.own_clock[1])
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stated = float(reader.dt)
    except (IndexError, KeyError, ValueError):  # a file of one frame may have no second time to look at
        return None
    return None if any("no dt information" in str(w.message) for w in caught) else stated


def _one_time(trajectory: Any, first: int, reader: Any) -> _File:
    """A file of one frame, of a format without spacing: it may still say when the frame was."""
    ts = read_frame(trajectory, first)
    # LAMMPS numbers its steps, of which MDAnalysis makes times of 1 ps a step.
    known = "time" in ts.data and getattr(reader, "format", "") != "LAMMPSDUMP"
    return _File(np.array([ts.time if known else 0.0]), np.array([ts.has_positions]), known)


def _read_times(trajectory: Any, first: int, n: int) -> _File:
    """Times of the frames first ... first + n - 1, some of which are read, or all where those are uneven."""
    sampled = sorted({0, 1, n // 2, n - 2, n - 1} & set(range(n)))
    times = np.array([read_frame(trajectory, first + k).time for k in sampled], dtype=np.float64)
    if n > len(sampled):
        spacing = (times[-1] - times[0]) / (n - 1)
        line = times[0] + spacing * np.arange(n)
        if spacing > 0 and np.abs(times - line[sampled]).max() <= time_tolerance(spacing, times):
            return _File(line, np.ones(n, bool))
        times = np.array([read_frame(trajectory, first + k).time for k in range(n)], dtype=np.float64)
    return _File(times, np.ones(n, bool))


def _line(times: NDArray[np.float64], exact: bool) -> tuple[float | None, float]:
    """Spacing of times (n,) that lie on one line, and its uncertainty in ps; None where they do not."""
    n = len(times)
    spacing = float(times[-1] - times[0]) / (n - 1)
    rounding = 0.0 if exact else _rounding(times)
    error = np.abs(times - times[0] - spacing * np.arange(n)).max()
    if not spacing > 0 or error > 1e-3 * spacing + rounding:
        return None, 0.0
    uncertainty = rounding / 4 / (n - 1)  # two times, each rounded to the nearest number
    return _round(spacing, uncertainty), uncertainty


def _common_spacing(files: Sequence[_File], ordered: NDArray[np.float64]) -> tuple[float | None, float]:
    """The spacing of most frames and its uncertainty; `ordered` are the times of the usable frames of all files."""
    found: list[tuple[float, float, int]] = []  # spacing, uncertainty, number of times that it occurs
    for file in files:
        times = file.times[file.usable]
        if len(times) < 2:
            continue
        spacing, uncertainty = _line(times, file.exact)
        if spacing is not None:
            found.append((spacing, max(uncertainty, file.uncertainty), len(times) - 1))
        else:
            found += [(float(d), 0.0 if file.exact else _rounding(times), 1) for d in np.diff(times)]
    if not found:  # one frame per file
        found = [(float(d), _rounding(ordered), 1) for d in np.diff(ordered)]
    steps = np.array([item for item in found if item[0] > 0]).reshape(-1, 3)
    if not len(steps):
        return None, 0.0
    steps = steps[np.argsort(steps[:, 0], kind="stable")]
    # Equal up to their rounding: a new group begins where the next one is larger by more than that.
    apart = np.diff(steps[:, 0]) > 2e-3 * steps[:-1, 0] + np.minimum(steps[1:, 1], steps[:-1, 0] / 2)
    groups = np.split(steps, np.flatnonzero(apart) + 1)
    most = max(groups, key=lambda group: group[:, 2].sum())
    best = most[most[:, 1] == most[:, 1].min()]  # the longest file averages the rounding best
    spacing = float(np.average(best[:, 0], weights=best[:, 2]))
    uncertainty = float(best[0, 1] / np.sqrt(len(best)))
    return _round(spacing, min(uncertainty, 5e-4 * spacing)), uncertainty


def _even(times: NDArray[np.float64], spacing: float, exact: bool) -> Iterator[NDArray[np.int64]]:
    """Places in `times` (n,) that are one spacing apart, as long as that goes on; a time that comes twice in a row
    counts once."""
    tolerance = np.full(len(times) - 1, 1e-3 * spacing)
    if not exact:
        tolerance += 4 * _FLOAT32_EPS * np.maximum(np.abs(times[1:]), np.abs(times[:-1]))
    steps = np.diff(times)
    twice = np.abs(steps) <= np.minimum(tolerance, 1e-2 * spacing)
    if not exact and (tolerance > spacing / 2).any():
        twice[:] = False  # times so late that neighbours round to the same one
    kept = np.concatenate([[True], ~twice])
    places = np.flatnonzero(kept)
    ends = np.flatnonzero(np.abs(np.diff(times[places]) - spacing) > tolerance[places[1:] - 1]) + 1
    yield from np.split(places, ends)


def _round(value: float, slack: float) -> float:
    """The roundest number within `slack` of a spacing, which people choose to be round."""
    slack = min(max(slack, 3 * _FLOAT32_EPS * value), 0.25 * value)
    if slack > 1e-2 * value:
        power = 10.0 ** np.floor(np.log10(value))
        for mantissa in (1.0, 10.0, 2.0, 5.0):
            if abs(mantissa * power - value) <= slack:
                return float(mantissa * power)
    for digits in range(1, 8):
        rounded = float(f"{value:.{digits}g}")
        if abs(rounded - value) <= slack:
            return rounded
    return value


def _notes(
    name: str, times: NDArray[np.float64], spacing: float, stretches: Sequence[NDArray[np.int64]]
) -> tuple[str, ...]:
    if len(stretches) == 1:
        return ()
    even = [stretch for stretch in stretches if len(stretch) > 1]
    alone = len(stretches) - len(even)
    shown = [f"{s[0]} to {s[-1]} ({times[s[0]]:g} to {times[s[-1]]:g} ps)" for s in even[:4]]
    more = f" and {len(even) - 4} more" if len(even) > 4 else ""
    rest = f"; alone: {counted(alone, 'frame')}" if alone else ""
    return (
        f"the frames of {name} are not {spacing:g} ps apart throughout: the even stretches are frames "
        f"{', '.join(shown)}{more}{rest}; no window reads on from one to the next where frames are missing",
    )


def _doubts(trajectory: Any) -> tuple[str, ...]:
    """One line on the first DCD file whose writer did not know the time of a step, or had another unit for it."""
    for reader in getattr(trajectory, "readers", [trajectory]):
        if type(reader) is not DCDReader:  # MDAnalysis' own of LAMMPS knows its units
            continue
        name = str(reader.filename)
        try:
            with mapped(name) as data:
                layout = dcd_layout(name, data)
        except (DataError, OSError, ValueError):  # MDAnalysis reads it all the same
            continue
        step, dt = layout.step / AKMA_PS, layout.step * layout.nsavc
        if abs(reader.dt - dt) > 1e-4 * dt:  # it was given
            continue
        # 1 where nothing is known; of LAMMPS a number of fs, in quarters. 1 fs in the unit of DCD files is 0.0205.
        if step > 0.2 and abs(4 * step - round(4 * step)) < 1e-5:
            return (
                f"the header of {original(name)} says {step:g} where DCD files have the time of a step in units of "
                f"{AKMA_PS:.4f} ps: so do writers that know no times (mdtraj, VMD), and LAMMPS in fs, of which "
                f"{step * layout.nsavc / 1e3:g} ps would be from frame to frame. "
                f"{dt:g} ps are taken for it; where that is wrong, {_CURE}",
            )
    return ()


def _ensemble(trajectory: Any) -> tuple[str, str] | None:
    """What is said of the models of an NMR structure, a file of several frames as a run is, and what can be done."""
    for reader in getattr(trajectory, "readers", [trajectory]):
        if not isinstance(reader, PDBReader) or reader.n_frames < 2:
            continue
        with anyopen(reader.filename, "rt") as file:
            header = itertools.takewhile(lambda line: not line.startswith(("MODEL", "ATOM")), file)
            if any(line.startswith("EXPDTA") and "NMR" in line for line in header):
                name, models = original(str(reader.filename)), counted(reader.n_frames, "model")
                return (
                    f"{name} holds {models} of an NMR structure, which do not follow one another",
                    "A forecast of one of them takes it from a file of its own (python -c 'import MDAnalysis; "
                    f'MDAnalysis.Universe({json.dumps(name)}).atoms.write("model.pdb")\')',
                )
    return None


def _uneven(name: str, frames: NDArray[np.int64], times: NDArray[np.float64]) -> DataError:
    listed = ", ".join(f"{frame}: {times[frame]:g} ps" for frame in frames)
    return DataError(
        f"the frames of {name} are not evenly spaced in time (frame {listed}); keep an evenly spaced part of it, or, "
        f"if only the stored times are wrong, {_CURE}"
    )
