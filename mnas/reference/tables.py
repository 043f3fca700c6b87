"""Tables of published accuracies, as packed files beside this one.

A file has the columns arch (a digit for each decision), acc1, acc2, acc3 (test top-1 in percent of
three trainings from scratch), params and macs, as published."""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Path = tuple[int, ...]


class Source(NamedTuple):
    """first: the digit of index 0. alike: the path that stands for all that are the same network.
    sha256: of the unpacked file."""

    citation: str
    licence: str
    first: int
    alike: Callable[[Path], Path]
    sha256: str


@dataclass(frozen=True, eq=False)
class Table:
    """Published accuracies of networks of `mnas.spaces.get(name)`.

    paths (n, decisions): indices of candidates, as in paths of the space. accuracies (n, 3): test
    top-1 in percent, of three trainings from scratch. params, macs (n,): as published. network
    (n,): which of the distinct networks a row is, counted from 0 in the order of rows."""

    name: str
    citation: str
    licence: str
    paths: NDArray[np.int64]
    accuracies: NDArray[np.float64]
    params: NDArray[np.int64]
    macs: NDArray[np.int64]
    network: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def rows(self) -> dict[Path, int]:
        """The row of each path."""
        return {tuple(path): row for row, path in enumerate(self.paths.tolist())}

    @cached_property
    def distinct(self) -> Table:
        """A row for each distinct network: the first of those that are it."""
        _, rows = np.unique(self.network, return_index=True)
        columns = ("paths", "accuracies", "params", "macs", "network")
        return Table(
            self.name,
            self.citation,
            self.licence,
            *(getattr(self, column)[rows] for column in columns),
        )

    @cached_property
    def realisations(self) -> NDArray[np.int64]:
        """How many paths each distinct network has (distinct,)."""
        return np.bincount(self.network)

    def averaged(self, values: ArrayLike) -> NDArray[np.float64]:
        """The mean over the paths of each distinct network: values (n,) -> (distinct,). Paths
        without a value are NaN, and left out; so is a network without any."""
        values = np.asarray(values, float)
        if values.shape != (len(self),):
            raise ValueError(
                f"values have the shape {values.shape}; expected ({len(self)},), one for each row"
            )
        known = ~np.isnan(values)
        number = np.bincount(self.network[known], minlength=len(self.realisations))
        total = np.bincount(self.network[known], values[known], len(self.realisations))
        return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)


def get(name: str) -> Table:
    """The published table of a named space. Raises ValueError that lists the names, or says that
    the file is damaged."""
    if not isinstance(name, str) or name not in TABLES:
        raise ValueError(
            f"no published table of space {name!r}; expected one of {', '.join(TABLES)}"
        )
    source = TABLES[name]
    file = resources.files("mnas.reference") / "published" / f"{name}.csv.xz"
    try:
        content = lzma.decompress(file.read_bytes())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"cannot read {file} ({error}); install mnas again") from error
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise ValueError(f"{file} is damaged; install mnas again")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    paths = [tuple(int(digit) - source.first for digit in row["arch"]) for row in rows]
    number: dict[Path, int] = {}
    return Table(
        name,
        source.citation,
        source.licence,
        np.array(paths),
        np.array([[float(row[f"acc{run}"]) for run in (1, 2, 3)] for row in rows]),
        np.array([int(row["params"]) for row in rows]),
        np.array([int(row["macs"]) for row in rows]),
        np.array([number.setdefault(source.alike(path), len(number)) for path in paths]),
    )


STAGES = ((0, 2), (2, 5), (5, 8))  # the layers of each stage of NAS-Bench-Macro


def _blocks_in_order(path: Path) -> Path:
    """Of NAS-Bench-Macro: behind the first layer of a stage, which changes the shape, an identity
    does nothing, so that only the order of the blocks counts. Identities go to the end."""
    moved: list[int] = []
    for start, end in STAGES:
        first, *others = path[start:end]
        blocks = [index for index in others if index]
        moved += [first, *blocks, *[0] * (len(others) - len(blocks))]
    return tuple(moved)


_CHANNELS = (
    "Su et al., TPAMI 2022, Searching for Network Width with Bilaterally Coupled Network, arXiv "
    "2203.13714; repository xiusu/Channel-Bench-Macro; 1,000 of its 16,384 networks, drawn at "
    "random; 60 epochs"
)
_NOT_STATED = "none stated by its repository; figures alone are repeated here"

TABLES = {
    "nb_macro": Source(
        "Su et al., CVPR 2021, Prioritized Architecture Sampling with Monto-Carlo Tree Search, "
        "arXiv 2103.11922; repository xiusu/NAS-Bench-Macro; 50 epochs, the best of them on the "
        "test set",
        "Apache-2.0",
        0,
        _blocks_in_order,
        "98bf31bee51b945646f63abc6170bc6d58e3da030fdfd32ae44973a959497bbb",
    ),
    "channel_macro_mobilenet": Source(
        _CHANNELS,
        _NOT_STATED,
        1,
        tuple,
        "e58a749d2a29b76fb0debff5ebc7c1e602a9022698246f897b02fe2c12efd387",
    ),
    "channel_macro_resnet": Source(
        _CHANNELS,
        _NOT_STATED,
        1,
        tuple,
        "047b7541789f781aa3125050a905bdb94b77325cae19578f1c7f5538cfff5a2e",
    ),
}
