"""Rules of time up to their bounds: what still counts as even, as a whole number, as the same spacing."""

from __future__ import annotations

from types import SimpleNamespace

import MDAnalysis as mda
import numpy as np
import pytest
from conftest import make_universe

from egno_md.errors import DataError, SpacingError
from egno_md.trajectory.clock import (
    Clock,
    _by_steps,
    _common_spacing,
    _even,
    _File,
    _line,
    _notes,
    _round,
    _rounding,
    no_positions,
    same_spacing,
    time_tolerance,
    trajectory_name,
)
from egno_md.trajectory.universe import open_universe

EPS = float(np.finfo(np.float32).eps)


def clock_of(times, spacing=1.0, uncertainty=0.0, usable=None, stretches=None):
    times = np.asarray(times, float)
    usable = np.ones(len(times), bool) if usable is None else np.asarray(usable)
    stretches = (np.flatnonzero(usable),) if stretches is None else stretches
    return Clock(times, usable, spacing, uncertainty, stretches, "run.xtc", ())


def test_what_single_precision_leaves_open():
    assert _rounding(np.array([1.0, -1000.0, 10.0])) == pytest.approx(4000 * EPS)
    assert time_tolerance(-2.0, np.array([0.0, 50.0])) == pytest.approx(2e-3 + 200 * EPS)


@pytest.mark.parametrize(
    ("value", "slack", "expected"),
    [
        (0.9996, 5e-4, 1.0),
        (0.9994, 5e-4, 0.999),  # the roundest within reach
        (2.0004, 5e-4, 2.0),
        (1.23456789, 0.0, 1.234568),  # by three parts in ten million, which single precision leaves open
        (123456789.0, 0.0, 123456800.0),
        (1.2345678, 6e-5, 1.2346),
        (0.3333333, 1e-7, 0.3333333),
        (0.33333333, 1e-7, 0.3333333),
        (1.0 + 2.5 * EPS, 0.0, 1.0),  # single precision alone
        (1.0 + 4.0 * EPS, 0.0, 1.0 + 4.0 * EPS),
        (12345678.0, 1.0, 12345680.0),  # seven digits and no more
        # Where a hundredth is open: powers of ten first, then twice and half of one.
        (0.93, 0.1, 1.0),
        (8.9, 1.2, 10.0),
        (2.2, 0.25, 2.0),
        (4.6, 0.5, 5.0),
        (3.1, 0.2, 3.0),
        (98.5, 1.6, 100.0),
        (1.2, 10.0, 1.0),  # never by more than a quarter
        (1.3, 10.0, 1.0),
        (7.0, 10.0, 7.0),
        (8.1, 10.0, 10.0),
        (1.62, 10.0, 2.0),
        (2.6, 0.64, 2.0),
        (4.1, 1.0, 5.0),
    ],
)
def test_spacings_are_as_round_as_may_be(value, slack, expected):
    assert _round(value, slack) == pytest.approx(expected, rel=1e-9)
    assert _round(1000 * value, 1000 * slack) == pytest.approx(1000 * expected, rel=1e-9)


@pytest.mark.parametrize("exact", [True, False])
def test_times_on_a_line_have_a_spacing(exact):
    times = 100.0 + 2.0 * np.arange(11)
    assert _line(times, exact) == (2.0, 0.0 if exact else pytest.approx(120 * EPS / 10))
    open_ = 2e-3 + (0.0 if exact else 480 * EPS)
    for off, even in ((0.99 * open_, True), (1.01 * open_, False)):
        bent = times.copy()
        bent[4] += off
        assert (_line(bent, exact)[0] is not None) == even
        bent[4] -= 2 * off
        assert (_line(bent, exact)[0] is not None) == even
    assert _line(times[::-1], exact) == (None, 0.0) and _line(0 * times, exact) == (None, 0.0)
    assert _line(times[:2], exact)[0] == 2.0


def file(*times, **known):
    times = np.asarray(times, float)
    return _File(times, np.ones(len(times), bool), **known)


def common(*files):
    return _common_spacing(files, np.concatenate([one.times[one.usable] for one in files]))


