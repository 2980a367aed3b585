"""A trained operator read at times that it never saw (section 5.5), beside interpolations of its coarse prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from ..datasets.nbody import START, STEPS_PER_FRAME, NBodyOptions, simulate, starts
from ..errors import OutputError, UsageError
from ..files import write_whole
from ..forecast.model import Model, load_model
from ..forecast.operator import apply_operator
from ..graph.graph import collate
from ..specs import Recipe
from ..training.recipe import complete, planned
from ..training.source import source_of
from .results import read_results
from .run import MODEL, job_of

#: How many times as many points are asked for.
FACTORS = (1, 2, 4, 8)

_BATCH = 250  # windows


def zero_shot(work: Path, target: Path) -> list[Path]:
    """Read the first EGNO of the N-body experiment at 2, 4 and 8 times the points it was trained at.

    The generator knows the truth at every time. Points of training and points between are judged by themselves, on the
    test windows, those of a training that is not finished on the validation windows.

    Parameters
    ----------
    work : Path
        Folder of the runs; the model lies in the run's folder.
    target : Path
        The JSON file to write; `page` looks for ``zero_shot.json`` among the runs.

    Returns
    -------
    list of Path

    Raises
    ------
    UsageError
        No such run, or its model is not there.
    OutputError
        The file cannot be written.
    """
    for result in read_results(work):
        path = work / "nbody" / result["label"] / MODEL
        window = result["recipe"]["window"]
        fits = result["experiment"] == "nbody" and result["system"] == "egno" and window["sampling"] == "U"
        if fits and path.exists():
            break
    else:
        raise UsageError(
            f"there is no EGNO of the N-body experiment with its model below {work}: egno-md reproduce nbody --work "
            f"{work}"
        )
    part = "test" if result["finished"] else "validation"  # the test windows are looked at once, at the end
    found = readings(load_model(path), job_of(result).recipe(Path()), part)
    about = {name: result[name] for name in ("finished", "epochs")} | {"epoch": result["best_epoch"], "part": part}
    found = {"run": f"nbody/{result['label']}", **about, **found}
    try:
        write_whole(target, (json.dumps(found, indent=1) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error})") from error
    return [target]


def readings(model: Model, recipe: Recipe, part: str = "test") -> dict[str, Any]:
    """Errors at every factor on the windows of one part; see :func:`zero_shot`."""
    source = source_of(recipe)
    plan = planned(complete(recipe, source))
    windows = getattr(source.load(plan.graph, plan.window, folder=Path()), part)
    options: NBodyOptions = source.options
    n_times, span = model.window.n_times, model.window.span
    largest = max(FACTORS)
    each = span * STEPS_PER_FRAME // (n_times * largest)  # steps from one finest point to the next
    first = (START + 1) * STEPS_PER_FRAME // each  # finest points up to the start, which is frame START
    true = simulate(*starts(options)[part], first + n_times * largest, each)[0][:, first - 1 :]  # (S, 1 + T L, N, 3)
    coarse, out = None, []
    for factor in FACTORS:
        points = np.arange(1, n_times * factor + 1) / factor  # of the window's T steps
        asked = true[:, :: largest // factor]  # (S, 1 + T f, N, 3)
        path = _paths(model, windows, torch.tensor(points - 1, dtype=torch.float32))  # (S, T f, N, 3)
        coarse = path if coarse is None else coarse
        old = np.isclose(points % 1, 0)
        error = np.square(path - asked[:, 1:]).mean(axis=(0, 2, 3))  # (T f,)
        line: dict[str, Any] = {"factor": factor, "points": len(points), "old": error[old].mean()}
        line |= {"new": None, "linear": None, "spline": None, "spline_errors": None}
        if not old.all():
            knots = np.arange(n_times + 1)
            start = asked[:, :1]
            known = np.concatenate([start, coarse], axis=1).astype(np.float64)  # (S, 1 + T, N, 3)
            between = {
                "linear": _linear(knots, known, points),
                "spline": CubicSpline(knots, known, axis=1)(points),
            }  # (S, T f, N, 3)
            others = {name: np.square(x - asked[:, 1:]).mean(axis=(0, 2, 3)) for name, x in between.items()}
            line |= {"new": error[~old].mean(), **{name: values[~old].mean() for name, values in others.items()}}
            line["spline_errors"] = others["spline"].tolist()
        whole = np.concatenate([asked[:, :1], path], axis=1)
        line["rough"] = _roughness(whole) / _roughness(asked)
        line |= {"times": (points * span / n_times).tolist(), "errors": error.tolist()}
        out.append({key: float(v) if isinstance(v, np.floating) else v for key, v in line.items()})
    return {"trained": n_times, "readings": out}


def _paths(model: Model, windows: Any, times: torch.Tensor) -> NDArray[np.float64]:
    """Predictions (S, T, N, 3) at some times, 0 being the first point of training."""
    found = []
    with torch.inference_mode():
        for begin in range(0, len(windows), _BATCH):
            some = [windows[k] for k in range(begin, min(begin + _BATCH, len(windows)))]
            pos = apply_operator(model, collate(some), times=times).pos  # (T, S N, 3)
            found.append(pos.view(len(times), len(some), -1, 3).transpose(0, 1).double().numpy())  # (S, T, N, 3)
    return np.concatenate(found)


def _linear(knots: NDArray, values: NDArray, points: NDArray) -> NDArray:
    """Linear interpolation along the second axis."""
    left = np.minimum(points.astype(int), len(knots) - 2)  # (P,)
    share = (points - left)[None, :, None, None]
    return (1 - share) * values[:, left] + share * values[:, left + 1]


def _roughness(path: NDArray) -> float:
    """Mean squared second difference along time of paths (S, P, N, 3)."""
    return float(np.square(np.diff(path, 2, axis=1)).mean())
