"""A page of what was run: tables beside the published numbers, learning curves, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingPackageError, OutputError
from ..files import write_whole
from ..nn import operators
from .experiments import EXPERIMENTS, SYSTEMS
from .results import ZERO_SHOT, Group, grouped, published_rows, read_results

_HEAD = """# The paper, run here

Made by `egno-md reproduce page` from the JSON file of every run; nothing on this page is typed in by hand but the text.
Errors are means over nodes and over x, y, z: F-MSE at the last point of the window, A-MSE over all points of it. The
epoch is chosen by the validation windows, the test windows are looked at once. Own numbers are medians over seeds, with
all seeds beside them. Published ones come from the papers that are named, on the same data unless the text says
otherwise.
"""

#: What has to be known before the numbers of an experiment are compared.
_NOTES = {
    "nbody": (
        "Generated anew, in the order in which the original generator draws. The preset `best` has the same "
        "simulations and the same validation and test windows; of the 3000 simulations for training it learns from "
        "windows that start in every frame (`data.every_start`), where the published systems learn from one window of "
        "each. Rate, clipping, averaging and length were searched for on the validation windows of EGNO, [as said "
        "here](training.md). The other systems of this preset gain by its settings too: what EGNO is worth "
        "is its distance from them and not from the published numbers."
    ),
    "mocap-walk": (
        "Run on cmu_mocap_walk_subject35.npz, which holds 19 of the authors' 23 trials and a split of its own: "
        "comparable with published numbers only in kind. (With motion.pkl and split.pkl of the authors' repository, "
        "which were not at hand, the split is theirs.) Errors are in units of 0.01. The preset `best` is that of "
        "running. Errors above 100 come from one test window, in which a joint jumps at three times the speed of any "
        "in training: some networks, and of EGNO one seed in three, answer what they have never seen with nonsense."
    ),
    "mocap-run": (
        "The authors' own file and split. Errors are in units of 0.01. The preset `best` knows joints by name (left "
        "and right are one), which the published systems do not, and learns from windows that start in every frame of "
        "the five training trials, where these learn from 40 of each; it is half as wide. It was searched for on the "
        "validation windows, [as said here](training.md)."
    ),
    "md17": (
        "With `data.source=sgdml` these are MD17-like runs on the force fields of the sGDML authors and not MD17: the "
        "molecules were run at constant temperature (Nose-Hoover chain, 0.5 fs, 8 runs of 10 to 12 ps from 8 frames of "
        "MD17, 500 K * 3N / (3N - 6)), and every 25th step was kept with the next one as its velocity. Cases that end "
        "in `-apart` are split by runs, the others by start frames drawn from everywhere, as published: their windows "
        "overlap in time, and the difference is what leaks. Published benzene is the older file of MD17. Errors are in "
        "units of 0.01. The preset `best` ends after 150 epochs, when the larger molecules still improve."
    ),
    "adk": (
        "With `data.source=transitions` these are biased transition paths from closed to open and not the equilibrium "
        "trajectory of the paper: another task, whose numbers cannot be compared with the published ones. Of the "
        "preset `best` EGNO has the seed of its search."
    ),
}


def write_page(work: Path, target: Path) -> list[Path]:
    """Write the page, and its figures into a folder of its name beside it.

    Parameters
    ----------
    work : Path
        Folder of the runs.
    target : Path
        A Markdown file.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    UsageError
        No finished run, or a file that is none.
    MissingPackageError
        matplotlib is not installed.
    OutputError
        The page cannot be written.
    """
    groups = grouped(read_results(work))
    figures = target.with_suffix("")
    written, parts = [], [_HEAD]
    try:
        figures.mkdir(parents=True, exist_ok=True)
        for name in EXPERIMENTS:
            own = [group for group in groups if group.experiment == name]
            parts.append(f"\n## {EXPERIMENTS[name].title}\n\n{_NOTES[name]}\n")
            if own:
                curve = figures / f"{name}.png"
                _curves(own, curve)
                written.append(curve)
                parts += [_section(name, own), f"\n![Validation error over epochs]({figures.name}/{curve.name})\n"]
            parts.append(_missing(name, own))
        if (work / ZERO_SHOT).exists():
            found = json.loads((work / ZERO_SHOT).read_text())
            picture = figures / "zero_shot.png"
            _resolution(found, picture)
            written.append(picture)
            parts.append(_zero_shot(found, f"{figures.name}/{picture.name}"))
        write_whole(target, "".join(parts).encode())
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error})") from error
    return [target, *written]


def _section(experiment: str, groups: list[Group]) -> str:
    """The tables of one experiment, one for each case and set of data options."""
    parts = []
    keys = dict.fromkeys((group.case, _data(group)) for group in groups)
    if len(keys) > 2:
        parts += [_overview(groups, name) for name in _BOTH]
    for case, data in keys:
        own = [group for group in groups if (group.case, _data(group)) == (case, data)]
        title = ", ".join(part for part in (case, data) if part)
        parts.append(f"\n### {title}\n\n" if title else "\n")
        parts.append(_table(experiment, case, data, own))
        parts.append("\nThe commands:\n\n```bash\n" + "".join(f"{_command(group)}\n" for group in own) + "```\n")
    return "".join(parts)


def _overview(groups: list[Group], error: str) -> str:
    """All cases of the preset `best` in one table, of each the lowest error in bold."""
    best = [group for group in groups if group.preset == "best" and (error == "F-MSE" or not _one(group))]
    systems = [name for name in SYSTEMS if any(group.system == name for group in best)]
    rows = [f"\n| {error}, preset best | {' | '.join(systems)} |\n|---|{'---|' * len(systems)}\n"]
    for case, data in dict.fromkeys((group.case, _data(group)) for group in best):
        found = {group.system: group.median(error) for group in best if (group.case, _data(group)) == (case, data)}
        lowest = min((x for x in found.values() if not np.isnan(x)), default=None)
        cells = [_number(found.get(name, np.nan)) for name in systems]
        cells = [
            f"**{cell}**" if found.get(name) == lowest else cell for name, cell in zip(systems, cells, strict=True)
        ]
        rows.append(f"| {case or data or 'as published'} | {' | '.join(cells)} |\n")
    return "".join(rows)


def _one(group: Group) -> bool:
    """Whether it knows one point of the window alone, the last."""
    return group.runs[0]["recipe"]["window"]["n_times"] == 1


def _data(group: Group) -> str:
    """What was asked for of the data, beside the case."""
    return ", ".join(f"{key}={value}" for key, value in sorted(group.settings.items()) if key.startswith("data."))


def _table(experiment: str, case: str, data: str, groups: list[Group]) -> str:
    rows = ["| system | F-MSE | A-MSE | seeds: F-MSE | epochs, minutes | source |\n|---|---|---|---|---|---|\n"]
    for row in published_rows(experiment, case, data):
        spread = f" +- {row['spread']:g}" if "spread" in row else ""
        errors = [f"{row[name]:g}{spread if name == 'F-MSE' else ''}" if name in row else "" for name in _BOTH]
        rows.append(f"| {row['name']} | {errors[0]} | {errors[1]} | | | {row['source']} |\n")
    for group in groups:
        rows.append(_own_row(group))
    tested = [run["test"]["per_step"] for group in groups for run in group.runs if run["test"]]
    if tested:
        free = max(tested, key=lambda steps: len(steps["static"]))  # systems of one point know the last alone
        scale = EXPERIMENTS[experiment].scale
        for name, about in (("static", "standing still"), ("linear", "x + c v t, c fitted at every point")):
            steps = np.asarray(free[name]) / scale
            averaged = "" if len(steps) == 1 else f"{steps.mean():.4g}"
            rows.append(f"| {about} | {steps[-1]:.4g} | {averaged} | | | here, no network |\n")
    return "".join(rows)


_BOTH = ("F-MSE", "A-MSE")


def _own_row(group: Group) -> str:
    about = SYSTEMS[group.system].about
    more = [f"{key.rpartition('.')[2]}={value}" for key, value in group.settings.items() if not key.startswith("data.")]
    name = f"{about}, preset {group.preset}" + "".join(f", {text}" for text in more)
    seeds = ", ".join(_seed(group, run) for run in group.runs)
    if group.diverged:
        seeds += f" ({group.diverged} of {len(group.runs)} diverged)"
    epochs = ", ".join(
        f"{run['epochs']} in {run['seconds'] / 60:.0f}" + ("" if run["device"] == "cpu" else f" on {run['device']}")
        for run in group.runs
    )
    averaged = "" if _one(group) else _number(group.median("A-MSE"))
    return f"| **{name}** | {_number(group.median('F-MSE'))} | {averaged} | {seeds} | {epochs} | here |\n"


def _seed(group: Group, run: dict[str, Any]) -> str:
    """The test error of a run, or how far it has come."""
    scale = EXPERIMENTS[group.experiment].scale
    if run["test"] is not None:
        return f"{run['test']['F-MSE'] / scale:.4g}"
    if not run["validation"]:
        return "no epoch was finished"
    best = min(entry["F-MSE"] for entry in run["validation"])
    return f"not finished: validation {best / scale:.4g} so far"


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4g}"


def _command(group: Group) -> str:
    more = "".join(f" --set {key}={value}" for key, value in group.settings.items())
    case = f" --case {group.case}" if group.case else ""
    seeds = max(run["seed"] for run in group.runs) + 1
    what = f"{group.experiment}{case} --system {group.system} --preset {group.preset}"
    return f"egno-md reproduce {what} --seeds {seeds}{more}"


def _missing(experiment: str, groups: list[Group]) -> str:
    """Which systems have not been run, and why."""
    have, known = {group.system for group in groups}, operators.names()
    lacking = [name for name in SYSTEMS if name not in have]
    there = [name for name in lacking if SYSTEMS[name].operator in known]
    parts = []
    if not have:
        parts.append("Nothing was run: it takes longer than there was time for.")
    elif there:
        parts.append(f"Not run, for want of time: {', '.join(there)}.")
    if absent := [name for name in lacking if name not in there]:
        parts.append(f"There is no operator for {', '.join(absent)}.")
    return f"\n{' '.join(parts)}\n" if parts else ""


def _figure(height: float = 3.2, rows: int = 1, columns: int = 1):
    """A figure and its panels, (rows * columns,)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError('the figures need matplotlib: pip install "egno_md[plot]"') from error
    figure = Figure(figsize=(7, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _curves(groups: list[Group], path: Path) -> None:
    """Validation F-MSE over epochs, a panel for each case and a line for each run."""
    cases = list(dict.fromkeys(group.case for group in groups))
    columns = min(len(cases), 4)
    rows = -(-len(cases) // columns)
    figure, panels = _figure(2.0 * rows + 1.2, rows, columns)
    labels = list(dict.fromkeys((group.system, group.preset) for group in groups))
    from matplotlib import colormaps

    colours = colormaps["tab20"]
    lines = {}
    for axes, case in zip(panels, cases, strict=False):
        for group in groups:
            if group.case != case:
                continue
            label = (group.system, group.preset)
            for run in group.runs:
                epochs = [entry["epoch"] for entry in run["validation"]]
                values = [entry["F-MSE"] for entry in run["validation"]]
                if epochs:
                    (lines[label],) = axes.plot(epochs, values, color=colours(labels.index(label) % 20), lw=1)
        axes.set(xlabel="epoch", yscale="log")
        axes.set_title(case, fontsize=8)
        axes.tick_params(labelsize=7, which="both")
    panels[0].set_ylabel("validation F-MSE")
    for axes in panels[len(cases) :]:
        axes.set_axis_off()
    figure.legend(lines.values(), map(" ".join, lines), fontsize=7, frameon=False, ncols=4, loc="outside lower center")
    figure.savefig(path, dpi=110)


def _zero_shot(found: dict[str, Any], picture: str) -> str:
    rows = ["| read at | points | points of training | other points | linear between | spline between | roughness |\n"]
    rows.append("|---|---|---|---|---|---|---|\n")
    for line in found["readings"]:
        others = [f"{line[name]:.4g}" if line[name] is not None else "" for name in ("new", "linear", "spline")]
        rows.append(
            f"| {line['factor']} x | {line['points']} | {line['old']:.4g} | {' | '.join(others)} "
            f"| {line['rough']:.4g} |\n"
        )
    nearer = [line["factor"] for line in found["readings"] if line["new"] is not None and line["new"] < line["spline"]]
    verdict = f"the operator is nearer to the truth at {' and '.join(map(str, nearer))} times the points only"
    if not nearer:
        verdict = "every interpolation of the coarse prediction is nearer to the truth than the operator read there"
    elif len(nearer) == len(found["readings"]) - 1:
        verdict = "the operator is nearer to the truth than any interpolation"
    state = "" if found["finished"] else f", whose training is not finished (its best epoch so far, {found['epoch']}),"
    return (
        "\n## Resolution without training (section 5.5)\n\n"
        f"The model of `{found['run']}`{state} was trained at {found['trained']} points of the window and is read at "
        f"more of them, which it never saw, on the {found['part']} windows. Mean squared errors at the points of "
        "training and at the others, beside interpolations of the coarse prediction (linear, and a cubic spline, both "
        "through the start frame); roughness is the mean squared second difference of the path over that of the true "
        "one. Made by "
        f"`egno-md reproduce zero-shot`.\n\nBetween the points of training, {verdict}.\n\n"
        f"{''.join(rows)}\n![Error over time]({picture})\n"
    )


def _resolution(found: dict[str, Any], path: Path) -> None:
    figure, (axes,) = _figure()
    for line in found["readings"]:
        axes.plot(line["times"], line["errors"], "o-", ms=3, lw=1, label=f"{line['factor']} x the points")
    axes.plot(line["times"], line["spline_errors"], "k:", lw=1, label="spline of the coarse prediction")
    axes.set(xlabel="time after the start, in frames", ylabel="mean squared error", yscale="log")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
