"""What a command costs from a cold start: time, CPU time and memory of whole processes, medians.

    python -m benchmarks.start [--before FOLDER] [--repeats 5]

FOLDER holds another version of egno_md, which is measured in turn with this one. POSIX only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import egno_md

HERE = Path(egno_md.__file__).parents[1]
SAMPLE = [str(path) for path in egno_md.sample()]
COMMANDS = {
    "predict, the bundled sample": ["predict", *SAMPLE, "-o", "out.dcd"],
    "models": ["models"],
    "info ca-1ps": ["info", "ca-1ps"],
    "--version": ["--version"],
    "suggest --help": ["suggest", "--help"],
}
#: What no forecast can do without.
IMPORTS = ["-c", "import torch, MDAnalysis"]


def measured(arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and MB of one process; `folder` has the package that it imports."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as work:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=work,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return seconds, usage.ru_utime + usage.ru_stime, kilobytes / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="folder that holds another version of egno_md")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    versions = {"before": options.before, "now": HERE} if options.before else {"now": HERE}
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for _ in range(options.repeats):
        found.setdefault(("imports of torch and MDAnalysis", ""), []).append(measured(IMPORTS, HERE))
        for name, arguments in COMMANDS.items():
            for version, folder in versions.items():
                runs = found.setdefault((name, version), [])
                runs.append(measured(["-m", "egno_md", *arguments], folder))
    print(f"{'':<40} {'wall s':>8} {'CPU s':>8} {'MB':>6}")
    for (name, version), runs in found.items():
        wall, cpu, memory = map(statistics.median, zip(*runs, strict=True))
        print(f"{name:<32} {version:<7} {wall:>8.2f} {cpu:>8.2f} {memory:>6.0f}")


if __name__ == "__main__":
    main()
