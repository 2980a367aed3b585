"""Covariances of paths, regressions and what lies between steps, against the same written out with matrices."""

from __future__ import annotations

import numpy as np
import pytest

from egno_md.errors import UsageError
from egno_md.forecast.gaussian import (
    Between,
    Local,
    Noise,
    _directions,
    _factor,
    _share,
    ridge,
    unseen_folds,
)


def test_between_steps_values_go_straight_and_so_does_the_variance():
    knots, times = np.array([1.0, 3.0, 4.0]), np.array([0.5, 1.0, 2.5, 4.0])
    weights = np.array([[0.5, 0, 0], [1, 0, 0], [0.25, 0.75, 0], [0, 0, 1]])  # of the values at the knots
    factor = np.random.default_rng(0).normal(size=(3, 3))
    covariance = factor @ factor.T
    between = Between.of(times, knots, covariance, "forecast")
    values = np.random.default_rng(1).normal(size=(2, 3, 4))
    np.testing.assert_allclose(between(values), np.einsum("tk,ckd->ctd", weights, values))
    spread = np.einsum("tk,kl,tl->t", weights, covariance, weights)
    np.testing.assert_allclose(between.stretch**2 * spread, weights @ np.diag(covariance))
    np.testing.assert_array_equal(Between.of([0.0, 0.5], knots, 0 * covariance, "").stretch, 1)
    for wrong in (-0.1, 4.1):
        with pytest.raises(UsageError, match="up to 4 strides"):
            Between.of([1.0, wrong], knots, covariance, "forecast")


def test_of_a_single_atom_without_a_direction_nothing_is_drawn():
    with np.errstate(all="raise"):
        noise = Noise.fit(np.zeros((20, 4, 3)), np.eye(3))
        paths = noise.paths(np.random.default_rng(0).normal(size=(5, noise.n_numbers)))
    np.testing.assert_allclose(paths, 0, atol=1e-9)


@pytest.mark.parametrize("count", [3, 6, 40])
def test_few_rows_have_the_products_of_many(count):
    rows = np.random.default_rng(0).normal(size=(count, 6))
    found = _factor(rows)
    assert found.shape == (min(count, 6), 6)
    np.testing.assert_allclose(found.T @ found, rows.T @ rows / count, atol=1e-7)


@pytest.mark.parametrize("width", [3, 60])
def test_a_covariance_is_shrunk_by_its_error_over_its_distance(width):
    """Ledoit and Wolf's equation 14 with the scatter of ten blocks for the error, written out with matrices."""
    rows = np.random.default_rng(0).normal(size=(40, width)) * np.linspace(0.3, 3, width)
    whole = rows.T @ rows / 40
    blocks = [x.T @ x / 4 for x in np.split(rows, 10)]
    error = sum(np.sum((block - whole) ** 2) for block in blocks) / 10 / 9
    distance = np.sum((whole - np.eye(width)) ** 2)
    assert error < distance
    assert _share(rows, width) == pytest.approx(error / distance)
    assert _share(np.tile(np.eye(3) * np.sqrt(3), (10, 1)), 3) == 1.0  # the unit matrix itself
    assert _share(np.tile(np.diag([3.0, 1, 1]), (10, 1))[:30], 3) == pytest.approx(0, abs=1e-12)  # no scatter


def test_folds_are_quarters_and_see_what_is_further_away_than_the_gap():
    folds = unseen_folds(42, 3)
    assert [(fold.start, fold.stop) for fold, _ in folds] == [(0, 10), (10, 21), (21, 31), (31, 42)]
    for fold, seen in folds:
        expected = [not fold.start - 3 <= k < fold.stop + 3 for k in range(42)]
        assert seen.tolist() == expected
    # Ten windows have to be left for each of them.
    assert [len(unseen_folds(*both)) for both in ((20, 2), (20, 3), (24, 4), (24, 5))] == [4, 0, 4, 0]


def by_least_squares(features, moves, pulled):
    """Base and weights of one atom at one step: one number for x, y and z for each feature, and a base for each."""
    m = len(features)
    columns = features.transpose(0, 2, 1).reshape(3 * m, 3)  # (M x, 3)
    if pulled:
        columns = np.concatenate([columns, np.tile(np.eye(3), (m, 1))], axis=1)
    else:
        columns = columns[:, 1:]
    found = np.linalg.lstsq(columns, moves.reshape(-1), rcond=None)[0]
    return (found[3:], found[:3]) if pulled else (np.zeros(3), np.r_[0.0, found])


