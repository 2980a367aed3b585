"""What a forecast of real molecular dynamics is worth, and which options of the training pay, over seeds.

Two systems: alanine dipeptide (ten runs of 10 ns, heavy atoms, friction 91/ps: eight runs train, two test) and
chignolin (CLN025, runs of :func:`benchmarks.simulate.simulate`, friction 1/ps, C-alpha or heavy atoms: one run
trains, one tests).

    python -m benchmarks.proteins simulate --data DIR --runs DIR
    python -m benchmarks.proteins run --data DIR --runs DIR --work DIR --json FILE [NAME ...]
    python -m benchmarks.proteins table FILE

An interrupted call goes on: runs whose result is in FILE are skipped, a training goes on from its last state.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import MDAnalysis as mda
import numpy as np

from egno_md.errors import ModelError
from egno_md.evaluation.quality import quality
from egno_md.evaluation.score import Part
from egno_md.forecast.chain import forecast
from egno_md.forecast.forecasters import Known, PathRegression
from egno_md.forecast.model import Model, new_model
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run, TrajectoryWindows, frames_back, segments, window_starts
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.local import LocalGeometry
from egno_md.specs import PRESETS, GraphSpec, ModelSpec, TrainSpec, WindowSpec
from egno_md.training.data import Data
from egno_md.training.run import train

from .simulate import simulate

CHIGNOLIN = "CLN025_5awl"
#: Seeds and lengths in ps of the runs of chignolin; the last one is the test.
CHIGNOLIN_RUNS = ((1, 4000.0), (2, 2500.0))
#: Last share of every training run, which chooses the state of the training; a window is left out before it.
VALIDATION = 0.1
#: Evenly spread windows of the test runs that are judged.
TEST_WINDOWS = 1000


@dataclasses.dataclass(frozen=True)
class Source:
    """The runs of one system: those that train and those that test, with the spacing of their frames in ps."""

    universe: mda.Universe
    train: list[np.ndarray]
    test: list[np.ndarray]
    dt: float


def alanine(folder: Path, n_frames: int | None = None) -> Source:
    """Heavy atoms of alanine dipeptide; to train on, the first eight runs, or so many frames of the first one."""
    data = np.load(folder / "ala2" / "ala2_implicit_10x10ns_1ps.npz")
    universe = mda.Universe(str(folder / "ala2" / "ala2.pdb"))
    heavy = select_atoms(universe, "heavy")
    frames, ends = data["positions"][:, heavy.indices], data["offsets"]
    runs = [frames[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    train = runs[:8] if n_frames is None else [runs[0][:n_frames]]
    return Source(universe, train, runs[8:], float(data["dt_ps"]))


def chignolin(folder: Path, select: str) -> Source:
    """Some atoms of chignolin."""
    runs = []
    for seed, _ in CHIGNOLIN_RUNS:
        run = folder / f"seed{seed}" / CHIGNOLIN
        universe = mda.Universe(str(run.with_suffix(".pdb")), str(run.with_suffix(".dcd")))
        atoms = select_atoms(universe, select)
        runs.append(np.stack([atoms.positions for _ in universe.trajectory]).astype(np.float32))  # (F, N, 3)
    return Source(universe, runs[:-1], runs[-1:], round(universe.trajectory.dt, 6))


def windows(source: Source, graph: GraphSpec, window: WindowSpec) -> Data:
    """Windows of one system; no frame is in two parts."""
    builder = GraphBuilder(select_atoms(source.universe, graph.select), graph)
    every = round(window.stride_ps / source.dt)
    train_runs = [Run(x, builder, every, name=f"train-{k}") for k, x in enumerate(source.train)]
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
    for run in train_runs:
        border = round(len(run.positions) * (1 - VALIDATION))
        parts["train"].append(np.asarray(window_starts(border, window, every)))
        parts["validation"].append(border + np.asarray(window_starts(len(run.positions) - border, window, every)))
    pieces = [
        run.positions[a:b]
        for run, starts in zip(train_runs, parts["train"], strict=True)
        for a, b in segments(starts, window, every)
    ]
    known = Known(pieces, window.targets, every)
    test = [Run(x, builder, every, name=f"test-{k}") for k, x in enumerate(source.test)]
    thin = -(-sum(map(len, parts["validation"])) // 300)
    # The same starts whatever the history, so that state and trajectory as input are judged on the same windows.
    longest = window.model_copy(update={"history": window.n_times})
    judged = [np.asarray(window_starts(len(run.positions), longest, every)) for run in test]
    apart = -(-sum(map(len, judged)) // (TEST_WINDOWS if builder.n_atoms < 50 else TEST_WINDOWS // 4))
    return Data(
        TrajectoryWindows(train_runs, window, parts["train"]),
        TrajectoryWindows(train_runs, window, [starts[::thin] for starts in parts["validation"]]),
        [Part(run, starts[::apart], known) for run, starts in zip(test, judged, strict=True)],
        {builder.identity: LocalGeometry.fit(pieces, builder.bonds)},
        {builder.identity: PathRegression.fitted(known)},
        {"runs": [], "frames": [len(x) for x in (*source.train, *source.test)]},
    )


# ---------------------------------------------------------------------------------------------------------- experiments

#: Small enough for a few minutes on one core, the same for all that is compared.
SIZE = {"hidden": 32, "layers": 3}
SHORT = {"batch_size": 16, "epoch_windows": 1600, "max_epochs": 8, "patience": 8}
BASE = PRESETS["default"][0].model_copy(update=SIZE)
PLAIN = {"residual": False, "reduce": "sum", "length_scale": 1.0, "start": "paper"}
#: Changes of the operator, of the training, of the window and of the graph, by name; "base" changes nothing.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "base": {},
    "regression prior": {"model": {"prior": "regression"}},
    "plain operator": {"model": PLAIN},
    "no residual": {"model": {"residual": False}},
    "sum of messages": {"model": {"reduce": "sum"}},
    "lengths in Angstrom": {"model": {"length_scale": 1.0}},
    "random start": {"model": {"start": "paper"}},
    "learning rate 5e-3": {"training": {"learning_rate": 5e-3}},
    "squared distance for rbf": {"graph": {"edge_features": ("distance2", "hop")}},
    "constant learning rate, no average": {"training": {"schedule": "constant", "ema_decay": 0.0}},
    "static step weights": {"training": {"step_weights": "static"}},
    "handed": {"model": {"handed": True}},
    "noise": {"training": {"noise": 0.1}},
    "pair distances": {"training": {"pair_weight": 1.0}},
    "two windows": {"training": {"unroll": 2}},
    "trajectory to trajectory": {"window": {"history": 8}},
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training: a system with its stride, one of OPTIONS, and a seed.

    `chains` is the number of chains to look at, `compare` makes them without the projection as well.
    """

    system: str
    stride_ps: float
    option: str = "base"
    seed: int = 0
    epochs: int = SHORT["max_epochs"]
    chains: int = 0
    compare: bool = False

    @property
    def name(self) -> str:
        """Of its result in the JSON file."""
        long = "" if self.epochs == SHORT["max_epochs"] else f" / {self.epochs} epochs"
        return f"{self.system} / {self.stride_ps:g} ps / {self.option}{long} / seed {self.seed}"


