"""Which EGHNO? Placement of the temporal convolutions and assignment of the clusters, over seeds, on real data.

Two data sets: human motion capture (CMU subject 35, walk: the protocol of section 5.2 with targets spread over 30
frames) and the closed to open transition of adenylate kinase (C-alpha atoms, two dynamic importance sampling paths:
one trains, the halves of the other validate and test; targets 3, 7, 11, 15 frames ahead as in section 5.3.2).

    python -m benchmarks.eghno_options --data DIR --work DIR --json FILE

An interrupted call goes on: runs whose result is in FILE are skipped.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import click
import MDAnalysis as mda
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from egno_md.forecast.model import Model, new_model
from egno_md.forecast.operator import apply_operator
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.graph import Graph, collate
from egno_md.graph.windows import Run, TrajectoryWindows, split_blocks, window_starts
from egno_md.nn.operators import suited
from egno_md.specs import GraphSpec, ModelSpec, TrainSpec, WindowSpec
from egno_md.training.loop import fit

OPTIONS = {
    "egno": {"operator": "egno"},
    **{
        f"eghno {placement} {assignment}": {"operator": "eghno", "placement": placement, "assignment": assignment}
        for placement, assignment in itertools.product(("before", "end"), ("shared", "per_time"))
    },
}
#: Largest height of a joint in the training trials of both subjects, in the files' unit: a constant, where the
#: original code takes the maximum of each batch.
MOCAP_HEIGHT = 30.0


class Mocap(Dataset):
    """Windows of one part of the split; nodes [speed, height], edges [hop, squared distance] to two bones away."""

    #: Widths of the features as a GraphSpec; only these are used of it.
    graph = GraphSpec(select="all", hops=1, node_features=("speed", "charge"), edge_features=("hop",))
    window = WindowSpec(stride_ps=1.0, n_times=5, span=30, velocity="forward")

    def __init__(self, path: Path, part: str, samples: int) -> None:
        data = np.load(path)
        n_joints = data["positions"].shape[1]
        bones = np.zeros((n_joints, n_joints), int)
        bones[tuple(data["edges"].T)] = 1
        bones |= bones.T
        second = ((bones @ bones) > 0) & (bones == 0) & ~np.eye(n_joints, dtype=bool)
        hop = bones + 2 * second
        self.edges = np.stack(np.nonzero(hop))  # (2, E)
        self.hop = hop[tuple(self.edges)]
        self.local = np.stack(np.nonzero(bones))  # (2, L)
        self.items = []
        cases, starts = data[f"{part}_case"], data[f"{part}_start"]
        for case, first in zip(cases, starts[:, : samples // len(cases)], strict=True):
            trial = data["positions"][data["offsets"][case] : data["offsets"][case + 1]].astype(np.float32)
            self.items += [(trial, int(start)) for start in first]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Graph:
        trial, start = self.items[item]
        x = torch.from_numpy(trial[start])  # (N, 3)
        v = torch.from_numpy(trial[start + 1] - trial[start])  # (N, 3)
        y = torch.from_numpy(trial[start + np.asarray(self.window.targets)].swapaxes(0, 1).copy())  # (N, T, 3)
        row, col = torch.from_numpy(self.edges)
        squared = (x[row] - x[col]).square().sum(1)  # (E,)
        return Graph(
            x=torch.stack([v.norm(dim=1), x[:, 1] / MOCAP_HEIGHT], 1),  # (N, 2)
            pos=x,
            vel=v,
            edge_index=torch.from_numpy(self.edges),
            edge_attr=torch.stack([torch.from_numpy(self.hop).float(), squared], 1),  # (E, 2)
            local_index=torch.from_numpy(self.local),
            local_attr=(x[self.local[0]] - x[self.local[1]]).norm(dim=1, keepdim=True),  # (L, 1)
            y=y,
        )


def mocap(folder: Path):
    """Train, validation and test windows with the specs, for the walk."""
    path = folder / "mocap" / "cmu_mocap_walk_subject35.npz"
    parts = [Mocap(path, part, samples) for part, samples in (("train", 200), ("val", 120), ("test", 600))]
    return parts, Mocap.graph, Mocap.window, {"length_scale": 1.0}, TrainSpec(batch_size=12, learning_rate=5e-4)


def adk(folder: Path):
    """Train, validation and test windows with the specs, for the C-alpha atoms of adenylate kinase."""
    data = np.load(folder / "adk" / "adk_transitions_backbone.npz")
    ca = data["ca_index"]
    universe = mda.Universe.empty(len(ca), len(ca), atom_resindex=np.arange(len(ca)), trajectory=True)
    universe.add_TopologyAttr("names", ["CA"] * len(ca))
    universe.add_TopologyAttr("resnames", list(data["res_names"][ca]))
    universe.add_TopologyAttr("resids", data["res_ids"][ca])
    universe.atoms.positions = data["dims"][0, ca]
    graph = GraphSpec(select="ca", cutoff=10.0, node_features=("speed", "residue"), edge_features=("rbf", "hop"))
    window = WindowSpec(stride_ps=1.0, n_times=4, span=15)
    builder = GraphBuilder(universe.atoms, graph)
    first, second = (Run(data[name][:, ca], builder, name=name) for name in ("dims", "dims2"))
    validation, test = split_blocks(len(second.positions), window, fractions=(0.5, 0.5))
    parts = [
        TrajectoryWindows([run], window, [starts])
        for run, starts in (
            (first, window_starts(len(first.positions), window)),
            (second, validation),
            (second, test),
        )  # fmt: skip
    ]
    settings = {"length_scale": 10.0, "residual": True, "reduce": "mean", "start": "static"}
    return parts, graph, window, settings, TrainSpec(batch_size=4, learning_rate=1e-3)


@torch.inference_mode()
def errors(model: Model, windows: Dataset) -> dict[str, float]:
    """F-MSE and A-MSE of the model and of the standing start frame, in the square of the data's unit."""
    sums = {"model": 0.0, "static": 0.0}
    for batch in DataLoader(windows, batch_size=12, collate_fn=collate):
        y = batch.y.transpose(0, 1)  # (T, N, 3)
        share = batch.n_graphs / len(windows)
        sums["model"] += (apply_operator(model, batch).pos - y).square().mean((1, 2)) * share  # (T,)
        sums["static"] += (batch.pos - y).square().mean((1, 2)) * share  # (T,)
    return {f"{name} {kind}": round(float(value), 4) for name, e in sums.items()
            for kind, value in (("F-MSE", e[-1]), ("A-MSE", e.mean()))}  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Training states.")
