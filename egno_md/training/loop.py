"""Fit an operator to windows of trajectories; lightning does the loop."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import MissingPackageError, ModelError, OutputError, StoppedError, UsageError
from ..forecast.chain import restored
from ..forecast.generative import drawn_loss
from ..forecast.model import Model
from ..forecast.operator import apply_operator, graphs
from ..graph.graph import Graph, collate
from ..graph.windows import TrajectoryWindows
from ..nn import operators
from ..nn.captured import RECORDABLE, CapturedTraining
from ..nn.flow import Numbers
from ..specs import ModelSpec, TrainSpec
from .alike import Alike, as_batch
from .limit import fitted
from .order import Batches, Varied
from .process import check_processes, process_rank, unchanged_process
from .reference import learned, reference_errors, standing_shape, static_errors, superposed_squares
from .states import (
    BEST,
    LAST,
    PREVIOUS,
    best_score,
    callback_state,
    moved,
    newest_state,
    own_folder,
    read_state,
    save_state,
    stopped_early,
    weights,
)

try:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from .epochs import SHAPE, Epochs
except ImportError as error:
    raise MissingPackageError(
        f"training needs lightning 2.6 or newer, which cannot be imported ({error}): pip install 'lightning>=2.6'"
    ) from error

WARMUP = 0.05  # share of all steps

#: What a training is judged by where the operator draws, and what tells its random numbers from those of training.
DRAWN, VALIDATION = "loss", (2**31, 0)

#: Validation windows that are asked which parameters the loss reaches.
ASKED = 8


class _Diverged(Exception):
    """The loss is no number any more."""


class _Whole(TorchCheckpointIO):
    """States are written whole, and of the last ones the one before is kept, unless it is damaged."""

    damaged = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_state(checkpoint, path, keep=path.name == LAST and not self.damaged)
        self.damaged &= path.name != LAST

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        return moved(super().load_checkpoint(path, *args, **options), Path(path).parent)


class _Module(pl.LightningModule):
    """Loss, optimiser and schedule; the mean squared error over t, nodes and coordinates (section 4.4)."""

    def __init__(self, model: Model, spec: TrainSpec, train: Dataset) -> None:
        super().__init__()
        self.network = model.network
        self.model = model
        self.spec = spec
        self.operator, self.options = operators.get(model.spec.operator), operators.options_of(model.spec)
        if self.operator.drawing is not None and (spec.unroll > 1 or spec.pair_weight or spec.step_weights != "equal"):
            raise UsageError(
                f"the operator {model.spec.operator!r} has a loss of its own: leave out unroll, pair_weight and "
                f"step_weights; found {spec.unroll}, {spec.pair_weight} and {spec.step_weights!r}"
            )
        # In a tuple, as it is no part of the module.
        self.teacher = (copy.deepcopy(model.network).eval(),) if spec.distill else ()
        weights = torch.ones(model.window.n_times)  # (T,)
        if spec.step_weights == "static":
            weights = 1 / static_errors(train).clamp(min=1e-8)  # (T,)
        self.register_buffer("step_weights", weights / weights.mean(), persistent=False)
        self.recorded: CapturedTraining | None = None
        self.last_loss = math.nan  # of the last batch, all processes together
        self.validation_windows = 0  # of all processes
        self.validation_share = True  # whether the validation windows of this process are its own
        self.molecules = False  # whether the windows are those of trajectories

    def on_fit_start(self) -> None:
        """On one GPU, the steps of small graphs are launched as a whole."""
        for teacher in self.teacher:
            teacher.to(self.device)
        plain = self.trainer.world_size == 1 and self.trainer.precision == "32-true"
        if plain and self.device.type == "cuda" and type(self.network) in RECORDABLE:
            self.recorded = CapturedTraining(self.network)

    def _errors(self, batch: Graph):
        out = apply_operator(self.model, batch, network=self.recorded)
        squared = (out.pos - batch.y.transpose(0, 1)) ** 2  # (T, N, 3)
        return out, squared.mean(dim=(1, 2))  # (T,)

    def _terms(self, batch: Graph, numbers: Numbers | None = None) -> list[tuple[torch.Tensor, int]]:
        """The loss: terms that add up, and over how many things of this batch each of them is a mean.

        An operator that draws needs `numbers`: random ones.
        """
        if self.operator.drawing is not None:
            numbers = numbers or Numbers((self.spec.seed, *VALIDATION), range(batch.n_graphs), batch.n_graphs)
            return drawn_loss(self.model, batch, numbers, network=self.recorded, teacher=next(iter(self.teacher), None))
        out, per_step = self._errors(batch)
        terms = [((self.step_weights * per_step).mean(), batch.n_nodes)]
        if self.spec.pair_weight:
            error = _pair_error(out.pos, batch.y.transpose(0, 1), batch.edge_index)
            terms.append((self.spec.pair_weight * error, int((batch.edge_index[0] < batch.edge_index[1]).sum())))
        terms += [(term, batch.n_graphs) for term in self.operator.loss_terms(out, self.options).values()]
        return terms

    def training_step(self, batch: Graph, number: int) -> torch.Tensor:
        if self.spec.unroll > 1:
            batch = self._further(batch, number)
        terms = self._terms(batch, self._numbers(batch, number) if self.operator.drawing else None)
        if self.trainer.world_size == 1:
            loss = sum(term for term, _ in terms)
            whole = loss.detach()
        else:
            # The mean over all processes, as one process would take it: shares differ in size, and may be empty.
            counts = torch.tensor([float(count) for _, count in terms], device=self.device)  # (K,)
            if not self.trainer.train_dataloader.batch_sampler.own(number):
                counts = torch.zeros_like(counts)
            total = self.trainer.strategy.reduce(counts.clone(), reduce_op="sum")
            share = counts * self.trainer.world_size / total.clamp(min=1)
            loss = sum(term * weight for (term, _), weight in zip(terms, share, strict=True))
            whole = self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean")
        # Of all processes together: all of them stop, or none.
        self._require_finite(whole, f"the loss of batch {number + 1}")
        self.last_loss = float(whole)
        return loss

    def _numbers(self, batch: Graph, number: int) -> Numbers:
        """Random numbers of a training step, which follow from seed, epoch and batch, whoever shares it."""
        order = self.trainer.train_dataloader.batch_sampler
        places = range(order.rank, order.rank + batch.n_graphs * order.world, order.world)
        whole = min(self.spec.batch_size, order.taken - number * self.spec.batch_size)
        # A process without a share is handed a window all the same, which counts for nothing.
        return Numbers((self.spec.seed, self.current_epoch, number), places, max(whole, places[-1] + 1))

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

    def on_validation_epoch_start(self) -> None:
        # Errors at every step, superposed ones at the last step, and nodes.
        self.sums = torch.zeros(self.model.window.n_times + 2, dtype=torch.float64)

    def validation_step(self, batch: Graph, number: int) -> None:
        if self.operator.drawing is not None:
            if self.validation_share:
                # Each window draws its own numbers, the same ones in every epoch.
                world = self.trainer.world_size
                size = -(-self.spec.batch_size // world)
                first = self.trainer.global_rank + number * size * world
                places = range(first, first + batch.n_graphs * world, world)
                whole = max(places[-1] + 1, self.validation_windows)
                terms = self._terms(batch, Numbers((self.spec.seed, *VALIDATION), places, whole))
                self.sums[0] += sum(float(term) for term, _ in terms) * batch.n_graphs
                self.sums[-1] += batch.n_graphs
            return
        if self.validation_share:
            out, per_step = self._errors(batch)
            self.sums[:-2] += per_step.double().cpu() * batch.n_nodes
            if self.molecules:
                self.sums[-2] += superposed_squares(out.pos[-1], batch.y[:, -1], [0, *np.cumsum(batch.sizes).tolist()])
            self.sums[-1] += batch.n_nodes

    def on_validation_epoch_end(self) -> None:
        sums = self.sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
        if self.operator.drawing is not None:
            loss = (sums[0] / sums[-1]).float()
            self._require_finite(loss, "the validation loss")
            self.log(DRAWN, loss.to(self.device), sync_dist=True)
            return
        *per_step, shape = (sums[:-1] / sums[-1]).float()
        per_step = torch.stack(per_step)  # (T,)
        self._require_finite(per_step.mean(), "the validation error")
        # The same number in every process already.
        self.log("F-MSE", per_step[-1].to(self.device), sync_dist=True)
        self.log("A-MSE", per_step.mean().to(self.device), sync_dist=True)
        if self.molecules:
            self.log(SHAPE, shape.to(self.device), sync_dist=True)

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
            if spec.schedule == "halved":
                return 1.0 if step < total / 2 else 0.5
            warm = WARMUP * total
            if step < warm:
                return (step + 1) / (warm + 1)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, total - warm))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _pair_error(predicted: torch.Tensor, true: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the distances along the edges, of positions (T, N, 3)."""
    row, col = edges[:, edges[0] < edges[1]]
    lengths = [torch.linalg.vector_norm(x[:, row] - x[:, col], dim=-1) for x in (predicted, true)]  # 2 of (T, E)
    return (lengths[0] - lengths[1]).square().mean()


