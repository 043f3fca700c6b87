"""The directories of training runs: which one is meant, and those of several runs as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnas.errors import Failure, writing
from mnas.training import one_run
from mnas.training.one_run import Run

if TYPE_CHECKING:
    from mnas import SearchSpace
    from mnas.training.run_directory import RunDirectory


def default_out(config: dict[str, Any]) -> Path:
    parts = [
        config["mode"],
        config.get("rule"),
        config.get("arch"),
        *config.get("group", ()),
        config["space"].rpartition(":")[2],  # of a file, the function
        config["dataset"],
        f"seed{config['seed']}",
    ]
    return Path("runs") / "-".join(part for part in parts if part)


def free(base: Path) -> Path:
    """The first of base, base-2, base-3, ... that does not exist."""
    number, path = 1, base
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def newest(given: dict[str, Any]) -> Path:
    runs = [file.parent for file in Path("runs").glob("*/config.json")]
    runs = [path for path in runs if path.name.startswith(given.get("mode", ""))]
    if not runs:
        raise Failure("there is no run under runs/ to resume; say which with --out DIR", status=2)
    return max(runs, key=lambda path: (path / "config.json").stat().st_mtime)


def check_space(directory: RunDirectory, stored: dict[str, Any], given: dict[str, Any]) -> None:
    """A file with a space is run only if it is named anew, and as the run was begun with it."""
    digest = stored.get("space_sha256")
    if digest is not None and "space" not in given:
        raise Failure(
            f"{directory.path} has a space of its own, from {stored['space']}; give it again with "
            "--space, for a run directory runs no file by itself",
            status=2,
        )
    if stored["space"] != given.get("space", stored["space"]):
        raise Failure(
            f"{directory.path} was begun with --space {stored['space']}, not {given['space']}; "
            "resume with the same settings or choose another directory",
            status=2,
        )
    if digest != given.get("space_sha256"):
        raise Failure(
            f"{stored['space']} has changed since {directory.path} was begun; restore the file, or "
            "start a new run",
            status=2,
        )


def runs(directory: RunDirectory, config: dict[str, Any], space: SearchSpace) -> list[Run]:
    """The one run of this directory; of `--arch all` one for each network, in a directory below
    it."""
    if config.get("arch") != "all":
        return [Run(directory.path, config, config.get("arch") or "supernet")]
    archs = [space.format(path) for path in space.paths()]
    return [Run(directory.path / arch, {**config, "arch": arch}, arch) for arch in archs]


def join(
    directory: RunDirectory,
    config: dict[str, Any],
    runs: list[Run],
    summaries: list[dict[str, Any]],
) -> None:
    """The networks of `--arch all`, each in its own directory, as one run."""
    from mnas.training.run_directory import RunDirectory

    directories = {run.name: RunDirectory(run.path) for run in runs}
    states = {name: of_arch.load() for name, of_arch in directories.items()}
    rows = [row for of_arch in directories.values() for row in of_arch.rows()]
    summary = {
        **one_run.identity(config),
        "train_seconds": round(sum(s["train_seconds"] for s in summaries), 2),
        "paths": [path for s in summaries for path in s["paths"]],
    }
    with writing(directory.path):
        directory.save(
            {"weights": {arch: state["weights"][arch] for arch, state in states.items()}}, rows
        )
        directory.finish(summary, rows)
