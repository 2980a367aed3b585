"""The clock of whole runs: which are refused, what is read of them, times late in a run, and several files."""

from __future__ import annotations

import struct
import warnings
from types import SimpleNamespace

import MDAnalysis as mda
import numpy as np
import pytest
from conftest import make_universe

from egno_md.errors import DataError, SpacingError
from egno_md.trajectory.clock import AKMA_PS, Clock, _doubts, _file, _read_times, frame_spacing, unreadable
from egno_md.trajectory.universe import in_memory_universe, open_universe

EPS = float(np.finfo(np.float32).eps)


def timed(times) -> mda.Universe:
    u = make_universe(1)
    return in_memory_universe(u.atoms, np.repeat(u.atoms.positions[None], len(times), axis=0), np.asarray(times, float))


@pytest.fixture
def topology(tmp_path):
    make_universe(1).atoms.write(str(tmp_path / "t.pdb"))
    return tmp_path / "t.pdb"


def written(path, times, spacing=None):
    """A file of these times; a DCD file says its spacing alone."""
    u = timed(times)
    with mda.Writer(str(path), 10, **({} if spacing is None else {"dt": spacing})) as writer:
        for _ in u.trajectory:
            writer.write(u.atoms)
    return path


def test_two_frames_are_a_run():
    clock = Clock.of(timed([3.0, 5.0]))
    assert clock.spacing == 2.0 and [part.tolist() for part in clock.stretches] == [[0, 1]]
    assert clock.per_stride(4.0) == 2 and clock.per_stride(2.0) == 1


def test_a_run_is_refused_where_more_than_three_in_four_frames_are_alone():
    alone = 100.0 + 10.0 * np.arange(10) ** 1.5
    assert len(Clock.of(timed(np.r_[0:3, alone[:9]])).stretches) == 10  # 9 of 12
    assert len(Clock.of(timed(np.r_[0:4, alone])).stretches) == 11  # 10 of 14
    with pytest.raises(DataError, match=r"not evenly spaced in time \(frame 0: 0 ps, 1: 1 ps, 2: 2 ps, 3: 100 ps, 4"):
        Clock.of(timed(np.r_[0:3, alone]))  # 10 of 13
    for times in ([0.0, 1, 3], [0.0, 1, 3, 6]):  # few frames are held to the same
        assert len(Clock.of(timed(times)).stretches) == len(times) - 1
    with pytest.raises(DataError, match="not evenly spaced"):
        Clock.of(timed([0.0, -1, -3]))


def test_the_spacing_of_a_frame_alone_is_what_its_file_says(tmp_path, topology):
    one = open_universe(topology, [written(tmp_path / "one.dcd", [0.0], spacing=4.0)])
    assert Clock.of(one).spacing == pytest.approx(4.0) == frame_spacing(one)
    assert Clock.of(open_universe(topology, [tmp_path / "one.dcd"], dt=3.0)).spacing == 3.0
    # Of two frames of which one has positions nothing is known, whatever the spacing of the file is.
    from MDAnalysis.lib.formats.libmdaxdr import TRRFile

    xyz = make_universe(1).atoms.positions / 10
    with TRRFile(str(tmp_path / "two.trr"), "w") as file:
        for k, has in enumerate((True, False)):
            file.write(xyz if has else None, np.zeros_like(xyz), None, np.zeros((3, 3)), k, 3.0 * k, 0.0, 10)
    clock = Clock.of(open_universe(topology, [tmp_path / "two.trr"]))
    assert clock.spacing == 0.0 and len(clock.times) == 2 and clock.stretches[0].tolist() == [0]


@pytest.mark.parametrize("spacing", [1.0, 8.0])
def test_late_times_are_put_on_the_line_that_they_were_rounded_from(spacing):
    true = 2.0**20 + spacing * np.arange(5)
    clock = Clock.of(timed(true + [0, 0.125, 0.125, 0.125, 0]))
    assert clock.spacing == spacing and len(clock.stretches) == 1
    np.testing.assert_array_equal(clock.times, true + 0.125)  # the median of what they are off by


@pytest.mark.parametrize(("open_", "kept"), [(0.9e-3, True), (1.2e-3, False)])
@pytest.mark.parametrize("spacing", [0.5, 4.0])
def test_times_are_kept_as_they_are_up_to_a_thousandth_of_the_spacing(spacing, open_, kept):
    late = open_ * spacing / (4 * EPS)
    times = late + spacing * np.arange(-4.0, 1.0)
    times[2] += 0.5 * open_ * spacing
    found = Clock.of(timed(times)).times
    assert (found[2] == times[2]) == kept and found[2] == pytest.approx(times[2], abs=0.6 * open_ * spacing)


class Numbered:
    """A trajectory that keeps in mind which of its frames were read."""

    def __init__(self, times):
        self.times, self.read = times, []

    def __getitem__(self, frame):
        self.read.append(frame)
        return SimpleNamespace(time=self.times[frame])


