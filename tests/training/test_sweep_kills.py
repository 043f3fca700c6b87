"""Several runs at a time, stopped, killed or orphaned: nothing is lost or left running."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from extent import WHOLE
from processes import tool
from running import ARCHS, SWEEP, same_sweeps

LONG = (*SWEEP, "--limit-train", 2500, "--checkpoint-every", 7)


FIRST = (ARCHS[3], ARCHS[1])  # two at a time, the longest runs come first


@pytest.fixture
def started(tmp_path):
    """A sweep of two processes, in a session of its own, so that all its processes can be found and
    reached."""
    out = tmp_path / "run"
    command = [sys.executable, ROOT / "tools" / "train.py", *LONG, "--jobs", 2, "--out", out]
    process = subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process, out
    for pid in in_session(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def underway(started):
    """That trains two networks right now."""
    process, out = started
    until(
        lambda: (
            all((out / arch / "checkpoint.pt").exists() for arch in FIRST)
            or process.poll() is not None
        )
    )
    assert process.poll() is None, process.communicate()
    return started


def in_session(session):
    """The living processes of a session, by id, with what they run."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, sid, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(sid) == session and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:  # it has just ended
            continue
    return found


def workers(process):
    return [
        pid for pid, command in in_session(process.pid).items() if "mnas.training.child" in command
    ]


def until(condition, timeout=120):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "whole"
    assert tool("train", *LONG, "--out", out).returncode == 0
    return out


def resumed_is_whole(out, whole, jobs=2 if WHOLE else 1):
    """One network after the other takes a third of the time: one case has two at every push."""
    assert not (out / "summary.json").exists()
    done = tool("train", "--resume", "--out", out, "--jobs", jobs)
    assert (done.returncode, done.stderr) == (0, "")
    assert "continuing at step" in done.stdout
    same_sweeps(whole, out)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("Ctrl-C", marks=pytest.mark.slow),
        pytest.param("SIGTERM", marks=pytest.mark.nightly),
    ],
)
def test_a_stopped_sweep_saves_leaves_nothing_running_and_continues(case, underway, whole):
    process, out = underway
    number = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}[case]
    os.killpg(process.pid, number)  # as a terminal does, systemd and Slurm: all processes hear it
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert re.fullmatch(
        rf"error: stopped with [01] of 4 runs finished; continue with --resume --out {out}\n", error
    )
    until(lambda: not in_session(process.pid), 5)
    resumed_is_whole(out, whole, 2 if case == "Ctrl-C" else 1)


@pytest.mark.slow
def test_ctrl_c_while_workers_begin_is_as_quiet(started):
    process, out = started
    until(lambda: workers(process))
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        error == f"error: stopped with 0 of 4 runs finished; continue with --resume --out {out}\n"
    )
    until(lambda: not in_session(process.pid), 5)


@pytest.mark.slow
def test_a_killed_child_is_one_line_and_the_others_are_trained(underway, whole):
    process, out = underway
    os.kill(workers(process)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1, error
    reason = r"its process was ended from outside \(SIGKILL\)"
    assert re.fullmatch(
        rf"error: 1 of 4 runs failed \(.*: {reason}\); continue with --resume --out {out}\n", error
    )
    until(lambda: not in_session(process.pid), 5)
    resumed_is_whole(out, whole)


@pytest.mark.slow
def test_workers_of_a_killed_parent_save_and_end(underway, whole):
    process, out = underway
    before = [(out / arch / "checkpoint.pt").stat().st_mtime_ns for arch in FIRST]
    process.kill()
    until(lambda: not in_session(process.pid), 10)
    after = [(out / arch / "checkpoint.pt").stat().st_mtime_ns for arch in FIRST]
    assert all(a > b for a, b in zip(after, before, strict=True))
    assert not any((out / arch).exists() for arch in set(ARCHS) - set(FIRST))
    resumed_is_whole(out, whole)
