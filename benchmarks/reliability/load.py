"""What large selections, long runs, many starts and long forecasts take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from . import scene

#: How many of each; the run of the last two has so many frames and atoms.
COUNTS = {
    "atoms, forecast by a network": (1000, 10_000, 100_000),
    "atoms, forecast by what is chosen": (1000, 10_000, 100_000),
    "frames of the run": (1000, 10_000, 100_000),
    "starts": (100, 1000, 10_000),
    "frames of the forecast": (10_000, 100_000, 1_000_000),
}
FRAMES, ATOMS = 2000, 10
#: Memory of a motion from one frame to the next, and its size in Angstrom.
MEMORY, SIZE = 0.8, 0.05

#: The command, and what it took; an exit code of 3 says that what was forecast, and written, fails the checks.
CODE = """
import resource, sys, egno_md.cli as c
try: c.main(sys.argv[1:])
except SystemExit as end: assert end.code in (None, 0, 3), end.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def run(folder: Path, n_atoms: int, n_frames: int) -> list[str]:
    """Topology and trajectory of carbon chains whose atoms wobble about their places."""
    universe = scene.chain(n_atoms, 1)
    rng = np.random.default_rng(0)
    frames = np.empty((n_frames, n_atoms, 3), np.float32)
    away = rng.normal(scale=SIZE, size=(n_atoms, 3))
    for k in range(n_frames):
        frames[k] = universe.atoms.positions + away
        away = MEMORY * away + np.sqrt(1 - MEMORY**2) * rng.normal(scale=SIZE, size=away.shape)
    pdb = scene.write(universe, folder / f"{n_atoms}.pdb")
    universe.load_new(frames, dt=1.0)
    return [str(pdb), str(scene.write(universe, folder / f"{n_atoms}_{n_frames}.dcd"))]


def load(folder: Path, what: str, counts: tuple[int, ...]) -> dict[str, Any]:
    """CPU seconds and peak memory of the command, each in a process of its own."""
    rows = {}
    for count in counts:
        n_atoms = count if what.startswith("atoms") else ATOMS
        n_frames = count + 40 if what in ("frames of the run", "starts") else 40 if n_atoms > ATOMS else FRAMES
        files = run(folder, n_atoms, n_frames)
        more = ["--select", "all", "--force", "-o", str(folder / "out" / "out.dcd")]
        if what.endswith("network"):
            more += ["--model", str(scene.write_model(folder / "model.safetensors"))]
        if what == "starts":
            more += ["--from-frames", f"20:{20 + count}:1"]
        if what == "frames of the forecast":
            more += ["--horizon", str(count), "--model", "elastic network"]
        (folder / "out").mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", CODE, "predict", *files, *more],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{what}, {count}: {done.stderr[-500:]}")
        seconds, kilobytes = map(float, done.stdout.split()[-2:])
        rows[str(count)] = {"cpu_seconds": round(seconds, 1), "peak_MB": round(kilobytes * 1024 / 1e6, 1)}
        for file in (folder / "out").iterdir():
            file.unlink()
    return rows
