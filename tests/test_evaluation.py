"""Evaluations of forecasts whose errors are known, chains that are the run itself, and the suggestions."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import Ballistic, make_model, make_universe
from MDAnalysis.coordinates.DCD import DCDReader
from MDAnalysis.topology.PDBParser import PDBParser
from MDAnalysisTests.datafiles import GRO, XTC
from scipy.spatial.transform import Rotation
from test_metrics import autoregression

from egno_md import EGNOSurrogate, sample
from egno_md.cli import main
from egno_md.errors import DataError, ModelError, UsageError
from egno_md.evaluation.errors import mse_per_step
from egno_md.evaluation.evaluate import evaluate
from egno_md.evaluation.quality import backbone_torsions, quality
from egno_md.evaluation.score import _free_errors
from egno_md.evaluation.suggest import Suggestion, suggest
from egno_md.evaluation.text import WIDTH, columns
from egno_md.graph.builder import GraphBuilder
from egno_md.hindcast.hindcast import Entry
from egno_md.looking.evaluation import write_report
from egno_md.molecule.atoms import select_atoms
from egno_md.molecule.geometry import superposed_rmsd
from egno_md.specs import GraphSpec
from egno_md.trajectory import in_memory_universe

torch.set_num_threads(1)


def universe_of(frames, dt=1.0):
    """The atoms of `make_universe` (twice as often as needed) with these frames (F, N, 3)."""
    u = make_universe(1)
    u.load_new(np.asarray(frames, np.float32), dt=dt)
    return u


def wobbling(n_frames=240, phi=0.8, seed=0):
    """A chain of ten atoms that wobbles about its structure with memory phi per frame."""
    structure = make_universe(1).atoms.positions
    moved = autoregression(n_frames, 10, phi, sigma=0.05, seed=seed)
    return structure + moved - autoregression(1, 10, 0, sigma=0, seed=seed)[0]


def called(*arguments):
    """The command line in this process; its own warning filters do not outlive the call."""
    with warnings.catch_warnings():
        return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="egno-md")


def test_straight_flight_is_forecast_exactly():
    result = evaluate(make_model(Ballistic(4)), make_universe(80, velocity=0.05), horizon=6)  # a chain of two windows
    np.testing.assert_allclose(result.times, np.arange(1, 7))
    np.testing.assert_allclose(result.errors["model"], 0, atol=1e-9)
    np.testing.assert_allclose(result.errors["linear"], 0, atol=1e-9)
    u = make_universe(2, velocity=0.05)
    first, second = (u.trajectory[k].positions.astype(float).copy() for k in (0, 1))
    np.testing.assert_allclose(result.errors["static"], np.mean((second - first) ** 2) * result.times**2, rtol=1e-3)


def test_what_the_network_says_is_judged_in_the_laboratory_and_superposed():
    """One that leaves everything where it is, before its bonds are kept, is the start frame."""
    frames = wobbling()
    frames = frames + np.linspace(0, 30, len(frames))[:, None, None]  # and goes away
    result = evaluate(make_model(start="static", keep_bonds=True), universe_of(frames))
    np.testing.assert_allclose(result.as_predicted, result.errors["static"], rtol=1e-4)
    np.testing.assert_allclose(result.as_predicted_superposed, result.superposed.errors["static"], rtol=1e-3)
    assert (result.as_predicted > 1.05 * result.as_predicted_superposed).all()


@pytest.mark.parametrize("n_past", [0, 1, 3])
def test_a_free_forecast_is_given_as_much_past_as_it_wants_and_the_run_has(n_past):
    seen = []

    def forecaster(past, times):
        seen.append((len(past), past.shape[1]))
        return np.repeat(past[:, -1:][:, None], len(times), axis=2)

    forecaster.n_past = n_past
    run = SimpleNamespace(positions=np.random.default_rng(0).normal(size=(20, 4, 3)), every=2)
    starts = np.array([0, 1, 2, 3, 4, 9])
    true = run.positions[starts[:, None] + 2 * np.array([1, 2])]
    errors = _free_errors(forecaster, "any", run, starts, np.array([1, 2]), true)
    assert seen == ([(2, 1), (2, 2), (2, 3)] if n_past == 3 else [(6, 1)])
    still = np.repeat(run.positions[starts][:, None], 2, axis=1)
    np.testing.assert_allclose(errors[:, 0], np.mean((still - true) ** 2, axis=(2, 3)))


def test_errors_are_those_of_the_definition_and_the_skill_is_against_the_best_baseline():
    frames = wobbling()
    result = evaluate(make_model(Ballistic(4)), universe_of(frames))
    # Both halves: windows whose past and targets lie in one of them.
    starts = np.r_[1:116, 121:236]
    frames = frames.astype(np.float32).astype(float)
    steps = np.arange(1, 5)
    true = frames[starts[:, None] + steps]
    straight = frames[starts][:, None] + (frames[starts] - frames[starts - 1])[:, None] * steps[:, None, None]
    assert result.n_windows == len(starts)
    np.testing.assert_allclose(result.errors["model"], mse_per_step(straight, true), rtol=1e-4)
    np.testing.assert_allclose(result.errors["linear"], result.errors["model"], rtol=1e-4)
    others = np.array([e for name, e in result.errors.items() if name != "model"])
    np.testing.assert_allclose(result.skill, 1 - result.errors["model"] / others.min(axis=0))
    assert result.best_baseline == ["AR(1)"] * 4
    assert result.f_mse["static"] == result.errors["static"][-1]
    assert result.a_mse["static"] == pytest.approx(result.errors["static"].mean())
    low, high = result.intervals["static"].T
    assert (low < result.errors["static"]).all() and (result.errors["static"] < high).all()
    assert (result.skill_interval[:, 0] < result.skill).all() and (result.skill < result.skill_interval[:, 1]).all()
    assert "better than every baseline at 0 of 4" in result.verdict


@pytest.mark.parametrize(
    ("low", "high", "outcome", "words"),
    [
        ([0.1] * 4, [0.2] * 4, ["better"] * 4, "better than every baseline at every step, beyond the interval"),
        (
            [-0.3] * 4,
            [-0.1] * 4,
            ["worse"] * 4,
            "better than every baseline at 0 of 4 steps; worse than the best one at every step, beyond the interval: "
            "take AR(1) there",
        ),
        ([-0.1] * 4, [0.1] * 4, ["undecided"] * 4, "0 of 4 steps; not beyond the interval, for better or worse, at ev"),
        (
            [0.1, -0.1, -0.3, -0.3],
            [0.2, 0.1, -0.1, -0.1],
            ["better", "undecided", "worse", "worse"],
            "better than every baseline at 1 of 4 steps; worse than the best one at 2 of 4 (t/ps = 3, 4), beyond the "
            "interval: take AR(1) there; not beyond the interval, for better or worse, at 1 of 4 (t/ps = 2)",
        ),
    ],
)
def test_verdict_tells_worse_from_undecided(low, high, outcome, words):
    result = evaluate(make_model(Ballistic(4)), universe_of(wobbling()))
    superposed = dataclasses.replace(result.superposed, skill_interval=np.stack([low, high], axis=1))
    judged = dataclasses.replace(result, superposed=superposed)
    assert judged.outcome == outcome == judged.as_dict()["outcome"]
    assert words in judged.verdict and words in " ".join(judged.table().split())


def test_a_model_that_learned_from_more_than_the_baselines_is_said_to_have(tmp_path):
    """What it gains may be the frames that it has seen: of the test's run too few for the baselines."""
    model = make_model(Ballistic(4))
    run = {"file": "other.xtc", "frames": 1000, "part": "all", "atoms": 10}
    for fraction, more in ((0.6, True), (0.1, False)):  # 600 frames, 100
        data = {"runs": [run, {**run, "part": "test"}], "fractions": [fraction, 0.2, 0.8 - fraction]}
        result = evaluate(dataclasses.replace(model, provenance={"data": data}), universe_of(wobbling()))
        said = "(of baselines fitted to 120 frames of this run; the model learned from 600)"
        assert (said in result.verdict) == (said in " ".join(result.table().split())) == more
        assert any("learned from 600 frames" in note for note in result.as_dict()["notes"]) == more
        assert result.as_dict()["learned_frames"] == (600 if more else None)
        write_report(result, tmp_path / str(more))
        assert (said in (tmp_path / str(more) / "report.html").read_text()) == more


