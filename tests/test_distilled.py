"""A model that draws with one call of its network what another one draws with several."""

from __future__ import annotations

import dataclasses

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_flow import KINDS, flow_model, noisy_run, starts_of

from egno_md import load_model
from egno_md.cli import main
from egno_md.errors import UsageError
from egno_md.forecast.chain import forecast
from egno_md.forecast.generative import bodies_of, drawn_loss, drawn_window
from egno_md.forecast.operator import graphs
from egno_md.nn import operators
from egno_md.nn.flow import Numbers, draw
from egno_md.specs import TrainSpec
from egno_md.training.loop import fit

torch.set_num_threads(1)
TRAINED = {"training": {}}


def direct(model):
    return dataclasses.replace(
        model, spec=model.spec.model_copy(update={"options": {**model.spec.options, "direct": True}})
    )


@pytest.mark.parametrize("kind", ["canonical", "any, history", "hierarchical"])
@torch.no_grad()
def test_the_loss_is_the_distance_from_the_ends_of_the_teachers_arcs(kind):
    model, builder, frames, *_ = flow_model(**KINDS[kind], bond_weight=0.0, pair_weight=0.0, cut_weight=0.0, noise=0.0)
    teacher = flow_model(seed=5, scale=0.1, **KINDS[kind])[0].network
    past = starts_of(frames, 50, 90, back=model.window.history)
    graph = graphs(model, [builder, builder], past)
    numbers = Numbers((1, 2, 3), range(2), 2)
    ((found, _),) = drawn_loss(direct(model), graph, numbers, teacher=teacher)

    bodies, options = bodies_of(model, graph), operators.options_of(model.spec)
    mean, path = bodies.base(bodies.body.start, bodies.body.vel, numbers.generators())
    several = options.model_copy(update={"steps": 5})
    target = draw(teacher, bodies.body, lambda *_: (mean, path), [None] * 2, several)
    at_once = options.model_copy(update={"direct": True})
    own = draw(model.network, bodies.body, lambda *_: (mean, path), [None] * 2, at_once)
    size = bodies.body.size
    unit = 1.0 if size is None else size[bodies.body.batch][:, None]
    assert float(found) == pytest.approx(float(((own - target) / unit).square().mean()), rel=1e-5)
    assert float(found) > 1e-8


def test_one_call_makes_a_window_and_the_mean_is_that_of_pairs():
    model, builder, frames, *_ = flow_model()
    once = direct(model)
    calls = []

    def counted(*args, **options):
        calls.append(options["level"])
        return model.network(*args, **options)

    graph = graphs(once, [builder], starts_of(frames, 50))
    drawn_window(once, graph, [np.random.default_rng(0)], network=counted)
    assert len(calls) == 1 and not calls[0].any()
    drawn_window(model, graph, [np.random.default_rng(0)], network=counted)
    assert len(calls) == 4
    past = starts_of(frames, 50, 90)
    plain, again = (forecast(once, builder, past, 8) for _ in range(2))
    np.testing.assert_array_equal(plain, again)
    alone = [forecast(once, builder, one[None], 8)[0] for one in past]
    np.testing.assert_allclose(plain, alone, atol=1e-4)  # whoever shares their batch
    # An untrained network leaves every path of the base alone: the mean is that of the base, as of the teacher.
    still, *_ = flow_model(scale=0.0)
    np.testing.assert_allclose(
        forecast(direct(still), builder, past, 4), forecast(still, builder, past, 4), atol=2e-4
    )  # fmt: skip


def test_a_network_learns_to_draw_at_once(tmp_path):
    """A teacher of strong arcs: what its untaught copy says at once is far from where they end."""
    teacher, builder, frames, train, validation = flow_model(seed=1, scale=0.15)
    teacher = dataclasses.replace(teacher, provenance=TRAINED)
    graph = graphs(teacher, [builder] * 8, starts_of(frames, *range(300, 380, 10)))

    def drawn(model):
        return drawn_window(model, graph, [np.random.default_rng(k) for k in range(8)])

    several = dataclasses.replace(teacher, spec=teacher.spec.model_copy(
        update={"options": {**teacher.spec.options, "steps": 5}}
    ))  # fmt: skip
    spec = TrainSpec(distill=True, batch_size=16, max_epochs=15, learning_rate=3e-3, epoch_windows=160)
    taught = fit(teacher, train, validation, spec, work_dir=tmp_path, progress=False)
    assert taught.spec.options["direct"] and not teacher.spec.options["direct"]
    before, after = (np.square(drawn(one) - drawn(several)).mean() for one in (direct(teacher), taught))
    assert after < 0.4 * before
    loaded = load_model(taught.save(tmp_path / "fast.safetensors"))
    np.testing.assert_array_equal(drawn(loaded), drawn(taught))


def test_the_command(tmp_path):
    universe, frames = noisy_run(60)
    universe.atoms.write(str(tmp_path / "mol.pdb"), bonds="all")
    with mda.Writer(str(tmp_path / "run.dcd"), universe.atoms.n_atoms, dt=1.0) as writer:
        for universe.atoms.positions in frames:
            writer.write(universe.atoms)
    small = ["--select", "all", "--window", "4", "--hidden", "8", "--layers", "1"]
    runs = [str(tmp_path / "mol.pdb"), str(tmp_path / "run.dcd"), "--epochs", "1"]

    def trained(name, *more):
        return CliRunner().invoke(main, ["train", *runs, "-o", str(tmp_path / name), *more])

    teacher, fast = str(tmp_path / "slow.safetensors"), ["--set", "distill=true"]
    assert trained("slow.safetensors", "--operator", "flow", *small).exit_code == 0
    done = trained("fast.safetensors", "--init", teacher, *fast)
    assert done.exit_code == 0, done.output
    fast_model = load_model(tmp_path / "fast.safetensors")
    assert fast_model.spec.options["direct"] and not load_model(teacher).spec.options["direct"]
    # It goes on with what its operator usually has, not with what the preset for another one has.
    assert [fast_model.provenance["training"][key] for key in ("batch_size", "ema_decay")] == [64, 0.995]
    for name, calls in (("slow", "3 calls"), ("fast", "1 call")):
        said = CliRunner().invoke(main, ["info", str(tmp_path / f"{name}.safetensors")]).output
        assert f"futures, a window with {calls} of its network" in said
    for name, more, words in (
        ("a", ["--operator", "flow", *small], "has not been trained"),
        ("b", small, "draws no futures"),
        ("c", ["--init", str(tmp_path / "fast.safetensors")], "draws in one step already"),
    ):
        done = trained(f"{name}.safetensors", *more, *fast)
        assert done.exit_code == 2 and words in done.output and "--init MODEL" in done.output
        assert not (tmp_path / f"{name}.safetensors").exists()
    done = trained("d.safetensors", "--init", str(tmp_path / "fast.safetensors"))
    assert done.exit_code == 2 and "from another one" in done.output
    done = trained("e.safetensors", "--operator", "flow", *small, "--set", "direct=true")
    assert done.exit_code == 2 and "from another one" in done.output
    ends, _, _, *windows = flow_model(ends=0.5)
    with pytest.raises(UsageError, match="fills in frames"):
        fit(dataclasses.replace(ends, provenance=TRAINED), *windows, TrainSpec(distill=True), work_dir=tmp_path / "w")
