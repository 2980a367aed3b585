"""`egno-md interpolate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ..errors import counted
from .output import OutputFile, written


@click.command()
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("trajectory", type=click.Path(path_type=Path), nargs=-1)
@click.option("--factor", default=8, show_default=True, help="Frames that each saved one becomes.")
@click.option("--select", help="ca, backbone, heavy or an MDAnalysis selection. Default: all atoms, hydrogens too.")
@click.option("--model", help="A model that knows both ends of a window. Default: a Gaussian process of the run.")
@click.option("-o", "--output", type=OutputFile(), help="DCD or XTC; default: <trajectory>_x<factor>.")
@click.option("--start", type=int, help="First frame of the run (counted from 0; negative: from the end).")
@click.option("--stop", type=int, help="Frame of the run to end before.")
@click.option("--mean", is_flag=True, help="The mean path; so it is without --samples.")
@click.option("--samples", type=int, help="Paths to draw instead, a file for each.")
@click.option("--seed", default=0, show_default=True, help="Of the paths that are drawn.")
@click.option("--fast-ps", type=float, help="Time constant of the fast motion in ps. Default: half a spacing.")
@click.option("--dt", type=float, help="Spacing of the trajectory's frames in ps, where its header is wrong.")
@click.option("--no-box", is_flag=True, help="Forget the periodic box of the trajectory.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def interpolate(
    topology: Path,
    trajectory: tuple[Path, ...],
    factor: int,
    select: str | None,
    model: str | None,
    output: Path | None,
    start: int | None,
    stop: int | None,
    mean: bool,
    samples: int | None,
    seed: int,
    fast_ps: float | None,
    dt: float | None,
    no_box: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Fill in frames between the saved ones of a run.

    Saved frames stay; between them goes the mean path given the frames on both sides, with bonds, rings and handedness
    of the run. It is a path to look at, smoother than the motion: with --samples paths are drawn that move as the run
    does. The exit code is 3 where frames filled in fail the physical checks; the files are kept.
    """
    from ..errors import UsageError
    from ..interpolation import Interpolated
    from ..molecule.checks import BOND_TOLERANCE
    from ..trajectory.universe import forget_box, open_universe

    if mean and samples is not None:
        raise UsageError("--mean is one path, --samples draws others: give one of them")
    last = (trajectory or (topology,))[-1]
    kind = ".xtc" if last.suffix.lower() == ".xtc" else ".dcd"
    output = output or Path(f"{last.stem}_x{factor}{kind}")
    universe = open_universe(topology, trajectory, dt=dt)
    if no_box:
        forget_box(universe)
    done = Interpolated(
        universe,
        factor,
        select,
        model=model,
        samples=samples,
        seed=seed,
        fast_ps=fast_ps,
        filename=output,
        force=force,
        verbose=True,
    ).run(start, stop)
    results, checks = done.results, done.results.checks
    summary = {
        "atoms": len(done.atoms),
        "saved_frames": int(results.saved.sum()),
        "frames": len(results.times),
        "spacing_ps": done.spacing,
        "times_ps": [float(results.times[0]), float(results.times[-1])],
        "samples": samples,
        "seed": None if samples is None else seed,
        "error_A": results.error,
        "checks": {
            "ok": checks.ok,
            "findings": list(checks.messages),
            "bond_deviation_A": checks.bond_deviation,
            "bond_limit_A": BOND_TOLERANCE,
        },
        "notes": results.notes,
        "files": [str(path) for path in results.files],
    }
    click.echo(json.dumps(summary, indent=2) if as_json else _readable(summary))
    if not checks.ok:
        click.echo("frames filled in failed the checks; the files are kept, the exit code is 3", err=True)
        sys.exit(3)


def _readable(summary: dict) -> str:
    first, last = summary["times_ps"]
    paths = "the mean path" if summary["samples"] is None else f"{counted(summary['samples'], 'path')} drawn"
    lines = [
        f"frames     {summary['frames']} of {counted(summary['atoms'], 'atom')}, {summary['saved_frames']} of them "
        f"saved ones; {summary['spacing_ps']:g} ps apart, {first:g} to {last:g} ps; {paths}"
    ]
    if (error := summary["error_A"]) is not None:
        lines.append(
            f"accuracy   {error['frames']} saved frames left out and filled in again, from frames twice as far apart: "
            f"{error['path']:.2f} A superposed (straight lines: {error['linear']:.2f} A)"
        )
        if not error["gains"]:
            lines.append(
                f"{'':<11}no nearer to the true frames than straight lines, beyond chance: what is gained is the "
                "geometry (bonds, rings, handedness)"
            )
    lines += [f"note       {note}" for note in summary["notes"]]
    lines += [f"checks     FAILED: {finding}" for finding in summary["checks"]["findings"]]
    if (checks := summary["checks"])["ok"]:
        lines.append(
            f"checks     passed: bonds (up to {checks['bond_deviation_A']:.2f} A off those of the saved frame before, "
            f"limit {checks['bond_limit_A']:g} A), clashes, chiral centres and size as in the saved frames"
        )
    return "\n".join(lines + written(summary["files"]))
