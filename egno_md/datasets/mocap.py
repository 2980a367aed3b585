"""Motion capture: joints of a person who walks or runs (section 5.2), from the CMU Graphics Lab database.

31 joints, 120 frames a second, lengths in the unit of the database's own files; y is up. A window is 30 frames. The
velocity is ``x[t + 1] - x[t]``. Edges join bones and second neighbours, and hold which of both they are and the squared
distance; nodes hold the speed and the height, which breaks the symmetry of rotations on purpose, for there is gravity.

The data used in this project was obtained from mocap.cs.cmu.edu; the database was created with funding from NSF
EIA-0196217.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import DataError
from ..graph.builder import GraphBuilder
from ..graph.windows import Run, TrajectoryWindows, frames_back
from ..molecule.molecule import Molecule
from ..specs import GraphSpec, ModelSpec, Spec, TrainSpec, WindowSpec
from . import DataSet, Split, register
from .arrays import check_split, read_npz, read_pickle

JOINTS, FRAMES_PER_SECOND, WINDOW = 31, 120, 30

_LEG = ("hipjoint", "femur", "tibia", "foot", "toes")
_ARM = ("clavicle", "humerus", "radius", "wrist", "hand", "fingers", "thumb")
#: Names of the joints, for the node feature "atom_name"; the paper's systems do not know which joint is which. Left and
#: right have the same, so that a body and its mirror image stay one thing.
NAMES = ("root", *_LEG, *_LEG, "lowerback", "upperback", "thorax", "lowerneck", "upperneck", "head", *_ARM, *_ARM)

#: Of each motion the files that are looked for in `folder`: as arrays, or as the authors published them.
FILES = {
    "run": ("cmu_mocap_run_subject09.npz", "motion_run.pkl", "split_run.pkl"),
    "walk": ("cmu_mocap_walk_subject35.npz", "motion.pkl", "split.pkl"),
}
_PARTS = {"train": "train", "validation": "val", "test": "test"}


class MocapOptions(Spec):
    """Options of the data set "mocap".

    Attributes
    ----------
    motion : {"run", "walk"}
    folder : Path
        Where the files are.
    train, validation, test : int
        Windows that are used at most, as many of every trial.
    every_start : bool
        Windows of the training part start in every frame of its trials that leaves room for them, not in the published
        ones alone; `train` does not count then.
    """

    motion: Literal["run", "walk"] = "run"
    folder: Path = Path("data/mocap")
    train: int = Field(200, ge=1)
    validation: int = Field(600, ge=1)
    test: int = Field(600, ge=1)
    every_start: bool = False


class Motion(NamedTuple):
    """Trials, bones, and where windows start: of every part the trials and their start frames."""

    trials: list[NDArray[np.float64]]  # (F, 31, 3) each
    bones: NDArray[np.int64]  # (30, 2)
    starts: dict[str, dict[int, NDArray[np.int64]]]
    path: Path


def _cure(options: MocapOptions) -> str:
    arrays, motion, split = FILES[options.motion]
    subject = "9" if options.motion == "run" else "35"
    return (
        f"this is subject {subject} of the CMU motion capture database (mocap.cs.cmu.edu) as Xu et al. (2024) used it. "
        f"Download {motion} and {split} from motion/dataset of github.com/MinkaiXu/EGNO, or give {arrays}, and "
        f"put it into {options.folder} (or give another folder: data.folder, on the command line --data)"
    )


def read(options: MocapOptions) -> Motion:
    """The trials of a motion and its split.

    Raises
    ------
    DataError
        A file is missing or is another one, or parts share a trial.
    """
    arrays, motion, split = (options.folder / name for name in FILES[options.motion])
    cure = _cure(options)
    if not arrays.is_file() and motion.is_file():
        bones, trials = _as_pair(read_pickle(motion, cure), motion, cure)
        starts = _as_split(read_pickle(split, cure), split, cure)
        found = Motion(trials, bones, starts, motion)
    else:
        shapes: dict[str, tuple[int | None, ...]] = {"positions": (None, JOINTS, 3), "offsets": (None,)}
        shapes["edges"] = (JOINTS - 1, 2)
        shapes |= {f"{name}_case": (None,) for name in _PARTS.values()}
        shapes |= {f"{name}_start": (None, None) for name in _PARTS.values()}
        values = read_npz(arrays, shapes, cure)
        trials = np.split(values["positions"].astype(np.float64), values["offsets"][1:-1])
        starts = {
            part: dict(zip(values[f"{name}_case"].tolist(), values[f"{name}_start"], strict=True))
            for part, name in _PARTS.items()
        }
        found = Motion(trials, values["edges"].astype(np.int64), starts, arrays)
    check_split(found.path, {part: np.array(list(trials)) for part, trials in found.starts.items()}, "trials")
    return found


def _as_pair(content: Any, path: Path, cure: str) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """Bones and trials from what the authors' file holds."""
    try:
        bones, trials = content
        bones = np.array(bones, np.int64)
        trials = [np.asarray(trial, np.float64) for trial in trials]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} does not hold bones and trials ({error}): {cure}") from error
    if wrong := [trial.shape for trial in trials if trial.ndim != 3 or trial.shape[1:] != (JOINTS, 3)]:
        raise DataError(f"{path}: a trial has the shape {wrong[0]}, expected frames x {JOINTS} x 3: {cure}")
    return bones, trials


