"""Statistics of chains that neither standing still nor wandering about can pass."""

from __future__ import annotations

import dataclasses
import json

import MDAnalysis as mda
import numpy as np
import pytest
from conftest import make_model
from scipy.linalg import eigh
from scipy.spatial.transform import Rotation
from test_metrics import autoregression, tumbled

from egno_md.errors import DataError
from egno_md.evaluation.quality import (
    Ensemble,
    Quality,
    Within,
    _changes,
    _Describe,
    _mean_correlation,
    quality,
    torsion_basins,
)
from egno_md.evaluation.slow import SlowComponents
from egno_md.evaluation.statistics import jensen_shannon, relaxation_time
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


@pytest.mark.parametrize("lag", [1, 4])
def test_slow_components_are_the_eigenvectors_of_the_covariances(lag):
    """Of one that is lagged and made symmetric, in that without a lag, where there are frames for all directions."""
    rng = np.random.default_rng(lag)
    parts = [np.cumsum(rng.normal(size=(n, 4)), axis=0) @ rng.normal(size=(4, 4)) for n in (300, 120, lag)]
    found = SlowComponents.fit(parts, lag)
    every = np.concatenate(parts)
    centre = every.mean(axis=0)
    plain = (every - centre).T @ (every - centre) / len(every)
    lagged = sum((x[:-lag] - centre).T @ (x[lag:] - centre) for x in parts[:2])
    values, vectors = eigh(lagged + lagged.T, plain)
    count = found.weights.shape[1]
    expected = vectors[:, ::-1][:, :count]
    expected *= np.sign(expected[np.argmax(np.abs(expected), axis=0), np.arange(count)])
    np.testing.assert_allclose(found.weights, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.centre, centre)
    values = found(every)
    np.testing.assert_allclose(values.T @ values / len(every), np.eye(count), atol=1e-9)
    for column, edges in zip(values.T, found.edges, strict=True):
        np.testing.assert_allclose(edges, np.linspace(column.min(), column.max(), len(edges)))
    assert found.ends == pytest.approx(tuple(np.quantile(values[:, 0], [0.2, 0.8])))
    assert count == 2 and all(len(edges) == 13 for edges in found.edges)
    # Twenty pairs of frames for each direction that a component is made of.
    for pairs, made in ((19, None), (20, 1), (39, 1), (40, 2), (79, 2)):
        few = SlowComponents.fit([parts[0][: pairs + lag]], lag)
        assert (few is None) if made is None else few.weights.shape == (4, made)
    # All of the run is on its own grid, with its smallest and its largest value; what lies beyond has its own cell.
    counts = found.histogram(values)
    assert counts.sum() == len(every) and counts[-1] == 0
    grid = np.histogramdd(values, found.edges)[0].ravel()
    np.testing.assert_array_equal(counts[:-1], grid)
    for k in range(count):
        beyond = np.zeros((2, count))
        beyond[:, k] = found.edges[k][0] - 1e-6, found.edges[k][-1] + 1e-6
        inside = [beyond[:, j] for j in range(count) if j != k]
        assert all((found.edges[j][0] < 0 < found.edges[j][-1]) for j in range(count)) and not np.any(inside)
        assert found.histogram(beyond)[-1] == 2 == found.histogram(beyond).sum()


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


def angles_of(counts):
    """Angles in the middle of cells, so many in each."""
    middle = -np.pi + (np.arange(36) + 0.5) * 2 * np.pi / 36
    return np.repeat(middle, [counts.get(k, 0) for k in range(36)])


@pytest.mark.parametrize(
    ("counts", "basins"),
    [
        # Smoothed with 1, 2, 3, 2, 1: the cells beside a peak have two thirds of it, the next ones a third.
        ({5: 100, 20: 60}, [range(4, 7), range(19, 22)]),
        ({0: 100, 18: 60}, [[35, 0, 1], range(17, 20)]),
        ({35: 60, 17: 100}, [range(16, 19), [34, 35, 0]]),
        ({5: 100, 6: 100}, [range(4, 8)]),
        # A valley of two thirds of the lower peak parts nothing, one of a third does.
        ({5: 100, 9: 90}, [range(4, 11)]),
        ({5: 90, 9: 100}, [range(4, 11)]),
        ({5: 100, 10: 90}, [range(4, 7), range(9, 12)]),
        ({34: 100, 2: 90}, [[33, 34, 35, 0, 1, 2, 3]]),
        ({5: 100, 10: 90, 14: 60}, [range(4, 7), [9, 10, 11, 12, 14]]),
        # A peak of less than a hundredth of the frames is none.
        ({5: 991, 20: 9}, [range(4, 7)]),
        ({5: 990, 20: 10}, [range(4, 7), range(19, 22)]),
        ({5: 9, 20: 991}, [range(19, 22)]),
        ({12: 1}, [range(11, 14)]),
        (dict.fromkeys(range(36), 2), [range(36)]),
    ],
)
def test_basins_lie_about_the_peaks_of_the_smoothed_histogram(counts, basins):
    expected = np.full(36, -1)
    for number, cells in enumerate(basins):
        expected[list(cells)] = number
    assert torsion_basins(angles_of(counts)).tolist() == expected.tolist()


