"""A Simulation of any run: the forecast that is best there, or one that needs no network, moves the beads."""

from __future__ import annotations

import dataclasses

import MDAnalysis as mda
import numpy as np
import pytest
from MDAnalysis.coordinates.memory import MemoryReader
from openmm import app
from test_flow import simulated
from test_propagator import chain_universe, moving_model, positions_of

from egno_md import EGNOSurrogate, sample
from egno_md.errors import DataError, ModelError, UsageError
from egno_md.forecast.rolling import REVERTING
from egno_md.propagator import EGNOIntegrator, surrogate_simulation

#: Frames of one window, and of a chain in which the last two windows revert.
WINDOW = 8
LONG = (REVERTING + 2) * WINDOW


def ubiquitin(dt=1.0, frame=-1, box=None):
    """The bundled run, at another spacing, in a box."""
    universe = mda.Universe(*map(str, sample()))
    frames = universe.trajectory.timeseries(universe.select_atoms("name CA"), order="fac")
    universe = mda.Merge(universe.select_atoms("name CA"))
    boxes = None if box is None else np.tile(np.float32(box), (len(frames), 1))
    universe.load_new(frames, format=MemoryReader, dt=dt, dimensions=boxes)
    universe.trajectory[frame]
    return universe


@pytest.mark.parametrize("model", [None, "elastic network", "Gaussian process", "analogues"])
def test_it_moves_as_the_analysis_says(model):
    """What is chosen as well, and what the windows of a long chain give back."""
    universe = ubiquitin(dt=10.0)
    surrogate = EGNOSurrogate(universe, model, horizon=LONG, seed=3).run()
    assert surrogate.reverts == (model != "analogues")
    simulation = surrogate_simulation(universe, model, seed=3)
    integrator = simulation.integrator
    assert integrator.engine.name == surrogate.engine.name and integrator.model is None
    assert integrator.hindcast.chosen == surrogate.results.hindcast.chosen
    assert integrator.decisions == surrogate.decisions
    assert integrator.getStepSize()._value == 10.0
    found = simulated(simulation, LONG)
    np.testing.assert_allclose(found, surrogate.results.positions[0], atol=0.02)
    assert simulation.context.getTime()._value == pytest.approx(universe.trajectory.time + 10 * LONG)
    speed = 10 * simulation.context.getState(velocities=True).getVelocities(asNumpy=True)._value
    np.testing.assert_allclose(speed, (found[-1] - found[-2]) / 10, atol=1e-4)
    other = surrogate_simulation(universe, model, seed=4)
    assert np.abs(simulated(other, 4) - found[:4]).max() > 0.3


@pytest.mark.parametrize("steps", [3, LONG - WINDOW + 2])
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_a_restart_goes_on_to_the_same_bits(steps, platform, tmp_path):
    """Also in a window that gives back, which it does because of the windows before it."""
    universe = ubiquitin()
    simulation = surrogate_simulation(universe, "elastic network", platform=platform)
    simulation.step(steps)
    simulation.saveCheckpoint(str(tmp_path / "at"))
    expected = simulated(simulation, WINDOW)
    universe.trajectory[20]
    again = surrogate_simulation(universe, "elastic network", seed=7, platform=platform)
    again.loadCheckpoint(str(tmp_path / "at"))
    assert np.array_equal(simulated(again, WINDOW), expected)


def test_it_begins_with_the_past_that_is_there():
    """Sixteen frames before the start where there are as many; from the first frame on none, and it stands still."""
    frames = ubiquitin().trajectory.timeseries(order="fac")
    for frame, known in ((5, 6), (40, 16)):
        simulation = surrogate_simulation(ubiquitin(frame=frame), "elastic network")
        integrator = simulation.integrator
        assert integrator.getGlobalVariableByName("known") == known
        past = np.array([integrator.getPerDofVariableByName(f"past_{k}") for k in range(known)])  # (P, N, 3), nm
        np.testing.assert_allclose(10 * past, frames[frame + 1 - known : frame + 1], atol=1e-4)
    simulation = surrogate_simulation(ubiquitin(frame=0), "elastic network")
    assert simulation.integrator.getGlobalVariableByName("known") == 1
    assert not simulation.context.getState(velocities=True).getVelocities(asNumpy=True)._value.any()


def test_positions_from_outside_are_where_it_goes_on():
    """With no more of a past than the velocities say; the chain is a new one, which reverts from its fifth window."""
    universe = ubiquitin()
    simulation = surrogate_simulation(universe, "elastic network")
    simulation.step(LONG)
    outside = ubiquitin(frame=10).atoms.positions.astype(float)
    simulation.context.setPositions(outside / 10)
    simulation.context.setVelocities(np.zeros_like(outside))
    first = simulated(simulation, 1)[0]
    assert simulation.integrator.getGlobalVariableByName("windows") == 0
    assert simulation.integrator.getGlobalVariableByName("known") == 2
    shift = np.sqrt(np.mean((first - outside) ** 2))
    assert 0.05 < shift < 1.0


