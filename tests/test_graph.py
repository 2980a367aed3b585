"""Selections, bonds and features on real files and on molecules small enough to check by hand."""

from __future__ import annotations

import warnings
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from MDAnalysis.transformations import unwrap
from MDAnalysisTests import datafiles
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.transform import Rotation

from egno_md.errors import DataError, ModelError, UsageError
from egno_md.graph import builder as graph
from egno_md.graph.builder import GraphBuilder, radial_basis
from egno_md.graph.graph import Graph, collate
from egno_md.molecule import atoms as atoms_of_a_model
from egno_md.molecule.atoms import atom_elements, select_atoms
from egno_md.molecule.neighbors import box_vectors
from egno_md.specs import AMINO_ACIDS, NUCLEOTIDES, GraphSpec

DATA = Path(__file__).parent / "data"
EDGES = ("rbf", "hop", "chain", "distance2", "bond", "distance")
#: Columns of the edge features above with the default basis of 16 and two hops.
RBF, HOP, CHAIN, DISTANCE2, BOND, DISTANCE = slice(0, 16), slice(16, 19), 19, 20, 21, 22
BARE = GraphSpec(node_features=("speed",), edge_features=EDGES)


def load(*files: object) -> mda.Universe:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mda.Universe(*map(str, files))


@pytest.fixture
def adk() -> mda.Universe:
    """214 residues; a PSF with bonds and charges, without elements."""
    return load(datafiles.PSF, datafiles.DCD)


@pytest.fixture
def ala2() -> mda.Universe:
    """22 atoms; a PDB without bonds and elements."""
    return load(DATA / "ala2.pdb")


@pytest.fixture(scope="session")
def solvated() -> mda.Universe:
    """The same protein with bonds and elements in a triclinic box of water, cut by the box. Do not alter."""
    return load(datafiles.TPR, datafiles.GRO)


@pytest.fixture(scope="session")
def rna() -> mda.Universe:
    """18 nucleotides in water with potassium. Do not alter."""
    return load(datafiles.RNA_PSF, datafiles.RNA_PDB)


def peptides(
    resids: list[int], positions: np.ndarray, names: str = "CA", resname: str = "ALA", **extra: list[str]
) -> mda.Universe:
    """One atom per residue, one segment."""
    n = len(resids)
    universe = mda.Universe.empty(n, n_residues=n, atom_resindex=np.arange(n), trajectory=True)
    universe.add_TopologyAttr("names", [names] * n)
    universe.add_TopologyAttr("resnames", [resname] * n)
    universe.add_TopologyAttr("resids", resids)
    for attribute, values in extra.items():
        universe.add_TopologyAttr(attribute, values)
    universe.atoms.positions = positions
    return universe


def straight(n: int, spacing: float = 3.8) -> np.ndarray:
    return np.arange(n)[:, None] * np.array([[spacing, 0.0, 0.0]])


def build(universe: mda.Universe, select: str, spec: GraphSpec = BARE) -> tuple[GraphBuilder, Graph]:
    """A builder and its graph of the current frame, at rest."""
    builder = GraphBuilder(select_atoms(universe, select), spec)
    positions = builder.atoms.positions
    return builder, builder(positions, np.zeros_like(positions))


# selections -----------------------------------------------------------------------------------------------------------


def test_named_selections_of_a_protein(adk: mda.Universe) -> None:
    assert len(select_atoms(adk, "ca")) == 214
    backbone = select_atoms(adk, "backbone")
    assert set(backbone.names) == {"N", "CA", "C", "O"} and len(backbone) == 855
    heavy = select_atoms(adk, "heavy")
    assert heavy == adk.select_atoms("not name H* HA* HB* and prop mass > 1.1")
    assert not hasattr(adk.atoms, "elements")


def test_named_selections_of_solvated_molecules(solvated: mda.Universe, rna: mda.Universe) -> None:
    assert select_atoms(solvated, "heavy") == solvated.select_atoms("protein and not element H")
    heavy = select_atoms(rna, "heavy")
    assert heavy == rna.select_atoms("nucleic and prop mass > 1.1")
    backbone = select_atoms(rna, "backbone")
    assert set(backbone.names) == {"P", "O5'", "C5'", "C4'", "C3'", "O3'"}
    with pytest.raises(DataError, match="ADE"):
        select_atoms(rna, "ca")


