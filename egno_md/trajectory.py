"""Trajectories in and out: files checked before they are read, written whole or not at all, and exchanged with mdtraj.

Lengths are in Angstrom, times in ps, boxes are ``(lx, ly, lz, alpha, beta, gamma)`` in Angstrom and degrees, as in
MDAnalysis. mdtraj (nm, ps) is imported inside the two functions that need it.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import mmap
import os
import secrets
import shutil
import struct
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import MDAnalysis as mda
import numpy as np
from MDAnalysis.coordinates.memory import MemoryReader
from MDAnalysis.coordinates.XTC import XTCReader
from MDAnalysis.exceptions import NoDataError
from MDAnalysis.lib.formats.libdcd import DCDFile
from MDAnalysis.lib.formats.libmdaxdr import XTCFile
from MDAnalysis.lib.mdamath import triclinic_vectors
from MDAnalysis.units import convert

from .errors import DataError, OutputError, UsageError

if TYPE_CHECKING:
    import mdtraj
    from numpy.typing import ArrayLike, NDArray

    StrPath = str | os.PathLike[str]

__all__ = [
    "FrameWriter",
    "frame_spacing",
    "from_mdtraj",
    "in_memory_universe",
    "input_files",
    "open_universe",
    "require_targets",
    "to_mdtraj",
    "write_forecast",
]

#: XTC stores whole multiples of 1 / XTC_PRECISION nm, as GROMACS does by default.
XTC_PRECISION = 1000.0

_XTC_HEAD = struct.Struct(">iiif9fi")  # magic, atoms, step, time, box, atoms again
_XTC_PACKING = struct.Struct(">f3i3iii")  # precision, smallest and largest coordinate, small index, bytes that follow
_XTC_SMALL_INDEX = range(9, 73)  # the part of the decoder's table that holds a number other than zero
_TRR_HEAD = struct.Struct(">iii12s13i")  # magic, string length twice, version, ten block sizes, atoms, step, nre
_INT32_MAX = 2**31 - 1
#: Temporary copies of the whole frames of a truncated file, and the file.
_ORIGINALS: dict[str, str] = {}
_FLOAT32_EPS = float(np.finfo(np.float32).eps)


# --------------------------------------------------------------------------------------------------------------- input


class _Scan(NamedTuple):
    """What a trajectory file holds by its own headers."""

    n_atoms: int
    n_frames: int  # whole frames
    end: int  # byte after the last whole frame


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
    _require_file(top, "topology")
    if _suffix(top) in _SCANNERS:
        raise DataError(
            f"{top} is a trajectory without atom names, but the topology was expected here; give the topology first "
            "(PSF, PDB, GRO, TPR, PRMTOP, ...) and the trajectories after it"
        )
    files = [os.fspath(name) for name in trajectories]
    scans = [_preflight(name) for name in files]
    readable: list[Any] = []
    for name, scan in zip(files, scans, strict=True):
        readable.append(name if scan is None else _whole_frames(name, scan))
    options: dict[str, Any] = {} if dt is None else {"dt": dt}
    if any(_suffix(name) in (".xtc", ".trr") for name in readable):
        # An index of frames that MDAnalysis left beside the file in an earlier session can be stale or damaged.
        options["refresh_offsets"] = True
    # A single file must not come as a list: one reader has more to offer than a chain of one.
    if len(readable) == 1 and _suffix(readable[0]) == ".xtc":
        options["format"] = _CheckedXTCReader
    elif len(readable) > 1:
        readable = [(name, _CheckedXTCReader) if _suffix(name) == ".xtc" else name for name in readable]
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


def frame_spacing(universe: mda.Universe) -> float:
    """Spacing of the frames in ps, measured on the times of a few frames of each file.

    A trajectory with one frame has no spacing to measure: what its header says is returned, or 0.0 where it says
    nothing. Where one file of several does not go on where the one before it ended, a warning names the two frames.
    The frame that the Universe stands on is kept.

    Raises
    ------
    DataError
        The format holds no times, or the times of a file are not evenly spaced; ``dt=`` of `open_universe` is the
        cure for headers that lie.
    """
    trajectory = universe.trajectory
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stated = float(trajectory.dt)
    unknown = any("no dt information" in str(w.message) for w in caught)
    if len(trajectory) == 1:
        return 0.0 if unknown else stated
    cure = "give the true spacing (dt= in Python, --dt on the command line)"
    if unknown:
        raise DataError(f"{_name(trajectory)} holds {len(trajectory)} frames but no times; {cure}")

    lengths = [reader.n_frames for reader in getattr(trajectory, "readers", [trajectory])]
    here = trajectory.frame
    spacings: list[tuple[int, float]] = []
    jumps: list[tuple[int, float]] = []
    last_time = None
    first = 0
    for n in lengths:
        sampled = sorted({0, 1, n // 2, n - 2, n - 1} & set(range(n)))
        times = np.array([trajectory[first + i].time for i in sampled], dtype=np.float64)
        if last_time is not None:
            jumps.append((first, times[0] - last_time))
        last_time = times[-1]
        if n > 1:
            spacing = (times[-1] - times[0]) / (n - 1)
            error = np.abs(times - times[0] - np.array(sampled) * spacing).max()
            if not spacing > 0 or error > _time_tolerance(spacing, times):
                trajectory[here]
                listed = ", ".join(f"{first + i}: {t:g} ps" for i, t in zip(sampled, times, strict=True))
                raise DataError(
                    f"the frames of {_name(trajectory)} are not evenly spaced in time (frame {listed}); "
                    f"keep an evenly spaced part of it, or, if only the stored times are wrong, {cure}"
                )
            spacings.append((n, spacing))
        first += n
    trajectory[here]

    # The longest file averages the rounding of single precision times (XTC) best.
    spacing = max(spacings)[1] if spacings else stated
    tolerance = _time_tolerance(spacing, np.array([last_time]))
    if any(abs(other - spacing) > tolerance for _, other in spacings):
        raise DataError(
            f"the files have different frame spacings ({', '.join(f'{s:g}' for _, s in spacings)} ps); "
            f"open them one by one, or, if only the stored times are wrong, {cure}"
        )
    for frame, jump in jumps:
        if abs(jump - spacing) > tolerance:
            warnings.warn(
                f"between frames {frame - 1} and {frame} the file changes and the time goes on by {jump:g} ps, not by "
                f"the frame spacing of {spacing:g} ps; if the simulation did go on there, {cure}, otherwise do not use "
                "a history across that border",
                UserWarning,
                stacklevel=2,
            )
    return float(spacing)


def _time_tolerance(spacing: float, times: NDArray[np.float64]) -> float:
    return 1e-3 * abs(spacing) + 4 * _FLOAT32_EPS * float(np.abs(times).max())


def _name(trajectory: Any) -> str:
    filename = getattr(trajectory, "filename", None)
    return "the trajectory" if filename is None else str(filename)


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _require_file(name: str, kind: str) -> None:
    path = Path(name)
    try:
        if path.is_dir():
            raise DataError(f"{name} is a folder, but a {kind} file was expected; give the path of the file itself")
        if not path.exists():
            raise DataError(f"{kind} file {name} does not exist; check the path (it is looked up from {os.getcwd()})")
        with path.open("rb") as stream:
            if not stream.read(1):
                raise DataError(f"{kind} file {name} is empty (0 bytes); copy it again, or check that it was written")
    except OSError as exc:
        raise DataError(f"{kind} file {name} cannot be read ({exc.strerror}); check its permissions") from exc


def _preflight(name: str) -> _Scan | None:
    """Walk the headers of a DCD, XTC or TRR file; None for the other formats."""
    _require_file(name, "trajectory")
    scanner = _SCANNERS.get(_suffix(name))
    if scanner is None:
        return None
    with _mapped(name) as data:
        scan = scanner(name, data)
        size = len(data)
    if scan.n_frames == 0:
        raise DataError(
            f"{name} holds no whole frame: the headers describe frames of {scan.n_atoms} atoms, but the file ends "
            f"after {size} bytes; copy it again, or check that the simulation finished"
        )
    return scan


@contextlib.contextmanager
def _mapped(name: StrPath) -> Iterator[mmap.mmap]:
    with open(name, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _damaged(name: str, frame: int, offset: int, what: str) -> DataError:
    keep = (
        f"keep the {frame} frames before it: head -c {offset} {name} > repaired{_suffix(name)}"
        if frame
        else "check that it is what its name says"
    )
    return DataError(
        f"{name} is damaged: frame {frame} at byte {offset} {what}; copy the file again from its source, or {keep}"
    )


def _scan_xtc(name: str, data: mmap.mmap) -> _Scan:
    """Walk the frames of an XTC file (XDR: big-endian, padded to four bytes)."""
    size = len(data)
    frame = offset = n_atoms = 0
    while offset + _XTC_HEAD.size <= size:
        magic, atoms, _step, time, *box, atoms_again = _XTC_HEAD.unpack_from(data, offset)
        if magic != 1995:
            raise _damaged(name, frame, offset, f"starts with {magic}, not with the 1995 of an XTC frame")
        if atoms <= 0 or atoms_again != atoms or (frame and atoms != n_atoms):
            raise _damaged(
                name, frame, offset, f"says {atoms} and {atoms_again} atoms" + (f", not {n_atoms}" if frame else "")
            )
        if not all(map(math.isfinite, (time, *box))):
            raise _damaged(name, frame, offset, "has a time or a box that is no number")
        n_atoms = atoms
        if n_atoms <= 9:
            end = offset + _XTC_HEAD.size + 12 * n_atoms
        else:
            body = offset + _XTC_HEAD.size
            if body + _XTC_PACKING.size > size:
                break
            precision, x0, y0, z0, x1, y1, z1, small, n_bytes = _XTC_PACKING.unpack_from(data, body)
            if not (math.isfinite(precision) and precision > 0):
                raise _damaged(name, frame, offset, f"has a precision of {precision}")
            if not all(0 <= high - low < _INT32_MAX for low, high in ((x0, x1), (y0, y1), (z0, z1))):
                raise _damaged(name, frame, offset, "has a smallest and a largest coordinate that exclude each other")
            if small not in _XTC_SMALL_INDEX:
                raise _damaged(name, frame, offset, f"has a packing index of {small}, outside 9 to 72")
            # The decoder's buffer holds 1.2 integers per coordinate, three of them its own.
            if not 0 < n_bytes <= 4 * (int(3 * n_atoms * 1.2) - 3):
                raise _damaged(name, frame, offset, f"has {n_bytes} bytes of coordinates for {n_atoms} atoms")
            end = body + _XTC_PACKING.size + (n_bytes + 3) // 4 * 4
        if end > size:
            break
        if frame < 2 and not _xtc_decodes(data[offset:end]):  # those that MDAnalysis reads to open the file
            raise _damaged(name, frame, offset, "has packed coordinates that do not decode")
        frame += 1
        offset = end
    if frame == 0 and size >= 4 and data[:4] != b"\x00\x00\x07\xcb":
        raise _damaged(name, 0, 0, "does not start as an XTC file does")
    return _Scan(n_atoms, frame, offset)


def _xtc_decodes(frame: bytes) -> bool:
    """Whether the packed coordinates of one whole XTC frame can be decoded without leaving the frame.

    The decoder of xdrfile checks nothing. Its input is a stream of bits: an atom of `full` bits, a flag, after a set
    flag five bits for the number of atoms in the run that follows (kept until the next flag) and the change of their
    size, then the run, `small` bits an atom. Positions in the stream depend on flags only, so coordinates need not be
    decoded to follow it.
    """
    n_atoms = _XTC_HEAD.unpack_from(frame)[1]
    if n_atoms <= 9:
        return True
    _, x0, y0, z0, x1, y1, z1, small, n_bytes = _XTC_PACKING.unpack_from(frame, _XTC_HEAD.size)
    sizes = (x1 - x0 + 1, y1 - y0 + 1, z1 - z0 + 1)
    full = sum(n.bit_length() for n in sizes) if max(sizes) > 0xFFFFFF else math.prod(sizes).bit_length()
    body = _XTC_HEAD.size + _XTC_PACKING.size
    bits = np.unpackbits(np.frombuffer(frame, dtype=np.uint8, count=n_bytes, offset=body)).tobytes()
    at = done = run = 0
    try:
        while done < n_atoms:
            at += full
            if bits[at]:
                code = bits[at + 1] << 4 | bits[at + 2] << 3 | bits[at + 3] << 2 | bits[at + 4] << 1 | bits[at + 5]
                run, change = divmod(code, 3)
                at += 6 + run * small
                small += change - 1
                if small not in _XTC_SMALL_INDEX:
                    return False
            else:
                at += 1 + run * small
            done += 1 + run
    except IndexError:
        return False
    return done == n_atoms and 0 <= len(bits) - at < 32


class _CheckedXTCReader(XTCReader):
    """MDAnalysis' reader, which hands only frames to its decoder that cannot break it."""

    def _read_next_timestep(self, ts: Any = None) -> Any:
        frame = self._frame + 1
        if frame < self.n_frames:
            offset = int(self._xdr.offsets[frame])
            end = int(self._xdr.offsets[frame + 1]) if frame + 1 < self.n_frames else os.path.getsize(self.filename)
            with open(self.filename, "rb") as stream:
                stream.seek(offset)
                if not _xtc_decodes(stream.read(end - offset)):
                    raise _damaged(self.filename, frame, offset, "has packed coordinates that do not decode")
        return super()._read_next_timestep(ts)


