"""Fit an operator to windows of trajectories; lightning does the loop."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import math
import os
import signal
import sys
import time
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from pydantic import ValidationError
from torch.utils.data import DataLoader, Dataset, Sampler
from torch_geometric.data import Batch
from tqdm import tqdm

from .checkpoint import Model, load_model, new_model
from .config import PRESETS, GraphSpec, ModelSpec, TrainSpec, WindowSpec
from .errors import DataError, ModelError, OutputError, UsageError
from .evaluation import Evaluation, Part, frames_per_stride, same_spacing, score
from .forecast import apply_operator, graphs, restored
from .geometry import LocalGeometry
from .graph import GraphBuilder, collate, select_atoms
from .metrics import InternalMotion, PathRegression
from .trajectory import frame_spacing, open_universe
from .windows import MEMORY_LIMIT, Run, TrajectoryWindows, read_runs, segments, split_blocks, window_starts

WARMUP = 0.05  # share of all steps
# lightning advertises products and lists absent hardware at this level.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class _Shuffled(Sampler):
    """A new order every epoch that depends on seed and epoch alone, so that a resumed training repeats it."""

    def __init__(self, data: Dataset, seed: int, at_most: int = 0) -> None:
        self.data, self.length, self.seed, self.epoch = data, len(data), seed, 0  # type: ignore[arg-type]
        self.taken = min(self.length, at_most or self.length)

    def set_epoch(self, epoch: int) -> None:  # lightning calls this
        self.epoch = self.data.epoch = epoch  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return self.taken

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.length, generator=generator)[: self.taken].tolist())


class _Varied(Dataset):
    """Training windows with noise on their input, and later windows of a chain; both follow from seed and epoch."""

    def __init__(self, windows: Dataset, spec: TrainSpec) -> None:
        if (spec.noise or spec.unroll > 1) and not hasattr(windows, "sample"):
            raise UsageError(
                f"noise and unroll change windows of runs: give TrajectoryWindows, found {type(windows).__name__}"
            )
        self.windows, self.spec, self.epoch = windows, spec, 0
        self.items = list(range(len(windows)))  # type: ignore[arg-type]
        if spec.unroll > 1:
            self.items = [item for item in self.items if windows.ahead(item, spec.unroll - 1) is not None]
            if not self.items:
                raise DataError(
                    f"no stretch of the training runs is as long as unroll = {spec.unroll} windows; lower it, or use "
                    "longer runs"
                )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k: int) -> Data:
        rng = np.random.default_rng((self.spec.seed, self.epoch, k))
        if self.spec.noise:
            data = self.windows.sample(self.items[k], functools.partial(rng.normal, 0.0, self.spec.noise))
        else:
            data = self.windows[self.items[k]]
        if self.spec.unroll > 1:
            data.item = self.items[k]
        return data


class _Diverged(Exception):
    """The loss is no number any more."""


class _Epochs(Callback):
    """One line per epoch on stderr, and a bar inside the epoch where someone watches."""

    best = math.inf

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began, self.loss, self.seen = time.monotonic(), 0.0, 0
        self.bar = tqdm(total=trainer.num_training_batches, unit="batch", leave=False, disable=not sys.stderr.isatty())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.loss, self.seen = self.loss + float(outputs["loss"]), self.seen + 1
        self.bar.update()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.bar.close()
        value = float(trainer.callback_metrics["F-MSE"])
        self.best = min(self.best, value)
        if trainer.is_global_zero:
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {self.loss / max(self.seen, 1):.4g}  "
                f"validation F-MSE {value:.4g} (best {self.best:.4g})  {time.monotonic() - self.began:.1f} s",
                file=sys.stderr,
                flush=True,
            )

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best = state["best"]


class _Module(pl.LightningModule):
    """Loss, optimiser and schedule; the mean squared error over t, nodes and coordinates (section 4.4)."""

    def __init__(self, model: Model, spec: TrainSpec, train: Dataset) -> None:
        super().__init__()
        self.network = model.network
        self.model = model
        self.spec = spec
        weights = torch.ones(model.window.n_times)  # (T,)
        if spec.step_weights == "static":
            weights = 1 / _static_errors(train).clamp(min=1e-8)  # (T,)
        self.register_buffer("step_weights", weights / weights.mean(), persistent=False)

    def _errors(self, batch: Batch):
        out = apply_operator(self.model, batch)
        squared = (out.pos - batch.y.transpose(0, 1)) ** 2  # (T, N, 3)
        return out, squared.mean(dim=(1, 2))  # (T,)

    def training_step(self, batch: Batch, number: int) -> torch.Tensor:
        if self.spec.unroll > 1:
            batch = self._further(batch, number)
        out, per_step = self._errors(batch)
        loss = (self.step_weights * per_step).mean()
        if self.spec.pair_weight:
            loss = loss + self.spec.pair_weight * _pair_error(out.pos, batch.y.transpose(0, 1), batch.edge_index)
        if self.model.spec.operator == "eghno":
            loss = loss + self.model.spec.cut_weight * out.cut_loss
        self._require_finite(loss, f"the loss of batch {number + 1}")
        self.log("train", loss.detach(), prog_bar=True, batch_size=batch.num_graphs)
        return loss

    def _further(self, batch: Batch, number: int) -> Batch:
        """The batch some windows later: the input is what the model makes of the windows before."""
        # Asked of the trainer: what a module holds is copied with its weights.
        windows, device = self.trainer.train_dataloader.dataset.windows, batch.pos.device
        rng = np.random.default_rng((self.spec.seed, self.current_epoch, number))
        steps = int(rng.integers(self.spec.unroll))
        if not steps:
            return batch
        items = batch.item.tolist()
        places = [(windows.runs[r], start) for r, start in (windows.index[item] for item in items)]
        runs = [run for run, _ in places]
        boxes = [None if run.boxes is None else run.boxes[start] for run, start in places]  # kept, as in a forecast
        frames = [windows.history(item) for item in items]  # B of (n_input, N, 3)
        starts = [past[-1:] for past in frames]  # B of (1, N, 3)
        last = batch
        for step in range(steps):
            with torch.no_grad():
                pos = apply_operator(self.model, last).pos.cpu().double().numpy()  # (T, N, 3)
            parts = np.split(pos, last.ptr[1:-1].tolist(), axis=1)  # B of (T, N, 3)
            self._require_finite(torch.tensor(np.abs(pos).max()), f"chained window {step + 1} of batch {number + 1}")
            for builder in {id(run.builder): run.builder for run in runs}.values():
                here = [k for k, run in enumerate(runs) if run.builder is builder]
                some = [np.stack([x[k] for k in here]) for x in (parts, starts)]  # (B, T, N, 3), (B, 1, N, 3)
                for k, path in zip(here, restored(self.model, builder, *some), strict=True):
                    frames[k] = np.concatenate([frames[k], path])[-len(frames[k]) :]  # (n_input, N, 3)
            last = graphs(self.model, [run.builder for run in runs], frames, boxes).to(device)
        targets = [windows[windows.ahead(item, steps)].y for item in items]  # B of (N, T, 3)
        last.y = torch.cat(targets).to(device)  # (N, T, 3)
        return last

    def validation_step(self, batch: Batch, number: int) -> None:
        per_step = self._errors(batch)[1]
        self._require_finite(per_step.mean(), f"the validation error of batch {number + 1}")
        self.log("F-MSE", per_step[-1], prog_bar=True, batch_size=batch.num_nodes)
        self.log("A-MSE", per_step.mean(), batch_size=batch.num_nodes)

    def _require_finite(self, value: torch.Tensor, what: str) -> None:
        if not torch.isfinite(value):
            raise _Diverged(f"{what} in epoch {self.current_epoch + 1} is {value.item()}")

    def configure_optimizers(self):
        spec = self.spec
        optimizer = torch.optim.Adam(self.network.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
        if spec.schedule == "constant":
            return optimizer
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            warm = WARMUP * total
            if step < warm:
                return (step + 1) / (warm + 1)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, total - warm))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _static_errors(windows: Dataset, at_most: int = 256) -> torch.Tensor:
    """Mean squared error of the standing start frame at every step (T,), in evenly spread windows."""
    length = len(windows)  # type: ignore[arg-type]
    chosen = [windows[k] for k in range(0, length, -(-length // at_most))]
    return torch.stack([(data.y - data.pos[:, None]).square().mean(dim=(0, 2)) for data in chosen]).mean(0)  # (T,)


def _pair_error(predicted: torch.Tensor, true: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the distances along the edges, of positions (T, N, 3)."""
    row, col = edges[:, edges[0] < edges[1]]
    lengths = [torch.linalg.vector_norm(x[:, row] - x[:, col], dim=-1) for x in (predicted, true)]  # 2 of (T, E)
    return (lengths[0] - lengths[1]).square().mean()


