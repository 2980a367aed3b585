"""What the atoms of any protein do: for single frames, and for runs that are too short to tell."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..errors import DataError, EGNOError
from ..forecast.forecasters import OF_PROTEINS, Known
from ..forecast.network import MOST_ATOMS, ElasticNetwork
from ..forecast.subject import Subject
from ..molecule.atoms import are_all, matching_atoms
from ..molecule.default import CAPS, SHORT_PROTEIN
from ..molecule.local import LocalGeometry

if TYPE_CHECKING:
    from MDAnalysis.core.groups import AtomGroup

#: As it is called beside the forecasts that are fitted to the run at hand.
NAME = OF_PROTEINS

#: Frames that tell a local geometry; share of the nearest distance in the last of fewer that atoms may approach to.
FEWEST_FRAMES, CLEARANCE = 50, 0.9

#: How far the signed volume at an atom with three neighbours goes from that of the last frame, in Angstrom cubed.
VOLUME_SLACK = 0.5

#: Linked residues of the longest chain, at least: four C-alpha atoms hold one torsion, and of all heavy atoms both
#: torsions of a residue take one before it and one after it, which may be caps. What is less is no backbone.
FEWEST_RESIDUES = {"ca": SHORT_PROTEIN, "heavy": 3}

#: Its numbers, and what they were fitted to; ``python -m benchmarks.of_proteins fit`` makes them.
FILE = "proteins.json"


@functools.cache
def content() -> dict[str, Any]:
    """What the file says: numbers for C-alpha and for heavy atoms, the strides in ps that they are for, and where they
    come from."""
    return json.loads(resources.files("egno_md.models").joinpath(FILE).read_text())


def kind_of(atoms: AtomGroup) -> Literal["ca", "heavy"] | None:
    """Whether atoms are all C-alpha atoms of the proteins of their universe, or all heavy atoms of these and of their
    caps; None where they are neither."""
    universe = atoms.universe
    try:
        ca = matching_atoms(universe, "ca")
        if are_all(atoms, ca):
            return "ca"
        residues = universe.residues
        known = np.isin(residues.ix, ca.residues.ix) | np.isin(residues.resnames.astype(str), CAPS)
        heavy = matching_atoms(universe, "heavy")
    except EGNOError:
        return None
    return "heavy" if are_all(atoms, heavy[known[heavy.resindices]]) else None


@dataclasses.dataclass(frozen=True)
class OfProteins:
    """An elastic network fitted to published runs of proteins, at one stride.

    Its few numbers are variograms of motion by contact distance, which hold for any protein
    (:mod:`egno_md.forecast.network`). Of the run at hand one number is fitted, by how much more, or less, it moves.

    Attributes
    ----------
    kind : {"ca", "heavy"}
        Of the atoms.
    stride_ps : float
    """

    kind: Literal["ca", "heavy"]
    stride_ps: float

    @classmethod
    def of(cls, subject: Subject, stride_ps: float) -> OfProteins | None:
        """For the atoms of a subject; None where they are of no :func:`kind_of` atoms, or of no chain, or the stride is
        none that it is for."""
        least, most = content()["strides_ps"]
        if not 0.999 * least <= stride_ps <= 1.001 * most or len(subject.atoms) > MOST_ATOMS:
            return None
        kind = kind_of(subject.atoms)
        if kind is None or _longest_chain(subject) < FEWEST_RESIDUES[kind]:
            return None
        return cls(kind, stride_ps)

    def __call__(self, known: Known) -> ElasticNetwork:
        """The forecaster, whatever is known."""
        numbers = {name: np.asarray(value) for name, value in content()["numbers"][self.kind].items()}
        return dataclasses.replace(ElasticNetwork.of_arrays(numbers), stride=self.stride_ps).scaled(known)

    def geometry(self, segments: Sequence[np.ndarray], bonds: np.ndarray) -> LocalGeometry:
        """That of frames (F, N, 3) in Angstrom; a few do not tell how far distances may go, and only bonds are kept as
        the last one has them, of all heavy atoms angles and chirality as well."""
        if sum(map(len, segments)) >= FEWEST_FRAMES:
            return LocalGeometry.fit(segments, bonds)
        last = LocalGeometry.fit([segments[-1][-1:]], bonds)
        heavy, closest = self.kind == "heavy", CLEARANCE * float(last.closest[0])
        about = LocalGeometry.about(segments[-1][-1], bonds, closest, angles=heavy)
        if not heavy:
            return about
        n_atoms = len(segments[-1][-1])
        known = np.append(bonds @ [n_atoms, 1], bonds @ [1, n_atoms])
        # An atom and three that it is bonded to; torsions are free.
        centres = np.isin(last.corners[:, :1] * n_atoms + last.corners[:, 1:], known).all(axis=1)
        return dataclasses.replace(
            about,
            corners=last.corners[centres],
            volume_lower=last.volume_lower[centres] - VOLUME_SLACK,
            volume_upper=last.volume_upper[centres] + VOLUME_SLACK,
        )

    @property
    def fingerprint(self) -> str:
        """Of its numbers and the stride."""
        return hashlib.sha256(json.dumps([content()["numbers"][self.kind], self.stride_ps]).encode()).hexdigest()


def _longest_chain(subject: Subject) -> int:
    """Residues of the longest chain of them that is bonded together."""
    _, residues = np.unique(subject.atoms.resindices, return_inverse=True)  # (N,)
    first, second = residues[subject.builder.bonds].T
    size = residues.max() + 1
    _, chains = connected_components(coo_array((np.ones(len(first)), (first, second)), shape=(size, size)))
    return int(np.bincount(chains).max())


def not_for(subject: Subject, stride_ps: float) -> DataError:
    """The error for atoms or a stride that it is not for."""
    least, most = content()["strides_ps"]
    return DataError(
        f"the {NAME} is for all C-alpha or all heavy atoms of proteins (--select ca, --select heavy), chains of at "
        f"least {FEWEST_RESIDUES['ca']} linked residues (all heavy atoms: {FEWEST_RESIDUES['heavy']}, with caps), and "
        f"frames {least:g} to {most:g} ps apart; found {len(subject.atoms)} atoms and frames {stride_ps:g} ps apart: "
        "choose these atoms, another --stride (of a single frame another --dt), or leave out --model (model)"
    )
