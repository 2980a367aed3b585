"""A training that has so many minutes: as much of an epoch as fits into them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import counted
from ..graph.graph import collate
from ..graph.windows import TrajectoryWindows
from ..progress import spoken
from .order import Varied
from .reference import reference_errors

#: Shares of the time that an epoch and a look at the validation windows may take.
EPOCH, VALIDATION = 0.5, 0.2

#: Share of a command's time that is kept for the test, and the windows by which it is found out how long one takes.
TEST, TRIED = 0.2, 4

#: Shares of the windows from which on it is not worth a line that a few are left out.
SAID = 0.95

#: How many times as long a step takes as the loss alone.
BACKWARD = 3


def fitted(
    module: Any,
    windows: Varied,
    validation: Dataset,
    references: Mapping[str, float],
    until: float,
    device: str,
    said: bool,
) -> tuple[Dataset, Mapping[str, float]]:
    """Make an epoch of as many windows as fit into the time, on a CPU; a step on a GPU is short.

    Parameters
    ----------
    module
        What is trained, on the CPU.
    windows : Varied
        Is told how many an epoch has, where not all of them do.
    validation : TrajectoryWindows, or any dataset
    references : mapping of str to float
        Validation F-MSE of forecasts without a network.
    until : float
        The end of the training, as ``time.monotonic`` has it.
    device : str
    said : bool
        Say in a line what was left out.

    Returns
    -------
    Dataset, mapping of str to float
        Validation windows, evenly spread ones where all are too many, and what the references err in these.
    """
    if device not in ("auto", "cpu") or (device == "auto" and torch.cuda.is_available()):
        return validation, references
    one, loss = _seconds(module, windows, 1)
    seconds = until - time.monotonic()
    count, judged = windows.taken, len(validation)  # type: ignore[arg-type]
    if count * one + judged * loss <= EPOCH * seconds:
        return validation, references
    some = min(count, windows.spec.batch_size)
    if some > 1 and some * one <= VALIDATION * seconds:  # many windows at once take less time each
        one, loss = _seconds(module, windows, some)
    fits = max(1, int(EPOCH * seconds / one))
    looked_at = max(1, int(VALIDATION * seconds / loss))
    thin = judged > looked_at and isinstance(validation, TrajectoryWindows)
    if fits >= count and not thin:
        return validation, references
    windows.most = min(count, fits)
    if thin:
        validation = Thinned(validation, looked_at)
        found = reference_errors(validation, module.model.regression)
        references = {name: float(found[name][-1]) for name in references if name in found}
    if said and (windows.taken < SAID * count or len(validation) < SAID * judged):  # type: ignore[arg-type]
        needed = (count * one + judged * loss) / EPOCH / (1 - TEST)
        print(
            f"limit      of {spoken(max(seconds, 0))} that are left: an epoch is {windows.taken} of "
            f"{counted(count, 'window')}, judged on {len(validation)} of {judged}; "  # type: ignore[arg-type]
            f"--minutes {np.ceil(needed / 60):g} would be enough for a whole one",
            file=sys.stderr,
            flush=True,
        )
    return validation, references


def _seconds(module: Any, windows: Varied, count: int) -> tuple[float, float]:
    """How long one window takes in a step of so many, and in the loss alone."""
    parameters = [p for p in module.network.parameters() if p.requires_grad]
    batch = collate([windows[k] for k in np.linspace(0, len(windows) - 1, count).astype(int)])
    for _ in range(2 if count == 1 else 1):  # the first time compiles
        began = time.monotonic()
        loss = sum(term for term, _ in module._terms(batch))
        middle = time.monotonic()
        torch.autograd.grad(loss, parameters, allow_unused=True)
    now = time.monotonic()
    return (now - began) / count, (middle - began) / count


class Thinned(TrajectoryWindows):
    """So many of some windows, evenly spread."""

    def __init__(self, windows: TrajectoryWindows, count: int) -> None:
        chosen = [windows.index[k] for k in np.linspace(0, len(windows) - 1, count).astype(int)]
        starts = [[start for own, start in chosen if own == r] for r in range(len(windows.runs))]
        super().__init__(windows.runs, windows.window, starts)
