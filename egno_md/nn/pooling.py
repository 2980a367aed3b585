"""Clusters of nodes: who belongs where, pooling, unpooling, and the decoder (Han et al. 2022, EGHN)."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn

from .egnn import full_precision, mlp, reduce_to

#: Weight below which a cluster counts as empty.
MIN_WEIGHT = 1e-5
#: Bytes that the gathered assignments of a block of edges may take unless the caller says.
EDGE_BLOCK_BYTES = 2**25

#: Consecutive graphs of one size in a batch: (number of graphs, nodes in each). Each run is one dense product.
Runs = list[tuple[int, int]]


def graph_runs(batch: Tensor | None, n_graphs: int, n_nodes: int) -> Runs:
    """Runs of the sorted `batch` (N,); a ragged batch is never padded."""
    sizes = [n_nodes] if batch is None else batch.bincount(minlength=n_graphs).tolist()
    return [(len(list(run)), size) for size, run in groupby(sizes)]


@full_precision
def to_clusters(s: Tensor, f: Tensor, runs: Runs) -> Tensor:
    """``S^T f`` of every graph by itself: (T, B K, C) from `s` (T or 1, N, K) and `f` (T, N, C)."""
    sizes = [count * size for count, size in runs]
    pooled = [
        si.unflatten(1, run).mT @ fi.unflatten(1, run)  # (T, graphs, K, C)
        for run, si, fi in zip(runs, s.split(sizes, 1), f.split(sizes, 1), strict=True)
    ]
    return torch.cat(pooled, dim=1).flatten(1, 2)  # (T, B K, C)


@full_precision
def to_nodes(s: Tensor, f: Tensor, runs: Runs) -> Tensor:
    """``S f`` of every graph by itself: (T, N, C) from `s` (T or 1, N, K) and `f` (T, B K, C)."""
    k = s.shape[-1]
    s_runs = s.split([count * size for count, size in runs], 1)
    f_runs = f.split([count * k for count, _ in runs], 1)
    spread = [
        (si.unflatten(1, run) @ fi.unflatten(1, (run[0], k))).flatten(1, 2)  # (T, nodes of the run, C)
        for run, si, fi in zip(runs, s_runs, f_runs, strict=True)
    ]
    return torch.cat(spread, dim=1)  # (T, N, C)


def cluster_adjacency(s: Tensor, edge_index: Tensor, runs: Runs, *, max_memory: int | None = None) -> Tensor:
    """``S^T A S`` (T, B, K, K) through the edges; A counts them and never exists as a matrix."""
    row, col = edge_index
    block = max(1, (max_memory or EDGE_BLOCK_BYTES) // (s[:, 0].numel() * s.element_size()))
    a_s = torch.zeros_like(s)  # (T, N, K)
    for r, c in zip(row.split(block), col.split(block), strict=True):
        a_s = a_s.index_add(1, r, s[:, c])
    return to_clusters(s, a_s, runs).unflatten(1, (-1, s.shape[-1]))  # (T, B, K, K)


def cut_loss(adjacency: Tensor) -> Tensor:
    """Frobenius norm of (row-wise normalised ``S^T A_local S``) - I, mean over graphs and time points."""
    unit = nn.functional.normalize(adjacency, dim=-1)
    eye = torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
    return torch.linalg.matrix_norm(unit - eye).mean()


def cluster_edges(n_graphs: int, clusters: int, device: torch.device) -> Tensor:
    """All K x K pairs of every graph, k = l included, in the order of the adjacency: (2, B K K)."""
    node = torch.arange(n_graphs * clusters, device=device)
    row = node.repeat_interleave(clusters)  # (B K K,)
    col = node.view(n_graphs, 1, clusters).expand(-1, clusters, -1).reshape(-1)  # (B K K,)
    return torch.stack([row, col])


def gram(left: Tensor, right: Tensor) -> Tensor:
    """Normalised scalar products of two sets of V vectors: (..., V V) from (..., 3, V) twice."""
    return nn.functional.normalize((left.mT @ right).flatten(-2), dim=-1)


class PoolingLayer(nn.Module):
    """One layer of the pooling network, on V = 3 vectors per node.

    ::

        s_ij = phi_in([ normalised V_j^T V_i, h_i, h_j, e_ij ]),   A_ij = phi_out(s_ij)  as 3 x 3
        V_i <- V_i + mean_j V_j A_ij,                              h_i <- h_i + phi_node([ h_i, sum_j s_ij ])

    Attributes
    ----------
    message, vector, node : nn.Sequential
        phi_in, phi_out, phi_node.
    """

    def __init__(self, hidden: int, in_edge: int, *, flat: bool = False) -> None:
        super().__init__()
        self.message = mlp(9 + 2 * hidden + in_edge, hidden, hidden, flat=flat, last_act=True)
        self.vector = mlp(hidden, hidden, 9, flat=flat)
        self.node = mlp(2 * hidden, hidden, hidden, flat=flat)

    def forward(self, vectors: Tensor, h: Tensor, edge_index: Tensor, edge_attr: Tensor) -> tuple[Tensor, Tensor]:
        """New `vectors` (T, N, 3, 3 channels) and `h` (T, N, H) along the local edges."""
        row, col = edge_index
        n_times, n_nodes = h.shape[:2]
        v_j = vectors[:, col]  # (T, L, 3, 3)
        edge_attr = edge_attr.expand(n_times, -1, -1)  # (T, L, A)
        s = self.message(torch.cat([gram(v_j, vectors[:, row]), h[:, row], h[:, col], edge_attr], dim=-1))  # (T, L, H)
        push = v_j @ self.vector(s).unflatten(-1, (3, 3))  # (T, L, 3, 3)
        vectors = vectors + reduce_to(push, row, n_nodes, mean=True)  # (T, N, 3, 3)
        agg = reduce_to(s, row, n_nodes)  # (T, N, H)
        return vectors, h + self.node(torch.cat([h, agg], dim=-1))


class PoolingNetwork(nn.Module):
    """The soft assignment ``S = softmax( Linear(8H, K)( tanh( Linear(H, 8H)(h) ) ) )`` after the pooling layers.

    Attributes
    ----------
    layers : ModuleList of PoolingLayer
    head : nn.Sequential
        From H to the K clusters.
    """

    def __init__(self, layers: int, hidden: int, in_edge: int, clusters: int, *, flat: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PoolingLayer(hidden, in_edge, flat=flat) for _ in range(layers))
        self.head = nn.Sequential(nn.Linear(hidden, 8 * hidden), nn.Tanh(), nn.Linear(8 * hidden, clusters))
        # The original has these weights, but nothing reads the vectors that the last layer makes: no gradient is due.
        self.layers[-1].vector.requires_grad_(False)

    def forward(self, vectors: Tensor, h: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        """S (T, N, K) from `vectors` (T, N, 3, 3 channels), `h` (T, N, H) and the local edges."""
        for layer in self.layers:
            vectors, h = layer(vectors, h, edge_index, edge_attr)
        return self.head(h).to(vectors.dtype).softmax(-1)


class DecoderLayer(nn.Module):
    """O(3)-equivariant network on scalars: one new vector, a weighted sum of the given ones, and new scalars.

    ``s = phi_in([ normalised V^T V, scalars ])``, vector ``V phi_vector(s)``, scalars ``phi_scalar(s)``.

    Attributes
    ----------
    in_scalar, out_vector, out_scalar : nn.Sequential
        phi_in, phi_vector, phi_scalar.
    """

    def __init__(self, n_vectors: int, n_scalars: int, hidden: int, *, flat: bool = False) -> None:
        super().__init__()
        self.in_scalar = mlp(n_vectors**2 + n_scalars, hidden, hidden, flat=flat, last_act=True)
        self.out_vector = mlp(hidden, hidden, n_vectors, flat=flat)
        self.out_scalar = mlp(hidden, hidden, hidden, flat=flat)

    def forward(self, vectors: Tensor, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """Vector (T, N, 3) and scalars (T, N, H) from `vectors` (T, N, 3, V) and `scalars` (T, N, C)."""
        s = self.in_scalar(torch.cat([gram(vectors, vectors), scalars], dim=-1))  # (T, N, H)
        # Not a matrix product, which autocast would round.
        return (vectors * self.out_vector(s)[..., None, :]).sum(-1), self.out_scalar(s)


class Decoder(nn.Module):
    """Decoder layers, each of which appends its vector to the list that the next one sees.

    Parameters
    ----------
    layers, n_vectors, n_scalars, hidden : int
        Number of layers, of vectors and scalars given to the first, H.

    Attributes
    ----------
    layers : ModuleList of DecoderLayer
    """

    def __init__(self, layers: int, n_vectors: int, n_scalars: int, hidden: int, *, flat: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(n_vectors + i, hidden if i else n_scalars, hidden, flat=flat) for i in range(layers)
        )

    def forward(self, vectors: Tensor, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """The last layer's vector (T, N, 3) and scalars (T, N, H), of `vectors` (T, N, 3, V)."""
        for layer in self.layers:
            vector, scalars = layer(vectors, scalars)
            vectors = torch.cat([vectors, vector[..., None]], dim=-1)  # (T, N, 3, V + 1)
        return vector, scalars
