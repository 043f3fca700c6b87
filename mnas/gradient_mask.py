"""GradientMask: train these entries of a module's parameters, and let nothing else move."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mnas.masking import ActiveSet, Mask

MaskValue = Tensor | bool


class GradientMask:
    """`GradientMask(module, {"conv1.weight": mask})`: gradients are zero where the mask is False, and a
    `MaskedOptimizer` leaves those entries and their state as they are, to the last bit.

    module: any module; it keeps its parameters, its state dict and its forward pass.
    masks: by parameter name or shell pattern ("layer1.*.weight"): True or False for all entries, or a boolean tensor,
    True = trainable, of the parameter's shape (dimensions of size 1 are expanded: (O, 1, 1, 1) masks the filters of a
    convolution). Where several keys match a parameter, the last one decides: {"*": False, "fc.*": True} trains fc
    alone. What no key matches is trained as before. Tensors are copied.
    statistics: True freezes the running statistics of normalisation layers for every channel of which neither weight
    nor bias can train; or a mapping like `masks`, by layer name, to masks of shape (channels,). In train mode the
    batch's own statistics go on being used for normalising.

    In force from construction until `remove`, or until the end of a `with` block. Several masks on one module combine:
    an entry trains if all of them let it. The gradient is cut in the backward pass, so a mask must be in force then.
    Hooks belong to the tensors: `copy.deepcopy(module)` is not masked, `copy.deepcopy(mask)` is a masked copy with its
    own `module`.

    Raises ValueError for names that match nothing, wrong types, shapes and devices.
    """

    def __init__(
        self,
        module: nn.Module,
        masks: Mapping[str, MaskValue],
        *,
        statistics: bool | Mapping[str, MaskValue] = False,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ValueError(f"GradientMask masks a nn.Module, not {_kind(module)}; call GradientMask(module, masks)")
        if not isinstance(masks, Mapping):
            raise ValueError(f'masks must be a mapping, not {_kind(masks)}; as in {{"conv1.weight": mask}}')
        self.module = module
        self._masks = _resolve("parameter", masks, list(module.named_parameters(remove_duplicate=False)))
        self._statistics = self._frozen_channels(statistics)
        self._undo: list[Callable[[], None]] = []
        self.install()

    def __repr__(self) -> str:
        total = trainable = 0
        for name, parameter in self.module.named_parameters():
            mask = self._masks.get(name)
            total += parameter.numel()
            trainable += parameter.numel() if mask is None else int(mask.mask(parameter).sum())
        state = "in force" if self._undo or not (self._masks or self._statistics) else "removed"
        return f"GradientMask({trainable:,} of {total:,} entries can train; {state})"

    def install(self) -> None:
        """Bring the mask into force again after `remove`."""
        if self._undo:
            return
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        modules = dict(self.module.named_modules(remove_duplicate=False))
        for parameter, mask in {id(parameters[n]): (parameters[n], m) for n, m in self._masks.items()}.values():
            ActiveSet.watch(parameter).put(mask)
            self._undo.append(lambda parameter=parameter, mask=mask: ActiveSet.watch(parameter).lift(mask))
        for layer, frozen in {id(modules[n]): (modules[n], f) for n, f in self._statistics.items()}.values():
            keeper = _KeepStatistics(frozen)
            handles = layer.register_forward_pre_hook(keeper.before), layer.register_forward_hook(keeper.after)
            self._undo += [handle.remove for handle in handles]

    def remove(self) -> None:
        """End the mask. What backward passes have already cut stays cut until gradients are reset."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> GradientMask:
        self.install()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> GradientMask:
        twin = object.__new__(GradientMask)
        memo[id(self)] = twin
        twin.module, twin._undo = copy.deepcopy(self.module, memo), []
        twin._masks, twin._statistics = self._masks, self._statistics
        if self._undo:
            twin.install()
        return twin

    def _frozen_channels(self, statistics: bool | Mapping[str, MaskValue]) -> dict[str, Tensor]:
        """For each layer whose running statistics are to be kept: the frozen channels, boolean (C,)."""
        layers = {
            name: layer
            for name, layer in self.module.named_modules(remove_duplicate=False)
            if isinstance(layer, _NormBase) and layer.running_mean is not None
        }
        if isinstance(statistics, Mapping):
            named = [(name, layer.running_mean) for name, layer in layers.items()]
            masks = _resolve("normalisation layer with running statistics", statistics, named)
            return {name: ~mask.mask(layers[name].running_mean) for name, mask in masks.items()}
        frozen = {}
        for name, layer in layers.items() if statistics else ():
            affine = {f"{name}.{part}".lstrip("."): p for part, p in layer.named_parameters()}
            masks = [(self._masks[key], p) for key, p in affine.items() if key in self._masks]
            if masks and len(masks) == len(affine):
                frozen[name] = torch.stack([~mask.mask(p) for mask, p in masks]).all(0)
        return frozen


