"""The operator of a model as a forecaster of one window: from frames in Angstrom to graphs, and back."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..errors import DataError, UsageError
from ..graph.builder import GraphBuilder
from ..graph.graph import Graph, collate
from ..graph.windows import displacements, frames_back, nodes_first
from ..nn import operators
from ..nn.captured import RECORDABLE, Captured
from ..nn.edges.products import has_fast_bf16
from .device import check_precision, in_precision, resolve_device
from .generative import drawn_window, draws, filled_window
from .model import Model
from .streams import each_of

#: Windows in a chain from which it is worth recording the network as a CUDA graph: that costs some five calls, of each
#: of which a replay saves nine tenths.
CAPTURE_FROM = 16

#: Nodes of all futures that are drawn at a time.
NODES_PER_DRAW = 4096


def apply_operator(
    model: Model,
    graph: Graph,
    *,
    times: torch.Tensor | None = None,
    max_memory: int | str | None = None,
    network: Callable | None = None,
):
    """Run the operator on graphs in Angstrom; the only place where the network's own unit of length appears.

    Parameters
    ----------
    model : Model
    graph : Graph
        From a GraphBuilder or TrajectoryWindows, one or a batch; Angstrom, Angstrom per stride.
    times : Tensor, shape (T,), optional
        Time points in strides, 0 being the first predicted frame (spec: 0, 1, ..., T - 1).
    max_memory : int or "auto", optional
        Bound of the edge temporaries in bytes; "auto" and None leave it to the operator.
    network : callable, optional
        Called in place of ``model.network``, in the same way.

    Returns
    -------
    NamedTuple
        What the operator returns, with ``pos`` (T, N, 3) and ``vel`` (T, N, 3) in Angstrom.

    Raises
    ------
    ModelError
        A molecule that the model's regression does not know.
    DataError
        Graphs without a field that the operator reads.
    """
    if draws(model):
        return _mean_future(model, graph, times, max_memory, network)
    scale = model.spec.length_scale
    pos, vel = graph.pos, graph.vel  # (N, 3)
    if model.spec.prior == "regression":
        pos = prior_path(model, graph, times)  # (T, N, 3)
        vel = vel.expand_as(pos)  # (T, N, 3)
    if model.window.history > 1:
        pos = graph.pos_history.transpose(0, 1)  # (T, N, 3)
        vel = graph.vel_history.transpose(0, 1)  # (T, N, 3)
    further = {name: getattr(graph, name, None) for name in operators.get(model.spec.operator).reads}
    if lacking := [name for name, value in further.items() if value is None]:
        raise DataError(
            f"the operator {model.spec.operator!r} reads {', '.join(lacking)}, which these graphs do not have: add it "
            "to the data set, see egno_md.graph.Graph"
        )
    out = (network or model.network)(
        graph.x,
        pos / scale,
        vel / scale,
        graph.edge_index,
        graph.edge_attr,
        times=times,
        batch=graph.batch,
        edge_shift=None if graph.edge_shift is None else graph.edge_shift / scale,
        max_memory=None if max_memory == "auto" else max_memory,
        **further,
    )
    return out._replace(pos=out.pos * scale, vel=out.vel * scale)


class MeanFuture(NamedTuple):
    """The mean of all futures that an operator draws, in Angstrom and Angstrom per stride."""

    pos: torch.Tensor  # (T, N, 3)
    vel: torch.Tensor  # (T, N, 3)


def _mean_future(
    model: Model, graph: Graph, times: torch.Tensor | None, max_memory: int | str | None, network: Callable | None
) -> MeanFuture:
    if times is not None and not np.array_equal(times.cpu().numpy() + 1.0, model.window.targets):
        raise UsageError(
            f"model {model.name!r} draws the frames {list(model.window.targets)} of a window and none between them: "
            "substeps must be 1"
        )
    frames = drawn_window(model, graph, max_memory=max_memory, network=network)  # (T, N, 3)
    pos = torch.from_numpy(frames).to(graph.pos)  # (T, N, 3)
    return MeanFuture(pos, torch.diff(pos, dim=0, prepend=graph.pos[None]))


def prior_path(model: Model, graph: Graph, times: torch.Tensor | None = None) -> torch.Tensor:
    """What the model's regression says of some graphs, (T, N, 3) in Angstrom.

    Raises
    ------
    ModelError
        A molecule that the model does not know.
    """
    if times is None:
        ahead = np.asarray(model.window.targets, float)  # (T,)
    else:
        ahead = times.cpu().numpy() + 1.0  # (T,); only a window of every stride is asked for other times
    names = graph.identity
    starts, velocities = (x.cpu().double().split(graph.sizes) for x in (graph.pos, graph.vel))
    out: list[torch.Tensor] = [torch.empty(0)] * len(names)
    for name in set(names):
        model.require(name)
        here = [k for k, other in enumerate(names) if other == name]
        start, velocity = (torch.stack([x[k] for k in here]).numpy() for x in (starts, velocities))  # (B, N, 3)
        paths = model.regression[name].path(start, velocity, ahead)  # (B, T, N, 3)
        for k, path in zip(here, torch.from_numpy(paths), strict=True):
            out[k] = path
    return torch.cat(out, dim=1).to(graph.pos)  # (T, N, 3)


class OperatorWindow:
    """One window of a model as its operator gives it: a forecaster of the steps in `model.window` and between them.

    Parameters
    ----------
    model : Model
        Its network stays where it is; on another device a copy is used.
    builder : GraphBuilder
        Of the atoms that are forecast.
    device, precision, max_memory
        See :func:`forecast`.
    n_windows : int
        Windows that will be asked for one after the other; a long chain on a GPU is worth a recording.

    Raises
    ------
    UsageError
        See :func:`egno_md.forecast.check_precision`.
    """

    def __init__(
        self,
        model: Model,
        builder: GraphBuilder,
        *,
        device: str | torch.device = "auto",
        precision: str = "float32",
        max_memory: int | str | None = "auto",
        n_windows: int = 1,
    ) -> None:
        device = resolve_device(device)
        check_precision(precision, device)
        if precision == "bf16" and device.type == "cpu" and not has_fast_bf16():
            warnings.warn("this processor has no bf16 arithmetic: precision 'float32' is faster here", stacklevel=4)
        if next(model.network.parameters()).device != device:
            model = dataclasses.replace(model, network=copy.deepcopy(model.network).to(device))
        self.model, self.builder, self.name = model, builder, model.name
        self.device, self.precision, self.max_memory = device, precision, max_memory
        self.n_past, self.draws = frames_back(model.window) + 1, draws(model)
        self._network = _recordable(model, device, n_windows)

    def __call__(self, past, times, samples=1, generator=None, *, boxes=None):
        if self.draws and generator is not None:
            return self._drawn(past, times, samples, generator, boxes)
        model, n_starts, n_atoms = self.model, *past.shape[::2]
        targets = np.asarray(model.window.targets, float)
        asked = np.asarray(times, float)
        chosen, points = slice(None), None
        if not np.array_equal(asked, targets):
            place = np.searchsorted(targets, asked).clip(max=len(targets) - 1)
            if np.array_equal(targets[place], asked):
                chosen = place
            else:
                points = torch.tensor(asked, dtype=torch.float32, device=self.device) - 1  # (T,)
        batch = graphs(model, [self.builder] * n_starts, past[:, -self.n_past :], boxes).to(self.device)
        with torch.inference_mode(), in_precision(self.precision, self.device):
            pos = apply_operator(
                model, batch, times=points, max_memory=self.max_memory, network=self._network
            ).pos  # (T, S * N, 3)
        frames = pos.cpu().numpy().reshape(len(pos), n_starts, n_atoms, 3).swapaxes(0, 1)  # (S, T, N, 3)
        return frames[:, None, chosen]  # (S, 1, T, N, 3)

    def _drawn(self, past, times, samples, generator, boxes):
        """Futures (S, K, T, N, 3), each from random numbers of its own; so many at a time as there is room for."""
        targets, asked = np.asarray(self.model.window.targets, float), np.asarray(times, float)
        chosen = np.searchsorted(targets, asked).clip(max=len(targets) - 1)
        if not np.array_equal(targets[chosen], asked):
            raise UsageError(
                f"model {self.name!r} draws the strides {targets.tolist()} of a window and none between them; asked "
                f"for {asked.tolist()}"
            )
        n_starts, n_atoms = past.shape[::2]
        generators = each_of(generator, n_starts * samples)
        out = np.empty((n_starts * samples, len(asked), n_atoms, 3))  # (S * K, T, N, 3)
        room = max(1, NODES_PER_DRAW // n_atoms)
        for first in range(0, len(out), room):
            rows = np.arange(first, min(first + room, len(out)))
            starts = rows // samples
            some = None if boxes is None else [boxes[s] for s in starts]
            batch = graphs(self.model, [self.builder] * len(rows), past[starts, -self.n_past :], some).to(self.device)
            with torch.inference_mode(), in_precision(self.precision, self.device):
                frames = drawn_window(
                    self.model,
                    batch,
                    [generators[row] for row in rows],
                    max_memory=self.max_memory,
                    network=self._network,
                )  # (T, R * N, 3)
            out[rows] = frames.reshape(-1, len(rows), n_atoms, 3).swapaxes(0, 1)[:, chosen]
        return out.reshape(n_starts, samples, *out.shape[1:])

    def between(self, past: np.ndarray, end: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """A path from the last of some frames (n_past, N, 3) to an end (N, 3), or without a generator the mean of all.

        Returns
        -------
        ndarray, shape (T, N, 3)
            Superposed on the start, Angstrom; the last frame is the end.
        """
        graph = graphs(self.model, [self.builder], [past.astype(np.float32)]).to(self.device)
        with torch.inference_mode(), in_precision(self.precision, self.device):
            return filled_window(self.model, graph, end, None if generator is None else [generator])


def _recordable(model: Model, device: torch.device, n_windows: int) -> Captured | None:
    """The network as a CUDA graph, where there is a GPU, a long chain and a network that can be recorded."""
    fits = device.type == "cuda" and n_windows >= CAPTURE_FROM and type(model.network) in RECORDABLE
    return Captured(model.network) if fits else None


def graphs(
    model: Model, builders: Sequence[GraphBuilder], frames: Sequence[np.ndarray], boxes: Sequence | None = None
) -> Graph:
    """Graphs of B starts as one batch; `frames` are B histories (n_input, N, 3)."""
    graphs = []
    for b, (builder, past) in enumerate(zip(builders, frames, strict=True)):
        velocities = displacements(past, model.window)  # (history, N, 3)
        graph = builder(past[-1], velocities[-1], None if boxes is None else boxes[b])
        if model.window.history > 1:
            graph = graph._replace(pos_history=nodes_first(past[1:]), vel_history=nodes_first(velocities))
        graphs.append(graph)
    return collate(graphs)
