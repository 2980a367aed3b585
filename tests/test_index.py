"""The first page of the documentation: its lines make its picture."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.image import imread

DOCS = Path(__file__).parents[1] / "docs"


def test_the_lines_of_the_first_page_make_its_picture(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 6
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert list(tmp_path.glob("extended*.dcd")) and list(tmp_path.glob("extended*.pdb"))
    made, shown = imread("forecast.png"), imread(DOCS / "forecast.png")
    assert made.shape == shown.shape and made.std() > 0.05
