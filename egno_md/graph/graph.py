"""What a network eats."""

from __future__ import annotations

from collections.abc import Sequence

from torch_geometric.data import Batch, Data


def collate(graphs: Sequence[Data]) -> Batch:
    """One batch of several graphs.

    A graph has ``edge_shift`` only where an edge crosses the box; if one of them does, the others get zeros, which
    torch_geometric would not do (it drops the field, or fails, by what the first graph has).
    """
    if any("edge_shift" in graph for graph in graphs):
        graphs = [graph if "edge_shift" in graph else graph.clone() for graph in graphs]
        for graph in graphs:
            if "edge_shift" not in graph:
                graph.edge_shift = graph.pos.new_zeros(graph.edge_index.shape[1], 3)
    return Batch.from_data_list(list(graphs))
