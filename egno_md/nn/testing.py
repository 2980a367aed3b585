"""The contract of an operator, as one call for the tests of whoever writes one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UsageError
from . import operators
from .operators import Operator

#: Features of nodes, edges and local edges in the graphs of the check.
IN_NODE, IN_EDGE, IN_LOCAL = 3, 2, 1
#: T of the operator that is built, and of the calls.
N_TIMES, OTHER_TIMES = 4, 6
#: Largest relative error of what must be the same up to rounding, in float64.
ROUNDING = 1e-10
#: Step of the finite differences, relative to a weight's size, and the error that they may have.
STEP, SLOPE_ERROR = 1e-6, 1e-3


class _System(NamedTuple):
    """What ``forward`` takes of one graph, or of several."""

    h: Tensor  # (N, F)
    pos: Tensor  # (N, 3)
    vel: Tensor  # (N, 3)
    edge_index: Tensor  # (2, E)
    edge_attr: Tensor  # (E, A)
    local_index: Tensor  # (2, L)
    local_attr: Tensor  # (L, 1)
    edge_shift: Tensor  # (E, 3)
    batch: Tensor  # (N,)


def check_operator(
    operator: str | Operator, *, options: Mapping[str, Any] | None = None, seed: int = 0, tolerance: float = ROUNDING
) -> None:
    """Check that an operator keeps what every operator must keep; it is built small, with random weights, in float64.

    - Turned, moved and (``"E(3)"``) mirrored input gives the output turned, moved and mirrored; of an operator that
      claims no symmetry this is not asked.
    - The order of the nodes, of the edges and of the local edges means nothing.
    - A graph's output does not depend on which others share its batch, be they smaller, larger, or without an edge.
    - The time points are an argument of the call: other numbers of them, and points between the frames; no ``times``
      means ``0, 1, ..., T - 1`` for the T that it was built with. A state is the sequence that repeats it. An operator
      that has not all of them (``Operator.points``) gives those that it says, and a UsageError for others.
    - ``edge_shift`` of zeros is none, and another one is not ignored where edges matter and a symmetry is claimed;
      ``max_memory`` changes nothing.
    - Every weight that the loss depends on, the error of the positions and the operator's own terms, has the gradient
      that finite differences say, and every weight has an influence on one of the outputs. Weights that shape outputs
      without a loss alone, such as what the last layer makes of the node scalars, need no gradient; one that nothing
      depends on says so by ``requires_grad = False``.

    Parameters
    ----------
    operator : str or Operator
        A registered name, or the operator itself.
    options : mapping, optional
        Options other than the operator's defaults; small sizes make the check fast.
    seed : int
        Of the weights and graphs.
    tolerance : float
        Relative error of what must be the same up to rounding.

    Raises
    ------
    AssertionError
        With one line for every part of the contract that is broken.
    UsageError
        An operator or options that are not known, or fields in ``reads`` that this check cannot make up.
    """
    if isinstance(operator, str):
        operator = operators.get(operator)
    if unknown := set(operator.reads) - {"local_index", "local_attr"}:
        raise UsageError(
            f"this check makes local_index and local_attr for an operator; {operator.name!r} also reads "
            f"{', '.join(sorted(unknown))}: check it with graphs of your own"
        )
    chosen = operator.options(**(options or {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        n_times = 1 if operator.points == "last" else N_TIMES
        network = operator.build(IN_NODE, IN_EDGE, n_times, chosen).double().eval()
        with torch.no_grad():
            for weight in network.parameters():  # an untrained operator may stand still: then nothing could be seen
                weight.add_(0.05 * torch.randn_like(weight))
        check = _Check(operator, chosen, network, tolerance, n_times)
        broken = [line for part in (_equivariance, _order, _batch, _time, _edges, _gradients) for line in part(check)]
    if broken:
        raise AssertionError(f"the operator {operator.name!r} breaks the contract:\n- " + "\n- ".join(broken))


class _Check(NamedTuple):
    operator: Operator
    options: Any
    network: nn.Module
    tolerance: float
    n_times: int

    def run(self, system: _System, **how: Any) -> Any:
        further = {name: getattr(system, name) for name in self.operator.reads}
        how = {"batch": system.batch, **how}
        return self.network(system.h, system.pos, system.vel, system.edge_index, system.edge_attr, **further, **how)

    def differ(self, found: Tensor, expected: Tensor) -> str:
        """How much two outputs differ, or "" where they do not."""
        if found.shape != expected.shape:
            return f"shapes {tuple(found.shape)} and {tuple(expected.shape)}"
        error = float((found - expected).detach().norm() / expected.detach().norm().clamp(min=1e-300))
        return "" if error <= self.tolerance else f"a relative error of {error:.2g}"


def _system(n_nodes: int, seed: int, *, edges: bool = True) -> _System:
    """A chain away from the origin with random directed edges."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    linked = (torch.rand(n_nodes, n_nodes, generator=g) < 0.6) & ~torch.eye(n_nodes, dtype=torch.bool)
    edge_index = linked.nonzero().T if edges else torch.empty(2, 0, dtype=torch.int64)  # (2, E)
    chain = torch.stack([torch.arange(n_nodes - 1), torch.arange(1, n_nodes)])
    local = torch.cat([chain, chain.flip(0)], dim=1) if edges else torch.empty(2, 0, dtype=torch.int64)  # (2, L)
    return _System(
        normal(n_nodes, IN_NODE),
        2 * normal(n_nodes, 3) + torch.tensor([7.0, -3.0, 11.0]),
        normal(n_nodes, 3),
        edge_index,
        normal(edge_index.shape[1], IN_EDGE),
        local,
        normal(local.shape[1], IN_LOCAL).abs(),
        normal(edge_index.shape[1], 3),
        torch.zeros(n_nodes, dtype=torch.int64),
    )


