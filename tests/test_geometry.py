"""The projections give bonds, or all that hardly varies, back; they know no direction in space."""

from __future__ import annotations

import subprocess
import sys

import MDAnalysis as mda
import numpy as np
import pytest
from conftest import Ballistic, make_model, make_universe
from scipy.spatial.transform import Rotation

from egno_md import EGNOSurrogate, load_model, sample
from egno_md.errors import DataError
from egno_md.forecast.chain import restored
from egno_md.graph.builder import GraphBuilder
from egno_md.molecule import local
from egno_md.molecule.geometry import bond_lengths, signed_volumes, superposed_rmsd, upright
from egno_md.molecule.local import LocalGeometry, keep_bonds


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
    assert np.abs(bond_lengths(kept, bonds) - wanted).max() < 0.1 + 0.01


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
        assert (off < 0.1 + 0.01) == keep
        start = u.atoms.positions.astype(float)
        stretched = restored(model, GraphBuilder(u.atoms, model.graph), 1.3 * start[None], start)
        off = np.abs(bond_lengths(stretched[0], bonds) - bond_lengths(start, bonds)).max()
        assert (off < 0.1 + 0.01) == keep


def amino_acid(n_frames=400, seed=0):
    """A chiral centre with four arms, one of them two bonds long that turns about its bond within a third of a turn."""
    rng = np.random.default_rng(seed)
    star = 1.5 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    angle = rng.uniform(0.3, 2.4, n_frames)
    along = star[4] / 1.5
    side = np.cross(along, [1.0, 0, 0])
    side /= np.linalg.norm(side)
    up = np.cross(along, side)
    tip = star[4] + 0.5 * along + 1.4 * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * up)  # (F, 3)
    frames = np.concatenate([np.broadcast_to(star, (n_frames, 5, 3)), tip[:, None]], axis=1)  # (F, 6, 3)
    bonds = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [4, 5]])
    return frames + 0.01 * rng.standard_normal(frames.shape), bonds, rng


def test_bounds_of_a_run():
    frames, bonds, _ = amino_acid()
    known = LocalGeometry.fit([frames[:150], frames[150:]], bonds)
    d = bond_lengths(frames, known.pairs)
    rigid = d.std(axis=0) < 0.12
    assert 0 < rigid.sum() < len(rigid)  # the arms to the tip turn
    np.testing.assert_allclose(known.upper[rigid] - known.lower[rigid], 4 * d.std(axis=0)[rigid], rtol=1e-6)
    np.testing.assert_allclose(known.lower[~rigid], d.min(axis=0)[~rigid])
    np.testing.assert_allclose(known.upper[~rigid], d.max(axis=0)[~rigid])
    v = signed_volumes(frames, known.corners)
    np.testing.assert_allclose([known.volume_lower, known.volume_upper], [v.min(axis=0), v.max(axis=0)])
    with pytest.raises(DataError, match="none"):
        LocalGeometry.fit([frames[:0]], bonds)


@pytest.mark.parametrize("scale", [1, 50])
def test_bonds_are_held_closer_than_what_lies_further_apart(scale):
    """Atoms on a line, whose distances are one of two: a standard deviation is half of what lies between them."""
    swing = np.array([0.015, 0.05, 0.119, 0.121])
    lengths = 1.5 + np.array([-1.0, 1])[:, None] * swing  # (2, 4)
    x = np.concatenate([np.zeros((2, 1)), np.cumsum(lengths, axis=1)], axis=1)
    frames = np.tile(x[..., None] * [1.0, 0, 0], (scale, 1, 1))
    known = LocalGeometry.fit([frames[:1], frames[1:]], np.stack([np.arange(4), np.arange(1, 5)], axis=1))
    found = {tuple(pair): bounds for pair, *bounds in zip(known.pairs, known.lower, known.upper, strict=True)}
    assert len(found) == 4 + 3 + 2 and (0, 4) not in found
    for bond, slack in (((0, 1), 0.03), ((1, 2), 0.04), ((2, 3), 0.04), ((3, 4), 0.121)):
        np.testing.assert_allclose(found[bond], [1.5 - slack, 1.5 + slack], atol=1e-9)
    np.testing.assert_allclose(found[0, 2], [3 - 0.13, 3 + 0.13], atol=1e-9)  # two of them
    np.testing.assert_allclose(found[1, 3], [3 - 0.169, 3 + 0.169], atol=1e-9)  # as far as they were
    assert known.closest[0] == pytest.approx(x[0, 4] - x[0, 0])  # the ends, which no bounds hold


