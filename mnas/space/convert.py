"""convert: an existing model, with the weights that it has, becomes a search space."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mnas.space.choice import Choice
from mnas.space.decision import Decision
from mnas.space.rules import Match, Rule
from mnas.space.search_space import SearchSpace


def convert(
    model: nn.Module,
    rules: Rule | Iterable[Rule],
    *,
    name: str = "converted",
    input_shape: tuple[int, ...] = (3, 224, 224),
    example: Any = None,
    fresh: Callable[[], nn.Module] | None = None,
) -> SearchSpace:
    """A search space of a model in which rules put choices, as
    `convert(resnet18(), [mnas.rules.kernels("layer*.conv2", (3, 5))])`.

    A layer becomes what the first rule makes of it that selects it and applies to it
    (`mnas/space/rules.py`). Its first candidate is the layer as given, so that `space.path()` is
    the given model and computes the same bits, and supernets begin with the given weights. The
    model is copied, and not changed. Decisions are called after layers: `layer1_0_conv2`.
    input_shape, example: of what the model takes, as in `mnas.SearchSpace`. fresh: a function that
    returns the same model with a random start, for `mnas.standalone`.

    Raises ValueError for a rule that applies to nothing, a layer with choices inside and around
    it, weights that layers share, candidates that do not fit, and nested candidates that would
    change the weights of the given layer."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    rules = (rules,) if isinstance(rules, Rule) else tuple(rules)
    for rule in rules:
        if not isinstance(rule, Rule):
            raise ValueError(
                f"a rule is a {type(rule).__name__}; expected what a function of mnas.rules "
                "returns, as mnas.rules.kernels('layer1.*', (3, 5))"
            )
    if fresh is not None and (not callable(fresh) or isinstance(fresh, nn.Module)):
        raise ValueError(
            f"fresh is a {type(fresh).__name__}; expected a function that returns a new model"
        )
    build = _Build(copy.deepcopy(model), rules)
    return SearchSpace(
        build, name=name, input_shape=input_shape, example=example, fresh=_Fresh(build, fresh)
    )


class _Build:
    """Returns a new copy of a model with choices in it. A class, so that supernets can be
    pickled."""

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...]) -> None:
        self.model, self.rules = model, rules

    def __call__(self) -> nn.Module:
        model = copy.deepcopy(self.model)

        def another(name: str) -> nn.Module:
            return copy.deepcopy(self.model.get_submodule(name))

        return converted(model, self.rules, another, given=True)


class _Fresh:
    """The same with a random start."""

    def __init__(self, build: _Build, fresh: Callable[[], nn.Module] | None) -> None:
        self.build, self.fresh = build, fresh

    def __call__(self) -> nn.Module:
        if self.fresh is None:
            raise ValueError(
                "the space was converted of a model with its weights, so its networks have no "
                "random start; give convert(..., fresh=FUNCTION) a function that returns a new "
                "model, or export with these weights: mnas.export(mnas.Supernet(space), path)"
            )
        model = self.fresh()
        expected, found = map(_shapes, (self.build.model, model))
        if expected != found:
            differing = dict(expected.items() ^ found.items())
            raise ValueError(
                f"fresh() returns another model than was converted: {', '.join(sorted(differing))} "
                "differ; make it return the same with a random start"
            )

        def another(name: str) -> nn.Module:
            return self.fresh().get_submodule(name)

        return converted(model, self.build.rules, another, given=False)


def _shapes(model: Any) -> dict[str, Any]:
    tensors = model.state_dict().items() if isinstance(model, nn.Module) else ()
    return {name: getattr(tensor, "shape", None) for name, tensor in tensors}


def converted(
    model: nn.Module,
    rules: tuple[Rule, ...],
    another: Callable[[str], nn.Module],
    given: bool,
) -> nn.Module:
    """The model itself with choices in the place of layers. another: gives one more of a layer, by
    its name. given: whether its weights are what candidates begin with."""
    taken: dict[nn.Module, tuple[str, Rule, Mapping[str, nn.Module]]] = {}
    used: set[int] = set()
    for name, layer in model.named_modules():  # each once, under its first name
        for number, rule in enumerate(rules if name else ()):
            if rule.selects(name, layer):
                try:
                    found = rule.candidates(Match(layer, lambda name=name: another(name), given))
                except ValueError as error:
                    raise ValueError(f"{name!r} cannot become a choice: {error}") from error
                if found is not None:
                    taken[layer] = name, rule, found
                    used.add(number)
                    break
    for number, rule in enumerate(rules):
        if number not in used:
            selected = [n for n, m in model.named_modules() if n and rule.selects(n, m)]
            raise ValueError(
                f"the rule for {rule.select!r} applies to nothing: it takes {rule.takes}, and "
                f"selects {', '.join(selected[:5]) or 'no layer'}; no other rule before it may take"
                " the same"
            )
    _check_apart(model, taken)
    names: set[str] = set()
    choices: dict[nn.Module, Choice] = {}
    for layer, (name, rule, candidates) in taken.items():
        choices[layer] = _choice(name, rule, candidates, names, given)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in choices:
                parent._modules[key] = choices[child]
    return model


def _check_apart(
    model: nn.Module, taken: Mapping[nn.Module, tuple[str, Rule, Mapping[str, nn.Module]]]
) -> None:
    for layer, (name, _, _) in taken.items():
        inside = set(layer.modules())
        for other in inside & set(taken) - {layer}:
            raise ValueError(
                f"{taken[other][0]!r} becomes a choice inside of {name!r}, which becomes one, too; "
                "leave one of them out of the rules, or list every combination with "
                "mnas.rules.candidates"
            )
        own = {id(p) for p in layer.parameters()}
        for other_name, other in model.named_modules():
            shared = own & {id(p) for p in other._parameters.values()}
            if shared and other not in inside:
                raise ValueError(
                    f"{name!r} shares weights with {other_name!r}, and would not as a choice; "
                    "leave it out of the rules, or untie them"
                )


def _choice(
    name: str, rule: Rule, candidates: Mapping[str, nn.Module], names: set[str], given: bool
) -> Choice:
    called = re.sub(r"\W", "_", name)
    called = called if called.isidentifier() else f"layer_{called}"
    while called in names:
        called += "_"
    names.add(called)
    first = next(iter(candidates.values()))
    frozen = {n: p.requires_grad for n, p in first.named_parameters()}
    for candidate in candidates.values():
        for key, parameter in candidate.named_parameters():
            parameter.requires_grad_(frozen.get(key, parameter.requires_grad))
    # Of tensors as large as each other the last gives the start: the given one.
    modules = dict(reversed(candidates.items()))
    try:
        choice = Choice(modules, Decision(called, candidates), nested=rule.nested)
    except ValueError as error:
        raise ValueError(f"{name!r} cannot become a choice: {error}") from error
    if rule.nested and given:  # at random, all begin as the largest does
        kept = choice.candidate(len(choice) - 1).state_dict()
        for key, tensor in first.state_dict().items():
            if not torch.equal(kept[key], tensor):
                raise ValueError(
                    f"{key!r} of {name!r} would not begin as it is given: of nested candidates "
                    "the largest gives the start; let that begin with the given weights, too, or "
                    "make it nested=False"
                )
    return choice
