"""A recipe says all of a training, and what is wrong with one is said with the nearest right word."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from test_training import SMALL, called, weights, write_runs

from egno_md import GraphSpec, load_model
from egno_md.errors import DataError, UsageError
from egno_md.specs import PRESETS, Recipe
from egno_md.training import complete, overridden, read_recipe, source_of, to_toml, train_recipe
from egno_md.training.recipe import SHORT, known_keys


def test_training_by_the_printed_recipe_is_the_same_training(tmp_path, monkeypatch):
    top = write_runs(tmp_path, {"a.dcd": 90, "bb.dcd": 80})
    monkeypatch.chdir(tmp_path)
    flags = [
        *SMALL,
        "--epochs",
        2,
        "--every",
        2,
        "--set",
        "noise=0.1",
        "--set",
        "graph.n_rbf=9",
        "--hold-out",
        "bb.dcd",
    ]
    short = called(top.name, "a.dcd", *flags, "-o", "short.safetensors")
    assert short.exit_code == 0, short.stderr
    printed = called(top.name, "a.dcd", *flags, "--print-recipe")
    assert printed.exit_code == 0 and printed.stderr == "" and not (tmp_path / "None_work").exists()
    (tmp_path / "elsewhere").mkdir()
    recipe = tmp_path / "elsewhere" / "recipe.toml"
    recipe.write_text(printed.stdout)
    assert called(recipe, "--print-recipe").stdout == printed.stdout  # nothing is left open
    content = tomllib.loads(printed.stdout)
    assert content["window"]["stride_ps"] == 2.0 and content["graph"]["n_rbf"] == 9
    assert content["graph"]["atom_names"] == [f"C{k}" for k in range(10)]
    assert content["model"]["prior"] == "auto" and content["model"]["hidden"] == 6 and "options" not in content["model"]
    assert content["training"]["noise"] == 0.1 and content["training"]["max_epochs"] == 2
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = called(recipe, "-o", tmp_path / "again.safetensors")
    assert again.exit_code == 0, again.stderr
    for name, tensor in weights(tmp_path / "short.safetensors").items():
        assert torch.equal(tensor, weights(tmp_path / "again.safetensors")[name]), name
    models = [load_model(tmp_path / f"{name}.safetensors") for name in ("short", "again")]
    assert models[0].provenance == models[1].provenance and models[0].spec == models[1].spec


def test_a_recipe_can_leave_almost_everything_out_and_names_files_from_where_it_is(tmp_path):
    write_runs(tmp_path / "runs", {"a.dcd": 90})
    path = tmp_path / "recipe.toml"
    path.write_text(
        'preset = "paper"\n[graph]\nselect = "all"\n[window]\nn_times = 4\nhistory = "trajectory"\n'
        '[training]\nmax_epochs = 3\n[[data.systems]]\ntopology = "runs/top.pdb"\ntrajectories = ["runs/a.dcd"]\n'
    )
    recipe = read_recipe(path)
    whole = complete(recipe, source_of(recipe))
    model, training = PRESETS["paper"]
    assert whole.training == {**training.model_dump(mode="json"), "max_epochs": 3}
    assert whole.model["hidden"] == model.hidden == 128 and whole.model["prior"] == "static"
    assert whole.window["history"] == 4 and whole.window["span"] == 4 and whole.window["stride_ps"] == 1.0
    assert whole.data["systems"][0]["name"] == "top"
    (tmp_path / "whole.toml").write_text(to_toml(whole))
    assert read_recipe(tmp_path / "whole.toml") == whole == complete(whole, source_of(whole))


def test_recipes_in_python_take_specs_and_mappings(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 90})
    system = {"topology": str(top), "trajectories": [str(tmp_path / "a.dcd")]}
    recipe = Recipe(
        graph=GraphSpec(select="all", cutoff=5.0, node_features=("speed",), edge_features=("distance",)),
        window={"n_times": 4},
        model={"hidden": 6, "layers": 1, "prior": "static"},
        training={"max_epochs": 1, "batch_size": 16},
        data={"systems": [system]},
    )
    model, test = train_recipe(recipe, work_dir=tmp_path / "work", progress=False)
    assert model.graph == GraphSpec(**recipe.graph) and model.spec.hidden == 6 and test.n_windows > 0
    assert "prior_validation_a_mse" not in model.provenance["data"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"graph.cutof": 8}, ["no setting graph.cutof", "'cutoff'"]),
        ({"cutof": 8}, ["no setting cutof", "'cutoff'"]),
        ({"grph.cutoff": 8}, ["no section grph", "'graph'"]),
        ({"training.max_epoch": 8}, ["max_epoch", "'max_epochs'"]),
        ({"model.hiden": 8}, ["hiden", "'hidden'"]),
        ({"data.fraction": 8}, ["fraction", "'fractions'"]),
        ({"data.name": "nbdy"}, ["no data set 'nbdy'", "'nbody'", "files"]),
    ],
)
def test_unknown_settings_name_the_nearest(settings, words):
    with pytest.raises(UsageError) as caught:
        recipe = overridden(Recipe(), settings)
        complete(recipe, source_of(recipe))
    assert all(word in str(caught.value) for word in words), caught.value


def test_settings_are_read_as_toml_and_names_alone_do_where_they_are_of_one_section():
    recipe = overridden(Recipe(), {"cutoff": "8", "noise": "0.1", "select": "heavy", "model.handed": "true", "span": 9})
    assert recipe.graph == {"cutoff": 8, "select": "heavy"} and recipe.window == {"span": 9}
    assert recipe.training == {"noise": 0.1} and recipe.model == {"handed": True}
    known = known_keys(Recipe())
    for place, _ in SHORT.values():
        section, dot, name = place.partition(".")
        assert name in known[section] if dot else place in Recipe.model_fields


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[grph]\ncutoff = 8\n", UsageError, ["recipe.toml", "no section grph", "'graph'"]),
        ("[graph]\ncutof = 8\n", UsageError, ["recipe.toml", "graph.cutof", "'cutoff'"]),
        ("cutoff = 8\n", UsageError, ["recipe.toml", "no section cutoff"]),
        ("graph = 8\n", UsageError, ["recipe.toml", "graph must be a section"]),
        ("preset = 'papr'\n", UsageError, ["recipe.toml", "preset", "'paper'"]),
        ("[[system]]\ntopology='a'\ntrajectories=['b']\n[graph]\ncutoff=8\n", UsageError, ["[[data.systems]]"]),
        ("[[system]]\ntopolgy = 'a'\n", DataError, ["topolgy", "'topology'"]),
        ("[[data.systems]]\ntopology = 'a'\n", DataError, ["trajectories are needed"]),
        ("[[data.systems]]\ntopology = 'a'\ntrajectories = 'b'\n", DataError, ["list of file names"]),
        ("[graph\n", DataError, ["cannot read the recipe"]),
        ("[training]\nlearning_rate = -1\n", UsageError, ["training.learning_rate", "greater than 0", "-1"]),
        ("[window]\nn_times = 4\nspan = 2\nstride_ps = 1\n", UsageError, ["span must be at least n_times = 4"]),
        ("[data]\nblocks = 0\n", UsageError, ["data.blocks"]),
        ("", UsageError, ["no files to train on", "[[data.systems]]"]),
    ],
)
def test_wrong_recipes_say_what_is_wrong(tmp_path, text, error, words):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    done = called(path, "-o", tmp_path / "m.safetensors")
    assert done.exit_code == (2 if error is UsageError else 1) and isinstance(done.exception, SystemExit)
    for word in words:
        assert word in done.stderr.replace("\n", " "), done.stderr
    assert not (tmp_path / "m.safetensors").exists()


def test_arguments_that_do_not_go_together(tmp_path):
    (tmp_path / "recipe.toml").write_text("")
    for arguments, words in (
        ([tmp_path / "recipe.toml", "top.pdb", "-o", "m"], "either a recipe"),
        (["-o", "m"], "either a recipe"),
        (["--resume"], "type the command that began it again"),
        (["--resume", "m.safetensors"], "type the command that began it again"),
        ([tmp_path / "recipe.toml", "--hold-out", "a.dcd", "-o", "m"], "hold_out = [...]"),
        ([tmp_path / "recipe.toml"], "-o model.safetensors"),
    ):
        done = called(*arguments)
        assert done.exit_code == 2 and words in done.stderr, done.stderr


def test_each_file_is_opened_once(tmp_path, monkeypatch):
    top = write_runs(tmp_path, {"a.dcd": 90, "bb.dcd": 80})
    opened, parsed = [], []
    init, parse = mda.Universe.__init__, mda.topology.PDBParser.PDBParser.parse

    def counted(self, *arguments, **options):
        opened.append(arguments)
        init(self, *arguments, **options)

    def counted_parse(self, **options):
        parsed.append(self.filename)
        return parse(self, **options)

    monkeypatch.setattr(mda.Universe, "__init__", counted)
    monkeypatch.setattr(mda.topology.PDBParser.PDBParser, "parse", counted_parse)
    done = called(top, tmp_path / "a.dcd", tmp_path / "bb.dcd", *SMALL, "--epochs", 1, "-o", tmp_path / "m.safetensors")
    assert done.exit_code == 0, done.stderr
    assert [str(arguments[1]) for arguments in opened] == [str(tmp_path / "a.dcd"), str(tmp_path / "bb.dcd")]
    assert len(parsed) == 1


def test_without_lightning_there_is_one_line_and_recipes_can_still_be_printed(tmp_path):
    top = write_runs(tmp_path, {"a.dcd": 90})
    (tmp_path / "lightning.py").write_text("raise ModuleNotFoundError(\"No module named 'lightning'\")\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from egno_md.cli import main; main()"
    arguments = ["train", top, tmp_path / "a.dcd", "--select", "all", "-o", tmp_path / "m.safetensors"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "training needs lightning" in done.stderr and "pip install 'lightning>=2.6'" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments), "--print-recipe"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "[training]" in done.stdout, done.stderr
    assert np.isclose(tomllib.loads(done.stdout)["window"]["stride_ps"], 1.0)
