"""Windows, chains, resolution and batches of the forecaster."""

from __future__ import annotations

import dataclasses
import warnings

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from conftest import Ballistic, make_model, make_universe
from scipy.spatial.transform import Rotation

from egno_md import load_model, sample
from egno_md.errors import ModelError, UsageError
from egno_md.forecast.chain import check_request, forecast, forecast_times
from egno_md.forecast.device import PRECISIONS, in_precision
from egno_md.forecast.forecasters import PathRegression
from egno_md.forecast.operator import OperatorWindow, graphs, prior_path
from egno_md.graph.builder import GraphBuilder
from egno_md.molecule.atoms import select_atoms
from egno_md.specs import WindowSpec


def histories(u, starts, n_input=2):
    frames = np.stack([u.atoms.positions for _ in u.trajectory])
    return np.stack([frames[s - n_input + 1 : s + 1] for s in starts])


@pytest.mark.parametrize("horizon", [1, 3, 4, 5, 11])
@pytest.mark.parametrize("history", [1, 4])
def test_constant_velocity_through_chains(horizon, history):
    u = make_universe(12)
    model = make_model(Ballistic(4), history=history)
    past = histories(u, [6, 9], history + 1)
    predicted = forecast(model, GraphBuilder(u.atoms, model.graph), past, horizon)
    step = past[:, -1] - past[:, -2]
    expected = past[:, -1:] + step[:, None] * np.arange(1, horizon + 1)[:, None, None]
    assert predicted.shape == (2, horizon, 10, 3)
    np.testing.assert_allclose(predicted, expected, atol=1e-4)
    np.testing.assert_allclose(forecast_times(model, horizon), np.arange(1, horizon + 1))


@pytest.mark.parametrize("substeps", [2, 3])
def test_finer_resolution_lies_on_the_same_path(ballistic, substeps):
    u = make_universe(8)
    builder = GraphBuilder(u.atoms, ballistic.graph)
    past = histories(u, [5])
    coarse = forecast(ballistic, builder, past, 6)
    fine = forecast(ballistic, builder, past, 6 * substeps, substeps=substeps)
    np.testing.assert_allclose(fine[:, substeps - 1 :: substeps], coarse, atol=1e-4)
    step = past[:, -1] - past[:, -2]
    np.testing.assert_allclose(fine[:, 0], past[:, -1] + step / substeps, atol=1e-4)
    np.testing.assert_allclose(forecast_times(ballistic, 6 * substeps, substeps)[substeps - 1 :: substeps], range(1, 7))


@pytest.mark.parametrize("asked", [[4], [2, 4], [1, 3]])
def test_some_strides_of_a_window_are_those_of_the_whole_window(asked):
    u, model = make_universe(8, velocity=0.3), make_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    window = OperatorWindow(model, GraphBuilder(u.atoms, model.graph))
    whole = window(histories(u, [5, 7]), model.window.targets)  # (2, 1, 4, N, 3)
    np.testing.assert_array_equal(window(histories(u, [5, 7]), asked), whole[:, :, np.array(asked) - 1])


@pytest.mark.parametrize("operator", ["egno", "eghno"])
def test_batch_of_starts_is_one_start_at_a_time(operator):
    u = make_universe(10, velocity=0.3)
    model = make_model(operator=operator, clusters=3)
    builder = GraphBuilder(u.atoms, model.graph)
    past = histories(u, [3, 5, 8])
    together = forecast(model, builder, past, 6)
    for i in range(3):
        np.testing.assert_allclose(together[i : i + 1], forecast(model, builder, past[i : i + 1], 6), atol=1e-4)


def test_far_from_the_origin(ballistic):
    """A molecule at 5000 A is forecast as well as one at the origin."""
    u = make_universe(8)
    model = make_model()
    builder = GraphBuilder(u.atoms, model.graph)
    past = histories(u, [5]).astype(np.float64)
    near = forecast(model, builder, past, 8)
    far = forecast(model, builder, past + 5000.0, 8)
    np.testing.assert_allclose(far - 5000.0, near, atol=2e-3)  # float32 of the output itself


def test_no_start(ballistic):
    u = make_universe(3)
    assert forecast(ballistic, GraphBuilder(u.atoms, ballistic.graph), np.empty((0, 2, 10, 3)), 5).shape == (
        0,
        5,
        10,
        3,
    )


