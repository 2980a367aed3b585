"""What the propagators refuse, and what they leave alone then; real Contexts and the real command line."""

from __future__ import annotations

import subprocess
import sys

import MDAnalysis as mda
import numpy as np
import openmm
import pytest
from click.testing import CliRunner
from openmm import app, unit
from test_propagator import DIPEPTIDE, chain_universe, heavy_model, moving_model, positions_of

from egno_md.cli import main
from egno_md.errors import DataError, ModelError, UsageError
from egno_md.propagator import (
    EGNOIntegrator,
    HybridPropagator,
    JumpLimits,
    load_simulation,
    surrogate_simulation,
)

PS = unit.picosecond


@pytest.fixture()
def pdb(tmp_path):
    path = tmp_path / "in" / "ala2.pdb"
    path.parent.mkdir()
    path.write_text(DIPEPTIDE)
    return path


@pytest.fixture()
def simulation(pdb):
    return load_simulation(pdb, equilibrate_ps=0, platform="CPU", seed=1)


@pytest.fixture()
def beads():
    return chain_universe(), moving_model()


def extend(pdb, *arguments):
    return CliRunner().invoke(main, ["extend", str(pdb), "--platform", "CPU", *map(str, arguments)])


# Beads that cannot be led


def test_fewer_than_four_beads_are_refused_and_nothing_is_added(simulation):
    n_forces = simulation.system.getNumForces()
    for arguments, count in ((("ca-1ps",), "1 atom"), ((heavy_model(), None, "name CA CB"), "2 atoms")):
        with pytest.raises(DataError, match=f"has {count};.*at least 4: give a model"):
            HybridPropagator(simulation, *arguments)
        assert simulation.system.getNumForces() == n_forces
    hybrid = HybridPropagator(simulation, heavy_model(), lead_ps=0.1, relax_ps=0.1)  # as the message says
    hybrid.run(1, 100)
    assert hybrid.jumps[0].forecast_moved > 0


def test_a_guide_for_others_goes_as_the_message_says(simulation):
    HybridPropagator(simulation, heavy_model())
    with pytest.raises(ModelError, match=r"other particles \(10\) than those of the selection \(7\)") as error:
        HybridPropagator(simulation, heavy_model(), select="name CA C N CB")
    first, second = str(error.value).partition("any more, ")[2].split(" and ")
    before = positions_of(simulation)
    eval(first), eval(second)
    hybrid = HybridPropagator(simulation, heavy_model(), select="name CA C N CB", lead_ps=0.1, relax_ps=0.1)
    np.testing.assert_array_equal(positions_of(simulation), before)
    assert hybrid.run(1, 100).jumps == 1 and len(hybrid.beads) == 7


# Arguments of Python


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lead_ps": 1 * PS}, "lead_ps.*a bare number in ps, found 1 ps"),
        ({"relax_ps": "2"}, "relax_ps.*found '2'"),
        ({"strength": float("inf")}, "strength.*found inf"),
        ({"limits": {"work": 3}}, r"limits must be JumpLimits, found \{'work': 3\}"),
        ({"horizon": 8 * PS}, "horizon.*found 8 ps"),
        ({"horizon": float("nan")}, "horizon.*found nan"),
        ({"model": 7}, "model must be a name, a file or a Model, found int"),
        ({"seed": 1.0}, "seed"),
    ],
)
def test_arguments_of_the_hybrid_are_refused_in_one_line(simulation, arguments, words):
    n_forces = simulation.system.getNumForces()
    with pytest.raises(UsageError, match=words):
        HybridPropagator(simulation, **{"model": heavy_model(), **arguments})
    assert simulation.system.getNumForces() == n_forces


def test_other_things_than_a_simulation_limits_and_counts(simulation):
    with pytest.raises(UsageError, match="must be an openmm.app.Simulation, found Universe"):
        HybridPropagator(chain_universe(), heavy_model())
    with pytest.raises(UsageError, match="work of JumpLimits must be a bare number, found '3'"):
        JumpLimits(work="3")
    hybrid = HybridPropagator(simulation, heavy_model(), limits=JumpLimits(work=float("inf")))
    for arguments in ((1 * PS,), ("3",), (float("nan"),), (1, 1 * PS), (1, float("inf"))):
        with pytest.raises(UsageError, match="must be a whole number"):
            hybrid.run(*arguments)
    assert hybrid.dynamics.md_steps == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 300 * unit.kelvin},
        {"friction": float("nan")},
        {"step_fs": 2 * unit.femtosecond},
        {"equilibrate_ps": 1 * PS},
        {"seed": 2**31},
        {"platform": 5},
    ],
)
def test_arguments_of_load_simulation_are_refused_before_the_file_is_read(arguments, tmp_path):
    with pytest.raises(UsageError, match=next(iter(arguments))):
        load_simulation(tmp_path / "missing.pdb", **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"universe_or_atomgroup": "a.pdb"}, "MDAnalysis Universe or AtomGroup or an mdtraj Trajectory, found str"),
        ({"model": 5}, "a loaded Model, found int"),
        ({"every": 1 * PS}, "every.*found 1 ps"),
        ({"platform": "Foo"}, "no platform 'Foo' here; choose one of Reference"),
    ],
)
def test_arguments_of_the_surrogate_simulation(beads, arguments, words):
    universe, model = beads
    with pytest.raises(UsageError, match=words):
        surrogate_simulation(**{"universe_or_atomgroup": universe, "model": model, **arguments})


