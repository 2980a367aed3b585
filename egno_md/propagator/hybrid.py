"""The forecaster as a guide: all-atom dynamics that is led ahead along forecasts, stretch by stretch."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import openmm
from MDAnalysis import AtomGroup, Universe
from numpy.typing import NDArray
from openmm import app, unit

from ..errors import ModelError, OutputError, UsageError
from ..forecast.chain import check_request, forecast
from ..forecast.device import resolve_device
from ..graph.builder import GraphBuilder
from ..graph.windows import frames_back
from ..molecule.atoms import atom_elements, check_whole
from ..molecule.checks import check_frames
from ..molecule.geometry import bond_lengths, rmsd
from ..molecule.local import keep_bonds
from .beads import EGNOIntegrator
from .common import box_of, chainable_model, choose_beads, in_angstrom, in_nm
from .files import JumpLog
from .guide import GUIDE, add_guide, find_guide
from .records import HybridSummary, Jump, JumpLimits

#: The gas constant in kJ/mol/K.
GAS_CONSTANT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)

#: Time between two moves of the restraints in ps: far below the period of a restrained atom (0.2 ps and more).
LEAD_UPDATE_PS = 0.01

#: Energies and temperatures taken in each stretch of unbiased MD; what a jump is judged by.
SAMPLES = 20


class _Unsound(Exception):
    """A jump has to be rolled back; the message is the reason."""


class HybridPropagator:
    """All-atom dynamics that a forecast leads ahead, stretch by stretch.

    A jump, between two stretches of unbiased MD:

    1. read the beads now and one stride before, forecast T frames, put the distances of bonded beads back to those of
       the start, take the common drift out, and keep the frames before the first one that is still unphysical;
    2. lead: harmonic restraints on the beads move along the forecast path during ``lead_ps`` of ordinary dynamics,
       in which everything else follows by the force field, the constraints and the thermostat;
    3. release the restraints and relax during ``relax_ps``;
    4. judge by :class:`JumpLimits`, the bonds and contacts of the beads' molecules, and the constraints; a bad jump is
       undone, that is, the Context goes back to its checkpoint, random numbers included.

    Reporters, step count and time of the Simulation see the unbiased MD alone, as if a jump took no time. What time
    the jumps stand for is in the log and in the summary.

    Parameters
    ----------
    simulation : openmm.app.Simulation
        Any force field, solvent, platform, and integrator with a constant step size, with positions set.
    model : str, path-like or Model, optional
        By default the bundled model.
    atoms : Universe, AtomGroup or openmm.app.Topology, optional
        The particles of the System, in its order; by default the Simulation's topology.
    select : str, optional
        Narrows the model's selection.
    horizon : int, optional
        Frames of a forecast; by default one window.
    lead_ps, relax_ps : float
        Length of the lead along a whole forecast (along a part of it accordingly) and of the relaxation. A shorter lead
        does more work, which heats.
    strength : float
        Force constant of the restraints in kJ/mol/nm^2. A free atom keeps to its target within ``sqrt(3 kT / k)``,
        0.2 Angstrom at the default and 300 K; weaker restraints are lost in the thermal motion.
    limits : JumpLimits, optional
    device : str
        Where the network runs.

    Attributes
    ----------
    beads : ndarray of int
        Particles that are forecast.
    jumps : list of Jump
        Of all calls of :meth:`run`.

    Raises
    ------
    UsageError
        An argument that cannot be right, an integrator without a constant step size.
    DataError
        A selection that is empty.
    ModelError
        The topology does not fit the System or the model, or the step size does not divide the model's stride.

    Notes
    -----
    A forecast is a conditional mean, not a sample, and a jump does not obey detailed balance: the ensemble that comes
    out is not the force field's. See the documentation for what was measured.
    """

    def __init__(
        self,
        simulation: app.Simulation,
        model: Any = None,
        atoms: Universe | AtomGroup | app.Topology | None = None,
        select: str | None = None,
        *,
        horizon: int | None = None,
        lead_ps: float = 2.0,
        relax_ps: float = 1.0,
        strength: float = 20000.0,
        limits: JumpLimits | None = None,
        device: str = "auto",
    ) -> None:
        self.simulation = simulation
        self.model = chainable_model(model)
        self.limits = limits or JumpLimits()
        self.device = resolve_device(device)
        self.horizon = self.model.window.n_times if horizon is None else horizon
        check_request(self.model, self.horizon, 1)
        for name, value in (("lead_ps", lead_ps), ("relax_ps", relax_ps), ("strength", strength)):
            if not (np.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be positive, found {value}")
        self.strength = float(strength)

        system, context = simulation.system, simulation.context
        self._step_ps = self._constant_step()
        self._lead_steps = max(1, round(lead_ps / self._step_ps))
        self._relax_steps = max(1, round(relax_ps / self._step_ps))
        self._stride_steps = self._steps_per_stride()
        self._periodic = system.usesPeriodicBoundaryConditions()

        state = context.getState(positions=True)
        universe = self._universe(simulation.topology if atoms is None else atoms, state)
        group = atoms if isinstance(atoms, AtomGroup) else universe.atoms
        chosen = choose_beads(group, self.model, select)
        self.beads = chosen.indices
        self.builder = GraphBuilder(chosen, self.model.graph)
        self._solute = _heavy_atoms(chosen)
        self._solute_bonds = _bonds_within(self._solute)

        self._masses = np.array([system.getParticleMass(k)._value for k in range(system.getNumParticles())])
        pairs = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
        self._constrained = np.array([(i, j) for i, j, _ in pairs], int).reshape(-1, 2)
        self._constraint_lengths = 10 * np.array([length._value for _, _, length in pairs])
        removes_drift = any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())
        massive = self._masses > 0
        frozen = (~massive[self._constrained]).all(axis=1).sum()
        self._n_dof = 3 * int(massive.sum()) - (len(pairs) - int(frozen)) - 3 * removes_drift

        self._guide = find_guide(system, self.beads)
        if self._guide is None:
            self._guide = add_guide(system, self.beads)
            context.reinitialize(preserveState=True)
        elif GUIDE not in dict(context.getParameters()):
            context.reinitialize(preserveState=True)

        self.jumps: list[Jump] = []
        self._energies: deque[float] = deque(maxlen=10 * SAMPLES)
        self._temperatures: deque[float] = deque(maxlen=10 * SAMPLES)
        self._md_steps = self._biased_steps = 0
        self._md_seconds = 0.0
        self._all_temperatures: list[float] = []

    # ---- what is asked of the Simulation

    def _constant_step(self) -> float:
        integrator = self.simulation.integrator
        if isinstance(integrator, EGNOIntegrator) or "Variable" in type(integrator).__name__:
            raise UsageError(
                f"{type(integrator).__name__} does not take steps of a constant length; use LangevinMiddleIntegrator "
                "or another integrator with a fixed step size"
            )
        return float(integrator.getStepSize().value_in_unit(unit.picosecond))

    def _steps_per_stride(self) -> int:
        stride, step = self.model.window.stride_ps, self._step_ps
        steps = round(stride / step)
        if steps < 1 or abs(steps * step - stride) > 1e-3 * stride:
            raise ModelError(
                f"model {self.model.name!r} was made for {stride:g} ps, which is not a whole number of the "
                f"integrator's steps of {1000 * step:g} fs; choose a step size that divides the stride"
            )
        return steps

    def _universe(self, source: Any, state: openmm.State) -> Universe:
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
        positions = in_angstrom(state.getPositions(asNumpy=True)).astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # virtual sites have no element
            universe = Universe(source, positions[None])
        if self._periodic:
            universe.dimensions = box_of(state)
        return universe

    # ---- running

    def run(
        self,
        n_jumps: int,
        md_steps: int | None = None,
        *,
        log: str | os.PathLike | None = None,
        force: bool = False,
        progress: Callable[[Jump], None] | None = None,
    ) -> HybridSummary:
        """Alternate `n_jumps` times between unbiased MD and a jump; ends with the last jump.

        Parameters
        ----------
        n_jumps : int
        md_steps : int, optional
            Steps of unbiased MD before each jump, at least one stride, which the model has to see; two by default.
        log : path, optional
            CSV with a row for each jump (:class:`Jump`), written as they come.
        force : bool
            Replace a log that exists.
        progress : callable, optional
            Called with each Jump.

        Returns
        -------
        HybridSummary
            Of all calls so far.

        Raises
        ------
        UsageError
            Too few steps.
        DataError
            Positions that are not finite, or a molecule broken by the box.
        ModelError
            The MD itself became unstable; the Context is put back to its last sound state.
        OutputError
            The log or a reporter could not write.
        """
        needed = frames_back(self.model.window) * self._stride_steps
        md_steps = 2 * needed if md_steps is None else md_steps
        if n_jumps < 1 or int(n_jumps) != n_jumps:
            raise UsageError(f"n_jumps must be a whole number of at least 1, found {n_jumps}")
        if md_steps < needed or int(md_steps) != md_steps:
            raise UsageError(
                f"md_steps must be a whole number of at least {needed}, found {md_steps}: the model has to see "
                f"{needed * self._step_ps:g} ps of unbiased MD before each jump"
            )
        with JumpLog(log, [field.name for field in fields(Jump)], force) as write:
            for _ in range(n_jumps):
                before = time.perf_counter()
                history = self._md(int(md_steps))
                seconds = time.perf_counter() - before
                self._md_seconds += seconds
                jump = self._jump(history, seconds)
                self.jumps.append(jump)
                write(jump)
                if progress is not None:
                    progress(jump)
        return self.summary()

    def summary(self) -> HybridSummary:
        """What all runs so far came to."""
        accepted = [jump for jump in self.jumps if jump.accepted]
        jump_seconds = sum(j.seconds_forecast + j.seconds_lead + j.seconds_relax for j in self.jumps)
        md_ps = self._md_steps * self._step_ps
        per_ps = self._md_seconds / md_ps if md_ps else np.nan
        jump_ps = self.model.window.stride_ps * sum(jump.frames for jump in accepted)
        return HybridSummary(
            jumps=len(self.jumps),
            accepted=len(accepted),
            rolled_back=dict(Counter(jump.reason.partition(":")[0] for jump in self.jumps if not jump.accepted)),
            md_ps=md_ps,
            jump_ps=jump_ps,
            integrated_ps=md_ps + self._biased_steps * self._step_ps,
            seconds_per_md_ps=per_ps,
            seconds_per_jump=jump_seconds / len(self.jumps) if self.jumps else np.nan,
            cost_ratio=jump_seconds / (per_ps * jump_ps) if jump_ps else np.nan,
            temperature_md=float(np.mean(self._all_temperatures)) if self._all_temperatures else np.nan,
            temperature_relaxed=float(np.mean([j.temperature for j in accepted])) if accepted else np.nan,
            constraint_error=max((j.constraint_error for j in accepted), default=0.0),
        )

    def _md(self, md_steps: int) -> NDArray[np.float64]:
        """Unbiased MD with reporters; the beads' history up to its end, (n_input, B, 3)."""
        back = frames_back(self.model.window)
        marks = {md_steps - k * self._stride_steps for k in range(back, -1, -1)}
        samples = set(np.unique(np.linspace(0, md_steps, SAMPLES + 1).round().astype(int)[1:]).tolist())
        history = []
        done = 0
        for mark in sorted(marks | samples):
            if mark > done:
                self._advance(mark - done)
                done = mark
            if mark in samples:
                energy, temperature = self._sample()
                self._energies.append(energy)
                self._temperatures.append(temperature)
                self._all_temperatures.append(temperature)
            if mark in marks:
                history.append(self._positions()[self.beads])
        return np.stack(history)

    def _advance(self, steps: int) -> None:
        """Steps of the Simulation with its reporters; undone when they end in NaN."""
        context = self.simulation.context
        saved = context.createCheckpoint()
        try:
            self.simulation.step(steps)
            if not np.isfinite(self._positions()).all():
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
        self._md_steps += steps

    def _positions(self) -> NDArray[np.float64]:
        """All particles in Angstrom, molecules not wrapped."""
        state = self.simulation.context.getState(positions=True, enforcePeriodicBox=False)
        return in_angstrom(state.getPositions(asNumpy=True))

    def _sample(self) -> tuple[float, float]:
        """Potential energy in kJ/mol and kinetic temperature in K."""
        state = self.simulation.context.getState(energy=True)
        energy, kinetic = state.getPotentialEnergy()._value, state.getKineticEnergy()._value
        return energy, 2 * kinetic / (self._n_dof * GAS_CONSTANT)

    # ---- a jump

    def _jump(self, history: NDArray[np.float64], seconds_md: float) -> Jump:
        context = self.simulation.context
        clock = _Clock()
        before = self._positions()
        box = box_of(context.getState(positions=True)) if self._periodic else None
        check_whole(self._solute, before[self._solute.indices], self._solute_bonds, box)
        found: dict[str, float] = {}
        saved, when, step = context.createCheckpoint(), context.getTime(), context.getStepCount()
        reason = ""
        frames = 0
        sound = False
        try:
            with clock("forecast"):
                path = self._forecast(history, box)
            lengths = bond_lengths(history[-1], self.builder.bonds)
            found["forecast_bonds"] = float(np.abs(bond_lengths(path, self.builder.bonds) - lengths).max(initial=0))
            path = self._sound_part(keep_bonds(path, self.builder.bonds, lengths, slack=0.02), history[-1], box)
            frames = len(path)
            found["forecast_moved"] = float(rmsd(path[-1], history[-1]))
            with clock("lead"):
                found["work"] = self._lead(np.concatenate([history[-1:], path]))
            led = self._positions()
            found["rmsd_led"] = float(rmsd(led[self.beads], path[-1]))
            with clock("relax"):
                found["energy"], found["temperature"] = self._relax()
            after = self._positions()
            found["rmsd_relaxed"] = float(rmsd(after[self.beads], path[-1]))
            found["constraint_error"] = self._constraint_error(after)
            self._judge(found, before, after, box)
            sound = True
        except _Unsound as error:
            reason = str(error)
        except openmm.OpenMMException as error:
            if "nan" not in str(error).lower():
                raise
            reason = "not finite"
        finally:
            # Also on an interrupt: nobody must be left with a Context whose restraints are on.
            if not sound:
                context.loadCheckpoint(saved)
        if sound:
            context.setTime(when)
            context.setStepCount(step)
        accepted = sum(jump.frames for jump in self.jumps if jump.accepted) + frames * sound
        md_ps = self._md_steps * self._step_ps
        values = {field.name: np.nan for field in fields(Jump) if field.type == "float"}
        values.update(found)
        values.update(
            energy_mean=float(np.mean(self._energies)),
            energy_sd=float(np.std(self._energies)),
            temperature_mean=float(np.mean(self._temperatures)),
            temperature_sd=float(np.std(self._temperatures)),
            md_ps=md_ps,
            represented_ps=md_ps + accepted * self.model.window.stride_ps,
            seconds_md=seconds_md,
            **{f"seconds_{name}": clock.seconds.get(name, 0.0) for name in ("forecast", "lead", "relax")},
        )
        return Jump(jump=len(self.jumps), step=step, accepted=sound, reason=reason, frames=frames, **values)

    def _forecast(self, history: NDArray[np.float64], box: NDArray | None) -> NDArray[np.float64]:
        """Frames of the forecast, (horizon, B, 3)."""
        try:
            path = forecast(
                self.model,
                self.builder,
                history[None].astype(np.float32),
                self.horizon,
                boxes=[box],
                device=self.device,
            )[0]
        except ModelError as error:
            raise _Unsound("forecast: not finite") from error
        path = path.astype(np.float64)
        # Where all beads go together is of no interest, a CMMotionRemover would fight it, and water would be stirred.
        return path - path.mean(axis=1, keepdims=True) + history[-1].mean(axis=0)

    def _sound_part(self, path: NDArray, start: NDArray, box: NDArray | None) -> NDArray[np.float64]:
        """The frames before the first one that is not physical; errors grow along a forecast."""
        for k in range(len(path)):
            checks = check_frames(path[k : k + 1], start, self.builder.bonds, boxes=box)
            if not checks.ok:
                if k == 0:
                    raise _Unsound(f"forecast: {'; '.join(checks.messages)}")
                return path[:k]
        return path

    def _lead(self, path: NDArray[np.float64]) -> float:
        """Move the restraints along `path` (frames + 1, B, 3) during ordinary dynamics; their work in kJ/mol."""
        context = self.simulation.context
        every = max(1, round(LEAD_UPDATE_PS / self._step_ps))
        n_steps = max(1, round(self._lead_steps * (len(path) - 1) / self.horizon))
        marks = np.arange(every, n_steps + every, every).clip(max=n_steps)
        work = 0.0
        target = path[0]
        self._set_targets(target)
        context.setParameter(GUIDE, self.strength)
        positions = path[0]
        done = 0
        for mark in marks:
            place = mark / n_steps * (len(path) - 1)
            k = min(int(place), len(path) - 2)
            moved = path[k] + (place - k) * (path[k + 1] - path[k])  # (B, 3)
            # The work of a restraint is what its energy changes by when it is moved under standing atoms.
            work += self._restraint(positions, moved) - self._restraint(positions, target)
            target = moved
            self._set_targets(target)
            self._biased(mark - done)
            done = mark
            positions = self._positions()[self.beads]
            if not np.isfinite(positions).all():
                raise _Unsound("not finite")
        work -= self._restraint(positions, target)
        context.setParameter(GUIDE, 0.0)
        return float(work)

    def _set_targets(self, targets: NDArray[np.float64]) -> None:
        for k, (bead, target) in enumerate(zip(self.beads, in_nm(targets), strict=True)):
            self._guide.setParticleParameters(k, int(bead), target)
        self._guide.updateParametersInContext(self.simulation.context)

    def _restraint(self, positions: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
        return 0.5 * self.strength * float((in_nm(positions - targets) ** 2).sum())

    def _biased(self, steps: int) -> None:
        """Steps that reporters do not see."""
        self._biased_steps += int(steps)
        self.simulation.integrator.step(int(steps))

    def _relax(self) -> tuple[float, float]:
        """Dynamics without restraints; mean potential energy and temperature of its second half."""
        first = self._relax_steps // 2
        self._biased(first)
        marks = np.unique(np.linspace(first, self._relax_steps, SAMPLES // 2 + 1).round().astype(int))
        samples = []
        for steps in np.diff(marks):
            self._biased(steps)
            samples.append(self._sample())
        energy, temperature = np.mean(samples or [self._sample()], axis=0)
        return float(energy), float(temperature)

    def _constraint_error(self, positions: NDArray[np.float64]) -> float:
        if not len(self._constrained):
            return 0.0
        i, j = self._constrained.T
        lengths = np.linalg.norm(positions[i] - positions[j], axis=1)
        return float(np.abs(lengths / self._constraint_lengths - 1).max())

    def _judge(self, found: dict[str, float], before: NDArray, after: NDArray, box: NDArray | None) -> None:
        limits = self.limits
        if not (np.isfinite(list(found.values())).all() and np.isfinite(after).all()):
            raise _Unsound("not finite")
        # Single precision positions alone give 1e-5.
        tolerance = max(10 * self.simulation.integrator.getConstraintTolerance(), 1e-4)
        if found["constraint_error"] > tolerance:
            raise _Unsound(f"constraints: violated by {found['constraint_error']:.1e}, tolerance {tolerance:.1e}")
        if found["rmsd_led"] > limits.rmsd:
            raise _Unsound(f"lead: {found['rmsd_led']:.2f} A from the forecast")
        if found["work"] > limits.work * len(self.beads):
            raise _Unsound(f"work: {found['work']:.0f} kJ/mol")
        for name, samples in (("energy", self._energies), ("temperature", self._temperatures)):
            off = abs(found[name] - np.mean(samples)) / max(np.std(samples), 1e-12)
            if off > limits.spread:
                raise _Unsound(f"{name}: {off:.1f} standard deviations from the MD before")
        solute = self._solute.indices
        checks = check_frames(after[solute][None], before[solute], self._solute_bonds, boxes=box)
        if not checks.ok:
            raise _Unsound(f"structure: {'; '.join(checks.messages)}")


def _heavy_atoms(beads: AtomGroup) -> AtomGroup:
    """The heavy atoms of the molecules that have beads; of their residues where the topology has no bonds.

    Hydrogens are left out: their contacts vary so much in sound MD that they say nothing about a jump.
    """
    bonded = hasattr(beads.universe, "bonds") and len(beads.universe.bonds)
    atoms = sum(beads.fragments).unique if bonded else beads.residues.atoms
    elements = atom_elements(atoms)
    return atoms[(elements != "H") & (elements != "")] | beads


def _bonds_within(atoms: AtomGroup) -> NDArray[np.int64]:
    """Bonds of the topology among `atoms` as indices into it, (B, 2)."""
    if not hasattr(atoms.universe, "bonds"):
        return np.zeros((0, 2), np.int64)
    local = np.full(len(atoms.universe.atoms), -1)
    local[atoms.indices] = np.arange(len(atoms))
    bonds = local[atoms.universe.bonds.to_indices().reshape(-1, 2)]
    return bonds[(bonds >= 0).all(axis=1)].astype(np.int64)


class _Clock:
    """Wall time of the named parts of a jump."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str):
        before = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - before
