"""The elastic network of proteins: what it is fitted to, and from what length of a run on its own forecasts are better.

    python -m benchmarks.of_proteins fit --data DIR      # writes egno_md/models/proteins.json
    python -m benchmarks.of_proteins judge --data DIR    # writes docs/performance/of_proteins.json and a table

Judged are pieces of runs, from anywhere in them and of several lengths, by the 8 frames that follow: 16 futures of the
forecast that is chosen without the network, and of the network, which for this is fitted to runs of other proteins.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import click
import MDAnalysis as mda
import numpy as np

from egno_md import EGNOSurrogate, sample
from egno_md.evaluation.calibration import energy_score
from egno_md.forecast.network import ElasticNetwork, Sample
from egno_md.hindcast import choose, proteins
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.geometry import aligned, rmsd

from .free_forecasts import SYSTEMS, halves
from .tables import kept, put

#: Runs in explicit water, with what may be said of them in the package.
PUBLISHED = {
    "ubiquitin, ca, 1 ps": "ubiquitin, 1 ns, a frame every ps: CCPBioSim/md-workshop, MIT",
    "bpti, ca, 10 ps": "BPTI, 5 ns, a frame every 10 ps: CCPBioSim/md-workshop, MIT",
}
#: Own run of a small protein in implicit solvent, in the package.
CHIGNOLIN = "chignolin, ca, 1 ps"
HEAVY = tuple(name.replace("ca,", "heavy,") for name in PUBLISHED)
#: Who the network is fitted to where a protein is judged; chignolin has the only other run with frames 1 ps apart.
OTHERS = {
    "ubiquitin, ca, 1 ps": ("bpti, ca, 10 ps", CHIGNOLIN),
    "bpti, ca, 10 ps": ("ubiquitin, ca, 1 ps",),
    CHIGNOLIN: tuple(PUBLISHED),
    "bpti, heavy, 10 ps": HEAVY[:1],
    "chignolin, heavy, 1 ps": HEAVY,
    "ala2, heavy, 75 ps": HEAVY,
}
LENGTHS, PLACES, AHEAD, SAMPLES = (1, 2, 5, 10, 20, 40, 80, 160, 320), 16, 8, 16
#: Those of heavy atoms, which take longer.
HEAVY_LENGTHS = (1, 5, 20, 80)
#: The longest pieces that two halves of a run have, where it is short or has gaps; or that there was time for.
LONGEST = {"ubiquitin, ca, 1 ps": 10, "bpti, ca, 10 ps": 160, "bpti, heavy, 10 ps": 20}
#: Spacings in ps that the network is offered for; eight strides are seen in its runs.
STRIDES = (1.0, 100.0)
ROOT = Path(__file__).parents[1]
TARGET = ROOT / "egno_md" / "models" / proteins.FILE
RESULTS, PAGE = ROOT / "docs" / "performance" / "of_proteins.json", ROOT / "docs" / "any_run.md"


def stretches(name: str, data: Path) -> tuple[mda.Universe, list[np.ndarray], float]:
    """Atoms, frames (F, N, 3) without a gap, and their spacing in ps."""
    of, select, _ = name.split(", ")
    if of == "chignolin":
        universe = mda.Universe(*map(str, sample("chignolin")))
        atoms = select_atoms(universe, select)
        return mda.Merge(atoms), [np.stack([atoms.positions.copy() for _ in universe.trajectory])], 1.0
    system = next(one for other, one in SYSTEMS.items() if other.startswith(of))._replace(select=select)
    runs = {id(part.run): part.run for part in halves(system, data)}.values()
    universe = mda.Universe(str(data / system.folder / system.topology))
    return mda.Merge(select_atoms(universe, select)), [np.asarray(run.positions) for run in runs], system.stride_ps


def fitted(names: tuple[str, ...], data: Path) -> ElasticNetwork:
    """A network of some runs."""
    samples = [Sample(frames, spacing) for _, frames, spacing in (stretches(name, data) for name in names)]
    longest = AHEAD * STRIDES[1]
    lags = [np.round(np.geomspace(s, longest, 24) / s).clip(1) * s for s in {one.spacing for one in samples}]
    return ElasticNetwork.fit(samples, np.unique(np.concatenate(lags)))


@click.group()
def main() -> None:
    """The elastic network of proteins."""


DATA = click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with md/.")


@main.command()
@DATA
def fit(data: Path) -> None:
    """Fit it to the published runs, and write its numbers into the package."""
    numbers = {
        kind: {
            name: json.loads(json.dumps(value.tolist()), parse_float=lambda x: float(f"{float(x):.5g}"))
            for name, value in fitted(names, data).arrays().items()
        }
        for kind, names in (("ca", tuple(PUBLISHED)), ("heavy", HEAVY))
    }
    said = {"strides_ps": STRIDES, "fitted_to": list(PUBLISHED.values()), "numbers": numbers}
    TARGET.write_text(json.dumps(said) + "\n")


def judged(name: str, length: int, data: Path) -> dict[str, Any]:
    """Energy scores of the choice, the network and the standing frame, means over pieces of a run."""
    universe, frames, spacing = stretches(name, data)
    numbers = {key: value.tolist() for key, value in fitted(OTHERS[name], data).arrays().items()}
    kind = name.split(", ")[1]
    places = [(x, k) for x in frames for k in range(len(x) - length - AHEAD + 1)]
    places = [places[k] for k in np.unique(np.linspace(0, len(places) - 1, PLACES).astype(int))] if places else []
    scores: dict[str, list[float]] = {
        "chosen without it": [],
        "network": [],
        "chosen with it": [],
        "standing frame": [],
    }
    spread, error, who = [], [], []
    with mock.patch.object(proteins, "content", lambda: {"strides_ps": STRIDES, "numbers": {kind: numbers}}):
        for x, k in places:
            universe.load_new(x[k : k + length], dt=spacing)
            true = x[k + length : k + length + AHEAD]
            start = x[k + length - 1]
            ways: dict[str, Any] = {"network": proteins.NAME, "chosen with it": None}
            if length > 1:
                with mock.patch.object(choose.OfProteins, "of", lambda subject, stride_ps: None):
                    scores["chosen without it"].append(_score(universe, None, start, true)[0])
            for way, model in ways.items():
                found, futures, chosen = _score(universe, model, start, true)
                scores[way].append(found)
                if way == "network":
                    spread.append(futures.var(axis=0, ddof=1).mean())
                    error.append(np.mean((futures.mean(axis=0) - aligned(true, start)) ** 2))
                else:
                    who.append(chosen)
            still = rmsd(aligned(start[None], start), aligned(true, start))
            scores["standing frame"].append(float(still.mean()))
    return {
        "pieces": len(places),
        **{way: float(np.mean(values)) if values else None for way, values in scores.items()},
        "spread_over_error": float(np.sqrt(np.mean(spread) * (1 + 1 / SAMPLES) / np.mean(error))) if spread else None,
        "network_taken": float(np.mean([one == proteins.NAME for one in who])) if who else None,
    }


def _score(
    universe: mda.Universe, model: str | None, start: np.ndarray, true: np.ndarray
) -> tuple[float, np.ndarray, str]:
    """Energy score of 16 futures or, of who knows one, its RMSD, superposed on the start; the futures; and who."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        surrogate = EGNOSurrogate(universe, model, select="all", horizon=AHEAD).run()
        who, true = surrogate.engine.name, aligned(true, start)
        if not surrogate.engine.draws:
            path = aligned(np.asarray(surrogate.results.positions[0], float), start)
            return float(rmsd(path, true).mean()), path[None], who
        ensemble = EGNOSurrogate(universe, who, select="all", horizon=AHEAD, samples=SAMPLES).run().results.ensemble[0]
    futures = aligned(np.asarray(ensemble, float), start)  # (K, T, N, 3)
    return float(energy_score(futures[None], true[None])[0, :-1].mean()), futures, who


