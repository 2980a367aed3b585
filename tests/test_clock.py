"""Times of real files: gaps, restarts, several parts, rounding, and files that know nothing of time."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import warnings

import MDAnalysis as mda
import mdtraj
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Ballistic, make_model, make_universe
from MDAnalysis.coordinates.memory import MemoryReader
from MDAnalysisTests import datafiles

from egno_md import EGNOSurrogate, sample
from egno_md.cli import main
from egno_md.errors import DataError, ModelError, SpacingError
from egno_md.evaluation import evaluate
from egno_md.forecast.subject import Subject
from egno_md.trajectory import Clock, from_mdtraj, in_memory_universe, open_universe, preflight, write_forecast
from egno_md.trajectory.clock import read_frame
from egno_md.trajectory.universe import open_runs


def timed(times) -> mda.Universe:
    """Ten atoms with constant velocities, 0.03 A per ps or so, at the given times."""
    u = make_universe(2, velocity=0.03)
    first, second = (u.trajectory[k].positions.copy() for k in (0, 1))
    times = np.asarray(times, float)
    return in_memory_universe(u.atoms, first + (second - first) * (np.nan_to_num(times) % 1000)[:, None, None], times)


def write(path, times, steps=None, *, atoms=10):
    """A file with these times; XTC and TRR hold those of each frame."""
    u = timed(times)
    with mda.Writer(str(path), atoms) as writer:
        for k, ts in enumerate(u.trajectory):
            if steps is not None:
                ts.data["step"] = int(steps[k])
            writer.write(u.atoms[:atoms])
    return path


@pytest.fixture
def topology(tmp_path):
    u = make_universe(1)
    u.atoms.write(str(tmp_path / "t.pdb"))
    return tmp_path / "t.pdb"


def frames_of(clock):
    return [stretch.tolist() for stretch in clock.stretches]


@pytest.mark.parametrize(
    ("times", "spacing", "stretches"),
    [
        ([0, 1, 2, 3, 5, 6], 1, [[0, 1, 2, 3], [4, 5]]),  # a frame was lost
        ([0, 1, 2, 2, 3, 4], 1, [[0, 1, 2, 4, 5]]),  # the restart repeats its first frame
        ([0, 1, 2, 3, 2, 3, 4], 1, [[0, 1, 2, 3], [4, 5, 6]]),  # the restart goes back
        ([0, 1, 2, 0, 1, 2], 1, [[0, 1, 2], [3, 4, 5]]),  # the clock begins anew
        ([3, 4, 5, 0, 1, 2], 1, [[0, 1, 2], [3, 4, 5]]),  # the wrong order
        ([0, 1, 2, 3, 4, 6, 8], 1, [[0, 1, 2, 3, 4], [5], [6]]),  # saved less often from then on
        ([0, 10, 20, 20.5, 30, 40], 10, [[0, 1, 2], [3], [4, 5]]),
        ([0, 1.0006, 2, 3.0006, 4, 6, 7], 1, [[0, 1, 2, 3, 4], [5, 6]]),  # written with few digits, and one was lost
    ],
)
def test_even_stretches_are_used(times, spacing, stretches):
    clock = Clock.of(timed(times))
    assert clock.spacing == spacing and frames_of(clock) == stretches
    assert len(clock.notes) == (len(stretches) > 1)
    if clock.notes:
        longest = max(stretches, key=len)
        assert f"{longest[0]} to {longest[-1]}" in clock.notes[0]


@pytest.mark.parametrize("times", [[0, 0, 0, 0], [5, 4, 3, 2], [0, np.nan, 2, 3]])
def test_times_that_mean_nothing_are_refused_with_the_cure(times):
    with pytest.raises(DataError, match=r"--dt"):
        Clock.of(timed(times))


def test_times_of_which_hardly_any_are_a_spacing_apart_are_refused():
    """As of a run that was saved by the step of an integrator that chooses it: two neighbours may agree by chance."""
    times = np.arange(100) + np.random.default_rng(0).uniform(-0.3, 0.3, 100)
    times[41] = times[40] + 1
    with pytest.raises(DataError, match="not evenly spaced.*--dt"):
        Clock.of(timed(times))
    times[:30] = np.arange(30) - 100.0  # a part of it that is even is enough
    assert Clock.of(timed(times)).stretches[0].tolist() == list(range(30))


def test_a_frame_is_looked_for_by_its_time():
    clock = Clock.of(timed([0, 1, 2, 4, 5, 6, 6, 7, 3, 4]))
    assert clock.shifted(3, -1) is None and clock.shifted(3, -2) == 2  # across the gap, where it is not needed
    assert clock.shifted(7, -1) == 6 and clock.shifted(5, 1) == 7  # the copy on this side of the two
    assert clock.shifted(8, -1) is None and clock.shifted(2, 1) is None and clock.shifted(7, -3) == 3
    assert clock.shifted(0, 0.5) is None


def test_a_forecast_from_a_run_with_gaps(ballistic):
    u = timed([0, 1, 2, 3, 5, 6, 7, 8, 9, 12])
    with pytest.warns(UserWarning, match="even stretches are frames 0 to 3 .* 4 to 8"):
        surrogate = EGNOSurrogate(u, ballistic, horizon=4).run(frames=[3, 5])
    np.testing.assert_allclose(surrogate.results.times, [[4, 5, 6, 7], [7, 8, 9, 10]])
    # Frames are found by their times: 4 and 10 ps are missing, the others are where constant velocity takes the atoms.
    np.testing.assert_allclose(surrogate.results.rmsd, [[np.nan, 0, 0, 0], [0, 0, 0, np.nan]], atol=1e-4)
    with pytest.warns(UserWarning, match=r"frame 9 has no frame one stride before it \(frame 8 has one\)"):
        EGNOSurrogate(u, ballistic, horizon=4).run()
    with pytest.warns(UserWarning, match="frame 0 has no frame one stride before it: its velocities are"):
        EGNOSurrogate(u, ballistic, horizon=4).run(frames=[0])


def test_a_gap_in_the_run_that_is_written_is_said(ballistic, tmp_path):
    u = timed([*range(5), *range(7, 14)])
    with pytest.warns(UserWarning, match=r"the frames from 5 \(t = 7 ps\) on are written: there is a gap"):
        EGNOSurrogate(u, ballistic, horizon=4, filename=tmp_path / "o.xtc", with_input=True).run()
    read = mda.Universe(str(tmp_path / "o.pdb"), str(tmp_path / "o.xtc"))
    np.testing.assert_allclose([ts.time for ts in read.trajectory], np.arange(7, 18))


def test_history_reaches_across_gaps_that_it_does_not_touch():
    model = make_model(Ballistic(4))
    subject = Subject.of(timed([0, 0.5, 1, 1.5, 2, 3, 3.5, 4]), model.graph, model.window)
    assert subject.every == 2 and subject.past(5) == [4, 5] and subject.past(7) == [5, 7]
    assert subject.past(6) == [6]  # 2.5 ps was not saved
    with pytest.raises(DataError, match="frame 5 has 3 strides of past"):
        long = make_model(history=4)
        Subject.of(timed([0, 0.5, 1, 1.5, 2, 3, 3.5, 4]), long.graph, long.window).history([5])


def test_evaluation_never_reads_across_a_gap():
    model = make_model(Ballistic(4))
    times = np.delete(np.arange(41.0), 20)
    with pytest.warns(UserWarning, match="even stretches"):
        result = evaluate(model, timed(times))
    assert result.n_windows == 2 * (20 - 1 - 4) and result.errors["model"].max() < 1e-6


@pytest.mark.parametrize("suffix", ["xtc", "trr"])
@pytest.mark.parametrize(
    ("parts", "last"),
    [
        (["0 1 2 3 4", "5 6 7 8 9"], 9),
        (["0 1 2 3 4", "4 5 6 7"], 7),  # the first frame is there twice
        (["0 1 2 3 4", "3 4 5 6"], 6),  # parts overlap
        (["0 1 2", "0 1 2 3"], 3),  # the clock begins anew
        (["5 6 7 8 9", "0 1 2 3 4"], 9),  # the wrong order
        (["0", "1", "2", "3"], 3),  # one frame per file
        (["2", "1", "0"], 2),
        (["0 1 2 3 4", "6 7 8 9"], 9),  # a frame is missing between them
        (["0 1 2 3", "4"], 4),
    ],
)
def test_parts_of_a_run(tmp_path, topology, ballistic, suffix, parts, last):
    files = [write(tmp_path / f"{k}.{suffix}", list(map(float, part.split()))) for k, part in enumerate(parts)]
    universe = open_universe(topology, files)
    surrogate = EGNOSurrogate(universe, ballistic, horizon=4, filename=tmp_path / "o.dcd").run()
    np.testing.assert_allclose(surrogate.results.times, [last + np.arange(1.0, 5.0)], atol=1e-4)
    back = mda.Universe(str(tmp_path / "o.pdb"), str(tmp_path / "o.dcd"))
    np.testing.assert_allclose([ts.time for ts in back.trajectory], last + np.arange(1.0, 5.0), rtol=1e-5)
    previous = surrogate._history[0]
    assert np.abs(previous[1] - previous[0]).max() > 0.01  # it has its past


def test_parts_whose_files_have_no_times_need_dt(tmp_path, topology, ballistic):
    files = []
    for k in range(4):
        files.append(tmp_path / f"{k}.pdb")
        make_universe(5).trajectory[k]
        u = make_universe(5)
        u.trajectory[k]
        u.atoms.write(str(files[-1]))
    with pytest.raises(DataError, match="no times; give the true spacing"):
        EGNOSurrogate(open_universe(topology, files), ballistic)
    surrogate = EGNOSurrogate(open_universe(topology, files, dt=1.0), ballistic).run()
    assert surrogate.start_times[0] == 3 and surrogate.results.times[0, 0] == 4


def test_a_continuous_chain_of_mdanalysis(tmp_path, topology, ballistic):
    write(tmp_path / "a.xtc", [0.0, 1, 2, 3, 4])
    write(tmp_path / "b.xtc", [4.0, 5, 6, 7, 8, 9])
    universe = mda.Universe(str(topology), [str(tmp_path / "a.xtc"), str(tmp_path / "b.xtc")], continuous=True)
    assert universe.trajectory.n_frames == 10 and frames_of(Clock.of(universe)) == [list(range(10))]
    np.testing.assert_allclose(EGNOSurrogate(universe, ballistic, horizon=2).run().results.times, [[10, 11]])


@pytest.mark.parametrize("begin", [0.0, 5e6, 2.0**24, 1e8])
@pytest.mark.parametrize("spacing", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("suffix", ["xtc", "trr"])
def test_late_times(tmp_path, topology, begin, spacing, suffix):
    times = begin + spacing * np.arange(50)
    write(tmp_path / f"r.{suffix}", times, (1e9 + 500 * np.arange(50)) % 2**31)
    clock = Clock.of(open_universe(topology, [tmp_path / f"r.{suffix}"]))
    assert clock.spacing == pytest.approx(spacing, rel=1e-3) or clock.uncertainty > abs(clock.spacing - spacing)
    if begin <= 2.0**24:
        assert clock.spacing == spacing
    assert len(clock.stretches) == 1 and clock.per_stride(spacing) == 1
    np.testing.assert_allclose(np.diff(clock.times), clock.spacing, rtol=1e-3)


@pytest.mark.parametrize("per_frame", [1, 500])
def test_late_gaps_are_seen_by_the_step_numbers(tmp_path, topology, per_frame):
    steps = np.delete(np.arange(60), 30)
    write(tmp_path / "r.xtc", 2.0**24 + steps, per_frame * steps)
    clock = Clock.of(open_universe(topology, [tmp_path / "r.xtc"]))
    assert clock.spacing == 1 and list(map(len, clock.stretches)) == [30, 29]


def test_strides_that_do_not_fit_have_a_cure_that_works(ballistic):
    with pytest.raises(ModelError, match=r"1 ps apart, so 2 of them are 2 ps.*leave every .--every. out") as caught:
        EGNOSurrogate(make_universe(), ballistic, every=2)
    assert isinstance(caught.value, SpacingError) and isinstance(caught.value, DataError)
    EGNOSurrogate(make_universe(), ballistic)
    with pytest.raises(SpacingError, match=r"so 4 of them are 2 ps.*pass every=2"):
        EGNOSurrogate(make_universe(dt=0.5), ballistic, every=4)
    EGNOSurrogate(make_universe(dt=0.5), ballistic, every=2)
    with pytest.raises(SpacingError, match=r"3 ps apart.*dt=1 \(--dt 1\)"):
        EGNOSurrogate(make_universe(dt=3), ballistic)


def test_the_true_spacing_counts_frames_without_positions(tmp_path, topology):
    run = tmp_path / "r.trr"
    write_trr(run, [True, False] * 5, dt=3.0)  # positions 6 ps apart
    clock = Clock.of(open_universe(topology, [run]))
    with pytest.raises(SpacingError, match=r"with the positions of every frame; .* dt=0\.5 \(--dt 0\.5\)"):
        clock.per_stride(1.0)
    assert Clock.of(open_universe(topology, [run], dt=0.5)).per_stride(1.0) == 1


def test_substeps_are_compared_with_the_frames_of_their_times(ballistic):
    u = make_universe(21, dt=0.25)
    results = EGNOSurrogate(u, ballistic, horizon=8, every=4, substeps=4).run(frames=[8]).results
    np.testing.assert_allclose(results.times[0], 2 + 0.25 * np.arange(1, 9))
    np.testing.assert_allclose(results.rmsd, 0, atol=1e-4)
    coarse = EGNOSurrogate(make_universe(12), ballistic, horizon=8, substeps=4).run(frames=[5]).results
    assert np.isfinite(coarse.rmsd[0]).tolist() == [False, False, False, True] * 2


class TestFormats:
    @pytest.mark.parametrize("parts", [1, 2])
    @pytest.mark.parametrize("suffix", ["ncdf", "lammpsdump", "pdb", "xyz", "xtc", "trr", "dcd"])
    def test_dt_replaces_the_times_of_every_format(self, tmp_path, suffix, parts):
        u = make_universe(6, dt=5.0, box=[40, 40, 40, 90, 90, 90])
        u.atoms.write(str(tmp_path / "t.pdb"))
        files = [tmp_path / f"{k}.{suffix}" for k in range(parts)]
        for file in files:
            dump(u, file)
        universe = open_universe(tmp_path / "t.pdb", files, dt=1.5)
        assert Clock.of(universe).spacing == pytest.approx(1.5)
        np.testing.assert_allclose([ts.time for ts in universe.trajectory], 1.5 * np.arange(6 * parts))
        assert universe.trajectory[-1].time == universe.trajectory[3].time + 1.5 * (6 * parts - 4)
        twin = universe.copy()
        assert twin.trajectory[4].time == 6.0

    def test_lammps_dumps_know_no_time(self, tmp_path):
        u = make_universe(6, box=[40, 40, 40, 90, 90, 90])
        u.atoms.write(str(tmp_path / "t.pdb"))
        dump(u, tmp_path / "r.lammpsdump")
        with pytest.raises(DataError, match=r"6 frames but no times.*--dt"):
            Clock.of(open_universe(tmp_path / "t.pdb", [tmp_path / "r.lammpsdump"]))

    def test_models_of_an_nmr_structure_are_no_run(self, tmp_path, monkeypatch):
        u, pdb = make_universe(6), tmp_path / "an nmr.pdb"
        u.atoms.write(str(pdb), frames="all")
        run = pdb.read_text()
        with pytest.raises(DataError, match="6 frames but no times"):
            Clock.of(open_universe(pdb, []))  # whatever else has written models may be a run
        pdb.write_text("EXPDTA    SOLUTION NMR\n" + run)
        with pytest.raises(DataError, match="holds 6 models of an NMR structure.*--dt") as told:
            Clock.of(open_universe(pdb, []))
        (said,) = Clock.of(open_universe(pdb, [], dt=10.0)).notes
        assert "6 models of an NMR structure" in said and "a run with a frame every 10 ps" in said
        monkeypatch.chdir(tmp_path)  # where the command of the message leaves its file
        exec(shlex.split(re.search(r"\(python -c (.*)\)\. Where", str(told.value))[1])[0])
        clock = Clock.of(open_universe("model.pdb", [], dt=10.0))
        assert len(clock.times) == 1 and not clock.notes
        pdb.write_text("EXPDTA    X-RAY DIFFRACTION\n" + run)
        assert not Clock.of(open_universe(pdb, [], dt=10.0)).notes

    def test_a_dcd_whose_writer_knew_no_times_is_doubted(self, tmp_path, topology):
        u = make_universe(6, dt=2.0)
        u.atoms.write(str(tmp_path / "r.xtc"), frames="all")
        mdtraj.load(str(tmp_path / "r.xtc"), top=str(topology)).save_dcd(str(tmp_path / "m.dcd"))
        (said,) = Clock.of(mda.Universe(str(topology), str(tmp_path / "m.dcd"))).notes
        assert (
            "m.dcd says 1 where" in said
            and "0.0488882 ps are taken" in said
            and said.endswith("--dt on the command line)")
        )
        clock = Clock.of(open_universe(topology, [tmp_path / "m.dcd"], dt=2.0))
        assert clock.spacing == 2 and clock.notes == ()
        assert Clock.of(mda.Universe(str(topology), str(tmp_path / "m.dcd"), dt=2.0)).notes == ()
        done = CliRunner().invoke(
            main, ["predict", str(topology), str(tmp_path / "m.dcd"), "-o", str(tmp_path / "o.dcd")]
        )
        assert "decided    the header of" in done.output

    def test_a_dcd_of_lammps_is_in_units_that_mdanalysis_does_not_take_it_for(self):
        (said,) = Clock.of(open_universe(datafiles.LAMMPSdata2, [datafiles.LAMMPSdcd2])).notes
        assert "24.4441 ps are taken" in said and "LAMMPS in fs, of which 0.5 ps" in said  # 250 steps of 2 fs
        known = Clock.of(mda.Universe(datafiles.LAMMPSdata2, datafiles.LAMMPSdcd2, format="LAMMPS"))
        assert known.notes == () and known.spacing == pytest.approx(0.5)

    @pytest.mark.parametrize("name", ["DCD", "DCD_NAMD_GBIS", "DCD_TRICLINIC", "waterDCD"])
    def test_a_dcd_of_charmm_or_namd_is_not_doubted(self, name):
        n_atoms = mda.coordinates.DCD.DCDReader(getattr(datafiles, name)).n_atoms
        u = mda.Universe.empty(n_atoms)
        u.load_new(getattr(datafiles, name))
        assert Clock.of(u).notes == ()

    def test_a_cut_netcdf_keeps_its_whole_frames(self, tmp_path, topology):
        dump(make_universe(6), tmp_path / "r.ncdf")
        whole = (tmp_path / "r.ncdf").read_bytes()
        expected = mda.Universe(str(topology), str(tmp_path / "r.ncdf")).trajectory[2].positions.copy()
        (tmp_path / "cut.ncdf").write_bytes(whole[: len(whole) - 300])
        with pytest.warns(UserWarning, match=r"cut\.ncdf ends inside a frame: .* hold 3 whole frames"):
            universe = open_universe(topology, [tmp_path / "cut.ncdf"])
        np.testing.assert_array_equal(universe.trajectory[2].positions, expected)
        (tmp_path / "head.ncdf").write_bytes(whole[:60])
        with pytest.raises(DataError, match=r"head\.ncdf is damaged.*header"):
            open_universe(topology, [tmp_path / "head.ncdf"])

    @pytest.mark.parametrize("cut", [3, 40, 150])
    def test_a_cut_xyz_keeps_its_whole_frames(self, tmp_path, topology, cut):
        dump(make_universe(6), tmp_path / "r.xyz")
        whole = (tmp_path / "r.xyz").read_bytes()
        (tmp_path / "cut.xyz").write_bytes(whole[:-cut])
        with pytest.warns(UserWarning, match=r"cut\.xyz ends inside a frame.*5 whole frames"):
            assert len(open_universe(topology, [tmp_path / "cut.xyz"], dt=1).trajectory) == 5
        (tmp_path / "bare.xyz").write_bytes(whole.rstrip())  # nothing is missing but the end of the line
        assert len(open_universe(topology, [tmp_path / "bare.xyz"], dt=1).trajectory) == 6

    @pytest.mark.parametrize("suffix", ["lammpsdump", "mdcrd"])
    def test_a_cut_text_file_says_what_is_left_out(self, tmp_path, topology, suffix):
        dump(make_universe(6), tmp_path / f"r.{suffix}")
        text = (tmp_path / f"r.{suffix}").read_text()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert len(open_universe(topology, [tmp_path / f"r.{suffix}"], dt=1).trajectory) == 6
        (tmp_path / f"cut.{suffix}").write_text(text[:-100])
        with pytest.warns(UserWarning, match=rf"cut\.{suffix} ends inside a frame.*hold 5 whole frames"):
            assert len(open_universe(topology, [tmp_path / f"cut.{suffix}"], dt=1).trajectory) == 5

    def test_models_of_different_size_are_named(self, tmp_path, topology, ballistic):
        dump(make_universe(6), tmp_path / "r.pdb")
        lines = (tmp_path / "r.pdb").read_text().splitlines(keepends=True)
        atoms = [k for k, line in enumerate(lines) if line.startswith("ATOM")]
        del lines[atoms[37]]
        (tmp_path / "r.pdb").write_text("".join(lines))
        universe = open_universe(tmp_path / "t.pdb", [tmp_path / "r.pdb"], dt=1)
        with pytest.raises(DataError, match=r"frame 3 of .*r\.pdb cannot be read"):
            EGNOSurrogate(universe, ballistic).run(frames=[2, 3])
        with pytest.raises(DataError, match=r"frame 3 of .*r\.pdb cannot be read"):
            EGNOSurrogate(universe, ballistic).run(frames=[4])
        with pytest.raises(DataError, match=r"frame 3 of .*r\.pdb cannot be read"):
            Subject.of(universe, None).runs()
        with pytest.warns(UserWarning, match=r"not compared: frame 3 of"):
            results = EGNOSurrogate(universe, ballistic).run(frames=[2]).results
        assert np.isnan(results.rmsd[0, 0]) and np.isfinite(results.rmsd[0, 1])

    def test_the_frame_asked_for_counts(self):
        universe = open_universe(datafiles.TPR2021)
        model = make_model(Ballistic(4), select="protein and name CA")
        assert universe.trajectory.ts.frame == -1
        with pytest.warns(UserWarning, match="one frame"):
            surrogate = EGNOSurrogate(universe, model, horizon=2).run()
        np.testing.assert_array_equal(surrogate.results.frames, [0])
        assert surrogate.start_times[0] == 0 and surrogate.results.times[0, 0] == 1

    def test_frames_without_positions_are_named_and_stepped_over(self, tmp_path, topology, ballistic):
        write_trr(tmp_path / "r.trr", [True] + 9 * [False])
        with pytest.warns(UserWarning, match="one frame"):
            surrogate = EGNOSurrogate(open_universe(topology, [tmp_path / "r.trr"]), ballistic)
        with pytest.raises(DataError, match=r"frame 9 of .*r\.trr holds no positions.*frame 0 has them"):
            surrogate.run()
        write_trr(tmp_path / "half.trr", [False, True] * 6, dt=0.5)
        surrogate = EGNOSurrogate(open_universe(topology, [tmp_path / "half.trr"]), ballistic, horizon=2)
        np.testing.assert_allclose(surrogate.run().results.times, [[6.5, 7.5]])
        assert [len(run.positions) for run in surrogate.subject.runs()] == [6]
        with pytest.raises(DataError, match=r"frame 10 of .* holds no positions"):
            surrogate.run(frames=[10])
        write_trr(tmp_path / "odd.trr", [False, True] * 6)
        with pytest.raises(ModelError, match=r"2 ps apart \(6 of its 12 frames, such as frame 10, hold no positions"):
            EGNOSurrogate(open_universe(topology, [tmp_path / "odd.trr"]), ballistic)
        write_trr(tmp_path / "none.trr", [False] * 3)
        with pytest.raises(DataError, match="none of the 3 frames .* holds positions"):
            EGNOSurrogate(open_universe(topology, [tmp_path / "none.trr"]), ballistic)

    def test_mdtraj_times_that_are_numbers_are_said(self, tmp_path, topology):
        u = make_universe(5, dt=2.0)
        u.atoms.write(str(tmp_path / "r.dcd"), frames="all")
        u.atoms.write(str(tmp_path / "r.xtc"), frames="all")
        loaded = mdtraj.load(str(tmp_path / "r.dcd"), top=str(topology))
        for numbered in (loaded, loaded[1:], loaded[::2]):
            with pytest.warns(UserWarning, match="numbers the frames.*every DCD file") as said:
                from_mdtraj(numbered)
        assert Clock.of(from_mdtraj(loaded, dt=2.0)).spacing == 2
        cure = str(said[0].message).rpartition(": ")[2]  # "trajectory.time = 10.0 * ..."
        exec(cure, {"trajectory": loaded, "np": np})
        assert Clock.of(from_mdtraj(loaded)).spacing == 10
        assert Clock.of(from_mdtraj(mdtraj.load(str(tmp_path / "r.xtc"), top=str(topology)))).spacing == 2
        read = mdtraj.load(str(sample()[1]), top=str(sample()[0]))
        with warnings.catch_warnings(action="error"):  # times that were read may be 1, 2, 3, ... ps as well
            assert Clock.of(from_mdtraj(read)).spacing == 1


def dump(u, path):
    """All frames in any format, some of which MDAnalysis does not write."""
    if path.suffix == ".lammpsdump":
        with open(path, "w") as stream:
            for k, _ in enumerate(u.trajectory):
                stream.write(f"ITEM: TIMESTEP\n{500 * k}\nITEM: NUMBER OF ATOMS\n{len(u.atoms)}\n")
                stream.write("ITEM: BOX BOUNDS pp pp pp\n0 40\n0 40\n0 40\nITEM: ATOMS id type x y z\n")
                for n, xyz in enumerate(u.atoms.positions):
                    stream.write(f"{n + 1} 1 {xyz[0]:.4f} {xyz[1]:.4f} {xyz[2]:.4f}\n")
    elif path.suffix == ".mdcrd":
        with open(path, "w") as stream:
            stream.write("title\n")
            for ts in u.trajectory:
                numbers = [f"{x:8.3f}" for x in ts.positions.ravel()]
                stream.writelines("".join(numbers[k : k + 10]) + "\n" for k in range(0, len(numbers), 10))
    else:
        u.atoms.write(str(path), frames="all")


def write_trr(path, with_positions, dt=1.0):
    """A TRR file some of whose frames hold velocities alone."""
    from MDAnalysis.lib.formats.libmdaxdr import TRRFile

    u = make_universe(len(with_positions), dt=dt, velocity=0.1 * dt)
    with TRRFile(str(path), "w") as file:
        for k, has in enumerate(with_positions):
            xyz = u.trajectory[k].positions / 10
            file.write(xyz if has else None, np.zeros_like(xyz), None, np.zeros((3, 3)), k, k * dt, 0.0, 10)


class TestWrapped:
    @pytest.mark.parametrize(("name", "kind"), [("r.xtc.gz", "gz"), ("r.xtc", "gz"), ("r.dcd.bz2", "bz2")])
    def test_compressed_files(self, tmp_path, topology, name, kind):
        import bz2
        import gzip

        plain = write(tmp_path / ("w.dcd" if "dcd" in name else "w.xtc"), [0.0, 1, 2]).read_bytes()
        (tmp_path / name).write_bytes({"gz": gzip, "bz2": bz2}[kind].compress(plain))
        with pytest.raises(DataError, match=rf"{name} is compressed.*unpack it first: (gzip|bzip2) -dc"):
            open_universe(topology, [tmp_path / name])

    def test_compressed_text_is_read(self, tmp_path, topology):
        import gzip

        (tmp_path / "t.pdb.gz").write_bytes(gzip.compress(topology.read_bytes()))
        write(tmp_path / "r.xtc", [0.0, 1, 2])
        assert len(open_universe(tmp_path / "t.pdb.gz", [tmp_path / "r.xtc"]).trajectory) == 3

    def test_byte_order_mark(self, tmp_path, topology):
        write(tmp_path / "r.xtc", [0.0, 1, 2])
        (tmp_path / "b.pdb").write_bytes(b"\xef\xbb\xbf" + topology.read_bytes())
        with pytest.raises(DataError, match=r"b\.pdb starts with a byte-order mark.*tail -c \+4"):
            open_universe(tmp_path / "b.pdb", [tmp_path / "r.xtc"])
        (tmp_path / "u.pdb").write_bytes(topology.read_text().encode("utf-16"))
        with pytest.raises(DataError, match=r"u\.pdb is UTF-16 text.*iconv"):
            open_universe(tmp_path / "u.pdb", [tmp_path / "r.xtc"])

    def test_latin_1_remarks(self, tmp_path, topology):
        write(tmp_path / "r.xtc", [0.0, 1, 2])
        (tmp_path / "l.pdb").write_bytes(b"REMARK one\nREMARK M\xfcller\n" + topology.read_bytes())
        with pytest.raises(DataError, match=r"line 2 of .*l\.pdb has a character that is no UTF-8.*0xfc.*iconv"):
            open_universe(tmp_path / "l.pdb", [tmp_path / "r.xtc"])

    def test_the_commands_of_the_cures_take_any_name(self, tmp_path, topology, monkeypatch):
        import gzip

        monkeypatch.chdir(tmp_path)
        whole = write(tmp_path / "r.xtc", [0.0, 1, 2]).read_bytes()
        cut = bytearray(whole)
        cut[len(whole) // 3 * 2 + 4] ^= 0xFF  # the number of atoms of the third frame
        made = {
            "a b.xtc.gz": gzip.compress(whole),
            "c 'd.xtc": bytes(cut),
            "e (f).pdb": b"\xef\xbb\xbf" + topology.read_bytes(),
            "g h.pdb": topology.read_text().encode("utf-16"),
            "i $j.pdb": b"REMARK M\xfcller\n" + topology.read_bytes(),
        }
        for name, data in made.items():
            (tmp_path / name).write_bytes(data)
            files = [topology, name] if ".xtc" in name else [name, "r.xtc"]
            with pytest.raises(DataError) as error:
                open_universe(files[0], files[1:])
            command = re.search(r"(gzip|head|tail|iconv) -.*? > .*", str(error.value))[0]
            subprocess.run(["sh", "-c", command], check=True)
            new = shlex.split(command)[-1]
            files = [new if file == name else file for file in files]
            assert len(open_universe(files[0], files[1:]).trajectory) >= 2, command

    def test_pipes_and_devices(self, tmp_path, topology):
        import os

        os.mkfifo(tmp_path / "p.xtc", 0o600)
        for name in (tmp_path / "p.xtc", "/dev/null"):
            with pytest.raises(DataError, match="is not a regular file"):
                open_universe(topology, [name])
        with pytest.raises(DataError, match="is not a regular file"):
            open_universe(tmp_path / "p.xtc")

    def test_coordinates_are_no_topology(self, tmp_path):
        dump(make_universe(3), tmp_path / "r.ncdf")
        with pytest.raises(DataError, match=r"r\.ncdf is a trajectory without atom names.*give the topology first"):
            open_universe(tmp_path / "r.ncdf")
        with pytest.raises(DataError, match=r"without atom names"):
            open_universe(datafiles.INPCRD)


class TestWritten:
    def test_far_from_the_origin(self, tmp_path, ballistic):
        u = make_universe(4)
        u.trajectory.coordinate_array[:] -= 1500
        target = tmp_path / "o.dcd"
        with pytest.warns(UserWarning, match=r"o\.pdb is moved to the origin, the trajectory is not"):
            results = EGNOSurrogate(u, ballistic, horizon=3, filename=target).run().results
        back = mda.Universe(str(tmp_path / "o.pdb"), str(target))
        np.testing.assert_array_equal(back.trajectory[0].positions, results.positions[0, 0])
        alone = mda.Universe(str(tmp_path / "o.pdb")).atoms.positions
        assert np.abs(alone).max() < 100
        moved = results.positions[0, 0] - alone
        np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=2e-3)

    def test_chains_have_letters_of_their_own(self, tmp_path):
        u = mda.Universe.empty(10, n_residues=5, atom_resindex=np.repeat(np.arange(5), 2), trajectory=True)
        u.add_TopologyAttr("names", [f"C{k}" for k in range(10)])
        u.add_TopologyAttr("resids", [1, 2, 3, 1, 2])  # the numbers start anew: a chain ends, as in GRO files
        u.load_new(np.random.default_rng(0).normal(size=(2, 10, 3)).astype(np.float32), dt=1.0)
        write_forecast(tmp_path / "o.xtc", u.atoms, u.trajectory.coordinate_array, [0.0, 1.0])
        read = mda.Universe(str(tmp_path / "o.pdb"))
        assert list(read.atoms.chainIDs) == ["A"] * 6 + ["B"] * 4
        assert mdtraj.load(str(tmp_path / "o.pdb")).topology.n_chains == 2
        u.add_TopologyAttr("chainIDs", ["Q"] * 5 + ["R"] * 5)
        write_forecast(tmp_path / "o.xtc", u.atoms, u.trajectory.coordinate_array, [0.0, 1.0], force=True)
        assert list(mda.Universe(str(tmp_path / "o.pdb")).atoms.chainIDs) == ["Q"] * 5 + ["R"] * 5


class TestOpenedOnce:
    @pytest.fixture
    def counted(self, monkeypatch):
        """How often each file is parsed as a topology, walked, or given to a reader of MDAnalysis."""
        counts: dict[str, list[str]] = {"universe": [], "walk": []}
        first = mda.Universe.__init__

        def init(self, topology=None, *files, **kwargs):
            counts["universe"] += [str(name[0] if isinstance(name, tuple) else name) for name in files]
            if isinstance(topology, str):
                counts["universe"].append(topology)
            first(self, topology, *files, **kwargs)

        monkeypatch.setattr(mda.Universe, "__init__", init)
        for suffix, scanner in preflight.SCANNERS.items():

            def walk(name, data, scanner=scanner):
                counts["walk"].append(name)
                return scanner(name, data)

            monkeypatch.setitem(preflight.SCANNERS, suffix, walk)
        return counts

    def test_predict(self, tmp_path, topology, counted):
        model = make_model(start="static").save(tmp_path / "m.safetensors")
        files = [write(tmp_path / f"{k}.xtc", 5.0 * k + np.arange(5)) for k in range(2)]
        arguments = ["predict", topology, *files, "--model", model, "-o", tmp_path / "o.xtc", "--with-input"]
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
        inputs = sorted(map(str, [topology, *files]))
        assert sorted(name for name in counted["universe"] if "/" in name) == inputs
        assert sorted(name for name in counted["walk"] if "part" not in name) == sorted(map(str, files))

    def test_several_runs_of_one_topology(self, tmp_path, topology, counted):
        files = [write(tmp_path / f"{k}.xtc", np.arange(5.0 + k)) for k in range(3)]
        counted["universe"].clear()
        universes = open_runs(topology, files)
        assert [len(u.trajectory) for u in universes] == [5, 6, 7]
        for u in universes:
            Clock.of(u)
        assert sorted(counted["universe"]) == sorted(map(str, [topology, *files]))
        assert sorted(counted["walk"]) == sorted(map(str, files))

    def test_one_handle_for_all_frames(self, tmp_path, topology, monkeypatch):
        import builtins

        file = write(tmp_path / "r.xtc", np.arange(8.0))
        universe = open_universe(topology, [file])
        opened = []
        real = builtins.open
        monkeypatch.setattr(builtins, "open", lambda name, *a, **k: opened.append(str(name)) or real(name, *a, **k))
        for _ in range(2):
            for ts in universe.trajectory:
                assert np.isfinite(ts.positions).all()
        assert opened.count(str(file)) <= 1


def predicted(*arguments):
    """Exit code, summary and messages of ``egno-md predict``, in this process."""
    done = CliRunner().invoke(main, ["predict", *map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_frames_that_fail_the_checks_are_kept_with_an_exit_code(tmp_path, topology):
    file = write(tmp_path / "r.xtc", np.arange(5.0))
    model = make_model(seed=1).save(tmp_path / "wild.safetensors")
    code, summary, said = predicted(topology, file, "--model", model, "-o", tmp_path / "o.xtc", "--horizon", 6)
    assert code == 3 and not summary["checks"]["ok"] and "the forecast failed the checks" in said
    assert len(mda.Universe(str(tmp_path / "o.pdb"), str(tmp_path / "o.xtc")).trajectory) == 6
    still = make_model(start="static").save(tmp_path / "still.safetensors")
    assert predicted(topology, file, "--model", still, "-o", tmp_path / "s.xtc")[0] == 0


def test_errors_are_given_for_every_time_or_none(tmp_path, topology):
    file = write(tmp_path / "r.xtc", np.arange(40.0))
    model = make_model(start="static").save(tmp_path / "m.safetensors")
    options = ["--model", model, "-o", tmp_path / "o.xtc", "--substeps", 4, "--from-frame", 20]
    _, summary, _ = predicted(topology, file, *options)
    assert len(summary["rmsd_A"]) == len(summary["rmsd_static_A"]) == len(summary["times_ps"]) == 8
    assert [value is None for value in summary["rmsd_A"]] == [True, True, True, False] * 2
    run = mda.Universe(str(topology), str(file)).trajectory
    start, later = (run[frame].positions.copy() for frame in (20, 22))
    expected = np.sqrt(((later - start) ** 2).sum(axis=1).mean())
    assert summary["times_ps"][7] == 22 and summary["rmsd_static_A"][7] == pytest.approx(expected, rel=1e-3)


def test_one_rule_for_a_foreign_selection(ballistic):
    narrow = make_model(Ballistic(4), select="resid 1")
    u = make_universe(30)
    for use in (lambda: EGNOSurrogate(u, narrow, "all"), lambda: evaluate(narrow, u, select="all")):
        with pytest.raises(ModelError, match="selection 'all' has 5 atoms.*its selection is 'resid 1'"):
            use()
    assert len(EGNOSurrogate(u, narrow, "index 0:2").atoms) == evaluate(narrow, u, select="index 0:2").n_atoms == 3


def test_what_a_reader_raises_is_an_error_that_names_the_frame(ballistic):
    class Failing(MemoryReader):
        def _read_next_timestep(self, ts=None):
            if self.ts.frame == 2:
                raise RuntimeError("the decoder gave up")
            return super()._read_next_timestep(ts)

    u = make_universe(6)
    u.trajectory = Failing(u.trajectory.coordinate_array, dt=1.0)
    with pytest.raises(DataError, match=r"frame 3 of the trajectory cannot be read \(RuntimeError: the decoder"):
        read_frame(u.trajectory, 3)


def test_no_frame_is_left_out_in_silence(tmp_path, topology):
    shutil.copy(topology, tmp_path / "copy.pdb")
    files = [write(tmp_path / "a.xtc", [0.0, 1, 2, 3]), write(tmp_path / "b.xtc", [7.0, 8, 9])]
    clock = Clock.of(open_universe(topology, files))
    assert "0 to 3 (0 to 3 ps), 4 to 6 (7 to 9 ps)" in clock.notes[0]
