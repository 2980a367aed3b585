"""From an AtomGroup to the atoms of a model: who is selected, who is bonded, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from MDAnalysis.core.groups import AtomGroup, UpdatingAtomGroup
from MDAnalysis.exceptions import NoDataError, SelectionError
from MDAnalysis.guesser import tables
from MDAnalysis.guesser.default_guesser import DefaultGuesser
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, ModelError, UsageError
from .neighbors import DROP_BOX, box_vectors, box_widths, radius_graph

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
        first, second = (atom_label(atoms[int(k)]) for k in bonds[worst])
        raise DataError(
            f"{in_frame(frame)}{first} and {second} belong together but are {lengths[worst]:.1f} A apart, more than "
            f"half the box ({half:.1f} A): the molecule is broken by the periodic box. Make it whole with "
            "`universe.trajectory.add_transformations(MDAnalysis.transformations.unwrap(universe.atoms))` (it needs "
            f"bonds: `universe.guess_TopologyAttrs(to_guess=['bonds'])`). {DROP_BOX}."
        )


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


def find_bonds(atoms: AtomGroup, chain: NDArray[np.int64]) -> NDArray[np.int64]:
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


def require_attribute(atoms: AtomGroup, attribute: str, feature: str) -> NDArray[Any]:
    if not hasattr(atoms, attribute):
        raise ModelError(
            f"the node feature {feature!r} needs {attribute} and the topology {_file(atoms)} has none. Load a topology "
            f"that has them (PSF, PRMTOP, TPR), or give them with `universe.add_TopologyAttr({attribute!r}, values)`."
        )
    return getattr(atoms, attribute)


def canonical_residue(resname: str, vocabulary: Iterable[str]) -> str:
    """The vocabulary's word for a residue name, or the name itself; Amber marks chain ends with N or C in front."""
    for name in (resname, resname[1:] if len(resname) == 4 and resname[0] in "NC" else resname):
        for candidate in (name, RESIDUE_ALIASES.get(name, name)):
            if candidate in vocabulary:
                return candidate
    return resname


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


def atom_label(atom: Any) -> str:
    residue = f"{getattr(atom, 'resname', '')}{getattr(atom, 'resid', '')}"
    return f"{residue} {getattr(atom, 'name', '')} (atom {atom.index})".strip()


def few(items: Iterable[str], count: int) -> str:
    items = list(items)
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")


def _describe(atoms: AtomGroup) -> str:
    described = f"{len(atoms)} atoms"
    for what, attribute in (("residue names", "resnames"), ("atom names", "names")):
        if hasattr(atoms, attribute):
            described += f", {what} {few(sorted(set(map(str, getattr(atoms, attribute)))), 12)}"
    return described


def _file(atoms: AtomGroup) -> str:
    return str(getattr(atoms.universe, "filename", None) or "in memory")


def in_frame(frame: int | None) -> str:
    return "" if frame is None else f"frame {frame}: "
