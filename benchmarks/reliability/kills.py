"""Long forecasts that are killed at any moment, disks that fill up, and the memory of long forecasts."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from egno_md import sample

from . import scene
from .children import LONGEST, Child, run, sleep_until

#: Frames of about a hundred atoms; much shorter forecasts are not streamed.
HORIZON = 2000

#: Who forecasts: a network of random weights that knows the mean alone, and a free forecast that draws a future.
WHO = ("network", "elastic network")


def _arguments(folder: Path, who: str, out: Path, horizon: int, *more) -> list:
    files = sample()
    model: Path | str = who
    if who == "network":
        files, model = [folder / "top.pdb", folder / "run.dcd"], folder / "model.safetensors"
        if not model.exists():
            u = scene.chain()
            scene.write(u, files[0])
            scene.write(u, files[1])
            scene.write_model(model, residual=True, reduce="mean")
    return ["predict", *files, "--model", model, "--horizon", horizon, "--device", "cpu", "-o", out, *more]


def _whole(folder: Path, who: str, suffix: str, horizon: int) -> tuple[str, float]:
    """Hash of an uninterrupted forecast, and its seconds by the clock on the wall."""
    out = folder / f"whole{suffix}"
    began = time.monotonic()
    done = run(_arguments(folder, who, out, horizon, "--force"))
    if done.code not in (0, 3):
        raise RuntimeError(done.errors)
    return _hash(out), time.monotonic() - began


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kills(folder: Path, who: str, suffix: str, count: int, seed: int = 0) -> dict[str, Any]:
    """SIGKILL at random moments of a forecast that takes a while; each goes on to the end."""
    from egno_md.trajectory.stream import record_path

    wanted, seconds = _whole(folder, who, suffix, HORIZON)
    rng = np.random.default_rng(seed)
    equal, killed, complete, frames = 0, 0, 0, []
    wrong: list[str] = []
    while killed < count:
        work = folder / "cut"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        out = work / f"cut{suffix}"
        child = Child(_arguments(folder, who, out, HORIZON, "--resume"))
        sleep_until(child, time.monotonic() + rng.uniform(0, seconds))
        alive = child.running()
        os.kill(child.pid, signal.SIGKILL)
        if child.wait().code != -signal.SIGKILL or not alive:
            continue  # it was there already
        killed += 1
        record = record_path(out)
        whole = out.exists() and _hash(out) == wanted  # it was about to say so
        complete += whole
        frames.append(HORIZON if whole else _confirmed(record))
        done = run(_arguments(folder, who, out, HORIZON, "--resume"))
        left = {path.name for path in work.iterdir()}
        if done.code in (0, 3) and _hash(out) == wanted and left == {out.name, "cut.pdb", record.name}:
            equal += 1
        else:
            wrong.append(
                f"kill {killed}, {frames[-1]} frames confirmed, exit {done.code}, {left}: {done.errors[-300:]}"
            )
    return {
        "killed": killed,
        "byte-equal after --resume": equal,
        "of them complete at the kill": complete,
        "frames confirmed at the kill": [min(frames), int(np.median(frames)), max(frames)],
        "of frames": HORIZON,
        "wrong": wrong,
    }


def _confirmed(record: Path) -> int:
    import json

    return json.loads(record.read_bytes())["frames"] if record.exists() else 0


def memory(folder: Path, who: str, horizons: tuple[int, ...]) -> dict[str, Any]:
    """Peak memory of the command by its horizon, each in a process of its own from the beginning.

    The network's atoms stand still, so that the graphs do not change: what its libraries keep follows their sizes.
    """
    folder = folder / "still"
    folder.mkdir(exist_ok=True)
    _arguments(folder, who, folder / "x.dcd", 1)
    scene.write_model(folder / "model.safetensors", start="static", residual=True, reduce="mean", keep_bonds=False)
    code = (
        "import sys, egno_md.cli as c\n"
        "try: c.main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code in (None, 0, 3)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    rows = {}
    for horizon in (min(horizons), *horizons):  # the first time, Numba may have to compile
        out = folder / "out.dcd"
        began = time.monotonic()
        command = [sys.executable, "-c", code, *map(str, _arguments(folder, who, out, horizon, "--force"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3 * LONGEST, check=True)
        seconds = time.monotonic() - began
        rows[str(horizon)] = {
            "peak_MB": round(int(done.stdout.split()[-1]) * 1024 / 1e6, 1),
            "seconds": round(seconds, 1),
            "file_MB": round(out.stat().st_size / 1e6, 1),
        }
        out.unlink()
    return rows


def disks(folder: Path, what: str, count: int, seed: int = 0) -> dict[str, Any]:
    """No room for more than a random number of bytes in a file; then room is made.

    `what` is dcd or xtc (a long forecast, at a random moment), pdb (its topology), model, or state (of a training, at a
    random moment).
    """
    rng = np.random.default_rng([seed, len(what)])
    judge = _state_disk if what == "state" else _forecast_disk if what in ("dcd", "xtc") else _short_disk
    context: dict[str, Any] = {}
    outcomes = [judge(folder, what, rng, context) for _ in range(count)]
    wrong = [outcome for outcome in outcomes if outcome != "whole"]
    return {"full disks": count, "nothing confirmed lost, and whole afterwards": count - len(wrong), "wrong": wrong}


def _limited(size: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _forecast_disk(folder: Path, what: str, rng: np.random.Generator, context: dict[str, Any]) -> str:
    from egno_md.trajectory.stream import record_path

    if not context:
        context["hash"], context["seconds"] = _whole(folder, WHO[0], f".{what}", 1000)
        context["size"] = (folder / f"whole.{what}").stat().st_size
    work = folder / "full"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    out = work / f"cut.{what}"
    arguments = _arguments(folder, WHO[0], out, 1000, "--resume")
    done = run(arguments, before=_limited(int(rng.integers(0, context["size"]))))
    if done.kind != "clean error" or "disk full" not in done.errors and "could not be written" not in done.errors:
        return f"{done.kind}, exit {done.code}: {done.errors[-300:]}"
    confirmed = _confirmed(record_path(out))
    if out.exists() and confirmed:
        import MDAnalysis as mda

        if mda.Universe(str(folder / "top.pdb"), str(out)).trajectory.n_frames < confirmed:
            return "fewer frames than were confirmed"
    done = run(arguments)
    if done.code not in (0, 3) or _hash(out) != context["hash"]:
        return f"after room was made: exit {done.code}: {done.errors[-300:]}"
    return "whole"


def _short_disk(folder: Path, what: str, rng: np.random.Generator, context: dict[str, Any]) -> str:
    """A file that is written at once: it is there whole, as it was before, or not at all."""
    from egno_md import load_model
    from egno_md.trajectory.writer import write_topology

    u = scene.chain()
    source = scene.write_model(folder / "short.safetensors")
    model = load_model(source)
    target = folder / f"short_target.{what}"

    def write() -> None:
        if what == "pdb":
            write_topology(target, u.atoms, u.atoms.positions)
        else:
            model.save(target, force=True)

    if not context:
        write()
        context["bytes"] = target.read_bytes()
    before = [None, b"what was there"][int(rng.integers(2))]
    target.unlink(missing_ok=True)
    if before is not None:
        target.write_bytes(before)
    others = set(folder.iterdir())
    limit = int(rng.integers(0, len(context["bytes"])))
    pid = os.fork()
    if not pid:
        code = 2
        try:
            _limited(limit)()
            write()
        except Exception as error:
            from egno_md.errors import OutputError

            code = 1 if isinstance(error, OutputError) else 2
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    now = target.read_bytes() if target.exists() else None
    left = set(folder.iterdir())
    if code != 1 or now != before or left != others:
        state = "changed" if now != before else "as before"
        return f"limit {limit}: exit {code}, {state}, left {[path.name for path in left - others]}"
    write()
    return "whole" if target.read_bytes() == context["bytes"] else "another file after room was made"


def _state_disk(folder: Path, what: str, rng: np.random.Generator, context: dict[str, Any]) -> str:
    from egno_md.training.states import LAST, PREVIOUS, read_state

    work = folder / "training"
    out = work / "m.safetensors"
    if not (folder / "train.dcd").exists():
        u = scene.chain(30, frames=120)
        scene.write(u, folder / "train.pdb")
        scene.write(u, folder / "train.dcd")
    arguments = ["train", folder / "train.pdb", folder / "train.dcd", "--select", "all", "--window", 2, "--hidden", 8]
    arguments += ["--layers", 2, "--cutoff", 5, "--epochs", 6, "--set", "epoch_windows=8", "--batch-size", 8]
    arguments += ["--set", "model.keep_bonds=false", "--set", "training.ema_decay=0.9", "--device", "cpu", "-o", out]
    if not context:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        began = time.monotonic()
        done = run(arguments)
        if done.code:
            raise RuntimeError(done.errors)
        context["seconds"], context["bytes"] = time.monotonic() - began, out.read_bytes()
        context["size"] = (work / "m_work" / LAST).stat().st_size
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    child = Child(arguments)
    sleep_until(child, time.monotonic() + rng.uniform(0.2, 0.9) * context["seconds"])
    size = int(rng.integers(0, context["size"]))
    if child.running():
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    done = child.wait()
    if done.code == 0:
        return "whole" if out.read_bytes() == context["bytes"] else "another model"
    if done.kind != "clean error":
        return f"{done.kind}, exit {done.code}: {done.errors[-300:]}"
    found = [work / "m_work" / name for name in (LAST, PREVIOUS) if (work / "m_work" / name).exists()]
    for path in found:
        read_state(path)  # raises where it is damaged
    done = run([*arguments, *(["--resume"] if found else [])])
    if done.code or out.read_bytes() != context["bytes"]:
        return f"after room was made: exit {done.code}: {done.errors[-300:]}"
    return "whole"
