"""Networks on tensors of several degrees, built with ``e3nn``: TFN and the SE(3)-Transformer; one time point.

A feature of degree l has 2 l + 1 numbers that turn with the Wigner matrix of l; its channels are mixed by
``e3nn.o3.Linear`` alone. All features count as even, so that products which a mirror turns round are allowed, as in
both papers: rotations and translations are kept, reflections are not.
"""

from __future__ import annotations

from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn
from torch_geometric.utils import softmax

from ..baselines import AttentionOptions, TensorOptions, at_the_end
from ..egnn import reduce_to
from ..egno import EGNOOutput

#: Added to squared lengths, whose root has no derivative at 0.
TINY = 1e-12


def features(channels: int, degree: int) -> o3.Irreps:
    """`channels` of every degree from 0 to `degree`."""
    return o3.Irreps([(channels, (l, 1)) for l in range(degree + 1)])  # noqa: E741


class Convolution(nn.Module):
    """The kernel of TFN along the edges (Thomas et al. 2018): ``sum over paths of R(|r|, e) C (f_j x Y(r))``.

    Every channel is multiplied with the spherical harmonics of the edge by itself, with a weight for every path (l_j,
    l_Y) -> l_i and channel from the radial network; a self-interaction mixes the channels afterwards.

    Parameters
    ----------
    incoming, harmonics, outgoing : o3.Irreps
        Of f_j, of Y and of the result.
    in_edge, hidden : int
        Scalars of an edge and width of the radial network.
    """

    def __init__(
        self, incoming: o3.Irreps, harmonics: o3.Irreps, outgoing: o3.Irreps, in_edge: int, hidden: int
    ) -> None:
        super().__init__()
        wanted = {ir for _, ir in outgoing}
        found, paths = [], []
        for i, (channels, f) in enumerate(incoming):
            for j, (_, y) in enumerate(harmonics):
                for ir in f * y:
                    if ir in wanted:
                        paths.append((i, j, len(found), "uvu", True))
                        found.append((channels, ir))
        self.product = o3.TensorProduct(
            incoming, harmonics, o3.Irreps(found), paths, shared_weights=False, internal_weights=False
        )
        self.mix = o3.Linear(o3.Irreps(found), outgoing)
        self.radial = nn.Sequential(
            nn.Linear(1 + in_edge, hidden), nn.SiLU(), nn.Linear(hidden, self.product.weight_numel)
        )

    def forward(self, f_j: Tensor, harmonics: Tensor, scalars: Tensor) -> Tensor:
        """Messages (E, C') from the features of the senders (E, C), Y (E, Y) and [|r|, e] (E, 1 + A)."""
        return self.mix(self.product(f_j, harmonics, self.radial(scalars)))


class Nonlinearity(nn.Module):
    """SiLU of the scalars; of every other channel V, ``sigmoid(|V| + b) V`` with a number b for each channel."""

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        scalars, others = irreps[:1], irreps[1:]
        self.n_scalars = scalars.dim
        self.square = o3.Norm(others, squared=True)
        self.bias = nn.Parameter(torch.zeros(others.num_irreps))
        self.scale = o3.ElementwiseTensorProduct(others, o3.Irreps([(others.num_irreps, (0, 1))]))

    def forward(self, f: Tensor) -> Tensor:
        scalars, others = f[:, : self.n_scalars], f[:, self.n_scalars :]
        length = (self.square(others) + TINY).sqrt()  # (N, channels), smooth where a channel is 0
        return torch.cat([nn.functional.silu(scalars), self.scale(others, (length + self.bias).sigmoid())], dim=-1)


class _Harmonic(nn.Module):
    """What TFN and the SE(3)-Transformer share: node scalars and the velocity in, layers, a displacement out."""

    def __init__(self, in_node: int, in_edge: int, options: TensorOptions) -> None:
        super().__init__()
        incoming, hidden = o3.Irreps([(in_node, (0, 1)), (1, (1, 1))]), features(options.channels, options.degree)
        self.harmonics = o3.Irreps.spherical_harmonics(options.degree, p=1)
        steps = [incoming, *[hidden] * (options.layers - 1), o3.Irreps("1x1e")]
        self.layers = nn.ModuleList(
            self.layer(before, after, in_edge, options) for before, after in zip(steps[:-1], steps[1:], strict=True)
        )
        self.nonlinear = nn.ModuleList(Nonlinearity(hidden) for _ in range(options.layers - 1))

    def layer(self, before: o3.Irreps, after: o3.Irreps, in_edge: int, options: Any) -> nn.Module:
        """A layer that is called with features, edges, Y and the scalars of the edges, and gives features."""
        raise NotImplementedError

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
        row, col = edge_index
        r = pos[0, row] - pos[0, col] - (0 if edge_shift is None else edge_shift)  # (E, 3)
        y = o3.spherical_harmonics(self.harmonics, r, normalize=True, normalization="component")  # (E, Y)
        scalars = torch.cat([torch.linalg.vector_norm(r, dim=-1, keepdim=True), edge_attr], dim=-1)  # (E, 1 + A)
        f = torch.cat([h, vel[0]], dim=-1)  # (N, F + 3)
        for k, layer in enumerate(self.layers):
            f = layer(f, edge_index, y, scalars)
            if k < len(self.nonlinear):
                f = self.nonlinear[k](f)
        return EGNOOutput(pos + f, vel, h[None])


