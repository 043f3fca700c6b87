"""Merging: the same-named tensors of several candidates in one flat tensor, and where each of them is in it.

Disjoint, every candidate has a run of its own:

    conv3x3.weight (O, I, 3, 3)  ->  weight[0 : 9*O*I]
    conv5x5.weight (O, I, 5, 5)  ->  weight[9*O*I : 34*O*I]

Nested, they share one canvas, the smallest box that holds them all: channels, and every dimension of what is no
convolution, are prefixes; kernels are centred, and a dilated kernel takes every second or third tap:

    conv3x3.weight  ->  canvas[:, :, 1:4, 1:4]        conv5x5.weight  ->  canvas
    3x3 with dilation 2  ->  canvas[:, :, ::2, ::2]

Runs and canvases begin where a separate tensor would: matrix kernels may choose their code by alignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import gcd, prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from mnas.masking import Region

ALIGNMENT_BYTES = 64  # of torch's CPU allocator


class Merged(NamedTuple):
    """A merged tensor (N,). regions: one a candidate, None for those without such a tensor. slots: what memory is
    divided into, the regions themselves if disjoint, one canvas if nested."""

    tensor: Tensor
    regions: tuple[Region | None, ...]
    slots: tuple[Region, ...]


def merge(name: str, candidates: Mapping[str, nn.Module], tensors: Sequence[Tensor | None], nested: bool) -> Merged:
    """Copy same-named tensors, one a candidate or None, into one flat tensor.

    Where nested ones overlap, the values are those of the largest. Raises ValueError for tensors that cannot share.
    """
    present = {c: t for c, t in zip(candidates, tensors, strict=True) if t is not None}
    for attribute in ("dtype", "device", "requires_grad"):
        values = {c: getattr(t, attribute) for c, t in present.items()}
        if len(set(values.values())) > 1:
            raise ValueError(f"{name!r} differs in {attribute} over the candidates: {values}; make them equal")
    sample = next(iter(present.values()))
    if nested:
        _check_groups(name, {c: (_layer(candidates[c], name), tuple(t.shape)) for c, t in present.items()})
        slots, by_candidate = _canvas(name, {c: (t, _dilation(candidates[c], name)) for c, t in present.items()})
    else:
        by_candidate = dict(zip(present, _runs(present.values()), strict=True))
        slots = tuple(by_candidate.values())
    end = max(slot.offset + prod(slot.size) for slot in slots)
    merged = torch.zeros(end, dtype=sample.dtype, device=sample.device)
    for candidate in sorted(present, key=lambda c: present[c].numel()):
        by_candidate[candidate].view(merged).copy_(present[candidate].detach())
    if isinstance(sample, nn.Parameter):
        merged = nn.Parameter(merged, requires_grad=sample.requires_grad)
    return Merged(merged, tuple(by_candidate.get(c) for c in candidates), slots)


def embed(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    """Zeros around a smaller tensor: channels (dimensions 0 and 1) are prefixes, kernels (the others) centred."""
    padding: list[int] = []
    for dim in reversed(range(tensor.ndim)):  # F.pad counts from the last dimension
        missing = size[dim] - tensor.shape[dim]
        before = missing // 2 if dim >= 2 else 0
        padding += [before, missing - before]
    return F.pad(tensor, padding) if any(padding) else tensor


def _runs(tensors: Iterable[Tensor]) -> Iterator[Region]:
    """A run for each tensor, one behind the other."""
    end = 0
    for tensor in tensors:
        step = max(1, ALIGNMENT_BYTES // tensor.element_size())
        offset = -(-end // step) * step
        # A dense layout such as channels_last is kept, any other becomes contiguous.
        yield Region(offset, tuple(tensor.shape), torch.empty_like(tensor, device="meta").stride())
        end = offset + tensor.numel()


def _canvas(
    name: str, tensors: Mapping[str, tuple[Tensor, tuple[int, ...]]]
) -> tuple[tuple[Region], dict[str, Region]]:
    """The smallest box that holds all tensors (each with the dilation of its kernel, none for what is no convolution),
    and each one's region of it."""
    shapes = {c: tuple(t.shape) for c, (t, _) in tensors.items()}
    if len({len(shape) for shape in shapes.values()}) > 1:
        raise ValueError(f"nested {name!r} needs as many dimensions in every candidate, not the shapes {shapes}")
    size, places = [], {c: [] for c in shapes}  # places: (start, step) a dimension
    convolutions = any(dilation for _, dilation in tensors.values())
    for dim in range(len(next(iter(shapes.values())))):
        kernel = convolutions and dim >= 2
        steps = {c: d[dim - 2] if d and kernel and shapes[c][dim] > 1 else 0 for c, (_, d) in tensors.items()}
        unit = gcd(*steps.values()) or 1
        extents = {c: (shapes[c][dim] - 1) * (steps[c] // unit or 1) + 1 for c in shapes}
        size.append(max(extents.values()))
        for candidate, extent in extents.items():
            margin = size[-1] - extent if kernel else 0
            places[candidate].append((margin, steps[candidate] // unit or 1))
        if kernel and any((size[-1] - extent) % 2 for extent in extents.values()):
            raise ValueError(
                f"nested {name!r}: kernels of {extents} taps have no common centre; use only odd or only even ones"
            )
    stride = torch.empty(size, device="meta").stride()
    regions = {}
    for candidate, shape in shapes.items():
        offset = sum((m // 2) * s for (m, _), s in zip(places[candidate], stride, strict=True))
        steps = tuple(step * s for (_, step), s in zip(places[candidate], stride, strict=True))
        regions[candidate] = Region(offset, shape, steps)
    return (Region(0, tuple(size), stride),), regions


def _layer(candidate: nn.Module, name: str) -> nn.Module:
    """The layer that a tensor of a candidate belongs to."""
    return candidate.get_submodule(name.rpartition(".")[0])


def _dilation(candidate: nn.Module, name: str) -> tuple[int, ...]:
    """The dilation of the layer that a tensor belongs to, a number for each kernel dimension; () for other layers."""
    layer = _layer(candidate, name)
    return layer.dilation if isinstance(layer, _ConvNd) else ()


def _check_groups(name: str, layers: Mapping[str, tuple[nn.Module, tuple[int, ...]]]) -> None:
    """Raises ValueError where the first channels of a wide layer are not what a narrow one uses.

    So it is where a tensor is made of blocks, one a group or gate. Depthwise layers are right: a channel is a block.
    """
    if len({shape for _, shape in layers.values()}) > 1:
        for candidate, (layer, _) in layers.items():
            if isinstance(layer, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
                raise ValueError(
                    f"nested {name!r}: {type(layer).__name__} of {candidate!r} packs several matrices into one, so a "
                    "narrow one is no prefix; give all candidates the same width, or keep them apart (nested=False)"
                )
    grouped = {c: (layer, shape) for c, (layer, shape) in layers.items() if isinstance(layer, _ConvNd)}
    if all(layer.groups == 1 for layer, _ in grouped.values()):
        return
    depthwise = all(layer.groups == layer.in_channels for layer, _ in grouped.values())
    if depthwise and len({layer.out_channels / layer.groups for layer, _ in grouped.values()}) == 1:
        return
    if len({(layer.groups, layer.in_channels, layer.out_channels) for layer, _ in grouped.values()}) > 1:
        groups = {c: f"{layer.groups} of {layer.in_channels}" for c, (layer, _) in grouped.items()}
        raise ValueError(
            f"nested {name!r}: a narrow grouped convolution is no prefix of a wide one (groups of channels: {groups}); "
            "make groups and widths equal, or all candidates depthwise, or keep them apart (nested=False)"
        )
