"""mnas: one-shot neural architecture search on merged, gradient-masked tensors.

The rooms, each of which imports only from those after it:
commands -> studies -> training -> networks, spaces -> space -> freeze.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mnas import moved

if TYPE_CHECKING:
    from mnas import spaces
    from mnas.freeze import GradientMask, MaskedOptimizer
    from mnas.networks import (
        cost,
        evaluate,
        evaluate_paths,
        export,
        recalibrate,
        search,
        standalone,
        suggest,
    )
    from mnas.space import (
        Choice,
        Decision,
        FairSampler,
        SearchSpace,
        Supernet,
        UniformSampler,
        convert,
        rules,
    )

__all__ = [
    "Choice",
    "Decision",
    "FairSampler",
    "GradientMask",
    "MaskedOptimizer",
    "SearchSpace",
    "Supernet",
    "UniformSampler",
    "convert",
    "cost",
    "evaluate",
    "evaluate_paths",
    "export",
    "recalibrate",
    "rules",
    "search",
    "spaces",
    "standalone",
    "suggest",
]
_MODULES = {"spaces": "mnas.spaces", "rules": "mnas.space.rules"}
_ROOMS = {
    "freeze": ("GradientMask", "MaskedOptimizer"),
    "networks": (
        *("cost", "evaluate", "evaluate_paths", "export", "recalibrate", "search", "standalone"),
        "suggest",
    ),
    "space": (
        "Choice",
        "Decision",
        "FairSampler",
        "SearchSpace",
        "Supernet",
        "UniformSampler",
        "convert",
    ),
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: torch takes seconds, and a wrong command
    line needs none."""
    if name in _MODULES:
        return import_module(_MODULES[name])
    for room, names in _ROOMS.items():
        if name in names:
            globals()[name] = found = getattr(import_module(f"mnas.{room}"), name)
            return found
    if name in moved.MOVED:
        return import_module(f"mnas.{name}")
    raise AttributeError(f"module 'mnas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


moved.install()
