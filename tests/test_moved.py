"""Modules that had other names before the package was divided into rooms."""

import importlib
import sys

import pytest

from mnas.moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_old_names_are_the_same_modules(name):
    sys.modules.pop(f"mnas.{name}", None)
    room = MOVED[name]
    new = importlib.import_module(f"mnas.{room}" if "." in room else f"mnas.{room}.{name}")
    spec = new.__spec__
    with pytest.warns(DeprecationWarning, match=rf"mnas\.{name} is now {new.__name__}$"):
        old = importlib.import_module(f"mnas.{name}")
    assert old is new
    assert new.__spec__ is spec
    sys.modules.pop(f"mnas.{name}")


def test_public_functions_keep_their_names():
    import mnas

    assert callable(mnas.evaluate)
    assert callable(mnas.cost)
    assert callable(mnas.export)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mnas.nothing")
