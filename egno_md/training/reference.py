"""What the validation windows cost without a network: the measure of whether a training learns anything."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.utils.data import Dataset

from ..forecast.forecasters import PathRegression
from ..graph.windows import TrajectoryWindows
from ..molecule.geometry import superposed_rmsd

_CHUNK = 64  # windows worked on at a time


def reference_errors(windows: Dataset, regression: Mapping[str, PathRegression] | None = None) -> dict[str, np.ndarray]:
    """Mean squared error per coordinate of forecasts without a network, at every step of the window.

    Parameters
    ----------
    windows : TrajectoryWindows, or any dataset of graphs with targets
    regression : mapping of str to PathRegression, optional
        By the identity of the molecule; only where it knows all of them is its error given.

    Returns
    -------
    dict of str to ndarray (T,)
        ``"static"``, the standing start frame, and ``"regression"``; Angstrom squared.
    """
    if not isinstance(windows, TrajectoryWindows):
        graphs = [windows[k] for k in range(len(windows))]  # type: ignore[arg-type]
        squared = [(graph.y - graph.pos[:, None]).double().square().sum(dim=(0, 2)).numpy() for graph in graphs]
        return {"static": sum(squared) / sum(3 * len(graph.pos) for graph in graphs)}
    regression = regression or {}
    runs, window = windows.runs, windows.window
    steps = np.asarray(window.targets)  # (T,)
    known = window.velocity == "backward" and all(run.builder.identity in regression for run in runs)
    sums = {name: np.zeros(len(steps)) for name in ("static", *(["regression"] if known else []))}
    count = 0
    starts: dict[int, list[int]] = {}
    for r, start in windows.index:
        starts.setdefault(r, []).append(start)
    for r, own in starts.items():
        run = runs[r]
        for first in range(0, len(own), _CHUNK):
            some = np.asarray(own[first : first + _CHUNK])
            start = np.asarray(run.positions[some], np.float64)  # (S, N, 3)
            true = run.positions[some[:, None] + steps * run.every]  # (S, T, N, 3)
            count += 3 * start.shape[0] * start.shape[1]
            sums["static"] += np.square(true - start[:, None]).sum(axis=(0, 2, 3))
            if known:
                velocity = start - run.positions[some - run.every]  # (S, N, 3)
                path = regression[run.builder.identity].path(start, velocity, steps.astype(float))  # (S, T, N, 3)
                sums["regression"] += np.square(true - path).sum(axis=(0, 2, 3))
    return {name: total / max(count, 1) for name, total in sums.items()}


def superposed_squares(predicted: torch.Tensor, true: torch.Tensor, ends: list[int]) -> float:
    """Sum over nodes of the squared error per coordinate of frames (N, 3), every graph superposed by itself.

    `ends` are the first nodes of the graphs, and N.
    """
    frames = [x.detach().cpu().double().numpy() for x in (predicted, true)]
    pairs = ([x[a:b] for x in frames] for a, b in zip(ends[:-1], ends[1:], strict=True))
    return sum(len(x) * float(superposed_rmsd(x, y)) ** 2 / 3 for x, y in pairs)


def standing_shape(windows: Dataset) -> float | None:
    """Mean squared error per coordinate of the standing frame at the last step of a window, superposed, in Angstrom
    squared; None where the windows are none of trajectories."""
    if not isinstance(windows, TrajectoryWindows):
        return None
    ahead, total, count = windows.window.targets[-1], 0.0, 0
    for r, start in windows.index:
        run = windows.runs[r]
        total += float(superposed_rmsd(run.positions[start], run.positions[start + ahead * run.every])) ** 2 / 3
        count += 1
    return total / max(count, 1)


def static_errors(windows: Dataset, at_most: int = 256) -> torch.Tensor:
    """Mean squared error of the standing start frame at every step (T,), in evenly spread windows."""
    length = len(windows)  # type: ignore[arg-type]
    chosen = [windows[k] for k in range(0, length, -(-length // at_most))]
    return torch.stack([(data.y - data.pos[:, None]).square().mean(dim=(0, 2)) for data in chosen]).mean(0)  # (T,)


#: A validation error that is less than this share below the best forecast without a network is no gain.
LEARNED = 0.005

#: The forecasts without a network, for people.
NAMES = {"static": "standing still"}


def listed(references: Mapping[str, float]) -> str:
    """The errors of forecasts without a network in a line."""
    return "; ".join(f"{NAMES.get(name, name)} {value:.4g}" for name, value in references.items())


def learned(error: float, references: Mapping[str, float], shape: tuple[float, float] | None = None) -> str:
    """One line: what the network has added to the best forecast without one.

    `shape` has the superposed errors of the network and of the standing frame: a forecast may be right in where a
    molecule drifts to alone.
    """
    name = min(references, key=lambda k: references[k])
    best = NAMES.get(name, name)
    line = (
        f"trained    best validation F-MSE {error:.4g} ({listed(references)}): {_gain(error, references[name], best)}"
    )
    if shape is None:
        return line
    return f"{line}; superposed {shape[0]:.4g} (standing still {shape[1]:.4g}): {_gain(*shape, NAMES['static'])}"


def _gain(error: float, best: float, name: str) -> str:
    gain = 1 - error / best if best else 0.0
    if gain < LEARNED:
        return f"nothing was learned that {name} does not give without a network"
    return f"{gain:.1%} below {name}"
