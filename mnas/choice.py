"""Choice: the candidates of one place in a network, stored in merged parameters.

For each parameter name (and each buffer, so BatchNorm statistics too) the candidates share one flat tensor; where each
candidate is in it is a region (mnas/merge.py), and everything else follows from the regions.
"""

from __future__ import annotations

import copy
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.weight_norm import WeightNorm

from mnas import masking
from mnas.enclosing import fits, misfit, shape_misfit
from mnas.masking import Region
from mnas.merge import embed, merge

EXECUTIONS = ("sliced", "masked")
LINEAR = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Layers whose output is linear in all of their parameters together."""
STATISTICS = ("*running_mean", "*running_var", "*num_batches_tracked")


class Choice(nn.Module):
    """One place in a network with several candidate operations: `Choice({"conv3x3": ..., "conv5x5": ...})`.

    The candidates are ordinary modules, in a dict or in (name, module) pairs. Their parameters and buffers are copied
    into merged ones, registered under the same names (dots become slashes); what remains of a candidate is its
    skeleton, the module without storage.
    Candidates must update buffers in place, as torch's own layers do.

    nested: candidates share entries, as in once-for-all networks (Cai et al., ICLR 2020, section 3): a 3x3 kernel is
    the centre of the 5x5, a narrow layer the first channels of the wide one, a dilated kernel every second tap, a
    shallow sequence the first layers of the deep one. Where they overlap, the largest candidate gives the start.
    separate: patterns of the names of tensors that candidates do not share though nested; by default the running
    statistics of BatchNorm, which differ between candidates of different depth or width. () shares them, too, and
    ("*bn*",) keeps all tensors of layers of that name apart, the affine parameters as well.

    A state dict names the candidates, under "_extra_state": weights are loaded into the same candidates in
    the same order, or not at all.

    Raises ValueError for candidates that cannot be merged: none, badly named, tied, mixed in dtype or device,
    not to be copied, writing into their weights, nested ones without a common centre.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module] | Iterable[tuple[str, nn.Module]],
        *,
        nested: bool = False,
        separate: Iterable[str] = STATISTICS,
    ) -> None:
        super().__init__()
        candidates = _named(candidates)
        if not isinstance(nested, bool):
            raise ValueError(f"nested={nested!r}; expected True or False")
        if not candidates:
            raise ValueError('a Choice has no candidates; give at least one, as in Choice({"conv3x3": nn.Conv2d(...)})')
        for name, candidate in candidates.items():
            _check_candidate(name, candidate)
        _check_devices(candidates)
        self.names = tuple(candidates)
        self.nested = nested
        self._description = "\n".join(f"({name}): {module!r}" for name, module in candidates.items())
        # By name of the merged tensor: the regions of all candidates, those that are not None, and the slots.
        self.regions: dict[str, tuple[Region | None, ...]] = {}
        self.owned: dict[str, tuple[Region, ...]] = {}
        self._slots: dict[str, tuple[Region, ...]] = {}
        apart = _patterns(separate, candidates) if nested else ("*",)
        self._parameter_names = self._merge(candidates, nn.Module.named_parameters, apart)
        self._buffer_names = self._merge(candidates, nn.Module.named_buffers, apart)
        # No submodules: they hold no tensors, and what walks over modules or loads state is to pass them by.
        self.candidates = {name: _skeleton(name, module) for name, module in candidates.items()}
        self._watch()

    def _merge(
        self, candidates: Mapping[str, nn.Module], named: Callable[[nn.Module], Any], apart: tuple[str, ...]
    ) -> dict[str, str]:
        """Register one merged tensor per name; returns {name in the candidate: name in the choice}."""
        tensors = [dict(named(candidate)) for candidate in candidates.values()]
        keys = {name: name.replace(".", "/") for of_candidate in tensors for name in of_candidate}
        for name, key in keys.items():
            if hasattr(self, key) or key == "_extra_state":
                raise ValueError(
                    f"{name!r} of a candidate is already a name in Choice; rename that parameter or buffer"
                )
            nested = not any(fnmatchcase(name, pattern) for pattern in apart)
            merged = merge(name, candidates, [of_candidate.get(name) for of_candidate in tensors], nested)
            self.regions[key], self._slots[key] = merged.regions, merged.slots
            self.owned[key] = tuple(region for region in merged.regions if region is not None)
            if isinstance(merged.tensor, nn.Parameter):
                self.register_parameter(key, merged.tensor)
            else:
                persistent = any(name in c.state_dict() for c in candidates.values())
                self.register_buffer(key, merged.tensor, persistent=persistent)
        return keys

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch()  # a copied or unpickled parameter has no hooks

    def get_extra_state(self) -> Tensor:
        """What the merged tensors hold, the bytes of a JSON text in a float32 tensor: what maps over a
        state dict, as sums and moving averages do, goes on working (a sum of bytes would overflow)."""
        return torch.frombuffer(bytearray(json.dumps(self._content).encode()), dtype=torch.uint8).float()

    def set_extra_state(self, _: Tensor) -> None:
        """Nothing to take over: `_load_from_state_dict` has compared it."""

    @property
    def _content(self) -> dict[str, Any]:
        shapes = {key: [None if r is None else list(r.size) for r in of_key] for key, of_key in self.regions.items()}
        return {"candidates": list(self.names), "nested": self.nested, "shapes": shapes}

    def other_content(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        """Why the weights in a state dict are not those of these candidates; None also if it does not say."""
        key, own = f"{prefix}_extra_state", self._content
        if key not in state_dict:
            return None
        where = f"choice {prefix.removesuffix('.')}".strip() + " of the state"
        try:
            # An average of states is rounded.
            found = json.loads(bytes(state_dict[key].round().to(torch.uint8).tolist()))
            differing = next((name for name, value in own.items() if found[name] != value), None)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            return f"{where} does not say in {key!r} what it holds; expected candidates {', '.join(self.names)}"
        if differing is None:
            return None
        if differing == "candidates":
            return f"{where} has candidates {', '.join(map(str, found[differing]))}; expected {', '.join(self.names)}"
        return f"{where} has candidates with {differing} {found[differing]}; expected {own[differing]}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # A state that does not say, as that of an older mnas, lacks a key: only strict=False takes it.
        problem = self.other_content(state_dict, prefix)
        if problem:
            rest[-1].append(problem)  # torch's list of error messages
        else:
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def train(self, mode: bool = True) -> Choice:
        for candidate in self.candidates.values():
            candidate.train(mode)
        return super().train(mode)

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
        `merged * mask`, zeros around a smaller kernel. Raises ValueError for another index or execution.
        """
        if not 0 <= index < len(self) or execution not in EXECUTIONS:
            raise ValueError(
                f"candidate {index!r}, execution {execution!r}; expected an index below {len(self)}, {EXECUTIONS}"
            )
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
        """All slots laid over each other in the enclosing shape: the mask alone decides what is not zero."""
        masked = masking.masked(self._parameters[key], self.regions[key][index], self.owned[key])
        size = self.regions[key][self.enclosing].size
        return sum(embed(slot.view(masked), size) for slot in self._slots[key])

    def mixture(self, weights: Tensor) -> nn.Module:
        """The weighted sum of all candidates as one module: a layer whose parameters are the sum of theirs.

        weights (candidates,): of any sign and sum. The sum of the outputs is the output of the sum only where every
        candidate is a single convolution or linear layer; raises ValueError elsewhere, and for weights of another
        shape. Gradients reach the weights and the parameters of all candidates.
        """
        if weights.shape != (len(self),) or not weights.is_floating_point():
            raise ValueError(
                f"weights of a mixture are {weights.dtype} of shape {tuple(weights.shape)}; expected {len(self)} "
                f"floating numbers, one for each of {', '.join(self.names)}"
            )
        outer, reason = self._enclosing
        widths = {name: _widths(layer) for name, layer in self.candidates.items()}
        for name, layer in self.candidates.items():
            if type(layer) not in LINEAR:
                reason = f"{name!r} is a {type(layer).__name__}, no single convolution or linear layer"
            elif is_hooked(layer) or self._buffer_names:
                reason = f"{name!r} has hooks or buffers, so it need not be linear"
        if len(set(widths.values())) > 1:
            reason = reason or f"their widths in and out differ: {widths}"
        if reason:
            raise ValueError(
                f"{', '.join(self.names)} cannot be mixed in one layer: {reason}; choose one by its index, or add up "
                "the outputs of net.forward_paths"
            )
        tensors = {
            name: sum(w * self._placed(key, i, outer) for i, w in enumerate(weights.unbind()))
            for name, key in self._parameter_names.items()
        }
        return _fill(self.candidates[self.names[outer]], tensors)

    def _placed(self, key: str, index: int, outer: int) -> Tensor:
        """A candidate's tensor in its place in one of the enclosing candidate's shape, zeros around it."""
        region, slots = self.regions[key][index], self._slots[key]
        tensor = self._sliced(key, index)
        if region not in slots:  # nested: the canvas is the one slot
            canvas = tensor.new_zeros(prod(slots[0].size))
            tensor = canvas.as_strided_scatter(tensor, region.size, region.stride, region.offset).view(slots[0].size)
        return embed(tensor, self.regions[key][outer].size)

    @property
    def enclosing(self) -> int:
        """The index of the candidate that computes every other one when its tensors are padded with zeros.

        Raises ValueError where there is none: masked execution does not exist for such a choice.
        """
        outer, reason = self._enclosing
        if reason:
            raise ValueError(f'{reason}; use execution="sliced"')
        return outer

    @cached_property
    def _enclosing(self) -> tuple[int, str | None]:
        """The largest candidate, and why it does not enclose all others if it does not."""
        outer = max(range(len(self)), key=lambda i: sum(prod(r.size) for r in self._regions(i) if r is not None))
        # Zeros between the taps of a dilated kernel are there on a shared canvas only.
        on_canvas = self.nested and all(len(s) == 1 for s in self._slots.values() if len(s[0].size) > 2)
        for inner in range(len(self)):
            reason = misfit(self.candidates[self.names[outer]], self.candidates[self.names[inner]], on_canvas)
            reason = reason or shape_misfit(self._regions(outer), self._regions(inner))
            if reason:
                what = f"{self.names[inner]!r} cannot be computed inside {self.names[outer]!r} by masking"
                return outer, f"{what}: {reason}"
        for key, slots in self._slots.items():
            region = self.regions[key][outer]
            if region is not None and any(not fits(slot.size, region.size) for slot in slots):
                return outer, f"no candidate is as large as all together, {slots[0].size} in {key!r}"
        return outer, None

    def _regions(self, index: int) -> list[Region | None]:
        return [regions[index] for regions in self.regions.values()]


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more, or something else, than its class says."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


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


def _named(candidates: Mapping[str, nn.Module] | Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    if isinstance(candidates, Mapping):
        return dict(candidates)
    try:
        pairs = [(name, module) for name, module in candidates]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"candidates are a {type(candidates).__name__}; expected a dict of modules, or (name, module) pairs"
        ) from error
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two candidates are named {name!r}; give each a name of its own")
    return dict(pairs)


def _patterns(separate: Iterable[str], candidates: Mapping[str, nn.Module]) -> tuple[str, ...]:
    patterns = tuple(separate) if isinstance(separate, Iterable) else (separate,)
    if isinstance(separate, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"separate={separate!r}; expected several patterns, as in ('*bn*',)")
    modules = candidates.values()
    names = {n for m in modules for named in (m.named_parameters(), m.named_buffers()) for n, _ in named}
    for pattern in patterns:
        if pattern not in STATISTICS and not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"separate pattern {pattern!r} matches no tensor; expected some of {sorted(names)}")
    return patterns


def _check_candidate(name: str, candidate: nn.Module) -> None:
    if not isinstance(name, str) or not name or not name.replace("_", "a").isalnum():
        raise ValueError(f"candidate name {name!r} must be letters, digits and underscores, as in 'conv3x3'")
    if not isinstance(candidate, nn.Module):
        raise ValueError(f"candidate {name!r} is a {type(candidate).__name__}; expected a torch.nn.Module")
    for layer in candidate.modules():
        if any(isinstance(hook, WeightNorm) for hook in layer._forward_pre_hooks.values()):
            raise ValueError(
                f"candidate {name!r} has the old torch.nn.utils.weight_norm, whose weight cannot be copied; "
                "use torch.nn.utils.parametrizations.weight_norm"
            )
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None:
            raise ValueError(
                f"candidate {name!r} has a {type(layer).__name__} with max_norm={layer.max_norm}, whose "
                "forward pass writes into its weight; make it without max_norm"
            )
    if any(isinstance(m, Choice) for m in candidate.modules()):
        raise ValueError(f"candidate {name!r} contains a Choice; choices cannot be nested, list every combination")
    seen: dict[int, str] = {}
    named = (candidate.named_parameters, candidate.named_buffers)
    for tensor_name, tensor in (pair for tensors in named for pair in tensors(remove_duplicate=False)):
        if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(
                f"candidate {name!r} has {tensor_name!r} lazy, sparse or quantized; expected a dense tensor (a lazy "
                "layer becomes one when it is run once)"
            )
        other = seen.setdefault(id(tensor), tensor_name)
        if other != tensor_name:
            raise ValueError(f"candidate {name!r} ties {other!r} and {tensor_name!r}; untie them to merge it")


def _check_devices(candidates: Mapping[str, nn.Module]) -> None:
    tensors = {name: (*candidate.parameters(), *candidate.buffers()) for name, candidate in candidates.items()}
    devices = {name: sorted({str(t.device) for t in of_candidate}) for name, of_candidate in tensors.items()}
    used = [where for where in devices.values() if where]
    if any(where != used[0] for where in used):
        raise ValueError(f"candidates are on different devices: {devices}; move them to one, as with module.to(device)")


def _skeleton(name: str, candidate: nn.Module) -> nn.Module:
    """A copy of the module in which every parameter and buffer is None."""
    tensors = [*candidate.parameters(), *candidate.buffers()]
    try:
        skeleton = copy.deepcopy(candidate, memo={id(t): t for t in tensors})  # share the storage, it goes next
    except Exception as error:  # whatever a tensor with a graph, a lock or an open file raises
        raise ValueError(
            f"candidate {name!r} cannot be copied ({' '.join(str(error).split())}); keep what is no "
            "parameter, buffer or plain value out of its attributes"
        ) from error
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


def _widths(layer: nn.Module) -> tuple[int, ...]:
    names = ("in_channels", "out_channels", "in_features", "out_features")
    return tuple(getattr(layer, name) for name in names if hasattr(layer, name))
