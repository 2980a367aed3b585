"""Free forecasts against closed forms, their register with one from another package, and chains that are taken up."""

from __future__ import annotations

import json
import re
import sys
from itertools import islice
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Ballistic, make_model, make_universe
from scipy.spatial.transform import Rotation
from test_forecast import histories, with_regression
from test_metrics import autoregression, tumbled

from egno_md import EGNOSurrogate, sample
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
    MeanStructure,
    PathRegression,
    SmoothedHistory,
    Static,
    _running_means,
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


@pytest.mark.parametrize("name", OURS)
def test_a_turned_run_has_turned_futures(name):
    """Of the same random numbers, over windows that revert as well: nothing depends on the axes of the file."""
    universe = mda.Universe(*map(str, sample()))
    frames = universe.trajectory.timeseries(universe.select_atoms("name CA"), order="fac").astype(float)
    universe = mda.Merge(universe.select_atoms("name CA"))
    turn, shift = Rotation.random(random_state=3).as_matrix(), np.array([5.0, -30.0, 12.0])
    found = []
    for positions in (frames, frames @ turn.T + shift):
        universe.load_new(positions.astype(np.float32), dt=1.0)
        surrogate = EGNOSurrogate(universe, name, horizon=8 if name == "linear" else 40, seed=1)  # which flies apart
        found.append(surrogate.run().results.positions[0].astype(float))
    assert np.abs(found[1] - (found[0] @ turn.T + shift)).max() < 0.02
    assert name == "static" or np.abs(found[0] - frames[-1]).max() > 0.5


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


RNG = np.random.default_rng(7)


STRUCTURE = RNG.normal(scale=4, size=(6, 3))


STRUCTURE[0] = -STRUCTURE[1:].sum(axis=0)  # about the origin


STRUCTURE -= STRUCTURE.mean(axis=0)


def breathing(factors, seed=0):
    """A structure that grows and shrinks while it tumbles: all that a superposition leaves are the factors."""
    return tumbled(STRUCTURE * np.asarray(factors)[:, None, None], seed)


def factors_of(frames):
    """With their sign: what a frame is of the structure, superposed on it."""
    centred = frames - frames.mean(axis=-2, keepdims=True)
    return np.sqrt(np.sum(centred**2, axis=(-1, -2)) / np.sum(STRUCTURE**2))


def on(frame, factor):
    """The structure, grown, as it stands in a frame."""
    centre = frame.mean(axis=0)
    return (frame - centre) / factors_of(frame) * factor + centre


SERIES = [1 + 0.1 * np.random.default_rng(k).normal(size=n) for k, n in enumerate((31, 24, 2, 1))]


