"""Numbers and names that nobody can mean: one line, before any time or memory is spent."""

from __future__ import annotations

import bz2
import re
import subprocess
import sys
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_model, make_universe
from MDAnalysisTests import datafiles

from egno_md import EGNOSurrogate, sample
from egno_md.cli import main
from egno_md.cli.output import for_the_shell
from egno_md.errors import DataError, UsageError
from egno_md.forecast import asked
from egno_md.forecast.device import resolve_device
from egno_md.forecast.rolling import check_numbers
from egno_md.nn import operators
from egno_md.specs import GraphSpec, ModelSpec, TrainSpec, WindowSpec
from egno_md.training.data import FilesOptions
from egno_md.training.process import MEETING, check_processes
from egno_md.trajectory.universe import open_universe

HUGE = 10**30


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (WindowSpec, {"stride_ps": float("inf")}),
        (WindowSpec, {"stride_ps": 1.0, "n_times": HUGE}),
        (WindowSpec, {"stride_ps": 1.0, "span": HUGE}),
        (GraphSpec, {"cutoff": 1e300}),
        (GraphSpec, {"n_rbf": 10**9}),
        (GraphSpec, {"hops": 10**9}),
        (TrainSpec, {"batch_size": HUGE}),
        (TrainSpec, {"seed": HUGE}),
        (TrainSpec, {"seed": -1}),
        (TrainSpec, {"learning_rate": 1e300}),
        (ModelSpec, {"length_scale": 1e300}),
        (FilesOptions, {"every": HUGE}),
        (FilesOptions, {"blocks": 10**9}),
        (FilesOptions, {"fractions": (float("nan"), 0.5, 0.5)}),
    ],
)
def test_numbers_of_a_recipe_are_bounded(spec, field):
    with pytest.raises(ValueError, match=list(field)[-1]):
        spec(**field)


def test_all_pairs_are_still_a_graph():
    assert GraphSpec(cutoff=float("inf"), edge_features=("distance",)).cutoff == float("inf")


@pytest.mark.parametrize("operator", ["egno", "eghno", "flow", "egnn", "egnn-s", "rf", "tfn", "se3-transformer"])
def test_networks_that_no_machine_holds_are_refused_at_once(operator):
    width = "channels" if operator in ("tfn", "se3-transformer") else "hidden"
    layers = "layers_per_point" if operator == "egnn-s" else "layers"
    for options in ({width: HUGE}, {layers: HUGE}, {width: 10_000}, {layers: 1025}):
        with pytest.raises(UsageError, match="at most|weights alone"):
            operators.options_of(ModelSpec(operator=operator, options=options))
    assert operators.options_of(ModelSpec(operator=operator, options={width: 512})).model_dump()[width] == 512


@pytest.mark.parametrize("model", ["static", "elastic network", make_model()])
def test_forecasts_are_bounded(model):
    u = make_universe()
    for wrong in ({"horizon": 10_000_001}, {"substeps": 1001}, {"horizon": HUGE}, {"samples": 10**9}):
        with pytest.raises(UsageError, match="must be at most"):
            EGNOSurrogate(u, model, **wrong)
    with pytest.raises(UsageError, match="must be less than the 12 frames"):
        EGNOSurrogate(u, "static", every=12)


def test_ten_million_frames_and_a_thousand_substeps_are_the_most():
    check_numbers(10_000_000, 1000)
    check_numbers(1, 1)
    for horizon, substeps in ((10_000_001, 1), (1, 1001), (0, 1), (1, 0)):
        with pytest.raises(UsageError, match="horizon|substeps"):
            check_numbers(horizon, substeps)


def test_forecasts_that_no_memory_holds_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(asked, "memory_of_machine", lambda: 12.0 * 10 * 1999)
    u = make_universe()
    with pytest.raises(UsageError, match="1 start.* 1 future.*2000 frames of 10 atoms.*this machine has"):
        EGNOSurrogate(u, "static", horizon=2000).run()
    assert EGNOSurrogate(u, "static", horizon=1999).run().results.positions.shape == (1, 1999, 10, 3)
    monkeypatch.setattr("egno_md.trajectory.stream.STREAM_BYTES", 0)
    streamed = EGNOSurrogate(u, "static", horizon=2000, filename=tmp_path / "a.dcd").run()  # the cure that it names
    assert np.asarray(streamed.results.positions).shape == (1, 2000, 10, 3)


