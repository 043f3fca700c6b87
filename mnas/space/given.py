"""The forms in which users have a path: indices as numbers, arrays or tensors, or a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

GivenPath: TypeAlias = "Sequence[int | Tensor] | np.ndarray[Any, Any] | Tensor | str"
"""Of whole numbers, as a tuple, a list, an array (decisions,) or a tensor (decisions,), whose
entries may be numbers of numpy or tensors () themselves; or an architecture's name. For a mixture
some entries are weights, floating tensors (values,)."""


def indices(path: Any) -> Any:
    """A path whose whole numbers are int; what else there is, as weights and names, is as given."""
    if isinstance(path, (np.ndarray, Tensor)):
        return tuple(path.tolist()) if path.ndim == 1 and _whole(path) else path
    if isinstance(path, (tuple, list)) and any(_is_index(entry) for entry in path):
        return tuple(int(entry) if _is_index(entry) else entry for entry in path)
    return path


def shown(path: Any) -> str:
    """In one line."""
    if isinstance(path, (np.ndarray, Tensor)):
        return f"{path.dtype} of shape {tuple(path.shape)}"
    return " ".join(repr(path).split())


def _is_index(entry: Any) -> bool:
    return isinstance(entry, (np.ndarray, Tensor)) and entry.ndim == 0 and _whole(entry)


def _whole(numbers: np.ndarray[Any, Any] | Tensor) -> bool:
    if isinstance(numbers, Tensor):
        return str(numbers.dtype).removeprefix("torch.").startswith(("int", "uint"))
    return np.issubdtype(numbers.dtype, np.integer)
