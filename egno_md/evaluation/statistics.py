"""Memory of series, and how certain a mean is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError


def autocorrelation(series: ArrayLike, max_lag: int | None = None) -> NDArray[np.float64]:
    """``C(k) = <x(t) . x(t + k)> / <x . x>``; every lag is averaged over the pairs that it has.

    Parameters
    ----------
    series : array_like, shape (F,) or (F, ...)
        Deviations from what is the mean; further axes are summed over in the product.
    max_lag : int, optional
        Half of the frames when None.

    Returns
    -------
    ndarray, shape (max_lag + 1,)
        1 at lag 0; all ones for a series that is zero.
    """
    x = np.asarray(series, np.float64)
    n_frames = len(x)
    x = x.reshape(n_frames, -1)  # (F, D)
    max_lag = n_frames // 2 if max_lag is None else min(max_lag, n_frames - 1)
    size = 1 << (2 * n_frames - 1).bit_length()  # padded: no wrap around
    total = np.zeros(max_lag + 1)
    for first in range(0, x.shape[1], 64):
        spectrum = np.abs(np.fft.rfft(x[:, first : first + 64], size, axis=0)) ** 2
        total += np.fft.irfft(spectrum.sum(axis=1), size)[: max_lag + 1]
    total /= n_frames - np.arange(max_lag + 1)
    return total / total[0] if total[0] > 0 else np.ones(max_lag + 1)


def relaxation_time(correlation: np.ndarray, level: float = np.exp(-1)) -> float:
    """First lag, between two by a straight line, at which a correlation falls to `level`; nan if it does not."""
    below = np.flatnonzero(np.asarray(correlation) <= level)
    if not len(below):
        return float("nan")
    k = int(below[0])
    if k == 0:
        return 0.0
    before, after = correlation[k - 1], correlation[k]
    return float(k - 1 + (before - level) / (before - after))


def integrated_time(groups: Sequence[np.ndarray]) -> float:
    """``1 + 2 sum C(k)`` up to the first negative one: how many values of a series say as much as one that is free.

    Parameters
    ----------
    groups : sequence of ndarray, shape (S,)
        Parts of one series, in order; correlations do not reach from one to the other.
    """
    groups = [np.asarray(g, float) for g in groups if len(g) > 1]
    if not groups:
        return 1.0
    mean = np.concatenate(groups).mean()
    longest = max(len(g) for g in groups)
    products, counts = np.zeros(longest), np.zeros(longest)
    for g in groups:
        d, n = g - mean, len(g)
        size = 1 << (2 * n - 1).bit_length()
        products[:n] += np.fft.irfft(np.abs(np.fft.rfft(d, size)) ** 2, size)[:n]
        counts[:n] += n - np.arange(n)
    correlation = products / np.maximum(counts, 1)
    if correlation[0] <= 0:
        return 1.0
    correlation = correlation / correlation[0]
    negative = np.flatnonzero(correlation[: longest // 2 + 1] < 0)
    stop = int(negative[0]) if len(negative) else longest // 2 + 1
    return float(1 + 2 * correlation[1:stop].sum())


def block_bootstrap(
    values: ArrayLike, groups: ArrayLike, length: int, *, resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Means of values that are correlated, resampled in blocks (circular block bootstrap, Politis and Romano 1992).

    Parameters
    ----------
    values : array_like, shape (S, ...)
        In the order of time within each group.
    groups : array_like, shape (S,)
        Which run a value is from, in order (all of one run together); blocks wrap around within their run.
    length : int
        Values per block; a shorter run is one block.
    resamples : int
    seed : int

    Returns
    -------
    ndarray, shape (resamples, ...)
    """
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    if length < 1 or not len(values):
        raise UsageError(f"blocks need a length of at least 1 and values; found {length} and {len(values)} values")
    sums, sizes = [], []
    borders = np.flatnonzero(np.diff(groups)) + 1
    for part in np.split(values, borders):
        n = min(length, len(part))
        ring = np.concatenate([np.zeros_like(part[:1]), part, part[: n - 1]]).cumsum(axis=0)
        sums.append(ring[n:] - ring[:-n])  # of the block that starts at each value
        sizes.append(np.full(len(part), n))
    block_sums, block_sizes = np.concatenate(sums), np.concatenate(sizes)  # (S, ...), (S,)
    n_blocks = max(1, round(len(values) / block_sizes.mean()))
    rng = np.random.default_rng(seed)
    out = np.empty((resamples, *values.shape[1:]))
    for k in range(resamples):
        drawn = rng.integers(len(values), size=n_blocks)
        out[k] = block_sums[drawn].sum(axis=0) / block_sizes[drawn].sum()
    return out


def series_of(parts: Iterable[tuple[Hashable, int]]) -> NDArray[np.int64]:
    """Numbers of the series that windows belong to, of parts that are told by a key and so many windows of each.

    Parts with one key that follow each other are one series: a gap in a run makes it no more independent.
    """
    numbers: list[int] = []
    before, number = None, -1
    for key, count in parts:
        if count:
            number += key != before or number < 0
            numbers += [number] * count
            before = key
    return np.asarray(numbers, np.int64)


def independent_blocks(groups: ArrayLike, length: int) -> int:
    """How many blocks of `length` values that do not overlap the runs hold; a shorter run is one."""
    _, counts = np.unique(np.asarray(groups), return_counts=True)
    return int(sum(max(1, n // length) for n in counts))


def jensen_shannon(first: ArrayLike, second: ArrayLike) -> float:
    """Divergence of two histograms in nats: 0 for the same shares, ln 2 = 0.693 for none in common."""
    p, q = (np.asarray(h, np.float64).ravel() / np.sum(h) for h in (first, second))
    middle = (p + q) / 2

    def relative(a: np.ndarray) -> float:
        there = a > 0
        return float(np.sum(a[there] * np.log(a[there] / middle[there])))

    return (relative(p) + relative(q)) / 2
