"""What is run: experiments, their systems, and the two presets, as data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..datasets import mocap
from ..errors import UsageError, nearest
from ..nn import operators
from ..specs import Recipe
from ..training.recipe import overridden

Settings = Mapping[str, Any]

#: Letters that settings may take in the name of a run; of more their hash stands there.
LONGEST_LABEL = 120


@dataclass(frozen=True)
class System:
    """One line of a table.

    Attributes
    ----------
    operator : str
        Name in the register.
    settings : mapping
        What it has otherwise than the experiment, by its place in a recipe.
    about : str
    """

    operator: str
    settings: Settings = field(default_factory=dict)
    about: str = ""


#: Systems that know one point in time, the last.
_ONE = {"window.n_times": 1}

SYSTEMS: dict[str, System] = {
    "egno": System("egno", about="EGNO, targets spread evenly (U)"),
    "egno-l": System("egno", {"window.sampling": "L"}, "EGNO, the last T frames (L)"),
    "egno-t2t": System(
        "egno", {"window.history": "trajectory"}, "EGNO, trajectory to trajectory: it reads the last T frames"
    ),
    "egno-ii": System("egno", {"model.time_conv": "positions"}, "ablation II: no v in the temporal convolution"),
    "egno-iii": System("egno", {"model.time_conv": "scalars"}, "ablation III: scalars only"),
    "egno-iv": System("egno", {"model.time_conv": "none"}, "ablation IV: no temporal convolution"),
    # In every block, low and high: six layers, as mocap has otherwise, explode before they have learned anything.
    "eghno": System("eghno", {"model.layers": 4}, "EGHNO"),
    "linear": System("linear", _ONE, "x + v t with one learned t"),
    "rf": System("rf", _ONE, "radial field"),
    "mpnn": System("mpnn", _ONE, "message passing on coordinates"),
    "egnn": System("egnn", _ONE, "EGNN"),
    "egnn-r": System("egnn-r", about="EGNN, rolled out"),
    "egnn-s": System("egnn-s", about="EGNN, time point k read from layer k"),
    "egnn-tb": System("egnn-tb", about="EGNN, temporal bundling of 2"),
    "eghn": System("eghn", _ONE, "EGHN"),
    "clofnet": System("clofnet", _ONE, "ClofNet"),
    "tfn": System("tfn", _ONE, "tensor field network"),
    "se3-transformer": System("se3-transformer", _ONE, "SE(3)-Transformer"),
}


@dataclass(frozen=True)
class Experiment:
    """One experiment of the paper.

    Attributes
    ----------
    name, title : str
    data : mapping
        Section ``data`` of its recipes.
    folder : str
        Below the folder of all data.
    cases : mapping
        Parts of it that are trained each by itself, with their settings; one without a name where there is one.
    scale : float
        Published numbers are multiples of this.
    step : float
        Time from one point of the window to the next, in the time that velocities count in, for systems that go from
        point to point.
    best : mapping
        Settings of the preset "best", which were searched for on validation windows.
    """

    name: str
    title: str
    data: Settings
    folder: str = ""
    cases: Mapping[str, Settings] = field(default_factory=lambda: {"": {}})
    scale: float = 1.0
    step: float = 1.0
    best: Settings = field(default_factory=dict)


_WALK, _RUN = ({"name": "mocap", "motion": motion} for motion in ("walk", "run"))
_MOLECULES = ("aspirin", "benzene", "ethanol", "malonaldehyde", "naphthalene", "salicylic", "toluene", "uracil")

#: What was found on validation windows: large steps that are cut short, and averaged weights.
_BEST_TRAINING = {
    "training.schedule": "cosine",
    "training.ema_decay": 0.995,
    "training.gradient_clip": 0.1,
    "training.validate_every": 5,
    "training.patience": 300,
}

#: Of motion capture, searched for on running: joints by name and windows that start in every frame, either of which is
#: worse than neither without the other, and half the width, which learns less by heart.
_BEST_MOCAP = {
    **_BEST_TRAINING,
    "data.every_start": True,
    "graph.node_features": ("speed", "height", "atom_name"),
    "graph.atom_names": tuple(dict.fromkeys(mocap.NAMES)),
    "training.learning_rate": 3e-3,
    "training.epoch_windows": 200,
    "training.max_epochs": 300,
    "model.hidden": 64,
}

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "nbody",
            "N-body, five charged particles",
            {"name": "nbody"},
            step=0.2,
            best={
                **_BEST_TRAINING,
                "data.every_start": True,
                "training.learning_rate": 4e-3,
                "training.epoch_windows": 3000,
                "training.max_epochs": 240,
            },
        ),
        Experiment("mocap-walk", "Motion capture, walking", _WALK, "mocap", scale=0.01, step=6, best=_BEST_MOCAP),
        Experiment("mocap-run", "Motion capture, running", _RUN, "mocap", scale=0.01, step=6, best=_BEST_MOCAP),
        Experiment(
            "md17",
            "MD17, small molecules",
            {"name": "md17"},
            "md17",
            {
                name if split == "random" else f"{name}-apart": {"data.molecule": name, "data.split": split}
                for name in _MOLECULES
                for split in ("random", "apart")
            },
            scale=0.01,
            step=375,
            best={
                **_BEST_TRAINING,
                "training.ema_decay": 0.99,
                "training.validate_every": 10,
                "training.learning_rate": 3e-3,
                "training.max_epochs": 150,
            },
        ),
        Experiment(
            "adk",
            "Adenylate kinase",
            {"name": "adk"},
            "adk",
            step=4,
            best={
                **_BEST_TRAINING,
                "training.ema_decay": 0.99,
                "training.validate_every": 4,
                "training.learning_rate": 2e-3,
                "training.max_epochs": 60,
            },
        ),
    )
}


@dataclass(frozen=True)
class Job:
    """One training: what makes it differ from all others.

    Attributes
    ----------
    experiment, case, system, preset : str
    seed : int
    settings : mapping
        What was asked for beside all that, by its place in a recipe.
    """

    experiment: str
    case: str
    system: str
    preset: str
    seed: int
    settings: Settings

    @property
    def label(self) -> str:
        """Name of its folder and of its JSON file; of two that differ it differs."""
        more = [f"{key.rpartition('.')[2]}-{value}" for key, value in sorted(self.settings.items())]
        if len("".join(more)) > LONGEST_LABEL:  # a file system has its limits
            more = [hashlib.sha256(repr(sorted(self.settings.items())).encode()).hexdigest()[:12]]
        parts = [self.case, self.system, self.preset, *more, f"seed{self.seed}"]
        return "_".join(re.sub(r"[^\w.+-]", "-", str(part)) for part in parts if part)

    def recipe(self, data: Path) -> Recipe:
        """What is trained; `data` is the folder of all data.

        Raises
        ------
        UsageError
            A setting that does not exist.
        """
        experiment, system = EXPERIMENTS[self.experiment], SYSTEMS[self.system]
        section = dict(experiment.data)
        if experiment.folder:
            section["folder"] = str(data / experiment.folder)
        recipe = Recipe(data=section, model={"operator": system.operator}, training={"seed": self.seed})
        best = experiment.best if self.preset == "best" else {}
        steps = "step" in operators.get(system.operator).options.model_fields
        own = {**({"model.step": experiment.step} if steps else {}), **system.settings}
        return overridden(recipe, {**experiment.cases[self.case], **best, **own, **self.settings})


def jobs(
    experiment: str,
    systems: Sequence[str] = ("egno",),
    *,
    preset: str = "paper",
    seeds: int = 1,
    cases: Sequence[str] = (),
    settings: Settings | None = None,
) -> list[Job]:
    """The trainings of an experiment, seed by seed, all systems beside each other.

    Raises
    ------
    UsageError
        An unknown name, or a system that the register does not have.
    """
    found = EXPERIMENTS[_known("experiment", experiment, EXPERIMENTS)]
    for name in systems:
        operators.get(SYSTEMS[_known("system", name, SYSTEMS)].operator)
    for name in cases:
        _known("case", name, found.cases)
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1, found {seeds}")
    return [
        Job(experiment, case, system, preset, seed, dict(settings or {}))
        for seed in range(seeds)
        for case in cases or found.cases
        for system in systems
    ]


def _known(kind: str, name: str, known: Mapping[str, Any]) -> str:
    if name not in known:
        raise UsageError(f"there is no {kind} {name!r}{nearest(name, known)}: known are {', '.join(known) or 'none'}")
    return name
