"""`egno-md predict --adapt SECONDS` on every run at hand: what learning from the run itself adds to what is free.

    python -m benchmarks.adapt --data DIR [--seconds 240] [--json FILE] [--page FILE] [--only NAME]

The runs are the published ones in DIR/md, and alanine dipeptide at 1 ps and at 10 ps. Nothing else should be running:
the budget counts the seconds of the wall. Results that are in the JSON file already are kept.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click

from egno_md.hindcast.learned import NAME

from .any_run import alanine, measured, published
from .tables import kept, put

HEAD = "| run | atoms | CPU s | independent windows | learned | spread / error of it | the best that is free | chosen |"


def row(name: str, one: dict[str, Any]) -> str:
    """A line of the table."""
    if "refused" in one:
        return f"| {name} | | {one['cpu_seconds']:.0f} | | refused: {one['refused']} | | | |"
    entries = one["hindcast"]["candidates"]
    free = min((key for key in entries if key != NAME), key=lambda key: entries[key]["score"])
    learned = entries.get(NAME)
    if learned is None:
        scores = next(line for line in one["decisions"] if line.startswith(NAME)).partition(": ")[2] + " | "
    else:
        scores = f"{learned['score']:.3f} | {learned['spread_over_error'][-1]:.2f}"
    return (
        f"| {name} | {one['atoms']} | {one['cpu_seconds']:.0f} | {one['hindcast']['independent_windows']} | {scores} | "
        f"{free} {entries[free]['score']:.3f} | {one['model']} |"
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with ala2/ and md/.")
@click.option("--seconds", default=240, show_default=True, help="Given to --adapt.")
@click.option("--json", "target", type=click.Path(path_type=Path), default=Path("docs/performance/adapt.json"))
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/any_run.md"), help="Its table is replaced.")
@click.option("--only", default="", help="Runs whose name holds this.")
def main(data: Path, seconds: int, target: Path, page: Path, only: str) -> None:
    """What learning from the run itself adds."""
    with tempfile.TemporaryDirectory() as name:
        folder, options = Path(name), ("--adapt", str(seconds))
        cases = [*published(data), *alanine(data, folder)]
        every = ((case.name, partial(measured, case, folder, options)) for case in cases)
        results = kept(target, every, row, only)
    put(page, HEAD, (row(name, one) for name, one in results.items()))


if __name__ == "__main__":
    main()
