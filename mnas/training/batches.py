"""Where the batches of a training come from: images in memory, or a loader of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mnas.training.data import AUGMENT, Split
from mnas.training.recipe import Recipe


@runtime_checkable
class Batches(Protocol):
    """A `torch.utils.data.DataLoader`, or anything else that can be passed over again and again: a
    pass gives `len` pairs of images (B, C, H, W) and labels (B, ...), as the loss takes them."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


class InMemory:
    """The images of a split, in another order in each epoch; what is left of a batch is left out.
    They are augmented as the recipe says."""

    def __init__(self, split: Split, recipe: Recipe, seed: int) -> None:
        self.split, self.augment = split, AUGMENT[recipe.augment]
        self.batch_size = min(recipe.batch_size, len(split))
        self.number = len(split) // self.batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self._begun = self.generator.get_state()
        self.order = torch.empty(0, dtype=torch.int64)

    def batch(self, position: int) -> tuple[Tensor, Tensor]:
        """The images (B, C, H, W) and labels (B,) at a position of an epoch, which begins at 0."""
        if position == 0:
            self._begin()
        own = self.order[position * self.batch_size : (position + 1) * self.batch_size]
        return self.augment(self.split.images[own]), self.split.labels[own]

    def _begin(self) -> None:
        self._begun = self.generator.get_state()
        self.order = torch.randperm(len(self.split), generator=self.generator)

    def state_dict(self, position: int) -> dict[str, Any]:
        """Before the batch at that position; at 0 between two epochs."""
        begun = self._begun if position else self.generator.get_state()
        return {"epoch_start": begun, "images": len(self.split), "batch_size": self.batch_size}

    def load_state_dict(self, state: Mapping[str, Any], position: int) -> None:
        self._begun = state["epoch_start"]
        self.generator.set_state(self._begun)
        if position:
            self._begin()

    def first(self, number: int) -> Tensor:
        """So many images (N, C, H, W), not augmented."""
        return self.split.images[:number]


class Loaded:
    """The batches of a loader, on a device; a pass is an epoch.

    A state holds what the pass under way began with: torch's generator, and those of the loader and
    its sampler, if these have their own. A pass that goes on goes through what has been, and skips
    it."""

    def __init__(self, loader: Batches, device: torch.device) -> None:
        self.loader, self.device, self.number = loader, device, _length(loader)
        own = [getattr(of, "generator", None) for of in (loader, getattr(loader, "sampler", None))]
        self._generators = {
            id(one): one for one in own if isinstance(one, torch.Generator)
        }.values()
        self._pass: Iterator[Any] | None = None
        self._passed = 0  # batches of it
        self._last: Any = None
        self._begun = self._now()

    def batch(self, position: int) -> tuple[Tensor, Tensor]:
        """The images (B, C, H, W) and labels (B, ...) at a position of an epoch, which begins at 0.
        Raises ValueError for what is no such pair."""
        if position == 0:
            self._begin()
        images, labels = _pair(self._up_to(position))
        return images.to(self.device), labels.to(self.device)

    def _begin(self) -> None:
        self._end()
        self._begun, self._pass, self._passed = self._now(), iter(self.loader), 0

    def _up_to(self, position: int) -> Any:
        while self._passed <= position:
            try:
                self._last = next(self._pass)
            except StopIteration:
                raise ValueError(
                    f"the training batches have ended after {self._passed} of {self.number}; "
                    "expected as many as their len()"
                ) from None
            self._passed += 1
        return self._last

    def _end(self) -> None:
        """As a for loop does after the last batch, where samplers draw a last time."""
        if self._pass is not None:
            next(self._pass, None)
            self._pass = None

    def _now(self) -> dict[str, Any]:
        return {
            "random": torch.get_rng_state(),
            "generators": [one.get_state() for one in self._generators],
        }

    def _set(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["random"])
        for one, its in zip(self._generators, state["generators"], strict=True):
            one.set_state(its)

    def state_dict(self, position: int) -> dict[str, Any]:
        """Before the batch at that position; at 0 between two epochs."""
        if position == 0:
            self._end()
        return {"epoch_start": self._begun if position else self._now(), "batches": self.number}

    def load_state_dict(self, state: Mapping[str, Any], position: int) -> None:
        """torch's generator is somewhere else afterwards."""
        self._set(state["epoch_start"])
        self._pass = None
        if position:
            self._begin()
            self._up_to(position - 1)

    def first(self, number: int) -> Tensor:
        """So many images (N, C, H, W), as the loader gives them; before any batch."""
        found: list[Tensor] = []
        for pair in self.loader:
            found.append(_pair(pair)[0])
            if sum(map(len, found)) >= number:
                break
        self._set(self._begun)
        return torch.cat(found)[:number].to(self.device)


def batches_of(
    train: Split | Batches, recipe: Recipe, seed: int, device: torch.device
) -> InMemory | Loaded:
    """seed: of the order of a split. device: where the network is.

    Raises ValueError for what gives no batches, and for what is to be done by the loader."""
    if isinstance(train, Split):
        return InMemory(train, recipe, seed)
    if recipe.augment != "none":
        raise ValueError(
            f"augment={recipe.augment!r} is for a mnas.data.Split; augment in the data set of the "
            f"{type(train).__name__}"
        )
    return Loaded(train, device)


def _length(loader: Batches) -> int:
    try:
        number = len(loader)
    except TypeError as error:  # a loader of a stream
        raise ValueError(
            f"the training batches, a {type(loader).__name__}, have no length; expected a data set "
            "with __len__, by which epochs are counted"
        ) from error
    if not number:
        raise ValueError("the training batches are none; expected one at least")
    return number


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if (
        not isinstance(batch, (tuple, list))
        or len(batch) != 2
        or not all(isinstance(part, Tensor) for part in batch)
        or len(batch[0]) != len(batch[1])
    ):
        what = [type(p).__name__ for p in batch] if isinstance(batch, (tuple, list)) else ""
        raise ValueError(
            f"a training batch is a {type(batch).__name__}{f' of {what}' if what else ''}; "
            "expected a pair of tensors of one length, images and labels"
        )
    return batch[0], batch[1]