def test_nodes_that_nobody_told_of_are_refused(monkeypatch):
    for name in MEETING:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="srun or torchrun"):
        check_processes(1, 2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    check_processes(1, 2)


def test_a_device_without_numbers_is_refused():
    with pytest.raises(UsageError, match=r"device \(--device\) 'meta' cannot be used"):
        resolve_device("meta")


@pytest.mark.parametrize("name", ["", ".", "/", "x" * 300 + ".dcd", "out.dcd/", "out"])
def test_names_that_cannot_be_are_refused_before_the_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_universe().atoms.write(str(tmp_path / "a.pdb"))
    done = CliRunner().invoke(main, ["predict", str(tmp_path / "a.pdb"), "--model", "static", "-o", name])
    assert done.exit_code in (1, 2) and done.output.splitlines()[-1].startswith("Error: ")
    assert isinstance(done.exception, SystemExit) and [path.name for path in tmp_path.iterdir()] == ["a.pdb"]


def test_a_name_that_is_not_utf8_is_refused_and_a_link_helps(tmp_path):
    command = [sys.executable, "-m", "egno_md", "info", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "is not UTF-8" in done.stderr and "ln -s" in done.stderr


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_little_memory_is_said_in_a_line(monkeypatch, error):
    def raises(name):
        raise error

    monkeypatch.setattr("egno_md.models.header.read_header", raises)
    done = CliRunner().invoke(main, ["info", "ca-1ps"])
    assert done.exit_code == 1 and "memory of this machine is too small" in done.output
    monkeypatch.setattr("egno_md.models.header.read_header", lambda name: [][0])
    assert isinstance(CliRunner().invoke(main, ["info", "ca-1ps"]).exception, IndexError)  # a fault stays a fault


T, X = map(str, sample("chignolin"))
#: What is typed, and what the message names; of predict where no command is named.
TYPED = [
    (["--stride", "0"], "--stride must be a whole number of at least 1, found 0"),
    (["--horizon", "0"], "--horizon must be a whole number"),
    (["--samples", "0"], "--samples must be a whole number"),
    (["--samples", "99999"], "--samples must be at most 10,000"),
    (["--seed", "-1"], "--seed must be a whole number"),
    (["--dt", "-1"], "--dt -1.0: the frame spacing"),
    (["--device", "nothing"], "--device 'nothing' cannot be used here"),
    (["--precision", "tf32", "--device", "cpu"], "use 'bf16'"),
    (["--select", "resname LIG"], "for example --select heavy"),
    (["--from-frames", "5,a"], "--from-frames '5,a' are no frames: give START:STOP:STEP, such as 0:1000:50, or whole"),
    (["-o", "there.dcd"], "there.dcd exists; choose another name, or replace it with --force"),
    (["--on-unphysical", "stop", "--samples", "2"], "--on-unphysical stop takes one sample"),
    (["--model", "static", "--samples", "2"], "or leave out --samples"),
    (["--model", "ca-1ps", "--dt", "2"], "give the true spacing: --dt 1"),
    (["interpolate", "--factor", "1"], "--factor 1: a whole number"),
    (["interpolate", "--fast-ps", "0"], "--fast-ps 0.0: a time"),
    (["interpolate", "--start", "5", "--stop", "2"], "--start and --stop: 5 to 2"),
    (["evaluate", "--every", "0"], "--every must be"),
    (["evaluate", "--windows", "0"], "--windows must be at least 1"),
    (["evaluate", "--seed", "-1"], "--seed must be"),
    (["evaluate", "--chains", "1", "--chain-length", "1"], "--chain-length must be at least 2"),
    (["suggest", "--window", "0"], "--window must be at least 1"),
    (["train", "-o", "n.safetensors", "--devices", "0"], "--devices must be at least 1"),
    (["train", "-o", "n.safetensors", "--window", "0"], "window.n_times (--window): "),
]


@pytest.mark.parametrize(("typed", "said"), TYPED, ids=lambda value: " ".join(value) if type(value) is list else None)
def test_what_was_typed_is_named_as_it_is_typed(typed, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.dcd").touch()
    command, *options = typed if not typed[0].startswith("-") else ["predict", *typed]
    done = CliRunner().invoke(main, [command, T, X, *options])
    line = done.output.splitlines()[-1]
    assert done.exit_code in (1, 2) and line.startswith("Error: ") and said in line
    names = "|".join(parameter.name for parameter in main.commands[command].params)
    assert not re.search(rf"(?<![\w.-])({names})=|\((--|({names})[=)])", line.replace("(--window): ", ""))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("replace it with --force (force=True)", "replace it with --force"),
        ("--select protein (select='protein') or --select heavy", "--select protein or --select heavy"),
        (
            "Keep one: select='(protein and name CA) and not altloc B'.",
            "Keep one: --select '(protein and name CA) and not altloc B'.",
        ),
        ("the true spacing: dt=2 (--dt 2)", "the true spacing: --dt 2"),
        ("pass every=3 (--every 3) to", "pass --stride 3 to"),
        ("every=3 fits, every (--every) is found", "--stride 3 fits, --stride is found"),
        ("choose another work folder (--work)", "choose another work folder (--work)"),
        *((text, text) for text in ("egno-md train --set seed=3", "/data/seed=3/a.xtc", "window.seed=3")),
    ],
)
def test_messages_for_python_are_put_into_the_words_of_the_shell(message, said):
    assert for_the_shell(message, main.commands["predict"]) == said
    assert for_the_shell(message, None) == message


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"frames": [1000]}, "there is no frame 1000; the trajectory has frames 0 to 11"),
        ({"frames": [-13]}, "there is no frame -13;"),
        ({"frames": 12}, "there is no frame 12;"),
        ({"frames": [float("inf")]}, "there is no frame inf;"),
        ({"frames": [float("nan")]}, "whole numbers"),
        ({"frames": [79.9]}, "whole numbers"),
        ({"frames": [3.7]}, r"whole numbers.*found \[3.7\]"),
        ({"frames": "5"}, "whole numbers.*found '5'"),
        ({"frames": [[1], [2, 3]]}, "whole numbers"),
        ({"frames": [[1, 2]]}, "whole numbers"),
        ({"frames": [True, False]}, "mask of 2 values.*12 frames"),
        ({"step": 0}, "step is not 0"),
        ({"start": "a"}, "start, stop and step are whole numbers"),
        ({"start": 1, "frames": [2]}, "not by both"),
    ],
)
def test_start_frames_that_are_not_there_are_refused(choice, said):
    with pytest.raises(UsageError, match=said):
        EGNOSurrogate(make_universe(12), "static", horizon=2).run(**choice)


