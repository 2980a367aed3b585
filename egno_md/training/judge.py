"""Errors on the windows of a data set: many short runs of many systems, to which no free forecast can be fitted."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..evaluation.errors import skill
from ..evaluation.result import MIN_BLOCKS, Evaluation
from ..evaluation.score import OUTSIDE
from ..evaluation.statistics import block_bootstrap
from ..forecast.device import resolve_device
from ..forecast.model import Model
from ..forecast.operator import apply_operator
from ..graph.graph import Graph, collate
from ..graph.windows import TrajectoryWindows

_BATCH = 256  # windows


@torch.inference_mode()
def score_windows(
    model: Model, train: TrajectoryWindows, test: TrajectoryWindows, *, seed: int = 0, device: str = "auto"
) -> Evaluation:
    """Errors of a model on windows, beside the standing frame and straight flight.

    What the network says is judged as it is: no local geometry is restored. Straight flight is x + c v with one number
    c for every step, fitted to the training windows: the paper's "Linear".

    Parameters
    ----------
    model : Model
    train, test : TrajectoryWindows
        The runs of `test` are taken as independent of each other, the windows of one run as a block.
    seed : int
        Of the bootstrap.
    device : str

    Returns
    -------
    Evaluation
    """
    device = resolve_device(device)
    home = next(model.network.parameters()).device
    factors = _flight(train)  # (T,)
    rows = {"model": [], "static": [], "linear": []}
    model.network.to(device)
    try:
        for graph in _batches(test):
            true, start = graph.y.transpose(0, 1), graph.pos  # (T, N, 3), (N, 3)
            paths = {
                "model": apply_operator(model, graph.to(device)).pos.cpu(),
                "static": start.expand_as(true),
                "linear": start + factors[:, None, None] * graph.vel,
            }  # (T, N, 3)
            for name, path in paths.items():
                squared = (path - true).double().square().mean(dim=2)  # (T, N)
                per_graph = torch.stack([part.mean(dim=1) for part in squared.split(graph.sizes, dim=1)])  # (B, T)
                rows[name].append(per_graph.numpy())
    finally:
        model.network.to(home)
    names = list(rows)
    values = np.stack([np.concatenate(rows[name]) for name in names], axis=1)  # (S, K, T)
    groups = np.asarray([r for r, _ in test.index])
    block = int(np.bincount(groups).max())  # the windows of a run stay together
    n_blocks = len(np.unique(groups))
    mean = values.mean(axis=0)  # (K, T)
    n_times = mean.shape[1]
    intervals = np.full((2, len(names), n_times), np.nan)
    gain_range = np.full((2, n_times + 1), np.nan)

    def gains(means: np.ndarray) -> np.ndarray:
        """Skill at every step and of the A-MSE, (..., T + 1), from means (..., K, T)."""
        with_last = np.concatenate([means, means.mean(axis=-1, keepdims=True)], axis=-1)
        return skill(with_last[..., 0, :], np.moveaxis(with_last[..., 1:, :], -2, 0))

    gain = gains(mean)  # (T + 1,)
    if n_blocks >= MIN_BLOCKS:
        ends = [OUTSIDE / 2, 1 - OUTSIDE / 2]
        # All windows as one sequence, so that whole runs are drawn.
        drawn = block_bootstrap(values, np.zeros(len(values), int), block, seed=seed)  # (R, K, T)
        intervals = np.quantile(drawn, ends, axis=0)
        gain_range = np.quantile(gains(drawn), ends, axis=0)
    return Evaluation(
        model=model.name,
        times=np.asarray(model.window.targets, float) * model.window.stride_ps,
        errors={name: mean[k] for k, name in enumerate(names)},
        intervals={name: intervals[:, k].T for k, name in enumerate(names)},
        skill=gain[:-1],
        skill_interval=gain_range[:, :-1].T,
        f_skill=(float(gain[-2]), *gain_range[:, -2].tolist()),
        a_skill=(float(gain[-1]), *gain_range[:, -1].tolist()),
        n_windows=len(values),
        n_runs=n_blocks,
        n_atoms=max(run.builder.n_atoms for run in test.runs),
        block=block,
        n_blocks=n_blocks,
    )


def _batches(windows: TrajectoryWindows) -> DataLoader[Graph]:
    return DataLoader(windows, batch_size=_BATCH, collate_fn=collate, generator=torch.Generator())


def _flight(train: TrajectoryWindows) -> torch.Tensor:
    """For how many strides atoms fly on, by least squares at every step (T,)."""
    products, squares = 0.0, 0.0
    for graph in _batches(train):
        moved = graph.y - graph.pos[:, None]  # (N, T, 3)
        products = products + (moved * graph.vel[:, None]).double().sum(dim=(0, 2))  # (T,)
        squares += float(graph.vel.double().square().sum())
    return (products / max(squares, 1e-30)).float()
