"""Atoms that are there twice, residues that no list knows, numbers that say nothing, starts that are no molecule."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
from MDAnalysis.transformations import unwrap

import egno_md
from egno_md import EGNOSurrogate
from egno_md.errors import DataError, UsageError
from egno_md.hindcast.proteins import kind_of
from egno_md.molecule import whole
from egno_md.molecule.atoms import matching_atoms, select_atoms
from egno_md.molecule.checks import check_frames
from egno_md.molecule.default import default_selection
from egno_md.molecule.molecule import Molecule
from egno_md.molecule.possible import check_start
from egno_md.molecule.whole import make_whole
from egno_md.trajectory.writer import write_forecast


@pytest.fixture(scope="module")
def chignolin() -> mda.Universe:
    """Ten residues. Do not alter."""
    return mda.Universe(*map(str, egno_md.sample("chignolin")))


def part(source: mda.Universe, select: str = "name CA", n_frames: int = 4) -> mda.Universe:
    """Some atoms and the first frames of a run, 1 ps apart, to be altered."""
    atoms = source.select_atoms(select)
    frames = np.array([atoms.positions for _ in source.trajectory[:n_frames]])
    universe = mda.Merge(atoms)
    return universe.load_new(frames, dt=1.0)


def written(path: Path, lines: list[str]) -> mda.Universe:
    """A PDB file of some lines, and what MDAnalysis reads in it."""
    path.write_text("\n".join([*lines, "END", ""]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mda.Universe(str(path))


def lines_of(select: str = "", *resids: int) -> list[str]:
    """ATOM lines of chignolin: atoms whose names are in `select` (all without it) of some residues (all without)."""
    lines = [line for line in egno_md.sample("chignolin")[0].read_text().splitlines() if line.startswith("ATOM")]
    names = select.split()
    return [
        line
        for line in lines
        if (not names or line[12:16].strip() in names) and (not resids or int(line[22:26]) in resids)
    ]


def with_column(lines: list[str], start: int, text: str) -> list[str]:
    return [line[:start] + text + line[start + len(text) :] for line in lines]


def moved(lines: list[str], by: float) -> list[str]:
    return [f"{line[:46]}{float(line[46:54]) + by:8.3f}{line[54:]}" for line in lines]


def cure(error: pytest.ExceptionInfo) -> str:
    """The selection that a message names."""
    return re.search(r"select='(.*?)'\.", str(error.value))[1]


def warned(function, *args) -> tuple:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*args)
    return result, [str(w.message) for w in caught if "egno_md" in w.filename]


# twice ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["ca", "backbone", "heavy", "protein and name CA CB"])
def test_the_cure_for_alternate_locations_keeps_every_residue(tmp_path: Path, select: str) -> None:
    lines = lines_of("", 1, 2, 3, 4)
    for line in lines_of("", 5):
        lines += with_column([line], 16, "A") + with_column([line], 16, "B")
    lines += lines_of("", 6, 7) + with_column(lines_of("", 8), 16, "B") + lines_of("", 9, 10)
    universe, whole = written(tmp_path / "a.pdb", lines), written(tmp_path / "b.pdb", lines_of())
    with pytest.raises(DataError, match=r"GLU5 \w+ \(atom \d+\) in 2 alternate locations") as error:
        select_atoms(universe, select)
    kept = select_atoms(universe, cure(error))
    assert list(kept.names) == list(select_atoms(whole, select).names)
    assert "B" not in kept.select_atoms("resid 5").altLocs and set(kept.select_atoms("resid 8").altLocs) == {"B"}
    assert Molecule.of(kept).bonds.tolist() == Molecule.of(select_atoms(whole, select)).bonds.tolist()
    model = EGNOSurrogate(universe, select=cure(error)) if select == "ca" else None
    assert model is None or len(model.atoms) == 10
    kind = select if select in ("ca", "heavy") else None
    assert kind_of(kept) == kind
    assert kind_of(kept[1:]) is None and kind_of(select_atoms(whole, select)) == kind


def test_chains_without_a_name_are_not_twice_there(tmp_path: Path) -> None:
    one = with_column(lines_of("CA"), 21, " ")
    alternative = with_column(one[:1], 16, "A") + with_column(one[:1], 16, "B")
    two = written(tmp_path / "two.pdb", one + moved(one, 30))
    assert len(Molecule.of(select_atoms(two, "ca")).bonds) == 18
    both = written(tmp_path / "both.pdb", alternative + one[1:] + moved(alternative + one[1:], 30))
    with pytest.raises(DataError, match="2 alternate locations") as error:
        select_atoms(both, "ca")
    assert len(select_atoms(both, cure(error))) == 20
    again = written(tmp_path / "again.pdb", one + one)
    with pytest.raises(DataError, match="TYR1 CA .* twice, TYR1 CA .* is at the same place") as error:
        select_atoms(again, "ca")
    assert len(select_atoms(again, cure(error))) == 10


@pytest.mark.parametrize(("altlocs", "found"), [("AB", "not altloc B"), ("  ", "not index 5")])
def test_two_residues_at_one_place(tmp_path: Path, altlocs: str, found: str) -> None:
    first, second = (with_column(lines_of("CA", 5), 16, place) for place in altlocs)
    lines = [*lines_of("CA", 1, 2, 3, 4), *first, *with_column(second, 17, "SER"), *lines_of("CA", 6, 7, 8, 9, 10)]
    universe = written(tmp_path / "t.pdb", lines)
    with pytest.raises(DataError, match=r"residue 5 twice \(GLU.* and SER") as error:
        select_atoms(universe, "ca")
    kept = select_atoms(universe, cure(error))
    assert found in cure(error) and len(Molecule.of(kept).bonds) == 9
    # They are all links of the chain, whose forecast the other residue does not change; and it is no ion.
    assert kind_of(kept) == "ca" and kind_of(kept[1:]) is None
    said = default_selection(universe).said
    first, second = (f"{name} {place}".strip() for name, place in zip(("GLU", "SER"), altlocs, strict=True))
    assert said.endswith(
        f"of 1 chain; of atoms in several places the first (1 left out; residue 5 is {first}, not {second})"
    )


def test_a_residue_in_the_place_of_another_goes_as_a_whole(tmp_path: Path) -> None:
    """Also the atoms that the other one does not have."""
    second = with_column(lines_of("N CA C O CB", 5) + with_column(lines_of("CG", 5), 12, " OG "), 16, "B")
    first = with_column(lines_of("", 5), 16, "A")
    lines = [*lines_of("", 1, 2, 3, 4), *first, *with_column(second, 17, "SER"), *lines_of("", 6, 7, 8, 9, 10)]
    universe, whole = written(tmp_path / "t.pdb", lines), written(tmp_path / "w.pdb", lines_of())
    with pytest.raises(DataError, match=r"residue 5 twice \(GLU A and SER B") as error:
        select_atoms(universe, "heavy")
    kept = select_atoms(universe, cure(error))
    assert list(kept.names) == list(select_atoms(whole, "heavy").names) and "SER" not in kept.resnames
    assert kind_of(kept) == "heavy"


@pytest.mark.parametrize(
    ("select", "meant"),
    [
        ("heavy and resid 1:3", "group heavy and resid 1:3"),
        ("resid 1:3 and not (ca or resname TYR)", "resid 1:3 and not (group ca or resname TYR)"),
    ],
)
def test_our_names_in_a_longer_selection_are_named_as_it_takes_them(chignolin: mda.Universe, select, meant) -> None:
    with pytest.raises(UsageError, match=re.escape(f"are groups: {meant!r}")):
        select_atoms(chignolin, select)
    assert len(select_atoms(chignolin, meant)) > 0
    with pytest.raises(UsageError, match="Use one of ca, backbone, heavy or"):
        select_atoms(chignolin, "name CA heavy and")


def test_names_that_repeat_in_what_is_no_chain_are_no_matter() -> None:
    universe = mda.Universe.empty(4, trajectory=True)
    universe.add_TopologyAttr("names", ["C", "C", "N", "N"])
    universe.add_TopologyAttr("resnames", ["LIG"])
    universe.add_TopologyAttr("resids", [1])
    universe.atoms.positions = np.arange(4)[:, None] * [1.4, 0, 0]
    assert len(Molecule.of(select_atoms(universe, "all")).bonds) == 3


# residues -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SEP", "TPO", "PTR", "DAL", "KCX", "MSE", "HYP", "CSO", "MLY", "PCA", "ASPP"])
def test_modified_residues_are_links_of_the_chain(chignolin: mda.Universe, name: str) -> None:
    universe = part(chignolin)
    universe.residues[4].resname = name
    surrogate, said = warned(EGNOSurrogate, universe)
    assert not said and len(surrogate.atoms) == 10 and len(surrogate.builder.bonds) == 9
    assert len(select_atoms(part(chignolin), "backbone")) == 10 * 1  # the C-alpha atoms are all there is
    _, said = warned(EGNOSurrogate, universe, None, "protein and name CA")
    assert bool(said) == (len(universe.select_atoms("protein")) < 10)
    assert all(f"{name}5: in the chain, and left out" in line for line in said)


@pytest.mark.parametrize("k", [0, 4, 9])
def test_residues_that_nobody_knows_are_named(chignolin: mda.Universe, k: int) -> None:
    universe = part(chignolin, "protein")
    universe.residues[k].resname = "XYZ"
    (molecule, said) = warned(lambda: Molecule.of(select_atoms(universe, "ca")))
    assert len(molecule) == 9 and len(said) == 1 and said[0].startswith(f"XYZ{k + 1}: in the chain, and left out")
    universe.residues[k].atoms.select_atoms("name CA").positions += 20  # a ligand far away
    assert warned(lambda: Molecule.of(select_atoms(universe, "ca")))[1] == []


def test_nucleotides_of_other_spellings_are_in_the_backbone() -> None:
    from MDAnalysisTests import datafiles

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        universe = mda.Universe(datafiles.RNA_PSF, datafiles.RNA_PDB)
    whole = len(select_atoms(universe, "backbone"))
    strand = universe.select_atoms("nucleic").residues
    for k, name in zip(range(2, 6), ("PSU", "5MC", "U5", "RAN"), strict=True):
        strand[k].resname = name
    assert len(select_atoms(universe, "backbone")) == whole


def test_numbers_that_say_nothing_leave_the_chain_whole(chignolin: mda.Universe, tmp_path) -> None:
    backwards = part(chignolin)
    backwards.residues.resids = np.arange(10, 0, -1)
    assert len(Molecule.of(select_atoms(backwards, "ca")).bonds) == 9
    for suffix in ("gro", "pdb"):
        same = part(chignolin, "protein")
        same.residues.resids = 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same.atoms.write(str(tmp_path / f"same.{suffix}"))
            read = mda.Universe(str(tmp_path / f"same.{suffix}"))
        assert len(read.residues) == 9  # TYR 1 and TYR 2 are one for MDAnalysis
        molecule, said = warned(lambda: Molecule.of(select_atoms(read, "ca")))  # noqa: B023
        assert molecule.bonds.tolist() == [[k, k + 1] for k in range(9)] and "several residues" in said[0]
        heavy = Molecule.of(select_atoms(read, "heavy"))
        assert len(np.unique(heavy.residues)) == 10 and len(heavy.bonds) == 98


def test_backwards_chains_without_a_name_end_where_numbers_rise(tmp_path: Path) -> None:
    one = [line for k in (1, 2, 3) for line in with_column(lines_of("CA", k), 20, f"    {4 - k:2d}")]
    universe = written(tmp_path / "t.pdb", one + moved(one, 3.8))
    assert Molecule.of(select_atoms(universe, "ca")).chains.tolist() == [0, 0, 0, 1, 1, 1]


def test_insertion_codes_are_residues_of_the_chain(chignolin: mda.Universe) -> None:
    universe = part(chignolin)
    universe.residues.resids = [1, 2, 3, 3, 3, 4, 5, 6, 7, 8]
    universe.add_TopologyAttr("icodes", ["", "", "", "A", "B", "", "", "", "", ""])
    molecule = Molecule.of(select_atoms(universe, "ca"))
    assert len(molecule.bonds) == 9 and molecule.label(4) == "GLU3B CA (atom 4)"


def test_what_a_topology_lacks_is_named() -> None:
    universe = mda.Universe.empty(3, trajectory=True)
    with pytest.raises(ValueError, match="the topology has no (names|resnames)"):
        matching_atoms(universe, "ca")


def test_the_elements_of_a_written_topology_are_those_of_the_molecule(chignolin: mda.Universe, tmp_path) -> None:
    bare = part(chignolin)
    bare.del_TopologyAttr("elements")
    target = tmp_path / "o.dcd"
    write_forecast(target, bare.atoms, bare.trajectory.timeseries(order="fac"), np.arange(4.0))
    assert set(mda.Universe(str(target.with_suffix(".pdb"))).atoms.elements) == {"C"}


# starts ---------------------------------------------------------------------------------------------------------------


def test_a_start_that_is_no_molecule_is_refused(chignolin: mda.Universe) -> None:
    molecule = Molecule.of(select_atoms(chignolin, "ca"))
    sound = chignolin.select_atoms("name CA").positions.astype(float)
    assert check_start(molecule, sound[None].repeat(2, 0), stride_ps=1.0) == []
    with pytest.raises(DataError, match=r"frame 3: TYR1 CA \(atom 1\) and TYR2 CA .* 0.00 A apart, and 45 pair"):
        check_start(molecule, np.zeros((1, 10, 3)), frame=3)
    twice = sound.copy()
    twice[6] = twice[2]
    with pytest.raises(DataError, match="ASP3 CA .* and GLY7 CA .* are 0.00 A apart"):
        check_start(molecule, twice[None])
    torn = sound + np.repeat([0, 40], 5)[:, None] * [1, 0, 0]
    with pytest.raises(DataError, match="GLU5 CA .* and THR6 CA .* are bonded and 4.*periodic box .*whole"):
        check_start(molecule, torn[None])
    (line,) = check_start(molecule, sound[None] / 10)
    assert "Angstrom?" in line and "2.4 to 5.0 A is possible" in line
    (line,) = check_start(molecule, np.stack([sound - np.eye(10)[3][:, None] * [20, 0, 0], sound]), stride_ps=1.0)
    assert "PRO4 CA (atom 33) moved 20.0 A in 1 ps" in line


@pytest.mark.parametrize("select", ["ca", "backbone", "heavy"])
def test_a_chain_torn_by_an_unknown_box_is_found(chignolin: mda.Universe, select: str) -> None:
    universe = part(chignolin, "protein")
    frames = universe.trajectory.timeseries(order="fac")
    frames[:, universe.atoms.resids > 5] += [40.0, 0, 0]
    molecule = Molecule.of(select_atoms(universe, select))
    positions = select_atoms(universe, select).positions
    assert len(molecule.loose) == 1
    (line,) = check_start(molecule, positions[None])
    assert "follow each other in the chain and are torn apart" in line and "gmx trjconv" in line
    checks = check_frames(positions[None], positions, molecule.bonds, molecule=molecule)
    assert checks.impossible.tolist() == [1] and "are no molecule: GLU5 C" in checks.messages[0]
    assert check_frames(positions[None], positions, molecule.bonds).ok  # nobody said who they are


def test_missing_residues_are_said_and_no_fault(chignolin: mda.Universe) -> None:
    universe = part(chignolin)
    universe.trajectory.timeseries(order="fac")[:, 5:] += [14.0, 12, -19]
    molecule = Molecule.of(select_atoms(universe, "ca"))
    positions = universe.atoms.positions
    (line,) = check_start(molecule, positions[None])
    assert "if none are missing there" in line
    assert check_frames(positions[None], positions, molecule.bonds, molecule=molecule).ok
    universe.residues.resids = [1, 2, 3, 4, 5, 16, 17, 18, 19, 20]
    assert check_start(Molecule.of(select_atoms(universe, "ca")), positions[None]) == []


def test_a_topology_that_knows_its_bonds_knows_where_chains_end(chignolin: mda.Universe) -> None:
    universe = part(chignolin, "protein")
    bonds = Molecule.of(universe.atoms).bonds
    resids = universe.atoms.resids[bonds]
    universe.add_TopologyAttr("bonds", bonds[(resids != [5, 6]).any(axis=1)])
    universe.trajectory.timeseries(order="fac")[:, universe.atoms.resids > 5] += [40.0, 0, 0]
    molecule = Molecule.of(select_atoms(universe, "ca"))
    assert len(molecule.bonds) == 8 and not len(molecule.loose)


def test_wrapped_molecules_are_made_whole(chignolin: mda.Universe) -> None:
    molecule = Molecule.of(select_atoms(chignolin, "heavy"))
    sound = select_atoms(chignolin, "heavy").positions.astype(float)
    for box in ([16.0, 18, 20, 90, 90, 90], [20.0, 20, 20, 70, 80, 65]):
        cell = mda.lib.mdamath.triclinic_vectors(box, dtype=np.float64)
        wrapped = sound - np.floor(sound @ np.linalg.inv(cell)) @ cell
        mended = make_whole(wrapped, molecule.bonds, box)
        np.testing.assert_allclose(mended - mended[0], sound - sound[0], atol=1e-6)
        moved_on = make_whole(wrapped + 3 * cell[0] - cell[2] + 0.3, molecule.bonds, box, near=mended)
        np.testing.assert_allclose(moved_on, mended + 0.3, atol=1e-6)
    np.testing.assert_array_equal(make_whole(sound, molecule.bonds, None), sound)


def test_many_molecules_are_walked_once_and_not_once_each_and_per_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of one to some atoms, in pieces over several boxes, against a walk from atom to atom."""
    walked: list[int] = []
    walk = whole.breadth_first_order
    monkeypatch.setattr(whole, "breadth_first_order", lambda *a, **b: walked.append(1) or walk(*a, **b))
    rng, n_atoms, box = np.random.default_rng(3), 400, [11.0, 12.0, 13.0, 80.0, 85.0, 95.0]
    sound, bonds = rng.uniform(0, 10, (n_atoms, 3)), []
    for k in range(1, n_atoms):
        if rng.random() < 0.8:
            before = int(rng.integers(max(0, k - 6), k))
            sound[k] = sound[before] + rng.normal(size=3)
            bonds.append((before, k))
    cell = mda.lib.mdamath.triclinic_vectors(box, dtype=np.float64)
    shuffled = np.array(bonds)[rng.permutation(len(bonds))]
    for _ in range(3):
        images = rng.integers(-2, 3, (n_atoms, 3))
        expected = sound + images @ cell
        for before, k in bonds:
            expected[k] = expected[before] + sound[k] - sound[before]
        np.testing.assert_allclose(make_whole(sound + images @ cell, shuffled, box), expected, atol=1e-9)
    assert len(walked) == 1


