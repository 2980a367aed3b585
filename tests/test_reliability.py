"""The command that measures how reliable the package is: its limits hold, and it sees what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from click.testing import CliRunner

from benchmarks.reliability import __main__ as reliability


def in_a_process(code: str, *arguments) -> subprocess.CompletedProcess:
    """It forks, which the process of the tests must not do."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_a_process_of_ours_is_ended_where_it_takes_too_much():
    code = """
        import os, signal, subprocess, sys, time
        from benchmarks.reliability import children

        def busy():
            while True:
                pass

        def bombs():
            for _ in range(50):
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

        def wrong():
            raise KeyError("damaged")

        sound = children.CPU_SECONDS, children.LONGEST_LIMITED, children.MEMORY
        children.CPU_SECONDS, children.LONGEST_LIMITED, children.MEMORY = 1, 2, 1 << 28
        for work in (busy, lambda: time.sleep(60), lambda: bytearray(1 << 30), bombs, wrong, lambda: os.kill(0, 11)):
            print(children.run(["--version"], limited=True, before=work).kind)
        children.CPU_SECONDS, children.LONGEST_LIMITED, children.MEMORY = sound
        print(children.run(["--version"], limited=True).kind)
        print(children.run(["predict", "nosuch.pdb"], limited=True).kind)
    """
    said = in_a_process(code).stdout.splitlines()
    assert said == ["hang", "hang", "memory", "traceback", "traceback", "crash", "forecast", "clean error"]


def test_kills_full_disks_and_damage_are_counted(tmp_path):
    code = """
        import json, sys
        from pathlib import Path
        from benchmarks.reliability import children, fuzz, kills

        folder = Path(sys.argv[1])
        children.prepare()
        kills.HORIZON = 900
        found = [kills.kills(folder, "network", ".xtc", 1)]
        found += [kills.disks(folder, what, 2) for what in ("pdb", "model")]
        case = next(case for name, case in fuzz.cases(folder) if name == "PSF")
        print(json.dumps([*found, fuzz.fuzz(case, folder / "work", 20)]))
    """
    killed, pdb, model, psf = json.loads(in_a_process(code, tmp_path).stdout)
    assert killed["byte-equal after --resume"] == killed["killed"] == 1 and not killed["wrong"]
    for disk in (pdb, model):
        assert disk["nothing confirmed lost, and whole afterwards"] == disk["full disks"] == 2
    assert sum(psf["kinds"].values()) == psf["files"] == 20 and not psf["found"]
    assert psf["kinds"]["clean error"] > 5 and psf["slowest_s"] < 10


def test_the_page_says_what_was_measured_and_what_failed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Reliability\n\nWords.\n\n## What was found\n\nold")
    fuzzed = {"files": 5, "kinds": {"clean error": 2, "forecast": 2, "traceback": 1}, "same forecast": 1}
    fuzzed |= {
        "another forecast without a word": 1,
        "peak_MB": 9,
        "slowest_s": 0.1,
        "found": {"traceback": ["3: x.py"]},
    }
    peaks = {
        "1000": {"peak_MB": 100.0, "file_MB": 1, "seconds": 1},
        "10000": {"peak_MB": 105.0, "file_MB": 9, "seconds": 9},
    }
    reliability.write(page, {"fuzz": {"DCD": fuzzed}, "memory": {"network": peaks | {"minutes": 1}}})
    text = page.read_text()
    assert text.startswith("# Reliability\n\nWords.\n\n## What was found\n") and "old" not in text
    assert "| DCD | 5 | 2 | 1 | 0 | 1 | 1 | 0 | 0 | 0 | 0.1 | 9 |" in text and "- DCD, traceback: 3: x.py" in text
    assert "| network | largest over smallest | 1.050 |" in text


@pytest.mark.parametrize("part", ["nosuch", "kill"])
def test_a_part_that_is_none_is_refused(part):
    assert CliRunner().invoke(reliability.main, [part]).exit_code == 2
