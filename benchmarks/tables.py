"""Results that are measured once and kept in a JSON file, and their table in a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np


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


def put(page: Path, head: str, rows: Iterable[str]) -> None:
    """Write a table where the page has the one whose first two columns are named alike, or at its end."""
    first = "|".join(head.split("|")[:3]) + "|"
    text, _, rest = page.read_text().partition(f"\n{first}")
    table = "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])
    page.write_text("\n\n".join([text.rstrip(), table, rest.partition("\n\n")[2]]).rstrip() + "\n")
