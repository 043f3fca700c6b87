"""What a network costs: parameters and multiply-accumulates, counted on the network itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from mnas.export import standalone
from mnas.space import Path, SearchSpace


class Cost(NamedTuple):
    """params: trainable numbers. macs: multiply-accumulates of one picture through convolutions and linear layers,
    biases and normalisation not counted."""

    params: int
    macs: int


def cost(space: SearchSpace, path: Path) -> Cost:
    """The cost of a path's standalone network for one picture of `space.input_shape`."""
    with torch.random.fork_rng(devices=[]):  # counting must not change what is drawn next
        model = standalone(space, path).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *space.input_shape))
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
