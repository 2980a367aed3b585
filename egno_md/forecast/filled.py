"""Frames between saved ones by an operator that draws and knows both ends of a window."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from ..errors import ModelError, UsageError
from ..molecule.geometry import superposition
from ..nn import operators
from .bridge import Bridge, in_body
from .generative import draws
from .model import Model
from .operator import OperatorWindow


@dataclass(frozen=True, eq=False)
class NetworkBridge(Bridge):
    """Paths between saved frames by a model, in place of the Gaussian process of :class:`Bridge`.

    A window of the model leads from one saved frame to the next. What came before it is the window before, so that a
    path has no kink; the first of a run begins from rest. Rigid motion is apart, as in :class:`Bridge`.

    Attributes
    ----------
    window : OperatorWindow
    """

    window: OperatorWindow

    @classmethod
    def of(cls, bridge: Bridge, window: OperatorWindow) -> NetworkBridge:
        """With all else of a bridge."""
        return cls(**{field.name: getattr(bridge, field.name) for field in fields(bridge)}, window=window)

    def fill(self, frames: np.ndarray, generator: np.random.Generator | None = None) -> Iterator[np.ndarray]:
        """As of :class:`Bridge`, one interval at a time."""
        before = deque([np.asarray(frames[0], np.float64)] * self.window.n_past, maxlen=self.window.n_past)
        for k in range(len(frames) - 1):
            start, end = (np.asarray(x, np.float64) for x in frames[k : k + 2])
            window = self.window.between(np.stack(before), end, generator)  # (T, N, 3), where the start is
            moves, rotation, centre = in_body(start[None], self.mean)
            turned, middle = superposition(end, self.mean + moves[0])
            turn, move = self._rigid(
                np.concatenate([rotation, turned[None]]), np.concatenate([centre, middle[None]]), generator
            )
            body = (window[:-1] - centre[0]) @ rotation[0]  # (T - 1, N, 3)
            path = body @ np.swapaxes(turn, 1, 2) + move
            between = self._held(path[None], np.stack([start, end]))[0]  # (T - 1, N, 3)
            before.extend([*between, end])
            yield between[None]


def check_fills(model: Model, factor: int, spacing: float) -> Model:
    """The model as it fills in `factor` steps between frames `spacing` ps apart.

    Raises
    ------
    ModelError
        One that knows no ends, or another spacing.
    UsageError
        Another factor.
    """
    if not draws(model) or not getattr(operators.options_of(model.spec), "ends", 0):
        raise ModelError(
            f"model {model.name!r} predicts what follows a frame and not what lies between two: train one that knows "
            "both ends of some windows (egno-md train ... --operator flow --set ends=0.5)"
        )
    if list(model.window.targets) != list(range(1, factor + 1)):
        raise UsageError(
            f"model {model.name!r} fills in windows of {model.window.n_times} steps, found factor {factor}: give "
            f"--factor {model.window.n_times} (factor={model.window.n_times}), or train one with --window {factor}"
        )
    if not model.window.covers(spacing / factor):
        known, wanted = model.window, spacing / factor
        raise ModelError(
            f"model {model.name!r} makes steps of {known.stride_range or known.stride_ps} ps, and a factor of {factor} "
            f"asks for steps of {wanted:g} ps between frames {spacing:g} ps apart: train one on runs saved every "
            f"{wanted:g} ps, or leave out --model (model)"
        )
    return model.at_stride(spacing / factor) if model.window.stride_range else model
