"""The states of a training on disk: found whole or said to be damaged, and one training at a time in a folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError, UsageError
from ..files import locked, write_whole

#: The state after the last epoch, the one before it, and that with the lowest validation error.
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

#: What lightning calls the state of the callback that keeps the best one.
BEST_STATE = "ModelCheckpoint{'monitor': '"  # something; the last one has none

_held: dict[tuple[str, int], int] = {}


@contextlib.contextmanager
def own_folder(folder: Path, rank: int = 0) -> Iterator[None]:
    """Keep other trainings out of a work folder; of several processes of one training the first does.

    The lock ends with the process, however it ends. Inside another `own_folder` of the same thread nothing happens.

    Raises
    ------
    UsageError
        Another training is running there.
    """
    key = os.path.realpath(folder), threading.get_ident()
    if rank or key in _held or not folder.is_dir():
        yield
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        if not locked(number):
            raise UsageError(
                f"another training is running in {folder}: wait for its end, or choose another work folder (--work)"
            )
        _held[key] = number
        yield
    finally:
        _held.pop(key, None)
        os.close(number)


def save_state(state: Mapping[str, Any], path: Path, *, keep: bool) -> None:
    """Write a state whole or not at all; `keep`: the one that it replaces becomes the previous one.

    Raises
    ------
    OSError
        It could not be written; the states are as before.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    if keep and path.exists():
        # A second name, so that there is a whole state under one of both at every moment.
        part = path.with_name(f".{PREVIOUS}.part")
        part.unlink(missing_ok=True)
        try:
            os.link(path, part)
        except OSError:  # a file system without links
            write_whole(path.with_name(PREVIOUS), path.read_bytes())
        else:
            os.replace(part, path.with_name(PREVIOUS))
    write_whole(path, buffer.getbuffer())


def read_state(path: Path) -> dict[str, Any]:
    """A state, all of whose bytes are as they were written.

    Raises
    ------
    DataError
        It is missing, damaged, or no state of a training.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:
                raise ValueError(f"the part {member} is not what was written")
        state = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(state, dict) or not {"state_dict", "epoch", "callbacks"} <= set(state):
            raise ValueError("it is no state of a training")
        for name in (BEST_STATE, "EarlyStopping"):
            callback_state(state, name)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except Exception as error:  # whatever the damage leads to
        said = " ".join(str(error).split())
        raise DataError(f"{path} is damaged ({said[:200] or type(error).__name__})") from error
    return state


def newest_state(folder: Path, shapes: Mapping[str, torch.Size]) -> Path:
    """The newest whole state in a work folder; a line says where the last one is damaged.

    Parameters
    ----------
    folder
    shapes
        Of the weights of the network that is trained.

    Raises
    ------
    UsageError
        There is none.
    DataError
        All are damaged, or that of the best epoch is; or they are of another network.
    """
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    if not found:
        raise UsageError(f"nothing to resume: {folder / LAST} does not exist; start without resume (--resume)")
    anew = "begin a new training in another work folder (--work)"
    wrong = []
    for path in found:
        try:
            state = read_state(path)
        except DataError as error:
            wrong.append(str(error))
            continue
        if {name: tensor.shape for name, tensor in weights(state).items()} != dict(shapes):
            raise DataError(f"{path} is the state of another network: {anew}")
        try:
            read_state(folder / BEST)
        except DataError as error:
            raise DataError(
                f"{error}: it was the state of the best epoch so far, which no other file holds; {anew}"
            ) from error
        if wrong:
            warnings.warn(f"{'; '.join(wrong)}: going on from {path}, the state of the epoch before", stacklevel=3)
        return path
    raise DataError(f"nothing to resume: {'; '.join(wrong)}; {anew}")


def weights(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Of the network."""
    return {
        key.removeprefix("network."): value for key, value in state["state_dict"].items() if key.startswith("network.")
    }


def callback_state(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What lightning's callback whose key begins so has kept."""
    return next(value for key, value in state["callbacks"].items() if key.startswith(name))


def moved(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A state as if it had been written in this folder; in another one lightning would forget the best score."""
    callbacks = {}
    for key, kept in state["callbacks"].items():
        if "dirpath" in kept:

            def here(path: str) -> str:
                return os.path.join(os.path.abspath(folder), os.path.basename(path)) if path else path

            kept = {
                **kept,
                "dirpath": os.path.abspath(folder),
                **{name: here(kept[name]) for name in kept if name.endswith("_model_path")},
                "best_k_models": {here(path): score for path, score in kept.get("best_k_models", {}).items()},
            }
        callbacks[key] = kept
    return {**state, "callbacks": callbacks}


def read_plan(path: Path) -> dict[str, dict[str, Any]]:
    """What is trained, as it was written at the beginning.

    Raises
    ------
    DataError
        It is damaged.
    """
    try:
        plan = json.loads(path.read_bytes())
        return {group: dict(plan[group]) for group in ("graph", "window", "model", "training", "data")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}), so that it is not known whether the settings are the same: begin a new "
            "training in another work folder (--work), or remove this file to go on without the comparison"
        ) from error


def best_score(state: dict[str, Any]) -> float:
    """The validation error, or loss, of the best epoch so far."""
    return float(callback_state(state, BEST_STATE)["best_model_score"])


def stopped_early(last: Path) -> bool:
    """Whether a training had come to its end by early stopping; lightning would run another epoch."""
    stopping = callback_state(read_state(last), "EarlyStopping")
    return stopping["wait_count"] >= stopping["patience"]


def finished(folder: Path, max_epochs: int) -> bool:
    """Whether the training in a work folder has come to its end, by its number of epochs or by early stopping."""
    try:
        return int(read_state(folder / LAST)["epoch"]) + 1 >= max_epochs or stopped_early(folder / LAST)
    except DataError:
        return False
