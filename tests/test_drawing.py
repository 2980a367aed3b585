"""What a flow is taught and how it draws, written out by hand, and the base that it begins with."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from test_flow import flow_model, starts_of

from egno_md.errors import UsageError
from egno_md.forecast.generative import bodies_of
from egno_md.forecast.network import Modes, Placed
from egno_md.forecast.operator import OperatorWindow, apply_operator, graphs
from egno_md.molecule.geometry import aligned
from egno_md.nn.flow import Body, End, FlowOptions, FlowOutput, Numbers, _noise, _noised, draw, flow_loss

torch.set_num_threads(1)


BATCH = torch.tensor([0, 0, 0, 1, 1, 1, 1])


BONDS = torch.tensor([[0, 1, 1, 2, 3, 4, 5, 6], [1, 0, 2, 1, 4, 3, 6, 5]])


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def body_of(**more):
    """Two graphs of three and four nodes."""
    given = (torch.zeros(7, 1), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 1), None, BATCH, 2, BONDS)
    return Body(*given, normal(7, 3), normal(7, 3, seed=1), normal(7, 3), **more)


def straight(network_says):
    """A network that says so of x_tau."""

    def network(h, pos, vel, *edges, level, mean, **others):
        return FlowOutput(network_says(pos, level[BATCH][:, None], mean), vel, h)

    return network


MEAN, PATH, TARGET = (normal(3, 7, 3, seed=seed) for seed in (2, 3, 4))


def base(*_):
    return MEAN, PATH


def by_hand(error, options):
    """Means of squares: of the errors, of their differences along bonds, and of those of all pairs of a graph."""
    bonds = [(i, j) for i, j in BONDS.T.tolist() if i < j]
    along = torch.stack([(error[:, i] - error[:, j]).square().mean() for i, j in bonds]).mean()
    of_graphs = [
        torch.stack([(error[:, i] - error[:, j]).square().mean() for i, j in itertools.combinations(nodes, 2)]).mean()
        for nodes in ((0, 1, 2), (3, 4, 5, 6))
    ]
    pairs = torch.stack(of_graphs).mean()
    return [(error.square().mean(), 7), (options.bond_weight * along, 4), (options.pair_weight * pairs, 2)]


@pytest.mark.parametrize("ends", [0.0, 0.5])
@pytest.mark.parametrize("size", [None, torch.tensor([0.5, 2.0]).double()])
def test_the_loss_is_that_of_the_velocity_in_units_of_the_spread(size, ends):
    """A network that takes x_tau for x1 errs by the whole velocity, at every tau."""
    options = FlowOptions(noise=0.0, ends=ends, bond_weight=0.3, pair_weight=0.2)
    numbers, seen = Numbers((5,), range(2), 2), []

    def ended(start, vel, generators, end):
        seen.append(end)
        return MEAN, PATH

    found = flow_loss(straight(lambda pos, *_: pos), body_of(size=size), ended, TARGET, numbers, options)
    error = PATH - TARGET
    if size is not None:
        error = error / size[BATCH][:, None]
    if ends:
        assert torch.equal(seen[0].pos, TARGET[-1]) and seen[0].ended.any()
        error[-1, seen[0].ended[BATCH]] = 0.0
    else:
        assert seen == [None]
    for (value, count), (expected, of) in zip(found, by_hand(error, options), strict=True):
        torch.testing.assert_close(value, expected)
        assert count == of
    alone = FlowOptions(noise=0.0, bond_weight=0.0, pair_weight=0.0)
    assert len(flow_loss(straight(lambda pos, *_: pos), body_of(), base, TARGET, numbers, alone)) == 1
    loose = body_of()._replace(local_index=BONDS[:, :0])
    assert len(flow_loss(straight(lambda pos, *_: pos), loose, base, TARGET, numbers, options)) == 2


def test_a_network_is_asked_on_the_way_from_base_to_data():
    levels = []

    def says(pos, tau, mean):
        torch.testing.assert_close(pos, (1 - tau) * PATH + tau * TARGET)
        assert mean is MEAN
        levels.append(tau)
        return TARGET

    found = flow_loss(straight(says), body_of(), base, TARGET, Numbers((1,), range(2), 2), FlowOptions())
    assert all(float(value) == 0 for value, _ in found)
    assert sorted((2 * levels[0][[0, 3], 0]).int().tolist()) == [0, 1]


def test_starts_are_learned_with_so_much_noise():
    options = FlowOptions(noise=0.1, noise_share=0.6)
    noise = np.stack([_noise(np.random.default_rng(k), 5, options) for k in range(3000)])
    there = np.abs(noise).max(axis=(1, 2, 3)) > 0
    assert there.mean() == pytest.approx(0.6, abs=0.03)
    # Of a standard deviation that is uniform up to 0.2: the mean of its square is 0.04 / 3.
    np.testing.assert_allclose((noise[there] ** 2).mean(axis=(0, 1)), 0.04 / 3 * np.ones((2, 3)), rtol=0.1)
    assert np.quantile(noise[there].std(axis=(1, 2, 3)), 0.9) < 0.25
    plain, wide = (
        _noised(body_of(size=size), [np.random.default_rng(k) for k in (3, 4)], FlowOptions(noise_share=1.0))
        for size in (None, torch.tensor([0.5, 3.0]).double())
    )
    here = body_of()
    for field in ("start", "vel"):
        small, large = (getattr(one, field) - getattr(here, field) for one in (plain, wide))
        torch.testing.assert_close(large, small * torch.tensor([0.5, 3.0]).double()[BATCH][:, None])
        assert (small.abs() > 0).all()
    assert _noised(here, None, FlowOptions(noise=0.0)) is here


def test_a_path_goes_along_the_arc():
    """Euler's steps of dy/dth = cos(th) x1' - sin(th) z', from y = z' to y = x1'."""
    steps, seen = 4, []

    def says(pos, tau, mean):
        seen.append((float(tau[0]), pos))
        return TARGET

    found = draw(straight(says), body_of(), base, [None] * 2, FlowOptions(steps=steps))
    y, step = PATH - MEAN, math.pi / 2 / steps
    for k, (tau, pos) in enumerate(seen):
        angle = k * step
        assert math.atan2(tau, 1 - tau) == pytest.approx(angle)
        torch.testing.assert_close(pos - MEAN, math.hypot(tau, 1 - tau) * y)
        z = (y - math.sin(angle) * (TARGET - MEAN)) / math.cos(angle)
        y = y + step * (math.cos(angle) * (TARGET - MEAN) - math.sin(angle) * z)
    torch.testing.assert_close(found, MEAN + y)
    assert len(seen) == steps


