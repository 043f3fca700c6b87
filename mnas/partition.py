"""A parameter in pieces: what an optimizer steps when only some entries of a tensor are active.

An elementwise optimizer treats a tensor as so many independent numbers that share a step count. Entries that have been
active at different times have different step counts, so they must be different tensors to it: pieces. A partition
begins as one piece that has never been stepped, and is refined whenever the active set cuts a piece in two; state goes
with its entries. A piece is a view of the parameter where that is possible and a compact copy otherwise; for fused
kernels it is always contiguous, in the order of the parameter's memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mnas.masking import EVERYTHING, Active, ActiveSet, Selector
from mnas.places import Place, place, place_of

MOST_PIECES = 64  # with state; beyond that, pieces that are alike are joined when masks change
MOST_IDLE = 32  # selectors kept beyond those in use, so that masks that alternate need no new partition
MOST_FOUND = 1024  # active sets whose pieces are remembered
SCALARS = ("step", "eta", "mu", "mu_product")  # of the optimizers in torch.optim, one a tensor

State = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory. Flat means: its memory as one dimension (span,), gaps included."""

    size: torch.Size
    stride: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor) -> Layout:
        return Layout(tensor.shape, tensor.stride())

    @cached_property
    def span(self) -> int:
        return 1 + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))

    def holds(self, tensor: Tensor) -> bool:
        return tensor.stride() == self.stride and tensor.shape == self.size

    def flat(self, tensor: Tensor) -> Tensor:
        """A tensor of this layout, as a view."""
        return tensor.as_strided((self.span,), (1,), tensor.storage_offset())

    def box(self, flat: Tensor) -> Tensor:
        """What was made flat, in its own shape again; a view."""
        return flat.as_strided(self.size, self.stride, flat.storage_offset())

    def spread(self, tensor: Tensor) -> Tensor:
        """A tensor of this size and any layout, brought into this one and made flat; zeros in gaps."""
        flat = tensor.new_zeros(self.span)
        self.box(flat).copy_(tensor)
        return flat

    def moved(self, positions: Tensor, to: Layout) -> Tensor:
        """The positions of the same entries in another layout of the same size."""
        if to == self:
            return positions
        address = torch.zeros(self.span, dtype=torch.int64)
        self.box(address).copy_(to.box(torch.arange(to.span)))
        return address[positions]


class Piece:
    """Entries of one parameter that lie in the same selectors and have been stepped together.

    place: where they are; None for entries without a view that were never active, so that these cost no memory.
    values: their numbers, the tensor that the wrapped optimizer steps and keys its state by; None before they are
    active.
    """

    def __init__(self, inside: frozenset[Selector], place: Place | None, values: Tensor | None = None) -> None:
        self.inside, self.place, self.values = inside, place, values
        self.grad: Tensor | None = None  # of copied entries; kept, because fresh memory costs as much as the step


