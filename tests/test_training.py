"""Training learns, stops at its best state, and can be resumed."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import Ballistic, make_model, make_universe

from egno_md import load_model
from egno_md.cli import main
from egno_md.errors import DataError, ModelError, UsageError
from egno_md.forecast.model import build_network, new_model
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.graph import collate
from egno_md.graph.windows import Run, TrajectoryWindows, split_blocks
from egno_md.specs import PRESETS, ModelSpec, TrainSpec, WindowSpec
from egno_md.training.data import System, load_data
from egno_md.training.loop import _Module, _pair_error, fit
from egno_md.training.order import Varied
from egno_md.training.recipe import read_manifest
from egno_md.training.run import train_files

torch.set_num_threads(1)


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


def test_a_data_set_of_torch_geometric_trains_the_same(tmp_path):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 40)
    spec = TrainSpec(batch_size=8, max_epochs=2, step_weights="static")
    ours, theirs = (
        fit(model, a, b, spec, work_dir=tmp_path / name, progress=False).network.state_dict()
        for name, a, b in (
            ("ours", train, validation),
            ("theirs", *([graph.to_data() for graph in part] for part in (train, validation))),
        )
    )
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize(
    "options", [{}, {"noise": 0.1, "unroll": 3, "pair_weight": 0.5, "step_weights": "static"}], ids=["plain", "varied"]
)
def test_resumed_training_ends_with_the_same_weights(tmp_path, options):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 90)
    spec = TrainSpec(batch_size=8, max_epochs=4, **options)
    whole = fit(model, train, validation, spec, work_dir=tmp_path / "whole", progress=False)

    class Killed(Exception):
        pass

    class Stops:
        """The training windows, until they are pulled away in the third epoch."""

        reads = 0

        def __len__(self):
            return len(train)

        def __getattr__(self, name):
            return getattr(train, name)

        def __getitem__(self, item):
            return self.sample(item)

        def sample(self, item, noise=None):
            self.reads += 1
            if self.reads > 2.5 * len(train):
                raise Killed
            return train.sample(item, noise)

    with pytest.raises(Killed):
        fit(model, Stops(), validation, spec, work_dir=tmp_path / "cut", progress=False)
    with pytest.raises(
        UsageError, match=r"go on with it, resume \(--resume\), or take another folder, work_dir \(--work\)"
    ):
        fit(model, train, validation, spec, work_dir=tmp_path / "cut", progress=False)
    resumed = fit(model, train, validation, spec, work_dir=tmp_path / "cut", resume=True, progress=False)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    with pytest.raises(UsageError, match="nothing to resume"):
        fit(model, train, validation, spec, work_dir=tmp_path / "none", resume=True, progress=False)


def test_noise_is_on_the_input_alone_and_follows_from_seed_and_epoch():
    model = make_model()
    train, _ = harmonic_windows(model)
    noisy = Varied(train, TrainSpec(noise=0.2, seed=3))
    clean, first = train[4], noisy[4]
    added = (first.pos - clean.pos).numpy()
    assert 0.1 < added.std() < 0.3
    assert (first.vel - clean.vel).std() > added.std()  # the frame before has its own
    torch.testing.assert_close(first.x[:, 0], first.vel.norm(dim=1))
    assert torch.equal(first.y, clean.y)
    assert torch.equal(noisy[4].pos, first.pos)
    noisy.epoch = 1
    assert not torch.equal(noisy[4].pos, first.pos)
    assert torch.equal(Varied(train, TrainSpec())[4].pos, clean.pos)
    with pytest.raises(UsageError, match="give TrajectoryWindows, found list"):
        Varied([clean], TrainSpec(noise=0.1))


def further(model, train, spec, batch):
    """The batch that a chained training step learns from, in the epoch and step that go furthest."""
    module = _Module(model, spec, train)
    varied = Varied(train, spec)
    module._trainer = SimpleNamespace(train_dataloader=SimpleNamespace(dataset=varied), current_epoch=0, world_size=1)
    draws = [int(np.random.default_rng((spec.seed, 0, n)).integers(spec.unroll)) for n in range(20)]
    assert set(draws) == set(range(spec.unroll))
    data = collate([varied[k] for k in batch])
    return data, [(draws[n], module._further(data, n)) for n in range(20)]


@pytest.mark.parametrize("side", [None, 16.0])
def test_a_chained_step_begins_where_the_chain_has_come_and_aims_at_the_frames_after(side):
    """Constant velocity, and a network that knows it: the input of a later window is the real frame there."""
    u = make_universe(60, velocity=0.05)
    model = make_model(Ballistic(4))
    box = None if side is None else np.tile(np.float32([side, side, side, 90, 90, 90]), (60, 1))
    run = Run(np.stack([u.atoms.positions for _ in u.trajectory]), GraphBuilder(u.atoms, model.graph), boxes=box)
    train = TrajectoryWindows([run, run], model.window)
    spec = TrainSpec(unroll=3)
    assert train.ahead(3, 2) == 11 and train.index[11] == (0, 12)
    assert train.ahead(len(train) // 2 - 1, 1) is None  # not into the next run
    data, batches = further(model, train, spec, [0, 5, 50])
    for steps, batch in batches:
        starts = [train.index[train.ahead(item, steps)][1] for item in data.item.tolist()]
        real = np.concatenate([run.positions[s] for s in starts])
        np.testing.assert_allclose(batch.pos, real, atol=1e-4)
        assert (batch.edge_shift is not None) == (side is not None)
        np.testing.assert_allclose(batch.y[:, -1], np.concatenate([run.positions[s + 4] for s in starts]), atol=1e-5)
    with pytest.raises(DataError, match="unroll"):
        Varied(TrajectoryWindows([run], model.window, [[3, 4, 5]]), spec)


def test_step_weights_and_pair_errors_in_closed_form():
    u = make_universe(40, velocity=0.05)
    model = make_model()
    run = Run(np.stack([u.atoms.positions for _ in u.trajectory]), GraphBuilder(u.atoms, model.graph))
    train = TrajectoryWindows([run], model.window)
    weights = _Module(model, TrainSpec(step_weights="static"), train).step_weights
    # At constant velocity the static error grows with the square of the time.
    expected = 1 / np.arange(1, 5) ** 2.0
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-3)
    assert torch.equal(_Module(model, TrainSpec(), train).step_weights, torch.ones(4))
    true = torch.tensor([[[0.0, 0, 0], [2.0, 0, 0], [0, 3.0, 0]]])  # (1, 3, 3)
    edges = torch.tensor([[0, 1, 0, 2], [1, 0, 2, 0]])
    assert _pair_error(true * 1.5, true, edges).item() == pytest.approx((1.0**2 + 1.5**2) / 2)
    assert _pair_error(true + 7.0, true, edges).item() == pytest.approx(0.0, abs=1e-10)


def test_a_finished_training_is_not_trained_on(tmp_path):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)
    spec = TrainSpec(batch_size=8, max_epochs=30, patience=1, learning_rate=1e-9, ema_decay=0.0)  # stops early
    first = fit(model, train, validation, spec, work_dir=tmp_path, progress=False)
    assert first.provenance["training"]["epochs"] < 30
    again = fit(model, train, validation, spec, work_dir=tmp_path, resume=True, progress=False)
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
    assert again.provenance == first.provenance


def test_windows_of_an_epoch_are_drawn_anew(tmp_path):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)

    class Counts:
        read: list[int] = []

        def __len__(self):
            return len(train)

        def __getitem__(self, item):
            self.read.append(item)
            return train[item]

    spec = TrainSpec(batch_size=4, max_epochs=3, epoch_windows=12)
    fit(model, Counts(), validation, spec, work_dir=tmp_path, progress=False)
    epochs = [set(Counts.read[12 * k : 12 * (k + 1)]) for k in range(3)]
    assert len(Counts.read) == 36 and all(len(epoch) == 12 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_good_state(tmp_path):
    model = make_model(start="static")
    train, validation = harmonic_windows(model, 60)

    class Poisoned:
        reads = 0

        def __len__(self):
            return len(train)

        def __getitem__(self, item):
            self.reads += 1
            data = train[item]
            if self.reads > len(train) + 17:  # in the third batch of the second epoch
                data = data._replace(y=data.y * float("nan"))
            return data

    spec = TrainSpec(batch_size=8, max_epochs=4)
    with pytest.raises(ModelError, match="batch 3 in epoch 2 is nan.*epoch 1.*--init") as caught:
        fit(model, Poisoned(), validation, spec, work_dir=tmp_path, progress=False)
    kept = load_model(tmp_path / "best.safetensors")
    assert str(tmp_path / "best.safetensors") in str(caught.value)
    assert all(torch.isfinite(t).all() for t in kept.network.state_dict().values())
    once = fit(model, train, validation, TrainSpec(batch_size=8, max_epochs=1), work_dir=tmp_path / "b", progress=False)
    assert kept.network.state_dict().keys() == once.network.state_dict().keys()
    with pytest.raises(ModelError, match="batch 1 in epoch 1.*no epoch was finished"):
        poisoned = Poisoned()
        poisoned.reads = 10**6
        fit(model, poisoned, validation, spec, work_dir=tmp_path / "c", progress=False)


# ---------------------------------------------------------------------------------------------------------- from files


def write_runs(folder: Path, lengths: dict[str, int], dt: float = 1.0) -> Path:
    """Runs of a swinging chain, and their topology."""
    folder.mkdir(exist_ok=True)
    u = make_universe(1)
    u.atoms.write(str(folder / "top.pdb"), bonds="all")
    swing = np.random.default_rng(0).normal(scale=0.5, size=(10, 3))
    for name, n_frames in lengths.items():
        phase = 2 * np.pi * (np.arange(n_frames) * dt / 20 + len(name) / 7)
        u.load_new((make_universe(1).atoms.positions + np.sin(phase)[:, None, None] * swing).astype(np.float32), dt=dt)
        with mda.Writer(str(folder / name), 10, dt=dt) as writer:
            for _ in u.trajectory:
                writer.write(u.atoms)
    return folder / "top.pdb"


SMALL = ["--select", "all", "--window", "4", "--hidden", "6", "--layers", "1", "--cutoff", "5", "--batch-size", "16"]


def command(*arguments):
    return [sys.executable, "-m", "egno_md", "train", *map(str, arguments)]


def called(*arguments):
    """The command line in this process; its own warning filters do not outlive the call."""
    with warnings.catch_warnings():
        return CliRunner().invoke(main, ["train", *map(str, arguments)], prog_name="egno-md")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).network.state_dict()


def test_kill_and_resume_on_the_command_line(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 160, "bb.dcd": 120})
    arguments = [top, tmp_path / "a.dcd", tmp_path / "bb.dcd", *SMALL, "--epochs", 6]
    whole = called(*arguments, "-o", tmp_path / "whole.safetensors", "--json")
    assert whole.exit_code == 0, whole.stderr
    cut = [*arguments, "-o", tmp_path / "cut.safetensors"]
    process = subprocess.Popen(command(*cut), stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("epoch 2/6"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut.safetensors").exists()
    assert "go on with it, --resume, or take another folder, --work" in called(*cut).stderr
    changed = called(*cut, "--resume", "--lr", 0.5)
    assert changed.exit_code == 2 and "learning_rate (then 0.002, now 0.5)" in changed.stderr
    resumed = called(*cut, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "epoch 1/6" not in resumed.stderr and "epoch 6/6" in resumed.stderr
    for name, tensor in weights(tmp_path / "whole.safetensors").items():
        assert torch.equal(tensor, weights(tmp_path / "cut.safetensors")[name]), name
    # The table of the test errors, the same in the provenance.
    found = json.loads(whole.stdout)
    provenance = load_model(tmp_path / "whole.safetensors").provenance
    free = {"static", "linear", "mean structure", "AR(1)", "smoothed history", "regression"}
    free |= {"Gaussian process", "elastic network", "analogues", "ensemble of the run"}
    assert set(found["errors"]) == {"model", *free}
    np.testing.assert_allclose(provenance["test"]["mse_A2_per_step"]["model"], found["errors"]["model"], atol=1e-5)
    assert [run["file"] for run in provenance["data"]["runs"]] == ["a.dcd", "bb.dcd"]
    assert provenance["data"]["runs"][0]["test_from"] == 128 and provenance["training"]["max_epochs"] == 6
    assert "AR(1)" in resumed.stdout and "written" in resumed.stdout


def test_a_training_of_files_goes_on_where_they_have_been_moved_to_if_they_are_the_same(tmp_path):
    write_runs(tmp_path / "here", {"a.dcd": 100, "bb.dcd": 100})
    write_runs(tmp_path / "there", {"a.dcd": 100, "bb.dcd": 100})
    written = ["--epochs", 2, "--work", tmp_path / "work"]

    def begun(folder, *more):
        return called(*(tmp_path / folder / name for name in ("top.pdb", "a.dcd", "bb.dcd")), *SMALL, *written, *more)

    assert begun("here", "--minutes", 1e-9, "-o", tmp_path / "short.safetensors").exit_code == 0
    (tmp_path / "there" / "bb.dcd").rename(tmp_path / "kept.dcd")
    (tmp_path / "there" / "bb.dcd").write_bytes((tmp_path / "there" / "a.dcd").read_bytes())  # as long, and another one
    wrong = begun("there", "--resume", "-o", tmp_path / "m.safetensors")
    assert wrong.exit_code == 2 and "data of bb.dcd: sha256 (then" in wrong.stderr and "a.dcd:" not in wrong.stderr
    (tmp_path / "kept.dcd").replace(tmp_path / "there" / "bb.dcd")
    plan = json.loads((tmp_path / "work" / "training.json").read_text())
    for run in plan["data"]["runs"]:
        del run["sha256"]  # as an earlier version has begun it
    (tmp_path / "work" / "training.json").write_text(json.dumps(plan))
    done = begun("there", "--resume", "-o", tmp_path / "m.safetensors")
    assert done.exit_code == 0 and "epoch 2/2" in done.stderr


def test_ctrl_c_keeps_the_state_and_says_how_to_go_on(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 160})
    arguments = [top, tmp_path / "a.dcd", *SMALL, "--epochs", 5000, "-o", tmp_path / "m.safetensors"]
    process = subprocess.Popen(
        command(*arguments),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "--resume" in err and "Traceback" not in err, err
    assert (tmp_path / "m_work" / "last.ckpt").exists()


def test_a_full_disk_is_one_line_and_keeps_what_is_there(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 160})
    arguments = [top, tmp_path / "a.dcd", *SMALL, "--epochs", 2, "-o", tmp_path / "m.safetensors"]

    def limit():  # no file of more than 8 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    done = subprocess.run(command(*arguments), capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "cannot write the training state" in done.stderr and "make room and begin again" in done.stderr
    assert "--resume" not in done.stderr and not (tmp_path / "m.safetensors").exists()
    assert called(*arguments).exit_code == 0  # the cure that it names


def test_held_out_runs_are_tested_alone(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 90, "bb.dcd": 70})
    system = System(top, (tmp_path / "a.dcd",), (tmp_path / "bb.dcd",))
    model = make_model()
    data = load_data([system], model.graph, model.window, fractions=(0.6, 0.2, 0.2))
    assert [part.run.name for part in data.test] == ["system-bb.dcd"] and len(data.test[0].starts) == 70 - 5
    starts = [[s for _, s in windows.index] for windows in (data.train, data.validation)]
    assert max(starts[0]) + 4 < min(starts[1]) - 1 and max(starts[0]) > 0.7 * 90  # the test's share goes to training


def test_a_training_part_of_one_forward_window_is_enough(tmp_path):
    """Nothing comes before its first frame, which a regression of the path would need."""
    top = write_runs(tmp_path, {"a.dcd": 15})
    window = WindowSpec(stride_ps=1.0, n_times=4, velocity="forward")
    data = load_data([System(top, (tmp_path / "a.dcd",))], make_model().graph, window, fractions=(1 / 3, 1 / 3, 1 / 3))
    assert len(data.train) == len(data.validation) == 1 and not data.regression
    with pytest.raises(UsageError, match="forward velocities: use 'static'"):
        build_network(make_model().graph, window, ModelSpec(prior="regression"))


def test_manifest_and_fine_tuning(tmp_path):
    write_runs(tmp_path / "one", {"a.dcd": 80})
    write_runs(tmp_path / "two", {"a.dcd": 60, "bb.dcd": 40})
    manifest = tmp_path / "systems.toml"
    manifest.write_text(
        '[[system]]\ntopology = "one/top.pdb"\ntrajectories = ["one/a.dcd"]\nname = "one"\n'
        '[[system]]\ntopology = "two/top.pdb"\ntrajectories = ["two/a.dcd"]\nhold_out = ["two/bb.dcd"]\n'
    )
    systems = read_manifest(manifest)
    assert [system.name for system in systems] == ["one", "top"] and systems[1].hold_out[0].exists()
    done = called("--manifest", manifest, *SMALL, "--epochs", 1, "-o", tmp_path / "m.safetensors")
    assert done.exit_code == 0, done.stderr
    model = load_model(tmp_path / "m.safetensors")
    assert [run["part"] for run in model.provenance["data"]["runs"]] == ["train, validation"] * 2 + ["test"]
    own = [tmp_path / "one" / "top.pdb", tmp_path / "one" / "a.dcd", "--init", tmp_path / "m.safetensors"]
    tuned = called(*own, "--epochs", 1, "-o", tmp_path / "tuned.safetensors")
    assert tuned.exit_code == 0, tuned.stderr
    after = load_model(tmp_path / "tuned.safetensors")
    assert after.graph == model.graph and after.provenance["history"][0]["training"] == model.provenance["training"]
    wrong = called(*own, "--hidden", 8, "-o", tmp_path / "x.safetensors")
    assert wrong.exit_code == 2 and "leave out --hidden" in wrong.stderr
    manifest.write_text('[[system]]\ntopology = "one/top.pdb"\n')
    with pytest.raises(DataError, match="trajectories are needed"):
        read_manifest(manifest)
    manifest.write_text("topology: one\n")
    with pytest.raises(DataError, match="cannot read the manifest"):
        read_manifest(manifest)


def test_prior_is_chosen_on_the_validation_windows(tmp_path):
    """Swinging atoms follow a regression; once the molecule has another shape, the start frame is the better one."""
    u = make_universe(1)
    top = tmp_path / "top.pdb"
    u.atoms.write(top)
    rng = np.random.default_rng(0)
    phase = 2 * np.pi * (np.arange(300)[:, None] / rng.uniform(15, 40, 10) + rng.uniform(size=10))  # (F, N)
    swing = 0.4 * np.sin(phase)[..., None] * rng.standard_normal((10, 3))  # (F, N, 3)
    changed = np.where(np.arange(300)[:, None, None] < 180, 0, 8 * rng.standard_normal((10, 3)))  # (F, N, 3)
    options = dict(select="all", epochs=1, hidden=6, layers=1, cutoff=5.0, n_times=4, progress=False)
    for name, frames, expected in (("swing", swing, "regression"), ("change", 0.05 * swing + changed, "static")):
        with mda.Writer(str(tmp_path / f"{name}.dcd"), 10, dt=1.0, istart=1) as writer:
            for frame in frames:
                moved = u.copy()
                moved.atoms.positions += frame
                writer.write(moved.atoms)
        system = System(top, (tmp_path / f"{name}.dcd",))
        model, _ = train_files([system], work_dir=tmp_path / name, **options)
        errors = model.provenance["data"]["prior_validation_a_mse"]
        assert model.spec.prior == expected == min(errors, key=errors.get)
        assert bool(model.regression) == (expected == "regression")
        model, _ = train_files([system], work_dir=tmp_path / f"{name}-2", settings={"prior": "static"}, **options)
        assert model.spec.prior == "static" and "prior_validation_a_mse" not in model.provenance["data"]


def test_presets_and_options(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 120})
    system = System(top, (tmp_path / "a.dcd",))
    options = dict(select="all", epochs=1, hidden=6, layers=1, cutoff=5.0, progress=False)
    model, _ = train_files(
        [system], work_dir=tmp_path / "p", preset="paper", n_times=4, history="trajectory", **options
    )
    paper, training = PRESETS["paper"]
    assert model.spec == paper.model_copy(update={"hidden": 6, "layers": 1}) and model.window.history == 4
    assert model.provenance["training"]["learning_rate"] == training.learning_rate == 5e-5
    assert not model.geometry
    model, result = train_files(
        [system], work_dir=tmp_path / "s", every=2, n_times=2, span=6, sampling="L", operator="eghno",
        settings={"clusters": "3", "handed": "true", "noise": "0.1", "prior": "regression"}, **options
    )  # fmt: skip
    assert model.spec.clusters == 3 and model.spec.handed and model.provenance["training"]["noise"] == 0.1
    assert len(model.geometry) == len(model.regression) == 1
    assert result.prior.shape == result.as_predicted.shape == (2,)
    file = model.save(tmp_path / "m.safetensors")
    shown = CliRunner().invoke(main, ["info", str(file)]).output
    assert "geometry   of 1 molecule" in shown and "prior      a regression of 1 molecule" in shown
    assert "geometry   brought back" in result.table() and "prior      the regression" in result.table()
    assert model.window.stride_ps == 2 and model.window.targets == (5, 6) and model.spec.operator == "eghno"
    np.testing.assert_allclose(result.times, [10, 12])


@pytest.mark.parametrize(
    ("files", "options", "code", "words"),
    [
        ({"a.dcd": 12}, [], 1, ["a.dcd", "12 frames", "at least 30 frames"]),
        ({"a.dcd": 90, "b.xtc": 1}, [], 1, ["b.xtc"]),
        ({"a.dcd": 90}, ["--stride", 0.7], 1, ["a.dcd", "1 ps", "0.7 ps"]),
        ({"a.dcd": 90}, ["--stride", 2, "--every", 2], 2, ["--stride", "--every"]),
        ({"a.dcd": 90}, ["--split", 0.5, 0.1, 0.1], 2, ["sum to 1"]),
        ({"a.dcd": 90}, ["--set", "fractions=[0.8,0.2,0]"], 2, ["nothing to judge the model by", "--hold-out"]),
        ({"a.dcd": 90}, ["--hidden", 0], 2, ["hidden"]),
        ({"a.dcd": 90}, ["--set", "noise"], 2, ["NAME=VALUE", "noise"]),
        ({"a.dcd": 90}, ["--set", "noises=1"], 2, ["no setting noises", "noise", "handed"]),
        ({"a.dcd": 90}, ["--set", "noise=-1"], 2, ["noise", "greater than or equal to 0"]),
        ({"a.dcd": 90}, ["--span", 2], 2, ["span"]),
        ({"a.dcd": 90}, ["--select", "resname LIX"], 1, ["resname LIX"]),
        ({"a.dcd": 90}, ["--resume"], 2, ["nothing to resume"]),
        ({"a.dcd": 90}, ["--init", "none"], 1, ["none"]),
        ({"a.dcd": 90}, ["--hold-out", "a.dcd"], 2, ["at least one trajectory"]),
        ({}, [], 2, ["at least one trajectory"]),
    ],
    ids=lambda value: " ".join(map(str, value)) or "none" if isinstance(value, (list, dict)) else None,
)
def test_bad_input(tmp_path, monkeypatch, files, options, code, words):
    top = write_runs(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    small = SMALL if "--init" not in options else []
    done = called(top, *files, *small, *options, "-o", "m.safetensors")
    assert done.exit_code == code and done.stdout == "" and isinstance(done.exception, SystemExit), done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "m.safetensors").exists()


def test_a_held_out_run_is_enough_to_judge_by(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 90, "b.dcd": 40})
    options = ["--set", "fractions=[0.8,0.2,0]", "--hold-out", tmp_path / "b.dcd", "--epochs", 1]
    done = called(top, tmp_path / "a.dcd", *SMALL, *options, "-o", tmp_path / "m.safetensors")
    assert done.exit_code == 0, done.stderr
    assert load_model(tmp_path / "m.safetensors").provenance["test"]["windows"] > 0


def test_files_of_different_spacing_are_both_named(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 90})
    write_runs(tmp_path, {"half.dcd": 180}, dt=0.5)
    files = [tmp_path / "a.dcd", tmp_path / "half.dcd"]
    done = called(top, *files, *SMALL, "-o", tmp_path / "m.safetensors")
    assert done.exit_code == 1
    assert all(word in done.stderr for word in ("a.dcd are 1 ps", "half.dcd 0.5 ps", "--stride"))
    # With the stride in ps both can be used.
    good = called(top, *files, *SMALL, "--stride", 1, "--epochs", 1, "-o", tmp_path / "m.safetensors")
    assert good.exit_code == 0, good.stderr
    assert [run["every"] for run in load_model(tmp_path / "m.safetensors").provenance["data"]["runs"]] == [1, 2]
