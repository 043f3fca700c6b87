"""What trains in a step.

1. An optimizer steps a parameter whose `grad` is not None; `grad = None` is a reset.
2. A backward pass reaches a parameter in which its gradient arrives; a parameter that belongs to
   paths, as those of a supernet's choices do, only if the pass has run a path with it. What else a
   loss touches, such as a penalty on all parameters, adds to gradients that are there by then.
3. A pass reaches the entries that the masks in force let train; the gradient of the others is zero.
4. A step of a `MaskedOptimizer` trains the entries that passes have reached since the last reset
   and that no mask in force now forbids. A gradient set by hand has reached all of them.
5. To it, a gradient of zeros is a reset too, unless a pass has delivered it since the last step.

Separate modules and separate tensors under stock torch do the same, where they can be made; but for
the 5th, which a gradient of exact zeros that is set by hand meets."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from functools import partial
from itertools import chain
from operator import is_, methodcaller
from typing import Any

import torch
from torch import Tensor, distributed, nn

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Mask:
    """The entries of a parameter that may train, compared and hashed by value.

    entries: boolean tensor of the parameter's shape, or with 1 in some dimensions, True =
    trainable; None: no entry trains. It is copied."""

    def __init__(self, entries: Tensor | None) -> None:
        self.entries = (
            None
            if entries is None
            else entries.detach().clone(memory_format=torch.contiguous_format)
        )
        content = b"" if entries is None else self.entries.cpu().numpy().tobytes()
        self._hash = hash((None if entries is None else tuple(entries.shape), content))
        self._bits: dict[tuple[Any, ...], Tensor] = {}
        self._rows: Tensor | None = None
        if entries is not None and entries.ndim > 1 and entries.numel() == len(entries):
            rows = self.entries.flatten().nonzero().squeeze(1)
            self._rows = rows if 4 * len(rows) < len(entries) else None

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Mask) or self._hash != other._hash:
            return False
        a, b = self.entries, other.entries
        return (
            a is b
            if a is None or b is None
            else a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
        )

    def __reduce__(self) -> tuple[type[Mask], tuple[Any, ...]]:
        return Mask, (self.entries,)

    def of(self, parameter: Tensor) -> Tensor:
        """Boolean tensor of the parameter's shape; of a DTensor, of this process's part."""
        if self.entries is None:
            entries = torch.zeros((), dtype=torch.bool, device=parameter.device)
        else:
            entries = self.entries.to(parameter.device)
        entries = entries.expand(parameter.shape)
        if is_distributed(parameter):
            from torch.distributed.tensor import distribute_tensor

            mesh, placements = parameter.device_mesh, parameter.placements
            # Every process has the whole mask: nothing is sent.
            return distribute_tensor(entries, mesh, placements, src_data_rank=None).to_local()
        return entries

    def keep(self, grad: Tensor) -> Tensor:
        """A copy of the gradient that is +0 outside the mask, even where it was NaN;
        differentiable.

        The bits of the number AND those of the mask: several times faster on this processor than
        `torch.where` or `masked_fill`, and unlike `grad * mask` right for NaN and infinity."""
        try:
            word = INTEGERS[grad.element_size()]
            bits_of_grad = grad.view(word)
        except (
            KeyError,
            RuntimeError,
        ):  # complex128, a conjugate, or a tensor that stands for a batch of them
            return torch.where(self.of(grad), grad, 0)
        if grad.requires_grad:  # a derivative is wanted
            return torch.where(self.of(grad), grad, 0)
        if self.entries is None:
            return torch.zeros_like(grad)
        if self._rows is not None:  # few of many rows, as of an embedding
            rows = self._rows.to(grad.device)
            return torch.zeros_like(grad).index_copy_(0, rows, grad[rows])
        key = grad.device, word, grad.stride()
        if key not in self._bits:
            # In the layout of the gradient, or as small as the mask was given: that much less
            # memory is read.
            like = grad if self.entries.shape == grad.shape else self.entries
            bits = torch.empty_like(like, dtype=word, device=grad.device).copy_(self.entries)
            self._bits = {key: bits.neg_()}  # True becomes all ones; one layout is in use at a time
        return bits_of_grad.bitwise_and(self._bits[key]).view(grad.dtype)

    def forget(self) -> None:
        """Free what `keep` holds to be fast."""
        self._bits = {}


Masks = frozenset[Mask]
NOWHERE: frozenset[Masks] = frozenset()
MOST_PASSES = 16  # under way at a time
MANY = 8  # passes under different masks; from here on it is looked whether a reset is among them
_LOCK = threading.Lock()


class Activity:
    """Follows the backward passes of one parameter, which keeps it.

    of_paths: only passes that have run a path with the parameter reach it. The path says `reach`
    from within the backward pass, before the parameter's gradient is complete."""

    def __init__(self, parameter: nn.Parameter, of_paths: bool) -> None:
        self.of_paths = of_paths
        self.masks: list[Mask] = []  # in force; equal ones may be there more than once
        self.reached: frozenset[Masks] = NOWHERE
        """For each pass that has reached it since the last reset, the masks that were in force."""
        self._delivered = False  # by a pass, since the last step
        self._passes: set[int] = set()  # under way that run a path with it
        # By thread, of the gradient that is arriving: the masks, None if no path brings it.
        self._arriving: dict[int, Masks | None] = {}
        self._cut = False  # a gradient was dropped since the last step, and none has come
        # The thread and the pass that dropped it, and how deep that was inside of others.
        self._dropped: tuple[int, int, int] | None = None
        self._handles: list[Any] = []
        if not (parameter.is_floating_point() or parameter.is_complex()):
            return  # integers never have gradients
        trained = parameter.requires_grad
        parameter.requires_grad_(True)  # or it takes no hooks, and would lack them when thawed
        _revive(parameter)
        self._handles = [
            parameter.register_hook(partial(self._before, parameter)),
            parameter.register_post_accumulate_grad_hook(self._after),
        ]
        parameter.requires_grad_(trained)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a parameter that was pickled has no hooks

    def reach(self) -> None:
        """The backward pass under way has run a path with the parameter."""
        task = torch._C._current_graph_task_id()
        if self._dropped is not None:
            thread, pass_, depth = self._dropped
            if thread == threading.get_ident() and pass_ != task and _depth() > depth:
                raise RuntimeError(
                    "a path runs in a backward pass inside of another, which has seen a penalty on "
                    "its parameters before; checkpoint it with use_reentrant=False"
                )
        self._passes.add(task)
        if len(self._passes) > MOST_PASSES:  # some never deliver what they have announced
            self._passes = set(sorted(self._passes)[-MOST_PASSES // 2 :])

    def now(self, parameter: Tensor) -> frozenset[Masks]:
        """What a step is to train: entries that all masks of one of these sets allow. Empty:
        nothing."""
        grad = parameter.grad
        if grad is None or not (self._delivered or self._by_others(parameter) or grad.any()):
            self.reached, self._delivered = NOWHERE, False
            if not (self.of_paths or self.masks):
                self._leave(parameter)
        elif not self.reached:
            self.reached = frozenset({frozenset()})  # set by hand, or by another process
        return frozenset(masks.union(self.masks) for masks in self.reached)

    def add(self, mask: Mask) -> None:
        self.masks.append(mask)

    def remove(self, mask: Mask, parameter: Tensor) -> None:
        """End a mask. What it has already cut stays cut until the next step or reset."""
        self.masks.remove(mask)
        mask.forget()
        self.now(parameter)

    def _leave(self, parameter: Tensor) -> None:
        for handle in self._handles:
            handle.remove()
        if activity_of(parameter) is self:
            del parameter._mnas

    def _by_others(self, parameter: Tensor) -> bool:
        """Whether the gradient may come from other processes, where zeros are as good as any."""
        if self.of_paths and not self._cut and processes() > 1:
            return True  # of a path of their own
        return is_distributed(parameter)

    def _before(self, parameter: Tensor, grad: Tensor | None) -> Tensor | None:
        task = torch._C._current_graph_task_id()
        arrives = not self.of_paths or task in self._passes
        self._passes.discard(task)
        self._arriving.pop(threading.get_ident(), None)
        if grad is None:  # nothing was delivered; torch calls the other hook all the same
            return None
        if len(self.reached) >= MANY and parameter.grad is not None and not parameter.grad.any():
            self._delivered = False  # reset by a stock optimizer, which does not say so
        self.now(parameter)  # forgets what a reset has ended
        self._arriving[threading.get_ident()] = frozenset(self.masks) if arrives else None
        if grad.is_sparse and self.masks:
            raise ValueError(
                "a masked parameter got a sparse gradient; make its layer with sparse=False"
            )
        for mask in set(self.masks):
            grad = mask.keep(grad)
        return grad

    def _after(self, parameter: Tensor) -> None:
        if threading.get_ident() not in self._arriving:
            return
        masks = self._arriving.pop(threading.get_ident())
        if masks is not None:
            self.reached |= {masks}
            self._delivered, self._cut = True, False
        elif self.reached:
            self._delivered = True
        else:
            parameter.grad, self._cut = None, True
            task = torch._C._current_graph_task_id()
            self._dropped = threading.get_ident(), task, _depth()


def _depth() -> int:
    """How many backward passes are under way in this thread, one inside of the other."""
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth += frame.f_code is _BACKWARD
        frame = frame.f_back
    return depth


_BACKWARD = torch.autograd.graph._engine_run_backward.__code__


def _revive(parameter: Tensor) -> None:
    """`torch.utils.swap_tensors` leaves a parameter its dictionaries of hooks, and nothing that
    calls them."""
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        hooks = getattr(parameter, name)
        if hooks is not None:
            for key, hook in list(hooks.items()):
                if isinstance(getattr(getattr(hook, "func", hook), "__self__", None), Activity):
                    del hooks[key]  # of before
            setattr(parameter, name, hooks)


def activity_of(parameter: Tensor | None) -> Activity | None:
    """None for a parameter that every backward pass trains whole."""
    return getattr(parameter, "_mnas", None)


def follow(parameter: nn.Parameter, of_paths: bool = False) -> Activity:
    """The activity of a parameter, from now on."""
    found = activity_of(parameter)
    if found is None:
        with _LOCK:  # the first passes may run in several threads
            found = activity_of(parameter)
            if found is None:
                found = parameter._mnas = Activity(parameter, of_paths)
    found.of_paths |= of_paths
    return found


def reset(parameters: list[Tensor], set_to_none: bool) -> None:
    """Reset gradients as torch does, and with them what is active."""
    for parameter in parameters:
        if (grad := parameter.grad) is not None:
            if set_to_none:
                parameter.grad = None
            else:
                (grad.detach_() if grad.grad_fn is not None else grad.requires_grad_(False)).zero_()
    end(parameters, after_step=False)


def end(parameters: Iterable[Tensor], after_step: bool = True) -> None:
    """A step has been made, or else a reset. One loop without calls: a step trains few of a
    supernet's many parameters, and this looks at all."""
    for parameter in parameters:
        activity = getattr(parameter, "_mnas", None)
        if activity is not None:
            activity._delivered = activity._cut = False
            if not after_step:
                activity.reached = NOWHERE


def processes() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which this process has a part, as FSDP2's parameters are."""
    return hasattr(tensor, "placements")


class Registered:
    """The parameters and submodules of modules, to notice cheaply when others take their place, as
    by `load_state_dict(assign=True)`, or others' content, as by `torch.utils.swap_tensors`."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        inner = list({id(m): m for module in modules for m in module.modules()}.values())
        self._registries = [registry for m in inner for registry in (m._parameters, m._modules)]
        self._members = self._now()
        self._tensors = [member for member in self._members if isinstance(member, Tensor)]
        self._activities = list(map(activity_of, self._tensors))

    def _now(self) -> list[Any]:
        return list(chain.from_iterable(map(_VALUES, self._registries)))

    def changed(self) -> bool:
        """In a loop of the interpreter's own: a large supernet has thousands of modules."""
        now = self._now()
        return (
            len(now) != len(self._members)
            or not all(map(is_, now, self._members))
            or not all(map(is_, map(activity_of, self._tensors), self._activities))
        )


_VALUES = methodcaller("values")
