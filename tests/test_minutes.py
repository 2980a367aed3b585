"""A training that has so many minutes ends with a model, and keeps to them."""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest
import torch
from conftest import make_model
from test_cli import egno_md
from test_training import SMALL, called, harmonic_windows, write_runs

from egno_md import load_model, sample
from egno_md.evaluation.result import Evaluation
from egno_md.specs import TrainSpec
from egno_md.training import epochs, limit, loop, run
from egno_md.training.loop import fit
from egno_md.training.order import Varied
from egno_md.training.states import BEST, BEST_STATE, LAST, callback_state, read_state, save_state


def test_a_training_of_so_many_minutes_ends_with_the_best_epoch(tmp_path):
    model = tmp_path / "m.safetensors"
    command = ["train", *sample("chignolin"), "-o", model, "--hidden", 8, "--layers", 1, "--epochs", 50, "--window", 4]
    done = egno_md(*command, "--minutes", 0.0001)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/50" in done.stderr and "epoch 2/50" not in done.stderr and f"written    {model}" in done.stdout
    assert re.search(r"data       \d+ of \d+ windows.*note       tested on \d+ of \d+ windows", done.stdout, re.S)
    test = load_model(model).provenance["test"]
    assert test["windows"] < test["of_windows"]
    # Not even one window fits into it; what would be needed is said.
    assert "an epoch is 1 of " in done.stderr and "judged on 1 of " in done.stderr and "--minutes 1 " in done.stderr
    training = load_model(model).provenance["training"]
    assert training["epochs"] == training["epoch_windows"] == training["validation_windows"] == 1
    # The state is there to go on from.
    more = egno_md(*command, "--minutes", 0.0001, "--resume", "--force")
    assert more.returncode == 0 and "epoch 2/50" in more.stderr and "epoch 1/50" not in more.stderr, more.stderr
    refused = egno_md(*command, "--minutes", 0)
    assert refused.returncode == 2 and "--minutes must be more than 0" in refused.stderr


class Clock:
    """Time that passes by steps alone, as many seconds for each as is said."""

    def __init__(self, patch, seconds):
        self.now, self.seconds, self.steps = 0.0, seconds, []
        step, clock = loop._Module.training_step, self

        def training_step(self, batch, number):
            clock.now += seconds
            clock.steps.append((self.current_epoch, number))
            return step(self, batch, number)

        patch.setattr(loop._Module, "training_step", training_step)
        for module in (epochs, limit, loop):
            patch.setattr(module, "time", self)

    def monotonic(self):
        return self.now


