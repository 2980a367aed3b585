"""The paper's experiments, run here: the same data, splits and settings, a JSON file of each run, a page of them all.

``egno-md reproduce`` is the command; :func:`run_job` trains one system once, in parts if the time is short,
:func:`write_page` writes what was found beside what was published, and :func:`zero_shot` reads a trained model at times
it never saw.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "EXPERIMENTS": "experiments",
    "Job": "experiments",
    "is_finished": "run",
    "jobs": "experiments",
    "write_page": "page",
    "read_results": "results",
    "run_job": "run",
    "zero_shot": "zeroshot",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
