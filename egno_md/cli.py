"""The command line: a thin layer over the package. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from ._version import __version__
from .errors import EGNOError, UnphysicalError, UsageError

# Nothing heavy is imported at the top: --help has to answer at once.


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


@main.command()
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("trajectory", type=click.Path(path_type=Path), nargs=-1)
@click.option("--horizon", default=8, show_default=True, help="Number of frames to predict.")
@click.option(
    "--select", help="Atoms to forecast: ca, backbone, heavy or an MDAnalysis selection. Default: the model's."
)
@click.option("--model", help="Bundled model or checkpoint file; see 'egno-md models'.")
@click.option("--from-frame", type=int, help="Start frame (counted from 0; negative: from the end). Default: the last.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="DCD or XTC; default: <trajectory>_forecast.dcd.")
@click.option("--with-input", is_flag=True, help="Begin the file with the frames up to the start.")
@click.option("--every", default=1, show_default=True, help="Trajectory frames per stride of the model.")
@click.option("--substeps", default=1, show_default=True, help="Predicted frames per stride of the model.")
@click.option("--samples", type=int, help="Futures to draw, with a model that draws; a file for each.  [default: 1]")
@click.option("--seed", default=0, show_default=True, help="Of the futures that are drawn.")
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
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--resume", is_flag=True, help="Go on with a long forecast that was cut short, or begin it.")
@click.option(
    "--on-unphysical",
    type=click.Choice(["warn", "stop"]),
    default="warn",
    show_default=True,
    help="Keep frames that fail the physical checks, or end the forecast before the first of them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def predict(
    topology: Path,
    trajectory: tuple[Path, ...],
    horizon: int,
    select: str | None,
    model: str | None,
    from_frame: int | None,
    output: Path | None,
    with_input: bool,
    every: int,
    substeps: int,
    samples: int | None,
    seed: int,
    dt: float | None,
    no_box: bool,
    device: str,
    precision: str,
    force: bool,
    resume: bool,
    on_unphysical: str,
    as_json: bool,
) -> None:
    """Forecast the frames after the end of a run (or after --from-frame) and write them.

    TOPOLOGY and TRAJECTORY are any files that MDAnalysis reads; several trajectory files are one run. The exit code is
    3 where predicted frames fail the physical checks; the files are kept.

    A long forecast is written frame by frame, and can be read meanwhile. After an interruption of any kind the same
    command with --resume goes on.
    """
    from egno_md.trajectory.universe import forget_box, open_universe

    from .analysis import EGNOSurrogate
    from .predicting import readable, stoppable, summary_of

    output = output or Path(f"{(trajectory or (topology,))[-1].stem}_forecast.dcd")
    with stoppable() as stop:
        universe = open_universe(topology, trajectory, dt=dt)
        if no_box:
            forget_box(universe)
        n_frames = universe.trajectory.n_frames
        start = n_frames - 1 if from_frame is None else from_frame
        if not -n_frames <= start < n_frames:
            raise UsageError(f"--from-frame {start}: the trajectory has frames 0 to {n_frames - 1}")
        surrogate = EGNOSurrogate(
            universe,
            model,
            select,
            horizon,
            substeps=substeps,
            samples=samples,
            seed=seed,
            every=every,
            filename=output,
            resume=resume,
            with_input=with_input,
            force=force,
            on_unphysical=on_unphysical,
            device=device,
            precision=precision,
            verbose=sys.stderr.isatty(),
        )
        try:
            stop.watch(surrogate).run(frames=[start % n_frames])
        except UnphysicalError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(3)
    summary = summary_of(surrogate)
    click.echo(json.dumps(summary, indent=2) if as_json else readable(summary))
    if not summary["checks"]["ok"]:
        ended = "ended before the first frame that fails" if on_unphysical == "stop" else "failed"
        click.echo(f"the forecast {ended} the checks; what was written is kept, the exit code is 3", err=True)
        sys.exit(3)


@main.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(model: str, as_json: bool) -> None:
    """Show what MODEL (a bundled name or a file) was made for, trained on and is worth."""
    from egno_md.models.header import read_header
    from egno_md.specs import GraphSpec, ModelSpec, WindowSpec

    from .errors import ModelError

    header = read_header(model)
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
    click.echo(json.dumps(content, indent=2) if as_json else _readable_info(content))


def _readable_info(content: dict[str, Any]) -> str:
    graph, window, spec = content["graph"], content["window"], content["model"]
    names = {"layers": "{} layers", "hidden": "width {}"}
    size = [text.format(spec["options"][name]) for name, text in names.items() if name in spec["options"]]
    lines = [
        f"name       {content['name']}",
        f"operator   {spec['operator'].upper()}, {', '.join([*size, str(content['parameters'])])} parameters",
        f"atoms      {graph['select']}",
        f"graph      {graph['cutoff']:g} A, covalent neighbours up to {graph['hops']} bonds",
        f"window     {window['n_times']} frames of {window['stride_ps']:g} ps from {window['history']} frame(s)",
    ]
    if count := content["molecules"]["geometry"]:
        lines.append(f"geometry   of {count} molecule(s), kept in every frame; of others the bonds of the start")
    elif spec["keep_bonds"]:
        lines.append("geometry   bonds are kept at their lengths at the start")
    if count := content["molecules"]["regression"]:
        lines.append(f"prior      a regression of {count} molecule(s); no others can be forecast")
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


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the models that come with egno_md."""
    from egno_md.models import DEFAULT_MODEL, bundled_models
    from egno_md.models.header import read_header

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
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        mark = "*" if row["default"] else " "
        click.echo(
            f"{mark} {row['name']:<16} {row['stride_ps']:g} ps x {row['frames']:<3} {row['select']:<10} {row['about']}"
        )


