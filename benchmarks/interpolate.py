"""What frames filled in between saved ones are worth, judged by the frames that were left out.

    python -m benchmarks.interpolate --data DIR [--model FILE] [NAME ...]

The model is for alanine dipeptide and is trained as ``benchmarks/drawn.py`` says, with ``--set ends=0.5``. Of every
run each eighth frame is kept, the others are filled in and compared with what they were. The rows go to
``docs/performance/interpolate.json``, the tables into ``docs/interpolate.md``. A system that is not there is skipped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import MDAnalysis as mda
import numpy as np
from scipy.interpolate import CubicSpline

from egno_md import sample
from egno_md.evaluation.result import plain
from egno_md.forecast.bridge import FAST, Bridge
from egno_md.forecast.filled import NetworkBridge, check_fills
from egno_md.forecast.model import load_model
from egno_md.forecast.operator import OperatorWindow
from egno_md.graph.builder import GraphBuilder
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.checks import check_frames
from egno_md.molecule.geometry import bond_lengths, rmsd, superposed_rmsd
from egno_md.molecule.local import LocalGeometry
from egno_md.molecule.molecule import Molecule
from egno_md.trajectory.universe import open_universe

from .proteins import alanine

ALANINE = "alanine dipeptide, 8 ps kept of 1 ps"
FACTOR, DRAWS, FRAMES = 8, 8, 8001
#: Time constant of the fast motion of proteins in water in ps, which the frames kept do not tell.
TRUE_FAST_PS = 0.5
#: A bond is off by more than this from its mean in the run, Angstrom.
BOND_OFF = 0.1
PAGE = Path(__file__).parents[1] / "docs" / "interpolate.md"
BEGIN, END = "<!-- tables -->\n", "<!-- end -->\n"
FILE = Path(__file__).parents[1] / "docs" / "performance" / "interpolate.json"


class Left(NamedTuple):
    """A run of which each eighth frame is kept.

    `atoms` as the run has them; `kept`: stretches (F, N, 3) of them; `true`: what lies between, (F - 1, FACTOR - 1, N,
    3) for each stretch, NaN where the run itself has no frame; `spacing_ps` of the run.
    """

    atoms: mda.AtomGroup
    molecule: Molecule
    kept: list[np.ndarray]
    true: list[np.ndarray]
    spacing_ps: float


def left_out(atoms: mda.AtomGroup, frames: np.ndarray, times: np.ndarray, spacing_ps: float) -> Left:
    """Of frames (F, N, 3) at times (F,) that may have gaps."""
    steps = np.rint((times - times[0]) / spacing_ps).astype(int)
    place = np.full(steps[-1] + 1, -1)
    place[steps] = np.arange(len(steps))
    place = place[: (len(place) - 1) // FACTOR * FACTOR + 1]
    there = place[::FACTOR] >= 0
    kept, true = [], []
    for stretch in np.split(np.arange(len(there)), np.flatnonzero(np.diff(there)) + 1):
        if not there[stretch[0]] or len(stretch) < 2:
            continue
        kept.append(frames[place[stretch * FACTOR]])
        between = place[stretch[:-1, None] * FACTOR + np.arange(1, FACTOR)]  # (F - 1, J)
        true.append(np.where((between >= 0)[..., None, None], frames[between], np.nan))
    return Left(atoms, Molecule.of(atoms), kept, true, spacing_ps)


def of_files(topology: Path, trajectory: Path, spacing_ps: float) -> Left:
    """Of a run in files; molecules whole."""
    universe = open_universe(topology, [trajectory])
    found = [(ts.time, universe.atoms.positions.copy()) for ts in universe.trajectory]
    return left_out(universe.atoms, np.array([x for _, x in found]), np.array([t for t, _ in found]), spacing_ps)


def of_alanine(data: Path) -> Left:
    """The beginning of the first run of alanine dipeptide."""
    source = alanine(data)
    frames = np.asarray(source.test[0][:FRAMES])
    return left_out(select_atoms(source.universe, "heavy"), frames, np.arange(len(frames), dtype=float), 1.0)


def linear(kept: np.ndarray) -> np.ndarray:
    """Straight lines (F - 1, J, N, 3)."""
    return kept[:-1, None] + (np.arange(1, FACTOR) / FACTOR)[:, None, None] * np.diff(kept, axis=0)[:, None]


def spline(kept: np.ndarray) -> np.ndarray:
    """A cubic spline through the frames kept, of every coordinate; through two of them a line."""
    if len(kept) < 3:
        return linear(kept)
    at = np.arange(len(kept) - 1)[:, None] + np.arange(1, FACTOR) / FACTOR
    return CubicSpline(np.arange(len(kept)), kept)(at)


def judged(left: Left, paths: list[np.ndarray]) -> dict[str, Any]:
    """Errors, and what is broken in the frames filled in."""
    molecule = left.molecule
    found, true = np.concatenate(paths), np.concatenate(left.true)  # (I, J, N, 3)
    known = np.isfinite(true).all(axis=(2, 3))
    near = LocalGeometry.fit(left.kept, molecule.bonds)
    real = true[known]
    by_place = [
        float(np.sqrt(np.mean(superposed_rmsd(found[known[:, j], j], true[known[:, j], j]) ** 2)))
        for j in range(FACTOR - 1)
    ]
    off = np.abs(bond_lengths(found, molecule.bonds) - bond_lengths(real, molecule.bonds).mean(axis=0))
    angles = bond_lengths(found, near.pairs)  # 1-2, 1-3 and 1-4 distances
    seen = bond_lengths(real, near.pairs)
    outside = (angles < seen.min(axis=0) - BOND_OFF) | (angles > seen.max(axis=0) + BOND_OFF)
    checks = check_frames(found.reshape(-1, *found.shape[2:]), left.kept[0][0], molecule.bonds, molecule=molecule)
    return {
        "rmsd_superposed": float(np.sqrt(np.mean(superposed_rmsd(found[known], real) ** 2))),
        "rmsd": float(np.sqrt(np.mean(rmsd(found[known], real) ** 2))),
        "rmsd_superposed_by_place": by_place,
        "bonds_off": float(np.mean(off > BOND_OFF)),
        "worst_bond": float(off.max()),
        "distances_never_seen": float(outside.mean()),
        "frames_with_clashes": float(np.mean(checks.clashes > 0)),
        "frames_with_flipped_centres": float(np.mean(checks.flipped > 0)),
        "frames": int(known.sum()),
    }


def calibration(left: Left, draws: list[list[np.ndarray]]) -> float:
    """Spread of drawn paths over the error of their mean, corrected for their number; 1 is right."""
    members = np.stack([np.concatenate(paths) for paths in draws])  # (K, I, J, N, 3)
    true = np.concatenate(left.true)
    known = np.isfinite(true).all(axis=(2, 3))
    error = np.mean((members.mean(axis=0)[known] - true[known]) ** 2)
    return float(np.sqrt(np.mean(np.var(members, axis=0, ddof=1)[known]) * (1 + 1 / len(members)) / error))


def rows(name: str, left: Left, model: str | None = None) -> list[dict[str, Any]]:
    """One for each way to fill in."""
    found = []
    base = {"system": name, "atoms": len(left.molecule), "kept": sum(map(len, left.kept))}

    def add(way: str, paths: list[np.ndarray], began: float, **more: Any) -> None:
        count = sum(x.shape[0] * x.shape[1] for x in paths)
        cost = 1e3 * (time.process_time() - began) / count
        found.append({**base, "way": way, **judged(left, paths), "cpu_ms_per_frame": cost, **more})
        click.echo(f"{name}: {way}: {found[-1]['rmsd_superposed']:.3f} A", err=True)

    for way, function in (("linear", linear), ("cubic spline", spline)):
        began = time.process_time()
        add(way, [function(kept) for kept in left.kept], began)
    bridges = {
        label: Bridge.fit(left.kept, left.molecule.bonds, FACTOR, fast=fast)
        for label, fast in (
            ("", FAST), (f", --fast-ps {TRUE_FAST_PS:g}", TRUE_FAST_PS / (FACTOR * left.spacing_ps)),
        )
    }  # fmt: skip
    if model is not None:
        loaded = check_fills(load_model(model), FACTOR, FACTOR * left.spacing_ps)
        builder = GraphBuilder(left.atoms, loaded.graph)
        bridges[", --model"] = NetworkBridge.of(bridges[""], OperatorWindow(loaded, builder))
    for label, bridge in bridges.items():
        began = time.process_time()
        add(f"path{label}", [np.concatenate(list(bridge.fill(kept))) for kept in left.kept], began)
        began = time.process_time()
        draws = [
            [
                np.concatenate(list(bridge.fill(kept, np.random.default_rng([0, k, i]))))
                for i, kept in enumerate(left.kept)
            ]
            for k in range(DRAWS)
        ]
        add(f"drawn{label}", draws[0], began, spread_over_error=calibration(left, draws))
        found[-1]["cpu_ms_per_frame"] /= DRAWS
    return found


def systems(data: Path) -> dict[str, Any]:
    """What is there, each to be loaded when it is asked for."""
    published = data / "md" / "ubiquitin_explicit_1ns"
    files = {
        "ubiquitin in water, 8 ps kept of 1 ps": (published / "ubq.pdb", published / "ubq_1ns.xtc", 1.0),
        "chignolin, 8 ps kept of 1 ps": (*sample("chignolin"), 1.0),
        "chignolin, 0.8 ps kept of 0.1 ps": (*sample("chignolin-fine"), 0.1),
    }
    found: dict[str, Any] = {
        name: (lambda some=some: of_files(*some)) for name, some in files.items() if Path(some[1]).exists()
    }
    if (data / "ala2").exists():
        found[ALANINE] = lambda: of_alanine(data)
    return found


def tables(found: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| system | filled in by | RMSD superposed (A) | as it stands | bonds off by > 0.1 A | worst bond (A) | "
        "distances never seen | frames with clashes | centres turned over | spread/error | CPU ms a frame |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        spread = f"{row['spread_over_error']:.2f}" if "spread_over_error" in row else ""
        lines.append(
            f"| {row['system']} ({row['kept']} frames kept) | {row['way']} | {row['rmsd_superposed']:.3f} | "
            f"{row['rmsd']:.3f} | {row['bonds_off']:.1%} | {row['worst_bond']:.2f} | {row['distances_never_seen']:.2%} "
            f"| {row['frames_with_clashes']:.0%} | {row['frames_with_flipped_centres']:.0%} | {spread} | "
            f"{row['cpu_ms_per_frame']:.1f} |"
        )
    places = " | ".join(f"{j}/{FACTOR}" for j in range(1, FACTOR))
    lines += ["", "RMSD superposed (A) by the place between two frames:", "", f"| system | filled in by | {places} |"]
    lines.append("|---|---|" + "---|" * (FACTOR - 1))
    for row in found:
        values = " | ".join(f"{x:.2f}" for x in row["rmsd_superposed_by_place"])
        lines.append(f"| {row['system']} | {row['way']} | {values} |")
    return "\n".join(lines)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--model", help="For alanine dipeptide, with ends that are known.")
@click.option("--json", "file", type=click.Path(path_type=Path), default=FILE)
@click.option("--page", type=click.Path(path_type=Path), default=PAGE)
def main(names: tuple[str, ...], data: Path, model: str | None, file: Path, page: Path) -> None:
    """Fill in, judge, and write the rows and the tables of the page; NAMES: beginnings of systems."""
    known = json.loads(file.read_text()) if file.exists() else []
    for name, load in systems(data).items():
        if not names or any(name.startswith(some) for some in names):
            known = [row for row in known if row["system"] != name] + rows(
                name, load(), model if name == ALANINE else None
            )
    file.write_text(json.dumps(plain(known), indent=1) + "\n")
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + tables(known) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
