"""Paths between saved frames written out by hand: what is remembered, what is seen of both sides, what is drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import nnls
from scipy.spatial.transform import Rotation
from test_interpolation import wobbling

from egno_md.forecast import bridge as module
from egno_md.forecast.bridge import Bridge, Memory, _Noise, in_body
from egno_md.forecast.forecasters import InternalMotion
from egno_md.molecule.geometry import aligned
from egno_md.molecule.local import LocalGeometry


@pytest.mark.parametrize("fast", [0.3, 0.6])
@pytest.mark.parametrize("lengths", [(50, 7), (23, 1), (2,) * 25])
def test_memory_is_the_least_squares_of_exponentials(lengths, fast):
    """Of the products of all frames up to 24 spacings apart; the more there are and the nearer, the more they count."""
    runs = [wobbling(n, seed)[0] for seed, n in enumerate(lengths)]
    mean = InternalMotion.fit(runs).mean
    found = Memory.fit(runs, mean, fast)
    most = min(24, max(lengths) - 1)
    displaced = [in_body(x, mean)[0] for x in runs]
    rows, values = [], []
    constants = np.array([fast, *np.geomspace({0.3: 0.7, 0.6: 0.9}[fast], 2 * max(most, 2), 8)])
    for lag in range(most + 1):
        products = np.concatenate([np.sum(x[lag:] * x[: len(x) - lag], axis=-1) / 3 for x in displaced if len(x) > lag])
        trust = np.sqrt(len(products) / (1 + lag))
        rows.append(trust * np.exp(-lag / constants))
        values.append(trust * products.mean(axis=0))
        if lag == 0:
            variance = products.mean(axis=0)
    amounts = np.stack([nnls(np.array(rows), column)[0] for column in np.transpose(values)])
    amounts[:, 0] += np.maximum(variance - amounts.sum(axis=1), 0) + 1e-9
    np.testing.assert_allclose(found.constants, constants)
    np.testing.assert_allclose(found.amounts, amounts, atol=1e-8)
    assert (found.amounts.sum(axis=1) >= variance).all()


def test_a_long_run_is_read_in_blocks(monkeypatch):
    """A pair that two blocks share is not read: 96 frames of each are enough, however many atoms."""
    x = wobbling(200)[0]
    mean = InternalMotion.fit([x]).mean
    parts = Memory.fit([x[:96], x[96:192], x[192:]], mean, 0.5)
    monkeypatch.setattr(module, "CHUNK_NUMBERS", 1)
    np.testing.assert_allclose(Memory.fit([x], mean, 0.5).amounts, parts.amounts, atol=1e-9)
    monkeypatch.setattr(module, "CHUNK_NUMBERS", 18 * 130)
    parts = Memory.fit([x[:130], x[130:]], mean, 0.5)
    np.testing.assert_allclose(Memory.fit([x], mean, 0.5).amounts, parts.amounts, atol=1e-9)


def test_what_a_run_gains_from_frame_to_frame():
    """Of a rigid molecule that moves and turns: mean squares of its steps, of each coordinate."""
    rng = np.random.default_rng(0)
    still = 3 * rng.normal(size=(5, 3))
    turns, moves = 0.1 * rng.normal(size=(31, 3)), rng.normal(size=(31, 3))
    rotations = [Rotation.identity()]
    for turn in turns[1:]:
        rotations.append(Rotation.from_rotvec(turn) * rotations[-1])
    places = np.cumsum(moves, axis=0)
    centred = still - still.mean(axis=0)
    run = np.stack([r.apply(centred) + place for r, place in zip(rotations, places, strict=True)])
    some, other = run[:20], run[20:]
    found = Bridge.fit([some, other], np.empty((0, 2), int), 4)
    gone = [k for k in range(1, 31) if k != 20]  # from the one run to the other nothing goes on
    expected = [np.mean(moves[gone] ** 2), np.mean(turns[gone] ** 2)]
    np.testing.assert_allclose(found.diffusion, expected, rtol=1e-6)
    assert found.factor == 4 and found.directions.shape == (31, 5, 3)
    # Of more than 128 frames every so many.
    assert len(Bridge.fit([np.tile(run, (9, 1, 1))], np.empty((0, 2), int), 2).directions) == 93
    assert len(Bridge.fit([np.tile(run, (9, 1, 1))[:256]], np.empty((0, 2), int), 2).directions) == 128


@pytest.mark.parametrize("remembers", [True, False])
def test_a_path_sees_three_frames_on_either_side(remembers, monkeypatch):
    """Each interval by itself: the mean of its displacements given up to six frames, put where the molecule is."""
    x, bonds = wobbling(40 if remembers else 12)
    bridge = Bridge.fit([x], np.array(bonds), 3)
    assert (bridge.memory is not None) == remembers
    assert not remembers or bridge.memory.constants[0] == 0.5  # what nobody sees is forgotten in half a spacing
    monkeypatch.setattr(LocalGeometry, "project", lambda self, frames: frames)
    monkeypatch.setattr(LocalGeometry, "outside", lambda self, frames: np.zeros(frames.shape[:2]))
    found = np.concatenate(list(bridge.fill(x)))
    moved, rotation, centre = in_body(x, bridge.mean)
    wanted = np.array([1 / 3, 2 / 3])
    for i in range(len(x) - 1):
        seen = np.arange(max(0, i - 2), min(len(x), i + 4))
        if remembers:
            weights = bridge.memory.weights((seen - i).astype(float), wanted)
        else:
            weights = np.zeros((6, 2, len(seen)))
            weights[:, :, seen == i], weights[:, :, seen == i + 1] = (1 - wanted)[:, None], wanted[:, None]
        path = bridge.mean + np.einsum("njp,pnx->jnx", weights, moved[seen])
        turn = Rotation.from_matrix(rotation[i].T @ rotation[i + 1]).as_rotvec()
        for j, step in enumerate(wanted):
            frame = path[j] @ (rotation[i] @ Rotation.from_rotvec(step * turn).as_matrix()).T
            frame = frame + centre[i] + step * (centre[i + 1] - centre[i])
            np.testing.assert_allclose(found[i, j], frame, atol=1e-9)


def test_a_frame_that_is_stuck_is_taken_from_the_nearer_saved_one(monkeypatch):
    """By a quarter, half, three quarters and all of the way, as far as it has to go."""
    x, bonds = wobbling(30)
    bridge = Bridge.fit([x], np.array(bonds), 4)
    saved = x[:2] - x[:2].mean(axis=1, keepdims=True)
    paths = np.stack([saved[0] + [0.0, 0, k] for k in (1, 2, 3)])[None].copy()
    paths[0, :, 0] += [[0.0, 0.8, 0]] * 3
    tried = []

    def project(self, frames):
        tried.append(frames.copy())
        return frames.copy()

    monkeypatch.setattr(LocalGeometry, "project", project)
    monkeypatch.setattr(LocalGeometry, "outside", lambda self, frames: np.array([[0.0, 0.011, 0.0099]]))
    bridge._held(paths, saved)
    assert len(tried) == 5
    near = aligned(saved[0], paths[0, 1]) + paths[0, 1].mean(axis=0)  # the second step of four is halfway
    for share, frames in zip((0.25, 0.5, 0.75, 1.0), tried[1:], strict=True):
        np.testing.assert_allclose(frames, (paths[0, 1] + share * (near - paths[0, 1]))[None], atol=1e-9)
    tried.clear()
    monkeypatch.setattr(LocalGeometry, "outside", lambda self, frames: np.array([[0.0, 0.0, 0.02]]))
    bridge._held(paths, saved)
    near = aligned(saved[1], paths[0, 2]) + paths[0, 2].mean(axis=0)
    np.testing.assert_allclose(tried[1][0], paths[0, 2] + 0.25 * (near - paths[0, 2]), atol=1e-9)


class Counting:
    """Standard normal numbers that are known: 1, 2, 3, ..."""

    def __init__(self):
        self.last = 0

    def standard_normal(self, shape):
        first, self.last = self.last + 1, self.last + int(np.prod(shape))
        return np.arange(first, self.last + 1.0).reshape(shape) / 10


@pytest.mark.parametrize("remembers", [True, False])
def test_free_paths_are_combinations_of_the_directions(remembers):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4, 2, 3))
    memory = Memory(np.array([0.5, 3.0]), np.array([[0.1, 0.2], [0.3, 0.4]])) if remembers else None
    bridge = Bridge(3, np.zeros((2, 3)), memory, None, directions, np.zeros(2))
    noise, numbers = _Noise(bridge, Counting()), Counting()
    variance = np.mean(directions**2, axis=(0, 2))
    constants, amounts = (memory.constants, memory.amounts) if remembers else (np.ones(1), variance[:, None])
    n = len(constants)
    state, frames = numbers.standard_normal((n, 4)), []
    for _ in range(3 * 4 + 1):
        by_constant = np.einsum("rm,mnx->rnx", state, directions)
        frames.append(np.einsum("nr,rnx->nx", np.sqrt(amounts / variance[:, None] / 4), by_constant))
        keep = np.exp(-1 / (3 * constants))[:, None]
        state = keep * state + np.sqrt(1 - keep**2) * numbers.standard_normal((n, 4))
    for interval, low, high in ((0, 0, 3), (1, 0, 4), (2, 1, 5), (3, 2, 5)):
        known, between = noise.around(interval, low, high)
        np.testing.assert_allclose(known, [frames[3 * k] for k in range(low, high)], rtol=1e-6)
        np.testing.assert_allclose(between, [frames[3 * interval + j] for j in (1, 2)], rtol=1e-6)
    assert min(noise.frames) == 6 and max(noise.frames) == 12  # what nobody asks for again is given up


def test_a_molecule_goes_and_turns_as_a_bridge_of_diffusion():
    rng = np.random.default_rng(0)
    rotation, centre = Rotation.random(2, rng=rng).as_matrix(), rng.normal(size=(2, 1, 3))
    bridge = Bridge(4, np.zeros((2, 3)), None, None, np.zeros((1, 2, 3)), np.array([0.25, 0.01]))
    turn, place = bridge._rigid(rotation, centre, Counting())
    steps = np.arange(1, 25).reshape(4, 2, 3) / 10 / 2  # by the root of the number of steps
    whole = steps.sum(axis=0)
    way = Rotation.from_matrix(rotation[0].T @ rotation[1]).as_rotvec()
    for j in range(3):
        share = (j + 1) / 4
        off = steps[: j + 1].sum(axis=0) - share * whole
        np.testing.assert_allclose(place[j, 0], centre[0, 0] + share * (centre[1] - centre[0])[0] + 0.5 * off[0])
        expected = rotation[0] @ Rotation.from_rotvec(share * way + 0.1 * off[1]).as_matrix()
        np.testing.assert_allclose(turn[j], expected, atol=1e-12)


@pytest.mark.parametrize(("n_frames", "share"), [(1001, 0.5), (1002, 1.0)])
def test_of_more_than_a_thousand_steps_every_second_tells_what_is_gained(n_frames, share):
    still = 3 * np.random.default_rng(0).normal(size=(3, 3))
    place = np.repeat(np.arange(n_frames), 2)[1 : n_frames + 1]  # every second step stands still
    run = still + 0.6 * np.stack([place, 0 * place, 0 * place], axis=1)[:, None]
    found = Bridge.fit([run], np.empty((0, 2), int), 2).diffusion
    np.testing.assert_allclose(found, [share * 0.6**2 / 3, 0], atol=1e-9)


def test_a_frame_bends_the_paths_of_three_intervals_on_either_side_and_no_others(monkeypatch):
    """Noise that is forgotten at once on a motion that is not: every frame that is looked at tells something."""
    x, bonds = wobbling(14)
    bridge = Bridge.fit([x], np.array(bonds), 2)
    memory = Memory(np.array([0.5, 5.0]), np.full((len(bridge.mean), 2), 0.1))
    bridge = dataclasses.replace(bridge, memory=memory)
    monkeypatch.setattr(LocalGeometry, "project", lambda self, frames: frames)
    monkeypatch.setattr(LocalGeometry, "outside", lambda self, frames: np.zeros(frames.shape[:2]))
    before = np.concatenate(list(bridge.fill(x)))
    for k in (0, 1, 6, 12, 13):
        other = x.copy()
        other[k, 0] += [0.3, 0, 0]
        changed = np.abs(np.concatenate(list(bridge.fill(other))) - before).max(axis=(1, 2, 3)) > 1e-6
        expected = [i for i in range(13) if k - 3 <= i <= k + 2]  # from three before its end to two after its begin
        assert np.flatnonzero(changed).tolist() == expected
