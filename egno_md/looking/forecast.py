"""A forecast, looked at: what the pictures show as arrays, the pictures, and the page of them."""

from __future__ import annotations

import base64
import contextlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UsageError, counted
from ..evaluation.quality import backbone_torsions
from ..forecast.summed import Accuracy, checked
from ..molecule.geometry import aligned, dihedrals
from ..molecule.molecule import Molecule
from . import page
from .figures import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Frames of the run that are looked at, at most: the last ones before the start.
RUN_FRAMES = 200

#: Frames of the forecast that are looked at, at most.
AHEAD = 500

#: Atoms times frames of the picture in three dimensions, at most: some 4 MB of a page. Of more, members, then frames
#: are left out.
DRAWN = 500_000

#: Futures whose paths are drawn in three dimensions, and frames of the run there, at most.
MEMBERS, PAST = 8, 40

#: Rows of a table of steps, at most.
STEPS = 10


@dataclass(frozen=True)
class Look:
    """One forecast and the run before it, every frame superposed on the start; Angstrom and ps.

    Attributes
    ----------
    name : str
        Who forecast.
    molecule : Molecule
        The N atoms.
    run_times, run : ndarray, shape (F,) and (F, N, 3)
        The last frames of the run, the start at the end.
    times, members : ndarray, shape (T,) and (K, T, N, 3)
        The futures; K is 1 where none are drawn.
    true : ndarray, shape (T, N, 3)
        What the run has of those times; nan where it has nothing.
    samples : int or None
        Futures that were drawn; None where the forecast is a mean.
    frame, n_starts : int
        The start frame, and how many starts there are forecasts from.
    """

    name: str
    molecule: Molecule
    run_times: NDArray[np.float64]
    run: NDArray[np.float64]
    times: NDArray[np.float64]
    members: NDArray[np.float64]
    true: NDArray[np.float64]
    samples: int | None
    frame: int
    n_starts: int

    @property
    def drawn(self) -> bool:
        """Whether there are several futures."""
        return len(self.members) > 1

    @property
    def what(self) -> str:
        """What one path of the pictures is called."""
        return "forecast" if self.samples is None else "one future"

    @property
    def past(self) -> bool:
        """Whether there is a run before the start, and not the start alone."""
        return len(self.run) > 1

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which times the run has as well (T,)."""
        return np.isfinite(self.true[:, 0, 0])

    @property
    def rmsf(self) -> NDArray[np.float64]:
        """Fluctuation of every atom about the mean of the run's frames (N,), superposed on it; nan of one frame."""
        if len(self.run) < 2:
            return np.full(self.run.shape[1], np.nan)
        fitted = self.run
        for _ in range(2):
            fitted = aligned(self.run, fitted.mean(axis=0))  # (F, N, 3)
        return np.sqrt(((fitted - fitted.mean(axis=0)) ** 2).sum(axis=-1).mean(axis=0))

    @property
    def spread(self) -> NDArray[np.float64]:
        """How far the futures are from their mean at the last time (N,); nan of one."""
        last = self.members[:, -1]  # (K, N, 3)
        if not self.drawn:
            return np.full(last.shape[1], np.nan)
        return np.sqrt(((last - last.mean(axis=0)) ** 2).sum(axis=-1).mean(axis=0))

    @property
    def moved(self) -> NDArray[np.float64]:
        """How far the forecast goes from the start up to the last time, root mean square over the futures (N,)."""
        return np.sqrt(((self.members[:, -1] - self.run[-1]) ** 2).sum(axis=-1).mean(axis=0))

    @property
    def run_moved(self) -> NDArray[np.float64]:
        """How far the run goes in the same time, superposed, root mean square (N,); nan where it is shorter."""
        spacing = np.diff(self.run_times[-2:])
        ahead = int(round((self.times[-1] - self.run_times[-1]) / spacing[0])) if len(spacing) else len(self.run)
        if len(self.run) <= ahead or ahead < 1:
            return np.full(self.run.shape[1], np.nan)
        fitted = aligned(self.run[ahead:], self.run[:-ahead])  # (F - T, N, 3)
        before = self.run[:-ahead] - self.run[:-ahead].mean(axis=1, keepdims=True)
        return np.sqrt(((fitted - before) ** 2).sum(axis=-1).mean(axis=0))

    @property
    def torsions(self) -> tuple[str, list[str], NDArray[np.int64]]:
        """Kind, names and atoms of the torsions of the backbone, see :func:`backbone_torsions`."""
        return backbone_torsions(self)

    def angles(self, frames: NDArray[np.float64]) -> NDArray[np.float64]:
        """Those torsions in degrees (F, Q)."""
        return np.degrees(dihedrals(frames, self.torsions[2]))


