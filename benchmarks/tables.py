"""Results that are measured once and kept in a JSON file, and their table in a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np

from egno_md.evaluation.result import plain


def kept(
    target: Path,
    cases: Iterable[tuple[str, Callable[[], dict[str, Any]]]],
    row: Callable[[str, dict[str, Any]], str],
    only: str = "",
) -> dict[str, dict[str, Any]]:
    """What is in the file already, and what the `cases` with `only` in their name give, written after each of them."""
    results = json.loads(target.read_text()) if target.exists() else {}
    for name, measure in cases:
        if name in results or only not in name:
            continue
        results[name] = measure()
        rounded = json.loads(json.dumps(results), parse_float=lambda number: float(f"{float(number):.5g}"))
        target.write_text(json.dumps(rounded))
        click.echo(row(name, results[name]))
    return results


def seeds(values: Iterable[float | None], digits: int) -> str:
    """The median over seeds and, of several, the least and the largest; what is not known is left out."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    if not known:
        return ""
    middle = f"{np.median(known):.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def keep(target: Path, row: dict[str, Any], key: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Write a row to those of a file, in place of one with the same key; as it is there, with six digits."""
    rows = json.loads(target.read_text()) if target.exists() else []
    new = json.loads(json.dumps(plain(row)), parse_float=lambda number: round(float(number), 6))
    rows = [*(one for one in rows if key(one) != key(new)), new]
    target.write_text("[\n" + ",\n".join(json.dumps(one) for one in rows) + "\n]\n")
    return new


def table_of(head: str, lines: Callable[[list[dict[str, Any]]], Iterable[str]]) -> click.Command:
    """The command ``table RESULTS PAGE``: the table of the rows of a file, into a page."""

    @click.command("table", help="Write the table of all rows into a page.")
    @click.argument("results", type=click.Path(path_type=Path, exists=True))
    @click.argument("page", type=click.Path(path_type=Path, exists=True))
    def table(results: Path, page: Path) -> None:
        put(page, head, lines(json.loads(results.read_text())))

    return table


def put(page: Path, head: str, rows: Iterable[str]) -> None:
    """Write a table where the page has the one whose first two columns are named alike, or at its end."""
    first = "|".join(head.split("|")[:3]) + "|"
    text, _, rest = page.read_text().partition(f"\n{first}")
    table = "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])
    page.write_text("\n\n".join([text.rstrip(), table, rest.partition("\n\n")[2]]).rstrip() + "\n")
