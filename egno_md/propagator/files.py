"""Files of all-atom runs: Simulations from them, and what a run leaves."""

from __future__ import annotations

import csv
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import MDAnalysis as mda
import numpy as np
import openmm
from openmm import app, unit

from ..errors import DataError, ModelError, OutputError, UsageError, counted, few
from ..forecast.streams import check_seed
from ..molecule.atoms import matching_atoms
from ..progress import Progress
from .common import check_numbers, in_angstrom, in_parts, platform_named
from .prepare import build_system

#: In fs. Beyond it the fastest motions that are left, those of light hydrogens, need heavier ones.
MOST_STEP_FS = 3.0


def load_simulation(
    topology: str | os.PathLike,
    *,
    forcefields: Sequence[str] = (),
    system: str | os.PathLike | None = None,
    state: str | os.PathLike | None = None,
    hydrogens: bool = False,
    no_box: bool | None = None,
    temperature: float = 300.0,
    friction: float = 1.0,
    step_fs: float = 2.0,
    equilibrate_ps: float | None = 20.0,
    platform: str | None = None,
    seed: int = 0,
    said: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> app.Simulation:
    """An all-atom Simulation from files, with :class:`openmm.LangevinMiddleIntegrator`.

    Parameters
    ----------
    topology : path
        PDB or PDBx/mmCIF. Atoms and residues of a PDB keep the names that they have in it.
    forcefields : sequence of str
        OpenMM force field files; ``("amber14-all.xml", "implicit/obc2.xml")`` where there are none and no System. PME
        where the topology has a box of solvent, no cutoff otherwise; bonds to hydrogen constrained. Where hydrogens
        are missing that they need, these are added, as at pH 7; water that they do not know is left out of a structure
        without a box.
    system : path, optional
        A System serialised by OpenMM, instead of force fields.
    state : path, optional
        A State serialised by OpenMM to start from. Without it the positions of the topology are minimised and
        equilibrated.
    hydrogens : bool
        Add missing hydrogens also where the force field would take the structure without (with force fields alone).
    no_box : bool, optional
        Forget the box of the topology, or keep it (with force fields alone); when None it is kept if it is full of
        solvent, and that of a crystal is forgotten.
    temperature, friction, step_fs : float
        In K, 1/ps and fs. With force fields the step is at most 3 fs.
    equilibrate_ps : float, optional
        In ps. With None the positions of the topology stay as they are, for :func:`settle`.
    platform : str, optional
        OpenMM platform; OpenMM's choice by default.
    seed : int
        Of velocities and thermostat; 0 is another one each time.
    said : callable
        Takes a line for every choice that nobody asked for.
    progress : bool
        Say on stderr what is done, and how far it is.

    Returns
    -------
    openmm.app.Simulation

    Raises
    ------
    UsageError
        Both `forcefields` and `system`; an unknown platform; a number that cannot be right.
    DataError
        A file that is missing or damaged, a force field that does not know the molecule.
    ModelError
        A System or State of other particles.
    """
    check_numbers(temperature=temperature, friction=friction, step_fs=step_fs)
    if equilibrate_ps is not None:
        check_numbers(equilibrate_ps=equilibrate_ps)
    chosen = () if platform is None else (platform_named(platform),)  # a wrong one is refused before any work
    if check_seed(seed) >= 2**31:
        raise UsageError(f"seed (--seed) must be below 2^31, OpenMM's limit, found {seed}")
    if system is None and step_fs > MOST_STEP_FS:
        raise UsageError(
            f"step_fs (--step-fs) must be at most {MOST_STEP_FS:g} with hydrogens as light as they are and their bonds "
            f"alone constrained, found {step_fs:g}: 2 is usual, more needs a System with heavier ones (--system)"
        )
    if forcefields and system is not None:
        raise UsageError(
            "give either force fields (--forcefield amber14-all.xml --forcefield implicit/obc2.xml) or a serialised "
            "System (--system system.xml), not both"
        )
    if (hydrogens or no_box is not None) and system is not None:
        raise UsageError("a serialised System is taken as it is: no hydrogens, no other box; give force fields instead")
    path = Path(topology)
    reader = app.PDBxFile if path.suffix.lower() in (".cif", ".mmcif", ".pdbx") else app.PDBFile
    modeller = _structure(path, reader, said)
    if system is None:
        built = build_system(modeller, forcefields, hydrogens=hydrogens, no_box=no_box, said=said)
    else:
        built = _parsed(system, lambda: openmm.XmlSerializer.deserialize(Path(system).read_text()))
        if not isinstance(built, openmm.System):
            raise DataError(f"{system} holds no System but a {type(built).__name__}; write it with XmlSerializer")
    n_atoms = modeller.topology.getNumAtoms()
    if built.getNumParticles() != n_atoms:
        raise ModelError(
            f"the System has {built.getNumParticles()} particles, {path} has {n_atoms} atoms; give the topology that "
            "the System was made from"
        )
    if reader is app.PDBFile:
        _put_names_back(path, modeller)
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, step_fs / 1000)
    integrator.setRandomNumberSeed(seed)
    try:
        simulation = app.Simulation(modeller.topology, built, integrator, *chosen)
    except openmm.OpenMMException as error:
        raise DataError(
            f"OpenMM cannot run this System: {error}. A box that is too small or means nothing is dropped with "
            "--no-box (no_box=True)"
        ) from error
    if state is not None:
        found = _parsed(state, lambda: openmm.XmlSerializer.deserialize(Path(state).read_text()))
        if not isinstance(found, openmm.State) or len(found.getPositions()) != n_atoms:
            raise ModelError(f"{state} holds no State of these {n_atoms} atoms; write it with simulation.saveState")
        # A guide that the run before has left behind is not there yet.
        simulation.context.setPositions(found.getPositions())
        simulation.context.setVelocities(found.getVelocities())
        simulation.context.setPeriodicBoxVectors(*found.getPeriodicBoxVectors())
        simulation.context.setTime(found.getTime())
        simulation.context.setStepCount(found.getStepCount())
        return simulation
    simulation.context.setPositions(modeller.positions)
    if equilibrate_ps is not None:
        settle(simulation, temperature, equilibrate_ps, seed=seed, progress=progress)
    return simulation


