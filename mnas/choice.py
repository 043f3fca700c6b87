"""Choice: the candidates of one place in a network, stored in merged parameters.

For each parameter name (and each buffer, so BatchNorm statistics too) the candidates share one flat tensor in which
every candidate has a slot of its own, a contiguous run:

    conv3x3.weight (O, I, 3, 3)  ->  weight[0 : 9*O*I]
    conv5x5.weight (O, I, 5, 5)  ->  weight[9*O*I : 34*O*I]

Contiguous runs, because the optimizer's fused kernels go silently wrong on strided memory, and because every
elementwise kernel then sees what it would see in a separate tensor: the arithmetic is equal to the last bit.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Mapping
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from mnas import masking
from mnas.masking import Region

EXECUTIONS = ("sliced", "masked")
# Matrix kernels may choose their code by the alignment of their operands, so each slot starts where a separate
# tensor would start: on the 64 bytes of torch's CPU allocator.
ALIGNMENT_BYTES = 64


class Choice(nn.Module):
    """One place in a network with several candidate operations: `Choice({"conv3x3": ..., "conv5x5": ...})`.

    The candidates are ordinary modules. Their parameters and buffers are copied into merged ones, registered under
    the same names (dots become slashes); what remains of a candidate is its skeleton, the module without storage.
    Candidates must update buffers in place, as torch's own layers do.

    Raises ValueError for candidates that cannot be merged: none, badly named, tied or mixed in dtype or device.
    """

    def __init__(self, candidates: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not candidates:
            raise ValueError('a Choice has no candidates; give at least one, as in Choice({"conv3x3": nn.Conv2d(...)})')
        for name, candidate in candidates.items():
            _check_candidate(name, candidate)
        self.names = tuple(candidates)
        self._description = "\n".join(f"({name}): {module!r}" for name, module in candidates.items())
        self.regions: dict[str, tuple[Region | None, ...]] = {}  # by name of the merged tensor, one a candidate
        self.owned: dict[str, tuple[Region, ...]] = {}  # the same, of those candidates that have a part in it
        self._parameter_names = _merge_into(self, list(candidates.values()), nn.Module.named_parameters)
        self._buffer_names = _merge_into(self, list(candidates.values()), nn.Module.named_buffers)
        self.candidates = nn.ModuleDict({name: _skeleton(module) for name, module in candidates.items()})
        self._watch()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch()  # a copied or unpickled parameter has no hooks

    def _watch(self) -> None:
        """Follow the backward passes from the beginning, so that hooks of others run after ours."""
        for key in self._parameter_names.values():
            masking.ActiveSet.watch(self._parameters[key], self.owned[key])

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Choice(\n{textwrap.indent(self._description, '  ')}\n)"

    def forward(self, *args: Tensor) -> Tensor:
        raise RuntimeError("a Choice is run along a path: call net(x, path) of the Supernet it belongs to")

    def candidate(self, index: int, execution: str = "sliced") -> nn.Module:
        """One candidate as a module that lives on the merged tensors; the result shares memory with the choice.

        sliced: the candidate's skeleton on the views of its regions. masked: the enclosing candidate's skeleton on
        `merged * mask`, zeros around a smaller kernel.
        """
        masked = execution == "masked"
        select = self._masked if masked else self._sliced
        tensors = {name: select(key, index) for name, key in self._parameter_names.items()}
        for name, key in self._buffer_names.items():
            region = self.regions[key][index]
            tensors[name] = None if region is None else region.view(self._buffers[key])
        return _fill(self.candidates[self.names[self.enclosing if masked else index]], tensors)

    def _sliced(self, key: str, index: int) -> Tensor | None:
        region = self.regions[key][index]
        return None if region is None else masking.select(self._parameters[key], region, self.owned[key])

    def _masked(self, key: str, index: int) -> Tensor:
        """All slots laid over each other in the enclosing shape: the mask alone decides which of them is not zero."""
        regions = self.owned[key]
        masked = masking.masked(self._parameters[key], self.regions[key][index], regions)
        size = self.regions[key][self.enclosing].size
        return sum(_embed(region.view(masked), size) for region in regions)

    @cached_property
    def enclosing(self) -> int:
        """The index of the candidate that computes every other one when its tensors are padded with zeros.

        Raises ValueError where there is none: masked execution does not exist for such a choice.
        """
        outer = max(range(len(self)), key=lambda i: sum(prod(r.size) for r in self._regions(i) if r is not None))
        for inner in range(len(self)):
            reason = _misfit(self.candidates[self.names[outer]], self.candidates[self.names[inner]])
            reason = reason or _shape_misfit(self._regions(outer), self._regions(inner))
            if reason:
                raise ValueError(
                    f"{self.names[inner]!r} cannot be computed inside {self.names[outer]!r} by masking: {reason}; "
                    'use execution="sliced"'
                )
        return outer

    def _regions(self, index: int) -> list[Region | None]:
        return [regions[index] for regions in self.regions.values()]


def shallow_copy(module: nn.Module) -> nn.Module:
    """A module with registries of its own that shares everything else, tensors and submodules included."""
    twin = module.__new__(type(module))
    twin.__dict__ = module.__dict__.copy()
    for registry in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[registry] = module.__dict__[registry].copy()
    return twin


def substitute(module: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The module with some submodules replaced; what holds none of them is shared, not copied."""
    if module in replacements:
        return replacements[module]
    children = {n: substitute(child, replacements) for n, child in module._modules.items() if child is not None}
    if all(child is module._modules[n] for n, child in children.items()):
        return module
    twin = shallow_copy(module)
    twin._modules.update(children)
    return twin


