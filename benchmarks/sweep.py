"""`egno-md predict` over real files: those of MDAnalysisTests alone, and topologies with the trajectories that fit.

    python -m benchmarks.sweep [--json FILE] [--select ca,all] [--jobs 2] [--only ADK]

What comes out of each is a forecast or one line that names the cure; everything else is listed. Many run in one
process, each with a time limit; a process that dies or hangs is recorded, and another one goes on.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import multiprocessing
import os
import re
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

HORIZON = 8

#: How a run ended; the first two are right.
FORECAST, ERROR = "forecast", "error with a cure"
NO_CURE, SHOWN, TRACEBACK, CRASH, HANG = "error without a cure", "traceback shown", "traceback", "crash", "hang"
RIGHT = (FORECAST, ERROR)

#: What a message says that tells the user what to do: an option, a call, or an order.
CURE = re.compile(
    r"--[a-z]|\w=|\b(add|check|choose|close|convert|copy|correct|delete|find|free|give|guess|install|keep|leave|load|"
    r"make|move|name|narrow|pass|put|remove|rename|repair|replace|save|select|set|split|start|strip|take|"
    r"train|try|undo|unpack|unwrap|use|wrap|write)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class File:
    """What MDAnalysis says of a file.

    Attributes
    ----------
    name : str
        Its name in MDAnalysisTests.
    path : str
    atoms : int or None
        As a topology.
    alpha : int
        C-alpha atoms of proteins among them.
    frames_of : int or None
        Atoms as a trajectory; None where it is none, -1 where the reader has to be told.
    frames : int
    spacing : float
        Between its frames in ps; 1 where nothing is known.
    """

    name: str
    path: str
    atoms: int | None = None
    alpha: int = 0
    frames_of: int | None = None
    frames: int = 0
    spacing: float = 1.0


@dataclass(frozen=True)
class Case:
    """One call of the command line."""

    topology: File
    trajectory: File | None
    select: str

    @property
    def label(self) -> str:
        names = self.topology.name + (f" {self.trajectory.name}" if self.trajectory else "")
        return f"{names} [{self.select}]"

    @property
    def spacing(self) -> float:
        return (self.trajectory or self.topology).spacing


@dataclass(frozen=True)
class Outcome:
    """How it ended: one of the kinds above, the message or the place, and the wall time."""

    label: str
    kind: str
    message: str = ""
    seconds: float = 0.0


def data_files() -> list[tuple[str, str]]:
    """Names and paths of the single files of MDAnalysisTests, each path once."""
    from MDAnalysisTests import datafiles

    found: dict[str, str] = {}
    for name in datafiles.__all__:
        value = getattr(datafiles, name)
        if isinstance(value, (str, os.PathLike)) and os.path.isfile(value):
            found.setdefault(os.fspath(value), name)
    return [(name, path) for path, name in found.items()]


def look_at(name: str, path: str) -> File:
    """Read a file with MDAnalysis, as a topology and as a trajectory."""
    import MDAnalysis as mda
    from MDAnalysis.core._get_readers import get_reader_for

    known: dict[str, Any] = {}
    try:
        universe = mda.Universe(path)
        known["atoms"] = len(universe.atoms)
        if hasattr(universe.atoms, "resnames") and hasattr(universe.atoms, "names"):
            known["alpha"] = len(universe.select_atoms("protein and name CA"))
    except Exception:  # whatever a damaged file leads to
        pass
    try:
        kind = get_reader_for(path)
    except Exception:  # no trajectory
        return File(name, path, **known)
    try:
        reader = kind(path)
        known["frames_of"], known["frames"] = int(reader.n_atoms), int(reader.n_frames)
        if known["frames"] > 1 and reader.dt > 0:
            known["spacing"] = float(reader.dt)
    except Exception as error:
        # A package that is not there says so whatever the topology is: the file alone is enough.
        known["frames_of"] = None if "install" in str(error) else -1
    return File(name, path, **known)


def cases(files: Sequence[File], selections: Sequence[str]) -> Iterable[Case]:
    """Every file alone, and all pairs that fit by number of atoms and are no two structures alone.

    A trajectory whose reader does not know the number of atoms goes with the topologies of its folder.
    """
    pairs: list[tuple[File, File | None]] = [(file, None) for file in files]
    for topology in files:
        for trajectory in files:
            if topology is trajectory or topology.atoms is None or trajectory.frames_of is None:
                continue
            if trajectory.frames_of == -1:
                fits = topology.frames_of is None and Path(topology.path).parent == Path(trajectory.path).parent
            else:
                fits = topology.atoms == trajectory.frames_of and (trajectory.frames > 1 or topology.frames_of is None)
            if fits:
                pairs.append((topology, trajectory))
    for topology, trajectory in pairs:
        if topology.atoms is None:
            yield Case(topology, trajectory, "ca")
        else:
            yield from (Case(topology, trajectory, s) for s in selections if s != "ca" or topology.alpha)
            if not topology.alpha and "all" not in selections:
                yield Case(topology, trajectory, "all")


def model_for(case: Case, folder: Path) -> list[str]:
    """Options that choose the bundled model where it fits, else a small one of random weights, made here."""
    from egno_md.forecast.model import new_model
    from egno_md.specs import GraphSpec, ModelSpec, WindowSpec

    if case.select == "ca" and abs(case.spacing - 1) < 1e-3:
        return []
    path = folder / f"{case.select}-{case.spacing:.9g}.safetensors"
    if not path.exists():
        if case.select == "ca":
            graph = GraphSpec(n_rbf=4)
        else:
            graph = GraphSpec(select=case.select, node_features=("speed",), cutoff=4.0, n_rbf=4)
        spec = ModelSpec(hidden=8, layers=1, time_embedding=8, start="static", length_scale=4.0)
        new_model(graph, WindowSpec(stride_ps=case.spacing, n_times=HORIZON), spec).save(path)
    return ["--model", str(path)]


def predict(case: Case, folder: Path) -> Outcome:
    """The command line on one case, in this process; once more with the spacing where it asks for that."""
    from click.testing import CliRunner

    from egno_md.cli import main

    gc.collect()  # what a case before left behind must not speak in this one
    files = [file.path for file in (case.topology, case.trajectory) if file is not None]
    output = folder / "out.dcd"
    for left in folder.glob("out.*"):
        left.unlink()
    arguments = ["predict", *files, "--horizon", str(HORIZON), "-o", str(output), "--device", "cpu"]
    arguments += model_for(case, folder)
    began = time.perf_counter()
    for cure in ([], ["--dt", f"{case.spacing:g}"]):
        with warnings.catch_warnings():
            result = CliRunner().invoke(main, [*arguments, *cure])
        kind, message = judge(result, output.exists())
        if kind != ERROR or "--dt" not in message:
            break
    return Outcome(" ".join([case.label, *cure]), kind, message, time.perf_counter() - began)


def judge(result: Any, written: bool) -> tuple[str, str]:
    """What a click result is: its kind and, where it is no forecast, its message."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        frames = traceback.extract_tb(result.exc_info[2])
        own = [f for f in frames if f"{os.sep}egno_md{os.sep}" in f.filename] or frames
        place = f"{Path(own[-1].filename).parent.name}/{Path(own[-1].filename).name}:{own[-1].lineno}"
        return TRACEBACK, f"{place} {type(result.exception).__name__}: {result.exception}"
    if "Traceback (most recent call last)" in result.output:
        return SHOWN, result.output.partition("Traceback")[0][-200:] + result.output.splitlines()[-1]
    found = re.search(r"^Error: (.*)\Z", result.output, re.DOTALL | re.MULTILINE)
    if found is None:
        # With checks that fail the exit code may be another one; the frames are there.
        failed = [line for line in result.output.splitlines() if "FAILED" in line]
        return (FORECAST, "; ".join(failed)) if written else (NO_CURE, f"exit {result.exit_code}: {result.output}")
    message = found[1].strip()
    if "\n" in message or not message or not CURE.search(message.partition(": ")[2] or message):
        return NO_CURE, message
    return ERROR, message


