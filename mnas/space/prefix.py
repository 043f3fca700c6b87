"""Prefix-shared forward passes: architectures as a trie, each common stage computed once.

The steps of a (nested) nn.Sequential are its stages. Paths that choose the same in the first stages
share them, so the paths are the leaves of a tree, and a depth-first walk through it holds the
activations of one branch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils._pytree import tree_map

from mnas.space.choice import Choice, choices_of
from mnas.space.coupling import Key
from mnas.space.inputs import called
from mnas.space.skeleton import copied, is_hooked, substitute

Step = Callable[["Node", Any], Any]
Chosen = list[tuple[nn.Module, list[tuple[Choice, int]]]]


@dataclass(eq=False)
class Node:
    """modules: run one after the other. numbers: of the paths that end with them; children: how the
    others go on."""

    modules: list[nn.Module] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)

    def distinct(self) -> set[nn.Module]:
        """The modules of this node and of those below it."""
        return set(self.modules).union(*(child.distinct() for child in self.children))


def stages(model: nn.Module) -> list[nn.Module]:
    """The steps of a (nested) nn.Sequential; any other model is a single one."""
    if type(model) is nn.Sequential and not is_hooked(model):
        return [stage for child in model for stage in stages(child)]
    return [model]


def tree(
    model: nn.Module, paths: Sequence[Key], candidate: Callable[[Choice, int], nn.Module]
) -> Node:
    """The networks of a model, by their keys, with a module for every stage and what is chosen
    there.

    candidate: the module that takes the place of a choice. The modules of a stage are made once for
    each combination of its candidates, and shared by all nodes."""
    positions = {choice: position for position, choice in enumerate(choices_of(model))}
    chosen = [(stage, [(c, positions[c]) for c in choices_of(stage)]) for stage in stages(model)]
    return _grow(chosen, 0, paths, list(range(len(paths))), candidate, {}) if paths else Node()


def _grow(
    chosen: Chosen,
    start: int,
    paths: Sequence[Key],
    numbers: list[int],
    candidate: Callable[[Choice, int], nn.Module],
    made: dict[tuple[int, tuple[int, ...]], nn.Module],
) -> Node:
    """The tree of those paths behind a stage. made: the modules of stages so far."""
    node = Node()
    for number in range(start, len(chosen)):
        stage, choices = chosen[number]
        groups: dict[tuple[int, ...], list[int]] = {}
        for n in numbers:
            groups.setdefault(tuple(paths[n][position] for _, position in choices), []).append(n)
        if len(groups) > 1:
            node.children = [
                _grow(chosen, number, paths, group, candidate, made) for group in groups.values()
            ]
            return node
        (indices,) = groups
        if (number, indices) not in made:
            candidates = {c: candidate(c, i) for (c, _), i in zip(choices, indices, strict=True)}
            made[number, indices] = substitute(stage, candidates)
        node.modules.append(made[number, indices])
    node.numbers = numbers
    return node


def walk(node: Node, x: Any, step: Step | None = None) -> Iterator[tuple[int, Any]]:
    """Depth first: the number of each path with its output. step: what to do at a node instead of
    running its modules.

    Stages are taken to be functions of their input. Raises ValueError where paths part at something
    other than tensors and numbers, or lists, tuples and dicts of them."""
    y = (step or run)(node, x)
    del x
    yield from ((number, y) for number in node.numbers)
    for child in node.children:
        # A branch may work in place on what it is given, even behind layers that hand their input
        # on.
        own = y if child is node.children[-1] else tree_map(copied, y)
        yield from walk(child, own, step)


def run(node: Node, x: Any) -> Any:
    """The modules of a node, one after the other; the first may take several `Inputs`."""
    for module in node.modules:
        x = called(module, x)
    return x
