"""N-body: five charged particles, as Satorras et al. (2021) generated them and the EGNO paper used them (section 5.1).

Charges are +1 or -1 with equal probability, positions standard normal, velocities random directions of length 0.5. The
force on a particle is ``F_i = sum_j q_i q_j (x_i - x_j) / r_ij^3``, every component clipped to +-100. The time step is
0.001, velocities first (symplectic Euler, the first kick a full step), and every hundredth step is a frame. The start
is reflected at a box of half width 5, later frames are not. Lengths and times have no unit: a frame is 0.1.

The generator is numpy's legacy one with the seed 43. It draws train 10000, validation 2000, test 2000; of each sample
the charges, positions and velocities, and then the noise of its 49 frames, which has no strength but is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import UsageError
from ..graph.builder import GraphBuilder
from ..graph.windows import Run, TrajectoryWindows, frames_back
from ..molecule.molecule import Molecule
from ..specs import GraphSpec, ModelSpec, Spec, TrainSpec, WindowSpec
from . import DataSet, Split, register

PARTICLES = 5
TIME_STEP = 0.001
STEPS_PER_FRAME = 100
LARGEST_FORCE = 100.0
SPEED = 0.5
HALF_BOX = 5.0

#: Samples in the order in which they are drawn.
DRAWN = {"train": 10_000, "validation": 2_000, "test": 2_000}

#: Frames that the original keeps of each sample, and the one in which its windows start.
FRAMES, START = 49, 30

_CHUNK = 512  # samples simulated at once: their pairs stay in the cache


class NBodyOptions(Spec):
    """Options of the data set "nbody".

    Attributes
    ----------
    train, validation, test : int
        Samples that are used, the first of those that are drawn. The paper trains on 3000, 1000 or 10000.
    seed : int
        Of numpy's legacy generator.
    every_start : bool
        Windows of the training part start in every frame that leaves room for them, not in frame 30 alone as the
        paper's: the same simulations give more to learn from.
    """

    train: int = Field(3000, ge=1, le=DRAWN["train"])
    validation: int = Field(2000, ge=1, le=DRAWN["validation"])
    test: int = Field(2000, ge=1, le=DRAWN["test"])
    seed: int = Field(43, ge=0)
    every_start: bool = False


def starts(options: NBodyOptions) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Charges (S, N), positions and velocities (S, N, 3) of the samples of each part before the first step."""
    rng = np.random.RandomState(options.seed)
    found = {}
    for part, drawn in DRAWN.items():
        count = getattr(options, part)
        charges = np.empty((count, PARTICLES))
        positions, velocities = np.empty((2, count, 3, PARTICLES))
        for k in range(drawn):
            q = rng.choice([-1.0, 0.0, 1.0], size=PARTICLES, p=[0.5, 0.0, 0.5])
            x, v = rng.randn(3, PARTICLES), rng.randn(3, PARTICLES)
            rng.randn(2 * FRAMES * 3 * PARTICLES)
            if k < count:
                charges[k], positions[k], velocities[k] = q, x, v * SPEED / np.sqrt((v**2).sum(axis=0))
        beyond = np.abs(positions) > HALF_BOX
        velocities = np.where(beyond, -np.sign(positions) * np.abs(velocities), velocities)
        positions = np.where(beyond, np.sign(positions) * 2 * HALF_BOX - positions, positions)
        found[part] = charges, positions.swapaxes(1, 2), velocities.swapaxes(1, 2)
    return found


