"""Futures drawn by conditional flow matching over the whole window, on EGNO's trunk (not in the paper).

A window of T frames is taken in the frame of reference of its start, rigid motion apart. With z a path of the base, a
Gaussian process of the window given its start x0 and displacement v, and x1 the window that followed::

    x_tau = (1 - tau) z + tau x1                     0 <= tau <= 1
    velocity = x1 - z = (x1 - x_tau) / (1 - tau)     the network predicts x1 (Lipman et al., 2023, with data as target)

At tau = 0 the path z says nothing of x1, so that what is predicted there is the mean of all futures. With m the mean of
the base, r^2 = (1 - tau)^2 + tau^2, tan(th) = tau / (1 - tau) and x - m = r y, the same flow runs on an arc::

    y = cos(th) z' + sin(th) x1',   dy/dth = cos(th) x1' - sin(th) z'        z' = z - m, x1' = x1 - m

on which nothing changes the variance where base and data have the same covariance: few Euler steps are enough.

Where an arc ends follows from where it begins, so that a network can learn it: :func:`taught_loss` (direct
distillation, Luhman and Luhman, 2021). It then draws with one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from .egnn import reduce_to
from .flow_network import ABOUT, LEAST, Flow, FlowOptions, FlowOutput, HierarchicalFlow, flow_network
from .operators import Drawing, Operator, register

__all__ = [
    "ABOUT", "Body", "Flow", "FlowOptions", "FlowOutput", "End", "HierarchicalFlow", "Numbers", "OPERATOR",
    "draw", "flow_loss", "taught_loss",
]  # fmt: skip


#: Steps that a teacher takes at least, and pairs of paths whose mean is that of all futures where each takes one call.
TAUGHT, PAIRS = 5, 8


class Body(NamedTuple):
    """Starts in the frame of reference that their mean structures give, and what else the network reads.

    In the network's unit of length; N nodes of B graphs.

    Attributes
    ----------
    h, edge_index, edge_attr, edge_shift, batch, n_graphs
        See :meth:`Flow.forward`.
    local_index : Tensor (2, L) or None
        Bonds, in both directions.
    start, vel, reference : Tensor (N, 3)
    size : Tensor (B,), optional
        Spread of the base where it is that of any molecule: lengths of the window are in units of it.
    about : Tensor (N, 5), optional
        See :meth:`Flow.forward`.
    """

    h: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    edge_shift: Tensor | None
    batch: Tensor
    n_graphs: int
    local_index: Tensor | None
    start: Tensor
    vel: Tensor
    reference: Tensor
    size: Tensor | None = None
    about: Tensor | None = None


class Numbers(NamedTuple):
    """Where the random numbers of a training step come from: each graph has its own, whoever it shares its batch with.

    Attributes
    ----------
    seed : tuple of int
        Of the step.
    places : sequence of int
        Place of each graph here in the whole batch, which several processes may share out.
    whole : int
        Graphs of the whole batch.
    """

    seed: tuple[int, ...]
    places: Sequence[int]
    whole: int

    def generators(self) -> list[np.random.Generator]:
        """One for each graph here."""
        return [np.random.default_rng((*self.seed, 1, place)) for place in self.places]

    def strata(self, generators: Sequence[np.random.Generator]) -> np.ndarray:
        """Uniform numbers, one in each of as many equal parts of 0 to 1 as the whole batch has graphs."""
        order = np.random.default_rng((*self.seed, 0)).permutation(self.whole)
        return (order[list(self.places)] + np.array([g.random() for g in generators])) / self.whole  # (B,)


class End(NamedTuple):
    """The last frame of some windows, where it is known."""

    ended: Tensor  # (B,), whether it is
    pos: Tensor  # (N, 3)


#: From start and velocity (N, 3) to the mean of the base (T, N, 3); and, with generators, one path for each graph. Of
#: those that lead to the end where one is known.
Base = Callable[[Tensor, Tensor, Sequence[np.random.Generator] | None, End | None], tuple[Tensor, Tensor]]


def _predicted(network: nn.Module, body: Body, mean: Tensor, pos: Tensor, level: Tensor, **further: Any) -> Any:
    """What the network says of x1 (T, N, 3) at x_tau (T, N, 3) and tau (B,), with the mean of the base (T, N, 3)."""
    return network(
        body.h, pos, body.vel.expand_as(pos), body.edge_index, body.edge_attr,
        batch=body.batch, n_graphs=body.n_graphs, edge_shift=body.edge_shift,
        start=body.start, level=level, reference=body.reference, mean=mean, size=body.size, about=body.about, **further,
    )  # fmt: skip


def _further(body: Body, end: End | None, options: FlowOptions) -> dict[str, Tensor]:
    """What clusters are made by, where there are any, and which ends are known."""
    further = {} if end is None else {"ended": end.ended.to(body.start)}
    if options.trunk == "eghno" and body.local_index is not None:
        further["local_index"] = body.local_index
    return further


def flow_loss(
    network: nn.Module, body: Body, base: Base, target: Tensor, numbers: Numbers, options: FlowOptions
) -> list[tuple[Tensor, int]]:
    """The loss of some windows: terms that add up, and over how many things each of them is a mean.

    Parameters
    ----------
    network : Flow
    body : Body
    base : callable
    target : Tensor (T, N, 3)
        The windows that followed, superposed on their starts.
    numbers : Numbers
    options : FlowOptions
    """
    generators = numbers.generators()
    level = torch.as_tensor(numbers.strata(generators)).to(target)  # (B,)
    unit, body = _unit(body), _noised(body, generators, options)
    end = None
    if options.ends:
        ended = torch.as_tensor([g.random() < options.ends for g in generators], device=target.device)  # (B,)
        end = End(ended, target[-1])
    mean, path = base(body.start, body.vel, generators, end)  # (T, N, 3) both
    at = level[body.batch][:, None]  # (N, 1)
    pos = (1 - at) * path + at * target
    out = _predicted(network, body, mean, pos, level, **_further(body, end, options))
    error = (out.pos - target) / ((1 - at).clamp_min(LEAST) * unit)  # (T, N, 3)
    if end is not None:  # nothing is asked of what is known
        known = end.ended[body.batch][:, None]  # (N, 1)
        error = torch.cat([error[:-1], error[-1:].masked_fill(known, 0.0)])
    terms = _terms(error, body, options)
    if options.trunk == "eghno" and options.cut_weight:
        terms.append((options.cut_weight * out.cut_loss, body.n_graphs))
    return terms


def taught_loss(
    network: nn.Module, teacher: nn.Module, body: Body, base: Base, numbers: Numbers, options: FlowOptions
) -> list[tuple[Tensor, int]]:
    """The loss of a network that is to say at once where the arcs of another one, the teacher, end.

    Its error at the end of the arc takes the place of that of the velocity; the teacher takes five steps or, where that
    is more, as many as it usually does. Other parameters, and what is returned, as of :func:`flow_loss`.
    """
    generators = numbers.generators()
    unit, body = _unit(body), _noised(body, generators, options)
    mean, path = base(body.start, body.vel, generators, None)  # (T, N, 3) both
    several = options.model_copy(update={"direct": False, "steps": max(options.steps, TAUGHT)})
    with torch.no_grad():
        target = draw(teacher, body, lambda *_: (mean, path), generators, several)  # (T, N, 3)
    out = _predicted(network, body, mean, path, mean.new_zeros(body.n_graphs), **_further(body, None, options))
    return _terms((out.pos - target) / unit, body, options)


def _unit(body: Body) -> Tensor:
    """In what the lengths of a window are measured, (N, 1) or (1, 1)."""
    return body.start.new_ones(1, 1) if body.size is None else body.size[body.batch][:, None]


def _noised(body: Body, generators: Sequence[np.random.Generator], options: FlowOptions) -> Body:
    """Starts and velocities with the noise of a training."""
    if not options.noise:
        return body
    sizes = body.batch.bincount(minlength=body.n_graphs).tolist()
    parts = [_noise(g, size, options) for g, size in zip(generators, sizes, strict=True)]
    noise = _unit(body)[..., None] * torch.as_tensor(np.concatenate(parts)).to(body.start)  # (N, 2, 3)
    return body._replace(start=body.start + noise[:, 0], vel=body.vel + noise[:, 1])


def _terms(error: Tensor, body: Body, options: FlowOptions) -> list[tuple[Tensor, int]]:
    """Of errors (T, N, 3): their own, of the differences along bonds and of those between all pairs."""
    terms = [(error.square().mean(), error.shape[1])]
    if options.bond_weight and body.local_index is not None:
        row, col = body.local_index[:, body.local_index[0] < body.local_index[1]]
        if len(row):
            terms.append((options.bond_weight * (error[:, row] - error[:, col]).square().mean(), len(row)))
    if options.pair_weight:
        terms.append((options.pair_weight * _over_pairs(error, body), body.n_graphs))
    return terms


def _noise(generator: np.random.Generator, size: int, options: FlowOptions) -> np.ndarray:
    """What is added to start and velocity of one graph, (N, 2, 3) in the unit of the network."""
    strength = (generator.random() < options.noise_share) * 2 * options.noise * generator.random()
    return strength * generator.standard_normal((size, 2, 3))


def _over_pairs(error: Tensor, body: Body) -> Tensor:
    """Mean square of the differences between all pairs of nodes of a graph, the mean over graphs."""
    squares = error.square().sum(-1, keepdim=True)  # (T, N, 1)
    count = body.batch.bincount(minlength=body.n_graphs).to(error)[:, None]  # (B, 1)
    # sum_ij |e_i - e_j|^2 = 2 n sum_i |e_i|^2 - 2 |sum_i e_i|^2
    total = count * reduce_to(squares, body.batch, body.n_graphs, mean=False)  # (T, B, 1)
    total = total - reduce_to(error, body.batch, body.n_graphs, mean=False).square().sum(-1, keepdim=True)
    return (2 * total / (3 * count * (count - 1).clamp_min(1))).mean()


def draw(
    network: nn.Module,
    body: Body,
    base: Base,
    generators: Sequence[np.random.Generator] | None,
    options: FlowOptions,
    end: Tensor | None = None,
    **how: Any,
) -> Tensor:
    """One future for each graph (T, N, 3), or the mean of all of them where there are no generators.

    Parameters
    ----------
    network, body, base, options
        As of :func:`flow_loss`.
    generators : sequence of B numpy.random.Generator, optional
    end : Tensor (N, 3), optional
        Where all of them lead.
    **how
        ``max_memory`` of :meth:`Flow.forward`.

    Raises
    ------
    UsageError
        An end, of a network that was trained without.
    """
    if end is not None and not options.ends:
        raise UsageError(
            "this model draws what follows a frame and not what lies between two: train one that knows both ends of "
            "some windows (egno-md train ... --operator flow --set ends=0.5)"
        )
    last = None if end is None else End(torch.ones(body.n_graphs, dtype=torch.bool, device=end.device), end)
    mean, path = base(body.start, body.vel, generators, last)  # (T, N, 3) both
    how = {**_further(body, last, options), **how}

    def predicted(pos: Tensor, level: Tensor) -> Tensor:
        pos = _predicted(network, body, mean, pos, level, **how).pos  # (T, N, 3)
        return pos if end is None else torch.cat([pos[:-1], end[None]])

    nowhere = mean.new_zeros(body.n_graphs)  # tau = 0
    if options.direct and generators is None:
        # Of paths and of their images in the mean, so that what is linear in them adds up to nothing.
        total = torch.zeros_like(mean)
        for k in range(PAIRS):
            own = [np.random.default_rng(k) for _ in range(body.n_graphs)]
            path = base(body.start, body.vel, own, last)[1]  # (T, N, 3)
            total = total + predicted(path, nowhere) + predicted(2 * mean - path, nowhere)
        return total / (2 * PAIRS)
    if generators is None:
        return predicted(mean, nowhere)
    if options.direct:
        return predicted(path, nowhere)
    y = path - mean  # (T, N, 3)
    angles = np.linspace(0, math.pi / 2, options.steps + 1)
    for angle, after in zip(angles[:-1], angles[1:], strict=True):
        sin, cos = math.sin(angle), math.cos(angle)
        level = sin / (sin + cos)
        radius = math.hypot(level, 1 - level)
        at = mean.new_full((body.n_graphs,), level)
        there = predicted(mean + radius * y, at) - mean
        y = y + (after - angle) / cos * (there - sin * y)  # cos x1' - sin z', with z' = (y - sin x1') / cos
    return mean + y


def _symmetry(options: FlowOptions) -> Literal["E(3)", "SE(3)"]:
    return "SE(3)" if options.handed or options.canonical else "E(3)"


OPERATOR = register(
    Operator(
        "flow",
        flow_network,
        FlowOptions,
        symmetry=_symmetry,
        drawing=Drawing(flow_loss, draw, taught_loss),
        usual={
            "model": {
                "hidden": 64,
                "layers": 3,
                "modes": 5,
                "time_embedding": 16,
                "handed": False,
                "length_scale": 1.0,
                "prior": "static",
            },
            "training": {"batch_size": 64, "ema_decay": 0.995},
        },
    )
)
