"""What a training says of every epoch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from .reference import listed

#: The error of a molecule's last frame without its rigid motion.
SHAPE = "superposed F-MSE"


class Epochs(Callback):
    """What every look at the validation windows found, a line of it on stderr, and the end of the time that was given.

    Beside the validation error stand those of forecasts without a network: a loss that falls is no sign that anything
    was learned. The loss of an operator that draws has no such measure. The first process alone speaks, with a bar
    inside the epoch where someone watches.
    """

    def __init__(
        self, references: Mapping[str, float], standing: float | None, judged: str, progress: bool,
        minutes: float | None,
    ) -> None:  # fmt: skip
        self.judged, self.beside = judged, f"; {listed(references)}" if judged == "F-MSE" else ""
        self.standing = standing
        self.progress, self.minutes = progress, math.inf if minutes is None else minutes
        self.history: list[dict[str, float]] = []
        self.began = self.part = time.monotonic()
        self.before, self.spent = 0.0, False  # seconds of earlier parts; whether the time is up

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began, self.loss, self.seen = time.monotonic(), 0.0, 0
        quiet = not (self.progress and trainer.is_global_zero and sys.stderr.isatty())
        self.bar = tqdm(total=trainer.num_training_batches, unit="batch", leave=False, disable=quiet)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.loss, self.seen = self.loss + module.last_loss, self.seen + 1
        self.bar.update()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.bar.close()
        if (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch:
            return
        now = time.monotonic()
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        entry = {"epoch": trainer.current_epoch + 1, "seconds": round(self.before + now - self.part, 3), **found}
        self.history.append(entry)
        # The state of this epoch is saved by a later callback.
        self.spent = now - self.part > 60 * self.minutes
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(trainer.should_stop or self.spent, all=False)
        if trainer.is_global_zero and self.progress:
            best = min(entry[self.judged] for entry in self.history)
            shape = f"; superposed {found[SHAPE]:.4g} (standing still {self.standing:.4g})" if SHAPE in found else ""
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {self.loss / max(self.seen, 1):.4g}  "
                f"validation {self.judged} {found[self.judged]:.4g} (best {best:.4g}{self.beside}){shape}  "
                f"{now - self.began:.1f} s",
                file=sys.stderr,
                flush=True,
            )

    @property
    def shape(self) -> tuple[float, float] | None:
        """The superposed errors of the best state and of the standing frame."""
        if self.standing is None:
            return None
        return min(self.history, key=lambda entry: entry[self.judged])[SHAPE], self.standing

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = list(state["history"])
        self.before = self.history[-1]["seconds"] if self.history else 0.0
