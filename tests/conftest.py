"""Fixtures that every test file shares."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from nn_systems import Official, read_official

from egno_md.forecast.model import Model, build_network
from egno_md.nn import EGNOOutput
from egno_md.nn.operators import suited
from egno_md.specs import GraphSpec, ModelSpec, WindowSpec

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--gpu", action="store_true", help="run the tests of a GPU, and those alone")


def pytest_configure(config):
    """The same digits again and again are promised for the CPU: no other test may see a GPU."""
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        raise pytest.UsageError("--gpu: torch sees no GPU here; leave the option out")


def pytest_collection_modifyitems(config, items):
    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "takes minutes; run with --slow"
    if not config.getoption("--gpu"):
        reasons["gpu"] = "needs a GPU; run with --gpu"
    for item in items:
        for name, reason in reasons.items():
            if name in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
    if config.getoption("--gpu"):
        items[:] = [item for item in items if "gpu" in item.keywords]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the official vectors and the data that the project itself does not ship."""
    if not SHARED.is_dir():
        pytest.skip(f"the folder with the reference data is not here: {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def official() -> Callable[[str], Official]:
    """A vector of the original implementation by its name: the small ones travel with the tests."""

    def read(name: str) -> Official:
        for folder in (Path(__file__).parent / "data/official", SHARED / "fixtures/official"):
            if (folder / f"{name}.npz").is_file():
                return read_official(folder / f"{name}.npz")
        pytest.skip(f"the vector {name} is not here: {SHARED.name}/ beside the checkout has it")

    return read


@pytest.fixture
def another_package(tmp_path) -> Callable[[str, str, str], Path]:
    """A folder in which a package of one module is installed, with one entry point: group, ``name = object``, code."""

    def install(group: str, entry: str, code: str) -> Path:
        site = tmp_path / "site"
        module = entry.partition("=")[2].partition(":")[0].strip()
        (site / f"{module}-1.dist-info").mkdir(parents=True)
        (site / f"{module}.py").write_text(code)
        (site / f"{module}-1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
        (site / f"{module}-1.dist-info" / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
        return site

    return install


def require(operator: str) -> None:
    """Skip a test of an operator whose library only the extra `paper` brings, where that is not installed."""
    if operator in ("tfn", "se3-transformer"):
        pytest.importorskip("e3nn", reason="TFN and the SE(3)-Transformer need e3nn: pip install e3nn")


def documented(word: str) -> str:
    """The code on the page about additions in which `word` stands."""
    page = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if word in block]
    assert len(code.splitlines()) < 40
    return code


class Ballistic(torch.nn.Module):
    """Every atom keeps its velocity: a forecast whose right answer is known at any time."""

    def __init__(self, n_times: int) -> None:
        super().__init__()
        self.n_times = n_times
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # tells the device

    def forward(self, h, pos, vel, edge_index, edge_attr, *, times=None, batch=None, edge_shift=None, max_memory=None):
        if pos.dim() == 3:
            pos, vel = pos[-1], vel[-1]  # (N, 3)
        times = torch.arange(self.n_times, device=pos.device) if times is None else times  # (T,)
        moved = pos + vel * (times[:, None, None] + 1)  # (T, N, 3)
        return EGNOOutput(moved, vel.expand_as(moved), h.expand(len(times), *h.shape))


def make_model(network=None, *, select="all", cutoff=5.0, hidden=8, history=1, n_times=4, seed=0, **spec) -> Model:
    """A small model for atoms of any kind, 1 ps; random weights unless a network is given."""
    graph = GraphSpec(select=select, cutoff=cutoff, node_features=("speed",), edge_features=("distance", "hop"))
    window = WindowSpec(stride_ps=1.0, n_times=n_times, history=history)
    model = ModelSpec(hidden=hidden, layers=2, **spec)
    model = suited(model, model.operator)  # the same arguments for every operator: of those the ones that it has
    torch.manual_seed(seed)
    return Model(network or build_network(graph, window, model).eval(), graph, window, model, name="test")


@pytest.fixture
def ballistic() -> Model:
    return make_model(Ballistic(4))


def make_universe(n_frames=12, *, dt=1.0, velocity=0.1, box=None, seed=0) -> mda.Universe:
    """A chain of ten carbon atoms in which every atom moves with its own constant velocity (Angstrom per frame)."""
    rng = np.random.default_rng(seed)
    n_atoms = 10
    u = mda.Universe.empty(n_atoms, n_residues=2, atom_resindex=[0] * 5 + [1] * 5, trajectory=True)
    u.add_TopologyAttr("names", [f"C{i}" for i in range(n_atoms)])
    u.add_TopologyAttr("elements", ["C"] * n_atoms)
    u.add_TopologyAttr("types", ["C"] * n_atoms)
    u.add_TopologyAttr("masses", [12.0] * n_atoms)
    u.add_TopologyAttr("resnames", ["LIG", "LIG"])
    u.add_TopologyAttr("resids", [1, 2])
    u.add_TopologyAttr("segids", ["A"])
    u.add_TopologyAttr("bonds", [(i, i + 1) for i in range(n_atoms - 1)])
    start = np.c_[1.4 * np.arange(n_atoms), 0.5 * (-1.0) ** np.arange(n_atoms), np.zeros(n_atoms)] + 5
    drift = rng.normal(scale=velocity, size=(n_atoms, 3))
    frames = start + drift * np.arange(n_frames)[:, None, None]  # (F, N, 3)
    dimensions = None if box is None else np.tile(np.asarray(box, np.float32), (n_frames, 1))
    u.load_new(frames.astype(np.float32), dt=dt, dimensions=dimensions)
    return u
