"""A chain that shrinks, leaves the run or comes to rest is said to; one that does as the run does is not."""

from __future__ import annotations

import json

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import Ballistic, make_model, make_universe

from egno_md import EGNOSurrogate, sample
from egno_md.cli import main
from egno_md.molecule.course import Course, end_of
from egno_md.molecule.geometry import superposed_rmsd
from egno_md.nn import EGNOOutput
from egno_md.trajectory import stream

LATTICE = 4.0 * np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3)  # (27, 3)


def harmonic(n_frames: int, seed: int, memory: float = 0.8) -> np.ndarray:
    """Atoms on springs that forget (F, N, 3): 0.3 A about their places in every direction."""
    rng, x, frames = np.random.default_rng(seed), np.zeros(LATTICE.shape), []
    for _ in range(n_frames + 50):
        x = memory * x + np.sqrt(1 - memory**2) * rng.normal(scale=0.3, size=x.shape)
        frames.append(LATTICE + x)
    return np.array(frames[50:])


@pytest.fixture(scope="module")
def run() -> np.ndarray:
    return harmonic(200, 0)


@pytest.fixture(scope="module")
def course(run) -> Course:
    seconds = np.arange(3, 200, 4)
    return Course.of(np.stack([run[seconds - 1], run[seconds]], axis=1), run[-1])


def test_what_the_run_does_is_measured_in_closed_form(run, course):
    radii = np.sqrt(np.square(run - run.mean(axis=1, keepdims=True)).sum(axis=-1).mean(axis=-1))
    assert radii.min() <= course.radius[0] < radii.mean() < course.radius[1] <= radii.max()
    # x' - x has the variance 2 (1 - memory) 0.3^2 along each axis; six of 81 freedoms are those of the whole.
    assert course.step == pytest.approx(np.sqrt(2 * 0.2 * 3 * 0.09 * 75 / 81), rel=0.03)


@pytest.mark.parametrize("seed", range(1, 21))
def test_a_sound_chain_has_no_finding(run, course, seed):
    frames = harmonic(100, seed)
    assert course.findings(frames[-end_of(100) :], run[-1]) == ()


