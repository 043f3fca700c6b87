"""What the published spaces are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Sequential):
    """x + layers(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Nothing(nn.Module):
    """Zeros of the size of its input, or of every stride-th pixel."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def conv_bn(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the size of its input at stride 1, and BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def inverted_residual(
    inputs: int,
    hidden: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """A depthwise convolution between two of 1x1 (Sandler et al., CVPR 2018, MobileNetV2, section
    3.3); its input is added where that has the size of the output."""
    kind = Residual if stride == 1 and inputs == outputs else nn.Sequential
    return kind(
        *conv_bn(inputs, hidden),
        activation(),
        *conv_bn(hidden, hidden, kernel, stride, groups=hidden),
        activation(),
        *conv_bn(hidden, outputs),
    )


def divisible(width: float, by: int = 8) -> int:
    """The width rounded to a multiple, never below nine tenths of it, as MobileNets have it."""
    rounded = max(by, int(width + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * width else rounded


class Excite(nn.Sequential):
    """x times a gate for each channel, from their means (Hu et al., CVPR 2018)."""

    def __init__(self, width: int) -> None:
        inner = divisible(width / 4)
        down, up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        super().__init__(nn.AdaptiveAvgPool2d(1), down, nn.ReLU(), up, nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class Depthwise(nn.Module):
    """A depthwise convolution whose kernel is made of a larger one: a 5x5 kernel is a 25x25 matrix
    times the centre of the 7x7, a 3x3 one a 9x9 matrix times the centre of that 5x5."""

    def __init__(self, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        size = 7 if kernel == 7 else 5
        self.weight = nn.Parameter(torch.empty(width, 1, size, size))
        nn.init.kaiming_uniform_(self.weight, 5**0.5)
        self.to5 = nn.Parameter(torch.eye(25)) if kernel < 7 else None
        self.to3 = nn.Parameter(torch.eye(9)) if kernel < 5 else None

    def made(self) -> Tensor:
        """The kernel (width, 1, kernel, kernel)."""
        weight = self.weight
        for matrix in (self.to5, self.to3):
            if matrix is not None:
                side = int(len(matrix) ** 0.5)
                margin = (weight.shape[-1] - side) // 2
                centre = weight.narrow(2, margin, side).narrow(3, margin, side)
                weight = F.linear(centre.flatten(1), matrix).view(-1, 1, side, side)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            x, self.made(), None, self.stride, self.kernel // 2, groups=len(self.weight)
        )

    def bake(self) -> nn.Conv2d:
        """The plain layer that computes the same."""
        width = len(self.weight)
        conv = nn.Conv2d(
            width, width, self.kernel, self.stride, self.kernel // 2, groups=width, bias=False
        )
        conv.weight = nn.Parameter(self.made().detach().clone())
        return conv
