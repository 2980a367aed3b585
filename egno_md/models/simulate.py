"""Make the molecular dynamics that the bundled C-alpha model is trained and judged on.

Every protein is protonated, minimised, equilibrated and run with OpenMM: Amber ff99SB-ILDN with OBC implicit
solvent without a cutoff, Langevin middle integrator at 300 K and 1/ps, bonds to hydrogen constrained. One protein
takes minutes on one core; a run that exists is skipped, so an interrupted call goes on where it was.

    python -m egno_md.models.simulate --structures DIR --out DIR [NAME ...]
"""

from __future__ import annotations

import os
from pathlib import Path

import click

#: Production in ps and time step in fs for each structure (file stem). Many proteins for a short time teach a model
#: that has to work on others more than few for a long time.
RUNS = {
    "CLN025_5awl": (400, 2),
    "trpcage_1l2y": (300, 2),
    "fs_peptide": (200, 2),
    "EHEE_rd3_0053": (160, 2),
    "HHH_rd1_0335": (76.8, 2),
    "villin_HP35": (30, 4),
    "2WQG": (30, 4),
    "1GJS": (30, 4),
    "5AHT": (30, 4),
    "2JWS": (30, 4),
    "EA_run2_0290_0001": (30, 4),
    "1PGA_V39S": (30, 4),
    "2M2L": (30, 4),
    "2K1B": (30, 4),
    "1I6C": (30, 4),
    "ubiquitin_1ubi": (80, 2),
}
#: Whole proteins set aside: two choose the state of the training, one, the bundled sample, judges the model.
VALIDATION = ("1I6C", "2K1B")
SAMPLE = "ubiquitin_1ubi"

TEMPERATURE_K = 300.0
FRICTION_PER_PS = 1.0
#: Steps of 4 fs need heavier hydrogen, which is taken from the atom it is bonded to.
HYDROGEN_MASS = {2: None, 4: 1.5}
EQUILIBRATION_PS = {2: 20.0, 4: 6.0}
FRAME_PS = 0.2


def simulate(
    structure: Path, out: Path, length_ps: float, step_fs: int, seed: int = 1, frame_ps: float = FRAME_PS
) -> Path:
    """Run one protein and write ``<stem>.pdb`` (all atoms) and ``<stem>.dcd``.

    Parameters
    ----------
    structure : Path
        PDB file of heavy atoms.
    out : Path
        Folder of the two files.
    length_ps : float
        Production time in ps.
    step_fs : {2, 4}
        Time step in fs; 4 with hydrogen of 1.5 u.
    seed : int
        Seed of the velocities and of the thermostat.
    frame_ps : float
        Spacing of the frames in ps.

    Returns
    -------
    Path
        The DCD; one that exists is left as it is.
    """
    import openmm as mm
    from openmm import app, unit

    trajectory = out / f"{structure.stem}.dcd"
    if trajectory.exists():
        return trajectory
    out.mkdir(parents=True, exist_ok=True)

    field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    pdb = app.PDBFile(str(structure))
    pdb.topology.setPeriodicBoxVectors(None)  # the crystal's, which the run has no use for
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(field, pH=7.0)
    system = field.createSystem(
        modeller.topology,
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        hydrogenMass=HYDROGEN_MASS[step_fs],
    )
    integrator = mm.LangevinMiddleIntegrator(
        TEMPERATURE_K * unit.kelvin, FRICTION_PER_PS / unit.picosecond, step_fs * unit.femtosecond
    )
    integrator.setRandomNumberSeed(seed)
    simulation = app.Simulation(modeller.topology, system, integrator)
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(TEMPERATURE_K * unit.kelvin, seed)
    simulation.step(round(EQUILIBRATION_PS[step_fs] * 1000 / step_fs))

    with open(out / f"{structure.stem}.pdb", "w") as handle:
        positions = simulation.context.getState(getPositions=True).getPositions()
        app.PDBFile.writeFile(modeller.topology, positions, handle)
    # Reported under another name first: a run that was interrupted must not look like a whole one.
    partial = trajectory.with_suffix(".part.dcd")
    simulation.currentStep = 0
    simulation.context.setTime(0.0)
    simulation.reporters.append(app.DCDReporter(str(partial), round(frame_ps * 1000 / step_fs)))
    simulation.step(round(length_ps * 1000 / step_fs))
    simulation.reporters.clear()
    os.replace(partial, trajectory)
    return trajectory


def write_sample(runs: Path, folder: Path) -> None:
    """Write the bundled sample: the test protein, all atoms, a frame every ps, as PDB and XTC."""
    import MDAnalysis as mda

    universe = mda.Universe(str(runs / f"{SAMPLE}.pdb"), str(runs / f"{SAMPLE}.dcd"))
    folder.mkdir(parents=True, exist_ok=True)
    lines = (runs / f"{SAMPLE}.pdb").read_text().splitlines(keepends=True)
    (folder / "ubiquitin.pdb").write_text("".join(line for line in lines if not line.startswith("CRYST1")))
    every = round(1.0 / FRAME_PS)
    with mda.Writer(str(folder / "ubiquitin.xtc"), universe.atoms.n_atoms) as writer:
        for _ in universe.trajectory[every - 1 :: every]:
            universe.dimensions = None
            writer.write(universe.atoms)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option(
    "--structures",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the heavy-atom PDB files.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the runs.")
@click.option("--sample", type=click.Path(file_okay=False, path_type=Path), help="Write the bundled sample there.")
@click.option("--seed", default=1, show_default=True, help="Seed of velocities and thermostat.")
def main(names: tuple[str, ...], structures: Path, out: Path, sample: Path | None, seed: int) -> None:
    """Simulate NAME ... (all of the training set when none is given)."""
    for name in names or RUNS:
        length_ps, step_fs = RUNS[name]
        click.echo(f"{name}: {length_ps} ps", err=True)
        simulate(structures / f"{name}.pdb", out, length_ps, step_fs, seed)
    if sample is not None:
        write_sample(out, sample)


if __name__ == "__main__":
    main()