@pytest.mark.parametrize(
    ("choice", "frames"), [(5, [5]), (-1, [11]), ([-12, 11, 0], [0, 11, 0]), (np.float64([4.0]), [4]), ([], [])]
)
def test_start_frames_are_counted_from_either_end(choice, frames):
    done = EGNOSurrogate(make_universe(12), "static", horizon=2).run(frames=choice)
    np.testing.assert_array_equal(done.results.frames, frames)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"horizon": None}, r"horizon \(--horizon\) must be a whole number.*found None"),
        ({"horizon": "8"}, "found '8'"),
        ({"horizon": float("inf")}, "found inf"),
        ({"substeps": [2]}, r"substeps .*found \[2\]"),
        ({"samples": "2"}, "samples .*found '2'"),
        ({"every": "2"}, "every .*found '2'"),
        ({"every": True}, "every .*found True"),
        ({"model": 5}, "a model is a name, a file or a loaded Model, found int"),
        ({"select": 5}, "a selection .* found 5$"),
        ({"mean": "no"}, "mean must be True or False, found 'no'"),
        ({"force": 1}, "force must be True or False, found 1"),
        ({"filename": 5}, "filename must be the name of a file.*found 5"),
        ({"max_memory": "1GB"}, "max_memory must be a positive number of bytes or 'auto', found '1GB'"),
        ({"max_memory": 0}, "max_memory .*found 0"),
        ({"device": 0.5}, "device .*0.5.*cannot be used"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_a_line(wrong, said):
    with pytest.raises(UsageError, match=said):
        EGNOSurrogate(make_universe(), **({"model": "static", "select": "all"} | wrong))


def test_numbers_on_a_bound_are_taken():
    assert [asked.whole_number("n", value, 3) for value in (1, 3, 2.0, np.int8(2), np.float32(3))] == [1, 3, 2, 2, 3]
    for value in (0, 4, 1.5, True, "2", -1, 3.0001):
        with pytest.raises(UsageError, match="at least 1|at most 3"):
            asked.whole_number("n", value, 3)
    assert asked.is_count(0, 0) and not asked.is_count(-1, 0) and asked.is_count(5, 5) and not asked.is_count(4, 5)
    for memory in (None, "auto", 1, 2**40, np.int64(1)):
        asked.check_memory(memory)
    for memory in (0, -1, True, 1.0, "1"):
        with pytest.raises(UsageError, match="positive number of bytes"):
            asked.check_memory(memory)
    asked.check_flags(a=True, b=np.False_)
    assert asked.check_unphysical("warn", 5) == "warn" and asked.check_unphysical("stop", None) == "stop"
    assert asked.check_unphysical("relax", 1) == "relax"
    for what, samples in (("stop", 2), ("relax", 3), ("halt", 1)):
        with pytest.raises(UsageError, match="on_unphysical"):
            asked.check_unphysical(what, samples)


def test_a_forecast_may_take_all_of_the_memory(monkeypatch):
    """Twelve bytes for each atom in each frame."""
    monkeypatch.setattr(asked, "memory_of_machine", lambda: 12.0 * 2 * 3 * 5 * 7)
    asked.check_room(2, 3, 5, 7)
    for more in ((3, 3, 5, 7), (2, 4, 5, 7), (2, 3, 6, 7), (2, 3, 5, 8)):
        with pytest.raises(UsageError, match="ask for fewer"):
            asked.check_room(*more)


def test_a_file_of_one_spacing_is_refused_before_the_work_where_frames_have_two():
    assert asked.target_of("o.xtc", with_input=True, substeps=2) == Path("o.xtc")
    assert asked.target_of("o.dcd", with_input=False, substeps=2) == Path("o.dcd")
    with pytest.raises(UsageError, match=r"o\.dcd: .*2 times closer .*write XTC"):
        asked.target_of("o.dcd", with_input=True, substeps=2)


@pytest.mark.parametrize(
    ("given", "frames"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"start": 1}, [1, 2, 3, 4]),
        ({"stop": -1}, [0, 1, 2, 3]),
        ({"step": 2}, [0, 2, 4]),
        ({"start": 4, "stop": 0, "step": -3}, [4, 1]),
        ({"frames": [True, False, False, True, False]}, [0, 3]),
        ({"frames": [0, -5, 4, -1]}, [0, 0, 4, 4]),
        ({"frames": 3.0}, [3]),
        ({"frames": ()}, []),
    ],
)
def test_start_frames_are_those_that_were_asked_for(given, frames):
    found = asked.start_frames(5, **given)
    assert found.tolist() == frames and found.dtype == np.int64
    for other in ({"start": 0}, {"stop": 5}, {"step": 1}):
        if "frames" in given:
            with pytest.raises(UsageError, match="not by both"):
                asked.start_frames(5, **given, **other)


