"""What commands write: names of files, and what they print for programs."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


class OutputFile(click.Path):
    """The name of a file; one that ends in a slash names a folder, which ``pathlib`` would not see."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fsdecode(value)
        if text.endswith(("/", os.sep)) and text.strip("/" + os.sep):
            bare = text.rstrip("/" + os.sep)
            self.fail(f"{text!r} names a folder, and a file was expected: {bare!r}, or a file in it", param, ctx)
        return super().convert(value, param, ctx)


def for_the_shell(message: str, command: click.Command | None) -> str:
    """A message in the words of a command: where it names an argument of Python, the option of that argument.

    Messages name both, "samples (--samples)" or "--force (force=True)", of which the option is enough. A value alone,
    "select='heavy'", is written as it is typed, "--select heavy".
    """
    options = {
        str(parameter.name): max(parameter.opts, key=lambda name: name.startswith("--"))
        for parameter in (command.params if command is not None else ())
        if isinstance(parameter, click.Option)
    }
    if not options:
        return message
    names = rf"(?<![\w./-])({'|'.join(options)})"
    value = r"('[^']*'|\"[^\"]*\"|[^\s'\",;:()]+)"

    def typed(found: re.Match[str]) -> str:
        given = found[2] if " " in found[2] else found[2].strip("'\"")
        return options[found[1]] if given == "True" else f"{options[found[1]]} {given}"

    for pattern, words in (
        (rf"{names}={value} \(--[^()]+\)", typed),  # dt=2 (--dt 2)
        (rf"(--[^()]*) \({names}(={value})?\)", r"\1"),  # --force (force=True)
        (r"(?<![\w./-])\w+_\w+ \((--[\w-]+)\)", r"\1"),  # md_steps (--md-steps)
        (rf"{names} \(--[\w-]+\)", lambda found: options[found[1]]),  # samples (--samples)
        (rf"(?<!--set ){names}={value}", typed),  # select='heavy'
    ):
        message = re.sub(pattern, words, message)
    return message


def as_text(content: Any) -> str:
    """JSON that every reader takes: numbers that are none are null, and infinite ones the words inf and -inf."""
    return json.dumps(_plain(content), indent=2, allow_nan=False)


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    return content


def written(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Lines for people on the files of a command; those that differ in their numbers alone share a line."""
    series: dict[tuple[Path, str], list[str]] = {}
    for path in paths:
        series.setdefault((Path(path).parent, re.sub(r"\d+", "0", Path(path).name)), []).append(str(path))
    return [
        f"written    {each[0]}" + (f" to {Path(each[-1]).name} ({len(each)} files)" if len(each) > 1 else "")
        for each in series.values()
    ]
