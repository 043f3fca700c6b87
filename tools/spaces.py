"""Memory of the named spaces. The same as `mnas spaces`; --help shows the options."""

from mnas.commands import main

main("spaces")
