"""From a selection of atoms to a graph: the features of every frame."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from torch import Tensor

from ..errors import ModelError, few
from ..molecule.molecule import Molecule
from ..molecule.neighbors import radius_graph
from ..molecule.residues import canonical_residue
from ..molecule.structure import Structure
from ..molecule.whole import check_jump
from ..specs import GraphSpec, NodeFeature
from .graph import Graph

#: Residues this far apart along the chain, and those of another chain, are "far": the feature is 1.
CHAIN_CAP = 10

#: What a height is divided by: about that of a standing person in the units of the CMU motion capture files.
TALL = 30.0

#: By chemical symbol.
ATOMIC_NUMBERS = {
    symbol: 1 + k
    for k, symbol in enumerate(
        "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr "
        "Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe".split()
    )
}


class GraphBuilder(Structure):
    """Graphs of one selection, frame after frame.

    What does not depend on the frame is done here once: the vocabularies are checked, the bonds found, the covalent
    neighbours counted, the static node features written.

    Bonds are those of the topology. Atoms that it leaves without any (in residues of more than one atom) get theirs
    from the distances at the current frame. Where every residue has one selected atom and none are bonded to each
    other (C-alpha), the chain takes their place: two residues that follow each other in one chain are linked if the
    topology bonds them or if both atoms are C-alpha less than 4.5 A apart at the current frame; a gap is no link. A
    chain ends with its segment or chain identifier, or where the residue numbers fall.

    Parameters
    ----------
    atoms : AtomGroup or Molecule
        N atoms as chosen by :func:`select_atoms`; ``spec.select`` is not applied again. The universe is not altered.
    spec : GraphSpec
        Cutoff, hops and features.
    device : str or torch.device
        Where the tensors go.

    Attributes
    ----------
    molecule : Molecule
        The atoms as arrays; everything is read from here.
    atoms : AtomGroup or Molecule
        What the molecule was made of.
    spec : GraphSpec
    n_atoms : int
    bonds : ndarray (B, 2), int64
        Bonds, or links of the chain, as indices into the molecule; first index smaller, sorted.
    identity : str
        That of the molecule: the same for the same atoms with the same bonds, whatever the file.

    Raises
    ------
    UsageError
        An UpdatingAtomGroup.
    DataError
        No atoms, an atom twice, or bonds to be guessed without coordinates.
    ModelError
        A residue, element or atom name outside the vocabulary, or charges that the topology lacks.
    """

    def __init__(self, atoms: Any, spec: GraphSpec, *, device: str | torch.device = "cpu") -> None:
        super().__init__(atoms)
        self.spec = spec
        self.device = torch.device(device)
        self._x = _node_features(self.molecule, spec).to(self.device)  # (N, F)
        self._speed = _first_column(spec, "speed") if "speed" in spec.node_features else None
        self._height = _first_column(spec, "height") if "height" in spec.node_features else None
        local = np.concatenate([self.bonds, self.bonds[:, ::-1]])  # (2B, 2)
        self._local_index = torch.tensor(local[np.lexsort(local.T[::-1])].T, device=self.device)  # (2, 2B)
        self._covalent, self._hop = _covalent_hops(self.bonds, self.n_atoms, max(spec.hops, 1))  # (2, K), (K,)

    def __call__(
        self, positions: ArrayLike, velocities: ArrayLike, box: ArrayLike | None = None, *, frame: int | None = None
    ) -> Graph:
        """The graph of one frame.

        Parameters
        ----------
        positions : array_like (N, 3)
            Angstrom; whole molecules.
        velocities : array_like (N, 3)
            Angstrom per frame stride.
        box : array_like (6,), optional
            Lengths (Angstrom) and angles (degrees) of a periodic box.
        frame : int, optional
            Number of the frame, for error messages.

        Returns
        -------
        Graph
            ``edge_index (2, E)`` sorted by receiver then sender, ``local_index (2, 2B)`` the bonds in both directions,
            ``local_attr (2B, 1)`` their lengths in Angstrom, ``identity`` of the builder, and ``edge_shift (E, 3)``
            where an edge crosses the box.

        Raises
        ------
        DataError
            A wrong shape, NaN or infinity, a molecule broken by the box, or one that jumped through it.
        """
        positions = self.checked("positions", positions, frame)
        velocities = self.checked("velocities", velocities, frame)
        self.check_whole(positions, box, frame=frame)
        check_jump(self.molecule, velocities, box, frame=frame)

        edges, shift, hop = self._edges(positions, box)
        # Distances in float64: the difference of two coordinates far from the origin keeps its digits.
        pos = torch.from_numpy(positions).to(self.device)  # (N, 3)
        edge_index = torch.from_numpy(edges).to(self.device)  # (2, E)
        delta = pos.index_select(0, edge_index[0]) - pos.index_select(0, edge_index[1])  # (E, 3)
        if shift is not None:
            delta -= torch.from_numpy(shift).to(self.device)
        distance = delta.square().sum(dim=1, keepdim=True).sqrt().to(torch.float32)  # (E, 1)
        bond_length = torch.linalg.vector_norm(pos[self._local_index[0]] - pos[self._local_index[1]], dim=1)  # (2B,)
        vel = torch.from_numpy(velocities).to(self.device, torch.float32)  # (N, 3)
        x = self._x.clone()
        if self._speed is not None:
            x[:, self._speed] = vel.norm(dim=1)
        if self._height is not None:
            x[:, self._height] = pos[:, 1].to(torch.float32) / TALL
        crosses = shift is not None and shift.any()
        return Graph(
            x=x,
            pos=pos.to(torch.float32),
            vel=vel,
            edge_index=edge_index,
            edge_attr=self._edge_features(edges, distance, hop, shift),
            local_index=self._local_index.clone(),
            local_attr=bond_length[:, None].to(torch.float32),
            edge_shift=torch.from_numpy(shift).to(self.device, torch.float32) if crosses else None,
            identity=(self.identity,),
        )

    @functools.cached_property
    def _all_pairs(self) -> NDArray[np.int64]:
        """Every atom and every other one, sorted, (2, N (N - 1))."""
        return np.stack(np.nonzero(~np.eye(self.n_atoms, dtype=bool))).astype(np.int64)

    def _edges(
        self, positions: NDArray[np.float64], box: ArrayLike | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None, NDArray[np.int64]]:
        """Radius graph and covalent neighbours in one: edges (2, E), image vectors (E, 3) or None, hops (E,)."""
        if self.spec.cutoff == np.inf:
            edges, shift = self._all_pairs.copy(), None  # (2, N (N - 1))
        else:
            edges, shift = radius_graph(positions, self.spec.cutoff, box)  # (2, E')
        crossed = np.zeros(edges.shape[1], dtype=np.int64) if shift is None else shift.any(axis=1).astype(np.int64)
        # Edges are sorted by this number, and a covalent neighbour is always the atom in place (crossed = 0).
        keys = (edges[0] * self.n_atoms + edges[1]) * 2 + crossed
        wanted = (self._covalent[0] * self.n_atoms + self._covalent[1]) * 2
        place = np.searchsorted(keys, wanted)
        found = np.append(keys, -1)[place] == wanted
        missing = ~found & (self._hop <= self.spec.hops)
        if missing.any():
            edges = np.insert(edges, place[missing], self._covalent[:, missing], axis=1)  # (2, E)
            shift = None if shift is None else np.insert(shift, place[missing], 0.0, axis=0)  # (E, 3)
        place = place + np.cumsum(missing) - missing
        hop = np.zeros(edges.shape[1], dtype=np.int64)
        hop[place[found | missing]] = self._hop[found | missing]
        return edges, shift, hop

    def _edge_features(
        self,
        edges: NDArray[np.int64],
        distance: Tensor,
        hop: NDArray[np.int64],
        shift: NDArray[np.float64] | None,
    ) -> Tensor:
        """Edge features (E, A) from the distances (E, 1) and hops (E,)."""
        spec = self.spec
        columns = [distance[:, :0]]
        for name in spec.edge_features:
            if name == "distance":
                columns.append(distance)
            elif name == "distance2":
                columns.append(distance.square())
            elif name == "rbf":
                columns.append(radial_basis(distance, spec.cutoff, spec.n_rbf))
            elif name == "hop":
                covalent = torch.from_numpy(np.where(hop <= spec.hops, hop, 0)).to(self.device)
                columns.append(torch.nn.functional.one_hot(covalent, spec.hops + 1))
            elif name == "bond":
                columns.append(torch.from_numpy(hop == 1).to(self.device)[:, None])
            elif name == "chain":
                row, col = edges
                residues, chains = self.molecule.residues, self.molecule.chains
                apart = np.minimum(np.abs(residues[row] - residues[col]), CHAIN_CAP)
                far = chains[row] != chains[col]
                if shift is not None:
                    far |= shift.any(axis=1)
                columns.append(torch.from_numpy(np.where(far, 1.0, apart / CHAIN_CAP)).to(self.device)[:, None])
            elif name == "charge_product":
                charges = _known(self.molecule, "charges", name)
                columns.append(torch.from_numpy(charges[edges[0]] * charges[edges[1]]).to(self.device)[:, None])
            elif name == "bonds_apart":
                columns.append(torch.from_numpy(np.where(hop <= spec.hops, hop, 0)).to(self.device)[:, None])
            elif name == "atomic_numbers":
                columns.append(torch.from_numpy(_atomic_numbers(self.molecule)[edges].T).to(self.device))
        return torch.cat([column.to(torch.float32) for column in columns], dim=1)  # (E, A)


def radial_basis(distance: Tensor, cutoff: float, size: int) -> Tensor:
    """Gaussians spread evenly over [0, cutoff] under a cosine that goes to zero at the cutoff, with its slope.

    ``exp(-(d - mu_k)^2 / 2 w^2) (1 + cos(pi d / cutoff)) / 2``, the centres ``mu_k`` one width ``w`` apart; zero beyond
    the cutoff.

    Parameters
    ----------
    distance : Tensor (E, 1)
    cutoff : float
    size : int

    Returns
    -------
    Tensor (E, size)
    """
    centres = torch.linspace(0, cutoff, size, dtype=distance.dtype, device=distance.device)
    width = cutoff / (size - 1)
    envelope = 0.5 * (1 + torch.cos(torch.pi * distance.clamp(max=cutoff) / cutoff))  # (E, 1)
    return torch.exp(-0.5 * ((distance - centres) / width) ** 2) * envelope  # (E, size)


def _covalent_hops(bonds: NDArray[np.int64], n_atoms: int, hops: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (2, K), both directions, sorted, at most `hops` bonds apart, and how many bonds (K,)."""
    row, col = np.concatenate([bonds, bonds[:, ::-1]]).T
    adjacency = coo_array((np.ones(len(row), dtype=np.int64), (row, col)), shape=(n_atoms, n_atoms)).tocsr()
    keys, counts = [], []
    reached = adjacency
    for hop in range(1, hops + 1):
        i, j = reached.nonzero()
        i, j = i[i != j].astype(np.int64), j[i != j].astype(np.int64)
        keys.append(i * n_atoms + j)
        counts.append(np.full(len(i), hop))
        reached = reached @ adjacency
        reached.data[:] = 1  # walks are many, pairs are what counts
    # np.unique keeps the first of equal keys: the shortest way.
    pairs, first = np.unique(np.concatenate(keys), return_index=True)
    return np.stack(np.divmod(pairs, n_atoms)), np.concatenate(counts)[first].astype(np.int64)


