"""From a structure as it is published to a System that runs: hydrogens, box, crystal water, force field."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import openmm
from openmm import app, unit

from ..errors import DataError, counted, few
from ..molecule.atoms import WATER

IMPLICIT_SOLVENT = (openmm.GBSAOBCForce, openmm.CustomGBForce)

#: Taken where nobody names one: proteins and nucleic acids in implicit solvent.
DEFAULT_FIELD = ("amber14-all.xml", "implicit/obc2.xml")

#: A box with solvent in it is as dense as a liquid; that of a crystal, whose other molecules are not in the file, or
#: whose solvent nobody saw, is not. g/cm^3.
LIQUID = 0.8

#: Residues that every force field of proteins or nucleic acids knows, if their atoms are there.
STANDARD = set(
    "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL A C G U DA DC DG DT".split()
)

#: g/cm^3 of 1 Da/nm^3.
DALTONS = 1.66054e-3


def build_system(
    modeller: app.Modeller,
    names: Sequence[str] = (),
    *,
    hydrogens: bool = False,
    no_box: bool | None = None,
    said: Callable[[str], None] = lambda line: None,
) -> openmm.System:
    """A System of a structure, which is completed where it has to be; every step is said in a line.

    Parameters
    ----------
    modeller : openmm.app.Modeller
        Altered.
    names : sequence of str
        Force field files; :data:`DEFAULT_FIELD` where empty.
    hydrogens : bool
        Add those that are missing, also where the force field would take the structure without.
    no_box : bool, optional
        Forget the box, or keep it; when None it is kept where it is full of solvent.
    said : callable
        Takes the lines.

    Raises
    ------
    DataError
        The force field does not know the structure, or has implicit solvent for a box of water.
    """
    if not names:
        names = DEFAULT_FIELD
        said(f"force field {' + '.join(names)}, which nobody named (--forcefield names another)")
    try:
        field = app.ForceField(*names)
    except Exception as error:  # what a force field file runs into is told by the text alone
        raise DataError(f"the force field {' + '.join(names)} cannot be read: {_text(error)}") from error
    _settle_box(modeller, no_box, said)
    periodic = modeller.topology.getPeriodicBoxVectors() is not None
    water = [residue for residue in modeller.topology.residues() if residue.name in WATER]
    if water and not _knows_water(field):
        if periodic:
            raise _no_place(names)
        modeller.delete(water)
        said(f"{counted(len(water), 'water molecule')} of the structure left out, which the force field does not know")
    if hydrogens or field.getUnmatchedResidues(modeller.topology):
        _add_hydrogens(modeller, field, names, said)
    method = app.PME if periodic else app.NoCutoff
    try:
        system = field.createSystem(modeller.topology, nonbondedMethod=method, constraints=app.HBonds)
    except Exception as error:
        if periodic and "implicit solvent" in str(error):
            raise _no_place(names) from error
        raise DataError(
            f"the force field {' + '.join(names)} cannot be used for this {'periodic' if periodic else 'open'} "
            f"structure: {_text(error)}{_cure(modeller, field)}"
        ) from error
    if periodic and any(isinstance(force, IMPLICIT_SOLVENT) for force in system.getForces()):
        raise _no_place(names)
    return system


def _no_place(names: Sequence[str]) -> DataError:
    return DataError(
        f"the structure has a box, for which {' + '.join(names)} has no water or an implicit one: name a force field "
        "with water (--forcefield amber14-all.xml --forcefield amber14/tip3pfb.xml), or forget the box with --no-box "
        "(no_box=True), which leaves its water out"
    )


def _settle_box(modeller: app.Modeller, no_box: bool | None, said: Callable[[str], None]) -> None:
    """Forget a box that is no box of solvent, unless it is to be kept."""
    vectors = modeller.topology.getPeriodicBoxVectors()
    if vectors is None or no_box is False:
        return
    sides = [vectors[k][k].value_in_unit(unit.nanometer) for k in range(3)]
    # The PDB's way to say "no crystal" is a cell of 1 A.
    nothing = max(sides) < 0.11
    elements = (atom.element for atom in modeller.topology.atoms() if atom.element is not None)
    masses = (element.mass.value_in_unit(unit.dalton) for element in elements)
    density = DALTONS * sum(masses) / (sides[0] * sides[1] * sides[2])
    if no_box or nothing or density < LIQUID:
        modeller.topology.setPeriodicBoxVectors(None)
        if not no_box and not nothing:
            lengths = " x ".join(f"{10 * side:.1f}" for side in sides)
            said(
                f"box of {lengths} A left out: {density:.2f} g/cm^3 are in it, so it is that of a crystal, not of a "
                "solvent (--keep-box keeps it)"
            )


def _knows_water(field: app.ForceField) -> bool:
    one = app.Topology()
    residue = one.addResidue("HOH", one.addChain())
    oxygen = one.addAtom("O", app.element.oxygen, residue)
    for name in ("H1", "H2"):
        one.addBond(oxygen, one.addAtom(name, app.element.hydrogen, residue))
    return not field.getUnmatchedResidues(one)


def _add_hydrogens(
    modeller: app.Modeller, field: app.ForceField, names: Sequence[str], said: Callable[[str], None]
) -> None:
    before = modeller.topology.getNumAtoms()
    try:
        modeller.addHydrogens(field)
    except Exception as error:
        raise DataError(
            f"hydrogens cannot be added by the force field {' + '.join(names)}: {_text(error)}{_cure(modeller, field)}"
        ) from error
    if added := modeller.topology.getNumAtoms() - before:
        said(f"{counted(added, 'missing hydrogen')} added, as at pH 7 (which carries what, see OpenMM's Modeller)")


def _cure(modeller: app.Modeller, field: app.ForceField) -> str:
    """What can be done about residues that the force field does not know, and about those that lack atoms."""
    unmatched = field.getUnmatchedResidues(modeller.topology)
    strange = sorted({r.name for r in unmatched} - STANDARD)
    if strange and not STANDARD & {r.name for r in modeller.topology.residues()}:
        return (
            f". The structure is of {few(strange, 6)}, neither a protein nor a nucleic acid: name a force field that "
            "knows it (--forcefield), or give a serialised System (--system), and a model of these atoms (--model)"
        )
    if strange:
        return (
            f". It does not know {few(strange, 6)}: take it out of the file, name a force field that does "
            "(--forcefield), or give a serialised System (--system)"
        )
    if unmatched:
        return (
            ". Heavy atoms are missing there, as in many crystal structures; PDBFixer adds them: pip install pdbfixer, "
            "then pdbfixer protein.pdb --add-atoms=heavy --output=whole.pdb"
        )
    return ""


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
