"""MaskedOptimizer: an elementwise optimizer of torch.optim, stepping the active entries and nothing
else.

A zeroed gradient does not freeze an entry: momentum keeps moving it, weight decay shrinks it, Adam
decays its moments and advances its step count. Stock torch leaves a tensor alone only when `grad is
None`. So the wrapped optimizer is given what is active (mnas/freeze/active.py), parameters whole or
the pieces that masks leave of them (mnas/freeze/pieces.py), and never sees the rest."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mnas.freeze import active, gradient_mask
from mnas.freeze.active import activity_of
from mnas.freeze.elementwise import ELEMENTWISE, check_class, try_halves
from mnas.freeze.pieces import Pieces

POLICIES = ("frozen", "torch")
Kept = tuple[dict[Tensor, dict[str, Any]], dict[Tensor, Pieces]]
WHOLE = frozenset({frozenset()})  # active: all of a parameter, no mask


class MaskedOptimizer(torch.optim.Optimizer):
    """`MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9)`: a torch optimizer under which
    nothing inactive moves, neither an entry nor its state.

    optimizer_class: one of `ELEMENTWISE`. parameters: a module (a Supernet, a module under a
    `GradientMask`, any other), or parameters or groups as torch.optim takes them. options: the
    optimizer's own. elementwise: True vouches that an optimizer from elsewhere updates each entry
    from that entry and scalars alone; a few steps of its own must not contradict that.

    policy: what happens to entries that are not active. "frozen": nothing. "torch": what stock
    torch does to an entry whose gradient is zero; momentum, decay and step counts go on.

    `inner` is the wrapped optimizer; its `state`, which is also this one's, has an entry a piece,
    keyed by the piece's tensor, and none for what was never active. A parameter that was never
    masked is its own key, as in stock torch. `dense_state(parameter)` shows the state in the
    parameter's shape.

    Raises ValueError for an optimizer that is not elementwise, and whatever the optimizer raises
    for its options."""

    def __init__(
        self,
        optimizer_class: type[torch.optim.Optimizer],
        parameters: nn.Module | Iterable[Any],
        *,
        policy: str = "frozen",
        elementwise: bool = False,
        **options: Any,
    ) -> None:
        check_class(optimizer_class, elementwise)
        if optimizer_class not in ELEMENTWISE:
            try_halves(optimizer_class, options)
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is unknown; expected one of {', '.join(POLICIES)}")
        self.policy = policy
        self._class, self._options = optimizer_class, options
        self._pieces: dict[Tensor, Pieces] = {}
        self._key: str | None = None
        self._others: dict[str | None, Kept] = {}
        names = None
        if isinstance(parameters, nn.Module):
            named = dict(parameters.named_parameters())
            names, parameters = list(named), list(named.values())
        self.inner = optimizer_class(parameters, **options)
        # Some optimizers make all state at once; ours is made when an entry first becomes active.
        self._eager = bool(self.inner.state)
        self._named = False
        super().__init__([dict(group) for group in self.inner.param_groups], self.inner.defaults)
        if names:
            self.param_groups[0]["param_names"], self._named = names, True

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        return self.inner.state

    @state.setter
    def state(self, state: dict[Tensor, dict[str, Any]]) -> None:
        self.inner.state = state

    def __repr__(self) -> str:
        return (
            super().__repr__().replace("(", f"({self._class.__name__}, policy {self.policy!r}, ", 1)
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.optim: a dict with "params" and options of its own."""
        params = param_group["params"]
        if self._named and "param_names" not in param_group and not isinstance(params, Tensor):
            param_group["params"] = params = list(params)
        if self._named and not ("param_names" in param_group or isinstance(params[0], tuple)):
            # The names are the module's; torch wants them for all groups or for none.
            self._named = False
            for group in self.param_groups:
                group.pop("param_names", None)
        super().add_param_group(param_group)
        try:
            _check_options(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def use_state(self, key: str | None) -> None:
        """Step with the state of this key until another is named: momentum, moments and step counts
        of its own, empty at first. Parameters, their options and what is active are those of all.
        Without a call the key is None.

        Each key holds as much state as the entries that it has stepped. Checkpoints have all."""
        if key == self._key:
            return
        self._others[self._key] = self.inner.state, self._pieces
        self.inner.state, self._pieces = self._others.pop(key, None) or (defaultdict(dict), {})
        self._key = key

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset gradients, and with them what is active."""
        for group in self.param_groups:
            active.reset(group["params"], set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of every active entry."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradient_mask.follow_all(self._parameters())
        gathered: list[Pieces] = []
        try:
            self.inner.param_groups = []
            for group in self.param_groups:
                fused = bool(group.get("fused"))
                some = group["params"]
                if self.policy == "frozen":  # most of a supernet's have none
                    some = [p for p in some if p.grad is not None]
                tensors = [t for p in some for t in self._tensors(p, fused, gathered)]
                self.inner.param_groups.append({**group, "params": tensors})
            self._step_inner()
        finally:
            for pieces in gathered:
                pieces.scatter()
        for group, stepped in zip(self.param_groups, self.inner.param_groups, strict=True):
            # Some optimizers count steps there.
            group.update({key: value for key, value in stepped.items() if key != "params"})
        for group in self.param_groups:
            active.end(group["params"])
        return loss

    def dense_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter in its own shape, scalars such as step counts as one number an
        entry; zeros where nothing was ever active. A copy, to look at."""
        if parameter in self._pieces:
            return self._pieces[parameter].dense_state()
        state = {
            k: torch.as_tensor(v) for k, v in self.state.get(parameter, {}).items() if v is not None
        }
        return {key: value.expand(parameter.shape).clone() for key, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, but the state of a parameter in pieces is {"pieces": [...]}, with the
        place of each.

        Where nothing was masked it is the stock optimizer's own, and either can load it. With keys,
        "state" is that of "key", and "other_keys" has the others'.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        numbers = {p: number for number, p in enumerate(self._parameters())}
        state = self._saved(numbers)
        groups = [
            {**group, "params": [numbers[p] for p in group["params"]]}
            for group in self.param_groups
        ]
        result: dict[str, Any] = {"state": state, "param_groups": groups}
        if self._key is not None or self._others:
            now, others = self._key, {}
            for key in list(self._others):
                self.use_state(key)
                others[key] = self._saved(numbers)
            self.use_state(now)
            result |= {"key": now, "other_keys": others}
        for hook in self._optimizer_state_dict_post_hooks.values():
            result = hook(self, result) or result
        return result

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, also that of a stock optimizer of the same class. Raises ValueError if
        it does not fit; then nothing has changed."""
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        if not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError(
                "an optimizer's state has the keys state and param_groups; this is something else"
            )
        before = self._key, self._others, self.inner.state, self._pieces
        try:
            self._key, self._others = state_dict.get("key"), {}
            for key, state in state_dict.get("other_keys", {}).items():
                self._load({**state_dict, "state": state})
                self._others[key] = self.inner.state, self._pieces
            self._load(state_dict)
        except Exception:
            self._key, self._others, self.inner.state, self._pieces = before
            raise
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _saved(self, numbers: dict[Tensor, int]) -> dict[int, Any]:
        """The state of the key in use, by the numbers of parameters."""
        state = {}
        for parameter, number in numbers.items():
            pieces = self._pieces.get(parameter)
            of_parameter = self.state.get(parameter) if pieces is None else pieces.state_dict()
            if of_parameter:
                state[number] = of_parameter
        return state

    def _load(self, state_dict: dict[str, Any]) -> None:
        """The options, and the state of one key."""
        saved_groups = copy.deepcopy(state_dict["param_groups"])
        lengths, expected = (
            [len(g["params"]) for g in groups] for groups in (saved_groups, self.param_groups)
        )
        if lengths != expected:
            raise ValueError(
                f"the state has {lengths} parameters in its groups, the optimizer {expected}; "
                "build it for the same module with the same groups"
            )
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            _check_options({**saved, "params": group["params"]})
        in_pieces: dict[Tensor, Pieces] = {}
        # The wrapped optimizer's own loading casts the state; it knows a parameter's pieces as
        # tensors of their own.
        known: list[list[tuple[int, Tensor]]] = [[] for _ in self.param_groups]
        state: dict[int, Any] = {}
        for number, group, saved in zip(known, self.param_groups, saved_groups, strict=True):
            for parameter, saved_id in zip(group["params"], saved["params"], strict=True):
                for tensor, of_tensor in self._loaded(
                    parameter, state_dict["state"].get(saved_id, {}), in_pieces
                ):
                    number.append((len(state), tensor))
                    state[len(state)] = of_tensor
        self.inner.param_groups = [
            {**g, "params": [t for _, t in n]} for g, n in zip(saved_groups, known, strict=True)
        ]
        inner_groups = [
            {**g, "params": [i for i, _ in n]} for g, n in zip(saved_groups, known, strict=True)
        ]
        self.inner.load_state_dict({"state": state, "param_groups": inner_groups})
        self._pieces = in_pieces
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})

    def __getstate__(self) -> dict[str, Any]:
        own = ("policy", "inner", "_class", "_options", "_eager", "_pieces", "_named")
        own += ("_key", "_others")
        return {
            "defaults": self.defaults,
            "param_groups": self.param_groups,
            **{k: getattr(self, k) for k in own},
        }

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _loaded(
        self, parameter: Tensor, state: dict[str, Any], in_pieces: dict[Tensor, Pieces]
    ) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """The tensors that a saved state belongs to, with the state of each."""
        if "pieces" in state:
            in_pieces[parameter] = Pieces(parameter, self.inner)
            yield from in_pieces[parameter].load(state)
        elif state:
            for key, value in state.items():
                if torch.is_tensor(value) and value.ndim and value.shape != parameter.shape:
                    raise ValueError(
                        f"the state {key!r} has shape {tuple(value.shape)}, its parameter "
                        f"{tuple(parameter.shape)}"
                    )
            yield parameter, state

    def _tensors(self, parameter: Tensor, fused: bool, gathered: list[Pieces]) -> list[Tensor]:
        """What the wrapped optimizer is to step in place of a parameter: itself, unless some of it
        may be frozen, or a fused kernel would read its memory in the wrong order."""
        activity = activity_of(parameter)
        passes = WHOLE
        if self.policy == "frozen" and activity is not None:
            passes = activity.now(parameter)
        elif (
            activity is not None
            and activity.of_paths
            and parameter.requires_grad
            and parameter.grad is None
        ):
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is None or not passes:
            return []
        pieces = self._pieces.get(parameter)
        if pieces is None:
            if parameter.numel() == 0 or (passes == WHOLE and not (fused and _permuted(parameter))):
                return [parameter]
            pieces = self._pieces[parameter] = Pieces(parameter, self.inner)
            pieces.take_over(self.state.pop(parameter, {}))
        gathered.append(pieces)
        return pieces.gather(passes, contiguous=fused)

    def _step_inner(self) -> None:
        step = self._class.step
        if getattr(step, "hooked", False):
            step = (
                step.__wrapped__
            )  # torch's profiling and step hooks are to run once, on this optimizer
        groups = self.inner.param_groups
        if self._eager:
            for group in groups:
                for tensor in group["params"]:
                    if tensor not in self.state:
                        fresh = self._class([{**group, "params": [tensor]}], **self._options)
                        self.state[tensor] = fresh.state[tensor]
        if issubclass(self._class, torch.optim.SGD) and any(
            g.get("fused") and g["momentum"] for g in groups
        ):
            # Its kernel wants momentum in all tensors of a group or in none: first those that have
            # it already.
            tensors = [group["params"] for group in groups]
            begun = {
                tensor for of_group in tensors for tensor in of_group if self.state.get(tensor)
            }
            for now in (True, False):
                for group, of_group in zip(groups, tensors, strict=True):
                    group["params"] = [tensor for tensor in of_group if (tensor in begun) is now]
                step(self.inner)
        else:
            step(self.inner)


def _check_options(group: dict[str, Any]) -> None:
    if group.get("differentiable"):
        raise ValueError(
            "differentiable=True cannot step the parameters of a module: it changes leaves of the "
            "graph in place, which autograd forbids in stock torch too"
        )
    if group.get("capturable") and any(p.device.type == "cpu" for p in group["params"]):
        raise ValueError(
            "capturable=True is for accelerators: torch refuses to step parameters on the CPU "
            "with it"
        )


def _permuted(parameter: Tensor) -> bool:
    """Whether the gradient lies in memory in another order than the parameter."""
    return parameter.grad.stride() != parameter.stride()
