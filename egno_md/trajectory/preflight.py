"""Trajectory files whose headers are walked before a decoder trusts them."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

StrPath = str | os.PathLike[str]

_XTC_HEAD = struct.Struct(">iiif9fi")  # magic, atoms, step, time, box, atoms again

_XTC_PACKING = struct.Struct(">f3i3iii")  # precision, smallest and largest coordinate, small index, bytes that follow

_XTC_SMALL_INDEX = range(9, 73)  # the part of the decoder's table that holds a number other than zero

_TRR_HEAD = struct.Struct(">iii12s13i")  # magic, string length twice, version, ten block sizes, atoms, step, nre

INT32_MAX = 2**31 - 1

#: The unit of time of CHARMM and of DCD files in ps.
AKMA_PS = 4.888821e-2


class Scan(NamedTuple):
    """What a trajectory file holds by its own headers."""

    n_atoms: int
    n_frames: int  # whole frames
    end: int  # byte after the last whole frame
    times: NDArray[np.float64] | None = None  # (n_frames,) ps, where each frame has its own
    steps: NDArray[np.int64] | None = None  # (n_frames,) integration steps
    positions: NDArray[np.bool_] | None = None  # (n_frames,) whether the frame has positions; None: all have


def file_suffix(name: str) -> str:
    return Path(name).suffix.lower()


#: What compressed files start with, and the command that undoes it.
_COMPRESSED = {b"\x1f\x8b": "gzip -dc", b"BZh": "bzip2 -dc", b"\xfd7zXZ": "xz -dc", b"(\xb5/\xfd": "zstd -dc"}

_COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")

#: Formats that MDAnalysis cannot read compressed.
_BINARY = (".dcd", ".xtc", ".trr", ".nc", ".ncdf", ".trj", ".tng", ".h5", ".h5md", ".gsd", ".trz", ".tpr")

#: Temporary copies of the whole frames of a truncated file, and the file.
ORIGINALS: dict[str, str] = {}


def original(name: str) -> str:
    """The name that the user gave to a file of which a copy is read."""
    return ORIGINALS.get(name, name)


def require_file(name: str, kind: str) -> None:
    """Refuse what is no file of bytes that can be read now.

    Raises
    ------
    DataError
        It is missing, a folder, a pipe or a device, empty, not to be read, compressed or begun by a byte-order mark;
        the message has the cure.
    """
    path = Path(name)
    try:
        if path.is_dir():
            raise DataError(f"{name} is a folder, but a {kind} file was expected; give the path of the file itself")
        if not path.exists():
            raise DataError(f"{kind} file {name} does not exist; check the path (it is looked up from {os.getcwd()})")
        if not path.is_file():
            raise DataError(
                f"{kind} file {name} is not a regular file but a pipe, socket or device, which cannot be read twice; "
                "write what comes out of it to a file and give that"
            )
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as exc:
        raise DataError(f"{kind} file {name} cannot be read ({exc.strerror}); check its permissions") from exc
    if not head:
        raise DataError(f"{kind} file {name} is empty (0 bytes); copy it again, or check that it was written")
    _refuse_wrapped(name, kind, head)


def _refuse_wrapped(name: str, kind: str, head: bytes) -> None:
    """Refuse a compression that hides from, or is beyond, MDAnalysis, and marks that its parsers stumble over."""
    path = Path(name)
    named = path.suffix.lower() in _COMPRESSED_SUFFIXES
    inner = Path(path.stem) if named else path
    tool = next((tool for magic, tool in _COMPRESSED.items() if head.startswith(magic)), None)
    readable = path.suffix.lower() in (".gz", ".bz2") and inner.suffix.lower() not in _BINARY
    if tool is not None and not readable:
        plain = inner.name if named else f"unpacked{path.suffix}"
        raise DataError(
            f"{kind} file {name} is compressed, which cannot be read here; unpack it first: "
            f"{tool} {quote(name)} > {quote(plain)}"
        )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and file_suffix(name) not in _BINARY:
        raise DataError(
            f"{kind} file {name} is UTF-16 text, as some editors write it; save it as plain text (UTF-8): "
            f"iconv -f UTF-16 -t UTF-8 {quote(name)} > plain{path.suffix}"
        )
    if head.startswith(b"\xef\xbb\xbf"):
        raise DataError(
            f"{kind} file {name} starts with a byte-order mark (three bytes that some editors put first), which hides "
            f"its first line; cut it off: tail -c +4 {quote(name)} > plain{path.suffix}"
        )


def preflight(name: str) -> Scan | None:
    """Walk the headers of a DCD, XTC, TRR, NetCDF or XYZ file; None for the other formats."""
    require_file(name, "trajectory")
    scanner = (SCANNERS | _NAMED_SCANNERS).get(file_suffix(name))
    if scanner is None:
        return None
    with mapped(name) as data:
        scan = scanner(name, data)
        size = len(data)
    if scan is None:
        return None
    if scan.n_frames == 0:
        raise DataError(
            f"{name} holds no whole frame: the headers describe frames of {scan.n_atoms} atoms, but the file ends "
            f"after {size} bytes; copy it again, or check that the simulation finished"
        )
    return scan


@contextlib.contextmanager
def mapped(name: StrPath) -> Iterator[mmap.mmap]:
    with open(name, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def damaged(name: str, frame: int, offset: int, what: str) -> DataError:
    keep = (
        f"keep the {frame} frames before it: head -c {offset} {quote(name)} > repaired{file_suffix(name)}"
        if frame
        else "check that it is what its name says"
    )
    return DataError(
        f"{name} is damaged: frame {frame} at byte {offset} {what}; copy the file again from its source, or {keep}"
    )


def _scan_xtc(name: str, data: mmap.mmap) -> Scan:
    """Walk the frames of an XTC file (XDR: big-endian, padded to four bytes)."""
    size = len(data)
    frame = offset = n_atoms = 0
    times, steps = array("d"), array("q")
    while offset + _XTC_HEAD.size <= size:
        magic, atoms, step, time, *box, atoms_again = _XTC_HEAD.unpack_from(data, offset)
        if magic != 1995:
            raise damaged(name, frame, offset, f"starts with {magic}, not with the 1995 of an XTC frame")
        if atoms <= 0 or atoms_again != atoms or (frame and atoms != n_atoms):
            raise damaged(
                name, frame, offset, f"says {atoms} and {atoms_again} atoms" + (f", not {n_atoms}" if frame else "")
            )
        if not all(map(math.isfinite, (time, *box))):
            raise damaged(name, frame, offset, "has a time or a box that is no number")
        n_atoms = atoms
        if n_atoms <= 9:
            end = offset + _XTC_HEAD.size + 12 * n_atoms
        else:
            body = offset + _XTC_HEAD.size
            if body + _XTC_PACKING.size > size:
                break
            precision, x0, y0, z0, x1, y1, z1, small, n_bytes = _XTC_PACKING.unpack_from(data, body)
            if not (math.isfinite(precision) and precision > 0):
                raise damaged(name, frame, offset, f"has a precision of {precision}")
            if not all(0 <= high - low < INT32_MAX for low, high in ((x0, x1), (y0, y1), (z0, z1))):
                raise damaged(name, frame, offset, "has a smallest and a largest coordinate that exclude each other")
            if small not in _XTC_SMALL_INDEX:
                raise damaged(name, frame, offset, f"has a packing index of {small}, outside 9 to 72")
            # The decoder's buffer holds 1.2 integers per coordinate, three of them its own.
            if not 0 < n_bytes <= 4 * (int(3 * n_atoms * 1.2) - 3):
                raise damaged(name, frame, offset, f"has {n_bytes} bytes of coordinates for {n_atoms} atoms")
            end = body + _XTC_PACKING.size + (n_bytes + 3) // 4 * 4
        if end > size:
            break
        if frame < 2 and not xtc_decodes(data[offset:end]):  # those that MDAnalysis reads to open the file
            raise damaged(name, frame, offset, "has packed coordinates that do not decode")
        times.append(time)
        steps.append(step)
        frame += 1
        offset = end
    if frame == 0 and size >= 4 and data[:4] != b"\x00\x00\x07\xcb":
        raise damaged(name, 0, 0, "does not start as an XTC file does")
    return Scan(n_atoms, frame, offset, np.array(times), _unwrapped(steps))


def _unwrapped(steps: array[int]) -> NDArray[np.int64]:
    """Step numbers that go on where the 32 bits of the file start again."""
    found = np.array(steps, np.int64)
    found[1:] = found[:1] + np.cumsum((np.diff(found) + 2**31) % 2**32 - 2**31)
    return found


def xtc_decodes(frame: bytes) -> bool:
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


def _scan_trr(name: str, data: mmap.mmap) -> Scan:
    """Walk the frames of a TRR file."""
    size = len(data)
    frame = offset = n_atoms = 0
    times, steps, positions = array("d"), array("q"), array("b")
    while offset + _TRR_HEAD.size <= size:
        magic, length, length_again, version, *fields = _TRR_HEAD.unpack_from(data, offset)
        if (magic, length, length_again, version) != (1993, 13, 12, b"GMX_trn_file"):
            raise damaged(name, frame, offset, "does not start as a TRR frame does")
        ir, energy, box, virial, pressure, top, sym, x, v, f, atoms, step, _nre = fields
        if atoms <= 0 or (frame and atoms != n_atoms):
            raise damaged(name, frame, offset, f"says {atoms} atoms" + (f", not {n_atoms}" if frame else ""))
        real = box // 9 or max(x, v, f) // (3 * atoms)
        if (
            real not in (4, 8)
            or any((ir, energy, top, sym))
            or any(block not in (0, 9 * real) for block in (box, virial, pressure))
            or any(block not in (0, 3 * atoms * real) for block in (x, v, f))
        ):
            raise damaged(name, frame, offset, f"has block sizes that do not fit {atoms} atoms")
        n_atoms = atoms
        end = offset + _TRR_HEAD.size + 2 * real + box + virial + pressure + x + v + f
        if end > size:
            break
        times.append(struct.unpack_from(">f" if real == 4 else ">d", data, offset + _TRR_HEAD.size)[0])
        steps.append(step)
        positions.append(x > 0)
        frame += 1
        offset = end
    if frame == 0 and size >= 4 and data[:4] != b"\x00\x00\x07\xc9":
        raise damaged(name, 0, 0, "does not start as a TRR file does")
    return Scan(n_atoms, frame, offset, np.array(times), _unwrapped(steps), np.array(positions, bool))


class _DCDLayout(NamedTuple):
    n_atoms: int
    header: int  # bytes before the first frame
    first: int  # bytes of the first frame, which holds the fixed atoms too
    rest: int  # bytes of each other frame
    marker: int  # record length that starts each frame after the first
    first_marker: int
    order: str
    nsavc: int
    start: int  # integration steps before the first frame
    step: float  # one integration step in ps


def dcd_layout(name: str, data: mmap.mmap) -> _DCDLayout:
    """Header of a DCD file: a Fortran file of records, each between two copies of its length."""

    def integer(offset: int) -> int:
        if offset + 4 > len(data):
            raise DataError(f"{name} ends inside its DCD header, after {len(data)} bytes; copy it again")
        return int(struct.unpack_from(f"{order}i", data, offset)[0])

    order = "<"
    if integer(0) != 84:
        order = ">"
    if integer(0) != 84 or data[4:8] != b"CORD" or integer(88) != 84:
        raise damaged(name, 0, 0, "does not start as a DCD file (of 32-bit records) does")
    nsavc, n_fixed = integer(16), integer(40)
    charmm = integer(84) != 0
    cell = charmm and integer(48) != 0
    dimensions = 4 if charmm and integer(52) == 1 else 3
    n_titles = integer(96)
    atoms_at = 104 + 80 * n_titles
    # Some writers give the title record a length other than that of its lines; the lines decide, as in MDAnalysis.
    if n_titles < 0 or (integer(92) - 4) % 80 or integer(atoms_at) != 4 or integer(atoms_at + 8) != 4:
        raise damaged(name, 0, 92, "has a title that does not fit its length")
    n_atoms = integer(atoms_at + 4)
    if n_atoms <= 0 or not 0 <= n_fixed < n_atoms:
        raise damaged(name, 0, atoms_at + 4, f"says {n_atoms} atoms of which {n_fixed} are fixed")
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
        start=integer(12),
        step=AKMA_PS * struct.unpack_from(f"{order}{'f' if charmm else 'd'}", data, 44 if charmm else 40)[0],
    )


def _scan_dcd(name: str, data: mmap.mmap) -> Scan:
    layout = dcd_layout(name, data)
    if layout.nsavc == 0:
        raise DataError(
            f"the header of {name} says 0 steps between frames, from which MDAnalysis cannot tell the times; "
            "write the file anew (mdconvert of mdtraj, or catdcd)"
        )
    second = layout.header + layout.first
    if len(data) < second:
        return Scan(layout.n_atoms, 0, layout.header)
    n_more = (len(data) - second) // layout.rest
    first_marker = int(struct.unpack_from(f"{layout.order}i", data, layout.header)[0])
    if first_marker != layout.first_marker:
        raise damaged(name, 0, layout.header, f"starts with {first_marker}, not with {layout.first_marker}")
    if n_more:
        markers = np.ndarray((n_more,), f"{layout.order}i4", data, second, (layout.rest,)) != layout.marker
        if markers.any():
            wrong = int(markers.argmax())
            raise damaged(
                name, wrong + 1, second + wrong * layout.rest, f"does not start with its length, {layout.marker}"
            )
    times = (layout.start + layout.nsavc * np.arange(1.0 + n_more)) * layout.step
    return Scan(layout.n_atoms, 1 + n_more, second + n_more * layout.rest, times)


def _scan_netcdf(name: str, data: mmap.mmap) -> Scan | None:
    """Count the frames of a NetCDF file of the classic formats (CDF-1 and CDF-2), as Amber writes them.

    After the header come the variables without time, then one record a frame. The header says how many; a copy that
    was cut off has fewer.
    """
    if data[:4] not in (b"CDF\x01", b"CDF\x02"):
        return None  # NetCDF 4 is HDF5
    at = 4

    def numbers(count: int, kind: str = "i") -> tuple[int, ...]:
        nonlocal at
        found = struct.unpack_from(f">{count}{kind}", data, at)
        at += struct.calcsize(f">{count}{kind}")
        return found

    def text() -> str:
        nonlocal at
        (length,) = numbers(1)
        found = data[at : at + length].decode("ascii", "replace")
        at += -(-length // 4) * 4
        return found

    def attributes() -> None:
        nonlocal at
        for _ in range(numbers(2)[1]):
            text()
            kind, count = numbers(2)
            at += -(-count * {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8}[kind] // 4) * 4

    try:
        (n_records,) = numbers(1)
        sizes, n_atoms = [], 0
        for _ in range(numbers(2)[1]):
            name_of, size = text(), numbers(1)[0]
            sizes.append(size)
            n_atoms = size if name_of == "atom" else n_atoms
        attributes()
        first, record = len(data), 0
        for _ in range(numbers(2)[1]):
            text()
            dimensions = numbers(numbers(1)[0])
            attributes()
            _, size = numbers(2)
            (begin,) = numbers(1, "i" if data[3] == 1 else "q")
            if dimensions and sizes[dimensions[0]] == 0:
                first, record = min(first, begin), record + size
    except (struct.error, KeyError, IndexError) as exc:
        raise damaged(name, 0, at, "is inside a header that is cut off or damaged") from exc
    if record <= 0:
        return None
    whole = (len(data) - first) // record
    if 0 < n_records <= whole:
        return Scan(n_atoms, n_records, len(data))
    return Scan(n_atoms, whole, first + whole * record)


def _scan_xyz(name: str, data: mmap.mmap) -> Scan | None:
    """Count the frames of an XYZ file, text: the number of atoms, a comment, a line for each atom."""
    first = data[: max(data.find(b"\n"), 0)].split()
    if len(first) != 1 or not first[0].isdigit() or int(first[0]) == 0:
        return None  # MDAnalysis says what is wrong
    n_atoms = int(first[0])
    per_frame = n_atoms + 2
    chunks = []
    for start in range(0, len(data), 1 << 24):
        chunks.append(start + np.flatnonzero(np.frombuffer(data[start : start + (1 << 24)], np.uint8) == 10))
    begins = np.concatenate([[-1], *chunks]) + 1  # of every line
    if data[begins[-1] :].strip() and not _cut_number(data[begins[-2] : begins[-1]], data[begins[-1] :]):
        begins = np.append(begins, len(data))  # the last line lacks nothing but its end
    n_frames = (len(begins) - 1) // per_frame
    for frame, begin in enumerate(begins[:-1:per_frame][:n_frames]):
        line = data[begin : data.find(b"\n", begin)].split()
        if line[:1] != first:
            raise damaged(name, frame, int(begin), f"does not begin with its number of atoms, {n_atoms}")
    end = int(begins[n_frames * per_frame])
    return Scan(n_atoms, n_frames, len(data) if not data[end:].strip() else end)


def _cut_number(before: bytes, last: bytes) -> bool:
    """Whether a text ends in the middle of its last line, which looks like the line before it otherwise."""
    whole, found = before.split(), last.split()
    return len(found) < len(whole) or len(found[-1].rpartition(b".")[2]) < len(found[-2].rpartition(b".")[2])


_Scanner = Callable[[str, mmap.mmap], "Scan | None"]

#: Formats of frames alone, which are no topology.
SCANNERS: dict[str, _Scanner] = {".dcd": _scan_dcd, ".xtc": _scan_xtc, ".trr": _scan_trr}
SCANNERS |= {".nc": _scan_netcdf, ".ncdf": _scan_netcdf}

#: Formats with atom names, which may be a topology as well.
_NAMED_SCANNERS: dict[str, _Scanner] = {".xyz": _scan_xyz}