@pytest.mark.parametrize("angles", [True, False])
def test_of_a_single_frame_bonds_and_angles_are_known(angles):
    frame = np.array([[0.0, 0, 0], [1.5, 0, 0], [1.5, 2.0, 0], [1.5, 2.0, 1.0]])
    known = LocalGeometry.about(frame, np.array([[0, 1], [1, 2], [2, 3]]), 2.4, angles=angles)
    bounds = {tuple(pair): bounds for pair, *bounds in zip(known.pairs, known.lower, known.upper, strict=True)}
    expected = {(0, 1): [1.4, 1.6], (1, 2): [1.9, 2.1], (2, 3): [0.9, 1.1]}
    across = {(0, 2): 2.5, (1, 3): 5**0.5}  # further apart than what is close, and nearer
    expected |= {pair: [d - 0.3, d + 0.3] if angles else [min(d, 2.4), np.inf] for pair, d in across.items()}
    assert bounds.keys() == expected.keys()
    for pair, both in expected.items():
        np.testing.assert_allclose(bounds[pair], both)
    assert known.closest[0] == 2.4 and not len(known.corners)
    default = LocalGeometry.about(frame, np.array([[0, 1], [1, 2], [2, 3]]), 2.4)
    assert np.array_equal(default.upper, known.upper) == angles


def test_frames_come_back_within_the_bounds_and_centres_to_their_side():
    frames, bonds, rng = amino_acid()
    known = LocalGeometry.fit([frames], bonds)
    centre = np.sign(signed_volumes(frames, known.corners[:1]))  # (F, 1)
    assert (centre == centre[0]).all()
    noisy = frames[:30] + 0.3 * rng.standard_normal((30, 6, 3))
    turned = frames[:30] * [1, 1, -0.2]  # through the plane, a tenth of the way to the mirror image
    assert (np.sign(signed_volumes(turned, known.corners[:1])) == -centre[:30]).all()
    for broken in (noisy, turned):
        done = known.project(broken)
        d, v = bond_lengths(done, known.pairs), signed_volumes(done, known.corners)
        before = bond_lengths(broken, known.pairs)
        assert np.abs(before - np.clip(before, known.lower, known.upper)).max() > 0.1
        assert np.abs(d - np.clip(d, known.lower, known.upper)).max() < 0.01
        assert np.abs(v - np.clip(v, known.volume_lower, known.volume_upper)).max() < 0.05
        assert (np.sign(signed_volumes(done, known.corners[:1])) == centre[0]).all()
        np.testing.assert_allclose(done.mean(axis=1), broken.mean(axis=1), atol=1e-9)
    assert np.mean((known.project(noisy) - frames[:30]) ** 2) < np.mean((noisy - frames[:30]) ** 2)
    # Real frames hardly move: the bounds of what is rigid are two standard deviations away.
    assert np.abs(known.project(frames) - frames).max() < 0.05


def test_geometry_knows_no_direction_but_a_hand():
    frames, bonds, rng = amino_acid()
    known = LocalGeometry.fit([frames], bonds)
    noisy = frames[:5] + 0.3 * rng.standard_normal((5, 6, 3))
    for mirror in (1, -1):
        turn = mirror * Rotation.random(random_state=1).as_matrix()
        difference = np.abs(known.project(noisy @ turn.T + 7) - (known.project(noisy) @ turn.T + 7)).max()
        assert (difference < 1e-8) == (mirror == 1)


def test_atoms_far_along_the_bonds_are_held_apart():
    """A chain of nine beads that is closed to a ring at its ends, which were never nearer than 4 A."""
    angle = np.arange(9) * 2 * np.pi / 9.6
    ring = 3.8 / (2 * np.sin(np.pi / 9.6)) * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    rng = np.random.default_rng(0)
    frames = ring + 0.02 * rng.standard_normal((100, 9, 3))
    bonds = np.stack([np.arange(8), np.arange(1, 9)], axis=1)
    known = LocalGeometry.fit([frames], bonds)
    least = np.linalg.norm(frames[:, 0] - frames[:, 8], axis=-1).min()
    assert known.closest == pytest.approx(least)
    clash = frames[:3].copy()
    clash[:, 8] = clash[:, 0] + 0.4 * (clash[:, 8] - clash[:, 0])
    done = known.project(clash)
    assert np.linalg.norm(clash[:, 0] - clash[:, 8], axis=-1).max() < 0.6 * least
    assert np.linalg.norm(done[:, 0] - done[:, 8], axis=-1).min() > least - 0.02


