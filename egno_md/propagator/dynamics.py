"""An all-atom Simulation: its steps, what is measured in it, and what is refused."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import openmm
from MDAnalysis import AtomGroup, Universe
from numpy.typing import NDArray
from openmm import app, unit

from ..errors import ModelError, OutputError, UsageError
from .beads import EGNOIntegrator
from .common import box_of, in_angstrom, in_parts

#: The gas constant in kJ/mol/K.
GAS_CONSTANT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)

#: Energies and temperatures taken in each stretch of unbiased MD; what a jump is judged by.
SAMPLES = 20


class Dynamics:
    """Steps of a Simulation, unbiased ones and those that its reporters do not see, and what is measured meanwhile.

    Attributes
    ----------
    simulation : openmm.app.Simulation
    step_ps : float
    periodic : bool
    n_dof : int
        Degrees of freedom that the kinetic temperature counts: no constraints, no virtual sites, no drift where a
        CMMotionRemover takes it out.
    md_steps, biased_steps : int
        Steps so far.
    energies, temperatures : deque of float
        Of the last stretches of unbiased MD, kJ/mol and K.
    all_temperatures : list of float
        Of all of them.
    on_steps : callable
        Called with the number of steps that have just been done, of any kind.

    Raises
    ------
    UsageError
        No Simulation, or an integrator without a constant step size.
    """

    def __init__(self, simulation: app.Simulation) -> None:
        if not isinstance(simulation, app.Simulation):
            raise UsageError(
                f"simulation must be an openmm.app.Simulation, found {type(simulation).__name__}: load_simulation "
                "makes one of a PDB file"
            )
        self.simulation = simulation
        self.step_ps = self._constant_step()
        system = simulation.system
        self.periodic = system.usesPeriodicBoundaryConditions()
        pairs = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
        self._constrained = np.array([(i, j) for i, j, _ in pairs], int).reshape(-1, 2)  # (C, 2)
        self._constraint_lengths = np.array([length.value_in_unit(unit.angstrom) for _, _, length in pairs])  # (C,)
        masses = [system.getParticleMass(k).value_in_unit(unit.dalton) for k in range(system.getNumParticles())]
        massive = np.array(masses) > 0
        frozen = (~massive[self._constrained]).all(axis=1).sum()
        removes_drift = any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())
        self.n_dof = 3 * int(massive.sum()) - (len(pairs) - int(frozen)) - 3 * removes_drift
        self.md_steps = self.biased_steps = 0
        self.energies: deque[float] = deque(maxlen=10 * SAMPLES)
        self.temperatures: deque[float] = deque(maxlen=10 * SAMPLES)
        self.all_temperatures: list[float] = []
        self.on_steps: Callable[[int], Any] = lambda count: None

    def _constant_step(self) -> float:
        integrator = self.simulation.integrator
        if isinstance(integrator, EGNOIntegrator):
            raise UsageError(
                "this Simulation of beads makes forecasts itself (surrogate_simulation); jumps are for MD: give one of "
                "all atoms with a force field, such as load_simulation makes"
            )
        if "Variable" in type(integrator).__name__:
            raise UsageError(
                f"{type(integrator).__name__} does not take steps of a constant length; use LangevinMiddleIntegrator "
                "or another integrator with a fixed step size"
            )
        return float(integrator.getStepSize().value_in_unit(unit.picosecond))

    @property
    def md_ps(self) -> float:
        """Unbiased MD so far."""
        return self.md_steps * self.step_ps

    @property
    def integrated_ps(self) -> float:
        """All that was integrated so far."""
        return self.md_ps + self.biased_steps * self.step_ps

    def universe(self, source: Any) -> Universe:
        """Topology of the System's particles; a Universe of them at their current positions for an app.Topology."""
        n_particles = self.simulation.system.getNumParticles()
        is_topology = isinstance(source, app.Topology)
        if not is_topology and not isinstance(source, (Universe, AtomGroup)):
            raise UsageError(
                f"atoms must be a Universe, an AtomGroup or an openmm.app.Topology, found {type(source).__name__}"
            )
        found = source.getNumAtoms() if is_topology else len(source.universe.atoms)
        if found != n_particles:
            raise ModelError(
                f"the topology has {found} atoms, the Simulation's System has {n_particles} particles; give the "
                "topology that the System was made from, hydrogens, water and ions included"
            )
        if not is_topology:
            return source.universe
        state = self.simulation.context.getState(positions=True)
        positions = in_angstrom(state.getPositions(asNumpy=True)).astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # virtual sites have no element
            universe = Universe(source, positions[None])
        if self.periodic:
            universe.dimensions = box_of(state)
        return universe

    def positions(self) -> NDArray[np.float64]:
        """All particles in Angstrom, molecules not wrapped."""
        state = self.simulation.context.getState(positions=True, enforcePeriodicBox=False)
        return in_angstrom(state.getPositions(asNumpy=True))

    def box(self) -> NDArray[np.float32] | None:
        """Lengths in Angstrom and angles in degrees, (6,); None where nothing is periodic."""
        return box_of(self.simulation.context.getState(positions=True)) if self.periodic else None

    def sample(self) -> tuple[float, float]:
        """Potential energy in kJ/mol and kinetic temperature in K."""
        state = self.simulation.context.getState(energy=True)
        energy, kinetic = (
            found.value_in_unit(unit.kilojoule_per_mole)
            for found in (state.getPotentialEnergy(), state.getKineticEnergy())
        )
        return energy, 2 * kinetic / (self.n_dof * GAS_CONSTANT)

    def constraint_error(self, positions: NDArray[np.float64]) -> float:
        """Largest relative violation of a constraint."""
        if not len(self._constrained):
            return 0.0
        i, j = self._constrained.T
        lengths = np.linalg.norm(positions[i] - positions[j], axis=1)
        return float(np.abs(lengths / self._constraint_lengths - 1).max())

    def stretch(self, steps: int, marks: set[int], particles: NDArray[np.integer]) -> NDArray[np.float64]:
        """Unbiased MD with reporters, sampled on the way; positions of some particles after so many steps, (M, P, 3).

        Raises
        ------
        ModelError
            The MD became unstable; the Context is put back to its last sound state.
        OutputError
            A reporter could not write.
        """
        samples = set(np.unique(np.linspace(0, steps, SAMPLES + 1).round().astype(int)[1:]).tolist())
        found = []
        done = 0
        for mark in sorted(marks | samples):
            if mark > done:
                self._advance(mark - done)
                done = mark
            if mark in samples:
                energy, temperature = self.sample()
                self.energies.append(energy)
                self.temperatures.append(temperature)
                self.all_temperatures.append(temperature)
            if mark in marks:
                found.append(self.positions()[particles])
        return np.stack(found)

    def _advance(self, steps: int) -> None:
        """Steps of the Simulation with its reporters; undone when they end in NaN."""
        context = self.simulation.context
        saved = context.createCheckpoint()
        try:
            self.simulation.step(steps)
            if not np.isfinite(self.positions()).all():
                raise openmm.OpenMMException("particle coordinate is NaN")
        except OSError as error:
            raise OutputError(
                f"a reporter could not write ({error.strerror or error}) at step {self.simulation.currentStep}: the "
                "last frame of its file may be cut short, those before it are whole; free some space"
            ) from error
        except (openmm.OpenMMException, ValueError) as error:
            if not any(word in str(error).lower() for word in ("nan", "infinite")):
                raise
            context.loadCheckpoint(saved)
            raise ModelError(
                f"the unbiased MD became unstable ({error}) within {steps} steps after step "
                f"{context.getStepCount()}, to which the Context was put back; minimise the energy, shorten the time "
                "step or check the force field"
            ) from error
        self.md_steps += steps
        self.on_steps(steps)

    def biased(self, steps: int) -> None:
        """Steps that reporters do not see."""
        self.biased_steps += int(steps)
        for some in in_parts(int(steps)):
            self.simulation.integrator.step(some)
            self.on_steps(some)

    def relax(self, steps: int) -> tuple[float, float]:
        """Steps without restraints; mean potential energy and temperature of their second half."""
        first = steps // 2
        self.biased(first)
        marks = np.unique(np.linspace(first, steps, SAMPLES // 2 + 1).round().astype(int))
        samples = []
        for more in np.diff(marks):
            self.biased(more)
            samples.append(self.sample())
        energy, temperature = np.mean(samples or [self.sample()], axis=0)
        return float(energy), float(temperature)
