"""From a selection of atoms to a graph: who is selected, who is bonded, and the features of every frame."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from MDAnalysis.core.groups import AtomGroup, UpdatingAtomGroup
from MDAnalysis.exceptions import NoDataError, SelectionError
from MDAnalysis.guesser import tables
from MDAnalysis.guesser.default_guesser import DefaultGuesser
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from torch import Tensor
from torch_geometric.data import Batch, Data

from egno_md.config import GraphSpec, NodeFeature
from egno_md.errors import DataError, ModelError, UsageError
from egno_md.neighbors import DROP_BOX, box_vectors, box_widths, radius_graph

#: The named selections: what each takes from proteins and from nucleic acids. "heavy" needs more than a string.
SELECTIONS = {
    "ca": "protein and name CA",
    "backbone": "backbone or (nucleic and name P O5' C5' C4' C3' O3')",
    "heavy": None,
}
WATER = (
    "HOH H2O DOD WAT SOL SPC SPCE TIP TIP2 TIP3 TIP3P TIP4 TIP4P TIP5 TIP5P T3P T4P T5P OPC OPC3 OH2 OHH HHO".split()
)
#: Residue names that mean the same residue: protonation states, disulfides, selenomethionine, force-field spellings.
RESIDUE_ALIASES = {
    alias: residue
    for residue, aliases in {
        "ARG": "ARGN ARN",
        "ASN": "ASN1",
        "ASP": "ASH ASPH ASPP",
        "CYS": "CYX CYM CYN CYSH CYS1 CYS2 CYSX",
        "GLN": "QLN",
        "GLU": "GLH GLUH GLUP",
        "HIS": "HSD HSE HSP HID HIE HIP HISA HISB HISD HISE HISH HISP HIS1 HIS2",
        "LYS": "LYN LYSH LSN LYSN",
        "MET": "MSE",
        "A": "ADE",
        "C": "CYT",
        "G": "GUA",
        "T": "THY",
        "U": "URA",
    }.items()
    for alias in aliases.split()
} | {f"{sugar}{base}{end}": base for base in "ACGTU" for sugar in ("", "D", "R") for end in ("", "3", "5", "N")}
#: A bond is shorter than this part of the sum of the van der Waals radii: between heavy atoms VMD's 0.6 (MDAnalysis'
#: 0.55 misses disulfides), with a hydrogen 0.55 (0.6 takes the hydrogen bonds of salt bridges for bonds).
BOND_FACTOR, BOND_FACTOR_HYDROGEN = 0.6, 0.55
#: C-alpha atoms of neighbours along a chain are 3.8 A apart (cis 2.9 A), those of next neighbours 5 A and more.
CHAIN_DISTANCE = 4.5
#: Residues this far apart along the chain, and those of another chain, are "far": the feature is 1.
CHAIN_CAP = 10


def select_atoms(source: Any, select: str) -> AtomGroup:
    """The atoms that a model sees: unique, in the order of the topology, the same in every frame.

    Parameters
    ----------
    source : Universe or AtomGroup
        Where to select from.
    select : str
        A selection in the language of MDAnalysis, evaluated once at the current frame, or a name:

        - ``"ca"``: the C-alpha atoms of proteins;
        - ``"backbone"``: N, CA, C, O of proteins; P, O5', C5', C4', C3', O3' of nucleic acids;
        - ``"heavy"``: every atom but hydrogens, water, ions (residues of one atom that is no carbon) and virtual
          sites. Elements come from the topology, else from atom names and masses.

    Returns
    -------
    AtomGroup

    Raises
    ------
    UsageError
        A selection that MDAnalysis cannot read, or an UpdatingAtomGroup.
    DataError
        Nothing is selected, or an atom in several alternate locations.
    """
    _refuse_updating(source)
    if not hasattr(source, "select_atoms"):
        raise UsageError(f"atoms are selected from a Universe or an AtomGroup, found {type(source).__name__}")
    atoms = source.atoms
    try:
        if not select.strip():
            raise SelectionError("the selection is empty")
        selected = _heavy(atoms) if select == "heavy" else atoms.select_atoms(SELECTIONS.get(select, select))
    except (SelectionError, AttributeError, NoDataError, TypeError, ValueError) as error:
        raise UsageError(
            f"the selection {select!r} cannot be evaluated: {error}. Use one of {', '.join(SELECTIONS)} or the "
            "selection language of MDAnalysis, for example 'protein and name CA CB'."
        ) from error
    if not len(selected):
        raise DataError(
            f"the selection {select!r} holds no atom: the topology has {_describe(atoms)}. "
            "Choose a selection that it holds, for example select='heavy'."
        )
    _refuse_alternate_locations(selected, select)
    return selected


def check_whole(
    atoms: AtomGroup,
    positions: NDArray[np.floating],
    bonds: NDArray[np.integer],
    box: ArrayLike | None,
    *,
    frame: int | None = None,
) -> None:
    """Refuse molecules that the periodic box cuts in two.

    Parameters
    ----------
    atoms : AtomGroup
        The N atoms, for the message.
    positions : ndarray (N, 3)
        Angstrom.
    bonds : ndarray (B, 2)
        Pairs of atoms that belong together (bonds; for C-alpha atoms the chain).
    box : array_like (6,) or None
        Lengths and angles; without a box nothing can be broken.
    frame : int, optional
        For the message.

    Raises
    ------
    DataError
        A bond is longer than half the smallest (perpendicular) width of the box.
    """
    vectors = box_vectors(box)
    if vectors is None or not len(bonds):
        return
    half = box_widths(vectors).min() / 2
    lengths = np.linalg.norm(positions[bonds[:, 0]] - positions[bonds[:, 1]], axis=1)  # (B,)
    if lengths.max() > half:
        worst = int(lengths.argmax())
        first, second = (_label(atoms[int(k)]) for k in bonds[worst])
        raise DataError(
            f"{_in_frame(frame)}{first} and {second} belong together but are {lengths[worst]:.1f} A apart, more than "
            f"half the box ({half:.1f} A): the molecule is broken by the periodic box. Make it whole with "
            "`universe.trajectory.add_transformations(MDAnalysis.transformations.unwrap(universe.atoms))` (it needs "
            f"bonds: `universe.guess_TopologyAttrs(to_guess=['bonds'])`). {DROP_BOX}."
        )


def collate(graphs: Sequence[Data]) -> Batch:
    """One batch of several graphs.

    A graph has ``edge_shift`` only where an edge crosses the box; if one of them does, the others get zeros, which
    torch_geometric would not do (it drops the field, or fails, by what the first graph has).
    """
    if any("edge_shift" in graph for graph in graphs):
        graphs = [graph if "edge_shift" in graph else graph.clone() for graph in graphs]
        for graph in graphs:
            if "edge_shift" not in graph:
                graph.edge_shift = graph.pos.new_zeros(graph.edge_index.shape[1], 3)
    return Batch.from_data_list(list(graphs))


class GraphBuilder:
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
    atoms : AtomGroup
        N atoms as chosen by :func:`select_atoms`; ``spec.select`` is not applied again. The universe is not altered.
    spec : GraphSpec
        Cutoff, hops and features.
    device : str or torch.device
        Where the tensors go.

    Attributes
    ----------
    atoms : AtomGroup
    spec : GraphSpec
    n_atoms : int
    bonds : ndarray (B, 2), int64
        Bonds, or links of the chain, as indices into `atoms`; first index smaller, sorted.

    Raises
    ------
    UsageError
        An UpdatingAtomGroup.
    DataError
        No atoms, an atom twice, or bonds to be guessed without coordinates.
    ModelError
        A residue, element or atom name outside the vocabulary, or charges that the topology lacks.
    """

    def __init__(self, atoms: AtomGroup, spec: GraphSpec, *, device: str | torch.device = "cpu") -> None:
        _refuse_updating(atoms)
        atoms = atoms.atoms
        if not len(atoms) or len(atoms.unique) != len(atoms):
            raise DataError(
                f"a graph needs atoms, each of them once; found {len(atoms)} atoms, {len(atoms.unique)} of them "
                "different. Choose them with `egno_md.graph.select_atoms`, or use `atomgroup.unique`."
            )
        self.atoms = atoms
        self.spec = spec
        self.n_atoms = len(atoms)
        self.device = torch.device(device)
        self._residue = atoms.resindices
        self._chain = _chains(atoms)
        self._x = _node_features(atoms, spec).to(self.device)  # (N, F)
        self._speed = _first_column(spec, "speed") if "speed" in spec.node_features else None
        self.bonds = _bonds(atoms, self._chain)  # (B, 2)
        local = np.concatenate([self.bonds, self.bonds[:, ::-1]])  # (2B, 2)
        self._local_index = torch.tensor(local[np.lexsort(local.T[::-1])].T, device=self.device)  # (2, 2B)
        self._covalent, self._hop = _covalent_hops(self.bonds, self.n_atoms, max(spec.hops, 1))  # (2, K), (K,)

    def __call__(
        self, positions: ArrayLike, velocities: ArrayLike, box: ArrayLike | None = None, *, frame: int | None = None
    ) -> Data:
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
        torch_geometric.data.Data
            ``x (N, F)``, ``pos (N, 3)``, ``vel (N, 3)``, ``edge_index (2, E)`` sorted by receiver then sender,
            ``edge_attr (E, A)``, ``local_index (2, 2B)`` the bonds in both directions, ``local_attr (2B, 1)`` their
            lengths in Angstrom, ``identity`` of the builder, and, where an edge crosses the box, ``edge_shift (E, 3)``:
            the displacement of an edge is ``pos[receiver] - pos[sender] - edge_shift``. float32 and int64.

        Raises
        ------
        DataError
            A wrong shape, NaN or infinity, a molecule broken by the box, or one that jumped through it.
        """
        positions = self.checked("positions", positions, frame)
        velocities = self.checked("velocities", velocities, frame)
        self.check_whole(positions, box, frame=frame)
        self._check_jump(velocities, box, frame)

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
        data = Data(
            x=x,
            pos=pos.to(torch.float32),
            vel=vel,
            edge_index=edge_index,
            edge_attr=self._edge_features(edges, distance, hop, shift),
            local_index=self._local_index.clone(),
            local_attr=bond_length[:, None].to(torch.float32),
            identity=self.identity,
        )
        if shift is not None and shift.any():
            data.edge_shift = torch.from_numpy(shift).to(self.device, torch.float32)
        return data

    @functools.cached_property
    def identity(self) -> str:
        """The same for the same atoms (number, names, residue names) with the same bonds, whatever the file."""
        columns = [getattr(self.atoms, name).tolist() for name in ("resnames", "names") if hasattr(self.atoms, name)]
        return hashlib.sha256(repr([self.n_atoms, columns, self.bonds.tolist()]).encode()).hexdigest()[:16]

    def check_whole(self, positions: ArrayLike, box: ArrayLike | None, *, frame: int | None = None) -> None:
        """:func:`check_whole` with the atoms and bonds of this builder."""
        check_whole(self.atoms, np.asarray(positions), self.bonds, box, frame=frame)

    def checked(self, what: str, values: ArrayLike, frame: int | None) -> NDArray[np.float64]:
        """Positions or velocities (`what`, for the message) as float64 (N, 3), or a DataError that names the atoms."""
        array = np.array(values, dtype=np.float64)  # a copy: torch wants no read-only arrays
        if array.shape != (self.n_atoms, 3):
            raise DataError(
                f"{_in_frame(frame)}the {what} have shape {array.shape}, expected ({self.n_atoms}, 3): one row for "
                "each atom of the selection that this graph was made for."
            )
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise DataError(
                f"{_in_frame(frame)}the {what} of {len(bad)} of {self.n_atoms} atoms are not finite numbers: "
                f"{_few((_label(self.atoms[int(k)]) for k in bad), 3)}. Leave the damaged frames out, or repair the "
                "trajectory."
            )
        return array

    def _check_jump(self, velocities: NDArray[np.float64], box: ArrayLike | None, frame: int | None) -> None:
        vectors = box_vectors(box)
        if vectors is None:
            return
        half = box_widths(vectors).min() / 2
        moved = np.linalg.norm(velocities, axis=1)  # (N,)
        if moved.max() > half:
            atom = _label(self.atoms[int(moved.argmax())])
            raise DataError(
                f"{_in_frame(frame)}{atom} moved {moved.max():.1f} A since the frame before, more than half the box "
                f"({half:.1f} A): the molecule was wrapped back into the box. Undo it with "
                "`universe.trajectory.add_transformations(MDAnalysis.transformations.nojump.NoJump())`."
            )

    def _edges(
        self, positions: NDArray[np.float64], box: ArrayLike | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None, NDArray[np.int64]]:
        """Radius graph and covalent neighbours in one: edges (2, E), image vectors (E, 3) or None, hops (E,)."""
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
                apart = np.minimum(np.abs(self._residue[row] - self._residue[col]), CHAIN_CAP)
                far = self._chain[row] != self._chain[col]
                if shift is not None:
                    far |= shift.any(axis=1)
                columns.append(torch.from_numpy(np.where(far, 1.0, apart / CHAIN_CAP)).to(self.device)[:, None])
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


def atom_elements(atoms: AtomGroup) -> NDArray[np.str_]:
    """Chemical symbols ("C", "Cl"), from the topology, else from names and masses; "" for virtual sites.

    Names are read by MDAnalysis' guesser. Where the guess has two letters and the mass is nearer to the element of the
    first letter (an "NA" of 14 u is a nitrogen), the mass decides.
    """
    n_atoms = len(atoms)
    known = atoms.elements if hasattr(atoms, "elements") else np.full(n_atoms, "")
    elements = np.array([str(symbol).strip().capitalize() for symbol in known], dtype="U2")
    blank = np.flatnonzero(elements == "")
    if len(blank) and hasattr(atoms, "names"):
        guesser = DefaultGuesser(None)
        masses = atoms.masses if hasattr(atoms, "masses") else np.zeros(n_atoms)
        if not masses.any():
            masses = np.full(n_atoms, np.nan)  # all zero: not known, rather than all virtual
        names = atoms.names
        guessed: dict[tuple[str, float], str] = {}
        for k in blank:
            key = (names[k], float(masses[k]))
            if key not in guessed:
                guessed[key] = _guess_element(guesser, *key)
            elements[k] = guessed[key]
    elements[elements == "D"] = "H"
    return elements


def _guess_element(guesser: DefaultGuesser, name: str, mass: float) -> str:
    symbol = str(guesser.guess_atom_element(name)).capitalize()
    if symbol == "Dummy" or mass == 0:
        return ""
    if len(symbol) == 2 and symbol[0] in tables.masses:
        if abs(mass - tables.masses[symbol[0]]) < abs(mass - guesser.get_atom_mass(symbol)):
            return symbol[0]
    return symbol


def _heavy(atoms: AtomGroup) -> AtomGroup:
    elements = atom_elements(atoms)
    if not elements.astype(bool).any():
        raise NoDataError("the topology has neither elements nor atom names")
    keep = (elements != "") & (elements != "H")
    if hasattr(atoms, "resnames"):
        keep &= ~np.isin(atoms.resnames.astype(str), WATER)
    keep &= (_residue_sizes(atoms) > 1) | (elements == "C")
    return atoms[keep].unique


def _residue_sizes(atoms: AtomGroup) -> NDArray[np.int64]:
    """How many atoms of the universe the residue of each atom has (N,)."""
    return np.bincount(atoms.universe.atoms.resindices)[atoms.resindices]


def _chains(atoms: AtomGroup) -> NDArray[np.int64]:
    """Number of the chain of each atom (N,): a new one where segment or chain differ, or residue numbers fall."""
    _, first, residue = np.unique(atoms.resindices, return_index=True, return_inverse=True)
    ends = np.diff(atoms.segindices[first]) != 0  # (R - 1,)
    if hasattr(atoms, "chainIDs"):
        chain_ids = atoms.chainIDs[first]
        ends |= chain_ids[1:] != chain_ids[:-1]
    if hasattr(atoms, "resids"):
        ends |= np.diff(atoms.resids[first]) < 0
    return np.concatenate([[0], np.cumsum(ends)])[residue]


def _bonds(atoms: AtomGroup, chain: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bonds, or links of the chain, as sorted pairs of indices into `atoms` (B, 2)."""
    universe = atoms.universe
    topology = universe.bonds.to_indices().reshape(-1, 2) if hasattr(universe, "bonds") else np.zeros((0, 2), dtype=int)
    local = np.full(len(universe.atoms), -1)
    local[atoms.indices] = np.arange(len(atoms))
    bonds = local[topology]
    bonds = bonds[(bonds >= 0).all(axis=1)]
    if not len(bonds) and len(np.unique(atoms.resindices)) == len(atoms):
        bonds = _chain_links(atoms, chain, topology)
    else:
        bonded = np.isin(atoms.indices, topology)
        if not bonded[_residue_sizes(atoms) > 1].all():
            bonds = np.concatenate([bonds, _guess_bonds(atoms)])
    return np.unique(np.sort(bonds, axis=1), axis=0).astype(np.int64).reshape(-1, 2)


