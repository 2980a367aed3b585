"""From start frames to predicted frames: one window, chains of windows, batches of starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..errors import ModelError, UsageError
from ..graph.builder import GraphBuilder
from ..graph.graph import Graph, collate
from ..graph.windows import displacements, frames_back, nodes_first
from ..molecule.geometry import bond_lengths
from ..molecule.local import keep_bonds
from ..nn.captured import CapturedEGNO
from ..nn.edges.block import has_fast_bf16
from ..nn.egno import EGNO
from .device import check_precision, in_precision, resolve_device
from .model import Model

#: Nodes of one batch of start frames. More gains nothing on a CPU and only costs memory.
NODES_PER_BATCH = {"cpu": 2048, "cuda": 65536, "mps": 16384}

#: Windows in a chain from which it is worth recording the network as a CUDA graph; an estimate, not a measurement.
CAPTURE_FROM = 16


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
    EGNOOutput or EGHNOOutput
        With ``pos`` (T, N, 3) and ``vel`` (T, N, 3) in Angstrom.
    """
    scale = model.spec.length_scale
    pos, vel = graph.pos, graph.vel  # (N, 3)
    if model.spec.prior == "regression":
        pos = prior_path(model, graph, times)  # (T, N, 3)
        vel = vel.expand_as(pos)  # (T, N, 3)
    if model.window.history > 1:
        pos = graph.pos_history.transpose(0, 1)  # (T, N, 3)
        vel = graph.vel_history.transpose(0, 1)  # (T, N, 3)
    options = {}
    if model.spec.operator == "eghno":
        options = {"local_index": graph.local_index, "local_attr": graph.local_attr}
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
        **options,
    )
    return out._replace(pos=out.pos * scale, vel=out.vel * scale)


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
        if name not in model.regression:
            raise ModelError(
                f"model {model.name!r} corrects a regression of the {len(model.regression)} molecule(s) that it was "
                "trained on, and this is none of them (atoms, names and bonds must agree): train a model on runs of "
                "this one, or a general one with --set prior=static"
            )
        here = [k for k, other in enumerate(names) if other == name]
        start, velocity = (torch.stack([x[k] for k in here]).numpy() for x in (starts, velocities))  # (B, N, 3)
        paths = model.regression[name].path(start, velocity, ahead)  # (B, T, N, 3)
        for k, path in zip(here, torch.from_numpy(paths), strict=True):
            out[k] = path
    return torch.cat(out, dim=1).to(graph.pos)  # (T, N, 3)


def check_request(model: Model, horizon: int, substeps: int) -> None:
    """Refuse a horizon or a resolution that the model's window cannot give.

    Raises
    ------
    UsageError
        ``horizon`` or ``substeps`` below 1.
    ModelError
        A chain or a finer resolution from a window that does not predict every stride.
    """
    window = model.window
    for name, value in (("horizon", horizon), ("substeps", substeps)):
        if int(value) != value or value < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, found {value}")
    if window.velocity == "forward":
        raise ModelError(
            f"model {model.name!r} was trained on forward differences x[t+1] - x[t], as the paper's data sets are; "
            "a forecast does not know the next frame: use a model with velocity='backward'"
        )
    whole = window.targets == tuple(range(1, window.n_times + 1))
    if not whole and (horizon > window.n_times or substeps > 1):
        raise ModelError(
            f"model {model.name!r} predicts frames {window.targets} after the start, not every stride; it gives at "
            f"most {window.n_times} frames and no finer resolution: use a model with span = n_times"
        )
    if window.history > 1 and substeps > 1:
        raise ModelError(
            f"model {model.name!r} maps {window.history} frames to as many; substeps must be 1, found {substeps}"
        )


def forecast_times(model: Model, horizon: int, substeps: int = 1) -> np.ndarray:
    """Times of the predicted frames in ps after the start, shape (horizon,)."""
    window = model.window
    if horizon <= window.n_times and substeps == 1:
        return np.asarray(window.targets[:horizon], float) * window.stride_ps
    return np.arange(1, horizon + 1) * window.stride_ps / substeps


