"""Frames between saved ones: what stays, what is filled in, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import MDAnalysis as mda
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.linalg import solve
from scipy.spatial.transform import Rotation

from egno_md import Interpolated, open_universe, sample
from egno_md.cli import main
from egno_md.errors import DataError, OutputError, UsageError
from egno_md.forecast.bridge import Bridge, Memory
from egno_md.forecast.forecasters import InternalMotion
from egno_md.molecule.geometry import bond_lengths, superposed_rmsd, superposition
from egno_md.molecule.local import LocalGeometry
from egno_md.molecule.molecule import Molecule
from egno_md.trajectory.universe import in_memory_universe


def command(*arguments, check=True, **options):
    done = subprocess.run(
        [sys.executable, "-m", "egno_md", "interpolate", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def universe_of(frames, times=None, box=None, bonds=(), elements="C"):
    n = frames.shape[1]
    u = mda.Universe.empty(n, n_residues=1, atom_resindex=[0] * n, trajectory=True)
    u.add_TopologyAttr("names", [f"{elements}{k}" for k in range(n)])
    u.add_TopologyAttr("elements", [elements] * n)
    u.add_TopologyAttr("resnames", ["LIG"])
    u.add_TopologyAttr("bonds", list(bonds))
    times = np.arange(len(frames), dtype=float) if times is None else times
    return in_memory_universe(u.atoms, frames.astype(np.float32), times, box)


def wobbling(frames=60, seed=0, n=6):
    """A bent chain of atoms that turns, moves and trembles; and its bonds."""
    rng = np.random.default_rng(seed)
    still = np.cumsum([[1.4 * np.cos(0.5 * (k % 2)), 1.4 * np.sin(0.5 * (k % 2)), 0.3 * k] for k in range(n)], axis=0)
    angle = np.cumsum(rng.normal(0, 0.05, frames))
    turn = np.stack([[[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]] for a in angle])
    x = (still + rng.normal(0, 0.03, (frames, n, 3))) @ turn + np.cumsum(rng.normal(0, 0.1, (frames, 1, 3)), axis=0)
    return x, [(k, k + 1) for k in range(n - 1)]


@pytest.fixture(scope="module")
def chignolin():
    u = open_universe(*[p if k == 0 else [p] for k, p in enumerate(sample("chignolin"))])
    return u, np.array([ts.positions.copy() for ts in u.trajectory[:401]])


def test_saved_frames_come_back_and_others_lie_between_them(chignolin):
    u, frames = chignolin
    some = in_memory_universe(u.atoms, frames[:81:8].copy(), 5.0 + 8.0 * np.arange(11))
    found = Interpolated(some, 4).run().results
    np.testing.assert_array_equal(found.positions[0][found.saved], frames[:81:8])
    np.testing.assert_allclose(found.times, 5.0 + 2.0 * np.arange(41))
    assert found.saved.sum() == 11 and found.checks.n_frames == 30 and found.checks.ok


def test_the_path_errs_less_than_straight_lines_and_keeps_bonds(chignolin):
    u, frames = chignolin
    done = Interpolated(in_memory_universe(u.atoms, frames[::8].copy(), 8.0 * np.arange(51)), 8).run()
    found, kept = done.results.positions[0], frames[::8]
    lines = np.concatenate([kept[:-1] + j / 8 * np.diff(kept, axis=0) for j in range(8)])
    order = np.concatenate([np.arange(j, 400, 8) for j in range(8)])
    between = order % 8 > 0
    path, straight = (
        np.sqrt(np.mean(superposed_rmsd(x, frames[order[between]]) ** 2))
        for x in (found[order[between]], lines[between])
    )
    assert path < 0.97 * straight
    bonds = Molecule.of(u.atoms).bonds
    expected = bond_lengths(frames, bonds).mean(axis=0)
    assert np.abs(bond_lengths(found[~done.results.saved], bonds) - expected).max() < 0.1
    assert np.abs(bond_lengths(lines, bonds) - expected).max() > 0.5


def test_a_ring_that_turns_over_stays_a_ring():
    angles = np.arange(6) * np.pi / 3
    ring = np.stack([1.4 * np.cos(angles), 1.4 * np.sin(angles), 0 * angles], axis=1)
    axis = np.array([[-4.3, 0, 0], [-2.9, 0, 0], [-2.9, 1.4, 0.0]])
    rng = np.random.default_rng(1)
    frames = []
    for k in range(30):
        a = np.deg2rad(150) * (k % 2)  # about the axis of its first bond
        turned = ring @ np.array([[1, 0, 0], [0, np.cos(a), np.sin(a)], [0, -np.sin(a), np.cos(a)]])
        frames.append(np.concatenate([turned, axis]) + rng.normal(0, 0.01, (9, 3)))
    frames = np.array(frames)
    bonds = np.array([(k, (k + 1) % 6) for k in range(6)] + [(3, 7), (6, 7), (7, 8)])
    (paths,) = Bridge.fit([frames], bonds, 4).fill(frames)
    lengths = bond_lengths(paths, bonds)[..., :6]
    across = bond_lengths(paths, np.array([(0, 3), (1, 4), (2, 5)]))
    assert np.abs(lengths - 1.4).max() < 0.12 and np.abs(across - 2.8).max() < 0.2
    straight = (frames[1:] + frames[:-1]) / 2
    assert bond_lengths(straight, np.array([(1, 5)])).min() < 1.0  # 2.4 in a ring


def test_a_frame_without_a_way_back_begins_again_nearer_to_a_saved_one():
    k = np.arange(30)
    helix = np.stack([1.2 * np.cos(1.7 * k), 1.2 * np.sin(1.7 * k), 0.6 * k], axis=1)
    frames = helix + np.random.default_rng(0).normal(0, 0.02, (40, 30, 3))
    bridge = Bridge.fit([frames], np.stack([k[:-1], k[1:]], axis=1), 4)
    paths = np.stack([frames[:2]] * 3, axis=1)  # (2, 3, 30, 3)
    paths[1, 1] = paths[1, 1] * [1, 1, -1] + [9, 0, 0]
    centre = paths[1, 1].mean(axis=0)
    alone = bridge.geometry.project(paths)
    assert bridge.geometry.outside(alone)[1, 1] > 0.1
    held = bridge._held(paths, frames[:3])
    assert bridge.geometry.outside(held).max() < 0.01
    np.testing.assert_allclose(held[1, 1].mean(axis=0), centre)  # where it was
    np.testing.assert_array_equal(held[0], alone[0])


def test_the_mean_path_is_that_of_the_covariance_in_closed_form():
    """Of an Ornstein-Uhlenbeck process the frames next to it alone count: sinh weights."""
    memory = Memory(np.array([2.0]), np.array([[1.0]]))
    wanted = np.array([0.25, 0.5])
    weights = memory.weights(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), wanted)[0]
    a = 1 / 2.0
    expected = np.zeros((2, 5))
    expected[:, 2], expected[:, 3] = np.sinh(a * (1 - wanted)) / np.sinh(a), np.sinh(a * wanted) / np.sinh(a)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    two = Memory(np.array([0.3, 5.0]), np.array([[0.5, 2.0]]))
    known = np.array([-1.0, 0.0, 1.0, 2.0])

    def cov(t):
        return 0.5 * np.exp(-np.abs(t) / 0.3) + 2.0 * np.exp(-np.abs(t) / 5.0)

    by_hand = solve(cov(known[:, None] - known), cov(known[:, None] - 0.5))[:, 0]
    np.testing.assert_allclose(two.weights(known, np.array([0.5]))[0, 0], by_hand, atol=1e-6)


def test_memory_is_read_off_the_frames():
    rng = np.random.default_rng(3)
    slow = np.zeros((4000, 5, 3))
    for k in range(1, 4000):
        slow[k] = np.exp(-1 / 6) * slow[k - 1] + np.sqrt(1 - np.exp(-2 / 6)) * rng.normal(0, 0.3, (5, 3))
    still = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9], [9.0, 9, 9]])
    found = Memory.fit([still + slow], still - still.mean(axis=0), 0.5)
    lags = np.array([0, 1, 4, 8])
    mean = np.einsum("nr,rl->l", found.amounts, np.exp(-lags / found.constants[:, None])) / 5
    np.testing.assert_allclose(mean / mean[0], np.exp(-lags / 6), atol=0.08)


def test_memory_takes_twenty_pairs_and_runs_of_any_length():
    x, _ = wobbling(21)
    mean = InternalMotion.fit([x]).mean
    assert Memory.fit([x], mean, 0.5) is not None and Memory.fit([x[:20]], mean, 0.5) is None
    one, other = (Memory.fit(runs, mean, 0.5) for runs in ([x, x[:3]], [x[:3], x]))
    np.testing.assert_allclose(one.amounts, other.amounts, atol=1e-9)


def test_drawn_paths_pass_through_the_frames_and_spread_between_them():
    x, bonds = wobbling(24)
    u = universe_of(x, bonds=bonds)
    one, again, other = (Interpolated(u, 4, samples=3, seed=s).run().results for s in (1, 1, 2))
    np.testing.assert_array_equal(one.positions, again.positions)
    assert np.abs(one.positions - other.positions).max() > 0.01
    for member in one.positions:
        np.testing.assert_array_equal(member[one.saved], x.astype(np.float32))
    spread = one.positions.std(axis=0)
    assert spread[one.saved].max() < 1e-5 and spread[~one.saved].mean() > 0.01
    fewer = Interpolated(u, 4, samples=1, seed=1).run().results  # a member does not depend on how many there are
    np.testing.assert_array_equal(fewer.positions[0], one.positions[0])


def test_drawn_paths_spread_as_bridges_between_what_is_known():
    """Ends that never move: the shape spreads as an Ornstein-Uhlenbeck bridge, place and turn as Brownian ones."""
    still = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    ends, u = np.repeat(still[None], 601, axis=0), np.array([0.25, 0.5, 0.75])
    free = dataclasses.replace(LocalGeometry.fit([ends], np.empty((0, 2), int)), closest=np.zeros(1))
    each = np.eye(12).reshape(12, 4, 3)  # directions in which every number of every atom is on its own
    shape = Bridge(4, still, Memory(np.array([2.0]), np.full((4, 1), 0.09)), free, each, np.zeros(2))
    drawn = np.concatenate(list(shape.fill(ends, np.random.default_rng(0)))) - still  # (600, 3, 4, 3)
    expected = 0.09 * 2 * np.sinh(u / 2) * np.sinh((1 - u) / 2) / np.sinh(0.5)
    np.testing.assert_allclose(np.mean(drawn**2, axis=(0, 2, 3)), expected, rtol=0.08)

    whole = Bridge(4, still, Memory(np.ones(1), np.full((4, 1), 1e-16)), free, each, np.array([0.5, 0.04]))
    drawn = np.concatenate(list(whole.fill(ends, np.random.default_rng(1))))  # (600, 3, 4, 3)
    np.testing.assert_allclose(np.mean(drawn.mean(axis=2) ** 2, axis=(0, 2)), 0.5 * u * (1 - u), rtol=0.12)
    turns = Rotation.from_matrix(superposition(drawn.reshape(-1, 4, 3), still)[0]).as_rotvec().reshape(600, 3, 3)
    np.testing.assert_allclose(np.mean(turns**2, axis=(0, 2)), 0.04 * u * (1 - u), rtol=0.12)


def test_paths_turn_with_the_molecule_and_do_not_depend_on_the_chunk(monkeypatch):
    x, bonds = wobbling(50)
    turn = np.array([[0, 1, 0], [0, 0, 1], [1.0, 0, 0]])
    found = np.concatenate(list(Bridge.fit([x], np.array(bonds), 3).fill(x)))
    turned = np.concatenate(list(Bridge.fit([x @ turn + 5], np.array(bonds), 3).fill(x @ turn + 5)))
    np.testing.assert_allclose(turned, found @ turn + 5, atol=1e-3)
    monkeypatch.setattr("egno_md.forecast.bridge.CHUNK_NUMBERS", 4 * 3 * 18 * 7)
    bridge = Bridge.fit([x], np.array(bonds), 3)
    parts = list(bridge.fill(x))
    assert len(parts) > 3
    np.testing.assert_allclose(np.concatenate(parts), np.concatenate(list(bridge.fill(x[:]))), atol=1e-10)


def test_gaps_are_left_and_dcd_refuses_them(tmp_path):
    x, bonds = wobbling(40)
    times = np.concatenate([np.arange(20), 25 + np.arange(20)]).astype(float)
    u = universe_of(x, times, bonds=bonds)
    with pytest.warns(UserWarning, match="not 1 ps apart throughout"):
        done = Interpolated(u, 2, filename=tmp_path / "a.dcd")
    with pytest.raises(UsageError, match="a.xtc"):
        done.run()
    with pytest.warns(UserWarning):
        found = Interpolated(u, 2, filename=tmp_path / "a.xtc").run().results
    assert len(found.times) == 78 and "1 gap of" in found.notes[0]
    assert not np.any((found.times > 19) & (found.times < 25))
    read = mda.Universe(str(tmp_path / "a.pdb"), str(tmp_path / "a.xtc"))
    np.testing.assert_allclose([ts.time for ts in read.trajectory], found.times)
    np.testing.assert_allclose(read.trajectory[0].positions, x[0], atol=0.006)


def test_a_run_that_was_begun_again_goes_on_from_there(tmp_path):
    x, bonds = wobbling(40)
    parts = [np.arange(20), np.arange(15, 30), np.arange(12, 40)]  # the second one is begun again before its start, too
    frames = np.concatenate(parts)
    y = x[frames]
    y[12:35] += 1.0  # what leads nowhere is not what came
    u = universe_of(y, frames.astype(float), bonds=bonds)
    with pytest.warns(UserWarning, match="not 1 ps apart throughout"):
        found = Interpolated(u, 2, filename=tmp_path / "a.dcd").run().results  # evenly spaced, so that DCD will do
    np.testing.assert_allclose(found.times, np.arange(0, 39.5, 0.5))
    assert found.saved.sum() == 40 and len(found.notes) == 1 and "23 frames between 12 and 29 ps" in found.notes[0]
    read = mda.Universe(str(tmp_path / "a.pdb"), str(tmp_path / "a.dcd"))
    np.testing.assert_allclose([ts.positions for ts in read.trajectory[::2]], x, atol=1e-4)


def test_overlaps_that_are_off_the_grid_are_gaps_and_other_runs_are_refused():
    x, bonds = wobbling(40)
    with pytest.warns(UserWarning, match="throughout"):
        u = universe_of(x, np.concatenate([np.arange(20), 14.5 + np.arange(20)]), bonds=bonds)
        found = Interpolated(u, 2).run().results
    assert (np.diff(found.times) > 0).all() and found.saved.sum() == 35  # 0 ... 14, 14.5 ...
    with pytest.warns(UserWarning, match="throughout"):
        runs = Interpolated(universe_of(x, np.tile(np.arange(20.0), 2), bonds=bonds), 2)
    with pytest.raises(DataError, match="goes back to 0 ps at frame 20, .* stop=20.* start=20"):
        runs.run()
    np.testing.assert_array_equal(runs.run(stop=20).results.times, np.arange(0, 19.5, 0.5))
    np.testing.assert_allclose(runs.run(start=20).results.positions[0, ::2], x[20:], atol=1e-5)


def test_molecules_are_put_together_across_the_border():
    x, bonds = wobbling(30)
    box = np.array([12.0, 12, 12, 90, 90, 90])
    wrapped = x % 12
    assert np.abs(np.diff(wrapped, axis=0)).max() > 6
    found = Interpolated(universe_of(wrapped, box=box, bonds=bonds), 2).run()
    assert bond_lengths(found.results.positions[0], np.array(bonds)).max() < 2.5
    apart = found.results.positions[0][found.results.saved] - wrapped
    np.testing.assert_allclose(apart / 12, np.rint(apart / 12), atol=1e-5)
    assert "put together" in " ".join(found.results.notes)
    np.testing.assert_allclose(found.universe.trajectory[1].dimensions, box)


def test_a_short_run_goes_straight_and_says_so():
    x, bonds = wobbling(3)
    found = Interpolated(universe_of(x, bonds=bonds), 2).run().results
    assert "straight lines" in " ".join(found.notes) and found.error is None and len(found.times) == 5
    assert superposed_rmsd(found.positions[0, 1], (x[0] + x[1]) / 2) < 0.1


def test_what_cannot_be_right_is_refused(tmp_path):
    x, bonds = wobbling(20)
    u = universe_of(x, bonds=bonds)
    for wrong in (1, 0, 2.5, 5000):
        with pytest.raises(UsageError, match="factor"):
            Interpolated(u, wrong)
    with pytest.raises(UsageError, match="samples"):
        Interpolated(u, samples=0)
    with pytest.raises(UsageError, match="seed"):
        Interpolated(u, samples=1, seed=-1)
    with pytest.raises(UsageError, match="fast_ps"):
        Interpolated(u, fast_ps=0)
    with pytest.raises(DataError, match=r"has 1 frame;"):
        Interpolated(universe_of(x[:1], bonds=bonds))
    with pytest.raises(UsageError, match="frames 0 to 19"):
        Interpolated(u).run(5, 40)
    with pytest.raises(DataError, match="nothing to fill in"):
        Interpolated(u).run(5, 6)
    bad = x.copy()
    bad[7, 2] = np.nan
    with pytest.raises(DataError, match="frame 7 .* not finite"):
        Interpolated(universe_of(bad, bonds=bonds)).run()
    many = np.tile(x[:, :1], (1, 30, 1)) + 5 * np.arange(30)[:, None]
    with pytest.raises(DataError, match="30 molecules that no bond joins"):
        Interpolated(universe_of(many)).run()
    solvated = np.concatenate([many + 20, x], axis=1)
    with pytest.raises(DataError, match=r"select='index 30:35'"):
        Interpolated(universe_of(solvated, bonds=[(a + 30, b + 30) for a, b in bonds])).run()
    (tmp_path / "there.dcd").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        Interpolated(u, filename=tmp_path / "there.dcd").run()
    assert (tmp_path / "there.dcd").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


def test_progress_is_asked_for_as_of_an_analysis_of_mdanalysis():
    x, bonds = wobbling(6)
    for verbose, told in ((True, True), (False, False), (None, False)):
        done = Interpolated(universe_of(x, bonds=bonds), 2, verbose=False).run(0, 4, verbose=verbose)
        assert done.verbose is told and done.results.positions.shape[1] == 7


def test_command_line(tmp_path):
    topology, trajectory = sample("chignolin")
    done = command(topology, trajectory, "--stop", 30, "--factor", 2, "--select", "heavy", cwd=tmp_path)
    assert "59 of" in done.stdout and "chignolin_x2.xtc" in done.stdout
    assert "A off those of the saved frame before, limit 0.5 A)" in done.stdout
    read = mda.Universe(str(tmp_path / "chignolin_x2.pdb"), str(tmp_path / "chignolin_x2.xtc"))
    real = mda.Universe(str(topology), str(trajectory))
    heavy = real.select_atoms("not element H")
    for k in (0, 7, 29):
        real.trajectory[k]
        np.testing.assert_array_equal(read.trajectory[2 * k].positions, heavy.positions)
        assert read.trajectory[2 * k].time == pytest.approx(real.trajectory[k].time)
    again = command(topology, trajectory, "--stop", 30, "--factor", 2, check=False, cwd=tmp_path)
    assert again.returncode == 1 and "exists" in again.stderr
    drawn = command(
        topology, trajectory, "--stop", 30, "--samples", 2, "--factor", 2, "-o", "d.dcd", "--json", "--select", "ca",
        cwd=tmp_path,
    )  # fmt: skip
    found = json.loads(drawn.stdout)
    assert found["files"] == ["d_1.dcd", "d_1.pdb", "d_2.dcd", "d_2.pdb"] and found["checks"]["ok"]
    both = command(topology, trajectory, "--samples", 2, "--mean", check=False, cwd=tmp_path)
    assert both.returncode == 2 and "give one of them" in both.stderr


@pytest.mark.parametrize(("name", "gains"), [("chignolin", True), ("chignolin-fine", False)])
def test_where_the_path_is_no_nearer_than_straight_lines_it_is_said(name, gains, tmp_path):
    arguments = [
        *map(str, sample(name)),
        "--select",
        "ca",
        "--factor",
        "2",
        "--stop",
        "300",
        "-o",
        str(tmp_path / "o.xtc"),
    ]
    done = CliRunner().invoke(main, ["interpolate", *arguments])
    assert done.exit_code == 0, done.output
    assert ("no nearer to the true frames than straight lines, beyond chance" in done.output) == (not gains)
    again = CliRunner().invoke(main, ["interpolate", *arguments, "--force", "--json"])
    assert json.loads(again.stdout)["error_A"]["gains"] is gains


@pytest.mark.parametrize(
    "given", [{"factor": None}, {"factor": float("nan")}, {"factor": 2.5}, {"fast_ps": "half"}, {"fast_ps": np.inf}]
)
def test_arguments_of_another_kind_are_named(given):
    x, bonds = wobbling(8)
    (name,) = given
    with pytest.raises(UsageError, match=f"^{name}="):
        Interpolated(universe_of(x, bonds=bonds), **given)