def test_a_selection_of_nothing_is_not_taken_for_that_of_the_model():
    with pytest.raises(UsageError, match="the selection is empty"):
        EGNOSurrogate(make_universe(), make_model(), "")


def test_what_is_written_needs_the_name_of_a_file():
    done = EGNOSurrogate(make_universe(), "static", horizon=2).run()
    with pytest.raises(UsageError, match="filename must be the name of a file.*found 5"):
        done.write(5)


def test_positions_have_the_order_of_the_atoms_that_are_forecast():
    atoms = make_universe().atoms[::-1]
    done = EGNOSurrogate(atoms, "static", horizon=1).run()
    np.testing.assert_array_equal(done.atoms.indices, np.sort(atoms.indices))
    np.testing.assert_allclose(done.results.positions[0, 0], done.atoms.universe.trajectory[-1].positions, atol=1e-4)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_a_file_whose_suffix_is_unknown_is_tried_as_the_near_ones_and_the_name_that_is_said_works(
    tmp_path, alone, compressed
):
    content = Path(datafiles.LAMMPSDUMP).read_bytes()
    run = tmp_path / f"some wat.lammpstrj{'.bz2' * compressed}"
    run.write_bytes(content if compressed else bz2.decompress(content))
    n_atoms = 24
    if not alone:
        mda.Universe.empty(n_atoms, trajectory=True).atoms.write(tmp_path / "top.pdb")
    arguments = (run, []) if alone else (tmp_path / "top.pdb", [run])
    with pytest.raises(DataError, match="no format .lammpstrj.*it reads it as LAMMPSDUMP, rename it: mv") as said:
        open_universe(*arguments)
    subprocess.run(str(said.value).partition("rename it: ")[2], shell=True, check=True)
    (renamed,) = tmp_path.glob("some wat.lammpsdump*")
    assert not run.exists()
    read = open_universe(renamed) if alone else open_universe(tmp_path / "top.pdb", [renamed])
    assert len(read.atoms) == n_atoms and read.trajectory.n_frames > 1
