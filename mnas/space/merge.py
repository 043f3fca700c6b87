"""Merging: where candidates that share entries of a tensor keep them.

They share one canvas, the smallest box that holds the tensor of each: channels, and every dimension
of what is no convolution, are prefixes; kernels are centred, and a dilated kernel takes every
second or third tap:

    conv3x3.weight  ->  canvas[:, :, 1:4, 1:4]        conv5x5.weight  ->  canvas
    3x3 with dilation 2  ->  canvas[:, :, ::2, ::2]"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from math import gcd, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from mnas.space.canvas import Box, Canvas, sizes, view
from mnas.space.layout import Layout, expanded

ALIGNMENT_BYTES = 64  # of torch's CPU allocator


def canvas_of(
    name: str,
    candidates: Mapping[str, nn.Module],
    tensors: Sequence[Tensor | None],
    layout: Layout | None,
) -> Canvas:
    """The canvas of same-named tensors, one a candidate or None. Raises ValueError for tensors that
    cannot share."""
    present = {c: t for c, t in zip(candidates, tensors, strict=True) if t is not None}
    shapes = {c: tuple(t.shape) for c, t in present.items()}
    if layout is None:
        _check_groups(name, {c: (_layer(candidates[c], name), shapes[c]) for c in present})
    size, boxes = _placed(
        name,
        {c: expanded(name, shape, layout) for c, shape in shapes.items()},
        {c: () if layout else _dilation(candidates[c], name) for c in present},
    )
    return Canvas(size, [boxes.get(c) for c in candidates], [shapes.get(c) for c in candidates])


def agree(canvas: Canvas, tensors: Sequence[Tensor | None]) -> bool:
    """Whether candidates have the same values where they overlap."""
    values = canvas.filled(tensors)
    return all(
        tensor is None or torch.equal(view(values, box), tensor.reshape(sizes(box)))
        for tensor, box in zip(tensors, canvas.boxes, strict=True)
    )


def starting(canvases: Mapping[str, Canvas], tensors: Sequence[Iterable[str]]) -> list[int]:
    """The candidates whose random start counts, by number: those that have tensors which they do
    not share, and the largest, until all entries have one. tensors: names, for each candidate;
    shared are those of the canvases."""
    numel = [
        sum(prod(sizes(c.boxes[n])) for c in canvases.values() if c.boxes[n])
        for n in range(len(tensors))
    ]
    found: list[int] = []
    for number in sorted(range(len(tensors)), key=lambda n: (-numel[n], n)):
        whole = all(name in canvases for name in tensors[number])
        if not (
            whole
            and any(all(c.covers(other, number) for c in canvases.values()) for other in found)
        ):
            found.append(number)
    return sorted(found)


def check_alike(name: str, present: Mapping[str, Tensor]) -> None:
    """Raises ValueError where same-named tensors, by candidate, cannot lie in one storage."""
    for attribute in ("dtype", "device", "requires_grad"):
        values = {c: getattr(t, attribute) for c, t in present.items()}
        if len(set(values.values())) > 1:
            raise ValueError(
                f"{name!r} differs in {attribute} over the candidates: {values}; make them equal"
            )


@torch.no_grad()
def into_one_storage(parameters: Sequence[nn.Parameter]) -> None:
    """Move parameters behind each other, each where a separate tensor could begin: matrix kernels
    may choose their code by alignment. The gaps are zeros, for checkpoints hold them. Left alone is
    what cannot be together, of other types or devices, and what another library or process has its
    hands on."""
    first, (*starts, end) = parameters[0], _starts(parameters)
    alike = all(
        (type(p), p.dtype, p.device) == (nn.Parameter, first.dtype, first.device)
        for p in parameters
    )
    if not alike or _together(parameters) or any(p.is_shared() for p in parameters if p.is_cpu):
        return
    storage = torch.zeros(end, dtype=first.dtype, device=first.device)
    for parameter, start in zip(parameters, starts, strict=True):
        # A dense layout such as channels_last is kept, any other becomes contiguous.
        stride = torch.empty_like(parameter, device="meta").stride()
        place = storage.as_strided(parameter.shape, stride, start)
        parameter.data = place.copy_(parameter)


def storage_of(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The tensor (N,) that parameters lie in; they are moved there if they have been parted.

    Raises ValueError where they cannot lie in one."""
    into_one_storage(parameters)
    if not _together(parameters):
        raise ValueError(
            "same-named parameters of the candidates cannot lie in one storage: they differ in "
            "dtype or device, or are shared with other processes or sharded"
        )
    first = parameters[0].detach()
    return first.new_empty(0).set_(first.untyped_storage())


