"""The forecaster as a guide: all-atom dynamics that is led ahead along forecasts, stretch by stretch."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
from MDAnalysis import AtomGroup, Universe
from openmm import app

from ..errors import DataError, ModelError, UsageError, counted
from ..forecast.asked import is_count
from ..forecast.chain import check_request
from ..forecast.device import resolve_device
from ..graph.windows import frames_back
from .common import chainable_model, check_numbers, choose_beads
from .dynamics import Dynamics
from .files import JumpLog
from .jump import Jumper
from .records import Attempt, HybridSummary, Jump, JumpLimits

#: Fewer have no motion of their own once their common drift is taken out, or hardly any; `suggest` asks for as many.
LEAST_BEADS = 4


class HybridPropagator:
    """All-atom dynamics that a forecast leads ahead, stretch by stretch.

    A jump, between two stretches of unbiased MD:

    1. read the beads now and one stride before, forecast T frames (a model that draws draws one future), put the
       distances of bonded beads back to those of the start, take the common drift out, and keep the frames before the
       first one that is still unphysical;
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
    seed : int
        Of the futures, with a model that draws: each jump has its own.
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
        A selection that is empty, or of fewer than four atoms.
    ModelError
        The topology does not fit the System or the model, the step size does not divide the model's stride, or the
        System has a guide for other particles. Nothing is added to the System where an error is raised.

    Notes
    -----
    A jump does not obey detailed balance, drawn or not: the ensemble that comes out is not the force field's. See the
    documentation for what was measured.
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
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.simulation = simulation
        self.model = chainable_model(model)
        horizon = self.model.window.n_times if horizon is None else horizon
        check_request(self.model, horizon, 1)
        check_numbers(lead_ps=lead_ps, relax_ps=relax_ps, strength=strength)
        if not isinstance(limits, JumpLimits | None):
            raise UsageError(f"limits must be JumpLimits, found {limits!r}: write JumpLimits(work=3)")
        self.dynamics = Dynamics(simulation)
        self._stride_steps = self._steps_per_stride()
        universe = self.dynamics.universe(simulation.topology if atoms is None else atoms)
        group = atoms if isinstance(atoms, AtomGroup) else universe.atoms
        beads = choose_beads(group, self.model, select)
        if len(beads) < LEAST_BEADS:
            raise DataError(
                f"the selection {select or self.model.graph.select!r} has {counted(len(beads), 'atom')}; a jump leads "
                f"their internal motion, which needs at least {LEAST_BEADS}: give a model (--model) that was made for "
                "more of the atoms, such as one that was trained with --select heavy"
            )
        self.jumper = Jumper(
            self.dynamics,
            self.model,
            beads,
            horizon=horizon,
            lead_ps=lead_ps,
            relax_ps=relax_ps,
            strength=strength,
            limits=limits or JumpLimits(),
            seed=seed,
            device=resolve_device(device),
        )
        self.beads = self.jumper.beads
        self.jumps: list[Jump] = []
        self._md_seconds = 0.0

    def _steps_per_stride(self) -> int:
        stride, step = self.model.window.stride_ps, self.dynamics.step_ps
        steps = round(stride / step)
        if steps < 1 or abs(steps * step - stride) > 1e-3 * stride:
            raise ModelError(
                f"model {self.model.name!r} was made for {stride:g} ps, which is not a whole number of the "
                f"integrator's steps of {1000 * step:g} fs; choose a step size that divides the stride"
            )
        return steps

    @property
    def default_md_steps(self) -> int:
        """Steps of unbiased MD before each jump, where nobody says how many."""
        return 2 * frames_back(self.model.window) * self._stride_steps

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
        back = frames_back(self.model.window)
        needed = back * self._stride_steps
        md_steps = self.default_md_steps if md_steps is None else md_steps
        if not is_count(n_jumps, 1):
            raise UsageError(f"n_jumps (--jumps) must be a whole number of at least 1, found {n_jumps}")
        if not is_count(md_steps, needed):
            raise UsageError(
                f"md_steps (--md-steps) must be a whole number of at least {needed}, found {md_steps}: the model has "
                f"to see {needed * self.dynamics.step_ps:g} ps of unbiased MD before each jump"
            )
        marks = {int(md_steps) - k * self._stride_steps for k in range(back, -1, -1)}
        with JumpLog(log, [field.name for field in fields(Jump)], force) as write:
            for _ in range(int(n_jumps)):
                before = time.perf_counter()
                history = self.dynamics.stretch(int(md_steps), marks, self.beads)  # (n_input, B, 3)
                seconds = time.perf_counter() - before
                self._md_seconds += seconds
                jump = self._record(self.jumper.jump(history, len(self.jumps)), seconds)
                self.jumps.append(jump)
                write(jump)
                if progress is not None:
                    progress(jump)
        return self.summary()

    def summary(self) -> HybridSummary:
        """What all runs so far came to."""
        accepted = [jump for jump in self.jumps if jump.accepted]
        jump_seconds = sum(j.seconds_forecast + j.seconds_lead + j.seconds_relax for j in self.jumps)
        md_ps = self.dynamics.md_ps
        per_ps = self._md_seconds / md_ps if md_ps else np.nan
        temperatures = self.dynamics.all_temperatures
        jump_ps = self.model.window.stride_ps * sum(jump.frames for jump in accepted)
        return HybridSummary(
            jumps=len(self.jumps),
            accepted=len(accepted),
            rolled_back=dict(Counter(jump.reason.partition(":")[0] for jump in self.jumps if not jump.accepted)),
            md_ps=md_ps,
            jump_ps=jump_ps,
            integrated_ps=self.dynamics.integrated_ps,
            seconds_per_md_ps=per_ps,
            seconds_per_jump=jump_seconds / len(self.jumps) if self.jumps else np.nan,
            cost_ratio=jump_seconds / (per_ps * jump_ps) if jump_ps else np.nan,
            temperature_md=float(np.mean(temperatures)) if temperatures else np.nan,
            temperature_relaxed=float(np.mean([j.temperature for j in accepted])) if accepted else np.nan,
            constraint_error=max((j.constraint_error for j in accepted), default=0.0),
        )

    def _record(self, attempt: Attempt, seconds_md: float) -> Jump:
        """The row of a jump, with the MD around it."""
        dynamics = self.dynamics
        frames = attempt.frames * attempt.sound + sum(jump.frames for jump in self.jumps if jump.accepted)
        values = {field.name: np.nan for field in fields(Jump) if field.type == "float"}
        values.update(attempt.found)
        values.update(
            energy_mean=float(np.mean(dynamics.energies)),
            energy_sd=float(np.std(dynamics.energies)),
            temperature_mean=float(np.mean(dynamics.temperatures)),
            temperature_sd=float(np.std(dynamics.temperatures)),
            md_ps=dynamics.md_ps,
            represented_ps=dynamics.md_ps + frames * self.model.window.stride_ps,
            seconds_md=seconds_md,
            **{f"seconds_{name}": attempt.seconds.get(name, 0.0) for name in ("forecast", "lead", "relax")},
        )
        return Jump(
            jump=len(self.jumps),
            step=attempt.step,
            accepted=attempt.sound,
            reason=attempt.reason,
            frames=attempt.frames,
            **values,
        )
