"""What every free forecast says of itself is what it does, and the limits of what it is fitted to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_metrics import autoregression, tumbled

from egno_md.errors import DataError
from egno_md.forecast.drawn import Analogues, NoisyStart, RunEnsemble
from egno_md.forecast.forecasters import InternalMotion, Known, SmoothedHistory, free_forecasts

FREE = [*free_forecasts().values(), NoisyStart]


@pytest.fixture(scope="module")
def known():
    return Known([tumbled(autoregression(160, 6, 0.8, sigma=0.3))], (1, 2))


@pytest.fixture(scope="module")
def past():
    return tumbled(autoregression(40, 6, 0.8, sigma=0.3, seed=1)).reshape(2, 20, 6, 3)


@pytest.mark.parametrize("kind", FREE, ids=lambda kind: kind.name)
def test_as_many_frames_are_read_as_it_says(kind, known, past):
    found = kind.fitted(known)
    enough = found(past[:, -found.n_past :], [1, 2])
    np.testing.assert_array_equal(found(past, [1, 2]), enough)
    if found.n_past > 1:
        assert np.abs(found(past[:, 1 - found.n_past :], [1, 2]) - enough).max() > 1e-6


@pytest.mark.parametrize("kind", FREE, ids=lambda kind: kind.name)
def test_who_says_so_draws_several_futures_that_move_as_a_whole(kind, known, past):
    found = kind.fitted(known)
    futures = found(past, [1, 2], 3, np.random.default_rng(0))
    assert futures.shape == (2, 3 if getattr(found, "draws", False) else 1, 2, 6, 3)
    if futures.shape[1] == 1:
        return
    assert np.abs(futures[:, 0] - futures[:, 1]).max() > 1e-3
    if hasattr(found, "rigid"):
        still = dataclasses.replace(found, rigid=False)(past, [1, 2], 3, np.random.default_rng(0))
        centre, other = (x.mean(axis=-2) - past[:, None, -1:].mean(axis=-2) for x in (futures, still))
        assert centre.std(axis=1).min() > 1 and other.std(axis=1).max() < 0.1


def test_without_being_asked_forecasts_are_one_stride_of_one_frame_ahead(known):
    frames = known.segments[0]
    plain = Known([frames])
    ((past, future),) = plain.windows(1, 1000)
    np.testing.assert_allclose(future[:, 0], frames[1:], rtol=1e-6)
    np.testing.assert_allclose(past[:, 0], frames[:-1], rtol=1e-6)
    decay = InternalMotion.fit([frames]).decay
    np.testing.assert_array_equal(decay, InternalMotion.fit([frames], 1).decay)
    np.testing.assert_array_equal(decay, plain.motion.decay)
    assert np.abs(InternalMotion.fit([frames], 2).decay - decay).max() > 0.05


@pytest.mark.parametrize(("n", "size"), [(5001, 1.5), (5002, 1.0)])
def test_of_more_than_five_thousand_frames_every_second_makes_the_mean_structure(n, size):
    """Every second frame is twice as large; of the last one nothing follows."""
    structure = np.array([[2.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0]])
    frames = structure * (1 + np.arange(n) % 2)[:, None, None]
    mean = InternalMotion.fit([frames]).mean
    np.testing.assert_allclose(np.sum(mean**2), size**2 * 10, rtol=1e-6)


@pytest.mark.parametrize(
    ("n", "every", "step", "longest"),
    [(400, 1, 1, 16), (40, 1, 1, 10), (43, 1, 1, 10), (41, 2, 1, 5), (40, 1, 36, 4), (40, 1, 39, 1), (7, 1, 1, 1)],
)
def test_noise_is_averaged_over_as_many_frames_as_there_may_be(n, every, step, longest):
    """Up to sixteen, a quarter of the run, and what its windows have room for."""
    structure = 3 * np.random.default_rng(0).normal(size=(400, 3))
    frames = structure + 0.3 * np.random.default_rng(1).normal(size=(n, 400, 3))
    assert SmoothedHistory.best(Known([frames], (step,), every)) == longest


@pytest.mark.parametrize(("n", "nearest"), [(11, 5), (37, 6), (9802, 99), (10_300, 100)])
def test_analogues_are_the_root_of_the_library_between_five_and_a_hundred(n, nearest):
    frames = np.random.default_rng(0).normal(size=(n, 3, 3))
    found = Analogues.fitted(Known([frames], (1,)))
    assert found.nearest == nearest and len(found.library) == n - 1
    with pytest.raises(DataError, match="at least 10 frames with 1 strides after them, found 9"):
        Analogues.fitted(Known([frames[:10]], (1,)))


def test_an_ensemble_of_the_run_needs_five_frames():
    frames = np.random.default_rng(0).normal(size=(5, 3, 3))
    assert len(RunEnsemble.fitted(Known([frames], (1,))).library) == 5
    with pytest.raises(DataError, match="at least 5 frames, found 4"):
        RunEnsemble.fitted(Known([frames[:4]], (1,)))