def fit(
    model: Model,
    train: Dataset,
    validation: Dataset,
    spec: TrainSpec | None = None,
    *,
    work_dir: str | Path,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    precision: str = "32-true",
    progress: bool = True,
) -> Model:
    """Train a model and return the state with the lowest validation F-MSE.

    Parameters
    ----------
    model : Model
        Where to start: untrained from :func:`egno_md.checkpoint.new_model`, or trained, to fine-tune it. It is not
        changed.
    train, validation : TrajectoryWindows
        Windows that share no frame; see :func:`egno_md.windows.split_blocks`. Any dataset of graphs with targets
        ``y`` (N, T, 3) will do.
    spec : TrainSpec, optional
        How; Adam, a warm-up and a cosine schedule over ``max_epochs``, an exponential moving average of the weights.
    work_dir : path
        Folder of the training states (``last.ckpt`` after every epoch, ``best.ckpt``).
    resume : bool
        Go on from ``last.ckpt`` in `work_dir`. The epoch that was interrupted is repeated, in the same order.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    devices, nodes : int
        GPUs (or processes on a CPU) per node, and nodes.
    precision : str
        As lightning names it: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``.
    progress : bool
        A line per epoch on stderr.

    Returns
    -------
    Model
        In eval mode, with the training settings and the validation error added to ``provenance["training"]``.

    Raises
    ------
    UsageError
        ``resume`` without a state, or a `work_dir` with the states of another training.
    ModelError
        The loss is no number any more. The message says in which batch, and where the last good state is.
    OutputError
        A state cannot be written; those of earlier epochs are kept.
    KeyboardInterrupt
        Ctrl-C; the states of the epochs that were finished are kept.
    """
    spec = spec or TrainSpec()
    work_dir = Path(work_dir)
    last = work_dir / "last.ckpt"
    if resume and not last.exists():
        raise UsageError(f"nothing to resume: {last} does not exist; start without resume")
    if last.exists() and not resume:
        raise UsageError(f"{work_dir} holds an earlier training; pass resume=True, or another work_dir")
    pl.seed_everything(spec.seed, workers=True, verbose=False)
    trained = dataclasses.replace(model, network=copy.deepcopy(model.network).train())
    varied = _Varied(train, spec)
    module = _Module(trained, spec, varied)
    best = ModelCheckpoint(work_dir, "best", monitor="F-MSE", save_last=True, enable_version_counter=False)
    callbacks = [best, EarlyStopping("F-MSE", patience=spec.patience), EMAWeightAveraging(decay=spec.ema_decay)]
    if progress:
        callbacks.append(_Epochs())
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        # Advice about worker processes, which cost more than they give for graphs of this size.
        warnings.filterwarnings("ignore", message=".*num_workers.*|.*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # looked at above
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else device,
            devices=devices,
            num_nodes=nodes,
            precision=precision,
            max_epochs=spec.max_epochs,
            gradient_clip_val=spec.gradient_clip or None,
            callbacks=callbacks,
            logger=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            default_root_dir=work_dir,
        )
        order = _Shuffled(varied, spec.seed, spec.epoch_windows)
        loaders = (
            DataLoader(varied, batch_size=spec.batch_size, sampler=order, collate_fn=collate),
            DataLoader(validation, batch_size=spec.batch_size, collate_fn=collate),
        )
        try:
            if not (resume and _stopped_early(last)):
                trainer.fit(module, *loaders, ckpt_path=last if resume else None)
        except _Diverged as error:
            raise ModelError(f"the training diverged: {error}; {_last_good(trained, work_dir)}") from None
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            raise OutputError(
                f"cannot write the training state in {work_dir} ({error}); the last whole state is kept: make room "
                "and go on with resume (--resume)"
            ) from error
        except SystemExit:  # what lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        finally:
            signal.signal(signal.SIGINT, handler)  # lightning leaves it ignored
    state = torch.load(work_dir / "best.ckpt", weights_only=True, map_location="cpu")
    trained.network.load_state_dict(_weights(state))
    training = {
        **spec.model_dump(),
        "windows": len(train),
        "validation_windows": len(validation),
        "epochs": trainer.current_epoch or int(state["epoch"]) + 1,
        "validation_f_mse": round(_best_score(state), 5),
    }
    provenance = {**model.provenance, "training": training}
    return dataclasses.replace(trained, network=trained.network.cpu().eval(), provenance=provenance)


