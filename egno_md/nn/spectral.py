"""What happens along time: the embedding of the time points (section 4.3) and the convolution (4.2)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import UsageError


def time_embedding(times: Tensor, width: int) -> Tensor:
    """``[sin(t w_0) ... sin(t w_{D/2-1}), cos(t w_0) ...]`` with ``w_k = exp(-ln(10000) k / (D/2 - 1))``.

    Parameters
    ----------
    times : Tensor (T,)
        Time points in strides of the model, 0 being the first predicted frame; they need not be integers.
    width : int
        D, even and at least 4.

    Returns
    -------
    Tensor (T, D)
    """
    half = width // 2
    k = torch.arange(half, dtype=times.dtype, device=times.device)
    angle = times[:, None] * torch.exp(-math.log(10000.0) / (half - 1) * k)  # (T, D/2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)  # (T, D)


class NodeEmbedding(nn.Linear):
    """``h = Linear([f, emb(t)])``; without a time embedding (width 0) the same ``Linear(f)`` at every time.

    Parameters
    ----------
    in_node, hidden : int
        F and H.
    width : int
        D, width of the time embedding, even and at least 4; 0 leaves the time out.
    """

    def __init__(self, in_node: int, hidden: int, width: int) -> None:
        if width % 2 or width == 2 or width < 0:
            raise UsageError(f"time_embedding must be an even number of at least 4, or 0 for none; found {width}")
        super().__init__(in_node + width, hidden)
        self.in_node, self.width = in_node, width

    def forward(self, f: Tensor, times: Tensor) -> Tensor:
        """(T, N, H) from node features `f` (N, F) and `times` (T,)."""
        # The Linear of a concatenation is the sum of two Linears: f is not copied T times.
        h = nn.functional.linear(f, self.weight[:, : self.in_node], self.bias)  # (N, H)
        if not self.width:
            return h.expand(len(times), *h.shape)  # (T, N, H)
        at_t = nn.functional.linear(time_embedding(times, self.width), self.weight[:, self.in_node :])  # (T, H)
        return h + at_t[:, None]  # (T, N, H)


class FourierBasis(NamedTuple):
    """The first M modes of the real Fourier transform of T points and the way back, as two small real matrices.

    A spectrum is its M real parts, then its M - 1 imaginary parts: that of mode 0 is 0 on the way there, and
    ``irfft`` ignores it on the way back.
    """

    forward: Tensor  # (2M - 1, T)
    inverse: Tensor  # (T, 2M - 1)


def fourier_basis(n_times: int, modes: int, like: Tensor) -> FourierBasis:
    """Matrices of the rfft/irfft pair along T, cut at `modes`, with the dtype and device of `like`.

    The forward transform is unnormalised, the inverse divides by T. For even T ``irfft`` ignores the imaginary part
    of the Nyquist mode as well: the sines there are exactly 0.

    Raises
    ------
    UsageError
        For more modes than T points have: T // 2 + 1.
    """
    if not 1 <= modes <= n_times // 2 + 1:
        raise UsageError(
            f"{modes} Fourier modes have no meaning for T = {n_times} time points, which have {n_times // 2 + 1}: "
            f"ask for at least {max(2 * modes - 2, 1)} time points, or build the model with fewer modes"
        )
    m = torch.arange(modes, device=like.device)[:, None]
    t = torch.arange(n_times, device=like.device)[None]
    angle = (m * t % n_times).double() * (2 * math.pi / n_times)  # (M, T)
    single = (m == 0) | (2 * m == n_times)
    cos, sin = angle.cos(), angle.sin().masked_fill(single, 0.0)[1:]  # (M, T), (M - 1, T)
    # The modes above T / 2 are the conjugates of those below: every mode but the single ones counts twice.
    weight = (2.0 - single.double()) / n_times  # (M, 1)
    forward = torch.cat([cos, -sin])  # (2M - 1, T)
    inverse = torch.cat([weight, weight[1:]]) * forward  # (2M - 1, T)
    return FourierBasis(forward.to(like.dtype), inverse.T.to(like.dtype))


class TemporalConv(nn.Module):
    """``irfft_T( sum_i rfft_T(x)[m, n, i] W[i, o, m] , m < M, 0 above )``, without the residual and nonlinearity.

    Equations 2, 7 and 8 of the paper; a multiplication by two small real matrices, no FFT.

    Parameters
    ----------
    channels : int
        Number of channels, in and out.
    modes : int
        M, Fourier modes kept.
    scale : float
        The real and imaginary parts of W start uniform in [0, scale).

    Attributes
    ----------
    weight : Parameter (channels, channels, M, 2)
        W[i, o, m], real and imaginary part.
    """

    def __init__(self, channels: int, modes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.rand(channels, channels, modes, 2))

    def forward(self, x: Tensor, basis: FourierBasis) -> Tensor:
        """Convolve `x` (T, ..., C) along its first axis; `basis` of its T and the module's modes."""
        if torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type):  # which chooses dtypes in between
            return _Convolved.apply(x, self.weight, *basis)
        return _convolved(x, self.weight, basis)[0]


