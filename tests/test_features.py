"""Features of nodes and edges that tell more than the usual ones, and batches, on molecules small enough to count."""

from __future__ import annotations

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from test_graph import peptides, straight

from egno_md.errors import ModelError
from egno_md.graph.builder import GraphBuilder, _covalent_hops, radial_basis
from egno_md.graph.graph import Graph, collate
from egno_md.specs import GraphSpec


def carbon_dioxide_and_more():
    """O=C=O, a chlorine with two hydrogens that are bonded to it, and a lone atom of no element, 3 Angstrom apart."""
    elements, residues = ["O", "C", "O", "H", "Cl", "H", "X"], [0, 0, 0, 1, 1, 1, 2]
    u = mda.Universe.empty(7, n_residues=3, atom_resindex=residues, trajectory=True)
    for name, values in (("names", elements), ("elements", elements), ("resnames", ["CO2", "ION", "UNK"]),
                         ("charges", [-0.4, 0.8, -0.4, 0.1, -1.2, 0.1, 0.5])):  # fmt: skip
        u.add_TopologyAttr(name, values)
    u.add_TopologyAttr("bonds", [(0, 1), (1, 2), (3, 4), (4, 5)])
    u.atoms.positions = np.stack([3.0 * np.arange(7), 15.0 * np.arange(7), np.zeros(7)], axis=1)
    return u


def test_nodes_are_told_their_element_charge_height_and_speed():
    u = carbon_dioxide_and_more()
    spec = GraphSpec(
        select="all",
        cutoff=np.inf,
        edge_features=("distance",),
        node_features=("height", "charge", "atomic_number", "speed"),
    )
    velocities = np.arange(21.0).reshape(7, 3)
    builder = GraphBuilder(u.atoms, spec)
    x = builder(u.atoms.positions, velocities).x
    assert x.shape == (7, spec.n_node_features) == (7, 4)
    np.testing.assert_allclose(x[:, 0], np.arange(7) / 2)  # 30 is about the height of a person
    np.testing.assert_allclose(x[:, 1], [-0.4, 0.8, -0.4, 0.1, -1.2, 0.1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(x[:, 2], np.array([8, 6, 8, 1, 17, 1, 0]) / 17, rtol=1e-6)
    np.testing.assert_allclose(x[:, 3], np.linalg.norm(velocities, axis=1), rtol=1e-6)
    # A frame leaves nothing behind for the next one.
    again = builder(u.atoms.positions * [1, 0, 1], 0 * velocities).x
    assert not again[:, [0, 3]].any() and torch.equal(again[:, 1:3], x[:, 1:3])
    unknown = u.atoms[6:]
    alone = GraphBuilder(unknown, spec.model_copy(update={"node_features": ("atomic_number",)}))
    assert alone(unknown.positions, np.zeros((1, 3))).x.tolist() == [[0.0]]


def test_edges_are_told_elements_charges_and_bonds_between():
    u = carbon_dioxide_and_more()
    features = ("bonds_apart", "charge_product", "atomic_numbers", "bond", "hop")
    spec = GraphSpec(select="all", cutoff=np.inf, hops=2, node_features=("speed",), edge_features=features)
    graph = GraphBuilder(u.atoms, spec)(u.atoms.positions, np.zeros((7, 3)))
    assert graph.edge_index.T.tolist() == [[i, j] for i in range(7) for j in range(7) if i != j]
    assert graph.edge_attr.shape == (42, spec.n_edge_features) == (42, 1 + 1 + 2 + 1 + 3)
    apart = {(0, 1): 1, (1, 2): 1, (0, 2): 2, (3, 4): 1, (4, 5): 1, (3, 5): 2}
    numbers, charges = [8, 6, 8, 1, 17, 1, 0], u.atoms.charges
    for (i, j), found in zip(graph.edge_index.T.tolist(), graph.edge_attr.tolist(), strict=True):
        bonds = apart.get((min(i, j), max(i, j)), 0)
        product = charges[i] * charges[j]
        hop = [float(bonds == k) for k in range(3)]
        assert found == pytest.approx([bonds, product, numbers[i], numbers[j], hop[1], *hop], rel=1e-5)
    one = GraphBuilder(u.atoms, spec.model_copy(update={"hops": 1}))(u.atoms.positions, np.zeros((7, 3)))
    assert one.edge_attr[:, 0].max() == 1 and one.edge_attr.shape[1] == 7  # what is two bonds apart is far
    none = spec.model_copy(update={"edge_features": ()})
    assert GraphBuilder(u.atoms, none)(u.atoms.positions, np.zeros((7, 3))).edge_attr.shape == (42, 0)


def test_bonds_are_listed_in_both_directions_with_their_length():
    u = carbon_dioxide_and_more()
    spec = GraphSpec(select="all", cutoff=4.0, node_features=("speed",), edge_features=("distance",))
    graph = GraphBuilder(u.atoms, spec)(u.atoms.positions, np.zeros((7, 3)))
    assert graph.local_index.T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [3, 4], [4, 3], [4, 5], [5, 4]]
    torch.testing.assert_close(graph.local_attr, torch.full((8, 1), float(np.hypot(3, 15))))


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_hops_are_the_shortest_way_along_bonds(hops):
    """A ring of six atoms with a tail of one, and an atom of its own."""
    bonds = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [0, 5], [5, 6]])
    pairs, counts = _covalent_hops(bonds, 8, hops)
    away = np.full((8, 8), 99)
    np.fill_diagonal(away, 0)
    for i, j in bonds:
        away[i, j] = away[j, i] = 1
    for k in range(8):
        away = np.minimum(away, away[:, k : k + 1] + away[k])
    expected = [(i, j, away[i, j]) for i in range(8) for j in range(8) if 0 < away[i, j] <= hops]
    assert [*zip(*pairs.tolist(), counts.tolist(), strict=True)] == expected