def test_any_selection_from_a_group_is_sorted_and_unique(ala2: mda.Universe) -> None:
    group = ala2.atoms[[9, 8, 8, 3]]
    assert list(select_atoms(group, "name CA HA").indices) == [8, 9]
    assert len(select_atoms(ala2, "heavy")) == 10


def test_a_selection_in_another_language_is_refused_with_an_example(ala2: mda.Universe) -> None:
    for select in ("nme CA", "protein an name CA", "", "resid a", "element C"):
        with pytest.raises(UsageError, match="protein and name CA CB"):
            select_atoms(ala2, select)
    with pytest.raises(UsageError, match="Unknown selection token: 'nme'"):
        select_atoms(ala2, "nme CA")


def test_an_empty_selection_says_what_the_topology_has(ala2: mda.Universe) -> None:
    with pytest.raises(DataError, match="'resname GLY'.*22 atoms, residue names ACE, ALA, NME"):
        select_atoms(ala2, "resname GLY")


def test_updating_groups_are_refused(ala2: mda.Universe) -> None:
    updating = ala2.select_atoms("around 3 name CA", updating=True)
    with pytest.raises(UsageError, match="updating=False"):
        select_atoms(updating, "all")
    with pytest.raises(UsageError, match="updating=False"):
        GraphBuilder(updating, BARE)


def test_what_is_no_universe_is_refused() -> None:
    with pytest.raises(UsageError, match="ndarray"):
        select_atoms(np.zeros((3, 3)), "all")


def test_alternate_locations_are_refused_and_the_cure_works() -> None:
    universe = mda.Universe.empty(3, n_residues=2, atom_resindex=[0, 0, 1], trajectory=True)
    universe.add_TopologyAttr("names", ["CA", "CA", "CA"])
    universe.add_TopologyAttr("resnames", ["SER", "ALA"])
    universe.add_TopologyAttr("resids", [7, 8])
    universe.add_TopologyAttr("altLocs", ["A", "B", ""])
    with pytest.raises(DataError, match="SER7 CA .*2 alternate locations.*not altloc B"):
        select_atoms(universe, "ca")
    assert list(select_atoms(universe, "(protein and name CA) and not altloc B").indices) == [0, 2]


# elements -------------------------------------------------------------------------------------------------------------


def test_guessed_elements_are_those_of_the_topology(solvated: mda.Universe) -> None:
    from_names = load(datafiles.GRO)
    assert not hasattr(from_names.atoms, "elements")
    np.testing.assert_array_equal(atom_elements(from_names.atoms), np.char.capitalize(atom_elements(solvated.atoms)))
    assert set(atom_elements(solvated.atoms)) == {"H", "C", "N", "O", "S", "Na", ""}


def test_the_mass_decides_where_names_are_ambiguous() -> None:
    universe = mda.Universe.empty(6, trajectory=True)
    universe.add_TopologyAttr("names", ["NA", "NA", "CL1", "CLA", "H1", "MW"])
    universe.add_TopologyAttr("masses", [14.007, 22.99, 12.011, 35.45, 3.024, 0.0])
    assert list(atom_elements(universe.atoms)) == ["N", "Na", "C", "Cl", "H", ""]


# bonds ----------------------------------------------------------------------------------------------------------------


def test_guessed_bonds_are_those_of_the_topology(solvated: mda.Universe) -> None:
    without = load(datafiles.GRO)
    expected = np.sort(solvated.select_atoms("protein").intra_bonds.to_indices(), axis=1)
    builder = GraphBuilder(select_atoms(without, "protein"), BARE)
    np.testing.assert_array_equal(builder.bonds, np.unique(expected, axis=0))
    assert not hasattr(without, "bonds")


def test_bonds_of_the_topology_count_from_the_selection(adk: mda.Universe) -> None:
    builder, _ = build(adk, "backbone and resid 10:12")
    named = [tuple(builder.atoms[list(pair)].names) for pair in builder.bonds]
    assert len(named) == 11  # three in every residue, two peptide bonds
    assert set(named) == {("N", "CA"), ("CA", "C"), ("C", "O"), ("C", "N")}


def test_bonds_missing_in_part_are_found(ala2: mda.Universe) -> None:
    complete = {tuple(sorted(pair)) for pair in np.loadtxt(DATA / "ala2_bonds.txt", dtype=int).tolist()}
    ala2.add_bonds([(4, 5)])  # what the CONECT records of a PDB file are like
    assert {tuple(pair) for pair in GraphBuilder(ala2.atoms, BARE).bonds.tolist()} == complete
    assert len(ala2.bonds) == 1


