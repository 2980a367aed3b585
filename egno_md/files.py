"""Files that are whole or as they were before, and locks that end with the process that holds them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
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


def part_of(path: Path) -> Path:
    """Name for an unfinished file, hidden and in the target's own folder, so that the last step is one rename.

    What killed processes have left there of their own unfinished files is removed, once in each process.
    """
    real = Path(os.path.realpath(path))
    _sweep(real.parent)
    return real.with_name(f".{real.stem}.{_here()}-{os.getpid()}-{secrets.token_hex(2)}.part{real.suffix}")


def _here() -> str:
    """Tells this machine from others that see the same folder."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:4]


@functools.cache
def _sweep(folder: Path) -> None:
    """Remove unfinished files of this machine's processes that are gone."""
    own = re.compile(rf"\..+\.{_here()}-(\d+)-[0-9a-f]{{4}}\.part(\.\w+)?")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if (found := own.fullmatch(name)) and not _alive(int(found[1])):
                (folder / name).unlink(missing_ok=True)


def _alive(process: int) -> bool:
    """Whether there is such a process on this machine; True where the system cannot be asked."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


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
