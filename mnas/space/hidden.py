"""Hidden widths of a block: those that no layer outside of it sees, found by torch.fx; and blocks
with narrower ones."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from mnas.space.skeleton import is_hooked

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What they do to a channel depends on no other channel, and they have no tensors.
APART = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity),
    *(nn.Dropout, nn.Dropout2d, nn.Dropout3d),
)
FUNCTIONS = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid),
    *(F.dropout, torch.relu, torch.sigmoid, torch.tanh),
}
METHODS = {"relu", "relu_", "sigmoid", "tanh"}


class Hidden(NamedTuple):
    """A hidden width. maker: name of the layer whose outputs it counts; between: names of layers
    with an entry for each channel; readers: of the layers that take them."""

    maker: str
    between: tuple[str, ...]
    readers: tuple[str, ...]


def hidden(block: nn.Module) -> list[Hidden]:
    """All hidden widths of a block, in the order in which it computes them; none where it has fewer
    than two linear layers or convolutions.

    Raises ValueError where torch.fx cannot follow the block, and where it has no hidden width."""
    if sum(isinstance(layer, LAYERS) for layer in block.modules()) < 2:
        return []
    try:
        graph = _Tracer().trace(block)
    except Exception as error:  # whatever a user's forward does with a proxy
        reason, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"torch.fx cannot follow {type(block).__name__} ({reason}), so which layers share a "
            "width is not known; select a smaller module, or list candidates with "
            "mnas.rules.candidates"
        ) from error
    calls = [node for node in graph.nodes if node.op == "call_module"]
    layers = {node: block.get_submodule(node.target) for node in calls}
    found, reasons = [], []
    for node, layer in layers.items():
        if type(layer) in LAYERS and not _of_each_channel(layer):
            try:
                found.append(_followed(node, layers))
            except _NotHidden as reason:
                reasons.append(f"{node.target}: {reason}")
    if not found:
        raise ValueError(
            f"{type(block).__name__} has no hidden width ({'; '.join(reasons) or 'no such layers'})"
            ": layers that must agree with others outside need a mnas.Decision in a space of your "
            "own; or list candidates with mnas.rules.candidates"
        )
    return found


class _Tracer(fx.Tracer):
    """Sees normalisations of a user's own as layers, so that reasons name them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, NORMS) or super().is_leaf_module(m, module_qualified_name)


class _NotHidden(Exception):
    """Why a width is none."""


def _followed(maker: fx.Node, layers: dict[fx.Node, nn.Module]) -> Hidden:
    """From the layer on to all that read its channels."""
    between: list[str] = []
    readers: list[str] = []
    waiting, kind = [maker], type(layers[maker])
    _check(maker, layers)
    while waiting:
        for user in waiting.pop().users:
            layer = layers.get(user)
            if user.op == "output":
                raise _NotHidden("its channels leave the block")
            if type(layer) is kind and not _of_each_channel(layer):
                if layer.__dict__.get("groups", 1) != 1:
                    raise _NotHidden(f"{user.target} reads them in groups")
                _check(user, layers)
                readers.append(str(user.target))
                continue
            if type(layer) in NORMS or (layer is not None and _of_each_channel(layer)):
                _check(user, layers)
                between.append(str(user.target))
            elif not (
                type(layer) in APART
                or (user.op == "call_function" and user.target in FUNCTIONS)
                or (user.op == "call_method" and user.target in METHODS)
            ):
                raise _NotHidden(f"{_called(user, layer)} may mix its channels with others")
            waiting.append(user)
    if not readers:
        raise _NotHidden("nothing reads its channels")
    return Hidden(str(maker.target), tuple(dict.fromkeys(between)), tuple(dict.fromkeys(readers)))


def _check(node: fx.Node, layers: dict[fx.Node, nn.Module]) -> None:
    """That a layer is used once, is torch's own and has parameters of its own."""
    layer = layers[node]
    if sum(other is layer for other in layers.values()) > 1:
        raise _NotHidden(f"{node.target} is used more than once")
    if is_hooked(layer):
        raise _NotHidden(f"{node.target} has hooks")
    if layer.__dict__.get("groups", 1) != 1 and not _of_each_channel(layer):
        raise _NotHidden(f"{node.target} has groups")


def _called(node: fx.Node, layer: nn.Module | None) -> str:
    if layer is not None:
        return f"{node.target} ({type(layer).__name__})"
    target = operator.add if node.target is operator.iadd else node.target
    return getattr(target, "__name__", str(target))


def _of_each_channel(layer: nn.Module | None) -> bool:
    """A depthwise convolution that keeps the number of channels."""
    return type(layer) in CONVOLUTIONS and layer.groups == layer.in_channels == layer.out_channels


def narrow(block: nn.Module, widths: list[tuple[Hidden, int]]) -> nn.Module:
    """The block itself, with the first so many channels of hidden widths left."""
    for width, channels in widths:
        _cut(block.get_submodule(width.maker), 0, channels)
        for name in width.between:
            _cut(block.get_submodule(name), 0, channels)
        for name in width.readers:
            _cut(block.get_submodule(name), 1, channels)
    return block


SIZES = (("out_features", "out_channels", "num_features"), ("in_features", "in_channels"))


@torch.no_grad()
def _cut(layer: nn.Module, dim: int, channels: int) -> None:
    """The first channels of outputs (dim 0) or inputs (dim 1)."""
    if _of_each_channel(layer):
        layer.in_channels = layer.groups = channels
    for name in SIZES[dim]:
        if hasattr(layer, name):
            setattr(layer, name, channels)
    for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is None or tensor.ndim <= dim:
            continue
        kept = tensor.narrow(dim, 0, channels).clone()
        if name in layer._parameters:
            kept = nn.Parameter(kept, tensor.requires_grad)
        setattr(layer, name, kept)