def test_bad_requests(ballistic):
    u = make_universe(8)
    builder = GraphBuilder(u.atoms, ballistic.graph)
    past = histories(u, [5])
    for bad in ({"horizon": 0}, {"horizon": 2.5}, {"horizon": 2, "substeps": 0}, {"horizon": 2, "device": "nonsense"}):
        with pytest.raises(UsageError, match="horizon|substeps|nonsense"):
            forecast(ballistic, builder, past, **bad)
    with pytest.raises(UsageError, match="one of float32, tf32, bf16; found 'fp8'"):
        forecast(ballistic, builder, past, 2, precision="fp8")
    with pytest.raises(UsageError, match="'tf32' needs an NVIDIA GPU.*'cpu'.*bf16"):
        forecast(ballistic, builder, past, 2, device="cpu", precision="tf32")
    ballistic.window = ballistic.window.model_copy(update={"velocity": "forward"})
    with pytest.raises(ModelError, match="next frame"):
        forecast(ballistic, builder, past, 2)


def test_prediction_that_is_not_finite_is_an_error(ballistic):
    u = make_universe(8)
    past = histories(u, [5]).astype(np.float64)
    past[0, 0] -= 1e300  # the velocity overflows float32
    with pytest.raises((ModelError, ValueError), match="finite"):
        forecast(ballistic, GraphBuilder(u.atoms, ballistic.graph), past, 4)


def with_regression(**options):
    """A model that corrects a regression, for atoms that swing about their places, and a run of them."""
    u = make_universe(1)
    rng = np.random.default_rng(0)
    phase = 2 * np.pi * (np.arange(300)[:, None] / rng.uniform(15, 40, 10) + rng.uniform(size=10))  # (F, N)
    frames = u.atoms.positions + 0.4 * np.sin(phase)[..., None] * rng.standard_normal((10, 3))  # (F, N, 3)
    model = make_model(start="static", prior="regression", **options)
    builder = GraphBuilder(u.atoms, model.graph)
    mean = frames.mean(axis=0) - frames.mean(axis=(0, 1))
    model.regression[builder.identity] = PathRegression.fit([frames], mean, model.window.targets)
    return model, builder, frames.astype(np.float32)


