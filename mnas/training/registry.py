"""The rules by name, with their options, checked once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn

from mnas.space.search_space import SearchSpace
from mnas.training import rules
from mnas.training.recipe import LARGEST, one_of, setting
from mnas.training.rules import Report, Step


@dataclass(frozen=True)
class Rule:
    """run: the function; what it takes by keyword alone are its options. paths: how many it trains
    in a step, of the space and the options. sampler: the one that it is made for; None for any.
    alone: whether it can also train one network by itself. check: raises ValueError for a space or
    options that it is not for."""

    run: Callable[..., Report]
    paths: Callable[..., int]
    sampler: str | None = None
    alone: bool = False
    check: Callable[..., None] = lambda space, **_: None

    @property
    def options(self) -> dict[str, Any]:
        """The names of its options with their defaults; inspect.Parameter.empty for none."""
        parameters = inspect.signature(self.run).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _is_teacher(space: SearchSpace, teacher: Any, **_: Any) -> None:
    """Of networks of the space."""
    if not isinstance(teacher, nn.Module):
        raise ValueError(f"teacher is a {type(teacher).__name__}; expected a torch.nn.Module")
    if any(module.training for module in teacher.modules()):
        raise ValueError("teacher is in train mode; call teacher.eval() first")
    tensors = chain(teacher.parameters(), teacher.buffers())
    inputs = space.inputs(2).to(next((t.device for t in tensors), "cpu"))
    try:
        with torch.no_grad():
            shape = tuple(teacher(*inputs.args, **inputs.kwargs).shape[1:])
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"teacher does not take the images of space {space.name} "
            f"({' '.join(str(error).split())})"
        ) from error
    if shape != space.output_shape:
        raise ValueError(
            f"teacher has outputs of {shape}, the networks of space {space.name} of "
            f"{space.output_shape}; expected the same"
        )


def _has_two(space: SearchSpace, random_paths: int, **_: Any) -> None:
    if random_paths < 2:
        raise ValueError(
            f"random_paths={random_paths}; rule ranked compares two, expected 2 or more"
        )


RULES: dict[str, Rule] = {
    "single_path": Rule(rules.single_path, lambda space: 1, alone=True),
    "fair": Rule(rules.fair, lambda space: max(map(len, space.indices)), sampler="fair"),
    "sandwich": Rule(rules.sandwich, lambda space, random_paths: 2 + random_paths),
    "distilled": Rule(rules.distilled, lambda space, **_: 1, alone=True, check=_is_teacher),
    "path_dropout": Rule(
        rules.path_dropout, lambda space, **_: 0, check=lambda space, **_: rules.mixes(space)
    ),
    "ranked": Rule(rules.ranked, lambda space, random_paths, **_: 2 + random_paths, check=_has_two),
    "dynamic": Rule(rules.dynamic, lambda space, **_: 1),
}
RANGES: dict[str, tuple[type, str, Callable[[Any], bool]]] = {
    "random_paths": (int, "a whole number above 0", lambda v: v > 0),
    "temperature": (float, "a finite number above 0", lambda v: 0 < v <= LARGEST),
    "distill_weight": (float, "a number from 0 to 1", lambda v: 0 <= v <= 1),
    "drop": (float, "a number from 0 to below 1", lambda v: 0 <= v < 1),
    "rank_weight": (float, "0 or a finite positive number", lambda v: 0 <= v <= LARGEST),
    "decay_smallest": (float, "a finite number above 0", lambda v: 0 < v <= LARGEST),
    "decay_largest": (float, "a finite number above 0", lambda v: 0 < v <= LARGEST),
    "momentum_groups": (int, "a whole number above 0", lambda v: v > 0),
    "ghost": (int, "a whole number above 0", lambda v: v > 0),
}
"""Of each option: its type and the values that it may have."""


@dataclass(frozen=True)
class Bound:
    """A rule with its options. paths: as many are trained in each step; None if that is unknown."""

    name: str
    run: Callable[..., Report]
    paths: int | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, step: Step) -> Report:
        return self.run(step, **self.options)


def bound(
    rule: str | Callable[[Step], Report],
    space: SearchSpace,
    sampler: str | None = None,
    options: Mapping[str, Any] | None = None,
    alone: bool = False,
) -> Bound:
    """A rule for a space. rule: a name, or a function of a `Step` of the user's own, without
    options. alone: to train one network by itself.

    Raises ValueError for what does not fit together."""
    options = options or {}
    if callable(rule):
        if options:
            raise ValueError(
                f"options {', '.join(options)} of a rule of your own; expected none: bind them "
                "with functools.partial"
            )
        return Bound(getattr(rule, "__name__", type(rule).__name__), rule, None)
    one_of("rule", rule, RULES)
    known = RULES[rule]
    if alone and not known.alone:
        names = ", ".join(name for name, other in RULES.items() if other.alone)
        raise ValueError(f"rule {rule} trains a supernet; expected one of {names} for one network")
    if sampler is not None and known.sampler not in (None, sampler):
        raise ValueError(f"sampler={sampler!r}; rule {rule} expects {known.sampler}")
    checked = checked_options(rule, options)
    known.check(space, **checked)
    return Bound(rule, known.run, known.paths(space, **checked), checked)


def owners(option: str) -> list[str]:
    """The rules that have an option."""
    return [name for name, rule in RULES.items() if option in rule.options]


def checked_options(rule: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a rule: those given, and defaults. Raises ValueError for those of other rules,
    out of range, or missing."""
    own = RULES[rule].options
    for name in given:
        if name not in own:
            raise ValueError(
                f"rule {rule} has no option {name}; expected {', '.join(own) or 'none'}"
            )
    found = {**own, **given}
    for name, value in found.items():
        if value is inspect.Parameter.empty:
            raise ValueError(f"rule {rule} needs {name}; give it")
        if name in RANGES:
            found[name] = setting(name, value, *RANGES[name])
    return found