def _check_candidate(name: str, candidate: nn.Module) -> None:
    if not isinstance(name, str) or not name or not name.replace("_", "a").isalnum():
        raise ValueError(f"candidate name {name!r} must be letters, digits and underscores, as in 'conv3x3'")
    if not isinstance(candidate, nn.Module):
        raise ValueError(f"candidate {name!r} is a {type(candidate).__name__}; expected a torch.nn.Module")
    if any(isinstance(m, Choice) for m in candidate.modules()):
        raise ValueError(f"candidate {name!r} contains a Choice; choices cannot be nested, list every combination")
    seen: dict[int, str] = {}
    for tensor_name, tensor in candidate.named_parameters(remove_duplicate=False):
        other = seen.setdefault(id(tensor), tensor_name)
        if other != tensor_name:
            raise ValueError(f"candidate {name!r} ties {other!r} and {tensor_name!r}; untie them to merge it")


def _merge_into(
    choice: Choice, candidates: list[nn.Module], named: Callable[[nn.Module], list[tuple[str, Tensor]]]
) -> dict[str, str]:
    """Register one merged tensor per name on the choice; returns {name in the candidate: name in the choice}."""
    tensors = [dict(named(candidate)) for candidate in candidates]
    keys = {name: name.replace(".", "/") for of_candidate in tensors for name in of_candidate}
    for name, key in keys.items():
        if hasattr(choice, key):
            raise ValueError(f"{name!r} of a candidate is already a name in Choice; rename that parameter or buffer")
        merged, regions = _merge(name, choice.names, [of_candidate.get(name) for of_candidate in tensors])
        choice.regions[key] = regions
        choice.owned[key] = tuple(region for region in regions if region is not None)
        if isinstance(merged, nn.Parameter):
            choice.register_parameter(key, merged)
        else:
            choice.register_buffer(key, merged, persistent=any(name in c.state_dict() for c in candidates))
    return keys


