"""Which stride and horizon of a run are worth forecasting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UsageError, counted
from ..forecast.forecasters import InternalMotion
from ..forecast.subject import Subject
from ..molecule.default import taken_instead
from ..molecule.geometry import aligned
from ..trajectory.clock import same_spacing
from .result import plain


@dataclass(frozen=True)
class Suggestion:
    """Which stride and horizon of a run are worth forecasting.

    Attributes
    ----------
    lags : ndarray, shape (L,)
        ps.
    memory : ndarray, shape (L,)
        Autocorrelation of the displacements from the mean structure, in the aligned frame.
    persistence : ndarray, shape (L,)
        Correlation of the displacement over one lag with that over the next: 1 for straight flight, 0 for a random
        walk, -0.5 for noise without memory.
    static, linear, mean_structure, ar1 : ndarray, shape (L,)
        Mean squared error per coordinate of these forecasts at each lag, Angstrom squared, in the aligned frame.
    static_laboratory : ndarray, shape (L,)
        The static error where the run stands, rotation and translation included.
    stride_ps, horizon_ps : float
        The suggestion; nan where no spacing of this run is worth it.
    n_times : int
        Strides per window.
    reasons : tuple of str
        Why.
    """

    lags: NDArray[np.float64]
    memory: NDArray[np.float64]
    persistence: NDArray[np.float64]
    static: NDArray[np.float64]
    linear: NDArray[np.float64]
    mean_structure: NDArray[np.float64]
    ar1: NDArray[np.float64]
    static_laboratory: NDArray[np.float64]
    stride_ps: float
    horizon_ps: float
    n_times: int
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; not a number is None."""
        return plain({f.name: getattr(self, f.name) for f in fields(self)})

    def table(self) -> str:
        """For people."""
        heads = ("lag/ps", "memory", "persistence", "static", "linear", "mean str.", "AR(1)", "static, lab")
        columns = (self.lags, self.memory, self.persistence, self.static, self.linear, self.mean_structure, self.ar1)
        lines = ["errors in A^2 per coordinate, superposed on the mean structure", "".join(f"{h:>13}" for h in heads)]
        for row in zip(*columns, self.static_laboratory, strict=True):
            cells = [f"{row[0]:>13g}", *(f"{v:>13.3f}" for v in row[1:3]), *(f"{v:>13.4f}" for v in row[3:])]
            lines.append("".join(cells))
        lines.append("")
        if np.isnan(self.stride_ps):
            lines.append("suggested  to train a model: nothing at this spacing")
        else:
            lines.append(
                f"suggested  to train a model: stride {self.stride_ps:g} ps, a window of "
                f"{counted(self.n_times, 'frame')}, horizon {self.horizon_ps:g} ps (egno-md train --stride "
                f"{self.stride_ps:g} --window {self.n_times}); egno-md predict without a model has no such bounds"
            )
        return "\n".join(lines + [f"because    {reason}" for reason in self.reasons])


#: Memory above which the start frame says more than the mean structure: static 2 (1 - C), mean structure 1.
HALF = 0.5

SUGGEST_FRAMES, ORIGINS = 20000, 2000


