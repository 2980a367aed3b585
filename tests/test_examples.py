"""The notebook and the scripts in examples/, run as a user would, each in a folder of its own."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest

from egno_md import EGNOSurrogate, load_model, sample

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
#: What each script leaves in its folder.
WRITTEN = {
    "extend_run.py": {"forecast.dcd", "forecast.pdb", "forecast.png"},
    "openmm_surrogate.py": {"beads.dcd", "beads.pdb", "peptide.dcd", "peptide.pdb", "peptide_jumps.csv"},
}


@pytest.fixture
def one_thread(monkeypatch):
    """Two threads on graphs this small are slower than one."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_script(script, tmp_path, one_thread):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == WRITTEN[script]
    assert all((tmp_path / name).stat().st_size for name in WRITTEN[script])


def executed(name, tmp_path_factory):
    """A notebook after a run in an empty folder, that folder, and that of its temporary files."""
    nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbformat")
    nbclient = pytest.importorskip("nbclient", reason="the notebook needs nbclient")
    if importlib.util.find_spec("ipykernel") is None:
        pytest.skip("the notebook needs ipykernel")
    folder, temporary = tmp_path_factory.mktemp("notebook"), tmp_path_factory.mktemp("temporary")
    content = nbformat.read(EXAMPLES / name, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in content.cells), "commit it unrun"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TMPDIR", str(temporary))
        where = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(content, timeout=600, kernel_name="python3", resources=where).execute()
    return content, folder, temporary


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    return executed("train_model.ipynb", tmp_path_factory)


def test_the_short_notebook(tmp_path_factory):
    content, folder, temporary = executed("extend_run.ipynb", tmp_path_factory)
    cells = [cell for cell in content.cells if cell.cell_type == "code"]
    assert len(cells) == 5 and "checks: passed" in output(cells[1])
    (figure,) = [part["data"]["image/png"] for part in cells[2].outputs if "image/png" in part.get("data", {})]
    assert len(figure) > 50_000
    # What was taken is the best by its energy score, and errs less than the standing frame.
    lines = output(cells[3]).splitlines()
    found = [re.match(r"([* ]) (\w.*?) +(\d.*)", line) for line in lines]
    rows = {row[2]: row[3].split() for row in found if row}
    (taken,) = (row[2] for row in found if row and row[1] == "*")
    assert float(rows[taken][0]) == min(float(row[0]) for row in rows.values()) < 0.8 * float(rows["static"][0])
    assert taken in output(cells[1]) and "against" in lines[-1]
    (work,) = temporary.glob("egno_md_*")
    assert list(folder.iterdir()) == []
    assert {path.suffix for path in work.iterdir()} == {".dcd", ".pdb", ".html"}


def output(cell):
    return "".join(part.get("text", "") for part in cell.get("outputs", ()) if part["output_type"] == "stream")


def test_notebook_tables(notebook):
    content, *_ = notebook
    text = "\n".join(output(cell) for cell in content.cells if cell.cell_type == "code")
    # The advice: nothing to forecast with a frame per ps, something with one per 0.1 ps.
    advice = [line for line in text.splitlines() if line.startswith("suggested")]
    assert "nothing" in advice[0] and "stride 0.1 ps" in advice[1]
    lines = text.splitlines()
    heads = [k for k, line in enumerate(lines) if line.startswith("t/ps")]
    assert len(heads) == 2 and lines[heads[0]].split()[1] == "0.1"  # of the shape, and of the frames as they stand
    for at in heads:
        rows = {line.partition("  ")[0]: line.partition("  ")[2].split() for line in lines[at + 1 : at + 20]}
        assert {"model", "static", "linear", "mean structure", "AR(1)", "skill"} <= set(rows)
    assert "95 % from" in text and "verdict" in text
    # It learnt something: at the first step it is better than the start frame.
    assert 0 < float(rows["model"][0].rstrip("*")) < float(rows["static"][0].rstrip("*"))
    assert "RMSF, ratio to the run" in text and "torsions (virtual), divergence" in text
    assert "24 starts, 8 frames each" in text
    # What is drawn moves as much as the molecule does; a chain of means has a tenth of it.
    within = next(line.split() for line in text.splitlines() if line.startswith("RMSF within a chain"))
    assert 0.8 < float(within[-3]) / float(within[-2]) < 1.25


