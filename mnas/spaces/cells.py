"""NAS-Bench-201: one cell of six decisions, in fifteen places."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mnas.space.choice import Choice
from mnas.space.decision import Decision
from mnas.space.search_space import SearchSpace
from mnas.spaces.remade import remade

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


@remade
def nas_bench_201(
    width: int = 16, cells: int = 5, classes: int = 10, image: int = 32
) -> SearchSpace:
    """NAS-Bench-201 (Dong and Yang, ICLR 2020): a cell of four nodes, each the sum of
    an operation on every earlier one. Decision `edge01` is that from node 0 to node 1.

    15,625 paths, each a network of its own; cells that compute the same (an edge of zeros, nodes in
    another order) are not found. Costs are as published, but for the bias of the classifier, which
    they count as ten multiply-accumulates.

    width: channels of the first of three stages. cells: of a stage."""

    def build() -> nn.Module:
        decisions = [Decision(f"edge{a}{b}", tuple(OPERATIONS)) for a, b in EDGES]
        layers = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        for stage in range(3):
            channels = width * 2**stage
            layers += [Reduction(channels // 2)] if stage else []
            layers += [Cell(channels, decisions) for _ in range(cells)]
        head = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, *head, nn.Linear(channels, classes))

    about = "NAS-Bench-201 (Dong and Yang, ICLR 2020): a cell of six operations, in fifteen places"
    return SearchSpace(build, name="nas_bench_201", input_shape=(3, image, image), about=about)


class Zero(nn.Module):
    """Nothing arrives."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: Zero(),
    "skip_connect": lambda width: nn.Identity(),
    "nor_conv_1x1": lambda width: _convolution(width, width, 1),
    "nor_conv_3x3": lambda width: _convolution(width, width, 3),
    "avg_pool_3x3": lambda width: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}


class Cell(nn.Module):
    def __init__(self, width: int, decisions: list[Decision]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            Choice({name: make(width) for name, make in OPERATIONS.items()}, decision)
            for decision in decisions
        )

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for node in (1, 2, 3):
            into = [(a, edge) for (a, b), edge in zip(EDGES, self.edges, strict=True) if b == node]
            nodes.append(sum(edge(nodes[a]) for a, edge in into))
        return nodes[-1]


class Reduction(nn.Module):
    """A residual block of twice the channels at half the size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(width, 2 * width, 3, 2), _convolution(2 * width, 2 * width, 3)
        )
        self.short = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, 2 * width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.short(x) + self.layers(x)
