"""An operator as another package would bring it: pushes along the edges that depend on time, no layers."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from egno_md.nn.egno import over_time
from egno_md.nn.operators import Operator
from egno_md.specs import Spec


class ToyOptions(Spec):
    width: int = 8
    drag: float = 0.0  # weight of a loss of its own


class ToyOutput(NamedTuple):
    pos: Tensor  # (T, N, 3)
    vel: Tensor  # (T, N, 3)
    speed: Tensor  # ()


class Toy(nn.Module):
    def __init__(self, in_node: int, in_edge: int, n_times: int, options: ToyOptions) -> None:
        super().__init__()
        self.n_times, width = n_times, options.width
        self.net = nn.Sequential(nn.Linear(2 + 2 * in_node + in_edge, width), nn.SiLU(), nn.Linear(width, 1))
        self.glide = nn.Parameter(torch.zeros(1))

    def forward(self, h, pos, vel, edge_index, edge_attr, *, times=None, batch=None, edge_shift=None, max_memory=None):
        pos, vel, times = over_time(pos, vel, times, self.n_times)  # (T, N, 3), (T, N, 3), (T,)
        row, col = edge_index
        r = pos[:, row] - pos[:, col] - (0 if edge_shift is None else edge_shift)  # (T, E, 3)
        fixed = torch.cat([h[row], h[col], edge_attr], dim=-1).expand(len(times), -1, -1)  # (T, E, 2F + A)
        time = times[:, None, None].expand(-1, len(row), 1)  # (T, E, 1)
        push = r * self.net(torch.cat([r.square().sum(-1, keepdim=True), time, fixed], dim=-1))  # (T, E, 3)
        moved = (self.glide * (times + 1))[:, None, None] * vel + torch.zeros_like(pos).index_add(1, row, push)
        return ToyOutput(pos + moved, vel, moved.square().mean())


OPERATOR = Operator("toy", Toy, ToyOptions, loss_terms=lambda out, options: {"drag": options.drag * out.speed})
