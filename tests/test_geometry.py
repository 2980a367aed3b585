"""The projection gives bonds their length back, moves nothing else, and knows no direction in space."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Ballistic, make_model, make_universe
from scipy.spatial.transform import Rotation

from egno_md import EGNOSurrogate
from egno_md.geometry import BOND_SLACK, bond_lengths, keep_bonds


def chain(n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(size=(n, 3)) * 2.2, axis=0)
    bonds = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    return x, bonds, bond_lengths(x, bonds), rng


def test_bonds_come_back():
    x, bonds, wanted, rng = chain()
    moved = x + rng.normal(scale=0.5, size=(4, *x.shape))
    assert np.abs(bond_lengths(moved, bonds) - wanted).max() > 1
    kept = keep_bonds(moved, bonds, wanted)
    assert np.abs(bond_lengths(kept, bonds) - wanted).max() < BOND_SLACK + 0.01


def test_pairs_and_rings():
    pair = np.array([[[0.0, 0, 0], [0.0, 0, 2.0]], [[1.0, 0, 0], [1.0, 0, 1.0]]])
    done = keep_bonds(pair, np.array([[0, 1]]), np.array([1.5]), slack=0.02)
    np.testing.assert_allclose(done, [[[0, 0, 0.25], [0, 0, 1.75]], [[1, 0, -0.25], [1, 0, 1.25]]], atol=0.02)

    rng = np.random.default_rng(3)
    ring = 3.0 * np.stack([[np.cos(a), np.sin(a), 0] for a in np.arange(6) * np.pi / 3])
    bonds = np.array([[k, (k + 1) % 6] for k in range(6)] + [[0, 3]])
    wanted = bond_lengths(ring, bonds)
    noisy = ring + 0.3 * rng.standard_normal((4, 6, 3))
    done = keep_bonds(noisy, bonds, wanted, slack=0.02)
    assert np.abs(bond_lengths(noisy, bonds) - wanted).max() > 0.3
    assert np.abs(bond_lengths(done, bonds) - wanted).max() < 0.022
    np.testing.assert_allclose(done.mean(axis=1), noisy.mean(axis=1), atol=1e-12)
    np.testing.assert_array_equal(keep_bonds(ring, bonds, wanted), ring)


def test_frames_within_the_slack_stay_and_so_do_free_atoms():
    x, bonds, wanted, rng = chain()
    np.testing.assert_array_equal(keep_bonds(x, bonds, wanted + 0.05), x)
    moved = x + rng.normal(scale=0.5, size=x.shape)
    np.testing.assert_array_equal(keep_bonds(moved, bonds[:10], wanted[:10])[11:], moved[11:])
    np.testing.assert_array_equal(keep_bonds(moved, bonds[:0], wanted[:0]), moved)


@pytest.mark.parametrize("mirror", [1, -1])
def test_equivariance(mirror):
    x, bonds, wanted, rng = chain()
    moved = x + rng.normal(scale=0.5, size=x.shape)
    turn = mirror * Rotation.random(random_state=1).as_matrix()
    expected = keep_bonds(moved, bonds, wanted) @ turn.T + 7
    np.testing.assert_allclose(keep_bonds(moved @ turn.T + 7, bonds, wanted), expected, atol=1e-8)


def test_forecast_keeps_the_bonds_of_its_start():
    """Atoms that fly apart at constant velocity stay bonded where the model says so, over several windows."""
    u = make_universe(12, velocity=0.3)
    bonds = u.bonds.to_indices()
    for keep in (False, True):
        model = make_model(Ballistic(4), keep_bonds=keep)
        results = EGNOSurrogate(u, model, horizon=10).run().results
        u.trajectory[-1]
        off = np.abs(bond_lengths(results.positions[0], bonds) - bond_lengths(u.atoms.positions, bonds)).max()
        assert (off < BOND_SLACK + 0.01) == keep
