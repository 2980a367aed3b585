"""A file of frames that grows, is readable at every moment, and is gone on with after whatever ended it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time as clock
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from MDAnalysis.analysis.results import Results

from ..errors import OutputError, UsageError
from ..files import HASHED, locked, sync_folder, write_whole
from .formats import can_grow, format_of
from .preflight import INT32_MAX, StrPath
from .writer import Frames

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

#: Forecasts of more frames and more bytes (three single precision numbers an atom) than these are streamed.
STREAM_FRAMES, STREAM_BYTES = 256, 1 << 20

#: Share of the time that may be spent on confirming frames.
CONFIRM_SHARE = 0.02

#: Of what :class:`FrameStream` writes beside the file.
RECORD_VERSION = 3


class Awaited(Results):
    """What an analysis will find; before it has run, the error about an attribute says so."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if self.__dict__.get("data"):
                raise
            raise AttributeError(f"there is no result {name!r} yet: call run() first") from error


def is_streamed(path: StrPath, n_frames: int, n_atoms: int) -> bool:
    """Whether so long a forecast is written frame by frame; a shorter one appears when it is whole.

    It follows from the number of frames and atoms, and from the format: one of another package may not be able to grow.
    """
    long = n_frames > STREAM_FRAMES and 12 * n_frames * n_atoms > STREAM_BYTES
    return long and can_grow(format_of(Path(path)))


def record_path(path: StrPath) -> Path:
    """The file beside a streamed one that says how to go on, also when it is whole, to a longer one."""
    path = Path(path)
    return path.with_name(f"{path.name}.resume.json")


