"""Data sets as normalised tensors in memory.

MNIST (LeCun, Cortes and Burges) is part of the package; torchvision downloads others; images of
one's own are read from a folder. What is not known by the digest of its content is marked as
unverified."""

from __future__ import annotations

from pathlib import Path

from mnas.training.data import cifar, digits, folder
from mnas.training.data.augment import AUGMENT, cropped_and_flipped, shifted
from mnas.training.data.digits import MNIST_FILES, PUBLISHED, TORCHVISION, read_idx_xz
from mnas.training.data.idx import read_idx
from mnas.training.data.split import VALIDATION_IMAGES, Data, DataError, Split

__all__ = [
    "AUGMENT",
    "DATASETS",
    "MNIST_FILES",
    "PUBLISHED",
    "TORCHVISION",
    "VALIDATION_IMAGES",
    "Data",
    "DataError",
    "Split",
    "cropped_and_flipped",
    "load",
    "read_idx",
    "read_idx_xz",
    "shifted",
]

DATASETS = ("mnist", *TORCHVISION, "cifar10", "folder")


def load(dataset: str, root: str | Path = "data", resolution: int | None = None) -> Data:
    """A tenth of the training images, 5,000 at most, is for validation, at equal distances: of
    MNIST's 60,000 every twelfth. Images of CIFAR-10 and of folders are sorted by class before, so
    that it has as many of each, and mixed afterwards, so that the first ones are of all classes.

    root: where the files of data sets other than MNIST are, or are put by torchvision; ~ is the
    home directory. For "folder", images in root/{train,test}/CLASS/ (`folder.read`). resolution:
    pixels a side that all images are resized to; None leaves them. Raises DataError for what is
    unknown, missing, damaged or not what a data set can be; the message names the file."""
    root = Path(root).expanduser()
    if dataset == "folder":
        return folder.read(root, resolution).divided()
    if dataset not in DATASETS:
        raise DataError(f"dataset {dataset!r} is unknown; expected one of {', '.join(DATASETS)}")
    pixels = cifar.read(root) if dataset == "cifar10" else digits.read(dataset, root)
    return (pixels if resolution is None else pixels.at(resolution)).divided()