def test_the_verdict_goes_by_the_shape():
    """A rigid molecule that tumbles: standing still is wrong where it stands, and right about its shape."""
    structure = make_universe(1).atoms.positions.astype(float)
    spin = Rotation.from_rotvec(np.arange(240)[:, None] * [0.0, 0.05, 0.02]).as_matrix()
    frames = structure @ spin + 0.01 * np.random.default_rng(0).normal(size=(240, *structure.shape))
    result = evaluate(make_model(Ballistic(4)), universe_of(frames))
    assert (result.skill_interval[:, 0] > 0).all() or (result.errors["static"] > 5 * result.errors["model"]).all()
    assert (result.superposed.errors["static"] < 3e-4).all() and result.judged is result.superposed
    assert (result.superposed.skill_interval[:, 1] < 0).all() and set(result.outcome) == {"worse"}
    assert result.judged_by == "superposed on what came" and "superposed on what came: better than ev" in result.table()
    told = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert told["judged_by"] == result.judged_by
    for name in ("model", "static"):
        ours, starts = result.superposed.errors[name], np.r_[1:116, 121:236]
        assert told["superposed"]["errors"][name] == list(ours)
    exact = superposed_rmsd(frames[starts][:, None], frames[starts[:, None] + np.arange(1, 5)]) ** 2 / 3
    np.testing.assert_allclose(result.superposed.errors["static"], exact.mean(axis=0), rtol=1e-3)


