"""Single path one-shot: twenty choices of ShuffleNetV2 blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mnas.space.choice import Choice
from mnas.space.search_space import SearchSpace
from mnas.spaces.blocks import conv_bn
from mnas.spaces.remade import remade


@remade
def spos(
    widths: Sequence[int] = (16, 64, 160, 320, 640),
    repeats: Sequence[int] = (4, 4, 8, 4),
    last: int = 1024,
    classes: int = 1000,
    image: int = 224,
) -> SearchSpace:
    """Single path one-shot (Guo et al., ECCV 2020, "Single Path One-Shot Neural Architecture Search
    with Uniform Sampling"): each block has a kernel of 3, 5 or 7, or is an xception of three 3x3;
    4**20 networks.

    widths: of the stem and the four stages. repeats: blocks of a stage. last: before the logits."""

    def build() -> nn.Module:
        layers = [*conv_bn(3, widths[0], 3, 2), nn.ReLU()]
        inputs = widths[0]
        for outputs, number in zip(widths[1:], repeats, strict=True):
            for block in range(number):
                stride = 1 if block else 2
                kernels = {f"k{k}": Shuffle(inputs, outputs, stride, k) for k in (3, 5, 7)}
                layers.append(Choice({**kernels, "xception": Shuffle(inputs, outputs, stride)}))
                inputs = outputs
        layers += [*conv_bn(inputs, last), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(last, classes, bias=False))

    about = "single path one-shot (Guo et al., ECCV 2020): twenty choices of ShuffleNetV2 blocks"
    return SearchSpace(build, name="spos", input_shape=(3, image, image), about=about)


class Shuffle(nn.Module):
    """A block of ShuffleNetV2 (Ma et al., ECCV 2018, section 3): every second channel goes through
    the layers, the others pass by. At stride 2 all go both ways. kernel: None for an xception."""

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int | None = None) -> None:
        super().__init__()
        inputs = inputs // 2 if stride == 1 else inputs
        middle, rest = outputs // 2, outputs - inputs
        size = kernel or 3
        if kernel:
            layers = [*conv_bn(inputs, middle), nn.ReLU()]
            layers += [*conv_bn(middle, middle, size, stride, middle)]
            layers += [*conv_bn(middle, rest), nn.ReLU()]
        else:
            layers = [*conv_bn(inputs, inputs, 3, stride, inputs), *conv_bn(inputs, middle)]
            layers += [nn.ReLU(), *conv_bn(middle, middle, 3, 1, middle), *conv_bn(middle, middle)]
            layers += [nn.ReLU(), *conv_bn(middle, middle, 3, 1, middle), *conv_bn(middle, rest)]
            layers += [nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.short = None
        if stride == 2:
            depthwise = conv_bn(inputs, inputs, size, stride, inputs)
            self.short = nn.Sequential(*depthwise, *conv_bn(inputs, inputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if self.short is None:
            passing, x = x[:, 0::2], x[:, 1::2]
        else:
            passing = self.short(x)
        return torch.cat([passing, self.layers(x)], 1)
