"""The command line: a thin layer over the package. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import click

from .._version import __version__
from ..errors import EGNOError, StoppedError, UsageError
from . import doctor, evaluate, extend, interpolate, models, predict, reproduce, train
from .output import for_the_shell
from .stopping import stoppable

# Nothing heavy is imported at the top of these files: --help has to answer at once.


class _Group(click.Group):
    """Turns our errors into one line on stderr and the exit code: 2 for usage, 1 for failures.

    A signal that asks for an end is one line as well, and the exit code is that of the signal.
    """

    def main(self, *args: Any, **options: Any) -> Any:
        # With more threads the sums of a fit end in other digits, and --resume could not keep its word.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        with stoppable() as stop:
            try:
                return super().main(*args, obj=stop, **options)
            except SystemExit as end:
                if stop.asked and end.code == 1:  # what click makes of a signal before the command begins
                    sys.exit(stop.code)
                raise

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for word in args:
            try:
                word.encode()
            except UnicodeEncodeError as error:
                raise click.UsageError(
                    f"{word!r} is not UTF-8, and the libraries that read and write the files take no other names: "
                    "rename it, or make a link to it of another name (ln -s)"
                ) from error
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoked(ctx)
        except (KeyboardInterrupt, Exception) as error:
            # What a signal raises comes out of some libraries as another error, such as one of an import.
            asked = ctx.obj.asked and not isinstance(error, click.exceptions.Exit)
            if not asked and not isinstance(error, KeyboardInterrupt):
                raise
            said = error.__cause__ if isinstance(error.__cause__, StoppedError) else ctx.obj.said()
            click.echo(self._said(ctx, said), err=True)
            sys.exit(ctx.obj.code)

    def _invoked(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(words in str(error) for words in _NO_ROOM):
                raise
            said = " ".join(str(error).split())
            raise click.ClickException(
                f"the memory of this machine is too small for what was asked ({said or 'no more was to be had'}): ask "
                "for fewer atoms, frames or samples, or for a smaller network"
            ) from error
        except UsageError as error:
            raise click.UsageError(self._said(ctx, error)) from error
        except EGNOError as error:
            raise click.ClickException(self._said(ctx, error)) from error

    def _said(self, ctx: click.Context, error: Exception | str) -> str:
        return for_the_shell(str(error), self.commands.get(ctx.invoked_subcommand or ""))


#: How torch says that there is no more memory, on a CPU and on a GPU.
_NO_ROOM = ("allocate memory", "out of memory")


def _short_warnings() -> None:
    """Show our own warnings as one line; libraries' advice about our use of them is no help to a user."""

    def show(message, category, filename, lineno, file=None, line=None):
        ctx = click.get_current_context(silent=True)
        click.echo(f"warning: {for_the_shell(str(message), ctx and ctx.command)}", err=True)

    warnings.showwarning = show
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"egno_md\b.*|__main__")
    warnings.filterwarnings("default", category=UserWarning, message=r".*(frame|truncated|velocit|memory).*")
    warnings.filterwarnings("ignore", category=ResourceWarning)  # of a reader that failed; the message says what of


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
    doctor.doctor,
):
    main.add_command(_command)