def test_one_call_draws_and_pairs_of_paths_give_the_mean():
    options, paths = FlowOptions(direct=True), []

    def own(start, vel, generators, end):
        path = MEAN + 0.1 * torch.from_numpy(generators[0].normal(size=MEAN.shape))
        paths.append(path)
        return MEAN, path

    network = straight(lambda pos, tau, mean: pos + (pos - mean).square() + 7 * tau)
    drawn = draw(network, body_of(), own, [np.random.default_rng(0)] * 2, options)
    torch.testing.assert_close(drawn, paths[0] + (paths[0] - MEAN).square())
    paths.clear()
    calls = iter([np.random.default_rng(0)])
    mean = draw(network, body_of(), lambda s, v, g, e: own(s, v, g or list(calls), e), None, options)
    assert len(paths) == 8 + 1
    torch.testing.assert_close(mean, MEAN + torch.stack([(p - MEAN).square() for p in paths[1:]]).mean(0))
    assert len({float(path[0, 0, 0]) for path in paths[1:]}) == 8


@pytest.mark.parametrize("direct", [False, True])
def test_a_known_end_stays_where_it_is(direct):
    end, seen = normal(7, 3, seed=9), []

    def known(start, vel, generators, last):
        assert isinstance(last, End) and last.ended.tolist() == [True, True] and last.pos is end
        mean, path = MEAN.clone(), PATH.clone()
        mean[-1] = path[-1] = end
        return mean, path

    def network(h, pos, vel, *edges, ended, **others):
        seen.append(ended)
        return FlowOutput(pos + 1.0, vel, h)

    for generators in ([None] * 2, None):
        if direct and generators is None:
            continue
        out = draw(network, body_of(), known, generators, FlowOptions(ends=0.5, direct=direct), end)
        torch.testing.assert_close(out[-1], end)
        assert (out[:-1] != PATH[:-1]).any()
    assert all(one.tolist() == [1.0, 1.0] for one in seen)


def forecaster(model):
    """Mean and draws of the base by itself, as free forecasts know them."""
    if model.spec.base == "any":
        return dataclasses.replace(model.elastic["any"], stride=model.window.stride_ps)
    return next(iter(model.process.values()))


BASES = {
    "own": {"history": 3},
    "any": {"base": "any", "history": 3},
    "any, longer strides": {"base": "any", "history": 3, "stride_range": (1.0, 4.0)},
}


