"""From an AtomGroup to a Molecule: who is selected, who is bonded, and what is refused."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import MDAnalysis.transformations  # also so that the cures which messages name can be typed
import numpy as np
from MDAnalysis.core.groups import AtomGroup, UpdatingAtomGroup
from MDAnalysis.exceptions import NoDataError, SelectionError
from MDAnalysis.guesser import tables
from MDAnalysis.guesser.default_guesser import DefaultGuesser
from numpy.typing import NDArray

from ..errors import DataError, UsageError, counted, few
from .bonds import (
    CHAIN_DISTANCE,
    LINKS,
    NUCLEOTIDE_DISTANCE,
    bonds_by_distance,
    loose_ends,
    neighbours_in_chain,
    within,
)
from .geometry import bond_lengths
from .molecule import Molecule, atom_label, sorted_bonds
from .neighbors import box_vectors, box_widths
from .residues import CHAIN_AMINO_ACIDS, CHAIN_NUCLEOTIDES

#: Residues of chains, also those that MDAnalysis' own words do not know.
PROTEIN = f"(protein or resname {' '.join(CHAIN_AMINO_ACIDS)})"
NUCLEIC = f"(nucleic or resname {' '.join(CHAIN_NUCLEOTIDES)})"

#: The named selections: what each takes from proteins and from nucleic acids. "heavy" needs more than a string.
SELECTIONS = {
    "ca": f"{PROTEIN} and name CA",
    "backbone": f"({PROTEIN} and name N CA C O) or ({NUCLEIC} and name P O5' C5' C4' C3' O3')",
    "heavy": None,
}

#: Those that MDAnalysis does not know, where a longer selection uses them as words of its own.
_OURS_INSIDE = re.compile(r"(^\s*|\(\s*|\b(?:and|or|not)\s+)(ca|heavy)\b")

WATER = (
    "HOH H2O DOD WAT SOL SPC SPCE TIP TIP2 TIP3 TIP3P TIP4 TIP4P TIP5 TIP5P T3P T4P T5P OPC OPC3 OH2 OHH HHO".split()
)


#: Atoms of one name and number closer than this are one atom written twice; in alternate locations they can be further
#: apart (the ends of side chains). Angstrom.
SAME_PLACE, ALTERNATIVES = 1.8, 8.0


def select_atoms(source: Any, select: str) -> AtomGroup:
    """The atoms that a model sees: unique, in the order of the topology, the same in every frame.

    Parameters
    ----------
    source : Universe or AtomGroup
        Where to select from.
    select : str
        A selection in the language of MDAnalysis, evaluated once at the current frame, or a name:

        - ``"ca"``: the C-alpha atoms of proteins, modified residues (SEP, KCX, DAL ...) among them;
        - ``"backbone"``: N, CA, C, O of proteins; P, O5', C5', C4', C3', O3' of nucleic acids;
        - ``"heavy"``: every atom but hydrogens, water, ions (residues of one atom that is no carbon) and virtual
          sites. Elements come from the topology, else from atom names and masses.

        Within a selection a name stands after ``group``: ``"group ca and segid A"``.

    Returns
    -------
    AtomGroup

    Raises
    ------
    UsageError
        A selection that MDAnalysis cannot read, or an UpdatingAtomGroup.
    DataError
        Nothing is selected, or an atom that is there twice: in several alternate locations, as two residues at one
        place, or written twice.
    """
    selected = matching_atoms(source, select)
    if not len(selected):
        raise DataError(
            f"the selection {select!r} holds no atom: the topology has {_describe(source.atoms)}. "
            "Choose a selection that it holds, for example select='heavy'."
        )
    _refuse_twice(selected, select)
    return selected


def matching_atoms(source: Any, select: str) -> AtomGroup:
    """What :func:`select_atoms` selects, be it nothing or an atom twice: to ask what a selection would hold.

    Raises
    ------
    UsageError
        No text, a selection that MDAnalysis cannot read, or an UpdatingAtomGroup.
    """
    refuse_updating(source)
    if not hasattr(source, "select_atoms"):
        raise UsageError(f"atoms are selected from a Universe or an AtomGroup, found {type(source).__name__}")
    if not isinstance(select, str):
        raise UsageError(f"a selection (select) is a text such as 'ca' or 'protein and name CA', found {select!r}")
    try:
        if not select.strip():
            raise SelectionError("the selection is empty")
        return _matching(source.atoms, select)
    except (SelectionError, AttributeError, NoDataError, TypeError, ValueError) as error:
        missing = re.search(r"Topology' object has no attribute '(\w+)'", str(error))
        why = f"the topology has no {missing[1]}" if missing else error
        meant = _OURS_INSIDE.sub(r"\1group \2", select)
        cure = f"Inside a longer selection our names are groups: {meant!r}."
        if meant == select or select in SELECTIONS:
            cure = (
                f"Use one of {', '.join(SELECTIONS)} or the selection language of MDAnalysis, for example "
                "'protein and name CA CB'."
            )
        raise UsageError(f"the selection {select!r} cannot be evaluated: {why}. {cure}") from error


def are_all(atoms: AtomGroup, wanted: AtomGroup) -> bool:
    """Whether atoms are all of those that are wanted, of alternate locations one each."""
    if np.array_equal(atoms.indices, wanted.indices):
        return True
    if not hasattr(atoms, "names") or not np.isin(atoms.indices, wanted.indices).all():
        return False
    groups, dropped, _ = _doubles(wanted)
    own = groups[np.isin(wanted.indices, atoms.indices)]
    return len(np.unique(own)) == len(atoms) and bool(np.isin(groups[~dropped], own).all())


def _matching(atoms: AtomGroup, select: str) -> AtomGroup:
    if select == "heavy":
        return _heavy(atoms)
    named = [name for name in SELECTIONS if re.search(rf"\bgroup {name}\b", select)]
    return atoms.select_atoms(SELECTIONS.get(select, select), **{name: _matching(atoms, name) for name in named})


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
    if not (elements != "").any():
        raise NoDataError("the topology has neither elements nor atom names")
    keep = (elements != "") & (elements != "H")
    if hasattr(atoms, "resnames"):
        keep &= ~np.isin(atoms.resnames.astype(str), WATER)
    keep &= (residue_sizes(atoms) > 1) | (elements == "C")
    return atoms[keep].unique


def residue_sizes(atoms: AtomGroup) -> NDArray[np.int64]:
    """How many atoms of the universe the residue of each atom has (N,)."""
    return np.bincount(atoms.universe.atoms.resindices)[atoms.resindices]


def chain_numbers(atoms: AtomGroup) -> NDArray[np.int64]:
    """Number of the chain of each atom (N,): a new one where segment or chain differ, or residue numbers start anew.

    Numbers start anew where they fall; in a segment that is numbered backwards, where they rise.
    """
    _, first, residue = np.unique(atoms.resindices, return_index=True, return_inverse=True)
    ends = np.diff(atoms.segindices[first]) != 0  # (R - 1,)
    if hasattr(atoms, "chainIDs"):
        chain_ids = atoms.chainIDs[first]
        ends |= chain_ids[1:] != chain_ids[:-1]
    if hasattr(atoms, "resids"):
        step = np.where(ends, 0, np.sign(np.diff(atoms.resids[first])))  # (R - 1,)
        segment = np.cumsum(ends)
        backwards = np.bincount(segment, step, minlength=1)[segment] < 0 if len(step) else step.astype(bool)
        ends |= step == np.where(backwards, 1, -1)
    return np.concatenate([[0], np.cumsum(ends)])[residue]


def residue_numbers(atoms: AtomGroup) -> NDArray[np.int64]:
    """Which residue each atom belongs to (N,): that of the topology, but for residues that it runs together.

    Where a file gives neighbours of one name the same number they are one residue for MDAnalysis. Within a residue of
    a chain no name occurs twice; where one does, the next residue begins.
    """
    residues = atoms.resindices
    if not hasattr(atoms, "names") or not hasattr(atoms, "resnames"):
        return residues
    _, names = np.unique(atoms.names.astype(str), return_inverse=True)
    _, counts = np.unique(residues * (names.max() + 1) + names, return_counts=True)
    if counts.max() == 1:
        return residues
    known = set(_of_chains(atoms).indices.tolist())
    begins = np.zeros(len(atoms), np.int64)
    last, seen = -1, set()
    for k in np.argsort(residues, kind="stable").tolist():
        if residues[k] != last:
            last, seen = residues[k], set()
        elif names[k] in seen and int(atoms.indices[k]) in known:
            begins[k], seen = 1, set()
        seen.add(names[k])
    order = np.argsort(residues, kind="stable")
    extra = np.empty(len(atoms), np.int64)
    extra[order] = np.cumsum(begins[order])
    if extra.any():
        k = int(np.flatnonzero(begins)[0])
        warnings.warn(
            f"the residue of {atom_label(atoms[k])} holds several atoms of that name: several residues have one "
            "number and name; they are told apart by their atoms. Number the residues to be sure",
            stacklevel=2,
        )
    return residues + extra


def _of_chains(atoms: AtomGroup) -> AtomGroup:
    """The atoms whose residues have names of amino acids or nucleotides."""
    return atoms.select_atoms(f"{PROTEIN} or {NUCLEIC}")


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
    _warn_of_left_out(atoms)
    elements, chains, residues = atom_elements(atoms), chain_numbers(atoms), residue_numbers(atoms)
    attributes = ("names", "resnames", "resids", "icodes", "segids", "charges", "masses")
    known = {name: np.array(getattr(atoms, name)) for name in attributes if hasattr(atoms, name)}
    topology = _Known.of(atoms)
    molecule = Molecule(
        elements=elements,
        bonds=find_bonds(atoms, topology, elements, chains, residues),
        chain_ids=np.array(atoms.chainIDs) if hasattr(atoms, "chainIDs") else None,
        residues=residues,
        chains=chains,
        indices=atoms.indices,
        source=str(getattr(atoms.universe, "filename", None) or "in memory"),
        **known,
    )
    loose = loose_ends(molecule)  # (K, 2)
    if len(loose):
        # A topology that bonds residues to each other knows where its chains end.
        known_ends = np.isin(atoms.resindices[loose], np.unique(topology.residues(atoms))).all(axis=1)
        molecule = replace(molecule, loose=loose[~known_ends])
    return molecule


def _warn_of_left_out(atoms: AtomGroup) -> None:
    """Name residues in the chain of the selection that are not in it because nobody knows them for residues."""
    universe = atoms.universe
    if not (hasattr(atoms, "resnames") and hasattr(atoms, "names")):
        return
    inside = np.zeros(len(universe.residues), bool)
    inside[atoms.resindices] = True
    joined = universe.residues.segindices[1:] == universe.residues.segindices[:-1]
    beside = np.zeros_like(inside)  # next to a residue of the selection
    beside[1:] |= inside[:-1] & joined
    beside[:-1] |= inside[1:] & joined
    outside = universe.residues[beside & ~inside]
    if not len(outside):
        return
    odd = outside.atoms.select_atoms("(name CA or name C1' or name C1*) and not (protein or nucleic)")
    odd = odd[odd.resnames != odd.names]  # calcium is no residue
    left_out = [atom for atom in odd if _is_link(atom) and goes_on(atom, inside)]
    if left_out:
        names = few(dict.fromkeys(f"{atom.resname}{atom.resid}" for atom in left_out), 5)
        warnings.warn(
            f"{names}: in the chain, and left out because the selection does not take residues of that name; the "
            "forecast has a gap there. 'ca', 'backbone' and 'heavy' take the modified residues that are known",
            stacklevel=2,
        )


def _is_link(atom: Any) -> bool:
    """Whether the residue of a C-alpha (or C1') atom has both ends of a link; caps and ligands have not."""
    others = set(atom.residue.atoms.names)
    return len(others) == 1 or others >= ({"N", "C"} if atom.name == "CA" else {"P", "O3'"})


def goes_on(atom: Any, inside: NDArray[np.bool_]) -> bool:
    """Whether the chain of the residues that are `inside` (R,) goes on with the residue of this atom."""
    universe = atom.universe
    beside = [k for k in (atom.resindex - 1, atom.resindex + 1) if 0 <= k < len(inside) and inside[k]]
    others = universe.residues[beside].atoms
    others = others[others.names == atom.name]
    if not len(others) or not (hasattr(universe, "trajectory") and universe.trajectory.ts.has_positions):
        return bool(len(others))
    reach = CHAIN_DISTANCE if atom.name == "CA" else NUCLEOTIDE_DISTANCE
    both = universe.atoms[[*others.indices, atom.index]]
    pairs = np.stack([np.arange(len(others)), np.full(len(others), len(others))], axis=1)  # (P, 2)
    return bool(within(pairs, reach, both.positions, universe.dimensions).any())


class _Known(NamedTuple):
    """What the topology knows about the bonds of some atoms and of the rest of their residues."""

    bonds: NDArray[np.int64]
    """Pairs of atoms of the universe (B, 2), one of each pair in those residues."""
    guessed: bool
    """MDAnalysis found some of them."""

    @classmethod
    def of(cls, atoms: AtomGroup) -> _Known:
        try:
            bonds = atoms.residues.atoms.bonds
        except (AttributeError, NoDataError):
            return cls(np.zeros((0, 2), np.int64), False)
        sample = range(0, len(bonds), max(1, len(bonds) // 20))
        return cls(bonds.to_indices().reshape(-1, 2).astype(np.int64), any(bonds[k].is_guessed for k in sample))

    def among(self, atoms: AtomGroup) -> NDArray[np.int64]:
        """Bonds with both ends in the group, as indices into it (B, 2)."""
        place = np.full(len(atoms.universe.atoms), -1, dtype=np.int64)
        place[atoms.indices] = np.arange(len(atoms))
        bonds = place[self.bonds]
        return bonds[(bonds >= 0).all(axis=1)]  # (B, 2)

    def residues(self, atoms: AtomGroup) -> NDArray[np.int64]:
        """The residues that are bonded to each other (B, 2)."""
        pairs = atoms.universe.atoms.resindices[self.bonds]
        return pairs[pairs[:, 0] != pairs[:, 1]]  # (B, 2)


def topology_bonds(atoms: AtomGroup) -> NDArray[np.int64]:
    """Bonds of the topology with both ends in the group, as indices into it (B, 2)."""
    return sorted_bonds(_Known.of(atoms).among(atoms), len(atoms))


def bonds_among(atoms: AtomGroup) -> NDArray[np.int64]:
    """The bonds of :func:`molecule_of`, as pairs of indices (B, 2); where none can be found, those that are known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said where the molecule was made
            return molecule_of(atoms).bonds
    except DataError:  # no coordinates to find them from
        return topology_bonds(atoms)


def find_bonds(
    atoms: AtomGroup,
    topology: _Known,
    elements: NDArray[np.str_],
    chains: NDArray[np.int64],
    residues: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Bonds, or links of the chain, as pairs of indices into `atoms` (B, 2)."""
    bonds = topology.among(atoms)
    if not len(bonds) and len(np.unique(residues)) == len(atoms):
        return _chain_links(atoms, topology, neighbours_in_chain(residues, chains))
    bonded = np.isin(atoms.indices, topology.bonds)
    if not bonded[residue_sizes(atoms) > 1].all():
        bonds = np.concatenate([bonds, bonds_by_distance(elements, *_coordinates(atoms))])
    elif topology.guessed:
        bonds = np.concatenate([bonds, _bonds_through_the_box(atoms, elements, residues)])
    return np.concatenate([bonds, _links_of_the_rest(atoms, topology, bonds, chains, residues)])


def _links_of_the_rest(
    atoms: AtomGroup,
    topology: _Known,
    bonds: NDArray[np.int64],
    chains: NDArray[np.int64],
    residues: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Links (P, 2) of residues that follow each other in a chain and that the bonds of what is selected do not join."""
    if not (hasattr(atoms, "names") and hasattr(atoms, "resnames")):
        return np.zeros((0, 2), np.int64)
    pairs = [np.zeros((0, 2), np.int64)]
    for name in LINKS:
        ends = np.flatnonzero((atoms.names == name) & (atoms.resnames != name))  # calcium is no residue
        ends = ends[np.unique(residues[ends], return_index=True)[1]]
        pairs.append(ends[neighbours_in_chain(residues[ends], chains[ends])])
    found = np.concatenate(pairs)  # (P, 2)
    count = residues.max() + 1
    joined = np.sort(residues[bonds], axis=1) @ [count, 1]
    return _chain_links(atoms, topology, found[~np.isin(np.sort(residues[found], axis=1) @ [count, 1], joined)])


def _bonds_through_the_box(
    atoms: AtomGroup, elements: NDArray[np.str_], residues: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Bonds within a residue or to the next that cross the box, which guesses of MDAnalysis can miss.

    MDAnalysis' `guess_TopologyAttrs` does not look through the box, its `guess_bonds` does.
    """
    universe = atoms.universe
    box = universe.dimensions if hasattr(universe, "trajectory") else None
    if box is None or not box[:3].any() or not universe.trajectory.ts.has_positions:
        return np.zeros((0, 2), np.int64)
    positions = atoms.positions
    if not np.isfinite(positions).all():
        return np.zeros((0, 2), np.int64)
    found = bonds_by_distance(elements, positions, box)
    close = np.abs(residues[found[:, 0]] - residues[found[:, 1]]) <= 1
    far = bond_lengths(positions, found) > box_widths(box_vectors(box)).min() / 2
    return found[close & far]


def _chain_links(atoms: AtomGroup, topology: _Known, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which neighbours along a chain (P, 2) are linked: by the topology or, C-alpha, BB and P, by being near."""
    n_residues = len(atoms.universe.residues)
    between = np.sort(topology.residues(atoms), axis=1) @ [n_residues, 1]
    linked = np.isin(np.sort(atoms.resindices[pairs], axis=1) @ [n_residues, 1], between)  # (P,)
    names = atoms.names if hasattr(atoms, "names") else np.full(len(atoms), "")
    for name, reach in LINKS.items():
        open_ends = ~linked & (names[pairs] == name).all(axis=1)
        if name == "P" and open_ends.any():  # phosphorus of lipids is as near
            nucleotides = atoms.select_atoms(NUCLEIC).indices if hasattr(atoms, "resnames") else atoms.indices
            open_ends &= np.isin(atoms.indices[pairs], nucleotides).any(axis=1)
        if open_ends.any():
            linked |= open_ends & within(pairs, reach, *_coordinates(atoms))
    return pairs[linked]


def asked_to_be_whole(trajectory: Any) -> bool:
    """Whether the user added MDAnalysis' `unwrap`, which leaves broken what the topology's bonds do not hold together.

    They do not where the bonds were guessed without the box, or where there are C-alpha atoms alone.
    """
    return any(isinstance(step, MDAnalysis.transformations.unwrap) for step in trajectory.transformations)


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


def _refuse_twice(atoms: AtomGroup, select: str) -> None:
    """Refuse a selection that holds one atom of a molecule twice, with the selection that keeps one of them."""
    groups, dropped, first = _doubles(atoms)
    if not dropped.any():
        return
    places = _places(atoms)
    order = np.lexsort([np.arange(len(atoms)), places, groups])
    twice = order[groups[order] == groups[first != np.arange(len(atoms))].min()]
    one, other = atoms[twice[0]], atoms[twice[1]]
    if getattr(one, "resname", "") != getattr(other, "resname", ""):
        who = " and ".join(f"{atoms[k].resname} {places[k]}".strip() for k in twice)
        found = f"residue {one.resid} twice ({who}, at one place): {atom_label(one)} and {atom_label(other)}"
    elif (places[twice] != "").any():
        found = f"{atom_label(one)} in {len(twice)} alternate locations"
    else:
        found = f"{atom_label(one)} twice, {atom_label(other)} is at the same place"
    raise DataError(
        f"the selection {select!r} holds {found}. Keep one of them: select='{_without(atoms, select, dropped)}'."
    )


def unique_selection(atoms: AtomGroup, select: str) -> tuple[str, AtomGroup, list[str]]:
    """A selection like `select` with no atom in it twice, of several the first; what that leaves out; and a few words
    for every residue that stood in the place of another."""
    chosen = matching_atoms(atoms, select)
    groups, dropped, first = _doubles(chosen)
    if not dropped.any():
        return select, chosen[dropped], []
    places, said = _places(chosen), []
    for k in np.flatnonzero(dropped & (chosen.resindices != chosen.resindices[first])):
        kept, other = (f"{chosen[i].resname} {places[i]}".strip() for i in (first[k], k))
        said.append(f"residue {chosen[k].resid} is {kept}, not {other}")
    return _without(chosen, select, dropped), chosen[dropped], list(dict.fromkeys(said))


def _doubles(atoms: AtomGroup) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Which are one atom of the molecule, by a number for each (N,); all of those but the first (N,); and where the
    first is (N,)."""
    groups = np.unique(_one_atom(atoms), return_inverse=True)[1]
    order = np.lexsort([np.arange(len(atoms)), _places(atoms), groups])
    first = order[np.append(0, np.cumsum(np.bincount(groups))[:-1])][groups]
    dropped = first != np.arange(len(atoms))
    if hasattr(atoms, "resnames"):
        # A residue in the place of another goes as a whole, with the atoms that the other does not have.
        resindices, resnames = atoms.resindices, atoms.resnames
        dropped |= np.isin(resindices, resindices[dropped & (resnames != resnames[first])])
    return groups, dropped, first


def _places(atoms: AtomGroup) -> NDArray[np.str_]:
    """Alternate location of each atom, "" for none (N,)."""
    if not hasattr(atoms, "altLocs"):
        return np.full(len(atoms), "")
    return np.char.strip(atoms.altLocs.astype(str))


def _one_atom(atoms: AtomGroup) -> NDArray[np.int64]:
    """A number for each atom (N,), the same for those that are one atom of the molecule.

    One atom are those of one name and residue number, whatever the residue is called, in different alternate locations;
    and in residues of chains, where names are unique, those closer than bonded atoms can be.
    """
    alone = np.arange(len(atoms))
    if not hasattr(atoms, "names") or not hasattr(atoms, "resids"):
        return alone
    text = [getattr(atoms, name).astype(str) for name in ("names", "icodes", "chainIDs") if hasattr(atoms, name)]
    codes = [np.unique(column, return_inverse=True)[1] for column in text] + [atoms.resids, atoms.segindices]
    order = np.lexsort([alone, *codes])
    same = np.all([code[order][1:] == code[order][:-1] for code in codes], axis=0)  # (N - 1,)
    if not same.any():
        return alone
    before, after = order[:-1][same], order[1:][same]  # (P,)
    apart = np.zeros(len(before))
    universe, places = atoms.universe, _places(atoms)
    if placed := hasattr(universe, "trajectory") and universe.trajectory.ts.has_positions:
        apart = np.linalg.norm(atoms.positions[before] - atoms.positions[after], axis=1)
    # Chains without an identifier repeat their numbers: what is far away is another chain.
    near = (apart < ALTERNATIVES) | (atoms.resindices[before] == atoms.resindices[after])
    twice = (places[before] != places[after]) & near
    if placed and hasattr(atoms, "resnames"):
        in_chain = np.isin(atoms.indices, _of_chains(atoms).indices)
        twice |= (apart < SAME_PLACE) & in_chain[before] & in_chain[after]
    same[same] = twice
    groups = np.empty(len(atoms), np.int64)
    groups[order] = np.append(0, np.cumsum(~same))
    return groups


def _without(atoms: AtomGroup, select: str, dropped: NDArray[np.bool_]) -> str:
    """A selection like `select` that leaves out what is `dropped` (N,), and nothing else."""
    known = f"group {select}" if select in SELECTIONS else f"({select})"
    places = _places(atoms)
    others = sorted(set(places[dropped].tolist()) - {""})
    if others and (np.isin(places, others) == dropped).all():
        return f"{known} and not altloc {' '.join(others)}"
    numbers = atoms.indices[dropped]
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return f"{known} and not index {' '.join(f'{p[0]}:{p[-1]}' if len(p) > 1 else str(p[0]) for p in parts)}"


def _describe(atoms: AtomGroup) -> str:
    described = counted(len(atoms), "atom")
    for what, attribute in (("residue names", "resnames"), ("atom names", "names")):
        if hasattr(atoms, attribute):
            described += f", {what} {few(sorted(set(map(str, getattr(atoms, attribute)))), 12)}"
    return described