def test_a_change_of_basin_counts_when_it_arrives():
    basins = torsion_basins(angles_of({5: 100, 20: 60}))
    visits = angles_of({5: 1}), angles_of({12: 1}), angles_of({20: 1})
    path = np.concatenate([visits[k] for k in (0, 1, 0, 1, 2, 2, 1, 0, 1, 1)])
    assert _changes(path, basins) == 2 / 10
    assert _changes(np.concatenate([visits[1], visits[1]]), basins) == 0
    edges = np.array([-np.pi, np.pi])  # the ends of the turn are in its first and last cell
    assert _changes(edges, np.r_[0, np.full(34, -1), 1]) == 1 / 2


def test_correlations_of_parts_are_weighed_by_their_power():
    rng = np.random.default_rng(0)
    parts = [3 * rng.normal(size=(8, 2)), rng.normal(size=(9, 2)), rng.normal(size=(3, 2))]  # the last is too short
    power, own = [], []
    for x in parts[:2]:
        products = [np.mean(np.sum(x[k:] * x[: len(x) - k], axis=1)) for k in range(5)]
        power.append(np.mean(x**2))
        own.append(np.array(products) / products[0])
    np.testing.assert_allclose(_mean_correlation(parts), np.average(own, axis=0, weights=power))
    assert len(_mean_correlation(parts)) == 5
    np.testing.assert_array_equal(_mean_correlation([np.zeros((9, 2))]), [1.0])
    np.testing.assert_array_equal(_mean_correlation([np.ones((1, 2))]), [1.0])


def chain_builder(n=10):
    u = mda.Universe.empty(n, n_residues=n, atom_resindex=range(n), trajectory=True)
    for name, values in (("names", ["CA"] * n), ("elements", ["C"] * n), ("resnames", ["ALA"] * n)):
        u.add_TopologyAttr(name, values)
    u.add_TopologyAttr("bonds", [(i, i + 1) for i in range(n - 1)])
    return GraphBuilder(u.atoms, make_model().graph)


def breathing(factors):
    """A structure that grows and shrinks about its centre: frames, the structure, its radius."""
    structure = hopping(1)[0] - hopping(1)[0].mean(axis=0)
    return structure * np.asarray(factors)[:, None, None], structure, np.sqrt(np.mean(np.sum(structure**2, axis=1)))


def test_what_breathing_looks_like_within_pieces_and_over_all():
    """Of frames that only grow and shrink everything follows from the factors."""
    rng = np.random.default_rng(0)
    factors = [1 + 0.02 * np.cumsum(rng.normal(size=n)) for n in (29, 17)]
    structure, size = breathing([1.0])[1:]
    builder = chain_builder()
    lengths = np.linalg.norm(np.diff(structure, axis=0), axis=1)
    still = [np.full(36, -1)] * 7
    describe = _Describe(
        builder, structure, structure, lengths, np.zeros((0, 4), int), 0.5, 8, still, (0.97 * size, 1.03 * size)
    )
    found = describe([breathing(f)[0] for f in factors])
    far = np.linalg.norm(structure, axis=1)  # of every atom from the centre
    pieces = np.array([factors[0][:8], factors[0][8:16], factors[0][16:24], factors[1][:8], factors[1][8:16]])
    within = found.within
    np.testing.assert_allclose(within.rmsf, far * np.sqrt(np.mean(pieces.var(axis=1))), rtol=1e-6)
    assert within.length == 8 and np.isnan(within.changes) and np.isnan(within.slow_spread)
    first, last = pieces[:, :2], pieces[:, -2:]
    assert within.drift == pytest.approx(size * (last.mean() - first.mean()))
    assert within.left == np.mean((last < 0.97 - 1e-3 / size) | (last > 1.03 + 1e-3 / size)) > 0
    d = pieces - pieces.mean(axis=1, keepdims=True)
    own = [[np.mean(x[k:] * x[: 8 - k]) for k in range(5)] for x in d]
    memory = np.average(np.array(own) / np.array(own)[:, :1], axis=0, weights=[x[0] for x in own])
    assert within.relaxation == pytest.approx(0.5 * relaxation_time(memory))
    every = np.concatenate(factors)
    assert found.n_frames == 46
    np.testing.assert_allclose(found.radius, size * every)
    np.testing.assert_allclose(found.rmsf, far * every.std(), rtol=1e-6)
    np.testing.assert_allclose(found.bonds, lengths * every.mean())
    np.testing.assert_allclose(found.bond_range, [lengths.min() * every.min(), lengths.max() * every.max()])
    off = np.abs(lengths * (every[:, None] - 1)) > 0.05
    assert found.bonds_off == pytest.approx(off.mean())
    middle = [f - every.mean() for f in factors]
    lag = 17 // 2
    own = [[np.mean(x[k:] * x[: len(x) - k]) for k in range(lag + 1)] for x in middle]
    memory = np.average(np.array(own) / np.array(own)[:, :1], axis=0, weights=[x[0] for x in own])
    for value in (found.relaxation, found.radius_relaxation):
        assert value == pytest.approx(0.5 * relaxation_time(memory), nan_ok=True)
    # The smallest and the largest radius that the run has do not lie outside of it.
    limits = dataclasses.replace(describe, radii=(size * last.min(), size * last.max()))
    assert limits([breathing(f)[0] for f in factors]).within.left == 0
    thin = describe([breathing(f)[0] for f in factors], 20)  # every third
    assert thin.n_frames == 16
    np.testing.assert_allclose(thin.radius, size * every[::3])
    np.testing.assert_allclose(thin.rmsf, far * every[::3].std(), rtol=1e-6)
    assert describe([breathing(f)[0] for f in factors], 46).n_frames == 46


