"""Whether long chains look like the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..forecast.forecasters import InternalMotion
from ..molecule.checks import check_frames
from ..molecule.geometry import aligned, bond_lengths, bonded_neighbours, dihedrals, radius_of_gyration
from ..molecule.molecule import Molecule
from .slow import SlowComponents
from .statistics import autocorrelation, jensen_shannon, relaxation_time

if TYPE_CHECKING:
    from ..graph.builder import GraphBuilder

#: A bond this far from its mean in the run is off, Angstrom.
BOND_OFF = 0.05

#: Frames whose clashes and handedness are checked, at most; cells of a turn in torsion histograms.
CHECKED_FRAMES, TORSION_CELLS = 500, 24

#: Cells of a turn in which basins are looked for; divergence in nats from which torsions are others.
BASIN_CELLS, FAR = 36, 0.05


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
    slow: NDArray[np.float64]
    """The slowest components of the run (F, C)."""
    within: Within
    """What happens within one chain: chains that stand still at many places look alive when they are put together."""


@dataclass(frozen=True)
class Within:
    """Means over pieces of one length, each by itself: motion that none of them makes does not count."""

    length: int
    """Frames of a piece, the same for chains, run and floor."""
    rmsf: NDArray[np.float64]
    """Of every atom (N,) about the mean of the piece."""
    torsion_spread: NDArray[np.float64]
    """Circular variance of every torsion (K,)."""
    relaxation: float
    """Time in ps in which the autocorrelation about the mean of the piece falls to 1/e; nan if it does not."""
    changes: float
    """Changes of basin per frame and torsion that has more than one in the run; nan if none has."""
    drift: float
    """Radius of gyration of the last quarter of a piece less that of the first, Angstrom."""
    slow_spread: float
    """Standard deviation of the slowest component, which has 1 over the whole run; nan where it has none."""
    slow_relaxation: float
    """Time in ps in which its autocorrelation about the mean of the piece falls to 1/e; nan if it does not."""
    passages: tuple[float, float]
    """Mean first passage times in ps between its ends, up and down, over whole chains; nan of fewer than five."""
    left: float
    """Share of the frames in the last quarters whose radius the run never has."""


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
    molecule: Molecule | None = None
    """The atoms, for the names of what is drawn."""
    slow: SlowComponents | None = None

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

    def slow_divergence(self, ensemble: Ensemble) -> float:
        """Jensen-Shannon divergence of the slowest components from the run in nats; nan where the run has none."""
        if self.slow is None:
            return float("nan")
        return jensen_shannon(self.slow.histogram(ensemble.slow), self.slow.histogram(self.run.slow))

    @property
    def findings(self) -> tuple[str, ...]:
        """Where the chains differ from the run by more than twice what its halves differ by, and by more than a bound.

        What a chain does is counted within it. A tuple without entries is what real dynamics gives.
        """
        out = []

        def ratio(name: str, value: Callable[[Ensemble], float], bound: float, few: str, many: str) -> None:
            chains, run, floor = (float(value(e)) for e in (self.chains, self.run, self.floor))
            if np.isnan(run) or run <= 0:
                return
            both = [np.inf if np.isnan(x) else abs(np.log(x / run)) if x > 0 else np.inf for x in (chains, floor)]
            if both[0] > max(np.log(bound), 2 * both[1] if np.isfinite(both[1]) else 0.0):
                said = many if chains > run or np.isnan(chains) else few
                chains = 0.0 if abs(chains) < 1e-9 else chains  # the noise of a superposition
                out.append(f"{said}: {name} {chains:.3g}, in the run {run:.3g} (its other half {floor:.3g})")

        ratio("RMSF within a chain (A)", lambda e: e.within.rmsf.mean(), 1.5, "moves too little", "moves too much")
        if self.torsion_names:
            ratio("circular spread of the torsions within a chain", lambda e: e.within.torsion_spread.mean(), 1.5,
                  "torsions move too little", "torsions move too much")  # fmt: skip
        ratio("changes of basin per frame", lambda e: e.within.changes, 2.0, "torsions change their basin too rarely",
              "torsions change their basin too often")  # fmt: skip
        ratio(
            "memory within a chain (ps)", lambda e: e.within.relaxation, 2.0, "forgets too fast", "forgets too slowly"
        )
        ratio("its spread within a chain", lambda e: e.within.slow_spread, 1.5,
              "the slowest motion is too small", "the slowest motion is too large")  # fmt: skip
        ratio("its memory within a chain (ps)", lambda e: e.within.slow_relaxation, 2.0,
              "the slowest motion forgets too fast", "the slowest motion forgets too slowly")  # fmt: skip
        for k, way in enumerate(("up", "down")):
            ratio(f"first passage of the slowest motion, {way} (ps)", lambda e, k=k: e.within.passages[k],
                  2.0, "passes too often", "passes too rarely")  # fmt: skip
        slow, floor = self.slow_divergence(self.chains), self.slow_divergence(self.floor)
        if slow > max(FAR, 2 * floor):
            out.append(f"other slow motions: divergence {slow:.3g} nats, between the halves of the run {floor:.3g}")
        divergence, floor = self.torsion_divergence(self.chains), self.torsion_divergence(self.floor)
        if divergence > max(FAR, 2 * floor):
            out.append(f"other torsions: divergence {divergence:.3g} nats, between the halves of the run {floor:.3g}")
        if self.chains.within.left > 0.5:
            radii = np.concatenate([self.run.radius, self.floor.radius])
            out.append(
                f"drifts away: {self.chains.within.left:.0%} of the radii of gyration in the last quarter lie outside "
                f"of the run's {radii.min():.2f} to {radii.max():.2f} A"
            )
        return tuple(out)

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
        add("radius of gyration, drift in a chain (A)", lambda e: e.within.drift)
        add("last radii outside of the run's, share", lambda e: e.within.left)
        add("RMSF within a chain, mean (A)", lambda e: e.within.rmsf.mean())
        add("RMSF, mean (A)", lambda e: e.rmsf.mean())
        add("RMSF, ratio to the run", self.rmsf_ratio, against_run=True)
        add("RMSF, correlation with the run", self.rmsf_correlation, against_run=True)
        if self.torsion_names:
            add(f"torsions ({self.torsion_kind}), divergence (nats)", self.torsion_divergence, against_run=True)
            add("torsions, square root of it", lambda e: np.sqrt(self.torsion_divergence(e)), against_run=True)
            add("torsions, circular spread in a chain", lambda e: e.within.torsion_spread.mean())
            add("torsions, circular spread", lambda e: e.torsion_spread.mean())
            add("torsions, changes of basin per frame", lambda e: e.within.changes)
        if self.slow is not None:
            add("slow motions, divergence (nats)", self.slow_divergence, against_run=True)
            add("slow motions, square root of it", lambda e: np.sqrt(self.slow_divergence(e)), against_run=True)
            add("slowest motion, spread in a chain", lambda e: e.within.slow_spread)
            add("slowest motion, memory in a chain (ps)", lambda e: e.within.slow_relaxation)
            add("slowest motion, first passage up (ps)", lambda e: e.within.passages[0])
            add("slowest motion, first passage down (ps)", lambda e: e.within.passages[1])
        add("memory of the motion in a chain (ps)", lambda e: e.within.relaxation)
        add("memory of the internal motion (ps)", lambda e: e.relaxation)
        add("memory of the radius (ps)", lambda e: e.radius_relaxation)
        return out


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
    molecule = builder.molecule
    residues, n_atoms = molecule.residues, molecule.n_atoms
    names, rows = _phi_psi(molecule)
    if rows:
        return "phi/psi", names, np.asarray(rows)
    if len(np.unique(residues)) == n_atoms:
        linked = set(map(tuple, molecule.bonds.tolist()))
        rows = [[i, i + 1, i + 2, i + 3] for i in range(n_atoms - 3)]
        rows = [row for row in rows if all((a, a + 1) in linked for a in row[:3])]
        numbers = residues + 1 if molecule.resids is None else molecule.resids
        return "virtual" if rows else "", [f"{numbers[r[1]]}-{numbers[r[2]]}" for r in rows], np.asarray(rows)
    return "", [], np.zeros((0, 4), int)


def _phi_psi(molecule: Molecule) -> tuple[list[str], list[list[int]]]:
    """Names and atoms of phi and psi of each residue that has both."""
    if molecule.names is None:
        return [], []
    neighbours, residues = bonded_neighbours(molecule.bonds, molecule.n_atoms), molecule.residues

    def next_to(i: int, name: str, same: bool) -> int | None:
        found = [j for j in neighbours[i] if molecule.names[j] == name and (residues[j] == residues[i]) == same]
        return found[0] if found else None

    names: list[str] = []
    rows: list[list[int]] = []
    for ca in np.flatnonzero(molecule.names == "CA").tolist():
        n, c = next_to(ca, "N", True), next_to(ca, "C", True)
        before = None if n is None else next_to(n, "C", False)
        after = None if c is None else next_to(c, "N", False)
        if before is not None and after is not None:
            resname = "" if molecule.resnames is None else molecule.resnames[ca]
            resid = residues[ca] + 1 if molecule.resids is None else molecule.resids[ca]
            rows += [[before, n, ca, c], [n, ca, c, after]]
            names += [f"{kind} {resname} {resid}" for kind in ("phi", "psi")]
    return names, rows


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
    lengths = bond_lengths(first, builder.bonds).mean(axis=0)  # (B,)
    kind, names, quadruples = backbone_torsions(builder)
    n_frames = sum(len(x) for x in chains)
    radii = radius_of_gyration(np.concatenate([x for half in halves for x in half]))
    length = min(max(len(x) for x in some) for some in (chains, *halves))
    basins = [torsion_basins(angles) for angles in dihedrals(first, quadruples).T]
    ends = (float(radii.min()), float(radii.max()))
    describe = _Describe(builder, motion.mean, first[0], lengths, quadruples, stride_ps, length, basins, ends)
    describe = replace(describe, slow=describe.slowest(halves[0]))
    return Quality(
        chains=describe(chains),
        run=describe(halves[0]),
        floor=describe(halves[1], n_frames),
        n_chains=len(chains),
        chain_length=max(len(x) for x in chains),
        torsion_kind=kind,
        torsion_names=tuple(names),
        molecule=builder.molecule,
        slow=describe.slow,
    )


@dataclass(frozen=True)
class _Describe:
    builder: GraphBuilder
    mean: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    quadruples: np.ndarray
    stride_ps: float
    length: int
    basins: list[np.ndarray]
    radii: tuple[float, float]
    slow: SlowComponents | None = None

    def features(self, fitted: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """What slow components are made of, (F, D): cosine and sine of the torsions, or else the displacements."""
        if not len(self.quadruples):
            return (fitted - self.mean).reshape(len(fitted), -1)
        angles = dihedrals(frames, self.quadruples)  # (F, K)
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    def slowest(self, parts: Sequence[np.ndarray]) -> SlowComponents | None:
        """Of the run, at a lag of its memory."""
        parts = [np.asarray(x, np.float64) for x in parts]
        fitted = [aligned(x, self.mean) for x in parts]
        memory = relaxation_time(_mean_correlation([x - self.mean for x in fitted]))
        longest = max(1, self.length // 10)
        lag = longest if np.isnan(memory) else int(np.clip(round(memory), 1, longest))
        return SlowComponents.fit([self.features(*both) for both in zip(fitted, parts, strict=True)], lag)

    def within(self, fitted: Sequence[np.ndarray], radii: Sequence[np.ndarray], parts: Sequence[np.ndarray]) -> Within:
        """Of parts (F, N, 3) and what is superposed on the mean, in pieces of one length."""

        def pieces(series: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [x[k : k + self.length] for x in series for k in range(0, len(x) - self.length + 1, self.length)]

        moved = [x - x.mean(axis=0) for x in pieces(fitted)]  # (L, N, 3)
        turned = pieces([dihedrals(x, self.quadruples) for x in parts])  # (L, K)
        quarter = max(1, self.length // 4)
        first, last = (np.array([r[some] for r in pieces(radii)]) for some in (slice(quarter), slice(-quarter, None)))
        counts = [_changes(x[:, k], basins) for x in turned for k, basins in enumerate(self.basins) if basins.max() > 0]
        slow = [np.zeros((len(x), 1)) for x in parts]
        if self.slow is not None:
            slow = [self.slow(self.features(*both)) for both in zip(fitted, parts, strict=True)]  # (F, C)
        along = [x[:, :1] - x[:, :1].mean() for x in pieces(slow)]  # (L, 1)
        up, down = (np.nan, np.nan) if self.slow is None else self.slow.passages(slow) * self.stride_ps
        return Within(
            length=self.length,
            rmsf=np.sqrt(np.mean([np.mean(np.sum(x**2, axis=-1), axis=0) for x in moved], axis=0)),
            torsion_spread=np.mean([1 - np.minimum(np.abs(np.exp(1j * x).mean(axis=0)), 1) for x in turned], axis=0),
            relaxation=relaxation_time(_mean_correlation(moved)) * self.stride_ps,
            changes=float(np.mean(counts)) if counts else float("nan"),
            drift=float(last.mean() - first.mean()),
            slow_spread=np.nan if self.slow is None else float(np.sqrt(np.mean(np.square(along)))),
            slow_relaxation=relaxation_time(_mean_correlation(along)) * self.stride_ps,
            passages=(float(up), float(down)),
            left=float(np.mean((last < self.radii[0] - 1e-3) | (last > self.radii[1] + 1e-3))),
        )

    def __call__(self, parts: Sequence[np.ndarray], at_most: int | None = None) -> Ensemble:
        """Everything of some frames; what is no matter of time from at most so many of them."""
        bonds = self.builder.bonds
        parts = [np.asarray(x, np.float64) for x in parts]
        radii = [radius_of_gyration(x) for x in parts]  # (F,)
        fitted = [aligned(x, self.mean) for x in parts]  # (F, N, 3)
        middle = np.concatenate(fitted).mean(axis=0)  # (N, 3)
        memory = _mean_correlation([x - middle for x in fitted])
        radius = np.concatenate(radii)
        radius_memory = _mean_correlation([r - radius.mean() for r in radii])
        everything = np.concatenate(parts)
        chosen = slice(None, None, max(1, -(-len(everything) // (at_most or len(everything)))))
        frames, fit = everything[chosen], np.concatenate(fitted)[chosen]  # (F, N, 3)
        lengths = bond_lengths(frames, bonds)  # (F, B)
        angles = dihedrals(frames, self.quadruples)  # (F, K)
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
            slow=np.zeros((len(fit), 0)) if self.slow is None else self.slow(self.features(fit, frames)),
            within=self.within(fitted, radii, parts),
        )


def torsion_basins(angles: np.ndarray) -> NDArray[np.int64]:
    """Where a torsion (F,), in radians, rests: the basin of each of 36 equal cells of a turn from -pi on.

    Basins are what lies about the peaks of the smoothed histogram that are parted by valleys below half of the lower
    peak. A cell counts for its basin where the histogram is at least half of the peak; elsewhere it is -1, so that an
    angle on the way is not counted until it arrives. Peaks of less than a hundredth of the frames are none.
    """
    counts = np.histogram(angles, np.linspace(-np.pi, np.pi, BASIN_CELLS + 1))[0].astype(float)
    smooth = sum(w * np.roll(counts, k) for k, w in zip(range(-2, 3), (1, 2, 3, 2, 1), strict=True)) / 9
    peaks = [k for k in range(BASIN_CELLS) if smooth[k] > smooth[k - 1] and smooth[k] >= smooth[(k + 1) % BASIN_CELLS]]
    if not peaks:
        return np.zeros(BASIN_CELLS, np.int64)
    while True:
        path = [np.arange(a, b if b > a else b + BASIN_CELLS) % BASIN_CELLS for a, b in zip(peaks, np.roll(peaks, -1),
                                                                                             strict=True)]  # fmt: skip
        valleys = [cells[np.argmin(smooth[cells])] for cells in path]
        belongs = np.searchsorted(np.sort(valleys), np.arange(BASIN_CELLS), side="right") % len(peaks)  # of each cell
        weights = [counts[belongs == belongs[peak]].sum() / max(counts.sum(), 1) for peak in peaks]
        if len(peaks) == 1:
            break
        rise = [smooth[v] / min(smooth[peaks[k]], smooth[peaks[(k + 1) % len(peaks)]]) for k, v in enumerate(valleys)]
        if min(weights) < 0.01:
            peaks.pop(int(np.argmin(weights)))
        elif max(rise) > 0.5:
            k = int(np.argmax(rise))
            peaks.remove(min(peaks[k], peaks[(k + 1) % len(peaks)], key=lambda peak: smooth[peak]))
        else:
            break
    basins = np.full(BASIN_CELLS, -1, np.int64)
    for number, peak in enumerate(peaks):
        basins[(belongs == belongs[peak]) & (smooth >= smooth[peak] / 2)] = number
    return basins


def _changes(angles: np.ndarray, basins: np.ndarray) -> float:
    """Changes of basin per frame of a torsion (F,)."""
    cells = np.clip(((angles + np.pi) / (2 * np.pi) * BASIN_CELLS).astype(int), 0, BASIN_CELLS - 1)
    visited = basins[cells]
    visited = visited[visited >= 0]
    return float(np.sum(visited[1:] != visited[:-1])) / len(angles)


def _mean_correlation(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Autocorrelation averaged over parts, up to half of the longest."""
    longest = max(len(x) for x in parts)
    same = [x for x in parts if len(x) >= max(2, longest // 2)]
    if not same or all(np.allclose(x, 0, atol=1e-9) for x in same):
        return np.ones(1)
    power = [float(np.mean(x**2)) for x in same]
    lag = min(len(x) for x in same) // 2
    return np.sum([p * autocorrelation(x, lag) for p, x in zip(power, same, strict=True)], axis=0) / np.sum(power)
