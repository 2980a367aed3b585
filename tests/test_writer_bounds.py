"""What a written frame may be up to its bounds, and the chains, the place and the lines of the PDB file beside it."""

from __future__ import annotations

import warnings

import MDAnalysis as mda
import numpy as np
import pytest
from conftest import make_universe

from egno_md.errors import OutputError, UsageError
from egno_md.trajectory.writer import Frames, Topology, write_forecast

EPS = float(np.finfo(np.float32).eps)
ONE = np.zeros((1, 3))


@pytest.mark.parametrize("suffix", ["dcd", "xtc"])
def test_a_frame_has_an_atom_a_spacing_and_a_time(suffix):
    frames = Frames(f"a.{suffix}", 1, dt=2.0)
    assert [frames.checked(ONE, None, None, k)[2] for k in (0, 3)] == [0.0, 6.0]
    assert Frames(f"a.{suffix}", 1, dt=2.0, start_time=5.0).checked(ONE, None, None, 3)[2] == 11.0
    for wrong in (dict(n_atoms=0, dt=1.0), dict(n_atoms=1, dt=0.0), dict(n_atoms=1, dt=np.inf)):
        with pytest.raises(UsageError, match="n_atoms=0|must be a positive number"):
            Frames(f"a.{suffix}", **wrong)
    with pytest.raises(UsageError, match="start_time=nan is not a time"):
        Frames(f"a.{suffix}", 1, dt=1.0, start_time=np.nan)
    with pytest.raises(UsageError, match="has the time nan"):
        frames.checked(ONE, None, np.nan, 0)
    for shape in ((2, 3), (1, 2), (3,)):
        with pytest.raises(UsageError, match=r"expected \(1, 3\)"):
            frames.checked(np.zeros(shape), None, None, 0)


def test_the_first_atom_that_is_not_finite_is_named():
    xyz = np.zeros((4, 3))
    xyz[2, 1] = xyz[3, 0] = np.nan
    with pytest.raises(OutputError, match="frame 7 .* the position of atom 2 is"):
        Frames("a.xtc", 4, dt=1.0).checked(xyz, None, None, 7)


@pytest.mark.parametrize("suffix", ["dcd", "xtc"])
def test_a_coordinate_lies_within_what_the_format_holds(suffix):
    frames = Frames(f"a.{suffix}", 1, dt=1.0)
    largest = frames._format.largest
    for value in (largest, -largest):
        frames.checked(np.array([[0, 0.999 * value, 0]]), None, None, 0)
        with pytest.raises(OutputError, match="is beyond the"):
            frames.checked(np.array([[0, value, 0]]), None, None, 0)


def test_times_of_a_dcd_file_are_even_to_a_thousandth():
    frames = Frames("a.dcd", 1, dt=2.0, start_time=10.0)
    open_ = 2e-3 + 4 * EPS * 16
    for off in (0.99 * open_, -0.99 * open_):
        assert frames.checked(ONE, None, 16.0 + off, 3)[2] == 16.0 + off
        with pytest.raises(UsageError, match="frame 3 is at .* holds evenly spaced frames only, here at 16 ps"):
            frames.checked(ONE, None, 16.0 + 1.02 * off, 3)
    assert Frames("a.xtc", 1, dt=2.0).checked(ONE, None, 77.0, 3)[2] == 77.0


def test_a_box_is_in_every_frame_of_a_dcd_file_or_in_none():
    box = [40, 50, 60, 90, 90, 90]
    for first, other, words in ((box, None, "has no box"), (None, box, "has a box"), ([0] * 6, box, "has a box")):
        frames = Frames("a.dcd", 1, dt=1.0)
        cell = frames.checked(ONE, first, None, 0)[1]
        assert (cell is None) == (first is not box)
        frames.checked(ONE, first, None, 1)
        with pytest.raises(UsageError, match=f"frame 1 {words}, unlike the frames before it"):
            frames.checked(ONE, other, None, 1)
        loose = Frames("a.xtc", 1, dt=1.0)
        loose.checked(ONE, first, None, 0)
        loose.checked(ONE, other, None, 1)
    frames = Frames("a.xtc", 1, dt=1.0)
    for wrong in ([40, 50, 60], [40, 50, np.inf, 90, 90, 90], [40, 50, 60, 10, 10, 90]):
        with pytest.raises(UsageError, match="expected six finite numbers|which no cell can have"):
            frames.checked(ONE, wrong, None, 0)
    with pytest.raises(UsageError, match="which no cell can have"):
        frames.checked(ONE, [0, 0, 60, 90, 90, 90], None, 0)  # a length of three is no sign of none


