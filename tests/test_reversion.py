"""Long chains keep to the run: a random walk becomes an autoregression of the run's own variance."""

from __future__ import annotations

from itertools import islice

import MDAnalysis as mda
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial.transform import Rotation
from test_flow import flow_model, run_of

from egno_md import EGNOSurrogate, sample
from egno_md.cli import main
from egno_md.evaluation import evaluate
from egno_md.forecast.chain import Chained, ModelForecaster, Restored, roll
from egno_md.forecast.forecasters import Known, linear
from egno_md.forecast.network import ElasticNetwork
from egno_md.forecast.reversion import BESIDE, MeanReversion, _bodies, _given, _like_those_beside, _principal
from egno_md.forecast.rolling import OneByOne
from egno_md.forecast.streams import Streams, each_of
from egno_md.molecule.geometry import aligned, superposed_rmsd, superposition, upright
from egno_md.propagator import surrogate_simulation

TIMES = np.arange(1, 5)
WINDOW = len(TIMES)
SIGMA, STEP = 0.5, 0.05
STRUCTURE = np.random.default_rng(9).normal(scale=6, size=(20, 3))

#: Windows that go on as they are before they are brought back.
REVERTING = 4


class Walk:
    """Every coordinate walks at random, whatever the molecule comes back to."""

    name, n_past, draws = "walk", 1, True

    def __init__(self, step=STEP):
        self.step = step

    def __call__(self, past, times, samples=1, generator=None):
        size = samples, len(np.asarray(times)), *past.shape[2:]
        steps = self.step * np.stack([own.standard_normal(size) for own in each_of(generator, len(past))])
        return past[:, -1][:, None, None] + np.cumsum(steps, axis=2)


def run_of_noise(n_frames=400, seed=0):
    """Independent frames about a structure."""
    return STRUCTURE + np.random.default_rng(seed).normal(scale=SIGMA, size=(n_frames, *STRUCTURE.shape))


@pytest.fixture(scope="module")
def run():
    return run_of_noise()


@pytest.fixture(scope="module")
def reversion(run):
    return MeanReversion.fit(Walk(), Known([run]), TIMES, 1)


def variance(frames, mean):
    """Mean square displacement from the mean structure in each internal direction."""
    n = len(mean)
    return np.mean((aligned(frames, mean) - mean) ** 2) * 3 * n / (3 * n - 6)


def test_what_a_window_gives_back_is_that_of_an_autoregression(reversion):
    assert reversion.directions.shape == (54, 60)
    np.testing.assert_allclose(reversion.directions @ reversion.directions.T, np.eye(54), atol=1e-9)
    expected = 1 - np.sqrt(1 - WINDOW * STEP**2 / SIGMA**2)
    np.testing.assert_allclose(np.mean(reversion.given[:-1]), expected, rtol=0.1)
    # Each of them: one that gave nothing back by chance would walk on.
    assert reversion.given[:-1].min() > 0.7 * expected and reversion.given[:-1].max() < 1.3 * expected


def test_what_is_not_sure_is_like_what_is_beside_it():
    found = np.where(np.arange(60) % 7, 1.0, 0.0)
    around = np.array([found[max(0, k - BESIDE) : k + BESIDE + 1].mean() for k in range(60)])
    np.testing.assert_allclose(_like_those_beside(found, np.full(60, 1.0)), around)
    np.testing.assert_allclose(_like_those_beside(found, np.zeros(60)), found, atol=1e-12)
    # Half of the way where chance is half of how far they lie apart; and more by the square of what is not sure then.
    apart = found[20 : 20 + 2 * BESIDE + 1].var()
    some = _like_those_beside(found, np.full(60, np.sqrt(apart / 2)))[20 + BESIDE]
    half = (around[20 + BESIDE] + found[20 + BESIDE]) / 2
    np.testing.assert_allclose(some, half + apart / 4 / half)
    # What seems to be less than nothing is as much as it may be by chance, at most.
    np.testing.assert_allclose(_like_those_beside(np.array([-2.0, 0.0]), np.array([0.5, 0.5])), [0.375, 0.375])