def some_windows(m, seed=0):
    """Features (M, 3, N, 3) that are no nought on average, and displacements (M, T, N, 3) that depend on them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(m, 3, 4, 3)) + rng.normal(size=(3, 4, 3))
    weight = rng.normal(size=(4, 3, 2))
    moves = np.einsum("mgnx,ngt->mtnx", features, weight) + 0.3 * rng.normal(size=(m, 2, 4, 3))
    return features, moves + np.array([0.0, 2.0])[:, None, None]


@pytest.mark.parametrize("pulled", [False, True])
def test_what_an_atom_does_by_itself_is_the_least_squares(pulled):
    features, moves = some_windows(30)
    found = Local.fit(features, moves, pulled)
    for atom in range(4):
        for step in range(2):
            base, weight = by_least_squares(features[:, :, atom], moves[:, step, atom], pulled)
            np.testing.assert_allclose(found.weight[atom, :, step], weight, atol=1e-6)
            np.testing.assert_allclose(found.base[step, atom], base, atol=1e-6)


def test_every_step_is_pulled_where_that_errs_less_and_what_is_left_was_not_seen():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 3, 4, 3))
    moves = 0.5 * features[:, 1:2] + 0.3 * rng.normal(size=(60, 2, 4, 3))
    moves[:, 1] += 0.8 * features[:, 0] + 1  # the second step alone knows of a mean structure
    found, left = Local.chosen(features, moves, 4)
    for step, pulled in enumerate((False, True)):
        whole = Local.fit(features, moves, pulled)
        np.testing.assert_allclose(found.weight[..., step], whole.weight[..., step])
        np.testing.assert_allclose(found.base[step], whole.base[step])
        for first in range(0, 60, 15):
            fold = np.arange(first, first + 15)
            seen = [k for k in range(60) if k < first - 4 or k >= first + 19]
            one = Local.fit(features[seen], moves[seen], pulled)
            np.testing.assert_allclose(left[fold, step], (moves[fold] - one(features[fold]))[:, step])
    few, left = Local.chosen(features[:9], moves[:9], 1)
    assert not few.base.any() and not few.weight[:, 0].any()
    np.testing.assert_allclose(left, moves[:9] - few(features[:9]))


def by_ridge(inputs, targets, penalty):
    """Coefficients of a ridge whose penalty is a share of the sum of squares."""
    products = inputs.T @ inputs
    return np.linalg.solve(products + penalty * np.trace(products) * np.eye(len(products)), inputs.T @ targets)


@pytest.mark.parametrize("width", [5, 60])
def test_the_ridge_is_that_which_errs_least_on_unseen_folds(width):
    """More windows than inputs, and fewer; steps that need no penalty, larger ones, and none of the inputs."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(48, width)) * np.linspace(1, 0.2, width)
    residual = rng.normal(size=(48, 40, 2)) * np.geomspace(1e-3, 10, 40)[:, None]
    residual += (inputs @ rng.normal(size=(width, 2)))[:, None]
    basis, response, left = ridge(inputs, residual, 2)
    folds = [(np.arange(k, k + 12), [i for i in range(48) if i < k - 2 or i >= k + 14]) for k in range(0, 48, 12)]
    chosen, penalties = [], (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    for step in range(40):
        rest = {np.inf: residual[:, step].copy()}
        for penalty in penalties:
            rest[penalty] = np.empty((48, 2))
            for fold, seen in folds:
                weight = by_ridge(inputs[seen], residual[seen, step], penalty)
                rest[penalty][fold] = residual[fold, step] - inputs[fold] @ weight
        best = min(rest, key=lambda penalty: np.sum(rest[penalty] ** 2))
        chosen.append(best)
        np.testing.assert_allclose(left[:, step], rest[best], atol=1e-7)
        whole = by_ridge(inputs, residual[:, step], best) if np.isfinite(best) else np.zeros((width, 2))
        np.testing.assert_allclose(basis @ response[:, step], whole, atol=1e-7)
    assert len(set(chosen)) == (7 if width == 5 else 5)
    basis, response, left = ridge(inputs[:12], residual[:12], 2)  # too few for folds
    assert basis.shape == (width, 0) and response.shape == (0, 40, 2)
    np.testing.assert_array_equal(left, residual[:12])


@pytest.mark.parametrize(("m", "p"), [(9, 4), (4, 9), (6, 6)])
def test_directions_are_those_of_the_inputs(m, p):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(m, p)), rng.normal(size=(m, 2))
    inputs[:, :2] *= [0, 1e-7]  # two that say nothing
    basis, strength, products = _directions(inputs, targets)
    squares = np.linalg.svd(inputs, compute_uv=False) ** 2
    np.testing.assert_allclose(strength[::-1], squares[squares > 1e-9])
    np.testing.assert_allclose(basis.T @ basis, np.eye(len(strength)), atol=1e-12)
    np.testing.assert_allclose(basis @ np.diag(strength) @ basis.T, inputs.T @ inputs, atol=1e-12)
    np.testing.assert_allclose(products, basis.T @ inputs.T @ targets, atol=1e-12)


