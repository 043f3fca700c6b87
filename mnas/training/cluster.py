"""Runs of a sweep on the workers of a dask cluster, which see the same files as this process.

A task of dask starts the child process that `engines.Local` would start, and passes on what it
says: words are events of a topic, the last ones the result of the task. So dask decides where a run
is trained, and again where, if it loses a worker; the child and the run directory see to the rest.
What is begun again goes on from the last checkpoint, once the child of the lost worker, which stops
by itself, has let go of the directory.

A worker imports this module, so it imports torch and distributed in functions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import queue
import secrets
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mnas.errors import Failure, check_extra, writing
from mnas.training.engines import Child, Job, Words

if TYPE_CHECKING:
    from distributed import Client, Future, Worker

ANSWER = 10.0  # seconds in which a scheduler answers
HEARD = 1.0  # seconds in which a task hears that it is to stop, and between reports of its step
AGAIN = 5  # times at most that a run is handed in anew whose workers die before it begins
PATIENCE = 120.0
"""Seconds to wait for a run directory that another child has: that of a lost worker, which saves
its last step, or, after a power cut, a file server's memory of its lock."""


@contextlib.contextmanager
def chosen(backend: str, scheduler: str | None) -> Iterator[Client | None]:
    """The cluster that the user has asked for, by these options or by joblib.parallel_config; None
    for this machine. Raises Failure where it does not answer."""
    if backend == "dask":
        with _connected(scheduler) as client:
            yield client
        return
    if scheduler is not None:
        raise Failure(f"--scheduler {scheduler} is for --backend dask; add that", 2)
    yield ambient()


