"""Forecast the bundled run from a frame inside it, and see what the forecast is worth.

    python extend_run.py [FOLDER] [--from-frame N] [--horizon N] [--force]

Writes into FOLDER (by default the current one) forecast.dcd and forecast.pdb, the run up to the start frame followed
by the forecast, and forecast.png, RMSD against time, where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import MDAnalysis as mda

from egno_md import EGNOSurrogate, sample
from egno_md.errors import EGNOError


def plot(times, forecast, static, target: Path) -> None:
    """Save the two mean RMSDs (Angstrom) against time (ps)."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axes.plot(times, static, "o--", color="0.5", label="start frame standing still")
    axes.plot(times, forecast, "o-", label="forecast")
    axes.set(xlabel="time after the start frame (ps)", ylabel="RMSD to the run (Å)", ylim=(0, None))
    axes.legend()
    figure.savefig(target, dpi=150)
    print(f"written {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("."))
    parser.add_argument("--from-frame", type=int, help="start frame; by default the middle of the run")
    parser.add_argument("--horizon", type=int, default=24, help="frames to predict; past the model's window they chain")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    options = parser.parse_args()

    universe = mda.Universe(*map(str, sample()))
    n_frames = universe.trajectory.n_frames
    start = n_frames // 2 if options.from_frame is None else options.from_frame

    # One forecast, to be looked at in a viewer.
    surrogate = EGNOSurrogate(universe, horizon=options.horizon).run(frames=[start])
    options.folder.mkdir(parents=True, exist_ok=True)
    for path in surrogate.write(options.folder / "forecast.dcd", with_input=True, force=options.force):
        print(f"written {path}")
    for message in surrogate.results.checks[0].messages or ("nothing found",):
        print(f"checks: {message}")

    # Many starts, because a single one says little: the mean error at each time after the start. The first frame has
    # no past, and the last ones have no future to compare with. Of all guesses the mean of the futures errs least.
    many = EGNOSurrogate(universe, horizon=options.horizon, mean=True).run(
        start=1, stop=n_frames - options.horizon, step=4
    )
    if not many.n_frames:
        sys.exit(f"the run has {n_frames} frames, too few to compare a forecast of {options.horizon}")
    times = many.results.times[0] - many.start_times[0]  # (horizon,)
    forecast = many.results.rmsd.mean(axis=0)  # (horizon,)
    static = many.results.rmsd_static.mean(axis=0)  # (horizon,)
    print(f"mean RMSD to the run over {many.n_frames} starts, in Angstrom")
    print("time/ps  forecast  start frame")
    for t, model, still in zip(times, forecast, static, strict=True):
        print(f"{t:7.1f}  {model:8.3f}  {still:11.3f}")
    plot(times, forecast, static, options.folder / "forecast.png")


if __name__ == "__main__":
    try:
        main()
    except EGNOError as error:
        sys.exit(f"error: {error}")
