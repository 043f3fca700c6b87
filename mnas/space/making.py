"""From a function of decisions to the candidates of a choice: the distinct modules that it returns.

Equal modules are one candidate: of the same class, with equal settings, names and shapes of tensors
and children, down to the last layer. So what is absent (None) does not depend on its kernel, and an
edge that is not chosen not on its operation, without a word for conditions."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType, NoneType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mnas.space.candidates import named
from mnas.space.decision import Decision

Values = tuple[int, ...]
"""An index of a value for each decision of a place."""

_MODULE = frozenset(vars(nn.Module()))  # what every module has
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, np.generic)


class Made(NamedTuple):
    """modules: the distinct ones, by name, as a seed of our own starts them. builds: each once
    more, as the user's does. table: the candidate's number for the values of the place's
    decisions."""

    decisions: tuple[Decision, ...]
    modules: dict[str, nn.Module]
    builds: dict[str, Callable[[], nn.Module]]
    table: dict[Values, int]


_TAKEN: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""What functions have returned, as far as it has tensors: candidates are not copied, and must be
nobody else's."""


def made_of(candidates: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Made:
    """What a Choice is given: a function with its arguments, or named modules, whose decision may
    stand behind them. Raises ValueError for anything else."""
    if isinstance(candidates, nn.Module):
        raise ValueError(
            f"a Choice got a {type(candidates).__name__}; expected a dict of modules, or a "
            "function that returns one"
        )
    if callable(candidates) and not isinstance(candidates, Mapping):
        return made(candidates, args, kwargs)
    modules = named(candidates)
    if not modules:
        raise ValueError(
            'a Choice has no candidates; give at least one, as in Choice({"a": nn.ReLU()})'
        )
    if not args and not kwargs:
        return Made((), modules, {}, {(number,): number for number in range(len(modules))})
    if kwargs or len(args) > 1 or not isinstance(args[0], Decision):
        raise ValueError(
            f"a Choice of modules got {(*args, *kwargs)}; expected one Decision behind them, or "
            "nothing"
        )
    (decision,) = args
    if set(decision.labels) != set(modules):
        raise ValueError(
            f"the candidates {', '.join(modules)} are not the values of {decision.name!r}, "
            f"{', '.join(decision.labels)}; name them alike"
        )
    numbers = {name: number for number, name in enumerate(modules)}
    table = {(i,): numbers[label] for i, label in enumerate(decision.labels)}
    return Made((decision,), modules, {}, table)


def decisions_in(args: Iterable[Any], kwargs: Mapping[str, Any]) -> tuple[Decision, ...]:
    """Each once, in the order of the arguments."""
    found = (a for a in (*args, *kwargs.values()) if isinstance(a, Decision))
    return tuple(dict.fromkeys(found))


def assignments(decisions: Iterable[Decision]) -> Iterator[Values]:
    """All, the last decision varying fastest."""
    return itertools.product(*(range(len(decision)) for decision in decisions))


def made(make: Callable[..., nn.Module | None], args: Any, kwargs: Any) -> Made:
    """What a function makes of its decisions' values. Raises ValueError where it fails, or returns
    something else."""
    decisions = decisions_in(args, kwargs)
    inner = [a for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple, set, dict))]
    if any(isinstance(leaf, Decision) for leaf in tree_leaves(inner)):
        raise ValueError(
            "a Choice got a Decision inside of another argument; give it as one of its own"
        )
    if not decisions:
        raise ValueError(
            "a Choice of a function got no Decision; give one among its arguments, as in "
            "Choice(make, Decision('width', (8, 16)))"
        )
    found = Made(decisions, {}, {}, {})
    numbers: dict[Any, int] = {}
    kept = []  # so that an id in a signature stays that of one object
    for values in assignments(decisions):
        chosen = dict(zip(decisions, values, strict=True))
        name = ",".join(f"{d.name}={d.labels[i]}" for d, i in chosen.items())

        def build(chosen: dict[Decision, int] = chosen) -> nn.Module:
            return _call(make, args, kwargs, chosen)

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # equal modules are equal in what is random, too
            module = build()
        signature = signature_of(module)
        kept.append(module)
        if signature not in numbers:
            numbers[signature] = len(numbers)
            name = name.replace(".", "_")  # it becomes that of a submodule
            while name in found.modules:
                name += "_"
            found.modules[name], found.builds[name] = module, build
        found.table[values] = numbers[signature]
    return found


