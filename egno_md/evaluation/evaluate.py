"""What a model is worth on a run: errors beside the baselines, and how long chains look."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, ModelError, UsageError, counted
from ..forecast.forecasters import Known
from ..forecast.rolling import REVERTING
from ..forecast.streams import Streams, check_seed
from ..forecast.subject import Subject
from ..graph.windows import Run, frames_back
from .calibration import MOST_WINDOWS, calibrate
from .quality import quality
from .result import Evaluation
from .score import Part, score

if TYPE_CHECKING:
    from ..forecast.model import Model


def half_parts(runs: Sequence[Run], model: Model, horizon: int, sources: Sequence[str] = ()) -> list[Part]:
    """Every window of some runs of one system, those of either half with the baselines of the other half.

    The halves are those of all frames in order, so that no baseline has seen what it predicts and no window is lost
    but those across the middle.

    Parameters
    ----------
    runs : sequence of Run
    model : Model
    horizon : int
        Predicted frames.
    sources : sequence of str, optional
        The file that each run is from; see :class:`Part`.

    Raises
    ------
    DataError
        A half without a window.
    """
    from ..forecast.chain import forecast_times

    window = model.window
    steps = tuple(np.round(forecast_times(model, horizon) / window.stride_ps).astype(int).tolist())
    ahead = max(steps[-1], int(window.velocity == "forward"))
    total = sum(len(run.positions) for run in runs)
    halves: list[list[tuple[Run, int, int]]] = [[], []]
    before = 0
    origin = dict(zip(map(id, runs), sources, strict=bool(sources)))
    for run in runs:
        n = len(run.positions)
        middle = int(np.clip(total // 2 - before, 0, n))
        for half, low, high in ((0, 0, middle), (1, middle, n)):
            if high > low:
                halves[half].append((run, low, high))
        before += n
    parts = []
    for half, other in ((0, 1), (1, 0)):
        chosen = []
        for run, low, high in halves[half]:
            first, last = low + frames_back(window) * run.every, high - ahead * run.every
            if last > first:
                chosen.append((run, np.arange(first, last)))
        if not chosen or not any(hi - lo > run.every for run, lo, hi in halves[other]):
            need = 2 * ((frames_back(window) + ahead) * runs[0].every + 1)
            raise DataError(
                f"too few frames to evaluate {counted(horizon, 'predicted frame')}: found {counted(total, 'frame')}, "
                f"each half needs a window, {need} frames in all; use a longer run or a shorter horizon"
            )
        known = Known([r.positions[lo:hi] for r, lo, hi in halves[other]], steps, runs[0].every)
        parts += [Part(run, starts, known, origin.get(id(run), "")) for run, starts in chosen]
    return parts


def evaluate(
    model: str | os.PathLike | Model | None,
    source: Any,
    *trajectories: str | os.PathLike,
    select: str | None = None,
    horizon: int | None = None,
    every: int | None = None,
    start: int = 0,
    stop: int | None = None,
    dt: float | None = None,
    chains: int = 0,
    chain_length: int | None = None,
    samples: int = 0,
    max_windows: int = 2000,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """What a model is worth on a run: errors beside the baselines, and how its chains look.

    The free forecasts of a window are fitted to the other half of the data, so all frames are judged and none of them
    sees what it predicts.

    Parameters
    ----------
    model : str, path-like, Model or None
        See :func:`egno_md.load_model`.
    source : Universe, AtomGroup or path
        The run, or a topology file.
    *trajectories : path
        With a topology file: each is a run of its own.
    select : str, optional
        Narrows the model's selection.
    horizon : int, optional
        Predicted frames; the model's window when None, more are chained.
    every : int, optional
        Frames per stride, to be checked against the times in the file; read from them when None.
    start, stop : int
        Frames of each run, as in a slice: the part that the model was not trained on.
    dt : float, optional
        Spacing of the frames in ps, where the headers are wrong.
    chains : int
        Long chains to look at, from starts spread evenly over the run; drawn ones, of a model that draws.
    chain_length : int, optional
        Frames of each; 25 windows when None.
    samples : int
        Futures to draw from each of up to 400 windows (fewer with `max_windows`), to judge those who draw; 0 draws
        none.
    max_windows, seed, device, progress
        See :func:`score`.

    Raises
    ------
    UsageError, DataError, ModelError
        Arguments, files or frames that do not fit; the message has the cure.

    Examples
    --------
    >>> from egno_md import sample
    >>> from egno_md.evaluation import evaluate
    >>> result = evaluate("ca-1ps", *sample())
    >>> sorted(result.errors)
    ['AR(1)', 'Gaussian process', 'analogues', 'elastic network', \
'ensemble of the run', 'linear', 'mean structure', 'model', 'regression', 'smoothed history', 'static']
    """
    from ..forecast.chain import check_request  # brings torch: what else is in this room does not wait for it
    from ..forecast.model import load_model

    model = load_model(model)
    horizon = model.window.n_times if horizon is None else horizon
    check_request(model, horizon, 1)
    check_seed(seed)
    for name, value, least in (
        ("max_windows (--windows)", max_windows, 1),
        ("chains (--chains)", chains, 0),
        ("chain_length (--chain-length)", chain_length, 2),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, found {value}")
    subjects = Subject.each(
        source, trajectories, model.graph, model.window, dt=dt, select=select, every=every, who=f"model {model.name!r}"
    )
    model = model.at_stride(subjects[0].window.stride_ps)
    builder = subjects[0].builder
    runs: list[Run] = []
    sources: list[str] = []
    for k, subject in enumerate(subjects):
        found_runs = subject.runs(start, stop)
        runs += found_runs
        sources += [str(trajectories[k]) if trajectories else subject.name] * len(found_runs)
    parts = half_parts(runs, model, horizon, sources)
    result = score(
        model,
        parts,
        horizon=horizon,
        max_windows=max_windows,
        seed=seed,
        device=device,
        progress=progress,
    )
    calibration = None
    if samples:
        steps = np.round(result.times / model.window.stride_ps).astype(int)  # (T,)
        calibration = calibrate(
            parts, steps, result.times, samples, model=model, max_windows=min(max_windows, MOST_WINDOWS), seed=seed,
            device=device,
        )  # fmt: skip
    notes = [*result.notes, *_overlap(model, sources, runs)]
    fitted, learned = max(sum(map(len, part.known.segments)) for part in parts), _learned(model)
    if learned > fitted:
        notes.append(
            f"the model learned from {learned} frames, and the baselines were fitted to {fitted}, half of what was "
            "given: at the end of its training it was judged beside baselines that knew as much (egno-md info MODEL)"
        )
        result = dataclasses.replace(result, fitted_frames=fitted, learned_frames=learned)
    used = {id(part.run) for part in parts}
    if short := sum(len(run.positions) for run in runs if id(run) not in used):
        total = sum(len(run.positions) for run in runs)
        notes.append(f"{short} of {total} frames lie in even stretches that are too short for a window")
    found = None
    if chains:
        length = chain_length or 25 * model.window.n_times
        try:
            found = quality(
                builder,
                _chains(model, runs, parts, chains, length, seed, device, progress),
                [run.positions[:: run.every] for run in runs],
                model.window.stride_ps,
            )
        except ModelError as error:
            notes.append(f"the chains broke down: {error}")
    return dataclasses.replace(result, quality=found, calibration=calibration, notes=tuple(notes))


def _chains(
    model: Model,
    runs: Sequence[Run],
    parts: Sequence[Part],
    count: int,
    length: int,
    seed: int,
    device: str,
    progress: Callable[[int], None] | None,
) -> list[np.ndarray]:
    """Chains (F, N, 3); long ones that are drawn are called back to what their part of the run does not hold."""
    from ..forecast.chain import ModelForecaster, check_request

    check_request(model, length, 1)
    starts = [(run, s) for run in runs for s in range(frames_back(model.window) * run.every, len(run.positions))]
    if not starts:
        raise DataError("no frame has the past that a chain starts from")
    picked = [starts[k] for k in np.unique(np.linspace(0, len(starts) - 1, count + 2).astype(int)[1:-1])]
    n_windows = -(-length // model.window.n_times)
    forecasters: dict[int | None, ModelForecaster] = {}
    out = []
    for number, (run, s) in enumerate(picked):
        # The part that a start lies in: the last that begins before it.
        own = next((part for part in reversed(parts) if part.run is run and part.starts[0] <= s), None)
        forecaster = forecasters.get(key := None if own is None else id(own.known))
        if forecaster is None:
            forecaster = ModelForecaster(model, run.builder, device=device, n_windows=n_windows)
            if own is not None and forecaster.draws and n_windows > REVERTING:
                forecaster.revert_to(own.known)
            forecasters[key] = forecaster
        history = run.positions[s + np.arange(-frames_back(model.window), 1) * run.every]  # (n_input, N, 3)
        box = None if run.boxes is None else [run.boxes[s]]
        drawn = (1, Streams.of(seed, [number], 1)) if forecaster.draws else ()
        path = forecaster.collect(history[None], length, *drawn, boxes=box, progress=progress)
        out.append(path.reshape(length, -1, 3))  # (F, N, 3)
    return out


def _runs_of(model: Model) -> list[dict[str, Any]]:
    """The runs that a model was trained on, as far as it says so."""
    data = model.provenance.get("data")
    return [run for run in data.get("runs", []) if run["part"] != "test"] if isinstance(data, dict) else []


def _learned(model: Model) -> int:
    """Frames that a model was trained on, as far as it says so."""
    return round(sum(run["frames"] * model.provenance["data"]["fractions"][0] for run in _runs_of(model)))


def _overlap(model: Model, sources: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """A note for each file that the model was trained on; files are known by name and length."""
    trained = {(e["file"], e["frames"]): e.get("test_from") for e in _runs_of(model)}
    notes = []
    for file, run in zip(sources, runs, strict=True):
        name = os.path.basename(file)
        if (name, len(run.positions)) in trained:
            free = trained[name, len(run.positions)]
            # Frames of a stretch are no frames of its file.
            cure = (
                f"; frames from {free} on were not: --start {free}"
                if free is not None and sources.count(file) == 1
                else ""
            )
            notes.append(f"{name} seems to be a file that the model was trained on{cure}")
    return list(dict.fromkeys(notes))
