"""MD17: small molecules in vacuum (section 5.3.1), and runs like them on the force fields that were trained on MD17.

Hydrogens are left out. The velocity is ``x[t + 1] - x[t]``, a window 3000 steps of 0.5 fs with 8 points in it. Edges
join atoms less than 1.6 A apart in the first frame, and second neighbours; they hold both atomic numbers, which of both
kinds they are, and the squared distance. Nodes hold the speed and the atomic number over the largest one. (The
original also marks a few bonds that were picked by hand for another method; they are left out here.)

"md17" is the published set, in which the original draws start frames from everywhere: windows of the parts overlap in
time. "sgdml" are new runs on the force fields of the sGDML authors, MD17-like but not MD17, of which every 25th step
and the next one are kept. Beside the random split both have one without overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import DataError, counted
from ..graph.builder import ATOMIC_NUMBERS, GraphBuilder
from ..graph.windows import Run, TrajectoryWindows, split_blocks, window_starts
from ..molecule.molecule import Molecule
from ..specs import GraphSpec, ModelSpec, Spec, TrainSpec, WindowSpec
from . import DataSet, Split, register
from .arrays import check_split, read_npz, read_pickle

#: Of every molecule its name in the file names of the original, and how many C, N and O it has.
MOLECULES = {
    "aspirin": ("aspirin", (9, 0, 4)),
    "benzene": ("benzene_old", (6, 0, 0)),
    "ethanol": ("ethanol", (2, 0, 1)),
    "malonaldehyde": ("malonaldehyde", (3, 0, 2)),
    "naphthalene": ("naphthalene", (10, 0, 0)),
    "salicylic": ("salicylic", (7, 0, 3)),
    "toluene": ("toluene", (7, 0, 0)),
    "uracil": ("uracil", (4, 2, 2)),
}
Name = Literal["aspirin", "benzene", "ethanol", "malonaldehyde", "naphthalene", "salicylic", "toluene", "uracil"]

STEP_FS, STEPS, POINTS = 0.5, 3000, 8
BOND = 1.6  # Angstrom

#: Where the official start frames are, if they are not the authors' own ``<molecule>_split.pkl``.
OFFICIAL = "egno_official_split_500_2000_2000.npz"

_SYMBOLS = {number: symbol for symbol, number in ATOMIC_NUMBERS.items()}
_PARTS = {"train": "train", "validation": "val", "test": "test"}


class MD17Options(Spec):
    """Options of the data set "md17".

    Attributes
    ----------
    molecule : str
    source : {"md17", "sgdml"}
        The published trajectories, or runs on force fields that were trained on them.
    folder : Path
        Where the files are.
    split : {"random", "apart"}
        Start frames drawn from everywhere, as published, or windows of the parts that share no frame: blocks of time,
        of the sGDML runs whole runs.
    train, validation, test : int
        Windows that are used at most.
    """

    molecule: Name = "ethanol"
    source: Literal["md17", "sgdml"] = "md17"
    folder: Path = Path("data/md17")
    split: Literal["random", "apart"] = "random"
    train: int = Field(500, ge=1)
    validation: int = Field(2000, ge=1)
    test: int = Field(2000, ge=1)


class Runs(NamedTuple):
    """Heavy atoms of some runs, and the start frames of every part as rows of (run, frame)."""

    positions: NDArray[np.float32]  # (R, F, N, 3)
    velocities: NDArray[np.float32]  # (R, F, N, 3)
    numbers: NDArray[np.int64]  # (N,)
    starts: dict[str, NDArray[np.int64]]  # (S, 2)
    path: Path


def _drawn(starts: Mapping[str, NDArray[np.int64]], options: MD17Options) -> dict[str, NDArray[np.int64]]:
    """Of more windows than are wanted some that are drawn, the same ones every time."""
    rng = np.random.RandomState(100)
    return {part: rng.permutation(found)[: getattr(options, part)] for part, found in starts.items()}


def _published(options: MD17Options, window: WindowSpec) -> Runs:
    name, _ = MOLECULES[options.molecule]
    path = options.folder / f"md17_{name}.npz"
    cure = (
        f"this is {name} of the MD17 trajectories (Chmiela et al. 2017, www.sgdml.org, 'MD17' and for benzene its "
        f"older file). Download md17_{name}.npz and put it into {options.folder} (or give another folder: data.folder, "
        "on the command line --data). Runs like it, which are not MD17: data.source = sgdml"
    )
    values = read_npz(path, {"R": (None, None, 3), "z": (None,)}, cure)
    heavy = values["z"] > 1
    _check_molecule(path, values["z"][heavy], options)
    frames = values["R"][:, heavy].astype(np.float64)  # (F, N, 3)
    velocities = np.diff(frames, axis=0)  # (F - 1, N, 3)
    positions = frames[:-1].astype(np.float32)[None]  # (1, F - 1, N, 3)
    n_frames = positions.shape[1]
    if options.split == "apart":
        blocks = split_blocks(n_frames, window)
        starts = _drawn({part: np.c_[0 * s, s] for part, s in zip(_PARTS, blocks, strict=True)}, options)
    else:
        starts = {part: np.c_[0 * s, s] for part, s in _official(options, name).items()}
    return Runs(positions, velocities.astype(np.float32)[None], values["z"][heavy].astype(np.int64), starts, path)


def _official(options: MD17Options, name: str) -> dict[str, NDArray[np.int64]]:
    """The start frames that the published runs used."""
    arrays, own = options.folder / OFFICIAL, options.folder / f"{name}_split.pkl"
    cure = (
        f"these are the start frames of Xu et al. (2024). Download {own.name} from md17/ of github.com/MinkaiXu/EGNO, "
        f"or give {OFFICIAL}, and put it into {options.folder}; without them data.split = apart splits by blocks "
        "of time"
    )
    if own.is_file() and not arrays.is_file():
        content = read_pickle(own, cure)
        try:
            parts = {part: np.asarray(starts, np.int64) for part, starts in zip(_PARTS, content, strict=True)}
        except (TypeError, ValueError) as error:
            raise DataError(f"{own} does not hold three arrays of start frames ({error}): {cure}") from error
    else:
        found = read_npz(arrays, {f"{name}_{key}": (None,) for key in _PARTS.values()}, cure)
        parts = {part: found[f"{name}_{key}"].astype(np.int64) for part, key in _PARTS.items()}
    return {part: starts[: getattr(options, part)] for part, starts in parts.items()}


def _made_anew(options: MD17Options, window: WindowSpec) -> Runs:
    path = options.folder / "regenerated" / f"{options.molecule}.npz"
    cure = (
        f"these are runs of {options.molecule} on the force fields of github.com/stefanch/sGDML (Chmiela et al. 2018), "
        "MD17-like. docs/paper.md says how they were made: 8 runs at constant temperature, as arrays positions and dx "
        f"(8, frames, atoms, 3) and z; put the file into {path.parent} (or give another folder: data.folder, on the "
        "command line --data)"
    )
    shapes: dict[str, tuple[int | None, ...]] = {name: (None, None, None, 3) for name in ("positions", "dx")}
    shapes |= {"z": (None,)}
    shapes |= {key: (None, 2) for key in _PARTS.values()}
    shapes |= {f"{key}_replicas": (None,) for key in _PARTS.values()}
    values = read_npz(path, shapes, cure)
    heavy = values["z"] > 1
    _check_molecule(path, values["z"][heavy], options)
    positions = values["positions"][:, :, heavy]
    if options.split == "apart":
        each = window_starts(positions.shape[1], window)
        apart = {part: values[f"{key}_replicas"] for part, key in _PARTS.items()}
        check_split(path, apart, "runs")
        starts = {part: np.array([(run, s) for run in runs for s in each]) for part, runs in apart.items()}
        starts = _drawn(starts, options)
    else:
        starts = {part: values[key][: getattr(options, part)].astype(np.int64) for part, key in _PARTS.items()}
    return Runs(positions, values["dx"][:, :, heavy], values["z"][heavy].astype(np.int64), starts, path)


def _check_molecule(path: Path, numbers: NDArray[Any], options: MD17Options) -> None:
    expected = dict(zip((6, 7, 8), MOLECULES[options.molecule][1], strict=True))
    found = {int(z): int((numbers == z).sum()) for z in sorted({*expected, *numbers.tolist()})}
    if found != expected:
        as_text = ["".join(f"{_SYMBOLS[z]}{n}" for z, n in atoms.items() if n) for atoms in (found, expected)]
        raise DataError(f"{path} holds {as_text[0]} without its hydrogens, {options.molecule} is {as_text[1]}")


def load(options: MD17Options, graph: GraphSpec, window: WindowSpec) -> Split:
    """Windows of one molecule."""
    runs = (_published if options.source == "md17" else _made_anew)(options, window)
    check_split(runs.path, runs.starts, "start frames")
    first = runs.positions[0, 0].astype(np.float64)  # (N, 3)
    apart = np.linalg.norm(first[:, None] - first, axis=-1)
    molecule = Molecule(
        elements=[_SYMBOLS[z] for z in runs.numbers.tolist()],
        bonds=np.argwhere(np.triu(apart < BOND, 1)),
        source=runs.path.name,
    )
    builder = GraphBuilder(molecule, graph)
    made = [
        Run(positions, builder, name=f"{options.molecule}-{r}", velocities=velocities)
        for r, (positions, velocities) in enumerate(zip(runs.positions, runs.velocities, strict=True))
    ]
    possible = window_starts(runs.positions.shape[1], window)
    windows = {}
    for part, starts in runs.starts.items():
        frames, which = starts[:, 1], starts[:, 0]
        if which.max() >= len(made) or frames.min() < possible.start or frames.max() >= possible.stop:
            raise DataError(
                f"{runs.path}: windows for {part} start in frames {frames.min()} to {frames.max()} of "
                f"{counted(len(made), 'run')}, those of {window.span} frames can in {possible.start} to "
                f"{possible.stop - 1}: this is not the trajectory that the split belongs to, or a longer window"
            )
        windows[part] = TrajectoryWindows(made, window, [frames[which == r].tolist() for r in range(len(made))])
    name = "MD17" if options.source == "md17" else "MD17-like (sGDML)"
    return Split(**windows, record={"file": runs.path.name, "set": name})


def recipe(options: MD17Options) -> Mapping[str, Mapping[str, Any]]:
    """The paper's settings (table 8), and when its code looks at the validation set: to the last of 5000 epochs."""
    training = TrainSpec(
        batch_size=100,
        learning_rate=1e-4,
        weight_decay=1e-15,
        max_epochs=5000,
        patience=1000,
        validate_every=5,
        gradient_clip=0.0,
        ema_decay=0.0,
        schedule="halved",
    )
    graph = {
        "select": "all",
        "cutoff": 1e-6,  # bonds and second neighbours alone
        "hops": 2,
        "node_features": ("speed", "atomic_number"),
        "edge_features": ("atomic_numbers", "bonds_apart", "distance2"),
    }
    steps = 1 if options.source == "md17" else 25  # between frames that are kept
    window = {
        "stride_ps": STEP_FS * steps / 1000,
        "n_times": POINTS,
        "span": STEPS // steps,
        "velocity": "stored",
    }
    model = ModelSpec(hidden=64, layers=5, modes=2, time_embedding=32)
    return {"graph": graph, "window": window, "model": model.model_dump(), "training": training.model_dump()}


MD17 = register(DataSet("md17", MD17Options, recipe, load, "small molecules in vacuum (Chmiela et al. 2017)"))
