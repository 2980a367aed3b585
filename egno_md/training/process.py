"""What a training must not leave behind in the user's process, and which process of several this is."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import torch

from ..errors import UsageError, counted

#: Where those who start processes say which one of all this is, in the order in which lightning asks.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")

#: What is set where something else has said how the nodes find each other.
MEETING = (
    "MASTER_ADDR",
    "TORCHELASTIC_RUN_ID",
    "SLURM_NTASKS",
    "LSB_JOBID",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "KUBERNETES_PORT",
)

#: Processes that any machine may be asked for; of more, no more than it has cores.
PROCESSES = 8

#: lightning advertises products and lists absent hardware below the level of warnings.
LOGGERS = ("lightning.pytorch", "lightning.fabric")


def process_rank(devices: int, nodes: int = 1) -> int:
    """Number of this process among those of one training, from 0, before the processes know of each other."""
    if devices * nodes == 1:
        return 0
    return int(next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), 0))


def check_processes(devices: int, nodes: int) -> None:
    """Refuse numbers that are not those of the processes which torchrun started.

    Raises
    ------
    UsageError
        Less than one, more than a machine can hold, or another number than torchrun's.
    """
    for name, value in (("devices", devices), ("nodes", nodes)):
        if value < 1:
            raise UsageError(f"{name} (--{name}) must be at least 1, found {value}")
    # All of them are started before any of them can find out that there is no room.
    if devices > (most := max(PROCESSES, os.cpu_count() or 1)):
        raise UsageError(f"devices={devices}: this machine can be asked for {most} processes at most; pass fewer")
    if nodes > 1 and not any(name in os.environ for name in MEETING):
        raise UsageError(
            f"nodes={nodes}: nobody has said where the other nodes are, and this one would wait for them for ever; "
            "start it with srun or torchrun on each of them, or pass --nodes 1"
        )
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) != devices * nodes:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        raise UsageError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, the training was told of {devices} on "
            f"{counted(nodes, 'node')}: pass --devices {here} --nodes {int(os.environ['WORLD_SIZE']) // here}"
        )


@contextlib.contextmanager
def unchanged_process(seed: int) -> Iterator[None]:
    """Inside, all generators start from `seed` and lightning is quiet; afterwards everything is as before.

    Generators of ``random``, numpy and torch (all GPUs), levels of lightning's loggers, filters and hooks of
    ``warnings``, and the handlers of SIGINT and SIGTERM.
    """
    generators = random.getstate(), np.random.get_state()
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    in_main = threading.current_thread() is threading.main_thread()  # no other can set handlers
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if in_main}
    with warnings.catch_warnings(), torch.random.fork_rng(range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            random.setstate(generators[0])
            np.random.set_state(generators[1])
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            for number, handler in handlers.items():
                signal.signal(number, handler)