def test_of_even_frames_a_few_are_read():
    run = Numbered(100.0 + 2.0 * np.arange(60))
    found = _read_times(run, 10, 41)
    assert run.read == [10, 11, 30, 49, 50] and not found.exact and found.known and found.usable.all()
    np.testing.assert_allclose(found.times, 120.0 + 2.0 * np.arange(41), rtol=1e-12)
    for n in (1, 2, 3, 4, 5):  # all of them
        few = Numbered(np.array([0, 1, 2.0005, 3, 4, 5, 6]))
        np.testing.assert_array_equal(_read_times(few, 0, n).times, few.times[:n])
        assert few.read == list(range(n))
    six = Numbered(np.arange(6.0))
    assert np.array_equal(_read_times(six, 0, 6).times, np.arange(6.0)) and six.read == [0, 1, 3, 4, 5]


@pytest.mark.parametrize(("off", "evenly"), [(0.9e-3, True), (1.2e-3, False)])
def test_all_frames_are_read_where_those_few_are_uneven(off, evenly):
    for place in (1, 5, 9):
        times = 3.0 * np.arange(12)
        times[4] = 11.0  # between those that are looked at
        times[10 if place == 9 else 6 if place == 5 else place] += 3.0 * off * (1 if place != 5 else -1)
        run = Numbered(times)
        found = _read_times(run, 0, 12).times
        assert found[4] == (12.0 if evenly else 11.0) and len(run.read) == (5 if evenly else 17)
    for times in (np.zeros(12), -np.arange(12.0)):  # times that stand still, or go back, are on no line
        run = Numbered(times)
        np.testing.assert_array_equal(_read_times(run, 0, 12).times, times)
        assert len(run.read) == 17


def test_looking_at_the_times_leaves_the_run_where_it_is():
    for times in (np.arange(8.0), np.arange(8.0) ** 2 % 7):
        for frame in (0, 1, 5, 7):
            u = timed(times)
            u.trajectory[frame]
            try:
                Clock.of(u)
            except DataError:
                assert times[2] != 2
            assert u.trajectory.frame == frame and u.trajectory.ts.time == times[frame]


def test_a_spacing_that_was_given_is_exact(tmp_path, topology):
    file = written(tmp_path / "r.xtc", np.arange(6.0))
    for universe in (open_universe(topology, [file], dt=1.1), mda.Universe(str(topology), str(file), dt=1.1)):
        clock = Clock.of(universe)
        assert (clock.spacing, clock.uncertainty) == (pytest.approx(1.1), 0.0)
        np.testing.assert_allclose(clock.times, 1.1 * np.arange(6), rtol=1e-12)


class OneFrame:
    """A reader of a format that states no spacing."""

    def __init__(self, n_frames, format):
        self.n_frames, self.format = n_frames, format

    @property
    def dt(self):
        raise ValueError


@pytest.mark.parametrize(
    ("n", "format", "data", "known", "time"),
    [
        (1, "INPCRD", {"time": 7.0}, True, 7.0),
        (1, "INPCRD", {}, False, 0.0),
        (1, "LAMMPSDUMP", {"time": 7.0}, False, 0.0),  # which numbers its steps
        (2, "INPCRD", {"time": 7.0}, False, 0.0),  # each of which may be any time later
    ],
)
def test_a_file_of_one_frame_may_say_when_it_was(n, format, data, known, time):
    frame = SimpleNamespace(time=7.0, data=data, has_positions=True)
    found = _file([None, None, frame, frame], OneFrame(n, format), 2)
    assert (found.known, found.times.tolist(), found.usable.tolist()) == (known, [time] * n, [True] * n)


def test_files_of_other_spacings_are_refused_beyond_a_thousandth(tmp_path, topology):
    def chain(other):  # the longer one decides
        files = [written(tmp_path / "a.xtc", 2.0 * np.arange(60))]
        files.append(written(tmp_path / "b.xtc", 118 + 0.5 * (2 + other) + other * np.arange(6)))
        return open_universe(topology, files)

    for other in (2.0, 2.002, 1.998):
        assert frame_spacing(chain(other)) == pytest.approx(2.0, rel=1e-4)
    for other in (2.0026, 1.9974):
        with pytest.raises(DataError, match=rf"different frame spacings \(2, {other:g} ps\)"):
            frame_spacing(chain(other))
    with pytest.raises(DataError, match=r"different frame spacings \(2, 3 ps\)"):  # of two frames as well
        frame_spacing(open_universe(topology, [tmp_path / "a.xtc", written(tmp_path / "c.xtc", [120.0, 123.0])]))


