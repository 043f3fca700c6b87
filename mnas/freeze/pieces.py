"""A parameter in pieces: what an optimizer steps when only some entries of a tensor are active.

An elementwise optimizer updates every entry independently and keeps one step count a tensor.
Entries that have been active at different times have different step counts, so they must be
different tensors to it. The pieces of a parameter are the entries that lie in the same masks; state
goes with its entries when new masks cut them anew. A piece is a view of the parameter where that is
possible and a compact copy otherwise. For fused kernels, which read memory in one go and are
silently wrong on a view with gaps, it is always contiguous."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnas.freeze.active import Mask, Masks, is_distributed

MOST_MASKS = 32  # that cut a parameter at a time, so that masks that alternate need no new pieces
MOST_PIECES = 64  # with state; beyond that, those of equal step counts are joined
MIN_BLOCK = 8  # entries; from here on whole blocks are cheaper than single entries
SCALARS = ("step", "eta", "mu", "mu_product")  # of the optimizers in torch.optim, one a tensor

State = dict[str, Any]


class Strided:
    """Entries at equal distances in memory: read as a view, they cost what a separate tensor
    does."""

    is_view = True

    def __init__(self, start: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.start, self.size, self.stride = start, tuple(size), tuple(stride)

    def parts(self) -> State:
        return {"start": self.start, "size": list(self.size), "stride": list(self.stride)}

    def positions(self) -> Tensor:
        end = self.start + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        return torch.arange(end + 1).as_strided(self.size, self.stride, self.start).flatten()

    def read(self, memory: Tensor, out: Tensor | None = None) -> Tensor:
        return memory.as_strided(self.size, self.stride, memory.storage_offset() + self.start)


class Indexed:
    """Any entries, as rows of equal width of the tensor's memory: copied out and back."""

    is_view = False

    def __init__(self, width: int, rows: Tensor) -> None:
        self.width, self.rows = width, rows

    def parts(self) -> State:
        return {"width": self.width, "rows": self.rows.cpu()}

    def positions(self) -> Tensor:
        return (self.rows.cpu()[:, None] * self.width + torch.arange(self.width)).flatten()

    def read(self, memory: Tensor, out: Tensor | None = None) -> Tensor:
        """A copy (n,)."""
        out = memory.new_empty(len(self.rows) * self.width) if out is None else out
        torch.index_select(self._in_rows(memory), 0, self.rows, out=self._in_rows(out))
        return out

    def write(self, memory: Tensor, values: Tensor) -> None:
        self._in_rows(memory).index_copy_(0, self.rows, self._in_rows(values))

    def _in_rows(self, flat: Tensor) -> Tensor:
        self.rows = self.rows.to(flat.device)
        if self.width == 1:
            return flat
        return flat[: len(flat) // self.width * self.width].view(-1, self.width)


Index = Strided | Indexed


def index_of(positions: Tensor, contiguous: bool) -> Index:
    """The cheapest index of ascending positions (n,), n > 0. contiguous: no views with gaps."""
    before = (positions[1:] != positions[:-1] + 1).nonzero().squeeze(1)  # gaps
    firsts = torch.cat([positions[:1], positions[before + 1]])
    ends = torch.cat([positions[before] + 1, positions[-1:] + 1])
    width = int(ends[0] - firsts[0])
    if len(firsts) == 1:
        return Strided(int(firsts[0]), (width,), (1,))
    distance = int(firsts[1] - firsts[0])
    regular = bool((ends - firsts == width).all() and (firsts.diff() == distance).all())
    if regular and width >= MIN_BLOCK and not contiguous:
        return Strided(int(firsts[0]), (len(firsts), width), (distance, 1))
    # Rows as wide as possible: every border between in and out is a multiple of their width.
    width = int(np.gcd.reduce(torch.cat([firsts, ends]).numpy()))
    width = width if width >= MIN_BLOCK else 1
    return Indexed(width, positions[::width] // width)


def index_from(parts: State) -> Index:
    """The index that `parts` describes."""
    if "rows" in parts:
        return Indexed(parts["width"], parts["rows"])
    return Strided(parts["start"], parts["size"], parts["stride"])


class Piece:
    """Entries that lie in the same masks and have been stepped together.

    index: where they are. values: their numbers, the tensor that the wrapped optimizer steps and
    keys its state by; None before they are active."""

    def __init__(self, inside: Masks, index: Index, values: Tensor | None = None) -> None:
        self.inside, self.index, self.values = inside, index, values
        self.grad: Tensor | None = None  # kept: fresh memory costs as much as the step


class Pieces:
    """The pieces of one parameter under one wrapped optimizer, whose state is keyed by their
    values.

    Raises ValueError for a parameter with gaps in memory, and where its memory format has changed
    since its pieces were made."""

    def __init__(self, parameter: Tensor, inner: torch.optim.Optimizer) -> None:
        self.parameter, self.inner = parameter, inner
        self.pieces: list[Piece] = []
        self.masks: tuple[Mask, ...] | None = None  # that cut the pieces, newest first
        self.format = format_of(parameter)
        self.contiguous = True  # no views with gaps
        self._found: dict[frozenset[Masks], list[Piece]] = {}
        self._gathered: list[Piece] = []

    def take_over(self, state: State) -> None:
        """Continue with the state of the parameter as a whole, as a stock optimizer has it."""
        if not state:
            return
        memory = memory_of(self.parameter)
        piece = Piece(frozenset(), Strided(0, (len(memory),), (1,)), memory)
        self.pieces.append(piece)
        for key, value in state.items():
            if per_entry(value) or (self.parameter.ndim == 0 and key not in SCALARS):
                value = in_order(value, self.parameter)
            self.inner.state[piece.values][key] = value

    def gather(self, passes: frozenset[Masks], contiguous: bool) -> list[Tensor]:
        """The active pieces as tensors with the parameter's values and gradients. `scatter` is to
        follow. contiguous: they are for a fused kernel."""
        if format_of(self.parameter) != self.format:
            raise ValueError(
                f"a masked parameter of shape {tuple(self.parameter.shape)} has another memory "
                "format than when it was first stepped; convert the module before training"
            )
        if self.parameter.grad.is_sparse:
            raise ValueError(
                "a parameter in pieces has a sparse gradient; make its layer with sparse=False"
            )
        if contiguous != self.contiguous:
            self.contiguous, self.masks, self._found = contiguous, None, {}
        memory = memory_of(self.parameter)
        grad = in_order(self.parameter.grad, self.parameter)
        active = self._active(passes)
        for piece in active:
            values, index = piece.values, piece.index
            like = index.read(memory) if index.is_view or values is None else memory
            if values is None or (
                values.data_ptr() != like.data_ptr()
                if index.is_view
                else (values.dtype, values.device) != (memory.dtype, memory.device)
            ):  # new, or `module.to` has moved the parameter
                self._renew(piece, like if index.is_view else index.read(memory))
            elif not index.is_view:
                index.read(memory, values)
            if grad.dtype != piece.values.dtype:
                piece.values.grad_dtype = grad.dtype
            piece.grad = index.read(grad, piece.grad)
            piece.values.grad = piece.grad
            self._gathered.append(piece)
        return [piece.values for piece in active]

    def scatter(self) -> None:
        """Write back what was copied, and let go of the gradients."""
        while self._gathered:
            piece = self._gathered.pop()
            piece.values.grad = None
            if piece.index.is_view:
                piece.grad = None
            else:
                piece.index.write(memory_of(self.parameter), piece.values)

    def dense_state(self) -> State:
        """The state in the shape of the parameter, scalars as one number an entry; 0 where there is
        none."""
        dense: State = {}
        for piece in self._with_state():
            positions = piece.index.positions().to(self.parameter.device)
            for key, value in self.inner.state[piece.values].items():
                dtype = value.dtype if torch.is_tensor(value) else torch.float64
                if key in dense:
                    dtype = torch.promote_types(dense[key].dtype, dtype)
                room = dense.get(key, torch.zeros_like(local(self.parameter), dtype=dtype))
                dense[key] = room.to(dtype)
                memory_of(dense[key])[positions] = (
                    _flat(value).to(dense[key]) if torch.is_tensor(value) else value
                )
        return dense

    def state_dict(self) -> State:
        """{"pieces": [...]}; or the state of the parameter as a whole, as stock torch has it, if
        that is what it is."""
        stepped = self._with_state()
        if len(stepped) == 1 and len(stepped[0].index.positions()) == local(self.parameter).numel():
            dense = self.dense_state()
            state = self.inner.state[stepped[0].values]
            return {key: dense[key] if per_entry(value) else value for key, value in state.items()}
        pieces = [{**p.index.parts(), "state": self.inner.state[p.values]} for p in stepped]
        shape, order = self.format
        return {"shape": list(shape), "order": list(order), "pieces": pieces} if pieces else {}

    def load(self, state: State) -> Iterator[tuple[Tensor, State]]:
        """Take over what `state_dict` returned: yields each piece's tensor with its state. Raises
        ValueError if these are not pieces of the parameter."""
        shape = tuple(local(self.parameter).shape)
        if "shape" not in state:
            raise ValueError(
                f"the state of a parameter of shape {shape} is of an older mnas; train it anew, or "
                "go on with that version"
            )
        seen = torch.zeros(local(self.parameter).numel(), dtype=torch.bool)
        try:
            saved = tuple(state["shape"]), tuple(state["order"])
            pieces = [(index_from(parts), parts["state"]) for parts in state["pieces"]]
            places = [index.positions() for index, _ in pieces]
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"a piece of an optimizer's state is damaged ({error!r}); restore it"
            ) from error
        if saved[0] != shape:
            raise ValueError(f"the state of a parameter of shape {saved[0]} does not fit {shape}")
        if saved != self.format:
            raise ValueError(
                f"the state of a parameter of shape {shape} is in another memory format; convert "
                "the module first"
            )
        for (index, of_piece), places_of in zip(pieces, places, strict=True):
            lengths = {len(places_of), *(v.numel() for v in of_piece.values() if per_entry(v))}
            inside = len(places_of) and places_of[0] >= 0 and places_of[-1] < len(seen)
            if (
                len(lengths) > 1
                or not inside
                or places_of.diff().le(0).any()
                or seen[places_of].any()
            ):
                raise ValueError(
                    f"a piece of the state of a parameter of shape {shape} is damaged; restore it"
                )
            seen[places_of] = True
            piece = Piece(frozenset(), index, index.read(memory_of(self.parameter)))
            self.pieces.append(piece)
            yield piece.values, of_piece

    def _renew(self, piece: Piece, values: Tensor) -> None:
        state = self.inner.state.pop(piece.values, None) if piece.values is not None else None
        piece.values, piece.grad = values, None
        if state:
            self.inner.state[values] = state

    def _with_state(self) -> list[Piece]:
        state = self.inner.state
        return [
            piece for piece in self.pieces if piece.values is not None and state.get(piece.values)
        ]

    def _active(self, passes: frozenset[Masks]) -> list[Piece]:
        """Those that lie in all masks of a pass."""
        found = self._found.get(passes)
        if found is None:
            needed = frozenset().union(*passes)
            if self.masks is None or not needed <= set(self.masks):
                others = [mask for mask in self.masks or () if mask not in needed]
                self._cut((*needed, *others[:MOST_MASKS]))
                if len(self._with_state()) > MOST_PIECES + len(needed):
                    self._cut(tuple(needed), join=True)
            found = self._found[passes] = [
                piece for piece in self.pieces if any(masks <= piece.inside for masks in passes)
            ]
        return found

    def _cut(self, masks: tuple[Mask, ...], join: bool = False) -> None:
        """Make the pieces anew, each inside or outside every mask. join: those of equal step counts
        become one."""
        state, memory = self.inner.state, memory_of(self.parameter)
        groups: dict[Any, list[Piece]] = {}
        for number, piece in enumerate(self._with_state()):
            groups.setdefault(_scalars(state[piece.values]) if join else number, []).append(piece)
        label = torch.zeros(len(memory), dtype=torch.int64)  # 0: no state, else the group
        dense: dict[tuple[str, torch.dtype], Tensor] = {}  # the state by position
        scalars: list[State] = [{}]
        for number, group in enumerate(groups.values(), 1):
            scalars.append(state[group[0].values])
            for piece in group:
                positions = piece.index.positions()
                label[positions] = number
                for key, value in state.pop(piece.values).items():
                    if per_entry(value):
                        room = dense.setdefault((key, value.dtype), value.new_zeros(len(memory)))
                        room[positions.to(value.device)] = _flat(value)
        inside: list[tuple[int, Masks]] = [(number, frozenset()) for number in range(len(scalars))]
        for mask in masks:
            allowed = in_order(mask.of(self.parameter), self.parameter).nonzero().squeeze(1).cpu()
            found, which = label[allowed].unique(return_inverse=True)
            label[allowed] = len(inside) + which
            inside += [(inside[n][0], inside[n][1] | {mask}) for n in found.tolist()]
        self.masks, self._found, self.pieces = masks, {}, []
        order = label.argsort(stable=True)
        numbers, counts = label[order].unique_consecutive(return_counts=True)
        for n, positions in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
            group, of_masks = inside[n]
            index = index_of(positions, self.contiguous)
            piece = Piece(of_masks, index, index.read(memory) if group else None)
            self.pieces.append(piece)
            if group:
                state[piece.values] = {
                    key: index.read(dense[key, value.dtype]).clone()
                    if per_entry(value)
                    else copy.deepcopy(value)
                    for key, value in scalars[group].items()
                }


def format_of(parameter: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape, and the dimensions in the order of memory."""
    tensor = local(parameter)
    long = [d for d in range(tensor.ndim) if tensor.shape[d] > 1]
    return tuple(tensor.shape), tuple(sorted(long, key=lambda d: (-tensor.stride(d), d)))


def local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this process has; any other tensor itself."""
    return tensor.to_local() if is_distributed(tensor) else tensor


def memory_of(tensor: Tensor) -> Tensor:
    """The entries in the order of memory, a view (n,)."""
    tensor = local(tensor.detach())
    size = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    if size != tensor.numel() and tensor.numel():
        raise ValueError(
            f"a masked parameter of shape {tuple(tensor.shape)} has strides {tensor.stride()}, "
            "which leave gaps in memory; make it contiguous"
        )
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def in_order(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of the parameter's shape as (n,), in the order of the parameter's memory."""
    tensor, like = local(tensor), local(parameter)
    if tensor.stride() != like.stride():
        tensor = torch.empty_like(like, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    return memory_of(tensor)


def per_entry(value: Any) -> bool:
    """Whether a value of an optimizer's state holds a number an entry; the others are scalars such
    as step counts."""
    return torch.is_tensor(value) and value.ndim > 0


def _flat(value: Any) -> Any:
    return value.reshape(-1) if per_entry(value) else value


def _scalars(state: State) -> frozenset[Any]:
    return frozenset(
        (k, v.dtype if per_entry(v) else v.item() if torch.is_tensor(v) else v)
        for k, v in state.items()
    )
