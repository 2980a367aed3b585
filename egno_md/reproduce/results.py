"""Runs and published numbers, brought together."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .experiments import EXPERIMENTS
from .run import read_result

#: The file of a reading at unseen times lies beside those of the runs.
ZERO_SHOT = "zero_shot.json"


@dataclass(frozen=True)
class Group:
    """Runs that differ by the seed alone.

    Attributes
    ----------
    experiment, case, system, preset : str
    settings : dict
    runs : list of dict
        By seed.
    """

    experiment: str
    case: str
    system: str
    preset: str
    settings: dict[str, Any]
    runs: list[dict[str, Any]]

    def errors(self, name: str) -> list[float]:
        """Test errors of the seeds that have one, in the unit of the published table."""
        scale = EXPERIMENTS[self.experiment].scale
        return [run["test"][name] / scale for run in self.runs if run["test"] is not None]

    def median(self, name: str) -> float:
        """Of the test errors; nan where there is none."""
        values = self.errors(name)
        return float(np.median(values)) if values else float("nan")

    @property
    def diverged(self) -> int:
        """Seeds whose loss was no number any more."""
        return sum(run["diverged"] is not None for run in self.runs)


def read_results(work: Path) -> list[dict[str, Any]]:
    """All finished runs below a folder.

    Raises
    ------
    UsageError
        There is none, or a file is something else.
    """
    found = [read_result(path) for experiment in EXPERIMENTS for path in sorted((work / experiment).glob("*.json"))]
    if not found:
        raise UsageError(
            f"there are no finished runs below {work}: run an experiment first, egno-md reproduce nbody --work {work}"
        )
    return found


def grouped(results: Iterable[dict[str, Any]]) -> list[Group]:
    """Runs by what they have in common."""
    found: dict[tuple, Group] = {}
    for result in results:
        key = (*(result[name] for name in ("experiment", "case", "system", "preset")), json.dumps(result["settings"]))
        group = found.setdefault(key, Group(*key[:4], result["settings"], []))
        group.runs.append(result)
    for group in found.values():
        group.runs.sort(key=lambda run: run["seed"])
    return list(found.values())


@functools.cache
def published() -> dict[str, Any]:
    """The numbers that others have published, and where."""
    return json.loads(files(__package__).joinpath("published.json").read_text())


def published_rows(experiment: str, case: str = "", data: str = "") -> list[dict[str, Any]]:
    """Published lines of one experiment, ``F-MSE`` and ``A-MSE`` as far as they are known, with a readable source.

    Where lines of other `data` options were published too, those of these options, of which there may be none.
    """
    entry, sources = published()[experiment], published()["sources"]
    if "table" in entry:
        place = entry["columns"].index(case.removesuffix("-apart"))
        rows = [
            {key: value[place] if isinstance(value, list) else value for key, value in row.items()}
            for row in entry["table"]
        ]
    else:
        rows = entry.get(data, [] if len(entry) > 1 else entry[""])
    return [{**row, "source": sources[row["source"]]} for row in rows]
