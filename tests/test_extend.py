"""What the page about additions shows works as it stands, from a package outside, with not a line changed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
from conftest import documented, make_universe

from egno_md import sample
from egno_md.nn.testing import check_operator


def egno_md(site: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = f"import sys; sys.path.insert(0, {str(site)!r}); from egno_md.cli import main; main()"
    return subprocess.run([sys.executable, "-c", command, *map(str, arguments)], capture_output=True, text=True)


def test_the_operator_trains_saves_predicts_and_is_evaluated(another_package, tmp_path):
    code = documented("SpringNet")
    scope: dict = {}
    exec(code, scope)
    check_operator(scope["OPERATOR"])
    site = another_package("egno_md.operators", "spring-net = springs:OPERATOR", code)
    u = make_universe(60, velocity=0.003)
    top, run, model = tmp_path / "top.pdb", tmp_path / "run.xtc", tmp_path / "m.safetensors"
    u.atoms.write(top, bonds="all")
    u.atoms.write(run, frames="all")
    shared = ("--select", "all", "--set", "width=4", "--epochs", 2, "--operator", "spring-net")
    done = egno_md(site, "train", top, run, "-o", model, *shared)
    assert done.returncode == 0, done.stderr
    shown = json.loads(egno_md(site, "info", model, "--json").stdout)
    assert shown["model"]["operator"] == "spring-net" and shown["model"]["options"] == {"width": 4}
    done = egno_md(site, "predict", top, run, "--model", model, "-o", tmp_path / "out.dcd", "--json")
    assert done.returncode == 0, done.stderr
    assert mda.Universe(top, tmp_path / "out.dcd").trajectory.n_frames == 8
    done = egno_md(site, "evaluate", top, run, "--model", model, "--json")
    assert done.returncode == 0, done.stderr
    assert {"model", "static"} <= set(json.loads(done.stdout)["errors"])


def test_the_format_is_written_whole_and_read_back(another_package, tmp_path):
    site = another_package("egno_md.formats", "trr = triples:TRR", documented("class TRR"))
    out = tmp_path / "out.trr"
    done = egno_md(site, "predict", *sample(), "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    read = mda.Universe(str(out.with_suffix(".pdb")), str(out))
    assert read.trajectory.n_frames == 8 and len(read.atoms) == 76
    np.testing.assert_allclose([ts.time for ts in read.trajectory], json.loads(done.stdout)["times_ps"], rtol=1e-6)
    egno_md(site, "predict", *sample(), "-o", tmp_path / "same.dcd")
    same = mda.Universe(str(out.with_suffix(".pdb")), str(tmp_path / "same.dcd"))
    for ours, theirs in zip(same.trajectory, read.trajectory, strict=True):
        np.testing.assert_allclose(ours.positions, theirs.positions, atol=1e-4)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("trr = triples:Missing", "triples:Missing (egno_md.formats) cannot be loaded"),
        ("trr = triples:np", "must be a class like egno_md.trajectory.formats.Format"),
    ],
)
def test_formats_that_do_not_fit_are_named_before_the_forecast(another_package, tmp_path, entry, words):
    site = another_package("egno_md.formats", entry, documented("class TRR"))
    done = egno_md(site, "predict", *sample(), "-o", tmp_path / "out.trr")
    assert done.returncode == 2 and words in " ".join(done.stderr.split()) and not (tmp_path / "out.trr").exists()


def test_a_format_that_nobody_brings_names_those_that_are_there(another_package, tmp_path):
    site = another_package("egno_md.formats", "trr = triples:TRR", documented("class TRR"))
    done = egno_md(site, "predict", *sample(), "-o", tmp_path / "out.mdcrd")
    assert done.returncode == 2 and ".dcd or .xtc or .trr" in done.stderr
