"""Structures as they are published: what `extend` makes of them, and what it says."""

from __future__ import annotations

import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path

import MDAnalysis as mda
import MDAnalysisTests
import numpy as np
import pytest
from click.testing import CliRunner
from openmm import app, unit

from egno_md import sample
from egno_md.cli import main
from egno_md.errors import DataError
from egno_md.propagator import load_simulation
from egno_md.propagator.prepare import DEFAULT_FIELD, build_system

#: Chignolin, ten residues with all heavy atoms and no hydrogen, as `simulate` begins.
CELL = "CRYST1   20.140   25.500   19.950  90.00  90.00  90.00 P 1           1\n"
WATER = "HETATM 9001  O   HOH B   1      40.000  10.000  40.000  1.00  0.00           O\n"
LIGAND = (
    "HETATM 9002  C1  LIG C   1      30.000  10.000  40.000  1.00  0.00           C\n"
    "HETATM 9003  O1  LIG C   1      31.400  10.000  40.000  1.00  0.00           O\n"
)


@pytest.fixture()
def crystal(shared, tmp_path) -> Path:
    """A peptide without hydrogens in the box of its crystal."""
    lines = (shared / "data/structures/CLN025_5awl.pdb").read_text().splitlines(keepends=True)
    path = tmp_path / "5awl.pdb"
    path.write_text(CELL + "".join(line for line in lines if line.startswith(("ATOM", "TER"))) + "END\n")
    assert " H " not in path.read_text()
    return path


def with_lines(path: Path, lines: str) -> Path:
    path.write_text(path.read_text().replace("END\n", lines + "END\n"))
    return path


def built(path: Path, **options) -> tuple[app.Modeller, list[str]]:
    file = app.PDBFile(str(path))
    modeller, said = app.Modeller(file.topology, file.positions), []
    build_system(modeller, said=said.append, **options)
    return modeller, said


def test_hydrogens_box_and_water_of_a_crystal(crystal):
    n_heavy = len(mda.Universe(str(crystal)).atoms)
    modeller, said = built(with_lines(crystal, WATER))
    field, box, water, hydrogens = said
    assert " + ".join(DEFAULT_FIELD) in field and "--forcefield" in field
    assert box.startswith("box of 20.1 x 25.5 x 20.0 A left out") and "--keep-box" in box
    assert water.startswith("1 water molecule of") and hydrogens.startswith("73 missing hydrogens")
    assert modeller.topology.getNumAtoms() == n_heavy + 73 and modeller.topology.getPeriodicBoxVectors() is None
    # A structure that has them is taken as it is.
    whole = app.Modeller(modeller.topology, modeller.positions)
    again: list[str] = []
    build_system(whole, DEFAULT_FIELD, said=again.append)
    assert again == [] and whole.topology.getNumAtoms() == n_heavy + 73


def test_a_box_of_solvent_stays(crystal):
    explicit = ("amber14-all.xml", "amber14/tip3pfb.xml")
    modeller, said = built(crystal, names=explicit)
    assert len(said) == 2 and "box" in said[0]
    modeller.addSolvent(app.ForceField(*explicit), boxSize=(2.6, 2.6, 2.6), neutralize=False)
    said.clear()
    system = build_system(modeller, explicit, said=said.append)
    assert said == [] and system.usesPeriodicBoundaryConditions()
    with pytest.raises(DataError, match="no water or an implicit one.*tip3pfb"):
        build_system(modeller, DEFAULT_FIELD)
    said.clear()
    assert not build_system(modeller, DEFAULT_FIELD, no_box=True, said=said.append).usesPeriodicBoundaryConditions()
    assert len(said) == 1 and "water molecules of the structure left out" in said[0]
    with pytest.raises(DataError, match="no water or an implicit one.*--no-box"):
        built(crystal, no_box=False)


def test_what_the_force_field_does_not_know_is_named(crystal):
    with pytest.raises(DataError, match="It does not know LIG: take it out of the file"):
        built(with_lines(crystal, LIGAND))
    crystal.write_text("".join(line for line in crystal.open() if "CG  GLU" not in line and "LIG" not in line))
    with pytest.raises(DataError, match="Heavy atoms are missing.*pdbfixer protein.pdb --add-atoms=heavy"):
        built(crystal)


def test_extend_as_it_is_typed_first(crystal, tmp_path):
    """Nothing but the name of the file decides here; the rest makes it short."""
    short = ["--jumps", "1", "--md-steps", "500", "--lead-ps", "0.2", "--relax-ps", "0.1", "--equilibrate-ps", "0.1"]
    command = ["extend", str(crystal), *short, "--report", "100", "--seed", "1", "--platform", "CPU", "--json"]
    result = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "out.dcd")])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [line.split()[0] for line in found["prepared"]] == ["force", "box", "73"]
    run = mda.Universe(str(tmp_path / "out.pdb"), str(tmp_path / "out.dcd"))
    assert len(run.atoms) == 166 and np.isfinite(run.trajectory.timeseries()).all()


