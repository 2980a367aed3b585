"""From start frames to predicted frames: chains of windows, batches of starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ModelError, UsageError
from ..graph.builder import GraphBuilder
from ..molecule.geometry import bond_lengths
from ..molecule.local import keep_bonds
from .asked import whole_number
from .forecasters import Forecaster, Known
from .generative import draws
from .model import Model
from .operator import OperatorWindow
from .reversion import MeanReversion
from .rolling import NODES_PER_BATCH as NODES_ON_CPU
from .rolling import Chained, ChainState, Restored, Window, check_numbers, roll
from .streams import Streams

__all__ = [
    "ChainState",
    "Chained",
    "ModelForecaster",
    "Restored",
    "Window",
    "check_request",
    "check_samples",
    "forecast",
    "forecast_times",
    "local_geometry",
    "restored",
    "roll",
    "window_times",
]

#: Nodes of one batch of start frames.
NODES_PER_BATCH = {"cpu": NODES_ON_CPU, "cuda": 65536, "mps": 16384}


def check_request(model: Model, horizon: int, substeps: int) -> None:
    """Refuse a horizon or a resolution that the model's window cannot give.

    Raises
    ------
    UsageError
        See :func:`.rolling.check_numbers`.
    ModelError
        A chain or a finer resolution from a window that does not predict every stride.
    """
    window = model.window
    check_numbers(horizon, substeps)
    if window.velocity != "backward":
        of_what = {
            "forward": "forward differences x[t+1] - x[t], as the paper's data sets are; a forecast does not know the "
            "next frame",
            "stored": "velocities that its data set holds beside the positions; a forecast does not have any",
        }
        raise ModelError(
            f"model {model.name!r} was trained on {of_what[window.velocity]}: use a model with velocity='backward'"
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
    if draws(model) and substeps > 1:
        raise ModelError(
            f"model {model.name!r} draws futures at its own strides and none between them: substeps must be 1, found "
            f"{substeps}"
        )


def check_samples(model: Model, samples: int | None) -> None:
    """Refuse futures that cannot be drawn.

    Raises
    ------
    UsageError
        Fewer than one.
    ModelError
        A model that knows the mean of all futures alone.
    """
    if samples is None:
        return
    whole_number("samples", samples)
    if not draws(model):
        raise ModelError(
            f"model {model.name!r} knows the mean of all futures alone and cannot draw any: train one that draws "
            "(egno-md train ... --operator flow), or leave out samples (--samples)"
        )


def forecast_times(model: Model, horizon: int, substeps: int = 1) -> np.ndarray:
    """Times of the predicted frames in ps after the start, shape (horizon,)."""
    window = model.window
    if horizon <= window.n_times and substeps == 1:
        return np.asarray(window.targets[:horizon], float) * window.stride_ps
    return np.arange(1, horizon + 1) * window.stride_ps / substeps


def window_times(model: Model, substeps: int = 1) -> np.ndarray:
    """Strides after the start that one window predicts, shape (T * substeps,)."""
    if substeps == 1:
        return np.asarray(model.window.targets, float)
    # The window's own grid, read more finely: the last point is always the last trained one, so chains line up.
    return np.arange(1, model.window.n_times * substeps + 1) / substeps


class ModelForecaster(Chained):
    """A model as a forecaster: its windows, brought back to the geometry that it keeps, one after the other.

    ``inner`` is the forecaster of one window; ``as_predicted`` the same chain of what the operator gives before it is
    brought back to a geometry, or None where the model keeps none; ``prior`` the forecast that the operator corrects,
    or None.

    Parameters
    ----------
    model : Model
    builder : GraphBuilder
        Of the atoms that are forecast.
    substeps : int
        Predicted frames per stride.
    **options
        Of :class:`OperatorWindow`.

    Raises
    ------
    UsageError, ModelError
        See :func:`check_request` and :func:`egno_md.forecast.check_precision`.
    """

    def __init__(self, model: Model, builder: GraphBuilder, *, substeps: int = 1, **options: Any) -> None:
        check_request(model, 1, substeps)
        operator = OperatorWindow(model, builder, **options)
        nodes, times = NODES_PER_BATCH.get(operator.device.type, 2048), window_times(model, substeps)
        keep = local_geometry(model, builder)
        super().__init__(operator if keep is None else Restored(operator, keep), times, nodes)
        self.as_predicted = None if keep is None else Chained(operator, times, nodes)
        self.draws, self.reads_boxes = operator.draws, True
        self.builder = builder
        corrects = model.spec.prior == "regression"
        self.prior: Forecaster | None = model.regression.get(builder.identity) if corrects else None

    def revert_to(self, known: Known) -> None:
        """Call long chains back to where a run was; see :meth:`.reversion.MeanReversion.fit`."""
        self.reversion = MeanReversion.fit(self.inner, known, self.times, self.n_past, self.builder.bonds)


def forecast(
    model: Model,
    builder: GraphBuilder,
    history: np.ndarray,
    horizon: int,
    *,
    boxes: Sequence[np.ndarray | None] | None = None,
    substeps: int = 1,
    samples: int | None = None,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
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
    samples : int, optional
        K futures to draw from each start, with a model that draws. Without it the forecast is the mean of all futures.
    seed : int
        Of the futures: the same seed gives the same ones. Member k of a start depends on the seed, on k and on the
        start's number, neither on how many members there are nor on the other starts.
    numbers : sequence of S int, optional
        Of the starts, such as their frames; 0, 1, ... by default.
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
    ndarray, shape (S, horizon, N, 3), or with `samples` (S, K, horizon, N, 3), float32
        Angstrom, in the frame of reference of the start.

    Raises
    ------
    UsageError, ModelError
        See :func:`check_request` and :func:`check_precision`; or the prediction is not finite.
    """
    check_request(model, horizon, substeps)
    check_samples(model, samples)
    n_windows = -(-horizon // (model.window.n_times * substeps))
    forecaster = ModelForecaster(
        model, builder, substeps=substeps, device=device, precision=precision, max_memory=max_memory,
        n_windows=n_windows,
    )  # fmt: skip
    n_input = history.shape[1]
    if n_input != forecaster.n_past:
        raise UsageError(f"history must hold {forecaster.n_past} frames per start, found {n_input}")
    if samples is None:
        return forecaster.collect(history, horizon, boxes=boxes, progress=progress)[:, 0]  # (S, horizon, N, 3)
    streams = Streams.of(seed, range(len(history)) if numbers is None else numbers, samples)
    return forecaster.collect(
        history, horizon, samples, streams, boxes=boxes, progress=progress
    )  # (S, K, horizon, N, 3)


def local_geometry(model: Model, builder: GraphBuilder) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """What brings frames (..., N, 3) back to the local geometry that the model keeps, given their start; or None.

    The geometry is that of the runs it was trained on where it knows the molecule, else the bond lengths of the start.
    """
    if not model.spec.keep_bonds:
        return None
    known = model.geometry.get(builder.identity)
    if known is not None:
        return known.keep
    return lambda frames, start: keep_bonds(frames, builder.bonds, bond_lengths(start, builder.bonds))


def restored(model: Model, builder: GraphBuilder, predicted: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Predicted frames (..., N, 3) with the local geometry that the model keeps; `start` is (..., N, 3)."""
    keep = local_geometry(model, builder)
    return predicted if keep is None else keep(predicted, start)
