"""The noun: atoms as arrays, from an AtomGroup or without one."""

from __future__ import annotations

import MDAnalysis as mda
import numpy as np
import pytest
from MDAnalysis.lib.distances import calc_dihedrals

import egno_md
from egno_md.errors import DataError, UsageError
from egno_md.graph.builder import GraphBuilder
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.geometry import dihedrals
from egno_md.molecule.molecule import Molecule
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
