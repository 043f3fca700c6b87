"""Time of masked against modular implementations. The same as `mnas benchmark`; --help shows the
options."""

from mnas.commands import main

main("benchmark")
