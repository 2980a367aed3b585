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
from egno_md.evaluation.slow import SlowComponents
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
    spread = found.run.torsion_spread
    assert ((spread >= 0) & (spread <= 1)).all() and spread.mean() == rows["torsions, circular spread"][1]
    # What compares with the run has no value for the run itself.
    assert {name for name, values in rows.items() if np.isnan(values[1])} == {
        "RMSF, ratio to the run",
        "RMSF, correlation with the run",
        "torsions (virtual), divergence (nats)",
        "torsions, square root of it",
        "slow motions, divergence (nats)",
        "slow motions, square root of it",
    }
    json.dumps(found.findings)


def wrong(rows):
    """Names of the rows in which the chains are unlike the run, by more than its other half is."""
    out = set()
    for name, chains, there, floor in rows:
        if "divergence" in name or "square root" in name:
            far = chains > 2 * floor
        elif np.isnan(there) or abs(there) < 1e-9:
            far = not np.isclose(chains, there, atol=0.05, equal_nan=True)
        else:
            apart = np.inf if np.isnan(chains) else abs(chains - there)
            far = apart > max(2 * abs(floor - there), 0.2 * abs(there))
        if far:
            out.add(name)
    return out


def in_time(name):
    """Whether a row is about what happens in a chain, one frame after the other."""
    return any(word in name for word in ("in a chain", "within a chain", "changes", "passage", "memory of the motion"))


def test_standing_still_and_wandering_fail_every_statistic_of_motion(run):
    starts = np.linspace(0, 5999, 24).astype(int)
    rng = np.random.default_rng(0)
    frozen = judged([np.repeat(run[s : s + 1], 300, axis=0) for s in starts], run)
    walks = [
        judged([run[s] + np.cumsum(step * rng.normal(size=(300, 10, 3)), axis=0) for s in starts], run)
        for step in (0.02, 0.25)
    ]
    names = {name for name, *_ in frozen.rows()}
    motion = {name for name in names if in_time(name)}
    assert {
        "slowest motion, spread in a chain",
        "slowest motion, memory in a chain (ps)",
        "slowest motion, first passage up (ps)",
        "slowest motion, first passage down (ps)",
        "torsions, changes of basin per frame",
    } <= motion
    # A chain that stands still does not drift.
    assert motion - wrong(frozen.rows()) == {"radius of gyration, drift in a chain (A)"}
    # A walk of one step length can have one time right by chance, not of any.
    assert motion - set.union(*(wrong(walk.rows()) for walk in walks)) == set()
    for found in (frozen, *walks):
        assert any("slowest motion" in finding for finding in found.findings), words(found)


def test_the_slow_motion_is_found_under_a_larger_fast_one():
    rng = np.random.default_rng(0)
    slow, fast = np.zeros(20000), 3 * rng.normal(size=(20000, 2))
    for k in range(1, 20000):
        slow[k] = 0.98 * slow[k - 1] + np.sqrt(1 - 0.98**2) * rng.normal()
    mixed = np.column_stack([slow + fast[:, 0], fast[:, 0], fast[:, 1] - 0.5 * slow])
    found = SlowComponents.fit([mixed[:12000], mixed[12000:]], 5)
    assert abs(np.corrcoef(found(mixed)[:, 0], slow)[0, 1]) > 0.98
    np.testing.assert_allclose(np.var(found(mixed), axis=0), 1, rtol=1e-6)
    counts = found.histogram(np.concatenate([found(mixed), [[99.0, 0.0], [0.0, -99.0]]]))
    assert counts.sum() == 20002 and counts[-1] == 2
    assert SlowComponents.fit([mixed[:10]], 5) is None and SlowComponents.fit([np.ones((500, 3))], 5) is None


def test_mean_first_passage_times_are_those_of_the_rates():
    rng = np.random.default_rng(1)
    up, down = 0.01, 0.04
    states = np.zeros(400000)
    draws = rng.random(len(states))
    for k in range(1, len(states)):
        states[k] = draws[k] < up if states[k - 1] == 0 else draws[k] >= down
    axis = SlowComponents(np.zeros(1), np.eye(1), (np.linspace(-1, 2, 13),), (0.2, 0.8))
    whole = axis.passages([states[:, None]])
    np.testing.assert_allclose(whole, [1 / up, 1 / down], rtol=0.1)
    parts = axis.passages(np.split(states[:, None], 2000))  # what the end cuts short counts
    np.testing.assert_allclose(parts, whole, rtol=0.1)
    assert np.isnan(axis.passages([states[:50, None]])).all() and np.isnan(axis.passages([np.full((9, 1), 0.5)])).all()
