"""Checkpoints: what goes in comes out, and what is not whole is refused."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from conftest import make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_flow import flow_model
from test_forecast import with_regression

import egno_md
from egno_md import load_model, sample
from egno_md.errors import ModelError, OutputError, UsageError
from egno_md.forecast import forecast
from egno_md.forecast.model import build_network, new_model
from egno_md.graph import GraphBuilder, select_atoms
from egno_md.models import bundled_models
from egno_md.models.header import FORMAT_VERSION, UPGRADES, read_header
from egno_md.nn import operators
from egno_md.specs import GraphSpec, ModelSpec, WindowSpec

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("operator", ["egno", "eghno"])
def test_round_trip(tmp_path, operator):
    model = make_model(operator=operator, clusters=3)
    model.provenance = {"licence": "MIT", "data": "none"}
    loaded = load_model(model.save(tmp_path / "m.safetensors"))
    assert (loaded.graph, loaded.window, loaded.spec) == (model.graph, model.window, model.spec)
    assert loaded.provenance == model.provenance and loaded.name == "m" and not loaded.network.training
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, loaded.network.state_dict()[name])


def test_nothing_is_overwritten_unasked(tmp_path):
    path = make_model(seed=0).save(tmp_path / "m.safetensors")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="force=True"):
        make_model(seed=1).save(path)
    assert path.read_bytes() == before
    make_model(seed=1).save(path, force=True)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_missing_folder(tmp_path):
    with pytest.raises(OutputError, match="choose a folder"):
        make_model().save(tmp_path / "none" / "m.safetensors")


def rewrite(path, *, tensors=None, **metadata):
    """The same file with other tensors or metadata, hash untouched."""
    with safe_open(path, "pt") as file:
        old = file.metadata()
    save_file(tensors or load_file(path), path, {**old, **metadata})


def test_changed_weight_is_noticed(tmp_path):
    path = make_model().save(tmp_path / "m.safetensors")
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    rewrite(path, tensors=tensors)
    with pytest.raises(ModelError, match="checksum"):
        load_model(path)


def test_changed_stride_is_noticed(tmp_path):
    path = make_model().save(tmp_path / "m.safetensors")
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["content"])
    content["window"]["stride_ps"] = 10.0
    rewrite(path, content=json.dumps(content, sort_keys=True))
    with pytest.raises(ModelError, match="checksum"):
        load_model(path)


def test_truncated_foreign_newer_and_missing(tmp_path):
    path = make_model().save(tmp_path / "m.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="damaged"):
        load_model(path)
    path.write_bytes(whole)
    rewrite(path, format_version="99")
    with pytest.raises(ModelError, match="upgrade"):
        load_model(path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(1)}, foreign)
    with pytest.raises(ModelError, match="not written by egno_md"):
        load_model(foreign)
    with pytest.raises(ModelError, match="bundled are .*ca-1ps"):
        load_model("no-such-model")


def test_bundled_models_load_and_say_what_they_are():
    assert "ca-1ps" in bundled_models()
    for name in bundled_models():
        model = load_model(name)
        assert model.name == name
        assert {"about", "data", "licence", "test", "training"} <= set(model.provenance)
        errors = model.provenance["test"]["mse_A2_per_step"]
        assert len(errors["model"]) == len(errors["static"]) == model.window.n_times


def forecast_of(model, arrays, **spec) -> np.ndarray:
    model = dataclasses.replace(model, spec=model.spec.model_copy(update=spec))
    u = mda.Universe(str(sample("chignolin")[0]))
    builder = GraphBuilder(select_atoms(u, model.graph.select), model.graph)
    return forecast(model, builder, arrays["past"], arrays["forecast"].shape[1], device="cpu")


@pytest.mark.parametrize("name", ["format1-egno", "format1-eghno", "format2-egno", "format2-eghno", "format3-flow"])
def test_files_of_older_formats_forecast_the_same(tmp_path, name):
    """Files that the code of those formats wrote, and what they forecast with it."""
    version, operator = int(name[6]), name[8:]
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        assert file.metadata()["format_version"] == str(version)
    model, arrays = load_model(DATA / f"{name}.safetensors"), np.load(DATA / f"{name}.npz")
    np.testing.assert_allclose(forecast_of(model, arrays, keep_bonds=False), arrays["network"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(forecast_of(model, arrays), arrays["forecast"], rtol=0, atol=2e-5)
    assert model.spec.operator == operator and model.spec.hidden == 8 and model.spec.keep_bonds
    assert model.spec.options.keys() == operators.get(operator).options.model_fields.keys()
    assert len(model.geometry) == (version > 1) and len(model.regression) == (name == "format2-egno")
    assert model.window.stride_range is None and model.window.covers(1.0) and not model.window.covers(2.0)
    if operator == "flow":
        assert (model.spec.base, model.spec.informed, len(model.process)) == ("own", False, 1)
        u = mda.Universe(str(sample("chignolin")[0]))
        builder = GraphBuilder(select_atoms(u, "ca"), model.graph)
        drawn = forecast(model, builder, arrays["past"], 6, samples=2, seed=3, device="cpu")
        np.testing.assert_allclose(drawn, arrays["drawn"], rtol=0, atol=2e-5)
    if operator == "eghno":
        assert model.spec.options["cut_weight"] == 1.5 and model.spec.assignment == "per_time"
    # Saved again it is a file of the newest format, and says the same.
    path = model.save(tmp_path / "new.safetensors")
    with safe_open(path, "pt") as file:
        assert file.metadata()["format_version"] == str(FORMAT_VERSION) == "4"
        assert json.loads(file.metadata()["content"])["model"].keys() == ModelSpec.model_fields.keys()
    again = load_model(path)
    assert again.spec == model.spec and again.provenance == model.provenance
    np.testing.assert_array_equal(forecast_of(again, arrays), forecast_of(model, arrays))


def test_the_bundled_model_forecasts_what_it_always_did():
    arrays = np.load(DATA / "ca-1ps.npz")
    network = forecast_of(load_model("ca-1ps"), arrays, keep_bonds=False)
    np.testing.assert_allclose(network, arrays["network"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(forecast_of(load_model("ca-1ps"), arrays), arrays["forecast"], rtol=0, atol=2e-5)


def test_every_older_format_has_an_upgrade():
    assert list(UPGRADES) == list(range(1, FORMAT_VERSION))
    assert {int(path.stem[6]) for path in DATA.glob("format*.safetensors")} == set(UPGRADES)


@pytest.mark.parametrize("version", ["0", "-1", "two", ""])
def test_a_format_that_never_was_is_refused(tmp_path, version):
    path = make_model().save(tmp_path / "m.safetensors")
    rewrite(path, format_version=version)
    with pytest.raises(ModelError, match="never was one"):
        load_model(path)


def test_a_model_whose_operator_is_not_installed_names_it(tmp_path, monkeypatch):
    from toy_operator import OPERATOR

    monkeypatch.setitem(operators._REGISTER, "toy", OPERATOR)
    model = make_model()
    path = new_model(model.graph, model.window, ModelSpec(operator="toy")).save(tmp_path / "toy.safetensors")
    assert load_model(path).spec.options == {"width": 8, "drag": 0.0}
    monkeypatch.delitem(operators._REGISTER, "toy")
    with pytest.raises(ModelError, match="toy.safetensors .*no operator 'toy'.*once it is installed"):
        load_model(path)


@pytest.mark.parametrize("name", ["ca-1ps", *sorted(map(str, DATA.glob("format*.safetensors")))], ids=os.path.basename)
def test_a_header_says_without_torch_what_the_model_is(name):
    header, model = read_header(name), load_model(name)
    assert (header.name, header.n_parameters) == (model.name, model.n_parameters)
    assert header.known == {
        name: len(getattr(model, name)) for name in ("geometry", "regression", "process", "elastic")
    }
    assert GraphSpec(**header.content["graph"]) == model.graph
    assert WindowSpec(**header.content["window"]) == model.window


def test_what_a_bundled_model_names_is_there():
    """Modules by which its data were made; the text lies in the header of the file."""
    root = Path(egno_md.__file__).parents[1]
    for name in bundled_models():
        text = json.dumps(read_header(name).content["provenance"])
        modules = re.findall(r"\b(?:egno_md|benchmarks)(?:\.[a-z]\w*)+", text)
        assert modules and all((root / f"{module.replace('.', '/')}.py").is_file() for module in modules), modules


def test_the_same_model_has_the_same_bytes(tmp_path):
    written = {make_model().save(tmp_path / f"{k}.safetensors").read_bytes() for k in range(8)}
    assert len(written) == 1
    assert len(load_file(tmp_path / "0.safetensors")) > 0  # and another reader takes it


def test_a_model_is_required_to_know_the_molecule_it_goes_on_from():
    for model in (make_model(), flow_model(base="any")[0]):
        model.require("any")
    regression, builder, _ = with_regression()
    drawing, of, *_ = flow_model()
    for model, known, words in ((regression, builder, "corrects a regression of the 1 molecule that"),
                                (drawing, of, "draws futures of the 1 molecule that")):  # fmt: skip
        model.require(known.identity)
        with pytest.raises(ModelError, match=words):
            model.require("another")


def test_specs_that_do_not_go_together_are_refused():
    graph, four = GraphSpec(select="all"), WindowSpec(stride_ps=1.0, n_times=4)
    flow = ModelSpec(operator="flow", hidden=4)
    build_network(graph, four, flow)
    build_network(graph, four.model_copy(update={"history": 3}), flow)
    ranged = four.model_copy(update={"stride_range": (1.0, 2.0)})
    build_network(graph, ranged, ModelSpec(operator="flow", hidden=4, base="any"))
    regression, mean = ModelSpec(prior="regression", hidden=4), ModelSpec(hidden=4)
    build_network(graph, four, regression)
    build_network(graph, four.model_copy(update={"history": 4}), mean)
    build_network(graph, four.model_copy(update={"velocity": "forward"}), mean)
    for window, spec, words in (
        ({}, flow.model_copy(update={"prior": "regression"}), "found the prior 'regression'"),
        ({"velocity": "forward"}, flow, "forward velocities"),
        ({"span": 8}, flow, r"the steps \(2, 4, 6, 8\)"),
        ({"stride_range": (1.0, 2.0)}, flow, "knows one stride"),
        ({"stride_range": (1.0, 2.0)}, mean, "knows one stride"),
        ({"history": 4}, regression, "goes on from one start frame"),
        ({"velocity": "forward"}, regression, "found a history of 1 and forward velocities"),
        ({"history": 2}, mean, "a history of 1 frame or of n_times = 4, found 2"),
    ):
        with pytest.raises(UsageError, match=words):
            build_network(graph, four.model_copy(update=window), spec)


def test_a_model_counts_its_weights_and_draws_them_by_its_seed():
    model = make_model()
    sizes = [np.prod(w.shape) for w in model.network.parameters()]
    assert model.n_parameters == sum(sizes)
    state = torch.random.get_rng_state()
    same = [new_model(model.graph, model.window, model.spec, seed=seed) for seed in (0, 0, 1)]
    prints = [one.fingerprint for one in same]
    assert prints[0] == prints[1] != prints[2] and not same[0].network.training
    assert torch.equal(torch.random.get_rng_state(), state)
    named = dataclasses.replace(same[0], name="other", provenance={"licence": "MIT"})
    assert named.fingerprint == prints[0]
    assert same[0].at_stride(model.window.stride_ps).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("operator", "fits", "wrong", "words"),
    [
        ("egno", {"hidden": 8192, "layers": 1}, {"hidden": 8193}, "width of 8193 and 1 layers .* a width of 8192 at"),
        ("egno", {"hidden": 8192, "layers": 1}, {"layers": 2}, "width of 8192 and 2 layers takes more than 0.5 GB"),
        ("egno", {"layers": 1024, "hidden": 256}, {"layers": 1025}, "layers of the .* at most 1024, found 1025"),
        ("egno", {"time_embedding": 16384}, {"time_embedding": 16386}, "at most 16384, found 16386"),
        # Of the blocks of EGHNO all layers count: of the pooling network and the decoder as well.
        ("eghno", {"hidden": 4096, "layers": 2, "pooling_layers": 1, "decoder_layers": 1}, {"decoder_layers": 2},
         "width of 4096 and 5 layers"),
        ("se3-transformer", {"channels": 8192, "layers": 1}, {"layers": 2}, "width of 8192 and 2 layers"),
        ("se3-transformer", {"channels": 8}, {"channels": 6}, "options of the operator .*: .*heads must share out"),
    ],
)  # fmt: skip
def test_networks_that_no_machine_has_room_for_are_refused(operator, fits, wrong, words):
    assert operators.options_of(ModelSpec(operator=operator, options=fits)).model_dump().items() >= fits.items()
    with pytest.raises(UsageError, match=words):
        operators.options_of(ModelSpec(operator=operator, options={**fits, **wrong}))


def test_the_register_imports_every_module_beside_it_and_no_package(monkeypatch):
    seen, real = [], importlib.import_module
    monkeypatch.setattr(operators.importlib, "import_module", lambda name: seen.append(name) or real(name))
    operators._import_ours.__wrapped__()
    beside = Path(operators.__file__).parent.glob("*.py")
    assert {*seen} - {"egno_md.nn"} == {f"egno_md.nn.{path.stem}" for path in beside if path.stem != "__init__"}
