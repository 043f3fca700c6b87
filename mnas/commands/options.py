"""What the commands share: the kinds of their options, and how they show spaces and results."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

if TYPE_CHECKING:
    from cyclopts import Token


def _integer(_: Any, tokens: Sequence[Token]) -> int:
    """Whole numbers alone: cyclopts by itself rounds 1.5 to 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f'"{tokens[0].value}" is no whole number') from None


def _path(_: Any, tokens: Sequence[Token]) -> Path:
    """~ is the home directory wherever it stands: no shell expands it behind --out=."""
    try:
        path = Path(tokens[0].value).expanduser()
    except RuntimeError as error:
        raise ValueError(f'"{tokens[0].value}": {error}') from None
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > LONGEST_NAME:
        raise ValueError(f"a name in the path has {longest} bytes, expected {LONGEST_NAME} at most")
    return path


LONGEST_NAME = 255  # bytes, of a file on Linux, macOS and Windows

Count = Annotated[int, Parameter(converter=_integer, validator=Number(gt=0, lte=2**31))]
Side = Annotated[int, Parameter(converter=_integer, validator=Number(gt=0, lte=4096))]
Seed = Annotated[int, Parameter(converter=_integer, validator=Number(gte=0, lt=2**63))]
UserPath = Annotated[Path, Parameter(converter=_path)]
Positive = Annotated[float, Parameter(validator=Number(gt=0, lte=1e6))]
Share = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]
Weight = Annotated[float, Parameter(validator=Number(gte=0, lte=1e6))]
Device = Literal["auto", "cpu", "cuda"]
Backend = Literal["local", "dask"]
COLUMNS = ("arch", "val top-1 %", "test top-1 %", "test loss", "params", "MACs")


def list_spaces() -> str:
    """The named spaces, as `--space help` shows them: what their functions say, for declaring the
    large ones takes seconds."""
    from mnas import spaces

    lines = []
    for name, make in spaces.SPACES.items():
        first, *_ = inspect.getdoc(make).split("\n\n")
        lines.append(f"{name:24} {' '.join(first.split())}")
    return "\n".join(lines)


def table(paths: list[dict[str, Any]]) -> str:
    """The `paths` of a summary as people read them."""
    from tabulate import tabulate

    rows = [
        (
            p["arch"],
            100 * p["val_top1"],
            100 * p["test_top1"],
            p["test_loss"],
            p["params"],
            p["macs"],
        )
        for p in paths
    ]
    return tabulate(rows, COLUMNS, floatfmt=("", ".2f", ".2f", ".4f"), intfmt=",")
