"""Data sets of 28x28 images in ten classes, as normalised tensors in memory.

MNIST (LeCun, Cortes and Burges) is part of the package; torchvision downloads the others. What is
not known by the digest of its content is examined before it is used, and marked as unverified."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mnas.storage import files

VALIDATION_IMAGES = 5_000
CLASSES = 10
SIDE = 28  # pixels
LARGEST = 1 << 31  # bytes of one unpacked file

MNIST_FILES = {
    "train-images-idx3-ubyte.xz": "8f41e9b4abc124dc3d209e86f7ea714a81f80edea40b565a4781dec7bd67c6e2",  # noqa: E501
    "train-labels-idx1-ubyte.xz": "dcd3d8184fe1a8be6231f172fb3390116f91c127282fd736ab55752c179963d8",  # noqa: E501
    "t10k-images-idx3-ubyte.xz": "d815adbb3188b5bafed15d649960a5dbcb0f9138b9a4205b88b175001cb394c9",
    "t10k-labels-idx1-ubyte.xz": "f2edae9ce0307abae4671a37b70e6e3858696b48b16c3cfdfef97388dc9925d5",
}


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


class Part(NamedTuple):
    """One file of a data set. array: (N, 28, 28) or (N,) uint8. sha256: of its content,
    unpacked."""

    file: Path
    array: np.ndarray
    sha256: str


def load(dataset: str, root: str | Path = "data") -> Data:
    """Every twelfth of MNIST's 60,000 training images is for validation (5,000), the others for
    training.

    root: where the files of data sets other than MNIST are, or are put by torchvision; ~ is the
    home directory. Raises DataError for what is unknown, missing, damaged or not what a data set
    can be; the message names the file."""
    if dataset == "mnist":
        arrays, verified = [read_idx_xz(name) for name in MNIST_FILES], True
        digests = list(MNIST_FILES.values())
    elif dataset in TORCHVISION:
        parts = _parts(dataset, Path(root).expanduser())
        verified = _is_published(dataset, parts)
        if not verified:
            _examine(*parts)
        arrays, digests = [part.array for part in parts], [part.sha256 for part in parts]
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
        verified=verified,
        sha256=hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def shifted(images: Tensor, most: int = 2) -> Tensor:
    """Images (N, C, H, W), each moved by up to so many pixels in both directions; torch's generator
    decides how far. What comes in from outside is as the border."""
    number, _, height, width = images.shape
    windows = F.pad(images, [most] * 4, mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * most + 1, (2, number))
    return torch.empty_like(images).copy_(windows[torch.arange(number), :, down, right])


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


def read_idx(file: Path) -> tuple[np.ndarray, str]:
    """An IDX file, perhaps packed (.gz, .xz, .bz2), as an array of uint8 or int32, and the SHA-256
    of its content.

    Raises DataError that says what is wrong with it. Nothing is read beyond the length that its
    header gives."""
    try:
        with (
            files.open_regular(file) as packed,
            PACKED.get(file.suffix, contextlib.nullcontext)(packed) as stream,
        ):
            return _parse_idx(stream, file)
    except files.FolderError as error:
        raise DataError(str(error)) from error
    except OSError as error:  # gzip and bz2 raise it, too
        raise DataError(f"cannot read {file} ({error.strerror or error}); restore it") from error
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"cannot unpack {file} ({error}); restore it") from error


def _parse_idx(stream: BinaryIO, file: Path) -> tuple[np.ndarray, str]:
    # IDX: two zero bytes, the type (8 = uint8, 12 = int32), the number of dimensions, then each as
    # a big-endian 32-bit integer.
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not 1 <= head[3] <= 3:
        raise DataError(
            f"{file} is no IDX file of images or labels: it begins with {head!r}; restore it"
        )
    kind, ndim = IDX_TYPES[head[2]], head[3]
    sizes = stream.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise DataError(f"{file} ends within its header; restore it")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
    length = int(np.prod([*shape, kind.itemsize], dtype=object))
    if length > LARGEST:
        raise DataError(
            f"{file} claims to hold {length:,} bytes, expected {LARGEST:,} at most; restore it"
        )
    body = stream.read(length + 1)
    if len(body) != length:
        held = f"{len(body):,}" if len(body) < length else "more"
        raise DataError(
            f"{file} holds {held} bytes of data, its header says {length:,}; restore it"
        )
    return np.frombuffer(body, kind).reshape(shape), hashlib.sha256(head + sizes + body).hexdigest()


IDX_TYPES = {8: np.dtype(np.uint8), 12: np.dtype(">i4")}
PACKED: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
}


def _normaliser(images: np.ndarray) -> np.ndarray:
    """The 256 grey values brought to mean 0 and standard deviation 1 over the images: a table
    (256,) float32.

    Counting the values makes both moments exact and independent of threads. MNIST: mean 0.1307,
    deviation 0.3081."""
    counts = sum(
        np.bincount(image.reshape(-1), minlength=256) for image in np.array_split(images, 100)
    )
    share, grey = counts / images.size, np.arange(256) / 255
    mean = share @ grey
    return ((grey - mean) / np.sqrt(share @ (grey - mean) ** 2)).astype(np.float32)


def _split(images: np.ndarray, labels: np.ndarray, normalise: np.ndarray) -> Split:
    pixels = rearrange(normalise[images], "n h w -> n 1 h w")
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def _parts(dataset: str, root: Path) -> list[Part]:
    """Images and labels for training, and for the test."""
    kind, options, prefix, labels = TORCHVISION[dataset]
    folder = root / kind / "raw"
    test = "test" if prefix else "t10k"
    names = [
        f"{prefix}{p}-{what}" for p in ("train", test) for what in ("images-idx3-ubyte", labels)
    ]
    if not all(_find(folder, name) for name in names):
        _download(kind, options, root, f"put {', '.join(names)} into {folder}/")
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


def _download(kind: str, options: Mapping[str, str], root: Path, otherwise: str) -> None:
    try:
        from torchvision import datasets  # slow to import, and MNIST does not need it
    except ModuleNotFoundError as error:
        raise DataError(
            f"{error.name} is not installed, which downloads {kind}; pip install 'mnas[data]', or "
            f"{otherwise}"
        ) from error
    try:
        for train in (True, False):
            getattr(datasets, kind)(root, train=train, download=True, **options)
    except Exception as error:  # whatever the network, an archive or a truncated file raises
        reason = " ".join(str(error).split())[:80]
        raise DataError(
            f"cannot download {kind} to {root} ({type(error).__name__}: {reason}); where nothing "
            f"can be downloaded, {otherwise}"
        ) from error


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
DATASETS = ("mnist", *TORCHVISION)
# SHA-256 of the unpacked files: training images and labels, test images and labels
PUBLISHED = {
    "fashion-mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
