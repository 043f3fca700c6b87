"""ProxylessNAS: twenty-one choices of inverted residuals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mnas.space.choice import Choice
from mnas.space.search_space import SearchSpace
from mnas.spaces.blocks import conv_bn, inverted_residual
from mnas.spaces.remade import remade


@remade
def proxyless(
    widths: Sequence[int] = (32, 16, 32, 40, 80, 96, 192, 320),
    repeats: Sequence[int] = (4, 4, 4, 4, 4, 1),
    last: int = 1280,
    classes: int = 1000,
    image: int = 224,
) -> SearchSpace:
    """ProxylessNAS (Cai et al., ICLR 2019) with the widths of its network for mobile phones: each
    block is an inverted residual of expansion 3 or 6 and kernel 3, 5 or 7, or is left out, but for
    the first of a stage; 6**6 * 7**15 networks.

    widths: of the stem, the first block, which is fixed, and the stages. repeats: blocks of a
    stage. last: before the logits."""

    def block(inputs: int, outputs: int, stride: int) -> Choice:
        candidates: dict[str, nn.Module] = {
            f"mb{e}_k{k}": inverted_residual(inputs, e * inputs, outputs, k, stride, nn.ReLU6)
            for e in (3, 6)
            for k in (3, 5, 7)
        }
        if stride == 1 and inputs == outputs:
            candidates["skip"] = nn.Identity()
        return Choice(candidates)

    def build() -> nn.Module:
        stem, inputs = widths[:2]
        layers = [*conv_bn(3, stem, 3, 2), nn.ReLU6()]
        layers += [*conv_bn(stem, stem, 3, 1, stem), nn.ReLU6(), *conv_bn(stem, inputs)]
        strides = (2, 2, 2, 1, 2, 1)
        for outputs, number, stride in zip(widths[2:], repeats, strides, strict=True):
            for position in range(number):
                layers.append(block(inputs, outputs, 1 if position else stride))
                inputs = outputs
        layers += [*conv_bn(inputs, last), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(last, classes))

    about = "ProxylessNAS (Cai et al., ICLR 2019): 21 choices of inverted residuals or nothing"
    return SearchSpace(build, name="proxyless", input_shape=(3, image, image), about=about)