@pytest.mark.parametrize("slow", [1.0, 0.9])
@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_slow_and_fast_motion_in_closed_form(slow, share, noise):
    """Chains with what is given back have the variance 1 that they began with."""
    fast = 1 - share
    hidden = slow**2 * share * (1 - share)  # of the slow part, given the whole
    responses = share * slow, share * slow**REVERTING
    after = [noise, noise * np.sum(slow ** (2 * np.arange(REVERTING)))]
    drawn = after[0] + hidden + fast, after[1] + hidden * slow ** (2 * REVERTING - 2) + fast
    given = _given(*(np.array([x]) for x in (responses[0], drawn[0], responses[1], drawn[1], 1.0)), 24)[0]
    if noise / share > 1 - slow**2:
        np.testing.assert_allclose((slow - given) ** 2 * share + noise, share)
    else:
        assert given == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("step", [STEP, 0.12, 0.24])
def test_a_walk_stays_where_the_run_was(run, step):
    past, rng = run[::20][:, None], np.random.default_rng(1)
    walk = Walk(step)
    reversion = MeanReversion.fit(walk, Known([run]), TIMES, 1)
    kept = Chained(walk, TIMES, reversion=reversion).collect(past, 800, generator=rng)[:, 0]
    mean = reversion.mean
    # Without it they have the variance of the run that they begin at, and that of the steps besides.
    free = Chained(walk, TIMES).collect(past, 800, generator=np.random.default_rng(1))[:, 0]
    assert variance(free[:, -100:], mean) > SIGMA**2 + 500 * step**2
    ends = kept[:, 3::4]
    for part in np.split(ends[:, 20:], 4, axis=1):  # after what was drawn before they revert
        np.testing.assert_allclose(variance(part, mean), SIGMA**2, rtol=0.12)
    within = np.mean([variance(chain[50:], aligned(chain[50:], mean).mean(axis=0)) for chain in ends])
    assert within > 0.5 * SIGMA**2  # and it does not stand still there


def memory_of(tau, n_frames, seed=0):
    """Frames about the structure whose displacements are remembered for so many."""
    rng, decay = np.random.default_rng(seed), np.exp(-1 / tau)
    out = rng.normal(scale=SIGMA, size=(n_frames, *STRUCTURE.shape))
    for k in range(1, n_frames):
        out[k] = decay * out[k - 1] + np.sqrt(1 - decay**2) * out[k]
    return STRUCTURE + out


def test_directions_of_a_short_run_have_the_variance_of_frames_they_were_not_made_of():
    """A run of some thirty memories: its last directions are far from having no variance."""
    frames = memory_of(20, 600).reshape(600, -1)
    frames -= frames.mean(axis=0)
    directions, found = _principal(frames, 60)
    own = np.mean((frames @ directions.T) ** 2, axis=0)
    true = SIGMA**2
    assert own[0] > 2 * true and own[-1] < 0.2 * true
    assert np.all(np.diff(found) <= 1e-12) and found[0] < 0.8 * own[0] and found[len(own) - 1] > 2 * own[-1]
    np.testing.assert_allclose(found[: len(own)].sum(), own.sum(), rtol=0.01)
    few = frames[:30]  # fewer than there are directions
    directions, found = _principal(few, 60)
    total = found[:-1].sum() + found[-1] * (60 - len(directions))
    np.testing.assert_allclose(total, np.mean(np.sum(few**2, axis=1)), rtol=0.35)


@pytest.mark.parametrize("n_frames", [13, 60])  # fewer than there are coordinates, and more
def test_variances_are_those_along_the_directions_of_the_other_three_quarters(n_frames):
    frames = np.random.default_rng(2).normal(size=(n_frames, 20)) * np.linspace(3, 0.5, 20)
    n_internal = 26
    directions, found = _principal(frames, n_internal)
    rank = min(n_frames, 20)
    assert directions.shape == (rank, 20) and found.shape == (rank + 1,)
    scores = (frames @ directions.T).T @ (frames @ directions.T)
    np.testing.assert_allclose(scores, np.diag(np.linalg.svd(frames)[1] ** 2), atol=1e-6)
    total = np.zeros(rank + 1)
    for part in np.array_split(np.arange(n_frames), 4):
        ways = np.linalg.svd(np.delete(frames, part, axis=0), full_matrices=False)[2]
        along = np.sum((frames[part] @ ways.T) ** 2, axis=0)
        outside = (np.sum(frames[part] ** 2) - along.sum()) / (n_internal - len(ways))
        total += [*along, *[outside] * (rank + 1 - len(ways))]
    total /= n_frames
    while (rises := np.flatnonzero(np.diff(total) > 1e-12)).size:  # the nearest values that do not rise
        block = np.isclose(total, total[rises[0]], rtol=1e-12) | np.isclose(total, total[rises[0] + 1], rtol=1e-12)
        total[block] = total[block].mean()
    np.testing.assert_allclose(found, np.maximum(total, 1e-6 * total[0]), rtol=1e-6)


