"""Data sets of 28x28 pictures in ten classes, as normalised tensors in memory.

MNIST (LeCun, Cortes and Burges) is part of the package; the others come through torchvision.
"""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

VALIDATION_IMAGES = 5_000

MNIST_FILES = {
    "train-images-idx3-ubyte.xz": "8f41e9b4abc124dc3d209e86f7ea714a81f80edea40b565a4781dec7bd67c6e2",
    "train-labels-idx1-ubyte.xz": "dcd3d8184fe1a8be6231f172fb3390116f91c127282fd736ab55752c179963d8",
    "t10k-images-idx3-ubyte.xz": "d815adbb3188b5bafed15d649960a5dbcb0f9138b9a4205b88b175001cb394c9",
    "t10k-labels-idx1-ubyte.xz": "f2edae9ce0307abae4671a37b70e6e3858696b48b16c3cfdfef97388dc9925d5",
}


class DataError(ValueError):
    """The data are missing, damaged or unknown; the message says what to do."""


@dataclass(frozen=True)
class Split:
    """images (N, 1, 28, 28) float32, normalised; labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int | None) -> Split:
        """The first n pictures; all for None."""
        return Split(self.images[:n], self.labels[:n])


@dataclass(frozen=True)
class Data:
    """Curves and every selection are made on validation; test is read once, at the end."""

    train: Split
    validation: Split
    test: Split


def load(dataset: str, root: str | Path = "data") -> Data:
    """Every twelfth of MNIST's 60,000 training pictures is for validation (5,000), the others for training.

    root: where torchvision looks for data sets other than MNIST, and puts them. Raises DataError.
    """
    if dataset == "mnist":
        arrays = [read_idx_xz(name) for name in MNIST_FILES]
    elif dataset in TORCHVISION:
        arrays = _torchvision(dataset, Path(root))
    else:
        raise DataError(f"dataset {dataset!r} is unknown; expected one of {', '.join(DATASETS)}")
    train_images, train_labels, test_images, test_labels = arrays
    normalise = _normaliser(train_images)
    stride = max(2, len(train_labels) // VALIDATION_IMAGES)
    position = np.arange(len(train_labels))
    held_out = (position % stride == stride - 1) & (position < stride * VALIDATION_IMAGES)
    return Data(
        train=_split(train_images[~held_out], train_labels[~held_out], normalise),
        validation=_split(train_images[held_out], train_labels[held_out], normalise),
        test=_split(test_images, test_labels, normalise),
    )


def shifted(images: Tensor, most: int = 2) -> Tensor:
    """Pictures (N, C, H, W), each moved by up to so many pixels in both directions; torch's generator decides how far.
    What comes in from outside is as the border."""
    number, _, height, width = images.shape
    windows = F.pad(images, [most] * 4, mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * most + 1, (2, number))
    return torch.empty_like(images).copy_(windows[torch.arange(number), :, down, right])


def read_idx_xz(name: str, folder: Path | None = None) -> np.ndarray:
    """One of MNIST's four files as uint8 (N, 28, 28) or (N,). Raises DataError unless its SHA-256 is right."""
    file = (folder or resources.files("mnas") / "mnist") / name
    try:
        packed = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file} ({error.strerror}); install mnas again") from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != MNIST_FILES[name]:
        raise DataError(f"{file} is damaged: SHA-256 {digest[:12]}, expected {MNIST_FILES[name][:12]}; restore it")
    # IDX: two zero bytes, the type (8 = uint8), the number of dimensions, then each as a big-endian 32-bit integer.
    raw = lzma.decompress(packed)
    ndim = raw[3]
    shape = np.frombuffer(raw, ">u4", count=ndim, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _normaliser(images: np.ndarray) -> np.ndarray:
    """The 256 grey values brought to mean 0 and standard deviation 1 over the images: a table (256,) float32.

    Counting the values makes both moments exact and independent of threads. MNIST: mean 0.1307, deviation 0.3081.
    """
    counts = sum(np.bincount(image.reshape(-1), minlength=256) for image in np.array_split(images, 100))
    share, grey = counts / images.size, np.arange(256) / 255
    mean = share @ grey
    return ((grey - mean) / np.sqrt(share @ (grey - mean) ** 2)).astype(np.float32)


def _split(images: np.ndarray, labels: np.ndarray, normalise: np.ndarray) -> Split:
    pixels = rearrange(normalise[images], "n h w -> n 1 h w")
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def _torchvision(dataset: str, root: Path) -> list[np.ndarray]:
    from torchvision import datasets  # imported here, because MNIST does not need it and it is slow to import

    name, options, prefix, labels = TORCHVISION[dataset]
    arrays: list[np.ndarray] = []
    for train in (True, False):
        try:
            try:
                part = getattr(datasets, name)(root, train=train, download=False, **options)
            except RuntimeError:  # torchvision's word for "not there"
                part = getattr(datasets, name)(root, train=train, download=True, **options)
        except Exception as error:  # whatever the network, an archive or a truncated file raises
            test = "t10k" if not prefix else "test"
            files = [f"{prefix}{p}-{kind}" for p in ("train", test) for kind in ("images-idx3-ubyte", labels)]
            reason = " ".join(str(error).split())[:80]
            raise DataError(
                f"cannot load {dataset} from {root} ({type(error).__name__}: {reason}); where nothing can be "
                f"downloaded, put {', '.join(files)} into {root / name / 'raw'}/"
            ) from error
        targets = part.targets[:, 0] if part.targets.ndim == 2 else part.targets  # QMNIST keeps the writer too
        if len(part.data) != len(targets) or part.data.shape[1:] != (28, 28) or not len(targets):
            raise DataError(f"{dataset} in {root} has {len(part.data)} pictures and {len(targets)} labels; restore it")
        arrays += [part.data.numpy(), targets.numpy()]
    return arrays


# name here: class in torchvision, its options, and how its files are called
TORCHVISION = {
    "fashion-mnist": ("FashionMNIST", {}, "", "labels-idx1-ubyte"),
    "kmnist": ("KMNIST", {}, "", "labels-idx1-ubyte"),
    "qmnist": ("QMNIST", {}, "qmnist-", "labels-idx2-int"),
    "emnist-digits": ("EMNIST", {"split": "digits"}, "emnist-digits-", "labels-idx1-ubyte"),
}
DATASETS = ("mnist", *TORCHVISION)
