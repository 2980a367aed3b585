"""EGNO: the original's vectors, the symmetries, and what the options promise."""

from __future__ import annotations

import math

import pytest
import torch
from nn_systems import joined, random_rotation, random_system, relative_error

from egno_md.errors import ModelError, UsageError
from egno_md.nn import EGHNO, EGNO, egnn, from_official
from egno_md.nn.egnn import EGNNLayer
from egno_md.nn.egno import over_time
from egno_md.nn.official import our_name
from egno_md.nn.spectral import TemporalConv, fourier_basis, time_embedding

OFFICIAL = ("egno_adk_ca", "egno_md17_like", "egno_modes3_T8", "egno_nbody", "egno_no_time_conv", "egno_norm_flat")
VARIANTS = ("full", "positions", "scalars", "none")
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def small_egno(seed: int = 0, **options) -> EGNO:
    """A model whose every part matters: the original's initial W_h is too small to show."""
    torch.manual_seed(seed)
    model = EGNO(2, 2, 16, 3, **{"n_times": 5, "time_embedding": 8} | options).double()
    for conv in model.block.scalar_conv:
        torch.nn.init.normal_(conv.weight, std=0.1)
    return model


@pytest.mark.parametrize("name", OFFICIAL)
def test_original_vectors(official, name):
    case = official(name)
    model = from_official(case.weights, case.config)
    assert not model.training
    system = case.system()
    pos = system.pos.requires_grad_()
    out = model(system.h, pos, *system[2:5], batch=case.batch)
    assert relative_error(out.pos, case.arrays["out_x"]) < 1e-5
    assert relative_error(out.vel, case.arrays["out_v"]) < 1e-5
    assert relative_error(out.h, case.arrays["out_h"]) < 1e-5
    loss = (out.pos - case.arrays["target"]).square().mean()
    assert loss.item() == pytest.approx(float(case.arrays["loss"]), rel=1e-5)
    loss.backward()
    assert relative_error(pos.grad, case.arrays["grad_x"]) < 1e-4
    grads = {key: p.grad.norm().item() for key, p in model.named_parameters() if p.grad is not None}
    assert grads == pytest.approx({our_name(key): norm for key, norm in case.grad_norms.items()}, rel=1e-4)


def test_original_weights_that_do_not_fit(official):
    case = official("egno_nbody")
    with pytest.raises(ModelError, match=r"embedding\.weight: found \(64, 33\), expected \(64, 34\)"):
        from_official(case.weights, case.config | {"in_node_nf": 2})
    with pytest.raises(ModelError, match="num_modes"):
        from_official(case.weights, {k: v for k, v in case.config.items() if k != "num_modes"})
    with pytest.raises(ModelError, match=r"1 weights .* embedding\.bias: found nothing"):
        from_official({k: v for k, v in case.weights.items() if k != "embedding.bias"}, case.config)


@pytest.mark.parametrize(
    ("n_times", "modes"), [(1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (4, 3), (5, 3), (8, 2), (8, 5), (9, 5)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_temporal_conv_is_the_fourier_formula(n_times, modes, dtype, tolerance):
    torch.manual_seed(0)
    conv = TemporalConv(4, modes, 1.0).to(dtype)
    x = torch.randn(n_times, 7, 3, 4, dtype=dtype)
    spectrum = torch.fft.rfft(x, dim=0)
    product = torch.zeros_like(spectrum)
    product[:modes] = torch.einsum("mndi,iom->mndo", spectrum[:modes], torch.view_as_complex(conv.weight.detach()))
    expected = torch.fft.irfft(product, n=n_times, dim=0)
    found = conv(x, fourier_basis(n_times, modes, x))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_time_embedding_in_closed_form():
    t = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    found = time_embedding(t, 6)
    for row, value in zip(found.tolist(), t.tolist(), strict=True):
        angles = [value, value / 100, value / 10000]
        assert row == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) for a in angles], abs=1e-14)


