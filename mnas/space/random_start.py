"""Whether a space begins at random, or with weights that its function has loaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mnas.space.choice import Choice
from mnas.space.search_space import SearchSpace


def check_random(space: SearchSpace, model: nn.Module) -> None:
    """Raise ValueError if a model of the space has weights that are given: the same, though not
    those of an initialisation by rule, in another model that was built from another random state.

    Constants, identities and tables of few values are no such weights, and neither are parameters
    of a user's own layers that have no random start by `reset_parameters`."""
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(int(torch.randint(2**62, ())))
        other = dict(space.build().named_parameters())
    finally:
        torch.set_rng_state(before)
    for name, parameter in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        drawn = isinstance(layer, Choice) or hasattr(layer, "reset_parameters")
        if drawn and name in other and _given(parameter.detach(), other[name].detach()):
            raise ValueError(
                f"space {space.name}: {name} is the same in every model that its function builds, "
                "whatever the seed, so that it does not begin at random; give "
                "SearchSpace(..., fresh=FUNCTION) a function that loads no weights and sets no "
                "seed, or fresh=build if this is the start that is meant"
            )


def _given(ours: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, of mostly different values."""
    if ours.is_meta or not torch.equal(ours, other):
        return False
    return bool(ours.unique().numel() > max(2, ours.numel() / 2))
