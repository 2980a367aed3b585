"""Whatever happens to the states of a training, it goes on from a whole one or says which is damaged."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from conftest import make_model
from test_training import SMALL, called, harmonic_windows, write_runs

from egno_md.errors import DataError, UsageError
from egno_md.specs import TrainSpec
from egno_md.training.loop import fit
from egno_md.training.states import BEST, BEST_STATE, LAST, PREVIOUS, callback_state, own_folder, read_state, save_state

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training of four epochs, cut after three, and what the whole one comes to."""
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    folder = tmp_path_factory.mktemp("states")
    spec = TrainSpec(batch_size=8, max_epochs=4)

    class Stops:
        """The training windows, until they are pulled away in the fourth epoch."""

        reads = 0

        def __len__(self):
            return len(train)

        def __getattr__(self, name):
            return getattr(train, name)

        def sample(self, item, noise=None):
            self.reads += 1
            if self.reads > 3.5 * len(train):
                raise KeyError
            return train.sample(item, noise)

        __getitem__ = sample

    with pytest.raises(KeyError):
        fit(model, Stops(), validation, spec, work_dir=folder / "cut", progress=False)
    whole = fit(model, train, validation, spec, work_dir=folder / "whole", progress=False)
    states = {path.name: path.read_bytes() for path in (folder / "cut").iterdir()}
    assert set(states) == {BEST, LAST, PREVIOUS}
    assert [read_state(folder / "cut" / name)["epoch"] for name in (LAST, PREVIOUS)] == [2, 1]

    def resumed(work_dir):
        return fit(model, train, validation, spec, work_dir=work_dir, resume=True, progress=False)

    return states, whole.network.state_dict(), resumed


