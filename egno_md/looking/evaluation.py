"""The page of an evaluation, and its plots."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OutputError, counted
from ..evaluation.quality import TORSION_CELLS, Quality
from ..evaluation.result import Evaluation, Scores
from . import page
from .figures import by_residue, residue_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: One colour for each forecast, told apart by the colour blind as well (Okabe and Ito); those of other packages share
#: the last one and differ in their lines.
COLOURS = {
    "model": "#D55E00",
    "static": "#0072B2",
    "linear": "#999999",
    "mean structure": "#009E73",
    "AR(1)": "#CC79A7",
    "smoothed history": "#56B4E9",
    "regression": "#E69F00",
    "Gaussian process": "#8C510A",
    "elastic network": "#006D77",
    "analogues": "#4D4D4D",
    "ensemble of the run": "#A6CEE3",
}
OTHER, LINES = "#000000", ("-", "--", ":", "-.")

SETS = {"chains": "#D55E00", "run": "#000000", "floor": "#56B4E9"}


def write_report(evaluation: Evaluation, folder: str | os.PathLike, *, force: bool = False) -> list[Path]:
    """Write PNG plots and ``report.html``, which holds them and the tables and loads nothing from elsewhere.

    Parameters
    ----------
    evaluation : Evaluation
    folder : path
        Made where it does not exist.
    force : bool
        Replace files that exist.

    Returns
    -------
    list of Path
        The page first.

    Raises
    ------
    UsageError
        matplotlib is not installed.
    OutputError
        A file exists, or cannot be written.
    """
    folder = Path(folder)
    plots: dict[str, tuple[Callable[[Any], None], str]] = {
        "gain": (
            lambda axes: _gain(axes, evaluation),
            f"What every forecast takes off the error of the start frame standing still, {evaluation.judged_by}; of "
            "the model with the 95 % interval of the difference where the data give one. Above zero a forecast is "
            "better than none; above every other line the model is worth something.",
        ),
        "skill": (
            lambda axes: _skill(axes, evaluation),
            "The model against the best forecast that needs no network, step by step. Above zero it is better.",
        ),
    }
    quality = evaluation.quality
    if quality is not None:
        plots["rmsf"] = (
            lambda axes: _rmsf(axes, quality),
            "Fluctuation about the mean structure less that in the run (the first half of its frames). Floor: the "
            "second half; where the chains differ from the run no more than the floor does, no difference is seen.",
        )
        plots["radius"] = (lambda axes: _radius(axes, quality), "Radius of gyration.")
        if len(quality.run.bonds):
            plots["bonds"] = (lambda axes: _bonds(axes, quality), "Mean length of every bond less that in the run.")
        if quality.torsion_names:
            plots["torsions"] = (
                lambda axes: dihedrals(axes, quality),
                f"Backbone torsions ({quality.torsion_kind}), all residues together.",
            )
    files = [folder / "report.html", *(folder / f"{name}.png" for name in plots)]
    if not force and any(file.exists() for file in files):
        found = next(file for file in files if file.exists())
        raise OutputError(f"{found} exists; choose another folder, or replace it with --force (force=True)")
    pictures = {name: page.png(draw) for name, (draw, _) in plots.items()}
    drawn = {name: page.figure(name, pictures[name], caption) for name, (_, caption) in plots.items()}
    text = page.page(
        f"Evaluation of {evaluation.model}",
        _verdict(evaluation),
        page.figures(drawn["gain"], drawn["skill"]),
        *_errors(evaluation),
        *_drawn(evaluation),
        *_chains(quality, [drawn[name] for name in plots if name not in ("gain", "skill")]),
        *([f"<h2>Notes</h2>{_items(evaluation.notes)}"] if evaluation.notes else []),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in zip(files, [text.encode(), *pictures.values()], strict=True):
            file.write_bytes(content)
    except OSError as error:
        raise OutputError(f"cannot write the report in {folder} ({error}); choose a folder with room") from error
    return files


def _verdict(evaluation: Evaluation) -> str:
    kind = "verdict bad" if "worse" in evaluation.outcome else "verdict"
    verdict = evaluation.verdict[0].upper() + evaluation.verdict[1:]
    data = (
        f"{evaluation.said_windows} of {counted(evaluation.n_runs, 'run')}, up to {evaluation.n_atoms} atoms; "
        f"{counted(evaluation.n_blocks, 'independent block')} of {evaluation.block} windows; {evaluation.judged_by}"
    )
    return f'<p class="{kind}">{html.escape(verdict)}.</p><p>{html.escape(data)}.</p>'


def _errors(evaluation: Evaluation) -> list[str]:
    """Tables of errors: those that the verdict goes by, and the others."""
    parts = ["<h2>Errors</h2>", _error_table(evaluation, evaluation.judged, evaluation.judged_by)]
    if evaluation.superposed is not None:
        other = evaluation.superposed if evaluation.judged is evaluation else evaluation
        words = "nothing superposed" if other is evaluation else "superposed on what came"
        parts.append(f"<details><summary>{words}</summary>{_error_table(evaluation, other, words)}</details>")
    rows: list[tuple[str, str]] = []
    if evaluation.as_predicted is not None:
        rows.append(("A-MSE before the geometry is brought back", f"{evaluation.as_predicted.mean():.4f}"))
    if evaluation.prior is not None:
        rows.append(("A-MSE of the regression that the network corrects", f"{evaluation.prior.mean():.4f}"))
    if evaluation.network_gain is not None:
        rows.append(("what the network takes off it", _share(evaluation.network_gain)))
    return [*parts, page.table(("nothing superposed", "A²"), rows)] if rows else parts


def _error_table(evaluation: Evaluation, scores: Scores, words: str) -> str:
    names = list(scores.errors)
    rows = []
    for k, time in enumerate(evaluation.times):
        interval = scores.intervals["model"][k]
        own = f"{scores.errors['model'][k]:.4f}"
        if np.isfinite(interval).all():
            own += f" [{interval[0]:.4f}, {interval[1]:.4f}]"
        others = [f"{scores.errors[name][k]:.4f}" for name in names[1:]]
        rows.append((f"{time:g}", own, _share((scores.skill[k], *scores.skill_interval[k])), *others))
    for label, values, gain in (("F-MSE", scores.f_mse, scores.f_skill), ("A-MSE", scores.a_mse, scores.a_skill)):
        own, *others = (f"{values[name]:.4f}" for name in names)
        rows.append((label, own, _share(gain), *others))
    said = (
        f"Mean squared error per coordinate in Å² with 95 % intervals, {words}; skill against the best of the others."
    )
    return page.table(("t/ps", "model", "skill", *names[1:]), rows, said)


def _share(three: Sequence[float]) -> str:
    value, low, high = three
    return f"{value:+.1%}" + ("" if np.isnan(low) else f" [{low:+.1%}, {high:+.1%}]")


def _drawn(evaluation: Evaluation) -> list[str]:
    found = evaluation.calibration
    if found is None:
        return []
    names = list(found.superposed)
    score = [
        (f"{t:g}", *(f"{found.superposed[name].energy_score[k]:.4f}" for name in names))
        for k, t in enumerate(found.times)
    ]
    score.append(("window", *(f"{found.superposed[name].window_score:.4f}" for name in names)))
    spread = [
        (f"{t:g}", *(f"{found.superposed[name].spread_over_error[k]:.2f}" for name in names))
        for k, t in enumerate(found.times)
    ]
    return [
        "<h2>Drawn futures</h2>",
        f"<p>{html.escape(found.verdict[0].upper() + found.verdict[1:])}.</p>",
        page.table(
            ("t/ps", *names), score, f"Energy score in Å of {found.samples} futures of each window; less is better."
        ),
        page.table(("t/ps", *names), spread, "Spread over error; 1 is calibrated, less is too sure."),
    ]


def _chains(quality: Quality | None, figures: list[str]) -> list[str]:
    if quality is None:
        return []
    rows = [(name, *("-" if np.isnan(v) else f"{v:.3f}" for v in values)) for name, *values in quality.rows()]
    return [
        f"<h2>Chains: {quality.n_chains} of {quality.chain_length} frames</h2>",
        _items(quality.findings or ("no finding: the chains pass for the run",)),
        page.figures(*figures),
        page.table(("", "chains", "run", "floor"), rows, "Floor: the second half of the run beside its first."),
    ]


def _items(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _gain(axes: Axes, evaluation: Evaluation) -> None:
    """Differences to the start frame standing still, in percent; straight lines leave the picture."""
    judged = evaluation.judged
    gains = judged.gains or {name: np.full((len(evaluation.times), 3), np.nan) for name in judged.errors}
    unknown = [name for name in judged.errors if name not in COLOURS]
    ends = [0.0]
    for name, three in gains.items():
        if name == "static":
            continue
        colour = COLOURS.get(name, OTHER)
        line = LINES[unknown.index(name) % len(LINES)] if name in unknown else "-"
        width = 2.5 if name == "model" else 1.2
        axes.plot(evaluation.times, 100 * three[:, 0], line, marker=".", lw=width, color=colour, label=name)
        if name == "model":
            axes.fill_between(evaluation.times, *(100 * three[:, 1:].T), color=colour, alpha=0.2, lw=0)
            ends += [*(100 * three[np.isfinite(three)])]
        elif name != "linear":
            ends += [*(100 * three[:, 0])]
    axes.axhline(0, color=COLOURS["static"], lw=1.5, label="static")
    room = 0.08 * (max(ends) - min(ends)) + 1
    low = max(min(ends) - room, -150)  # what is worse than that is no matter how much
    axes.set(
        xlabel="time after the start (ps)", ylabel="off the error of standing still (%)", ylim=(low, max(ends) + room)
    )
    axes.legend(frameon=False, fontsize="small", ncols=2)


def _skill(axes: Axes, evaluation: Evaluation) -> None:
    axes.axhline(0, color="#999999", lw=1)
    axes.plot(evaluation.times, 100 * evaluation.judged.skill, marker=".", color=COLOURS["model"])
    axes.fill_between(
        evaluation.times, *(100 * evaluation.judged.skill_interval.T), color=COLOURS["model"], alpha=0.2, lw=0
    )
    axes.set(xlabel="time after the start (ps)", ylabel="skill against the best baseline (%)")


def _sets(quality: Quality):
    return [(name, getattr(quality, name), colour) for name, colour in SETS.items()]


def _rmsf(axes: Axes, quality: Quality) -> None:
    molecule = quality.molecule
    for name, ensemble, colour in _sets(quality):
        if name == "run":
            continue
        first, values = by_residue(molecule, ensemble.rmsf)
        less = values - by_residue(molecule, quality.run.rmsf)[1]
        axes.plot(less, color=colour, label=name, marker="." if len(first) < 40 else None)
    axes.axhline(0, color=SETS["run"], lw=1)
    residue_axis(axes, molecule, first)
    axes.set(ylabel="RMSF less the run's (Å)")
    axes.legend(frameon=False)


def _radius(axes: Axes, quality: Quality) -> None:
    values = np.concatenate([ensemble.radius for _, ensemble, _ in _sets(quality)])
    # Few frames in many cells would be a comb.
    cells = int(np.clip(2 * np.sqrt(min(len(ensemble.radius) for _, ensemble, _ in _sets(quality))), 8, 40))
    edges = np.linspace(values.min() - 1e-3, values.max() + 1e-3, cells + 1)
    for name, ensemble, colour in _sets(quality):
        axes.hist(ensemble.radius, edges, density=True, histtype="step", color=colour, label=name)
    axes.set(xlabel="radius of gyration (Å)", ylabel="density (1/Å)")
    axes.legend(frameon=False)


def _bonds(axes: Axes, quality: Quality) -> None:
    molecule = quality.molecule
    _, first, residue = np.unique(molecule.residues, return_index=True, return_inverse=True)
    for name, ensemble, colour in _sets(quality):
        if name != "run":
            less = ensemble.bonds - quality.run.bonds  # (B,)
            axes.plot(residue[molecule.bonds[:, 0]], less, ".", color=colour, label=name)
    axes.axhline(0, color=SETS["run"], lw=1)
    residue_axis(axes, molecule, first)
    axes.set(ylabel="difference of the mean length (Å)")
    axes.legend(frameon=False)


def dihedrals(axes: Axes, quality: Quality) -> None:
    edges = np.linspace(-180, 180, 3 * TORSION_CELLS + 1)
    kinds = [("phi", 0, "-"), ("psi", 1, ":")] if quality.torsion_kind == "phi/psi" else [("", 0, "-")]
    for name, ensemble, colour in _sets(quality):
        for kind, first, line in kinds:
            angles = np.degrees(ensemble.torsions[:, first :: len(kinds)]).ravel()
            axes.hist(
                angles, edges, density=True, histtype="step", color=colour, ls=line, label=f"{kind} {name}".strip()
            )
    axes.set(xlabel="torsion (degrees)", ylabel="density (1/degree)", xlim=(-180, 180))
    axes.legend(frameon=False, fontsize="small")
