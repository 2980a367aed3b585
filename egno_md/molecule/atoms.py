"""From an AtomGroup to a Molecule: who is selected, who is bonded, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from MDAnalysis.core.groups import AtomGroup, UpdatingAtomGroup
from MDAnalysis.exceptions import NoDataError, SelectionError
from MDAnalysis.guesser import tables
from MDAnalysis.guesser.default_guesser import DefaultGuesser
from numpy.typing import NDArray

from ..errors import DataError, UsageError, few
from .bonds import CHAIN_DISTANCE, bonds_by_distance, neighbours_in_chain, within
from .molecule import Molecule, atom_label

#: The named selections: what each takes from proteins and from nucleic acids. "heavy" needs more than a string.
SELECTIONS = {
    "ca": "protein and name CA",
    "backbone": "backbone or (nucleic and name P O5' C5' C4' C3' O3')",
    "heavy": None,
}

WATER = (
    "HOH H2O DOD WAT SOL SPC SPCE TIP TIP2 TIP3 TIP3P TIP4 TIP4P TIP5 TIP5P T3P T4P T5P OPC OPC3 OH2 OHH HHO".split()
)


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
    refuse_updating(source)
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


def chain_numbers(atoms: AtomGroup) -> NDArray[np.int64]:
    """Number of the chain of each atom (N,): a new one where segment or chain differ, or residue numbers fall."""
    _, first, residue = np.unique(atoms.resindices, return_index=True, return_inverse=True)
    ends = np.diff(atoms.segindices[first]) != 0  # (R - 1,)
    if hasattr(atoms, "chainIDs"):
        chain_ids = atoms.chainIDs[first]
        ends |= chain_ids[1:] != chain_ids[:-1]
    if hasattr(atoms, "resids"):
        ends |= np.diff(atoms.resids[first]) < 0
    return np.concatenate([[0], np.cumsum(ends)])[residue]


def molecule_of(source: Any) -> Molecule:
    """:meth:`Molecule.of` for a Universe or an AtomGroup, which is not altered."""
    refuse_updating(source)
    if not hasattr(source, "atoms"):
        raise UsageError(f"a molecule is made of a Universe or an AtomGroup, found {type(source).__name__}")
    atoms = source.atoms
    if not len(atoms) or len(atoms.unique) != len(atoms):
        raise DataError(
            f"a graph needs atoms, each of them once; found {len(atoms)} atoms, {len(atoms.unique)} of them "
            "different. Choose them with `egno_md.graph.select_atoms`, or use `atomgroup.unique`."
        )
    elements, chains = atom_elements(atoms), chain_numbers(atoms)
    attributes = ("names", "resnames", "resids", "icodes", "segids", "charges", "masses")
    known = {name: np.array(getattr(atoms, name)) for name in attributes if hasattr(atoms, name)}
    return Molecule(
        elements=elements,
        bonds=find_bonds(atoms, elements, chains),
        chain_ids=np.array(atoms.chainIDs) if hasattr(atoms, "chainIDs") else None,
        residues=atoms.resindices,
        chains=chains,
        indices=atoms.indices,
        source=str(getattr(atoms.universe, "filename", None) or "in memory"),
        **known,
    )


def topology_bonds(atoms: AtomGroup) -> NDArray[np.int64]:
    """Bonds of the topology with both ends in the group, as indices into it (B, 2)."""
    place = np.full(len(atoms.universe.atoms), -1, dtype=np.int64)
    place[atoms.indices] = np.arange(len(atoms))
    bonds = place[_all_bonds(atoms)]
    return bonds[(bonds >= 0).all(axis=1)]  # (B, 2)


def _all_bonds(atoms: AtomGroup) -> NDArray[np.int64]:
    """Bonds of the whole topology (B, 2)."""
    universe = atoms.universe
    return universe.bonds.to_indices().reshape(-1, 2) if hasattr(universe, "bonds") else np.zeros((0, 2), np.int64)


def find_bonds(atoms: AtomGroup, elements: NDArray[np.str_], chains: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bonds, or links of the chain, as pairs of indices into `atoms` (B, 2)."""
    topology = _all_bonds(atoms)
    bonds = topology_bonds(atoms)
    if not len(bonds) and len(np.unique(atoms.resindices)) == len(atoms):
        return _chain_links(atoms, chains, topology)
    bonded = np.isin(atoms.indices, topology)
    if not bonded[_residue_sizes(atoms) > 1].all():
        bonds = np.concatenate([bonds, bonds_by_distance(elements, *_coordinates(atoms))])
    return bonds


def _chain_links(atoms: AtomGroup, chains: NDArray[np.int64], topology: NDArray[np.integer]) -> NDArray[np.int64]:
    pairs = neighbours_in_chain(atoms.resindices, chains)  # (P, 2)
    resindices, n_residues = atoms.universe.atoms.resindices, len(atoms.universe.residues)
    touching = np.sort(resindices[topology], axis=1) @ [n_residues, 1]
    linked = np.isin(atoms.resindices[pairs] @ [n_residues, 1], touching)  # (P,)
    is_ca = atoms.names == "CA" if hasattr(atoms, "names") else np.zeros(len(atoms), dtype=bool)
    open_ends = ~linked & is_ca[pairs].all(axis=1)
    if open_ends.any():
        linked |= open_ends & within(pairs, CHAIN_DISTANCE, *_coordinates(atoms))
    return pairs[linked]


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


def refuse_updating(atoms: Any) -> None:
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
            f"the selection {select!r} holds {atom_label(twice[0])} in {len(twice)} alternate locations. "
            f"Keep one of them: select='({SELECTIONS.get(select, select) or 'not element H'}) and not altloc {others}'."
        )


def _describe(atoms: AtomGroup) -> str:
    described = f"{len(atoms)} atoms"
    for what, attribute in (("residue names", "resnames"), ("atom names", "names")):
        if hasattr(atoms, attribute):
            described += f", {what} {few(sorted(set(map(str, getattr(atoms, attribute)))), 12)}"
    return described
