"""How fast a drawn chain is beside the dynamics that it stands for, on the same core, and what it is worth.

    python -m benchmarks.against_md --data DIR [--json FILE] [--page FILE] [--only NAME]

The dynamics are those of :mod:`.simulate`: Amber ff99SB-ILDN, OBC implicit solvent without a cutoff, 4 fs, OpenMM's CPU
platform with one thread. The chain is what `egno-md predict` draws of a run that is at hand, by the forecast that it
chooses there: its time is the difference between a short horizon and a long one, in CPU seconds, so that neither the
imports nor the choice count. What a frame is worth is the hindcast of that run; the chain is held against how much the
atoms of the run fluctuate, and how far they go from frame to frame. Results that are in the JSON file are kept.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import MDAnalysis as mda
import numpy as np

import egno_md
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.default import default_selection
from egno_md.molecule.geometry import aligned, superposed_rmsd

from .any_run import Case, alanine, measured, published
from .simulate import TEMPERATURE_K, built
from .tables import kept, put

#: Horizons in frames, frames of the run from one of them to the next, and seconds of dynamics that are timed.
SHORT, LONG, STRIDES, SECONDS, STEP_FS = 80, 4080, (1, 10), 20.0, 4
DAY = 86_400.0


class System(NamedTuple):
    """A molecule: the structure that is simulated, and the run that is forecast."""

    structure: Path
    case: Case


def systems(data: Path, folder: Path) -> dict[str, System]:
    """All molecules; those of the package, of DATA, and of MDAnalysisTests."""
    from MDAnalysisTests.datafiles import DCD, PSF

    structures, samples = data / "structures", Path(egno_md.sample()[0]).parent
    runs = {case.name: case for case in [*published(data), *alanine(data, folder)]}

    def sample(name: str) -> Case:
        return Case(name, str(samples / f"{name}.pdb"), str(samples / f"{name}.xtc"))

    return {
        "alanine dipeptide": System(data / "ala2" / "ala2.pdb", runs["ala2, 1 ps"]),
        "chignolin": System(structures / "CLN025_5awl.pdb", sample("chignolin")),
        "trp-cage": System(structures / "trpcage_1l2y.pdb", runs["trpcage_igb8_2us"]),
        "ubiquitin": System(structures / "ubiquitin_1ubi.pdb", sample("ubiquitin")),
        "adenylate kinase": System(structures / "AdK_open_4ake.pdb", Case("AdK", PSF, DCD)),
    }


def dynamics(structure: Path) -> dict[str, Any]:
    """Number of atoms, and simulated ns a day of one core."""
    import openmm as mm

    simulation = built(structure, STEP_FS, 1, mm.Platform.getPlatform("CPU"), {"Threads": "1"})
    simulation.minimizeEnergy(maxIterations=20)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE_K, 1)
    simulation.step(20)
    began, steps, some = time.process_time(), 0, 10
    while (taken := time.process_time() - began) < SECONDS:
        simulation.step(some)
        simulation.context.getState(energy=True)  # waits for the steps
        steps += some
        if taken < SECONDS / 10:
            some = steps  # twice as many each time: to ask takes longer than ten steps of a small molecule
    return {"all_atoms": simulation.system.getNumParticles(), "dynamics": steps * STEP_FS * 1e-6 / taken * DAY}


def beside_run(case: Case, chain: Path, every: int) -> dict[str, float]:
    """How a chain moves, as ratios to the run: root mean square fluctuations, their correlation, and median steps."""
    run = mda.Universe(case.topology, case.trajectory)
    atoms = select_atoms(run, default_selection(run).select)
    known = np.stack([atoms.positions for _ in run.trajectory[::every]])
    drawn = mda.Universe(chain.with_suffix(".pdb"), chain)
    frames = np.stack([drawn.atoms.positions for _ in drawn.trajectory])
    (own, steps), (theirs, others) = _motion(frames), _motion(known)
    return {
        "rmsf": float(own.mean() / theirs.mean()),
        "correlation": float(np.corrcoef(own, theirs)[0, 1]),
        "step": steps / others,
    }


def _motion(frames: np.ndarray) -> tuple[np.ndarray, float]:
    """Root mean square fluctuation (N,) and the median step of frames (F, N, 3), superposed."""
    mean = frames[0]
    for _ in range(3):
        mean = aligned(frames, mean).mean(axis=0)
    fluctuation = np.sqrt(np.mean(np.sum((aligned(frames, mean) - mean) ** 2, axis=-1), axis=0))
    return fluctuation, float(np.median(superposed_rmsd(frames[1:], frames[:-1])))


def measure(system: System, folder: Path) -> dict[str, Any]:
    """The dynamics of a molecule, and at both strides the chain and its worth."""
    chains = []
    for every in STRIDES:
        options = ("--stride", str(every), "--horizon")
        short, long = (measured(system.case, folder, (*options, str(frames))) for frames in (SHORT, LONG))
        if "refused" not in long:
            long["frame_seconds"] = (long["cpu_seconds"] - short["cpu_seconds"]) / (LONG - SHORT)
            long["beside_run"] = beside_run(system.case, folder / "out.dcd", every)
        chains.append(long)
    return {**dynamics(system.structure), "chains": chains}


def rows(name: str, one: dict[str, Any]) -> str:
    """The lines of a molecule in the table."""
    return "\n".join(row(name, one, chain) for chain in one["chains"])


def row(name: str, one: dict[str, Any], chain: dict[str, Any]) -> str:
    """A line of the table."""
    if "refused" in chain:
        return f"| {name} | refused: {chain['refused']} |" + " |" * 11
    found = chain["hindcast"]
    chosen, still = found["candidates"][found["chosen"]], found["candidates"]["static"]
    spread = chosen["spread_over_error"]
    stride = found["times_ps"][0]
    drawn, moves = stride * 1e-3 / chain["frame_seconds"] * DAY, chain["beside_run"]
    return (
        f"| {name} | {stride:g} | {one['all_atoms']} | {chain['atoms']} | {one['dynamics']:.3g} | {drawn:.3g} | "
        f"{drawn / one['dynamics']:.3g} | {chain['model']} | {chosen['score']:.2f} / {still['score']:.2f} | "
        f"{'' if spread is None else f'{spread[-1]:.2f}'} | {moves['rmsf']:.2f} | {moves['correlation']:.2f} | "
        f"{moves['step']:.2f} |"
    )


HEAD = (
    "| molecule | stride (ps) | atoms, all | atoms of the chain | dynamics, ns a day | chain, ns a day | times as fast "
    "| drawn by | energy score of it / of the standing frame (A) | spread over error, last step "
    "| RMSF of the chain / of the run | their correlation | median step of it / of the run |"
)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with structures/, ala2/ and md/.")
@click.option("--json", "target", type=click.Path(path_type=Path), default=Path("docs/performance/against_md.json"))
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/performance.md"), help="With its table.")
@click.option("--only", default="", help="Molecules whose name holds this.")
def main(data: Path, target: Path, page: Path, only: str) -> None:
    """How fast a drawn chain is beside dynamics, and what it is worth."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = ((name, partial(measure, system, folder)) for name, system in systems(data, folder).items())
        results = kept(target, every, rows, only)
    put(page, HEAD, (rows(name, one) for name, one in results.items()))


if __name__ == "__main__":
    main()
