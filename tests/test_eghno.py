"""EGHNO: EGHN's vectors, the symmetries at both levels, and what the options promise."""

from __future__ import annotations

import pytest
import torch
from nn_systems import joined, random_rotation, random_system, relative_error

from egno_md.errors import UsageError
from egno_md.nn import EGHNO, from_official
from egno_md.nn.official import our_name
from egno_md.nn.pooling import cluster_adjacency, cluster_edges, cut_loss, graph_runs, to_clusters, to_nodes

OFFICIAL = ("eghn_adk_ca", "eghn_decoder2", "eghn_small")
VARIANTS = [
    {"time_conv": time_conv, "placement": placement, "assignment": assignment}
    for time_conv in ("full", "positions", "scalars", "none")
    for placement in ("before", "end")
    for assignment in ("shared", "per_time")
]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def small_eghno(seed: int = 0, **options) -> EGHNO:
    """A model whose every part matters: nodes that differ, clusters that differ, and an amount of W_h that shows."""
    torch.manual_seed(seed)
    defaults = {"n_times": 4, "clusters": 3, "pooling_layers": 2, "decoder_layers": 2, "time_embedding": 8}
    model = EGHNO(2, 2, 1, 8, 2, **defaults | options).double()
    for conv in [*model.low.scalar_conv, *model.high.scalar_conv]:
        torch.nn.init.normal_(conv.weight, std=0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and ("message" in name or "node" in name or "head" in name):
                parameter.mul_(2)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OFFICIAL)
def test_original_vectors(official, name, dtype):
    case = official(name)
    model = from_official(case.weights, case.config).to(dtype)
    assert not model.training
    system, a = case.system(), case.arrays
    system = type(system)(*(x.to(dtype) if x.is_floating_point() else x for x in system))
    pos = system.pos.requires_grad_()
    out = model(system.h, pos, *system[2:5], **system.local, batch=case.batch)
    assert out.pos.shape == (1, *a["out_x"].shape)
    assert relative_error(out.pos[0], a["out_x"]) < 1e-5
    assert relative_error(out.h[0], a["out_h"]) < 1e-5
    assert torch.equal(out.vel[0], system.vel)
    assert out.cut_loss.item() == pytest.approx(float(a["cut_loss"]), rel=1e-5)
    assert torch.equal(out.assignment.argmax(-1), a["pool_assignment"].argmax(-1))
    mse = (out.pos[0] - a["target"]).square().mean()
    assert mse.item() == pytest.approx(float(a["mse"]), rel=1e-5)
    (mse + 2 * out.cut_loss).backward()
    assert relative_error(pos.grad, a["grad_x"]) < 1e-4
    grads = {key: p.grad.norm().item() for key, p in model.named_parameters() if p.grad is not None}
    # The smallest, of biases, are sums that nearly cancel: processors differ by 1e-8 in float32.
    rounding = 3e-8 if dtype == torch.float32 else 0.0
    assert grads == pytest.approx({our_name(key): norm for key, norm in case.grad_norms.items()}, 1e-4, rounding)


@pytest.mark.parametrize("n_frames", [None, 4])
@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(o.values()))
def test_symmetries(options, n_frames):
    model, system = small_eghno(**options), random_system(9, n_frames=n_frames)
    plain = model(*system[:5], **system.local)
    assert plain.assignment.std(-2).max() > 0.01  # or nothing would depend on who belongs where
    translation = torch.tensor([20.0, -5.0, 3.0], dtype=torch.float64)
    for mirror in (False, True):
        rotation = random_rotation(1, mirror=mirror)
        turned = system.transformed(rotation, translation)
        moved = model(*turned[:5], **turned.local)
        torch.testing.assert_close(moved.pos, plain.pos @ rotation.T + translation, **TIGHT)
        torch.testing.assert_close(moved.vel, plain.vel @ rotation.T, **TIGHT)
        for found, expected in zip(moved[2:], plain[2:], strict=True):
            torch.testing.assert_close(found, expected, **TIGHT)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = system.permuted(order)
    permuted = model(*shuffled[:5], **shuffled.local)
    for found, expected in zip(permuted[:3], plain[:3], strict=True):
        torch.testing.assert_close(found, expected[:, order], **TIGHT)
    torch.testing.assert_close(permuted.cut_loss, plain.cut_loss, **TIGHT)
    torch.testing.assert_close(permuted.assignment, plain.assignment[..., order, :], **TIGHT)