def _chain_links(atoms: AtomGroup, chain: NDArray[np.int64], topology: NDArray[np.integer]) -> NDArray[np.int64]:
    order = np.argsort(atoms.resindices)
    pairs = np.stack([order[:-1], order[1:]], axis=1)  # (N - 1, 2)
    pairs = pairs[chain[pairs[:, 0]] == chain[pairs[:, 1]]]
    resindices, n_residues = atoms.universe.atoms.resindices, len(atoms.universe.residues)
    touching = np.sort(resindices[topology], axis=1) @ [n_residues, 1]
    linked = np.isin(atoms.resindices[pairs] @ [n_residues, 1], touching)  # (P,)
    is_ca = atoms.names == "CA" if hasattr(atoms, "names") else np.zeros(len(atoms), dtype=bool)
    open_ends = ~linked & is_ca[pairs].all(axis=1)
    if open_ends.any():
        positions, box = _coordinates(atoms)
        edges, _ = radius_graph(positions, CHAIN_DISTANCE, box)
        near = np.isin(pairs @ [len(atoms), 1], np.array([len(atoms), 1]) @ edges)
        linked |= open_ends & near
    return pairs[linked]


def _guess_bonds(atoms: AtomGroup) -> NDArray[np.int64]:
    elements = atom_elements(atoms)
    radii = np.array([tables.vdwradii.get(symbol.upper(), 0.0) for symbol in elements])  # (N,)
    if not radii.any():
        return np.zeros((0, 2), dtype=np.int64)
    positions, box = _coordinates(atoms)
    (row, col), shift = radius_graph(positions, 2 * BOND_FACTOR * radii.max(), box)
    delta = positions[row] - positions[col] - (0 if shift is None else shift)
    light = elements == "H"
    factor = np.where(light[row] | light[col], BOND_FACTOR_HYDROGEN, BOND_FACTOR)  # (E,)
    bonded = np.linalg.norm(delta, axis=1) < factor * (radii[row] + radii[col])
    return np.stack([row, col], axis=1)[bonded & (row < col)]


