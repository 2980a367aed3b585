"""What lies between two frames by an operator that knows both ends of a window."""

from __future__ import annotations

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.spatial.transform import Rotation
from test_flow import GRAPH, WINDOW, flow_model, noisy_run, starts_of

from egno_md import Interpolated
from egno_md.cli import main
from egno_md.errors import ModelError, UsageError
from egno_md.forecast.generative import drawn_loss
from egno_md.forecast.model import new_model
from egno_md.forecast.operator import OperatorWindow
from egno_md.graph.graph import collate
from egno_md.molecule.geometry import aligned, superposed_rmsd
from egno_md.nn.flow import Numbers
from egno_md.specs import ModelSpec

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def flow():
    return flow_model()


ENDED = {
    "canonical": {"ends": 0.5, "history": 2},
    "hierarchical": {"ends": 0.5, "trunk": "eghno", "clusters": 3, "canonical": False},
    "any": {"ends": 0.5, "base": "any", "history": 3},
}


TURN = Rotation.from_rotvec([0.3, -1.0, 0.4]).as_matrix()


def superposed_on(frame, start):
    return aligned(frame, start) + start.mean(axis=0)


@pytest.mark.parametrize("kind", ENDED)
def test_a_known_end_is_met_and_bends_the_way_there(kind):
    model, builder, frames, *_ = flow_model(**ENDED[kind])
    window, n = OperatorWindow(model, builder), frames.shape[1]
    past = starts_of(frames, 30, back=model.window.history)[0]
    ends = [superposed_on(frames[34] + 0.3 * k, past[-1]) for k in (0, 1)]
    ends[1][0] += [0.5, -0.4, 0.3]
    ends[1] = superposed_on(ends[1], past[-1])
    for generator in (lambda: None, lambda: np.random.default_rng(2)):
        paths = [window.between(past, end, generator()) for end in ends]
        assert paths[0].shape == (4, n, 3)
        for path, end in zip(paths, ends, strict=True):
            np.testing.assert_allclose(path[-1], end, atol=1e-4)
        bent = np.abs(paths[1] - paths[0]).max(axis=(1, 2))
        assert (np.diff(bent) > 0).all() and bent[0] > 0.02  # the nearer to the end, the more
        turned = window.between(past @ TURN.T, ends[0] @ TURN.T, generator())
        np.testing.assert_allclose(turned, paths[0] @ TURN.T, atol=1e-4)


def test_of_a_known_end_nothing_is_asked():
    """The loss of windows with an end is that of the frames before it; without ends training is what it was."""
    model, _, _, train, _ = flow_model(ends=1.0, bond_weight=0.0, pair_weight=0.0, noise=0.0)
    batch, numbers = collate([train[3], train[60]]), Numbers((1, 2), range(2), 2)

    def loss(wrong):
        def network(*args, mean, **how):
            out = model.network(*args, mean=mean, **how)
            assert how["ended"].tolist() == [1.0, 1.0]
            np.testing.assert_allclose(mean[-1], args[1][-1], atol=1e-5)
            return out._replace(pos=out.pos + wrong * torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None, None])

        return float(drawn_loss(model, batch, numbers, network=network)[0][0].detach())

    assert loss(3.0) == loss(0.0) > 0
    never = flow_model(ends=0.0, bond_weight=0.0, pair_weight=0.0, noise=0.0)[0]
    assert "end" not in dict(never.network.named_parameters())
    some = flow_model(ends=0.5)[0]
    seen = []

    def network(*args, **how):
        seen.append(how["ended"])
        return some.network(*args, **how)

    graphs_ = [train[k] for k in range(0, 200, 2)]
    drawn_loss(some, collate(graphs_), Numbers((5,), range(100), 100), network=network)
    assert 35 < seen[0].sum() < 65


