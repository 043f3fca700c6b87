"""Train a supernet, or networks of a space from scratch. The same as `mnas train`; --help shows the
options."""

from mnas.commands import main

main("train")
