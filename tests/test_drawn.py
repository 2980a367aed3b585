"""Drawn forecasts against processes whose conditional mean and covariance are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_metrics import autoregression, tumbled

from egno_md.errors import DataError, UsageError
from egno_md.forecast.chain import Chained
from egno_md.forecast.drawn import (
    CHUNK_NUMBERS,
    Analogues,
    GaussianProcess,
    NoisyStart,
    RigidMotion,
    RunEnsemble,
    _fittable,
    _rows,
    apart,
    in_body,
    in_turn,
    moved,
)
from egno_md.forecast.forecasters import Known
from egno_md.forecast.gaussian import Local, Noise
from egno_md.forecast.rolling import roll
from egno_md.molecule.geometry import aligned

STEPS = np.arange(1, 5)
DRAWN = [GaussianProcess, Analogues, NoisyStart]
SIGMA = 0.2


def coupled(n_frames, n_atoms=24, seed=0):
    """Modes of memory 0.5 to 0.98 over all atoms; frames (F, N, 3), and the modes as what mixes them (3 N, 3 N)."""
    rng = np.random.default_rng(seed)
    structure = rng.normal(scale=5, size=(n_atoms, 3))
    mixing = np.linalg.qr(rng.normal(size=(3 * n_atoms, 3 * n_atoms)))[0]
    memory = np.linspace(0.5, 0.98, 3 * n_atoms)
    size = SIGMA * np.linspace(0.5, 1.5, 3 * n_atoms)
    mode = rng.normal(size=3 * n_atoms)
    out = np.empty((n_frames, 3 * n_atoms))
    for k in range(n_frames):
        mode = memory * mode + np.sqrt(1 - memory**2) * rng.normal(size=3 * n_atoms)
        out[k] = (size * mode) @ mixing
    return structure + out.reshape(n_frames, n_atoms, 3), structure, mixing, memory, size


def pasts(frames, starts, n_past=6):
    return frames[np.asarray(starts)[:, None] + np.arange(1 - n_past, 1)]


def on_start(frames, start):
    """Frames (S, ..., N, 3) superposed on their start (S, N, 3), about the origin."""
    lead = (slice(None), *[None] * (frames.ndim - 3))
    return aligned(frames, start[lead])


def test_gaussian_process_of_coupled_modes():
    """The mean is memory**k of every mode, the covariance of steps j and k memory**|j - k| - memory**(j + k)."""
    frames, structure, mixing, memory, size = coupled(21000)
    process = GaussianProcess.fitted(Known([frames[:20000]], tuple(STEPS)))
    assert process.kind == "full" and not process.notes and process.noise.share < 0.5
    starts = np.arange(20010, 20990, 7)
    start, true = frames[starts], frames[starts[:, None] + STEPS]
    modes = (start - structure).reshape(len(starts), -1) @ mixing.T
    exact = (modes[:, None] * memory ** STEPS[:, None]) @ mixing  # (S, T, 3 N)
    exact = structure + exact.reshape(true.shape)
    mean = process(pasts(frames, starts), STEPS)
    assert mean.shape == (len(starts), 1, 4, 24, 3)
    # What is judged is internal motion: six of 72 directions are taken off.
    difference = np.mean((on_start(mean[:, 0], start) - on_start(exact, start)) ** 2)
    assert difference < 0.03 * np.mean((on_start(true, start) - on_start(exact, start)) ** 2)
    drawn = process(pasts(frames, starts)[:40], STEPS, 200, np.random.default_rng(0))
    assert drawn.shape == (40, 200, 4, 24, 3)
    deviations = (drawn - drawn.mean(axis=1, keepdims=True)).reshape(-1, 4, 72) @ mixing.T / size
    found = np.einsum("mtd,msd->dts", deviations, deviations) / (len(deviations) * 199 / 200)
    apart, both = np.abs(STEPS[:, None] - STEPS), STEPS[:, None] + STEPS
    expected = memory[:, None, None] ** apart - memory[:, None, None] ** both
    scale = np.sqrt(np.einsum("dtt,dss->dts", expected, expected))
    error = np.abs((found - expected) / scale).mean()  # each mode, each pair of steps
    same = np.abs((expected.mean(axis=0) - expected) / scale).mean()  # of one covariance over time for all
    assert error < 0.12 and error < 0.4 * same, (error, same)
    weighted = [np.average(x, axis=0, weights=size**2) for x in (found, expected)]
    np.testing.assert_allclose(*weighted, rtol=0.1)


def test_gaussian_process_of_independent_atoms_is_ar1_with_its_noise():
    phi = 0.8
    frames = tumbled(autoregression(5000, 20, phi, sigma=SIGMA))
    process = GaussianProcess.fitted(Known([frames[:4000]], tuple(STEPS)))
    assert process.noise.share > 0.9  # a product of time and space is what it is
    starts = np.arange(4010, 4990, 4)
    start = frames[starts]
    drawn = on_start(process(pasts(frames, starts), STEPS, 20, np.random.default_rng(0)), start)
    error = on_start(frames[starts[:, None] + STEPS], start) - drawn.mean(axis=1)
    spread = drawn.var(axis=1, ddof=1).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(spread, SIGMA**2 * (1 - phi ** (2 * STEPS)) * (1 - 6 / 60), rtol=0.1)
    np.testing.assert_allclose(spread * 21 / 20, np.mean(error**2, axis=(0, 2, 3)), rtol=0.05)


def test_history_tells_slow_motion_from_noise():
    """Where noise sits on a structure that does not move, frames of the past are worth as much as the start."""
    frames = autoregression(4000, 20, 0.0, sigma=SIGMA) + np.random.default_rng(1).normal(size=(1, 20, 3))
    known = Known([frames[:3000] + 0 * frames[:3000]], tuple(STEPS))
    process, starts = GaussianProcess.fitted(known), np.arange(3020, 3990, 3)
    assert process.n_past == 16
    past, true = pasts(frames, starts, 16), frames[starts[:, None] + STEPS]
    np.testing.assert_allclose(np.mean((process(past, STEPS)[:, 0] - true) ** 2), SIGMA**2, rtol=0.15)


@pytest.mark.parametrize("kind", DRAWN, ids=lambda cls: cls.name)
def test_draws_turn_with_the_start_and_know_nothing_of_their_batch(kind):
    frames = tumbled(coupled(1500, 12)[0])
    found = kind.fitted(Known([frames[:600], frames[600:1200]], tuple(STEPS)))
    past = pasts(frames, [1210, 1300, 1400])
    whole = found(past, STEPS, 5, np.random.default_rng(3))
    assert whole.shape == (3, 5, 4, 12, 3) and whole.std(axis=1).min() > 0
    np.testing.assert_array_equal(found(past, STEPS, 5, np.random.default_rng(3)), whole)
    generator = np.random.default_rng(3)
    alone = np.concatenate([found(past[k : k + 1], STEPS, 5, generator) for k in range(3)])
    np.testing.assert_allclose(alone, whole, atol=1e-9)
    generator = np.random.default_rng(3)
    parts = np.concatenate([found(past[:1], STEPS, n, generator) for n in (2, 3)], axis=1)
    np.testing.assert_allclose(parts, whole[:1], atol=1e-9)
    if kind is not NoisyStart:  # its noise knows no direction, and its numbers no frame of reference
        turn, shift = Rotation.random(rng=np.random.default_rng(3)).as_matrix(), np.array([3.0, -40, 7])
        there = found(past @ turn + shift, STEPS, 5, np.random.default_rng(3))
        np.testing.assert_allclose(there, whole @ turn + shift, atol=1e-5)
    with pytest.raises(UsageError, match="generator"):
        found(past, STEPS, 2)
    # Unless more are asked for it is one future of each.
    alone = found(past, STEPS, generator=np.random.default_rng(3))
    assert alone.shape == found(past, STEPS).shape == (3, 1, 4, 12, 3)
    chain = Chained(found, STEPS)
    assert chain(past, [2, 6], generator=np.random.default_rng(3)).shape == (3, 1, 2, 12, 3)
    assert chain.collect(past, 6, generator=np.random.default_rng(3)).shape == (3, 1, 6, 12, 3)
    window = next(roll(found, past, STEPS, generator=np.random.default_rng(3)))
    np.testing.assert_allclose(window.positions, alone, atol=1e-6)


@pytest.mark.parametrize("kind", DRAWN, ids=lambda cls: cls.name)
def test_memory_is_bounded_without_changing_the_draws(kind, monkeypatch):
    frames = coupled(600, 12)[0]
    found = kind.fitted(Known([frames[:500]], tuple(STEPS)))
    past = pasts(frames, [510, 550])
    whole = found(past, STEPS, 7, np.random.default_rng(3)), found(past, STEPS)
    monkeypatch.setattr("egno_md.forecast.drawn.CHUNK_NUMBERS", 1)
    np.testing.assert_allclose(found(past, STEPS, 7, np.random.default_rng(3)), whole[0], atol=1e-9)
    np.testing.assert_allclose(found(past, STEPS), whole[1], atol=1e-9)


@pytest.mark.parametrize("kind", DRAWN, ids=lambda cls: cls.name)
def test_times_between_steps_lie_on_the_same_paths(kind):
    frames = coupled(1200, 12)[0]
    found = kind.fitted(Known([frames[:1000]], (2, 4)))
    past = pasts(frames, np.arange(1010, 1190, 10))
    fine = found(past, [1, 2, 3, 4], 30, np.random.default_rng(0))
    if kind is not NoisyStart:
        coarse = found(past, [2, 4], 30, np.random.default_rng(0))
        np.testing.assert_allclose(fine[:, :, [1, 3]], coarse, atol=1e-9)
    variance = on_start(fine, past[:, -1]).var(axis=1).mean(axis=(0, 2, 3))
    assert (np.diff(variance) > 0).all()
    if kind is GaussianProcess:
        np.testing.assert_allclose(variance[2], variance[[1, 3]].mean(), rtol=0.1)
    with pytest.raises(UsageError, match=r"up to 4.*found 5.*Chained"):
        found(past, [5.0])


def test_many_steps_are_fitted_at_some_of_them():
    frames = coupled(900, 8)[0]
    steps = tuple(range(1, 41))
    process = GaussianProcess.fitted(Known([frames], steps))
    assert len(process.knots) == 16 and process.knots[-1] == 40 and "16 of 40 steps" in process.notes[-1]
    assert process(pasts(frames, [800]), steps, 2, np.random.default_rng(0)).shape == (1, 2, 40, 8, 3)


def test_few_windows_give_a_smaller_covariance_and_say_so():
    frames = coupled(600, 24)[0]
    few = GaussianProcess.fitted(Known([frames[:200]], tuple(STEPS)))
    assert few.kind in ("low-rank", "time x space") and "a full one needs 288 windows" in few.notes[0]
    fewer = GaussianProcess.fitted(Known([frames[:18]], tuple(STEPS)))
    assert fewer.kind in ("low-rank", "time x space") and 0.7 < fewer.noise.share <= 1
    for process, low in ((few, 0.8), (fewer, 0.4)):  # five strides of a slow motion do not tell how far it goes
        starts = np.arange(300, 590, 5)
        drawn = on_start(process(pasts(frames, starts), STEPS, 40, np.random.default_rng(0)), frames[starts])
        error = on_start(frames[starts[:, None] + STEPS], frames[starts]) - drawn.mean(axis=1)
        ratio = np.sqrt(drawn.var(axis=1).mean() / np.mean(error**2))
        assert low < ratio < 1.25
    for kind in DRAWN:
        for others in ([], 20 * [frames[:3]]):  # runs without a window add none
            with pytest.raises(DataError, match=r"at least 10.*found [89].*has 13 frames"):
                kind.fitted(Known([frames[:13], *others], tuple(STEPS)))


def test_noise_has_the_covariance_of_what_it_was_fitted_to():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(12, 12))
    paths = (rng.normal(size=(40000, 12)) @ factor).reshape(-1, 3, 4)
    noise = Noise.fit(paths)
    drawn = noise.paths(rng.standard_normal((40000, noise.n_numbers))).reshape(-1, 12)
    scale = np.sqrt(np.diag(factor.T @ factor))
    np.testing.assert_allclose(np.cov(drawn.T) / np.outer(scale, scale), factor.T @ factor / np.outer(scale, scale),
                               atol=0.05)  # fmt: skip
    np.testing.assert_allclose(noise.across, np.einsum("mtd,msd->ts", paths, paths) / (40000 * 4), rtol=0.02)
    # Few paths of a product: the product, not the noise of the sample.
    time, space = np.linalg.cholesky(np.array([[1, 0.6], [0.6, 2]])), rng.normal(size=(30, 30))
    few = Noise.fit(np.einsum("ts,msd,de->mte", time, rng.normal(size=(60, 2, 30)), space))
    assert few.share > 0.8 and len(few.rows) == 60


def test_frozen_runs_draw_nothing():
    frames = np.repeat(autoregression(1, 6, 0.0), 60, axis=0)
    for kind in DRAWN:
        drawn = kind.fitted(Known([frames], tuple(STEPS)))(frames[None, :4], STEPS, 3, np.random.default_rng(0))
        np.testing.assert_allclose(drawn, np.broadcast_to(frames[0], drawn.shape), atol=1e-5)


def test_analogues_find_what_they_were_taken_from():
    frames = tumbled(coupled(700, 12)[0])
    found = Analogues.fitted(Known([frames], tuple(STEPS)))
    assert found.nearest == 26
    np.testing.assert_array_equal(found.like(frames[[5, 300]])[:, 0], [5, 300])
    alone = Analogues(found.mean, found.segments, found.places, found.library, 1, 4, 1)
    drawn = alone(frames[[[300]]], STEPS, 2, np.random.default_rng(0))
    np.testing.assert_allclose(drawn[0, 0], frames[301:305], atol=1e-5)
    mean = alone(frames[[[300]]], STEPS)[0, 0]
    np.testing.assert_allclose(
        mean - mean.mean(axis=1, keepdims=True), aligned(frames[301:305], frames[300]), atol=1e-5
    )
    # A stride of three frames: what follows is three frames on, and between strides the frames that were saved.
    fine = Analogues.fitted(Known([frames], (1, 2), 3))
    fine = Analogues(fine.mean, fine.segments, fine.places, fine.library, 3, 2, 1)
    np.testing.assert_allclose(fine(frames[[[300]]], [1 / 3, 2], 1, np.random.default_rng(0))[0, 0], frames[[301, 306]],
                               atol=1e-5)  # fmt: skip


def test_chains_of_draws_have_the_fluctuations_of_the_run():
    frames = coupled(9000, 12)[0]
    process = GaussianProcess.fitted(Known([frames[:8000]], tuple(STEPS)))
    chain = Chained(process, STEPS)
    drawn = chain(pasts(frames, [8010, 8400, 8800]), np.arange(1, 601), 8, np.random.default_rng(0))
    assert drawn.shape == (3, 8, 600, 12, 3)
    found = aligned(drawn[:, :, 200:].reshape(-1, 12, 3), process.mean).var(axis=0).mean()
    assert found == pytest.approx(aligned(frames, process.mean).var(axis=0).mean(), rel=0.1)


@pytest.mark.parametrize("feature", [1, 2])
def test_what_atoms_do_in_proportion_to_a_feature_is_found(feature):
    features = np.random.default_rng(0).normal(size=(40, 3, 5, 3))
    factor = np.arange(1.0, 5.0)[:, None, None]  # (T, 1, 1)
    moves = factor * features[:, feature, None]  # (M, T, N, 3)
    for pulled in (False, True):
        np.testing.assert_allclose(Local.fit(features, moves, pulled)(features), moves, atol=1e-6)


def test_paths_that_end_somewhere_are_those_of_the_covariance():
    """Their mean is linear in where they end, with the covariance that the noise says it has."""
    rng = np.random.default_rng(0)
    for count in (30, 400):  # fewer windows than numbers, and more
        residuals = np.cumsum(rng.normal(size=(count, 4, 5)), axis=1) @ rng.normal(size=(5, 5))
        noise = Noise.fit(residuals - residuals.mean(axis=0))
        middle = noise.space.T @ noise.space + np.diag(noise.single**2)
        whole = noise.rows.T @ noise.rows + np.kron(noise.time @ noise.time.T, middle)  # (T D, T D)
        ends = rng.normal(size=(3, 5))
        exact = (whole[:, -5:] @ np.linalg.solve(whole[-5:, -5:], ends.T)).T.reshape(3, 4, 5)
        np.testing.assert_allclose(noise.towards(ends), exact, rtol=1e-3, atol=1e-3 * np.abs(ends).max())
        # What is left of random paths has no share in the end, and the variance that conditioning leaves.
        paths = noise.paths(rng.standard_normal((20000, noise.n_numbers)))
        left = paths - noise.towards(paths[:, -1])
        assert np.abs(left[:, -1]).max() < 1e-3 * np.abs(paths[:, -1]).max()
        given = whole - whole[:, -5:] @ np.linalg.solve(whole[-5:, -5:], whole[-5:])
        found = left[:, :-1].reshape(20000, -1)
        np.testing.assert_allclose(found.T @ found / 20000, given[:15, :15], atol=0.05 * given.max())


def test_rigid_motion_goes_on_as_far_as_the_windows_tell():
    """Where the six numbers are orthogonal, a ridge shortens what each of them says by the same share."""
    drift = np.tile(np.concatenate([np.diag(np.arange(1.0, 7)), -np.diag(np.arange(1.0, 7))]), (5, 1))
    factor = np.random.default_rng(0).normal(size=(6, 2, 6))
    found = RigidMotion.fit(drift, np.einsum("md,dte->mte", drift, factor), 12.0)
    np.testing.assert_allclose(found.mean(drift[:3]), np.einsum("md,dte->mte", drift[:3], factor) / 1.5, rtol=1e-4)


def test_a_history_is_told_in_the_frame_of_the_mean_structure():
    """Of frames that do not turn against each other: their displacements, in the axes of the mean structure."""
    rng = np.random.default_rng(0)
    mean = rng.normal(scale=4, size=(6, 3))
    mean -= mean.mean(axis=0)
    turn, vector = Rotation.random(rng=rng).as_matrix(), np.array([0.0, 0.0, 0.1])
    grown = mean * 1.1  # growing is no rotation
    tilted = Rotation.from_rotvec(vector).apply(mean * 1.3) + [1.0, 2, 3]
    past = np.stack([np.full((6, 3), 99.0), mean * 1.4, tilted, grown])[None] @ turn + np.array([5.0, 6, 7])
    seen = in_body(past, mean, 3)
    np.testing.assert_allclose(seen.features[0, 0], 0.1 * mean, atol=1e-12)
    np.testing.assert_allclose(seen.features[0, 1], -0.2 * mean, atol=1e-12)
    np.testing.assert_allclose(seen.features[0, 2], 0.5 / 3 * mean, atol=1e-12)
    np.testing.assert_allclose(seen.drift[0, 3:], [-1, -2, -3], atol=1e-12)
    np.testing.assert_allclose(seen.back((mean + seen.features[:, 0])[:, None])[:, 0], past[:, -1], atol=1e-12)
    # The motion before the start, put onto the start without it, is the frame before.
    before = moved((mean + seen.features[:, 0] - seen.features[:, 1])[:, None], -seen.drift[:, None])
    np.testing.assert_allclose(seen.back(before)[:, 0], past[:, -2], atol=1e-12)
    alone = in_body(past[:, -1:], mean, 3)
    assert not alone.drift.any() and not alone.features[:, 1:].any()
    np.testing.assert_allclose(alone.features[:, 0], seen.features[:, 0])


def test_more_past_is_read_where_it_costs_less_than_a_fifth_of_the_windows():
    def fitted(*lengths, steps=(1, 2), every=1, most=None):
        runs = [np.zeros((n, 2, 3)) for n in lengths]
        known = SimpleNamespace(segments=runs, steps=steps, every=every, history=1)
        return _fittable(known, "forecast", most)[1:]

    # 22 frames have 20 windows, and one less with each frame of past: fewer than sixteen would be too few.
    assert fitted(22) == (4, 17, 0)
    assert fitted(22, most=9) == (5, 16, 0)
    assert fitted(22, most=2) == (2, 19, 0)
    assert fitted(24, every=2) == (3, 16, 0)  # 20 windows, and two frames fewer with each stride of past
    assert fitted(12, 12, 2, 1) == (3, 16, 0)  # each of two runs loses one
    # All of sixteen steps are fitted, and of more sixteen.
    run = [np.random.default_rng(0).normal(size=(60, 4, 3))]
    for count, left_out in ((16, 0), (17, 17)):
        known, *_, found = _fittable(Known(run, tuple(range(1, count + 1))), "forecast", 2)
        assert len(known.steps) == 16 and found == left_out and known.steps[-1] == count


def test_so_many_rows_at_a_time_as_there_is_room_for():
    third = CHUNK_NUMBERS // 3
    assert list(_rows(7, 1, third)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(_rows(2, 3, CHUNK_NUMBERS)) == [slice(0, 1), slice(1, 2)]
    assert list(_rows(2, 1, 0)) == [slice(0, 2)] and not list(_rows(0, 1, 1))
    for numbers in (0, 1):
        assert list(_rows(CHUNK_NUMBERS + 1, 1, numbers)) == [
            slice(0, CHUNK_NUMBERS), slice(CHUNK_NUMBERS, CHUNK_NUMBERS + 1)
        ]  # fmt: skip
    turns = list(in_turn(2, 3, CHUNK_NUMBERS // 4))
    assert [(rows.tolist(), members.tolist()) for rows, members in turns] == [
        ([0, 0, 0, 1], [0, 1, 2, 0]),
        ([1, 1], [1, 2]),
    ]


def test_an_ensemble_of_the_run_draws_its_frames(monkeypatch):
    frames = tumbled(coupled(40, 6)[0])
    known = Known([frames[:25], frames[25:]], (1, 2))
    ensemble = RunEnsemble.fitted(known)
    assert ensemble.library.shape == (40, 6, 3)
    np.testing.assert_allclose(ensemble.library, aligned(frames, known.motion.mean), atol=1e-5)
    starts = frames[[[3], [30]]]
    drawn = ensemble(starts, [1, 2], 200, np.random.default_rng(0))
    assert drawn.shape == (2, 200, 2, 6, 3)
    for s, start in enumerate(starts[:, 0]):
        on = aligned(ensemble.library, start) + start.mean(axis=0)
        apart = np.abs(drawn[s, :, :, None] - on).max(axis=(-2, -1))  # (K, T, L)
        assert apart.min(axis=-1).max() < 1e-5
        which = apart.argmin(axis=-1)
        assert len(np.unique(which)) == 40 and (which[:, 0] != which[:, 1]).mean() > 0.9
    still = ensemble(starts, [1, 2], 1)
    np.testing.assert_allclose(still, known.motion.relax(starts[:, -1], [1, 2], decay=0.0)[:, None])
    monkeypatch.setattr("egno_md.forecast.drawn.LIBRARY_FRAMES", 15)
    assert len(RunEnsemble.fitted(known).library) == 9 + 5  # every third frame of each run


def test_noise_about_the_start_has_the_spread_of_the_windows():
    knots, spread = np.array([1.0, 3.0]), np.array([[0.1, 0.2], [0.3, 0.6]])
    start = np.arange(6.0).reshape(1, 1, 2, 3)
    noise = NoisyStart(knots, spread)
    drawn = noise(start, [1, 2, 3], 20000, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(axis=(0, 1)), np.repeat(start[0], 3, axis=0), atol=0.02)
    middle = np.sqrt((spread[0] ** 2 + spread[1] ** 2) / 2)
    for k, expected in enumerate((spread[0], middle, spread[1])):
        np.testing.assert_allclose(drawn[0, :, k].std(axis=0), expected[:, None] * np.ones(3), rtol=0.03)


def test_numbers_of_a_process_come_back():
    frames = coupled(400, 4)[0]
    process = GaussianProcess.fitted(Known([frames], tuple(STEPS)))
    again = GaussianProcess.of_arrays(process.arrays())
    assert again.n_past == process.n_past and isinstance(again.n_past, int)
    for share, kind in ((1.0, "time x space"), (0.5, "full or low-rank")):
        assert GaussianProcess.of_arrays(process.arrays() | {"noise/share": np.float32(share)}).kind == kind
    past = frames[None, 100:110]
    np.testing.assert_allclose(process(past, STEPS), again(past, STEPS), atol=1e-4)


@pytest.mark.parametrize("n_past", [2, 3, 4, 9])
def test_the_drift_of_a_history_is_that_of_its_last_stride(n_past):
    structure = np.random.default_rng(0).normal(scale=3, size=(6, 3))
    mean = structure - structure.mean(axis=0)
    places = np.array([1.0, 2, 3]) * np.arange(6)[:, None] ** 2
    turn = Rotation.from_rotvec([0.1, 0.2, 0.7]).as_matrix()
    past = (structure @ turn + places[:, None])[None]  # (1, P, N, 3)
    past[0, -2:, 0] += [[0.3, 0, 0], [0.5, 0, 0]]
    seen = in_body(past, mean, n_past)
    still = in_body((structure @ turn + places[:, None])[None], mean, n_past)
    np.testing.assert_allclose(still.drift[0, 3:], (places[5] - places[4]) @ still.rotation[0], atol=1e-9)
    np.testing.assert_allclose(still.drift[0, :3], 0, atol=1e-9)
    np.testing.assert_allclose(still.features, 0, atol=1e-9)
    # The last stride alone tells of the velocity; what was before tells of the smoothed history.
    last = in_body(past[:, -2:], mean, 2)
    np.testing.assert_allclose(seen.features[:, 1], last.features[:, 1], atol=1e-9)
    earlier = apart(((past[:, -n_past:-1] - seen.centre[:, None]) @ seen.rotation[:, None]), mean + seen.features[:, 0])
    whole = np.sum(earlier[0] - (mean + seen.features[:, 0])[:, None], axis=1) / min(n_past, 6)
    np.testing.assert_allclose(seen.features[:, 2], whole, atol=1e-9)


@pytest.mark.parametrize(("step", "independent"), [(20, 1), (9, 1), (4, 2), (2, 5)])
def test_windows_that_overlap_are_fewer_independent_ones(step, independent):
    """Ten windows that reach so many strides ahead; and no run is less than one of them."""
    frames = autoregression(step + 12, 6, 0.5)
    (note,) = GaussianProcess.fitted(Known([frames], (step,))).notes
    assert f"10 windows (about {independent} independent ones) for 18 numbers of a window" in note


def test_a_full_covariance_needs_as_many_windows_as_numbers():
    rng = np.random.default_rng(0)
    frames = 3 * rng.normal(size=(4, 3)) + 0.3 * rng.normal(size=(13, 4, 3))
    whole, less = (GaussianProcess.fitted(Known([frames[:n]], (1,)), 1) for n in (13, 12))
    assert whole.notes == () and whole.kind == less.kind == "time x space"  # noise is nothing else
    assert "11 windows (about 11 independent ones) for 12 numbers of a window: its covariance is time" in less.notes[0]
    assert whole.n_past == 1 and whole.rigid and GaussianProcess.of_arrays(whole.arrays()).kind == "time x space"
