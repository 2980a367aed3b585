"""The edge block that EGNO and EGHNO share: one interface (:mod:`.backend`), a file for each who computes it."""

from .block import edge_block

__all__ = ["edge_block"]
