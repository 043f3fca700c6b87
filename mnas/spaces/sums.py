"""Sums of up to two operations, one decision for which."""

from __future__ import annotations

from itertools import combinations

from torch import Tensor, nn

from mnas.space.choice import Choice
from mnas.space.decision import Decision
from mnas.space.search_space import SearchSpace
from mnas.spaces.blocks import Nothing, conv_bn
from mnas.spaces.remade import remade

OPERATIONS = ("identity", "sep3", "sep5", "sep7", "max3", "avg3")
SETS = tuple(frozenset(chosen) for n in (1, 2) for chosen in combinations(OPERATIONS, n))


@remade
def bender(
    width: int = 16, blocks: int = 4, stages: int = 3, classes: int = 10, image: int = 32
) -> SearchSpace:
    """Like the space of Bender et al. (ICML 2018, "Understanding and Simplifying One-Shot
    Architecture Search"): each block is the sum of one or two of six operations.
    Decision `block3` is a set, named as "max3+sep5"; 21**12 networks with twelve blocks. What is
    not in the set has no weights in the network.

    width: channels of the first stage, twice as many in the next. blocks: of a stage."""

    def build() -> nn.Module:
        layers, channels = conv_bn(3, width, 3), width
        for stage in range(stages):
            if stage:
                layers += [nn.ReLU(), *conv_bn(channels, 2 * channels, 3, 2)]
                channels *= 2
            layers += [Block(channels, stage * blocks + number) for number in range(blocks)]
        head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
        return nn.Sequential(*layers, *head)

    about = "like Bender et al. (ICML 2018): each block the sum of one or two of six operations"
    return SearchSpace(build, name="bender", input_shape=(3, image, image), about=about)


class Block(nn.Module):
    """(B, width, H, W) -> the same."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        decision = Decision(f"block{number}", SETS)

        def made(name: str, chosen: frozenset[str]) -> nn.Module:
            return operation(name, width) if name in chosen else Nothing()

        self.operations = nn.ModuleList(Choice(made, name, decision) for name in OPERATIONS)

    def forward(self, x: Tensor) -> Tensor:
        return sum(operation(x) for operation in self.operations)


def operation(name: str, width: int) -> nn.Module:
    match name:
        case "identity":
            return nn.Identity()
        case "max3":
            return nn.MaxPool2d(3, 1, 1)
        case "avg3":
            return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    kernel = int(name[-1])
    layers: list[nn.Module] = []
    for _ in range(2):
        depthwise = nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=width, bias=False)
        layers += [nn.ReLU(), depthwise, *conv_bn(width, width)]
    return nn.Sequential(*layers)