def test_a_model_keeps_the_geometry_of_the_molecules_it_knows(tmp_path):
    u = make_universe(12, velocity=0.05)
    model = make_model(Ballistic(4), keep_bonds=True)
    builder = GraphBuilder(u.atoms, model.graph)
    still = make_universe(200, velocity=0.0)
    frames = np.stack([still.atoms.positions for _ in still.trajectory])
    frames += 0.04 * np.random.default_rng(0).standard_normal(frames.shape)
    known = LocalGeometry.fit([frames], builder.bonds)
    model.geometry[builder.identity] = known
    found = EGNOSurrogate(u, model, horizon=10).run().results.positions[0]
    d = bond_lengths(found.astype(float), known.pairs)
    assert np.abs(d - np.clip(d, known.lower, known.upper)).max() < 0.02
    # Another molecule (a residue of another name) is held by the bonds of its start.
    other = make_universe(12, velocity=0.05)
    other.residues.resnames = ["LIG", "LIH"]
    free = EGNOSurrogate(other, model, horizon=10).run().results.positions[0]
    assert np.abs(bond_lengths(free.astype(float), known.pairs) - d).max() > 0.1

    real = make_model(keep_bonds=True)
    real.geometry[builder.identity] = known
    loaded = load_model(real.save(tmp_path / "m.safetensors"))
    assert list(loaded.geometry) == [builder.identity]
    for name, array in vars(loaded.geometry[builder.identity]).items():
        np.testing.assert_array_equal(array, vars(known)[name])


@pytest.fixture
def swept_by_numpy(monkeypatch):
    """Positions by the numpy version, which is the reference of the compiled one."""

    def run(project):
        with monkeypatch.context() as patch:
            patch.setattr(local, "_kernel", lambda bounds: None)
            return project()

    return run


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3, 3.0])
def test_the_kernel_has_the_digits_of_numpy(swept_by_numpy, monkeypatch, noise, dtype):
    sweep = pytest.importorskip("egno_md.molecule.kernels").sweep
    rng = np.random.default_rng(3)
    universe = mda.Universe(*map(str, sample("chignolin")))
    frames = universe.trajectory.timeseries(order="fac", stop=40).astype(np.float64)  # (F, N, 3)
    bonds = close_pairs(frames[0])
    geometry = LocalGeometry.fit([frames[:30]], bonds)
    start = (frames[30:] + rng.normal(0, noise, frames[30:].shape)).astype(dtype)
    start[1, 3] = np.nan  # a frame that is no frame is left as it is, and does not touch the others
    lengths = np.linalg.norm(frames[0, bonds[:, 0]] - frames[0, bonds[:, 1]], axis=-1)  # (B,)
    of_each = np.broadcast_to(lengths, (2, 1, len(bonds))) * np.array([1.0, 1.01])[:, None, None]  # (2, 1, B)
    sound = np.delete(start, 1, axis=0)[:8].reshape(2, 4, -1, 3)
    cases = [
        lambda: local._project(start, *bounds(geometry)),
        lambda: geometry.project(sound),
        lambda: keep_bonds(start, bonds, lengths),
        lambda: keep_bonds(sound, bonds, of_each),
    ]
    for case in cases:
        expected = swept_by_numpy(case)
        monkeypatch.setattr(local, "_kernel", lambda bounds: sweep)
        found = case()
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 if dtype is np.float64 else 0)


@pytest.mark.parametrize("axis", range(3))
def test_atoms_that_move_along_an_axis_are_looked_at_again(swept_by_numpy, monkeypatch, axis):
    """Two pairs and a volume, whose bounds are broken along one axis alone."""
    sweep = pytest.importorskip("egno_md.molecule.kernels").sweep
    way = np.eye(3)[axis]
    apart = np.array([0 * way, 3 * way, 10 * way, 11 * way, 20 * way])[None]
    pairs, lengths = np.array([[0, 1], [2, 3]]), np.array([1.5, 2.0])

    def kept():
        return keep_bonds(apart, pairs, lengths)

    expected = swept_by_numpy(kept)
    monkeypatch.setattr(local, "_kernel", lambda bounds: sweep)
    np.testing.assert_allclose(kept(), expected, atol=1e-12)
    found = np.linalg.norm(np.diff(kept()[0], axis=0)[[0, 2]], axis=1)
    assert (np.abs(found - lengths) < 0.11).all()