class TFNLayer(nn.Module):
    """``f_i <- W f_i + mean_j kernel(r_ij) f_j``."""

    def __init__(self, before: o3.Irreps, after: o3.Irreps, harmonics: o3.Irreps, in_edge: int, hidden: int) -> None:
        super().__init__()
        self.own = o3.Linear(before, after, biases=True)
        self.kernel = Convolution(before, harmonics, after, in_edge, hidden)

    def forward(self, f: Tensor, edge_index: Tensor, harmonics: Tensor, scalars: Tensor) -> Tensor:
        """New features (N, C')."""
        row, col = edge_index
        messages = self.kernel(f[col], harmonics, scalars)  # (E, C')
        return self.own(f) + reduce_to(messages[None], row, len(f), mean=True)[0]


class TFN(_Harmonic):
    """The tensor field network of Thomas et al. (2018): point convolutions, self-interactions and nonlinearities.

    As in the code of Fuchs et al. (2020), which the published numbers come from, a node takes the mean over its
    neighbours, the velocity is a feature of degree 1 at the start, and the last layer gives the displacement.

    Parameters
    ----------
    in_node, in_edge : int
        Numbers of node and edge scalars.
    options : TensorOptions
    """

    def layer(self, before: o3.Irreps, after: o3.Irreps, in_edge: int, options: TensorOptions) -> TFNLayer:
        return TFNLayer(before, after, self.harmonics, in_edge, options.hidden)


class AttentionLayer(nn.Module):
    """Attention along the edges (Fuchs et al. 2020, section 3): kernels of TFN make keys and values::

        q_i = W_q f_i,  k_ij = kernel_k(r_ij) f_j,  v_ij = kernel_v(r_ij) f_j
        a_ij = softmax_j( q_i . k_ij / sqrt(d) ),   f_i <- W f_i + W_o sum_j a_ij v_ij

    The scalar product runs over all degrees, so that a_ij does not turn; d are the numbers of a head in it.
    """

    def __init__(
        self, before: o3.Irreps, after: o3.Irreps, harmonics: o3.Irreps, in_edge: int, options: AttentionOptions
    ) -> None:
        super().__init__()
        middle = features(options.channels, options.degree)
        self.heads, self.irreps = options.heads, middle
        self.own = o3.Linear(before, after, biases=True)
        # Degrees that the input does not have would be zero in every query.
        present = o3.Irreps([(channels, ir) for channels, ir in middle if ir in before])
        self.query_irreps, self.query = present, o3.Linear(before, present)
        self.key = Convolution(before, harmonics, present, in_edge, options.hidden)
        self.value = Convolution(before, harmonics, middle, in_edge, options.hidden)
        self.out = o3.Linear(middle, after)

    def forward(self, f: Tensor, edge_index: Tensor, harmonics: Tensor, scalars: Tensor) -> Tensor:
        """New features (N, C')."""
        row, col = edge_index
        q, k = self.query(f)[row], self.key(f[col], harmonics, scalars)  # (E, D) both
        products = [
            part.unflatten(-1, (self.heads, -1)).sum(-1)  # (E, heads)
            for part in (q * k).split([irreps.dim for irreps in self.query_irreps], dim=-1)
        ]
        logits = sum(products) / (self.query_irreps.dim / self.heads) ** 0.5  # (E, heads)
        weights = softmax(logits, row, num_nodes=len(f))  # (E, heads)
        v = self.value(f[col], harmonics, scalars)  # (E, C)
        shared = [
            (part.unflatten(-1, (self.heads, -1)) * weights[..., None]).flatten(-2)  # (E, C of a degree)
            for part in v.split([irreps.dim for irreps in self.irreps], dim=-1)
        ]
        return self.own(f) + self.out(reduce_to(torch.cat(shared, dim=-1)[None], row, len(f))[0])


class SE3Transformer(_Harmonic):
    """The SE(3)-Transformer of Fuchs et al. (2020): attention whose keys and values are made by kernels of TFN.

    Parameters
    ----------
    in_node, in_edge : int
        Numbers of node and edge scalars.
    options : AttentionOptions
    """

    def layer(self, before: o3.Irreps, after: o3.Irreps, in_edge: int, options: AttentionOptions) -> AttentionLayer:
        return AttentionLayer(before, after, self.harmonics, in_edge, options)