def test_a_model_that_is_worse_everywhere_is_said_to_be():
    result = evaluate(make_model(Ballistic(4)), universe_of(wobbling()))
    assert (result.skill_interval[:, 1] < 0).all() and (result.superposed.skill_interval[:, 1] < 0).all()
    assert "worse than the best one at every step" in result.verdict and "not beyond" not in result.verdict


def test_baselines_have_not_seen_what_they_predict():
    # Each half stands at another structure: fitted on the other half, the mean structure is wrong in both.
    frames = wobbling(120, phi=0.0)
    bend = np.zeros((10, 3))
    bend[5:, 1] = 4 * np.arange(5)
    frames[60:] += bend
    result = evaluate(make_model(Ballistic(4)), universe_of(frames))
    assert result.errors["mean structure"].min() > 50 * 0.05**2
    assert result.n_windows == 2 * 55


def test_a_finely_saved_run_gives_the_same_errors():
    coarse = wobbling(120)
    fine = np.repeat(coarse, 3, axis=0)
    one = evaluate(make_model(Ballistic(4)), universe_of(coarse))
    three = evaluate(make_model(Ballistic(4)), universe_of(fine, dt=1 / 3), max_windows=10**6)
    for name in ("model", "static"):
        np.testing.assert_allclose(three.errors[name], one.errors[name], rtol=0.1)
    with pytest.raises(DataError, match="3 frame"):
        evaluate(make_model(Ballistic(4)), universe_of(fine, dt=1 / 3), every=2)
    with pytest.raises(DataError, match="not a whole number"):
        evaluate(make_model(Ballistic(4)), universe_of(coarse, dt=0.7))


def test_a_run_with_missing_frames_is_judged_in_its_even_stretches():
    frames = wobbling(400)
    kept = np.setdiff1d(np.arange(400), [100, 103, 250])  # stretches of 100, 2, 146 and 149 frames
    u = in_memory_universe(universe_of(frames).atoms, frames[kept], kept.astype(float))
    with pytest.warns(UserWarning, match="even stretches"):
        result = evaluate(make_model(Ballistic(4)), u)
    # The middle of all frames, 198, lies in the third stretch: windows of 1 + 4 frames around their start.
    assert result.n_windows == (100 - 5) + (96 - 5) + (50 - 5) + (149 - 5) and result.n_runs == 1
    assert result.notes == ("2 of 397 frames lie in even stretches that are too short for a window",)
    starts = np.r_[1:96, 105:196, 201:246, 252:396]
    true = frames[starts[:, None] + np.arange(1, 5)]
    expected = mse_per_step(np.repeat(frames[starts][:, None], 4, axis=1), true)
    np.testing.assert_allclose(result.errors["static"], expected, rtol=1e-3)


def test_files_are_given_one_by_one_and_selections_by_name(tmp_path):
    u = universe_of(wobbling(20))
    for call in (lambda *given: evaluate(make_model(Ballistic(4)), *given), suggest):
        with pytest.raises(UsageError, match=r"one by one.*found a list among them: put a \* before it"):
            call("a.pdb", ["a.dcd", "b.dcd"])
        with pytest.raises(
            UsageError, match="a Universe has its own: leave 'name CA' out; atoms are chosen by select="
        ):
            call(u, "name CA")


