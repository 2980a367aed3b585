"""`egno-md evaluate` and `egno-md suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .completion import models_and_files
from .output import as_text


@click.command()
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("trajectory", type=click.Path(path_type=Path), nargs=-1)
@click.option(
    "--model", shell_complete=models_and_files, help="Bundled model or checkpoint file; see 'egno-md models'."
)
@click.option("--horizon", type=int, help="Predicted frames. Default: the model's window; more are chained.")
@click.option("--select", help="Atoms to look at, within the model's selection.")
@click.option("--every", type=int, help="Frames per stride of the model. Default: from the times in the file.")
@click.option("--start", default=0, show_default=True, help="First frame of each run.")
@click.option("--stop", type=int, help="Frame to stop before.")
@click.option("--dt", type=float, help="Spacing of the frames in ps, where the headers are wrong.")
@click.option("--chains", default=0, show_default=True, help="Long chains to look at.")
@click.option("--chain-length", type=int, help="Frames of each.  [default: 25 windows]")
@click.option("--samples", default=0, show_default=True, help="Futures to draw from each window; judges who draws.")
@click.option("--windows", "max_windows", default=2000, show_default=True, help="Windows to judge at most.")
@click.option("--seed", default=0, show_default=True, help="Of the intervals.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for plots and a web page.")
@click.option("--force", is_flag=True, help="Replace files of the report.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(topology, trajectory, model, report, force, as_json, **options: Any) -> None:
    """Judge a model on a run: errors beside what is there for nothing, and how long chains look.

    Every TRAJECTORY is a run of its own. The baselines of each half of the data are fitted on the other half.
    """
    from ..evaluation.evaluate import evaluate
    from ..progress import Progress

    with Progress("evaluate", "predicted frames") as bar:
        result = evaluate(model, topology, *trajectory, progress=bar.update, **options)
    files = []
    if report is not None:
        from ..looking.evaluation import write_report

        files = write_report(result, report, force=force)
    if as_json:
        click.echo(as_text({**result.as_dict(), "files": [str(path) for path in files]}))
    else:
        click.echo("\n".join([result.table(), *(f"written    {path}" for path in files)]))


@click.command()
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("trajectory", type=click.Path(path_type=Path), nargs=-1)
@click.option("--select", default="ca", show_default=True, help="Atoms to forecast.")
@click.option("--window", "n_times", default=8, show_default=True, help="Frames of a window.")
@click.option("--dt", type=float, help="Spacing of the frames in ps, where the headers are wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def suggest(
    topology: Path, trajectory: tuple[Path, ...], select: str, n_times: int, dt: float | None, as_json: bool
) -> None:
    """Say which stride and window a model trained on a run should have, and why.

    It is about training (egno-md train): what egno-md predict forecasts of a run without a model has no such bounds.
    """
    from ..evaluation.suggest import suggest

    found = suggest(topology, *trajectory, select=select, n_times=n_times, dt=dt)
    click.echo(as_text(found.as_dict()) if as_json else found.table())
