"""An operator as another package would bring it: pushes along the edges that depend on time, and a loss of its own."""

from typing import NamedTuple

import torch

from egno_md.nn.egno import over_time
from egno_md.nn.operators import Operator
from egno_md.specs import Spec


class ToyOptions(Spec):
    width: int = 8
    drag: float = 0.0  # weight of a loss of its own


class ToyOutput(NamedTuple):
    pos: torch.Tensor  # (T, N, 3)
    vel: torch.Tensor
    speed: torch.Tensor  # ()


class Toy(torch.nn.Module):
    def __init__(self, in_node, in_edge, n_times, options):
        super().__init__()
        self.n_times, self.glide = n_times, torch.nn.Parameter(torch.zeros(1))
        first = torch.nn.Linear(2 + 2 * in_node + in_edge, options.width)
        self.net = torch.nn.Sequential(first, torch.nn.SiLU(), torch.nn.Linear(options.width, 1))

    def forward(self, h, pos, vel, edge_index, edge_attr, *, times=None, batch=None, edge_shift=None, max_memory=None):
        pos, vel, times = over_time(pos, vel, times, self.n_times)  # (T, N, 3), (T, N, 3), (T,)
        row, col = edge_index  # row receives, col sends
        r = pos[:, row] - pos[:, col] - (0 if edge_shift is None else edge_shift)  # (T, E, 3)
        edges = [h[row].expand(len(r), -1, -1), h[col].expand(len(r), -1, -1), edge_attr.expand(len(r), -1, -1)]
        edges += [r.square().sum(-1, keepdim=True), times[:, None, None].expand(-1, len(row), 1)]
        push = r * self.net(torch.cat(edges, dim=-1))  # (T, E, 3)
        moved = self.glide * (1 + times[:, None, None]) * vel + torch.zeros_like(pos).index_add(1, row, push)
        return ToyOutput(pos + moved, vel, moved.square().mean())


OPERATOR = Operator("toy", Toy, ToyOptions, loss_terms=lambda out, options: {"drag": options.drag * out.speed})