def _scan_trr(name: str, data: mmap.mmap) -> _Scan:
    """Walk the frames of a TRR file."""
    size = len(data)
    frame = offset = n_atoms = 0
    while offset + _TRR_HEAD.size <= size:
        magic, length, length_again, version, *fields = _TRR_HEAD.unpack_from(data, offset)
        if (magic, length, length_again, version) != (1993, 13, 12, b"GMX_trn_file"):
            raise _damaged(name, frame, offset, "does not start as a TRR frame does")
        ir, energy, box, virial, pressure, top, sym, x, v, f, atoms, _step, _nre = fields
        if atoms <= 0 or (frame and atoms != n_atoms):
            raise _damaged(name, frame, offset, f"says {atoms} atoms" + (f", not {n_atoms}" if frame else ""))
        real = box // 9 or max(x, v, f) // (3 * atoms)
        if (
            real not in (4, 8)
            or any((ir, energy, top, sym))
            or any(block not in (0, 9 * real) for block in (box, virial, pressure))
            or any(block not in (0, 3 * atoms * real) for block in (x, v, f))
        ):
            raise _damaged(name, frame, offset, f"has block sizes that do not fit {atoms} atoms")
        n_atoms = atoms
        end = offset + _TRR_HEAD.size + 2 * real + box + virial + pressure + x + v + f
        if end > size:
            break
        frame += 1
        offset = end
    if frame == 0 and size >= 4 and data[:4] != b"\x00\x00\x07\xc9":
        raise _damaged(name, 0, 0, "does not start as a TRR file does")
    return _Scan(n_atoms, frame, offset)


