"""How drawn futures are gathered, compared and worded: everything written out once, and each bound from both sides."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Ballistic, make_model
from test_evaluation import universe_of
from test_metrics import autoregression

from egno_md.errors import DataError, UsageError
from egno_md.evaluation.calibration import Calibration, Drawn, _members, calibrate, energy_score
from egno_md.evaluation.score import Part
from egno_md.evaluation.statistics import block_bootstrap, independent_blocks, integrated_time
from egno_md.forecast.forecasters import Known
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run
from egno_md.molecule.geometry import aligned

N_ATOMS = 10


class Noise:
    """Futures that are the start with noise; it keeps in mind which past it was given."""

    draws = True

    def __init__(self, size, n_past=1, only=None):
        self.size, self.n_past, self.only, self.given = size, n_past, only, []

    def __call__(self, past, steps, samples, generator):
        self.given.append(past)
        shape = (len(past), self.only or samples, len(steps), *past.shape[2:])
        return past[:, -1, None, None] + self.size * generator.normal(size=shape)


class Boxed(Noise):
    reads_boxes = True

    def __call__(self, past, steps, samples, generator, boxes=None):
        self.boxes = boxes
        return super().__call__(past, steps, samples, generator)


def part_of(frames, forecasts, starts=None, *, every=1, source="", boxes=None):
    builder = GraphBuilder(universe_of(np.zeros((1, N_ATOMS, 3))).atoms, make_model(Ballistic(4)).graph)
    known = Known([frames[:1]], (1,))  # too short for static with noise
    vars(known)["baselines"] = SimpleNamespace(forecasts=forecasts)
    starts = np.arange(len(frames) - 3 * every) if starts is None else np.asarray(starts)
    return Part(Run(frames, builder, every=every, boxes=boxes), starts, known, source)


def run(n=120, seed=0, memory=0.5):
    return autoregression(n, N_ATOMS, memory, seed=seed)


def asked(parts, samples=4, **options):
    return calibrate(parts, np.array([1, 3]), np.array([2.0, 6.0]), samples, **options)


def test_everything_that_is_gathered_written_out():
    frames, every = run(), 2
    starts = np.arange(4, 110)
    found = asked([part_of(frames, {"a": Noise(0.3), "b": Noise(1.5)}, starts, every=every)], max_windows=30, seed=7)
    some = starts[::4]  # 106 windows, of which 30 at most are judged
    true = frames[some[:, None] + np.array([1, 3]) * every].astype(float)
    windows = {}
    for name, size in (("a", 0.3), ("b", 1.5)):
        numbers = np.random.default_rng(7).normal(size=(len(some), 4, 2, N_ATOMS, 3))  # the same for everyone
        members = frames[some][:, None, None] + size * numbers
        start = frames[some][:, None].astype(float)
        on_start = aligned(members, start[:, None]), aligned(true, start)
        for mine, expected in ((found.superposed[name], on_start), (found.laboratory[name], (members, true))):
            score = energy_score(*expected)
            np.testing.assert_allclose(mine.energy_score, score[:, :-1].mean(axis=0), rtol=1e-6)
            np.testing.assert_allclose(mine.window_score, score[:, -1].mean(), rtol=1e-6)
            np.testing.assert_allclose(mine.spread_over_error, Drawn.of(*expected).spread_over_error, rtol=1e-6)
        windows[name] = energy_score(*on_start)[:, -1]
    assert (found.samples, found.n_windows, found.times.tolist()) == (4, 27, [2.0, 6.0])
    block = int(np.ceil(3 * every / 4)) + int(np.ceil(integrated_time([windows["a"]])))
    group = np.zeros(27, int)
    assert found.n_blocks == independent_blocks(group, block)
    for name, other in (("a", "b"), ("b", "a")):
        difference = windows[name] - windows[other]
        ends = np.quantile(block_bootstrap(difference, group, block, seed=7), [0.025, 0.975])
        np.testing.assert_allclose(found.apart[name], [difference.mean(), *ends], rtol=1e-6)
    assert found.best == "a"


@pytest.mark.parametrize(("n", "kept"), [(400, 400), (401, 201)])
def test_of_more_than_four_hundred_windows_every_second_is_judged(n, kept):
    part = part_of(run(410), {"a": Noise(0.5)}, np.arange(n))
    assert calibrate([part], np.array([1]), np.array([1.0]), 2).n_windows == kept


def test_nobody_asks_for_a_seed():
    part = part_of(run(40), {"a": Noise(0.5)})
    found, zero, one = asked([part]), asked([part], seed=0), asked([part], seed=1)
    assert found.superposed["a"].window_score == zero.superposed["a"].window_score != one.superposed["a"].window_score


def test_fewer_than_four_blocks_have_no_interval():
    seen = set()
    for n in range(12, 60, 4):
        found = asked([part_of(run(n, memory=0.0), {"a": Noise(0.5), "b": Noise(1.0)})])
        assert np.isfinite(found.apart["a"]).tolist() == [True, *[found.n_blocks >= 4] * 2]
        seen.add(found.n_blocks)
    assert {3, 4} <= seen


def test_windows_that_are_far_apart_need_no_more_than_their_memory():
    frames = run(400, memory=0.0)
    near = asked([part_of(frames, {"a": Noise(0.5)}, np.arange(0, 390))]).n_blocks
    far = asked([part_of(frames, {"a": Noise(0.5)}, np.arange(0, 390, 10))]).n_blocks
    assert near <= 390 / 4 and far >= 39 / 3
    one = asked([part_of(frames, {"a": Noise(0.5)}, [5])])
    assert one.n_blocks == one.n_windows == 1


def test_windows_of_one_series_that_stand_alone_are_a_frame_apart():
    frames = run(200)
    parts = [part_of(frames[k : k + 5], {"a": Noise(0.5)}, [0], source="run.xtc") for k in range(0, 180, 5)]
    parts = [Part(part.run, part.starts, parts[0].known, part.source) for part in parts]
    scores = [asked([part]).superposed["a"].window_score for part in parts]
    assert len(set(scores)) == 36  # which are not those of one generator for all of them
    found = asked(parts)
    assert found.n_blocks <= 36 // 4 and found.n_blocks == 36 // (3 + memory_of(parts))


def memory_of(parts):
    """Of the scores of all windows in their order."""
    generator, scores = np.random.default_rng(0), []
    for part in parts:
        frames, start = part.run.positions.astype(float), part.run.positions[None, :1].astype(float)
        members = frames[None, None, :1] + 0.5 * generator.normal(size=(1, 4, 2, N_ATOMS, 3))
        scores.append(energy_score(aligned(members, start[:, None]), aligned(frames[None, [1, 3]], start))[0, -1])
    return int(np.ceil(integrated_time([np.array(scores)])))


def test_who_does_not_say_that_it_draws_is_not_asked():
    class Silent:
        def __call__(self, *_):
            raise AssertionError

    class Plain:
        draws = True

        def __call__(self, past, steps, samples, generator):
            assert past.shape[1] == 1  # nothing is said of a past
            return Noise(0.5)(past, steps, samples, generator)

    assert list(asked([part_of(run(30), {"silent": Silent(), "plain": Plain()})]).superposed) == ["plain"]


def test_who_draws_in_every_part_is_judged():
    parts = [
        part_of(run(30), {"a": Noise(0.5), "b": Noise(1.0), "mean": Noise(1.0, only=1)}),
        part_of(run(30, 1), {}, []),  # a part without a window asks nobody
        part_of(run(24, 2), {"b": Noise(1.0), "c": Noise(1.0)}),
    ]
    found = asked(parts)
    assert list(found.superposed) == list(found.laboratory) == ["b"] and found.n_windows == 27 + 21
    assert found.apart == {} and found.best == "b"
    with pytest.raises(DataError, match="nobody draws futures here"):
        asked([part_of(run(30), {"mean": Noise(1.0, only=1)})])
    with pytest.raises(DataError, match="no window to evaluate"):
        asked([part_of(run(30), {"a": Noise(1.0)}, [])])
    with pytest.raises(UsageError, match="at least 2"):
        asked(parts, samples=1)
    assert asked(parts, samples=2).samples == 2


def test_everyone_gets_the_past_that_there_is():
    frames, every = run(40), 3
    boxes = np.arange(240.0).reshape(40, 6)
    starts = np.array([1, 2, 3, 6, 8, 20])
    forecaster, generator = Boxed(0.1, n_past=3), np.random.default_rng(0)
    part = part_of(frames, {}, starts, every=every, boxes=boxes)
    members = _members(forecaster, part.run, starts, np.array([1]), 5, generator)
    assert [past.shape[1] for past in forecaster.given] == [1, 2, 3]
    np.testing.assert_array_equal(forecaster.given[1], frames[[[0, 3]]])
    np.testing.assert_array_equal(forecaster.given[2], frames[[[0, 3, 6], [2, 5, 8], [14, 17, 20]]])
    np.testing.assert_array_equal(forecaster.boxes, boxes[[6, 8, 20]])
    assert np.abs(members[:, :, 0] - frames[starts][:, None]).max() < 1  # each is at its own start
    bare = SimpleNamespace(**{**vars(part.run), "boxes": None})
    _members(forecaster, bare, starts, np.array([1]), 5, generator)
    assert forecaster.boxes is None
    plain = Noise(0.1)
    _members(plain, part.run, starts, np.array([1]), 2, generator)
    np.testing.assert_array_equal(plain.given[0][:, 0], frames[starts])


def test_a_forecast_that_is_right_and_sure_is_calibrated():
    true = np.zeros((5, 2, 1, 3))
    members = np.zeros((5, 4, 2, 1, 3))
    members[:, :2, 1], members[:, 2:, 1] = 1.0, -1.0  # its mean is right at the second step, and it was not sure
    np.testing.assert_array_equal(Drawn.of(members, true).spread_over_error, [1.0, np.inf])
    np.testing.assert_array_equal(Drawn.of(np.ones_like(members), true).spread_over_error, [0.0, 0.0])
    # One of four members off by 2: variance 1, error 1 / 4, and K members say 5 / 4 of the variance.
    members = np.zeros((1, 4, 1, 1, 3))
    members[0, 0] = 2.0
    np.testing.assert_allclose(Drawn.of(members, np.zeros((1, 1, 1, 3))).spread_over_error, np.sqrt(1.25 / 0.25))
    # A member that is what came is not below it.
    np.testing.assert_array_equal(Drawn.of(np.zeros((1, 3, 1, 1, 3)), np.zeros((1, 1, 1, 3))).ranks, [[1, 0, 0, 0]])
    ranks = np.array([[0.1, 0.2, 0.3, 0.2, 0.2]])
    drawn = Drawn(np.ones(1), np.ones(1), 1.0, np.ones(1), ranks)
    np.testing.assert_allclose(drawn.outside, [0.3 * 5 / 2])


def verdict(apart, **scores):
    def drawn(score):
        return Drawn(np.ones(1), np.ones(1), score, np.ones(1), np.full((1, 3), 1 / 3))

    some = {name: drawn(score) for name, score in scores.items()}
    return Calibration(2, 9, np.ones(1), some, some, {"model": apart}, 4)


def test_the_verdict_needs_the_interval():
    def said(*apart):
        return verdict(apart, model=1.0, other=0.9, worse=1.1).verdict

    assert said(-0.2, -0.3, -0.1) == "the model draws better than every rival, beyond the interval"
    assert said(0.2, 0.1, 0.3) == "the model draws worse than other, beyond the interval: take other"
    for ends in ((-0.3, 0.1), (-0.3, 0.0), (0.0, 0.3), (np.nan, np.nan)):
        assert said(0.05, *ends) == "the model draws no better or worse than other beyond the interval (+0.0500 A)"
    assert verdict((0, 0, 0), model=1.0).verdict == "the model draws, and nobody else does here"
    assert "one future only; take b where" in verdict((0, 0, 0), a=1.0, b=0.5).verdict
    assert verdict((0, 0, 0), model=0.4, b=0.5).best == "model"


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([0.9, 1.1], None),
        ([0.89, 1.0], "too sure: its spread is 0.89 to 1.00"),
        ([1.0, 1.11], "too unsure: its spread is 1.00 to 1.11"),
        ([0.5, 1.5], "too unsure: its spread is 0.50 to 1.50"),
        ([0.5, 1.4], "too sure: its spread is 0.50 to 1.40"),
    ],
)
def test_the_table_names_who_is_too_sure(ratios, said):
    ranks = np.array([[0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
    drawn = Drawn(np.array([0.5, 0.7]), np.array([0.2, 0.4]), 0.6, np.array(ratios), ranks)
    lab = Drawn(np.array([0.5, 0.7]), np.array([0.2, 0.4]), 0.9, np.array(ratios), ranks)
    lines = Calibration(3, 9, np.array([1.0, 2.5]), {"a": drawn}, {"a": lab}, {}, 4).table()
    assert lines[0].endswith("3 futures of 9 windows each, 4 independent blocks; superposed on the start")
    at = next(k for k, line in enumerate(lines) if line.split() == ["t/ps", "1", "2.5", "window", "lab"])
    assert lines[at + 1].split() == ["a", "0.5000", "0.7000", "0.6000*", "0.9000"]
    at = next(k for k, line in enumerate(lines) if "outside" in line)
    assert lines[at].split() == ["t/ps", "1", "2.5", "outside", "CRPS"]
    assert lines[at + 1].split() == ["a", *(f"{ratio:.2f}" for ratio in ratios), "0.75", "0.3000"]
    assert [said in line for line in lines[at + 3 : -1]] == ([True] if said else [])
    assert lines[-1].startswith("futures    the model knows one future only; take a")