def test_disulfide_is_found() -> None:
    universe = mda.Universe.empty(2, trajectory=True)
    universe.add_TopologyAttr("names", ["SG", "SG"])
    universe.atoms.positions = [[0, 0, 0], [2.05, 0, 0]]
    assert GraphBuilder(universe.atoms, BARE).bonds.tolist() == [[0, 1]]


@pytest.mark.parametrize("files", [(datafiles.PSF, datafiles.DCD), (datafiles.PDB,), (datafiles.TPR, datafiles.GRO)])
def test_chain_of_alpha_carbons(files: tuple) -> None:
    builder, _ = build(load(*files), "ca")
    np.testing.assert_array_equal(builder.bonds, np.stack([np.arange(213), np.arange(1, 214)], axis=1))


@pytest.mark.parametrize("files", [(datafiles.PSF, datafiles.DCD), (datafiles.PDB,)])
def test_a_gap_in_the_chain_is_no_link(files: tuple) -> None:
    builder, _ = build(load(*files), "protein and name CA and not resid 50:60")
    gap = int(np.searchsorted(builder.atoms.resids, 50))
    assert len(builder.bonds) == 201 and [gap - 1, gap] not in builder.bonds.tolist()


def test_a_new_chain_begins_where_numbers_fall_or_identifiers_change() -> None:
    falling = GraphBuilder(peptides([1, 2, 3, 1, 2], straight(5)).atoms, BARE)
    assert falling.bonds.tolist() == [[0, 1], [1, 2], [3, 4]]
    named = GraphBuilder(peptides([1, 2, 3, 4, 5], straight(5), chainIDs=list("AABBB")).atoms, BARE)
    assert named.bonds.tolist() == [[0, 1], [2, 3], [3, 4]]


def test_chain_through_the_box_is_a_chain() -> None:
    positions = straight(4)
    positions[2:] -= [40.0, 0, 0]
    universe = peptides([1, 2, 3, 4], positions)
    universe.dimensions = [40.0, 40, 40, 90, 90, 90]
    assert len(GraphBuilder(universe.atoms, BARE).bonds) == 3


def test_phosphorus_chain_from_the_topology(rna: mda.Universe) -> None:
    builder, _ = build(rna, "name P")
    np.testing.assert_array_equal(builder.bonds, np.arange(builder.n_atoms - 1)[:, None] + [0, 1])


def test_bonds_cannot_be_guessed_without_coordinates(ala2: mda.Universe) -> None:
    ala2.atoms.positions = np.full((22, 3), np.nan)
    with pytest.raises(DataError, match="not finite"):
        GraphBuilder(ala2.atoms, BARE)
    with pytest.raises(DataError, match="no coordinates"):
        bare = mda.Universe.empty(3)
        bare.add_TopologyAttr("names", ["C"] * 3)
        GraphBuilder(bare.atoms, BARE)


# edges ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_hops_are_shortest_paths_and_are_there_beyond_the_cutoff(ala2: mda.Universe, hops: int) -> None:
    spec = GraphSpec(cutoff=1.3, hops=hops, node_features=("speed",), edge_features=("hop", "bond"))
    builder, data = build(ala2, "heavy", spec)
    n = builder.n_atoms
    adjacency = coo_array((np.ones(len(builder.bonds)), builder.bonds.T), shape=(n, n))
    paths = shortest_path(adjacency, directed=False, unweighted=True)
    expected = np.argwhere((paths > 0) & (paths <= hops))
    np.testing.assert_array_equal(data.edge_index.T, expected)
    row, col = data.edge_index
    np.testing.assert_array_equal(data.edge_attr[:, :-1].argmax(dim=1), paths[row, col])
    np.testing.assert_array_equal(data.edge_attr[:, -1], paths[row, col] == 1)


def test_edges_are_the_radius_graph_and_the_covalent_neighbours(adk: mda.Universe) -> None:
    builder, data = build(adk, "ca", BARE.model_copy(update={"cutoff": 5.0}))
    positions = builder.atoms.positions.astype(float)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    order = np.arange(214)
    along = np.abs(order[:, None] - order[None])
    np.testing.assert_array_equal(data.edge_index.T, np.argwhere((along > 0) & ((distances <= 5.0) | (along <= 2))))
    row, col = data.edge_index
    np.testing.assert_array_equal(data.edge_attr[:, HOP].argmax(dim=1), np.where(along <= 2, along, 0)[row, col])
    far = data.edge_attr[:, DISTANCE] > 5.0
    assert far.any() and not data.edge_attr[far, RBF].any()


