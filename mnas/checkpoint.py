"""A run directory: what a run was asked to do, what it has reached, and nothing half-written.

config.json     settings and environment, written once
checkpoint.pt   everything a bit-identical continuation needs; loads with weights_only=True
metrics.jsonl   one JSON object a line: a network after an epoch
times.json      seconds so far; apart, because it alone differs between two identical runs
summary.json    the result; its presence means that the run is finished
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

FORMAT = "mnas-run-1"


class RunError(ValueError):
    """The run directory cannot be used as asked; the message says why and what to do."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """The file holds either what it held before or all of the content, whenever the machine stops."""
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # or the rename itself may be lost
    finally:
        os.close(directory)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


class RunDirectory:
    """One run on disk. Raises RunError where a file is missing, damaged or of another run."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def create(self, config: dict[str, Any]) -> None:
        """Make the directory. An existing one must be empty."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; give --out a directory")
        if self.path.exists() and any(not file.name.startswith(".") for file in self.path.iterdir()):
            raise RunError(f"{self.path} is not empty; --resume continues a run, another --out starts a new one")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", {**config, "environment": environment()})
        except OSError as error:
            raise RunError(
                f"cannot write to {self.path} ({error.strerror}); give --out a writable directory"
            ) from error

    def config(self) -> dict[str, Any]:
        """The settings of the run, without its environment."""
        config = self._read_json("config.json")
        config.pop("environment", None)
        return config

    def environment(self) -> dict[str, Any]:
        return self._read_json("config.json").get("environment", {})

    def check_config(self, config: dict[str, Any]) -> None:
        """Raise RunError unless the run was begun with these settings."""
        stored = self.config()
        for key in {**stored, **config}:
            if stored.get(key) != config.get(key):
                flag = "--" + key.replace("_", "-")
                raise RunError(
                    f"{self.path} was begun with {flag} {stored.get(key)}, not {config.get(key)}; "
                    f"resume with the same settings or choose another directory"
                )

    def tidy(self) -> None:
        """Remove pieces of writes that kill -9 left; for the process that goes on with the run, before it writes."""
        for name in ("config.json", "checkpoint.pt", "metrics.jsonl", "times.json", "summary.json"):
            for piece in self.path.glob(f".{name}.*"):
                piece.unlink(missing_ok=True)

    def save(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(_canonical({"format": FORMAT, **state}), buffer)
        write_atomically(self.path / "checkpoint.pt", buffer.getvalue())

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint; None if the run was stopped before its first."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            raise RunError(f"cannot read {file} ({error.strerror})") from error
        except Exception as error:  # a damaged archive fails in many ways
            raise RunError(f"{file} is damaged or no checkpoint ({type(error).__name__}); restore it") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise RunError(f"{file} is not a checkpoint of this version of mnas ({FORMAT}); restore it")
        return state

    def write_rows(self, rows: Iterable[dict[str, Any]]) -> None:
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def seconds(self) -> float:
        """Seconds of training up to the last checkpoint."""
        file = self.path / "times.json"
        return float(self._read_json("times.json")["train_seconds"]) if file.exists() else 0.0

    def write_seconds(self, seconds: float) -> None:
        write_json(self.path / "times.json", {"train_seconds": seconds})

    def summary(self) -> dict[str, Any]:
        return self._read_json("summary.json")

    def finish(self, summary: dict[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)

    def _read_json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            value = json.loads(file.read_text())
        except OSError as error:
            raise RunError(f"{self.path} is not a run directory: {name} {error.strerror}") from error
        except ValueError as error:
            raise RunError(f"{file} is damaged ({error}); restore it") from error
        if not isinstance(value, dict):
            raise RunError(f"{file} holds no JSON object; restore it")
        return value


def _canonical(value: Any) -> Any:
    """Equal values in equal bytes. Pickle writes a string that it has met before as a reference if it is the same
    object; after a resume equal strings are other objects than in an uninterrupted run, unless they are interned."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_canonical(item) for item in value)
    return value


def environment() -> dict[str, Any]:
    """What else a number depends on: versions, processor, threads, the code's commit."""
    packages = ("mnas", "torchvision", "numpy")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: _version(package) for package in packages},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
