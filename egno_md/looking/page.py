"""What every page is made of: templates that are files, tables, and figures inside the page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from .. import files
from ..errors import OutputError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"

#: Nothing is loaded from anywhere, whatever a script in the page would like.
ALONE = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def filled(template: str, **values: str) -> str:
    """A template with its places filled in; values are HTML already."""
    return Template((TEMPLATES / template).read_text()).substitute(values)


def page(title: str, *parts: str) -> str:
    """A page of parts, which are HTML already."""
    style = (TEMPLATES / "page.css").read_text()
    return filled("page.html", title=html.escape(title), style=style, alone=ALONE, content="\n".join(parts))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """A table whose first column is names; what is wider than the page is scrolled inside its own frame."""

    def cells(kind: str, values: Sequence[Any]) -> str:
        return "".join(f"<{kind}>{html.escape(str(value))}</{kind}>" for value in values)

    body = "".join(f"<tr><th>{html.escape(str(row[0]))}</th>{cells('td', row[1:])}</tr>" for row in rows)
    said = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    head = f"<thead><tr>{cells('th', heads)}</tr></thead>"
    return f'<div class="wide"><table>{said}{head}<tbody>{body}</tbody></table></div>'


def new_figure(width: float = 7, height: float = 4) -> Figure:
    """A figure of no screen.

    Raises
    ------
    UsageError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError('plots need matplotlib: pip install "egno_md[plot]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def png(draw: Callable[[Any], None]) -> bytes:
    figure = new_figure()
    draw(figure.subplots())
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120)
    return target.getvalue()


def figure(name: str, picture: bytes, caption: str) -> str:
    return filled("figure.html", name=name, png=base64.b64encode(picture).decode(), caption=html.escape(caption))


def figures(*drawn: str) -> str:
    """Figures beside each other where there is room."""
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def write_file(file: Path, text: str, *, force: bool) -> Path:
    """Write a page, whole or not at all.

    Raises
    ------
    OutputError
        It exists and `force` is not set, or it cannot be written.
    """
    require_page(file, force)
    try:
        files.write_whole(file, text.encode())
    except OSError as error:
        raise OutputError(f"the page {file} could not be written ({error}); choose a folder with room") from error
    return file


def require_page(file: Path, force: bool) -> None:
    """Refuse a page that cannot be made or may not be written; to be asked before the work.

    Raises
    ------
    UsageError
        It is no HTML file by its name, or matplotlib is not installed.
    OutputError
        Its folder does not exist, or it does and `force` is not set.
    """
    if file.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"the page of a forecast is an HTML file, found {file}; name it {file.with_suffix('.html')}")
    if not file.parent.is_dir():
        raise OutputError(f"{file} cannot be written: the folder {file.parent} does not exist; create it first")
    if file.exists() and not force:
        raise OutputError(f"{file} exists; choose another name, or replace it with --force (force=True)")
    new_figure()
