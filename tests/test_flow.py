"""Futures drawn by flow matching: the sampler, the loss, training, and what an ensemble must keep."""

from __future__ import annotations

import dataclasses
import json

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import make_universe
from scipy.spatial.transform import Rotation

from egno_md import EGNOSurrogate, load_model, sample
from egno_md.cli import main
from egno_md.errors import ModelError, UsageError
from egno_md.forecast.chain import ChainState, ModelForecaster, forecast, roll
from egno_md.forecast.generative import bodies_of, drawn_loss, drawn_window
from egno_md.forecast.model import build_network, new_model
from egno_md.forecast.operator import apply_operator, graphs
from egno_md.forecast.streams import Streams
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.graph import collate
from egno_md.graph.windows import Run, TrajectoryWindows, split_blocks
from egno_md.nn import operators
from egno_md.nn.captured import RECORDABLE, Captured
from egno_md.nn.flow import FlowOptions, HierarchicalFlow, Numbers, draw
from egno_md.nn.testing import check_operator
from egno_md.propagator import surrogate_simulation
from egno_md.specs import GraphSpec, ModelSpec, TrainSpec, WindowSpec
from egno_md.training.data import System, load_data
from egno_md.training.loop import fit
from egno_md.training.source import elastic, processes

torch.set_num_threads(1)
GRAPH = GraphSpec(select="all", cutoff=8.0, hops=2, node_features=("element",))
WINDOW = WindowSpec(stride_ps=1.0, n_times=4)


def noisy_run(n_frames=400, seed=0):
    """Atoms that swing back to their places with noise, in a molecule that turns and moves."""
    u = make_universe(1)
    rng = np.random.default_rng(seed)
    frames = np.zeros((n_frames, u.atoms.n_atoms, 3))
    for k in range(1, n_frames):
        frames[k] = 0.9 * frames[k - 1] + 0.1 * rng.normal(size=frames[k].shape)
    frames += u.atoms.positions
    turn = Rotation.from_rotvec(0.02 * np.cumsum(rng.normal(size=(n_frames, 3)), axis=0)).as_matrix()
    middle = frames.mean(axis=1, keepdims=True)
    frames = (frames - middle) @ turn + middle + 0.05 * np.cumsum(rng.normal(size=(n_frames, 1, 3)), axis=0)
    return u, frames.astype(np.float32)


def flow_model(seed=0, scale=0.03, history=1, stride_range=None, **options):
    """A model with random weights and the process of the run, the run, and its windows for training and validation."""
    u, frames = noisy_run()
    builder = GraphBuilder(u.atoms, GRAPH)
    spec = ModelSpec(operator="flow", hidden=8, layers=2, time_embedding=8, modes=2, **options)
    window = WINDOW.model_copy(update={"history": history, "stride_range": stride_range})
    model = new_model(GRAPH, window, spec, seed=seed)
    strides = (1, 2, 4) if stride_range else (1,)
    runs = [Run(frames, builder, k, stride_ps=float(k) if stride_range else None) for k in strides]
    parts = zip(*(split_blocks(len(frames), window, every=k, fractions=(0.7, 0.3)) for k in strides), strict=True)
    train, validation = (TrajectoryWindows(runs, window, starts) for starts in parts)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    if model.spec.base == "any":
        model = dataclasses.replace(model, elastic={"any": elastic(train)})
    else:
        model = dataclasses.replace(model, process=processes(train))
    return model, builder, frames, train, validation


@pytest.fixture(scope="module")
def flow():
    return flow_model()


def starts_of(frames, *numbers, back=1):
    return np.stack([frames[k - back : k + 1] for k in numbers]).astype(np.float64)


#: Models that begin with the process of their molecule, and with the network that any molecule has.
KINDS = {
    "canonical": {},
    "differences": {"canonical": False},
    "uninformed": {"informed": False},
    "history": {"history": 3},
    "any": {"base": "any", "handed": True},
    "any, history": {"base": "any", "history": 3},
    "any, strides": {"base": "any", "history": 2, "stride_range": (1.0, 4.0)},
    "hierarchical": {"trunk": "eghno", "clusters": 3},
    "any, hierarchical": {"trunk": "eghno", "clusters": 3, "base": "any", "history": 3},
}


