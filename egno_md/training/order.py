"""Which windows a training step sees: the order, the share of each process, and what is varied in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..errors import DataError, UsageError
from ..graph.graph import Graph, collate
from ..specs import TrainSpec
from .alike import Alike


class Varied(Dataset):
    """Training windows with noise on their input, and later windows of a chain; both follow from seed and epoch."""

    def __init__(self, windows: Dataset, spec: TrainSpec) -> None:
        if (spec.noise or spec.unroll > 1) and not hasattr(windows, "sample"):
            raise UsageError(
                f"noise and unroll change windows of runs: give TrajectoryWindows, found {type(windows).__name__}"
            )
        if spec.unroll > 1 and windows.window.velocity != "backward":
            raise UsageError(
                f"unroll = {spec.unroll} chains windows, which those with {windows.window.velocity!r} velocities "
                "cannot be: use unroll = 1, or velocity = 'backward'"
            )
        self.windows, self.spec, self.epoch = windows, spec, 0
        self.most: int | None = None  # windows of an epoch for which there is time
        self.unchanged = None if spec.noise or spec.unroll > 1 else Alike(windows)  # the same in every epoch
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

    @property
    def taken(self) -> int:
        """Windows of an epoch, as many as there is time for."""
        return min(self.whole, self.most or self.whole)

    @property
    def whole(self) -> int:
        """Windows of an epoch that is not limited by time."""
        return min(len(self), self.spec.epoch_windows or len(self))

    def __getitem__(self, k: int) -> Graph:
        rng = np.random.default_rng((self.spec.seed, self.epoch, k))
        if self.spec.noise:
            graph = self.windows.sample(self.items[k], functools.partial(rng.normal, 0.0, self.spec.noise))
        else:
            graph = self.windows[self.items[k]]
        return graph._replace(item=torch.tensor([self.items[k]])) if self.spec.unroll > 1 else graph

    def __getitems__(self, places: Sequence[int]) -> Graph:
        """A batch; the name is that by which torch's DataLoader asks for one."""
        return self.unchanged.__getitems__(places) if self.unchanged else collate([self[k] for k in places])


class Batches(Sampler):
    """The batches of an epoch, of which every process gets its share; their union is the batch of one process.

    The order is new in every epoch and follows from seed and epoch alone, so that a resumed training repeats it. The
    epoch is asked for when the first batch is read: a loop need not call anything in time.

    Parameters
    ----------
    data : Varied
        Is told the epoch as well.
    epoch : callable
        Gives the number of the epoch, from 0.
    rank, world : int
        This process and how many there are.
    """

    def __init__(self, data: Varied, epoch: Callable[[], int], rank: int = 0, world: int = 1) -> None:
        self.data, self.epoch, self.rank, self.world = data, epoch, rank, world
        self.taken = data.taken

    def __len__(self) -> int:
        return -(-self.taken // self.data.spec.batch_size)

    def own(self, number: int) -> int:
        """How many windows of batch `number` are this process's share; with none it is handed one that is not."""
        size = self.data.spec.batch_size
        return len(range(self.rank, min(size, self.taken - number * size), self.world))

    def __iter__(self) -> Iterator[list[int]]:
        spec, epoch = self.data.spec, self.epoch()
        self.data.epoch = epoch
        generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.data), generator=generator)[: self.taken].tolist()
        for first in range(0, self.taken, spec.batch_size):
            batch = order[first : first + spec.batch_size]
            yield batch[self.rank :: self.world] or batch[:1]