def test_a_chain_that_shrinks_swells_leaves_or_rests_is_said_to(run, course):
    frames = harmonic(320, 3)
    factors = 0.99 ** (np.arange(320) // 8)[:, None, None]  # by one percent a window
    for scaled, word in ((frames * factors, "shrinks"), (frames / factors, "swells")):
        assert any(line.startswith(word) for line in course.findings(scaled[-80:], run[-1])), word
        assert course.findings(scaled[:4], run[-1]) == ()
    swapped = frames[:, np.random.default_rng(0).permutation(27)]  # as large and as lively, and not the same
    assert [line.partition(":")[0] for line in course.findings(swapped[-80:], run[-1])] == ["leaves the run"]
    (line,) = course.findings(np.stack([run[-1]] * 10), run[-1])
    assert line.startswith("comes to rest: it moves 0.000 A a stride at the end, the run 0.")
    for part in (0.05, 0.25):  # of the steps
        slow = run[-1] + part * (frames - LATTICE)
        assert [line.partition(":")[0] for line in course.findings(slow[-80:], run[-1])] == ["comes to rest"], part


def test_too_little_says_nothing(run):
    assert Course.of(np.stack([run[:7], run[1:8]], axis=1), run[7]) is None
    assert [end_of(n) for n in (1, 8, 9, 100, 10**6)] == [0, 0, 3, 25, 256]


class Shrinking(Ballistic):
    """A window in which the molecule becomes smaller by one percent about its centre."""

    def forward(self, h, pos, vel, edge_index, edge_attr, *, times=None, batch=None, edge_shift=None, max_memory=None):
        left = 1 - 0.01 * (torch.arange(self.n_times) + 1) / self.n_times  # (T,)
        moved = pos.mean(0) + left[:, None, None] * (pos - pos.mean(0))  # (T, N, 3)
        return EGNOOutput(moved, vel.expand_as(moved), h.expand(len(left), *h.shape))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_forecast_says_so(monkeypatch, tmp_path, streamed):
    if streamed:
        monkeypatch.setattr(stream, "STREAM_FRAMES", 8)
        monkeypatch.setattr(stream, "STREAM_BYTES", 0)
    u, rng = make_universe(40), np.random.default_rng(0)
    place = make_universe(1).atoms.positions
    u.load_new((place + rng.normal(scale=0.05, size=(40, 10, 3))).astype(np.float32), dt=1.0)
    made = {"horizon": 64, "device": "cpu", "filename": tmp_path / "a.dcd"}
    results = EGNOSurrogate(u, make_model(Shrinking(4)), **made).run().results
    radii = [np.sqrt(np.square(x - x.mean(axis=0)).sum(axis=-1).mean()) for x in (results.positions[0, -1], place)]
    assert radii[0] / radii[1] == pytest.approx(0.99**16, rel=0.02)  # which no check takes for an error
    assert results.checks[0].ok and results.course[0][0].startswith("shrinks: radius of gyration")
    one = EGNOSurrogate(u, make_model(Shrinking(4)), horizon=4, device="cpu").run().results
    assert one.course == [()]  # a single window


@pytest.mark.parametrize(("n_frames", "start"), [(12, 11), (40, 7), (3, 1), (3, 0)])
def test_the_run_up_to_the_last_start_is_looked_at_pair_by_pair(monkeypatch, n_frames, start):
    seen, ends, of = [], [], Course.of

    def spied(pairs, here):
        seen.append(np.array(pairs))
        np.testing.assert_array_equal(here, frames[start])
        made = of(pairs, here)
        if made is not None:
            monkeypatch.setattr(type(made), "findings", lambda self, end, begin: ends.append(end) or ())
        return made

    monkeypatch.setattr(Course, "of", spied)
    u = make_universe(n_frames)
    frames = np.array([u.atoms.positions for _ in u.trajectory])
    results = (
        EGNOSurrogate(u, make_model(Ballistic(4)), horizon=50, device="cpu", substeps=2).run(frames=[start]).results
    )
    expected = [[frames[k - 1], frames[k]] for k in range(1, start + 1)]
    if expected:
        np.testing.assert_allclose(seen[0], expected, atol=1e-5)
    else:
        assert not len(seen[0])
    # Its end is the last quarter of the 25 strides, and of those in between nothing.
    assert bool(ends) == (start > 7)
    for end in ends:
        np.testing.assert_array_equal(end, results.positions[0, 37::2])


def test_the_command_line_says_so(tmp_path, run):
    u = mda.Universe.empty(27, n_residues=1, atom_resindex=[0] * 27, trajectory=True)
    for name, value in {"names": ["C"] * 27, "elements": ["C"] * 27, "resnames": ["LIG"], "resids": [1]}.items():
        u.add_TopologyAttr(name, value)
    u.load_new(run.astype(np.float32), dt=1.0)
    u.atoms.write(tmp_path / "top.pdb")
    u.atoms.write(tmp_path / "run.dcd", frames="all")

    def predicted(who: str, *more: str):
        files = [str(tmp_path / name) for name in ("top.pdb", "run.dcd")]
        given = ["--model", who, "-o", str(tmp_path / f"{who[:4]}.dcd"), "--select", "all", "--horizon", "80", *more]
        return CliRunner().invoke(main, ["predict", *files, *given], prog_name="egno-md")

    still = predicted("static")
    assert still.exit_code == 0 and "course     it comes to rest: it moves 0.000 A" in still.output, still.output
    many = predicted("static", "--from-frames", "150,170,199")
    for line in ("from frame 150 it comes to rest", "3 of 3 starts have a line such as these"):
        assert f"course     {line}" in many.output, many.output
    sound = predicted("ensemble of the run", "--json")
    assert sound.exit_code == 0, sound.output
    assert json.loads(sound.stdout[sound.stdout.index("{") :])["course"] == []


@pytest.mark.parametrize("who", ["elastic network", "elastic network of proteins", "Gaussian process"])
def test_long_futures_of_the_sample_move_as_the_run_does(who):
    u = mda.Universe(*map(str, sample()))
    results = EGNOSurrogate(u, who, horizon=200, device="cpu").run().results
    atoms = u.select_atoms("name CA")
    run = np.stack([atoms.positions for _ in u.trajectory])
    future = results.positions[0].astype(np.float64)
    for part in np.split(future, 4):
        assert (
            0.6 < np.median(superposed_rmsd(part[1:], part[:-1])) / np.median(superposed_rmsd(run[1:], run[:-1])) < 1.2
        )
    assert results.course[0] == ()