def test_without_hops_no_edge_is_added(adk: mda.Universe) -> None:
    spec = GraphSpec(cutoff=3.85, hops=0, node_features=("speed",), edge_features=("hop", "bond", "distance"))
    builder, data = build(adk, "ca", spec)
    assert data.edge_attr[:, 2].max() <= 3.85 and data.edge_attr[:, 0].eq(1).all()
    row, col = data.edge_index
    assert 0 < data.edge_index.shape[1] < 2 * len(builder.bonds)
    np.testing.assert_array_equal(data.edge_attr[:, 1] == 1, (row - col).abs() == 1)


def test_local_edges_are_the_bonds_in_both_directions(ala2: mda.Universe) -> None:
    builder, data = build(ala2, "heavy")
    both = np.concatenate([builder.bonds, builder.bonds[:, ::-1]])
    np.testing.assert_array_equal(data.local_index.T, both[np.lexsort(both.T[::-1])])
    i, j = data.local_index
    torch.testing.assert_close(data.local_attr[:, 0], (data.pos[i] - data.pos[j]).norm(dim=1))


# features -------------------------------------------------------------------------------------------------------------


def test_node_features_in_the_order_of_the_spec(adk: mda.Universe) -> None:
    spec = GraphSpec(
        node_features=("charge", "atom_name", "speed", "element", "residue"), atom_names=("N", "CA", "C", "O")
    )
    atoms = select_atoms(adk, "backbone")
    velocities = np.random.default_rng(0).normal(size=(855, 3))
    x = GraphBuilder(atoms, spec)(atoms.positions, velocities).x
    assert x.shape == (855, spec.n_node_features) and x.dtype == torch.float32
    np.testing.assert_allclose(x[:, 0], atoms.charges, rtol=1e-6)
    assert [spec.atom_names[k] for k in x[:, 1:5].argmax(dim=1)] == list(atoms.names)
    np.testing.assert_allclose(x[:, 5], np.linalg.norm(velocities, axis=1), rtol=1e-6)
    assert [spec.elements[k] for k in x[:, 6:16].argmax(dim=1)] == [name[0] for name in atoms.names]
    residues = ["HIS" if name == "HSD" else name for name in atoms.resnames]
    assert [AMINO_ACIDS[k] for k in x[:, 16:].argmax(dim=1)] == residues
    for block in (x[:, 1:5], x[:, 6:16], x[:, 16:]):
        assert block.sum(dim=1).eq(1).all() and block.max() == 1


def test_edge_features_closed_form() -> None:
    positions = straight(15)[:, :] + [100.0, -50.0, 30.0]
    universe = peptides([*range(1, 13), 1, 2, 3], positions)
    spec = BARE.model_copy(update={"cutoff": 100.0})
    data = GraphBuilder(universe.atoms, spec)(positions, np.zeros((15, 3)))
    assert data.edge_attr.shape == (15 * 14, spec.n_edge_features)
    row, col = data.edge_index
    along = (row - col).abs()
    other = (row < 12) != (col < 12)
    distance = 3.8 * along
    torch.testing.assert_close(data.edge_attr[:, DISTANCE], distance)
    torch.testing.assert_close(data.edge_attr[:, DISTANCE2], distance**2)
    torch.testing.assert_close(data.edge_attr[:, CHAIN], torch.where(other, 1.0, along.clamp(max=10) / 10))
    torch.testing.assert_close(data.edge_attr[:, BOND], ((along == 1) & ~other).float())
    hop = torch.where(other | (along > 2), 0, along)
    torch.testing.assert_close(data.edge_attr[:, HOP], torch.nn.functional.one_hot(hop, 3).float())
    k = torch.arange(16)
    width = 100 / 15
    basis = torch.exp(-((distance[:, None] - k * width) ** 2) / (2 * width**2))
    envelope = (1 + torch.cos(torch.pi * distance[:, None] / 100)) / 2
    torch.testing.assert_close(data.edge_attr[:, RBF], basis * envelope)