def suggest(
    source: Any,
    *trajectories: str | os.PathLike,
    select: str = "ca",
    n_times: int = 8,
    dt: float | None = None,
) -> Suggestion:
    """Say which stride and window a model should have that is trained on a run, and whether it can gain anything.

    A model can gain where the start still tells something about the future but not all of it. With C(k) the
    autocorrelation of the internal displacements, the static frame errs by ``2 (1 - C)``, the mean structure by 1 and
    the best linear memory by ``1 - C^2`` times their variance. The horizon is the longest lag with C above 1/2, up to
    which the start frame says more than the mean structure; the stride is the horizon over `n_times`.

    Parameters
    ----------
    source, *trajectories, dt
        See :func:`evaluate`. Of more than 20000 frames per file, the first ones are read.
    select : str
        The atoms that are to be forecast.
    n_times : int
        T, the frames of a window.

    Raises
    ------
    DataError
        Fewer than 20 frames, or files of different spacing.
    """
    if n_times < 1:
        raise UsageError(f"n_times (--window) must be at least 1, found {n_times}")
    runs: list[np.ndarray] = []
    spacings: list[tuple[float, str]] = []
    n_atoms = 0
    for k, subject in enumerate(Subject.each(source, trajectories, None, select=select, dt=dt)):
        spacings.append((subject.clock.spacing, str(trajectories[k]) if trajectories else "the run"))
        same_spacing(spacings[0], spacings[-1])
        runs += [run.positions for run in subject.runs(stop=SUGGEST_FRAMES)]  # (F, N, 3)
        n_atoms = len(subject.atoms)
    spacing = spacings[0][0]
    longest = max(len(x) for x in runs)
    if longest < 20:
        raise DataError(
            f"the longest run has {counted(longest, 'frame')}; at least 20 are needed to see how fast it forgets"
        )
    if n_atoms < 4:
        raise DataError(
            f"the selection {select!r} has {counted(n_atoms, 'atom')}; internal motion needs at least 4: "
            f"{taken_instead(subject.atoms.universe)}"
        )
    mean = InternalMotion.fit(runs).mean
    fitted = [aligned(x, mean) - mean for x in runs]  # (F, N, 3)
    variance = float(np.mean(np.concatenate(fitted) ** 2))
    lags = np.unique(np.round(np.geomspace(1, max(1, longest // 4), 16)).astype(int))
    rows = np.array([_at_lag(runs, fitted, int(lag)) for lag in lags])  # (L, 4)
    memory = 1 - rows[:, 1] / (2 * variance)
    stride, n_times, reasons = _recommend(lags, memory, rows, spacing, n_times)
    return Suggestion(
        lags=lags * spacing,
        memory=memory,
        persistence=rows[:, 3],
        static=rows[:, 1],
        linear=rows[:, 2],
        mean_structure=np.full(len(lags), variance),
        ar1=variance * (1 - np.clip(memory, 0, 1) ** 2),
        static_laboratory=rows[:, 0],
        stride_ps=stride,
        horizon_ps=stride * n_times,
        n_times=n_times,
        reasons=tuple(reasons),
    )


def _at_lag(runs: Sequence[np.ndarray], fitted: Sequence[np.ndarray], lag: int) -> list[float]:
    """Static error in the laboratory, static and linear error in the aligned frame, persistence."""
    sums = np.zeros(5)
    counts = np.zeros(2)
    for x, y in zip(runs, fitted, strict=True):
        origins = np.arange(0, len(x) - lag, max(1, (len(x) - lag) // ORIGINS))
        step = y[origins + lag] - y[origins]  # (O, N, 3)
        sums[0] += np.sum((x[origins + lag].astype(np.float64) - x[origins]) ** 2)
        sums[1] += np.sum(step**2)
        counts[0] += step.size
        past = origins >= lag
        before = y[origins[past]] - y[origins[past] - lag]  # (O', N, 3)
        sums[2] += np.sum((step[past] - before) ** 2)
        sums[3] += np.sum(step[past] * before)
        sums[4] += np.sum(step[past] ** 2 + before**2) / 2
        counts[1] += before.size
    persistence = sums[3] / sums[4] if sums[4] > 0 else 0.0
    return [sums[0] / counts[0], sums[1] / counts[0], sums[2] / max(counts[1], 1), persistence]


def _recommend(
    lags: np.ndarray, memory: np.ndarray, rows: np.ndarray, spacing: float, n_times: int
) -> tuple[float, int, list[str]]:
    """Stride in ps, frames per window, and why."""
    linear_wins = rows[:, 2] < rows[:, 1]
    remembered = memory >= HALF
    reasons = []
    if not remembered[0] and not linear_wins[0]:
        reasons.append(
            f"one frame ({spacing:g} ps) later the memory of the internal motion is {memory[0]:.2f}: below {HALF} the "
            "start frame errs more than the mean structure, and a model would learn the mean structure; save the run "
            "more finely, or forecast atoms that move more slowly"
        )
        return np.nan, n_times, reasons
    lost = np.flatnonzero(~remembered)
    end = int(lost[0]) if len(lost) else len(lags)
    last = max(end - 1, 0)
    if len(lost) and last < end:  # between two lags of the table by a straight line
        a, b = memory[last], memory[end]
        frames = lags[last] + (lags[end] - lags[last]) * ((a - HALF) / (a - b) if a > b else 0.0)
        frames = max(float(frames), float(lags[0]))
        reasons.append(
            f"up to {frames * spacing:.3g} ps the start frame says more about the internal motion than the mean "
            f"structure does (memory above {HALF}); later forecasts tend to the mean structure"
        )
    else:
        frames = float(lags[-1])
        reasons.append(
            f"the memory is still {memory[-1]:.2f} at {frames * spacing:g} ps, a quarter of the longest run: slower "
            "motion cannot be judged on runs of this length"
        )
    stride_frames = max(1, int(frames // n_times))
    k = int(np.argmin(np.abs(lags - stride_frames)))
    if frames < n_times:
        reasons.append(
            f"that is less than {n_times} frames of this run: take {counted(max(1, int(frames)), 'frame')} per window, "
            "or save the run more finely"
        )
        n_times = max(1, int(frames))
    gain = 1 - (1 - memory[k] ** 2) / min(2 * (1 - memory[k]), 1.0) if memory[k] < 1 else 0.0
    if linear_wins[k]:
        reasons.append(
            f"at one stride atoms still fly on: linear extrapolation errs less than the static frame "
            f"(persistence {rows[k, 3]:+.2f})"
        )
    else:
        reasons.append(
            f"at one stride persistence is {rows[k, 3]:+.2f} (-0.5: noise without memory, 0: random walk), so the "
            f"velocity says little; the best linear memory gains {gain:.0%} over the better of the two"
        )
    if rows[k, 0] > 2 * rows[k, 1]:
        reasons.append(
            "most of the displacement is rotation and translation of the whole molecule, which no internal forecast "
            "predicts: compare errors with the static frame, not with zero"
        )
    return stride_frames * spacing, n_times, reasons
