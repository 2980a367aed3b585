"""Who forecasts from some starts of a run: a network as it is, or a free forecast fitted to what is not forecast."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..forecast.forecasters import Forecaster, Known, Static
from ..forecast.network import ElasticNetwork
from ..forecast.reversion import MeanReversion
from ..forecast.rolling import REVERTING, Chained, OneByOne, Restored, check_numbers
from ..molecule.checks import Limits, nearest_contact
from ..molecule.local import LocalGeometry
from .material import Material

if TYPE_CHECKING:
    from ..forecast.model import Model
    from ..forecast.subject import Subject
    from ..graph.builder import GraphBuilder, Structure

#: Frames up to a start that a free forecast is given.
PAST = 16

#: Starts that are forecast each by a fit of its own where no fit for all of them is possible; of more, two halves are.
MOST_FITS = 32

#: Frames that stand for a run that is too short to tell how far it varies.
ENSEMBLE = 100

#: Frames of the run that the limits of the checks are taken from: at least, and at most, with so many atoms in all.
FEWEST_SEEN, MOST_SEEN, ATOMS_SEEN = 8, 50, 200_000


def hash_of(about: str, pieces: Iterable[NDArray]) -> str:
    """SHA-256 of a text and of frames."""
    found = hashlib.sha256(about.encode())
    for frames in pieces:
        found.update(np.ascontiguousarray(frames).data)
    return found.hexdigest()


class Engine(Protocol):
    """What forecasts from the starts of one run.

    Attributes
    ----------
    name : str
    stride_ps : float
        Between two predicted frames, without substeps.
    n_times : int
        Strides of a window.
    draws : bool
        Whether it draws futures, or knows their mean alone.
    fingerprint : str
        Of all that its forecasts depend on beside the starts.
    subject : Subject
        The run; None of a network that forecasts without one.
    builder : Structure
        Of the atoms that are forecast.
    """

    name: str
    stride_ps: float
    n_times: int
    draws: bool
    fingerprint: str
    subject: Subject | None
    builder: Structure

    def check(self, horizon: int, substeps: int) -> None:
        """Refuse what it cannot give."""

    def settings(self, device: str, precision: str) -> dict[str, str]:
        """In what it computes, as far as its forecasts depend on it."""

    def offsets(self, horizon: int, substeps: int) -> NDArray[np.float64]:
        """Times of the predicted frames in ps after the start, (horizon,)."""

    def limits(self, start: NDArray[np.floating]) -> Limits:
        """Limits of the physical checks beside a start (N, 3), wider where frames of the run itself go further."""

    def forecasters(
        self, starts: Sequence[int], horizon: int, substeps: int, **options: Any
    ) -> Iterator[tuple[NDArray[np.int64], Chained]]:
        """Which of the starts (frame numbers) are forecast by whom."""


def _limits(
    some: Callable[[int], tuple[NDArray[np.float32], list[NDArray[np.float32] | None]]], structure: Structure
) -> Callable[[NDArray[np.floating]], Limits]:
    """What gives those beside a start, from what gives up to so many frames (F, N, 3) and their boxes (6,)."""
    frames, boxes = some(max(FEWEST_SEEN, min(MOST_SEEN, ATOMS_SEEN // structure.n_atoms)))
    bonds = structure.bonds
    return functools.partial(Limits.of, frames, bonds=bonds, nearest=nearest_contact(frames, bonds, boxes))


class ModelEngine:
    """A network; `options` of :meth:`forecasters` are those of :class:`egno_md.forecast.chain.ModelForecaster`.

    Parameters
    ----------
    model : Model
    builder : GraphBuilder
    subject : Subject, optional
        The run, which long chains revert to, and whose frames widen the limits of the checks.
    """

    def __init__(self, model: Model, builder: GraphBuilder, subject: Subject | None = None) -> None:
        from ..forecast.generative import draws

        self.model, self.builder, self.subject = model, builder, subject
        self.name, self.stride_ps, self.n_times = model.name, model.window.stride_ps, model.window.n_times
        self.draws, self.fingerprint = draws(model), model.fingerprint

    def check(self, horizon: int, substeps: int) -> None:
        from ..forecast.chain import check_request

        check_request(self.model, horizon, substeps)

    def settings(self, device: str, precision: str) -> dict[str, str]:
        from ..forecast.device import resolve_device

        return {"device": resolve_device(device).type, "precision": precision}

    def limits(self, start: NDArray[np.floating]) -> Limits:
        return Limits() if self.subject is None else self._limits(start)

    @functools.cached_property
    def _limits(self) -> Callable[[NDArray[np.floating]], Limits]:
        return _limits(self.subject.some, self.builder)

    def offsets(self, horizon: int, substeps: int) -> NDArray[np.float64]:
        from ..forecast.chain import forecast_times

        return forecast_times(self.model, horizon, substeps)

    def forecasters(self, starts, horizon, substeps, **options):
        from ..forecast.chain import ModelForecaster

        n_windows = -(-horizon // (self.n_times * substeps))
        forecaster = ModelForecaster(self.model, self.builder, substeps=substeps, n_windows=n_windows, **options)
        known = self._known(starts, horizon) if self.draws and n_windows > REVERTING else None
        if known is not None:
            forecaster.revert_to(known)
        yield np.arange(len(starts)), forecaster

    def _known(self, starts: Sequence[int], horizon: int) -> Known | None:
        """The frames of the run that are not forecast."""
        if self.subject is None:
            return None
        try:
            material = Material.of(self.subject, horizon)
        except DataError:  # the forecast itself does not need these frames
            return None
        reach = (horizon + self.n_times) * self.subject.every
        return material.known((start + 1, start + 1 + reach) for start in starts)


class FreeEngine:
    """A free forecast of a run, whose frames are brought back to the local geometry of the run.

    From the end of the run it is fitted to all of it. From a start inside it is fitted to what is left without the
    frames that are forecast and those of a window after them, so that nothing is copied from the answer. Where that is
    less than half of the frames, because the starts are many, the starts of either half of the run are forecast with
    what is fitted to the other half.

    Parameters
    ----------
    name : str
    material : Material
    make : callable
        The forecast, given what may be known. It may bring a geometry of its own, ``geometry(segments, bonds)``, and
        the fingerprint of what it knows beside the run.
    """

    def __init__(self, name: str, material: Material, make: Callable[[Known], Forecaster]) -> None:
        self.name, self.material, self.make = name, material, make
        self.subject, self.builder = material.subject, material.subject.builder
        self.stride_ps, self.n_times = material.stride_ps, len(material.steps)
        whole = make(material.known())
        self.draws = bool(getattr(whole, "draws", False))
        self._made: dict[tuple, Forecaster] = {(): self._restored(whole, material.known())}

    @property
    def fingerprint(self) -> str:
        """Of its name, of all frames that it may be fitted to, and of the steps."""
        about = f"{self.name} {self.material.steps} {self.material.every}{getattr(self.make, 'fingerprint', '')}"
        return hash_of(about, (run.positions for run in self.material.runs))

    def check(self, horizon: int, substeps: int) -> None:
        check_numbers(horizon, substeps)

    def settings(self, device: str, precision: str) -> dict[str, str]:
        return {}

    def limits(self, start: NDArray[np.floating]) -> Limits:
        return self._limits(start)

    @functools.cached_property
    def _limits(self) -> Callable[[NDArray[np.floating]], Limits]:
        return _limits(self.material.some, self.builder)

    def offsets(self, horizon: int, substeps: int) -> NDArray[np.float64]:
        return np.arange(1, horizon + 1) * self.stride_ps / substeps

    def forecasters(self, starts, horizon, substeps, **options):
        times = np.arange(1, self.n_times * substeps + 1) / substeps
        for rows, excluded in self._folds(np.asarray(starts, int), -(-horizon // substeps)):
            chained = Chained(self._known_without(excluded), times)
            if self.draws and horizon > REVERTING * len(times):
                chained.reversion = self._reversion(excluded)
            yield rows, chained

    def _reversion(self, excluded: tuple) -> MeanReversion | None:
        """Of what is fitted to all but these frames."""
        known, made = self.material.known(excluded), self._known_without(excluded)
        times, bonds = np.arange(1, self.n_times + 1), self.builder.bonds
        longest = max((len(x) for x in known.segments), default=0) // known.every
        one = made.inner.inner if isinstance(made, Restored) else made.inner
        if longest < REVERTING * self.n_times and isinstance(one, ElasticNetwork):
            # Too short to tell how far it varies; a network does, about the structure that is there.
            frames = one.ensemble(known.segments[-1][-1].astype(np.float64), ENSEMBLE, np.random.default_rng(0))
            known, longest = Known([frames], known.steps), 1
        return MeanReversion.fit(made, known, times, min(PAST, max(1, longest // 4)), bonds)

    def _folds(self, starts: NDArray[np.int64], horizon: int) -> list[tuple[NDArray[np.int64], tuple]]:
        """Rows of starts, and ranges of frames that must not be known to who forecasts from them."""
        numbers = np.concatenate([run.numbers for run in self.material.runs])
        reach, rows = (horizon + self.n_times) * self.material.every, np.arange(len(starts))
        own = tuple((int(s) + 1, int(s) + 1 + reach) for s in np.unique(starts) if s < numbers[-1])
        hidden = np.zeros(len(numbers), bool)
        for low, high in own:
            hidden |= (numbers >= low) & (numbers < high)
        if hidden.mean() <= 0.5 or len(starts) == 1:
            return [(rows, own)] if len(starts) else []
        if len(starts) <= MOST_FITS:
            return [(rows[k : k + 1], ((int(s) + 1, int(s) + 1 + reach),)) for k, s in enumerate(starts)]
        middle = int(np.median(numbers))
        early = starts < middle
        folds = [
            (rows[early], ((int(numbers[0]), max(middle, int(starts[early].max(initial=0)) + 1 + reach)),)),
            (rows[~early], ((int(starts[~early].min(initial=numbers[-1])), int(numbers[-1]) + 1),)),
        ]
        return [(some, excluded) for some, excluded in folds if len(some)]

    def _known_without(self, excluded: tuple) -> Forecaster:
        if excluded not in self._made:
            known = self.material.known(excluded)
            try:
                made = self.make(known)
            except (DataError, ValueError) as error:
                left = sum(map(len, known.segments))
                raise DataError(
                    f"{self.name!r} can only be fitted to frames that are not forecast, and {left} are left for that "
                    f"({error}): start nearer to the end of the run, from fewer frames, or with a shorter horizon"
                ) from error
            self._made[excluded] = self._restored(made, known)
        return self._made[excluded]

    def _restored(self, made: Forecaster, known: Known) -> Forecaster:
        one = OneByOne(made)
        bonds = self.builder.bonds
        if isinstance(made, Static) or not len(bonds):
            return one
        geometry = getattr(self.make, "geometry", LocalGeometry.fit)(known.segments, bonds)
        return Restored(one, geometry.keep)