def test_radial_basis_goes_to_zero_with_its_slope() -> None:
    distance = torch.tensor([[5.0 - 1e-9], [5.0], [5.1], [9.0]], dtype=torch.float64, requires_grad=True)
    basis = radial_basis(distance, 5.0, 8)
    basis.sum().backward()
    assert basis.abs().max() < 1e-15 and distance.grad.abs().max() < 1e-8
    inside = radial_basis(torch.linspace(0, 4.5, 50)[:, None], 5.0, 8)
    assert inside.sum(dim=1).min() > 0.02


@pytest.mark.parametrize(
    ("resname", "expected"),
    [("HSP", "HIS"), ("HID", "HIS"), ("CYX", "CYS"), ("ASH", "ASP"), ("GLH", "GLU"), ("LYN", "LYS"), ("MSE", "MET"),
     ("NALA", "ALA"), ("CHIE", "HIS"), ("CYS2", "CYS")],
)  # fmt: skip
def test_spellings_of_residues(resname: str, expected: str) -> None:
    universe = peptides([1], np.zeros((1, 3)), resname=resname)
    data = GraphBuilder(universe.atoms, GraphSpec())(np.zeros((1, 3)), np.zeros((1, 3)))
    assert AMINO_ACIDS[data.x[0, 1:].argmax()] == expected


def test_a_spelling_in_the_vocabulary_comes_first() -> None:
    universe = peptides([1], np.zeros((1, 3)), resname="HSP")
    data = GraphBuilder(universe.atoms, GraphSpec(residues=("HIS", "HSP")))(np.zeros((1, 3)), np.zeros((1, 3)))
    assert data.x.tolist() == [[0, 0, 1]]


def test_nucleic_acids(rna: mda.Universe) -> None:
    spec = GraphSpec(node_features=("residue",), residues=NUCLEOTIDES)
    builder, data = build(rna, "backbone", spec)
    assert len(builder.bonds) == builder.n_atoms - 1  # one strand without a gap
    names = {"ADE": "A", "CYT": "C", "GUA": "G", "URA": "U"}
    assert [NUCLEOTIDES[k] for k in data.x.argmax(dim=1)] == [names[name] for name in builder.atoms.resnames]
    spellings = load(datafiles.NUCLsel).select_atoms("nucleic")
    data = GraphBuilder(spellings, spec)(np.zeros((len(spellings), 3)), np.zeros((len(spellings), 3)))
    # ADE and A tell by their first letter; DA, DA5 and RA3 by the one after the sugar.
    letters = [name[0] if len(name) == 1 or name in names | {"THY": "T"} else name[1] for name in spellings.resnames]
    assert [NUCLEOTIDES[k] for k in data.x.argmax(dim=1)] == letters


def test_what_the_vocabulary_lacks_is_named(ala2: mda.Universe, rna: mda.Universe) -> None:
    with pytest.raises(ModelError, match=r"'ACE' of ACE1.*'NME' of NME3.*ALA, ARG.*residues"):
        GraphBuilder(ala2.atoms, GraphSpec())
    with pytest.raises(ModelError, match=r"element 'H'.*knows C, N.*elements"):
        GraphBuilder(ala2.atoms, GraphSpec(node_features=("element",), elements=("C", "N", "O")))
    with pytest.raises(ModelError, match=r"atom_name 'CB' of ALA2 CB \(atom 10\).*knows CA"):
        GraphBuilder(ala2.select_atoms("name CA CB"), GraphSpec(node_features=("atom_name",), atom_names=("CA",)))
    with pytest.raises(ModelError, match="GUA.*SER"):
        GraphBuilder(select_atoms(rna, "backbone"), GraphSpec())


def test_charges_are_features_as_they_are(ala2: mda.Universe) -> None:
    charges = np.linspace(-1, 1, len(ala2.atoms))
    ala2.add_TopologyAttr("charges", charges)
    builder = GraphBuilder(ala2.atoms, GraphSpec(select="all", node_features=("speed", "charge")))
    graph = builder(ala2.atoms.positions, np.zeros((len(charges), 3)))
    np.testing.assert_allclose(graph.x, np.c_[np.zeros_like(charges), charges], atol=1e-7)


def test_charges_that_are_not_there(ala2: mda.Universe) -> None:
    with pytest.raises(ModelError, match=r"needs charges.*ala2.pdb.*PSF"):
        GraphBuilder(ala2.atoms, GraphSpec(node_features=("charge",)))


