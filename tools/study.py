"""Supernets against the same networks from scratch. The same as `mnas study`; --help shows the
options."""

from mnas.commands import main

main("study")
