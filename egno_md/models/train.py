"""Train the bundled C-alpha model on the runs that :mod:`egno_md.models.simulate` made, and judge it.

Windows of every training protein: the first 80 % of its run trains, the last 20 % validates. The test protein,
ubiquitin, is seen in neither. What the model is worth goes into its provenance and its card.

    python -m egno_md.models.train --runs DIR --work DIR -o MODEL.safetensors
"""

from __future__ import annotations

from pathlib import Path

import click
import MDAnalysis as mda
import numpy as np
import torch
from torch.utils.data import DataLoader

from ..checkpoint import Model, new_model
from ..config import GraphSpec, ModelSpec, TrainSpec, WindowSpec
from ..forecast import apply_operator
from ..graph import GraphBuilder, collate, select_atoms
from ..metrics import linear, mse_per_step, static
from ..training import fit
from ..windows import Run, TrajectoryWindows, frames_back, split_blocks
from .simulate import LENGTHS_PS, SAMPLE

ABOUT = "C-alpha atoms of proteins, trained on five small proteins in implicit solvent at 300 K"
DATA = (
    "OpenMM runs of 5 proteins of 10 to 43 residues (Amber ff99SB-ILDN, OBC implicit solvent, 300 K, friction 1/ps), "
    "made by egno_md.models.simulate"
)


def load_run(folder: Path, name: str, graph: GraphSpec, window: WindowSpec) -> Run:
    """The selected atoms of one run, in memory."""
    universe = mda.Universe(str(folder / f"{name}.pdb"), str(folder / f"{name}.dcd"))
    atoms = select_atoms(universe, graph.select)
    positions = np.stack([atoms.positions for _ in universe.trajectory]).astype(np.float32)  # (F, N, 3)
    every = round(window.stride_ps / universe.trajectory.dt)
    return Run(positions, GraphBuilder(atoms, graph), every, name=name)


@torch.inference_mode()
def judge(model: Model, windows: TrajectoryWindows) -> dict[str, list[float]]:
    """Mean squared errors per step in Angstrom squared: the model's, and those of the static and the linear path."""
    predicted = []
    for batch in DataLoader(windows, batch_size=16, collate_fn=collate):
        pos = apply_operator(model, batch).pos  # (T, B * N, 3)
        predicted.append(pos.numpy().reshape(len(pos), batch.num_graphs, -1, 3).swapaxes(0, 1))  # (B, T, N, 3)
    frames = [windows.runs[r].positions for r, _ in windows.index]
    every = [windows.runs[r].every for r, _ in windows.index]
    starts = [s for _, s in windows.index]
    ahead = np.asarray(model.window.targets)
    true = np.stack([x[s + ahead * e] for x, s, e in zip(frames, starts, every, strict=True)])  # (S, T, N, 3)
    start = np.stack([x[s] for x, s in zip(frames, starts, strict=True)])  # (S, N, 3)
    before = np.stack([x[s - e] for x, s, e in zip(frames, starts, every, strict=True)])  # (S, N, 3)
    candidates = {
        "model": np.concatenate(predicted),
        "static": static(start, model.window),
        "linear": linear(start, start - before, model.window),
    }
    return {name: [round(float(e), 4) for e in mse_per_step(paths, true)] for name, paths in candidates.items()}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--runs", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Training states.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--epochs", default=12, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the states in --work.")
@click.option("--seed", default=0, show_default=True)
@click.option("--hidden", default=64, show_default=True)
@click.option("--learning-rate", default=2e-3, show_default=True)
def main(
    runs: Path, work: Path, output: Path, epochs: int, resume: bool, seed: int, hidden: int, learning_rate: float
) -> None:
    """Train, judge on the test protein, and save."""
    graph = GraphSpec(
        select="ca", cutoff=10.0, node_features=("speed", "residue"), edge_features=("rbf", "hop", "chain")
    )
    window = WindowSpec(stride_ps=1.0, n_times=8)
    spec = ModelSpec(hidden=hidden, layers=4, residual=True, reduce="mean", length_scale=10.0, start="static")
    settings = TrainSpec(seed=seed, batch_size=8, learning_rate=learning_rate, max_epochs=epochs)

    training_runs = [load_run(runs, name, graph, window) for name in LENGTHS_PS if name != SAMPLE]
    parts = [split_blocks(len(run.positions), window, every=run.every, fractions=(0.8, 0.2)) for run in training_runs]
    model = fit(
        new_model(graph, window, spec, seed=seed),
        TrajectoryWindows(training_runs, window, [part[0] for part in parts]),
        TrajectoryWindows(training_runs, window, [part[1][::5] for part in parts]),
        settings,
        work_dir=work,
        resume=resume,
    )
    test_run = load_run(runs, SAMPLE, graph, window)
    starts = range(frames_back(window) * test_run.every, len(test_run.positions) - window.span * test_run.every)
    errors = judge(model, TrajectoryWindows([test_run], window, [starts]))
    model.provenance = {
        "about": ABOUT,
        "data": DATA,
        "licence": "MIT",
        "test": {"protein": "ubiquitin (1UBI), 76 residues, not in the training set", "mse_A2_per_step": errors},
        **model.provenance,
    }
    model.save(output, force=True)
    for name, values in errors.items():
        click.echo(f"{name:<8} " + " ".join(f"{value:8.4f}" for value in values))


if __name__ == "__main__":
    main()