@pytest.mark.parametrize("rigid", [True, False])
@pytest.mark.parametrize("kind", BASES)
def test_the_base_of_a_window_is_the_forecast_of_the_same_name(kind, rigid):
    model, builder, frames, *_ = flow_model(length_scale=2.0, **BASES[kind])
    if kind == "any, longer strides":
        model = model.at_stride(2.0)
    which = "elastic" if "any" in kind else "process"
    parts = {name: dataclasses.replace(part, rigid=rigid) for name, part in getattr(model, which).items()}
    model = dataclasses.replace(model, **{which: parts})
    past = starts_of(frames, 50, 90, back=3)
    bodies, one = bodies_of(model, graphs(model, [builder] * 2, past)), forecaster(model)
    n, steps = past.shape[2], [1, 2, 3, 4]
    for seeds in (None, (3, 4)):
        generators = None if seeds is None else [np.random.default_rng(seed) for seed in seeds]
        _, path = bodies.base(bodies.body.start, bodies.body.vel, generators)
        found = bodies.back(path, generators).reshape(4, 2, n, 3)
        for k in range(2):
            how = () if seeds is None else (1, np.random.default_rng(seeds[k]))
            expected, start = one(past[k : k + 1], steps, *how)[0, 0], past[k, -1]
            if not rigid:  # how they turn and move is then no matter
                expected, found[:, k] = aligned(expected, start), aligned(found[:, k], start)
            np.testing.assert_allclose(found[:, k], expected, atol=2e-4)


@pytest.mark.parametrize("kind", ["own", "any"])
def test_what_followed_comes_back_superposed_on_its_start(kind):
    model, builder, frames, *_ = flow_model(length_scale=2.0, **BASES[kind])
    past = starts_of(frames, 50, 90, back=3)
    graph = graphs(model, [builder] * 2, past)
    n = past.shape[2]
    later = np.stack([frames[k + 1 : k + 5] for k in (50, 90)]).astype(float)  # (2, T, N, 3)
    y = torch.from_numpy(later.swapaxes(1, 2).reshape(2 * n, 4, 3))
    shift = 5 * torch.randn(graph.edge_index.shape[1], 3, generator=torch.Generator().manual_seed(0))
    bodies = bodies_of(model, graph._replace(edge_shift=shift))
    targets = bodies.targets(y)
    placed = bodies.placed(targets).reshape(4, 2, n, 3)
    for k in range(2):
        start = past[k, -1]
        expected = aligned(later[k], start) + start.mean(axis=0)
        np.testing.assert_allclose(placed[:, k], expected, atol=1e-4)
        np.testing.assert_allclose(bodies.placed(bodies.body.start.expand(4, -1, -1)).reshape(4, 2, n, 3)[:, k],
                                   np.broadcast_to(start, (4, n, 3)), atol=1e-4)  # fmt: skip
    i, j = graph.edge_index
    both = (bodies.body.start, bodies.body.edge_shift), (graph.pos, shift)
    lengths = [(x[i] - x[j] - s).norm(dim=1) for x, s in both]
    torch.testing.assert_close(2 * lengths[0], lengths[1], atol=1e-3, rtol=1e-4)
    # The last displacement, in the axes of the body, apart from how the molecule turned and moved in it.
    before = aligned(past[:, -2], past[:, -1]) + past[:, -1].mean(axis=1, keepdims=True)
    came = bodies.placed((bodies.body.start - bodies.body.vel).expand(4, -1, -1)).reshape(4, 2, n, 3)[0]
    np.testing.assert_allclose(came, before, atol=1e-4)


def noisy_start(kind):
    """A start with noise that neither turns nor moves it, and a last displacement with noise, in the body's axes."""
    model, builder, frames, *_ = flow_model(**BASES[kind])
    past = starts_of(frames, 50, back=3)
    bodies = bodies_of(model, graphs(model, [builder], past))
    noise = torch.from_numpy(0.02 * np.random.default_rng(0).normal(size=(2, *past.shape[2:]))).float()
    still = bodies.body.start
    start = torch.from_numpy(aligned((still + noise[0]).numpy(), still.numpy())) + still.mean(0)
    vel = bodies.body.vel + noise[1]
    older = [aligned(past[0, k], past[0, -1]) + past[0, -1].mean(axis=0) for k in range(2)]
    return model, bodies, past, older, start, vel