def test_the_spacing_is_that_of_most_frames():
    assert common(file(0, 1, 2, exact=True), file(0, 2, 4, 6, exact=True)) == (2.0, 0.0)
    assert common(file(0, 2, 4, exact=True), file(0, 1, 2, 3, exact=True)) == (1.0, 0.0)
    # Steps of an uneven file count one by one, whatever their order, and those that go back not at all.
    assert common(file(0, 5, 6, 1, 2, 3, 13, exact=True)) == (1.0, 0.0)
    assert common(file(0, 5, 10, 9, 8, 3, 8, 9, exact=True)) == (5.0, 0.0)
    # Frames without positions are in nobody's way; files of one frame are one after the other.
    gaps = _File(np.arange(6.0), np.array([True, False] * 3), exact=True)
    assert common(gaps) == (2.0, 0.0)
    assert common(file(3, exact=True), file(6, exact=True), file(9, exact=True), file(0, exact=True))[0] == 3.0
    assert common(file(3, exact=True), file(0, 2, 4, exact=True)) == (2.0, 0.0)
    assert common(file(3), file(2), file(1)) == (None, 0.0)
    # Two frames are a spacing, and one of an uneven file is no more than one of an even one.
    assert common(file(0, 2, exact=True), file(5, 7, exact=True)) == (2.0, 0.0)
    assert common(file(0, 1, 2, 3, exact=True), file(10, 12, 14, 21, exact=True)) == (1.0, 0.0)
    assert common(file(0, 1, 2, exact=True), file(10, 12, 14, 16, 23, exact=True)) == (2.0, 0.0)
    assert common(file(1, 1, 1)) == (None, 0.0)


def test_spacings_are_one_up_to_their_rounding():
    def steps(*sizes, **known):
        return common(file(*np.cumsum([0.0, *sizes]), **known))[0]

    # Two of 1 and two a little more: together they are more than three of 3.
    for off, same in ((1.9e-3, True), (2.1e-3, False)):
        found = steps(1, 1, 1 + off, 1 + off, 3, 3, 3, exact=True)
        assert (found == 3) == (not same)
        assert same == (found == pytest.approx(1 + off / 2, abs=1e-6))
    # A file of many frames knows its spacing better than one of few, which is not asked then.
    far = 2.0**20
    long_, short = file(*(far + np.arange(101.0))), file(far, far + 1.25, far + 2.5)
    assert common(short, long_)[0] == 1.0
    spacing, uncertainty = common(file(*(far + 1.0 * np.arange(5))), file(*(far + 1.0 * np.arange(5))))
    assert spacing == 1.0
    assert uncertainty == pytest.approx((far + 4) * EPS / 4 / np.sqrt(2))
    assert common(file(0, 1, 2, 3, exact=True, uncertainty=0.01))[1] == 0.01
    # Each by its own size, and by its own rounding up to half of it, whatever smaller ones there are.
    assert steps(100, 1, 100.05, 1, 100.1, exact=True) == pytest.approx(100.05)
    for sizes, mean in (((10, 0.25, 10.375, 0.25, 10.75), 10.375), ((1, 9, 1.375, 9, 1.75), 1.375)):
        late = file(*(far + np.cumsum([0.0, *sizes])))
        assert common(late)[0] == pytest.approx(mean, rel=1e-3)
    # It is rounded by what is open, and by a two thousandth of itself at most.
    assert common(file(0, 1.0004, 2.0008, exact=True, uncertainty=0.1))[0] == 1.0
    assert common(file(0, 1.0006, 2.0012, exact=True, uncertainty=0.1))[0] == pytest.approx(1.001)
    assert common(file(0, 1.0004, 2.0008, exact=True, uncertainty=1e-4))[0] == pytest.approx(1.0004)


def even(times, exact=True, spacing=1.0):
    return [places.tolist() for places in _even(np.asarray(times, float), spacing, exact)]


@pytest.mark.parametrize(
    ("times", "stretches"),
    [
        ([0, 1, 2.0009, 3], [[0, 1, 2, 3]]),
        ([0, 1, 2.0011, 3], [[0, 1], [2], [3]]),
        ([0, 1, 1.9989, 3], [[0, 1], [2], [3]]),
        ([0, 1, 1.0009, 2], [[0, 1, 3]]),  # twice
        ([0, 1, 0.9991, 2], [[0, 1, 3]]),
        ([0, 1, 1.0011, 2], [[0, 1], [2], [3]]),
        ([0, 1, 1, 1, 2], [[0, 1, 4]]),
        ([5, 0, 1], [[0], [1, 2]]),
        ([0, 1], [[0, 1]]),
    ],
)
def test_stretches_are_even_to_a_thousandth_of_the_spacing(times, stretches):
    assert even(times) == stretches
    assert even(7.0 * np.asarray(times), spacing=7.0) == stretches


