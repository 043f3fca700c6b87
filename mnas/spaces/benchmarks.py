"""NAS-Bench-Macro: a published benchmark of inverted residuals."""

from __future__ import annotations

from torch import nn

from mnas.space.choice import Choice
from mnas.space.search_space import SearchSpace
from mnas.spaces.blocks import Residual, conv_bn, inverted_residual
from mnas.spaces.remade import remade

__all__ = ["Residual", "nb_macro"]


@remade
def nb_macro() -> SearchSpace:
    """NAS-Bench-Macro (Su et al., CVPR 2021, "Prioritized Architecture Sampling with Monto-Carlo
    Tree Search"): eight choices of identity or inverted residual on images of 3x32x32, 6,561
    networks."""

    def choice(inputs: int, outputs: int, stride: int) -> Choice:
        keeps = stride == 1 and inputs == outputs
        return Choice(
            {
                "identity": nn.Identity()
                if keeps
                else nn.Sequential(*conv_bn(inputs, outputs, 1, stride)),
                "mb3_k3": inverted_residual(inputs, 3 * inputs, outputs, 3, stride),
                "mb6_k5": inverted_residual(inputs, 6 * inputs, outputs, 5, stride),
            }
        )

    def build() -> nn.Module:
        layers, width = [*conv_bn(3, 32, 3), nn.ReLU()], 32
        for repeats in (2, 3, 3):
            layers.append(choice(width, 2 * width, 2))
            width *= 2
            layers += [choice(width, width, 1) for _ in range(repeats - 1)]
        head = [
            *conv_bn(width, 1280),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(1280, 10),
        ]
        return nn.Sequential(*layers, *head)

    about = "NAS-Bench-Macro (Su et al., CVPR 2021): eight choices of identity or inverted residual"
    return SearchSpace(build, name="nb_macro", input_shape=(3, 32, 32), about=about)
