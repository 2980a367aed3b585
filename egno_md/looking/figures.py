"""The pictures of a forecast, each on axes of matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..molecule.geometry import radius_of_gyration, superposed_rmsd
from ..molecule.molecule import Molecule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .forecast import Look

FORECAST, RUN, TRUE = "#D55E00", "#555555", "#0072B2"

#: Frames of the run before the start beside which the forecast is drawn: as many again as it has, and no fewer.
BESIDE = 40

#: Labels on an axis of residues, at most.
LABELS = 12


@dataclass(frozen=True)
class Panel:
    """One picture."""

    name: str
    caption: str
    draw: Callable[[Any], None]


def panels(look: Look) -> list[Panel]:
    """The pictures that the atoms of a forecast allow."""
    futures = f"the {len(look.members)} futures and the mean of their curves" if look.drawn else _the(look.what)
    came = " Blue: what came." if look.known.any() else ""
    run = "Grey: the run; orange" if look.past else "Orange"
    beginning = "the first frame shown" if look.past else "the start frame"
    found = [
        Panel(
            "rmsd",
            f"RMSD from {beginning}, superposed. {run}: {futures}.{came}",
            lambda axes: _fan(axes, look, lambda x: superposed_rmsd(x, shown(look)[1][0]), "RMSD (Å)"),
        ),
        Panel(
            "radius",
            f"Radius of gyration, all atoms of one weight. {run}: {futures}.{came}",
            lambda axes: _fan(axes, look, radius_of_gyration, "radius of gyration (Å)"),
        ),
        Panel("residues", _of_residues(look), lambda axes: _residues(axes, look)),
    ]
    kind = look.torsions[0]
    if kind == "phi/psi":
        before = "Grey: the run" if look.past else "Grey: the start"
        found.append(
            Panel(
                "torsions",
                f"Phi and psi of all residues. {before}; orange: {_the(look.what)}, all its frames.",
                lambda axes: _ramachandran(axes, look),
            )
        )
    elif kind:
        less = "their means in the run" if look.past else "those of the start frame"
        found.append(
            Panel(
                "torsions",
                f"Virtual torsions of four C-alpha atoms in a row less {less}, by the second residue. {run}: the end "
                "of the forecast.",
                lambda axes: _virtual(axes, look),
            )
        )
    return found


def _the(what: str) -> str:
    return "the forecast" if what == "forecast" else what


def _of_residues(look: Look) -> str:
    """What the picture of the residues shows: of a short run not every line can be drawn."""
    said = []
    if look.past:
        said.append(f"Grey: fluctuation of every residue in the last {len(look.run)} frames of the run")
        if np.isfinite(look.run_moved).all():
            said[0] += ", and how far they move in the time of the forecast (dashed)"
    moves = "Orange: how far every residue moves from the start in the forecast"
    said.append(moves + ("; dotted: how far the futures are apart at its end" if look.drawn else ""))
    return ". ".join(said) + "."


def shown(look: Look) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times (F,) and frames (F, N, 3) of the run beside which the forecast is drawn."""
    last = slice(-max(BESIDE, 2 * len(look.times)), None)
    return look.run_times[last], look.run[last]


def _fan(axes: Axes, look: Look, value: Callable[[NDArray], NDArray], label: str) -> None:
    times, run = shown(look)
    before = value(run)  # (F,)
    futures = np.array([value(future) for future in look.members])  # (K, T)
    joined = np.concatenate([np.full((len(futures), 1), before[-1]), futures], axis=1)  # (K, T + 1)
    ahead = np.concatenate([times[-1:], look.times])
    if look.past:
        axes.plot(times, before, color=RUN, lw=1.2, label="run")
    if look.drawn:
        axes.plot(ahead, joined.T, color=FORECAST, lw=0.6, alpha=0.5)
    axes.plot(
        ahead, joined.mean(axis=0), color=FORECAST, lw=2, label="mean of their curves" if look.drawn else look.what
    )
    if look.known.any():
        came = value(look.true[look.known])
        axes.plot(
            np.concatenate([times[-1:], look.times[look.known]]),
            np.concatenate([before[-1:], came]),
            color=TRUE,
            lw=1.5,
            label="what came",
        )
    axes.axvline(times[-1], color="#bbbbbb", lw=0.8, ls=":")
    axes.set(xlabel="time (ps)", ylabel=label)
    axes.legend(frameon=False, fontsize="small")


