"""Tools in forked children of one process that has torch and MNIST in memory: hundreds of real processes, real kills.

The parent (`multiprocessing`'s forkserver) imports this module once. A child cuts the data to a few hundred images, is
one thread wide, and writes what the tool says to a file.
"""

import contextlib
import io
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

import torch

from mnas import data

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
LOADED = data.load("mnist")
SMALL = data.Data(LOADED.train.first(200), LOADED.validation.first(60), LOADED.test.first(60), True, LOADED.sha256)


def context():
    """Processes that are forked from one with this module in memory."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["worker"])
    return found


def _prepare():
    torch.set_num_threads(1)
    torch.set_num_threads = lambda _: None
    real = data.load
    data.load = lambda dataset, root="data": SMALL if dataset == "mnist" else real(dataset, root)


def kill_at(step):
    """SIGKILL to this process before its write number `step`: a file that is made, synced, renamed or removed. Returns
    a list with one number for each write so far."""
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
    """One tool in this process: its status and what it wrote to stdout and stderr; a traceback is status 99."""
    if "one_run" in sys.modules:
        sys.modules["one_run"]._load.cache_clear()
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
    """For a child: one tool, killed at a write, or not for None. report: the connection that takes what it says, and
    how often it wrote."""
    _prepare()
    writes = kill_at(step)
    report.send((*once(name, *arguments), len(writes)))


def serve(connection):
    """For a child: one job after another, each of them a tool or an exported network, until none is sent."""
    _prepare()
    while (job := connection.recv()) is not None:
        kind, *arguments = job
        connection.send(logits(*arguments) if kind == "load" else once(kind, *arguments))


def logits(folder):
    """The exported network in `folder` on one batch: like `once`."""
    try:
        module = runpy.run_path(str(Path(folder) / "model.py"))
        found = module["load"]()(SMALL.test.images[:4])
    except (OSError, ValueError) as error:
        return 2, "", f"error: {' '.join(str(error).split())}\n"
    except BaseException:
        return 99, "", traceback.format_exc()
    return 0, str(found.tolist()), ""
