"""Fit an operator to windows of trajectories; lightning does the loop."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from torch.utils.data import DataLoader, Dataset, Sampler
from torch_geometric.data import Batch

from .checkpoint import Model
from .config import TrainSpec
from .errors import UsageError
from .forecast import apply_operator
from .graph import collate

WARMUP = 0.05  # share of all steps
# lightning advertises products and lists absent hardware at this level.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class _Shuffled(Sampler):
    """A new order every epoch that depends on seed and epoch alone, so that a resumed training repeats it."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:  # lightning calls this
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.length, generator=generator).tolist())


class _Module(pl.LightningModule):
    """Loss, optimiser and schedule; the mean squared error over t, nodes and coordinates (section 4.4)."""

    def __init__(self, model: Model, spec: TrainSpec) -> None:
        super().__init__()
        self.network = model.network
        self.model = model
        self.spec = spec

    def _errors(self, batch: Batch):
        out = apply_operator(self.model, batch)
        squared = (out.pos - batch.y.transpose(0, 1)) ** 2  # (T, N, 3)
        return out, squared.mean(dim=(1, 2))  # (T,)

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        out, per_step = self._errors(batch)
        loss = per_step.mean()
        if self.model.spec.operator == "eghno":
            loss = loss + self.model.spec.cut_weight * out.cut_loss
        self.log("train", loss.detach(), prog_bar=True, batch_size=batch.num_graphs)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        per_step = self._errors(batch)[1]
        self.log("F-MSE", per_step[-1], prog_bar=True, batch_size=batch.num_nodes)
        self.log("A-MSE", per_step.mean(), batch_size=batch.num_nodes)

    def configure_optimizers(self):
        spec = self.spec
        optimizer = torch.optim.Adam(self.network.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            warm = WARMUP * total
            if step < warm:
                return (step + 1) / (warm + 1)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, total - warm))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    model: Model,
    train: Dataset,
    validation: Dataset,
    spec: TrainSpec | None = None,
    *,
    work_dir: str | Path,
    resume: bool = False,
    device: str = "auto",
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
        Go on from ``last.ckpt`` in `work_dir`.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Model
        In eval mode, with the training settings and the validation error added to ``provenance["training"]``.

    Raises
    ------
    UsageError
        ``resume`` without a state, or a `work_dir` with the states of another training.
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
    module = _Module(trained, spec)
    best = ModelCheckpoint(work_dir, "best", monitor="F-MSE", save_last=True, enable_version_counter=False)
    callbacks = [best, EarlyStopping("F-MSE", patience=spec.patience), EMAWeightAveraging(decay=spec.ema_decay)]
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    with warnings.catch_warnings():
        # Advice about worker processes, which cost more than they give for graphs of this size.
        warnings.filterwarnings("ignore", message=".*num_workers.*|.*does not have many workers.*")
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else device,
            devices=1,
            max_epochs=spec.max_epochs,
            gradient_clip_val=spec.gradient_clip or None,
            callbacks=callbacks,
            logger=False,
            num_sanity_val_steps=0,
            enable_progress_bar=progress,
            enable_model_summary=False,
            log_every_n_steps=1,
            default_root_dir=work_dir,
        )
        order = _Shuffled(len(train), spec.seed)
        trainer.fit(
            module,
            DataLoader(train, batch_size=spec.batch_size, sampler=order, collate_fn=collate),
            DataLoader(validation, batch_size=spec.batch_size, collate_fn=collate),
            ckpt_path=last if resume else None,
        )
    state = torch.load(best.best_model_path, weights_only=True, map_location="cpu")
    weights = {key.removeprefix("network."): value for key, value in state["state_dict"].items()}
    trained.network.load_state_dict(weights)
    training = {
        **spec.model_dump(),
        "windows": len(train),
        "validation_windows": len(validation),
        "epochs": trainer.current_epoch,
        "validation_f_mse": round(float(best.best_model_score), 5),
    }
    provenance = {**model.provenance, "training": training}
    return dataclasses.replace(trained, network=trained.network.cpu().eval(), provenance=provenance)
