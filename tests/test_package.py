"""The rules of the house, what importing the package costs, and the samples that come with it."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import MDAnalysis as mda
import mdtraj
import numpy as np
import pytest

import egno_md
from egno_md.errors import UsageError
from egno_md.models import simulate

PACKAGE = Path(egno_md.__file__).parent

#: Layers from top to bottom; a module imports from layers below its own, or, where it says so, from its own.
LAYERS = [
    {"cli", "__main__"},
    {"analysis", "propagator", "training", "evaluation", "report", "benchmarks", "models"},
    {"forecast", "checkpoint", "metrics", "checks", "trajectory"},
    {"graph", "windows", "neighbors", "geometry"},
    {"nn", "config"},
    {"errors", "_version"},
]
#: Within a layer: what is built on what.
WITHIN = {
    ("forecast", "checkpoint"),
    ("checkpoint", "metrics"),
    ("windows", "graph"),
    ("graph", "neighbors"),
    ("benchmarks", "training"),
    ("benchmarks", "evaluation"),
    ("benchmarks", "models"),
    ("benchmarks", "propagator"),
    ("models", "training"),
    ("models", "evaluation"),
    ("training", "evaluation"),
    ("report", "evaluation"),
    ("__main__", "cli"),
}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it; the names of folders for what lies inside them."""
    found = set()
    inside = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = list(inside)[: len(inside) + 1 - node.level] + (node.module.split(".") if node.module else [])
            elif (node.module or "").split(".")[0] == "egno_md":
                base = node.module.split(".")[1:]
            else:
                continue
            found |= {base[0]} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("egno_md.")}
    return {name for name in found if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()}


def test_imports_go_downwards():
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        name = relative.parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        assert name in level, f"{name} has no layer"
        for other in imports(path) - {name}:
            if level[other] < level[name] or (level[other] == level[name] and (name, other) not in WITHIN):
                wrong.append(f"{relative} imports {other}")
    assert not wrong


def test_networks_know_neither_mdanalysis_nor_specs():
    for path in (PACKAGE / "nn").glob("*.py"):
        roots = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots.add(node.module.split(".")[0])
        assert not roots & {"MDAnalysis", "pydantic", "torch_geometric", "openmm", "mdtraj"}, path.name


def test_package_import_is_lazy_and_names_resolve():
    code = "import sys, egno_md; print([m for m in ('torch', 'MDAnalysis', 'openmm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for name in egno_md.__all__:
        assert getattr(egno_md, name) is not None


@pytest.mark.parametrize(
    ("name", "n_atoms", "n_residues", "n_frames", "spacing"),
    [("ubiquitin", 1231, 76, 80, 1.0), ("chignolin", 93, 10, 1000, 1.0), ("chignolin-fine", 93, 10, 1000, 0.1)],
)
def test_samples_open_with_mdanalysis_and_mdtraj(name, n_atoms, n_residues, n_frames, spacing):
    topology, trajectory = map(str, egno_md.sample(name))
    u = mda.Universe(topology, trajectory)
    assert (u.atoms.n_atoms, u.residues.n_residues, u.trajectory.n_frames) == (n_atoms, n_residues, n_frames)
    assert u.dimensions is None and "CRYST1" not in Path(topology).read_text()
    times = [ts.time for ts in u.trajectory]
    np.testing.assert_allclose(times, spacing * np.arange(1, n_frames + 1), rtol=1e-5)
    loaded = mdtraj.load(trajectory, top=topology)
    assert (loaded.n_atoms, loaded.n_residues, loaded.n_frames) == (n_atoms, n_residues, n_frames)
    assert loaded.unitcell_lengths is None and loaded.topology.n_bonds >= n_atoms - 1
    np.testing.assert_allclose(loaded.time, times, rtol=1e-5)
    np.testing.assert_allclose(10 * loaded.xyz[-1], u.trajectory[-1].positions, atol=1e-4)
    bonds = mdtraj.compute_distances(loaded, [(a.index, b.index) for a, b in loaded.topology.bonds])
    assert 0.08 < bonds.min() and bonds.max() < 0.22  # nm


def test_fine_sample_is_the_beginning_of_the_coarse_one():
    coarse, fine = (mda.Universe(*map(str, egno_md.sample(name))) for name in ("chignolin", "chignolin-fine"))
    for k in (0, 50, 99):
        np.testing.assert_array_equal(coarse.trajectory[k].positions, fine.trajectory[10 * k + 9].positions)


def test_unknown_sample_is_an_error_with_the_known_ones():
    with pytest.raises(UsageError, match="'villin'.*ubiquitin, chignolin, chignolin-fine"):
        egno_md.sample("villin")


def test_samples_can_be_made_anew(tmp_path, monkeypatch):
    wanted = simulate.SAMPLES["chignolin"]
    short = dataclasses.replace(wanted, length_ps=0.4, trajectories={"a.xtc": (2, 2), "b.xtc": (1, 4)})
    monkeypatch.setattr(simulate, "SAMPLES", {"chignolin": short})
    monkeypatch.setattr(simulate, "EQUILIBRATION_PS", {4: 0.1})
    runs = tmp_path / "runs"
    (tmp_path / f"{short.structure}.pdb").write_bytes(egno_md.sample("chignolin")[0].read_bytes())
    simulate.simulate(
        tmp_path / f"{short.structure}.pdb", short.run_folder(runs), short.length_ps, short.step_fs, 1, short.frame_ps
    )
    simulate.write_sample("chignolin", runs, tmp_path / "out")
    a, b = (mda.Universe(str(tmp_path / "out/chignolin.pdb"), str(tmp_path / f"out/{n}.xtc")) for n in "ab")
    shipped = mda.Universe(str(egno_md.sample("chignolin")[0]))
    assert list(a.atoms.names) == list(shipped.atoms.names) and list(a.residues.resids) == list(shipped.residues.resids)
    np.testing.assert_allclose([ts.time for ts in a.trajectory], [0.2, 0.4])
    np.testing.assert_allclose([ts.time for ts in b.trajectory], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(a.trajectory[1].positions, b.trajectory[3].positions)
    assert a.dimensions is None