class FrameStream(Frames):
    """Append frames to a file that is readable after each of them, and can be gone on with.

    Beside the file stands its record (:func:`record_path`), JSON: the frames that are confirmed, the size of the file
    with them, the hash of its last bytes, what the frames depend on, and the state from which the next ones are made.
    The file may hold more than was confirmed; :meth:`resume` cuts that off. Only one process at a time can write.

    Parameters
    ----------
    path, n_atoms, dt, start_time
        See :class:`.FrameWriter`.
    settings
        All that the frames depend on, in groups; JSON. A file is gone on with by the same settings alone.

    Raises
    ------
    UsageError, OutputError
        See :class:`.FrameWriter`, or a format that cannot grow.
    """

    def __init__(
        self,
        path: StrPath,
        n_atoms: int,
        *,
        dt: float,
        start_time: float,
        settings: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__(path, n_atoms, dt=dt, start_time=start_time)
        if not can_grow(self._format):
            raise UsageError(f"{self.path}: {self._suffix} files cannot be written frame by frame; use DCD or XTC")
        self.record = record_path(self.path)
        self.state: Any = None
        self._scratch = self.path.with_name(f".{self.path.name}.window")
        self._settings = json.loads(json.dumps(settings))
        self._begin = self._size = 0  # bytes before the first frame, and altogether
        self._confirmed = 0
        self._due = 0.0
        self._file: Any = None

    @property
    def confirmed(self) -> int:
        """Frames that a resumed run keeps."""
        return self._confirmed

    @property
    def size(self) -> int:
        """Bytes of the whole frames."""
        return self._size

    @property
    def is_open(self) -> bool:
        """Whether frames can be added."""
        return self._file is not None

    def discard(self) -> None:
        """Remove file and record."""
        self.record.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.close()

    def start(self) -> None:
        """Begin with no frame, over what is there."""
        self._open()
        self.record.unlink(missing_ok=True)
        self._cut(0)
        self.confirm(None)

    def resume(self, most: int = INT32_MAX) -> None:
        """Go on from what was confirmed: `n_frames` and `state` are as they were then.

        Raises
        ------
        UsageError
            Other settings; the message names those that changed. More frames than `most`.
        OutputError
            A record or a file that is damaged, or is not what was confirmed; nothing was changed.
        """
        again = f"begin anew with --force (force=True), or choose another name than {self.path}"
        try:
            found = json.loads(self.record.read_bytes())
            checksum = found.pop("sha256", None)
            version, frames, size, begin, tail = (found[k] for k in ("version", "frames", "bytes", "begin", "tail"))
            settings = {group: dict(values) for group, values in dict(found["settings"]).items()}
            state, periodic = found["state"], bool(found["periodic"])
            if not all(isinstance(n, int) and n >= 0 for n in (version, frames, size, begin)):
                raise ValueError("a number that is none")
            if version == RECORD_VERSION and checksum != _checksum(found):
                raise ValueError("it does not match its own checksum")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{self.record} is damaged ({error}), so that nothing can be resumed: {again}") from error
        if version != RECORD_VERSION:
            raise OutputError(f"{self.record} was written by another version of egno_md: {again}")
        if changed := _changes(settings, self._settings):
            raise UsageError(
                f"{self.path} cannot be gone on with, because other frames would follow: {'; '.join(changed)}; "
                f"give what it was begun with, or {again}"
            )
        if frames > most:
            raise UsageError(
                f"{self.path} has {frames} frames already, and {most} are asked for: ask for as many or more to go on "
                "with it, or choose another name"
            )
        if frames and not self.path.exists():
            raise OutputError(f"{self.path} is gone, of which {frames} frames were confirmed: {again}")
        self._open()
        there = os.fstat(self._file.fileno()).st_size
        if there < size or self._hash(begin, size) != tail:
            self.close()
            why = f"has {there} bytes instead of {size}" if there < size else f"is another one in its first {size}"
            raise OutputError(f"{self.path} {why} bytes, since {frames} frames were confirmed: {again}")
        self.n_frames, self.state = frames, state
        self._confirmed, self._begin, self._periodic = frames, begin, periodic
        self._cut(size)

    def append(self, positions: ArrayLike, boxes: Sequence[ArrayLike | None], times: Sequence[float]) -> None:
        """Add frames (F, N, 3) in Angstrom, each with its box and its time in ps; errors as in `FrameWriter.write`.

        Where one of them cannot be written, those before it are kept.
        """
        first = self.n_frames
        if not len(times):
            return
        if first + len(times) > INT32_MAX:
            raise UsageError(f"{self.path}: a {self._suffix} file holds at most {INT32_MAX} frames")
        good: list[tuple[NDArray, NDArray | None, float]] = []
        wrong: OutputError | None = None
        for i, (frame, box, time) in enumerate(zip(positions, boxes, times, strict=True)):
            try:
                good.append(self.checked(frame, box, time, first + i))
            except OutputError as error:
                wrong = error
                break
        if good:
            self._append(*zip(*good, strict=True))
        if wrong is not None:
            raise wrong

    def _append(self, xyz: Sequence[NDArray], cells: Sequence[NDArray | None], times: Sequence[float]) -> None:
        try:
            if not self._size:
                self._format.begin(str(self.path), self.n_atoms, self.dt, self.start_time, self._periodic)
                self._begin = self._size = os.fstat(self._file.fileno()).st_size
            data = self._format.encoded(str(self._scratch), np.stack(xyz), cells, self.n_frames, times)
            self._write(data, self._size)
        except (OSError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            with contextlib.suppress(OSError):
                self._cut(self._size)
            raise OutputError(
                f"frame {self.n_frames} of {self.path} could not be written whole ({error}); is the disk full? The "
                f"frames before it are kept: make room, and go on with the same command and --resume (resume=True)"
            ) from error
        self._size += len(data)
        self.n_frames += len(times)
        self._count()

    def confirm(self, state: Any, *, now: bool = True) -> None:
        """Let a resumed run go on after the frames so far, from `state` (JSON).

        Parameters
        ----------
        state
            From which the next frames are made.
        now
            False: only if it was not done for a while, so that little time goes into it.

        Raises
        ------
        OutputError
            There is no room; what was confirmed before is still.
        """
        began = clock.monotonic()
        if not now and began < self._due:
            return
        try:
            os.fsync(self._file.fileno())
            record = {
                "version": RECORD_VERSION,
                "frames": self.n_frames,
                "bytes": self._size,
                "begin": self._begin,
                "tail": self._hash(self._begin, self._size),
                "periodic": self._periodic,
                "settings": self._settings,
                "state": state,
            }
            write_whole(self.record, json.dumps({**record, "sha256": _checksum(record)}).encode())
        except OSError as error:
            raise OutputError(
                f"{self.record} could not be written ({error}); is the disk full? {self._confirmed} frames of "
                f"{self.path} are confirmed: make room, and go on with the same command and --resume (resume=True)"
            ) from error
        self._confirmed = self.n_frames
        ended = clock.monotonic()
        self._due = ended + (ended - began) / CONFIRM_SHARE

    def finish(self) -> None:
        """The last frame is written: check the file, and let go of it.

        Raises
        ------
        OutputError
            The file does not hold what was written.
        """
        os.fsync(self._file.fileno())
        if (found := os.fstat(self._file.fileno()).st_size) != self._size:
            raise OutputError(f"{self.path} has {found} bytes instead of {self._size}: another program wrote to it")
        self.close()
        sync_folder(self.path.parent)

    def close(self) -> None:
        """Let go of the file; it stays as it is."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._scratch.unlink(missing_ok=True)

    def _open(self) -> None:
        try:
            self._file = open(self.path, "r+b" if self.path.exists() else "w+b", buffering=0)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({error}); choose a folder you may write to") from error
        if not locked(self._file):
            self.close()
            raise OutputError(f"{self.path} is being written by another process: wait for it, or choose another name")

    def _write(self, data: bytes, at: int) -> None:
        self._file.seek(at)
        left = memoryview(data)
        while left:  # a write that is not buffered may stop half-way
            left = left[self._file.write(left) :]

    def _count(self) -> None:
        """Say in the file how many frames it holds; after them, so that it never says too much."""
        if self._format.count_at is not None and self._size:
            self._write(self.n_frames.to_bytes(4, "little"), self._format.count_at)

    def _cut(self, size: int) -> None:
        """Leave off all that is not known to be whole."""
        self._size = size
        self._count()
        self._file.truncate(size)

    def _hash(self, begin: int, end: int) -> str:
        """Of the last bytes; those before the frames change with their number."""
        first = max(begin, end - HASHED)
        self._file.seek(first)
        return hashlib.sha256(self._file.read(end - first)).hexdigest()


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, in words."""
    found = []
    for group in dict.fromkeys([*before, *now]):
        then, here = (dict(settings.get(group) or {}) for settings in (before, now))
        for key in dict.fromkeys([*then, *here]):
            if (old := then.get(key)) != (new := here.get(key)):
                short = all(len(str(value)) < 40 for value in (old, new))
                found.append(f"{group} {key} (then {old!r}, now {new!r})" if short else f"another {group} ({key})")
    return found


class StoredFrames:
    """Frames (1, F, N, 3) of a file, in Angstrom, read when they are asked for; like an array, but for arithmetic.

    ``frames[0, k]`` and ``frames[0, a:b]`` read what they name, ``np.asarray(frames)`` reads all.

    Parameters
    ----------
    universe
        Whose trajectory is the file.
    first
        Frames of the file that come before.
    """

    dtype = np.dtype(np.float32)
    ndim = 4

    def __init__(self, universe: Any, first: int = 0) -> None:
        self._universe, self._first = universe, first
        self.shape = (1, universe.trajectory.n_frames - first, len(universe.atoms), 3)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        start, frames, *rest = (*key, slice(None))[: max(2, len(key))] if isinstance(key, tuple) else (key, slice(None))
        numbers = np.asarray(np.arange(self.shape[1])[frames])
        inside = np.empty(self.shape[2:], np.float32)[tuple(rest)].shape  # of a frame
        found = np.empty((numbers.size, *inside), np.float32)
        for i, number in enumerate(numbers.flat):
            found[i] = self._universe.trajectory[int(self._first + number)].positions[tuple(rest)]
        return found.reshape(1, *numbers.shape, *inside)[start]  # the only one of the starts

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        return np.asarray(self[:], dtype)