@pytest.mark.parametrize("every", [1, 2])
def test_windows_hold_past_and_future_of_every_start(every):
    runs = [np.arange(n)[:, None, None] + 100 * k + np.zeros((1, 2, 3)) for k, n in enumerate((12, 3, 9))]
    known = Known(runs, (1, 3), every)
    starts = [100 * k + f for k, n in enumerate((12, 3, 9)) for f in range(every, n - 3 * every)]
    past, future = (np.concatenate(x) for x in zip(*known.windows(2, 99), strict=True))
    offsets = every * np.array([-1, 0, 1, 3])
    expected = np.array(starts)[:, None] + offsets
    np.testing.assert_array_equal(np.concatenate([past, future], axis=1)[..., 0, 0], expected)
    some = np.concatenate([x[:, -1, 0, 0] for x, _ in known.windows(2, 4)])
    np.testing.assert_array_equal(some, starts[:: -(-len(starts) // 4)])
    with pytest.raises(DataError, match=f"more than {every * 12} frames; the longest found has 12"):
        next(known.windows(10, 99))


def test_windows_come_some_at_a_time(monkeypatch):
    monkeypatch.setattr("egno_md.forecast.forecasters._CHUNK", 4)
    known = Known([np.arange(12.0)[:, None, None] + np.zeros((1, 2, 3))])
    assert [len(past) for past, _ in known.windows(1, 99)] == [4, 4, 3]
    monkeypatch.setattr("egno_md.forecast.forecasters._NUMBERS", 36)  # three windows of two frames of two atoms
    assert [len(past) for past, _ in known.windows(1, 99)] == [3, 3, 3, 2]


@pytest.mark.parametrize("every", [1, 2])
def test_mean_structure_and_memory_of_breathing(every, monkeypatch):
    runs = [breathing(x, k) for k, x in enumerate(SERIES)]
    for thin, chunk in ((1, 256), (1, 5), (3, 256)):
        monkeypatch.setattr("egno_md.forecast.forecasters._CHUNK", chunk)
        pairs = [(x[t], x[t + every]) for x in SERIES for t in range(len(x) - every)][::thin]
        if thin > 1:
            monkeypatch.setattr("egno_md.forecast.forecasters.MOTION_FRAMES", len(pairs))
        found = InternalMotion.fit(runs, every)
        now, later = np.array(pairs).T
        mean = now.mean()
        np.testing.assert_allclose(np.abs(factors_of(found.mean)), mean)
        decay = np.sum((now - mean) * (later - mean)) / np.sum((now - mean) ** 2)
        np.testing.assert_allclose(found.decay, decay, rtol=1e-6)
        assert abs(decay) > 0.01
    with pytest.raises(DataError, match="the longest found has 1"):
        InternalMotion.fit(runs[3:], every)


def test_an_atom_that_does_not_move_has_no_memory():
    frames = np.zeros((4, 3, 3))
    frames[:, 1, 0], frames[:, 2, 0] = [1, 1.2, 0.9, 1.1], [-1, -1.2, -0.9, -1.1]  # about the first
    found = InternalMotion.fit([frames])
    assert found.decay[0] == 0 and (found.decay[1:] != 0).all()


def test_displacements_decay_about_the_mean_structure_where_the_start_stands():
    start = breathing([1.3, 0.9], 5)
    decay = np.array([0.5, 0.5, 0.5, 0.5, -0.5, 0.0])
    motion = InternalMotion(STRUCTURE, decay)
    path = motion.relax(start, [1, 2, 0.5])
    for s, displaced in enumerate((0.3, -0.1)):
        for t, step in enumerate((1, 2, 0.5)):
            factor = [d**step if d > 0 or step >= 1 else 0.0 for d in decay]
            for atom in range(6):
                expected = on(start[s], 1 + factor[atom] * displaced)[atom]
                np.testing.assert_allclose(path[s, t, atom], expected, atol=1e-9)
    past = np.stack([breathing([1.0, 1.0], 6), start], axis=1)
    np.testing.assert_allclose(AR1(motion)(past, [1, 2, 0.5])[:, 0], path)
    still = np.stack([on(x, 1.0) for x in start])
    np.testing.assert_allclose(MeanStructure(motion)(past, [1, 7])[:, 0], np.stack([still, still], axis=1), atol=1e-9)
    np.testing.assert_allclose(motion.relax(start, [1], decay=0.25)[1, 0], on(start[1], 1 - 0.025), atol=1e-9)


@pytest.mark.parametrize("every", [1, 2])
def test_the_path_regression_is_the_least_squares(every, monkeypatch):
    """Of every step on the displacement from the mean structure and on that of the last stride."""
    turns = Rotation.random(4, rng=0).as_matrix()
    steps, runs = [1, 2, 4], [x[:, None, None] * STRUCTURE @ q + 5 for x, q in zip(SERIES, turns, strict=True)]
    for thin, chunk in ((1, 256), (1, 7), (2, 256)):
        monkeypatch.setattr("egno_md.forecast.forecasters._CHUNK", chunk)
        rows = [x[t + every * np.r_[-1, 0, steps]] for x in SERIES for t in range(every, len(x) - 4 * every)][::thin]
        if thin > 1:
            monkeypatch.setattr("egno_md.forecast.forecasters.MOTION_FRAMES", len(rows))
        before, now, *later = np.array(rows).T
        design = np.stack([np.ones(len(rows)), now - 1, now - before], axis=1)
        by_hand = np.array([np.linalg.lstsq(design, y, rcond=None)[0] for y in later])  # (T, 3)
        found = PathRegression.fit(runs, STRUCTURE, steps, every)
        np.testing.assert_array_equal(found.steps, [0, 1, 2, 4])
        np.testing.assert_allclose(found.position[1:], by_hand[:, 1:2] + np.zeros(6), atol=1e-6)
        np.testing.assert_allclose(found.velocity[1:], by_hand[:, 2:] + np.zeros(6), atol=1e-6)
        np.testing.assert_allclose(found.offset[1:], by_hand[:, 0, None, None] * STRUCTURE, atol=1e-6)
    with pytest.raises(DataError, match=f"more than {5 * every} frames; the longest found has 2"):
        PathRegression.fit(runs[2:], STRUCTURE, steps, every)


def test_between_and_beyond_fitted_steps_a_path_is_straight():
    def weights(*values):
        return np.array(values)[:, None] + np.zeros(6)

    offset = np.array([1.0, 1.1, 1.5])[:, None, None] * STRUCTURE
    path = PathRegression(STRUCTURE, np.array([0.0, 1, 3]), offset, weights(1, 0.5, 0.2), weights(0, 0.4, 0.8))
    start = breathing([1.3, 0.8], 3)
    grown = np.array([1.5, 0.7])
    velocity = start - np.stack([on(x, f) for x, f in zip(start, grown, strict=True)])
    times = [0, 1, 2, 3, 4]
    off, by_d, by_v = [1, 1.1, 1.3, 1.5, 1.7], [1, 0.5, 0.35, 0.2, 0.05], [0, 0.4, 0.6, 0.8, 1.0]
    found = path.path(start, velocity, times)
    for s, factor in enumerate((1.3, 0.8)):
        for t in times:
            expected = off[t] + by_d[t] * (factor - 1) + by_v[t] * (factor - grown[s])
            np.testing.assert_allclose(found[s, t], on(start[s], expected), atol=1e-9)
    np.testing.assert_allclose(path(np.stack([start - velocity, start], axis=1), times)[:, 0], found, atol=1e-9)


def test_means_of_a_history_stand_where_the_start_does():
    factors = np.array([1.4, 0.8, 1.1, 0.9])
    past = breathing(factors, 2)[None]
    means = [factors[-m:].mean() for m in (1, 2, 3, 4)]
    for found, mean in zip(_running_means(past)[0], means, strict=True):
        np.testing.assert_allclose(found, on(past[0, -1], mean), atol=1e-9)
    for m in (1, 3, 9):
        found = SmoothedHistory(m)(past, [1, 2])[0, 0]
        np.testing.assert_allclose(found, np.stack([on(past[0, -1], means[min(m, 4) - 1])] * 2), atol=1e-9)


@pytest.mark.parametrize(("memory", "n"), [(0.0, 60), (0.9, 60), (0.6, 60), (0.9, 30), (0.0, 9)])
@pytest.mark.parametrize("every", [1, 2])
def test_the_history_that_errs_least_is_taken(memory, n, every):
    """Of lengths up to a quarter of the run, by the errors that each of them makes."""
    rng, values = np.random.default_rng(1), [0.0]
    for _ in range(n - 1):
        values.append(memory * values[-1] + rng.normal())
    known = Known([breathing(1 + 0.02 * np.array(values)), breathing([1.0])], (1, 2), every)
    room = (n - 1) // every - 2 + 1
    most = max(1, min(room, n // every // 4, 16))
    errors = []
    for m in range(1, most + 1):
        windows = list(known.windows(most, 1000))
        errors.append(sum(np.sum((SmoothedHistory(m)(past, [1, 2])[:, 0] - true) ** 2) for past, true in windows))
    assert SmoothedHistory.best(known) == known.history == 1 + int(np.argmin(errors))


def test_a_start_goes_on_as_it_came():
    past = np.arange(24.0).reshape(1, 4, 2, 3) ** 2
    np.testing.assert_allclose(Linear()(past, [1, 2.5])[0, 0, 1], past[0, -1] + 2.5 * (past[0, -1] - past[0, -2]))
    np.testing.assert_array_equal(Static()(past, [1, 2])[0, 0], past[0, [-1, -1]])
    np.testing.assert_array_equal(Linear()(past[:, -1:], [3])[0, 0, 0], past[0, -1])
    turn = Rotation.from_rotvec([0.2, 0.1, 1.0]).as_matrix()
    np.testing.assert_allclose(Linear()(past @ turn, [4]), Linear()(past, [4]) @ turn)
