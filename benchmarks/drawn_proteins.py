"""What drawn futures of small proteins (C-alpha atoms) are worth: one JSON row for each protein and model.

    python -m benchmarks.drawn_proteins simulate --structures DIR RUNS
    egno-md train RUNS/seed1/trpcage_1l2y.pdb RUNS/seed[12]/trpcage_1l2y.dcd \\
        --hold-out RUNS/seed3/trpcage_1l2y.dcd --set fractions=[0.9,0.1,0] --epochs 12 --set epoch_windows=6400 \\
        --operator flow --set base=any --set handed=true --set history=8 -o FLOW
    egno-md train RUNS/several.toml --stride 1 --epochs 12 --set epoch_windows=6400 \\
        --operator flow --set base=any --set handed=true --set history=8 -o FLOW
    python -m benchmarks.drawn_proteins run trp-cage [FLOW] --name "of any molecule" --runs RUNS --json FILE
    python -m benchmarks.drawn_proteins table FILE docs/real_runs.md

Replicas of each protein, with velocities and thermostat of their own: the first two are known, to what is fitted to
them and to a model of this protein; the third one is forecast. Single windows are judged by proper scores and
calibration; chains beside the third replica, and the first one beside it says what two real runs differ by.
``several.toml`` is of all but villin, and a model that has learned of them has seen nothing of that.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import MDAnalysis as mda
import numpy as np

from egno_md.evaluation.calibration import calibrate
from egno_md.evaluation.quality import quality
from egno_md.evaluation.score import Part
from egno_md.forecast.chain import Chained, ModelForecaster, Restored
from egno_md.forecast.forecasters import Known
from egno_md.forecast.model import load_model
from egno_md.forecast.reversion import MeanReversion
from egno_md.forecast.rolling import OneByOne
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run
from egno_md.hindcast.proteins import NAME, OfProteins
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.local import LocalGeometry
from egno_md.specs import GraphSpec

from .drawn import collected
from .free_forecasts import PAST, SHOWN, STEPS
from .simulate import simulate
from .tables import keep, seeds, table_of

#: Structure, and lengths in ps of its replicas.
PROTEINS = {
    "chignolin": ("CLN025_5awl", (3000, 3000, 3000)),
    "trp-cage": ("trpcage_1l2y", (1000, 500, 500)),
    "villin": ("villin_HP35", (400, 400, 400)),
}
#: One more, of one run; and the runs that a model of several proteins learns of, villin not among them.
MORE = {"EHEE_rd3_0053": 300}
SEVERAL = {"CLN025_5awl": (1, 2), "trpcage_1l2y": (1, 2), "EHEE_rd3_0053": (1,)}
SEEDS, STEP_FS, FRAME_PS = (1, 2, 3), 4, 1.0
#: Windows from which futures are drawn, and how many; chains, and windows of each.
DRAWN, SAMPLES, CHAINS, WINDOWS = 200, 16, 4, 1000
#: What is kept of the scores of single windows, and of the comparison of chains with the run.
SCORES = ("window_score", "energy_score", "spread_over_error")
ROWS = {
    "RMSF, ratio to the run": "ratio of the RMSF",
    "RMSF, correlation with the run": "its correlation",
    "torsions (virtual), divergence (nats)": "divergence of the torsions",
    "slow motions, divergence (nats)": "of the slow motions (nats)",
}


def replicas(runs: Path, structure: str) -> tuple[mda.Universe, list[np.ndarray]]:
    """C-alpha atoms (F, N, 3) of each replica."""
    frames = []
    for seed in SEEDS:
        run = runs / f"seed{seed}" / structure
        universe = mda.Universe(f"{run}.pdb", f"{run}.dcd")
        atoms = select_atoms(universe, "ca")
        frames.append(np.stack([atoms.positions for _ in universe.trajectory]).astype(np.float32))
    return universe, frames


@click.group()
def main() -> None:
    """What drawn futures of small proteins are worth."""


@main.command("simulate")
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--structures", type=click.Path(path_type=Path, exists=True), required=True)
def simulate_command(runs: Path, structures: Path) -> None:
    """Make the runs, two hours of one core, and the recipe of several proteins; what is there is kept."""
    wanted = [(name, *one) for name, lengths in PROTEINS.values() for one in zip(lengths, SEEDS, strict=True)]
    for name, length, seed in [*wanted, *((name, length, 1) for name, length in MORE.items())]:
        click.echo(f"{name}, seed {seed}: {length} ps", err=True)
        simulate(structures / f"{name}.pdb", runs / f"seed{seed}", length, STEP_FS, seed, FRAME_PS)
    systems = [
        f'[[data.systems]]\nname = "{name}"\ntopology = "seed1/{name}.pdb"\n'
        f"trajectories = {json.dumps([f'seed{seed}/{name}.dcd' for seed in known])}\n"
        for name, known in SEVERAL.items()
    ]
    (runs / "several.toml").write_text("\n".join(["[data]\nfractions = [0.8, 0.1, 0.1]\n", *systems]))


@main.command()
@click.argument("protein", type=click.Choice(list(PROTEINS)))
@click.argument("model", required=False)
@click.option("--runs", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--json", "target", type=click.Path(path_type=Path), required=True, help="Rows; those in it are kept.")
@click.option("--name", default="flow", help="Of the model in the table; models of other seeds have the same.")
def run(protein: str, model: str | None, runs: Path, target: Path, name: str) -> None:
    """Measure a model that draws or, without one, what is free."""
    universe, frames = replicas(runs, PROTEINS[protein][0])
    loaded = None if model is None else load_model(model)
    graph = GraphSpec(select="ca", node_features=("speed",)) if loaded is None else loaded.graph
    builder = GraphBuilder(select_atoms(universe, "ca"), graph)
    test = Run(frames[-1], builder, name="test")
    known = Known(frames[:-1], STEPS)
    known.baselines.forecasts[NAME] = OfProteins("ca", FRAME_PS)(known)
    part = Part(test, np.arange(PAST, len(test.positions) - max(STEPS)), known)
    times = np.asarray(STEPS) * FRAME_PS
    single = calibrate([part], np.asarray(STEPS), times, SAMPLES, model=loaded, max_windows=DRAWN)
    geometry = LocalGeometry.fit(known.segments, builder.bonds)
    who: dict[str, Any] = {}
    if loaded is not None:
        own = dataclasses.replace(loaded, geometry={**loaded.geometry, builder.identity: geometry})
        who["model"] = chain = ModelForecaster(own, builder)
        chain.reversion = MeanReversion.fit(chain.inner, known, STEPS, chain.n_past, builder.bonds)
    else:
        for free in single.superposed:
            if free in known.baselines.forecasts:
                one = known.baselines.forecasts[free]
                reversion = MeanReversion.fit(OneByOne(one), known, STEPS, PAST, builder.bonds)
                who[free] = Chained(Restored(one, geometry.keep), STEPS, reversion=reversion)
    places = np.linspace(part.starts[0], part.starts[-1], CHAINS + 2).astype(int)[1:-1]
    past = np.stack([test.positions[k + np.arange(1 - PAST, 1)] for k in places])
    for one, forecaster in who.items():
        chains, seconds = collected(forecaster, past, WINDOWS, 0)
        found = quality(builder, list(chains), [test.positions, frames[0]], FRAME_PS)
        rows = {row: values for row, *values in found.rows()}
        windows = single.superposed[one]
        training = None if loaded is None else loaded.provenance["training"]
        put_in = {
            "protein": protein,
            "who": one if loaded is None else name,
            "training": training,
            **{key: getattr(windows, key) for key in SCORES},
            "apart": single.apart[one],
            "chains": {row: values[0] for row, values in rows.items()},
            "floor": {row: values[2] for row, values in rows.items()},
            "findings": found.findings,
            "ms_per_frame": 1e3 * seconds / (CHAINS * WINDOWS * len(STEPS)),
        }
        keep(target, put_in, _key)
        click.echo(_line([put_in]))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one row from another."""
    training = row["training"] or {}
    return row["protein"], row["who"], training.get("max_epochs"), training.get("seed")


