"""EGNO on a GPU without the wait for its launches: recorded once as a CUDA graph, replayed in every window of a chain.

On a small molecule a GPU computes for a shorter time than the processor takes to launch some hundred kernels. A CUDA
graph launches them all at once, but at the same addresses and in the same shapes. Along a chain of windows one shape
alone varies, the number of edges: the edge list is padded to a capacity with edges from a spare node to itself. That
node is a graph of its own, and nothing of one graph reaches another.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .egno import EGNO, EGNOOutput

#: The axis of the nodes, or of the edges, of the arguments that have one.
_NODES = {"h": 0, "pos": -2, "vel": -2, "batch": 0}
_EDGES = {"edge_index": 1, "edge_attr": 0, "edge_shift": 0}
#: Capacity over the number of edges at the time of recording, and what it is rounded up to a multiple of.
_HEADROOM, _STEP = 1.1, 256
#: Rows, edges x time points, above which the network runs as it is: arithmetic, more of it by the padding, then takes
#: longer than launching. An estimate, not a measurement.
_MAX_ROWS = 2**20


class CapturedEGNO:
    """An EGNO that is called in the same way and returns the same; inference only.

    On a CUDA device it records the network at the first call and replays it, and records anew where another shape than
    the number of edges has changed or the edges have outgrown the capacity. On other devices it runs the network on
    the padded input, which helps nobody but the tests. Weights may change in place in between, settings of torch's
    arithmetic (autocast, tf32) may not.

    EGHNO has no such class: it reads the sizes of its graphs from the device, which a recording cannot do, and the
    spare graph would enter its cut loss, a mean over the graphs.

    Parameters
    ----------
    network : EGNO
    """

    def __init__(self, network: EGNO) -> None:
        self.network = network
        self._shapes: tuple[object, ...] = ()
        self._capacity = 0
        self._inputs: dict[str, Tensor] = {}
        self._run: Callable[[], EGNOOutput] | None = None

    def __call__(
        self,
        h: Tensor,
        pos: Tensor,
        vel: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        *,
        times: Tensor | None = None,
        batch: Tensor | None = None,
        edge_shift: Tensor | None = None,
        max_memory: int | None = None,
    ) -> EGNOOutput:
        """The trajectory at `times`; arguments and errors are those of :meth:`egno_md.nn.egno.EGNO.forward`."""
        if times is None:
            times = torch.arange(len(pos) if pos.dim() == 3 else self.network.n_times, device=pos.device)  # (T,)
        n_edges = edge_index.shape[1]
        inputs = {"h": h, "pos": pos, "vel": vel, "edge_index": edge_index, "edge_attr": edge_attr, "times": times}
        if edge_shift is not None:
            inputs["edge_shift"] = edge_shift
        if n_edges * len(times) > _MAX_ROWS:
            return self.network(**inputs, batch=batch, max_memory=max_memory)
        inputs["batch"] = edge_index.new_zeros(len(h)) if batch is None else batch
        n_graphs = 1 if batch is None else int(batch[-1]) + 1

        shapes = (n_graphs, max_memory, *((name, x.dtype, _fixed_shape(name, x)) for name, x in inputs.items()))
        if self._run is None or shapes != self._shapes or n_edges > self._capacity:
            self._run = None  # an earlier recording gives its memory back first
            self._shapes, self._capacity = shapes, -(-int(_HEADROOM * n_edges) // _STEP) * _STEP
            self._inputs = padded_like(inputs, self._capacity)
            fill(self._inputs, inputs, n_graphs)
            run = functools.partial(self.network, **self._inputs, n_graphs=n_graphs + 1, max_memory=max_memory)
            self._run = recorded(run, pos.device) if pos.is_cuda else run
        else:
            fill(self._inputs, inputs, n_graphs)
        # Copies: the next replay writes over its results.
        return EGNOOutput(*(x[:, : len(h)].clone() for x in self._run()))


def _fixed_shape(name: str, x: Tensor) -> tuple[int, ...]:
    """The shape without the number of edges."""
    return tuple(size for axis, size in enumerate(x.shape) if axis != _EDGES.get(name))


def padded_like(inputs: dict[str, Tensor], capacity: int) -> dict[str, Tensor]:
    """Zeros in the shapes of `inputs` with one more node and `capacity` edges."""
    padded = {}
    for name, x in inputs.items():
        shape = list(x.shape)
        if name in _NODES:
            shape[_NODES[name]] += 1
        elif name in _EDGES:
            shape[_EDGES[name]] = capacity
        padded[name] = x.new_zeros(shape)
    return padded


def fill(padded: dict[str, Tensor], inputs: dict[str, Tensor], n_graphs: int) -> None:
    """Copy `inputs` to the front of `padded`; behind them, the spare node at 0 is graph `n_graphs` with zero edges."""
    for name, x in inputs.items():
        axis, target = (_NODES | _EDGES).get(name, 0), padded[name]
        target.narrow(axis, 0, x.shape[axis]).copy_(x)
        spare = {"batch": n_graphs, "edge_index": len(inputs["h"])}.get(name, 0)
        target.narrow(axis, x.shape[axis], target.shape[axis] - x.shape[axis]).fill_(spare)


def recorded(run: Callable[[], EGNOOutput], device: torch.device) -> Callable[[], EGNOOutput]:
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
            found = str(error).partition("\n")[0]
            warnings.warn(
                f"the forecast goes on without a CUDA graph, which could not be recorded: {found}", stacklevel=2
            )
            return run

    def replay() -> EGNOOutput:
        graph.replay()
        return out

    return replay