def _first_column(spec: GraphSpec, feature: NodeFeature) -> int:
    """First column of a node feature."""
    before = spec.node_features[: spec.node_features.index(feature)]
    return spec.model_copy(update={"node_features": before}).n_node_features


def _node_features(molecule: Molecule, spec: GraphSpec) -> Tensor:
    """Node features (N, F); speed and height, which change, are zero here."""
    columns = [np.zeros((molecule.n_atoms, 0))]
    for name in spec.node_features:
        if name in ("speed", "height"):
            columns.append(np.zeros((molecule.n_atoms, 1)))
        elif name == "element":
            columns.append(_one_hot(molecule, "element", molecule.elements, spec.elements))
        elif name == "residue":
            names = _known(molecule, "resnames", "residue")
            canonical = {resname: canonical_residue(str(resname), spec.residues) for resname in set(names)}
            columns.append(_one_hot(molecule, "residue", [canonical[resname] for resname in names], spec.residues))
        elif name == "atom_name":
            columns.append(_one_hot(molecule, "atom_name", _known(molecule, "names", "atom_name"), spec.atom_names))
        elif name == "charge":
            columns.append(_known(molecule, "charges", "charge").reshape(-1, 1))
        elif name == "atomic_number":
            numbers = _atomic_numbers(molecule)
            columns.append((numbers / max(numbers.max(), 1)).reshape(-1, 1))
    return torch.tensor(np.concatenate(columns, axis=1), dtype=torch.float32)  # (N, F)


