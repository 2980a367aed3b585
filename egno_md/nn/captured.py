"""Networks on a GPU without the wait for their launches: recorded as a CUDA graph, replayed at every call.

On a small molecule a GPU computes for a shorter time than the processor takes to launch some hundred kernels. A CUDA
graph launches them all at once, but at the same addresses and in the same shapes. Along a chain of windows one shape
alone varies, the number of edges: the edge list is padded to a capacity with edges from a spare node to itself. That
node is a graph of its own, and nothing of one graph reaches another. In the steps of a training the shapes are the same
throughout where all graphs are alike, and nothing is padded.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .egno import EGNO
from .flow import Flow

#: Networks that ask the device for nothing while they compute: neither for contents of tensors nor for shapes.
RECORDABLE = (EGNO, Flow)

#: The axis of the nodes, of the edges, or of the graphs, of the arguments that have one.
_NODES = {"h": 0, "pos": -2, "vel": -2, "batch": 0, "start": 0, "reference": 0, "mean": -2, "about": 0}
_EDGES = {"edge_index": 1, "edge_attr": 0, "edge_shift": 0}
_GRAPHS = {"level": 0, "size": 0, "ended": 0}
#: Capacity over the number of edges at the time of recording, and what it is rounded up to a multiple of.
_HEADROOM, _STEP = 1.1, 256
#: Rows, edges x time points, above which the network runs as it is: arithmetic, more of it by the padding, then takes
#: longer than launching. Measured up to a million rows, where a forecast still takes two thirds of the time.
_MAX_ROWS = 2**22


class _Recording(NamedTuple):
    """A network that is run on inputs at fixed places, with room for so many edges."""

    capacity: int
    inputs: dict[str, Tensor]
    run: Callable[[], Any]


class Captured:
    """A network that is called in the same way and returns the same; for inference.

    On a CUDA device it records the network at the first call with some shapes and replays it at the next, and records
    anew where the edges have outgrown the capacity. On other devices it runs the network on the padded input, which
    helps nobody but the tests. Weights may change in place in between, settings of torch's arithmetic (autocast, tf32)
    may not.

    EGHNO cannot be recorded: it reads the sizes of its graphs from the device, and the spare graph would enter its cut
    loss, a mean over the graphs.

    Parameters
    ----------
    network : nn.Module
        One of `RECORDABLE`.
    """

    #: Recordings that are kept, for chunks of an ensemble that differ in size.
    KEPT = 4

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._recordings: dict[tuple[object, ...], _Recording] = {}

    def __call__(self, *args: Tensor, n_graphs: int | None = None, **further: Any) -> Any:
        """Arguments, result and errors are those of the network's ``forward``."""
        return self._called(args, n_graphs, further) or self.network(*args, n_graphs=n_graphs, **further)

    def _called(self, args: tuple[Tensor, ...], n_graphs: int | None, further: dict[str, Any]) -> Any:
        """The result of a recording, or None where there is none and none is worth it."""
        given = dict(zip(("h", "pos", "vel", "edge_index", "edge_attr"), args, strict=True)) | further
        inputs = {name: x for name, x in given.items() if isinstance(x, Tensor)}
        max_memory, h, pos, edges = given.get("max_memory"), inputs["h"], inputs["pos"], inputs["edge_index"]
        if "times" not in inputs:
            n_times = len(pos) if pos.dim() == 3 else self.network.n_times
            inputs["times"] = torch.arange(n_times, device=pos.device)  # (T,)
        n_edges, batch = edges.shape[1], inputs.setdefault("batch", edges.new_zeros(len(h)))
        if n_edges * len(inputs["times"]) > _MAX_ROWS:
            return None
        if n_graphs is None:
            n_graphs = int(batch[-1]) + 1

        shapes = (n_graphs, max_memory, *((name, x.dtype, _fixed_shape(name, x)) for name, x in inputs.items()))
        found = self._recordings.get(shapes)
        if found is not None and n_edges <= found.capacity:
            fill(found.inputs, inputs, n_graphs)
        elif self._worth_it(shapes):
            self._recordings.pop(shapes, None)  # an earlier recording gives its memory back first
            capacity = -(-int(_HEADROOM * n_edges) // _STEP) * _STEP
            padded = padded_like(inputs, capacity)
            fill(padded, inputs, n_graphs)
            run = functools.partial(self.network, **padded, n_graphs=n_graphs + 1, max_memory=max_memory)
            found = _Recording(capacity, padded, self._recorded(run, padded) if pos.is_cuda else run)
            self._recordings[shapes] = found
        else:
            return None
        out = found.run()
        return type(out)(*(self._kept(x[:, : len(h)]) for x in out))

    def _worth_it(self, shapes: tuple[object, ...]) -> bool:
        """Make room for a recording."""
        if shapes not in self._recordings and len(self._recordings) == self.KEPT:
            del self._recordings[next(iter(self._recordings))]
        return True

    def _recorded(self, run: Callable[..., Any], inputs: dict[str, Tensor]) -> Callable[[], Any]:
        return recorded(run, inputs["pos"].device)

    def _kept(self, x: Tensor) -> Tensor:
        return x.clone()  # the next replay writes over it


class CapturedTraining(Captured):
    """A network in the steps of a training: forward and backward pass as one CUDA graph each.

    Gradients reach the weights, from the positions alone. What is returned is written over at the next call. Only
    shapes that come again and again are recorded: those of one molecule, or of some with equally many atoms. Without
    gradients, in validation, it is a :class:`Captured`.
    """

    #: Those of a full batch, and of the rest at the end of an epoch.
    KEPT = 2
    #: Calls with some shapes before they are recorded, and how many shapes are counted.
    CALLS, COUNTED = 3, 64

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._calls: dict[tuple[object, ...], int] = {}
        self._validation = Captured(network)

    def __call__(self, *args: Tensor, n_graphs: int | None = None, **further: Any) -> Any:
        """Arguments, result and errors are those of the network's ``forward``."""
        if not torch.is_grad_enabled():
            return self._validation(*args, n_graphs=n_graphs, **further)
        return super().__call__(*args, n_graphs=n_graphs, **further)

    def _worth_it(self, shapes: tuple[object, ...]) -> bool:
        if shapes in self._calls or len(self._calls) < self.COUNTED:
            self._calls[shapes] = self._calls.get(shapes, 0) + 1
        room = shapes in self._recordings or len(self._recordings) < self.KEPT
        return room and self._calls.get(shapes, 0) >= self.CALLS

    def _recorded(self, run: Callable[..., Any], inputs: dict[str, Tensor]) -> Callable[[], Any]:
        positional = _Positional(self.network, run)
        try:
            replay = torch.cuda.make_graphed_callables(positional, tuple(inputs.values()), allow_unused_input=True)
        except RuntimeError as error:
            _say("training", error)
            return run
        return lambda: positional.output(*replay(*inputs.values()))

    def _kept(self, x: Tensor) -> Tensor:
        return x


class _Positional(nn.Module):
    """What torch records of a training: a module with tensors as results, of which the positions have a gradient.

    Its arguments are those that `run` holds already: torch copies nothing that is at its place.
    """

    output: type

    def __init__(self, network: nn.Module, run: Callable[[], Any]) -> None:
        super().__init__()
        self.network, self.run = network, run

    def forward(self, *_: Tensor) -> tuple[Tensor, ...]:
        out = self.run()
        self.output = type(out)
        return (out[0], *(x.detach() for x in out[1:]))


def _fixed_shape(name: str, x: Tensor) -> tuple[int, ...]:
    """The shape without the number of edges."""
    return tuple(size for axis, size in enumerate(x.shape) if axis != _EDGES.get(name))


def padded_like(inputs: dict[str, Tensor], capacity: int) -> dict[str, Tensor]:
    """Zeros in the shapes of `inputs` with one more node and graph and `capacity` edges."""
    padded = {}
    for name, x in inputs.items():
        shape = list(x.shape)
        if name in _NODES | _GRAPHS:
            shape[(_NODES | _GRAPHS)[name]] += 1
        elif name in _EDGES:
            shape[_EDGES[name]] = capacity
        padded[name] = x.new_zeros(shape)
    return padded


def fill(padded: dict[str, Tensor], inputs: dict[str, Tensor], n_graphs: int) -> None:
    """Copy `inputs` to the front of `padded`; behind them, the spare node at 0 is graph `n_graphs` with zero edges."""
    for name, x in inputs.items():
        axis, target = (_NODES | _EDGES | _GRAPHS).get(name, 0), padded[name]
        target.narrow(axis, 0, x.shape[axis]).copy_(x)
        # Lengths are in units of `size`.
        spare = {"batch": n_graphs, "edge_index": len(inputs["h"]), "size": 1}.get(name, 0)
        target.narrow(axis, x.shape[axis], target.shape[axis] - x.shape[axis]).fill_(spare)


def recorded(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """`run` as a CUDA graph, which always returns the same tensors with new contents; or `run`, with a warning.

    What `run` computes may depend on the contents of tensors, its shapes and its Python values may not.
    """
    stream = torch.cuda.current_stream(device)
    # The contexts put device and stream back, even where the recording fails.
    with torch.cuda.device(device), torch.cuda.stream(stream):
        # First on a stream of its own, as torch asks for: libraries and kernels are loaded now, not in the recording.
        side = torch.cuda.Stream()
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        stream.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Another thread may go on using the GPU meanwhile: a simulation, for example.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                out = run()
        except RuntimeError as error:
            _say("forecast", error)
            return run

    def replay() -> Any:
        graph.replay()
        return out

    return replay


def _say(what: str, error: RuntimeError) -> None:
    found = str(error).partition("\n")[0]
    warnings.warn(f"the {what} goes on without a CUDA graph, which could not be recorded: {found}", stacklevel=3)
