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
LARGE = 1 << 15  # entries; from here on torch works in several threads
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of as many bytes


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
        self.width, self.rows, self.height = width, rows, int(rows[-1]) + 1

    def parts(self) -> dict[str, Any]:
        return {"width": self.width, "rows": self.rows.cpu()}

    def positions(self) -> Tensor:
        return (self.rows.cpu()[:, None] * self.width + torch.arange(self.width)).flatten()

    def read(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """A copy (n,) from a tensor of any shape."""
        matrix = self._in_rows(tensor)
        out = tensor.new_empty(len(self.rows) * self.width) if out is None else out
        torch.index_select(matrix, 0, self.rows, out=out.view(len(self.rows), self.width))
        return out

    def write(self, tensor: Tensor, values: Tensor) -> None:
        self._in_rows(tensor).index_copy_(0, self.rows, values.view(len(self.rows), self.width))

    def _in_rows(self, tensor: Tensor) -> Tensor:
        self.rows = self.rows.to(tensor.device)
        return tensor.as_strided((self.height, self.width), (self.width, 1), tensor.storage_offset())


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
        self.span = int(index[-1]) + 1

    def parts(self) -> dict[str, Any]:
        return {"index": self.positions()}

    def positions(self) -> Tensor:
        lanes = self.lanes.cpu() + torch.arange(len(self.lanes))[:, None]
        return torch.cat([lanes.flatten(), self.rest.cpu()])

    def read(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """A copy (n,) from a tensor of any shape."""
        even = self.lanes.numel()
        out = tensor.new_empty(even + len(self.rest)) if out is None else out
        torch.gather(self._in_lanes(tensor), 1, self.lanes, out=_words(out)[:even].view(self.lanes.shape))
        if len(self.rest):
            out[even:] = self._flat(tensor)[self.rest]
        return out

    def write(self, tensor: Tensor, values: Tensor) -> None:
        even = self.lanes.numel()
        if tensor.numel() >= LARGE and tensor.is_contiguous() and tensor.element_size() in WORDS:
            # A sweep that writes every entry as it is. The cores that have just read the tensor for a product share its
            # lines, and a scattered write waits for each line in turn, a sweep does not: of a step on a million entries
            # this took 3.5 ms of 4.8, and takes 0.4.
            tensor.view(WORDS[tensor.element_size()]).bitwise_or_(0)
        self._in_lanes(tensor).scatter_(1, self.lanes, _words(values)[:even].view(self.lanes.shape))
        if len(self.rest):
            self._flat(tensor)[self.rest] = values[even:]

    def _flat(self, tensor: Tensor) -> Tensor:
        return tensor.as_strided((self.span,), (1,), tensor.storage_offset())

    def _in_lanes(self, tensor: Tensor) -> Tensor:
        self.lanes, self.rest = self.lanes.to(tensor.device), self.rest.to(tensor.device)
        lanes = len(self.lanes)
        return _words(tensor).as_strided((lanes, self.span - lanes + 1), (1, 1), tensor.storage_offset())


def _words(tensor: Tensor) -> Tensor:
    """16 bits as integers: torch scatters bfloat16 by way of float32 copies, and then rows may not overlap."""
    return tensor.view(torch.int16) if tensor.element_size() == 2 else tensor


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