def _weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("network."): value for key, value in state["state_dict"].items()}


def _callback_state(state: dict[str, Any], name: str) -> dict[str, Any]:
    return next(value for key, value in state["callbacks"].items() if key.startswith(name))


def _best_score(state: dict[str, Any]) -> float:
    return float(_callback_state(state, "ModelCheckpoint")["best_model_score"])


def _stopped_early(last: Path) -> bool:
    """Whether a training had come to its end by early stopping; lightning would run another epoch."""
    stopping = _callback_state(torch.load(last, weights_only=True, map_location="cpu"), "EarlyStopping")
    return stopping["wait_count"] >= stopping["patience"]


def _last_good(model: Model, work_dir: Path) -> str:
    """Save the best state so far as a model, and say what can be done with it."""
    cure = "lower the learning rate (--lr) or clip the gradients"
    best = work_dir / "best.ckpt"
    if not best.exists():
        return f"no epoch was finished: {cure}, and begin again"
    state = torch.load(best, weights_only=True, map_location="cpu")
    network = copy.deepcopy(model.network).cpu()
    network.load_state_dict(_weights(state))
    target = work_dir / "best.safetensors"
    dataclasses.replace(model, network=network.eval()).save(target, force=True)
    return (
        f"the best state so far (epoch {state['epoch'] + 1}, validation F-MSE {_best_score(state):.4g}) is kept in "
        f"{target}: {cure}, and go on from it in another folder (--init {target})"
    )


