"""Which entries of a parameter train: regions of merged tensors, masks, and the set that is active.

A merged tensor is one-dimensional; a candidate owns a `Region` of it. The region is the one selection rule: the
forward view, the mask, the gradient, the optimizer's pieces and the exported copy all come from `Region.view`. A
`Mask` selects any entries of any parameter. Both are selectors: hashable, with `mask(parameter)`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnas.places import WORDS


class Region(NamedTuple):
    """A strided box inside a flat tensor: where one candidate's parameter lives in the merged one."""

    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, merged: Tensor) -> Tensor:
        """The region of a flat contiguous tensor (N,) as a view of shape `size`; no copy.

        Raises ValueError for a tensor with gaps, as assigning to `parameter.data` may leave: the
        region's strides would be wrong there.
        """
        if not merged.is_contiguous():
            raise ValueError(
                f"a merged tensor of shape {tuple(merged.shape)} has strides {merged.stride()}; expected "
                "it to be contiguous, as from tensor.contiguous()"
            )
        return merged.as_strided(self.size, self.stride, merged.storage_offset() + self.offset)

    def embed(self, values: Tensor, numel: int) -> Tensor:
        """The values, of shape `size`, in their place in a flat tensor (numel,) of zeros."""
        flat = values.new_zeros(numel)
        self.view(flat).copy_(values)
        return flat

    def mask(self, merged: Tensor) -> Tensor:
        """Boolean tensor (N,), True on the region."""
        mask = torch.zeros_like(merged, dtype=torch.bool)
        self.view(mask).fill_(True)
        return mask


class Mask:
    """The entries of a parameter that may train, equal to every other mask of the same content.

    entries: boolean tensor of the parameter's shape, or with 1 in some dimensions, True = trainable; None: no entry
    trains. It is copied.
    """

    def __init__(self, entries: Tensor | None) -> None:
        self.entries = None if entries is None else entries.detach().clone(memory_format=torch.contiguous_format)
        content = b"" if entries is None else self.entries.cpu().numpy().tobytes()
        self._hash = hash((None if entries is None else tuple(entries.shape), content))
        self._bits: dict[tuple[Any, ...], Tensor] = {}

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Mask) or self._hash != other._hash:
            return False
        a, b = self.entries, other.entries
        return a is b if a is None or b is None else a.shape == b.shape and torch.equal(a.cpu(), b.cpu())

    def __reduce__(self) -> tuple[type[Mask], tuple[Any, ...]]:
        return Mask, (self.entries,)

    def mask(self, parameter: Tensor) -> Tensor:
        """Boolean tensor of the parameter's shape."""
        if self.entries is None:
            return torch.zeros_like(parameter, dtype=torch.bool)
        return self.entries.to(parameter.device).expand(parameter.shape)

    def keep(self, grad: Tensor) -> Tensor:
        """A copy of the gradient that is +0 outside the mask, even where it was NaN; differentiable.

        The bits of the number AND those of the mask: several times faster on this processor than `torch.where` or
        `masked_fill`, and unlike `grad * mask` right for NaN and infinity.
        """
        try:
            word = WORDS[grad.element_size()]
            bits_of_grad = grad.view(word)
        except (KeyError, RuntimeError):  # complex128, a conjugate, or a tensor that stands for a batch of them
            return torch.where(self.mask(grad), grad, 0)
        if grad.requires_grad:  # a derivative is wanted
            return torch.where(self.mask(grad), grad, 0)
        if self.entries is None:
            return torch.zeros_like(grad)
        key = grad.device, word, grad.stride()
        if key not in self._bits:
            # In the layout of the gradient, or as small as the mask was given: that much less memory is read.
            like = grad if self.entries.shape == grad.shape else self.entries
            bits = torch.empty_like(like, dtype=word, device=grad.device).copy_(self.entries)
            self._bits = {key: bits.neg_()}  # True becomes all ones; one layout is in use at a time
        return bits_of_grad.bitwise_and(self._bits[key]).view(grad.dtype)

    def forget(self) -> None:
        """Free what `keep` holds to be fast."""
        self._bits = {}


Selector = Region | Mask
Record = frozenset[Selector]
"""Entries that every one of the selectors contains; all entries for the empty record."""


class Active(NamedTuple):
    """What is active in one parameter: the union of the records, cut by every mask that is required."""

    records: frozenset[Record]
    required: frozenset[Mask]

    def contains(self, selectors: frozenset[Selector]) -> bool:
        """Whether entries that lie in exactly these selectors are active."""
        return self.required <= selectors and any(record <= selectors for record in self.records)


