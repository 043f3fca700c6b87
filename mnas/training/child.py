"""One training run in a process of its own: the run is read from stdin, what it reports is written
to stdout.

Both are lines of JSON; the parent has an `engines.Child`. The end of stdin stops the run between
two steps: the parent wants it to, or is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mnas.storage.files import LOCK_SECONDS
from mnas.training import sweep
from mnas.training.one_run import Run
from mnas.training.progress import Interruption

REPORT_EVERY = 0.1  # seconds: seldom enough to cost nothing


def main() -> None:
    """The last line says how the run ended: `failure` (null if well) and `status`."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print, as under ONEDNN_VERBOSE=1, is no word of ours

    def say(words: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # as for the end of stdin
            said.write(json.dumps(words) + "\n")
            said.flush()

    job = json.loads(sys.stdin.readline())
    run = Run(Path(job["path"]), job["config"], job["name"], job.get("patience", LOCK_SECONDS))
    every = job.get("report_every", REPORT_EVERY)
    with Interruption() as interruption:
        threading.Thread(target=_outlive_no_parent, args=(interruption,), daemon=True).start()
        due = 0.0

        def report(name: str, line: str | None = None, **state: Any) -> int:
            nonlocal due
            if line is not None or time.monotonic() >= due:
                due = time.monotonic() + every
                say({"line": line, **state})
            return interruption.signal

        failure = sweep.attempt(
            run, report, Path(job["data_root"]), job["checkpoint_every"], log=job["log"]
        )
    say({"failure": failure and str(failure), "status": failure.status if failure else 0})


def _outlive_no_parent(interruption: Interruption) -> None:
    while os.read(0, 1):
        pass
    interruption.signal = interruption.signal or signal.SIGHUP


if __name__ == "__main__":
    main()
