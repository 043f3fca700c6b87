"""What benchmarks compare mnas with: supernets as people write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnas import Choice, SearchSpace
from mnas.networks.export import compact
from mnas.space.prefix import stages
from mnas.space.search_space import Path


class Modular(nn.Module):
    """One module per candidate, and the path picks. For spaces that are sequences."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(_candidates(stage)) if isinstance(stage, Choice) else stage
            for stage in stages(space.build())
        )

    def forward(self, x: Tensor, path: Path) -> Tensor:
        indices = iter(path)
        for stage in self.stages:
            x = stage[next(indices)](x) if isinstance(stage, nn.ModuleList) else stage(x)
        return x


def _candidates(choice: Choice) -> list[nn.Module]:
    return [compact(choice.candidate(index)) for index in range(len(choice))]


class NaiveMerged(nn.Module):
    """All kernels of a choice in one tensor (candidates, O, I, K, K): multiplied by the path's mask
    in the forward pass, its whole gradient multiplied by it in a hook. Raises ValueError for
    candidates that are no convolutions."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            _NaiveConv(stage) if isinstance(stage, Choice) else stage
            for stage in stages(space.build())
        )

    def forward(self, x: Tensor, path: Path) -> Tensor:
        indices = iter(path)
        for stage in self.stages:
            x = stage(x, next(indices)) if isinstance(stage, _NaiveConv) else stage(x)
        return x


class _NaiveConv(nn.Module):
    def __init__(self, choice: Choice) -> None:
        super().__init__()
        layers = _candidates(choice)
        if not all(type(layer) is nn.Conv2d for layer in layers):
            raise ValueError(
                f"the naive merged form is written for convolutions, not for {choice.names}"
            )
        self.side = max(layer.kernel_size[0] for layer in layers)
        weight, mask = [], []
        for layer in layers:
            margin = (self.side - layer.kernel_size[0]) // 2
            weight.append(F.pad(layer.weight.detach(), [margin] * 4))
            mask.append(F.pad(torch.ones_like(layer.weight), [margin] * 4))
        self.weight = nn.Parameter(torch.stack(weight))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))
        self.register_buffer("mask", torch.stack(mask), persistent=False)
        self.chosen = 0
        self.weight.register_hook(lambda grad: grad * self._selected())

    def _selected(self) -> Tensor:
        selected = torch.zeros_like(self.mask)
        selected[self.chosen] = self.mask[self.chosen]
        return selected

    def forward(self, x: Tensor, index: int) -> Tensor:
        self.chosen = index
        return F.conv2d(
            x, (self.weight * self._selected()).sum(0), self.bias[index], padding=self.side // 2
        )