def test_features_do_not_see_rotation_reflection_and_translation(adk: mda.Universe) -> None:
    atoms = select_atoms(adk, "backbone and resid 1:60")
    builder = GraphBuilder(atoms, BARE)
    positions = atoms.positions.astype(float)
    velocities = np.random.default_rng(1).normal(size=positions.shape)
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix() @ np.diag([1, 1, -1])
    plain = builder(positions, velocities)
    moved = builder(positions @ turn.T + [7.0, -3.0, 11.0], velocities @ turn.T)
    np.testing.assert_array_equal(plain.edge_index, moved.edge_index)
    for name in ("x", "edge_attr", "local_attr"):
        torch.testing.assert_close(getattr(plain, name), getattr(moved, name))


@pytest.mark.parametrize("box", [None, [38.0, 38, 38, 60, 60, 90]], ids=str)
def test_both_directions_of_an_edge_have_the_same_features(rna: mda.Universe, box: list[float] | None) -> None:
    atoms = select_atoms(rna, "backbone")
    data = GraphBuilder(atoms, BARE)(atoms.positions, np.zeros_like(atoms.positions), box)
    row, col = data.edge_index
    shift = data.edge_shift.numpy() if box else np.zeros((len(row), 3), np.float32)
    one = np.column_stack([row, col, shift, data.edge_attr])
    other = np.column_stack([col, row, -shift, data.edge_attr])
    np.testing.assert_array_equal(*(rows[np.lexsort(rows[:, :5].T)] for rows in (one, other)))


# boxes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [[60.0, 60, 60, 90, 90, 90], [60.0, 60, 60, 60, 60, 90]], ids=str)
def test_two_chains_in_different_images_see_each_other(adk: mda.Universe, box: list[float]) -> None:
    first = select_atoms(adk, "protein and name CA and resid 1:30").positions.astype(float)
    positions = np.concatenate([first, first + [6.0, 2.0, 0.0]])
    universe = peptides([*range(1, 31)] * 2, positions)
    builder = GraphBuilder(universe.atoms, BARE)
    rest = np.zeros_like(positions)
    together = builder(positions, rest)
    vectors = box_vectors(box)
    apart = positions.copy()
    apart[30:] -= vectors[0] - vectors[2]
    wrapped = builder(apart, rest, box)
    np.testing.assert_array_equal(together.edge_index, wrapped.edge_index)
    # The same but for the distance along the chain, where another image is another chain anyway.
    torch.testing.assert_close(together.edge_attr, wrapped.edge_attr, rtol=1e-4, atol=1e-4)
    row, col = wrapped.edge_index
    displacement = wrapped.pos[row] - wrapped.pos[col] - wrapped.edge_shift
    torch.testing.assert_close(displacement, together.pos[row] - together.pos[col], rtol=0, atol=1e-4)
    assert builder(positions, rest, [500.0, 500, 500, 90, 90, 90]).edge_shift is None


def test_another_image_of_a_bonded_atom_is_not_bonded() -> None:
    positions = straight(2)
    builder = GraphBuilder(peptides([1, 2], positions).atoms, BARE.model_copy(update={"cutoff": 7.0}))
    data = builder(positions, np.zeros((2, 3)), [10.0, 30, 30, 90, 90, 90])
    assert data.edge_index.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]
    torch.testing.assert_close(data.edge_attr[:, DISTANCE], torch.tensor([3.8, 6.2, 3.8, 6.2]))
    assert data.edge_attr[:, BOND].tolist() == [1, 0, 1, 0]
    assert data.edge_attr[:, HOP].argmax(dim=1).tolist() == [1, 0, 1, 0]
    torch.testing.assert_close(data.edge_attr[:, CHAIN], torch.tensor([0.1, 1.0, 0.1, 1.0]))


def test_an_image_nearer_than_the_covalent_neighbour_itself() -> None:
    positions = straight(3)
    builder = GraphBuilder(peptides([1, 2, 3], positions).atoms, BARE.model_copy(update={"cutoff": 4.0}))
    data = builder(positions, np.zeros((3, 3)), [10.0, 30, 30, 90, 90, 90])
    ends = (data.edge_index[0] == 0) & (data.edge_index[1] == 2)
    found = data.edge_attr[ends][:, [DISTANCE, HOP.start, HOP.start + 2]]
    torch.testing.assert_close(found.sort(dim=0).values[:, 0], torch.tensor([2.4, 7.6]))
    assert sorted(found.round().tolist()) == [[2, 1, 0], [8, 0, 1]]
    assert data.edge_shift[ends].abs().sum(dim=0).tolist() == [10, 0, 0]


