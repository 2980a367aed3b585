"""Nothing that a user runs asks the network for anything."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from conftest import make_universe

from egno_md import sample

CODE = """
    import socket, sys

    asked = []

    def refuse(event, arguments):
        if event == "socket.__new__" and arguments[1] in (socket.AF_UNIX, socket.AF_UNSPEC, -1):
            return
        if event.startswith(("socket.", "urllib.", "http.client.", "ftplib.", "smtplib.")):
            asked.append((event, [str(argument) for argument in arguments]))
            raise OSError("there is no network here")

    sys.addaudithook(refuse)
    {first}
    from egno_md.cli import main

    for command in {commands!r}:
        try:
            main(command)
        except SystemExit as end:
            assert end.code in (None, 0, 3), (command, end.code)
    print("asked", asked)
"""


def run(commands: list[list[str]], first: str = "") -> str:
    code = textwrap.dedent(CODE).format(commands=commands, first=first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def test_forecasts_trainings_and_pages_ask_for_nothing(tmp_path):
    run_files = [str(path) for path in sample("ubiquitin")]
    u = make_universe(n_frames=60, velocity=0.002)
    small = [str(tmp_path / name) for name in ("a.pdb", "a.dcd")]
    u.atoms.write(small[0])
    u.atoms.write(small[1], frames="all")
    settings = ["--select", "all", "--window", "2", "--hidden", "8", "--layers", "1", "--cutoff", "5", "--epochs", "1"]
    page, model = str(tmp_path / "page.html"), str(tmp_path / "m.safetensors")
    said = run(
        [
            ["predict", *run_files, "-o", str(tmp_path / "out.dcd"), "--report", page],
            ["evaluate", *run_files, "--windows", "20"],
            ["train", *small, *settings, "-o", model],
            ["predict", *small, "--model", model, "--horizon", "2", "-o", str(tmp_path / "mine.xtc")],
        ]
    )
    assert said == "asked []"
    text = (tmp_path / "page.html").read_text()
    assert not any(f'{what}="http' in text for what in ("src", "href")) and "@import" not in text


def test_it_would_be_seen():
    first = "exec('try:\\n socket.create_connection((\"localhost\", 9))\\nexcept OSError: pass')"
    assert "socket.getaddrinfo" in run([["--version"]], first)
