"""The forecaster inside OpenMM; real Contexts throughout, on small systems."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import resource
import signal
from contextlib import contextmanager

import MDAnalysis as mda
import mdtraj
import numpy as np
import openmm
import pytest
import torch
from click.testing import CliRunner
from MDAnalysis.coordinates.memory import MemoryReader
from openmm import app, unit

from egno_md import EGNOSurrogate
from egno_md.cli import main
from egno_md.errors import DataError, ModelError, OutputError, UnphysicalError, UsageError
from egno_md.forecast.model import new_model
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run, TrajectoryWindows
from egno_md.progress import Progress
from egno_md.propagator import (
    GUIDE,
    EGNOIntegrator,
    HybridPropagator,
    JumpLimits,
    add_guide,
    beads,
    load_simulation,
    surrogate_simulation,
)
from egno_md.propagator import jump as jump_module
from egno_md.propagator.dynamics import Dynamics
from egno_md.propagator.jump import Jumper
from egno_md.specs import GraphSpec, ModelSpec, WindowSpec
from egno_md.training.source import elastic

PS = unit.picosecond


def moving_model(graph=None, stride=1.0, n_times=8, history=1, size=0.15, **window):
    """A small network that is not trained but moves the atoms by some tenths of an Angstrom."""
    graph = graph or GraphSpec(node_features=("speed",), n_rbf=4)
    spec = ModelSpec(hidden=8, layers=2, time_embedding=8, start="static", length_scale=4.0)
    model = new_model(graph, WindowSpec(stride_ps=stride, n_times=n_times, history=history, **window), spec)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def chain_universe(n_frames=12, n=14, box=None, dt=1.0, seed=0):
    """C-alpha atoms on a helix that jiggles and drifts."""
    rng = np.random.default_rng(seed)
    angle = np.radians(100) * np.arange(n)
    helix = np.stack([2.3 * np.cos(angle), 2.3 * np.sin(angle), 1.5 * np.arange(n)], axis=1)
    frames = helix + 20 + 0.1 * np.arange(n_frames)[:, None, None] + 0.2 * rng.standard_normal((n_frames, n, 3))
    universe = mda.Universe.empty(n, n, 1, atom_resindex=np.arange(n), residue_segindex=[0] * n, trajectory=True)
    universe.add_TopologyAttr("names", ["CA"] * n)
    universe.add_TopologyAttr("elements", ["C"] * n)
    universe.add_TopologyAttr("masses", [12.011] * n)
    universe.add_TopologyAttr("resnames", ["ALA"] * n)
    universe.add_TopologyAttr("resids", np.arange(1, n + 1))
    universe.add_TopologyAttr("segids", ["A"])
    dimensions = None if box is None else np.tile(np.asarray(box, np.float32), (n_frames, 1))
    universe.load_new(frames.astype(np.float32), format=MemoryReader, dt=dt, dimensions=dimensions)
    universe.trajectory[n_frames - 1]
    return universe


def positions_of(simulation):
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value * 10


@pytest.fixture(scope="module")
def model():
    return moving_model()


@pytest.fixture()
def universe():
    return chain_universe()


# ---------------------------------------------------------------------------------------------------------------------
# EGNOIntegrator


@pytest.mark.parametrize("horizon", [8, 21])
def test_steps_are_the_frames_of_the_analysis(model, universe, horizon):
    expected = EGNOSurrogate(universe, model, horizon=horizon).run().results.positions[0]
    assert np.abs(expected[-1] - expected[0]).max() > 0.05  # otherwise this test says nothing

    one_by_one = surrogate_simulation(universe, model)
    singles = []
    for _ in range(horizon):
        one_by_one.step(1)
        singles.append(positions_of(one_by_one))
    at_once = surrogate_simulation(universe, model)
    at_once.step(horizon)

    np.testing.assert_allclose(singles, expected, atol=2e-5)
    np.testing.assert_allclose(positions_of(at_once), singles[-1], atol=1e-6)


def test_context_holds_time_steps_and_velocities(model, universe):
    simulation = surrogate_simulation(universe, model)
    frames = universe.trajectory.timeseries(order="fac")[-2:].astype(float)
    state = simulation.context.getState(velocities=True)
    np.testing.assert_allclose(10 * state.getVelocities(asNumpy=True)._value, frames[1] - frames[0], atol=1e-5)

    simulation.step(4)
    before = positions_of(simulation)
    simulation.step(1)
    state = simulation.context.getState(positions=True, velocities=True)
    assert simulation.currentStep == 5
    assert simulation.integrator.getStepSize() == 1.0 * PS
    assert state.getTime()._value == pytest.approx(universe.trajectory.time + 5)
    np.testing.assert_allclose(
        10 * state.getVelocities(asNumpy=True)._value, positions_of(simulation) - before, atol=2e-5
    )


def test_bound_by_hand_it_forecasts_from_the_context_and_from_nothing_else(model, universe, monkeypatch):
    pasts, real = [], beads.roll

    def roll(*arguments, state, **options):
        pasts.append(state.past[0, 0] + state.centre[0, 0])
        return real(*arguments, state=state, **options)

    expected = surrogate_simulation(universe, model)
    state = expected.context.getState(positions=True, velocities=True)
    integrator = EGNOIntegrator(model, universe.atoms)
    context = openmm.Context(expected.system, integrator, openmm.Platform.getPlatform("Reference"))
    integrator.bind(context)
    context.setPositions(state.getPositions())
    context.setVelocities(state.getVelocities())
    monkeypatch.setattr(beads, "roll", roll)
    integrator.step(2)
    monkeypatch.undo()
    frames = universe.trajectory.timeseries(order="fac")[-2:]
    np.testing.assert_allclose(pasts, frames[None], atol=1e-5)
    expected.step(2)
    found = context.getState(positions=True).getPositions(asNumpy=True)._value * 10
    np.testing.assert_allclose(found, positions_of(expected), atol=2e-5)


@pytest.mark.parametrize("how", ["checkpoint", "state"])
@pytest.mark.parametrize("steps", [3, 8, 11])
def test_restart_in_a_new_simulation_goes_on(model, universe, tmp_path, how, steps):
    simulation = surrogate_simulation(universe, model)
    simulation.step(steps)
    path = str(tmp_path / "restart")
    (simulation.saveCheckpoint if how == "checkpoint" else simulation.saveState)(path)
    simulation.step(9)

    universe.trajectory[4]  # another start: all must come from the file
    restarted = surrogate_simulation(universe, model)
    (restarted.loadCheckpoint if how == "checkpoint" else restarted.loadState)(path)
    restarted.step(9)
    np.testing.assert_array_equal(positions_of(restarted), positions_of(simulation))
    assert restarted.currentStep == steps + 9
    assert restarted.context.getTime() == simulation.context.getTime()


def test_positions_from_outside_start_a_new_forecast(model, universe):
    simulation = surrogate_simulation(universe, model)
    simulation.step(3)
    velocities = simulation.context.getState(velocities=True).getVelocities(asNumpy=True)._value * 10
    universe.trajectory[5]
    outside = universe.atoms.positions.astype(float)
    simulation.context.setPositions(outside / 10)
    simulation.step(2)

    fresh = surrogate_simulation(universe, model)
    fresh.integrator.set_history(np.stack([outside - velocities, outside]))
    fresh.step(2)
    np.testing.assert_allclose(positions_of(simulation), positions_of(fresh), atol=2e-5)
    assert simulation.currentStep == 5

    # Velocities alone count as well.
    simulation.context.setVelocities(np.full_like(outside, 0.05))
    start = positions_of(simulation)
    simulation.step(1)
    fresh.integrator.set_history(np.stack([start - 0.5, start]))
    fresh.step(1)
    np.testing.assert_allclose(positions_of(simulation), positions_of(fresh), atol=2e-5)


def test_history_of_a_trajectory_model(universe):
    model = moving_model(n_times=4, history=4)
    expected = EGNOSurrogate(universe, model, horizon=9).run().results.positions[0]
    simulation = surrogate_simulation(universe, model)
    for _ in range(9):
        simulation.step(1)
    np.testing.assert_allclose(positions_of(simulation), expected[-1], atol=2e-5)
    simulation.context.setPositions(positions_of(simulation) / 10 + 0.01)
    with pytest.raises(ModelError, match="set_history"):
        simulation.step(1)
    universe.trajectory[2]
    with pytest.raises(DataError, match="start at frame 4"):
        surrogate_simulation(universe, model)


@pytest.mark.parametrize("box", [[60, 70, 80, 90, 90, 90], [60, 60, 60, 60, 60, 90]])
def test_stock_reporters_with_a_box(model, tmp_path, box):
    universe = chain_universe(box=box)
    simulation = surrogate_simulation(universe, model)
    start = universe.trajectory.time
    names = {kind: str(tmp_path / f"out.{kind}") for kind in ("dcd", "xtc", "pdb", "cif", "csv", "chk", "md.dcd")}
    simulation.reporters += [
        app.DCDReporter(names["dcd"], 2),
        app.XTCReporter(names["xtc"], 2),
        app.PDBReporter(names["pdb"], 2),
        app.PDBxReporter(names["cif"], 2),
        app.StateDataReporter(names["csv"], 2, step=True, time=True, kineticEnergy=True),
        app.CheckpointReporter(names["chk"], 2),
        mdtraj.reporters.DCDReporter(names["md.dcd"], 2),
    ]
    expected = []
    for _ in range(5):
        simulation.step(2)
        expected.append(positions_of(simulation))
    for reporter in simulation.reporters:
        if hasattr(reporter, "close"):
            reporter.close()
    simulation.reporters.clear()

    lattice = simulation.context.getState().getPeriodicBoxVectors(asNumpy=True)._value * 10
    assert abs(np.linalg.det(lattice)) == pytest.approx(universe.trajectory.ts.volume, rel=1e-5)
    for kind in ("dcd", "xtc", "md.dcd"):
        read = mda.Universe(names["pdb"], names[kind])
        assert read.trajectory.n_frames == 5
        atol = 0.02 if kind == "xtc" else 1e-4
        np.testing.assert_allclose(read.trajectory.timeseries(order="fac"), expected, atol=atol)
        assert read.trajectory.ts.volume == pytest.approx(abs(np.linalg.det(lattice)), rel=1e-3)
        if kind != "md.dcd":  # mdtraj's DCD files hold no times
            assert read.trajectory.dt == pytest.approx(2.0, rel=1e-4)
    traj = mdtraj.load(names["xtc"], top=names["pdb"])
    np.testing.assert_allclose(traj.time, 2 * np.arange(1, 6), atol=1e-3)  # OpenMM's XTC files count from 0
    np.testing.assert_allclose(10 * mdtraj.load(names["dcd"], top=names["pdb"]).xyz, expected, atol=1e-3)
    assert [residue.name for residue in traj.topology.residues] == ["ALA"] * 14
    cif = app.PDBxFile(names["cif"])
    np.testing.assert_allclose(10 * cif.getPositions(asNumpy=True, frame=4)._value, expected[4], atol=1e-2)
    rows = list(csv.reader(open(names["csv"])))[1:]
    assert [int(row[0]) for row in rows] == [2, 4, 6, 8, 10]
    np.testing.assert_allclose([float(row[1]) for row in rows], start + 2 * np.arange(1, 6))
    fresh = surrogate_simulation(universe, model)
    fresh.loadCheckpoint(names["chk"])
    np.testing.assert_array_equal(positions_of(fresh), expected[-1])


def test_universe_of_the_simulation(model):
    universe = chain_universe(box=[60, 70, 80, 90, 90, 90])
    simulation = surrogate_simulation(universe, model)
    simulation.step(3)
    read = mda.Universe(simulation)
    np.testing.assert_allclose(read.atoms.positions, positions_of(simulation), atol=1e-4)
    np.testing.assert_allclose(read.dimensions, [60, 70, 80, 90, 90, 90], rtol=1e-5)
    np.testing.assert_allclose(read.atoms.masses, 12.011, atol=1e-3)
    assert list(read.atoms.names) == ["CA"] * 14
    assert len(read.bonds) == 13
    assert read.trajectory.ts.time == pytest.approx(universe.trajectory.time + 3)


def test_nan_leaves_context_and_file_as_they_were(model, universe, tmp_path):
    simulation = surrogate_simulation(universe, model)
    simulation.reporters.append(app.DCDReporter(str(tmp_path / "out.dcd"), 1))
    simulation.step(6)
    weight = next(simulation.integrator.model.network.parameters())
    kept = weight.detach().clone()
    before = positions_of(simulation)
    with torch.no_grad():
        weight.fill_(float("nan"))
    try:
        with pytest.raises(ModelError, match="not finite"):
            simulation.step(5)  # two more from the window, then the next one
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    # Frames 7 and 8 were forecast before the weights broke; the step to frame 9 was undone.
    assert simulation.currentStep == 8
    simulation.step(2)
    simulation.reporters.clear()
    read = mda.Universe(app_pdb(simulation, tmp_path), str(tmp_path / "out.dcd"))
    assert read.trajectory.n_frames == 10
    assert np.isfinite(read.trajectory.timeseries()).all()
    np.testing.assert_allclose(read.trajectory[5].positions, before, atol=1e-4)

    broken = positions_of(simulation)
    broken[3] = np.nan
    simulation.context.setPositions(broken / 10)
    with pytest.raises(DataError, match="not finite"):
        simulation.step(1)
    assert simulation.currentStep == 10


def app_pdb(simulation, folder):
    path = folder / "top.pdb"
    with open(path, "w") as stream:
        app.PDBFile.writeFile(simulation.topology, positions_of(simulation) * unit.angstrom, stream)
    return str(path)


def test_bad_input_of_the_integrator(model, universe):
    with pytest.raises(UsageError, match="cuda"):
        surrogate_simulation(universe, model, device="cuda")
    with pytest.raises(ModelError, match="every=2"):
        surrogate_simulation(chain_universe(dt=0.5), model)
    with pytest.raises(UsageError, match="every"):
        surrogate_simulation(universe, model, every=0)
    with pytest.raises(ModelError, match="selection is 'ca'"):
        other = universe.copy()
        other.atoms[0].name = "CB"
        surrogate_simulation(other, model, select="all")
    with pytest.raises(ModelError, match="forward"):
        surrogate_simulation(universe, moving_model(velocity="forward"))

    integrator = EGNOIntegrator(model, universe.atoms)
    with pytest.raises(UsageError, match="bind"):
        integrator.step(1)
    system = openmm.System()
    for _ in range(5):
        system.addParticle(12.0)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    with pytest.raises(ModelError, match="5 particles, the selection has 14"):
        integrator.bind(context)

    simulation = surrogate_simulation(universe, model)
    simulation.integrator.setStepSize(0.002)
    with pytest.raises(ModelError, match="step size"):
        simulation.step(1)
    bad = universe.copy()
    bad.atoms[2].position = [np.nan] * 3
    with pytest.raises(DataError, match="not finite"):
        surrogate_simulation(bad, model)


@pytest.mark.parametrize("how", ["constraint", "virtual site"])
def test_a_system_that_a_forecast_would_break_is_refused(model, universe, how):
    system = openmm.System()
    for k in range(14):
        system.addParticle(12.0 if how == "constraint" or k != 2 else 0.0)
    if how == "constraint":
        system.addConstraint(0, 1, 0.4)
    else:
        system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    integrator = EGNOIntegrator(model, universe.atoms)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    with pytest.raises(ModelError, match="constraints or virtual sites"):
        integrator.bind(context)


def test_beads_have_masses_and_numbers_where_the_topology_has_none(model, universe):
    universe.atoms.masses = [13.5] + 13 * [0.0]
    universe.atoms[2].element, universe.atoms[4].element = "", "X"  # a dummy, in no periodic table
    universe.del_TopologyAttr("resids")
    simulation = surrogate_simulation(universe, model)
    masses = [simulation.system.getParticleMass(k)._value for k in range(5)]
    assert masses == pytest.approx([13.5, 12.011, 1.0, 12.011, 1.0], abs=1e-3)
    assert [residue.id for residue in simulation.topology.residues()] == [str(k) for k in range(1, 15)]


def test_first_frame_has_no_past(model, universe):
    universe.trajectory[0]
    with pytest.warns(UserWarning, match="taken as zero"):
        simulation = surrogate_simulation(universe, model)
    assert not np.any(simulation.context.getState(velocities=True).getVelocities(asNumpy=True)._value)
    with pytest.warns(UserWarning, match="taken as zero"):
        expected = EGNOSurrogate(universe, model).run(frames=[0]).results.positions[0]
    simulation.step(8)
    np.testing.assert_allclose(positions_of(simulation), expected[-1], atol=2e-5)


@contextmanager
def full_disk(size):
    """Files cannot grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_under_a_reporter(model, universe, tmp_path):
    simulation = surrogate_simulation(universe, model)
    path = tmp_path / "out.dcd"
    simulation.reporters.append(app.DCDReporter(str(path), 1))
    simulation.step(4)
    size = path.stat().st_size
    with full_disk(size + 10), pytest.raises(OSError, match="too large"):
        simulation.step(1)
    # The Context has the frame; what was written before is intact.
    assert simulation.currentStep == 5
    assert np.isfinite(positions_of(simulation)).all()


