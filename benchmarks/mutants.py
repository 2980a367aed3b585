"""Whether the tests see a change of the numerical core: one sign, index, bound or term at a time, in a copy.

``python -m benchmarks.mutants --sample 160`` draws so many of all changes, runs for each the tests that enter the
changed function, and writes ``docs/performance/mutants.json`` and a section of ``docs/reliability.md``. What was
measured before is kept; ``--seed 1`` draws afresh, ``--survivors`` tries the survivors again, after tests were written
for them.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from scipy.stats import binomtest

from benchmarks.unseen import SEEN_BY_NOBODY

ROOT = Path(__file__).resolve().parents[1]
CORE = (
    "egno_md/nn/**/*.py", "egno_md/graph/*.py", "egno_md/forecast/*.py", "egno_md/propagator/*.py",
    "egno_md/molecule/geometry.py", "egno_md/molecule/local.py", "egno_md/molecule/kernels.py",
    "egno_md/evaluation/errors.py", "egno_md/evaluation/quality.py", "egno_md/evaluation/calibration.py",
    "egno_md/evaluation/score.py", "egno_md/evaluation/statistics.py", "egno_md/evaluation/slow.py",
    "egno_md/trajectory/clock.py", "egno_md/trajectory/writer.py",
)  # fmt: skip
#: Test files that say little about the core for the time that they take: commands, documents, whole trainings.
LEFT_OUT = (
    "benchmarks", "cases", "cli", "datasets", "doctor", "examples", "extend", "hindcast", "index", "looking",
    "metadata", "minutes", "offline", "package", "paper_data", "processes", "recipe", "reliability", "report",
    "reproduce", "start", "states", "sweep", "training",
)  # fmt: skip
#: The tests of what is compiled, where no function can be seen to be entered.
COMPILED = {
    "egno_md/molecule/kernels.py": "tests/test_geometry.py",
    "egno_md/nn/edges/numba.py": "tests/test_edges.py",
    "egno_md/nn/edges/triton.py": "tests/test_edges.py",
}
#: CPU seconds of the tests that are run for a change, by what they took unchanged; and of a process that may hang.
ENOUGH, LONGEST = 30.0, 90
#: What is imported once, before a process is copied for each change.
LIBRARIES = (
    "pytest", "hypothesis.strategies", "torch", "torch_geometric.data", "numpy", "scipy.spatial", "scipy.stats",
    "vesin", "MDAnalysis", "MDAnalysisTests.datafiles", "mdtraj", "openmm.app", "numba", "click.testing",
    "safetensors.torch", "pydantic", "lightning",
)  # fmt: skip
HEAD, NEXT = "## Changes of the numerical core", "## What was found"
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
KINDS = ("noticed", "nothing to see", "survived")
ABOUT = """\
One sign, comparison, constant, condition or term of the numerical core is changed at a time, in a copy, and the tests
that enter the changed function are run: the most direct ones, up to 30 CPU seconds, without the large reference data
that do not travel with the project. A change that no test notices is a fault of the tests, or one that no result shows:

