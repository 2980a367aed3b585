"""One jump: forecast, lead, relax, judge, and all undone where it went wrong."""

from __future__ import annotations

import time
from contextlib import contextmanager

import numpy as np
import openmm
from MDAnalysis import AtomGroup
from numpy.typing import NDArray

from ..errors import UnphysicalError
from ..forecast.chain import forecast
from ..forecast.generative import draws
from ..forecast.model import Model
from ..forecast.streams import check_seed
from ..graph.builder import GraphBuilder
from ..molecule.atoms import atom_elements, topology_bonds
from ..molecule.checks import check_frames
from ..molecule.geometry import bond_lengths, rmsd
from ..molecule.local import keep_bonds
from ..molecule.whole import check_whole
from .common import in_nm
from .dynamics import Dynamics
from .guide import GUIDE, add_guide, find_guide
from .records import Attempt, JumpLimits

#: Time between two moves of the restraints in ps: far below the period of a restrained atom (0.2 ps and more).
LEAD_UPDATE_PS = 0.01


class _Unsound(Exception):
    """A jump has to be rolled back; the message is the reason."""


class Jumper:
    """Leads a Simulation along forecasts of some of its particles.

    Parameters
    ----------
    dynamics : Dynamics
    model : Model
    beads : AtomGroup
        What is forecast; the guide is added to the System if it is not there yet.
    horizon : int
        Frames of a forecast.
    lead_ps, relax_ps, strength : float
        As in :class:`HybridPropagator`.
    limits : JumpLimits
    seed : int
    device : str

    Raises
    ------
    ModelError
        A model that does not know the beads, beads without mass, a guide for others.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        model: Model,
        beads: AtomGroup,
        *,
        horizon: int,
        lead_ps: float,
        relax_ps: float,
        strength: float,
        limits: JumpLimits,
        seed: int,
        device: str,
    ) -> None:
        self.dynamics, self.model, self.horizon, self.limits, self.device = dynamics, model, horizon, limits, device
        self.seed = check_seed(seed)
        self.strength = float(strength)
        self.beads = beads.indices
        self.builder = GraphBuilder(beads, model.graph)
        self.model.require(self.builder.identity)
        self._lead_steps = max(1, round(lead_ps / dynamics.step_ps))
        self._relax_steps = max(1, round(relax_ps / dynamics.step_ps))
        self._solute = _heavy_atoms(beads)
        self._solute_bonds = topology_bonds(self._solute)
        self.guide = self._guided()

    @property
    def steps(self) -> int:
        """Of a jump along a whole forecast."""
        return self._lead_steps + self._relax_steps

    def _guided(self) -> openmm.CustomExternalForce:
        """The restraints, added to the System and to the Context where they are missing."""
        system, context = self.dynamics.simulation.system, self.dynamics.simulation.context
        guide = find_guide(system, self.beads)
        if guide is None:
            guide = add_guide(system, self.beads)
            context.reinitialize(preserveState=True)
        elif GUIDE not in dict(context.getParameters()):
            context.reinitialize(preserveState=True)
        return guide

    def jump(self, history: NDArray[np.float64], number: int = 0) -> Attempt:
        """Forecast from the beads' `history` (n_input, B, 3) and go along; sound, or undone.

        A model that draws draws another future for every `number` of a jump.

        Raises
        ------
        DataError
            Positions that are not finite, or a molecule broken by the box.
        """
        context, dynamics = self.dynamics.simulation.context, self.dynamics
        clock = _Clock()
        before = dynamics.positions()
        box = dynamics.box()
        check_whole(self._solute, before[self._solute.indices], self._solute_bonds, box)
        found: dict[str, float] = {}
        saved, when, step = context.createCheckpoint(), context.getTime(), context.getStepCount()
        reason = ""
        frames = 0
        sound = False
        try:
            with clock("forecast"):
                path = self._forecast(history, box, number)
            lengths = bond_lengths(history[-1], self.builder.bonds)
            found["forecast_bonds"] = float(np.abs(bond_lengths(path, self.builder.bonds) - lengths).max(initial=0))
            path = self._sound_part(keep_bonds(path, self.builder.bonds, lengths, slack=0.02), history[-1], box)
            frames = len(path)
            found["forecast_moved"] = float(rmsd(path[-1], history[-1]))
            with clock("lead"):
                found["work"] = self._lead(np.concatenate([history[-1:], path]))
            led = dynamics.positions()
            found["rmsd_led"] = float(rmsd(led[self.beads], path[-1]))
            with clock("relax"):
                found["energy"], found["temperature"] = dynamics.relax(self._relax_steps)
            after = dynamics.positions()
            found["rmsd_relaxed"] = float(rmsd(after[self.beads], path[-1]))
            found["constraint_error"] = dynamics.constraint_error(after)
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
        return Attempt(step, sound, reason, frames, found, clock.seconds)

    def _forecast(self, history: NDArray[np.float64], box: NDArray | None, number: int) -> NDArray[np.float64]:
        """Frames of the forecast, (horizon, B, 3)."""
        drawn = {"samples": 1, "seed": self.seed, "numbers": [number]} if draws(self.model) else {}
        try:
            path = forecast(
                self.model,
                self.builder,
                history[None].astype(np.float32),
                self.horizon,
                boxes=[box],
                device=self.device,
                **drawn,
            )
        except UnphysicalError as error:
            raise _Unsound("forecast: not finite") from error
        path = path.reshape(self.horizon, -1, 3).astype(np.float64)  # (horizon, B, 3)
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
        context = self.dynamics.simulation.context
        every = max(1, round(LEAD_UPDATE_PS / self.dynamics.step_ps))
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
            self.dynamics.biased(mark - done)
            done = mark
            positions = self.dynamics.positions()[self.beads]
            if not np.isfinite(positions).all():
                raise _Unsound("not finite")
        work -= self._restraint(positions, target)
        context.setParameter(GUIDE, 0.0)
        return float(work)

    def _set_targets(self, targets: NDArray[np.float64]) -> None:
        for k, (bead, target) in enumerate(zip(self.beads, in_nm(targets), strict=True)):
            self.guide.setParticleParameters(k, int(bead), target)
        self.guide.updateParametersInContext(self.dynamics.simulation.context)

    def _restraint(self, positions: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
        return 0.5 * self.strength * float((in_nm(positions - targets) ** 2).sum())

    def _judge(self, found: dict[str, float], before: NDArray, after: NDArray, box: NDArray | None) -> None:
        limits, dynamics = self.limits, self.dynamics
        if not (np.isfinite(list(found.values())).all() and np.isfinite(after).all()):
            raise _Unsound("not finite")
        # Single precision positions alone give 1e-5.
        tolerance = max(10 * dynamics.simulation.integrator.getConstraintTolerance(), 1e-4)
        if found["constraint_error"] > tolerance:
            raise _Unsound(f"constraints: violated by {found['constraint_error']:.1e}, tolerance {tolerance:.1e}")
        if found["rmsd_led"] > limits.rmsd:
            raise _Unsound(f"lead: {found['rmsd_led']:.2f} A from the forecast")
        if found["work"] > limits.work * len(self.beads):
            raise _Unsound(f"work: {found['work']:.0f} kJ/mol")
        for name, samples in (("energy", dynamics.energies), ("temperature", dynamics.temperatures)):
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
