"""What whole commands cost, of this version and of another in turn: medians over processes.

    python -m benchmarks.speed [--before FOLDER] [--repeats 5] [--json FILE] [--page FILE]

FOLDER holds another version of egno_md. Every line is a process of its own with one thread, all imports and files
included; the versions alternate, so that a machine that is shared disturbs them alike. POSIX only.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

import egno_md

from .tables import put

HERE = Path(egno_md.__file__).parents[1]
SAMPLE = [str(path) for path in egno_md.sample()]
#: Of every start a pair of files.
STARTS = f"""
import MDAnalysis as mda
from egno_md import EGNOSurrogate
EGNOSurrogate(mda.Universe(*{SAMPLE}), "ca-1ps", filename="out.dcd").run(start=1, stop=53)
"""
#: Steps of training with a batch of systems of the size of the paper's: complete graphs of 5 nodes, chains of 31.
STEPS = """
import numpy as np, torch
from egno_md.nn import EGNO
graphs, nodes, near, width, layers, steps = {sizes}
torch.manual_seed(0)
place = torch.arange(nodes)
pairs = torch.nonzero(((place[:, None] - place).abs() <= near) & (place[:, None] != place)).T
pairs = (pairs[:, None] + nodes * torch.arange(graphs)[:, None]).reshape(2, -1)
x, v = torch.randn(2, graphs * nodes, 3)
d = (x[pairs[0]] - x[pairs[1]]).norm(dim=1, keepdim=True)
model = EGNO(1, 2, width, layers, n_times=5, modes=2)
for _ in range(steps):
    model.zero_grad()
    out = model(v.norm(dim=1, keepdim=True), x, v, pairs, torch.cat([d, d**2], 1),
                batch=torch.arange(graphs).repeat_interleave(nodes))
    (out.pos - x).square().mean().backward()
"""
WORK = {
    "import torch, MDAnalysis": ["-c", "import torch, MDAnalysis"],
    "predict, the bundled sample": ["-m", "egno_md", "predict", *SAMPLE, "-o", "out.dcd"],
    "predict --model ca-1ps": ["-m", "egno_md", "predict", *SAMPLE, "--model", "ca-1ps", "-o", "out.dcd"],
    "models": ["-m", "egno_md", "models"],
    "info ca-1ps": ["-m", "egno_md", "info", "ca-1ps"],
    "--version": ["-m", "egno_md", "--version"],
    "suggest --help": ["-m", "egno_md", "suggest", "--help"],
    "a chain of 200 windows, 76 C-alpha": [
        *("-m", "egno_md", "predict", *SAMPLE, "--model", "ca-1ps", "--horizon", "1600", "-o", "out.dcd"),
    ],
    "forecasts from 52 starts, written": ["-c", STARTS],
    "training, 60 steps, 100 graphs of 5 nodes": ["-c", STEPS.format(sizes=(100, 5, 5, 64, 4, 60))],
    "training, 20 steps, 12 graphs of 31 nodes": ["-c", STEPS.format(sizes=(12, 31, 2, 128, 6, 20))],
    "training, 15 steps, 1 graph of 214 nodes": ["-c", STEPS.format(sizes=(1, 214, 12, 128, 4, 15))],
}  # fmt: skip


def measured(arguments: list[str], folder: Path) -> dict[str, float]:
    """CPU seconds and MB of one process; `folder` has the package that it imports."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as work:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=work,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):  # 3: what was forecast fails the checks, and is written
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "MB": kilobytes / 1024}


def median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def row(name: str, found: dict[str, list[dict[str, float]]]) -> str:
    """A line of the table."""
    cells = [f"{median(runs, 'cpu_seconds'):.2f} | {median(runs, 'MB'):.0f}" for runs in found.values()]
    if len(found) == 2:
        pairs = zip(*found.values(), strict=True)
        ratio = statistics.median(old["cpu_seconds"] / new["cpu_seconds"] for old, new in pairs)
        cells.append(f"{ratio:.2f}")
    return f"| {name} | {' | '.join(cells)} |"


@click.command()
@click.option("--before", type=click.Path(path_type=Path, exists=True), help="Folder of another version.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--only", default="", help="Lines whose name holds this.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="All figures.")
@click.option("--page", type=click.Path(path_type=Path), help="Its table of this form is replaced.")
def main(before: Path | None, repeats: int, only: str, target: Path | None, page: Path | None) -> None:
    """What whole commands cost."""
    versions = {"before": before.resolve(), "now": HERE} if before else {"now": HERE}
    results: dict[str, Any] = {}
    head = "| command | " + " | ".join(f"{version}, CPU s | {version}, MB" for version in versions)
    head += " | times as fast |" if before else " |"
    lines = []
    click.echo(head)
    for name, arguments in WORK.items():
        if only not in name:
            continue
        found: dict[str, list[dict[str, float]]] = {version: [] for version in versions}
        for _ in range(repeats):
            for version, folder in versions.items():
                found[version].append(measured(arguments, folder))
        results[name] = found
        lines.append(row(name, found))
        click.echo(lines[-1])
    if target is not None:
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        target.write_text(json.dumps({**machine, "rows": results}, indent=1))
    if page is not None:
        put(page, head, lines)


if __name__ == "__main__":
    main()
