"""The Equivariant Graph Neural Operator (Xu et al., ICML 2024)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import UsageError
from ..specs import Spec
from .egnn import EGNNLayer, graph_centre
from .operators import Operator, register
from .spectral import FourierBasis, NodeEmbedding, TemporalConv, fourier_basis

#: What the temporal convolutions act on: (scalars h, channels of the vectors), by name; table 7, I to IV.
TIME_CONVS = {"full": (True, 2), "positions": (True, 1), "scalars": (True, 0), "none": (False, 0)}


class EGNOOutput(NamedTuple):
    """What :class:`EGNO` returns; only `pos` is supervised in the paper."""

    pos: Tensor  # (T, N, 3)
    vel: Tensor  # (T, N, 3)
    h: Tensor  # (T, N, H)


class EGNOOptions(Spec):
    """Settings of :class:`EGNO`; the defaults of the paper's options are the paper's.

    Attributes
    ----------
    hidden, layers : int
        Width H and number of layers.
    modes : int
        M, Fourier modes kept by the temporal convolutions; 0 leaves these out, as `time_conv` "none" does.
    time_embedding : int
        D, width of the time embedding (even).
    time_conv : {"full", "positions", "scalars", "none"}
        Table 7: I convolves h, x and v; II h and x; III h alone; IV nothing (EGNN, EGHN).
    flat, norm : bool
        Options of the original code, readable for its weights, never a default.
    residual : bool
        Add the old h to the new one in every EGNN layer (not in the paper).
    reduce : {"sum", "mean"}
        How messages meet at the receiver; the paper sums.
    handed : bool
        SE(3)- instead of O(3)-equivariant layers, which tell a molecule from its mirror image (not in the paper); see
        :class:`egno_md.nn.egnn.EGNNLayer`.
    start : {"paper", "static"}
        Initial weights: the original's, or those whose forecast is the static frame.
    """

    hidden: int = Field(64, ge=1)
    layers: int = Field(4, ge=1)
    modes: int = Field(2, ge=0)
    time_embedding: int = Field(32, ge=4, multiple_of=2)
    time_conv: Literal["full", "positions", "scalars", "none"] = "full"
    flat: bool = False
    norm: bool = False
    residual: bool = False
    reduce: Literal["sum", "mean"] = "sum"
    handed: bool = False
    start: Literal["paper", "static"] = "paper"


def symmetry(options: EGNOOptions) -> Literal["E(3)", "SE(3)"]:
    """What the outputs of EGNO and EGHNO turn with: handed layers tell left from right."""
    return "SE(3)" if options.handed else "E(3)"


class OperatorBlock(nn.Module):
    """EGNN layers with temporal convolutions between them: what EGNO is made of, and each level of EGHNO.

    The convolutions, with Z = [x - c, v] and c the centre of the graph at the input (equations 5 to 9)::

        h <- h + LeakyReLU_0.01( irfft_T( sum_i rfft_T(h)[m, n, i]    W_h[i, o, m] ) )        m < M, 0 above
        Z <- Z +                 irfft_T( sum_i rfft_T(Z)[m, n, d, i] W_x[i, o, m] )          x = Z_0 + c, v = Z_1

    Parameters
    ----------
    layers, hidden, in_edge : int
        Number of EGNN layers, H and A.
    modes : int
        M.
    time_conv : {"full", "positions", "scalars", "none"}
        What is convolved: h, x and v; h and x; h; nothing.
    placement : {"before", "end"}
        The two convolutions in front of every EGNN layer, or once, after the last.
    start : {"paper", "static"}
        "static" makes the untrained block return its positions and velocities unchanged.
    **options
        `flat`, `norm`, `residual`, `reduce` and `handed` of :class:`~egno_md.nn.egnn.EGNNLayer`.
    """

    def __init__(
        self,
        layers: int,
        hidden: int,
        in_edge: int,
        *,
        modes: int,
        time_conv: str,
        placement: str = "before",
        start: str = "paper",
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("time_conv", time_conv, tuple(TIME_CONVS)),
            ("placement", placement, ("before", "end")),
            ("start", start, ("paper", "static")),
        ):
            if value not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}; found {value!r}")
        scalars, vectors = TIME_CONVS[time_conv]
        n_convs = layers if placement == "before" else 1
        self.placement = placement
        self.layers = nn.ModuleList(EGNNLayer(hidden, in_edge, **options) for _ in range(layers))
        self.scalar_conv = nn.ModuleList(TemporalConv(hidden, modes, 1 / hidden**2) for _ in range(n_convs * scalars))
        self.vector_conv = nn.ModuleList(TemporalConv(vectors, modes, 0.1) for _ in range(n_convs if vectors else 0))
        if start == "static":
            for conv in self.vector_conv:
                nn.init.zeros_(conv.weight)
            for layer in self.layers:
                layer.stand_still()

    def convolve(
        self, step: int, pos: Tensor, vel: Tensor, h: Tensor, centre: Tensor, basis: FourierBasis | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The temporal convolutions number `step`, as far as this block has them."""
        if self.scalar_conv:
            h = h + nn.functional.leaky_relu(self.scalar_conv[step](h, basis), 0.01)
        if self.vector_conv:
            conv = self.vector_conv[step]
            z = torch.stack([pos - centre, vel][: len(conv.weight)], dim=-1)  # (T, N, 3, 2), of positions alone 1
            with torch.autocast(z.device.type, enabled=False):  # bf16 would round coordinates of 50 A to 0.2 A
                dz = conv(z, basis).unbind(-1)  # 2 of (T, N, 3)
            # Z_0 + c without ever rounding x: a convolution of zeros leaves the positions as they are.
            pos = pos + dz[0]
            vel = vel + dz[1] if len(dz) > 1 else vel
        return pos, vel, h

    def forward(
        self,
        pos: Tensor,
        vel: Tensor,
        h: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        *,
        centre: Tensor,
        basis: FourierBasis | None,
        edge_shift: Tensor | None = None,
        max_memory: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New `pos`, `vel` (T, N, 3) and `h` (T, N, H); `centre` (N, 3) or (1, 3); `basis` of T where it convolves."""
        for i, layer in enumerate(self.layers):
            if self.placement == "before":
                pos, vel, h = self.convolve(i, pos, vel, h, centre, basis)
            pos, h = layer(pos, vel, h, edge_index, edge_attr, edge_shift=edge_shift, max_memory=max_memory)
        if self.placement == "end":
            pos, vel, h = self.convolve(0, pos, vel, h, centre, basis)
        return pos, vel, h


def over_time(pos: Tensor, vel: Tensor, times: int | Tensor | None, n_times: int) -> tuple[Tensor, Tensor, Tensor]:
    """The input at every time point, and the time points: a state is repeated, a sequence is taken as it is.

    Returns
    -------
    pos, vel : Tensor (T, N, 3)
    times : Tensor (T,)

    Raises
    ------
    UsageError
        For shapes that do not fit together, or no time point at all.
    """
    if pos.shape != vel.shape or pos.dim() not in (2, 3) or pos.shape[-1] != 3:
        raise UsageError(
            "positions and velocities must both be (N, 3), or both (T, N, 3) for a sequence; "
            f"found {tuple(pos.shape)} and {tuple(vel.shape)}"
        )
    if times is None:
        times = len(pos) if pos.dim() == 3 else n_times
    asked = times
    times = torch.as_tensor(times, device=pos.device)
    if times.dim() == 0:
        times = torch.arange(max(int(times), 0), device=pos.device)  # (T,)
    if times.dim() != 1 or not len(times):
        raise UsageError(f"times must be at least 1, or a non-empty vector of time points; found {asked}")
    if pos.dim() == 2:
        pos, vel = pos.expand(len(times), -1, -1), vel.expand(len(times), -1, -1)  # (T, N, 3)
    elif len(pos) != len(times):
        raise UsageError(
            f"a sequence of {len(pos)} frames cannot be asked for {len(times)} time points; they must agree"
        )
    return pos, vel, times.to(pos.dtype)


class EGNO(nn.Module):
    """The Equivariant Graph Neural Operator: the whole window of T frames from its start in one call.

    With f the node features, x0 and v0 the input and c the mean of x0 over the nodes of each graph::

        emb(t) = [sin(t w_0) ... sin(t w_{D/2-1}), cos(t w_0) ...],  w_k = exp(-ln(10000) k / (D/2 - 1))
        h = Linear([f, emb(t)]);  x, v = x0, v0 at every t           (a sequence (T, N, 3) is taken as it is)
        in every layer:
          h <- h + LeakyReLU_0.01( irfft_T( sum_i rfft_T(h)[m, n, i] W_h[i, o, m] ) )
          Z = [x - c, v];  Z <- Z + irfft_T( sum_i rfft_T(Z)[m, n, d, i] W_x[i, o, m] );  x = Z_0 + c, v = Z_1
          m_ij = phi_e([ |x_i - x_j|^2, h_i, h_j, e_ij ])
          x_i <- x_i + phi_v(h_i) v_i + clamp( mean_j (x_i - x_j) phi_x(m_ij), -100, 100 )
          h_i <- phi_h([ h_i, sum_j m_ij ])

    ===================  ====================================  ===============================
    symbol               attribute                             source
    ===================  ====================================  ===============================
    Linear, emb(t)       `embedding`                           section 4.3; equation 27
    W_h                  `block.scalar_conv[l].weight`         equations 5, 7, 8
    W_x                  `block.vector_conv[l].weight`         equations 5, 7, 8; theorem 4.1
    phi_e                `block.layers[l].message`             equation 10 (EGNN)
    phi_x, phi_v, phi_h  `.coord`, `.velocity`, `.node`        equation 10 (EGNN)
    M, T, D, H           `modes`, `n_times` and ``times``,     appendix B.3; section 5.5
                         `time_embedding`, `hidden`
    ===================  ====================================  ===============================

    The loss is that of the positions, which do not depend on phi_h of the last layer: it gets no gradient.

    Parameters
    ----------
    in_node, in_edge : int
        F and A, numbers of node and edge scalars.
    hidden, n_layers : int
        H and the number of layers.
    n_times : int
        T where a call does not say.
    modes : int
        M, Fourier modes kept; at most T // 2 + 1 of every call. 0 leaves the temporal convolutions out.
    time_embedding : int
        D, even and at least 4; 0 leaves the time out of the node scalars.
    time_conv : {"full", "positions", "scalars", "none"}
        Table 7: I convolves h, x and v; II h and x; III h; IV nothing (EGNN).
    flat, norm, residual, reduce, handed
        See :class:`~egno_md.nn.egnn.EGNNLayer`.
    start : {"paper", "static"}
        Initial weights: the original's, or those with which the untrained output is the input at every time.
    """

    def __init__(
        self,
        in_node: int,
        in_edge: int,
        hidden: int = 64,
        n_layers: int = 4,
        *,
        n_times: int = 8,
        modes: int = 2,
        time_embedding: int = 32,
        time_conv: str = "full",
        flat: bool = False,
        norm: bool = False,
        residual: bool = False,
        reduce: str = "sum",
        handed: bool = False,
        start: str = "paper",
    ) -> None:
        super().__init__()
        time_conv = time_conv if modes else "none"
        self.n_times, self.modes, self.time_conv = n_times, modes, time_conv
        self.embedding = NodeEmbedding(in_node, hidden, time_embedding)
        self.block = OperatorBlock(
            n_layers,
            hidden,
            in_edge,
            modes=modes,
            time_conv=time_conv,
            start=start,
            flat=flat,
            norm=norm,
            residual=residual,
            reduce=reduce,
            handed=handed,
        )

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
        n_graphs: int | None = None,
        edge_shift: Tensor | None = None,
        max_memory: int | None = None,
    ) -> EGNOOutput:
        """The trajectory at `times`.

        Parameters
        ----------
        h : Tensor (N, F)
            Node features.
        pos, vel : Tensor (N, 3) or (T, N, 3)
            A state, or a sequence with one frame for each time point (trajectory to trajectory, appendix C.1); the
            centre of a graph is then its mean over the sequence as well. The units are those of the training data.
        edge_index : Tensor (2, E)
            Row 0 receives, row 1 sends.
        edge_attr : Tensor (E, A)
            Edge scalars.
        times : int or Tensor (T,), optional
            The time points in strides after the first predicted frame; an int T means 0 ... T - 1. By default as
            many as the input sequence has frames, or `n_times`.
        batch : Tensor (N,), optional
            Graph of every node, sorted; by default all are one graph.
        n_graphs : int, optional
            Number of graphs in `batch`; by default read from it, for which a GPU has to be waited for.
        edge_shift : Tensor (E, 3), optional
            Periodic images: the sender of edge e is at ``pos[sender] + edge_shift[e]``.
        max_memory : int, optional
            Bound in bytes of the temporaries along the edges.

        Returns
        -------
        EGNOOutput

        Raises
        ------
        UsageError
            For more modes than the T time points have, or shapes that do not fit together.
        """
        pos, vel, times = over_time(pos, vel, times, self.n_times)  # (T, N, 3), (T, N, 3), (T,)
        basis = None if self.time_conv == "none" else fourier_basis(len(times), self.modes, pos)
        if n_graphs is None:
            n_graphs = 1 if batch is None else int(batch[-1]) + 1
        centre = graph_centre(pos, batch, n_graphs)  # (B, 3)
        pos, vel, h = self.block(
            pos,
            vel,
            self.embedding(h, times),
            edge_index,
            edge_attr,
            # A constant of the input, as in the original code: no gradient goes through it.
            centre=(centre if batch is None else centre[batch]).detach(),
            basis=basis,
            edge_shift=edge_shift,
            max_memory=max_memory,
        )
        return EGNOOutput(pos, vel, h)


def _build(in_node: int, in_edge: int, n_times: int, options: EGNOOptions) -> EGNO:
    values = options.model_dump()
    return EGNO(in_node, in_edge, values.pop("hidden"), values.pop("layers"), n_times=n_times, **values)


OPERATOR = register(Operator("egno", _build, EGNOOptions, symmetry=symmetry))
