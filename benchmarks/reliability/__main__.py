"""The parts one after the other, and their page."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from . import coverage, fuzz, kills, load, numbers
from .children import prepare

PARTS = ("kills", "memory", "load", "disk", "fuzz", "numbers", "coverage")

#: How many of each: kills and full disks, damaged files of a format, and the horizons.
FULL = {"kills": 50, "disk": 20, "fuzz": 2000, "memory": (1000, 10_000, 100_000), "load": slice(None)}
QUICK = {"kills": 3, "disk": 3, "fuzz": 50, "memory": (1000, 3000), "load": slice(1)}

MARK = "## What was found"


def measurements(part: str, folder: Path, counts: dict[str, Any]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and measurement of all in a part."""
    if part == "kills":
        for who in kills.WHO:
            for suffix in (".dcd", ".xtc"):
                yield f"{who}, {suffix[1:].upper()}", partial(kills.kills, folder, who, suffix, counts[part])
    elif part == "memory":
        for who in kills.WHO:
            yield who, partial(kills.memory, folder, who, counts[part])
    elif part == "load":
        for what, sizes in load.COUNTS.items():
            yield what, partial(load.load, folder, what, sizes[counts[part]])
    elif part == "disk":
        for what in ("dcd", "xtc", "pdb", "model", "state"):
            yield what, partial(kills.disks, folder, what, counts[part])
    elif part == "fuzz":
        for name, case in fuzz.cases(folder):
            yield name, partial(fuzz.fuzz, case, folder / "work", counts[part])
    elif part == "numbers":
        yield "numbers and names", partial(numbers.numbers, folder)
    else:
        yield "suite", partial(coverage.covered, folder)


@click.command()
@click.argument("parts", type=click.Choice([*PARTS, "all"]), nargs=-1)
@click.option("--quick", is_flag=True, help="A few of each, to see that it works; no file is written.")
@click.option("--again", is_flag=True, help="Also what has been measured.")
@click.option("--only", default="", help="What has this in its name.")
@click.option("--json", "target", type=click.Path(path_type=Path), default=Path("docs/performance/reliability.json"))
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/reliability.md"), help="Its tables.")
def main(parts: tuple[str, ...], quick: bool, again: bool, only: str, target: Path, page: Path) -> None:
    """Kill, fill disks, damage files and type numbers, and say what became of it. One process at a time."""
    chosen = PARTS if not parts or "all" in parts else parts
    results: dict[str, dict[str, Any]] = json.loads(target.read_text()) if target.exists() and not quick else {}
    prepare()
    for part in chosen:
        with tempfile.TemporaryDirectory() as name:
            for what, measure in measurements(part, Path(name), QUICK if quick else FULL):
                if only not in what or (what in results.get(part, {}) and not again):
                    continue
                began = time.monotonic()
                found = measure() | {"minutes": round((time.monotonic() - began) / 60, 1)}
                found = json.loads(json.dumps(found).replace(name, ""))
                results.setdefault(part, {})[what] = found
                click.echo(f"{part}, {what}: {json.dumps(found)}")
                if not quick:
                    target.write_text(json.dumps(results))
                    write(page, results)


def write(page: Path, results: dict[str, dict[str, Any]]) -> None:
    """The tables of the page; what stands before them stays."""
    head = page.read_text().split(MARK)[0].rstrip() if page.exists() else "# Reliability"
    tables = [line for part in PARTS if part in results for line in ["", *TABLES[part](results[part])]]
    page.write_text("\n".join([head, "", MARK, *tables]) + "\n")


def _table(names: list[str], rows: list[list[Any]]) -> list[str]:
    """In Markdown."""
    lines = [names, ["---"] * len(names), *rows]
    return [f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines]


