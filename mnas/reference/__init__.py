"""Published accuracies of networks of named spaces: a truth that estimates can be held against,
and that nobody here has made."""

from __future__ import annotations

from mnas.reference.tables import TABLES, Table, get

__all__ = ["TABLES", "Table", "get"]