# ---------------------------------------------------------------------------------------------------------------------
# HybridPropagator

HEAVY = GraphSpec(select="heavy", node_features=("speed",), edge_features=("rbf", "hop"), n_rbf=4)


def heavy_model(**kwargs):
    """For short runs: a stride of 0.1 ps and four frames."""
    return moving_model(HEAVY, **{"stride": 0.1, "n_times": 4, "size": 0.005, **kwargs})


@pytest.fixture(scope="module")
def dipeptide():
    """Alanine dipeptide (ACE-ALA-NME), built and relaxed by OpenMM: topology, implicit System, positions in nm."""
    topology, positions = build_dipeptide()
    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    system = field.createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context)
    return topology, system, context.getState(positions=True).getPositions(asNumpy=True)._value


def build_dipeptide():
    pdb = app.PDBFile(io.StringIO(DIPEPTIDE))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(app.ForceField("amber14-all.xml"), platform=openmm.Platform.getPlatform("Reference"))
    return modeller.topology, modeller.positions


DIPEPTIDE = """\
HETATM    1  CH3 ACE A   1       5.200  13.600   8.800  1.00  0.00           C
HETATM    2  C   ACE A   1       6.100  12.500   9.400  1.00  0.00           C
HETATM    3  O   ACE A   1       6.400  12.500  10.600  1.00  0.00           O
ATOM      4  N   ALA A   2       6.600  11.600   8.500  1.00  0.00           N
ATOM      5  CA  ALA A   2       7.300  10.400   9.100  1.00  0.00           C
ATOM      6  CB  ALA A   2       6.200   9.500   9.600  1.00  0.00           C
ATOM      7  C   ALA A   2       8.400   9.800   8.200  1.00  0.00           C
ATOM      8  O   ALA A   2       8.400   9.900   7.000  1.00  0.00           O
HETATM    9  N   NME A   3       9.300   9.000   8.800  1.00  0.00           N
HETATM   10  C   NME A   3      10.500   8.400   8.300  1.00  0.00           C
END
"""


