"""What no molecule looks like, whatever the frame that it is compared with: impossible bonds, torn chains, overlaps."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, counted, in_frame
from .bonds import BOND_FACTOR, BOND_FACTOR_HYDROGEN, CHAIN_DISTANCE, LINKS, RADII
from .geometry import bond_lengths
from .molecule import Molecule
from .neighbors import box_vectors, contacts

#: Two atoms are nowhere closer than this, bonded or not, Angstrom (the bond of H2 is 0.74).
OVERLAP = 0.5

#: Atoms this near are at one point, as coordinates that were never set are: the start is broken, Angstrom.
SAME_POINT = 0.1

#: A bond is impossible outside these parts of the distance below which atoms count as bonded: from the shortest bonds
#: to those of a transition state. And the same of C-alpha links (cis 2.9 A, trans 3.8 A), Angstrom.
POSSIBLE_BOND, POSSIBLE_LINK = (0.45, 1.5), (2.4, 5.0)

#: A bond this long is no bond in any molecule: the start is broken, Angstrom.
BROKEN_BOND = 10.0

#: Peptide bonds are 1.33 A long; longer than this there is none, Angstrom.
PEPTIDE_DISTANCE = 2.0

#: No atom travels further than this: an offset in Angstrom, and a rate in Angstrom/ps (1 km/s, kept up for a stride).
TRAVEL, TRAVEL_RATE = 3.0, 10.0

#: Atoms this much heavier than their element are beads: more than it and its hydrogens can be (u).
_HEAVIEST = {"H": 5.0, "B": 20.0, "C": 20.0, "N": 22.0, "O": 24.0, "F": 24.0, "P": 40.0, "S": 40.0}

#: The cure for what looks as if a box had done it.
BROKEN = (
    "If a periodic box that the file does not know broke it, make it whole with the program that wrote it (`gmx "
    "trjconv -pbc whole`)"
)

#: The cure for what is too near.
UNITS = "Are the coordinates in Angstrom? A file in nm is ten times too small"


def check_start(
    molecule: Molecule,
    history: ArrayLike,
    box: ArrayLike | None = None,
    *,
    stride_ps: float | None = None,
    frame: int | None = None,
) -> list[str]:
    """Judge what a forecast starts from by what any molecule is like.

    Parameters
    ----------
    molecule : Molecule
        Who the N atoms are.
    history : array_like (H, N, 3)
        Frames up to the start, one stride apart, Angstrom, finite.
    box : array_like (6,), optional
        Lengths and angles.
    stride_ps : float, optional
        Between the frames; without it displacements are not judged.
    frame : int, optional
        Number of the start, for messages.

    Returns
    -------
    list of str
        What is odd, a line each; empty for a sound start.

    Raises
    ------
    DataError
        Atoms on each other, or bonded atoms so far apart that there is no molecule to forecast.
    """
    history = np.asarray(history, np.float64)
    start = history[-1]
    pairs, distances = _overlaps(molecule, start, box)
    if distances.min(initial=np.inf) < SAME_POINT:
        i, j = pairs[distances.argmin()]
        raise DataError(
            f"{in_frame(frame)}{molecule.label(i)} and {molecule.label(j)} are {distances.min():.2f} A apart, and "
            f"{counted(len(pairs), 'pair')} of atoms closer than {OVERLAP} A in all: this is no molecule. Start "
            "from a frame with sound coordinates in Angstrom, or select each atom once"
        )
    limits = possible_lengths(molecule)
    real = np.isfinite(limits[1])
    lengths = np.where(real, bond_lengths(start, molecule.bonds), 0.0)  # (B,)
    if lengths.max(initial=0.0) > BROKEN_BOND:
        i, j = molecule.bonds[lengths.argmax()]
        raise DataError(
            f"{in_frame(frame)}{molecule.label(i)} and {molecule.label(j)} are bonded and {lengths.max():.1f} A apart: "
            f"this is no molecule. {BROKEN}; or the topology is that of another run"
        )
    found = impossible_in(molecule, start, box, limits)
    more = f" ({len(found) - 1} more like it)" if len(found) > 1 else ""
    torn, apart, as_by_a_box = _torn(molecule, start, box)
    cure = BROKEN if as_by_a_box.any() or (lengths > limits[1]).any() else UNITS
    lines = [f"{found[0]}{more}. {cure}"] if found else []
    if not as_by_a_box.all():
        i, j = torn[apart.argmax()]
        lines.append(
            f"{counted(len(torn), 'pair')} of residues that follow each other by number and are not linked, such as "
            f"{molecule.label(i)} and {molecule.label(j)}, {apart.max():.1f} A apart: if none are missing there, the "
            "chain is torn"
        )
    if stride_ps is not None and len(history) > 1:
        moved = history[-1] - history[-2]  # (N, 3)
        travel = np.linalg.norm(moved - np.median(moved, axis=0), axis=1)  # (N,)
        if travel.max() > TRAVEL + TRAVEL_RATE * stride_ps:
            k = int(travel.argmax())
            lines.append(
                f"{molecule.label(k)} moved {travel[k]:.1f} A in {stride_ps:g} ps, which no atom does. {BROKEN}"
            )
    return [in_frame(frame) + line for line in lines]


def impossible_in(
    molecule: Molecule,
    xyz: NDArray[np.float64],
    box: ArrayLike | None,
    limits: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> list[str]:
    """What no molecule looks like in a frame (N, 3), a line for each bond, link or pair of atoms; the worst first.

    `limits` are :func:`possible_lengths` of the molecule.
    """
    lower, upper = limits
    lengths = bond_lengths(xyz, molecule.bonds)  # (B,)
    bad = np.flatnonzero((lengths < lower) | (lengths > upper))
    bad = bad[np.argsort(-np.abs(lengths[bad] - (lower[bad] + np.minimum(upper[bad], 99.0)) / 2), kind="stable")]
    lines = [
        f"{molecule.label(i)} and {molecule.label(j)} are bonded and {lengths[k]:.2f} A apart, {lower[k]:.1f} to "
        f"{upper[k]:.1f} A is possible"
        for k, (i, j) in zip(bad, molecule.bonds[bad].tolist(), strict=True)
    ]
    torn, apart, as_by_a_box = _torn(molecule, xyz, box)
    lines += [
        f"{molecule.label(i)} and {molecule.label(j)} follow each other in the chain and are torn apart, by {d:.1f} A "
        "along an axis"
        for (i, j), d in zip(torn[as_by_a_box].tolist(), apart[as_by_a_box], strict=True)
    ]
    pairs, distances = _overlaps(molecule, xyz, box)
    lines += [
        f"{molecule.label(i)} and {molecule.label(j)} are {d:.2f} A apart"
        for (i, j), d in zip(pairs.tolist(), distances, strict=True)
    ]
    return lines


def possible_lengths(molecule: Molecule) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shortest and longest possible length of each bond (B,), 0 and inf where its kind is not known."""
    first, second = molecule.bonds.T  # (B,)
    radii = np.array([RADII.get(str(symbol), 0.0) for symbol in molecule.elements])  # (N,)
    if molecule.masses is not None:
        limits = np.array([_HEAVIEST.get(str(symbol), np.inf) for symbol in molecule.elements])
        radii = np.where(molecule.masses > limits, 0.0, radii)  # beads
    light = molecule.elements == "H"
    factor = np.where(light[first] | light[second], BOND_FACTOR_HYDROGEN, BOND_FACTOR)  # (B,)
    reach = factor * (radii[first] + radii[second])
    known = (radii[first] > 0) & (radii[second] > 0)
    lower = np.where(known, POSSIBLE_BOND[0] * reach, 0.0)
    upper = np.where(known, POSSIBLE_BOND[1] * reach, np.inf)
    # Links of a chain are no bonds; of C-alpha atoms it is known how long they are.
    names = np.full(molecule.n_atoms, "") if molecule.names is None else molecule.names
    links = (names[first] == names[second]) & np.isin(names[first], list(LINKS))
    links &= molecule.residues[first] != molecule.residues[second]
    if molecule.n_atoms > 1 and len(np.unique(molecule.residues)) == molecule.n_atoms:
        links[:] = True
    ca = names[first] == "CA"
    return (
        np.where(links, np.where(ca, POSSIBLE_LINK[0], 0.0), lower),
        np.where(links, np.where(ca, POSSIBLE_LINK[1], np.inf), upper),
    )


