"""What the hybrid propagator samples and costs, beside plain MD of equal cost and of equal simulated time.

One structure, one force field: a hybrid run, then plain MD that goes on from its end, for the time that the hybrid run
claims to stand for. Backbone torsions of the unbiased frames are compared as histograms (phi, psi of each residue,
30 degree bins) by the Jensen-Shannon divergence in bits. The noise floor is what stretches of the plain run, as long
as the hybrid run is costly, differ from the rest of it.

    python -m benchmarks.hybrid PDB --model FILE --forcefield XML --forcefield XML [--water NM] > result.json
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import MDAnalysis as mda
import numpy as np
from openmm import Vec3, app, unit

from egno_md.propagator import HybridPropagator, load_simulation

SAMPLE_PS = 0.1
BINS = 12
#: Cells of the torsion plane between which transitions are counted: alpha, beta, left-handed by the borders of phi
#: and psi in degrees.
PHI_BORDER, PSI_BORDERS = 0.0, (-120.0, 50.0)


class TorsionReporter:
    """Keeps phi and psi of every residue that has both, (F, R, 2) in degrees."""

    def __init__(self, topology: app.Topology, every: int) -> None:
        universe = mda.Universe(topology)
        place = [
            (residue.phi_selection(), residue.psi_selection())
            for residue in universe.select_atoms("protein or resname ACE NME").residues
        ]
        self.quadruples = np.array([[phi.ix, psi.ix] for phi, psi in place if phi is not None and psi is not None])
        self.every = every
        self.frames: list[np.ndarray] = []

    def describeNextReport(self, simulation):
        steps = self.every - simulation.currentStep % self.every
        return {"steps": steps, "periodic": False, "include": ["positions"]}

    def report(self, simulation, state):
        xyz = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        a, b, c, d = np.moveaxis(xyz[self.quadruples], -2, 0)  # (R, 2, 3)
        ab, bc, cd = b - a, c - b, d - c
        n1, n2 = np.cross(ab, bc), np.cross(bc, cd)
        y = (np.cross(n1, n2) * bc).sum(-1) / np.linalg.norm(bc, axis=-1)
        self.frames.append(np.degrees(np.arctan2(y, (n1 * n2).sum(-1))))  # (R, 2)

    @property
    def torsions(self) -> np.ndarray:
        return np.array(self.frames)


def histograms(torsions: np.ndarray) -> np.ndarray:
    """Normalised phi/psi histogram of each residue, (R, BINS, BINS)."""
    edges = np.linspace(-180, 180, BINS + 1)
    counts = [np.histogram2d(phi_psi[:, 0], phi_psi[:, 1], [edges, edges])[0] for phi_psi in torsions.swapaxes(0, 1)]
    return np.array(counts) / len(torsions)


def divergence(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon divergence of the torsions of two runs in bits, the mean over residues; 0 to 1."""
    p, q = histograms(first), histograms(second)
    middle = (p + q) / 2

    def relative(a):
        return np.where(a > 0, a * np.log2(np.where(a > 0, a, 1) / np.where(middle > 0, middle, 1)), 0).sum(axis=(1, 2))

    return float(((relative(p) + relative(q)) / 2).mean())


def cells(torsions: np.ndarray) -> np.ndarray:
    """Which of three regions each residue is in: 0 beta, 1 alpha, 2 left-handed, (F, R)."""
    phi, psi = torsions[..., 0], torsions[..., 1]
    alpha = (psi > PSI_BORDERS[0]) & (psi < PSI_BORDERS[1])
    return np.where(phi > PHI_BORDER, 2, np.where(alpha, 1, 0))


def describe(torsions: np.ndarray, ps: float) -> dict:
    """Populations with the error of their mean over five blocks, transitions per ns of `ps`, spread of the torsions."""
    where = cells(torsions)
    blocks = np.array_split(where, 5)
    return {
        "frames": len(torsions),
        "ps": round(ps, 1),
        "populations": {
            name: [
                round(float((where == k).mean()), 3),
                round(float(np.std([(b == k).mean() for b in blocks]) / 5**0.5), 3),
            ]
            for k, name in enumerate(("beta", "alpha", "left"))
        },
        "transitions_per_ns": round(float((np.diff(where, axis=0) != 0).sum() / where.shape[1] / ps * 1000), 2),
        "circular_sd_deg": [round(float(v), 1) for v in circular_sd(torsions)],
    }


def circular_sd(torsions: np.ndarray) -> np.ndarray:
    """Mean over the residues of the circular standard deviation of phi and psi in degrees, (2,)."""
    length = np.abs(np.exp(1j * np.radians(torsions)).mean(axis=0))  # (R, 2)
    return np.degrees(np.sqrt(-2 * np.log(length))).mean(axis=0)


