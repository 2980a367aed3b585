"""Universes: opened from checked files, or in memory."""

from __future__ import annotations

import atexit
import difflib
import functools
import itertools
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import MDAnalysis as mda
import numpy as np
from MDAnalysis import AtomGroup
from MDAnalysis.coordinates.base import ReaderBase
from MDAnalysis.coordinates.DCD import DCDReader
from MDAnalysis.coordinates.memory import MemoryReader
from MDAnalysis.coordinates.XTC import XTCReader
from MDAnalysis.lib.util import guess_format, openany
from MDAnalysis.transformations import set_dimensions

from ..errors import DataError, EGNOError, UsageError
from .clock import remember_scans
from .preflight import (
    ORIGINALS,
    SCANNERS,
    Scan,
    StrPath,
    damaged,
    file_suffix,
    original,
    preflight,
    require_file,
    xtc_decodes,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def open_universe(topology: StrPath, trajectories: Sequence[StrPath] = (), *, dt: float | None = None) -> mda.Universe:
    """Universe of a topology and the whole frames of its trajectories.

    The frame headers of DCD, XTC and TRR files are walked before MDAnalysis reads them: its XTC and TRR decoders trust
    the file, and a wrong byte can end the interpreter. The packed coordinates of an XTC frame are checked each time
    before they are decoded, which about doubles the time to read it. An incomplete last frame is left out with a
    warning that names the file; for XTC and TRR the whole frames are then read from a temporary copy that lives until
    the interpreter ends.

    Parameters
    ----------
    topology
        Any topology MDAnalysis reads. It may hold the frames as well (a PDB file with several models).
    trajectories
        Files that follow one another in time, of one or several formats; may be empty.
    dt
        Spacing of the frames in ps, in place of what the headers say. Several files then share one clock that goes on
        from file to file; without `dt` each file keeps its own times.

    Raises
    ------
    DataError
        A file that is missing, unreadable, empty, damaged, of an unknown format, or that does not fit the topology.
    UsageError
        `dt` is not a positive number, or a file is given twice.
    """
    if dt is not None and not (math.isfinite(dt) and dt > 0):
        raise UsageError(f"dt={dt!r}: the frame spacing must be a positive number of ps")
    if isinstance(trajectories, (str, os.PathLike)):
        trajectories = [trajectories]
    top = os.fspath(topology)
    require_topology(top)
    _require_once(trajectories)
    return _open(top, [os.fspath(name) for name in trajectories], dt)


def open_runs(topology: StrPath, trajectories: Sequence[StrPath], *, dt: float | None = None) -> list[mda.Universe]:
    """One Universe for each trajectory file, every one a run of its own; the topology is read once.

    Parameters and errors are those of :func:`open_universe`. Without a trajectory there is one Universe, of the frames
    that the topology holds.
    """
    _require_once(trajectories)
    first = open_universe(topology, trajectories[:1], dt=dt)
    shared = first._topology
    return [first] + [_open(os.fspath(topology), [os.fspath(name)], dt, shared) for name in trajectories[1:]]


def _require_once(files: Sequence[StrPath]) -> None:
    """Refuse a file that is there twice: what is fitted to one copy would be judged on the other."""
    seen: dict[str, str] = {}
    for name in map(os.fspath, files):
        file = os.path.realpath(name)
        if file in seen:
            raise UsageError(f"the trajectories {seen[file]} and {name} are one file; give each file once")
        seen[file] = name


def require_topology(name: str) -> None:
    """Refuse a file that is no topology before MDAnalysis is asked; errors as in `open_universe`."""
    require_file(name, "topology")
    if file_suffix(name) in SCANNERS:
        raise _no_names(name)


def _no_names(name: str) -> DataError:
    return DataError(
        f"{name} is a trajectory without atom names, but the topology was expected here; give the topology first "
        "(PSF, PDB, GRO, TPR, PRMTOP, ...) and the trajectories after it"
    )


def _open(top: str, files: list[str], dt: float | None, shared: Any = None) -> mda.Universe:
    """A Universe of checked files; `shared` is a topology that was read already."""
    scans = [preflight(name) for name in files]
    if dt is None:
        files, scans = _in_order(files, scans)
    readable: list[Any] = []
    for name, scan in zip(files, scans, strict=True):
        readable.append(name if scan is None else _whole_frames(name, scan))
    options: dict[str, Any] = {} if dt is None else {"dt": dt}
    if any(file_suffix(name) in (".xtc", ".trr") for name in readable):
        # An index of frames that MDAnalysis left beside the file in an earlier session can be stale or damaged.
        options["refresh_offsets"] = True
    options["topology_format"] = _format(top)
    # A single file must not come as a list: one reader has more to offer than a chain of one.
    if len(readable) == 1:
        options["format"] = _format(readable[0])
    elif len(readable) > 1:
        readable = [name if (kind := _format(name)) is None else (name, kind) for name in readable]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="DCDReader currently makes independent timesteps")
            warnings.filterwarnings("ignore", message="Couldn't save offsets")
            warnings.filterwarnings("ignore", message="No coordinate reader found")
            universe = mda.Universe(top if shared is None else shared, *readable, **options)
    except EGNOError:
        raise
    except Exception as exc:  # MDAnalysis raises whatever its parsers raise
        _let_go(exc)
        raise _diagnose(top, files, scans, exc) from exc
    universe.filename = top
    try:
        n_frames = len(universe.trajectory)
    except AttributeError:
        raise DataError(f"{top} holds no coordinates; add a trajectory (DCD, XTC, TRR, PDB, ...)") from None
    if n_frames == 0:
        raise DataError(f"no frame in {', '.join(files) or top}; check that the simulation wrote any")
    if not any(hasattr(universe.atoms, name) for name in ("names", "types", "elements", "masses")):
        raise _no_names(top)
    if shared is None:
        _check_bonds(top, universe)
    _require_all_read(files or [top], universe.trajectory.n_atoms)
    if files:
        remember_scans(universe, scans)
        _warn_of_rests(universe)
    if dt is not None:
        _own_clock(universe, dt)
    return universe


