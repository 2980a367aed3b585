"""Which atoms are forecast when nobody says which: what moves together, less what it swims in."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import DataError, UsageError, counted, few
from .atoms import (
    NUCLEIC,
    SELECTIONS,
    WATER,
    chain_numbers,
    goes_on,
    matching_atoms,
    refuse_updating,
    residue_sizes,
    unique_selection,
)
from .residues import RESIDUE_ALIASES

if TYPE_CHECKING:
    from MDAnalysis.core.groups import AtomGroup

#: A chain of fewer residues is taken with all its heavy atoms: four C-alpha atoms hold one torsion.
SHORT_PROTEIN = 4

#: Nucleic acids of up to this many residues are taken with all their heavy atoms, some 20 for each.
SHORT_NUCLEIC = 24

#: Of more heavy atoms than this outside proteins and nucleic acids (a membrane, a melt), one for each residue is
#: taken, where residues are many.
MANY_ATOMS, MANY_RESIDUES = 10000, 100

#: What is heavier than a hydrogen, where masses alone tell, in atomic mass units.
HYDROGEN_MASS = 2.0

IONS = (
    "NA NA+ NA2+ SOD CL CL- CLA CHL K K+ POT LI LI+ LIT RB RB+ RUB CS CS+ CES F F- BR BR- I- IOD MG MG2+ MG2 CA2+ "
    "CAL ZN ZN2 ZN2+ BA BAR CD2+ CD2 NIO CIO SO4 PO4 NO3 ION IB+ TMA CLJ"
).split()

#: Water of other spellings than :data:`egno_md.molecule.atoms.WATER`, and of coarse models.
OTHER_WATER = (
    "WATER TIP4EW T4E T4EW TP3 TP4 TP5 TP4E TP3M TP4M SPE SPCF SPX SPF SOLV SOLW FB3 FB4 F3C W WF PW SW TW WN PWAT POL"
).split()

#: Liquids that others are dissolved in; taken where there is nothing else.
SOLVENTS = (
    "MEOH MOH CH3OH ETOH EOH DMS DMSO CHCL3 CL3 CL3M CCL4 ACN C3N TFE HFIP UREA URE GDM FMD NMF DMF HEX OCT CHX "
    "BENZ THF ACT PGO EDO GOL PEG"
).split()

_HEADS = "PC PE PG PS PA PI"
#: Lipids and sterols of CHARMM, Amber, GROMOS, Slipids, Berger and MARTINI.
LIPIDS = (
    " ".join(f"{tails}{head}" for tails in "DP DO PO DM DL DS SO SD PL DY".split() for head in _HEADS.split())
    + " POP DOP DPP DMP DLP DSP POPC2 TOCL TOCL1 TOCL2 CDL CARD CDL2 PSM SSM DPSM DPCE CER SAPI POPI PIP2 POP2 DPP2 "
    "CHOL CHL1 CHL CLR ERG OL PC PE PGR PH- LAL ST MY AR DHA SDS DPC LDAO DDM OGL BOG LPPC LAUR PALM OLEO STEA"
).split()

#: What ends a chain and has no C-alpha.
CAPS = "ACE NME NMA NH2 NHE NAC FOR ACA ETA BOC".split()

_KINDS = {
    name: kind
    for kind, names in (
        ("lipids", LIPIDS),
        ("solvent", SOLVENTS),
        ("caps", CAPS),
        ("ions", IONS),
        ("water", [*WATER, *OTHER_WATER]),
    )
    for name in names
}

#: Beads of MARTINI; a residue that has no other atoms is one of beads.
_BEADS = re.compile(r"BB|SC\d|NC3|NH3|PO\d|GL\d|AM\d|[CDT]\d[AB]|CN[O0]|COH|ROH|R\d|C[12]|W|BB\d|SI\d|NA|CL|WF|WP|WM")
_BEADS_ONLY = re.compile(r"BB|SC\d|GL\d|AM\d|ROH|NC3|[CDT]\d[AB]")

#: The atom that stands for a lipid, first found first: phosphate, else the hydroxyl of a sterol.
_OF_LIPID = ("P", "PO4", "P8", "P1", "P31", "O3", "ROH", "OH", "O1")


class Default(NamedTuple):
    """The atoms that are taken when nobody says which."""

    select: str
    """For :func:`.atoms.select_atoms`, and for ``--select``."""
    kind: str
    """What they are: ``protein`` (C-alpha atoms), ``heavy``, ``nucleic`` (P atoms), ``beads`` or ``thinned`` (an atom
    for each residue of something large)."""
    said: str
    """What was taken and what was not, in a line."""


def default_selection(source: Any) -> Default:
    """What to forecast of a system about which nothing was said.

    Parameters
    ----------
    source : Universe or AtomGroup
        Names and residue names are read; of the coordinates of the current frame no more than whether an unknown
        residue goes on the chain.

    Returns
    -------
    Default
        The C-alpha atoms of proteins, modified residues among them, also those that no list knows but that have N, CA
        and C and lie in the chain (MARTINI: the backbone beads). Of peptides below four residues, of nucleic acids up
        to 24 residues and of everything else the heavy atoms, without water, ions, lipids and solvents; of longer
        nucleic acids P; a membrane or a liquid by itself: its heavy atoms or beads, one for each residue above 10000.
        Of alternate locations the first.

    Raises
    ------
    UsageError
        An UpdatingAtomGroup.
    DataError
        There is no atom.
    """
    refuse_updating(source)
    if not hasattr(source, "atoms"):
        raise UsageError(f"atoms are selected from a Universe or an AtomGroup, found {type(source).__name__}")
    atoms = source.atoms
    if not len(atoms):
        raise DataError("the topology has no atom to forecast")
    if not (hasattr(atoms, "names") and hasattr(atoms, "resnames")):
        return _without_names(atoms)
    found = _protein(atoms) or _nucleic(atoms) or _rest(atoms)
    select, dropped, residues = unique_selection(atoms, found.select)
    chosen = matching_atoms(atoms, select)
    places = f"; {few(residues, 5)}" if residues else ""
    twice = f"; of atoms in several places the first ({len(dropped)} left out{places})" if len(dropped) else ""
    left_out = _left_out(atoms, (chosen + dropped).unique, select)
    said = f"{counted(len(chosen), found.said)} of {_whose(chosen, found.kind)}{left_out}{twice}"
    return Default(select, found.kind, said)


def taken_instead(source: Any) -> str:
    """What a message adds about a selection of too few atoms: the one that is taken when nobody says which."""
    found = default_selection(source)
    if len(matching_atoms(source.atoms, found.select)) < SHORT_PROTEIN:
        return "take a system of more atoms"
    return f"take others, as egno-md predict does by itself: --select {shlex.quote(found.select)} ({found.said})"


def _whose(chosen: AtomGroup, kind: str) -> str:
    if kind == "thinned":
        return f"{counted(len(chosen.residues), 'residue')}, one of each (--select heavy takes more)"
    if kind not in ("protein", "nucleic") and "BB" not in chosen.names:
        return counted(len(chosen.residues), "residue")
    unknown = chosen - chosen.select_atoms("protein or nucleic")
    modified = sum(name not in RESIDUE_ALIASES for name in unknown.resnames.astype(str))
    odd = f", {modified} of them in modified residues" if modified else ""
    return counted(len(np.unique(chain_numbers(chosen))), "chain") + odd


def _without_names(atoms: AtomGroup) -> Default:
    """Nothing is known of residues: what is no hydrogen, where elements, names or masses tell."""
    try:
        heavy = len(matching_atoms(atoms, "heavy"))
    except UsageError:
        heavy = 0
    if heavy:
        return Default("heavy", "heavy", f"{counted(heavy, 'heavy atom')}; the topology names no residues")
    if (found := _by_mass(atoms)) is not None:
        return found
    return Default("all", "heavy", f"all {counted(len(atoms), 'atom')}; the topology does not say what they are")


def _by_mass(atoms: AtomGroup) -> Default | None:
    """Of atoms with types and masses alone, as of LAMMPS, the heavy ones, less types of which all atoms belong to water
    (an oxygen and two hydrogens) or have no bond; None where no mass is that of a hydrogen."""
    if not (hasattr(atoms, "masses") and hasattr(atoms, "types")):
        return None
    masses, types, n_atoms = atoms.masses, atoms.types.astype(str), len(atoms.universe.atoms)
    hydrogen = np.abs(masses - 1.008) < 0.01
    heavy = masses > HYDROGEN_MASS
    if not (hydrogen.any() and heavy.any()):
        return None
    bonds = atoms.universe.bonds.indices if hasattr(atoms.universe, "bonds") else np.empty((0, 2), int)  # (B, 2)
    is_hydrogen = np.zeros(n_atoms, bool)
    is_hydrogen[atoms.indices[hydrogen]] = True
    count = np.bincount(bonds.ravel(), minlength=n_atoms)[atoms.indices]
    to_hydrogen = np.bincount(bonds.ravel(), is_hydrogen[bonds[:, ::-1]].ravel(), n_atoms)[atoms.indices]
    water = (np.abs(masses - 15.999) < 0.01) & (count == 2) & (to_hydrogen == 2)
    alone = heavy & (count == 0) & bool(len(bonds))
    kept = set(types[heavy & ~water & ~alone])
    without = sorted(set(types[heavy]) - kept) if kept else []
    select = f"prop mass > {HYDROGEN_MASS:g}" + (f" and not type {' '.join(without)}" if without else "")
    said = (
        f"{counted(len(matching_atoms(atoms, select)), 'heavy atom')} by their masses; the topology names no residues"
    )
    gone = np.isin(types, without)
    parts = [f"{(gone & water).sum()} water"] * bool((gone & water).any())
    parts += [counted(int((gone & alone).sum()), "atom") + " without bonds"] * bool((gone & alone).any())
    return Default(select, "heavy", said + (f"; left out: {', '.join(parts)}" if parts else ""))


def _protein(atoms: AtomGroup) -> Default | None:
    links = matching_atoms(atoms, "ca")
    unknown = _unknown_links(atoms, links)
    select = "ca"
    if len(unknown):
        select = f"group ca or (name CA and resname {' '.join(sorted(set(unknown.resnames)))})"
        links = matching_atoms(atoms, select)
    beads = atoms.select_atoms("protein and name BB")
    if len(beads) > len(links):
        links, select = beads, "protein and name BB"
    if len(links.residues) < SHORT_PROTEIN or len(links.residues) < len(atoms.select_atoms(NUCLEIC).residues):
        return None
    beads = "BB" in select
    return Default(select, "beads" if beads else "protein", "backbone bead" if beads else "C-alpha atom")


def _unknown_links(atoms: AtomGroup, links: AtomGroup) -> AtomGroup:
    """C-alpha atoms of residues that no list knows, with N and C beside them, and next to another in the chain."""
    odd = atoms.select_atoms("name CA and not protein and not nucleic") - links
    odd = odd[[k for k in range(len(odd)) if {"N", "CA", "C"} <= set(odd[k].residue.atoms.names)]]
    if not len(odd):
        return odd
    inside = np.zeros(len(atoms.universe.residues), bool)
    inside[links.resindices] = inside[odd.resindices] = True
    return odd[[k for k in range(len(odd)) if goes_on(odd[k], inside)]]


def _nucleic(atoms: AtomGroup) -> Default | None:
    nucleotides = atoms.select_atoms(NUCLEIC)
    phosphorus = nucleotides.select_atoms("name P")
    if len(nucleotides.residues) <= SHORT_NUCLEIC or len(phosphorus) < SHORT_PROTEIN:
        return None
    return Default(f"{_nucleic_words(phosphorus)} and name P", "nucleic", "P atom")


def _nucleic_words(nucleotides: AtomGroup) -> str:
    """A short selection of these residues."""
    odd = nucleotides - nucleotides.select_atoms("nucleic")
    return f"(nucleic or resname {' '.join(sorted(set(odd.resnames)))})" if len(odd) else "nucleic"


def _rest(atoms: AtomGroup) -> Default:
    """Neither a protein nor a long nucleic acid: all but water and ions; lipids and solvents if alone."""
    resnames = atoms.resnames.astype(str)
    present = sorted(set(resnames))
    without: list[str] = []
    for kinds in (("water", "ions"), ("solvent",), ("lipids",)):
        more = without + [name for name in present if _kind(name) in kinds]
        if not set(present) <= set(more):
            without = more
    base = _atoms_of(atoms, set(present) - set(without))
    select = f"{base} and not resname {' '.join(without)}" if without else base.removeprefix("group ")
    chosen = matching_atoms(atoms, select)
    if len(chosen) > MANY_ATOMS and len(chosen.residues) >= MANY_RESIDUES:
        return _thinned(chosen)
    if base != "all":
        return Default(select, "heavy", "heavy atom")
    return Default(select, "beads", "bead" if _are_beads(chosen) else "atom")


def _atoms_of(atoms: AtomGroup, resnames: set[str]) -> str:
    """Heavy atoms where names say elements; all of what is made of beads, which only look like elements; of water O."""
    kept = atoms[np.isin(atoms.resnames.astype(str), sorted(resnames))]
    if {_kind(name) for name in resnames} == {"water"}:
        return "name O*" if len(kept.select_atoms("name O*")) else "all"
    if _are_beads(kept):
        return "all"
    try:
        return "group heavy" if len(matching_atoms(kept, "heavy")) else "all"
    except UsageError:  # neither elements nor names that tell them
        return "all"


def _are_beads(atoms: AtomGroup) -> bool:
    names = sorted(set(atoms.names.astype(str)))
    return all(map(_BEADS.fullmatch, names)) and any(map(_BEADS_ONLY.fullmatch, names))


def _thinned(chosen: AtomGroup) -> Default:
    """One atom for each residue, the same in all residues of a name."""
    parts = []
    for name in sorted(set(chosen.resnames.astype(str))):
        names = chosen.residues[chosen.residues.resnames == name][0].atoms.names.astype(str).tolist()
        known = set(chosen.names[chosen.resnames == name].astype(str))
        one = next((n for n in _OF_LIPID if n in known), next(n for n in names if n in known))
        parts.append(f"(resname {name} and name {one})")
    return Default(" or ".join(parts), "thinned", "atom")


def _kind(resname: str) -> str:
    """What a residue is, by its name: water, ions, lipids, solvent, a cap, or "" for what may be of interest."""
    return _KINDS.get(resname.strip().upper(), "")


def _left_out(atoms: AtomGroup, chosen: AtomGroup, select: str) -> str:
    """The residues that are not taken, by kinds; those that may be of interest with the selection that takes them."""
    outside = atoms.residues - chosen.residues
    if not len(outside):
        return ""
    resnames, counts = np.unique(outside.resnames.astype(str), return_counts=True)
    single = {str(name) for name in set(outside.atoms.resnames[residue_sizes(outside.atoms) == 1])}
    kinds: Counter[str] = Counter()
    others: dict[str, int] = {}
    nucleotides = set(outside.atoms.select_atoms(NUCLEIC).resnames)
    for name, count in zip(resnames.tolist(), counts.tolist(), strict=True):
        kind = _kind(name) or ("ions" if name in single else "nucleotides" if name in nucleotides else "")
        kinds[kind] += count
        if not kind:
            others[name] = count
    # Kinds are named in the plural, but for water and solvent, which have none.
    parts = [
        counted(count, kind[:-1]) if kind.endswith("s") else f"{count} {kind}"
        for kind, count in sorted(kinds.items())
        if kind
    ]
    parts += [f"{count} {name}" for name, count in sorted(others.items())[:5]]
    more = []
    if kinds["nucleotides"]:
        more.append(f"({_nucleic_words(outside.atoms.select_atoms(NUCLEIC))} and name P)")
    if others:
        more.append(f"(resname {' '.join(sorted(others)[:5])} and not name H*)")
    known = f"group {select}" if select in SELECTIONS else f"({select})"
    cure = f" (with them: --select '{' or '.join([known, *more])}')" if more and len(others) <= 5 else ""
    return f"; left out: {', '.join(parts)}{cure}"
