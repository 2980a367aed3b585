"""Training learns, stops at its best state, and can be resumed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_model, make_universe

from egno_md.checkpoint import new_model
from egno_md.config import TrainSpec
from egno_md.errors import UsageError
from egno_md.graph import GraphBuilder
from egno_md.training import fit
from egno_md.windows import Run, TrajectoryWindows, split_blocks


def harmonic_windows(model, n_frames=120, seed=0):
    """Every atom swings about its place along its own direction with a period of 20 frames."""
    u = make_universe(1)
    rng = np.random.default_rng(seed)
    swing = rng.normal(scale=0.5, size=(10, 3))
    phase = 2 * np.pi * np.arange(n_frames) / 20
    positions = (u.atoms.positions + np.sin(phase)[:, None, None] * swing).astype(np.float32)  # (F, N, 3)
    run = Run(positions, GraphBuilder(u.atoms, model.graph))
    train, validation = split_blocks(n_frames, model.window, fractions=(0.7, 0.3))
    return [TrajectoryWindows([run], model.window, [part]) for part in (train, validation)]


def static_error(windows):
    return np.mean([float((d.y[:, -1] - d.pos).square().mean()) for d in windows])


@pytest.mark.parametrize("operator", ["egno", "eghno"])
def test_harmonic_motion_is_learned(tmp_path, operator):
    torch.set_num_threads(1)
    small = make_model(operator=operator, clusters=3, hidden=12, residual=True, reduce="mean", start="static",
                       pooling_layers=1, decoder_layers=1)  # fmt: skip
    model = new_model(small.graph, small.window, small.spec, seed=1)
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    train, validation = harmonic_windows(model)
    spec = TrainSpec(batch_size=16, learning_rate=5e-3, max_epochs=30, ema_decay=0.9)
    trained = fit(model, train, validation, spec, work_dir=tmp_path, progress=False)
    reached = trained.provenance["training"]["validation_f_mse"]
    assert reached < 0.25 * static_error(validation)
    assert all(torch.equal(v, model.network.state_dict()[k]) for k, v in before.items())  # the argument is not changed
    assert not trained.network.training


def test_resumed_training_ends_with_the_same_weights(tmp_path):
    torch.set_num_threads(1)
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 90)
    spec = TrainSpec(batch_size=8, max_epochs=4)
    whole = fit(model, train, validation, spec, work_dir=tmp_path / "whole", progress=False)

    class Killed(Exception):
        pass

    class Stops:
        """The training windows, until they are pulled away in the third epoch."""

        reads = 0

        def __len__(self):
            return len(train)

        def __getitem__(self, item):
            self.reads += 1
            if self.reads > 2.5 * len(train):
                raise Killed
            return train[item]

    with pytest.raises(Killed):
        fit(model, Stops(), validation, spec, work_dir=tmp_path / "cut", progress=False)
    with pytest.raises(UsageError, match="resume=True"):
        fit(model, train, validation, spec, work_dir=tmp_path / "cut", progress=False)
    resumed = fit(model, train, validation, spec, work_dir=tmp_path / "cut", resume=True, progress=False)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    with pytest.raises(UsageError, match="nothing to resume"):
        fit(model, train, validation, spec, work_dir=tmp_path / "none", resume=True, progress=False)