def test_prior_is_the_forecast_until_the_network_has_learned(tmp_path):
    model, builder, frames = with_regression()
    known = model.regression[builder.identity]
    past = np.stack([frames[10:12], frames[50:52] + 100.0])  # two starts, one of them far away
    predicted = forecast(model, builder, past, 4)
    expected = known.path(past[:, -1].astype(float), past[:, -1].astype(float) - past[:, 0], np.arange(1, 5))
    np.testing.assert_allclose(predicted, expected, atol=1e-3)
    assert np.abs(expected - past[:, -1:]).max() > 0.1
    halves = forecast(model, builder, past, 8, substeps=2)
    np.testing.assert_allclose(halves[:, 1::2], expected, atol=1e-3)
    np.testing.assert_allclose(halves[:, 2], (halves[:, 1] + halves[:, 3]) / 2, atol=1e-3)
    loaded = load_model(model.save(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(forecast(loaded, builder, past, 4), predicted)


@pytest.mark.parametrize("mirror", [1, -1])
def test_prior_turns_with_the_molecule_and_knows_its_hand(mirror):
    model, builder, frames = with_regression()
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    turn = mirror * Rotation.random(random_state=0).as_matrix()
    plain, turned = (forecast(model, builder, x[None, 10:12], 4) for x in (frames, frames @ turn.T))
    assert (np.abs(turned - plain @ turn.T).max() < 1e-3) == (mirror == 1)


def test_prior_of_an_unknown_molecule_is_refused():
    model, builder, frames = with_regression()
    other = make_universe(1)
    other.residues.resnames = ["LIG", "LIH"]
    with pytest.raises(ModelError, match="none of them.*prior=static"):
        forecast(model, GraphBuilder(other.atoms, model.graph), frames[None, 10:12], 4)
    with pytest.raises(UsageError, match="history of 4"):
        make_model(prior="regression", history=4)


@pytest.fixture
def bundled():
    """The bundled model on a few frames of its sample: model, builder, histories."""
    u, model = mda.Universe(*map(str, sample())), load_model()
    atoms = select_atoms(u, model.graph.select)
    frames = np.stack([atoms.positions for _ in u.trajectory])
    return model, GraphBuilder(atoms, model.graph), np.stack([frames[s - 1 : s + 1] for s in (1, 31, 61)])


@pytest.mark.filterwarnings("ignore:this processor has no bf16")
def test_bf16_keeps_the_error_that_the_documentation_states(bundled):
    for horizon, stated in ((8, 0.002), (80, 0.1)):
        full = forecast(*bundled, horizon, device="cpu")
        low = forecast(*bundled, horizon, device="cpu", precision="bf16")
        assert low.dtype == np.float32
        error = np.linalg.norm(low - full, axis=-1)  # (S, horizon, N)
        assert 0 < error.max() < stated


@pytest.mark.filterwarnings("ignore:this processor has no bf16")
@pytest.mark.parametrize("operator", ["egno", "eghno"])
def test_bf16_leaves_atoms_in_place_that_do_not_move(operator):
    """Positions are not rounded, only what moves them: 30 A from the centre, bf16 would be off by 0.1 A."""
    u = make_universe(4)
    model = make_model(operator=operator, clusters=3, start="static")
    past = 30 * histories(u, [3])
    predicted = forecast(model, GraphBuilder(u.atoms, model.graph), past, 4, device="cpu", precision="bf16")
    np.testing.assert_allclose(predicted, past[:, -1:].repeat(4, axis=1), atol=1e-3)


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_warns_where_it_is_slower(ballistic, fast, monkeypatch):
    monkeypatch.setattr("egno_md.forecast.operator.has_fast_bf16", lambda: fast)
    u = make_universe(8)
    builder = GraphBuilder(u.atoms, ballistic.graph)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        forecast(ballistic, builder, histories(u, [5]), 2, device="cpu", precision="bf16")
    assert ["no bf16" in str(w.message) for w in caught] == [True] * (not fast)


def test_torchs_settings_are_as_before():
    before = torch.get_float32_matmul_precision()
    for precision in PRECISIONS:
        with pytest.raises(KeyError), in_precision(precision, torch.device("cpu")):
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
            assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else before)
            raise KeyError
        assert torch.get_float32_matmul_precision() == before and not torch.is_autocast_enabled("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precision_on_a_gpu(bundled, precision):
    full = forecast(*bundled, 8, device="cpu")
    low = forecast(*bundled, 8, device="cuda", precision=precision)
    assert 0 < np.linalg.norm(low - full, axis=-1).max() < 0.005


def test_windows_with_gaps_have_no_finer_resolution(ballistic):
    thinned = dataclasses.replace(ballistic, window=WindowSpec(stride_ps=1.0, n_times=4, span=8))
    check_request(thinned, 4, 1)
    np.testing.assert_allclose(forecast_times(thinned, 3), [2, 4, 6])
    np.testing.assert_allclose(forecast_times(ballistic, 3, 2), [0.5, 1, 1.5])
    for horizon, substeps in ((5, 1), (4, 2)):
        with pytest.raises(ModelError, match="not every stride"):
            check_request(thinned, horizon, substeps)


def test_a_window_says_what_lies_between_its_strides():
    u, model = make_universe(8), make_model(Ballistic(4))
    window, past = OperatorWindow(model, GraphBuilder(u.atoms, model.graph)), histories(u, [5, 7])
    step = past[:, -1] - past[:, -2]
    for asked in ([0.5, 3.25], [4], [2, 3], [6.0]):
        expected = past[:, -1:] + step[:, None] * np.array(asked)[:, None, None]
        np.testing.assert_allclose(window(past, asked)[:, 0], expected, atol=1e-4)


def test_a_regression_goes_on_from_every_start_of_a_batch():
    model, builder, frames = with_regression()
    other = make_universe(1)
    other.residues.resnames = ["LIG", "LIH"]
    second = GraphBuilder(other.atoms, model.graph)
    known = model.regression[builder.identity]
    model.regression[second.identity] = dataclasses.replace(known, offset=1.1 * known.offset)
    past = [frames[k : k + 2] for k in (10, 50, 90)]
    batch = graphs(model, [builder, second, builder], past)
    for times, ahead in ((None, [1, 2, 3, 4]), (torch.tensor([0.0, 1.5]), [1, 2.5])):
        found = prior_path(model, batch, times).reshape(len(ahead), 3, 10, 3)
        for k, of in enumerate((builder, second, builder)):
            start = past[k][-1:].astype(float)
            expected = model.regression[of.identity].path(start, start - past[k][:1], ahead)[0]
            np.testing.assert_allclose(found[:, k], expected, atol=1e-4)


@pytest.mark.parametrize("history", [1, 4])
def test_graphs_have_a_history_where_the_model_reads_one(history):
    u, model = make_universe(8), make_model(history=history)
    past = histories(u, [6], history + 1)
    batch = graphs(model, [GraphBuilder(u.atoms, model.graph)], past)
    if history == 1:
        assert batch.pos_history is batch.vel_history is None
    else:
        np.testing.assert_array_equal(batch.pos_history.swapaxes(0, 1), past[0, 1:])
        np.testing.assert_allclose(batch.vel_history.swapaxes(0, 1), np.diff(past[0], axis=0), atol=1e-6)
