"""EGNOSurrogate behaves as MDAnalysis users expect an analysis to."""

from __future__ import annotations

import pickle
import warnings

import MDAnalysis as mda
import mdtraj
import numpy as np
import pytest
from conftest import Ballistic, make_model, make_universe
from MDAnalysis.analysis import rms
from openmm import unit

from egno_md import EGNOSurrogate, Interpolated, sample, suggest, surrogate_simulation
from egno_md.errors import DataError, ModelError, OutputError, UsageError
from egno_md.forecast import written


def test_without_arguments_extends_the_run(ballistic):
    u = make_universe(12)
    results = EGNOSurrogate(u, ballistic, horizon=6).run().results
    assert results.positions.shape == (1, 6, 10, 3)
    np.testing.assert_array_equal(results.frames, [11])
    np.testing.assert_allclose(results.times, [np.arange(12, 18)])
    step = u.trajectory[11].positions - u.trajectory[10].positions
    np.testing.assert_allclose(results.positions[0, -1], u.trajectory[11].positions + 6 * step, atol=1e-4)
    assert np.isnan(results.rmsd).all()


def test_starts_inside_the_run_are_compared_with_it(ballistic):
    u = make_universe(12)
    results = EGNOSurrogate(u, ballistic, horizon=4).run(start=2, stop=11, step=3).results
    np.testing.assert_array_equal(results.frames, [2, 5, 8])
    assert (
        np.isfinite(results.rmsd[:2]).all() and np.isnan(results.rmsd[2, 3]) and np.isfinite(results.rmsd[2, :3]).all()
    )
    np.testing.assert_allclose(results.rmsd[:2], 0, atol=1e-4)  # constant velocity is forecast exactly
    positions = {f: u.trajectory[f].positions.copy() for f in (2, 6)}
    expected = rms.rmsd(positions[2], positions[6], superposition=False)
    assert results.rmsd_static[0, 3] == pytest.approx(expected, rel=1e-4)
    assert results.moved[0, 3] == pytest.approx(expected, rel=1e-3)
    shape = rms.rmsd(positions[6], positions[2], superposition=True)
    assert results.moved_superposed[0, 3] == pytest.approx(shape, rel=1e-2)
    np.testing.assert_array_equal(np.isnan(results.rmsd_superposed), np.isnan(results.rmsd))
    np.testing.assert_allclose(results.rmsd_superposed[:2], 0, atol=1e-4)
    shape = rms.rmsd(positions[2], positions[6], superposition=True)
    assert results.rmsd_static_superposed[0, 3] == pytest.approx(shape, rel=1e-4) and shape < expected


@pytest.mark.parametrize("together", [1, 5])
def test_frames_of_the_run_are_compared_a_few_at_a_time(monkeypatch, together):
    u = make_universe()
    model = make_model()
    whole = EGNOSurrogate(u, model, horizon=4).run(start=2).results
    monkeypatch.setattr(written, "ROOM", together * 24 * len(u.atoms))
    parts = EGNOSurrogate(u, model, horizon=4).run(start=2).results
    for name in ("rmsd", "rmsd_static", "rmsd_superposed", "rmsd_static_superposed"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-10)
    assert np.isfinite(whole.rmsd).sum() > 2 * together


@pytest.mark.parametrize(
    "choice",
    [{"frames": [9, 3, 3]}, {"frames": np.arange(12) == 7}, {"start": 1, "stop": 4}, {"step": 5}, {"start": -2}],
)
def test_frames_by_mdanalysis_conventions(ballistic, choice):
    u = make_universe(12)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="frame 0 has no frame")
        analysis = EGNOSurrogate(u, ballistic, horizon=2).run(**choice)
    chosen = choice.get("frames", range(12)[slice(choice.get("start"), choice.get("stop"), choice.get("step"))])
    chosen = np.flatnonzero(chosen) if np.asarray(chosen).dtype == bool else np.asarray(chosen)
    np.testing.assert_array_equal(analysis.results.frames, chosen)
    for i, frame in enumerate(chosen):
        start = u.trajectory[frame].positions.copy()
        step = start - u.trajectory[frame - 1].positions if frame else 0.0
        np.testing.assert_allclose(analysis.results.positions[i, 1], start + 2 * step, atol=1e-4)


