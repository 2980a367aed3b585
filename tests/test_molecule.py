"""The noun: atoms as arrays, from an AtomGroup or without one."""

from __future__ import annotations

from itertools import pairwise

import MDAnalysis as mda
import numpy as np
import pytest
from MDAnalysis.lib.distances import calc_dihedrals
from MDAnalysis.lib.mdamath import triclinic_vectors

import egno_md
from egno_md import sample
from egno_md.errors import DataError, UsageError
from egno_md.graph.builder import GraphBuilder
from egno_md.molecule.atoms import molecule_of, select_atoms
from egno_md.molecule.geometry import bond_lengths, dihedrals
from egno_md.molecule.molecule import Molecule
from egno_md.molecule.possible import POSSIBLE_LINK, possible_lengths
from egno_md.molecule.whole import put_close
from egno_md.specs import GraphSpec

#: Checkpoints refer to molecules by these: written down before there was a Molecule.
IDENTITIES = {
    ("ubiquitin", "ca"): "4bc8392ac6320d1e",
    ("ubiquitin", "backbone"): "dd5344f09063d78a",
    ("ubiquitin", "heavy"): "dc8d8af20395feae",
    ("ubiquitin", "all"): "6692399a35df9755",
    ("chignolin", "ca"): "e1e6ffac934a8a7b",
    ("chignolin", "backbone"): "a1db704b5f954888",
    ("chignolin", "heavy"): "4e579d1ed0dc7cdc",
    ("chignolin-fine", "ca"): "e1e6ffac934a8a7b",
}


@pytest.mark.parametrize(("name", "select"), IDENTITIES)
def test_identities_stay(name: str, select: str) -> None:
    atoms = select_atoms(mda.Universe(*map(str, egno_md.sample(name))), select)
    molecule = Molecule.of(atoms)
    assert molecule.identity == IDENTITIES[name, select] == GraphBuilder(molecule, GraphSpec(select=select)).identity


def test_a_molecule_holds_what_the_topology_has() -> None:
    universe = mda.Universe(*map(str, egno_md.sample("chignolin")))
    atoms = select_atoms(universe, "heavy")
    molecule = Molecule.of(atoms)
    assert molecule.n_atoms == len(molecule) == 93
    for name in ("names", "resnames", "resids", "segids", "elements"):
        np.testing.assert_array_equal(getattr(molecule, name), getattr(atoms, name))
    np.testing.assert_array_equal(molecule.chain_ids, atoms.chainIDs)
    np.testing.assert_array_equal(molecule.residues, atoms.resindices)
    np.testing.assert_array_equal(molecule.indices, atoms.indices)
    assert molecule.charges is None and molecule.source.endswith("chignolin.pdb")
    assert molecule.label(1) == "TYR1 CA (atom 1)"
    assert (molecule.bonds[:, 0] < molecule.bonds[:, 1]).all() and len(molecule.bonds) == 98
    assert Molecule.of(molecule) is molecule


def test_a_graph_of_a_molecule_is_that_of_its_atoms() -> None:
    universe = mda.Universe(*map(str, egno_md.sample("chignolin")))
    atoms = select_atoms(universe, "ca")
    positions, rest = atoms.positions, np.zeros((10, 3))
    one, other = (GraphBuilder(some, GraphSpec())(positions, rest) for some in (atoms, Molecule.of(atoms)))
    for name in ("x", "edge_index", "edge_attr", "local_index", "local_attr"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_particles_are_a_molecule_too() -> None:
    molecule = Molecule(elements=np.array(["", "", "C"]), bonds=[(2, 0), (0, 2), (0, 1)])
    assert molecule.bonds.tolist() == [[0, 1], [0, 2]]
    assert molecule.indices.tolist() == [0, 1, 2] and not molecule.residues.any() and molecule.names is None
    graph = GraphBuilder(molecule, GraphSpec(cutoff=1.0, node_features=("speed",)))(np.eye(3), np.zeros((3, 3)))
    assert graph.pos.shape == (3, 3) and molecule.label(2) == "(atom 2)"


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"names have shape \(2,\), the molecule has 3 atoms"):
        Molecule(elements=np.array(["C"] * 3), names=np.array(["C1", "C2"]))
    with pytest.raises(UsageError, match="bonds name atom 3"):
        Molecule(elements=np.array(["C"] * 3), bonds=[(0, 3)])
    with pytest.raises(UsageError, match="found ndarray"):
        Molecule.of(np.zeros((3, 3)))
    with pytest.raises(DataError, match="0 atoms"):
        Molecule.of(mda.Universe(*map(str, egno_md.sample("chignolin"))).atoms[[]])


