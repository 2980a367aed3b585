"""Chains of windows: what was predicted is the past of the next window; whoever predicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ModelError, UnphysicalError, UsageError
from .asked import whole_number
from .forecasters import Forecaster
from .streams import Streams, each_of

if TYPE_CHECKING:
    from .reversion import MeanReversion

#: Nodes of one batch of start frames on a CPU. More gains nothing there and only costs memory.
NODES_PER_BATCH = 2048

#: Windows of a chain from which on it may revert to the mean: up to there a forecast is what the forecaster says.
REVERTING = 4

#: The most frames of a forecast: some numbers of each are kept. And the most frames in place of one.
MOST_FRAMES, MOST_SUBSTEPS = 10_000_000, 1000


def check_numbers(horizon: int, substeps: int) -> None:
    """Refuse a number of frames that is none, or that nobody has the time and memory for.

    Raises
    ------
    UsageError
    """
    for name, value, most in (("horizon", horizon, MOST_FRAMES), ("substeps", substeps, MOST_SUBSTEPS)):
        whole_number(name, value, most)


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


@dataclass(frozen=True)
class OneByOne:
    """A forecaster that knows no boxes and draws every member from a stream of its own, whoever else is drawn.

    With :class:`Streams` of random numbers a member depends on its own alone, neither on the other starts nor on how
    many members there are; without any it is the mean forecast.
    """

    inner: Forecaster

    @property
    def name(self) -> str:
        """Of the forecaster inside."""
        return self.inner.name

    @property
    def n_past(self) -> int:
        """Frames of past that it can use."""
        return self.inner.n_past

    def __call__(self, past, times, samples=1, generator=None, boxes=None):
        if generator is None or not getattr(self.inner, "draws", False):
            return self.inner(past, times)
        members = enumerate(each_of(generator, len(past) * samples))
        frames = [self.inner(past[k // samples][None], times, 1, own)[0, 0] for k, own in members]  # (T, N, 3) each
        return np.stack(frames).reshape(len(past), samples, *frames[0].shape)  # (S, K, T, N, 3)


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
    reversion: MeanReversion | None = None,
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
    reversion : MeanReversion, optional
        What windows give back, from the fifth one on.

    Yields
    ------
    Window

    Raises
    ------
    UnphysicalError
        The prediction is not finite.
    ModelError
        A second window is asked for where `times` are not every stride.
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
            raise UnphysicalError(
                f"model {forecaster.name!r} predicted coordinates that are not finite in frames {state.done + 1} to "
                f"{state.done + len(asked)}; shorten the horizon or use a model made for this system"
            )
        part, back = asked / asked[-1], None
        if reversion is not None and state.done >= REVERTING * len(asked):
            back = reversion.back(state.past[:, :, -1])  # (S, K, N, 3)
            predicted = reversion.without(predicted, back, part)
        if keep is not None:
            predicted = _kept(keep, predicted, state.start)  # (S, K, T, N, 3)
        before = np.repeat(state.past, members // state.past.shape[1], axis=1)  # (S, K, P, N, 3)
        if whole is not None:
            n_kept = max(n_past, forecaster.n_past)
            before = np.concatenate([before, predicted[:, :, whole]], axis=2)[:, :, -n_kept:]
            if back is not None:  # what came before moves along, or the next window would take it for a velocity
                rest = np.concatenate([np.ones(n_past), 1 - part[whole]])[-n_kept:]
                before = reversion.without(before, back, rest)
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
    reversion : MeanReversion, optional
        What the windows of a long chain give back; it may be set later.
    """

    def __init__(
        self,
        inner: Forecaster,
        times: ArrayLike,
        batch_nodes: int = NODES_PER_BATCH,
        reversion: MeanReversion | None = None,
    ) -> None:
        self.inner, self.times, self.batch_nodes = inner, np.asarray(times, float), batch_nodes
        self.reversion = reversion
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
            chain = roll(
                self.inner, past[chosen], self.times, boxes=some, samples=samples, generator=own,
                reversion=self.reversion,
            )  # fmt: skip
            for done in range(0, horizon, len(self.times)):
                positions = next(chain).positions  # (B, K, T, N, 3)
                keep, members = min(len(self.times), horizon - done), positions.shape[1]
                out[chosen, :members, done : done + keep] = positions[:, :, :keep]
                if progress is not None:
                    progress(keep * len(positions))
        return out[:, : members if n_starts else samples]