def _require_all_read(names: Sequence[str], n_atoms: int) -> None:
    """Refuse a GRO file of several frames: MDAnalysis reads the first of them and says nothing."""
    for name in names:
        if _format(name) == "GRO":
            with openany(name) as stream:
                more = any(line.strip() for line in itertools.islice(stream, n_atoms + 3, None))
            if more:
                raise DataError(
                    f"{name} holds several frames, and MDAnalysis reads the first one of a GRO file alone; write them "
                    f"as XTC: gmx trjconv -f {shlex.quote(name)} -o {shlex.quote(Path(name).stem)}.xtc"
                )


def _check_bonds(top: str, universe: mda.Universe) -> None:
    """Refuse bonds, angles and dihedrals of atoms that are not there; MDAnalysis believes every number."""
    n_atoms = len(universe.atoms)
    for kind in ("bonds", "angles", "dihedrals", "impropers"):
        found = getattr(universe._topology, kind, None)
        numbers = np.fromiter(itertools.chain.from_iterable(found.values if found is not None else ()), np.int64)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < n_atoms:
            wrong = numbers[(numbers < 0) | (numbers >= n_atoms)][0]
            raise DataError(
                f"{top} is damaged: its {kind} name atom {wrong + 1} of {n_atoms}; write it again with the program "
                "that made it"
            )


def _warn_of_rests(universe: mda.Universe) -> None:
    """Say where MDAnalysis leaves out the last lines of a text file without a word, because they are no whole frame."""
    for reader in getattr(universe.trajectory, "readers", [universe.trajectory]):
        kind = reader.format if isinstance(reader.format, str) else reader.format[0]
        if kind == "LAMMPSDUMP":
            title, per_frame = 0, reader.n_atoms + 9
        elif kind == "TRJ":
            title, per_frame = 1, reader.lines_per_frame + bool(reader.periodic)
        else:
            continue
        name = str(reader.filename)
        if file_suffix(name) in (".gz", ".bz2"):
            continue
        with open(name, "rb") as stream:
            lines = sum(chunk.count(b"\n") for chunk in iter(functools.partial(stream.read, 1 << 24), b""))
        if rest := (lines - title) % per_frame:
            warnings.warn(
                f"{name} ends inside a frame: its {lines} lines hold {(lines - title) // per_frame} whole frames; they "
                f"are used; the last {rest} lines are left out",
                UserWarning,
                stacklevel=4,
            )