def test_the_unit_of_every_number_in_json_is_documented():
    page = (Path(__file__).parents[1] / "docs/conventions.md").read_text()
    section = page.partition("## JSON")[2].partition("\n## ")[0]
    result = evaluate(make_model(Ballistic(4)), universe_of(wobbling(60)))
    words = (
        "model",
        "superposed",
        "calibration",
        "quality",
        "best_baseline",
        "outcome",
        "judged_by",
        "verdict",
        "notes",
    )
    numbers = set(result.as_dict()) - set(words)
    numbers |= {field.name for field in dataclasses.fields(Suggestion)} - {
        "stride_ps",
        "horizon_ps",
        "n_times",
        "reasons",
    }
    numbers |= {field.name for field in dataclasses.fields(Entry)} - {"draws"}
    assert not [name for name in sorted(numbers) if f"`{name}`" not in section]


def test_the_verdict_comes_first_and_tables_have_a_row_for_each_forecast():
    result = evaluate(make_model(Ballistic(4)), universe_of(wobbling()))
    wide = {**result.superposed.intervals, "model": np.tile([1234.5678, 2345.6789], (4, 1))}
    superposed = dataclasses.replace(
        result.superposed, intervals=wide, skill=np.full(4, -12.5), skill_interval=np.tile([-13.75, -11.25], (4, 1))
    )
    lines = dataclasses.replace(result, superposed=superposed).table().splitlines()
    assert max(map(len, lines)) <= WIDTH and lines[2].startswith("verdict    superposed on what came: better than")
    first, second = (k for k, line in enumerate(lines) if line.startswith("t/ps"))
    assert lines[first].split() == lines[second].split() == ["t/ps", "1", "2", "3", "4", "A-MSE"]
    assert lines[first + 2].split() == ["95", "%", "from", *["1235"] * 4]
    assert lines[first + 3].split() == ["to", *["2346"] * 4]
    for scores, at in ((superposed, first), (result, second)):
        block = lines[at + 1 : lines.index("", at)] if "" in lines[at:] else lines[at + 1 :]
        baselines = {name: e for name, e in scores.errors.items() if name != "model"}
        best = min(baselines, key=lambda name: baselines[name][2])
        for name, errors in scores.errors.items():
            (row,) = (line[len(name) :].split() for line in block if line.startswith(f"{name}  "))
            assert [float(cell.rstrip("*")) for cell in row] == pytest.approx([*errors, errors.mean()], abs=1e-4)
            assert row[2].endswith("*") == (name == best)
    (skill,) = (line.split() for line in lines[first:second] if line.startswith("skill"))
    assert skill[1:5] == ["-1250.0%"] * 4 and skill[5] == f"{result.superposed.a_skill[0]:+.1%}"


def test_columns_that_have_no_room_beside_the_others_follow_below():
    lines = columns(["head", *map(str, range(40))], [("one", ["0.1234"] * 40), ("two", ["9"] * 39 + ["123456789012"])])
    assert max(map(len, lines)) <= WIDTH and lines[3] == "" and lines[4].startswith("head")
    cells = [line.split()[1:] for line in lines if line.startswith("two")]
    assert len(cells) == 4 and [cell for row in cells for cell in row] == ["9"] * 39 + ["123456789012"]


def test_too_few_frames_or_blocks():
    with pytest.raises(DataError, match="12 frames in all"):
        evaluate(make_model(Ballistic(4)), universe_of(wobbling(11)))
    few = evaluate(make_model(Ballistic(4)), universe_of(wobbling(14)))
    assert np.isnan(few.skill_interval).all() and "too few" in few.verdict
    assert "nan" not in few.table() and json.loads(json.dumps(few.as_dict(), allow_nan=False))


def test_chains_that_are_the_run_match_it():
    u = universe_of(wobbling(400))
    builder = GraphBuilder(u.atoms, make_model().graph)
    frames = np.stack([u.atoms.positions for _ in u.trajectory])
    found = quality(builder, [frames[:100], frames[100:200]], [frames[:200], frames[200:]], 1.0)
    assert found.rmsf_correlation(found.chains) == pytest.approx(1)
    assert found.rmsf_ratio(found.chains) == pytest.approx(1)
    np.testing.assert_allclose(found.chains.bonds, found.run.bonds, atol=1e-6)
    assert found.chains.radius.mean() == pytest.approx(found.run.radius.mean())
    assert found.chains.clashes == found.run.clashes and found.chains.mirrored == 0
    assert found.run.relaxation == pytest.approx(-1 / np.log(0.8), rel=0.35)
    assert 0 < found.rmsf_correlation(found.floor) < 1


