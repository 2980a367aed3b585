"""Where the windows of a training come from: the user's files, or a registered data set."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ValidationError

from .. import datasets
from ..errors import UsageError
from ..forecast.drawn import GaussianProcess
from ..forecast.forecasters import Known, PathRegression
from ..forecast.network import ElasticNetwork, Sample
from ..graph.windows import MEMORY_LIMIT, TrajectoryWindows, frames_back, segments
from ..specs import GraphSpec, Recipe, WindowSpec
from .data import Data, Files, FilesOptions

#: Lags at which the elastic network of a training is fitted.
LAGS = 24


class Source(Protocol):
    """The data of a recipe."""

    def settings(self) -> dict[str, Any]:
        """The recipe's section ``data``, complete."""

    def defaults(self, section: str, recipe: Recipe, preset: Mapping[str, Any]) -> Mapping[str, Any]:
        """What another section starts from, where the recipe does not say; `preset` is the preset's."""

    def stride_ps(self) -> float:
        """Time between two frames of the model."""

    def load(self, graph: GraphSpec, window: WindowSpec, *, folder: Path, limit: int = MEMORY_LIMIT) -> Data:
        """The windows, split."""


def options_type(name: str) -> type[BaseModel]:
    """What the options of a data set are; errors as of :func:`egno_md.datasets.get`."""
    return FilesOptions if name == "files" else datasets.get(name).options


def source_of(recipe: Recipe) -> Source:
    """Where the windows of a recipe come from; nothing is read yet.

    Raises
    ------
    UsageError
        An unknown data set, or options that it refuses.
    """
    options = dict(recipe.data)
    name = options.pop("name", "files")
    try:
        checked = options_type(name)(**options)
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, ("data", *wrong["loc"])))
        raise UsageError(f"{place}: {wrong['msg']}") from error
    return Files(checked) if name == "files" else Registered(datasets.get(name), checked)


class Registered:
    """A registered data set as the source of a training."""

    def __init__(self, dataset: datasets.DataSet, options: BaseModel) -> None:
        self.dataset, self.options = dataset, options

    def settings(self) -> dict[str, Any]:
        return {"name": self.dataset.name, **self.options.model_dump(mode="json")}

    def defaults(self, section: str, recipe: Recipe, preset: Mapping[str, Any]) -> Mapping[str, Any]:
        own = getattr(Recipe(**{section: self.dataset.recipe(self.options).get(section, {})}), section)
        # The usual preset is made for proteins: what a data set says begins with the plain specs.
        asked = recipe.preset is not None and section in ("model", "training")
        return preset if asked or not own else own

    def stride_ps(self) -> float:
        return float(self.dataset.recipe(self.options)["window"]["stride_ps"])

    def load(self, graph: GraphSpec, window: WindowSpec, *, folder: Path, limit: int = MEMORY_LIMIT) -> Data:
        split = self.dataset.load(self.options, graph, window)
        for name in ("train", "validation", "test"):
            if not len(getattr(split, name)):
                raise UsageError(f"the data set {self.dataset.name!r} has no window for {name}; see its options")
        regression = {}
        if window.velocity == "backward" and window.history == 1:
            regression = _regressions(split.train, window)
        # Where the data lie is nobody's business: a training goes on in another place, if it has the same frames.
        options = self.options.model_dump(mode="json", exclude={"folder"})
        record = {"dataset": self.dataset.name, "options": options, **split.record, "frames": _hash(split)}
        return Data(split.train, split.validation, split.test, {}, regression, record)


def _hash(split: datasets.Split) -> str:
    """SHA-256 of all frames, and of which windows are in which part."""
    seen, digest = set(), hashlib.sha256()
    for part in (split.train, split.validation, split.test):
        for run in getattr(part, "runs", ()):  # another package may have windows of its own
            if id(run) not in seen:
                seen.add(id(run))
                digest.update(np.ascontiguousarray(run.positions))
        digest.update(repr(list(getattr(part, "index", ()))).encode())
    return digest.hexdigest()


def _regressions(windows: TrajectoryWindows, window: WindowSpec) -> dict[str, PathRegression]:
    """Of every molecule the regression of its training windows."""
    return {name: PathRegression.fitted(known) for name, known in _known(windows).items()}


def processes(windows: TrajectoryWindows) -> dict[str, GaussianProcess]:
    """Of every molecule the Gaussian process of its training windows, of the frames that the windows read.

    They are what a checkpoint gives back.

    Raises
    ------
    DataError
        A molecule has too few windows for one.
    """
    n_past = frames_back(windows.window) + 1
    fitted = {name: GaussianProcess.fitted(known, n_past) for name, known in _known(windows).items()}
    for process in fitted.values():
        for note in process.notes:
            warnings.warn(note, stacklevel=2)
    return {name: GaussianProcess.of_arrays(process.arrays()) for name, process in fitted.items()}


def elastic(windows: TrajectoryWindows) -> ElasticNetwork:
    """The elastic network of the training windows of all molecules, with lags from the shortest stride of the window to
    the longest that it sees; as a checkpoint gives it back.

    Raises
    ------
    DataError
        There are too few frames for one.
    """
    window = windows.window
    least, most = window.stride_range or (window.stride_ps, window.stride_ps)
    longest = most * (window.n_times + frames_back(window))
    finest: dict[int, tuple[float, list[np.ndarray]]] = {}  # runs that share their frames count once
    starts: dict[int, list[int]] = {}
    for r, start in windows.index:
        starts.setdefault(r, []).append(start)
    for r, own in starts.items():
        run = windows.runs[r]
        spacing = (run.stride_ps or window.stride_ps) / run.every
        key = id(run.positions)
        if key not in finest or run.every < finest[key][0]:
            pieces = [run.positions[a:b] for a, b in segments(np.sort(own), window, run.every)]
            finest[key] = (run.every, Sample(pieces, spacing))
    samples = [sample for _, sample in finest.values()]
    lags = [
        np.round(np.geomspace(least, longest, LAGS) / spacing).clip(1) * spacing
        for spacing in {round(sample.spacing, 9) for sample in samples}
    ]
    found = ElasticNetwork.fit(samples, np.unique(np.round(np.concatenate(lags), 9)))
    return ElasticNetwork.of_arrays(found.arrays())


def _known(windows: TrajectoryWindows) -> dict[str, Known]:
    """Of every molecule what some windows see of its runs."""
    found: dict[str, list] = {}
    starts: dict[int, list[int]] = {}
    for r, start in windows.index:
        starts.setdefault(r, []).append(start)
    for r, own in starts.items():
        run = windows.runs[r]
        pieces = [run.positions[a:b] for a, b in segments(own, windows.window, run.every)]
        found.setdefault(run.builder.identity, []).extend(pieces)
    every = windows.runs[0].every
    return {name: Known(pieces, windows.window.targets, every) for name, pieces in found.items()}