def _merge(
    name: str, candidate_names: tuple[str, ...], tensors: list[Tensor | None]
) -> tuple[Tensor, tuple[Region | None, ...]]:
    """Copy same-named tensors, one a candidate or None, into one flat tensor and say where each one is."""
    present = {c: t for c, t in zip(candidate_names, tensors, strict=True) if t is not None}
    for attribute in ("dtype", "device", "requires_grad"):
        values = {c: getattr(t, attribute) for c, t in present.items()}
        if len(set(values.values())) > 1:
            raise ValueError(f"{name!r} differs in {attribute} over the candidates: {values}; make them equal")
    sample = next(iter(present.values()))
    step = max(1, ALIGNMENT_BYTES // sample.element_size())
    regions: list[Region | None] = []
    end = 0
    for tensor in tensors:
        if tensor is None:
            regions.append(None)
            continue
        offset = -(-end // step) * step
        # A dense layout such as channels_last is kept, any other becomes contiguous.
        stride = torch.empty_like(tensor, device="meta").stride()
        regions.append(Region(offset, tuple(tensor.shape), stride))
        end = offset + tensor.numel()
    merged = torch.zeros(end, dtype=sample.dtype, device=sample.device)
    for tensor, region in zip(tensors, regions, strict=True):
        if region is not None:
            region.view(merged).copy_(tensor.detach())
    if isinstance(sample, nn.Parameter):
        merged = nn.Parameter(merged, requires_grad=sample.requires_grad)
    return merged, tuple(regions)


def _skeleton(candidate: nn.Module) -> nn.Module:
    """A copy of the module in which every parameter and buffer is None."""
    tensors = [*candidate.parameters(), *candidate.buffers()]
    skeleton = copy.deepcopy(candidate, memo={id(t): t for t in tensors})  # share the storage, it goes next
    for module in skeleton.modules():
        for registry in (module._parameters, module._buffers):
            registry.update(dict.fromkeys(registry))
    return skeleton


def _fill(skeleton: nn.Module, tensors: Mapping[str, Tensor | None], prefix: str = "") -> nn.Module:
    """The skeleton as a runnable module on the given tensors."""
    module = shallow_copy(skeleton)
    for registry in (module._parameters, module._buffers):
        for name in registry:
            registry[name] = tensors.get(prefix + name)
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _fill(child, tensors, f"{prefix}{name}.")
    return module


def _embed(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    """Zeros around a smaller tensor: channels (dimensions 0 and 1) are prefixes, kernels (the others) centred."""
    padding: list[int] = []
    for dim in reversed(range(tensor.ndim)):  # F.pad counts from the last dimension
        missing = size[dim] - tensor.shape[dim]
        before = missing // 2 if dim >= 2 else 0
        padding += [before, missing - before]
    return F.pad(tensor, padding) if any(padding) else tensor


def _shape_misfit(outer: list[Region | None], inner: list[Region | None]) -> str | None:
    for large, small in zip(outer, inner, strict=True):
        if (large is None) != (small is None):
            return "one has a parameter that the other lacks"
        if large is not None and not _fits(small.size, large.size):
            return f"shape {small.size} does not fit into {large.size}"
    return None


def _fits(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return len(small) == len(large) and all(a <= b for a, b in zip(small, large, strict=True))


def _misfit(outer: nn.Module, inner: nn.Module) -> str | None:
    """Why zero padding does not turn `outer` into `inner`; None where it does."""
    if type(outer) is not type(inner):
        return f"{type(inner).__name__} is no {type(outer).__name__}"
    if isinstance(outer, _ConvNd):
        for option in ("stride", "dilation", "groups", "padding_mode"):
            if getattr(outer, option) != getattr(inner, option):
                return f"{option} {getattr(inner, option)} is not {getattr(outer, option)}"
        if outer.padding_mode != "zeros" or _margins(outer) != _margins(inner):
            return f"padding {inner.padding} of kernel {inner.kernel_size} does not centre it in {outer.kernel_size}"
        return None
    if outer.extra_repr() != inner.extra_repr():
        return f"{inner} differs from {outer}"
    children = zip(outer.children(), inner.children(), strict=False)
    if len(list(outer.children())) != len(list(inner.children())):
        return "their layers differ in number"
    return next((reason for a, b in children if (reason := _misfit(a, b))), None)


def _margins(conv: _ConvNd) -> tuple[object, ...]:
    """What padding leaves after half a kernel: equal margins mean equally centred kernels."""
    if isinstance(conv.padding, str):
        return conv.padding, *(k % 2 for k in conv.kernel_size)
    half = (d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    return tuple(2 * p - h for p, h in zip(conv.padding, half, strict=True))
