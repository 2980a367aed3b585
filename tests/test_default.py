"""What is forecast when nobody says what."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import MDAnalysis as mda
import MDAnalysisTests.datafiles as files
import numpy as np
import pytest
from click.testing import CliRunner

import egno_md
from egno_md.cli import main
from egno_md.errors import DataError, UsageError
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.default import MANY_ATOMS, default_selection
from egno_md.molecule.molecule import Molecule


def called(*arguments):
    with warnings.catch_warnings():
        return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="egno-md")


def opened(*paths) -> mda.Universe:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mda.Universe(*map(str, paths))


def taken(universe: mda.Universe):
    found = default_selection(universe)
    return found, select_atoms(universe, found.select)


def made(names: list[str], resnames: list[str], resindex: list[int], positions=None) -> mda.Universe:
    universe = mda.Universe.empty(len(names), len(resnames), atom_resindex=resindex, trajectory=True)
    universe.add_TopologyAttr("names", names)
    universe.add_TopologyAttr("resnames", resnames)
    universe.add_TopologyAttr("resids", list(range(1, len(resnames) + 1)))
    universe.add_TopologyAttr("segids", ["A"])
    # Far from each other where nothing is said.
    universe.atoms.positions = np.arange(len(names))[:, None] * [20.0, 0, 0] if positions is None else positions
    return universe


#: File, kind, number of atoms, names that all of them have ("" for several), part of the line.
TABLE = [
    ("GRO", "protein", 214, "CA", "214 C-alpha atoms of 1 chain; left out: 4 ions, 11084 water"),  # in water
    ("TPR_xvf", "protein", 62, "CA", "left out: 19 ions, 4612 water"),  # LYSH, bonds known
    ("capping_output", "protein", 14, "CA", "left out: 2 caps"),  # ACE, NMA
    ("PDB_HOLE", "protein", 30, "CA", "of 2 chains; left out: 4 caps"),  # gramicidin: FOR, ETA with a CA
    ("XYZ_psf", "protein", 152, "CA", "of 4 chains"),
    ("CONECT", "protein", 198, "CA", "2 of them in modified residues; left out: 1 XK2 (with them:"),  # CSO, ligand
    ("PSF_NAMD", "protein", 5, "CA", "1 of them in modified residues; left out: 1 HAO"),  # ORT, which no list knows
    ("PDB_full", "protein", 204, "CA", "of atoms in several places the first (7 left out)"),  # alternate locations
    ("TPR460", "protein", 130, "CA", "of 5 chains; left out: 5 caps, 47 ions, 10530 water"),  # ions around
    ("PRMpbc", "heavy", 10, "", "10 heavy atoms of 3 residues; left out: 1683 water"),  # alanine dipeptide
    ("PSF_cmap", "heavy", 16, "", "3 residues"),  # tripeptide
    ("PRM12", "heavy", 252, "", "left out: 8 ions, 2841 water"),  # DNA of 12 residues
    ("RNA_PDB", "heavy", 487, "", "left out: 22 ions, 5722 water"),  # RNA of 23
    ("MMTF", "heavy", 416, "", "left out: 96 water"),  # DNA with a peptide of four residues
    ("PRMcs", "heavy", 132, "", "11 residues"),  # a sugar
    ("merge_ligand", "heavy", 31, "", "1 residue"),
    ("merge_water", "heavy", 293, "", "293 residues"),  # nothing but water: its oxygens
    ("Martini_membrane_gro", "beads", 5040, "", "5040 beads of 450 residues"),
    ("TRIC", "beads", 877, "PO4", "877 residues"),
    ("LAMMPScnt", "heavy", 604, "", "all 604 atoms; the topology does not say what they are"),
    (
        "LAMMPSdata2",
        "heavy",
        1057,
        "",
        "by their masses; the topology names no residues; left out: 3432 water, 12 atoms",
    ),
    ("LAMMPSdata_many_bonds", "heavy", 22, "", "22 heavy atoms by their masses; the topology names no residues"),
]


@pytest.mark.parametrize(("name", "kind", "n_atoms", "names", "said"), TABLE)
def test_what_is_taken(name: str, kind: str, n_atoms: int, names: str, said: str) -> None:
    found, atoms = taken(opened(getattr(files, name)))
    assert (found.kind, len(atoms)) == (kind, n_atoms)
    assert said in found.said and "\n" not in found.said
    assert not names or set(atoms.names) == {names}
    if kind == "heavy" and hasattr(atoms, "names"):
        assert not [n for n in atoms.names if n.startswith("H") and not n.startswith("HO")]


def test_every_structure_of_a_protein_gives_its_calphas(shared: Path) -> None:
    structures = sorted((shared / "data/structures").glob("*.pdb"))
    assert len(structures) > 20
    for path in structures:
        universe = opened(path)
        found, atoms = taken(universe)
        assert found.kind == "protein" and len(atoms) == len(universe.select_atoms("protein and name CA")), path


@pytest.mark.parametrize("name", ["CONECT", "PDB_full", "PDB_rama"])
def test_what_was_left_out_is_taken_by_the_selection_that_the_line_names(name: str) -> None:
    universe = opened(getattr(files, name))
    found, atoms = taken(universe)
    cure = re.search(r"--select '(.*?)'\)", found.said)[1]
    more = select_atoms(universe, cure)
    left_out = re.findall(r"\d+ ([A-Z0-9]+)(?= \(|,)", found.said)
    assert len(more) > len(atoms) and set(left_out) <= set(more.resnames)
    assert set(atoms.indices) < set(more.indices)
    ligand = np.flatnonzero(np.isin(more.resnames, left_out))
    bonds = Molecule.of(more).bonds
    assert np.isin(bonds, ligand).all(axis=1).sum() >= len(ligand) - len(set(more.resindices[ligand]))


def test_an_unknown_residue_counts_only_in_the_chain() -> None:
    names, resnames = ["N", "CA", "C"] * 6, ["ALA", "GLY", "XYZ", "ALA", "GLY", "SAM"]
    chain = np.array([[3.8 * (k // 3) + 0.5 * (k % 3), 0, 0] for k in range(18)])
    chain[15:] += 50  # a ligand with an amino acid in it
    found, atoms = taken(made(names, resnames, [k // 3 for k in range(18)], chain))
    assert atoms.resnames.tolist() == ["ALA", "GLY", "XYZ", "ALA", "GLY"]
    assert "1 of them in modified residues" in found.said and "1 SAM" in found.said
    assert len(Molecule.of(atoms).bonds) == 4


def test_protonation_is_no_modification() -> None:
    names, resnames = ["CA"] * 5, ["ALA", "ASPP", "GLUP", "LYSN", "SEP"]
    found, _ = taken(made(names, resnames, list(range(5)), np.eye(5)[:, :3] * 3.8))
    assert found.said == "5 C-alpha atoms of 1 chain, 1 of them in modified residues"


def test_beads_of_proteins_are_taken_by_their_backbone_and_linked() -> None:
    names, resindex = ["BB", "SC1"] * 5 + ["W"] * 3, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7]
    positions = [[3.5 * (k // 2), 3.0 * (k % 2), 0] for k in range(10)] + [[0, 0, 9 * k] for k in (1, 2, 3)]
    universe = made(names, ["LEU", "SER", "VAL", "ALA", "LYS", "W", "W", "W"], resindex, np.array(positions))
    found, atoms = taken(universe)
    assert found.kind == "beads" and found.said == "5 backbone beads of 1 chain; left out: 3 water"
    assert Molecule.of(atoms).bonds.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_long_nucleic_acids_are_taken_by_their_phosphorus_and_linked() -> None:
    n = 30
    resnames = ["DA", "DT", "PSU"] * (n // 3)
    names, resindex = ["P", "C1'"] * n, [k // 2 for k in range(2 * n)]
    positions = np.array([[6.5 * (k // 2), 4.0 * (k % 2), 0] for k in range(2 * n)])
    found, atoms = taken(made(names, resnames, resindex, positions))
    assert found.kind == "nucleic" and found.said == "30 P atoms of 1 chain, 10 of them in modified residues"
    assert set(atoms.names) == {"P"} and len(Molecule.of(atoms).bonds) == n - 1


def test_lipids_and_solvents_are_taken_only_without_anything_else() -> None:
    resnames = ["LIG", "DPPC", "MEOH", "SOL"]
    names, resindex = ["C1", "O1", "P", "C2", "C1", "O1", "OW", "HW1"], [0, 0, 1, 1, 2, 2, 3, 3]
    order = {"LIG": ["LIG"], "DPPC": ["DPPC"], "MEOH": ["MEOH"], "SOL": ["SOL"]}
    universe = made(names, resnames, resindex)
    for gone, wanted in (([], "LIG"), (["LIG"], "DPPC"), (["LIG", "DPPC"], "MEOH"), (["LIG", "DPPC", "MEOH"], "SOL")):
        atoms = universe.select_atoms(f"not resname {' '.join(gone)}") if gone else universe.atoms
        found = default_selection(atoms)
        chosen = select_atoms(atoms, found.select)
        assert sorted(set(chosen.resnames)) == order[wanted] and len(chosen) == (1 if wanted == "SOL" else 2)


def test_something_large_is_thinned_to_one_atom_for_each_residue() -> None:
    n = MANY_ATOMS // 40 + 1
    names = ["C1", "C2", "P", *(f"C{k}" for k in range(3, 40))]
    universe = made(
        names * n + ["O3", "C3"] * 2, ["POPC"] * n + ["CHL1"] * 2, [*np.repeat(range(n), 40), n, n, n + 1, n + 1]
    )
    found, atoms = taken(universe)
    assert found.kind == "thinned" and len(atoms) == n + 2
    assert set(zip(atoms.resnames, atoms.names, strict=True)) == {("POPC", "P"), ("CHL1", "O3")}


def test_the_default_of_the_samples_is_what_the_bundled_models_know() -> None:
    for name in ("ubiquitin", "chignolin"):
        found, atoms = taken(opened(*egno_md.sample(name)))
        assert found.select == "ca" and len(atoms) in (76, 10)


def test_nothing_and_what_changes_are_refused() -> None:
    universe = opened(*egno_md.sample("chignolin"))
    with pytest.raises(DataError, match="no atom"):
        default_selection(universe.atoms[:0])
    with pytest.raises(UsageError, match="UpdatingAtomGroup"):
        default_selection(universe.select_atoms("name CA", updating=True))
    with pytest.raises(UsageError, match="found str"):
        default_selection("protein.pdb")


@pytest.mark.parametrize(("count", "said"), [(1, "left out: 1 ion"), (2, "left out: 2 ions")])
def test_one_is_not_said_to_be_many(count: int, said: str) -> None:
    universe = opened(files.GRO)
    ions = universe.select_atoms("resname NA+")[:count]
    assert default_selection(universe.select_atoms("protein") + ions)[2].endswith(said)


def test_a_selection_that_is_no_string_is_refused_as_such():
    u = opened(Path(__file__).parent / "data" / "ala2.pdb")
    with pytest.raises(UsageError, match=r"a selection \(select\) is a text such as 'ca'.*found 5"):
        select_atoms(u, 5)


def test_a_selection_of_too_few_atoms_is_refused_with_what_would_be_taken(tmp_path):
    """A dipeptide has one C-alpha atom; doing what the message says works."""
    top = Path(__file__).parent / "data" / "ala2.pdb"
    u = opened(top)
    moved = u.atoms.positions + np.random.default_rng(0).normal(0, 0.1, (80, 22, 3)).astype(np.float32)
    u.load_new(moved.astype(np.float32), dt=1.0)
    u.atoms.write(str(tmp_path / "run.xtc"), frames="all")
    train = ["train", top, tmp_path / "run.xtc", "-o", tmp_path / "m.safetensors", "--epochs", 1, "--window", 2]
    train += ["--hidden", 4, "--layers", 1]
    for command in (train, ["suggest", top, tmp_path / "run.xtc"]):
        refused = called(*command)
        assert refused.exit_code == 1 and "the selection 'ca' has 1 atom" in refused.stderr, refused.stderr
        cure = re.search(r"(--select .*) \(10 heavy atoms", refused.stderr)[1]
        done = called(*command, *shlex.split(cure))
        assert done.exit_code == 0, done.stderr
    one = ["--select", "name CA and resid 2"]
    (tmp_path / "ion.pdb").write_text("".join(line for line in top.open() if " CA " in line))
    u.select_atoms("name CA").write(str(tmp_path / "ion.xtc"), frames="all")
    alone = called("train", tmp_path / "ion.pdb", tmp_path / "ion.xtc", "-o", tmp_path / "n.safetensors", *one)
    assert alone.exit_code == 1 and "take a system of more atoms" in alone.stderr, alone.stderr


@pytest.mark.parametrize(
    ("types", "bonds", "select", "said"),
    [
        ("CHOHHN", [(0, 1), (2, 3), (2, 4)], "prop mass > 2 and not type N O", "1 heavy atom by their masses"),
        ("CHOHHN", [(0, 1), (2, 3), (2, 4)], "", "left out: 1 water, 1 atom without bonds"),
        ("OHOHHC", [(0, 1), (2, 3), (2, 4), (0, 5)], "prop mass > 2", "3 heavy atoms"),  # not all of the type are water
        ("OHHOHH", [(0, 1), (0, 2), (3, 4), (3, 5)], "prop mass > 2", "2 heavy atoms"),  # nothing else is there
        ("CHOHHN", [], "prop mass > 2", "3 heavy atoms"),  # nothing is known of bonds
        ("HHHHHH", [(0, 1)], "all", "all 6 atoms"),
    ],
)
def test_types_and_masses_tell_water_and_hydrogens(types, bonds, select, said) -> None:
    masses = {"C": 12.011, "H": 1.008, "O": 15.999, "N": 22.99}
    u = mda.Universe.empty(6, trajectory=True)
    u.add_TopologyAttr("types", list(types))
    u.add_TopologyAttr("masses", [masses[name] for name in types])
    if bonds:
        u.add_TopologyAttr("bonds", bonds)
    found = default_selection(u)
    assert said in found.said and (found.select == select or not select)
