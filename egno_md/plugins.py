"""What other packages add to the registers of this one, by entry points."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from .errors import UsageError


def names(group: str) -> tuple[str, ...]:
    """Names of the entries in a group; nothing is imported for it."""
    return tuple(point.name for point in entry_points(group=group))


def loaded(group: str, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """What other packages bring in a group, all of it or what has one name.

    Yields
    ------
    where : str
        The entry point, for the message that it does not fit.
    brought : object

    Raises
    ------
    UsageError
        A package that cannot be imported.
    """
    for point in entry_points(group=group) if name is None else entry_points(group=group, name=name):
        where = f"the entry point {point.name} = {point.value} ({group})"
        try:
            brought = point.load()
        except Exception as error:  # whatever another package raises while it is imported
            raise UsageError(
                f"{where} cannot be loaded ({type(error).__name__}: {error}): mend or uninstall its package"
            ) from error
        yield where, brought
