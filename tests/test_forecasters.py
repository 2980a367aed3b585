"""Free forecasts against closed forms, their register with one from another package, and chains that are taken up."""

from __future__ import annotations

import json
import re
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Ballistic, make_model, make_universe
from scipy.spatial.transform import Rotation
from test_forecast import histories, with_regression
from test_metrics import autoregression

from egno_md import sample
from egno_md.cli import main
from egno_md.errors import DataError, ModelError, UsageError
from egno_md.evaluation.errors import mse_per_step, skill
from egno_md.evaluation.result import MIN_BLOCKS
from egno_md.evaluation.score import Part, score
from egno_md.forecast.chain import Chained, ChainState, ModelForecaster, Restored, forecast, roll
from egno_md.forecast.forecasters import (
    AR1,
    Forecaster,
    InternalMotion,
    Known,
    Linear,
    SmoothedHistory,
    baselines,
    free_forecasts,
)
from egno_md.forecast.rolling import OneByOne
from egno_md.forecast.streams import Streams
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run
from egno_md.looking.evaluation import write_report

STEPS = np.arange(1, 5)
OURS = [
    "static",
    "linear",
    "mean structure",
    "AR(1)",
    "smoothed history",
    "regression",
    "Gaussian process",
    "elastic network",
    "analogues",
    "ensemble of the run",
]


class RandomWalk:
    """A drawn forecast: every coordinate walks at random."""

    name, n_past = "random walk", 1

    def __call__(self, past, times, samples=1, generator=None):
        steps = generator.normal(size=(len(past), samples, len(np.asarray(times)), *past.shape[2:]))
        return past[:, -1][:, None, None] + np.cumsum(steps, axis=2)


@pytest.mark.parametrize("name", OURS)
def test_every_free_forecast_keeps_the_protocol(name):
    frames = autoregression(300, 12, 0.7)
    found = free_forecasts()[name].fitted(Known([frames[:250]], tuple(STEPS)))
    assert isinstance(found, Forecaster) and found.name == name
    past = np.stack([frames[s - 19 : s + 1] for s in (260, 280)])
    path = found(past, STEPS)
    assert path.shape == (2, 1, 4, 12, 3)
    # What lies before what it reads changes nothing; one frame alone is enough for a forecast.
    np.testing.assert_allclose(found(past[:, -found.n_past :], STEPS), path, atol=1e-12)
    assert np.isfinite(found(past[:, -1:], STEPS)).all()
    assert np.isfinite(found(past, [0.5, 1.5])).all()
    turn, shift = Rotation.random(rng=np.random.default_rng(3)).as_matrix(), np.array([3.0, -40, 7])
    np.testing.assert_allclose(found(past @ turn + shift, STEPS), path @ turn + shift, atol=1e-8)


def test_no_past_is_no_velocity():
    start = np.random.default_rng(0).normal(size=(3, 1, 5, 3))
    np.testing.assert_array_equal(Linear()(start, STEPS), np.repeat(start[:, None], 4, axis=2))


def test_memory_that_changes_its_sign_is_no_memory_between_strides():
    motion = InternalMotion(np.eye(4, 3) * 5 - np.eye(4, 3).mean(0) * 5, np.full(4, -0.5))
    past = (motion.mean + np.random.default_rng(0).normal(scale=0.1, size=(1, 4, 3)))[:, None]
    whole, half = AR1(motion)(past, [1, 2]), AR1(motion)(past, [1.5])
    mean = motion.relax(past[:, -1], [1], decay=0.0)
    np.testing.assert_allclose(half[:, 0], mean)
    np.testing.assert_allclose(whole[:, 0, 1:] - mean, -0.5 * (whole[:, 0, :1] - mean))


def test_smoothed_history_of_noise_and_of_a_walk():
    """A structure with noise of variance s^2: the mean of m frames errs by s^2 (1 + 1 / m)."""
    sigma = 0.2
    frames = autoregression(3000, 60, 0.0, sigma=sigma)
    found = SmoothedHistory.fitted(Known([frames[:1500]], tuple(STEPS)))
    assert found.n_past == 16
    starts = np.arange(1516, 2990)
    past = np.stack([frames[s - 15 : s + 1] for s in starts])
    true = frames[starts[:, None] + STEPS]
    for m in (16, 4, 1):
        error = mse_per_step(found(past[:, -m:], STEPS), true)
        np.testing.assert_allclose(error, sigma**2 * (1 + 1 / m), rtol=0.05)
    walk = autoregression(1, 60, 0.0, sigma=0.0) + np.random.default_rng(0).normal(size=(400, 60, 3)).cumsum(axis=0)
    assert SmoothedHistory.fitted(Known([0.1 * walk], tuple(STEPS))).n_past == 1
    # A stride of three frames: the same mean, of every third one.
    slow = np.repeat(frames[:900], 3, axis=0)
    assert SmoothedHistory.fitted(Known([slow], tuple(STEPS), 3)).n_past == 16


