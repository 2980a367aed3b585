"""Scores of drawn forecasts against closed forms, and who is said to draw best."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Ballistic, make_model
from scipy.stats import norm
from test_evaluation import called, universe_of
from test_metrics import autoregression, tumbled

from egno_md import sample
from egno_md.errors import UsageError
from egno_md.evaluation.calibration import Drawn, calibrate, crps, energy_score
from egno_md.evaluation.evaluate import evaluate
from egno_md.evaluation.score import Part
from egno_md.forecast.forecasters import Known
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run


def ensemble(spread=1.0, shift=0.0, *, n=4000, k=20, shape=(2, 1, 3), seed=0):
    """Members and truth: the truth is a normal number, the members normal numbers of this spread."""
    rng = np.random.default_rng(seed)
    return spread * rng.normal(size=(n, k, *shape)) + shift, rng.normal(size=(n, *shape))


def test_crps_of_a_gaussian():
    """It is ``s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))`` with z = y / s (Gneiting and Raftery 2007)."""
    rng = np.random.default_rng(0)
    for y, sigma in ((0.0, 1.0), (1.5, 1.0), (-0.7, 0.4)):
        members = sigma * rng.normal(size=(1, 4000, 1, 30, 3))
        z = y / sigma
        exact = sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
        assert crps(members, np.full((1, 1, 30, 3), y))[0, 0] == pytest.approx(exact, rel=0.02)
    # Unbiased in the number of members: two are enough on average.
    members, true = ensemble(k=2, n=20000)
    assert crps(members, true).mean() == pytest.approx(1 / np.sqrt(np.pi), rel=0.02)


@pytest.mark.parametrize("n_atoms", [1, 4])
def test_scores_by_their_definition(n_atoms):
    rng = np.random.default_rng(0)
    members, true = rng.normal(size=(3, 5, 2, n_atoms, 3)), rng.normal(size=(3, 2, n_atoms, 3))
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]

    def rms(x):
        return np.sqrt((x**2).sum(axis=(-2, -1)) / n_atoms)

    expected = rms(members - true[:, None]).mean(axis=1)
    expected -= np.mean([rms(members[:, i] - members[:, j]) for i, j in pairs], axis=0) / 2
    found = energy_score(members, true)
    np.testing.assert_allclose(found[:, :2], expected)
    whole = np.sqrt(np.mean(rms(members - true[:, None]) ** 2, axis=-1)).mean(axis=1)
    whole -= np.mean([np.sqrt(np.mean(rms(members[:, i] - members[:, j]) ** 2, axis=-1)) for i, j in pairs], axis=0) / 2
    np.testing.assert_allclose(found[:, 2], whole)
    one = np.mean(np.abs(members - true[:, None]), axis=1)
    one -= np.mean([np.abs(members[:, i] - members[:, j]) for i, j in pairs], axis=0) / 2
    np.testing.assert_allclose(crps(members, true), one.mean(axis=(-2, -1)))


def test_calibrated_ensemble_has_ratio_one_and_flat_ranks():
    found = Drawn.of(*ensemble())
    np.testing.assert_allclose(found.spread_over_error, 1, atol=0.02)
    np.testing.assert_allclose(found.ranks * 21, 1, atol=0.15)
    np.testing.assert_allclose(found.outside, 1, atol=0.1)
    small = Drawn.of(*(x / 10_000 for x in ensemble()))  # in whatever unit
    np.testing.assert_allclose(small.spread_over_error, found.spread_over_error, rtol=1e-6)
    few = Drawn.of(*ensemble(k=3))  # with few members as well
    np.testing.assert_allclose(few.spread_over_error, 1, atol=0.02)


@pytest.mark.parametrize(("spread", "ratio"), [(0.5, 0.5), (2.0, 2.0)])
def test_too_sure_and_too_unsure_are_seen(spread, ratio):
    found = Drawn.of(*ensemble(spread))
    expected = ratio * np.sqrt((1 + 1 / 20) / (1 + spread**2 / 20))
    np.testing.assert_allclose(found.spread_over_error, expected, rtol=0.02)
    assert (found.outside > 3).all() if spread < 1 else (found.outside < 0.3).all()


def test_numbers_of_members_below_that_never_came_are_counted_as_none():
    true = np.zeros((3, 2, 1, 3))
    members = np.ones((3, 4, 2, 1, 3)) * np.array([1, -1])[:, None, None]  # above at one step, below at the other
    np.testing.assert_array_equal(Drawn.of(members, true).ranks, [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]])


def test_slow_changes_of_the_score_leave_fewer_independent_blocks():
    builder = GraphBuilder(universe_of(np.zeros((1, 10, 3))).atoms, make_model(Ballistic(4)).graph)
    noise = autoregression(600, 10, 0.0)
    middle = noise.mean(axis=0)

    def blocks(size):
        frames = middle + size * (noise - middle)
        known = Known([frames], (1,))
        vars(known)["baselines"] = SimpleNamespace(forecasts={})  # static with noise is enough
        part = Part(Run(frames, builder), np.arange(599), known)
        return calibrate([part], np.array([1]), np.array([1.0]), 4).n_blocks

    assert blocks(np.repeat([1, 5, 1, 5], 150)[:, None, None]) < blocks(1) / 5


def test_the_stretches_of_one_file_are_no_more_independent_for_their_gaps():
    """What changes slowly from stretch to stretch is seen where they are one series alone."""
    builder = GraphBuilder(universe_of(np.zeros((1, 10, 3))).atoms, make_model(Ballistic(4)).graph)
    noise = autoregression(600, 10, 0.0)
    frames = noise.mean(axis=0) + np.repeat([1, 5, 1, 5], 150)[:, None, None] * (noise - noise.mean(axis=0))
    known = Known([frames], (1,))
    vars(known)["baselines"] = SimpleNamespace(forecasts={})

    def blocks(source):
        starts = range(0, 600, 10)
        parts = [Part(Run(frames[k : k + 10], builder), np.arange(9), known, source.format(k)) for k in starts]
        return calibrate(parts, np.array([1]), np.array([1.0]), 4).n_blocks

    assert blocks("run.xtc") < 20 < blocks("run-{}.xtc")


def test_scores_are_proper():
    right = Drawn.of(*ensemble())
    for wrong in (ensemble(0.6), ensemble(1.6), ensemble(1.0, 0.5), ensemble(0.0)):
        one = Drawn.of(*wrong)
        assert (right.energy_score < one.energy_score).all() and (right.crps < one.crps).all()
        assert right.window_score < one.window_score
    # The energy score of a window sees what those of its steps do not: how they go together.
    rng = np.random.default_rng(0)
    true = np.repeat(rng.normal(size=(20000, 1, 1, 3)), 2, axis=1)
    together = Drawn.of(np.repeat(rng.normal(size=(20000, 10, 1, 1, 3)), 2, axis=2), true)
    alone = Drawn.of(rng.normal(size=(20000, 10, 2, 1, 3)), true)
    np.testing.assert_allclose(together.energy_score, alone.energy_score, rtol=0.02)
    assert together.window_score < 0.98 * alone.window_score


def test_evaluate_judges_who_draws():
    """A structure in thermal noise that tumbles: superposed, the Gaussian process knows it all."""
    frames = tumbled(autoregression(900, 10, 0.9, sigma=0.3))
    result = evaluate(make_model(Ballistic(4)), universe_of(frames), samples=12)
    found = result.calibration
    drawing = ["Gaussian process", "elastic network", "analogues", "ensemble of the run", "static + noise"]
    assert list(found.superposed) == drawing
    assert found.best == "Gaussian process" and "one future only; take Gaussian process" in found.verdict
    np.testing.assert_allclose(found.superposed["Gaussian process"].spread_over_error, 1, atol=0.1)
    assert found.apart["Gaussian process"][2] < 0 < found.apart["static + noise"][1]
    assert found.laboratory["Gaussian process"].window_score > 2 * found.superposed["Gaussian process"].window_score
    assert "energy score" in result.table() and "take Gaussian process" in result.table()
    told = json.loads(json.dumps(result.as_dict(), allow_nan=False))["calibration"]
    assert np.shape(told["superposed"]["analogues"]["ranks"]) == (4, 13) and told["best"] == "Gaussian process"
    again = evaluate(make_model(Ballistic(4)), universe_of(frames), samples=12).calibration
    assert again.as_dict()["verdict"] == found.verdict
    np.testing.assert_array_equal(again.superposed["analogues"].ranks, found.superposed["analogues"].ranks)
    assert evaluate(make_model(Ballistic(4)), universe_of(frames)).calibration is None
    with pytest.raises(UsageError, match="at least 2.*found 1"):
        evaluate(make_model(Ballistic(4)), universe_of(frames), samples=1)


def test_command_line_prints_the_table():
    done = called("evaluate", *sample(), "--windows", 12, "--samples", 6)
    assert done.exit_code == 0, done.output
    assert "futures    the model knows one future only" in done.stdout and "static + noise" in done.stdout
    assert "data       12 of 62 windows" in done.stdout and "6 futures of 12 windows each" in done.stdout
