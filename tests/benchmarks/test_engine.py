"""Our edge block against the reference: the same EGNO, in one process, alternating, medians. Nothing fails on seconds.

    OMP_NUM_THREADS=1 python -m pytest tests/benchmarks -s

Select one shape with ``-k "855 and 128"``; ``python -m benchmarks.performance`` measures the same for the docs.
"""

from __future__ import annotations

import pytest
import torch
from systems import MODES, SHAPES, SMALL, allocator, measured


@pytest.fixture(scope="module")
def table():
    lines: list[str] = []
    yield lines
    head = f"{'':<28}{'call':<11}{'ours s':>9}{'ref. s':>9}{'ratio':>7}{'/ arithmetic':>14}{'MB':>8}{'ref. MB':>9}"
    print(f"\n\nthreads: {torch.get_num_threads()}, malloc: {allocator()}", head, *lines, sep="\n")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", {**SMALL, **SHAPES})
def test_engine(name, mode, table):
    if SHAPES.get(name, SMALL.get(name)).atoms:
        pytest.importorskip("MDAnalysisTests", reason="the large systems are its adenylate kinase")
    found = measured(name, mode)
    line = f"{name:<28}{mode:<11}{found['seconds']:9.3f}{found['reference_seconds']:9.3f}{found['ratio']:7.2f}"
    table.append(f"{line}{found['over_arithmetic']:14.2f}{found['MB']:8.0f}{found['reference_MB']:9.0f}")
    assert found["seconds"] > 0 and found["reference_seconds"] > 0
