"""The forecaster as an integrator: a stock OpenMM Simulation of the selected beads."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
import openmm
from MDAnalysis import AtomGroup, Universe
from numpy.typing import ArrayLike, NDArray
from openmm import app, unit
from openmm.app.internal.unitcell import computePeriodicBoxVectors

from egno_md.forecast.asked import is_count, whole_number
from egno_md.forecast.chain import ModelForecaster
from egno_md.forecast.device import resolve_device
from egno_md.forecast.streams import Streams
from egno_md.forecast.subject import Subject
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import frames_back
from egno_md.molecule.atoms import atom_elements

from ..errors import DataError, ModelError, UsageError
from .common import box_of, chainable_model, in_angstrom, in_nm, platform_named


def _close(found: NDArray[np.floating], expected: NDArray[np.floating]) -> bool:
    """Whether two sets of positions are the same to single precision, which is all that many platforms keep."""
    return bool(np.abs(found - expected).max() <= 1e-4 + 4 * np.finfo(np.float32).eps * np.abs(expected).max())


def _as_kept(frames: NDArray[np.floating]) -> NDArray[np.float32]:
    """What is left of frames in Angstrom in a Context of single precision: the same on every platform."""
    return in_angstrom(in_nm(frames).astype(np.float32)).astype(np.float32)


class _Window(NamedTuple):
    """One window, what it was forecast from, and the random numbers before and after it."""

    past: NDArray[np.float32]  # (n_input, N, 3)
    box: NDArray[np.float32] | None  # (6,)
    before: tuple[int, ...]  # words of the random state
    frames: NDArray[np.float32]  # (n_input + T, N, 3), the past and what is predicted
    after: tuple[int, ...]


#: Words of 32 bits in which the state of a PCG64 is kept: a Context has nothing but floating-point numbers.
WORDS = 10


def _words(streams: Streams) -> tuple[int, ...]:
    """All of the state of one stream, a PCG64, in words that a double holds."""
    (state,) = streams.state
    wide = [state["state"]["state"] >> 32 * k & 0xFFFFFFFF for k in range(4)]
    wide += [state["state"]["inc"] >> 32 * k & 0xFFFFFFFF for k in range(4)]
    return (*wide, state["has_uint32"], state["uinteger"])


def _streams(words: tuple[int, ...]) -> Streams:
    """The one stream whose state it is."""
    state, inc = (sum(word << 32 * k for k, word in enumerate(words[first : first + 4])) for first in (0, 4))
    numbers = {"state": state, "inc": inc}
    streams = Streams([])
    streams.state = [
        {"bit_generator": "PCG64", "state": numbers, "has_uint32": words[8], "uinteger": words[9]},
    ]
    return streams


#: The variable that a deserialised copy cannot set; OpenMM's error ends in it.
NO_COPIES = (
    "an EGNOIntegrator cannot be deserialised, its network is not in the XML; make it anew (surrogate_simulation) and "
    "load the State or checkpoint"
)


class EGNOIntegrator(openmm.CustomIntegrator):
    """Moves the beads of a Context by forecasts: one step is one predicted frame.

    Of a model that draws futures it draws one, window by window; of any other it is the mean of all futures.

    Positions are the predicted ones, velocities the displacement over the last stride divided by it, and the step
    size is the model's stride. There are no forces and no thermostat: the energy and the temperature that OpenMM
    reports for such a Simulation are those of the displacements and mean nothing.

    Everything that a forecast depends on lies in the Context: the frames that the window was forecast from (per-DOF
    variables ``past_0``, ...), the frames already given from it (global variable ``frame``), the random numbers it was
    drawn with (``random_0``, ...), the positions, the velocities and the box. A checkpoint or State that is loaded,
    also into a new Simulation, therefore goes on where it was taken, to the same bits. Positions, velocities or a box
    that are not the integrator's own start a new forecast from them, with new random numbers; velocities that are left
    alone when positions are set count as theirs, as in every OpenMM integrator.

    Parameters
    ----------
    model : str, path-like or Model, optional
        By default the bundled model.
    atoms : AtomGroup
        The N beads, in the order of the System's particles. Forecasts are periodic if it has a box.
    seed : int
        Of what a model draws. (OpenMM's own ``setRandomNumberSeed`` has no part in it.)
    number : int
        Of the start, such as its frame: with another one the same seed draws another future, as in
        :func:`egno_md.forecast.forecast`.
    device : str
        Where the network runs: ``"auto"``, ``"cpu"``, ``"cuda"``.

    Attributes
    ----------
    model : Model
    builder : GraphBuilder
    periodic : bool

    Raises
    ------
    UsageError
        The device is not there, or a seed or number that is no whole number of at least 0.
    ModelError
        A model that cannot be chained or does not know the atoms.

    Examples
    --------
    >>> integrator = EGNOIntegrator(model, atoms)                          # doctest: +SKIP
    >>> simulation = app.Simulation(topology, system, integrator)          # doctest: +SKIP
    >>> integrator.bind(simulation.context)                                # doctest: +SKIP

    :func:`surrogate_simulation` does all of it.
    """

    def __init__(self, model: Any, atoms: AtomGroup, *, seed: int = 0, number: int = 0, device: str = "auto") -> None:
        self.model = chainable_model(model)
        if not is_count(number, 0):
            raise UsageError(f"number must be a whole number of at least 0, found {number!r}")
        super().__init__(self.model.window.stride_ps)
        self.device = resolve_device(device)
        self.builder = GraphBuilder(atoms, self.model.graph)
        self.model.require(self.builder.identity)
        self.periodic = atoms.universe.dimensions is not None
        self._forecaster = ModelForecaster(self.model, self.builder, device=self.device)
        self._n_input = frames_back(self.model.window) + 1
        self._context: weakref.ref[openmm.Context] | None = None
        self._memo: _Window | None = None
        self.addGlobalVariable("frame", -1)
        for k, word in enumerate(_words(Streams.of(seed, [number], 1))):
            self.addGlobalVariable(f"random_{k}", word)
        for k in range(self._n_input):
            self.addPerDofVariable(f"past_{k}", 0)
        # Never done here. A copy by XmlSerializer is a plain CustomIntegrator without a network; OpenMM runs into this
        # in its first step and says it, where no computation at all would move the clock and nothing else.
        self.addComputePerDof(NO_COPIES, "x")

    def bind(self, context: openmm.Context) -> None:
        """Tell the integrator which Context it moves; OpenMM's Python layer does not.

        Raises
        ------
        UsageError
            No Context.
        ModelError
            A Context with another number of particles, with constraints or with virtual sites.
        """
        if not isinstance(context, openmm.Context):
            raise UsageError(f"context must be an openmm.Context (simulation.context), found {type(context).__name__}")
        system, n_atoms = context.getSystem(), self.builder.n_atoms
        if system.getNumParticles() != n_atoms:
            raise ModelError(
                f"the System has {system.getNumParticles()} particles, the selection has {n_atoms} atoms; a System of "
                "these beads is made by surrogate_simulation, an all-atom one is driven by HybridPropagator"
            )
        if system.getNumConstraints() or any(system.isVirtualSite(k) for k in range(n_atoms)):
            raise ModelError(
                "the System has constraints or virtual sites, which a forecast does not keep; use a System of plain "
                "beads (surrogate_simulation), or drive the all-atom System by HybridPropagator"
            )
        self._context = weakref.ref(context)

    def set_history(self, frames: ArrayLike) -> None:
        """Start a new forecast from these frames.

        Parameters
        ----------
        frames : array-like, shape (n_input, N, 3)
            Angstrom, or a Quantity, one stride apart, the last one being the present; ``n_input`` is 2, or T + 1 for a
            model that maps a trajectory to a trajectory.

        Raises
        ------
        UsageError
            Frames that are no numbers, are not finite or of another shape; no Context yet.
        """
        if unit.is_quantity(frames):
            frames = frames.value_in_unit(unit.angstrom)
        expected = (self._n_input, self.builder.n_atoms, 3)
        try:
            frames = np.asarray(frames, np.float32)
        except (TypeError, ValueError) as error:
            raise UsageError(f"frames must be numbers of shape {expected}, found {type(frames).__name__}") from error
        if frames.shape != expected or not np.isfinite(frames).all():
            raise UsageError(f"frames must be finite and of shape {expected}, found {frames.shape}")
        context = self._bound()
        self._put(context, _as_kept(frames), self._random(), frames[-2:], 0)

    def step(self, steps: int) -> None:
        """Advance by `steps` predicted frames; all of them or, on an error, none.

        Raises
        ------
        UsageError
            The integrator is bound to no Context, or no whole number of steps.
        DataError
            Positions or velocities that are not finite, or molecules broken by the box.
        ModelError
            A step size that is not the model's stride, a Context of other particles, a prediction that is not finite.
        """
        if not isinstance(steps, int | np.integer):
            raise UsageError(f"steps must be a whole number of predicted frames, found {steps!r}")
        if steps < 1:
            return
        context = self._bound()
        window = self.model.window
        if abs(self.getStepSize().value_in_unit(unit.picosecond) - window.stride_ps) > 1e-6 * window.stride_ps:
            raise ModelError(
                f"the step size is {self.getStepSize()}, model {self.model.name!r} was made for {window.stride_ps:g} "
                "ps: leave the step size alone, or use a model with that stride (egno-md models)"
            )
        state = context.getState(positions=True, velocities=True)
        box = box_of(state) if self.periodic else None
        now, done = self._present(state, box)
        remaining = steps
        while remaining > window.n_times - done:
            remaining -= window.n_times - done
            now, done = self._window(now.frames[-self._n_input :], box, now.after), 0
        done += remaining
        last = now.frames[self._n_input + done - 2 : self._n_input + done]  # (2, N, 3)
        self._put(context, now.past, now.before, last, done)
        context.setTime(state.getTime() + steps * window.stride_ps * unit.picosecond)
        context.setStepCount(context.getStepCount() + steps)

    def _bound(self) -> openmm.Context:
        context = None if self._context is None else self._context()
        if context is None:
            raise UsageError("the integrator does not know its Context: call integrator.bind(simulation.context) first")
        return context

    def _random(self) -> tuple[int, ...]:
        """Words of the random state in the Context."""
        return tuple(int(self.getGlobalVariableByName(f"random_{k}")) for k in range(WORDS))

    def _present(self, state: openmm.State, box: NDArray | None) -> tuple[_Window, int]:
        """The window that the Context is in, and the frames given from it."""
        positions = in_angstrom(state.getPositions(asNumpy=True))  # (N, 3)
        displacement = in_angstrom(state.getVelocities(asNumpy=True)) * self.model.window.stride_ps  # (N, 3)
        if len(positions) != self.builder.n_atoms:
            raise ModelError(
                f"the Context has {len(positions)} particles, the selection has {self.builder.n_atoms} atoms; bind "
                "the Context of these beads"
            )
        if not (np.isfinite(positions).all() and np.isfinite(displacement).all()):
            raise DataError(
                "the Context holds positions or velocities that are not finite; set sound ones, or load a checkpoint"
            )
        done, random = round(self.getGlobalVariableByName("frame")), self._random()
        if done >= 0:
            past = np.stack([in_angstrom(self.getPerDofVariableByName(f"past_{k}")) for k in range(self._n_input)])
            window = self._window(past, box, random)
            before, now = window.frames[self._n_input + done - 2 : self._n_input + done]
            if _close(positions, now) and _close(positions - displacement, before):
                return window, done
            random = window.after if done else random
        if self._n_input > 2:
            raise ModelError(
                f"positions were set from outside, and model {self.model.name!r} reads {self._n_input} frames: give "
                "them with integrator.set_history(frames)"
            )
        return self._window(np.stack([positions - displacement, positions]), box, random), 0

    def _window(self, past: NDArray[np.floating], box: NDArray | None, random: tuple[int, ...]) -> _Window:
        """The window after a past (n_input, N, 3); remembered, because every step of the window asks for it."""
        past = _as_kept(past)
        known = self._memo
        if known is not None and known.before == random and np.array_equal(known.past, past):
            if box is None or np.allclose(box, known.box, rtol=1e-6):
                return known
        streams = _streams(random)
        predicted = self._forecaster.collect(
            past[None], self.model.window.n_times, generator=streams if self._forecaster.draws else None, boxes=[box]
        )[0, 0]  # (T, N, 3)
        self._memo = _Window(past, box, random, np.concatenate([past, predicted]), _words(streams))
        return self._memo

    def _put(self, context: openmm.Context, past: NDArray, random: tuple[int, ...], last: NDArray, done: int) -> None:
        """Write the window's start, the position in it and the present, `last` (2, N, 3), into the Context."""
        for k, frame in enumerate(past):
            self.setPerDofVariableByName(f"past_{k}", in_nm(frame))
        for k, word in enumerate(random):
            self.setGlobalVariableByName(f"random_{k}", word)
        self.setGlobalVariableByName("frame", done)
        before, now = np.asarray(last, np.float64)
        context.setPositions(in_nm(now))
        context.setVelocities(in_nm(now - before) / self.model.window.stride_ps)


def surrogate_simulation(
    universe_or_atomgroup: Universe | AtomGroup,
    model: Any = None,
    select: str | None = None,
    *,
    every: int = 1,
    seed: int = 0,
    device: str = "auto",
    platform: str = "Reference",
) -> app.Simulation:
    """A stock OpenMM Simulation of the selected beads that :class:`EGNOIntegrator` moves.

    Positions, time and box are those of the current frame, velocities the displacement since the frame one stride
    before. Reporters, checkpoints and ``MDAnalysis.Universe(simulation)`` work as with any Simulation.

    Parameters
    ----------
    universe_or_atomgroup : Universe or AtomGroup
        The start; the Universe stays at its frame.
    model : str, path-like or Model, optional
        By default the bundled model.
    select : str, optional
        Narrows the model's selection.
    every : int
        Trajectory frames per stride of the model.
    seed : int
        Of the future that a model draws: that of ``EGNOSurrogate(..., samples=1, seed=seed)`` from the same frame, up
        to the fifth window, from which on that one reverts to its run.
    device : str
        Where the network runs.
    platform : str
        OpenMM platform that holds the beads; it has nothing to compute.

    Returns
    -------
    openmm.app.Simulation

    Raises
    ------
    UsageError, DataError
        An argument or a selection that cannot be right, positions that are not finite.
    ModelError
        The model does not fit the trajectory's spacing, the selection or the atoms.

    Examples
    --------
    >>> simulation = surrogate_simulation(universe)                          # doctest: +SKIP
    >>> simulation.reporters.append(app.DCDReporter("surrogate.dcd", 1))     # doctest: +SKIP
    >>> simulation.step(8)                                                   # doctest: +SKIP
    """
    model, chosen = chainable_model(model), platform_named(platform)
    every = whole_number("every", every)
    subject = Subject.of(
        universe_or_atomgroup, model.graph, model.window, select=select, every=every, who=f"model {model.name!r}"
    )
    model = model.at_stride(subject.window.stride_ps)
    atoms, trajectory = subject.atoms, subject.atoms.universe.trajectory
    here = max(trajectory.frame, 0)
    history = subject.history([here])[0]  # (n_input, N, 3)
    if trajectory.frame != here:
        trajectory[here]
    topology, masses = _bead_topology(atoms)
    integrator = EGNOIntegrator(model, atoms, seed=seed, number=here, device=device)
    particles = list(topology.atoms())
    for i, j in integrator.builder.bonds:
        topology.addBond(particles[i], particles[j])
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    if integrator.periodic:
        lengths, angles = in_nm(atoms.dimensions[:3]), np.radians(atoms.dimensions[3:].astype(float))
        # OpenMM wants the reduced vectors of the lattice, which computePeriodicBoxVectors gives.
        vectors = computePeriodicBoxVectors(*lengths, *angles)
        topology.setPeriodicBoxVectors(vectors)
        system.setDefaultPeriodicBoxVectors(*vectors)
    simulation = app.Simulation(topology, system, integrator, chosen)
    integrator.bind(simulation.context)
    integrator.set_history(history)
    simulation.context.setTime(subject.clock.times[here])
    return simulation


def _bead_topology(atoms: AtomGroup) -> tuple[app.Topology, list[float]]:
    """Chains, residues, names and elements of the beads, and their masses in Da."""
    topology = app.Topology()
    elements = [app.Element.getBySymbol(symbol) if symbol else None for symbol in atom_elements(atoms)]
    known = atoms.masses if hasattr(atoms, "masses") else np.zeros(len(atoms))
    masses = []
    chain = residue = None
    last: tuple[Any, int] | None = None
    for k, (atom, element) in enumerate(zip(atoms, elements, strict=True)):
        chain_id = str(getattr(atom, "chainID", "") or getattr(atom, "segid", ""))
        key = (atom.segindex, chain_id)
        if last is None or key != last[0]:
            chain = topology.addChain(chain_id)
        if last is None or (key, atom.resindex) != last:
            name, number = getattr(atom, "resname", "UNK"), getattr(atom, "resid", atom.resindex + 1)
            residue = topology.addResidue(name, chain, str(number), str(getattr(atom, "icode", "")))
        last = (key, atom.resindex)
        topology.addAtom(str(getattr(atom, "name", "X")), element, residue, str(k + 1))
        mass = known[k] if known[k] > 0 else (element.mass.value_in_unit(unit.dalton) if element is not None else 1.0)
        masses.append(float(mass))
    return topology, masses
