"""The EGNN layer (Satorras et al. 2021) for all time points at once, and the small parts that both operators share."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from egno_md.nn.edges.block import compiled_layer, edge_block

#: Edges x T x H up to which a training step keeps what goes into the SiLUs along the edges: three times as many numbers
#: (50 MB in float32) a layer.
KEPT = 2**22
#: phi_e, phi_x, phi_v and phi_h as :func:`mlp` makes them.
_KINDS = [nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, *[nn.Linear, nn.SiLU, nn.Linear] * 3]


def mlp(n_in: int, hidden: int, n_out: int, *, flat: bool = False, last_act: bool = False) -> nn.Sequential:
    """Linear, SiLU, Linear and, with `last_act`, SiLU again. `flat`: tanh, and four times the inner width."""
    act: type[nn.Module] = nn.Tanh if flat else nn.SiLU
    layers = [nn.Linear(n_in, 4 * hidden if flat else hidden), act(), nn.Linear(4 * hidden if flat else hidden, n_out)]
    return nn.Sequential(*layers, act()) if last_act else nn.Sequential(*layers)


def zero_last(net: nn.Sequential) -> None:
    """Make an MLP return 0 whatever comes in, until it is trained."""
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)


def full_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Have `function` of tensors ignore autocast: bf16 would round coordinates of 50 A to 0.2 A."""

    @functools.wraps(function)
    def wrapped(first: Tensor, *rest: object) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *rest)

    return wrapped


def reduce_to(values: Tensor, index: Tensor, size: int, *, mean: bool = False) -> Tensor:
    """Sum or mean over the second axis of `values` (T, M, ...) by target; a target that nothing points at gets 0.

    Returns
    -------
    Tensor (T, size, ...)
    """
    total = values.new_zeros(values.shape[0], size, *values.shape[2:]).index_add(1, index, values)
    if not mean:
        return total
    # Not bincount: the size of its result depends on the index, which a CUDA graph must not.
    count = values.new_zeros(size).index_add_(0, index, values.new_ones(1).expand(len(index))).clamp_(min=1)  # (size,)
    return total / count.view(-1, *[1] * (values.dim() - 2))


def graph_centre(pos: Tensor, batch: Tensor | None, n_graphs: int) -> Tensor:
    """Centre of every graph: the mean over its nodes and, for a sequence, over the time points given.

    Parameters
    ----------
    pos : Tensor (T, N, 3)
    batch : Tensor (N,) or None
        Graph of every node; None for a single graph.

    Returns
    -------
    Tensor (B, 3)
    """
    pos = pos.mean(0, keepdim=True)  # (1, N, 3)
    return pos.mean(1) if batch is None else reduce_to(pos, batch, n_graphs, mean=True)[0]  # (B, 3)


#: Vectors much shorter than this, in the unit of the network, count as no direction in a handed layer.
SOFT = 0.01


def soft_unit(vectors: Tensor) -> Tensor:
    """Directions of vectors (..., 3), smoothly 0 where a vector is 0."""
    return vectors / (vectors.square().sum(-1, keepdim=True) + SOFT**2).sqrt()