# -------------------------------------------------------------------------------------------------- from files to model


@dataclass(frozen=True)
class System:
    """Files of one molecular system.

    Attributes
    ----------
    topology : Path
    trajectories : tuple of Path
        Each is a run of its own, split by blocks of time into train, validation and test.
    hold_out : tuple of Path
        Runs that are kept for the test as a whole.
    name : str
    """

    topology: Path
    trajectories: tuple[Path, ...]
    hold_out: tuple[Path, ...] = ()
    name: str = "system"


def read_manifest(path: str | os.PathLike) -> list[System]:
    """Systems from a TOML file; file names are relative to it.

    Each system is a table ``[[system]]`` with ``topology`` and ``trajectories``, and, if wanted, ``hold_out`` (runs
    for the test) and ``name``.

    Raises
    ------
    DataError
        The file cannot be read, or holds something else.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"cannot read the manifest {path}: {error}") from error
    tables = content.pop("system", None)
    if content or not isinstance(tables, list) or not tables:
        raise DataError(f"the manifest {path} must hold tables [[system]] and nothing else; found {sorted(content)}")
    systems = []
    for k, table in enumerate(tables):
        known = {"topology", "trajectories", "hold_out", "name"}
        if set(table) - known or not {"topology", "trajectories"} <= set(table):
            raise DataError(
                f"system {k + 1} of {path} has the keys {sorted(table)}; topology and trajectories are needed, "
                "hold_out and name are known"
            )
        files = {}
        for key in ("trajectories", "hold_out"):
            names = table.get(key, [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise DataError(f"system {k + 1} of {path}: {key} must be a list of file names, found {names!r}")
            files[key] = tuple(path.parent / name for name in names)
        name = str(table.get("name", Path(table["topology"]).stem))
        systems.append(System(path.parent / table["topology"], **files, name=name))
    return systems


def default_graph(systems: Sequence[System], select: str, *, cutoff: float = 10.0) -> GraphSpec:
    """Graph and features for a selection: residues for C-alpha atoms, else elements and the atom names that occur."""
    if select == "ca":
        return GraphSpec(select=select, cutoff=cutoff, edge_features=("rbf", "hop", "chain"))
    names: set[str] = set()
    for system in systems:
        universe = open_universe(system.topology, (system.trajectories or system.hold_out)[:1])
        names |= set(map(str, select_atoms(universe, select).names))
    return GraphSpec(
        select=select,
        cutoff=cutoff,
        node_features=("speed", "element", "atom_name"),
        edge_features=("rbf", "hop", "bond"),
        atom_names=tuple(sorted(names)),
    )


@dataclass(frozen=True)
class Data:
    """Windows for a training, split.

    Attributes
    ----------
    train, validation : TrajectoryWindows
    test : list of Part
    geometry, regression : dict of str to LocalGeometry, PathRegression
        Of every molecule in the training part, by its builder's identity.
    record : dict
        Files, frames and split, for the provenance.
    """

    train: TrajectoryWindows
    validation: TrajectoryWindows
    test: list[Part]
    geometry: dict[str, LocalGeometry]
    regression: dict[str, PathRegression]
    record: dict[str, Any]


def common_stride(systems: Sequence[System], *, every: int = 1, dt: float | None = None) -> float:
    """Spacing of the frames of all files, times `every`, in ps.

    Raises
    ------
    DataError
        Two files differ; both are named.
    """
    spacing = None
    for system in systems:
        for file in (*system.trajectories, *system.hold_out):
            spacing = same_spacing(spacing, (frame_spacing(open_universe(system.topology, [file], dt=dt)), str(file)))
    if spacing is None:
        raise UsageError("no trajectory was given")
    if spacing[0] <= 0:
        raise DataError(f"{spacing[1]} has one frame and says no spacing; training needs runs of many frames")
    return float(f"{spacing[0] * every:.6g}")  # times in DCD headers are off by rounding


def load_data(
    systems: Sequence[System],
    graph: GraphSpec,
    window: WindowSpec,
    *,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    blocks: int = 1,
    every: int | None = None,
    dt: float | None = None,
    folder: Path | None = None,
    limit: int = MEMORY_LIMIT,
    validation_windows: int = 500,
) -> Data:
    """Read the runs of some systems and split their windows so that no frame is shared.

    Parameters
    ----------
    systems : sequence of System
    graph, window : GraphSpec, WindowSpec
    fractions : sequence of three float
        Shares of train, validation and test in every run; where runs are held out, the test's share goes to train.
    blocks : int
        See :func:`egno_md.windows.split_blocks`.
    every : int, optional
        Frames per stride, to be checked against the times in the files.
    dt : float, optional
        Spacing of the frames in ps, where the headers are wrong.
    folder, limit
        See :func:`egno_md.windows.read_runs`.
    validation_windows : int
        Of more, evenly spread ones are used.

    Raises
    ------
    DataError
        Too few frames (the message says how many are needed), or files that do not fit.
    """
    held = any(system.hold_out for system in systems)
    shares = (fractions[0] + fractions[2], fractions[1], 0.0) if held else tuple(fractions)
    runs: list[Run] = []
    chosen: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
    test: list[Part] = []
    geometry: dict[str, LocalGeometry] = {}
    regression: dict[str, PathRegression] = {}
    entries = []
    for system in systems:
        builder: GraphBuilder | None = None
        own: list[tuple[Run, np.ndarray, np.ndarray]] = []
        for file in (*system.trajectories, *system.hold_out):
            universe = open_universe(system.topology, [file], dt=dt)
            atoms = select_atoms(universe, graph.select)
            stride = frames_per_stride(universe, window.stride_ps, every, what="training")
            builder = builder or GraphBuilder(atoms, graph)
            name = f"{system.name}-{file.name}"
            (run,) = read_runs(atoms, builder, stride, name=name, folder=folder, limit=limit)
            n = len(run.positions)
            entry = {"system": system.name, "file": file.name, "frames": n, "every": stride, "atoms": len(atoms)}
            if file in system.hold_out:
                starts = np.arange(n)[window_starts(n, window, stride).start : window_starts(n, window, stride).stop]
                if not len(starts):
                    raise DataError(f"{file} has {n} frames, too few for a window of the test")
                own.append((run, np.zeros(0, int), starts))
                entries.append({**entry, "part": "test"})
                continue
            try:
                parts = split_blocks(n, window, every=stride, fractions=shares, blocks=blocks)
            except DataError as error:
                raise DataError(f"{file}: {error}") from error
            runs.append(run)
            chosen["train"].append(parts[0])
            chosen["validation"].append(parts[1])
            own.append((run, parts[0], parts[2]))
            entry |= {"part": "all" if shares[2] else "train, validation"}
            if shares[2] and blocks == 1:
                entry["test_from"] = segments(parts[2], window, stride)[0][0]
            entries.append(entry)
        training = [run.positions[a:b] for run, starts, _ in own for a, b in segments(starts, window, run.every)]
        # A system that is only tested has no training part: its baselines then come from the test's own first half.
        stride = own[0][0].every
        motion = InternalMotion.fit(training or [run.positions[: len(run.positions) // 2] for run, _, _ in own], stride)
        if training and builder is not None:
            geometry[builder.identity] = LocalGeometry.fit(training, builder.bonds)
            if window.velocity == "backward":  # it is for windows that know where they come from
                regression[builder.identity] = PathRegression.fit(training, motion.mean, window.targets, stride)
        test += [Part(run, starts, motion) for run, _, starts in own if len(starts)]
    if not runs:
        raise UsageError("every trajectory is held out; none is left to train on")
    thin = -(-sum(map(len, chosen["validation"])) // validation_windows)
    return Data(
        TrajectoryWindows(runs, window, chosen["train"]),
        TrajectoryWindows(runs, window, [starts[::thin] for starts in chosen["validation"]]),
        test,
        geometry,
        regression,
        {"runs": entries, "split": "blocks of time, no frame shared", "fractions": list(shares), "blocks": blocks},
    )


def choose_prior(data: Data, window: WindowSpec) -> dict[str, float]:
    """A-MSE on the validation windows of both priors by themselves, the better one first.

    A regression of runs that were sampled well is the better start; where the run has moved on to another state since,
    it is worse than the standing frame.
    """
    errors: dict[str, list[float]] = {"static": [], "regression": []}
    ahead = np.asarray(window.targets, float)  # (T,)
    for sample in data.validation:
        start, velocity, true = (x.double().numpy() for x in (sample.pos, sample.vel, sample.y))
        path = data.regression[sample.identity].path(start[None], velocity[None], ahead)[0]  # (T, N, 3)
        errors["static"].append(float(np.mean((true - start[:, None]) ** 2)))
        errors["regression"].append(float(np.mean((true.swapaxes(0, 1) - path) ** 2)))
    means = {name: round(float(np.mean(values)), 5) for name, values in errors.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def train(
    model: Model,
    data: Data,
    spec: TrainSpec,
    *,
    work_dir: str | Path,
    resume: bool = False,
    **options: Any,
) -> tuple[Model, Evaluation]:
    """:func:`fit`, then the errors on the test windows beside the baselines; all of it goes into the provenance.

    Parameters
    ----------
    model, spec, work_dir, resume
        See :func:`fit`. What is trained is written to ``training.json`` in `work_dir`, and a resumed training must be
        the same.
    data : Data
        From :func:`load_data`.
    **options
        Of :func:`fit`.

    Raises
    ------
    UsageError
        A resumed training with other settings or files.
    """
    work_dir = Path(work_dir)
    plan = {
        "graph": model.graph.model_dump(mode="json"),
        "window": model.window.model_dump(mode="json"),
        "model": model.spec.model_dump(mode="json"),
        "training": spec.model_dump(mode="json"),
        "data": data.record,
    }
    record = work_dir / "training.json"
    if resume and record.exists():
        before = json.loads(record.read_text())
        changed = [
            f"{group} {key} (then {before[group].get(key)!r}, now {value!r})"
            for group, values in json.loads(json.dumps(plan)).items()
            for key, value in values.items()
            if before[group].get(key) != value
        ]
        if changed:
            raise UsageError(
                f"the training in {work_dir} cannot be resumed with other settings: {'; '.join(changed)}; give the "
                "same ones, or begin a new one in another folder"
            )
    elif not (work_dir / "last.ckpt").exists():
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(plan, indent=1))
        except OSError as error:
            raise OutputError(f"cannot write in {work_dir} ({error}); choose another work folder") from error
    if model.spec.keep_bonds:
        model = dataclasses.replace(model, geometry={**model.geometry, **data.geometry})
    if model.spec.prior == "regression":
        model = dataclasses.replace(model, regression={**model.regression, **data.regression})
    trained = fit(model, data.train, data.validation, spec, work_dir=work_dir, resume=resume, **options)
    result = score(trained, data.test, seed=spec.seed, device=options.get("device", "auto"))
    history = [*model.provenance.get("history", [])]
    if "training" in model.provenance:
        history.append({k: model.provenance[k] for k in ("data", "training", "test") if k in model.provenance})
    trained.provenance = {
        **{k: v for k, v in trained.provenance.items() if k not in ("data", "test", "history")},
        "data": data.record,
        "test": {
            "windows": result.n_windows,
            "mse_A2_per_step": {name: [round(float(e), 5) for e in values] for name, values in result.errors.items()},
            "skill_per_step": [round(float(g), 4) for g in result.skill],
            "skill_interval": [[None if np.isnan(e) else round(float(e), 4) for e in g] for g in result.skill_interval],
            "verdict": result.verdict,
        },
        **({"history": history} if history else {}),
    }
    return trained, result


def system_of_files(topology: Path, trajectories: Sequence[Path], hold_out: Sequence[Path] = ()) -> System:
    """One system; a file that is in both lists is held out.

    Raises
    ------
    UsageError
        No trajectory is left to train on.
    """
    held = {path.resolve() for path in hold_out}
    kept = tuple(path for path in trajectories if path.resolve() not in held)
    if not kept:
        raise UsageError("give at least one trajectory to train on beside those that are held out")
    return System(topology, kept, tuple(hold_out), topology.stem)


def train_files(
    systems: Sequence[System],
    *,
    work_dir: str | Path,
    resume: bool = False,
    name: str = "unnamed",
    init: str | os.PathLike | Model | None = None,
    select: str | None = None,
    cutoff: float | None = None,
    stride: float | None = None,
    every: int | None = None,
    dt: float | None = None,
    n_times: int | None = None,
    span: int | None = None,
    history: str | None = None,
    sampling: str | None = None,
    operator: str | None = None,
    preset: str | None = None,
    hidden: int | None = None,
    layers: int | None = None,
    epochs: int | None = None,
    epoch_windows: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    patience: int | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    blocks: int = 1,
    limit: int = MEMORY_LIMIT,
    **options: Any,
) -> tuple[Model, Evaluation]:
    """From files to a judged model; what ``egno-md train`` does. What is None is the preset's, or the model's.

    Parameters
    ----------
    systems : sequence of System
    work_dir, resume
        See :func:`fit`.
    name : str
        Of the new model.
    init : str, path-like or Model, optional
        A model to fine-tune. It brings its selection, window and operator.
    select, cutoff
        See :class:`egno_md.GraphSpec`.
    stride, every
        Time between two frames of the model in ps, or that many frames of the files.
    n_times, span, sampling
        See :class:`egno_md.WindowSpec`.
    history : {"state", "trajectory"}
    operator, hidden, layers
        See :class:`egno_md.ModelSpec`.
    preset : {"default", "paper"}
        With "default" and runs of one molecule, the prior is the one with the lower validation error, see
        :func:`choose_prior`.
    epochs, epoch_windows, batch_size, lr, patience, seed
        See :class:`egno_md.TrainSpec`.
    settings : mapping of str to value, optional
        Any other field of :class:`egno_md.ModelSpec` or :class:`egno_md.TrainSpec`, such as ``{"noise": 0.1}``.
    split, blocks, dt, limit
        See :func:`load_data`.
    **options
        ``device``, ``devices``, ``nodes``, ``precision`` and ``progress`` of :func:`fit`.

    Raises
    ------
    UsageError, DataError, ModelError, OutputError
        See :func:`load_data` and :func:`fit`.
    """
    if any(share < 0 for share in split) or min(split[:2]) <= 0 or abs(sum(split) - 1) > 1e-6:
        raise UsageError(
            f"split must be three shares that sum to 1, train and validation above 0; found {tuple(split)}"
        )
    if stride is not None and every is not None:
        raise UsageError("give the stride in ps (--stride) or in frames (--every), not both")
    if every is not None and every < 1:
        raise UsageError(f"every must be at least 1, found {every}")
    try:
        model_spec, training = PRESETS[preset or "default"]
        settings = dict(settings or {})
        for_model = {key: settings.pop(key) for key in list(settings) if key in ModelSpec.model_fields}
        if unknown := set(settings) - set(TrainSpec.model_fields):
            raise UsageError(
                f"there is no setting {', '.join(sorted(unknown))}; known are "
                f"{', '.join([*ModelSpec.model_fields, *TrainSpec.model_fields])}"
            )
        given = {
            "seed": seed,
            "max_epochs": epochs,
            "epoch_windows": epoch_windows,
            "batch_size": batch_size,
            "learning_rate": lr,
            "patience": patience,
        }
        training = TrainSpec(**{**training.model_dump(), **_given(given), **settings})
        if init is not None:
            own = dict(select=select, cutoff=cutoff, window=n_times, span=span, history=history, sampling=sampling)
            own |= dict(operator=operator, preset=preset, hidden=hidden, layers=layers, stride=stride) | for_model
            if found := _given(own):
                raise UsageError(
                    f"a model to fine-tune brings its own {', '.join(found)}: leave out --{' --'.join(found)}"
                )
            model = load_model(init)
        else:
            graph = default_graph(systems, select or "ca", cutoff=cutoff or 10.0)
            n_times = 8 if n_times is None else n_times
            values = {"n_times": n_times, "span": span, "sampling": sampling}
            window = WindowSpec(
                stride_ps=common_stride(systems, every=every or 1, dt=dt) if stride is None else stride,
                history=n_times if history == "trajectory" else 1,
                **_given(values),
            )
            given = {"operator": operator, "hidden": hidden, "layers": layers}
            model_spec = ModelSpec(**{**model_spec.model_dump(), **_given(given), **for_model})
            # With fewer points in time there are fewer modes (section 4.2).
            model_spec = model_spec.model_copy(update={"modes": min(model_spec.modes, window.n_times // 2 + 1)})
            model = new_model(graph, window, model_spec, seed=seed)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, wrong['loc'])) or 'window'}: {wrong['msg']}") from error
    work_dir = Path(work_dir)
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the work folder {work_dir} ({error}); choose another one (--work)") from error
    data = load_data(
        systems, model.graph, model.window, fractions=split, blocks=blocks, every=every, dt=dt, folder=work_dir,
        limit=limit,
    )  # fmt: skip
    if init is None and preset != "paper" and "prior" not in for_model and _one_molecule(data, model.window):
        errors = choose_prior(data, model.window)
        data.record["prior_validation_a_mse"] = errors
        model = dataclasses.replace(model, spec=model.spec.model_copy(update={"prior": next(iter(errors))}))
    return train(
        dataclasses.replace(model, name=name), data, training, work_dir=work_dir, resume=resume, **options
    )  # fmt: skip


def _one_molecule(data: Data, window: WindowSpec) -> bool:
    """Whether a prior can be chosen: of several molecules a model is made that has to work on others too."""
    molecules = {run.builder.identity for run in data.train.runs}
    return len(molecules) == 1 and window.history == 1 and window.velocity == "backward"


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
