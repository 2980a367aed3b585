"""What a forecast is worth: errors beside the baselines, and how long chains look."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ModelError, UsageError
from ..forecast.chain import check_request, forecast, forecast_times, restored
from ..forecast.forecasters import InternalMotion, baselines
from ..forecast.model import Model, load_model
from ..graph.builder import GraphBuilder
from ..graph.windows import Run, frames_back, read_runs
from ..molecule.atoms import select_atoms
from ..trajectory.clock import frames_per_stride
from ..trajectory.universe import open_sources
from .errors import skill, squared_errors
from .quality import Quality, quality
from .statistics import block_bootstrap, independent_blocks, integrated_time

#: Fewer independent blocks than this give no interval.
MIN_BLOCKS = 4

#: Share of the bootstrap's resamples outside the interval.
OUTSIDE = 0.05

_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Part:
    """Windows of one run, to be judged together with those of other parts.

    Attributes
    ----------
    run : Run
    starts : ndarray of int
        Start frames, increasing.
    motion : InternalMotion
        For the baselines; fitted on other frames than those that the windows predict.
    """

    run: Run
    starts: np.ndarray
    motion: InternalMotion


@dataclass(frozen=True)
class Evaluation:
    """Errors of a model beside those of the baselines; Angstrom squared and ps.

    Attributes
    ----------
    model : str
        Its name.
    times : ndarray, shape (T,)
        ps after the start.
    errors : dict of str to ndarray (T,)
        Mean squared error per coordinate at every step: ``"model"`` and the baselines ``"static"``, ``"linear"``,
        ``"mean structure"`` and ``"AR(1)"``.
    intervals : dict of str to ndarray (T, 2)
        95 % intervals of the errors; nan where the data hold fewer than four independent blocks.
    skill : ndarray, shape (T,)
        ``1 - error / error of the best baseline`` at every step.
    skill_interval : ndarray, shape (T, 2)
        From the same resamples for model and baselines; the best baseline is chosen anew in each of them.
    f_skill, a_skill : tuple of float
        Skill of F-MSE and A-MSE with the ends of its interval.
    n_windows, n_runs, n_atoms : int
        What was judged; `n_atoms` of the largest system.
    block : int
        Windows per block of the bootstrap.
    n_blocks : int
        Independent blocks in the data.
    quality : Quality, optional
        Of chains, if any were asked for.
    as_predicted : ndarray, shape (T,), optional
        Errors of the model's frames before they are brought back to a local geometry (``ModelSpec.keep_bonds``), where
        the steps are those of one window: what physical frames cost.
    prior : ndarray, shape (T,), optional
        Errors of the regression alone that the model corrects (``ModelSpec.prior``), for the steps of one window.
    notes : tuple of str
        What to know before the numbers are believed.
    """

    model: str
    times: NDArray[np.float64]
    errors: dict[str, NDArray[np.float64]]
    intervals: dict[str, NDArray[np.float64]]
    skill: NDArray[np.float64]
    skill_interval: NDArray[np.float64]
    f_skill: tuple[float, float, float]
    a_skill: tuple[float, float, float]
    n_windows: int
    n_runs: int
    n_atoms: int
    block: int
    n_blocks: int
    quality: Quality | None = None
    as_predicted: NDArray[np.float64] | None = None
    prior: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def f_mse(self) -> dict[str, float]:
        """Error at the last step, of the model and of every baseline."""
        return {name: float(e[-1]) for name, e in self.errors.items()}

    @property
    def a_mse(self) -> dict[str, float]:
        """Mean error of all steps."""
        return {name: float(e.mean()) for name, e in self.errors.items()}

    @property
    def best_baseline(self) -> list[str]:
        """The best baseline at every step."""
        names = [name for name in self.errors if name != "model"]
        return [names[int(k)] for k in np.argmin([self.errors[name] for name in names], axis=0)]

    @property
    def verdict(self) -> str:
        """One sentence: is the forecast better than what is there for nothing?"""
        n = len(self.times)
        if np.isnan(self.skill_interval).any():
            better = int((self.skill > 0).sum())
            return (
                f"better than every baseline at {better} of {n} steps, but the data are too few for an interval: "
                f"{self.n_blocks} independent block(s), {MIN_BLOCKS} are needed"
            )
        sure = self.skill_interval[:, 0] > 0
        if sure.all():
            return "better than every baseline at every step, beyond the interval"
        worse = ", ".join(f"{t:g}" for t in self.times[~sure])
        return f"better than every baseline at {sure.sum()} of {n} steps; not beyond the interval at t/ps = {worse}"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; not a number is None."""
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "quality"}
        out.update(f_mse=self.f_mse, a_mse=self.a_mse, best_baseline=self.best_baseline, verdict=self.verdict)
        out["quality"] = None
        if self.quality is not None:
            out["quality"] = {
                "n_chains": self.quality.n_chains,
                "chain_length": self.quality.chain_length,
                "rows": {name: dict(chains=a, run=b, floor=c) for name, a, b, c in self.quality.rows()},
            }
        return plain(out)

    def table(self) -> str:
        """For people."""
        names = list(self.errors)
        lines = [
            f"model      {self.model}",
            f"data       {self.n_windows} windows of {self.n_runs} run(s), up to {self.n_atoms} atoms; "
            f"{self.n_blocks} independent block(s) of {self.block} windows",
            "error      mean squared, per coordinate, A^2 (95 % interval); nothing is superposed",
            "",
            f"{'t/ps':>8}  {'model':>26}" + "".join(f"{name:>16}" for name in names[1:]) + f"{'skill':>27}",
        ]
        for k, t in enumerate(self.times):
            low, high = self.intervals["model"][k]
            row = f"{t:>8g}  {self.errors['model'][k]:>9.4f}{_interval(low, high, '.4f'):>17}"
            row += "".join(f"{self.errors[name][k]:>16.4f}" for name in names[1:])
            lines.append(row + _percent(self.skill[k], *self.skill_interval[k]))
        for label, values, gain in (("F-MSE", self.f_mse, self.f_skill), ("A-MSE", self.a_mse, self.a_skill)):
            row = f"{label:>8}  {values['model']:>9.4f}{'':>17}"
            lines.append(row + "".join(f"{values[name]:>16.4f}" for name in names[1:]) + _percent(*gain))
        lines += ["", f"verdict    {self.verdict}"]
        if self.as_predicted is not None:
            lines.append(
                f"geometry   brought back in every frame: A-MSE {self.a_mse['model']:.4f}, as predicted "
                f"{self.as_predicted.mean():.4f}"
            )
        if self.prior is not None:
            lines.append(
                f"prior      the regression that the operator corrects: A-MSE {self.prior.mean():.4f} by itself"
            )
        if self.quality is not None:
            q = self.quality
            lines += [
                "",
                f"chains     {q.n_chains} of {q.chain_length} frames; floor: second half of the run beside its first",
                f"{'':<42}{'chains':>12}{'run':>12}{'floor':>12}",
                *(
                    f"{name:<42}" + "".join(f"{'-' if np.isnan(v) else format(v, '.3f'):>12}" for v in values)
                    for name, *values in q.rows()
                ),
            ]
        return "\n".join(lines + [f"note       {note}" for note in self.notes])


