"""What makes a jump unsound, up to its bounds, and what its atoms are; without any dynamics."""

from __future__ import annotations

from types import SimpleNamespace

import MDAnalysis as mda
import numpy as np
import openmm
import openmm.app
import openmm.unit
import pytest
from conftest import make_universe

from egno_md.errors import ModelError, UsageError
from egno_md.forecast.streams import Streams
from egno_md.propagator.beads import _close, _pair, _streams, _words
from egno_md.propagator.common import check_numbers, in_angstrom, in_nm, in_parts
from egno_md.propagator.dynamics import Dynamics
from egno_md.propagator.hybrid import HybridPropagator
from egno_md.propagator.jump import Jumper, _heavy_atoms, _Unsound
from egno_md.propagator.prepare import _settle_box
from egno_md.propagator.records import JumpLimits
from egno_md.specs import WindowSpec


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
        # Up to the bound itself; 1.5 A, 10 kJ/mol a bead and 5 standard deviations where nobody says otherwise.
        ({"rmsd_led": 2.0, "work": 40.0}, {"rmsd": 2.0, "work": 10.0}, None),
        ({"energy": 18.0, "temperature": 270.0, "constraint_error": 1e-4}, {"spread": 3.0}, None),
        ({"rmsd_led": 1.5, "work": 40.0, "energy": 2.0, "temperature": 350.0}, {}, None),
        ({"rmsd_led": 1.6}, {}, "lead: 1.60 A"),
        ({"work": 41.0}, {}, "work: 41 kJ/mol"),
        ({"energy": 22.4}, {}, "energy: 5.2 standard deviations"),
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


def flying(masses, constraints=(), remover=False):
    """Free particles that fly along x by 1, 2, ... nm/ps from (0, i, 0) nm, and their dynamics, in steps of 1 fs."""
    topology, system = openmm.app.Topology(), openmm.System()
    residue = topology.addResidue("UNK", topology.addChain())
    for mass in masses:
        topology.addAtom("X", None, residue)
        system.addParticle(mass)
    for i, j, length in constraints:
        system.addConstraint(i, j, length)
    if remover:
        system.addForce(openmm.CMMotionRemover())
    platform = openmm.Platform.getPlatform("Reference")
    simulation = openmm.app.Simulation(topology, system, openmm.VerletIntegrator(0.001), platform)
    count = len(masses)
    simulation.context.setPositions(np.stack([np.zeros(count), np.arange(count), np.zeros(count)], axis=1))
    simulation.context.setVelocities(np.outer(np.arange(1.0, count + 1) * (np.array(masses) > 0), [1.0, 0, 0]))
    return Dynamics(simulation)


def test_temperature_is_that_of_what_can_move():
    """Nothing without mass, and neither constraints that hold something, nor the motion as a whole, where it is off."""
    masses = [0.5, 1.0, 12.0, 0.0, 0.0]
    kinetic = 0.5 * (0.5 * 1 + 1.0 * 4 + 12.0 * 9)  # kJ/mol
    for constraints, remover, free in (
        ((), False, 9),
        (((0, 1, 1.0),), False, 8),
        (((0, 1, 1.0), (3, 4, 1.0)), False, 8),  # two that do not move are no matter
        ((), True, 6),
    ):
        dynamics = flying(masses, constraints, remover)
        assert dynamics.n_dof == free
        energy, temperature = dynamics.sample()
        assert energy == 0
        assert temperature == pytest.approx(2 * kinetic / free / 0.00831446, rel=1e-4)


def test_constraints_are_off_by_the_share_of_their_length():
    dynamics = flying([1.0] * 4, [(0, 1, 1.0), (1, 3, 2.0)])
    positions = np.array([[0, 0, 0], [0, 10.2, 0], [5, 5, 5], [0, 30.0, 0]])  # 10 and 20 A
    assert dynamics.constraint_error(positions) == pytest.approx(0.02)
    assert dynamics.constraint_error(positions - [[0, 0, 0], [0, 0.6, 0], [0, 0, 0], [0, 0, 0]]) == pytest.approx(0.04)
    assert flying([1.0]).constraint_error(positions) == 0


