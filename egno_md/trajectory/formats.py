"""The formats that frames are written in, one class each, and the register of them."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from MDAnalysis.lib.formats.libdcd import DCDFile
from MDAnalysis.lib.formats.libmdaxdr import XTCFile
from MDAnalysis.lib.mdamath import triclinic_vectors
from MDAnalysis.units import convert

from .. import plugins
from ..errors import UsageError
from .preflight import INT32_MAX, SCANNERS, dcd_layout, mapped

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Other packages name their formats in this group; the name of an entry is the suffix without its point.
ENTRY_POINTS = "egno_md.formats"
#: XTC stores whole multiples of 1 / XTC_PRECISION nm, as GROMACS does by default.
XTC_PRECISION = 1000.0


class Format(Protocol):
    """How frames become bytes; :class:`.FrameWriter` does what all formats have in common.

    ``Format(part, n_atoms, dt, start_time)`` opens the file `part`, which is there and empty; `dt` and `start_time` are
    in ps. Whatever it raises as an OSError becomes the error that a frame could not be written whole.

    Attributes
    ----------
    suffix : str
        Of its files, with the point, in small letters.
    even : bool
        It holds frames of one spacing alone, with a box in all of them or in none.
    largest : float
        Largest coordinate that it holds, in Angstrom.

    A format may be :class:`Growing` as well; long forecasts in other formats are kept in memory until they are whole.
    """

    suffix: ClassVar[str]
    even: ClassVar[bool]
    largest: ClassVar[float]

    def __init__(self, part: str, n_atoms: int, dt: float, start_time: float) -> None: ...

    def write(self, xyz: NDArray[np.float64], cell: NDArray[np.float32] | None, frame: int, time: float) -> None:
        """Add a frame: positions (N, 3) in Angstrom, box (6,) in Angstrom and degrees, its number, its time in ps."""

    def close(self) -> None:
        """Nothing is written any more."""

    @staticmethod
    def count(part: str) -> tuple[int, int]:
        """Atoms and whole frames that the closed file holds; a DataError or OSError where it is damaged."""


class Growing(Protocol):
    """A format of which a file is readable after every frame, and can be gone on with.

    Attributes
    ----------
    count_at : int or None
        Byte of the file at which it says, as a little-endian 32-bit integer, how many frames there are.
    """

    count_at: ClassVar[int | None]

    @staticmethod
    def begin(path: str, n_atoms: int, dt: float, start_time: float, periodic: bool) -> None:
        """Make a file without a frame; `dt` and `start_time` in ps."""

    @staticmethod
    def encoded(
        scratch: str,
        xyz: NDArray[np.float64],
        cells: Sequence[NDArray[np.float32] | None],
        first: int,
        times: Sequence[float],
    ) -> bytes:
        """Frames (F, N, 3), the first of which has the number `first`, as they stand in the file, whatever was before.

        `scratch` is the name of a file that may be written and is not looked at. An OSError where it cannot be.
        """


def can_grow(kind: type[Format]) -> bool:
    """Whether a format is :class:`Growing`."""
    return all(hasattr(kind, name) for name in ("begin", "encoded", "count_at"))


class DCD:
    """CHARMM's format: one spacing, and as its start a whole number of integration steps."""

    suffix, even, largest = ".dcd", True, float(np.finfo(np.float32).max)
    count_at: ClassVar[int | None] = 8

    def __init__(self, part: str, n_atoms: int, dt: float, start_time: float) -> None:
        self.part, self.n_atoms, self.dt, self.start_time = part, n_atoms, dt, start_time
        self._file = DCDFile(part, "w")
        self._size = self._frame_size = 0  # bytes

    def write(self, xyz: NDArray[np.float64], cell: NDArray[np.float32] | None, frame: int, time: float) -> None:
        if not self._size:
            self._write_header(cell is not None)
        self._file.write(xyz, None if cell is None else _unit_cell(cell))
        self._size += self._frame_size
        # MDAnalysis' writer does not notice a full disk.
        if (found := os.path.getsize(self.part)) != self._size:
            raise OSError(f"{found} bytes instead of {self._size}")

    def _write_header(self, periodic: bool) -> None:
        ratio = self.start_time / self.dt
        # Both numbers are stored as 32-bit integers.
        largest = max(1, min(1000, int(INT32_MAX / max(abs(ratio), 1.0))))
        steps = Fraction(ratio).limit_denominator(largest)
        if abs(steps.numerator) > INT32_MAX:
            raise UsageError(f"a start at {self.start_time:g} ps is {ratio:g} frames, too many for DCD; write XTC")
        self._file.write_header(
            remarks="Written by egno_md",
            natoms=self.n_atoms,
            istart=steps.numerator,
            nsavc=steps.denominator,
            delta=convert(self.dt, "ps", "AKMA") / steps.denominator,
            is_periodic=int(periodic),
        )
        try:
            with mapped(self.part) as data:
                layout = dcd_layout(self.part, data)
        except ValueError as exc:  # DataError is one; mmap refuses an empty file by a ValueError
            raise OSError("the header is incomplete") from exc
        self._size, self._frame_size = layout.header, layout.rest

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def count(part: str) -> tuple[int, int]:
        return _scanned(part, DCD.suffix)

    @staticmethod
    def begin(path: str, n_atoms: int, dt: float, start_time: float, periodic: bool) -> None:
        file = DCD(path, n_atoms, dt, start_time)
        try:
            file._write_header(periodic)
        finally:
            file.close()

    @staticmethod
    def encoded(
        scratch: str,
        xyz: NDArray[np.float64],
        cells: Sequence[NDArray[np.float32] | None],
        first: int,
        times: Sequence[float],
    ) -> bytes:
        def record(values: NDArray) -> bytes:  # Fortran's, between two copies of its length
            return (length := struct.pack("<i", values.nbytes)) + values.tobytes() + length

        out = bytearray()
        for frame, cell in zip(xyz, cells, strict=True):
            out += b"" if cell is None else record(_unit_cell(cell).astype("<f8"))
            for axis in range(3):
                out += record(frame[:, axis].astype("<f4"))
        return bytes(out)


