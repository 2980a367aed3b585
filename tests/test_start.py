"""What a command loads before it answers: nothing that it does not need."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import egno_md

#: Packages that are slow to load.
HEAVY = {
    "MDAnalysis", "lightning", "matplotlib", "mdtraj", "numba", "openmm", "pydantic", "scipy", "torch",
    "torch_geometric", "vesin",
}  # fmt: skip
#: Modules that stand for a slow part of a package.
PARTS = {"scipy.interpolate", "scipy.optimize", "scipy.stats", "torch.distributed.tensor", "torch._dynamo"}
SAMPLE = [str(path) for path in egno_md.sample()]
FORECAST = {"MDAnalysis", "pydantic", "scipy", "torch"}
#: Forecasts without a network need no torch; fitting the elastic network needs non-negative least squares.
FREE = FORECAST - {"torch"} | {"scipy.interpolate", "scipy.optimize"}
#: What each command may load. MDAnalysis itself brings scipy.
MAY_LOAD = {
    "--version": set(),
    "--help": set(),
    "suggest --help": set(),
    "train --help": set(),
    "extend --help": set(),
    "models": set(),
    "models --json": set(),
    "info ca-1ps": {"pydantic"},
    "info nothing": {"pydantic"},
    "predict": FREE,
    "predict --model": FREE | {"torch"},
    "suggest": FORECAST,
    "evaluate": FORECAST | {"numba"} | PARTS,
}
ARGUMENTS = {
    "predict": ["predict", *SAMPLE, "-o", "out.dcd"],
    "predict --model": ["predict", *SAMPLE, "--model", "ca-1ps", "-o", "out.dcd"],
    "suggest": ["suggest", *SAMPLE],
    "evaluate": ["evaluate", *SAMPLE, "--windows", "20"],
}
CODE = """
import json, sys
from egno_md.cli import main
try:
    main(sys.argv[1:])
except SystemExit as error:
    code = error.code
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


def loaded(command, folder):
    arguments = ARGUMENTS.get(command, command.split())
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, cwd=folder)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code in (0, 1), done.stderr
    return set(modules)


@pytest.mark.parametrize("command", MAY_LOAD)
def test_a_command_loads_only_what_it_needs(command, tmp_path):
    modules = loaded(command, tmp_path)
    heavy = {name.split(".")[0] for name in modules} & HEAVY | modules & PARTS
    assert not heavy - MAY_LOAD[command]


def completing(instruction, **variables):
    """The command line as a shell calls it for completion: what it prints, and the slow packages it loads."""
    code = CODE.replace("main(sys.argv[1:])", "main(prog_name='egno-md')")
    env = {**os.environ, "_EGNO_MD_COMPLETE": instruction, **variables}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    exit_code, modules = json.loads(done.stderr.splitlines()[-1])
    assert exit_code == 0, done.stderr
    return done.stdout, {name.split(".")[0] for name in modules} & HEAVY


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("egno-md inter", ["plain,interpolate"]),
        ("egno-md predict --model ca", ["plain,ca-1ps"]),
        ("egno-md predict --model my", ["file,my"]),
        ("egno-md info ca", ["plain,ca-1ps"]),
        ("egno-md predict --on-unphysical s", ["plain,stop"]),
        ("egno-md reproduce mocap", ["plain,mocap-walk", "plain,mocap-run"]),
        ("egno-md reproduce z", ["plain,zero-shot"]),
        ("egno-md reproduce nbody --system egnn-", ["plain,egnn-r", "plain,egnn-s", "plain,egnn-tb"]),
    ],
)
def test_the_shell_is_told_what_can_follow_without_loading_anything(words, expected):
    said, heavy = completing("bash_complete", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    assert said.splitlines() == expected and not heavy


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_of_the_documentation_is_a_script_of_the_shell(shell):
    said, heavy = completing(f"{shell}_source")
    assert f"_EGNO_MD_COMPLETE={shell}_complete" in said and not heavy
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=said, text=True, check=True)


def test_the_names_that_are_completed_are_those_that_there_are():
    from egno_md.cli import completion
    from egno_md.reproduce import experiments

    assert completion.EXPERIMENTS == tuple(experiments.EXPERIMENTS)
    assert completion.SYSTEMS == tuple(experiments.SYSTEMS)


def test_free_forecasts_are_known_without_loading_them():
    """By their own names; `info` says of one of them that it is no model."""
    from click.testing import CliRunner

    from egno_md.cli import main
    from egno_md.cli.completion import FREE_FORECASTS
    from egno_md.forecast.forecasters import OF_PROTEINS, free_forecasts

    assert set(FREE_FORECASTS) == {*free_forecasts(), OF_PROTEINS}
    said = CliRunner().invoke(main, ["info", "gaussian process"])
    assert said.exit_code == 1 and "is a free forecast, which is fitted to a run" in said.output


def test_a_model_of_a_name_like_another_is_asked_about(tmp_path, monkeypatch):
    from egno_md import load_model
    from egno_md.errors import ModelError
    from egno_md.hindcast.choose import wanted

    load_model().save(tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    for ask in (load_model, wanted):
        for name, like in (
            ("mine.safetensor", "mine.safetensors"),
            (str(tmp_path / "mime.safetensors"), str(tmp_path / "mine.safetensors")),
            ("ca-1p", "ca-1ps"),
        ):
            with pytest.raises(ModelError, match=re.escape(f"no model {name!r} (did you mean {like!r}?)")):
                ask(name)
            ask(like)
    with pytest.raises(ModelError, match="did you mean 'linear'"):
        wanted("lineal")
