"""IDX files, the format of MNIST (LeCun, Cortes and Burges)."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mnas.storage import files
from mnas.training.data.split import DataError

LARGEST = 1 << 31  # bytes of one unpacked file


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