@pytest.mark.parametrize("n_frames", [None, 5])
@pytest.mark.parametrize("time_conv", VARIANTS)
@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_reflection_translation(time_conv, mirror, n_frames):
    model, system = small_egno(time_conv=time_conv), random_system(9, n_frames=n_frames)
    rotation, translation = random_rotation(1, mirror=mirror), torch.tensor([20.0, -5.0, 3.0], dtype=torch.float64)
    plain = model(*system[:5])
    moved = model(*system.transformed(rotation, translation)[:5])
    torch.testing.assert_close(moved.pos, plain.pos @ rotation.T + translation, **TIGHT)
    torch.testing.assert_close(moved.vel, plain.vel @ rotation.T, **TIGHT)
    torch.testing.assert_close(moved.h, plain.h, **TIGHT)


@pytest.mark.parametrize("operator", [EGNO, EGHNO])
def test_handed_layers_see_a_mirror_and_nothing_else(operator):
    system = random_system(9)
    torch.manual_seed(0)
    options = {"n_times": 5, "time_embedding": 8, "handed": True}
    if operator is EGNO:
        model, local = EGNO(2, 2, 16, 3, **options).double(), {}
    else:
        model, local = EGHNO(2, 2, 1, 16, 2, clusters=3, **options).double(), system.local
    translation = torch.tensor([20.0, -5.0, 3.0], dtype=torch.float64)
    plain = model(*system[:5], **local)
    difference = []
    for mirror in (False, True):
        rotation = random_rotation(1, mirror=mirror)
        moved = model(*system.transformed(rotation, translation)[:5], **local)
        difference.append(relative_error(moved.pos, plain.pos @ rotation.T + translation))
        difference.append(relative_error(moved.h, plain.h))
    assert max(difference[:2]) < 1e-10
    assert min(difference[2:]) > 1e-6


def test_handed_layers_start_at_the_static_frame_and_can_learn():
    torch.manual_seed(0)
    model, system = (
        EGNO(2, 2, 16, 3, n_times=5, time_embedding=8, handed=True, start="static").double(),
        random_system(9),
    )
    out = model(*system[:5])
    torch.testing.assert_close(out.pos, system.pos.expand(5, -1, -1), rtol=0, atol=0)
    out.pos.square().sum().backward()
    for layer in model.block.layers:
        assert layer.cross[-1].weight.grad.norm() > 0
        assert layer.coord[-1].weight.grad[0].norm() > 0