def test_without_a_network_the_sampler_gives_the_base():
    """Where base and data have the same covariance the right answer of a network leaves every path alone."""
    model, builder, frames, *_ = flow_model(scale=0.0)
    bodies = bodies_of(model, graphs(model, [builder], starts_of(frames, 50)))
    generator = [np.random.default_rng(3)]
    mean, path = bodies.base(bodies.body.start, bodies.body.vel, [np.random.default_rng(3)])

    class Right(torch.nn.Module):
        """What is to be expected of x1 where base and data are the same Gaussian: m + tau (x - m) / r^2."""

        def forward(self, h, pos, vel, *rest, level, **others):
            tau = level[others["batch"]][:, None]
            out = mean + tau * (pos - mean) / ((1 - tau) ** 2 + tau**2)
            return type("Out", (), {"pos": out})

    drawn = draw(Right(), bodies.body, bodies.base, generator, FlowOptions(steps=5))
    np.testing.assert_allclose(drawn, path, atol=1e-5)
    with torch.no_grad():
        still = draw(model.network, bodies.body, bodies.base, None, FlowOptions())
        untrained = draw(model.network, bodies.body, bodies.base, [np.random.default_rng(3)], FlowOptions())
    np.testing.assert_allclose(still, mean, atol=1e-6)
    np.testing.assert_allclose(untrained, path, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drawn", [True, False])
def test_a_turned_start_gives_the_turned_future(kind, drawn):
    model, builder, frames, *_ = flow_model(**KINDS[kind])
    back = model.window.history
    past = starts_of(frames, 20, 90, back=back)
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    q *= np.linalg.det(q)
    move = np.array([3.0, -7.0, 2.0])
    options = {"samples": 3, "seed": 5} if drawn else {}
    plain = forecast(model, builder, past, 6, **options)
    turned = forecast(model, builder, past @ q.T + move, 6, **options)
    assert np.abs(turned - (plain @ q.T + move)).max() < 3e-5
    # In double precision to the last digits.
    double = dataclasses.replace(model, network=model.network.double())
    pair = [graphs(model, [builder] * 2, x) for x in (past, past @ q.T + move)]
    exact = []
    for graph, frames_ in zip(pair, (past, past @ q.T + move), strict=True):
        nodes = torch.tensor(frames_.swapaxes(1, 2).reshape(-1, back + 1, 3))  # (2 N, P, 3)
        fields = {"pos": nodes[:, -1], "vel": nodes[:, -1] - nodes[:, -2]}
        if back > 1:
            fields |= {"pos_history": nodes[:, 1:], "vel_history": nodes.diff(dim=1)}
        exact.append(graph._replace(**fields, **{name: getattr(pair[0], name).double() for name in ("x", "edge_attr")}))
    generators = [[np.random.default_rng(k) for k in range(2)] if drawn else None for _ in range(2)]
    a, b = (drawn_window(double, g, r) for g, r in zip(exact, generators, strict=True))
    assert np.abs(b - (a @ q.T + move)).max() < 1e-9


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_a_longer_edge_is_seen_in_units_of_the_spread(size):
    model, builder, frames, *_ = flow_model(**KINDS["any"])
    graph, seen = graphs(model, [builder], starts_of(frames, 50)), []
    model.network.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[4]))
    start = graph.pos
    moving = torch.stack([start, start, 1.1 * start, 1.2 * start])  # (T, N, 3)
    with torch.no_grad():
        model.network(
            graph.x, moving, graph.vel.expand_as(moving), graph.edge_index, graph.edge_attr,
            start=start, size=torch.tensor([size]),
        )  # fmt: skip
    length = (start[graph.edge_index[0]] - start[graph.edge_index[1]]).norm(dim=-1)  # (E,)
    for stretched, attr in zip((0, 0, 0.1, 0.2), seen[0], strict=True):
        torch.testing.assert_close(attr[:, -1], stretched * length / size, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["canonical", "any, history", "hierarchical"])
