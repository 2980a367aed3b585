"""Every table of docs/performance.md but those of the GPU, measured anew.

    OMP_NUM_THREADS=1 python -m benchmarks.performance --data DIR [--before FOLDER] [--only NAME]

What `tests/benchmarks` measures (EGNO with our edge block and with that of the original code, as malloc comes and with
one that keeps its memory), one layer against the number of atoms, bf16 against float32, the projection onto a local
geometry with and without the compiled loop, what a chain spends its time on, and then :mod:`.speed` (with `--before`,
another version) and :mod:`.against_md`. What is in docs/performance/engine.json is kept. Take a machine that does
nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import click
import MDAnalysis as mda
import numpy as np

from egno_md import EGNOSurrogate, sample
from egno_md.forecast.model import Model, load_model
from egno_md.graph.builder import GraphBuilder
from egno_md.molecule import local
from egno_md.molecule.atoms import select_atoms
from egno_md.specs import GraphSpec

from . import against_md, speed
from .tables import kept, put

ROOT = Path(__file__).parents[1]
SYSTEMS, SCALE = ROOT / "tests" / "benchmarks" / "systems.py", ROOT / "tests" / "benchmarks" / "scale.py"
RESULTS, PAGE = ROOT / "docs" / "performance" / "engine.json", ROOT / "docs" / "performance.md"
#: Malloc keeps what is freed, as the reference would have it.
KEEPS = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456",
}  # fmt: skip
#: Frames of the forecasts that bf16 is judged by; windows of a chain; by how much frames are moved that are projected.
HORIZONS, WINDOWS, MOVED = (8, 80), 1000, 0.5
#: What of a chain is measured: class or module, and function.
PARTS = ("network", "projection", "graphs", "checks")


def engine(name: str, mode: str) -> dict[str, Any]:
    """A forecast or a training step of EGNO, with malloc as it comes and as one that keeps its memory."""
    as_it_comes, equal = (
        json.loads(
            subprocess.run(
                [sys.executable, str(SYSTEMS), name, mode],
                env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
        for settings in ({}, KEEPS)
    )
    return {**as_it_comes, "ratio_equal": equal["ratio"]}


def _engine_row(name: str, row: dict[str, Any]) -> str:
    mode, system = name.split(": ", 1)
    return (
        f"| {system} | {mode} | {row['edges']} | {1e3 * row['seconds']:.1f} | {row['ratio']:.1f} | "
        f"{row['ratio_equal']:.1f} | {row['over_arithmetic']:.2f} | {row['MB']:.0f} | {row['reference_MB']:.0f} |"
    )


def bf16(horizon: int) -> dict[str, float]:
    """What it does to the positions (A) that the bundled model predicts from frames of the bundled sample."""
    universe = mda.Universe(*map(str, sample()))
    full, low = (
        EGNOSurrogate(universe, "ca-1ps", horizon=horizon, device="cpu", precision=precision).run(start=1, step=10)
        for precision in ("float32", "bf16")
    )
    error = np.linalg.norm(low.results.positions - full.results.positions, axis=-1)
    start = np.stack([history[-1] for history in full._history])[:, None]  # (S, 1, N, 3)
    moved = np.linalg.norm(full.results.positions - start, axis=-1)
    return {
        "moved": float(np.sqrt(np.mean(moved**2))), "rms": float(np.sqrt(np.mean(error**2))), "most": float(error.max())
    }  # fmt: skip


def _bf16_row(name: str, row: dict[str, float]) -> str:
    return f"| {name} | {row['moved']:.2f} A | {row['rms']:.4f} A | {row['most']:.4f} A |"


def projection(select: str) -> dict[str, float]:
    """CPU milliseconds for 8 frames of ubiquitin whose atoms were moved at random, with the loop and without."""
    universe = mda.Universe(*map(str, sample()))
    atoms = select_atoms(universe, select)
    bonds = GraphBuilder(atoms, GraphSpec(select=select, node_features=("speed",))).bonds
    frames = np.stack([atoms.positions.copy() for _ in universe.trajectory])
    fitted = local.LocalGeometry.fit([frames], bonds)
    moved = frames[:8] + np.random.default_rng(0).normal(scale=MOVED, size=frames[:8].shape)
    out: dict[str, Any] = {}
    found = {}
    for name, enough in (("numpy", np.inf), ("compiled", 0)):
        with mock.patch.object(local, "COMPILED_AFTER", enough), mock.patch.dict(sys.modules):
            if name == "numpy":
                sys.modules.pop("numba", None)
            found[name] = fitted.project(moved)  # compiles
            began = time.process_time()
            fitted.project(moved)
            out[name] = 1e3 * (time.process_time() - began)
    out["difference"] = float(np.abs(found["numpy"] - found["compiled"]).max())
    return out


def _projection_row(name: str, row: dict[str, float]) -> str:
    return (
        f"| {name} | {row['numpy']:.1f} | {row['compiled']:.1f} | {row['numpy'] / row['compiled']:.0f} |"
        f" {row['difference']:.1g} |"
    )


def chain(universe: mda.Universe, model: Model) -> dict[str, float]:
    """CPU seconds of a chain of 1000 windows, and the shares of what it is made of."""
    spent: Counter[str] = Counter()

    def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[what] += time.process_time() - began

        return call

    def run(windows: int) -> float:
        began = time.process_time()
        draws = {"samples": 1, "seed": 0} if model.spec.operator == "flow" else {}
        EGNOSurrogate(universe, model, horizon=windows * 8, device="cpu", **draws).run(start=20, stop=21)
        return time.process_time() - began

    import egno_md.analysis

    run(4)
    with ExitStack() as stack:
        for what, where, name in (
            ("network", type(model.network), "forward"),
            ("projection", local.LocalGeometry, "project"),
            ("graphs", GraphBuilder, "__call__"),
            ("checks", egno_md.analysis, "check_frames"),
        ):
            stack.enter_context(mock.patch.object(where, name, timed(what, getattr(where, name))))
        seconds = run(WINDOWS)
    return {"seconds": seconds, **{what: spent[what] / seconds for what in PARTS}}


def _chain_row(name: str, row: dict[str, float]) -> str:
    shares = " | ".join(f"{row[what]:.0%}" for what in PARTS)
    rest = 1 - sum(row[what] for what in PARTS)
    return f"| {name} | {row['seconds']:.1f} | {shares} | {rest:.0%} |"


def drawing(data: Path) -> tuple[mda.Universe, Model]:
    """Alanine dipeptide, and a network that draws its futures, trained for seconds: what it takes is what others do."""
    from .drawn import files

    folder = Path(tempfile.mkdtemp())
    files.callback(folder=folder, data=data, frames=2000)
    made = folder / "flow.safetensors"
    subprocess.run(
        [sys.executable, "-m", "egno_md", "train", str(folder / "ala2.pdb"), str(folder / "run-0.dcd"),
         "--select", "heavy", "--operator", "flow", "--cutoff", "2.7", "--epochs", "2", "--set", "epoch_windows=1280",
         "--device", "cpu", "-o", str(made)],
        stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return mda.Universe(str(folder / "ala2.pdb"), str(folder / "run-8.dcd")), load_model(str(made))


def scaled() -> dict[str, Any]:
    """One layer against the number of atoms and of time points; writes a figure as well."""
    subprocess.run([sys.executable, str(SCALE), "--out", str(RESULTS.parent)], check=True)
    return {"points": json.loads((RESULTS.parent / "scale.json").read_text())["points"]}


def _scale_rows(_: str, row: dict[str, Any]) -> str:
    cells: dict[tuple[int, int], dict[str, str]] = {}
    for point in row["points"]:
        both = cells.setdefault((point["atoms"], point["times"]), {})
        both[point["mode"]] = f"{point['ns_per_edge_and_time'] / 1e3:.2f} | {point['MB']:.0f}"
    return "\n".join(
        f"| {atoms} | {times} | {both['inference']} | {both['training']} |"
        for (atoms, times), both in sorted(cells.items())
    )


#: By the beginning of a row's name: the head of its table, and what a row looks like.
TABLES: dict[str, tuple[str, Callable[[str, dict[str, Any]], str]]] = {
    "engine": (
        "| EGNO | call | edges | ours (ms) | times as fast as the reference, as a user runs it | at equal settings | "
        "ours / its arithmetic | memory, ours (MB) | reference (MB) |",
        _engine_row,
    ),
    "bf16": ("| horizon | atoms move (RMS) | error of bf16 (RMS) | largest error of an atom |", _bf16_row),
    "projection": (
        "| 8 frames of | numpy (ms) | one compiled loop (ms) | times as fast | largest difference (A) |",
        _projection_row,
    ),
    "chain": ("| a chain of 1000 windows | CPU s | network | projection | graphs | checks | all else |", _chain_row),
    "scale": (
        "| atoms | T | inference (us per edge and time point) | (MB) | training step (us) | (MB) |",
        _scale_rows,
    ),
}


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with ala2/ and more.")
@click.option("--before", type=click.Path(path_type=Path, exists=True), help="Another version, for whole commands.")
@click.option("--only", default="", help="Rows with this in their name; neither whole commands nor the dynamics.")
def main(data: Path, before: Path | None, only: str) -> None:
    """Measure every table of docs/performance.md anew but those of the GPU."""
    sys.path.insert(0, str(SYSTEMS.parent))
    from systems import MODES, SHAPES, SMALL

    cases = [(f"engine: {mode}: {name}", partial(engine, name, mode)) for name in {**SMALL, **SHAPES} for mode in MODES]
    cases += [(f"bf16: {horizon} frames", partial(bf16, horizon)) for horizon in HORIZONS]
    cases += [
        ("projection: ubiquitin, C-alpha atoms", partial(projection, "ca")),
        ("projection: ubiquitin, heavy atoms", partial(projection, "heavy")),
        ("chain: ubiquitin, ca-1ps", lambda: chain(mda.Universe(*map(str, sample())), load_model("ca-1ps"))),
        ("chain: alanine dipeptide, drawn by the operator flow", lambda: chain(*drawing(data))),
        ("scale: one layer", scaled),
    ]

    def row(name: str, found: dict[str, Any]) -> str:
        kind, rest = name.split(": ", 1)
        return TABLES[kind][1](rest, found)

    results = kept(RESULTS, cases, row, only)
    for kind, (head, _) in TABLES.items():
        put(PAGE, head, [row(name, found) for name, found in results.items() if name.startswith(f"{kind}: ")])
    if not only:
        speed.main.callback(before, 5, "", RESULTS.with_name("speed.json"), PAGE)
        against_md.main.callback(data, RESULTS.with_name("against_md.json"), PAGE, "")


if __name__ == "__main__":
    main()
