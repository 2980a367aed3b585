"""Whether drawn futures are as uncertain as they ought to be, and who draws best.

Frames are judged superposed on their start, the members and what came each by itself, so that a score that is proper
stays so; and where they stand, rigid motion included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, UsageError, counted
from ..forecast.drawn import NoisyStart
from ..forecast.forecasters import Forecaster
from ..molecule.geometry import aligned
from .statistics import block_bootstrap, independent_blocks, integrated_time, series_of
from .text import columns

if TYPE_CHECKING:
    from ..forecast.model import Model

#: Windows that are judged at most, blocks below which there is no interval, share outside of it.
MOST_WINDOWS, FEWEST_BLOCKS, OUTSIDE = 400, 4, 0.05

#: Spread over error between these is called calibrated.
CALIBRATED = (0.9, 1.1)

_CHUNK_NUMBERS = 2**22


def energy_score(members: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """``E|X - y| - E|X - X'| / 2`` of K members (Gneiting and Raftery 2007, equation 22), without bias in K.

    Parameters
    ----------
    members : array_like, shape (S, K, T, ..., 3)
        At least two members.
    true : array_like, shape (S, T, ..., 3)

    Returns
    -------
    ndarray, shape (S, T + 1)
        In the unit of the positions, as RMSD: at every step, and last of the whole window. Less is better; of all
        distributions the true one has the least expected score.
    """
    members, true = np.asarray(members, np.float64), np.asarray(true, np.float64)
    n, k, n_times = members.shape[:3]
    n_atoms = max(1, true[0, 0].size // 3)
    apart = (members - true[:, None]).reshape(n, k, n_times, -1).swapaxes(1, 2)  # (S, T, K, D)
    products = apart @ np.swapaxes(apart, -1, -2)  # (S, T, K, K)
    products = np.concatenate([products, products.mean(axis=1, keepdims=True)], axis=1) / n_atoms  # (S, T + 1, K, K)
    squares = np.einsum("stkk->stk", products)  # (S, T + 1, K)
    between = squares[..., :, None] + squares[..., None, :] - 2 * products  # (S, T + 1, K, K)
    pairs = np.sqrt(np.maximum(between, 0)).sum(axis=(-2, -1)) / (k * (k - 1))
    return np.sqrt(squares).mean(axis=-1) - pairs / 2


def crps(members: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Continuous ranked probability score of every coordinate by itself, the mean over atoms and x, y, z.

    Parameters
    ----------
    members, true : array_like
        See :func:`energy_score`, of which this is the case of one dimension.

    Returns
    -------
    ndarray, shape (S, T)
    """
    members, true = np.sort(np.asarray(members, np.float64), axis=1), np.asarray(true, np.float64)
    k = members.shape[1]
    weight = (2 * np.arange(1, k + 1) - k - 1) / (k * (k - 1))  # of the sorted members: the mean of |x - x'| / 2
    score = np.abs(members - true[:, None]).mean(axis=1) - np.einsum("k,sk...->s...", weight, members)
    return score.reshape(*score.shape[:2], -1).mean(axis=-1)


class _Sums(NamedTuple):
    """What is gathered of some windows: scores (S, T + 1) and (S, T), variance and squared error (T,), ranks."""

    energy: np.ndarray
    crps: np.ndarray
    variance: np.ndarray
    error: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, members: np.ndarray, true: np.ndarray) -> _Sums:
        k, n_times = members.shape[1:3]
        below = np.sum(members < true[:, None], axis=1)  # (S, T, N, 3)
        ranks = [np.bincount(below[:, t].ravel(), minlength=k + 1) for t in range(n_times)]
        axes = (0, *range(2, true.ndim))
        return cls(
            energy_score(members, true),
            crps(members, true),
            members.var(axis=1, ddof=1).sum(axis=axes),
            ((members.mean(axis=1) - true) ** 2).sum(axis=axes),
            np.stack(ranks),
        )


@dataclass(frozen=True)
class Drawn:
    """What the futures that one forecaster draws are worth, at every step.

    Attributes
    ----------
    energy_score, crps : ndarray, shape (T,)
        Angstrom; see :func:`energy_score` and :func:`crps`.
    window_score : float
        Energy score of the whole window.
    spread_over_error : ndarray, shape (T,)
        Root of the members' variance over the mean squared error of their mean, less what K members say of both: 1 is
        calibrated, below 1 the forecaster is too sure.
    ranks : ndarray, shape (T, K + 1)
        How often so many members lay below what came, over atoms and x, y, z; shares. Calibrated: all the same.
    """

    energy_score: NDArray[np.float64]
    crps: NDArray[np.float64]
    window_score: float
    spread_over_error: NDArray[np.float64]
    ranks: NDArray[np.float64]

    @classmethod
    def of(cls, members: ArrayLike, true: ArrayLike) -> Drawn:
        """From K members (S, K, T, ..., 3) and what came (S, T, ..., 3)."""
        return cls._of([_Sums.of(np.asarray(members, np.float64), np.asarray(true, np.float64))])

    @classmethod
    def _of(cls, sums: Sequence[_Sums]) -> Drawn:
        energy = np.concatenate([s.energy for s in sums])
        variance, error, ranks = (np.sum([s[k] for s in sums], axis=0) for k in (2, 3, 4))
        k = ranks.shape[1] - 1
        ratio = np.divide((1 + 1 / k) * variance, error, out=np.full(len(error), np.inf), where=error > 0)
        return cls(
            energy[:, :-1].mean(axis=0),
            np.concatenate([s.crps for s in sums]).mean(axis=0),
            float(energy[:, -1].mean()),
            np.sqrt(np.where((error == 0) & (variance == 0), 1.0, ratio)),
            ranks / ranks.sum(axis=1, keepdims=True),
        )

    @property
    def outside(self) -> NDArray[np.float64]:
        """Share of what came outside of all members (T,), over the 2 / (K + 1) of a calibrated ensemble."""
        return (self.ranks[:, 0] + self.ranks[:, -1]) * self.ranks.shape[1] / 2