def test_members_do_not_depend_on_each_other(kind, monkeypatch):
    model, builder, frames, *_ = flow_model(**KINDS[kind])
    past = starts_of(frames, 20, 90, 150, back=model.window.history)
    all_of_them = forecast(model, builder, past, 10, samples=5, seed=7, numbers=[20, 90, 150])
    assert all_of_them.shape == (3, 5, 10, past.shape[2], 3)
    fewer = forecast(model, builder, past, 10, samples=2, seed=7, numbers=[20, 90, 150])
    np.testing.assert_allclose(fewer, all_of_them[:, :2], atol=2e-5)
    alone = forecast(model, builder, past[1:2], 10, samples=5, seed=7, numbers=[90])
    np.testing.assert_allclose(alone, all_of_them[1:2], atol=2e-5)
    assert np.array_equal(forecast(model, builder, past, 10, samples=5, seed=7, numbers=[20, 90, 150]), all_of_them)
    assert np.abs(forecast(model, builder, past, 10, samples=1, seed=8) - all_of_them[:, :1]).max() > 0.05
    monkeypatch.setattr("egno_md.forecast.operator.NODES_PER_DRAW", 20)
    monkeypatch.setattr("egno_md.forecast.chain.NODES_PER_BATCH", {"cpu": 20})
    parts = forecast(model, builder, past, 10, samples=5, seed=7, numbers=[20, 90, 150])
    np.testing.assert_allclose(parts, all_of_them, atol=2e-5)


@pytest.mark.parametrize("kind", ["canonical", "any, history"])
def test_as_a_gpu_runs_them_the_futures_are_the_same(kind, monkeypatch):
    """Padded, and in chunks of two sizes, each of which is set up once."""
    model, builder, frames, *_ = flow_model(**KINDS[kind])
    past = starts_of(frames, 20, 90, 150, back=model.window.history)
    monkeypatch.setattr("egno_md.forecast.operator.NODES_PER_DRAW", 4 * past.shape[2])
    plain = forecast(model, builder, past, 10, samples=5, seed=7)
    networks = []

    def recordable(model, *_):
        networks.append(Captured(model.network))
        return networks[-1]

    monkeypatch.setattr("egno_md.forecast.operator._recordable", recordable)
    np.testing.assert_allclose(forecast(model, builder, past, 10, samples=5, seed=7), plain, atol=1e-4)
    assert len(networks) == 1 and len(networks[0]._recordings) == 2


def test_a_chain_goes_on_from_its_state_to_the_same_bits(flow):
    model, builder, frames, *_ = flow
    inner = ModelForecaster(model, builder).inner
    past = starts_of(frames, 20)
    chain = roll(inner, past, [1, 2, 3, 4], samples=3, generator=Streams.of(1, [20], 3))
    first, second = next(chain), next(chain)
    assert np.abs(first.positions[:, 0] - first.positions[:, 1]).max() > 0.05
    state = ChainState.of(first.state.arrays())
    again = next(roll(inner, None, [1, 2, 3, 4], state=state))
    assert np.array_equal(again.positions, second.positions)


def simulated(simulation, steps):
    """Frames of so many steps, one by one, in Angstrom."""
    frames = []
    for _ in range(steps):
        simulation.step(1)
        frames.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value * 10)
    return np.stack(frames)


def run_of(model_and_run, n_frames=40):
    u, frames = model_and_run[1], model_and_run[2]
    universe = noisy_run()[0].copy()
    assert universe.atoms.n_atoms == u.n_atoms
    universe.load_new(frames[:n_frames].astype(np.float32), dt=1.0)
    return universe