def experiments() -> list[Experiment]:
    """All of them, the most telling first."""
    seeds = range(3)
    here = [Experiment("ala2", 1.0, "base", seed, chains=1, compare=seed == 0) for seed in seeds]
    here += [Experiment("ala2", 1.0, "regression prior", seed, chains=1) for seed in seeds]
    here += [Experiment("ala2", 1.0, "trajectory to trajectory", seed, chains=1) for seed in seeds]
    here += [Experiment("ala2", 10.0, option) for option in ("base", "regression prior")]
    here += [
        Experiment("ala2", stride, "regression prior", epochs=LONG, chains=1, compare=True) for stride in (1.0, 10.0)
    ]
    here += [Experiment("ala2", 1.0, option, seed, chains=1) for seed in seeds for option in CHAINED]
    here += [Experiment("chignolin ca", stride, "base", seed) for stride in (1.0, 0.1, 10.0) for seed in seeds]
    for seed in seeds:
        here += [Experiment("chignolin ca", 1.0, option, seed) for option in ("regression prior", *SINGLE)]
        if seed == 0:
            here += [Experiment("chignolin heavy", stride) for stride in (1.0, 10.0, 0.1)]
    here += [Experiment("chignolin ca", stride, "base", epochs=LONG, chains=1) for stride in (0.1, 1.0, 10.0)]
    return here


#: Options whose point is the chain; and those of operator and training, one change each.
CHAINED = ("handed", "noise", "two windows", "pair distances")
SINGLE = (
    "plain operator",
    "no residual",
    "sum of messages",
    "lengths in Angstrom",
    "learning rate 5e-3",
    "static step weights",
    "squared distance for rbf",
    "constant learning rate, no average",
    "random start",
)
#: Larger graphs, fewer of them.
HEAVY = {"batch_size": 4, "epoch_windows": 320}
#: Epochs of a longer training.
LONG = 16
#: A chain of this many windows.
CHAIN_WINDOWS = 1000


