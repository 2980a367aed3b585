"""The benchmark of real runs, on runs that take no time: parts that share no frame, results, tables."""

from __future__ import annotations

import json

import MDAnalysis as mda
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_universe

from benchmarks import free_forecasts, proteins
from egno_md.graph.windows import segments


@pytest.fixture
def source(monkeypatch):
    """Three runs of ten atoms that swing, and experiments of a few steps."""
    rng = np.random.default_rng(0)
    universe = make_universe(1)
    phase = 2 * np.pi * (np.arange(400)[:, None] / rng.uniform(15, 40, 10) + rng.uniform(size=10))  # (F, N)
    runs = []
    for _ in range(3):
        swing = 0.3 * np.sin(phase + rng.uniform(0, 6))[..., None] * rng.standard_normal((10, 3))  # (F, N, 3)
        runs.append((universe.atoms.positions + swing).astype(np.float32))
    monkeypatch.setattr(proteins, "SHORT", {"batch_size": 8, "epoch_windows": 16, "max_epochs": 1, "patience": 1})
    monkeypatch.setattr(proteins, "CHAIN_WINDOWS", 3)
    monkeypatch.setattr(proteins, "TEST_WINDOWS", 40)
    return proteins.Source(universe, runs[:2], runs[2:], 0.5)


def test_parts_share_no_frame_and_all_histories_the_test(source):
    judged = []
    for option in ("base", "trajectory to trajectory"):
        graph, window, *_ = proteins.specs(proteins.Experiment("ala2", 1.0, option), tuple(source.universe.atoms.names))
        data = proteins.windows(source, graph, window)
        frames = []
        for part in (data.train, data.validation):
            starts = [np.array([s for r, s in part.index if r == k]) for k in range(2)]
            frames.append({(k, f) for k in range(2) for a, b in segments(starts[k], window, 2) for f in range(a, b)})
        assert frames[0] and frames[1] and not frames[0] & frames[1]
        judged.append(data.test[0].starts)
        assert 0 < len(judged[-1]) <= 40
    np.testing.assert_array_equal(*judged)


def test_experiment_and_tables(source, tmp_path):
    chosen = [
        proteins.Experiment("ala2", 1.0, "base", chains=1, compare=True, epochs=1),
        proteins.Experiment("ala2", 1.0, "regression prior", chains=1, epochs=1),
    ]
    results = {experiment.name: proteins.run(experiment, source, tmp_path) for experiment in chosen}
    base, prior = results.values()
    assert base["a_mse"]["AR(1)"] == prior["a_mse"]["AR(1)"] and base["prior"] is None and len(prior["prior"]) == 8
    assert set(base["chains"]) == {"projected", "bonds of the start", "as predicted"}
    assert (tmp_path / "ala2_1-ps_base_seed-0.safetensors").exists()
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    shown = CliRunner().invoke(proteins.main, ["table", str(file)], catch_exceptions=False).output
    assert f"| ala2, 1 ps, base | 1 | {np.mean(base['as_predicted']):.4g} |" in shown
    assert "| bond length, shortest (A) |" in shown and "bonds of the start" in shown


def test_free_forecasts_are_measured_and_shown(source, tmp_path, monkeypatch):
    """Both ways to split: runs that train and runs that test, and the halves of one run."""
    data = tmp_path / "data"
    (data / "ala2").mkdir(parents=True)
    (data / "one").mkdir()
    source.universe.load_new(np.concatenate([source.train[0], source.train[0][:100]]), dt=0.5)
    source.universe.atoms.write(str(data / "one/top.pdb"))
    with mda.Writer(str(data / "one/run.xtc"), 10) as writer:
        for _ in source.universe.trajectory:
            writer.write(source.universe.atoms)
    one = free_forecasts.System("one", "top.pdb", "run.xtc", "all", 0.5)
    monkeypatch.setattr(free_forecasts, "SYSTEMS", {"one": one, "none": one._replace(folder="none")})
    monkeypatch.setattr(free_forecasts, "alanine", lambda folder: source)
    for name, value in (("WINDOWS", 60), ("DRAWN", 30), ("SAMPLES", 4), ("CHAINS", 2), ("CHAIN_LENGTH", 24)):
        monkeypatch.setattr(free_forecasts, name, value)
    command = ["run", "--data", str(data), "--json", str(tmp_path / "out.json")]
    done = CliRunner().invoke(free_forecasts.main, command, catch_exceptions=False)
    assert "none is not there, skipped" in done.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == [free_forecasts.ALANINE, "one"]
    assert found["one"]["known_frames"] == [250, 250] and found[free_forecasts.ALANINE]["known_frames"] == [800]
    assert found["one"]["skill_superposed"]["static"] == [0.0] * 8 and len(found["one"]["drawn"]) == 3
    assert any("moves too little" in said for said in found[free_forecasts.ALANINE]["chains"]["static"]["findings"])
    shown = CliRunner().invoke(free_forecasts.main, ["table", str(tmp_path / "out.json")]).output
    assert "| one, lab |" in shown and "| one | static + noise |" in shown and "- analogues: " in shown
    assert CliRunner().invoke(free_forecasts.main, [*command, "nobody"]).exit_code == 2