def shown_start(surrogate: Any) -> int:
    """Which of the starts has most to show: the last one with frames of the run before it and after it.

    Frames before it come first, as the pictures show the run; then how many of the forecast's frames the run has.
    """
    subject, results = surrogate.subject, surrogate.results
    past = [subject.clock.shifted(int(frame), -surrogate.every) is not None for frame in results.frames]
    known = np.isfinite(results.rmsd).sum(axis=1)
    return max(range(len(past)), key=lambda i: (past[i], known[i], i))


def look_at(surrogate: Any, start: int | None = None) -> Look:
    """What there is to be seen of one forecast of an :class:`~egno_md.EGNOSurrogate` that has run.

    Parameters
    ----------
    surrogate : EGNOSurrogate
        Its trajectory is read again: up to 200 frames before the start, and those after it that it has.
    start : int, optional
        Which of its starts, counted from 0; the last one with frames of the run before it and after it.

    Raises
    ------
    UsageError
        There is no such forecast.
    """
    results, subject = surrogate.results, surrogate.subject
    n_starts = len(results.frames) if "frames" in results else 0
    if not n_starts:
        raise UsageError("there is no forecast yet: call run() first, with at least one start frame")
    if start is None:
        start = shown_start(surrogate)
    if not -n_starts <= start < n_starts:
        raise UsageError(f"start {start}: there are forecasts from {counted(n_starts, 'start')}, counted from 0")
    frame, began = int(results.frames[start]), float(surrogate.start_times[start])
    chosen = np.unique(np.linspace(0, results.times.shape[1] - 1, AHEAD).astype(int))
    times = np.asarray(results.times[start], float)[chosen]
    clock = subject.clock
    numbers = [frame]
    while len(numbers) < RUN_FRAMES and (past := clock.shifted(numbers[-1], -surrogate.every)) is not None:
        numbers.append(past)
    trajectory = surrogate.atoms.universe.trajectory
    here = max(trajectory.frame, 0)
    try:
        run = subject.frames(numbers[::-1])[0].astype(float)  # (F, N, 3)
        true = np.full((len(times), *run.shape[1:]), np.nan)  # (T, N, 3)
        for k, time in enumerate(times):
            number = clock.shifted(frame, (time - began) / clock.spacing) if clock.spacing else None
            if number is not None:
                with contextlib.suppress(DataError):  # a damaged frame is none to compare with
                    true[k] = aligned(subject.positions(number), run[-1])
    finally:
        trajectory[here]
    ensemble = results.get("ensemble")
    if ensemble is None:  # one by one: those of a streamed forecast are read from its file
        members = np.asarray([[results.positions[start, int(k)] for k in chosen]], float)  # (1, T, N, 3)
    else:
        members = np.asarray(ensemble[start][:, chosen], float)  # (K, T, N, 3)
    return Look(
        name=surrogate.engine.name,
        molecule=Molecule.of(surrogate.atoms),
        run_times=np.asarray(clock.times[numbers[::-1]], float),
        run=aligned(run, run[-1]),
        times=times,
        members=aligned(members, run[-1]),
        true=true,
        samples=surrogate.samples,
        frame=frame,
        n_starts=n_starts,
    )