def dipeptide_simulation(dipeptide, *, steps=200, integrator=None, guided=False):
    topology, system, positions = dipeptide
    system = openmm.XmlSerializer.clone(system)
    if guided:
        add_guide(system, [atom.index for atom in topology.atoms() if atom.element.symbol != "H"])
    if integrator is None:
        integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.002)
        integrator.setRandomNumberSeed(11)
    cpu = openmm.Platform.getPlatform("CPU")
    simulation = app.Simulation(topology, system, integrator, cpu, {"Threads": "1", "DeterministicForces": "true"})
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300, 5)
    if steps:
        simulation.step(steps)
    return simulation


def short(simulation, model=None, **kwargs):
    kwargs = {"lead_ps": 0.1, "relax_ps": 0.1, **kwargs}
    return HybridPropagator(simulation, model or heavy_model(), **kwargs)


def test_hybrid_run(dipeptide, tmp_path):
    simulation = dipeptide_simulation(dipeptide)
    time, step = simulation.context.getTime()._value, simulation.currentStep
    simulation.reporters.append(app.DCDReporter(str(tmp_path / "out.dcd"), 50))
    hybrid = short(simulation)
    elements = [atom.element.symbol for atom in simulation.topology.atoms()]
    assert [elements[k] for k in hybrid.beads] == [symbol for symbol in elements if symbol != "H"]
    summary = hybrid.run(6, 100, log=tmp_path / "jumps.csv")
    simulation.reporters.clear()

    assert summary.jumps == 6 and summary.accepted >= 4
    assert summary.md_ps == pytest.approx(1.2)
    assert summary.jump_ps == pytest.approx(0.4 * summary.accepted)
    assert summary.integrated_ps == pytest.approx(1.2 + 6 * 0.2)
    assert summary.constraint_error < 1e-4
    # Time, step count and file know the unbiased MD alone, and the restraints are idle.
    assert simulation.currentStep == step + 600
    assert simulation.context.getTime()._value == pytest.approx(time + 1.2)
    assert mda.Universe(app_pdb(simulation, tmp_path), str(tmp_path / "out.dcd")).trajectory.n_frames == 12
    assert simulation.context.getParameter(GUIDE) == 0
    rows = list(csv.DictReader(open(tmp_path / "jumps.csv")))
    assert [int(row["step"]) for row in rows] == [step + 100 * k for k in range(1, 7)]
    assert float(rows[-1]["represented_ps"]) == pytest.approx(summary.md_ps + summary.jump_ps, rel=1e-5)
    assert all(float(row["rmsd_led"]) < 1.0 for row in rows if row["accepted"] == "True")
    seconds = [float(row[f"seconds_{name}"]) for row in rows for name in ("forecast", "lead", "relax")]
    assert summary.seconds_per_jump == pytest.approx(sum(seconds) / 6, rel=1e-3)

    with pytest.raises(OutputError, match="exists"):
        hybrid.run(1, 100, log=tmp_path / "jumps.csv")
    assert hybrid.run(1, 100).jumps == 7