def _as_split(content: Any, path: Path, cure: str) -> dict[str, dict[int, NDArray[np.int64]]]:
    """Start frames by trial, of the three parts, from what the authors' file holds."""
    try:
        return {
            part: {int(trial): np.asarray(starts, np.int64) for trial, starts in mapping.items()}
            for part, mapping in zip(_PARTS, content, strict=True)
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} does not hold three mappings from trials to start frames ({error}): {cure}") from error


def load(options: MocapOptions, graph: GraphSpec, window: WindowSpec) -> Split:
    """Windows of 30 frames from the start frames of the published split."""
    motion = read(options)
    molecule = Molecule(elements=[""] * JOINTS, names=NAMES, bonds=motion.bones, source=motion.path.name)
    builder = GraphBuilder(molecule, graph)
    # The original drops the last frame of a trial, whose velocity is not known.
    runs = [
        Run(trial.astype(np.float32), builder, name=f"{options.motion}-{k}") for k, trial in enumerate(motion.trials)
    ]
    windows = {}
    for part, mapping in motion.starts.items():
        each = max(1, getattr(options, part) // len(mapping))
        chosen: list[list[int]] = [[] for _ in runs]
        for trial, starts in mapping.items():
            if not 0 <= trial < len(runs):
                raise DataError(f"{motion.path}: {part} names the trial {trial}, there are {len(runs)}")
            first, last = frames_back(window), len(runs[trial].positions) - 1 - max(window.span, 1)
            some = np.asarray(starts[:each], np.int64)
            if some.min() < first or some.max() > last:
                raise DataError(
                    f"{motion.path}: windows of trial {trial} start in frames {some.min()} to {some.max()}, those of "
                    f"{window.span} frames that read {first} before them can in {first} to {last}: this is another "
                    "recording, a longer window, or a history for which the published starts come too early"
                )
            every = options.every_start and part == "train"
            chosen[trial] = list(range(first, last + 1)) if every else some.tolist()
        windows[part] = TrajectoryWindows(runs, window, chosen)
    return Split(**windows, record={"file": motion.path.name, "units": "the database's own; a frame is 1/120 s"})


def recipe(options: MocapOptions) -> Mapping[str, Mapping[str, Any]]:
    """The paper's settings (table 8), and when its code looks at the validation set."""
    training = TrainSpec(
        batch_size=12,
        learning_rate=5e-4,
        weight_decay=1e-10,
        max_epochs=2000,
        patience=50,
        validate_every=5,
        gradient_clip=0.0,
        ema_decay=0.0,
        schedule="constant",
    )
    graph = {
        "select": "all",
        "cutoff": 1e-6,  # bones and second neighbours alone
        "hops": 2,
        "node_features": ("speed", "height"),
        "edge_features": ("bonds_apart", "distance2"),
    }
    window = {"stride_ps": 1e12 / FRAMES_PER_SECOND, "n_times": 5, "span": WINDOW, "velocity": "forward"}
    model = ModelSpec(hidden=128, layers=6, modes=2, time_embedding=32)
    return {"graph": graph, "window": window, "model": model.model_dump(), "training": training.model_dump()}


MOCAP = register(DataSet("mocap", MocapOptions, recipe, load, "joints of a person who walks or runs (CMU)"))
