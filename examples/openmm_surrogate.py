"""The forecaster inside OpenMM, both ways: as the integrator of C-alpha beads, and leading all-atom dynamics.

    python openmm_surrogate.py [FOLDER] [--jumps N] [--model NAME_OR_FILE]

Writes into FOLDER (by default the current one) beads.dcd with beads.pdb, and peptide.dcd with peptide.pdb and
peptide_jumps.csv. Takes less than a minute on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import MDAnalysis as mda
import openmm
from openmm import app, unit

from egno_md import load_model, sample
from egno_md.errors import EGNOError
from egno_md.propagator import HybridPropagator, surrogate_simulation


def beads(folder: Path, model: str | None) -> None:
    """A stock Simulation of the C-alpha atoms of the bundled run; one step is one predicted frame."""
    universe = mda.Universe(*map(str, sample()))
    universe.trajectory[-1]
    simulation = surrogate_simulation(universe, model)  # without a model, by what was best on this run
    print(f"beads      moved by {simulation.integrator.engine.name}")
    with open(folder / "beads.pdb", "w") as stream:
        positions = simulation.context.getState(positions=True).getPositions()
        app.PDBFile.writeFile(simulation.topology, positions, stream)
    simulation.reporters.append(app.DCDReporter(str(folder / "beads.dcd"), 1))
    simulation.step(8)
    simulation.reporters.clear()
    print(f"beads      {universe.trajectory.time:g} ps -> {simulation.context.getTime() / unit.picosecond:g} ps")
    # Any tool that knows Simulations goes on from here.
    print(f"beads      {mda.Universe(simulation).atoms}")


def peptide(folder: Path) -> app.Simulation:
    """The last twelve residues of the bundled protein, all atoms, in implicit solvent at 300 K."""
    universe = mda.Universe(str(sample()[0]))
    residues = universe.select_atoms("protein").residues[-12:]
    heavy = residues.atoms.select_atoms("not name H*")
    heavy.write(str(folder / "peptide_heavy.pdb"))
    field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    file = app.PDBFile(str(folder / "peptide_heavy.pdb"))
    (folder / "peptide_heavy.pdb").unlink()
    modeller = app.Modeller(file.topology, file.positions)
    modeller.addHydrogens(field)
    system = field.createSystem(modeller.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
    simulation = app.Simulation(modeller.topology, system, openmm.LangevinMiddleIntegrator(300, 1.0, 0.002))
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(maxIterations=200)
    simulation.context.setVelocitiesToTemperature(300)
    simulation.step(1000)
    simulation.currentStep = 0
    with open(folder / "peptide.pdb", "w") as stream:
        positions = simulation.context.getState(positions=True).getPositions()
        app.PDBFile.writeFile(simulation.topology, positions, stream)
    return simulation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("."))
    parser.add_argument("--jumps", type=int, default=4)
    parser.add_argument("--model", help="by default what is best on the run, and the bundled one for the jumps")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model)  # a name or a file that is not there is said before any work

    beads(options.folder, options.model)

    simulation = peptide(options.folder)
    hybrid = HybridPropagator(simulation, model)
    # Frames of the unbiased dynamics alone; what the jumps did is in the log.
    simulation.reporters.append(app.DCDReporter(str(options.folder / "peptide.dcd"), 50))
    summary = hybrid.run(options.jumps, 500, log=options.folder / "peptide_jumps.csv", force=True)
    for jump in hybrid.jumps:
        outcome = "accepted" if jump.accepted else f"rolled back ({jump.reason})"
        print(
            f"jump {jump.jump}     {outcome}: forecast moved {jump.forecast_moved:.2f} A, atoms followed to "
            f"{jump.rmsd_led:.2f} A, work {jump.work:.0f} kJ/mol, then {jump.temperature:.0f} K"
        )
    print(f"time       {summary.md_ps:g} ps of MD, jumps that stand for {summary.jump_ps:g} ps")
    print(f"cost       {summary.cost_ratio:.2f} of plain MD of the time that the jumps stand for")


if __name__ == "__main__":
    try:
        main()
    except EGNOError as error:
        sys.exit(f"error: {error}")
