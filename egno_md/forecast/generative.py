"""Operators that draw: from graphs to the frame of reference of the body, the base distribution there, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..errors import ModelError
from ..graph.graph import Graph
from ..nn import operators
from ..nn.flow import ABOUT, Body, End, Numbers
from .drawn import GaussianProcess, Seen, apart, in_body, moved
from .gaussian import Between
from .model import Model
from .network import Conditional, Modes, Placed


class Bodies:
    """The graphs of a batch, each in a frame of reference of its own, and where their windows begin.

    Attributes
    ----------
    body : egno_md.nn.flow.Body
    """

    body: Body

    def __init__(self, model: Model, graph: Graph) -> None:
        self.scale, self.times = model.spec.length_scale, np.asarray(model.window.targets, float)
        self.like, self.n_nodes, self.n_graphs = graph.pos, graph.n_nodes, graph.n_graphs
        self.ends = np.concatenate([[0], np.cumsum(graph.sizes)])

    def _set(self, graph: Graph, placed: Sequence[np.ndarray], turn: np.ndarray, **further: torch.Tensor) -> None:
        """The body, of starts, velocities and references (N, 3) in Angstrom, and the rotation of each graph there."""
        shift = None
        if graph.edge_shift is not None:
            turns = torch.as_tensor(turn).to(self.like)[graph.batch[graph.edge_index[0]]]  # (E, 3, 3)
            shift = (graph.edge_shift[:, None] @ turns)[:, 0] / self.scale  # (E, 3)
        self.body = Body(
            graph.x, graph.edge_index, graph.edge_attr, shift, graph.batch, graph.n_graphs, graph.local_index,
            *map(self._tensor, placed), **further,
        )  # fmt: skip

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array / self.scale).to(self.like)

    def _array(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().cpu().double().numpy() * self.scale

    def base(
        self, start: torch.Tensor, vel: torch.Tensor, generators: Sequence[np.random.Generator] | None,
        end: End | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Mean and one path (T, N, 3) of the base of each graph, see :data:`egno_md.nn.flow.Base`."""
        mean = np.empty((len(self.times), self.n_nodes, 3))
        path = np.empty_like(mean)
        known = _Known(np.zeros(self.n_graphs, bool), np.empty((self.n_nodes, 3)))
        if end is not None:
            known = _Known(end.ended.cpu().numpy(), self._array(end.pos))
        self._paths(self._array(start), self._array(vel), generators, known, mean, path)
        mean, path = self._tensor(mean), self._tensor(mean if generators is None else path)
        if end is not None:
            there = end.ended[self.body.batch]  # (N,)
            mean[-1, there] = path[-1, there] = end.pos[there]
        return mean, path

    def _paths(
        self, start: np.ndarray, vel: np.ndarray, generators: Sequence[np.random.Generator] | None, known: _Known,
        mean: np.ndarray, path: np.ndarray,
    ) -> None:  # fmt: skip
        """Fill in the means and, with generators, the paths (T, N, 3) in Angstrom."""
        raise NotImplementedError

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        """Frames (N, T, 3) that followed, superposed on their starts (T, N, 3), in the network's unit."""
        raise NotImplementedError

    def placed(self, paths: torch.Tensor) -> np.ndarray:
        """Paths (T, N, 3) of the body in the frame of reference of the laboratory, superposed on their starts, in
        Angstrom."""
        raise NotImplementedError

    def back(self, paths: torch.Tensor, generators: Sequence[np.random.Generator] | None) -> np.ndarray:
        """Paths (T, N, 3) of the body in the frame of reference of the laboratory, in Angstrom; turned and moved as a
        whole as the last strides tell and, with generators, at random."""
        raise NotImplementedError


class _Known(NamedTuple):
    """Ends of windows (N, 3) in Angstrom, and of which graphs they are known (B,)."""

    ended: np.ndarray
    pos: np.ndarray


class _Group(NamedTuple):
    """Graphs of one molecule."""

    process: GaussianProcess
    rows: list[int]  # which graphs of the batch
    nodes: np.ndarray  # (B, N), their nodes
    seen: Seen
    n_past: int  # frames that are read
    older: np.ndarray  # (B, N, 3), sum of the displacements from the start of those before the last stride