def test_of_several_models_the_first_is_taken_and_said(crystal):
    atoms, said = [line for line in crystal.read_text().splitlines(keepends=True) if line.startswith("ATOM")], []
    moved = [f"{line[:30]}{float(line[30:38]) + 20:8.3f}{line[38:]}" for line in atoms]
    crystal.write_text("".join(["MODEL        1\n", *atoms, "ENDMDL\nMODEL        2\n", *moved, "ENDMDL\nEND\n"]))
    simulation = load_simulation(crystal, equilibrate_ps=None, said=said.append)
    assert said[0] == f"the first of 2 models in {crystal}, the others are left out"
    first = simulation.context.getState(positions=True).getPositions(asNumpy=True)[0].value_in_unit(unit.angstrom)
    np.testing.assert_allclose(first, mda.Universe(str(crystal)).atoms.positions[0], atol=1e-3)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "run.xtc").write_bytes(b"\x00\x00\x07\xcb" + bytes(range(128, 256)))
    command = [sys.executable, "-X", "dev", "-m", "egno_md", "extend", str(tmp_path / "run.xtc")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "unclosed" not in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_what_follows_a_run_is_forecast_by_the_command_that_is_named(tmp_path):
    done = CliRunner().invoke(main, ["extend", *map(str, sample())])
    assert done.exit_code == 2 and "reads no run" in done.output
    command = " ".join(done.output.split()).partition("forecast by ")[2]
    taken = CliRunner().invoke(main, [*shlex.split(command)[1:], "-o", str(tmp_path / "out.dcd")])
    assert taken.exit_code == 0 and (tmp_path / "out.dcd").exists()


def test_a_wrong_report_is_refused_before_openmm_loads(tmp_path):
    code = (
        "import sys\nfrom egno_md.cli import main\n"
        "try:\n    main(['extend', 'a.pdb', '--report', '0'])\nexcept SystemExit as done:\n    print(done.code)\n"
        "print([m for m in ('torch', 'MDAnalysis', 'openmm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split("\n")[:2] == ["2", "[]"] and "--report must be at least 1" in done.stderr


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("martini_dppc_chol_bilayer.gro", "no protein but DPPC, CHOL"),
        ("nucl_res.pdb", "no protein but ADE, URA, CYT"),
        ("fullerene.pdb.gz", "no protein but MOL"),
    ],
)
def test_what_is_no_structure_of_a_protein_is_said_to_be_none(name, found):
    """And not that a list was too short, or that a text was no number."""
    path = Path(MDAnalysisTests.__file__).parent / "data" / name
    with pytest.raises(DataError, match=f"{found}.*egno-md predict") as said:
        load_simulation(path)
    assert "cannot be read" not in str(said.value) and "a PDB or mmCIF file of a protein" in str(said.value)


def test_a_molecule_that_no_force_field_knows_is_named(tmp_path):
    packed = Path(MDAnalysisTests.__file__).parent / "data" / "fullerene.pdb.gz"
    path = tmp_path / "fullerene.pdb"
    path.write_bytes(gzip.decompress(packed.read_bytes()).replace(b"   inf   inf", b"  1.00  0.00"))
    with pytest.raises(DataError, match="of MOL, neither a protein nor a nucleic acid: name a force field.*--model"):
        load_simulation(path)


def test_a_protein_in_another_format_is_read_as_the_message_says(crystal, tmp_path, monkeypatch):
    mda.Universe(str(crystal)).atoms.write(tmp_path / "own.gro")
    with pytest.raises(DataError, match="write one, python -c") as said:
        load_simulation(tmp_path / "own.gro")
    monkeypatch.chdir(tmp_path)
    command = str(said.value).partition("write one, python")[2]
    subprocess.run(f'"{sys.executable}"{command}', shell=True, check=True)
    simulation = load_simulation("own.pdb", equilibrate_ps=0, platform="Reference")
    assert simulation.topology.getNumResidues() == 10


def test_a_damaged_structure_is_said_to_be_one(tmp_path):
    (tmp_path / "cut.pdb").write_text("ATOM      1  N   ALA A   1      11.1")
    with pytest.raises(DataError, match="cut.pdb is no PDB file that OpenMM reads.*it may be damaged"):
        load_simulation(tmp_path / "cut.pdb")
