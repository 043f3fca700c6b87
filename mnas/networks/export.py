"""From a path to a plain network: a compact module without a trace of mnas."""

from __future__ import annotations

import torch
from torch import nn

from mnas.space.given import GivenPath
from mnas.space.random_start import check_random
from mnas.space.search_space import SearchSpace
from mnas.space.skeleton import compact, substitute
from mnas.space.supernet import Supernet


def export(net: Supernet, path: GivenPath) -> nn.Module:
    """The path as a standalone module: the user's own classes, contiguous copies of the weights, no
    mnas inside.

    Mode (train or eval), dtype and device are those of the supernet, which is not changed. The
    result is the same for both executions. A layer with a method `bake()` is replaced by the module
    that this returns: a plain one in place of one whose weights are computed of others."""
    with torch.enable_grad():  # so that a view knows whether its parameter is trained
        return baked(compact(net.along(path, "sliced")))


@torch.no_grad()
def baked(module: nn.Module) -> nn.Module:
    """The module with plain layers in place of those that can `bake()`."""
    plain = {
        layer: layer.bake() for layer in module.modules() if callable(getattr(layer, "bake", None))
    }
    return substitute(module, plain) if plain else module


def standalone(space: SearchSpace, path: GivenPath) -> nn.Module:
    """The same architecture with a random start, decided by `torch.manual_seed`; plain classes, no
    mnas inside.

    With the same seed it starts from the weights that `Supernet(space)` has on this path. Raises
    ValueError for a space of pretrained weights that nobody has told how to begin at random
    (`SearchSpace(..., fresh=)`): to notice, it builds a second model, once a space.
    """
    fresh = space.fresh()
    net = Supernet(fresh)
    if fresh is space and not space.begins_at_random:
        check_random(space, net.model)
        space.begins_at_random = True
    return export(net, path)