class _DCDLayout(NamedTuple):
    n_atoms: int
    header: int  # bytes before the first frame
    first: int  # bytes of the first frame, which holds the fixed atoms too
    rest: int  # bytes of each other frame
    marker: int  # record length that starts each frame after the first
    first_marker: int
    order: str
    nsavc: int


def _dcd_layout(name: str, data: mmap.mmap) -> _DCDLayout:
    """Header of a DCD file: a Fortran file of records, each between two copies of its length."""

    def integer(offset: int) -> int:
        if offset + 4 > len(data):
            raise DataError(f"{name} ends inside its DCD header, after {len(data)} bytes; copy it again")
        return int(struct.unpack_from(f"{order}i", data, offset)[0])

    order = "<"
    if integer(0) != 84:
        order = ">"
    if integer(0) != 84 or data[4:8] != b"CORD" or integer(88) != 84:
        raise _damaged(name, 0, 0, "does not start as a DCD file (of 32-bit records) does")
    nsavc, n_fixed = integer(16), integer(40)
    charmm = integer(84) != 0
    cell = charmm and integer(48) != 0
    dimensions = 4 if charmm and integer(52) == 1 else 3
    n_titles = integer(96)
    atoms_at = 104 + 80 * n_titles
    # Some writers give the title record a length other than that of its lines; the lines decide, as in MDAnalysis.
    if n_titles < 0 or (integer(92) - 4) % 80 or integer(atoms_at) != 4 or integer(atoms_at + 8) != 4:
        raise _damaged(name, 0, 92, "has a title that does not fit its length")
    n_atoms = integer(atoms_at + 4)
    if n_atoms <= 0 or not 0 <= n_fixed < n_atoms:
        raise _damaged(name, 0, atoms_at + 4, f"says {n_atoms} atoms of which {n_fixed} are fixed")
    header = atoms_at + 12 + (4 * (n_atoms - n_fixed) + 8 if n_fixed else 0)
    extra = 56 if cell else 0
    return _DCDLayout(
        n_atoms=n_atoms,
        header=header,
        first=extra + 4 * dimensions * (n_atoms + 2),
        rest=extra + 4 * dimensions * (n_atoms - n_fixed + 2),
        marker=48 if cell else 4 * (n_atoms - n_fixed),
        first_marker=48 if cell else 4 * n_atoms,
        order=order,
        nsavc=nsavc,
    )


