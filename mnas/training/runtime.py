"""The machine that a run uses: its threads, memory and order of images in memory; and the data, cut
and ordered."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mnas.errors import Failure, user_input

if TYPE_CHECKING:  # torch takes seconds to import: not before the arguments are known to be good
    from torch import Tensor

    from mnas.training.data import Data, Split


def configure_runtime(threads: int | None, keep_memory: bool = True) -> None:
    """Threads, and an allocator that keeps freed memory instead of giving its pages back after
    every operation: mapping them anew costs about as much as the arithmetic of a small network.
    Keeping memory changes no result."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if keep_memory and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def device(wanted: str) -> str:
    """Of auto, cpu or cuda the one to compute on; auto takes a GPU where torch finds one."""
    if wanted == "cpu":
        return wanted
    import torch

    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise Failure("--device cuda: torch finds no GPU here; give --device cpu or auto", 2)
    return "cuda" if found else "cpu"


def in_memory_order(images: Tensor, channels_last: bool = True) -> Tensor:
    """The images in channels_last order unless switched off; the values stay. To torch, images
    of one channel are in it already."""
    import torch

    return images.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def for_training(split: Split, channels_last: bool = True) -> Split:
    return type(split)(in_memory_order(split.images, channels_last), split.labels)


def load_data(
    dataset: str,
    root: Path,
    limit_train: int | None = None,
    limit_test: int | None = None,
    channels_last: bool = True,
    device: str = "cpu",
    resolution: int | None = None,
) -> Data:
    from mnas.training import data

    with user_input():
        loaded = data.load(dataset, root, resolution)
    if not loaded.verified and dataset != "folder":
        print(
            f"note: {dataset} in {root} is not known to be the published data set", file=sys.stderr
        )
    splits = loaded.train.first(limit_train), loaded.validation, loaded.test.first(limit_test)
    splits = (for_training(split, channels_last).to(device) for split in splits)
    return data.Data(*splits, verified=loaded.verified, sha256=loaded.sha256)


def cores() -> int:
    """Those that this process may use, by its affinity and by the quota of its container."""
    from joblib.externals.loky import cpu_count

    return cpu_count()


def default_threads() -> int:
    """As many as there are cores, and not more than OMP_NUM_THREADS says."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(cores(), int(wanted)) if wanted.isdecimal() and int(wanted) > 0 else cores()