def _kills(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, one in found.items():
        low, middle, high = one["frames confirmed at the kill"]
        equal = f"{one['byte-equal after --resume']} of {one['killed']}"
        complete = one.get("of them complete at the kill", 0)
        rows.append([name, equal, complete, f"{low} / {middle} / {high} of {one['of frames']}"])
    head = [
        "who, format",
        "byte-equal after `--resume`",
        "of them complete at the kill",
        "frames confirmed at the kill: least / median / most",
    ]
    return ["**kill -9** at random moments of a long forecast:", "", *_table(head, rows), *_wrong(found)]


def _memory(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, one in found.items():
        runs = {key: run for key, run in one.items() if key.isdigit()}
        peaks = [run["peak_MB"] for run in runs.values()]
        rows += [[name, f"{int(key):,}", run["peak_MB"], run["file_MB"], run["seconds"]] for key, run in runs.items()]
        rows.append([name, "largest over smallest", f"{max(peaks) / min(peaks):.3f}", "", ""])
    head = ["who", "horizon", "peak memory (MB)", "file (MB)", "seconds"]
    return ["**Peak memory** of the whole command:", "", *_table(head, rows)]


def _load(found: dict[str, Any]) -> list[str]:
    rows = [
        [what, f"{int(key):,}", run["cpu_seconds"], run["peak_MB"]]
        for what, one in found.items()
        for key, run in one.items()
        if key.isdigit()
    ]
    head = ["of what", "how many", "CPU s", "peak memory (MB)"]
    return ["**Load**, whole commands:", "", *_table(head, rows)]


def _disk(found: dict[str, Any]) -> list[str]:
    whole = "nothing confirmed lost, and whole afterwards"
    names = {"dcd": "DCD", "xtc": "XTC", "pdb": "PDB", "model": "model", "state": "training state"}
    rows = [[names[name], f"{one[whole]} of {one['full disks']}"] for name, one in found.items()]
    return ["**Full disk** at random sizes:", "", *_table(["file", whole], rows), *_wrong(found)]


def _fuzz(found: dict[str, Any]) -> list[str]:
    bad = ("traceback", "crash", "hang", "memory", "no message")
    rows = []
    for name, one in found.items():
        kinds = one["kinds"]
        other = kinds.get("forecast", 0) - one["same forecast"] - one["another forecast without a word"]
        accepted = [one["same forecast"], other, one["another forecast without a word"]]
        counts = [sum(kinds.get(kind, 0) for kind in group) for group in (bad[:1], bad[1:2], bad[2:3], bad[3:])]
        rows.append(
            [name, one["files"], kinds.get("clean error", 0), *accepted, *counts, one["slowest_s"], one["peak_MB"]]
        )
    head = [
        "format",
        "files",
        "refused by a line",
        "read: the same",
        "read: other, with a warning",
        "read: other, silently",
    ]
    head += ["tracebacks", "crashes", "hangs", "other", "slowest (CPU s)", "peak (MB)"]
    return ["**Damaged files**:", "", *_table(head, rows), *_found(found)]


def _numbers(found: dict[str, Any]) -> list[str]:
    rows = []
    lines = []
    for one in found.values():
        for group, kinds in one["groups"].items():
            done = [kinds.get(kind, 0) for kind in ("clean error", "forecast")]
            rows.append([group, sum(kinds.values()), *done, sum(kinds.values()) - sum(done)])
        lines = [f"Slowest {one['slowest_s']} CPU seconds, largest {one['peak_MB']} MB."]
    head = ["what is typed", "values", "refused by a line", "taken", "anything else"]
    return ["**Numbers and names**:", "", *_table(head, rows), "", *lines, *_wrong(found)]


def _coverage(found: dict[str, Any]) -> list[str]:
    files = found["suite"]["files"]
    every = {"all": [sum(column) for column in zip(*files.values(), strict=True)]}
    rows = [
        [
            f"**{name}**" if name == "all" else f"`{name}`",
            lines,
            f"{100 * entered / max(lines, 1):.0f}",
            branches,
            f"{100 * taken / branches:.0f}" if branches else "",
        ]
        for name, (lines, entered, branches, taken) in (every | dict(sorted(files.items()))).items()
        if lines
    ]
    head = ["file", "lines", "of them entered (%)", "branches", "of them taken (%)"]
    return [
        "**Lines and branches** that the tests enter, without those that Numba or Triton compile:",
        "",
        *_table(head, rows),
    ]


def _wrong(found: dict[str, Any]) -> list[str]:
    """What failed, in a list."""
    lines = [f"- {name}: {line}" for name, one in found.items() for line in one["wrong"]]
    return ["", "What failed:", "", *lines] if lines else []


def _found(found: dict[str, Any]) -> list[str]:
    lines = [
        f"- {name}, {kind}: {line}"
        for name, one in found.items()
        for kind, all_ in one["found"].items()
        for line in all_
    ]
    return ["", "What failed:", "", *lines] if lines else []


TABLES = {
    "kills": _kills, "memory": _memory, "load": _load, "disk": _disk, "fuzz": _fuzz, "numbers": _numbers,
    "coverage": _coverage,
}  # fmt: skip

if __name__ == "__main__":
    main()