def test_noise_of_a_training_moves_the_start_and_not_what_came_before():
    """A process goes on from the start with its noise as the forecast would that has seen it there."""
    model, bodies, past, older, start, vel = noisy_start("own")
    mean, _ = bodies.base(start, vel, None)
    seen = [bodies.placed(x[None].expand(4, -1, -1))[0] for x in (start, start - vel)]
    noisy = np.stack([*older, seen[1], seen[0]])[None]
    expected, found = forecaster(model)(noisy, [1, 2, 3, 4])[0, 0], bodies.placed(mean)
    moved = np.abs(aligned(found, seen[0]) - aligned(seen[0], seen[0])).max()
    np.testing.assert_allclose(aligned(found, seen[0]), aligned(expected, seen[0]), atol=0.02 * moved)


def test_noise_of_a_training_leaves_the_network_of_the_start_as_it_is():
    model, bodies, past, older, start, vel = noisy_start("any")
    mean, _ = bodies.base(start, vel, None)
    placed = Placed.of(past, 4)
    frames = [(frame - placed.centre[0]) @ placed.rotation[0] for frame in older]
    before = np.stack([*[frame - start.numpy() for frame in frames], -vel.numpy()])
    network = forecaster(model)
    given = network.given(Modes.of(placed.start[0]), before, network.conditional(3, [1, 2, 3, 4])[0])
    np.testing.assert_allclose(mean, start + torch.from_numpy(given.mean).float(), atol=1e-5)


def test_nodes_hear_how_far_their_molecule_spreads(monkeypatch):
    """Its size and the stride as logarithms, then of each node the spread at both ends, and the last displacement."""
    # Of paths from which no motion as a whole is taken off.
    monkeypatch.setattr("egno_md.forecast.network.rigid_directions", lambda positions: np.zeros((positions.size, 0)))
    model, builder, frames, *_ = flow_model(**BASES["any, longer strides"])
    model = model.at_stride(2.0)
    past = starts_of(frames, 50, back=3)
    body = bodies_of(model, graphs(model, [builder], past)).body
    network = dataclasses.replace(forecaster(model), rigid=False)
    drawn = network(past, [1, 2, 3, 4], 4000, np.random.default_rng(0))[0]  # (K, T, N, 3)
    spread = np.sqrt(drawn.var(axis=0).mean(axis=-1))  # (T, N)
    size = np.sqrt(np.mean(spread**2))
    assert float(body.size[0]) == pytest.approx(size, rel=0.05)
    about = body.about.double().numpy()
    np.testing.assert_allclose(about[:, 0], np.log(size), atol=0.05)
    np.testing.assert_allclose(about[:, 1], np.log10(2.0), atol=1e-6)
    np.testing.assert_allclose(about[:, 2:4], np.log(spread[[0, -1]] / size).T, atol=0.1)
    np.testing.assert_allclose(about[:, 4], body.vel.norm(dim=1) / body.size, rtol=1e-4)


@pytest.mark.parametrize("kind", [{}, {"base": "any"}])
def test_some_strides_of_a_drawn_window_are_those_of_the_whole_one(kind, monkeypatch):
    """Whichever are asked for, and however many are drawn at a time."""
    model, builder, frames, *_ = flow_model(**kind)
    window, past = OperatorWindow(model, builder), starts_of(frames, 20, 90)
    whole = window(past, [1, 2, 3, 4], 3, np.random.default_rng(0))
    assert whole.shape == (2, 3, 4, 10, 3)
    np.testing.assert_array_equal(window(past, [2, 4], 3, np.random.default_rng(0)), whole[:, :, [1, 3]])
    monkeypatch.setattr("egno_md.forecast.operator.NODES_PER_DRAW", 40)
    parts = window(past, [1, 2, 3, 4], 3, np.random.default_rng(0))
    np.testing.assert_allclose(parts, whole, atol=1e-4)
    np.testing.assert_allclose(window(past, [3])[:, 0, 0], window(past, [1, 2, 3, 4])[:, 0, 2], atol=1e-5)
    for asked in ([1.5], [5]):
        with pytest.raises(UsageError, match="draws the strides"):
            window(past, asked, 3, np.random.default_rng(0))


def test_an_operator_that_draws_has_a_mean_of_every_stride_and_of_no_other_time():
    model, builder, frames, *_ = flow_model()
    batch = graphs(model, [builder], starts_of(frames, 50))
    out = apply_operator(model, batch, times=torch.arange(4))
    torch.testing.assert_close(out.vel, torch.diff(out.pos, dim=0, prepend=batch.pos[None]))
    torch.testing.assert_close(out.pos, apply_operator(model, batch).pos)
    with pytest.raises(UsageError, match=r"draws the frames \[1, 2, 3, 4\] of a window and none between them"):
        apply_operator(model, batch, times=torch.arange(4) + 0.5)
