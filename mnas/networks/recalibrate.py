"""Statistics of normalisation layers, computed anew for one network."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnas.space.inputs import called, divided, examples
from mnas.space.skeleton import compact
from mnas.space.supernet import Supernet


@torch.no_grad()
def recalibrate(model: nn.Module, images: Any, batch_size: int = 500) -> nn.Module:
    """A copy of a network whose running statistics are the pooled mean and variance of its own
    activations.

    The statistics that a supernet gathers in training mix those of many paths; a sampled network
    needs its own (Wu and Johnson, 2021, 'Rethinking "Batch" in BatchNorm', section 3.2; Yu et al.,
    ECCV 2020, section 3). images (N, C, H, W): training images, or what else the network is called
    with, as in `evaluate`. They pass through in equal batches of at most `batch_size`, with
    BatchNorm alone in train mode, and each BatchNorm's mean and unbiased variance are taken over
    all of them at once, in float64. A layer out of reach keeps its statistics. The model itself,
    which may be a path of a supernet, is not changed.

    Raises ValueError without images, or for a whole supernet.
    """
    if isinstance(model, Supernet):
        raise ValueError("recalibrate got a Supernet; expected one network, as from mnas.export")
    twin = compact(model)
    modes = {module: module.training for module in twin.modules()}
    twin.eval()  # the network as it will be used, without dropout
    pool(twin, batches(images, batch_size))
    for module, training in modes.items():
        module.training = training
    return twin


def batches(images: Any, batch_size: int = 500) -> list[Any]:
    """The images in equal batches, so that none of one image is left over."""
    given, number = examples("images", images)
    if not number:
        raise ValueError("recalibration got no images; give it some of the training images")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}; expected a whole number above 0")
    return divided(given, lambda tensor: tensor.tensor_split(-(-number // batch_size)))


def statistics_of(module: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers with running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def pool(module: nn.Module, inputs: list[Any]) -> list[Any]:
    """Recalibrate a module in evaluation mode, in place; returns what it puts out for each batch
    meanwhile."""
    layers = statistics_of(module)
    sums = {layer: _Sums(layer) for layer in layers}
    handles = [layer.register_forward_pre_hook(partial(_add, sums)) for layer in layers]
    for layer in layers:
        layer.train()
    try:
        outputs = [called(module, x) for x in inputs]
    finally:
        for layer, handle in zip(layers, handles, strict=True):
            layer.eval()
            handle.remove()
    for layer, found in sums.items():
        if not found.count:
            continue
        mean = found.total / found.count
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((found.squares - found.count * mean.square()) / (found.count - 1))
    return outputs


class _Sums:
    """Of a layer's inputs so far: their count, and for each channel (dimension 1) their sum and
    that of their squares, where the layer is."""

    def __init__(self, layer: nn.Module) -> None:
        self.count = 0
        self.total, self.squares = layer.running_mean.new_zeros(
            2, layer.num_features, dtype=torch.float64
        )


def _add(sums: dict[nn.Module, _Sums], layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    x = inputs[0].transpose(0, 1).flatten(1).double()
    if x.shape[1] < 2:  # torch's own refusal names neither
        raise ValueError(
            "recalibration on one image of one pixel at a BatchNorm has no variance; expected two "
            "values a channel: give it more images"
        )
    sums[layer].count += x.shape[1]
    sums[layer].total += x.sum(1)
    sums[layer].squares += x.square().sum(1)
