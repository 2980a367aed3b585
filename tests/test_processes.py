"""A training in several processes is that of one, and a training leaves no trace in the process that called it."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Ballistic, make_model, make_universe
from MDAnalysis.analysis import rms
from scipy.spatial.transform import Rotation
from test_training import SMALL, called, harmonic_windows, write_runs

from egno_md import EGNOSurrogate, evaluate, load_model, sample
from egno_md.errors import UsageError
from egno_md.forecast.chain import forecast
from egno_md.graph.builder import GraphBuilder
from egno_md.specs import TrainSpec
from egno_md.training.loop import _freeze_unreached, _Module, fit
from egno_md.training.order import Batches, Varied
from egno_md.training.process import check_processes
from egno_md.training.reference import learned, reference_errors, standing_shape

PLAIN = ["--batch-size", 7, "--set", "noise=0.05", "--epochs", 3]
#: Every batch is one window: one of two processes has no share in any of them.
ALL = ["--operator", "eghno", "--batch-size", 1, "--epoch-windows", 9, "--epochs", 2]
for setting in ("clusters=3", "pooling_layers=1", "noise=0.05", "unroll=2", "pair_weight=0.3", "step_weights=static"):
    ALL += ["--set", setting]


def arguments(folder: Path, name: str, *more) -> list[str]:
    files = [folder / "top.pdb", folder / "a.dcd", folder / "bb.dcd"]
    return [*map(str, [*files, *SMALL[:-2], "--device", "cpu", *more, "-o", folder / f"{name}.safetensors", "--json"])]


def alone(folder: Path, name: str, *more):
    """One process: this one."""
    done = called(*arguments(folder, name, *more))
    assert done.exit_code == 0, done.stderr
    return done


def together(folder: Path, name: str, *more, start=("-m",)) -> subprocess.CompletedProcess:
    # A process of another training in the environment of this one would be taken for its own.
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    command = [sys.executable, *map(str, start), "egno_md", "train", *arguments(folder, name, "--devices", 2, *more)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("options", [PLAIN, ALL], ids=["plain", "all"])
def test_two_processes_train_as_one(tmp_path, options):
    write_runs(tmp_path, {"a.dcd": 100, "bb.dcd": 81})
    found, models = {}, {}
    for name, run in (("one", alone), ("two", together)):
        done = run(tmp_path, name, *options)
        found[name], models[name] = json.loads(done.stdout), load_model(tmp_path / f"{name}.safetensors")
        assert len(re.findall(r"epoch 1/\d  loss", done.stderr)) == 1 == done.stderr.count("trained ")
    one, two = (models[name].provenance["training"] for name in ("one", "two"))
    assert two["validation_f_mse"] == pytest.approx(one["validation_f_mse"], rel=1e-4)
    np.testing.assert_allclose(found["two"]["errors"]["model"], found["one"]["errors"]["model"], rtol=1e-4)
    for name, tensor in models["one"].network.state_dict().items():
        torch.testing.assert_close(models["two"].network.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
    written = [sorted(path.name for path in (tmp_path / f"{name}_work").iterdir()) for name in ("one", "two")]
    assert written[0] == written[1] == ["best.ckpt", "last.ckpt", "previous.ckpt", "training.json"]


def test_a_training_goes_on_with_another_number_of_processes(tmp_path):
    """Also with processes that torchrun has started."""
    write_runs(tmp_path, {"a.dcd": 100, "bb.dcd": 81})
    alone(tmp_path, "whole", *PLAIN)
    process = subprocess.Popen(
        [sys.executable, "-m", "egno_md", "train", *arguments(tmp_path, "cut", *PLAIN)],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("epoch 2/3"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", 29517, "-m")
    done = together(tmp_path, "cut", *PLAIN, "--resume", start=torchrun)
    assert "epoch 1/3" not in done.stderr and set(json.loads(done.stdout)["errors"]) >= {"model", "static"}
    cut, whole = (load_model(tmp_path / f"{name}.safetensors") for name in ("cut", "whole"))
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(cut.network.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


def test_shares_make_up_the_batches():
    class Ten(list):
        sample = None

    data = Varied(Ten(range(10)), TrainSpec(batch_size=3, epoch_windows=7))
    one, *shares = (Batches(data, lambda: 4, rank, world) for rank, world in ((0, 1), (0, 2), (1, 2)))
    assert len(one) == len(shares[0]) == 3
    for number, (whole, *parts) in enumerate(zip(one, *shares, strict=True)):
        own = [part[: share.own(number)] for part, share in zip(parts, shares, strict=True)]
        assert sorted(sum(own, [])) == sorted(whole)
    assert parts[1] and not own[1]  # the last batch is one window: the second process gets one that does not count


def test_torchrun_with_other_numbers_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    check_processes(4, 2)
    with pytest.raises(UsageError, match="8 processes.*--devices 4 --nodes 2"):
        check_processes(1, 1)
    with pytest.raises(UsageError, match=r"devices \(--devices\) must be at least 1, found 0"):
        check_processes(0, 1)


def test_devices_that_are_not_there_are_one_line(tmp_path):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 40)
    with pytest.raises(UsageError, match="device='cuda', devices=8"):
        fit(model, train, validation, work_dir=tmp_path, device="cuda", devices=8, progress=False)
    # Each would be a process: nothing is started.
    with pytest.raises(UsageError, match="processes at most"):
        fit(model, train, validation, work_dir=tmp_path, device="cpu", devices=10**9, progress=False)


@pytest.mark.parametrize("operator", ["egno", "eghno"])
def test_only_what_the_loss_never_reaches_is_frozen(operator):
    """That is the update of the scalars in a last layer, on which no position depends."""
    model = make_model(operator=operator, clusters=3)
    _, validation = harmonic_windows(model, 60)
    module = _Module(model, TrainSpec(pair_weight=0.1), validation)
    without = {name for name, p in model.network.named_parameters() if not p.requires_grad}  # its operator's own
    frozen_ones = _freeze_unreached(module, validation)
    frozen = {id(p) for p in frozen_ones}
    names = [name for name, p in model.network.named_parameters() if id(p) in frozen]
    assert names and all(not p.requires_grad for p in model.network.parameters() if id(p) in frozen)
    if operator == "egno":
        assert all(name.startswith("block.layers.1.node.") for name in names)
    sum(term for term, _ in module._terms(validation[0])).backward()
    for name, parameter in model.network.named_parameters():
        assert (parameter.grad is None) == (name in names or name in without), name
    for parameter in frozen_ones:
        parameter.requires_grad_(True)
    assert without == {name for name, p in model.network.named_parameters() if not p.requires_grad}


def state() -> dict:
    """What a library must leave as it was."""
    loggers = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict if "ightning" in name}
    return {
        "random": random.getstate(),
        "numpy": [*map(str, np.random.get_state()[1:])],
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "filters": list(warnings.filters),
        "hook": warnings.showwarning,
        "loggers": loggers | {"root": logging.root.level},
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGABRT)],
        "environment": dict(os.environ),
    }


def test_library_calls_leave_the_process_as_it_was(tmp_path):
    model = make_model(start="static")
    windows = harmonic_windows(model, 60)
    spec = TrainSpec(batch_size=8, max_epochs=2, noise=0.1)

    class Killed:
        def __len__(self):
            return 8

        def __getitem__(self, item):
            raise KeyboardInterrupt

    def interrupted():
        with pytest.raises(KeyboardInterrupt):
            fit(model, Killed(), windows[1], TrainSpec(), work_dir=tmp_path / "killed", progress=False)

    u = make_universe(12)
    ballistic = make_model(Ballistic(4))
    builder = GraphBuilder(u.atoms, ballistic.graph)
    past = np.random.default_rng(0).normal(size=(1, 2, 10, 3)) + u.atoms.positions
    runs = {
        "fit": lambda: fit(model, *windows, spec, work_dir=tmp_path / "fit", progress=False),
        "interrupted": interrupted,
        "forecast": lambda: forecast(ballistic, builder, past, 8),
        "evaluate": lambda: evaluate("ca-1ps", *sample(), stop=60, max_windows=20),
        "run": lambda: EGNOSurrogate(u, ballistic, horizon=4, device="cpu").run(),
    }
    flags = [p.requires_grad for p in model.network.parameters()]
    with warnings.catch_warnings():
        for name, run in runs.items():
            random.seed(1), np.random.seed(2), torch.manual_seed(3)
            before = copy.copy(state())
            run()
            after = state()
            for what, value in before.items():
                assert after[what] == value, (name, what)
    assert flags == [p.requires_grad for p in model.network.parameters()] and not model.network.training
    assert {p.device.type for p in model.network.parameters()} == {"cpu"}


def test_errors_without_a_network_stand_beside_the_validation_error(tmp_path, capsys):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 90)
    expected = np.mean([float((d.y[:, -1] - d.pos).square().mean()) for d in validation])
    errors = reference_errors(validation)["static"]
    assert errors[-1] == pytest.approx(expected, rel=1e-5) and errors.shape == (4,)
    np.testing.assert_allclose(reference_errors([validation[k] for k in range(len(validation))])["static"], errors)
    spec = TrainSpec(batch_size=8, max_epochs=1, learning_rate=1e-9)
    fitted = fit(model, train, validation, spec, work_dir=tmp_path)
    shown = capsys.readouterr().err
    assert shown.count(f"standing still {expected:.4g}") == 2 and "nothing was learned that standing still" in shown
    reached = fitted.provenance["training"]
    assert reached["validation_f_mse_without_network"] == {"static": round(expected, 5)}
    assert learned(0.5, {"static": 2.0, "regression": 1.0}).endswith("50.0% below regression")


def test_the_shape_is_judged_beside_where_a_molecule_stands(tmp_path, capsys):
    """One that turns and swings a little: most of the error is the turning, which a squared error is trained on."""
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    for run in {id(run): run for run in (*train.runs, *validation.runs)}.values():
        turned = Rotation.from_rotvec(np.outer(np.arange(len(run.positions)), [0.0, 0.0, 0.2])).as_matrix()
        run.positions[:] = run.positions @ turned
    frames = validation.runs[0].positions.astype(float)
    expected = np.mean([
        rms.rmsd(frames[start], frames[start + 4], center=True, superposition=True) ** 2 / 3
        for _, start in validation.index
    ])  # fmt: skip
    assert standing_shape(validation) == pytest.approx(expected, rel=1e-4)
    fitted = fit(model, train, validation, TrainSpec(batch_size=8, max_epochs=1, learning_rate=1e-9), work_dir=tmp_path)
    shown, reached = capsys.readouterr().err, fitted.provenance["training"]
    assert reached["validation_superposed"] == pytest.approx(expected, rel=1e-3)
    assert reached["validation_superposed_static"] == pytest.approx(expected, rel=1e-3)
    assert shown.count(f"; superposed {expected:.4g} (standing still {expected:.4g})") == 2
    assert reached["validation_f_mse"] > 3 * expected
    assert learned(0.5, {"static": 1.0}, (0.3, 0.2)).endswith("(standing still 0.2): nothing was learned that standing "
                                                               "still does not give without a network")  # fmt: skip

    bare = [[windows[k] for k in range(len(windows))] for windows in (train, validation)]  # of no trajectories
    fitted = fit(model, *bare, TrainSpec(batch_size=8, max_epochs=1), work_dir=tmp_path / "bare")
    assert "superposed" not in capsys.readouterr().err
    assert "validation_superposed" not in fitted.provenance["training"]
