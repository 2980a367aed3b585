"""Long chains keep to the run: a random walk becomes an autoregression of the run's own variance."""

from __future__ import annotations

from itertools import islice

import MDAnalysis as mda
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial.transform import Rotation
from test_flow import flow_model, run_of

from egno_md import EGNOSurrogate, sample
from egno_md.cli import main
from egno_md.forecast.chain import Chained, ModelForecaster, Restored, roll
from egno_md.forecast.forecasters import Known
from egno_md.forecast.reversion import MeanReversion
from egno_md.forecast.rolling import REVERTING, OneByOne
from egno_md.forecast.streams import Streams, each_of
from egno_md.molecule.geometry import aligned

TIMES = np.arange(1, 5)
WINDOW = len(TIMES)
SIGMA, STEP = 0.5, 0.05
STRUCTURE = np.random.default_rng(9).normal(scale=6, size=(20, 3))


class Walk:
    """Every coordinate walks at random, whatever the molecule comes back to."""

    name, n_past, draws = "walk", 1, True

    def __call__(self, past, times, samples=1, generator=None):
        size = samples, len(np.asarray(times)), *past.shape[2:]
        steps = STEP * np.stack([own.standard_normal(size) for own in each_of(generator, len(past))])
        return past[:, -1][:, None, None] + np.cumsum(steps, axis=2)


def run_of_noise(n_frames=400, seed=0):
    """Independent frames about a structure."""
    return STRUCTURE + np.random.default_rng(seed).normal(scale=SIGMA, size=(n_frames, *STRUCTURE.shape))


@pytest.fixture(scope="module")
def run():
    return run_of_noise()


@pytest.fixture(scope="module")
def reversion(run):
    return MeanReversion.fit(Walk(), Known([run]), TIMES, 1)


def variance(frames, mean):
    """Mean square displacement from the mean structure in each internal direction."""
    n = len(mean)
    return np.mean((aligned(frames, mean) - mean) ** 2) * 3 * n / (3 * n - 6)


def test_what_a_window_keeps_is_that_of_an_autoregression(reversion):
    drawn = REVERTING * WINDOW * STEP**2
    expected = np.sqrt(1 - drawn / SIGMA**2) ** (1 / REVERTING)
    # The principal directions of 400 frames have more, and less, variance than all have: 0.4 to 1.8 times.
    assert reversion.directions.shape == (54, 60)
    np.testing.assert_allclose(reversion.directions @ reversion.directions.T, np.eye(54), atol=1e-9)
    np.testing.assert_allclose(np.mean(reversion.kept), expected, atol=0.01)


def test_a_walk_stays_where_the_run_was(run, reversion):
    past, rng = run[::20][:, None], np.random.default_rng(1)
    free = Chained(Walk(), TIMES).collect(past, 800, generator=np.random.default_rng(1))[:, 0]
    kept = Chained(Walk(), TIMES, reversion=reversion).collect(past, 800, generator=rng)[:, 0]
    mean = reversion.mean
    # With the variance of the run it begins at and no end of it, it would go on to sigma^2 + 800 * step^2.
    np.testing.assert_allclose(variance(free[:, -100:], mean), SIGMA**2 + 750 * STEP**2, rtol=0.25)
    for part in np.split(kept, 4, axis=1):
        np.testing.assert_allclose(variance(part, mean), SIGMA**2, rtol=0.1)
    within = np.mean([variance(chain[200:], aligned(chain[200:], mean).mean(axis=0)) for chain in kept])
    assert within > 0.5 * SIGMA**2  # and it does not stand still there
    step = np.diff(aligned(kept, mean), axis=1)
    np.testing.assert_allclose(np.std(step), STEP * np.sqrt(54 / 60), rtol=0.1)


def test_up_to_the_fifth_window_a_chain_is_what_was_drawn(run, reversion):
    past = run[[7, 90]][:, None]

    def windows(**options):
        chain = roll(Walk(), past, TIMES, samples=2, generator=np.random.default_rng(3), **options)
        return [window.positions for window in islice(chain, REVERTING + 1)]

    for k, (own, plain) in enumerate(zip(windows(reversion=reversion), windows(), strict=True)):
        assert np.array_equal(own, plain) == (k < REVERTING)


