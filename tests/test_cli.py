"""The real command line, in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import MDAnalysis as mda
import mdtraj
import numpy as np
import pytest
from conftest import make_model
from MDAnalysisTests.datafiles import DCD, PSF

from egno_md import load_model, sample
from egno_md.cli.output import as_text
from egno_md.cli.predicting import readable

TOPOLOGY, TRAJECTORY = map(str, sample())


def egno_md(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "egno_md", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_help_and_version():
    done = egno_md("--help")
    assert done.returncode == 0 and all(word in done.stdout for word in ("predict", "info", "models"))
    assert egno_md("--version").stdout.split()[-1].count(".") == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom egno_md.cli import main\n"
        "try:\n    main(['predict', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'MDAnalysis', 'numpy', 'openmm', 'mdtraj', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("topology", "trajectory", "n_atoms"), [(TOPOLOGY, TRAJECTORY, 76), (PSF, DCD, 214)], ids=["sample", "adk"]
)
@pytest.mark.parametrize("ending", ["dcd", "xtc"])
def test_predict_writes_what_both_libraries_read(tmp_path, topology, trajectory, n_atoms, ending):
    out = tmp_path / f"forecast.{ending}"
    done = egno_md("predict", topology, trajectory, "--horizon", 12, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["atoms"] == n_atoms and summary["windows"] == 2
    run = mda.Universe(topology, trajectory)
    last = run.trajectory[-1].time
    read = mda.Universe(str(out.with_suffix(".pdb")), str(out))
    other = mdtraj.load(str(out), top=str(out.with_suffix(".pdb")))
    assert len(read.atoms) == other.n_atoms == n_atoms
    assert list(read.atoms.names) == [a.name for a in other.topology.atoms] == ["CA"] * n_atoms
    chosen = run.select_atoms("protein and name CA")
    assert list(read.residues.resids) == [r.resSeq for r in other.topology.residues] == list(chosen.resids)
    times = [ts.time for ts in read.trajectory]
    np.testing.assert_allclose(times, last + np.arange(1, 13), rtol=1e-5)
    np.testing.assert_allclose(times, summary["times_ps"], rtol=1e-5)
    if ending == "xtc":  # mdtraj numbers the frames of a DCD instead of reading their times
        np.testing.assert_allclose(other.time, times, rtol=1e-5)
    np.testing.assert_allclose(other.xyz * 10, [ts.positions.copy() for ts in read.trajectory], atol=2e-3)
    assert 0 < summary["moved_A"] < 5


@pytest.mark.parametrize("operator", ["egno", "eghno"])
def test_predict_with_a_model_of_ones_own(tmp_path, operator):
    model = make_model(operator=operator, clusters=4, select="ca", cutoff=8.0, start="static", pooling_layers=1)
    path = model.save(tmp_path / "mine.safetensors")
    done = egno_md("predict", TOPOLOGY, TRAJECTORY, "--model", path, "--horizon", 6, "-o", tmp_path / "o.xtc", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["model"] == "mine" and summary["windows"] == 2
    assert summary["moved_A"] == pytest.approx(0, abs=1e-3)  # untrained, it forecasts the standing frame


def test_readable_summary_and_with_input(tmp_path):
    done = egno_md("predict", TOPOLOGY, TRAJECTORY, "--from-frame", 50, "--with-input", "-o", "a.xtc", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in (
        "8 frames of 76 atoms",
        "from frame 50",
        "RMSD of one future to the trajectory",
        "standing still",
        "a.xtc",
        "checks",
    ):
        assert part in done.stdout
    assert mda.Universe(str(tmp_path / "a.pdb"), str(tmp_path / "a.xtc")).trajectory.n_frames == 51 + 8


def test_many_starts_and_futures_are_summed_up(tmp_path):
    what = ["predict", TOPOLOGY, TRAJECTORY, "--from-frames", "20,40,60", "--samples", 2, "-o"]
    done = egno_md(*what, "a.dcd", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "from each of 3 starts, frame 20 (t = 21 ps) to frame 60 (t = 61 ps)" in lines[0]
    assert "that draw (energy score" in lines[2]  # the table of --verbose has more candidates
    assert "2 futures from each start" in done.stdout
    assert [line for line in lines if line.startswith("written")] == [
        f"written    a_000020_1.{end} to a_000060_2.{end} (6 files)" for end in ("dcd", "pdb")
    ]
    told = json.loads(egno_md(*what, "b.dcd", "--json", cwd=tmp_path).stdout)
    assert len(told["files"]) == 12 and told["accuracy"]["starts"] == 3 and told["checks"]["ok"]
    worst = max(one["checks"]["largest_bond_deviation_A"] for one in told["starts"])
    assert told["checks"]["largest_bond_deviation_A"] == worst
    for one in told["starts"]:
        assert len(one["rmsd_mean_superposed_A"]) == len(one["rmsd_superposed_A"]) == 8


def test_of_very_many_starts_the_first_and_the_last_have_a_line(tmp_path):
    what = ["predict", TOPOLOGY, TRAJECTORY, "--model", "static", "--from-frames", "10:40", "-o", "a.dcd"]
    done = egno_md(*what, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    frames = [int(line.split()[2].strip(":")) for line in lines if line.startswith("start ")]
    assert frames == [*range(10, 20), *range(30, 40)]
    assert [line.strip() for line in lines if "more" in line] == ["10 starts more: --json has all of them"]
    told = json.loads(egno_md(*what[:-1], "b.dcd", "--json", cwd=tmp_path).stdout)
    assert len(told["starts"]) == told["accuracy"]["starts"] == 30


def test_precision(tmp_path):
    last = []
    for precision in ("float32", "bf16"):
        out = tmp_path / f"{precision}.dcd"
        how = ["--model", "ca-1ps", "--device", "cpu", "--precision", precision]
        done = egno_md("predict", TOPOLOGY, TRAJECTORY, *how, "-o", out)
        assert done.returncode == 0, done.stderr
        last.append(mda.Universe(str(out.with_suffix(".pdb")), str(out)).trajectory[-1].positions.copy())
    assert 0 < np.abs(last[1] - last[0]).max() < 0.002


def test_default_output_lies_in_the_working_folder(tmp_path):
    assert egno_md("predict", TOPOLOGY, TRAJECTORY, cwd=tmp_path).returncode == 0
    assert {p.name for p in tmp_path.iterdir()} == {"ubiquitin_forecast.dcd", "ubiquitin_forecast.pdb"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none.pdb", TRAJECTORY], 1, ["none.pdb"]),
        ([TOPOLOGY, "none.xtc"], 1, ["none.xtc"]),
        ([PSF, TRAJECTORY], 1, ["3341", "1231"]),
        ([TOPOLOGY, TRAJECTORY, "--horizon", "0"], 2, ["horizon", "at least 1"]),
        ([TOPOLOGY, TRAJECTORY, "--horizon", "many"], 2, ["horizon"]),
        ([TOPOLOGY, TRAJECTORY, "--from-frame", "5000"], 2, ["5000", "frames 0 to"]),
        ([TOPOLOGY, TRAJECTORY, "--select", "resname LIG"], 1, ["resname LIG", "MET"]),
        ([TOPOLOGY, TRAJECTORY, "--select", "name ("], 2, ["name ("]),
        ([TOPOLOGY, TRAJECTORY, "--select", "heavy", "--model", "ca-1ps"], 1, ["heavy", "ca-1ps"]),
        ([TOPOLOGY, TRAJECTORY, "--model", "none"], 1, ["none", "ca-1ps", "analogues"]),
        ([TOPOLOGY, TRAJECTORY, "--from-frames", "90:"], 2, ["90:", "frames 0 to 79"]),
        ([TOPOLOGY, TRAJECTORY, "--from-frames", "a:b"], 2, ["a:b", "0:1000:50"]),
        ([TOPOLOGY, TRAJECTORY, "--samples", "2", "--mean"], 2, ["--samples", "--mean"]),
        ([TOPOLOGY, TRAJECTORY, "--model", TRAJECTORY], 1, ["ubiquitin.xtc", "safetensors"]),
        ([TOPOLOGY, TRAJECTORY, "--dt", "10", "--model", "ca-1ps"], 1, ["10 ps", "1 ps", "ca-1ps"]),
        ([TOPOLOGY, TRAJECTORY, "-o", "out.txt"], 2, ["out.txt", "xtc"]),
        ([TOPOLOGY, TRAJECTORY, "-o", "none/out.dcd"], 1, ["none"]),
        ([TOPOLOGY, TRAJECTORY, "--device", "cuda:7"], 2, ["cuda:7"]),
        ([TOPOLOGY, TRAJECTORY, "--precision", "half"], 2, ["half", "bf16"]),
        ([TOPOLOGY, TRAJECTORY, "--device", "cpu", "--precision", "tf32"], 2, ["tf32", "GPU", "bf16"]),
    ],
    ids=lambda value: " ".join(v.rsplit("/", 1)[-1] for v in value) if isinstance(value, list) else None,
)
def test_bad_input_names_the_cure_and_leaves_nothing(tmp_path, arguments, code, words):
    done = egno_md("predict", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not list(tmp_path.iterdir())


def test_output_that_exists_is_kept(tmp_path):
    target = tmp_path / "keep.dcd"
    target.write_text("mine")
    done = egno_md("predict", TOPOLOGY, TRAJECTORY, "-o", target)
    assert done.returncode == 1 and "--force" in done.stderr and target.read_text() == "mine"
    assert egno_md("predict", TOPOLOGY, TRAJECTORY, "-o", target, "--force").returncode == 0
    assert target.stat().st_size > 4


def test_truncated_trajectory_uses_the_whole_frames(tmp_path):
    cut = tmp_path / "cut.xtc"
    whole = open(TRAJECTORY, "rb").read()
    cut.write_bytes(whole[: len(whole) // 2])
    done = egno_md("predict", TOPOLOGY, cut, "-o", tmp_path / "out.dcd", "--json")
    assert done.returncode == 0, done.stderr
    assert "whole frames" in done.stderr
    n_frames = mda.Universe(TOPOLOGY, TRAJECTORY).trajectory.n_frames
    assert n_frames // 2 - 3 <= json.loads(done.stdout)["start_frame"] <= n_frames // 2 + 3


def test_models_and_info():
    listed = json.loads(egno_md("models", "--json").stdout)
    assert [row["name"] for row in listed if row["default"]] == ["ca-1ps"]
    assert "ca-1ps" in egno_md("models").stdout
    shown = json.loads(egno_md("info", "ca-1ps", "--json").stdout)
    assert shown["parameters"] == load_model("ca-1ps").n_parameters
    text = egno_md("info", "ca-1ps").stdout
    for word in ("1 ps", "ubiquitin", "static", "MIT"):
        assert word in text
    assert egno_md("info", "none").returncode == 1


def test_json_is_json_where_numbers_are_none():
    text = as_text({"a": [1.5, float("inf"), (float("nan"), -float("inf"))], "b": {"c": True}})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [1.5, "inf", [None, "-inf"]], "b": {"c": True}}


def test_what_has_no_bonds_did_not_pass_a_look_at_them(tmp_path):
    topology, trajectory = tmp_path / "beads.gro", tmp_path / "beads.xtc"
    rng = np.random.default_rng(0)
    u = mda.Universe.empty(6, 6, atom_resindex=np.arange(6), trajectory=True)
    for name, values in (("names", ["W"] * 6), ("resnames", ["W"] * 6), ("resids", np.arange(1, 7))):
        u.add_TopologyAttr(name, values)
    u.load_new((20 * np.arange(6)[:, None] + rng.normal(0, 0.3, (30, 6, 3))).astype(np.float32), dt=1.0)
    u.dimensions = [200, 200, 200, 90, 90, 90]
    u.atoms.write(topology)
    u.atoms.write(trajectory, frames="all")
    done = egno_md("predict", topology, trajectory, "-o", "o.dcd", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("checks"))
    assert "0 bonds" not in line and line.endswith("; no bonds are known of these atoms, so that none were looked at")


def test_one_is_not_many():
    """In what a forecast of one frame with one bond prints."""
    summary = {"checks": {"ok": True, "bonds": 1, "largest_bond_deviation_A": 0.01, "radius_of_gyration_ratio": [1, 1]}}
    summary["checks"] |= {"relaxed": 1, "largest_relaxation_A": 0.1, "findings": []}
    summary |= {"frames": 1, "atoms": 1, "model": "static", "start_frame": 1, "start_time_ps": 1.0, "windows": 1}
    summary |= {"times_ps": [2.0], "decisions": [], "hindcast": None, "accuracy": None, "course": []}
    summary |= {"moved_A": 0.0, "moved_superposed_A": 0.0}
    text = readable(summary | {"files": []})
    assert "1 frame of 1 atom " in text and "1 bond within" in text and not re.search(r"\b1 (?!ps)[a-z]+s\b", text)
