"""From files to a judged model."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError, UsageError
from ..evaluation.result import Evaluation
from ..evaluation.score import Part, score
from ..files import write_whole
from ..forecast.model import Model, load_model, new_model
from ..graph.windows import MEMORY_LIMIT, TrajectoryWindows
from ..nn import operators
from ..progress import Progress
from ..specs import Recipe, TrainSpec, WindowSpec
from .data import Data, System
from .judge import score_windows
from .limit import TEST, TRIED
from .loop import fit
from .process import process_rank
from .recipe import complete, overridden, planned, read_recipe, shortly
from .reference import reference_errors
from .source import elastic, processes, source_of
from .states import LAST, PREVIOUS, finished, own_folder, read_plan

#: Windows that a model is tested on at most.
MOST = 2000

#: Tests of more and more windows where there is a limit of time.
ROUNDS = 3


def choose_prior(data: Data, window: WindowSpec) -> dict[str, float]:
    """A-MSE on the validation windows of both priors by themselves, the better one first.

    A regression of runs that were sampled well is the better start; where the run has moved on to another state since,
    it is worse than the standing frame.
    """
    errors = reference_errors(data.validation, data.regression)
    means = {name: round(float(values.mean()), 5) for name, values in errors.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def train(
    model: Model,
    data: Data,
    spec: TrainSpec,
    *,
    work_dir: str | Path,
    resume: bool = False,
    devices: int = 1,
    nodes: int = 1,
    **options: Any,
) -> tuple[Model, Evaluation | None]:
    """:func:`fit`, then the errors on the test windows beside the baselines; all of it goes into the provenance.

    Parameters
    ----------
    model, spec, work_dir, resume
        See :func:`fit`. What is trained is written to ``training.json`` in `work_dir`, and a resumed training must be
        the same.
    data : Data
        From :func:`load_data`.
    devices, nodes, **options
        Of :func:`fit`.

    Returns
    -------
    Model, Evaluation
        Of several processes the first alone judges: the others return None for the errors.

    Raises
    ------
    UsageError
        A resumed training with other settings or files, or nothing to judge the model by.
    """
    n_test = len(data.test) if isinstance(data.test, TrajectoryWindows) else sum(len(p.starts) for p in data.test)
    if not n_test:
        raise UsageError(
            f"fractions={data.record.get('fractions')} leave nothing to judge the model by: give the test a share, the "
            "third one (--set fractions=[0.8,0.1,0.1]), or a run of its own (--hold-out)"
        )
    work_dir = Path(work_dir)
    rank = process_rank(devices, nodes)
    with own_folder(work_dir, rank):
        return _train(model, data, spec, work_dir, rank, resume=resume, devices=devices, nodes=nodes, **options)


def _train(
    model: Model,
    data: Data,
    spec: TrainSpec,
    work_dir: Path,
    rank: int,
    *,
    resume: bool,
    until: float | None = None,
    written: Path | None = None,
    **options: Any,
) -> tuple[Model, Evaluation | None]:
    """:func:`train` in a folder that is its own; `until` is the end of the time, where that has begun before."""
    if options.get("minutes") is not None and until is None:
        until = time.monotonic() + 60 * options["minutes"]
    kept = options.get("enough", False) and until is not None
    plan = {
        "graph": model.graph.model_dump(mode="json"),
        "window": model.window.model_dump(mode="json"),
        "model": model.spec.model_dump(mode="json"),
        "training": spec.model_dump(mode="json"),
        "data": data.record,
    }
    record = work_dir / "training.json"
    if resume and record.exists():
        before = read_plan(record)
        now = json.loads(json.dumps(plan))
        if changed := [what for group in now for what in _changed(group, before[group], now[group])]:
            raise UsageError(
                f"the training in {work_dir} cannot be resumed with other settings: {'; '.join(changed)}; give the "
                "same ones, or begin a new one in another folder (--work)"
            )
        if written is not None:
            return _written(written, now, work_dir), None
    elif written is not None:
        raise _exists(written)
    elif rank == 0 and not any((work_dir / name).exists() for name in (LAST, PREVIOUS)):
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            write_whole(record, json.dumps(plan, indent=1).encode())
        except OSError as error:
            raise OutputError(f"cannot write in {work_dir} ({error}); choose another work folder") from error
    if model.spec.keep_bonds:
        model = dataclasses.replace(model, geometry={**model.geometry, **data.geometry})
    if model.spec.prior == "regression":
        model = dataclasses.replace(model, regression={**model.regression, **data.regression})
    if operators.get(model.spec.operator).drawing is not None:
        # What the model has begun with so far is what its weights go on from.
        if getattr(operators.options_of(model.spec), "base", "own") == "any":
            model = dataclasses.replace(model, elastic=model.elastic or {"any": elastic(data.train)})
        else:
            model = dataclasses.replace(model, process={**processes(data.train), **model.process})
    references = {
        name: float(errors[-1]) for name, errors in reference_errors(data.validation, data.regression).items()
    }
    if until is not None:  # what was done so far counts, and so does the test
        options["minutes"] = (until - time.monotonic()) * (1 - TEST * kept) / 60
    trained = fit(
        model, data.train, data.validation, spec, work_dir=work_dir, resume=resume, references=references, **options
    )
    if rank:
        return trained, None
    judged, began = {"seed": spec.seed, "device": options.get("device", "auto")}, time.monotonic()
    if isinstance(data.test, TrajectoryWindows):
        result = score_windows(trained, data.train, data.test, **judged)
    else:
        with Progress("test", "predicted frames", shown=options.get("progress", True)) as bar:
            judged["progress"] = bar.update
            result = score(trained, data.test, max_windows=TRIED if kept else MOST, **judged)
            if kept and until is not None:
                result = _more(
                    trained, data.test, result, began, max(until - began, 60 * TEST * options["minutes"]), judged
                )
    history = [*model.provenance.get("history", [])]
    if "training" in model.provenance:
        history.append({k: model.provenance[k] for k in ("data", "training", "test") if k in model.provenance})
    trained.provenance = {
        **{k: v for k, v in trained.provenance.items() if k not in ("data", "test", "history")},
        "data": data.record,
        "test": {
            "windows": result.n_windows,
            "of_windows": result.of_windows or result.n_windows,
            "mse_A2_per_step": {name: [round(float(e), 5) for e in values] for name, values in result.errors.items()},
            "skill_per_step": [round(float(g), 4) for g in result.skill],
            "skill_interval": [[None if np.isnan(e) else round(float(e), 4) for e in g] for g in result.skill_interval],
            "verdict": result.verdict,
        },
        **({"history": history} if history else {}),
    }
    return trained, result


def _written(file: Path, plan: Mapping[str, Any], work_dir: Path) -> Model:
    """The model of a training that is complete.

    Raises
    ------
    OutputError
        It is not, or the file is that of another one.
    """
    model = load_model(file)
    own = {**plan["training"], **{key: plan[key] for key in ("data", "graph", "window")}}
    found = {**model.provenance.get("training", {}), "data": model.provenance.get("data")}
    found |= {key: getattr(model, key).model_dump(mode="json") for key in ("graph", "window")}
    found["epoch_windows"] = own["epoch_windows"]  # where the time was short, those that it had
    if not finished(work_dir, own["max_epochs"]) or any(found.get(key) != value for key, value in own.items()):
        raise _exists(file)
    return model


def _exists(file: Path) -> OutputError:
    return OutputError(f"{file} exists; pass --force to replace it, or choose another name")


def _more(
    model: Model, test: Sequence[Part], result: Evaluation, began: float, seconds: float, judged: Mapping[str, Any]
) -> Evaluation:
    """A test of as many windows as fit into the rest of some seconds since `began`; a note says so where not all do.

    What the first windows took holds the fit of the baselines, which are kept: the next round knows better.
    """
    last, asked, total = began, TRIED, result.of_windows or 0
    for _ in range(ROUNDS):
        now = time.monotonic()
        fits = min(MOST, int(result.n_windows * (began + 0.9 * seconds - now) / max(now - last, 1e-9)))
        if fits <= asked or -(-total // fits) >= -(-total // asked):  # every so many-th window is tested
            break
        last, asked, result = now, fits, score(model, test, max_windows=fits, **judged)
    if -(-total // asked) <= -(-total // MOST):
        return result
    note = f"tested on {result.n_windows} of {total} windows, as many as there was time for (--minutes)"
    return dataclasses.replace(result, notes=(*result.notes, note))


def _changed(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is otherwise than it was written down; of as many runs as before, run by run."""
    then, runs = before.get("runs", ()), now.get("runs", ())
    found = []
    if len(then) == len(runs):
        now = {key: value for key, value in now.items() if key != "runs"}
        for old, new in zip(then, runs, strict=True):
            found += _changed(f"{where} of {new['file']}:", {**new, **old}, new)  # an earlier version wrote down less
    return found + [
        f"{where} {key} (then {before.get(key)!r}, now {value!r})"
        for key, value in now.items()
        if before.get(key) != value
    ]


