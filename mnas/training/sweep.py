"""Independent training runs: one after the other in this process, or several at a time, each in a
child process.

Both ways train by `one_run.train`, so that rows do not depend on how many run at once. Signals
stop this process alone, which lets its children end; a child that loses its parent stops too.
Either way what was trained is saved."""

from __future__ import annotations

import contextlib
import os
import queue
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnas.errors import Failure, user_input
from mnas.training import cluster, one_run, progress
from mnas.training.engines import Engine, Local
from mnas.training.one_run import Report, Run
from mnas.training.processes import ALONE, LostError, Processes
from mnas.training.progress import Progress
from mnas.training.saved import resume_command

if TYPE_CHECKING:
    from distributed import Client

    from mnas.training.run_directory import RunDirectory

Ended = Iterator[tuple[str, "Failure | None"]]  # runs by name, as they end


def train(
    runs: list[Run],
    jobs: int | None,
    data_root: Path,
    checkpoint_every: int,
    processes: Processes = ALONE,
    log: str | None = None,
    client: Client | None = None,
) -> list[dict[str, Any] | Failure]:
    """Every run from where its directory stands to its end; one that fails does not end the others.

    jobs: how many at a time; None for one, on a cluster for as many as it takes. processes: that
    train the one run together. log: as of `one_run.train`. client: of the cluster that trains them;
    None for that of joblib.parallel_config("dask"), or for this machine. Returns, in the order of
    the runs, the summary or why there is none.
    """
    from mnas.training.run_directory import RunDirectory

    directories = {run.name: RunDirectory(run.path) for run in runs}
    pending = [run for run in runs if not _is_finished(directories[run.name])]
    failures: dict[str, Failure | None] = {}
    client = client or cluster.ambient()
    with progress.Interruption() as interruption:
        shown = Progress(len(pending), interruption)
        if pending and (client or (jobs or 1) > 1 < len(pending)):
            root = Path(os.path.commonpath([run.path.parent.absolute() for run in pending]))
            engine = cluster.Dask(client, root) if client else Local()
            job = {"data_root": str(data_root), "checkpoint_every": checkpoint_every, "log": log}
            ended = _by_engine(pending, jobs or len(pending), engine, shown, job)
        else:
            ended = (
                (run.name, attempt(run, shown.report, data_root, checkpoint_every, processes, log))
                for run in pending
            )
        with shown.bar, contextlib.closing(ended):
            for name, failure in ended:
                failures[name] = failure
                shown.end(name, failure)
    return [failures.get(name) or _summary(directory) for name, directory in directories.items()]


def _is_finished(directory: RunDirectory) -> bool:
    """False also for a directory that is damaged: what trains it says why."""
    from mnas.storage.strict_json import FolderError

    with contextlib.suppress(FolderError):
        return directory.finished
    return False


def _summary(directory: RunDirectory) -> dict[str, Any] | Failure:
    from mnas.storage.strict_json import FolderError

    try:
        return directory.summary()
    except FolderError as error:
        return Failure(str(error), status=2)


def check(runs: list[Run], outcomes: list[dict[str, Any] | Failure], how: str) -> None:
    """End the tool with one line if runs have failed or were stopped. how: to continue."""
    failures = [
        (run.name, outcome)
        for run, outcome in zip(runs, outcomes, strict=True)
        if isinstance(outcome, Failure)
    ]
    if not failures:
        return
    if len(runs) == 1:
        raise failures[0][1]
    status = max(failure.status for _, failure in failures)
    names: dict[str, list[str]] = {}  # by reason
    for name, failure in failures:
        if failure.status < 128:
            names.setdefault(str(failure), []).append(name)
    parts = (
        [f"stopped with {len(runs) - len(failures)} of {len(runs)} runs finished"]
        if status > 128
        else []
    )
    if names:
        reasons = "; ".join(f"{', '.join(those)}: {reason}" for reason, those in names.items())
        parts.append(f"{sum(map(len, names.values()))} of {len(runs)} runs failed ({reasons})")
    raise Failure(f"{', '.join(parts)}; continue with {how}", status if status > 128 else 1)


def attempt(
    run: Run,
    report: Report,
    data_root: Path,
    checkpoint_every: int,
    processes: Processes = ALONE,
    log: str | None = None,
) -> Failure | None:
    """Train; what goes wrong is returned, so that other runs go on."""
    try:
        one_run.train(run, report, data_root, checkpoint_every, processes, log)
    except Failure as failure:
        return failure
    except LostError as error:
        how = resume_command(run.path, run.config, data_root)
        return Failure(f"{error}; continue with {how} under torchrun")
    except Exception as error:  # no memory left, or a mistake of ours: the other runs go on
        traceback.print_exc()
        return Failure(f"{type(error).__name__}: {error}")
    return None


def _by_engine(
    runs: list[Run], jobs: int, engine: Engine, shown: Progress, job: dict[str, Any]
) -> Ended:
    """A child that is killed is a failed run, as one whose worker is lost too often; the others go
    on. job: what all are told."""
    waiting, under_way, told = _longest_first(runs), set(), False
    try:
        while waiting or under_way:
            stop = shown.interruption.signal
            if stop and not told:
                told = True
                engine.stop()
                for run in waiting:
                    yield run.name, _stopped_early(stop)
                waiting = []
            while waiting and len(under_way) < jobs:
                run = waiting.pop(0)
                own = {"path": str(run.path), "config": run.config, "name": run.name}
                engine.begin(run.name, {**job, **own})
                under_way.add(run.name)
            try:
                name, words = engine.said.get(timeout=0.1)
            except queue.Empty:
                continue
            if "status" in words or "lost" in words:
                under_way.remove(name)
                yield name, _failure(words, shown.interruption.signal)
            else:
                shown.report(name, **words)
    finally:
        engine.close()


def _failure(words: dict[str, Any], stop: int) -> Failure | None:
    """How a run has ended, by its last words or why there are none."""
    if "status" in words:
        status = 128 + stop if words["status"] > 128 and stop else words["status"]
        return words["failure"] and Failure(words["failure"], status)
    # If stopped: it came before the child could hear it.
    return _stopped_early(stop) if stop else Failure(words["lost"])


def _stopped_early(number: int) -> Failure:
    return Failure("stopped before it began", status=128 + number)


def _longest_first(runs: list[Run]) -> list[Run]:
    """By epochs times multiply-accumulates, so that no worker is left alone with a long run at the
    end."""
    from mnas import cost

    with user_input():
        named = {run.config["space"]: one_run.space_of(run.config) for run in runs}

    def work(run: Run) -> float:
        space = named[run.config["space"]]
        path = space.parse(run.config["arch"]) if run.config.get("arch") else next(space.paths())
        return run.config["epochs"] * cost(space, path).macs

    return sorted(runs, key=work, reverse=True)
