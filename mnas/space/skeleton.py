"""Modules without tensors of their own: copied, filled with given tensors, put into a model."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mnas.space.noting import Ours

_REGISTRIES = frozenset(vars(nn.Module())) | {"_flat_weights"}  # these of RNNs


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more, or something else, than its class says."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(module)


_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_pre_hooks"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_backward_hooks",
)


def hooked_as(place: nn.Module, module: nn.Module, registered: nn.Module) -> nn.Module:
    """What runs in a place, with the hooks of the place around its own. The registered module is
    not changed: a twin of it has them."""
    if not is_hooked(place):
        return module
    twin = shallow_copy(module) if module is registered else module
    for name in _HOOKS:
        outer, inner = vars(place)[name], vars(twin)[name]
        both = (outer, inner) if "pre" in name else (inner, outer)
        twin.__dict__[name] = OrderedDict(item for hooks in both for item in hooks.items())
    if twin._is_full_backward_hook is None:
        object.__setattr__(twin, "_is_full_backward_hook", place._is_full_backward_hook)
    return twin


def shallow_copy(module: nn.Module) -> nn.Module:
    """A module with registries of its own that shares everything else, tensors and submodules
    included."""
    twin = module.__new__(type(module))
    # Not by nn.Module's own way to set attributes, which looks for parameters.
    object.__setattr__(twin, "__dict__", module.__dict__.copy())
    for registry in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[registry] = module.__dict__[registry].copy()
    return twin


def substitute(module: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The module with some submodules replaced; what holds none of them is shared, not copied."""
    if module in replacements:
        return replacements[module]
    if not module._modules:  # most of them; this runs in every forward pass
        return module
    children = {
        n: substitute(child, replacements)
        for n, child in module._modules.items()
        if child is not None
    }
    if all(child is module._modules[n] for n, child in children.items()):
        return module
    twin = shallow_copy(module)
    twin._modules.update(children)
    return twin


def skeleton_of(
    name: str, candidate: nn.Module, without: Container[str], copied: bool = True
) -> nn.Module:
    """A copy of the module, or itself, in which the named parameters and buffers are None."""
    named = (*candidate.named_parameters(), *candidate.named_buffers())
    left_out = {id(t): t for key, t in named if key in without}  # not copied, they go next
    try:
        skeleton = copy.deepcopy(candidate, memo=dict(left_out)) if copied else candidate
    except Exception as error:  # whatever a tensor with a graph, a lock or an open file raises
        raise ValueError(
            f"candidate {name!r} cannot be copied ({' '.join(str(error).split())}); keep what is "
            "no parameter, buffer or plain value out of its attributes"
        ) from error
    for module in skeleton.modules():
        for registry in (module._parameters, module._buffers):
            registry.update({key: None for key, t in registry.items() if id(t) in left_out})
        kept = [value for key, value in vars(module).items() if key not in _REGISTRIES]
        if any(id(leaf) in left_out for leaf in tree_leaves(kept)):
            raise ValueError(
                f"candidate {name!r} keeps a parameter that is to be shared in another attribute, "
                "too; reach it by its own name, or do not share it (nested=False, or separate=)"
            )
    return skeleton


def fill(module: nn.Module, tensors: Mapping[str, Tensor | None]) -> nn.Module:
    """The module with the given tensors in place of its own; what is not replaced is shared."""
    if not tensors:
        return module
    inside = set()  # the names of layers in which something is replaced, each with a dot behind it
    for name in tensors:
        end = name.rfind(".")
        while end > 0 and name[: end + 1] not in inside:
            inside.add(name[: end + 1])
            end = name.rfind(".", 0, end)
    return _fill(module, tensors, "", inside)


def _fill(
    module: nn.Module, tensors: Mapping[str, Tensor | None], prefix: str, inside: Container[str]
) -> nn.Module:
    twin = shallow_copy(module)
    for registry in (twin._parameters, twin._buffers):
        for name in registry:
            if prefix + name in tensors:
                registry[name] = tensors[prefix + name]
    for name, child in twin._modules.items():
        if f"{prefix}{name}." in inside:
            twin._modules[name] = _fill(child, tensors, f"{prefix}{name}.", inside)
    return twin


def copied(x: Any) -> Any:
    """A part of what is handed to several modules, for one of them."""
    if isinstance(x, Tensor):
        return x.clone()
    if x is not None and not isinstance(x, (bool, int, float, str)):
        raise ValueError(
            f"paths part at a {type(x).__name__}, which cannot be copied for each; run path by path"
        )
    return x


def without_ours(module: nn.Module) -> nn.Module:
    """A twin of a candidate's module that is no candidate."""
    twin = shallow_copy(module)
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        others = ((k, h) for k, h in vars(module)[hooks].items() if not isinstance(h, Ours))
        twin.__dict__[hooks] = OrderedDict(others)
    return twin


def compact(module: nn.Module) -> nn.Module:
    """A deep copy of a module in which no tensor is a view of a larger one, and nothing of ours.
    Shares nothing."""
    tensors: dict[int, Tensor] = {}  # deepcopy takes these for the copies of the originals
    for tensor in module.parameters():
        tensors[id(tensor)] = nn.Parameter(
            tensor.detach().clone(), requires_grad=tensor.requires_grad
        )
    for tensor in module.buffers():
        tensors[id(tensor)] = tensor.detach().clone()
    for layer in module.modules():  # what a layer has computed of its weights, as spectral_norm
        for value in vars(layer).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                tensors[id(value)] = value.detach().clone()
    copied = copy.deepcopy(module, memo=tensors)
    for layer in copied.modules():
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, Ours)]:
                del hooks[key]
    return copied