@pytest.mark.parametrize("how", ["guess_bonds", "guess_TopologyAttrs"])
@pytest.mark.parametrize("select", ["protein", "name CA"])
def test_the_cure_for_a_broken_molecule_works_in_the_first_frame_too(
    chignolin: mda.Universe, how: str, select: str
) -> None:
    universe = part(chignolin, select)
    sound = EGNOSurrogate(universe, "ca-1ps").run().results.positions[0]  # (8, 10, 3)
    frames = universe.trajectory.timeseries(order="fac") - universe.atoms.center_of_geometry()
    box = np.tile([40.0, 40, 40, 90, 90, 90], (4, 1))
    universe.load_new(np.mod(frames, 40), dt=1.0, dimensions=box)  # about a corner, atom by atom
    with pytest.raises(DataError, match="broken by the periodic box"):
        EGNOSurrogate(universe, "ca-1ps").run()
    # Who needs no network puts it together.
    mended = EGNOSurrogate(universe, "static").run().results.positions[0, 0]
    whole = frames[-1][universe.select_atoms("name CA").indices]
    np.testing.assert_allclose(mended - mended[0], whole - whole[0], atol=1e-3)
    if how == "guess_bonds":
        universe.atoms.guess_bonds()
    else:
        universe.guess_TopologyAttrs(to_guess=["bonds"])
    universe.trajectory.add_transformations(unwrap(universe.atoms))
    found = EGNOSurrogate(universe, "ca-1ps").run().results.positions[0]
    np.testing.assert_allclose(found - found[:, :1], sound - sound[:, :1], atol=0.1)
