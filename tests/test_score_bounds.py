"""How long the blocks are that an evaluation takes for independent, and what is compared with what."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Ballistic, make_model
from test_evaluation import universe_of

from egno_md.errors import DataError
from egno_md.evaluation.score import Part, score
from egno_md.evaluation.statistics import block_bootstrap
from egno_md.forecast.forecasters import Known, Static
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run

MODEL = make_model(Ballistic(4))
BUILDER = GraphBuilder(universe_of(np.zeros((1, 10, 3))).atoms, MODEL.graph)


def part_of(frames, starts, every=1, source="run.xtc"):
    known = Known([frames[:2]], (1,))
    vars(known)["baselines"] = SimpleNamespace(forecasts={"static": Static()}, left_out={})
    return Part(Run(np.asarray(frames, np.float32), BUILDER, every=every), np.asarray(starts), known, source)


def still(n):
    """Atoms that do not move: no error, which has no memory."""
    return np.repeat(np.arange(30.0).reshape(1, 10, 3), n, axis=0)


@pytest.mark.parametrize(("step", "every", "block"), [(1, 1, 6), (2, 1, 4), (10, 1, 2), (1, 2, 11), (3, 2, 5)])
def test_a_block_is_what_windows_share_and_one_more(step, every, block):
    """A window reads one stride of past and four ahead; the frames of two windows lie so many apart."""
    starts = np.arange(every, 180, step)
    found = score(MODEL, [part_of(still(200), starts, every)])
    assert (found.block, found.n_blocks) == (block, len(starts) // block)
    assert (found.n_windows, found.of_windows, found.n_runs, found.n_atoms) == (len(starts), len(starts), 1, 10)


def test_a_block_reaches_as_far_as_the_errors_of_the_model_are_alike():
    """And not those of a forecast beside it: the steps of a straight motion are as long for forty frames."""
    speed = np.repeat([1.0, 8.0, 1.0, 8.0, 1.0], 40)
    frames = still(200)
    frames[1:, :, 0] += np.cumsum(speed[1:])[:, None]
    straight = score(MODEL, [part_of(frames, np.arange(1, 190))])
    assert np.all(straight.errors["model"] < straight.errors["static"] / 5)
    noise = frames + np.random.default_rng(0).normal(size=(200, 10, 3)) * speed[:, None, None]
    loud = score(MODEL, [part_of(noise, np.arange(1, 190))])
    assert loud.block > straight.block + 8


def test_of_many_windows_evenly_spread_ones_are_judged():
    starts = np.arange(1, 91)
    found = score(MODEL, [part_of(still(100), starts), part_of(still(100), starts, source="b.xtc")], max_windows=60)
    assert (found.n_windows, found.of_windows, found.n_runs, found.block) == (60, 180, 2, 3)
    assert score(MODEL, [part_of(still(100), starts)], max_windows=90).n_windows == 90
    assert score(MODEL, [part_of(still(100), starts)], max_windows=89).n_windows == 45
    with pytest.raises(DataError, match="no window to evaluate"):
        score(MODEL, [part_of(still(100), [])])


def test_windows_alone_are_a_frame_apart():
    frames = still(400)
    parts = [part_of(frames[k : k + 6], [1]) for k in range(0, 360, 6)]
    parts = [Part(part.run, part.starts, parts[0].known, part.source) for part in parts]
    found = score(MODEL, parts)
    assert (found.block, found.n_blocks, found.n_runs) == (6, 10, 1)


def test_gains_are_over_the_best_of_the_others_and_over_standing_still():
    frames = still(60)
    frames += np.random.default_rng(0).normal(scale=0.1, size=(60, 10, 3))
    frames[:, :, 0] += 0.4 * np.arange(60)[:, None]
    found = score(MODEL, [part_of(frames, np.arange(1, 55))])
    model, static = found.errors["model"], found.errors["static"]
    np.testing.assert_allclose(found.skill, 1 - model / static)
    assert found.f_skill[0] == pytest.approx(1 - model[-1] / static[-1])
    assert found.a_skill[0] == pytest.approx(1 - model.mean() / static.mean())
    np.testing.assert_allclose(found.gains["model"][:, 0], 1 - model / static)
    np.testing.assert_allclose(found.gains["static"][:, 0], 0)
    for low, value, high in ((*found.f_skill[1:2], *found.f_skill[:1], *found.f_skill[2:]),):
        assert low < value < high
    assert (found.skill_interval[:, 0] < found.skill).all() and (found.skill < found.skill_interval[:, 1]).all()
    starts = np.arange(1, 55)
    own = np.mean((frames[starts[:, None] + np.arange(1, 5)] - frames[starts][:, None]) ** 2, axis=(2, 3))  # (S, T)
    np.testing.assert_allclose(static, own.mean(axis=0), rtol=1e-5)
    ends = np.quantile(block_bootstrap(own, np.zeros(54), found.block), [0.025, 0.975], axis=0)  # seed 0
    np.testing.assert_allclose(found.intervals["static"], ends.T, rtol=1e-5)
    for name, errors in found.errors.items():
        assert found.intervals[name].shape == (4, 2)
        assert (found.intervals[name][:, 0] < errors).all() and (errors < found.intervals[name][:, 1]).all()