def test_a_forecast_that_cannot_be_fitted_is_named():
    frames = autoregression(6, 8, 0.5)
    found = baselines(Known([frames[:5]], tuple(STEPS)))
    short = [*OURS[:5], "ensemble of the run"]  # what five frames are enough for
    assert sorted(found.forecasts) == sorted(short) and set(found.left_out) == set(OURS) - set(short)
    assert "the longest found has 5" in found.left_out["regression"]
    assert set(baselines(Known([frames[:4]], tuple(STEPS))).left_out) == set(OURS[4:])
    with pytest.raises(DataError, match="more than 4 frames"):
        next(Known([frames[:4]], tuple(STEPS)).windows(1, 10))


def test_every_member_is_brought_back_to_its_own_start():
    past, rng = np.random.default_rng(0).normal(size=(2, 1, 5, 3)), np.random.default_rng(1)
    still = Restored(RandomWalk(), lambda frames, start: np.broadcast_to(start, frames.shape))
    expected = np.broadcast_to(past[:, -1][:, None, None], (2, 3, 4, 5, 3))
    np.testing.assert_array_equal(still(past, STEPS, 3, rng), expected)
    for window in islice(roll(still, past, STEPS, samples=3, generator=rng), 2):
        np.testing.assert_allclose(window.positions, expected, atol=1e-12)


def test_one_by_one_draws_where_there_is_something_to_draw():
    class Drawn(RandomWalk):
        draws = True

        def __call__(self, past, times, samples=1, generator=None):
            return Linear()(past, times) if generator is None else super().__call__(past, times, samples, generator)

    past = np.random.default_rng(0).normal(size=(2, 2, 5, 3))
    np.testing.assert_array_equal(OneByOne(Drawn())(past, STEPS, 3), Linear()(past, STEPS))
    np.testing.assert_array_equal(OneByOne(Linear())(past, STEPS, 3, np.random.default_rng(0)), Linear()(past, STEPS))
    found = OneByOne(Drawn())(past, STEPS, 3, Streams.of(5, [7, 9], 3))
    assert found.shape == (2, 3, 4, 5, 3)
    alone = OneByOne(Drawn())(past[1:], STEPS, 2, Streams.of(5, [9], 2))
    np.testing.assert_array_equal(found[1:, :2], alone)


def test_chained_free_forecasts_are_the_direct_ones():
    past = np.random.default_rng(0).normal(size=(3, 2, 5, 3))
    chain = Chained(Linear(), [1, 2, 3])
    times = [2, 4, 5, 8, 11]
    np.testing.assert_allclose(chain(past, times), Linear()(past, times), atol=1e-5)
    # One window of one far stride, after which there is no other.
    np.testing.assert_allclose(Chained(Linear(), [4])(past, [4]), Linear()(past, [4]), atol=1e-5)
    with pytest.raises(UsageError, match="not all of"):
        chain(past, [1.5])
    for gaps in ([2, 4], [0.5], [1, 1.5]):
        windows = roll(Linear(), past, gaps)
        assert next(windows).positions.shape == (3, 1, len(gaps), 5, 3)
        with pytest.raises(ModelError, match="not every stride"):
            next(windows)