def _joined(systems: list[_System]) -> _System:
    starts = [sum(len(s.h) for s in systems[:k]) for k in range(len(systems))]
    fields = {}
    for name in _System._fields:
        parts = [getattr(s, name) for s in systems]
        if name.endswith("index"):
            fields[name] = torch.cat([part + start for part, start in zip(parts, starts, strict=True)], dim=1)
        else:
            fields[name] = torch.cat([part + k for k, part in enumerate(parts)] if name == "batch" else parts)
    return _System(**fields)


def _rotation(seed: int, *, mirror: bool) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))
    return q if (torch.linalg.det(q) < 0) == mirror else -q


def _equivariance(check: _Check) -> Iterator[str]:
    system, move = _system(7, 1), torch.tensor([3.0, -20.0, 8.0], dtype=torch.float64)
    plain = check.run(system, edge_shift=system.edge_shift)
    kinds = {"rotation": (_rotation(2, mirror=False), 0 * move), "translation": (torch.eye(3).double(), move)}
    symmetry = check.operator.symmetry(check.options)
    if symmetry == "E(3)":
        kinds["reflection"] = (_rotation(3, mirror=True), 0 * move)
    elif symmetry == "none":
        kinds = {}
    elif symmetry != "SE(3)":
        yield f"symmetry: must be 'E(3)', 'SE(3)' or 'none', found {symmetry!r}"
    for kind, (turn, shift) in kinds.items():
        moved = system._replace(pos=system.pos @ turn.T + shift, vel=system.vel @ turn.T)
        out = check.run(moved, edge_shift=system.edge_shift @ turn.T)
        for name, found, expected in (
            ("positions", out.pos, plain.pos @ turn.T + shift),
            ("velocities", out.vel, plain.vel @ turn.T),
        ):
            if difference := check.differ(found, expected):
                yield f"{kind}: the {name} do not follow, {difference}"


def _order(check: _Check) -> Iterator[str]:
    system, g = _system(7, 1), torch.Generator().manual_seed(4)
    plain = check.run(system)
    order = torch.randperm(7, generator=g)
    place = order.argsort()
    permuted = system._replace(
        h=system.h[order], pos=system.pos[order], vel=system.vel[order],
        edge_index=place[system.edge_index], local_index=place[system.local_index],
    )  # fmt: skip
    if difference := check.differ(check.run(permuted).pos, plain.pos[:, order]):
        yield f"permutation: the order of the nodes matters, {difference}"
    edges = torch.randperm(system.edge_index.shape[1], generator=g)
    local = torch.randperm(system.local_index.shape[1], generator=g)
    shuffled = system._replace(
        edge_index=system.edge_index[:, edges], edge_attr=system.edge_attr[edges],
        local_index=system.local_index[:, local], local_attr=system.local_attr[local],
    )  # fmt: skip
    if difference := check.differ(check.run(shuffled).pos, plain.pos):
        yield f"permutation: the order of the edges matters, {difference}"


def _batch(check: _Check) -> Iterator[str]:
    alone = [_system(5, 5), _system(1, 6, edges=False), _system(9, 7), _system(3, 8, edges=False)]
    together, first = check.run(_joined(alone)), 0
    for k, system in enumerate(alone):
        nodes = slice(first, first := first + len(system.h))
        for name in ("pos", "vel"):
            single = getattr(check.run(system), name)
            if not torch.isfinite(single).all():
                size = f"{len(system.h)} nodes and {len(system.edge_attr)} edges"
                yield f"batch: {name} of a graph with {size} is not finite"
            elif difference := check.differ(getattr(together, name)[:, nodes], single):
                yield f"batch: {name} of graph {k} of {len(alone)} is another one when it is alone, {difference}"
    if difference := check.differ(check.run(alone[0], batch=None).pos, check.run(alone[0]).pos):
        yield f"batch: no `batch` must mean one graph, {difference}"