def _format(name: str) -> Any:
    """What MDAnalysis reads a file as; where it has to guess, it asks every package that it knows, OpenMM for one."""
    if file_suffix(name) == ".xtc":
        return _CheckedXTCReader
    try:
        return guess_format(name)
    except (TypeError, ValueError):  # it says so itself
        return None


def _in_order(files: list[str], scans: list[Scan | None]) -> tuple[list[str], list[Scan | None]]:
    """Parts of one run in the order of their times, where those follow one another and were given in another one."""
    spans = [(scan.times[0], scan.times[-1]) for scan in scans if scan is not None and scan.times is not None]
    if len(spans) < max(2, len(files)):
        return files, scans
    order = sorted(range(len(files)), key=lambda k: spans[k])
    apart = all(spans[a][1] <= spans[b][0] and spans[a][0] < spans[b][1] for a, b in itertools.pairwise(order))
    if order == list(range(len(files))) or not apart:
        return files, scans
    files, scans = [files[k] for k in order], [scans[k] for k in order]
    warnings.warn(
        f"the trajectory files are read in the order of the times of their frames: {', '.join(files)}",
        UserWarning,
        stacklevel=4,
    )
    return files, scans


def forget_box(universe: mda.Universe) -> None:
    """Have every frame come without a periodic box, whatever the files say."""
    universe.trajectory.add_transformations(set_dimensions([0, 0, 0, 90, 90, 90]))


def input_files(universe: mda.Universe) -> list[str]:
    """The files that a universe was made from, under the names that the user gave."""
    chained = getattr(universe.trajectory, "filenames", None)
    names = [universe.filename, *([universe.trajectory.filename] if chained is None else chained)]
    return [original(os.fspath(name)) for name in names if isinstance(name, (str, os.PathLike))]


class _CheckedXTCReader(XTCReader):
    """MDAnalysis' reader, which hands only frames to its decoder that cannot break it, and leaves no file behind."""

    def _load_offsets(self) -> None:
        self._read_offsets()

    def _read_offsets(self, store: bool = False) -> None:
        super()._read_offsets(store=False)

    def _read_next_timestep(self, ts: Any = None) -> Any:
        frame = self._frame + 1
        if frame < self.n_frames:
            stream = self.__dict__.get("_bytes")
            if stream is None:
                stream = self._bytes = open(self.filename, "rb")
            offset = int(self._xdr.offsets[frame])
            end = int(self._xdr.offsets[frame + 1]) if frame + 1 < self.n_frames else os.path.getsize(self.filename)
            stream.seek(offset)
            if not xtc_decodes(stream.read(end - offset)):
                raise damaged(self.filename, frame, offset, "has packed coordinates that do not decode")
        return super()._read_next_timestep(ts)

    def close(self) -> None:
        if (stream := self.__dict__.pop("_bytes", None)) is not None:
            stream.close()
        super().close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_bytes"}


class _OwnClock:
    """Mixed into a reader whose times are known better than its file does: frame k is at ``begin + k * dt`` ps.

    Readers differ in what they make of ``dt=``: some scale the file's own times by it, some ignore it.
    """

    own_clock: tuple[float, float]  # begin and dt

    def _read_frame(self, frame: int) -> Any:
        return self._set_time(super()._read_frame(frame), frame)

    def _read_next_timestep(self, ts: Any = None) -> Any:
        ts = super()._read_next_timestep() if ts is None else super()._read_next_timestep(ts)
        return self._set_time(ts, ts.frame)

    def _set_time(self, ts: Any, frame: int) -> Any:
        begin, dt = self.own_clock
        ts.data["time"] = begin + int(frame) * dt
        ts.data.pop("time_offset", None)
        return ts

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reader_with_clock, (type(self).__mro__[2], self.own_clock), self.__getstate__()


