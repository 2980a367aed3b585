"""The systems that the paper compares with (section 5), as operators of the register.

Most of them predict one time point, the end of the window: the tables of the paper have their F-MSE there. A window for
them has ``n_times = 1`` and as its ``span`` the strides to that end. EGNN-R, EGNN-S and EGNN with temporal bundling
predict all T points of a window, and have an A-MSE too. What builds on torch_geometric or e3nn lies in
:mod:`egno_md.nn.systems` and is imported when such an operator is built.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import MissingPackageError, UsageError
from ..specs import Spec
from .eghno import EGHNO, IN_LOCAL, EGHNOOutput
from .egnn import EGNNLayer
from .egno import EGNO, EGNOOutput, over_time
from .operators import Operator, Symmetry, register
from .spectral import NodeEmbedding

#: A regression of the path goes on from several points; these systems know one start.
_STATIC = {"model": {"prior": "static"}}


def at_the_end(pos: Tensor, vel: Tensor, times: int | Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions and velocities (1, N, 3) of a system that predicts the end of its window alone.

    Raises
    ------
    UsageError
        Another time point is asked for, or several.
    """
    pos, vel, points = over_time(pos, vel, times, 1)  # (T, N, 3), (T, N, 3), (T,)
    # Without `times` nothing is read, for which a GPU would have to be waited for.
    if len(points) != 1 or (isinstance(times, Tensor) and float(points[0])):
        raise UsageError(
            "this operator predicts the end of its window and no other time point: ask for substeps=1 and whole "
            f"windows; found the time points {points.tolist()}"
        )
    return pos, vel


def one_start(pos: Tensor, vel: Tensor, times: int | Tensor | None, n_times: int) -> int:
    """T of a system that goes on from one start frame, whose time points are 0, 1, ..., T - 1.

    Raises
    ------
    UsageError
        A sequence of frames, or time points between these.
    """
    if pos.dim() == 3:
        raise UsageError(
            "this operator goes on from one start frame: set window.history = 1 and model.prior = static; found a "
            f"sequence of {len(pos)}"
        )
    points = over_time(pos, vel, times, n_times)[2]  # (T,)
    if isinstance(times, Tensor) and not torch.equal(points, torch.arange(len(points)).to(points)):
        raise UsageError(
            f"this operator predicts the time points 0, 1, ... and none between them: ask for substeps=1; found "
            f"{points.tolist()}"
        )
    return len(points)


class EGNNOptions(Spec):
    """Settings of the operator ``"egnn"``.

    Attributes
    ----------
    hidden, layers : int
        Width H and number of layers.
    residual : bool
        Add the old h to the new one in every layer (not in equation 6).
    reduce : {"sum", "mean"}
        How messages meet at the receiver; equation 5 sums.
    start : {"paper", "static"}
        Initial weights: torch's, or those whose forecast is the static frame.
    """

    hidden: int = Field(64, ge=1)
    layers: int = Field(4, ge=1)
    residual: bool = False
    reduce: Literal["sum", "mean"] = "sum"
    start: Literal["paper", "static"] = "paper"


class EGNN(EGNO):
    """EGNN with velocities (Satorras et al. 2021, equations 3 to 7): the end of the window from its start.

    EGNO without temporal convolutions and time embedding: :class:`~egno_md.nn.egnn.EGNNLayer` after a Linear of the
    node scalars. As in the code of the EGNO paper the velocity of the start enters every layer, ``x_i <- x_i +
    phi_v(h_i) v_i + mean_j (x_i - x_j) phi_x(m_ij)``.

    Parameters
    ----------
    in_node, in_edge, hidden, layers
        As for :class:`~egno_md.nn.egno.EGNO`.
    **options
        ``residual``, ``reduce`` and ``start``.
    """

    def __init__(self, in_node: int, in_edge: int, hidden: int = 64, layers: int = 4, **options: Any) -> None:
        super().__init__(in_node, in_edge, hidden, layers, n_times=1, time_embedding=0, time_conv="none", **options)

    def forward(self, h: Tensor, pos: Tensor, vel: Tensor, *edges: Tensor, times=None, **how: Any) -> EGNOOutput:
        """Positions (1, N, 3) at the end of the window; arguments as for :meth:`egno_md.nn.egno.EGNO.forward`."""
        pos, vel = at_the_end(pos, vel, times)
        return super().forward(h, pos, vel, *edges, times=1, **how)


