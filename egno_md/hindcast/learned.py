"""An operator that draws, learned from the very run that is forecast, and kept for the next forecast of it."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._version import __version__
from ..errors import DataError, counted
from ..forecast.forecasters import Forecaster, Known
from .engine import ModelEngine, hash_of
from .hindcast import SAMPLES, windows_at_most
from .material import Material

if TYPE_CHECKING:
    from ..forecast.model import Model
    from ..graph.builder import GraphBuilder
    from ..graph.windows import TrajectoryWindows
    from ..specs import GraphSpec, WindowSpec

NAME = "learned from this run"

#: Neighbours of an atom on the mean structure that the graph reaches, the mean over the atoms.
NEIGHBOURS = 8

#: Frames of past that are read at most.
HISTORY = 8

#: Share of the known frames whose windows choose the epoch, how many of them do, and the windows of one epoch.
CHOOSING, CHOOSING_WINDOWS, EPOCH_WINDOWS = 0.15, 128, 640

#: Windows and steps of training below which nothing is learned, and the share of the time that training leaves.
FEWEST_WINDOWS, FEWEST_STEPS, RESERVE = 200, 50, 0.1

#: How many times the steps whose weights are averaged go into all of them.
AVERAGED = 20

#: Of Adam, and how many times as long a step takes as the loss alone.
LEARNING_RATE, BACKWARD = 2e-3, 3


class _Parts(NamedTuple):
    train: TrajectoryWindows
    choosing: TrajectoryWindows


@dataclasses.dataclass
class Learned:
    """The operator "flow", trained for some time on what may be known of a run.

    Attributes
    ----------
    material : Material
    select : str
        Selection of its atoms.
    seconds : float
        Time for it, to be judged included.
    starts : sequence of int
        Frames that are forecast from.
    beside : Path, optional
        A forecast: the model is kept in a file beside it, whose name begins alike and ends in the hash of all that was
        learned from, and is taken from there the next time.
    seed : int
    device : str
    progress : bool
        A line per epoch on stderr.
    engine : ModelEngine or None
        None before the call.
    """

    material: Material
    select: str
    seconds: float
    starts: Sequence[int] = ()
    beside: Path | None = None
    seed: int = 0
    device: str = "auto"
    progress: bool = False
    engine: ModelEngine | None = None

    def __call__(self, known: Known) -> Forecaster:
        """The trained model, that is judged and forecasts as it is.

        Raises
        ------
        DataError
            A start that is not after the known frames; frames or seconds that are too few.
        OutputError
            It cannot be kept.
        """
        from ..forecast.chain import ModelForecaster
        from ..forecast.model import load_model
        from ..graph.builder import GraphBuilder

        until = time.monotonic() + self.seconds * (1 - RESERVE)
        self._check_starts(known)
        graph, window = self._specs(known)
        builder = GraphBuilder(self.material.subject.atoms, graph)
        kept = self._kept(known)
        if kept is not None and kept.is_file():
            model = load_model(kept)
        else:
            model = self._trained(known, builder, graph, window, until)
            if kept is not None:
                model.save(kept)
        self.engine = ModelEngine(dataclasses.replace(model, name=NAME), builder, self.material.subject)
        return ModelForecaster(self.engine.model, builder, device=self.device)

    def _check_starts(self, known: Known) -> None:
        numbers = np.concatenate([run.numbers for run in self.material.runs])
        last = int(numbers[sum(map(len, known.segments)) - 1])  # what is known is what comes first
        if early := [int(start) for start in self.starts if start <= last]:
            raise DataError(
                f"it would know what follows frame {early[0]}, for it learns from the frames up to {last}: forecast "
                "from a later one"
            )

    def _kept(self, known: Known) -> Path | None:
        if self.beside is None:
            return None
        # Another version may learn otherwise.
        how = (__version__, self.select, known.steps, known.every, self.material.stride_ps, self.seconds, self.seed)
        found = hash_of(" ".join(map(str, how)), known.segments)
        return self.beside.with_name(f"{self.beside.stem}_learned_{found[:12]}.safetensors")

    def _specs(self, known: Known) -> tuple[GraphSpec, WindowSpec]:
        """A graph that serves atoms of any kind: the mean structure tells them apart."""
        from ..specs import GraphSpec, WindowSpec

        mean = known.motion.mean
        apart = np.sort(np.linalg.norm(mean[:, None] - mean, axis=-1), axis=1)  # (N, N)
        graph = GraphSpec(
            select=self.select,
            cutoff=float(np.ceil(apart[:, min(NEIGHBOURS, len(mean) - 1)].mean())),
            node_features=("speed",),
            edge_features=("rbf", "hop"),
        )
        history = int(np.clip(known.history - 1, 1, HISTORY))
        return graph, WindowSpec(stride_ps=self.material.stride_ps, n_times=len(known.steps), history=history)

    def _trained(
        self, known: Known, builder: GraphBuilder, graph: GraphSpec, window: WindowSpec, until: float
    ) -> Model:
        from ..forecast.model import new_model
        from ..molecule.local import LocalGeometry
        from ..nn import operators
        from ..specs import ModelSpec, TrainSpec
        from ..training.loop import fit
        from ..training.source import processes

        usual, has_bonds = operators.get("flow").usual, bool(len(builder.bonds))
        spec = ModelSpec(
            operator="flow",
            keep_bonds=has_bonds,
            options={"modes": min(usual["model"]["modes"], window.n_times // 2 + 1)},
            length_scale=usual["model"]["length_scale"],
        )
        model = new_model(graph, window, operators.complete(spec), seed=self.seed)
        parts = _parts(known, builder, window)
        geometry = {builder.identity: LocalGeometry.fit(known.segments, builder.bonds)} if has_bonds else {}
        model = dataclasses.replace(model, name=NAME, process=processes(parts.train), geometry=geometry)
        training = TrainSpec(**usual["training"], learning_rate=LEARNING_RATE, seed=self.seed)
        step = _seconds_of_step(model, parts.train, training.batch_size, self.device)
        n_windows = windows_at_most(builder.n_atoms, window.n_times)
        judging = n_windows * SAMPLES * model.spec.steps / training.batch_size * step / BACKWARD
        left = until - judging - time.monotonic()
        windows = min(EPOCH_WINDOWS, len(parts.train))
        batches = -(-windows // training.batch_size)
        epoch = step * (batches + len(parts.choosing) / training.batch_size / BACKWARD)  # in seconds
        epochs = max(0, int(left / epoch))
        if epochs * batches < FEWEST_STEPS:
            needed = -(-FEWEST_STEPS // batches) * epoch + self.seconds * (1 - RESERVE) - left
            raise DataError(
                f"{self.seconds:g} s are enough for {counted(epochs * batches, 'step')} of training, and fewer than "
                f"{FEWEST_STEPS} are not worth it: give it {10 * np.ceil(1.2 * needed / (1 - RESERVE) / 10):g} s"
            )
        # The learning rate is at its end when the time is, and weights of the start are not left in their average.
        decay = min(training.ema_decay, max(0.0, 1 - AVERAGED / (epochs * batches)))
        training = training.model_copy(
            update={"epoch_windows": windows, "max_epochs": epochs, "patience": epochs, "ema_decay": decay}
        )
        with tempfile.TemporaryDirectory() as folder:
            return fit(
                model, parts.train, parts.choosing, training, work_dir=folder, device=self.device, references={},
                progress=self.progress, minutes=left / 60, enough=True,
            )  # fmt: skip


def _parts(known: Known, builder: GraphBuilder, window: WindowSpec) -> _Parts:
    """Windows to train on, and those at the end of every piece that choose the epoch.

    Raises
    ------
    DataError
        They are too few.
    """
    from ..graph.windows import Run, TrajectoryWindows, split_blocks

    runs, train, choosing = [], [], []
    for piece in known.segments:
        try:
            starts = split_blocks(len(piece), window, every=known.every, fractions=(1 - CHOOSING, CHOOSING))
        except DataError:
            continue  # too short a piece
        runs.append(Run(piece, builder, known.every))
        train.append(starts[0])
        choosing.append(starts[1])
    count = sum(map(len, train))
    if count < FEWEST_WINDOWS:
        raise DataError(f"{counted(count, 'window')} to learn from are too few, {FEWEST_WINDOWS} are needed")
    thin = -(-sum(map(len, choosing)) // CHOOSING_WINDOWS)
    return _Parts(
        TrajectoryWindows(runs, window, train), TrajectoryWindows(runs, window, [some[::thin] for some in choosing])
    )


def _seconds_of_step(model: Model, windows: TrajectoryWindows, batch_size: int, device: str) -> float:
    """How long a step of training takes where it will take place."""
    from ..forecast.device import resolve_device
    from ..forecast.generative import drawn_loss
    from ..graph.graph import collate
    from ..nn.captured import CapturedTraining
    from ..nn.flow import Numbers

    place = resolve_device(device)
    on_gpu = place.type == "cuda"
    model = dataclasses.replace(model, network=copy.deepcopy(model.network).to(place))
    network = CapturedTraining(model.network) if on_gpu else None
    batch = collate([windows[k] for k in np.linspace(0, len(windows) - 1, batch_size).astype(int)]).to(place)
    seconds = []
    for _ in range(CapturedTraining.CALLS + 2 if on_gpu else 3):  # the first ones compile, and record
        began = time.monotonic()
        terms = drawn_loss(model, batch, Numbers((0, 0, 0), range(batch_size), batch_size), network=network)
        sum(term for term, _ in terms).backward()
        next(p.grad for p in model.network.parameters() if p.grad is not None).cpu()  # waits for a GPU
        seconds.append(time.monotonic() - began)
    return min(seconds)