@main.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, metavar="RECIPE | TOPOLOGY TRAJECTORY...")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The model: a .safetensors file.")
@click.option("--print-recipe", is_flag=True, help="Print the complete recipe of what would be done, and stop.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any setting of the recipe; repeat.")
@click.option("--hold-out", type=click.Path(path_type=Path), multiple=True, help="Run kept whole for the test; repeat.")
@click.option("--select", help="Atoms: ca, backbone, heavy or an MDAnalysis selection.  [default: ca]")
@click.option("--stride", type=float, help="Time between two frames of the model in ps. Default: the files' spacing.")
@click.option("--every", type=int, help="Or: frames of the files per stride.")
@click.option("--dt", type=float, help="Spacing of the frames in ps, where the headers are wrong.")
@click.option("--window", "n_times", type=int, help="T, frames that are predicted at once.  [default: 8]")
@click.option("--history", type=click.Choice(["state", "trajectory"]), help="What the model reads: 1 or T frames.")
@click.option("--operator", help="egno, eghno, flow, or one that an installed package brings.  [default: egno]")
@click.option("--preset", type=click.Choice(["default", "paper"]), help="Settings to begin with.  [default: default]")
@click.option("--hidden", type=int, help="Width.")
@click.option("--layers", type=int, help="Number of layers.")
@click.option("--cutoff", type=float, help="Radius of the graph in Angstrom.  [default: 10]")
@click.option("--epochs", type=int, help="Largest number of epochs.")
@click.option("--batch-size", type=int, help="Windows per step, of all processes together.")
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--seed", type=int, help="Of the initial weights and the order of the windows.  [default: 0]")
@click.option("--init", help="Model to fine-tune; it brings its atoms, window and operator.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of the training states. Default: <output>_work.")
@click.option("--resume", is_flag=True, help="Go on from the last state in the work folder.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--devices", default=1, show_default=True, help="GPUs, or processes on a CPU, per node.")
@click.option("--nodes", default=1, show_default=True, help="Nodes of a cluster, each of which runs this command.")
@click.option("--precision", default="32-true", show_default=True, help="32-true, bf16-mixed or 16-mixed.")
@click.option("--force", is_flag=True, help="Replace the model file if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the test errors as JSON.")
# What --set does as well; kept for scripts.
@click.option("--manifest", type=click.Path(path_type=Path), hidden=True)
@click.option("--span", type=int, hidden=True)
@click.option("--sampling", type=click.Choice(["U", "L"]), hidden=True)
@click.option("--epoch-windows", type=int, hidden=True)
@click.option("--patience", type=int, hidden=True)
@click.option("--split", nargs=3, type=float, hidden=True)
@click.option("--blocks", type=int, hidden=True)
def train(
    files, output, print_recipe, settings, hold_out, work, resume, device, devices, nodes, precision, force, as_json,
    manifest, **short: Any,
) -> None:  # fmt: skip
    """Train a model by a RECIPE, a TOML file, or on runs of one system, and judge it on frames it has not seen.

    Every TRAJECTORY is a run of its own. Without --hold-out each is split by blocks of time. --print-recipe shows every
    setting; each of them can be given with --set, as in --set graph.cutoff=8 or --set noise=0.1. A state is saved after
    every epoch; after an interruption the same command with --resume goes on.
    """
    from egno_md.training import source_of, to_toml
    from egno_md.training.recipe import complete

    from .errors import OutputError

    recipe = _recipe(files, manifest, hold_out, settings, short)
    if print_recipe:
        click.echo(to_toml(complete(recipe, source_of(recipe))), nl=False)
        return
    if output is None:
        raise UsageError("give the file of the new model: -o model.safetensors")
    if output.exists() and not force:
        raise OutputError(f"{output} exists; pass --force to replace it, or choose another name")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: its folder does not exist")
    from egno_md.training.process import process_rank
    from egno_md.training.run import train_recipe

    rank = process_rank(devices, nodes)
    if rank:
        warnings.simplefilter("ignore")  # of several processes the first alone speaks
    work = work or output.with_name(f"{output.stem}_work")
    options = {"device": device, "devices": devices, "nodes": nodes, "precision": precision}
    try:
        model, result = train_recipe(recipe, name=output.stem, work_dir=work, resume=resume, **options)
    except KeyboardInterrupt:
        if rank:
            sys.exit(0)  # the first process says it
        again = (work / "last.ckpt").exists()
        click.echo(
            f"interrupted; the last whole epoch is saved in {work}: go on with the same command and --resume"
            if again
            else "interrupted before the first epoch was finished: nothing to resume",
            err=True,
        )
        sys.exit(130)
    if result is None:
        return  # of several processes the first alone writes and prints
    model.save(output, force=force)
    if as_json:
        click.echo(json.dumps({**result.as_dict(), "files": [str(output)]}, indent=2))
    else:
        click.echo(f"{result.table()}\nwritten    {output}")


