"""What a GPU gives: networks, chains, trainings and the dynamics beside them, on the card and on one core.

    python -m benchmarks.gpu [--structures DIR] [--json FILE] [--page FILE] [--only NAME]

On the card each network runs launch by launch and recorded as a CUDA graph, in float32, and in tf32 with torch's
operators and with Triton's kernels. The floor is the arithmetic of its products at the rate at which this card
multiplies large matrices in float32. With `--structures` (a folder with the PDB files of :mod:`.against_md`) the
dynamics of the same molecules run on the card as well, with OpenMM's platform CUDA. Results that are in the JSON file
are kept.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import egno_md
from egno_md.forecast import operator as forecasting
from egno_md.nn.captured import RECORDABLE, Captured, CapturedTraining
from egno_md.nn.edges import block
from egno_md.training import loop as training

from .tables import kept, put

#: Seconds for which a call is repeated, in so many parts whose median counts, after so many calls.
SECONDS, PARTS, WARM = 0.25, 5, 4
#: Frames of a window and of a chain, and futures of an ensemble.
N_TIMES, FRAMES, SAMPLES = 8, 200, 64
#: Windows of a step of the flow's training.
BATCH = 16
#: Steps of dynamics, and femtoseconds of one.
STEPS, STEP_FS, DAY = 5000, 4, 86_400.0

#: What runs: recorded or not, the precision of the products, and whether Triton's kernels may.
WAYS = {
    "torch": (False, "highest", False),
    "torch, recorded": (True, "highest", False),
    "torch, recorded, tf32": (True, "high", False),
    "Triton, recorded, tf32": (True, "high", True),
}


@contextlib.contextmanager
def way(recorded: bool, products: str, kernels: bool) -> Iterator[None]:
    """Compute in one of `WAYS`."""
    modules, found = (forecasting, training), block._module
    torch.set_float32_matmul_precision(products)
    for module in modules:
        module.RECORDABLE = RECORDABLE if recorded else ()
    block._module = lambda name: found(name) if kernels or name != "triton" else None
    try:
        yield
    finally:
        block._module = found
        torch.set_float32_matmul_precision("highest")
        for module in modules:
            module.RECORDABLE = RECORDABLE


def seconds(call: Callable[[], object], device: str) -> float:
    """Of one call, the median over the parts."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def timed(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            call()
        wait()
        return (time.perf_counter() - began) / n

    timed(WARM if device == "cuda" else 1)
    once = timed(1)
    if once > SECONDS:
        return once
    n = max(1, int(SECONDS / PARTS / once))
    return statistics.median(timed(n) for _ in range(PARTS))


def rate() -> float:
    """Operations per second of float32 products on this card."""
    x = torch.randn(2, 8192, 8192, device="cuda")
    return 2 * 8192**3 / seconds(lambda: x[0] @ x[1], "cuda")


def operations(shape: Any, n_nodes: int, n_edges: int) -> float:
    """Of the products with (H, H) matrices in one forecast; see ``tests/benchmarks/systems.py``."""
    modes = min(2, shape.n_times)
    per_layer = shape.n_times * (2 * n_edges + 6 * n_nodes) + (4 * modes - 3) * n_nodes
    return 2.0 * shape.layers * per_layer * shape.width**2


def network(shape: Any, mode: str) -> dict[str, Any]:
    """Milliseconds of one call on one core and on the card in every way, and the floor."""
    from tests.benchmarks.systems import calls, positions

    x, pairs = positions(shape)
    core, n_edges = calls(shape, x, pairs)
    found: dict[str, Any] = {"one core": 1e3 * seconds(core[mode], "cpu")}
    for name, settings in WAYS.items():
        wrapped = {"inference": Captured, "training": CapturedTraining} if settings[0] else {}
        with way(*settings):
            call = calls(shape, x, pairs, "cuda", wrapped)[0][mode]
            if name == "torch, recorded" and mode == "inference":
                torch.cuda.synchronize()
                began = time.perf_counter()
                call()
                torch.cuda.synchronize()
                found["recording"] = 1e3 * (time.perf_counter() - began)
            found[name] = 1e3 * seconds(call, "cuda")
    times = {"inference": 1, "training": 3}[mode] * operations(shape, len(x), n_edges)
    return {**found, "floor": 1e3 * times / rate(), "edges": n_edges * shape.n_times}