def settle(
    simulation: app.Simulation, temperature: float, equilibrate_ps: float, *, seed: int = 0, progress: bool = False
) -> None:
    """Minimise the energy and equilibrate, as :func:`load_simulation` does; time and step count begin after it.

    Raises
    ------
    ModelError
        The equilibration became unstable.
    """
    n_atoms = simulation.topology.getNumAtoms()
    if progress:
        name = simulation.context.getPlatform().getName()
        say_stage(f"minimisation of {n_atoms} atoms on OpenMM's platform {name}")
    with Progress("minimisation", "iterations", shown=progress) as bar:
        simulation.minimizeEnergy(reporter=_Minimised(bar))
    simulation.context.setVelocitiesToTemperature(temperature, *([seed] if seed else []))
    n_steps = round(equilibrate_ps / simulation.integrator.getStepSize().value_in_unit(unit.picosecond))
    if progress and n_steps:
        say_stage(f"equilibration at {temperature:g} K, {equilibrate_ps:g} ps in {n_steps} steps (--equilibrate-ps)")
    with Progress("equilibration", "steps", n_steps, shown=progress) as bar:
        for some in in_parts(n_steps):
            try:
                simulation.step(some)
            except openmm.OpenMMException as error:
                if "nan" not in str(error).lower():
                    raise
                raise ModelError(
                    f"the equilibration at {temperature:g} K became unstable ({error}): shorten the time step "
                    "(--step-fs), lower the temperature (--temperature) or check the structure"
                ) from error
            bar.update(some)
    simulation.context.setTime(0.0)
    simulation.context.setStepCount(0)


def say_stage(line: str) -> None:
    """What of a run begins, on stderr."""
    print(f"running    {line}", file=sys.stderr, flush=True)