def _recipe(files, manifest, hold_out, settings, short: dict[str, Any]):
    """What the arguments of `train` ask for."""
    import dataclasses

    from egno_md.specs import Recipe
    from egno_md.training.data import system_of_files
    from egno_md.training.recipe import overridden, read_recipe, shortly

    files = [*files, *([manifest] if manifest is not None else [])]
    if wrong := [item for item in settings if "=" not in item]:
        raise UsageError(f"--set {wrong[0]}: expected NAME=VALUE, for example --set noise=0.1")
    recipes = [file for file in files if file.suffix.lower() == ".toml"]
    if not files or (recipes and len(files) > 1):
        raise UsageError("give either a recipe (a .toml file) or TOPOLOGY and TRAJECTORY files")
    if recipes or manifest is not None:
        if hold_out:
            raise UsageError("with a recipe, runs are held out there: hold_out = [...] in [[data.systems]]")
        recipe = read_recipe(files[0])
    else:
        system = dataclasses.asdict(system_of_files(files[0], files[1:], hold_out))
        recipe = Recipe(data={"systems": [system]})
    recipe = shortly(recipe, **short)
    return overridden(recipe, dict(item.split("=", 1) for item in settings))


@main.command()
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("trajectory", type=click.Path(path_type=Path), nargs=-1)
@click.option("--model", help="Bundled model or checkpoint file; see 'egno-md models'.")
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
    from egno_md.evaluation.evaluate import evaluate

    result = evaluate(model, topology, *trajectory, **options)
    files = []
    if report is not None:
        from egno_md.evaluation.report import write_report

        files = write_report(result, report, force=force)
    if as_json:
        click.echo(json.dumps({**result.as_dict(), "files": [str(path) for path in files]}, indent=2))
    else:
        click.echo("\n".join([result.table(), *(f"written    {path}" for path in files)]))