class _KeepStatistics:
    """Two hooks around the forward pass of a normalisation layer that put the statistics of frozen channels back.

    frozen: boolean (C,). torch copies and pickles the hooks of a module with it, but a copied module is not masked:
    what these hooks are copied to has None and does nothing.
    """

    def __init__(self, frozen: Tensor | None) -> None:
        self.frozen = frozen
        self.saved: list[tuple[Tensor, Tensor]] = []

    def __reduce__(self) -> tuple[type[_KeepStatistics], tuple[None]]:
        return _KeepStatistics, (None,)

    def before(self, layer: nn.Module, _: Any) -> None:
        if self.frozen is not None:
            buffers = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
            self.saved = [(buffer, buffer.clone()) for buffer in buffers]

    def after(self, layer: nn.Module, _: Any, __: Any) -> None:
        for buffer, saved in self.saved:
            frozen = self.frozen.to(buffer.device)
            # Through .data, because autograd has noted the buffer's version, though in train mode its backward pass
            # reads only the batch's statistics. The count of batches is the layer's: it stays if every channel does.
            buffer.data.copy_(torch.where(frozen if buffer.ndim else frozen.all(), saved, buffer))
        self.saved = []


def _resolve(what: str, masks: Mapping[str, MaskValue], named: Iterable[tuple[str, Tensor]]) -> dict[str, Mask]:
    """The mask of each named tensor that has one. A tensor with several names gets one mask under all of them."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    chosen: dict[int, tuple[str, Mask | None]] = {}
    for key, value in masks.items():
        matching = [i for i, of_tensor in names.items() if any(_matches(key, name) for name in of_tensor)]
        if not matching:
            raise ValueError(_no_match(what, key, [name for of_tensor in names.values() for name in of_tensor]))
        for i in matching:
            mask = _checked(key, value, names[i][0], tensors[i])
            earlier, other = chosen.get(i, ("", None))
            if earlier in names[i] and key in names[i] and mask != other:
                raise ValueError(f"{earlier!r} and {key!r} are one tensor; give it one mask")
            chosen[i] = key, mask
    return {name: mask for i, (_, mask) in chosen.items() if mask is not None for name in names[i]}


def _matches(key: str, name: str) -> bool:
    return key == name or fnmatchcase(name, key)


def _no_match(what: str, key: str, names: list[str]) -> str:
    if any(name.startswith(f"{key}.") for name in names):
        return f"{key!r} is a module; write {f'{key}.*'!r} for all of its parameters"
    near = difflib.get_close_matches(str(key), names, n=4, cutoff=0.4) or names[:4]
    if not near:
        return f"{key!r} matches nothing: the module has no {what}"
    return f"{key!r} matches no {what}; near: {', '.join(near)}"


def _checked(key: str, value: MaskValue, name: str, tensor: Tensor) -> Mask | None:
    """The mask as a selector of the tensor's entries; None where all of them train."""
    if isinstance(value, bool):
        return None if value else Mask(None)
    given = f"the mask {key!r} for {name} of shape {tuple(tensor.shape)}"
    if not torch.is_tensor(value):
        raise ValueError(f"{given} is {_kind(value)}; expected True, False or a boolean tensor")
    if value.dtype != torch.bool:
        raise ValueError(f"{given} has dtype {value.dtype}; expected torch.bool, as from mask.bool()")
    if value.device != tensor.device:
        raise ValueError(f"{given} is on {value.device}; move it to {tensor.device}")
    if value.ndim != tensor.ndim or any(m not in (1, n) for m, n in zip(value.shape, tensor.shape, strict=True)):
        raise ValueError(f"{given} has shape {tuple(value.shape)}; expected the same shape, or 1 in a dimension")
    return Mask(value.expand(tensor.shape))


def _kind(value: object) -> str:
    return f"the {value!r}" if isinstance(value, type) else f"a {type(value).__name__}"
