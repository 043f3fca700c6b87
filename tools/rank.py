"""Rank networks of a supernet beside published accuracies. The same as `mnas rank`; --help shows
the options."""

from mnas.commands import main

main("rank")