def _freeze_unreached(module: _Module, windows: Dataset) -> list[torch.nn.Parameter]:
    """Take the parameters that the loss never reaches out of the training, and give them back.

    An operator may have some: the loss is that of positions, which do not depend on the scalars after the last layer.
    Processes that exchange gradients would wait for theirs. They get no gradient whatever the weights, so that without
    them the training is the same; that DistributedDataParallel looks for them in every step is not needed.
    """
    parameters = [p for p in module.network.parameters() if p.requires_grad]
    reached: set[int] = set()
    length = len(windows)  # type: ignore[arg-type]
    for k in range(0, length, -(-length // ASKED)):
        loss = sum(term for term, _ in module._terms(collate([windows[k]])))
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        reached |= {id(p) for p, g in zip(parameters, found, strict=True) if g is not None}
    unreached = [p for p in parameters if id(p) not in reached]
    for parameter in unreached:
        parameter.requires_grad_(False)
    return unreached


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
    references: Mapping[str, float] | None = None,
    minutes: float | None = None,
    enough: bool = False,
) -> Model:
    """Train a model and return the state with the lowest validation F-MSE.

    Nothing of it stays in the process: generators, loggers, warnings and signal handlers are as before.

    With several processes every step sees the windows that one process would see, shared out between them, and the
    gradient is that of their mean: the training is the same but for rounding, whatever their number. All of them
    return the model; the first alone writes.

    Parameters
    ----------
    model : Model
        Where to start: untrained from :func:`egno_md.forecast.model.new_model`, or trained, to fine-tune it. It is not
        changed.
    train, validation : TrajectoryWindows
        Windows that share no frame; see :func:`egno_md.graph.windows.split_blocks`. Any dataset of graphs with targets
        ``y`` (N, T, 3) will do.
    spec : TrainSpec, optional
        How; Adam, a warm-up and a cosine schedule over ``max_epochs``, an exponential moving average of the weights.
    work_dir : path
        Folder of the training states (``last.ckpt`` after every epoch, ``previous.ckpt`` of the epoch before,
        ``best.ckpt``), each of which is written whole or not at all; all processes must see it.
    resume : bool
        Go on from ``last.ckpt`` in `work_dir`, or from ``previous.ckpt`` where that is damaged. The epoch that was
        interrupted is repeated, in the same order. The number of processes may be another.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    devices, nodes : int
        GPUs (or processes on a CPU) per node, and nodes. The processes of one node are started by repeating the
        program's own command, unless torchrun or srun has started them.
    precision : str
        As lightning names it: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``.
    progress : bool
        A line per epoch on stderr.
    references : mapping of str to float, optional
        Validation F-MSE of forecasts without a network in Angstrom squared; that of the standing frame when None.
    minutes, enough : float, optional, and bool
        Stop after the first state that is saved when this time has passed; `resume` goes on as if nothing had happened.
        If it is `enough`, the time is kept, by epochs of fewer windows, and the best state so far is returned.

    Returns
    -------
    Model
        In eval mode, with the training settings and the validation error added to ``provenance["training"]``.

    Raises
    ------
    StoppedError
        The time is up, and it is not `enough`.
    UsageError
        ``resume`` without a state, a `work_dir` with the states of another training or in which one is running, or
        devices that are not there.
    DataError
        States that are damaged.
    ModelError
        The loss is no number any more. The message says in which batch, and where the last good state is.
    OutputError
        A state cannot be written; those of earlier epochs are kept.
    KeyboardInterrupt
        Ctrl-C; the states of the epochs that were finished are kept.
    """
    spec = spec or TrainSpec()
    work_dir = Path(work_dir)
    check_processes(devices, nodes)
    if not resume:
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write in {work_dir} ({error}); choose another work folder") from error
    with own_folder(work_dir, process_rank(devices, nodes)):
        shapes = {name: tensor.shape for name, tensor in model.network.state_dict().items()}
        state = newest_state(work_dir, shapes) if resume else None
        if not resume and any((work_dir / name).exists() for name in (LAST, PREVIOUS)):
            raise UsageError(
                f"{work_dir} holds an earlier training: go on with it, resume (--resume), or take another folder, "
                "work_dir (--work)"
            )
        return _fit(
            model, train, validation, spec, work_dir, state, references,
            (device, devices, nodes, precision), progress, (minutes, enough),
        )  # fmt: skip


def _fit(
    model: Model,
    train: Dataset,
    validation: Dataset,
    spec: TrainSpec,
    work_dir: Path,
    last: Path | None,
    references: Mapping[str, float] | None,
    where: tuple[str, int, int, str],
    progress: bool,
    until: tuple[float | None, bool],
) -> Model:
    """:func:`fit` in a folder that is its own, from the state `last` if there is one."""
    (device, devices, nodes, _), (minutes, enough) = where, until
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    if references is None:
        references = {name: float(errors[-1]) for name, errors in reference_errors(validation).items()}
    if not spec.distill and getattr(operators.options_of(model.spec), "direct", False):
        raise UsageError(
            f"model {model.name!r} draws in one step (direct), which it can only learn from another one: train that "
            "one, and then this one from it (--init MODEL --set distill=true)"
        )
    network = copy.deepcopy(model.network).train()
    trained = dataclasses.replace(model, network=network, spec=_direct(model) if spec.distill else model.spec)
    with unchanged_process(spec.seed):
        windows = Varied(train, spec)
        module = _Module(trained, spec, windows)
        frozen = _freeze_unreached(module, validation) if devices * nodes > 1 else []
        if enough and end < math.inf and devices * nodes == 1:
            validation, references = fitted(module, windows, validation, references, end, device, progress)
        try:
            judged = "F-MSE" if module.operator.drawing is None else DRAWN
            standing = standing_shape(validation) if judged == "F-MSE" else None
            epochs = Epochs(references, standing, judged, progress, end, enough, validation)
            try:
                trainer = _trainer(spec, work_dir, *where, judged, epochs, last)
            except ValueError as error:  # a device that is none
                raise UsageError(f"device={device!r}: {error}; use 'auto' or 'cpu'") from error
            if last and stopped_early(last):
                epochs.load_state_dict(callback_state(read_state(last), type(epochs).__name__))
            else:
                _run(trainer, module, windows, validation, last)
                going_on = trainer.current_epoch < spec.max_epochs and not stopped_early(work_dir / LAST)
                if epochs.spent and going_on and not enough:
                    raise StoppedError(
                        f"the time is over after epoch {trainer.current_epoch} of at most "
                        f"{spec.max_epochs}, whose state is saved in {work_dir}: the same command goes on from there"
                    )
        except MisconfigurationException as error:
            raise UsageError(f"device={device!r}, devices={devices}, nodes={nodes}: {error}") from error
        except _Diverged as error:
            if not trainer.is_global_zero:
                raise SystemExit(0) from None  # the first process says it, and is stopped by an exit code of another
            raise ModelError(f"the training diverged: {error}; {_last_good(trained, work_dir)}") from None
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            there = any((work_dir / name).exists() for name in (LAST, PREVIOUS))
            raise OutputError(
                f"cannot write the training state in {work_dir} ({error}); "
                + (
                    "the last whole state is kept: make room and go on with resume (--resume)"
                    if there
                    else "it was the first one, so that nothing can be resumed: make room and begin again"
                )
            ) from error
    for parameter in frozen:
        parameter.requires_grad_(True)
    state = read_state(work_dir / BEST)
    trained.network.load_state_dict(weights(state))
    own_loss = module.operator.drawing is not None
    if progress and trainer.is_global_zero and own_loss:
        print(f"trained    best validation loss {best_score(state):.4g} of futures drawn", file=sys.stderr, flush=True)
    elif progress and trainer.is_global_zero:
        print(learned(best_score(state), references, epochs.shape), file=sys.stderr, flush=True)
    training = {
        **spec.model_dump(),
        "epoch_windows": windows.most or spec.epoch_windows,
        "windows": len(train),  # type: ignore[arg-type]
        "validation_windows": len(validation),  # type: ignore[arg-type]
        "epochs": trainer.current_epoch or int(read_state(last or work_dir / LAST)["epoch"]) + 1,
        "validation_loss" if own_loss else "validation_f_mse": round(best_score(state), 5),
        "validation_f_mse_without_network": {name: round(float(value), 5) for name, value in references.items()},
    }
    if epochs.shape is not None:
        training["validation_superposed"], training["validation_superposed_static"] = (
            round(value, 5) for value in epochs.shape
        )
    provenance = {**model.provenance, "training": training}
    return dataclasses.replace(trained, network=trained.network.cpu().eval(), provenance=provenance)


def _direct(model: Model) -> ModelSpec:
    """What the model will be once it has learned to draw in one step.

    Raises
    ------
    UsageError
        One that does not draw, that knows both ends of windows, or that draws in one step already.
    """
    operator, options = operators.get(model.spec.operator), operators.options_of(model.spec)
    if operator.drawing is None or operator.drawing.teach is None:
        why = "draws no futures"
    elif options.direct:
        why = "draws in one step already"
    elif getattr(options, "ends", 0):
        why = "fills in frames between two, which is not learned in one step"
    elif "training" not in model.provenance:
        why = "has not been trained"
    else:
        return model.spec.model_copy(update={"options": {**model.spec.options, "direct": True}})
    raise UsageError(
        f"model {model.name!r} {why}: distill is for a trained model of the operator flow (--init MODEL --set "
        "distill=true)"
    )


def _trainer(
    spec: TrainSpec,
    work_dir: Path,
    device: str,
    devices: int,
    nodes: int,
    precision: str,
    judged: str,
    epochs: Epochs,
    state: Path | None,
) -> pl.Trainer:
    whole = _Whole()
    whole.damaged = state is not None and state.name != LAST
    every = min(spec.validate_every, spec.max_epochs)
    kept = {"every_n_epochs": every, "save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(work_dir, "best", monitor=judged, **kept)
    # save_last=True would leave out the epochs that are not the best so far. After `best`, whose state it holds.
    last = ModelCheckpoint(work_dir, "last", **kept)
    stopping = EarlyStopping(judged, patience=spec.patience)
    callbacks = [best, last, stopping, EMAWeightAveraging(decay=spec.ema_decay), epochs]
    # Advice about worker processes, which cost more than they give for graphs of this size.
    warnings.filterwarnings("ignore", message=".*num_workers.*|.*does not have many workers.*")
    # Of a folder, which was looked at before, and of an epoch that a limit of time has cut short.
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*|.*ended before the epoch ended.*")
    # Of torch, when it records a backward pass: the gradients are those of a step that is not recorded.
    warnings.filterwarnings("ignore", message=".*AccumulateGrad node's stream.*")
    return pl.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=devices,
        num_nodes=nodes,
        # Buffers are the same in every process, and validation has not the same number of batches everywhere.
        strategy=DDPStrategy(broadcast_buffers=False) if devices * nodes > 1 else "auto",
        use_distributed_sampler=False,  # Batches knows its share
        precision=precision,
        max_epochs=spec.max_epochs,
        check_val_every_n_epoch=every,
        gradient_clip_val=spec.gradient_clip or None,
        callbacks=callbacks,
        plugins=[whole],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=work_dir,
    )


def _run(trainer: pl.Trainer, module: _Module, windows: Varied, validation: Dataset, state: Path | None) -> None:
    """Share the windows out and train, from a state if there is one."""
    rank, world, spec = trainer.global_rank, trainer.world_size, module.spec
    order = Batches(windows, lambda: trainer.current_epoch, rank, world)
    own = range(rank, len(validation), world)  # type: ignore[arg-type]
    module.validation_windows = len(validation)  # type: ignore[arg-type]
    module.validation_share = bool(own)
    module.molecules = isinstance(validation, TrajectoryWindows)
    loaders = (
        # With generators of their own, for a loader draws from torch's even where nothing is drawn.
        DataLoader(windows, batch_sampler=order, collate_fn=as_batch, generator=torch.Generator()),
        DataLoader(
            Alike(validation),
            batch_size=-(-spec.batch_size // world),
            sampler=own or range(1),
            collate_fn=as_batch,
            generator=torch.Generator(),
        ),
    )
    try:
        trainer.fit(module, *loaders, ckpt_path=state)
    except SystemExit:  # what lightning makes of Ctrl-C
        raise KeyboardInterrupt from None


def _last_good(model: Model, work_dir: Path) -> str:
    """Save the best state so far as a model, and say what can be done with it."""
    cure = "lower the learning rate (--lr) or clip the gradients"
    best = work_dir / BEST
    if not best.exists():
        return f"no epoch was finished: {cure}, and begin again"
    state = read_state(best)
    network = copy.deepcopy(model.network).cpu()
    network.load_state_dict(weights(state))
    target = work_dir / "best.safetensors"
    dataclasses.replace(model, network=network.eval()).save(target, force=True)
    return (
        f"the best state so far (epoch {state['epoch'] + 1}, validation F-MSE {best_score(state):.4g}) is kept in "
        f"{target}: {cure}, and go on from it in another folder (--init {target})"
    )
