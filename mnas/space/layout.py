"""Layouts: how the dimensions of a tensor are made, where they are blocks of several things.

A layer for queries, keys and values has 3 * heads * 64 rows. Those of a narrow one are not the
first rows of the wide one but the first of each third: with the layout "(3 heads 64) inputs" its
weight is looked at as (3, heads, 64, inputs), where they are first in every dimension."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from torch import Tensor, nn

Layout = tuple[tuple[int | None, ...], ...]
"""For each dimension of a tensor the sizes that it is made of, None for the one that varies."""


def layouts_of(
    layout: Mapping[str, str] | None, tensors: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Layout]:
    """By names of tensors; of several patterns the first that fits. Raises ValueError for patterns
    that fit none, and for layouts that do not fit."""
    found: dict[str, Layout] = {}
    if not isinstance(layout or {}, Mapping):
        raise ValueError(
            f"layout={layout!r}; expected a dict, as in {{'qkv.weight': '(3 width) inputs'}}"
        )
    for pattern, text in (layout or {}).items():
        shapes = [
            (name, tuple(tensor.shape), tensor)
            for of_candidate in tensors.values()
            for name, tensor in of_candidate.items()
            if fnmatchcase(name, str(pattern))
        ]
        if not shapes:
            names = sorted({name for of_candidate in tensors.values() for name in of_candidate})
            raise ValueError(f"layout of {pattern!r} fits no tensor; expected some of {names}")
        parsed = _parsed(pattern, text)
        for name, shape, tensor in shapes:
            if not isinstance(tensor, nn.Parameter):
                raise ValueError(f"layout of {name!r}, a buffer; expected a parameter")
            expanded(name, shape, found.setdefault(name, parsed))
    for name, layout_ in list(found.items()):  # a bias has the rows of its weight
        bias = f"{name.removesuffix('weight')}bias"
        if any(bias in of_candidate for of_candidate in tensors.values()):
            found.setdefault(bias, layout_[:1])
    return found


def _parsed(pattern: str, text: Any) -> Layout:
    word = r"\(([^()]+)\)|([^\s()]+)"
    whole = isinstance(text, str) and re.fullmatch(rf"(?:\s*(?:{word}))+\s*", text)
    groups = re.findall(word, text) if whole else []
    layout: list[tuple[int | None, ...]] = []
    for words in ((inner or outer).split() for inner, outer in groups):
        sizes = tuple(int(word) if word.isdecimal() else None for word in words)
        if sizes.count(None) > 1 or not words or 0 in sizes:
            groups = []
            break
        layout.append(sizes)
    if not groups:
        raise ValueError(
            f"layout {text!r} of {pattern!r}; expected the dimensions, each a name or several "
            "numbers and one name in brackets, as in '(3 width) inputs'"
        )
    return tuple(layout)


def expanded(name: str, shape: tuple[int, ...], layout: Layout | None) -> tuple[int, ...]:
    """The shape in which a tensor is looked at. Raises ValueError where it is not made so."""
    if layout is None:
        return shape
    sizes: list[int] = []
    if len(layout) == len(shape):
        for length, group in zip(shape, layout, strict=True):
            known = prod(size for size in group if size is not None)
            if length % known or (None not in group and length != known):
                break
            sizes += [length // known if size is None else size for size in group]
        else:
            return tuple(sizes)
    text = " ".join("(" + " ".join(str(n or "_") for n in group) + ")" for group in layout)
    raise ValueError(f"layout {text} does not fit {name!r} of shape {shape}; make the sizes agree")
