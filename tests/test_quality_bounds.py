"""Bounds of what is said of long chains, the slow motions of a run, and the frames that are looked at for it."""

from __future__ import annotations

import dataclasses

import MDAnalysis as mda
import numpy as np
import pytest
from conftest import make_model
from test_quality import an_ensemble, breathing, chain_builder

from egno_md.evaluation.quality import Quality, _Describe, _mean_correlation, quality
from egno_md.evaluation.slow import SlowComponents
from egno_md.evaluation.statistics import jensen_shannon, relaxation_time
from egno_md.graph.builder import GraphBuilder


def walk(n, d, seed=0):
    return np.cumsum(np.random.default_rng(seed).normal(size=(n, d)), axis=0)


def test_two_components_with_twelve_cells_and_ends_at_a_fifth_of_the_run():
    x = walk(400, 4)
    found = SlowComponents.fit([x], 3)
    values = found(x)
    assert values.shape == (400, 2)
    for edges, column in zip(found.edges, values.T, strict=True):
        np.testing.assert_allclose(edges, np.linspace(column.min(), column.max(), 13))
    np.testing.assert_allclose(found.ends, np.quantile(values[:, 0], [0.2, 0.8]))
    # Where the largest number of a component stands it is above 0, which way a run points being arbitrary.
    assert (np.take_along_axis(found.weights, np.abs(found.weights).argmax(axis=0)[None], 0) > 0).all()