def test_history_of_any_length_is_taken():
    universe = ubiquitin()
    frames = universe.trajectory.timeseries(order="fac")
    simulation = surrogate_simulation(universe, "elastic network")
    expected = simulated(simulation, 3)
    again = surrogate_simulation(ubiquitin(frame=3), "elastic network")
    for given in (frames, frames[-16:]):  # no more than it can use
        again.integrator.set_history(given)
        assert np.abs(simulated(again, 3) - expected).max() > 0.1  # another start has other random numbers
        assert again.integrator.getGlobalVariableByName("known") == 16
    for bad in (frames[-1], frames[-2:, :-1], np.full_like(frames[-2:], np.nan)):
        with pytest.raises(UsageError, match=r"finite and of shape \(1 or more, 76, 3\), found"):
            simulation.integrator.set_history(bad)


def test_its_files_hold_the_box(tmp_path):
    box = [80, 85, 90, 90, 90, 90]
    simulation = surrogate_simulation(ubiquitin(box=box), "analogues")
    simulation.reporters.append(app.DCDReporter(str(tmp_path / "out.dcd"), 1))
    expected = simulated(simulation, 3)
    simulation.reporters.clear()
    read = ubiquitin()
    read.load_new(str(tmp_path / "out.dcd"))
    np.testing.assert_allclose(read.trajectory.timeseries(order="fac"), expected, atol=1e-4)
    np.testing.assert_allclose(read.dimensions, box, rtol=1e-5)


def test_a_single_structure_moves_by_the_network_of_proteins():
    universe = mda.Universe(str(sample()[0]))
    simulation = surrogate_simulation(universe)
    assert simulation.integrator.engine.name == "elastic network of proteins" and simulation.integrator.hindcast is None
    start = positions_of(simulation)
    moved = np.sqrt(np.mean((simulated(simulation, 20) - start) ** 2, axis=(1, 2)))
    assert 0.1 < moved[0] < moved.max() < 2.0
    alone = mda.Universe.empty(5, trajectory=True)
    alone.add_TopologyAttr("names", ["AR"] * 5)
    with pytest.raises(DataError, match="has one frame"):
        surrogate_simulation(alone, select="all")


def test_every_second_frame_is_a_stride():
    simulation = surrogate_simulation(ubiquitin(), "Gaussian process", every=2)
    assert simulation.integrator.getStepSize()._value == 2.0
    expected = EGNOSurrogate(ubiquitin(), "Gaussian process", every=2).run().results.positions[0]
    np.testing.assert_allclose(simulated(simulation, 8), expected, atol=1e-3)


def test_the_engine_of_an_analysis_moves_its_atoms():
    universe = ubiquitin()
    surrogate = EGNOSurrogate(universe, "analogues", samples=1).run()
    integrator = EGNOIntegrator(surrogate.engine, surrogate.atoms, number=79)
    system = surrogate_simulation(universe, "analogues").system
    simulation = app.Simulation(surrogate_simulation(universe, "analogues").topology, system, integrator)
    integrator.bind(simulation.context)
    integrator.set_history(universe.trajectory.timeseries(order="fac")[-16:])
    np.testing.assert_allclose(simulated(simulation, 8), surrogate.results.positions[0], atol=1e-3)
    with pytest.raises(UsageError, match="'analogues' forecasts 76 atoms, found 70: give the atoms of the run"):
        EGNOIntegrator(surrogate.engine, universe.atoms[:70])


def test_names_of_models_are_refused_with_those_that_are_there():
    universe = chain_universe()
    for name in ("gaussian proces", "GAUSS", "gaussian"):  # a letter less, the beginning, a word of it
        with pytest.raises(ModelError, match=rf"no model '{name}' \(did you mean 'Gaussian process'\?\)"):
            surrogate_simulation(universe, name)
    with pytest.raises(ModelError, match="no model 'ga': neither"):  # which could be anything
        surrogate_simulation(universe, "ga")
    with pytest.raises(ModelError, match="a free forecast.*a network is needed.*ca-1ps"):  # which needs its run
        EGNOIntegrator("gaussian process", universe.atoms)
    with pytest.raises(DataError, match="Gaussian process.*windows"):  # twelve frames are too few
        surrogate_simulation(universe, "gaussian process")


def test_bonds_are_those_of_the_start_of_the_chain():
    """Also of a network that does not know the molecule, in its later windows."""
    model = moving_model()
    model = dataclasses.replace(model, spec=model.spec.model_copy(update={"keep_bonds": True}))
    universe = ubiquitin()
    expected = EGNOSurrogate(universe, model, horizon=3 * WINDOW).run().results.positions[0]
    np.testing.assert_allclose(simulated(surrogate_simulation(universe, model), 3 * WINDOW), expected, atol=1e-3)


def test_a_seed_that_is_no_number_is_refused_before_the_work():
    for seed in ("a", 1.5, -1):
        with pytest.raises(UsageError, match=r"seed \(--seed\) must be a whole number"):
            surrogate_simulation(mda.Universe(*map(str, sample())), seed=seed)
