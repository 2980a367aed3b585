"""`egno-md predict` without options on every run at hand: what it chooses, how long it takes, and what that is worth.

    python -m benchmarks.any_run [--data DIR] [--json FILE] [--page FILE] [--only NAME]

The runs are the published ones in DIR/md, alanine dipeptide (one published run as XTC at 1 ps and at 10 ps), and all
trajectories of MDAnalysisTests with at least 20 frames, each with the topology of its name or, of those with as many
atoms, with the one that knows the most.
Every one is a process of its own; the seconds are those of the whole command on the processor, those of the wall are in
the JSON file. Results that are in it already are kept.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import MDAnalysis as mda
import numpy as np

from .sweep import data_files, look_at
from .tables import kept, put

FEWEST_FRAMES, LIMIT = 20, 900.0


class Case(NamedTuple):
    """One run: its name in the table, and what is given to the command line."""

    name: str
    topology: str
    trajectory: str


def published(data: Path) -> list[Case]:
    """The runs of the folder ``md``."""
    cases = []
    for folder in sorted(path for path in (data / "md").iterdir() if path.is_dir()):
        files = sorted(path for path in folder.iterdir() if "LICENSE" not in path.name and path.name[0] != ".")
        topologies = [path for path in files if path.suffix in (".pdb", ".gro", ".parm7")]
        cases += [Case(folder.name, str(topologies[0]), str(path)) for path in files if path not in topologies]
    return cases


def alanine(data: Path, folder: Path) -> list[Case]:
    """One run of alanine dipeptide as XTC, every frame and every tenth."""
    topology = data / "ala2" / "ala2.pdb"
    with np.load(data / "ala2" / "ala2_implicit_10x10ns_1ps.npz") as file:
        frames = np.asarray(file["positions"][file["offsets"][-2] :], np.float32)  # (F, N, 3), Angstrom
    universe = mda.Universe(str(topology))
    cases = []
    for step in (1, 10):
        target = folder / f"ala2_{step}ps.xtc"
        with mda.Writer(str(target), len(universe.atoms)) as writer:
            for k, frame in enumerate(frames[::step]):
                universe.atoms.positions = frame
                universe.trajectory.ts.time, universe.trajectory.ts.frame = float(k * step), k
                writer.write(universe.atoms)
        cases.append(Case(f"ala2, {step} ps", str(topology), str(target)))
    return cases


def tested() -> list[Case]:
    """Trajectories of MDAnalysisTests, each with a topology of as many atoms: its own, or one that knows more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = [look_at(*file) for file in data_files()]
    cases = []
    for file in files:
        if file.frames_of is None or file.frames < FEWEST_FRAMES:
            continue
        fits = [other for other in files if other.atoms == file.frames_of]
        own = [other for other in fits if other.name == f"{file.name}_TOPO"]
        more = [other for other in fits if other.alpha > file.alpha]
        more.sort(key=lambda other: (-other.alpha, other.frames_of is not None, other.name))
        same = [other for other in fits if other.name == file.name]
        if found := own + more + same:
            cases.append(Case(f"MDAnalysisTests {file.name}", found[0].path, file.path))
    return cases


def measured(case: Case, folder: Path, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """The command on one run, and what it said; a run without times is given one when the message asks for it."""
    target = folder / "out.dcd"
    command = [sys.executable, "-m", "egno_md", "predict", case.topology, case.trajectory, "-o", str(target), "--force"]
    command += options
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    found: dict[str, Any] = {"topology": Path(case.topology).name, "trajectory": Path(case.trajectory).name}
    try:
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {**found, "refused": f"not done after {LIMIT:g} s"}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["seconds"] = time.perf_counter() - began
    found["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode not in (0, 3):
        said = done.stderr.strip().splitlines()[-1]
        if "--dt" in said and not options:  # a file without times: what the message asks for
            return {**measured(case, folder, ("--dt", "1")), "given": "--dt 1"}
        return {**found, "refused": _named(said, case)}
    told = json.loads(_named(done.stdout, case))
    return {**found, **{key: told[key] for key in ("model", "atoms", "decisions", "hindcast", "checks")}}


def _named(text: str, case: Case) -> str:
    """With the names of the files, and not where they lie on this machine."""
    for path in (case.topology, case.trajectory):
        text = text.replace(path, Path(path).name)
    return text


def row(name: str, one: dict[str, Any]) -> str:
    """A line of the table."""
    name += f", with {one['given']}" if "given" in one else ""
    seconds = f"{one.get('cpu_seconds', float('nan')):.1f}"
    if "refused" in one:
        return f"| {name} | refused: {one['refused']} | | {seconds} | | | | | |"
    found = one["hindcast"]
    if found is None:
        return f"| {name} | {one['model']} | {one['atoms']} | {seconds} | | too short to be judged | | | |"
    entries = found["candidates"]
    chosen, still = entries[found["chosen"]], entries["static"]
    best = min((n for n in entries if n != found["chosen"]), key=lambda n: entries[n]["score"])
    difference, low, high = chosen["against_static"]
    ends = "" if low is None else f" ({low:+.2f} to {high:+.2f})"
    return (
        f"| {name} | {one['model']} | {one['atoms']} | {seconds} | {found['independent_windows']} | "
        f"{chosen['score']:.2f} | {best} {entries[best]['score']:.2f} | {still['score']:.2f} | {difference:+.2f}{ends} "
        f"| {chosen['error'][-1]:.2f} / {still['error'][-1]:.2f} |"
    )


HEAD = (
    "| run | choice | atoms | CPU s | independent windows | energy score (A) | the best other | standing frame | less "
    "that of the standing frame (95 %) | RMSD of the mean / standing frame at the last step (A) |"
)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder with ala2/ and md/; without it neither is run.")
@click.option("--json", "target", type=click.Path(path_type=Path), default=Path("docs/performance/any_run.json"))
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/any_run.md"), help="Its table is replaced.")
@click.option("--only", default="", help="Runs whose name holds this.")
def main(data: Path | None, target: Path, page: Path, only: str) -> None:
    """`egno-md predict` without options on every run at hand."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [] if data is None else [*published(data), *alanine(data, folder)]
        every = ((case.name, partial(measured, case, folder)) for case in [*cases, *tested()])
        results = kept(target, every, row, only)
    put(page, HEAD, (row(name, one) for name, one in results.items()))
    refused = [name for name, one in results.items() if "refused" in one]
    worse = [name for name, one in results.items() if (found := one.get("hindcast")) and _worse(found)]
    click.echo(f"{len(results)} runs, {len(refused)} refused, {len(worse)} worse than the standing frame: {worse}")


def _worse(found: dict[str, Any]) -> bool:
    """Whether the choice is worse than the standing frame beyond its interval."""
    difference, low, _ = found["candidates"][found["chosen"]]["against_static"]
    return (difference if low is None else low) > 0


if __name__ == "__main__":
    main()