def test_run_twice_and_no_frame_and_the_callers_frame(ballistic):
    u = make_universe(12)
    u.trajectory[4]
    analysis = EGNOSurrogate(u, ballistic, horizon=3)
    first = analysis.run(frames=[8]).results.positions.copy()
    assert u.trajectory.frame == 4
    np.testing.assert_array_equal(analysis.run(frames=[8]).results.positions, first)
    empty = analysis.run(start=5, stop=5).results
    assert empty.positions.shape == (0, 3, 10, 3) and empty.universe is None and empty.times.shape == (0, 3)
    assert u.trajectory.frame == 4
    with pytest.raises(UsageError, match="run"):
        analysis.write("nothing.dcd")


def test_first_frame_has_no_past(ballistic):
    u = make_universe(12)
    with pytest.warns(UserWarning, match="velocities are taken as zero"):
        results = EGNOSurrogate(u, ballistic, horizon=2).run(frames=[0]).results
    np.testing.assert_allclose(results.positions[0, 1], u.trajectory[0].positions, atol=1e-4)


def test_one_frame_alone(ballistic):
    u = make_universe(1)
    with pytest.warns(UserWarning, match="one frame"):
        assert EGNOSurrogate(u, ballistic, horizon=2).run().results.positions.shape == (1, 2, 10, 3)


def test_trajectory_to_trajectory_needs_its_past():
    u = make_universe(12)
    model = make_model(history=4)
    assert EGNOSurrogate(u, model, horizon=2).run(frames=[4]).results.positions.shape == (1, 2, 10, 3)
    with pytest.raises(DataError, match="start at frame 4"):
        EGNOSurrogate(u, model, horizon=2).run(frames=[3])


def test_finely_saved_run(ballistic):
    u = make_universe(21, dt=0.5)
    for every in (None, 2):  # read off the clock, or said
        results = EGNOSurrogate(u, ballistic, horizon=3, every=every).run(frames=[7]).results
        np.testing.assert_allclose(results.times, [[4.5, 5.5, 6.5]])
        np.testing.assert_allclose(results.rmsd, 0, atol=1e-4)
    with pytest.raises(ModelError, match=r"0\.5 ps.*1 ps.*every=2"):
        EGNOSurrogate(u, ballistic, every=1)


@pytest.mark.parametrize("dt", [2.0, 0.3])
def test_another_spacing_is_refused(ballistic, dt):
    with pytest.raises(ModelError, match=rf"{dt:g} ps apart.*'test'.*1 ps.*dt=1"):
        EGNOSurrogate(make_universe(dt=dt), ballistic)


def test_in_memory_universe_of_the_forecast(ballistic):
    box = [40, 41, 42, 90, 90, 60]
    u = make_universe(12, box=box)
    analysis = EGNOSurrogate(u, ballistic, horizon=5).run(frames=[4, 6])
    forecast = analysis.results.universe
    assert forecast.trajectory.n_frames == 10
    np.testing.assert_allclose([ts.time for ts in forecast.trajectory], [5, 6, 7, 8, 9, 7, 8, 9, 10, 11])
    np.testing.assert_allclose(forecast.trajectory[0].dimensions, box)
    assert list(forecast.atoms.names) == list(u.atoms.names) and len(forecast.bonds) == 9
    radius = rms.RMSD(forecast, forecast).run().results.rmsd  # any analysis runs on it
    assert radius.shape == (10, 3)


@pytest.mark.parametrize("ending", ["dcd", "xtc"])
def test_written_file_shows_run_and_extension(ballistic, tmp_path, ending):
    u = make_universe(12)
    target = tmp_path / f"out.{ending}"
    analysis = EGNOSurrogate(u, ballistic, horizon=4, filename=target, with_input=True).run()
    assert {p.name for p in analysis.results.files} == {f"out.{ending}", "out.pdb"}
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} == {f"out.{ending}", "out.pdb"}
    read = mda.Universe(str(tmp_path / "out.pdb"), str(target))
    other = mdtraj.load(str(target), top=str(tmp_path / "out.pdb"))
    np.testing.assert_allclose([ts.time for ts in read.trajectory], np.arange(16), atol=1e-3)
    for frame in range(16):
        expected = u.trajectory[frame].positions if frame < 12 else analysis.results.positions[0, frame - 12]
        np.testing.assert_allclose(read.trajectory[frame].positions, expected, atol=6e-3)
        np.testing.assert_allclose(other.xyz[frame] * 10, expected, atol=6e-3)
    with pytest.raises(OutputError, match="force"):
        EGNOSurrogate(u, ballistic, horizon=4, filename=target).run()
    EGNOSurrogate(u, ballistic, horizon=4, filename=target, force=True).run()
    assert mda.Universe(str(tmp_path / "out.pdb"), str(target)).trajectory.n_frames == 4