@torch.inference_mode()
def forecast(
    model: Model,
    builder: GraphBuilder,
    history: np.ndarray,
    horizon: int,
    *,
    boxes: Sequence[np.ndarray | None] | None = None,
    substeps: int = 1,
    device: str | torch.device = "auto",
    precision: str = "float32",
    max_memory: int | str | None = "auto",
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Forecast `horizon` frames from each of S starts, chaining windows where the horizon is longer than T.

    Parameters
    ----------
    model : Model
    builder : GraphBuilder
        Of the atoms that `history` holds.
    history : ndarray, shape (S, n_input, N, 3)
        Frames up to and including each start in Angstrom, one stride apart; ``n_input = history + 1``, the first
        one for the backward difference.
    horizon : int
        Number of predicted frames.
    boxes : sequence of S arrays (6,) or None, optional
        Lengths in Angstrom and angles in degrees at each start, kept for the whole forecast.
    substeps : int
        Predicted frames per stride. The operator is a function of time and can be read at any resolution
        (section 5.5); it was trained on whole strides.
    device : str or torch.device
        ``"auto"``: the GPU where there is one.
    precision : {"float32", "tf32", "bf16"}
        What the products in the network are computed in. "float32" leaves torch's settings alone; "tf32" needs a GPU.
    max_memory : int or "auto"
        Bound of the temporaries in bytes.
    progress : callable, optional
        Called with the number of frames just predicted.

    Returns
    -------
    ndarray, shape (S, horizon, N, 3), float32
        Angstrom, in the frame of reference of the start.

    Raises
    ------
    UsageError, ModelError
        See :func:`check_request` and :func:`check_precision`; or the prediction is not finite.
    """
    check_request(model, horizon, substeps)
    device = resolve_device(device)
    check_precision(precision, device)
    if precision == "bf16" and device.type == "cpu" and not has_fast_bf16():
        warnings.warn("this processor has no bf16 arithmetic: precision 'float32' is faster here", stacklevel=3)
    network_device = next(model.network.parameters()).device
    if network_device != device:
        model.network.to(device)
    window = model.window
    n_starts, n_input, n_atoms = history.shape[:3]
    if n_input != frames_back(window) + 1:
        raise UsageError(f"history must hold {frames_back(window) + 1} frames per start, found {n_input}")
    per_window = window.n_times * substeps
    # The window's own grid, read more finely: the last point is always the last trained one, so chains line up.
    times = torch.arange(1, per_window + 1, device=device) / substeps - 1 if substeps > 1 else None
    network = _recordable(model, device, -(-horizon // per_window))
    out = np.empty((n_starts, horizon, n_atoms, 3), np.float32)
    batch_size = max(1, NODES_PER_BATCH.get(device.type, 2048) // max(n_atoms, 1))
    for first in range(0, n_starts, batch_size):
        chosen = slice(first, min(first + batch_size, n_starts))
        frames = np.asarray(history[chosen], np.float64)  # (B, n_input, N, 3)
        # float32 holds a coordinate of 1000 A to 1e-4 A only; the operator does not mind where it is: centre it.
        centre = frames[:, -1:].mean(axis=2, keepdims=True)  # (B, 1, 1, 3)
        frames = frames - centre
        start = frames[:, -1:]  # (B, 1, N, 3)
        for done in range(0, horizon, per_window):
            batch = graphs(model, [builder] * len(frames), frames, None if boxes is None else boxes[chosen]).to(device)
            with in_precision(precision, device):
                pos = apply_operator(
                    model, batch, times=times, max_memory=max_memory, network=network
                ).pos  # (T, B * N, 3)
            predicted = pos.cpu().numpy().reshape(per_window, -1, n_atoms, 3).swapaxes(0, 1)  # (B, T, N, 3)
            if not np.isfinite(predicted).all():
                raise ModelError(
                    f"model {model.name!r} predicted coordinates that are not finite in frames {done + 1} to "
                    f"{done + per_window}; shorten the horizon or use a model made for this system"
                )
            predicted = restored(model, builder, predicted, start)  # (B, T, N, 3)
            keep = min(per_window, horizon - done)
            out[chosen, done : done + keep] = predicted[:, :keep] + centre
            frames = np.concatenate([frames, predicted[:, substeps - 1 :: substeps]], axis=1)[
                :, -n_input:
            ]  # (B, n_input, N, 3)
            if progress is not None:
                progress(keep * len(frames))
    return out


def _recordable(model: Model, device: torch.device, n_windows: int) -> CapturedEGNO | None:
    """The network as a CUDA graph, where there is a GPU, a long chain and an EGNO."""
    fits = device.type == "cuda" and n_windows >= CAPTURE_FROM and type(model.network) is EGNO
    return CapturedEGNO(model.network) if fits else None


def restored(model: Model, builder: GraphBuilder, predicted: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Predicted frames (..., N, 3) with the local geometry that the model keeps.

    That of the runs it was trained on where it knows the molecule, else the bond lengths of `start` (..., N, 3).
    """
    if not model.spec.keep_bonds:
        return predicted
    if builder.identity in model.geometry:
        return model.geometry[builder.identity].project(predicted)
    return keep_bonds(predicted, builder.bonds, bond_lengths(start, builder.bonds))


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
