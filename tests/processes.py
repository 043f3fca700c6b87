"""Commands in real processes that begin at once: forked from one that has torch and MNIST in
memory.

`multiprocessing`'s forkserver imports this module and `preloaded` once. A child of the campaign
cuts the data to a few hundred images."""

import contextlib
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from unittest import mock

import torch

from mnas.training import data

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"
torch.set_num_threads(1)  # a pool of threads would not survive the fork; children make their own
LOADED = data.load("mnist")


def cut(validation, others=None):
    """MNIST with so many images of each split."""
    splits = (
        LOADED.train.first(others),
        LOADED.validation.first(validation),
        LOADED.test.first(others),
    )
    return data.Data(*splits, True, LOADED.sha256)


def context():
    """Processes that are forked from one with this module in memory."""
    tests = str(Path(__file__).parent)
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path != tests]
    os.environ["PYTHONPATH"] = os.pathsep.join([tests, *filter(None, others)])
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["processes", "preloaded"])
    return found


def tool(name, *arguments, cwd=ROOT, before=None, validation=None):
    """A command as a user runs it: its exit status, stdout and stderr. before: called in the new
    process. validation: so many images of MNIST's for it, because short runs spend their time
    there; all for None."""
    with tempfile.TemporaryDirectory() as said:
        child = begin(Path(said), name, *arguments, cwd=cwd, before=before, validation=validation)
        child.join(600)
        if child.exitcode is None:
            child.kill()
            raise AssertionError(f"{name} {arguments} hangs")
        texts = [(Path(said) / stream).read_text() for stream in ("stdout", "stderr")]
    return subprocess.CompletedProcess([name, *arguments], child.exitcode, *texts)


def begin(said, name, *arguments, cwd=ROOT, before=None, validation=None):
    """The process of a command, under way, which writes into the files stdout and stderr of the
    folder `said`; the rest as for `tool`."""
    child = context().Process(target=_tool, args=(name, arguments, cwd, before, validation, said))
    child.start()
    return child


def together(script, arguments, timeout=120):
    """A script in several processes at a time, one for each list of arguments: their exit statuses.
    They reach each other over the loopback."""
    children = [context().Process(target=_script, args=(script, each)) for each in arguments]
    for child in children:
        child.start()
    try:
        for child in children:
            child.join(timeout)
        return [child.exitcode for child in children]  # None: it hangs
    finally:
        for child in children:
            child.kill()


def _script(script, arguments):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.chdir(ROOT)
    sys.argv = ["-c", *map(str, arguments)]
    exec(script, {"__name__": "__main__"})


def _tool(name, arguments, cwd, before, validation, said):
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(said / stream, os.O_CREAT | os.O_WRONLY), number)
    os.chdir(cwd)
    data.load = remembering(validation)
    if before:
        before()
    sys.argv = [f"{name}.py", *map(str, arguments)]
    runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")


def remembering(validation=None, others=None, real=data.load):
    """`data.load` that has MNIST in memory, cut."""
    found = cut(validation, others)

    def load(dataset, root="data", resolution=None):
        known = dataset == "mnist" and resolution is None
        return found if known else real(dataset, root, resolution)

    return load


def _prepare():
    torch.set_num_threads = lambda _: None
    data.load = remembering(60, others=200)


def kill_at(step):
    """SIGKILL to this process before its write number `step`: a file that is made, synced, renamed
    or removed. Returns a list with one number for each write so far."""
    done = []

    def guarded(real, writes=lambda *_: True):
        def call(*arguments, **options):
            if writes(*arguments):
                if len(done) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                done.append(len(done))
            return real(*arguments, **options)

        return call

    os.open = guarded(os.open, lambda _, flags, *__: flags & os.O_CREAT)
    for name in ("fsync", "mkdir"):
        setattr(os, name, guarded(getattr(os, name)))
    for name in ("replace", "unlink"):
        setattr(Path, name, guarded(getattr(Path, name)))
    return done


def once(name, *arguments):
    """One tool in this process: its status and what it wrote to stdout and stderr; a traceback is
    status 99."""
    if "mnas.training.one_run" in sys.modules:
        sys.modules["mnas.training.one_run"]._load.cache_clear()
    out, error = io.StringIO(), io.StringIO()
    sys.argv = [f"{name}.py", *map(str, arguments)]
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
        except SystemExit as exit_:
            status = exit_.code or 0
        except BaseException:
            traceback.print_exc()
            status = 99
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return status, out.getvalue(), error.getvalue()


def alone(name, arguments, step, report):
    """For a child: one tool, killed at a write, or not for None. report: the connection that takes
    what it says, and how often it wrote."""
    _prepare()
    writes = kill_at(step)
    report.send((*once(name, *arguments), len(writes)))


def serve(connection):
    """For a child: one job after another, each of them a tool or an exported network, until none is
    sent."""
    _prepare()
    while (job := connection.recv()) is not None:
        kind, *arguments = job
        if kind == "load":
            connection.send(logits(*arguments))
        elif kind == "report without images":  # they take most of its time
            with mock.patch("matplotlib.figure.Figure.savefig", _no_image):
                connection.send(once("report", *arguments))
        else:
            connection.send(once(kind, *arguments))


def _no_image(_, file, **__):
    file.write_bytes(b"")


def logits(folder):
    """The exported network in `folder` on one batch: like `once`."""
    try:
        module = runpy.run_path(str(Path(folder) / "model.py"))
        found = module["load"]()(LOADED.test.images[:4])
    except (OSError, ValueError) as error:
        return 2, "", f"error: {' '.join(str(error).split())}\n"
    except BaseException:
        return 99, "", traceback.format_exc()
    return 0, str(found.tolist()), ""
