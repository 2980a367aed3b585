"""A forecast looked at: the numbers behind the pictures, the pictures, and the page in a browser."""

from __future__ import annotations

import html
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
from egno_md.cli.predicting import readable, summary_of
from egno_md.errors import OutputError, UsageError
from egno_md.forecast.summed import Accuracy
from egno_md.looking import look_at, write_page
from egno_md.looking.figures import panels
from egno_md.looking.forecast import shown_start, worth

torch.set_num_threads(1)

TOPOLOGY, TRAJECTORY = map(str, sample())


def run(trajectory: str = TRAJECTORY, model: str | None = "ca-1ps", **options) -> EGNOSurrogate:
    return EGNOSurrogate(mda.Universe(TOPOLOGY, trajectory), model, horizon=8, **options)


def drawn(surrogate: EGNOSurrogate, members: int = 12) -> EGNOSurrogate:
    """As if futures had been drawn, which the bundled model does not do."""
    noise = np.random.default_rng(0).normal(size=(1, members, *surrogate.results.positions.shape[1:]))
    surrogate.results.ensemble = (surrogate.results.positions[:, None] + 0.3 * noise).astype(np.float32)
    surrogate.samples = members
    return compared(surrogate)


def compared(surrogate: EGNOSurrogate) -> EGNOSurrogate:
    """With the errors of what its results were changed to."""
    surrogate._compare(np.arange(1, 9))
    return surrogate


@pytest.fixture(scope="module")
def several() -> EGNOSurrogate:
    """Two futures from a start without a past, one near the beginning and one inside the run. Do not alter."""
    return run(model="elastic network", samples=2).run(frames=[0, 3, 50])


@pytest.fixture(scope="module")
def single() -> EGNOSurrogate:
    """One future that is drawn from the first frame. Do not alter."""
    return run(model="elastic network").run(frames=[0])


def text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)))


@pytest.fixture(scope="module")
def inside() -> EGNOSurrogate:
    """From inside the run, which has half of the predicted frames. Do not alter."""
    return run().run(frames=[75])


@pytest.fixture(scope="module")
def futures() -> EGNOSurrogate:
    return drawn(run().run(frames=[60]))


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
    surrogate, near = run().run(frames=[60]), run().run(frames=[40])  # README
    surrogate.results.positions = surrogate.results.positions + 3 * np.random.default_rng(1).normal(size=(1, 8, 76, 3))
    assert "nearer to what came than" in worth(near)
    assert "further from what came than" in worth(compared(surrogate))


def test_words_and_printed_numbers_say_the_same():
    surrogate = run().run(frames=[40])
    still = surrogate.results.rmsd_static_superposed[0, -1]
    for more, words in ((1e-5, "as far from what came as the start frame"), (0.02, "further"), (-0.02, "nearer")):
        surrogate.results.rmsd_superposed[0, -1] = np.round(still, 2) + more
        assert words in worth(surrogate)


def test_the_page_and_the_summary_speak_of_the_mean_of_the_futures(several, tmp_path):
    results, summary = several.results, summary_of(several)
    members, start = results.ensemble[1, :, -1], 3
    several.atoms.universe.trajectory[start]
    here = several.atoms.positions.copy()
    several.atoms.universe.trajectory[start + 8]
    came = several.atoms.positions.copy()
    several.atoms.universe.trajectory[0]
    # By hand: each future superposed on the start, then their mean on what came.
    turned = [align.rotation_matrix(m - m.mean(axis=0), here - here.mean(axis=0))[0] for m in members]
    mean = np.mean([(m - m.mean(axis=0)) @ r.T for m, r in zip(members, turned, strict=True)], axis=0)
    by_hand = rms.rmsd(mean, came, superposition=True)
    assert results.rmsd_mean_superposed[1, -1] == pytest.approx(by_hand, abs=1e-3)
    assert results.rmsd_mean[1, -1] == pytest.approx(rms.rmsd(members.mean(axis=0), came), abs=1e-3)
    one = summary["starts"][1]
    assert one["rmsd_mean_superposed_A"][-1] == pytest.approx(by_hand, abs=1e-3)
    assert one["rmsd_superposed_A"][-1] == pytest.approx(rms.rmsd(members[0], came, superposition=True), abs=1e-3)
    lines = readable(summary)
    assert f"frame 3: the mean of the 2 futures, {by_hand:.2f} A at t = 12 ps (standing still" in lines
    mean, still = (results[kind][:, -1].mean() for kind in ("rmsd_mean_superposed", "rmsd_static_superposed"))
    assert f"the mean of 3 starts: {mean:.2f} A superposed (the start frames standing still: {still:.2f} A)" in lines
    assert summary["accuracy"]["rmsd_superposed_A"] == pytest.approx(mean)
    page = text(write_page(several, tmp_path / "page.html", said=lines.splitlines()).read_text())
    assert "8 ps after the start, in the mean of 3 starts, the mean of the 2 futures is" in page
    assert f"{mean:.2f} Å RMSD, superposed, and {still:.2f} Å" in page and "One start says little" not in page


