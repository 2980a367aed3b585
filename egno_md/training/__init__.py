"""From a recipe to a model that has been judged; what trains needs lightning.

The names below are loaded on first use: a recipe can be read and written without lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Data": "data",
    "FilesOptions": "data",
    "System": "data",
    "choose_prior": "run",
    "complete": "recipe",
    "fit": "loop",
    "load_data": "data",
    "overridden": "recipe",
    "read_manifest": "recipe",
    "read_recipe": "recipe",
    "source_of": "source",
    "to_toml": "recipe",
    "train": "run",
    "train_files": "run",
    "train_recipe": "run",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
