"""Errors and baselines against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from egno_md.config import WindowSpec
from egno_md.metrics import linear, mse_per_step, rmsd, static


def test_constant_velocity():
    window = WindowSpec(stride_ps=1, n_times=4)
    rng = np.random.default_rng(0)
    start, velocity = rng.normal(size=(2, 5, 7, 3))
    true = start[:, None] + velocity[:, None] * np.arange(1, 5)[:, None, None]
    np.testing.assert_allclose(linear(start, velocity, window), true)
    np.testing.assert_allclose(mse_per_step(linear(start, velocity, window), true), 0, atol=1e-25)
    expected = np.mean(velocity**2) * np.arange(1, 5) ** 2
    np.testing.assert_allclose(mse_per_step(static(start, window), true), expected)


def test_targets_that_are_not_every_stride():
    window = WindowSpec(stride_ps=1, n_times=2, span=6, sampling="U")
    path = linear(np.zeros((1, 1, 3)), np.ones((1, 1, 3)), window)
    np.testing.assert_allclose(path[0, :, 0, 0], [3, 6])


def test_rmsd_is_the_root_of_three_mse():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 1, 1, 9, 3))
    assert rmsd(a, b)[0, 0] == pytest.approx(np.sqrt(3 * mse_per_step(a, b)[0]))
    assert rmsd(np.zeros((4, 3)), np.array([[2.0, 0, 0]] * 4)) == pytest.approx(2.0)
