"""From files to windows, split so that no frame is shared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from ..errors import DataError, UsageError
from ..evaluation.score import Part
from ..forecast.forecasters import Known, PathRegression
from ..forecast.subject import Subject
from ..graph.builder import GraphBuilder
from ..graph.windows import MEMORY_LIMIT, Run, TrajectoryWindows, segments, split_blocks, window_starts
from ..molecule.atoms import select_atoms
from ..molecule.default import taken_instead
from ..molecule.local import LocalGeometry
from ..specs import GraphSpec, Recipe, Spec, WindowSpec
from ..trajectory.clock import Clock, same_spacing
from ..trajectory.universe import open_sources

#: Frames of a run, at most, that tell it from others.
HASHED = 64


@dataclass(frozen=True)
class System:
    """Files of one molecular system.

    Attributes
    ----------
    topology : Path
    trajectories : tuple of Path
        Each is a run of its own, split by blocks of time into train, validation and test.
    hold_out : tuple of Path
        Runs that are kept for the test as a whole.
    name : str
    """

    topology: Path
    trajectories: tuple[Path, ...]
    hold_out: tuple[Path, ...] = ()
    name: str = "system"


@dataclass(frozen=True)
class Data:
    """Windows for a training, split.

    Attributes
    ----------
    train, validation : TrajectoryWindows
    test : list of Part, or TrajectoryWindows
        The windows of a registered data set are those of the paper's benchmarks: many short runs of many systems, for
        which there are no forecasts fitted to a run.
    geometry, regression : dict of str to LocalGeometry, PathRegression
        Of every molecule in the training part, by its builder's identity.
    record : dict
        Files, frames and split, for the provenance.
    """

    train: TrajectoryWindows
    validation: TrajectoryWindows
    test: list[Part] | TrajectoryWindows
    geometry: dict[str, LocalGeometry]
    regression: dict[str, PathRegression]
    record: dict[str, Any]


class FilesOptions(Spec):
    """Options of the data set "files".

    Attributes
    ----------
    systems : tuple of System
        ``topology``, ``trajectories``, ``hold_out`` and ``name`` of each.
    every : int, optional
        Frames per stride, to be checked against the times in the files where the window has a stride in ps.
    dt : float, optional
        Spacing of the frames in ps, where the headers are wrong.
    fractions : tuple of three float
        Shares of train, validation and test in every run; where runs are held out, the test's share goes to train.
    blocks : int
        See :func:`egno_md.graph.windows.split_blocks`.
    validation_windows : int
        Of more, evenly spread ones are used.
    """

    systems: tuple[System, ...] = ()
    every: int | None = Field(None, ge=1)
    dt: float | None = Field(None, gt=0)
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    blocks: int = Field(1, ge=1, le=100_000)
    validation_windows: int = Field(500, ge=1)

    @field_validator("fractions")
    @classmethod
    def _shares(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if not (min(shares) >= 0 and min(shares[:2]) > 0 and abs(sum(shares) - 1) <= 1e-6):
            raise ValueError(f"must be three shares that sum to 1, train and validation above 0; found {shares}")
        return shares


class Files:
    """Trajectories of some systems as the source of a training; each file is opened once, when it is first needed."""

    def __init__(self, options: FilesOptions) -> None:
        self.options = options

    def settings(self) -> dict[str, Any]:
        systems = []
        for system in self.options.systems:
            files = {
                key: [str(file.resolve()) for file in getattr(system, key)] for key in ("trajectories", "hold_out")
            }
            systems.append({"name": system.name, "topology": str(system.topology.resolve()), **files})
        # What `every` says is in the stride of the window already.
        return {
            "name": "files",
            **self.options.model_dump(mode="json", exclude={"systems", "every"}, exclude_none=True),
            "systems": systems,
        }

    @functools.cached_property
    def opened(self) -> list[list[tuple[Path, Any]]]:
        """Of each system its files in order, those that are held out last, with all atoms of each."""
        if not self.options.systems:
            raise UsageError("no files to train on: give TOPOLOGY and TRAJECTORY, or [[data.systems]] in the recipe")
        found = []
        for system in self.options.systems:
            files = [*system.trajectories, *system.hold_out]
            if not files:
                raise UsageError(f"system {system.name!r} has no trajectory: give at least one trajectory")
            found.append(list(zip(files, open_sources(system.topology, files, self.options.dt), strict=True)))
        return found

    def defaults(self, section: str, recipe: Recipe, preset: Mapping[str, Any]) -> Mapping[str, Any]:
        if section == "model" and recipe.preset != "paper":
            return {**preset, "prior": "auto"}
        if section != "graph":
            return preset
        select = recipe.graph.get("select", "ca")
        if select == "ca":
            return {"select": "ca", "edge_features": ("rbf", "hop", "chain")}
        graph = {"select": select, "node_features": ("speed", "element", "atom_name")}
        graph["edge_features"] = ("rbf", "hop", "bond")
        if "atom_names" not in recipe.graph and "atom_name" in recipe.graph.get("node_features", ["atom_name"]):
            names = {
                name for files in self.opened for _, atoms in files[:1] for name in select_atoms(atoms, select).names
            }
            graph["atom_names"] = tuple(sorted(map(str, names)))
        return graph

    def stride_ps(self) -> float:
        """Spacing of the frames of all files, times `every`, in ps.

        Raises
        ------
        DataError
            Two files differ; both are named.
        """
        spacing = None
        for files in self.opened:
            for file, atoms in files:
                spacing = same_spacing(spacing, (Clock.of(atoms.universe).spacing, str(file)))
        if spacing[0] <= 0:
            raise DataError(f"{spacing[1]} has one frame and says no spacing; training needs runs of many frames")
        return float(f"{spacing[0] * (self.options.every or 1):.6g}")  # times in DCD headers are off by rounding

    def load(
        self, graph: GraphSpec, window: WindowSpec, *, folder: Path | None = None, limit: int = MEMORY_LIMIT
    ) -> Data:
        """Read the runs and split their windows so that no frame is shared.

        Parameters
        ----------
        graph, window : GraphSpec, WindowSpec
        folder, limit
            See :meth:`egno_md.forecast.subject.Subject.runs`.

        Raises
        ------
        DataError
            Too few frames (the message says how many are needed), files that do not fit, or a selection of one atom.
        UsageError
            No run to train on.
        """
        options = self.options
        shares = options.fractions
        if any(system.hold_out for system in options.systems):
            shares = (shares[0] + shares[2], shares[1], 0.0)
        parts = [
            _SystemParts(system, window, shares, options.blocks).read(files, graph, options.every, folder, limit)
            for system, files in zip(options.systems, self.opened, strict=True)
        ]
        trained = [kept for part in parts for kept in part.kept if len(kept.train)]
        if not trained:
            raise UsageError("every trajectory is held out; none is left to train on")
        strided = [one for kept in trained for one in _at_strides(kept, window, shares, options.blocks)]
        thin = -(-sum(len(one.validation) for one in strided) // options.validation_windows)
        runs = [one.run for one in strided]
        known = [(part, part.known()) for part in parts]
        return Data(
            TrajectoryWindows(runs, window, [one.train for one in strided]),
            TrajectoryWindows(runs, window, [one.validation[::thin] for one in strided]),
            [test for part, free in known for test in part.test(free)],
            {name: found for part in parts for name, found in part.geometry().items()},
            {name: found for part, free in known for name, found in part.regression(free).items()},
            {
                "runs": [kept.entry for part in parts for kept in part.kept],
                "split": "blocks of time, no frame shared",
                "fractions": list(shares),
                "blocks": options.blocks,
            },
        )


@dataclass(frozen=True)
class _Kept:
    """A run, where windows of each part start in it, and what is written down of it."""

    run: Run
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    entry: dict[str, Any]


def _at_strides(kept: _Kept, window: WindowSpec, shares: Sequence[float], blocks: int) -> list[_Kept]:
    """A run at the strides of a model of several: each is about twice the one before, as far as the run is long enough.

    The blocks of the split are those of frames, so that none is shared between strides either.
    """
    if window.stride_range is None:
        return [kept]
    run = kept.run
    spacing = window.stride_ps / run.every
    least, most = window.stride_range
    count = 1 + int(np.ceil(np.log2(most / least) - 1e-6))
    found = []
    for every in np.unique(np.round(np.geomspace(least, most, count) / spacing)).astype(int):
        if every < 1 or not window.covers(every * spacing):
            continue
        try:
            parts = split_blocks(len(run.positions), window, every=int(every), fractions=shares, blocks=blocks)
        except DataError:
            break
        strided = dataclasses.replace(run, every=int(every), stride_ps=float(f"{every * spacing:.6g}"))
        found.append(_Kept(strided, parts[0], parts[1], parts[0][:0], kept.entry))
    if not found:
        raise DataError(f"{run.name} has no window at any stride of {least:g} to {most:g} ps: use a longer run")
    return found


@dataclass
class _SystemParts:
    """The runs of one system, split."""

    system: System
    window: WindowSpec
    shares: Sequence[float]
    blocks: int
    builder: GraphBuilder | None = None
    kept: list[_Kept] = field(default_factory=list)

    def read(
        self,
        files: Sequence[tuple[Path, Any]],
        graph: GraphSpec,
        every: int | None,
        folder: Path | None,
        limit: int,
    ) -> _SystemParts:
        for file, atoms in files:
            name = f"{self.system.name}-{file.name}"
            subject = Subject.of(
                atoms, graph, self.window, every=every, who="the training", name=name, builder=self.builder
            )
            self.builder = subject.builder
            if self.builder.n_atoms < 2:
                raise DataError(
                    f"{file}: the selection {graph.select!r} has 1 atom, which has no shape to learn: "
                    f"{taken_instead(atoms)}"
                )
            found = subject.runs(folder=folder, limit=limit)  # one but where frames are missing
            longest = max(len(run.positions) for run in found)
            for run in found:
                try:
                    self.kept.append(self._split(run, file))
                except DataError as error:
                    if len(run.positions) == longest:
                        raise  # not even the longest stretch of the file will do
                    warnings.warn(f"{run.name} is left out: {error}", UserWarning, stacklevel=2)
        return self

    def _split(self, run: Run, file: Path) -> _Kept:
        n = len(run.positions)
        entry = {"system": self.system.name, "file": file.name, "frames": n, "every": run.every}
        entry |= {"atoms": run.builder.n_atoms, "sha256": _sha256(run.positions)}
        if file in self.system.hold_out:
            starts = np.asarray(window_starts(n, self.window, run.every), int)
            if not len(starts):
                raise DataError(f"{file} has {n} frames, too few for a window of the test")
            return _Kept(run, starts[:0], starts[:0], starts, {**entry, "part": "test"})
        try:
            parts = split_blocks(n, self.window, every=run.every, fractions=self.shares, blocks=self.blocks)
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
        entry["part"] = "all" if self.shares[2] else "train, validation"
        if self.shares[2] and self.blocks == 1:
            entry["test_from"] = segments(parts[2], self.window, run.every)[0][0]
        return _Kept(run, *parts, entry)

    @property
    def _training(self) -> list[np.ndarray]:
        return [
            kept.run.positions[a:b] for kept in self.kept for a, b in segments(kept.train, self.window, kept.run.every)
        ]

    def known(self) -> Known:
        """What free forecasts are fitted to: the training part, or the first half of a system that is only tested."""
        seen = self._training or [kept.run.positions[: len(kept.run.positions) // 2] for kept in self.kept]
        return Known(seen, self.window.targets, self.kept[0].run.every)

    def test(self, known: Known) -> list[Part]:
        return [Part(kept.run, kept.test, known) for kept in self.kept if len(kept.test)]

    def geometry(self) -> dict[str, LocalGeometry]:
        training = self._training
        return {self.builder.identity: LocalGeometry.fit(training, self.builder.bonds)} if training else {}

    def regression(self, known: Known) -> dict[str, PathRegression]:
        if not self._training or self.window.velocity != "backward":  # it is for windows that know where they come from
            return {}
        return {self.builder.identity: PathRegression.fitted(known)}


def _sha256(positions: np.ndarray) -> str:
    """Of frames spread over a run (F, N, 3), the first twelve digits: who goes on with it has to have the same ones."""
    some = np.linspace(0, len(positions) - 1, min(len(positions), HASHED)).astype(int)
    return hashlib.sha256(np.ascontiguousarray(positions[some]).data).hexdigest()[:12]


def load_data(
    systems: Sequence[System],
    graph: GraphSpec,
    window: WindowSpec,
    *,
    folder: Path | None = None,
    limit: int = MEMORY_LIMIT,
    **options: Any,
) -> Data:
    """Read the runs of some systems and split their windows so that no frame is shared.

    Parameters
    ----------
    systems : sequence of System
    graph, window : GraphSpec, WindowSpec
    folder, limit
        See :meth:`egno_md.forecast.subject.Subject.runs`.
    **options
        ``fractions``, ``blocks``, ``every``, ``dt`` and ``validation_windows`` of
        :class:`egno_md.training.FilesOptions`.

    Raises
    ------
    DataError
        Too few frames (the message says how many are needed), or files that do not fit.
    """
    return Files(FilesOptions(systems=tuple(systems), **options)).load(graph, window, folder=folder, limit=limit)


def system_of_files(topology: Path, trajectories: Sequence[Path], hold_out: Sequence[Path] = ()) -> System:
    """One system; a file that is in both lists is held out.

    Raises
    ------
    UsageError
        No trajectory is left to train on.
    """
    held = {path.resolve() for path in hold_out}
    kept = tuple(path for path in trajectories if path.resolve() not in held)
    if not kept:
        raise UsageError("give at least one trajectory to train on beside those that are held out")
    return System(topology, kept, tuple(hold_out), topology.stem)
