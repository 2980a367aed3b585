"""The page about all atoms does what it says, with the tools that it names."""

from __future__ import annotations

import re
from pathlib import Path

import MDAnalysis as mda
import mdtraj
import numpy as np
import pytest
from conftest import make_model

from egno_md import EGNOSurrogate, sample

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs" / "all_atoms.md").read_text(), re.DOTALL
)


def test_rebuilt_from_calpha_atoms(tmp_path, monkeypatch):
    pytest.importorskip("pypulchra", reason="pypulchra is not installed (pip install pypulchra)")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(BLOCKS[0], scope)
    built, structure = scope["built"], scope["structure"]
    assert structure.shape == (8, 76) and scope["phi"].shape == scope["psi"].shape == (8, 75)
    assert (structure == "H").mean() > 0.15 and (structure == "E").mean() > 0.15  # as ubiquitin has
    run = mda.Universe(*map(str, sample()))
    heavy = run.select_atoms("not element H")
    assert built.n_atoms in (len(heavy), len(heavy) - 1)
    trace = built.atom_slice(built.topology.select("name CA")).xyz * 10
    moved = np.linalg.norm(trace - scope["forecast"].trajectory.timeseries(order="fac"), axis=-1)
    assert np.median(moved) < 0.2
    exec(BLOCKS[1], scope)
    relaxed = mdtraj.load("relaxed.pdb")
    bonds = 10 * mdtraj.compute_distances(relaxed, [(a.index, b.index) for a, b in relaxed.topology.bonds])
    assert 0.9 < bonds.min() and bonds.max() < 2.2


def test_heavy_atoms_are_analysed_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    universe = mda.Universe(*map(str, sample("chignolin")))
    EGNOSurrogate(universe, make_model(n_times=4, select="heavy"), horizon=4, filename="forecast.dcd").run()
    scope: dict = {}
    exec(BLOCKS[2], scope)
    run = scope["run"]
    assert mdtraj.compute_dssp(run).shape == (4, 10)
    assert mdtraj.compute_phi(run)[1].shape == (4, 9) and np.isfinite(mdtraj.compute_psi(run)[1]).all()
