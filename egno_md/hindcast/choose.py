"""Who forecasts a run: the candidate that was best on its last windows, and one line for each decision."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import DataError, EGNOError, ModelError, UsageError, counted
from ..forecast.asked import whole_number
from ..forecast.drawn import RunEnsemble
from ..forecast.forecasters import OF_PROTEINS as PROTEINS
from ..forecast.forecasters import Forecaster, Known, Static, free_forecasts, free_named
from ..forecast.subject import Subject
from ..models import bundled_models
from ..models.header import like_model
from ..molecule.atoms import WATER, matching_atoms
from ..molecule.default import CAPS, SHORT_PROTEIN, default_selection
from .engine import Engine, FreeEngine
from .hindcast import SHARE, UNFIT, Hindcast, interval, judge, windows_at_most
from .learned import NAME as LEARNED
from .learned import Learned
from .material import WINDOW, Judged, Material, stride_of
from .networks import bundled
from .proteins import OfProteins, content, not_for

#: From the simplest to the most involved; what is not here comes after them, networks last.
SIMPLEST_FIRST = (
    "static", "mean structure", "linear", "smoothed history", "AR(1)", "regression", "ensemble of the run", "analogues",
    "elastic network", "Gaussian process",
)  # fmt: skip

#: Windows of a run that tell who is better than the elastic network of proteins, which was fitted to more.
FEWEST_JUDGED = 3

#: The most futures from one start.
MOST_SAMPLES = 10_000

#: The longest time that may be spent on learning from a run, in seconds.
MOST_SECONDS = 86_400

#: Frames of past that starts of judged windows have where there is room.
REACH = 16


class Choice(NamedTuple):
    """Who forecasts, what it is worth, and one line for each decision."""

    name: str
    hindcast: Hindcast | None
    said: tuple[str, ...]


def choose(
    material: Material,
    others: Mapping[str, Callable[[Known], Forecaster]] | None = None,
    *,
    only: str | None = None,
    drawing: bool = False,
    as_mean: bool = False,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda count: None,
) -> Choice:
    """Let all candidates forecast the last windows of a run, and take the best.

    Parameters
    ----------
    material : Material
    others : mapping of str to callable, optional
        Candidates beside the free forecasts: what makes each of them, given what may be known.
    only : str, optional
        The choice was made: it is judged beside the others.
    drawing : bool
        Only who draws is taken.
    as_mean : bool
        The mean forecast is asked for: the least error of it wins. Otherwise the least energy score does, which judges
        those that draw and those that know one future alone by the same measure.
    seed : int
        Of the futures that are judged.
    progress : callable
        Called with 1 after each candidate.

    Returns
    -------
    Choice
        Where the run is too short to judge anybody, without a hindcast: the elastic network of proteins if it is among
        the others, the ensemble of the run where it can be fitted, else the standing frame.

    Raises
    ------
    DataError
        `only` cannot be fitted to what is known; or nobody who draws can.
    """
    makers: dict[str, Callable[[Known], Forecaster]] = {name: cls.fitted for name, cls in free_forecasts().items()}
    makers |= others or {}
    n_atoms, n_times = len(material.subject.atoms), len(material.steps)
    try:
        judged = Judged.last(material, SHARE, REACH, windows_at_most(n_atoms, n_times))
    except DataError as error:
        return _unjudged(material, makers, only, drawing, str(error))
    candidates: dict[str, Forecaster] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        try:
            candidates[name] = make(judged.known)
        except UNFIT as error:
            left_out[name] = " ".join(str(error).split())
    hindcast, scores, (groups, block) = judge(candidates, judged, material.stride_ps, seed=seed, progress=progress)
    hindcast = dataclasses.replace(hindcast, left_out=left_out | hindcast.left_out)
    fits = list(hindcast.entries)
    if drawing:
        fits = [name for name in fits if hindcast.entries[name].draws]
    said = []
    if only is not None:
        if only not in hindcast.entries:
            return _unjudged(material, makers, only, drawing, hindcast.left_out.get(only, "it could not be judged"))
        chosen = only
    else:
        if not fits:
            raise _nobody_draws(material)
        if PROTEINS in fits and hindcast.n_windows < FEWEST_JUDGED:
            few = counted(hindcast.n_windows, "window")
            said = (f"{PROTEINS}: fitted to published runs of proteins; {few} of this one cannot tell who is better",)
            return Choice(PROTEINS, dataclasses.replace(hindcast, chosen=PROTEINS), said)
        kind = 1 if as_mean else 0
        best = min(fits, key=lambda name: scores[name][kind].mean())
        chosen, tied = best, []
        for name in sorted(fits, key=_place):
            if name == best:
                break
            if hindcast.beats_still(best, kind) and not hindcast.beats_still(name, kind):
                continue  # not told apart from the best, nor from the frame that the best is better than
            _, low, _ = interval(scores[name][kind] - scores[best][kind], groups, block, hindcast.n_blocks, seed)
            if low <= 0:
                chosen, tied = name, [best]
                break
        said.append(_why(chosen, tied, fits, scores, kind, drawing, hindcast.n_blocks))
    hindcast = dataclasses.replace(hindcast, chosen=chosen)
    if words := _no_memory(hindcast, chosen):
        said.append(words)
    return Choice(chosen, hindcast, tuple(said))


def _place(name: str) -> int:
    return SIMPLEST_FIRST.index(name) if name in SIMPLEST_FIRST else len(SIMPLEST_FIRST)


def _why(
    chosen: str,
    tied: list[str],
    fits: list[str],
    scores: Mapping[str, Any],
    kind: int,
    drawing: bool,
    n_blocks: int,
) -> str:
    measure = ("energy score", "error of the mean")[kind]
    means = {name: float(scores[name][kind].mean()) for name in fits}
    others = sorted((name for name in fits if name not in (chosen, *tied)), key=means.__getitem__)[:2]
    beside = ", ".join(f"{name} {means[name]:.2f}" for name in [*tied, *others])
    # Those that were judged beside them and do not draw are in the table, and would be missed here.
    why = f"the best of {len(fits)}{' that draw' if drawing else ''}"
    if tied:
        draws = " that draws" if drawing else ""
        windows = counted(n_blocks, "independent window")
        why = f"not told apart from the best{draws}, {tied[0]}, by {windows}, and simpler"
    return f"{chosen}: {why} ({measure} {means[chosen]:.2f} A; {beside})" if beside else f"{chosen}: {why}"


def _not_learned(hindcast: Hindcast | None) -> str:
    """Why what was learned does not forecast."""
    why = "the run is too short to judge it" if hindcast is None else hindcast.left_out.get(LEARNED)
    if why is None and hindcast is not None:
        why = f"no better here (energy score {hindcast.entries[LEARNED].score:.2f} A)"
    return f"{LEARNED}: {why}"


def _no_memory(hindcast: Hindcast, chosen: str) -> str:
    if chosen == RunEnsemble.name:
        return (
            "there is no memory from frame to frame that is worth more than the run as a whole: what is given are "
            "frames of the run's ensemble, each by itself"
        )
    return ""


def _unjudged(material: Material, makers: Mapping[str, Any], only: str | None, drawing: bool, why: str) -> Choice:
    """Too few frames for a hindcast."""
    known = material.known()
    if only is not None:
        makers[only](known)  # or the error that says what it needs
        return Choice(only, None, (f"no hindcast: {why}",))
    whats = {
        PROTEINS: "fitted to published runs of proteins",
        RunEnsemble.name: "frames of the run",
        Static.name: "the last frame, standing",
    }
    for name, what in whats.items():
        if name in makers and not (drawing and name == Static.name) and _can_be_fitted(makers[name], known):
            return Choice(name, None, (f"no hindcast, for {why}", f"{name}: {what}; nothing else could be judged"))
    raise _nobody_draws(material)


def _nobody_draws(material: Material) -> DataError:
    frames = sum(len(run.positions) for run in material.runs)
    return DataError(
        f"no forecast that draws futures can be fitted to {counted(frames, 'frame')}: leave samples (--samples) "
        "out, or give a longer run"
    )


def _can_be_fitted(make: Callable[[Known], Forecaster], known: Known) -> bool:
    try:
        make(known)
    except UNFIT:
        return False
    return True


def check_samples(samples: int | None, mean: bool) -> int | None:
    """A number of futures, if it can be one.

    Raises
    ------
    UsageError
        Fewer than one, too many, or futures and their mean at once.
    """
    if samples is None:
        return None
    samples = whole_number("samples", samples, MOST_SAMPLES)
    if mean:
        raise UsageError("samples (--samples) are futures, mean (--mean) is their mean: give one of them")
    return samples


def check_adapt(seconds: float, model: Any = None) -> float:
    """Seconds to learn from a run, if they can be that; 0 for not.

    Raises
    ------
    UsageError
        No length of time, or more than a day of it; or a model was given as well.
    """
    try:
        found = float(seconds)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 <= found <= MOST_SECONDS:
        raise UsageError(f"adapt (--adapt) is a number of seconds from 0 to {MOST_SECONDS:,}, found {seconds!r}")
    if found and model is not None:
        raise UsageError(
            f"adapt (--adapt) learns a model from the run and {model!r} is to forecast it: give one of them; to go on "
            "training a model there is egno-md train --init"
        )
    return found


def cannot_draw(name: str) -> ModelError:
    """The error for futures of who knows their mean alone."""
    return ModelError(
        f"{name!r} knows the mean of all futures alone and cannot draw any: leave out the model, train one that draws "
        "(egno-md train ... --operator flow), or leave out samples (--samples)"
    )


def wanted(model: Any) -> tuple[Any, str | None]:
    """The model that was asked for, loaded, or the name of the free forecast; neither where the run shall decide.

    Raises
    ------
    ModelError
        There is neither a model nor a free forecast of that name; or what :func:`egno_md.load_model` raises.
    """
    if model is None:
        return None, None
    if isinstance(model, str) and model not in bundled_models() and not os.path.isfile(model):
        free = free_named(model)
        if free is None:
            known = [*free_forecasts(), PROTEINS]
            raise ModelError(
                f"no model {model!r}{like_model(model, known)}: neither a file nor a bundled model nor a free forecast"
                f"; bundled are {', '.join(bundled_models())}; free forecasts are {', '.join(known)}"
            )
        return None, free
    from ..forecast.model import load_model

    return load_model(model), None


def subject_of(source: Any, select: str | None, every: int, free: str | None) -> tuple[Subject, str, list[str]]:
    """The run that shall decide, or that a free forecast was asked for; its selection, and what was decided about it.

    Raises
    ------
    UsageError, DataError
        A selection or a stride that cannot be; a single frame that tells nothing.
    """
    decisions: list[str] = []
    if select is None:
        select, _, said = default_selection(source)
        decisions.append(f"atoms: {said}")
    subject = Subject.plain(source, select, every=every)
    if subject.clock.usable.sum() < 2 and free is None:
        check_one_frame(subject)
    return subject, select, decisions


def check_one_frame(subject: Subject) -> None:
    """Refuse a single frame of atoms of which nothing is known but that.

    Raises
    ------
    DataError
        It is of none of the atoms that the elastic network of proteins is for, or another spacing is asked for.
    """
    if OfProteins.of(subject, stride_of(subject)) is not None:
        return
    if OfProteins.of(subject, content()["strides_ps"][0]) is None:
        count = len(subject.atoms)
        move = "this atom moves" if count == 1 else f"these {count} atoms move"
        raise DataError(
            f"{subject.clock.name} has one frame with positions, which tells nothing of how {move}: "
            f"{', or '.join(_cures(subject))}"
        )
    raise not_for(subject, stride_of(subject))


#: Endings of the files that egno-md extend reads.
STRUCTURES = (".pdb", ".ent", ".cif", ".mmcif", ".pdbx")


def _cures(subject: Subject) -> list[str]:
    """What can be done with one frame of atoms of which nothing is known: of a protein more than of anything else."""
    cures = ["give the trajectory as well (egno-md predict TOPOLOGY TRAJECTORY)"]
    universe = subject.atoms.universe
    try:
        residues = matching_atoms(universe, "ca").residues
        backbone = matching_atoms(residues.atoms, "name N CA C O OT1 O1")
    except EGNOError:  # without names
        return cures
    if len(residues) < SHORT_PROTEIN:
        return cures
    cures.append("forecast all C-alpha atoms of the protein, --select ca (select='ca')")
    # OpenMM goes on from a file that it reads, of a chain with all of its atoms, with nothing strange beside it.
    others = set((universe.residues - residues).resnames)
    if (
        str(universe.filename or "").lower().endswith(STRUCTURES)
        and len(backbone) >= 4 * len(residues)
        and others <= {*WATER, *CAPS[:2]}
    ):
        cures.append("simulate from it (egno-md extend)")
    return cures


def choose_engine(
    material: Material,
    learned: Learned | None = None,
    *,
    as_mean: bool = False,
    only: str | None = None,
    **options: Any,
) -> tuple[Engine, Hindcast | None, tuple[str, ...]]:
    """:func:`choose`, among the bundled models that fit and what was learned from the run as well; a free forecast that
    is the choice is fitted to all of the run."""
    proteins = OfProteins.of(material.subject, material.stride_ps)
    if proteins is None and only == PROTEINS:
        raise not_for(material.subject, material.stride_ps)
    others: dict[str, Any] = {} if proteins is None else {PROTEINS: proteins}
    networks: dict[str, Any] = {**bundled(material, drawing_only=not as_mean)}
    if learned is not None:
        networks[LEARNED] = learned
    choice = choose(material, {**others, **networks}, as_mean=as_mean, only=only, **options)
    if learned is not None and choice.name != LEARNED:
        choice = choice._replace(said=(*choice.said, _not_learned(choice.hindcast)))
    if choice.name in networks:
        return networks[choice.name].engine, choice.hindcast, choice.said
    if choice.name in others:  # it needs no windows of the run to be fitted to: its own are as long as any
        material = dataclasses.replace(material, steps=tuple(range(1, WINDOW + 1)))
    make = others.get(choice.name) or free_forecasts()[choice.name].fitted
    return FreeEngine(choice.name, material, make), choice.hindcast, choice.said
