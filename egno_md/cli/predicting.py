"""What `egno-md predict` says of a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UsageError, counted
from ..forecast.summed import Accuracy, checked
from ..molecule.checks import SIZE_FACTOR, Tally
from .output import written

#: Starts that have a line each in the summary, at most.
MOST_STARTS = 20


def start_frames(one: int | None, several: str | None, n_frames: int) -> list[int] | None:
    """The start frames that were asked for; None for the last.

    Raises
    ------
    UsageError
        No frames of the trajectory, or nothing that says frames.
    """
    if one is not None and several is not None:
        raise UsageError("give either --from-frame or --from-frames")
    if one is not None:
        if not -n_frames <= one < n_frames:
            raise UsageError(f"--from-frame {one}: the trajectory has frames 0 to {n_frames - 1}")
        return [one % n_frames]
    if several is None:
        return None
    try:
        if ":" in several:
            found = list(range(n_frames))[slice(*(int(part) if part.strip() else None for part in several.split(":")))]
        else:
            found = [int(part) for part in several.split(",")]
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"--from-frames {several!r} are no frames: give START:STOP:STEP, such as 0:1000:50, or whole numbers with "
            "commas, such as 5,10"
        ) from error
    wrong = [frame for frame in found if not -n_frames <= frame < n_frames]
    if wrong or not found:
        what = f"there is no frame {wrong[0]}" if wrong else "there is none of these frames"
        raise UsageError(f"--from-frames {several}: {what}; the trajectory has frames 0 to {n_frames - 1}")
    return sorted({frame % n_frames for frame in found})


def summary_of(surrogate) -> dict[str, Any]:
    """What the forecasts came to, ready for JSON; Angstrom and ps.

    Of several starts the first is summed up as a single one is, and all of them are in ``starts``; accuracy, checks,
    hindcast and files are those of all.
    """
    results = surrogate.results
    accuracy = Accuracy.of(surrogate)
    found = _of_start(surrogate, 0) | {
        "hindcast": None if results.hindcast is None else results.hindcast.as_dict() | _said(results.hindcast),
        "accuracy": None if accuracy is None else accuracy.as_dict() | {"said": accuracy.line()},
        "checks": _checks(*checked(surrogate)),
        "files": [str(path) for path in results.files],
    }
    count = len(results.frames)
    if count > 1:
        found["starts"] = [_of_start(surrogate, i) for i in range(count)]
    return found


def _of_start(surrogate, i: int) -> dict[str, Any]:
    """What the forecast from one start came to.

    Of a streamed forecast not every frame is listed, but the first, the last that the trajectory has, and the last.
    """
    results, engine = surrogate.results, surrogate.engine
    n_frames = results.times.shape[1]
    listed = range(n_frames)
    if isinstance(results.checks[i], Tally):
        known = [k for k in range(n_frames) if results.rmsd[i, k] == results.rmsd[i, k]]
        listed = sorted({0, *known[-1:], n_frames - 1})
    errors = {
        f"{name}_A": [float(results[name][i, k]) for k in listed]
        for kind in ("rmsd", "rmsd_static", "rmsd_mean")
        for name in (kind, f"{kind}_superposed")
        if results[name] is not None
    }
    accuracy, tally = Accuracy.of(surrogate, [i]), results.checks[i].tally
    return {
        "model": engine.name,
        "decisions": list(surrogate.decisions),
        "atoms": len(surrogate.atoms),
        "start_frame": int(results.frames[i]),
        "start_time_ps": float(surrogate.start_times[i]),
        "frames": n_frames,
        "times_ps": [float(results.times[i, k]) for k in listed],
        "windows": -(-n_frames // (engine.n_times * surrogate.substeps)),
        "reverts": surrogate.reverts,
        # One for each time; None where the trajectory does not have the frame.
        **{name: [value if value == value else None for value in values] for name, values in errors.items()},
        # Of futures that were drawn: the errors above are those of the first, but for rmsd_mean, of their mean.
        **({} if surrogate.samples is None else _drawn(surrogate, i)),
        "accuracy": None if accuracy is None else accuracy.as_dict() | {"said": accuracy.short()},
        "moved_A": float(results.moved[i, -1]),
        "moved_superposed_A": float(results.moved_superposed[i, -1]),
        "checks": _checks(tally, tally.messages),
        "course": list(results.course[i]),
    }


def _said(hindcast) -> dict[str, str]:
    return {"said": hindcast.line(), "verdict": hindcast.verdict()}


def _drawn(surrogate, i: int) -> dict[str, Any]:
    """How many futures were drawn, and how far they are apart."""
    spread = [] if surrogate.results.spread is None else surrogate.results.spread[i]
    known = len(spread) > 0 and bool((spread == spread).all())
    return {
        "samples": surrogate.samples,
        "seed": surrogate.seed,
        "spread_A": [float(value) for value in spread] if known else None,
    }


def _checks(tally: Tally, findings: Sequence[str]) -> dict[str, Any]:
    """The worst frame of each physical check."""
    return {
        "ok": tally.ok,
        "findings": list(findings),
        "bonds": tally.n_bonds,
        "largest_bond_deviation_A": tally.bond_deviation,
        "clashes": tally.clashes,
        "radius_of_gyration_ratio": list(tally.radius_ratio),
        "relaxed": tally.relaxed,
        "largest_relaxation_A": tally.relaxed_by,
    }


def readable(summary: dict[str, Any]) -> str:
    starts = summary.get("starts", [summary])
    several, futures = len(starts) > 1, summary.get("samples")
    lines = [
        f"forecast   {counted(summary['frames'], 'frame')} of {counted(summary['atoms'], 'atom')} with "
        f"{summary['model']}, {_whence(starts)}"
    ]
    lines += _choice(summary["decisions"], summary["hindcast"])
    if summary["windows"] > 1:
        ends = ", which revert to the run from the fifth on" if summary["reverts"] else ""
        lines.append(f"chained    {summary['windows']} windows{ends}: the error grows with each one")
    if futures is not None:
        spreads = [value for one in starts for value in one["spread_A"] or ()]
        apart = f", {sum(spreads) / len(spreads):.2f} A from their mean (mean of all atoms)" if spreads else ""
        each = " from each start" if several else ""
        lines.append(f"drawn      {counted(futures, 'future')}{each} with the seed {summary['seed']}{apart}")
    if several:
        lines += _each(starts)
    if summary["accuracy"]:
        lines.append(f"accuracy   {summary['accuracy']['said']}")
    elif not several:
        first = "the first future " if (futures or 1) > 1 else ""
        lines.append(f"moved      {first}{_moved(summary)}; the run has none of these frames, so no error is known")
    checks = summary["checks"]
    if checks["ok"]:
        low, high = checks["radius_of_gyration_ratio"]
        size = "the size kept" if 1 / SIZE_FACTOR < low <= high < SIZE_FACTOR else "its size changes as in the run"
        bonds = f"{counted(checks['bonds'], 'bond')} within {checks['largest_bond_deviation_A']:.2f} A of the start, "
        unknown = "" if checks["bonds"] else "; no bonds are known of these atoms, so that none were looked at"
        lines.append(f"checks     passed: {bonds if checks['bonds'] else ''}no clashes, {size}{unknown}")
    lines += _course(starts, futures)
    if checks["relaxed"]:
        lines.append(
            f"relaxed    {checks['relaxed']} of {counted(summary['frames'], 'frame')}, in which atoms moved by up to "
            f"{checks['largest_relaxation_A']:.2f} A, before they passed the checks"
        )
    lines += [f"checks     FAILED: {finding}" for finding in checks["findings"]]
    return "\n".join(lines + written(summary["files"]))


def _choice(decisions: list[str], hindcast: dict[str, Any] | None) -> list[str]:
    """Who forecasts, and what it is worth."""
    lines = [f"decided    {line}" for line in decisions]
    if hindcast:
        lines += [
            f"hindcast   {hindcast['said']}",
            *([f"{'':<11}{hindcast['verdict']}"] if hindcast["verdict"] else []),
        ]
    return lines


def beforehand(surrogate) -> str:
    """What is known before the first frame of a long forecast; it is said again in the summary."""
    hindcast = surrogate.results.hindcast
    first = (
        f"forecast   {surrogate.horizon} frames of {len(surrogate.atoms)} atoms with {surrogate.engine.name} begins; "
        f"{surrogate.filename} can be read meanwhile"
    )
    return "\n".join([first, *_choice(surrogate.decisions, hindcast and _said(hindcast))])


def _whence(starts: list[dict[str, Any]]) -> str:
    """Which frames a forecast starts from, and where it ends."""
    first, last = starts[0], starts[-1]
    if len(starts) == 1:
        return (
            f"from frame {first['start_frame']} (t = {first['start_time_ps']:g} ps) to t = {first['times_ps'][-1]:g} ps"
        )
    return (
        f"from each of {len(starts)} starts, frame {first['start_frame']} (t = {first['start_time_ps']:g} ps) to frame "
        f"{last['start_frame']} (t = {last['start_time_ps']:g} ps)"
    )


def _each(starts: list[dict[str, Any]]) -> list[str]:
    """A line for each start; of very many the first and the last ones."""
    lines = [f"start      {_of_one(one)}" for one in starts]
    if len(lines) <= MOST_STARTS:
        return lines
    half = MOST_STARTS // 2
    return [*lines[:half], f"{'':<11}{len(lines) - 2 * half} starts more: --json has all of them", *lines[-half:]]


def _of_one(start: dict[str, Any]) -> str:
    """What came of one start among many."""
    accuracy, wrong = start["accuracy"], "" if start["checks"]["ok"] else "; checks FAILED"
    if accuracy is not None:
        return f"frame {start['start_frame']}: {accuracy['said']}{wrong}"
    first = "the first future " if start.get("samples", 1) > 1 else ""
    return f"frame {start['start_frame']}: {first}moved {_moved(start)}; the run has none of these frames{wrong}"


def _moved(start: dict[str, Any]) -> str:
    """How far the last frame is from the start: a shape that changes, and a molecule that drifts and turns as well."""
    return f"{start['moved_superposed_A']:.2f} A RMSD from the start superposed, {start['moved_A']:.2f} A as it stands"


def _course(starts: list[dict[str, Any]], futures: int | None) -> list[str]:
    """How forecasts go on: the first that does not as the run did, and how many others there are."""
    found = [one for one in starts if one["course"]]
    if not found:
        return []
    who = "the first future" if (futures or 1) > 1 else "it"
    where = f"from frame {found[0]['start_frame']} " if len(starts) > 1 else ""
    lines = [f"course     {where}{who} {line}" for line in found[0]["course"]]
    if len(found) > 1:
        lines.append(f"course     {len(found)} of {len(starts)} starts have a line such as these")
    return lines
