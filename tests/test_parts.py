"""Trainings in parts, looks at the validation windows now and then, and batches of graphs that are all alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_model, make_universe
from test_training import harmonic_windows

from egno_md import GraphSpec, WindowSpec
from egno_md.datasets.nbody import NBodyOptions, load, recipe
from egno_md.errors import StoppedError
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.graph import collate
from egno_md.graph.windows import Run, TrajectoryWindows
from egno_md.specs import TrainSpec
from egno_md.training.alike import Alike
from egno_md.training.loop import fit
from egno_md.training.states import LAST, callback_state, read_state


def history(folder):
    return callback_state(read_state(folder / LAST), "Epochs")["history"]


def same(a, b):
    """Whether two graphs have the same fields, bit for bit."""
    for name, x, y in zip(a._fields, a, b, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name


def test_batches_of_graphs_that_are_alike_are_those_that_are_put_together():
    options = NBodyOptions(train=9, validation=1, test=1)
    settings = recipe(options)
    windows = load(options, GraphSpec(**settings["graph"]), WindowSpec(**settings["window"])).train
    alike = Alike(windows)
    assert alike.rows
    for items in ([3, 0, 7], [1, 2, 8], [5]):
        same(alike.__getitems__(items), collate([windows[item] for item in items]))


def test_graphs_whose_edges_differ_are_put_together_as_before():
    u = make_universe(20, velocity=2.0)
    model = make_model(cutoff=3.0)
    windows = TrajectoryWindows([Run(np.array([ts.positions.copy() for ts in u.trajectory]),
                                     GraphBuilder(u.atoms, model.graph))], model.window)  # fmt: skip
    assert windows[0].edge_index.shape != windows[9].edge_index.shape
    alike = Alike(windows)
    assert not alike.rows
    same(alike.__getitems__([0, 9]), collate([windows[0], windows[9]]))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_parts_end_with_the_digits_of_one_run(tmp_path, ema_decay):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    spec = TrainSpec(batch_size=8, max_epochs=7, validate_every=2, ema_decay=ema_decay)
    whole = fit(model, train, validation, spec, work_dir=tmp_path / "whole", progress=False)
    parts, again = 0, False
    while True:
        try:
            last = fit(
                model, train, validation, spec, work_dir=tmp_path / "parts", progress=False, resume=again, minutes=1e-9
            )
            break
        except StoppedError as stopped:
            assert f"after epoch {2 * (parts + 1)} of at most 7" in str(stopped)
            parts, again = parts + 1, True
    assert parts == 3
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, last.network.state_dict()[name]), name
    one, other = history(tmp_path / "whole"), history(tmp_path / "parts")
    assert [entry["epoch"] for entry in one] == [2, 4, 6]
    for a, b in zip(one, other, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    assert np.all(np.diff([0, *(entry["seconds"] for entry in other)]) > 0)
    best = min(entry["F-MSE"] for entry in one)
    assert whole.provenance["training"]["validation_f_mse"] == round(best, 5)


def test_patience_counts_looks_at_the_validation_windows(tmp_path):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    spec = TrainSpec(batch_size=8, max_epochs=100, patience=2, validate_every=3, learning_rate=1e-12, ema_decay=0.0)
    trained = fit(model, train, validation, spec, work_dir=tmp_path, progress=False)
    looks = [entry["epoch"] for entry in history(tmp_path)]
    assert looks == list(range(3, 3 * len(looks) + 1, 3))
    values = [entry["F-MSE"] for entry in history(tmp_path)]
    assert len(looks) - 1 - int(np.argmin(values)) == 2 and trained.provenance["training"]["epochs"] == looks[-1]


def test_the_learning_rate_is_halved_in_the_second_half(tmp_path):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    spec = TrainSpec(batch_size=8, max_epochs=4, schedule="halved", learning_rate=1e-3)
    rates = []
    for part in range(4):
        try:
            fit(model, train, validation, spec, work_dir=tmp_path, progress=False, resume=part > 0, minutes=1e-9)
        except StoppedError:
            pass
        rates.append(read_state(tmp_path / LAST)["optimizer_states"][0]["param_groups"][0]["lr"])
    assert rates == [1e-3, 5e-4, 5e-4, 5e-4]  # of the step that comes next