@click.option("--json", "result", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--hidden", default=32, show_default=True)
@click.option("--epochs", nargs=2, default=(30, 10), show_default=True, help="Of motion capture and of the protein.")
def main(data: Path, work: Path, result: Path, seeds: int, hidden: int, epochs: tuple[int, int]) -> None:
    """Train every option with every seed and print the medians."""
    done = json.loads(result.read_text()) if result.exists() else {}
    for seed in range(seeds):
        for (name, load), n_epochs in zip({"mocap walk": mocap, "adk": adk}.items(), epochs, strict=True):
            (train, validation, test), graph, window, settings, training = load(data)
            for option, choice in OPTIONS.items():
                key = f"{name} / {option} / {seed}"
                if key in done:
                    continue
                clusters = 5 if name == "mocap walk" else 20
                spec = ModelSpec(hidden=hidden, layers=3, clusters=clusters, pooling_layers=3, **settings, **choice)
                spec = suited(spec, spec.operator)
                folder = work / key.replace(" / ", "-").replace(" ", "_")
                model = fit(
                    new_model(graph, window, spec, seed=seed),
                    train,
                    validation,
                    training.model_copy(update={"seed": seed, "max_epochs": n_epochs, "patience": n_epochs}),
                    work_dir=folder,
                    resume=(folder / "last.ckpt").exists(),
                    progress=False,
                )
                done[key] = errors(model, test)
                result.parent.mkdir(parents=True, exist_ok=True)
                result.write_text(json.dumps(done, indent=1))
                shutil.rmtree(folder)
                click.echo(f"{key}: {done[key]}", err=True)
    for name in ("mocap walk", "adk"):
        for option in OPTIONS:
            rows = [done[f"{name} / {option} / {seed}"] for seed in range(seeds)]
            values = {k: [row[k] for row in rows] for k in rows[0]}
            text = "  ".join(f"{k} {np.median(v):.3f} ({min(v):.3f} to {max(v):.3f})" for k, v in values.items())
            click.echo(f"{name:<11} {option:<22} {text}")


if __name__ == "__main__":
    main()