class Partition:
    """The pieces of one parameter under one wrapped optimizer, whose state is keyed by their values."""

    def __init__(self, parameter: Tensor, inner: torch.optim.Optimizer) -> None:
        self.parameter, self.inner = parameter, inner
        self.layout = Layout.of(parameter)
        self.contiguous = True  # no views with gaps
        self.pieces: list[Piece] = []
        self.selectors: tuple[Selector, ...] | None = None  # newest first; None: the pieces are not yet cut as needed
        self._found: dict[Active, list[Piece]] = {}
        self._gathered: list[Piece] = []

    def take_over(self, state: State) -> None:
        """Continue with the state of the parameter as a whole, as a stock optimizer has it."""
        if not state:
            return
        entries = self.layout.spread(torch.ones(self.layout.size, dtype=torch.bool)).nonzero().squeeze(1)
        piece = self._add(self.layout, place(entries, contiguous=True))
        for key, value in state.items():
            if _per_entry(value) or (self.parameter.ndim == 0 and key not in SCALARS):
                value = piece.place.read(self.layout.spread(value))
            self.inner.state[piece.values][key] = value

    def gather(self, active_set: ActiveSet | None, contiguous: bool) -> list[Tensor]:
        """The active pieces as tensors with the parameter's values and gradients. `scatter` is to follow.

        contiguous: they are for a fused kernel.
        """
        parameter, grad = self.parameter.detach(), self.parameter.grad
        if grad.is_sparse:
            raise ValueError("a parameter in pieces has a sparse gradient; make its layer with sparse=False")
        if contiguous != self.contiguous or not self.layout.holds(parameter):
            self.selectors, self.contiguous, self._found = None, contiguous, {}
        active = self._active(active_set)
        if not self.layout.holds(grad):  # it would be read in the wrong order
            grad = self.layout.spread(grad)
        for piece in active:
            values, where = piece.values, piece.place
            if where.is_view:
                if values is None or values.data_ptr() != parameter.data_ptr() + where.start * values.element_size():
                    values = self._renew(piece, where.read(parameter))  # new, or `module.to` moved the parameter
            elif values is None or values.dtype != parameter.dtype or values.device != parameter.device:
                values = self._renew(piece, where.read(parameter))
            else:
                where.read(parameter, values)
            if grad.dtype != values.dtype:
                values.grad_dtype = grad.dtype
            if where.is_view:
                values.grad = where.read(grad)
            else:
                values.grad = piece.grad = where.read(grad, piece.grad)
            self._gathered.append(piece)
        return [piece.values for piece in active]

    def scatter(self) -> None:
        """Write back what was copied, and let go of the gradients."""
        while self._gathered:
            piece = self._gathered.pop()
            piece.values.grad = None
            if not piece.place.is_view:
                piece.place.write(self.parameter.detach(), piece.values)

    def dense_state(self) -> State:
        """The state in the shape of the parameter, scalars as one number an entry; 0 where there is none."""
        dense: State = {}
        for piece in self._with_state():
            for key, value in self.inner.state[piece.values].items():
                dtype = _dtype(value) if key not in dense else torch.promote_types(dense[key].dtype, _dtype(value))
                room = torch.zeros(self.layout.span, dtype=dtype, device=piece.values.device)
                dense[key] = dense[key].to(dtype) if key in dense else room
                where = piece.place.positions().to(piece.values.device)
                dense[key][where] = _flat(value).to(dtype) if torch.is_tensor(value) else value
        return {key: self.layout.box(flat) for key, flat in dense.items()}

    def state_dict(self) -> State:
        """{"pieces": [...]}; or the state of the parameter as a whole, as stock torch has it, if that is what it is."""
        stepped = self._with_state()
        if len(stepped) == 1 and len(stepped[0].place.positions()) == self.parameter.numel():
            state = self.inner.state[stepped[0].values]
            dense = self.dense_state()
            return {key: dense[key] if _per_entry(value) else value for key, value in state.items()}
        layout = {"size": list(self.layout.size), "stride": list(self.layout.stride)}
        pieces = [{**layout, **p.place.parts(), "state": self.inner.state[p.values]} for p in stepped]
        return {"pieces": pieces} if pieces else {}

    def load_pieces(self, pieces: list[State]) -> Iterator[tuple[Tensor, State]]:
        """Take over what `state_dict` returned, perhaps in a layout that the parameter has left.

        Yields each piece's tensor with its state. Raises ValueError if the pieces are not parts of the parameter.
        """
        size = self.parameter.shape
        seen: Tensor | None = None
        for parts in pieces:
            try:
                layout, state = Layout(torch.Size(parts["size"]), tuple(parts["stride"])), parts["state"]
                where = place_of(parts)
                positions = where.positions()
                if seen is None:
                    first, seen = layout, torch.zeros(layout.span, dtype=torch.bool)
                lengths = {len(positions), *(value.numel() for value in state.values() if _per_entry(value))}
                sound = len(lengths) == 1 and (positions.diff() > 0).all() and not seen[positions].any()
                sound = sound and positions[0] >= 0 and layout == first
                seen[positions] = True
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"a piece of an optimizer's state is damaged ({error!r}); restore it") from error
            if layout.size != size:
                raise ValueError(f"the state of a parameter of shape {tuple(layout.size)} does not fit {tuple(size)}")
            if not sound:
                raise ValueError(f"a piece of the state of a parameter of shape {tuple(size)} is damaged; restore it")
            yield self._add(layout, where).values, state

    def _add(self, layout: Layout, where: Place) -> Piece:
        self.layout = layout
        piece = Piece(frozenset(), where, where.read(layout.spread(self.parameter.detach())))
        self.pieces.append(piece)
        return piece

    def _renew(self, piece: Piece, values: Tensor) -> Tensor:
        state = self.inner.state.pop(piece.values, None) if piece.values is not None else None
        piece.values, piece.grad = values, None
        if state:
            self.inner.state[values] = state
        return values

    def _with_state(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.values is not None and self.inner.state.get(piece.values)]

    def _active(self, active_set: ActiveSet | None) -> list[Piece]:
        active = EVERYTHING if active_set is None else active_set.snapshot()
        found = self._found.get(active)
        if found is None:
            needed = frozenset() if active_set is None else active_set.selectors
            hidden = (piece.inside for piece in self.pieces if piece.place is None)
            if self.selectors is None or not needed <= set(self.selectors) or any(map(active.contains, hidden)):
                idle = [selector for selector in self.selectors or () if selector not in needed]
                self._refine((*needed, *idle[:MOST_IDLE]), active)
                if len(self._with_state()) > MOST_PIECES + len(needed):
                    self._refine(tuple(needed), active, join=True)
            found = self._found[active] = [piece for piece in self.pieces if active.contains(piece.inside)]
            if len(self._found) > MOST_FOUND:
                self._found = {active: found}
        return found

    def _refine(self, selectors: tuple[Selector, ...], active: Active, join: bool = False) -> None:
        """Cut the pieces so that each is inside or outside every selector. join: first join those of equal scalars."""
        state, layout = self.inner.state, Layout.of(self.parameter)
        groups: dict[Any, list[Piece]] = {}
        for number, piece in enumerate(self._with_state()):
            groups.setdefault(_scalars(state[piece.values]) if join else number, []).append(piece)
        label = torch.full((layout.span,), -1)  # -1 in gaps of memory, 0 where there is no state, else the group
        layout.box(label).zero_()
        dense: dict[tuple[str, torch.dtype], Tensor] = {}  # the state by position
        for number, group in enumerate(groups.values(), 1):
            for piece in group:
                positions = self.layout.moved(piece.place.positions(), layout)
                label[positions] = number
                for key, value in state[piece.values].items():
                    if _per_entry(value):
                        flat = dense.setdefault((key, value.dtype), value.new_zeros(layout.span))
                        flat[positions.to(value.device)] = _flat(value)
        before = [{}, *(state[group[0].values] for group in groups.values())]
        for group in groups.values():
            for piece in group:
                del state[piece.values]
        self.selectors, self.layout, self._found, self.pieces = selectors, layout, {}, []
        for index, number, inside in _cut(label, len(groups) + 1, selectors, layout, self.parameter):
            where = place(index, self.contiguous)
            if number:
                values = where.read(self.parameter.detach())
                state[values] = {
                    key: _owned(where.read(dense[key, value.dtype])) if _per_entry(value) else copy.deepcopy(value)
                    for key, value in before[number].items()
                }
                self.pieces.append(Piece(inside, where, values))
            else:
                known = where.is_view or active.contains(inside)
                self.pieces.append(Piece(inside, where if known else None))