def test_drawn_members_go_on_by_themselves():
    past = np.zeros((2, 1, 4, 3))
    chain = Chained(RandomWalk(), [1, 2, 3])
    drawn = chain(past, np.arange(1, 301), samples=50, generator=np.random.default_rng(0))
    assert drawn.shape == (2, 50, 300, 4, 3)
    variance = drawn.var(axis=(0, 1, 3, 4))
    np.testing.assert_allclose(variance, np.arange(1, 301), rtol=0.25)
    again = chain(past, np.arange(1, 301), samples=50, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(again, drawn)


@pytest.mark.parametrize("kind", ["model", "drawn"])
def test_a_chain_goes_on_from_its_saved_state_to_the_same_bits(kind, tmp_path):
    u = make_universe(12)
    if kind == "model":
        model = make_model(Ballistic(4), keep_bonds=True)
        one, past = ModelForecaster(model, GraphBuilder(u.atoms, model.graph)).inner, histories(u, [6, 9])
        options = {}
    else:
        one, past, options = RandomWalk(), histories(u, [6, 9]), {"samples": 3}

    def chain(state=None):
        generator = np.random.default_rng(5) if state is None else None
        return roll(one, past if state is None else None, STEPS, state=state, generator=generator, **options)

    windows = chain()
    whole = [next(windows) for _ in range(5)]
    np.savez(tmp_path / "state.npz", **whole[1].state.arrays())
    state = ChainState.of(np.load(tmp_path / "state.npz"))
    assert state.done == 8
    rest = chain(state)
    for window in whole[2:]:
        np.testing.assert_array_equal(next(rest).positions, window.positions)


def test_forecast_collects_the_chain():
    u = make_universe(12, velocity=0.3)
    model = make_model(keep_bonds=True)
    builder, past = GraphBuilder(u.atoms, model.graph), histories(u, [3, 5, 8])
    whole = forecast(model, builder, past, 10)
    forecaster = ModelForecaster(model, builder)
    assert isinstance(forecaster.inner, Restored) and isinstance(forecaster, Forecaster)
    windows = roll(forecaster.inner, past, STEPS)
    collected = np.concatenate([next(windows).positions[:, 0] for _ in range(3)], axis=1)[:, :10]
    np.testing.assert_array_equal(collected.astype(np.float32), whole)
    np.testing.assert_array_equal(forecaster(past, [1, 3, 9])[:, 0], whole[:, [0, 2, 8]])
    # More past than the model reads, as free forecasts get it.
    longer = np.concatenate([past[:, :1] + 3, past], axis=1)
    np.testing.assert_array_equal(forecaster(longer, STEPS)[:, 0], whole[:, :4])
    assert np.abs(forecaster.as_predicted(past, STEPS)[:, 0] - whole[:, :4]).max() > 1e-3
    assert ModelForecaster(make_model(), builder).as_predicted is None


def test_gain_of_the_regression_is_not_the_networks():
    """A network that corrects nothing: its model is the regression, and has no skill beside the regression."""
    model, builder, frames = with_regression()
    known = Known([frames], tuple(STEPS))
    model.regression[builder.identity] = known.baselines.forecasts["regression"]
    starts = np.arange(1, len(frames) - 4)
    result = score(model, [Part(Run(frames, builder), starts, known)])
    np.testing.assert_allclose(result.errors["regression"], result.prior, rtol=1e-6)
    np.testing.assert_allclose(result.errors["model"], result.prior, rtol=1e-3)
    assert (result.errors["static"] > 5 * result.prior).all()  # what today's skill would have been made of
    assert set(result.best_baseline) <= {"regression", "Gaussian process"} and result.skill.max() < 1e-3
    assert np.abs(skill(result.errors["model"], result.errors["regression"][None])).max() < 1e-3
    assert abs(result.network_gain[0]) < 1e-3
    assert "the network takes" in result.table() and "regression" in result.table()
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["network_gain"] == list(result.network_gain)


TOY = """
import numpy as np

class Halfway:
    name, n_past = "halfway", 1

    def __init__(self, mean):
        self.mean = mean

    @classmethod
    def fitted(cls, known):
        return cls(known.motion.mean)

    def __call__(self, past, times, samples=1, generator=None):
        return np.repeat(past[:, -1][:, None, None], len(times), axis=2)

class Taken(Halfway):
    name = "static"

class Flat(Halfway):
    name = "flat"

    def __call__(self, past, times, samples=1, generator=None):
        return past[:, -1]
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A package from outside with one free forecast; called with the object that its entry point names."""

    def install(value, code=TOY):
        (tmp_path / "toyforecasts.py").write_text(code)
        info = tmp_path / "toyforecasts-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toyforecasts\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[egno_md.forecasters]\ntoy = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("toyforecasts", None)


def test_free_forecast_of_another_package_is_a_column_everywhere(outside, tmp_path):
    outside("toyforecasts:Halfway")
    arguments = ["evaluate", *map(str, sample()), "--windows", "12"]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found["errors"]) == ["model", *OURS, "halfway"]
    np.testing.assert_allclose(found["errors"]["halfway"], found["errors"]["static"])
    table = CliRunner().invoke(main, [*arguments, "--report", str(tmp_path / "out")]).stdout
    assert "halfway" in table and "halfway" in (tmp_path / "out" / "report.html").read_text()