def test_dihedrals_are_those_of_mdanalysis() -> None:
    frames = np.random.default_rng(0).normal(size=(20, 30, 3))
    quadruples = np.random.default_rng(1).permuted(np.tile(np.arange(30), (40, 1)), axis=1)[:, :4]
    expected = calc_dihedrals(*(frames[:, q].reshape(-1, 3).astype(np.float32) for q in quadruples.T))
    np.testing.assert_allclose(dihedrals(frames, quadruples).ravel(), expected, atol=1e-4)
    assert dihedrals(frames, np.zeros((0, 4), int)).shape == (20, 0)


@pytest.mark.parametrize(
    ("select", "beside"),
    [
        ("name CA CB", "CB"),
        ("name CA or (resid 5 and name CB)", "CB"),
        ("name CA O", "O"),
        ("name CA or resname LIG", "C"),
    ],
)
def test_residues_whose_bonds_are_not_selected_are_linked(select: str, beside: str) -> None:
    """C-alpha atoms hold the chain together, whatever is selected with them."""
    u = mda.Universe(str(sample()[0]))
    ligand = mda.Universe.empty(2, trajectory=True)
    for name, values in {"name": ["C1", "C2"], "type": ["C"] * 2, "resname": ["LIG"], "resid": [1]}.items():
        ligand.add_TopologyAttr(name, values)
    ligand.atoms.positions = [[40.0, 40.0, 40.0], [41.5, 40.0, 40.0]]
    atoms = mda.Merge(u.atoms, ligand.atoms).select_atoms(select)
    found = molecule_of(atoms)
    names = found.names[found.bonds]
    assert (names == "CA").all(axis=1).sum() == 75
    assert all(name == "CA" or name.startswith(beside) for name in found.names)
    lower, upper = possible_lengths(found)
    links = (names == "CA").all(axis=1)
    assert set(zip(lower[links], upper[links], strict=True)) == {POSSIBLE_LINK} and (upper[~links] < 4).all()
    assert not len(found.loose)
    gap = molecule_of(atoms.select_atoms("not resid 30:33"))
    assert (gap.names[gap.bonds] == "CA").all(axis=1).sum() == 70  # nobody is linked across it


def test_what_is_bonded_is_not_linked_as_well() -> None:
    u = mda.Universe(str(sample()[0]))
    for select in ("backbone", "not name H*"):
        found = molecule_of(u.select_atoms(select))
        assert not (found.names[found.bonds] == "CA").all(axis=1).any()
        assert bond_lengths(u.select_atoms(select).positions, found.bonds).max() < 2.1


def test_phosphorus_of_lipids_is_no_chain() -> None:
    u = mda.Universe.empty(4, n_residues=4, atom_resindex=range(4), residue_segindex=[0] * 4, trajectory=True)
    for name, values in {"name": ["P"] * 4, "type": ["P"] * 4, "resname": ["POPC"] * 4, "resid": range(1, 5)}.items():
        u.add_TopologyAttr(name, list(values))
    u.atoms.positions = 6.0 * np.arange(4)[:, None] * [1, 0, 0]
    assert not len(molecule_of(u).bonds)
    u.residues.resnames = ["A", "G", "PSX", "U"]  # one that nobody knows among those that are known
    assert len(molecule_of(u).bonds) == 3


def test_parts_of_a_complex_are_put_next_to_each_other_by_whole_widths_of_the_box():
    """Not those that touch already, as in a run that carries a crystal's cell; and no molecules of a liquid."""
    box = np.array([40.0, 50, 60, 70, 80, 75])
    vectors = triclinic_vectors(np.float32(box)).astype(float)
    rng = np.random.default_rng(0)
    parts = [
        rng.uniform(-4, 4, (n, 3)) + at
        for n, at in ((30, [0, 0, 0]), (12, [11, 0, 0]), (5, [0, 12, 0]), (1, [0, 0, 9]))
    ]
    ends = np.cumsum([0, *map(len, parts)])
    bonds = np.concatenate([np.stack([np.arange(a, b - 1), np.arange(a + 1, b)], 1) for a, b in pairwise(ends)])
    together = np.concatenate(parts)
    np.testing.assert_array_equal(put_close(together, bonds, box), together)
    for images in ([1, 0, 0], [0, -2, 0], [1, 1, -1]):
        apart = together.copy()
        apart[ends[1] : ends[2]] += images @ vectors
        apart[ends[3] :] -= images @ vectors
        np.testing.assert_allclose(put_close(apart, bonds, box), together, atol=1e-5)
        np.testing.assert_array_equal(put_close(apart, bonds, None), apart)
    crystal = np.array([9.0, 9, 9, 90, 90, 90])  # whose images lie within each other
    np.testing.assert_array_equal(put_close(together, bonds, crystal), together)
    liquid = rng.uniform(-100, 100, (60, 3))
    np.testing.assert_array_equal(
        put_close(liquid, np.stack([np.arange(0, 60, 2), np.arange(1, 60, 2)], 1), box), liquid
    )
