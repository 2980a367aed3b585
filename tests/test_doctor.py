"""`egno-md doctor` says that all is well where it is, and what is wrong where it is not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from egno_md import doctor
from egno_md.cli import main
from egno_md.forecast import chain, forecasters
from egno_md.trajectory import writer


def wrong(*checks: str) -> list[str]:
    """What the checks of these names find wrong."""
    some = {name: doctor.CHECKS[name] for name in checks}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "CHECKS", some)
        found = doctor.examine()
    assert {one.name for one in found} == set(checks)
    return [f"{one.name}: {one.said}" for one in found if not one.ok]


def test_all_is_well_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["doctor", "--json"], catch_exceptions=False)
    content = json.loads(done.stdout)
    assert done.exit_code == 0 and content["ok"] and all(one["ok"] for one in content["findings"])
    assert list(dict.fromkeys(one["name"] for one in content["findings"])) == list(doctor.CHECKS)
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_said_and_ends_the_command_with_1(monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {"room": doctor._folders, "broken": lambda: [][0], "python": doctor._python})
    monkeypatch.setattr(doctor, "ROOM", 1 << 60)
    done = CliRunner().invoke(main, ["doctor"])
    lines = done.stdout.splitlines()
    assert done.exit_code == 1 and lines[-1] == "3 things are wrong"
    assert lines[0].startswith("room       WRONG: only") and "TMPDIR" in lines[0]
    assert lines[2] == "broken     WRONG: IndexError: list index out of range"
    assert "WRONG" not in lines[3]


def test_packages_that_are_missing_or_too_old(monkeypatch):
    asked = [
        "numpy>=99",
        "no-such-package>=1",
        "scipy>=1",
        'matplotlib>=99; extra == "plot"',
        'ruff>=99; extra == "test"',
    ]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: [*asked, 'absent; extra == "train"'])
    found = wrong("packages")
    assert len(found) == 3 and "numpy is" in found[0] and ">=99 is needed" in found[0]
    assert "no-such-package is not installed" in found[1] and "matplotlib is" in found[2]


def test_a_forecast_that_does_not_turn_with_its_start(monkeypatch):
    right = chain.forecast
    monkeypatch.setattr(chain, "forecast", lambda *args, **how: right(*args, **how) + [0.01, 0, 0])
    (found,) = wrong("symmetry")
    assert "not so, they differ by 0.0" in found
    monkeypatch.undo()
    monkeypatch.setattr(forecasters, "upright", lambda structure: structure)  # fitted in the axes of the file
    (found,) = wrong("symmetry")
    assert "futures turn with their run: not so" in found


def test_frames_that_are_not_what_was_written(monkeypatch):
    right = writer.write_forecast
    monkeypatch.setattr(writer, "write_forecast", lambda path, atoms, xyz, times: right(path, atoms, xyz * 1.01, times))
    assert [line.split()[1] for line in wrong("files")] == ["DCD", "XTC"]
    monkeypatch.setattr(writer, "write_forecast", lambda path, atoms, xyz, times: right(path, atoms, xyz, times + 1))
    assert all("times are 1 ps off" in line for line in wrong("files"))


def test_a_number_that_is_none_is_never_within_a_limit():
    assert not doctor._within(np.nan, 1.0, "it", "cure")[0] and doctor._within(0.5, 1.0, "it", "cure")[0]
