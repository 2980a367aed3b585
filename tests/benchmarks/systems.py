"""What is measured, how, and against what; run as a script it prints what one call takes.

The reference is :func:`egno_md.nn.edges.reference.edge_block`: what the original code does, inside the same EGNO.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from egno_md.nn import EGNO, egnn
from egno_md.nn.edges import block as edges
from egno_md.nn.edges import products, reference

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
#: With one thread the processor's time, which is the wall time of a machine that does nothing else.
CLOCK = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

BLOCKS = {
    "ours": edges.edge_block,
    "reference": lambda *args, max_memory=None, **options: reference.edge_block(*args, **options),
}
MODES = ("inference", "training")
#: Pairs of calls, five times as many of small graphs.
ROUNDS = {"inference": 7, "training": 3}


@dataclass(frozen=True)
class Shape:
    """A system and a model. ``atoms``: a selection of adenylate kinase, or None for a batch of small graphs.

    ``bonds``: of a small graph, whose edges are bonds and second neighbours; None: complete, of 5 nodes.
    """

    atoms: str | None
    width: int
    n_times: int = 4
    cutoff: float = 10.0
    layers: int = 4
    n_graphs: int = 1
    bonds: tuple[tuple[int, int], ...] | None = None


SHAPES = {
    "C-alpha 214": Shape("name CA", 128),
    "backbone 855, width 64": Shape("backbone", 64),
    "backbone 855, width 128": Shape("backbone", 128),
    # One layer and 6 A: with more, a training step of the reference needs more memory than most machines have.
    "all atoms 3341": Shape("all", 64, cutoff=6.0, layers=1),
}

#: The paper's own systems in its own settings (appendix B.3).
SMALL = {
    "N-body: 5 nodes": Shape(None, 64, n_times=5, n_graphs=100),
    # As many joints and edges as the skeleton of the motion capture: five limbs of six joints on a root.
    "mocap: 31 joints": Shape(
        None, 128, n_times=5, layers=6, n_graphs=12, bonds=tuple((0 if k % 6 == 1 else k - 1, k) for k in range(1, 31))
    ),
    "MD17: 13 atoms of aspirin": Shape(
        None,
        64,
        n_times=8,
        layers=5,
        n_graphs=100,
        bonds=(
            (0, 1),
            (1, 2),
            (2, 3),
            (3, 4),
            (4, 5),
            (0, 5),
            (0, 6),
            (6, 7),
            (6, 8),
            (1, 9),
            (9, 10),
            (10, 11),
            (10, 12),
        ),
    ),
}


def pairs_within(x: np.ndarray, cutoff: float) -> np.ndarray:
    """Directed edges (2, E), receivers in ascending order."""
    i, j = cKDTree(x).query_pairs(cutoff, output_type="ndarray").T
    row, col = np.concatenate([i, j]), np.concatenate([j, i])
    order = np.lexsort((col, row))
    return np.stack([row[order], col[order]])


def positions(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 3) and edges (2, E)."""
    if shape.atoms is None:
        rng = np.random.default_rng(0)
        near = np.ones((5, 5), dtype=int)
        if shape.bonds is not None:
            near = np.zeros((np.max(shape.bonds) + 1,) * 2, dtype=int)
            for i, j in shape.bonds:
                near[i, j] = near[j, i] = 1
            near += near @ near  # second neighbours
        np.fill_diagonal(near, 0)
        n_nodes, (row, col) = len(near), np.nonzero(near)
        pairs = np.stack([row, col])[:, None] + n_nodes * np.arange(shape.n_graphs)[:, None]  # (2, graphs, edges)
        return rng.normal(size=(n_nodes * shape.n_graphs, 3)), pairs.reshape(2, -1)
    import MDAnalysis as mda
    from MDAnalysisTests.datafiles import DCD, PSF

    x = mda.Universe(PSF, DCD).select_atoms(shape.atoms).positions.astype(np.float64)
    return x, pairs_within(x, shape.cutoff)