def test_one_future_is_not_judged_as_a_guess(single, tmp_path):
    lines, error = readable(summary_of(single)), single.results.rmsd_superposed[0, -1]
    assert single.results.rmsd_mean is None
    assert f"RMSD of one future to the trajectory at t = 9 ps: {error:.2f} A superposed" in lines
    page = text(write_page(single, tmp_path / "page.html").read_text())
    for said in (lines, page):
        assert "no guess at the future" in said and "--samples" in said
        assert "the start frame is" not in said and "standing still:" not in said
    mean = run(model="elastic network", mean=True).run(frames=[40])
    assert "RMSD of the mean of all futures to the trajectory at t = 49 ps: " in readable(summary_of(mean))
    assert "the mean of all futures is nearer to what came than the start frame" in worth(mean)
    many = readable(summary_of(run(model="elastic network").run(frames=[20, 40])))
    assert many.count(": one future, ") == 2 and "no guess at the future" in many and "(standing still" not in many


def test_the_page_says_which_start_it_shows(several, tmp_path):
    assert shown_start(several) == 2 and look_at(several).frame == 50 and look_at(several, 0).frame == 0
    page = text(write_page(several, tmp_path / "page.html").read_text())
    assert "There are 3 starts, frames 0 to 50." in page and "The pictures show the one from frame 50" in page
    rows = [f"{k + 1} " for k in range(8)]
    assert "Error at each step" in page and all(row in page for row in rows)
    assert "24 frames" not in page and "48 frames" in page  # the checks are of all starts and futures
    # The last frame has nothing after it, the first one nothing before it.
    edges = run(mean=True, model=None).run(frames=[0, 60, 75, 79])
    assert [shown_start(edges), look_at(edges).frame] == [1, 60]
    accuracy = Accuracy.of(edges)
    assert (accuracy.n_starts, accuracy.n_known, accuracy.after) == (4, 2, 8.0)  # 75 has half of the frames
    assert accuracy.error == pytest.approx(edges.results.rmsd_superposed[:2, -1].mean())


def test_what_a_start_without_a_past_cannot_show_is_left_out(single, several):
    for surrogate in (single, several):
        captions = {panel.name: panel.caption for panel in panels(look_at(surrogate, 0))}
        assert not [caption for caption in captions.values() if "Grey" in caption or "run" in caption]
        for axes in surrogate.plot(0).axes:
            labels = [label.get_text() for label in axes.get_legend().get_texts()]
            assert labels and not [label for label in labels if "run" in label or "RMSF" in label]
            assert len(axes.collections) <= 1  # torsions: of the forecast alone, no row of zeros
    # A short run has a fluctuation, but nothing as long as the forecast.
    short = {panel.name: panel.caption for panel in panels(look_at(several, 1))}
    assert "last 4 frames of the run" in short["residues"] and "dashed" not in short["residues"]
    heavy = EGNOSurrogate(
        mda.Universe(*map(str, sample("chignolin"))), make_model(n_times=4, select="heavy"), horizon=4
    )
    (torsions,) = [p.caption for p in panels(look_at(heavy.run(frames=[0]))) if p.name == "torsions"]
    assert "Grey: the start" in torsions


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
