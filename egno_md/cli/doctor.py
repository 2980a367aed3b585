"""`egno-md doctor`."""

from __future__ import annotations

import sys

import click

from ..errors import counted
from .output import as_text


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for a report of a fault.")
def doctor(as_json: bool) -> None:
    """Say whether this installation is well: versions, devices, files, and forecasts of the bundled sample.

    It takes some seconds and leaves nothing behind. The exit code is 1 where something is wrong.
    """
    from .. import doctor

    found = doctor.examine()
    content = doctor.as_dict(found)
    if as_json:
        click.echo(as_text(content))
    else:
        for one in found:
            click.echo(f"{one.name:<10} {'' if one.ok else 'WRONG: '}{one.said}")
        wrong = sum(not one.ok for one in found)
        click.echo("all is well" if not wrong else f"{counted(wrong, 'thing')} {'is' if wrong == 1 else 'are'} wrong")
    sys.exit(0 if content["ok"] else 1)