def test_a_run_that_stands_still_has_no_directions():
    assert MeanReversion.fit(Walk(), Known([np.repeat(STRUCTURE[None], 100, axis=0)]), TIMES, 1) is None


def test_up_to_the_fifth_window_a_chain_is_what_was_drawn(run, reversion):
    past = run[[7, 90]][:, None]

    def windows(**options):
        chain = roll(Walk(), past, TIMES, samples=2, generator=np.random.default_rng(3), **options)
        return [window.positions for window in islice(chain, REVERTING + 1)]

    for k, (own, plain) in enumerate(zip(windows(reversion=reversion), windows(), strict=True)):
        assert np.array_equal(own, plain) == (k < REVERTING)


def test_it_is_taken_off_in_the_frame_of_each_molecule(run, reversion):
    rng = np.random.default_rng(4)
    start = run[[3, 50, 60]][:, None] + rng.normal(size=(3, 2, 20, 3))  # (S, K, N, 3)
    frames = start[:, :, None] + 0.1 * rng.normal(size=(3, 2, 4, 20, 3))
    part = TIMES / WINDOW

    def found(frames, start):
        return reversion.without(frames, reversion.back(start), part)

    turn, shift = Rotation.random(3, rng=rng).as_matrix()[:, None, None], rng.normal(scale=30, size=3)
    moved = found(frames @ turn + shift, start @ turn[:, :, 0] + shift)
    np.testing.assert_allclose(moved, found(frames, start) @ turn + shift, atol=1e-9)
    # Molecules that turn within a window: what is taken off turns with them.
    turns = Rotation.from_rotvec(np.linspace(0, 1, 4)[:, None] * [0.3, -0.5, 0.9]).as_matrix()
    np.testing.assert_allclose(found(frames @ turns, start), found(frames, start) @ turns, atol=1e-6)
    np.testing.assert_allclose(found(frames[1:2, 1:], start[1:2, 1:]), found(frames, start)[1:2, 1:], atol=1e-12)
    # In equal parts of the window, along each direction as much as is said.
    one = reversion.directions[3]
    back = reversion.back(reversion.mean + (0.3 * one).reshape(-1, 3)).ravel()
    np.testing.assert_allclose(back @ one, 0.3 * reversion.given[3], rtol=0.05)
    still = run[:1].repeat(4, axis=0)
    off = still - reversion.without(still, reversion.back(run[0]), part)
    np.testing.assert_allclose(off, off[-1] * part[:, None, None], atol=1e-9)


