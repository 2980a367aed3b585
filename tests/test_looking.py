"""A forecast looked at: the numbers behind the pictures, the pictures, and the page in a browser."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from conftest import make_model
from MDAnalysis.analysis import align, rms
from test_cli import egno_md
from test_report import needs_chromium, opened

from egno_md import EGNOSurrogate, sample
from egno_md.errors import OutputError, UsageError
from egno_md.looking import look_at, write_page
from egno_md.looking.figures import panels
from egno_md.looking.forecast import worth

torch.set_num_threads(1)

TOPOLOGY, TRAJECTORY = map(str, sample())


def drawn(surrogate: EGNOSurrogate, members: int = 12) -> EGNOSurrogate:
    """As if futures had been drawn, which the bundled model does not do."""
    noise = np.random.default_rng(0).normal(size=(1, members, *surrogate.results.positions.shape[1:]))
    surrogate.results.ensemble = (surrogate.results.positions[:, None] + 0.3 * noise).astype(np.float32)
    return surrogate


@pytest.fixture(scope="module")
def inside() -> EGNOSurrogate:
    """From inside the run, which has half of the predicted frames. Do not alter."""
    return EGNOSurrogate(mda.Universe(TOPOLOGY, TRAJECTORY), "ca-1ps", horizon=8).run(frames=[75])


@pytest.fixture(scope="module")
def futures() -> EGNOSurrogate:
    return drawn(EGNOSurrogate(mda.Universe(TOPOLOGY, TRAJECTORY), "ca-1ps", horizon=8).run(frames=[60]))


def test_what_is_looked_at(inside):
    look = look_at(inside)
    assert look.run.shape == (76, 76, 3) and look.members.shape == (1, 8, 76, 3)
    assert look.times[0] - look.run_times[-1] == pytest.approx(1.0) and look.run_times[-1] == inside.start_times[0]
    assert look.known.tolist() == [True] * 4 + [False] * 4
    # The error is the one that the forecast itself gives.
    errors = rms.rmsd(look.members[0, 3], look.true[3], superposition=True)
    assert errors == pytest.approx(inside.results.rmsd_superposed[0, 3], abs=1e-3)
    universe = mda.Universe(TOPOLOGY, TRAJECTORY)
    atoms = universe.select_atoms("name CA")
    average = align.AverageStructure(universe, universe, select="name CA", ref_frame=75).run(stop=76)
    average = align.AverageStructure(universe, average.results.universe, select="name CA").run(stop=76)
    align.AlignTraj(universe, average.results.universe, select="name CA", in_memory=True).run(stop=76)
    np.testing.assert_allclose(look.rmsf, rms.RMSF(atoms).run(stop=76).results.rmsf, atol=2e-2)


def test_spread_and_motion(futures):
    look = look_at(futures)
    assert look.drawn and look.members.shape == (12, 8, 76, 3)
    # Of independent noise of 0.3 A in each of three directions.
    assert look.spread.mean() == pytest.approx(0.3 * np.sqrt(3 * 11 / 12), rel=0.05)
    assert np.all(look.moved > 0) and look.run_moved.shape == (76,)
    still = look_at(futures).run
    np.testing.assert_allclose(still.mean(axis=1), 0, atol=1e-9)


def test_the_trajectory_stays_where_it_was(inside):
    trajectory = inside.atoms.universe.trajectory
    trajectory[7]
    look_at(inside)
    assert trajectory.frame == 7


def test_pictures_of_python(inside, futures):
    for surrogate in (inside, futures):
        figure = surrogate.plot()
        assert len(figure.axes) == 4
        residues = next(axes for axes in figure.axes if axes.get_ylabel() == "distance (Å)")
        labels = [label.get_text() for label in residues.get_xticklabels()]
        assert labels[0] == "1" and labels[-1] == "76" and residues.get_xlabel() == "residue"
        fan = figure.axes[0]
        assert fan.get_xlabel() == "time (ps)" and fan.lines[0].get_xdata()[-1] == surrogate.start_times[0]
    # The run, its going on, a mean, and a line for each future.
    assert len(figure.axes[0].lines) == 1 + 12 + 1 + 1 + 1


def test_pictures_follow_the_atoms():
    universe = mda.Universe(*map(str, sample("chignolin")))
    heavy = EGNOSurrogate(universe, make_model(n_times=4, select="heavy"), horizon=4).run()
    found = {panel.name: panel for panel in panels(look_at(heavy))}
    assert "Phi and psi" in found["torsions"].caption
    figure = heavy.plot()
    axes = next(axes for axes in figure.axes if axes.get_xlabel() == "phi (degrees)")
    assert axes.get_xlim() == (-180, 180)
    few = EGNOSurrogate(universe, make_model(n_times=4, select="name CA and resid 1:3"), horizon=4).run()
    assert [panel.name for panel in panels(look_at(few))] == ["rmsd", "radius", "residues"]
    one = EGNOSurrogate(mda.Universe(*map(str, sample("chignolin"))), make_model(n_times=4, select="ca"), horizon=4)
    assert len(one.run(frames=[0]).plot().axes) == 4  # a run of one frame has nothing to fluctuate


def test_there_must_be_a_forecast(inside, tmp_path):
    surrogate = EGNOSurrogate(mda.Universe(TOPOLOGY, TRAJECTORY), "ca-1ps")
    with pytest.raises(UsageError, match="no forecast yet"):
        surrogate.plot()
    with pytest.raises(UsageError, match="start 1: there are forecasts from 1"):
        inside.plot(1)
    with pytest.raises(UsageError, match=r"name it .*page\.html"):
        write_page(inside, tmp_path / "page.pdf")


def test_without_matplotlib_the_cure_is_said(inside, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (inside.plot, lambda: write_page(inside, tmp_path / "page.html")):
        with pytest.raises(UsageError, match=r'pip install "egno_md\[plot\]"'):
            call()
    assert not list(tmp_path.iterdir())


def test_the_page_is_one_file(futures, tmp_path):
    file = write_page(futures, tmp_path / "page.html", said=["drawn      12 futures <b>"])
    page = file.read_text()
    assert list(tmp_path.iterdir()) == [file] and len(page) < 2_000_000
    assert "12 futures &lt;b&gt;" in page and "BSD-3-Clause" in page
    sources = re.findall(r"""<[^<>]*\s(?:src|href)=["']([^"']*)""", page.split('<script type="application/json"')[0])
    assert sources and all(source.startswith("data:") for source in sources)
    assert "default-src 'none'" in page
    with pytest.raises(OutputError, match="page.html exists"):
        write_page(futures, file)
    assert write_page(futures, file, force=True) == file


@needs_chromium
@pytest.mark.parametrize("webgl", [True, False])
def test_the_page_in_a_browser(futures, tmp_path, webgl):
    file = write_page(futures, tmp_path / "page.html", said=["accuracy   known", "checks     passed"])
    flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"] if webgl else ["--disable-3d-apis"]
    seen = opened(file, tmp_path / "profile", *flags)
    # A browser that is told to have no WebGL says so itself when it is asked.
    assert [line for line in seen["wrong"] if "WebGL" not in line] == [] and seen["loaded"] == []
    assert seen["viewer"] == ("shown" if webgl else "without")
    assert ("no WebGL" in seen["text"]) != webgl
    assert [name for name, *_ in seen["images"]] == ["rmsd", "radius", "residues", "torsions"]
    assert all(min(size) > 300 for _, *size in seen["images"])
    assert seen["cut"] == [] and not seen["wide"]
    # What it is worth comes first.
    assert seen["text"].index("superposed, and") < seen["text"].index("accuracy") < seen["text"].index("Checks")


def test_a_worthless_forecast_is_said_to_be_so():
    surrogate = EGNOSurrogate(mda.Universe(TOPOLOGY, TRAJECTORY), "ca-1ps", horizon=8).run(frames=[60])
    near = EGNOSurrogate(mda.Universe(TOPOLOGY, TRAJECTORY), "ca-1ps", horizon=8).run(frames=[40])  # README
    surrogate.results.positions = surrogate.results.positions + 3 * np.random.default_rng(1).normal(size=(1, 8, 76, 3))
    assert "nearer to what came" in worth(look_at(near))
    assert "further from what came" in worth(look_at(surrogate))


def test_the_command_line_writes_the_page(tmp_path):
    page = tmp_path / "out.html"
    command = ["predict", TOPOLOGY, TRAJECTORY, "-o", tmp_path / "f.dcd", "--report", page]
    done = egno_md(*command)
    assert done.returncode == 0, done.stderr
    assert f"written    {page}" in done.stdout and page.stat().st_size > 500_000
    again = egno_md(*command[:-1], page, "-o", tmp_path / "g.dcd")
    assert again.returncode == 1 and "out.html exists" in again.stderr and not (tmp_path / "g.dcd").exists()
    wrong = egno_md(*command[:-1], tmp_path / "out.txt", "-o", tmp_path / "g.dcd")
    assert wrong.returncode == 2 and "out.html" in wrong.stderr and not (tmp_path / "g.dcd").exists()


def test_the_hindcast_comes_first(inside, tmp_path):
    still = SimpleNamespace(
        score=0.9, against_static=(0.0, 0.0, 0.0), error=np.array([0.5, 1.2]), spread_over_error=None
    )
    drawn = SimpleNamespace(
        score=0.7, against_static=(-0.2, -0.3, -0.1), error=np.array([0.4, 1.0]), spread_over_error=np.array([0.9, 1.1])
    )
    hindcast = SimpleNamespace(
        times=np.array([1.0, 2.0]), n_windows=40, n_blocks=7, chosen="AR(1)", entries={"static": still, "AR(1)": drawn},
        line=lambda: "the mean errs 1.00 A against 1.20 A", verdict=lambda: "",
    )  # fmt: skip
    surrogate = EGNOSurrogate(mda.Universe(TOPOLOGY, TRAJECTORY), "ca-1ps", horizon=2).run()
    surrogate.results.hindcast = hindcast
    page = write_page(surrogate, tmp_path / "page.html").read_text()
    said = [page.index(words) for words in ("The mean errs 1.00 A against", "<img", "AR(1) (taken)", "static</th>")]
    assert said == sorted(said) and "40 windows, 7 independent" in page
    assert "-0.200 [-0.300, -0.100]" in page and "1.00</td>" in page
    assert "egno-md evaluate" not in page.split("<script")[0]  # nothing is unknown that is known
