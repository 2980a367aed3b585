"""Candidates judged on the last windows of the very run that is forecast; what is fitted to it does not know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UsageError, counted
from ..evaluation.calibration import FEWEST_BLOCKS, OUTSIDE, energy_score
from ..evaluation.statistics import block_bootstrap, independent_blocks, integrated_time
from ..forecast.forecasters import Forecaster, Static
from ..graph.windows import Run
from ..molecule.geometry import aligned, rmsd, superposed_rmsd
from .material import Judged

#: Futures of a window, windows at most and, of many atoms, at least; numbers of all futures of all windows, and of
#: those that are worked on at a time.
SAMPLES, MOST_WINDOWS, FEWEST_WINDOWS, ALL_NUMBERS, CHUNK_NUMBERS = 16, 100, 12, 2**26, 2**21

#: What a forecast may raise that a run is too short, too small or too still for.
UNFIT = (DataError, UsageError, ValueError, np.linalg.LinAlgError)

#: Share of the frames whose windows are judged.
SHARE = 1 / 3


def windows_at_most(n_atoms: int, n_times: int) -> int:
    """How many windows are judged."""
    return int(np.clip(ALL_NUMBERS // (SAMPLES * n_times * 3 * n_atoms), FEWEST_WINDOWS, MOST_WINDOWS))


@dataclass(frozen=True)
class Entry:
    """What one candidate is worth on the judged windows, at every step.

    Attributes
    ----------
    draws : bool
    error, error_laboratory : ndarray, shape (T,)
        RMSD in Angstrom of the mean forecast from what came, mean over the windows: every frame superposed on the one
        that came, and where they stand.
    energy : ndarray, shape (T,)
        Energy score in Angstrom, frames superposed on the start. Of a forecast that knows one future it is the RMSD.
    one_future : ndarray, shape (T,), or None
        RMSD of a single drawn future from the one that came, superposed.
    spread_over_error : ndarray, shape (T,), or None
        Of the drawn futures: 1 is calibrated, below 1 too sure.
    against_static : tuple of float
        Energy score, the mean over the steps, less that of the standing frame, with the ends of its 95 % interval (nan
        where the windows are too few).
    error_against_static : tuple of float
        The same of the error.
    """

    draws: bool
    error: NDArray[np.float64]
    error_laboratory: NDArray[np.float64]
    energy: NDArray[np.float64]
    one_future: NDArray[np.float64] | None
    spread_over_error: NDArray[np.float64] | None
    against_static: tuple[float, float, float]
    error_against_static: tuple[float, float, float]

    @property
    def score(self) -> float:
        """Energy score, the mean over the steps."""
        return float(self.energy.mean())


@dataclass(frozen=True, eq=False, repr=False)
class Hindcast:
    """Candidates on the last windows of a run; printed, it is their table.

    Attributes
    ----------
    times : ndarray, shape (T,)
        Of the steps in ps after the start.
    n_windows, n_blocks : int
        Windows that were judged, and how many of them are independent.
    entries : dict of str to Entry
        By name.
    left_out : dict of str to str
        Candidates that could not be fitted, and why.
    chosen : str
        Who forecasts.
    """

    times: NDArray[np.float64]
    n_windows: int
    n_blocks: int
    entries: dict[str, Entry]
    left_out: dict[str, str] = field(default_factory=dict)
    chosen: str = ""

    def __repr__(self) -> str:
        """The table, and what it comes to where one was chosen."""
        return "\n".join([*self.table(), *([f"{self.chosen}: {self.line()}"] if self.chosen else [])])

    @property
    def gains(self) -> bool:
        """Whether the choice is better than the standing frame beyond the interval; without one, better."""
        return self.beats_still(self.chosen)

    def beats_still(self, name: str, kind: int = 0) -> bool:
        """The same of any candidate, in the energy score (`kind` 0) or in the error (1)."""
        entry = self.entries[name]
        difference, _, high = (entry.against_static, entry.error_against_static)[kind]
        return (high if high == high else difference) < 0

    def line(self) -> str:
        """What the chosen forecast is worth, for people."""
        one, still = self.entries[self.chosen], self.entries[Static.name]
        n = len(self.times)
        after = f"after {counted(n, 'frame')} ({self.times[-1]:g} ps)"
        behind = f"({counted(self.n_blocks, 'independent window')})"
        if self.chosen == Static.name:
            return f"the standing frame errs {still.error[-1]:.2f} A {after} {behind}"
        what = "the mean of its futures errs " if one.draws else ""
        said = f"{what}{one.error[-1]:.2f} A {after} against {still.error[-1]:.2f} A for the standing frame {behind}"
        if one.one_future is not None:
            said += f"; one future is {one.one_future[-1]:.2f} A from what came"
        return said

    def verdict(self) -> str:
        """Plain words where there is little to gain, or not by who was chosen; empty where there is."""
        if self.chosen == Static.name or not self.gains:
            best = min(self.entries, key=lambda name: self.entries[name].score)
            if self.chosen != Static.name and self.beats_still(best):
                beyond = " beyond its interval" if self.n_blocks >= FEWEST_BLOCKS else ""
                return f"{self.chosen} does not beat the standing frame here{beyond}, {best} does"
            return (
                "nothing beats the standing frame here beyond its interval: this run says too little about its future"
            )
        difference, low, high = self.entries[self.chosen].error_against_static
        if not self.entries[self.chosen].draws or high < 0:
            return ""
        if np.isnan(low):
            return (
                f"{counted(self.n_blocks, 'independent window')} of {FEWEST_BLOCKS} that are needed to say whether "
                "this is chance: a longer run tells"
            )
        than = "worse" if low > 0 else "no better"
        return f"the futures say how uncertain it is; as a single guess their mean is {than} than the standing frame"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; Angstrom and ps, None for what is not known."""

        def plain(value: Any) -> Any:
            if isinstance(value, (np.ndarray, tuple)):
                return [plain(v) for v in value]
            if isinstance(value, (bool, str)) or value is None:
                return value
            return float(value) if np.isfinite(value) else None

        return {
            "chosen": self.chosen,
            "times_ps": plain(self.times),
            "windows": self.n_windows,
            "independent_windows": self.n_blocks,
            "gains": self.gains,
            "candidates": {
                name: {key: plain(value) for key, value in vars(one).items()} | {"score": one.score}
                for name, one in self.entries.items()
            },
            "left_out": dict(self.left_out),
        }

    def table(self) -> list[str]:
        """Lines for people: every candidate, the best first."""
        steps = [k for k in (0, 1, 3, 7) if k < len(self.times)]
        heads = "".join(f"{self.times[k]:>8g}" for k in steps)
        width, names = 9 + 8 * len(steps), max(map(len, self.entries))
        lines = [
            f"hindcast   {counted(self.n_windows, 'window')}, {self.n_blocks} independent; energy score, RMSD of the "
            "mean forecast, spread over error; A, at t/ps",
            f"{'':<{names + 2}}{'energy':>8}{heads}{'RMSD':>8}{heads}{'s/e':>8}{heads}",
        ]
        for name, one in sorted(self.entries.items(), key=lambda item: item[1].score):
            ratio = one.spread_over_error
            cells = [f"{one.score:>8.3f}" + "".join(f"{one.energy[k]:>8.3f}" for k in steps)]
            cells.append(f"{one.error.mean():>8.3f}" + "".join(f"{one.error[k]:>8.3f}" for k in steps))
            cells.append(f"{'':>8}" + "".join(f"{ratio[k]:>8.2f}" for k in steps) if ratio is not None else "")
            mark = "*" if name == self.chosen else " "
            lines.append(f"{mark} {name:<{names}}" + "".join(f"{cell:<{width - 1}}" for cell in cells).rstrip())
        return lines + [f"  {name}: {why}" for name, why in self.left_out.items()]


