"""From files to windows, split so that no frame is shared."""

from __future__ import annotations

import os
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..evaluation.score import Part
from ..forecast.forecasters import Known, PathRegression
from ..forecast.subject import Subject
from ..graph.builder import GraphBuilder
from ..graph.windows import MEMORY_LIMIT, Run, TrajectoryWindows, segments, split_blocks, window_starts
from ..molecule.atoms import select_atoms
from ..molecule.local import LocalGeometry
from ..specs import GraphSpec, WindowSpec
from ..trajectory.clock import Clock, same_spacing
from ..trajectory.universe import open_universe


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


def read_manifest(path: str | os.PathLike) -> list[System]:
    """Systems from a TOML file; file names are relative to it.

    Each system is a table ``[[system]]`` with ``topology`` and ``trajectories``, and, if wanted, ``hold_out`` (runs
    for the test) and ``name``.

    Raises
    ------
    DataError
        The file cannot be read, or holds something else.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"cannot read the manifest {path}: {error}") from error
    tables = content.pop("system", None)
    if content or not isinstance(tables, list) or not tables:
        raise DataError(f"the manifest {path} must hold tables [[system]] and nothing else; found {sorted(content)}")
    systems = []
    for k, table in enumerate(tables):
        known = {"topology", "trajectories", "hold_out", "name"}
        if set(table) - known or not {"topology", "trajectories"} <= set(table):
            raise DataError(
                f"system {k + 1} of {path} has the keys {sorted(table)}; topology and trajectories are needed, "
                "hold_out and name are known"
            )
        files = {}
        for key in ("trajectories", "hold_out"):
            names = table.get(key, [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise DataError(f"system {k + 1} of {path}: {key} must be a list of file names, found {names!r}")
            files[key] = tuple(path.parent / name for name in names)
        name = str(table.get("name", Path(table["topology"]).stem))
        systems.append(System(path.parent / table["topology"], **files, name=name))
    return systems


def default_graph(systems: Sequence[System], select: str, *, cutoff: float = 10.0) -> GraphSpec:
    """Graph and features for a selection: residues for C-alpha atoms, else elements and the atom names that occur."""
    if select == "ca":
        return GraphSpec(select=select, cutoff=cutoff, edge_features=("rbf", "hop", "chain"))
    names: set[str] = set()
    for system in systems:
        universe = open_universe(system.topology, (system.trajectories or system.hold_out)[:1])
        names |= set(map(str, select_atoms(universe, select).names))
    return GraphSpec(
        select=select,
        cutoff=cutoff,
        node_features=("speed", "element", "atom_name"),
        edge_features=("rbf", "hop", "bond"),
        atom_names=tuple(sorted(names)),
    )


@dataclass(frozen=True)
class Data:
    """Windows for a training, split.

    Attributes
    ----------
    train, validation : TrajectoryWindows
    test : list of Part
    geometry, regression : dict of str to LocalGeometry, PathRegression
        Of every molecule in the training part, by its builder's identity.
    record : dict
        Files, frames and split, for the provenance.
    """

    train: TrajectoryWindows
    validation: TrajectoryWindows
    test: list[Part]
    geometry: dict[str, LocalGeometry]
    regression: dict[str, PathRegression]
    record: dict[str, Any]


def common_stride(systems: Sequence[System], *, every: int = 1, dt: float | None = None) -> float:
    """Spacing of the frames of all files, times `every`, in ps.

    Raises
    ------
    DataError
        Two files differ; both are named.
    """
    spacing = None
    for system in systems:
        for file in (*system.trajectories, *system.hold_out):
            spacing = same_spacing(
                spacing, (Clock.of(open_universe(system.topology, [file], dt=dt)).spacing, str(file))
            )
    if spacing is None:
        raise UsageError("no trajectory was given")
    if spacing[0] <= 0:
        raise DataError(f"{spacing[1]} has one frame and says no spacing; training needs runs of many frames")
    return float(f"{spacing[0] * every:.6g}")  # times in DCD headers are off by rounding


def load_data(
    systems: Sequence[System],
    graph: GraphSpec,
    window: WindowSpec,
    *,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    blocks: int = 1,
    every: int | None = None,
    dt: float | None = None,
    folder: Path | None = None,
    limit: int = MEMORY_LIMIT,
    validation_windows: int = 500,
) -> Data:
    """Read the runs of some systems and split their windows so that no frame is shared.

    Parameters
    ----------
    systems : sequence of System
    graph, window : GraphSpec, WindowSpec
    fractions : sequence of three float
        Shares of train, validation and test in every run; where runs are held out, the test's share goes to train.
    blocks : int
        See :func:`egno_md.windows.split_blocks`.
    every : int, optional
        Frames per stride, to be checked against the times in the files.
    dt : float, optional
        Spacing of the frames in ps, where the headers are wrong.
    folder, limit
        See :meth:`egno_md.forecast.subject.Subject.runs`.
    validation_windows : int
        Of more, evenly spread ones are used.

    Raises
    ------
    DataError
        Too few frames (the message says how many are needed), or files that do not fit.
    """
    held = any(system.hold_out for system in systems)
    shares = (fractions[0] + fractions[2], fractions[1], 0.0) if held else tuple(fractions)
    runs: list[Run] = []
    chosen: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
    test: list[Part] = []
    geometry: dict[str, LocalGeometry] = {}
    regression: dict[str, PathRegression] = {}
    entries = []
    for system in systems:
        builder: GraphBuilder | None = None
        own: list[tuple[Run, np.ndarray, np.ndarray]] = []
        for file in (*system.trajectories, *system.hold_out):
            name = f"{system.name}-{file.name}"
            universe = open_universe(system.topology, [file], dt=dt)
            subject = Subject.of(universe, graph, window, every=every, who="the training", name=name, builder=builder)
            builder, stride = subject.builder, subject.every
            found = subject.runs(folder=folder, limit=limit)  # one but where frames are missing
            for run in found:
                n = len(run.positions)
                entry = {
                    "system": system.name,
                    "file": file.name,
                    "frames": n,
                    "every": stride,
                    "atoms": builder.n_atoms,
                }
                if file in system.hold_out:
                    starts = np.asarray(window_starts(n, window, stride), int)
                    if len(starts):
                        own.append((run, np.zeros(0, int), starts))
                        entries.append({**entry, "part": "test"})
                        continue
                    error = DataError(f"{file} has {n} frames, too few for a window of the test")
                else:
                    try:
                        parts = split_blocks(n, window, every=stride, fractions=shares, blocks=blocks)
                    except DataError as short:
                        error = DataError(f"{file}: {short}")
                    else:
                        runs.append(run)
                        chosen["train"].append(parts[0])
                        chosen["validation"].append(parts[1])
                        own.append((run, parts[0], parts[2]))
                        entry |= {"part": "all" if shares[2] else "train, validation"}
                        if shares[2] and blocks == 1:
                            entry["test_from"] = segments(parts[2], window, stride)[0][0]
                        entries.append(entry)
                        continue
                if len(run.positions) == max(len(other.positions) for other in found):
                    raise error  # even the longest stretch of the file is too short
                warnings.warn(f"{run.name} is left out: {error}", UserWarning, stacklevel=2)
        training = [run.positions[a:b] for run, starts, _ in own for a, b in segments(starts, window, run.every)]
        # A system that is only tested has no training part: its baselines then come from the test's own first half.
        stride = own[0][0].every
        seen = training or [run.positions[: len(run.positions) // 2] for run, _, _ in own]
        known = Known(seen, window.targets, stride)
        if training and builder is not None:
            geometry[builder.identity] = LocalGeometry.fit(training, builder.bonds)
            if window.velocity == "backward":  # it is for windows that know where they come from
                regression[builder.identity] = PathRegression.fitted(known)
        test += [Part(run, starts, known) for run, _, starts in own if len(starts)]
    if not runs:
        raise UsageError("every trajectory is held out; none is left to train on")
    thin = -(-sum(map(len, chosen["validation"])) // validation_windows)
    return Data(
        TrajectoryWindows(runs, window, chosen["train"]),
        TrajectoryWindows(runs, window, [starts[::thin] for starts in chosen["validation"]]),
        test,
        geometry,
        regression,
        {"runs": entries, "split": "blocks of time, no frame shared", "fractions": list(shares), "blocks": blocks},
    )


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
