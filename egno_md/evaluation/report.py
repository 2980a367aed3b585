"""One web page and the plots of an evaluation."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OutputError, UsageError
from .quality import TORSION_CELLS, Quality
from .result import Evaluation

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
}
OTHER, LINES = "#000000", ("-", "--", ":", "-.")

SETS = {"chains": "#D55E00", "run": "#000000", "floor": "#56B4E9"}

TEMPLATES = Path(__file__).parent / "templates"


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
        "errors": (
            lambda axes: _errors(axes, evaluation),
            f"Mean squared error per coordinate at every step, {evaluation.judged_by}, with 95 % intervals where the "
            "data give them. "
            "Below every other line the model is worth something.",
        ),
        "skill": (
            lambda axes: _skill(axes, evaluation),
            "Skill: 1 - error / error of the best baseline. Above zero the forecast is better than anything that is "
            "there for nothing.",
        ),
    }
    quality = evaluation.quality
    if quality is not None:
        plots["rmsf"] = (
            lambda axes: _rmsf(axes, quality),
            "Fluctuation of every atom about the mean structure. Run: the first half of the frames. Floor: the second "
            "half; where the chains differ from the run no more than the floor does, no difference is seen.",
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
        raise OutputError(f"{found} exists; choose another folder or replace it (force=True, --force)")
    figures = {name: (_png(draw), caption) for name, (draw, caption) in plots.items()}
    body = "".join(
        _filled("figure.html", name=name, png=base64.b64encode(png).decode(), caption=html.escape(caption))
        for name, (png, caption) in figures.items()
    )
    page = _filled(
        "report.html",
        title=f"Evaluation of {html.escape(evaluation.model)}",
        style=(TEMPLATES / "report.css").read_text(),
        verdict=html.escape(evaluation.verdict[0].upper() + evaluation.verdict[1:]),
        table=html.escape(evaluation.table()),
        figures=body,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in zip(files, [page.encode(), *(png for png, _ in figures.values())], strict=True):
            file.write_bytes(content)
    except OSError as error:
        raise OutputError(f"cannot write the report in {folder} ({error}); choose a folder with room") from error
    return files


def _filled(template: str, **values: str) -> str:
    """A template with its places filled in; values are HTML already."""
    return Template((TEMPLATES / template).read_text()).substitute(values)


def _png(draw: Callable[[Any], None]) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError('plots need matplotlib: pip install "egno_md[plot]"') from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    draw(figure.subplots())
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120)
    return target.getvalue()


def _errors(axes: Axes, evaluation: Evaluation) -> None:
    judged = evaluation.judged
    others = [e for name, e in judged.errors.items() if name != "linear"]
    unknown = [name for name in judged.errors if name not in COLOURS]
    for name, errors in judged.errors.items():
        colour = COLOURS.get(name, OTHER)
        line = LINES[unknown.index(name) % len(LINES)] if name in unknown else "-"
        axes.plot(evaluation.times, errors, line, marker=".", color=colour, label=name)
        axes.fill_between(evaluation.times, *judged.intervals[name].T, color=colour, alpha=0.15, lw=0)
    # Straight lines leave the picture where atoms do not fly straight.
    axes.set(xlabel="time after the start (ps)", ylabel="mean squared error (Å²)", ylim=(0, 1.3 * np.max(others) or 1))
    axes.legend(frameon=False)


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
    for name, ensemble, colour in _sets(quality):
        axes.plot(ensemble.rmsf, color=colour, label=name, marker="." if len(ensemble.rmsf) < 40 else None)
    axes.set(xlabel="atom of the selection", ylabel="RMSF (Å)", ylim=(0, None))
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
    for name, ensemble, colour in _sets(quality):
        if name != "run":
            axes.plot(ensemble.bonds - quality.run.bonds, ".", color=colour, label=name)
    axes.axhline(0, color=SETS["run"], lw=1)
    axes.set(xlabel="bond", ylabel="difference of the mean length (Å)")
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
