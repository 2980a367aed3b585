"""Errors, baselines and intervals against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from egno_md.errors import DataError, UsageError
from egno_md.evaluation.errors import both_errors, mse_per_step, skill, squared_errors
from egno_md.evaluation.statistics import (
    autocorrelation,
    block_bootstrap,
    independent_blocks,
    integrated_time,
    jensen_shannon,
    relaxation_time,
    series_of,
)
from egno_md.forecast.forecasters import InternalMotion, Known, PathRegression, baselines, linear, static
from egno_md.molecule.geometry import aligned, rmsd, superposed_rmsd, superposition

STEPS = np.arange(1, 5)


def autoregression(n_frames, n_atoms, phi, *, sigma=0.2, seed=0):
    """Displacements with variance sigma^2 per coordinate and memory phi^k, about a random structure."""
    rng = np.random.default_rng(seed)
    structure = rng.normal(scale=5, size=(n_atoms, 3))
    noise = rng.normal(scale=sigma, size=(n_frames, n_atoms, 3))
    phi = np.broadcast_to(np.asarray(phi, float), (n_atoms,))[:, None]
    moved = noise.copy()
    for t in range(1, n_frames):
        moved[t] = phi * moved[t - 1] + np.sqrt(1 - phi**2) * noise[t]
    return structure + moved


def tumbled(frames, seed=0):
    """Every frame turned and moved at random."""
    rng = np.random.default_rng(seed)
    turns = Rotation.random(len(frames), rng=rng).as_matrix()
    return frames @ turns + rng.normal(scale=20, size=(len(frames), 1, 3))


def test_constant_velocity():
    rng = np.random.default_rng(0)
    start, velocity = rng.normal(size=(2, 5, 7, 3))
    true = start[:, None] + velocity[:, None] * STEPS[:, None, None]
    np.testing.assert_allclose(linear(start, velocity, STEPS), true)
    np.testing.assert_allclose(mse_per_step(linear(start, velocity, STEPS), true), 0, atol=1e-25)
    np.testing.assert_allclose(mse_per_step(static(start, STEPS), true), np.mean(velocity**2) * STEPS**2)


def test_targets_that_are_not_every_stride():
    path = linear(np.zeros((1, 1, 3)), np.ones((1, 1, 3)), [3, 6])
    np.testing.assert_allclose(path[0, :, 0, 0], [3, 6])


def test_samples_are_judged_by_their_mean():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(3, 4, 5, 3))
    shift = rng.normal(size=(3, 1, 4, 5, 3))
    pairs = np.concatenate([true[:, None] + shift, true[:, None] - shift], axis=1)  # (S, 2, T, N, 3)
    np.testing.assert_allclose(squared_errors(pairs, true), 0, atol=1e-25)
    np.testing.assert_allclose(squared_errors(pairs[:, :1], true), np.mean(shift[:, 0] ** 2, axis=(2, 3)))


def test_rmsd_is_the_root_of_three_mse():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 1, 1, 9, 3))
    assert rmsd(a, b)[0, 0] == pytest.approx(np.sqrt(3 * mse_per_step(a, b)[0]))
    assert rmsd(np.zeros((4, 3)), np.array([[2.0, 0, 0]] * 4)) == pytest.approx(2.0)


def test_superposition_undoes_a_rotation_but_no_reflection():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(8, 3))
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(aligned(tumbled(np.stack([x] * 6)), x), np.stack([centred] * 6), atol=1e-10)
    assert np.abs(aligned(x * [-1, 1, 1], x) - centred).max() > 0.1


@pytest.mark.parametrize("shape", ["any", "plane", "line", "point", "mirror image", "the same", "nearly the same"])
def test_superposition_is_that_of_the_singular_values(shape):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 500, 7, 3))
    flat = {"plane": [1, 1, 0], "line": [1, 0, 0], "point": [0, 0, 0]}
    if shape in flat:
        x = x * flat[shape]
    elif shape != "any":
        y = x * {"mirror image": [1, 1, -1]}.get(shape, 1) + 1e-4 * rng.normal(size=y.shape) * (shape[0] == "n")
    x_centred, y_centred = (z - z.mean(axis=1, keepdims=True) for z in (x, y))
    left, size, right = np.linalg.svd(np.swapaxes(x_centred, 1, 2) @ y_centred)
    size[:, 2] *= np.sign(np.linalg.det(left @ right))
    rotation, _ = superposition(x, y)
    np.testing.assert_allclose(
        np.swapaxes(rotation, 1, 2) @ rotation, np.broadcast_to(np.eye(3), (500, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    squares = np.sum(x_centred**2 + y_centred**2, axis=(1, 2)) - 2 * size.sum(axis=1)
    np.testing.assert_allclose(rmsd(x_centred @ rotation, y_centred) ** 2 * 7, squares, atol=1e-10)
    np.testing.assert_allclose(superposed_rmsd(x, y) ** 2 * 7, squares, atol=1e-10)
    if shape in ("any", "plane", "nearly the same"):  # elsewhere others are as good
        left[..., 2] *= np.sign(np.linalg.det(left @ right))[:, None]
        np.testing.assert_allclose(rotation, left @ right, atol=1e-8)


def test_mean_structure_and_ar1_are_recovered_from_a_tumbling_run():
    phi = np.linspace(0.2, 0.95, 40)
    frames = autoregression(6000, 40, phi)
    motion = InternalMotion.fit([tumbled(frames)])
    structure = autoregression(1, 40, 0, sigma=0)[0]
    assert np.abs(aligned(motion.mean, structure) - (structure - structure.mean(0))).max() < 0.05
    # Superposition takes six of 120 degrees of freedom away, so the agreement is not exact.
    np.testing.assert_allclose(motion.decay, phi, atol=0.06)


def test_errors_of_the_baselines_on_an_autoregression():
    sigma, phi = 0.2, 0.8
    frames = autoregression(6000, 60, phi, sigma=sigma)
    forecasts = baselines(Known([frames[:3000]], tuple(STEPS))).forecasts
    starts = np.arange(3001, 5990, 3)
    true = frames[starts[:, None] + STEPS]  # (S, T, N, 3)
    past = np.stack([frames[starts - 1], frames[starts]], axis=1)  # (S, 2, N, 3)
    errors = {name: mse_per_step(forecast(past, STEPS), true) for name, forecast in forecasts.items()}
    memory = phi**STEPS
    np.testing.assert_allclose(errors["static"], 2 * sigma**2 * (1 - memory), rtol=0.05)
    # (x_k - x_0) - k (x_0 - x_-1): variance by the covariances phi^|i - j|.
    expected = 2 * (1 - memory) + 2 * STEPS**2 * (1 - phi) - 2 * STEPS * (memory - 1 - phi * memory + phi)
    np.testing.assert_allclose(errors["linear"], sigma**2 * expected, rtol=0.05)
    np.testing.assert_allclose(errors["mean structure"], sigma**2, rtol=0.12)
    np.testing.assert_allclose(errors["AR(1)"], sigma**2 * (1 - memory**2), rtol=0.12)


def test_baselines_turn_with_the_start_frame():
    frames = autoregression(300, 12, 0.7)
    motion = InternalMotion.fit([frames])
    turn, shift = Rotation.random(rng=np.random.default_rng(3)).as_matrix(), np.array([3.0, -40, 7])
    there = motion.relax(frames[5:7] @ turn + shift, STEPS)
    np.testing.assert_allclose(there, motion.relax(frames[5:7], STEPS) @ turn + shift, atol=1e-9)


def test_motion_needs_two_frames_a_stride_apart():
    with pytest.raises(DataError, match="stride of 5"):
        InternalMotion.fit([np.zeros((5, 4, 3))], every=5)


def test_regression_of_harmonic_motion_is_exact_but_for_the_superposition():
    """Where an atom will be is linear in its displacement and velocity; the frozen ones hold the frame of reference."""
    rng = np.random.default_rng(0)
    structure = rng.normal(scale=5, size=(200, 3))
    phase = 2 * np.pi * (np.arange(400)[:, None] / [17.0, 23.0, 31.0] + rng.uniform(size=3))  # (F, 3)
    frames = np.repeat(structure[None], 400, axis=0)
    frames[:, :3] += 0.2 * np.sin(phase)[..., None] * rng.normal(size=(3, 3))
    mean = frames.mean(axis=0) - frames.mean(axis=(0, 1))
    fitted = PathRegression.fit([frames[:200], frames[200:]], mean, [2, 4])
    starts = np.arange(1, 396)
    start, velocity = frames[starts], frames[starts] - frames[starts - 1]
    found = fitted.path(start, velocity, [0, 2, 3, 4])
    np.testing.assert_allclose(found[:, 0], start, atol=1e-9)
    np.testing.assert_allclose(found[:, 2], (found[:, 1] + found[:, 3]) / 2, atol=1e-9)
    errors = mse_per_step(found[:, [1, 3]], frames[starts[:, None] + [2, 4]])
    assert (errors < 0.02 * mse_per_step(static(start, [2, 4]), frames[starts[:, None] + [2, 4]])).all()


def test_regression_beats_on_its_own_run_what_it_contains():
    frames = autoregression(600, 8, np.linspace(0.3, 0.95, 8))
    motion = InternalMotion.fit([frames])
    fitted = PathRegression.fit([frames], motion.mean, STEPS)
    starts = np.arange(1, 600 - 4)
    start, velocity, true = frames[starts], frames[starts] - frames[starts - 1], frames[starts[:, None] + STEPS]
    error = mse_per_step(fitted.path(start, velocity, STEPS), true)
    forecasts = baselines(Known([frames], tuple(STEPS))).forecasts
    past = np.stack([start - velocity, start], axis=1)  # (S, 2, N, 3)
    np.testing.assert_allclose(mse_per_step(forecasts.pop("regression")(past, STEPS), true), error)
    assert {"static", "linear", "mean structure", "AR(1)"} <= set(forecasts)
    for richer in ("Gaussian process", "elastic network", "analogues"):
        forecasts.pop(richer)
    for name, forecast in forecasts.items():
        assert (error < mse_per_step(forecast(past, STEPS), true)).all(), name
    # Every other frame is a stride: the same coefficients as of the run thinned out by hand, up to its fewer windows.
    halved = PathRegression.fit([frames[::2]], motion.mean, STEPS)
    np.testing.assert_allclose(PathRegression.fit([frames], motion.mean, STEPS, 2).position, halved.position, atol=0.25)
    turn = Rotation.random(random_state=1).as_matrix()
    np.testing.assert_allclose(
        fitted.path(start[:3] @ turn + 9, velocity[:3] @ turn, STEPS),
        fitted.path(start[:3], velocity[:3], STEPS) @ turn + 9,
        atol=1e-9,
    )
    with pytest.raises(DataError, match="more than 5 frames; the longest found has 5"):
        PathRegression.fit([frames[:5]], motion.mean, STEPS)


def test_skill():
    assert skill(np.array([1.0, 2.0]), np.array([[4.0, 2.0], [2.0, 9.0]])) == pytest.approx([0.5, 0.0])
    assert skill(np.array([0.0]), np.array([[0.0]])) == pytest.approx([0.0])
    np.testing.assert_array_equal(skill(np.array([0.5, 0.25]), np.array([[0.0, 0.5]])), [-np.inf, 0.5])


def test_autocorrelation_of_a_cosine_and_of_an_autoregression():
    phase = 2 * np.pi * np.arange(4000) / 20
    np.testing.assert_allclose(autocorrelation(np.cos(phase), 40), np.cos(phase[:41]), atol=1e-2)
    direct = np.random.default_rng(0).normal(size=(50, 3))
    expected = [np.mean(np.sum(direct[k:] * direct[: 50 - k], axis=1)) for k in range(6)]
    np.testing.assert_allclose(autocorrelation(direct, 5), np.array(expected) / expected[0])
    memory = autocorrelation(autoregression(20000, 3, 0.9)[:, 0] - autoregression(1, 3, 0, sigma=0)[0, 0], 30)
    assert relaxation_time(memory) == pytest.approx(-1 / np.log(0.9), rel=0.15)
    assert np.isnan(relaxation_time(np.ones(10)))


def test_integrated_time():
    series = autoregression(40000, 1, 0.8)[:, 0, 0]
    assert integrated_time([series]) == pytest.approx((1 + 0.8) / (1 - 0.8), rel=0.2)
    assert integrated_time(np.array_split(series, 40)) == pytest.approx(9, rel=0.25)
    assert integrated_time([np.ones(5)]) == 1
    # Up to the first negative one, which is looked for up to half of the longest part.
    wave = np.cos(2 * np.pi * np.arange(60) / 100)
    off = wave - wave.mean()
    products = np.array([np.mean(off[k:] * off[: 60 - k]) for k in range(31)])
    assert np.flatnonzero(products < 0)[0] == 21
    assert integrated_time([wave]) == pytest.approx(1 + 2 * products[1:21].sum() / products[0])
    assert integrated_time([np.ones(10), -np.ones(10)]) == pytest.approx(1 + 2 * 5)


def test_block_bootstrap_sees_the_correlation_that_plain_resampling_misses():
    series = autoregression(8000, 1, 0.9, sigma=1.0, seed=4)[:, 0, 0]
    true = np.sqrt(1.9 / 0.1 / 8000)  # of the mean: sqrt(tau / n)
    groups = np.zeros(8000, int)
    assert np.std(block_bootstrap(series, groups, 200)) == pytest.approx(true, rel=0.25)
    assert np.std(block_bootstrap(series, groups, 1)) < 0.4 * true
    assert np.array_equal(block_bootstrap(series, groups, 9, seed=7), block_bootstrap(series, groups, 9, seed=7))
    assert np.mean(block_bootstrap(series, groups, 200)) == pytest.approx(series.mean(), abs=true / 3)


def test_blocks_stay_within_their_run():
    values = np.array([0.0] * 10 + [1.0] * 10)
    drawn = block_bootstrap(values, np.repeat([0, 1], 10), 10, resamples=200)
    assert set(np.round(drawn, 6)) == {0.0, 0.5, 1.0}  # two blocks, each of them from one run
    assert independent_blocks(np.repeat([0, 1], 10), 4) == 4
    assert independent_blocks(np.repeat([0, 1], 10), 40) == 2


def test_jensen_shannon():
    assert jensen_shannon([1, 2, 3], [2, 4, 6]) == pytest.approx(0)
    assert jensen_shannon([1, 0], [0, 5]) == pytest.approx(np.log(2))


def test_errors_are_means_over_atoms_and_axes():
    rng = np.random.default_rng(0)
    true, samples = rng.normal(size=(2, 3, 4, 3)), rng.normal(size=(2, 5, 3, 4, 3))
    mean = samples.mean(axis=1)
    expected = [[np.sum((mean[s, t] - true[s, t]) ** 2) / 12 for t in range(3)] for s in range(2)]
    np.testing.assert_allclose(squared_errors(samples, true), expected)
    np.testing.assert_allclose(squared_errors(mean, true), expected)
    np.testing.assert_allclose(mse_per_step(samples, true), np.mean(expected, axis=0))
    both = both_errors(samples, true)
    assert both.shape == (2, 2, 3)
    np.testing.assert_allclose(both[:, 0], expected)
    for s in range(2):
        for t in range(3):
            centred = [x - x.mean(axis=0) for x in (true[s, t], mean[s, t])]
            _, misfit = Rotation.align_vectors(*centred)  # the root of the sum of squares
            assert both[s, 1, t] == pytest.approx(misfit**2 / 12)
    # A forecast that is right but for how it is turned.
    turned = true @ Rotation.from_rotvec([0.1, 2.0, 0.5]).as_matrix() + 3
    np.testing.assert_allclose(both_errors(turned, true)[:, 1], 0, atol=1e-12)
    np.testing.assert_allclose(both_errors(mean, true), both)


def test_skill_is_against_the_best_of_every_entry():
    model = np.array([[1.0, 0.0], [0.5, 3.0]])
    others = np.array([[[2.0, 0.0], [4.0, 0.0]], [[5.0, 1.0], [0.25, 7.0]]])
    np.testing.assert_array_equal(skill(model, others), [[0.5, 0.0], [-1.0, -np.inf]])


def test_autocorrelation_of_many_columns_is_the_mean_of_products():
    x = np.random.default_rng(0).normal(size=(11, 7, 20))
    expected = np.array([np.mean([np.sum(x[t] * x[t + k]) for t in range(11 - k)]) for k in range(11)])
    np.testing.assert_allclose(autocorrelation(x), (expected / expected[0])[:6])
    np.testing.assert_allclose(autocorrelation(x, 3), (expected / expected[0])[:4])
    np.testing.assert_allclose(autocorrelation(x, 99), expected / expected[0])
    np.testing.assert_array_equal(autocorrelation(np.zeros((6, 2))), np.ones(4))


def test_relaxation_is_where_the_straight_line_crosses():
    assert relaxation_time(np.array([1.0, 0.8, 0.4, 0.1]), 0.5) == pytest.approx(1.75)
    assert relaxation_time(np.array([1.0, 0.5]), 0.5) == pytest.approx(1.0)
    assert relaxation_time(np.array([0.3, 0.1]), 0.5) == 0.0
    assert relaxation_time(np.array([1.0, 0.0])) == pytest.approx(1 - np.exp(-1))
    assert np.isnan(relaxation_time(np.array([1.0, 0.6]), 0.5))


def test_integrated_time_counts_correlations_within_parts_up_to_the_first_negative_one():
    def direct(*parts):
        parts = [np.array(g, float) for g in parts if len(g) > 1]
        mean, longest = np.mean(np.concatenate(parts)), max(map(len, parts))
        products = [
            np.mean([(g[t] - mean) * (g[t + k] - mean) for g in parts for t in range(len(g) - k)])
            for k in range(longest // 2 + 1)
        ]
        stop = next((k for k, product in enumerate(products) if product < 0), None)
        return 1 + 2 * sum(products[1:stop]) / products[0], stop

    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=30))
    stops = set()
    for parts in ([walk, walk[4:13]], [walk[:7], walk[20:23], [99.0]], [[0, 0, 0, 0, 0, 0, 9], [0, 0, 0, 0, 0, 9, 9]],
                  [[0.0, 1, 0, 0, 0, 0]]):  # fmt: skip
        expected, stop = direct(*parts)
        assert integrated_time(parts) == pytest.approx(expected)
        stops.add(stop)
    assert len(stops) > 2 and None in stops
    assert integrated_time([np.array([3.0])]) == 1 and integrated_time([]) == 1


def test_every_block_of_every_run_is_drawn_and_nothing_else():
    values = np.array([[1.0, 0], [2, 5], [4, 0], [8, 0], [16, 3], [32, 0], [64, 0], [128, 1]])
    groups = np.array([7, 7, 7, 3, 3, 3, 3, 3])
    blocks = [np.roll(values[:3], -k, axis=0)[:3] for k in range(3)]
    blocks += [np.roll(values[3:], -k, axis=0)[:4] for k in range(5)]
    # Eight values in blocks of 3.6 on average: two blocks.
    pairs = {tuple(np.round(np.concatenate([a, b]).mean(axis=0), 9)) for a in blocks for b in blocks}
    drawn = block_bootstrap(values, groups, 4, resamples=1500)
    assert drawn.shape == (1500, 2)
    assert {tuple(row) for row in np.round(drawn, 9)} == pairs
    assert len(block_bootstrap(values, groups, 4)) == 1000
    other = block_bootstrap(values, groups, 4, seed=1)
    assert not np.array_equal(block_bootstrap(values, groups, 4), other)
    assert set(block_bootstrap(np.arange(3.0), np.zeros(3), 1, resamples=300)) == {k / 3 for k in range(7)}
    for wrong in ((values, groups, 0), (values[:0], groups[:0], 1)):
        with pytest.raises(UsageError, match="at least 1 and values"):
            block_bootstrap(*wrong)


def test_parts_of_one_key_in_a_row_are_one_series():
    parts = [("a", 2), ("a", 0), ("a", 1), ("b", 0), ("a", 1), ("b", 2), ("a", 1)]
    assert series_of(parts).tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert series_of([(None, 2), ("a", 1)]).tolist() == [0, 0, 1] and len(series_of([("a", 0)])) == 0


def test_blocks_that_do_not_overlap():
    assert independent_blocks([5] * 7 + [2] * 3 + [9], 3) == 2 + 1 + 1


def test_divergence_in_closed_form():
    expected = (0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25) + np.log(1 / 0.75)) / 2
    assert jensen_shannon([3, 3], [8, 0]) == pytest.approx(expected)
    assert jensen_shannon(np.array([[3, 0], [0, 3]]), np.array([[8, 0], [0, 0]])) == pytest.approx(expected)
