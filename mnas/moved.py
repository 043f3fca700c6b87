"""Modules under the names that they had before the package was divided into rooms."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "gradient_mask": "freeze",
    **dict.fromkeys(("choice", "enclosing", "merge", "prefix", "sampler", "supernet"), "space"),
    **dict.fromkeys(("files", "schema"), "storage"),
    **{
        "data": "training",
        "source": "networks",
        "optim": "freeze.optimizer",
    },
    **{"ranking": "studies.statistics", "train": "training.trainer"},
    **{"checkpoint": "training.run_directory"},
}
"""The room of a module, with its name if that has changed. Not those of which `mnas` has a function
of the same name (cost, evaluate, export, recalibrate): importing the module would hide it."""


class Moved(MetaPathFinder, Loader):
    """Gives the very module: what is changed in it is changed under both names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == "mnas" and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        name = spec.name.rpartition(".")[2]
        room = MOVED[name]
        new = f"mnas.{room}" if "." in room else f"mnas.{room}.{name}"
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # importlib has replaced it


def install() -> None:
    """Last, so that a file of the package is always found first."""
    if not any(type(finder).__name__ == "Moved" for finder in sys.meta_path):
        sys.meta_path.append(Moved())
