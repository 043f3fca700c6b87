"""Images and labels in memory, and how they are divided and normalised."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

VALIDATION_IMAGES = 5_000


class DataError(ValueError):
    """The data are missing, damaged or unknown; the message says what to do."""


@dataclass(frozen=True)
class Split:
    """images (N, C, H, W) float32, normalised; labels (N,) int64. Raises ValueError where they do
    not fit together."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"{name} of a split are a {type(value).__name__}; expected a torch.Tensor"
                )
        images, labels = tuple(self.images.shape), tuple(self.labels.shape)
        if len(images) != 4 or len(labels) != 1 or images[0] != labels[0]:
            raise ValueError(
                f"a split has images of {images} and labels of {labels}; expected (N, C, H, W) "
                "and (N,)"
            )
        if not self.images.is_floating_point() or self.labels.dtype != torch.int64:
            raise ValueError(
                f"a split has images of {self.images.dtype} and labels of {self.labels.dtype}; "
                "expected floating numbers and torch.int64"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int | None) -> Split:
        """The first n images; all for None."""
        if n is not None and n < 1:
            raise ValueError(
                f"the first {n} images of a split are none; expected 1 at least, or None for all"
            )
        return Split(self.images[:n], self.labels[:n])

    def to(self, device: str | torch.device) -> Split:
        """On that device; a trainer puts its network where its training images are."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """Curves and every selection are made on validation; test is read once, at the end.

    verified: whether the content is known to be that of the published data set. sha256: of what was
    read, so that a run can tell whether it goes on with the same data."""

    train: Split
    validation: Split
    test: Split
    verified: bool = False
    sha256: str = ""

    @property
    def found(self) -> dict[str, bool | str]:
        """What a run writes down of its data."""
        return {"verified": self.verified, "sha256": self.sha256}


@dataclass(frozen=True)
class Pixels:
    """A data set as it was read. Images (N, H, W, C) uint8, labels (N,) of any integers.

    by_class: whether the images of a class lie one behind the other, as in folders."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    verified: bool
    sha256: str
    by_class: bool = False

    def divided(self) -> Data:
        """Some of the training images become the validation split; all are normalised."""
        held_out = spread(len(self.train_labels))
        tables = normalisers(self.train_images)
        parts = {
            "train": (self.train_images[~held_out], self.train_labels[~held_out]),
            "validation": (self.train_images[held_out], self.train_labels[held_out]),
            "test": (self.test_images, self.test_labels),
        }
        if self.by_class:
            orders = {name: mixed(labels) for name, (_, labels) in parts.items()}
            parts = {
                n: (images[orders[n]], labels[orders[n]]) for n, (images, labels) in parts.items()
            }
        splits = {name: _split(*part, tables) for name, part in parts.items()}
        return Data(**splits, verified=self.verified, sha256=self.sha256)

    def at(self, side: int) -> Pixels:
        """The same images with so many pixels a side."""
        changed = {n: resized(getattr(self, n), side) for n in ("train_images", "test_images")}
        return replace(self, **changed)


def spread(number: int) -> np.ndarray:
    """Which of so many training images are for validation: a tenth and 5,000 at most, one at least,
    at equal distances. Where a class lies behind the other, that is as much of each class."""
    wanted = min(VALIDATION_IMAGES, max(1, number // 10))
    held_out = np.zeros(number, bool)
    held_out[(np.arange(wanted) + 1) * number // wanted - 1] = True
    return held_out


def mixed(labels: np.ndarray) -> np.ndarray:
    """The order in which the first images of a split, however many, are of all classes in their
    shares; images of a class stay in their order."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    return np.argsort(place, kind="stable")


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Images (N, H, W, C) uint8 of side x side pixels, each the mean of the area that it covers
    (a box filter, one of those of Chrabaszcz et al., 2017, "A Downsampled Variant of ImageNet");
    what is not square is stretched."""
    if images.shape[1:3] == (side, side):
        return images
    small = np.empty((len(images), side, side, images.shape[3]), np.uint8)
    for start in range(0, len(images), 1_000):
        some = torch.tensor(images[start : start + 1_000]).permute(0, 3, 1, 2).float()
        some = F.interpolate(some, (side, side), mode="area").round().to(torch.uint8)
        small[start : start + 1_000] = some.permute(0, 2, 3, 1).numpy()
    return small


def normalisers(images: np.ndarray) -> np.ndarray:
    """The 256 values of each channel brought to mean 0 and standard deviation 1 over the images
    (N, H, W, C): a table (C, 256) float32.

    Counting the values makes both moments exact and independent of threads. MNIST: mean 0.1307,
    deviation 0.3081."""
    grey, tables = np.arange(256) / 255, []
    for channel in range(images.shape[3]):
        pieces = np.array_split(images[..., channel], 100)
        counts = sum(np.bincount(piece.reshape(-1), minlength=256) for piece in pieces)
        share = counts / counts.sum()
        mean = share @ grey
        deviation = np.sqrt(share @ (grey - mean) ** 2)
        tables.append((grey - mean) / (deviation or 1.0))  # of one value alone: to 0
    return np.stack(tables).astype(np.float32)


def _split(images: np.ndarray, labels: np.ndarray, tables: np.ndarray) -> Split:
    pixels = np.empty(images.shape, np.float32)  # in memory as channels_last has it
    for channel, table in enumerate(tables):
        pixels[..., channel] = table[images[..., channel]]
    return Split(
        torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))
    )
