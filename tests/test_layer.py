"""The EGNN layer as one autograd node, which small graphs take in training, against the layer put together of parts."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_edges import A, H, N, T, agree, graph

from egno_md.errors import UsageError
from egno_md.nn import EGNO, egnn
from egno_md.nn.edges import block, reference
from egno_md.nn.egnn import EGNNLayer

layer = pytest.importorskip("egno_md.nn.edges.layer", reason="Numba is not installed", exc_type=ImportError)

OPTIONS = [
    dict(),
    dict(residual=True),
    dict(reduce="mean"),
    dict(handed=True),
    dict(flat=True),
    dict(norm=True),
    dict(residual=True, reduce="mean"),
]
PLAIN = [options for options in OPTIONS if not options.keys() & {"handed", "flat", "norm"}]


def network(width=H, n_attr=A, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return EGNNLayer(width, n_attr, **options).to(dtype)


def inputs(**how):
    data = graph(**how)
    torch.manual_seed(3)
    return data | {"vel": torch.randn_like(data["pos"]).requires_grad_()}


def run(net, data, keep=(1, 1)):
    """Results and all gradients of a functional in which every element has a weight of its own."""
    results = net(**data)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in results]
    loss = sum(k * (x * w).sum() for k, x, w in zip(keep, results, weights, strict=True) if k)
    leaves = [x for x in data.values() if x.requires_grad] + [*net.parameters()]
    return results, torch.autograd.grad(loss, leaves, allow_unused=True)


@pytest.fixture
def taken(monkeypatch):
    """Both dtypes take the one node; a list that grows with every call of it."""
    calls, whole = [], layer.egnn_layer
    monkeypatch.setattr(EGNNLayer, "_is_small", lambda *_: True)
    monkeypatch.setattr(layer, "egnn_layer", lambda *args, **how: calls.append(1) or whole(*args, **how))
    return calls


def in_parts(net, data, keep=(1, 1)):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EGNNLayer, "_is_small", lambda *_: False)
        return run(net, data, keep)


@pytest.mark.parametrize("options", PLAIN, ids=str)
@pytest.mark.parametrize("shift", [False, True], ids=["open", "periodic"])
@pytest.mark.parametrize("attr_times", [None, T], ids=["static", "per time"])
@pytest.mark.parametrize("rows", [2**20, 37], ids=["one block", "many blocks"])
def test_equals_the_layer_in_parts(options, shift, attr_times, rows, taken, monkeypatch):
    monkeypatch.setattr(layer, "_rows_of_a_block", lambda *_: rows)
    net, data = network(**options), inputs(attr_times=attr_times, shift=shift)
    got, expected = run(net, data), in_parts(net, data)
    assert len(taken) == 1
    agree(got[0], expected[0], 1e-12)
    agree(got[1], expected[1], 1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shift", [False, True], ids=["open", "periodic"])
def test_gradients_are_those_of_finite_differences(options, shift, taken):
    """What has no one node, and there are several outputs of phi_x among it, takes the parts."""
    net, data = network(3, 2, **options), inputs(n_edges=9, width=3, n_attr=2, shift=shift)
    names = [name for name, x in data.items() if x.requires_grad]
    weights = dict(net.named_parameters())

    def function(*values):
        given = dict(zip([*names, *weights], values, strict=True))
        return torch.func.functional_call(
            net, {name: given.pop(name) for name in weights}, (), data | given, strict=True
        )

    assert torch.autograd.gradcheck(function, (*(data[name] for name in names), *weights.values()), fast_mode=False)
    assert bool(taken) == (options in PLAIN)


@pytest.mark.parametrize("keep", [(1, 0), (0, 1)], ids=["positions", "scalars"])
def test_one_result_alone_is_asked_for(keep, taken):
    """As in the last layer, whose scalars nobody reads."""
    net, data = network(), inputs()
    got, expected = run(net, data, keep), in_parts(net, data, keep)
    for a, b in zip(got[1], expected[1], strict=True):
        if b is None or not b.any():
            assert a is None or not a.any()
        else:
            agree([a], [b], 1e-10)


def test_no_gradient_where_the_displacement_is_bounded(taken):
    net, data = network(), inputs()
    with torch.no_grad():
        net.coord[-1].weight *= 300
    got, expected = run(net, data), in_parts(net, data)
    bounded = (expected[0][0] - data["pos"] - net.velocity(data["h"]) * data["vel"]).abs() > reference.MAX_SHIFT - 1e-9
    assert 0.1 < bounded.double().mean() < 0.9
    agree(got[0], expected[0], 1e-12)
    agree(got[1], expected[1], 1e-10)


def test_number_of_threads_changes_nothing(taken, monkeypatch):
    monkeypatch.setattr(layer, "_rows_of_a_block", lambda *_: 60)
    net, data, before = network(), inputs(n_edges=400), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(net, data)
        torch.set_num_threads(3)
        three = run(net, data)
    finally:
        torch.set_num_threads(before)
    for a, b in zip((*one[0], *one[1]), (*three[0], *three[1]), strict=True):
        assert torch.equal(a, b)


def test_without_edges(taken):
    net, data = network(), inputs(n_edges=0)
    got, expected = run(net, data), in_parts(net, data)
    agree(got[0], expected[0], 1e-12)
    agree(got[1], expected[1], 1e-10)


def test_layout_in_memory_does_not_matter(taken):
    """A state that is repeated in time without a copy, and scalars that lie among other numbers."""
    net, data = network(), {name: x.detach() for name, x in inputs(shift=True).items()}
    for name in ("pos", "vel"):
        data[name] = data[name][:1].expand(T, -1, -1)
    data["h"] = torch.stack([data["h"]] * 2, dim=-1)[..., 0]
    data["edge_index"] = data["edge_index"].T.contiguous().T
    data["edge_attr"] = data["edge_attr"].T.contiguous().T
    agree(net(**data), in_parts(net, data)[0], 1e-12)


def test_nan_reaches_the_nodes_that_the_parts_say(taken):
    net, data = network(), {name: x.detach() for name, x in inputs().items()}
    data["pos"][1, 5] = torch.nan
    for a, b in zip(net(**data), in_parts(net, data)[0], strict=True):
        assert 0 < b.isnan().sum() < b.numel() and torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize("node", [-1, N])
@pytest.mark.parametrize("side", [0, 1], ids=["receiver", "sender"])
def test_an_edge_to_nowhere_is_an_error(taken, side, node):
    net, data = network(), inputs()
    data["edge_index"][side, 7] = node
    with pytest.raises(UsageError, match="edge_index names nodes"):
        net(**data)


def small_step(n_nodes=5, width=8, dtype=torch.float32):
    """A training step of an EGNO on a complete graph: the loss, and every gradient."""
    torch.manual_seed(0)
    model = EGNO(1, 1, width, 3, n_times=4).to(dtype)
    pos, vel = torch.randn(2, n_nodes, 3, dtype=torch.float64).to(dtype)
    pairs = torch.tensor([*itertools.permutations(range(n_nodes), 2)]).T
    attr = (pos[pairs[0]] - pos[pairs[1]]).norm(dim=1, keepdim=True)

    def step(**how):
        model.zero_grad()
        loss = model(vel.norm(dim=1, keepdim=True), pos, vel, pairs, attr, **how).pos.square().mean()
        loss.backward()
        return loss.item(), [w.grad for w in model.parameters() if w.grad is not None]

    return model, step


def test_float32_is_as_close_as_the_parts(monkeypatch):
    exact = small_step(dtype=torch.float64)[1]()
    got = small_step()[1]()
    monkeypatch.setattr(egnn, "KEPT", -1)
    parts = small_step()[1]()
    assert abs(got[0] - parts[0]) < 1e-6 * parts[0]
    agree([g.double() for g in got[1]], exact[1], 1e-5)
    agree([g.double() for g in parts[1]], exact[1], 1e-5)


def test_who_takes_it(monkeypatch):
    """What follows from the input alone: a training step on a small graph, and nobody else."""
    calls, whole = [], layer.egnn_layer
    monkeypatch.setattr(layer, "egnn_layer", lambda *args, **how: calls.append(1) or whole(*args, **how))
    model, step = small_step()
    step()
    step(max_memory="auto")
    assert len(calls) == 2 * 3
    calls.clear()
    step(max_memory=10**6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step()
    with torch.no_grad():
        model(torch.ones(2, 1), torch.randn(2, 3), torch.randn(2, 3), torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 1))
    for weight in model.block.layers.parameters():
        weight.requires_grad_(False)
    step()
    small_step(dtype=torch.float64)[1]()
    monkeypatch.setattr(egnn, "KEPT", 4 * 20 * 8 - 1)
    small_step()[1]()
    monkeypatch.setattr(egnn, "KEPT", 4 * 20 * 8)
    monkeypatch.setattr(block, "_module", lambda name: None)
    small_step()[1]()
    assert not calls


def test_a_second_backward_pass_says_so(taken):
    net, data = network(), inputs()
    loss = net(**data)[0].sum()
    loss.backward(retain_graph=True)
    first = net.node[0].weight.grad, net.message[0].weight.grad.clone()
    loss.backward()
    assert first[0] is None
    agree([net.message[0].weight.grad], [2 * first[1]], 1e-12)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_with_a_residual_the_old_scalars_are_added(taken):
    net, data = network(3, 2, residual=True), inputs(n_edges=9, width=3, n_attr=2)
    more = net(**data)[1]
    net.residual = False
    torch.testing.assert_close(more, data["h"] + net(**data)[1], rtol=1e-12, atol=1e-12)
    assert len(taken) == 2