def test_notebook_figures_and_view(notebook):
    content, *_ = notebook
    parts = [part.get("data", {}) for cell in content.cells for part in cell.get("outputs", ())]
    figures = [data["image/png"] for data in parts if "image/png" in data]
    assert len(figures) == 2 and all(len(figure) > 10_000 for figure in figures)
    if importlib.util.find_spec("nglview") is None:
        assert any("nglview is not installed" in output(cell) for cell in content.cells if cell.cell_type == "code")


def test_notebook_writes_nothing_beside_its_folder(notebook):
    _, folder, temporary = notebook
    assert list(folder.iterdir()) == []
    (work,) = temporary.glob("egno_md_*")
    forecast = mda.Universe(str(work / "extended.pdb"), str(work / "extended.dcd"))
    assert (forecast.trajectory.n_frames, forecast.atoms.n_atoms) == (8, 10)
    assert (work / "chignolin-ca.safetensors").stat().st_size > 10_000


PAGES = sorted([*(EXAMPLES.parent / "docs").glob("*.md"), EXAMPLES.parent / "README.md"])
#: Names that are no modules: groups of entry points.
GROUPS = {"egno_md.operators", "egno_md.forecasters", "egno_md.formats", "egno_md.datasets"}


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    """Modules, classes and functions by their full names, and what the code of a page imports."""
    wanted = set(re.findall(r"\begno_md(?:\.[A-Za-z_]\w*)+", page.read_text())) - GROUPS
    for module, names in re.findall(r"^from (egno_md[\w.]*) import ([\w, ]+)$", "\n".join(blocks(page)), re.MULTILINE):
        wanted |= {f"{module}.{name.strip()}" for name in names.split(",")}
    missing = []
    for name in sorted(wanted):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


def test_the_quickstart_is_better_than_standing_still(capsys, one_thread):
    """Its own question, answered on the bundled run: a single drawn future would be further off at every step."""
    page = blocks(EXAMPLES.parent / "docs" / "quickstart.md")
    (code,) = (block for block in page if "static_rmsd" in block)
    u = mda.Universe(*map(str, sample()))
    exec(compile(code, "quickstart.md", "exec"), {"u": u, "EGNOSurrogate": EGNOSurrogate})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 8 and all(float(line[3]) < float(line[7]) for line in lines)


def test_the_page_of_openmm_forecasts_what_it_says(tmp_path, monkeypatch, one_thread):
    """The frames of the simulation are those of the call that the page names beside them."""
    pytest.importorskip("openmm")
    page = EXAMPLES.parent / "docs" / "openmm.md"
    (call,) = re.findall(r"`step\(8\)` and .* the frames of `(EGNOSurrogate\(.*?\))\.run\(\)`", page.read_text())
    monkeypatch.chdir(tmp_path)
    names = {"EGNOSurrogate": EGNOSurrogate}
    exec(compile(blocks(page)[0], "openmm.md", "exec"), names)
    found = 10 * names["simulation"].context.getState(positions=True).getPositions(asNumpy=True)._value
    np.testing.assert_allclose(found, eval(call, names).run().results.positions[0, -1], atol=1e-4)
    assert len(mda.Universe(names["simulation"]).atoms) == 76


def test_the_page_of_models_trains_one(tmp_path, monkeypatch, one_thread):
    """Its code, on the bundled run and for one epoch."""
    (code,) = (block for block in blocks(EXAMPLES.parent / "docs" / "models.md") if "fit(" in block)
    topology, trajectory = map(str, sample())
    for before, after in (
        ('"protein.pdb", "run.xtc"', f"{topology!r}, {trajectory!r}"),
        ("max_epochs=20", "max_epochs=1"),
    ):
        assert code.count(before) == 1
        code = code.replace(before, after)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "models.md", "exec"), {})
    assert load_model("mine.safetensors").window.n_times == 8
