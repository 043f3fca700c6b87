"""Running networks of a space to see what they are: their shapes, costs and mistakes.

A sequence is run stage by stage, each stage once for its candidates and the form of its input, so
that few modules run for very many networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from mnas.space.choice import Choice
from mnas.space.coupling import Key
from mnas.space.inputs import Inputs
from mnas.space.prefix import stages
from mnas.space.skeleton import substitute


class Form:
    """The structure of a module's output, with shapes and types in place of tensors."""

    def __init__(self, output: Any) -> None:
        leaves, self._tree = tree_flatten(output)
        self._leaves = tuple(
            (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Form) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(str(self._key()))

    def _key(self) -> tuple[Any, ...]:
        return self._tree, self._leaves

    def zeros(self) -> Any:
        made = [
            torch.zeros(leaf[0], dtype=leaf[1])
            if isinstance(leaf, tuple) and len(leaf) == 2 and isinstance(leaf[1], torch.dtype)
            else leaf
            for leaf in self._leaves
        ]
        return tree_unflatten(made, self._tree)


class Runner:
    """measure: is given a module and its inputs, returns what is to be known and the output."""

    def __init__(
        self,
        model: nn.Module,
        choices: Sequence[Choice],
        inputs: Inputs,
        measure: Callable[[nn.Module, Inputs], tuple[Any, Any]],
    ) -> None:
        self.inputs, self.measure = inputs, measure
        positions = {choice: position for position, choice in enumerate(choices)}
        parts = stages(model)
        tensors = [id(p) for part in parts for p in part.parameters()]
        if len(tensors) != len(set(tensors)):  # of tensors that parts share
            parts = [model]
        self._parts = [
            (part, [(m, positions[m]) for m in part.modules() if isinstance(m, Choice)])
            for part in parts
        ]
        self.made: Callable[[int, int, nn.Module], None] = lambda *_: None
        """Is told of each candidate's module, with its choice and number."""
        self._known: dict[tuple[int, Key, Any], tuple[Any, Form]] = {}
        self._last: Form | None = None

    def run(self, key: Key) -> Iterator[Any]:
        """What was measured of each stage."""
        form: Form | None = None
        for number, (part, choices) in enumerate(self._parts):
            own = tuple([key[position] for _, position in choices])
            if (number, own, form) not in self._known:
                inputs = self.inputs if form is None else Inputs((form.zeros(),), {})
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    chosen = {c: c.candidate(i) for (c, _), i in zip(choices, own, strict=True)}
                    for (choice, position), index in zip(choices, own, strict=True):
                        self.made(position, index, chosen[choice])
                    measured, output = self.measure(substitute(part, chosen), inputs)
                self._known[number, own, form] = measured, Form(output)
            measured, form = self._known[number, own, form]
            yield measured
        self._last = form

    def prefixes(self, key: Key) -> Iterator[tuple[Key, Any]]:
        """For each stage, what is chosen up to it, and what was measured of it."""
        prefix: Key = ()
        for (_, choices), measured in zip(self._parts, self.run(key), strict=True):
            prefix += tuple(key[position] for _, position in choices)
            yield prefix, measured

    def output(self, key: Key) -> Any:
        """Zeros in the form of the network's output."""
        for _ in self.run(key):
            pass
        return self._last.zeros()


def floating_type(model: nn.Module) -> torch.dtype:
    """The type of the model's parameters, and of the images that it takes."""
    return next(
        (p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype()
    )


_PARTS = (
    *("__getitem__", "narrow", "select", "index_select", "take"),
    *("split", "chunk", "tensor_split", "unbind"),
)


class Watch(TorchFunctionMode):
    """Notices what layers do that the rule of regions does not know of. plain: the names of
    parameters that are used as they are, by id. shared: (choice, name) of a candidate's tensors
    whose rows others have, too, by id."""

    def __init__(self) -> None:
        super().__init__()
        self.plain: dict[int, str] = {}
        self.now: dict[str, list[Any]] = {}
        """Shapes of the parts that layers take of their own parameters, in this run."""
        self.slices: dict[str, set[Any]] = {}
        """And in all runs."""
        self.shared: dict[int, Any] = {}
        self.divided: dict[Any, dict[Any, None]] = {}
        """How layers divide their outputs: sizes behind the first, for each shared tensor."""
        self._outputs: dict[int, tuple[Any, int, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            return result
        name = getattr(func, "__name__", "")
        if name in _PARTS and id(first) in self.plain:
            taken = result if isinstance(result, (tuple, list)) else [result]
            shapes = [tuple(part.shape) for part in taken]
            self.now.setdefault(self.plain[id(first)], []).append(tuple(shapes))
        elif len(args) > 1 and id(args[1]) in self.shared:  # linear, conv1d, conv2d, ...
            dim = 1 if name.startswith("conv") else -1
            self._outputs[id(result)] = self.shared[id(args[1])], dim % first.ndim, result
        elif id(first) in self._outputs:
            of, dim, _ = self._outputs[id(first)]
            factors = _factors(name, first, dim, args[1:], kwargs or {}, result)
            if factors:
                self.divided.setdefault(of, {})[factors] = None
        return result

    def clear(self) -> None:
        """Forget what belongs to the run that has ended."""
        for name, shapes in self.now.items():
            self.slices.setdefault(name, set()).add(tuple(shapes))
        self.now.clear()
        self._outputs.clear()
        self.shared.clear()


def _factors(
    name: str, x: Tensor, dim: int, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> tuple[int, ...] | None:
    """In which sizes a function of torch divides a dimension of x; None where it does not."""
    if name in ("chunk", "split", "tensor_split"):
        if kwargs.get("dim", args[1] if len(args) > 1 else 0) % x.ndim == dim and len(result) > 1:
            return len(result), *(part.shape[dim] for part in result)
    elif name == "glu":
        if kwargs.get("dim", args[0] if args else -1) % x.ndim == dim:
            return 2, x.shape[dim] // 2
    elif name == "__getitem__":
        if result.ndim == x.ndim and result.shape[dim] < x.shape[dim]:
            return x.shape[dim], result.shape[dim]
    elif name in ("view", "reshape", "unflatten"):
        if dim == x.ndim - 1:
            ends = [result.shape[-count:] for count in range(2, result.ndim + 1)]
        else:  # channels, behind the batch
            ends = [result.shape[1 : 1 + count] for count in range(2, result.ndim)]
        for end in ends:
            if end.numel() == x.shape[dim]:
                first = next((n for n, size in enumerate(end) if size > 1), len(end))
                return tuple(end[first:]) if len(end) - first > 1 else None
    return None
