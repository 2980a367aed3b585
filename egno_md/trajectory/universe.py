"""Universes: opened from checked files, or in memory."""

from __future__ import annotations

import atexit
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import MDAnalysis as mda
import numpy as np
from MDAnalysis import AtomGroup, Universe
from MDAnalysis.coordinates.memory import MemoryReader
from MDAnalysis.coordinates.XTC import XTCReader

from ..errors import DataError, UsageError
from .preflight import SCANNERS, Scan, StrPath, damaged, file_suffix, preflight, require_file, xtc_decodes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


#: Temporary copies of the whole frames of a truncated file, and the file.
_ORIGINALS: dict[str, str] = {}


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
        `dt` is not a positive number.
    """
    if dt is not None and not (math.isfinite(dt) and dt > 0):
        raise UsageError(f"dt={dt!r}: the frame spacing must be a positive number of ps")
    if isinstance(trajectories, (str, os.PathLike)):
        trajectories = [trajectories]
    top = os.fspath(topology)
    require_file(top, "topology")
    if file_suffix(top) in SCANNERS:
        raise DataError(
            f"{top} is a trajectory without atom names, but the topology was expected here; give the topology first "
            "(PSF, PDB, GRO, TPR, PRMTOP, ...) and the trajectories after it"
        )
    files = [os.fspath(name) for name in trajectories]
    scans = [preflight(name) for name in files]
    readable: list[Any] = []
    for name, scan in zip(files, scans, strict=True):
        readable.append(name if scan is None else _whole_frames(name, scan))
    options: dict[str, Any] = {} if dt is None else {"dt": dt}
    if any(file_suffix(name) in (".xtc", ".trr") for name in readable):
        # An index of frames that MDAnalysis left beside the file in an earlier session can be stale or damaged.
        options["refresh_offsets"] = True
    # A single file must not come as a list: one reader has more to offer than a chain of one.
    if len(readable) == 1 and file_suffix(readable[0]) == ".xtc":
        options["format"] = _CheckedXTCReader
    elif len(readable) > 1:
        readable = [(name, _CheckedXTCReader) if file_suffix(name) == ".xtc" else name for name in readable]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="DCDReader currently makes independent timesteps")
            warnings.filterwarnings("ignore", message="Couldn't save offsets")
            warnings.filterwarnings("ignore", message="No coordinate reader found")
            universe = mda.Universe(top, *readable, **options)
    except Exception as exc:  # MDAnalysis raises whatever its parsers raise
        raise _diagnose(top, files, scans, exc) from exc
    try:
        n_frames = len(universe.trajectory)
    except AttributeError:
        raise DataError(f"{top} holds no coordinates; add a trajectory (DCD, XTC, TRR, PDB, ...)") from None
    if n_frames == 0:
        raise DataError(f"no frame in {', '.join(files) or top}; check that the simulation wrote any")
    if dt is not None and len(files) > 1:
        _one_clock(universe, dt)
    return universe


def input_files(universe: mda.Universe) -> list[str]:
    """The files that a universe was made from, under the names that the user gave."""
    names = [universe.filename, *(getattr(universe.trajectory, "filenames", None) or [universe.trajectory.filename])]
    return [_ORIGINALS.get(os.fspath(name), os.fspath(name)) for name in names if isinstance(name, (str, os.PathLike))]


class _CheckedXTCReader(XTCReader):
    """MDAnalysis' reader, which hands only frames to its decoder that cannot break it."""

    def _read_next_timestep(self, ts: Any = None) -> Any:
        frame = self._frame + 1
        if frame < self.n_frames:
            offset = int(self._xdr.offsets[frame])
            end = int(self._xdr.offsets[frame + 1]) if frame + 1 < self.n_frames else os.path.getsize(self.filename)
            with open(self.filename, "rb") as stream:
                stream.seek(offset)
                if not xtc_decodes(stream.read(end - offset)):
                    raise damaged(self.filename, frame, offset, "has packed coordinates that do not decode")
        return super()._read_next_timestep(ts)


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
    _ORIGINALS[copy] = name
    try:
        with open(name, "rb") as source, open(copy, "wb") as target:
            left = scan.end
            while left and (chunk := source.read(min(left, 1 << 24))):
                target.write(chunk)
                left -= len(chunk)
    except OSError as exc:
        raise DataError(
            f"{name} ends inside a frame, and a copy of its whole frames could not be written to {folder} "
            f"({exc.strerror}); cut it yourself: head -c {scan.end} {name} > whole{file_suffix(name)}"
        ) from exc
    return copy


def _diagnose(topology: str, files: Sequence[str], scans: Sequence[Scan | None], exc: Exception) -> DataError:
    """Name the reason for which MDAnalysis could not build the Universe."""
    said = _said(exc)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            n_atoms = len(mda.Universe(topology, to_guess=()).atoms)
    except Exception as alone:
        return DataError(
            f"MDAnalysis cannot read the topology {topology} ({_said(alone)}); "
            "check the file, and that its name ends in the suffix of its format"
        )
    cure = "give the topology that the trajectory was written with, or write both for the same atoms"
    for name, scan in zip(files, scans, strict=True):
        if scan is not None and scan.n_atoms != n_atoms:
            return DataError(
                f"topology and trajectory do not match: {topology} has {n_atoms} atoms, {name} has {scan.n_atoms}; "
                f"{cure}"
            )
    if "number of atoms" in said or "n_atoms" in said:
        return DataError(f"topology {topology} with {n_atoms} atoms does not match the trajectory ({said}); {cure}")
    return DataError(
        f"MDAnalysis cannot read {', '.join(files) or topology} ({said}); check the file, and that its name ends in "
        "the suffix of its format"
    )


def _said(exc: Exception) -> str:
    """What MDAnalysis said, on one line; it can list all its formats."""
    text = " ".join(f"{type(exc).__name__}: {exc}".split())
    return text if len(text) <= 300 else text[:300] + " ..."


def _one_clock(universe: mda.Universe, dt: float) -> None:
    """Let the files of a chain follow one another in time: each reader counts from its own first frame."""
    trajectory = universe.trajectory
    begin = trajectory[0].time
    first = 0
    for reader in trajectory.readers:
        offset = begin + first * dt - trajectory[first].time
        if abs(offset) > 1e-6 * dt:
            reader.ts.data["time_offset"] = reader.ts.data.get("time_offset", 0.0) + offset
        first += reader.n_frames
    trajectory[0]


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
    """All atoms of each run: one for a Universe or an AtomGroup, one for each file."""
    if isinstance(source, (Universe, AtomGroup)):
        if trajectories:
            raise UsageError("trajectory files belong to a topology file; a Universe has its own")
        return [source.atoms]
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"expected a Universe, an AtomGroup or a topology file, found {type(source).__name__}")
    files: list[Any] = [(name,) for name in trajectories] or [()]
    return [open_universe(source, some, dt=dt).atoms for some in files]
