"""Small files in the formats of the paper's data sets."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

BONDS = np.array([(k // 2, k + 1) for k in range(30)])  # a tree of 31 joints


def swinging(n_frames: int, n_nodes: int, seed: int, spread: float = 3.0) -> np.ndarray:
    """Points that swing, each by itself, (F, N, 3)."""
    rng = np.random.default_rng(seed)
    at, swing = rng.normal(scale=spread, size=(2, n_nodes, 3))
    phase = rng.uniform(0, 6, size=(n_nodes, 1))
    return at + 0.1 * swing * np.sin(0.1 * np.arange(n_frames)[:, None, None] + phase)


def mocap_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Six trials, two for each part, with four start frames each."""
    trials = [swinging(50 + k, 31, seed + k) for k in range(6)]
    parts = {"train": (4, 1), "val": (0, 3), "test": (2, 5)}
    return {
        "positions": np.concatenate(trials),
        "offsets": np.cumsum([0, *map(len, trials)]),
        "edges": BONDS,
        **{f"{name}_case": np.array(cases) for name, cases in parts.items()},
        **{f"{name}_start": np.array([[3, 0, 9, 7]] * 2) for name in parts},
    }


def write_mocap(folder: Path, **other) -> Path:
    """Running, as arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "cmu_mocap_run_subject09.npz", **{**mocap_arrays(), **other})
    return folder


def write_mocap_pickles(folder: Path) -> Path:
    """The same as the authors published it."""
    folder.mkdir(parents=True, exist_ok=True)
    values = mocap_arrays()
    trials = np.split(values["positions"], values["offsets"][1:-1])
    split = tuple(
        dict(zip(values[f"{n}_case"].tolist(), values[f"{n}_start"], strict=True)) for n in ("train", "val", "test")
    )
    (folder / "motion_run.pkl").write_bytes(pickle.dumps((BONDS.tolist(), trials)))
    (folder / "split_run.pkl").write_bytes(pickle.dumps(split))
    return folder


ETHANOL = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])


def ethanol(n_frames: int, seed: int) -> np.ndarray:
    """Nine atoms, of which the three heavy ones are about 1.5 A apart in a row, (F, 9, 3)."""
    frames = swinging(n_frames, 9, seed, 0.02)
    return frames + np.arange(9)[:, None] * np.array([1.5, 0, 0])


def write_md17(folder: Path, n_frames: int = 4000, starts=(range(0, 6), range(10, 13), range(20, 24))) -> Path:
    """The published set of ethanol, and start frames."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "md17_ethanol.npz", R=ethanol(n_frames, 1), z=ETHANOL)
    names = ("train", "val", "test")
    np.savez(
        folder / "egno_official_split_500_2000_2000.npz",
        **{f"ethanol_{name}": np.array(part) for name, part in zip(names, starts, strict=True)},
    )
    return folder


def write_sgdml(folder: Path) -> Path:
    """Runs like them: four, two of them to train on."""
    (folder / "regenerated").mkdir(parents=True, exist_ok=True)
    runs = np.stack([ethanol(140, seed) for seed in range(4)])
    np.savez(
        folder / "regenerated" / "ethanol.npz",
        positions=runs.astype(np.float32),
        dx=(0.01 * np.ones_like(runs)).astype(np.float32),
        z=ETHANOL,
        train=np.array([(r, f) for r in range(4) for f in (0, 5)]),
        val=np.array([(r, 9) for r in range(4)]),
        test=np.array([(r, 12) for r in range(4)]),
        train_replicas=np.array([0, 1]),
        val_replicas=np.array([2]),
        test_replicas=np.array([3]),
    )
    return folder


def write_transitions(folder: Path) -> Path:
    """Two paths of a backbone."""
    folder.mkdir(parents=True, exist_ok=True)
    n = 855
    along = np.arange(n)[:, None] * np.array([3.0, 0, 0])
    np.savez(
        folder / "adk_transitions_backbone.npz",
        **{name: (swinging(length, n, k, 0.5) + along).astype(np.float32)
           for k, (name, length) in enumerate({"dims": 24, "dims2": 60}.items())},
        atom_names=np.array(["N", "CA", "C", "O"] * 213 + ["N", "CA", "C"]),
        res_ids=np.arange(n) // 4,
        res_names=np.array(["GLY"] * n),
        charges=np.where(np.arange(n) % 2, 0.5, -0.4),
        bonds=np.c_[np.arange(n - 1), np.arange(1, n)],
    )  # fmt: skip
    return folder
