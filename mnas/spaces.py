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

    def convolution(inputs: int, outputs: int) -> Choice:
        return Choice(
            {
                "conv3x3": nn.Conv2d(inputs, outputs, 3, padding=1),
                "conv5x5": nn.Conv2d(inputs, outputs, 5, padding=2),
            }
        )

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

    return SearchSpace(build, name="mil4", input_shape=(1, 28, 28))


SPACES: dict[str, Callable[..., SearchSpace]] = {"mil4": mil4}


def get(name: str) -> SearchSpace:
    """A named space with its default widths. Raises ValueError that lists the names."""
    if name not in SPACES:
        raise ValueError(f"space {name!r} is unknown; expected one of {', '.join(SPACES)}")
    return SPACES[name]()
