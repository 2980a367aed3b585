"""What a command loads before it answers: nothing that it does not need."""

from __future__ import annotations

import json
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
