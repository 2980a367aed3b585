"""`egno-md extend`."""

from __future__ import annotations

import math
import secrets
import shlex
from pathlib import Path

import click

from ..errors import UsageError, counted
from .completion import models_and_files
from .output import OutputFile, as_text
from .stopping import Stop


@click.command()
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="")
@click.option(
    "--forcefield",
    "forcefields",
    multiple=True,
    help="OpenMM force field file; repeat for several.  [default: amber14-all.xml and implicit/obc2.xml]",
)
@click.option("--system", type=click.Path(path_type=Path), help="Serialised OpenMM System, instead of a force field.")
@click.option("--state", type=click.Path(path_type=Path), help="Serialised OpenMM State to start from.")
@click.option("--jumps", default=10, show_default=True, help="Number of jumps.")
@click.option("--md-steps", type=int, help="Steps of plain MD before each jump. Default: two strides of the model.")
@click.option(
    "--model", shell_complete=models_and_files, help="Bundled model or checkpoint file; see 'egno-md models'."
)
@click.option("--select", help="Atoms to forecast, within the model's selection.")
@click.option("--lead-ps", default=2.0, show_default=True, help="Time in which the atoms are led along a forecast.")
@click.option("--relax-ps", default=1.0, show_default=True, help="Time to relax after a jump.")
@click.option("--strength", default=20000.0, show_default=True, help="Strength of the restraints in kJ/mol/nm^2.")
@click.option("--hydrogens", is_flag=True, help="Add missing hydrogens even where the force field can do without.")
@click.option(
    "--no-box/--keep-box",
    default=None,
    help="Forget or keep the periodic box of TOPOLOGY. Default: keep it where it is full of solvent.",
)
@click.option("--temperature", default=300.0, show_default=True, help="In K.")
@click.option("--friction", default=1.0, show_default=True, help="Of the Langevin thermostat in 1/ps.")
@click.option("--step-fs", default=2.0, show_default=True, help="Time step in fs; at most 3 without --system.")
@click.option("--equilibrate-ps", default=20.0, show_default=True, help="Plain MD first, when there is no --state.")
@click.option("--platform", help="OpenMM platform, such as CPU or CUDA. Default: OpenMM's choice.")
@click.option(
    "--seed", default=0, show_default=True, help="Of the thermostat and of drawn futures; 0: another one each time."
)
@click.option("--report", default=500, show_default=True, help="Steps between two frames of the output.")
@click.option("-o", "--output", type=OutputFile(), help="DCD or XTC. Default: <topology>_extended.dcd here.")
@click.option("--device", default="auto", show_default=True, help="Of the network: auto, cpu or cuda.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_obj
def extend(
    stop: Stop,
    topology: Path,
    runs: tuple[Path, ...],
    forcefields: tuple[str, ...],
    system: Path | None,
    state: Path | None,
    jumps: int,
    md_steps: int | None,
    model: str | None,
    select: str | None,
    lead_ps: float,
    relax_ps: float,
    strength: float,
    hydrogens: bool,
    no_box: bool | None,
    temperature: float,
    friction: float,
    step_fs: float,
    equilibrate_ps: float,
    platform: str | None,
    seed: int,
    report: int,
    output: Path | None,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Run all-atom MD with OpenMM that forecasts lead ahead, jump by jump.

    A jump stands for the time of a forecast, but it does not sample it: plain MD of equal cost sampled better wherever
    it was measured.

    TOPOLOGY is a PDB or mmCIF file; it is enough. Hydrogens that are missing are added, the box of a crystal and its
    water are left out, the force field is Amber's with implicit solvent if none is named; each is said in a line:

    \b
        egno-md extend protein.pdb

    Beside the trajectory (unbiased MD alone) go a PDB, <output>_jumps.csv with a row for each jump, and
    <output>_state.xml to go on from.
    """
    if runs:
        command = shlex.join(["egno-md", "predict", str(topology), *map(str, runs)])
        raise UsageError(
            f"extend simulates the structure in {topology} and reads no run, found {runs[0]}: what follows a run is "
            f"forecast by {command}"
        )
    for name, number in (("--report", report), ("--jumps", jumps)):
        if not 1 <= number < 2**31:
            raise UsageError(f"{name} must be at least 1 and below 2^31, found {number}")
    from ..forecast.model import load_model
    from ..progress import Progress
    from ..propagator import HybridPropagator, RunFiles, load_simulation
    from ..propagator.common import check_numbers
    from ..propagator.files import say_stage, settle

    prepared: list[str] = []

    def said(line: str) -> None:
        prepared.append(line)
        if not as_json:  # before the work, which takes minutes
            click.echo(f"prepared   {line}", err=True)

    check_numbers(
        temperature=temperature,
        friction=friction,
        step_fs=step_fs,
        equilibrate_ps=equilibrate_ps,
        lead_ps=lead_ps,
        relax_ps=relax_ps,
        strength=strength,
    )
    output = output or Path(f"{topology.stem}_extended.dcd")
    files = RunFiles(output, inputs=[path for path in (topology, system, state) if path is not None], force=force)
    loaded = load_model(model)
    stride = loaded.window.stride_ps
    if md_steps is not None and md_steps * step_fs / 1000 < stride:  # before the work
        raise UsageError(
            f"--md-steps {md_steps} are {md_steps * step_fs / 1000:g} ps, and the model has to see {stride:g} ps of "
            f"unbiased MD before each jump: at least {math.ceil(stride * 1000 / step_fs - 1e-9)}"
        )
    simulation = load_simulation(
        topology,
        forcefields=forcefields,
        system=system,
        state=state,
        hydrogens=hydrogens,
        no_box=no_box,
        temperature=temperature,
        friction=friction,
        step_fs=step_fs,
        equilibrate_ps=None,
        platform=platform,
        seed=seed,
        said=said,
    )
    # Before the minutes of equilibration: it refuses selections and models that do not fit.
    hybrid = HybridPropagator(
        simulation,
        loaded,
        select=select,
        lead_ps=lead_ps,
        relax_ps=relax_ps,
        strength=strength,
        seed=seed or secrets.randbits(31),
        device=device,
    )
    if state is None:
        settle(simulation, temperature, equilibrate_ps, seed=seed, progress=True)

    stop.said = lambda: f"stopped by {stop.name}; {files.left or 'nothing was written yet'}"
    steps = hybrid.default_md_steps if md_steps is None else md_steps
    ps = step_fs / 1000
    say_stage(
        f"{counted(jumps, 'jump')}, {steps * ps:g} ps of plain MD before each, {hybrid.jumper.steps * ps:g} ps of lead "
        f"and relaxation in it; a frame in {files.trajectory} every {report * ps:g} ps of plain MD"
    )
    with (
        files.reporting(simulation, report),
        Progress("jumps", "steps", jumps * (steps + hybrid.jumper.steps)) as bar,
    ):
        hybrid.dynamics.on_steps = bar.update

        def jumped(jump) -> None:
            outcome = f"rolled back, {jump.reason}"
            if jump.accepted:
                outcome = f"accepted, stands for {jump.frames * stride:g} ps by the model's stride"
            bar.say(f"jump {jump.jump + 1}/{jumps}: {outcome}; {jump.represented_ps:g} ps of MD and jumps so far")

        summary = hybrid.run(jumps, steps, log=files.log, force=force, progress=jumped).as_dict()
    summary["prepared"] = prepared
    summary["files"] = [str(path) for path in files.all]
    if as_json:
        click.echo(as_text(summary))
        return
    reasons = "".join(f"; {count} rolled back: {reason}" for reason, count in summary["rolled_back"].items())
    lines = [
        f"jumps      {summary['accepted']} of {summary['jumps']} accepted{reasons}",
        f"time       {summary['md_ps']:g} ps of plain MD, jumps that stand for {summary['jump_ps']:g} ps by the "
        f"model's stride; integrated {summary['integrated_ps']:g} ps",
    ]
    if summary["accepted"]:
        lines += [
            f"cost       a jump took {summary['seconds_per_jump']:.2g} s, {summary['cost_ratio']:.2g} times plain MD "
            "of the time it stands for",
            f"worth      {summary['cost_ratio_note']}",
            f"kinetic    {summary['temperature_md']:.1f} K in MD, {summary['temperature_relaxed']:.1f} K after jumps",
        ]
    click.echo("\n".join(lines + [f"written    {path}" for path in summary["files"]]))
