"""GradientMask: train these entries of a module's parameters, and let nothing else move."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

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
    nor bias can train (by these masks or requires_grad); or a mapping like `masks`, by layer name, to masks of shape
    (channels,). In train mode the batch's own statistics go on being used for normalising.

    In force from construction until `remove`, or until the end of the outermost `with` block. Several masks on one
    module combine: an entry trains if all of them let it. The gradient is cut in the backward pass, so a mask must be
    in force then. Hooks belong to the tensors: `copy.deepcopy(module)` is not masked, `copy.deepcopy(mask)` is a masked
    copy with its own `module`.

    Raises ValueError for names that match nothing, wrong types, shapes and devices, and for a layer whose
    forward pass would itself write into masked entries (Embedding and EmbeddingBag with max_norm).
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
        if not isinstance(statistics, (bool, Mapping)):
            raise ValueError(f"statistics must be True, False or a mapping by layer name, not {_kind(statistics)}")
        self.module = module
        named = list(module.named_parameters(remove_duplicate=False))
        chosen = _resolve("parameter", masks, named)
        self._masks = [(tensor, mask) for tensor, mask in chosen.values() if mask is not None]
        self._check_layers()
        self._layers = self._frozen_channels(statistics)
        self._blocks = 0  # nested `with` blocks that have been entered
        self._handles: list[RemovableHandle] | None = None  # None: not in force
        self.install()

    def __repr__(self) -> str:
        masks = {id(parameter): mask for parameter, mask in self._masks}
        total = trainable = 0
        for parameter in self.module.parameters():
            mask = masks.get(id(parameter))
            total += parameter.numel()
            trainable += parameter.numel() if mask is None else int(mask.mask(parameter).sum())
        state = "removed" if self._handles is None else "in force"
        return f"GradientMask({trainable:,} of {total:,} entries can train; {state})"

    def install(self) -> None:
        """Bring the mask into force again after `remove`."""
        if self._handles is not None:
            return
        self._handles = []
        for parameter, mask in self._masks:
            ActiveSet.watch(parameter).add_mask(mask)
        for layer, frozen in self._layers:
            keeper = _KeepStatistics(frozen)
            self._handles.append(layer.register_forward_pre_hook(keeper.before))
            self._handles.append(layer.register_forward_hook(keeper.after, always_call=True))

    def remove(self) -> None:
        """End the mask. What backward passes have already cut stays cut until gradients are reset."""
        if self._handles is None:
            return
        for parameter, mask in self._masks:
            ActiveSet.watch(parameter).remove_mask(mask)
        for handle in self._handles:
            handle.remove()
        self._handles = None

    def __enter__(self) -> GradientMask:
        self.install()
        self._blocks += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks -= 1
        if self._blocks == 0:
            self.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": 0, "_handles": None, "in_force": self._handles is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        in_force = state.pop("in_force")
        self.__dict__.update(state)
        if in_force:
            self.install()

    def _check_layers(self) -> None:
        """Raise ValueError for a layer whose forward pass would write into entries that are to stay."""
        frozen = {id(parameter) for parameter, mask in self._masks if not mask.mask(parameter).all()}
        for name, layer in self.module.named_modules():
            renormalised = isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None
            # Not `layer.weight`, which a parametrization would compute, as in a forward pass.
            if renormalised and id(layer._parameters.get("weight")) in frozen:
                raise ValueError(
                    f"layer {name or 'given'!r}, {type(layer).__name__} with max_norm={layer.max_norm}, "
                    "rescales rows in its forward pass, frozen ones too; drop max_norm, or rescale the rows "
                    "that train yourself"
                )

    def _frozen_channels(self, statistics: bool | Mapping[str, MaskValue]) -> list[tuple[nn.Module, Tensor]]:
        """The layers whose running statistics are to be kept, with their frozen channels, boolean (C,)."""
        layers = {
            name: layer
            for name, layer in self.module.named_modules(remove_duplicate=False)
            if isinstance(layer, _NormBase) and layer.running_mean is not None
        }
        if isinstance(statistics, Mapping):
            by_buffer = {id(layer.running_mean): layer for layer in layers.values()}
            named = [(name, layer.running_mean) for name, layer in layers.items()]
            chosen = _resolve("normalisation layer with running statistics", statistics, named)
            return [(by_buffer[id(b)], ~mask.mask(b)) for b, mask in chosen.values() if mask is not None]
        if not statistics:
            return []
        masks = {id(parameter): mask for parameter, mask in self._masks}
        frozen = []
        for layer in {id(layer): layer for layer in layers.values()}.values():
            trains = torch.zeros_like(layer.running_mean, dtype=torch.bool)
            for parameter in layer.parameters():
                if id(parameter) in masks:
                    trains |= masks[id(parameter)].mask(parameter)
                elif parameter.requires_grad:
                    trains.fill_(True)
            if layer.affine and not trains.all():
                frozen.append((layer, ~trains))
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


def _resolve(
    what: str, masks: Mapping[str, MaskValue], named: Iterable[tuple[str, Tensor]]
) -> dict[int, tuple[Tensor, Mask | None]]:
    """For each tensor that a key matches, by id: the tensor and its mask, None where all of it trains."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    keys: dict[int, str] = {}
    chosen: dict[int, tuple[Tensor, Mask | None]] = {}
    for key, value in masks.items():
        if not isinstance(key, str):
            raise ValueError(f"{key!r} is {_kind(key)}; expected the name of a {what} or a pattern")
        matching = [i for i, of_tensor in names.items() if any(_matches(key, name) for name in of_tensor)]
        if not matching:
            raise ValueError(_no_match(what, key, [name for of_tensor in names.values() for name in of_tensor]))
        for i in matching:
            mask = _checked(key, value, names[i][0], tensors[i])
            if keys.get(i) in names[i] and key in names[i] and mask != chosen[i][1]:
                raise ValueError(f"{keys[i]!r} and {key!r} are one tensor; give it one mask")
            keys[i], chosen[i] = key, (tensors[i], mask)
    return chosen


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
    if is_lazy(tensor) or tensor.is_meta:
        raise ValueError(f"{name} has no entries yet; run a lazy layer once, move it off the meta device")
    if isinstance(value, bool):
        return None if value else Mask(None)
    given = f"the mask {key!r} for {name} of shape {tuple(tensor.shape)}"
    if not torch.is_tensor(value):
        raise ValueError(f"{given} is {_kind(value)}; expected True, False or a boolean tensor")
    if value.layout != torch.strided:
        raise ValueError(f"{given} is sparse ({value.layout}); expected a dense tensor, as from mask.to_dense()")
    if value.dtype != torch.bool:
        raise ValueError(f"{given} has dtype {value.dtype}; expected torch.bool, as from mask.bool()")
    if value.device != tensor.device:
        raise ValueError(f"{given} is on {value.device}; move it to {tensor.device}")
    if value.ndim != tensor.ndim or any(m not in (1, n) for m, n in zip(value.shape, tensor.shape, strict=True)):
        raise ValueError(f"{given} has shape {tuple(value.shape)}; expected the same shape, or 1 in a dimension")
    return Mask(value)


def _kind(value: object) -> str:
    return f"the {value!r}" if isinstance(value, type) else f"a {type(value).__name__}"