@functools.cache
def _with_clock(reader: type, own_clock: tuple[float, float]) -> type:
    return type(reader.__name__, (_OwnClock, reader), {"own_clock": own_clock, "__module__": reader.__module__})


def _reader_with_clock(reader: type, own_clock: tuple[float, float]) -> Any:
    """What unpickling begins with."""
    kind = _with_clock(reader, own_clock)
    return kind.__new__(kind)


def _own_clock(universe: mda.Universe, dt: float) -> None:
    """Let the frames of all files follow one another by `dt` ps, whatever the files say."""
    trajectory = universe.trajectory
    # A DCD file counts the steps before it began, which a chain of files does from the first of them on.
    begin = float(trajectory[0].time) if isinstance(trajectory, DCDReader) else 0.0
    for reader in getattr(trajectory, "readers", [trajectory]):
        reader.__class__ = _with_clock(type(reader), (begin, dt))
        begin += reader.n_frames * dt
    if hasattr(trajectory, "readers"):  # a copy of a chain opens its files anew
        readers = zip(trajectory.filenames, trajectory.readers, strict=True)
        trajectory._kwargs["filenames"] = [(str(name), type(reader)) for name, reader in readers]
    trajectory[0]


def _whole_frames(name: str, scan: Scan) -> str:
    """Path of a file with the whole frames of `name` only; warns where bytes are left over."""
    size = os.path.getsize(name)
    if size == scan.end:
        return name
    warnings.warn(
        f"{name} ends inside a frame: its {size} bytes hold {scan.n_frames} whole frames ({scan.end} bytes), which are "
        f"used; the last {size - scan.end} bytes are left out",
        UserWarning,
        stacklevel=3,
    )
    if file_suffix(name) == ".dcd":  # frames of one size: MDAnalysis counts the whole ones
        return name
    folder = tempfile.mkdtemp(prefix="egno_md_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = os.path.join(folder, os.path.basename(name))
    ORIGINALS[copy] = name
    try:
        with open(name, "rb") as source, open(copy, "wb") as target:
            left = scan.end
            while left and (chunk := source.read(min(left, 1 << 24))):
                target.write(chunk)
                left -= len(chunk)
            if file_suffix(name) in (".nc", ".ncdf"):  # the header counts the frames
                target.seek(4)
                target.write(scan.n_frames.to_bytes(4, "big"))
    except OSError as exc:
        raise DataError(
            f"{name} ends inside a frame, and a copy of its whole frames could not be written to {folder} "
            f"({exc.strerror}); cut it yourself: head -c {scan.end} {shlex.quote(name)} > whole{file_suffix(name)}"
        ) from exc
    return copy


def _diagnose(topology: str, files: Sequence[str], scans: Sequence[Scan | None], exc: Exception) -> DataError:
    """Name the reason for which MDAnalysis could not build the Universe."""
    said = _said(exc)
    if "codec can't decode" in said:
        for name in (topology, *files):
            try:
                Path(name).read_text("utf-8")
            except UnicodeDecodeError as wrong:
                line = 1 + Path(name).read_bytes()[: wrong.start].count(b"\n")
                return DataError(
                    f"line {line} of {name} has a character that is no UTF-8 (byte {wrong.object[wrong.start]:#x}), as "
                    f"Latin-1 remarks have; convert it: "
                    f"iconv -f latin1 -t utf-8 {shlex.quote(name)} > utf8{Path(name).suffix}"
                )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            n_atoms = len(mda.Universe(topology, to_guess=()).atoms)
    except Exception as alone:
        _let_go(alone)
        return DataError(f"MDAnalysis cannot read the topology {topology} ({_said(alone)}); {_cure(alone, [topology])}")
    cure = "give the topology that the trajectory was written with, or write both for the same atoms"
    for name, scan in zip(files, scans, strict=True):
        if scan is not None and scan.n_atoms != n_atoms:
            return DataError(
                f"topology and trajectory do not match: {topology} has {n_atoms} atoms, {name} has {scan.n_atoms}; "
                f"{cure}"
            )
    if "number of atoms" in said or "n_atoms" in said or "cannot reshape" in said:  # the last by Amber's text format
        return DataError(f"topology {topology} with {n_atoms} atoms does not match the trajectory ({said}); {cure}")
    return DataError(f"MDAnalysis cannot read {', '.join(files) or topology} ({said}); {_cure(exc, files, topology)}")


def _let_go(exc: BaseException) -> None:
    """Take the readers away that an error has left half made.

    MDAnalysis' readers fail once more when they are taken away, and Python prints that as an ignored exception after
    the message that says what is wrong.
    """
    before = sys.unraisablehook
    sys.unraisablehook = lambda found: None if found.object is ReaderBase.__del__ else before(found)
    try:
        seen: BaseException | None = exc
        while seen is not None:
            traceback.clear_frames(seen.__traceback__)
            seen = seen.__cause__ or seen.__context__
    finally:
        sys.unraisablehook = before


def _cure(exc: Exception, names: Sequence[str], topology: str | None = None) -> str:
    """What helps where MDAnalysis cannot read one of some files, topologies or (with a topology) trajectories."""
    said = str(exc)
    if "install" in said:  # TNG, H5MD, GSD, mmCIF: formats whose packages do not come with MDAnalysis
        other = "the structure as PDB" if topology is None else "the run as XTC or DCD"
        return f"pip install that package, or write {other}"
    cure, unknown = "check the file, and that its name ends in the suffix of its format", _UNKNOWN.search(said)
    if not unknown:
        return cure
    suffix = unknown[1] or unknown[2]
    near = difflib.get_close_matches(suffix, re.findall(r"'(\w+)'", said[unknown.end() :]), 3)
    for name in names:
        for kind in near:
            renamed = re.sub(rf"\.{re.escape(suffix)}(?=(\.\w+)?$)", f".{kind.lower()}", name, flags=re.IGNORECASE)
            if renamed != name and _reads(name, kind, topology):
                return f"it reads it as {kind}, rename it: {shlex.join(['mv', name, renamed])}"
    return cure + (f", such as {' or '.join(f'.{kind.lower()}' for kind in near)}" if near else "")


def _reads(name: str, kind: str, topology: str | None) -> bool:
    """Whether a topology, or the trajectory of a topology, can be read as of another format than its name says."""
    if f".{kind.lower()}" in SCANNERS or kind == "LAMMPS":  # these decoders trust a file, LAMMPS is a DCD
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if topology is None:
                return len(mda.Universe(name, topology_format=kind, to_guess=()).atoms) > 0
            return mda.Universe(topology, name, format=kind, to_guess=()).trajectory.n_frames > 0
    except Exception as exc:
        _let_go(exc)
        return False


#: Where MDAnalysis names a format that it does not know, before those that it does.
_UNKNOWN = re.compile(r"'([^']+)' isn't a valid topology format|coordinate trajectory format '([^']+)'")


def _said(exc: Exception) -> str:
    """What MDAnalysis said, on one line; without the list of all its formats."""
    text = " ".join(f"{type(exc).__name__}: {exc}".split())
    if unknown := _UNKNOWN.search(text):
        return f"it knows no format .{(unknown[1] or unknown[2]).lower()}"
    return text if len(text) <= 300 else text[:300] + " ..."


class _TimedMemoryReader(MemoryReader):
    """Frames in memory, each with its own time (MDAnalysis' reader knows evenly spaced times from 0 only)."""

    def __init__(self, coordinate_array: NDArray[np.float32], times: NDArray[np.float64], **kwargs: Any) -> None:
        self._times = times
        super().__init__(coordinate_array, **kwargs)
        self._kwargs: dict[str, Any] = {**self._kwargs, "times": times}  # what `copy` passes on

    def _read_next_timestep(self, ts: Any = None) -> Any:
        ts = super()._read_next_timestep(ts)
        ts.time = float(self._times[ts.frame])
        return ts


def in_memory_universe(
    atoms: mda.AtomGroup, positions: ArrayLike, times: ArrayLike, boxes: ArrayLike | None = None
) -> mda.Universe:
    """Universe in memory of the given atoms, with their topology, and the given frames.

    Parameters
    ----------
    atoms
        Group of N atoms whose topology (names, residues, bonds among them, ...) is copied.
    positions
        ``(F, N, 3)`` in Angstrom, F at least 1. Kept without a copy where it is float32 already.
    times
        ``(F,)`` in ps; need not be evenly spaced. ``trajectory.dt`` is the first difference (0.0 for one frame).
    boxes
        ``(F, 6)`` or ``(6,)`` in Angstrom and degrees; None for no box.

    Raises
    ------
    UsageError
        Shapes that do not fit, or no frame.
    """
    xyz, clock, cells = checked_frames(len(atoms), positions, times, boxes)
    universe = mda.Merge(atoms)
    attach(universe, xyz, clock, cells)
    return universe


def stored_universe(atoms: mda.AtomGroup, path: str | os.PathLike) -> mda.Universe:
    """Universe of the given atoms, with their topology, on the frames of a file of these atoms alone."""
    universe = mda.Merge(atoms)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="DCDReader currently makes independent timesteps")
        universe.load_new(os.fspath(path), format=_format(os.fspath(path)))
    return universe


