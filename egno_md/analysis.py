"""The forecaster as an MDAnalysis analysis."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from typing import Any

import numpy as np
from MDAnalysis.analysis.base import AnalysisBase

from egno_md.forecast.asked import check_flags, check_memory, check_room, check_unphysical, start_frames, target_of
from egno_md.forecast.long import relaxing, require_writable, settings_of, unphysical_start, write_chain
from egno_md.forecast.rolling import check_numbers
from egno_md.forecast.streams import Streams, check_seed, member_spread
from egno_md.forecast.subject import Subject
from egno_md.forecast.written import Written
from egno_md.hindcast.choose import cannot_draw, check_adapt, check_samples, choose_engine, subject_of, wanted
from egno_md.hindcast.engine import PAST, Engine, ModelEngine
from egno_md.hindcast.learned import Learned
from egno_md.hindcast.material import Material
from egno_md.molecule.checks import PhysicalChecks, check_frames
from egno_md.molecule.possible import check_start
from egno_md.trajectory.clock import unreadable
from egno_md.trajectory.mdtraj import source_of
from egno_md.trajectory.stream import Awaited, FrameStream, StoredFrames, is_streamed
from egno_md.trajectory.universe import input_files, stored_universe
from egno_md.trajectory.writer import write_topology

from .errors import EGNOError, UsageError
from .progress import Progress, watched

#: Frames that are read at a time where there may be many.
CHUNK = 64


class EGNOSurrogate(Written, AnalysisBase):
    """Forecast the frames that follow each analysed frame.

    Every analysed frame is a starting state. Without arguments :meth:`run` starts from the last frame, which is what
    extends a run. Without a model it looks at the run first: every free forecast and every bundled model that fits
    is tried on the last windows of the run, fitted to the frames before them, and the best one forecasts.

    Parameters
    ----------
    universe_or_atomgroup : Universe, AtomGroup or mdtraj.Trajectory
        Where the starting states come from. Of an AtomGroup the atoms of the selection are taken, in the order of the
        topology, whatever theirs is: :attr:`atoms` has the order of the positions.
    model : str, path-like or Model, optional
        Who forecasts: the name of a bundled model, a checkpoint, a loaded model, or the name of a free forecast, such
        as ``"gaussian process"`` (:func:`egno_md.forecast.free_forecasts`). None: the best one for this run.
    select : str, optional
        MDAnalysis selection of the atoms to forecast; by default the model's own, and without a model what the system
        consists of (:func:`egno_md.graph.default_selection`). It can narrow a model's selection (one chain of several),
        not leave it.
    horizon : int
        Number of frames to predict. Past a window (eight frames, or the model's) the last predicted frames start the
        next one.
    substeps : int
        Predicted frames per stride: 2 gives the path at half the spacing.
    samples : int, optional
        K futures to draw from each start; 1 from who draws when None. Others know the mean of all futures alone, which
        is the forecast then.
    mean : bool
        The mean of all futures in place of one that is drawn; who errs least in it is then chosen.
    seed : int
        Of what is drawn: the same seed, start frame and `horizon` give the same futures. A longer horizon than a window
        goes on with them; a shorter one is a window of its own, with other numbers.
    every : int, optional
        Trajectory frames per stride. By default a model's is read off the clock of the trajectory, and it is 1 without
        a model. Start frames are counted in frames of the trajectory.
    adapt : float, optional
        Seconds to learn a model from the run itself, from the frames before those that it is judged on; it forecasts
        where it is the best one, and is kept in a file beside `filename`. See
        :class:`egno_md.hindcast.learned.Learned`.
    filename : str or path-like, optional
        Write the forecast there (DCD or XTC) with a PDB topology of the same stem beside it. With several starts
        the frame number is added to the stem, with several samples the member, ``out_1.dcd``, ``out_2.dcd`` ...; the
        B-factors of the topology are then `results.spread`, else the input's. A long forecast of one future from one
        start is streamed: written frame by frame, in memory that does not grow, and `results` are read from the file.
    resume : bool
        Go on with a streamed forecast in `filename` that was cut short, from the frame where it ends, to the same file
        as without the interruption; from the end of the run, also to a longer `horizon`. Begin it where there is none.
    with_input : bool
        Begin the written file with the trajectory up to the start, so that it shows the run and its extension.
    force : bool
        Replace files that exist. The input is never replaced.
    on_unphysical : {"warn", "stop", "relax"}
        What a frame that fails the checks does: it is kept and said in `results.checks`; or the forecast (from one
        start) ends before it, and has fewer frames than `horizon`; or it is relaxed first (:mod:`.molecule.relax`), and
        the chain goes on from it, or ends where that does not help.
    device : str
        ``"auto"``: the GPU where there is one, else the CPU.
    precision : {"float32", "tf32", "bf16"}
        What the products in the network are computed in; "tf32" needs a GPU.
    max_memory : int or "auto"
        Bound of the temporaries in bytes.
    verbose : bool
        Show on stderr how far the work is: a bar in a terminal or notebook, elsewhere a line every half minute.

    Attributes
    ----------
    results.positions : ndarray, shape (n_starts, horizon, n_atoms, 3)
        Predicted positions in Angstrom, in the frame of reference of the trajectory. Of a streamed forecast they are
        read when they are asked for, and ``np.asarray`` reads all. Of futures that are drawn it is the first member of
        each start, as are ``rmsd``, ``moved`` and ``universe``; ``rmsd_mean`` is of all.
    results.ensemble : ndarray, shape (n_starts, K, horizon, n_atoms, 3), or None
        All members in Angstrom; None where nothing is drawn.
    results.spread : ndarray, shape (n_starts, n_atoms), or None
        How far the members are from their mean in Angstrom: the root of the mean square over members and frames, each
        frame superposed on the start; NaN of one member.
    results.hindcast : egno_md.hindcast.hindcast.Hindcast or None
        What the forecasts of this run were worth on its last windows, and which was chosen; None where a model was
        given, or the run is too short.
    results.times : ndarray, shape (n_starts, horizon)
        Their times in ps.
    results.frames : ndarray, shape (n_starts,)
        The start frames.
    results.rmsd, results.rmsd_static : ndarray, shape (n_starts, horizon)
        RMSD in Angstrom, without superposition, of the forecast and of the standing start frame against the
        trajectory, where it has the frame; NaN elsewhere.
    results.rmsd_superposed, results.rmsd_static_superposed : ndarray, shape (n_starts, horizon)
        The same with every frame superposed on that of the trajectory: the error of the shape, without the rotation
        and translation of the whole.
    results.rmsd_mean, results.rmsd_mean_superposed : ndarray, shape (n_starts, horizon), or None
        The same of the mean of several futures, each superposed on the start first for the second; None where fewer
        than two are drawn. One future is no guess at the future: compare this with the standing frame.
    results.moved, results.moved_superposed : ndarray, shape (n_starts, horizon)
        RMSD in Angstrom between the predicted frame and the start frame, as they stand and superposed. Molecules drift
        and turn: the first grows without end where the second, the change of the shape, does not.
    results.checks : list of PhysicalChecks
        Whether the predicted frames are physical, one entry per start, for the frames of all members one after the
        other; of a streamed forecast counts alone, as
        :class:`~egno_md.molecule.checks.Tally`.
    results.course : list of tuple of str
        How the end of each forecast that is longer than a window differs from the run: it shrinks or swells, leaves the
        run, or comes to rest; see :class:`~egno_md.molecule.course.Course`.
    results.universe : Universe or None
        The forecast in memory, with topology, times and box. Of several starts their windows stand one after the
        other, so that time goes back at each: start k is ``universe.trajectory[k * horizon : (k + 1) * horizon]``.
        None without a start. Of a streamed forecast it is on the file, all of it.
    results.files : list of Path
        What was written to `filename`; :meth:`write` returns what it wrote.
    atoms : AtomGroup
        The atoms that are forecast.
    start_times : ndarray, shape (n_starts,)
        Times of the start frames in ps.
    model : Model or None
        None where a free forecast is the choice, and before :meth:`run` where there was none yet.
    engine : egno_md.hindcast.engine.Engine
        Who forecasts; ``engine.name`` is its name.
    decisions : list of str
        One line for each decision that was made about the run.
    reverts : bool
        From their fifth window on the chains were called back to the run (:mod:`egno_md.forecast.reversion`).
    streaming : bool
        A streamed forecast is being written.
    stop_when : callable
        Asked after each window of a streamed forecast; True ends it by a ``StoppedError``, to be gone on with.
    when_chosen : callable
        Called before a streamed forecast begins, when `engine`, `decisions` and ``results.hindcast`` are known.

    Raises
    ------
    UsageError
        An argument that cannot be right, such as a horizon below 1.
    DataError
        An empty or dynamic selection, molecules broken by the box, positions that are not finite.
    ModelError
        The model does not fit the trajectory's spacing, the selection or the atoms; or there is none of that name.
    OutputError
        A file exists or cannot be written.

    Notes
    -----
    The velocity that a model sees is the displacement over the last stride. Frame 0 has no past: its velocity is
    taken as zero, with one warning. From a start inside the run a free forecast is fitted to the frames that are not
    forecast, see :class:`egno_md.hindcast.engine.FreeEngine`.

    An analysis can be pickled, with its files where they are, before and after it has run. MDAnalysis' readers know no
    ``copy.deepcopy``: ``pickle.loads(pickle.dumps(...))`` is one.

    References
    ----------
    .. [1] Xu et al., Equivariant Graph Neural Operator for Modeling 3D Dynamics, ICML 2024, sections 4 and 5.5.

    Examples
    --------
    >>> import MDAnalysis as mda
    >>> from egno_md import EGNOSurrogate, sample
    >>> u = mda.Universe(*map(str, sample()))
    >>> surrogate = EGNOSurrogate(u, horizon=8).run()
    >>> surrogate.results.positions.shape
    (1, 8, 76, 3)
    """

    def __init__(
        self,
        universe_or_atomgroup: Any,
        model: Any = None,
        select: str | None = None,
        horizon: int = 8,
        *,
        substeps: int = 1,
        samples: int | None = None,
        mean: bool = False,
        seed: int = 0,
        every: int | None = None,
        adapt: float = 0.0,
        filename: str | os.PathLike | None = None,
        resume: bool = False,
        with_input: bool = False,
        force: bool = False,
        on_unphysical: str = "warn",
        device: str = "auto",
        precision: str = "float32",
        max_memory: int | str = "auto",
        verbose: bool = False,
    ) -> None:
        universe_or_atomgroup = source_of(universe_or_atomgroup)
        check_numbers(horizon, substeps)
        check_flags(mean=mean, with_input=with_input, force=force, resume=resume)
        check_memory(max_memory)
        self.horizon, self.substeps, self.seed, self.mean = int(horizon), int(substeps), check_seed(seed), mean
        self.device, self.precision, self.max_memory = device, precision, max_memory
        self._asked_samples = check_samples(samples, mean)
        self.adapt = check_adapt(adapt, model)
        if device not in ("auto", "cpu") or precision != "float32":  # the others are there, and torch is slow to ask
            self._check_device()
        self.decisions: list[str] = []
        self.model, self._free = wanted(model)
        self.engine: Engine | None = None
        self._hindcast = None
        if self.model is None:
            every = 1 if every is None else every
            self.subject, self._select, self.decisions = subject_of(universe_or_atomgroup, select, every, self._free)
        if self.model is not None:
            who = f"model {self.model.name!r}"
            self.subject = Subject.of(
                universe_or_atomgroup, self.model.graph, self.model.window, select=select, every=every, who=who
            )
            self.model = self.model.at_stride(self.subject.window.stride_ps)
            self._use(ModelEngine(self.model, self.subject.builder, self.subject))
        if self.adapt and self.model is not None:
            raise UsageError(
                f"adapt (--adapt) learns from the run, and {self.subject.clock.name} has one frame: leave it out, or "
                "give the trajectory as well"
            )
        self.atoms, self.builder, self.every = self.subject.atoms, self.subject.builder, self.subject.every
        if self.subject.clock.usable.sum() < 2:
            warnings.warn(
                "the trajectory has one frame: its spacing in time cannot be checked and its velocities are taken as "
                "zero; a forecast from two frames one stride apart is better",
                stacklevel=2,
            )
        super().__init__(self.atoms.universe.trajectory, verbose=verbose)
        self.results = Awaited()
        self.filename = None if filename is None else target_of(filename, with_input=with_input, substeps=substeps)
        self.with_input, self.force, self.resume = with_input, force, resume
        self.on_unphysical = check_unphysical(on_unphysical, samples)
        self.streaming, self.stop_when, self.when_chosen = False, bool, bool  # bool() is False, and can be pickled

    def _use(self, engine: Engine) -> None:
        """Let it forecast: what it cannot give is refused."""
        engine.check(self.horizon, self.substeps)
        if isinstance(engine, ModelEngine):
            self._check_device()
        if self._asked_samples is not None and not engine.draws:
            raise cannot_draw(engine.name)
        self.engine = engine
        self.samples = None if self.mean or not engine.draws else self._asked_samples or 1

    def _check_device(self) -> None:
        from egno_md.forecast.device import check_precision, resolve_device

        check_precision(self.precision, resolve_device(self.device))

    def run(self, start=None, stop=None, step=None, frames=None, verbose=None, **kwargs) -> EGNOSurrogate:
        """Forecast from the frames chosen as in every MDAnalysis analysis; from the last one without arguments.

        Parameters
        ----------
        start, stop, step : int, optional
            Slice of start frames.
        frames : array-like, optional
            Start frames, below zero from the end, or a mask of the trajectory; instead of the slice.
        verbose : bool, optional
            Instead of that of the constructor.

        Returns
        -------
        EGNOSurrogate
            Itself, with `results` filled. The trajectory is left at the frame it was at.

        Raises
        ------
        UsageError
            There is no such frame, or what is given says none; the others as for the class.
        """
        if start is stop is step is frames is None:
            frames = -1 if self.model is not None else self.subject.end
        self._verbose = self._verbose if verbose is None else verbose
        # The numbers that were asked for count: some readers of one frame say that it is frame -1.
        self._asked = start_frames(self._trajectory.n_frames, frames, start, stop, step)
        self._next: int | None = None
        before = max(self._trajectory.frame, 0)
        try:
            # Its bar counts the starts, which are read in no time; the frames are what takes long.
            return super().run(frames=self._asked, verbose=False, **kwargs)
        except EGNOError:
            raise
        except Exception as error:
            if self._next is None or self._next >= len(self._asked):
                raise
            raise unreadable(self._trajectory, int(self._asked[self._next]), error) from error
        finally:
            self._trajectory[before]

    def _prepare(self) -> None:
        if not self._is_streamed():  # which is not held
            check_room(self.n_frames, self._asked_samples or 1, self.horizon, len(self.atoms))
        self.results.hindcast = self._hindcast
        if self.filename is not None:  # before the work, not after it
            for frame in self._asked:
                for target in self._targets(self.filename, int(frame)):
                    require_writable(
                        target,
                        streamed=self._is_streamed(),
                        resume=self.resume,
                        force=self.force,
                        inputs=input_files(self.atoms.universe),
                    )
        if self.engine is None:
            self._choose()
        self.results.frames = np.empty(self.n_frames, int)
        self._history: list[np.ndarray] = []
        self._boxes: list[np.ndarray | None] = []
        self.start_times = np.empty(self.n_frames)
        self._seen: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        self._next = 0
        self._odd, self._relaxation, self.reverts = False, None, False

    def _choose(self) -> None:
        """Look at the run, and let the best of its forecasts forecast."""
        with Progress("reading", "frames", shown=self._verbose) as bar:
            material = Material.of(self.subject, -(-self.horizon // self.substeps), progress=bar.update)
        self.decisions += material.said
        with Progress("hindcast", "forecasts", shown=self._verbose) as bar:
            engine, hindcast, said = choose_engine(
                material,
                self._learned(material),
                only=self._free,
                drawing=self._asked_samples is not None,
                as_mean=self.mean,
                seed=self.seed,
                progress=bar.update,
            )
        self.results.hindcast = self._hindcast = hindcast
        self.decisions += said
        if isinstance(engine, ModelEngine):
            self.model, self.builder = engine.model, engine.builder
            self.subject = dataclasses.replace(self.subject, builder=self.builder, window=self.model.window)
        self._use(engine)

    def _learned(self, material: Material) -> Learned | None:
        """What learns from the run, where that was asked for."""
        if not self.adapt:
            return None
        how = {
            "beside": self.filename,
            "seed": self.seed,
            "device": self.device,
            "progress": self._verbose and watched(),
        }
        return Learned(material, self._select, self.adapt, self._asked, **how)

    def _single_frame(self) -> None:
        i, self._next = self._frame_index, None  # what is raised from here on is not the reader's
        frame = int(self._asked[i])
        self.results.frames[i] = self.frames[i] = frame
        self.start_times[i] = self.times[i] = self.subject.clock.times[frame]
        if isinstance(self.engine, ModelEngine):
            (past,), (box,) = self.subject.read([frame], self._seen)
        else:
            past, box = self.subject.lead(frame, PAST)
        self._history.append(past)
        self._boxes.append(box)
        self.builder.check_whole(past[-1], box, frame=frame)
        odd = check_start(self.builder.molecule, past, box, stride_ps=self.engine.stride_ps or None, frame=frame)
        for line in [] if self._odd else odd:  # those of the first start that is odd are enough
            warnings.warn(line, stacklevel=2)
        self._odd |= bool(odd)
        self._next = i + 1

    def _is_streamed(self) -> bool:
        return (
            self.filename is not None
            and self.n_frames == 1
            and (self._asked_samples or 1) == 1
            and is_streamed(self.filename, self.horizon, len(self.atoms))
        )

    def _conclude(self) -> None:
        if self.on_unphysical != "warn" and self.n_frames > 1:
            raise UsageError(f"on_unphysical={self.on_unphysical!r} takes one start frame: each would end elsewhere")
        if self._is_streamed():
            self._stream()
            return
        results = self.results
        starts = np.stack([past[-1] for past in self._history]) if self._history else np.empty((0, len(self.atoms), 3))
        found = self._collected()
        results.ensemble = None if self.samples is None else found  # (n_starts, K, horizon, N, 3)
        results.positions = found if self.samples is None else found[:, 0]  # (n_starts, horizon, N, 3)
        results.spread = None if self.samples is None else member_spread(found, starts)
        offsets = self.engine.offsets(self.horizon, self.substeps)  # (horizon,)
        if self.on_unphysical != "warn" and self.n_frames:
            first = self._checked(0).tally.first
            if not first:
                raise unphysical_start(self._checked(0, 1).tally)
            results.checks = [self._checked(0, first + 1)]
            results.positions, offsets = results.positions[:, :first], offsets[:first]
            if self.samples is not None:
                results.ensemble = results.ensemble[:, :, :first]
        else:
            results.checks = [self._checked(i) for i in range(self.n_frames)]
        results.times = self.start_times[:, None] + offsets  # (n_starts, horizon)
        self._compare(offsets / self.engine.stride_ps)
        self._measure()
        self._follow()
        results.universe = self._in_memory()
        results.files = []
        if self.filename is not None:
            results.files = self.write(self.filename, with_input=self.with_input, force=self.force)

    def _forecasters(self):
        """Rows of starts, and who forecasts from them."""
        options = {}
        if isinstance(self.engine, ModelEngine):
            options = {"device": self.device, "precision": self.precision, "max_memory": self.max_memory}
        starts = self.results.frames.tolist()
        for rows, forecaster in self.engine.forecasters(starts, self.horizon, self.substeps, **options):
            if self.on_unphysical == "relax":
                forecaster, self._relaxation = relaxing(forecaster, *self._physical(0))
            self.reverts |= forecaster.reversion is not None
            yield rows, forecaster

    def _streams(self, rows) -> Streams | None:
        """Random numbers of the futures from some starts."""
        return None if self.samples is None else Streams.of(self.seed, self.results.frames[rows], self.samples)

    def _collected(self) -> np.ndarray:
        """All predicted frames (n_starts, K, horizon, N, 3), without members (n_starts, horizon, N, 3)."""
        members = self.samples or 1
        out = np.empty((self.n_frames, members, self.horizon, len(self.atoms), 3), np.float32)
        total = self.n_frames * members * self.horizon
        with Progress("forecast", "frames", total, shown=self._verbose) as bar:
            for rows, forecaster in self._forecasters():
                lengths = np.array([len(self._history[row]) for row in rows])
                for length in np.unique(lengths):  # starts near the beginning have less of a past
                    some = rows[lengths == length]
                    past = np.stack([self._history[row] for row in some])  # (S, P, N, 3)
                    out[some] = forecaster.collect(
                        past,
                        self.horizon,
                        members,
                        self._streams(some),
                        boxes=[self._boxes[row] for row in some],
                        progress=lambda count: bar.update(count * members),
                    )
        return out if self.samples is not None else out[:, 0]

    def _checked(self, start: int, stop: int | None = None) -> PhysicalChecks:
        """Of the predicted frames from one start, up to `stop`; of several members those of all of them."""
        frames = self.results.positions[start, :stop]
        if self.samples is not None and self.samples > 1:
            frames = self.results.ensemble[start].reshape(-1, *frames.shape[1:])  # (K * horizon, N, 3)
        check = self._physical(start)[-1] if self._relaxation is None else self._relaxation.checked
        return check(frames)

    def _physical(self, start: int):
        """A start frame (N, 3), its bonds, and what checks the frames (F, N, 3) that are predicted from it."""
        last, builder = self._history[start][-1], self.builder
        # The box of one structure may be a crystal's, in which other molecules than its images are the neighbours.
        box = self._boxes[start] if self.subject.clock.usable.sum() > 1 else None
        about = {"boxes": box, "molecule": builder.molecule, "limits": self.engine.limits(last)}
        return last, builder.bonds, functools.partial(check_frames, reference=last, bonds=builder.bonds, **about)

    def _stream(self) -> None:
        """Forecast into the file, frame by frame, and fill the results from there."""
        results, target = self.results, self.filename
        topology, box = target.with_suffix(".pdb"), self._boxes[0]
        offsets = self.engine.offsets(self.horizon, self.substeps)  # (horizon,)
        results.times = self.start_times[:, None] + offsets  # (1, horizon)
        numbers = self._input_frames(int(results.frames[0])) if self.with_input else []
        run_times = self.subject.clock.times[numbers]
        stream = FrameStream(
            target,
            len(self.atoms),
            dt=self.spacing,
            start_time=float(run_times[0] if numbers else results.times[0, 0]),
            settings=settings_of(
                self.subject,
                self._history[0],
                box,
                {"sha256": self.engine.fingerprint},
                # Who forecasts frames that the run has may not know them: another horizon, other frames.
                **(
                    {}
                    if results.frames[0] == np.flatnonzero(self.subject.clock.usable)[-1]
                    else {"horizon": self.horizon}
                ),
                substeps=self.substeps,
                every=self.every,
                with_input=self.with_input,
                start_frame=int(results.frames[0]),
                atoms=len(self.atoms),
                **self.engine.settings(self.device, self.precision),
                **({} if self.samples is None else {"seed": self.seed}),
            ),
        )
        ((_, forecaster),) = self._forecasters()

        def run_frames():
            for k in range(stream.n_frames, len(numbers), CHUNK):
                chosen = slice(k, min(k + CHUNK, len(numbers)))
                frames, boxes = self.subject.frames(numbers[chosen])
                yield frames, boxes if box is not None else [None] * len(frames), run_times[chosen]

        def write_first(frame: np.ndarray, cell: np.ndarray | None) -> None:
            write_topology(topology, self.atoms, frame, cell, recentre=True)

        if self.resume and stream.record.exists():
            stream.resume(len(numbers) + self.horizon)
        else:
            stream.start()
        self.when_chosen()
        self.streaming = True
        try:
            done = max(0, stream.n_frames - len(numbers))  # of a forecast that is gone on with
            with Progress("forecast", "frames", self.horizon, done, shown=self._verbose) as bar:
                tally = write_chain(
                    stream,
                    forecaster,
                    self._history[0][None],
                    results.times[0],
                    generator=self._streams([0]),
                    box=box,
                    before=run_frames(),
                    n_before=len(numbers),
                    check=self._physical(0)[-1],
                    stop_unphysical=self.on_unphysical != "warn",
                    relaxation=self._relaxation,
                    began=write_first,
                    stop_when=self.stop_when,
                    progress=bar.update,
                )
        finally:
            self.streaming = False
        results.universe = stored_universe(self.atoms, target)
        results.positions = StoredFrames(results.universe, len(numbers))
        results.ensemble = results.spread = None  # of one future there is none, and it may be too long to hold
        results.checks, results.files = [tally], [target, topology]
        kept = results.positions.shape[1]
        results.times, offsets = results.times[:, :kept], offsets[:kept]
        self._measure()
        self._compare(offsets / self.engine.stride_ps)
        self._follow()

    def plot(self, start: int | None = None):
        """Pictures of the forecast from one of the starts, a matplotlib figure; see :func:`egno_md.looking.plot`."""
        from .looking import plot

        return plot(self, start)

    @property
    def spacing(self) -> float:
        """Time between two predicted frames in ps."""
        return float(self.engine.offsets(1, self.substeps)[0])
