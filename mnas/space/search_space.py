"""SearchSpace: everything that a model with choices spans, as paths and as the names of
architectures."""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mnas.space.choice import Choice, choices_of
from mnas.space.coupling import Coupling, Key, Path, Place
from mnas.space.decision import Decision, noticing
from mnas.space.fitting import check_fit
from mnas.space.given import GivenPath, indices, shown
from mnas.space.inputs import Inputs

MANY = 100_000  # networks; all of a larger space are never listed


class SearchSpace:
    """The networks that a model with `Choice` modules spans.

    build: a function without arguments that returns a new, randomly initialised model, an ordinary
    `nn.Module` with at least one `Choice` in it. input_shape: (C, H, W) of the images it takes, for
    counting costs. example: in its place, what the model is called with: a tensor (B, ...) of any
    type, a tuple of arguments, or a dict of them by name. about: what it is, in a sentence of one
    line. fresh: where what `build` returns has given weights, as pretrained ones, a function that
    returns the same with a random start, for `mnas.standalone`. Its attribute `decisions` has what
    a path decides, `output_shape` is of what comes out for one image, (classes,) for logits.

    Raises ValueError if the model cannot be searched.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        *,
        name: str = "unnamed",
        input_shape: tuple[int, ...] = (1, 28, 28),
        example: Any = None,
        about: str = "",
        fresh: Callable[[], nn.Module] | None = None,
    ) -> None:
        if not callable(build) or isinstance(build, nn.Module):
            raise ValueError(
                f"build is a {type(build).__name__}; expected a function that returns a new model"
            )
        if not isinstance(about, str) or "\n" in about:
            raise ValueError(f"about={about!r}; expected a sentence of one line")
        self.build = build
        self._fresh = fresh
        self.begins_at_random = False  # until somebody has looked
        self.name = name
        self.about = about
        with torch.random.fork_rng(devices=[]), noticing() as made:
            model = build()  # looking at a space must not change what is drawn next
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"space {name!r}: the function returned {type(model).__name__}; expected a "
                "nn.Module"
            )
        choices = choices_of(model)
        if not choices:
            raise ValueError(
                f"space {name!r} has no Choice; put one where candidates are to be compared"
            )
        self.decisions = _decisions(name, choices, made)
        self.coupling = _coupling(self.decisions, choices)
        self.fixed: dict[int, int] = {}
        self._places = [(choice.names, choice.table) for choice in choices]
        self._example = example
        self.input_shape: tuple[int, ...] = ()
        if example is None:
            self.input_shape = _shape(input_shape)
        elif isinstance(example, Tensor):
            self.input_shape = tuple(example.shape[1:])
        with torch.random.fork_rng(devices=[]):
            output = check_fit(self, model)
        self.output_shape: tuple[int, ...] = (
            tuple(output.shape[1:]) if isinstance(output, Tensor) else ()
        )

    def fresh(self) -> SearchSpace:
        """The same space, whose models have a random start; itself, unless `build` gives weights.
        Raises ValueError where nothing says how to begin at random."""
        if self._fresh is None:
            return self
        twin = copy.copy(self)
        twin.build, twin._fresh = self._fresh, None
        return twin

    def restricted(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> SearchSpace:
        """The networks with these values, by the names of decisions: the space of a sub-supernet
        (Zhao et al., ICML 2021). Paths, names and weights are those of the whole space; what is
        sampled, listed, parsed or named an extreme is of these networks. One that no such value
        matters to is among them.

        Raises ValueError for another name or value."""
        path, names = self.path(values, **more), {**(values or {}), **more}
        twin = copy.copy(self)
        twin.fixed = self.fixed | {
            i: path[i] for i, decision in enumerate(self.decisions) if decision.name in names
        }
        vars(twin).pop("_within", None)
        return twin

    @property
    def group(self) -> tuple[str, ...]:
        """What it is restricted to, as choice0=conv5x5."""
        return tuple(
            f"{self.decisions[i].name}={self.decisions[i].labels[value]}"
            for i, value in sorted(self.fixed.items())
        )

    @property
    def title(self) -> str:
        """Its name, and what it is restricted to."""
        return f"{self.name}{' with ' if self.fixed else ''}{' and '.join(self.group)}"

    @property
    def indices(self) -> tuple[tuple[int, ...], ...]:
        """For each decision those of the values that it can have: of all, or of one."""
        return self._within.indices

    def __contains__(self, path: Sequence[int]) -> bool:
        """Whether the network of a path is one of the space."""
        key = self.key(path)
        return not self.fixed or self._within.first(dict(enumerate(key))) is not None

    def everything(self) -> tuple[int | Tensor, ...]:
        """The mixture of all candidates, each with the weight 1."""
        return tuple(
            self.fixed.get(i, torch.ones(len(decision)))
            for i, decision in enumerate(self.decisions)
        )

    def check_build(self, choices: Sequence[Choice]) -> None:
        """Raise ValueError unless a new model has the choices that the space was declared with."""
        if [(choice.names, choice.table) for choice in choices] != self._places:
            raise ValueError(
                f"space {self.name}: the function has returned another model than when the space "
                "was declared; make what it builds depend on nothing but itself"
            )

    @property
    def places(self) -> tuple[Place, ...]:
        """For each choice of the model, the decisions that it reads and what they give."""
        return self.coupling.places

    def inputs(self, batch: int = 1, dtype: torch.dtype | None = None) -> Inputs:
        """What the networks are called with: the example, or zeros for images."""
        if self._example is None:
            return Inputs.of(torch.zeros(batch, *self.input_shape, dtype=dtype))
        return Inputs.of(tree_map_only(Tensor, torch.clone, self._example))

    @property
    def choices(self) -> tuple[tuple[str, ...], ...]:
        """The names of what each decision can be."""
        return tuple(decision.labels for decision in self.decisions)

    @property
    def size(self) -> int:
        """The number of networks, however large: paths that are one network count once."""
        return self._within.size

    def __len__(self) -> int:
        if self.size > sys.maxsize:
            raise OverflowError(
                f"space {self.name!r} has {self.size} networks, too many for len(); use space.size"
            )
        return self.size

    def __bool__(self) -> bool:
        return True  # and not by len, which may overflow

    def __repr__(self) -> str:
        return f"SearchSpace({self.name!r}, {self.size} architectures: {self._pattern()})"

    def paths(self) -> Iterator[Path]:
        """The canonical paths of all networks, the last decision varying fastest."""
        if not self.fixed:
            return self.coupling.networks()
        return iter(sorted(map(self.coupling.canonical, self._within.networks())))

    def path(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> Path:
        """The path with these values, by the names of decisions; the others are at their first.

        Raises ValueError for another name or value, also for one that the space has left out."""
        given = {**(values or {}), **more}
        names = [decision.name for decision in self.decisions]
        for name in given:
            if name not in names:
                raise ValueError(
                    f"space {self.name} has no decision {name!r}; expected one of "
                    f"{', '.join(names)}"
                )
        found = []
        for decision, left in zip(self.decisions, self.indices, strict=True):
            index = left[0]
            if decision.name in given:
                index = decision.index(given[decision.name])
                if index not in left:
                    left_out = f"{decision.name}={decision.labels[index]}"
                    raise ValueError(f"{left_out} is not in space {self.title}")
            found.append(index)
        return tuple(found)

    def values(self, path: GivenPath) -> dict[str, Any]:
        """The values of a path, by the names of decisions."""
        return {
            decision.name: decision.values[index]
            for decision, index in zip(self.decisions, self.check(path), strict=True)
        }

    def key(self, path: GivenPath) -> Key:
        """The network of a path: the index of a candidate for each choice of the model."""
        return self.coupling.key(self.check(path))

    def canonical(self, path: GivenPath) -> Path:
        """The first of the paths that are the same network: decisions that do not matter to it are
        at their first values."""
        return self.coupling.canonical(self.check(path))

    def sample(self, generator: torch.Generator | None = None) -> Path:
        """The canonical path of decisions drawn uniformly, each by itself (Guo et al., ECCV
        2020)."""
        drawn = (i[int(torch.randint(len(i), (), generator=generator))] for i in self.indices)
        return self.coupling.canonical(tuple(drawn))

    def format(self, path: GivenPath) -> str:
        """The architecture's name, the same for all paths that are one network: what is decided,
        joined by '-'."""
        path = self.canonical(path)
        return "-".join(d.format(i) for d, i in zip(self.decisions, path, strict=True))

    def parse(self, arch: str) -> Path:
        """The path of an architecture's name. Raises ValueError that says what is valid."""
        parts = arch.split("-") if isinstance(arch, str) else []
        if len(parts) == len(self.decisions):
            found = [d.parse(part) for d, part in zip(self.decisions, parts, strict=True)]
            if None not in found and tuple(found) in self:
                return tuple(found)
        raise ValueError(
            f"architecture {arch!r} is not in space {self.title}; expected {self.describe()}"
        )

    def names(self) -> list[str]:
        """Of all networks. Raises ValueError where they are more than anybody runs."""
        paths = prod(map(len, self.indices))  # those that are one network, too
        if self.size > MANY or paths > 100 * MANY:
            raise ValueError(
                f"space {self.name} has {self.size} networks, too many to go through; draw some, "
                "or name one"
            )
        return [self.format(path) for path in self.paths()]

    def describe(self) -> str:
        """What an architecture's name can be, in a few words."""
        if self.size <= 16:
            return "one of " + ", ".join(map(self.format, self.paths()))
        return f"{len(self.decisions)} names joined by '-': {self._pattern()}"

    def check(self, path: GivenPath) -> Path:
        """The path as a tuple of int, whatever it is given as: see `GivenPath`. Raises ValueError
        unless it has one valid index per decision, or is the name of an architecture."""
        if type(path) is tuple and len(path) == len(self._lengths):
            pairs = zip(path, self._lengths, strict=True)
            if all([type(index) is int and 0 <= index < length for index, length in pairs]):
                return path  # in a microsecond or two
        if isinstance(path, str):
            return self.parse(path)
        path = indices(path)
        if not isinstance(path, (tuple, list)) or len(path) != len(self.choices):
            known = ", ".join(decision.name for decision in self.decisions)
            raise ValueError(
                f"path {shown(path)} must have {len(self.choices)} indices, whole numbers as "
                f"in {(0,) * len(self.choices)}, one for each of {known}"
            )
        for position, (index, names) in enumerate(zip(path, self.choices, strict=True)):
            if (
                not isinstance(index, (int, np.integer))
                or isinstance(index, bool)
                or not 0 <= index < len(names)
            ):
                raise ValueError(
                    f"path {shown(path)} has {index!r} at position {position}; expected an index "
                    f"below {len(names)}: {names}"
                )
        return tuple(map(int, path))

    def at(self, resolution: int) -> SearchSpace:
        """The same space for images of so many pixels a side; its costs are for these. Raises
        ValueError where its networks cannot take them."""
        if self._example is not None or len(self.input_shape) != 3:
            raise ValueError(
                f"space {self.name} takes no images (C, H, W), which alone have a resolution"
            )
        shape = (self.input_shape[0], resolution, resolution)
        if shape == self.input_shape:
            return self
        options = {"name": self.name, "about": self.about, "fresh": self._fresh}
        twin = SearchSpace(self.build, input_shape=shape, **options)
        twin.fixed = self.fixed
        return twin

    def check_images(self, images: torch.Tensor, name: str) -> None:
        """Raise ValueError unless images (N, C, H, W) of the data set `name` are what the networks
        take."""
        if tuple(images.shape[1:]) != self.input_shape:
            ours, theirs = (
                "x".join(map(str, shape)) for shape in (self.input_shape, images.shape[1:])
            )
            raise ValueError(
                f"space {self.name} takes images of {ours}, {name} has {theirs}; change one "
                "of them, or give the side of both (--resolution)"
            )

    @cached_property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self.decisions))

    @cached_property
    def _within(self) -> Coupling:
        return self.coupling.within(self.fixed) if self.fixed else self.coupling

    def _pattern(self) -> str:
        return " - ".join(
            "|".join(d.format(i) if i == indices[0] else d.labels[i] for i in indices)
            for d, indices in zip(self.decisions, self.indices, strict=True)
        )


