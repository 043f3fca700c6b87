"""The canvas that candidates share a tensor on, and the atoms that it is divided into: the entries
that lie in the same candidates. A path uses an atom whole or not at all, so each is one
`nn.Parameter`, and to an optimizer it is what a separate tensor is. Of a 3x3 kernel in a 5x5 one
these are the centre and the ring around it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

Box = tuple[range, ...]
"""Positions in every dimension: the region of a candidate on a canvas, or a part of one."""


Places = tuple[tuple[slice, ...], ...]


def sizes(box: Box) -> tuple[int, ...]:
    return tuple(map(len, box))


def view(tensor: Tensor, box: Box) -> Tensor:
    """The box as a view of a tensor that is the canvas."""
    whole = map(range, tensor.shape)
    return tensor[tuple(itertools.starmap(_slice, zip(box, whole, strict=True)))]


def _slice(inner: range, outer: range) -> slice:
    first = outer.index(inner[0])
    step = outer.index(inner[1]) - first if len(inner) > 1 else 1
    return slice(first, first + step * (len(inner) - 1) + 1, step)


class Atom:
    """Entries of a canvas that lie in the same candidates, as one tensor.

    shape: with as many dimensions as the canvas, and its leading ones as far as that is possible,
    so that rules by dimensions or by output channel see what they see of a separate tensor."""

    def __init__(self, candidates: frozenset[int], boxes: Sequence[Box]) -> None:
        self.candidates, self.boxes = candidates, tuple(boxes)
        self._places: dict[Box, Places] = {}
        first = self.boxes[0]
        if len(self.boxes) == 1:
            self.shape = sizes(first)
            return
        lead = next(d for d in range(len(first)) if len({box[d] for box in self.boxes}) > 1)
        self._lead = sizes(first[:lead])
        self._ends = tuple(itertools.accumulate(prod(sizes(box[lead:])) for box in self.boxes))
        self.shape = (*self._lead, self._ends[-1], *(1,) * (len(first) - lead - 1))

    def parts(self, tensor: Tensor) -> Iterator[Tensor]:
        """Of the atom's tensor, one a box, as views of their shapes."""
        if len(self.boxes) == 1:
            yield tensor
            return
        flat = tensor.view(*self._lead, -1)
        for box, start, end in zip(self.boxes, (0, *self._ends), self._ends, strict=False):
            yield flat[..., start:end].view(sizes(box))

    def places(self, within: Box) -> Places:
        """Of the boxes, in a tensor of another box."""
        found = self._places.get(within)
        if found is None:
            found = self._places[within] = tuple(
                tuple(itertools.starmap(_slice, zip(box, within, strict=True)))
                for box in self.boxes
            )
        return found

    def put(self, tensor: Tensor, into: Tensor, within: Box | None = None) -> None:
        """Copy the atom's tensor to its place."""
        places = self.places(within or tuple(map(range, into.shape)))
        for place, part in zip(places, self.parts(tensor), strict=True):
            into[place].copy_(part)

    def take(self, source: Tensor, within: Box | None = None) -> Tensor:
        """The atom's entries, a tensor of its shape; a view where they are one box."""
        places = self.places(within or tuple(map(range, source.shape)))
        if len(places) == 1:
            return source[places[0]]
        taken = source.new_empty(self.shape)
        for place, part in zip(places, self.parts(taken), strict=True):
            part.copy_(source[place])
        return taken


class Region(NamedTuple):
    """What a candidate has of a canvas: its atoms, its box, and the shape in which its layer uses
    what lies there. along: the dimension in which the atoms lie one behind the other, if they
    do."""

    atoms: tuple[Atom, ...]
    box: Box
    shape: tuple[int, ...]
    along: int | None

    @classmethod
    def of(cls, atoms: Sequence[Atom], box: Box, shape: tuple[int, ...]) -> Region:
        return cls(
            tuple(atoms),
            box,
            shape,
            next((d for d in range(len(box)) if _follow(atoms, box, d)), None),
        )