class _Scores:
    """What is gathered of one candidate, window by window."""

    def __init__(self) -> None:
        self.energy: list[NDArray] = []  # (S, T) each
        self.errors: list[NDArray] = []  # (S, 2, T): superposed, laboratory
        self.one: list[NDArray] = []  # (S, T)
        self.squares = np.zeros((2, 0))  # variance of the members, squared error of their mean, summed

    def add(self, mean: NDArray, members: NDArray | None, true: NDArray, start: NDArray) -> None:
        """Mean forecasts and what came (S, T, N, 3), members (S, K, T, N, 3), starts (S, 1, N, 3)."""
        self.errors.append(np.stack([superposed_rmsd(mean, true), rmsd(mean, true)], axis=1))
        came = aligned(true, start)
        if members is None:
            self.energy.append(rmsd(aligned(mean, start), came))
            return
        drawn = aligned(members, start[:, None])
        self.energy.append(energy_score(drawn, came)[:, :-1])
        self.one.append(superposed_rmsd(members[:, 0], true))
        k, axes = drawn.shape[1], (0, 2, 3)
        variance = (1 + 1 / k) * drawn.var(axis=1, ddof=1).sum(axis=axes)
        found = np.stack([variance, ((drawn.mean(axis=1) - came) ** 2).sum(axis=axes)])  # (2, T)
        self.squares = found if not self.squares.size else self.squares + found


