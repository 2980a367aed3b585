"""Inputs that went wrong once, each run as a user would, and what must come out now."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import MDAnalysisTests
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, tmp_path: Path) -> str:
    """What the case's script prints, of both streams; nothing may end in a traceback."""
    case = tmp_path / folder.name
    shutil.copytree(folder, case)
    if folder.name == "frame_minus_one":  # it borrows the model of another case
        shutil.copy(folder.parent / "coordinates_as_topology/all.safetensors", case)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool, arguments in {"egno-md": "-m egno_md ", "python": ""}.items():
        (tools / tool).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (tools / tool).chmod(0o755)
    environment = os.environ | {
        "BIN": str(tools),
        "EGNO": f"{sys.executable} -m egno_md",
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        ["sh", "run.sh"], cwd=case, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


def errors(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("Error")]


def altloc_cure(out: str) -> None:
    # Atoms in two places are settled, and that is said: no cure is needed, and the second command only finds the file
    # that the first one wrote.
    assert out.count("8 frames of 10 atoms") == 1 and "of atoms in several places the first (1 left out)" in out
    (refused,) = errors(out)
    assert "o.dcd exists" in refused


def broken_box_cure(out: str) -> None:
    moved = [float(line.partition(" -> ")[2]) for line in out.splitlines()]
    assert len(moved) == 2 and moved[0] == pytest.approx(moved[1], abs=1e-3)


def broken_without_box(out: str) -> None:
    # With its box the molecule is put together; without, that is found.
    assert not errors(out)
    assert out.count("checks     passed: 9 bonds within 0.") == 1 and out.count("checks     FAILED") >= 2
    assert "TYR2 CA (atom 1) and ASP3 CA (atom 2) follow each other in the chain and are torn apart, by 36.1 A" in out


def duplicate_ca(out: str) -> None:
    one_place(out)


def one_place(out: str) -> None:
    """An atom that is there twice is taken once, and that is said."""
    assert not errors(out) and "8 frames of 10 atoms" in out and "checks     passed: 9 bonds" in out
    assert "of atoms in several places the first (1 left out" in out


def large_box(out: str) -> None:
    assert "8 frames of 120 atoms" in out and "checks     passed: 116 bonds" in out and out.count("written") == 2


def microheterogeneity(out: str) -> None:
    one_place(out)
    # Which residue it is about, that it is not taken for an ion, and the forecast of its siblings.
    assert "residue 5 is GLU A, not SER B" in out and "ion" not in out.partition("decided    atoms")[2].split("\n")[0]
    assert "with elastic network of proteins" in out


def modified_residue_left_out(out: str) -> None:
    assert "8 frames of 10 atoms" in out and "checks     passed: 9 bonds" in out


def forecasts(out: str, *ends: str) -> None:
    """One forecast for each of `ends`, such as "from frame 9 (t = 9 ps) to t = 17 ps"."""
    lines = [line for line in out.splitlines() if line.startswith("forecast")]
    assert len(lines) == len(ends)
    for line, end in zip(lines, ends, strict=True):
        assert end in line


def several_files(out: str) -> None:
    forecasts(out, "from frame 9 (t = 9 ps) to t = 17 ps")
    assert out.count("written") == 2 and "warning" not in out


def continuous_parts(out: str) -> None:
    assert out.split() == "10 [[10. 11. 12. 13. 14. 15. 16. 17.]]".split()


def trr_without_positions(out: str) -> None:
    # Frames without positions are left out, and the spacing of the others is that of the forecast.
    assert not errors(out) and "left out: 5 frames" in out
    forecasts(out, "from frame 8 (t = 8 ps)", "from frame 9 (t = 9 ps)", "from frame 4 (t = 4 ps)")


def xyz_cut(out: str) -> None:
    assert "warning: r.xyz ends inside a frame" in out and "5 whole frames" in out
    forecasts(out, "from frame 4 (t = 4 ps) to t = 12 ps")


def netcdf_dt(out: str) -> None:
    forecasts(out, *2 * ["from frame 9 (t = 9 ps) to t = 17 ps"])


def frame_minus_one(out: str) -> None:
    forecasts(out, "from frame 0 (t = 0 ps) to t = 8 ps")


def coordinates_as_topology(out: str) -> None:
    (refused,) = errors(out)
    assert "r.ncdf" in refused and "without atom names" in refused and "topology" in refused


def pipe(out: str) -> None:
    (refused,) = errors(out)
    assert "p.xtc" in refused and "not a regular file" in refused and "rc=1" in out


def far_from_origin(out: str) -> None:
    forecasts(out, "10 atoms")
    assert "o.pdb is moved to the origin" in out and out.count("written") == 2


#: What must be true of the output of each case; those of other rooms are added here.
CASES: dict[str, Callable[[str], None]] = {
    check.__name__: check
    for check in (
        altloc_cure,
        continuous_parts,
        coordinates_as_topology,
        far_from_origin,
        frame_minus_one,
        netcdf_dt,
        pipe,
        several_files,
        trr_without_positions,
        xyz_cut,
        broken_box_cure,
        broken_without_box,
        duplicate_ca,
        large_box,
        microheterogeneity,
        modified_residue_left_out,
    )
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"the case {name} is not among the reference data")
    borrowed = Path(MDAnalysisTests.__file__).parent / "data" / "281_small.tpr"
    if name == "frame_minus_one" and not borrowed.is_file():
        pytest.skip(f"{borrowed.name} comes with MDAnalysisTests 2.11")
    CASES[name](run(folder, tmp_path))
