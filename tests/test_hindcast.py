"""The forecast that a run gets where none is named: judged on its own last windows; and what odd runs get."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import MDAnalysis as mda
import numpy as np
import pytest
from conftest import make_model, make_universe
from MDAnalysis.lib.mdamath import triclinic_vectors
from test_evaluation import universe_of, wobbling
from test_metrics import tumbled

from egno_md import EGNOSurrogate, sample
from egno_md.errors import DataError, ModelError, StoppedError, UsageError
from egno_md.forecast.forecasters import Static, free_named
from egno_md.forecast.subject import Subject
from egno_md.hindcast.choose import choose
from egno_md.hindcast.engine import FreeEngine
from egno_md.hindcast.hindcast import Entry, Hindcast, interval
from egno_md.hindcast.material import Judged, Material
from egno_md.hindcast.proteins import NAME
from egno_md.molecule.checks import nearest_contact
from egno_md.molecule.geometry import superposed_rmsd
from egno_md.trajectory import stream

TOPOLOGY, TRAJECTORY = map(str, sample())


def material_of(frames, horizon=8, **options) -> Material:
    return Material.of(Subject.plain(universe_of(frames, **options), "all"), horizon)


def test_some_frames_are_evenly_spread_over_the_stretches_of_a_run():
    whole = material_of(wobbling(40))
    frames = np.asarray(whole.runs[0].positions)
    cells = 10 + np.arange(40 * 6, dtype=np.float32).reshape(40, 6)
    parts = [np.split(x, [7, 8, 30]) for x in (frames, cells)]
    cut = [dataclasses.replace(whole.runs[0], positions=x, boxes=c) for x, c in zip(*parts, strict=True)]
    broken = dataclasses.replace(whole, runs=cut)
    for count in (1, 3, 13, 40, 100):
        every = -(-40 // count)
        for material, boxes in ((whole, [None] * len(frames[::every])), (broken, cells[::every])):
            np.testing.assert_array_equal(material.some(count)[0], frames[::every])
            np.testing.assert_array_equal(material.some(count)[1], boxes)


def test_frames_that_the_run_has_again_count_once():
    """As where a run and its parts are all given: what is fitted to one copy would be judged on the other."""
    frames = wobbling(60)
    copied = Subject.plain(universe_of(np.concatenate([frames[:40], frames])), "all")
    copied = dataclasses.replace(copied, clock=dataclasses.replace(copied.clock, stretches=(np.r_[:40], np.r_[40:100])))
    material = Material.of(copied, 8)
    assert [run.numbers.tolist() for run in material.runs] == [list(range(40, 100))]
    assert material.said[-1] == "left out: 40 frames that the run has again later"
    restarted = dataclasses.replace(copied.clock, stretches=(np.r_[:40], np.r_[70:100]))  # of 10 frames once more
    material = Material.of(dataclasses.replace(copied, clock=restarted), 8)
    assert [run.numbers.tolist() for run in material.runs] == [list(range(30)), list(range(70, 100))]


@pytest.mark.parametrize("start", [25, 33, 39])
def test_what_follows_a_frame_is_not_known_where_the_run_has_it_again(start):
    """Files of frames 0 to 39 and 30 to 99: frames 30 to 39 are numbers 30 to 39 and 40 to 49 of the run."""
    frames = wobbling(100)
    twice = Subject.plain(universe_of(np.concatenate([frames[:40], frames[30:]])), "all")
    twice = dataclasses.replace(twice, clock=dataclasses.replace(twice.clock, stretches=(np.r_[:40], np.r_[40:110])))
    material = Material.of(twice, 8)
    known = all_frames(material.known([(start + 1, start + 1 + 16)]).segments)
    told = [frame for frame in range(100) if frames[frame].astype(np.float32).tobytes() in known]
    # Numbers after the start are left out too, of which some are the same frames before it.
    assert set(told) == set(range(100)) - set(range(start + 1, start + 17)) - set(range(30, start + 1))


def test_what_follows_a_frame_is_not_known_in_the_last_of_three_copies():
    frames = wobbling(100)
    thrice = Subject.plain(universe_of(np.concatenate([frames[:40], frames[:40], frames])), "all")
    parts = (np.r_[:40], np.r_[40:80], np.r_[80:180])
    material = Material.of(dataclasses.replace(thrice, clock=dataclasses.replace(thrice.clock, stretches=parts)), 8)
    known = all_frames(material.known([(11, 19)]).segments)
    told = [frame for frame in range(100) if frames[frame].astype(np.float32).tobytes() in known]
    assert told == [*range(11), *range(19, 100)]


def all_frames(segments) -> set[bytes]:
    return {np.asarray(frame, np.float32).tobytes() for x in segments for frame in x}


def test_a_run_with_memory_is_forecast_by_who_draws_and_the_numbers_are_those_of_its_law():
    """Ten atoms with memory 0.9 a frame: the mean errs sqrt(1 - 0.9**2k) of the spread, the standing frame more."""
    frames = tumbled(wobbling(900, phi=0.9))
    choice = choose(material_of(frames))
    found = choice.hindcast
    one, still = found.entries[choice.name], found.entries["static"]
    assert one.draws and found.gains and not found.verdict()
    assert one.against_static[2] < 0 and one.error_against_static[2] < 0
    steps = np.arange(1, 9)
    spread = 0.05 * np.sqrt(3 * (30 - 6) / 30)  # of the shape: six of thirty directions are rigid motion
    np.testing.assert_allclose(one.error, spread * np.sqrt(1 - 0.9 ** (2 * steps)), rtol=0.12)
    np.testing.assert_allclose(still.error, spread * np.sqrt(2 * (1 - 0.9**steps)), rtol=0.12)
    np.testing.assert_allclose(one.spread_over_error, 1, atol=0.15)
    # Two independent draws of a Gaussian are sqrt(2) apart where its mean errs by one; the score lies between.
    np.testing.assert_allclose(one.one_future, np.sqrt(2) * one.error, rtol=0.1)
    np.testing.assert_allclose(one.energy, one.error / np.sqrt(2), rtol=0.1)
    assert still.energy == pytest.approx(still.error) and np.isnan(still.against_static[1]) == (found.n_blocks < 4)
    assert found.line().count(" A") == 3 and f"{found.n_blocks} independent" in found.line()
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["chosen"] == choice.name and set(told["candidates"]) == set(found.entries)
    assert found.table()[2].startswith(f"* {choice.name}") or choice.name in choice.said[0]


def test_nothing_that_is_judged_was_known():
    material = material_of(wobbling(300))
    judged = Judged.last(material, 1 / 3, 16, 1000)
    known = all_frames(judged.known.segments)
    assert len(known) == 200
    for run, starts, low in judged.windows:
        assert starts.min() - 16 >= low and starts.max() + 8 < len(run.positions)
        assert not known & all_frames([run.positions[low:]])


def test_a_run_without_memory_gets_its_own_frames():
    frames = wobbling(400, phi=0.0)
    u = universe_of(frames)
    done = EGNOSurrogate(u, horizon=3).run()
    assert done.engine.name == "ensemble of the run" and done.model is None
    assert any("no memory" in line for line in done.decisions)
    for frame in done.results.positions[0]:  # each is a frame of the run, superposed on the start
        nearest = min(superposed_rmsd(frame.astype(float), frames.astype(float)))
        assert nearest < 0.06


def test_from_inside_nothing_is_copied_from_the_answer():
    frames = wobbling(200)
    seen: list[set[bytes]] = []

    def make(known):
        seen.append(all_frames(known.segments))
        return Static()

    material = material_of(frames)
    engine = FreeEngine("recorder", material, make)

    def hidden(starts, horizon):
        seen.clear()
        rows = {}
        for chosen, _ in engine.forecasters(starts, horizon, 1):
            rows |= dict.fromkeys(np.asarray(chosen).tolist(), seen[-1])
        assert sorted(rows) == list(range(len(starts)))
        for row, known in rows.items():
            ahead = frames[starts[row] + 1 : starts[row] + 1 + horizon]
            assert not known & all_frames([ahead]) and known
        return rows

    hidden([100], 8)
    assert len(seen[-1]) == 200 - 16  # and those of a window after them
    hidden([10, 60, 150], 8)
    many = list(range(0, 190, 5))
    folds = hidden(many, 8)
    assert len({id(known) for known in folds.values()}) == 2
    seen.clear()
    list(engine.forecasters([199], 8, 1))
    assert not seen  # from the end all of it may be known: what was made first


def test_frames_do_not_depend_on_who_else_is_forecast():
    u = universe_of(wobbling(200))
    many = EGNOSurrogate(u, "gaussian process", horizon=12, samples=3, seed=5).run(frames=[199]).results.ensemble
    one = EGNOSurrogate(u, "Gaussian-Process", horizon=12, seed=5).run(frames=[199]).results
    np.testing.assert_array_equal(one.ensemble[0, 0], many[0, 0])
    assert not np.allclose(many[0, 0], many[0, 1])
    other = EGNOSurrogate(u, "gaussian process", horizon=12, seed=6).run(frames=[199]).results
    assert not np.allclose(other.positions, one.positions)
    mean = EGNOSurrogate(u, "gaussian process", horizon=12, mean=True).run(frames=[199]).results
    assert mean.ensemble is None and mean.spread is None


@pytest.mark.parametrize("model", ["gaussian process", "analogues", "elastic network", "ensemble of the run", "static"])
def test_a_long_forecast_goes_on_to_the_same_bytes(monkeypatch, tmp_path, model):
    monkeypatch.setattr(stream, "STREAM_FRAMES", 8)
    monkeypatch.setattr(stream, "STREAM_BYTES", 0)
    u = universe_of(wobbling(120))

    def forecast(name, **options):
        return EGNOSurrogate(u, model, horizon=60, filename=tmp_path / name, **options)

    whole = forecast("whole.xtc").run()
    cut, count = forecast("cut.xtc"), iter(range(3))
    cut.stop_when = lambda: next(count, None) is None
    with pytest.raises(StoppedError, match="--resume"):
        cut.run()
    with pytest.raises(UsageError, match="cannot be gone on with"):
        forecast("cut.xtc", resume=True, **({"every": 2} if model == "static" else {"seed": 1})).run()
    forecast("cut.xtc", resume=True).run()
    assert (tmp_path / "cut.xtc").read_bytes() == (tmp_path / "whole.xtc").read_bytes()
    assert whole.results.positions.shape == (1, 60, 10, 3)
    inside = EGNOSurrogate(u, model, horizon=60).run().results.positions
    np.testing.assert_allclose(np.asarray(whole.results.positions), inside, atol=0.006)


def test_names():
    assert free_named("GAUSSIAN_process") == "Gaussian process" and free_named("ar(1)") == "AR(1)"
    assert free_named("ca-1ps") is None
    with pytest.raises(ModelError, match=r"'analog'.*ca-1ps.*Gaussian process.*analogues"):
        EGNOSurrogate(make_universe(), "analog")
    with pytest.raises(ModelError, match="'static' knows the mean"):
        EGNOSurrogate(universe_of(wobbling(60)), "static", samples=2).run()


def scored(means, spreads, n_windows=40, n_blocks=10):
    """What `judge` gives for candidates with these energy scores, in the mean and their spread over the windows."""
    rng, where = np.random.default_rng(0), (np.zeros(n_windows, int), n_windows // n_blocks)
    noise = {name: rng.normal(size=n_windows) for name in means}
    energy = {name: mean + spreads[name] * (noise[name] - noise[name].mean()) for name, mean in means.items()}
    entries = {}
    for name, values in energy.items():
        less = interval(values - energy["static"], *where, n_blocks)
        row = np.array([means[name]])
        entries[name] = Entry(name != "static", row, row, row, row, None, less, less)
    found = Hindcast(np.array([1.0]), n_windows, n_blocks, entries)
    return found, {name: np.stack([values, values]) for name, values in energy.items()}, where


@pytest.mark.parametrize(
    ("mean", "spread", "chosen", "said"),
    [
        (0.85, 1.5, "elastic network", "the best of 3 (energy score 0.68 A; analogues 0.85"),
        (
            0.69,
            0.1,
            "analogues",
            "analogues: not told apart from the best, elastic network, by 10 independent windows, and",
        ),
    ],
)
def test_who_is_simpler_goes_before_the_best_if_it_beats_the_standing_frame_as_that_does(
    monkeypatch, mean, spread, chosen, said
):
    found = scored(
        {"static": 1.0, "analogues": mean, "elastic network": 0.68},
        {"static": 0.05, "analogues": spread, "elastic network": 0.05},
    )
    monkeypatch.setattr("egno_md.hindcast.choose.judge", lambda *args, **options: found)
    choice = choose(material_of(wobbling(200)))
    assert choice.name == chosen and choice.hindcast.gains and said in choice.said[0]
    asked = choose(material_of(wobbling(200)), only="analogues").hindcast
    loses = "analogues does not beat the standing frame here beyond its interval, elastic network does"
    assert (asked.verdict() == loses) == (chosen != "analogues")


def test_the_verdict_names_no_interval_where_there_is_none():
    found = scored(
        {"static": 0.5, "analogues": 0.6, "AR(1)": 0.4}, dict.fromkeys(("static", "analogues", "AR(1)"), 0.1), 8, 2
    )
    verdict = dataclasses.replace(found[0], chosen="analogues").verdict()
    assert verdict == "analogues does not beat the standing frame here, AR(1) does"


class TestOddRuns:
    def test_one_frame(self):
        with pytest.raises(DataError, match=r"one frame.*these 10 atoms.*TOPOLOGY TRAJECTORY"):
            EGNOSurrogate(make_universe(1))
        u = mda.Universe(TOPOLOGY)
        with pytest.warns(UserWarning, match="one frame"):
            done = EGNOSurrogate(u, horizon=2).run()
        assert done.engine.name == NAME and done.results.hindcast is None

    @pytest.mark.parametrize("n_frames", [2, 3, 5, 10, 25])
    def test_few_frames(self, n_frames):
        u = universe_of(wobbling(240)[:n_frames])
        done = EGNOSurrogate(u, horizon=4).run()
        assert done.results.positions.shape == (1, 4, 10, 3) and done.decisions
        assert np.isfinite(done.results.positions).all() and done.results.checks[0].ok

    def test_frames_that_do_not_move(self):
        u = universe_of(np.repeat(wobbling(1), 50, axis=0))
        done = EGNOSurrogate(u, horizon=4).run()
        assert done.results.moved.max() < 1e-3 and done.engine.name == "static"
        assert "nothing beats the standing frame" in done.results.hindcast.verdict()

    @pytest.mark.parametrize("select", ["index 0", "index 0:1", "index 0:2"])
    def test_a_few_atoms(self, select):
        done = EGNOSurrogate(universe_of(wobbling(80)), select=select, horizon=3).run()
        assert done.results.positions.shape[2] == len(done.atoms) and np.isfinite(done.results.positions).all()

    def test_gaps(self, tmp_path):
        frames, times = wobbling(200), np.delete(np.arange(200.0), [50, 51, 120])
        u = universe_of(frames)
        u.atoms.write(tmp_path / "top.pdb")
        with mda.Writer(str(tmp_path / "run.xtc"), 10) as writer:
            for k in times.astype(int):
                u.trajectory[k].time = times[times.astype(int) == k][0]
                writer.write(u.atoms)
        done = EGNOSurrogate(mda.Universe(tmp_path / "top.pdb", tmp_path / "run.xtc"), horizon=4).run()
        assert any("run.xtc" in line and "missing" in line for line in done.decisions), done.decisions
        np.testing.assert_allclose(done.results.times, [[200, 201, 202, 203]])

    def test_a_box_is_looked_through(self):
        frames = wobbling(120) + np.arange(120)[:, None, None] * [0.3, 0, 0]
        box = [30, 30, 30, 90, 90, 90]
        whole = universe_of(frames)
        wrapped = universe_of(frames)
        wrapped.load_new((frames % 30).astype(np.float32), dt=1.0, dimensions=np.tile(np.float32(box), (120, 1)))
        options = {"model": "gaussian process", "select": "all", "horizon": 4}
        there, here = (EGNOSurrogate(u, **options).run().results for u in (whole, wrapped))
        moved = here.positions - there.positions
        np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1, :1], moved.shape), atol=0.05)

    @pytest.mark.parametrize("model", ["analogues", "mean structure", "gaussian process"])
    def test_a_complex_is_forecast_alike_wherever_the_box_puts_its_parts(self, model, tmp_path):
        """One of two chains stands a width of a triclinic box away, in all frames or since it crossed the border."""
        box = np.float32([34, 30, 28, 80, 70, 60])
        frames = np.concatenate([wobbling(120), wobbling(120, seed=1) + [0, 6, 0]], axis=1)
        found = []
        for first in (120, 0, 50, 100):
            u = mda.Merge(make_universe(1).atoms, make_universe(1).atoms)
            there = frames.copy()
            there[first:, 10:] -= triclinic_vectors(box)[1]
            u.load_new(there.astype(np.float32), dt=1.0, dimensions=np.tile(box, (120, 1)))
            done = EGNOSurrogate(u, model, "all", 20).run(frames=[20, 60, 99, 119])
            assert any("across the periodic border" in line for line in done.decisions) == (first < 120)
            found.append(done.results)
        for other in found[1:]:
            moved = other.positions - found[0].positions
            np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1, :1], moved.shape), atol=2e-3)
            np.testing.assert_allclose(other.rmsd, found[0].rmsd, atol=2e-3)
            assert np.nanmax(other.rmsd_static) < 1
        done.write(tmp_path / "all.xtc", with_input=True)
        ends = mda.Universe(str(tmp_path / "all_000119.pdb"), str(tmp_path / "all_000119.xtc")).trajectory
        steps = np.diff([ts.positions.copy() for ts in ends], axis=0)
        assert len(ends) == 140 and np.abs(steps).max() < 1

    def test_a_molecule_of_one_atom_goes_on_through_the_border(self):
        """As water whose hydrogens are not chosen, ions and beads, which no bond holds."""
        lattice = 4.0 * np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(27, 3)
        frames = lattice + np.cumsum(0.2 * np.random.default_rng(0).normal(size=(150, 27, 3)), axis=0)
        u = mda.Universe.empty(27, trajectory=True)
        u.add_TopologyAttr("names", ["OW"] * 27)
        u.add_TopologyAttr("elements", ["O"] * 27)
        box = np.tile(np.float32([12, 12, 12, 90, 90, 90]), (150, 1))
        u.load_new((frames % 12).astype(np.float32), dt=1.0, dimensions=box)
        done = EGNOSurrogate(u, "gaussian process", "all", 4).run(frames=range(5, 140, 15)).results
        ahead = done.frames[:, None] + np.arange(1, 5)
        moved = np.sqrt(((frames[ahead] - frames[done.frames][:, None]) ** 2).sum(-1).mean(-1))  # (n_starts, 4)
        np.testing.assert_allclose(done.rmsd_static, moved, atol=1e-3)
        assert done.moved.max() < 2

    def test_mixed_strides(self):
        u = universe_of(wobbling(200))
        done = EGNOSurrogate(u, every=4, horizon=3).run()
        np.testing.assert_allclose(done.results.times, [[203, 207, 211]])


def egno_md(*arguments, cwd):
    code = (
        "import sys\nfrom egno_md.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as done:\n    print('EXIT', done.code)\n"
        "print('TORCH' if 'torch' in sys.modules else 'LIGHT')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    return done.stdout, done.stderr


def test_the_command_line_decides_says_why_and_does_not_wait_for_torch(tmp_path):
    out, err = egno_md("predict", TOPOLOGY, TRAJECTORY, "--verbose", cwd=tmp_path)
    assert "EXIT 0" in out and "LIGHT" in out, err
    for words in ("decided    atoms: 76 C-alpha", "hindcast ", "for the standing frame", "independent window", "AR(1)"):
        assert words in out
    out, err = egno_md(
        "predict", TOPOLOGY, TRAJECTORY, "--from-frames", "20:60:20", "--json", "-o", "many.xtc", cwd=tmp_path
    )
    told = json.loads(out[: out.index("EXIT")])
    assert [one["start_frame"] for one in told["starts"]] == [20, 40] and told["hindcast"]["candidates"]
    assert len(told["files"]) == 4 and "hindcast" not in told["starts"][0]  # once for all of them
    assert {path.name for path in tmp_path.glob("many_*.xtc")} == {"many_000020.xtc", "many_000040.xtc"}


def test_a_hindcast_is_printed_as_its_table():
    hindcast = EGNOSurrogate(universe_of(wobbling(120)), horizon=4).run().results.hindcast
    lines = str(hindcast).splitlines()
    assert lines == repr(hindcast).splitlines() == [*hindcast.table(), f"{hindcast.chosen}: {hindcast.line()}"]
    assert "array(" not in str(hindcast)


def test_what_clashes_more_than_the_run_does_is_said_in_the_forecast() -> None:
    """Atoms of the run come as near as 1.5 A, which is a clash by itself; those of the forecast come nearer."""
    apart = 5.0 - 3.5 * np.abs(np.sin(np.arange(60) * 0.7))
    run = np.zeros((60, 2, 3))
    run[:, 1, 0] = apart + np.random.default_rng(0).normal(scale=0.02, size=60)
    run[-1, 1, 0] = 4.0
    u = mda.Universe.empty(2, trajectory=True)
    u.add_TopologyAttr("names", ["AR", "AR"])
    u.load_new(run.astype(np.float32), dt=1.0)
    surrogate = EGNOSurrogate(u, "ensemble of the run", select="all", horizon=4, samples=4)
    found = surrogate.run().results.checks[0]
    nearest = nearest_contact(run, [])
    assert nearest == pytest.approx(1.5, abs=0.1) and found.tally.clash_distance == pytest.approx(0.85 * nearest)
    assert found.tally.clash_distance < 1.4


def test_a_network_may_go_as_far_as_the_run_does():
    """A run that spreads to twice its size, of which one frame is damaged, which is not the one that is forecast."""
    u = make_universe(velocity=0.0, n_frames=30)
    frames = u.trajectory.timeseries(order="fac") * np.linspace(1.0, 2.0, 30)[:, None, None]
    frames[7] = np.nan
    u.load_new(frames.astype(np.float32), dt=1.0)
    surrogate = EGNOSurrogate(u, make_model(), horizon=4, device="cpu").run()
    limits = surrogate.engine.limits(frames[-1])
    np.testing.assert_allclose(limits.radius, [0.5 / 1.25, 1.25], rtol=1e-5)
    assert surrogate.results.checks[0].limits == limits
    assert u.trajectory.frame == 0