def _atomic_numbers(molecule: Molecule) -> NDArray[np.int64]:
    """Of every atom; 0 where the element is not known."""
    return np.array([ATOMIC_NUMBERS.get(str(element), 0) for element in molecule.elements], np.int64)  # (N,)


def _known(molecule: Molecule, attribute: str, feature: str) -> NDArray[Any]:
    values = getattr(molecule, attribute)
    if values is None:
        raise ModelError(
            f"the feature {feature!r} needs {attribute} and the topology {molecule.source} has none. Load a "
            "topology that has them (PSF, PRMTOP, TPR), or give them with "
            f"`universe.add_TopologyAttr({attribute!r}, values)`."
        )
    return values


def _one_hot(molecule: Molecule, feature: str, words: Iterable[str], vocabulary: Sequence[str]) -> NDArray[np.float64]:
    words = np.array(list(words), dtype=str)
    index = {word: k for k, word in enumerate(vocabulary)}
    unknown = np.array([word not in index for word in words])
    if unknown.any():
        firsts = np.flatnonzero(unknown)[np.unique(words[unknown], return_index=True)[1]]
        labels = (f"'{words[k]}' of {molecule.label(int(k))}" for k in firsts)
        field = {"element": "elements", "residue": "residues", "atom_name": "atom_names"}[feature]
        raise ModelError(
            f"the model has no word for the {feature} {few(labels, 5)}: it knows {', '.join(vocabulary) or 'none'}. "
            f"Select only atoms that it knows, or train a model whose GraphSpec lists the others in {field!r}."
        )
    return np.eye(len(vocabulary))[[index[word] for word in words]]
