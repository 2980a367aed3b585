"""The command line: a thin layer over the package. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import warnings
from typing import Any

import click

from .._version import __version__
from ..errors import EGNOError, UsageError
from . import evaluate, extend, interpolate, models, predict, reproduce, train

# Nothing heavy is imported at the top of these files: --help has to answer at once.


class _Group(click.Group):
    """Turns our errors into one line on stderr and the exit code: 2 for usage, 1 for failures."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(str(error)) from error
        except EGNOError as error:
            raise click.ClickException(str(error)) from error


def _short_warnings() -> None:
    """Show our own warnings as one line; libraries' advice about our use of them is no help to a user."""

    def show(message, category, filename, lineno, file=None, line=None):
        click.echo(f"warning: {message}", err=True)

    warnings.showwarning = show
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"egno_md\b.*|__main__")
    warnings.filterwarnings("default", category=UserWarning, message=r".*(frame|truncated|velocit|memory).*")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="egno-md")
def main() -> None:
    """Forecast molecular dynamics with equivariant graph neural operators."""
    _short_warnings()


for _command in (
    predict.predict,
    train.train,
    evaluate.evaluate,
    evaluate.suggest,
    extend.extend,
    reproduce.reproduce,
    interpolate.interpolate,
    models.models,
    models.info,
):
    main.add_command(_command)
