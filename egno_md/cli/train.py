"""`egno-md train`."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .completion import models_and_files
from .output import OutputFile, as_text
from .stopping import Stop


@click.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, metavar="RECIPE | TOPOLOGY TRAJECTORY...")
@click.option("-o", "--output", type=OutputFile(), help="The model: a .safetensors file.")
@click.option("--print-recipe", is_flag=True, help="Print the complete recipe of what would be done, and stop.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any setting of the recipe; repeat.")
@click.option("--hold-out", type=click.Path(path_type=Path), multiple=True, help="Run kept whole for the test; repeat.")
@click.option("--select", help="Atoms: ca, backbone, heavy or an MDAnalysis selection.  [default: ca]")
@click.option("--stride", type=float, help="Time between two frames of the model in ps. Default: the files' spacing.")
@click.option("--every", type=int, help="Or: frames of the files per stride.")
@click.option("--dt", type=float, help="Spacing of the frames in ps, where the headers are wrong.")
@click.option("--window", "n_times", type=int, help="T, frames that are predicted at once.  [default: 8]")
@click.option("--history", type=click.Choice(["state", "trajectory"]), help="What the model reads: 1 or T frames.")
@click.option("--operator", help="egno, eghno, flow, another of docs/systems.md, or a package's.  [default: egno]")
@click.option("--preset", type=click.Choice(["default", "paper"]), help="Settings to begin with.  [default: default]")
@click.option("--hidden", type=int, help="Width.")
@click.option("--layers", type=int, help="Number of layers.")
@click.option("--cutoff", type=float, help="Radius of the graph in Angstrom.  [default: 10]")
@click.option("--epochs", type=int, help="Largest number of epochs.")
@click.option("--minutes", type=float, help="Be done after so long, with the best model so far.")
@click.option("--batch-size", type=int, help="Windows per step, of all processes together.")
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--seed", type=int, help="Of the initial weights and the order of the windows.  [default: 0]")
@click.option(
    "--init", shell_complete=models_and_files, help="Model to fine-tune; it brings its atoms, window and operator."
)
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
@click.pass_obj
def train(
    stop: Stop, files, output, print_recipe, settings, hold_out, minutes, work, resume, device, devices, nodes,
    precision, force, as_json, manifest, **short: Any,
) -> None:  # fmt: skip
    """Train a model by a RECIPE, a TOML file, or on runs of one system, and judge it on frames it has not seen.

    Every TRAJECTORY is a run of its own. Without --hold-out each is split by blocks of time. --print-recipe shows every
    setting; each of them can be given with --set, as in --set graph.cutoff=8 or --set noise=0.1. A state is saved after
    every epoch; after an interruption the same command with --resume goes on.
    """
    if minutes is not None and not minutes > 0:
        raise UsageError(f"--minutes must be more than 0, found {minutes:g}")
    if resume and (not files or files[0].suffix.lower() == ".safetensors") and manifest is None:
        raise UsageError(
            "--resume goes on with a training: type the command that began it again, all of it, and --resume"
        )
    began = time.monotonic()  # what is imported is slow to load
    from ..errors import OutputError
    from ..training import source_of, to_toml
    from ..training.recipe import complete

    recipe = _recipe(files, manifest, hold_out, settings, short)
    if print_recipe:
        click.echo(to_toml(complete(recipe, source_of(recipe))), nl=False)
        return
    if output is None:
        raise UsageError("give the file of the new model: -o model.safetensors")
    work = work or output.with_name(f"{output.stem}_work")
    there = os.path.exists(output) and not force
    if there and not (resume and (work / "last.ckpt").exists()):
        raise OutputError(f"{output} exists; pass --force to replace it, or choose another name")
    if not os.path.isdir(output.parent):
        raise OutputError(f"{output}: its folder does not exist")
    from ..training.process import process_rank
    from ..training.run import train_recipe

    rank = process_rank(devices, nodes)
    if rank:
        warnings.simplefilter("ignore")  # of several processes the first alone speaks
    options = {"device": device, "devices": devices, "nodes": nodes, "precision": precision}
    if minutes is not None:
        options |= {"minutes": minutes - (time.monotonic() - began) / 60, "enough": True}
    if there:
        options["written"] = output
    try:
        model, result = train_recipe(recipe, name=output.stem, work_dir=work, resume=resume, **options)
    except KeyboardInterrupt:
        if rank:
            sys.exit(0)  # the first process says it
        again = (work / "last.ckpt").exists()
        stop.said = lambda: (
            f"interrupted; the last whole epoch is saved in {work}: go on with the same command and --resume"
            if again
            else "interrupted before the first epoch was finished: nothing to resume, the same command begins again"
        )
        raise
    if there and not rank:
        click.echo(
            as_text({"model": model.name, "complete": True, "files": [str(output)]})
            if as_json
            else f"complete   this training has come to its end and {output} is its model: nothing is left to do"
        )
    if result is None:
        return  # of several processes the first alone writes and prints
    model.save(output, force=force)
    if as_json:
        click.echo(as_text({**result.as_dict(), "files": [str(output)]}))
    else:
        click.echo(f"{result.table()}\nwritten    {output}")


def _recipe(files, manifest, hold_out, settings, short: dict[str, Any]):
    """What the arguments of `train` ask for."""
    import dataclasses

    from ..specs import Recipe
    from ..training.data import system_of_files
    from ..training.recipe import overridden, read_recipe, shortly

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