def _scan_dcd(name: str, data: mmap.mmap) -> _Scan:
    layout = _dcd_layout(name, data)
    if layout.nsavc == 0:
        raise DataError(
            f"the header of {name} says 0 steps between frames, from which MDAnalysis cannot tell the times; "
            "write the file anew (mdconvert of mdtraj, or catdcd)"
        )
    second = layout.header + layout.first
    if len(data) < second:
        return _Scan(layout.n_atoms, 0, layout.header)
    n_more = (len(data) - second) // layout.rest
    first_marker = int(struct.unpack_from(f"{layout.order}i", data, layout.header)[0])
    if first_marker != layout.first_marker:
        raise _damaged(name, 0, layout.header, f"starts with {first_marker}, not with {layout.first_marker}")
    if n_more:
        markers = np.ndarray((n_more,), f"{layout.order}i4", data, second, (layout.rest,)) != layout.marker
        if markers.any():
            wrong = int(markers.argmax())
            raise _damaged(
                name, wrong + 1, second + wrong * layout.rest, f"does not start with its length, {layout.marker}"
            )
    return _Scan(layout.n_atoms, 1 + n_more, second + n_more * layout.rest)


_SCANNERS = {".dcd": _scan_dcd, ".xtc": _scan_xtc, ".trr": _scan_trr}


def _whole_frames(name: str, scan: _Scan) -> str:
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
    if _suffix(name) == ".dcd":  # frames of one size: MDAnalysis counts the whole ones
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
            f"({exc.strerror}); cut it yourself: head -c {scan.end} {name} > whole{_suffix(name)}"
        ) from exc
    return copy


def _diagnose(topology: str, files: Sequence[str], scans: Sequence[_Scan | None], exc: Exception) -> DataError:
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


# -------------------------------------------------------------------------------------------------------------- memory


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
    xyz, clock, cells = _frames(len(atoms), positions, times, boxes)
    universe = mda.Merge(atoms)
    _attach(universe, xyz, clock, cells)
    return universe


def _attach(
    universe: mda.Universe, xyz: NDArray[np.float32], times: NDArray[np.float64], boxes: NDArray[np.float32] | None
) -> None:
    dt = float(times[1] - times[0]) if len(times) > 1 else 0.0
    universe.trajectory = _TimedMemoryReader(xyz, times, dimensions=boxes, dt=dt)


