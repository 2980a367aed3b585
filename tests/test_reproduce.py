"""The paper's experiments, each in a few seconds: runs in parts, their files, the page and other resolutions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Ballistic
from paper_data import write_md17, write_mocap, write_sgdml, write_transitions

from egno_md.cli import main
from egno_md.datasets.nbody import NBodyOptions, simulate, starts
from egno_md.errors import StoppedError, UsageError
from egno_md.forecast.model import new_model
from egno_md.reproduce import EXPERIMENTS, jobs, read_results, run_job, write_page, zero_shot
from egno_md.reproduce.experiments import SYSTEMS
from egno_md.reproduce.results import grouped, published_rows
from egno_md.reproduce.zeroshot import readings
from egno_md.training.recipe import complete, planned
from egno_md.training.source import source_of

TINY = {"hidden": 4, "layers": 1, "max_epochs": 10}
FEW = {"data.train": 20, "data.validation": 8, "data.test": 12}


def called(*arguments):
    command = [sys.executable, "-m", "egno_md", "reproduce", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def settings(values):
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_mocap(folder / "mocap")
    write_sgdml(write_md17(folder / "md17"))
    write_transitions(folder / "adk")
    return folder


def test_the_command_goes_on_where_it_stopped_with_the_same_digits(tmp_path, data):
    small = settings(TINY | {"training.learning_rate": 1e-5})
    arguments = ["mocap-run", *small, "--system", "egno-l", "--data", data]
    (job,) = jobs("mocap-run", ["egno-l"], settings=TINY | {"training.learning_rate": 1e-5})
    run_job(job, work=tmp_path / "whole", data=data, progress=False)
    first = called(*arguments, "--work", tmp_path / "parts", "--budget", 1e-9)
    assert first.returncode == 0 and "after epoch 5 of at most 10" in first.stderr
    assert "0 of 1 runs are finished" in first.stderr
    (kept,) = (tmp_path / "parts" / "mocap-run").glob("*.json")
    half = json.loads(kept.read_text())
    assert not half["finished"] and half["test"] is None and len(half["validation"]) == 1
    # A finished run takes no time: the next one begins, however short the time is.
    last = called(*arguments, "--work", tmp_path / "parts", "--budget", 1e-9, "--seeds", 2, "--json")
    assert last.returncode == 0, last.stderr
    said = json.loads(last.stdout)
    assert [run["seed"] for run in said["runs"]] == [0] and not said["finished"]
    one, other = (read_results(tmp_path / name)[0] for name in ("whole", "parts"))
    assert one["test"] == other["test"] and other["finished"] and one["best_epoch"] == other["best_epoch"]
    values = [[(entry["epoch"], entry["F-MSE"]) for entry in run["validation"]] for run in (one, other)]
    assert values[0] == values[1] and [epoch for epoch, _ in values[0]] == [5, 10]


def test_a_training_goes_on_where_its_data_have_been_moved_to_if_they_are_the_same(tmp_path):
    (job,) = jobs("mocap-run", ["linear"], settings={"max_epochs": 10})
    for name in ("here", "there"):
        write_mocap(tmp_path / name / "mocap")
    with pytest.raises(StoppedError):
        run_job(job, work=tmp_path / "work", data=tmp_path / "here", minutes=1e-9, progress=False)
    (file,) = (tmp_path / "there" / "mocap").glob("*run*.npz")
    arrays = dict(np.load(file))
    name = next(name for name, values in arrays.items() if values.dtype.kind == "f")
    np.savez(file, **arrays | {name: arrays[name] + 1})
    with pytest.raises(UsageError, match="other settings: data frames"):
        run_job(job, work=tmp_path / "work", data=tmp_path / "there", progress=False)
    np.savez(file, **arrays)
    assert run_job(job, work=tmp_path / "work", data=tmp_path / "there", progress=False)["finished"]
    assert str(tmp_path) not in (tmp_path / "work" / "mocap-run" / job.label / "training.json").read_text()


@pytest.mark.parametrize(
    ("experiment", "case", "system", "more"),
    [
        ("mocap-run", "", "egno-l", {"training.learning_rate": 1e-5}),
        ("md17", "ethanol", "egno-iv", {}),
        ("nbody", "", "egno-t2t", FEW),
        ("mocap-run", "", "egnn-r", {"training.learning_rate": 1e-5}),
        ("mocap-run", "", "eghn", {"clusters": 3, "training.learning_rate": 1e-5}),
        ("md17", "ethanol-apart", "egno", {"data.source": "sgdml"}),
        ("adk", "", "egno", {"data.source": "transitions", "max_epochs": 1, "validate_every": 1}),
    ],
)
def test_every_experiment_runs_in_small(tmp_path, data, experiment, case, system, more):
    (job,) = jobs(experiment, [system], cases=[case] if case else (), settings=TINY | more)
    result = run_job(job, work=tmp_path, data=data, progress=False)
    assert result["finished"] and np.isfinite(result["test"]["F-MSE"])
    assert len(result["test"]["per_step"]["static"]) == result["recipe"]["window"]["n_times"]
    assert (tmp_path / experiment / job.label / "model.safetensors").exists()
    assert run_job(job, work=tmp_path, data=data, progress=False) == result  # read, not trained again
    page, *figures = write_page(tmp_path, tmp_path / "out" / "page.md")
    text = page.read_text()
    assert f"{result['test']['F-MSE'] / EXPERIMENTS[experiment].scale:.4g}" in text and figures[0].stat().st_size > 1000
    assert f"egno-md reproduce {experiment}" in text and f"--system {system}" in text
    assert text.count("Nothing was run") == 4


def test_every_system_is_in_the_register_or_says_what_it_lacks():
    for name, system in SYSTEMS.items():
        try:
            (job,) = jobs("nbody", [name])
        except UsageError as error:
            assert f"no operator {system.operator!r}" in str(error)
            continue
        recipe = job.recipe(Path("data"))
        plan = planned(complete(recipe, source_of(recipe)))
        assert plan.window.targets[-1] == 10 and plan.training.batch_size == 100 and plan.graph.cutoff == np.inf
        assert plan.model.options.get("step", 0.2) == 0.2


def test_all_seeds_count_those_that_diverge_too(tmp_path, data):
    asked = jobs("mocap-run", seeds=2, settings={**TINY, "learning_rate": 1e6})
    for job in asked:
        result = run_job(job, work=tmp_path, data=data, progress=False)
        assert "diverged" in result["diverged"] and result["finished"] and str(tmp_path) not in json.dumps(result)
    (group,) = grouped(read_results(tmp_path))
    assert group.diverged == 2 and np.isnan(group.median("F-MSE"))
    assert "(2 of 2 diverged)" in write_page(tmp_path, tmp_path / "page.md")[0].read_text()


def test_medians_are_those_of_the_seeds_and_in_the_unit_of_the_table(tmp_path, data):
    for job in jobs("mocap-run", seeds=3, settings={**TINY, "training.learning_rate": 1e-5}):
        run_job(job, work=tmp_path, data=data, progress=False)
    results = read_results(tmp_path)
    (group,) = grouped(results)
    assert group.median("A-MSE") == pytest.approx(np.median([100 * result["test"]["A-MSE"] for result in results]))


def test_cases_are_beside_one_another_with_the_lowest_error_in_bold(tmp_path, data):
    (job,) = jobs("mocap-run", settings={**TINY, "training.learning_rate": 1e-5})
    found = run_job(job, work=tmp_path / "one", data=data, progress=False)
    work = tmp_path / "work" / "md17"
    work.mkdir(parents=True)
    errors = {"ethanol": (0.01, 0.02), "uracil": (0.04, 0.03), "toluene": (0.06, None)}
    for case, pair in errors.items():
        for system, error in zip(("egno", "egnn-s"), pair, strict=True):
            test = error and {**found["test"], "F-MSE": error, "A-MSE": error / 2}
            one = {**found, "experiment": "md17", "case": case, "system": system, "preset": "best", "test": test}
            (work / f"{case}_{system}.json").write_text(json.dumps(one))
    text = write_page(work.parent, tmp_path / "page.md")[0].read_text()
    for line in (
        "| F-MSE, preset best | egno | egnn-s |\n|---|---|---|\n",
        "| A-MSE, preset best | egno | egnn-s |\n",
        "| ethanol | **1** | 2 |\n",
        "| uracil | 4 | **3** |\n",
        "| toluene | **6** |  |\n",
        "| uracil | 2 | **1.5** |\n",
    ):
        assert line in text


def test_another_training_in_the_same_place_is_refused(tmp_path, data):
    (job,) = jobs("mocap-run", settings=TINY)
    run_job(job, work=tmp_path, data=data, progress=False)
    path = tmp_path / "mocap-run" / f"{job.label}.json"
    found = json.loads(path.read_text())
    del found["recipe"]["data"]["every_start"], found["recipe"]["training"]["distill"]  # as of an earlier version
    path.write_text(json.dumps(found))
    assert run_job(job, work=tmp_path, data=data, progress=False) == found
    found["recipe"]["training"]["learning_rate"] = 0.5
    path.write_text(json.dumps(found))
    with pytest.raises(UsageError, match="training.learning_rate was 0.5 and is 0.0005 now"):
        run_job(job, work=tmp_path, data=data, progress=False)
    found["recipe"]["training"] |= {"learning_rate": 0.0005, "forgotten": 1}
    path.write_text(json.dumps(found))
    with pytest.raises(UsageError, match=r"does not take: .*forgotten.*; move it away"):
        run_job(job, work=tmp_path, data=data, progress=False)
    path.write_text(json.dumps(found | {"recipe": found["recipe"] | {"training": 3}}))
    with pytest.raises(UsageError, match=r"does not take: Input should be a valid dictionary; move it away"):
        run_job(job, work=tmp_path, data=data, progress=False)
    path.write_text("{}")
    with pytest.raises(UsageError, match="not the JSON file of a run"):
        run_job(job, work=tmp_path, data=data, progress=False)


def test_long_settings_have_a_name_that_a_file_can_have():
    names = [["a" * 50] * count for count in (5, 6)]
    labels = [jobs("mocap-run", settings={"graph.atom_names": some})[0].label for some in names]
    assert len({*labels}) == 2 and max(map(len, labels)) < 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nbodi"], "no experiment 'nbodi' .did you mean 'nbody'.*mocap-run"),
        (["nbody", "--system", "egnoo"], "no system 'egnoo'.*known are egno, egno-l"),
        (["md17", "--case", "water"], "no case 'water': known are aspirin"),
        (["nbody", "--seeds", "0"], "seeds must be at least 1"),
        (["nbody", "--budget", "0"], "--budget must be more than 0"),
        (["nbody", "--set", "hiden=3"], "no setting hiden.*hidden"),
        (["page", "--work", "nowhere"], "no finished runs below nowhere.*egno-md reproduce nbody --work nowhere"),
    ],
)
def test_what_cannot_be_run_is_said_with_what_can(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", *arguments])
    assert caught.value.code == 2
    assert re.search(words, capsys.readouterr().err)


def test_published_numbers_have_a_source_and_every_molecule():
    for name, experiment in EXPERIMENTS.items():
        for case in experiment.cases:
            rows = published_rows(name, case)
            assert rows and all(row["source"] and ("F-MSE" in row or "A-MSE" in row) for row in rows)
    (egno,) = [row for row in published_rows("md17", "ethanol-apart") if row["system"] == "egno"]
    assert egno["F-MSE"] == 4.62 and egno["A-MSE"] == 3.28


@pytest.mark.parametrize(("data", "egnn"), [("", 0.0071), ("data.train=1000", 0.0094), ("data.train=10000", 0.0051)])
def test_published_numbers_are_those_of_as_many_samples(data, egnn):
    found = {row["name"]: row["F-MSE"] for row in published_rows("nbody", "", data) if "F-MSE" in row}
    assert found["EGNN"] == egnn and published_rows("nbody", "", "data.train=500") == []


def test_finer_steps_of_the_generator_pass_through_its_frames():
    some = starts(NBodyOptions(train=3, validation=1, test=1))["train"]
    np.testing.assert_array_equal(simulate(*some, 2)[0], simulate(*some, 8, 25)[0][:, 3::4])


def test_straight_flight_is_read_as_straight_at_any_time():
    """A network whose answer is known at every time: interpolations of it are itself."""
    (job,) = jobs("nbody", settings={**TINY, "data.train": 3, "data.validation": 3, "data.test": 20})
    recipe = job.recipe(__file__)
    plan = planned(complete(recipe, source_of(recipe)))
    model = new_model(plan.graph, plan.window, plan.model, seed=0)
    model.network = Ballistic(5)
    found = readings(model, recipe)
    assert [line["points"] for line in found["readings"]] == [5, 10, 20, 40]
    one, *others = found["readings"]
    assert one["new"] is None and one["rough"] == pytest.approx(0, abs=1e-6)
    for line in others:
        assert line["old"] == pytest.approx(one["old"], rel=1e-5)
        assert line["linear"] == pytest.approx(line["new"], rel=1e-4) == line["spline"]
        assert line["times"][-1] == 10 and len(line["errors"]) == line["points"]
    # Between the points of training the truth is nearer to the start, and so is the error.
    assert others[-1]["errors"][0] < one["errors"][0]


def test_a_model_in_the_middle_of_its_training_can_be_read(tmp_path, data):
    (job,) = jobs("nbody", settings=TINY | FEW)
    with pytest.raises(UsageError, match="no finished runs"):
        zero_shot(tmp_path, tmp_path / "zero_shot.json")
    with pytest.raises(StoppedError):
        run_job(job, work=tmp_path, data=data, minutes=1e-9, progress=False)
    zero_shot(tmp_path, tmp_path / "zero_shot.json")
    found = json.loads((tmp_path / "zero_shot.json").read_text())
    assert not found["finished"] and len(found["readings"]) == 4
    assert "Resolution without training" in write_page(tmp_path, tmp_path / "page.md")[0].read_text()
