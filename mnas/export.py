"""From a path to a plain network: a compact module, and readable source that needs nothing but torch."""

from __future__ import annotations

import copy
import inspect
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

    Subclasses of nn.Sequential that only have another forward, as a residual block, are written out as they are.
    Raises ValueError for a layer of another class, whose constructor cannot be read off the module.
    """
    own: dict[str, type] = {}
    layers = textwrap.indent(_layers(model, own), " " * 12)
    classes = "".join(f"\n\n{textwrap.dedent(inspect.getsource(kind))}" for kind in own.values())
    header = f"{title}\n\n{notes}".strip()
    return f'''"""{header}"""

from pathlib import Path

import torch
from torch import {"Tensor, nn" if own else "nn"}
{classes}

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


def _layers(model: nn.Module, own: dict[str, type]) -> str:
    """The constructor arguments of a sequence, a line or block each. own: collects classes that torch does not have."""
    lines = []
    children = model.children() if isinstance(model, nn.Sequential) else [model]
    for child in children:
        kind = type(child)
        if kind is nn.Sequential or _is_plain_sequence(kind):
            name = "nn.Sequential" if kind is nn.Sequential else kind.__name__
            if name == kind.__name__ and own.setdefault(name, kind) is not kind:
                raise ValueError(f"cannot write the source of two classes named {name}; rename one")
            lines.append(f"{name}(\n{textwrap.indent(_layers(child, own), '    ')}),\n")
        elif kind.__module__.startswith("torch.nn.modules.") and not list(child.children()):
            # The one-line representation of torch's own leaf layers is their constructor call.
            lines.append(f"nn.{child!r},\n")
        else:
            raise ValueError(f"cannot write the source of {kind.__name__}; use mnas.export and your own class")
    return "".join(lines)


def _is_plain_sequence(kind: type) -> bool:
    """A subclass of nn.Sequential that is made like one, so that its source and its layers say everything."""
    return kind.__bases__ == (nn.Sequential,) and kind.__init__ is nn.Sequential.__init__