def _frames(
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


# -------------------------------------------------------------------------------------------------------------- output


class FrameWriter:
    """Write frames to a DCD or XTC file that appears under its name only when it is whole.

    Frames go to a temporary file in the same folder, which takes the name of the target in `close`. Leaving the
    ``with`` block by an exception, `abort`, or dropping the writer removes the temporary file and leaves what was at
    the target alone. The size of the file is compared with what was written: MDAnalysis' DCD writer does not notice a
    full disk. Closing a writer that never wrote a frame leaves no file.

    Parameters
    ----------
    path
        Target; the suffix ``.dcd`` or ``.xtc`` decides the format.
    n_atoms
        Number of atoms in each frame.
    dt
        Spacing of the frames in ps.
    start_time
        Time of the first frame in ps.
    force
        Replace a file that exists.

    Raises
    ------
    UsageError
        Another suffix, or numbers that cannot be right.
    OutputError
        The target exists and `force` is not set, or its folder cannot be written to.

    Notes
    -----
    XTC stores the time of each frame as a single precision number, and positions rounded to 0.01 Angstrom.

    DCD stores one spacing for the whole file, and as its start a whole number of integration steps. MDAnalysis reads
    frame i as ``(i + istart / nsavc) * nsavc * delta``. The writer takes for ``istart / nsavc`` the best fraction for
    ``start_time / dt`` with a denominator up to 1000: exact for times given to a thousandth of the spacing, otherwise
    wrong by less than a thousandth of it. ``delta`` is single precision: times are right to 1 part in 10 million.
    mdtraj does not read the times of a DCD file at all, it numbers the frames.
    """

    def __init__(self, path: StrPath, n_atoms: int, *, dt: float, start_time: float = 0.0, force: bool = False) -> None:
        self.path = Path(path)
        self.n_atoms = n_atoms
        self.dt = float(dt)
        self.start_time = float(start_time)
        self.n_frames = 0
        self._force = force
        self._is_dcd = _output_suffix(self.path) == ".dcd"
        if n_atoms < 1:
            raise UsageError(f"n_atoms={n_atoms}: a frame needs an atom at least")
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise UsageError(f"dt={dt!r}: the frame spacing must be a positive number of ps")
        if not math.isfinite(self.start_time):
            raise UsageError(f"start_time={start_time!r} is not a time in ps")
        _require_target(self.path, force)
        self._part = _part_name(self.path)
        try:
            os.close(os.open(self._part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            self._file: Any = (DCDFile if self._is_dcd else XTCFile)(str(self._part), "w")
        except OSError as exc:
            _remove(self._part)
            raise OutputError(f"{self.path} cannot be written ({exc}); choose a folder you may write to") from exc
        self._remove = weakref.finalize(self, _remove, self._part)
        self._periodic = False
        self._size = self._frame_size = 0  # bytes, DCD only

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, positions: ArrayLike, box: ArrayLike | None = None, time: float | None = None) -> None:
        """Add one frame.

        Parameters
        ----------
        positions
            ``(N, 3)`` in Angstrom.
        box
            ``(6,)`` in Angstrom and degrees; a DCD file has a box in every frame or in none.
        time
            In ps; ``start_time + n_frames * dt`` where None. In a DCD file it can be nothing else.

        Raises
        ------
        UsageError
            A shape, a box or a time that cannot be right.
        OutputError
            Positions that are not finite or do not fit the format, or a frame that did not reach the file.
        """
        if self._file is None:
            raise UsageError(f"{self.path} is closed already; open a new writer")
        frame = self.n_frames
        xyz = np.asarray(positions, dtype=np.float64)
        if xyz.shape != (self.n_atoms, 3):
            raise UsageError(f"positions of frame {frame} have the shape {xyz.shape}; expected ({self.n_atoms}, 3)")
        if not np.isfinite(xyz).all():
            atom = int(np.flatnonzero(~np.isfinite(xyz).all(axis=1))[0])
            raise OutputError(
                f"frame {frame} was not written to {self.path}: the position of atom {atom} is {xyz[atom].tolist()}; "
                "the forecast broke down, ask for a shorter horizon or another model"
            )
        self._require_range(xyz, frame)
        cell = self._cell(box, frame)
        expected_time = self.start_time + frame * self.dt
        if time is None:
            time = expected_time
        elif not math.isfinite(time):
            raise UsageError(f"frame {frame} has the time {time!r}")
        elif self._is_dcd and abs(time - expected_time) > _time_tolerance(self.dt, np.array([time])):
            raise UsageError(
                f"frame {frame} is at {time:g} ps, but a DCD file holds evenly spaced frames only, here at "
                f"{expected_time:g} ps; write XTC, which stores the time of each frame"
            )
        try:
            if self._is_dcd:
                self._write_dcd(xyz, cell)
            else:
                vectors = np.zeros((3, 3)) if cell is None else triclinic_vectors(cell) / 10.0
                self._file.write(xyz / 10.0, vectors, frame, time, XTC_PRECISION)
        except OutputError:
            raise
        except OSError as exc:
            raise self._unwritten(str(exc)) from exc
        self.n_frames += 1

    def close(self) -> None:
        """Give the file its name, after a check that every frame reached it."""
        if self._file is None:
            return
        try:
            self._file.close()
            self._file = None
            if self.n_frames:
                with open(self._part, "rb+") as stream:
                    os.fsync(stream.fileno())
                self._verify()
                if not self._force and os.path.lexists(self.path):
                    raise OutputError(
                        f"{self.path} appeared meanwhile; choose another name, or use --force (force=True)"
                    )
                os.replace(self._part, os.path.realpath(self.path))
        except OutputError:
            raise
        except OSError as exc:
            raise self._unwritten(str(exc)) from exc
        finally:
            self._file = None
            self._remove()

    def abort(self) -> None:
        """Remove what was written; nothing changes at the target."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        self._remove()

    def _require_range(self, xyz: NDArray[np.float64], frame: int) -> None:
        largest = np.abs(xyz).max()
        # XTC packs multiples of 1 / XTC_PRECISION nm into 32 bits, the extent of the frame too.
        limit = float(np.finfo(np.float32).max) if self._is_dcd else 0.499 * _INT32_MAX / XTC_PRECISION * 10.0
        if largest >= limit:
            raise OutputError(
                f"frame {frame} was not written to {self.path}: a coordinate of {largest:g} Angstrom is beyond the "
                f"{limit:g} that the format holds; the forecast broke down, ask for a shorter horizon or another model"
            )

    def _cell(self, box: ArrayLike | None, frame: int) -> NDArray[np.float32] | None:
        cell = None if box is None else np.asarray(box, dtype=np.float32)
        if cell is not None:
            if cell.shape != (6,) or not np.isfinite(cell).all():
                raise UsageError(f"the box of frame {frame} is {np.asarray(box).tolist()}; expected six finite numbers")
            if not cell[:3].any():
                cell = None  # MDAnalysis' way to say that there is no box
            elif not _is_cell(cell):
                raise UsageError(f"the box of frame {frame} is {cell.tolist()}, which no cell can have")
        if self._is_dcd and frame and (cell is not None) != self._periodic:
            raise UsageError(
                f"frame {frame} has {'a' if cell is not None else 'no'} box, unlike the frames before it; "
                "a DCD file has one in every frame or in none"
            )
        return cell

    def _write_dcd(self, xyz: NDArray[np.float64], cell: NDArray[np.float32] | None) -> None:
        if self.n_frames == 0:
            self._periodic = cell is not None
            ratio = self.start_time / self.dt
            # Both numbers are stored as 32-bit integers.
            largest = max(1, min(1000, int(_INT32_MAX / max(abs(ratio), 1.0))))
            steps = Fraction(ratio).limit_denominator(largest)
            if abs(steps.numerator) > _INT32_MAX:
                raise UsageError(f"a start at {self.start_time:g} ps is {ratio:g} frames, too many for DCD; write XTC")
            self._file.write_header(
                remarks="Written by egno_md",
                natoms=self.n_atoms,
                istart=steps.numerator,
                nsavc=steps.denominator,
                delta=convert(self.dt, "ps", "AKMA") / steps.denominator,
                is_periodic=int(self._periodic),
            )
            try:
                with _mapped(self._part) as data:
                    layout = _dcd_layout(str(self._part), data)
            except ValueError as exc:  # DataError is one; mmap refuses an empty file by a ValueError
                raise self._unwritten("the header is incomplete") from exc
            self._size = layout.header
            self._frame_size = layout.rest
        unit_cell = None
        if cell is not None:
            lx, ly, lz = cell[:3]
            # Cosines as in NAMD; as sines of the complement, right angles come out as exactly zero.
            cos_alpha, cos_beta, cos_gamma = np.sin(np.deg2rad(90.0 - cell[3:].astype(np.float64)))
            unit_cell = np.array([lx, cos_gamma, ly, cos_beta, cos_alpha, lz], dtype=np.float64)
        self._file.write(xyz, unit_cell)
        self._size += self._frame_size
        found = os.path.getsize(self._part)
        if found != self._size:
            raise self._unwritten(f"{found} bytes instead of {self._size}")

    def _verify(self) -> None:
        with _mapped(self._part) as data:
            try:
                scan = _SCANNERS[self.path.suffix.lower()](str(self._part), data)
            except DataError as exc:
                raise self._unwritten(str(exc)) from exc
            if scan != (self.n_atoms, self.n_frames, len(data)):
                raise self._unwritten(f"{scan.n_frames} whole frames instead of {self.n_frames}")

    def _unwritten(self, why: str) -> OutputError:
        return OutputError(
            f"frame {self.n_frames} of {self.path} could not be written whole ({why}); is the disk full? "
            "Nothing was kept: free some space, or write elsewhere"
        )


def require_targets(
    path: StrPath, *, force: bool = False, topology: bool = True, inputs: Iterable[StrPath] = ()
) -> list[Path]:
    """The files that :func:`write_forecast` would write, once it is sure that it may; same arguments and errors.

    To be asked before a long computation whose result goes there.
    """
    target = Path(path)
    _output_suffix(target)
    targets = [target, target.with_suffix(".pdb")] if topology else [target]
    sources = [source for source in inputs if os.path.exists(source)]
    for file in targets:
        if file.exists() and any(os.path.samefile(file, source) for source in sources):
            raise UsageError(f"{file} is an input of this forecast and is never overwritten; choose another name")
        _require_target(file, force)
    return targets


def write_forecast(
    path: StrPath,
    atoms: mda.AtomGroup,
    positions: ArrayLike,
    times: ArrayLike,
    *,
    boxes: ArrayLike | None = None,
    dt: float | None = None,
    force: bool = False,
    topology: bool = True,
    inputs: Iterable[StrPath] = (),
) -> list[Path]:
    """Write frames to a DCD or XTC file, and their topology to a PDB file of the same name beside it.

    Both targets are checked before anything is written, and neither appears unless both could be written whole. The
    PDB file holds the first frame, the elements (guessed from the names where unknown) and CONECT records for the
    bonds among the atoms.

    Parameters
    ----------
    path
        Target; the suffix ``.dcd`` or ``.xtc`` decides the format.
    atoms
        The N atoms that are written.
    positions
        ``(F, N, 3)`` in Angstrom.
    times
        ``(F,)`` in ps; evenly spaced for DCD.
    boxes
        ``(F, 6)`` or ``(6,)`` in Angstrom and degrees; None for no box.
    dt
        Spacing in ps; taken from `times` where None, which takes two frames.
    force
        Replace files that exist.
    topology
        Write the PDB file.
    inputs
        Files that must not be overwritten, whatever `force` says.

    Returns
    -------
    list of Path
        The files that were written, the trajectory first.

    Raises
    ------
    UsageError
        Shapes or a suffix that cannot be right, or a target that is one of the inputs.
    OutputError
        A target that exists, or could not be written whole.
    """
    targets = require_targets(path, force=force, topology=topology, inputs=inputs)
    target = targets[0]
    suffix = _output_suffix(target)
    xyz, clock, cells = _frames(len(atoms), positions, times, boxes)
    if dt is None and len(clock) > 1:
        dt = float(clock[-1] - clock[0]) / (len(clock) - 1)
    elif dt is None and suffix == ".dcd":
        raise UsageError("a DCD file needs the spacing of its frames, which one frame does not show; pass dt= in ps")
    elif dt is None:
        dt = 1.0  # not stored in XTC

    part = _part_name(targets[-1])
    try:
        with FrameWriter(target, len(atoms), dt=dt, start_time=float(clock[0]), force=force) as writer:
            for i, frame in enumerate(xyz):
                writer.write(frame, None if cells is None else cells[i], float(clock[i]))
            if topology:
                _write_pdb(
                    part,
                    targets[1],
                    in_memory_universe(atoms, xyz[:1], clock[:1], None if cells is None else cells[:1]),
                )
        if topology:
            os.replace(part, os.path.realpath(targets[1]))
    finally:
        _remove(part)
    return targets


def _is_cell(box: NDArray[np.float32]) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(triclinic_vectors(box).any())


def _write_pdb(part: Path, target: Path, universe: mda.Universe) -> None:
    """Write the topology to `part`; the errors speak of `target`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # attributes that the topology does not have are filled with defaults
            universe.guess_TopologyAttrs(context="default", to_guess=["elements"])
            universe.atoms.write(str(part), bonds="all")
        if universe.dimensions is None:
            # MDAnalysis then writes a cell of 1 Angstrom, which readers warn of and viewers draw.
            lines = part.read_text().splitlines(keepends=True)
            part.write_text("".join(line for line in lines if not line.startswith("CRYST1")))
    except (OSError, ValueError) as exc:
        raise OutputError(
            f"the topology {target} could not be written ({exc}); write the trajectory alone (topology=False), or "
            "free some space"
        ) from exc
    with open(part, "rb") as stream:
        stream.seek(max(0, os.path.getsize(part) - 8))
        if b"END" not in stream.read():
            raise OutputError(f"the topology {target} could not be written whole; is the disk full?")


def _output_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".dcd", ".xtc"):
        raise UsageError(f"{path}: forecasts are written as .dcd or .xtc, not as {suffix or 'a file without suffix'}")
    return suffix


def _require_target(path: Path, force: bool) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: the folder {folder} does not exist; create it first")
    if os.path.lexists(path):
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} exists and is not a regular file; choose another name")
        if not force:
            raise OutputError(f"{path} exists; choose another name, or replace it with --force (force=True)")
    if not os.access(os.path.dirname(os.path.realpath(path)), os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission to write to its folder; choose another one")


def _part_name(path: Path) -> Path:
    """Name for the unfinished file, hidden and in the target's own folder, so that the last step is one rename."""
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.stem}.{secrets.token_hex(4)}.part{real.suffix}")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