@main.command()
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("trajectory", type=click.Path(path_type=Path), nargs=-1)
@click.option("--select", default="ca", show_default=True, help="Atoms to forecast.")
@click.option("--window", "n_times", default=8, show_default=True, help="Frames of a window.")
@click.option("--dt", type=float, help="Spacing of the frames in ps, where the headers are wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def suggest(
    topology: Path, trajectory: tuple[Path, ...], select: str, n_times: int, dt: float | None, as_json: bool
) -> None:
    """Say which stride and horizon of a run are worth forecasting, and why."""
    from egno_md.evaluation.suggest import suggest

    found = suggest(topology, *trajectory, select=select, n_times=n_times, dt=dt)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.table())


@main.command()
@click.argument("topology", type=click.Path(path_type=Path))
@click.option("--forcefield", "forcefields", multiple=True, help="OpenMM force field file; repeat for several.")
@click.option("--system", type=click.Path(path_type=Path), help="Serialised OpenMM System, instead of a force field.")
@click.option("--state", type=click.Path(path_type=Path), help="Serialised OpenMM State to start from.")
@click.option("--jumps", default=10, show_default=True, help="Number of jumps.")
@click.option("--md-steps", type=int, help="Steps of plain MD before each jump. Default: two strides of the model.")
@click.option("--model", help="Bundled model or checkpoint file; see 'egno-md models'.")
@click.option("--select", help="Atoms to forecast, within the model's selection.")
@click.option("--lead-ps", default=2.0, show_default=True, help="Time in which the atoms are led along a forecast.")
@click.option("--relax-ps", default=1.0, show_default=True, help="Time to relax after a jump.")
@click.option("--strength", default=20000.0, show_default=True, help="Strength of the restraints in kJ/mol/nm^2.")
@click.option("--hydrogens", is_flag=True, help="Add missing hydrogens.")
@click.option("--no-box", is_flag=True, help="Forget the periodic box of TOPOLOGY, which is often that of a crystal.")
@click.option("--temperature", default=300.0, show_default=True, help="In K.")
@click.option("--friction", default=1.0, show_default=True, help="Of the Langevin thermostat in 1/ps.")
@click.option("--step-fs", default=2.0, show_default=True, help="Time step in fs.")
@click.option("--equilibrate-ps", default=20.0, show_default=True, help="Plain MD first, when there is no --state.")
@click.option("--platform", help="OpenMM platform, such as CPU or CUDA. Default: OpenMM's choice.")
@click.option("--seed", default=0, show_default=True, help="Of the thermostat; 0 is another one each time.")
@click.option("--report", default=500, show_default=True, help="Steps between two frames of the output.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="DCD or XTC. Default: <topology>_extended.dcd here."
)
@click.option("--device", default="auto", show_default=True, help="Of the network: auto, cpu or cuda.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def extend(
    topology: Path,
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
    no_box: bool,
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

    TOPOLOGY is a PDB or mmCIF file of all atoms. With force fields it is enough:

    \b
        egno-md extend protein.pdb --forcefield amber14-all.xml --forcefield implicit/obc2.xml

    Beside the trajectory (unbiased MD alone) go a PDB, <output>_jumps.csv with a row for each jump, and
    <output>_state.xml to go on from.
    """
    from egno_md.forecast.model import load_model

    from .propagator import HybridPropagator, RunFiles, load_simulation

    if report < 1:
        raise UsageError(f"--report must be at least 1, found {report}")
    output = output or Path(f"{topology.stem}_extended.dcd")
    files = RunFiles(output, inputs=[path for path in (topology, system, state) if path is not None], force=force)
    loaded = load_model(model)
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
        equilibrate_ps=equilibrate_ps,
        platform=platform,
        seed=seed,
    )
    hybrid = HybridPropagator(
        simulation, loaded, select=select, lead_ps=lead_ps, relax_ps=relax_ps, strength=strength, device=device
    )

    def progress(jump) -> None:
        outcome = "accepted" if jump.accepted else f"rolled back, {jump.reason}"
        click.echo(
            f"jump {jump.jump + 1}/{jumps}: {outcome}; {jump.represented_ps:g} ps by the model's stride", err=True
        )

    shown = progress if sys.stderr.isatty() else None
    with files.reporting(simulation, report):
        summary = hybrid.run(jumps, md_steps, log=files.log, force=force, progress=shown).as_dict()
    summary["files"] = [str(path) for path in files.all]
    if as_json:
        click.echo(json.dumps(summary, indent=2))
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
