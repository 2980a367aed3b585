"""Networks that pass messages along the edges with ``torch_geometric``: RF, MPNN and ClofNet; one time point.

Row 0 of an edge list receives, which torch_geometric calls ``flow="target_to_source"``: `_i` is the receiver.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from ..baselines import PassingOptions, at_the_end
from ..egnn import graph_centre, mlp
from ..egno import EGNOOutput

#: Of the leaky ReLU of RF.
SLOPE = 0.2
#: Scale of the last weights of the pushes of RF and ClofNet at the start.
SMALL = 0.001
#: Bound of a push of ClofNet, as in the code of its authors.
MAX_PUSH = 100.0


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
    options : PassingOptions
    """

    def __init__(self, in_node: int, in_edge: int, options: PassingOptions) -> None:
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
    options : PassingOptions
    """

    def __init__(self, in_node: int, in_edge: int, options: PassingOptions) -> None:
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


def local_frame(x_i: Tensor, x_j: Tensor) -> Tensor:
    """Three vectors along an edge (E, 3 vectors, 3): the way, the normal of the plane with the centre, their product.

    Each is shortened by 1 + its length and not made a unit vector, as in the code of the authors, so that it is smooth
    where the way or the normal is zero.
    """
    r, normal = x_i - x_j, torch.linalg.cross(x_i, x_j)
    r, normal = (v / (1 + torch.linalg.vector_norm(v, dim=-1, keepdim=True)) for v in (r, normal))
    return torch.stack([r, normal, torch.linalg.cross(r, normal)], dim=1)  # (E, 3 vectors, 3)


class ClofNetLayer(MessagePassing):
    """One layer on the frames of the edges, F_ij of three vectors::

        m_ij = phi_e([ h_i, h_j, |x_i - x_j|^2, s_ij ])
        x_i <- x_i + mean_j sum_k F_ij^k phi_x(m_ij)_k + phi_v(h_i) v_i
        h_i <- LayerNorm( h_i + phi_h([ h_i, sum_j m_ij ]) )

    Attributes
    ----------
    edge, coord, velocity, node, norm
        phi_e, phi_x, phi_v, phi_h and the LayerNorm.
    """

    def __init__(self, in_edge: int, hidden: int) -> None:
        super().__init__(aggr="sum", flow="target_to_source")
        first = mlp(2 * hidden + 1 + in_edge, hidden, hidden, last_act=True)
        self.edge = nn.Sequential(*first, nn.Linear(hidden, hidden), nn.SiLU())
        last = nn.Linear(hidden, 3, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=SMALL)
        self.coord = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), last)
        self.velocity = mlp(hidden, hidden, 1)
        self.node = mlp(2 * hidden, hidden, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(
        self, x: Tensor, vel: Tensor, h: Tensor, edge_index: Tensor, edge_attr: Tensor, shift: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """New positions (N, 3), which are relative to the centre of their graph, and scalars (N, H)."""
        out = self.propagate(edge_index, x=x, h=h, edge_attr=edge_attr, shift=shift)  # (N, H + 3 + 1)
        received, pushed, count = out.split([h.shape[-1], 3, 1], dim=-1)
        x = x + pushed / count.clamp(min=1) + self.velocity(h) * vel
        return x, self.norm(h + self.node(torch.cat([h, received], dim=-1)))

    def message(
        self, x_i: Tensor, x_j: Tensor, h_i: Tensor, h_j: Tensor, edge_attr: Tensor, shift: Tensor | None
    ) -> Tensor:
        x_j = x_j if shift is None else x_j + shift
        square = (x_i - x_j).square().sum(-1, keepdim=True)  # (E, 1)
        m = self.edge(torch.cat([h_i, h_j, square, edge_attr], dim=-1))  # (E, H)
        push = (local_frame(x_i, x_j) * self.coord(m)[..., None]).sum(1).clamp(-MAX_PUSH, MAX_PUSH)  # (E, 3)
        return torch.cat([m, push, torch.ones_like(square)], dim=-1)  # (E, H + 3 + 1)


class ClofNet(nn.Module):
    """ClofNet (Du et al. 2022): an EGNN whose pushes have all three directions of a frame on every edge.

    The second direction is a product of two positions, which a mirror turns round: rotations and translations are kept,
    reflections are not. What the frames say of the positions and velocities at both ends of an edge are scalars; with
    the edge scalars they make s_ij, once for all layers. Positions are relative to the centre of their graph.

    Parameters
    ----------
    in_node, in_edge : int
        Numbers of node and edge scalars.
    options : PassingOptions

    Attributes
    ----------
    embedding, fuse : nn.Module
        Of the node scalars, and of the scalars of an edge.
    layers : ModuleList of ClofNetLayer
    """

    def __init__(self, in_node: int, in_edge: int, options: PassingOptions) -> None:
        super().__init__()
        hidden, narrow = options.hidden, max(options.hidden // 2, 1)
        self.embedding = nn.Linear(in_node, hidden)
        self.fuse = mlp(in_edge + 14, narrow, narrow, last_act=True)
        self.layers = nn.ModuleList(ClofNetLayer(narrow, hidden) for _ in range(options.layers))

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
        centre = graph_centre(pos, batch, 1 if batch is None else int(batch[-1]) + 1)  # (B, 3)
        centre = centre if batch is None else centre[batch]  # (N, 3) or (1, 3)
        x, v, h = pos[0] - centre, vel[0], self.embedding(h)  # (N, 3), (N, 3), (N, H)
        edge_attr = self.fuse(torch.cat([edge_attr, self.scalars(x, v, edge_index, edge_shift)], dim=-1))
        for layer in self.layers:
            x, h = layer(x, v, h, edge_index, edge_attr, edge_shift)
        return EGNOOutput((centre + x)[None], vel, h[None])

    @staticmethod
    def scalars(x: Tensor, vel: Tensor, edge_index: Tensor, shift: Tensor | None) -> Tensor:
        """Sine and cosine of the angle between both ends, and x_i, x_j, v_i and v_j along the frame (E, 14)."""
        row, col = edge_index
        x_i, x_j = x[row], x[col] if shift is None else x[col] + shift
        frame = local_frame(x_i, x_j)  # (E, 3 vectors, 3)
        along = [(frame @ v[..., None])[..., 0] for v in (x_i, x_j, vel[row], vel[col])]  # 4 of (E, 3)
        cos = nn.functional.cosine_similarity(along[0], along[1], dim=-1)[:, None]  # (E, 1)
        return torch.cat([(1 - cos.square()).clamp(min=0).sqrt(), cos, *along], dim=-1)  # (E, 14)