@pytest.mark.parametrize("select", ["ca", "backbone"])
def test_a_broken_molecule_is_refused_and_the_cure_works(select: str) -> None:
    universe = load(datafiles.TPR, datafiles.GRO)
    atoms = select_atoms(universe, select)
    builder = GraphBuilder(atoms, BARE)
    with pytest.raises(DataError, match=r"frame 4: ARG\d+ CA \(atom \d+\) and .* 79\.\d A apart.*28\.3 A.*unwrap"):
        builder(atoms.positions, np.zeros_like(atoms.positions), universe.dimensions, frame=4)
    builder(atoms.positions, np.zeros_like(atoms.positions), None)
    universe.trajectory.add_transformations(unwrap(universe.select_atoms("protein")))
    data = builder(atoms.positions, np.zeros_like(atoms.positions), universe.dimensions)
    assert data.local_attr.max() < 4.5


def test_a_jump_through_the_box_is_refused(ala2: mda.Universe) -> None:
    builder = GraphBuilder(ala2.atoms, BARE)
    velocities = np.zeros((22, 3))
    velocities[:, 0] = 29.0
    box = [30.0, 30.0, 30.0, 90, 90, 90]
    with pytest.raises(DataError, match="frame 2: .*29.0 A.*NoJump"):
        builder(ala2.atoms.positions, velocities, box, frame=2)
    builder(ala2.atoms.positions, velocities / 2, box)


# input ----------------------------------------------------------------------------------------------------------------


def test_damaged_input_is_refused(ala2: mda.Universe) -> None:
    builder = GraphBuilder(ala2.atoms, BARE)
    good = ala2.atoms.positions
    for bad in (np.nan, np.inf):
        damaged = good.copy()
        damaged[8, 2] = bad
        with pytest.raises(DataError, match=r"frame 17: the positions of 1 of 22 .* ALA2 CA \(atom 8\)"):
            builder(damaged, np.zeros((22, 3)), frame=17)
        with pytest.raises(DataError, match="the velocities of 1 of 22"):
            builder(good, damaged)
    with pytest.raises(DataError, match=r"\(21, 3\), expected \(22, 3\)"):
        builder(good[:21], np.zeros((22, 3)))
    with pytest.raises(DataError, match="3 atoms, 2 of them"):
        GraphBuilder(ala2.atoms[[1, 2, 1]], BARE)
    with pytest.raises(DataError, match="0 atoms"):
        GraphBuilder(ala2.atoms[[]], BARE)


