"""A subject reads the frames that a model needs, whatever the files look like."""

from __future__ import annotations

import dataclasses
import warnings

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from conftest import make_model, make_universe

from egno_md.errors import DataError, ModelError, OutputError, UsageError
from egno_md.forecast.subject import Subject, _Images, choose_atoms
from egno_md.graph.windows import TrajectoryWindows
from egno_md.specs import WindowSpec


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


def seen_by(u, *, history=1, stride=1.0, **options):
    model = make_model(history=history)
    return Subject.of(u, model.graph, model.window.model_copy(update={"stride_ps": stride}), **options)


def frames_of(u):
    return np.stack([u.atoms.positions for _ in u.trajectory])


def test_the_past_of_a_start_is_so_many_strides_back():
    u = make_universe(20, dt=0.5)
    one, four = seen_by(u), seen_by(u, history=4)
    assert (one.every, one.back, four.back) == (2, 1, 4)
    assert one.past(7) == [5, 7] and one.past(2) == [0, 2]
    assert one.past(1) == [1] and one.past(0) == [0]  # velocities of zero, where one stride is all that is read
    assert four.past(11) == [3, 5, 7, 9, 11] and four.past(8) == [0, 2, 4, 6, 8]
    for frame, have in ((7, 3), (3, 1), (0, 0)):
        with pytest.raises(DataError, match=f"frame {frame} has {have} strides of past, the model reads 4: start at "
                                            "frame 8 or later"):  # fmt: skip
            four.past(frame)
    np.testing.assert_array_equal(one.starts, np.arange(2, 20))
    np.testing.assert_array_equal(four.starts, np.arange(8, 20))
    with pytest.raises(DataError, match="use a longer run"):
        seen_by(make_universe(6, dt=0.5), history=4).past(5)
    assert one.before(7) == [1, 3, 5, 7] and one.before(0) == [0]


def test_what_a_forecast_reads_is_its_past_and_the_box_of_its_start():
    u = make_universe(9, box=[40, 50, 60, 90, 90, 90])
    u.trajectory.dimensions_array[:, 0] += np.arange(9)
    frames, subject, seen = frames_of(u), seen_by(u, history=2 + 2), {}
    history, boxes = subject.read([5, 7], seen)
    np.testing.assert_array_equal(history, np.stack([frames[1:6], frames[3:8]]))
    assert [float(box[0]) for box in boxes] == [45, 47]
    assert sorted(seen) == [3, 4, 5, 6, 7]  # what is older is not asked for again
    one = seen_by(u)
    with pytest.warns(UserWarning, match=r"frame 0 has no frame one stride before it: "):
        history, _ = one.read([0])
    np.testing.assert_array_equal(history, frames[None, [0, 0]])
    np.testing.assert_array_equal(one.history([3]), frames[None, 2:4])
    assert [float(box[0]) for box in one.boxes([8, 2])] == [48, 42]
    found, boxes = one.frames([4, 1])
    np.testing.assert_array_equal(found, frames[[4, 1]])
    np.testing.assert_array_equal(one.positions(6), frames[6])
    assert seen_by(make_universe(4)).boxes([0, 1]) == [None, None]


def test_frames_that_lead_to_a_start():
    u = make_universe(12, dt=0.5)
    frames, subject = frames_of(u), seen_by(u)
    for frame, count, expected in ((9, 3, [5, 7, 9]), (4, 9, [0, 2, 4]), (6, 1, [6]), (1, 2, [1])):
        found, box = subject.lead(frame, count)
        np.testing.assert_array_equal(found, frames[expected])
        assert box is None


