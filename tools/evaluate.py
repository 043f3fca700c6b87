"""Score networks of a run. The same as `mnas evaluate`; --help shows the options."""

from mnas.commands import main

main("evaluate")
