"""How long and how a network is trained: settings of a run, checked once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum under a one-cycle learning rate (Smith and Topin, 2019) that peaks
    at `lr`.

    epochs: may end within one, as in 0.25. precision: "fp32", or "bf16" for bfloat16 in the forward
    and backward pass with weights and loss in float32. augment: "none", "shift" for images moved by
    up to two pixels, each its own way, or "crop_flip" for images moved by up to an eighth of their
    side and mirrored (`mnas.training.data.AUGMENT`). validate_every: epochs between validations;
    there is one at the end in any case.

    Numbers of numpy become Python's. Raises ValueError for a value of another type or out of range.
    """

    epochs: float
    batch_size: int = 128
    lr: float = 0.08
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "fp32"
    augment: str = "none"
    validate_every: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, setting(name, value, *RANGES[name]))


LARGEST = sys.float_info.max  # whole numbers of Python may lie beyond it
# Of each setting of a recipe: its type and the values that it may have.
RANGES: dict[str, tuple[type, str, Callable[[Any], bool]]] = {
    "epochs": (float, "a finite number above 0", lambda v: 0 < v <= LARGEST),
    "batch_size": (int, "a whole number above 0", lambda v: v > 0),
    "lr": (float, "a finite number above 0", lambda v: 0 < v <= LARGEST),
    "momentum": (float, "a number from 0 to below 1", lambda v: 0 <= v < 1),
    "weight_decay": (float, "0 or a finite positive number", lambda v: 0 <= v <= LARGEST),
    "precision": (str, "fp32 or bf16", lambda v: v in ("fp32", "bf16")),
    "augment": (str, "none, shift or crop_flip", lambda v: v in ("none", "shift", "crop_flip")),
    "validate_every": (int, "a whole number above 0", lambda v: v > 0),
}


def setting(
    name: str, value: Any, kind: type, expected: str, allowed: Callable[[Any], bool]
) -> Any:
    """The value as one of Python's own, which a checkpoint can hold. Raises ValueError for what is
    out of range."""
    value = value.item() if isinstance(value, np.generic) else value
    numbers = {float: (int, float), int: (int,), str: (str,)}[kind]
    if not isinstance(value, numbers) or isinstance(value, bool) or not allowed(value):
        raise ValueError(f"{name}={value!r}; expected {expected}")
    return value


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; expected one of {', '.join(allowed)}")
