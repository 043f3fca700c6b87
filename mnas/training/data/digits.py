"""MNIST, and the data sets of torchvision that have its form: 28x28 pixels, ten classes.

What is not known by the digest of its content is examined before it is used."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnas.training.data.download import download
from mnas.training.data.idx import PACKED, read_idx
from mnas.training.data.split import DataError, Pixels

CLASSES = 10
SIDE = 28  # pixels

MNIST_FILES = {
    "train-images-idx3-ubyte.xz": "8f41e9b4abc124dc3d209e86f7ea714a81f80edea40b565a4781dec7bd67c6e2",  # noqa: E501
    "train-labels-idx1-ubyte.xz": "dcd3d8184fe1a8be6231f172fb3390116f91c127282fd736ab55752c179963d8",  # noqa: E501
    "t10k-images-idx3-ubyte.xz": "d815adbb3188b5bafed15d649960a5dbcb0f9138b9a4205b88b175001cb394c9",
    "t10k-labels-idx1-ubyte.xz": "f2edae9ce0307abae4671a37b70e6e3858696b48b16c3cfdfef97388dc9925d5",
}


class Part(NamedTuple):
    """One file of a data set. array: (N, 28, 28) or (N,) uint8. sha256: of its content,
    unpacked."""

    file: Path
    array: np.ndarray
    sha256: str


def read(dataset: str, root: Path) -> Pixels:
    """MNIST, or one of `TORCHVISION` from below root. Raises DataError."""
    if dataset == "mnist":
        arrays, verified = [read_idx_xz(name) for name in MNIST_FILES], True
        digests = list(MNIST_FILES.values())
    else:
        parts = _parts(dataset, root)
        verified = _is_published(dataset, parts)
        if not verified:
            _examine(*parts)
        arrays, digests = [part.array for part in parts], [part.sha256 for part in parts]
    train_images, train_labels, test_images, test_labels = arrays
    return Pixels(
        train_images[..., None],
        train_labels,
        test_images[..., None],
        test_labels,
        verified,
        hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def read_idx_xz(name: str, folder: Path | None = None) -> np.ndarray:
    """One of MNIST's four files as uint8 (N, 28, 28) or (N,). Raises DataError unless its SHA-256
    is right."""
    file = (folder or resources.files("mnas.training") / "mnist") / name
    try:
        packed = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file} ({error.strerror}); install mnas again") from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != MNIST_FILES[name]:
        raise DataError(
            f"{file} is damaged: SHA-256 {digest[:12]}, expected {MNIST_FILES[name][:12]}; "
            "restore it"
        )
    return read_idx(Path(str(file)))[0]


def _parts(dataset: str, root: Path) -> list[Part]:
    """Images and labels for training, and for the test."""
    kind, options, prefix, labels = TORCHVISION[dataset]
    folder = root / kind / "raw"
    test = "test" if prefix else "t10k"
    names = [
        f"{prefix}{p}-{what}" for p in ("train", test) for what in ("images-idx3-ubyte", labels)
    ]
    if not all(_find(folder, name) for name in names):
        download(kind, options, root, f"put {', '.join(names)} into {folder}/")
    parts = []
    for number, name in enumerate(names):
        file = _find(folder, name)
        if file is None:
            raise DataError(
                f"torchvision has not brought {name}; put {', '.join(names)} into {folder}/"
            )
        array, digest = read_idx(file)
        if number % 2 and array.ndim == 2:
            array = array[:, 0]  # QMNIST keeps the writer and more beside the label
        expected = f"(N, {SIDE}, {SIDE})" if number % 2 == 0 else "(N,)"
        if (
            array.ndim != (1 if number % 2 else 3)
            or array.shape[1:] != (SIDE, SIDE)[: array.ndim - 1]
        ):
            raise DataError(f"{file} has the shape {array.shape}, expected {expected}; restore it")
        parts.append(Part(file, array, digest))
    return parts


def _find(folder: Path, name: str) -> Path | None:
    """The file, as it is or packed."""
    candidates = (folder / f"{name}{suffix}" for suffix in ("", *PACKED))
    return next((file for file in candidates if file.exists()), None)


def _is_published(dataset: str, parts: list[Part]) -> bool:
    """Whether the content is known to be the published one. Raises DataError where it only claims
    to be, by its number of images."""
    known = PUBLISHED.get(dataset)
    if known is None or [len(part.array) for part in parts[::2]] != [60_000, 10_000]:
        return False
    for part, digest in zip(parts, known, strict=True):
        if part.sha256 != digest:
            raise DataError(
                f"{part.file} is not that of {dataset}: SHA-256 of its content {part.sha256[:12]}, "
                f"expected {digest[:12]}; restore it"
            )
    return True


def _examine(train_images: Part, train_labels: Part, test_images: Part, test_labels: Part) -> None:
    """Raise DataError for what no data set can be."""
    for images, labels, least in ((train_images, train_labels, 3), (test_images, test_labels, 1)):
        number = len(images.array)
        if number != len(labels.array):
            raise DataError(
                f"{images.file} has {number} images, {labels.file.name} {len(labels.array)} "
                "labels; restore them"
            )
        if number < least:
            raise DataError(
                f"{images.file} has {number} images, expected {least} at least; add some"
            )
        wrong = labels.array[(labels.array < 0) | (labels.array >= CLASSES)]
        if len(wrong):
            raise DataError(
                f"{labels.file} has the label {wrong[0]}, expected 0 to {CLASSES - 1}; restore it"
            )
        flat = images.array.reshape(number, -1)
        blank = int((flat.min(1) == flat.max(1)).sum())
        if 2 * blank > number:
            raise DataError(f"{images.file}: {blank} of {number} images are blank; restore it")
    if len(train_labels.array) > CLASSES and len(set(train_labels.array.tolist())) == 1:
        raise DataError(
            f"{train_labels.file} has no other label than {train_labels.array[0]}; restore it"
        )
    seen = {image.tobytes() for image in train_images.array}
    known = sum(image.tobytes() in seen for image in test_images.array)
    if 2 * known > len(test_images.array):
        raise DataError(
            f"{known} of the {len(test_images.array)} images of {test_images.file} are in "
            f"{train_images.file.name}, so they test nothing; restore it"
        )


# name here: class in torchvision, its options, and how its files are called
TORCHVISION = {
    "fashion-mnist": ("FashionMNIST", {}, "", "labels-idx1-ubyte"),
    "kmnist": ("KMNIST", {}, "", "labels-idx1-ubyte"),
    "qmnist": ("QMNIST", {}, "qmnist-", "labels-idx2-int"),
    "emnist-digits": ("EMNIST", {"split": "digits"}, "emnist-digits-", "labels-idx1-ubyte"),
}
# SHA-256 of the unpacked files: training images and labels, test images and labels
PUBLISHED = {
    "fashion-mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
