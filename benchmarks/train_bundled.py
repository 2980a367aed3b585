"""Train the bundled C-alpha model on the runs that :mod:`benchmarks.simulate` made, and judge it.

The model has to work on proteins that it has not seen, so whole proteins are set aside: two for validation, which
choose the state of the training, and ubiquitin, the bundled sample, for the test. What the model is worth goes into
its provenance.

    python -m benchmarks.train_bundled --runs DIR --work DIR -o MODEL.safetensors
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
import MDAnalysis as mda
import numpy as np

from egno_md.evaluation.evaluate import evaluate
from egno_md.forecast.model import new_model
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run, TrajectoryWindows, window_starts
from egno_md.molecule.atoms import select_atoms
from egno_md.specs import PRESETS, GraphSpec, TrainSpec, WindowSpec
from egno_md.training.loop import fit

from .simulate import RUNS, SAMPLE, VALIDATION

TRAINING = [name for name in RUNS if name not in (*VALIDATION, SAMPLE)]
#: Of a protein with a long run no more windows than this are taken, so that the small ones do not rule.
WINDOWS_PER_PROTEIN = 300
ABOUT = f"C-alpha atoms of proteins, trained on {len(TRAINING)} small proteins in implicit solvent at 300 K"
DATA = (
    f"OpenMM runs of {len(TRAINING)} proteins of 10 to 56 residues (Amber ff99SB-ILDN, OBC implicit solvent, 300 K, "
    "friction 1/ps), made by benchmarks.simulate"
)


def load_run(folder: Path, name: str, graph: GraphSpec, window: WindowSpec) -> Run:
    """The selected atoms of one run, in memory."""
    universe = mda.Universe(str(folder / f"{name}.pdb"), str(folder / f"{name}.dcd"))
    atoms = select_atoms(universe, graph.select)
    positions = np.stack([atoms.positions for _ in universe.trajectory]).astype(np.float32)  # (F, N, 3)
    every = round(window.stride_ps / universe.trajectory.dt)
    return Run(positions, GraphBuilder(atoms, graph), every, name=name)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--runs", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Training states.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--epochs", default=8, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the states in --work.")
@click.option("--seed", default=0, show_default=True)
@click.option("--hidden", default=64, show_default=True)
@click.option("--learning-rate", default=2e-3, show_default=True)
def main(
    runs: Path, work: Path, output: Path, epochs: int, resume: bool, seed: int, hidden: int, learning_rate: float
) -> None:
    """Train, judge on the test protein, and save."""
    # Without the residue type: with it the model learns its training proteins by heart and is worse than the standing
    # frame on others.
    graph = GraphSpec(select="ca", cutoff=10.0, node_features=("speed",), edge_features=("rbf", "hop", "chain"))
    window = WindowSpec(stride_ps=1.0, n_times=8)
    spec = PRESETS["default"][0].model_copy(update={"hidden": hidden})
    settings = TrainSpec(seed=seed, batch_size=8, learning_rate=learning_rate, max_epochs=epochs)

    def windows(names: Iterable[str]) -> TrajectoryWindows:
        loaded = [load_run(runs, name, graph, window) for name in names]
        starts = [window_starts(len(run.positions), window, run.every) for run in loaded]
        return TrajectoryWindows(loaded, window, [s[:: max(1, len(s) // WINDOWS_PER_PROTEIN)] for s in starts])

    model = fit(
        new_model(graph, window, spec, seed=seed),
        windows(TRAINING),
        windows(VALIDATION),
        settings,
        work_dir=work,
        resume=resume,
    )
    result = evaluate(model, runs / f"{SAMPLE}.pdb", runs / f"{SAMPLE}.dcd")
    errors = {name: [round(float(e), 4) for e in values] for name, values in result.errors.items()}
    model.provenance = {
        "about": ABOUT,
        "data": DATA,
        "licence": "MIT",
        "test": {"protein": "ubiquitin (1UBI), 76 residues, not in the training set", "mse_A2_per_step": errors},
        **model.provenance,
    }
    model.save(output, force=True)
    click.echo(result.table())


if __name__ == "__main__":
    main()