def calls(
    shape: Shape,
    x: np.ndarray,
    pairs: np.ndarray,
    device: str = "cpu",
    wrapped: Mapping[str, Callable[[EGNO], Callable]] = {},
) -> tuple[dict[str, Callable[[], None]], int]:
    """One forecast and one training step of an EGNO on this system, and its number of edges.

    `wrapped` has, by the name of a call, what is called in place of the network.
    """
    torch.manual_seed(0)
    pos, edge_index = torch.from_numpy(x).float(), torch.from_numpy(pairs)
    vel = 0.1 * torch.randn_like(pos)
    distance = (pos[edge_index[0]] - pos[edge_index[1]]).norm(dim=1, keepdim=True)
    edge_attr = torch.cat([distance, distance**2], dim=1)  # (E, 2)
    batch = torch.arange(shape.n_graphs).repeat_interleave(len(x) // shape.n_graphs) if shape.n_graphs > 1 else None
    model = EGNO(1, 2, shape.width, shape.layers, n_times=shape.n_times, modes=min(2, shape.n_times))
    target = pos + 0.1 * torch.randn(shape.n_times, *pos.shape)
    model, target = model.to(device), target.to(device)
    inputs = [x.to(device) for x in (vel.norm(dim=1, keepdim=True), pos, vel, edge_index, edge_attr)]
    batch = None if batch is None else batch.to(device)
    networks = {mode: wrapped.get(mode, lambda network: network)(model) for mode in MODES}

    def inference() -> None:
        with torch.no_grad():
            networks["inference"](*inputs, batch=batch)

    def training() -> None:
        model.zero_grad()
        (networks["training"](*inputs, batch=batch).pos - target).square().mean().backward()

    return {"inference": inference, "training": training}, edge_index.shape[1]


@contextlib.contextmanager
def block(which: str) -> Iterator[None]:
    """Have the EGNN layers use this edge block."""
    before = egnn.edge_block, egnn.KEPT
    egnn.edge_block = BLOCKS[which]
    if which == "reference":
        egnn.KEPT = -1  # no layer of ours around it either
    try:
        yield
    finally:
        egnn.edge_block, egnn.KEPT = before


def arithmetic(shape: Shape, n_nodes: int, n_edges: int, mode: str) -> float:
    """Seconds of the arithmetic that a forecast or a training step of an EGNO cannot do without, by itself.

    Products with (H, H) matrices: two per edge and time point, six per node and time point (two for the messages, one
    of phi_v, three of phi_h) and, for the temporal convolution with M modes, 4 M - 3 per node; each of them once
    forward, and in training for the gradients of its input and of its matrix. SiLUs, in training with their
    derivatives: three per edge, two per node. Every one with the faster of torch's BLAS and oneDNN as tried out here
    and now, on at most 4096 rows.
    """
    modes, node_rows, training = min(2, shape.n_times), n_nodes * shape.n_times, mode == "training"
    return shape.layers * (
        _networks(n_edges * shape.n_times, shape.width, 2, 3, training)
        + _networks(node_rows, shape.width, 6, 2, training)
        + _networks(n_nodes, shape.width, 4 * modes - 3, 0, training)
    )


def _networks(rows: int, width: int, matrices: int, silus: int, gradients: bool) -> float:
    """Seconds for so many products and SiLUs on so many rows."""
    x, g, out = torch.randn(3, min(rows, 4096), width).unbind()
    w, g_w = torch.randn(2, width, width).unbind()
    each: list[list[Callable[[], object]]] = [
        [lambda: torch.mm(x, w.t(), out=out)],
        [lambda: torch.mm(x, w, out=out)],
        [lambda: torch.mm(g.t(), x, out=g_w)],
    ]
    if products._has_onednn():
        for ways, (a, b) in zip(each, ((x, w), (x, w.t()), (g.t(), x.t())), strict=True):
            ways.append(lambda a=a, b=b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    silu = [
        [lambda: torch.ops.aten.silu.out(x, out=out)],
        [lambda: torch.ops.aten.silu_backward.grad_input(g, x, grad_input=out)],
    ]
    if not gradients:
        each, silu = each[:1], silu[:1]
    with torch.no_grad():
        return rows / len(x) * (matrices * sum(map(_fastest, each)) + silus * sum(map(_fastest, silu)))


def _fastest(ways: list[Callable[[], object]]) -> float:
    """Median seconds of the fastest of several calls that alternate."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(30):
        for way, taken in zip(ways, times, strict=True):
            start = CLOCK()
            way()
            taken.append(CLOCK() - start)
    return min(map(statistics.median, times))


def allocator() -> str:
    """The settings of malloc that decide whether large blocks go back to the system after every use."""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")
    return " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ) or "as the system has it"


def memory(what: str) -> float:
    """MB that this process holds, "VmRSS", or held at most, "VmHWM"; from Linux."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith(what))


def over_base(call: Callable[[], object]) -> float:
    """Peak memory of the process during a call, over what it held before, in MB."""
    if libc := ctypes.util.find_library("c"):
        ctypes.CDLL(libc).malloc_trim(0)  # what earlier calls have freed counts as memory that this one takes
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # forget the peak of the imports
    before = memory("VmRSS")
    call()
    return memory("VmHWM") - before


def warm_up(width: int) -> None:
    """Steps on a tiny system: what torch and Numba load and keep is not the model's memory."""
    small, before = Shape(None, width), egnn.KEPT
    for egnn.KEPT in (before, -1):  # both ways to compute a layer
        calls(small, *positions(small))[0]["training"]()
    egnn.KEPT = before


def peak_memory(name: str, mode: str, which: str) -> float:
    """Peak memory of one call over the base, in MB; measured in a process of its own."""
    done = subprocess.run([sys.executable, __file__, name, mode, which], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{name}, {mode}, {which}: {done.stderr.strip()[-500:] or done.returncode}")
    return float(done.stdout)


def measured(name: str, mode: str) -> dict[str, float]:
    """Seconds of ours and of the reference, alternating, and of the arithmetic, before and after; medians; and MB."""
    shape = (SHAPES | SMALL)[name]
    x, pairs = positions(shape)
    every, n_edges = calls(shape, x, pairs)
    call, times = every[mode], {which: [] for which in BLOCKS}
    call()  # compiles
    floor = [arithmetic(shape, len(x), n_edges, mode)]
    for _ in range(ROUNDS[mode] * (5 if n_edges < 10_000 else 1)):
        for which, taken in times.items():
            with block(which):
                start = CLOCK()
                call()
                taken.append(CLOCK() - start)
    floor.append(arithmetic(shape, len(x), n_edges, mode))
    ours, theirs = map(statistics.median, times.values())
    return {
        "edges": n_edges,
        "seconds": ours,
        "reference_seconds": theirs,
        # Of the pairs: a shared machine disturbs them less than the medians.
        "ratio": statistics.median(b / a for a, b in zip(*times.values(), strict=True)),
        "over_arithmetic": ours / statistics.mean(floor),
        "MB": peak_memory(name, mode, "ours"),
        "reference_MB": peak_memory(name, mode, "reference"),
    }


def main(name: str, mode: str, which: str | None = None) -> None:
    """Print what was measured or, of one edge block, the peak memory in MB."""
    if which is None:
        print(json.dumps(measured(name, mode)))
        return
    shape = (SHAPES | SMALL)[name]
    warm_up(shape.width)
    call = calls(shape, *positions(shape))[0][mode]
    with block(which):
        print(over_base(call))


if __name__ == "__main__":
    main(*sys.argv[1:])