def test_a_simulation_draws_the_future_of_the_analysis(flow):
    universe = run_of(flow)
    universe.trajectory[30]
    first, other = (simulated(surrogate_simulation(universe, flow[0], seed=seed), 10) for seed in (3, 4))
    ensemble = EGNOSurrogate(universe, flow[0], horizon=10, samples=1, seed=3).run(frames=[30]).results.ensemble
    np.testing.assert_allclose(first, ensemble[0, 0], atol=1e-3)
    assert np.abs(first[:4] - other[:4]).max() > 0.05
    at_once = surrogate_simulation(universe, flow[0], seed=3)
    at_once.step(10)
    at_once = at_once.context.getState(positions=True).getPositions(asNumpy=True)._value * 10
    assert np.array_equal(at_once, first[-1])


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("how", ["checkpoint", "state"])
@pytest.mark.parametrize("steps", [0, 3, 4, 6])
def test_a_drawn_simulation_goes_on_to_the_same_bits(flow, tmp_path, platform, how, steps):
    universe = run_of(flow)
    universe.trajectory[30]
    simulation = surrogate_simulation(universe, flow[0], seed=3, platform=platform)
    simulation.step(steps)
    path = str(tmp_path / "restart")
    (simulation.saveCheckpoint if how == "checkpoint" else simulation.saveState)(path)
    expected = simulated(simulation, 9)

    universe.trajectory[4]  # another start and another seed: all must come from the file
    restarted = surrogate_simulation(universe, flow[0], seed=5, platform=platform)
    (restarted.loadCheckpoint if how == "checkpoint" else restarted.loadState)(path)
    assert np.array_equal(simulated(restarted, 9), expected)


def test_positions_from_outside_are_followed_by_another_future(flow):
    """Not by the numbers of the window that was left, which would draw the same again."""
    universe = run_of(flow)
    universe.trajectory[30]
    simulation = surrogate_simulation(universe, flow[0], seed=3)
    state = simulation.context.getState(positions=True, velocities=True)
    first = simulated(simulation, 4)
    simulation.context.setState(state)
    simulation.context.setPositions(state.getPositions(asNumpy=True)._value + 1e-3)
    second = simulated(simulation, 4) - 0.01
    assert np.abs(second - first).max() > 0.05
    with pytest.raises(UsageError, match=r"seed \(--seed\) must be a whole number"):
        surrogate_simulation(universe, flow[0], seed=-1)


@pytest.mark.parametrize("kind", ["history", "any, strides", "hierarchical"])
def test_untrained_a_window_is_one_of_the_base(kind):
    """Of the frames before the start as well: the mean of a network that says nothing is that of the base."""
    model, builder, frames, *_ = flow_model(scale=0.0, **KINDS[kind])
    past = starts_of(frames, 20, 90, back=model.window.history)
    other = past.copy()
    other[:, 0] += np.random.default_rng(0).normal(size=other[:, 0].shape)  # the first frame, which is no start
    means = [forecast(model, builder, x, 4) for x in (past, other)]
    assert 0.001 < np.abs(means[0] - means[1]).max()
    if model.spec.base == "any":
        network = dataclasses.replace(model.elastic["any"], stride=1.0)
        np.testing.assert_allclose(means[0], network(past, [1, 2, 3, 4])[:, 0], atol=1e-4)
        far = forecast(model.at_stride(4.0), builder, past, 4)
        np.testing.assert_allclose(far, dataclasses.replace(network, stride=4.0)(past, [1, 2, 3, 4])[:, 0], atol=1e-4)
        with pytest.raises(UsageError, match="stride of 10 ps is not what the model was made for, which is 1 to 4 ps"):
            model.at_stride(10.0)


def test_the_mean_is_no_draw(flow):
    model, builder, frames, *_ = flow
    past = starts_of(frames, 20, 90)
    mean = forecast(model, builder, past, 4)
    assert mean.shape == (2, 4, past.shape[2], 3)
    assert np.array_equal(mean, forecast(model, builder, past, 4))
    out = apply_operator(model, graphs(model, [builder] * 2, past))
    np.testing.assert_allclose(out.pos.reshape(4, 2, -1, 3).swapaxes(0, 1), mean, atol=1e-4)


@pytest.mark.parametrize("kind", ["canonical", "any, strides", "hierarchical", "any, hierarchical"])
def test_the_loss_of_a_graph_is_its_own(kind):
    """Whoever shares its batch, and whichever process has it."""
    model, _, _, train, _ = flow_model(**KINDS[kind])
    graphs_ = [train[k] for k in (3, 40, 90, len(train) - 5)]
    whole = drawn_loss(model, collate(graphs_), Numbers((1, 2), range(4), 4))
    shares = [drawn_loss(model, collate(graphs_[k::2]), Numbers((1, 2), range(k, 4, 2), 4)) for k in (0, 1)]
    for term, *parts in zip(whole, *shares, strict=True):
        assert term[1] == sum(count for _, count in parts)
        mean = sum(float(value.detach()) * count for value, count in parts) / term[1]
        assert float(term[0].detach()) == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("handed", [False, True])
