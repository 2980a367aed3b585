"""`egno-md reproduce`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from ..errors import UsageError, nearest
from .completion import EXPERIMENTS, SYSTEMS, one_of
from .output import OutputFile

#: What is no experiment, but is made of their runs.
OTHERS = ("zero-shot", "page")


@click.command()
@click.argument("experiment", metavar="EXPERIMENT", shell_complete=one_of((*EXPERIMENTS, *OTHERS)))
@click.option(
    "--system",
    "systems",
    multiple=True,
    metavar="NAME",
    shell_complete=one_of(SYSTEMS),
    help="What is trained; repeat.  [default: egno]",
)
@click.option(
    "--case", "cases", multiple=True, metavar="NAME", help="Part of it (md17: a molecule); repeat. Default: all."
)
@click.option("--preset", type=click.Choice(["paper", "best"]), default="paper", show_default=True, help="Settings.")
@click.option("--seeds", type=int, default=1, show_default=True, help="Trainings of each, with the seeds 0, 1 ...")
@click.option("--budget", type=float, metavar="MINUTES", help="Stop after a whole state when this time is over.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any setting of the recipe; repeat.")
@click.option("--data", type=click.Path(path_type=Path), default="data", show_default=True, help="Folder of all data.")
@click.option(
    "--work", type=click.Path(path_type=Path), default="reproduced", show_default=True, help="Folder of all runs."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("-o", "--output", type=OutputFile(), help="page, zero-shot: the file to write.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def reproduce(experiment, systems, cases, preset, seeds, budget, settings, data, work, device, output, as_json) -> None:
    """Run an EXPERIMENT of the EGNO paper: nbody, mocap-walk, mocap-run, md17 or adk.

    Every run ends in one JSON file below --work with its settings, time, every validation value and the test errors. A
    run that was interrupted, or whose --budget was over, goes on with the same command and ends with the same digits.

    Two more things are made of finished runs: `zero-shot` reads the models of nbody at times that they never saw, and
    `page` writes tables and learning curves beside the published numbers.
    """
    from ..reproduce import jobs

    if wrong := [item for item in settings if "=" not in item]:
        raise UsageError(f"--set {wrong[0]}: expected NAME=VALUE, for example --set training.seed=3")
    if experiment not in (known := (*EXPERIMENTS, *OTHERS)):
        raise UsageError(
            f"there is no experiment {experiment!r}{nearest(experiment, known)}: known are {', '.join(known)}"
        )
    if experiment in OTHERS:
        _made_of_runs(experiment, work, output, as_json)
        return
    if output is not None:
        raise UsageError("-o is for page and zero-shot; runs are written into --work")
    if budget is not None and budget <= 0:
        raise UsageError(f"--budget must be more than 0 minutes, found {budget:g}")
    stop = click.get_current_context().obj
    stop.said = lambda: f"stopped by {stop.name}; the same command goes on from the last state in {work}"
    asked = jobs(
        experiment,
        systems or ("egno",),
        preset=preset,
        seeds=seeds,
        cases=cases,
        settings=dict(item.split("=", 1) for item in settings),
    )
    found = _run_all(asked, work, data, budget, device)
    if as_json:
        click.echo(json.dumps({"runs": found, "finished": len(found) == len(asked)}, indent=2))
        return
    for result in found:
        click.echo(_line(result))


def _line(result: dict) -> str:
    """What a finished run has come to."""
    what = " ".join(result[key] for key in ("experiment", "case", "system", "preset") if result[key])
    found = "no epoch was finished"
    if (test := result["test"]) is not None:
        found = f"test F-MSE {test['F-MSE']:.4g}, A-MSE {test['A-MSE']:.4g}"
    time = f"epoch {result['best_epoch']} of {result['epochs']}, {result['seconds'] / 60:.1f} min"
    return f"{what}, seed {result['seed']}: {found} ({time}){'; diverged' if result['diverged'] else ''}"


def _run_all(asked, work: Path, data: Path, budget: float | None, device: str) -> list[dict]:
    """Results of the runs that were finished before the time was over; whatever it is, one state is reached."""
    from ..errors import StoppedError
    from ..reproduce import is_finished, run_job

    began, found, worked = time.monotonic(), [], False
    for number, job in enumerate(asked):
        left = None if budget is None else max(budget - (time.monotonic() - began) / 60, 0.0)
        try:
            if left == 0 and worked:
                raise StoppedError(f"the {budget:g} minutes are over before {job.label} could begin")
            click.echo(f"run {number + 1}/{len(asked)}  {job.experiment}/{job.label}", err=True)
            worked |= not is_finished(job, work)
            found.append(run_job(job, work=work, data=data, minutes=left, device=device))
        except StoppedError as stopped:
            click.echo(f"stopped    {stopped}; {len(found)} of {len(asked)} runs are finished", err=True)
            break
    return found


def _made_of_runs(what: str, work: Path, output: Path | None, as_json: bool) -> None:
    from ..reproduce import write_page, zero_shot

    if what == "page":
        written = write_page(work, output or work / "paper.md")
    else:
        written = zero_shot(work, output or work / "zero_shot.json")
    if as_json:
        click.echo(json.dumps([str(path) for path in written]))
    else:
        click.echo("\n".join(f"written    {path}" for path in written))