def test_of_many_directions_the_strongest_are_kept(monkeypatch):
    monkeypatch.setattr("egno_md.forecast.gaussian.DIRECTIONS", 3)
    inputs = np.random.default_rng(0).normal(size=(20, 6)) * np.arange(1, 7)
    strength = _directions(inputs, inputs)[1]
    np.testing.assert_allclose(strength, np.linalg.eigvalsh(inputs.T @ inputs)[3:])


def test_paths_leave_out_what_is_outside():
    rng = np.random.default_rng(0)
    outside = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    residuals = (rng.normal(size=(300, 18)) @ rng.normal(size=(18, 18))).reshape(300, 3, 6)
    residuals -= residuals @ outside @ outside.T
    noise = Noise.fit(residuals, outside)
    paths = noise.paths(rng.standard_normal((20000, noise.n_numbers)))
    assert np.abs(paths @ outside).max() < 1e-3 * np.abs(paths).max()
    flat, true = paths.reshape(20000, -1), residuals.reshape(300, -1)
    scale = np.mean(true**2)
    np.testing.assert_allclose(flat.T @ flat / 20000 / scale, true.T @ true / 300 / scale, atol=0.2)
    inside = np.eye(6) - outside @ outside.T
    middle = noise.space.T @ noise.space + inside @ np.diag(noise.single**2) @ inside
    whole = noise.rows.T @ noise.rows + np.kron(noise.time @ noise.time.T, middle)
    ends = rng.normal(size=(4, 6)) @ inside
    exact = ends @ np.linalg.pinv(whole[-6:, -6:], rcond=1e-6) @ whole[-6:]
    np.testing.assert_allclose(noise.towards(ends), exact.reshape(4, 3, 6), atol=5e-3)
    assert 0 < noise.share < 1 and noise.n_numbers == len(noise.rows) + 3 * (len(noise.space) + 6)


@pytest.mark.parametrize("count", [30, 9])  # more paths than numbers in space, and fewer
@pytest.mark.parametrize("directions", [0, 2])
@pytest.mark.parametrize("whitened", [True, False])
@pytest.mark.parametrize("thin", [1, 2])
def test_noise_is_shrunk_in_space_and_towards_the_product(count, directions, whitened, thin, monkeypatch):
    """All of it with matrices: of paths free of time, the diagonal and the sample; then the product and the sample."""
    rng = np.random.default_rng(count)
    residual = np.cumsum(rng.normal(size=(count, 3, 6)), axis=1) @ (rng.normal(size=(6, 6)) + 2 * np.eye(6))
    outside = np.linalg.qr(rng.normal(size=(6, 2)))[0][:, :directions]
    residual = residual - residual @ outside @ outside.T
    monkeypatch.setattr("egno_md.forecast.gaussian.WHITENED", 6 if whitened else 5)
    monkeypatch.setattr("egno_md.forecast.gaussian.FITTED_NUMBERS", count * 3 * 6 if thin == 1 else count * 3 * 6 - 1)
    noise = Noise.fit(residual, outside if directions else None)
    inner = 6 - directions
    time = np.linalg.cholesky(np.einsum("mtd,msd->ts", residual, residual) / (count * 6))
    free = np.stack([np.linalg.solve(time, path) for path in residual])
    flat = free.reshape(-1, 6)[::thin]
    whole = flat.T @ flat / len(flat)
    own = _share(flat / np.sqrt(np.diag(whole)), 6)
    assert 0 < own < 1
    space = (1 - own) * whole
    single = own * np.diag(whole) * 6 / inner
    np.testing.assert_allclose(noise.space.T @ noise.space, space, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(noise.single**2, single, rtol=1e-6)
    if whitened:
        inside = np.linalg.cholesky(space + np.diag(single + 1e-6 * np.diag(whole)))
        white = free @ np.linalg.inv(inside).T
    else:
        white = free / np.sqrt(np.diag(whole))
    share = _share(white.reshape(count, -1), 3 * inner)
    assert noise.share == pytest.approx(share, rel=1e-3)
    np.testing.assert_allclose(noise.time, np.sqrt(noise.share) * time, rtol=1e-5, atol=1e-7)
    sample = residual.reshape(count, -1)
    np.testing.assert_allclose(
        noise.rows.T @ noise.rows, (1 - noise.share) * sample.T @ sample / count, rtol=1e-4, atol=1e-6
    )
    product = np.trace(space + np.diag(single)) / 6 * noise.time @ noise.time.T
    both = np.einsum("rtd,rsd->ts", *[noise.rows.reshape(-1, 3, 6)] * 2) / 6 + product
    np.testing.assert_allclose(noise.across, both, rtol=1e-6)