def chignolin_flow(folder: Path, device: str) -> tuple[Any, float]:
    """A flow of the bundled chignolin, hardly trained, and the milliseconds of a step after the first epochs."""
    from egno_md.specs import Recipe
    from egno_md.training import train_recipe

    folder_of = Path(egno_md.sample()[0]).parent
    topology, trajectory = (str(folder_of / f"chignolin.{suffix}") for suffix in ("pdb", "xtc"))
    recipe = Recipe(
        data={"systems": [{"topology": topology, "trajectories": [trajectory]}], "validation_windows": BATCH},
        graph={"select": "heavy", "cutoff": 6.0},
        window={"stride_ps": 1.0, "n_times": N_TIMES},
        model={"operator": "flow"},
        training={"max_epochs": 6, "patience": 10, "batch_size": BATCH, "epoch_windows": 4 * BATCH},
    )
    work = Path(tempfile.mkdtemp(dir=folder))
    model, _ = train_recipe(recipe, work_dir=work, device=device, progress=False)
    return model, 1e3 * step_of(work, 4)


def step_of(work: Path, steps: int) -> float:
    """Seconds of a step, from the epochs after the first two."""
    from egno_md.training.states import LAST, callback_state, read_state

    history = callback_state(read_state(work / LAST), "_Epochs")["history"]
    epochs = history[-1]["epoch"] - history[1]["epoch"]
    return (history[-1]["seconds"] - history[1]["seconds"]) / epochs / steps