HEAD = (
    "| drawn futures of small proteins | forecaster | seeds | energy score of a window (A) | spread over error at "
    f"steps {', '.join(map(str, SHOWN))} | " + " | ".join(ROWS.values()) + " | ms a frame |"
)


def _rows(results: list[dict[str, Any]]) -> Iterator[str]:
    """A line for what two real runs differ by, and for each forecaster: medians over seeds, and their range."""
    order = list(PROTEINS)
    for protein, of in groupby(sorted(results, key=lambda row: order.index(row["protein"])), lambda r: r["protein"]):
        rows = list(of)
        floor = [seeds([rows[0]["floor"][row]], 3 if "nats" in row else 2) for row in ROWS]
        yield f"| {protein} | another run |  |  |  | {' | '.join(floor)} |  |"
        for name in dict.fromkeys(row["who"] for row in rows):
            yield _line([row for row in rows if row["who"] == name])


def _line(rows: list[dict[str, Any]]) -> str:
    at = [STEPS.index(step) for step in SHOWN]
    spread = np.median([[row["spread_over_error"][k] for k in at] for row in rows], axis=0)
    cells = [
        rows[0]["protein"], rows[0]["who"], str(len(rows)),
        seeds([row["window_score"] for row in rows], 4), " ".join(f"{value:.2f}" for value in spread),
        *(seeds([row["chains"].get(name) for row in rows], 3 if "nats" in name else 2) for name in ROWS),
        seeds([row["ms_per_frame"] for row in rows], 2),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


main.add_command(table_of(HEAD, _rows))

if __name__ == "__main__":
    main()
