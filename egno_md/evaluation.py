"""What a forecast is worth: errors beside the baselines, and whether long chains look like the run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from MDAnalysis import AtomGroup, Universe
from MDAnalysis.lib.distances import calc_dihedrals
from numpy.typing import NDArray

from .checkpoint import Model, load_model
from .checks import check_frames
from .errors import DataError, ModelError, UsageError
from .forecast import check_request, forecast, forecast_times, restored
from .graph import GraphBuilder, select_atoms
from .metrics import (
    InternalMotion,
    aligned,
    autocorrelation,
    baselines,
    block_bootstrap,
    independent_blocks,
    integrated_time,
    jensen_shannon,
    relaxation_time,
    skill,
    squared_errors,
)
from .trajectory import frame_spacing, open_universe
from .windows import Run, frames_back, read_runs

#: Fewer independent blocks than this give no interval.
MIN_BLOCKS = 4
#: Share of the bootstrap's resamples outside the interval.
OUTSIDE = 0.05
#: A bond this far from its mean in the run is off, Angstrom.
BOND_OFF = 0.05
#: Frames whose clashes and handedness are checked, at most; cells of a turn in torsion histograms.
CHECKED_FRAMES, TORSION_CELLS = 500, 24
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Part:
    """Windows of one run, to be judged together with those of other parts.

    Attributes
    ----------
    run : Run
    starts : ndarray of int
        Start frames, increasing.
    motion : InternalMotion
        For the baselines; fitted on other frames than those that the windows predict.
    """

    run: Run
    starts: np.ndarray
    motion: InternalMotion


@dataclass(frozen=True)
class Ensemble:
    """What a set of frames looks like; times in ps, lengths in Angstrom."""

    n_frames: int
    bonds: NDArray[np.float64]
    """Mean length of every bond (B,); for C-alpha atoms the links of the chain."""
    bond_range: tuple[float, float]
    """Shortest and longest bond of all frames; nan without bonds."""
    bonds_off: float
    """Share of bond lengths further than 0.05 A from that bond's mean in the run."""
    clashes: float
    """Share of frames with a clash."""
    mirrored: float
    """Share of frames with a chiral centre turned over, or nearer to the mirror image of the run's first frame."""
    radius: NDArray[np.float64]
    """Radius of gyration of every frame (F,), all atoms of one weight."""
    rmsf: NDArray[np.float64]
    """Of every atom (N,), superposed on the run's mean structure."""
    torsions: NDArray[np.float64]
    """Radians, (F, K)."""
    torsion_spread: NDArray[np.float64]
    """Circular variance of every torsion (K,): 0 stands still, 1 is everywhere."""
    relaxation: float
    """Time in which the autocorrelation of the internal displacements falls to 1/e; nan if it does not."""
    radius_relaxation: float
    """The same of the radius of gyration."""


@dataclass(frozen=True)
class Quality:
    """Long chains beside the run, and beside both the difference between the halves of the run.

    Attributes
    ----------
    chains, run, floor : Ensemble
        All frames of the chains; the first half of the run; its second half, thinned to as many frames as the chains
        have. What the chains differ from the run is to be read beside what the floor differs from it.
    n_chains, chain_length : int
    torsion_kind : str
        ``"phi/psi"``, ``"virtual"`` (four C-alpha atoms in a row) or ``""``.
    torsion_names : tuple of str
        One per column of `torsions`.
    """

    chains: Ensemble
    run: Ensemble
    floor: Ensemble
    n_chains: int
    chain_length: int
    torsion_kind: str
    torsion_names: tuple[str, ...]

    def rmsf_correlation(self, ensemble: Ensemble) -> float:
        """Pearson correlation over the atoms with the RMSF of the run; nan where one of them is the same for all."""
        a, b = ensemble.rmsf, self.run.rmsf
        if min(a.std(), b.std()) < 1e-9:
            return float("nan")
        return float(np.corrcoef(a, b)[0, 1])

    def rmsf_ratio(self, ensemble: Ensemble) -> float:
        """Mean RMSF over that of the run; below 1 the motion is too small."""
        return float(ensemble.rmsf.mean() / self.run.rmsf.mean())

    def torsion_divergence(self, ensemble: Ensemble) -> float:
        """Jensen-Shannon divergence from the run in nats: the mean over residues (phi/psi) or torsions."""
        if not self.torsion_names:
            return float("nan")
        pairs = zip(self._histograms(ensemble), self._histograms(self.run), strict=True)
        return float(np.mean([jensen_shannon(*pair) for pair in pairs]))

    def _histograms(self, ensemble: Ensemble) -> list[np.ndarray]:
        angles = ensemble.torsions
        edges = np.linspace(-np.pi, np.pi, TORSION_CELLS + 1)
        if self.torsion_kind == "virtual":
            return [np.histogram(column, edges)[0] for column in angles.T]
        pairs = zip(angles.T[::2], angles.T[1::2], strict=True)
        return [np.histogram2d(phi, psi, (edges, edges))[0] for phi, psi in pairs]

    def rows(self) -> list[tuple[str, float, float, float]]:
        """Name, value of the chains, of the run and of the floor, for a table."""
        three = (self.chains, self.run, self.floor)
        out: list[tuple[str, float, float, float]] = []

        def add(name: str, value: Callable[[Ensemble], float], *, against_run: bool = False) -> None:
            values = [float(value(e)) for e in three]
            if against_run:
                values[1] = float("nan")
            out.append((name, *values))

        if len(self.run.bonds):
            add("bond length, mean (A)", lambda e: e.bonds.mean())
            add("bond length, shortest (A)", lambda e: e.bond_range[0])
            add("bond length, longest (A)", lambda e: e.bond_range[1])
            add(f"bonds off by {BOND_OFF} A, share", lambda e: e.bonds_off)
        add("frames with a clash, share", lambda e: e.clashes)
        add("mirrored frames, share", lambda e: e.mirrored)
        add("radius of gyration, mean (A)", lambda e: e.radius.mean())
        add("radius of gyration, spread (A)", lambda e: e.radius.std())
        add("RMSF, mean (A)", lambda e: e.rmsf.mean())
        add("RMSF, ratio to the run", self.rmsf_ratio, against_run=True)
        add("RMSF, correlation with the run", self.rmsf_correlation, against_run=True)
        if self.torsion_names:
            add(f"torsions ({self.torsion_kind}), divergence (nats)", self.torsion_divergence, against_run=True)
            add("torsions, circular spread", lambda e: e.torsion_spread.mean())
        add("memory of the internal motion (ps)", lambda e: e.relaxation)
        add("memory of the radius (ps)", lambda e: e.radius_relaxation)
        return out


