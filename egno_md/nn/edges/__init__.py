"""The edge block that EGNO and EGHNO share: one interface, several backends."""

from .block import edge_block

__all__ = ["edge_block"]