class EGNNLayer(nn.Module):
    """One EGNN layer, applied to every time point by itself; one edge list serves all T.

    ::

        m_ij = phi_e([ |x_i - x_j|^2, h_i, h_j, e_ij ])
        x_i <- x_i + phi_v(h_i) v_i + clamp( mean_j (x_i - x_j) phi_x(m_ij), -100, 100 )
        h_i <- phi_h([ h_i, sum_j m_ij ])                       v passes through unchanged

    All of it commutes with reflections: a molecule and its mirror image are the same to it. With `handed`, which the
    paper does not have, phi_x has four outputs; three of them make directions ``b_i, d_i, e_i`` (each
    ``mean_j (x_i - x_j) phi_x(m_ij)`` over its length) whose products change sign in a mirror::

        x_i <- x_i + phi_c(h_i) (b_i x d_i)                     h_i <- phi_h([ h_i, sum_j m_ij, e_i . (b_i x d_i) ])

    ========  ============  =====================================
    symbol    attribute     shape
    ========  ============  =====================================
    phi_e     `message`     1 + 2H + A -> H -> H, SiLU after both
    phi_x     `coord`       H -> H -> 1 (handed: 4)
    phi_v     `velocity`    H -> H -> 1
    phi_h     `node`        2H -> H -> H (handed: from 2H + 1)
    phi_c     `cross`       H -> H -> 1 (handed alone)
    ========  ============  =====================================

    Parameters
    ----------
    hidden : int
        H, width of the node scalars and messages.
    in_edge : int
        A, number of edge scalars.
    flat, norm : bool
        Options of the original code: tanh MLPs of four times the inner width; the squared distance enters as 1.
    residual : bool
        ``h <- h + phi_h(...)``, which the paper does not do.
    reduce : {"sum", "mean"}
        Reduction of the messages that enter phi_h.
    handed : bool
        SE(3)-equivariant instead of O(3): tells a molecule from its mirror image.
    """

    def __init__(
        self,
        hidden: int,
        in_edge: int,
        *,
        flat: bool = False,
        norm: bool = False,
        residual: bool = False,
        reduce: str = "sum",
        handed: bool = False,
    ) -> None:
        super().__init__()
        self.norm, self.residual, self.reduce, self.handed = norm, residual, reduce, handed
        self.message = mlp(1 + 2 * hidden + in_edge, hidden, hidden, flat=flat, last_act=True)
        self.coord = mlp(hidden, hidden, 4 if handed else 1, flat=flat)
        self.velocity = mlp(hidden, hidden, 1, flat=flat)
        self.node = mlp(2 * hidden + handed, hidden, hidden, flat=flat)
        if handed:
            self.cross = mlp(hidden, hidden, 1, flat=flat)

    def stand_still(self) -> None:
        """Initial weights with which the layer moves nothing; directions of a handed layer are there all the same."""
        with torch.no_grad():
            self.coord[-1].weight[0] = 0.0
            self.coord[-1].bias[0] = 0.0
        zero_last(self.velocity)
        if self.handed:
            zero_last(self.cross)

    def forward(
        self,
        pos: Tensor,
        vel: Tensor,
        h: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        *,
        edge_shift: Tensor | None = None,
        max_memory: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New positions (T, N, 3) and scalars (T, N, H) from `pos`, `vel` (T, N, 3) and `h` (T, N, H).

        `edge_index`, `edge_attr`, `edge_shift` and `max_memory` are those of :func:`egno_md.nn.edges.edge_block`.
        """
        small = self._is_small(pos, vel, h, edge_index.shape[1], max_memory)
        weights = self._weights() if small else None
        if weights is not None:
            pos, new = compiled_layer().egnn_layer(
                pos, vel, h, edge_index, edge_attr, weights, edge_shift=edge_shift, mean=self.reduce == "mean"
            )
            return pos, h + new if self.residual else new
        shift, agg = edge_block(
            pos,
            h,
            edge_index,
            edge_attr,
            self.message,
            self.coord,
            edge_shift=edge_shift,
            norm=self.norm,
            reduce=self.reduce,
            max_memory=max_memory,
        )
        received = [h, agg]
        if self.handed:
            shift, *directions = shift.unbind(2)  # 4 of (T, N, 3)
            b, d, e = map(soft_unit, directions)
            axial = torch.linalg.cross(b, d)  # (T, N, 3)
            shift = shift + self.cross(h) * axial
            received.append((e * axial).sum(-1, keepdim=True))  # (T, N, 1)
        pos = pos + self.velocity(h) * vel + shift  # phi_v sees h before its update
        new = self.node(torch.cat(received, dim=-1))  # (T, N, H)
        return pos, h + new if self.residual else new

    def _is_small(self, pos: Tensor, vel: Tensor, h: Tensor, n_edges: int, max_memory: object) -> bool:
        """Whether this is a training step in which the activations along the edges can be kept."""
        return (
            torch.is_grad_enabled()
            and n_edges * len(pos) * h.shape[-1] <= KEPT
            and not isinstance(max_memory, int)
            and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (pos, vel, h))
            and not torch.is_autocast_enabled("cpu")
            and compiled_layer() is not None
        )

    def _weights(self) -> list[Tensor] | None:
        """All of them in the order of the table; None where the layer is not the plain one, or not trained whole."""
        nets = [*self.message, *self.coord, *self.velocity, *self.node]
        linears = [net for net in nets if type(net) is nn.Linear and net.bias is not None]
        if self.norm or self.handed or [type(net) for net in nets] != _KINDS or len(linears) != 8:
            return None
        weights = [w for net in linears for w in (net.weight, net.bias)]
        return weights if all(w.requires_grad for w in weights) else None