def test_gaussians_of_a_distance_stand_one_width_apart():
    distance = torch.tensor([[0.0], [1.0], [2.5], [5.0], [7.0]], dtype=torch.float64)
    found = radial_basis(distance, 6.0, 4)
    for d, row in zip(distance[:, 0].tolist(), found.tolist(), strict=True):
        envelope = (1 + np.cos(np.pi * d / 6)) / 2 if d < 6 else 0.0
        assert row == pytest.approx([np.exp(-((d - 2 * k) ** 2) / 8) * envelope for k in range(4)], abs=1e-15)


def test_residues_of_one_chain_are_so_many_apart_and_images_are_far():
    positions = straight(14)
    spec = GraphSpec(node_features=("speed",), edge_features=("chain",), cutoff=np.inf)
    graph = GraphBuilder(peptides([*range(1, 15)], positions).atoms, spec)(positions, np.zeros((14, 3)))
    i, j = graph.edge_index
    torch.testing.assert_close(graph.edge_attr[:, 0], ((i - j).abs() / 10).clamp(max=1))
    # In a box of four times their spacing the first and the last of four see each other through its side.
    few = straight(4)
    near = GraphBuilder(peptides([1, 2, 3, 4], few).atoms, spec.model_copy(update={"cutoff": 4.0}))
    crossing = near(few, np.zeros((4, 3)), [15.2, 40, 40, 90, 90, 90])
    through = crossing.edge_shift.any(dim=1)
    assert sorted(crossing.edge_index[:, through].T.tolist()) == [[0, 3], [3, 0]]
    assert crossing.edge_attr[through].tolist() == [[1.0], [1.0]]
    i, j = crossing.edge_index[:, ~through]
    torch.testing.assert_close(crossing.edge_attr[~through, 0], (i - j).abs() / 10)


def test_a_batch_counts_from_where_each_member_begins():
    def graph(n, seed, **more):
        rng = torch.Generator().manual_seed(seed)
        edges = torch.tensor([[0, n - 1], [n - 1, 0]])
        return Graph(
            x=torch.rand(n, 2, generator=rng), pos=torch.rand(n, 3, generator=rng), vel=torch.rand(n, 3, generator=rng),
            edge_index=edges, edge_attr=torch.rand(2, 1, generator=rng), identity=(f"m{seed}",), **more,
        )  # fmt: skip

    some = [graph(n, seed) for seed, n in enumerate((2, 3, 4))]
    whole = collate([collate(some[:2]), some[2]])
    assert (whole.n_graphs, whole.sizes, whole.ptr.tolist()) == (3, [2, 3, 4], [0, 2, 5, 9])
    assert whole.batch.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2] and whole.identity == ("m0", "m1", "m2")
    assert whole.edge_index.tolist() == [[0, 1, 2, 4, 5, 8], [1, 0, 4, 2, 8, 5]]
    assert [g.edge_index.tolist() for g in whole.split()] == [g.edge_index.tolist() for g in some]
    alone = some[1]
    assert (alone.n_graphs, alone.sizes, alone.batch.tolist()) == (1, [3], [0, 0, 0]) and alone.split() == [alone]
    # One graph that crosses the box: the others cross it by nothing.
    shift = torch.ones(2, 3)
    mixed = collate([some[0], some[1]._replace(edge_shift=shift)])
    torch.testing.assert_close(mixed.edge_shift, torch.cat([0 * shift, shift]))


def test_a_data_set_of_torch_geometric_is_one_of_ours():
    data = pytest.importorskip("torch_geometric.data")
    fields = {"x": torch.zeros(5, 1), "pos": torch.zeros(5, 3), "vel": torch.zeros(5, 3),
              "edge_index": torch.tensor([[0, 3], [1, 4]]), "edge_attr": torch.zeros(2, 1)}  # fmt: skip
    one = Graph.from_data(data.Data(**fields, item=3, stride=0.5, identity="m"))
    assert one.item.tolist() == [3] and one.stride.tolist() == [0.5] and one.identity == ("m",) and one.ptr is None
    two = Graph.from_data(
        data.Data(**fields, batch=torch.tensor([0, 0, 0, 1, 1]), item=torch.tensor([[3], [4]]), identity=["a", "b"])
    )
    assert two.ptr.tolist() == [0, 3, 5] and two.item.tolist() == [3, 4] and two.identity == ("a", "b")
    assert two.sizes == [3, 2] and two.split()[1].edge_index.tolist() == [[0], [1]]
    bare = Graph.from_data(data.Data(**fields, batch=torch.tensor([0, 0, 0, 1, 1])))
    assert bare.identity == ("", "") and bare.stride is None


def test_charges_that_a_topology_lacks_are_named():
    u = peptides([1, 2], straight(2))
    with pytest.raises(ModelError, match="'charge_product' needs charges"):
        GraphBuilder(u.atoms, GraphSpec(edge_features=("charge_product",), node_features=("speed",)))(
            u.atoms.positions, np.zeros((2, 3))
        )
