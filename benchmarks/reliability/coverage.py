"""Which lines and branches of the package the tests enter."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

import egno_md


def covered(folder: Path) -> dict[str, Any]:
    """Of each file the lines and branches that there are, and those that the tests enter, theirs in processes too.

    What Numba and Triton compile is not seen, though its results are tested.
    """
    if importlib.util.find_spec("pytest_cov") is None:
        raise click.UsageError("the part coverage needs pytest-cov: pip install pytest-cov")
    package, target = Path(egno_md.__file__).parent, folder / "coverage.json"
    # A setting of coverage for the processes that tests start: 7.10 and newer.
    (folder / "rc").write_text(f"[run]\nsource = {package}\nbranch = true\npatch = subprocess\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", f"--cov-config={folder / 'rc'}"]
    # A test that fails because it is watched (its full disk takes the watcher's file as well) has entered its lines.
    subprocess.run([*command, "--cov", "--cov-report", f"json:{target}"], cwd=package.parent)
    if not target.exists():
        raise click.ClickException("the suite did not run to its end: see above")
    files: dict[str, list[int]] = {}
    for path, one in json.loads(target.read_text())["files"].items():
        total = one["summary"]
        names = ("num_statements", "covered_lines", "num_branches", "covered_branches")
        files[(package.parent / path).resolve().relative_to(package).as_posix()] = [total[name] for name in names]
    return {"files": files}
