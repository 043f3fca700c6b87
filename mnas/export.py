"""From a path to a plain network: a compact module without a trace of mnas."""

from __future__ import annotations

import copy

import torch
from torch import nn

from mnas.space import Path, SearchSpace
from mnas.supernet import Supernet


def export(net: Supernet, path: Path) -> nn.Module:
    """The path as a standalone module: the user's own classes, contiguous copies of the weights, no mnas inside.

    Mode (train or eval), dtype and device are those of the supernet, which is not changed. The result is the same
    for both executions.
    """
    with torch.enable_grad():  # so that a view knows whether its parameter is trained
        return compact(net.subnet(path, execution="sliced"))


def compact(module: nn.Module) -> nn.Module:
    """A deep copy of a module in which no tensor is a view of a larger one. Raises nothing, shares nothing."""
    tensors: dict[int, torch.Tensor] = {}  # deepcopy takes these for the copies of the originals
    for tensor in module.parameters():
        tensors[id(tensor)] = nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
    for tensor in module.buffers():
        tensors[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(module, memo=tensors)


def standalone(space: SearchSpace, path: Path) -> nn.Module:
    """The same architecture with a random start, decided by `torch.manual_seed`; plain classes, no mnas inside.

    With the same seed it starts from the weights that `Supernet(space)` has on this path.
    """
    return export(Supernet(space), path)