def test_chains_that_stand_still_or_are_mirrored_are_seen():
    u = universe_of(wobbling(200) + np.sin(np.arange(10))[:, None] * [0, 0, 4.0])  # a chain with a twist
    builder = GraphBuilder(u.atoms, make_model().graph)
    frames = np.stack([u.atoms.positions for _ in u.trajectory])
    still = quality(builder, [np.repeat(frames[:1], 80, axis=0)], [frames], 1.0)
    assert still.rmsf_ratio(still.chains) < 1e-6 and np.isnan(still.rmsf_correlation(still.chains))
    assert np.isnan(still.chains.relaxation)
    broken = frames[:50].copy()
    broken[:, 5:] += 1.0
    assert quality(builder, [broken], [frames], 1.0).chains.bonds_off > still.run.bonds_off
    u = mda.Universe(*map(str, sample()))
    ca = select_atoms(u, "ca")
    frames = np.stack([ca.positions for _ in u.trajectory])
    turned = quality(GraphBuilder(ca, GraphSpec()), [frames[:20] * [-1, 1, 1]], [frames], 1.0)
    assert turned.chains.mirrored == 1 and turned.run.mirrored == 0
    assert turned.torsion_kind == "virtual" and len(turned.torsion_names) == 73
    assert turned.torsion_divergence(turned.chains) > 3 * turned.torsion_divergence(turned.floor)


def test_backbone_torsions_are_phi_and_psi():
    from MDAnalysis.analysis.dihedrals import Ramachandran

    u = mda.Universe(GRO, XTC)
    atoms = u.select_atoms("protein and name N CA C and resid 1:30")
    spec = GraphSpec(select="backbone", node_features=("speed",))
    kind, names, quadruples = backbone_torsions(GraphBuilder(atoms, spec))
    residues = atoms.residues[1:-1]
    expected = Ramachandran(residues.atoms).run(stop=1).results.angles[0]  # (R, 2)
    corners = [np.ascontiguousarray(atoms.positions[q]) for q in quadruples.T]
    ours = np.degrees(mda.lib.distances.calc_dihedrals(*corners)).reshape(-1, 2)
    assert kind == "phi/psi" and names[:2] == [f"{k} {residues[0].resname} 2" for k in ("phi", "psi")]
    np.testing.assert_allclose(ours, expected, atol=0.05)


def test_suggest_on_motion_with_a_known_memory():
    phi = 0.97
    frames = autoregression(6000, 40, phi)
    u = mda.Universe.empty(40, trajectory=True)
    u.add_TopologyAttr("names", ["C"] * 40)
    u.load_new(frames.astype(np.float32), dt=0.5)
    found = suggest(u, select="all", n_times=4)
    half = np.log(0.5) / np.log(phi) * 0.5  # ps: 11.4
    assert found.horizon_ps == pytest.approx(half, rel=0.3)
    assert found.stride_ps == pytest.approx(found.horizon_ps / 4)
    near = found.lags < 20
    np.testing.assert_allclose(found.memory[near], phi ** (found.lags[near] / 0.5), atol=0.06)
    np.testing.assert_allclose(found.persistence[0], (phi - 1) / 2, atol=0.01)  # cov(step, next step) / var(step)
    json.dumps(found.as_dict(), allow_nan=False)


def test_suggest_refuses_noise_and_short_runs():
    noise = universe_of(wobbling(400, phi=0.0))
    found = suggest(noise, select="all")
    assert np.isnan(found.stride_ps) and "nothing" in found.table() and "more finely" in found.reasons[0]
    with pytest.raises(DataError, match="at least 20"):
        suggest(universe_of(wobbling(12)), select="all")
    flying = suggest(universe_of(make_universe(1).atoms.positions + swinging(400)), select="all", n_times=5)
    assert any("fly on" in reason for reason in flying.reasons)


