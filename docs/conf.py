"""Sphinx settings; `sphinx-build -W` must pass without a network."""

from __future__ import annotations

from egno_md import __version__

project = "egno_md"
author = "The egno_md developers"
copyright = "2026, the egno_md developers; MIT licence"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"egno_md {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# Fields of a class are described in its docstring; as :ivar: they are not declared a second time.
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
