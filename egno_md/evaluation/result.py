"""What an evaluation found: errors, intervals and a verdict, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import counted
from .calibration import Calibration
from .quality import Quality
from .text import columns, wrapped

#: Fewer independent blocks than this give no interval.
MIN_BLOCKS = 4

#: Atoms below which shapes say little, and errors are judged where the frames stand.
FEWEST_ATOMS = 4


@dataclass(frozen=True)
class Scores:
    """Errors of a model beside those of the baselines, Angstrom squared.

    Attributes
    ----------
    errors : dict of str to ndarray (T,)
        Mean squared error per coordinate at every step: ``"model"`` and every registered free forecast, such as
        ``"static"``, ``"AR(1)"`` and ``"regression"``; see :func:`egno_md.forecast.free_forecasts`.
    intervals : dict of str to ndarray (T, 2)
        95 % intervals of the errors; nan where the data hold fewer than four independent blocks.
    skill : ndarray, shape (T,)
        ``1 - error / error of the best free forecast`` at every step.
    skill_interval : ndarray, shape (T, 2)
        From the same resamples for model and baselines; the best baseline is chosen anew in each of them.
    f_skill, a_skill : tuple of float
        Skill of F-MSE and A-MSE with the ends of its interval.
    gains : dict of str to ndarray (T, 3)
        ``1 - error / error of the start frame standing still`` of everyone, with the ends of its interval, from the
        same resamples for both; empty where nobody stands still.
    """

    errors: dict[str, NDArray[np.float64]]
    intervals: dict[str, NDArray[np.float64]]
    skill: NDArray[np.float64]
    skill_interval: NDArray[np.float64]
    f_skill: tuple[float, float, float]
    a_skill: tuple[float, float, float]
    gains: dict[str, NDArray[np.float64]] = field(default_factory=dict, kw_only=True)

    @property
    def f_mse(self) -> dict[str, float]:
        """Error at the last step, of the model and of every baseline."""
        return {name: float(e[-1]) for name, e in self.errors.items()}

    @property
    def a_mse(self) -> dict[str, float]:
        """Mean error of all steps."""
        return {name: float(e.mean()) for name, e in self.errors.items()}


@dataclass(frozen=True)
class Evaluation(Scores):
    """What a model is worth: errors where the frames stand, those of the shape alone, and what was looked at beside.

    The attributes of :class:`Scores` are errors in the laboratory's frame of reference, as the paper has them: most of
    them is rotation and translation of the molecule, which nobody forecasts. The verdict goes by the others.

    Attributes
    ----------
    model : str
        Its name.
    times : ndarray, shape (T,)
        ps after the start.
    superposed : Scores, optional
        Errors of frames superposed on what came; None for windows that are no molecules.
    n_windows, n_runs, n_atoms : int
        What was judged; `n_atoms` of the largest system.
    of_windows : int, optional
        Windows that there are.
    block : int
        Windows per block of the bootstrap.
    n_blocks : int
        Independent blocks in the data.
    quality : Quality, optional
        Of chains, if any were asked for.
    calibration : Calibration, optional
        Of drawn futures, if any were asked for.
    as_predicted, as_predicted_superposed : ndarray, shape (T,), optional
        Errors of the model's frames before they are brought back to a local geometry (``ModelSpec.keep_bonds``), where
        the steps are those of one window: what physical frames cost.
    prior, prior_superposed : ndarray, shape (T,), optional
        Errors of the regression alone that the model corrects (``ModelSpec.prior``), for the steps of one window.
    network_gain : tuple of float, optional
        What the network takes off the A-MSE of that regression, as a share of it, with the ends of its interval; of the
        frames as predicted, nothing superposed.
    fitted_frames, learned_frames : int, optional
        Frames that the baselines were fitted to, and those that the model learned from, where these are more.
    notes : tuple of str
        What to know before the numbers are believed.
    """

    model: str
    times: NDArray[np.float64]
    n_windows: int
    n_runs: int
    n_atoms: int
    block: int
    n_blocks: int
    superposed: Scores | None = None
    quality: Quality | None = None
    calibration: Calibration | None = None
    as_predicted: NDArray[np.float64] | None = None
    as_predicted_superposed: NDArray[np.float64] | None = None
    prior: NDArray[np.float64] | None = None
    prior_superposed: NDArray[np.float64] | None = None
    network_gain: tuple[float, float, float] | None = None
    of_windows: int | None = None
    fitted_frames: int | None = None
    learned_frames: int | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def judged(self) -> Scores:
        """What the verdict goes by: the superposed errors where there are shapes to superpose."""
        return self if self.superposed is None or self.n_atoms < FEWEST_ATOMS else self.superposed

    @property
    def judged_by(self) -> str:
        """The same in words."""
        return "nothing superposed" if self.judged is self else "superposed on what came"

    @property
    def said_windows(self) -> str:
        """How many windows were judged, and of how many, in words."""
        of = "" if self.of_windows in (None, self.n_windows) else f" of {self.of_windows}"
        return f"{self.n_windows}{of} windows"

    @property
    def best_baseline(self) -> list[str]:
        """The best baseline at every step, by the errors that are judged."""
        names = [name for name in self.errors if name != "model"]
        return [names[int(k)] for k in np.argmin([self.judged.errors[name] for name in names], axis=0)]

    @property
    def outcome(self) -> list[str]:
        """At every step ``"better"`` or ``"worse"`` than the best baseline; ``"undecided"``: 0 is in the interval."""
        low, high = self.judged.skill_interval.T
        return np.where(low > 0, "better", np.where(high < 0, "worse", "undecided")).tolist()

    @property
    def verdict(self) -> str:
        """One sentence: is the forecast better than what is there for nothing, or worse?"""
        if self.learned_frames is None:
            return self._verdict()
        return (
            f"{self._verdict()} (of baselines fitted to {self.fitted_frames} frames of this run; the model learned "
            f"from {self.learned_frames})"
        )

    def _verdict(self) -> str:
        n, skill = len(self.times), self.judged.skill
        if np.isnan(self.judged.skill_interval).any():
            better, worse = int((skill > 0).sum()), int((skill < 0).sum())
            return (
                f"better than every baseline at {better} of {n} steps and worse than the best one at {worse}, but the "
                f"data are too few for an interval: {counted(self.n_blocks, 'independent block')}, {MIN_BLOCKS} are "
                "needed"
            )
        steps = {name: np.flatnonzero(np.asarray(self.outcome) == name) for name in ("better", "worse", "undecided")}
        if len(steps["better"]) == n:
            return "better than every baseline at every step, beyond the interval"

        def where(name: str) -> str:
            if len(steps[name]) == n:
                return "at every step"
            return f"at {len(steps[name])} of {n} (t/ps = {', '.join(f'{t:g}' for t in self.times[steps[name]])})"

        said = [f"better than every baseline at {len(steps['better'])} of {n} steps"]
        if len(steps["worse"]):
            best = dict.fromkeys(self.best_baseline[k] for k in steps["worse"])
            said.append(
                f"worse than the best one {where('worse')}, beyond the interval: take {' or '.join(best)} there"
            )
        if len(steps["undecided"]):
            said.append(f"not beyond the interval, for better or worse, {where('undecided')}")
        return "; ".join(said)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; not a number is None."""
        apart = ("quality", "superposed", "calibration")
        out: dict[str, Any] = {"model": self.model, "times": self.times}
        out |= {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        out.update(f_mse=self.f_mse, a_mse=self.a_mse, best_baseline=self.best_baseline)
        out.update(outcome=self.outcome, judged_by=self.judged_by, verdict=self.verdict)
        out["superposed"] = None
        if self.superposed is not None:
            errors = {f.name: getattr(self.superposed, f.name) for f in fields(self.superposed)}
            out["superposed"] = {**errors, "f_mse": self.superposed.f_mse, "a_mse": self.superposed.a_mse}
        out["calibration"] = None if self.calibration is None else self.calibration.as_dict()
        out["quality"] = None
        if self.quality is not None:
            out["quality"] = {
                "n_chains": self.quality.n_chains,
                "chain_length": self.quality.chain_length,
                "findings": self.quality.findings,
                "rows": {name: dict(chains=a, run=b, floor=c) for name, a, b, c in self.quality.rows()},
            }
        return plain(out)

    def _network(self) -> str:
        """What the network adds to its regression, in words."""
        if self.network_gain is None:
            return ""
        gain, low, high = self.network_gain
        said = f"; the network takes {gain:+.2%} off it"
        if np.isnan(low):
            return said
        return f"{said} [{low:+.2%}, {high:+.2%}]{'' if low > 0 else ': nothing beyond the interval'}"

    def table(self) -> str:
        """For people."""
        lines = [
            f"model      {self.model}",
            f"data       {self.said_windows} of {counted(self.n_runs, 'run')}, up to {self.n_atoms} atoms; "
            f"{counted(self.n_blocks, 'independent block')} of {self.block} windows",
        ]
        lines.append(wrapped("verdict", f"{self.judged_by}: {self.verdict}"))
        for scores, where in ((self.superposed, "superposed on what came"), (self, "nothing is superposed")):
            if scores is not None:
                said = f"mean squared, per coordinate, A^2; {where} (* best baseline; last step: F-MSE)"
                lines += ["", wrapped("error", said), "", *self._columns(scores)]
        lines.append("")
        if self.as_predicted is not None:
            superposed = ""
            if self.superposed is not None and self.as_predicted_superposed is not None:
                now, before = self.superposed.a_mse["model"], self.as_predicted_superposed.mean()
                superposed = f"; superposed {now:.4f} and {before:.4f}"
            lines.append(
                f"geometry   brought back in every frame: A-MSE {self.a_mse['model']:.4f}, as predicted "
                f"{self.as_predicted.mean():.4f}{superposed}"
            )
        if self.prior is not None:
            superposed = "" if self.prior_superposed is None else f" (superposed {self.prior_superposed.mean():.4f})"
            lines.append(
                f"prior      the regression that the operator corrects: A-MSE {self.prior.mean():.4f}{superposed} by "
                f"itself{self._network()}"
            )
        if self.calibration is not None:
            lines += ["", *self.calibration.table()]
        if self.quality is not None:
            q = self.quality
            lines += [
                "",
                f"chains     {q.n_chains} of {counted(q.chain_length, 'frame')}; floor: second half of the run beside "
                "its first",
                f"{'':<42}{'chains':>12}{'run':>12}{'floor':>12}",
                *(
                    f"{name:<42}" + "".join(f"{'-' if np.isnan(v) else format(v, '.3f'):>12}" for v in values)
                    for name, *values in q.rows()
                ),
                *(wrapped("finding", finding) for finding in q.findings or ("none: the chains pass for the run",)),
            ]
        return "\n".join(lines + [wrapped("note", note) for note in self.notes])

    def _columns(self, scores: Scores) -> list[str]:
        """Errors of everybody at every step and their mean, with the best baseline marked; skill below them."""

        def between(ends: Sequence[Sequence[float]], how: Callable[[float], str]) -> list[tuple[str, list[str]]]:
            if np.isnan(np.asarray(ends, float)).all():
                return []
            sides = zip(("  95 % from", "  to"), np.asarray(ends, float).T, strict=True)
            return [(side, ["" if np.isnan(x) else how(x) + " " for x in values]) for side, values in sides]

        errors = {name: np.append(values, scores.a_mse[name]) for name, values in scores.errors.items()}
        baselines = [name for name in errors if name != "model"]
        best = np.argmin([errors[name] for name in baselines], axis=0)
        rows = [("model", [_number(x) + " " for x in errors["model"]])]
        rows += between([*scores.intervals["model"], (np.nan, np.nan)], _number)
        for row, name in enumerate(baselines):
            rows.append((name, [_number(x) + "* "[int(best[k] != row)] for k, x in enumerate(errors[name])]))
        skill, *ends = np.vstack([np.column_stack([scores.skill, scores.skill_interval]), scores.a_skill]).T
        rows.append(("skill", [_percent(x) + " " for x in skill]))
        rows += between(np.transpose(ends), _percent)
        return columns(("t/ps", *(f"{t:g} " for t in self.times), "A-MSE "), rows)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{value:+.1%}"


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
