"""Where some entries of a tensor are in memory, and the cheapest way to get at them.

Run and Box are read as views, so stepping them costs what stepping a separate tensor costs. Blocks and Scattered are
copied out and back. All give their entries in the order of memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

WIDE = 8  # entries; from here on whole blocks are cheaper than single entries


class Run:
    """Neighbours."""

    is_view = True

    def __init__(self, start: int, length: int) -> None:
        self.start, self.length = start, length

    def parts(self) -> dict[str, Any]:
        return {"start": self.start, "length": self.length}

    def positions(self) -> Tensor:
        return torch.arange(self.start, self.start + self.length)

    def read(self, tensor: Tensor) -> Tensor:
        """A view (length,) of a tensor of any shape."""
        return tensor.as_strided((self.length,), (1,), tensor.storage_offset() + self.start)


class Box:
    """Equal blocks at equal distances, as a prefix of the input channels is. A view with gaps: not for fused kernels,
    which read memory in one go and are silently wrong on it."""

    is_view = True

    def __init__(self, start: int, width: int, height: int, distance: int) -> None:
        self.start, self.width, self.height, self.distance = start, width, height, distance

    def parts(self) -> dict[str, Any]:
        return {"start": self.start, "width": self.width, "height": self.height, "distance": self.distance}

    def positions(self) -> Tensor:
        firsts = self.start + torch.arange(self.height) * self.distance
        return (firsts[:, None] + torch.arange(self.width)).flatten()

    def read(self, tensor: Tensor) -> Tensor:
        """A view (height, width) of a tensor of any shape."""
        offset = tensor.storage_offset() + self.start
        return tensor.as_strided((self.height, self.width), (self.distance, 1), offset)


class Blocks:
    """Equal blocks at multiples of their width, as some filters of a convolution are: copied block by block."""

    is_view = False

    def __init__(self, width: int, rows: Tensor) -> None:
        self.width, self.rows = width, rows

    def parts(self) -> dict[str, Any]:
        return {"width": self.width, "rows": self.rows.cpu()}

    def positions(self) -> Tensor:
        return (self.rows.cpu()[:, None] * self.width + torch.arange(self.width)).flatten()

    def read(self, flat: Tensor, out: Tensor | None = None) -> Tensor:
        """The entries (n,) of a flat tensor, copied."""
        out = flat.new_empty(len(self.rows) * self.width) if out is None else out
        torch.index_select(self._in_rows(flat), 0, self.rows, out=out.view(len(self.rows), self.width))
        return out

    def write(self, flat: Tensor, values: Tensor) -> None:
        self._in_rows(flat).index_copy_(0, self.rows, values.view(len(self.rows), self.width))

    def _in_rows(self, flat: Tensor) -> Tensor:
        self.rows = self.rows.to(flat.device)
        height = flat.numel() // self.width
        return flat.narrow(0, 0, height * self.width).view(height, self.width)


class Scattered:
    """Any entries, by index.

    torch indexes a one-dimensional tensor in one thread, but the rows of a matrix in several. So the sorted index is
    laid out in a row a thread, and the tensor is seen as as many rows that overlap: row r begins at entry r.
    """

    is_view = False

    def __init__(self, index: Tensor) -> None:
        lanes = min(torch.get_num_threads(), len(index))
        even = len(index) - len(index) % lanes
        self.lanes = index[:even].view(lanes, -1) - torch.arange(lanes)[:, None]
        self.rest = index[even:].clone()

    def parts(self) -> dict[str, Any]:
        return {"index": self.positions()}

    def positions(self) -> Tensor:
        lanes = self.lanes.cpu() + torch.arange(len(self.lanes))[:, None]
        return torch.cat([lanes.flatten(), self.rest.cpu()])

    def read(self, flat: Tensor, out: Tensor | None = None) -> Tensor:
        """The entries (n,) of a flat tensor, copied."""
        even = self.lanes.numel()
        out = flat.new_empty(even + len(self.rest)) if out is None else out
        torch.gather(self._in_lanes(flat), 1, self.lanes, out=out[:even].view(self.lanes.shape))
        if len(self.rest):
            out[even:] = flat[self.rest]
        return out

    def write(self, flat: Tensor, values: Tensor) -> None:
        even = self.lanes.numel()
        self._in_lanes(flat).scatter_(1, self.lanes, values[:even].view(self.lanes.shape))
        if len(self.rest):
            flat[self.rest] = values[even:]

    def _in_lanes(self, flat: Tensor) -> Tensor:
        self.lanes, self.rest = self.lanes.to(flat.device), self.rest.to(flat.device)
        lanes = len(self.lanes)
        return flat.as_strided((lanes, flat.numel() - lanes + 1), (1, 1), flat.storage_offset())


Place = Run | Box | Blocks | Scattered


def place(index: Tensor, contiguous: bool) -> Place:
    """The cheapest place for the entries of a sorted index (n,), n > 0. contiguous: no views with gaps."""
    start, end = int(index[0]), int(index[-1]) + 1
    if end - start == len(index):
        return Run(start, len(index))
    before = (index[1:] != index[:-1] + 1).nonzero().squeeze(1)  # the last entry of each run but the last
    firsts = torch.cat([index[:1], index[before + 1]])
    ends = torch.cat([index[before] + 1, index[-1:] + 1])
    width, distance = int(ends[0] - firsts[0]), int(firsts[1] - firsts[0])
    regular = bool((ends - firsts == width).all() and (firsts.diff() == distance).all())
    if regular and width >= WIDE and not contiguous:
        return Box(start, width, len(firsts), distance)
    # The widest blocks that cover the entries: every border between in and out is a multiple of their width.
    width = int(np.gcd.reduce(torch.cat([firsts, ends]).numpy()))
    return Blocks(width, index[::width] // width) if width >= WIDE else Scattered(index)


def place_of(parts: dict[str, Any]) -> Place:
    """The place that `parts` describes."""
    if "index" in parts:
        return Scattered(parts["index"])
    if "rows" in parts:
        return Blocks(parts["width"], parts["rows"])
    if "distance" in parts:
        return Box(parts["start"], parts["width"], parts["height"], parts["distance"])
    return Run(parts["start"], parts["length"])