class OwnBodies(Bodies):
    """Graphs whose starts are superposed on the mean structure of their molecule, which the model knows.

    Raises
    ------
    ModelError
        A molecule that the model does not know.
    """

    def __init__(self, model: Model, graph: Graph) -> None:
        super().__init__(model, graph)
        past = _past(graph)  # (N, P, 3)
        start, velocity, reference = (np.empty((graph.n_nodes, 3)) for _ in range(3))
        turn = np.empty((graph.n_graphs, 3, 3))
        self.groups: list[_Group] = []
        for name in dict.fromkeys(graph.identity):
            model.require(name)
            process = model.process[name]
            rows = [k for k, other in enumerate(graph.identity) if other == name]
            nodes = self.ends[rows][:, None] + np.arange(len(process.mean))  # (B, N)
            n_past = min(max(process.n_past, 2), past.shape[1])
            seen = in_body(past[nodes].swapaxes(1, 2), process.mean, n_past)
            older = n_past * seen.features[:, 2] + seen.features[:, 1]  # (B, N, 3)
            self.groups.append(_Group(process, rows, nodes, seen, n_past, older))
            start[nodes] = process.mean + seen.features[:, 0]
            velocity[nodes] = seen.features[:, 1]
            reference[nodes] = process.mean
            turn[rows] = seen.rotation
        self._set(graph, (start, velocity, reference), turn)

    def _paths(self, start, vel, generators, known, mean, path):
        for process, rows, nodes, seen, n_past, older in self.groups:
            here, way = start[nodes], vel[nodes]  # (B, N, 3)
            was = process.mean + seen.features[:, 0]  # (B, N, 3), without the noise of a training
            smoothed = (older + (n_past - 2) * (was - here) - way) / n_past
            features = np.stack([here - process.mean, way, smoothed], axis=1)  # (B, 3, N, 3)
            between = Between.of(self.times, process.knots, process.noise.across, process.name)
            shape = (len(rows), len(self.times), *here.shape[1:])
            moves, ended = process.moves(features), known.ended[rows]  # (B, K, 3 N), (B,)
            if ended.any():
                ends = (known.pos[nodes] - here)[ended].reshape(-1, moves.shape[-1])  # (C, 3 N)
                moves[ended] += process.noise.towards(ends - moves[ended, -1])
            middle = here[:, None] + between(moves).reshape(shape)  # (B, T, N, 3)
            mean[:, nodes] = middle.swapaxes(0, 1)
            if generators is not None:
                numbers = np.stack([generators[row].standard_normal(process.noise.n_numbers) for row in rows])
                paths = process.noise.paths(numbers)  # (B, K, 3 N)
                if ended.any():
                    paths[ended] -= process.noise.towards(paths[ended, -1])
                noise = between(paths) * between.stretch[:, None]  # (B, T, 3 N)
                path[:, nodes] = (middle + noise.reshape(shape)).swapaxes(0, 1)

    def targets(self, y):
        y = y.detach().cpu().double().numpy()
        out = np.empty((y.shape[1], self.n_nodes, 3))
        for process, _, nodes, seen, *_ in self.groups:
            frames = y[nodes].swapaxes(1, 2)  # (B, T, N, 3)
            frames = (frames - seen.centre[:, None]) @ seen.rotation[:, None]
            start = process.mean + seen.features[:, 0]
            out[:, nodes] = (apart(frames, start)[0]).swapaxes(0, 1)
        return self._tensor(out)

    def placed(self, paths):
        frames = self._array(paths)
        out = np.empty_like(frames)
        for _, _, nodes, seen, *_ in self.groups:
            out[:, nodes] = seen.back(frames[:, nodes].swapaxes(0, 1)).swapaxes(0, 1)
        return out

    def back(self, paths, generators):
        frames = self._array(paths)
        out = np.empty_like(frames)
        for process, rows, nodes, seen, *_ in self.groups:
            between = Between.of(self.times, process.knots, process.motion.noise.across, process.name)
            motion = between(process.motion.mean(seen.drift))  # (B, T, 6)
            if generators is not None and process.rigid:
                numbers = np.stack([generators[row].standard_normal(process.motion.noise.n_numbers) for row in rows])
                motion = motion + between(process.motion.noise.paths(numbers)) * between.stretch[:, None]
            here = moved(frames[:, nodes].swapaxes(0, 1), motion)  # (B, T, N, 3)
            out[:, nodes] = seen.back(here).swapaxes(0, 1)
        return out