def test_what_is_in_none_of_the_directions_is_given_back_by_a_share_of_its_own(reversion):
    few = MeanReversion(reversion.bodies, reversion.mean, reversion.directions[:3], np.array([0.5, 0.25, 0.0, 0.125]))
    parts = 1e-3 * np.array([1.0, 2.0, 3.0, 4.0])
    displaced = parts @ reversion.directions[[0, 1, 2, 7]]
    found = few.back(few.mean + displaced.reshape(-1, 3)).ravel()
    expected = (parts * [0.5, 0.25, 0.0, 0.125]) @ reversion.directions[[0, 1, 2, 7]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_past_moves_along_so_that_no_velocity_is_made_of_it(run, reversion):
    class Flight:
        """It goes on as the last stride went."""

        name, n_past, draws = "flight", 2, True

        def __call__(self, past, times, samples=1, generator=None):
            return np.concatenate([linear(past[:, -1], past[:, -1] - past[:, -2], times)[:, None]] * samples, axis=1)

    past = run[:1].repeat(2, axis=0)[None]  # at rest
    for window in islice(roll(Flight(), past, TIMES, reversion=reversion), 12):
        steps = np.diff(window.state.past[0, 0], axis=0)
        np.testing.assert_allclose(steps, 0, atol=1e-9)
    assert np.linalg.norm(window.positions - run[0]) > 0.1


def test_what_the_run_never_showed_reverts_as_well():
    """Forty frames span forty directions; what frames do beside those of others tells of the rest."""
    few = run_of_noise(40)
    found = MeanReversion.fit(Walk(), Known([few]), TIMES, 1)
    assert len(found.directions) <= 40
    spread = []
    for reversion in (found, None):
        chains = Chained(Walk(), TIMES, reversion=reversion)
        frames = chains.collect(few[::4][:, None], 1600, generator=np.random.default_rng(0))[:, 0, 200:]
        off = (aligned(frames, found.mean) - found.mean).reshape(-1, 60)
        outside = off - off @ found.directions.T @ found.directions
        spread.append(np.mean(np.sum(outside**2, axis=1)) / (54 - len(found.directions)))
    assert 0.6 * SIGMA**2 < spread[0] < 1.6 * SIGMA**2 < 3 * SIGMA**2 < spread[1]


def test_molecules_revert_each_by_itself():
    """Two that part: their shapes revert, their distance is what was drawn. Two that touch are one."""
    rng = np.random.default_rng(6)
    near = np.concatenate([STRUCTURE, STRUCTURE + [12.0, 0, 0]]) + rng.normal(scale=SIGMA, size=(400, 40, 3))
    apart = near.copy()
    apart[:, 20:, 0] += np.linspace(0, 60, 400)[:, None]
    bonds = [[k, k + 1] for k in range(39) if k != 19]

    def fitted(frames, bonds=bonds):
        return MeanReversion.fit(Walk(), Known([frames]), TIMES, 1, bonds)

    assert [len(body) for body in fitted(near).bodies] == [40] == [len(body) for body in fitted(apart, ()).bodies]
    reversion = fitted(apart)
    assert [len(body) for body in reversion.bodies] == [20, 20]

    def distance(frames):
        return frames[..., 20:, 0].mean(axis=-1) - frames[..., :20, 0].mean(axis=-1)

    past = apart[-8:][:, None]
    free, kept = (
        Chained(Walk(), TIMES, reversion=one).collect(past, 400, generator=np.random.default_rng(2))[:, 0]
        for one in (None, reversion)
    )
    np.testing.assert_allclose(distance(kept), distance(free), atol=1e-2)
    for half in (slice(0, 20), slice(20, 40)):
        spread = [variance(x[:, 100:, half], reversion.mean[half]) for x in (free, kept)]
        assert spread[0] > SIGMA**2 + 150 * STEP**2
        np.testing.assert_allclose(spread[1], SIGMA**2, rtol=0.2)
    # A liquid has no structure to come back to.
    assert fitted(near, [[0, 1]]) is not None  # 39 molecules
    assert MeanReversion.fit(Walk(), Known([np.concatenate([near] * 2, axis=1)]), TIMES, 1, [[0, 1]]) is None


class Same:
    """It draws as the run of :func:`memory_of` does; with numbers of its own no two chains have any in common."""

    name, n_past, draws = "same", 1, True

    def __init__(self, tau, own=None):
        self.decay, self.own = np.exp(-1 / tau), own

    def __call__(self, past, times, samples=1, generator=None):
        turn, centre = superposition(past[:, -1], STRUCTURE)
        about = STRUCTURE - STRUCTURE.mean(axis=0)
        now, out = (past[:, -1] - centre) @ turn - about, []
        streams = [self.own] * len(past) if self.own else each_of(generator, len(past))
        numbers = [own.standard_normal((len(times), *now.shape[1:])) for own in streams]
        for step in np.stack(numbers, axis=1):
            now = self.decay * now + SIGMA * np.sqrt(1 - self.decay**2) * step
            out.append(now)
        frames = np.stack(out, axis=1) + about  # (S, T, N, 3)
        return (frames @ np.swapaxes(turn, -1, -2)[:, None] + centre[:, None])[:, None]


def test_a_slow_run_is_not_squeezed():
    """What draws as the run does has nothing to give back, however short the run is beside its memory."""
    assert MeanReversion.fit(Same(30), Known([memory_of(30, 1000)]), np.arange(1, 9), 1) is None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_response_that_is_not_sure_is_no_growth(seed):
    own = np.random.default_rng(seed)
    assert MeanReversion.fit(Same(100, own), Known([memory_of(100, 3000, seed=2)]), np.arange(1, 9), 1) is None


@pytest.mark.parametrize("who", ["analogues", "ensemble of the run", "Gaussian process"])
def test_forecasts_whose_chains_vary_as_the_run_are_left_alone(who):
    """Frames of the run itself, and a Gaussian process of many windows, which knows where it comes back to."""
    rng = np.random.default_rng(5)
    frames = np.zeros((3000, 8, 3))
    for k in range(1, len(frames)):
        frames[k] = 0.9 * frames[k - 1] + np.sqrt(1 - 0.9**2) * rng.normal(scale=SIGMA, size=(8, 3))
    known = Known([frames + STRUCTURE[:8]], tuple(TIMES))
    one = OneByOne(known.baselines.forecasts[who])
    assert MeanReversion.fit(one, known, TIMES, 4) is None
    # And so is one that varies too little.
    assert MeanReversion.fit(OneByOne(Still()), known, TIMES, 4) is None


class Still:
    """It draws what stands still."""

    name, n_past, draws = "still", 1, True

    def __call__(self, past, times, samples=1, generator=None):
        return np.repeat(past[:, -1][:, None, None], len(np.asarray(times)), axis=2).repeat(samples, axis=1)


def test_runs_that_are_too_short_leave_a_chain_alone(run):
    assert MeanReversion.fit(Walk(), Known([run[:15]]), TIMES, 1) is None  # shorter than four windows
    assert MeanReversion.fit(Walk(), Known([run[:40]]), TIMES, 22) is None  # 19 frames with so much of a past
    assert MeanReversion.fit(Walk(), Known([run[:40]]), TIMES, 21) is not None
    assert MeanReversion.fit(Walk(), Known([run[:47]], every=3), TIMES, 1) is None  # of strides of three frames
    assert MeanReversion.fit(Walk(), Known([run[:48]], every=3), TIMES, 1) is not None
    assert MeanReversion.fit(Walk(), Known([run[:49]], every=3), TIMES, 11) is None  # 19 frames with ten strides before
    assert MeanReversion.fit(Walk(), Known([run[:50]], every=3), TIMES, 11) is not None
    halves = [run[:24], run[24:48]]  # each of them starts anew
    assert MeanReversion.fit(Walk(), Known(halves, every=3), TIMES, 6) is None
    assert MeanReversion.fit(Walk(), Known(halves, every=3), TIMES, 5) is not None
    assert MeanReversion.fit(Walk(), Known([run[:, :1]]), TIMES, 1) is None  # a single atom has no shape


class Map:
    """Displacements from a structure along some directions grow by these factors in a window; nothing is drawn."""

    name, n_past, draws = "map", 1, True

    def __init__(self, mean, directions, factors):
        self.mean, self.matrix = mean, directions.T @ (np.asarray(factors)[:, None] * directions)

    def __call__(self, past, times, samples=1, generator=None):
        displaced = (past[:, -1] - self.mean).reshape(len(past), -1)
        end = self.mean + (displaced @ self.matrix).reshape(-1, *self.mean.shape)
        return np.repeat(end[:, None, None], len(times), axis=2).repeat(samples, axis=1)


def test_growth_in_one_of_ten_directions_is_chance_and_no_growth_altogether_is_none():
    structure = upright(STRUCTURE[:15])  # as mean structures stand; 39 directions, and what is in none of them
    known = Known([structure + np.random.default_rng(0).normal(scale=1e-3, size=(200, 15, 3))])
    base = MeanReversion.fit(Walk(), known, TIMES, 1)

    def found(growing, factor):
        factors = np.where(np.arange(39) < growing, factor, 0.5)
        return MeanReversion.fit(Map(base.mean, base.directions, factors), known, TIMES, 1)

    assert len(base.directions) == 39
    assert found(4, 1.5) is None and found(5, 1.5) is not None
    assert found(5, 1.1) is None and found(20, 1.1) is not None  # less than what is lost in the others, and more
    # Where nothing is drawn, what a window makes more of is not given back: who knows where it would end.
    np.testing.assert_allclose(found(5, 1.5).given, 0, atol=1e-6)


@pytest.mark.parametrize("n_frames", [400, 33])  # with some of the directions, and with less than all
def test_what_a_window_gives_back_is_told_by_pairs_of_chains_of_the_same_numbers(n_frames):
    """All of it written out: slopes, what is left beside them, in units of the variance of the run."""

    class Fading(Walk):
        """It walks, and forgets a part of where it began."""

        def __call__(self, past, times, samples=1, generator=None):
            about = STRUCTURE - past[:, -1]
            walked = super().__call__(past, times, samples, generator)
            return walked + (np.asarray(times) / WINDOW * 0.05)[:, None, None] * about[:, None, None]

    frames, forecaster = run_of_noise(n_frames), Fading(0.15)
    reversion = MeanReversion.fit(forecaster, Known([frames]), TIMES, 1)
    directions, mean = reversion.directions, reversion.mean
    other = 54 - len(directions)

    def displaced(x):
        return (aligned(x, mean) - mean).reshape(len(x), -1)

    variance = _principal(displaced(frames), 54)[1]
    count = 48 if n_frames == 400 else 32  # of 20 atoms: an even number of those that there are
    places = np.unique(np.linspace(0, n_frames - 1, 48).astype(int))[:count]
    half = count // 2
    streams = Streams.of(0, np.tile(np.arange(half), 2), 1)
    chains = Chained(forecaster, TIMES).collect(frames[places][:, None], 16, 1, streams)[:, 0].astype(np.float64)
    first, one, last = displaced(frames[places]), displaced(chains[:, 3]), displaced(chains[:, 15])

    def told(end, part):
        """Slope and variance beside it, along a direction or over the others."""
        x, y = part(first), part(end)
        began, ended = x[half:] - x[:half], y[half:] - y[:half]
        there = np.sum(began**2) > 1e-9  # where no two starts differ, nothing is said to be forgotten
        slope = np.sum(began * ended) / np.sum(began**2) if there else 1.0
        return slope, np.mean(np.sum((y - slope * x) ** 2, axis=-1))

    parts = [lambda x, way=way: (x @ way)[:, None] for way in directions]
    parts.append(lambda x: (x - x @ directions.T @ directions) / np.sqrt(max(1, other)))
    slopes, beside = np.array([[told(end, part) for part in parts] for end in (one, last)]).transpose(2, 0, 1)
    expected = _given(slopes[0], beside[0] / variance, slopes[1], beside[1] / variance, variance, half)
    there = variance > 1e-3 * variance[0]
    np.testing.assert_allclose(reversion.given[there], expected[there], rtol=1e-6, atol=1e-9)
    assert reversion.given.max() > 0.05


def test_of_a_long_run_every_so_many_frames_are_looked_at():
    frames = run_of_noise(501)
    frames[1::2] = STRUCTURE + 3 * (frames[1::2] - STRUCTURE)  # those between are others
    found = MeanReversion.fit(Walk(0.3), Known([frames]), TIMES, 1)
    some = MeanReversion.fit(Walk(0.3), Known([frames[::2]]), TIMES, 1)
    np.testing.assert_allclose(aligned(found.mean, some.mean), aligned(some.mean, some.mean), atol=1e-3)
    # And molecules are one where they touch in twenty of these.
    near = np.concatenate([STRUCTURE[:6], STRUCTURE[:6] + [12.0, 0, 0]]) + 0 * frames[:41, :12]
    bonds = [[k, k + 1] for k in range(11) if k != 5]
    for away, count in (([1, 2, 4, 38, 40], 1), ([3], 2), ([39], 2)):
        part = near + 0.01 * np.random.default_rng(0).normal(size=near.shape)
        part[away, 6:] += 40.0
        assert len(MeanReversion.fit(Walk(), Known([part]), TIMES, 1, bonds).bodies) == count, away


def test_bodies_are_molecules_that_stay_in_touch():
    atoms = np.array([[0.0, 0, 0], [1, 0, 0], [10.5, 0, 0], [11.5, 0, 0], [22, 0, 0], [30, 0, 0]])
    bonds = [[0, 1], [2, 3], [4, 5]]

    def found(*frames, bonds=bonds):
        return [body.tolist() for body in _bodies(np.array(frames), bonds)]

    assert found(atoms) == [[0, 1, 2, 3], [4, 5]]  # 9.5 and 10.5 apart
    assert found(atoms, atoms + np.array([[0.0, 0, 0]] * 2 + [[1.0, 0, 0]] * 4)) == [[0, 1], [2, 3], [4, 5]]
    closer = atoms.copy()
    closer[4:] -= [1, 0, 0]
    assert found(closer) == [[0, 1, 2, 3, 4, 5]]  # in a row
    assert found(atoms, closer) == [[0, 1, 2, 3], [4, 5]]
    assert found(atoms, bonds=()) == [[0, 1, 2, 3, 4, 5]]
    assert found(atoms, bonds=[[0, 4], [2, 3], [1, 5]])[0] == [0, 1, 2, 3, 4, 5]  # all by way of the first two
    # Of more than 5000 atoms, or 50 molecules, none.
    row = np.arange(5001.0)[:, None] * [20.0, 0, 0]
    assert len(_bodies(row[None, :5000], ())) == 1 and _bodies(row[None], ()) == []
    assert len(_bodies(row[None, :51], [[0, 1]])) == 50 and _bodies(row[None, :52], [[0, 1]]) == []


def fluctuations(frames):
    """Root mean square fluctuation (N,) of frames superposed on their mean."""
    mean = frames[0]
    for _ in range(3):
        mean = aligned(frames, mean).mean(axis=0)
    return np.sqrt(np.mean(np.sum((aligned(frames, mean) - mean) ** 2, axis=-1), axis=0))


@pytest.mark.parametrize("who", ["elastic network", "Gaussian process", "elastic network of proteins"])
def test_long_futures_of_the_sample_fluctuate_as_the_run_does(who, tmp_path):
    u = mda.Universe(*map(str, sample()))
    results = EGNOSurrogate(u, who, horizon=800, device="cpu").run().results
    run = fluctuations(np.stack([u.select_atoms("name CA").positions for _ in u.trajectory]))
    found = fluctuations(results.positions[0][200:].astype(np.float64))
    assert 0.8 < found.mean() / run.mean() < 1.5
    assert np.corrcoef(found, run)[0, 1] > 0.9
    # The same future, a streamed file, and a shorter one, which is the beginning of it.
    target = tmp_path / "out.dcd"
    streamed = EGNOSurrogate(u, who, horizon=800, filename=target, device="cpu").run().results
    np.testing.assert_allclose(np.asarray(streamed.positions[0]), results.positions[0], atol=1e-3)
    short = EGNOSurrogate(u, who, horizon=8 * REVERTING, device="cpu").run().results
    np.testing.assert_array_equal(short.positions[0], results.positions[0][: 8 * REVERTING])


def test_the_summary_says_which_chains_revert(tmp_path):
    files = [str(name) for name in sample()]

    def said(*more):
        done = CliRunner().invoke(main, ["predict", *files, "-o", str(tmp_path / "out.dcd"), "--force", *more])
        assert done.exit_code == 0, done.output
        return done.output

    line = "windows, which revert to the run from the fifth on: the error grows with each one"
    assert line in said("--model", "Gaussian process", "--horizon", "40")
    assert '"reverts": true' in said("--model", "Gaussian process", "--horizon", "40", "--json")
    assert line in said("--model", "Gaussian process", "--horizon", "40", "--mean")
    for others in (
        ["--horizon", "32"],
        ["--model", "ca-1ps", "--horizon", "40"],
        ["--model", "static", "--horizon", "40"],
    ):
        assert "revert" not in said(*others)


def test_futures_of_a_single_structure_stay_about_it(tmp_path):
    """Nothing is known of how far it varies but by the elastic network; and the cell of its crystal is no box."""
    u = mda.Universe(*map(str, sample()))
    u.dimensions = [20, 20, 20, 90, 90, 90]
    u.atoms.write(tmp_path / "one.pdb")
    given = [str(tmp_path / "one.pdb"), "-o", str(tmp_path / "out.dcd"), "--dt", "100", "--horizon", "600"]
    done = CliRunner().invoke(main, ["predict", *given])
    assert done.exit_code == 0 and "which revert to the run" in done.output, done.output
    found = mda.Universe(tmp_path / "out.pdb", tmp_path / "out.dcd")
    frames = np.stack([found.atoms.positions.astype(np.float64) for _ in found.trajectory])
    distance = superposed_rmsd(frames, u.select_atoms("name CA").positions)
    early, late = distance[20:60].mean(), distance[-200:].mean()
    assert late < 1.5 * early < 3  # it was 4 times as far
    assert 0.4 < fluctuations(frames[100:]).mean() < 1.5


def test_frames_about_a_structure_vary_by_half_of_what_the_network_moves():
    structure = STRUCTURE - STRUCTURE.mean(axis=0)
    frames = memory_of(5, 400)
    network = ElasticNetwork.fitted(Known([frames], tuple(TIMES)))
    found = network.ensemble(structure, 400, np.random.default_rng(0))
    moved = network(structure[None, None], [network.span[1]], 400, np.random.default_rng(1))[0, :, 0]
    whole = np.mean((aligned(moved, structure) - structure) ** 2)
    np.testing.assert_allclose(np.mean((aligned(found, structure) - structure) ** 2), whole / 2, rtol=0.1)
    np.testing.assert_allclose(found.mean(axis=0), structure, atol=0.15)


def test_a_network_that_draws_reverts_to_the_run_as_well():
    made = flow_model()
    model, builder, universe = made[0], made[1], run_of(made, 300)
    known = universe.trajectory.timeseries(order="fac").astype(np.float64)
    forecaster = ModelForecaster(model, builder)
    forecaster.reversion = MeanReversion.fit(forecaster.inner, Known([known]), TIMES, forecaster.n_past)
    long = EGNOSurrogate(universe, model, horizon=40, samples=2, seed=5).run()
    assert long.reverts and not EGNOSurrogate(universe, model, horizon=16, samples=2).run().reverts
    past = known[-forecaster.n_past :][None]
    expected = forecaster.collect(past, 40, 2, Streams.of(5, [299], 2))
    np.testing.assert_allclose(long.results.ensemble, expected, atol=1e-3)
    universe.trajectory[-1]
    simulation = surrogate_simulation(universe, model, seed=5)
    simulation.step(40)
    end = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value * 10
    np.testing.assert_allclose(end, expected[0, 0, -1], atol=1e-3)
    plain = ModelForecaster(model, builder).collect(past, 40, 2, Streams.of(5, [299], 2))
    assert np.abs(plain - expected)[:, :, : 4 * WINDOW].max() == 0 < np.abs(plain - expected)[:, :, 4 * WINDOW :].max()


def test_chains_that_are_judged_revert_to_the_other_half_of_the_run(monkeypatch):
    made = flow_model()
    model, builder, universe = made[0], made[1], run_of(made, 300)
    known = universe.trajectory.timeseries(order="fac").astype(np.float64)
    judged = []
    monkeypatch.setitem(evaluate.__globals__, "quality", lambda _, chains, *more: judged.append(chains))
    for length in (40, 16):
        evaluate(model, universe, chains=2, chain_length=length, seed=5, max_windows=4)
    for number, other in enumerate((known[150:], known[:150])):
        start = np.linspace(0, 298, 4).astype(int)[number + 1] + 1
        past = known[start - 1 : start + 1][None]
        forecaster = ModelForecaster(model, builder)
        plain = forecaster.collect(past, 40, 1, Streams.of(5, [number], 1))[0, 0]
        forecaster.reversion = MeanReversion.fit(forecaster.inner, Known([other]), TIMES, forecaster.n_past)
        expected = forecaster.collect(past, 40, 1, Streams.of(5, [number], 1))[0, 0]
        np.testing.assert_allclose(judged[0][number], expected, atol=1e-3)
        assert np.abs(plain - expected).max() > 0.01
        np.testing.assert_allclose(judged[1][number], plain[:16], atol=1e-3)


def test_frames_that_are_relaxed_go_on_from_what_they_were_made(run, reversion):
    """As in any chain, the geometry is brought back after the reversion."""
    still = Restored(Walk(), lambda frames, start: np.broadcast_to(start, frames.shape))
    windows = roll(still, run[:1][:, None], TIMES, generator=np.random.default_rng(0), reversion=reversion)
    for window in islice(windows, REVERTING + 2):
        np.testing.assert_allclose(window.positions[0, 0], run[:1].repeat(4, axis=0), atol=1e-9)