def flipped(data: bytes) -> bytes:
    """One bit of the largest part, as a bad sector does it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        part = archive.read(max(archive.infolist(), key=lambda info: info.file_size))
    at = data.index(part) + len(part) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES = [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no state" * 99, flipped, None]


@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "empty", "foreign", "flipped", "gone"])
def test_it_goes_on_from_the_state_before(trained, tmp_path, damage):
    states, whole, resumed = trained
    for name, data in states.items():
        (tmp_path / name).write_bytes(data)
    if damage is None:
        (tmp_path / LAST).unlink()
        found = resumed(tmp_path)
    else:
        (tmp_path / LAST).write_bytes(damage(states[LAST]))
        with pytest.warns(UserWarning, match=r"last\.ckpt is damaged .*going on from .*previous\.ckpt"):
            found = resumed(tmp_path)
    assert all(torch.equal(tensor, found.network.state_dict()[name]) for name, tensor in whole.items())
    assert [read_state(tmp_path / name)["epoch"] for name in (LAST, PREVIOUS)] == [3, 2]


@pytest.mark.parametrize("damage", DAMAGES[:4], ids=["cut", "empty", "foreign", "flipped"])
def test_where_none_is_whole_it_says_which_are_damaged(trained, tmp_path, damage):
    states, _, resumed = trained
    for name, data in states.items():
        (tmp_path / name).write_bytes(data if name == BEST else damage(data))
    with pytest.raises(DataError, match=r"last\.ckpt is damaged .*previous\.ckpt is damaged .*--work"):
        resumed(tmp_path)
    for name, data in states.items():
        (tmp_path / name).write_bytes(damage(data) if name == BEST else data)
    with pytest.raises(DataError, match=r"best\.ckpt is damaged .*--work"):
        resumed(tmp_path)
    (tmp_path / BEST).unlink()
    with pytest.raises(DataError, match=r"best\.ckpt is missing.*--work"):
        resumed(tmp_path)


def test_a_work_folder_may_be_moved(trained, tmp_path):
    """The best score is not forgotten, and no worse epoch takes the place of the best one."""
    states, whole, resumed = trained
    for name, data in states.items():
        state = torch.load(io.BytesIO(data), weights_only=True)
        kept = state["callbacks"][next(key for key in state["callbacks"] if key.startswith(BEST_STATE))]
        assert str(tmp_path) not in kept["dirpath"]
        kept["best_model_score"] = kept["kth_value"] = torch.tensor(1e-9)
        kept["best_k_models"] = {path: torch.tensor(1e-9) for path in kept["best_k_models"]}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        (tmp_path / name).write_bytes(buffer.getvalue())
    before = read_state(tmp_path / BEST)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dirpath.*")
        found = resumed(tmp_path)
    assert found.provenance["training"]["validation_f_mse"] == 0.0  # 1e-9, rounded
    assert read_state(tmp_path / BEST)["epoch"] == before["epoch"] < read_state(tmp_path / LAST)["epoch"]
    assert callback_state(read_state(tmp_path / LAST), BEST_STATE)["dirpath"] == str(tmp_path)


def test_a_state_of_another_network_is_refused(trained, tmp_path):
    states, _, _ = trained
    for name, data in states.items():
        (tmp_path / name).write_bytes(data)
    model = make_model(start="static", hidden=9)
    with pytest.raises(DataError, match="another network"):
        fit(model, *harmonic_windows(model, 60), TrainSpec(max_epochs=4), work_dir=tmp_path, resume=True)


def test_a_state_is_whole_or_as_before(tmp_path):
    """No room for the new one: both that were there are still."""
    code = (
        "import sys, torch; from pathlib import Path; from egno_md.training.states import save_state\n"
        "state = {'epoch': 2, 'state_dict': {'a': torch.zeros(9000)}, 'callbacks': {}}\n"
        "save_state(state, Path(sys.argv[1]), keep=True)"
    )
    path = tmp_path / LAST
    for epoch in (0, 1):
        save_state({"epoch": epoch, "state_dict": {}, "callbacks": CALLBACKS}, path, keep=True)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert read_state(path)["epoch"] == 1 and {file.name for file in tmp_path.iterdir()} == {LAST, PREVIOUS}
    save_state({"epoch": 2, "state_dict": {}, "callbacks": CALLBACKS}, path, keep=True)
    assert (read_state(path)["epoch"], read_state(tmp_path / PREVIOUS)["epoch"]) == (2, 1)


CALLBACKS = {BEST_STATE: {}, "EarlyStopping": {}}


def test_one_training_at_a_time_in_a_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from egno_md.training.states import own_folder\n"
        "with own_folder(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "in\n"
    model = make_model(start="static")
    windows = harmonic_windows(model, 60)
    with pytest.raises(UsageError, match="another training is running"):
        fit(model, *windows, TrainSpec(max_epochs=1), work_dir=tmp_path, progress=False)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with own_folder(tmp_path), own_folder(tmp_path):  # what is left of a dead process is no obstacle
        pass
    assert not any(tmp_path.iterdir())


def test_damage_is_one_line_on_the_command_line(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 90})
    arguments = [top, tmp_path / "a.dcd", *SMALL, "--epochs", 2, "-o", tmp_path / "m.safetensors", "--force"]
    assert called(*arguments).exit_code == 0
    work = tmp_path / "m_work"
    for name in ("training.json", BEST, LAST):
        data = (work / name).read_bytes()
        (work / name).write_bytes(data[: len(data) // 3])
        if name == LAST:
            (work / PREVIOUS).write_bytes(b"")
        done = called(*arguments, "--resume")
        assert done.exit_code == 1 and f"{name} is damaged" in done.stderr, done.output
        assert len(done.stderr.strip().splitlines()[-1:]) == 1 and "Traceback" not in done.output
        (work / name).write_bytes(data)
    # Without the record there is nothing to compare with: the cure that the message names.
    (work / "training.json").unlink()
    assert called(*arguments, "--resume").exit_code == 0


def test_a_training_that_is_complete_is_nothing_to_go_on_with_and_no_failure(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 160})
    model, other = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    command = [top, tmp_path / "a.dcd", *SMALL, "-o", model]
    first = called(*command, "--epochs", 2)
    assert first.exit_code == 0, first.stderr
    # What is waited for is said before the first epoch is over.
    assert re.search(r"^training   \d+ windows an epoch, judged on \d+;", first.stderr), first.stderr
    before = model.read_bytes()
    again = called(*command, "--epochs", 2, "--resume")
    assert again.exit_code == 0 and "this training has come to its end" in again.stdout, again.stderr
    assert "epoch" not in again.stderr and model.read_bytes() == before
    told = json.loads(called(*command, "--epochs", 2, "--resume", "--json").stdout)
    assert told == {"model": "m", "complete": True, "files": [str(model)]}
    # Other settings, a training that was cut short, and the model of another one are refused as ever.
    changed = called(*command, "--epochs", 3, "--resume")
    assert changed.exit_code == 2 and "max_epochs (then 2, now 3)" in changed.stderr
    foreign = [top, tmp_path / "a.dcd", *SMALL, "-o", other, "--epochs", 2]
    assert called(*foreign, "--seed", 1).exit_code == 0
    mixed = called(*foreign, "--resume", "--work", tmp_path / "m_work")
    assert mixed.exit_code == 1 and "exists; pass --force" in mixed.stderr, mixed.stderr
    # A folder whose last state is that of an earlier epoch.
    last = tmp_path / "m_work" / LAST
    state = read_state(last)
    torch.save({**state, "epoch": 0}, last)
    cut = called(*command, "--epochs", 2, "--resume")
    assert cut.exit_code == 1 and "exists; pass --force" in cut.stderr and model.read_bytes() == before