def bounds(geometry):
    distances = geometry.pairs, geometry.lower, geometry.upper
    return distances, (geometry.corners, geometry.volume_lower, geometry.volume_upper)


def close_pairs(frame, length=1.9):
    apart = np.linalg.norm(frame[:, None] - frame, axis=-1)
    return np.argwhere(np.triu(apart < length, 1))


def test_the_kernel_is_loaded_when_it_pays():
    code = """
import sys
import subprocess
import sys

import MDAnalysis as mda
import numpy as np
from egno_md.molecule import local
bonds, lengths = np.array([[0, 1], [1, 2]]), np.ones(2)
rng = np.random.default_rng(0)
print("numba" in sys.modules, end=" ")
local.keep_bonds(rng.normal(size=(4, 3, 3)), bonds, lengths)
print("numba" in sys.modules, end=" ")
local._swept.total = local.COMPILED_AFTER
local.keep_bonds(rng.normal(size=(4, 3, 3)), bonds, lengths)
print("numba" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]
    # At once where a single call has that many bounds.
    large = code.replace("local._swept.total = local.COMPILED_AFTER", "").replace(
        '(4, 3, 3)), bonds, lengths)\nprint("numba" in sys.modules)',
        '(local.COMPILED_AFTER // (2 * local.FEW_SWEEPS), 3, 3)), bonds, lengths)\nprint("numba" in sys.modules)',
    )
    assert large.count("FEW_SWEEPS") == 1
    done = subprocess.run([sys.executable, "-c", large], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


def test_without_numba_the_projection_goes_on(monkeypatch):
    monkeypatch.setattr(local._swept, "total", local.COMPILED_AFTER)
    monkeypatch.setitem(sys.modules, "egno_md.molecule.kernels", None)
    kept = keep_bonds(np.array([[0.0, 0, 0], [3, 0, 0]]), np.array([[0, 1]]), np.array([1.5]))
    np.testing.assert_allclose(np.linalg.norm(kept[1] - kept[0]), 1.6, atol=2e-3)


@pytest.mark.parametrize("n_atoms", [1, 2, 3, 4, 40])
def test_a_structure_stands_as_it_does_however_it_was_turned(n_atoms):
    """As itself and not as its mirror image; what is left is its own shape about the origin."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n_atoms, 3)) * [5, 3, 1]
    stands = upright(x)
    np.testing.assert_allclose(stands.mean(axis=0), 0, atol=1e-12)
    assert superposed_rmsd(x, stands) < 1e-6
    for turn in Rotation.random(5, random_state=1).as_matrix():
        np.testing.assert_allclose(upright(x @ turn.T + 30), stands, atol=1e-9)
    if n_atoms > 3:
        assert np.abs(upright(-x) - stands).max() > 0.1
    shaken = upright(x + 1e-6 * rng.normal(size=x.shape))
    assert np.abs(shaken - stands).max() < 1e-4


@pytest.mark.parametrize("direction", [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 1.0]])
def test_atoms_on_a_line_and_rings_stand_as_well(direction):
    line = np.array([-1.2, 0.1, 1.1])[:, None] * np.array(direction)
    assert superposed_rmsd(line, upright(line)) < 1e-6 and abs(np.ptp(upright(line)[:, 0])) > 2
    angle = np.arange(6) * np.pi / 3
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    turn = Rotation.random(random_state=4).as_matrix()
    np.testing.assert_allclose(upright(ring @ turn.T), upright(ring), atol=1e-9)


def test_a_frame_by_itself_has_the_digits_of_the_compiled_loop(monkeypatch):
    """A forecast that is resumed begins with numpy where the one before had the loop: one bit grows to other frames."""
    u = mda.Universe(*map(str, sample()))
    atoms = u.select_atoms("name CA")
    frames = np.array([atoms.positions for _ in u.trajectory[:40]], np.float64)
    geometry = LocalGeometry.fit([frames], np.array([[k, k + 1] for k in range(len(atoms) - 1)]))
    sweep = pytest.importorskip("egno_md.molecule.kernels").sweep
    moved = frames[:, None] + np.random.default_rng(0).normal(scale=0.2, size=(40, 1, len(atoms), 3))
    found = []
    for kernel in (None, sweep):
        monkeypatch.setattr(local, "_kernel", lambda bounds, kernel=kernel: kernel)
        found.append(np.array([geometry.project(frame) for frame in moved]))
    np.testing.assert_array_equal(*found)
