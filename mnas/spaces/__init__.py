"""Named search spaces, a family a file."""

from __future__ import annotations

from collections.abc import Callable

from mnas.space.search_space import SearchSpace
from mnas.spaces.benchmarks import nb_macro
from mnas.spaces.big import bignas
from mnas.spaces.blocks import Residual
from mnas.spaces.cells import nas_bench_201
from mnas.spaces.channels import channel_macro_mobilenet, channel_macro_resnet
from mnas.spaces.darts import darts
from mnas.spaces.mnist import mil4, mil4_nested, mil9, plain
from mnas.spaces.once_for_all import ofa_mbv3
from mnas.spaces.proxyless import proxyless
from mnas.spaces.single_path import spos
from mnas.spaces.sums import bender
from mnas.spaces.transformers import autoformer_tiny

__all__ = [
    "SPACES",
    "Residual",
    "autoformer_tiny",
    "bender",
    "bignas",
    "channel_macro_mobilenet",
    "channel_macro_resnet",
    "darts",
    "get",
    "mil4",
    "mil4_nested",
    "mil9",
    "nas_bench_201",
    "nb_macro",
    "ofa_mbv3",
    "plain",
    "proxyless",
    "spos",
]

SPACES: dict[str, Callable[..., SearchSpace]] = {
    "mil4": mil4,
    "mil4_nested": mil4_nested,
    "mil9": mil9,
    "nb_macro": nb_macro,
    "plain": plain,
    "channel_macro_mobilenet": channel_macro_mobilenet,
    "channel_macro_resnet": channel_macro_resnet,
    "ofa_mbv3": ofa_mbv3,
    "nas_bench_201": nas_bench_201,
    "spos": spos,
    "autoformer_tiny": autoformer_tiny,
    "proxyless": proxyless,
    "bignas": bignas,
    "darts": darts,
    "bender": bender,
}


def get(name: str, resolution: int | None = None) -> SearchSpace:
    """A named space with its default widths. resolution: pixels a side of the images that it is to
    take; None for its own. Raises ValueError that lists the names."""
    if not isinstance(name, str) or name not in SPACES:
        raise ValueError(
            f"space {name!r} is unknown; expected one of {', '.join(SPACES)}, or "
            "path/to/file.py:function"
        )
    space = SPACES[name]()
    return space if resolution is None else space.at(resolution)
