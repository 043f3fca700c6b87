"""Tables and figures of studies, from their rows. The same as `mnas report`; --help shows the
options."""

from mnas.commands import main

main("report")
