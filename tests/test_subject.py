"""A subject reads the frames that a model needs, whatever the files look like."""

from __future__ import annotations

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from conftest import make_model, make_universe

from egno_md.errors import DataError, OutputError
from egno_md.forecast.subject import Subject
from egno_md.graph.windows import TrajectoryWindows


def write_run(path, n_frames, *, damage=None):
    u = make_universe(n_frames)
    with mda.Writer(str(path), 10) as writer:
        for ts in u.trajectory:
            if ts.frame == damage:
                ts.positions = np.where(np.arange(30).reshape(10, 3) == 4, np.nan, ts.positions)
            writer.write(u.atoms)
    return u


def opened(tmp_path, *names, name="run", **options):
    make_universe(1).atoms.write(str(tmp_path / "top.pdb"))
    u = mda.Universe(str(tmp_path / "top.pdb"), *[str(tmp_path / name) for name in names])
    model = make_model()
    return u, Subject.of(u, model.graph, model.window, name=name, **options)


def test_every_file_is_a_run_of_its_own(tmp_path):
    write_run(tmp_path / "a.dcd", 7)
    write_run(tmp_path / "b.dcd", 5)
    with pytest.warns(UserWarning, match="even stretches are frames 0 to 6 .* 7 to 11"):
        u, subject = opened(tmp_path, "a.dcd", "b.dcd", name="r")
    whole = np.stack([u.atoms.positions for _ in u.trajectory])
    u.trajectory[3]
    runs = subject.runs()
    assert [len(run.positions) for run in runs] == [7, 5] and u.trajectory.frame == 3
    np.testing.assert_array_equal(np.concatenate([run.positions for run in runs]), whole)
    assert [len(run.positions) for run in subject.runs(start=4, stop=9)] == [3, 2]
    with pytest.raises(DataError, match="no frame between 12"):
        subject.runs(start=12)


def test_frames_that_do_not_fit_stream_from_a_file(tmp_path):
    write_run(tmp_path / "a.dcd", 30)
    u, subject = opened(tmp_path, "a.dcd", name="a")
    (inside,) = subject.runs()
    (mapped,) = subject.runs(folder=tmp_path, limit=100)
    assert isinstance(mapped.positions, np.memmap) and (tmp_path / "a.f32").stat().st_size == 30 * 10 * 12
    np.testing.assert_array_equal(mapped.positions, inside.positions)
    window = make_model().window
    for one, other in zip(TrajectoryWindows([inside], window), TrajectoryWindows([mapped], window), strict=True):
        assert torch.equal(one.y, other.y) and torch.equal(one.vel, other.vel)
    with pytest.raises(OutputError, match="more room"):
        subject.runs(folder=tmp_path / "none", limit=100)


def test_a_damaged_frame_is_named(tmp_path):
    write_run(tmp_path / "a.dcd", 8, damage=5)
    _, subject = opened(tmp_path, "a.dcd")
    with pytest.raises(DataError, match="frame 5 .* not finite"):
        subject.runs()


def test_without_a_window_every_frame_is_a_stride():
    assert Subject.of(make_universe(6, dt=0.25), None).every == 1
