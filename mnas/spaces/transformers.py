"""AutoFormer: one width of all layers, their number, and the heads and ratio of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnas.space.choice import Choice
from mnas.space.decision import Decision
from mnas.space.search_space import SearchSpace
from mnas.spaces.remade import remade

LAYOUT = {"qkv.weight": "(3 width) inputs", "qkv.bias": "(3 width)"}


@remade
def autoformer_tiny(
    embeds: Sequence[int] = (192, 216, 240),
    depths: Sequence[int] = (12, 13, 14),
    heads: Sequence[int] = (3, 4),
    ratios: Sequence[float] = (3, 3.5, 4),
    head: int = 64,
    patch: int = 16,
    classes: int = 1000,
    image: int = 224,
) -> SearchSpace:
    """AutoFormer-T (Chen et al., ICCV 2021), without relative positions: `embed` is the width of
    all layers, `depth` their number, `heads{i}` and `ratio{i}` belong to layer i. The ratio 3 is
    not in the authors' supernet; with it there are 3 * (6**12 + 6**13 + 6**14) = 2.808e11 networks,
    of which that of 192, 12, 3 and 4 is DeiT-Ti (Touvron et al., ICML 2021).

    head: width of an attention head."""

    def first(embed: int, depth: int) -> Embedding:  # depth: so that names begin with both
        return Embedding(embed, image // patch, patch)

    def layer(number: int, embed: int, of_heads: int, ratio: float, depth: int) -> Layer | None:
        return Layer(embed, of_heads, head, int(ratio * embed)) if number < depth else None

    def build() -> nn.Module:
        embed, depth = Decision("embed", embeds), Decision("depth", depths)
        layers = [Choice(first, embed, depth, nested=True)]
        for number in range(max(depths)):
            decisions = embed, Decision(f"heads{number}", heads), Decision(f"ratio{number}", ratios)
            last = depth if number >= min(depths) else max(depths)  # the first are always there
            make = partial(layer, number)
            layers.append(Choice(make, *decisions, last, nested=True, layout=LAYOUT))
        return nn.Sequential(*layers, Choice(Classifier, embed, classes, nested=True))

    about = "AutoFormer-T (Chen et al., ICCV 2021): width, depth, heads and ratios of a transformer"
    return SearchSpace(build, name="autoformer_tiny", input_shape=(3, image, image), about=about)


class Embedding(nn.Module):
    """(B, 3, H, W) -> (B, 1 + patches, width): a class token and square patches, with positions."""

    def __init__(self, width: int, side: int, patch: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + side**2, width))
        for parameter in (self.token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.positions


class Layer(nn.Module):
    """Attention and two linear layers, each added to its input; (B, T, width) -> the same."""

    def __init__(self, width: int, heads: int, head: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * heads * head)
        self.after = nn.Linear(heads * head, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, T, head)
        x = x + self.after(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Classifier(nn.Module):
    """Of the class token."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x)[:, 0])
