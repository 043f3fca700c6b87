"""Independent training runs: one after the other in this process, or several at a time in processes of joblib.

A library for tools, no command line. Both ways train by `one_run.train`, so that rows do not depend on how many run at
once. Only this process hears Ctrl-C and SIGTERM: a worker reports to it while it trains, and the answer tells it to
stop. A worker that gets no answer has lost its parent, and stops too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import one_run
import progress
from common import Failure
from one_run import Report, Run
from progress import Progress

if TYPE_CHECKING:
    from mnas.checkpoint import RunDirectory

IDLE = 5  # seconds after which a worker without work ends, so that memory is free, and no orphan waits

Work = Callable[[Run, Report], "Failure | None"]
Ended = Iterator[tuple[str, "Failure | None"]]  # runs by name, as they end


def train(runs: list[Run], jobs: int, data_root: Path, checkpoint_every: int) -> list[dict[str, Any] | Failure]:
    """Every run from where its directory stands to its end; one that fails does not end the others.

    jobs: how many at a time. Returns, in the order of the runs, the summary or why there is none.
    """
    from mnas.checkpoint import RunDirectory

    directories = {run.name: RunDirectory(run.path) for run in runs}
    pending = [run for run in runs if not _is_finished(directories[run.name])]
    work = functools.partial(_attempt, data_root=data_root, checkpoint_every=checkpoint_every)
    jobs = min(jobs, len(pending))
    failures: dict[str, Failure | None] = {}
    with progress.Interruption() as interruption:
        shown = Progress(len(pending), interruption)
        ended = _in_workers(pending, jobs, work, shown) if jobs > 1 else _in_turn(pending, work, shown)
        with shown.bar, contextlib.closing(ended):
            for name, failure in ended:
                failures[name] = failure
                shown.end(name, failure)
    lost = Failure("a worker process was killed, and the others with it")
    return [
        failures.get(name) or (_summary(directory) if _is_finished(directory) else lost)
        for name, directory in directories.items()
    ]


def _is_finished(directory: RunDirectory) -> bool:
    """False also for a directory that is damaged: what trains it says why."""
    from mnas.files import FolderError

    with contextlib.suppress(FolderError):
        return directory.finished
    return False


def _summary(directory: RunDirectory) -> dict[str, Any] | Failure:
    from mnas.files import FolderError

    try:
        return directory.summary()
    except FolderError as error:
        return Failure(str(error), status=2)


def check(runs: list[Run], outcomes: list[dict[str, Any] | Failure], how: str) -> None:
    """End the tool with one line if runs have failed or were stopped. how: to continue."""
    failures = [
        (run.name, outcome) for run, outcome in zip(runs, outcomes, strict=True) if isinstance(outcome, Failure)
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
    parts = [f"stopped with {len(runs) - len(failures)} of {len(runs)} runs finished"] if status > 128 else []
    if names:
        reasons = "; ".join(f"{', '.join(those)}: {reason}" for reason, those in names.items())
        parts.append(f"{sum(map(len, names.values()))} of {len(runs)} runs failed ({reasons})")
    raise Failure(f"{', '.join(parts)}; continue with {how}", status if status > 128 else 1)


def _attempt(run: Run, report: Report, data_root: Path, checkpoint_every: int) -> Failure | None:
    try:
        one_run.train(run, report, data_root, checkpoint_every)
    except Failure as failure:
        return failure
    except Exception as error:  # no memory left, or a mistake of ours: the other runs go on
        traceback.print_exc()
        return Failure(f"{type(error).__name__}: {error}")
    return None


def _in_turn(runs: list[Run], work: Work, shown: Progress) -> Ended:
    for run in runs:
        yield run.name, work(run, shown.report)


def _in_workers(runs: list[Run], jobs: int, work: Work, shown: Progress) -> Ended:
    """Ends early if a worker is killed: joblib then kills the others, because their queues may be broken."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    # joblib replaces a worker whose memory has grown by more than it likes, and says so; ours keep what they freed.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    ordered = _longest_first(runs)
    pool = Parallel(jobs, "loky", "generator_unordered", batch_size=1, pre_dispatch="all", idle_worker_timeout=IDLE)
    with Listener(backlog=jobs) as listener:
        threading.Thread(target=progress.answer, args=(listener, len(runs), shown), daemon=True).start()
        resource_tracker.ensure_running()  # which joblib would do below, and Python's unblocks signals when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, progress.SIGNALS)  # the workers inherit that, and keep it
        try:
            results = pool(delayed(_in_worker)(run, work, listener.address) for run in ordered)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            with contextlib.suppress(BrokenProcessPool):
                yield from results
        finally:
            get_reusable_executor(reuse=True).shutdown(kill_workers=True)  # a second sooner: they have nothing to lose


def _longest_first(runs: list[Run]) -> list[Run]:
    """By epochs times multiply-accumulates, so that no worker is left alone with a long run at the end."""
    from mnas import cost, spaces

    with common.user_input():
        named = {name: spaces.get(name) for name in {run.config["space"] for run in runs}}

    def work(run: Run) -> float:
        space = named[run.config["space"]]
        path = space.parse(run.config["arch"]) if run.config.get("arch") else next(space.paths())
        return run.config["epochs"] * cost(space, path).macs

    return sorted(runs, key=work, reverse=True)


def _in_worker(run: Run, work: Work, address: str) -> tuple[str, Failure | None]:
    reports = progress.Reports(address)
    failure = work(run, reports)
    if reports.lost:
        os._exit(1)  # nobody waits for the result, and there is nothing more to do
    return run.name, failure
