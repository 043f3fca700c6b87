"""What torchvision downloads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnas.training.data.split import DataError


def download(kind: str, options: Mapping[str, Any], root: Path, otherwise: str) -> list[Any]:
    """torchvision's data set below root, for training and for the test, downloaded if it is not
    there. otherwise: what to do where nothing can be downloaded. Raises DataError."""
    try:
        from torchvision import datasets  # slow to import, and MNIST does not need it
    except ModuleNotFoundError as error:
        raise DataError(
            f"{error.name} is not installed, which downloads {kind}; pip install 'mnas[data]', or "
            f"{otherwise}"
        ) from error
    make = getattr(datasets, kind)
    try:
        return [make(root, train=train, download=True, **options) for train in (True, False)]
    except Exception as error:  # whatever the network, an archive or a truncated file raises
        reason = " ".join(str(error).split())[:80]
        raise DataError(
            f"cannot download {kind} to {root} ({type(error).__name__}: {reason}); where nothing "
            f"can be downloaded, {otherwise}"
        ) from error
