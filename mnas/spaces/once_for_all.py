"""Once-for-all: depth, kernel and expansion of MobileNetV3, the small nested in the large."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from mnas.space.choice import Choice
from mnas.space.decision import Decision
from mnas.space.search_space import SearchSpace
from mnas.spaces.blocks import Depthwise, Excite, Residual, conv_bn, divisible
from mnas.spaces.remade import remade

STAGES = (
    # width, stride, activation, squeeze-and-excite
    (24, 2, nn.ReLU, False),
    (40, 2, nn.ReLU, True),
    (80, 2, nn.Hardswish, False),
    (112, 1, nn.Hardswish, True),
    (160, 2, nn.Hardswish, True),
)


@remade
def ofa_mbv3(
    width: float = 1.0, kernel_matrices: bool = False, classes: int = 1000, image: int = 224
) -> SearchSpace:
    """Once-for-all with MobileNetV3 (Cai et al., ICLR 2020, sections 3.2 and 4.1): five stages of
    2 to 4 blocks, each with a kernel of 3, 5 or 7 and an expansion of 3, 4 or 6.

    Decisions are `depth0` ... `depth4`, and `k{s}{b}` and `e{s}{b}` of block b in stage s. Those of
    an absent block do not matter: 7371**5 = 2.176e19 networks.

    width: 1.0 or 1.2 as published, or smaller. kernel_matrices: small kernels are learned
    transforms of the centres of large ones (section 3.3); an exported network has the results."""

    def build() -> nn.Module:
        inputs = divisible(16 * width)
        first = [*conv_bn(inputs, inputs, 3, 1, inputs), nn.ReLU(), *conv_bn(inputs, inputs)]
        layers = [*conv_bn(3, inputs, 3, 2), nn.Hardswish(), Residual(*first)]
        for s, (published, stride, activation, excite) in enumerate(STAGES):
            outputs, depth = divisible(published * width), Decision(f"depth{s}", (2, 3, 4))
            for b in range(4):
                size = (inputs, outputs, 1 if b else stride)
                block = partial(_block, b, *size, activation, excite, kernel_matrices)
                kernel, expansion = Decision(f"k{s}{b}", (3, 5, 7)), Decision(f"e{s}{b}", (3, 4, 6))
                layers.append(Choice(block, depth, kernel, expansion, nested=True))
                inputs = outputs
        wide, last = divisible(960 * width), divisible(1280 * width)
        return nn.Sequential(
            *(*layers, *conv_bn(inputs, wide), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Conv2d(wide, last, 1, bias=False), nn.Hardswish(), nn.Flatten()),
            nn.Linear(last, classes),
        )

    about = "once-for-all (Cai et al., ICLR 2020): depth, kernel and expansion in MobileNetV3"
    return SearchSpace(build, name="ofa_mbv3", input_shape=(3, image, image), about=about)


def _block(
    number: int,
    inputs: int,
    outputs: int,
    stride: int,
    activation: Callable[[], nn.Module],
    excite: bool,
    kernel_matrices: bool,
    depth: int,
    kernel: int,
    expansion: int,
) -> nn.Module | None:
    if number >= depth:
        return None
    hidden = divisible(inputs * expansion)
    kind = Residual if stride == 1 and inputs == outputs else nn.Sequential
    depthwise = conv_bn(hidden, hidden, kernel, stride, groups=hidden)
    if kernel_matrices:
        depthwise[0] = Depthwise(hidden, kernel, stride)
    return kind(
        *(*conv_bn(inputs, hidden), activation()),
        *(*depthwise, activation()),
        *([Excite(hidden)] if excite else []),
        *conv_bn(hidden, outputs),
    )
