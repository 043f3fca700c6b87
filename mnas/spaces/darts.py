"""DARTS: a normal and a reducing cell, in eight places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn

from mnas.space.choice import Choice
from mnas.space.decision import Decision
from mnas.space.search_space import SearchSpace
from mnas.spaces.blocks import Nothing, conv_bn
from mnas.spaces.remade import remade

OPERATIONS = ("max3", "avg3", "skip", "sep3", "sep5", "dil3", "dil5")
CELLS = (*("normal", "normal", "reduce") * 2, "normal", "normal")


@remade
def darts(
    width: int = 16,
    cells: Sequence[str] = CELLS,
    nodes: int = 4,
    classes: int = 10,
    image: int = 32,
) -> SearchSpace:
    """DARTS (Liu et al., ICLR 2019, sections 2.4, 3.1 and A.1) for CIFAR-10: a node adds up
    operations on two of the earlier nodes and of the outputs of the two cells before. One normal
    cell is in all its places, and one that halves the size in all of its.

    `normal2` is the pair of inputs of node 2 in the normal cell, where 0 and 1 are the cells
    before and 2 is node 0; `normal2_1` the operation on input 1, which does not matter unless that
    is one of the pair. (7**8 * 180)**2 = 1.077e18 networks.

    Where a skip or an input halves the size it is ReLU, a convolution of 1x1 and BatchNorm, in
    place of the paper's two convolutions side by side.

    width: channels of a node, before the first cell that reduces."""

    def build() -> nn.Module:
        channels, older, newer, stride = width, 3 * width, 3 * width, 1
        layers: list[nn.Module] = [Stem(*conv_bn(3, newer, 3))]
        for kind in cells:
            channels *= 2 if kind == "reduce" else 1
            layers.append(Cell(kind, (older, newer, stride), channels, nodes))
            older, newer, stride = newer, nodes * channels, 2 if kind == "reduce" else 1
        head = Head(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(newer, classes))
        return nn.Sequential(*layers, head)

    about = "DARTS (Liu et al., ICLR 2019): a normal and a reducing cell, two inputs a node"
    return SearchSpace(build, name="darts", input_shape=(3, image, image), about=about)


def operation(number: int, width: int, stride: int, pair: tuple[int, int], name: str) -> nn.Module:
    """On an input, if that is one of the pair."""
    if number not in pair:
        return Nothing(stride)
    kernel = int(name[-1]) if name != "skip" else 1
    match name[:3]:
        case "max":
            return nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.BatchNorm2d(width))
        case "avg":
            pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
            return nn.Sequential(pool, nn.BatchNorm2d(width))
        case "ski":
            return nn.Identity() if stride == 1 else _conv(width, width, 1, 2)
        case "sep":
            return nn.Sequential(*(_depthwise(width, kernel, s) for s in (stride, 1)))
    return _depthwise(width, kernel, stride, 2)


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


def _depthwise(width: int, kernel: int, stride: int, dilation: int = 1) -> nn.Sequential:
    margin = dilation * (kernel // 2)
    depthwise = nn.Conv2d(width, width, kernel, stride, margin, dilation, width, bias=False)
    pointwise = nn.Conv2d(width, width, 1, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(width))


class Cell(nn.Module):
    """From the outputs of the two cells before to those of the last and this one. before: their
    channels, and the stride between them."""

    def __init__(self, kind: str, before: tuple[int, int, int], width: int, nodes: int) -> None:
        super().__init__()
        older, newer, stride = before
        self.inputs = nn.ModuleList([_conv(older, width, 1, stride), _conv(newer, width)])
        self.nodes = nn.ModuleList()
        for node in range(nodes):
            pair = Decision(f"{kind}{node}", combinations(range(node + 2), 2))
            into = nn.ModuleList()
            for number in range(node + 2):
                step = 2 if kind == "reduce" and number < 2 else 1
                name = Decision(f"{kind}{node}_{number}", OPERATIONS)
                into.append(Choice(partial(operation, number, width, step), pair, name))
            self.nodes.append(into)

    def forward(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        found = [layer(x) for layer, x in zip(self.inputs, outputs, strict=True)]
        for into in self.nodes:
            found.append(sum(edge(x) for edge, x in zip(into, found, strict=True)))
        return outputs[1], torch.cat(found[2:], 1)


class Stem(nn.Sequential):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = super().forward(x)
        return x, x


class Head(nn.Sequential):
    def forward(self, outputs: tuple[Tensor, Tensor]) -> Tensor:
        return super().forward(outputs[1])
