"""Time and memory of one EGNO layer against the number of atoms and of time points.

python tests/benchmarks/scale.py --out docs/performance

Atoms are drawn at the density of a protein's backbone (0.025 per cubic Angstrom, so that a cutoff of 10 A has the
neighbours that the backbone models see) in a cube, and numbered domain by domain, as chains are: neighbours in space
are mostly neighbours in memory. Every point is a process of its own.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import torch
from systems import CLOCK, Shape, allocator, calls, over_base, pairs_within, warm_up

DENSITY, CUTOFF, WIDTH, DOMAIN = 0.025, 10.0, 128, 30.0
ATOMS, TIMES = (214, 855, 3341, 10_000, 50_000, 100_000), (1, 2, 4, 8, 16, 32, 64)


def protein_like(n_atoms: int) -> np.ndarray:
    """Positions (N, 3) in Angstrom."""
    x = np.random.default_rng(0).uniform(0.0, (n_atoms / DENSITY) ** (1 / 3), size=(n_atoms, 3))
    return x[np.lexsort((x // DOMAIN).T)]


def measure(n_atoms: int, n_times: int, mode: str) -> dict[str, float]:
    """Seconds per call and peak memory of one system in this process."""
    shape = Shape("random", WIDTH, n_times=n_times, layers=1)
    warm_up(WIDTH)
    x = protein_like(n_atoms)
    every, n_edges = calls(shape, x, pairs_within(x, CUTOFF))
    peak, times = over_base(every[mode]), []
    while len(times) < 2 or (sum(times) < 5.0 and len(times) < 50):
        start = CLOCK()
        every[mode]()
        times.append(CLOCK() - start)
    seconds = statistics.median(times)
    return {
        "atoms": n_atoms,
        "times": n_times,
        "mode": mode,
        "edges": n_edges,
        "seconds": seconds,
        "ns_per_edge_and_time": 1e9 * seconds / (n_edges * n_times),
        "MB": peak,
        # What must be there whatever the blocks: T N (2 H + H) floats, the edge list and its copy.
        "MB_of_nodes": 4 * n_times * n_atoms * 3 * WIDTH / 1e6,
    }


def plot(points: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for row, (key, fixed, label) in enumerate(
        (("atoms", ("times", 4), "atoms, T = 4"), ("times", ("atoms", 855), "T, 855 atoms"))
    ):
        for mode in ("inference", "training"):
            chosen = [p for p in points if p["mode"] == mode and p[fixed[0]] == fixed[1]]
            x = [p[key] for p in chosen]
            work = [p["edges"] * p["times"] for p in chosen]
            linear = [chosen[0]["seconds"] * w / work[0] for w in work]
            line = axes[row, 0].loglog(x, [p["seconds"] for p in chosen], "o-", label=mode)[0]
            axes[row, 0].loglog(x, linear, ":", color=line.get_color(), lw=1)
            axes[row, 1].loglog(x, [max(p["MB"], 0.1) for p in chosen], "o-", label=mode)
        axes[row, 0].set(xlabel=label, ylabel="seconds (dotted: as the edges)")
        axes[row, 1].set(xlabel=label, ylabel="memory over base (MB)")
        axes[row, 0].legend(frameon=False)
    figure.suptitle(f"One EGNO layer, width {WIDTH}, {CUTOFF:g} A, {DENSITY} atoms per cubic Angstrom")
    figure.savefig(path, dpi=120)


@click.command(help=__doc__.split("\n")[0])
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/performance"), help="folder of the results")
@click.option("--largest", type=int, default=ATOMS[-1], show_default=True, help="skip larger systems")
@click.option("--point", nargs=3, type=(int, int, str), hidden=True)
def main(out: Path, largest: int, point: tuple[int, int, str] | None) -> None:
    if point:
        print(json.dumps(measure(*point)))
        return
    systems = [(n, 4) for n in ATOMS if n <= largest] + [(855, t) for t in TIMES if t != 4]
    points = []
    for mode in ("inference", "training"):
        for n_atoms, n_times in sorted(systems):
            command = [sys.executable, __file__, "--point", str(n_atoms), str(n_times), mode]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise click.ClickException(f"{n_atoms} atoms, T = {n_times}, {mode}: {done.stderr.strip()[-500:]}")
            points.append(json.loads(done.stdout))
            line = "{mode:<10} N {atoms:>7} T {times:>3} {seconds:9.4f} s {ns_per_edge_and_time:7.1f} ns {MB:8.1f} MB"
            click.echo(line.format(**points[-1]))
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "malloc": allocator(),
    }
    (out / "scale.json").write_text(json.dumps(about | {"points": points}, indent=1) + "\n")
    plot(points, out / "scale.png")


if __name__ == "__main__":
    main()
