"""Frames that fail the physical checks, moved as little as it takes until they pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .checks import BEAD_BOND, PhysicalChecks
from .geometry import bond_lengths
from .local import LocalGeometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What is pushed apart stays this much further apart than what counts as a clash.
CLEARANCE = 1.02

#: Projections one after the other: what one pushes apart may come too near to others.
ROUNDS = 5


class Relaxation:
    """Brings frames predicted from one start back to its bonds and angles, and pushes apart what clashes.

    It has the form of ``Restored.keep``, so that a chain goes on from what it gives.

    Parameters
    ----------
    start : ndarray, shape (N, 3)
        Angstrom; what lengths are brought back to.
    bonds : ndarray, shape (B, 2)
    check : callable
        Gives the :class:`~egno_md.molecule.checks.PhysicalChecks` of frames (F, N, 3) in Angstrom, where they are.
    keep : callable, optional
        What frames are brought back to before they are looked at, as in ``Restored``.

    Attributes
    ----------
    moved : list of float
        Of each frame since it was last emptied, by how much the atom that was moved most was moved, Angstrom; 0 of a
        frame that passes as it is, or that nothing helps: such a frame is left as it was, and to the checks.
    """

    def __init__(
        self,
        start: NDArray[np.floating],
        bonds: NDArray[np.integer],
        check: Callable[[np.ndarray], PhysicalChecks],
        keep: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.start, self.check, self.keep = np.asarray(start, np.float64), check, keep
        beads = len(bonds) > 0 and float(np.median(bond_lengths(self.start, bonds))) > BEAD_BOND
        closest = CLEARANCE * check(self.start[None]).clash_distance
        self.geometry = LocalGeometry.about(self.start, bonds, closest, angles=not beads)
        self.moved: list[float] = []

    def __call__(self, frames: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Frames (1, T, N, 3) about any centre, given the start about the same one, (1, 1, N, 3)."""
        if self.keep is not None:
            frames = self.keep(frames, start)
        centre = (self.start - start[0, 0]).mean(axis=0)  # (3,)
        out = np.array(frames, np.float64)  # (1, T, N, 3)
        moved = np.zeros(out.shape[1])
        for k in np.flatnonzero(self._failed(out[0] + centre)):
            relaxed = out[0, k]  # (N, 3)
            for _ in range(ROUNDS):
                relaxed = self.geometry.project(relaxed)
                if not self._failed(relaxed[None] + centre)[0]:
                    moved[k] = np.linalg.norm(relaxed - out[0, k], axis=-1).max()
                    out[0, k] = relaxed
                    break
        self.moved += moved.tolist()
        return out

    def checked(self, frames: np.ndarray) -> PhysicalChecks:
        """Of frames (F, N, 3) that went through it, the first since `moved` was emptied, with what it moved in them."""
        return dataclasses.replace(self.check(frames), relaxed=np.array(self.moved[: len(frames)]))  # (F,)

    def _failed(self, frames: np.ndarray) -> NDArray[np.bool_]:
        # As they will be written: what passes here passes there.
        return self.check(frames.astype(np.float32)).failed
