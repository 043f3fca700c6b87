"""Named search spaces."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mnas.choice import Choice
from mnas.space import SearchSpace


def mil4(channels: tuple[int, int] = (16, 32), hidden: int = 128) -> SearchSpace:
    """Two convolutions, each 3x3 or 5x5, on pictures of 1x28x28: four networks.

    channels: output channels of the two convolutions. hidden: width of the layer before the logits.
    """
    return _two_convolutions("mil4", (3, 5), channels, hidden, nested=False)


def mil4_nested(channels: tuple[int, int] = (16, 32), hidden: int = 128) -> SearchSpace:
    """`mil4` in which the 3x3 kernel is the centre of the 5x5 one."""
    return _two_convolutions("mil4_nested", (3, 5), channels, hidden, nested=True)


def plain(candidates: int = 8, channels: tuple[int, int] = (16, 32), hidden: int = 128) -> SearchSpace:
    """`mil4` with N candidates a choice, 3x3 and 5x5 in turn, each with weights of its own: for measuring how things
    grow with the number of candidates. Names: c0, c1, ..."""
    kernels = tuple(3 + 2 * (number % 2) for number in range(candidates))
    return _two_convolutions("plain", kernels, channels, hidden, nested=False)


def _two_convolutions(
    name: str, kernels: tuple[int, ...], channels: tuple[int, int], hidden: int, nested: bool
) -> SearchSpace:
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

    return SearchSpace(build, name=name, input_shape=(1, 28, 28))


SPACES: dict[str, Callable[..., SearchSpace]] = {"mil4": mil4, "mil4_nested": mil4_nested, "plain": plain}


def get(name: str) -> SearchSpace:
    """A named space with its default widths. Raises ValueError that lists the names."""
    if name not in SPACES:
        raise ValueError(f"space {name!r} is unknown; expected one of {', '.join(SPACES)}")
    return SPACES[name]()