def work(connection: Any, log: str, limit: float) -> None:
    """A process that runs what it is sent until it is sent None."""
    warnings.simplefilter("ignore")
    stream = open(log, "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    faulthandler.enable(stream)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        connection.send("ready")
        while (task := connection.recv()) is not None:
            stream.truncate(0)
            faulthandler.dump_traceback_later(max(limit - 1, 0.5 * limit), file=stream)
            run, *arguments = task
            connection.send(run(*arguments, Path(folder)) if run is predict else run(*arguments))
            faulthandler.cancel_dump_traceback_later()


class Workers:
    """Processes that share a list of tasks; what kills or stops one of them costs that task alone."""

    def __init__(self, jobs: int, limit: float) -> None:
        self.jobs, self.limit = jobs, limit
        self.context = multiprocessing.get_context("spawn")

    def run(self, tasks: Sequence[tuple], failed: Any, progress: bool = False) -> list[Any]:
        """Results in the order of the tasks; ``failed(task, kind, message, seconds)`` stands for one that has none."""
        queue: SimpleQueue[int] = SimpleQueue()
        for k in range(len(tasks)):
            queue.put(k)
        results: list[Any] = [None] * len(tasks)
        threads = [threading.Thread(target=self._serve, args=(tasks, queue, results, failed)) for _ in range(self.jobs)]
        for thread in threads:
            thread.start()
        while progress and any(thread.is_alive() for thread in threads):
            print(f"\r{sum(r is not None for r in results)}/{len(tasks)}", end="", file=sys.stderr, flush=True)
            time.sleep(1)
        for thread in threads:
            thread.join()
        if progress:
            print("\r", end="", file=sys.stderr)
        return results

    def _serve(self, tasks: Sequence[tuple], queue: SimpleQueue, results: list[Any], failed: Any) -> None:
        process = connection = None
        with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
            while True:
                try:
                    k = queue.get_nowait()
                except Empty:
                    break
                if process is None:
                    connection, theirs = self.context.Pipe()
                    process = self.context.Process(target=work, args=(theirs, log.name, self.limit), daemon=True)
                    process.start()
                    theirs.close()
                    connection.recv()  # it has imported what it needs
                began = time.perf_counter()
                connection.send(tasks[k])
                try:
                    if connection.poll(self.limit):
                        results[k] = connection.recv()
                        continue
                    kind, message = HANG, ""
                    process.kill()
                except (EOFError, ConnectionResetError):
                    kind, message = CRASH, ""
                process.join()
                message = f"exit code {process.exitcode}; {last_place(Path(log.name).read_text())}"
                results[k] = failed(tasks[k], kind, message, time.perf_counter() - began)
                process = None
            if process is not None:
                connection.send(None)
                process.join()


def last_place(dump: str) -> str:
    """The innermost frame of what faulthandler wrote, and the innermost one of the package."""
    frames = re.findall(r'File "(.*?)", line (\d+) in (\w+)', dump)
    own = [frame for frame in frames if f"{os.sep}egno_md{os.sep}" in frame[0]]
    return " in ".join(f"{Path(f).name}:{n} {name}" for f, n, name in [*frames[:1], *own[:1]])


def sweep(
    selections: Sequence[str] = ("ca", "all"), jobs: int = 1, limit: float = 120.0, only: str = "", every: int = 1
) -> list[Outcome]:
    """Run all cases, or those whose label has `only` in it, or every n-th of them."""
    workers = Workers(jobs, limit)
    named = data_files()
    files = workers.run([(look_at, *file) for file in named], lambda task, *_: File(task[1], task[2]))
    chosen = [case for case in cases(files, selections) if only in case.label][::every]
    return workers.run(
        [(predict, case) for case in chosen],
        lambda task, kind, message, seconds: Outcome(task[1].label, kind, message, seconds),
        progress=sys.stderr.isatty(),
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts and times by kind, and everything that is neither a forecast nor an error with a cure."""
    counts = Counter(outcome.kind for outcome in outcomes)
    lines = [f"{'outcome':<24} {'runs':>6} {'seconds':>9}"]
    for kind in (FORECAST, ERROR, NO_CURE, SHOWN, TRACEBACK, CRASH, HANG):
        seconds = sum(outcome.seconds for outcome in outcomes if outcome.kind == kind)
        lines.append(f"{kind:<24} {counts[kind]:>6} {seconds:>9.1f}")
    unphysical = sum(outcome.kind == FORECAST and bool(outcome.message) for outcome in outcomes)
    lines.append(f"of the forecasts, {unphysical} have findings of the physical checks")
    wrong: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.kind not in RIGHT:
            wrong.setdefault((outcome.kind, " ".join(outcome.message.split())[:300]), []).append(outcome.label)
    for (kind, message), labels in sorted(wrong.items(), key=lambda item: (item[0][0], -len(item[1]))):
        lines += ["", f"{kind}, {len(labels)}: {message}", f"    {', '.join(labels)}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every outcome there")
    parser.add_argument("--select", default="ca,all", help="selections to run; without a protein always all atoms")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one run")
    parser.add_argument("--only", default="", help="cases whose label has this in it")
    parser.add_argument("--every", type=int, default=1, help="every n-th case")
    options = parser.parse_args()
    outcomes = sweep(options.select.split(","), options.jobs, options.limit, options.only, options.every)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    print(table(outcomes))
    sys.exit(any(outcome.kind not in RIGHT for outcome in outcomes))


if __name__ == "__main__":
    main()
