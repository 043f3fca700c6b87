"""What networks are called with: images, or several arguments, also by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten


class Inputs(NamedTuple):
    """What a model is called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: Any) -> Inputs:
        """A tensor, a tuple of arguments, or a dict of them by name."""
        if isinstance(example, Mapping):
            return cls((), dict(example))
        return cls(tuple(example) if isinstance(example, (tuple, list)) else (example,), {})

    def drawn(self, dtype: torch.dtype) -> Inputs:
        """With random numbers in place of floating ones."""

        def draw(tensor: Tensor) -> Tensor:
            floats = tensor.is_floating_point()
            return torch.randn_like(tensor, dtype=dtype) if floats else tensor

        args, kwargs = tree_map_only(Tensor, draw, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    def to(self, device: torch.device | str) -> Inputs:
        moved = tree_map_only(Tensor, lambda t: t.to(device), (self.args, dict(self.kwargs)))
        return Inputs(*moved)

    def describe(self) -> str:
        named = [*self.args, *self.kwargs.values()]
        return ", ".join(_described(value) for value in named)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    sizes = "x".join(map(str, value.shape[1:])) or "one number"
    return sizes if value.is_floating_point() else f"{sizes} of {str(value.dtype)[6:]}"


def called(module: nn.Module, x: Any) -> Any:
    """What a module puts out for inputs, or for anything else as its one argument."""
    return module(*x.args, **x.kwargs) if isinstance(x, Inputs) else module(x)


def examples(name: str, given: Any) -> tuple[Tensor | Inputs, int]:
    """What a user gives for many examples at a time, and how many these are: a tensor (N, ...), or
    a tuple of arguments or a dict of them by name, whose tensors are all (N, ...).

    Raises ValueError for anything else."""
    if isinstance(given, Tensor):
        return given, len(given)
    if not isinstance(given, (tuple, Mapping)):
        raise ValueError(
            f"{name} are a {type(given).__name__}; expected a torch.Tensor, or a tuple or dict of "
            "what the network is called with"
        )
    found = Inputs.of(given)
    sizes = [len(t) if t.ndim else 0 for t in tree_leaves(tuple(found)) if isinstance(t, Tensor)]
    if len(set(sizes)) != 1:
        raise ValueError(
            f"{name} have tensors of {sizes} rows; expected as many in each, one for each example"
        )
    return found, sizes[0]


def divided(x: Tensor | Inputs, cut: Callable[[Tensor], Sequence[Tensor]]) -> list[Any]:
    """Batches: each tensor is cut, what else there is goes to all."""
    if isinstance(x, Tensor):
        return list(cut(x))
    leaves, structure = tree_flatten(x)
    pieces = [cut(leaf) if isinstance(leaf, Tensor) else repeat(leaf) for leaf in leaves]
    return [tree_unflatten(list(some), structure) for some in zip(*pieces, strict=False)]