def test_a_start_without_past_is_told_where_one_is():
    u = make_universe(12, dt=0.5)
    with pytest.warns(UserWarning, match=r"frame 1 has no frame one stride before it \(frame 2 has one\): its velo"):
        seen_by(u).read([1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen_by(make_universe(1)).read([0])  # of a single structure nobody expects one


def test_runs_stay_in_memory_up_to_a_limit(tmp_path):
    u = make_universe(30, box=[40, 50, 60, 90, 90, 90])
    subject = seen_by(u, name="r")
    size = 30 * 10 * 3 * 4
    for limit, mapped in ((size, False), (size - 1, True)):
        (run,) = subject.runs(folder=tmp_path, limit=limit)
        assert isinstance(run.positions, np.memmap) == mapped == (tmp_path / "r.f32").exists()
        np.testing.assert_array_equal(run.positions, frames_of(u))
        np.testing.assert_array_equal(run.boxes, np.tile([40, 50, 60, 90, 90, 90], (30, 1)))
        np.testing.assert_array_equal(run.numbers, np.arange(30))
    (some,) = subject.runs(start=3, stop=-5)
    np.testing.assert_array_equal(some.numbers, np.arange(3, 25))
    assert some.name == "r" and seen_by(make_universe(4)).runs()[0].boxes is None
    with pytest.raises(DataError, match="run: no frame between 4 and None; it has 4"):
        seen_by(make_universe(4)).runs(start=4)


def test_a_stretch_of_one_frame_is_no_run_beside_longer_ones(tmp_path):
    u = make_universe(9)
    u.atoms.write(str(tmp_path / "top.pdb"))
    for name, some in (("a.xtc", slice(0, 4)), ("b.xtc", slice(4, 5)), ("c.xtc", slice(5, 9))):
        with mda.Writer(str(tmp_path / name), 10) as writer:
            for ts in u.trajectory[some]:
                ts.time = 10.0 * ts.frame if name == "b.xtc" else ts.frame
                writer.write(u.atoms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = mda.Universe(str(tmp_path / "top.pdb"), *[str(tmp_path / f"{name}.xtc") for name in "abc"])
        runs = seen_by(whole, name="r").runs()
    assert [len(run.positions) for run in runs] == [4, 4] and [run.name for run in runs] == ["r-0", "r-1"]
    (alone,) = seen_by(make_universe(1), name="s").runs()
    assert len(alone.positions) == 1 and alone.name == "s"


@pytest.mark.parametrize(("n_frames", "most"), [(1, 1), (2, 1), (6, 5)])
def test_a_stride_of_plain_frames_is_shorter_than_the_run(n_frames, most):
    u = make_universe(n_frames)
    subject = Subject.plain(u, "name C1 C2", every=most)
    assert (subject.every, subject.back, len(subject.atoms), subject.name) == (most, 0, 2, "run") and subject.mends
    with pytest.raises(UsageError, match=f"less than the {n_frames} frames of the run, found {most + 1}"):
        Subject.plain(u, "all", every=most + 1)
    for wrong in (0, 1.5):
        with pytest.raises(UsageError, match="whole number of at least 1"):
            Subject.plain(u, "all", every=wrong)
        with pytest.raises(UsageError, match="whole number of at least 1"):
            seen_by(u, every=wrong)
    assert not seen_by(u, every=1).mends


def test_of_several_strides_the_shortest_that_the_run_has_is_taken():
    window = WindowSpec(stride_ps=1.0, n_times=4, stride_range=(1.0, 8.0))
    cases = ((0.4, None, 3, 1.2), (0.5, None, 2, 1.0), (3.0, None, 1, 3.0), (0.5, 6, 6, 3.0))
    for dt, every, expected, stride in cases:
        found = Subject.of(make_universe(30, dt=dt), make_model().graph, window, every=every)
        assert (found.every, found.window.stride_ps) == (expected, stride)
    alone = Subject.of(make_universe(1), make_model().graph, window, every=5)
    assert alone.every == 5 and Subject.of(make_universe(1), make_model().graph, window).every == 1


def test_a_selection_narrows_what_the_model_knows():
    u = make_universe(1)
    assert choose_atoms(u, "name C1 C2 C3").names.tolist() == ["C1", "C2", "C3"]
    assert choose_atoms(u, "name C1 C2 C3", "name C2").names.tolist() == ["C2"]
    with pytest.raises(ModelError, match="selection 'name C2 C7 C8' has 2 atoms, such as LIG C7, that the model was"):
        choose_atoms(u, "name C1 C2 C3", "name C2 C7 C8")


def test_frames_that_are_looked_at_in_between_leave_molecules_in_their_images(tmp_path):
    """Molecules walk through the box, of which the file knows the first image alone."""
    u = make_universe(12, box=[20, 20, 20, 90, 90, 90])
    frames = u.trajectory.timeseries(order="fac") + 3.0 * np.arange(12)[:, None, None]
    u.load_new((frames % 20).astype(np.float32), dt=1.0, dimensions=np.tile([20, 20, 20, 90, 90, 90], (12, 1)))
    one, other = (Subject.plain(u, "all") for _ in range(2))
    wanted = one.frames(range(12))[0]
    assert np.abs(np.diff(wanted, axis=0)).max() < 5 < np.abs(wanted - frames % 20).max()
    first = other.frames(range(6))[0]
    u.trajectory[4]
    some, boxes = other.some(5)
    assert u.trajectory.frame == 4 and len(some) == len(boxes) == 5
    np.testing.assert_allclose(np.concatenate([first, other.frames(range(6, 12))[0]]), wanted, atol=1e-4)
    # Frames that cannot be read are left out.
    broken = frames.copy()
    broken[[0, 11]] = np.nan
    u.load_new(broken.astype(np.float32), dt=1.0)
    np.testing.assert_allclose(Subject.plain(u, "all").some(3)[0], frames[5:6], atol=1e-4)


def test_where_molecules_stand_is_no_part_of_a_subject():
    subject = seen_by(make_universe(3))
    other = dataclasses.replace(subject, _images=_Images())
    assert "_images" not in repr(subject) and subject == other and other._images is not subject._images
    assert subject != dataclasses.replace(subject, every=2)