def _call(
    make: Callable[..., Any], args: Any, kwargs: Any, chosen: Mapping[Decision, int]
) -> nn.Module:
    def of(argument: Any) -> Any:
        known = isinstance(argument, Decision)
        return argument.values[chosen[argument]] if known else argument

    what = getattr(make, "__name__", type(make).__name__)
    values = ", ".join(f"{d.name}={d.values[i]!r}" for d, i in chosen.items())
    try:
        module = make(*map(of, args), **{key: of(value) for key, value in kwargs.items()})
    except Exception as error:  # whatever a user's function raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{what} fails for {values} ({reason}); make it return a module for all values of its "
            "decisions, or None for nothing"
        ) from error
    if module is None:
        return nn.Identity()
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{what} returns a {type(module).__name__} for {values}; expected a torch.nn.Module, "
            "or None for nothing"
        )
    parts = [part for part in module.modules() if part._parameters or part._buffers]
    if any(part in _TAKEN for part in parts):
        raise ValueError(
            f"{what} returns a module for {values} that it has returned before, or a part of one; "
            "make a new one at each call"
        )
    _TAKEN.update(parts)
    return module


def signature_of(module: nn.Module) -> tuple[Any, ...]:
    """Hashable; equal for modules that are one candidate. What it does not know is equal only to
    itself. Where parameters that are trained start makes no difference."""
    hooks = [getattr(module, key) for key in _MODULE if key.endswith("_hooks")]
    slots = {key for base in type(module).__mro__ for key in getattr(base, "__slots__", ())}
    settings = {k: v for k, v in vars(module).items() if k not in _MODULE}
    settings.update({key: getattr(module, key) for key in slots if hasattr(module, key)})
    return (
        type(module),
        module.training,
        tuple((n, _parameter(p)) for n, p in module._parameters.items()),
        tuple((n, _shape(b), _content(b)) for n, b in module._buffers.items()),
        frozenset(module._non_persistent_buffers_set),
        # An empty sequence is false.
        tuple((n, None if c is None else signature_of(c)) for n, c in module._modules.items()),
        tuple(sorted((k, _value(v, (module,))) for k, v in settings.items())),
        tuple(_value(hook, (module,)) for registry in hooks for hook in (registry or {}).values()),
    )


def _shape(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return tuple(tensor.shape), str(tensor.dtype), str(tensor.device), tensor.requires_grad


def _parameter(parameter: Tensor | None) -> Any:
    fixed = parameter is not None and not parameter.requires_grad
    return _shape(parameter), _content(parameter) if fixed else None


def _content(tensor: Tensor | None) -> Any:
    if tensor is None or tensor.is_meta:
        return None
    if tensor.layout != torch.strided:
        return id(tensor)
    return hash(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _value(value: Any, above: tuple[Any, ...] = ()) -> Any:
    """A setting, as something to be compared and hashed. above: what it is a part of."""
    kind = type(value).__name__
    if value is None or type(value) in PLAIN:
        return kind, value
    if any(value is one for one in above):
        return kind, "itself"

    def part(inner: Any) -> Any:
        return _value(inner, (*above, value))

    if isinstance(value, FunctionType):
        defaults = part(value.__defaults__), part(value.__kwdefaults__), part(vars(value))
        cells = tuple(part(_cell(cell)) for cell in value.__closure__ or ())
        return "function", value.__code__, id(value.__globals__), defaults, cells
    if isinstance(value, MethodType):
        return "method", value.__func__, part(value.__self__)
    if isinstance(value, nn.Module):
        return "module", id(value)
    if isinstance(value, weakref.ref):
        return part(value())
    if isinstance(value, partial):
        return kind, part(value.func), part(value.args), part(value.keywords)
    if isinstance(value, nn.Parameter):
        return kind, _parameter(value)
    if isinstance(value, Tensor):
        return kind, _shape(value), _content(value)
    if isinstance(value, Mapping):
        return kind, tuple((part(k), part(v)) for k, v in value.items())
    if isinstance(value, (tuple, list)):
        return kind, tuple(map(part, value))
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(map(part, value))
    if isinstance(value, PLAIN):
        return kind, value
    if inspect.isbuiltin(value) and isinstance(value.__self__, (ModuleType, NoneType)):
        return "name", value.__module__, value.__qualname__
    return kind, id(value)


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None
