"""Windows never cross the end of a run, and the parts of a split share no frame."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_model, make_universe
from pydantic import ValidationError

from egno_md.errors import DataError, UsageError
from egno_md.graph.builder import GraphBuilder
from egno_md.graph.windows import Run, TrajectoryWindows, frames_back, segments, split_blocks, window_starts
from egno_md.specs import WindowSpec


def frames_of(start: int, window: WindowSpec, every: int) -> set[int]:
    """Every frame that a window reads, past and targets."""
    past = [start - k * every for k in range(frames_back(window) + 1)]
    ahead = [start + t * every for t in window.targets] + ([start + every] if window.velocity == "forward" else [])
    return set(past + ahead)


def test_a_window_says_which_strides_it_covers():
    window = WindowSpec(stride_ps=1.0, stride_range=(0.2, 100))
    assert [window.covers(stride) for stride in (0.1, 0.2, 0.19999, 7.3, 100, 101)] == [False, *[True] * 4, False]
    assert window.at_stride(20).stride_ps == 20 and window.at_stride(20).stride_range == (0.2, 100)
    with pytest.raises(UsageError, match="0.1 ps is not what the model was made for, which is 0.2 to 100 ps.*--every"):
        window.at_stride(0.1)
    with pytest.raises(UsageError, match="which is 1 ps"):
        WindowSpec(stride_ps=1.0).at_stride(2)


@pytest.mark.parametrize("history", [1, 4])
@pytest.mark.parametrize("velocity", ["backward", "forward"])
@pytest.mark.parametrize("every", [1, 3])
def test_all_starts_that_fit_and_no_other(history, velocity, every):
    window = WindowSpec(stride_ps=1, n_times=4, history=history, velocity=velocity)
    fits = [s for s in range(40) if all(0 <= f < 40 for f in frames_of(s, window, every))]
    assert list(window_starts(40, window, every)) == fits


@pytest.mark.parametrize("blocks", [1, 3])
def test_parts_share_no_frame(blocks):
    window = WindowSpec(stride_ps=1, n_times=4)
    parts = split_blocks(300, window, every=2, fractions=(0.6, 0.2, 0.2), blocks=blocks)
    read = [set().union(*(frames_of(s, window, 2) for s in part)) for part in parts]
    assert all(len(part) for part in parts)
    assert not (read[0] & read[1] or read[0] & read[2] or read[1] & read[2])
    assert set().union(*read) <= set(range(300))


def test_too_short_a_run_says_how_many_frames_are_needed():
    window = WindowSpec(stride_ps=1, n_times=8)
    with pytest.raises(DataError, match="at least 50 frames"):
        split_blocks(40, window)
    assert all(len(part) for part in split_blocks(50, window))


def test_targets_of_both_samplings():
    assert WindowSpec(stride_ps=1, n_times=5, span=10).targets == (2, 4, 6, 8, 10)
    assert WindowSpec(stride_ps=1, n_times=5, span=10, sampling="L").targets == (6, 7, 8, 9, 10)
    # The paper's AdK windows: lag 15 in 4 steps.
    assert WindowSpec(stride_ps=240, n_times=4, span=15).targets == (3, 7, 11, 15)


@pytest.mark.parametrize(
    "bad",
    [
        {"history": 0},
        {"span": 2},
        {"stride_ps": 0},
        {"sampling": "X"},
        {"unknown": 1},
        {"n_times": 0},
        {"stride_range": (2.0, 0.5)},
        {"stride_range": (0.0, 5.0)},
        {"stride_range": (2.0, 5.0)},
    ],
)
def test_bad_window(bad):
    with pytest.raises(ValidationError):
        WindowSpec(**{"stride_ps": 1.0, "n_times": 4, **bad})


@pytest.mark.parametrize("history", [1, 4])
@pytest.mark.parametrize("velocity", ["backward", "forward"])
def test_sample_holds_the_right_frames(history, velocity):
    u = make_universe(30)
    positions = np.stack([u.atoms.positions for _ in u.trajectory])
    model = make_model(history=history)
    window = WindowSpec(stride_ps=1, n_times=4, history=history, velocity=velocity)
    windows = TrajectoryWindows([Run(positions, GraphBuilder(u.atoms, model.graph), every=2)], window)
    for item in (0, len(windows) - 1):
        start = windows.index[item][1]
        data = windows[item]
        np.testing.assert_allclose(data.pos, positions[start])
        back = [start - 2 * k for k in range(frames_back(window), -1, -1)]
        np.testing.assert_array_equal(windows.history(item), positions[back])
        # Constant velocity: forward and backward differences over a stride of two frames agree.
        np.testing.assert_allclose(data.vel, positions[start + 2] - positions[start], atol=1e-5)
        for k in range(4):
            np.testing.assert_allclose(data.y[:, k], positions[start + 2 * (k + 1)])
        if history > 1:
            for k in range(4):
                np.testing.assert_allclose(data.pos_history[:, k], positions[start - 2 * (3 - k)])


@pytest.mark.parametrize("every", [1, 3])
def test_segments_are_the_frames_that_the_windows_read(every):
    window = WindowSpec(stride_ps=1, n_times=4)
    for part in split_blocks(300, window, every=every, blocks=2):
        read = set().union(*(frames_of(s, window, every) for s in part))
        covered = [set(range(a, b)) for a, b in segments(part, window, every)]
        assert len(covered) == 2 and set().union(*covered) == read


def test_without_a_word_every_frame_is_a_stride_and_a_run_is_one_block():
    window = WindowSpec(stride_ps=1, n_times=4, history=2)
    assert window_starts(40, window) == window_starts(40, window, 1) == range(2, 36)
    assert segments([5, 6, 9], window) == segments([5, 6, 9], window, 1) == [(3, 11), (7, 14)]
    assert segments([], window) == []
    for found, said in zip(split_blocks(100, window), split_blocks(100, window, every=1, blocks=1), strict=True):
        np.testing.assert_array_equal(found, said)
    assert [(part[0], part[-1]) for part in split_blocks(100, window)] == [(2, 55), (62, 75), (82, 95)]
    for wrong in ((0.5, 0.4), (0.6, 0.5)):
        with pytest.raises(DataError, match="must sum to 1"):
            split_blocks(100, window, fractions=wrong)
    assert len(split_blocks(100, window, fractions=(1.0, 0.0))[1]) == 0  # a part of nothing may be empty
    with pytest.raises(DataError, match="40 frames in 2 blocks: too few for windows of 7 frames .* at least 70 frames"):
        split_blocks(40, window, blocks=2)


@pytest.mark.parametrize("every", [1, 2])
def test_the_window_after_some_others_is_one_of_the_same_stretch(every):
    u = make_universe(60)
    positions = np.stack([u.atoms.positions for _ in u.trajectory])
    builder, window = GraphBuilder(u.atoms, make_model().graph), WindowSpec(stride_ps=1, n_times=2, span=4)
    starts = [[*range(5, 30), *range(34, 45)], range(3, 20)]
    windows = TrajectoryWindows([Run(positions, builder, every=every)] * 2, window, starts)
    for item, (run, start) in enumerate(windows.index):
        for count in (0, 1, 2):
            there = start + 4 * every * count
            whole = all(k in set(starts[run]) for k in range(start, there + 1))
            assert windows.ahead(item, count) == (windows.index.index((run, there)) if whole else None)
