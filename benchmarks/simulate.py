"""Make the molecular dynamics that the bundled C-alpha model is trained and judged on, and the bundled samples.

Every protein is protonated, minimised, equilibrated and run with OpenMM: Amber ff99SB-ILDN with OBC implicit
solvent without a cutoff, Langevin middle integrator at 300 K and 1/ps, bonds to hydrogen constrained. One protein
takes minutes on one core; a run that exists is skipped, so an interrupted call goes on where it was.

    python -m benchmarks.simulate --structures DIR --out DIR [NAME ...]
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
#: Whole proteins set aside: two choose the state of the training, one, a bundled sample, judges the model.
VALIDATION = ("1I6C", "2K1B")
SAMPLE = "ubiquitin_1ubi"

TEMPERATURE_K = 300.0
FRICTION_PER_PS = 1.0
#: Steps of 4 fs need heavier hydrogen, which is taken from the atom it is bonded to.
HYDROGEN_MASS = {2: None, 4: 1.5}
EQUILIBRATION_PS = {2: 20.0, 4: 6.0}
FRAME_PS = 0.2


@dataclass(frozen=True)
class Sample:
    """A bundled sample.

    Attributes
    ----------
    structure : str
        File stem, as in `RUNS`.
    length_ps, step_fs, frame_ps
        Of the run; see :func:`simulate`.
    hydrogen : bool
        Whether hydrogen is kept.
    trajectories : dict of str to tuple
        File name of each trajectory, how many of the run's frames one of its own is, and its number of frames.
    """

    structure: str
    length_ps: float
    step_fs: int
    frame_ps: float
    hydrogen: bool
    trajectories: dict[str, tuple[int, int]]

    def run_folder(self, out: Path) -> Path:
        """Where the run lies: with the others if it is one of them, else apart, as its files have the same names."""
        one_of_them = (self.length_ps, self.step_fs) == RUNS[self.structure] and self.frame_ps == FRAME_PS
        return out if one_of_them else out / "samples"


#: By the file stem of the topology: a protein that no bundled model has seen, and a run long enough to train a small
#: model on. Chignolin forgets its internal motion within 1 ps, so its beginning comes at 0.1 ps as well.
SAMPLES = {
    "ubiquitin": Sample(SAMPLE, *RUNS[SAMPLE], FRAME_PS, True, {"ubiquitin.xtc": (5, 80)}),
    "chignolin": Sample(
        "CLN025_5awl", 1000, 4, 0.1, False, {"chignolin.xtc": (10, 1000), "chignolin-fine.xtc": (1, 1000)}
    ),
}


def built(structure: Path, step_fs: int, seed: int, *platform: Any) -> Any:
    """The ``Simulation`` of a protein whose heavy atoms are in a PDB file, before it is minimised."""
    import openmm as mm
    from openmm import app, unit

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
    simulation = app.Simulation(modeller.topology, system, integrator, *platform)
    simulation.context.setPositions(modeller.positions)
    return simulation


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
    from openmm import app, unit

    trajectory = out / f"{structure.stem}.dcd"
    if trajectory.exists():
        return trajectory
    out.mkdir(parents=True, exist_ok=True)
    simulation = built(structure, step_fs, seed)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(TEMPERATURE_K * unit.kelvin, seed)
    simulation.step(round(EQUILIBRATION_PS[step_fs] * 1000 / step_fs))

    with open(out / f"{structure.stem}.pdb", "w") as handle:
        positions = simulation.context.getState(getPositions=True).getPositions()
        app.PDBFile.writeFile(simulation.topology, positions, handle)
    # Reported under another name first: a run that was interrupted must not look like a whole one.
    partial = trajectory.with_suffix(".part.dcd")
    simulation.currentStep = 0
    simulation.context.setTime(0.0)
    simulation.reporters.append(app.DCDReporter(str(partial), round(frame_ps * 1000 / step_fs)))
    simulation.step(round(length_ps * 1000 / step_fs))
    simulation.reporters.clear()
    os.replace(partial, trajectory)
    return trajectory


def write_sample(name: str, out: Path, folder: Path) -> None:
    """Write a bundled sample, ``<name>.pdb`` and its trajectories, from its run.

    Parameters
    ----------
    name : str
        A key of `SAMPLES`.
    out : Path
        Folder of the runs.
    folder : Path
        Folder of the files, made where it does not exist. They are replaced.
    """
    import MDAnalysis as mda
    from openmm import app

    sample = SAMPLES[name]
    stem = sample.run_folder(out) / sample.structure
    folder.mkdir(parents=True, exist_ok=True)
    pdb = app.PDBFile(f"{stem}.pdb")
    pdb.topology.setPeriodicBoxVectors(None)  # no CRYST1 line: the run has no box
    modeller = app.Modeller(pdb.topology, pdb.positions)
    if not sample.hydrogen:
        modeller.delete([atom for atom in pdb.topology.atoms() if atom.element.symbol == "H"])
    with open(folder / f"{name}.pdb", "w") as handle:
        app.PDBFile.writeFile(modeller.topology, modeller.positions, handle, keepIds=True)
    universe = mda.Universe(f"{stem}.pdb", f"{stem}.dcd")
    atoms = universe.atoms if sample.hydrogen else universe.select_atoms("not element H")
    for file, (every, n_frames) in sample.trajectories.items():
        with mda.Writer(str(folder / file), atoms.n_atoms) as writer:
            for k, ts in enumerate(universe.trajectory[every - 1 : every * n_frames : every], 1):
                ts.dimensions = None
                # The times in the DCD are off by rounding.
                ts.data["step"], ts.time = k, round(k * every * sample.frame_ps, 6)
                writer.write(atoms)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option(
    "--structures",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the heavy-atom PDB files.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the runs.")
@click.option("--sample", type=click.Path(file_okay=False, path_type=Path), help="Write the bundled samples there.")
@click.option("--seed", default=1, show_default=True, help="Seed of velocities and thermostat.")
def main(names: tuple[str, ...], structures: Path, out: Path, sample: Path | None, seed: int) -> None:
    """Simulate NAME ... (all of the training set when none is given)."""
    for name in names or RUNS:
        length_ps, step_fs = RUNS[name]
        click.echo(f"{name}: {length_ps} ps", err=True)
        simulate(structures / f"{name}.pdb", out, length_ps, step_fs, seed)
    for name, wanted in SAMPLES.items() if sample is not None else ():
        click.echo(f"sample {name}: {wanted.length_ps} ps", err=True)
        simulate(
            structures / f"{wanted.structure}.pdb",
            wanted.run_folder(out),
            wanted.length_ps,
            wanted.step_fs,
            seed,
            wanted.frame_ps,
        )
        write_sample(name, out, sample)


if __name__ == "__main__":
    main()
