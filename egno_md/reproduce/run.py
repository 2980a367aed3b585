"""One training of one system, in as many parts as it takes, and the JSON file that is left of it."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from .._version import __version__
from ..errors import ModelError, OutputError, StoppedError, UsageError
from ..files import write_whole
from ..forecast.device import resolve_device
from ..forecast.model import Model, new_model
from ..specs import Recipe
from ..training.judge import score_windows
from ..training.recipe import complete, planned
from ..training.run import train_recipe
from ..training.source import source_of
from ..training.states import BEST, LAST, PREVIOUS, callback_state, read_state, weights
from .experiments import Job

#: Of every run, in its folder.
MODEL = "model.safetensors"


def run_job(
    job: Job,
    *,
    work: Path,
    data: Path,
    minutes: float | None = None,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Train and test; what was done before is gone on with, and a finished run is read from its file.

    The test windows are looked at once, with the weights of the best epoch, when the training is at its end. A training
    whose loss is no number any more is tested with its best epoch before that, and says so.

    Parameters
    ----------
    job : Job
    work : Path
        Gets ``<experiment>/<label>.json``, and a folder of that name with the states and the model.
    data : Path
        Folder of all data.
    minutes : float, optional
        Time for this part.

    Returns
    -------
    dict
        What is in the JSON file.

    Raises
    ------
    StoppedError
        The time is up; the same call goes on.
    UsageError
        A folder or file of other settings.
    DataError, ModelError, OutputError
        Of the training.
    """
    folder, target = _places(job, work)
    recipe = job.recipe(data)
    whole = complete(recipe, source_of(recipe))
    if target.exists() and (found := _same(read_result(target), whole, target))["finished"]:
        return found
    again = any((folder / name).exists() for name in (LAST, PREVIOUS))
    stopped, diverged, errors = None, None, None
    try:
        model, result = train_recipe(
            recipe, work_dir=folder, resume=again, name=job.label, minutes=minutes, device=device, progress=progress
        )
        errors = result.errors
    except StoppedError as error:
        stopped, model = error, _best_so_far(whole, folder, job.label)
    except ModelError as error:
        if "diverged" not in str(error):
            raise
        # Without the cure, which names folders of this machine.
        diverged, model = str(error).partition(";")[0], _best_so_far(whole, folder, job.label)
        if model is not None:
            found = source_of(recipe).load(model.graph, model.window, folder=folder)
            errors = score_windows(model, found.train, found.test, device=device).errors
    history = callback_state(read_state(folder / LAST), "Epochs")["history"] if (folder / LAST).exists() else []
    saved = {
        **{name: getattr(job, name) for name in ("experiment", "case", "system", "preset", "seed")},
        "settings": dict(job.settings),
        "label": job.label,
        "finished": stopped is None,
        "diverged": diverged,
        "recipe": _without_place(whole.model_dump(mode="json")),
        "parameters": None if model is None else sum(p.numel() for p in model.network.parameters()),
        "versions": {"egno_md": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
        "device": str(resolve_device(device)),
        "seconds": history[-1]["seconds"] if history else 0.0,
        "epochs": history[-1]["epoch"] if history else 0,
        "best_epoch": min(history, key=lambda entry: entry["F-MSE"])["epoch"] if history else None,
        "validation": [{key: _short(value) for key, value in entry.items()} for entry in history],
        "test": None if errors is None else _tested(errors),
    }
    try:
        if model is not None:
            model.save(folder / MODEL, force=True)
        write_whole(target, (json.dumps(saved, indent=1) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error}): make room and repeat the command") from error
    if stopped is not None:
        raise stopped
    return saved


def is_finished(job: Job, work: Path) -> bool:
    """Whether nothing is left to be done."""
    _, target = _places(job, work)
    return target.exists() and read_result(target)["finished"]


def _places(job: Job, work: Path) -> tuple[Path, Path]:
    """The folder of a run, and its JSON file."""
    folder = work / job.experiment / job.label
    return folder, folder.with_name(f"{folder.name}.json")


def _without_place(recipe: dict[str, Any]) -> dict[str, Any]:
    """Where the data lay is nobody's business; the name of the folder is kept."""
    if place := recipe["data"].get("folder"):
        recipe["data"]["folder"] = Path(place).name
    return recipe


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _tested(errors: dict[str, np.ndarray]) -> dict[str, Any]:
    """F-MSE and A-MSE of the model, and the errors of all forecasts at every point of the window."""
    return {
        "F-MSE": _short(float(errors["model"][-1])),
        "A-MSE": _short(float(np.mean(errors["model"]))),
        "per_step": {name: [_short(float(value)) for value in steps] for name, steps in errors.items()},
    }


def _best_so_far(recipe: Recipe, folder: Path, name: str) -> Model | None:
    """The model of the best epoch of a training that did not come to its end; None before the first state."""
    if not (folder / BEST).exists():
        return None
    plan = planned(recipe)
    model = new_model(plan.graph, plan.window, plan.model, seed=plan.training.seed)
    model.network.load_state_dict(weights(read_state(folder / BEST)))
    model.name = name
    return model


def job_of(result: dict[str, Any]) -> Job:
    """What was run, from its JSON file."""
    return Job(**{field.name: result[field.name] for field in fields(Job)})


def read_result(path: Path) -> dict[str, Any]:
    """What a run has left.

    Raises
    ------
    UsageError
        It is no such file.
    """
    try:
        content = json.loads(path.read_bytes())
        if not {"experiment", "system", "recipe", "test", "finished"} <= set(content):
            raise ValueError("it has other contents")
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is not the JSON file of a run ({error}): remove it, or take another folder (--work)"
        ) from error
    return content


def _same(found: dict[str, Any], recipe: Recipe, path: Path) -> dict[str, Any]:
    """The result, if it is that of this recipe; where data lie does not matter."""
    # What an earlier version did not have is what it is now where nothing is said.
    said: dict[str, Any] = {}
    for name, section in found["recipe"].items():
        given = isinstance(section, dict)
        said[name] = {key: value for key, value in section.items() if value is not None} if given else section
    cure = "move it away, or take another folder (--work)"
    try:
        told = Recipe(**said)
        earlier = json.loads(complete(told, source_of(told)).model_dump_json())
    except (UsageError, ValidationError) as error:
        why = error if isinstance(error, UsageError) else error.errors()[0]["msg"]
        raise UsageError(f"{path} is a run of settings that this version does not take: {why}; {cure}") from None
    for section, values in json.loads(recipe.model_dump_json()).items():
        before = earlier[section]
        if isinstance(values, dict):
            for key in sorted({*values, *before} - {"folder"}):
                if values.get(key) != before.get(key):
                    raise UsageError(
                        f"{path} is a run of other settings: {section}.{key} was {before.get(key)!r} and is "
                        f"{values.get(key)!r} now; {cure}"
                    )
    return found
