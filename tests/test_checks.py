"""Each finding is provoked on purpose in a real molecule, and real frames give none."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from egno_md.errors import DataError, UsageError
from egno_md.forecast.summed import checked
from egno_md.molecule.checks import Limits, PhysicalChecks, check_frames, nearest_contact
from egno_md.molecule.relax import CLEARANCE, Relaxation

# A carbon with four heavy neighbours at 1.5 A.
TETRAHEDRON = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=float) * 1.5 / np.sqrt(3)
TETRAHEDRON_BONDS = np.array([[0, 1], [0, 2], [0, 3], [0, 4]])


def helix(n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """C-alpha atoms of an alpha helix: 100 degrees and 1.5 A per residue, radius 2.3 A."""
    i = np.arange(n)
    angle = np.deg2rad(100.0) * i
    positions = np.stack([2.3 * np.cos(angle), 2.3 * np.sin(angle), 1.5 * i], axis=1)
    return positions, np.stack([i[:-1], i[1:]], axis=1)


def rotation(seed: int = 0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_the_reference_itself_is_fine_however_it_is_turned() -> None:
    positions, bonds = helix()
    checks = check_frames(np.stack([positions, positions @ rotation() + 5.0]), positions, bonds)
    assert checks.ok
    assert checks.messages == ()
    assert checks.n_bonds == 19
    assert checks.clash_distance == 3.0  # beads
    np.testing.assert_allclose(checks.bond_deviation, 0.0, atol=1e-12)
    np.testing.assert_allclose(checks.radius_ratio, 1.0)
    np.testing.assert_allclose(checks.handedness, 1.0)
    np.testing.assert_array_equal(checks.flipped, 0)


def test_drift_is_measured_and_no_error() -> None:
    positions, bonds = helix()
    checks = check_frames((positions + [3.0, 4.0, 0.0])[None], positions, bonds)
    np.testing.assert_allclose(checks.drift, 5.0)
    assert checks.ok


def test_stretched_bonds() -> None:
    positions, bonds = helix()
    end = positions.copy()
    along = (end[-1] - end[-2]) / np.linalg.norm(end[-1] - end[-2])
    frames = np.stack([positions, positions, positions])
    frames[1, -1] += 0.4 * along
    frames[2, -1] += 0.6 * along
    checks = check_frames(frames, positions, bonds)
    np.testing.assert_allclose(checks.bond_deviation, [0.0, 0.4, 0.6], atol=1e-9)
    np.testing.assert_array_equal(checks.bonds_off, [0, 0, 1])
    assert checks.messages == (
        "1 of 3 frames have bonds off by more than 0.5 A (up to 1 of 19, worst 0.60 A), first frame 2",
    )


def test_clashes_of_beads_and_of_atoms() -> None:
    positions, bonds = helix()
    frames = positions[None].copy()
    frames[0, 15] = frames[0, 2] + [2.5, 0.0, 0.0]
    checks = check_frames(frames, positions, bonds)
    close = np.linalg.norm(frames[0] - frames[0, 15], axis=1) < 3.0
    close[[13, 14, 15, 16, 17]] = False  # itself, and those one or two bonds away
    assert close.sum() >= 1
    assert checks.clashes[0] == close.sum()
    # The same two separate atoms with atomic distances: 2.5 A is no clash, 1.9 A is one.
    two = np.array([[0.0, 0.0, 0.0], [6.0, 0.0, 0.0]])
    near = np.array([[[0.0, 0.0, 0.0], [2.5, 0.0, 0.0]], [[0.0, 0.0, 0.0], [1.9, 0.0, 0.0]]])
    np.testing.assert_array_equal(check_frames(near, two, np.empty((0, 2), int)).clashes, [0, 1])


def test_what_is_close_in_the_reference_is_no_clash() -> None:
    two = np.array([[0.0, 0.0, 0.0], [1.6, 0.0, 0.0]])
    checks = check_frames(two[None] * [[[1.0]], [[0.8]]], two, np.empty((0, 2), int))
    assert checks.clash_distance == pytest.approx(0.85 * 1.6)
    np.testing.assert_array_equal(checks.clashes, [0, 1])


@pytest.mark.parametrize("box", [None, [30.0, 30, 30, 90, 90, 90]])
def test_two_atoms_of_the_start_in_one_place_are_not_looked_for_again(box: list[float] | None) -> None:
    start = np.array([[0.0, 0, 0], [5, 0, 0], [5, 0, 0], [10, 0, 0]])
    assert check_frames(start[None], start, np.zeros((0, 2), int), boxes=box).clashes.tolist() == [0]


def test_what_is_close_in_the_run_is_no_clash() -> None:
    """Atoms that come near each other in other frames than the reference, across the border of the box as well."""
    bonds = np.empty((0, 2), int)
    run = np.array([[[0.0, 0, 0], [d, 0, 0]] for d in (9.0, 1.7, 5.0)])
    assert nearest_contact(run, bonds) == pytest.approx(1.7)
    assert nearest_contact(run[:1], bonds) == np.inf  # nothing that counts
    assert nearest_contact(run[:1], bonds, [[10.6, 20, 20, 90, 90, 90]]) == pytest.approx(1.6, abs=1e-5)
    assert nearest_contact(run[:1], bonds, [np.zeros(6)]) == np.inf
    made = np.array([[[0.0, 0, 0], [d, 0, 0]] for d in (1.4, 1.5)])
    assert check_frames(made, run[0], bonds).clashes.tolist() == [1, 1]
    assert check_frames(made, run[0], bonds, limits=Limits(nearest=1.7)).clashes.tolist() == [1, 0]  # 0.85 of it
    three = np.array([[[0.0, 0, 0], [1.1, 0, 0], [1.6, 1.0, 0], [1.6, 2.4, 0]]])
    assert nearest_contact(three, [[0, 1], [1, 2], [2, 3]]) == np.inf  # bonds and their neighbours


def test_bonded_atoms_and_their_next_neighbours_do_not_clash() -> None:
    line = np.arange(4.0)[:, None] * [1.0, 0.0, 0.0] * 1.5
    bonds = np.array([[0, 1], [2, 1], [2, 3]])
    squeezed = line * 0.6  # 0-2 at 1.8 A, 0-3 at 2.7 A
    assert check_frames(squeezed[None], line, bonds).clashes[0] == 0
    folded = squeezed.copy()
    folded[3] = folded[0] + [0.0, 1.0, 0.0]
    assert check_frames(folded[None], line, bonds).clashes[0] == 1  # only 0-3 is three bonds apart


@pytest.mark.parametrize("box", [[20.0, 20.0, 20.0, 90.0, 90.0, 90.0], [20.0, 20.0, 20.0, 70.0, 80.0, 65.0]])
def test_clashes_across_the_box(box: list[float]) -> None:
    two = np.array([[1.0, 5.0, 5.0], [10.0, 5.0, 5.0]])
    across = np.array([[[1.0, 5.0, 5.0], [20.0, 5.0, 5.0]]])  # 1 A through the border in x
    none = np.empty((0, 2), int)
    assert check_frames(across, two, none).clashes[0] == 0
    assert check_frames(across, two, none, boxes=box).clashes[0] == 1
    assert check_frames(across, two, none, boxes=[box]).clashes[0] == 1
    assert check_frames(across, two, none, boxes=np.zeros((1, 6))).clashes[0] == 0  # no box, as DCD says it


def test_a_chiral_centre_turned_over() -> None:
    swapped = TETRAHEDRON[[0, 2, 1, 3, 4]]
    checks = check_frames(np.stack([TETRAHEDRON, swapped, TETRAHEDRON * [1, 1, -1]]), TETRAHEDRON, TETRAHEDRON_BONDS)
    assert checks.n_centres == 1
    np.testing.assert_array_equal(checks.flipped, [0, 1, 1])
    assert checks.messages == ("2 of 3 frames have chiral centres turned over (up to 1 of 1), first frame 1",)


def test_planar_centres_and_amines_may_invert() -> None:
    flat = np.array([[0, 0, 0.1], [1.4, 0, 0], [-0.7, 1.2, 0], [-0.7, -1.2, 0]])
    bonds = TETRAHEDRON_BONDS[:3]
    assert check_frames((flat * [1, 1, -1])[None], flat, bonds).n_centres == 0
    amine = TETRAHEDRON[:4].copy()
    assert check_frames((amine * [1, 1, -1])[None], amine, bonds).flipped[0] == 1  # three heavy neighbours
    amine[1] *= 1.0 / 1.5  # a hydrogen, 1.0 A away
    assert check_frames((amine * [1, 1, -1])[None], amine, bonds).n_centres == 0


def test_mirror_image_of_a_chain_without_centres() -> None:
    positions, bonds = helix()
    mirrored = positions * [1.0, 1.0, -1.0]
    checks = check_frames(np.stack([positions, mirrored]), positions, bonds)
    np.testing.assert_allclose(checks.handedness, [1.0, -1.0])
    assert checks.n_centres == 0
    assert checks.messages == (
        "1 of 2 frames are nearer to the mirror image of the start than to the start, first frame 1",
    )


def test_a_short_chain_says_nothing_about_handedness() -> None:
    positions, bonds = helix(12)  # nine runs of four
    checks = check_frames((positions * [1.0, 1.0, -1.0])[None], positions, bonds)
    assert np.isnan(checks.handedness[0])
    assert checks.ok


def test_size() -> None:
    atoms = np.random.default_rng(1).normal(size=(30, 3)) * 20.0
    frames = np.stack([atoms, 1.2 * atoms, 1.3 * atoms, atoms / 1.3])
    checks = check_frames(frames, atoms, np.empty((0, 2), int))
    np.testing.assert_allclose(checks.radius_ratio, [1.0, 1.2, 1.3, 1 / 1.3])
    assert any("2 of 4 frames have a radius of gyration" in line for line in checks.messages)


def test_frames_that_are_not_finite() -> None:
    positions, bonds = helix()
    frames = np.stack([positions] * 3)
    frames[1, 4, 2] = np.nan
    frames[2, 0, 0] = np.inf
    checks = check_frames(frames, positions, bonds)
    np.testing.assert_array_equal(checks.finite, [True, False, False])
    assert np.isnan(checks.bond_deviation[1:]).all()
    assert checks.bond_deviation[0] == 0.0
    assert checks.messages == ("2 of 3 frames hold nan or infinite positions, first frame 1",)
    assert not check_frames(frames[1:], positions, bonds).ok


def test_several_findings_each_have_their_line() -> None:
    positions, bonds = helix()
    frames = positions[None] * 1.4
    checks = check_frames(frames, positions, bonds)
    assert len(checks.messages) == 2  # bonds of 5.3 A, and the size
    assert isinstance(checks, PhysicalChecks)
    assert replace(checks, bonds_off=np.zeros(1, int), radius_ratio=np.ones(1)).ok


def test_zero_frames() -> None:
    positions, bonds = helix()
    checks = check_frames(np.empty((0, 20, 3)), positions, bonds)
    assert checks.finite.shape == checks.clashes.shape == checks.handedness.shape == (0,)
    assert checks.ok


def test_one_atom() -> None:
    assert check_frames(np.ones((2, 1, 3)), np.zeros((1, 3)), np.empty((0, 2), int)).ok


@pytest.mark.parametrize("selection", ["name CA", "backbone", "not name H*", "all"])
def test_real_frames_have_no_finding_and_their_mirror_images_do(selection: str) -> None:
    files = pytest.importorskip("MDAnalysis.tests.datafiles", reason="needs the MDAnalysisTests package")
    from egno_md.trajectory.universe import in_memory_universe, open_universe

    group = open_universe(files.PSF, [files.DCD]).select_atoms(selection)
    frames = np.array([group.positions.copy() for _ in group.universe.trajectory[::10]])
    if selection == "name CA":
        bonds = np.stack([np.arange(len(group) - 1), np.arange(1, len(group))], axis=1)
    else:
        bonds = in_memory_universe(group, frames[:1], [0.0]).bonds.indices
    checks = check_frames(frames, frames[-1], bonds)
    assert checks.messages == ()
    assert 0.1 < checks.bond_deviation.max() < 0.5  # it did move
    mirrored = check_frames(frames * [1.0, -1.0, 1.0], frames[-1], bonds)
    assert len(mirrored.messages) == 1
    np.testing.assert_allclose(mirrored.bond_deviation, checks.bond_deviation, atol=1e-5)


def test_real_peptide_over_ten_nanoseconds(shared: Path) -> None:
    data = np.load(shared / "data" / "ala2" / "ala2_implicit_10x10ns_1ps.npz")
    frames = data["positions"][:9999:50]
    for start in (0, 100):
        assert check_frames(frames, frames[start], data["bonds"]).messages == ()


@pytest.mark.parametrize("centre", [0.0, [500.0, -20.0, 3.0]])
def test_relaxing_moves_what_fails_by_what_it_takes_and_nothing_else(centre) -> None:
    start = np.array([[0, 0, 0], [1.5, 0, 0], [9, 0, 0], [9, 6, 0]], float) + centre  # a bond, and two free atoms
    bonds = np.array([[0, 1]])
    frames = np.stack([start] * 4)
    frames[1, 1, 0] += 0.7  # within 0.1 A again: each end by 0.3 A
    frames[2, 3] = frames[2, 2] + [0, 1.8, 0]  # 2.0 A count as a clash
    frames[3, 1:] *= 3  # no bond or clash makes it so large, and the bond alone does not mend it
    relaxation = Relaxation(start, bonds, partial(check_frames, reference=start, bonds=bonds))
    middle = start.mean(axis=0)
    out = relaxation((frames - middle)[None], (start - middle)[None, None])[0] + middle
    np.testing.assert_allclose(relaxation.moved, [0, 0.3, (CLEARANCE * 2.0 - 1.8) / 2, 0], atol=2e-3)
    np.testing.assert_allclose(out[[0, 3]], frames[[0, 3]], atol=1e-12)
    np.testing.assert_allclose(out[1, :2, 0] - start[0, 0], [0.3, 1.9], atol=2e-3)
    np.testing.assert_allclose(out[1, 2:], frames[1, 2:], atol=1e-12)
    np.testing.assert_allclose(out[2, 3] - out[2, 2], [0, CLEARANCE * 2.0, 0], atol=2e-3)
    checks = check_frames(out, start, bonds)
    np.testing.assert_array_equal(checks.failed, [False, False, False, True])
    assert not replace(checks, bonds_off=0 * checks.bonds_off, limits=Limits(radius=(0, 100))).failed.any()


def test_a_forecast_may_go_a_quarter_beyond_what_frames_of_the_run_do() -> None:
    """A bond of the run is 0.8 A off, its size 0.5 to 2 times that of the start: more than is allowed without it."""
    line = np.arange(5.0)[:, None] * [1.5, 0, 0]  # (5, 3)
    bonds = [[k, k + 1] for k in range(4)]
    longer = line + (np.arange(5) > 3)[:, None] * [0.8, 0, 0]

    def off(by: float) -> np.ndarray:
        return line + (np.arange(5) > 3)[:, None] * [by, 0, 0]

    limits = Limits.of([line, longer], line, bonds)
    assert limits.bond == pytest.approx(1.0) and limits.radius[1] == 1.25 == 1 / limits.radius[0]
    assert Limits.of([line, off(0.3)], line, bonds) == Limits()
    checks = check_frames([off(0.9), off(1.1)], line, bonds, limits=limits)
    assert checks.bonds_off.tolist() == [0, 1]
    assert any("bonds off by more than 1 A (up to 1 of 4, worst 1.10 A)" in text for text in checks.messages)
    assert check_frames([off(0.9)], line, bonds).bonds_off.tolist() == [1]

    free = np.random.default_rng(0).normal(size=(9, 3)) * 6
    limits = Limits.of([free, 0.5 * free, 2 * free], free, [])
    np.testing.assert_allclose(limits.radius, [0.4, 2.5])
    checks = check_frames([0.39 * free, 0.41 * free, 2.4 * free, 2.6 * free], free, [], limits=limits)
    text = "2 of 4 frames have a radius of gyration outside of 0.40 to 2.50 times that of the start, first frame 0"
    assert text in checks.messages
    wider = check_frames([1.3 * free], free, []).tally + checks.tally
    assert wider.radius_limits == limits.radius and wider.found["size"] == (3, 0)
    assert (checks.tally + wider).bond_limit == 0.5


@pytest.mark.parametrize("turned", [True, False])
def test_centres_turn_over_and_molecules_are_mirrored_where_they_are_in_the_run(turned: bool) -> None:
    corners = np.array([[0.0, 0, 0], [0.9, 0.9, 0.9], [0.9, -0.9, -0.9], [-0.9, 0.9, -0.9], [-0.9, -0.9, 0.9]])
    walk = np.cumsum(np.random.default_rng(1).normal(size=(15, 3)) * 1.2, axis=0)
    for frame, bonds, kind in (
        (corners, [[0, k] for k in range(1, 5)], "flipped"),
        (walk, [[k, k + 1] for k in range(14)], "mirrored"),
    ):
        mirror = frame * [1, 1, -1]
        limits = Limits.of([frame, mirror] if turned else [frame], frame, bonds)
        assert limits.turned == ({kind} if turned else set())
        assert (kind in check_frames([mirror], frame, bonds, limits=limits).tally.found) is not turned


def test_relaxing_keeps_the_angles_of_atoms_and_not_those_of_beads() -> None:
    for length, kept in ((1.5, True), (3.8, False)):
        start = length * np.array([[0, 0, 0], [1, 0, 0], [1.5, 0.75**0.5, 0], [2.5, 0.75**0.5, 0]])
        bonds = np.array([[0, 1], [1, 2], [2, 3]])
        frame = start.copy()
        frame[2:] += frame[1] - frame[2] + [0, length, 0]  # the angle is now a right one
        frame[3, 0] += 0.7
        relaxation = Relaxation(start, bonds, partial(check_frames, reference=start, bonds=bonds))
        out = relaxation(frame[None, None], start[None, None])[0, 0]
        assert relaxation.moved[0] > 0.2 and check_frames(out[None], start, bonds).ok
        off = abs(np.linalg.norm(out[2] - out[0]) - np.linalg.norm(start[2] - start[0]))
        assert (off < 0.31) == kept, (off, length)


@pytest.mark.parametrize(
    ("frames", "reference", "bonds", "boxes", "words"),
    [
        (np.zeros((2, 4, 3)), np.zeros((5, 3)), [], None, r"expected \(frames, 5, 3\)"),
        (np.zeros((5, 3)), np.zeros((5, 3)), [], None, r"expected \(frames, 5, 3\)"),
        (np.zeros((2, 0, 3)), np.zeros((0, 3)), [], None, r"expected \(atoms, 3\)"),
        (np.zeros((2, 5, 3)), np.zeros((5, 3)), [[0, 5]], None, "bonds name atom 5"),
        (np.zeros((2, 5, 3)), np.zeros((5, 3)), [], np.zeros((3, 6)), r"expected \(2, 6\) or \(6,\)"),
    ],
)
def test_arguments_that_do_not_fit(frames, reference, bonds, boxes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_frames(frames, reference, np.array(bonds, int), boxes=boxes)


def test_a_broken_reference() -> None:
    with pytest.raises(DataError, match="reference frame holds nan"):
        check_frames(np.zeros((1, 2, 3)), np.full((2, 3), np.nan), np.empty((0, 2), int))


@pytest.mark.parametrize("edge", [90.0, 150.0, 1000.0])
def test_boxes_of_any_size(edge: float) -> None:
    positions, bonds = helix(40)
    box = np.array([edge, edge, edge, 90, 90, 90], np.float32)
    box.flags.writeable = False
    frames = positions[None].repeat(2, 0)
    frames[1, 30] = frames[1, 2] + [edge - 1.5, 0, 0]  # through the border
    checks = check_frames(frames, positions, bonds, boxes=box)
    assert checks.clashes[0] == 0 and checks.clashes[1] > 0


def test_findings_of_many_starts_are_summed_up() -> None:
    positions, bonds = helix()
    sound, torn, longer = (check_frames(positions[None] * factor, positions, bonds) for factor in (1.01, 1.2, 1.3))

    def of(*checks):
        results = SimpleNamespace(checks=list(checks), frames=np.arange(len(checks)) * 10)
        return checked(SimpleNamespace(results=results))

    tally, lines = of(sound, replace(sound))
    assert (tally.n_frames, tally.ok, lines) == (2, True, [])
    tally, lines = of(sound, torn, longer)
    assert not tally.ok and tally.bond_deviation == longer.bond_deviation[0]  # the worst of all starts
    assert lines[0].startswith("from frame 10: 1 of 1 frame ") and lines[-1] == "2 of 3 starts have findings"
    assert of(torn)[1] == list(torn.messages)
