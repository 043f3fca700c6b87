"""From a path to a plain network: a compact module, and readable source that needs nothing but torch."""

from __future__ import annotations

import copy
import textwrap

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


def source(model: nn.Module, title: str, notes: str = "") -> str:
    """Python source of a module made of torch.nn layers in (nested) nn.Sequential: a class `Net` and a `load`.

    Raises ValueError for a layer of another class, whose constructor cannot be read off the module.
    """
    layers = textwrap.indent(_layers(model), " " * 12)
    header = f"{title}\n\n{notes}".strip()
    return f'''"""{header}"""

from pathlib import Path

import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
{layers}        )


def load(weights=Path(__file__).with_name("weights.pt")):
    """The trained network, in evaluation mode."""
    net = Net()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.eval()
'''


def _layers(model: nn.Module) -> str:
    lines = []
    children = model.children() if type(model) is nn.Sequential else [model]
    for child in children:
        if type(child) is nn.Sequential:
            lines.append(f"nn.Sequential(\n{textwrap.indent(_layers(child), '    ')}),\n")
        elif type(child).__module__.startswith("torch.nn.modules.") and not list(child.children()):
            # The one-line representation of torch's own leaf layers is their constructor call.
            lines.append(f"nn.{child!r},\n")
        else:
            raise ValueError(f"cannot write the source of {type(child).__name__}; use mnas.export and your own class")
    return "".join(lines)