def _coordinates(atoms: AtomGroup) -> tuple[NDArray[np.floating], NDArray[np.floating] | None]:
    """Positions and box at the current frame, from which bonds are found that the topology lacks."""
    try:
        positions, box = atoms.positions, atoms.universe.dimensions
    except (NoDataError, AttributeError) as error:
        raise DataError(
            "the topology lacks bonds and there are no coordinates to find them from. Load a trajectory, or a "
            "topology that has bonds (PSF, PRMTOP, TPR)."
        ) from error
    if not np.isfinite(positions).all():
        raise DataError(
            "the topology lacks bonds and the coordinates of the current frame, from which they would be found, are "
            "not finite. Go to an intact frame first, or load a topology that has bonds (PSF, PRMTOP, TPR)."
        )
    return positions, box


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


def _node_features(atoms: AtomGroup, spec: GraphSpec) -> Tensor:
    """Node features (N, F); the speed, which changes, is zero here."""
    columns = [np.zeros((len(atoms), 0))]
    for name in spec.node_features:
        if name == "speed":
            columns.append(np.zeros((len(atoms), 1)))
        elif name == "element":
            columns.append(_one_hot(atoms, "element", atom_elements(atoms), spec.elements))
        elif name == "residue":
            names = _attribute(atoms, "resnames", "residue")
            canonical = {resname: _canonical_residue(str(resname), spec.residues) for resname in set(names)}
            columns.append(_one_hot(atoms, "residue", [canonical[resname] for resname in names], spec.residues))
        elif name == "atom_name":
            columns.append(_one_hot(atoms, "atom_name", _attribute(atoms, "names", "atom_name"), spec.atom_names))
        elif name == "charge":
            columns.append(_attribute(atoms, "charges", "charge").reshape(-1, 1))
    return torch.tensor(np.concatenate(columns, axis=1), dtype=torch.float32)  # (N, F)