```bash
python -m benchmarks.mutants --sample 160     # --survivors: those once more
python -m benchmarks.mutants --sample 6 --seed 1 $(printf -- "--only %s.py " forecast/{rolling,bridge,chain} \\
  graph/windows trajectory/{clock,writer} molecule/{geometry,local} evaluation/{score,calibration} \\
  propagator/{beads,hybrid,jump,dynamics})    # 6 of each
```"""
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


class Mutant(NamedTuple):
    """One change: of the text from `start` to `end` (bytes) of a file, in a function, to another one; `called` is
    whether it runs with the function, and not once, when the class or the module is made; `nth` counts those of a
    function that read alike."""

    file: str
    function: str
    line: int
    column: int
    start: int
    end: int
    old: str
    new: str
    called: bool = True
    nth: int = 1

    @property
    def key(self) -> str:
        """Without its line, which changes elsewhere in the file move."""
        again = f" (#{self.nth})" if self.nth > 1 else ""
        return f"{self.file}:{self.function or 'the module'}: {self.old} -> {self.new}{again}"


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Every change of a file."""
    starts, functions, alike = [0], set(), Counter()
    same: set[ast.AST] = set()  # constants that no result depends on
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def changed(node: ast.expr, function: str, *replaced: ast.AST) -> Iterator[Mutant]:
        first, last = (starts[row - 1] + col for row, col in _ends(node))
        for other in replaced:
            old, new = ast.unparse(node), ast.unparse(other)
            alike[function, old, new] += 1
            yield Mutant(
                file, function, node.lineno, node.col_offset + 1, first, last, old, new,
                function in functions, alike[function, old, new],
            )  # fmt: skip

    def walk(node: ast.AST, function: str) -> Iterator[Mutant]:
        if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)) or _only_says(node):
            return  # words, not numbers
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return  # what nobody runs
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            function = f"{function}.{node.name}" if function else node.name
            if isinstance(node, ast.FunctionDef):
                functions.add(function)
        if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED and not _text(node):
            yield from changed(node, function, _other(node, op=SWAPPED[type(node.op)]()))
            if isinstance(node.op, (ast.Add, ast.Sub)):
                yield from changed(node, function, node.left)  # a term is dropped
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
            yield from changed(node, function, node.operand)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
            yield from changed(node, function, _other(node, ops=[COMPARED[type(node.ops[0])](), *node.ops[1:]]))
        elif isinstance(node, ast.BoolOp):
            yield from changed(node, function, _other(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And()))
        elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float) and node.value != float("inf"):
            value = node.value
            new = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 1.5 * value
            tolerance = isinstance(value, float) and 0 < value < 1e-5
            if new != value and not tolerance:
                of_it = list(changed(node, function, ast.Constant(new)))
                yield from of_it if node not in same else []
        if isinstance(node, (ast.If, ast.IfExp, ast.While)) and not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
            yield from changed(node.test, function, ast.UnaryOp(ast.Not(), node.test))
        if isinstance(node, ast.keyword) and node.arg in ("strict", "optimize"):
            return  # no result depends on them
        if _open(node):
            for left_open in node.args:
                if isinstance(left_open, ast.UnaryOp):
                    same.add(left_open.operand)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, function)

    yield from walk(ast.parse(source), "")


def _ends(node: ast.expr) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _other(node: ast.AST, **fields: Any) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _text(node: ast.BinOp) -> bool:
    """Whether text is put together, not numbers."""
    return any(
        isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
        for part in ast.walk(node)
    )


def _open(node: ast.AST) -> bool:
    """Whether shapes are given: numpy takes any length below 0 for the one that is left open."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape"


def _only_says(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "said", "print", "Field")


class Copy:
    """The project without its history in a temporary folder, and processes that run tests there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "docs", "dist", "build")
        shutil.copytree(ROOT, self.folder, ignore=ignored)
        shutil.copytree(ROOT / "docs", self.folder / "docs", ignore=shutil.ignore_patterns("performance", "_build"))
        self._changes = 0
        for name in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    def run(self, arguments: list[str], seconds: float, plugin: object = None) -> tuple[int, float]:
        """Exit code of pytest, negative where a signal ended it, and CPU seconds."""
        pid = os.fork()
        if not pid:
            code = 70
            try:
                os.setsid()
                with open(self.folder / "said.txt", "wb") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
                signal.alarm(int(10 * seconds))  # whatever it waits for
                os.chdir(self.folder)
                sys.path[:0] = [str(self.folder), str(self.folder / "tests")]
                os.environ["PYTHONPATH"] = str(self.folder)
                import pytest

                options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", "-W", "ignore"]
                code = int(pytest.main([*options, *arguments], plugins=[plugin] if plugin else []))
            finally:
                os._exit(code)
        _, status, used = os.wait4(pid, 0)
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime

    @contextlib.contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """With one change; its time is another one than that of any file before, so that no stored bytes are taken."""
        path = self.folder / mutant.file
        before, stamp = path.read_bytes(), path.stat().st_mtime
        self._changes += 1
        path.write_bytes(before[: mutant.start] + f"({mutant.new})".encode() + before[mutant.end :])
        os.utime(path, (stamp + self._changes, stamp + self._changes))
        try:
            yield
        finally:
            path.write_bytes(before)
            os.utime(path, (stamp, stamp))


