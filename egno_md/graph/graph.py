"""What a network eats: one declared tuple, and its exchange with ``torch_geometric.data.Data``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError

if TYPE_CHECKING:
    from torch_geometric.data import Batch, Data


class Graph(NamedTuple):
    """One graph, or several as one batch: N nodes, E edges, L local edges of all B graphs together.

    Lengths are in Angstrom and times in strides of the model; numbers are float32, indices int64. Nodes of one graph
    follow each other, and no edge joins two graphs. The network's own unit of length appears in
    :func:`egno_md.forecast.apply_operator` alone.

    Attributes
    ----------
    x : Tensor (N, F)
        Node features.
    pos, vel : Tensor (N, 3)
        Start frame in Angstrom, and its velocities in Angstrom per stride.
    edge_index : Tensor (2, E)
        Row 0 receives, row 1 sends.
    edge_attr : Tensor (E, A)
        Edge features.
    local_index : Tensor (2, L), optional
        Local edges, the covalent bonds or the links of a chain, in both directions; row 0 receives.
    local_attr : Tensor (L, A_local), optional
        Their features; a GraphBuilder gives one, the length in Angstrom.
    edge_shift : Tensor (E, 3), optional
        Where an edge crosses the box, the displacement along it is ``pos[receiver] - pos[sender] - edge_shift``. None
        where no edge does.
    identity : tuple of str
        Which molecule each of the B graphs is, see :attr:`egno_md.GraphBuilder.identity`; "" for one without.
    ptr : Tensor (B + 1,), optional
        Graph b has the nodes ``ptr[b] ... ptr[b + 1] - 1``; None for a single graph.
    pos_history, vel_history : Tensor (N, T, 3), optional
        The input sequence of a model that maps trajectories to trajectories; the last of its frames is `pos`.
    y : Tensor (N, T, 3), optional
        Positions to be predicted, in Angstrom.
    item : Tensor (B,), optional
        Number of each graph's window in the data set.
    stride : Tensor (B,), optional
        Stride in ps, where the graphs of a model may differ in it.
    """

    x: Tensor
    pos: Tensor
    vel: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    local_index: Tensor | None = None
    local_attr: Tensor | None = None
    edge_shift: Tensor | None = None
    identity: tuple[str, ...] = ("",)
    ptr: Tensor | None = None
    pos_history: Tensor | None = None
    vel_history: Tensor | None = None
    y: Tensor | None = None
    item: Tensor | None = None
    stride: Tensor | None = None

    @property
    def n_nodes(self) -> int:
        """N, nodes of all graphs."""
        return len(self.pos)

    @property
    def n_graphs(self) -> int:
        """B."""
        return 1 if self.ptr is None else len(self.ptr) - 1

    @property
    def sizes(self) -> list[int]:
        """Nodes of each graph."""
        return [self.n_nodes] if self.ptr is None else self.ptr.diff().tolist()

    @property
    def batch(self) -> Tensor:
        """The graph of every node (N,), int64, ascending."""
        if self.ptr is None:
            return self.edge_index.new_zeros(self.n_nodes)  # (N,)
        graph = torch.arange(self.n_graphs, device=self.ptr.device)
        return graph.repeat_interleave(self.ptr.diff(), output_size=self.n_nodes)  # (N,)

    def to(self, device: str | torch.device, **options: Any) -> Graph:
        """The same on another device; further arguments as for ``Tensor.to``."""
        return Graph(*(v.to(device, **options) if isinstance(v, Tensor) else v for v in self))

    def split(self) -> list[Graph]:
        """The B graphs one by one, the reverse of :func:`collate`."""
        if self.ptr is None:
            return [self]
        batch, graphs = self.batch, []
        for b, (first, last) in enumerate(zip(self.ptr[:-1].tolist(), self.ptr[1:].tolist(), strict=True)):
            fields: dict[str, Any] = {"identity": self.identity[b : b + 1], "ptr": None}
            for name, (per, is_index) in _LAYOUT.items():
                value = getattr(self, name)
                if value is None:
                    continue
                if per == "node":
                    fields[name] = value[first:last]
                elif per == "graph":
                    fields[name] = value[b : b + 1]
                else:
                    ends = self.edge_index if per == "edge" else self.local_index
                    here = batch[ends[0]] == b
                    fields[name] = value[:, here] - first if is_index else value[here]
            graphs.append(Graph(**fields))
        return graphs

    def to_data(self) -> Data | Batch:
        """As a ``torch_geometric.data.Data``, several graphs as a ``Batch``; fields that are None are left out.

        Row 0 of ``edge_index`` still receives: torch_geometric's own layers read it the other way round
        (``flow="target_to_source"`` tells them).
        """
        from torch_geometric.data import Batch, Data

        if self.ptr is not None:
            return Batch.from_data_list([graph.to_data() for graph in self.split()])
        fields = {name: getattr(self, name) for name in _LAYOUT if getattr(self, name) is not None}
        return Data(**fields, identity=self.identity[0])

    @classmethod
    def from_data(cls, data: Data | Batch) -> Graph:
        """From a ``torch_geometric.data.Data`` or ``Batch`` with fields of these names; other fields stay behind.

        Raises
        ------
        DataError
            One of the fields without a default is missing, or the nodes of a graph do not follow each other.
        """
        missing = [name for name in cls._fields[:5] if getattr(data, name, None) is None]
        if missing:
            raise DataError(
                f"a graph needs the fields {', '.join(cls._fields[:5])}; this {type(data).__name__} has no "
                f"{', '.join(missing)}: give them as egno_md.graph.Graph describes them"
            )
        fields = {name: getattr(data, name) for name in _LAYOUT if getattr(data, name, None) is not None}
        ptr, batch = getattr(data, "ptr", None), getattr(data, "batch", None)
        if ptr is None and batch is not None:
            if (batch.diff() < 0).any():
                raise DataError("the nodes of a graph must follow each other: `batch` is not in ascending order")
            ptr = torch.cat([batch.new_zeros(1), batch.bincount().cumsum(0)])  # (B + 1,)
        n_graphs = 1 if ptr is None else len(ptr) - 1
        for name in ("item", "stride"):
            if name in fields:
                fields[name] = torch.as_tensor(fields[name]).reshape(n_graphs)  # (B,)
        identity = getattr(data, "identity", None) or ("",) * n_graphs
        return cls(**fields, ptr=ptr, identity=(identity,) if isinstance(identity, str) else tuple(identity))


#: Of every tensor: what it has one row of (an index one column), and whether it holds numbers of nodes.
_LAYOUT = {
    "x": ("node", False),
    "pos": ("node", False),
    "vel": ("node", False),
    "edge_index": ("edge", True),
    "edge_attr": ("edge", False),
    "local_index": ("local", True),
    "local_attr": ("local", False),
    "edge_shift": ("edge", False),
    "pos_history": ("node", False),
    "vel_history": ("node", False),
    "y": ("node", False),
    "item": ("graph", False),
    "stride": ("graph", False),
}


def collate(graphs: Sequence[Graph | Data]) -> Graph:
    """One batch of several graphs.

    Parameters
    ----------
    graphs : sequence of Graph or torch_geometric.data.Data
        Graphs or batches. One has ``edge_shift`` only where an edge crosses the box; if one of them does, the others
        get zeros.

    Returns
    -------
    Graph

    Raises
    ------
    DataError
        No graph at all, or a field that some have and others lack.
    """
    graphs = [graph if isinstance(graph, Graph) else Graph.from_data(graph) for graph in graphs]
    if not graphs:
        raise DataError("a batch needs at least one graph; found none")
    sizes = torch.tensor([size for graph in graphs for size in graph.sizes])  # (B,)
    ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).to(graphs[0].pos.device)  # (B + 1,)
    nodes = torch.tensor([0, *(graph.n_nodes for graph in graphs[:-1])])
    starts = nodes.cumsum(0).to(ptr.device)  # of every member, which may be a batch itself
    fields: dict[str, Any] = {"identity": tuple(name for graph in graphs for name in graph.identity), "ptr": ptr}
    for name, (_, is_index) in _LAYOUT.items():
        values = [getattr(graph, name) for graph in graphs]
        absent = [k for k, value in enumerate(values) if value is None]
        if len(absent) == len(values):
            continue
        if absent and name != "edge_shift":
            raise DataError(
                f"the graphs of a batch must have the same fields: {name!r} is missing in number {absent[0]} of "
                f"{len(graphs)} and given in others"
            )
        for k in absent:
            values[k] = graphs[k].pos.new_zeros(graphs[k].edge_index.shape[1], 3)  # (E, 3)
        fields[name] = torch.cat(values, dim=1 if is_index else 0)
        if is_index:
            lengths = torch.tensor([value.shape[1] for value in values], device=ptr.device)
            fields[name] += starts.repeat_interleave(lengths, output_size=fields[name].shape[1])
    return Graph(**fields)