def _attribute(atoms: AtomGroup, attribute: str, feature: str) -> NDArray[Any]:
    if not hasattr(atoms, attribute):
        raise ModelError(
            f"the node feature {feature!r} needs {attribute} and the topology {_file(atoms)} has none. Load a topology "
            f"that has them (PSF, PRMTOP, TPR), or give them with `universe.add_TopologyAttr({attribute!r}, values)`."
        )
    return getattr(atoms, attribute)


def _canonical_residue(resname: str, vocabulary: Iterable[str]) -> str:
    """The vocabulary's word for a residue name, or the name itself; Amber marks chain ends with N or C in front."""
    for name in (resname, resname[1:] if len(resname) == 4 and resname[0] in "NC" else resname):
        for candidate in (name, RESIDUE_ALIASES.get(name, name)):
            if candidate in vocabulary:
                return candidate
    return resname


def _one_hot(atoms: AtomGroup, feature: str, words: Iterable[str], vocabulary: Sequence[str]) -> NDArray[np.float64]:
    words = np.array(list(words), dtype=str)
    index = {word: k for k, word in enumerate(vocabulary)}
    unknown = np.array([word not in index for word in words])
    if unknown.any():
        firsts = np.flatnonzero(unknown)[np.unique(words[unknown], return_index=True)[1]]
        labels = (f"'{words[k]}' of {_label(atoms[int(k)])}" for k in firsts)
        field = {"element": "elements", "residue": "residues", "atom_name": "atom_names"}[feature]
        raise ModelError(
            f"the model has no word for the {feature} {_few(labels, 5)}: it knows {', '.join(vocabulary) or 'none'}. "
            f"Select only atoms that it knows, or train a model whose GraphSpec lists the others in {field!r}."
        )
    return np.eye(len(vocabulary))[[index[word] for word in words]]


