"""MaskedOptimizer: any elementwise optimizer of torch.optim, stepping the active regions and nothing else.

A zeroed gradient does not freeze an entry: momentum keeps moving it, weight decay shrinks it, Adam decays its moments
and advances its step count. Stock torch leaves a parameter alone only when `grad is None`. So the wrapped optimizer is
given one tensor per candidate, a view of the merged parameter that shares its memory, and the gradient of an inactive
candidate's view is None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mnas.choice import Choice
from mnas.masking import ActiveSet

SUPPORTED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)


class MaskedOptimizer(torch.optim.Optimizer):
    """`MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9)`.

    optimizer_class: one of SGD, Adam, AdamW, RMSprop. module: a Supernet, or any module that contains choices.
    options: the optimizer's own. `inner` is the wrapped optimizer; its state holds one entry per candidate that was
    ever active, in the candidate's own shape and with its own step count.

    Raises ValueError for another optimizer, and whatever the optimizer raises for its options.
    """

    def __init__(self, optimizer_class: type[torch.optim.Optimizer], module: nn.Module, **options: Any) -> None:
        if optimizer_class not in SUPPORTED:
            names = ", ".join(supported.__name__ for supported in SUPPORTED)
            raise ValueError(f"optimizer {getattr(optimizer_class, '__name__', optimizer_class)} is not one of {names}")
        if options.get("differentiable"):
            raise ValueError("differentiable=True is not supported: the wrapped optimizer steps detached views")
        if optimizer_class is torch.optim.SGD and options.get("fused") and options.get("momentum"):
            # Stock torch fails there as well: its kernel wants all momentum buffers of a group or none.
            raise ValueError("fused SGD cannot begin momentum at different steps, as paths do; use foreach=True")
        active_sets = {
            id(choice._parameters[key]): active_set
            for choice in module.modules()
            if isinstance(choice, Choice)
            for key, active_set in choice.active_sets.items()
        }
        parameters = list(module.parameters())
        self._merged = [_Pieces(p, active_sets[id(p)]) for p in parameters if id(p) in active_sets]
        pieces = {id(merged.parameter): list(merged.pieces.values()) for merged in self._merged}
        leaves = [leaf for p in parameters for leaf in pieces.get(id(p), [p])]
        self.inner = optimizer_class(leaves, **options)
        super().__init__(parameters, self.inner.defaults)
        self._pull()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset gradients, and with them what is active."""
        super().zero_grad(set_to_none)
        for merged in self._merged:
            merged.active_set.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of every active region and of every other parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._push()
        try:
            for merged in self._merged:
                merged.lend_gradients()
            self.inner.step()
        finally:
            for merged in self._merged:
                merged.return_gradients()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state: one entry per candidate that was ever active."""
        self._push()
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)
        self._pull()

    def _push(self) -> None:
        """Options, which schedulers and users change on this optimizer, to the wrapped one."""
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({key: value for key, value in outer.items() if key != "params"})

    def _pull(self) -> None:
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update({key: value for key, value in inner.items() if key != "params"})
        self.state = self.inner.state


class _Pieces:
    """One merged parameter as the tensors that the wrapped optimizer steps, one a candidate."""

    def __init__(self, parameter: nn.Parameter, active_set: ActiveSet) -> None:
        self.parameter = parameter
        self.active_set = active_set
        self.pieces = {c: r.view(parameter.detach()) for c, r in enumerate(active_set.regions) if r is not None}

    def lend_gradients(self) -> None:
        if self.parameter.grad is None:
            return
        for candidate in self.active_set.active:
            region, piece = self.active_set.regions[candidate], self.pieces[candidate]
            # `module.to(...)` gives a parameter new memory; the piece must follow or it would update the old one.
            piece.data = region.view(self.parameter.detach())
            piece.grad = region.view(self.parameter.grad)

    def return_gradients(self) -> None:
        for piece in self.pieces.values():
            piece.grad = None