def simulate(
    charges: NDArray[np.float64],
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
    n_frames: int = FRAMES,
    steps_per_frame: int = STEPS_PER_FRAME,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Frames of some samples, each by itself.

    Parameters
    ----------
    charges : ndarray, shape (S, N)
    positions, velocities : ndarray, shape (S, N, 3)
        Before the first step.
    n_frames, steps_per_frame : int
        Frame k is that of step 100 (k + 1), or of more or fewer steps than 100.

    Returns
    -------
    positions, velocities : ndarray, shape (S, n_frames, N, 3), float32
    """
    n_samples, n = charges.shape
    out = np.empty((2, n_samples, n_frames, n, 3), np.float32)
    first, second = np.triu_indices(n, 1)  # (P,)
    meets = np.zeros((n, len(first)))
    meets[first, np.arange(len(first))], meets[second, np.arange(len(first))] = 1.0, -1.0
    for begin in range(0, n_samples, _CHUNK):
        some = slice(begin, begin + _CHUNK)
        # Samples last: products and sums then run along whole rows.
        x, v = (np.moveaxis(values[some], 0, -1).copy() for values in (positions, velocities))  # (N, 3, S)
        strength = (charges[some, first] * charges[some, second]).T  # (P, S)
        for step in range(steps_per_frame * n_frames):
            apart = x[first] - x[second]  # (P, 3, S)
            square = np.einsum("pcs,pcs->ps", apart, apart)
            pull = (strength / (square * np.sqrt(square)))[:, None] * apart  # (P, 3, S)
            force = (meets @ pull.reshape(len(first), -1)).reshape(x.shape)  # (N, 3, S)
            v += TIME_STEP * np.clip(force, -LARGEST_FORCE, LARGEST_FORCE)
            x += TIME_STEP * v
            frame, rest = divmod(step + 1, steps_per_frame)
            if not rest:
                out[0, some, frame - 1], out[1, some, frame - 1] = np.moveaxis(x, -1, 0), np.moveaxis(v, -1, 0)
    return out[0], out[1]


def load(options: NBodyOptions, graph: GraphSpec, window: WindowSpec) -> Split:
    """Windows from frame 30 of every sample, generated anew; of training, if asked for, from every frame."""
    builders: dict[bytes, GraphBuilder] = {}

    def builder(charges: NDArray[np.float64]) -> GraphBuilder:
        key = charges.tobytes()
        if key not in builders:
            builders[key] = GraphBuilder(Molecule(elements=[""] * PARTICLES, charges=charges, source="N-body"), graph)
        return builders[key]

    windows = {}
    for part, (charges, positions, velocities) in starts(options).items():
        back, ahead = frames_back(window), max(window.span, int(window.velocity == "forward"))
        if back > START or START + ahead >= FRAMES:
            raise UsageError(
                f"a window from frame {START - back} to {START + ahead} is not within the {FRAMES} frames of a sample: "
                "lower window.span or window.history"
            )
        every = options.every_start and part == "train"
        from_frames = range(back, FRAMES - ahead) if every else [START]
        frames, speeds = simulate(charges, positions, velocities, from_frames[-1] + ahead + 1)  # 2 of (S, F, N, 3)
        runs = [
            Run(frames[k], builder(charges[k]), name=f"{part}-{k}", velocities=speeds[k]) for k in range(len(charges))
        ]
        windows[part] = TrajectoryWindows(runs, window, [from_frames] * len(runs))
    return Split(**windows, record={"frames": f"from frame {START}", "units": "none; a stride is 0.1"})


def recipe(options: NBodyOptions) -> Mapping[str, Mapping[str, Any]]:
    """The paper's settings (table 8), and when its code looks at the validation set."""
    training = TrainSpec(
        batch_size=100,
        learning_rate=1e-4,
        weight_decay=1e-8,
        max_epochs=10_000,
        patience=50,
        validate_every=5,
        gradient_clip=0.0,
        ema_decay=0.0,
        schedule="constant",
    )
    graph = {
        "select": "all",
        "cutoff": np.inf,
        "hops": 0,
        "node_features": ("speed",),
        "edge_features": ("charge_product", "distance2"),
    }
    window = {
        "stride_ps": TIME_STEP * STEPS_PER_FRAME,
        "n_times": 5,
        "span": 10,
        "velocity": "stored",
    }
    model = ModelSpec(hidden=64, layers=4, modes=2, time_embedding=32)
    return {"graph": graph, "window": window, "model": model.model_dump(), "training": training.model_dump()}


NBODY = register(
    DataSet("nbody", NBodyOptions, recipe, load, "five charged particles, generated (Satorras et al. 2021)")
)