class _Start(NamedTuple):
    """One graph."""

    nodes: slice
    placed: Placed
    modes: Modes
    stride: float
    grid: Conditional
    whole: Conditional
    spread: np.ndarray  # (T, N)


class AnyBodies(Bodies):
    """Graphs in a frame of reference that each start gives itself, with the elastic network of that start.

    Raises
    ------
    ModelError
        The model has no network.
    """

    def __init__(self, model: Model, graph: Graph) -> None:
        super().__init__(model, graph)
        if not model.elastic:
            raise ModelError(f"model {model.name!r} has no elastic network to begin with: it was not trained yet")
        (self.network,) = model.elastic.values()
        past = _past(graph)  # (N, P, 3)
        strides = [model.window.stride_ps] * self.n_graphs if graph.stride is None else graph.stride.tolist()
        start, velocity = (np.empty((graph.n_nodes, 3)) for _ in range(2))
        about, size = np.empty((graph.n_nodes, ABOUT)), np.empty(self.n_graphs)
        turn = np.empty((self.n_graphs, 3, 3))
        self.starts: list[_Start] = []
        grids = {
            stride: self.network.conditional(past.shape[1] - 1, self.times, stride) for stride in dict.fromkeys(strides)
        }
        seen: dict[tuple, _Start] = {}
        for b, stride in enumerate(strides):
            nodes = slice(*self.ends[b : b + 2])
            frames = past[nodes].swapaxes(0, 1)[None]  # (1, P, N, 3)
            key = (stride, frames.tobytes())  # the members of an ensemble have one start
            if key not in seen:
                placed, (grid, whole) = Placed.of(frames, past.shape[1]), grids[stride]
                modes = Modes.of(placed.start[0])
                spread = self.network.given(modes, placed.before[0], grid).spread
                seen[key] = _Start(nodes, placed, modes, stride, grid, whole, spread)
            self.starts.append(seen[key]._replace(nodes=nodes))
            placed, spread = seen[key].placed, seen[key].spread
            size[b] = max(np.sqrt(np.mean(spread**2)), 1e-6)
            start[nodes], velocity[nodes], turn[b] = placed.start[0], -placed.before[0, -1], placed.rotation[0]
            relative = np.maximum(spread[[0, -1]], 1e-9) / size[b]  # (2, N)
            about[nodes, 0], about[nodes, 1] = np.log(size[b]), np.log10(stride)
            about[nodes, 2:4] = np.log(relative).T
            about[nodes, 4] = np.linalg.norm(velocity[nodes], axis=1) / size[b]
        further = {"size": self._tensor(size), "about": torch.as_tensor(about).to(self.like)}
        self._set(graph, (start, velocity, start), turn, **further)

    def _paths(self, start, vel, generators, known, mean, path):
        between: dict[float, Conditional] = {}
        for b, (nodes, placed, modes, stride, grid, *_) in enumerate(self.starts):
            before = placed.before[0] + placed.start[0] - start[nodes]  # (P, N, 3), with the noise of a training
            before[-1] = -vel[nodes]
            free = slice(None)
            if known.ended[b]:
                if stride not in between:
                    between[stride] = self.network.conditional(len(before), self.times, stride, ended=True)[0]
                before, grid = np.concatenate([before, (known.pos - start)[None, nodes]]), between[stride]
                free = slice(-1)  # what is known stays as it is, and is put in afterwards
                mean[-1, nodes] = path[-1, nodes] = known.pos[nodes]
            given = self.network.given(modes, before, grid)
            mean[free, nodes] = start[nodes] + given.mean
            if generators is not None:
                numbers = generators[b].standard_normal((len(self.times), *start[nodes].shape))
                path[free, nodes] = mean[free, nodes] + given.path(numbers[free])

    def targets(self, y):
        y = y.detach().cpu().double().numpy()
        out = np.empty((y.shape[1], self.n_nodes, 3))
        for nodes, placed, *_ in self.starts:
            frames = (y[nodes].swapaxes(0, 1) - placed.centre[0]) @ placed.rotation[0]  # (T, N, 3)
            out[:, nodes] = apart(frames[None], placed.start)[0][0]
        return self._tensor(out)

    def placed(self, paths):
        frames = self._array(paths)
        out = np.empty_like(frames)
        for nodes, placed, *_ in self.starts:
            out[:, nodes] = placed.back(frames[None, :, nodes])[0]
        return out

    def back(self, paths, generators):
        frames = self._array(paths)
        out = np.empty_like(frames)
        for b, (nodes, placed, _, _, _, whole, _) in enumerate(self.starts):
            motion = self.network.drift(placed, whole)  # (1, T, 6)
            if generators is not None and self.network.rigid:
                numbers = generators[b].standard_normal((2, len(self.times), 3))
                motion = motion + self.network.turned(placed.start[0], whole, numbers)
            out[:, nodes] = placed.back(moved(frames[None, :, nodes], motion))[0]
        return out


