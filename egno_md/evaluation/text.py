"""Tables in plain text: a row for each forecaster, a column for each step."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

#: Columns of a terminal that tables and words take.
WIDTH = 112


def columns(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Cells under their heads; columns that have no room beside the others follow below them.

    Parameters
    ----------
    heads : sequence of str
        The first is that of the labels.
    rows : sequence of tuple
        Label, and a cell for each of the other heads.
    """
    table = [list(heads), *([name, *cells] for name, cells in rows)]
    label, *wide = (2 + max(map(len, column)) for column in zip(*table, strict=True))
    lines: list[str] = []
    first = 0
    while first < len(wide):
        room = 1 + int(np.sum(label + np.cumsum(wide[first:])[1:] <= WIDTH))
        lines += [""] if lines else []
        for name, *cells in table:
            some = zip(cells[first : first + room], wide[first:], strict=False)
            lines.append((f"{name:<{label}}" + "".join(f"{text:>{width}}" for text, width in some)).rstrip())
        first += room
    return lines


def wrapped(head: str, text: str) -> str:
    """Words beside the tables, not wider than they are."""
    return textwrap.fill(text, WIDTH, initial_indent=f"{head:<11}", subsequent_indent=" " * 11)
