"""Small random systems and symmetry operations for the tests of the operators; double precision throughout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

torch.set_num_threads(1)


class System(NamedTuple):
    """One graph, or several one after the other, in the order of the operators' arguments."""

    h: Tensor  # (N, 2)
    pos: Tensor  # (N, 3) or (T, N, 3)
    vel: Tensor
    edge_index: Tensor  # (2, E)
    edge_attr: Tensor  # (E, 2)
    local_index: Tensor  # (2, L)
    local_attr: Tensor  # (L, 1)

    @property
    def n_nodes(self) -> int:
        return len(self.h)

    @property
    def local(self) -> dict[str, Tensor]:
        return {"local_index": self.local_index, "local_attr": self.local_attr}

    def transformed(self, rotation: Tensor, translation: Tensor) -> System:
        return self._replace(pos=self.pos @ rotation.T + translation, vel=self.vel @ rotation.T)

    def permuted(self, order: Tensor) -> System:
        """Node ``order[i]`` becomes node i."""
        place = torch.argsort(order)
        return self._replace(
            h=self.h[order],
            pos=self.pos[..., order, :],
            vel=self.vel[..., order, :],
            edge_index=place[self.edge_index],
            local_index=place[self.local_index],
        )


def random_system(n_nodes: int, seed: int = 0, n_frames: int | None = None) -> System:
    """A chain of nodes away from the origin; edges are those of a random directed graph, local edges the chain."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    shape = (n_nodes, 3) if n_frames is None else (n_frames, n_nodes, 3)
    pairs = torch.rand(n_nodes, n_nodes, generator=g) < 0.6
    edge_index = (pairs & ~torch.eye(n_nodes, dtype=torch.bool)).nonzero().T
    chain = torch.stack([torch.arange(n_nodes - 1), torch.arange(1, n_nodes)])
    local = torch.cat([chain, chain.flip(0)], dim=1)
    return System(
        normal(n_nodes, 2),
        2 * normal(*shape) + torch.tensor([7.0, -3.0, 11.0]),
        normal(*shape),
        edge_index,
        normal(edge_index.shape[1], 2),
        local,
        normal(local.shape[1], 1),
    )


def joined(systems: list[System]) -> tuple[System, Tensor]:
    """The systems as one batch, and the graph of every node."""
    sizes = torch.tensor([s.n_nodes for s in systems])
    starts = sizes.cumsum(0) - sizes
    batch = torch.arange(len(systems)).repeat_interleave(sizes)
    one = System(
        torch.cat([s.h for s in systems]),
        torch.cat([s.pos for s in systems], dim=-2),
        torch.cat([s.vel for s in systems], dim=-2),
        torch.cat([s.edge_index + start for s, start in zip(systems, starts, strict=True)], dim=1),
        torch.cat([s.edge_attr for s in systems]),
        torch.cat([s.local_index + start for s, start in zip(systems, starts, strict=True)], dim=1),
        torch.cat([s.local_attr for s in systems]),
    )
    return one, batch


def random_rotation(seed: int, *, mirror: bool = False) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return q if (torch.linalg.det(q) < 0) == mirror else -q


class Official(NamedTuple):
    """One of the vectors that the original implementation produced."""

    config: dict
    weights: dict[str, np.ndarray]
    grad_norms: dict[str, float]
    arrays: dict[str, Tensor]

    @property
    def batch(self) -> Tensor:
        graphs = self.config["graphs"]
        return torch.arange(graphs).repeat_interleave(len(self.arrays["x"]) // graphs)

    def system(self) -> System:
        a = self.arrays
        local = (
            (torch.stack([a["local_row"], a["local_col"]]), a["local_edge_attr"]) if "local_row" in a else (None, None)
        )
        return System(a["h"], a["x"], a["v"], torch.stack([a["row"], a["col"]]), a["edge_attr"], *local)


def read_official(path: Path) -> Official:
    with np.load(path) as data:
        entries = {name: data[name] for name in data.files}
    config = json.loads(str(entries.pop("config")))
    weights = {name[2:]: value for name, value in entries.items() if name.startswith("w/")}
    norms = {name[6:]: float(value) for name, value in entries.items() if name.startswith("gnorm/")}
    arrays = {name: torch.as_tensor(value) for name, value in entries.items() if "/" not in name}
    return Official(config, weights, norms, arrays)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.norm())
