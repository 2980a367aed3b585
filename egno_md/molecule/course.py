"""Does a chain of windows go on as the run did, or does it shrink, leave the run or come to rest?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .geometry import radius_of_gyration, superposed_rmsd

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

#: Pairs of frames that tell what the run does: so many at most, and fewer tell nothing.
MOST_PAIRS, FEWEST_PAIRS = 50, 8

#: Part of its own width by which a range seen in so few frames is wider than it looks.
WIDER = 0.5

#: A chain leaves the run this many times further from the start than the run's own frames are.
FURTHER = 1.5

#: A chain comes to rest where it moves less in a stride than this part of what the run does.
AT_REST = 0.3

#: The end of a chain is its last quarter, of at most so many frames.
END = 256


def end_of(n_frames: int) -> int:
    """How many of the frames of a chain are its end; 0 where they are too few to say anything."""
    count = min(END, -(-n_frames // 4))
    return count if count > 2 else 0


@dataclass(frozen=True)
class Course:
    """What the frames of a run do, beside one of them, the start.

    Attributes
    ----------
    radius : tuple of float
        Smallest and largest radius of gyration, all atoms of one weight, Angstrom.
    distance : float
        Largest RMSD from the start, superposed, Angstrom.
    step : float
        Median RMSD from one frame to the next, one stride later, superposed, Angstrom.
    """

    radius: tuple[float, float]
    distance: float
    step: float

    @classmethod
    def of(cls, pairs: ArrayLike, start: ArrayLike) -> Course | None:
        """Of pairs of frames one stride apart (M, 2, N, 3) and the start (N, 3); None of fewer than eight pairs."""
        pairs, start = np.asarray(pairs, np.float64), np.asarray(start, np.float64)
        if len(pairs) < FEWEST_PAIRS:
            return None
        frames = pairs.reshape(-1, *start.shape)  # (2 * M, N, 3)
        radii = radius_of_gyration(frames)  # (2 * M,)
        return cls(
            (float(radii.min()), float(radii.max())),
            float(superposed_rmsd(frames, start).max()),
            float(np.median(superposed_rmsd(pairs[:, 1], pairs[:, 0]))),
        )

    def findings(self, end: ArrayLike, start: NDArray[np.floating]) -> tuple[str, ...]:
        """Where the end of a chain, frames (F, N, 3) one stride apart, does otherwise; a line each.

        Medians over the end are judged. A chain that does as the run does has none; nor is a finding an error: the run
        may be too short to show all that the molecule does.
        """
        end = np.asarray(end, np.float64)
        low, high = self.radius
        radius = float(np.median(radius_of_gyration(end)))
        room = WIDER * (high - low)
        out = []
        if not low - room <= radius <= high + room:
            out.append(
                f"{'shrinks' if radius < low else 'swells'}: radius of gyration {radius:.2f} A at the end, in the run "
                f"{low:.2f} to {high:.2f} A"
            )
        distance = float(np.median(superposed_rmsd(end, start)))
        if distance > FURTHER * self.distance:
            out.append(
                f"leaves the run: {distance:.2f} A from the start at the end, frames of the run at most "
                f"{self.distance:.2f} A"
            )
        step = float(np.median(superposed_rmsd(end[1:], end[:-1])))
        if step < AT_REST * self.step:
            out.append(f"comes to rest: it moves {step:.3f} A a stride at the end, the run {self.step:.3f} A")
        return tuple(out)
