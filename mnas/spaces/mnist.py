"""Small spaces on MNIST: two choices of a kernel or of a depth."""

from __future__ import annotations

from torch import nn

from mnas.space.choice import Choice
from mnas.space.search_space import SearchSpace
from mnas.spaces.remade import remade


@remade
def mil4(channels: tuple[int, int] = (16, 32), hidden: int = 128) -> SearchSpace:
    """Two convolutions, each 3x3 or 5x5, on images of 1x28x28: four networks.

    channels: output channels of the two convolutions. hidden: width of the layer before the logits.
    """
    about = "two convolutions, each 3x3 or 5x5"
    return _two_convolutions("mil4", (3, 5), channels, hidden, nested=False, about=about)


@remade
def mil4_nested(channels: tuple[int, int] = (16, 32), hidden: int = 128) -> SearchSpace:
    """`mil4` in which the 3x3 kernel is the centre of the 5x5 one."""
    about = "mil4 in which the 3x3 kernel is the centre of the 5x5 one"
    return _two_convolutions("mil4_nested", (3, 5), channels, hidden, nested=True, about=about)


@remade
def plain(
    candidates: int = 8, channels: tuple[int, int] = (16, 32), hidden: int = 128
) -> SearchSpace:
    """`mil4` with N candidates a choice, 3x3 and 5x5 in turn, each with weights of its own: for
    measuring how things grow with the number of candidates. Names: c0, c1, ..."""
    kernels = tuple(3 + 2 * (number % 2) for number in range(candidates))
    about = (
        f"mil4 with {candidates} candidates a choice, for measuring how things grow with their "
        "number"
    )
    return _two_convolutions("plain", kernels, channels, hidden, nested=False, about=about)


def _two_convolutions(
    name: str,
    kernels: tuple[int, ...],
    channels: tuple[int, int],
    hidden: int,
    nested: bool,
    about: str,
) -> SearchSpace:
    _check_widths(name, channels, hidden)
    names = [f"c{i}" if name == "plain" else f"conv{k}x{k}" for i, k in enumerate(kernels)]

    def convolution(inputs: int, outputs: int) -> Choice:
        layers = [nn.Conv2d(inputs, outputs, k, padding=k // 2) for k in kernels]
        return Choice(dict(zip(names, layers, strict=True)), nested=nested)

    def build() -> nn.Module:
        return nn.Sequential(
            convolution(1, channels[0]),  # (B, 1, 28, 28) -> (B, C0, 28, 28)
            nn.ReLU(),
            nn.MaxPool2d(2),
            convolution(channels[0], channels[1]),  # (B, C0, 14, 14) -> (B, C1, 14, 14)
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(channels[1] * 7 * 7, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 10),
        )

    return SearchSpace(build, name=name, input_shape=(1, 28, 28), about=about)


def _check_widths(name: str, channels: tuple[int, int], hidden: int = 1) -> None:
    widths = (*channels, hidden) if isinstance(channels, (tuple, list)) else (channels,)
    if len(widths) != 3 or any(type(width) is not int or width < 1 for width in widths):
        raise ValueError(
            f"{name}: channels={channels!r}, hidden={hidden!r}; expected two and one whole "
            "numbers above 0"
        )


@remade
def mil9(channels: tuple[int, int] = (16, 32)) -> SearchSpace:
    """Two blocks of one, two or three Conv3x3-BN-ReLU on images of 1x28x28: nine networks.

    A shallow block is the beginning of the deep one, so depth is nested; each depth has running
    statistics of its own."""

    _check_widths("mil9", channels)

    def unit(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]

    def block(width: int) -> Choice:
        depths = {
            f"d{n}": nn.Sequential(*(layer for _ in range(n) for layer in unit(width, width)))
            for n in (1, 2, 3)
        }
        return Choice(depths, nested=True)

    def build() -> nn.Module:
        return nn.Sequential(
            *unit(1, channels[0]),  # (B, 1, 28, 28) -> (B, C0, 28, 28)
            block(channels[0]),
            *unit(*channels, stride=2),  # -> (B, C1, 14, 14)
            block(channels[1]),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels[1], 10),
        )

    about = "two blocks of one, two or three Conv3x3-BN-ReLU; depth is nested"
    return SearchSpace(build, name="mil9", input_shape=(1, 28, 28), about=about)