def _refuse_updating(atoms: Any) -> None:
    if isinstance(atoms, UpdatingAtomGroup):
        raise UsageError(
            "an UpdatingAtomGroup changes from frame to frame, a model needs the same atoms in all of them. "
            "Use `select_atoms(..., updating=False)`, or its current atoms: `group.atoms`."
        )


def _refuse_alternate_locations(atoms: AtomGroup, select: str) -> None:
    if not hasattr(atoms, "altLocs") or not hasattr(atoms, "names"):
        return
    places = np.char.strip(atoms.altLocs.astype(str))
    if not (places != "").any():
        return
    keys, counts = np.unique(
        np.stack([atoms.resindices.astype(str), atoms.names.astype(str)], axis=1), axis=0, return_counts=True
    )
    if counts.max() > 1:
        resindex, name = keys[counts.argmax()]
        twice = atoms[(atoms.resindices == int(resindex)) & (atoms.names == name)]
        others = " ".join(sorted(set(places) - {""})[1:]) or "B"
        raise DataError(
            f"the selection {select!r} holds {_label(twice[0])} in {len(twice)} alternate locations. "
            f"Keep one of them: select='({SELECTIONS.get(select, select) or 'not element H'}) and not altloc {others}'."
        )


def _label(atom: Any) -> str:
    residue = f"{getattr(atom, 'resname', '')}{getattr(atom, 'resid', '')}"
    return f"{residue} {getattr(atom, 'name', '')} (atom {atom.index})".strip()


def _few(items: Iterable[str], count: int) -> str:
    items = list(items)
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")


def _describe(atoms: AtomGroup) -> str:
    described = f"{len(atoms)} atoms"
    for what, attribute in (("residue names", "resnames"), ("atom names", "names")):
        if hasattr(atoms, attribute):
            described += f", {what} {_few(sorted(set(map(str, getattr(atoms, attribute)))), 12)}"
    return described


def _file(atoms: AtomGroup) -> str:
    return str(getattr(atoms.universe, "filename", None) or "in memory")


def _in_frame(frame: int | None) -> str:
    return "" if frame is None else f"frame {frame}: "