def _cut(
    label: Tensor, labels: int, selectors: tuple[Selector, ...], layout: Layout, parameter: Tensor
) -> list[tuple[Tensor, int, frozenset[Selector]]]:
    """Cut sets of entries by selectors. label (span,): the set of each entry, below `labels`, or -1 for none.

    Returns, in the order of memory, each part that is not empty: its sorted index, the label that it had, and the
    selectors that it lies in.
    """
    made: list[tuple[int, frozenset[Selector]]] = [(number, frozenset()) for number in range(labels)]
    for selector in selectors:
        inside = layout.spread(selector.mask(parameter)).nonzero().squeeze(1).cpu()
        found, which = label[inside].unique(return_inverse=True)
        label[inside] = len(made) + which
        made += [(made[n][0], made[n][1] | {selector}) for n in found.tolist()]
    order = label.argsort(stable=True)
    numbers, counts = label[order].unique_consecutive(return_counts=True)
    parts = [(i, *made[n]) for n, i in zip(numbers.tolist(), order.split(counts.tolist()), strict=True) if n >= 0]
    return sorted(parts, key=lambda part: int(part[0][0]))


def _per_entry(value: Any) -> bool:
    """Whether a value of an optimizer's state holds a number an entry; the others are scalars such as step counts."""
    return torch.is_tensor(value) and value.ndim > 0


def _flat(value: Any) -> Any:
    return value.reshape(-1) if _per_entry(value) else value


def _owned(value: Tensor) -> Tensor:
    """A tensor that is not a view of a larger one, so that its memory is its own."""
    return value.clone(memory_format=torch.contiguous_format)


def _scalars(state: State) -> frozenset[Any]:
    return frozenset(
        (key, value.dtype if _per_entry(value) else value.item() if torch.is_tensor(value) else value)
        for key, value in state.items()
    )


def _dtype(value: Any) -> torch.dtype:
    return value.dtype if torch.is_tensor(value) else torch.float64