def train_recipe(
    recipe: Recipe | str | os.PathLike,
    *,
    work_dir: str | Path,
    resume: bool = False,
    name: str = "unnamed",
    limit: int = MEMORY_LIMIT,
    **options: Any,
) -> tuple[Model, Evaluation | None]:
    """From a recipe to a judged model; what ``egno-md train`` does.

    Parameters
    ----------
    recipe : Recipe or path
        What is not in it comes from its preset, its data set or its files; see :func:`complete`.
    work_dir, resume
        See :func:`fit`.
    name : str
        Of the new model.
    limit : int
        Bytes of a run that are kept in memory; longer ones go into the work folder.
    **options
        ``device``, ``devices``, ``nodes``, ``precision``, ``progress``, ``minutes`` and ``enough`` of :func:`fit`;
        ``written``: a model file that exists and must stay. Where it is what this training ended with, it is read and
        nothing is trained or judged; else it is refused.

    Returns
    -------
    Model, Evaluation
        See :func:`train`.

    Raises
    ------
    UsageError, DataError, ModelError, OutputError
        Of :func:`complete`, of reading the data, and of :func:`fit`.
    """
    began = time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    source = source_of(recipe)
    plan = planned(complete(recipe, source))
    if plan.graph is None:
        model = load_model(recipe.init)
    else:
        model = new_model(plan.graph, plan.window, plan.model, seed=plan.training.seed)
    work_dir = Path(work_dir)
    rank = process_rank(options.get("devices", 1), options.get("nodes", 1))
    folder = work_dir / f"frames-{rank}" if rank else work_dir  # no two processes may write the same file
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the work folder {folder} ({error}); choose another one (--work)") from error
    if options.get("minutes") is not None:
        options["until"] = began + 60 * options["minutes"]
    with own_folder(work_dir, rank):
        return _train_plan(source, plan, model, name, work_dir, folder, rank, limit, resume=resume, **options)