@dataclass(frozen=True)
class Calibration:
    """Drawn futures beside what came.

    Attributes
    ----------
    samples, n_windows : int
    times : ndarray, shape (T,)
        ps.
    superposed, laboratory : dict of str to Drawn
        By forecaster, ``"model"`` among them if it draws: superposed on the start, and where they stand.
    apart : dict of str to tuple of float
        Energy score of a superposed window less that of the best other forecaster, with the ends of its 95 % interval
        (nan where the windows are too few).
    n_blocks : int
        Independent blocks.
    """

    samples: int
    n_windows: int
    times: NDArray[np.float64]
    superposed: dict[str, Drawn]
    laboratory: dict[str, Drawn]
    apart: dict[str, tuple[float, float, float]]
    n_blocks: int

    @property
    def best(self) -> str:
        """Who has the least energy score of a superposed window."""
        return min(self.superposed, key=lambda name: self.superposed[name].window_score)

    @property
    def verdict(self) -> str:
        """One sentence: whose futures to take."""
        if "model" not in self.superposed:
            return f"the model knows one future only; take {self.best} where a future is wanted and not the mean of all"
        rivals = {name: one.window_score for name, one in self.superposed.items() if name != "model"}
        if not rivals:
            return "the model draws, and nobody else does here"
        other = min(rivals, key=rivals.__getitem__)
        difference, low, high = self.apart["model"]
        if high < 0:
            return "the model draws better than every rival, beyond the interval"
        if low > 0:
            return f"the model draws worse than {other}, beyond the interval: take {other}"
        return f"the model draws no better or worse than {other} beyond the interval ({difference:+.4f} A)"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, once arrays are lists."""
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for kind in ("superposed", "laboratory"):
            out[kind] = {
                name: {f.name: getattr(one, f.name) for f in fields(one)} | {"outside": one.outside}
                for name, one in getattr(self, kind).items()
            }
        return {**out, "best": self.best, "verdict": self.verdict}

    def table(self) -> list[str]:
        """Lines for people."""
        names = list(self.superposed)

        def scores(name: str) -> list[str]:
            one, lab = self.superposed[name], self.laboratory[name]
            cells = [*one.energy_score, one.window_score, lab.window_score]
            return [f"{x:.4f}{'* '[int((k, name) != (len(self.times), self.best))]}" for k, x in enumerate(cells)]

        def spread(name: str) -> list[str]:
            one = self.superposed[name]
            cells = [f"{x:.2f} " for x in (*one.spread_over_error, one.outside.mean())]
            return [*cells, f"{one.crps.mean():.4f} "]

        steps = [f"{t:g} " for t in self.times]
        lines = [
            f"drawn      {self.samples} futures of {counted(self.n_windows, 'window')} each, "
            f"{counted(self.n_blocks, 'independent block')}; superposed on the start",
            "           energy score in A, less is better (* least of a window)",
            "",
            *columns(("t/ps", *steps, "window ", "lab "), [(name, scores(name)) for name in names]),
            "",
            "           spread over error, 1 is calibrated; CRPS in A",
            "",
            *columns(("t/ps", *steps, "outside ", "CRPS "), [(name, spread(name)) for name in names]),
            "",
        ]
        for name in names:
            ratio = self.superposed[name].spread_over_error
            if ratio.min() < CALIBRATED[0] or ratio.max() > CALIBRATED[1]:
                said = "too sure" if ratio.mean() < 1 else "too unsure"
                ends = f"{ratio.min():.2f} to {ratio.max():.2f}"
                lines.append(f"{'':<11}{name} is {said}: its spread is {ends} of its error")
        return [*lines, f"futures    {self.verdict}"]


def calibrate(
    parts: Sequence,
    steps: np.ndarray,
    times: np.ndarray,
    samples: int,
    *,
    model: Model | None = None,
    max_windows: int = MOST_WINDOWS,
    seed: int = 0,
    device: str = "auto",
) -> Calibration:
    """Draw futures from every window with everyone who can, and compare them with what came.

    Parameters
    ----------
    parts : sequence of Part
        See :func:`egno_md.evaluation.score`. The drawn free forecasts are fitted to what each of them knows; static
        with noise is one more.
    steps, times : ndarray, shape (T,)
        Strides ahead, and the same in ps.
    samples : int
        Futures of each window, K.
    model : Model, optional
        Is left out if it knows one future only.
    max_windows : int
        Of more, evenly spread ones are judged.
    seed : int
        Of the futures, the same for everyone, and of the bootstrap.

    Raises
    ------
    UsageError
        Fewer than two samples.
    DataError
        No window, or nobody who draws.
    """
    if samples < 2:
        raise UsageError(f"samples (--samples) must be at least 2 to judge what is drawn, found {samples}")
    total = sum(len(part.starts) for part in parts)
    if not total:
        raise DataError("there is no window to evaluate")
    thin = -(-total // max_windows)
    sums: dict[str, dict[str, list[_Sums]]] = {"superposed": {}, "laboratory": {}}
    spacings: list[int] = []
    names: list[str] | None = None
    generators: dict[str, np.random.Generator] = {}
    for part in parts:
        run, starts = part.run, np.asarray(part.starts)[::thin]
        if not len(starts):
            continue
        drawing = _who_draws(part, model, device)
        names = list(drawing) if names is None else [name for name in names if name in drawing]
        spacings += list(np.diff(starts))
        chunk = max(1, _CHUNK_NUMBERS // (samples * len(steps) * (3 * run.builder.n_atoms + 2 * samples)))
        for first in range(0, len(starts), chunk):
            some = starts[first : first + chunk]
            true = run.positions[some[:, None] + steps * run.every].astype(np.float64)  # (S, T, N, 3)
            start = run.positions[some].astype(np.float64)[:, None]  # (S, 1, N, 3)
            for name in names:
                generator = generators.setdefault(name, np.random.default_rng(seed))
                members = _members(drawing[name], run, some, steps, samples, generator)
                if members.shape[1] < samples:  # it knows one future only
                    names = [other for other in names if other != name]
                    continue
                sums["laboratory"].setdefault(name, []).append(_Sums.of(members, true))
                on_start = aligned(members, start[:, None]), aligned(true, start)
                sums["superposed"].setdefault(name, []).append(_Sums.of(*on_start))
    if not names:
        raise DataError(
            "nobody draws futures here: the known runs are too short for a Gaussian process or analogues, and the "
            "model knows one future only; use a longer run, or leave the samples out"
        )
    windows = {name: np.concatenate([s.energy[:, -1] for s in sums["superposed"][name]]) for name in names}
    between = float(np.median(spacings)) if spacings else 1.0
    group_of = series_of([(part.series, len(part.starts[::thin])) for part in parts])
    series = [windows[names[0]][group_of == g] for g in np.unique(group_of)]
    block = int(np.ceil(max(steps) * parts[0].run.every / between)) + int(np.ceil(integrated_time(series)))
    n_blocks = independent_blocks(group_of, block)
    apart = {}
    for name in names:
        others = [other for other in names if other != name]
        if others:
            best = min(others, key=lambda other: windows[other].mean())
            difference, ends = windows[name] - windows[best], (np.nan, np.nan)
            if n_blocks >= FEWEST_BLOCKS:
                drawn = block_bootstrap(difference, group_of, block, seed=seed)
                ends = np.quantile(drawn, [OUTSIDE / 2, 1 - OUTSIDE / 2])
            apart[name] = (float(difference.mean()), float(ends[0]), float(ends[1]))
    kinds = {kind: {name: Drawn._of(found[name]) for name in names} for kind, found in sums.items()}
    return Calibration(samples, len(group_of), np.asarray(times, float), **kinds, apart=apart, n_blocks=n_blocks)


def _who_draws(part: Any, model: Model | None, device: str) -> dict[str, Forecaster]:
    """Those that may draw; the model is tried."""
    found: dict[str, Forecaster] = {}
    if model is not None:
        from ..forecast.chain import ModelForecaster  # brings torch, which free forecasts need not wait for

        found["model"] = ModelForecaster(model, part.run.builder, device=device)
    found |= {name: one for name, one in part.known.baselines.forecasts.items() if getattr(one, "draws", False)}
    try:
        found[NoisyStart.name] = NoisyStart.fitted(part.known)
    except DataError:  # too few windows; those above were left out with a note for the same reason
        pass
    return found


def _members(
    forecaster: Forecaster,
    run: Any,
    starts: np.ndarray,
    steps: np.ndarray,
    samples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Futures (S, K, T, N, 3) from starts that have different amounts of past."""
    wanted = max(1, getattr(forecaster, "n_past", 1))
    there = np.minimum(starts // run.every + 1, wanted)  # (S,)
    out = None
    for n_past in np.unique(there):
        here = np.flatnonzero(there == n_past)
        past = run.positions[starts[here][:, None] + np.arange(1 - n_past, 1) * run.every]  # (S', P, N, 3)
        options = {}
        if getattr(forecaster, "reads_boxes", False) and run.boxes is not None:
            options["boxes"] = list(run.boxes[starts[here]])
        found = np.asarray(forecaster(past, steps, samples, generator, **options), np.float64)
        out = np.empty((len(starts), *found.shape[1:])) if out is None else out
        out[here] = found
    return out
