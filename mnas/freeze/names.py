"""Which tensors of a module a mapping of masks by name or pattern means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from mnas.freeze.active import Mask

MaskValue = Tensor | bool


def resolve(
    what: str, masks: Mapping[str, MaskValue], named: Iterable[tuple[str, Tensor]]
) -> dict[int, tuple[Tensor, Mask | None]]:
    """For each tensor that a key matches, by id: the tensor and its mask, None where all of it
    trains."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    keys: dict[int, str] = {}
    chosen: dict[int, tuple[Tensor, Mask | None]] = {}
    for key, value in masks.items():
        if not isinstance(key, str):
            raise ValueError(
                f"{key!r} is {kind_of(key)}; expected the name of a {what} or a pattern"
            )
        matching = [
            i for i, of_tensor in names.items() if any(_matches(key, name) for name in of_tensor)
        ]
        if not matching:
            raise ValueError(
                _no_match(what, key, [name for of_tensor in names.values() for name in of_tensor])
            )
        for i in matching:
            mask = _checked(key, value, names[i][0], tensors[i])
            if keys.get(i) in names[i] and key in names[i] and mask != chosen[i][1]:
                raise ValueError(f"{keys[i]!r} and {key!r} are one tensor; give it one mask")
            keys[i], chosen[i] = key, (tensors[i], mask)
    return chosen


def _matches(key: str, name: str) -> bool:
    # What candidates of a supernet share is called "...:layer/weight", after those that have it.
    dotted = name.replace(":", ".").replace("/", ".")
    return key == name or fnmatchcase(name, key) or fnmatchcase(dotted, key)


def _no_match(what: str, key: str, names: list[str]) -> str:
    if any(name.startswith(f"{key}.") for name in names):
        return f"{key!r} is a module; write {f'{key}.*'!r} for all of its parameters"
    near = difflib.get_close_matches(str(key), names, n=4, cutoff=0.4) or names[:4]
    if not near:
        return f"{key!r} matches nothing: the module has no {what}"
    return f"{key!r} matches no {what}; near: {', '.join(near)}"


def _checked(key: str, value: MaskValue, name: str, tensor: Tensor) -> Mask | None:
    """The mask as a selector of the tensor's entries; None where all of them train."""
    if is_lazy(tensor) or tensor.is_meta:
        raise ValueError(
            f"{name} has no entries yet; run a lazy layer once, move it off the meta device"
        )
    if isinstance(value, bool):
        return None if value else Mask(None)
    given = f"the mask {key!r} for {name} of shape {tuple(tensor.shape)}"
    if not torch.is_tensor(value):
        raise ValueError(f"{given} is {kind_of(value)}; expected True, False or a boolean tensor")
    if value.layout != torch.strided:
        raise ValueError(
            f"{given} is sparse ({value.layout}); expected a dense tensor, as from mask.to_dense()"
        )
    if value.dtype != torch.bool:
        raise ValueError(
            f"{given} has dtype {value.dtype}; expected torch.bool, as from mask.bool()"
        )
    if value.device != tensor.device:
        raise ValueError(f"{given} is on {value.device}; move it to {tensor.device}")
    if value.ndim != tensor.ndim or any(
        m not in (1, n) for m, n in zip(value.shape, tensor.shape, strict=True)
    ):
        raise ValueError(
            f"{given} has shape {tuple(value.shape)}; expected the same shape, or 1 in a dimension"
        )
    return Mask(value)


def kind_of(value: object) -> str:
    return f"the {value!r}" if isinstance(value, type) else f"a {type(value).__name__}"