def _torn(
    molecule: Molecule, xyz: NDArray[np.float64], box: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Loose ends that are apart (K, 2), by how much, and whether they look torn by a box along the axes.

    What is missing in a structure lies in any direction; a box moves atoms along an axis, and leaves what belongs
    together together across it.
    """
    pairs = molecule.loose
    delta = xyz[pairs[:, 0]] - xyz[pairs[:, 1]]  # (K, 3)
    vectors = box_vectors(box)
    if vectors is not None:
        delta = delta - np.rint(delta @ np.linalg.inv(vectors)) @ vectors
    apart = np.linalg.norm(delta, axis=1)  # (K,)
    limit = np.where(molecule.names[pairs[:, 0]] == "CA", CHAIN_DISTANCE, PEPTIDE_DISTANCE) if len(pairs) else apart
    torn = apart > limit
    pairs, delta, apart, limit = pairs[torn], delta[torn], apart[torn], limit[torn]
    far = np.abs(delta) > BROKEN_BOND  # (K, 3)
    across = np.linalg.norm(np.where(far, 0.0, delta), axis=1)
    return pairs, apart, (far.sum(axis=1) == 1) & (across < limit)


def _overlaps(
    molecule: Molecule, xyz: NDArray[np.float64], box: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of atoms on each other (P, 2), virtual sites and beads not counted, and their distances (P,)."""
    atoms = np.flatnonzero(molecule.elements != "")
    pairs, distances = contacts(xyz[atoms], OVERLAP, box)
    return atoms[pairs], distances