def solvated(pdb: Path, forcefields: tuple[str, ...], edge: float, folder: Path) -> Path:
    """The structure in a cubic box of TIP3P water, as a PDB in `folder`."""
    file = app.PDBFile(str(pdb))
    modeller = app.Modeller(file.topology, file.positions)
    modeller.addSolvent(app.ForceField(*forcefields), boxSize=Vec3(edge, edge, edge) * unit.nanometer)
    path = folder / f"{pdb.stem}_water.pdb"
    with open(path, "w") as stream:
        app.PDBFile.writeFile(modeller.topology, modeller.positions, stream, keepIds=True)
    return path


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("pdb", type=click.Path(exists=True, path_type=Path))
@click.option("--model", required=True, help="Bundled model or checkpoint file.")
@click.option("--forcefield", "forcefields", multiple=True, required=True)
@click.option("--water", type=float, help="Edge of a box of water in nm.")
@click.option("--hydrogens", is_flag=True)
@click.option("--jumps", default=100, show_default=True)
@click.option("--md-steps", type=int)
@click.option("--lead-ps", default=2.0, show_default=True)
@click.option("--relax-ps", default=1.0, show_default=True)
@click.option("--strength", default=20000.0, show_default=True)
@click.option("--friction", default=1.0, show_default=True)
@click.option("--equilibrate-ps", default=20.0, show_default=True)
@click.option("--plain-ps", type=float, help="Length of the plain run. Default: what the hybrid run stands for.")
@click.option("--platform", default="CPU", show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("."), help="Folder of the log and a solvated PDB."
)
def main(pdb, model, forcefields, water, hydrogens, jumps, md_steps, lead_ps, relax_ps, strength, friction,
         equilibrate_ps, plain_ps, platform, seed, work):  # fmt: skip
    """Run PDB both ways and print what came out as JSON."""
    work.mkdir(parents=True, exist_ok=True)
    topology = solvated(pdb, forcefields, water, work) if water else pdb
    simulation = load_simulation(
        topology, forcefields=forcefields, hydrogens=hydrogens, friction=friction, equilibrate_ps=equilibrate_ps,
        platform=platform, seed=seed,
    )  # fmt: skip
    start = simulation.context.createCheckpoint()
    step_ps = simulation.integrator.getStepSize().value_in_unit(unit.picosecond)
    every = round(SAMPLE_PS / step_ps)

    def plain(ps: float) -> tuple[np.ndarray, float]:
        reporter = TorsionReporter(simulation.topology, every)
        simulation.reporters.append(reporter)
        before = time.perf_counter()
        simulation.step(round(ps / step_ps))
        seconds = time.perf_counter() - before
        simulation.reporters.clear()
        return reporter.torsions, seconds / ps

    # Timed once before the guide is there, which costs a little even while it is idle.
    _, plain_cost = plain(20.0)
    simulation.context.loadCheckpoint(start)
    hybrid = HybridPropagator(
        simulation, model, lead_ps=lead_ps, relax_ps=relax_ps, strength=strength, seed=seed
    )  # fmt: skip
    reporter = TorsionReporter(simulation.topology, every)
    simulation.reporters.append(reporter)
    before = time.perf_counter()
    summary = hybrid.run(jumps, md_steps, log=work / f"{topology.stem}_jumps.csv", force=True)
    hybrid_seconds = time.perf_counter() - before
    simulation.reporters.clear()
    represented = summary.md_ps + summary.jump_ps
    reference, cost_after = plain(plain_ps or represented)

    frames = max(1, min(round(summary.integrated_ps / SAMPLE_PS), len(reference) // 2))
    pieces = [slice(k, k + frames) for k in range(0, len(reference) - frames + 1, frames)]
    floor = [divergence(reference[s], np.delete(reference, s, axis=0)) for s in pieces]
    thin = max(1, round(len(reference) / len(reporter.torsions)))
    accepted = [jump for jump in hybrid.jumps if jump.accepted]
    result = {
        "system": topology.stem,
        "particles": simulation.system.getNumParticles(),
        "beads": len(hybrid.beads),
        "forces": sorted(type(force).__name__ for force in simulation.system.getForces()),
        "friction_per_ps": friction,
        "model": hybrid.model.name,
        **{key: round(v, 8) if isinstance(v, float) else v for key, v in summary.as_dict().items()},
        "temperature_relaxed_error": float(np.std([j.temperature for j in accepted]) / max(len(accepted), 1) ** 0.5),
        "work_per_bead": float(np.mean([j.work for j in accepted]) / len(hybrid.beads)),
        "frames_per_jump": float(np.mean([j.frames for j in accepted])),
        "forecast_bonds": float(np.nanmean([j.forecast_bonds for j in hybrid.jumps])),
        "forecast_moved": float(np.nanmean([j.forecast_moved for j in hybrid.jumps])),
        "rmsd_led": float(np.nanmean([j.rmsd_led for j in hybrid.jumps])),
        "seconds_forecast": float(np.mean([j.seconds_forecast for j in hybrid.jumps])),
        "plain_seconds_per_ps": [plain_cost, cost_after],
        "hybrid_seconds": hybrid_seconds,
        # Per ns of everything that was integrated, which is what was paid for.
        "torsions_hybrid": describe(reporter.torsions, summary.integrated_ps),
        "torsions_plain": describe(reference, len(reference) * SAMPLE_PS),
        "jsd_hybrid_plain": divergence(reporter.torsions, reference),
        "jsd_floor_equal_cost": [float(np.mean(floor)), float(np.std(floor)), len(floor)],
        "jsd_floor_equal_time": divergence(reference[: len(reference) // 2], reference[len(reference) // 2 :]),
        "jsd_floor_counting": divergence(reference[::thin], reference[thin // 2 :: thin]),
    }
    click.echo(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
