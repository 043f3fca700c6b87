"""Channel-Bench-Macro: seven widths, each of several layers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from mnas.space.choice import Choice
from mnas.space.decision import Decision
from mnas.space.search_space import SearchSpace
from mnas.spaces.blocks import Residual, conv_bn, inverted_residual
from mnas.spaces.remade import remade

DIGITS = (1, 2, 3, 4)


@remade
def channel_macro_mobilenet(
    widths: Sequence[int] = (128, 768, 768, 768, 256, 1536, 1024),
    classes: int = 10,
    image: int = 32,
) -> SearchSpace:
    """Channel-Bench-Macro with inverted residuals (Su et al., TPAMI 2022, "Searching for Network
    Width with Bilaterally Coupled Network"), 16,384 networks on CIFAR-10.

    A decision c0 ... c6 is a quarter to four of the largest width. Published names are its digits:
    `space.parse("-".join("1212344"))`, and back
    `"".join(map(str, space.values(path).values()))`.

    widths: the largest, multiples of four. image: side of the images."""

    def build() -> nn.Module:
        choice = _choices(widths)
        return nn.Sequential(
            choice(_stem, 0),  # (B, 3, 32, 32) -> (B, c0, 16, 16)
            choice(inverted_residual, 0, 1, 0),
            choice(inverted_residual, 0, 2, 0),
            choice(inverted_residual, 0, 3, 4, stride=2),  # -> (B, c4, 8, 8)
            choice(inverted_residual, 4, 5, 4),
            choice(_last, 4, 6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            choice(nn.Linear, 6, out_features=classes),
        )

    about = "Channel-Bench-Macro (Su et al., TPAMI 2022): seven widths, inverted residuals"
    shape = (3, image, image)
    return SearchSpace(build, name="channel_macro_mobilenet", input_shape=shape, about=about)


@remade
def channel_macro_resnet(
    widths: Sequence[int] = (256, 256, 256, 512, 512, 512, 512), classes: int = 10, image: int = 32
) -> SearchSpace:
    """Channel-Bench-Macro with blocks of two 3x3 convolutions; otherwise as
    `channel_macro_mobilenet`."""

    def build() -> nn.Module:
        choice = _choices(widths)
        return nn.Sequential(
            choice(_stem, 0),  # (B, 3, 32, 32) -> (B, c0, 16, 16)
            choice(_basic, 0, 1, 0),
            nn.ReLU(),
            choice(_basic, 0, 2, 0),
            nn.ReLU(),
            choice(_basic, 0, 3, 4, stride=2),  # -> (B, c4, 8, 8)
            nn.ReLU(),
            choice(_basic, 4, 5, 4),
            nn.ReLU(),
            choice(_basic, 4, 6, 4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            choice(nn.Linear, 4, out_features=classes),
        )

    about = "Channel-Bench-Macro (Su et al., TPAMI 2022): seven widths, residual blocks"
    shape = (3, image, image)
    return SearchSpace(build, name="channel_macro_resnet", input_shape=shape, about=about)


def _choices(widths: Sequence[int]) -> Callable[..., Choice]:
    """A function that declares a layer of some of seven widths, by their numbers."""
    if len(widths) != 7 or any(width < 4 or width % 4 for width in widths):
        raise ValueError(f"widths={tuple(widths)}; expected seven multiples of 4")
    decisions = [Decision(f"c{number}", DIGITS) for number in range(7)]

    def choice(make: Callable[..., nn.Module], *numbers: int, **options: int) -> Choice:
        def layer(*digits: int) -> nn.Module:
            of_largest = zip(digits, numbers, strict=True)
            return make(*(digit * widths[n] // 4 for digit, n in of_largest), **options)

        return Choice(layer, *(decisions[n] for n in numbers), nested=True)

    return choice


def _stem(outputs: int) -> nn.Module:
    return nn.Sequential(*conv_bn(3, outputs, 3, 2), nn.ReLU())


def _last(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(*conv_bn(inputs, outputs), nn.ReLU())


def _basic(inputs: int, hidden: int, outputs: int, stride: int = 1) -> nn.Module:
    """The input is added to what keeps its size."""
    kind = Residual if stride == 1 else nn.Sequential
    return kind(*conv_bn(inputs, hidden, 3, stride), nn.ReLU(), *conv_bn(hidden, outputs, 3))
