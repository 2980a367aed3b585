"""What a shell is told when a value is to be completed. Only what is read without a slow import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from click import Context, Parameter
from click.shell_completion import CompletionItem

from ..models import bundled_models

#: Of `egno_md.reproduce`, which loads torch; a test holds them to it.
EXPERIMENTS = ("nbody", "mocap-walk", "mocap-run", "md17", "adk")
SYSTEMS = (
    "egno", "egno-l", "egno-t2t", "egno-ii", "egno-iii", "egno-iv", "eghno", "linear", "rf", "mpnn", "egnn", "egnn-r",
    "egnn-s", "egnn-tb", "eghn", "clofnet", "tfn", "se3-transformer",
)  # fmt: skip

#: Of `egno_md.forecast`, which loads scipy; a test holds them to it.
FREE_FORECASTS = (
    "static", "linear", "mean structure", "AR(1)", "smoothed history", "regression", "Gaussian process",
    "elastic network", "analogues", "ensemble of the run", "elastic network of proteins",
)  # fmt: skip


def one_of(names: tuple[str, ...]) -> Callable[[Context, Parameter, str], Any]:
    """Completes names."""
    return lambda context, parameter, incomplete: [name for name in names if name.startswith(incomplete)]


def models_and_files(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the names of bundled models, and files where none begins like this."""
    names = [CompletionItem(name) for name in bundled_models() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]
