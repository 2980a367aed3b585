"""A training that has so many minutes ends with a model."""

from __future__ import annotations

from test_cli import egno_md

from egno_md import load_model, sample


def test_a_training_of_so_many_minutes_ends_with_the_best_epoch(tmp_path):
    model = tmp_path / "m.safetensors"
    command = ["train", *sample("chignolin"), "-o", model, "--hidden", 8, "--layers", 1, "--epochs", 50, "--window", 4]
    done = egno_md(*command, "--minutes", 0.0001)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/50" in done.stderr and "epoch 2/50" not in done.stderr and f"written    {model}" in done.stdout
    assert load_model(model).provenance["training"]["epochs"] == 1
    # The state is there to go on from.
    more = egno_md(*command, "--minutes", 0.0001, "--resume", "--force")
    assert more.returncode == 0 and "epoch 2/50" in more.stderr and "epoch 1/50" not in more.stderr, more.stderr
    refused = egno_md(*command, "--minutes", 0)
    assert refused.returncode == 2 and "--minutes must be more than 0" in refused.stderr
