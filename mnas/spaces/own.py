"""A space of the user's own: a function in a file, named as path/to/file.py:function.

Its file is run only where the user has named it, on a command line or in a call. What a run
directory says of it is compared, and never followed."""

from __future__ import annotations

import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from mnas.space.search_space import SearchSpace
from mnas.storage import files
from mnas.storage.strict_json import FolderError


class Source(NamedTuple):
    """file: absolute, without links. text: its content, read once."""

    file: Path
    function: str
    text: bytes

    @property
    def name(self) -> str:
        return f"{self.file}:{self.function}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text).hexdigest()


def is_own(space: str) -> bool:
    """Whether the name is that of a function in a file."""
    return ":" in space or space.endswith(".py")


def read(space: str) -> Source:
    """The file that the name is of; nothing of it is run. Raises ValueError."""
    path, _, function = space.rpartition(":")
    if not path.endswith(".py") or not function.isidentifier():
        raise ValueError(f"space {space!r} is unknown; expected path/to/file.py:function")
    try:
        file = Path(path).expanduser().resolve()  # one name, from wherever it is given
    except RuntimeError as error:  # a user that is not there, links in a circle
        raise ValueError(
            f"cannot find {path} ({error}); expected path/to/file.py:function of a space"
        ) from error
    try:
        return Source(file, function, files.read(file))
    except OSError as error:
        raise ValueError(
            f"cannot read {file} ({error.strerror}); expected path/to/file.py:function of a space"
        ) from error
    except FolderError as error:
        raise ValueError(str(error)) from error


def load(space: str, sha256: str | None = None) -> SearchSpace:
    """What the function returns. The file is run, once for each content that it has had.

    sha256: of the content that is expected. Raises ValueError for another, and for whatever is
    wrong with the file."""
    source = read(space)
    if sha256 not in (None, source.sha256):
        raise ValueError(
            f"{source.file} is not the file that the run was begun with: its SHA-256 is "
            f"{source.sha256[:12]}, expected {sha256[:12]}; restore it, or start a new run"
        )
    module = _module(source)
    make = getattr(module, source.function, None)
    if not callable(make):
        raise ValueError(
            f"{source.file} has no function {source.function!r}; expected one without arguments "
            "that returns a mnas.SearchSpace"
        )
    try:
        made = make()
    except (Exception, SystemExit) as error:
        raise _failed(source, error) from error
    if not isinstance(made, SearchSpace):
        raise ValueError(
            f"{source.name} returned a {type(made).__name__}; expected a mnas.SearchSpace"
        )
    return made


def _module(source: Source) -> ModuleType:
    """Among the modules of the process, as dataclasses and the source of classes need it."""
    digest = hashlib.sha256(str(source.file).encode() + source.text).hexdigest()
    name = f"mnas_space_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(source.file)
    try:
        code = compile(source.text, str(source.file), "exec", dont_inherit=True)
        exec(code, vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(source, error) from error
    return module


def _failed(source: Source, error: BaseException) -> ValueError:
    """With the last line of the user's file that was being run."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(source.file)
    ]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else 1)
    reason = " ".join(str(error).split())
    return ValueError(
        f"{source.name} raised {type(error).__name__} at line {line}: {reason}; correct it"
    )
