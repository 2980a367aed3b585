"""Every number and every name that a user can give: a forecast, or one line, in bounded time and memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import scene
from .children import run

#: Values of options of `predict` beside a file that is read at once.
PREDICT = {
    "--horizon": ["0", "-1", "2000000000", "99999999999999999999", "nan", "1e9"],
    "--substeps": ["0", "-5", "1000000", "2000000000", "99999999999999999999"],
    "--samples": ["0", "-1", "2000000000", "99999999999999999999"],
    "--seed": ["-1", "99999999999999999999999"],
    "--every": ["0", "-1", "2000000000", "99999999999999999999"],
    "--from-frame": ["2000000000", "-2000000000", "99999999999999999999"],
    "--dt": ["0", "-1", "nan", "inf", "1e300", "1e-300"],
    "--select": ["", "index 0:999999999999", "\x01", "all " * 10000, "nosuch", "name \udcff"],
    "--device": ["nosuch", "cuda:99999", "meta", ""],
    "--precision": ["nosuch"],
    "--model": ["", "nosuch", "/", "\udcff", "x" * 5000, "/dev/zero"],
}

#: Values that matter to who draws futures, a free forecast for one, and reads the whole run.
DRAWN = {
    "--horizon": ["2000000000", "10000001"],
    "--substeps": ["1000000", "1000"],
    "--samples": ["2000000000", "99999999999999999999", "10001"],
    "--seed": ["-1", "99999999999999999999999"],
    "--every": ["2000000000", "99999999999999999999"],
    "--from-frames": ["", ":", "0:99999999999999999999", "1,2,99999999999999999999", "::0", "a", "5:1"],
    "--dt": ["1e300", "1e-300"],
}

#: And of `train`.
TRAIN = {
    "--hidden": ["0", "-1", "1000000000", "99999999999999999999"],
    "--layers": ["0", "-1", "1000000000", "99999999999999999999"],
    "--blocks": ["0", "-1", "1000000000", "99999999999999999999"],
    "--window": ["0", "-1", "1000000000", "99999999999999999999"],
    "--epochs": ["0", "-1", "99999999999999999999"],
    "--batch-size": ["0", "-1", "1000000000", "99999999999999999999"],
    "--epoch-windows": ["0", "-1", "1000000000000"],
    "--cutoff": ["0", "-1", "nan", "1e300"],
    "--stride": ["0", "-1", "nan", "inf", "1e300", "1e-300"],
    "--every": ["0", "-1", "2000000000", "99999999999999999999"],
    "--lr": ["0", "-1", "nan", "inf", "1e300"],
    "--seed": ["-1", "99999999999999999999999"],
    "--patience": ["-1", "99999999999999999999"],
    "--span": ["0", "-1", "1000000000", "99999999999999999999"],
    "--devices": ["0", "-1", "1000000"],
    "--nodes": ["0", "-1", "1000000"],
    "--device": ["nosuch", "cuda:99999"],
    "--operator": ["nosuch", "", "\x01"],
    "--init": ["", "nosuch", "/", "/dev/zero"],
    "--set": ["", "=", "a=b", "graph.cutoff", "graph.cutoff=", "graph.n_rbf=1000000000",
              "model.time_embedding=99999999999", "noise=nan", "model.hidden=1e9", "model=3", "x.y.z=1",
              "graph.max_neighbours=-1"],
    "--work": ["", "/proc/nosuch", "x" * 300, "\udcff"],
}  # fmt: skip

#: Names of an output.
OUTPUTS = ["", ".", "/", "x" * 300 + ".dcd", "a" * 250 + ".dcd", "caf\udce9.dcd", "\udcff.xtc", "a b\n.dcd", "-.dcd",
           "nosuch/out.dcd", "/proc/out.dcd", "/dev/full.dcd", "out.pdb", "out", "ü.xtc", ".dcd",
           "out.dcd/", "\x7f\x1b[31m.dcd"]  # fmt: skip


def numbers(folder: Path) -> dict[str, Any]:
    """Run all of them, each in a process of its own with the limits of :mod:`.children`."""
    u = scene.chain(30, frames=60)
    files = [scene.write(u, folder / "numbers.pdb"), scene.write(u, folder / "numbers.dcd")]
    model = scene.write_model(folder / "numbers.safetensors")
    rows: dict[str, dict[str, int]] = {}
    wrong: list[str] = []
    peak, slowest = 0, 0.0

    def judge(group: str, name: str, arguments: list) -> None:
        nonlocal peak, slowest
        here = folder / "numbers"
        here.mkdir(exist_ok=True)
        done = run(arguments, limited=True, before=lambda: os.chdir(here))
        kinds = rows.setdefault(group, {})
        # A forecast of 2e9 frames is begun, and is cut off here; what counts is that nothing grew meanwhile.
        endless = done.kind == "hang" and "horizon" in name and (here / "long.dcd").exists()
        kind = "forecast" if endless else done.kind
        kinds[kind] = kinds.get(kind, 0) + 1
        peak, slowest = max(peak, done.peak), max(slowest, 0.0 if endless else done.seconds)
        if kind not in ("forecast", "clean error"):
            last = [line for line in done.errors.splitlines() if line.strip()][-1:] or [""]
            wrong.append(f"{name}: {kind} ({done.code}, {done.seconds:.1f} s): {last[0][:200]}")

    common = [*files, "--model", model, "--device", "cpu"]
    drawn = [*files, "--model", "elastic network"]
    for group, first, table in (("predict, network", common, PREDICT), ("predict, free forecast", drawn, DRAWN)):
        for option, values in table.items():
            for value in values:
                more = [] if option == "--horizon" else ["--horizon", 2]
                given = [*first, *more, option, value]  # of an option that is given twice the second counts
                judge(group, f"{option} {value[:30]!r}", ["predict", *given, "-o", "long.dcd", "--force"])
    for name in OUTPUTS:
        judge("predict, names", f"-o {name[:30]!r}", ["predict", *common, "--horizon", 2, "-o", name, "--force"])
    small = ["--select", "all", "--window", 2, "--hidden", 8, "--layers", 1, "--cutoff", 5, "--epochs", 1]
    for option, values in TRAIN.items():
        for value in values:
            given = [*files, *small, "--set", "epoch_windows=8", option, value, "--force"]
            (folder / "numbers").mkdir(exist_ok=True)
            work = (
                []
                if option == "--work"
                else ["--work", f"work{len(wrong)}_{sum(sum(r.values()) for r in rows.values())}"]
            )
            judge("train, options", f"{option} {value[:30]!r}", ["train", *given, *work, "-o", "m.safetensors"])
    return {"groups": rows, "peak_MB": round(peak / 1e6), "slowest_s": round(slowest, 1), "wrong": wrong}
