"""A real dask cluster of this machine: a scheduler and workers, each a process in a session of its
own, as a user starts them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT


def until(condition, timeout=240):
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


class Cluster:
    """file: in which the scheduler has written its address. Workers have one thread and no nanny,
    so that a kill is a kill."""

    def __init__(self, folder, allowed_failures=3):
        self.folder, self.file = Path(folder), Path(folder) / "scheduler.json"
        self._processes = []
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        own = {
            "SCHEDULER__ALLOWED_FAILURES": str(allowed_failures),
            # What idle processes do all the time, which a busy machine has no cores for.
            "ADMIN__TICK__INTERVAL": "1s",
            "ADMIN__SYSTEM_MONITOR__INTERVAL": "10s",
            "WORKER__PROFILE__ENABLED": "False",
        }
        self._environment |= {f"DASK_DISTRIBUTED__{key}": value for key, value in own.items()}
        command = ("scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0")
        self.scheduler = self._start(*command, "--scheduler-file", self.file)
        until(lambda: self.file.exists() and self.file.read_text().endswith("}"))

    def worker(self, directory=None, **environment):
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
        place = ("--scheduler-file", self.file, "--local-directory", self.folder)
        return self._start("worker", *place, *options, cwd=directory, **environment)

    def _start(self, what, *options, cwd=None, **environment):
        with (self.folder / f"{what}{len(self._processes)}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + what, *map(str, options)],
                stdout=log,
                stderr=log,
                cwd=cwd or self.folder,
                env={**self._environment, **environment},
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def close(self):
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def child_of(process):
    """The process that trains a run for this worker; None if there is none."""
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/{process.pid}/task").glob("*/children"):
            for child in pid.read_text().split():
                if "mnas.training.child" in Path(f"/proc/{child}/cmdline").read_text():
                    return int(child)
    return None