def test_late_times_are_even_up_to_their_rounding():
    late = 2.0**14
    open_ = 1e-3 + 4 * EPS * (late + 2)
    for off, one in ((0.99 * open_, True), (1.01 * open_, False)):
        assert (len(even(late + np.array([0, 1, 2 + off, 3 + off]), exact=False)) == 1) == one
        assert (len(even(-late - np.array([3, 2 - off, 1 - off, 0]), exact=False)) == 1) == one
        assert (len(even(late + np.array([0, 1, 2 + off, 3 + off]))) == 1) == False  # noqa: E712
    # By the rounding of the two times, not by that of others before them.
    assert even([-late, 1 - late, 0, 1, 2.004], exact=False) == [[0, 1], [2, 3], [4]]
    assert even([-late, 1 - late, 0, 1.004], exact=False) == [[0, 1], [2], [3]]
    # Where neighbours may round to the same time, none of them is the other once more.
    later = 2.0**21
    assert 4 * EPS * later > 0.5 and even(later + np.array([0, 1, 1, 2]), exact=False) == [[0, 1, 2, 3]]
    assert even(0.8 * 2.0**20 + np.array([0, 1, 1, 2]), exact=False) == [[0, 1, 3]]  # which needs half a spacing
    # A hundredth of the spacing apart they are two, however late.
    late = 2.0**17
    assert 0.01 < 4 * EPS * late < 0.5
    assert even(late + np.array([0, 1, 1.0078125, 2]), exact=False) == [[0, 1, 3]]
    for apart in (1.015625, 1.0125):
        assert even(late + np.array([0, 1, apart, 2]), exact=False) == [[0, 1], [2, 3]]


def by_steps(times, steps):
    times = np.asarray(times, float)
    return _by_steps(SimpleNamespace(times=times, steps=np.asarray(steps)), np.ones(len(times), bool))


def test_step_numbers_tell_the_time_where_both_are_on_a_line():
    found = by_steps([0, 1, 2, 4], [100, 600, 1100, 2100])
    assert found.exact and found.known and found.uncertainty == 0.0
    np.testing.assert_allclose(found.times, [0, 1, 2, 4], rtol=1e-12)
    for times, steps in (
        ([0, 1], [0, 500]),  # two are always on one
        ([0, 1, 2], [0, 0, 0]),
        ([0, 1, 2], [0, 500, 500]),
        ([0, 1, 2], [0, 500, 400]),
        ([2, 1, 0], [0, 500, 1000]),
        ([0, 1, 2.5], [0, 500, 1000]),
        ([0, 1, 1, 2], [0, 500, 500, 1000]),  # a frame that is there twice
        ([3, 3, 3], [0, 500, 1000]),
    ):
        found = by_steps(times, steps)
        assert not found.exact
        np.testing.assert_array_equal(found.times, times)
    # Off the line by a thousandth of the smallest step, and by the rounding.
    for off, exact in ((0.9e-3, True), (1.1e-3, False)):
        assert by_steps([0, 2, 3 + off, 5], [0, 20, 30, 50]).exact == exact
        assert by_steps([0, 2, 3 - off, 5], [0, 20, 30, 50]).exact == exact
    late = 2.0**24
    found = by_steps(late + np.array([0.0, 2, 2, 4, 4, 6]), np.arange(6) + 1)  # 1 ps apart, stored as even numbers
    assert found.exact
    np.testing.assert_allclose(np.diff(found.times), 1.0, rtol=1e-9)
    assert found.times[0] == pytest.approx(late + 0.5, abs=0.51) and found.times[0] != late
    assert found.uncertainty == pytest.approx((late + 6) * EPS / 5)
    rounding = 4 * (late + 6) * EPS
    for off, exact in ((0.99 * rounding, True), (1.01 * rounding + 2e-3, False)):
        assert by_steps(late + np.array([0, 1, 2 + off, 3, 4, 6]), [0, 1, 2, 3, 4, 6]).exact == exact


