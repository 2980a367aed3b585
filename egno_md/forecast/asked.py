"""Arguments of a forecast, checked before the work: numbers, flags, names of files, start frames."""

from __future__ import annotations

import numbers
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError, counted
from ..files import memory_of_machine
from ..trajectory.formats import format_of


def is_count(value: Any, least: int) -> bool:
    """Whether a value is a whole number of at least so many."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and value % 1 == 0 and value >= least


def whole_number(name: str, value: Any, most: int | None = None) -> int:
    """A number of at least 1 that is whole, of any type.

    Raises
    ------
    UsageError
        It is none, or more than `most`.
    """
    if not is_count(value, 1):
        raise UsageError(f"{name} (--{name}) must be a whole number of at least 1, found {value!r}")
    if most is not None and value > most:
        raise UsageError(f"{name} (--{name}) must be at most {most:,}, found {value}")
    return int(value)


def check_flags(**flags: Any) -> None:
    """Refuse what is neither True nor False: any text counts as true, "no" as well.

    Raises
    ------
    UsageError
    """
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise UsageError(f"{name} must be True or False, found {value!r}")


def check_memory(max_memory: Any) -> None:
    """Refuse a bound of memory that is no number of bytes.

    Raises
    ------
    UsageError
    """
    if max_memory in (None, "auto"):
        return
    if isinstance(max_memory, bool) or not isinstance(max_memory, numbers.Integral) or max_memory < 1:
        raise UsageError(f"max_memory must be a positive number of bytes or 'auto', found {max_memory!r}")


def check_room(starts: int, futures: int, frames: int, atoms: int) -> None:
    """Refuse forecasts that no memory of this machine can hold.

    Raises
    ------
    UsageError
    """
    size, room = 12 * starts * futures * frames * atoms, memory_of_machine()
    if size > room:
        raise UsageError(
            f"{counted(starts, 'start')} with {counted(futures, 'future')} of {frames} frames of {atoms} atoms take "
            f"{size / 2**30:.3g} GB, this machine has {room / 2**30:.3g}: ask for fewer, or for one future from one "
            "start with a file, which is written as it is made"
        )


def check_unphysical(what: Any, samples: int | None) -> str:
    """What a frame that fails the checks does, if it can be that.

    Raises
    ------
    UsageError
        It is nothing known, or takes one future where several are drawn.
    """
    if what not in ("warn", "stop", "relax"):
        raise UsageError(f"on_unphysical must be 'warn', 'stop' or 'relax', found {what!r}")
    if what != "warn" and (samples or 1) > 1:
        raise UsageError(f"on_unphysical={what!r} takes one sample: every future would end elsewhere")
    return what


def target_of(filename: Any, *, with_input: bool, substeps: int) -> Path:
    """The path that a name says, of a format that can hold the forecast.

    Raises
    ------
    UsageError
        It is no name, no format has its suffix, or the format knows one spacing and the frames have two.
    """
    if not isinstance(filename, (str, os.PathLike)):
        raise UsageError(f"filename must be the name of a file, such as 'out.dcd', found {filename!r}")
    path = Path(filename)
    if format_of(path).even and with_input and substeps > 1:
        raise UsageError(
            f"{path}: the frames of the run (--with-input) are a stride apart, those of the forecast {substeps} times "
            f"closer (--substeps {substeps}), and a {path.suffix} file holds evenly spaced frames only; write XTC, "
            "which stores the time of each"
        )
    return path


def start_frames(
    n_frames: int, frames: ArrayLike | None = None, start: Any = None, stop: Any = None, step: Any = None
) -> NDArray[np.int64]:
    """The numbers of start frames, from 0, of a trajectory of `n_frames`.

    Parameters
    ----------
    n_frames : int
    frames : array-like, optional
        Numbers, below zero from the end, one number alone, or a mask of `n_frames`.
    start, stop, step : int, optional
        A slice, in place of `frames`.

    Raises
    ------
    UsageError
        There is no such frame, or what was given says none.
    """
    if frames is None:
        try:
            return np.arange(n_frames)[slice(start, stop, step)]
        except (TypeError, ValueError) as error:  # no whole numbers, or a step of zero
            raise UsageError(
                f"start, stop and step are whole numbers or None, and step is not 0; found {start!r}, {stop!r}, "
                f"{step!r} ({error})"
            ) from error
    if not start is stop is step is None:
        raise UsageError("give the start frames by frames or by start, stop and step, not by both")
    try:
        chosen = np.atleast_1d(np.asarray(frames))
    except ValueError:  # rows of several lengths
        chosen = np.array([None])
    if chosen.dtype == bool:
        if chosen.shape != (n_frames,):
            raise UsageError(
                f"frames is a mask of {chosen.size} values, the trajectory has {n_frames} frames: give one for each"
            )
        return np.flatnonzero(chosen)
    if not chosen.size:
        return np.empty(0, np.int64)
    if chosen.ndim > 1 or chosen.dtype.kind not in "iuf" or (chosen != np.rint(chosen)).any():
        raise UsageError(f"frames are whole numbers, one number or a row of them, or a mask; found {frames!r}")
    wrong = chosen[(chosen < -n_frames) | (chosen >= n_frames)]
    if len(wrong):
        raise UsageError(f"there is no frame {wrong[0]:.0f}; the trajectory has frames 0 to {n_frames - 1}")
    return chosen.astype(np.int64) % n_frames