def written(tmp_path, positions, **options):
    u = make_universe(1)
    write_forecast(tmp_path / "o.xtc", u.atoms, positions, np.arange(float(len(positions))), force=True, **options)
    return (tmp_path / "o.pdb").read_text().splitlines(), mda.Universe(str(tmp_path / "o.pdb"))


@pytest.mark.parametrize(("low", "high", "moved"), [(-999, 9999, False), (-999.95, 0, True), (9000, 9999.95, True)])
def test_a_topology_is_moved_where_its_columns_do_not_hold_it(tmp_path, low, high, moved):
    positions = np.tile(make_universe(1).atoms.positions, (2, 1, 1))
    positions[:, :, 0] += low
    positions[:, 0, 0], positions[:, 1, 0] = low, high
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, back = written(tmp_path, positions, recentre=True)
    assert any("is moved to the origin" in str(w.message) for w in said) == moved
    shift = np.round(positions[0].mean(axis=0)) if moved else np.zeros(3)
    np.testing.assert_allclose(back.atoms.positions, positions[0] - shift, atol=2e-3)


def test_remarks_stand_before_the_atoms_and_spreads_in_their_column(tmp_path):
    positions = make_universe(1).atoms.positions[None]
    lines, back = written(tmp_path, positions, remarks=("one", "two"), b_factors=np.arange(10.0))
    first = lines.index("REMARK   6 one")
    assert lines[first + 1] == "REMARK   6 two" and all(line.startswith(("HEADER", "TITLE")) for line in lines[:first])
    assert not any(line.startswith("CRYST1") for line in lines) and lines[-1].startswith("END")
    np.testing.assert_allclose(back.atoms.tempfactors, np.arange(10.0))
    boxed, _ = written(tmp_path, positions, boxes=[40, 50, 60, 90, 90, 90])
    assert any(line.startswith("CRYST1   40.000   50.000   60.000") for line in boxed)


def test_the_bonds_of_a_topology_are_in_every_file_that_is_written_of_it(tmp_path):
    u = make_universe(2)
    topology = Topology(u.atoms)
    for k in range(3):
        topology.write(tmp_path / "part.pdb", tmp_path / "o.pdb", u.trajectory[k % 2].positions, None)
        lines = (tmp_path / "part.pdb").read_text().splitlines()
        assert sum(line.startswith("CONECT") for line in lines) == 10 and lines[-1].startswith("END")


def lettered(tmp_path, chains, segids=None):
    """Chain letters of two atoms each, as they are read back."""
    n = len(chains)
    segments = segids or ["SYSTEM"]
    u = mda.Universe.empty(
        2 * n, n_residues=n, n_segments=len(segments), atom_resindex=np.repeat(np.arange(n), 2),
        residue_segindex=np.arange(n) if segids else None, trajectory=True,
    )  # fmt: skip
    u.add_TopologyAttr("names", [f"C{k}" for k in range(2 * n)])
    u.add_TopologyAttr("resids", [1] * n)
    u.add_TopologyAttr("segids", segments)
    if any(chains):
        u.add_TopologyAttr("chainIDs", np.repeat(chains, 2))
    u.load_new(np.random.default_rng(0).normal(size=(1, 2 * n, 3)).astype(np.float32), dt=1.0)
    write_forecast(tmp_path / "o.xtc", u.atoms, u.trajectory.coordinate_array, [0.0], force=True)
    return "".join(mda.Universe(str(tmp_path / "o.pdb")).atoms.chainIDs[::2])


def test_every_chain_has_a_letter_of_its_own(tmp_path):
    assert lettered(tmp_path, ["Q", "R"]) == "QR"
    assert lettered(tmp_path, ["", ""], ["PROA", "PROB"]) == "AB"
    assert lettered(tmp_path, ["", ""], ["B", "LIG"]) == "BA"  # a segment of one letter keeps it
    assert lettered(tmp_path, ["", ""], ["A", "LIG"]) == "AB"
    assert lettered(tmp_path, ["Q", ""], ["A", "B"]) == "QB"
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    assert lettered(tmp_path, [""] * 64, [f"S{k}" for k in range(64)]) == letters + "AB"
