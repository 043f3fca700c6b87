"""Supernet: all networks of a space on merged parameters; `net(x, path)` runs one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mnas.freeze.active import Registered
from mnas.space import prefix
from mnas.space.choice import EXECUTIONS, Choice, choices_of
from mnas.space.fitting import paths_to_try
from mnas.space.given import GivenPath, indices
from mnas.space.inputs import Inputs, called
from mnas.space.search_space import SearchSpace
from mnas.space.skeleton import substitute
from mnas.space.sliced import kept, transformed


class Supernet(nn.Module):
    """All networks of a space with shared weights.

    execution: "sliced" computes on the active regions only; "masked" is the literal form, the
    enclosing operation on `W * mask`. The random start is the model's own: `torch.manual_seed`
    decides it.

    Raises ValueError for what is no space, for an unknown execution, or for masked where a
    candidate computes something else behind its mask than by itself; every candidate is tried once,
    in float64 on random numbers."""

    def __init__(self, space: SearchSpace, execution: str = "sliced") -> None:
        super().__init__()
        if not isinstance(space, SearchSpace):
            raise ValueError(
                f"space is a {type(space).__name__}; expected a mnas.SearchSpace, as "
                "mnas.spaces.mil4()"
            )
        if execution not in EXECUTIONS:
            raise ValueError(
                f"execution {execution!r} is unknown; expected one of {', '.join(EXECUTIONS)}"
            )
        self.space = space
        self.execution = execution
        self._registered: Registered | None = None
        self.model = space.build()
        self.choices = tuple(choices_of(self.model))
        space.check_build(self.choices)
        if execution == "masked":
            self._try_masks()
        self._follow()

    @torch.no_grad()
    def _try_masks(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twin = copy.deepcopy(self).double().eval()
            inputs = self.space.inputs(4).drawn(torch.float64)
            for path, what in paths_to_try(self.space, self.choices):
                try:
                    outputs = [
                        called(twin.along(path, execution), inputs) for execution in EXECUTIONS
                    ]
                except RuntimeError as error:  # a wide candidate meets one that none encloses
                    raise ValueError(
                        f"{what} cannot be run behind masks ({' '.join(str(error).split())}), for "
                        'not all that reads it can be; use execution="sliced"'
                    ) from error
                if not _close(*outputs):
                    raise ValueError(
                        f"{what} does not compute the same behind a mask as by itself, for zeros "
                        'in an unused part change its result; use execution="sliced"'
                    )

    def forward(self, *inputs: Any, path: GivenPath | None = None, **named: Any) -> Any:
        """Logits (B, classes) of one path for a batch x (B, C, H, W): `net(x, path)`; or whatever
        else the model takes, with the path behind it or as `path=`. A path may also be a list, an
        array or a tensor of indices, or the name of an architecture.

        In place of an index, a decision may be given a weight for each value, a tensor (values,):
        then the choices that read it compute the weighted sum of their candidates' outputs, where
        these are convolutions or linear layers as one layer with the weighted sum of their
        parameters (Liu et al., ICLR 2019, section 2.2, at the cost of one). A candidate whose
        weight is exactly 0 and needs no gradient does not run, and is not trained; raises
        ValueError where that leaves none."""
        if "x" in named and not inputs:  # as images are called here, whatever the model calls them
            inputs = (named.pop("x"),)
        if path is None:
            if not inputs or (len(inputs) == 1 and isinstance(inputs[0], Tensor)):
                raise ValueError("net() got no path; call net(x, path)")
            *inputs, path = inputs
        return self.along(path)(*inputs, **named)

    @overload
    def forward_paths(self, x: Tensor, paths: Sequence[GivenPath]) -> list[Tensor]: ...

    @overload
    def forward_paths(
        self, *inputs: Any, paths: Sequence[GivenPath] | None = None, **named: Any
    ) -> list[Any]: ...

    def forward_paths(
        self, *inputs: Any, paths: Sequence[GivenPath] | None = None, **named: Any
    ) -> list[Any]:
        """Logits (B, classes) of each path for the same batch x (B, C, H, W), in the order of the
        paths: `net.forward_paths(x, paths)`; or whatever else the model takes and returns, with the
        paths behind it or as `paths=`.

        Equal, bit for bit, to one `net(x, path)` after the other, and differentiable: several paths
        in one training step. What networks have in common up to their first difference is computed
        once if the model is a (nested) nn.Sequential, whose layers are taken to be functions of
        their input; shared ones update running statistics and draw random numbers once, too.
        Results may share memory, those of equal networks do. Without gradients, memory grows with
        the depth of the model and not with the number of paths."""
        if "x" in named and not inputs:
            inputs = (named.pop("x"),)
        if paths is None:
            if not inputs or (len(inputs) == 1 and isinstance(inputs[0], Tensor)):
                raise ValueError("forward_paths() got no paths; call net.forward_paths(x, paths)")
            *inputs, paths = inputs
        x = inputs[0] if len(inputs) == 1 and not named else Inputs(tuple(inputs), named)
        keys = [self.space.key(path) for path in paths]
        self._follow()
        root = prefix.tree(
            self.model, keys, lambda choice, index: choice.candidate(index, self.execution)
        )
        found = dict(prefix.walk(root, x))
        return [found[number] for number in range(len(paths))]

    def subnet(self, path: GivenPath, execution: str | None = None) -> nn.Module:
        """The path as a module: the model with every choice replaced by its candidate (or a
        mixture), on the shared tensors. It can be handed to what trains, evaluates or gathers
        statistics of a network, as `torch.optim.swa_utils.update_bn`, and sees what the supernet
        has learned since; to keep a network as it is, `mnas.export` it.

        Its layers outside of choices are those of the supernet, their mode included. What
        candidates share is put together for each call: to change it, change the supernet. Behind
        masks and as a mixture, take a new one after a step of the optimizer; and always if other
        tensors have taken the place of its own, as by `load_state_dict(assign=True)`."""
        execution = execution or self.execution
        if execution == "sliced":
            return self._run_on(path, kept)
        return self.along(path, execution)

    def along(self, path: GivenPath, execution: str | None = None) -> nn.Module:
        """A path as a module for one forward pass: its tensors belong to the autograd graph of this
        moment."""
        execution = execution or self.execution
        return self._run_on(path, lambda choice, index: choice.candidate(index, execution))

    def _run_on(
        self,
        path: GivenPath,
        candidate: Callable[[Choice, int], nn.Module],
    ) -> nn.Module:
        self._follow()
        path = indices(path)
        if isinstance(path, (tuple, list)) and any(isinstance(entry, Tensor) for entry in path):
            chosen = self._mixed(path, candidate)
        else:
            key = self.space.key(path)
            chosen = [candidate(c, i) for c, i in zip(self.choices, key, strict=True)]
        return substitute(self.model, dict(zip(self.choices, chosen, strict=True)))

    def _mixed(
        self, path: Sequence[int | Tensor], candidate: Callable[[Choice, int], nn.Module]
    ) -> list[nn.Module]:
        """The candidates of a path in which some decisions have weights."""
        self.space.check(tuple(0 if isinstance(entry, Tensor) else entry for entry in path))
        for decision, entry in zip(self.space.decisions, path, strict=True):
            if isinstance(entry, Tensor) and (
                entry.shape != (len(decision),) or not entry.is_floating_point()
            ):
                raise ValueError(
                    f"weights of a mixture are {entry.dtype} of shape {tuple(entry.shape)}; "
                    f"expected {len(decision)} floating numbers, one for each of "
                    f"{', '.join(decision.labels)}"
                )
        chosen = []
        for choice, place in zip(self.choices, self.space.places, strict=True):
            entries = [path[position] for position in place.positions]
            if any(isinstance(entry, Tensor) for entry in entries):
                chosen.append(choice.mixture(_running(place.weights(entries))))
            else:
                chosen.append(candidate(choice, place.table[tuple(entries)]))
        return chosen

    def _follow(self) -> None:
        """From now on only paths train what is registered in choices, also where it has taken the
        place of something else."""
        if torch.is_grad_enabled() and (self._registered is None or self._registered.changed()):
            inside = {id(module) for choice in self.choices for module in choice.modules()}
            others = {
                id(parameter)
                for module in self.modules()
                if id(module) not in inside
                for parameter in module._parameters.values()
            }
            for choice in self.choices:
                choice.follow(others)
            self._registered = Registered([self])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_registered": None}


def _running(weights: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Of the candidates of a mixture those that do run: exact zeros add nothing, unless a
    derivative by them is wanted."""
    if transformed():
        return dict(weights)
    found = {i: weight for i, weight in weights.items() if weight.requires_grad or weight != 0}
    if not found:
        raise ValueError(
            f"all {len(weights)} weights of a mixture are 0; expected another for one at least"
        )
    return found


def _close(a: Any, b: Any) -> bool:
    """Whether two outputs are equal but for rounding in float64."""
    pairs = list(zip(tree_leaves(a), tree_leaves(b), strict=True))
    return all(
        x.shape == y.shape and torch.allclose(x, y, 1e-9, 1e-12)
        for x, y in pairs
        if isinstance(x, Tensor)
    )
