"""Which candidate computes another one when its tensors are padded with zeros: what masked execution needs."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

from mnas.masking import Region


def shape_misfit(outer: list[Region | None], inner: list[Region | None]) -> str | None:
    """Why the tensors of one candidate do not lie inside those of another; None where they do."""
    for large, small in zip(outer, inner, strict=True):
        if (large is None) != (small is None):
            return "one has a parameter that the other lacks"
        if large is not None and not fits(small.size, large.size):
            return f"shape {small.size} does not fit into {large.size}"
    return None


def fits(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether a shape is nowhere larger than another."""
    return len(small) == len(large) and all(a <= b for a, b in zip(small, large, strict=True))


def misfit(outer: nn.Module, inner: nn.Module, nested: bool) -> str | None:
    """Why zero padding (nested: zeros between taps, too) does not turn `outer` into `inner`; None where it does."""
    if type(outer) is not type(inner):
        return f"{type(inner).__name__} is no {type(outer).__name__}"
    if isinstance(outer, _ConvNd):
        for option in ("stride", "groups", "padding_mode", "output_padding", *(() if nested else ("dilation",))):
            if getattr(outer, option) != getattr(inner, option):
                return f"{option} {getattr(inner, option)} is not {getattr(outer, option)}"
        if outer.padding_mode != "zeros" or _margins(outer) != _margins(inner):
            return f"padding {inner.padding} of kernel {inner.kernel_size} does not centre it in {outer.kernel_size}"
        return None
    if outer.extra_repr() != inner.extra_repr():
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