def specs(experiment: Experiment, atom_names: tuple[str, ...]) -> tuple[GraphSpec, WindowSpec, ModelSpec, TrainSpec]:
    """What the experiment trains."""
    changes = OPTIONS[experiment.option]
    graph = GraphSpec(select="ca", node_features=("speed", "residue"), edge_features=("rbf", "hop", "chain"))
    if experiment.system != "chignolin ca":
        graph = GraphSpec(
            select="heavy",
            cutoff=10.0 if experiment.system == "ala2" else 6.0,
            node_features=("speed", "element", "atom_name"),
            edge_features=("rbf", "hop", "bond"),
            atom_names=atom_names,
        )
    window = WindowSpec(stride_ps=experiment.stride_ps, n_times=8, **changes.get("window", {}))
    short = SHORT | (HEAVY if experiment.system == "chignolin heavy" else {})
    training = PRESETS["default"][1].model_copy(
        update={**short, "max_epochs": experiment.epochs, "seed": experiment.seed, **changes.get("training", {})}
    )
    graph = graph.model_copy(update=changes.get("graph", {}))
    return graph, window, BASE.model_copy(update=changes.get("model", {})), training


def run(experiment: Experiment, source: Source, work: Path) -> dict[str, Any]:
    """Train, judge on the test runs, and look at chains of 1000 windows with and without the projection."""
    names = tuple(sorted(set(map(str, source.universe.atoms.names))))
    graph, window, spec, training = specs(experiment, names)
    data = windows(source, graph, window)
    folder = work / experiment.name.replace(" / ", "_").replace(" ", "-")
    began = time.process_time()
    model, result = train(
        new_model(graph, window, spec, seed=experiment.seed),
        data,
        training,
        work_dir=folder,
        resume=(folder / "last.ckpt").exists(),
        device="cpu",
        progress=False,
    )
    out: dict[str, Any] = {**result.as_dict(), "cpu_minutes": round((time.process_time() - began) / 60, 2)}
    model.save(work / f"{folder.name}.safetensors", force=True)
    if experiment.chains:
        kinds = {"projected": model}
        if experiment.compare:
            kinds["bonds of the start"] = dataclasses.replace(model, geometry={})
            kinds["as predicted"] = dataclasses.replace(model, spec=spec.model_copy(update={"keep_bonds": False}))
        out["chains"] = {kind: chained(one, data, experiment.chains) for kind, one in kinds.items()}
    shutil.rmtree(folder)
    return out


def chained(model: Model, data: Data, count: int) -> dict[str, Any]:
    """Quality of chains from starts spread over the first test run, as rows of chains, run and floor."""
    run_, every = data.test[0].run, data.test[0].run.every
    starts = np.linspace(0, len(run_.positions) - 1, count + 2).astype(int)[1:-1]
    history = np.stack([run_.positions[s + np.arange(-frames_back(model.window), 1) * every] for s in starts])
    began = time.process_time()
    try:
        paths = forecast(model, run_.builder, history, CHAIN_WINDOWS * model.window.n_times, device="cpu")
    except ModelError as error:  # a chain that flies apart is a result
        return {"broke": str(error)}
    seconds = time.process_time() - began
    real = [part.run.positions[::every] for part in data.test]
    found = quality(run_.builder, list(paths), real, model.window.stride_ps)
    return {
        "cpu_ms_per_window": round(1000 * seconds / CHAIN_WINDOWS / count, 2),
        **{name: values for name, *values in found.rows()},
    }


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """What a forecast of real molecular dynamics is worth."""


def _folder(*names: str, required: bool = True) -> Callable:
    return click.option(*names, type=click.Path(file_okay=False, path_type=Path), required=required)


@main.command("simulate")
@_folder("--data")
@_folder("--runs")
def simulate_command(data: Path, runs: Path) -> None:
    """Make the runs of chignolin: 4 fs, a frame every 0.1 ps; some 20 minutes a run on one core."""
    for seed, length in CHIGNOLIN_RUNS:
        simulate(data / "structures" / f"{CHIGNOLIN}.pdb", runs / f"seed{seed}", length, 4, seed, 0.1)


