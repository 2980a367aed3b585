"""Bonds in the PDB file beside a forecast: viewers draw the chain, other libraries read what a model sees."""

from __future__ import annotations

import warnings
from pathlib import Path

import MDAnalysis as mda
import mdtraj
import numpy as np
import pytest
from openmm import app

import egno_md
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.molecule import Molecule
from egno_md.trajectory.writer import Topology, write_forecast, write_topology


def records(path: Path) -> int:
    return sum(line.startswith("CONECT") for line in path.read_text().splitlines())


def pairs(bonds) -> set[tuple[int, int]]:
    return {tuple(sorted(map(int, bond))) for bond in bonds}


@pytest.mark.parametrize("select", ["ca", "backbone", "heavy", "protein and name CA CB"])
def test_bonds_are_read_back_by_everyone(tmp_path: Path, select: str) -> None:
    universe = mda.Universe(*map(str, egno_md.sample()))
    atoms = select_atoms(universe, select)
    _, topology = write_forecast(tmp_path / "f.dcd", atoms, atoms.positions[None], [1.0], dt=1.0)
    wanted = pairs(Molecule.of(atoms).bonds)
    assert len(wanted) >= len(atoms) - 1 or select == "protein and name CA CB"
    back = mda.Universe(str(topology))
    assert pairs(back.bonds.indices) == wanted
    assert pairs((a.index, b.index) for a, b in mdtraj.load(str(topology)).topology.bonds) == wanted
    assert pairs((a.index, b.index) for a, b in app.PDBFile(str(topology)).topology.bonds()) == wanted
    # To a model the file is the molecule that it was made of.
    assert Molecule.of(back.atoms).identity == Molecule.of(atoms).identity
    assert not hasattr(universe, "bonds")  # nothing was added to the user's own


def test_chains_and_gaps_are_not_joined(tmp_path: Path) -> None:
    universe = mda.Universe(*map(str, egno_md.sample()))
    atoms = universe.select_atoms("name CA and not resid 30:34")
    write_topology(tmp_path / "gap.pdb", atoms, atoms.positions)
    assert len(mda.Universe(str(tmp_path / "gap.pdb")).bonds) == len(atoms) - 2


@pytest.mark.parametrize("residues", [1, 4])
def test_atoms_without_names_and_residues_without_numbers_are_told_apart(tmp_path: Path, residues: int) -> None:
    universe = mda.Universe.empty(12, residues, atom_resindex=np.arange(12) % residues, trajectory=True)
    write_topology(tmp_path / "o.pdb", universe.atoms, 5.0 * np.eye(12)[:, :3])
    told = [(atom.residue.id, atom.name) for atom in app.PDBFile(str(tmp_path / "o.pdb")).topology.atoms()]
    assert len(set(told)) == 12  # OpenMM reads the first of equal ones alone
    assert ("1", "X1") in told and not hasattr(universe.atoms, "names")


def test_copies_of_a_chain_get_letters_of_their_own(tmp_path: Path) -> None:
    alphas = mda.Universe(*map(str, egno_md.sample())).select_atoms("name CA and resid 1:6")
    both = mda.Merge(alphas, alphas)
    both.add_TopologyAttr("chainIDs", ["Q"] * 12)
    write_topology(tmp_path / "o.pdb", both.atoms, np.concatenate([alphas.positions, alphas.positions + 40]))
    assert mda.Universe(str(tmp_path / "o.pdb")).atoms.chainIDs.tolist() == ["Q"] * 6 + ["B"] * 6  # A is its segment
    assert mdtraj.load(str(tmp_path / "o.pdb")).topology.n_chains == 2


def test_more_atoms_than_the_columns_count_have_no_records(tmp_path: Path) -> None:
    n = 100_002
    residue = np.arange(n) // 3
    universe = mda.Universe.empty(n, n // 3, atom_resindex=residue, trajectory=True)
    universe.add_TopologyAttr("names", ["C1", "C2", "C3"] * (n // 3))
    universe.add_TopologyAttr("resnames", ["LIG"] * (n // 3))
    universe.add_TopologyAttr("resids", np.arange(n // 3))
    grid = np.stack(np.unravel_index(residue, (33, 33, 33)), axis=1) * 8.0
    grid[:, 0] += 1.5 * (np.arange(n) % 3)
    universe.atoms.positions = grid
    for count, wanted in ((n, 0), (300, 300)):
        target = tmp_path / f"{count}.pdb"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_topology(target, universe.atoms[:count], grid[:count])
        assert records(target) == wanted
    assert len(mda.Universe(str(tmp_path / f"{n}.pdb")).atoms) == n


def test_one_topology_for_many_forecasts_writes_what_each_would(tmp_path: Path) -> None:
    alphas = mda.Universe(*map(str, egno_md.sample())).select_atoms("name CA")
    topology, box = Topology(alphas), np.array([50, 50, 50, 90, 90, 90], np.float32)
    options = [{}, {"boxes": box}, {"b_factors": np.linspace(0, 9, len(alphas)), "remarks": ["of them"]}]
    options += [{"recentre": True}, {}]
    for k, more in enumerate(options):
        frames = alphas.positions[None] + k + (20_000 if "recentre" in more else 0)
        for name, given in (("own", True), ("shared", topology)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                write_forecast(tmp_path / f"{name}{k}.dcd", alphas, frames, [0.0], dt=1.0, topology=given, **more)
        assert (tmp_path / f"own{k}.pdb").read_bytes() == (tmp_path / f"shared{k}.pdb").read_bytes()
        assert records(tmp_path / f"shared{k}.pdb") > 0
        # Of a cell that is not there nothing is said.
        remarks = [line for line in (tmp_path / f"own{k}.pdb").read_text().splitlines() if line.startswith("REMARK")]
        assert remarks == [f"REMARK   6 {line}" for line in more.get("remarks", ())]


@pytest.mark.parametrize(
    ("low", "high", "moved"),
    [(-999.8, 0.0, False), (-1000.0, 0.0, True), (0.0, 9999.8, False), (0.0, 10000.0, True)],
)
def test_what_the_columns_can_hold_stays_where_it_is(tmp_path: Path, low: float, high: float, moved: bool) -> None:
    u = mda.Universe.empty(3, n_residues=1, atom_resindex=[0] * 3, trajectory=True)
    u.add_TopologyAttr("names", ["C1", "C2", "C3"])
    base = high - 30.0 if high > 0 else low
    positions = np.array([[base, 1, 2], [base + 10, 5, 6], [base + 30, 7, 8]], np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_forecast(tmp_path / "o.dcd", u.atoms, positions[None], [0.0], dt=1.0, recentre=True)
    assert any("is moved to the origin" in str(w.message) for w in caught) == moved
    shown = mda.Universe(str(tmp_path / "o.pdb")).atoms.positions
    shift = np.round(positions.mean(axis=0)) if moved else 0
    np.testing.assert_allclose(shown, positions - shift, atol=2e-3)