def test_the_input_is_never_replaced(ballistic, tmp_path):
    u = make_universe(12)
    path = tmp_path / "run.dcd"
    u.atoms.write(str(path), frames="all")
    u.load_new(str(path), dt=1.0)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="input"):
        EGNOSurrogate(u, ballistic, filename=path, force=True).run()
    assert path.read_bytes() == before


def test_several_starts_give_several_files(ballistic, tmp_path):
    EGNOSurrogate(make_universe(12), ballistic, horizon=2, filename=tmp_path / "f.xtc").run(frames=[3, 7])
    assert {p.name for p in tmp_path.glob("f*")} == {"f_000003.xtc", "f_000003.pdb", "f_000007.xtc", "f_000007.pdb"}


def test_everyone_takes_an_mdtraj_trajectory():
    u = mda.Universe(*map(str, sample()))
    traj = mdtraj.load(str(sample()[1]), top=str(sample()[0]))
    simulation = surrogate_simulation(traj, "static", select="name CA")
    assert simulation.context.getTime().value_in_unit(unit.picosecond) == u.trajectory[-1].time  # from the last frame
    filled = Interpolated(traj, factor=2, select="ca").run(stop=3).results.positions[0]
    np.testing.assert_allclose(filled[::2], traj.xyz[:3, u.select_atoms("name CA").indices] * 10, atol=1e-4)
    assert suggest(traj).stride_ps == suggest(u).stride_ps


def test_mdtraj_in_and_out(ballistic, tmp_path):
    u = make_universe(12)
    u.atoms.write(str(tmp_path / "t.pdb"))
    u.atoms.write(str(tmp_path / "t.xtc"), frames="all")
    traj = mdtraj.load(str(tmp_path / "t.xtc"), top=str(tmp_path / "t.pdb"))
    analysis = EGNOSurrogate(traj, ballistic, horizon=3).run()
    back = analysis.to_mdtraj()
    assert isinstance(back, mdtraj.Trajectory) and back.n_frames == 3
    np.testing.assert_allclose(back.xyz * 10, analysis.results.positions[0], atol=1e-4)
    np.testing.assert_allclose(back.time, traj.time[-1] + np.arange(1, 4), atol=1e-3)


@pytest.mark.parametrize("take", [EGNOSurrogate, Interpolated, surrogate_simulation, suggest])
def test_residues_are_told_from_what_has_no_atoms(take):
    u = make_universe()
    with pytest.raises(UsageError, match=r"mdtraj Trajectory, found ResidueGroup; give its \.atoms"):
        take(u.residues)
    with pytest.raises(UsageError, match="found str; load files"):
        EGNOSurrogate("run.pdb")


def test_select_narrows_the_models_selection(ballistic):
    u = make_universe(12)
    results = EGNOSurrogate(u, ballistic, "resid 1", horizon=2).run().results
    assert results.positions.shape[2] == 5
    model = make_model(Ballistic(4), select="resid 1")
    with pytest.raises(ModelError, match="'all'.*C5.*'test'.*'resid 1'"):
        EGNOSurrogate(u, model, "all")
    assert len(EGNOSurrogate(u.atoms[:3], model).atoms) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "horizon"),
        ({"every": 0}, "every"),
        ({"substeps": -1}, "substeps"),
        ({"select": "name ("}, "name"),
        ({"precision": "double"}, "float32, tf32, bf16"),
        ({"device": "cpu", "precision": "tf32"}, "GPU.*bf16"),
    ],
)
def test_bad_arguments(ballistic, change, message):
    with pytest.raises(UsageError, match=message):
        EGNOSurrogate(make_universe(), ballistic, **change)


def test_bad_input(ballistic):
    with pytest.raises(UsageError, match="found list"):
        EGNOSurrogate([1], ballistic)
    u = make_universe()
    with pytest.raises(DataError, match="resname NONE"):
        EGNOSurrogate(u, ballistic, "resname NONE")
    with pytest.raises(UsageError, match="(?i)updating"):
        EGNOSurrogate(u.select_atoms("prop x > 0", updating=True), ballistic)
    u.trajectory.coordinate_array[5, 3] = np.nan
    with pytest.raises(DataError, match=r"frame 5.*C3"):
        EGNOSurrogate(u, ballistic).run(frames=[6])
    EGNOSurrogate(u, ballistic).run(frames=[7])
    broken = make_universe(box=[30, 30, 30, 90, 90, 90])
    broken.trajectory.coordinate_array[:, 6:] += 28
    with pytest.raises(DataError, match="(?s)unwrap"):
        EGNOSurrogate(broken, ballistic).run()