def test_beads_follow_the_forecast(dipeptide, monkeypatch):
    """A forecast that turns the molecule arrives with the beads; its common drift is of no interest."""
    simulation = dipeptide_simulation(dipeptide)

    def turn(model, builder, history, horizon, **_):
        centre = history[0, -1].mean(axis=0)
        path = []
        for angle in np.radians([6, 12, 18, 24]):
            rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
            path.append((history[0, -1] - centre) @ rotation.T + centre + 3 * angle)
        return np.stack(path)[None]

    monkeypatch.setattr(jump_module, "forecast", turn)
    hybrid = short(simulation, lead_ps=0.5, relax_ps=0.002)
    before = positions_of(simulation)[hybrid.beads]
    hybrid.run(1, 60)
    jump = hybrid.jumps[0]
    assert jump.accepted, jump.reason
    after = positions_of(simulation)[hybrid.beads]
    assert jump.forecast_moved > 0.8
    assert jump.rmsd_led < 0.3
    angle = np.degrees(kabsch_angle(before, after))
    assert 15 < angle < 33
    assert np.linalg.norm(after.mean(axis=0) - before.mean(axis=0)) < 0.5


def test_jumps_along_drawn_futures(dipeptide):
    """Each along one of its own; the seed says which."""
    simulation = dipeptide_simulation(dipeptide)
    start = simulation.context.createCheckpoint()
    universe = mda.Universe(simulation.topology, positions_of(simulation)[None].astype(np.float32))
    builder = GraphBuilder(universe.select_atoms("not type H"), HEAVY)
    frames = []
    for _ in range(80):
        simulation.step(50)
        frames.append(positions_of(simulation)[builder.atoms.indices])
    window = WindowSpec(stride_ps=0.1, n_times=4)
    windows = TrajectoryWindows([Run(np.stack(frames), builder)], window, [range(1, 76)])
    spec = ModelSpec(operator="flow", base="any", hidden=8, layers=1, time_embedding=8, modes=2, keep_bonds=True)
    model = dataclasses.replace(new_model(HEAVY, window, spec), elastic={"any": elastic(windows)})

    def moved(seed):
        simulation.context.loadCheckpoint(start)
        hybrid = short(simulation, model, seed=seed)
        start_again = simulation.context.createCheckpoint()
        jumps = []
        for _ in range(2):
            simulation.context.loadCheckpoint(start_again)
            hybrid.run(1, 60)
            jumps.append(hybrid.jumps[-1])
        return [jump.forecast_moved for jump in jumps]

    first, again, other = moved(1), moved(1), moved(2)
    assert first == again
    assert len({round(x, 4) for x in first + other}) == 4
    with pytest.raises(UsageError, match=r"seed \(--seed\) must be a whole number"):
        short(simulation, model, seed=-1)


