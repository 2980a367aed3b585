"""From files to a judged model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..errors import OutputError, UsageError
from ..evaluation.result import Evaluation
from ..evaluation.score import score
from ..forecast.model import Model, load_model, new_model
from ..graph.windows import MEMORY_LIMIT
from ..specs import PRESETS, ModelSpec, TrainSpec, WindowSpec
from .data import Data, System, common_stride, default_graph, load_data
from .loop import fit
from .process import process_rank
from .reference import reference_errors


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
        A resumed training with other settings or files.
    """
    work_dir = Path(work_dir)
    rank = process_rank(devices, nodes)
    plan = {
        "graph": model.graph.model_dump(mode="json"),
        "window": model.window.model_dump(mode="json"),
        "model": model.spec.model_dump(mode="json"),
        "training": spec.model_dump(mode="json"),
        "data": data.record,
    }
    record = work_dir / "training.json"
    if resume and record.exists():
        before = json.loads(record.read_text())
        changed = [
            f"{group} {key} (then {before[group].get(key)!r}, now {value!r})"
            for group, values in json.loads(json.dumps(plan)).items()
            for key, value in values.items()
            if before[group].get(key) != value
        ]
        if changed:
            raise UsageError(
                f"the training in {work_dir} cannot be resumed with other settings: {'; '.join(changed)}; give the "
                "same ones, or begin a new one in another folder"
            )
    elif rank == 0 and not (work_dir / "last.ckpt").exists():
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(plan, indent=1))
        except OSError as error:
            raise OutputError(f"cannot write in {work_dir} ({error}); choose another work folder") from error
    if model.spec.keep_bonds:
        model = dataclasses.replace(model, geometry={**model.geometry, **data.geometry})
    if model.spec.prior == "regression":
        model = dataclasses.replace(model, regression={**model.regression, **data.regression})
    references = {
        name: float(errors[-1]) for name, errors in reference_errors(data.validation, data.regression).items()
    }
    trained = fit(
        model, data.train, data.validation, spec, work_dir=work_dir, resume=resume, devices=devices, nodes=nodes,
        references=references, **options,
    )  # fmt: skip
    if rank:
        return trained, None
    result = score(trained, data.test, seed=spec.seed, device=options.get("device", "auto"))
    history = [*model.provenance.get("history", [])]
    if "training" in model.provenance:
        history.append({k: model.provenance[k] for k in ("data", "training", "test") if k in model.provenance})
    trained.provenance = {
        **{k: v for k, v in trained.provenance.items() if k not in ("data", "test", "history")},
        "data": data.record,
        "test": {
            "windows": result.n_windows,
            "mse_A2_per_step": {name: [round(float(e), 5) for e in values] for name, values in result.errors.items()},
            "skill_per_step": [round(float(g), 4) for g in result.skill],
            "skill_interval": [[None if np.isnan(e) else round(float(e), 4) for e in g] for g in result.skill_interval],
            "verdict": result.verdict,
        },
        **({"history": history} if history else {}),
    }
    return trained, result


