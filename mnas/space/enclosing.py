"""The enclosing candidate: the one that computes every other when its tensors are padded with
zeros. Masked execution and mixtures run on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

from mnas.space.canvas import Canvas, Region, sizes, view
from mnas.space.merge import embed
from mnas.space.noting import reach
from mnas.space.skeleton import copied, fill, is_hooked, without_ours
from mnas.space.sliced import OfPath, Part, sliced, tensors_of, transformed

if TYPE_CHECKING:
    from mnas.space.choice import Choice

LINEAR = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Layers whose output is linear in all of their parameters together."""


def masked(choice: Choice, index: int) -> nn.Module:
    """The module of the candidate that encloses this one, on `W * mask`: what is no part of the
    candidate is zero, whatever is there."""
    outer = choice.enclosing(index)
    own, module = dict(choice.module(index).named_buffers()), choice.module(outer)
    tensors = dict(choice.shared_buffers(index))
    padded = {}
    for name, buffer in module.named_buffers():
        if own[name].shape == buffer.shape:
            tensors[name] = own[name]
        else:
            rest = 1 if name.endswith("running_var") else 0  # of channels that are zero
            tensors[name] = padded[name] = torch.full_like(buffer, rest)
            view(tensors[name], tuple(map(range, own[name].shape))).copy_(own[name])
    activities = choice.activities(index)
    for name in choice.parameter_names:
        if choice.shape(name, outer) is not None:
            masked = [torch.where(mask, slot, 0) for slot, mask in _slots(choice, name, index)]
            for slot in masked:  # NaN * 0 would be NaN
                if slot.requires_grad and not transformed():
                    slot.register_hook(lambda _: reach(activities))
            tensors[name] = _in(choice, name, outer, masked)
    made = without_ours(fill(module, tensors))
    if padded:
        made.register_forward_hook(partial(_keep, own, padded))
    return made


def _keep(own: dict[str, Tensor], padded: dict[str, Tensor], *_: Any) -> None:
    """After a forward pass: a candidate's own statistics."""
    for name, buffer in padded.items():
        own[name].copy_(view(buffer, tuple(map(range, own[name].shape))))


def _in(choice: Choice, name: str, outer: int, masked: list[Tensor]) -> Tensor:
    """What is left of the merged tensor behind a mask, as the enclosing candidate's tensor."""
    canvas = choice.canvases.get(name)
    if canvas is not None:
        whole = view(masked[0], canvas.boxes[outer])
    else:
        whole = sum(embed(slot, choice.shape(name, outer)) for slot in masked)
    return whole.reshape(choice.shape(name, outer))


