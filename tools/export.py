"""Export one network of a run as plain PyTorch. The same as `mnas export`; --help shows the
options."""

from mnas.commands import main

main("export")
