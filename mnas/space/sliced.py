"""Sliced execution: a candidate on what it uses of the merged tensors, and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mnas.freeze.active import Activity
from mnas.space.canvas import Region, sizes
from mnas.space.noting import Ours, reach
from mnas.space.skeleton import fill, hooked_as

if TYPE_CHECKING:
    from mnas.space.choice import Choice


class Part(NamedTuple):
    """How one tensor of a candidate comes of what is given for all of them: the atoms of its
    region, from a position on."""

    first: int
    region: Region

    def made(self, given: Sequence[Tensor]) -> Tensor:
        atoms, box, shape, along = self.region
        if len(atoms) == 1 and atoms[0].shape == sizes(box):
            return given[self.first].view(shape)
        given = given[self.first : self.first + len(atoms)]
        if along is not None:
            return torch.cat(given, along).view(shape)
        if transformed():  # such tensors cannot be written into another
            lengths = [t.numel() for t in given]
            numbers = torch.arange(sum(lengths), device=given[0].device).split(lengths)
            order = self._put([n.view(a.shape) for a, n in zip(atoms, numbers, strict=True)])
            return torch.cat([t.flatten() for t in given])[order].view(shape)
        return self._put(given).view(shape)

    def _put(self, given: Sequence[Tensor]) -> Tensor:
        first = given[0]
        # As a separate tensor would lie in memory.
        last = first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last)
        last = last and not first.is_contiguous()
        form = torch.channels_last if last else torch.contiguous_format
        made = torch.empty(
            sizes(self.region.box), dtype=first.dtype, device=first.device, memory_format=form
        )
        for atom, tensor in zip(self.region.atoms, given, strict=True):
            atom.put(tensor, made, self.region.box)
        return made

    def gradients(self, grad: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Of what was given, by position."""
        grad = grad.reshape(sizes(self.region.box))
        for number, atom in enumerate(self.region.atoms, self.first):
            yield number, atom.take(grad, self.region.box)


def sliced(choice: Choice, index: int) -> nn.Module:
    """The candidate's own module; where it shares tensors, on those of the choice."""
    return fill(choice.module(index), tensors_of(choice, index))


class Kept(Ours):
    """A hook before the forward pass of a candidate that is kept: what it shares is put together
    anew. Optimizers need not say that they have written (fused ones do not), so it is always.

    Where others have put tensors in the place of these, as `torch.func.functional_call` does for
    one call, those are used."""

    def __init__(self, choice: Choice, index: int, module: nn.Module) -> None:
        self.choice, self.index = choice, index
        shared = choice.canvases.items()
        names = [name for name, canvas in shared if canvas.boxes[index] is not None]
        self._put = {name: self._registry(module, name) for name in names}
        self._tensors = {name: found[key] for name, (found, key) in self._put.items()}

    @staticmethod
    def _registry(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
        prefix, _, key = name.rpartition(".")
        layer = module.get_submodule(prefix)
        return (layer._parameters if key in layer._parameters else layer._buffers), key

    def __call__(self, _: nn.Module, __: Any) -> None:
        if any(found[key] is not self._tensors[n] for n, (found, key) in self._put.items()):
            return
        self._tensors = tensors_of(self.choice, self.index)
        for name, (found, key) in self._put.items():
            found[key] = self._tensors[name]


def kept(choice: Choice, index: int) -> nn.Module:
    """The candidate as a module to be called again and again."""
    module = hooked_as(choice, sliced(choice, index), choice.module(index))
    if module is not choice.module(index):  # which has nothing that is put together
        # The hooks of a twin are those of the module that it is made of.
        module.__dict__["_forward_pre_hooks"] = OrderedDict(module._forward_pre_hooks)
        module.register_forward_pre_hook(Kept(choice, index, module), prepend=True)
    return module


def tensors_of(choice: Choice, index: int) -> dict[str, Tensor]:
    """What a candidate shares, by name, put together."""
    tensors = dict(choice.shared_buffers(index))
    following = torch.is_grad_enabled() and not transformed()
    names, parts, given, activities = [], [], [], []
    for name, (region, parameters) in choice.shared_parameters(index):
        if following and any(parameter.requires_grad for parameter in parameters):
            names.append(name)
            parts.append(Part(len(given), region))
            given += parameters
            activities += choice.activities(index, name)
        else:
            tensors[name] = Part(0, region).made(parameters)
    if parts:
        made = OfPath.apply(parts, activities, *given)
        tensors.update(zip(names, made, strict=True))
    return tensors


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation sees the tensors: not ours to follow."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class OfPath(torch.autograd.Function):
    """The tensors of a candidate, of the parameters that they are made of; its backward pass tells
    these that a path has reached them."""

    @staticmethod
    def forward(
        ctx: Any, parts: Sequence[Part], activities: Sequence[Activity | None], *given: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.parts, ctx.activities = parts, activities
        ctx.set_materialize_grads(False)
        made = (part.made(given) for part in parts)
        return tuple(tensor.view_as(tensor) for tensor in made)  # an output is no input

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        found: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 2)
        for part, grad in zip(ctx.parts, grads, strict=True):
            if grad is not None:
                for number, of_atom in part.gradients(grad):
                    if ctx.needs_input_grad[number + 2]:
                        found[number] = of_atom
        reach(a for a, grad in zip(ctx.activities, found, strict=False) if grad is not None)
        return None, None, *found