@pytest.mark.parametrize("base", ["own", "any"])
def test_with_clusters_the_contract_is_kept(base, handed):
    options = {"trunk": "eghno", "clusters": 3, "hidden": 8, "layers": 2, "time_embedding": 8}
    check_operator(
        dataclasses.replace(operators.get("flow"), reads=("local_index",)),
        options={**options, "base": base, "canonical": False, "handed": handed},
    )


@pytest.mark.parametrize("base", ["own", "any"])
def test_clusters_are_made_of_bonds_and_told_of_all_atoms(base):
    """An atom without neighbours hears of another through their clusters alone; bonds decide the clusters."""
    model, builder, frames, train, _ = flow_model(trunk="eghno", clusters=3, base=base, canonical=False)
    assert type(model.network) is HierarchicalFlow and HierarchicalFlow not in RECORDABLE
    graph = graphs(model, [builder], starts_of(frames, 50))
    none = graph._replace(edge_index=graph.edge_index[:, :0], edge_attr=graph.edge_attr[:0])
    paths = torch.zeros(4, graph.n_nodes, 3) + graph.pos
    moved = paths.clone()
    moved[2, 0] += 0.5

    def answers(path, network=model.network, local=graph.local_index):
        with torch.no_grad():
            return network(
                none.x, path, none.vel.expand_as(path), none.edge_index, none.edge_attr, start=graph.pos,
                **({"local_index": local} if local is not None else {}),
            )  # fmt: skip

    plain = flow_model(base=base, canonical=False)[0].network
    for network, heard in ((plain, False), (model.network, True)):
        local = graph.local_index if network is model.network else None
        change = answers(moved, network, local).pos[:, 1:] - answers(paths, network, local).pos[:, 1:]
        assert (change.abs().max() > 1e-6) == heard
    bonded, loose = answers(paths), answers(paths, local=graph.local_index[:, :0])
    assert bonded.assignment.shape == (graph.n_nodes, 3)
    torch.testing.assert_close(bonded.assignment.sum(1), torch.ones(graph.n_nodes))
    assert (bonded.assignment - loose.assignment).abs().max() > 1e-6
    losses = {
        weight: drawn_loss(
            dataclasses.replace(model, spec=model.spec.model_copy(update={"options": {
                **model.spec.options, "cut_weight": weight
            }})), collate([train[3], train[60]]), Numbers((1,), range(2), 2),
        )
        for weight in (0.0, 0.1, 0.3)
    }  # fmt: skip
    assert len(losses[0.0]) == len(losses[0.1]) - 1 and losses[0.1][-1][1] == 2
    torch.testing.assert_close(losses[0.3][-1][0], 3 * losses[0.1][-1][0])
    assert 0 < float(losses[0.1][-1][0].detach()) < 0.1 * 3


def test_strata_fill_the_interval():
    numbers = Numbers((0,), range(8), 8)
    levels = numbers.strata(numbers.generators())
    assert sorted((levels * 8).astype(int)) == list(range(8))


def test_training_is_resumed_to_the_same_weights_and_learns(tmp_path, flow):
    model, _, _, train, validation = flow
    model = dataclasses.replace(model, network=build_network(model.graph, model.window, model.spec))
    spec = TrainSpec(batch_size=32, learning_rate=3e-3, max_epochs=3, ema_decay=0.9)
    torch.manual_seed(0)
    whole = fit(model, train, validation, spec, work_dir=tmp_path / "whole", progress=False)
    assert "validation_f_mse" not in whole.provenance["training"]
    assert 0 < whole.provenance["training"]["validation_loss"] < 2
    calls = []
    original = TrajectoryWindows.__getitem__

    def interrupted(self, item):
        calls.append(item)
        if len(calls) > 2 * len(train):
            raise KeyboardInterrupt
        return original(self, item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrajectoryWindows, "__getitem__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(model, train, validation, spec, work_dir=tmp_path / "parts", progress=False)
    rest = fit(model, train, validation, spec, work_dir=tmp_path / "parts", resume=True, progress=False)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, rest.network.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["canonical", "any, strides", "hierarchical"])