def kabsch_angle(a, b):
    u, _, vt = np.linalg.svd((a - a.mean(axis=0)).T @ (b - b.mean(axis=0)))
    rotation = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return np.arccos((np.trace(rotation) - 1) / 2)


@pytest.mark.parametrize(
    ("method", "expected"),
    [(openmm.NonbondedForce.NoCutoff, None), (openmm.NonbondedForce.CutoffPeriodic, [30, 40, 50, 90, 90, 90])],
    ids=["open", "periodic"],
)
def test_the_universe_of_a_topology_has_the_box_of_a_periodic_system(method, expected):
    topology, system, force = app.Topology(), openmm.System(), openmm.NonbondedForce()
    residue = topology.addResidue("ALA", topology.addChain("A"))
    for name in ("CA", "CB"):
        topology.addAtom(name, app.element.carbon, residue)
        system.addParticle(12.0)
        force.addParticle(0.0, 0.1, 0.0)
    force.setNonbondedMethod(method)
    system.addForce(force)
    system.setDefaultPeriodicBoxVectors(*np.diag([3.0, 4.0, 5.0]))
    platform = openmm.Platform.getPlatform("Reference")
    simulation = app.Simulation(topology, system, openmm.VerletIntegrator(0.001), platform)
    simulation.context.setPositions([[0, 0, 0], [0.3, 0, 0]])
    universe = Dynamics(simulation).universe(topology)
    np.testing.assert_allclose(universe.atoms.positions, [[0, 0, 0], [3, 0, 0]], atol=1e-6)
    found = universe.dimensions
    assert found is None if expected is None else found == pytest.approx(expected)


def test_work_of_dragging_free_particles(monkeypatch):
    """Overdamped at 0 K, a trap of speed v does the work m g v^2 (t - 3 tau / 2) and the particle lags by v tau.

    tau = m g / k is how long the lag takes to build up: m g v^2 (1 - exp(-t / tau))^2 integrated over t.
    """
    n, mass, friction, step = 6, 12.0, 100.0, 0.001
    topology, system = app.Topology(), openmm.System()
    chain = topology.addChain("A")
    for _ in range(n):
        topology.addAtom("CA", app.element.carbon, topology.addResidue("ALA", chain))
        system.addParticle(mass)
    simulation = app.Simulation(
        topology,
        system,
        openmm.LangevinMiddleIntegrator(0, friction, step),
        openmm.Platform.getPlatform("Reference"),
    )
    start = 6.0 * np.arange(n)[:, None] * np.array([1.0, 0, 0])  # too far for links of a chain
    simulation.context.setPositions(start / 10)
    distance, lead_ps, strength = 0.4, 4.0, 20000.0  # Angstrom, ps, kJ/mol/nm^2
    signs = np.where(np.arange(n) % 2, 1, -1)[:, None] * np.array([0.0, 1, 0])

    def drag(model, builder, history, horizon, **_):
        return history[:, -1:] + distance * np.linspace(1 / 8, 1, 8)[:, None, None] * signs

    placed, place = [], jump_module.Jumper._set_targets
    monkeypatch.setattr(jump_module, "forecast", drag)
    monkeypatch.setattr(jump_module.Jumper, "_set_targets", lambda self, x: placed.append(x) or place(self, x))
    hybrid = HybridPropagator(
        simulation,
        moving_model(),
        lead_ps=lead_ps,
        relax_ps=0.001,
        strength=strength,
        limits=JumpLimits(spread=np.inf, work=np.inf),
    )
    hybrid.run(1, 1000)
    jump = hybrid.jumps[0]
    assert jump.accepted, jump.reason
    assert len(placed) == 1 + round(lead_ps / jump_module.LEAD_UPDATE_PS)
    speed, tau = distance / 10 / lead_ps, mass * friction / strength  # nm/ps, ps
    assert jump.work == pytest.approx(n * mass * friction * speed**2 * (lead_ps - 1.5 * tau), rel=0.05)
    assert jump.rmsd_led == pytest.approx(10 * speed * tau, rel=0.1)
    assert jump.temperature < 1


REJECTIONS = {
    "work": JumpLimits(work=-1e3),
    "lead": JumpLimits(rmsd=1e-6),
    "energy": JumpLimits(spread=0.0),
}


@pytest.mark.parametrize("reason", REJECTIONS)
def test_a_jump_that_is_rolled_back_leaves_no_trace(dipeptide, reason):
    plain = dipeptide_simulation(dipeptide, guided=True)
    plain.step(150)
    simulation = dipeptide_simulation(dipeptide, guided=True)
    hybrid = short(simulation, limits=REJECTIONS[reason])
    summary = hybrid.run(3, 50)
    assert summary.accepted == 0
    assert summary.rolled_back == {reason: 3}
    assert summary.jump_ps == 0
    # Random numbers included: the MD is the one that was never interrupted.
    np.testing.assert_allclose(positions_of(simulation), positions_of(plain), atol=1e-9)


