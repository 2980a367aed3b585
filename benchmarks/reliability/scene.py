"""A small molecule, its runs in every format, and a model of random weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import MDAnalysis as mda
import numpy as np

#: Frames of the short runs.
FRAMES = 4


def chain(n_atoms: int = 100, frames: int = FRAMES, seed: int = 0) -> mda.Universe:
    """Carbon atoms in chains of ten, each with a small velocity of its own (Angstrom per frame, 1 ps)."""
    rng = np.random.default_rng(seed)
    number = np.arange(n_atoms)
    u = mda.Universe.empty(n_atoms, n_residues=-(-n_atoms // 10), atom_resindex=number // 10, trajectory=True)
    u.add_TopologyAttr("names", [f"C{i % 10}" for i in number])
    u.add_TopologyAttr("elements", ["C"] * n_atoms)
    u.add_TopologyAttr("types", ["C"] * n_atoms)
    u.add_TopologyAttr("masses", [12.0] * n_atoms)
    u.add_TopologyAttr("charges", [0.0] * n_atoms)
    u.add_TopologyAttr("resnames", ["LIG"] * u.residues.n_residues)
    u.add_TopologyAttr("resids", 1 + np.arange(u.residues.n_residues))
    u.add_TopologyAttr("segids", ["A"])
    u.add_TopologyAttr("bonds", [(i, i + 1) for i in number[:-1] if (i + 1) % 10])
    start = np.c_[1.4 * (number % 10), 0.5 * (-1.0) ** number, np.zeros(n_atoms)] + 5  # (N, 3)
    start[:, 1:] += 8 * np.c_[number // 10 % 10, number // 100]
    moved = start + rng.normal(scale=0.002, size=start.shape) * np.arange(frames)[:, None, None]  # (F, N, 3)
    u.load_new(moved.astype(np.float32), dt=1.0)
    return u


def write(u: mda.Universe, path: Path) -> Path:
    """All frames, or for a topology the first, by MDAnalysis or (PSF) by hand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".psf":
            path.write_text(_psf(u))
        elif path.suffix in (".pdb", ".gro"):
            u.atoms.write(str(path), **({"bonds": "all"} if path.suffix == ".pdb" else {}))
        else:
            u.atoms.write(str(path), frames="all")
    return path


def _psf(u: mda.Universe) -> str:
    lines = ["PSF", "", f"{1:8d} !NTITLE", " REMARKS carbon atoms", "", f"{len(u.atoms):8d} !NATOM"]
    for a in u.atoms:
        lines.append(
            f"{a.index + 1:8d} {'A':<4} {a.resid:<4d} {a.resname:<4} {a.name:<4} {'C':<4} {0:10.6f} {12:13.4f} {0:11d}"
        )
    pairs = u.bonds.indices.ravel() + 1
    lines += ["", f"{len(u.bonds):8d} !NBOND: bonds"]
    lines += ["".join(f"{i:8d}" for i in pairs[k : k + 8]) for k in range(0, len(pairs), 8)]
    for name in ("NTHETA: angles", "NPHI: dihedrals", "NIMPHI: impropers", "NDON: donors", "NACC: acceptors", "NNB"):
        lines += ["", f"{0:8d} !{name}", ""]
    return "\n".join([*lines, ""])


def write_model(path: Path, seed: int = 0, **spec) -> Path:
    """Eight channels, two layers, eight frames of 1 ps, any atoms."""
    from egno_md.forecast.model import new_model
    from egno_md.specs import GraphSpec, ModelSpec, WindowSpec

    graph = GraphSpec(select="all", cutoff=5.0, node_features=("speed",), edge_features=("distance", "hop"))
    spec = ModelSpec(**{"hidden": 8, "layers": 2, "keep_bonds": True, **spec})
    new_model(graph, WindowSpec(stride_ps=1.0, n_times=8), spec, seed=seed).save(path, force=True)
    return path