class Canvas:
    """What a tensor's candidates share. boxes and shapes: one a candidate, None for those without
    such a tensor; a shape differs from its box where the tensor has a layout."""

    def __init__(
        self,
        size: tuple[int, ...],
        boxes: Sequence[Box | None],
        shapes: Sequence[tuple[int, ...] | None] | None = None,
    ) -> None:
        self.size, self.boxes = size, tuple(boxes)
        self.shapes = tuple(shapes or (box and sizes(box) for box in boxes))

    def region(self, candidate: int) -> Region | None:
        return self._regions[candidate]

    @cached_property
    def _regions(self) -> list[Region | None]:
        return [
            None
            if box is None or shape is None
            else Region.of([self.atoms[n] for n in self.of(candidate)], box, shape)
            for candidate, (box, shape) in enumerate(zip(self.boxes, self.shapes, strict=True))
        ]

    def covers(self, large: int, small: int) -> bool:
        """Whether all entries of one candidate are entries of another."""
        inner, outer = self.boxes[small], self.boxes[large]
        if inner is None or outer is None:
            return inner is None
        return all(set(a) <= set(b) for a, b in zip(inner, outer, strict=True))

    def filled(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """What is on it: where tensors overlap, the values of the largest."""
        present = [(c, t) for c, t in enumerate(tensors) if t is not None]
        sample = present[0][1]
        values = torch.zeros(self.size, dtype=sample.dtype, device=sample.device)
        for candidate, tensor in sorted(present, key=lambda pair: pair[1].numel()):
            box = self.boxes[candidate]
            view(values, box).copy_(tensor.detach().reshape(sizes(box)))
        return values

    @cached_property
    def whole(self) -> Box:
        return tuple(map(range, self.size))

    @cached_property
    def atoms(self) -> tuple[Atom, ...]:
        """In the order of the smallest candidate that has them."""
        return _atoms(self.size, self.boxes)

    def of(self, candidate: int) -> tuple[int, ...]:
        """The atoms of a candidate, by number."""
        return self._of[candidate]

    @cached_property
    def _of(self) -> list[tuple[int, ...]]:
        return [
            tuple(n for n, atom in enumerate(self.atoms) if candidate in atom.candidates)
            for candidate in range(len(self.boxes))
        ]

    def smallest(self, atom: Atom) -> list[list[int]]:
        """The candidates that an atom comes with: of those that have it, the ones that contain no
        smaller one that has it, equal ones together. No two atoms have the same ones."""
        inside = {c: frozenset(self.of(c)) for c in atom.candidates}
        first = {
            numbers for numbers in inside.values() if not any(n < numbers for n in inside.values())
        }
        return [[c for c in inside if inside[c] == numbers] for numbers in first]


@lru_cache(maxsize=1024)  # tensors of one layer, layers and spaces have many in common
def _atoms(size: tuple[int, ...], boxes: tuple[Box | None, ...]) -> tuple[Atom, ...]:
    having = frozenset(c for c, box in enumerate(boxes) if box is not None)
    lines = []  # for each dimension: the candidates that have a position, with the positions
    for dim, length in enumerate(size):
        alike: dict[range, list[int]] = {}
        for candidate in having:
            alike.setdefault(boxes[candidate][dim], []).append(candidate)
        line: dict[tuple[bool, ...], list[int]] = {}
        for position in range(length):
            line.setdefault(tuple([position in part for part in alike]), []).append(position)
        groups = [frozenset(group) for group in alike.values()]
        lines.append(
            [
                (frozenset().union(*(g for g, has in zip(groups, inside, strict=True) if has)), p)
                for inside, p in line.items()
            ]
        )
    cells: dict[frozenset[int], list[Box]] = {}
    for cell in itertools.product(*lines):
        candidates = having.intersection(*(found for found, _ in cell))
        for box in itertools.product(*(_ranges(positions) for _, positions in cell)):
            cells.setdefault(candidates, []).append(box)

    def order(candidate: int) -> tuple[int, int]:
        return prod(sizes(boxes[candidate])), candidate

    found = [Atom(candidates, _joined(parts)) for candidates, parts in cells.items() if candidates]
    return tuple(sorted(found, key=lambda atom: order(min(atom.candidates, key=order))))


def _follow(atoms: Sequence[Atom], box: Box, dim: int) -> bool:
    """Whether atoms lie one behind the other in a dimension, as wide as the box in all others."""
    positions = [position for atom in atoms for position in atom.boxes[0][dim]]
    return positions == list(box[dim]) and all(
        len(atom.boxes) == 1 and (*a[:dim], *a[dim + 1 :]) == (*box[:dim], *box[dim + 1 :])
        for atom in atoms
        for a in atom.boxes
    )


def _ranges(positions: list[int]) -> list[range]:
    """Ascending positions as few ranges of equal steps."""
    found: list[range] = []
    while positions:
        step = positions[1] - positions[0] if len(positions) > 1 else 1
        length = 1
        while length < len(positions) and positions[length] - positions[length - 1] == step:
            length += 1
        found.append(range(positions[0], positions[length - 1] + 1, step))
        positions = positions[length:]
    return found


def _joined(boxes: list[Box]) -> list[Box]:
    """The same entries in fewer boxes: those that differ in one dimension alone become one."""
    for dim in reversed(range(len(boxes[0]))):
        rows: dict[tuple[Box, Box], list[int]] = {}
        for box in boxes:
            rows.setdefault((box[:dim], box[dim + 1 :]), []).extend(box[dim])
        boxes = [
            (*before, positions, *behind)
            for (before, behind), row in rows.items()
            for positions in _ranges(sorted(row))
        ]
    return boxes
