"""Spaces whose models are built by a function inside of another one, which pickle cannot find."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from torch import nn

from mnas.space.search_space import SearchSpace

P = ParamSpec("P")


class Build:
    """What builds the models of a space, pickled as the call that has declared the space.

    declare: a function of a module, by whose name a pickle finds it. build: what that call gave; by
    default it is made again when the first model is wanted."""

    def __init__(
        self,
        declare: Callable[..., SearchSpace],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        build: Callable[[], nn.Module] | None = None,
    ) -> None:
        self._call = declare, args, dict(kwargs)
        self._build = build

    def __call__(self) -> nn.Module:
        if self._build is None:
            declare, args, kwargs = self._call
            self._build = declare(*args, **kwargs).build
        return self._build()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._call


def remade(declare: Callable[P, SearchSpace]) -> Callable[P, SearchSpace]:
    """A function that declares a space, whose supernets can be pickled then."""

    @functools.wraps(declare)
    def declared(*args: P.args, **kwargs: P.kwargs) -> SearchSpace:
        space = declare(*args, **kwargs)
        space.build = Build(declared, args, kwargs, space.build)
        return space

    return declared
