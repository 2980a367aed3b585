"""Pages and pictures of forecasts and evaluations: read, never judged here; each page is one file and loads nothing."""

from .forecast import Look, look_at, plot, write_page

__all__ = ["Look", "look_at", "plot", "write_page"]
