"""Independent training runs: one after the other in this process, or several at a time, each in a
child process.

Both ways train by `one_run.train`, so that rows do not depend on how many run at once. Signals
stop this process alone, which lets its children end; a child that loses its parent stops too.
Either way what was trained is saved."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnas.errors import Failure, user_input
from mnas.training import one_run, progress
from mnas.training.one_run import Report, Run
from mnas.training.processes import ALONE, LostError, Processes
from mnas.training.progress import Progress
from mnas.training.saved import resume_command

if TYPE_CHECKING:
    from mnas.training.run_directory import RunDirectory

Ended = Iterator[tuple[str, "Failure | None"]]  # runs by name, as they end


def train(
    runs: list[Run],
    jobs: int,
    data_root: Path,
    checkpoint_every: int,
    processes: Processes = ALONE,
    log: str | None = None,
) -> list[dict[str, Any] | Failure]:
    """Every run from where its directory stands to its end; one that fails does not end the others.

    jobs: how many at a time. processes: that train the one run together. log: as of
    `one_run.train`. Returns, in the order of the runs, the summary or why there is none.
    """
    from mnas.training.run_directory import RunDirectory

    directories = {run.name: RunDirectory(run.path) for run in runs}
    pending = [run for run in runs if not _is_finished(directories[run.name])]
    failures: dict[str, Failure | None] = {}
    with progress.Interruption() as interruption:
        shown = Progress(len(pending), interruption)
        if jobs > 1 and len(pending) > 1:
            ended = _in_children(pending, jobs, shown, data_root, checkpoint_every, log)
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


def _in_children(
    runs: list[Run],
    jobs: int,
    shown: Progress,
    data_root: Path,
    checkpoint_every: int,
    log: str | None,
) -> Ended:
    """A child that is killed is a failed run; the others go on."""
    waiting, under_way = _longest_first(runs), {}
    said: queue.SimpleQueue[tuple[Run, dict[str, Any] | None]] = queue.SimpleQueue()
    told = False
    try:
        while waiting or under_way:
            stop = shown.interruption.signal
            if stop and not told:
                told = True
                _stop(under_way.values())
                for run in waiting:
                    yield run.name, _stopped_early(stop)
                waiting = []
            while waiting and len(under_way) < jobs:
                run = waiting.pop(0)
                job = {"path": str(run.path), "config": run.config, "name": run.name}
                job |= {"data_root": str(data_root), "checkpoint_every": checkpoint_every}
                job |= {"log": log}
                under_way[run.name] = _child(run, job, said)
            try:
                run, words = said.get(timeout=0.1)
            except queue.Empty:
                continue
            if words is None or "status" in words:
                yield run.name, _failure(under_way.pop(run.name), words, shown.interruption.signal)
            else:
                shown.report(run.name, **words)
    finally:
        _stop(under_way.values())


def _stop(children: Iterable[subprocess.Popen[str]]) -> None:
    """By the end of what they read; they save where they are."""
    for child in children:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()


def _child(run: Run, job: dict[str, Any], said: queue.SimpleQueue[Any]) -> subprocess.Popen[str]:
    """It finds modules where this process does. What it says is put into the queue, and None at the
    end if its last word was another one.

    Signals that stop the parent do not reach it, whoever sends them to all: it would take the
    second for impatience, and save nothing."""
    script = f"import sys; sys.path[:] = {sys.path!r}; from mnas.training.child import main; main()"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, progress.SIGNALS)  # a child inherits it
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with contextlib.suppress(BrokenPipeError):  # killed already
        child.stdin.write(json.dumps(job) + "\n")
        child.stdin.flush()

    def listen() -> None:
        with contextlib.suppress(ValueError):  # a line that a kill has cut short
            for line in child.stdout:
                words = json.loads(line)
                said.put((run, words))
                if "status" in words:
                    return
        said.put((run, None))

    threading.Thread(target=listen, daemon=True).start()
    return child


def _failure(
    child: subprocess.Popen[str], words: dict[str, Any] | None, stop: int
) -> Failure | None:
    """How a run has ended: by its last words, or without any."""
    with contextlib.suppress(BrokenPipeError), child:  # closes its streams and waits
        pass
    if words is not None:
        status = 128 + stop if words["status"] > 128 and stop else words["status"]
        return words["failure"] and Failure(words["failure"], status)
    if stop:  # it came before the child could hear it
        return _stopped_early(stop)
    ended = (
        signal.Signals(-child.returncode).name
        if child.returncode < 0
        else f"exit status {child.returncode}"
    )
    return Failure(f"its process was ended from outside ({ended})")


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
