"""The one rule of time: spacing and stride."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import MDAnalysis as mda
import numpy as np
from MDAnalysis import Universe

from ..errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


_FLOAT32_EPS = float(np.finfo(np.float32).eps)


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
        raise DataError(f"{trajectory_name(trajectory)} holds {len(trajectory)} frames but no times; {cure}")

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
            if not spacing > 0 or error > time_tolerance(spacing, times):
                trajectory[here]
                listed = ", ".join(f"{first + i}: {t:g} ps" for i, t in zip(sampled, times, strict=True))
                raise DataError(
                    f"the frames of {trajectory_name(trajectory)} are not evenly spaced in time (frame {listed}); "
                    f"keep an evenly spaced part of it, or, if only the stored times are wrong, {cure}"
                )
            spacings.append((n, spacing))
        first += n
    trajectory[here]

    # The longest file averages the rounding of single precision times (XTC) best.
    spacing = max(spacings)[1] if spacings else stated
    tolerance = time_tolerance(spacing, np.array([last_time]))
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


def time_tolerance(spacing: float, times: NDArray[np.float64]) -> float:
    return 1e-3 * abs(spacing) + 4 * _FLOAT32_EPS * float(np.abs(times).max())


def trajectory_name(trajectory: Any) -> str:
    filename = getattr(trajectory, "filename", None)
    return "the trajectory" if filename is None else str(filename)


def frames_per_stride(universe: Universe, stride_ps: float, every: int | None = None, *, what: str = "model") -> int:
    """How many of a trajectory's frames one stride is.

    Parameters
    ----------
    universe : Universe
    stride_ps : float
    every : int, optional
        What the user says; it must agree.
    what : str
        Whose stride it is, for the message.

    Raises
    ------
    DataError
        One frame alone, or a stride that is not a whole number of frames (or not `every` of them).
    """
    name = os.path.basename(str(universe.trajectory.filename or "the trajectory"))
    if universe.trajectory.n_frames < 2:
        raise DataError(f"{name} has {universe.trajectory.n_frames} frame(s); a run has at least two")
    spacing = frame_spacing(universe)
    ratio = stride_ps / spacing
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-3 * ratio:
        raise DataError(
            f"the frames of {name} are {spacing:g} ps apart, the {what} has a stride of {stride_ps:g} ps, which is not "
            "a whole number of them: save the run at another spacing, or, if its header is wrong, give the true "
            "spacing (dt=, --dt)"
        )
    if every is not None and every != round(ratio):
        raise DataError(
            f"the frames of {name} are {spacing:g} ps apart, so {every} of them are {every * spacing:g} ps; the {what} "
            f"has a stride of {stride_ps:g} ps, {round(ratio)} frame(s)"
        )
    return round(ratio)


def same_spacing(known: tuple[float, str] | None, found: tuple[float, str]) -> tuple[float, str]:
    """The spacing of all files, each given as (ps, name).

    Raises
    ------
    DataError
        Two files differ; both are named.
    """
    if known is None:
        return found
    if abs(known[0] - found[0]) > 1e-3 * known[0]:
        raise DataError(
            f"the frames of {known[1]} are {known[0]:g} ps apart, those of {found[1]} {found[0]:g} ps: give the stride "
            "in ps where it is a whole number of both (--stride), use files of one spacing, or, if a header is wrong, "
            "give the true spacing (--dt)"
        )
    return known
