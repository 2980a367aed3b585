"""Checkpoints: what goes in comes out, and what is not whole is refused."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from egno_md import load_model
from egno_md.errors import ModelError, OutputError
from egno_md.models import bundled_models


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