def test_what_is_not_there_yet_says_to_run(ballistic):
    waiting = [EGNOSurrogate(make_universe(), ballistic, horizon=2), Interpolated(make_universe(), 2)]
    for analysis in waiting:
        assert not hasattr(analysis.results, "positions")
        with pytest.raises(AttributeError, match=r"no result 'positions' yet: call run\(\) first"):
            analysis.results.positions  # noqa: B018
    done = waiting[0].run()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):  # MDAnalysis' own words
        done.results.nothing  # noqa: B018


def test_one_of_several_starts_is_taken_as_the_docstrings_say(ballistic):
    many = EGNOSurrogate(make_universe(), ballistic, horizon=3).run(frames=[2, 3, 4])
    assert (np.diff(many.to_mdtraj().time) < 0).sum() == 2
    k, horizon = 1, many.horizon
    one = many.to_mdtraj()[k * horizon : (k + 1) * horizon]
    np.testing.assert_allclose(one.time, many.results.times[k])
    np.testing.assert_allclose(10 * one.xyz, many.results.positions[k], atol=1e-4)
    frames = many.results.universe.trajectory[k * horizon : (k + 1) * horizon]
    np.testing.assert_allclose([ts.time for ts in frames], many.results.times[k])


@pytest.mark.parametrize("model", ["static", make_model()])
def test_an_analysis_and_its_results_can_be_pickled(model, tmp_path):
    u = make_universe()
    u.atoms.write(str(tmp_path / "a.xtc"), frames="all")
    u.load_new(str(tmp_path / "a.xtc"))
    done = EGNOSurrogate(u, model, horizon=3)
    for analysis in (done, done.run()):
        other = pickle.loads(pickle.dumps(analysis)).run()
        np.testing.assert_array_equal(other.results.positions, done.results.positions)


@pytest.mark.parametrize("model", [None, "Gaussian process", "elastic network of proteins", "analogues", "ca-1ps"])
def test_an_analysis_that_has_chosen_can_be_pickled(model):
    free = EGNOSurrogate(mda.Universe(*map(str, sample())), model, horizon=40).run()
    other = pickle.loads(pickle.dumps(free))
    np.testing.assert_array_equal(other.results.positions, free.results.positions)
    if model is None:
        assert other.results.hindcast.table() == free.results.hindcast.table()
    np.testing.assert_array_equal(other.run().results.positions, free.results.positions)


def test_atoms_moved_by_hand_are_where_the_trajectory_has_them():
    forecasts = []
    for changed in (False, True):
        u = mda.Universe(*map(str, sample()))
        if changed:
            u.atoms.translate([100.0, 0, 0])  # of frame 0 alone: no frame of the run may jump by that
            u.dimensions = [60.0, 60, 60, 90, 90, 90]
            with pytest.warns(UserWarning, match=r"positions and box of the current frame \(0\).*transfer_to_memory"):
                surrogate = EGNOSurrogate(u, "elastic network", horizon=3)
        else:
            surrogate = EGNOSurrogate(u, "elastic network", horizon=3)
        forecasts.append(surrogate.run().results.positions)
    np.testing.assert_array_equal(*forecasts)
    surrogate.atoms.universe.atoms.translate([100.0, 0, 0])  # nor after the analysis was made
    np.testing.assert_array_equal(surrogate.run().results.positions, forecasts[0])
    u.transfer_to_memory()  # the cure
    u.trajectory[-1].positions[:] += 5
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        moved = EGNOSurrogate(u, "static", horizon=1, mean=True).run().results.positions
    before = mda.Universe(*map(str, sample())).trajectory[-1].positions[surrogate.atoms.indices]
    np.testing.assert_allclose(moved[0, 0], before + 5, atol=1e-4)


def test_a_universe_without_positions_is_told_so():
    for make in (EGNOSurrogate, Interpolated, surrogate_simulation):
        with pytest.raises(DataError, match="no positions: load it with its trajectory"):
            make(mda.Universe.empty(5))


def test_a_file_in_the_way_of_one_future_stops_all_of_them(tmp_path):
    surrogate = EGNOSurrogate(mda.Universe(*map(str, sample())), "gaussian process", horizon=2, samples=3).run()
    (tmp_path / "out_2.pdb").write_text("mine")
    with pytest.raises(OutputError, match="out_2.pdb exists"):
        surrogate.write(tmp_path / "out.dcd")
    assert [path.name for path in tmp_path.iterdir()] == ["out_2.pdb"]
    written = surrogate.write(tmp_path / "out.dcd", force=True)
    assert sorted(written) == sorted(tmp_path.iterdir()) and len(written) == 6