def test_a_forecast_is_followed_while_it_is_physical(dipeptide, monkeypatch):
    simulation = dipeptide_simulation(dipeptide)
    hybrid = short(simulation)
    first_mirrored = 3

    def mirrored(model, builder, history, horizon, **_):
        path = np.repeat(history[:, -1:], horizon, axis=1)
        path[:, first_mirrored:, :, 0] *= -1
        return path

    monkeypatch.setattr(jump_module, "forecast", mirrored)
    summary = hybrid.run(1, 50)
    assert summary.accepted == 1, hybrid.jumps[0].reason
    assert hybrid.jumps[0].frames == 3
    assert summary.jump_ps == pytest.approx(0.3)
    assert summary.integrated_ps == pytest.approx(0.1 + 0.076 + 0.1)  # three quarters of the lead
    first_mirrored = 0
    assert hybrid.run(1, 50).rolled_back == {"forecast": 1}
    assert "chiral" in hybrid.jumps[1].reason
    assert np.isnan(hybrid.jumps[1].work)

    def broken(*args, **kwargs):
        raise UnphysicalError("predicted coordinates that are not finite")

    monkeypatch.setattr(jump_module, "forecast", broken)
    assert hybrid.run(1, 50).rolled_back == {"forecast": 2}

    def foreign(*args, **kwargs):
        raise ModelError("this is none of them")

    # Every jump would fail, so it is no jump that is rolled back.
    monkeypatch.setattr(jump_module, "forecast", foreign)
    with pytest.raises(ModelError, match="none of them"):
        hybrid.run(1, 50)
    assert simulation.context.getParameter(GUIDE) == 0


@pytest.mark.parametrize("changes", [{"prior": "regression"}, {"operator": "flow"}], ids=str)
def test_a_model_of_other_molecules_is_refused_before_anything_moves(dipeptide, changes):
    """Of those that know the molecules of their training runs alone."""
    heavy, own = (new_model(old.graph, old.window, ModelSpec(**changes)) for old in (heavy_model(), moving_model()))
    with pytest.raises(ModelError, match="this is none of them"):
        short(dipeptide_simulation(dipeptide, steps=0), heavy)
    with pytest.raises(ModelError, match="this is none of them"):
        surrogate_simulation(chain_universe(), own)


def test_bonds_are_restored(dipeptide, monkeypatch):
    # What the atoms are led to has the bonds of the start, and the log knows what the forecast had.
    simulation = dipeptide_simulation(dipeptide)
    hybrid = short(simulation)

    def torn(model, builder, history, horizon, **_):
        path = np.repeat(history[:, -1:], horizon, axis=1)
        path[:, -1, 0] += 1.0
        return path

    monkeypatch.setattr(jump_module, "forecast", torn)
    summary = hybrid.run(1, 50)
    assert summary.accepted == 1, hybrid.jumps[0].reason
    assert hybrid.jumps[0].frames == 4
    assert hybrid.jumps[0].forecast_bonds > 0.5


def test_a_jump_that_explodes_is_rolled_back(dipeptide, monkeypatch):
    simulation = dipeptide_simulation(dipeptide)
    hybrid = short(simulation, strength=1e9)
    assert hybrid.run(1, 50).accepted == 0
    assert np.isfinite(positions_of(simulation)).all()
    assert simulation.context.getParameter(GUIDE) == 0
    simulation.step(50)
    assert np.isfinite(positions_of(simulation)).all()


def test_an_interrupt_leaves_no_restraint_on(dipeptide, monkeypatch):
    simulation = dipeptide_simulation(dipeptide)
    hybrid = short(simulation)
    moved = 0

    def interrupted(steps):
        nonlocal moved
        simulation.integrator.step(int(steps))
        moved += 1
        if moved == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(hybrid.dynamics, "biased", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hybrid.run(1, 50)
    assert simulation.context.getParameter(GUIDE) == 0
    assert simulation.currentStep == 250


def test_guide_is_added_to_a_running_simulation(dipeptide):
    simulation = dipeptide_simulation(dipeptide)
    before = simulation.context.getState(positions=True, velocities=True, energy=True)
    short(simulation)
    after = simulation.context.getState(positions=True, velocities=True, energy=True)
    np.testing.assert_array_equal(before.getPositions(asNumpy=True)._value, after.getPositions(asNumpy=True)._value)
    np.testing.assert_array_equal(before.getVelocities(asNumpy=True)._value, after.getVelocities(asNumpy=True)._value)
    assert after.getPotentialEnergy()._value == pytest.approx(before.getPotentialEnergy()._value, rel=1e-6)
    assert after.getTime() == before.getTime()
    n_forces = simulation.system.getNumForces()
    short(simulation)  # finds the first one
    assert simulation.system.getNumForces() == n_forces
    with pytest.raises(ModelError, match="other particles"):
        short(simulation, select="name CA CB C")


def test_explicit_water_with_pme_virtual_sites_and_barostat(dipeptide):
    topology, _, positions = dipeptide
    field = app.ForceField("amber14-all.xml", "amber14/tip4pew.xml")
    modeller = app.Modeller(topology, positions * unit.nanometer)
    modeller.addSolvent(field, model="tip4pew", boxSize=openmm.Vec3(1.9, 1.9, 1.9))
    system = field.createSystem(modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.8, constraints=app.HBonds)
    system.addForce(openmm.MonteCarloBarostat(1.0, 300, 10))
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.002)
    simulation = app.Simulation(
        modeller.topology, system, integrator, openmm.Platform.getPlatform("CPU"), {"Threads": "1"}
    )
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(maxIterations=50)
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(100)
    hybrid = short(simulation, lead_ps=0.1, relax_ps=0.1)
    assert "periodicdistance" in hybrid.jumper.guide.getEnergyFunction()
    summary = hybrid.run(1, 50)
    # The water is still warming up, so energy and temperature may throw the jump out, nothing else.
    assert summary.accepted == 1 or set(summary.rolled_back) <= {"energy", "temperature"}
    assert hybrid.jumps[0].constraint_error < 1e-4
    assert hybrid.jumps[0].rmsd_led < 0.6
    n_dof = 3 * sum(system.getParticleMass(k)._value > 0 for k in range(system.getNumParticles()))
    reporter = app.StateDataReporter(io.StringIO(), 1, temperature=True)
    reporter._initializeConstants(simulation)
    assert hybrid.dynamics.n_dof == reporter._dof < n_dof