@dataclass(frozen=True)
class Evaluation:
    """Errors of a model beside those of the baselines; Angstrom squared and ps.

    Attributes
    ----------
    model : str
        Its name.
    times : ndarray, shape (T,)
        ps after the start.
    errors : dict of str to ndarray (T,)
        Mean squared error per coordinate at every step: ``"model"`` and the baselines ``"static"``, ``"linear"``,
        ``"mean structure"`` and ``"AR(1)"``.
    intervals : dict of str to ndarray (T, 2)
        95 % intervals of the errors; nan where the data hold fewer than four independent blocks.
    skill : ndarray, shape (T,)
        ``1 - error / error of the best baseline`` at every step.
    skill_interval : ndarray, shape (T, 2)
        From the same resamples for model and baselines; the best baseline is chosen anew in each of them.
    f_skill, a_skill : tuple of float
        Skill of F-MSE and A-MSE with the ends of its interval.
    n_windows, n_runs, n_atoms : int
        What was judged; `n_atoms` of the largest system.
    block : int
        Windows per block of the bootstrap.
    n_blocks : int
        Independent blocks in the data.
    quality : Quality, optional
        Of chains, if any were asked for.
    as_predicted : ndarray, shape (T,), optional
        Errors of the model's frames before they are brought back to a local geometry (``ModelSpec.keep_bonds``), where
        the steps are those of one window: what physical frames cost.
    prior : ndarray, shape (T,), optional
        Errors of the regression alone that the model corrects (``ModelSpec.prior``), for the steps of one window.
    notes : tuple of str
        What to know before the numbers are believed.
    """

    model: str
    times: NDArray[np.float64]
    errors: dict[str, NDArray[np.float64]]
    intervals: dict[str, NDArray[np.float64]]
    skill: NDArray[np.float64]
    skill_interval: NDArray[np.float64]
    f_skill: tuple[float, float, float]
    a_skill: tuple[float, float, float]
    n_windows: int
    n_runs: int
    n_atoms: int
    block: int
    n_blocks: int
    quality: Quality | None = None
    as_predicted: NDArray[np.float64] | None = None
    prior: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def f_mse(self) -> dict[str, float]:
        """Error at the last step, of the model and of every baseline."""
        return {name: float(e[-1]) for name, e in self.errors.items()}

    @property
    def a_mse(self) -> dict[str, float]:
        """Mean error of all steps."""
        return {name: float(e.mean()) for name, e in self.errors.items()}

    @property
    def best_baseline(self) -> list[str]:
        """The best baseline at every step."""
        names = [name for name in self.errors if name != "model"]
        return [names[int(k)] for k in np.argmin([self.errors[name] for name in names], axis=0)]

    @property
    def verdict(self) -> str:
        """One sentence: is the forecast better than what is there for nothing?"""
        n = len(self.times)
        if np.isnan(self.skill_interval).any():
            better = int((self.skill > 0).sum())
            return (
                f"better than every baseline at {better} of {n} steps, but the data are too few for an interval: "
                f"{self.n_blocks} independent block(s), {MIN_BLOCKS} are needed"
            )
        sure = self.skill_interval[:, 0] > 0
        if sure.all():
            return "better than every baseline at every step, beyond the interval"
        worse = ", ".join(f"{t:g}" for t in self.times[~sure])
        return f"better than every baseline at {sure.sum()} of {n} steps; not beyond the interval at t/ps = {worse}"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; not a number is None."""
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "quality"}
        out.update(f_mse=self.f_mse, a_mse=self.a_mse, best_baseline=self.best_baseline, verdict=self.verdict)
        out["quality"] = None
        if self.quality is not None:
            out["quality"] = {
                "n_chains": self.quality.n_chains,
                "chain_length": self.quality.chain_length,
                "rows": {name: dict(chains=a, run=b, floor=c) for name, a, b, c in self.quality.rows()},
            }
        return _plain(out)

    def table(self) -> str:
        """For people."""
        names = list(self.errors)
        lines = [
            f"model      {self.model}",
            f"data       {self.n_windows} windows of {self.n_runs} run(s), up to {self.n_atoms} atoms; "
            f"{self.n_blocks} independent block(s) of {self.block} windows",
            "error      mean squared, per coordinate, A^2 (95 % interval); nothing is superposed",
            "",
            f"{'t/ps':>8}  {'model':>26}" + "".join(f"{name:>16}" for name in names[1:]) + f"{'skill':>27}",
        ]
        for k, t in enumerate(self.times):
            low, high = self.intervals["model"][k]
            row = f"{t:>8g}  {self.errors['model'][k]:>9.4f}{_interval(low, high, '.4f'):>17}"
            row += "".join(f"{self.errors[name][k]:>16.4f}" for name in names[1:])
            lines.append(row + _percent(self.skill[k], *self.skill_interval[k]))
        for label, values, gain in (("F-MSE", self.f_mse, self.f_skill), ("A-MSE", self.a_mse, self.a_skill)):
            row = f"{label:>8}  {values['model']:>9.4f}{'':>17}"
            lines.append(row + "".join(f"{values[name]:>16.4f}" for name in names[1:]) + _percent(*gain))
        lines += ["", f"verdict    {self.verdict}"]
        if self.as_predicted is not None:
            lines.append(
                f"geometry   brought back in every frame: A-MSE {self.a_mse['model']:.4f}, as predicted "
                f"{self.as_predicted.mean():.4f}"
            )
        if self.prior is not None:
            lines.append(
                f"prior      the regression that the operator corrects: A-MSE {self.prior.mean():.4f} by itself"
            )
        if self.quality is not None:
            q = self.quality
            lines += [
                "",
                f"chains     {q.n_chains} of {q.chain_length} frames; floor: second half of the run beside its first",
                f"{'':<42}{'chains':>12}{'run':>12}{'floor':>12}",
                *(
                    f"{name:<42}" + "".join(f"{'-' if np.isnan(v) else format(v, '.3f'):>12}" for v in values)
                    for name, *values in q.rows()
                ),
            ]
        return "\n".join(lines + [f"note       {note}" for note in self.notes])


def _interval(low: float, high: float, how: str) -> str:
    return "" if np.isnan(low) else f"[{low:{how}}, {high:{how}}]"


def _percent(value: float, low: float, high: float) -> str:
    return f"{value:>+10.1%}" + (f"{'':>17}" if np.isnan(low) else f"{f'[{low:+.1%}, {high:+.1%}]':>17}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


# -------------------------------------------------------------------------------------------------------------- errors


def score(
    model: Model,
    parts: Sequence[Part],
    *,
    horizon: int | None = None,
    max_windows: int = 2000,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Forecast from every window and compare with what came.

    Parameters
    ----------
    model : Model
    parts : sequence of Part
        Every window counts the same.
    horizon : int, optional
        Predicted frames; the model's window when None. The starts must leave room for them.
    max_windows : int
        Of more, evenly spread ones are judged.
    seed : int
        Of the bootstrap.
    device : str
    progress : callable, optional
        Called with the number of frames just predicted.

    Raises
    ------
    DataError
        No window.
    ModelError
        See :func:`egno_md.forecast.forecast`.
    """
    window = model.window
    horizon = window.n_times if horizon is None else horizon
    check_request(model, horizon, 1)
    times = forecast_times(model, horizon)
    steps = np.round(times / window.stride_ps).astype(int)  # (T,) strides
    total = sum(len(part.starts) for part in parts)
    if total == 0:
        raise DataError("there is no window to evaluate")
    thin = -(-total // max_windows)
    one_window = horizon <= window.n_times and model.spec.keep_bonds
    bare = dataclasses.replace(model, spec=model.spec.model_copy(update={"keep_bonds": False})) if one_window else model
    errors: dict[str, list[np.ndarray]] = {}
    as_predicted: list[np.ndarray] = []
    prior: list[np.ndarray] = []
    groups, spacings = [], []
    for group, part in enumerate(parts):
        run, starts = part.run, np.asarray(part.starts)[::thin]
        groups += [group] * len(starts)
        spacings += list(np.diff(starts))
        chunk = max(1, _CHUNK_BYTES // (8 * 3 * run.builder.n_atoms * (horizon + window.n_times)))
        for first in range(0, len(starts), chunk):
            some = starts[first : first + chunk]
            past = some[:, None] + np.arange(-frames_back(window), 1) * run.every  # (S, n_input)
            history = np.asarray(run.positions[past], np.float32)  # (S, n_input, N, 3)
            predicted = forecast(
                bare,
                run.builder,
                history,
                horizon,
                boxes=None if run.boxes is None else list(run.boxes[some]),
                device=device,
                progress=progress,
            )  # (S, T, N, 3)
            true = run.positions[some[:, None] + steps * run.every]  # (S, T, N, 3)
            start = history[:, -1].astype(np.float64)  # (S, N, 3)
            if one_window:
                as_predicted.append(squared_errors(predicted, true))  # (S, T)
                predicted = restored(model, run.builder, predicted.astype(np.float64), start[:, None])
            if model.spec.prior == "regression" and horizon <= window.n_times:
                path = model.regression[run.builder.identity].path(start, start - history[:, -2], steps)
                prior.append(squared_errors(path, true))  # (S, T)
            paths = baselines(start, start - history[:, -2], steps, part.motion)
            for name, path in {"model": predicted, **paths}.items():
                errors.setdefault(name, []).append(squared_errors(path, true))  # (S, T)
    names = list(errors)
    values = np.stack([np.concatenate(errors[name]) for name in names], axis=1)  # (S, K, T)
    group_of = np.asarray(groups)
    every = parts[0].run.every
    between = float(np.median(spacings)) if spacings else 1.0  # frames between two windows
    length = int(np.ceil((frames_back(window) + steps[-1]) * every / between))
    memory = integrated_time([values[group_of == g, 0].mean(axis=1) for g in np.unique(group_of)])
    block = max(1, length + int(np.ceil(memory)))
    n_blocks = independent_blocks(group_of, block)
    mean = values.mean(axis=0)  # (K, T)
    with_last = np.concatenate([mean, mean.mean(axis=1, keepdims=True)], axis=1)  # (K, T + 1): the A-MSE comes last
    gain = skill(with_last[0], with_last[1:])  # (T + 1,)
    low_high = np.full((2, len(names), horizon), np.nan)
    gain_range = np.full((2, horizon + 1), np.nan)
    if n_blocks >= MIN_BLOCKS:
        drawn = block_bootstrap(values, group_of, block, seed=seed)  # (R, K, T)
        drawn = np.concatenate([drawn, drawn.mean(axis=2, keepdims=True)], axis=2)  # (R, K, T + 1)
        ends = [OUTSIDE / 2, 1 - OUTSIDE / 2]
        low_high = np.quantile(drawn[..., :-1], ends, axis=0)
        gain_range = np.quantile(skill(drawn[:, 0], drawn[:, 1:].swapaxes(0, 1)), ends, axis=0)
    return Evaluation(
        model=model.name,
        times=times,
        errors={name: mean[k] for k, name in enumerate(names)},
        intervals={name: low_high[:, k].T for k, name in enumerate(names)},
        skill=gain[:-1],
        skill_interval=gain_range[:, :-1].T,
        f_skill=(float(gain[-2]), *gain_range[:, -2].tolist()),
        a_skill=(float(gain[-1]), *gain_range[:, -1].tolist()),
        n_windows=len(values),
        n_runs=len({id(part.run) for part in parts}),
        n_atoms=max(part.run.builder.n_atoms for part in parts),
        block=block,
        n_blocks=n_blocks,
        as_predicted=np.concatenate(as_predicted).mean(axis=0) if as_predicted else None,
        prior=np.concatenate(prior).mean(axis=0) if prior else None,
    )


def half_parts(runs: Sequence[Run], model: Model, horizon: int) -> list[Part]:
    """Every window of some runs of one system, those of either half with the baselines of the other half.

    The halves are those of all frames in order, so that no baseline has seen what it predicts and no window is lost
    but those across the middle.

    Raises
    ------
    DataError
        A half without a window.
    """
    window = model.window
    ahead = max(int(round(forecast_times(model, horizon)[-1] / window.stride_ps)), window.velocity == "forward")
    total = sum(len(run.positions) for run in runs)
    halves: list[list[tuple[Run, int, int]]] = [[], []]
    before = 0
    for run in runs:
        n = len(run.positions)
        middle = int(np.clip(total // 2 - before, 0, n))
        for half, low, high in ((0, 0, middle), (1, middle, n)):
            if high > low:
                halves[half].append((run, low, high))
        before += n
    parts = []
    for half, other in ((0, 1), (1, 0)):
        chosen = []
        for run, low, high in halves[half]:
            first, last = low + frames_back(window) * run.every, high - ahead * run.every
            if last > first:
                chosen.append((run, np.arange(first, last)))
        if not chosen or not any(hi - lo > run.every for run, lo, hi in halves[other]):
            need = 2 * ((frames_back(window) + ahead) * runs[0].every + 1)
            raise DataError(
                f"{total} frames are too few to evaluate {horizon} predicted frame(s): each half needs a window, "
                f"{need} frames in all; use a longer run or a shorter horizon"
            )
        motion = InternalMotion.fit([r.positions[lo:hi] for r, lo, hi in halves[other]], runs[0].every)
        parts += [Part(run, starts, motion) for run, starts in chosen]
    return parts


# ------------------------------------------------------------------------------------------------------------- quality


def backbone_torsions(builder: GraphBuilder) -> tuple[str, list[str], NDArray[np.int64]]:
    """The torsions of the backbone that a selection holds.

    Returns
    -------
    kind : str
        ``"phi/psi"`` where the atoms of both are there, ``"virtual"`` for one atom per residue along a chain, else "".
    names : list of str
        For phi/psi: phi and psi of each residue that has both, in turn.
    quadruples : ndarray, shape (K, 4)
        Indices into the selection.
    """
    atoms = builder.atoms
    neighbours: list[list[int]] = [[] for _ in range(len(atoms))]
    for i, j in builder.bonds.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    labels, residues = list(atoms.names), atoms.resindices

    def next_to(i: int, name: str, same: bool) -> int | None:
        found = [j for j in neighbours[i] if labels[j] == name and (residues[j] == residues[i]) == same]
        return found[0] if found else None

    names: list[str] = []
    rows: list[list[int]] = []
    for ca in np.flatnonzero(atoms.names == "CA").tolist():
        n, c = next_to(ca, "N", True), next_to(ca, "C", True)
        before = None if n is None else next_to(n, "C", False)
        after = None if c is None else next_to(c, "N", False)
        if before is not None and after is not None:
            rows += [[before, n, ca, c], [n, ca, c, after]]
            names += [f"{kind} {atoms[ca].resname} {atoms[ca].resid}" for kind in ("phi", "psi")]
    if rows:
        return "phi/psi", names, np.asarray(rows)
    if len(atoms) and len(np.unique(residues)) == len(atoms):
        linked = set(map(tuple, builder.bonds.tolist()))
        rows = [[i, i + 1, i + 2, i + 3] for i in range(len(atoms) - 3)]
        rows = [row for row in rows if all((a, a + 1) in linked for a in row[:3])]
        return "virtual" if rows else "", [f"{atoms[r[1]].resid}-{atoms[r[2]].resid}" for r in rows], np.asarray(rows)
    return "", [], np.zeros((0, 4), int)


def quality(
    builder: GraphBuilder, chains: Sequence[np.ndarray], runs: Sequence[np.ndarray], stride_ps: float
) -> Quality:
    """Compare chains with a run of the same atoms.

    Parameters
    ----------
    builder : GraphBuilder
        Of these atoms: its bonds are used.
    chains : sequence of ndarray, shape (F, N, 3)
        Angstrom, a stride apart: chained forecasts, one after the other or sampled from the same start.
    runs : sequence of ndarray, shape (F', N, 3)
        The run, a stride apart, in parts without a gap.
    stride_ps : float

    Raises
    ------
    DataError
        The run has fewer than four frames.
    """
    total = sum(len(x) for x in runs)
    if total < 4:
        raise DataError(f"chains need a run of at least 4 strides to be compared with, found {total}")
    halves: list[list[np.ndarray]] = [[], []]
    before = 0
    for x in runs:
        middle = int(np.clip(total // 2 - before, 0, len(x)))
        for half, some in zip(halves, (x[:middle], x[middle:]), strict=True):
            if len(some):
                half.append(some)
        before += len(x)
    first = np.concatenate(halves[0])
    motion = InternalMotion.fit([first if len(halves[0]) == 1 else x for x in halves[0] if len(x) > 1] or [first])
    lengths = _lengths(first, builder.bonds).mean(axis=0)  # (B,)
    kind, names, quadruples = backbone_torsions(builder)
    n_frames = sum(len(x) for x in chains)
    describe = _Describe(builder, motion.mean, first[0], lengths, quadruples, stride_ps)
    return Quality(
        chains=describe(chains),
        run=describe(halves[0]),
        floor=describe(halves[1], n_frames),
        n_chains=len(chains),
        chain_length=max(len(x) for x in chains),
        torsion_kind=kind,
        torsion_names=tuple(names),
    )


@dataclass(frozen=True)
class _Describe:
    builder: GraphBuilder
    mean: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    quadruples: np.ndarray
    stride_ps: float

    def __call__(self, parts: Sequence[np.ndarray], at_most: int | None = None) -> Ensemble:
        """Everything of some frames; what is no matter of time from at most so many of them."""
        bonds = self.builder.bonds
        parts = [np.asarray(x, np.float64) for x in parts]
        radii = [np.sqrt(((x - x.mean(axis=1, keepdims=True)) ** 2).sum(-1).mean(-1)) for x in parts]  # (F,)
        fitted = [aligned(x, self.mean) for x in parts]  # (F, N, 3)
        middle = np.concatenate(fitted).mean(axis=0)  # (N, 3)
        memory = _mean_correlation([x - middle for x in fitted])
        radius = np.concatenate(radii)
        radius_memory = _mean_correlation([r - radius.mean() for r in radii])
        everything = np.concatenate(parts)
        chosen = slice(None, None, max(1, -(-len(everything) // (at_most or len(everything)))))
        frames, fit = everything[chosen], np.concatenate(fitted)[chosen]  # (F, N, 3)
        lengths = _lengths(frames, bonds)  # (F, B)
        angles = _torsions(frames, self.quadruples)  # (F, K)
        checks = check_frames(frames[:: -(-len(frames) // CHECKED_FRAMES)], self.first, bonds)
        turned = checks.flipped > 0 if checks.n_centres else checks.handedness < 0
        return Ensemble(
            n_frames=len(frames),
            bonds=lengths.mean(axis=0),
            bond_range=(float(lengths.min()), float(lengths.max())) if len(bonds) else (np.nan, np.nan),
            bonds_off=float((np.abs(lengths - self.lengths) > BOND_OFF).mean()) if len(bonds) else 0.0,
            clashes=float((checks.clashes > 0).mean()),
            mirrored=float(turned.mean()),
            radius=radius[chosen],
            rmsf=np.sqrt(((fit - fit.mean(axis=0)) ** 2).sum(-1).mean(0)),
            torsions=angles,
            torsion_spread=1 - np.abs(np.exp(1j * angles).mean(axis=0)),
            relaxation=relaxation_time(memory) * self.stride_ps,
            radius_relaxation=relaxation_time(radius_memory) * self.stride_ps,
        )


def _lengths(frames: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    return np.linalg.norm(frames[:, bonds[:, 0]] - frames[:, bonds[:, 1]], axis=-1)  # (F, B)


def _torsions(frames: np.ndarray, quadruples: np.ndarray) -> np.ndarray:
    if not len(quadruples):
        return np.zeros((len(frames), 0))
    corners = [np.ascontiguousarray(frames[:, q].reshape(-1, 3), np.float32) for q in quadruples.T]
    return calc_dihedrals(*corners).reshape(len(frames), -1)  # (F, K)


def _mean_correlation(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Autocorrelation averaged over parts, up to half of the longest."""
    longest = max(len(x) for x in parts)
    same = [x for x in parts if len(x) >= max(2, longest // 2)]
    if not same or all(np.allclose(x, 0, atol=1e-9) for x in same):
        return np.ones(1)
    power = [float(np.mean(x**2)) for x in same]
    lag = min(len(x) for x in same) // 2
    return np.sum([p * autocorrelation(x, lag) for p, x in zip(power, same, strict=True)], axis=0) / np.sum(power)


# ------------------------------------------------------------------------------------------------------------ evaluate


def open_sources(source: Any, trajectories: Sequence[str | os.PathLike], dt: float | None = None) -> list[AtomGroup]:
    """All atoms of each run: one for a Universe or an AtomGroup, one for each file."""
    if isinstance(source, (Universe, AtomGroup)):
        if trajectories:
            raise UsageError("trajectory files belong to a topology file; a Universe has its own")
        return [source.atoms]
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"expected a Universe, an AtomGroup or a topology file, found {type(source).__name__}")
    files: list[Any] = [(name,) for name in trajectories] or [()]
    return [open_universe(source, some, dt=dt).atoms for some in files]


def frames_per_stride(universe: Universe, stride_ps: float, every: int | None = None, *, what: str = "model") -> int:
    """How many of a trajectory's frames one stride is.

    Parameters
    ----------
    universe : Universe
    stride_ps : float
    every : int, optional
        What the user says; it must agree.
    what : str
        Whose stride it is, for the message.

    Raises
    ------
    DataError
        One frame alone, or a stride that is not a whole number of frames (or not `every` of them).
    """
    name = os.path.basename(str(universe.trajectory.filename or "the trajectory"))
    if universe.trajectory.n_frames < 2:
        raise DataError(f"{name} has {universe.trajectory.n_frames} frame(s); a run has at least two")
    spacing = frame_spacing(universe)
    ratio = stride_ps / spacing
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-3 * ratio:
        raise DataError(
            f"the frames of {name} are {spacing:g} ps apart, the {what} has a stride of {stride_ps:g} ps, which is not "
            "a whole number of them: save the run at another spacing, or, if its header is wrong, give the true "
            "spacing (dt=, --dt)"
        )
    if every is not None and every != round(ratio):
        raise DataError(
            f"the frames of {name} are {spacing:g} ps apart, so {every} of them are {every * spacing:g} ps; the {what} "
            f"has a stride of {stride_ps:g} ps, {round(ratio)} frame(s)"
        )
    return round(ratio)


def evaluate(
    model: str | os.PathLike | Model | None,
    source: Any,
    *trajectories: str | os.PathLike,
    select: str | None = None,
    horizon: int | None = None,
    every: int | None = None,
    start: int = 0,
    stop: int | None = None,
    dt: float | None = None,
    chains: int = 0,
    chain_length: int | None = None,
    max_windows: int = 2000,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """What a model is worth on a run: errors beside the baselines, and how its chains look.

    The mean structure and AR(1) of a window are fitted on the other half of the data, so all frames are judged and no
    baseline sees what it predicts.

    Parameters
    ----------
    model : str, path-like, Model or None
        See :func:`egno_md.load_model`.
    source : Universe, AtomGroup or path
        The run, or a topology file.
    *trajectories : path
        With a topology file: each is a run of its own.
    select : str, optional
        Narrows the model's selection.
    horizon : int, optional
        Predicted frames; the model's window when None, more are chained.
    every : int, optional
        Frames per stride, to be checked against the times in the file; read from them when None.
    start, stop : int
        Frames of each run, as in a slice: the part that the model was not trained on.
    dt : float, optional
        Spacing of the frames in ps, where the headers are wrong.
    chains : int
        Long chains to look at, from starts spread evenly over the run.
    chain_length : int, optional
        Frames of each; 25 windows when None.
    max_windows, seed, device, progress
        See :func:`score`.

    Raises
    ------
    UsageError, DataError, ModelError
        Arguments, files or frames that do not fit; the message has the cure.

    Examples
    --------
    >>> from egno_md import sample
    >>> from egno_md.evaluation import evaluate
    >>> result = evaluate("ca-1ps", *sample())
    >>> sorted(result.errors)
    ['AR(1)', 'linear', 'mean structure', 'model', 'static']
    """
    model = load_model(model)
    horizon = model.window.n_times if horizon is None else horizon
    check_request(model, horizon, 1)
    if chains < 0 or (chain_length is not None and chain_length < 2):
        raise UsageError(f"chains must be at least 0 and their length at least 2, found {chains} and {chain_length}")
    runs: list[Run] = []
    builder: GraphBuilder | None = None
    for k, whole in enumerate(open_sources(source, trajectories, dt)):
        atoms = select_atoms(whole, model.graph.select)
        if select is not None:
            atoms = atoms.intersection(select_atoms(whole, select))
            if not len(atoms):
                raise DataError(f"selection {select!r} holds none of the model's atoms ({model.graph.select!r})")
        stride = frames_per_stride(whole.universe, model.window.stride_ps, every, what=f"model {model.name!r}")
        builder = builder or GraphBuilder(atoms, model.graph)
        name = os.path.basename(str(trajectories[k])) if trajectories else "run"
        runs += read_runs(atoms, builder, stride, name=name, start=start, stop=stop)
    assert builder is not None
    result = score(
        model,
        half_parts(runs, model, horizon),
        horizon=horizon,
        max_windows=max_windows,
        seed=seed,
        device=device,
        progress=progress,
    )
    notes = list(_overlap(model, trajectories, runs))
    found = None
    if chains:
        length = chain_length or 25 * model.window.n_times
        try:
            found = quality(
                builder,
                _chains(model, runs, chains, length, device, progress),
                [run.positions[:: run.every] for run in runs],
                model.window.stride_ps,
            )
        except ModelError as error:
            notes.append(f"the chains broke down: {error}")
    return Evaluation(
        **{**{f.name: getattr(result, f.name) for f in fields(result)}, "quality": found, "notes": tuple(notes)}
    )


def _chains(
    model: Model, runs: Sequence[Run], count: int, length: int, device: str, progress: Callable[[int], None] | None
) -> list[np.ndarray]:
    starts = [(run, s) for run in runs for s in range(frames_back(model.window) * run.every, len(run.positions))]
    if not starts:
        raise DataError("no frame has the past that a chain starts from")
    picked = [starts[k] for k in np.unique(np.linspace(0, len(starts) - 1, count + 2).astype(int)[1:-1])]
    out = []
    for run, s in picked:
        history = run.positions[s + np.arange(-frames_back(model.window), 1) * run.every]  # (n_input, N, 3)
        box = None if run.boxes is None else [run.boxes[s]]
        path = forecast(model, run.builder, history[None], length, boxes=box, device=device, progress=progress)
        out.append(path[0])  # (F, N, 3)
    return out


def _overlap(model: Model, trajectories: Sequence[str | os.PathLike], runs: Sequence[Run]) -> list[str]:
    """A note for each file that the model was trained on; files are known by name and length."""
    data = model.provenance.get("data")
    entries = data.get("runs", []) if isinstance(data, dict) else []
    trained = {(e["file"], e["frames"]): e.get("test_from") for e in entries if e["part"] != "test"}
    notes = []
    for name, run in zip(map(os.path.basename, map(str, trajectories)), runs, strict=False):
        if (name, len(run.positions)) in trained:
            free = trained[name, len(run.positions)]
            cure = f"; frames from {free} on were not: --start {free}" if free is not None else ""
            notes.append(f"{name} seems to be a file that the model was trained on{cure}")
    return notes


# ------------------------------------------------------------------------------------------------------------- suggest


@dataclass(frozen=True)
class Suggestion:
    """Which stride and horizon of a run are worth forecasting.

    Attributes
    ----------
    lags : ndarray, shape (L,)
        ps.
    memory : ndarray, shape (L,)
        Autocorrelation of the displacements from the mean structure, in the aligned frame.
    persistence : ndarray, shape (L,)
        Correlation of the displacement over one lag with that over the next: 1 for straight flight, 0 for a random
        walk, -0.5 for noise without memory.
    static, linear, mean_structure, ar1 : ndarray, shape (L,)
        Mean squared error per coordinate of these forecasts at each lag, Angstrom squared, in the aligned frame.
    static_laboratory : ndarray, shape (L,)
        The static error where the run stands, rotation and translation included.
    stride_ps, horizon_ps : float
        The suggestion; nan where no spacing of this run is worth it.
    n_times : int
        Strides per window.
    reasons : tuple of str
        Why.
    """

    lags: NDArray[np.float64]
    memory: NDArray[np.float64]
    persistence: NDArray[np.float64]
    static: NDArray[np.float64]
    linear: NDArray[np.float64]
    mean_structure: NDArray[np.float64]
    ar1: NDArray[np.float64]
    static_laboratory: NDArray[np.float64]
    stride_ps: float
    horizon_ps: float
    n_times: int
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; not a number is None."""
        return _plain({f.name: getattr(self, f.name) for f in fields(self)})

    def table(self) -> str:
        """For people."""
        heads = ("lag/ps", "memory", "persistence", "static", "linear", "mean str.", "AR(1)", "static, lab")
        columns = (self.lags, self.memory, self.persistence, self.static, self.linear, self.mean_structure, self.ar1)
        lines = ["errors in A^2 per coordinate, superposed on the mean structure", "".join(f"{h:>13}" for h in heads)]
        for row in zip(*columns, self.static_laboratory, strict=True):
            cells = [f"{row[0]:>13g}", *(f"{v:>13.3f}" for v in row[1:3]), *(f"{v:>13.4f}" for v in row[3:])]
            lines.append("".join(cells))
        lines.append("")
        if np.isnan(self.stride_ps):
            lines.append("suggested  nothing at this spacing")
        else:
            lines.append(
                f"suggested  stride {self.stride_ps:g} ps, {self.n_times} frames: horizon {self.horizon_ps:g} ps"
            )
        return "\n".join(lines + [f"because    {reason}" for reason in self.reasons])


#: Memory above which the start frame says more than the mean structure: static 2 (1 - C), mean structure 1.
HALF = 0.5
SUGGEST_FRAMES, ORIGINS = 20000, 2000


def suggest(
    source: Any,
    *trajectories: str | os.PathLike,
    select: str = "ca",
    n_times: int = 8,
    dt: float | None = None,
) -> Suggestion:
    """Say which stride and horizon of a run are worth forecasting.

    A forecast can gain where the start still tells something about the future but not all of it. With C(k) the
    autocorrelation of the internal displacements, the static frame errs by ``2 (1 - C)``, the mean structure by 1 and
    the best linear memory by ``1 - C^2`` times their variance. The horizon is the longest lag with C above 1/2, up to
    which the start frame says more than the mean structure; the stride is the horizon over `n_times`.

    Parameters
    ----------
    source, *trajectories, dt
        See :func:`evaluate`. Of more than 20000 frames per file, the first ones are read.
    select : str
        The atoms that are to be forecast.
    n_times : int
        T, the frames of a window.

    Raises
    ------
    DataError
        Fewer than 20 frames, or files of different spacing.
    """
    if n_times < 1:
        raise UsageError(f"n_times must be at least 1, found {n_times}")
    runs: list[np.ndarray] = []
    spacing = None
    for k, whole in enumerate(open_sources(source, trajectories, dt)):
        atoms = select_atoms(whole, select)
        here, name = frame_spacing(whole.universe), str(trajectories[k]) if trajectories else "the run"
        spacing = same_spacing(spacing, (here, name))
        trajectory = whole.universe.trajectory
        stop, frame = min(trajectory.n_frames, SUGGEST_FRAMES), trajectory.frame
        runs.append(np.stack([atoms.positions for _ in trajectory[:stop]]).astype(np.float32))  # (F, N, 3)
        trajectory[frame]
        if not np.isfinite(runs[-1]).all():
            raise DataError(f"{name} has coordinates that are not finite; leave the damaged frames out")
    assert spacing is not None
    longest = max(len(x) for x in runs)
    if longest < 20:
        raise DataError(f"the longest run has {longest} frames; at least 20 are needed to see how fast it forgets")
    if atoms.n_atoms < 4:
        raise DataError(f"the selection {select!r} has {atoms.n_atoms} atoms; internal motion needs at least 4")
    mean = InternalMotion.fit(runs).mean
    fitted = [aligned(x, mean) - mean for x in runs]  # (F, N, 3)
    variance = float(np.mean(np.concatenate(fitted) ** 2))
    lags = np.unique(np.round(np.geomspace(1, max(1, longest // 4), 16)).astype(int))
    rows = np.array([_at_lag(runs, fitted, int(lag)) for lag in lags])  # (L, 4)
    memory = 1 - rows[:, 1] / (2 * variance)
    stride, n_times, reasons = _recommend(lags, memory, rows, spacing[0], n_times)
    return Suggestion(
        lags=lags * spacing[0],
        memory=memory,
        persistence=rows[:, 3],
        static=rows[:, 1],
        linear=rows[:, 2],
        mean_structure=np.full(len(lags), variance),
        ar1=variance * (1 - np.clip(memory, 0, 1) ** 2),
        static_laboratory=rows[:, 0],
        stride_ps=stride,
        horizon_ps=stride * n_times,
        n_times=n_times,
        reasons=tuple(reasons),
    )


def same_spacing(known: tuple[float, str] | None, found: tuple[float, str]) -> tuple[float, str]:
    """The spacing of all files, each given as (ps, name).

    Raises
    ------
    DataError
        Two files differ; both are named.
    """
    if known is None:
        return found
    if abs(known[0] - found[0]) > 1e-3 * known[0]:
        raise DataError(
            f"the frames of {known[1]} are {known[0]:g} ps apart, those of {found[1]} {found[0]:g} ps: give the stride "
            "in ps where it is a whole number of both (--stride), use files of one spacing, or, if a header is wrong, "
            "give the true spacing (--dt)"
        )
    return known


def _at_lag(runs: Sequence[np.ndarray], fitted: Sequence[np.ndarray], lag: int) -> list[float]:
    """Static error in the laboratory, static and linear error in the aligned frame, persistence."""
    sums = np.zeros(5)
    counts = np.zeros(2)
    for x, y in zip(runs, fitted, strict=True):
        origins = np.arange(0, len(x) - lag, max(1, (len(x) - lag) // ORIGINS))
        step = y[origins + lag] - y[origins]  # (O, N, 3)
        sums[0] += np.sum((x[origins + lag].astype(np.float64) - x[origins]) ** 2)
        sums[1] += np.sum(step**2)
        counts[0] += step.size
        past = origins >= lag
        before = y[origins[past]] - y[origins[past] - lag]  # (O', N, 3)
        sums[2] += np.sum((step[past] - before) ** 2)
        sums[3] += np.sum(step[past] * before)
        sums[4] += np.sum(step[past] ** 2 + before**2) / 2
        counts[1] += before.size
    persistence = sums[3] / sums[4] if sums[4] > 0 else 0.0
    return [sums[0] / counts[0], sums[1] / counts[0], sums[2] / max(counts[1], 1), persistence]


def _recommend(
    lags: np.ndarray, memory: np.ndarray, rows: np.ndarray, spacing: float, n_times: int
) -> tuple[float, int, list[str]]:
    """Stride in ps, frames per window, and why."""
    linear_wins = rows[:, 2] < rows[:, 1]
    remembered = memory >= HALF
    reasons = []
    if not remembered[0] and not linear_wins[0]:
        reasons.append(
            f"one frame ({spacing:g} ps) later the memory of the internal motion is {memory[0]:.2f}: below {HALF} the "
            "start frame errs more than the mean structure, and a model would learn the mean structure; save the run "
            "more finely, or forecast atoms that move more slowly"
        )
        return np.nan, n_times, reasons
    lost = np.flatnonzero(~remembered)
    end = int(lost[0]) if len(lost) else len(lags)
    last = max(end - 1, 0)
    if len(lost) and last < end:  # between two lags of the table by a straight line
        a, b = memory[last], memory[end]
        frames = lags[last] + (lags[end] - lags[last]) * ((a - HALF) / (a - b) if a > b else 0.0)
        frames = max(float(frames), float(lags[0]))
        reasons.append(
            f"up to {frames * spacing:.3g} ps the start frame says more about the internal motion than the mean "
            f"structure does (memory above {HALF}); later forecasts tend to the mean structure"
        )
    else:
        frames = float(lags[-1])
        reasons.append(
            f"the memory is still {memory[-1]:.2f} at {frames * spacing:g} ps, a quarter of the longest run: slower "
            "motion cannot be judged on runs of this length"
        )
    stride_frames = max(1, int(frames // n_times))
    k = int(np.argmin(np.abs(lags - stride_frames)))
    if frames < n_times:
        reasons.append(
            f"that is less than {n_times} frames of this run: take {max(1, int(frames))} frames per window, or save "
            "the run more finely"
        )
        n_times = max(1, int(frames))
    gain = 1 - (1 - memory[k] ** 2) / min(2 * (1 - memory[k]), 1.0) if memory[k] < 1 else 0.0
    if linear_wins[k]:
        reasons.append(
            f"at one stride atoms still fly on: linear extrapolation errs less than the static frame "
            f"(persistence {rows[k, 3]:+.2f})"
        )
    else:
        reasons.append(
            f"at one stride persistence is {rows[k, 3]:+.2f} (-0.5: noise without memory, 0: random walk), so the "
            f"velocity says little; the best linear memory gains {gain:.0%} over the better of the two"
        )
    if rows[k, 0] > 2 * rows[k, 1]:
        reasons.append(
            "most of the displacement is rotation and translation of the whole molecule, which no internal forecast "
            "predicts: compare errors with the static frame, not with zero"
        )
    return stride_frames * spacing, n_times, reasons
