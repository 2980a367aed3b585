"""Data sets: the register, a toy one from outside, and N-body beside a plain loop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import called

from egno_md import GraphSpec, WindowSpec, datasets, load_model
from egno_md.datasets.nbody import DRAWN, NBodyOptions, load, recipe, simulate, starts
from egno_md.errors import DataError, ModelError, UsageError
from egno_md.forecast.chain import check_request
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run, TrajectoryWindows
from egno_md.molecule.molecule import Molecule
from egno_md.specs import TrainSpec
from egno_md.training.judge import score_windows
from egno_md.training.order import Varied

FEW = NBodyOptions(train=6, validation=3, test=3)


def one_after_the_other(charges, x, v, n_frames):
    """Particles and steps in plain loops."""
    x, v, frames = x.copy(), v.copy(), []
    for step in range(1, 100 * n_frames + 1):
        force = np.zeros((5, 3))
        for i in range(5):
            for j in range(5):
                if i != j:
                    force[i] += charges[i] * charges[j] * (x[i] - x[j]) / np.linalg.norm(x[i] - x[j]) ** 3
        v = v + 0.001 * np.clip(force, -100, 100)
        x = x + 0.001 * v
        if step % 100 == 0:
            frames.append((x, v))
    return np.array([x for x, _ in frames]), np.array([v for _, v in frames])


def energy(charges, x, v):
    """Kinetic and Coulomb energy of frames (F, 5, 3)."""
    i, j = np.triu_indices(5, 1)
    pairs = charges[i] * charges[j] / np.linalg.norm(x[:, i] - x[:, j], axis=2)
    return 0.5 * (v**2).sum(axis=(1, 2)) + pairs.sum(axis=1)


def test_nbody_moves_as_a_plain_loop_says():
    charges, x, v = (values[:3] for values in starts(FEW)["train"])
    assert set(np.unique(charges)) == {-1.0, 1.0}
    np.testing.assert_allclose(np.linalg.norm(v, axis=2), 0.5)
    positions, velocities = simulate(charges, x, v, 3)
    for k in range(3):
        expected = one_after_the_other(charges[k], x[k], v[k], 3)
        np.testing.assert_allclose(positions[k], expected[0], atol=1e-5)
        np.testing.assert_allclose(velocities[k], expected[1], atol=1e-5)


def test_nbody_keeps_its_energy_where_no_two_particles_meet():
    charges, x, v = starts(NBodyOptions(train=64, validation=1, test=1))["train"]
    positions, velocities = simulate(charges, x, v)
    i, j = np.triu_indices(5, 1)
    nearest = np.linalg.norm(positions[:, :, i] - positions[:, :, j], axis=3).min(axis=(1, 2))  # (S,)
    apart = np.flatnonzero(nearest > 0.5)
    assert len(apart) > 5
    for k in apart:
        found = energy(charges[k], positions[k].astype(float), velocities[k].astype(float))
        assert np.ptp(found) < 2e-2
    momentum = velocities.sum(axis=2)  # (S, F, 3)
    np.testing.assert_allclose(momentum[apart], np.broadcast_to(momentum[apart, :1], momentum[apart].shape), atol=1e-4)


def test_nbody_is_drawn_as_the_original_draws():
    """One generator for all parts; of each sample charges, positions, velocities, and noise that has no strength."""
    rng = np.random.RandomState(43)
    found = starts(FEW)
    for part, drawn in DRAWN.items():
        for k in range(drawn):
            charges = rng.choice(np.array([-1.0, 0.0, 1.0]), size=(5, 1), p=[0.5, 0, 0.5])
            x, v = rng.randn(3, 5), rng.randn(3, 5)
            rng.randn(49, 3, 5), rng.randn(49, 3, 5)
            if k < getattr(FEW, part):
                np.testing.assert_array_equal(found[part][0][k], charges[:, 0])
                np.testing.assert_array_equal(found[part][1][k], x.T)  # none of these is beyond the box
                np.testing.assert_allclose(found[part][2][k], (0.5 * v / np.linalg.norm(v, axis=0)).T)


def test_nbody_graphs_are_all_pairs_with_the_products_of_the_charges():
    sections = recipe(FEW)
    split = load(FEW, GraphSpec(**sections["graph"]), WindowSpec(**sections["window"]))
    assert [len(part) for part in (split.train, split.validation, split.test)] == [6, 3, 3]
    charges, x, v = (values[0] for values in starts(FEW)["train"])
    positions, velocities = simulate(charges[None], x[None], v[None], 41)
    graph = split.train[0]
    np.testing.assert_array_equal(graph.pos, positions[0, 30])
    np.testing.assert_array_equal(graph.vel, velocities[0, 30])
    np.testing.assert_allclose(graph.x[:, 0], np.linalg.norm(velocities[0, 30], axis=1), rtol=1e-6)
    np.testing.assert_array_equal(graph.y.numpy().swapaxes(0, 1), positions[0, [32, 34, 36, 38, 40]])
    row, col = graph.edge_index.numpy()
    assert len(row) == 20 and not (row == col).any() and len({*zip(row.tolist(), col.tolist(), strict=True)}) == 20
    np.testing.assert_array_equal(graph.edge_attr[:, 0], charges[row] * charges[col])
    distance2 = ((positions[0, 30][row] - positions[0, 30][col]) ** 2).sum(axis=1)
    np.testing.assert_allclose(graph.edge_attr[:, 1], distance2, rtol=1e-5)
    # Trajectory to trajectory reads the frames before.
    history = WindowSpec(**{**sections["window"], "history": 5})
    graph = load(FEW, GraphSpec(**sections["graph"]), history).train[0]
    np.testing.assert_array_equal(graph.vel_history[:, 0], velocities[0, 26])
    with pytest.raises(UsageError, match="frame 30 to 50 is not within the 49 frames.*window.span"):
        load(FEW, GraphSpec(**sections["graph"]), WindowSpec(**{**sections["window"], "span": 20}))


def test_nbody_windows_for_training_start_in_every_frame_where_asked_and_the_others_do_not_change():
    sections = recipe(FEW)
    specs = GraphSpec(**sections["graph"]), WindowSpec(**sections["window"])
    plain, more = (load(NBodyOptions(train=3, validation=2, test=2, every_start=every), *specs) for every in (0, 1))
    assert len(plain.train) == 3 and [start for _, start in plain.train.index] == [30] * 3
    assert more.train.index == [(run, start) for run in range(3) for start in range(39)]  # 10 frames follow each of 49
    same = more.train[more.train.index.index((1, 30))]
    assert same.y.equal(plain.train[1].y) and same.vel.equal(plain.train[1].vel)
    for part in ("validation", "test"):
        one, other = getattr(plain, part), getattr(more, part)
        assert one.index == other.index and all(one[k].y.equal(other[k].y) for k in range(len(one)))


def test_nbody_trains_by_a_recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[data]\nname = "nbody"\ntrain = 40\nvalidation = 10\ntest = 12\n[model]\nhidden = 8\nlayers = 2\n')
    options = ["--epochs", 2, "--set", "training.batch_size=20", "-o", tmp_path / "m.safetensors"]
    done = called(path, *options, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["errors"]) == {"model", "static", "linear"} and found["n_windows"] == 12
    model = load_model(tmp_path / "m.safetensors")
    assert model.graph.cutoff == float("inf") and model.window.targets == (2, 4, 6, 8, 10)
    assert model.provenance["data"]["dataset"] == "nbody" and model.provenance["data"]["options"]["train"] == 40
    assert model.provenance["training"]["batch_size"] == 20 and not model.spec.keep_bonds and not model.spec.residual
    assert "standing still" in done.stderr
    with pytest.raises(ModelError, match="velocities that its data set holds.*backward"):
        check_request(model, 5, 1)
    printed = called(path, "--print-recipe")
    assert "cutoff = inf" in printed.stdout and 'velocity = "stored"' in printed.stdout
    (tmp_path / "printed.toml").write_text(printed.stdout)
    assert called(tmp_path / "printed.toml", "--print-recipe").stdout == printed.stdout
    for setting, words in (
        ("data.trian=9", "'train'"),
        ("data.train=0", "data.train"),
        ("data.train=20000", "less than or equal to 10000"),
        ("seed=1", "give training.seed or data.seed"),
        ("unroll=2", "unroll = 2 chains windows"),
    ):
        wrong = called(path, "--set", setting, "-o", tmp_path / "wrong.safetensors")
        assert wrong.exit_code == 2 and words in wrong.stderr, wrong.stderr


def test_errors_of_a_data_set_in_closed_form():
    """Particles that fly straight: the linear forecast is right, the standing one errs by the squared way."""
    molecule = Molecule(elements=["C"] * 4)
    rng = np.random.default_rng(0)
    velocities = rng.normal(size=(8, 1, 4, 3))
    positions = (rng.normal(size=(8, 1, 4, 3)) + velocities * np.arange(6)[:, None, None]).astype(np.float32)
    graph = GraphSpec(select="all", cutoff=float("inf"), node_features=("speed",), edge_features=("distance",))
    window = WindowSpec(stride_ps=1.0, n_times=4, velocity="forward")
    windows = TrajectoryWindows([Run(frames, GraphBuilder(molecule, graph)) for frames in positions], window)

    class Still(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        def forward(self, h, pos, vel, *arguments, **options):
            from egno_md.nn import EGNOOutput

            return EGNOOutput(pos.expand(4, *pos.shape), vel.expand(4, *vel.shape), h.expand(4, *h.shape))

    from conftest import make_model

    model = make_model(Still(), n_times=4)
    model.graph, model.window = graph, window
    result = score_windows(model, windows, windows, device="cpu")
    expected = (velocities**2).mean() * np.arange(1, 5) ** 2
    np.testing.assert_allclose(result.errors["static"], expected, rtol=1e-4)
    np.testing.assert_allclose(result.errors["model"], expected, rtol=1e-4)
    np.testing.assert_allclose(result.errors["linear"], 0, atol=1e-9)
    assert result.n_runs == 8 and result.n_windows == 16 and result.block == 2


def test_what_a_window_lacks_is_said():
    molecule = Molecule(elements=["C"] * 4)
    graph = GraphSpec(select="all", cutoff=3.0, node_features=("speed",), edge_features=("charge_product",))
    stored = WindowSpec(stride_ps=1.0, n_times=2, velocity="stored")
    run = Run(np.zeros((5, 4, 3), np.float32), GraphBuilder(molecule, graph), name="bare")
    with pytest.raises(DataError, match="bare holds no velocities.*backward"):
        TrajectoryWindows([run], stored)[0]
    with pytest.raises(ModelError, match="'charge_product' needs charges"):
        run.builder(np.eye(4, 3), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="rbf needs a cutoff that is not infinite"):
        GraphSpec(cutoff=float("inf"))
    with pytest.raises(UsageError, match="unroll = 2"):
        Varied(TrajectoryWindows([run], stored), TrainSpec(unroll=2))


def test_unknown_data_sets_name_the_nearest_and_names_are_taken_once():
    with pytest.raises(UsageError, match="no data set 'nbdy'.*'nbody'"):
        datasets.get("nbdy")
    with pytest.raises(UsageError, match="'nbody' already"):
        datasets.register(datasets.DataSet("nbody", NBodyOptions, recipe, load, "another one"))
    assert datasets.get("nbody").options is NBodyOptions and "nbody" in datasets.names()


def test_the_data_set_of_the_documentation_trains_from_another_package(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "SPRING" in block]
    assert len(code.splitlines()) < 40
    package = tmp_path / "site"
    (package / "spring-1.dist-info").mkdir(parents=True)
    (package / "spring.py").write_text(code)
    (package / "spring-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: spring\nVersion: 1\n")
    (package / "spring-1.dist-info" / "entry_points.txt").write_text("[egno_md.datasets]\nspring = spring:SPRING\n")
    (tmp_path / "recipe.toml").write_text('[data]\nname = "spring"\nruns = 6\n[model]\nhidden = 6\nlayers = 1\n')
    command = f"import sys; sys.path.insert(0, {str(package)!r}); from egno_md.cli import main; main()"
    arguments = ["train", tmp_path / "recipe.toml", "--epochs", 1, "-o", tmp_path / "m.safetensors"]
    done = subprocess.run([sys.executable, "-c", command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = load_model(tmp_path / "m.safetensors")
    found = {key: model.provenance["data"][key] for key in ("dataset", "options")}
    assert found == {"dataset": "spring", "options": {"runs": 6}} and model.window.n_times == 4
