"""SearchSpace: everything that a model with choices spans, as paths and as the names of architectures."""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np
import torch
from torch import nn

from mnas.choice import Choice, substitute

Path = tuple[int, ...]
"""One candidate index per choice, in the order in which the model registers its choices."""


class SearchSpace:
    """The networks that a model with `Choice` modules spans.

    build: a function without arguments that returns a new, randomly initialised model, an ordinary `nn.Module` with
    at least one `Choice` in it. input_shape: (C, H, W) of the images it takes, for counting costs. about:
    what it is, in a sentence of one line. Its attribute `output_shape` is of what comes out for one image,
    (classes,) for logits.

    Raises ValueError if the model cannot be searched.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        *,
        name: str = "unnamed",
        input_shape: tuple[int, ...] = (1, 28, 28),
        about: str = "",
    ) -> None:
        if not callable(build) or isinstance(build, nn.Module):
            raise ValueError(f"build is a {type(build).__name__}; expected a function that returns a new model")
        if not isinstance(about, str) or "\n" in about:
            raise ValueError(f"about={about!r}; expected a sentence of one line")
        self.build = build
        self.name = name
        self.about = about
        self.input_shape = _shape(input_shape)
        with torch.random.fork_rng(devices=[]):  # looking at a space must not change what is drawn next
            model = build()
        if not isinstance(model, nn.Module):
            raise ValueError(f"space {name!r}: the function returned {type(model).__name__}; expected a nn.Module")
        self.choices: tuple[tuple[str, ...], ...] = tuple(choice.names for choice in choices_of(model))
        if not self.choices:
            raise ValueError(f"space {name!r} has no Choice; put one where candidates are to be compared")
        with torch.random.fork_rng(devices=[]):
            self.output_shape: tuple[int, ...] = self._try_candidates(model)

    @torch.no_grad()
    def _try_candidates(self, model: nn.Module) -> tuple[int, ...]:
        """Run every candidate once, the other choices at their first; returns the shape of an output
        without the batch. Raises ValueError for a candidate that does not fit."""
        model.eval()
        choices = choices_of(model)
        first, x = [0] * len(choices), torch.zeros(2, *self.input_shape, dtype=floating_type(model))
        expected: torch.Size | None = None
        for position, choice in enumerate(choices):
            for index, candidate in enumerate(choice.names):
                path = [*first[:position], index, *first[position + 1 :]]
                chosen = {c: c.candidate(i) for c, i in zip(choices, path, strict=True)}
                where = f"space {self.name!r}: candidate {candidate!r} of choice {position} does not fit"
                shape = "x".join(map(str, self.input_shape))
                try:
                    output = substitute(model, chosen)(x)
                except Exception as error:  # whatever torch, or the user's own layers, raise
                    raise ValueError(
                        f"{where} into the network for inputs of {shape} ({' '.join(str(error).split())}); make its "
                        "output the size that the next layer takes, or say input_shape=(C, H, W)"
                    ) from error
                if not isinstance(output, torch.Tensor):
                    raise ValueError(f"{where}: the output is a {type(output).__name__}; return the logits alone")
                expected = expected or output.shape
                if output.shape != expected:
                    raise ValueError(
                        f"{where}: with it the output is {tuple(output.shape)}, with the others {tuple(expected)}; "
                        "make them equal"
                    )
        return tuple(expected[1:])

    @property
    def size(self) -> int:
        """The number of architectures, however large."""
        return prod(len(names) for names in self.choices)

    def __len__(self) -> int:
        if self.size > sys.maxsize:
            raise OverflowError(f"space {self.name!r} has {self.size} networks, too many for len(); use space.size")
        return self.size

    def __bool__(self) -> bool:
        return True  # and not by len, which may overflow

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
        parts = arch.split("-") if isinstance(arch, str) else []
        if len(parts) == len(self.choices) and all(p in names for p, names in zip(parts, self.choices, strict=True)):
            return tuple(names.index(p) for p, names in zip(parts, self.choices, strict=True))
        raise ValueError(f"architecture {arch!r} is not in space {self.name}; expected {self.describe()}")

    def describe(self) -> str:
        """What an architecture's name can be, in a few words."""
        if self.size <= 16:
            return "one of " + ", ".join(map(self.format, self.paths()))
        return f"{len(self.choices)} names joined by '-': {self._pattern()}"

    def check(self, path: Sequence[int]) -> Path:
        """The path as a tuple of int. Raises ValueError unless it has one valid index per choice."""
        if not isinstance(path, (tuple, list)) or len(path) != len(self.choices):
            raise ValueError(f"path {path!r} must have {len(self.choices)} indices, as in {(0,) * len(self.choices)}")
        for position, (index, names) in enumerate(zip(path, self.choices, strict=True)):
            if not isinstance(index, (int, np.integer)) or isinstance(index, bool) or not 0 <= index < len(names):
                raise ValueError(
                    f"path {path!r} has {index!r} at position {position}; expected an index below {len(names)}: {names}"
                )
        return tuple(map(int, path))

    def check_pictures(self, images: torch.Tensor, name: str) -> None:
        """Raise ValueError unless images (N, C, H, W) of the data set `name` are what the networks take."""
        if tuple(images.shape[1:]) != self.input_shape:
            ours, theirs = ("x".join(map(str, shape)) for shape in (self.input_shape, images.shape[1:]))
            raise ValueError(f"space {self.name} takes pictures of {ours}, {name} has {theirs}; change one of them")

    def _pattern(self) -> str:
        return " - ".join("|".join(names) for names in self.choices)


def _shape(given: Sequence[int]) -> tuple[int, ...]:
    try:
        shape = tuple(operator.index(n) for n in given)
    except TypeError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"input_shape={given!r}; expected positive whole numbers, as in (1, 28, 28)")
    return shape


def floating_type(model: nn.Module) -> torch.dtype:
    """The type of the model's parameters, and of the images that it takes."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def choices_of(model: nn.Module) -> list[Choice]:
    """The choices of a model, each once, in the order of registration."""
    return [module for module in model.modules() if isinstance(module, Choice)]
