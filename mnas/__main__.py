"""`python -m mnas`: the same as the command `mnas`."""

from mnas.commands import main

main()
