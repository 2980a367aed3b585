"""What makes a jump unsound, up to its bounds, and what its atoms are; without any dynamics."""

from __future__ import annotations

from types import SimpleNamespace

import MDAnalysis as mda
import numpy as np
import pytest

pytest.importorskip("openmm")
from conftest import make_universe

from egno_md.errors import UsageError
from egno_md.propagator.common import check_numbers, in_angstrom, in_nm, in_parts
from egno_md.propagator.jump import Jumper, _heavy_atoms, _Unsound
from egno_md.propagator.records import JumpLimits


def jumper(**limits):
    """One of ten atoms, whose dynamics are numbers alone: energies 10 and 14, temperatures 290 and 310."""
    atoms = make_universe(1).atoms
    made = object.__new__(Jumper)
    made.limits, made.beads, made._solute = JumpLimits(**limits), np.arange(4), atoms
    made._solute_bonds = np.empty((0, 2), int)
    integrator = SimpleNamespace(getConstraintTolerance=lambda: made.tolerance)
    made.tolerance = 1e-5
    made.dynamics = SimpleNamespace(
        simulation=SimpleNamespace(integrator=integrator), energies=[10.0, 14.0], temperatures=[290.0, 310.0]
    )
    return made, atoms.positions.astype(np.float64)


SOUND = {"energy": 12.0, "temperature": 300.0, "constraint_error": 0.0, "rmsd_led": 0.0, "work": 0.0}


@pytest.mark.parametrize(
    ("found", "limits", "reason"),
    [
        ({}, {}, None),
        ({"rmsd_led": 1.99}, {"rmsd": 2.0}, None),
        ({"rmsd_led": 2.01}, {"rmsd": 2.0}, "lead: 2.01 A"),
        ({"work": 39.0}, {"work": 10.0}, None),  # of four beads
        ({"work": 41.0}, {"work": 10.0}, "work: 41 kJ/mol"),
        ({"energy": 17.9}, {"spread": 3.0}, None),  # 12 +- 2
        ({"energy": 18.2}, {"spread": 3.0}, "energy: 3.1 standard deviations"),
        ({"energy": 6.1}, {"spread": 3.0}, None),
        ({"energy": 5.8}, {"spread": 3.0}, "energy: 3.1 standard deviations"),
        ({"temperature": 329.0}, {"spread": 3.0}, None),  # 300 +- 10
        ({"temperature": 331.0}, {"spread": 3.0}, "temperature: 3.1 standard deviations"),
        ({"constraint_error": 0.9e-4}, {}, None),  # what single precision gives
        ({"constraint_error": 1.1e-4}, {}, "constraints: violated by 1.1e-04, tolerance 1.0e-04"),
        ({"work": np.nan}, {}, "not finite"),
        ({"rmsd_led": np.inf}, {}, "not finite"),
    ],
)
def test_a_jump_is_sound_within_its_limits(found, limits, reason):
    made, positions = jumper(**limits)
    if reason is None:
        made._judge(SOUND | found, positions, positions, None)
    else:
        with pytest.raises(_Unsound, match=reason.replace("+", r"\+")):
            made._judge(SOUND | found, positions, positions, None)


def test_constraints_hold_to_ten_times_their_tolerance():
    made, positions = jumper()
    made.tolerance = 1e-3
    made._judge(SOUND | {"constraint_error": 0.99e-2}, positions, positions, None)
    with pytest.raises(_Unsound, match="tolerance 1.0e-02"):
        made._judge(SOUND | {"constraint_error": 1.01e-2}, positions, positions, None)


def test_atoms_that_are_nowhere_or_on_each_other_are_unsound():
    made, positions = jumper()
    lost = positions.copy()
    lost[3, 1] = np.nan
    with pytest.raises(_Unsound, match="not finite"):
        made._judge(SOUND, positions, lost, None)
    clash = positions.copy()
    clash[7] = clash[0] + 0.01
    with pytest.raises(_Unsound, match="structure: "):
        made._judge(SOUND, positions, clash, None)


def test_energies_that_never_change_allow_no_other():
    made, positions = jumper()
    made.dynamics.energies = [12.0, 12.0]
    made._judge(SOUND, positions, positions, None)
    with pytest.raises(_Unsound, match="energy"):
        made._judge(SOUND | {"energy": 12.001}, positions, positions, None)


def small_universe(bonds):
    """Two molecules: N-CA-C with a hydrogen, and a water; the second residue of the first is C-O."""
    u = mda.Universe.empty(9, n_residues=3, atom_resindex=[0, 0, 0, 0, 1, 1, 2, 2, 2], trajectory=True)
    u.add_TopologyAttr("names", ["N", "CA", "HA", "C", "C", "O", "OW", "H1", "H2"])
    u.add_TopologyAttr("elements", ["N", "C", "H", "C", "C", "O", "O", "H", "H"])
    if bonds:
        u.add_TopologyAttr("bonds", [(0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (6, 7), (6, 8)])
    return u


def test_heavy_atoms_are_those_of_the_molecules_of_the_beads():
    bonded, loose = small_universe(True), small_universe(False)
    assert _heavy_atoms(bonded.select_atoms("name CA")).indices.tolist() == [0, 1, 3, 4, 5]
    assert _heavy_atoms(loose.select_atoms("name CA")).indices.tolist() == [0, 1, 3]  # of its residue
    assert _heavy_atoms(bonded.select_atoms("name OW")).indices.tolist() == [6]
    assert _heavy_atoms(bonded.select_atoms("name CA or name HA")).indices.tolist() == [0, 1, 2, 3, 4, 5]


def test_steps_are_done_in_parts_and_lengths_have_their_units():
    assert list(in_parts(60)) == [25, 25, 10] and list(in_parts(50)) == [25, 25] and list(in_parts(0)) == []
    np.testing.assert_allclose(in_nm([15.0]), [1.5])
    np.testing.assert_allclose(in_angstrom([1.5]), [15.0])


@pytest.mark.parametrize("name", ["temperature", "friction", "step_fs", "equilibrate_ps", "lead_ps", "relax_ps"])
def test_numbers_of_a_run_are_positive_or_nothing(name):
    may_be_zero = name in ("friction", "equilibrate_ps")
    check_numbers(**{name: 1e-9}, strength=5)
    for value in (-1e-9, float("nan"), float("inf"), "1", True, None, *([] if may_be_zero else [0.0])):
        with pytest.raises(UsageError, match=f"{name} .*{'at least 0' if may_be_zero else 'positive'}"):
            check_numbers(strength=5, **{name: value})
    if may_be_zero:
        check_numbers(**{name: 0})