def _train_plan(
    source: Any, plan: Any, model: Model, name: str, work_dir: Path, folder: Path, rank: int, limit: int, **options: Any
) -> tuple[Model, Evaluation | None]:
    """:func:`train_recipe` in a folder that is its own."""
    data = source.load(model.graph, model.window, folder=folder, limit=limit)
    if rank and not any(folder.iterdir()):
        folder.rmdir()
    draws = operators.get(model.spec.operator).drawing is not None  # such a one begins with a distribution instead
    if plan.choose_prior and not draws and _one_molecule(data, model.window):
        errors = choose_prior(data, model.window)
        data.record["prior_validation_a_mse"] = errors
        model = dataclasses.replace(model, spec=model.spec.model_copy(update={"prior": next(iter(errors))}))
    return train(dataclasses.replace(model, name=name), data, plan.training, work_dir=work_dir, **options)


def train_files(
    systems: Sequence[System],
    *,
    work_dir: str | Path,
    init: str | os.PathLike | Model | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    name: str = "unnamed",
    limit: int = MEMORY_LIMIT,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    precision: str = "32-true",
    progress: bool = True,
    **short: Any,
) -> tuple[Model, Evaluation | None]:
    """:func:`train_recipe` for files, with short names for what most people set.

    Parameters
    ----------
    systems : sequence of System
    init : path-like or Model, optional
        A model to fine-tune. It brings its selection, window and operator.
    settings : mapping of str to value, optional
        Any setting of a recipe, such as ``{"noise": 0.1, "graph.n_rbf": 20}``; see :func:`overridden`.
    work_dir, resume, name, limit, device, devices, nodes, precision, progress
        See :func:`train_recipe`.
    **short
        ``select``, ``cutoff``, ``stride`` (ps), ``every`` (frames), ``dt``, ``n_times``, ``span``, ``history``,
        ``sampling``, ``operator``, ``hidden``, ``layers``, ``preset``, ``epochs``, ``epoch_windows``, ``batch_size``,
        ``lr``, ``patience``, ``seed``, ``split`` and ``blocks``: see `SHORT` for their places in a recipe. None is the
        same as leaving one out.

    Raises
    ------
    UsageError, DataError, ModelError, OutputError
        See :func:`train_recipe`.
    """
    recipe = Recipe(data={"systems": [dataclasses.asdict(system) for system in systems]})
    recipe = overridden(shortly(recipe, **short), settings or {})
    init = init if isinstance(init, Model) or init is None else os.fspath(init)
    return train_recipe(
        recipe if init is None else recipe.model_copy(update={"init": init}),
        work_dir=work_dir,
        resume=resume,
        name=name,
        limit=limit,
        device=device,
        devices=devices,
        nodes=nodes,
        precision=precision,
        progress=progress,
    )


def _one_molecule(data: Data, window: WindowSpec) -> bool:
    """Whether a prior can be chosen: of several molecules a model is made that has to work on others too."""
    molecules = {run.builder.identity for run in data.train.runs}
    return len(molecules) == 1 and window.history == 1 and window.velocity == "backward"
