"""The register of data sets: what a model can be trained on beside a user's own trajectories.

A data set is one :class:`DataSet`. Another package names its own in the entry point group ``egno_md.datasets``, an
entry's name being the data set's::

    [project.entry-points."egno_md.datasets"]
    mine = "my_package.mine:DATA_SET"

``egno-md train recipe.toml`` with ``[data] name = "mine"`` then trains on it, and ``[data]`` holds its options too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from .. import plugins
from ..errors import UsageError, nearest
from ..graph.windows import TrajectoryWindows
from ..specs import GraphSpec, WindowSpec

#: Other packages name their data sets in this group.
ENTRY_POINTS = "egno_md.datasets"

#: Those of this package, and the file beside this one that holds each.
_OURS = {"nbody": "nbody", "mocap": "mocap", "md17": "md17", "adk": "adk"}


@dataclass(frozen=True)
class Split:
    """Windows of a data set in three parts; made of runs, which need no file and no Universe.

    Attributes
    ----------
    train, validation, test : TrajectoryWindows
        Of :class:`egno_md.graph.windows.Run`, each with positions and a GraphBuilder of a
        :class:`egno_md.molecule.Molecule`.
    record : mapping
        What is to be written down with a model that is trained on it; ready for JSON.
    """

    train: TrajectoryWindows
    validation: TrajectoryWindows
    test: TrajectoryWindows
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """What the package knows of a data set.

    Attributes
    ----------
    name : str
    options : type of pydantic model
        Its settings with their defaults; an unknown key is an error.
    recipe : callable
        ``recipe(options) -> {"graph": {...}, "window": {...}, "model": {...}, "training": {...}}``: what a recipe on it
        starts from. ``window`` must hold ``stride_ps``; sections may be left out.
    load : callable
        ``load(options, graph, window) -> Split``.
    about : str
        One line.
    """

    name: str
    options: type[BaseModel]
    recipe: Callable[[Any], Mapping[str, Mapping[str, Any]]]
    load: Callable[[Any, GraphSpec, WindowSpec], Split]
    about: str = ""


_REGISTER: dict[str, DataSet] = {}


def register(dataset: DataSet) -> DataSet:
    """Make a data set known by its name, and return it.

    Raises
    ------
    UsageError
        The name is taken by another one.
    """
    if _REGISTER.get(dataset.name, dataset) != dataset or dataset.name == "files":
        raise UsageError(f"there is a data set {dataset.name!r} already: give this one another name")
    _REGISTER[dataset.name] = dataset
    return dataset


def names() -> tuple[str, ...]:
    """Names of all data sets, those of other packages last; these are not imported for it."""
    return tuple(dict.fromkeys([*_OURS, *_REGISTER, *plugins.names(ENTRY_POINTS)]))


def get(name: str) -> DataSet:
    """The data set of that name.

    Raises
    ------
    UsageError
        There is none, or the package that brings it cannot be imported.
    """
    if name not in _REGISTER and name in _OURS:
        import_module(f".{_OURS[name]}", __name__)  # registers it
    if name in _REGISTER:
        return _REGISTER[name]
    for where, dataset in plugins.loaded(ENTRY_POINTS, name):
        if not isinstance(dataset, DataSet) or dataset.name != name:
            raise UsageError(f"{where} must be an egno_md.datasets.DataSet with the name {name!r}")
        return register(dataset)
    known = ("files", *names())
    raise UsageError(
        f"there is no data set {name!r}{nearest(name, known)}: known are {', '.join(known)}; those of another package "
        "are known once it is installed"
    )
