"""Forecasts summed up, from one start or many: how far they are from what came, and what the checks found."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import counted
from ..molecule.checks import Tally


@dataclass(frozen=True)
class Accuracy:
    """How far forecasts are from what came at one step, the mean over their starts; Angstrom and ps.

    Attributes
    ----------
    futures : int or None
        Drawn from each start: of several it is their mean that is held against what came. None: nothing is drawn.
    of_all : bool
        The mean of all futures was asked for, of a forecast that could draw them.
    n_starts, n_known : int
        Starts, and those of which the run has this step.
    after, time : float
        Time of the step after the start; the time of the frame, of the first start that is known.
    error, still : float
        RMSD of the forecast and of the start frame that stands still, superposed.
    error_laboratory, still_laboratory : float
        The same without superposition.
    one : float or None
        Of several futures the first by itself, superposed.
    nearer : int
        Starts from which the forecast is nearer to what came than the start frame is, by the numbers that are printed.
    """

    futures: int | None
    of_all: bool
    n_starts: int
    n_known: int
    after: float
    time: float
    error: float
    still: float
    error_laboratory: float
    still_laboratory: float
    one: float | None
    nearer: int

    @classmethod
    def of(cls, surrogate: Any, starts: Sequence[int] | None = None, step: int | None = None) -> Accuracy | None:
        """Of an :class:`~egno_md.EGNOSurrogate` that has run; None where the run has none of these frames.

        Parameters
        ----------
        surrogate : EGNOSurrogate
        starts : sequence of int, optional
            Which of its starts; all.
        step : int, optional
            Which predicted frame, from 0; the last one that the run has for most of the starts of which it has any: so
            one start near the end of the run does not leave the first step alone.
        """
        results = surrogate.results
        rows = np.arange(len(results.frames)) if starts is None else np.asarray(starts)
        known = np.isfinite(results.rmsd[rows])  # (S, T)
        if not known.any():
            return None
        if step is None:
            step = int(np.flatnonzero(2 * known.sum(axis=0) > known.any(axis=1).sum())[-1])
        if not known[:, step].any():
            return None
        there = rows[known[:, step]]
        several = results.rmsd_mean is not None
        kinds = ["rmsd_mean" if several else "rmsd", "rmsd_static"]
        errors = [results[f"{kind}_superposed"][there, step] for kind in kinds]
        return cls(
            futures=surrogate.samples,
            of_all=surrogate.mean and surrogate.engine.draws,
            n_starts=len(rows),
            n_known=len(there),
            after=float(results.times[there[0], step] - surrogate.start_times[there[0]]),
            time=float(results.times[there[0], step]),
            error=float(errors[0].mean()),
            still=float(errors[1].mean()),
            error_laboratory=float(results[kinds[0]][there, step].mean()),
            still_laboratory=float(results[kinds[1]][there, step].mean()),
            one=float(results.rmsd_superposed[there, step].mean()) if several else None,
            nearer=sum(printed(a) < printed(b) for a, b in zip(*errors, strict=True)),
        )

    @property
    def single(self) -> bool:
        """One drawn future is held against what came: it is no guess at the future, and is not judged as one."""
        return self.futures == 1

    @property
    def what(self) -> str:
        """What is held against what came."""
        if self.futures is None:
            return "the mean of all futures" if self.of_all else "the forecast"
        return "one future" if self.single else f"the mean of the {self.futures} futures"

    @property
    def starts(self) -> str:
        """Of which starts it is the mean."""
        all_of_them = counted(self.n_starts, "start")
        return all_of_them if self.n_known == self.n_starts else f"{self.n_known} of {all_of_them}"

    @property
    def against_still(self) -> str:
        """Nearer, further or as far as the start frame, by the numbers that are printed."""
        ours, still = printed(self.error), printed(self.still)
        return "as far from" if ours == still else "nearer to" if ours < still else "further from"

    def line(self) -> str:
        """For the summary of the shell."""
        when = f"at t = {self.time:g} ps" if self.n_starts == 1 else f"{self.after:g} ps after the start"
        many = "" if self.n_starts == 1 else f", the mean of {self.starts}"
        said = f"RMSD of {self.what} to the trajectory {when}{many}: {self.error:.2f} A superposed"
        if self.single:
            return (
                f"{said}, {self.error_laboratory:.2f} A as it stands; one future is no guess at the future: --mean or "
                "--samples gives a mean to compare with the start frame standing still"
            )
        still = "the start frame standing still" if self.n_starts == 1 else "the start frames standing still"
        alone = "" if self.one is None else f"; one future by itself {self.one:.2f} A superposed"
        return (
            f"{said} ({still}: {self.still:.2f} A), {self.error_laboratory:.2f} A as it stands "
            f"({self.still_laboratory:.2f} A){alone}"
        )

    def short(self) -> str:
        """For one start among many."""
        said = f"{self.error:.2f} A at t = {self.time:g} ps"
        if self.single:
            return f"one future, {said}"
        alone = "" if self.one is None else f"; one future by itself {self.one:.2f} A"
        of = "" if self.futures is None else f"{self.what}, "
        return f"{of}{said} (standing still {self.still:.2f} A){alone}"

    def sentence(self) -> str:
        """For a page."""
        when = f"At t = {self.time:g} ps" if self.n_starts == 1 else f"{self.after:g} ps after the start"
        many = "" if self.n_starts == 1 else f", in the mean of {self.starts},"
        if self.single:
            return (
                f"{when}{many} one future is {self.error:.2f} Å RMSD, superposed, from what came. One future is no "
                "guess at the future: it is about 1.4 times as far from what came as the mean of all. --mean or "
                "--samples gives a mean to compare with the start frame."
            )
        than = "as" if self.against_still.startswith("as") else "than"
        said = (
            f"{when}{many} {self.what} is {self.against_still} what came {than} the start frame is: {self.error:.2f} Å "
            f"RMSD, superposed, and {self.still:.2f} Å."
        )
        if self.n_starts > 1:
            said += f" It is nearer from {self.nearer} of {counted(self.n_known, 'start')}."
        if self.one is not None:
            said += f" One future by itself: {self.one:.2f} Å."
        if self.n_starts > 1:
            return f"{said} egno-md evaluate gives intervals."
        return f"{said} One start says little; egno-md evaluate compares many."

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "of": self.what,
            "starts": self.n_starts,
            "known_starts": self.n_known,
            "after_ps": self.after,
            "rmsd_superposed_A": self.error,
            "rmsd_static_superposed_A": self.still,
            "rmsd_A": self.error_laboratory,
            "rmsd_static_A": self.still_laboratory,
            "one_future_superposed_A": self.error if self.single else self.one,
        }


def printed(value: float) -> float:
    """A distance at the precision that it is printed with, so that words and numbers say the same."""
    return round(value, 2)


def checked(surrogate: Any) -> tuple[Tally, list[str]]:
    """What the checks found in the forecasts from all starts: their tallies added up, and lines of findings.

    Of many starts that fail, the findings of the first are given, and how many others there are.
    """
    results = surrogate.results
    tallies = [checks.tally for checks in results.checks]
    found = functools.reduce(operator.add, tallies)
    failed = [i for i, tally in enumerate(tallies) if not tally.ok]
    if not failed or len(tallies) == 1:
        return found, list(found.messages)
    lines = [f"from frame {results.frames[failed[0]]}: {line}" for line in tallies[failed[0]].messages]
    if len(failed) > 1:
        lines.append(f"{len(failed)} of {len(tallies)} starts have findings")
    return found, lines