def _past(graph: Graph) -> np.ndarray:
    """The frames up to the start, (N, P, 3), float64."""
    if graph.pos_history is None:
        frames = torch.stack([graph.pos - graph.vel, graph.pos], dim=1)  # (N, 2, 3)
    else:
        first = graph.pos_history[:, :1] - graph.vel_history[:, :1]  # (N, 1, 3)
        frames = torch.cat([first, graph.pos_history], dim=1)  # (N, P, 3)
    return frames.detach().cpu().double().numpy()


def bodies_of(model: Model, graph: Graph) -> Bodies:
    """Graphs as the base of the model's operator has them; errors are those of :class:`OwnBodies`."""
    any_molecule = getattr(operators.options_of(model.spec), "base", "own") == "any"
    return (AnyBodies if any_molecule else OwnBodies)(model, graph)


def draws(model: Model) -> bool:
    """Whether the model's operator draws futures, instead of knowing their mean alone."""
    return operators.get(model.spec.operator).drawing is not None


def drawn_window(
    model: Model,
    graph: Graph,
    generators: Sequence[np.random.Generator] | None = None,
    *,
    max_memory: int | str | None = None,
    network: Callable | None = None,
) -> np.ndarray:
    """One future of each graph, or without generators the mean of all of them; (T, N, 3), float64, Angstrom.

    `network` is called in place of the model's, in the same way.

    Raises
    ------
    ModelError
        A molecule that the model does not know.
    """
    operator, options = operators.get(model.spec.operator), operators.options_of(model.spec)
    bodies = bodies_of(model, graph)
    paths = operator.drawing.draw(
        network or model.network, bodies.body, bodies.base, generators, options,
        max_memory=None if max_memory == "auto" else max_memory,
    )  # fmt: skip
    return bodies.back(paths, generators)


def filled_window(
    model: Model, graph: Graph, ends: np.ndarray, generators: Sequence[np.random.Generator] | None = None
) -> np.ndarray:
    """One path of each graph from its start to an end, or without generators the mean of all of them.

    Parameters
    ----------
    model : Model
    graph : Graph
        Of the starts, and what came before them.
    ends : ndarray, shape (N, 3)
        The last frames of the windows, in Angstrom.
    generators : sequence of B numpy.random.Generator, optional

    Returns
    -------
    ndarray, shape (T, N, 3)
        Superposed on their starts, float64, Angstrom; the last frame is the end.

    Raises
    ------
    UsageError
        A model that was trained without ends.
    ModelError
        A molecule that the model does not know.
    """
    operator, options = operators.get(model.spec.operator), operators.options_of(model.spec)
    bodies = bodies_of(model, graph)
    end = bodies.targets(torch.as_tensor(ends)[:, None])[0]  # (N, 3)
    return bodies.placed(operator.drawing.draw(model.network, bodies.body, bodies.base, generators, options, end=end))


def drawn_loss(
    model: Model, graph: Graph, numbers: Numbers, *, network: Callable | None = None, teacher: Callable | None = None
) -> list[tuple[torch.Tensor, int]]:
    """Terms of the operator's training loss, and over how many things of these graphs each of them is a mean.

    `network` is called in place of the model's, in the same way. With a `teacher`, what that one draws is learned, and
    nothing of what came.
    """
    operator, options = operators.get(model.spec.operator), operators.options_of(model.spec)
    bodies = bodies_of(model, graph)
    network = network or model.network
    if teacher is not None:
        return operator.drawing.teach(network, teacher, bodies.body, bodies.base, numbers, options)
    return operator.drawing.loss(network, bodies.body, bodies.base, bodies.targets(graph.y), numbers, options)
