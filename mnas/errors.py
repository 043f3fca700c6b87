"""How what goes wrong reaches the user: a Failure ends a command with one line and an exit
status."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path


class Failure(Exception):
    """Ends a command with one line on stderr. status: 2 for a user's mistake, 1 for a run that
    failed."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


@contextlib.contextmanager
def user_input(kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Where the library judges what the user gave: its ValueError is the user's mistake, not ours.
    kind: FolderError alone, where much else is done beside judging files."""
    try:
        yield
    except kind as error:
        raise Failure(str(error), status=2) from error


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Where a run writes: a full disk or a lost permission stops it, and what was written before
    stays."""
    try:
        yield
    except OSError as error:
        raise Failure(
            f"cannot write to {directory} ({error.strerror}); what it held before is intact"
        ) from error


def make(directory: Path) -> None:
    """A directory for results, which a user has named."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(
            f"cannot make {directory} ({error.strerror}); give --out a writable directory", 2
        ) from error


def check_extra(extra: str, *packages: str) -> None:
    """Before hours of work, not after. Raises Failure that names what to install."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Failure(f"{package} is not installed; pip install 'mnas[{extra}]'", status=2)
