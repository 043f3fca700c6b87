"""From a path to a plain network: a compact module, and readable source that needs nothing but torch."""

from __future__ import annotations

import copy
import inspect
import textwrap
from typing import Any

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
    Raises ValueError for a layer of another class or one whose settings its representation does not tell, for names
    other than numbers, and for other numbers than float32: what is written makes exactly this module.
    """
    if not isinstance(model, nn.Sequential):
        raise ValueError(f"cannot write the source of a {type(model).__name__}; put it into a nn.Sequential")
    wrong = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()} - {torch.float32}
    if wrong:
        raise ValueError(f"cannot write the source of a model in {wrong.pop()}; take model.float()")
    own: dict[str, type] = {}
    base = _sequence(type(model), own)
    layers = textwrap.indent(_layers(model, own), " " * 12)
    classes = "".join(f"\n\n{textwrap.dedent(inspect.getsource(kind))}" for kind in own.values())
    header = f"{title}\n\n{notes}".strip()
    text = f'''"""{header}"""

from pathlib import Path

import torch
from torch import {"Tensor, nn" if own else "nn"}
{classes}

class Net({base}):
    def __init__(self):
        super().__init__(
{layers}        )


def load(weights=Path(__file__).with_name("weights.pt")):
    """The trained network, in evaluation mode."""
    net = Net()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.eval()
'''
    _check_source(text, model)
    return text


def _check_source(text: str, model: nn.Module) -> None:
    """Raises ValueError unless the written class makes the same layers with the same settings."""
    namespace: dict[str, Any] = {"__file__": "model.py", "__name__": "model"}
    try:
        exec(compile(text, "model.py", "exec"), namespace)
        with torch.random.fork_rng(devices=[]):
            net = namespace["Net"]()
    except Exception as error:  # whatever constructors raise
        raise ValueError(f"cannot write the source of this model: it would not run ({error})") from error
    written = dict(net.named_modules(remove_duplicate=False))
    for name, layer in model.named_modules(remove_duplicate=False):
        if name not in written:
            raise ValueError(
                f"cannot write the source of {name!r}: layers of a sequence must have no names of their own"
            )
        differing = [key for key, value in _settings(layer).items() if _settings(written[name]).get(key) != value]
        if differing:
            raise ValueError(
                f"cannot write the source of {name!r}: {layer!r} does not show {', '.join(differing)}; use mnas.export "
                "and your own code"
            )


def _settings(layer: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(layer).items() if not k.startswith("_") and k != "training"}


def _layers(model: nn.Module, own: dict[str, type]) -> str:
    """The constructor arguments of a sequence, a line or block each. own: collects classes that torch does not have."""
    lines = []
    for child in model._modules.values():  # a layer may be there more than once
        kind = type(child)
        if isinstance(child, nn.Sequential):
            name = _sequence(kind, own)
            lines.append(f"{name}(\n{textwrap.indent(_layers(child, own), '    ')}),\n")
        elif kind.__module__.startswith("torch.nn.modules.") and not list(child.children()):
            # The one-line representation of torch's own leaf layers is their constructor call.
            lines.append(f"nn.{child!r},\n")
        else:
            raise ValueError(f"cannot write the source of {kind.__name__}; use mnas.export and your own class")
    return "".join(lines)


def _sequence(kind: type, own: dict[str, type]) -> str:
    """The written name of a class of sequences; a subclass of nn.Sequential that is made like one joins `own`."""
    if kind is nn.Sequential:
        return "nn.Sequential"
    name = kind.__name__
    if kind.__bases__ != (nn.Sequential,) or kind.__init__ is not nn.Sequential.__init__:
        raise ValueError(f"cannot write the source of {name}; use mnas.export and your own class")
    if own.setdefault(name, kind) is not kind or name in ("Net", "nn", "torch", "Tensor", "Path"):
        raise ValueError(f"cannot write the source of two classes named {name}; rename one")
    used = {n for f in vars(kind).values() if inspect.isfunction(f) for n in f.__code__.co_names if n in f.__globals__}
    if used - {"torch", "nn", "Tensor"}:
        raise ValueError(f"cannot write the source of {name}: it uses {used - {'torch', 'nn', 'Tensor'}} of its file")
    try:
        inspect.getsource(kind)
    except (OSError, TypeError) as error:
        raise ValueError(f"cannot write the source of {name}: it is in no file") from error
    return name
