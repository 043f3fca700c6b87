"""Search a trained supernet. The same as `mnas search`; --help shows the options."""

from mnas.commands import main

main("search")
