"""What the forecasts without a network are worth on published runs: the rivals of every model.

    python -m benchmarks.free_forecasts run --data DIR --json FILE [NAME ...]
    python -m benchmarks.free_forecasts table FILE

Alanine dipeptide trains on eight runs and is tested on two; of the others, single runs, each half is forecast with what
is fitted to the other half, as ``egno-md evaluate`` does it. A system that is not there is skipped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import MDAnalysis as mda
import numpy as np

from egno_md.evaluation.calibration import calibrate
from egno_md.evaluation.errors import both_errors, skill
from egno_md.evaluation.quality import quality
from egno_md.evaluation.result import plain
from egno_md.evaluation.score import Part
from egno_md.forecast.chain import Chained, Restored
from egno_md.forecast.forecasters import Known
from egno_md.forecast.reversion import MeanReversion
from egno_md.forecast.rolling import OneByOne
from egno_md.forecast.subject import Subject
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.local import LocalGeometry
from egno_md.specs import GraphSpec, WindowSpec

from .proteins import Source, alanine

STEPS, SHOWN, SEEDS = tuple(range(1, 9)), (1, 2, 4, 8), (0, 1, 2)
#: Windows whose mean forecasts are judged, of them those from which futures are drawn, and how many.
WINDOWS, DRAWN, SAMPLES = 2000, 400, 32
#: Long chains, frames of each, of which systems, and by whom.
CHAINS, CHAIN_LENGTH = 16, 2000
CHAINED = ("ala2, heavy, 1 ps", "bpti, ca, 10 ps")
CHAINING = ("static", "Gaussian process", "elastic network", "analogues")
#: Strides of past that every start has, so that all forecasts are judged on the same windows.
PAST = 16


class System(NamedTuple):
    """Single runs: folder, topology, trajectory, atoms, spacing of the frames in ps."""

    folder: str
    topology: str
    trajectory: str
    select: str
    stride_ps: float


SYSTEMS = {
    "ala2, heavy, 75 ps": System("md/ala2_explicit_250ns_75ps", "ala2.pdb", "ala2.mini.xtc", "heavy", 75.0),
    "ubiquitin, ca, 1 ps": System("md/ubiquitin_explicit_1ns", "ubq.pdb", "ubq_1ns.xtc", "ca", 1.0),
    "bpti, ca, 10 ps": System("md/bpti_explicit_5ns", "bpti.gro", "bpti.xtc", "ca", 10.0),
    "beta peptide, heavy, 10 ps": System("md/beta_peptide_50ns", "beta-peptide.pdb", "beta-peptide.xtc", "heavy", 10.0),
}
ALANINE = "ala2, heavy, 1 ps"


def alanine_parts(source: Source) -> list[Part]:
    """The test runs of alanine dipeptide, with what is fitted to the others."""
    spec = GraphSpec(select="heavy", node_features=("speed",))
    builder = GraphBuilder(select_atoms(source.universe, "heavy"), spec)
    known = Known(source.train, STEPS)
    return [
        Part(Run(x, builder, name=f"test-{k}"), np.arange(PAST, len(x) - max(STEPS)), known)
        for k, x in enumerate(source.test)
    ]


def halves(system: System, data: Path) -> list[Part]:
    """Windows of either half of a run, with what is fitted to the other half."""
    folder = data / system.folder
    universe = mda.Universe(str(folder / system.topology), str(folder / system.trajectory))
    spec = GraphSpec(select=system.select, node_features=("speed",))
    window = WindowSpec(n_times=max(STEPS), stride_ps=system.stride_ps)
    runs = Subject.of(universe, spec, window).runs(0, None)
    total, before = sum(len(run.positions) for run in runs), 0
    pieces: list[list[Run]] = [[], []]
    for run in runs:
        middle = int(np.clip(total // 2 - before, 0, len(run.positions)))
        for half, x in zip(pieces, (run.positions[:middle], run.positions[middle:]), strict=True):
            if len(x):
                half.append(Run(np.asarray(x), run.builder, run.every, name=run.name))
        before += len(run.positions)
    parts = []
    for half, other in zip(pieces, pieces[::-1], strict=True):
        known = Known([run.positions for run in other], STEPS, half[0].every)
        for run in half:
            # Where stretches without a gap are short, starts have the past that there is.
            longest = max(len(r.positions) for r in half)
            first = min(PAST, longest // 4) if len(run.positions) > max(STEPS) + PAST else 1
            starts = np.arange(first * run.every, len(run.positions) - max(STEPS) * run.every)
            if len(starts):
                parts.append(Part(run, starts, known))
    return parts


def errors(parts: list[Part]) -> tuple[dict[str, np.ndarray], int]:
    """Mean squared errors (2, T) of every free forecast, nothing superposed and superposed; and how many windows."""
    thin = -(-sum(len(part.starts) for part in parts) // WINDOWS)
    found: dict[str, list[np.ndarray]] = {}
    for part in parts:
        starts, every = part.starts[::thin], part.run.every
        x = part.run.positions
        for first in range(0, len(starts), 200):
            some = starts[first : first + 200]
            true = x[some[:, None] + np.asarray(STEPS) * every]  # (S, T, N, 3)
            for name, forecaster in part.known.baselines.forecasts.items():
                rows = found.setdefault(name, [])
                room = np.minimum(some // every + 1, forecaster.n_past)  # (S,)
                for n_past in np.unique(room):
                    here = room == n_past
                    past = x[some[here][:, None] + np.arange(1 - n_past, 1) * every]  # (S', P, N, 3)
                    rows.append(both_errors(forecaster(past, STEPS), true[here]))  # (S', 2, T)
    together = {name: np.concatenate(rows) for name, rows in found.items()}
    n_windows = max(len(rows) for rows in together.values())
    return {name: rows.mean(axis=0) for name, rows in together.items() if len(rows) == n_windows}, n_windows


def measure(parts: list[Part], stride_ps: float) -> dict[str, Any]:
    """Errors, skill over the standing frame, and drawn futures over seeds."""
    began = time.perf_counter()
    mean, n_windows = errors(parts)
    seconds = time.perf_counter() - began
    static = mean["static"]
    times = np.asarray(STEPS) * stride_ps
    drawn = [calibrate(parts, np.asarray(STEPS), times, SAMPLES, max_windows=DRAWN, seed=seed) for seed in SEEDS]
    known = list({id(part.known): part.known for part in parts}.values())
    processes = [one.baselines.forecasts.get("Gaussian process") for one in known]
    return plain({
        "n_windows": n_windows,
        "n_atoms": parts[0].run.builder.n_atoms,
        "known_frames": [sum(map(len, one.segments)) for one in known],
        "history": [one.history for one in known],
        "covariance": [None if p is None else {"kind": p.kind, "product": p.noise.share} for p in processes],
        "times_ps": times,
        "mse_laboratory": {name: e[0] for name, e in mean.items()},
        "mse_superposed": {name: e[1] for name, e in mean.items()},
        "skill_laboratory": {name: skill(e[0], static[None, 0]) for name, e in mean.items()},
        "skill_superposed": {name: skill(e[1], static[None, 1]) for name, e in mean.items()},
        "drawn": [one.as_dict() for one in drawn],
        "seconds": seconds,
    })  # fmt: skip


def chained(parts: list[Part], stride_ps: float) -> dict[str, Any]:
    """Quality of long chains of drawn windows, as `predict` makes them, beside that of frames that stand.

    Of a run in halves, chains of the first one, fitted to the other.
    """
    known, builder = parts[0].known, parts[0].run.builder
    parts = [part for part in parts if part.known is known]
    geometry = LocalGeometry.fit(known.segments, builder.bonds)
    places = [(part.run, start) for part in parts for start in part.starts]
    places = [places[k] for k in np.linspace(0, len(places) - 1, CHAINS + 2).astype(int)[1:-1]]
    past = np.stack([run.positions[start + np.arange(1 - PAST, 1) * run.every] for run, start in places])
    runs = [part.run.positions[:: part.run.every] for part in parts]
    out = {}
    for name in CHAINING:
        free = known.baselines.forecasts[name]
        inner = Restored(free, geometry.keep)
        reversion = None
        if getattr(free, "draws", False):
            reversion = MeanReversion.fit(OneByOne(free), known, STEPS, PAST, builder.bonds)
        chain = Chained(inner, STEPS, reversion=reversion)
        frames = chain.collect(past, CHAIN_LENGTH, generator=np.random.default_rng(0))[:, 0]  # (C, F, N, 3)
        found = quality(builder, list(frames), runs, stride_ps)
        out[name] = {"rows": {row: values for row, *values in found.rows()}, "findings": found.findings}
    return plain(out)


@click.group()
def main() -> None:
    """What the forecasts without a network are worth on published runs."""


@main.command()
@click.argument("names", nargs=-1)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with ala2/ and md/.")
@click.option("--json", "target", type=click.Path(path_type=Path), required=True, help="Results; those in it are kept.")
def run(names: tuple[str, ...], data: Path, target: Path) -> None:
    """Measure systems, all of them if none is named."""
    results = json.loads(target.read_text()) if target.exists() else {}
    makers: dict[str, Callable[[], list[Part]]] = {ALANINE: lambda: alanine_parts(alanine(data))}
    makers |= {name: lambda system=system: halves(system, data) for name, system in SYSTEMS.items()}
    strides = {ALANINE: 1.0, **{name: system.stride_ps for name, system in SYSTEMS.items()}}
    folders = {ALANINE: "ala2", **{name: system.folder for name, system in SYSTEMS.items()}}
    if unknown := set(names) - set(makers):
        raise click.UsageError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    for name in names or makers:
        if name in results:
            continue
        if not (data / folders[name]).is_dir():
            click.echo(f"{name}: {data / folders[name]} is not there, skipped")
            continue
        parts = makers[name]()
        results[name] = measure(parts, strides[name])
        if name in CHAINED:
            results[name]["chains"] = chained(parts, strides[name])
        # Six digits are enough, and a third of the file.
        results = json.loads(json.dumps(results), parse_float=lambda number: round(float(number), 6))
        target.write_text(json.dumps(results))
        click.echo(f"{name}: {results[name]['seconds']:.0f} s")


@main.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
def table(source: Path) -> None:
    """Markdown of the results: skill over the standing frame, and drawn futures (medians over seeds)."""
    results = json.loads(source.read_text())
    at = [STEPS.index(step) for step in SHOWN]
    lines = ["| superposed skill over the standing frame at steps 1, 2, 4, 8 | windows | static RMSD (A) | "]
    names = [name for name in next(iter(results.values()))["skill_superposed"] if name != "static"]
    lines[0] += " | ".join(names) + " |"
    lines.append("|" + "---|" * (3 + len(names)))
    for kind in ("superposed", "laboratory"):
        for system, found in results.items():
            error = np.sqrt(3 * np.asarray(found[f"mse_{kind}"]["static"]))[at]
            cells = [f"{system}{', lab' if kind == 'laboratory' else ''}", str(found["n_windows"])]
            cells.append(" ".join(f"{e:.2f}" for e in error))
            for name in names:
                values = found[f"skill_{kind}"].get(name)
                cells.append("-" if values is None else " ".join(f"{v:+.2f}" for v in np.asarray(values)[at]))
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| drawn futures, superposed | forecaster | energy score at steps 1, 2, 4, 8 (A) | of the window | "
              "spread over error at 1, 2, 4, 8 | outside | CRPS (A) | covariance |", "|" + "---|" * 8]  # fmt: skip
    for system, found in results.items():
        for name in found["drawn"][0]["superposed"]:
            ones = [one["superposed"][name] for one in found["drawn"]]
            median = {key: np.median([one[key] for one in ones], axis=0) for key in ones[0]}
            windows = [one["window_score"] for one in ones]
            kind = " and ".join(c["kind"] for c in found["covariance"] if c) if name == "Gaussian process" else ""
            lines.append(
                f"| {system} | {name} | {' '.join(f'{v:.3f}' for v in median['energy_score'][at])} | "
                f"{np.median(windows):.4f} ({min(windows):.4f} to {max(windows):.4f}) | "
                f"{' '.join(f'{v:.2f}' for v in median['spread_over_error'][at])} | {np.mean(median['outside']):.2f} | "
                f"{np.mean(median['crps']):.3f} | {kind} |"
            )
    for system, found in results.items():
        chains = found.get("chains", {})
        names = list(chains)
        if names:
            lines += ["", f"| {system}: chains | {' | '.join(names)} | run | floor |", "|" + "---|" * (len(names) + 3)]
            for row in chains[names[0]]["rows"]:
                cells = [chains[name]["rows"][row][0] for name in names] + chains[names[0]]["rows"][row][1:]
                lines.append(f"| {row} | {' | '.join('-' if c is None else f'{c:.3f}' for c in cells)} |")
            lines += [""] + [f"- {name}: {'; '.join(chains[name]['findings']) or 'no finding'}" for name in names]
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
