"""Our edge block against the reference: the same EGNO, in one process, alternating, medians. Nothing fails on seconds.

    OMP_NUM_THREADS=1 python -m pytest tests/benchmarks                      # as a user runs it
    OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 \
        MALLOC_TOP_PAD_=268435456 python -m pytest tests/benchmarks          # memory is kept: equal settings for both

The reference allocates and returns gigabytes, and glibc hands each large block back to the system at once: as a user
runs it, much of its time is the kernel clearing pages. The second form takes that advantage from us. Select one shape
with ``-k "855 and 128"``; ``--benchmark-json`` stores everything that the table at the end prints.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from systems import CLOCK, MODES, SHAPES, allocator, arithmetic, block, calls, peak_memory, positions

pytest.importorskip("MDAnalysisTests", reason="the benchmark systems are its adenylate kinase")
ROUNDS = {"inference": 7, "training": 3}
TABLE: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    head = f"{'shape':<26}{'call':<11}{'ours s':>9}{'ref. s':>9}{'ratio':>7}{'MB':>8}{'ref. MB':>9}{'/ arithmetic':>14}"
    print(f"\n\nthreads: {torch.get_num_threads()}, malloc: {allocator()}", head, *TABLE, sep="\n")


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SHAPES)
def test_speed(benchmark, name, mode):
    shape = SHAPES[name]
    x, pairs = positions(shape)
    every, n_edges = calls(shape, x, pairs)
    call, floor, reference_times, floor_times = every[mode], arithmetic(shape, n_edges), [], []

    def timed(function, times):
        start = CLOCK()
        function()
        times.append(CLOCK() - start)

    def time_others():
        with block("reference"):
            timed(call, reference_times)
        if mode == "inference":
            timed(floor, floor_times)

    rounds = ROUNDS[mode] * (5 if n_edges < 10_000 else 1)
    # The set-up of a round is not in its time: the others run there, so that all of them alternate.
    benchmark.pedantic(call, setup=time_others, rounds=rounds, warmup_rounds=1)
    ours, theirs = statistics.median(benchmark.stats.stats.data), statistics.median(reference_times)
    memory = {which: peak_memory(name, mode, which) for which in ("ours", "reference")}
    benchmark.extra_info |= {
        "edges": n_edges,
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "reference_s": theirs,
        "ratio": theirs / ours,
        "arithmetic_s": floor_times,
        "over_base_MB": memory,
    }
    share = f"{ours / statistics.median(floor_times):14.2f}" if floor_times else ""
    line = f"{name:<26}{mode:<11}{ours:9.3f}{theirs:9.3f}{theirs / ours:7.2f}"
    TABLE.append(f"{line}{memory['ours']:8.0f}{memory['reference']:9.0f}{share}")
    assert ours > 0 and theirs > 0