def test_a_checkpoint_draws_the_same(tmp_path, kind):
    model, builder, frames, *_ = flow_model(**KINDS[kind])
    path = model.save(tmp_path / "flow.safetensors")
    assert load_model(path).window == model.window
    past = starts_of(frames, 20, 90, back=model.window.history)
    drawn = [forecast(m, builder, past, 6, samples=2, seed=1) for m in (model, load_model(path))]
    assert np.array_equal(*drawn)


def test_what_cannot_be_is_said(flow, tmp_path):
    model, builder, frames, train, _ = flow
    past = starts_of(frames, 20)
    with pytest.raises(UsageError, match="at least 1, found 0"):
        forecast(model, builder, past, 4, samples=0)
    for seed in (-1, 0.5, "x"):
        with pytest.raises(UsageError, match=r"seed \(--seed\) must be a whole number"):
            forecast(model, builder, past, 4, samples=1, seed=seed)
    with pytest.raises(ModelError, match="none between them: substeps must be 1"):
        forecast(model, builder, past, 4, substeps=2, samples=1)
    with pytest.raises(ModelError, match="train one on runs of this"):
        forecast(dataclasses.replace(model, process={}), builder, past, 4, samples=1)
    plain = new_model(GRAPH, WINDOW, ModelSpec(hidden=8, layers=1))
    with pytest.raises(ModelError, match="mean of all futures alone.*--operator flow"):
        forecast(plain, builder, past, 4, samples=2)
    with pytest.raises(UsageError, match="draws windows of every stride"):
        new_model(GRAPH, WindowSpec(stride_ps=1.0, n_times=4, velocity="forward"), model.spec)
    with pytest.raises(UsageError, match="knows one stride.*base = 'any'"):
        new_model(GRAPH, WindowSpec(stride_ps=1.0, n_times=4, stride_range=(1, 8)), model.spec)
    with pytest.raises(UsageError, match="history of 1 frame or of n_times = 4, found 3"):
        new_model(GRAPH, WindowSpec(stride_ps=1.0, n_times=4, history=3), plain.spec)
    untrained = new_model(GRAPH, WINDOW, model.spec.model_copy(update={"base": "any", "canonical": False}))
    with pytest.raises(ModelError, match="no elastic network to begin with"):
        forecast(untrained, builder, past, 4, samples=1)
    with pytest.raises(UsageError, match="loss of its own: leave out unroll"):
        fit(model, train, train, TrainSpec(unroll=2), work_dir=tmp_path, progress=False)


def test_the_operator_is_registered_with_its_own_beginning():
    operator = operators.get("flow")
    assert operator.drawing is not None
    assert operator.usual["model"]["length_scale"] == 1.0
    assert operators.get("egno").drawing is None


@pytest.fixture(scope="module")
def files(tmp_path_factory, flow):
    """The model of these tests as a checkpoint, and the run that it knows as files."""
    model, _, frames, *_ = flow
    folder = tmp_path_factory.mktemp("flow")
    u = make_universe(1)
    u.atoms.write(str(folder / "mol.pdb"), bonds="all")
    with mda.Writer(str(folder / "run.dcd"), u.atoms.n_atoms, dt=1.0) as writer:
        for frame in frames[:60]:
            u.atoms.positions = frame
            writer.write(u.atoms)
    builder = GraphBuilder(mda.Universe(str(folder / "mol.pdb")).atoms, GRAPH)
    (process,) = model.process.values()
    dataclasses.replace(model, process={builder.identity: process}).save(folder / "flow.safetensors")
    return folder