def swinging(n_frames, period=60):
    """Every coordinate swings with a phase of its own, (F, 10, 3)."""
    rng = np.random.default_rng(0)
    phase = 2 * np.pi * np.arange(n_frames)[:, None, None] / period + rng.uniform(0, 6, size=(10, 3))
    return 0.3 * np.sin(phase)


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "egno_md", "evaluate", *map(str, sample()), "--windows", "12", "--json"]
    done = subprocess.run(
        [*command, "--report", "out"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["times"]) == 8 and set(found["errors"]) >= {"model", "static", "mean structure", "AR(1)"}
    assert (tmp_path / "out" / "report.html").stat().st_size > 20000
    again = called("evaluate", *sample(), "--windows", 12, "--report", tmp_path / "out")
    assert again.exit_code == 1 and "--force" in again.stderr
    table = called("evaluate", *sample(), "--windows", 12, "--horizon", 2, "--chains", 1, "--chain-length", 8)
    assert table.exit_code == 0 and "verdict" in table.stdout and "clash" in table.stdout, table.stderr
    said = called("suggest", *sample())
    assert said.exit_code == 0 and "because" in said.stdout, said.stderr
    # What it is about, one frame in the singular, and the options that take it.
    assert "suggested  to train a model: stride 1 ps, a window of 1 frame, horizon 1 ps" in said.stdout
    assert "egno-md train --stride 1 --window 1)" in said.stdout and "take 1 frame per window" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["evaluate", *sample(), "--horizon", 0], 2, ["horizon"]),
        (["evaluate", *sample(), "--horizon", 70], 1, ["too few", "frames in all"]),
        (["evaluate", *sample(), "--dt", 0.3], 1, ["0.3 ps", "1 ps"]),
        (["evaluate", *sample(), "--start", 5000], 1, ["no frame"]),
        (["evaluate", *sample(), "--model", "none"], 1, ["none", "ca-1ps"]),
        (["suggest", *sample(), "--select", "resname LIG"], 1, ["resname LIG"]),
        (["suggest", sample()[0]], 1, ["at least 20"]),
    ],
    ids=lambda value: " ".join(map(str, value[3:])) if isinstance(value, list) else None,
)
def test_bad_input(arguments, code, words):
    done = called(*arguments)
    assert done.exit_code == code and done.stdout == "" and isinstance(done.exception, SystemExit), done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_a_foreign_selection_is_refused_as_everywhere():
    u = mda.Universe(*map(str, sample()))
    with pytest.raises(ModelError) as ours:
        evaluate("ca-1ps", u, select="name CA CB")
    with pytest.raises(ModelError) as theirs:
        EGNOSurrogate(u, "ca-1ps", select="name CA CB")
    assert str(ours.value) == str(theirs.value) and "CB" in str(ours.value)
    narrowed = evaluate("ca-1ps", u, select="name CA and resid 1:20", max_windows=5)
    assert narrowed.n_atoms == 20


@pytest.mark.filterwarnings("ignore::UserWarning:MDAnalysis")
def test_every_file_is_opened_once(tmp_path, monkeypatch):
    u = universe_of(wobbling())
    u.atoms.write(tmp_path / "top.pdb")
    for name in ("a", "b"):
        with mda.Writer(str(tmp_path / f"{name}.dcd"), 10, dt=1.0, istart=1) as writer:
            for _ in u.trajectory:
                writer.write(u.atoms)
    opened: list[str] = []
    for cls in (PDBParser, DCDReader):
        monkeypatch.setattr(cls, "__init__", counted(cls.__init__, opened))
    files = [tmp_path / "top.pdb", tmp_path / "a.dcd", tmp_path / "b.dcd"]
    model = make_model(Ballistic(4))
    model.graph = model.graph.model_copy(update={"select": "all"})
    assert evaluate(model, *files).n_runs == 2
    assert sorted(opened) == sorted(map(str, files))
    opened.clear()
    suggest(*files, select="all")
    assert sorted(opened) == sorted(map(str, files))


def counted(method, opened):
    """`method` of a parser or reader, with the file that it is given noted."""

    def noted(self, filename, *args, **kwargs):
        opened.append(str(filename))
        return method(self, filename, *args, **kwargs)

    return noted


def test_bad_sources():
    with pytest.raises(UsageError, match="topology file"):
        evaluate("ca-1ps", 3)
    with pytest.raises(UsageError, match="has its own"):
        evaluate("ca-1ps", make_universe(5), "a.dcd")