def test_it_is_taken_off_in_the_frame_of_each_molecule(run, reversion):
    rng = np.random.default_rng(4)
    start = run[[3, 50, 60]][:, None] + rng.normal(size=(3, 2, 20, 3))  # (S, K, N, 3)
    frames = start[:, :, None] + 0.1 * rng.normal(size=(3, 2, 4, 20, 3))
    found = reversion(frames, start, TIMES)
    turn, shift = Rotation.random(3, rng=rng).as_matrix()[:, None, None], rng.normal(scale=30, size=3)
    moved = reversion(frames @ turn + shift, start @ turn[:, :, 0] + shift, TIMES)
    np.testing.assert_allclose(moved, found @ turn + shift, atol=1e-9)
    # Molecules that turn within a window: what is taken off turns with them.
    turns = Rotation.from_rotvec(np.linspace(0, 1, 4)[:, None] * [0.3, -0.5, 0.9]).as_matrix()
    np.testing.assert_allclose(reversion(frames @ turns, start, TIMES), found @ turns, atol=1e-6)
    alone = reversion(frames[1:2, 1:], start[1:2, 1:], TIMES)
    np.testing.assert_allclose(alone, found[1:2, 1:], atol=1e-12)


def test_a_start_beyond_the_run_comes_back_to_its_edge(reversion):
    mean, (one, other) = reversion.mean, reversion.directions[:2]
    far = mean + (30.0 * one).reshape(-1, 3)
    back = reversion(far[None, None, None].repeat(4, axis=2), far[None, None], TIMES)[0, 0]
    along = (aligned(back, mean) - mean).reshape(4, -1) @ one
    assert np.all(np.diff(along) < -1)  # in equal parts of the window
    np.testing.assert_allclose(along[-1], reversion.high[0], atol=0.2)
    inside = mean + (0.3 * other).reshape(-1, 3)
    stays = reversion(inside[None, None, None], inside[None, None], [4])[0, 0, 0]
    along = (aligned(stays, mean) - mean).ravel() @ other
    np.testing.assert_allclose(along, 0.3 * reversion.kept[1], atol=0.01)


def test_what_the_run_never_showed_does_not_add_up():
    """Twelve frames span twelve directions: along the others a window ends with what it draws."""
    few = run_of_noise(12)
    known = Known([np.concatenate([few] * 3)])
    found = MeanReversion.fit(Walk(), known, TIMES, 1)
    assert len(found.directions) <= 12
    chain = Chained(Walk(), TIMES, reversion=found).collect(few[:6][:, None], 400, generator=np.random.default_rng(0))
    off = (aligned(chain[:, 0, 200:], found.mean) - found.mean).reshape(-1, 60)
    outside = off - off @ found.directions.T @ found.directions
    assert np.mean(np.sum(outside**2, axis=1)) < 1.2 * 2 * WINDOW * STEP**2 * 48


@pytest.mark.parametrize("who", ["analogues", "ensemble of the run", "Gaussian process"])
def test_forecasts_whose_chains_vary_as_the_run_are_left_alone(who):
    """Frames of the run itself, and a Gaussian process of many windows, which knows where it comes back to."""
    rng = np.random.default_rng(5)
    frames = np.zeros((3000, 8, 3))
    for k in range(1, len(frames)):
        frames[k] = 0.9 * frames[k - 1] + np.sqrt(1 - 0.9**2) * rng.normal(scale=SIGMA, size=(8, 3))
    known = Known([frames + STRUCTURE[:8]], tuple(TIMES))
    one = OneByOne(known.baselines.forecasts[who])
    assert MeanReversion.fit(one, known, TIMES, 4) is None
    # And so is one that varies too little.
    assert MeanReversion.fit(OneByOne(Still()), known, TIMES, 4) is None


class Still:
    """It draws what stands still."""

    name, n_past, draws = "still", 1, True

    def __call__(self, past, times, samples=1, generator=None):
        return np.repeat(past[:, -1][:, None, None], len(np.asarray(times)), axis=2).repeat(samples, axis=1)


def test_runs_that_are_too_short_leave_a_chain_alone(run):
    assert MeanReversion.fit(Walk(), Known([run[:15]]), TIMES, 1) is None  # shorter than four windows
    assert MeanReversion.fit(Walk(), Known([run[:40]]), TIMES, 22) is None  # 19 frames with so much of a past
    assert MeanReversion.fit(Walk(), Known([run[:40]]), TIMES, 21) is not None
    assert MeanReversion.fit(Walk(), Known([run[:40]], every=3), TIMES, 1) is None
    assert MeanReversion.fit(Walk(), Known([run[:, :1]]), TIMES, 1) is None  # a single atom has no shape


