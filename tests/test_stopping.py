"""What a command says while it works, and how it ends where it is asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import make_universe
from test_long import started, wait_for

from egno_md import EGNOSurrogate, progress, sample
from egno_md.progress import Progress, spoken

#: Sends itself a signal when a module is about to be imported.
CODE = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(sys.argv[2]))
sys.meta_path.insert(0, Finder())
from egno_md.cli import main
main(sys.argv[3:], prog_name="egno-md")
"""
FILES = [str(path) for path in sample()]
COMMANDS = {
    "predict": ["predict", *FILES],
    "train": ["train", *FILES, "-o", "m.safetensors"],
    "evaluate": ["evaluate", *FILES],
    "suggest": ["suggest", *FILES],
    "extend": ["extend", FILES[0]],
    "interpolate": ["interpolate", *FILES],
    "reproduce": ["reproduce", "nbody"],
    "doctor": ["doctor"],
}


def defaults():  # in the background SIGINT is ignored, and children inherit that
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_while_modules_are_imported_ends_a_command_with_its_code_and_one_line(command, tmp_path):
    number = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP][len(command) % 3]
    call = [sys.executable, "-c", CODE, "numpy", str(int(number)), *COMMANDS[command]]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, preexec_fn=defaults)
    assert (done.returncode, done.stdout) == (128 + number, ""), done.stderr
    assert done.stderr == f"stopped by {number.name}; no unfinished file is left\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["torch", "MDAnalysis", "scipy", "pydantic"])
def test_libraries_that_are_being_imported_do_not_swallow_a_signal(module, tmp_path):
    command = ["predict", *FILES, "--model", "ca-1ps"]
    call = [sys.executable, "-c", CODE, module, str(int(signal.SIGTERM)), *command]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, preexec_fn=defaults)
    assert done.returncode == 143 and "Traceback" not in done.stderr, done.stderr


class Terminal:
    """stderr of a process that somebody watches."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True

    def fileno(self):
        raise OSError


def test_elsewhere_long_work_says_a_line_now_and_then_and_short_work_nothing(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "watched", lambda: False)
    with Progress("forecast", "frames", 1000, 200) as bar:
        for _ in range(8):
            now[0] += 10
            bar.update(100)
    said = ["forecast: 500 of 1000 frames, about 50 s left", "forecast: 800 of 1000 frames, about 20 s left"]
    assert capsys.readouterr().err.splitlines() == said
    with Progress("epoch 1/9", "batches", 100, first=5) as bar:
        for _ in range(8):
            now[0] += 3
            bar.update(3)
    assert capsys.readouterr().err.splitlines() == ["epoch 1/9: 6 of 100 batches, about 2 min left"]
    with Progress("forecast", "frames", 1000, shown=False) as bar:
        now[0] += 100
        bar.update(10)
    assert capsys.readouterr() == ("", "")
    assert [spoken(seconds) for seconds in (5, 300, 20000)] == ["5 s", "5 min", "5.6 h"]


def test_parts_of_one_work_are_silent_no_longer_than_one(monkeypatch, capsys):
    now = [1e6]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "watched", lambda: False)
    for unit in ("frames", "forecasts"):
        with Progress("part", unit) as bar:
            now[0] += 20
            bar.update()
        now[0] += 5
    assert capsys.readouterr().err.splitlines() == ["part: 1 forecasts so far"]
    now[0] += 100  # other work, of which nothing was to be said
    with Progress("part", "frames") as bar:
        bar.update()
    assert not capsys.readouterr().err


def test_frames_that_are_read_for_the_choice_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "watched", lambda: False)
    EGNOSurrogate(make_universe(), horizon=2, verbose=True).run()
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "reading" in line] == [f"reading: {k} frames so far" for k in range(1, 13)]


@pytest.mark.parametrize("columns", [0, 100])
def test_a_terminal_has_a_bar_with_the_time_that_is_left_also_one_that_does_not_know_its_width(monkeypatch, columns):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_width", lambda: columns)
    with Progress("forecast", "frames", 20) as bar:
        bar.bar.mininterval = 0
        bar.update(5)
        bar.update(5)
    assert "10/20 frames" in terminal.text and "left]" in terminal.text


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_forecast_on_a_terminal_counts_the_frames_of_all_starts_and_members(tmp_path):
    """Also on one of no size, where only blank lines were seen."""
    ours, theirs = os.openpty()
    command = ["predict", *FILES, "--from-frames", "60,70", "--samples", "3", "--horizon", "100", "-o", "x.dcd"]
    process = subprocess.Popen(
        [sys.executable, "-m", "egno_md", *command], stderr=theirs, stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    os.close(theirs)
    seen = b""
    try:
        while more := os.read(ours, 65536):
            seen += more
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0 and b"/600 frames" in seen and b"left]" in seen


def test_what_a_long_forecast_is_made_with_is_said_before_it_ends(tmp_path):
    out = tmp_path / "long.dcd"
    process = started(
        ["predict", *FILES, "--horizon", "200000", "--json", "-o", str(out)], stdout=subprocess.PIPE, cwd=tmp_path
    )
    wait_for(process, out, 10_000)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=60)
    assert process.returncode == 130 and said == ""
    lines = err.splitlines()
    assert lines[-1].startswith("stopped after frame") and any(line.startswith("hindcast   ") for line in lines)
    assert any(line.startswith("decided    ") and "the best of" in line for line in lines)
