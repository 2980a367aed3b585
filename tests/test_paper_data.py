"""The paper's data sets: read from files as they are published, and what is said where they are not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from paper_data import (
    ETHANOL,
    ethanol,
    mocap_arrays,
    write_md17,
    write_mocap,
    write_mocap_pickles,
    write_sgdml,
    write_transitions,
)

from egno_md import GraphSpec, WindowSpec, datasets
from egno_md.datasets import mocap
from egno_md.errors import DataError
from egno_md.training.judge import _flight
from egno_md.training.reference import reference_errors


def loaded(name, **options):
    dataset = datasets.get(name)
    chosen = dataset.options(**options)
    settings = dataset.recipe(chosen)
    return dataset.load(chosen, GraphSpec(**settings["graph"]), WindowSpec(**settings["window"]))


def sizes(split):
    return [len(part) for part in (split.train, split.validation, split.test)]


def test_motion_capture_has_its_windows_features_and_velocities(tmp_path):
    split = loaded("mocap", folder=write_mocap(tmp_path), train=4)
    assert sizes(split) == [4, 8, 8]  # of each trial as many, the first start frames
    values = mocap_arrays()
    trials = np.split(values["positions"], values["offsets"][1:-1])
    assert [split.train.index[k] for k in range(4)] == [(1, 3), (1, 0), (4, 3), (4, 0)]
    graph, trial = split.train[0], trials[1]
    np.testing.assert_allclose(graph.vel, trial[4] - trial[3], atol=1e-5)  # forward
    np.testing.assert_allclose(graph.y[:, -1], trial[33], atol=1e-5)
    np.testing.assert_allclose(graph.y[:, 0], trial[9], atol=1e-5)
    np.testing.assert_allclose(graph.x[:, 0], np.linalg.norm(trial[4] - trial[3], axis=1), atol=1e-5)
    np.testing.assert_allclose(graph.x[:, 1], trial[3][:, 1] / 30, atol=1e-5)
    near = np.zeros((31, 31), int)
    near[tuple(values["edges"].T)] = near[tuple(values["edges"].T[::-1])] = 1
    second = (near @ near > 0) & (near == 0) & ~np.eye(31, dtype=bool)
    apart = near + 2 * second
    assert graph.edge_index.shape[1] == (apart > 0).sum()
    np.testing.assert_array_equal(graph.edge_attr[:, 0], apart[tuple(graph.edge_index.numpy())])
    i, j = graph.edge_index
    np.testing.assert_allclose(graph.edge_attr[:, 1], (graph.pos[i] - graph.pos[j]).square().sum(1), rtol=1e-4)


def test_mocap_windows_for_training_start_in_every_frame_where_asked_and_the_others_do_not_change(tmp_path):
    folder = write_mocap(tmp_path)
    plain, more = (loaded("mocap", folder=folder, every_start=every) for every in (False, True))
    # Trials 1 and 4 have 51 and 54 frames, and 30 follow each start.
    assert more.train.index == [(1, start) for start in range(21)] + [(4, start) for start in range(24)]
    assert set(plain.train.index) < set(more.train.index)
    assert (plain.validation.index, plain.test.index) == (more.validation.index, more.test.index)


def test_the_authors_pickles_are_the_same_and_others_are_not_run(tmp_path):
    ours, theirs = (
        loaded("mocap", folder=write(tmp_path / write.__name__)) for write in (write_mocap, write_mocap_pickles)
    )
    assert sizes(ours) == sizes(theirs)
    for a, b in zip(ours.test, theirs.test, strict=True):
        assert torch.equal(a.pos, b.pos) and torch.equal(a.y, b.y) and torch.equal(a.edge_index, b.edge_index)

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "write_mocap_pickles" / "motion_run.pkl").write_bytes(pickle.dumps((Harm(), [])))
    with pytest.raises(DataError, match="wants to load .*mkdir, which is no array.*MinkaiXu/EGNO"):
        loaded("mocap", folder=tmp_path / "write_mocap_pickles")
    assert not (tmp_path / "harm").exists()


def test_running_is_that_of_the_authors(shared):
    split = loaded("mocap", folder=shared / "data" / "mocap")
    with np.load(shared / "data" / "mocap" / mocap.FILES["run"][0]) as file:
        names = file["joint_names"].tolist()  # as "lfoot" and "rfoot"
    assert all(mocap.NAMES[k] in (name, name[1:]) for k, name in enumerate(names)) and len(names) == len(mocap.NAMES)
    assert len({*mocap.NAMES}) == 19 < len({*names}) == 31
    assert sizes(split) == [200, 240, 240]
    assert reference_errors(split.test)["static"][-1] == pytest.approx(89.8, abs=0.05)
    flight = np.mean([float((g.y[:, -1] - g.pos - 30 * g.vel).square().mean()) for g in split.test])
    assert flight == pytest.approx(19.8, abs=0.05)


def test_md17_leaves_hydrogens_out_and_reads_the_published_start_frames(tmp_path):
    split = loaded("md17", folder=write_md17(tmp_path))
    assert sizes(split) == [6, 3, 4] and split.record["set"] == "MD17"
    frames = ethanol(4000, 1)[:, :3]
    graph = split.train[2]
    np.testing.assert_allclose(graph.pos, frames[2], atol=1e-5)
    np.testing.assert_allclose(graph.vel, frames[3] - frames[2], atol=1e-6)
    np.testing.assert_allclose(graph.y, frames[2 + 3000 * np.arange(1, 9) // 8].swapaxes(0, 1), atol=1e-5)
    np.testing.assert_allclose(graph.x[:, 1], ETHANOL[:3] / 8)
    assert graph.edge_index.T.tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    assert graph.edge_attr[:, :3].tolist() == [[6, 6, 1], [6, 8, 2], [6, 6, 1], [6, 8, 1], [8, 6, 2], [8, 6, 1]]


def test_blocks_of_time_and_runs_share_no_frame(tmp_path):
    apart = loaded("md17", folder=write_md17(tmp_path, 16_000), split="apart", train=5, validation=5, test=5)
    frames = [{start + step for _, start in part.index for step in (0, 3000)} for part in
              (apart.train, apart.validation, apart.test)]  # fmt: skip
    assert max(frames[0]) < min(frames[1]) and max(frames[1]) < min(frames[2])
    runs = loaded("md17", folder=write_sgdml(tmp_path), source="sgdml", split="apart")
    assert [{run for run, _ in part.index} for part in (runs.train, runs.validation, runs.test)] == [{0, 1}, {2}, {3}]
    assert runs.record["set"] == "MD17-like (sGDML)"
    np.testing.assert_allclose(runs.train[0].vel, 0.01)
    assert sizes(loaded("md17", folder=tmp_path, source="sgdml")) == [8, 4, 4]


def test_adenylate_kinase_of_a_users_files_and_of_the_transitions(tmp_path):
    from MDAnalysisTests.datafiles import DCD, PSF

    split = loaded("adk", topology=PSF, trajectory=DCD)
    n = 98 - 1 - 15
    assert sizes(split) == [int(0.6 * n), int(0.8 * n) - int(0.6 * n), n - int(0.8 * n)]
    graph = split.train[0]
    assert graph.n_nodes == 855 and float(graph.x[:, 1].abs().max()) == pytest.approx(1.0)
    assert graph.y.shape == (855, 4, 3) and float(graph.edge_attr[:, 0].max()) <= 8.0
    np.testing.assert_allclose(graph.edge_attr[:, 0] ** 2, graph.edge_attr[:, 1], rtol=1e-4)
    paths = loaded("adk", source="transitions", folder=write_transitions(tmp_path))
    first, second, third = ([(run, start, start + 15) for run, start in part.index] for part in
                            (paths.train, paths.validation, paths.test))  # fmt: skip
    assert {run for run, _, _ in first} == {0} and {run for run, _, _ in second + third} == {1}
    assert max(end for _, _, end in second) < min(start for _, start, _ in third)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mocap", {}, "motion_run.pkl and split_run.pkl.*MinkaiXu/EGNO"),
        ("mocap", {"motion": "walk"}, "CMU motion capture.*motion.pkl and split.pkl.*MinkaiXu/EGNO"),
        ("md17", {}, "md17_ethanol.npz.*Chmiela et al. 2017"),
        ("md17", {"source": "sgdml"}, "regenerated.*sGDML.*MD17-like"),
        ("adk", {}, "figshare.5108170.*adk4ake.psf"),
        ("adk", {"source": "transitions"}, "MDAnalysisTests"),
    ],
)
def test_what_is_not_there_is_named_with_where_it_comes_from(tmp_path, name, options, words):
    with pytest.raises(DataError, match="(?s)there is no file.*" + words) as caught:
        loaded(name, folder=tmp_path / "nowhere", **options)
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_other_files_and_splits_that_overlap_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"'positions' has the shape \(10, 30, 3\), expected any x 31 x 3"):
        loaded("mocap", folder=write_mocap(tmp_path / "a", positions=np.zeros((10, 30, 3))))
    with pytest.raises(DataError, match="train and test share 1 trials"):
        loaded("mocap", folder=write_mocap(tmp_path / "b", test_case=np.array([2, 4])))
    words = "start in frames 0 to 33, those of 30 frames that read 0 before them can in 0 to 21"
    with pytest.raises(DataError, match=words):
        loaded("mocap", folder=write_mocap(tmp_path / "c", test_start=np.array([[3, 0, 9, 33]] * 2)))
    broken = mocap_arrays()["positions"]
    broken[5, 3, 1] = np.nan
    with pytest.raises(DataError, match="holds 1 numbers that are not finite"):
        loaded("mocap", folder=write_mocap(tmp_path / "d", positions=broken))
    (tmp_path / "d" / "cmu_mocap_run_subject09.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read as an npz file"):
        loaded("mocap", folder=tmp_path / "d")
    folder = write_md17(tmp_path / "e")
    (folder / "md17_uracil.npz").write_bytes((folder / "md17_ethanol.npz").read_bytes())
    with pytest.raises(DataError, match="holds C2O1 without its hydrogens, uracil is C4N2O2"):
        loaded("md17", folder=folder, molecule="uracil")
    with pytest.raises(DataError, match=r"train and validation share 2 start frames \(\(0, 10\) is the first\)"):
        loaded("md17", folder=write_md17(tmp_path / "f", starts=(range(0, 12), range(10, 13), range(20, 24))))
    with pytest.raises(DataError, match="start in frames 20 to 23 of 1 run.*those of 3000 frames can in 0 to 9"):
        loaded("md17", folder=write_md17(tmp_path / "g", 3011, (range(0, 3), range(4, 6), range(20, 24))))


def test_straight_flight_is_fitted_to_these_windows_too(tmp_path):
    split = loaded("mocap", folder=write_mocap(tmp_path))
    assert _flight(split.train).shape == (5,)
    assert Path(split.record["file"]).suffix == ".npz"
