"""Forecasts from many windows beside what came, and beside the free forecasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError, ModelError
from ..forecast.forecasters import Forecaster, Known
from ..graph.windows import Run, frames_back
from .errors import both_errors, skill
from .result import MIN_BLOCKS, Evaluation, Scores
from .statistics import block_bootstrap, independent_blocks, integrated_time, series_of

if TYPE_CHECKING:
    from ..forecast.model import Model

#: Share of the bootstrap's resamples outside the interval, and its ends.
OUTSIDE = 0.05
ENDS = (OUTSIDE / 2, 1 - OUTSIDE / 2)

_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Part:
    """Windows of one run, to be judged together with those of other parts.

    Attributes
    ----------
    run : Run
    starts : ndarray of int
        Start frames, increasing.
    known : Known
        What the free forecasts are fitted to: other frames than those that the windows predict.
    source : str
        File that the run is from. The stretches of one file are one run with frames missing: no more independent for
        the gaps between them.
    """

    run: Run
    starts: np.ndarray
    known: Known
    source: str = ""

    @property
    def origin(self) -> str | int:
        """The same for the stretches of one file."""
        return self.source or id(self.run)

    @property
    def series(self) -> tuple[str | int, int]:
        """The same for the stretches of one file that are judged by the same known runs: they are one series."""
        return self.origin, id(self.known)


def score(
    model: Model,
    parts: Sequence[Part],
    *,
    horizon: int | None = None,
    max_windows: int = 2000,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Forecast from every window and compare with what came.

    Parameters
    ----------
    model : Model
    parts : sequence of Part
        Every window counts the same.
    horizon : int, optional
        Predicted frames; the model's window when None. The starts must leave room for them.
    max_windows : int
        Of more, evenly spread ones are judged.
    seed : int
        Of the bootstrap.
    device : str
    progress : callable, optional
        Called with the number of frames just predicted.

    Raises
    ------
    DataError
        No window.
    ModelError
        See :func:`egno_md.forecast.forecast`.
    """
    from ..forecast.chain import ModelForecaster, check_request, forecast_times

    window = model.window
    horizon = window.n_times if horizon is None else horizon
    check_request(model, horizon, 1)
    times = forecast_times(model, horizon)
    steps = np.round(times / window.stride_ps).astype(int)  # (T,) strides
    total = sum(len(part.starts) for part in parts)
    if total == 0:
        raise DataError("there is no window to evaluate")
    thin = -(-total // max_windows)
    free, notes = _common([part.known for part in parts])
    one_window = horizon <= window.n_times
    errors: dict[str, list[np.ndarray]] = {}
    spacings: list[int] = []
    for part in parts:
        run, starts = part.run, np.asarray(part.starts)[::thin]
        spacings += list(np.diff(starts))
        forecaster = ModelForecaster(model, run.builder, device=device)
        bare = forecaster.as_predicted if one_window else None
        prior = forecaster.prior if one_window else None
        chunk = max(1, _CHUNK_BYTES // (8 * 3 * run.builder.n_atoms * (horizon + window.n_times)))
        for first in range(0, len(starts), chunk):
            some = starts[first : first + chunk]
            past = np.asarray(run.positions[_frames(run, some, forecaster.n_past)], np.float32)  # (S, n_input, N, 3)
            true = run.positions[some[:, None] + steps * run.every]  # (S, T, N, 3)
            options = {"boxes": None if run.boxes is None else list(run.boxes[some]), "progress": progress}
            found = (bare or forecaster).collect(past, horizon, **options)[:, 0]  # (S, T, N, 3)
            if prior is not None:
                errors.setdefault("prior", []).append(both_errors(prior(past, steps), true))  # (S, 2, T)
                errors.setdefault("network", []).append(both_errors(found, true))  # (S, 2, T)
            if bare is not None:
                errors.setdefault("as predicted", []).append(both_errors(found, true))  # (S, 2, T)
                start = past[:, -1:].astype(np.float64)  # (S, 1, N, 3)
                found = forecaster.inner.keep(found.astype(np.float64), start)  # (S, T, N, 3)
            errors.setdefault("model", []).append(both_errors(found, true))  # (S, 2, T)
            for name in free:
                free_errors = _free_errors(part.known.baselines.forecasts[name], name, run, some, steps, true)
                errors.setdefault(name, []).append(free_errors)  # (S, 2, T)
    ranked = ["model", *free]
    beside = [name for name in ("as predicted", "prior", "network") if name in errors]
    names = ranked + beside
    values = np.stack([np.concatenate(errors[name]) for name in names], axis=1)  # (S, K, 2, T)
    group_of = series_of([(part.series, len(part.starts[::thin])) for part in parts])
    every = parts[0].run.every
    between = float(np.median(spacings)) if spacings else 1.0  # frames between two windows
    length = int(np.ceil((frames_back(window) + steps[-1]) * every / between))
    memory = integrated_time([values[group_of == g, 0, 0].mean(axis=1) for g in np.unique(group_of)])
    block = length + int(np.ceil(memory))
    n_blocks = independent_blocks(group_of, block)
    mean = values.mean(axis=0)  # (K, 2, T)
    resampled = block_bootstrap(values, group_of, block, seed=seed) if n_blocks >= MIN_BLOCKS else None  # (R, K, 2, T)

    def network(means: np.ndarray) -> np.ndarray:
        """What the network takes off the A-MSE of its regression, (...), from means (..., K, 2, T)."""
        found, alone = (means[..., names.index(name), 0, :].mean(-1) for name in ("network", "prior"))
        return skill(found, alone[None])

    network_gain = None
    if "prior" in names:
        ends = [np.nan, np.nan] if resampled is None else np.quantile(network(resampled), ENDS).tolist()
        network_gain = (float(network(mean)), *ends)
    apart = {name: mean[names.index(name)] for name in beside}
    laboratory, superposed = (
        _scores(ranked, mean[: len(ranked), kind], None if resampled is None else resampled[:, : len(ranked), kind])
        for kind in (0, 1)
    )
    return Evaluation(
        model=model.name,
        times=times,
        **vars(laboratory),
        superposed=superposed,
        n_windows=len(values),
        of_windows=total,
        n_runs=len({part.origin for part in parts}),
        n_atoms=max(part.run.builder.n_atoms for part in parts),
        block=block,
        n_blocks=n_blocks,
        as_predicted=apart["as predicted"][0] if "as predicted" in apart else None,
        as_predicted_superposed=apart["as predicted"][1] if "as predicted" in apart else None,
        prior=apart["prior"][0] if "prior" in apart else None,
        prior_superposed=apart["prior"][1] if "prior" in apart else None,
        network_gain=network_gain,
        notes=tuple(notes),
    )


def _scores(names: Sequence[str], mean: np.ndarray, resampled: np.ndarray | None) -> Scores:
    """From mean errors (K, T), the model's first, and the same of resamples (R, K, T)."""
    n_names, horizon = mean.shape
    intervals, gain_range = np.full((2, n_names, horizon), np.nan), np.full((2, horizon + 1), np.nan)

    def gains(means: np.ndarray) -> np.ndarray:
        """Skill at every step and of the A-MSE, (..., T + 1)."""
        with_last = np.concatenate([means, means.mean(axis=-1, keepdims=True)], axis=-1)  # (..., K, T + 1)
        return skill(with_last[..., 0, :], np.moveaxis(with_last[..., 1:, :], -2, 0))

    gain = gains(mean)  # (T + 1,)
    if resampled is not None:
        intervals, gain_range = np.quantile(resampled, ENDS, axis=0), np.quantile(gains(resampled), ENDS, axis=0)
    over_still = {}
    if "static" in names:
        still = list(names).index("static")
        one = skill(mean, mean[None, still])  # (K, T)
        ends = np.full((2, n_names, horizon), np.nan)
        if resampled is not None:
            ends = np.quantile(skill(resampled, resampled[None, :, [still]]), ENDS, axis=0)  # (2, K, T)
        over_still = {name: np.stack([one[k], *ends[:, k]], axis=-1) for k, name in enumerate(names)}
    return Scores(
        errors=dict(zip(names, mean, strict=True)),
        intervals={name: intervals[:, k].T for k, name in enumerate(names)},
        skill=gain[:-1],
        skill_interval=gain_range[:, :-1].T,
        f_skill=(float(gain[-2]), *gain_range[:, -2].tolist()),
        a_skill=(float(gain[-1]), *gain_range[:, -1].tolist()),
        gains=over_still,
    )


def _common(known: Sequence[Known]) -> tuple[list[str], list[str]]:
    """Names of the free forecasts that all parts have, and a note for each of the others."""
    all_of_them = [one.baselines for one in known]
    left_out = {name: why for found in all_of_them for name, why in found.left_out.items()}
    names = [name for name in all_of_them[0].forecasts if name not in left_out]
    notes = [f"without the baseline {name!r}: {why}" for name, why in left_out.items()]
    said = [note for found in all_of_them for name in names for note in getattr(found.forecasts[name], "notes", ())]
    return names, notes + list(dict.fromkeys(said))


def _frames(run: Run, starts: np.ndarray, n_past: int) -> np.ndarray:
    """The last `n_past` frames up to each start, one stride apart, (S, n_past)."""
    return starts[:, None] + np.arange(1 - n_past, 1) * run.every


def _free_errors(
    forecaster: Forecaster, name: str, run: Run, starts: np.ndarray, steps: np.ndarray, true: np.ndarray
) -> np.ndarray:
    """Squared errors (S, 2, T) of a free forecast, which is given as much past as it wants and the run has."""
    out = np.empty((len(true), 2, true.shape[1]))
    there = np.minimum(starts // run.every + 1, max(1, forecaster.n_past))  # (S,)
    for n_past in np.unique(there):
        here = there == n_past
        found = np.asarray(forecaster(run.positions[_frames(run, starts[here], n_past)], steps))  # (S', K, T, N, 3)
        wanted = true[here].shape
        if found.ndim != 5 or (found.shape[0], *found.shape[2:]) != wanted or not np.isfinite(found).all():
            raise ModelError(
                f"the free forecast {name!r} must give finite numbers of the shape (S, K, T, N, 3) = "
                f"{(wanted[0], 'K', *wanted[1:])}, found {found.shape}: mend it or uninstall its package"
            )
        out[here] = both_errors(found, true[here])
    return out
