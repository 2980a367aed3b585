"""Adenylate kinase: backbone atoms of one protein (section 5.3.2).

"equilibrium" is the trajectory of the paper, which a user has as PSF and DCD: 4187 frames, 240 ps apart, superposed on
the CORE domain. Windows are 15 frames with 4 points, their start frames split one part after the other, as published:
windows at the borders overlap. "transitions" are three published paths from closed to open, biased runs, which are
something else: train on the first, validate on the first part of the second, and test on its rest.

The velocity is ``x[t + 1] - x[t]``. Edges join atoms within 8 A in the start frame and hold the distance and its
square; nodes hold the speed and the charge over the largest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import DataError
from ..graph.builder import GraphBuilder
from ..graph.windows import Run, TrajectoryWindows, window_starts
from ..molecule.molecule import Molecule
from ..specs import GraphSpec, ModelSpec, Spec, TrainSpec, WindowSpec
from . import DataSet, Split, register
from .arrays import existing, read_npz

ATOMS = 855
FRAME_PS = 240.0
SHARES = (0.6, 0.2)  # of the start frames, train and validation

#: Names of the files in `folder`.
EQUILIBRIUM = ("adk4ake.psf", "1ake_007-nowater-core-dt240ps.dcd")
TRANSITIONS = "adk_transitions_backbone.npz"


class AdKOptions(Spec):
    """Options of the data set "adk".

    Attributes
    ----------
    source : {"equilibrium", "transitions"}
    folder : Path
        Where the files are.
    topology, trajectory : Path, optional
        Of the equilibrium run, where they are called otherwise.
    """

    source: Literal["equilibrium", "transitions"] = "equilibrium"
    folder: Path = Path("data/adk")
    topology: Path | None = Field(None)
    trajectory: Path | None = Field(None)


def _equilibrium(options: AdKOptions, window: WindowSpec) -> tuple[Molecule, list[NDArray[np.float32]], Any, str]:
    """The molecule, its run, and where windows of each part start in it."""
    from ..molecule.atoms import select_atoms
    from ..trajectory.universe import open_sources

    topology, trajectory = (
        given or options.folder / name
        for given, name in zip((options.topology, options.trajectory), EQUILIBRIUM, strict=True)
    )
    cure = (
        "this is the equilibrium trajectory of adenylate kinase (Seyler and Beckstein 2017, "
        f"doi:10.6084/m9.figshare.5108170). Download {' and '.join(EQUILIBRIUM)} and put both into {options.folder} "
        "(or give another folder: data.folder, on the command line --data)"
    )
    existing(topology, cure), existing(trajectory, cure)
    (atoms,) = open_sources(topology, [trajectory], FRAME_PS)
    backbone = select_atoms(atoms, "backbone")
    if len(backbone) != ATOMS:
        raise DataError(f"{topology} has {len(backbone)} atoms of a backbone, adenylate kinase has {ATOMS}: {cure}")
    universe = backbone.universe
    frames = np.empty((len(universe.trajectory), ATOMS, 3), np.float32)
    for k, _ in enumerate(universe.trajectory):
        frames[k] = backbone.positions
    starts = window_starts(len(frames) - 1, window)  # the original drops the last frame, whose velocity is not known
    bounds = [int(share * len(starts)) for share in np.cumsum(SHARES)]
    parts = np.split(np.asarray(starts, np.int64), bounds)
    if not all(len(part) for part in parts):
        raise DataError(f"{trajectory} has {len(frames)} frames, too few for windows of {window.span} in three parts")
    return Molecule.of(backbone), [frames], [[part] for part in parts], trajectory.name


def _transitions(options: AdKOptions, window: WindowSpec) -> tuple[Molecule, list[NDArray[np.float32]], Any, str]:
    path = options.folder / TRANSITIONS
    cure = (
        "this file holds the paths of adk_dims.dcd and adk_dims2.dcd (Beckstein et al. 2009), which the Python package "
        f"MDAnalysisTests brings, as arrays of the {ATOMS} backbone atoms; put it into {options.folder} (or give "
        "another folder: data.folder, on the command line --data)"
    )
    shapes: dict[str, tuple[int | None, ...]] = {name: (None, ATOMS, 3) for name in ("dims", "dims2")}
    shapes |= {name: (ATOMS,) for name in ("atom_names", "res_ids", "res_names", "charges")} | {"bonds": (None, 2)}
    values = read_npz(path, shapes, cure)
    names = values["atom_names"]
    _, residues = np.unique(values["res_ids"], return_inverse=True)
    molecule = Molecule(
        elements=[str(name)[0] for name in names],
        bonds=values["bonds"],
        names=names,
        resnames=values["res_names"],
        resids=values["res_ids"],
        residues=residues,
        charges=values["charges"],
        source=path.name,
    )
    runs = [values[name] for name in ("dims", "dims2")]
    first, second = (np.asarray(window_starts(len(run), window)) for run in runs)
    validated = len(runs[1]) * 2 // 5  # frames; those after them are tested on
    validation, test = second[second + window.span < validated], second[second >= validated]
    if not (len(first) and len(validation) and len(test)):
        raise DataError(f"{path}: {len(runs[0])} and {len(runs[1])} frames are too few for windows of {window.span}")
    none = first[:0]
    return molecule, runs, [[first, none], [none, validation], [none, test]], path.name


def load(options: AdKOptions, graph: GraphSpec, window: WindowSpec) -> Split:
    """Windows of the backbone."""
    found = (_equilibrium if options.source == "equilibrium" else _transitions)(options, window)
    molecule, frames, parts, name = found
    if molecule.charges is None:
        raise DataError(f"{name}: the topology has no charges, which the nodes hold: give a PSF")
    largest = float(np.abs(molecule.charges).max()) or 1.0
    fields = {key: value for key, value in vars(molecule).items() if key != "charges"}
    builder = GraphBuilder(Molecule(**fields, charges=molecule.charges / largest), graph)
    runs = [Run(run, builder, name=f"{options.source}-{k}") for k, run in enumerate(frames)]
    windows = {
        part: TrajectoryWindows(runs, window, starts)
        for part, starts in zip(("train", "validation", "test"), parts, strict=True)
    }
    return Split(**windows, record={"file": name, "set": f"AdK {options.source}"})


def recipe(options: AdKOptions) -> Mapping[str, Mapping[str, Any]]:
    """The paper's settings (table 8), and when its code looks at the validation set."""
    training = TrainSpec(
        batch_size=8,
        learning_rate=5e-5,
        weight_decay=1e-4,
        max_epochs=1000,
        patience=50,
        validate_every=5,
        gradient_clip=0.0,
        ema_decay=0.0,
        schedule="constant",
    )
    graph = {
        "select": "backbone",
        "cutoff": 8.0,
        "hops": 0,
        "node_features": ("speed", "charge"),
        "edge_features": ("distance", "distance2"),
    }
    stride = FRAME_PS if options.source == "equilibrium" else 1.0
    window = {"stride_ps": stride, "n_times": 4, "span": 15, "velocity": "forward"}
    model = ModelSpec(hidden=128, layers=4, modes=2, time_embedding=32)
    return {"graph": graph, "window": window, "model": model.model_dump(), "training": training.model_dump()}


ADK = register(DataSet("adk", AdKOptions, recipe, load, "backbone of adenylate kinase"))
