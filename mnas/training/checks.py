"""What a trainer is given, checked before anything is made of it."""

from __future__ import annotations

from typing import Any

from mnas.space.search_space import Path, SearchSpace
from mnas.training.data import Split


def check_split(name: str, split: Split, space: SearchSpace) -> None:
    """Raise ValueError unless the networks of the space can learn the split."""
    if not isinstance(split, Split):
        raise ValueError(f"{name} is a {type(split).__name__}; expected a mnas.data.Split")
    if not len(split):
        raise ValueError(f"{name} is empty; expected one image at least")
    space.check_images(split.images, name)
    if len(space.output_shape) != 1:
        raise ValueError(
            f"networks of space {space.name} put out (B, {space.output_shape}); expected (B, "
            "classes)"
        )
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= space.output_shape[0]:
        wrong = low if low < 0 else high
        raise ValueError(
            f"{name} has the label {wrong}, the networks of space {space.name} have "
            f"{space.output_shape[0]} logits; expected labels from 0 to below that"
        )


def checked_paths(space: SearchSpace, paths: Any) -> list[Path]:
    """The paths to watch. Raises ValueError unless they are some, each once."""
    if not isinstance(paths, (list, tuple)):
        raise ValueError(f"watched is a {type(paths).__name__}; expected a list of paths")
    checked = [space.check(path) for path in paths]
    if not checked or len(set(checked)) < len(checked):
        raise ValueError(
            f"watched are {len(checked)} paths, {len(set(checked))} different; expected some, "
            "each once"
        )
    return checked