@pytest.mark.parametrize("time_conv", VARIANTS)
def test_permutation(time_conv):
    model, system = small_egno(time_conv=time_conv), random_system(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    plain, permuted = model(*system[:5]), model(*system.permuted(order)[:5])
    for found, expected in zip(permuted, plain, strict=True):
        torch.testing.assert_close(found, expected[:, order], **TIGHT)


@pytest.mark.parametrize("n_frames", [None, 5])
def test_ragged_batch_is_its_single_graphs(n_frames):
    model = small_egno()
    systems = [random_system(n, seed=n, n_frames=n_frames) for n in (6, 9, 9, 1)]
    both, batch = joined(systems)
    out = model(*both[:5], batch=batch)
    for i, system in enumerate(systems):
        for found, expected in zip(out, model(*system[:5]), strict=True):
            torch.testing.assert_close(found[:, batch == i], expected, **TIGHT)


def test_time_points_are_arguments_of_the_call():
    system = random_system(6)
    model = small_egno(time_conv="full")
    assert model(*system[:5]).pos.shape == (5, 6, 3)
    counted, named = model(*system[:5], times=3), model(*system[:5], times=torch.arange(3))
    assert torch.equal(counted.pos, named.pos)
    # Without convolutions a time point knows nothing of the others: a finer grid holds the coarse one.
    model = small_egno(time_conv="none")
    coarse, fine = model(*system[:5], times=3), model(*system[:5], times=torch.arange(0, 3, 0.5, dtype=torch.float64))
    torch.testing.assert_close(fine.pos[::2], coarse.pos, **TIGHT)
    assert not torch.allclose(fine.pos[1], coarse.pos[0], atol=1e-3)


def test_sequence_as_input():
    model = small_egno()
    state = random_system(6)
    sequence = random_system(6, n_frames=7)
    repeated = state._replace(pos=state.pos.expand(4, -1, -1), vel=state.vel.expand(4, -1, -1))
    torch.testing.assert_close(model(*repeated[:5]).pos, model(*state[:5], times=4).pos, **TIGHT)
    # As many time points as frames; with convolutions every time sees the last frame, without them its own alone.
    changed = sequence._replace(pos=torch.cat([sequence.pos[:-1], sequence.pos[-1:] + sequence.vel[-1:]]))
    assert model(*sequence[:5]).pos.shape == (7, 6, 3)
    assert not torch.allclose(model(*sequence[:5]).h[0], model(*changed[:5]).h[0], atol=1e-6)
    single = small_egno(time_conv="none")
    torch.testing.assert_close(single(*sequence[:5]).pos[:-1], single(*changed[:5]).pos[:-1], **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_static_start_is_the_input_to_the_last_bit(dtype):
    model = small_egno(start="static").to(dtype)
    system = random_system(9)
    pos, vel = system.pos.to(dtype), system.vel.to(dtype)
    out = model(system.h.to(dtype), pos, vel, system.edge_index, system.edge_attr.to(dtype))
    assert torch.equal(out.pos, pos.expand(5, -1, -1))
    assert torch.equal(out.vel, vel.expand(5, -1, -1))
    assert not torch.allclose(out.h[0], out.h[4], atol=1e-4)


def test_velocity_moves_the_nodes():
    system = random_system(9)
    by_layer = small_egno(start="static")
    torch.nn.init.constant_(by_layer.block.layers[1].velocity[-1].bias, 0.25)
    torch.testing.assert_close(by_layer(*system[:5]).pos, (system.pos + system.vel / 4).expand(5, -1, -1), **TIGHT)
    # Mode 0 of a constant is the constant: W_x[v -> x, mode 0] = 1 adds the velocity once.
    by_conv = small_egno(start="static")
    with torch.no_grad():
        by_conv.block.vector_conv[0].weight[1, 0, 0, 0] = 1.0
    torch.testing.assert_close(by_conv(*system[:5]).pos, (system.pos + system.vel).expand(5, -1, -1), **TIGHT)
    # W_x[x -> x] = 1 doubles the distance from the centre, and the centre stays.
    with torch.no_grad():
        by_conv.block.vector_conv[0].weight.zero_()[0, 0, 0, 0] = 1.0
    doubled = 2 * system.pos - system.pos.mean(0)
    torch.testing.assert_close(by_conv(*system[:5]).pos, doubled.expand(5, -1, -1), **TIGHT)


@pytest.mark.parametrize("time_conv", VARIANTS)
def test_gradients_reach_every_parameter(time_conv):
    model = small_egno(time_conv=time_conv)
    out = model(*random_system(9)[:5])
    (out.pos.square().mean() + out.h.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_what_the_variants_convolve():
    blocks = {variant: small_egno(time_conv=variant).block for variant in VARIANTS}
    counts = {variant: (len(block.scalar_conv), len(block.vector_conv)) for variant, block in blocks.items()}
    assert counts == {"full": (3, 3), "positions": (3, 3), "scalars": (3, 0), "none": (0, 0)}
    system = random_system(9)
    assert not torch.allclose(small_egno(time_conv="full")(*system[:5]).vel, system.vel.expand(5, -1, -1), atol=1e-3)
    for variant in VARIANTS[1:]:
        assert torch.equal(small_egno(time_conv=variant)(*system[:5]).vel, system.vel.expand(5, -1, -1))


def test_more_modes_than_time_points_have():
    system = random_system(6)
    model = small_egno(modes=4)
    assert model(*system[:5], times=6).pos.shape == (6, 6, 3)
    with pytest.raises(UsageError, match=r"4 Fourier modes .* T = 5 .* have 3: ask for at least 6"):
        model(*system[:5])
    assert small_egno(modes=4, time_conv="none")(*system[:5], times=1).pos.shape == (1, 6, 3)
    assert small_egno(modes=1)(*system[:5], times=1).pos.isfinite().all()


@pytest.mark.parametrize("times", [0, -2, [], [[0.0, 1.0]]])
def test_no_time_points(times):
    with pytest.raises(UsageError, match="times must be"):
        small_egno()(*random_system(6)[:5], times=times if isinstance(times, int) else torch.tensor(times))


def test_inputs_that_do_not_fit_together():
    model, system = small_egno(), random_system(6, n_frames=4)
    with pytest.raises(UsageError, match=r"\(4, 6, 3\) and \(6, 3\)"):
        model(system.h, system.pos, system.vel[0], *system[3:5])
    with pytest.raises(UsageError, match=r"sequence of 4 frames .* 5 time points"):
        model(*system[:5], times=5)
    for options in ({"time_conv": "both"}, {"start": "zero"}, {"time_embedding": 7}, {"time_embedding": 2}):
        with pytest.raises(UsageError, match=next(iter(options))):
            small_egno(**options)


def test_node_without_neighbours():
    model, system = small_egno(time_conv="none"), random_system(6)
    kept = (system.edge_index != 2).all(0)
    alone = system._replace(
        edge_index=system.edge_index[:, kept],
        edge_attr=system.edge_attr[kept],
        vel=system.vel.index_fill(0, torch.tensor([2]), 0.0),
    )
    out = model(*alone[:5])
    assert torch.equal(out.pos[:, 2], system.pos[2].expand(5, -1))
    assert out.h.isfinite().all()
    none = alone._replace(edge_index=alone.edge_index[:, :0], edge_attr=alone.edge_attr[:0])
    torch.testing.assert_close(model(*none[:5]).h[:, 2], out.h[:, 2], **TIGHT)


def test_edge_shift_is_the_explicit_image():
    model = small_egno(time_conv="scalars")  # a convolution of positions would see the centre move
    system = random_system(2)._replace(edge_index=torch.tensor([[0, 1], [1, 0]]), edge_attr=torch.ones(2, 2).double())
    box = torch.tensor([0.0, 30.0, -4.0], dtype=torch.float64)
    image = system._replace(pos=system.pos + torch.stack([torch.zeros_like(box), box]))
    by_shift = model(*system[:5], edge_shift=torch.stack([box, -box]))
    explicit = model(*image[:5])
    torch.testing.assert_close(by_shift.pos[:, 0], explicit.pos[:, 0], **TIGHT)
    torch.testing.assert_close(by_shift.pos[:, 1], explicit.pos[:, 1] - box, **TIGHT)
    assert not torch.allclose(by_shift.pos, model(*system[:5]).pos, atol=1e-2)


def test_neighbours_push_at_most_100():
    layer = EGNNLayer(4, 1).double()
    torch.nn.init.zeros_(layer.coord[-1].weight)
    torch.nn.init.constant_(layer.coord[-1].bias, 1e6)
    pos = torch.tensor([[[0.0, 0.0, 0.0], [1.0, -2.0, 0.0]]], dtype=torch.float64)
    h, edges, attr = torch.zeros(1, 2, 4).double(), torch.tensor([[0, 1], [1, 0]]), torch.zeros(2, 1).double()
    moved, _ = layer(pos, torch.zeros_like(pos), h, edges, attr)
    assert moved[0].tolist() == [[-100, 100, 0], [101, -102, 0]]


def test_mean_of_messages_and_residual():
    system = random_system(9)
    twice = system._replace(edge_index=system.edge_index.repeat(1, 2), edge_attr=system.edge_attr.repeat(2, 1))
    for reduce, same in (("mean", True), ("sum", False)):
        model = small_egno(reduce=reduce)
        assert torch.allclose(model(*system[:5]).h, model(*twice[:5]).h, atol=1e-10) is same
    model = small_egno(residual=True, time_conv="none")
    for layer in model.block.layers:
        torch.nn.init.zeros_(layer.node[-1].weight)
        torch.nn.init.ones_(layer.node[-1].bias)
    expected = model.embedding(system.h, torch.arange(5).double()) + 3
    torch.testing.assert_close(model(*system[:5]).h, expected, **TIGHT)


def test_original_start():
    torch.manual_seed(0)
    block = EGNO(2, 2, 16, 2).block
    for conv, bound in ((block.scalar_conv[0], 1 / 256), (block.vector_conv[0], 0.1)):
        assert conv.weight.min() >= 0
        assert 0.7 * bound < conv.weight.max() < bound
    assert block.scalar_conv[0].weight.shape == (16, 16, 2, 2)
    assert block.vector_conv[0].weight.shape == (2, 2, 2, 2)


def test_no_time_embedding():
    model = small_egno(time_embedding=0)
    out = model(*random_system(6)[:5])
    torch.testing.assert_close(out.pos, out.pos[:1].expand(5, -1, -1), **TIGHT)


@pytest.mark.parametrize(
    ("n_times", "modes", "shape"), [(5, 2, (7, 4)), (8, 5, (3, 3, 2)), (6, 1, (4, 3)), (1, 1, (2, 2))]
)
def test_gradient_of_the_temporal_convolution(n_times, modes, shape):
    torch.manual_seed(0)
    conv = TemporalConv(shape[-1], modes, 1.0).double()
    x = torch.randn(n_times, *shape, dtype=torch.float64, requires_grad=True)
    basis = fourier_basis(n_times, modes, x)
    names = {"weight": conv.weight}
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(conv, names | {"weight": weight}, (x, basis)), (x, conv.weight)
    )
    with torch.no_grad():
        alone = conv(x, basis)
    assert torch.equal(conv(x, basis), alone)


def test_states_are_repeated_and_sequences_taken_as_they_are():
    torch.manual_seed(0)
    state, sequence = torch.rand(2, 5, 3, dtype=torch.float64), torch.rand(2, 4, 5, 3, dtype=torch.float64)
    for times, points in ((None, [0, 1, 2]), (2, [0, 1]), (torch.tensor([0.5, 7]), [0.5, 7])):
        pos, vel, found = over_time(*state, times, 3)
        assert found.tolist() == points and found.dtype == torch.float64
        for one, of in zip((pos, vel), state, strict=True):
            assert torch.equal(one, of.expand(len(points), -1, -1))
    for times in (None, 4, torch.arange(4)):
        pos, vel, found = over_time(*sequence, times, 9)
        assert torch.equal(torch.stack([pos, vel]), sequence) and found.tolist() == [0, 1, 2, 3]
    flat = torch.rand(5)
    for wrong in (
        (state[0], sequence[0], None),
        (flat, flat, None),
        (state[0, :, :2], state[0, :, :2], None),
        (*sequence, 3),
        (*state, 0),
        (*state, -1),
        (*state, torch.rand(2, 2)),
        (*state, torch.rand(0)),
    ):
        with pytest.raises(UsageError, match="times|sequence|positions"):
            over_time(*wrong, 3)


def test_a_model_without_modes_has_no_convolutions():
    assert not EGNO(2, 2, 4, 2, modes=0).block.vector_conv and EGNO(2, 2, 4, 2).block.vector_conv


@pytest.mark.parametrize(("bound", "small"), [(4 * 20 * 8, True), (4 * 20 * 8 - 1, False)])
def test_a_training_step_is_small_up_to_so_many_numbers_along_its_edges(bound, small, monkeypatch):
    monkeypatch.setattr(egnn, "KEPT", bound)
    monkeypatch.setattr(egnn, "compiled_layer", lambda: egnn)  # whether Numba is installed or not
    layer, pos, h = EGNNLayer(8, 1), torch.zeros(4, 5, 3), torch.zeros(4, 5, 8)
    assert layer._is_small(pos, pos, h, 20, "auto") == small
    for other in ((pos.double(), pos, h), (pos, pos.double(), h), (pos, pos, h.double())):
        assert not layer._is_small(*other, 20, None)
    assert not layer._is_small(pos, pos, h, 20, 10**9)
    with torch.no_grad():
        assert not layer._is_small(pos, pos, h, 20, None)


def test_weights_are_taken_together_where_the_layer_is_plain_and_trained_whole():
    layer = EGNNLayer(8, 1)
    assert len(layer._weights()) == 16 and all(
        a is b for a, b in zip(layer._weights(), layer.parameters(), strict=True)
    )
    assert EGNNLayer(8, 1, residual=True, reduce="mean")._weights() is not None
    assert all(EGNNLayer(8, 1, **{option: True})._weights() is None for option in ("handed", "norm", "flat"))
    layer.node[0].bias.requires_grad_(False)
    assert layer._weights() is None