@pytest.mark.parametrize("assignment", ["shared", "per_time"])
def test_ragged_batch_is_its_single_graphs(assignment):
    model = small_eghno(assignment=assignment)
    systems = [random_system(n, seed=i) for i, n in enumerate((6, 9, 9, 2))]
    both, batch = joined(systems)
    out = model(*both[:5], **both.local, batch=batch)
    singles = [model(*system[:5], **system.local) for system in systems]
    for i, single in enumerate(singles):
        for found, expected in zip(out[:3], single[:3], strict=True):
            torch.testing.assert_close(found[:, batch == i], expected, **TIGHT)
        torch.testing.assert_close(out.assignment[..., batch == i, :], single.assignment, **TIGHT)
    torch.testing.assert_close(out.cut_loss, torch.stack([single.cut_loss for single in singles]).mean(), **TIGHT)


def test_assignment():
    system = random_system(9)
    shared, per_time = (small_eghno(assignment=a) for a in ("shared", "per_time"))
    one, many = shared(*system[:5], **system.local), per_time(*system[:5], **system.local)
    assert one.assignment.shape == (9, 3)
    assert many.assignment.shape == (4, 9, 3)
    torch.testing.assert_close(many.assignment.sum(-1), torch.ones(4, 9).double(), **TIGHT)
    assert not torch.allclose(many.assignment[0], many.assignment[3], atol=1e-4)
    # With a single time point there is nothing to average over.
    shared, per_time = (small_eghno(assignment=a, modes=1) for a in ("shared", "per_time"))
    one, many = (model(*system[:5], **system.local, times=1) for model in (shared, per_time))
    torch.testing.assert_close(one.assignment, many.assignment[0], **TIGHT)
    torch.testing.assert_close(one.pos, many.pos, **TIGHT)


def test_placement_of_the_convolutions():
    assert len(small_eghno(placement="before").low.scalar_conv) == 2
    assert len(small_eghno(placement="end").high.vector_conv) == 1
    with pytest.raises(UsageError, match=r"placement must be one of before, end; found 'middle'"):
        small_eghno(placement="middle")
    with pytest.raises(UsageError, match=r"assignment must be one of shared, per_time; found 'hard'"):
        small_eghno(assignment="hard")


def test_pooling_and_unpooling_are_products_per_graph():
    g = torch.Generator().manual_seed(0)
    sizes = (3, 5, 5, 1)
    batch = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    runs = graph_runs(batch, 4, 14)
    assert runs == [(1, 3), (2, 5), (1, 1)]
    s, f = torch.randn(2, 14, 3, generator=g), torch.randn(2, 14, 4, generator=g)
    big = torch.randn(2, 12, 4, generator=g)
    edges = torch.tensor([[0, 1, 2, 4, 4, 7, 9, 12], [1, 0, 2, 3, 3, 5, 8, 11]])
    dense = torch.zeros(14, 14).index_put(tuple(edges), torch.ones(8), accumulate=True)
    pooled, spread = to_clusters(s, f, runs), to_nodes(s, big, runs)
    adjacency = cluster_adjacency(s, edges, runs)
    in_blocks = cluster_adjacency(s, edges, runs, max_memory=100)
    for i in range(4):
        si, mine, theirs = s[:, batch == i], batch == i, slice(3 * i, 3 * i + 3)
        torch.testing.assert_close(pooled[:, theirs], si.mT @ f[:, mine])
        torch.testing.assert_close(spread[:, mine], si @ big[:, theirs])
        torch.testing.assert_close(adjacency[:, i], si.mT @ dense[mine][:, mine] @ si)
    torch.testing.assert_close(in_blocks, adjacency)
    # One assignment serves all time points.
    torch.testing.assert_close(to_clusters(s[:1], f, runs), to_clusters(s[:1].expand(2, -1, -1), f, runs))


