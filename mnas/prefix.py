"""Many paths through one model: what several of them begin with is computed once.

The steps of a (nested) nn.Sequential are its stages. Paths that choose the same in the first stages share them, so the
paths are the leaves of a tree, and a depth-first walk through it holds the activations of one branch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from mnas.choice import Choice, substitute
from mnas.space import Path, choices_of

Step = Callable[["Node", Any], Any]


@dataclass(eq=False)
class Node:
    """modules: run one after the other. numbers: of the paths that end with them; children: how the others go on."""

    modules: list[nn.Module] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)

    def distinct(self) -> set[nn.Module]:
        """The modules of this node and of those below it."""
        return set(self.modules).union(*(child.distinct() for child in self.children))


def stages(model: nn.Module) -> list[nn.Module]:
    """The steps of a (nested) nn.Sequential; any other model is a single one."""
    hooks = model._forward_hooks or model._forward_pre_hooks or model._backward_hooks or model._backward_pre_hooks
    if type(model) is nn.Sequential and not hooks:
        return [stage for child in model for stage in stages(child)]
    return [model]


def tree(model: nn.Module, paths: Sequence[Path], candidate: Callable[[Choice, int], nn.Module]) -> Node:
    """The paths through a model, with a module for every stage and what is chosen there.

    candidate: the module that takes the place of a choice. The modules of a stage are made once for each combination of
    its candidates, and shared by all nodes.
    """
    positions = {choice: position for position, choice in enumerate(choices_of(model))}
    chosen = [(stage, [(c, positions[c]) for c in choices_of(stage)]) for stage in stages(model)]
    made: dict[tuple[int, tuple[int, ...]], nn.Module] = {}

    def grow(start: int, numbers: list[int]) -> Node:
        node = Node()
        for number in range(start, len(chosen)):
            stage, choices = chosen[number]
            groups: dict[tuple[int, ...], list[int]] = {}
            for n in numbers:
                groups.setdefault(tuple(paths[n][position] for _, position in choices), []).append(n)
            if len(groups) > 1:
                node.children = [grow(number, group) for group in groups.values()]
                return node
            (indices,) = groups
            if (number, indices) not in made:
                candidates = {c: candidate(c, i) for (c, _), i in zip(choices, indices, strict=True)}
                made[number, indices] = substitute(stage, candidates)
            node.modules.append(made[number, indices])
        node.numbers = numbers
        return node

    return grow(0, list(range(len(paths)))) if paths else Node()


def walk(node: Node, x: Any, step: Step | None = None) -> Iterator[tuple[int, Any]]:
    """Depth first: the number of each path with its output. step: what to do at a node instead of running its modules.

    Raises RuntimeError where a layer without an `inplace` attribute changes what other branches still need.
    """
    yield from _walk(node, x, step or run, copies=any(map(_works_in_place, node.distinct())))


def run(node: Node, x: Any) -> Any:
    """The modules of a node, one after the other."""
    for module in node.modules:
        x = module(x)
    return x


def _walk(node: Node, x: Any, step: Step, copies: bool) -> Iterator[tuple[int, Any]]:
    y = step(node, x)
    del x
    yield from ((number, y) for number in node.numbers)
    for child in node.children:
        before = _versions(y)
        # A branch may work in place on what it is given, even behind layers that pass their input on.
        shared = copies and child is not node.children[-1]
        yield from _walk(child, tree_map_only(Tensor, Tensor.clone, y) if shared else y, step, copies)
        if child is not node.children[-1] and _versions(y) != before:
            raise RuntimeError(
                "a layer changes its input in place, which other paths share; give it an attribute inplace=True, or "
                "run path by path"
            )


def _versions(x: Any) -> list[int]:
    return [t._version for t in tree_leaves(x) if isinstance(t, Tensor) and not t.is_inference()]


def _works_in_place(module: nn.Module) -> bool:
    return any(getattr(m, "inplace", False) for m in module.modules())