@contextlib.contextmanager
def _connected(scheduler: str | None) -> Iterator[Client]:
    check_extra("dask", "distributed")
    import dask
    from distributed import Client

    address = scheduler or dask.config.get("scheduler-address", None)
    if address is None:
        raise Failure(
            "--backend dask needs --scheduler: the address that `dask scheduler` prints, as "
            "tcp://10.0.0.1:8786, or its --scheduler-file; for this machine alone leave out "
            "--backend",
            2,
        )
    with _quiet():
        try:
            client = Client(_address(address), timeout=ANSWER, set_as_default=False, name="mnas")
        except (ImportError, OSError, TypeError, ValueError) as error:
            raise Failure(
                f"--scheduler {address} does not answer ({str(error) or type(error).__name__}); "
                "expected the address that `dask scheduler` prints, as tcp://10.0.0.1:8786, or its "
                "--scheduler-file",
                2,
            ) from error
        with client:
            yield client


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is lost is said in a line, here; dask logs tracebacks, by loggers with own levels."""
    logs = [name for name in logging.root.manager.loggerDict if name.startswith("distributed.")]
    before = {log: log.level for log in map(logging.getLogger, ("distributed", *logs))}
    for log in before:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in before.items():
            log.setLevel(level)


def _address(given: str) -> str:
    """given: an address, or a file in which a scheduler has written its own. Raises OSError and
    ValueError."""
    from distributed.comm import get_address_host_port

    if not given.endswith(".json"):
        get_address_host_port(given)  # a client that fails on it leaves a traceback at the end
        return given
    found = json.loads(Path(given).read_text())
    if not isinstance(found, dict) or not isinstance(found.get("address"), str):
        raise ValueError("the file has no address")
    return found["address"]


def ambient() -> Client | None:
    """The cluster of joblib.parallel_config("dask") around the call; None where it names processes
    or threads of this machine, as without it. Raises Failure for clusters of other kinds."""
    joblib = sys.modules.get("joblib.parallel")
    if joblib is None:
        return None
    backend = joblib.get_active_backend()[0]
    room, name = type(backend).__module__, type(backend).__name__
    if room == "joblib._dask":
        return backend.client
    if not room.startswith("joblib."):
        raise Failure(
            f"joblib.parallel_config has a {name}, on which mnas trains nothing; expected dask, or "
            "none around the call",
            2,
        )
    return None


class Dask:
    """An `engines.Engine`: a task for each run. directory: that all runs are below."""

    def __init__(self, client: Client, directory: Path) -> None:
        from distributed import Event

        self.said: queue.SimpleQueue[tuple[str, Words]] = queue.SimpleQueue()
        self._client = client
        self._futures: dict[str, Future] = {}
        self._jobs: dict[str, Job] = {}
        self._workers: defaultdict[str, list[str]] = defaultdict(list)  # on which each has begun
        self._again: Counter[str] = Counter()  # how often each was handed in anew
        self._stopping = False
        self._name = f"mnas-{secrets.token_hex(8)}"  # of topic and event
        self._told = Event(self._name, client=client)
        # Named as a piece of a write: what a kill leaves of it is removed with those.
        self._sign = directory.absolute() / f".cluster.{secrets.token_hex(8)}.mnas"
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._sign.touch()
        self._here = {**_versions(), "directory": str(Path.cwd()), "sign": str(self._sign)}
        try:
            self._check_workers()
        except Failure:
            self._sign.unlink(missing_ok=True)
            raise
        client.subscribe_topic(self._name, self._hear)

    def _check_workers(self) -> None:
        """Before anything is begun; those that join later are compared when they get a run."""
        if not self._client.scheduler_info(n_workers=-1)["workers"]:
            print("note: the cluster has no worker yet; runs begin when it has", file=sys.stderr)
        found = self._client.run(objection, self._here, on_error="return")
        for worker, why in found.items():
            if why is not None:
                why = why if isinstance(why, str) else f"cannot run mnas ({_shown(why)})"
                raise Failure(f"worker {worker} {why}", 2)

    def begin(self, name: str, job: Job) -> None:
        self._jobs[name] = {**job, "patience": PATIENCE, "report_every": HEARD}
        self._submit(name)

    def _submit(self, name: str) -> None:
        key = f"{name} {secrets.token_hex(8)}"
        arguments = (self._jobs[name], self._here, self._name)
        future = self._client.submit(relay, *arguments, key=key, pure=False)
        self._futures[name] = future
        future.add_done_callback(lambda _: self._end(name, future))

    def stop(self) -> None:
        self._stopping = True
        with _if_there():
            self._told.set()
        for name, future in list(self._futures.items()):
            if not self._workers[name]:  # it may wait for a worker for ever
                future.cancel()

    def close(self) -> None:
        with _if_there():
            self._client.cancel(list(self._futures.values()))  # by which what still runs stops
            self._client.unsubscribe_topic(self._name)
            self._told.clear()
        self._sign.unlink(missing_ok=True)

    def _hear(self, event: tuple[float, tuple[str, Words]]) -> None:
        _, (name, words) = event
        if "begins" in words:
            had, now = self._workers[name], words["begins"]
            had.append(now)
            if len(had) == 1:
                return
            words = {"line": f"worker {had[-2]} was lost; goes on with worker {now}"}
        self.said.put((name, words))

    def _end(self, name: str, future: Future) -> None:
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        try:
            words = future.result()
        except KilledWorker as error:
            had, allowed = self._workers[name], error.allowed_failures
            if len(had) <= allowed and self._again[name] < AGAIN and not self._stopping:
                self._again[name] += 1  # it was waiting at one that was lost
                self._submit(name)
                return
            begun = f"({', '.join(had)})" if had else "before it began"
            words = {
                "lost": f"its workers were lost {begun}, more than dask's "
                f"allowed-failures, which is {allowed}"
            }
        except FutureCancelledError:
            words = {"lost": "it was not begun" if self._stopping else "the scheduler was lost"}
        except Exception as error:
            words = {"lost": f"its task failed ({_shown(error)})"}
        self.said.put((name, words))


@contextlib.contextmanager
def _if_there() -> Iterator[None]:
    """Where the scheduler may have gone: then there is nobody to be told."""
    from distributed.client import ClosedClientError

    with contextlib.suppress(ClosedClientError, OSError, RuntimeError):
        yield


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def relay(job: Job, there: dict[str, str], name: str) -> Words:
    """The task: trains a run in a child of the worker. there: `_here` of the process that asks for
    it. name: of its topic, and of the event by which it says stop. Returns the last words."""
    from distributed import Reschedule, get_worker

    worker = get_worker()
    if why := objection(there):
        return {"failure": f"worker {worker.address} {why}", "status": 2}

    def say(words: Words) -> None:
        worker.log_event(name, (job["name"], words))  # to a dict dask would add the worker

    say({"begins": worker.address})
    child = Child(job, there["directory"])
    watch = _Watch(worker, name, child)
    for words in child.words():
        if "status" not in words and "lost" not in words:
            say(words)
    watch.ended.set()
    if words.get("status", 0) > 128 and not watch.told:
        raise Reschedule  # this worker is about to end
    return words


class _Watch:
    """Stops the child when its client says so, when it has gone, and when the worker ends.

    told: whether the client has said so."""

    def __init__(self, worker: Worker, name: str, child: Child) -> None:
        from distributed import Event, worker_client

        self.ended, self.told = threading.Event(), False
        self._worker, self._key, self._child = worker, worker.get_current_task(), child
        with worker_client(separate_thread=False) as client:
            self._event = Event(name, client=client)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while not self.ended.is_set() and self._wanted() and not self.told:
            try:
                self.told = self._event.wait(HEARD)
            except Exception:  # a scheduler that is busy; one that has gone ends the worker
                self.ended.wait(HEARD)
        self._child.stop()

    def _wanted(self) -> bool:
        """dask has no public word for it: a task whose client has gone, or has cancelled it, is
        cancelled in the worker's own state."""
        from distributed.core import Status

        task = self._worker.state.tasks.get(self._key)
        ending = (Status.closing, Status.closed, Status.failed)
        return task is not None and task.state != "cancelled" and self._worker.status not in ending


def objection(there: dict[str, str]) -> str | None:
    """Why runs of a client cannot be trained in this process, in words that follow "worker
    ADDRESS"; None if they can."""
    for package, version in _versions().items():
        if there[package] != version:
            return (
                f"has other {package} ({version}) than the command ({there[package]}); install the "
                "same on all, and start the workers again"
            )
    for path in (there["directory"], there["sign"]):
        if not Path(path).exists():
            return (
                f"does not see {path}; the command, its run directories and all workers need "
                "a common file system, with the same paths"
            )
    return None


def _versions() -> dict[str, str]:
    """What decides about bits: torch's version, and the digest of the code of mnas, which a commit
    does not tell where files were changed."""
    code, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        code.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return {
        "torch": metadata.version("torch"),
        "code of mnas": f"SHA-256 {code.hexdigest()[:12]}",
    }