EVERYTHING = Active(frozenset({frozenset()}), frozenset())


class ActiveSet:
    """Which entries of one parameter are active: those that backward passes have reached since its gradient was last
    reset, and that the masks in force let train.

    This is the rule by which separate tensors behave in stock torch (`grad is None` where nothing went), and it is
    defined by paths and masks: an entry whose gradient happens to be zero is active, one that an L2 penalty on the
    whole tensor touches is not. Two hooks on the parameter do the work:

        after every use of the parameter in a backward pass has delivered its gradient g
            g      <- g on the recorded regions and on those reached in this pass, 0 elsewhere and outside the masks
        after g has been accumulated into parameter.grad
            records <- records + {region, *masks in force} for each region reached in this pass

    A parameter that is not merged has no regions, and every pass reaches all of it. Records belong to the gradient
    that they were made with: a reset, or another tensor in its place, ends them.
    """

    def __init__(self, parameter: nn.Parameter, regions: tuple[Region, ...] = ()) -> None:
        number = id(parameter)
        self.regions = regions
        self.masks: list[Mask] = []  # in force; equal ones may be there more than once
        self.records: frozenset[Record] = frozenset()
        self._arriving: frozenset[Record] = frozenset()  # of the pass whose gradient is complete
        # By backward pass, because one may fail or run inside another: the regions reached so far, and the gradient
        # of the last of them if it is known to be zero elsewhere, with its version.
        self._reached: dict[int, tuple[set[Region], Tensor | None, int]] = {}
        self._recorded: tuple[weakref.ref[Tensor], int] | None = None  # the gradient of the records, its version
        sets = _ACTIVE_SETS  # when the interpreter ends, the parameter may outlive the name
        self._parameter = weakref.ref(parameter, lambda _: sets.pop(number, None))
        self._handles: list[Any] = []

    @staticmethod
    def of(parameter: Tensor) -> ActiveSet | None:
        """The active set of a parameter; None if all of it always trains."""
        found = _ACTIVE_SETS.get(id(parameter))
        return found if found is not None and found._parameter() is parameter else None

    @staticmethod
    def watch(parameter: nn.Parameter, regions: tuple[Region, ...] = ()) -> ActiveSet:
        """The active set of a parameter, which from now on follows its backward passes. regions: of a merged one."""
        active_set = ActiveSet.of(parameter)
        if active_set is None:
            active_set = _ACTIVE_SETS[id(parameter)] = ActiveSet(parameter, regions)
            if not (parameter.is_floating_point() or parameter.is_complex()):
                return active_set  # integers never have gradients
            trained = parameter.requires_grad
            parameter.requires_grad_(True)  # or it takes no hooks, and would be without them when it is thawed
            active_set._handles = [
                parameter.register_hook(active_set._cut),
                parameter.register_post_accumulate_grad_hook(active_set._commit),
            ]
            parameter.requires_grad_(trained)
        return active_set

    @property
    def selectors(self) -> frozenset[Selector]:
        """Everything that the active set is made of, now and in passes since the gradient was reset."""
        return frozenset().union(self.regions, self.masks, *self.records)

    def snapshot(self) -> Active:
        """What the optimizer may move now."""
        self._follow_gradient()
        return Active(self.records, frozenset(self.masks))

    def clear(self) -> None:
        """Forget what was active; for callers that reset the gradient to zeros instead of None."""
        self.records = frozenset()
        self._reached.clear()
        self._release()

    def add_mask(self, mask: Mask) -> None:
        """Bring a mask into force."""
        self.masks.append(mask)

    def remove_mask(self, mask: Mask) -> None:
        """End a mask. What it cut in passes that are not yet stepped stays cut."""
        self.masks.remove(mask)
        mask.forget()
        self._follow_gradient()
        self._release()

    def reach(self, region: Region, embedded: Tensor | None = None) -> None:
        """Note that the running backward pass delivers a gradient to the region. embedded: that gradient in place, if
        it is zero everywhere else."""
        task = torch._C._current_graph_task_id()
        regions = self._reached[task][0] if task in self._reached else set()
        regions.add(region)
        self._reached[task] = regions, embedded, -1 if embedded is None else embedded._version

    def _release(self) -> None:
        """Leave the parameter as it was before, once there is nothing more to follow."""
        if self.regions or self.masks or self.records:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        parameter = self._parameter()
        if parameter is not None:
            _ACTIVE_SETS.pop(id(parameter), None)

    def _follow_gradient(self) -> None:
        """Bring the records in line with the gradient that is there, whoever put it there."""
        parameter = self._parameter()  # None: its module is gone, and only an autograd graph still holds it
        grad = None if parameter is None else parameter.grad
        if grad is None:
            self.records = frozenset()
            return
        recorded, version = self._recorded or (lambda: None, 0)
        if recorded() is grad:
            # Only a reset in place changes a gradient into zeros everywhere; clipping and scaling do not.
            if self.records and grad._version != version and not grad.any():
                self.records = frozenset()
        else:
            # Set by hand. Of a merged parameter, the last pass says what was meant, if there was one.
            if not self.regions:
                self.records = frozenset({frozenset()})
            elif self._arriving or self.records:
                self.records = self._arriving or self.records
            elif grad.any():
                self.records = frozenset(frozenset({region}) for region in self.regions)
            self._note_gradient(grad)

    def _note_gradient(self, grad: Tensor) -> None:
        self._recorded = weakref.ref(grad), grad._version

    def _cut(self, grad: Tensor | None) -> Tensor | None:
        reached, embedded, version = self._reached.pop(torch._C._current_graph_task_id(), (set(), None, 0))
        self._follow_gradient()
        if grad is None:
            self._arriving = frozenset()
            return None
        if grad.is_sparse:
            raise ValueError("a masked parameter got a sparse gradient; make its layer with sparse=False")
        if not (self.regions or self.masks or self.records):
            self._release()  # the masks are gone, and the gradient that they cut
            return grad
        masks = frozenset(self.masks)
        self._arriving = frozenset(masks | {r} for r in reached) if self.regions else frozenset({masks})
        # While `embedded` is held, autograd adds other contributions to a copy of it; hooks may change it in place.
        if self.regions and not (grad is embedded and grad._version == version):
            recorded = {s for record in self.records for s in record if isinstance(s, Region)}
            grad = keep_regions(grad, recorded | reached)
        for mask in masks:
            grad = mask.keep(grad)
        return grad

    def _commit(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.records |= self._arriving
            self._note_gradient(parameter.grad)


# By id of the parameter, for as long as it lives: torch's dictionaries of weak tensors do the same, but a look-up costs
# them as much as stepping a small tensor.
_ACTIVE_SETS: dict[int, ActiveSet] = {}


def zero_grad(parameters: Iterable[Tensor], set_to_none: bool) -> None:
    """Reset gradients as torch does, and with them what is active."""
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None:
            if set_to_none:
                parameter.grad = None
            else:
                (grad.detach_() if grad.grad_fn is not None else grad.requires_grad_(False)).zero_()
        active_set = ActiveSet.of(parameter)
        if active_set is not None:
            active_set.clear()


def select(merged: Tensor, region: Region, regions: tuple[Region, ...]) -> Tensor:
    """Sliced execution: the region as a view of the merged tensor, differentiable. regions: all of that tensor."""
    active_set = _watch_merged(merged, regions)
    return region.view(merged) if active_set is None else _Select.apply(merged, region, active_set)


def masked(merged: Tensor, region: Region, regions: tuple[Region, ...]) -> Tensor:
    """Masked execution: `merged * mask` (N,), zero outside the region whatever is there, differentiable."""
    product = torch.where(region.mask(merged), merged, 0)  # NaN * 0 would be NaN
    active_set = _watch_merged(merged, regions)
    if active_set is not None:
        product.register_hook(lambda _: active_set.reach(region))
    return product


def _watch_merged(merged: Tensor, regions: tuple[Region, ...]) -> ActiveSet | None:
    # torch.func puts other tensors in the place of a parameter, or differentiates by something else: not our business.
    if not (isinstance(merged, nn.Parameter) and merged.requires_grad and torch.is_grad_enabled()):
        return None
    if torch._C._are_functorch_transforms_active():
        return None
    return ActiveSet.watch(merged, regions)


def keep_regions(flat: Tensor, regions: Iterable[Region]) -> Tensor:
    """A copy of a flat tensor (N,) that is zero outside the regions; differentiable."""
    flat = flat.contiguous()  # a gradient may come expanded, as that of `sum` does
    kept = torch.zeros_like(flat)
    for region in regions:
        region.view(kept).copy_(region.view(flat))
    return kept


class _Select(torch.autograd.Function):
    """`Region.view` whose backward pass tells the active set that it was reached."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, region: Region, active_set: ActiveSet) -> Tensor:
        ctx.numel, ctx.region, ctx.active_set = flat.numel(), region, active_set
        return region.view(flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        flat = ctx.region.embed(grad, ctx.numel)
        ctx.active_set.reach(ctx.region, flat)
        return flat, None, None