def test_surrogate_gives_ensembles(files, tmp_path):
    u, model = mda.Universe(str(files / "mol.pdb"), str(files / "run.dcd")), files / "flow.safetensors"
    options = {"horizon": 6, "seed": 3}
    both = EGNOSurrogate(u, model, samples=3, **options).run(frames=[20, 40]).results
    n_atoms = u.atoms.n_atoms
    assert both.ensemble.shape == (2, 3, 6, n_atoms, 3)
    assert both.spread.shape == (2, n_atoms)
    assert np.array_equal(both.positions, both.ensemble[:, 0])
    assert len(both.checks[0].clashes) == 3 * 6
    # Of the second start alone, by its number.
    one = EGNOSurrogate(u, model, samples=3, filename=tmp_path / "out.dcd", **options).run(frames=[40]).results
    np.testing.assert_allclose(one.ensemble[0], both.ensemble[1], atol=2e-5)
    assert [path.name for path in one.files] == [f"out_{k}.{end}" for k in (1, 2, 3) for end in ("dcd", "pdb")]
    for k in range(3):
        written = mda.Universe(str(tmp_path / f"out_{k + 1}.pdb"), str(tmp_path / f"out_{k + 1}.dcd"))
        np.testing.assert_allclose(written.atoms.tempfactors, one.spread[0], atol=0.0051)
        remarks = [line for line in (tmp_path / f"out_{k + 1}.pdb").read_text().splitlines() if "REMARK" in line]
        assert "spread of each atom between the futures" in remarks[0] and max(map(len, remarks)) <= 80
        np.testing.assert_allclose([ts.positions for ts in written.trajectory], one.ensemble[0, k], atol=1e-4)
    # Internal: by hand, from frames superposed on the start.
    u.trajectory[40]
    start = u.atoms.positions - u.atoms.positions.mean(axis=0)
    shapes = np.array([[align(frame, start) for frame in member] for member in one.ensemble[0]])  # (K, T, N, 3)
    by_hand = np.sqrt(shapes.var(axis=0, ddof=1).sum(axis=-1).mean(axis=0))
    np.testing.assert_allclose(one.spread[0], by_hand, atol=1e-4)
    with pytest.raises(UsageError, match="takes one sample"):
        EGNOSurrogate(u, model, samples=3, on_unphysical="stop", **options)
    default = EGNOSurrogate(u, model, **options).run(frames=[40]).results
    assert default.ensemble.shape == (1, 1, 6, n_atoms, 3) and np.isnan(default.spread).all()
    np.testing.assert_allclose(default.positions, one.positions, atol=2e-5)


def align(frame, start):
    """The frame about its centre, turned onto the start by a singular value decomposition."""
    frame = frame - frame.mean(axis=0)
    a, _, b = np.linalg.svd(frame.T @ start)
    return frame @ (a * [1, 1, np.sign(np.linalg.det(a @ b))]) @ b


def test_predict_writes_a_file_for_each_member_to_the_same_bytes(files, tmp_path):
    def predict(name, *further):
        arguments = ["predict", str(files / "mol.pdb"), str(files / "run.dcd"), "--model",
                     str(files / "flow.safetensors"), "--horizon", "6", "-o", str(tmp_path / name)]  # fmt: skip
        return CliRunner().invoke(main, [*arguments, *further])

    first = predict("a.dcd", "--samples", "3", "--seed", "5", "--json")
    assert first.exit_code in (0, 3), first.output
    summary = json.loads(first.stdout)
    assert (summary["samples"], summary["seed"], len(summary["spread_A"])) == (3, 5, summary["atoms"])
    again, other = (predict(f"{name}.dcd", "--samples", "3", "--seed", seed) for name, seed in (("b", "5"), ("c", "6")))
    assert "3 futures with the seed 5" in again.output
    assert other.exit_code in (0, 3)
    same, differ = ([(tmp_path / f"{name}_{k}.dcd").read_bytes() for k in (1, 2, 3)] for name in "bc")
    assert same == [(tmp_path / f"a_{k}.dcd").read_bytes() for k in (1, 2, 3)]
    assert not set(same) & set(differ)
    refused = predict("a.dcd", "--samples", "3")
    assert refused.exit_code == 1 and "a_1.dcd" in refused.output
    assert "--samples must be a whole number of at least 1, found 0" in predict("d.dcd", "--samples", "0").output
    assert predict("d.dcd", "--seed", "x").exit_code == 2


