"""Images in folders, one for each class: decoded once, and kept in a file that is compared with its
digest."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from mnas.storage.files import Folder
from mnas.storage.strict_json import FolderError
from mnas.training.data.split import DataError, Pixels, resized

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
CACHE = ".mnas-cache"  # beside train/ and test/
FORMAT = "mnas-images-1"  # of what is kept; another number for another way of decoding
GREY = ("1", "L", "LA")  # modes of Pillow
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class Listed(NamedTuple):
    """files: sorted by class and name. labels: the numbers of their classes. line: of each file
    what it is known by."""

    files: list[Path]
    labels: list[int]
    lines: list[str]


def read(root: Path, side: int | None = None) -> Pixels:
    """Images of root/{train,test}/CLASS/, in the layout of torchvision's ImageFolder: classes are
    numbered in the order of their names. 8 bits a channel; if one is in colour, all have 3
    channels.

    side: pixels that all are resized to; None where all have one size. The decoded images are kept
    in root/.mnas-cache, unless that cannot be written, and used for as long as no file has another
    name, size or time. Raises DataError that names what is wrong."""
    listed = {part: _listed(root / part) for part in ("train", "test")}
    classes = {part: names for part, (names, _) in listed.items()}
    if classes["train"] != classes["test"]:
        other = sorted(set(classes["train"]) ^ set(classes["test"]))[0]
        where, lacks = ("train", "test") if other in classes["train"] else ("test", "train")
        raise DataError(
            f"{root} has the class {other!r} in {where}/ and not in {lacks}/; expected the same "
            "classes in both"
        )
    key = hashlib.sha256(
        os.fsencode("\n".join(line for _, part in listed.values() for line in part.lines))
    ).hexdigest()
    kept = _Kept(root / CACHE, f"{side or 'original'}.npz", key)
    arrays = kept.read()
    if arrays is None:
        files = [file for _, part in listed.values() for file in part.files]
        images, number = _decoded(files, side), len(listed["train"][1].files)
        labels = [np.array(part.labels) for _, part in listed.values()]
        arrays = [images[:number], labels[0], images[number:], labels[1]]
        kept.write(arrays)
    digest = hashlib.sha256(os.fsencode("\n".join(classes["train"])))
    for array in arrays:
        digest.update(str(array.shape).encode() + array.tobytes())
    return Pixels(*arrays, verified=False, sha256=digest.hexdigest(), by_class=True)


def _listed(part: Path) -> tuple[list[str], Listed]:
    """The names of the classes, and what is in them."""
    try:
        names = sorted(e.name for e in os.scandir(part) if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        raise DataError(
            f"cannot read {part} ({error.strerror}); expected {part.parent}/train/CLASS/ and "
            f"{part.parent}/test/CLASS/ with images: give --data-root another"
        ) from error
    if not names:
        raise DataError(f"{part} has no classes; expected a folder of images for each")
    found = Listed([], [], [])
    for label, name in enumerate(names):
        before = len(found.files)
        for file, about in sorted(_images(part / name)):
            found.files.append(file)
            found.labels.append(label)
            relative = file.relative_to(part.parent)
            found.lines.append(f"{relative} {about.st_size} {about.st_mtime_ns}")
        if len(found.files) == before:
            raise DataError(
                f"{part / name} has no images; expected files ending in {', '.join(ENDINGS)}"
            )
    return names, found


def _images(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    path = folder
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_dir():
                    yield from _images(path)
                elif entry.name.lower().endswith(ENDINGS) and entry.name[0] != ".":
                    about = entry.stat()
                    if not stat.S_ISREG(about.st_mode):  # a pipe would never end
                        raise DataError(f"{path} is no regular file; expected an image: remove it")
                    yield path, about
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); restore or remove it") from error


def _decoded(files: list[Path], side: int | None) -> np.ndarray:
    """All images (N, H, W, C) uint8."""
    images: np.ndarray | None = None
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of metadata that nobody needs
        for number, file in enumerate(tqdm(files, "decoding", unit="img", disable=None)):
            image = _image(file)
            if side is not None:
                image = resized(image[None], side)[0]
            if images is None:
                images = np.empty((len(files), *image.shape), np.uint8)
            if image.shape[:2] != images.shape[1:3]:
                sizes = [f"{size[1]}x{size[0]}" for size in (image.shape, images.shape[1:])]
                raise DataError(
                    f"{file} has {sizes[0]} pixels, {files[0]} {sizes[1]}; give --resolution the "
                    "side that all are resized to"
                )
            if image.shape[2] > images.shape[3]:  # the first one in colour
                images = np.repeat(images, 3, axis=3)
            images[number] = image  # of grey, the same in each channel
    return images


def _image(file: Path) -> np.ndarray:
    """(H, W, 1 or 3) uint8."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError(
            "Pillow is not installed, which decodes images; pip install 'mnas[data]'"
        ) from error
    try:
        with Image.open(file) as image:
            mode = image.mode
            if mode in GREY or mode in COLOUR:
                pixels = np.asarray(image.convert("L" if mode in GREY else "RGB"))
                return pixels.reshape(*pixels.shape[:2], -1)
    except Exception as error:  # a damaged file fails in many ways
        reason = " ".join(str(error).split())[:80]
        raise DataError(f"cannot decode {file} ({reason}); restore or remove it") from error
    raise DataError(f"{file} has pixels of mode {mode}; expected 8 bits a channel: convert it")


class _Kept:
    """Arrays in a file beside its manifest. key: of what they were made from."""

    def __init__(self, path: Path, name: str, key: str) -> None:
        self.folder, self.name, self.key = Folder(path, FORMAT), name, key

    def read(self) -> list[np.ndarray] | None:
        """None unless they are there, undamaged and of this key."""
        try:
            with np.load(io.BytesIO(self.folder.read(self.name)), allow_pickle=False) as held:
                return [held[n] for n in ARRAYS] if str(held["key"]) == self.key else None
        except (FolderError, OSError, KeyError, ValueError, zipfile.BadZipFile):
            return None

    def write(self, arrays: list[np.ndarray]) -> None:
        """Nothing where nothing can be written, or another process is writing."""
        buffer = io.BytesIO()
        np.savez(buffer, key=self.key, **dict(zip(ARRAYS, arrays, strict=True)))
        try:
            self.folder.path.mkdir(exist_ok=True)
            with self.folder.lock():
                self._clear()
                self.folder.write({self.name: buffer.getvalue()}, settle=True)
        except (FolderError, OSError):
            return

    def _clear(self) -> None:
        """Remove what is damaged: it would stop the next write."""
        try:
            self.folder.recover()
        except FolderError:
            for file in self.folder.path.iterdir():
                if file.name == "manifest.json" or file.suffix == ".npz":
                    file.unlink()