@pytest.mark.parametrize("kind", ENDED)
def test_saved_frames_are_joined_by_paths_of_the_model(kind, tmp_path):
    """Untrained, they are those of the base: as near as straight lines, and spread as far as they err."""
    model, builder, frames, *_ = flow_model(scale=0.0, **ENDED[kind])
    universe = noisy_run()[0].copy()
    universe.load_new(frames[::4].astype(np.float32), dt=4.0)
    path = model.save(tmp_path / "both.safetensors")
    mean = Interpolated(universe, 4, model=path).run(0, 60).results
    assert mean.positions.shape == (1, 59 * 4 + 1, *frames.shape[1:]) and mean.error is None
    np.testing.assert_array_equal(mean.positions[0, mean.saved], frames[: 60 * 4 : 4])
    true = frames[: 59 * 4 + 1]
    place = np.arange(len(true))[:, None, None] / 4
    low = np.minimum(place.astype(int), 58)
    linear = frames[4 * low[:, 0, 0]] + (place - low) * (frames[4 * low[:, 0, 0] + 4] - frames[4 * low[:, 0, 0]])
    between = ~mean.saved
    error = superposed_rmsd(mean.positions[0, between], true[between])
    assert error.mean() < 1.05 * superposed_rmsd(linear[between], true[between]).mean()
    drawn = Interpolated(universe, 4, model=model, samples=6, seed=1).run(0, 60).results.positions
    again = Interpolated(universe, 4, model=model, samples=1, seed=1).run(0, 60).results.positions
    np.testing.assert_array_equal(again[0], drawn[0])
    inside = np.stack(
        [[superposed_on(x, y) for x, y in zip(run[between], true[between], strict=True)] for run in drawn]
    )
    spread, off = np.var(inside, axis=0, ddof=1).mean() * 7 / 6, np.mean((inside.mean(axis=0) - true[between]) ** 2)
    assert 0.8 < np.sqrt(spread / off) < 1.25
    # No kink where a saved frame is met: steps to it and from it are as long as all others.
    steps = np.array([[superposed_rmsd(a, b) for a, b in zip(run, run[1:], strict=False)] for run in drawn])
    assert 0.8 < np.median(steps[:, 3::4]) / np.median(steps[:, 1::4]) < 1.25


def test_who_cannot_join_frames_is_told(flow, tmp_path):
    universe = noisy_run()[0].copy()
    universe.load_new(flow[2][::4].astype(np.float32), dt=4.0)
    model = flow_model(ends=0.5)[0]
    with pytest.raises(ModelError, match="both ends of some windows.*--set ends=0.5"):
        Interpolated(universe, 4, model=flow[0])
    with pytest.raises(UsageError, match="both ends of some windows.*--set ends=0.5"):
        OperatorWindow(flow[0], flow[1]).between(flow[2][20:22], flow[2][24])
    with pytest.raises(ModelError, match="--set ends=0.5"):
        Interpolated(universe, 4, model=new_model(GRAPH, WINDOW, ModelSpec(hidden=8, layers=1)))
    with pytest.raises(UsageError, match="windows of 4 steps, found factor 8: give --factor 4"):
        Interpolated(universe, 8, model=model)
    with pytest.raises(UsageError, match="leave it out, or the model"):
        Interpolated(universe, 4, model=model, fast_ps=0.5)
    universe.load_new(flow[2][::4].astype(np.float32), dt=10.0)
    with pytest.raises(ModelError, match="steps of 1.0 ps, and a factor of 4 asks for steps of 2.5 ps"):
        Interpolated(universe, 4, model=model)


def test_the_command_joins_frames_by_a_model(tmp_path):
    model, _, frames, *_ = flow_model(scale=0.0, ends=0.5)
    universe = noisy_run()[0].copy()
    universe.load_new(frames[:80:4].astype(np.float32), dt=4.0)
    universe.atoms.write(str(tmp_path / "mol.pdb"))
    universe.atoms.write(str(tmp_path / "run.xtc"), frames="all")
    model.save(tmp_path / "both.safetensors")
    found = CliRunner().invoke(main, [
        "interpolate", str(tmp_path / "mol.pdb"), str(tmp_path / "run.xtc"), "--model",
        str(tmp_path / "both.safetensors"), "--factor", "4", "-o", str(tmp_path / "smooth.xtc"),
    ])  # fmt: skip
    assert found.exit_code in (0, 3), found.output  # these atoms swing further than bonds may
    smooth = mda.Universe(str(tmp_path / "smooth.pdb"), str(tmp_path / "smooth.xtc"))
    assert smooth.trajectory.n_frames == 77 and smooth.trajectory.dt == pytest.approx(1.0)
    other = CliRunner().invoke(main, [
        "interpolate", str(tmp_path / "mol.pdb"), str(tmp_path / "run.xtc"), "--model",
        str(tmp_path / "both.safetensors"), "-o", str(tmp_path / "other.xtc"),
    ])  # fmt: skip
    assert other.exit_code == 2 and "--factor 4" in other.output and not (tmp_path / "other.xtc").exists()
