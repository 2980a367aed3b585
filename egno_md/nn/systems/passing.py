"""Networks that pass messages along the edges with ``torch_geometric``: RF and MPNN; one time point.

Row 0 of an edge list receives, which torch_geometric calls ``flow="target_to_source"``: `_i` is the receiver.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from ..baselines import MPNNOptions, RFOptions, at_the_end
from ..egnn import mlp
from ..egno import EGNOOutput

#: Of the leaky ReLU of RF.
SLOPE = 0.2
#: Scale of the last weights of RF's pushes at the start.
SMALL = 0.001


def displacement(x_i: Tensor, x_j: Tensor, shift: Tensor | None) -> Tensor:
    """``x_i - x_j`` (E, 3) of the receivers and the periodic images of the senders."""
    return x_i - x_j if shift is None else x_i - x_j - shift


class RadialFieldLayer(MessagePassing):
    """``x_i <- x_i + mean_j (x_i - x_j) phi(|x_i - x_j|, e_ij) + phi_v(|v_i|) v_i``; phi ends in a tanh.

    Attributes
    ----------
    push, velocity : nn.Sequential
        phi, without a bias at its end, and phi_v.
    """

    def __init__(self, in_edge: int, hidden: int) -> None:
        super().__init__(aggr="mean", flow="target_to_source")
        last = nn.Linear(hidden, 1, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=SMALL)
        self.push = nn.Sequential(nn.Linear(1 + in_edge, hidden), nn.LeakyReLU(SLOPE), last, nn.Tanh())
        self.velocity = nn.Sequential(nn.Linear(1, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, 1))

    def forward(self, x: Tensor, vel: Tensor, edge_index: Tensor, edge_attr: Tensor, shift: Tensor | None) -> Tensor:
        """New positions (N, 3)."""
        pushed = self.propagate(edge_index, x=x, edge_attr=edge_attr, shift=shift)  # (N, 3)
        return x + pushed + self.velocity(torch.linalg.vector_norm(vel, dim=-1, keepdim=True)) * vel

    def message(self, x_i: Tensor, x_j: Tensor, edge_attr: Tensor, shift: Tensor | None) -> Tensor:
        r = displacement(x_i, x_j, shift)  # (E, 3)
        length = torch.linalg.vector_norm(r, dim=-1, keepdim=True)  # (E, 1)
        return r * self.push(torch.cat([length, edge_attr], dim=-1))  # (E, 3)


class RadialField(nn.Module):
    """The radial field of Köhler et al. (2019), with the velocities that Satorras et al. (2021) gave it.

    Pushes along the lines between particles, whose strength is a function of the distance and of the edge scalars. Node
    scalars do not enter; the speed is that of the velocities.

    Parameters
    ----------
    in_node, in_edge : int
        Numbers of node scalars, which are not used, and of edge scalars.
    options : RFOptions
    """

    def __init__(self, in_node: int, in_edge: int, options: RFOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RadialFieldLayer(in_edge, options.hidden) for _ in range(options.layers))

    def forward(
        self,
        h: Tensor,
        pos: Tensor,
        vel: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        *,
        times: int | Tensor | None = None,
        batch: Tensor | None = None,
        edge_shift: Tensor | None = None,
        max_memory: int | None = None,
    ) -> EGNOOutput:
        """Positions (1, N, 3) at the end of the window; arguments as for EGNO."""
        pos, vel = at_the_end(pos, vel, times)
        x = pos[0]  # (N, 3)
        for layer in self.layers:
            x = layer(x, vel[0], edge_index, edge_attr, edge_shift)
        return EGNOOutput(x[None], vel, h[None])


class MPNNLayer(MessagePassing):
    """``h_i <- h_i + phi_h([ h_i, sum_j phi_e([ h_i, h_j, e_ij ]) ])``."""

    def __init__(self, in_edge: int, hidden: int) -> None:
        super().__init__(aggr="sum", flow="target_to_source")
        self.edge = mlp(2 * hidden + in_edge, hidden, hidden, last_act=True)
        self.node = mlp(2 * hidden, hidden, hidden)

    def forward(self, h: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        """New scalars (N, H)."""
        received = self.propagate(edge_index, h=h, edge_attr=edge_attr)  # (N, H)
        return h + self.node(torch.cat([h, received], dim=-1))

    def message(self, h_i: Tensor, h_j: Tensor, edge_attr: Tensor) -> Tensor:
        return self.edge(torch.cat([h_i, h_j, edge_attr], dim=-1))  # (E, H)


class MPNN(nn.Module):
    """A message passing network (Gilmer et al. 2017) on plain coordinates, as Satorras et al. (2021) compared with it.

    Positions and velocities stand among the node scalars, and three of the numbers that come out are the position. It
    knows nothing of rotations, reflections or translations; of periodic images it knows what the edge scalars say.

    Parameters
    ----------
    in_node, in_edge : int
        Numbers of node and edge scalars.
    options : MPNNOptions
    """

    def __init__(self, in_node: int, in_edge: int, options: MPNNOptions) -> None:
        super().__init__()
        hidden = options.hidden
        self.embedding = nn.Linear(in_node + 6, hidden)
        self.layers = nn.ModuleList(MPNNLayer(in_edge, hidden) for _ in range(options.layers))
        self.decoder = mlp(hidden, hidden, 3)

    def forward(
        self, h: Tensor, pos: Tensor, vel: Tensor, edge_index: Tensor, edge_attr: Tensor, *, times=None, **how: Any
    ) -> EGNOOutput:
        """Positions (1, N, 3) at the end of the window; arguments as for EGNO."""
        pos, vel = at_the_end(pos, vel, times)
        h = self.embedding(torch.cat([h, pos[0], vel[0]], dim=-1))  # (N, H)
        for layer in self.layers:
            h = layer(h, edge_index, edge_attr)
        return EGNOOutput(self.decoder(h)[None], vel, h[None])
