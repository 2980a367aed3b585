"""A training step on the paper's own small systems against its arithmetic and the reference. Nothing fails on seconds.

    OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_small.py -s

"ours" and "reference" alternate, the arithmetic of :func:`systems.step_arithmetic` is measured before and after them;
all columns are medians. Fractions are medians of the pairs, which a shared machine disturbs less.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from systems import CLOCK, SMALL, allocator, block, calls, peak_memory, positions, step_arithmetic

ROUNDS = 15


@pytest.fixture(scope="module")
def table():
    lines: list[str] = []
    yield lines
    head = f"{'training step':<28}{'ours ms':>9}{'ref. ms':>9}{'ratio':>7}{'/ arithmetic':>14}{'MB':>6}{'ref. MB':>9}"
    print(f"\n\nthreads: {torch.get_num_threads()}, malloc: {allocator()}", head, *lines, sep="\n")


@pytest.mark.parametrize("name", SMALL)
def test_small(name, table):
    shape = SMALL[name]
    x, pairs = positions(shape)
    every, n_edges = calls(shape, x, pairs)
    step, times = every["training"], {"ours": [], "reference": []}
    step()  # compiles
    floor = [step_arithmetic(shape, len(x), n_edges)]
    for _ in range(ROUNDS):
        for which, taken in times.items():
            with block(which):
                start = CLOCK()
                step()
                taken.append(CLOCK() - start)
    floor.append(step_arithmetic(shape, len(x), n_edges))
    ours, theirs = map(statistics.median, times.values())
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    memory = {which: peak_memory(name, "training", which) for which in times}
    line = f"{name:<28}{1e3 * ours:9.1f}{1e3 * theirs:9.1f}{ratio:7.2f}{ours / statistics.mean(floor):14.2f}"
    table.append(f"{line}{memory['ours']:6.0f}{memory['reference']:9.0f}")
    assert ours > 0 and theirs > 0