def _slots(choice: Choice, name: str, index: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The merged tensor of a parameter: a canvas that candidates share, or a slot for each that the
    same one encloses; with the mask of one candidate."""
    canvas = choice.canvases.get(name)
    if canvas is not None:
        atoms = [choice._parameters[key] for key in choice.shared[name]]
        whole = Part(0, Region.of(canvas.atoms, canvas.whole, canvas.size))
        merged = whole.made(atoms) if transformed() else OfPath.apply([whole], (), *atoms)[0]
        mask = torch.zeros(canvas.size, dtype=torch.bool, device=merged.device)
        view(mask, canvas.boxes[index]).fill_(True)
        yield merged, mask
        return
    for other in range(len(choice)):
        if choice.enclosing(other) == choice.enclosing(index):
            slot = dict(choice.module(other).named_parameters())[name]
            yield slot, torch.tensor(other == index, device=slot.device)


class Mixture(nn.Module):
    """The weighted sum of the outputs of modules."""

    def __init__(self, modules: Sequence[nn.Module], weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.candidates, self.weights = nn.ModuleList(modules), tuple(weights)

    def forward(self, *inputs: Any) -> Tensor:
        outputs = []
        for module, weight in zip(self.candidates, self.weights, strict=True):
            last = module is self.candidates[-1]
            # One may work in place on what it is given.
            given = inputs if last else tree_map(copied, inputs)
            outputs.append(weight * module(*given))
        if len({output.shape for output in outputs}) > 1:
            shapes = [tuple(output.shape) for output in outputs]
            raise ValueError(f"outputs of shapes {shapes} have no sum; mix candidates of one width")
        return sum(outputs)


def mixture(choice: Choice, weights: Mapping[int, Tensor]) -> nn.Module:
    """The weighted sum of candidates, by number; see `Choice.mixture`."""
    outer = choice.enclosing(0)
    if not _one_layer(choice) or any(choice.enclosing(i) != outer for i in range(len(choice))):
        return Mixture([sliced(choice, index) for index in weights], list(weights.values()))
    found = {
        i: {**dict(choice.module(i).named_parameters()), **tensors_of(choice, i)} for i in weights
    }
    activities = [activity for i in weights for activity in choice.activities(i)]
    tensors = {}
    for name in choice.parameter_names:
        canvas, size = choice.canvases.get(name), choice.box_sizes(name, outer)
        whole = sum(
            weight * embed(_placed(found[i][name], canvas, i), size)
            for i, weight in weights.items()
        )
        tensors[name] = whole.reshape(choice.shape(name, outer))
        if tensors[name].requires_grad and not transformed():
            tensors[name].register_hook(lambda _: reach(activities))
    return without_ours(fill(choice.module(outer), tensors))


def _one_layer(choice: Choice) -> bool:
    """Whether the sum of outputs is the output of a layer with the sum of parameters: single
    convolutions or linear layers, of the same width."""
    layers = [without_ours(choice.module(index)) for index in range(len(choice))]
    return (
        all(type(layer) in LINEAR and not is_hooked(layer) for layer in layers)
        and not any(True for _ in choice.buffers())
        and len(set(map(_widths, layers))) == 1
    )


def _placed(tensor: Tensor, canvas: Canvas | None, index: int) -> Tensor:
    """A candidate's tensor in its place on the canvas, zeros around it."""
    if canvas is None:
        return tensor
    whole = tensor.new_zeros(canvas.size)
    box = canvas.boxes[index]
    view(whole, box).copy_(tensor.view(sizes(box)))
    return whole


def enclosing(choice: Choice, index: int) -> int:
    """The largest candidate that computes this one when zeros are around its tensors, by number; at
    worst the candidate itself."""
    names = choice.parameter_names
    inner = [choice.box_sizes(name, index) for name in names]
    # Zeros between the taps of a dilated kernel are there on a shared canvas only.
    on_canvas = choice.nested and all(
        name in choice.canvases or shape is None or len(shape) <= 2
        for name, shape in zip(names, inner, strict=True)
    )
    for outer in sorted(range(len(choice)), key=choice.numel, reverse=True):
        shapes = [choice.box_sizes(name, outer) for name in names]
        if outer == index or (
            misfit(choice.module(outer), choice.module(index), on_canvas) is None
            and shape_misfit(shapes, inner) is None
            and all(c.covers(outer, index) for c in choice.canvases.values())
        ):
            return outer
    return index


def shape_misfit(
    outer: list[tuple[int, ...] | None], inner: list[tuple[int, ...] | None]
) -> str | None:
    """Why the tensors of one candidate do not lie inside those of another; None where they do."""
    for large, small in zip(outer, inner, strict=True):
        if (large is None) != (small is None):
            return "one has a parameter that the other lacks"
        if large is not None and not fits(small, large):
            return f"shape {small} does not fit into {large}"
    return None


def fits(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether a shape is nowhere larger than another."""
    return len(small) == len(large) and all(a <= b for a, b in zip(small, large, strict=True))


def misfit(outer: nn.Module, inner: nn.Module, nested: bool) -> str | None:
    """Why zero padding (nested: zeros between taps, too) does not turn `outer` into `inner`; None
    where it does."""
    if type(outer) is not type(inner):
        return f"{type(inner).__name__} is no {type(outer).__name__}"
    if isinstance(outer, _ConvNd):
        depthwise = outer.groups == outer.in_channels and inner.groups == inner.in_channels
        for option in (
            "stride",
            *(() if depthwise else ("groups",)),
            "padding_mode",
            "output_padding",
            *(() if nested else ("dilation",)),
        ):
            if getattr(outer, option) != getattr(inner, option):
                return f"{option} {getattr(inner, option)} is not {getattr(outer, option)}"
        if outer.padding_mode != "zeros" or _margins(outer) != _margins(inner):
            return (
                f"padding {inner.padding} of kernel {inner.kernel_size} does not centre it in "
                f"{outer.kernel_size}"
            )
        return None
    if isinstance(outer, _BatchNorm):  # channels that are zero stay so
        settings = ("eps", "momentum", "affine", "track_running_stats")
        if any(getattr(outer, key) != getattr(inner, key) for key in settings):
            return f"{inner} differs from {outer}"
    elif not isinstance(outer, (nn.Linear, nn.Embedding)) and (
        outer.extra_repr() != inner.extra_repr()
    ):
        return f"{inner} differs from {outer}"
    children = zip(outer.children(), inner.children(), strict=False)
    if len(list(outer.children())) != len(list(inner.children())):
        return "their layers differ in number"
    return next((reason for a, b in children if (reason := misfit(a, b, nested))), None)


def _margins(conv: _ConvNd) -> tuple[object, ...]:
    """What padding leaves after half a kernel: equal margins mean equally centred kernels."""
    extents = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    if conv.padding == "same":
        return tuple("more behind than before" if extent % 2 else 0 for extent in extents)
    padding = [0] * len(extents) if conv.padding == "valid" else conv.padding
    return tuple(2 * p - extent for p, extent in zip(padding, extents, strict=True))


def _widths(layer: nn.Module) -> tuple[int, ...]:
    names = ("in_channels", "out_channels", "in_features", "out_features")
    return tuple(getattr(layer, name) for name in names if hasattr(layer, name))