class RolledOptions(EGNNOptions):
    """Settings of ``"egnn-r"``.

    Attributes
    ----------
    step : float
        Time between two points of the window in the time that velocities count in: a displacement from one point to the
        next, divided by it, is the velocity that the next call starts with. 1 where a point is a stride; ``span /
        n_times`` where targets are thinned out; N-body of the paper 0.2, for its velocities count ten frames.
    speed : bool
        Whether the first node scalar is the speed, in the network's unit of length, and follows the velocity.
    start : {"static", "paper"}
        As of EGNN; what torch's initial weights make of their own predictions soon is no number any more.
    """

    step: float = Field(1.0, gt=0)
    speed: bool = True
    start: Literal["paper", "static"] = "static"


class BundledOptions(RolledOptions):
    """Settings of ``"egnn-tb"``.

    Attributes
    ----------
    bundle : int
        Time points in a block.
    time_embedding : int
        Width of the embedding of the points in a block (even).
    """

    bundle: int = Field(2, ge=1)
    time_embedding: int = Field(32, ge=4, multiple_of=2)


class RolledEGNN(nn.Module):
    """An EGNN called again on what it predicted: EGNN-R, and EGNN with temporal bundling (appendix C).

    A call gives a block of `bundle` time points. The next one starts at the last of them, with the way from the point
    before it as velocity.

    - EGNN-R: blocks of one point, "trained on the shortest time span and tested by iteratively rolling out" (section
      5.1): while it is being trained (``module.train()``) the first point alone is its own, the others are straight
      flight on from there, from which nothing is learned.
    - EGNN-TB (Brandstetter et al. 2022): the points of a block are EGNNs side by side that know their time by its
      embedding (ablation IV); the loss of all points reaches through the blocks.

    Parameters
    ----------
    in_node, in_edge, hidden, layers
        As for :class:`~egno_md.nn.egno.EGNO`.
    n_times : int
        T where a call does not say.
    bundle : int
        Time points in a block.
    time_embedding : int
        Width of their embedding; 0 for none.
    first_only : bool
        Whether only the first block is learned from; then `bundle` is 1.
    step, speed
        See :class:`RolledOptions`.
    **options
        ``residual``, ``reduce`` and ``start``.
    """

    def __init__(
        self,
        in_node: int,
        in_edge: int,
        hidden: int = 64,
        layers: int = 4,
        *,
        n_times: int = 8,
        bundle: int = 1,
        time_embedding: int = 0,
        first_only: bool = True,
        step: float = 1.0,
        speed: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.n_times, self.bundle, self.first_only, self.step, self.speed = n_times, bundle, first_only, step, speed
        self.block = EGNO(in_node, in_edge, hidden, layers, time_embedding=time_embedding, time_conv="none", **options)

    def forward(self, h: Tensor, pos: Tensor, vel: Tensor, *edges: Tensor, times=None, **how: Any) -> EGNOOutput:
        """Positions (T, N, 3), and as velocities the way to each point from the one before, by `step`."""
        n_times = one_start(pos, vel, times, self.n_times)
        path, speeds, scalars = [], [], []
        for first in range(0, n_times, self.bundle):
            out = self.block(h, pos, vel, *edges, times=min(self.bundle, n_times - first), **how)
            way = torch.diff(out.pos, dim=0, prepend=pos[None]) / self.step  # (K, N, 3)
            path, speeds, scalars = [*path, out.pos], [*speeds, way], [*scalars, out.h]
            if self.first_only and self.training:
                rest = torch.arange(1, n_times).to(pos)[:, None, None] * self.step  # (T - 1, 1, 1)
                path.append((out.pos + rest * way).detach())
                speeds.append(way.expand_as(path[1]))
                scalars.append(out.h.expand(len(rest), -1, -1))
                break
            pos, vel = out.pos[-1], way[-1]  # (N, 3)
            if self.speed:
                h = torch.cat([torch.linalg.vector_norm(vel, dim=-1, keepdim=True), h[:, 1:]], dim=-1)  # (N, F)
        return EGNOOutput(torch.cat(path), torch.cat(speeds), torch.cat(scalars))


class SequentialOptions(Spec):
    """Settings of ``"egnn-s"``; `hidden`, `residual`, `reduce` and `start` as of :class:`EGNNOptions`.

    Attributes
    ----------
    layers_per_point : int
        EGNN layers from one time point to the next; there are T times as many in all.
    """

    hidden: int = Field(64, ge=1)
    layers_per_point: int = Field(1, ge=1)
    residual: bool = False
    reduce: Literal["sum", "mean"] = "sum"
    start: Literal["paper", "static"] = "paper"


class SequentialEGNN(nn.Module):
    """EGNN-S: time point k is read from layer k of one EGNN (section 5.1, EGNN-Sequential).

    The T points that it was built for are all that it can predict.

    Parameters
    ----------
    in_node, in_edge, n_times : int
        F, A and T.
    options : SequentialOptions
    """

    def __init__(self, in_node: int, in_edge: int, n_times: int, options: SequentialOptions) -> None:
        super().__init__()
        self.n_times, self.layers_per_point = n_times, options.layers_per_point
        self.embedding = NodeEmbedding(in_node, options.hidden, 0)
        self.layers = nn.ModuleList(
            EGNNLayer(options.hidden, in_edge, residual=options.residual, reduce=options.reduce)
            for _ in range(n_times * options.layers_per_point)
        )
        if options.start == "static":
            for layer in self.layers:
                layer.stand_still()

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
        """Positions (T, N, 3) for the T of the constructor; arguments as for EGNO."""
        if (asked := one_start(pos, vel, times, self.n_times)) != self.n_times:
            raise UsageError(
                f"this operator has a layer for each of the {self.n_times} time points that it was built for; found "
                f"{asked} time points"
            )
        pos, vel = pos[None], vel[None]  # (1, N, 3)
        h = self.embedding(h, pos.new_zeros(1))  # (1, N, H)
        path, scalars = [], []
        for k, layer in enumerate(self.layers):
            pos, h = layer(pos, vel, h, edge_index, edge_attr, edge_shift=edge_shift, max_memory=max_memory)
            if (k + 1) % self.layers_per_point == 0:
                path, scalars = [*path, pos], [*scalars, h]
        pos = torch.cat(path)  # (T, N, 3)
        return EGNOOutput(pos, vel.expand_as(pos), torch.cat(scalars))


class LinearOptions(Spec):
    """Settings of ``"linear"``: none."""


class Linear(nn.Module):
    """Straight flight, ``x + v t`` with one learned number t for all windows (Satorras et al. 2021, section 5.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Parameter(torch.ones(()))

    def forward(self, h: Tensor, pos: Tensor, vel: Tensor, *edges: Tensor, times=None, **how: Any) -> EGNOOutput:
        """Positions (1, N, 3) at the end of the window; edges do not enter."""
        pos, vel = at_the_end(pos, vel, times)
        return EGNOOutput(pos + self.time * vel, vel, h[None])


class EGHNOptions(EGNNOptions):
    """Settings of ``"eghn"``: those of EGNN, `layers` being those of each block, and its own.

    Attributes
    ----------
    clusters, pooling_layers, decoder_layers : int
        K and the layers of the pooling network and of the decoder.
    cut_weight : float
        Weight of the cut loss in training.
    """

    clusters: int = Field(20, ge=1)
    pooling_layers: int = Field(4, ge=1)
    decoder_layers: int = Field(2, ge=1)
    cut_weight: float = Field(2.0, ge=0)


class EGHN(EGHNO):
    """EGHN (Han et al. 2022): :class:`~egno_md.nn.eghno.EGHNO` of one time point, nothing convolved, no time embedding.

    Parameters
    ----------
    in_node, in_edge, in_local, hidden, layers, **options
        As for EGHNO.
    """

    def __init__(self, in_node: int, in_edge: int, in_local: int, hidden: int, layers: int, **options: Any) -> None:
        super().__init__(
            in_node, in_edge, in_local, hidden, layers, n_times=1, time_embedding=0, time_conv="none", **options
        )

    def forward(self, h: Tensor, pos: Tensor, vel: Tensor, *edges: Tensor, times=None, **how: Any) -> EGHNOOutput:
        """Positions (1, N, 3) at the end of the window; arguments as for EGHNO."""
        pos, vel = at_the_end(pos, vel, times)
        return super().forward(h, pos, vel, *edges, times=1, **how)


class PassingOptions(Spec):
    """Settings of ``"rf"``, ``"mpnn"`` and ``"clofnet"``: width H and number of layers."""

    hidden: int = Field(64, ge=1)
    layers: int = Field(4, ge=1)


class TensorOptions(Spec):
    """Settings of ``"tfn"``.

    Attributes
    ----------
    channels, layers : int
        Channels of every degree, and number of layers.
    degree : int
        Largest degree l of the features and of the spherical harmonics.
    hidden : int
        Width of the radial networks, which make the weights of an edge from its length and its scalars.
    """

    channels: int = Field(16, ge=1)
    layers: int = Field(4, ge=1)
    degree: int = Field(2, ge=1, le=4)
    hidden: int = Field(32, ge=1)


class AttentionOptions(TensorOptions):
    """Settings of ``"se3-transformer"``: those of TFN, and its own.

    Attributes
    ----------
    heads : int
        Heads of the attention; they share out the channels.
    """

    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _shared_out(self) -> AttentionOptions:
        if self.channels % self.heads:
            raise ValueError(f"heads must share out channels = {self.channels} evenly, found {self.heads}")
        return self


def one_point(build: Callable[[int, int, Any], nn.Module]) -> Callable[[int, int, int, Any], nn.Module]:
    """Of a function of F, A and options the `build` of an operator that predicts the end of a window."""

    def checked(in_node: int, in_edge: int, n_times: int, options: Any) -> nn.Module:
        if n_times != 1:
            raise UsageError(
                "this operator predicts the end of its window alone: set window.n_times = 1 and window.span to the "
                f"strides to that end, as --window 1 --span {n_times}; found n_times = {n_times}"
            )
        return build(in_node, in_edge, options)

    return checked


def system(module: str, name: str) -> Callable[[int, int, Any], nn.Module]:
    """Of a network in :mod:`egno_md.nn.systems` a function that imports and builds it.

    Raises
    ------
    MissingPackageError
        When it is called, and the package that the network builds on is not installed.
    """

    def build(in_node: int, in_edge: int, options: Any) -> nn.Module:
        try:
            found = import_module(f".systems.{module}", __package__)
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"this operator needs {error.name}, which is not installed: pip install {error.name}"
            ) from error
        return getattr(found, name)(in_node, in_edge, options)

    return build


def _linear(in_node: int, in_edge: int, options: LinearOptions) -> Linear:
    return Linear()


def _egnn(in_node: int, in_edge: int, options: EGNNOptions) -> EGNN:
    return EGNN(in_node, in_edge, **options.model_dump())


def _rolled(in_node: int, in_edge: int, n_times: int, options: RolledOptions) -> RolledEGNN:
    first_only = not isinstance(options, BundledOptions)
    return RolledEGNN(in_node, in_edge, n_times=n_times, first_only=first_only, **options.model_dump())


def _eghn(in_node: int, in_edge: int, options: EGHNOptions) -> EGHN:
    return EGHN(in_node, in_edge, IN_LOCAL, **options.model_dump(exclude={"cut_weight"}))


def _cut(out: EGHNOOutput, options: EGHNOptions) -> dict[str, Tensor]:
    return {"cut": options.cut_weight * out.cut_loss}


def _nothing(options: Any) -> Symmetry:
    return "none"


def _unmirrored(options: Any) -> Symmetry:
    return "SE(3)"


#: Unlike a network, one number learns by large steps alone.
_LINEAR = {**_STATIC, "training": {"learning_rate": 1e-2}}
#: The speed among the node scalars is to be that of the velocities.
_ROLLED = {"model": {"prior": "static", "length_scale": 1.0}}

for _operator in (
    Operator("linear", one_point(_linear), LinearOptions, points="last", usual=_LINEAR),
    Operator("egnn", one_point(_egnn), EGNNOptions, points="last", usual=_STATIC),
    Operator("egnn-r", _rolled, RolledOptions, points="whole", usual=_ROLLED),
    Operator("egnn-s", SequentialEGNN, SequentialOptions, points="built", usual=_STATIC),
    Operator("egnn-tb", _rolled, BundledOptions, points="whole", usual=_ROLLED),
    Operator(
        "eghn",
        one_point(_eghn),
        EGHNOptions,
        ("local_index", "local_attr"),
        loss_terms=_cut,
        points="last",
        usual=_STATIC,
    ),
    Operator("rf", one_point(system("passing", "RadialField")), PassingOptions, points="last", usual=_STATIC),
    Operator(
        "mpnn", one_point(system("passing", "MPNN")), PassingOptions, symmetry=_nothing, points="last", usual=_STATIC
    ),
    Operator(
        "clofnet",
        one_point(system("passing", "ClofNet")),
        PassingOptions,
        symmetry=_unmirrored,
        points="last",
        usual=_STATIC,
    ),
    Operator(
        "tfn", one_point(system("tensors", "TFN")), TensorOptions, symmetry=_unmirrored, points="last", usual=_STATIC
    ),
    Operator(
        "se3-transformer",
        one_point(system("tensors", "SE3Transformer")),
        AttentionOptions,
        symmetry=_unmirrored,
        points="last",
        usual=_STATIC,
    ),
):
    register(_operator)