def plot(surrogate: Any, start: int | None = None) -> Figure:
    """Pictures of a forecast beside the run: RMSD, radius of gyration, motion by residue, torsions.

    Parameters
    ----------
    surrogate : EGNOSurrogate
        That has run.
    start : int, optional
        Which of its starts, see :func:`look_at`.

    Returns
    -------
    matplotlib.figure.Figure
        Of no screen: a notebook shows it, ``savefig`` writes it.

    Raises
    ------
    UsageError
        There is no forecast, or matplotlib is not installed.
    """
    look = look_at(surrogate, start)
    shown = panels(look)
    rows = -(-len(shown) // 2)
    figure = page.new_figure(12, 4 * rows)
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for panel, place in zip(shown, axes, strict=False):
        panel.draw(place)
    for place in axes[len(shown) :]:
        place.set_axis_off()
    figure.suptitle(title(look))
    return figure


def title(look: Look) -> str:
    ahead = look.times[-1] - look.run_times[-1]
    futures = f"{len(look.members)} futures" if look.drawn else look.what
    whence = f" from frame {look.frame}" if look.n_starts > 1 else ""
    return f"{futures} of {counted(look.molecule.n_atoms, 'atom')} over {ahead:g} ps with {look.name}{whence}"


def write_page(
    surrogate: Any, file: str | Path, *, start: int | None = None, said: Sequence[str] = (), force: bool = False
) -> Path:
    """Write a page of one forecast, which holds all that it shows and loads nothing.

    Parameters
    ----------
    surrogate : EGNOSurrogate
        That has run.
    file : path
        ``.html``.
    start : int, optional
        Which of its starts, see :func:`look_at`.
    said : sequence of str
        What the command line says of it: lines of a head of eleven columns and words.
    force : bool
        Replace a file that exists.

    Returns
    -------
    Path

    Raises
    ------
    UsageError
        There is no forecast, the name is no page's, or matplotlib is not installed.
    OutputError
        The file exists or cannot be written.
    """
    file = Path(file)
    page.require_page(file, force)
    look = look_at(surrogate, start)
    heads: list[tuple[str, str]] = [(line[:11].strip(), line[11:]) for line in said]
    tally, findings = checked(surrogate)
    hindcast = surrogate.results.get("hindcast")
    parts = [_verdict(surrogate, hindcast, findings), _which(surrogate, look, chosen=start is None), _list(heads)]
    parts.append(page.figures(*(page.figure(p.name, page.png(p.draw), p.caption) for p in panels(look))))
    parts += [*_steps(surrogate), *_hindcast(hindcast), "<h2>Checks</h2>", _checks(tally), _viewer(look)]
    headline = title(look) if look.n_starts == 1 else f"forecasts from {look.n_starts} starts with {look.name}"
    return page.write_file(file, page.page(headline[0].upper() + headline[1:], *parts), force=force)


def _verdict(surrogate: Any, hindcast: Any, findings: Sequence[str]) -> str:
    """What the forecast is worth, before anything else: on the last windows of the run, then from these starts."""
    lines = []
    if hindcast is not None:
        words = ". ".join(said[0].upper() + said[1:] for said in (hindcast.line(), hindcast.verdict()) if said)
        lines.append(f"On the last windows of this run: {words}.")
    if hindcast is None or Accuracy.of(surrogate) is not None:
        lines.append(worth(surrogate))
    if findings:
        lines.append(f"The forecast fails the physical checks: {'; '.join(findings)}.")
    return "".join(f'<p class="verdict{" bad" if findings else ""}">{html.escape(line)}</p>' for line in lines)


def worth(surrogate: Any) -> str:
    """What is known of the error, of all starts, in a sentence or two."""
    accuracy = Accuracy.of(surrogate)
    if accuracy is None:
        return (
            "The run has none of these frames: what the forecast is worth is not known from this page. Start inside "
            "the run (--from-frame), or see egno-md evaluate."
        )
    return accuracy.sentence()


def _which(surrogate: Any, look: Look, chosen: bool) -> str:
    """Which of several starts the pictures show; what is said before them is of all."""
    if look.n_starts == 1:
        return ""
    frames = surrogate.results.frames
    has = " and ".join(["before"] * look.past + ["after"] * bool(look.known.any()))
    why = f", chosen for what the run has {has} it" if chosen and has else ""
    said = (
        f"There are {look.n_starts} starts, frames {frames.min()} to {frames.max()}. The pictures show the one from "
        f"frame {look.frame} (t = {look.run_times[-1]:g} ps){why}; all else is of all starts."
    )
    return f"<p>{html.escape(said)}</p>"


def _steps(surrogate: Any) -> list[str]:
    """The error at each step, of several starts; nothing where no step is known."""
    results = surrogate.results
    if len(results.frames) == 1:
        return []
    some = np.unique(np.linspace(0, results.times.shape[1] - 1, STEPS).astype(int))
    known = [one for k in some if (one := Accuracy.of(surrogate, step=int(k))) is not None]
    if not known:
        return []
    # One future is no guess: it is not held beside the frame that stands still.
    heads = ["t after the start (ps)", known[0].what, *([] if known[0].single else ["standing frame"]), "starts"]
    rows = [
        [f"{one.after:g}", f"{one.error:.2f}", *([] if one.single else [f"{one.still:.2f}"]), one.n_known]
        for one in known
    ]
    said = "RMSD from what came in Å, superposed, the mean of the starts of which the run has the step."
    return ["<h2>Error at each step</h2>", page.table(heads, rows, said)]


def _list(heads: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{html.escape(head)}</dt><dd>{html.escape(words)}</dd>" for head, words in heads)
    return f"<dl>{rows}</dl>" if rows else ""


def _hindcast(hindcast: Any) -> list[str]:
    """Every candidate on the last windows of the run, the best first; nothing where none was judged."""
    if hindcast is None:
        return []
    rows = []
    for name, one in sorted(hindcast.entries.items(), key=lambda item: item[1].score):
        difference, low, high = one.against_static
        ratio = one.spread_over_error
        rows.append(
            (
                f"{name} (taken)" if name == hindcast.chosen else name,
                f"{one.score:.3f}",
                f"{difference:+.3f}" + ("" if np.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"),
                *(f"{one.error[k]:.2f}" for k in (0, -1)),
                "" if ratio is None else f"{ratio.mean():.2f}",
            )
        )
    first, last = (f"RMSD after {hindcast.times[k]:g} ps" for k in (0, -1))
    heads = ("", "energy score", "less the standing frame's", first, last, "spread over error")
    said = (
        f"{counted(hindcast.n_windows, 'window')}, {hindcast.n_blocks} independent; Å, superposed, 95 % intervals; the "
        "energy score judges all futures together, less is better; spread over error: 1 is calibrated."
    )
    return ["<h2>Candidates on the last windows of the run</h2>", page.table(heads, rows, said)]


def _checks(tally: Any) -> str:
    low, high = tally.radius_ratio
    rows = [
        ("largest change of a bond (Å)", f"{tally.bond_deviation:.2f}", counted(tally.n_bonds, "bond")),
        ("clashes in a frame", tally.clashes, f"pairs closer than {tally.clash_distance:.1f} Å"),
        ("turned over", tally.flipped, f"of {tally.n_centres} chiral centres"),
        ("radius of gyration over the start's", f"{low:.2f} to {high:.2f}", "every frame"),
        ("verdict", "passed" if tally.ok else "failed", counted(tally.n_frames, "frame")),
    ]
    return page.table(("", "found", "of"), rows)


def _viewer(look: Look) -> str:
    """The picture in three dimensions, thinned to what a page can hold."""
    n_atoms = look.molecule.n_atoms
    if n_atoms > DRAWN:
        return ""
    members = look.members[np.unique(np.linspace(0, len(look.members) - 1, MEMBERS).astype(int))]  # (K', T, N, 3)
    while len(members) > 1 and n_atoms * len(members) * members.shape[1] > DRAWN // 2:
        members = members[:-1]
    most = max(1, DRAWN // 2 // (n_atoms * len(members)))
    ahead = np.unique(np.linspace(0, members.shape[1] - 1, most).astype(int))
    past = np.arange(len(look.run))[-max(1, min(PAST, DRAWN // 2 // n_atoms)) :]
    bonds: list[list[int]] = [[] for _ in range(n_atoms)]
    for a, b in look.molecule.bonds.tolist():
        bonds[a].append(b)
        bonds[b].append(a)
    hues = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in _hues(len(members))]
    coarse = look.molecule.elements.size and len(np.unique(look.molecule.residues)) == n_atoms
    view = {
        "atoms": _atoms(look.molecule),
        "bonds": bonds,
        "times": [round(float(t), 4) for t in (*look.run_times[past], *look.times[ahead])],
        "ahead": len(ahead),
        "radius": 0.35 if coarse else 0.18,
        "colours": hues,
        "run": _packed(look.run[past]),
        "members": [_packed(future[ahead]) for future in members],
    }
    left = f", {len(members)} of {len(look.members)} futures" if len(members) < len(look.members) else ""
    grey = f"The last {len(past)} frames of the run" if len(past) > 1 else "The start frame"
    whence = f" from frame {look.frame}" if look.n_starts > 1 else ""
    caption = f"{grey} in grey and the forecast{whence} in colour{left}, on the start."
    return page.filled(
        "viewer.html",
        caption=html.escape(caption),
        view=json.dumps(view, separators=(",", ":")).replace("</", r"<\/"),
        licence=(page.TEMPLATES / "3Dmol-LICENSE.txt").read_text(),
        library=(page.TEMPLATES / "3Dmol-min.js").read_text(),
        code=(page.TEMPLATES / "viewer.js").read_text(),
    )


def _atoms(molecule: Molecule) -> list[dict[str, Any]]:
    def column(values: Any, default: Any) -> list[Any]:
        return [default] * molecule.n_atoms if values is None else [getattr(v, "item", lambda v=v: v)() for v in values]

    columns = zip(
        column(molecule.elements, "C"),
        column(molecule.names, ""),
        column(molecule.resnames, ""),
        column(molecule.resids, 0),
        strict=True,
    )
    return [{"elem": str(e) or "X", "atom": str(n), "resn": str(r), "resi": i} for e, n, r, i in columns]


def _hues(count: int) -> list[tuple[int, int, int]]:
    """From vermilion to blue, which the colour blind tell apart."""
    ends = np.array([(213, 94, 0), (0, 114, 178)])
    return [
        tuple(np.round(ends[0] + share * (ends[1] - ends[0])).astype(int).tolist())
        for share in (np.linspace(0, 1, count) if count > 1 else [0.0])
    ]


def _packed(frames: NDArray[np.float64]) -> str:
    """Positions as whole hundredths of an Angstrom, which hold 327 Angstrom either way."""
    values = np.clip(np.round(frames * 100), -32767, 32767).astype("<i2")
    return base64.b64encode(values.tobytes()).decode()
