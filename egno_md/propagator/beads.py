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
from egno_md.forecast.device import resolve_device
from egno_md.forecast.rolling import REVERTING, ChainState, roll
from egno_md.forecast.streams import Streams, check_seed
from egno_md.forecast.subject import Subject
from egno_md.graph.builder import GraphBuilder
from egno_md.hindcast.choose import choose_engine, subject_of, wanted
from egno_md.hindcast.engine import PAST, Engine, FreeEngine, ModelEngine
from egno_md.hindcast.hindcast import Hindcast
from egno_md.hindcast.material import WINDOW, Material
from egno_md.molecule.atoms import atom_elements
from egno_md.trajectory.mdtraj import source_of

from ..errors import DataError, ModelError, UsageError
from .common import box_of, chainable_model, in_angstrom, in_nm, platform_named


def _close(found: NDArray[np.floating], expected: NDArray[np.floating]) -> bool:
    """Whether two sets of positions are the same to single precision, which is all that many platforms keep."""
    return bool(np.abs(found - expected).max() <= 1e-4 + 4 * np.finfo(np.float32).eps * np.abs(expected).max())


def _as_kept(frames: NDArray[np.floating]) -> NDArray[np.float32]:
    """What is left of frames in Angstrom in a Context of single precision: the same on every platform."""
    return in_angstrom(in_nm(frames).astype(np.float32)).astype(np.float32)


class _Begun(NamedTuple):
    """Where a window begins, and all that its forecast depends on."""

    past: NDArray[np.float32]  # (P, N, 3), Angstrom
    start: NDArray[np.float32]  # (N, 3), where its chain began
    windows: int  # of its chain that came before it
    random: tuple[int, ...]  # words of the random state

    @classmethod
    def anew(cls, past: NDArray[np.floating], random: tuple[int, ...]) -> _Begun:
        """A new chain from a past (P, N, 3)."""
        past = _as_kept(past)
        return cls(past, past[-1], 0, random)

    def same_as(self, other: _Begun) -> bool:
        """Whether both are the same window."""
        frames = ((self.past, other.past), (self.start, other.start))
        return self[2:] == other[2:] and all(np.array_equal(own, others) for own, others in frames)