@pytest.mark.parametrize(("n", "count"), [(19, 0), (20, 1), (39, 1), (40, 2), (59, 2), (60, 2)])
def test_a_direction_needs_twenty_pairs_of_frames(n, count):
    for lag in (1, 4):
        found = SlowComponents.fit([walk(n + lag, 3)], lag)
        assert (0 if found is None else found.weights.shape[1]) == count
        parts = [walk(n // 2 + lag, 3), walk(n - n // 2 + lag, 3, 1), walk(lag, 3, 2)]  # the last has no pair
        found = SlowComponents.fit(parts, lag)
        assert (0 if found is None else found.weights.shape[1]) == count


def test_components_are_made_of_the_twenty_leading_directions():
    x = np.random.default_rng(0).normal(size=(700, 24)) * np.linspace(2, 1, 24)
    weights = SlowComponents.fit([x], 1).weights
    basis = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2]
    along = np.linalg.norm(basis @ weights, axis=1)
    assert along[:20].min() > 1e-3 and along[20:].max() < 1e-9


def test_what_does_not_move_has_no_slow_motion():
    x = walk(200, 2)
    still = np.column_stack([x, 1e-9 * x[:, 0], np.zeros(200)])
    assert SlowComponents.fit([still], 1).weights.shape == (4, 2)
    assert SlowComponents.fit([np.column_stack([x[:, 0], np.zeros(200)])], 1).weights.shape == (2, 1)
    assert SlowComponents.fit([1e-12 * x], 1) is None and SlowComponents.fit([1e-3 * x], 1) is not None


def test_five_passages_tell_of_their_time():
    axis = SlowComponents(np.zeros(1), np.eye(1), (np.linspace(-1, 2, 13),), (0.0, 1.0))

    def times(*path):
        return axis.passages([np.array(path, float)[:, None]]).tolist()

    up, down, between = -1.0, 2.0, 0.5
    assert times(*[up, up, down] * 5)[0] == 2.0 and np.isnan(times(*[up, up, down] * 5)[1])  # ten frames, five times
    assert times(*[up, up, down] * 6) == [2.4 - 0.4, 6 / 5]
    assert np.isnan(times(*[up, down] * 4)).all()
    # What lies between belongs to the end that was visited last, and what comes before any end to none.
    assert times(between, *[up, between, down, between] * 6) == [2.0, 12 / 5]
    # The ends themselves are on the way.
    assert np.isnan(times(*[0.0, 1.0] * 9)).all()


def judged(chains, floor, **kind):
    run = dataclasses.replace(an_ensemble(), **kind["run"])
    three = (dataclasses.replace(run, **chains), run, dataclasses.replace(run, **floor))
    names = ("a-b",) if "torsions" in chains else ()
    return Quality(*three, 1, 9, "virtual" if names else "", names, slow=kind.get("slow")).findings


@pytest.mark.parametrize("kind", ["torsions", "motions"])
def test_other_torsions_and_slow_motions_are_beyond_a_bound_and_twice_the_floor(kind):
    """Shares of one of two cells: their divergence is known, and goes from nothing to ln 2."""
    axis = SlowComponents(np.zeros(1), np.eye(1), (np.linspace(-np.pi, np.pi, 13),), (-1.0, 1.0))
    seen, what = set(), "torsions" if kind == "torsions" else "slow"

    def frames(there):
        return {what: np.r_[np.full(400 - there, -1.5), np.full(there, 1.5)][:, None]}

    for other_half in (0, 40, 80):
        floor = jensen_shannon([400, 0], [400 - other_half, other_half])
        for there in range(0, 200, 4):
            divergence = jensen_shannon([400, 0], [400 - there, there])
            said = judged(frames(there), frames(other_half), run=frames(0), slow=axis if what == "slow" else None)
            word = "other torsions" if what == "torsions" else "other slow motions"
            far = divergence > max(0.05, 2 * floor)
            assert [finding.startswith(word) for finding in said] == [True] * far, (there, other_half)
            seen.add((other_half, far, bool(0.05 < divergence < 0.075)))
    assert {(0, True, True), (0, False, False), (40, False, True), (80, True, False)} <= seen


def test_rows_name_what_they_show():
    within = dict(passages=(2.0, 5.0), slow_spread=3.0, slow_relaxation=7.0, drift=0.25, left=0.125, relaxation=11.0)
    one = dataclasses.replace(
        an_ensemble(**within), bond_range=(1.25, 2.5), bonds=np.array([1.5, 2.0]), bonds_off=0.0625,
        clashes=0.03, mirrored=0.04, relaxation=13.0, radius_relaxation=17.0,
    )  # fmt: skip
    slow = SlowComponents(np.zeros(1), np.eye(1), (np.linspace(-1, 2, 13),), (0.0, 1.0))
    found = Quality(one, one, one, 1, 9, "virtual", ("a", "b"), slow=slow)
    rows = {name: values for name, *values in found.rows()}
    for name, value in {
        "bond length, mean (A)": 1.75, "bond length, shortest (A)": 1.25, "bond length, longest (A)": 2.5,
        "bonds off by 0.05 A, share": 0.0625, "frames with a clash, share": 0.03, "mirrored frames, share": 0.04,
        "radius of gyration, mean (A)": 4.5, "radius of gyration, spread (A)": 0.5,
        "radius of gyration, drift in a chain (A)": 0.25, "last radii outside of the run's, share": 0.125,
        "slowest motion, spread in a chain": 3.0, "slowest motion, memory in a chain (ps)": 7.0,
        "slowest motion, first passage up (ps)": 2.0, "slowest motion, first passage down (ps)": 5.0,
        "memory of the motion in a chain (ps)": 11.0, "memory of the internal motion (ps)": 13.0,
        "memory of the radius (ps)": 17.0,
    }.items():  # fmt: skip
        assert rows[name] == [value] * 3, name
    bare = dataclasses.replace(one, bonds=np.zeros(0))
    without = {row[0] for row in Quality(bare, bare, bare, 1, 9, "", ()).rows()}
    assert not any("bond" in name or "torsion" in name or "slow" in name for name in without) and len(without) == 13


def describing(length=8, **other):
    structure, size = breathing([1.0])[1:]
    lengths = np.linalg.norm(np.diff(structure, axis=0), axis=1)
    usual = (chain_builder(), structure, structure, lengths, np.zeros((0, 4), int), 1.0, length, [], (0.0, 9 * size))
    return dataclasses.replace(_Describe(*usual), **other), structure


@pytest.mark.parametrize(("n", "share"), [(500, 0.5), (501, 0.0), (1000, 0.0), (1001, 167 / 334)])
def test_of_more_than_five_hundred_frames_some_are_checked(n, share):
    """Every second frame has two atoms in one place; every second one, or every third, is looked at of more."""
    describe, structure = describing()
    frames = np.repeat(structure[None], n, axis=0)
    frames[1::2, 0] = frames[1::2, 9]
    assert describe([frames]).clashes == pytest.approx(share)


def test_drift_is_from_the_first_quarter_to_the_last():
    for length, quarter in ((12, 3), (11, 2), (3, 1)):
        factors = 1 + 0.01 * np.arange(length) ** 2
        describe, structure = describing(length)
        size = np.sqrt(np.mean(np.sum(structure**2, axis=1)))
        found = describe([breathing(factors)[0]]).within
        assert found.drift == pytest.approx(size * (factors[-quarter:].mean() - factors[:quarter].mean()))


@pytest.mark.parametrize(("length", "memory", "lag"), [(100, 0.9, None), (30, 0.9, 3), (9, 0.9, 1), (400, 0.0, 1)])
def test_the_lag_of_slow_motions_is_the_memory_up_to_a_tenth_of_a_piece(length, memory, lag):
    rng = np.random.default_rng(0)
    factors = np.ones(600)
    for k in range(1, 600):
        factors[k] = 1 + memory * (factors[k - 1] - 1) + 0.01 * rng.normal()
    describe, structure = describing(length)
    frames = breathing(factors)[0]
    own = factors - factors.mean()
    if lag is None:
        products = np.array([np.mean((factors - 1)[k:] * (factors - 1)[: 600 - k]) for k in range(301)])
        lag = round(relaxation_time(products / products[0]))
        assert 1 < lag <= 10
    expected = SlowComponents.fit([(frames - structure).reshape(600, -1)], lag)
    found = describe.slowest([frames])
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-6, atol=1e-9)
    assert abs(np.corrcoef(found((frames - structure).reshape(600, -1))[:, 0], own)[0, 1]) > 0.99