def by_residue(molecule: Molecule, values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """First atom of every residue (R,), and the root mean square of values of the atoms (N,) in it (R,)."""
    _, first, residue = np.unique(molecule.residues, return_index=True, return_inverse=True)
    return first, np.sqrt(np.bincount(residue, values**2) / np.bincount(residue))


def residue_axis(axes: Axes, molecule: Molecule, first: NDArray[np.int64]) -> None:
    """Numbers of residues under an axis that counts them, and a line between two chains."""
    numbers = molecule.residues[first] + 1 if molecule.resids is None else molecule.resids[first]
    chains = molecule.chains[first]
    places = np.unique(np.linspace(0, len(first) - 1, min(LABELS, len(first))).astype(int))
    axes.set_xticks(places, [str(numbers[k]) for k in places])
    for k in np.flatnonzero(np.diff(chains)):
        axes.axvline(k + 0.5, color="#bbbbbb", lw=0.8)
    axes.set_xlabel("residue")


def _residues(axes: Axes, look: Look) -> None:
    lines = [
        (look.rmsf, RUN, "-", "RMSF of the run"),
        (look.run_moved, RUN, "--", "run moves in this time"),
        (look.moved, FORECAST, "-", "forecast moves"),
        (look.spread, FORECAST, ":", "futures apart"),
    ]
    for values, colour, line, label in lines:
        if np.isfinite(values).all():
            first, of_residue = by_residue(look.molecule, values)
            marker = "." if len(first) < BESIDE else None
            axes.plot(of_residue, line, color=colour, label=label, marker=marker)
    residue_axis(axes, look.molecule, first)
    axes.set(ylabel="distance (Å)", ylim=(0, None))
    axes.legend(frameon=False, fontsize="small")


def _ramachandran(axes: Axes, look: Look) -> None:
    for frames, colour, size, label in (
        (look.run, "#bbbbbb", *((2, "run") if look.past else (6, "start"))),
        (look.members.reshape(-1, *look.run.shape[1:]), FORECAST, 6, "forecast"),
    ):
        angles = look.angles(frames)  # (F, Q)
        axes.scatter(angles[:, ::2], angles[:, 1::2], s=size, color=colour, lw=0, label=label)
    axes.set(xlim=(-180, 180), ylim=(-180, 180), xlabel="phi (degrees)", ylabel="psi (degrees)")
    axes.legend(frameon=False, fontsize="small")


def _virtual(axes: Axes, look: Look) -> None:
    second = look.torsions[2][:, 1]  # (Q,)
    run = np.radians(look.angles(look.run))  # (F, Q)
    middle = np.degrees(np.angle(np.exp(1j * run).mean(axis=0)))  # (Q,)
    for frames, colour, size, label in (
        (look.run, "#bbbbbb", 4, "run"),
        (look.members[:, -1], FORECAST, 10, "end of the forecast"),
    ):
        if frames is look.run and not look.past:  # a row of zeros
            continue
        less = (look.angles(frames) - middle + 180) % 360 - 180  # (F, Q)
        axes.scatter(np.broadcast_to(second, less.shape), less, s=size, color=colour, lw=0, label=label)
    residue_axis(axes, look.molecule, np.arange(look.molecule.n_atoms))
    axes.set(ylabel=f"torsion less {'its mean in the run' if look.past else 'that of the start'} (degrees)")
    axes.legend(frameon=False, fontsize="small")
