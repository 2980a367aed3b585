"""Long forecasts: written frame by frame, readable meanwhile, and gone on with after any end to the same bytes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import MDAnalysis as mda
import mdtraj
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import Ballistic, make_model, make_universe

from egno_md import EGNOSurrogate, analysis, sample
from egno_md.cli import main
from egno_md.errors import OutputError, StoppedError, UnphysicalError, UsageError
from egno_md.trajectory import stream
from egno_md.trajectory.stream import FrameStream, is_streamed, record_path
from egno_md.trajectory.writer import FrameWriter

HORIZON = 960  # of a hundred atoms; much shorter ones are not streamed
BOX = np.float32([30, 31, 32, 80, 90, 100])
WRITERS = {"settings": {"a": 1, "b": [2.5, None]}}


@pytest.fixture
def short_is_long(monkeypatch):
    monkeypatch.setattr(stream, "STREAM_FRAMES", 8)
    monkeypatch.setattr(stream, "STREAM_BYTES", 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with a topology, a run, and a model of random weights that moves its hundred atoms about."""
    folder = tmp_path_factory.mktemp("run")
    u, place = make_universe(2, velocity=0.002), np.array([0, 8, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        many = mda.Merge(*[u.atoms] * 10)
        frames = [np.concatenate([ts.positions + k * place for k in range(10)]) for ts in u.trajectory]
        many.load_new(np.array(frames, np.float32), dt=1.0)
        many.atoms.write(folder / "top.pdb", bonds="all")
        many.atoms.write(folder / "run.dcd", frames="all")
    make_model(residual=True, reduce="mean", n_times=8, keep_bonds=True).save(folder / "model.safetensors")
    return folder


def arguments(run: Path, out: Path, *more) -> list[str]:
    files = [run / "top.pdb", run / "run.dcd", "--model", run / "model.safetensors"]
    return ["predict", *map(str, [*files, "--horizon", HORIZON, "--device", "cpu", "-o", out, *more])]


def called(*args):
    """The command line in this process."""
    with warnings.catch_warnings():
        return CliRunner().invoke(main, args[0], prog_name="egno-md")


def started(args: list[str], **options) -> subprocess.Popen:
    def defaults():  # in the background SIGINT is ignored, and children inherit that
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "preexec_fn": defaults, **options}
    return subprocess.Popen([sys.executable, "-m", "egno_md", *args], **options)


def wait_for(process: subprocess.Popen, path: Path, size: int) -> None:
    """Until a file is larger than that."""
    while process.poll() is None and not (path.exists() and path.stat().st_size > size):
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(run) -> dict[str, bytes]:
    """What an uninterrupted forecast writes, by suffix."""
    found = {}
    for suffix in (".dcd", ".xtc"):
        out = run / f"whole{suffix}"
        done = called(arguments(run, out, "--json"))
        assert done.exit_code == 3, done.output  # random weights do not make molecules
        found[suffix] = out.read_bytes()
        said = json.loads(done.stdout[done.stdout.index("{") :])
        assert said["frames"] == HORIZON and said["times_ps"] == pytest.approx([2, 1 + HORIZON])
        assert [Path(name).name for name in said["files"]] == [f"whole{suffix}", "whole.pdb"]
        (run / "whole.pdb").rename(run / f"whole{suffix}.pdb")
    return found


@pytest.mark.parametrize("suffix", [".dcd", ".xtc"])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(run, whole, tmp_path, suffix):
    out = tmp_path / f"cut{suffix}"
    rng = np.random.default_rng(len(suffix))
    for share in rng.uniform([0, 0.5], [0.4, 0.9]):
        process = started(arguments(run, out, "--resume"))
        wait_for(process, out, int(share * len(whole[suffix])))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert out.with_suffix(".pdb").read_bytes() == (run / f"whole{suffix}.pdb").read_bytes()
        record = json.loads(record_path(out).read_text())
        assert out.stat().st_size >= record["bytes"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            u = mda.Universe(str(out.with_suffix(".pdb")), str(out))
            assert u.trajectory.n_frames >= record["frames"] > 0
            assert np.isfinite(u.trajectory[-1].positions).all()
        assert mdtraj.load(out, top=out.with_suffix(".pdb")).n_frames >= record["frames"]
    done = called(arguments(run, out, "--resume"))
    assert done.exit_code == 3, done.output
    assert out.read_bytes() == whole[suffix]
    theirs = {f".{out.name}_offsets.{kind}" for kind in ("npz", "lock")}  # of the reader above
    assert {path.name for path in tmp_path.iterdir()} - theirs == {out.name, "cut.pdb", record_path(out).name}


@pytest.mark.parametrize("who", ["Gaussian process", "elastic network"])
def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path, who):
    found = []
    for threads in ("1", "4"):
        env = {**os.environ, "OMP_NUM_THREADS": threads}
        env.pop("OPENBLAS_NUM_THREADS", None)
        out = tmp_path / f"{threads}.dcd"
        args = ["predict", *map(str, sample()), "--model", who, "--horizon", "300", "-o", str(out)]
        done = subprocess.run([sys.executable, "-m", "egno_md", *args], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(out.read_bytes())
    assert found[0] == found[1]


def test_signals_finish_the_frame_say_how_to_go_on_and_give_their_code(run, whole, tmp_path):
    out = tmp_path / "cut.dcd"
    for share, name, code in ((0.1, "SIGTERM", 143), (0.3, "SIGINT", 130), (0.6, "SIGHUP", 129)):
        process = started(arguments(run, out, "--resume"))
        wait_for(process, out, int(share * len(whole[".dcd"])))
        process.send_signal(getattr(signal, name))
        err = process.communicate(timeout=60)[1]
        assert process.returncode == code and "--resume" in err and "resume=" not in err and "Traceback" not in err, err
        record = json.loads(record_path(out).read_text())
        assert record["bytes"] == out.stat().st_size and f"frame {record['frames']} of {HORIZON}" in err
    assert called(arguments(run, out, "--resume")).exit_code == 3
    assert out.read_bytes() == whole[".dcd"]


def test_a_full_disk_keeps_the_frames_and_is_gone_on_with(run, whole, tmp_path):
    out = tmp_path / "cut.dcd"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (900_001, 900_001))

    process = started(arguments(run, out), preexec_fn=limit)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "is the disk full" in err and "--resume" in err and "Traceback" not in err, err
    record = json.loads(record_path(out).read_text())
    assert 880_000 < record["bytes"] == out.stat().st_size <= 900_001
    assert called(arguments(run, out, "--resume")).exit_code == 3
    assert out.read_bytes() == whole[".dcd"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_horizon(run, tmp_path):
    code = (
        "import sys, egno_md.cli as c\n"
        "try: c.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    # Atoms that stand still: what the network needs follows the number of edges, and its libraries keep what they make.
    still = make_model(start="static", residual=True, reduce="mean", n_times=64)
    still.save(tmp_path / "still.safetensors")
    peaks = []
    for horizon in (1000, 20000):
        args = arguments(run, tmp_path / f"{horizon}.dcd")
        args[args.index("--horizon") + 1] = str(horizon)
        args[args.index("--model") + 1] = str(tmp_path / "still.safetensors")
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=600)
        peaks.append(int(done.stdout.split()[-1]))
    assert max(peaks) < 1.1 * min(peaks), peaks


def stopping(after: int):
    """Says stop once a forecast has asked so many times."""
    count = iter(range(after))
    return lambda: next(count, None) is None


def surrogate(u, out, horizon=30, model=None, **options) -> EGNOSurrogate:
    model = model or make_model(Ballistic(4))
    return EGNOSurrogate(u, model, horizon=horizon, filename=out, device="cpu", **options)


@pytest.mark.parametrize("suffix", [".dcd", ".xtc"])
@pytest.mark.parametrize("box", [None, BOX])
def test_a_streamed_file_is_that_of_one_written_whole(monkeypatch, tmp_path, suffix, box):
    u = make_universe(box=box)
    inside = surrogate(u, tmp_path / f"a{suffix}", with_input=True).run(frames=[7])
    monkeypatch.setattr(stream, "STREAM_FRAMES", 8)
    monkeypatch.setattr(stream, "STREAM_BYTES", 0)
    monkeypatch.setattr(analysis, "CHUNK", 3)
    out = tmp_path / f"b{suffix}"
    for windows in (1, 1, 2):  # also inside the input, which comes first
        cut = surrogate(u, out, with_input=True, resume=True)
        cut.stop_when = stopping(windows)
        with pytest.raises(StoppedError, match="--resume"):
            cut.run(frames=[7])
        assert record_path(out).exists()
    streamed = surrogate(u, out, with_input=True, resume=True).run(frames=[7])
    assert out.read_bytes() == (tmp_path / f"a{suffix}").read_bytes()
    assert (tmp_path / "b.pdb").read_bytes() == (tmp_path / "a.pdb").read_bytes()
    ours, theirs = streamed.results, inside.results
    within = 0.006 if suffix == ".xtc" else 1e-6
    np.testing.assert_allclose(np.asarray(ours.positions), theirs.positions, atol=within)
    assert ours.positions.shape == theirs.positions.shape == (1, 30, 10, 3) and len(ours.positions) == 1
    for key in (0, (0, 3), (0, slice(2, 5)), (0, -1, 4), (slice(None), 1), (0, slice(0, 30, 7), 2, 1), -1):
        np.testing.assert_allclose(ours.positions[key], theirs.positions[key], atol=within)
    for name in ("rmsd", "rmsd_static", "moved", "moved_superposed", "times"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=2 * within)
    assert ours.checks[0].messages == theirs.checks[0].messages and ours.checks[0].n_frames == 30
    assert ours.checks[0].drift == pytest.approx(theirs.checks[0].drift.max())
    assert [path.name for path in ours.files] == [f"b{suffix}", "b.pdb"]
    assert len(ours.universe.trajectory) == 38


def test_what_changed_is_refused_and_nothing_is_touched(short_is_long, tmp_path):
    u, out = make_universe(), tmp_path / "a.dcd"
    cut = surrogate(u, out)
    cut.stop_when = stopping(3)
    with pytest.raises(StoppedError):
        cut.run()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def refused(message, error=UsageError, source=u, frames=None, **options):
        with pytest.raises(error, match=message):
            surrogate(source, out, **{"resume": True, **options}).run(frames=frames)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    refused("has 16 frames already, and 9 are asked for", horizon=9)
    refused(r"substeps \(then 1, now 2\)", substeps=2)
    refused("with_input", with_input=True)
    refused("start_frame.*another input", frames=[9])
    refused("another model", model=make_model(hidden=9))
    refused("another input", source=make_universe(seed=1))
    refused("--resume", OutputError, resume=False)
    surrogate(u, out, resume=True).run()
    with pytest.raises(UsageError, match="written when it is whole"):
        surrogate(u, out, resume=True, horizon=8).run()
    short = surrogate(u, tmp_path / "short.dcd", resume=True, horizon=8).run()  # which a job script may always ask for
    assert len(short.results.universe.trajectory) == 8 and (tmp_path / "short.dcd").exists()
    done = out.read_bytes()
    surrogate(u, out, force=True).run()
    assert out.read_bytes() == done
    record_path(out).unlink()
    with pytest.raises(OutputError, match="put that file back"):
        surrogate(u, out, resume=True).run()
    surrogate(u, out, force=True).run()
    surrogate(u, out, force=True, horizon=8).run()  # a short one in its place, from which nothing goes on
    assert not record_path(out).exists()


@pytest.mark.parametrize("suffix", [".dcd", ".xtc"])
@pytest.mark.parametrize("horizon", [28, 30])  # whole windows, and half of the last one
def test_a_forecast_that_is_whole_goes_on_to_a_longer_one(short_is_long, tmp_path, suffix, horizon):
    u, out, longer = make_universe(), tmp_path / f"a{suffix}", tmp_path / f"longer{suffix}"
    options = {"model": make_model(residual=True, reduce="mean"), "with_input": True}
    wanted = surrogate(u, longer, horizon=45, **options).run().results
    surrogate(u, out, horizon=horizon, **options).run()
    whole, when = out.read_bytes(), out.with_suffix(".pdb").stat().st_mtime_ns
    again = surrogate(u, out, horizon=horizon, resume=True, **options).run().results
    assert out.read_bytes() == whole and again.times.shape == (1, horizon)
    assert again.checks[0].n_frames == horizon
    results = surrogate(u, out, horizon=45, resume=True, **options).run().results
    assert out.read_bytes() == longer.read_bytes() and len(whole) < len(out.read_bytes())
    assert results.checks == wanted.checks and results.times.shape == (1, 45)
    assert out.with_suffix(".pdb").stat().st_mtime_ns == when
    with pytest.raises(
        UsageError, match="has 56 frames already, and 41 are asked for"
    ):  # 12 of the run, 44 of it whole
        surrogate(u, out, horizon=29, resume=True, **options).run()
    assert out.read_bytes() == longer.read_bytes()


def test_a_horizon_inside_the_run_is_a_setting(short_is_long, tmp_path):
    """Who forecasts frames that the run has must not know them, so that another horizon is another forecast."""
    u, out = make_universe(60, velocity=0.005), tmp_path / "a.dcd"
    surrogate(u, out, model="smoothed history", horizon=12).run(frames=[40])
    with pytest.raises(UsageError, match=r"horizon \(then 12, now 16\)"):
        surrogate(u, out, model="smoothed history", horizon=16, resume=True).run(frames=[40])


@pytest.mark.parametrize("streamed", [False, True])
def test_it_ends_before_the_first_frame_that_is_not_physical(monkeypatch, tmp_path, streamed):
    u, model = make_universe(velocity=0.017), make_model(Ballistic(4))  # the bonds grow, longer and longer
    warned = surrogate(u, tmp_path / "warned.dcd", model=model).run()
    first = warned.results.checks[0].tally.first
    assert 1 < first < 29 and first % 4  # in the middle of a window
    if streamed:
        monkeypatch.setattr(stream, "STREAM_FRAMES", 8)
        monkeypatch.setattr(stream, "STREAM_BYTES", 0)
    out = tmp_path / "stopped.dcd"
    results = surrogate(u, out, model=model, on_unphysical="stop").run().results
    assert results.checks[0].tally.first == first and not results.checks[0].ok
    assert results.checks[0].tally.n_frames == first + 1
    assert results.positions.shape == (1, first, 10, 3) and results.times.shape == results.moved.shape == (1, first)
    np.testing.assert_array_equal(np.asarray(results.positions), warned.results.positions[:, :first])
    assert mda.Universe(str(tmp_path / "stopped.pdb"), str(out)).trajectory.n_frames == first
    assert record_path(out).exists() == streamed
    if streamed:  # once more it ends there, and with the frames that are not physical it goes on
        surrogate(u, out, model=model, on_unphysical="stop", resume=True).run()
        assert mda.Universe(str(tmp_path / "stopped.pdb"), str(out)).trajectory.n_frames == first
        surrogate(u, out, model=model, resume=True).run()
        assert out.read_bytes() == (tmp_path / "warned.dcd").read_bytes()
    before = set(tmp_path.iterdir())
    for options in ({"horizon": 30}, {"horizon": 3}):
        with pytest.raises(UnphysicalError, match="no predicted frame.*on-unphysical warn"):
            broken = make_universe(2)
            broken.load_new(np.array([ts.positions * (1 + ts.frame) for ts in broken.trajectory]), dt=1.0)
            surrogate(broken, tmp_path / "none.dcd", model=model, on_unphysical="stop", **options).run()
    assert set(tmp_path.iterdir()) == before
    with pytest.raises(UsageError, match="one start frame"):
        surrogate(u, tmp_path / "many.dcd", model=model, on_unphysical="stop").run(frames=[3, 4])
    with pytest.raises(UsageError, match="'warn', 'stop' or 'relax'"):
        surrogate(u, None, on_unphysical="mend")


def test_a_chain_goes_on_from_the_frame_that_was_relaxed(monkeypatch, tmp_path):
    u, model = make_universe(velocity=0.017), make_model(Ballistic(4))  # the bonds grow, longer and longer
    warned = surrogate(u, None, model=model).run().results
    first = warned.checks[0].tally.first
    inside = surrogate(u, tmp_path / "whole.dcd", model=model, on_unphysical="relax").run().results
    tally, moved = inside.checks[0].tally, inside.checks[0].relaxed
    x, predicted = inside.positions[0].astype(float), warned.positions[0].astype(float)  # (30, 10, 3) both
    assert tally.ok and tally.n_frames == len(x) == 30 and first % 4  # in the middle of a window
    # What passes is left alone; then each atom goes on as it went, and from where it is now.
    np.testing.assert_array_equal(inside.positions[0, :first], warned.positions[0, :first])
    assert not moved[:first].any() and tally.relaxed == (moved > 0).sum() > 1 and tally.relaxed_by == moved.max()
    assert moved[first] == pytest.approx(np.linalg.norm(x[first] - predicted[first], axis=-1).max(), abs=1e-5)
    k = 4 * (first // 4) + 4  # the next window
    assert moved[k - 1] > 0 == moved[k]
    np.testing.assert_allclose(x[k], 2 * x[k - 1] - x[k - 2], atol=1e-5)
    assert np.abs(x[k] - predicted[k]).max() > 0.05

    monkeypatch.setattr(stream, "STREAM_FRAMES", 8)
    monkeypatch.setattr(stream, "STREAM_BYTES", 0)
    out = tmp_path / "cut.dcd"
    for windows in (4, 1, 2):  # before, at and after the window in which frames are relaxed
        cut = surrogate(u, out, model=model, on_unphysical="relax", resume=True)
        cut.stop_when = stopping(windows - 1)
        with pytest.raises(StoppedError):
            cut.run()
    streamed = surrogate(u, out, model=model, on_unphysical="relax", resume=True).run().results
    assert out.read_bytes() == (tmp_path / "whole.dcd").read_bytes()
    found = streamed.checks[0]
    assert (found.n_frames, found.relaxed, found.relaxed_by) == (30, tally.relaxed, tally.relaxed_by)
    with pytest.raises(UsageError, match="'relax' takes one start frame"):
        surrogate(u, None, model=model, on_unphysical="relax").run(frames=[3, 4])


def test_a_record_that_knows_nothing_of_relaxing_is_gone_on_with(short_is_long, tmp_path):
    u, out = make_universe(), tmp_path / "a.dcd"
    surrogate(u, tmp_path / "whole.dcd").run()
    cut = surrogate(u, out)
    cut.stop_when = stopping(3)
    with pytest.raises(StoppedError):
        cut.run()
    record = json.loads(record_path(out).read_text())
    for name in ("relaxed", "relaxed_by"):
        del record["state"]["checks"][name]
    record["sha256"] = stream._checksum({name: value for name, value in record.items() if name != "sha256"})
    record_path(out).write_text(json.dumps(record))
    assert surrogate(u, out, resume=True).run().results.checks[0].relaxed == 0
    assert out.read_bytes() == (tmp_path / "whole.dcd").read_bytes()


class Exploding(Ballistic):
    """No number any more after two windows."""

    windows = 0

    def forward(self, *args, **options):
        out, self.windows = super().forward(*args, **options), self.windows + 1
        return out if self.windows < 3 else out._replace(pos=out.pos * torch.nan)


def test_frames_that_are_no_numbers_end_a_forecast_and_those_before_are_kept(short_is_long, tmp_path):
    out = tmp_path / "out.dcd"
    with pytest.raises(
        UnphysicalError, match=r"not finite in frames 9 to 12; .*; the 8 frames before them are in .*out"
    ):
        surrogate(make_universe(), out, 40, model=make_model(Exploding(4))).run()
    assert mda.Universe(str(tmp_path / "out.pdb"), str(out)).trajectory.n_frames == 8
    model, given = make_model(), [str(tmp_path / name) for name in ("top.pdb", "run.dcd")]
    for parameter in model.network.parameters():
        torch.nn.init.constant_(parameter, 1e30)
    model.save(tmp_path / "wild.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_universe().atoms.write(given[0], bonds="all")
        make_universe().atoms.write(given[1], frames="all")
    none = str(tmp_path / "none.dcd")
    done = called(["predict", *given, "--model", str(tmp_path / "wild.safetensors"), "-o", none, "--device", "cpu"])
    assert done.exit_code == 3 and "predicted coordinates that are not finite in frames 1" in done.output
    assert not Path(none).exists()


def test_relaxing_on_the_command_line(short_is_long, tmp_path):
    u = make_universe(2, velocity=0.017)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        u.atoms.write(tmp_path / "top.pdb", bonds="all")
        u.atoms.write(tmp_path / "run.dcd", frames="all")
    for seed in (3, 0):  # random weights; relaxing mends what one of them predicts, and at last not that of the other
        make_model(residual=True, reduce="mean", seed=seed).save(tmp_path / f"{seed}.safetensors")

    def predicted(seed: int, out: str, *more: str):
        files = [str(tmp_path / name) for name in ("top.pdb", "run.dcd", f"{seed}.safetensors", out)]
        given = [*files[:2], "--model", files[2], "-o", files[3], "--horizon", "40", "--device", "cpu", *more]
        return called(["predict", *given, "--on-unphysical", "relax"])

    done = predicted(3, "whole.dcd", "--json")
    assert done.exit_code == 0, done.output
    checks = json.loads(done.stdout[done.stdout.index("{") :])["checks"]
    assert checks["ok"] and 0 < checks["relaxed"] < 40 and checks["largest_relaxation_A"] > 0.1
    files = mda.Universe(str(tmp_path / "top.pdb"), str(tmp_path / "run.dcd"))
    cut = surrogate(files, tmp_path / "cut.dcd", 40, str(tmp_path / "3.safetensors"), on_unphysical="relax")
    cut.stop_when = stopping(5)
    with pytest.raises(StoppedError):
        cut.run()
    assert json.loads(record_path(tmp_path / "cut.dcd").read_text())["state"]["checks"]["relaxed"] > 0
    done = predicted(3, "cut.dcd", "--resume")
    assert done.exit_code == 0 and f"relaxed    {checks['relaxed']} of 40 frames" in done.output, done.output
    assert (tmp_path / "cut.dcd").read_bytes() == (tmp_path / "whole.dcd").read_bytes()

    done = predicted(0, "ended.dcd")
    assert done.exit_code == 3 and "ended before the first frame that fails" in done.output, done.output
    kept = mda.Universe(str(tmp_path / "ended.pdb"), str(tmp_path / "ended.dcd")).trajectory.n_frames
    assert 0 < kept < 40 and f"relaxed    {kept} of {kept} frames" in done.output


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: out.write_bytes(out.read_bytes()[:-5]), "bytes instead of"),
        (lambda out: out.write_bytes(out.read_bytes()[:-1] + b"x"), "is another one"),
        (lambda out: out.unlink(), "is gone"),
        (lambda out: record_path(out).write_text("{"), "is damaged"),
        (lambda out: record_path(out).write_text("[]"), "is damaged"),
        (lambda out: record_path(out).write_bytes(b"\xff\x00"), "is damaged"),
        (lambda out: changed(out, version=99), "another version"),
        (lambda out: changed(out, bytes=-1), "is damaged"),
        (lambda out: changed(out, settings=3), "is damaged"),
        (lambda out: changed(out, periodic=True), "own checksum"),
        (lambda out: changed(out, state={"chain": 1, "checks": {}}), "is damaged"),
    ],
)
def test_damage_is_said_and_not_made_worse(short_is_long, tmp_path, damage, message):
    u, out = make_universe(), tmp_path / "a.dcd"
    cut = surrogate(u, out)
    cut.stop_when = stopping(3)
    with pytest.raises(StoppedError):
        cut.run()
    damage(out)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match=f"{message}.*--force"):
        surrogate(u, out, resume=True).run()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    surrogate(u, out, force=True).run()  # the cure that it names
    assert mda.Universe(str(tmp_path / "a.pdb"), str(out)).trajectory.n_frames == 30