def test_cluster_edges_follow_the_adjacency():
    row, col = cluster_edges(2, 3, torch.device("cpu"))
    assert row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert col.tolist() == [0, 1, 2] * 3 + [3, 4, 5] * 3


def test_cut_loss_in_closed_form():
    # Two pairs, each bonded within itself: the clusters that respect them are not cut at all.
    edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    whole = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    assert cut_loss(cluster_adjacency(whole, edges, [(1, 4)])).item() == 0
    # Clusters across the pairs: every edge is cut, the adjacency is the exchange matrix, |exchange - I| = 2.
    across = whole[:, [0, 2, 1, 3]]
    assert cut_loss(cluster_adjacency(across, edges, [(1, 4)])).item() == pytest.approx(2)
    # All the same everywhere: rows of (1, 1) / sqrt(2).
    evenly = torch.full((1, 4, 2), 0.5)
    expected = (2 * (1 - 0.5**0.5) ** 2 + 2 * 0.5) ** 0.5
    assert cut_loss(cluster_adjacency(evenly, edges, [(1, 4)])).item() == pytest.approx(expected)


@pytest.mark.parametrize("options", VARIANTS[:4], ids=lambda o: "-".join(o.values()))
def test_static_start_is_the_input(options):
    system = random_system(9)
    out = small_eghno(**options, start="static")(*system[:5], **system.local)
    torch.testing.assert_close(out.pos, system.pos.expand(4, -1, -1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(o.values()))
def test_gradients_reach_every_parameter(options):
    model = small_eghno(**options)
    system = random_system(9)
    out = model(*system[:5], **system.local)
    (out.pos.square().mean() + out.h.square().mean() + 2 * out.cut_loss).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("pooling.layers.1.vector."):  # nobody looks at the vectors of the last pooling layer
            continue
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_sequence_as_input():
    model = small_eghno()
    state, sequence = random_system(6), random_system(6, n_frames=5)
    repeated = state._replace(pos=state.pos.expand(3, -1, -1), vel=state.vel.expand(3, -1, -1))
    out = model(*repeated[:5], **state.local)
    torch.testing.assert_close(out.pos, model(*state[:5], **state.local, times=3).pos, **TIGHT)
    assert model(*sequence[:5], **sequence.local).pos.shape == (5, 6, 3)


def test_time_points_are_arguments_of_the_call():
    system = random_system(6)
    model = small_eghno(time_conv="none", assignment="per_time")
    coarse = model(*system[:5], **system.local, times=3)
    fine = model(*system[:5], **system.local, times=torch.arange(0, 3, 0.5, dtype=torch.float64))
    torch.testing.assert_close(fine.pos[::2], coarse.pos, **TIGHT)
    assert not torch.allclose(fine.pos[1], coarse.pos[0], atol=1e-4)
    with pytest.raises(UsageError, match=r"2 Fourier modes .* T = 1"):
        small_eghno()(*system[:5], **system.local, times=1)


def test_cluster_without_weight_stays_with_its_graph():
    system = random_system(6)
    model = small_eghno()
    with torch.no_grad():
        model.pooling.head[-1].bias[1] = -100
    translation = torch.tensor([1e3, 0.0, 0.0], dtype=torch.float64)
    turned = system.transformed(torch.eye(3).double(), translation)
    plain, moved = model(*system[:5], **system.local), model(*turned[:5], **turned.local)
    assert plain.assignment[:, 1].max() < 1e-30
    torch.testing.assert_close(moved.pos - translation, plain.pos, rtol=0, atol=1e-8)


@pytest.mark.parametrize("clusters", [1, 3])
def test_gradients_without_local_edges_and_with_one_cluster(clusters):
    model, system = small_eghno(clusters=clusters), random_system(6)
    out = model(*system[:5], local_index=system.local_index[:, :0], local_attr=system.local_attr[:0])
    alone = model(*system[:5], **system.local)
    (out.pos.sum() + out.cut_loss + alone.pos.sum() + alone.cut_loss).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_forward_stores_nothing():
    model, system = small_eghno(), random_system(6)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    model(*system[:5], **system.local)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
