"""MaskedOptimizer: an elementwise optimizer of torch.optim, stepping the active entries and nothing else.

A zeroed gradient does not freeze an entry: momentum keeps moving it, weight decay shrinks it, Adam decays its moments
and advances its step count. Stock torch leaves a tensor alone only when `grad is None`. So the wrapped optimizer is
given the active pieces of a parameter (mnas/partition.py) and never sees the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mnas.masking import ActiveSet, clear_active_sets
from mnas.partition import Layout, Partition
from mnas.places import place_of

_OPTIM = torch.optim
ELEMENTWISE: tuple[type[torch.optim.Optimizer], ...] = (
    _OPTIM.SGD,
    _OPTIM.Adam,
    _OPTIM.AdamW,
    _OPTIM.NAdam,
    _OPTIM.RAdam,
    _OPTIM.Adamax,
    _OPTIM.Adadelta,
    _OPTIM.Adagrad,
    _OPTIM.ASGD,
    _OPTIM.RMSprop,
    _OPTIM.Rprop,
)
"""Exact. Their update of an entry depends on that entry and on a step count alone."""

REFUSED = {
    "LBFGS": "its direction and line search couple all parameters, so no part of them can be left out exactly",
    "Muon": "it orthogonalises the momentum of a whole matrix, so an entry's update depends on every other entry",
    "Adafactor": "its second moments are means over rows and columns, so frozen entries would act on active ones",
    "SparseAdam": "it wants sparse gradients, and masked ones are dense; Adam with a mask on the rows is exact",
}
"""Optimizers of torch.optim that do not work element by element, and why."""

POLICIES = ("frozen", "torch")


class MaskedOptimizer(torch.optim.Optimizer):
    """`MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9)`: a torch optimizer under which nothing inactive
    moves, neither an entry nor its state.

    optimizer_class: one of `ELEMENTWISE`. parameters: a module (a Supernet, a module under a `GradientMask`, any
    other), or parameters or groups as torch.optim takes them. options: the optimizer's own. elementwise: True vouches
    that an optimizer from elsewhere updates each entry from that entry and scalars alone.

    policy: what happens to entries that are not active. "frozen": nothing. "torch": what stock torch does to an entry
    whose gradient is zero; momentum, decay and step counts go on.

    `inner` is the wrapped optimizer; its state has one entry a piece, a flat tensor (n,) of the entries that have been
    stepped together, and none for what was never active. A parameter that was never masked is a piece of its own and
    its own key, as in stock torch. `dense_state(parameter)` shows the state in the parameter's shape.

    Raises ValueError for an optimizer that is not elementwise, and whatever the optimizer raises for its options.
    """

    def __init__(
        self,
        optimizer_class: type[torch.optim.Optimizer],
        parameters: nn.Module | Iterable[Any],
        *,
        policy: str = "frozen",
        elementwise: bool = False,
        **options: Any,
    ) -> None:
        _check_class(optimizer_class, elementwise)
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is unknown; expected one of {', '.join(POLICIES)}")
        self.policy = policy
        self._class, self._options = optimizer_class, options
        self._partitions: dict[Tensor, Partition] = {}
        is_module = isinstance(parameters, nn.Module)
        self.inner = optimizer_class(list(parameters.parameters()) if is_module else parameters, **options)
        for group in self.inner.param_groups:
            _check_options(group)
        # Some optimizers make all state at once; ours is made when an entry first becomes active.
        self._eager = bool(self.inner.state)
        self.inner.state.clear()
        super().__init__([dict(group) for group in self.inner.param_groups], self.inner.defaults)
        self.state = self.inner.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.optim: a dict with "params" and options of its own."""
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        _check_options(added)
        if len(self.param_groups) > len(self.inner.param_groups):
            self.inner.add_param_group(dict(added))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset gradients, and with them what is active."""
        super().zero_grad(set_to_none)
        clear_active_sets(self._parameters())

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of every active entry."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lent: list[Partition] = []
        try:
            for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
                inner.update(_options_of(group))  # schedulers and users change them on this optimizer
                fused = bool(group.get("fused"))
                with_grad = [p for p in group["params"] if p.grad is not None]
                inner["params"] = [leaf for p in with_grad for leaf in self._lend(p, fused, lent)]
            self._step_inner()
        finally:
            for partition in lent:
                partition.settle()
        return loss

    def dense_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter in its own shape, scalars such as step counts as one number an entry; zeros where
        nothing was ever active. A copy, to look at."""
        if parameter in self._partitions:
            return self._partitions[parameter].dense_state()
        state = {k: torch.as_tensor(v) for k, v in self.inner.state.get(parameter, {}).items() if v is not None}
        return {key: value.expand(parameter.shape).clone() for key, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, and "pieces": where each piece is whose state has a number beyond the parameters'.

        Without masks it is the stock optimizer's own, and either can load it.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        numbers = {p: number for number, p in enumerate(self._parameters())}
        state: dict[int, Any] = {}
        pieces: list[dict[str, Any]] = []
        for parameter, number in numbers.items():
            partition = self._partitions.get(parameter)
            if partition is None and self.inner.state.get(parameter):
                state[number] = self.inner.state[parameter]
            for piece in partition.with_state() if partition is not None else ():
                state[len(numbers) + len(pieces)] = self.inner.state[piece.leaf]
                layout = {"size": list(partition.layout.size), "stride": list(partition.layout.stride)}
                pieces.append({"parameter": number, **layout, **piece.place.parts()})
        groups = [{**_options_of(g), "params": [numbers[p] for p in g["params"]]} for g in self.param_groups]
        result = {"state": state, "param_groups": groups, "pieces": pieces}
        for hook in self._optimizer_state_dict_post_hooks.values():
            result = hook(self, result) or result
        return result

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, also that of a stock optimizer of the same class. Raises ValueError if it does not fit;
        then nothing has changed."""
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        saved, lengths = state_dict["param_groups"], [len(group["params"]) for group in self.param_groups]
        if [len(group["params"]) for group in saved] != lengths:
            raise ValueError(
                f"the state has {[len(group['params']) for group in saved]} parameters in its groups, the optimizer "
                f"{lengths}; build it for the same module with the same groups"
            )
        parameters = dict(enumerate(self._parameters()))
        partitions: dict[Tensor, Partition] = {}
        leaves: dict[Tensor, list[tuple[int, Tensor]]] = {p: [(n, p)] for n, p in parameters.items()}
        for number, parts in enumerate(state_dict.get("pieces", ()), len(parameters)):
            parameter = parameters[parts["parameter"]]
            partition = partitions.setdefault(parameter, Partition(parameter, self.inner))
            leaf = partition.add(Layout(torch.Size(parts["size"]), tuple(parts["stride"])), place_of(parts))
            leaves[parameter].append((number, leaf))
        groups = []
        for group, inner, options in zip(self.param_groups, self.inner.param_groups, saved, strict=True):
            numbered = [pair for p in group["params"] for pair in leaves[p]]
            inner["params"] = [leaf for _, leaf in numbered]
            groups.append({**options, "params": [number for number, _ in numbered]})
        self._partitions = partitions
        self.inner.load_state_dict({"state": state_dict["state"], "param_groups": groups})
        self.state = self.inner.state
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update(_options_of(inner))
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        own = ("policy", "inner", "_class", "_options", "_eager", "_partitions")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _lend(self, parameter: Tensor, fused: bool, lent: list[Partition]) -> list[Tensor]:
        """What the wrapped optimizer is to step in place of a parameter: itself, unless some of it may be frozen, or
        a fused kernel would read its memory in the wrong order."""
        active_set = ActiveSet.of(parameter) if self.policy == "frozen" else None
        partition = self._partitions.get(parameter)
        if partition is None:
            if parameter.numel() == 0 or (active_set is None and not fused):
                return [parameter]
            partition = self._partitions[parameter] = Partition(parameter, self.inner)
            partition.adopt(self.inner.state.pop(parameter, {}))
        lent.append(partition)
        return partition.lend(active_set, contiguous=fused)

    def _step_inner(self) -> None:
        step = type(self.inner).step
        if getattr(step, "hooked", False):
            step = step.__wrapped__  # torch's profiling and step hooks are to run once, on this optimizer
        state, groups = self.inner.state, self.inner.param_groups
        if self._eager:
            for group in groups:
                for leaf in group["params"]:
                    if leaf not in state:
                        state[leaf] = self._class([{**group, "params": [leaf]}], **self._options).state[leaf]
        if self._class is torch.optim.SGD and any(group.get("fused") and group["momentum"] for group in groups):
            # Its kernel wants momentum in all tensors of a group or in none: first those that have it already.
            leaves = [group["params"] for group in groups]
            begun = {leaf for of_group in leaves for leaf in of_group if state.get(leaf)}
            for now in (True, False):
                for group, of_group in zip(groups, leaves, strict=True):
                    group["params"] = [leaf for leaf in of_group if (leaf in begun) is now]
                step(self.inner)
        else:
            step(self.inner)


def _options_of(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _check_class(optimizer_class: Any, elementwise: bool) -> None:
    names = ", ".join(known.__name__ for known in ELEMENTWISE)
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
        raise ValueError(f"{optimizer_class!r} is no optimizer class; expected one such as torch.optim.SGD ({names})")
    name = optimizer_class.__name__
    if name in REFUSED and optimizer_class is getattr(torch.optim, name, None):
        raise ValueError(f"{name} cannot be masked exactly: {REFUSED[name]}; use one of {names}")
    if optimizer_class not in ELEMENTWISE and not elementwise:
        raise ValueError(
            f"{name} is not known to work element by element, as {names} do; if its update of an entry depends on "
            "that entry and on scalars alone, say so with elementwise=True"
        )


def _check_options(group: dict[str, Any]) -> None:
    if group.get("differentiable"):
        raise ValueError(
            "differentiable=True cannot step the parameters of a module: it changes leaves of the graph in place, "
            "which autograd forbids in stock torch too"
        )
    if group.get("capturable") and any(p.device.type == "cpu" for p in group["params"]):
        raise ValueError("capturable=True is for accelerators: torch refuses to step parameters on the CPU with it")
