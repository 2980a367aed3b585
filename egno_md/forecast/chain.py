"""From start frames to predicted frames: chains of windows, batches of starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import ModelError, UsageError
from ..graph.builder import GraphBuilder
from ..molecule.geometry import bond_lengths
from ..molecule.local import keep_bonds
from .forecasters import Forecaster
from .generative import Streams, draws
from .model import Model
from .operator import OperatorWindow

#: Nodes of one batch of start frames. More gains nothing on a CPU and only costs memory.
NODES_PER_BATCH = {"cpu": 2048, "cuda": 65536, "mps": 16384}


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
    if isinstance(samples, bool) or int(samples) != samples or samples < 1:
        raise UsageError(f"samples must be a whole number of at least 1, found {samples}")
    if not draws(model):
        raise ModelError(
            f"model {model.name!r} knows the mean of all futures alone and cannot draw any: train one that draws "
            "(egno-md train ... --operator flow), or leave out samples"
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


@dataclass(frozen=True)
class Restored:
    """A forecaster whose frames are brought back to a local geometry.

    Attributes
    ----------
    inner : Forecaster
    keep : callable
        ``keep(frames (S, T, N, 3), start (S, 1, N, 3))`` gives the frames with the geometry that is kept. In a chain
        the start is that of the chain.
    """

    inner: Forecaster
    keep: Callable[[np.ndarray, np.ndarray], np.ndarray]

    @property
    def name(self) -> str:
        """Of the forecaster inside."""
        return self.inner.name

    @property
    def n_past(self) -> int:
        """Frames of past that it can use."""
        return self.inner.n_past

    def __call__(self, past, times, samples=1, generator=None, **options):
        return _kept(self.keep, self.inner(past, times, samples, generator, **options), past[:, -1])


def _kept(keep: Callable, frames: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Frames (S, K, T, N, 3) brought back to the geometry of their starts (S, N, 3)."""
    n_starts, samples = frames.shape[:2]
    starts = np.repeat(start, samples, axis=0)[:, None]  # (S * K, 1, N, 3)
    return keep(frames.reshape(-1, *frames.shape[2:]), starts).reshape(n_starts, samples, *frames.shape[2:])


