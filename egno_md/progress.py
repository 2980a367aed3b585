"""How far long work has come: a bar where somebody watches, elsewhere a line now and then."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

#: Seconds between two lines where nobody watches; shorter work is silent there.
EVERY = 30.0

#: Of a terminal that does not say how large it is.
COLUMNS, ROWS = 80, 24


def watched() -> bool:
    """Whether stderr is a terminal or a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return sys.stderr.isatty() or hasattr(shell, "kernel")


class Progress:
    """Counts what is done of some work, on stderr; a context.

    Parameters
    ----------
    what : str
        The work: the first word of the line.
    unit : str
        What is counted, in the plural.
    total : int, optional
        How many there are.
    done : int
        How many of them were done before, which tell nothing of the time that is left.
    shown : bool
        False: not a word.
    first : float, optional
        Seconds until the first line where nobody watches; else as many as between two of them.
    """

    _ended = _quiet = float("-inf")  # when the last one ended, and since when nothing had been said then

    def __init__(
        self, what: str, unit: str, total: int | None = None, done: int = 0, *, shown: bool = True,
        first: float | None = None,
    ) -> None:  # fmt: skip
        self.what, self.unit, self.total, self.shown = what, unit, total, shown
        self.done = self.before = done
        self.began, self.first = time.monotonic(), first
        self.said = self.began
        self.bar: Any = None

    def __enter__(self) -> Progress:
        self.began = time.monotonic()
        self.said = self.began + (EVERY if self.first is None else self.first) - EVERY
        if 0 <= self.began - Progress._ended < EVERY:  # parts of one work are silent no longer than one
            self.said = min(self.said, Progress._quiet)
        if self.shown and watched():
            from tqdm import tqdm

            # In terminals of no size, as some editors and `script` have them, tqdm shows nothing by itself.
            size = {} if _width() else {"ncols": COLUMNS, "nrows": ROWS}
            form = "{l_bar}{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}, {remaining} left]"
            if not self.total:
                form = "{desc}: {n_fmt} {unit} [{elapsed}]"
            self.bar = tqdm(
                total=self.total, initial=self.done, desc=self.what, unit=self.unit, bar_format=form,
                leave=False, **size,
            )  # fmt: skip
        return self

    def __exit__(self, *error: Any) -> None:
        if self.shown:
            Progress._ended, Progress._quiet = time.monotonic(), self.said
        if self.bar is not None:
            self.bar.close()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
            return
        now = time.monotonic()
        if self.shown and now - self.said >= EVERY:
            self.said = now
            print(self._line(now - self.began), file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """A line on stderr, above the bar where there is one."""
        if self.bar is not None:
            self.bar.clear()
        print(line, file=sys.stderr, flush=True)
        if self.bar is not None:
            self.bar.refresh()

    def _line(self, seconds: float) -> str:
        if self.total is None:
            return f"{self.what}: {self.done} {self.unit} so far"
        left = seconds * (self.total - self.done) / max(self.done - self.before, 1)
        return f"{self.what}: {self.done} of {self.total} {self.unit}, about {spoken(left)} left"


def spoken(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # a notebook
        return COLUMNS