def test_samples_of_a_model_of_the_mean_are_an_error_with_its_cure(tmp_path):
    topology, run = map(str, sample())
    asked = CliRunner().invoke(
        main,
        ["predict", topology, run, "--model", "ca-1ps", "--samples", "2", "-o", str(tmp_path / "x.dcd")],
    )
    assert asked.exit_code == 1
    assert asked.output.strip().splitlines()[-1].startswith("Error: 'ca-1ps' knows the mean of all futures alone")
    assert "--operator flow" in asked.output


def test_train_makes_a_model_of_several_strides_for_any_molecule(files, tmp_path):
    arguments = [
        "train", str(files / "mol.pdb"), str(files / "run.dcd"), "-o", str(tmp_path / "new.safetensors"),
        "--operator", "flow", "--select", "all", "--window", "2", "--hidden", "8", "--layers", "1", "--epochs", "1",
        "--set", "base=any", "--set", "stride_range=[1,4]", "--set", "history=2", "--split", "0.4", "0.3", "0.3",
        "--work", str(tmp_path / "work"), "--set", "node_features=['element']",
    ]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    model = load_model(tmp_path / "new.safetensors")
    assert model.window.stride_range == (1, 4) and model.window.history == 2 and not model.process
    (network,) = model.elastic.values()
    assert network.span[0] == 1 and 4 * 2 <= network.span[1] <= 16
    # Of a run that is saved otherwise, and of another molecule; what lies outside is refused with its cure.
    _, frames = noisy_run(40, seed=3)
    two = np.concatenate([frames, frames + np.array([0, 0, 30], np.float32)], axis=1)
    for spacing, every in ((3.0, 1), (0.5, 2), (20.0, None)):
        u = mda.Merge(make_universe(1).atoms, make_universe(1).atoms)
        u.load_new(two, order="fac", dt=spacing)
        if every is None:
            with pytest.raises(UsageError, match="stride of 20 ps.*1 to 4 ps.*--every"):
                EGNOSurrogate(u, model, horizon=3)
            continue
        found = EGNOSurrogate(u, model, horizon=3, samples=2, every=every).run(frames=[30])
        assert found.model.window.stride_ps == spacing * every and found.every == every
        assert found.results.ensemble.shape == (1, 2, 3, u.atoms.n_atoms, 3)


def test_strides_share_no_frames_between_training_and_validation(files):
    window = WindowSpec(stride_ps=1.0, n_times=2, stride_range=(1, 8))
    system = System(files / "mol.pdb", (files / "run.dcd",))
    data = load_data([system], GRAPH, window, fractions=(0.5, 0.5, 0))
    assert [run.stride_ps for run in data.train.runs] == [1, 2, 4, 8]
    seen = []
    for part in (data.train, data.validation):
        runs, span = part.runs, np.arange(-1, 3)
        seen.append({int(f) for r, start in part.index for f in start + span * runs[r].every})
    assert seen[0] and seen[1] and not seen[0] & seen[1]
    assert {float(data.train[k].stride) for k in range(len(data.train))} == {1, 2, 4, 8}


def test_train_makes_a_model_that_draws(files, tmp_path):
    arguments = [
        "train", str(files / "mol.pdb"), str(files / "run.dcd"), "-o", str(tmp_path / "new.safetensors"),
        "--operator", "flow", "--select", "all", "--window", "4", "--hidden", "8", "--layers", "1", "--epochs", "1",
        "--work", str(tmp_path / "work"),
    ]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "of futures drawn" in done.output
    assert "a full one needs 120 windows" in done.output
    model = load_model(tmp_path / "new.safetensors")
    assert (model.spec.prior, model.spec.length_scale, model.spec.hidden) == ("static", 1.0, 8)
    assert model.spec.modes == 3  # as many as four frames have
    u = mda.Universe(str(files / "mol.pdb"), str(files / "run.dcd"))
    assert EGNOSurrogate(u, model, horizon=5, samples=2).run().results.ensemble.shape[:3] == (1, 2, 5)
