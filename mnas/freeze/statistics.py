"""Running statistics of normalisation layers that stay where their channels are frozen."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mnas.freeze.active import Mask
from mnas.freeze.names import MaskValue, resolve


def frozen_channels(
    module: nn.Module, statistics: bool | Mapping[str, MaskValue], masks: Mapping[int, Mask]
) -> list[tuple[str, nn.Module, Tensor]]:
    """The layers whose running statistics are to be kept, by name, with their frozen channels,
    boolean (C,). masks: of parameters, by id."""
    layers = {
        name: layer
        for name, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, _NormBase) and layer.running_mean is not None
    }
    if isinstance(statistics, Mapping):
        by_buffer = {id(layer.running_mean): name for name, layer in layers.items()}
        named = [(name, layer.running_mean) for name, layer in layers.items()]
        chosen = resolve("normalisation layer with running statistics", statistics, named)
        return [
            (by_buffer[id(b)], layers[by_buffer[id(b)]], ~mask.of(b))
            for b, mask in chosen.values()
            if mask is not None
        ]
    if not statistics:
        return []
    frozen = []
    for name, layer in {id(layer): (name, layer) for name, layer in layers.items()}.values():
        trains = torch.zeros_like(layer.running_mean, dtype=torch.bool)
        for parameter in layer.parameters():
            if id(parameter) in masks:
                trains |= masks[id(parameter)].of(parameter)
            elif parameter.requires_grad:
                trains.fill_(True)
        if layer.affine and not trains.all():
            frozen.append((name, layer, ~trains))
    return frozen


class KeepStatistics:
    """Two hooks around the forward pass of a normalisation layer that put the statistics of frozen
    channels back.

    frozen: boolean (C,). torch copies and pickles the hooks of a module with it, but a copied
    module is not masked: what these hooks are copied to has None and does nothing."""

    def __init__(self, frozen: Tensor | None) -> None:
        self.frozen = frozen
        self.saved: list[tuple[Tensor, Tensor]] = []
        self._under_way = 0  # forward passes, in several threads
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[KeepStatistics], tuple[None]]:
        return KeepStatistics, (None,)

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """One thread at a time; torch.compile knows no locks."""
        return contextlib.nullcontext() if torch.compiler.is_compiling() else self._lock

    def before(self, layer: nn.Module, _: Any) -> None:
        with self._alone():
            if self.frozen is not None and not self._under_way:
                buffers = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
                self.saved = [(buffer, buffer.clone()) for buffer in buffers]
            self._under_way += 1

    def after(self, layer: nn.Module, _: Any, __: Any) -> None:
        with self._alone():
            for buffer, saved in self.saved:
                frozen = self.frozen.to(buffer.device)
                frozen = frozen if buffer.ndim else frozen.all()
                # Through .data, because autograd has noted the buffer's version, though in train
                # mode its backward pass reads only the batch's statistics. The count of batches is
                # the layer's: it stays if every channel does.
                buffer.data.copy_(torch.where(frozen, saved, buffer))
            self._under_way -= 1
            if not self._under_way:
                self.saved = []
