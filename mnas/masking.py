"""Selecting a candidate out of a merged tensor, and keeping the gradient of everything else at zero.

A merged tensor is one-dimensional; a candidate owns a `Region` of it. The region is the one selection rule:
the forward view, the mask, the gradient, the optimizer's slice and the exported copy all come from `Region.view`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Region(NamedTuple):
    """A strided box inside a flat tensor: where one candidate's parameter lives in the merged one."""

    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, merged: Tensor) -> Tensor:
        """The region of a flat contiguous tensor (N,) as a view of shape `size`; no copy."""
        return merged.as_strided(self.size, self.stride, merged.storage_offset() + self.offset)

    def mask(self, merged: Tensor) -> Tensor:
        """Boolean tensor (N,), True on the region."""
        mask = torch.zeros_like(merged, dtype=torch.bool)
        self.view(mask).fill_(True)
        return mask


class ActiveSet:
    """Which candidates of one merged parameter are active: those a backward pass has reached since its
    gradient was last reset.

    This is the rule by which separate modules behave in stock torch (`grad is None` where no path went), and it is
    defined by the paths: a candidate whose gradient happens to be all zeros is active, one that an L2 penalty on the
    whole tensor touches is not. Two hooks on the parameter do the work:

        after every use of the parameter in a backward pass has delivered its gradient g
            g     <- g on the regions of active candidates and of those selected in this pass, 0 elsewhere
        after g has been accumulated into parameter.grad
            active <- active + selected in this pass
    """

    def __init__(self, regions: tuple[Region | None, ...]) -> None:
        self.regions = regions
        self.active: set[int] = set()
        self._selected: set[int] = set()  # reached in the running backward pass
        self._arriving: set[int] = set()  # the same, once the parameter's own gradient is complete
        self._watched: weakref.ref[nn.Parameter] | None = None
        self._handles: list[Any] = []

    def __reduce__(self) -> tuple[type[ActiveSet], tuple[Any, ...]]:
        # Copies and pickles start afresh, because torch does not carry hooks over to a copied parameter.
        return ActiveSet, (self.regions,)

    def clear(self) -> None:
        """Forget what was active; for callers that reset the gradient to zeros instead of None."""
        self.active.clear()
        self._selected.clear()

    def select(self, merged: Tensor, candidate: int) -> Tensor | None:
        """Sliced execution: the candidate's view of the merged tensor, differentiable; None if it has no part in it."""
        region = self.regions[candidate]
        if region is None:
            return None
        if self._watch(merged):
            return _Select.apply(merged, region, self, candidate)
        return region.view(merged)

    def mask(self, merged: Tensor, candidate: int) -> Tensor:
        """Masked execution: `merged * mask` (N,), zero outside the candidate's region, differentiable."""
        masked = merged * self.regions[candidate].mask(merged)
        if self._watch(merged):
            masked.register_hook(lambda _: self.reach(candidate))
        return masked

    def _watch(self, parameter: Tensor) -> bool:
        """Install the hooks on a parameter that is being trained; whether there is anything to watch."""
        # torch.func.functional_call may put any tensor in the place of the parameter: that one is not ours.
        if not (isinstance(parameter, nn.Parameter) and parameter.requires_grad and torch.is_grad_enabled()):
            return False
        if self._watched is not None and self._watched() is parameter:
            return True
        for handle in self._handles:
            handle.remove()
        self.clear()
        self._watched = weakref.ref(parameter)
        self._handles = [
            parameter.register_hook(self._zero_inactive),
            parameter.register_post_accumulate_grad_hook(self._commit),
        ]
        return True

    def reach(self, candidate: int) -> None:
        """Note that the running backward pass delivers a gradient to the candidate."""
        self._selected.add(candidate)

    def _zero_inactive(self, grad: Tensor) -> Tensor:
        if self._watched().grad is None:
            self.active.clear()
        self._arriving, self._selected = self._selected, set()
        return keep(grad, [self.regions[c] for c in self.active | self._arriving])

    def _commit(self, _: Tensor) -> None:
        self.active |= self._arriving


def keep(flat: Tensor, regions: Iterable[Region]) -> Tensor:
    """A copy of a flat tensor (N,) that is zero outside the regions; differentiable."""
    flat = flat.contiguous()  # a gradient may come expanded, as that of `sum` does
    kept = torch.zeros_like(flat)
    for region in regions:
        region.view(kept).copy_(region.view(flat))
    return kept


class _Select(torch.autograd.Function):
    """`Region.view` whose backward pass tells the active set that it was reached."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, region: Region, active_set: ActiveSet, candidate: int) -> Tensor:
        ctx.numel, ctx.region, ctx.active_set, ctx.candidate = flat.numel(), region, active_set, candidate
        return region.view(flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.active_set.reach(ctx.candidate)
        flat = grad.new_zeros(ctx.numel)
        ctx.region.view(flat).copy_(grad)
        return flat, None, None, None