@main.command("run")
@_folder("--data")
@_folder("--runs", required=False)
@_folder("--work")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.argument("names", nargs=-1)
def run_command(data: Path, runs: Path | None, work: Path, file: Path, names: tuple[str, ...]) -> None:
    """Run the experiments whose name begins with one of NAME ... (all of them when none is given)."""
    sources: dict[str, Source] = {}
    for experiment in experiments():
        known = json.loads(file.read_text()) if file.exists() else {}
        if experiment.name in known or (names and not experiment.name.startswith(names)):
            continue
        if experiment.system not in sources:
            if experiment.system == "ala2":
                sources["ala2"] = alanine(data)
            elif runs is None:
                raise click.UsageError("chignolin needs --runs, the folder that 'simulate' wrote")
            else:
                sources[experiment.system] = chignolin(runs, experiment.system.split()[1])
        click.echo(experiment.name, err=True)
        known[experiment.name] = run(experiment, sources[experiment.system], work)
        file.write_text(json.dumps(known, indent=1))


# ---------------------------------------------------------------------------------------------------------------- table


def tables(results: dict[str, Any]) -> str:
    """Markdown: errors of every option (median of the seeds), of every step of the longest training, and the chains."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for name, result in results.items():
        groups.setdefault(tuple(name.split(" / ")[:-1]), []).append(result)
    heads = ("", "seeds", "A-MSE, as predicted", "projected", "static", "AR(1)", "skill, as predicted", "projected")
    lines = [f"|{'|'.join(f' {head} ' for head in heads)}| CPU min | regression alone |", "|" + "---|" * 10]
    for group, found in groups.items():
        bare, kept = ([float(np.mean(r[key])) for r in found] for key in ("as_predicted", "projected"))
        static, ar1 = (found[0]["a_mse"][key] for key in ("static", "AR(1)"))
        best = np.min([e for key, e in found[0]["errors"].items() if key != "model"], axis=0).mean()
        minutes = max(r["cpu_minutes"] for r in found)  # a training that was resumed shows less
        alone = next((f"{np.mean(r['prior']):.4g}" for r in found if r["prior"]), "")
        lines.append(
            f"| {', '.join(group)} | {len(found)} | {_spread(bare)} | {_spread(kept)} | {static:.4g} | {ar1:.4g} | "
            f"{1 - np.median(bare) / best:+.1%} | {1 - np.median(kept) / best:+.1%} | {minutes:.1f} | {alone} |"
        )
    for group, found in groups.items():
        if len(group) == 4 or group[-1] == "base":
            lines += ["", *_steps(", ".join(group), found[0])]
    rows = [row for row in next(r["chains"]["projected"] for r in results.values() if "chains" in r)]
    for group, found in groups.items():
        chained = [r["chains"] for r in found if "chains" in r]
        if chained:
            lines += ["", *_chain_table(", ".join(group), chained, rows)]
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{np.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def _steps(title: str, result: dict[str, Any]) -> list[str]:
    """Error at every step beside the baselines, of the first seed."""
    names = [name for name in result["errors"] if name != "model"]
    lines = [f"| {title}: t/ps | as predicted | projected | {' | '.join(names)} | skill, projected (95 %) |"]
    lines.append("|" + "---|" * (len(names) + 4))
    for k, t in enumerate(result["times"]):
        low, high = result["skill_interval"][k]
        interval = "" if low is None else f" ({low:+.1%} to {high:+.1%})"
        others = " | ".join(f"{result['errors'][name][k]:.4g}" for name in names)
        lines.append(
            f"| {t:g} | {result['as_predicted'][k]:.4g} | {result['errors']['model'][k]:.4g} | {others} | "
            f"{result['skill'][k]:+.1%}{interval} |"
        )
    return lines


def _chain_table(title: str, chained: list[dict[str, Any]], rows: list[str]) -> list[str]:
    """Medians over the seeds of the rows of :meth:`egno_md.evaluation.Quality.rows`, of every kind of chain."""
    kinds = list(dict.fromkeys(kind for chains in chained for kind in chains))
    lines = [f"| {title}: chains | {' | '.join(kinds)} | run | floor |", "|" + "---|" * (len(kinds) + 3)]
    for row in rows:
        found = {kind: [chains[kind].get(row) for chains in chained if kind in chains] for kind in kinds}
        if not isinstance(found["projected"][0], list):
            continue
        cells = [_median([values[0] for values in found[kind] if values is not None]) for kind in kinds]
        cells += [_median([found["projected"][0][k]]) for k in (1, 2)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def _median(values: list[float | None]) -> str:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return f"{np.median(known):.3f}" if known else "-"


@main.command("table")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
def table_command(files: tuple[Path, ...]) -> None:
    """Tables of the results in FILES, as Markdown."""
    results: dict[str, Any] = {}
    for file in files:
        results |= json.loads(file.read_text())
    for result in results.values():
        result["projected"] = result["errors"]["model"]
    click.echo(tables(results))


if __name__ == "__main__":
    main()
