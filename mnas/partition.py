"""A parameter in pieces: what an optimizer steps when only some entries of a tensor are active.

An elementwise optimizer treats a tensor as so many independent numbers that share a step count. Entries that have been
active at different times have different step counts, so they must be different tensors to it: pieces. A partition
begins as one piece that has never been stepped, and is refined whenever the active set cuts a piece in two; state goes
with its entries. A piece is a view of the parameter where that is possible and a compact copy otherwise; for fused
kernels it is always contiguous, in the order of the parameter's memory.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mnas.masking import EVERYTHING, Active, ActiveSet, Selector
from mnas.places import Place, place

MOST_PIECES = 64  # with state; beyond that, pieces that are alike are joined when masks change
MOST_IDLE = 16  # selectors kept beyond those in use, so that masks that alternate need no new partition
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
    leaf: their values, what the wrapped optimizer steps and keys its state by; None before they are active.
    """

    def __init__(self, inside: frozenset[Selector], place: Place | None, leaf: Tensor | None = None) -> None:
        self.inside, self.place, self.leaf = inside, place, leaf
        self.grad: Tensor | None = None  # of copied entries; kept, because fresh memory costs as much as the step


class Partition:
    """The pieces of one parameter under one wrapped optimizer, whose state is keyed by their leaves."""

    def __init__(self, parameter: Tensor, inner: torch.optim.Optimizer) -> None:
        self.parameter, self.inner = parameter, inner
        self.layout = Layout.of(parameter)
        self.pieces: list[Piece] = []
        self.contiguous = True  # no views with gaps
        self.selectors: frozenset[Selector] | None = None  # None: the pieces do not cover the parameter as they should
        self._found: dict[Active, list[Piece]] = {}
        self._lent: list[Piece] = []

    def adopt(self, state: State) -> None:
        """Take over the state of the parameter as a whole, as a stock optimizer has it."""
        if not state:
            return
        entries = self.layout.spread(torch.ones(self.layout.size, dtype=torch.bool)).nonzero().squeeze(1)
        where = place(entries, contiguous=True)
        leaf = self.add(self.layout, where)
        for key, value in state.items():
            if _per_entry(value) or (self.parameter.ndim == 0 and key not in SCALARS):
                value = where.read(self.layout.spread(value))
            self.inner.state[leaf][key] = value

    def add(self, layout: Layout, where: Place) -> Tensor:
        """A piece that has been stepped before, in a layout that the parameter may have left; returns its leaf.

        Raises ValueError if the parameter has no such entries.
        """
        size, positions = self.parameter.shape, where.positions()
        if layout.size != size or not 0 <= int(positions.min()) <= int(positions.max()) < layout.span:
            raise ValueError(f"the state of a parameter of shape {tuple(layout.size)} does not fit shape {tuple(size)}")
        self.layout = layout
        piece = Piece(frozenset(), where, where.read(layout.spread(self.parameter.detach())))
        self.pieces.append(piece)
        return piece.leaf

    def with_state(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.leaf is not None and self.inner.state.get(piece.leaf)]

    def lend(self, active_set: ActiveSet | None, contiguous: bool) -> list[Tensor]:
        """The leaves of the active pieces, with the parameter's values and gradients; `settle` ends the loan.

        contiguous: the leaves are for a fused kernel.
        """
        if contiguous != self.contiguous or not self.layout.holds(self.parameter):
            self.selectors, self.contiguous, self._found = None, contiguous, {}
        parameter, grad = self.parameter.detach(), self.parameter.grad
        self._lent = self._active(active_set)
        if not self.layout.holds(grad):  # it would be read in the wrong order
            grad = self.layout.spread(grad)
        for piece in self._lent:
            leaf, where = piece.leaf, piece.place
            if where.is_view:
                if leaf is None or leaf.data_ptr() != parameter.data_ptr() + where.start * leaf.element_size():
                    leaf = self._renew(piece, where.read(parameter))  # new, or `module.to` moved the parameter
                leaf.grad = where.read(grad)
            else:
                if leaf is None or leaf.dtype != parameter.dtype or leaf.device != parameter.device:
                    leaf = self._renew(piece, where.read(self.layout.flat(parameter)))
                else:
                    where.read(self.layout.flat(parameter), leaf)
                leaf.grad = piece.grad = where.read(self.layout.flat(grad), piece.grad)
        return [piece.leaf for piece in self._lent]

    def settle(self) -> None:
        """Write back what was copied, and let go of the gradients."""
        for piece in self._lent:
            piece.leaf.grad = None
            if not piece.place.is_view:
                piece.place.write(self.layout.flat(self.parameter.detach()), piece.leaf)
        self._lent = []

    def dense_state(self) -> State:
        """The state in the shape of the parameter, scalars as one number an entry; 0 where there is none."""
        dense: State = {}
        for piece in self.with_state():
            for key, value in self.inner.state[piece.leaf].items():
                if key not in dense:
                    dense[key] = torch.zeros(self.layout.span, dtype=_dtype(value), device=piece.leaf.device)
                dense[key][piece.place.positions().to(piece.leaf.device)] = _flat(value)
        return {key: self.layout.box(flat).clone() for key, flat in dense.items()}

    def _renew(self, piece: Piece, values: Tensor) -> Tensor:
        state = self.inner.state.pop(piece.leaf, None) if piece.leaf is not None else None
        piece.leaf, piece.grad = values, None
        if state:
            self.inner.state[values] = state
        return values

    def _active(self, active_set: ActiveSet | None) -> list[Piece]:
        active = EVERYTHING if active_set is None else active_set.snapshot()
        found = self._found.get(active)
        if found is None:
            needed = frozenset() if active_set is None else active_set.selectors
            known = self.selectors or frozenset()
            hidden = (piece for piece in self.pieces if piece.place is None)
            if self.selectors is None or not needed <= known or any(active.contains(p.inside) for p in hidden):
                idle = known - needed
                self._refine(needed | idle if len(idle) <= MOST_IDLE else needed, active)
                if len(self.with_state()) > MOST_PIECES + len(needed):
                    self._refine(needed, active, join=True)
            found = self._found[active] = [piece for piece in self.pieces if active.contains(piece.inside)]
            if len(self._found) > MOST_FOUND:
                self._found = {active: found}
        return found

    def _refine(self, selectors: frozenset[Selector], active: Active, join: bool = False) -> None:
        """Cut the pieces so that each is inside or outside every selector; join: first join those with equal scalars.

        Labels number the entries: 0 where there is no state, then one number a group of old pieces, then a new number
        for whatever part of a label lies inside a selector.
        """
        layout, state = Layout.of(self.parameter), self.inner.state
        old = self.with_state()
        groups: dict[Any, list[Piece]] = {}
        for number, piece in enumerate(old):
            groups.setdefault(_scalars(state[piece.leaf]) if join else number, []).append(piece)
        label = torch.full((layout.span,), -1)
        layout.box(label).zero_()
        made: list[tuple[list[Piece], frozenset[Selector]]] = [([], frozenset())]
        dense: State = {}  # the entries' state by position
        for group in groups.values():
            for piece in group:
                positions = self.layout.moved(piece.place.positions(), layout)
                label[positions] = len(made)
                for key, value in state[piece.leaf].items():
                    if _per_entry(value):
                        dense.setdefault(key, value.new_zeros(layout.span))[positions.to(value.device)] = _flat(value)
            made.append((group, frozenset()))
        for selector in selectors:
            inside = layout.spread(selector.mask(self.parameter)).nonzero().squeeze(1).cpu()
            labels, which = label[inside].unique(return_inverse=True)
            label[inside] = len(made) + which
            made += [(made[n][0], made[n][1] | {selector}) for n in labels.tolist()]
        order = label.argsort(stable=True)
        numbers, counts = label[order].unique_consecutive(return_counts=True)
        flat = layout.flat(self.parameter.detach())
        self.selectors, self.layout, self._found = selectors, layout, {}
        pieces: list[tuple[int, Piece]] = []
        before = {piece.leaf: state.pop(piece.leaf) for piece in old}
        for number, index in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
            if number < 0:
                continue  # gaps in memory belong to nobody
            group, inside = made[number]
            where = place(index, self.contiguous)
            if group:
                leaf = where.read(flat)
                state[leaf] = {
                    key: where.read(dense[key]).clone(memory_format=torch.contiguous_format)
                    if _per_entry(value)
                    else copy.deepcopy(value)
                    for key, value in before[group[0].leaf].items()
                }
                pieces.append((int(index[0]), Piece(inside, where, leaf)))
            else:
                known = where.is_view or active.contains(inside)
                pieces.append((int(index[0]), Piece(inside, where if known else None)))
        self.pieces = [piece for _, piece in sorted(pieces, key=lambda numbered: numbered[0])]


def _per_entry(value: Any) -> bool:
    """Whether a value of an optimizer's state holds a number an entry; the others are scalars such as step counts."""
    return torch.is_tensor(value) and value.ndim > 0


def _flat(value: Any) -> Any:
    return value.reshape(-1) if _per_entry(value) else value


def _scalars(state: State) -> frozenset[Any]:
    return frozenset(
        (key, None if _per_entry(value) else value.item() if torch.is_tensor(value) else value)
        for key, value in state.items()
    )


def _dtype(value: Any) -> torch.dtype:
    return value.dtype if torch.is_tensor(value) else torch.float64
