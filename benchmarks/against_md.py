"""How fast a drawn chain is beside the dynamics that it stands for, on the same core, and what it is worth.

    python -m benchmarks.against_md --data DIR [--json FILE] [--page FILE] [--only NAME]

The dynamics are those of :mod:`.simulate`: Amber ff99SB-ILDN, OBC implicit solvent without a cutoff, 4 fs, OpenMM's CPU
platform with one thread. The chain is what `egno-md predict` draws of a run that is at hand, by the forecast that it
chooses there: its time is the difference between a short horizon and a long one, in CPU seconds, so that neither the
imports nor the choice count. What a frame is worth is the hindcast of that run. Results that are in the JSON file are
kept.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

import egno_md

from .any_run import Case, alanine, measured, published
from .simulate import FRICTION_PER_PS, HYDROGEN_MASS, TEMPERATURE_K

#: Horizons in frames, and seconds of dynamics that are timed.
SHORT, LONG, SECONDS = 80, 4080, 20.0
DAY = 86_400.0


class System(NamedTuple):
    """A molecule: the structure that is simulated, and the run that is forecast."""

    structure: str
    case: Case


def systems(data: Path, folder: Path) -> dict[str, System]:
    """All molecules; those of the package, of DATA, and of MDAnalysisTests."""
    from MDAnalysisTests.datafiles import DCD, PSF

    structures, samples = data / "structures", Path(egno_md.sample()[0]).parent
    runs = {case.name: case for case in [*published(data), *alanine(data, folder)]}

    def sample(name: str) -> Case:
        return Case(name, str(samples / f"{name}.pdb"), str(samples / f"{name}.xtc"))

    return {
        "alanine dipeptide": System(str(data / "ala2" / "ala2.pdb"), runs["ala2, 1 ps"]),
        "chignolin": System(str(structures / "CLN025_5awl.pdb"), sample("chignolin")),
        "trp-cage": System(str(structures / "trpcage_1l2y.pdb"), runs["trpcage_igb8_2us"]),
        "ubiquitin": System(str(structures / "ubiquitin_1ubi.pdb"), sample("ubiquitin")),
        "adenylate kinase": System(str(structures / "AdK_open_4ake.pdb"), Case("AdK", PSF, DCD)),
    }


def dynamics(structure: str) -> tuple[int, float]:
    """Atoms, and simulated ns a day of one core."""
    import openmm as mm
    from openmm import app, unit

    field, step = app.ForceField("amber99sbildn.xml", "amber99_obc.xml"), 0.004
    pdb = app.PDBFile(structure)
    pdb.topology.setPeriodicBoxVectors(None)
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(field, pH=7.0)
    system = field.createSystem(
        modeller.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds, hydrogenMass=HYDROGEN_MASS[4]
    )
    integrator = mm.LangevinMiddleIntegrator(
        TEMPERATURE_K * unit.kelvin, FRICTION_PER_PS / unit.picosecond, step * unit.picosecond
    )
    platform = mm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(modeller.topology, system, integrator, platform, {"Threads": "1"})
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(maxIterations=20)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE_K * unit.kelvin, 1)
    simulation.step(20)
    began, steps = time.process_time(), 0
    while (taken := time.process_time() - began) < SECONDS:
        simulation.step(10)
        simulation.context.getState(getEnergy=True)  # waits for the steps
        steps += 10
    return system.getNumParticles(), steps * step * 1e-3 / taken * DAY


def measure(system: System, every: int, folder: Path) -> dict[str, Any]:
    """One row: the dynamics, the chain and its worth."""
    options = () if every == 1 else ("--stride", str(every))
    short, long = (measured(system.case, folder, (*options, "--horizon", str(frames))) for frames in (SHORT, LONG))
    if "refused" in long:
        return {"refused": long["refused"]}
    n_atoms, speed = dynamics(system.structure)
    seconds = (long["cpu_seconds"] - short["cpu_seconds"]) / (LONG - SHORT)
    return {**long, "all_atoms": n_atoms, "dynamics": speed, "frame_seconds": seconds}


def row(name: str, one: dict[str, Any]) -> str:
    """A line of the table."""
    if "refused" in one:
        return f"| {name} | refused: {one['refused']} |" + " |" * 9
    found = one["hindcast"]
    chosen, still = found["candidates"][found["chosen"]], found["candidates"]["static"]
    spread = chosen["spread_over_error"]
    stride = found["times_ps"][0]
    drawn = stride * 1e-3 / one["frame_seconds"] * DAY
    return (
        f"| {name} | {stride:g} | {one['all_atoms']} | {one['atoms']} | {one['dynamics']:.3g} | {drawn:.3g} | "
        f"{drawn / one['dynamics']:.3g} | {one['model']} | {chosen['score']:.2f} / {still['score']:.2f} | "
        f"{'' if spread is None else f'{spread[-1]:.2f}'} | {'passed' if one['checks']['ok'] else 'failed'} |"
    )


HEAD = (
    "| molecule | stride (ps) | atoms, all | atoms of the chain | dynamics, ns a day | chain, ns a day | times as fast "
    "| drawn by | energy score of it / of the standing frame (A) | spread over error, last step | checks of the chain |"
)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with structures/, ala2/ and md/.")
@click.option("--json", "target", type=click.Path(path_type=Path), default=Path("docs/performance/against_md.json"))
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/performance.md"), help="With its table.")
@click.option("--only", default="", help="Molecules whose name holds this.")
def main(data: Path, target: Path, page: Path, only: str) -> None:
    """How fast a drawn chain is beside dynamics, and what it is worth."""
    results = json.loads(target.read_text()) if target.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for molecule, system in systems(data, folder).items():
            for every in (1, 10):
                key = f"{molecule}, every {every}"
                if key in results or only not in key:
                    continue
                results[key] = measure(system, every, folder)
                rounded = json.loads(json.dumps(results), parse_float=lambda number: round(float(number), 6))
                target.write_text(json.dumps(rounded))
                click.echo(row(molecule, results[key]))
    lines = [HEAD, "|" + "---|" * 11, *(row(key.partition(",")[0], one) for key, one in results.items())]
    text, _, rest = page.read_text().partition("| molecule |")
    page.write_text(text + "\n".join(lines) + "\n\n" + rest.partition("\n\n")[2])


if __name__ == "__main__":
    main()