def train_files(
    systems: Sequence[System],
    *,
    work_dir: str | Path,
    resume: bool = False,
    name: str = "unnamed",
    init: str | os.PathLike | Model | None = None,
    select: str | None = None,
    cutoff: float | None = None,
    stride: float | None = None,
    every: int | None = None,
    dt: float | None = None,
    n_times: int | None = None,
    span: int | None = None,
    history: str | None = None,
    sampling: str | None = None,
    operator: str | None = None,
    preset: str | None = None,
    hidden: int | None = None,
    layers: int | None = None,
    epochs: int | None = None,
    epoch_windows: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    patience: int | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    blocks: int = 1,
    limit: int = MEMORY_LIMIT,
    **options: Any,
) -> tuple[Model, Evaluation]:
    """From files to a judged model; what ``egno-md train`` does. What is None is the preset's, or the model's.

    Parameters
    ----------
    systems : sequence of System
    work_dir, resume
        See :func:`fit`.
    name : str
        Of the new model.
    init : str, path-like or Model, optional
        A model to fine-tune. It brings its selection, window and operator.
    select, cutoff
        See :class:`egno_md.GraphSpec`.
    stride, every
        Time between two frames of the model in ps, or that many frames of the files.
    n_times, span, sampling
        See :class:`egno_md.WindowSpec`.
    history : {"state", "trajectory"}
    operator, hidden, layers
        See :class:`egno_md.ModelSpec`.
    preset : {"default", "paper"}
        With "default" and runs of one molecule, the prior is the one with the lower validation error, see
        :func:`choose_prior`.
    epochs, epoch_windows, batch_size, lr, patience, seed
        See :class:`egno_md.TrainSpec`.
    settings : mapping of str to value, optional
        Any other field of :class:`egno_md.ModelSpec` or :class:`egno_md.TrainSpec`, such as ``{"noise": 0.1}``.
    split, blocks, dt, limit
        See :func:`load_data`.
    **options
        ``device``, ``devices``, ``nodes``, ``precision`` and ``progress`` of :func:`fit`.

    Raises
    ------
    UsageError, DataError, ModelError, OutputError
        See :func:`load_data` and :func:`fit`.
    """
    if any(share < 0 for share in split) or min(split[:2]) <= 0 or abs(sum(split) - 1) > 1e-6:
        raise UsageError(
            f"split must be three shares that sum to 1, train and validation above 0; found {tuple(split)}"
        )
    if stride is not None and every is not None:
        raise UsageError("give the stride in ps (--stride) or in frames (--every), not both")
    if every is not None and every < 1:
        raise UsageError(f"every must be at least 1, found {every}")
    try:
        model_spec, training = PRESETS[preset or "default"]
        settings = dict(settings or {})
        for_model = {key: settings.pop(key) for key in list(settings) if key in ModelSpec.model_fields}
        if unknown := set(settings) - set(TrainSpec.model_fields):
            raise UsageError(
                f"there is no setting {', '.join(sorted(unknown))}; known are "
                f"{', '.join([*ModelSpec.model_fields, *TrainSpec.model_fields])}"
            )
        given = {
            "seed": seed,
            "max_epochs": epochs,
            "epoch_windows": epoch_windows,
            "batch_size": batch_size,
            "learning_rate": lr,
            "patience": patience,
        }
        training = TrainSpec(**{**training.model_dump(), **_given(given), **settings})
        if init is not None:
            own = dict(select=select, cutoff=cutoff, window=n_times, span=span, history=history, sampling=sampling)
            own |= dict(operator=operator, preset=preset, hidden=hidden, layers=layers, stride=stride) | for_model
            if found := _given(own):
                raise UsageError(
                    f"a model to fine-tune brings its own {', '.join(found)}: leave out --{' --'.join(found)}"
                )
            model = load_model(init)
        else:
            graph = default_graph(systems, select or "ca", cutoff=cutoff or 10.0)
            n_times = 8 if n_times is None else n_times
            values = {"n_times": n_times, "span": span, "sampling": sampling}
            window = WindowSpec(
                stride_ps=common_stride(systems, every=every or 1, dt=dt) if stride is None else stride,
                history=n_times if history == "trajectory" else 1,
                **_given(values),
            )
            given = {"operator": operator, "hidden": hidden, "layers": layers}
            model_spec = ModelSpec(**{**model_spec.model_dump(), **_given(given), **for_model})
            # With fewer points in time there are fewer modes (section 4.2).
            model_spec = model_spec.model_copy(update={"modes": min(model_spec.modes, window.n_times // 2 + 1)})
            model = new_model(graph, window, model_spec, seed=seed)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, wrong['loc'])) or 'window'}: {wrong['msg']}") from error
    work_dir = Path(work_dir)
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the work folder {work_dir} ({error}); choose another one (--work)") from error
    data = load_data(
        systems, model.graph, model.window, fractions=split, blocks=blocks, every=every, dt=dt, folder=work_dir,
        limit=limit,
    )  # fmt: skip
    if init is None and preset != "paper" and "prior" not in for_model and _one_molecule(data, model.window):
        errors = choose_prior(data, model.window)
        data.record["prior_validation_a_mse"] = errors
        model = dataclasses.replace(model, spec=model.spec.model_copy(update={"prior": next(iter(errors))}))
    return train(
        dataclasses.replace(model, name=name), data, training, work_dir=work_dir, resume=resume, **options
    )  # fmt: skip


def _one_molecule(data: Data, window: WindowSpec) -> bool:
    """Whether a prior can be chosen: of several molecules a model is made that has to work on others too."""
    molecules = {run.builder.identity for run in data.train.runs}
    return len(molecules) == 1 and window.history == 1 and window.velocity == "backward"


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