def test_steps_are_counted_sampled_and_looked_at():
    dynamics = flying([1.0, 2.0, 3.0])
    told = []
    dynamics.on_steps = told.append
    found = dynamics.stretch(40, {0, 7, 40}, np.array([0, 2]))
    expected = [[[10 * v * k / 1000, 10 * y, 0] for v, y in ((1, 0), (3, 2))] for k in (0, 7, 40)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert len(dynamics.energies) == len(dynamics.temperatures) == len(dynamics.all_temperatures) == 20
    assert (dynamics.md_steps, dynamics.biased_steps, sum(told)) == (40, 0, 40)
    assert dynamics.simulation.currentStep == 40
    energy, temperature = dynamics.relax(61)
    assert energy == 0 and temperature == pytest.approx(dynamics.temperatures[0], rel=1e-3)
    assert dynamics.biased_steps == 61 and sum(told) == 40 + 61 and max(told) <= 25
    assert dynamics.md_ps == pytest.approx(40 / 1000)
    assert dynamics.integrated_ps == pytest.approx((40 + 61) / 1000)
    np.testing.assert_allclose(dynamics.positions()[:, 0], 10 * np.arange(1, 4) * (40 + 61) / 1000)
    for _ in range(20):
        dynamics.stretch(20, {1}, np.array([0]))
    assert len(dynamics.energies) == len(dynamics.temperatures) == 200 < len(dynamics.all_temperatures) == 420


def test_the_second_half_of_a_relaxation_counts():
    dynamics = flying([1.0])
    seen = []
    dynamics.sample = lambda: seen.append(dynamics.biased_steps) or (float(dynamics.biased_steps), 0.0)
    mean, _ = dynamics.relax(400)
    assert 200 < min(seen) and max(seen) == 400 and mean == pytest.approx(np.mean(seen))
    assert np.diff(seen) == pytest.approx(200 / len(seen), abs=1)
    dynamics.biased_steps = 0
    seen.clear()
    assert dynamics.relax(1) == (1.0, 0.0) and seen == [1]


def test_positions_are_the_same_to_single_precision():
    expected = np.array([[1000.0, 0, 0], [-3, 2, 1]])
    off = 1e-4 + 4 * float(np.finfo(np.float32).eps) * 1000
    for k in range(6):
        by = np.eye(6)[k].reshape(2, 3)
        assert _close(expected + 0.99 * off * by, expected) and not _close(expected + 1.01 * off * by, expected)
        assert _close(expected - 0.99 * off * by, expected) and not _close(expected - 1.01 * off * by, expected)


def a_jump(frames, seconds, reason="", temperature=np.nan, constraint_error=0.0):
    parts = dict(zip(("seconds_forecast", "seconds_lead", "seconds_relax"), seconds, strict=True))
    return SimpleNamespace(
        accepted=not reason, reason=reason, frames=frames, temperature=temperature, constraint_error=constraint_error,
        **parts,
    )  # fmt: skip


def a_hybrid(jumps, stride_ps=0.5, step_ps=0.002, history=1, **dynamics):
    made = object.__new__(HybridPropagator)
    window = WindowSpec(stride_ps=stride_ps, n_times=4, history=history)
    made.jumps, made.model, made._md_seconds = jumps, SimpleNamespace(window=window, name="m"), 20.0
    made.dynamics = SimpleNamespace(step_ps=step_ps, **dynamics)
    return made


def test_a_summary_counts_what_was_kept_and_what_it_cost():
    jumps = [
        a_jump(3, (1.0, 2.0, 3.0), temperature=300.0, constraint_error=1e-5),
        a_jump(4, (1.0, 1.0, 1.0), "work: 5 kJ/mol", constraint_error=1.0),
        a_jump(2, (2.0, 3.0, 4.0), temperature=320.0, constraint_error=3e-5),
        a_jump(4, (0.0, 0.0, 6.0), "work: 7 kJ/mol"),
        a_jump(0, (0.0, 0.0, 0.0), "not finite"),
    ]
    made = a_hybrid(jumps, md_ps=10.0, integrated_ps=14.0, all_temperatures=[290.0, 311.0])
    found = made.summary()
    assert (found.jumps, found.accepted, found.rolled_back) == (5, 2, {"work": 2, "not finite": 1})
    assert (found.md_ps, found.jump_ps, found.integrated_ps) == (10.0, 2.5, 14.0)
    assert found.seconds_per_md_ps == 2.0 and found.seconds_per_jump == pytest.approx(24 / 5)
    assert found.cost_ratio == pytest.approx(24 / (2.0 * 2.5))  # of a ps along jumps to one of MD
    assert (found.temperature_md, found.temperature_relaxed, found.constraint_error) == (300.5, 310.0, 3e-5)
    nothing = a_hybrid([], md_ps=0.0, integrated_ps=0.0, all_temperatures=[]).summary()
    assert nothing.jumps == nothing.accepted == nothing.jump_ps == nothing.constraint_error == 0
    for name in ("seconds_per_md_ps", "seconds_per_jump", "cost_ratio", "temperature_md", "temperature_relaxed"):
        assert np.isnan(getattr(nothing, name))


@pytest.mark.parametrize(("sound", "kept"), [(True, 5), (False, 2)])
def test_the_row_of_a_jump_says_how_much_of_the_run_there_is(sound, kept):
    made = a_hybrid(
        [a_jump(2, (0.0, 0.0, 0.0)), a_jump(9, (0.0, 0.0, 0.0), "work: 5")],
        md_ps=10.0, energies=[1.0, 3.0], temperatures=[290.0, 310.0],
    )  # fmt: skip
    attempt = SimpleNamespace(
        found={"work": 7.0}, seconds={"forecast": 1.5}, frames=3, sound=sound, step=77,
        reason="" if sound else "lead: 9",
    )  # fmt: skip
    row = made._record(attempt, 4.0)
    assert (row.jump, row.step, row.accepted, row.frames, row.work) == (2, 77, sound, 3, 7.0)
    assert row.represented_ps == 10 + 0.5 * kept and row.md_ps == 10.0 and row.seconds_md == 4.0
    assert (row.energy_mean, row.energy_sd, row.temperature_mean, row.temperature_sd) == (2.0, 1.0, 300.0, 10.0)
    assert (row.seconds_forecast, row.seconds_lead, row.seconds_relax) == (1.5, 0.0, 0.0)
    assert np.isnan(row.rmsd_led)


def test_a_stride_is_a_whole_number_of_steps_to_a_thousandth():
    assert a_hybrid([], 0.1, 0.002)._steps_per_stride() == 50
    for off, fits in ((0.9e-3, True), (-0.9e-3, True), (1.1e-3, False), (-1.1e-3, False)):
        made = a_hybrid([], 0.1, 0.002 * (1 + off))
        if fits:
            assert made._steps_per_stride() == 50
        else:
            with pytest.raises(ModelError, match="not a whole number"):
                made._steps_per_stride()
    with pytest.raises(ModelError, match="steps of 500 fs"):
        a_hybrid([], 0.1, 0.5)._steps_per_stride()
    for history, strides in ((1, 2), (3, 6)):  # what the model reads, twice
        made = a_hybrid([], history=history)
        made._stride_steps = 50
        assert made.default_md_steps == 50 * strides


@pytest.mark.parametrize(
    ("side", "atoms", "no_box", "kept"),
    [
        (1.0, 41, None, True),  # of carbon in a cubic nm: 0.82 g/cm^3
        (1.0, 40, None, False),  # 0.798
        (1.0, 10, False, True),
        (1.0, 41, True, False),
        (0.1, 1, None, False),  # how a PDB file says that there is none
        (0.12, 1, None, True),
    ],
)
def test_a_box_is_kept_where_it_is_full(side, atoms, no_box, kept):
    topology, told = openmm.app.Topology(), []
    residue = topology.addResidue("UNK", topology.addChain())
    for _ in range(atoms):
        topology.addAtom("C", openmm.app.element.carbon, residue)
    topology.addAtom("X", None, residue)
    topology.setPeriodicBoxVectors(np.diag([side] * 3) * openmm.unit.nanometer)
    _settle_box(SimpleNamespace(topology=topology), no_box, told.append)
    assert (topology.getPeriodicBoxVectors() is not None) == kept
    left_out = [f"box of 10.0 x 10.0 x 10.0 A left out: {atoms * 12.011 * 1.66054e-3:.2f} g/cm^3"]
    assert [line.partition(" are in it")[0] for line in told] == (left_out if (no_box, atoms) == (None, 40) else [])


class Led:
    """Atoms that follow their restraints, or stand still, and what was done to them."""

    def __init__(self, follows, step_ps):
        self.follows, self.step_ps, self.now, self.done, self.seen, self.strengths = follows, step_ps, None, [], [], []
        self.simulation = SimpleNamespace(context=self)

    def setParameter(self, name, value):
        self.strengths.append(value)

    def setParticleParameters(self, k, bead, target):
        self.seen.append((k, bead, 10 * np.asarray(target)))

    def updateParametersInContext(self, context):
        targets = np.array([target for *_, target in self.seen[-2:]])
        self.now = targets if self.follows or self.now is None else self.now

    def biased(self, steps):
        self.done.append(steps)

    def positions(self):
        out = np.full((5, 3), 99.0)
        out[[1, 3]] = self.now
        return out


@pytest.mark.parametrize(
    ("step_ps", "lead_steps", "frames", "parts"),
    [
        (0.002, 20, 3, [5, 5, 5, 5]),  # the restraints move every 0.01 ps
        (0.004, 20, 3, [2] * 10),  # 2.5 steps, rounded to the even one
        (0.002, 20, 2, [5, 5, 3]),  # two thirds of the way
        (0.02, 3, 3, [1, 1, 1]),
        (0.002, 1, 1, [1]),
    ],
)
@pytest.mark.parametrize("follows", [True, False])
def test_beads_are_led_straight_from_frame_to_frame(step_ps, lead_steps, frames, parts, follows):
    made, led = object.__new__(Jumper), Led(follows, step_ps)
    made.dynamics, made.guide, made.beads, made.strength = led, led, np.array([1, 3]), 500.0
    made._lead_steps, made.horizon = lead_steps, 3
    path = np.cumsum(np.random.default_rng(0).normal(size=(frames + 1, 2, 3)), axis=0)
    work = made._lead(path)
    assert led.done == parts and led.strengths == [500.0, 0.0]
    places = np.cumsum([0, *parts]) / sum(parts) * frames
    targets = [np.stack([np.interp(x, np.arange(frames + 1), path[:, i, k]) for i in (0, 1) for k in range(3)])
               for x in places]  # fmt: skip
    np.testing.assert_allclose([t.ravel() for *_, t in led.seen], np.reshape(targets, (-1, 3)), atol=1e-9)
    assert [bead for _, bead, _ in led.seen[:2]] == [1, 3]
    squares = [np.sum((b - a) ** 2) for a, b in zip(targets, targets[1:], strict=False)]
    # Restraints that are followed cost what each of their steps does; those that are not are taken off again.
    np.testing.assert_allclose(work, 0.5 * 500 * sum(squares) / 100 if follows else 0.0, atol=1e-9)


def test_random_numbers_go_on_from_words_of_32_bits():
    streams = Streams.of(3, [7], 1)
    for drawn in (0, 1, 5):
        streams.generators[0].standard_normal(drawn)
        streams.generators[0].integers(9, dtype=np.uint32)  # which keeps half a number
        words = _words(streams)
        assert len(words) == 10 and all(0 <= word < 2**32 and word == int(float(word)) for word in words)
        again = _streams(words)
        assert again.state == streams.state
        expected = np.random.Generator(np.random.PCG64())
        expected.bit_generator.state = streams.state[0]
        assert again.generators[0].random() == expected.random()
    assert _words(Streams.of(3, [8], 1)) != _words(Streams.of(3, [7], 1)) != _words(Streams.of(4, [7], 1))


def test_a_single_frame_stands_still():
    past = np.arange(12.0).reshape(4, 1, 3)
    np.testing.assert_array_equal(_pair(past), past[2:])
    np.testing.assert_array_equal(_pair(past[:2]), past[:2])
    np.testing.assert_array_equal(_pair(past[:1]), past[[0, 0]])
