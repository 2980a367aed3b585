"""`egno-md predict`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import UnphysicalError
from .completion import models_and_files
from .output import OutputFile, as_text
from .stopping import Stop


@click.command()
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("trajectory", type=click.Path(path_type=Path), nargs=-1)
@click.option("--horizon", default=8, show_default=True, help="Number of frames to predict.")
@click.option(
    "--select",
    help="Atoms to forecast: ca, backbone, heavy or an MDAnalysis selection. Default: what the run consists of, or the "
    "model's.",
)
@click.option(
    "--model",
    shell_complete=models_and_files,
    help="Who forecasts: a bundled model (see 'egno-md models'), a checkpoint file, or a forecast without a network, "
    "such as 'gaussian process' or analogues. Default: the best one on the last windows of this run.",
)
@click.option("--from-frame", type=int, help="Start frame (counted from 0; negative: from the end). Default: the last.")
@click.option("--from-frames", help="Several start frames: START:STOP:STEP as in Python, or numbers with commas.")
@click.option("-o", "--output", type=OutputFile(), help="DCD or XTC; default: <trajectory>_forecast.dcd.")
@click.option("--with-input", is_flag=True, help="Begin the file with the frames up to the start.")
@click.option(
    "--stride",
    "--every",
    "every",
    type=int,
    help="Frames of the trajectory from one predicted frame to the next. Default: 1, or the stride of the model.",
)
@click.option("--substeps", default=1, show_default=True, help="Predicted frames per stride of the model.")
@click.option("--samples", type=int, help="Futures to draw, from those who draw; a file for each.  [default: 1]")
@click.option("--mean", is_flag=True, help="The mean of all futures in place of one that is drawn.")
@click.option("--seed", default=0, show_default=True, help="Of the futures that are drawn.")
@click.option(
    "--adapt",
    default=0.0,
    metavar="SECONDS",
    help="Learn a model from this run for so long; it forecasts where it is the best, and is kept beside the output.",
)
@click.option("--dt", type=float, help="Spacing of the trajectory's frames in ps, where its header is wrong.")
@click.option("--no-box", is_flag=True, help="Forget the periodic box of the trajectory.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "bf16"]),
    default="float32",
    show_default=True,
    help="What the network computes in; tf32 needs a GPU.",
)
@click.option("--report", type=click.Path(path_type=Path), help="Write a page of the forecast there (HTML).")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with a long forecast: one cut short, or a whole one to a longer horizon; or begin it.",
)
@click.option(
    "--on-unphysical",
    type=click.Choice(["warn", "stop", "relax"]),
    default="warn",
    show_default=True,
    help="Keep frames that fail the physical checks, end the forecast before the first, or relax them and go on.",
)
@click.option("--verbose", is_flag=True, help="Print what every forecast of this run is worth.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_obj
def predict(
    stop: Stop,
    topology: Path,
    trajectory: tuple[Path, ...],
    horizon: int,
    select: str | None,
    model: str | None,
    from_frame: int | None,
    from_frames: str | None,
    output: Path | None,
    with_input: bool,
    every: int | None,
    substeps: int,
    samples: int | None,
    mean: bool,
    seed: int,
    adapt: float,
    dt: float | None,
    no_box: bool,
    device: str,
    precision: str,
    report: Path | None,
    force: bool,
    resume: bool,
    on_unphysical: str,
    verbose: bool,
    as_json: bool,
) -> None:
    """Forecast the frames after the end of a run (or after --from-frame) and write them.

    TOPOLOGY and TRAJECTORY are any files that MDAnalysis reads; several trajectory files are one run. The exit code is
    3 where predicted frames fail the physical checks; the files are kept.

    Without --model all forecasts of the run are tried on its last frames, and the best one is taken; what it is worth
    is said.

    A long forecast is written frame by frame, and can be read meanwhile. After an interruption of any kind the same
    command with --resume goes on.
    """
    from ..analysis import EGNOSurrogate
    from ..trajectory.universe import forget_box, open_universe
    from .predicting import beforehand, readable, start_frames, summary_of

    if report is not None:
        from ..looking.page import require_page

        require_page(report, force)  # before the work
    output = output or Path(f"{(trajectory or (topology,))[-1].stem}_forecast.dcd")
    universe = open_universe(topology, trajectory, dt=dt)
    if no_box:
        forget_box(universe)
    frames = start_frames(from_frame, from_frames, universe.trajectory.n_frames)
    surrogate = EGNOSurrogate(
        universe,
        model,
        select,
        horizon,
        substeps=substeps,
        samples=samples,
        mean=mean,
        seed=seed,
        every=every,
        adapt=adapt,
        filename=output,
        resume=resume,
        with_input=with_input,
        force=force,
        on_unphysical=on_unphysical,
        device=device,
        precision=precision,
        verbose=True,
    )
    surrogate.when_chosen = lambda: click.echo(beforehand(surrogate), err=True)
    try:
        stop.watch(surrogate).run(frames=frames)
    except UnphysicalError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(3)
    summary = summary_of(surrogate)
    if report is not None:
        from ..looking import write_page

        said = [line for line in readable(summary).splitlines() if not line.startswith("written")]
        summary["files"].append(str(write_page(surrogate, report, said=said, force=force)))
    click.echo(as_text(summary) if as_json else readable(summary))
    if verbose and not as_json and surrogate.results.hindcast is not None:
        click.echo("\n".join(surrogate.results.hindcast.table()))
    if not summary["checks"]["ok"]:
        ended = "failed" if on_unphysical == "warn" else "ended before the first frame that fails"
        click.echo(f"the forecast {ended} the checks; what was written is kept, the exit code is 3", err=True)
        sys.exit(3)
