"""What drawn futures of alanine dipeptide (heavy atoms) are worth: one JSON row for each model and seed.

    python -m benchmarks.drawn files --data DIR FOLDER
    egno-md train FOLDER/ala2.pdb FOLDER/run-[0-7].dcd --hold-out FOLDER/run-8.dcd --hold-out FOLDER/run-9.dcd \\
        --set fractions=[0.9,0.1,0] --select heavy --operator flow --cutoff 2.7 --epochs 6 \\
        --set epoch_windows=6400 -o FLOW
    python -m benchmarks.drawn run FLOW --data DIR --json FILE

    python -m benchmarks.drawn table FILE docs/real_runs.md    # and longer, the table of longer strides

The model of the longest training has ``--epochs 24``, and ``--init FLOW --set distill=true --lr 1e-3 --batch-size 64
--set ema_decay=0.995 --epochs 12 --set epoch_windows=6400`` in place of graph and operator teaches it to draw at once.
``files --frames N`` leaves so much of one run to learn from
(``--epochs`` 226, 87, 43, 22, 9 and 6 are as many steps with 200, 500, 1000, 2000, 5000 and 10000 frames as the
command above takes), and ``run --frames N`` judges what it taught beside what is free of the same frames; ``run --steps
K`` draws with another number of steps than the model's.

Frames are 1 ps apart. ``--of "10 ps"``, of ``files`` and ``run``, takes every tenth of them; ``--of water`` the
published run in explicit water, a frame every 75 ps, whose second half is held out (``run-1.dcd``; ``--epochs 22``).

Chains of 250 windows start in the two runs that are held out and are judged by the joint distribution of phi and psi in
their last half, the memory of psi, and the changes between its basins; single windows by proper scores and calibration.
A row has the same figures of the test runs themselves: what a chain of their frames would score.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import MDAnalysis as mda
import numpy as np

from egno_md.errors import counted
from egno_md.evaluation.calibration import calibrate
from egno_md.evaluation.score import Part
from egno_md.evaluation.statistics import jensen_shannon
from egno_md.forecast.chain import Chained, ModelForecaster, Restored
from egno_md.forecast.forecasters import Forecaster
from egno_md.forecast.model import load_model
from egno_md.forecast.reversion import MeanReversion
from egno_md.forecast.rolling import OneByOne
from egno_md.forecast.streams import Streams
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.geometry import bond_lengths, dihedrals, signed_volumes
from egno_md.molecule.local import LocalGeometry

from .free_forecasts import PAST, STEPS, alanine_parts
from .proteins import Source, alanine
from .tables import keep, seeds, table_of

#: Runs to train on; the others are held out.
N_TRAIN = 8
#: Chains, windows of each, windows from which futures are drawn, and how many.
CHAINS, WINDOWS, DRAWN, SAMPLES = 16, 250, 200, 16
#: Heavy atoms of ACE-ALA-NME in their order: CH3 C O N CA CB C O N C.
PHI, PSI, CENTRE = (1, 3, 4, 6), (3, 4, 6, 8), (4, 3, 5, 6)
#: Cells of a torsion, and the ends of the basin of psi that is that of helices, in rad.
CELLS, HELIX = 36, (-2.0, 0.9)
#: The run in water, and the spacing of its frames in ps.
WATER, WATER_PS = "md/ala2_explicit_250ns_75ps", 75.0
#: What is kept of the scores of single windows.
SCORES = ("energy_score", "crps", "window_score", "spread_over_error")
#: Frames up to which the memory of psi is added up, or five times what it is by then.
LONGEST = 400


def source_of(data: Path, of: str, frames: int | None = None) -> Source:
    """Heavy atoms to train on and to test on; see the top of this file."""
    if of != "water":
        source, every = alanine(data, frames), 10 if of == "10 ps" else 1
        train, test = ([x[::every] for x in runs] for runs in (source.train, source.test))
        return dataclasses.replace(source, train=train, test=test, dt=source.dt * every)
    universe = mda.Universe(str(data / WATER / "ala2.pdb"), str(data / WATER / "ala2.mini.xtc"))
    atoms = select_atoms(universe, "heavy")
    positions = np.stack([atoms.positions for _ in universe.trajectory])
    middle = len(positions) // 2
    return Source(universe, [positions[:middle][:frames]], [positions[middle:]], WATER_PS)


def distribution(angles: np.ndarray) -> np.ndarray:
    """Joint distribution of phi and psi (..., 2), (CELLS * CELLS,)."""
    phi, psi = angles.reshape(-1, 2).T
    counts, *_ = np.histogram2d(phi, psi, bins=CELLS, range=[[-np.pi, np.pi]] * 2)
    return counts.ravel() / counts.sum()


def memory(psi: np.ndarray) -> float:
    """Integrated autocorrelation time of exp(i psi) in chains (C, F), half of frame 0 and those after it, in frames."""
    wave = np.exp(1j * psi) - np.exp(1j * psi).mean()
    length = psi.shape[1]
    power = np.mean(np.abs(np.fft.fft(wave, 2 * length, axis=1)) ** 2, axis=0)
    correlation = np.fft.ifft(power).real[:length] / np.arange(length, 0, -1)
    total = np.cumsum(correlation[:LONGEST] / correlation[0]) - 0.5
    enough = np.flatnonzero(np.arange(len(total)) > 5 * total)
    return float(total[enough[0] if len(enough) else -1])


def figures(chains: np.ndarray, real: np.ndarray, bonds: np.ndarray) -> dict[str, Any]:
    """What chains (C, F, N, 3) come to beside real frames (R, F', N, 3)."""
    angles, true = (dihedrals(x, np.array([PHI, PSI])) for x in (chains, real))  # (C, F, 2)
    half = angles[:, angles.shape[1] // 2 :]
    helix, true_helix = ((a[..., 1] > HELIX[0]) & (a[..., 1] < HELIX[1]) for a in (angles, true))
    # Both basins with the weight that they have in reality: the shape of each is left to be judged.
    inside = (half[..., 1] > HELIX[0]) & (half[..., 1] < HELIX[1])
    share = true_helix.mean()
    weighed = share * distribution(half[inside]) + (1 - share) * distribution(half[~inside]) if inside.any() else None
    lengths, expected = (bond_lengths(x, bonds).mean(axis=(0, 1)) for x in (chains, real))
    corners = np.array([CENTRE])
    hand = np.sign(np.median(signed_volumes(real, corners)))
    return {
        "divergence": jensen_shannon(distribution(half), distribution(true)),
        "divergence_basins_weighed": None if weighed is None else jensen_shannon(weighed, distribution(true)),
        "psi_time_frames": memory(angles[..., 1]),
        "basin_changes_per_window": float(np.mean(helix[:, 8::8] != helix[:, :-8:8])),
        "helix_share": float(helix[:, helix.shape[1] // 2 :].mean()),
        "positive_phi_share": float((angles[..., 0] > 0).mean()),
        "largest_bond_error_A": float(np.abs(lengths - expected).max()),
        "mirrored": float(np.mean(np.sign(signed_volumes(chains, corners)) != hand)),
    }


def chained(forecaster: Forecaster, parts: list[Part], seed: int) -> tuple[np.ndarray, float]:
    """Chains (C, F, N, 3) from held-out starts, and the seconds that they took."""
    places = [(part.run, start) for part in parts for start in part.starts]
    places = [places[k] for k in np.linspace(0, len(places) - 1, CHAINS + 2).astype(int)[1:-1]]
    past = np.stack([run.positions[start + np.arange(1 - PAST, 1) * run.every] for run, start in places])
    return collected(forecaster, past, WINDOWS, seed)


def collected(forecaster: Forecaster, past: np.ndarray, windows: int, seed: int) -> tuple[np.ndarray, float]:
    """Chains (C, F, N, 3) from starts with their past (C, P, N, 3), and the seconds that they took."""
    began = time.process_time()
    generator: Any = np.random.default_rng(seed)
    if isinstance(forecaster, ModelForecaster):
        past, generator = past[:, -forecaster.n_past :], Streams.of(seed, range(len(past)), 1)
    frames = forecaster.collect(past, windows * len(STEPS), 1, generator)[:, 0]
    return frames, time.process_time() - began


OF = click.option(
    "--of", type=click.Choice(["1 ps", "10 ps", "water"]), default="1 ps", show_default=True, help="Which runs."
)


@click.group()
def main() -> None:
    """What drawn futures of alanine dipeptide are worth."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with ala2/.")
@click.option("--frames", type=int, help="To learn from: so many of the first run alone.")
@OF
def files(folder: Path, data: Path, frames: int | None, of: str = "1 ps") -> None:
    """Write the runs as files to train on, and those that are held out, with the topology beside them."""
    source = source_of(data, of, frames)
    folder.mkdir(parents=True, exist_ok=True)
    heavy = select_atoms(source.universe, "heavy")
    heavy.write(str(folder / "ala2.pdb"))
    held_out = N_TRAIN if of != "water" else 1
    for first, runs in ((0, source.train), (held_out, source.test)):
        for k, positions in enumerate(runs, first):
            with mda.Writer(str(folder / f"run-{k}.dcd"), len(heavy), dt=source.dt) as writer:
                for frame in positions:
                    heavy.positions = frame
                    writer.write(heavy)


@main.command()
@click.argument("model")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with ala2/.")
@click.option("--json", "target", type=click.Path(path_type=Path), required=True, help="Rows; those in it are kept.")
@click.option("--seed", default=0, show_default=True, help="Of what is drawn.")
@click.option("--steps", type=int, help="Of the sampler.  [default: the model's]")
@click.option("--frames", type=int, help="Of the first run, from which all have learned.")
@OF
def run(model: str, data: Path, target: Path, seed: int, steps: int | None, frames: int | None, of: str) -> None:
    """Measure a model that draws, the Gaussian process and analogues."""
    loaded, source = load_model(model), source_of(data, of, frames)
    if steps is not None:
        options = {**loaded.spec.options, "steps": steps}
        loaded = dataclasses.replace(loaded, spec=loaded.spec.model_copy(update={"options": options}))
    parts, builder = alanine_parts(source), GraphBuilder(select_atoms(source.universe, "heavy"), loaded.graph)
    own = [Part(Run(part.run.positions, builder, name=part.run.name), part.starts, part.known) for part in parts]
    shortest = min(map(len, source.test))
    real = np.stack([x[:shortest] for x in source.test])  # (R, F, N, 3)
    geometry = LocalGeometry.fit(source.train, builder.bonds)
    forecasters: dict[str, Chained] = {"model": ModelForecaster(loaded, builder)}
    for name in ("Gaussian process", "analogues"):
        free = parts[0].known.baselines.forecasts[name]
        forecasters[name] = Chained(Restored(free, geometry.keep), STEPS)
    for forecaster in forecasters.values():  # as `predict` does
        one = forecaster.inner.inner if isinstance(forecaster.inner, Restored) else forecaster.inner
        one, n_past = (one, forecaster.n_past) if isinstance(forecaster, ModelForecaster) else (OneByOne(one), PAST)
        forecaster.reversion = MeanReversion.fit(one, parts[0].known, STEPS, n_past, builder.bonds)
    row: dict[str, Any] = {
        "model": loaded.name,
        "of": of,
        "trunk": loaded.spec.options["trunk"],
        "steps": loaded.spec.options["steps"],
        "direct": loaded.spec.options["direct"],
        "frames": sum(map(len, source.train)),
        "seed": seed,
        "training": loaded.provenance.get("training"),
        "chains": {},
    }
    for name, forecaster in forecasters.items():
        chains, seconds = chained(forecaster, own, seed)
        row["chains"][name] = {
            **figures(chains, real, builder.bonds), "ms_per_frame": 1e3 * seconds / (CHAINS * WINDOWS * len(STEPS)),
        }  # fmt: skip
        click.echo(f"{name}: {row['chains'][name]}")
    known = min(map(len, source.train))
    row["chains"]["test runs"] = figures(real, real, builder.bonds)
    row["chains"]["training runs"] = figures(np.stack([x[:known] for x in source.train]), real, builder.bonds)
    times = np.asarray(STEPS)
    single = calibrate(own, times, times * source.dt, SAMPLES, model=loaded, max_windows=DRAWN, seed=seed).as_dict()
    row["windows"] = {name: {key: found[key] for key in SCORES} for name, found in single["superposed"].items()}
    numbers = keep(target, row, _key)
    for name, found in numbers["windows"].items():
        click.echo(f"{name}: spread over error {found['spread_over_error']}, window score {found['window_score']}")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one row from another."""
    of = row.get("of", "1 ps")
    return of, row["model"], row["trunk"], row["steps"], row["frames"], row["seed"], row.get("direct", False)


HEAD = (
    "| drawn futures of alanine dipeptide | seeds | frames to learn from | divergence of phi and psi (nats) | basins "
    "weighed as in the test runs | memory of psi (frames) | changes of basin per window | spread over error, 1st and "
    "8th frame | energy score of a window (A) | ms a frame |"
)


def _rows(results: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each forecaster with the same to learn from: medians over seeds, and their range."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    results = [row for row in results if row.get("of", "1 ps") == "1 ps"]
    for row in results:
        trunk = "" if row["trunk"] == "egno" else ", trunk of EGHNO"
        steps = 0 if row.get("direct") else -row["steps"]
        groups[-row["frames"], trunk, -row["training"]["max_epochs"], steps].append(row)
    whole = min(frames for frames, *_ in groups)
    yield _line("the test runs, last halves", -whole, results[:1], "test runs")
    for length, same in groupby(sorted(groups.items()), lambda item: item[0][0]):
        for (_, trunk, epochs, steps), rows in same:
            name = f"flow{trunk}, {counted(-epochs, 'epoch')}, {counted(-steps, 'step')}"
            if not steps:
                name = f"flow{trunk}, taught by another one for {counted(-epochs, 'epoch')}, 1 call"
            yield _line(name, -length, rows, "model")
        for free in ("Gaussian process", "analogues", "training runs"):
            yield _line(f"the {free}, last halves" if free.endswith("runs") else free, -length, rows[:1], free)


def _line(name: str, frames: int, rows: list[dict[str, Any]], who: str) -> str:
    chains = [row["chains"][who] for row in rows]
    windows = [row["windows"][who] for row in rows if who in row["windows"]]

    def of(key: str, digits: int) -> str:
        return seeds([chain.get(key) for chain in chains], digits)

    cells = [
        of("divergence", 3), of("divergence_basins_weighed", 3), of("psi_time_frames", 0),
        of("basin_changes_per_window", 3),
        " and ".join(seeds([w["spread_over_error"][k] for w in windows], 2) for k in (0, -1)) if windows else "",
        seeds([w["window_score"] for w in windows], 4), of("ms_per_frame", 2),
    ]  # fmt: skip
    return f"| {name} | {len(rows)} | {frames} | {' | '.join(cells)} |"


LONGER = (
    "| alanine dipeptide at longer strides | drawn by | seeds | divergence of phi and psi (nats) | basins weighed as "
    "in the test runs | memory of psi (frames) | changes of basin per window | share of phi > 0 (%) | spread over "
    "error, 1st and 8th frame | energy score of a window (A) |"
)


def _longer(results: list[dict[str, Any]]) -> Iterator[str]:
    """The same at longer strides, with the basin that is rarely visited."""
    for of, title in (("10 ps", "implicit solvent, 10 ps"), ("water", "explicit water, 75 ps")):
        rows = [row for row in results if row.get("of") == of]
        for who in ("test runs", "training runs", "model", "Gaussian process", "analogues") if rows else ():
            name = {"model": "flow"}.get(who, f"the {who}, last halves" if who.endswith("runs") else who)
            some = rows if who == "model" else rows[:1]
            chains = [row["chains"][who] for row in some]
            windows = [row["windows"][who] for row in some if who in row["windows"]]
            cells = [
                seeds([chain[key] for chain in chains], digits)
                for key, digits in (
                    ("divergence", 3), ("divergence_basins_weighed", 3), ("psi_time_frames", 1),
                    ("basin_changes_per_window", 3),
                )
            ]  # fmt: skip
            cells.append(seeds([100 * chain["positive_phi_share"] for chain in chains], 1))
            cells.append(
                " and ".join(seeds([w["spread_over_error"][k] for w in windows], 2) for k in (0, -1) if windows)
            )
            cells.append(seeds([w["window_score"] for w in windows], 4))
            yield f"| {title} | {name} | {len(some)} | {' | '.join(cells)} |"


main.add_command(table_of(HEAD, _rows))
main.add_command(table_of(LONGER, _longer), "longer")

if __name__ == "__main__":
    main()