def fluctuations(frames):
    """Root mean square fluctuation (N,) of frames superposed on their mean."""
    mean = frames[0]
    for _ in range(3):
        mean = aligned(frames, mean).mean(axis=0)
    return np.sqrt(np.mean(np.sum((aligned(frames, mean) - mean) ** 2, axis=-1), axis=0))


@pytest.mark.parametrize("who", ["elastic network", "Gaussian process", "elastic network of proteins"])
def test_long_futures_of_the_sample_fluctuate_as_the_run_does(who, tmp_path):
    u = mda.Universe(*map(str, sample()))
    results = EGNOSurrogate(u, who, horizon=800, device="cpu").run().results
    run = fluctuations(np.stack([u.select_atoms("name CA").positions for _ in u.trajectory]))
    found = fluctuations(results.positions[0][200:].astype(np.float64))
    assert 0.8 < found.mean() / run.mean() < 1.5
    assert np.corrcoef(found, run)[0, 1] > 0.9
    # The same future, a streamed file, and a shorter one, which is the beginning of it.
    target = tmp_path / "out.dcd"
    streamed = EGNOSurrogate(u, who, horizon=800, filename=target, device="cpu").run().results
    np.testing.assert_allclose(np.asarray(streamed.positions[0]), results.positions[0], atol=1e-3)
    short = EGNOSurrogate(u, who, horizon=8 * REVERTING, device="cpu").run().results
    np.testing.assert_array_equal(short.positions[0], results.positions[0][: 8 * REVERTING])


def test_the_summary_says_which_chains_revert(tmp_path):
    files = [str(name) for name in sample()]

    def said(*more):
        done = CliRunner().invoke(main, ["predict", *files, "-o", str(tmp_path / "out.dcd"), "--force", *more])
        assert done.exit_code == 0, done.output
        return done.output

    line = "windows, which revert to the run from the fifth on: the error grows with each one"
    assert line in said("--model", "Gaussian process", "--horizon", "40")
    assert '"reverts": true' in said("--model", "Gaussian process", "--horizon", "40", "--json")
    assert line in said("--model", "Gaussian process", "--horizon", "40", "--mean")
    for others in (
        ["--horizon", "32"],
        ["--model", "ca-1ps", "--horizon", "40"],
        ["--model", "static", "--horizon", "40"],
    ):
        assert "revert" not in said(*others)


def test_a_network_that_draws_reverts_to_the_run_as_well():
    made = flow_model()
    model, builder, universe = made[0], made[1], run_of(made, 300)
    known = universe.trajectory.timeseries(order="fac").astype(np.float64)
    forecaster = ModelForecaster(model, builder)
    forecaster.reversion = MeanReversion.fit(forecaster.inner, Known([known]), TIMES, forecaster.n_past)
    long = EGNOSurrogate(universe, model, horizon=40, samples=2, seed=5).run()
    assert long.reverts and not EGNOSurrogate(universe, model, horizon=16, samples=2).run().reverts
    past = known[-forecaster.n_past :][None]
    expected = forecaster.collect(past, 40, 2, Streams.of(5, [299], 2))
    np.testing.assert_allclose(long.results.ensemble, expected, atol=1e-3)
    plain = ModelForecaster(model, builder).collect(past, 40, 2, Streams.of(5, [299], 2))
    assert np.abs(plain - expected)[:, :, : 4 * WINDOW].max() == 0 < np.abs(plain - expected)[:, :, 4 * WINDOW :].max()


def test_frames_that_are_relaxed_go_on_from_what_they_were_made(run, reversion):
    """As in any chain, the geometry is brought back after the reversion."""
    still = Restored(Walk(), lambda frames, start: np.broadcast_to(start, frames.shape))
    windows = roll(still, run[:1][:, None], TIMES, generator=np.random.default_rng(0), reversion=reversion)
    for window in islice(windows, REVERTING + 2):
        np.testing.assert_allclose(window.positions[0, 0], run[:1].repeat(4, axis=0), atol=1e-9)
