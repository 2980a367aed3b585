"""Files that are whole or as they were before, and locks that end with the process that holds them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # no POSIX system: nothing is locked
    fcntl = None  # type: ignore[assignment]

#: What of a large file is hashed at its head and at its tail, in bytes.
HASHED = 1 << 16


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` into a file that holds either this or what it held before, whatever happens meanwhile.

    Written beside it (``.<name>.part``, which the next call replaces), forced to the disk and renamed.

    Raises
    ------
    OSError
        It could not be written; the file is as before.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def memory_of_machine() -> float:
    """Bytes of memory in this machine; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def locked(stream: IO) -> bool:
    """Lock an open file for this process, until the file is closed or the process is gone; False if another has it.

    True as well where the system or the file system knows no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def fingerprint(path: str | os.PathLike) -> dict[str, int | str]:
    """Size in bytes and SHA-256 of head and tail of a file: what tells another file of the same name."""
    with open(path, "rb") as stream:
        head = stream.read(HASHED)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - HASHED))
        tail = stream.read(HASHED)
    return {"size": size, "head": hashlib.sha256(head).hexdigest(), "tail": hashlib.sha256(tail).hexdigest()}