def _convolved(x: Tensor, weight: Tensor, basis: FourierBasis) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution (T, ..., C), the spectrum of `x` (2M - 1, ..., C), and the weights (2, M, C, C)."""
    weights = weight.permute(3, 2, 0, 1).contiguous()  # (2, M, C, C)
    w_re, w_im = weights
    modes, channels = w_re.shape[:2]
    spectrum = (basis.forward @ x.reshape(len(x), -1)).view(2 * modes - 1, -1, channels)  # (2M - 1, ..., C)
    re, im = spectrum[1:modes], spectrum[modes:]  # (M - 1, ..., C) both, without the real mode 0
    product = torch.cat(
        [
            spectrum[:1] @ w_re[:1],
            torch.baddbmm(re @ w_re[1:], im, w_im[1:], alpha=-1),
            torch.baddbmm(re @ w_im[1:], im, w_re[1:]),
        ]
    )  # (2M - 1, ..., C)
    return (basis.inverse @ product.view(2 * modes - 1, -1)).view(x.shape), spectrum, weights


class _Convolved(torch.autograd.Function):
    """The convolution and its derivative; of slices and sums torch would make many small steps of the latter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, forward: Tensor, inverse: Tensor) -> Tensor:
        y, spectrum, weights = _convolved(x, weight, FourierBasis(forward, inverse))
        ctx.save_for_backward(spectrum, weights, forward, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        with torch.autocast(g.device.type, enabled=False):  # which a backward pass may run under
            return (*_convolved_backward(g, *ctx.saved_tensors), None, None)


def _convolved_backward(
    g: Tensor, spectrum: Tensor, weights: Tensor, forward: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `x` and of the weights (C, C, M, 2)."""
    w_re, w_im = weights.mT
    modes = len(w_re)
    g_product = (inverse.T @ g.reshape(len(g), -1)).view(spectrum.shape)  # (2M - 1, ..., C)
    g_re, g_im = g_product[1:modes], g_product[modes:]  # (M - 1, ..., C) both
    g_spectrum = torch.empty_like(spectrum)
    torch.bmm(g_product[:1], w_re[:1], out=g_spectrum[:1])
    torch.bmm(g_re, w_re[1:], out=g_spectrum[1:modes]).baddbmm_(g_im, w_im[1:])
    torch.bmm(g_im, w_re[1:], out=g_spectrum[modes:]).baddbmm_(g_re, w_im[1:], alpha=-1)
    g_w, spectrum = torch.zeros_like(weights), spectrum.mT  # (2, M, C, C), (2M - 1, C, ...)
    re, im = spectrum[1:modes], spectrum[modes:]
    torch.bmm(spectrum[:1], g_product[:1], out=g_w[0, :1])
    torch.bmm(re, g_re, out=g_w[0, 1:]).baddbmm_(im, g_im)
    torch.bmm(re, g_im, out=g_w[1, 1:]).baddbmm_(im, g_re, alpha=-1)
    g_x = (forward.T @ g_spectrum.view(len(g_spectrum), -1)).view(g.shape)
    return g_x, g_w.permute(2, 3, 1, 0)
