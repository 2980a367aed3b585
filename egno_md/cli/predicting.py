"""What `egno-md predict` says of a forecast, and how it is stopped."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from ..errors import StoppedError
from ..molecule.checks import Tally

#: Signals that ask for an end.
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


class Stop:
    """Whether a signal asked for an end, and what is to be ended."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.surrogate: Any = None

    def watch(self, surrogate: Any) -> Any:
        """A signal lets it finish the window that is being made; its forecasts that are not streamed end at once."""
        surrogate.stop_when = lambda: bool(self.asked)
        self.surrogate = surrogate
        return surrogate


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Inside, SIGTERM, SIGINT and SIGHUP end the program with its exit code, 128 more than the number of the signal.

    A second signal does what it always did.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # no other can set handlers
        yield stop
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    # nohup has SIGHUP ignored: so it stays.
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        as_before()
        stop.asked.append(number)
        if stop.surrogate is None or not stop.surrogate.streaming:
            raise StoppedError("stopped; nothing was written")

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    except StoppedError as error:
        click.echo(str(error), err=True)
        sys.exit(128 + stop.asked[0])
    finally:
        as_before()


def summary_of(surrogate) -> dict[str, Any]:
    """What one forecast came to, ready for JSON; Angstrom and ps.

    Of a streamed forecast not every frame is listed, but the first, the last that the trajectory has, and the last.
    """
    results, model = surrogate.results, surrogate.model
    n_frames = results.times.shape[1]
    listed = range(n_frames)
    if isinstance(results.checks[0], Tally):
        known = [k for k in range(n_frames) if results.rmsd[0, k] == results.rmsd[0, k]]
        listed = sorted({0, *known[-1:], n_frames - 1})
    errors = {
        f"{name}_A": [float(results[name][0, k]) for k in listed]
        for name in ("rmsd", "rmsd_static", "rmsd_superposed", "rmsd_static_superposed")
    }
    return {
        "model": model.name,
        "atoms": len(surrogate.atoms),
        "start_frame": int(results.frames[0]),
        "start_time_ps": float(surrogate.start_times[0]),
        "frames": n_frames,
        "times_ps": [float(results.times[0, k]) for k in listed],
        "windows": -(-n_frames // (model.window.n_times * surrogate.substeps)),
        # One for each time; None where the trajectory does not have the frame.
        **{name: [value if value == value else None for value in values] for name, values in errors.items()},
        # Of futures that were drawn: the errors above are those of the first.
        **({} if results.ensemble is None else _drawn(surrogate)),
        "moved_A": float(results.moved[0, -1]),
        "checks": _checks(results.checks[0]),
        "files": [str(path) for path in results.files],
    }


def _drawn(surrogate) -> dict[str, Any]:
    """How many futures were drawn, and how far they are apart."""
    spread = surrogate.results.spread[0]
    known = len(spread) > 0 and bool((spread == spread).all())
    return {
        "samples": surrogate.samples,
        "seed": surrogate.seed,
        "spread_A": [float(value) for value in spread] if known else None,
    }


def _checks(checks) -> dict[str, Any]:
    """The worst frame of each physical check."""
    tally = checks.tally
    return {
        "ok": tally.ok,
        "findings": list(tally.messages),
        "bonds": tally.n_bonds,
        "largest_bond_deviation_A": tally.bond_deviation,
        "clashes": tally.clashes,
        "radius_of_gyration_ratio": list(tally.radius_ratio),
    }


def readable(summary: dict[str, Any]) -> str:
    times = summary["times_ps"]
    lines = [
        f"forecast   {summary['frames']} frames of {summary['atoms']} atoms with {summary['model']}, from "
        f"frame {summary['start_frame']} (t = {summary['start_time_ps']:g} ps) to t = {times[-1]:g} ps",
    ]
    if summary["windows"] > 1:
        lines.append(f"chained    {summary['windows']} windows: the error grows with each one")
    if "samples" in summary:
        spread = summary["spread_A"]
        apart = f", {sum(spread) / len(spread):.2f} A from their mean (mean of all atoms)" if spread else ""
        which = "; what follows is of the first" if summary["samples"] > 1 else ""
        lines.append(f"drawn      {summary['samples']} future(s) with the seed {summary['seed']}{apart}{which}")
    known = [k for k, value in enumerate(summary["rmsd_A"]) if value is not None]
    if known:
        k = known[-1]
        lines.append(
            f"accuracy   RMSD to the trajectory at t = {times[k]:g} ps: {summary['rmsd_superposed_A'][k]:.2f} A "
            f"superposed (the start frame standing still: {summary['rmsd_static_superposed_A'][k]:.2f} A), "
            f"{summary['rmsd_A'][k]:.2f} A as it stands ({summary['rmsd_static_A'][k]:.2f} A)"
        )
    else:
        lines.append(
            f"moved      {summary['moved_A']:.2f} A RMSD from the start; the run has none of these frames, so no error "
            "is known"
        )
    checks = summary["checks"]
    if checks["ok"]:
        lines.append(
            f"checks     passed: {checks['bonds']} bonds within {checks['largest_bond_deviation_A']:.2f} A of the "
            "start, no clashes, the size kept"
        )
    lines += [f"checks     FAILED: {finding}" for finding in checks["findings"]]
    lines += [f"written    {path}" for path in summary["files"]]
    return "\n".join(lines)
