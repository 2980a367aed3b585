"""The report of a real evaluation: one page that needs nothing else, opened in a headless browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess

import pytest
import torch

from egno_md import sample
from egno_md.errors import OutputError
from egno_md.evaluation.evaluate import evaluate
from egno_md.looking.evaluation import write_report

torch.set_num_threads(1)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PLOTS = ["gain", "skill", "rmsf", "radius", "bonds", "torsions"]
#: Before everything else on the page: what goes wrong while it loads. `error` events of elements do not bubble.
WATCH = """<script>const wrong = [];
addEventListener("error", e => wrong.push(e.message || e.target.src || e.target.href || "?"), true);
addEventListener("load", () => {
  document.body.dataset.seen = JSON.stringify({
    wrong: wrong,
    images: [...document.images].map(i => [i.alt, i.naturalWidth, i.naturalHeight, i.clientWidth]),
    loaded: performance.getEntriesByType("resource").map(e => e.name).filter(name => !name.startsWith("data:")),
    cut: [...document.querySelectorAll("body *")].filter(e => e.scrollWidth > e.clientWidth && e.clientWidth
      && getComputedStyle(e).overflowX == "visible").map(e => e.tagName + "#" + e.id),
    viewer: document.body.dataset.viewer,
    wide: document.documentElement.scrollWidth > innerWidth,
    text: document.body.innerText,
  });
});</script>"""


def opened(page, profile, *flags):
    """What a browser 1280 points wide sees of a page, with the errors on its console."""
    watched = page.with_name("watched.html")
    watched.write_text(page.read_text().replace("<head>", f"<head>{WATCH}", 1))
    command = [
        CHROMIUM, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}", "--enable-logging=stderr",
        "--v=0", "--window-size=1280,1000", "--virtual-time-budget=20000", *flags, "--dump-dom", watched.as_uri(),
    ]  # fmt: skip
    if os.geteuid() == 0:  # Chromium refuses to run as root inside its sandbox
        command.insert(1, "--no-sandbox")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr
    seen = json.loads(html.unescape(found[1]))
    seen["wrong"] += [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return seen


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def result():
    return evaluate("ca-1ps", *sample(), max_windows=12, chains=1, chain_length=10)


@pytest.fixture(scope="module")
def files(result, tmp_path_factory):
    return write_report(result, tmp_path_factory.mktemp("report"))


def test_report_loads_nothing_from_elsewhere(result, files):
    assert result.quality is not None and result.quality.chains.n_frames == 10
    assert [f.name for f in files] == ["report.html", *(f"{name}.png" for name in PLOTS)]
    page = files[0].read_text()
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert len(sources) == 7 and all(source.startswith("data:") for source in sources)
    assert "http:" not in page and "https:" not in page and "<script" not in page and "AR(1)" in page
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files[1:])
    with pytest.raises(OutputError, match="report.html exists"):
        write_report(result, files[0].parent)
    assert write_report(result, files[0].parent, force=True) == files


@needs_chromium
def test_report_in_a_browser(result, files, tmp_path):
    seen = opened(files[0], tmp_path / "profile")
    assert seen["wrong"] == [] and seen["loaded"] == []
    assert [name for name, *_ in seen["images"]] == PLOTS
    assert all(min(size) > 300 for _, *size in seen["images"])  # decoded, and wide on the page
    assert seen["cut"] == [] and not seen["wide"]  # every table is seen as a whole
    assert "Evaluation of ca-1ps" in seen["text"]
    # The verdict comes first, and the tables hold every number that the table of the command line holds.
    assert seen["text"].index(result.verdict[1:]) < seen["text"].index("Errors")
    for errors in result.judged.errors.values():
        assert all(f"{value:.4f}" in seen["text"] for value in errors)
    for name, *values in result.quality.rows():
        assert name in seen["text"] and all(f"{v:.3f}" in seen["text"] for v in values if v == v)
    for line in (*result.quality.findings, *result.notes):
        assert line in seen["text"]


@needs_chromium
def test_browser_sees_what_is_broken(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<!doctype html><html><head></head><body><img src="none.png"><img src="data:image/png;base64,AA">'
        '<script>console.error("on the console")</script></body></html>'
    )
    seen = opened(page, tmp_path / "profile")
    assert any("none.png" in problem for problem in seen["wrong"])
    assert any("on the console" in problem for problem in seen["wrong"])
    assert [width for _, width, *_ in seen["images"]] == [0, 0]
