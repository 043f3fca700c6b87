"""What else a number depends on: versions, processor, threads, the code's commit."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("mnas", "torchvision", "numpy")


def environment(device: str = "cpu") -> dict[str, Any]:
    """What else a number depends on: versions, processor, threads, the code's commit; None where it
    is unknown."""
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {
        **gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: _version(package) for package in PACKAGES},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(Path(__file__).parent),
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


def git_commit(package: Path) -> str | None:
    """The commit of a package's code, "-dirty" behind it if the code differs. None where the
    package is not tracked by the repository that it lies in, as one that was installed below a
    user's project."""
    # A hook or a rebase sets these, and they would lead git to the repository of the user.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *command],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=clean,
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*")
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