# -------------------------------------------------------------------------------------------------------------- mdtraj


def to_mdtraj(atoms: mda.Universe | mda.AtomGroup) -> mdtraj.Trajectory:
    """All frames of a Universe, or of some of its atoms, as an mdtraj.Trajectory (nm, ps).

    Names, residues, chains, elements (guessed from the names where unknown) and the bonds among the atoms go along.
    The frame that the Universe stands on is kept.

    Raises
    ------
    DataError
        Frames without positions.
    """
    import mdtraj

    group = atoms.atoms
    trajectory = group.universe.trajectory
    here = trajectory.frame
    xyz = np.empty((len(trajectory), len(group), 3), dtype=np.float32)
    times = np.empty(len(trajectory), dtype=np.float64)
    cells: list[NDArray[np.float32] | None] = []
    try:
        for i, ts in enumerate(trajectory):
            xyz[i] = group.positions / 10.0
            times[i] = ts.time
            cells.append(None if ts.dimensions is None else ts.dimensions.copy())
    except NoDataError as exc:
        raise DataError(f"frame {i} of {_name(trajectory)} holds no positions; leave it out") from exc
    finally:
        trajectory[here]
    result = mdtraj.Trajectory(xyz, _mdtraj_topology(group), time=times)
    if all(cell is not None for cell in cells):
        box = np.array(cells, dtype=np.float64)  # (F, 6)
        result.unitcell_lengths = box[:, :3] / 10.0
        result.unitcell_angles = box[:, 3:]
    return result


