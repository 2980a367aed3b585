"""What a training says of every epoch."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.utils.data import Dataset

from ..errors import counted
from ..progress import EVERY, Progress
from .limit import BACKWARD, Thinned
from .reference import listed

#: The error of a molecule's last frame without its rigid motion.
SHAPE = "superposed F-MSE"

#: Seconds after which the first epoch says how long it takes, where nobody watches a bar.
FIRST = 5.0


class Epochs(Callback):
    """What every look at the validation windows found, a line of it on stderr, and the end of the time that was given.

    Beside the validation error stand those of forecasts without a network: a loss that falls is no sign that anything
    was learned. The loss of an operator that draws has no such measure. The first process alone speaks, with a bar
    inside the epoch where someone watches.

    `until` is the end of the time, as ``time.monotonic`` has it. With `enough` an epoch is cut short where another step
    and a look at the validation windows would not fit into it; it is judged and saved as a whole one is.
    """

    def __init__(
        self, references: Mapping[str, float], standing: float | None, judged: str, progress: bool,
        until: float, enough: bool, validation: Dataset,
    ) -> None:  # fmt: skip
        self.judged, self.beside = judged, f"; {listed(references)}" if judged == "F-MSE" else ""
        self.standing = standing
        self.progress, self.until, self.enough = progress, until, enough and until < math.inf
        self.history: list[dict[str, float]] = []
        # How many of the validation windows there are, where there is no time for all of them.
        self.looked_at = len(validation) if isinstance(validation, Thinned) else None
        self.began = self.part = time.monotonic()
        self.before, self.spent = 0.0, False  # seconds of earlier parts; whether the time is up
        self.steps: deque[float] = deque(maxlen=20)  # seconds of the last ones: the very first compile, or record
        self.looking: float | None = None  # seconds of the last look at the validation windows

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not self.history or self.history[-1].get("windows") == self.looked_at:
            return
        # What an earlier part was judged on are other windows: its errors are not to be compared with those to come.
        for callback in trainer.callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.monitor:
                callback.best_model_score, callback.best_k_models, callback.kth_best_model_path = None, {}, ""
            elif isinstance(callback, EarlyStopping):
                callback.best_score, callback.wait_count = torch.tensor(math.inf), 0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began, self.loss, self.seen = time.monotonic(), 0.0, 0
        shown = self.progress and trainer.is_global_zero
        what = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        first = EVERY
        if not self.steps:  # the first epoch of this part, which is waited for
            first = FIRST
            if shown:
                print(
                    f"training   {counted(trainer.train_dataloader.dataset.taken, 'window')} an epoch, judged on "
                    f"{module.validation_windows}; a line after each",
                    file=sys.stderr,
                    flush=True,
                )
        batches = int(trainer.num_training_batches)
        self.bar = Progress(what, "batches", batches, shown=shown, first=first).__enter__()
        self.batch = time.monotonic()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.loss, self.seen = self.loss + module.last_loss, self.seen + 1
        self.bar.update()
        now = time.monotonic()
        self.steps.append(now - self.batch)
        self.batch, step = now, max(self.steps)
        # An epoch that is not judged is not saved either.
        if self.enough and not (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch:
            looking = self.looking
            if looking is None:
                looking = step / BACKWARD * sum(trainer.num_val_batches)
            over = now + step + looking > self.until
            trainer.should_stop |= trainer.strategy.reduce_boolean_decision(over, all=False)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.look = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.looking = time.monotonic() - self.look

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Whoever goes on from an epoch that may have been cut short begins the next one."""
        if self.enough:
            done = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            data = trainer.train_dataloader.dataset
            whole = -(-data.whole // data.spec.batch_size)
            done["is_last_batch"] = True
            done["current"] = {name: max(count, whole) for name, count in done["current"].items()}

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.bar.__exit__()
        if (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch:
            return
        now = time.monotonic()
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        entry = {"epoch": trainer.current_epoch + 1, "seconds": round(self.before + now - self.part, 3), **found}
        if self.looked_at is not None:
            entry["windows"] = self.looked_at
        self.history.append(entry)
        # The state of this epoch is saved by a later callback.
        self.spent = now > self.until or self.enough and trainer.should_stop
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(trainer.should_stop or self.spent, all=False)
        if trainer.is_global_zero and self.progress:
            best = min(entry[self.judged] for entry in self.comparable)
            shape = f"; superposed {found[SHAPE]:.4g} (standing still {self.standing:.4g})" if SHAPE in found else ""
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {self.loss / max(self.seen, 1):.4g}  "
                f"validation {self.judged} {found[self.judged]:.4g} (best {best:.4g}{self.beside}){shape}  "
                f"{now - self.began:.1f} s",
                file=sys.stderr,
                flush=True,
            )

    @property
    def comparable(self) -> list[dict[str, float]]:
        """What was found on the same validation windows as the last time."""
        return [entry for entry in self.history if entry.get("windows") == self.history[-1].get("windows")]

    @property
    def shape(self) -> tuple[float, float] | None:
        """The superposed errors of the best state and of the standing frame."""
        if self.standing is None:
            return None
        return min(self.comparable, key=lambda entry: entry[self.judged])[SHAPE], self.standing

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = list(state["history"])
        self.before = self.history[-1]["seconds"] if self.history else 0.0
