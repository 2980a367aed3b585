"""The elastic network of proteins: single frames, runs too short to tell, and what it is not for."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
from click.testing import CliRunner
from MDAnalysisTests import datafiles
from scipy.spatial.transform import Rotation

from egno_md import EGNOSurrogate, sample
from egno_md.cli import main
from egno_md.errors import DataError, StoppedError, UsageError
from egno_md.forecast.forecasters import Known
from egno_md.hindcast import proteins
from egno_md.hindcast.proteins import NAME, OfProteins
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.geometry import bond_lengths, superposed_rmsd
from egno_md.trajectory import stream

TOPOLOGY, TRAJECTORY = map(str, sample())
ALA2 = Path(__file__).parents[2] / "shared" / "data" / "ala2" / "ala2.pdb"
pytestmark = pytest.mark.filterwarnings("ignore:the trajectory has one frame")


def ubiquitin(frames=slice(None), dt=1.0):
    """Some frames of the bundled run, C-alpha atoms."""
    run = mda.Universe(TOPOLOGY, TRAJECTORY)
    atoms = run.select_atoms("name CA")
    positions = np.stack([atoms.positions.copy() for _ in run.trajectory[frames]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = mda.Merge(atoms)
    return alone.load_new(positions, dt=dt)


def test_a_single_structure_gets_futures_that_move_as_proteins_do():
    """In water the C-alpha atoms of ubiquitin leave a frame by 0.5 A in 1 ps and 0.7 A in 8 ps."""
    done = EGNOSurrogate(mda.Universe(TOPOLOGY), horizon=8, samples=16).run()
    assert done.engine.name == NAME and done.engine.stride_ps == 1.0 and done.results.hindcast is None
    assert any("published runs of proteins" in line for line in done.decisions)
    start, futures = done.atoms.positions, done.results.ensemble[0]
    moved = superposed_rmsd(futures, np.broadcast_to(start, futures.shape)).mean(axis=0)  # (T,)
    assert 0.35 < moved[0] < 0.65 and 0.5 < moved[-1] < 1.1 and moved[-1] > 1.1 * moved[0]
    assert all(tally.ok for tally in done.results.checks)
    bonds = np.stack([np.arange(75), np.arange(1, 76)], axis=1)
    assert np.abs(bond_lengths(futures, bonds) - bond_lengths(start, bonds)).max() < 0.11


def test_the_spacing_of_the_futures_is_that_which_is_asked_for(tmp_path):
    spread = {}
    for dt in ("1", "10"):
        arguments = ["predict", TOPOLOGY, "--dt", dt, "--horizon", "8", "--samples", "8", "--force", "--json"]
        done = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out.xtc")])
        assert done.exit_code == 0, done.output
        futures = [mda.Universe(str(tmp_path / f"out_{k}.pdb"), str(tmp_path / f"out_{k}.xtc")) for k in range(1, 9)]
        assert futures[0].trajectory.dt == pytest.approx(float(dt))
        x = np.stack([[u.atoms.positions.copy() for _ in u.trajectory] for u in futures])  # (K, T, N, 3)
        spread[dt] = superposed_rmsd(x[1:], np.broadcast_to(x[:1], x[1:].shape)).mean()
    assert spread["10"] > 1.1 * spread["1"]


@pytest.mark.parametrize("n_frames", [2, 5, 8])
@pytest.mark.parametrize("mean", [False, True])
def test_a_run_too_short_to_tell_is_forecast_by_it(n_frames, mean):
    done = EGNOSurrogate(ubiquitin(slice(n_frames)), horizon=8, mean=mean).run()
    assert done.engine.name == NAME and done.results.checks[0].ok
    if done.results.hindcast is None:
        assert n_frames == 2
    else:
        assert done.results.hindcast.n_windows < 3 and done.results.hindcast.chosen == NAME
        assert any("cannot tell who is better" in line for line in done.decisions)


def test_a_longer_run_decides_by_its_own_windows():
    found = EGNOSurrogate(ubiquitin(), horizon=8).run().results.hindcast
    assert found.n_windows >= 4 and NAME in found.entries
    scores = {name: entry.score for name, entry in found.entries.items()}
    assert scores[found.chosen] < 1.05 * min(scores.values())


def test_it_draws_better_than_the_standing_frame_and_is_calibrated():
    """The bundled run was not among those that it is fitted to, and is in implicit solvent: it moves more."""
    frames = np.asarray(ubiquitin().trajectory.timeseries(order="fac"))
    run, starts = ubiquitin(), np.arange(16, 71, 6)
    done = EGNOSurrogate(run, NAME, horizon=8, samples=16).run(frames=starts)
    true = frames[starts[:, None] + np.arange(1, 9)]  # (S, T, N, 3)
    own = superposed_rmsd(done.results.ensemble.mean(axis=1), true).mean()
    still = superposed_rmsd(np.broadcast_to(frames[starts][:, None], true.shape), true).mean()
    assert own < 0.95 * still


def test_nothing_of_the_run_is_fitted_and_a_turned_start_gives_the_turned_future():
    made = OfProteins("ca", 1.0)
    one, other = (
        made(Known([x], (1, 2))) for x in (np.zeros((1, 3, 3)), np.random.default_rng(0).normal(size=(9, 4, 3)))
    )
    assert all(np.array_equal(one.arrays()[name], other.arrays()[name]) for name in one.arrays())
    turn = Rotation.from_rotvec([1.0, -0.4, 2.0]).as_matrix()
    past = np.asarray(ubiquitin(slice(4)).trajectory.timeseries(order="fac"), float)[None]
    times = np.arange(1, 9)
    plain, turned = (one(x, times, 2, np.random.default_rng(1)) for x in (past, past @ turn.T))
    np.testing.assert_allclose(turned, plain @ turn.T, atol=1e-5)
    assert OfProteins("ca", 2.0).fingerprint != made.fingerprint


@pytest.mark.parametrize("stride", [0.1, 0.9, 101.0, 1000.0])
def test_strides_that_it_was_not_fitted_to_are_not_its(stride):
    run = ubiquitin(slice(30), dt=stride)
    assert EGNOSurrogate(run, horizon=2).run().engine.name != NAME
    with pytest.raises(DataError, match=f"1 to 100 ps apart; found 76 atoms and frames {stride:g} ps apart"):
        EGNOSurrogate(run, NAME, horizon=2).run()


def test_other_atoms_are_not_its_and_the_cure_works(tmp_path):
    arguments = ["predict", TOPOLOGY, "--model", "elastic-network_of proteins", "-o", str(tmp_path / "out.dcd")]
    wrong = CliRunner().invoke(main, [*arguments, "--select", "backbone"])
    assert wrong.exit_code == 1 and "(--select ca, --select heavy)" in wrong.output and not list(tmp_path.iterdir())
    for select in ("ca", "heavy"):
        right = CliRunner().invoke(main, [*arguments, "--select", select, "--force"])
        assert right.exit_code == 0, right.output
    with pytest.raises(DataError, match="one frame.*these 40 atoms.*TRAJECTORY.*--select ca.*egno-md extend"):
        EGNOSurrogate(mda.Universe(TOPOLOGY), select="name CA and resid 1:40")  # part of a protein


@pytest.mark.parametrize(
    "name", ["martini_dppc_chol_bilayer.gro", "nucl_res.pdb", "fullerene.pdb.gz", "two_water_gro.gro"]
)
def test_a_structure_that_is_no_protein_is_not_sent_to_openmm(name):
    with pytest.raises(DataError, match="one frame") as said:
        EGNOSurrogate(mda.Universe(str(Path(datafiles.__file__).parent / "data" / name)))
    assert "TOPOLOGY TRAJECTORY" in str(said.value)
    assert "extend" not in str(said.value) and "--select" not in str(said.value)


def test_a_spacing_that_it_is_not_for_is_refused_for_a_structure(tmp_path):
    arguments = ["predict", TOPOLOGY, "-o", str(tmp_path / "out.dcd")]
    wrong = CliRunner().invoke(main, [*arguments, "--dt", "1000"])
    assert wrong.exit_code == 1 and "1 to 100 ps apart; found 76 atoms and frames 1000 ps apart" in wrong.output
    assert "another --dt" in wrong.output and not list(tmp_path.iterdir())
    right = CliRunner().invoke(main, [*arguments, "--dt", "100"])
    assert right.exit_code == 0 and "with elastic network of proteins" in right.output


def test_all_heavy_atoms_of_a_structure_keep_bonds_angles_and_hands():
    """Of a peptide without further ado, of a protein when asked for; ligands, beads and parts are no proteins."""
    chignolin = mda.Universe(*map(str, sample("chignolin")[:1]))
    done = EGNOSurrogate(chignolin, select="heavy", horizon=8, samples=8).run()
    assert done.engine.name == NAME and len(done.atoms) == 93
    assert all(tally.ok for tally in done.results.checks)
    ensemble, start = done.results.ensemble[0], done.atoms.positions
    moved = superposed_rmsd(ensemble, np.broadcast_to(start, ensemble.shape)).mean(axis=0)
    assert 0.4 < moved[0] < 1.2 and moved[-1] > moved[0]
    for part in ("heavy and not resid 1", "name CA C N O", "heavy and backbone"):
        assert proteins.kind_of(select_atoms(chignolin, part.replace("heavy", "group heavy"))) is None
    assert proteins.kind_of(select_atoms(chignolin, "heavy")) == "heavy"
    caps = mda.Universe(str(ALA2)) if ALA2.exists() else None
    if caps is not None:
        assert proteins.kind_of(select_atoms(caps, "heavy")) == "heavy"


def peptide(residues, select="heavy", n_frames=10):
    """Some residues of ubiquitin as a run of their own, all heavy atoms or C-alpha atoms, with ACE and NME if asked."""
    atoms = mda.Universe(TOPOLOGY).select_atoms(f"resid {residues} and not name H*")
    atoms = atoms.select_atoms("name CA") if select == "ca" else atoms
    alone = mda.Merge(atoms)
    noise = np.random.default_rng(0).normal(scale=0.02, size=(n_frames, len(atoms), 3))
    return alone.load_new((atoms.positions + noise).astype(np.float32), dt=1.0)


@pytest.mark.parametrize(
    ("residues", "select", "its"),
    [
        ("5", "ca", False), ("5:7", "ca", False), ("5:8", "ca", True), ("5:6 7 15:16", "ca", False),
        ("5 20 35 50 65", "ca", False), ("5", "heavy", False), ("5:6", "heavy", False), ("5:7", "heavy", True),
        ("5 20 35 50 65", "heavy", False),
    ],
)  # fmt: skip
def test_it_is_for_chains_and_not_for_residues_by_themselves(residues, select, its):
    run = peptide(residues, select)
    done = EGNOSurrogate(run, select=select, horizon=2).run()
    assert (NAME in done.results.hindcast.entries) == its
    if its:
        EGNOSurrogate(run, NAME, select, horizon=2).run()
        return
    with pytest.raises(DataError, match="chains of at least 4 linked residues .all heavy atoms: 3"):
        EGNOSurrogate(run, NAME, select, horizon=2).run()
    with pytest.raises(DataError, match="one frame with positions, which tells nothing"):
        EGNOSurrogate(peptide(residues, select, 1), select=select)


def test_a_long_chain_from_one_frame_stays_that_protein():
    done = EGNOSurrogate(mda.Universe(TOPOLOGY), horizon=400).run()
    moved = superposed_rmsd(done.results.positions[0], np.broadcast_to(done.atoms.positions, (400, 76, 3)))
    assert done.results.checks[0].ok and moved[-100:].mean() < 3.0


def test_other_numbers_do_not_go_on_with_a_forecast(tmp_path, monkeypatch):
    def forecast(**options):
        return EGNOSurrogate(ubiquitin(slice(5)), NAME, horizon=60, filename=tmp_path / "out.xtc", **options)

    monkeypatch.setattr(stream, "STREAM_FRAMES", 8)
    monkeypatch.setattr(stream, "STREAM_BYTES", 0)
    stopped, count = forecast(), iter(range(2))
    stopped.stop_when = lambda: next(count, None) is None
    with pytest.raises(StoppedError, match="--resume"):
        stopped.run()
    content = proteins.content()
    numbers = {**content["numbers"]["ca"], "turning": (2 * np.asarray(content["numbers"]["ca"]["turning"])).tolist()}
    monkeypatch.setattr(proteins, "content", lambda: {**content, "numbers": {"ca": numbers}})
    with pytest.raises(UsageError, match="cannot be gone on with"):
        forecast(resume=True).run()


@pytest.mark.parametrize("kind", ["ca", "heavy"])
def test_its_numbers_are_those_of_variograms(kind):
    content = proteins.content()
    assert content["strides_ps"] == [1.0, 100.0] and len(content["fitted_to"]) == 2
    network = OfProteins(kind, 1.0)(Known([], (1,)))
    assert (network.amplitude >= 0).all() and (network.turning >= 0).all() and network.span[1] >= 800
    slow = dataclasses.replace(network, stride=10.0)
    assert (slow.conditional(0, [1.0])[0].factor > network.conditional(0, [1.0])[0].factor).all()