def _scores(forecaster: Forecaster, judged: Judged, steps: NDArray[np.int64], rng: np.random.Generator) -> _Scores:
    """What one candidate gives for all windows."""
    scores = _Scores()
    for run, starts, low in judged.windows:
        numbers = SAMPLES * len(steps) * 3 * run.builder.n_atoms
        for some in np.array_split(starts, -(-len(starts) * numbers // CHUNK_NUMBERS)):
            if not len(some):
                continue
            true = run.positions[some[:, None] + steps * run.every].astype(np.float64)  # (S, T, N, 3)
            start = run.positions[some].astype(np.float64)[:, None]  # (S, 1, N, 3)
            mean = futures(forecaster, run, some, low, steps, 1, None)[:, 0]
            members = None
            if getattr(forecaster, "draws", False):
                members = futures(forecaster, run, some, low, steps, SAMPLES, rng)
            if not (np.isfinite(mean).all() and (members is None or np.isfinite(members).all())):
                raise DataError("it gave numbers that are not finite")
            scores.add(mean, members, true, start)
    return scores


def judge(
    candidates: Mapping[str, Forecaster],
    judged: Judged,
    stride_ps: float,
    *,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda count: None,
) -> tuple[Hindcast, dict[str, NDArray[np.float64]], tuple[NDArray[np.int64], int]]:
    """Let candidates forecast windows whose future is known.

    Parameters
    ----------
    candidates : mapping of str to Forecaster
        The standing frame among them.
    judged : Judged
    stride_ps : float
    seed : int
        Of the futures, the same for all of them, and of the bootstrap.
    progress : callable
        Called with 1 after each candidate.

    Returns
    -------
    Hindcast
        Without a choice.
    scores : dict of str to ndarray, shape (2, S)
        Energy score and error of every window, the mean over the steps.
    blocks : ndarray of int, shape (S,), and int
        Which run each window is from, and how many windows in a row are a block.
    """
    steps = np.asarray(judged.known.steps)
    groups = np.repeat(np.arange(len(judged.windows)), [len(starts) for _, starts, _ in judged.windows])
    found: dict[str, _Scores] = {}
    left_out: dict[str, str] = {}
    for name, forecaster in candidates.items():
        try:
            found[name] = _scores(forecaster, judged, steps, np.random.default_rng(seed))
        except UNFIT as error:
            left_out[name] = " ".join(str(error).split())
        progress(1)
    per_window = {
        name: np.stack([np.concatenate(s.energy).mean(axis=1), np.concatenate(s.errors)[:, 0].mean(axis=1)])
        for name, s in found.items()
    }
    still = per_window[Static.name]
    spacings = np.concatenate([np.diff(starts) for _, starts, _ in judged.windows])
    between = float(np.median(spacings)) if len(spacings) else 1.0
    series = [still[1][groups == g] for g in range(len(judged.windows))]
    block = int(np.ceil(steps[-1] * judged.known.every / between)) + int(np.ceil(integrated_time(series)))
    n_blocks = independent_blocks(groups, block)
    entries = {}
    for name, s in found.items():
        less = [interval(per_window[name][k] - still[k], groups, block, n_blocks, seed) for k in (0, 1)]
        errors = np.concatenate(s.errors).mean(axis=0)  # (2, T)
        ratio = None
        if s.one:
            variance, squared = s.squares
            ratio = np.sqrt(np.divide(variance, squared, out=np.full(len(squared), np.nan), where=squared > 0))
        entries[name] = Entry(
            bool(s.one),
            errors[0],
            errors[1],
            np.concatenate(s.energy).mean(axis=0),
            np.concatenate(s.one).mean(axis=0) if s.one else None,
            ratio,
            *less,
        )
    return Hindcast(steps * stride_ps, len(groups), n_blocks, entries, left_out), per_window, (groups, block)


def interval(
    values: NDArray[np.float64], groups: NDArray[np.int64], block: int, n_blocks: int, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of values (S,) that are correlated, and the ends of its 95 % interval; nan where the blocks are too few."""
    if n_blocks < FEWEST_BLOCKS:
        return float(values.mean()), np.nan, np.nan
    drawn = block_bootstrap(values, groups, block, seed=seed)
    low, high = np.quantile(drawn, [OUTSIDE / 2, 1 - OUTSIDE / 2])
    return float(values.mean()), float(low), float(high)


def futures(
    forecaster: Forecaster,
    run: Run,
    starts: NDArray[np.int64],
    low: int,
    steps: NDArray[np.int64],
    samples: int,
    generator: np.random.Generator | None,
) -> NDArray[np.float64]:
    """Futures (S, K, T, N, 3) of starts whose past reaches back to frame `low`; as much of it as there is."""
    there = np.minimum((starts - low) // run.every + 1, max(1, forecaster.n_past))  # (S,)
    out = np.empty(0)
    for n_past in np.unique(there):
        here = np.flatnonzero(there == n_past)
        frames = starts[here][:, None] + np.arange(1 - n_past, 1) * run.every  # (S', P)
        options: dict[str, Any] = {}
        if getattr(forecaster, "reads_boxes", False):  # a network reads so many frames and no fewer
            frames = np.pad(frames, ((0, 0), (forecaster.n_past - n_past, 0)), mode="edge")
            options["boxes"] = None if run.boxes is None else list(run.boxes[starts[here]])
        past = run.positions[frames]  # (S', P, N, 3)
        some = np.asarray(forecaster(past, steps, samples, generator, **options), np.float64)
        out = out if out.size else np.empty((len(starts), *some.shape[1:]))
        out[here] = some
    return out
