"""Choice: the candidates of one place in a network, with their parameters in merged tensors.

What a candidate does not share is its own, in a module that the choice registers under its name,
as `nn.ModuleDict` would. What it shares lies in atoms of a canvas (mnas/space/merge.py), which the
choice holds. Either way the parameters are what separate modules would have: leaves, each used by a
path whole or not at all. Mask, view, export, optimizer and cost follow from which of them a
candidate uses."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mnas.freeze.active import Activity, activity_of, follow
from mnas.space import merge
from mnas.space.candidates import (
    STATISTICS,
    check_candidate,
    check_devices,
    check_together,
    patterns_of,
)
from mnas.space.canvas import Canvas, Region, sizes, view
from mnas.space.decision import Decision
from mnas.space.enclosing import enclosing, masked, mixture
from mnas.space.layout import layouts_of
from mnas.space.making import made_of
from mnas.space.noting import followed, noting
from mnas.space.skeleton import fill, hooked_as, skeleton_of
from mnas.space.sliced import sliced, tensors_of

EXECUTIONS = ("sliced", "masked")


class Choice(nn.Module):
    """One place in a network with several candidate operations: `Choice({"conv3x3": ..., "conv5x5":
    ...})`, or `Choice(make, Decision("width", (8, 16)), stride=2)`.

    The candidates are ordinary modules, in a dict or in (name, module) pairs; they are copied, and
    registered under their names. With a decision behind them, its values are their names, and other
    choices may read it, too. A function is called with values in place of the decisions among its
    arguments, and the distinct modules that it returns are the candidates; None is nothing
    (`nn.Identity`). Same-named parameters of all candidates lie in one storage, `merged[name]`.
    Candidates must update buffers in place, as torch's own layers do. A hook on the choice runs
    around every candidate, which is the module that it is given.

    nested: candidates share entries, as in once-for-all networks (Cai et al., ICLR 2020, section
    3): a 3x3 kernel is the centre of the 5x5, a narrow layer the first channels of the wide one, a
    dilated kernel every second tap, a shallow sequence the first layers of the deep one. Where they
    overlap, the largest candidate gives the start. The choice holds what is shared; in the modules
    of the candidates it is None. separate: patterns of the names of tensors that candidates do not
    share though nested; by default the running statistics of BatchNorm, which differ between
    candidates of different depth or width. () shares them, too, and ("*bn*",) keeps all tensors of
    layers of that name apart, the affine parameters as well. layout: how the dimensions of tensors
    are made, by patterns of names, where a narrow layer is not the first rows of a wide one:
    {"qkv.weight": "(3 width) inputs"} for queries, keys and values in one layer.

    Raises ValueError for candidates that cannot be merged: none, badly named, tied, mixed in dtype
    or device, not to be copied, nested ones without a common centre; for a function that fails.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module]
        | Iterable[tuple[str, nn.Module]]
        | Callable[..., nn.Module | None],
        *args: Any,
        nested: bool = False,
        separate: Iterable[str] = STATISTICS,
        layout: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if not isinstance(nested, bool):
            raise ValueError(f"nested={nested!r}; expected True or False")
        made = made_of(candidates, args, kwargs)
        self.decisions = made.decisions
        self.table = made.table
        candidates = dict(made.modules)
        for name, candidate in candidates.items():
            check_candidate(name, candidate, Choice)
        check_devices(candidates)
        check_together(candidates, nested)
        self.names = tuple(candidates)
        self.nested = nested
        apart = patterns_of(separate, candidates) if nested else ("*",)
        self.canvases: dict[str, Canvas] = {}
        """Of the tensors that candidates share, by their name in the candidates."""
        self._activities: dict[str, Activity] = {}  # of atoms, by key
        self.shared: dict[str, tuple[str, ...]] = {}
        """Where the choice holds those that are parameters: a key an atom, of the tensor's name and
        the candidates that the atom comes with."""
        tensors = {c: dict(_tensors(module)) for c, module in candidates.items()}
        self.layouts = layouts_of(layout, tensors)
        for name in dict.fromkeys(n for of_candidate in tensors.values() for n in of_candidate):
            present = {c: own[name] for c, own in tensors.items() if name in own}
            merge.check_alike(name, present)
            empty = any(tensor.numel() == 0 for tensor in present.values())
            if not empty and not any(fnmatchcase(name, pattern) for pattern in apart):
                of_candidates = [own.get(name) for own in tensors.values()]
                canvas = merge.canvas_of(name, candidates, of_candidates, self.layouts.get(name))
                # A table of constants, say, need not be part of that of a wider candidate.
                trained = isinstance(next(iter(present.values())), nn.Parameter)
                if trained or merge.agree(canvas, of_candidates):
                    self.canvases[name] = canvas
        names = [
            [n for n in own if not any(fnmatchcase(n, pattern) for pattern in STATISTICS)]
            for own in tensors.values()
        ]
        drawn = set(candidates) - set(made.builds)  # whose random start is there
        for name in (self.names[n] for n in merge.starting(self.canvases, names)):
            if name in made.builds:
                candidates[name] = made.builds[name]()
                drawn.add(name)
        for name in self.canvases:
            self._share(name, candidates, drawn)
        for name, module in candidates.items():
            self._check_free(name, "candidate")
            self._modules[name] = skeleton_of(
                name, module, without=self.canvases, copied=name not in made.builds
            )
        self._merge()

    def _share(
        self, name: str, candidates: Mapping[str, nn.Module], drawn: Collection[str]
    ) -> None:
        tensors = [
            dict(_tensors(module)).get(name) if c in drawn else None
            for c, module in candidates.items()
        ]
        values = self.canvases[name].filled(tensors)
        sample = next(tensor for tensor in tensors if tensor is not None)
        if not isinstance(sample, nn.Parameter):
            persistent = any(name in c.state_dict() for c in candidates.values())
            self._check_free(name.replace(".", "/"), "buffer")
            self.register_buffer(name.replace(".", "/"), values, persistent=persistent)
            return
        keys = []
        for atom in self.canvases[name].atoms:
            # Of equal ones the first by name, so that a state knows candidates in any order.
            equals = self.canvases[name].smallest(atom)
            comes_with = sorted(min(self.names[c] for c in found) for found in equals)
            keys.append(f"{'+'.join(comes_with)}:{name.replace('.', '/')}")
            entries = torch.empty(atom.shape, dtype=values.dtype, device=values.device)
            entries.copy_(atom.take(values))
            self.register_parameter(keys[-1], nn.Parameter(entries, sample.requires_grad))
        self.shared[name] = tuple(keys)

    @property
    def own(self) -> bool:
        """Whether nothing else reads what is decided here."""
        return not self.decisions

    def decisions_at(self, position: int) -> tuple[Decision, ...]:
        """What is read here; a choice of its own is called after its position in the model."""
        return self.decisions or (Decision(f"choice{position}", self.names),)

    def _check_free(self, name: str, what: str) -> None:
        if name in dir(self):
            raise ValueError(f"{name!r} is already a name in Choice; rename that {what}")

    def _merge(self) -> None:
        """Same-named parameters into one storage."""
        for parameters in self._same_named().values():
            merge.into_one_storage(parameters)

    def follow(self, others: Collection[int] = ()) -> None:
        """From now on only paths train what is registered here; but for parameters (by id) that
        others have, too, which train whenever a gradient arrives."""
        for parameter in self.parameters():
            activity = activity_of(parameter)
            if activity is not None and id(parameter) in others:
                activity.of_paths = False
        for key, parameter in self._parameters.items():
            if id(parameter) in others:
                self._activities.pop(key, None)
            elif isinstance(parameter, nn.Parameter):
                self._activities[key] = follow(parameter, of_paths=True)
        for index in range(len(self)):
            self._check_module(index)
            own = [p for p in self.module(index).parameters() if id(p) not in others]
            if all(isinstance(p, nn.Parameter) for p in own):  # and not torch.func's, for one call
                noting(self.module(index)).activities = followed(own)

    def activities(self, index: int, name: str | None = None) -> list[Activity | None]:
        """Of what a candidate trains, or of the atoms of one tensor: those of the parameters
        proper, whatever torch.func puts in their place for a call. None where every pass trains."""
        names = [name] if name else [n for n, _ in self.shared_parameters(index)]
        keys = [self.shared[n][number] for n in names for number in self.canvases[n].of(index)]
        own = [] if name else noting(self.module(index)).activities
        return [*own, *(self._activities.get(key) for key in keys)]

    def _check_module(self, index: int) -> None:
        """Raise RuntimeError for a module in place of one whose tensors are shared."""
        for name, tensor in _tensors(self.module(index)):
            if name in self.canvases and isinstance(tensor, nn.Parameter):
                raise RuntimeError(
                    f"candidate {self.names[index]!r} has been replaced, and {name!r} of it is "
                    "shared with others; make a new Choice of the candidates"
                )

    @property
    def merged(self) -> dict[str, Tensor]:
        """Same-named parameters of all candidates as one tensor (N,), which shares their memory."""
        return {
            name: merge.storage_of(parameters) for name, parameters in self._same_named().items()
        }

    def _same_named(self) -> dict[str, list[nn.Parameter]]:
        found = {
            name: [self._parameters[key] for key in keys] for name, keys in self.shared.items()
        }
        for index in range(len(self)):
            for name, parameter in self.module(index).named_parameters():
                found.setdefault(name, []).append(parameter)
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Choice:
        super()._apply(fn, recurse)  # which gives every parameter a storage of its own
        self._merge()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._activities = {}
        self._merge()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}_extra_state" in state_dict:
            rest[-1].append(  # torch's list of error messages
                f"the state of choice {prefix.removesuffix('.')} is of an older mnas, with one "
                "parameter for all candidates; export its networks there"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def apply(self, fn: Callable[[nn.Module], None]) -> Choice:
        """As in torch. What candidates share is shown to `fn` as parameters of each that has it,
        the largest last, and taken over from there: an initialisation by layer finds the layers.

        Raises ValueError if `fn` puts something else in the place of what is shared."""
        if not self.canvases:
            return super().apply(fn)
        for index in sorted(range(len(self)), key=self.numel):
            with torch.no_grad():
                tensors = tensors_of(self, index)
            for name, (_, parameters) in self.shared_parameters(index):
                trained = parameters[0].requires_grad
                tensors[name] = nn.Parameter(tensors[name].clone(), requires_grad=trained)
            self._take_over(index, fill(self.module(index), tensors).apply(fn))
        fn(self)
        return self

    @torch.no_grad()
    def _take_over(self, index: int, module: nn.Module) -> None:
        """Continue with a module in place of a candidate; what it shares goes to the atoms."""
        found = dict(_tensors(module))
        for name, (region, parameters) in self.shared_parameters(index):
            if name not in found:
                raise ValueError(
                    f"{name!r} of candidate {self.names[index]!r} is shared, and cannot become "
                    "something else; change the candidates before they are merged"
                )
            values = found[name].reshape(sizes(region.box))
            for atom, parameter in zip(region.atoms, parameters, strict=True):
                parameter.copy_(atom.take(values, region.box))
                parameter.requires_grad_(found[name].requires_grad)
        self._modules[self.names[index]] = fill(module, dict.fromkeys(self.canvases))

    def __len__(self) -> int:
        return len(self.names)

    @torch.no_grad()
    def __repr__(self) -> str:
        candidates = (f"({name}): {sliced(self, i)!r}" for i, name in enumerate(self.names))
        return f"Choice(\n{textwrap.indent(chr(10).join(candidates), '  ')}\n)"

    def forward(self, *args: Tensor) -> Tensor:
        raise RuntimeError(
            "a Choice is run along a path: call net(x, path) of the Supernet it belongs to"
        )

    def module(self, index: int) -> nn.Module:
        """The candidate as it is registered, without what it shares."""
        return self._modules[self.names[index]]

    def shared_parameters(
        self, index: int
    ) -> Iterator[tuple[str, tuple[Region, list[nn.Parameter]]]]:
        """What a candidate shares, by name: the region of it, and its parameters, one an atom."""
        for name, keys in self.shared.items():
            region = self.canvases[name].region(index)
            if region is not None:
                numbers = self.canvases[name].of(index)
                yield name, (region, [self._parameters[keys[n]] for n in numbers])

    def shared_buffers(self, index: int) -> dict[str, Tensor]:
        """Views of what a candidate shares, by name."""
        found = {}
        for name, canvas in self.canvases.items():
            buffer, box = self._buffers.get(name.replace(".", "/")), canvas.boxes[index]
            if name not in self.shared and box is not None:
                found[name] = view(buffer, box)
        return found

    @property
    def parameter_names(self) -> list[str]:
        return list(self._same_named())

    def parameters_of(self, index: int) -> Iterator[nn.Parameter]:
        """What a candidate uses, whole: its own parameters, and its atoms."""
        yield from self.module(index).parameters()
        for _, (_, parameters) in self.shared_parameters(index):
            yield from parameters

    def shape(self, name: str, index: int) -> tuple[int, ...] | None:
        """Of a candidate's tensor; None where it has none of this name."""
        if name in self.canvases:
            return self.canvases[name].shapes[index]
        tensor = dict(_tensors(self.module(index))).get(name)
        return None if tensor is None else tuple(tensor.shape)

    def box_sizes(self, name: str, index: int) -> tuple[int, ...] | None:
        """As `shape`; with a layout, of the tensor as that looks at it."""
        box = self.canvases[name].boxes[index] if name in self.canvases else None
        return self.shape(name, index) if box is None else sizes(box)

    def candidate(self, index: int, execution: str = "sliced") -> nn.Module:
        """One candidate as a module that lives on the merged tensors; the result shares memory with
        the choice.

        sliced: the candidate itself, what it shares put together. masked: the candidate that
        encloses it on `W * mask`, zeros around a smaller kernel. Raises ValueError for another
        index or execution."""
        if not 0 <= index < len(self) or execution not in EXECUTIONS:
            raise ValueError(
                f"candidate {index!r}, execution {execution!r}; expected an index below "
                f"{len(self)}, {EXECUTIONS}"
            )
        found = (masked if execution == "masked" else sliced)(self, index)
        return hooked_as(self, found, self.module(index))

    def mixture(self, weights: Tensor | Mapping[int, Tensor]) -> nn.Module:
        """The weighted sum of the outputs of candidates: where these are convolutions or linear
        layers of one width, as one layer whose parameters are the sum of theirs.

        weights (candidates,): of any sign and sum; or by the numbers of the candidates that are to
        be run. Raises ValueError for weights of another shape. Gradients reach the weights and the
        parameters of these candidates."""
        if isinstance(weights, Tensor):
            if weights.shape != (len(self),) or not weights.is_floating_point():
                raise ValueError(
                    f"weights of a mixture are {weights.dtype} of shape {tuple(weights.shape)}; "
                    f"expected {len(self)} floating numbers, one for each of "
                    f"{', '.join(self.names)}"
                )
            weights = dict(enumerate(weights.unbind()))
        found = mixture(self, weights)
        return hooked_as(self, found, found)

    def enclosing(self, index: int) -> int:
        """The largest candidate that computes this one when zeros are around its tensors; masked
        execution runs it. At worst the candidate itself."""
        return self._enclosing[index]

    @cached_property
    def _enclosing(self) -> tuple[int, ...]:
        return tuple(enclosing(self, index) for index in range(len(self)))

    def numel(self, index: int) -> int:
        """Of a candidate's parameters."""
        return sum(prod(self.shape(name, index) or (0,)) for name in self.parameter_names)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def choices_of(model: nn.Module) -> list[Choice]:
    """The choices of a model, each once, in the order of registration."""
    return [module for module in model.modules() if isinstance(module, Choice)]
