"""A run directory: what a run was asked to do, what it has reached, and nothing half-written or
damaged.

config.json     settings, data and environment, written once
checkpoint.pt   everything a bit-identical continuation needs; loads with weights_only=True
metrics.jsonl   one JSON object a line: a network after an epoch
times.json      seconds so far, and when it began; apart, as it alone differs between equal runs
summary.json    the result; its presence means that the run is finished
epoch-N.pt      weights after an epoch, of a run that keeps those of its last ones
manifest.json   the digests of these files, which are compared before a file is used
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnas.storage import files, strict_json
from mnas.storage.files import Folder
from mnas.storage.schema import Config, Metrics, Settings, Summary, Times
from mnas.storage.strict_json import FolderError, checked, dumps, parse, plain_number
from mnas.training.environment import environment

FORMAT = "mnas-run-3"  # 2 had merged tensors as one parameter each
EPOCH = "epoch-{}.pt"


class RunDirectory:
    """One run on disk. Raises FolderError where a file is missing, damaged or of another run.

    Whoever writes holds `lock` meanwhile; reading needs none, also beside a process that trains.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._folder = Folder(self.path, FORMAT)
        self._config: bytes | None = None
        self._known: dict[str, str] | None = None  # its identity

    def lock(self, seconds: float = files.LOCK_SECONDS) -> contextlib.AbstractContextManager[None]:
        """Keep every other process from writing into this directory, which exists. seconds: to wait
        for one that does."""
        return self._folder.lock(seconds)

    @property
    def begun(self) -> bool:
        return "config.json" in self._folder.names()

    @property
    def finished(self) -> bool:
        return "summary.json" in self._folder.names()

    @contextlib.contextmanager
    def new(self) -> Iterator[None]:
        """Make the directory, which must not be there or be empty, and lock it for the block."""
        self._check_empty()
        with contextlib.ExitStack() as stack:
            with self._making():
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self.lock())
            self._check_empty()  # another process may have been faster
            yield

    def create(self, config: dict[str, Any], data: dict[str, Any] | None = None) -> None:
        """Begin a run in a new or empty directory. data: what is known of its data set, as
        `schema.DataFound`."""
        with self.new(), self._making():
            about = {"data": data, "environment": environment(config.get("device", "cpu"))}
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._times = {"train_seconds": 0.0, "started": now}
            begin = {"config.json": {**config, **about}, "times.json": self._times}
            self._folder.write({name: _json(content) for name, content in begin.items()})

    @contextlib.contextmanager
    def _making(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FolderError(
                f"cannot write to {self.path} ({error.strerror}); give --out a writable directory"
            ) from error

    def _check_empty(self) -> None:
        """What a kill leaves of the very first write counts as nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise FolderError(f"{self.path} is a file; give --out a directory")
        found = {file.name for file in self.path.iterdir()} if self.path.exists() else set()
        found = {name for name in found if not name.startswith(".")}
        if found and (found != {files.MANIFEST} or not self._folder.unwritten()):
            raise FolderError(
                f"{self.path} is not empty; --resume continues a run, another --out starts a new "
                "one"
            )

    def config(self) -> dict[str, Any]:
        """The settings of the run, without its environment and data."""
        config = self._settings()
        checked(config, Settings, self.path / "config.json")
        return config

    def environment(self) -> dict[str, Any]:
        return self._read_config()["environment"]

    def provenance(self) -> dict[str, Any]:
        """Of a row: the commit that the run was begun with, whether the code differed from it, when
        that was (UTC), and its threads. What a run of an earlier mnas does not say is left out."""
        known = self.environment()
        found: dict[str, Any] = {"threads": self.config()["threads"]}
        if commit := known.get("git_commit"):
            found |= {"commit": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")}
        return found | {key: value for key, value in self._times.items() if key == "started"}

    def data(self) -> dict[str, Any] | None:
        """What was known of the data set when the run was begun."""
        return self._read_config()["data"]

    def check_config(self, config: dict[str, Any]) -> None:
        """Raise FolderError unless the run was begun with these settings."""
        stored = self._settings()
        for key in {**stored, **config}:
            if stored.get(key) != config.get(key):
                flag = "--" + key.replace("_", "-")
                raise FolderError(
                    f"{self.path} was begun with {flag} {_shown(stored.get(key))}, not "
                    f"{_shown(config.get(key))}; resume with the same settings or choose another "
                    f"directory"
                )

    def check_data(self, dataset: str, found: dict[str, Any]) -> None:
        """Raise FolderError where the run was begun with other data than were found now."""
        begun = self.data()
        if begun not in (None, found):
            raise FolderError(
                f"{self.path} was begun with other data than {dataset} has now (SHA-256 "
                f"{begun['sha256'][:12]}, not {found['sha256'][:12]}); give --data-root those of "
                "the run, or choose another directory"
            )

    def recover(self) -> None:
        """Remove what kill -9 left of writes, and compare every file with its digest; before a run
        goes on."""
        self._folder.recover()

    def save(
        self,
        state: dict[str, Any],
        rows: Iterable[dict[str, Any]] | None = None,
        seconds: float | None = None,
        kept: int | None = None,
    ) -> None:
        """A checkpoint, and with it the metrics and the seconds of training so far. One
        transaction. kept: the epoch, where its weights are to stay beside later ones."""
        contents = {"checkpoint.pt": self._archive(state), **self._beside(rows, seconds)}
        if kept is not None:  # first: a run that a kill cuts here goes on from before the epoch
            weights = self._archive({"weights": state["weights"]})
            contents = {EPOCH.format(kept): weights, **contents}
        self._folder.write(contents)

    def _archive(self, state: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        torch.save(_canonical({"format": FORMAT, "run": self._identity(), **state}), buffer)
        return buffer.getvalue()

    def _beside(
        self, rows: Iterable[dict[str, Any]] | None, seconds: float | None
    ) -> dict[str, str | bytes]:
        contents: dict[str, str | bytes] = {
            "config.json": self._config_bytes()
        }  # in case somebody has removed it
        if rows is not None:
            contents["metrics.jsonl"] = strict_json.lines(rows)
        if seconds is not None:
            self._times = {**self._times, "train_seconds": seconds}
            contents["times.json"] = _json(self._times)
        return contents

    def kept(self) -> list[str]:
        """The checkpoints of a finished run whose weights `save` was told to keep, by epoch, and
        the last one."""
        epochs = [re.fullmatch(EPOCH.format(r"(\d+)"), name) for name in self._folder.listed()]
        return [*map(EPOCH.format, sorted(int(e[1]) for e in epochs if e)), "checkpoint.pt"]

    def load(self, name: str = "checkpoint.pt") -> dict[str, Any] | None:
        """The last checkpoint, or another; None if the run was stopped before it."""
        file = self.path / name
        if name not in self._folder.listed():
            if file.exists():
                raise FolderError(f"{file} was not written by this run; remove or restore it")
            return None
        try:
            content = self._folder.read(name)
        except files.NotYet:
            return None
        except files.OtherContent as error:
            raise FolderError(f"{file} {self._kind(error.content)}; restore it") from error
        try:
            with warnings.catch_warnings(action="ignore"):  # torch's, of archives that are not ours
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # an archive that was written wrong fails in many ways
            raise FolderError(f"{file} cannot be loaded ({error}); restore it") from error
        if not isinstance(state, dict) or (state.get("format"), state.get("run")) != (
            FORMAT,
            self._identity(),
        ):
            raise FolderError(f"{file} {self._kind(content)}; restore it")
        return state

    def _kind(self, content: bytes | None) -> str:
        """What a checkpoint is that this run has not written, by the names in its bytes: nothing of
        it is unpacked."""
        found = re.search(rb"mnas-run-\d+", content or b"")
        if found is None:
            return "is damaged or no checkpoint of mnas"
        if found[0].decode() != FORMAT:
            return (
                f"is a checkpoint of another version of mnas ({found[0].decode()}, expected "
                f"{FORMAT})"
            )
        if self._identity()["id"].encode() not in content:
            return "is a checkpoint of another run"
        return "is damaged, or of another moment of this run"

    def _identity(self) -> dict[str, str]:
        """Of the run: id is the digest of config.json, so that identical runs have identical files;
        settings is that of the settings alone."""
        if self._known is None:
            settings = dumps(dict(sorted(self._settings().items())))
            digests = (
                hashlib.sha256(content).hexdigest()
                for content in (self._config_bytes(), settings.encode())
            )
            self._known = dict(zip(("id", "settings"), digests, strict=True))
        return self._known

    def rows(self) -> list[dict[str, Any]]:
        """The metrics up to the last checkpoint."""
        return strict_json.parse_lines(
            self._folder.read("metrics.jsonl"), Metrics, self.path / "metrics.jsonl"
        )

    def seconds(self) -> float:
        """Seconds of training up to the last checkpoint."""
        return float(self._times["train_seconds"])

    @functools.cached_property
    def _times(self) -> dict[str, Any]:
        """Of the last checkpoint, as the process found it that goes on from there."""
        if "times.json" not in self._folder.names():
            return {"train_seconds": 0.0}
        return self._json("times.json", Times)

    def summary(self) -> dict[str, Any]:
        return self._json("summary.json", Summary)

    def finish(
        self,
        summary: dict[str, Any],
        rows: Iterable[dict[str, Any]] | None = None,
        seconds: float | None = None,
    ) -> None:
        """The result; with it the metrics once more, in case a kill came between a checkpoint and
        its metrics."""
        self._folder.write({**self._beside(rows, seconds), "summary.json": _json(summary)})

    def _settings(self) -> dict[str, Any]:
        return {k: v for k, v in self._read_config().items() if k not in ("environment", "data")}

    def _read_config(self) -> dict[str, Any]:
        file = self.path / "config.json"
        config = parse(self._config_bytes(), dict, file)
        checked(config, Config, file)
        return config

    def _config_bytes(self) -> bytes:
        if self._config is None:
            if "config.json" not in self._folder.names():
                older = (self.path / "config.json").exists()
                why = (
                    "an older mnas or another program wrote its config.json"
                    if older
                    else "it has no config.json"
                )
                raise FolderError(f"{self.path} is not a run directory: {why}")
            self._config = self._folder.read("config.json")
        return self._config

    def _json(self, name: str, kind: Any) -> dict[str, Any]:
        value = parse(self._folder.read(name), dict, self.path / name)
        checked(value, kind, self.path / name)
        return value


def _shown(value: Any) -> Any:
    """A setting as a command line has it."""
    return " ".join(value) if isinstance(value, list) else value


def _json(value: Any) -> str:
    return dumps(value, indent=2) + "\n"


PLAIN = frozenset({type(None), bool, int, float, bytes, Tensor, torch.dtype, torch.device})


def _canonical(value: Any) -> Any:
    """Equal values in equal bytes, of types that torch's weights_only reader knows; raises
    ValueError for others.

    Pickle writes a string that it has met before as a reference if it is the same object; after a
    resume equal strings are other objects than in an uninterrupted run, unless they are interned.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is str:
        return sys.intern(value)
    if isinstance(value, dict):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            [_canonical(item) for item in value]
            if isinstance(value, list)
            else tuple(map(_canonical, value))
        )
    number = plain_number(value)
    if number is not value:
        return number
    if isinstance(value, Tensor):  # a parameter
        return value
    raise ValueError(
        f"a checkpoint cannot hold a {kind.__name__}, which could not be loaded again: "
        f"{value!r:.80}"
    )