def _interval(low: float, high: float, how: str) -> str:
    return "" if np.isnan(low) else f"[{low:{how}}, {high:{how}}]"


def _percent(value: float, low: float, high: float) -> str:
    return f"{value:>+10.1%}" + (f"{'':>17}" if np.isnan(low) else f"{f'[{low:+.1%}, {high:+.1%}]':>17}")


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def score(
    model: Model,
    parts: Sequence[Part],
    *,
    horizon: int | None = None,
    max_windows: int = 2000,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Forecast from every window and compare with what came.

    Parameters
    ----------
    model : Model
    parts : sequence of Part
        Every window counts the same.
    horizon : int, optional
        Predicted frames; the model's window when None. The starts must leave room for them.
    max_windows : int
        Of more, evenly spread ones are judged.
    seed : int
        Of the bootstrap.
    device : str
    progress : callable, optional
        Called with the number of frames just predicted.

    Raises
    ------
    DataError
        No window.
    ModelError
        See :func:`egno_md.forecast.forecast`.
    """
    window = model.window
    horizon = window.n_times if horizon is None else horizon
    check_request(model, horizon, 1)
    times = forecast_times(model, horizon)
    steps = np.round(times / window.stride_ps).astype(int)  # (T,) strides
    total = sum(len(part.starts) for part in parts)
    if total == 0:
        raise DataError("there is no window to evaluate")
    thin = -(-total // max_windows)
    one_window = horizon <= window.n_times and model.spec.keep_bonds
    bare = dataclasses.replace(model, spec=model.spec.model_copy(update={"keep_bonds": False})) if one_window else model
    errors: dict[str, list[np.ndarray]] = {}
    as_predicted: list[np.ndarray] = []
    prior: list[np.ndarray] = []
    groups, spacings = [], []
    for group, part in enumerate(parts):
        run, starts = part.run, np.asarray(part.starts)[::thin]
        groups += [group] * len(starts)
        spacings += list(np.diff(starts))
        chunk = max(1, _CHUNK_BYTES // (8 * 3 * run.builder.n_atoms * (horizon + window.n_times)))
        for first in range(0, len(starts), chunk):
            some = starts[first : first + chunk]
            past = some[:, None] + np.arange(-frames_back(window), 1) * run.every  # (S, n_input)
            history = np.asarray(run.positions[past], np.float32)  # (S, n_input, N, 3)
            predicted = forecast(
                bare,
                run.builder,
                history,
                horizon,
                boxes=None if run.boxes is None else list(run.boxes[some]),
                device=device,
                progress=progress,
            )  # (S, T, N, 3)
            true = run.positions[some[:, None] + steps * run.every]  # (S, T, N, 3)
            start = history[:, -1].astype(np.float64)  # (S, N, 3)
            if one_window:
                as_predicted.append(squared_errors(predicted, true))  # (S, T)
                predicted = restored(model, run.builder, predicted.astype(np.float64), start[:, None])
            if model.spec.prior == "regression" and horizon <= window.n_times:
                path = model.regression[run.builder.identity].path(start, start - history[:, -2], steps)
                prior.append(squared_errors(path, true))  # (S, T)
            paths = baselines(start, start - history[:, -2], steps, part.motion)
            for name, path in {"model": predicted, **paths}.items():
                errors.setdefault(name, []).append(squared_errors(path, true))  # (S, T)
    names = list(errors)
    values = np.stack([np.concatenate(errors[name]) for name in names], axis=1)  # (S, K, T)
    group_of = np.asarray(groups)
    every = parts[0].run.every
    between = float(np.median(spacings)) if spacings else 1.0  # frames between two windows
    length = int(np.ceil((frames_back(window) + steps[-1]) * every / between))
    memory = integrated_time([values[group_of == g, 0].mean(axis=1) for g in np.unique(group_of)])
    block = max(1, length + int(np.ceil(memory)))
    n_blocks = independent_blocks(group_of, block)
    mean = values.mean(axis=0)  # (K, T)
    with_last = np.concatenate([mean, mean.mean(axis=1, keepdims=True)], axis=1)  # (K, T + 1): the A-MSE comes last
    gain = skill(with_last[0], with_last[1:])  # (T + 1,)
    low_high = np.full((2, len(names), horizon), np.nan)
    gain_range = np.full((2, horizon + 1), np.nan)
    if n_blocks >= MIN_BLOCKS:
        drawn = block_bootstrap(values, group_of, block, seed=seed)  # (R, K, T)
        drawn = np.concatenate([drawn, drawn.mean(axis=2, keepdims=True)], axis=2)  # (R, K, T + 1)
        ends = [OUTSIDE / 2, 1 - OUTSIDE / 2]
        low_high = np.quantile(drawn[..., :-1], ends, axis=0)
        gain_range = np.quantile(skill(drawn[:, 0], drawn[:, 1:].swapaxes(0, 1)), ends, axis=0)
    return Evaluation(
        model=model.name,
        times=times,
        errors={name: mean[k] for k, name in enumerate(names)},
        intervals={name: low_high[:, k].T for k, name in enumerate(names)},
        skill=gain[:-1],
        skill_interval=gain_range[:, :-1].T,
        f_skill=(float(gain[-2]), *gain_range[:, -2].tolist()),
        a_skill=(float(gain[-1]), *gain_range[:, -1].tolist()),
        n_windows=len(values),
        n_runs=len({id(part.run) for part in parts}),
        n_atoms=max(part.run.builder.n_atoms for part in parts),
        block=block,
        n_blocks=n_blocks,
        as_predicted=np.concatenate(as_predicted).mean(axis=0) if as_predicted else None,
        prior=np.concatenate(prior).mean(axis=0) if prior else None,
    )


def half_parts(runs: Sequence[Run], model: Model, horizon: int) -> list[Part]:
    """Every window of some runs of one system, those of either half with the baselines of the other half.

    The halves are those of all frames in order, so that no baseline has seen what it predicts and no window is lost
    but those across the middle.

    Raises
    ------
    DataError
        A half without a window.
    """
    window = model.window
    ahead = max(int(round(forecast_times(model, horizon)[-1] / window.stride_ps)), window.velocity == "forward")
    total = sum(len(run.positions) for run in runs)
    halves: list[list[tuple[Run, int, int]]] = [[], []]
    before = 0
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
                f"{total} frames are too few to evaluate {horizon} predicted frame(s): each half needs a window, "
                f"{need} frames in all; use a longer run or a shorter horizon"
            )
        motion = InternalMotion.fit([r.positions[lo:hi] for r, lo, hi in halves[other]], runs[0].every)
        parts += [Part(run, starts, motion) for run, starts in chosen]
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
    max_windows: int = 2000,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """What a model is worth on a run: errors beside the baselines, and how its chains look.

    The mean structure and AR(1) of a window are fitted on the other half of the data, so all frames are judged and no
    baseline sees what it predicts.

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
        Long chains to look at, from starts spread evenly over the run.
    chain_length : int, optional
        Frames of each; 25 windows when None.
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
    ['AR(1)', 'linear', 'mean structure', 'model', 'static']
    """
    model = load_model(model)
    horizon = model.window.n_times if horizon is None else horizon
    check_request(model, horizon, 1)
    if chains < 0 or (chain_length is not None and chain_length < 2):
        raise UsageError(f"chains must be at least 0 and their length at least 2, found {chains} and {chain_length}")
    runs: list[Run] = []
    builder: GraphBuilder | None = None
    for k, whole in enumerate(open_sources(source, trajectories, dt)):
        atoms = select_atoms(whole, model.graph.select)
        if select is not None:
            atoms = atoms.intersection(select_atoms(whole, select))
            if not len(atoms):
                raise DataError(f"selection {select!r} holds none of the model's atoms ({model.graph.select!r})")
        stride = frames_per_stride(whole.universe, model.window.stride_ps, every, what=f"model {model.name!r}")
        builder = builder or GraphBuilder(atoms, model.graph)
        name = os.path.basename(str(trajectories[k])) if trajectories else "run"
        runs += read_runs(atoms, builder, stride, name=name, start=start, stop=stop)
    assert builder is not None
    result = score(
        model,
        half_parts(runs, model, horizon),
        horizon=horizon,
        max_windows=max_windows,
        seed=seed,
        device=device,
        progress=progress,
    )
    notes = list(_overlap(model, trajectories, runs))
    found = None
    if chains:
        length = chain_length or 25 * model.window.n_times
        try:
            found = quality(
                builder,
                _chains(model, runs, chains, length, device, progress),
                [run.positions[:: run.every] for run in runs],
                model.window.stride_ps,
            )
        except ModelError as error:
            notes.append(f"the chains broke down: {error}")
    return Evaluation(
        **{**{f.name: getattr(result, f.name) for f in fields(result)}, "quality": found, "notes": tuple(notes)}
    )


def _chains(
    model: Model, runs: Sequence[Run], count: int, length: int, device: str, progress: Callable[[int], None] | None
) -> list[np.ndarray]:
    starts = [(run, s) for run in runs for s in range(frames_back(model.window) * run.every, len(run.positions))]
    if not starts:
        raise DataError("no frame has the past that a chain starts from")
    picked = [starts[k] for k in np.unique(np.linspace(0, len(starts) - 1, count + 2).astype(int)[1:-1])]
    out = []
    for run, s in picked:
        history = run.positions[s + np.arange(-frames_back(model.window), 1) * run.every]  # (n_input, N, 3)
        box = None if run.boxes is None else [run.boxes[s]]
        path = forecast(model, run.builder, history[None], length, boxes=box, device=device, progress=progress)
        out.append(path[0])  # (F, N, 3)
    return out


def _overlap(model: Model, trajectories: Sequence[str | os.PathLike], runs: Sequence[Run]) -> list[str]:
    """A note for each file that the model was trained on; files are known by name and length."""
    data = model.provenance.get("data")
    entries = data.get("runs", []) if isinstance(data, dict) else []
    trained = {(e["file"], e["frames"]): e.get("test_from") for e in entries if e["part"] != "test"}
    notes = []
    for name, run in zip(map(os.path.basename, map(str, trajectories)), runs, strict=False):
        if (name, len(run.positions)) in trained:
            free = trained[name, len(run.positions)]
            cure = f"; frames from {free} on were not: --start {free}" if free is not None else ""
            notes.append(f"{name} seems to be a file that the model was trained on{cure}")
    return notes