def test_a_gap_late_in_a_long_run_is_seen(tmp_path):
    """Single precision leaves open two frames there; the step numbers do not."""
    steps = np.delete(np.arange(2501), 1000)
    universe = make_universe(1)
    universe.atoms.write(str(tmp_path / "t.pdb"))
    with mda.Writer(str(tmp_path / "r.xtc"), 10) as writer:
        for step in steps:
            universe.trajectory.ts.time, universe.trajectory.ts.data["step"] = 2.0**24 + step, int(step)
            writer.write(universe.atoms)
    clock = Clock.of(open_universe(tmp_path / "t.pdb", [tmp_path / "r.xtc"]))
    assert clock.spacing == 1 and list(map(len, clock.stretches)) == [1000, 1500]


def test_a_frame_is_found_where_it_is_to_a_fiftieth_of_the_spacing():
    clock = clock_of([0, 1, 2.019, 3, 4.021])
    assert clock.shifted(1, 1) == 2 and clock.shifted(3, 1) is None and clock.shifted(0, 2) == 2
    assert clock.shifted(4, -1) is None and clock.shifted(2, -2) == 0
    assert clock.shifted(2, 0) == 2 and clock.shifted(0, -1) is None and clock.shifted(4, 1) is None
    unsure = clock_of([0, 1, 2.019, 3, 4.021], uncertainty=0.01)
    assert unsure.shifted(3, 1) == 4 and unsure.shifted(4, -1) == 3
    wide = clock_of([0, 10, 20.19, 30, 40.21], spacing=10.0)
    assert wide.shifted(1, 1) == 2 and wide.shifted(3, 1) is None
    # A time that goes back begins anew; by a hundredth of the spacing it may.
    back = clock_of([0, 1, 2, 1.995, 3, 0.5, 1.5])
    assert back.shifted(2, 1) == 4 and back.shifted(1, 1) in (2, 3)
    assert back.shifted(5, 1) == 6 and back.shifted(5, -0.5) is None and back.shifted(4, -1) is not None
    assert clock_of([0, 100, 200, 199, 300], spacing=100.0).shifted(0, 3) == 4  # by a hundredth and no more
    assert clock_of([0, 100, 200, 198.9, 300], spacing=100.0).shifted(0, 3) is None
    again = clock_of([0, 1, 2, 1.985, 3])
    assert again.shifted(1, 1) == 2 and again.shifted(3, -1) is None and again.shifted(0, 3) is None
    # Frames without positions are none, and nothing is a spacing of nothing.
    some = clock_of([0, 1, 2, 3], usable=[True, False, True, True])
    assert some.shifted(1, 1) is None and some.shifted(0, 1) is None and some.shifted(0, 2) == 2
    assert some.shifted(2, -2) == 0 and some.shifted(1, 0) is None and some.shifted(3, -1) == 2
    assert clock_of([5.0], spacing=0.0).shifted(0, 1) is None


def test_a_stride_is_a_whole_number_of_frames_to_a_thousandth():
    assert clock_of([0, 0.5, 1], spacing=0.5).per_stride(1.0) == 2
    for stride, fits in ((3.0029, True), (3.0031, False), (2.9971, True), (2.9969, False), (0.5, False)):
        clock = clock_of([0, 1, 2])
        if fits:
            assert clock.per_stride(stride) == clock.per_stride(stride, 3) == 3
        else:
            with pytest.raises(SpacingError, match="which is not a whole number of them"):
                clock.per_stride(stride)
    # As much more as is open of the spacing, once for each of its frames.
    unsure = clock_of([0, 2, 4], spacing=2.0, uncertainty=0.01)
    assert unsure.per_stride(6.0) == unsure.per_stride(6.035) == unsure.per_stride(5.965, 3) == 3
    for stride in (6.038, 6.06, 5.962):
        with pytest.raises(SpacingError):
            unsure.per_stride(stride)
    # What the user says is taken where it is as near.
    vague = clock_of([0, 1, 2], uncertainty=0.3)
    assert vague.per_stride(2.6) == 3 and vague.per_stride(2.6, 2) == 2
    with pytest.raises(SpacingError, match="so 4 of them are 4 ps.*3 frames: pass every=3"):
        clock_of([0, 1, 2]).per_stride(3.0, 4)
    with pytest.raises(SpacingError, match=r"apart; the model has.*3 frames: pass every=3.*dt=3 \(--dt 3\)"):
        clock_of([0, 1, 2]).per_stride(3.0, 1)
    with pytest.raises(SpacingError, match=r"1 frame: leave every.*dt=0.5 \(--dt 0.5\)"):
        clock_of([0, 1, 2]).per_stride(1.0, 2)
    with pytest.raises(SpacingError, match="has 1 frame; a run has at least two"):
        clock_of([0]).per_stride(1.0)
    with pytest.raises(SpacingError, match=r"3 of its 4 frames, such as frame 3, hold no positions"):
        clock_of([0, 1, 2, 3], usable=[True, False, False, False]).per_stride(1.0)
    # The spacing that the file should have is that of its frames, with and without positions.
    half = clock_of(np.arange(6.0), 2.0, usable=[True, False] * 3)
    with pytest.raises(SpacingError, match=r"dt=0.25 \(--dt 0.25\)"):
        half.per_stride(1.0, 2)
    some = clock_of([0, 9, 1, 2], stretches=(np.array([0]), np.array([2, 3])))
    with pytest.raises(SpacingError, match=r"dt=0.3 \(--dt 0.3\)"):
        some.per_stride(0.3)


