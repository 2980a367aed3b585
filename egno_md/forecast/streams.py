"""Random numbers of the members of an ensemble, and how far the members are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from ..molecule.geometry import aligned


class Streams:
    """One stream of random numbers for each member of an ensemble, so that none depends on the others.

    It stands where one ``numpy.random.Generator`` would, for forecasters that ask for rows of numbers.

    Parameters
    ----------
    generators : sequence of numpy.random.Generator
    """

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self.generators = list(generators)

    @classmethod
    def of(cls, seed: int, starts: Sequence[int], samples: int) -> Streams:
        """Those of `samples` members of each start, the members of a start one after the other; a start is known by its
        number.

        Raises
        ------
        UsageError
            A seed that is no whole number of at least 0.
        """
        seed = check_seed(seed)
        return cls([np.random.default_rng((seed, int(s), k)) for s in starts for k in range(samples)])

    @property
    def bit_generator(self) -> Streams:
        """Itself: :attr:`state` is what a chain keeps."""
        return self

    @property
    def state(self) -> list[dict[str, Any]]:
        """Of every generator."""
        return [g.bit_generator.state for g in self.generators]

    @state.setter
    def state(self, states: Sequence[dict[str, Any]]) -> None:
        self.generators = [np.random.Generator(getattr(np.random, s["bit_generator"])()) for s in states]
        for generator, state in zip(self.generators, states, strict=True):
            generator.bit_generator.state = state

    def part(self, first: int, last: int) -> Streams:
        """Some of them, which go on as these do."""
        return Streams(self.generators[first:last])

    def each(self, count: int) -> list[np.random.Generator]:
        """The generators of `count` futures."""
        if count != len(self.generators):
            raise UsageError(f"{len(self.generators)} streams of random numbers cannot draw {count} futures")
        return self.generators


def check_seed(seed: int) -> int:
    """A seed, if it can be one.

    Raises
    ------
    UsageError
        It is no whole number of at least 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UsageError(f"seed (--seed) must be a whole number of at least 0, found {seed!r}")
    return int(seed)


def member_spread(ensemble: np.ndarray, start: np.ndarray) -> np.ndarray:
    """How far the members of an ensemble are from their mean, for every atom.

    Parameters
    ----------
    ensemble : ndarray, shape (S, K, T, N, 3)
        Angstrom.
    start : ndarray, shape (S, N, 3)
        What every frame is superposed on first.

    Returns
    -------
    ndarray, shape (S, N)
        The root of the mean square over members (K - 1 of them are free) and frames, in Angstrom; NaN where K = 1.
    """
    out = np.full((len(ensemble), ensemble.shape[3]), np.nan)
    count = ensemble.shape[1]
    for k in range(len(ensemble) if count > 1 else 0):
        frames = aligned(ensemble[k], start[k])  # (K, T, N, 3)
        apart_from_mean = frames - frames.mean(axis=0)
        out[k] = np.sqrt(np.sum(apart_from_mean**2, axis=(0, 3)).mean(axis=0) / (count - 1))
    return out


def each_of(generator: np.random.Generator | Streams, count: int) -> list[np.random.Generator]:
    """A generator for each of some futures: those of streams, or new ones that follow from one generator."""
    if isinstance(generator, Streams):
        return generator.each(count)
    return [np.random.default_rng(key) for key in generator.integers(2**63, size=(count, 2))]
