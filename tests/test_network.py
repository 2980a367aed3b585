"""The Gaussian network in time against chains of springs whose conditional mean and covariance are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_drawn import on_start, pasts

from egno_md.errors import DataError
from egno_md.forecast.drawn import apart, rigid_directions
from egno_md.forecast.forecasters import Known
from egno_md.forecast.network import (
    MODES,
    Conditional,
    ElasticNetwork,
    Given,
    Modes,
    Placed,
    Sample,
    _coefficients,
    _mean,
    _pairs,
    own_frame,
    terms,
)
from egno_md.forecast.rolling import Chained
from egno_md.molecule.geometry import aligned, superposed_rmsd

STEPS = np.arange(1, 5)
#: Variance of a mode of stiffness 1 in Angstrom squared, and the rate at which it relaxes, per stride.
HEAT, RATE = 2e-3, 0.4


def walk(n_atoms, seed=0):
    """A chain of atoms 3.8 Angstrom apart."""
    steps = np.random.default_rng(seed).normal(size=(n_atoms, 3))
    return np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)


def chain(n_frames, n_atoms=20, seed=0, rate=RATE):
    """Atoms on the springs of their network, in a bath: frames (F, N, 3), structure, modes, stiffness."""
    structure = walk(n_atoms)
    modes = Modes.of(structure)
    stiffness = np.exp(modes.stiffness[1:])  # without the motion as a whole
    rng = np.random.default_rng(seed)
    memory, size = np.exp(-rate * stiffness), np.sqrt(HEAT / stiffness)
    values = np.empty((n_frames, len(stiffness), 3))
    values[0] = rng.normal(size=values[0].shape)
    for k in range(1, n_frames):
        values[k] = memory[:, None] * values[k - 1] + np.sqrt(1 - memory**2)[:, None] * rng.normal(size=values[0].shape)
    return structure + modes.vectors[:, 1:] @ (size[:, None] * values), structure, modes, stiffness


def fluctuation(frames):
    """RMSF of frames (F, N, 3), mean over the atoms."""
    frames = aligned(frames, np.broadcast_to(frames[0], frames.shape))
    return np.sqrt(np.sum((frames - frames.mean(axis=0)) ** 2, axis=-1).mean())


def test_variogram_of_a_chain_of_springs_is_found():
    """Displacements after t have the covariance sum_a u_a u_a^T 2 (kT / k_a) (1 - exp(-k_a t))."""
    frames, structure, modes, stiffness = chain(6000)
    found = ElasticNetwork.fitted(Known([frames], tuple(STEPS)))
    past = pasts(frames, [3000], 1)
    drawn = on_start(found(past, STEPS, 20000, np.random.default_rng(0)), past[:, -1])[0]  # (K, T, N, 3)
    moves = drawn - on_start(past, past[:, -1])[:, 0]
    rigid = rigid_directions(past[0, -1] - past[0, -1].mean(axis=0))
    for k, step in enumerate(STEPS):
        gain = 2 * HEAT / stiffness * -np.expm1(-RATE * stiffness * step)  # (M,)
        exact = np.kron(modes.vectors[:, 1:] * gain @ modes.vectors[:, 1:].T, np.eye(3))  # (3 N, 3 N)
        inside = np.eye(len(exact)) - rigid @ rigid.T
        exact = inside @ exact @ inside
        seen = np.einsum("kd,ke->de", moves[:, k].reshape(20000, -1), moves[:, k].reshape(20000, -1)) / 20000
        # The modes of a start are not those of the structure it is displaced from: 0.1 to 0.28 over eight seeds.
        assert np.linalg.norm(seen - exact) < 0.35 * np.linalg.norm(exact), step
        np.testing.assert_allclose(np.trace(seen), np.trace(exact), rtol=0.2)


def test_with_a_long_past_a_relaxation_goes_back_to_its_mean():
    """With the mean known, it is the mean of a process of memory exp(-t / tau), and its variance that of the noise."""
    tau, times = 2.0, np.array([1.0, 2, 5])
    taus = np.array([tau, 50.0])
    amplitude = np.zeros((1, 5))
    amplitude[0, 0] = 2 * 0.3  # the variogram of a variance of 0.3
    found = Conditional.of(amplitude, taus, np.arange(-400.0, 0), times)
    memory = np.exp(-times / tau)
    level = 0.7  # of the mean over the start
    np.testing.assert_allclose(found.response[0] @ np.full(400, level), level * (1 - memory), atol=0.02)
    apart_, both = np.abs(times[:, None] - times), times[:, None] + times
    covariance = 0.3 * (np.exp(-apart_ / tau) - np.exp(-both / tau))
    np.testing.assert_allclose(found.factor[0] @ found.factor[0].T, covariance, atol=0.01)
    # Of a start alone nothing is known of the way ahead.
    alone = Conditional.of(amplitude, taus, np.zeros(0), times)
    unknown = 0.3 * (1 - memory[:, None] - memory + np.exp(-apart_ / tau))
    np.testing.assert_allclose(alone.factor[0] @ alone.factor[0].T, unknown, atol=1e-6)


def test_terms_begin_at_nothing_and_diffusion_has_no_end():
    found = terms([0.0, 1e-3, 1e6], np.array([1.0, 10.0]))
    assert not found[0].any() and found.shape == (3, 5)
    np.testing.assert_allclose(found[1, [0, 2]], [1e-3, 5e-7], rtol=1e-3)  # at once, and with a velocity
    np.testing.assert_allclose(found[2], [1, 1, 1, 1, 1e5])


def turned(past):
    rotation = Rotation.random(rng=np.random.default_rng(3)).as_matrix()
    return rotation, np.array([3.0, -40, 7])


@pytest.mark.parametrize("own", [True, False])
def test_draws_turn_with_the_start_and_know_nothing_of_their_batch(own, monkeypatch):
    frames = chain(400)[0]
    found = ElasticNetwork.fitted(Known([frames[:200]], tuple(STEPS)))
    if not own:
        found = dataclasses.replace(found, mean=frames[0] - frames[0].mean(axis=0))
    past = pasts(frames, [230, 300, 390])
    whole = found(past, STEPS, 5, np.random.default_rng(3))
    assert whole.shape == (3, 5, 4, 20, 3) and whole.std(axis=1).min() > 0
    generator = np.random.default_rng(3)
    alone = np.concatenate([found(past[k : k + 1], STEPS, 5, generator) for k in range(3)])
    np.testing.assert_allclose(alone, whole, atol=1e-9)
    rotation, shift = turned(past)
    there = found(past @ rotation + shift, STEPS, 5, np.random.default_rng(3))
    np.testing.assert_allclose(there, whole @ rotation + shift, atol=1e-5)
    monkeypatch.setattr("egno_md.forecast.drawn.CHUNK_NUMBERS", 1)
    np.testing.assert_allclose(found(past, STEPS, 5, np.random.default_rng(3)), whole, atol=1e-9)
    # Without the motion as a whole, every frame lies on its start as well as it can.
    still = dataclasses.replace(found, rigid=False)(past, STEPS, 5, np.random.default_rng(3)) - past[:, None, -1:]
    np.testing.assert_allclose(still.mean(axis=-2), still[:, :1].mean(axis=-2).repeat(5, axis=1), atol=1e-9)


def test_equally_stiff_modes_do_not_make_draws_arbitrary():
    """A ring has pairs of them: what a rotation does to the last digit must not choose between them."""
    angles = 2 * np.pi * np.arange(12) / 12
    ring = np.stack([5 * np.cos(angles), 5 * np.sin(angles), 0 * angles], axis=1)
    found = ElasticNetwork.fitted(Known([ring + np.random.default_rng(0).normal(scale=0.2, size=(300, 12, 3))], (1, 2)))
    past = ring[None, None] + np.random.default_rng(1).normal(scale=1e-9, size=(1, 3, 12, 3))
    rotation, shift = turned(past)
    here, there = (found(x, [1, 2], 3, np.random.default_rng(0)) for x in (past, past @ rotation + shift))
    np.testing.assert_allclose(there, here @ rotation + shift, atol=1e-5)


@pytest.mark.parametrize("n_atoms", [3, 4, 9])
def test_the_own_frame_turns_with_the_atoms(n_atoms):
    atoms = np.random.default_rng(n_atoms).normal(size=(5, n_atoms, 3))
    turn = Rotation.random(rng=np.random.default_rng(0)).as_matrix()
    np.testing.assert_allclose(own_frame(atoms @ turn.T + 7), turn @ own_frame(atoms), atol=1e-9)


@pytest.mark.parametrize("n_atoms", [1, 2, 3])
def test_few_atoms_have_a_frame_of_reference(n_atoms):
    atoms = np.arange(3.0 * n_atoms).reshape(1, n_atoms, 3)  # all on a line
    axes = own_frame(atoms)
    np.testing.assert_allclose(axes[0] @ axes[0].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes[0]) == pytest.approx(1)
    frames = atoms + np.random.default_rng(0).normal(scale=0.1, size=(60, n_atoms, 3))
    drawn = ElasticNetwork.fitted(Known([frames], (1, 2)))(frames[None, -4:], [1, 2], 2, np.random.default_rng(0))
    assert np.isfinite(drawn).all()


def test_modes_beyond_those_that_are_known_move_as_one(monkeypatch):
    frames = chain(600)[0]
    known = Known([frames[:500]], tuple(STEPS))
    whole = ElasticNetwork.fitted(known)
    past = pasts(frames, [520, 560])
    spread = whole(past, STEPS, 300, np.random.default_rng(0)).std(axis=1)
    monkeypatch.setattr("egno_md.forecast.network.MODES", 12)
    some = ElasticNetwork.fitted(known)(past, STEPS, 300, np.random.default_rng(0)).std(axis=1)
    assert MODES > 20
    np.testing.assert_allclose(some.mean(axis=(0, 2, 3)), spread.mean(axis=(0, 2, 3)), rtol=0.1)


def test_the_spread_of_paths_is_that_of_drawn_ones():
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(20, 4)))[0]  # (N, M)
    modes = Modes(vectors, np.zeros(4), 0.0, np.zeros((60, 0)))
    given = Given(modes, np.zeros((3, 20, 3)), 0.7, rng.normal(size=(4, 3, 3)), rng.normal(size=(3, 3)))
    drawn = np.stack([given.path(numbers) for numbers in rng.standard_normal((4000, 3, 20, 3))])
    np.testing.assert_allclose(drawn.std(axis=(0, 3)), given.spread, rtol=0.05)


def test_one_network_knows_every_spacing():
    """Fitted to frames 0.5 apart it tells what frames 2 apart do, and a past that is closer or further away."""
    frames = chain(8000, rate=RATE / 2)[0]
    found = ElasticNetwork.fit([Sample([frames], 0.5)], np.geomspace(0.5, 32, 13))
    starts = np.arange(200, 7800, 200)
    for every in (1, 4):
        past = frames[starts[:, None] + np.arange(-7, 1) * every]
        true = frames[starts[:, None] + STEPS * every]
        drawn = dataclasses.replace(found, stride=0.5 * every)(past, STEPS, 16, np.random.default_rng(0))
        shape, really = on_start(drawn, past[:, -1]), on_start(true, past[:, -1])
        error = np.sqrt(np.mean((shape.mean(axis=1) - really) ** 2, axis=(0, 2, 3)) * 16 / 17)
        np.testing.assert_allclose(np.sqrt(shape.var(axis=1, ddof=1).mean(axis=(0, 2, 3))) / error, 1, atol=0.12)
        still = np.sqrt(np.mean((on_start(past[:, -1:], past[:, -1]) - really) ** 2, axis=(0, 2, 3)))
        assert (error < 0.95 * still).all()


def test_it_is_as_wide_as_known_runs_move_and_not_as_a_start_has_moved():
    """The past of a start in a chain is what was drawn: were it as wide, it would come to rest or fly apart."""
    frames, structure = chain(900)[:2]
    found = ElasticNetwork.fitted(Known([frames[:600]], tuple(STEPS)))
    assert found.scale == 1
    np.testing.assert_allclose(found.scaled(Known([frames[600:]], tuple(STEPS))).scale, 1, atol=0.05)
    wider = found.scaled(Known([structure + 2 * (frames[600:] - structure)], tuple(STEPS)))
    np.testing.assert_allclose(wider.scale, 2, atol=0.1)
    assert found.scaled(Known([frames[:1]], tuple(STEPS))).scale == 1  # which tells nothing
    starts = [650, 750, 850]

    def spread(network, factor):
        network = dataclasses.replace(network, rigid=False)
        past = structure + factor * (pasts(frames, starts) - structure)
        return network(past, STEPS, 64, np.random.default_rng(0)).std(axis=1).mean()

    np.testing.assert_allclose(spread(found, 2) / spread(found, 1), 1, atol=0.1)
    np.testing.assert_allclose(spread(wider, 1) / spread(found, 1), wider.scale, rtol=0.02)


def test_some_twenty_pasts_of_the_run_tell_how_wide_it_is():
    frames, structure = chain(21 * 16)[:2]
    pasts_ = np.split(frames, 21)
    found = ElasticNetwork.fitted(Known([frames], tuple(STEPS)))
    expected = found.scaled(Known(pasts_[::2], tuple(STEPS))).scale
    wild = [structure + (3 if k % 2 else 1) * (x - structure) for k, x in enumerate(pasts_)]
    assert found.scaled(Known(wild, tuple(STEPS))).scale == pytest.approx(expected)  # every other one of 21
    assert found.scaled(Known(wild[:20], tuple(STEPS))).scale > 1.5  # all of 20
    assert found.scaled(Known([np.concatenate(wild)], tuple(STEPS))).scale == pytest.approx(expected)
    thrice = [np.repeat(x, 3, axis=0) for x in pasts_[:20]]
    assert found.scaled(Known(thrice, tuple(STEPS), 3)).scale == pytest.approx(
        found.scaled(Known(pasts_[:20], tuple(STEPS))).scale
    )


@pytest.mark.parametrize("large", [False, True])
def test_a_chain_of_it_moves_on_as_the_run_did(large, monkeypatch):
    frames = chain(900)[0].astype(np.float64)
    if large:
        monkeypatch.setattr("egno_md.forecast.network.OWN_NETWORK", 10)
    found = ElasticNetwork.fitted(Known([frames], tuple(STEPS)))
    assert (found.mean is not None) == large
    path = Chained(found, STEPS)(pasts(frames, [800]), np.arange(1, 401), 1, np.random.default_rng(0))[0, 0]

    def moved(x):
        return np.median(superposed_rmsd(x[1:], x[:-1]))

    for part in (path[:100], path[-100:]):
        np.testing.assert_allclose(moved(part) / moved(frames), 1, atol=0.15)
    np.testing.assert_allclose(fluctuation(path[-200:]) / fluctuation(frames[:200]), 1, atol=0.35)


def test_motion_as_a_whole_is_that_of_the_runs():
    rng = np.random.default_rng(2)
    frames = chain(3000)[0]
    turn = Rotation.from_rotvec(0.03 * np.cumsum(rng.normal(size=(3000, 3)), axis=0)).as_matrix()
    frames = (frames - frames.mean(axis=1, keepdims=True)) @ turn + 0.2 * np.cumsum(rng.normal(size=(3000, 1, 3)), 0)
    found = ElasticNetwork.fitted(Known([frames], tuple(STEPS)))
    past = pasts(frames, [2000])
    drawn = found(past, STEPS, 2000, np.random.default_rng(0))
    motion = apart(drawn[0].reshape(1, -1, 20, 3), past[:, -1])[1].reshape(2000, 4, 2, 3)
    np.testing.assert_allclose(motion[:, :, 0].std(axis=0).mean(axis=-1), 0.03 * np.sqrt(STEPS), rtol=0.2)
    centre = drawn[0].mean(axis=-2) - past[0, -1].mean(axis=0)
    np.testing.assert_allclose(centre.std(axis=0).mean(axis=-1), 0.2 * np.sqrt(STEPS), rtol=0.2)


def test_too_few_frames_are_said():
    with pytest.raises(DataError, match="needs at least 10 pairs of frames 1 apart, found 4"):
        ElasticNetwork.fitted(Known([chain(5)[0]], (1, 2)))
    many = np.random.default_rng(0).normal(size=(20, 3001, 3))
    with pytest.raises(DataError, match="at most 3000 atoms, found 3001: select fewer"):
        ElasticNetwork.fitted(Known([many], (1, 2)))
    few = ElasticNetwork.fitted(Known([chain(12)[0]], tuple(STEPS)))  # for longer lags than are there many times
    assert np.isfinite(few(chain(12)[0][None], STEPS, 2, np.random.default_rng(0))).all()


def test_numbers_survive_a_checkpoint():
    frames = chain(300)[0]
    found = ElasticNetwork.fitted(Known([frames], tuple(STEPS)))
    arrays = found.arrays()
    assert sum(x.nbytes for x in arrays.values()) < 3000
    again = ElasticNetwork.of_arrays(arrays)
    past = pasts(frames, [100])
    drawn = [net(past, STEPS, 2, np.random.default_rng(0)) for net in (found, again)]
    np.testing.assert_allclose(*drawn, atol=1e-4)


def test_with_the_end_known_diffusion_is_a_bridge():
    """Straight to the end, with the variance of a walk between two places, whatever came before."""
    taus, times = np.array([1.0, 50.0]), np.array([1.0, 2, 3, 4])
    network = ElasticNetwork(taus, np.zeros(2), np.eye(5)[[4, 4]], np.zeros((2, 5)), np.array([1.0, 4.0]))
    found = network.conditional(2, times, ended=True)[0]
    np.testing.assert_allclose(found.response[0] @ [5.0, -3.0, 1.0], [0.25, 0.5, 0.75], atol=1e-6)
    between = 0.02 * np.minimum.outer([1, 2, 3], [1, 2, 3]) - 0.02 * np.outer([1, 2, 3], [1, 2, 3]) / 4
    np.testing.assert_allclose(found.factor[0] @ found.factor[0].T, between, atol=1e-6)


def variogram(lag, coefficients, taus):
    """The sum at the top of the module, of one lag."""
    t, n = abs(lag), len(taus)
    parts = [1 - np.exp(-t / tau) for tau in taus] + [1 - (1 + t / tau) * np.exp(-t / tau) for tau in taus]
    return float(np.dot(coefficients, [*parts, t / taus[-1]])) if n else 0.0


def given_by_hand(coefficients, taus, past, times):
    """Response to the past, covariance of what is left, and covariance of the past."""
    every = np.concatenate([past, times])
    g = lambda t: variogram(t, coefficients, taus)  # noqa: E731
    whole = np.array([[(g(t) + g(s) - g(t - s)) / 2 for s in every] for t in every])
    n = len(past)
    response = whole[n:, :n] @ np.linalg.inv(whole[:n, :n])
    return response, whole[n:, n:] - response @ whole[:n, n:], whole[:n, :n]


def test_what_follows_is_a_gaussian_process_given_what_came_before():
    taus, past, times = np.array([0.7, 3.0]), np.array([-3.0, -1.5, -0.5]), np.array([0.5, 2.0])
    some = np.random.default_rng(0).random((3, 5))
    found = Conditional.of(some, taus, past, times)
    for k, coefficients in enumerate(some):
        response, left, before = given_by_hand(coefficients, taus, past, times)
        np.testing.assert_allclose(found.response[k], response, atol=1e-5)
        np.testing.assert_allclose(found.factor[k] @ found.factor[k].T, left, atol=1e-6)
        np.testing.assert_allclose(found.white[k] @ before @ found.white[k].T, np.eye(3), atol=1e-5)
        assert not np.triu(found.factor[k], 1).any()
    # Between two of them lies what lies between; there is nothing beyond the last.
    between = found.at(np.array([0.0, 0.25, 1.5, 2.0]))
    for part, of in zip(between, found, strict=True):
        expected = [of[0], 0.75 * of[0] + 0.25 * of[1], (of[1] + of[2]) / 2, of[2]]
        np.testing.assert_allclose(part, expected, atol=1e-12)


def test_springs_weaken_with_the_fourth_power_of_their_length():
    assert np.exp(Modes.of(np.array([[0.0, 0, 0], [0, 10, 0]])).stiffness[1]) == pytest.approx(2 / 16)
    assert np.exp(Modes.of(np.array([[0.0, 0, 0], [0.1, 0, 0]])).stiffness[1]) == pytest.approx(2 * 10**4)
    # Three atoms on a line, 5 and 10 Angstrom apart: springs of 1, 1/16 and 1/81.
    line = Modes.of(np.array([[0.0, 0, 0], [5, 0, 0], [15, 0, 0]]))
    near, far, whole = 1.0, 1 / 16, 1 / 81
    matrix = np.array([[near + whole, -near, -whole], [-near, near + far, -far], [-whole, -far, far + whole]])
    np.testing.assert_allclose(np.exp(line.stiffness[1:]), np.linalg.eigvalsh(matrix)[1:])
    np.testing.assert_allclose(line.vectors @ np.diag([0, *np.exp(line.stiffness[1:])]) @ line.vectors.T, matrix,
                               atol=1e-12)  # fmt: skip
    assert line.rest is None


def test_modes_that_are_not_known_one_by_one_have_their_mean_stiffness(monkeypatch):
    positions = walk(9)
    whole = Modes.of(positions)
    monkeypatch.setattr("egno_md.forecast.network.MODES", 4)
    some = Modes.of(positions)
    np.testing.assert_allclose(some.stiffness[1:], whole.stiffness[1:4])
    assert some.vectors.shape == (9, 4)
    assert some.rest == pytest.approx(np.log(np.mean(np.exp(whole.stiffness[4:]))))
    # What is the same in all modes and beyond is done to every atom, whichever modes are known.
    values, matrix = np.random.default_rng(0).normal(size=(2, 5, 9, 3)), np.random.default_rng(1).normal(size=(3, 5))
    for modes in (whole, some):
        found = modes.apply(np.broadcast_to(matrix, (modes.vectors.shape[1], 3, 5)), matrix, values)
        np.testing.assert_allclose(found, np.einsum("tp,cpnx->ctnx", matrix, values), atol=1e-12)
    # What is in the known modes alone is left to these.
    inside = some.vectors @ np.random.default_rng(2).normal(size=(5, 4, 3))
    np.testing.assert_allclose(some.apply(np.zeros((4, 3, 5)), matrix, inside), 0, atol=1e-12)


@pytest.mark.parametrize("beyond", [False, True])
def test_a_start_moves_in_every_mode_as_its_stiffness_says(beyond, monkeypatch):
    """Three atoms, whose two stiffnesses are the ends of the grid; what is beyond the modes, where they are not all
    known, is of the last of them."""
    if beyond:
        monkeypatch.setattr("egno_md.forecast.network.MODES", 2)
    rng = np.random.default_rng(0)
    positions, taus = 4 * rng.normal(size=(3, 3)), np.array([0.7, 3.0])
    squares = np.sum((positions[:, None] - positions) ** 2, axis=-1) + 1e9 * np.eye(3)
    springs = (25 / squares) ** 2
    stiffness, vectors = np.linalg.eigh(np.diag(springs.sum(axis=1)) - springs)
    amplitude = rng.random((2, 5))
    network = ElasticNetwork(taus, np.log(stiffness[1:]), amplitude, np.zeros((2, 5)), np.array([1.0, 4.0]), stride=0.5)
    grid = network.conditional(2, [1, 3])[0]
    run = np.concatenate([positions + rng.normal(size=(2, 3, 3)), positions[None]])
    before = Placed.of(run[None], 2 + 1).before[0]
    found = network.given(Modes.of(positions), before, grid)
    mean, spread, squares = np.zeros((2, 3, 3)), np.zeros((2, 3)), []
    for k, which in enumerate((0, 0, 1)):  # the motion as a whole is softer than all, and moves like the softest
        mode = np.einsum("n,pnx->px", vectors[:, k], before)
        coefficients = amplitude[which] / stiffness[1 + which]
        response, left, past = given_by_hand(coefficients, taus, np.array([-1.0, -0.5]), np.array([0.5, 1.5]))
        mean += vectors[:, k][:, None] * (response @ mode)[:, None]
        spread += np.diag(left)[:, None] * vectors[:, k] ** 2
        squares.append(np.sum(mode * np.linalg.solve(past, mode)))
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.spread, np.sqrt(spread), rtol=1e-5)
    scaled = network.scaled(Known([run], (1, 3)))
    scale = (60 + sum(squares)) / (60 + before.size)
    np.testing.assert_allclose(scaled.scale, np.sqrt(scale), rtol=1e-5)
    wider = scaled.given(Modes.of(positions), before, grid)
    np.testing.assert_allclose(wider.spread, np.sqrt(scale * spread), rtol=1e-5)
    np.testing.assert_allclose(wider.mean, mean, atol=1e-5)


def test_motion_as_a_whole_is_smaller_the_larger_the_molecule():
    start = np.array([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])  # 4 atoms, mean square 5
    whole = Conditional(np.array([[[2.0, 1]], [[3, 1]]]), np.array([np.eye(2), 2 * np.eye(2)]), np.zeros((2, 2, 2)))
    numbers = np.random.default_rng(0).normal(size=(2, 2, 3))
    found = ElasticNetwork.turned(None, start, whole, numbers)
    np.testing.assert_allclose(found[:, :3], numbers[0] / np.sqrt(20))
    np.testing.assert_allclose(found[:, 3:], 2 * numbers[1] / np.sqrt(4))
    drift = np.arange(12.0).reshape(1, 2, 6)
    placed = Placed(np.eye(3)[None], np.zeros((1, 1, 3)), start[None], np.zeros((1, 2, 4, 3)), drift)
    mean = ElasticNetwork.drift(None, placed, whole)
    assert mean.shape == (1, 1, 6)
    np.testing.assert_allclose(mean[0, 0, :3], 2 * drift[0, 0, :3] + drift[0, 1, :3])
    np.testing.assert_allclose(mean[0, 0, 3:], 3 * drift[0, 0, 3:] + drift[0, 1, 3:])


def test_pairs_of_frames_are_those_that_the_runs_have():
    runs = [np.random.default_rng(k).normal(size=(n, 5, 3)) for k, n in enumerate((6, 3, 1))]
    lags = np.array([0.5, 1.0, 1.3, 2.0])
    there = [[0, 1, 3], [0, 1, 3], [0, 1], [0, 1], [0]]
    found = list(_pairs(Sample(runs, 0.5), lags, None))
    assert [which.tolist() for *_, which in found] == [*there, [0, 1], [0]]
    for (placed, later, which), (run, first) in zip(found, [(0, f) for f in range(5)] + [(1, 0), (1, 1)], strict=True):
        np.testing.assert_allclose(placed.back(placed.start)[0], runs[run][first], atol=1e-12)
        true = runs[run][first + np.array([1, 2, 0, 4])[which]]
        np.testing.assert_allclose(placed.back(later[None])[0], true, atol=1e-12)
    # Of many starts some, from the first to the last, and of a run whose frames are further apart than any lag none.
    many = list(_pairs(Sample([np.random.default_rng(0).normal(size=(200, 4, 3))], 1.0), np.array([1.0]), None))
    assert len(many) == 60
    assert not list(_pairs(Sample(runs, 3.0), lags, None))
    # Where a stride is several frames, what has no frame a stride later is no start.
    assert [which.tolist() for *_, which in _pairs(Sample(runs, 0.25), np.array([1.0]), None)] == [[0], [0]]
    with pytest.raises(DataError, match="at least 10 pairs of frames 1 apart, found 8"):
        ElasticNetwork.fit([Sample([walk(5) + np.zeros((18, 1, 1))], 0.1)], [1.0, 1.5])
    with pytest.raises(DataError, match="at least 10 pairs of frames 1.5 apart, found 0"):
        ElasticNetwork.fit([Sample([walk(5) + np.zeros((18, 1, 1))], 1.0)], [1.5])


@pytest.mark.parametrize("known", [False, True])
def test_a_fit_is_the_mean_of_squares_in_bins_of_stiffness(known):
    """Of each mode, times its stiffness; and of the motion as a whole, times what makes it that of one atom."""
    frames, structure = chain(40)[:2]
    lags = np.array([1.0, 2, 5, 100])  # the run is shorter than the last
    mean = structure - structure.mean(axis=0) if known else None
    sample = Sample([frames], 1.0)
    found = ElasticNetwork.fit([sample], lags, mean)
    stiffness, squares, whole = [], [], []
    for placed, later, there in _pairs(sample, lags, mean):
        start = placed.start[0]
        shape, motion = apart(later[None], placed.start)
        modes = Modes.of(start if mean is None else mean)
        inside = np.einsum("nm,lnx->lmx", modes.vectors, shape[0] - start)
        row, turns = np.full((19, 4), np.nan), np.full((4, 2), np.nan)
        row[:, there] = np.mean(inside[:, 1:] ** 2, axis=-1).T * np.exp(modes.stiffness[1:])[:, None]
        turns[there, 0] = 20 * np.mean(np.sum(start**2, axis=1)) * np.mean(motion[0, :, :3] ** 2, axis=1)
        turns[there, 1] = 20 * np.mean(motion[0, :, 3:] ** 2, axis=1)
        stiffness, squares, whole = [*stiffness, *modes.stiffness[1:]], [*squares, *row], [*whole, turns]
    taus = np.geomspace(0.25, 20, 12)
    np.testing.assert_allclose(found.taus, taus)
    np.testing.assert_array_equal(found.span, [1, 5])
    order = np.argsort(stiffness, kind="stable")
    bins = np.array_split(order, 8)
    each = [np.array(stiffness)[b].mean() for b in bins]
    np.testing.assert_allclose(found.knots, [min(stiffness), *each, max(stiffness)])
    expected = [_coefficients(lags, _mean(np.array(squares)[b]), taus) for b in bins]
    np.testing.assert_allclose(found.amplitude, [expected[0], *expected, expected[-1]], rtol=1e-6, atol=1e-9)
    expected = [_coefficients(lags, column, taus) for column in _mean(np.array(whole)).T]
    np.testing.assert_allclose(found.turning, expected, rtol=1e-6, atol=1e-9)


def test_means_are_over_what_is_known():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    np.testing.assert_array_equal(_mean(values), [2.0, 5.0, np.nan])


def test_coefficients_are_those_of_the_variogram():
    taus, lags = np.array([0.5, 2.0, 9.0]), np.geomspace(0.5, 16, 12)
    true = np.array([0.0, 2, 0, 0.5, 0, 0, 0.3])
    squares = terms(lags, taus) @ true
    squares[3] = np.nan
    np.testing.assert_allclose(_coefficients(lags, squares, taus), true, atol=1e-6)
    assert not _coefficients(lags, np.full(12, np.nan), taus).any() and len(_coefficients(lags, 0 * lags, taus)) == 7


def test_sixteen_frames_of_past_are_read():
    frames = chain(60)[0]
    found = ElasticNetwork.fitted(Known([frames], (1, 2)))
    sixteen, more, fewer = (found(pasts(frames, [50], n), [1, 2])[0, 0] for n in (16, 17, 15))
    np.testing.assert_array_equal(more, sixteen)
    assert np.abs(fewer - sixteen).max() > 1e-6 and found.n_past == 16


@pytest.mark.parametrize(("n_atoms", "shared"), [(100, False), (101, True)])
def test_of_more_than_a_hundred_atoms_every_start_has_the_network_of_the_mean_structure(n_atoms, shared):
    frames = walk(n_atoms) + np.random.default_rng(0).normal(scale=0.1, size=(12, n_atoms, 3))
    found = ElasticNetwork.fitted(Known([frames], (1,)))
    assert (found.mean is not None) == shared


def test_what_is_kept_of_a_network_is_its_own():
    found = ElasticNetwork.fitted(Known([chain(40)[0]], (1, 2)))
    found.conditional(1, [1, 2])
    assert "_conditionals" not in repr(found) and (found.stride, found.scale, found.rigid) == (1, 1, True)
    assert not dataclasses.replace(found, stride=2.0)._conditionals  # which hold for one stride
    once, again = found.conditional(1, [1, 2])[0], found.conditional(1, [1, 2], 1.0)[0]
    np.testing.assert_array_equal(once.factor, again.factor)
    assert np.abs(found.conditional(1, [1, 2], 1.5)[0].factor - once.factor).max() > 1e-6
