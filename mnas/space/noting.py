"""How a backward pass comes to know which candidates it runs through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mnas.freeze.active import Activity, follow


def followed(tensors: Iterable[Tensor]) -> list[Activity | None]:
    """None for what torch.func puts in the place of parameters: that is not ours to follow."""
    return [follow(t, of_paths=True) if isinstance(t, nn.Parameter) else None for t in tensors]


def reach(activities: Iterable[Activity | None]) -> None:
    """The backward pass under way has run a path with these parameters."""
    for activity in activities:
        if activity is not None:
            activity.reach()


class Ours:
    """A hook of ours, which a copy of its module does not have."""

    def __reduce__(self) -> tuple[type[Ours], tuple[()]]:
        return Ours, ()

    def __call__(self, *_: Any) -> None:
        """Nothing."""


class Noting(Ours):
    """A hook on a candidate's module: after a forward pass, however it was called, the backward
    pass through its outputs reaches the parameters that are its own."""

    def __init__(self) -> None:
        self.activities: list[Activity | None] = []

    def __call__(self, _: nn.Module, __: Any, output: Any) -> None:
        if not self.activities or torch._C._are_functorch_transforms_active():
            return
        for tensor in (output,) if isinstance(output, Tensor) else tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(self._reach)

    def _reach(self, _: Tensor) -> None:
        reach(self.activities)


def noting(module: nn.Module) -> Noting:
    """The hook on a candidate's module, which gets one if it has none."""
    for hook in module._forward_hooks.values():
        if isinstance(hook, Noting):
            return hook
    hook = Noting()
    module.register_forward_hook(hook)
    return hook