def test_files_have_one_spacing_to_a_thousandth():
    first = (2.0, "a.xtc")
    assert same_spacing(None, first) == first
    assert same_spacing(first, (2.0019, "b.xtc")) == same_spacing(first, (1.9981, "b.xtc")) == first
    for other in (2.0021, 1.9979):
        with pytest.raises(DataError, match="a.xtc are 2 ps apart, those of b.xtc"):
            same_spacing(first, (other, "b.xtc"))


def test_the_nearest_frame_with_positions_is_named():
    trajectory = SimpleNamespace(filename="run.trr")
    for frame, near in ((0, 1), (2, 1), (3, 4), (5, 4)):
        clock = clock_of(np.arange(6.0), usable=[False, True, False, False, True, True])
        assert f"from another frame (frame {near} has them)" in str(no_positions(clock, trajectory, frame))
    nobody = clock_of([0.0, 1.0], usable=[False, True])
    assert "(frame 1 has them)" in str(no_positions(nobody, trajectory, 0))
    assert "has them" not in str(no_positions(nobody, trajectory, 1))


def test_the_file_of_a_frame_is_named():
    readers = [SimpleNamespace(n_frames=n) for n in (3, 2, 1, 4)]
    trajectory = SimpleNamespace(filenames=["a.xtc", "b.xtc", "c.xtc", "d.xtc"], readers=readers, n_frames=10)
    named = [trajectory_name(trajectory, frame) for frame in range(10)]
    assert named == ["a.xtc"] * 3 + ["b.xtc"] * 2 + ["c.xtc"] + ["d.xtc"] * 4
    assert trajectory_name(trajectory) == "a.xtc, ..., d.xtc (4 files)"
    trajectory.filenames = trajectory.filenames[:3]
    assert trajectory_name(trajectory) == "a.xtc, b.xtc, c.xtc"
    trajectory.n_frames = 9  # frames were left out: nobody knows whose this one is
    assert trajectory_name(trajectory, 0) == "a.xtc, b.xtc, c.xtc"
    assert trajectory_name(SimpleNamespace(filename=None)) == trajectory_name(SimpleNamespace()) == "the trajectory"


def test_stretches_are_told_up_to_four():
    times = np.arange(20.0)

    def note(*lengths):
        ends = np.cumsum([0, *lengths])
        return _notes("r.xtc", times, 1.0, [np.arange(a, b) for a, b in zip(ends, ends[1:], strict=False)])

    assert note(5) == ()
    (two,) = note(3, 2)
    assert "frames 0 to 2 (0 to 2 ps), 3 to 4 (3 to 4 ps); no window" in two
    (alone,) = note(3, 1, 2, 1)
    assert "0 to 2 (0 to 2 ps), 4 to 5 (4 to 5 ps); alone: 2 frames; no" in alone
    (four,) = note(2, 2, 2, 2)
    assert "6 to 7 (6 to 7 ps); no window" in four
    (five,) = note(2, 2, 2, 2, 2)
    assert "6 to 7 (6 to 7 ps) and 1 more; no" in five
    (six,) = note(2, 2, 2, 2, 2, 2)
    assert "6 to 7 (6 to 7 ps) and 2 more; no" in six