def test_circular_spread_is_that_of_the_angles():
    """A torsion that turns evenly by a quarter within each piece and everywhere over all of them."""
    structure = np.array([[1.0, 0, -1], [0, 0, -0.5], [0, 0, 0.5], [1, 0, 1.0]])
    angle = np.pi / 2 * np.arange(16) / 4
    frames = np.repeat(structure[None], 16, axis=0)
    frames[:, 3, :2] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    basins = np.repeat(np.arange(4), 9)
    describe = _Describe(
        chain_builder(4), structure, structure, np.ones(3), np.arange(4)[None], 1.0, 4, [basins], (0.0, 9.0)
    )
    found = describe([frames])
    one = np.abs(np.mean(np.exp(1j * angle[:4])))
    np.testing.assert_allclose(found.within.torsion_spread, [1 - one])
    np.testing.assert_allclose(found.torsion_spread, [1.0], atol=1e-9)
    turned = found.torsions[:, 0] - found.torsions[0, 0]
    np.testing.assert_allclose(np.exp(1j * turned), np.exp(1j * angle), atol=1e-9)
    cosines = describe.features(frames, frames)
    np.testing.assert_allclose(cosines, np.stack([np.cos(found.torsions[:, 0]), np.sin(found.torsions[:, 0])], axis=1))
    alone = dataclasses.replace(describe, quadruples=np.zeros((0, 4), int))
    np.testing.assert_array_equal(alone.features(frames, frames), (frames - structure).reshape(16, 12))


def test_a_run_is_halved_by_its_frames():
    run = hopping(400)
    builder, chains = chain_builder(), [hopping(30, seed) for seed in (1, 2, 3)]

    def found(*parts):
        return quality(builder, chains, parts, 2.0)

    one = found(run)
    assert (one.run.n_frames, one.floor.n_frames, one.chains.n_frames) == (200, 67, 90)  # every third of 200
    assert (one.n_chains, one.chain_length, one.run.within.length) == (3, 30, 30)
    for cut in (150, 200, 250):
        parts = found(run[:cut], run[cut:])
        assert (parts.run.n_frames, parts.floor.n_frames) == (200, 67)
        np.testing.assert_allclose(parts.run.radius, one.run.radius)
        np.testing.assert_allclose(parts.floor.radius, one.floor.radius)
    short = found(*np.split(run, 20))
    assert short.run.within.length == 20 and short.run.n_frames == 200
    assert one.torsion_kind == "virtual" and one.torsion_names[0] == "2-3" and len(one.torsion_names) == 7
    with pytest.raises(DataError, match="at least 4 strides to be compared with, found 3"):
        found(run[:3])
    assert found(run[:4]).run.n_frames == 2


def an_ensemble(**within):
    """One whose statistics of motion are all 1 but for those given."""
    own = dict(
        length=9, rmsf=np.ones(3), torsion_spread=np.full(2, 0.5), relaxation=1.0, changes=1.0, drift=0.0,
        slow_spread=1.0, slow_relaxation=1.0, passages=(1.0, 1.0), left=0.0,
    )  # fmt: skip
    return Ensemble(
        9, np.ones(2), (1.0, 1.0), 0.0, 0.0, 0.0, np.array([4.0, 5.0]), np.array([1.0, 2.0, 4.0]), np.zeros((9, 2)),
        np.full(2, 0.5), 1.0, 1.0, np.zeros((9, 1)), Within(**{**own, **within}),
    )  # fmt: skip