def _unit_cell(cell: NDArray[np.float32]) -> NDArray[np.float64]:
    """A box (6,) as DCD files hold it."""
    lx, ly, lz = cell[:3]
    # Cosines as in NAMD; as sines of the complement, right angles come out as exactly zero.
    cos_alpha, cos_beta, cos_gamma = np.sin(np.deg2rad(90.0 - cell[3:].astype(np.float64)))
    return np.array([lx, cos_gamma, ly, cos_beta, cos_alpha, lz], dtype=np.float64)


class XTC:
    """GROMACS' compressed format: every frame has a time of its own; positions rounded to 0.01 Angstrom."""

    suffix, even = ".xtc", False
    count_at: ClassVar[int | None] = None
    # Multiples of 1 / XTC_PRECISION nm are packed into 32 bits, the extent of the frame too.
    largest = 0.499 * INT32_MAX / XTC_PRECISION * 10.0

    def __init__(self, part: str, n_atoms: int, dt: float, start_time: float) -> None:
        self._file = XTCFile(part, "w")

    def write(self, xyz: NDArray[np.float64], cell: NDArray[np.float32] | None, frame: int, time: float) -> None:
        vectors = np.zeros((3, 3)) if cell is None else triclinic_vectors(cell) / 10.0
        self._file.write(xyz / 10.0, vectors, frame, time, XTC_PRECISION)

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def count(part: str) -> tuple[int, int]:
        return _scanned(part, XTC.suffix)

    @staticmethod
    def begin(path: str, n_atoms: int, dt: float, start_time: float, periodic: bool) -> None:
        open(path, "wb").close()

    @staticmethod
    def encoded(
        scratch: str,
        xyz: NDArray[np.float64],
        cells: Sequence[NDArray[np.float32] | None],
        first: int,
        times: Sequence[float],
    ) -> bytes:
        file = XTC(scratch, xyz.shape[1], 1.0, 0.0)
        try:
            for i, (frame, cell, time) in enumerate(zip(xyz, cells, times, strict=True)):
                file.write(frame, cell, first + i, time)
        finally:
            file.close()
        if _scanned(scratch, XTC.suffix) != xyz.shape[1::-1]:
            raise OSError("its frames are not whole")
        return Path(scratch).read_bytes()


def _scanned(part: str, suffix: str) -> tuple[int, int]:
    """Atoms and frames by the headers; an OSError where bytes are left over."""
    with mapped(part) as data:
        scan = SCANNERS[suffix](part, data)
        if scan is None or scan.end != len(data):
            raise OSError("it ends inside a frame")
    return scan.n_atoms, scan.n_frames


_OURS: dict[str, type[Format]] = {".dcd": DCD, ".xtc": XTC}


def suffixes() -> tuple[str, ...]:
    """Suffixes of all formats, those of other packages last; these are not imported for it."""
    return (*_OURS, *(f".{name}" for name in plugins.names(ENTRY_POINTS)))


def format_of(path: Path) -> type[Format]:
    """The format that the suffix of a file name asks for.

    Raises
    ------
    UsageError
        There is none, or the package that brings it cannot be imported.
    """
    suffix = path.suffix.lower()
    if suffix in _OURS:
        return _OURS[suffix]
    for where, found in plugins.loaded(ENTRY_POINTS, suffix.removeprefix(".")):
        if not callable(getattr(found, "count", None)) or getattr(found, "suffix", None) != suffix:
            raise UsageError(f"{where} must be a class like egno_md.trajectory.formats.Format, for files {suffix}")
        return found
    raise UsageError(
        f"{path}: forecasts are written as {' or '.join(suffixes())}, not as {suffix or 'a file without suffix'}"
    )