def test_an_epoch_that_the_time_cuts_short_is_judged_saved_and_gone_on_from(tmp_path, monkeypatch, capsys):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    spec = TrainSpec(batch_size=8, max_epochs=6)
    whole = -(-len(train) // spec.batch_size)  # batches of an epoch
    with monkeypatch.context() as patch:
        clock = Clock(patch, 6.0)  # a look at the validation windows takes no time here
        fit(model, train, validation, spec, work_dir=tmp_path, device="cpu", enough=True, minutes=(whole + 3.1) / 10)
    assert whole > 3 and clock.steps == [(0, k) for k in range(whole)] + [(1, 0), (1, 1), (1, 2)]
    said = capsys.readouterr().err
    assert "epoch 2/6" in said and "epoch 3/6" not in said
    # Without a limit it goes on with the epoch after the one that was cut short, to the end.
    with monkeypatch.context() as patch:
        clock = Clock(patch, 0.0)
        rest = fit(model, train, validation, spec, work_dir=tmp_path, resume=True, device="cpu")
    assert clock.steps == [(epoch, k) for epoch in (2, 3, 4, 5) for k in range(whole)]
    assert rest.provenance["training"]["epochs"] == 6


def test_time_is_left_to_look_at_the_validation_windows_also_before_the_first_look(tmp_path, monkeypatch):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    spec = TrainSpec(batch_size=8, max_epochs=6)
    looks = -(-len(validation) // spec.batch_size)
    with monkeypatch.context() as patch:
        clock = Clock(patch, 6.0)
        # Two steps, and a look that takes a third of a step for each of its batches.
        fit(
            model, train, validation, spec, work_dir=tmp_path, device="cpu", enough=True, minutes=(2.9 + looks / 3) / 10
        )
    assert clock.steps == [(0, 0), (0, 1)]


def test_an_epoch_is_of_as_many_windows_as_fit_into_the_time(tmp_path, monkeypatch, capsys):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    spec = TrainSpec(batch_size=8, max_epochs=3)
    costs = {1: (4.0, 1.0), 8: (2.0, 0.5)}  # of a window in a step, in the loss alone, in seconds
    with monkeypatch.context() as patch:
        Clock(patch, 0.0)
        patch.setattr(limit, "_seconds", lambda module, windows, count: costs[count])
        fit(model, train, validation, spec, work_dir=tmp_path, device="cpu", enough=True, minutes=1)
    said = capsys.readouterr().err
    assert f"an epoch is 7 of {len(train)} windows, judged on {min(12, len(validation))} of" in said
    assert "of 60 s that are left" in said and "epoch 3/3" in said
    plenty = Varied(train, spec)
    module = loop._Module(model, spec, plenty)
    same, references = limit.fitted(module, plenty, validation, {"static": 1.0}, np.inf, "cpu", True)
    assert same is validation and references == {"static": 1.0} and plenty.most is None
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("share", "said"), [(0.97, False), (0.9, True)])
def test_that_a_few_windows_are_left_out_is_not_worth_a_line(share, said, capsys):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 400)
    windows = Varied(train, TrainSpec(batch_size=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limit, "_seconds", lambda module, windows, count: (1.0, 1e-6))
        patch.setattr(limit, "time", Clock(patch, 0.0))
        limit.fitted(loop._Module(model, windows.spec, windows), windows, validation, {"static": 1.0},
                     share * len(train) / limit.EPOCH + 0.01, "cpu", True)  # fmt: skip
    assert windows.taken == int(share * len(train)) < len(train)
    assert ("limit" in capsys.readouterr().err) == said


@pytest.mark.parametrize(("cold", "each", "tested"), [(8.0, 0.05, 91), (8.0, 0.25, 31), (60.0, 0.05, 4)])
def test_the_test_takes_as_many_windows_as_there_is_time_for_and_says_so(monkeypatch, cold, each, tested):
    """The first windows take longer, for they wait for the baselines: what they took is not what others take."""
    now, rounds = [0.0], []

    def score(model, parts, max_windows):
        now[0] += each * max_windows if rounds else cold
        rounds.append(max_windows)
        count, zeros, skill = -(-91 // -(-91 // max_windows)), np.zeros(4), (0.0, 0.0, 0.0)
        return Evaluation({}, {}, zeros, np.zeros((4, 2)), skill, skill, "m", zeros, count, 1, 10, 1, 1, of_windows=91)

    monkeypatch.setattr(run, "score", score)
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    result = run._more(None, [], score(None, [], limit.TRIED), 0.0, 20.0, {})
    assert result.n_windows == tested and now[0] <= max(20, cold)
    assert [f"tested on {tested} of 91" in note for note in result.notes] == [True] * (tested < 91)


def test_what_was_judged_on_fewer_windows_is_not_the_best_of_those_that_were_judged_on_all(tmp_path, monkeypatch):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    spec = TrainSpec(batch_size=8, max_epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(limit, "_seconds", lambda module, windows, count: (1e4, 1e4))
        fit(model, train, validation, spec, work_dir=tmp_path, device="cpu", enough=True, minutes=1e-9)
    for name, state in states(tmp_path):  # as if that one window were easy
        callback_state(state, BEST_STATE)["best_model_score"] = torch.tensor(1e-9)
        stopping = callback_state(state, "EarlyStopping")
        stopping["best_score"] = torch.tensor(1e-9)
        save_state(state, tmp_path / name, keep=False)
    rest = fit(model, train, validation, spec, work_dir=tmp_path, resume=True, device="cpu")
    (_, last), (_, best) = states(tmp_path)
    history = callback_state(last, "Epochs")["history"]
    assert [entry.get("windows") for entry in history] == [1, None, None]
    assert best["epoch"] > 0 and rest.provenance["training"]["validation_f_mse"] > 1e-6
    assert callback_state(last, "EarlyStopping")["wait_count"] == 0


def states(folder):
    return [(name, read_state(folder / name)) for name in (LAST, BEST)]


def test_looking_how_long_a_step_takes_changes_nothing(tmp_path):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    spec = TrainSpec(batch_size=8, max_epochs=2)
    options = {"progress": False, "device": "cpu"}
    plain = fit(model, train, validation, spec, work_dir=tmp_path / "plain", **options)
    timed = fit(model, train, validation, spec, work_dir=tmp_path / "timed", minutes=1e6, enough=True, **options)
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, timed.network.state_dict()[name]), name


@pytest.mark.parametrize("epoch", [0, 1])
def test_sigterm_ends_a_training_after_the_step_and_says_how_to_go_on(tmp_path, monkeypatch, epoch):
    top = write_runs(tmp_path, {"a.dcd": 160})
    step, steps = loop._Module.training_step, []

    def training_step(self, batch, number):
        steps.append((self.current_epoch, number))
        if steps[-1] == (epoch, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number)

    monkeypatch.setattr(loop._Module, "training_step", training_step)
    done = called(top, tmp_path / "a.dcd", *SMALL, "--epochs", 5, "-o", tmp_path / "m.safetensors")
    assert done.exit_code == 143 and steps[-1] == (epoch, 1), done.output
    said = "go on with the same command and --resume" if epoch else "nothing to resume, the same command begins again"
    assert done.stderr.splitlines()[-1].endswith(said) and not done.stdout
    assert not (tmp_path / "m.safetensors").exists()
    monkeypatch.setattr(loop._Module, "training_step", step)
    again = ["--resume"] if epoch else []
    done = called(top, tmp_path / "a.dcd", *SMALL, "--epochs", 5, *again, "-o", tmp_path / "m.safetensors")
    assert done.exit_code == 0 and "epoch 5/5" in done.stderr, done.output
