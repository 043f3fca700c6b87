"""SearchSpace: everything that a model with choices spans, as paths and as the names of architectures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import nn

from mnas.choice import Choice

Path = tuple[int, ...]
"""One candidate index per choice, in the order in which the model registers its choices."""


class SearchSpace:
    """The networks that a model with `Choice` modules spans.

    build: a function without arguments that returns a new, randomly initialised model, an ordinary `nn.Module` with
    at least one `Choice` in it. input_shape: (C, H, W) of the pictures it takes, for counting costs.

    Raises ValueError if the model cannot be searched.
    """

    def __init__(
        self, build: Callable[[], nn.Module], *, name: str = "unnamed", input_shape: tuple[int, ...] = (1, 28, 28)
    ) -> None:
        self.build = build
        self.name = name
        self.input_shape = input_shape
        with torch.random.fork_rng(devices=[]):  # looking at a space must not change what is drawn next
            model = build()
        if not isinstance(model, nn.Module):
            raise ValueError(f"space {name!r}: the function returned {type(model).__name__}; expected a nn.Module")
        self.choices: tuple[tuple[str, ...], ...] = tuple(choice.names for choice in choices_of(model))
        if not self.choices:
            raise ValueError(f"space {name!r} has no Choice; put one where candidates are to be compared")

    @property
    def size(self) -> int:
        """The number of architectures, however large."""
        return prod(len(names) for names in self.choices)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"SearchSpace({self.name!r}, {self.size} architectures: {self._pattern()})"

    def paths(self) -> Iterator[Path]:
        """All paths, the last choice varying fastest."""
        return itertools.product(*(range(len(names)) for names in self.choices))

    def sample(self, generator: torch.Generator | None = None) -> Path:
        """A path drawn uniformly, each choice by itself (Guo et al., ECCV 2020, section 3.2)."""
        return tuple(int(torch.randint(len(names), (), generator=generator)) for names in self.choices)

    def format(self, path: Path) -> str:
        """The architecture's name: the names of its candidates joined by '-'."""
        return "-".join(names[i] for names, i in zip(self.choices, self.check(path), strict=True))

    def parse(self, arch: str) -> Path:
        """The path of an architecture's name. Raises ValueError that says what is valid."""
        parts = arch.split("-")
        if len(parts) == len(self.choices) and all(p in names for p, names in zip(parts, self.choices, strict=True)):
            return tuple(names.index(p) for p, names in zip(parts, self.choices, strict=True))
        if self.size <= 16:
            valid = "one of " + ", ".join(map(self.format, self.paths()))
        else:
            valid = f"{len(self.choices)} names joined by '-': {self._pattern()}"
        raise ValueError(f"architecture {arch!r} is not in space {self.name}; expected {valid}")

    def check(self, path: Sequence[int]) -> Path:
        """The path as a tuple. Raises ValueError unless it has one valid index per choice."""
        if not isinstance(path, (tuple, list)) or len(path) != len(self.choices):
            raise ValueError(f"path {path!r} must have {len(self.choices)} indices, as in {(0,) * len(self.choices)}")
        for position, (index, names) in enumerate(zip(path, self.choices, strict=True)):
            if not isinstance(index, int) or not 0 <= index < len(names):
                raise ValueError(
                    f"path {path!r} has {index!r} at position {position}; expected an index below {len(names)}: {names}"
                )
        return tuple(path)

    def _pattern(self) -> str:
        return " - ".join("|".join(names) for names in self.choices)


def choices_of(model: nn.Module) -> list[Choice]:
    """The choices of a model, each once, in the order of registration."""
    return [module for module in model.modules() if isinstance(module, Choice)]