def attach(
    universe: mda.Universe, xyz: NDArray[np.float32], times: NDArray[np.float64], boxes: NDArray[np.float32] | None
) -> None:
    dt = float(times[1] - times[0]) if len(times) > 1 else 0.0
    universe.trajectory = _TimedMemoryReader(xyz, times, dimensions=boxes, dt=dt)


def checked_frames(
    n_atoms: int, positions: ArrayLike, times: ArrayLike, boxes: ArrayLike | None
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32] | None]:
    """The three arrays in the shapes (F, N, 3), (F,) and (F, 6), checked against each other."""
    xyz = np.asarray(positions, dtype=np.float32)
    clock = np.asarray(times, dtype=np.float64)
    if xyz.ndim != 3 or xyz.shape[1:] != (n_atoms, 3) or len(xyz) == 0:
        raise UsageError(f"positions have the shape {xyz.shape}; expected (frames, {n_atoms}, 3) with a frame at least")
    if clock.shape != xyz.shape[:1]:
        raise UsageError(f"times have the shape {clock.shape}; expected ({len(xyz)},), one for each frame")
    if boxes is None:
        return xyz, clock, None
    cells = np.asarray(boxes, dtype=np.float32)
    if cells.shape not in ((6,), (len(xyz), 6)):
        raise UsageError(f"boxes have the shape {cells.shape}; expected ({len(xyz)}, 6) or (6,)")
    return xyz, clock, np.ascontiguousarray(np.broadcast_to(cells, (len(xyz), 6)))


def open_sources(source: Any, trajectories: Sequence[str | os.PathLike], dt: float | None = None) -> list[AtomGroup]:
    """All atoms of each run: one for a Universe, an AtomGroup or an mdtraj.Trajectory, one for each file."""
    if strange := [file for file in trajectories if not isinstance(file, (str, os.PathLike))]:
        raise UsageError(
            f"trajectory files are given one by one, each a run of its own; found a {type(strange[0]).__name__} among "
            "them: put a * before it (*files), or give the parts of one run as a Universe (egno_md.open_universe)"
        )
    if not isinstance(source, (str, os.PathLike)):
        from .mdtraj import source_of

        if trajectories:
            raise UsageError(
                f"trajectory files belong to a topology file, and a Universe has its own: leave {trajectories[0]!r} "
                "out; atoms are chosen by select="
            )
        among = "a topology file, an MDAnalysis Universe or AtomGroup, or an mdtraj Trajectory"
        return [source_of(source, among).atoms]
    return [universe.atoms for universe in open_runs(source, trajectories, dt=dt)]