def findings(chains, floor=None, **run):
    three = (an_ensemble(**chains), an_ensemble(**run), an_ensemble(**(floor or {})))
    return Quality(*three, 1, 9, "phi/psi", ("phi ALA 2", "psi ALA 2")).findings


@pytest.mark.parametrize(
    ("name", "bound", "few", "many"),
    [
        ("rmsf", 1.5, "moves too little", "moves too much"),
        ("torsion_spread", 1.5, "torsions move too little", "torsions move too much"),
        ("changes", 2.0, "torsions change their basin too rarely", "torsions change their basin too often"),
        ("relaxation", 2.0, "forgets too fast", "forgets too slowly"),
        ("slow_spread", 1.5, "the slowest motion is too small", "the slowest motion is too large"),
        ("slow_relaxation", 2.0, "the slowest motion forgets too fast", "the slowest motion forgets too slowly"),
        ("up", 2.0, "passes too often", "passes too rarely"),
        ("down", 2.0, "passes too often", "passes too rarely"),
    ],
)
def test_a_finding_is_beyond_its_bound_and_twice_what_the_halves_differ_by(name, bound, few, many):
    def within(factor):
        usual = {"rmsf": np.ones(3), "torsion_spread": np.full(2, 0.5)}
        if name in ("up", "down"):
            return {"passages": (factor, 1.0) if name == "up" else (1.0, factor)}
        return {name: factor * usual.get(name, 1.0)}

    def said(chains, floor=1.0, run=1.0):
        out = findings(within(chains), within(floor), **within(run))
        assert len(out) <= 1
        return out[0].partition(":")[0] if out else None

    assert said(0.99 * bound) is said(1.01 / bound) is None
    assert said(1.01 * bound) == many and said(0.99 / bound) == few
    for floor in (1.4, 1 / 1.4, bound, 1 / bound):  # whichever way the other half differs
        beyond = max(bound, max(floor, 1 / floor) ** 2)
        assert said(0.99 * beyond, floor) is None and said(1.01 * beyond, floor) == many
        assert said(1.01 / beyond, floor) is None and said(0.99 / beyond, floor) == few
    assert said(2.02 * bound, 2.0, 2.0) == many and said(1.98 * bound, 2.0, 2.0) is None
    assert said(0.0) == few and said(np.nan) == many
    assert said(3.0, np.nan) == many  # what a half says nothing of is no excuse
    assert said(3.0, 1.0, np.nan) is None and said(3.0, 1.0, 0.0) is None


def test_drifting_away_is_more_than_half_of_the_last_radii():
    assert findings({"left": 0.5}) == ()
    (said,) = findings({"left": 0.51})
    assert said.startswith("drifts away: 51% ") and "4.00 to 5.00 A" in said


def test_fluctuations_are_compared_with_those_of_the_run():
    plain = an_ensemble()
    both = Quality(plain, plain, plain, 1, 9, "", ())
    other = dataclasses.replace(plain, rmsf=np.array([2.0, 2.0, 8.0]))
    assert both.rmsf_ratio(other) == pytest.approx(12 / 7)
    assert both.rmsf_correlation(other) == pytest.approx(np.corrcoef([2, 2, 8], [1, 2, 4])[0, 1])
    assert np.isnan(both.rmsf_correlation(dataclasses.replace(plain, rmsf=np.ones(3))))
    assert np.isnan(both.torsion_divergence(other)) and np.isnan(both.slow_divergence(other))


def test_torsions_are_compared_one_by_one_or_as_pairs():
    rng = np.random.default_rng(0)
    here, there = (dataclasses.replace(an_ensemble(), torsions=rng.uniform(-np.pi, np.pi, (500, 4))) for _ in range(2))
    there.torsions[:, :2] = 0.3
    cells = np.linspace(-np.pi, np.pi, 25)
    names = tuple("abcd")
    one = Quality(here, there, there, 1, 9, "virtual", names).torsion_divergence(here)
    each = [jensen_shannon(*(np.histogram(x.torsions[:, k], cells)[0] for x in (here, there))) for k in range(4)]
    assert one == pytest.approx(np.mean(each))
    pairs = [
        jensen_shannon(*(np.histogram2d(*x.torsions[:, k : k + 2].T, (cells, cells))[0] for x in (here, there)))
        for k in (0, 2)
    ]
    two = Quality(here, there, there, 1, 9, "phi/psi", names)
    assert two.torsion_divergence(here) == pytest.approx(np.mean(pairs))
    assert any(said.startswith("other torsions") for said in two.findings)
    (rows,) = [row for row in two.rows() if row[0] == "torsions, square root of it"]
    assert rows[1] == pytest.approx(np.sqrt(np.mean(pairs))) and rows[3] == pytest.approx(0)
