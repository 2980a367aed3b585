"""Windows whose graphs differ in numbers alone, as a few large tensors: batches of them need not be put together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..graph.graph import Graph, collate
from ..graph.windows import TrajectoryWindows

#: Bytes that the windows of a data set may take as tensors.
LIMIT = 2**28

#: Fields that must be the same in all graphs, and those that have a row for every node or edge.
_SHARED = ("edge_index", "local_index")
_ROWS = ("x", "pos", "vel", "edge_attr", "local_attr", "pos_history", "vel_history", "y")


class Alike(Dataset):
    """Windows, and batches of them at once where their graphs are alike; the numbers are those of :func:`collate`.

    Parameters
    ----------
    windows : Dataset
        Of graphs. Any but :class:`~egno_md.graph.windows.TrajectoryWindows` are read one by one whenever they are asked
        for, as are those that would not fit.
    """

    def __init__(self, windows: Dataset) -> None:
        self.windows = windows
        self.rows: dict[str, Tensor] = {}  # (S, nodes or edges, ...)
        self.batches: dict[int, Graph] = {}  # what is the same in all batches of a size
        self.identities: list[str] = []
        graphs = _alike(windows)
        if graphs:
            self.first = graphs[0]
            self.identities = [graph.identity[0] for graph in graphs]
            present = [name for name in _ROWS if getattr(graphs[0], name) is not None]
            self.rows = {name: torch.stack([getattr(graph, name) for graph in graphs]) for name in present}

    def __len__(self) -> int:
        return len(self.windows)  # type: ignore[arg-type]

    def __getitem__(self, item: int) -> Graph:
        return self.windows[item]

    def __getitems__(self, items: Sequence[int]) -> Graph:
        """A batch; the name is that by which torch's DataLoader asks for one."""
        if not self.rows:
            return collate([self.windows[item] for item in items])
        if len(items) not in self.batches:
            self.batches[len(items)] = collate([self.first] * len(items))
        some = torch.tensor(items)
        return self.batches[len(items)]._replace(
            identity=tuple(self.identities[item] for item in items),
            **{name: values[some].flatten(0, 1) for name, values in self.rows.items()},
        )


def as_batch(batch: Graph) -> Graph:
    """What a DataLoader of :class:`Alike` does with a batch: it is one already."""
    return batch


def _alike(windows: Dataset) -> list[Graph]:
    """All graphs, or none where two differ in more than numbers or where they need too much memory."""
    if type(windows) is not TrajectoryWindows or not len(windows):
        return []
    first = windows[0]
    size = sum(x.numel() * x.element_size() for name in _ROWS if (x := getattr(first, name)) is not None)
    if size * len(windows) > LIMIT:
        return []
    graphs = []
    for item in range(len(windows)):
        graph = windows[item]
        same = all(_equal(getattr(graph, name), getattr(first, name)) for name in _SHARED)
        if graph.edge_shift is not None or graph.n_nodes != first.n_nodes or not same:
            return []
        graphs.append(graph)
    return graphs


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)