def _mdtraj_topology(group: mda.AtomGroup) -> mdtraj.Topology:
    import mdtraj
    from mdtraj.core.element import get_by_symbol, virtual

    def attribute(name: str, default: Any) -> Sequence[Any]:
        try:
            return list(getattr(group, name))
        except (AttributeError, NoDataError):
            return [default] * len(group)

    names = attribute("names", "X")
    resnames, resids = attribute("resnames", "UNK"), attribute("resids", 1)
    segids, chains = attribute("segids", ""), attribute("chainIDs", "")
    resindices = group.resindices
    topology = mdtraj.Topology()
    chain = residue = last_chain = last_residue = None
    for i, symbol in enumerate(_elements(group)):
        if (segids[i], chains[i]) != last_chain:
            last_chain, last_residue = (segids[i], chains[i]), None
            chain = topology.add_chain(chain_id=chains[i] or segids[i] or None)
        if resindices[i] != last_residue:
            last_residue = resindices[i]
            residue = topology.add_residue(str(resnames[i]), chain, resSeq=int(resids[i]), segment_id=str(segids[i]))
        try:
            element = get_by_symbol(symbol) if symbol else virtual
        except KeyError:
            element = virtual
        topology.add_atom(str(names[i]), element, residue)
    atom = list(topology.atoms)
    for i, j in _bonds_among(group):
        topology.add_bond(atom[i], atom[j])
    return topology