def test_bad_input_of_the_hybrid(dipeptide, model):
    simulation = dipeptide_simulation(dipeptide, steps=0)
    with pytest.raises(ModelError, match="14 atoms.*22 particles"):
        short(simulation, atoms=chain_universe())
    with pytest.raises(UsageError, match="str"):
        short(simulation, atoms="protein")
    with pytest.raises(DataError, match="holds no atom"):
        short(simulation, select="name XX")
    with pytest.raises(ModelError, match="selection is 'heavy'"):
        short(simulation, select="all")
    with pytest.raises(ModelError, match="whole number"):
        short(simulation, heavy_model(stride=0.0031))
    with pytest.raises(UsageError, match="at least 1, found 0"):  # a stride of one step is one
        short(simulation, heavy_model(stride=0.002)).run(1, 0)
    with pytest.raises(UsageError, match="lead_ps"):
        short(simulation, lead_ps=0)
    with pytest.raises(UsageError, match="at least 50"):
        short(simulation).run(1, 20)
    with pytest.raises(UsageError, match="n_jumps"):
        short(simulation).run(0, 100)
    variable = dipeptide_simulation(dipeptide, steps=0, integrator=openmm.VariableLangevinIntegrator(300, 1, 0.001))
    with pytest.raises(UsageError, match="constant length"):
        short(variable)
    with pytest.raises(UsageError, match="give one of all atoms with a force field"):
        short(surrogate_simulation(chain_universe(), model))
    system = openmm.System()
    system.addParticle(0.0)
    with pytest.raises(ModelError, match="no mass"):
        add_guide(system, [0])
    with pytest.raises(ModelError, match="not in the System"):
        add_guide(system, [1])


def test_unstable_md_is_put_back(dipeptide, tmp_path):
    simulation = dipeptide_simulation(dipeptide, steps=0)
    simulation.reporters.append(app.DCDReporter(str(tmp_path / "out.dcd"), 1))
    hybrid = short(simulation)
    hybrid.run(1, 100)
    sound = simulation.context.getState(positions=True)
    n_frames = simulation.currentStep
    velocities = np.zeros((22, 3))
    velocities[0] = 1e30
    simulation.context.setVelocities(velocities)
    with pytest.raises(ModelError, match="unstable"):
        hybrid.run(1, 100)
    np.testing.assert_array_equal(positions_of(simulation), 10 * sound.getPositions(asNumpy=True)._value)
    simulation.reporters.clear()
    read = mda.Universe(app_pdb(simulation, tmp_path), str(tmp_path / "out.dcd")).trajectory
    assert read.n_frames >= n_frames
    assert np.isfinite(read.timeseries()).all()


def test_full_disk_of_the_hybrid(dipeptide, tmp_path):
    simulation = dipeptide_simulation(dipeptide)
    simulation.reporters.append(app.DCDReporter(str(tmp_path / "out.dcd"), 10))
    hybrid = short(simulation)
    with full_disk(2000), pytest.raises(OutputError, match="free some space"):
        hybrid.run(1, 100)
    simulation.reporters.clear()
    with full_disk(500), pytest.raises(OutputError, match="rows before are whole"):
        hybrid.run(3, 50, log=tmp_path / "jumps.csv")


# ---------------------------------------------------------------------------------------------------------------------
# Command line


@pytest.fixture()
def dipeptide_files(dipeptide, tmp_path):
    topology, system, positions = dipeptide
    with open(tmp_path / "ala2.pdb", "w") as stream:
        app.PDBFile.writeFile(topology, positions * unit.nanometer, stream)
    simulation = dipeptide_simulation(dipeptide)
    simulation.saveState(str(tmp_path / "state.xml"))
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    heavy_model().save(tmp_path / "model.safetensors")
    return tmp_path


def extend(folder, *arguments):
    common = ["--model", str(folder / "model.safetensors"), "--jumps", "2", "--md-steps", "100", "--lead-ps", "0.1"]
    common += ["--relax-ps", "0.1", "--report", "20", "--platform", "CPU", "-o", str(folder / "out.dcd")]
    return CliRunner().invoke(main, ["extend", str(folder / "ala2.pdb"), *common, *arguments])


def test_atoms_keep_the_names_of_their_file(tmp_path):
    # OpenMM calls the methyl of an NME C, and water HOH; a model was trained on the names of the file.
    water = "HETATM   11  O   WAT A   4      25.500   8.400   8.300  1.00  0.00           O\n"
    text = DIPEPTIDE.replace("  C   NME", "  CH3 NME").replace("END\n", f"{water}END\n")
    (tmp_path / "own.pdb").write_text(text)
    fields = ["amber14-all.xml", "amber14/tip3p.xml"]
    simulation = load_simulation(tmp_path / "own.pdb", forcefields=fields, equilibrate_ps=0, platform="Reference")
    heavy = [atom for atom in simulation.topology.atoms() if atom.element.symbol != "H"]
    expected = mda.Universe(str(tmp_path / "own.pdb")).atoms
    assert [atom.name for atom in heavy] == expected.names.tolist()
    assert [atom.residue.name for atom in heavy] == expected.resnames.tolist()
    assert simulation.topology.getNumBonds() == 21 + 2


def test_extend_from_system_and_state(dipeptide_files):
    given = ["--system", str(dipeptide_files / "system.xml"), "--state", str(dipeptide_files / "state.xml")]
    result = extend(dipeptide_files, *given)
    assert result.exit_code == 0, result.output
    # The ratio of the costs never stands without what it is worth.
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert ("worth" in lines) == ("cost" in lines)
    assert "cost" not in lines or "not of sampling: plain MD of equal cost sampled better" in lines["worth"]
    read = mda.Universe(str(dipeptide_files / "out.pdb"), str(dipeptide_files / "out.dcd"))
    assert read.trajectory.n_frames == 10
    assert read.trajectory.dt == pytest.approx(0.04, rel=1e-3)
    assert len(list(csv.DictReader(open(dipeptide_files / "out_jumps.csv")))) == 2

    again = extend(dipeptide_files, *given)
    assert again.exit_code == 1 and "--force" in again.output
    # The state that is left can be gone on from.
    given[-1] = str(dipeptide_files / "out_state.xml")
    assert "replace the input" in extend(dipeptide_files, *given, "--force").output
    second = extend(dipeptide_files, *given, "-o", str(dipeptide_files / "second.xtc"))
    assert second.exit_code == 0, second.output
    times = [mda.Universe(str(dipeptide_files / name)).trajectory.n_frames for name in ("out.pdb", "second.pdb")]
    assert times == [1, 1]
    steps = [int(row["step"]) for row in csv.DictReader(open(dipeptide_files / "second_jumps.csv"))]
    assert steps == [500, 600]  # 200 before the first call, 200 in it
    # Neither does the clock of the files begin anew.
    more = mda.Universe(str(dipeptide_files / "second.pdb"), str(dipeptide_files / "second.xtc"))
    found = [ts.time for u in (read, more) for ts in u.trajectory]
    np.testing.assert_allclose(found, 0.4 + 0.04 * np.arange(1, 21), rtol=1e-5)


