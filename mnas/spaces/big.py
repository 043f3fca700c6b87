"""BigNAS: widths, depths and kernels of stages, each decision read by several blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from mnas.space.choice import Choice
from mnas.space.decision import Decision
from mnas.space.search_space import SearchSpace
from mnas.spaces.blocks import Excite, Residual, conv_bn
from mnas.spaces.remade import remade

STAGES = (
    # widths, depths, kernels, stride, expansion
    ((16, 24), (1, 2), (3,), 1, 1),
    ((24, 32), (2, 3), (3,), 2, 6),
    ((40, 48), (2, 3), (3, 5), 2, 6),
    ((80, 88), (2, 3, 4), (3, 5), 2, 6),
    ((112, 120, 128), (2, 3, 4, 5, 6), (3, 5), 1, 6),
    ((192, 200, 208, 216), (2, 3, 4, 5, 6), (3, 5), 2, 6),
    ((320, 336, 352), (1, 2), (3, 5), 1, 6),
)
Stage = tuple[Sequence[int], Sequence[int], Sequence[int], int, int]


@remade
def bignas(
    stems: Sequence[int] = (32, 40),
    stages: Sequence[Stage] = STAGES,
    lasts: Sequence[int] = (1280, 1344, 1408),
    classes: int = 1000,
    image: int = 224,
) -> SearchSpace:
    """A space like that of BigNAS (Yu et al., ECCV 2020, "BigNAS: Scaling Up Neural Architecture
    Search with Big Single-Stage Models"): `width{s}`, `depth{s}` and `kernel{s}` of each stage, and
    the widths of the stem and of the last convolution, are decided.
    A width is that of all blocks of its stage, of what is added to them, and of the next stage's
    input. All combinations are networks.

    stages: for each its widths, depths and kernels, its stride and its expansion."""

    def build() -> nn.Module:
        inputs = Decision("stem", stems)
        layers: list[nn.Module] = [Choice(_layer, 3, inputs, 3, 2, nested=True)]
        for s, (widths, depths, kernels, stride, expansion) in enumerate(stages):
            width, depth = Decision(f"width{s}", widths), Decision(f"depth{s}", depths)
            kernel = Decision(f"kernel{s}", kernels)
            for b in range(max(depths)):
                block = partial(_block, b, stride if b == 0 else 1, expansion)
                layers.append(Choice(block, inputs, width, kernel, depth, nested=True))
                inputs = width
        last = Decision("last", lasts)
        layers += [Choice(_layer, inputs, last, nested=True), nn.AdaptiveAvgPool2d(1)]
        return nn.Sequential(*layers, nn.Flatten(), Choice(nn.Linear, last, classes, nested=True))

    about = "like BigNAS (Yu et al., ECCV 2020): widths, depths and kernels of inverted residuals"
    return SearchSpace(build, name="bignas", input_shape=(3, image, image), about=about)


def _layer(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    return nn.Sequential(*conv_bn(inputs, outputs, kernel, stride), nn.SiLU())


def _block(
    number: int,
    stride: int,
    expansion: int,
    inputs: int,
    outputs: int,
    kernel: int,
    depth: int,
) -> nn.Module | None:
    if number >= depth:
        return None
    hidden = inputs * expansion
    kind = Residual if stride == 1 and inputs == outputs else nn.Sequential
    return kind(
        *([*conv_bn(inputs, hidden), nn.SiLU()] if expansion > 1 else []),
        *(*conv_bn(hidden, hidden, kernel, stride, hidden), nn.SiLU(), Excite(hidden)),
        *conv_bn(hidden, outputs),
    )