def _time(check: _Check) -> Iterator[str]:
    system, points, built = _system(7, 1), check.operator.points, check.n_times
    other = OTHER_TIMES if points in ("any", "whole") else built
    for given, expected in ((None, built), (torch.arange(other).double(), other)):
        out = check.run(system, times=given)
        for name in ("pos", "vel"):
            if (shape := tuple(getattr(out, name).shape)) != (expected, 7, 3):
                yield f"time: {name} has shape {shape} for {expected} time points of 7 nodes"
    times = torch.arange(built).double()
    plain = check.run(system)
    if difference := check.differ(check.run(system, times=times).pos, plain.pos):
        yield f"time: without `times` it must be 0, 1, ..., T - 1, {difference}"
    repeated = system._replace(pos=system.pos.expand(built, 7, 3), vel=system.vel.expand(built, 7, 3))
    if points == "any":
        if not check.differ(check.run(system, times=times + 0.37).pos, plain.pos):
            yield "time: other time points give the same positions: `times` is ignored"
    else:
        yield from _refused(check, system, "time points between its own", times=times + 0.37)
    if points in ("built", "last"):
        yield from _refused(check, system, "more time points than its own", times=torch.arange(built + 1).double())
    if points in ("whole", "built"):
        yield from _refused(check, repeated, "a sequence")
    elif difference := check.differ(check.run(repeated).pos, plain.pos):
        yield f"time: a sequence that repeats the state must give the same, {difference}"


def _refused(check: _Check, system: _System, what: str, **how: Any) -> Iterator[str]:
    try:
        check.run(system, **how)
    except UsageError:
        return
    yield f"time: {what} must be a UsageError for an operator of the points {check.operator.points!r}"


def _edges(check: _Check) -> Iterator[str]:
    system = _system(7, 1)
    plain = check.run(system)
    if difference := check.differ(check.run(system, edge_shift=0 * system.edge_shift).pos, plain.pos):
        yield f"box: an `edge_shift` of zeros must be none, {difference}"
    alone = check.run(system._replace(edge_index=system.edge_index[:, :0], edge_attr=system.edge_attr[:0]))
    images_matter = check.operator.symmetry(check.options) != "none" and check.differ(alone.pos, plain.pos)
    if images_matter and not check.differ(check.run(system, edge_shift=system.edge_shift).pos, plain.pos):
        yield "box: `edge_shift` is ignored"
    if difference := check.differ(check.run(system, max_memory=10_000).pos, plain.pos):
        yield f"memory: `max_memory` must change nothing, {difference}"


def _gradients(check: _Check) -> Iterator[str]:
    """Directional derivatives of the loss, by differences and by autograd, one weight tensor after the other."""
    system = _joined([_system(6, 9), _system(4, 10)])
    target = system.pos + torch.randn(check.n_times, 10, 3, generator=torch.Generator().manual_seed(11)).double()

    def outputs() -> tuple[Tensor, list[Tensor]]:
        out = check.run(system)
        terms = check.operator.loss_terms(out, check.options)
        others = [value for value in out if isinstance(value, Tensor) and value.is_floating_point()]
        return (out.pos - target).square().mean() + sum(terms.values()), others

    weights = {name: weight for name, weight in check.network.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad(outputs()[0], list(weights.values()), allow_unused=True)
    g = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            kept = weight.clone()
            # Along the gradient where there is one, elsewhere anywhere.
            way = torch.randn(weight.shape, generator=g, dtype=torch.float64)
            if gradient is not None and gradient.norm() > 0:
                way = 0.5 * way / way.norm() + gradient / gradient.norm()  # never 0
            way *= STEP * (1 + kept.norm()) / way.norm()
            (more, after), (less, before) = ((weight.copy_(kept + sign * way), outputs())[1] for sign in (1, -1))
            weight.copy_(kept)
            measured = float(more - less) / 2
            told = 0.0 if gradient is None else float((gradient * way).sum())
            noise = 1e-13 * float(more.abs() + less.abs())
            if not abs(measured - told) <= SLOPE_ERROR * max(abs(measured), abs(told)) + noise:
                kind = "has no gradient" if gradient is None else f"has a gradient for a change of {told:.3g}"
                yield f"gradient: the loss changes by {measured:.3g} with {name}, which {kind}"
            elif all(torch.equal(a, b) for a, b in zip(after, before, strict=True)):
                yield f"gradient: no output depends on {name}"