HEAD = (
    "| frames of the run before the forecast | run | pieces | chosen without the network (A) | the network (A) | "
    "chosen with it (A) | how often the network | standing frame (A) | spread over error of the network |"
)


def _row(name: str, row: dict[str, Any]) -> str:
    system, length = name.rsplit(": ", 1)
    without, network, chosen, still = (
        "" if row[way] is None else f"{row[way]:.2f}"
        for way in ("chosen without it", "network", "chosen with it", "standing frame")
    )
    return (
        f"| {length} | {system} | {row['pieces']} | {without} | {network} | {chosen} | {row['network_taken']:.0%} | "
        f"{still} | {row['spread_over_error']:.2f} |"
    )


@main.command()
@DATA
@click.option("--json", "target", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--page", type=click.Path(path_type=Path), default=PAGE)
@click.option("--only", default="", help="Names with this in them.")
def judge(data: Path, target: Path, page: Path, only: str) -> None:
    """Judge pieces of runs, and write the table."""
    cases = [
        (f"{name}: {length}", lambda name=name, length=length: judged(name, length, data))
        for name in OTHERS
        for length in (HEAVY_LENGTHS if "heavy" in name else LENGTHS)
        if length <= LONGEST.get(name, max(LENGTHS))
    ]
    results = kept(target, cases, _row, only)
    put(page, HEAD, [_row(*case) for case in sorted(results.items(), key=lambda case: int(case[0].rsplit(" ", 1)[1]))])


if __name__ == "__main__":
    main()
