"""The errors a user can meet. Each message names what was found, what was expected and the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EGNOError(Exception):
    """Base of every error that egno_md raises on purpose; the command line exits with 1."""


class UsageError(EGNOError, ValueError):
    """An argument that cannot be right, whatever the data (``horizon=0``); the command line exits with 2."""


class DataError(EGNOError, ValueError):
    """A file, a trajectory or an AtomGroup that cannot be worked with as it is."""


class ModelError(EGNOError, ValueError):
    """A model that is damaged, foreign, or does not fit the system or the trajectory."""


class UnphysicalError(ModelError):
    """A forecast that cannot go on: a frame is not finite, or already the first is not physical and was to end it."""


class SpacingError(ModelError, DataError):
    """Frames whose spacing in time does not fit a model's stride: the fault may lie with either."""


class MissingPackageError(EGNOError, ImportError):
    """A package that only some of egno_md needs is not installed."""


class OutputError(EGNOError, OSError):
    """An output that exists already, or could not be written whole."""


class StoppedError(EGNOError):
    """Work that was stopped because somebody asked for it, and can be gone on with."""


def few(items: Iterable[str], count: int) -> str:
    """The first of some items on one line, and how many more there are."""
    items = list(items)
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")


def counted(count: int, what: str) -> str:
    """A number and what there are so many of: 1 frame, 2 frames."""
    return f"{count} {what}{'s' if count != 1 else ''}"


def nearest(name: str, known: Iterable[str]) -> str:
    """What a message about an unknown name adds: the known one that is most like it, in letters of any case, or that
    begins with it; or nothing."""
    small = {one.lower(): one for one in known}
    begun = [one for one in small if len(name) > 2 and one.startswith(name.lower())]
    found = difflib.get_close_matches(name.lower(), list(small), 1) or begun
    return f" (did you mean {small[found[0]]!r}?)" if found else ""


def in_frame(frame: int | None) -> str:
    """How a message about a frame begins."""
    return "" if frame is None else f"frame {frame}: "