class Entered:
    """A plugin of pytest: the functions of the core that each test enters, and the CPU seconds it takes."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.core = {str(folder / name): name for name in files()}
        self.target, self.tests, self.now = target, {}, None

    def trace(self, frame: Any, event: str, argument: object) -> None:
        code = frame.f_code
        if code.co_filename in self.core and self.now is not None:
            name = code.co_qualname.replace(".<locals>", "")
            self.now.add(f"{self.core[code.co_filename]}:{re.sub(r'[.]?<.*>', '', name)}")

    def pytest_runtest_protocol(self, item: Any) -> None:
        self.now, self.began = set(), time.process_time()
        sys.settrace(self.trace)
        threading.settrace(self.trace)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "teardown":
            sys.settrace(None)
            threading.settrace(None)
            took = round(time.process_time() - self.began, 3)
            self.tests[report.nodeid] = {"seconds": took, "entered": sorted(self.now)}

    def pytest_sessionfinish(self) -> None:
        self.target.write_text(json.dumps(self.tests))


def files() -> list[str]:
    """The numerical core, names relative to the project."""
    names = {str(path.relative_to(ROOT)) for pattern in CORE for path in ROOT.glob(pattern)}
    return sorted(names - {"egno_md/nn/testing.py"})  # which is a test itself


def entered(project: Copy, store: Path) -> dict[str, dict[str, Any]]:
    """Of every test what it enters; of test files that were looked at before what was found then."""
    tests: dict[str, dict[str, Any]] = {}
    for path in sorted((project.folder / "tests").glob("test_*.py")):
        if path.stem.removeprefix("test_") in LEFT_OUT:
            continue
        target = store / f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}.json"
        if not target.exists():
            part = target.with_suffix(".part")
            plugin = Entered(project.folder, part)
            code, seconds = project.run([f"tests/{path.name}"], 600, plugin)
            if code:
                raise click.ClickException(f"{path.name} fails unchanged: see {project.folder / 'said.txt'}")
            part.rename(target)
            click.echo(f"{path.name}: {seconds:.0f} CPU s")
        tests |= json.loads(target.read_text())
    return tests


def chosen(mutant: Mutant, tests: dict[str, dict[str, Any]]) -> list[str]:
    """The tests that enter the function of a change, the most direct ones first; of compiled code all of one file.

    What is made once, with a class or a module, is in use wherever the file is: whoever imports it first is no test.
    """
    if mutant.file in COMPILED:
        return [name for name in tests if name.startswith(COMPILED[mutant.file])]

    def enter(place: str) -> list[str]:
        return [name for name, test in tests.items() if any(f"{e}:".startswith(place) for e in test["entered"])]

    total, kept = 0.0, []
    among = (mutant.called and enter(f"{mutant.file}:{mutant.function}:")) or enter(f"{mutant.file}:")
    for name in sorted(among, key=lambda name: len(tests[name]["entered"])):
        if not kept or total + tests[name]["seconds"] < ENOUGH:
            total += tests[name]["seconds"]
            kept.append(name)
    first = {name.partition("::")[0]: k for k, name in reversed(list(enumerate(kept)))}
    return sorted(kept, key=lambda name: first[name.partition("::")[0]])  # each file is read once


@click.command()
@click.option("--only", multiple=True, default=[""], help="Files with this in their name; several times for several.")
@click.option("--sample", type=click.IntRange(1), help="So many changes, drawn, of each --only; all by default.")
@click.option("--seed", default=0, help="Of the sample.")
@click.option("--minutes", type=float, default=float("inf"), help="Begin no change after so many CPU minutes.")
@click.option("--survivors", is_flag=True, help="Only what survived before, once more.")
@click.option("--json", "target", type=click.Path(path_type=Path), default=ROOT / "docs/performance/mutants.json")
@click.option("--page", type=click.Path(path_type=Path), default=ROOT / "docs/reliability.md")
@click.option("--store", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "egno_md-mutants")
def main(
    only: tuple[str, ...],
    sample: int | None,
    seed: int,
    minutes: float,
    survivors: bool,
    target: Path,
    page: Path,
    store: Path,
) -> None:
    """Change the numerical core in one place at a time and see whether a test fails."""
    every = [m for name in files() for m in mutants(name, (ROOT / name).read_text())]
    known = {m.key for m in every}  # what is gone is left out
    before = json.loads(target.read_text()) if target.exists() else {}
    results = {key: one for key, one in before.items() if key in known}
    # In an order that stays the same for what stays the same when the code changes.
    every.sort(key=lambda m: hashlib.sha256(f"{seed} {m.key}".encode()).hexdigest())
    of_each = [[m for m in every if part in m.file] for part in only]
    if survivors:
        again = {key for key, one in results.items() if one["found"] == "survived"} - SEEN_BY_NOBODY.keys()
        drawn = [m for part in of_each for m in part if m.key in again]
    else:
        drawn = [m for part in of_each for m in part[:sample] if m.key not in results]
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        project = Copy(Path(name))
        tests = entered(project, store)
        if project.run(["--collect-only", *tests], 600)[0]:
            raise click.ClickException(f"tests are not found by their names: see {project.folder / 'said.txt'}")
        spent = 0.0
        for k, mutant in enumerate(drawn):
            if spent > 60 * minutes:
                break
            names = chosen(mutant, tests)
            with project.changed(mutant):
                code, seconds = project.run(names, LONGEST) if names else (0, 0.0)
            spent += seconds
            found = "survived" if code == 0 else "killed" if code in (1, 2, 3, 4, 70) else "timed out"
            began = results.get(mutant.key, {"first": found, "seed": seed})
            ran = {"found": found, "tests": len(names), "seconds": round(seconds, 1)}
            results[mutant.key] = {"first": began["first"], "seed": began["seed"], **ran}
            click.echo(f"{k + 1}/{len(drawn)} {found} {seconds:.0f}s line {mutant.line} of {mutant.key}")
            target.write_text(json.dumps(results, indent=0))
    target.write_text(json.dumps(results, indent=0))
    write(page, results, len(every))


def write(page: Path, results: dict[str, dict[str, Any]], possible: int) -> None:
    """The section of the page, before that of another command; what else stands there stays."""
    per_file: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for key, one in sorted(results.items()):
        per_file[key.partition(":")[0]].append((key, one))
    rows, lines = [], []
    for file, all_ in per_file.items():
        kinds = Counter(_kind(key, one) for key, one in all_)
        rows.append([file.removeprefix("egno_md/"), len(all_), *(kinds[kind] for kind in KINDS)])
        for key, one in all_:
            if one["found"] == "survived":
                place, _, change = key.partition(": ")
                function = place.partition(":")[2]
                why = SEEN_BY_NOBODY.get(key, "a test is missing")
                lines.append(f"- `{rows[-1][0]}`, `{function}`: `{change}`: {why}")
    total = [sum(row[k] for row in rows) for k in range(1, 5)]
    rows.append(["**all**", *total])
    n, noticed, unseen, _ = total
    draws = [["seed", "files", "changes", "noticed at first", "95 % interval", "of those to see", *KINDS], ["---"] * 9]
    for seed in sorted({one["seed"] for one in results.values()}):
        of_it = {key: one for key, one in results.items() if one["seed"] == seed}
        at_first = sum(one["first"] != "survived" for one in of_it.values())
        low, high = binomtest(at_first, len(of_it)).proportion_ci(method="wilson")
        kinds = Counter(_kind(key, one) for key, one in of_it.items())
        among = len({key.partition(":")[0] for key in of_it})
        to_see = len(of_it) - kinds[KINDS[1]]
        share = [
            f"{at_first} ({at_first / len(of_it):.0%})",
            f"{low:.0%} to {high:.0%}",
            f"{at_first / max(to_see, 1):.0%}",
        ]
        draws.append([seed, among, len(of_it), *share, *(kinds[kind] for kind in KINDS)])
    table = [["file", "changes", *KINDS], ["---"] * 5, *rows]
    text = [
        HEAD,
        "",
        ABOUT,
        "",
        f"Of {possible:,} possible changes {n} were drawn. What was noticed when it was first run is what to expect of",
        "the other changes of these files, all of them or those whose result is to see; tests were then written for",
        "survivors. What became of each draw:",
        "",
        *_lines(draws),
        "",
        f"Without the {unseen} that change no result, {noticed / max(n - unseen, 1):.1%} of these are noticed now.",
        "",
        *_lines(table),
        "",
        *(["What survives:", "", *lines] if lines else []),
    ]
    before, _, after = page.read_text().partition(NEXT)
    before = before.partition(HEAD)[0].rstrip()
    page.write_text("\n".join([before, "", *text]).rstrip() + f"\n\n{NEXT}{after}")


def _lines(table: list[list[Any]]) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in table]


def _kind(key: str, one: dict[str, Any]) -> str:
    return KINDS[0] if one["found"] != "survived" else KINDS[1] if key in SEEN_BY_NOBODY else KINDS[2]


if __name__ == "__main__":
    main()