def _decisions(
    name: str, choices: Sequence[Choice], made: Sequence[Decision]
) -> tuple[Decision, ...]:
    """What the choices read, each once, in the order in which they first do."""
    found: dict[str, Decision] = {}
    for position, choice in enumerate(choices):
        for decision in choice.decisions_at(position):
            known = found.setdefault(decision.name, decision)
            if known != decision:
                raise ValueError(
                    f"space {name!r} has two decisions named {decision.name!r}, of the values "
                    f"{known.values} and {decision.values}; give each a name of its own"
                )
    for decision in made:
        if decision.name not in found:
            raise ValueError(
                f"space {name!r} never reads decision {decision.name!r}; give it to a Choice of "
                "the model, or leave it out"
            )
    return tuple(found.values())


def _coupling(decisions: Sequence[Decision], choices: Sequence[Choice]) -> Coupling:
    position_of = {decision.name: position for position, decision in enumerate(decisions)}
    places = [
        Place([position_of[d.name] for d in choice.decisions_at(position)], choice.table)
        for position, choice in enumerate(choices)
    ]
    return Coupling([range(len(decision)) for decision in decisions], places)


def _shape(given: Sequence[int]) -> tuple[int, ...]:
    try:
        shape = tuple(operator.index(n) for n in given)
    except TypeError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(
            f"input_shape={given!r}; expected positive whole numbers, as in (1, 28, 28)"
        )
    return shape
