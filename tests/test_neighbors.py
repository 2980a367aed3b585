"""The radius graph against brute force over all images and against MDAnalysis."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from MDAnalysis.lib.distances import capped_distance, self_capped_distance
from MDAnalysis.lib.mdamath import triclinic_vectors

from egno_md.errors import DataError
from egno_md.molecule.neighbors import box_vectors, box_widths, contacts, radius_graph

ORTHORHOMBIC = [21.0, 18.0, 25.0, 90.0, 90.0, 90.0]
TRICLINIC = [22.0, 20.0, 24.0, 70.0, 80.0, 65.0]
DODECAHEDRON = [20.0, 20.0, 20.0, 60.0, 60.0, 90.0]


def atoms(n: int = 80, spread: float = 40.0, seed: int = 0) -> np.ndarray:
    """Positions that reach beyond every box of these tests."""
    return np.random.default_rng(seed).uniform(-spread / 2, spread, (n, 3))


def brute_force(positions: np.ndarray, cutoff: float, box: list[float] | None) -> set[tuple]:
    """(receiver, sender, image vector) of every neighbour, image by image."""
    vectors = np.zeros((3, 3)) if box is None else box_vectors(box)
    delta = positions[:, None] - positions[None]
    nearest, reach = np.zeros(delta.shape), 0
    if box is not None:
        nearest = np.round(delta @ np.linalg.inv(vectors))
        reach = int(np.ceil(cutoff / box_widths(vectors).min())) + 1
    found = set()
    for image in itertools.product(range(-reach, reach + 1), repeat=3):
        shift = (nearest + image) @ vectors
        near = np.linalg.norm(delta - shift, axis=-1) <= cutoff
        for i, j in zip(*np.nonzero(near), strict=True):
            if i != j or np.any(np.abs(shift[i, j]) > 1e-9):
                found.add((i, j, *np.round(shift[i, j], 4) + 0.0))
    return found


def as_set(edges: np.ndarray, shift: np.ndarray | None) -> set[tuple]:
    shift = np.zeros((edges.shape[1], 3)) if shift is None else shift
    rows = [(i, j, *np.round(s, 4) + 0.0) for i, j, s in zip(*edges, shift, strict=True)]
    assert len(rows) == len(set(rows))
    return set(rows)


@pytest.mark.parametrize("box", [None, ORTHORHOMBIC, TRICLINIC, DODECAHEDRON], ids=str)
@pytest.mark.parametrize("cutoff", [3.0, 8.0])
def test_same_neighbours_as_brute_force(box: list[float] | None, cutoff: float) -> None:
    positions = atoms()
    edges, shift = radius_graph(positions, cutoff, box)
    assert edges.dtype == np.int64 and (shift is None) == (box is None)
    assert as_set(edges, shift) == brute_force(positions, cutoff, box)


@pytest.mark.parametrize("box", [[7.0, 9.0, 8.0, 90.0, 90.0, 90.0], [7.0, 9.0, 8.0, 75.0, 95.0, 60.0]], ids=str)
def test_small_box_has_every_image_and_those_of_the_atom_itself(box: list[float]) -> None:
    positions = atoms(6)
    edges, shift = radius_graph(positions, 10.0, box)
    assert as_set(edges, shift) == brute_force(positions, 10.0, box)
    assert (edges[0] == edges[1]).any()
    assert np.abs(shift[edges[0] == edges[1]]).max(axis=1).min() > 1


@pytest.mark.parametrize("box", [None, ORTHORHOMBIC, TRICLINIC], ids=str)
def test_same_pairs_as_mdanalysis(box: list[float] | None) -> None:
    positions = atoms(150).astype(np.float32)
    edges, _ = radius_graph(positions, 6.0, box)
    pairs = capped_distance(positions, positions, 6.0, box=box, return_distances=False)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    assert set(map(tuple, edges.T)) == set(map(tuple, pairs))


@pytest.mark.parametrize("box", [None, ORTHORHOMBIC, [6.0, 6.0, 6.0, 90.0, 90.0, 90.0]], ids=str)
def test_sorted_by_receiver_then_sender_with_the_image_in_place_first(box: list[float] | None) -> None:
    edges, shift = radius_graph(atoms(40, spread=15.0), 7.0, box)
    crossed = np.zeros(edges.shape[1]) if shift is None else np.abs(shift).max(axis=1) > 0
    order = np.lexsort((crossed, edges[1], edges[0]))
    np.testing.assert_array_equal(order, np.arange(edges.shape[1]))


def test_both_directions_have_opposite_images() -> None:
    edges, shift = radius_graph(atoms(), 8.0, TRICLINIC)
    assert as_set(edges, shift) == as_set(edges[::-1], -shift)


def test_zero_lengths_are_no_box() -> None:
    positions = atoms()
    edges, shift = radius_graph(positions, 8.0, [0, 0, 0, 90, 90, 90])
    np.testing.assert_array_equal(edges, radius_graph(positions, 8.0)[0])
    assert shift is None


@pytest.mark.parametrize("box", [None, ORTHORHOMBIC], ids=str)
@pytest.mark.parametrize("positions", [np.zeros((1, 3)), np.array([[0.0, 0, 0], [9, 9, 9]])], ids=["one", "apart"])
def test_no_neighbours(box: list[float] | None, positions: np.ndarray) -> None:
    edges, shift = radius_graph(positions, 1.0, box)
    assert edges.shape == (2, 0)
    assert shift is None or shift.shape == (0, 3)


@pytest.mark.parametrize(
    "box", [[10, 10, 0, 90, 90, 90], [10, 10, 10, 90, 90, 200], [10, np.nan, 10, 90, 90, 90], [10, 10, 10]], ids=str
)
def test_a_box_that_is_none_is_refused(box: list[float]) -> None:
    with pytest.raises(DataError, match="set_dimensions"):
        radius_graph(atoms(), 5.0, box)


@pytest.mark.parametrize(
    ("box", "width"),
    [
        ([50, 50, 0.02, 90, 90, 90], "0.02"),  # 23 million edges of these atoms
        ([20, 20, 20, 90, 90, 1], "0.35"),  # flat
        ([7.5780820e-40, 2.4083619e-16, 8.4742494e05, 0.26077214, 90, 90], "7.6e-40"),
    ],
    ids=str,
)
def test_a_box_that_holds_no_atom_is_refused(box: list[float], width: str) -> None:
    with pytest.raises(DataError, match=f"is {width} A wide, less than an atom.*set_dimensions"):
        radius_graph(atoms(), 5.0, box)
    assert radius_graph(atoms(), 1.0, [50, 50, 1.01, 90, 90, 90])[0].shape[1] > 0


def test_not_a_number_is_refused() -> None:
    positions = atoms()
    positions[3, 1] = np.nan
    with pytest.raises(DataError, match="1 values that are not finite"):
        radius_graph(positions, 5.0)


def test_widths_of_a_box() -> None:
    np.testing.assert_allclose(box_widths(box_vectors(ORTHORHOMBIC)), ORTHORHOMBIC[:3])
    # Rhombic dodecahedron: the planes of the faces are a / sqrt(2) apart.
    np.testing.assert_allclose(box_widths(box_vectors(DODECAHEDRON)).min(), 20 / np.sqrt(2))


@pytest.mark.parametrize("seed", range(20))
def test_vectors_are_those_of_mdanalysis(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(50):
        box = np.concatenate([rng.uniform(1, 200, 3), rng.choice([rng.uniform(20, 160), 90.0], 3)])
        expected = triclinic_vectors(box, dtype=np.float64)
        if expected.any() and box_widths(expected).min() >= 1:
            np.testing.assert_allclose(box_vectors(box), expected, rtol=1e-12, atol=1e-11)
        else:
            with pytest.raises(DataError):
                box_vectors(box)


@pytest.mark.parametrize("box", [None, ORTHORHOMBIC, TRICLINIC, [150.0, 150, 150, 90, 90, 90]])
def test_contacts_are_those_of_mdanalysis(box) -> None:
    positions = atoms(300).astype(np.float32)
    given = None if box is None else np.array(box, np.float32)
    if given is not None:
        given.flags.writeable = False  # what a broadcast box is
    pairs, distances = contacts(positions, 4.0, given)
    expected, there = self_capped_distance(positions, 4.0, box=None if box is None else np.array(box, np.float32))
    expected = np.sort(expected, axis=1)
    order = np.lexsort(expected.T[::-1])
    np.testing.assert_array_equal(pairs, expected[order])
    np.testing.assert_allclose(distances, there[order], atol=1e-4)


def test_a_pair_that_meets_two_images_is_one_contact() -> None:
    pairs, distances = contacts(np.array([[0.0, 0, 0], [4, 0, 0]]), 7.0, [10, 30, 30, 90, 90, 90])
    assert pairs.tolist() == [[0, 1]] and distances.tolist() == [4.0]