def test_frames_are_independent_and_the_static_work_is_done_once(
    adk: mda.Universe, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = select_atoms(adk, "ca")
    builder = GraphBuilder(atoms, GraphSpec())
    for static in ("_covalent_hops", "_node_features", "canonical_residue"):
        monkeypatch.setattr(graph, static, None)
    for static in ("molecule_of", "find_bonds", "chain_numbers", "atom_elements"):
        monkeypatch.setattr(atoms_of_a_model, static, None)
    graphs, frames = [], []
    for ts in adk.trajectory[[0, 97, 0]]:
        graphs.append(builder(ts.positions[atoms.indices], np.zeros((214, 3))))
        frames.append(atoms.positions.copy())
    first, last, again = graphs
    np.testing.assert_array_equal(first.pos, frames[0])
    np.testing.assert_array_equal(last.pos, frames[1])
    assert first.edge_index.shape != last.edge_index.shape
    assert first.identity == last.identity == (builder.identity,)
    given = [(a, b) for a, b in zip(first, again, strict=True) if isinstance(a, torch.Tensor)]
    assert len(given) == 7
    for a, b in given:
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_graph_owns_its_memory(ala2: mda.Universe) -> None:
    builder = GraphBuilder(ala2.atoms, BARE)
    positions, velocities = np.ones((22, 3), np.float32), np.ones((22, 3))
    velocities.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = builder(positions, velocities)
    velocities.flags.writeable = True
    positions[:], velocities[:] = 5, 5
    data.local_index.zero_()
    assert data.pos.eq(1).all() and data.vel.eq(1).all()
    assert builder(positions, velocities).local_index.any()


def test_batches_offset_every_index(ala2: mda.Universe, adk: mda.Universe) -> None:
    positions = straight(2)
    small = GraphBuilder(peptides([1, 2], positions).atoms, BARE)(
        positions, np.zeros((2, 3)), [9.0, 30, 30, 90, 90, 90]
    )
    _, middle = build(ala2, "heavy")
    _, large = build(adk, "ca")
    assert small.edge_shift is not None and middle.edge_shift is None
    for order in ([small, middle, large], [large, small, middle]):
        batch = collate(order)
        starts = np.cumsum([0] + [data.n_nodes for data in order])
        assert batch.n_nodes == starts[-1] and batch.batch.bincount().tolist() == [d.n_nodes for d in order]
        for name in ("edge_index", "local_index"):
            parts = [getattr(data, name) + int(start) for data, start in zip(order, starts[:-1], strict=True)]
            torch.testing.assert_close(getattr(batch, name), torch.cat(parts, dim=1))
        row, col = batch.edge_index
        distance = (batch.pos[row] - batch.pos[col] - batch.edge_shift).norm(dim=1)
        torch.testing.assert_close(distance, batch.edge_attr[:, DISTANCE])
        i, j = batch.local_index
        torch.testing.assert_close((batch.pos[i] - batch.pos[j]).norm(dim=1), batch.local_attr[:, 0])
    assert middle.edge_shift is None
    assert collate([middle, large]).edge_shift is None


@pytest.fixture
def full_batch(adk: mda.Universe) -> list[Graph]:
    """Two graphs of different size with every field."""
    graphs = []
    for n, seed in ((5, 0), (8, 1)):
        rng = torch.Generator().manual_seed(seed)
        positions = straight(n)
        graph = GraphBuilder(peptides([*range(1, n + 1)], positions).atoms, BARE)(positions, np.zeros((n, 3)))
        history = torch.randn(n, 4, 3, generator=rng)
        graphs.append(graph._replace(
            edge_shift=torch.randn(graph.edge_index.shape[1], 3, generator=rng), pos_history=history,
            vel_history=-history, y=2 * history, item=torch.tensor([seed + 7]), stride=torch.tensor([seed + 0.5]),
        ))  # fmt: skip
    return graphs


def same(a: Graph, b: Graph) -> None:
    for name, one, other in zip(Graph._fields, a, b, strict=True):
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other), name
        else:
            assert one == other, name


def test_a_batch_splits_into_its_graphs(full_batch: list[Graph]) -> None:
    batch = collate(full_batch)
    assert (batch.n_graphs, batch.n_nodes, batch.sizes) == (2, 13, [5, 8]) and len(set(batch.identity)) == 2
    assert all(value is not None for value in batch)
    for got, expected in zip(batch.split(), full_batch, strict=True):
        same(got, expected)
    same(collate([batch, full_batch[0]]), collate([*full_batch, full_batch[0]]))
    same(batch.to("cpu"), batch)


def test_graphs_go_to_torch_geometric_and_back(full_batch: list[Graph]) -> None:
    from torch_geometric.data import Batch, Data

    one, batch = full_batch[0], collate(full_batch)
    data = one.to_data()
    assert type(data) is Data and data.num_nodes == 5 and data.identity == one.identity[0]
    same(Graph.from_data(data), one)
    together = batch.to_data()
    assert isinstance(together, Batch) and torch.equal(together.batch, batch.batch)
    same(Graph.from_data(together), batch)
    # Batched by torch_geometric or here is the same, and data sets of theirs can be given as they are.
    same(Graph.from_data(Batch.from_data_list([g.to_data() for g in full_batch])), batch)
    same(collate([g.to_data() for g in full_batch]), batch)
    del together.ptr
    assert torch.equal(Graph.from_data(together).ptr, batch.ptr)
    bare = Graph.from_data(Data(**{name: getattr(one, name) for name in Graph._fields[:5]}, other=3))
    assert bare.local_index is None and bare.identity == ("",) and bare.n_graphs == 1


def test_graphs_that_cannot_be_one_batch_are_refused(full_batch: list[Graph]) -> None:
    from torch_geometric.data import Data

    first, second = full_batch
    with pytest.raises(DataError, match="'y' is missing in number 1 of 2"):
        collate([first, second._replace(y=None)])
    with pytest.raises(DataError, match="at least one graph"):
        collate([])
    with pytest.raises(DataError, match="this Data has no vel, edge_attr"):
        Graph.from_data(Data(x=first.x, pos=first.pos, edge_index=first.edge_index))
    shuffled = collate(full_batch).to_data()
    shuffled.batch = shuffled.batch.flip(0)
    del shuffled.ptr
    with pytest.raises(DataError, match="ascending"):
        Graph.from_data(shuffled)
