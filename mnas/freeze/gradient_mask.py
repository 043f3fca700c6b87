"""GradientMask: train these entries of a module's parameters, and let nothing else move."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mnas.freeze.active import Mask, Registered, activity_of, follow
from mnas.freeze.names import MaskValue, kind_of, resolve
from mnas.freeze.statistics import KeepStatistics, frozen_channels

IN_FORCE: weakref.WeakSet[GradientMask] = weakref.WeakSet()


@dataclass
class _Masked:
    """A parameter under a mask. names: that the module has it by. shape: that it had first."""

    names: list[str]
    shape: torch.Size
    parameter: nn.Parameter
    mask: Mask


class GradientMask:
    """`GradientMask(module, {"conv1.weight": mask})`: gradients are zero where the mask is False,
    and a `MaskedOptimizer` leaves those entries and their state as they are, to the last bit.

    module: any module; it keeps its parameters, its state dict and its forward pass. masks: by
    parameter name or shell pattern ("layer1.*.weight"): True or False for all entries, or a boolean
    tensor, True = trainable, of the parameter's shape (dimensions of size 1 are expanded: (O, 1, 1,
    1) masks the filters of a convolution). Where several keys match a parameter, the last one
    decides: {"*": False, "fc.*": True} trains fc alone. What no key matches is trained as before.
    Tensors are copied. statistics: True freezes the running statistics of normalisation layers for
    every channel of which neither weight nor bias can train (by these masks or requires_grad); or a
    mapping like `masks`, by layer name, to masks of shape (channels,). In train mode the batch's
    own statistics go on being used for normalising.

    In force from construction until `remove`, or until the end of the outermost `with` block.
    Several masks on one module combine: an entry trains if all of them let it. The gradient is cut
    in the backward pass, so a mask must be in force then. Where the module gets other parameters of
    the same names and shapes, as by `load_state_dict(assign=True)` or `fully_shard`, the mask
    follows at the next forward pass or step of a `MaskedOptimizer`; where it cannot, that raises
    RuntimeError. `copy.deepcopy(module)` is not masked, `copy.deepcopy(mask)` is a masked copy with
    its own `module`.

    Raises ValueError for names that match nothing, wrong types, shapes and devices, and for a layer
    whose forward pass would itself write into masked entries (Embedding and EmbeddingBag with
    max_norm)."""

    def __init__(
        self,
        module: nn.Module,
        masks: Mapping[str, MaskValue],
        *,
        statistics: bool | Mapping[str, MaskValue] = False,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"GradientMask masks a nn.Module, not {kind_of(module)}; call GradientMask(module, "
                "masks)"
            )
        if not isinstance(masks, Mapping):
            raise ValueError(
                f'masks must be a mapping, not {kind_of(masks)}; as in {{"conv1.weight": mask}}'
            )
        if not isinstance(statistics, (bool, Mapping)):
            raise ValueError(
                "statistics must be True, False or a mapping by layer name, not "
                f"{kind_of(statistics)}"
            )
        self.module = module
        named = list(module.named_parameters(remove_duplicate=False))
        chosen = resolve("parameter", masks, named)
        self._masked = [
            _Masked([n for n, p in named if p is parameter], parameter.shape, parameter, mask)
            for parameter, mask in chosen.values()
            if mask is not None
        ]
        self._check_layers()
        masked = {id(m.parameter): m.mask for m in self._masked}
        self._layers = frozen_channels(module, statistics, masked)
        self._blocks = 0  # nested `with` blocks that have been entered
        self._handles: list[RemovableHandle] | None = None  # None: not in force
        self._hook = _Follow(None)
        self._registered: Registered | None = None
        self.install()

    def __repr__(self) -> str:
        state = "removed" if self._handles is None else "in force"
        try:
            self.follow()
        except RuntimeError as error:
            state = f"not in force: {error}"
        masks = {id(masked.parameter): masked.mask for masked in self._masked}
        total = trainable = 0
        for parameter in self.module.parameters():
            mask = masks.get(id(parameter))
            total += parameter.numel()
            trainable += parameter.numel() if mask is None else int(mask.of(parameter).sum())
        return f"GradientMask({trainable:,} of {total:,} entries can train; {state})"

    def install(self) -> None:
        """Bring the mask into force again after `remove`."""
        if self._handles is not None:
            return
        self._handles = []
        for masked in self._masked:
            follow(masked.parameter).add(masked.mask)
        self._hook.mask = self
        if "_modules" in vars(self.module):  # else it is being copied, with the hook and the mask
            self._handles.append(self.module.register_forward_pre_hook(self._hook))
            for masked in self._masked:  # layers may be called without the module that has them
                layers = {_place(self.module, name)[0] for name in masked.names}
                for layer in layers - {self.module, None}:
                    self._handles.append(layer.register_forward_pre_hook(_Follow(self, masked)))
        for _, layer, frozen in self._layers:
            keeper = KeepStatistics(frozen)
            self._handles.append(layer.register_forward_pre_hook(keeper.before))
            self._handles.append(layer.register_forward_hook(keeper.after, always_call=True))
        IN_FORCE.add(self)

    def remove(self) -> None:
        """End the mask. What backward passes have already cut stays cut until gradients are
        reset."""
        if self._handles is None:
            return
        for masked in self._masked:
            _end(masked)
        for handle in self._handles:
            handle.remove()
        self._handles = self._hook.mask = None
        IN_FORCE.discard(self)

    def follow(self) -> None:
        """While in force: mask the parameters that the module has now in place of those that it
        had.

        Raises RuntimeError where it has none of that name and shape, or another layer in place of
        one whose statistics are frozen."""
        if self._handles is None:
            return
        same = all(masked.parameter.shape == masked.shape for masked in self._masked)
        if same and self._registered is not None and not self._registered.changed():
            return
        self._registered = None
        for name, layer, _ in self._layers:
            if name and _place(self.module, f"{name}.running_mean")[0] is not layer:
                raise RuntimeError(
                    f"a GradientMask has lost its layer: {name!r} is another one now; remove() the "
                    "mask and make one of the module as it is"
                )
        for masked in self._masked:
            there = [_parameter(self.module, name) for name in masked.names]
            activity = activity_of(masked.parameter)
            # A tensor that is no parameter has been put there by torch.func, for one call.
            other = any(
                now is not masked.parameter and (now is None or isinstance(now, nn.Parameter))
                for now in there
            )
            held = activity is not None and masked.mask in activity.masks
            if other or not held or masked.parameter.shape != masked.shape:
                self._find(masked)
        self._registered = Registered([self.module])

    def _find(self, masked: _Masked) -> None:
        named = {
            name: parameter
            for name, parameter in self.module.named_parameters(remove_duplicate=False)
            if isinstance(parameter, nn.Parameter)
        }
        names = [name for name in masked.names if name in named] or [
            name for name, parameter in named.items() if parameter is masked.parameter
        ]
        found = {id(named[name]): named[name] for name in names}
        parameter = next(iter(found.values()), None)
        if len(found) != 1 or parameter.shape != masked.shape:
            state = "is several ones now" if found else "is gone"
            if len(found) == 1:
                state = f"is now of shape {tuple(parameter.shape)}"
            raise RuntimeError(
                f"a GradientMask has lost its parameter: {masked.names[0]!r}, of shape "
                f"{tuple(masked.shape)}, {state}; remove() the mask and make one of the "
                "module as it is"
            )
        _end(masked)
        masked.names, masked.parameter = names, parameter
        follow(parameter).add(masked.mask)

    def __enter__(self) -> GradientMask:
        self.install()
        self._blocks += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks -= 1
        if self._blocks == 0:
            self.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_blocks": 0,
            "_handles": None,
            "_registered": None,
            "in_force": self._handles is not None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        in_force = state.pop("in_force")
        self.__dict__.update(state)
        if in_force:
            self.install()

    def _check_layers(self) -> None:
        """Raise ValueError for a layer whose forward pass would write into entries that are to
        stay."""
        frozen = {id(m.parameter) for m in self._masked if not m.mask.of(m.parameter).all()}
        for name, layer in self.module.named_modules():
            renormalised = (
                isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None
            )
            # Not `layer.weight`, which a parametrization would compute, as in a forward pass.
            if renormalised and id(layer._parameters.get("weight")) in frozen:
                raise ValueError(
                    f"layer {name or 'given'!r}, {type(layer).__name__} with "
                    f"max_norm={layer.max_norm}, rescales rows in its forward pass, frozen ones "
                    "too; drop max_norm, or rescale the rows that train yourself"
                )


def _end(masked: _Masked) -> None:
    activity = activity_of(masked.parameter)
    if activity is not None and masked.mask in activity.masks:
        activity.remove(masked.mask, masked.parameter)


def follow_all(parameters: Iterable[Tensor]) -> None:
    """Before these are stepped. A mask that cannot follow raises where it is about one of them."""
    if not IN_FORCE:
        return
    stepped = set(map(id, parameters))
    for mask in list(IN_FORCE):
        try:
            mask.follow()
        except RuntimeError:
            of_mask = (*mask.module.parameters(), *(masked.parameter for masked in mask._masked))
            if any(id(parameter) in stepped for parameter in of_mask):
                raise


def _place(module: nn.Module, name: str) -> tuple[nn.Module | None, str]:
    """The layer in which a parameter of that name is, or would be, and its name there."""
    *path, key = name.split(".")
    for part in path:
        module = None if module is None else module._modules.get(part)
    return module, key


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    layer, key = _place(module, name)
    return None if layer is None else layer._parameters.get(key)


class _Follow:
    """A hook before a forward pass. torch copies the hooks of a module with it, but a copied module
    is not masked: what this hook is copied to has None and does nothing, unless the mask is copied
    with it."""

    def __init__(self, mask: GradientMask | None, masked: _Masked | None = None) -> None:
        self.mask, self.masked = mask, masked

    def __reduce__(self) -> tuple[type[_Follow], tuple[None]]:
        return _Follow, (None,)

    def __call__(self, layer: nn.Module, _: Any) -> None:
        found = self.masked is not None and any(
            parameter is self.masked.parameter for parameter in layer._parameters.values()
        )
        if self.mask is not None and not found:
            self.mask.follow()