class ChainState(NamedTuple):
    """All that the next window of a chain depends on.

    Attributes
    ----------
    past : ndarray, shape (S, K, P, N, 3), float64
        The last P frames, about `centre`, in Angstrom.
    start : ndarray, shape (S, N, 3), float64
        The start of the chain, about `centre`: what geometry is brought back to.
    centre : ndarray, shape (S, 1, 3), float64
        Of the start in Angstrom.
    done : int
        Frames predicted so far.
    generator : dict, optional
        State of the random numbers, as ``numpy.random.Generator.bit_generator.state`` gives it; of members that have
        streams of their own a list of them.
    """

    past: np.ndarray
    start: np.ndarray
    centre: np.ndarray
    done: int
    generator: dict[str, Any] | list[dict[str, Any]] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Ready for ``numpy.savez``."""
        return {**self._asdict(), "done": np.asarray(self.done), "generator": np.asarray(json.dumps(self.generator))}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> ChainState:
        """From what :meth:`arrays` gave; ``numpy.load`` of a file will do."""
        past, start, centre = (np.asarray(arrays[name]) for name in ("past", "start", "centre"))
        return cls(past, start, centre, int(arrays["done"]), json.loads(str(arrays["generator"])))


class Window(NamedTuple):
    """One window of a chain: frames (S, K, T, N, 3) in Angstrom, and the state after them."""

    positions: np.ndarray
    state: ChainState


def roll(
    forecaster: Forecaster,
    past: np.ndarray | None,
    times: ArrayLike,
    *,
    boxes: Sequence[np.ndarray | None] | None = None,
    samples: int = 1,
    generator: np.random.Generator | None = None,
    state: ChainState | None = None,
) -> Iterator[Window]:
    """Windows of a chain, one after the other and without end: what was predicted is the past of the next window.

    Parameters
    ----------
    forecaster : Forecaster
        Of one window. That of a model: ``ModelForecaster(model, builder).inner``.
    past : ndarray, shape (S, P, N, 3), optional
        Frames up to the start in Angstrom, one stride apart; not needed with `state`.
    times : array_like, shape (T,)
        Strides after its start that each window predicts; whole strides must be among them, up to the last.
    boxes : sequence of S arrays (6,) or None, optional
        For forecasters that read them; kept for the whole chain.
    samples : int
        Members of each chain, which go on by themselves after the first window.
    generator : numpy.random.Generator, optional
        What they are drawn with. With `state`, it goes on where that of the state stood.
    state : ChainState, optional
        Go on from here instead of `past`, to the same bits.

    Yields
    ------
    Window

    Raises
    ------
    ModelError
        The prediction is not finite; or a second window is asked for where `times` are not every stride.
    """
    inner, keep = (forecaster.inner, forecaster.keep) if isinstance(forecaster, Restored) else (forecaster, None)
    if state is None:
        state = _beginning(past, generator)
    elif state.generator is not None:
        several = isinstance(state.generator, list)  # one for each member
        if generator is None:
            generator = (
                Streams([]) if several else np.random.Generator(getattr(np.random, state.generator["bit_generator"])())
            )
        generator.bit_generator.state = state.generator
    asked = np.asarray(times, float)
    # What the next window reads: the frames at whole strides, without a gap and up to the last.
    whole = np.flatnonzero(asked % 1 == 0)
    if asked[-1] != len(whole) or not np.array_equal(asked[whole], np.arange(1, len(whole) + 1)):
        whole = None
    while True:
        n_starts, members, n_past, n_atoms = state.past.shape[:4]
        options: dict[str, Any] = {}
        if boxes is not None:
            options["boxes"] = [box for box in boxes for _ in range(members)]
        predicted = inner(
            state.past.reshape(-1, n_past, n_atoms, 3), asked, 1 if state.done else samples, generator, **options
        ).reshape(n_starts, -1, len(asked), n_atoms, 3)  # (S, K, T, N, 3)
        members = predicted.shape[1]
        if not np.isfinite(predicted).all():
            raise ModelError(
                f"model {forecaster.name!r} predicted coordinates that are not finite in frames {state.done + 1} to "
                f"{state.done + len(asked)}; shorten the horizon or use a model made for this system"
            )
        if keep is not None:
            predicted = _kept(keep, predicted, state.start)  # (S, K, T, N, 3)
        before = np.repeat(state.past, members // state.past.shape[1], axis=1)  # (S, K, P, N, 3)
        if whole is not None:
            before = np.concatenate([before, predicted[:, :, whole]], axis=2)[:, :, -n_past:]
        bits = None if generator is None else generator.bit_generator.state
        state = state._replace(past=before, done=state.done + len(asked), generator=bits)
        yield Window(predicted + state.centre[:, None, None], state)
        if whole is None:
            raise ModelError(
                f"forecaster {forecaster.name!r} predicts frames {asked.tolist()} after the start, not every stride: "
                "there is no past from which its next window could start"
            )


def _beginning(past: np.ndarray, generator: np.random.Generator | None) -> ChainState:
    frames = np.asarray(past, np.float64)  # (S, P, N, 3)
    # float32 holds a coordinate of 1000 A to 1e-4 A only; the operator does not mind where it is: centre it.
    centre = frames[:, -1:].mean(axis=2, keepdims=True)  # (S, 1, 1, 3)
    frames = frames - centre
    bits = None if generator is None else generator.bit_generator.state
    return ChainState(frames[:, None], frames[:, -1], centre[:, 0], 0, bits)


class Chained:
    """A forecaster of one window as one of any time: window after window, and starts in batches.

    Parameters
    ----------
    inner : Forecaster
    times : array_like, shape (T,)
        Strides after its start that each window predicts.
    batch_nodes : int
        Atoms of all starts that go through at a time.
    """

    def __init__(self, inner: Forecaster, times: ArrayLike, batch_nodes: int = NODES_PER_BATCH["cpu"]) -> None:
        self.inner, self.times, self.batch_nodes = inner, np.asarray(times, float), batch_nodes
        self.name, self.n_past = inner.name, inner.n_past

    def __call__(self, past, times, samples=1, generator=None, **options):
        asked = np.asarray(times, float)
        n_windows = max(1, -(-float(asked.max(initial=0)) // self.times[-1]))
        there = (self.times + self.times[-1] * np.arange(n_windows)[:, None]).ravel()  # (windows * T,)
        place = np.searchsorted(there, asked - 1e-9).clip(max=len(there) - 1)
        if np.abs(there[place] - asked).max(initial=0) > 1e-6:
            raise UsageError(
                f"{self.name!r} predicts strides {self.times.tolist()} of each window, not all of {asked.tolist()}"
            )
        horizon = int(place.max(initial=-1)) + 1
        return self.collect(past, horizon, samples, generator, **options)[:, :, place]  # (S, K, T, N, 3)

    def collect(
        self,
        past: np.ndarray,
        horizon: int,
        samples: int = 1,
        generator: np.random.Generator | None = None,
        *,
        boxes: Sequence[np.ndarray | None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """The first `horizon` frames of the chains, (S, K, horizon, N, 3); see :func:`forecast`."""
        n_starts, _, n_atoms = past.shape[:3]
        out = np.empty((n_starts, samples, horizon, n_atoms, 3), np.float32)
        members = 1
        batch_size = max(1, self.batch_nodes // max(n_atoms * samples, 1))
        for first in range(0, n_starts, batch_size):
            chosen = slice(first, min(first + batch_size, n_starts))
            some = None if boxes is None else boxes[chosen]
            own = generator  # its numbers go on from batch to batch
            if isinstance(generator, Streams):
                own = generator.part(chosen.start * samples, chosen.stop * samples)
            chain = roll(self.inner, past[chosen], self.times, boxes=some, samples=samples, generator=own)
            for done in range(0, horizon, len(self.times)):
                positions = next(chain).positions  # (B, K, T, N, 3)
                keep, members = min(len(self.times), horizon - done), positions.shape[1]
                out[chosen, :members, done : done + keep] = positions[:, :, :keep]
                if progress is not None:
                    progress(keep * len(positions))
        return out[:, : members if n_starts else samples]


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
        self.draws = operator.draws
        corrects = model.spec.prior == "regression"
        self.prior: Forecaster | None = model.regression.get(builder.identity) if corrects else None


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
        return lambda frames, start: known.project(frames)
    return lambda frames, start: keep_bonds(frames, builder.bonds, bond_lengths(start, builder.bonds))


def restored(model: Model, builder: GraphBuilder, predicted: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Predicted frames (..., N, 3) with the local geometry that the model keeps; `start` is (..., N, 3)."""
    keep = local_geometry(model, builder)
    return predicted if keep is None else keep(predicted, start)