def _elements(group: mda.AtomGroup) -> list[str]:
    """Element symbols, those that the topology does not have guessed from the names."""
    from MDAnalysis.guesser.default_guesser import DefaultGuesser

    guesser = DefaultGuesser(None)
    known = getattr(group, "elements", None)
    names = getattr(group, "names", [""] * len(group))
    return [
        str(symbol).capitalize() if symbol else guesser.guess_atom_element(name).capitalize()
        for symbol, name in zip([""] * len(group) if known is None else known, names, strict=True)
    ]


def _bonds_among(group: mda.AtomGroup) -> NDArray[np.int64]:
    """Bonds with both ends in the group, as positions in it, ``(B, 2)``."""
    try:
        bonds = np.asarray(group.bonds.indices, dtype=np.int64).reshape(-1, 2)  # (B', 2)
    except (AttributeError, NoDataError):
        return np.empty((0, 2), dtype=np.int64)
    place = np.full(len(group.universe.atoms), -1, dtype=np.int64)
    place[group.indices] = np.arange(len(group))
    inside = place[bonds]
    return inside[(inside >= 0).all(axis=1)]  # (B, 2)


def from_mdtraj(trajectory: mdtraj.Trajectory) -> mda.Universe:
    """Universe in memory of an mdtraj.Trajectory: Angstrom, its times, box, chains, residues, elements and bonds."""
    topology = trajectory.topology
    if topology is None or trajectory.n_frames == 0:
        raise DataError("the mdtraj.Trajectory holds no topology or no frame; load it with top=")
    residues, chains = list(topology.residues), list(topology.chains)
    atoms = list(topology.atoms)
    universe = mda.Universe.empty(
        len(atoms),
        n_residues=len(residues),
        n_segments=len(chains),
        atom_resindex=[atom.residue.index for atom in atoms],
        residue_segindex=[residue.chain.index for residue in residues],
    )
    chain_ids = [getattr(chain, "chain_id", None) or "" for chain in chains]
    segids = [
        next((residue.segment_id for residue in chain.residues if residue.segment_id), chain_ids[chain.index])
        for chain in chains
    ]
    symbols = ["" if a.element is None or a.element.symbol == "VS" else a.element.symbol for a in atoms]
    universe.add_TopologyAttr("names", [atom.name for atom in atoms])
    universe.add_TopologyAttr("elements", symbols)
    universe.add_TopologyAttr("types", symbols)
    universe.add_TopologyAttr("masses", [0.0 if a.element is None else a.element.mass for a in atoms])
    universe.add_TopologyAttr("chainIDs", [chain_ids[atom.residue.chain.index] for atom in atoms])
    universe.add_TopologyAttr("resnames", [residue.name for residue in residues])
    universe.add_TopologyAttr("resids", [residue.resSeq for residue in residues])
    universe.add_TopologyAttr("segids", segids)
    bonds = sorted({(min(a.index, b.index), max(a.index, b.index)) for a, b in topology.bonds})
    if bonds:
        universe.add_TopologyAttr("bonds", bonds)
    boxes = None
    if trajectory.unitcell_lengths is not None:
        boxes = np.hstack([trajectory.unitcell_lengths * 10.0, trajectory.unitcell_angles]).astype(np.float32)  # (F, 6)
    _attach(universe, trajectory.xyz * np.float32(10.0), np.asarray(trajectory.time, dtype=np.float64), boxes)
    return universe