def test_a_piece_is_as_long_as_the_shortest_of_the_longest():
    run = np.concatenate([breathing(1 + 0.02 * np.sin(np.arange(40)))[0]])
    builder = chain_builder()
    for lengths, expected in (((5, 9), 9), ((50, 3), 20), ((20, 20), 20)):
        found = quality(builder, [np.resize(run, (n, 10, 3)) for n in lengths], [run], 1.0)
        assert found.chains.within.length == found.run.within.length == expected
        assert (found.chain_length, found.n_chains) == (max(lengths), 2)
    # The first half is that of all frames, rounded down, wherever the parts of the run end.
    odd = quality(builder, [run[:5]], [run[:11], run[11:31]], 1.0)
    assert (odd.run.n_frames, odd.floor.n_frames) == (15, 4)


@pytest.mark.parametrize(("off", "left"), [(0.8e-3, 0.0), (1.3e-3, 1.0)])
def test_radii_that_a_run_never_has_are_beyond_rounding(off, left):
    describe, structure = describing()
    size = np.sqrt(np.mean(np.sum(structure**2, axis=1)))
    for radius, limits in ((size + off, (0.0, size)), (size - off, (size, 9 * size))):
        frames = breathing(np.full(8, radius / size))[0]
        assert dataclasses.replace(describe, radii=limits)([frames]).within.left == left


def test_parts_of_half_the_longest_count_in_a_correlation():
    rng = np.random.default_rng(0)
    for lengths, lags in (((8, 4), 3), ((8, 3), 5), ((2, 2), 2), ((9, 4), 3), ((3, 1), 2)):
        assert len(_mean_correlation([rng.normal(size=(n, 2)) for n in lengths])) == lags


def test_a_centre_that_is_turned_over_is_a_mirror_image():
    u = mda.Universe.empty(5, n_residues=1, atom_resindex=[0] * 5, trajectory=True)
    for name, values in (("names", list("CNOFS")), ("elements", list("CNOFS")), ("resnames", ["LIG"])):
        u.add_TopologyAttr(name, values)
    u.add_TopologyAttr("bonds", [(0, k) for k in range(1, 5)])
    structure = np.array([[0.0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    describe = _Describe(
        GraphBuilder(u.atoms, make_model().graph), structure, structure, np.full(4, 3**0.5), np.zeros((0, 4), int), 1.0,
        4, [], (0.0, 9.0),
    )  # fmt: skip
    frames = np.repeat(structure[None], 8, axis=0)
    assert describe([frames]).mirrored == 0.0
    frames[1:4] *= [1, 1, -1]
    assert describe([frames]).mirrored == 3 / 8


def test_of_frames_that_stand_alone_the_structure_is_that_of_all():
    run = breathing(1 + 0.02 * np.sin(np.arange(8)))[0]
    found = quality(chain_builder(), [run[:3]], [run[k : k + 1] for k in range(8)], 1.0)
    assert (found.run.n_frames, found.run.within.length) == (4, 1)
    whole = quality(chain_builder(), [run[:3]], [run], 1.0)
    np.testing.assert_allclose(found.run.rmsf, whole.run.rmsf, rtol=1e-6)