def test_arguments_of_the_integrator(beads):
    universe, model = beads
    with pytest.raises(UsageError, match="a Model, found AtomGroup"):
        EGNOIntegrator(universe.atoms, model)
    with pytest.raises(UsageError, match="number must be"):
        EGNOIntegrator(model, universe.atoms, number=-3)
    simulation = surrogate_simulation(universe, model)
    integrator = simulation.integrator
    with pytest.raises(UsageError, match="simulation.context.*found Simulation"):
        integrator.bind(simulation)
    for steps in ("3", 1.5, 8 * PS):
        with pytest.raises(UsageError, match="steps must be a whole number"):
            integrator.step(steps)
    with pytest.raises(UsageError, match=r"of shape \(2, 14, 3\), found AtomGroup"):
        integrator.set_history(universe.atoms)
    frames = universe.trajectory.timeseries(order="fac")[:2]
    integrator.set_history((frames / 10) * unit.nanometer)
    np.testing.assert_allclose(positions_of(simulation), frames[1], atol=1e-5)


def test_a_serialised_integrator_does_not_run_without_its_network(beads):
    simulation = surrogate_simulation(*beads)
    copy = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(simulation.integrator))
    for platform in ("Reference", "CPU"):
        copied = app.Simulation(
            simulation.topology,
            simulation.system,
            openmm.XmlSerializer.clone(copy),
            openmm.Platform.getPlatform(platform),
        )
        copied.context.setPositions(simulation.context.getState(positions=True).getPositions())
        with pytest.raises(openmm.OpenMMException, match="cannot be deserialised.*make it anew"):
            copied.step(8)
        assert copied.context.getTime() == 0 * PS
    simulation.step(1)  # the one with a network does
    assert simulation.context.getState(energy=True).getKineticEnergy()._value > 0


def test_the_box_that_openmm_invents_is_taken_away_as_documented(beads):
    u = mda.Universe(surrogate_simulation(*beads))
    u.dimensions = None
    assert u.dimensions is None and u.copy().dimensions is None


# The command line


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--temperature", value) for value in ("-5", "0", "nan")),
        *(("--friction", value) for value in ("-1", "inf")),
        *(("--step-fs", value) for value in ("0", "-2", "5", "nan")),
        *(("--equilibrate-ps", value) for value in ("-1", "inf")),
        *(("--jumps", value) for value in ("0", "-1")),
        *(("--seed", value) for value in ("-1", "2147483648")),
        ("--md-steps", "0"),
        ("--report", "2147483648"),
        ("--lead-ps", "nan"),
        ("--relax-ps", "-1"),
        ("--strength", "0"),
    ],
)
def test_numbers_of_extend_are_refused_before_any_work(pdb, tmp_path, arguments):
    result = extend(pdb, "-o", tmp_path / "out.dcd", *arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert arguments[0] in result.output and "prepared" not in result.output
    assert list(tmp_path.iterdir()) == [pdb.parent]


def test_beads_of_extend_are_refused_before_minimisation_and_leave_no_file(pdb, tmp_path):
    heavy_model().save(pdb.parent / "heavy.safetensors")
    for arguments, words in (
        ((), "has 1 atom; "),
        (("--select", "name CB"), "was not made for"),
        (("--model", pdb.parent / "heavy.safetensors", "--select", "name CA CB"), "has 2 atoms; "),
    ):
        result = extend(pdb, "-o", tmp_path / "out.dcd", *arguments)
        assert result.exit_code == 1 and words in result.output and "minimisation" not in result.output
        assert list(tmp_path.iterdir()) == [pdb.parent]


def test_an_equilibration_that_explodes_is_one_line(pdb, tmp_path):
    heavy_model().save(pdb.parent / "heavy.safetensors")
    hot = ("--temperature", "1e12", "--model", pdb.parent / "heavy.safetensors", "--equilibrate-ps", "1")
    result = extend(pdb, "-o", tmp_path / "out.dcd", *hot)
    assert result.exit_code == 1 and "became unstable" in result.output and "--temperature" in result.output


def test_a_jump_says_what_it_stands_for_and_what_the_clock_says(pdb, tmp_path):
    heavy_model().save(pdb.parent / "heavy.safetensors")
    command = [sys.executable, "-m", "egno_md", "extend", str(pdb), "--platform", "CPU", "--equilibrate-ps", "0.2"]
    command += ["--jumps", "2", "--md-steps", "100", "--lead-ps", "0.2", "--relax-ps", "0.2", "--seed", "1"]
    command += ["--model", str(pdb.parent / "heavy.safetensors"), "-o", str(tmp_path / "out.dcd")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("jump")]
    clock = 0.0
    for line in said:
        clock += 0.2 + 0.4 * ("accepted, stands for 0.4 ps by the model's stride" in line)
        assert line.endswith(f"; {clock:g} ps of MD and jumps so far")
    assert len(said) == 2 and f"stand for {clock - 0.4:g} ps" in done.stdout
