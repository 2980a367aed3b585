"""`egno-md info` and `egno-md models`: what is read from headers alone."""

from __future__ import annotations

from typing import Any

import click

from .._version import __version__
from ..errors import counted
from .completion import FREE_FORECASTS, models_and_files
from .output import as_text


@click.command()
@click.argument("model", shell_complete=models_and_files)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(model: str, as_json: bool) -> None:
    """Show what MODEL (a bundled name or a file) was made for, trained on and is worth."""
    from ..errors import ModelError
    from ..models.header import read_header
    from ..specs import GraphSpec, ModelSpec, WindowSpec

    try:
        header = read_header(model)
    except ModelError:
        if "".join(model.lower().split()) in {"".join(name.lower().split()) for name in FREE_FORECASTS}:
            from ..forecast.forecasters import require_network

            require_network(model)  # another word to those who took a free forecast for a model
        raise
    try:
        specs = {
            name: kind(**header.content[name]).model_dump(mode="json")
            for name, kind in (("graph", GraphSpec), ("window", WindowSpec), ("model", ModelSpec))
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{header.path} does not describe a model that egno_md {__version__} knows ({error}); if it was made by a "
            "newer one: pip install --upgrade egno_md"
        ) from error
    content = {
        "name": header.name,
        "parameters": header.n_parameters,
        **specs,
        "molecules": header.known,
        "provenance": header.content["provenance"],
    }
    click.echo(as_text(content) if as_json else _readable_info(content))


def _readable_info(content: dict[str, Any]) -> str:
    graph, window, spec = content["graph"], content["window"], content["model"]
    names = {"layers": "{} layers", "hidden": "width {}"}
    size = [text.format(spec["options"][name]) for name, text in names.items() if name in spec["options"]]
    lines = [
        f"name       {content['name']}",
        f"operator   {spec['operator'].upper()}, {', '.join([*size, str(content['parameters'])])} parameters",
        f"atoms      {graph['select']}",
        f"graph      {graph['cutoff']:g} A, covalent neighbours up to {counted(graph['hops'], 'bond')}",
        f"window     {counted(window['n_times'], 'frame')} of {window['stride_ps']:g} ps from "
        f"{counted(window['history'], 'frame')}",
    ]
    if calls := spec["options"].get("steps"):
        calls = 1 if spec["options"]["direct"] else calls
        lines.append(f"draws      futures, a window with {counted(calls, 'call')} of its network")
    if count := content["molecules"]["geometry"]:
        lines.append(
            f"geometry   of {counted(count, 'molecule')}, kept in every frame; of others the bonds of the start"
        )
    elif spec["keep_bonds"]:
        lines.append("geometry   bonds are kept at their lengths at the start")
    if count := content["molecules"]["regression"]:
        lines.append(f"prior      a regression of {counted(count, 'molecule')}; no others can be forecast")
    lines += _indented(content["provenance"], 0)
    return "\n".join(lines)


def _indented(content: dict[str, Any], depth: int) -> list[str]:
    """Nested content, a line a value; numbers of a list in columns."""
    lines, indent = [], "  " * depth
    for key, value in content.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", *_indented(value, depth + 1)]
            continue
        if isinstance(value, list) and value and all(isinstance(item, float) for item in value):
            value = " ".join(f"{item:8.4f}" for item in value)
        lines.append(f"{indent}{key:<{18 if depth else 10}} {value}")
    return lines


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the models that come with egno_md."""
    from ..models import DEFAULT_MODEL, bundled_models
    from ..models.header import read_header

    rows = []
    for name in bundled_models():
        content = read_header(name).content
        rows.append(
            {
                "name": name,
                "default": name == DEFAULT_MODEL,
                "stride_ps": content["window"]["stride_ps"],
                "frames": content["window"]["n_times"],
                "select": content["graph"]["select"],
                "about": content["provenance"].get("about", ""),
            }
        )
    if as_json:
        click.echo(as_text(rows))
        return
    for row in rows:
        mark = "*" if row["default"] else " "
        click.echo(
            f"{mark} {row['name']:<16} {row['stride_ps']:g} ps x {row['frames']:<3} {row['select']:<10} {row['about']}"
        )