def _starts(parameters: Sequence[nn.Parameter]) -> list[int]:
    """Where each begins in one storage, and the end, in entries."""
    step = max(1, ALIGNMENT_BYTES // parameters[0].element_size())
    return [0, *itertools.accumulate(-(-p.numel() // step) * step for p in parameters)]


def _together(parameters: Sequence[nn.Parameter]) -> bool:
    if any(type(p) is not nn.Parameter for p in parameters):
        return False
    *starts, end = _starts(parameters)
    storages = {p.untyped_storage().data_ptr() for p in parameters}
    size = parameters[0].untyped_storage().nbytes() // parameters[0].element_size()
    return len(storages) == 1 and size == end and [p.storage_offset() for p in parameters] == starts


def embed(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    """Zeros around a smaller tensor: channels (dimensions 0 and 1) are prefixes, kernels (the
    others) centred."""
    padding: list[int] = []
    for dim in reversed(range(tensor.ndim)):  # F.pad counts from the last dimension
        missing = size[dim] - tensor.shape[dim]
        before = missing // 2 if dim >= 2 else 0
        padding += [before, missing - before]
    return F.pad(tensor, padding) if any(padding) else tensor


def _placed(
    name: str, shapes: Mapping[str, tuple[int, ...]], dilations: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], dict[str, Box]]:
    """The smallest box that holds all tensors (each with the dilation of its kernel, () for what is
    no convolution), and each one's part of it."""
    if len({len(shape) for shape in shapes.values()}) > 1:
        raise ValueError(
            f"nested {name!r} needs as many dimensions in every candidate, not the shapes {shapes}"
        )
    size: list[int] = []
    regions: dict[str, list[range]] = {c: [] for c in shapes}
    convolutions = any(dilations.values())
    for dim in range(len(next(iter(shapes.values())))):
        kernel = convolutions and dim >= 2
        steps = {
            c: d[dim - 2] if d and kernel and shapes[c][dim] > 1 else 0
            for c, d in dilations.items()
        }
        unit = gcd(*steps.values()) or 1
        steps = {c: step // unit or 1 for c, step in steps.items()}
        extents = {c: (shapes[c][dim] - 1) * steps[c] + 1 for c in shapes}
        size.append(max(extents.values()))
        if kernel and any((size[-1] - extent) % 2 for extent in extents.values()):
            raise ValueError(
                f"nested {name!r}: kernels of {extents} taps have no common centre; use only odd "
                "or only even ones"
            )
        for candidate, extent in extents.items():
            start = (size[-1] - extent) // 2 if kernel else 0
            regions[candidate].append(range(start, start + extent, steps[candidate]))
    return tuple(size), {c: tuple(region) for c, region in regions.items()}


def _layer(candidate: nn.Module, name: str) -> nn.Module:
    """The layer that a tensor of a candidate belongs to."""
    return candidate.get_submodule(name.rpartition(".")[0])


def _dilation(candidate: nn.Module, name: str) -> tuple[int, ...]:
    """The dilation of the layer that a tensor belongs to, a number for each kernel dimension; ()
    for other layers."""
    layer = _layer(candidate, name)
    return layer.dilation if isinstance(layer, _ConvNd) else ()


def _check_groups(name: str, layers: Mapping[str, tuple[nn.Module, tuple[int, ...]]]) -> None:
    """Raises ValueError where the first channels of a wide layer are not what a narrow one uses.

    So it is where a tensor is made of blocks, one a group or gate. Depthwise layers are right: a
    channel is a block."""
    if len({shape for _, shape in layers.values()}) > 1:
        for candidate, (layer, _) in layers.items():
            if isinstance(layer, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
                raise ValueError(
                    f"nested {name!r}: {type(layer).__name__} of {candidate!r} packs several "
                    "matrices into one, so a narrow one is no prefix; give all candidates the "
                    "same width, or keep them apart (nested=False)"
                )
    grouped = {
        c: (layer, shape) for c, (layer, shape) in layers.items() if isinstance(layer, _ConvNd)
    }
    if all(layer.groups == 1 for layer, _ in grouped.values()):
        return
    depthwise = all(layer.groups == layer.in_channels for layer, _ in grouped.values())
    if depthwise and len({layer.out_channels / layer.groups for layer, _ in grouped.values()}) == 1:
        return
    if (
        len(
            {(layer.groups, layer.in_channels, layer.out_channels) for layer, _ in grouped.values()}
        )
        > 1
    ):
        groups = {c: f"{layer.groups} of {layer.in_channels}" for c, (layer, _) in grouped.items()}
        raise ValueError(
            f"nested {name!r}: a narrow grouped convolution is no prefix of a wide one (groups of "
            f"channels: {groups}); make groups and widths equal, or all candidates depthwise, or "
            "keep them apart (nested=False)"
        )