def changed(out: Path, **values) -> None:
    record_path(out).write_text(json.dumps({**json.loads(record_path(out).read_text()), **values}))


@pytest.mark.parametrize("suffix", [".dcd", ".xtc"])
@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("n_atoms", [3, 20])
def test_the_bytes_of_a_stream_are_those_of_the_writer(tmp_path, suffix, box, n_atoms):
    xyz = np.random.default_rng(0).normal(scale=30, size=(11, n_atoms, 3))
    times = 3.25 + 0.5 * np.arange(11)
    with FrameWriter(tmp_path / f"a{suffix}", n_atoms, dt=0.5, start_time=3.25) as writer:
        for frame, at in zip(xyz, times, strict=True):
            writer.write(frame, box, at)
    out = tmp_path / f"b{suffix}"
    options = {"dt": 0.5, "start_time": 3.25, "settings": WRITERS}
    first = FrameStream(out, n_atoms, **options)
    first.start()
    first.append(xyz[:4], [box] * 4, times[:4])
    first.confirm({"k": 4})
    first.append(xyz[4:7], [box] * 3, times[4:7])  # not confirmed
    with pytest.raises(OutputError, match="another process"):
        FrameStream(out, n_atoms, **options).resume()
    first.close()
    with open(out, "ab") as file:
        file.write(b"half a frame")
    second = FrameStream(out, n_atoms, **options)
    second.resume()
    assert (second.n_frames, second.confirmed, second.state) == (4, 4, {"k": 4})
    bad = xyz[4:].copy()
    bad[3, 1, 2] = np.nan
    with pytest.raises(OutputError, match="frame 7 was not written"):
        second.append(bad, [box] * 7, times[4:])
    assert second.n_frames == 7
    second.append(xyz[7:], [box] * 4, times[7:])
    second.finish()
    assert out.read_bytes() == (tmp_path / f"a{suffix}").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {f"a{suffix}", f"b{suffix}", second.record.name}


def test_what_is_streamed_follows_from_frames_and_atoms():
    assert is_streamed("a.dcd", 2000, 76) and is_streamed("a.xtc", 10**6, 10)
    assert not is_streamed("a.dcd", 256, 10**5) and not is_streamed("a.dcd", 1000, 76)
