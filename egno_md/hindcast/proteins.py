"""What the C-alpha atoms of any protein do: for single frames, and for runs that are too short to tell."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist

from ..errors import DataError, EGNOError
from ..forecast.forecasters import Known
from ..forecast.network import MOST_ATOMS, ElasticNetwork
from ..forecast.subject import Subject
from ..molecule.atoms import matching_atoms
from ..molecule.local import LocalGeometry

#: As it is called beside the forecasts that are fitted to the run at hand.
NAME = "elastic network of proteins"

#: Frames that tell a local geometry; share of the nearest distance in the last of fewer that atoms may approach to.
FEWEST_FRAMES, CLEARANCE = 50, 0.9

#: Its numbers, and what they were fitted to; ``python -m benchmarks.of_proteins fit`` makes them.
FILE = "proteins-ca.json"


@functools.cache
def content() -> dict[str, Any]:
    """What the file says: the numbers, the strides in ps that it is for, and where it comes from."""
    return json.loads(resources.files("egno_md.models").joinpath(FILE).read_text())


@dataclasses.dataclass(frozen=True)
class OfProteins:
    """An elastic network fitted to published runs of proteins, at one stride.

    Its few numbers are variograms of motion by contact distance, which hold for any protein
    (:mod:`egno_md.forecast.network`); nothing of the run at hand is fitted.

    Attributes
    ----------
    stride_ps : float
    """

    stride_ps: float

    @classmethod
    def of(cls, subject: Subject, stride_ps: float) -> OfProteins | None:
        """For the atoms of a subject; None where they are not all C-alpha atoms of the proteins of its universe, or the
        stride is none that it is for."""
        least, most = content()["strides_ps"]
        if not 0.999 * least <= stride_ps <= 1.001 * most or len(subject.atoms) > MOST_ATOMS:
            return None
        try:
            same = np.array_equal(matching_atoms(subject.atoms.universe, "ca").indices, subject.atoms.indices)
        except EGNOError:
            return None
        return cls(stride_ps) if same else None

    def __call__(self, known: Known) -> ElasticNetwork:
        """The forecaster, whatever is known."""
        numbers = {name: np.asarray(value) for name, value in content()["numbers"].items()}
        return dataclasses.replace(ElasticNetwork.of_arrays(numbers), stride=self.stride_ps)

    def geometry(self, segments: Sequence[np.ndarray], bonds: np.ndarray) -> LocalGeometry:
        """That of frames (F, N, 3) in Angstrom; a few do not tell how far distances may go, and only bonds are kept."""
        if sum(map(len, segments)) >= FEWEST_FRAMES:
            return LocalGeometry.fit(segments, bonds)
        last = segments[-1][-1]
        return LocalGeometry.about(last, bonds, CLEARANCE * float(pdist(last).min()), angles=False)

    @property
    def fingerprint(self) -> str:
        """Of its numbers and the stride."""
        return hashlib.sha256(json.dumps([content()["numbers"], self.stride_ps]).encode()).hexdigest()


def not_for(subject: Subject, stride_ps: float) -> DataError:
    """The error for atoms or a stride that it is not for."""
    least, most = content()["strides_ps"]
    return DataError(
        f"the {NAME} is for all C-alpha atoms of proteins (--select ca) and frames {least:g} to {most:g} ps apart; "
        f"found {len(subject.atoms)} atoms and frames {stride_ps:g} ps apart: choose these atoms, another --stride, or "
        "leave out --model (model)"
    )
