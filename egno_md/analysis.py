"""The forecaster as an MDAnalysis analysis."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from MDAnalysis import AtomGroup, Universe
from MDAnalysis.analysis.base import AnalysisBase
from tqdm import tqdm

from egno_md.files import fingerprint
from egno_md.forecast.chain import ModelForecaster, check_request, check_samples, forecast, forecast_times
from egno_md.forecast.device import check_precision, resolve_device
from egno_md.forecast.generative import draws
from egno_md.forecast.long import unphysical_start, write_chain
from egno_md.forecast.model import Model, load_model
from egno_md.forecast.streams import check_seed, member_spread
from egno_md.forecast.subject import Subject
from egno_md.molecule.checks import PhysicalChecks, check_frames
from egno_md.molecule.geometry import rmsd, superposed_rmsd
from egno_md.molecule.possible import check_start
from egno_md.trajectory.clock import unreadable
from egno_md.trajectory.mdtraj import from_mdtraj, to_mdtraj
from egno_md.trajectory.stream import FrameStream, StoredFrames, is_streamed, record_path
from egno_md.trajectory.universe import in_memory_universe, input_files, stored_universe
from egno_md.trajectory.writer import require_targets, write_forecast, write_topology

from .errors import DataError, EGNOError, OutputError, UsageError

#: Frames that are read at a time where there may be many.
CHUNK = 64


class EGNOSurrogate(AnalysisBase):
    """Forecast the frames that follow each analysed frame with an equivariant graph neural operator.

    Every analysed frame is a starting state. Without arguments :meth:`run` starts from the last frame, which is
    what extends a run.

    Parameters
    ----------
    universe_or_atomgroup : Universe, AtomGroup or mdtraj.Trajectory
        Where the starting states come from. Of an AtomGroup the atoms of the model's selection are taken.
    model : str, path-like or Model, optional
        Name of a bundled model, a checkpoint, or a loaded model; the default is made for the C-alpha atoms of
        proteins and frames 1 ps apart.
    select : str, optional
        MDAnalysis selection of the atoms to forecast; by default the model's own. It can narrow the model's
        selection (one chain of several), not leave it.
    horizon : int
        Number of frames to predict. Past the model's window the last predicted frames start the next window.
    substeps : int
        Predicted frames per stride of the model: 2 gives the path at half the spacing.
    samples : int, optional
        K futures to draw from each start, with a model that draws; 1 with such a model when None. Others know the mean
        of all futures alone, which is the forecast then.
    seed : int
        Of what is drawn: the same seed and start frame give the same futures.
    every : int
        Trajectory frames per stride of the model, for a trajectory that was saved more finely than the model's
        stride. Start frames are still counted in frames of the trajectory.
    filename : str or path-like, optional
        Write the forecast there (DCD or XTC) with a PDB topology of the same stem beside it. With several starts
        the frame number is added to the stem, with several samples the member, ``out_1.dcd``, ``out_2.dcd`` ...; the
        B-factors of the topology are then the spread. A long forecast from one start, if it is not drawn, is streamed:
        written frame by frame, in memory that does not grow, and `results` are read from the file.
    resume : bool
        Go on with a streamed forecast in `filename` that was cut short, from the frame where it ends, to the same file
        as without the interruption; begin it where there is nothing yet.
    with_input : bool
        Begin the written file with the trajectory up to the start, so that it shows the run and its extension.
    force : bool
        Replace files that exist. The input is never replaced.
    on_unphysical : {"warn", "stop"}
        What a frame that fails the checks does: it is kept and said in `results.checks`, or the forecast (from one
        start) ends before it, and has fewer frames than `horizon`.
    device : str
        ``"auto"``: the GPU where there is one, else the CPU.
    precision : {"float32", "tf32", "bf16"}
        What the products in the network are computed in; "tf32" needs a GPU.
    max_memory : int or "auto"
        Bound of the temporaries in bytes.
    verbose : bool
        Show progress bars.

    Attributes
    ----------
    results.positions : ndarray, shape (n_starts, horizon, n_atoms, 3)
        Predicted positions in Angstrom, in the frame of reference of the trajectory. Of a streamed forecast they are
        read when they are asked for, and ``np.asarray`` reads all. Of futures that are drawn it is the first member of
        each start, as are ``rmsd``, ``moved`` and ``universe``.
    results.ensemble : ndarray, shape (n_starts, K, horizon, n_atoms, 3), or None
        All members in Angstrom; None where nothing is drawn.
    results.spread : ndarray, shape (n_starts, n_atoms), or None
        How far the members are from their mean in Angstrom: the root of the mean square over members and frames, each
        frame superposed on the start; NaN of one member.
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
    results.moved : ndarray, shape (n_starts, horizon)
        RMSD in Angstrom between the predicted frame and the start frame.
    results.checks : list of PhysicalChecks
        Whether the predicted frames are physical, one entry per start, for the frames of all members one after the
        other; of a streamed forecast counts alone, as
        :class:`~egno_md.molecule.checks.Tally`.
    results.universe : Universe or None
        The forecast in memory, with topology, times and box; the starts one after the other. None without a start. Of
        a streamed forecast it is on the file, all of it.
    results.files : list of Path
        What was written.
    atoms : AtomGroup
        The atoms that are forecast.
    start_times : ndarray, shape (n_starts,)
        Times of the start frames in ps.
    model : Model
    streaming : bool
        A streamed forecast is being written.
    stop_when : callable
        Asked after each window of a streamed forecast; True ends it by a ``StoppedError``, to be gone on with.

    Raises
    ------
    UsageError
        An argument that cannot be right, such as a horizon below 1.
    DataError
        An empty or dynamic selection, molecules broken by the box, positions that are not finite.
    ModelError
        The model does not fit the trajectory's spacing, the selection or the atoms.
    OutputError
        A file exists or cannot be written.

    Notes
    -----
    The velocity that the model sees is the displacement over the last stride. Frame 0 has no past: its velocity is
    taken as zero, with one warning.

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
        model: str | os.PathLike | Model | None = None,
        select: str | None = None,
        horizon: int = 8,
        *,
        substeps: int = 1,
        samples: int | None = None,
        seed: int = 0,
        every: int = 1,
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
        if type(universe_or_atomgroup).__module__.partition(".")[0] == "mdtraj":
            universe_or_atomgroup = from_mdtraj(universe_or_atomgroup)
        if not isinstance(universe_or_atomgroup, (Universe, AtomGroup)):
            raise UsageError(
                "expected an MDAnalysis Universe or AtomGroup or an mdtraj Trajectory, found "
                f"{type(universe_or_atomgroup).__name__}; load files with mda.Universe(topology, trajectory)"
            )
        self.model = load_model(model)
        check_request(self.model, horizon, substeps)
        check_samples(self.model, samples)
        self.samples = 1 if samples is None and draws(self.model) else samples
        self.seed = check_seed(seed)
        check_precision(precision, resolve_device(device))
        self.horizon, self.substeps = int(horizon), int(substeps)
        self.subject = Subject.of(
            universe_or_atomgroup,
            self.model.graph,
            self.model.window,
            select=select,
            every=every,
            who=f"model {self.model.name!r}",
        )
        self.atoms, self.builder, self.every = self.subject.atoms, self.subject.builder, self.subject.every
        if self.subject.clock.usable.sum() < 2:
            warnings.warn(
                "the trajectory has one frame: its spacing in time cannot be checked and its velocities are taken as "
                "zero; a forecast from two frames one stride apart is better",
                stacklevel=2,
            )
        super().__init__(self.atoms.universe.trajectory, verbose=verbose)
        self.filename = None if filename is None else Path(filename)
        self.with_input, self.force, self.resume = with_input, force, resume
        if on_unphysical not in ("warn", "stop"):
            raise UsageError(f"on_unphysical must be 'warn' or 'stop', found {on_unphysical!r}")
        if on_unphysical == "stop" and (self.samples or 1) > 1:
            raise UsageError("on_unphysical='stop' takes one sample, for every future would end elsewhere")
        self.on_unphysical = on_unphysical
        self.streaming, self.stop_when = False, lambda: False
        self.device, self.precision, self.max_memory = device, precision, max_memory

    def run(self, start=None, stop=None, step=None, frames=None, verbose=None, **kwargs) -> EGNOSurrogate:
        """Forecast from the frames chosen as in every MDAnalysis analysis; from the last one without arguments.

        Parameters
        ----------
        start, stop, step : int, optional
            Slice of start frames.
        frames : array-like, optional
            Start frames, or a mask; instead of the slice.
        verbose : bool, optional
            Show progress bars.

        Returns
        -------
        EGNOSurrogate
            Itself, with `results` filled. The trajectory is left at the frame it was at.
        """
        n_frames = self._trajectory.n_frames
        if start is stop is step is frames is None:
            frames = [n_frames - 1]
        elif frames is None:
            frames = np.arange(*self._trajectory.check_slice_indices(start, stop, step))
            start = stop = step = None
        if verbose is not None:
            self._verbose = verbose
        # The numbers that were asked for count: some readers of one frame say that it is frame -1.
        chosen = np.asarray(frames)
        self._asked = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(int) % n_frames
        self._next: int | None = None
        before = max(self._trajectory.frame, 0)
        try:
            return super().run(start, stop, step, self._asked, verbose, **kwargs)
        except EGNOError:
            raise
        except Exception as error:
            if self._next is None or self._next >= len(self._asked):
                raise
            raise unreadable(self._trajectory, int(self._asked[self._next]), error) from error
        finally:
            self._trajectory[before]

    def _prepare(self) -> None:
        self.results.frames = np.empty(self.n_frames, int)
        self._history = np.empty((self.n_frames, self.subject.back + 1, len(self.atoms), 3), np.float32)
        self._boxes: list[np.ndarray | None] = []
        self.start_times = np.empty(self.n_frames)
        self._seen: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        self._next = 0
        self._odd = False

    def _single_frame(self) -> None:
        i, self._next = self._frame_index, None  # what is raised from here on is not the reader's
        frame = int(self._asked[i])
        self.results.frames[i] = self.frames[i] = frame
        self.start_times[i] = self.times[i] = self.subject.clock.times[frame]
        if self.filename is not None:  # before the work, not after it
            for target in self._targets(self.filename, frame):
                self._require_targets(target)
        self._history[i : i + 1], boxes = self.subject.read([frame], self._seen)
        self._boxes += boxes
        self.builder.check_whole(self._history[i, -1], boxes[0], frame=frame)
        stride = self.model.window.stride_ps
        odd = check_start(self.builder.molecule, self._history[i], boxes[0], stride_ps=stride, frame=frame)
        for line in [] if self._odd else odd:  # those of the first start that is odd are enough
            warnings.warn(line, stacklevel=2)
        self._odd |= bool(odd)
        self._next = i + 1

    def _require_targets(self, target: Path) -> None:
        """Refuse a file that may not be written, or a resumption where nothing is to be resumed."""
        streamed, record = self._is_streamed(), record_path(target)
        if self.resume and not streamed:
            raise UsageError(
                "resume (--resume): nothing to go on with, for a forecast of so few frames, or from several starts, is "
                "written when it is whole; leave it out"
            )
        begun = streamed and record.exists()
        # Where a start was cut short before its record was there, nothing was written yet.
        fresh = not (target.exists() and target.stat().st_size)
        if self.resume and not begun and not fresh:
            raise OutputError(
                f"{target} exists, but not {record}, from which it would be gone on with: it is complete, or was not "
                "made by a long forecast; choose another name, or begin anew with --force (force=True)"
            )
        try:
            inputs = input_files(self.atoms.universe)
            require_targets(target, force=self.force or self.resume, inputs=inputs)
        except OutputError as error:
            if begun and target.exists():
                raise OutputError(f"{error}; or go on with it: --resume (resume=True)") from error
            raise

    def _is_streamed(self) -> bool:
        return (
            self.filename is not None
            and self.n_frames == 1
            and self.samples is None
            and is_streamed(self.filename, self.horizon, len(self.atoms))
        )

    def _conclude(self) -> None:
        if self.on_unphysical == "stop" and self.n_frames > 1:
            raise UsageError("on_unphysical='stop' takes one start frame, for every forecast would end elsewhere")
        if self._is_streamed():
            self._stream()
            return
        results = self.results
        bar = tqdm(total=self.n_frames * self.horizon, desc="forecast", unit="frame", disable=not self._verbose)
        with bar:
            found = forecast(
                self.model,
                self.builder,
                self._history,
                self.horizon,
                boxes=self._boxes,
                substeps=self.substeps,
                samples=self.samples,
                seed=self.seed,
                numbers=results.frames.tolist(),
                device=self.device,
                precision=self.precision,
                max_memory=self.max_memory,
                progress=bar.update,
            )
        results.ensemble = None if self.samples is None else found  # (n_starts, K, horizon, N, 3)
        results.positions = found if self.samples is None else found[:, 0]  # (n_starts, horizon, N, 3)
        results.spread = None if self.samples is None else member_spread(found, self._history[:, -1])
        offsets = forecast_times(self.model, self.horizon, self.substeps)  # (horizon,)
        if self.on_unphysical == "stop" and self.n_frames:
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
        self._compare(offsets / self.model.window.stride_ps)
        results.moved = rmsd(results.positions, self._history[:, -1:])  # (n_starts, horizon)
        results.universe = self._in_memory()
        results.files = []
        if self.filename is not None:
            results.files = self.write(self.filename, with_input=self.with_input, force=self.force)

    def _checked(self, start: int, stop: int | None = None) -> PhysicalChecks:
        """Of the predicted frames from one start, up to `stop`; of several members those of all of them."""
        molecule, box = self.builder.molecule, self._boxes[start]
        frames, last = self.results.positions[start, :stop], self._history[start, -1]
        if self.samples is not None and self.samples > 1:
            frames = self.results.ensemble[start].reshape(-1, *frames.shape[1:])  # (K * horizon, N, 3)
        return check_frames(frames, last, self.builder.bonds, boxes=box, molecule=molecule)

    def _stream(self) -> None:
        """Forecast into the file, frame by frame, and fill the results from there."""
        results, model, target = self.results, self.model, self.filename
        results.ensemble = results.spread = None
        topology, box = target.with_suffix(".pdb"), self._boxes[0]
        offsets = forecast_times(model, self.horizon, self.substeps)  # (horizon,)
        results.times = self.start_times[:, None] + offsets  # (1, horizon)
        numbers = self.subject.before(int(results.frames[0])) if self.with_input else []
        run_times = self.subject.clock.times[numbers]
        stream = FrameStream(
            target,
            len(self.atoms),
            dt=self.spacing,
            start_time=float(run_times[0] if numbers else results.times[0, 0]),
            settings=self._settings(),
        )
        forecaster = ModelForecaster(
            model,
            self.builder,
            substeps=self.substeps,
            device=self.device,
            precision=self.precision,
            max_memory=self.max_memory,
            n_windows=-(-self.horizon // (model.window.n_times * self.substeps)),
        )

        def check(frames: np.ndarray):
            return check_frames(
                frames, self._history[0, -1], self.builder.bonds, boxes=box, molecule=self.builder.molecule
            ).tally

        def run_frames():
            for k in range(stream.n_frames, len(numbers), CHUNK):
                chosen = slice(k, min(k + CHUNK, len(numbers)))
                frames, boxes = self.subject.frames(numbers[chosen])
                yield frames, boxes if box is not None else [None] * len(frames), run_times[chosen]

        def write_first(frame: np.ndarray, cell: np.ndarray | None) -> None:
            write_topology(topology, self.atoms, frame, cell, recentre=True)

        if self.resume and stream.record.exists():
            stream.resume()
        else:
            stream.start()
        bar = tqdm(total=self.horizon, desc="forecast", unit="frame", disable=not self._verbose)
        self.streaming = True
        try:
            with bar:
                tally = write_chain(
                    stream,
                    forecaster,
                    self._history,
                    results.times[0],
                    box=box,
                    before=run_frames(),
                    n_before=len(numbers),
                    check=check,
                    stop_unphysical=self.on_unphysical == "stop",
                    began=write_first,
                    stop_when=self.stop_when,
                    progress=bar.update,
                )
        finally:
            self.streaming = False
        results.universe = stored_universe(self.atoms, target)
        results.positions = StoredFrames(results.universe, len(numbers))
        results.checks, results.files = [tally], [target, topology]
        kept = results.positions.shape[1]
        results.times, offsets = results.times[:, :kept], offsets[:kept]
        results.moved = np.empty((1, kept))
        for k in range(0, kept, CHUNK):
            results.moved[0, k : k + CHUNK] = rmsd(results.positions[0, k : k + CHUNK], self._history[0, -1])
        self._compare(offsets / model.window.stride_ps)

    def _settings(self) -> dict[str, dict[str, Any]]:
        """All that the bytes of a streamed forecast depend on."""
        start = hashlib.sha256(self._history.tobytes())
        start.update(b"" if self._boxes[0] is None else self._boxes[0].tobytes())
        return {
            "settings": {
                "horizon": self.horizon,
                "substeps": self.substeps,
                "every": self.every,
                "with_input": self.with_input,
                "device": resolve_device(self.device).type,
                "precision": self.precision,
                "start_frame": int(self.results.frames[0]),
                "atoms": len(self.atoms),
            },
            "model": {"sha256": self.model.fingerprint},
            "input": {
                "files": [fingerprint(name) for name in input_files(self.atoms.universe) if os.path.isfile(name)],
                "start": start.hexdigest(),
                "molecule": self.builder.identity,
                "indices": hashlib.sha256(self.atoms.indices.astype("<i8").tobytes()).hexdigest(),
            },
        }

    def _compare(self, strides: np.ndarray) -> None:
        """Fill the four kinds of `rmsd` where the trajectory has the predicted frame; reads each frame once."""
        results, shape = self.results, self.results.times.shape
        for name in ("rmsd", "rmsd_static", "rmsd_superposed", "rmsd_static_superposed"):
            results[name] = np.full(shape, np.nan)
        wanted: dict[int, list[tuple[int, int]]] = {}
        for i, frame in enumerate(self.results.frames):
            for k, ahead in enumerate(strides * self.every):
                target = self.subject.clock.shifted(frame, ahead)
                if target is not None:
                    wanted.setdefault(target, []).append((i, k))
        for target in sorted(wanted):
            try:
                true = self.subject.positions(target)  # (N, 3)
            except DataError as error:  # the forecast itself does not need the frame
                warnings.warn(f"not compared: {error}", stacklevel=2)
                continue
            for i, k in wanted[target]:
                for name, frame in (("rmsd", results.positions[i, k]), ("rmsd_static", self._history[i, -1])):
                    results[name][i, k] = rmsd(frame, true)
                    results[f"{name}_superposed"][i, k] = superposed_rmsd(frame, true)

    def _in_memory(self) -> Universe | None:
        if not self.n_frames:
            return None
        frames = self.results.positions.reshape(-1, len(self.atoms), 3)  # (n_starts * horizon, N, 3)
        return in_memory_universe(self.atoms, frames, self.results.times.ravel(), boxes=self._box_array(self._boxes))

    def _box_array(self, boxes: list[np.ndarray | None]) -> np.ndarray | None:
        """One box per predicted frame, (n * horizon, 6)."""
        if any(box is None for box in boxes):
            return None
        return np.repeat(np.asarray(boxes), self.results.times.shape[1], axis=0)

    def to_mdtraj(self):
        """The forecast as an ``mdtraj.Trajectory`` (nm, ps)."""
        self._need_results()
        return to_mdtraj(self.results.universe)

    def plot(self, start: int = 0):
        """Pictures of the forecast from one of the starts, a matplotlib figure; see :func:`egno_md.looking.plot`."""
        from .looking import plot

        return plot(self, start)

    def write(self, filename: str | os.PathLike, *, with_input: bool = False, force: bool = False) -> list[Path]:
        """Write the forecast as DCD or XTC with a PDB topology beside it.

        Parameters
        ----------
        filename : str or path-like
            Target; with several starts the frame number is added to its stem, with several members their number.
        with_input : bool
            Begin with the trajectory's frames up to the start, one per stride.
        force : bool
            Replace files that exist.

        Returns
        -------
        list of Path
            The files written: trajectory and topology of every start and member.
        """
        self._need_results()
        filename = Path(filename)
        files: list[Path] = []
        for i, frame in enumerate(self.results.frames):
            several = self.results.ensemble is not None and self.results.ensemble.shape[1] > 1
            members = self.results.ensemble[i] if several else self.results.positions[i : i + 1]
            for target, positions in zip(self._targets(filename, frame), members, strict=True):
                times, boxes = self.results.times[i], self._box_array([self._boxes[i]])
                if with_input:
                    positions, times, boxes = self._with_input(int(frame), positions, times, boxes)
                files += write_forecast(
                    target,
                    self.atoms,
                    positions,
                    times,
                    boxes=boxes,
                    dt=self.spacing,
                    force=force,
                    recentre=True,
                    inputs=input_files(self.atoms.universe),
                    b_factors=self.results.spread[i] if several else None,
                )
        return files

    def _targets(self, filename: Path, frame: int) -> list[Path]:
        """The file of every member."""
        if self.n_frames > 1:
            filename = filename.with_stem(f"{filename.stem}_{frame:06d}")
        if self.samples is None or self.samples == 1:
            return [filename]
        return [filename.with_stem(f"{filename.stem}_{k + 1}") for k in range(self.samples)]

    def _with_input(self, frame: int, positions, times, boxes):
        """The run up to `frame`, one frame per stride, and the forecast."""
        before = max(self._trajectory.frame, 0)
        numbers = self.subject.before(frame)
        try:
            run, run_boxes = self.subject.frames(numbers)
        finally:
            self._trajectory[before]
        run_times = self.subject.clock.times[numbers]
        all_boxes = None if boxes is None or any(b is None for b in run_boxes) else np.concatenate([run_boxes, boxes])
        return np.concatenate([run, positions]), np.concatenate([run_times, times]), all_boxes

    @property
    def spacing(self) -> float:
        """Time between two predicted frames in ps."""
        window = self.model.window
        return window.stride_ps * window.targets[0] / self.substeps

    def _need_results(self) -> None:
        if "universe" not in self.results or self.results.universe is None:
            raise UsageError("there is no forecast yet: call run() first, with at least one start frame")
