"""Where the runs of a sweep are trained when several are at a time: an engine starts a child
process for each, and hears what it says.

`Local` does so on this machine, `cluster.Dask` on the workers of a cluster. The child is the same
(`child`), so that rows do not depend on where they were made."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from mnas.training.progress import SIGNALS

Job = dict[str, Any]  # what a child is told: `child.main` reads it
Words = dict[str, Any]


class Engine(Protocol):
    """said: words by the name of the run: `line`, `step`, `total` and `loss`, as
    `Progress.report` takes them; the last ones are `failure` and `status`, or `lost`, which is why
    there are none."""

    said: queue.SimpleQueue[tuple[str, Words]]

    def begin(self, name: str, job: Job) -> None:
        """Train a run from where its directory stands."""

    def stop(self) -> None:
        """What was begun ends between two steps, saves, and says its last words."""

    def close(self) -> None:
        """As `stop`, and nobody listens any more."""


class Child:
    """A process that trains a run. It finds modules where this process does.

    Signals that stop the parent do not reach it, whoever sends them to all: it would take the
    second for impatience, and save nothing."""

    def __init__(self, job: Job, directory: str | None = None) -> None:
        """directory: that it works in; None for that of this process."""
        script = (
            f"import sys; sys.path[:] = {sys.path!r}; from mnas.training.child import main; main()"
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a child inherits it
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=directory,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with contextlib.suppress(BrokenPipeError):  # killed already
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()

    def words(self) -> Iterator[Words]:
        """What it says, until it ends."""
        last = None
        with contextlib.suppress(ValueError):  # a line that a kill has cut short
            for line in self._process.stdout:
                last = json.loads(line)
                if "status" in last:
                    break
                yield last
        with contextlib.suppress(BrokenPipeError), self._process:  # closes its streams and waits
            pass
        if last and "status" in last:
            yield last
            return
        code = self._process.returncode
        ended = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        yield {"lost": f"its process was ended from outside ({ended})"}

    def stop(self) -> None:
        """By the end of what it reads; it saves where it is."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


class Local:
    """Children of this process, which stop if they lose it."""

    def __init__(self) -> None:
        self.said: queue.SimpleQueue[tuple[str, Words]] = queue.SimpleQueue()
        self._children: list[Child] = []

    def begin(self, name: str, job: Job) -> None:
        child = Child(job)
        self._children.append(child)

        def listen() -> None:
            for words in child.words():
                self.said.put((name, words))

        threading.Thread(target=listen, daemon=True).start()

    def stop(self) -> None:
        for child in self._children:
            child.stop()

    close = stop