def test_an_extension_that_is_ended_by_a_signal_leaves_frames_and_a_state_to_go_on_from(dipeptide_files, monkeypatch):
    given = ["--system", str(dipeptide_files / "system.xml"), "--state", str(dipeptide_files / "state.xml")]
    lead = Jumper._lead

    def ended(self, path):
        found = lead(self, path)
        if self.dynamics.md_steps == 200:  # in the second jump
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Jumper, "_lead", ended)
        result = extend(dipeptide_files, *given)
    assert result.exit_code == 143 and not result.stdout, result.output
    assert "running    2 jumps, 0.2 ps of plain MD before each" in result.stderr and "jump 1/2: " in result.stderr
    assert "jump 2/2" not in result.stderr and "stopped by SIGTERM; 10 frames of plain MD in" in result.stderr
    read = mda.Universe(str(dipeptide_files / "out.pdb"), str(dipeptide_files / "out.dcd"))
    assert read.trajectory.n_frames == 10
    assert len(list(csv.DictReader(open(dipeptide_files / "out_jumps.csv")))) == 1
    given[-1] = str(dipeptide_files / "out_state.xml")
    cure = (
        f"; to go on: egno-md extend {dipeptide_files / 'out.pdb'} --state {given[-1]} -o another.dcd, with the other "
    )
    assert result.stderr.endswith(f"{cure}options that you gave\n")
    more = extend(dipeptide_files, *given, "-o", str(dipeptide_files / "more.dcd"))
    assert more.exit_code == 0, more.output
    assert int(next(csv.DictReader(open(dipeptide_files / "more_jumps.csv")))["step"]) == 500  # 400 and 100


def test_an_extension_says_what_it_is_doing_and_hears_a_signal_meanwhile(dipeptide_files, monkeypatch):
    fields = ["--forcefield", "amber14-all.xml", "--forcefield", "implicit/obc2.xml", "--equilibrate-ps", "0.2"]
    before = set(dipeptide_files.iterdir())
    for what, name in (("minimisation", "SIGINT"), ("equilibration", "SIGTERM")):

        def ended(self, count=1, what=what, name=name):
            if self.what == what:
                os.kill(os.getpid(), getattr(signal, name))

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "update", ended)
            patch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)  # of tests in the background
            result = extend(dipeptide_files, *fields)
        assert result.exit_code == 128 + getattr(signal, name), result.output
        lines = result.stderr.splitlines()
        assert lines[-2].startswith(f"running    {what}") and lines[-1].startswith(f"stopped by {name}; ")
        assert set(dipeptide_files.iterdir()) == before


def test_extend_from_a_force_field(dipeptide_files):
    fields = ["--forcefield", "amber14-all.xml", "--forcefield", "implicit/obc2.xml", "--equilibrate-ps", "0.2"]
    result = extend(dipeptide_files, *fields, "--json")
    assert result.exit_code == 0, result.output
    assert '"jumps": 2' in result.output
    assert "plain MD of equal cost sampled better" in json.loads(result.stdout)["cost_ratio_note"]


def test_boxes_that_mean_nothing(dipeptide_files):
    """A cell of 1 A is what NMR structures have; one of a crystal has no place in implicit solvent."""
    fields = ["--forcefield", "amber14-all.xml", "--forcefield", "implicit/obc2.xml", "--equilibrate-ps", "0.1"]
    path = dipeptide_files / "ala2.pdb"
    text = path.read_text()
    path.write_text("CRYST1   30.000   30.000   30.000  90.00  90.00  90.00 P 1           1\n" + text)
    for field in (fields[:4], ["--forcefield", "amber99sbildn.xml", "--forcefield", "amber99_obc.xml"]):
        refused = extend(dipeptide_files, *field, "--keep-box")
        assert refused.exit_code == 1 and "--no-box" in refused.output
    for arguments in (["--no-box"], ["--force"]):  # as it says, and left to itself
        result = extend(dipeptide_files, *fields, *arguments)
        assert result.exit_code == 0 and ("box of 30.0" in result.output) == (arguments == ["--force"])
    path.write_text("CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n" + text)
    accepted = extend(dipeptide_files, *fields, "--force")
    assert accepted.exit_code == 0, accepted.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--report", "0"], 2, "--report must be at least 1"),
        (["--md-steps", "10"], 2, "at least"),
        (["--forcefield", "amber14-all.xml", "--system", "system.xml"], 2, "not both"),
        (["--forcefield", "nothing.xml"], 1, "nothing.xml"),
        (["--system", "missing.xml"], 1, "missing.xml"),
        (["--forcefield", "tip3p.xml"], 1, "force field"),
    ],
)
def test_bad_input_of_extend(dipeptide_files, arguments, code, words):
    result = extend(dipeptide_files, *arguments)
    assert result.exit_code == code
    assert words in result.output
    assert not (dipeptide_files / "out.dcd").exists()


def test_extend_refuses_a_foreign_system(dipeptide_files):
    system = openmm.System()
    system.addParticle(12.0)
    (dipeptide_files / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    result = extend(dipeptide_files, "--system", str(dipeptide_files / "system.xml"))
    assert result.exit_code == 1
    assert "1 particles" in result.output and "22 atoms" in result.output
