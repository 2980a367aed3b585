"""The command that measures how reliable the package is: its limits hold, and it sees what is wrong."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap

import pytest
from click.testing import CliRunner

from benchmarks import mutants
from benchmarks.reliability import __main__ as reliability


def in_a_process(code: str, *arguments) -> subprocess.CompletedProcess:
    """It forks, which the process of the tests must not do."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)


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


def test_changes_of_code_are_small_whole_and_no_words():
    source = """
def f(a: int = 1, *, keep=True) -> "0 + 1":
    'Adds 1 to it.'
    if not a < 2 or keep:
        raise ValueError(f"{a + 1} is too large")
    return a - (3 if a else
                0.5 * b[-1]).reshape(-1)  # numpy takes -2 for it as well
"""
    found = list(mutants.mutants("f.py", source))
    assert {m.function for m in found} == {"f"} and len({m.key for m in found}) == len(found)
    assert {(m.line, m.new) for m in found if "\n" not in m.new} == {
        (2, "2"), (2, "False"),
        (4, "not a < 2 and keep"), (4, "not (not a < 2 or keep)"), (4, "a < 2"), (4, "a <= 2"), (4, "3"),
        (6, "a + (3 if a else 0.5 * b[-1]).reshape(-1)"), (6, "a"), (6, "4"), (6, "not a"),
        (7, "0.5 / b[-1]"), (7, "0.75"), (7, "1"), (7, "2"),
    }  # fmt: skip
    assert sum(m.new == "1" for m in found) == 2 and sum(m.line == 7 and m.new == "2" for m in found) == 1
    for mutant in found:
        text = source.encode()
        changed = (text[: mutant.start] + f"({mutant.new})".encode() + text[mutant.end :]).decode()
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


def test_a_change_is_named_by_what_code_elsewhere_does_not_move():
    source = "def f(a):\n    return a + 1\n\ndef g(a):\n    a = 2 * a\n    a = 2 * a\n    return a\n"
    keys = [m.key for m in mutants.mutants("f.py", source)]
    assert {key.removeprefix("f.py:") for key in keys} == {
        "f: a + 1 -> a - 1", "f: a + 1 -> a", "f: 1 -> 2",
        "g: 2 * a -> 2 / a", "g: 2 -> 3", "g: 2 * a -> 2 / a (#2)", "g: 2 -> 3 (#2)",
    }  # fmt: skip
    moved = [m.key for m in mutants.mutants("f.py", "B = 2\n\ndef e(a):\n    return 2 * a\n\n" + source)]
    assert moved[-len(keys) :] == keys and "f.py:the module: 2 -> 3" in moved


def test_changes_that_no_result_shows_are_of_the_code_that_is_there():
    every = {m.key for name in mutants.files() for m in mutants.mutants(name, (mutants.ROOT / name).read_text())}
    assert not mutants.SEEN_BY_NOBODY.keys() - every


def test_what_a_class_begins_with_is_tested_by_all_that_enter_its_file():
    source = "class A:\n    size = 1\n\n    def f(self):\n        return 2\n"
    tests = {name: {"seconds": 1.0, "entered": [f"a.py:{at}"]} for name, at in (("imports", "A"), ("calls", "A.f"))}
    of = {m.new: mutants.chosen(m, tests) for m in mutants.mutants("a.py", source)}
    assert sorted(of["2"]) == ["calls", "imports"] and of["3"] == ["calls"]


def test_what_became_of_changes_is_a_section_of_the_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\nAbove.\n\n## What was found\n\nBelow.\n")
    one = {"first": "survived", "found": "survived", "seed": 0}
    results = {f"egno_md/nn/a.py:f{k}: {k} -> {k + 1}": dict(one) for k in range(3)}
    results["egno_md/nn/a.py:f0: 0 -> 1"] |= {"found": "killed"}
    results["egno_md/nn/b.py:g: 0 -> 1"] = {"first": "killed", "found": "killed", "seed": 1}
    monkeypatch.setattr(mutants, "SEEN_BY_NOBODY", {"egno_md/nn/a.py:f1: 1 -> 2": "a bound of memory"})
    for _ in range(2):  # the section is replaced, not added
        mutants.write(page, results, 1000)
    text = page.read_text()
    assert text.count(mutants.HEAD) == 1 and text.startswith("# Page\n\nAbove.\n\n## Ch")
    assert text.endswith("\n\n## What was found\n\nBelow.\n")
    assert "| nn/a.py | 3 | 1 | 1 | 1 |" in text and "1,000 possible changes 4 were drawn" in text
    assert "| 0 | 1 | 3 | 0 (0%) | 0% to 56% | 0% | 1 | 1 | 1 |\n" in text
    assert "| 1 | 1 | 1 | 1 (100%) | 21% to 100% | 100% | 1 | 0 | 0 |" in text
    assert "- `nn/a.py`, `f1`: `1 -> 2`: a bound of memory" in text
    assert "- `nn/a.py`, `f2`: `2 -> 3`: a test is missing" in text and "66.7% of these are noticed" in text