class _Minimised(openmm.MinimizationReporter):
    """Counts iterations. It also brings the minimiser back to Python, which alone hears of a signal."""

    def __init__(self, bar: Progress) -> None:
        super().__init__()
        self.bar = bar

    def report(self, iteration: int, x: Any, grad: Any, args: Any) -> bool:
        self.bar.update()
        return False


def _structure(path: Path, reader: Callable[[str], Any], said: Callable[[str], None]) -> app.Modeller:
    """The atoms of a file; a line says so where it holds several models.

    Raises
    ------
    DataError
        No such file, or none that OpenMM reads; what it needs is said, and what the file holds if MDAnalysis reads it.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    try:
        file = reader(str(path))
        if file.topology.getNumAtoms():
            if (models := file.getNumFrames()) > 1:
                said(f"the first of {models} models in {path}, the others are left out")
            return app.Modeller(file.topology, file.positions)
    except Exception:  # OpenMM's parsers raise whatever the damage leads to, in words that are Python's
        pass
    kind = "mmCIF" if reader is app.PDBxFile else "PDB"
    needs = f"{path} is no {kind} file that OpenMM reads; a PDB or mmCIF file of a protein, with all its heavy atoms,"
    try:
        with warnings.catch_warnings(action="ignore"):
            universe = mda.Universe(str(path))
            residues, protein = list(dict.fromkeys(universe.residues.resnames)), len(matching_atoms(universe, "ca"))
    except Exception:  # nor does MDAnalysis
        raise DataError(f"{needs} was expected: it may be damaged, or of another format") from None
    if not protein:
        raise DataError(
            f"{needs} was expected, and this is no protein but {few(residues, 5)}: what moves like that is forecast "
            "from its run (egno-md predict TOPOLOGY TRAJECTORY)"
        )
    raise DataError(
        f'{needs} was expected: write one, python -c "import MDAnalysis; '
        f"MDAnalysis.Universe('{path}').atoms.write('{path.name.partition('.')[0]}.pdb')\""
    )


def _put_names_back(path: Path, modeller: app.Modeller) -> None:
    """Call atoms and residues what they are called in a PDB file: OpenMM has other names for some, models do not."""
    with warnings.catch_warnings(action="ignore"):
        atoms = _parsed(path, lambda: mda.Universe(str(path), topology_format="PDB", format="PDB", to_guess=())).atoms
    places = np.rint(atoms.positions.astype(float) * 1000).astype(int).tolist()  # PDB has three decimals
    known = dict(zip(map(tuple, places), zip(atoms.names, atoms.resnames, strict=True), strict=True))
    places = np.rint(in_angstrom(modeller.positions) * 1000).astype(int).tolist()
    for atom, place in zip(modeller.topology.atoms(), map(tuple, places), strict=True):
        if place in known:
            atom.name, atom.residue.name = known[place]


def _parsed(path: str | os.PathLike, parse: Callable[[], Any]) -> Any:
    if not Path(path).is_file():
        raise DataError(f"no such file: {path}")
    try:
        return parse()
    except Exception as error:  # OpenMM's parsers raise whatever the damage leads to
        raise DataError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error


class RunFiles:
    """The files of an extended run: trajectory, topology, log of the jumps, final State.

    Parameters
    ----------
    trajectory : path
        ``.dcd`` or ``.xtc``; the others take its stem: ``.pdb``, ``_jumps.csv``, ``_state.xml``.
    inputs : sequence of Path
        What must not be overwritten, whatever `force` says.
    force : bool
        Replace files that exist.

    Attributes
    ----------
    left : str or None
        What an interrupted run has left.

    Raises
    ------
    UsageError
        Another suffix, or an output that is an input.
    OutputError
        A file exists, or the folder does not.
    """

    def __init__(self, trajectory: str | os.PathLike, *, inputs: Sequence[Path] = (), force: bool = False) -> None:
        self.trajectory = Path(trajectory)
        self.left: str | None = None
        stem = self.trajectory.with_suffix("")
        self.topology = stem.with_suffix(".pdb")
        self.log = stem.with_name(f"{stem.name}_jumps.csv")
        self.state = stem.with_name(f"{stem.name}_state.xml")
        if self.trajectory.suffix.lower() not in (".dcd", ".xtc"):
            raise UsageError(f"{self.trajectory}: the run is written as .dcd or .xtc; give the output such a name")
        if not self.trajectory.parent.is_dir():
            raise OutputError(f"the folder {self.trajectory.parent} does not exist; create it first")
        for path in self.all:
            if path.exists():
                if any(other.exists() and path.samefile(other) for other in inputs):
                    raise UsageError(f"{path} would replace the input; give the output another name (-o)")
                if not force:
                    raise OutputError(f"{path} exists; choose another name, or replace it with --force (force=True)")

    @property
    def all(self) -> tuple[Path, ...]:
        return self.trajectory, self.topology, self.log, self.state

    def _reporter(self, simulation: app.Simulation, every: int) -> app.DCDReporter | app.XTCReporter:
        """OpenMM's, with a clock that goes on from the State that was loaded: its own begins at 0 in every file."""
        name, first = str(self.trajectory), (simulation.currentStep // every + 1) * every
        clock = simulation.topology, simulation.integrator.getStepSize(), first, every
        if self.trajectory.suffix.lower() == ".dcd":
            reporter = app.DCDReporter(name, every)
            reporter._dcd = app.DCDFile(reporter._out, *clock)
        else:
            reporter = app.XTCReporter(name, every)
            reporter._xtc = app.XTCFile(name, *clock)
        return reporter

    @contextmanager
    def reporting(self, simulation: app.Simulation, every: int):
        """Write topology first, a frame every `every` steps, and at the end the State, also after an interrupt."""
        try:
            positions = simulation.context.getState(positions=True).getPositions()
            with open(self.topology, "w", encoding="utf-8") as stream:
                app.PDBFile.writeFile(simulation.topology, positions, stream, keepIds=True)
            self.trajectory.unlink(missing_ok=True)
            reporter = self._reporter(simulation, every)
        except OSError as error:
            raise OutputError(f"cannot write the run to {self.trajectory.parent}: {error.strerror}") from error
        first = simulation.currentStep // every
        simulation.reporters.append(reporter)
        try:
            yield
        except KeyboardInterrupt:
            # A jump that it cut short is undone by now.
            with suppress(OSError):
                simulation.saveState(str(self.state))
            self.left = (
                f"{counted(simulation.currentStep // every - first, 'frame')} of plain MD in {self.trajectory}, "
                f"finished jumps in {self.log}; to go on: egno-md extend {shlex.quote(str(self.topology))} --state "
                f"{shlex.quote(str(self.state))} -o another.dcd, with the other options that you gave"
            )
            raise
        finally:
            simulation.reporters.remove(reporter)
            del reporter  # closes the file
        try:
            simulation.saveState(str(self.state))
        except OSError as error:
            raise OutputError(f"cannot write {self.state}: {error.strerror}; the trajectory is whole") from error


class JumpLog:
    """A CSV with a row for each jump, whole after every row; without a path, nothing."""

    def __init__(self, path: str | os.PathLike | None, columns: Sequence[str], force: bool) -> None:
        self.path = None if path is None else Path(path)
        self.columns = columns
        self.mode = "w" if force else "x"

    def __enter__(self) -> Callable[[Any], None]:
        if self.path is None:
            return lambda jump: None
        try:
            self.file = open(self.path, self.mode, newline="", encoding="utf-8")
        except FileExistsError as error:
            raise OutputError(f"{self.path} exists; pass force=True to replace it, or choose another name") from error
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; choose a folder that is there") from error
        self.writer = csv.DictWriter(self.file, self.columns)
        self._checked(self.writer.writeheader)
        return self.write

    def write(self, jump: Any) -> None:
        row = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in asdict(jump).items()}
        self._checked(self.writer.writerow, row)

    def _checked(self, write: Callable, *row: Any) -> None:
        try:
            write(*row)
            self.file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; the rows before are whole") from error

    def __exit__(self, *error: Any) -> None:
        if self.path is not None:
            try:
                self.file.close()
            except OSError:
                pass  # the flush that failed has been reported already
