"""Drift and cost of ways to freeze chosen entries. The same as `mnas freezing`; --help shows the
options."""

from mnas.commands import main

main("freezing")
