"""The sweep over real files: what it makes of each outcome, and a part of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks import sweep


def judged(run, written=False):
    return sweep.judge(CliRunner().invoke(click.command()(run)), written)


def fails_with(message):
    def run():
        raise click.ClickException(message)

    return run


def test_kinds_of_outcomes():
    assert judged(lambda: click.echo("written    out.dcd"), written=True) == (sweep.FORECAST, "")
    assert judged(lambda: click.echo("checks     FAILED: x"), written=True) == (sweep.FORECAST, "checks     FAILED: x")
    assert judged(lambda: None)[0] == sweep.NO_CURE
    assert judged(fails_with("a.xtc is cut; keep its first 8 frames"))[0] == sweep.ERROR
    assert judged(fails_with("a.xtc is cut"))[0] == sweep.NO_CURE
    assert judged(fails_with("a.xtc is cut;\nkeep its first 8 frames"))[0] == sweep.NO_CURE
    kind, message = judged(lambda: 1 / 0)
    assert kind == sweep.TRACEBACK and message.endswith("ZeroDivisionError: division by zero")


def shown():
    click.echo("Traceback (most recent call last):\nAttributeError: x", err=True)
    raise click.ClickException("use another")


def test_a_traceback_on_the_terminal_is_no_clean_error():
    assert judged(shown)[0] == sweep.SHOWN


def act(what):
    if what == "crash":
        os.abort()
    if what == "hang":
        time.sleep(60)
    return what


def test_a_process_that_dies_or_hangs_costs_its_own_task_alone():
    workers = sweep.Workers(1, 2.0)
    results = workers.run([(act, what) for what in ("a", "crash", "b", "hang", "c")], lambda task, kind, *_: kind)
    assert results == ["a", sweep.CRASH, "b", sweep.HANG, "c"]


def test_pairs_fit_by_number_of_atoms(tmp_path):
    psf = sweep.File("PSF", str(tmp_path / "a.psf"), atoms=5, alpha=2)
    pdb = sweep.File("PDB", str(tmp_path / "a.pdb"), atoms=5, alpha=0, frames_of=5, frames=1)
    dcd = sweep.File("DCD", str(tmp_path / "a.dcd"), frames_of=5, frames=9)
    other = sweep.File("XTC", str(tmp_path / "b.xtc"), frames_of=6, frames=9)
    told = sweep.File("TRJ", str(tmp_path / "b.trj"), frames_of=-1)
    labels = [case.label for case in sweep.cases([psf, pdb, dcd, other, told], ("ca", "all"))]
    pairs = ["PSF PDB [ca]", "PSF PDB [all]", "PSF DCD [ca]", "PSF DCD [all]", "PSF TRJ [ca]", "PSF TRJ [all]"]
    assert labels == [
        *("PSF [ca]", "PSF [all]", "PDB [all]", "DCD [ca]", "XTC [ca]", "TRJ [ca]"),
        *pairs,
        "PDB DCD [all]",
    ]


@pytest.mark.slow
def test_real_files_end_in_a_forecast_or_a_cure():
    pytest.importorskip("MDAnalysisTests")
    outcomes = sweep.sweep(every=25)
    assert len(outcomes) > 40
    assert any(outcome.kind == sweep.FORECAST for outcome in outcomes)
    assert all(outcome.kind in sweep.RIGHT for outcome in outcomes), sweep.table(outcomes)
    assert not list(Path().glob("out.*"))