class _Window(NamedTuple):
    """One window, and where the next one begins."""

    begun: _Begun
    box: NDArray[np.float32] | None  # (6,)
    frames: NDArray[np.float32]  # (2 + T, N, 3), the frame before the present, the present and what is predicted
    next: _Begun


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

    Of a forecast that draws futures it draws one, window by window; of any other it is the mean of all futures.

    Positions are the predicted ones, velocities the displacement over the last stride divided by it, and the step
    size is the stride of the forecast. There are no forces and no thermostat: the energy and the temperature that
    OpenMM reports for such a Simulation are those of the displacements and mean nothing.

    Everything that a forecast depends on lies in the Context: the frames that the window was forecast from (per-DOF
    variables ``past_0``, ..., and how many of them are known, ``known``), where its chain began (``start``), the
    windows before it (``windows``), the frames already given from it (``frame``), the random numbers it was drawn with
    (``random_0``, ...), the positions, the velocities and the box. A checkpoint or State that is loaded, also into a
    new Simulation, therefore goes on where it was taken, to the same bits. Positions, velocities or a box that are not
    the integrator's own start a new forecast from them, with new random numbers; velocities that are left alone when
    positions are set count as theirs, as in every OpenMM integrator.

    Parameters
    ----------
    model : str, path-like, Model or Engine, optional
        A network, by default the bundled one; or who forecasts a run, which may be a free forecast that was fitted to
        it: the attribute `engine` of an :class:`~egno_md.EGNOSurrogate` that has run.
    atoms : AtomGroup
        The N beads, in the order of the System's particles. The Simulation, and what a network sees, is periodic if
        they have a box.
    seed : int
        Of what is drawn. (OpenMM's own ``setRandomNumberSeed`` has no part in it.)
    number : int
        Of the start, such as its frame: with another one the same seed draws another future, as in
        :func:`egno_md.forecast.forecast`.
    device : str
        Where the network runs: ``"auto"``, ``"cpu"``, ``"cuda"``.

    Attributes
    ----------
    engine : egno_md.hindcast.engine.Engine
        Who forecasts; ``engine.name`` is its name.
    model : Model or None
        The network, or None where a free forecast forecasts.
    builder : GraphBuilder or egno_md.graph.builder.Structure
    periodic : bool
    hindcast : Hindcast or None
        What forecasts were worth on the last windows of the run, where :func:`surrogate_simulation` chose one.
    decisions : list of str
        What was decided then, and why.

    Raises
    ------
    UsageError
        The device is not there, a seed or number that is no whole number of at least 0, or an Engine of other atoms.
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
        if isinstance(model, FreeEngine | ModelEngine):
            self.engine: Engine = model
        else:
            model = chainable_model(model)
            self.engine = ModelEngine(model, GraphBuilder(atoms, model.graph))
        if not is_count(number, 0):
            raise UsageError(f"number must be a whole number of at least 0, found {number!r}")
        super().__init__(self.engine.stride_ps)
        self.model, self.builder = getattr(self.engine, "model", None), self.engine.builder
        if len(atoms) != self.builder.n_atoms:
            raise UsageError(
                f"{self.engine.name!r} forecasts {self.builder.n_atoms} atoms, found {len(atoms)}: give the atoms of "
                "the run that it is of (EGNOSurrogate.atoms)"
            )
        options: dict[str, Any] = {}
        if self.model is not None:
            self.model.require(self.builder.identity)
            options = {"device": resolve_device(device)}
        self.device = options.get("device")
        self.periodic = atoms.universe.dimensions is not None
        self.hindcast: Hindcast | None = None
        self.decisions: list[str] = []
        # From the end of the run, so that all of it may be known; a Simulation does not say how far it will go.
        end = 0 if self.engine.subject is None else self.engine.subject.end
        ((_, self._forecaster),) = self.engine.forecasters([end], REVERTING * self.engine.n_times + 1, 1, **options)
        # A network reads so many frames and no fewer, a free forecast those that are there.
        self._most = max(2, self._forecaster.n_past)
        self._least = self._most if self.model is not None else 1
        self._context: weakref.ref[openmm.Context] | None = None
        self._memo: _Window | None = None
        for name, value in (("frame", -1), ("windows", 0), ("known", 0)):
            self.addGlobalVariable(name, value)
        for k, word in enumerate(_words(Streams.of(seed, [number], 1))):
            self.addGlobalVariable(f"random_{k}", word)
        for name in ("start", *self._pasts(self._most)):
            self.addPerDofVariable(name, 0)
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
        frames : array-like, shape (P, N, 3)
            Angstrom, or a Quantity, one stride apart, the last one being the present. A network takes 2, or T + 1 if it
            maps a trajectory to a trajectory; a free forecast takes what it can use of those that are there.

        Raises
        ------
        UsageError
            Frames that are no numbers, are not finite or of another shape; no Context yet.
        """
        if unit.is_quantity(frames):
            frames = frames.value_in_unit(unit.angstrom)
        count = f"{self._least}" if self._least == self._most else f"{self._least} or more"
        expected = f"({count}, {self.builder.n_atoms}, 3)"
        try:
            frames = np.asarray(frames, np.float32)
        except (TypeError, ValueError) as error:
            raise UsageError(f"frames must be numbers of shape {expected}, found {type(frames).__name__}") from error
        fits = frames.ndim == 3 and frames.shape[1:] == (self.builder.n_atoms, 3) and len(frames) >= self._least
        if not fits or (self.model is not None and len(frames) > self._most) or not np.isfinite(frames).all():
            raise UsageError(f"frames must be finite and of shape {expected}, found {frames.shape}")
        context, past = self._bound(), frames[-self._most :]
        self._put(context, _Begun.anew(past, self._random()), _pair(past), 0)

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
        stride_ps, n_times = self.engine.stride_ps, self.engine.n_times
        if abs(self.getStepSize().value_in_unit(unit.picosecond) - stride_ps) > 1e-6 * stride_ps:
            raise ModelError(
                f"the step size is {self.getStepSize()}, {self.engine.name!r} was made for {stride_ps:g} ps: "
                "leave the step size alone, or use a model with that stride (egno-md models)"
            )
        state = context.getState(positions=True, velocities=True)
        box = box_of(state) if self.periodic else None
        now, done = self._present(state, box)
        remaining = steps
        while remaining > n_times - done:
            remaining -= n_times - done
            now, done = self._window(now.next, box), 0
        done += remaining
        self._put(context, now.begun, now.frames[done : done + 2], done)
        context.setTime(state.getTime() + steps * stride_ps * unit.picosecond)
        context.setStepCount(context.getStepCount() + steps)

    @staticmethod
    def _pasts(count: int) -> list[str]:
        """Names of the variables of so many frames, the oldest first."""
        return [f"past_{k}" for k in range(count)]

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
        displacement = in_angstrom(state.getVelocities(asNumpy=True)) * self.engine.stride_ps  # (N, 3)
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
            windows, known = (round(self.getGlobalVariableByName(name)) for name in ("windows", "known"))
            start, *past = (
                in_angstrom(self.getPerDofVariableByName(name)).astype(np.float32)
                for name in ("start", *self._pasts(known))
            )
            window = self._window(_Begun(np.stack(past), start, windows, random), box)
            before, now = window.frames[done : done + 2]
            if _close(positions, now) and _close(positions - displacement, before):
                return window, done
            random = window.next.random if done else random
        if self._least > 2:
            raise ModelError(
                f"positions were set from outside, and model {self.engine.name!r} reads {self._least} frames: give "
                "them with integrator.set_history(frames)"
            )
        return self._window(_Begun.anew(np.stack([positions - displacement, positions]), random), box), 0

    def _window(self, begun: _Begun, box: NDArray | None) -> _Window:
        """The window that begins there; remembered, because every step of it asks for it."""
        known = self._memo
        if known is not None and known.begun.same_as(begun):
            if box is None or np.allclose(box, known.box, rtol=1e-6):
                return known
        streams = _streams(begun.random) if self.engine.draws else None
        centre = begun.start.mean(axis=0, dtype=np.float64)  # (3,)
        state = ChainState(
            past=(begun.past - centre)[None, None],  # (1, 1, P, N, 3)
            start=(begun.start - centre)[None],  # (1, N, 3)
            centre=centre[None, None],  # (1, 1, 3)
            done=begun.windows * self.engine.n_times,
            generator=None if streams is None else streams.state,
        )
        chain = self._forecaster
        found = roll(
            chain.inner, None, chain.times, state=state, generator=streams, reversion=chain.reversion,
            boxes=None if self.model is None else [box],
        )  # fmt: skip
        positions, after = next(found)
        past = _as_kept(after.past[0, 0] + centre)[-self._most :]  # (P, N, 3)
        random = begun.random if streams is None else _words(streams)
        frames = np.concatenate([_pair(begun.past), positions[0, 0].astype(np.float32)])  # (2 + T, N, 3)
        self._memo = _Window(begun, box, frames, _Begun(past, begun.start, begun.windows + 1, random))
        return self._memo

    def _put(self, context: openmm.Context, begun: _Begun, last: NDArray, done: int) -> None:
        """Write the window's beginning, the position in it and the present, `last` (2, N, 3), into the Context."""
        for name, frame in zip(self._pasts(len(begun.past)), begun.past, strict=True):
            self.setPerDofVariableByName(name, in_nm(frame))
        self.setPerDofVariableByName("start", in_nm(begun.start))
        for k, word in enumerate(begun.random):
            self.setGlobalVariableByName(f"random_{k}", word)
        for name, value in (("frame", done), ("windows", begun.windows), ("known", len(begun.past))):
            self.setGlobalVariableByName(name, value)
        before, now = np.asarray(last, np.float64)
        context.setPositions(in_nm(now))
        context.setVelocities(in_nm(now - before) / self.engine.stride_ps)


def _pair(past: NDArray) -> NDArray:
    """The last two frames of a past (P, N, 3), (2, N, 3); a single one stands still."""
    return past[[max(-2, -len(past)), -1]]


def surrogate_simulation(
    universe_or_atomgroup: Any,
    model: Any = None,
    select: str | None = None,
    *,
    every: int = 1,
    seed: int = 0,
    device: str = "auto",
    platform: str = "Reference",
) -> app.Simulation:
    """A stock OpenMM Simulation of the selected beads that :class:`EGNOIntegrator` moves.

    Without a model the run decides, as in :class:`~egno_md.EGNOSurrogate`: every forecast is tried on its last windows,
    and the best one, fitted to all of the run, is taken. What it was worth is ``simulation.integrator.hindcast``.

    Positions, time and box are those of the current frame, velocities the displacement since the frame one stride
    before. Reporters, checkpoints and ``MDAnalysis.Universe(simulation)`` work as with any Simulation.

    Parameters
    ----------
    universe_or_atomgroup : Universe, AtomGroup or mdtraj.Trajectory
        The start; the Universe stays at its frame. Of an mdtraj.Trajectory it is the last frame.
    model : str, path-like or Model, optional
        A network, or the name of a free forecast, such as "gaussian process". By default the run decides.
    select : str, optional
        Atoms to forecast, as in :class:`~egno_md.EGNOSurrogate`; of a network it narrows the selection.
    every : int
        Trajectory frames per stride.
    seed : int
        Of the future that is drawn: that of ``EGNOSurrogate(..., samples=1, seed=seed)`` from the last frame. (From
        other frames that one is not fitted to what it forecasts; a Simulation does not say how far it will go.)
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
        There is no such model; it does not fit the trajectory's spacing, the selection or the atoms.

    Examples
    --------
    >>> simulation = surrogate_simulation(universe)                          # doctest: +SKIP
    >>> simulation.reporters.append(app.DCDReporter("surrogate.dcd", 1))     # doctest: +SKIP
    >>> simulation.step(8)                                                   # doctest: +SKIP
    """
    chosen, (network, free) = platform_named(platform), wanted(model)
    every, seed = whole_number("every", every), check_seed(seed)
    source = source_of(universe_or_atomgroup)
    if source is not universe_or_atomgroup:  # an mdtraj.Trajectory stands on no frame
        source.trajectory[-1]
    engine: Engine
    hindcast, decisions = None, []
    if network is None:
        engine, hindcast, decisions = _of_run(source, free, select, every, seed)
    else:
        network = chainable_model(network)
        subject = Subject.of(
            source, network.graph, network.window, select=select, every=every,
            who=f"model {network.name!r}",
        )  # fmt: skip
        engine = ModelEngine(network.at_stride(subject.window.stride_ps), subject.builder, subject)
    subject = engine.subject
    atoms, trajectory = subject.atoms, subject.atoms.universe.trajectory
    here = max(trajectory.frame, 0)
    integrator = EGNOIntegrator(engine, atoms, seed=seed, number=here, device=device)
    integrator.hindcast, integrator.decisions = hindcast, decisions
    past = subject.lead(here, PAST)[0] if integrator.model is None else subject.history([here])[0]  # (P, N, 3)
    if trajectory.frame != here:
        trajectory[here]
    topology, masses = _bead_topology(atoms)
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
    integrator.set_history(past)
    simulation.context.setTime(subject.clock.times[here])
    return simulation


def _of_run(
    source: Universe | AtomGroup, free: str | None, select: str | None, every: int, seed: int
) -> tuple[Engine, Hindcast | None, list[str]]:
    """Who forecasts a run, or the free forecast that was asked for; what it is worth; and what was decided."""
    subject, _, decisions = subject_of(source, select, every, free)
    material = Material.of(subject, WINDOW)
    engine, hindcast, said = choose_engine(material, only=free, seed=seed)
    return engine, hindcast, [*decisions, *material.said, *said]


def _bead_topology(atoms: AtomGroup) -> tuple[app.Topology, list[float]]:
    """Chains, residues, names and elements of the beads, and their masses in Da."""
    topology = app.Topology()
    elements = [_element(symbol) for symbol in atom_elements(atoms)]
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


def _element(symbol: str) -> app.Element | None:
    """None of a bead, a dummy atom and whatever else is in no periodic table."""
    try:
        return app.Element.getBySymbol(symbol)
    except KeyError:
        return None