def test_a_border_of_files_that_is_no_spacing_wide_is_named(tmp_path, topology):
    def said(*begins):
        files = [written(tmp_path / f"{k}.xtc", begin + 2.0 * np.arange(n)) for k, (begin, n) in enumerate(begins)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert frame_spacing(open_universe(topology, files)) == 2.0
        return [str(w.message) for w in caught if "the file changes" in str(w.message)]

    assert said((0, 5), (10, 4), (18, 3)) == said((0, 5), (10, 1), (12, 3)) == []
    (one,) = said((0, 5), (12, 4), (20, 3))
    assert one.startswith("between frames 4 and 5 ") and "by 4 ps, not by the frame spacing of 2 ps" in one
    first, second = said((0, 5), (4, 4), (13, 3))
    assert "between frames 4 and 5 " in first and "by -4 ps" in first
    assert "between frames 8 and 9 " in second and "by 3 ps" in second
    assert said((0, 5), (10.0015, 4)) == [] and len(said((0, 5), (10.0025, 4))) == 1
    assert said((0, 5), (9.9985, 4)) == [] and len(said((0, 5), (9.9975, 4))) == 1


def test_of_uneven_files_the_first_frames_the_middle_and_the_last_are_shown(tmp_path, topology):
    even = written(tmp_path / "a.xtc", np.arange(20.0))
    uneven = written(tmp_path / "b.xtc", np.r_[20.0 + np.arange(8), 30.0])
    with pytest.raises(DataError, match=r"frame 20: 20 ps, 21: 21 ps, 24: 24 ps, 27: 27 ps, 28: 30 ps\)"):
        frame_spacing(open_universe(topology, [even, uneven]))


def test_the_copy_of_a_frame_on_this_side_is_taken():
    clock = Clock.of(timed([0, 1, 2, 2, 3, 4, 4, 5]))
    assert clock.shifted(1, 1) == 2 and clock.shifted(4, -1) == 3
    assert clock.shifted(4, 1) == 5 and clock.shifted(7, -1) == 6
    halves = Clock.of(timed([0, 1, 1.5, 1.5, 2, 3, 4, 5]))
    assert halves.shifted(1, 0.5) == 2 and halves.shifted(4, -0.5) == 3


def test_a_frame_that_cannot_be_read_has_a_cure():
    trajectory = SimpleNamespace(filename="run.xtc")
    assert "or check the file" in str(unreadable(trajectory, 0, OSError("cut")))
    late = str(unreadable(trajectory, 7, OSError("  many \n words" + 400 * "x")))
    assert "frame 7 of run.xtc" in late and "keep the frames up to 6" in late
    assert "(OSError: many words" in late and late.count("x") < 300


def test_a_run_of_two_frames_has_a_stride_and_one_of_one_has_none():
    assert Clock.of(timed([0.0, 1.0])).per_stride(1.0) == 1
    with pytest.raises(SpacingError, match="has 1 frame; a run has at least two"):
        Clock.of(timed([0.0])).per_stride(1.0)


class TestDoubts:
    def dcd(self, tmp_path, step, nsavc=1):
        """A DCD file whose header says this time of a step."""
        path = written(tmp_path / "r.dcd", np.arange(4.0), spacing=1.0)
        data = bytearray(path.read_bytes())
        assert struct.unpack_from("<i", data, 84)[0] != 0  # single precision
        struct.pack_into("<i", data, 16, nsavc)
        struct.pack_into("<f", data, 44, step)
        path.write_bytes(data)
        return path

    @pytest.mark.parametrize(
        ("step", "doubted"),
        [(1.0, True), (2.0, True), (0.25, True), (0.5, True), (2.75, True), (0.0205, False), (0.1, False),
         (0.2, False), (0.0, False), (0.3, False), (1.001, False), (2.76, False), (1.000002, True), (1.000003, False)],
    )  # fmt: skip
    def test_whole_numbers_and_quarters_of_one_are_doubted(self, tmp_path, topology, step, doubted):
        said = _doubts(mda.Universe(str(topology), str(self.dcd(tmp_path, step, 10))).trajectory)
        assert len(said) == doubted
        if doubted:
            assert f"says {step:g} where" in said[0] and f"of {AKMA_PS:.4f} ps" in said[0]
            assert f"of which {step * 10 / 1e3:g} ps would be" in said[0]
            assert f"{AKMA_PS * step * 10:g} ps are taken" in said[0]

    def test_a_spacing_that_was_given_is_not_doubted(self, tmp_path, topology):
        path, right = self.dcd(tmp_path, 1.0, 10), 10 * AKMA_PS
        for factor in (1.0, 1.00005, 1.00013, 1.5, 0.5):
            given, doubted = factor * right, factor in (1.0, 1.00005)
            trajectory = mda.Universe(str(topology), str(path), dt=given).trajectory
            assert len(_doubts(trajectory)) == doubted

    def test_the_first_file_of_several_is_named(self, tmp_path, topology):
        good = written(tmp_path / "good.dcd", np.arange(4.0), spacing=1.0)
        files = [str(good), str(self.dcd(tmp_path, 1.0)), str(written(tmp_path / "x.xtc", np.arange(4.0)))]
        (said,) = _doubts(mda.Universe(str(topology), files).trajectory)
        assert "r.dcd says 1 where" in said
        (said,) = _doubts(mda.Universe(str(topology), files[::-1]).trajectory)
        assert "r.dcd says 1 where" in said