def test_the_forecast_of_the_documentation(outside):
    page = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "OneMemory" in block]
    assert len(code.splitlines()) < 40
    outside("toyforecasts:OneMemory", code)
    model, builder, frames = with_regression()
    known = Known([frames], tuple(STEPS))
    result = score(model, [Part(Run(frames, builder), np.arange(1, 296), known)])
    assert list(result.errors) == ["model", *OURS, "one memory"]
    errors = result.errors
    assert (errors["AR(1)"] < errors["one memory"]).all() and (errors["one memory"] < errors["mean structure"]).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("toyforecasts:Taken", "toy = toyforecasts:Taken.*'static'.*taken"),
        ("toyforecasts:Missing", "toyforecasts:Missing.*cannot be loaded.*Missing"),
        ("nowhere:Nothing", "cannot be loaded.*ModuleNotFoundError"),
        ("toyforecasts:TOY", "cannot be loaded|must be a class"),
    ],
)
def test_packages_that_do_not_fit_are_named(outside, value, words):
    outside(value)
    with pytest.raises(UsageError, match=words):
        free_forecasts()


def test_a_forecast_of_the_wrong_shape_is_named(outside):
    outside("toyforecasts:Flat")
    frames = autoregression(60, 10, 0.5).astype(np.float32)
    u = make_universe(1)
    model = make_model(Ballistic(4))
    part = Part(Run(frames, GraphBuilder(u.atoms, model.graph)), np.arange(1, 56), Known([frames], tuple(STEPS)))
    with pytest.raises(ModelError, match="'flat' must give finite numbers.*mend it"):
        score(model, [part])


def test_report_draws_forecasts_that_it_does_not_know(outside, tmp_path):
    outside("toyforecasts:Halfway")
    model, builder, frames = with_regression()
    result = score(model, [Part(Run(frames, builder), np.arange(1, 296), Known([frames], tuple(STEPS)))])
    assert write_report(result, tmp_path / "out")[0].exists()


def test_what_could_not_be_fitted_is_a_note():
    model, builder, frames = with_regression()
    parts = [
        Part(Run(frames, builder), np.arange(1, 296), Known([some], tuple(STEPS))) for some in (frames, frames[:5])
    ]
    result = score(model, parts)
    assert sorted(result.errors) == sorted(["model", *OURS[:5], "ensemble of the run"])
    assert "without the baseline 'regression'" in result.table()


def test_gaps_in_a_file_make_its_windows_no_more_independent():
    u = make_universe(1)
    model = make_model(Ballistic(4))
    builder = GraphBuilder(u.atoms, model.graph)
    frames = (u.atoms.positions + 0.05 * autoregression(240, 10, 0.9)).astype(np.float32)
    known = Known([frames], tuple(STEPS))
    pieces = [Run(frames[k : k + 6], builder) for k in range(0, 240, 6)]

    def judged(source):
        return score(model, [Part(piece, np.array([1]), known, source) for piece in pieces])

    apart, together = judged(""), judged("run.xtc")
    assert (apart.n_runs, together.n_runs) == (40, 1) and apart.n_windows == together.n_windows == 40
    assert apart.n_blocks == 40 and together.n_blocks == 40 // together.block < 10
    np.testing.assert_allclose(together.errors["model"], apart.errors["model"])
    # Of 40 windows that know nothing of each other, 95 % of the means lie within 1.96 standard errors.
    still = np.stack([((x[2:] - x[1]) ** 2).mean(axis=(1, 2)) for x in frames.astype(float).reshape(40, 6, 10, 3)])
    reach = np.diff(apart.intervals["static"])[:, 0] / 2
    np.testing.assert_allclose(reach, 1.96 * still.std(axis=0) / np.sqrt(40), rtol=0.05)
    # Too few independent blocks for a range, which has its two ends nevertheless.
    few = score(model, [Part(piece, np.array([1]), known, "") for piece in pieces[: MIN_BLOCKS - 1]])
    for one, there in ((few, False), (apart, True)):
        assert one.gains["model"].shape == (4, 3) and one.intervals["model"].shape == (4, 2)
        assert (np.isfinite(one.gains["model"][:, 1:]) == there).all()
        assert (np.isfinite(one.intervals["model"]) == there).all()
