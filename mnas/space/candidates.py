"""What can be a candidate of a choice, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.weight_norm import WeightNorm

STATISTICS = ("*running_mean", "*running_var", "*num_batches_tracked")


def named(
    candidates: Mapping[str, nn.Module] | Iterable[tuple[str, nn.Module]],
) -> dict[str, nn.Module]:
    """The candidates, by name. Raises ValueError for names that could not be read in that of an
    architecture."""
    if isinstance(candidates, Mapping):
        candidates = candidates.items()
    try:
        pairs = [(name, module) for name, module in candidates]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"candidates are a {type(candidates).__name__}; expected a dict of modules, or (name, "
            "module) pairs"
        ) from error
    names = [name for name, _ in pairs]
    for name in names:
        if not isinstance(name, str) or not name or not name.replace("_", "a").isalnum():
            raise ValueError(
                f"candidate name {name!r} must be letters, digits and underscores, as in 'conv3x3'"
            )
        if names.count(name) > 1:
            raise ValueError(f"two candidates are named {name!r}; give each a name of its own")
    return dict(pairs)


def patterns_of(separate: Iterable[str], candidates: Mapping[str, nn.Module]) -> tuple[str, ...]:
    patterns = tuple(separate) if isinstance(separate, Iterable) else (separate,)
    if isinstance(separate, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"separate={separate!r}; expected several patterns, as in ('*bn*',)")
    modules = candidates.values()
    names = {
        n for m in modules for named in (m.named_parameters(), m.named_buffers()) for n, _ in named
    }
    for pattern in patterns:
        if pattern not in STATISTICS and not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"separate pattern {pattern!r} matches no tensor; expected some of {sorted(names)}"
            )
    return patterns


def check_candidate(name: str, candidate: nn.Module, choice: type[nn.Module]) -> None:
    if not isinstance(candidate, nn.Module):
        raise ValueError(
            f"candidate {name!r} is a {type(candidate).__name__}; expected a torch.nn.Module"
        )
    for layer in candidate.modules():
        if any(isinstance(hook, WeightNorm) for hook in layer._forward_pre_hooks.values()):
            raise ValueError(
                f"candidate {name!r} has the old torch.nn.utils.weight_norm, whose weight cannot "
                "be copied; use torch.nn.utils.parametrizations.weight_norm"
            )
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None:
            raise ValueError(
                f"candidate {name!r} has a {type(layer).__name__} with max_norm={layer.max_norm}, "
                "whose forward pass writes into its weight; make it without max_norm"
            )
    if any(isinstance(m, choice) for m in candidate.modules()):
        raise ValueError(
            f"candidate {name!r} contains a Choice; choices cannot be nested, list every "
            "combination"
        )
    seen: dict[int, str] = {}
    of_candidate = (candidate.named_parameters, candidate.named_buffers)
    for tensor_name, tensor in (
        pair for tensors in of_candidate for pair in tensors(remove_duplicate=False)
    ):
        if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(
                f"candidate {name!r} has {tensor_name!r} lazy, sparse or quantized; expected a "
                "dense tensor (a lazy layer becomes one when it is run once)"
            )
        other = seen.setdefault(id(tensor), tensor_name)
        if other != tensor_name:
            raise ValueError(
                f"candidate {name!r} ties {other!r} and {tensor_name!r}; untie them to merge it"
            )


def check_devices(candidates: Mapping[str, nn.Module]) -> None:
    tensors = {
        name: (*candidate.parameters(), *candidate.buffers())
        for name, candidate in candidates.items()
    }
    devices = {
        name: sorted({str(t.device) for t in of_candidate})
        for name, of_candidate in tensors.items()
    }
    used = [where for where in devices.values() if where]
    if any(where != used[0] for where in used):
        raise ValueError(
            f"candidates are on different devices: {devices}; move them to one, as with "
            "module.to(device)"
        )


def check_together(candidates: Mapping[str, nn.Module], nested: bool) -> None:
    """Raise ValueError for what is right in each candidate, and wrong in a choice."""
    seen: dict[int, str] = {}
    for name, candidate in candidates.items():
        for layer in candidate.modules():
            if nested and isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.sparse:
                raise ValueError(
                    f"candidate {name!r} has a {type(layer).__name__} with sparse=True, whose "
                    "gradient cannot be divided; make it with sparse=False, or nested=False"
                )
        for key, parameter in candidate.named_parameters():
            other = seen.setdefault(id(parameter), name)
            if other != name and not nested:
                raise ValueError(
                    f"candidates {other!r} and {name!r} have the same {key!r}, and would get one "
                    "each; make a layer for each, or share what has the same name by nested=True"
                )