def nbody_step(folder: Path, device: str) -> float:
    """Milliseconds of a step of the experiment N-body, all of the loop counted."""
    from egno_md.reproduce.experiments import Job
    from egno_md.training import train_recipe

    fewer = {"data.train": 600, "data.validation": 200, "data.test": 100}  # to generate; as many in a step
    settings = {**fewer, "training.max_epochs": 6, "training.validate_every": 1}
    recipe = Job("nbody", "", "egno", "best", 0, settings).recipe(folder)
    work = Path(tempfile.mkdtemp(dir=folder))
    model, _ = train_recipe(recipe, work_dir=work, device=device, progress=False)
    return 1e3 * step_of(work, -(-3000 // model.provenance["training"]["batch_size"]))


def everywhere(measure: Callable[[str], float]) -> dict[str, float]:
    """On one core, and on the card in every way."""
    found = {"one core": measure("cpu")}
    for name, settings in WAYS.items():
        with way(*settings):
            found[name] = measure("cuda")
    return found


def chain(model: Any, starts: int, samples: int | None, device: str) -> float:
    """Milliseconds of a frame of one future, in a chain of the bundled ubiquitin or, drawn, of chignolin."""
    import MDAnalysis as mda

    from egno_md.forecast import forecast
    from egno_md.graph.builder import GraphBuilder

    folder = Path(egno_md.sample()[0]).parent
    name = "ubiquitin" if model.name == "ca-1ps" else "chignolin"
    u = mda.Universe(folder / f"{name}.pdb", folder / f"{name}.xtc")
    atoms = u.select_atoms("name CA" if model.name == "ca-1ps" else "all")
    frames = np.stack([atoms.positions.copy() for _ in u.trajectory[: starts + 20]]).astype(float)  # (F, N, 3)
    n_input = model.window.history + 1
    history = np.stack([frames[k : k + n_input] for k in range(starts)])  # (S, n_input, N, 3)
    builder, futures = GraphBuilder(atoms, model.graph), starts * (samples or 1)
    few = N_TIMES * forecasting.CAPTURE_FROM if device == "cuda" else N_TIMES

    def run(horizon: int) -> float:
        began = time.perf_counter()
        forecast(model, builder, history, horizon, samples=samples, device=device)
        return time.perf_counter() - began

    run(few)  # compiles
    many = FRAMES // (1 if futures == 1 or device == "cuda" else FRAMES // N_TIMES)
    return 1e3 * (run(few + many) - run(few)) / many / futures


def dynamics(structure: Path) -> dict[str, Any]:
    """Simulated ns a day on the card."""
    import openmm as mm

    from .simulate import TEMPERATURE_K, built

    simulation = built(structure, STEP_FS, 1, mm.Platform.getPlatform("CUDA"), {"Precision": "mixed"})
    simulation.minimizeEnergy(maxIterations=20)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE_K, 1)

    def run(steps: int) -> float:
        began = time.perf_counter()
        simulation.step(steps)
        simulation.context.getState(energy=True)  # waits for the steps
        return time.perf_counter() - began

    run(200)
    return {"atoms": simulation.system.getNumParticles(), "ns a day": STEPS * STEP_FS * 1e-6 / run(STEPS) * DAY}


def cases(folder: Path, structures: Path | None) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is measured, by its name."""
    from tests.benchmarks.systems import MODES, SHAPES, SMALL

    yield "training loop: N-body, preset best", lambda: everywhere(partial(nbody_step, folder))
    yield "training loop: flow, 93 heavy atoms", lambda: everywhere(lambda device: chignolin_flow(folder, device)[1])
    bundled = egno_md.load_model("ca-1ps")
    drawn: list[Any] = []

    def flow() -> Any:
        if not drawn:
            drawn.append(chignolin_flow(folder, "cpu")[0])
        return drawn[0]

    yield "chain: ca-1ps, 1 start", lambda: everywhere(partial(chain, bundled, 1, None))
    yield "chain: ca-1ps, 52 starts", lambda: everywhere(partial(chain, bundled, 52, None))
    yield "chain: flow, 1 future", lambda: everywhere(partial(chain, flow(), 1, 1))
    yield f"chain: flow, {SAMPLES} futures", lambda: everywhere(partial(chain, flow(), 1, SAMPLES))
    if structures is not None:
        for name in ("CLN025_5awl", "trpcage_1l2y", "ubiquitin_1ubi", "AdK_open_4ake"):
            yield f"dynamics: {name}", partial(dynamics, structures / f"{name}.pdb")
    for name, shape in (SMALL | SHAPES).items():
        for mode in MODES:
            yield f"{mode}: {name}", partial(network, shape, mode)


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table; that of the dynamics has other columns."""
    if "ns a day" in found:
        return f"{name}: {found['atoms']} atoms, {found['ns a day']:.3g} ns a day"
    columns = ("one core", *WAYS, "floor")
    return f"| {name} | " + " | ".join(f"{found[key]:.3g}" if key in found else "" for key in columns) + " |"


HEAD = "| ms | one core | " + " | ".join(WAYS) + " | floor |"


@click.command()
@click.option("--structures", type=click.Path(path_type=Path), help="Folder with PDB files, for the dynamics.")
@click.option("--json", "target", type=click.Path(path_type=Path), default=Path("docs/performance/gpu.json"))
@click.option("--page", type=click.Path(path_type=Path), help="With its table.")
@click.option("--only", default="", help="What has this in its name.")
def main(structures: Path | None, target: Path, page: Path | None, only: str) -> None:
    """What a GPU gives."""
    click.echo(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {rate() / 1e12:.1f} TFLOP/s of float32")
    with tempfile.TemporaryDirectory() as name:
        results = kept(target, cases(Path(name), structures), row, only)
    if page is not None:
        put(page, HEAD, (row(name, one) for name, one in results.items() if "ns a day" not in one))


if __name__ == "__main__":
    main()
