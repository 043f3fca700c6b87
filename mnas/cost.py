"""What a network costs: parameters and multiply-accumulates, counted on the network itself."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mnas.choice import Choice, substitute
from mnas.prefix import stages
from mnas.space import Path, SearchSpace, choices_of, floating_type


class Cost(NamedTuple):
    """params: numbers in parameters. macs: multiply-accumulates of one picture through convolutions and linear layers,
    biases and normalisation not counted."""

    params: int
    macs: int


def cost(space: SearchSpace, path: Path) -> Cost:
    """The cost of a path's standalone network for one picture of `space.input_shape`.

    Counted once for each candidate and size of its input if the model is a sequence, else for each path anew.
    """
    if space not in _COUNTERS:
        _COUNTERS[space] = _Counter(space)
    return _COUNTERS[space].count(space.check(path))


class _NoPicture(Exception):
    """A part puts out something else than one picture, so that the next one cannot be counted by its shape."""


class _Counter:
    """Counts the parts of a sequence once, and adds them up for each path."""

    def __init__(self, space: SearchSpace) -> None:
        with torch.random.fork_rng(devices=[]):  # counting must not change what is drawn next
            self.model = space.build().eval()
        self.shape = space.input_shape
        self.choices = choices_of(self.model)
        parts = stages(self.model)
        tensors = [id(p) for part in parts for p in part.parameters()]
        choices = [part for part in parts if isinstance(part, Choice)]
        plain = choices == self.choices and len(tensors) == len(set(tensors))
        self.parts = parts if plain else None  # choices deeper inside, or tensors that parts share
        self._counted: dict[tuple[int, int, tuple[int, ...]], tuple[Cost, tuple[int, ...] | None]] = {}

    def count(self, path: Path) -> Cost:
        if self.parts is not None:
            try:
                return self._add_up(path)
            except _NoPicture:
                self.parts = None
        chosen = {choice: choice.candidate(i) for choice, i in zip(self.choices, path, strict=True)}
        return _measure(substitute(self.model, chosen), self.shape)[0]

    def _add_up(self, path: Path) -> Cost:
        shape, indices, params, macs = self.shape, iter(path), 0, 0
        for number, part in enumerate(self.parts):
            index = next(indices) if isinstance(part, Choice) else 0
            key = number, index, shape
            if key not in self._counted:
                module = part.candidate(index) if isinstance(part, Choice) else part
                self._counted[key] = _measure(module, shape)
            counted, shape = self._counted[key]
            if shape is None:
                raise _NoPicture
            params, macs = params + counted.params, macs + counted.macs
        return Cost(params, macs)


_COUNTERS: weakref.WeakKeyDictionary[SearchSpace, _Counter] = weakref.WeakKeyDictionary()


@torch.no_grad()
def _measure(module: nn.Module, shape: tuple[int, ...]) -> tuple[Cost, tuple[int, ...] | None]:
    """The cost of a module for one input of a shape, and the shape of its output, None if that is no picture."""
    x = torch.zeros(1, *shape, dtype=floating_type(module))
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        output = module(x)
    params = sum(p.numel() for p in module.parameters())
    picture = isinstance(output, Tensor) and output.ndim > 1 and output.shape[0] == 1
    return Cost(params, counter.get_total_flops() // 2), tuple(output.shape[1:]) if picture else None
