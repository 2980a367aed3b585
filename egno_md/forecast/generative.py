"""Operators that draw: from graphs to the frame of reference of the body, the base distribution there, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..errors import ModelError
from ..graph.graph import Graph
from ..nn import operators
from ..nn.flow import Body, Numbers
from .drawn import GaussianProcess, Seen, apart, in_body, moved
from .gaussian import Between
from .model import Model


class _Group(NamedTuple):
    """Graphs of one molecule."""

    process: GaussianProcess
    rows: list[int]  # which graphs of the batch
    nodes: np.ndarray  # (B, N), their nodes
    seen: Seen


class Bodies:
    """The graphs of a batch, each in the frame of reference in which its start is superposed on its mean structure.

    Parameters
    ----------
    model : Model
        Of an operator that draws; it knows the process of each molecule.
    graph : Graph

    Attributes
    ----------
    body : egno_md.nn.flow.Body

    Raises
    ------
    ModelError
        A molecule that the model does not know.
    """

    def __init__(self, model: Model, graph: Graph) -> None:
        self.scale, self.times = model.spec.length_scale, np.asarray(model.window.targets, float)
        self.like, self.n_nodes = graph.pos, graph.n_nodes
        ends = np.concatenate([[0], np.cumsum(graph.sizes)])
        pos, vel = (x.detach().cpu().double().numpy() for x in (graph.pos, graph.vel))
        start, velocity, reference = (np.empty((graph.n_nodes, 3)) for _ in range(3))
        turn = np.empty((graph.n_graphs, 3, 3))
        self.groups: list[_Group] = []
        for name in dict.fromkeys(graph.identity):
            if name not in model.process:
                raise ModelError(
                    f"model {model.name!r} draws futures of the {len(model.process)} molecule(s) that it was trained "
                    "on, and this is none of them (atoms, names and bonds must agree): train one on runs of this "
                    "molecule (egno-md train ... --operator flow)"
                )
            process = model.process[name]
            rows = [k for k, other in enumerate(graph.identity) if other == name]
            nodes = ends[rows][:, None] + np.arange(len(process.mean))  # (B, N)
            seen = in_body(np.stack([pos[nodes] - vel[nodes], pos[nodes]], axis=1), process.mean, 2)
            self.groups.append(_Group(process, rows, nodes, seen))
            start[nodes] = process.mean + seen.features[:, 0]
            velocity[nodes] = seen.features[:, 1]
            reference[nodes] = process.mean
            turn[rows] = seen.rotation
        shift = None
        if graph.edge_shift is not None:
            turns = torch.as_tensor(turn).to(self.like)[graph.batch[graph.edge_index[0]]]  # (E, 3, 3)
            shift = (graph.edge_shift[:, None] @ turns)[:, 0] / self.scale  # (E, 3)
        self.body = Body(
            graph.x, graph.edge_index, graph.edge_attr, shift, graph.batch, graph.n_graphs, graph.local_index,
            *(self._tensor(x) for x in (start, velocity, reference)),
        )  # fmt: skip

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array / self.scale).to(self.like)

    def _array(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().cpu().double().numpy() * self.scale

    def base(
        self, start: torch.Tensor, vel: torch.Tensor, generators: Sequence[np.random.Generator] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and one path (T, N, 3) of the Gaussian process of each graph, see :data:`egno_md.nn.flow.Base`."""
        starts, velocities = self._array(start), self._array(vel)
        mean = np.empty((len(self.times), self.n_nodes, 3))
        path = np.empty_like(mean)
        for process, rows, nodes, _ in self.groups:
            here, way = starts[nodes], velocities[nodes]  # (B, N, 3)
            features = np.stack([here - process.mean, way, -way / 2], axis=1)  # (B, 3, N, 3)
            between = Between.of(self.times, process.knots, process.noise.across, process.name)
            shape = (len(rows), len(self.times), *here.shape[1:])
            middle = here[:, None] + between(process.moves(features)).reshape(shape)  # (B, T, N, 3)
            mean[:, nodes] = middle.swapaxes(0, 1)
            if generators is not None:
                numbers = np.stack([generators[row].standard_normal(process.noise.n_numbers) for row in rows])
                noise = between(process.noise.paths(numbers)) * between.stretch[:, None]  # (B, T, 3 N)
                path[:, nodes] = (middle + noise.reshape(shape)).swapaxes(0, 1)
        return self._tensor(mean), self._tensor(mean if generators is None else path)

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        """Frames (N, T, 3) that followed, superposed on their starts (T, N, 3), in the network's unit."""
        y = y.detach().cpu().double().numpy()
        out = np.empty((y.shape[1], self.n_nodes, 3))
        for process, _, nodes, seen in self.groups:
            frames = y[nodes].swapaxes(1, 2)  # (B, T, N, 3)
            frames = (frames - seen.centre[:, None]) @ seen.rotation[:, None]
            start = process.mean + seen.features[:, 0]
            out[:, nodes] = (apart(frames, start)[0]).swapaxes(0, 1)
        return self._tensor(out)

    def back(self, paths: torch.Tensor, generators: Sequence[np.random.Generator] | None) -> np.ndarray:
        """Paths (T, N, 3) of the body in the frame of reference of the laboratory, in Angstrom; turned and moved as a
        whole as the last stride tells and, with generators, at random."""
        frames = self._array(paths)
        out = np.empty_like(frames)
        for process, rows, nodes, seen in self.groups:
            between = Between.of(self.times, process.knots, process.motion.noise.across, process.name)
            motion = between(process.motion.mean(seen.drift))  # (B, T, 6)
            if generators is not None and process.rigid:
                numbers = np.stack([generators[row].standard_normal(process.motion.noise.n_numbers) for row in rows])
                motion = motion + between(process.motion.noise.paths(numbers)) * between.stretch[:, None]
            here = moved(frames[:, nodes].swapaxes(0, 1), motion)  # (B, T, N, 3)
            out[:, nodes] = seen.back(here).swapaxes(0, 1)
        return out


def draws(model: Model) -> bool:
    """Whether the model's operator draws futures, instead of knowing their mean alone."""
    return operators.get(model.spec.operator).drawing is not None


def drawn_window(
    model: Model,
    graph: Graph,
    generators: Sequence[np.random.Generator] | None = None,
    *,
    max_memory: int | str | None = None,
) -> np.ndarray:
    """One future of each graph, or without generators the mean of all of them; (T, N, 3), float64, Angstrom.

    Raises
    ------
    ModelError
        A molecule that the model does not know.
    """
    operator, options = operators.get(model.spec.operator), operators.options_of(model.spec)
    bodies = Bodies(model, graph)
    paths = operator.drawing.draw(
        model.network, bodies.body, bodies.base, generators, options,
        max_memory=None if max_memory == "auto" else max_memory,
    )  # fmt: skip
    return bodies.back(paths, generators)


def drawn_loss(model: Model, graph: Graph, numbers: Numbers) -> list[tuple[torch.Tensor, int]]:
    """Terms of the operator's training loss, and over how many things of these graphs each of them is a mean."""
    operator, options = operators.get(model.spec.operator), operators.options_of(model.spec)
    bodies = Bodies(model, graph)
    return operator.drawing.loss(model.network, bodies.body, bodies.base, bodies.targets(graph.y), numbers, options)
