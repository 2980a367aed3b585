"""Fit an operator to windows of trajectories; lightning does the loop."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from ..errors import DataError, ModelError, OutputError, UsageError
from ..forecast.chain import restored
from ..forecast.model import Model
from ..forecast.operator import apply_operator, graphs
from ..graph.graph import Graph, collate
from ..specs import TrainSpec

WARMUP = 0.05  # share of all steps


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

    def __getitem__(self, k: int) -> Graph:
        rng = np.random.default_rng((self.spec.seed, self.epoch, k))
        if self.spec.noise:
            graph = self.windows.sample(self.items[k], functools.partial(rng.normal, 0.0, self.spec.noise))
        else:
            graph = self.windows[self.items[k]]
        return graph._replace(item=torch.tensor([self.items[k]])) if self.spec.unroll > 1 else graph


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

    def _errors(self, batch: Graph):
        out = apply_operator(self.model, batch)
        squared = (out.pos - batch.y.transpose(0, 1)) ** 2  # (T, N, 3)
        return out, squared.mean(dim=(1, 2))  # (T,)

    def training_step(self, batch: Graph, number: int) -> torch.Tensor:
        if self.spec.unroll > 1:
            batch = self._further(batch, number)
        out, per_step = self._errors(batch)
        loss = (self.step_weights * per_step).mean()
        if self.spec.pair_weight:
            loss = loss + self.spec.pair_weight * _pair_error(out.pos, batch.y.transpose(0, 1), batch.edge_index)
        if self.model.spec.operator == "eghno":
            loss = loss + self.model.spec.cut_weight * out.cut_loss
        self._require_finite(loss, f"the loss of batch {number + 1}")
        self.log("train", loss.detach(), prog_bar=True, batch_size=batch.n_graphs)
        return loss

    def _further(self, batch: Graph, number: int) -> Graph:
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
        return last._replace(y=torch.cat(targets).to(device))  # (N, T, 3)

    def validation_step(self, batch: Graph, number: int) -> None:
        per_step = self._errors(batch)[1]
        self._require_finite(per_step.mean(), f"the validation error of batch {number + 1}")
        self.log("F-MSE", per_step[-1], prog_bar=True, batch_size=batch.n_nodes)
        self.log("A-MSE", per_step.mean(), batch_size=batch.n_nodes)

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
        Windows that share no frame; see :func:`egno_md.graph.windows.split_blocks`. Any dataset of graphs with targets
        ``y`` (N, T, 3) will do, be they :class:`~egno_md.graph.Graph` or ``torch_geometric.data.Data``.
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
