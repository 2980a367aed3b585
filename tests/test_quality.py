"""Statistics of chains that neither standing still nor wandering about can pass."""

from __future__ import annotations

import json

import MDAnalysis as mda
import numpy as np
import pytest
from conftest import make_model
from scipy.spatial.transform import Rotation
from test_metrics import autoregression, tumbled

from egno_md.evaluation.quality import quality, torsion_basins
from egno_md.graph.builder import GraphBuilder

MEMORY, RATE = 0.8, 0.02  # of the noise per frame; of the hops of the torsion per frame


def hopping(n_frames, seed=0):
    """A chain of atoms whose middle torsion hops between two basins, 120 degrees apart, in noise with a memory."""
    rng = np.random.default_rng(seed)
    angle = 1.7 * np.arange(10)
    structure = np.stack([2.3 * np.cos(angle), 2.3 * np.sin(angle), 1.5 * np.arange(10)], axis=1)
    state = np.cumsum(rng.random(n_frames) < RATE) % 2
    axis = structure[5] - structure[4]
    turn = Rotation.from_rotvec((2 * np.pi / 3 * state)[:, None] * axis / np.linalg.norm(axis)).as_matrix()
    frames = np.repeat(structure[None], n_frames, axis=0)
    frames[:, 5:] = (structure[5:] - structure[5]) @ np.swapaxes(turn, 1, 2) + structure[5]
    noise = autoregression(n_frames, 10, MEMORY, sigma=0.08, seed=seed)
    return frames + noise - autoregression(1, 10, 0, sigma=0, seed=seed)[0]


@pytest.fixture(scope="module")
def run():
    return hopping(6000)


def judged(chains, run, stride=1.0):
    u = mda.Universe.empty(10, n_residues=10, atom_resindex=range(10), trajectory=True)
    for name, values in (("names", ["CA"] * 10), ("elements", ["C"] * 10), ("resnames", ["ALA"] * 10)):
        u.add_TopologyAttr(name, values)
    u.add_TopologyAttr("bonds", [(i, i + 1) for i in range(9)])
    builder = GraphBuilder(u.atoms, make_model().graph)
    return quality(builder, chains, [run], stride)


def words(found):
    return " | ".join(found.findings)


def test_other_runs_of_the_same_dynamics_pass(run):
    for seed in (1, 2):
        other = tumbled(hopping(3000, seed))
        found = judged([other[:1000], other[1000:2000], other[2000:]], run)
        assert found.findings == (), words(found)
        within, there = found.chains.within, found.run.within
        assert within.length == there.length == 1000
        assert within.rmsf.mean() == pytest.approx(there.rmsf.mean(), rel=0.1)
        assert within.changes == pytest.approx(there.changes, rel=0.3)
        assert within.changes == pytest.approx(RATE, rel=0.3)  # one torsion has two basins
        assert abs(within.drift) < 0.2 and within.left < 0.01
    half = judged([run[3000:]], run)
    assert half.findings == ()


def test_a_frozen_forecast_passes_what_is_pooled_and_fails_within(run):
    starts = np.linspace(0, 5999, 24).astype(int)
    frozen = judged([np.repeat(run[s : s + 1], 200, axis=0) for s in starts], run)
    # Put together, chains that do not move look like the run.
    assert frozen.rmsf_ratio(frozen.chains) == pytest.approx(1, abs=0.25)
    assert frozen.rmsf_correlation(frozen.chains) > 0.9
    for said in ("moves too little", "torsions move too little", "change their basin too rarely", "forgets too slowly"):
        assert said in words(frozen), said
    within = frozen.chains.within
    assert within.rmsf.max() < 1e-6 and within.torsion_spread.max() < 1e-9 and within.changes == 0
    assert np.isnan(within.relaxation)


def test_a_random_walk_fails(run):
    rng = np.random.default_rng(0)
    walks = [run[s] + np.cumsum(0.25 * rng.normal(size=(300, 10, 3)), axis=0) for s in (0, 1500, 3000, 4500)]
    found = judged(walks, run)
    for said in ("moves too much", "forgets too slowly", "drifts away", "other torsions"):
        assert said in words(found), said
    assert found.chains.within.left > 0.5 and found.chains.bonds_off > 0.5


def test_noise_without_memory_fails(run):
    rng = np.random.default_rng(0)
    shuffled = run[rng.permutation(3000)]
    found = judged([shuffled[:1000], shuffled[1000:2000]], run)
    # Every single frame is right; their order is not.
    assert found.torsion_divergence(found.chains) < 2 * found.torsion_divergence(found.floor) + 0.02
    assert "forgets too fast" in words(found) and "change their basin too often" in words(found)


def test_a_chain_that_shrinks_drifts(run):
    shrinking = hopping(1000, 5) * np.linspace(1, 0.5, 1000)[:, None, None]
    found = judged([shrinking], run)
    assert "drifts away" in words(found) and found.chains.within.drift < -1
    assert not any("drifts" in finding for finding in judged([run[:1000]], run).findings)


def test_basins_of_a_torsion():
    rng = np.random.default_rng(0)
    angles = np.concatenate([rng.normal(3.1, 0.2, 6000), rng.normal(-0.8, 0.3, 4000)])  # one of them across pi
    basins = torsion_basins((angles + np.pi) % (2 * np.pi) - np.pi)
    assert set(basins) == {-1, 0, 1}
    assert basins[0] == basins[-1] == basins[-2] != basins[13] >= 0
    assert torsion_basins(rng.normal(0, 0.3, 1000)).max() == 0
    assert torsion_basins(rng.uniform(-np.pi, np.pi, 10**6)).max() == 0
    assert torsion_basins(np.zeros(50)).max() == 0
    # A peak of few frames is none.
    rare = np.concatenate([np.full(9960, 1.0) + 0.2 * rng.normal(size=9960), np.full(40, -2.0)])
    assert torsion_basins(rare).max() == 0


def test_rows_show_both_counts_and_the_root_of_the_divergence(run):
    found = judged([run[:500]], run)
    rows = {name: values for name, *values in found.rows()}
    assert rows["RMSF within a chain, mean (A)"][0] == found.chains.within.rmsf.mean()
    assert {"RMSF, mean (A)", "torsions, circular spread in a chain", "memory of the motion in a chain (ps)"} <= set(
        rows
    )
    divergence = rows["torsions (virtual), divergence (nats)"]
    np.testing.assert_allclose(np.square(rows["torsions, square root of it"][::2]), divergence[::2])
    json.dumps(found.findings)
