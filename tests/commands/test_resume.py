"""Runs that are killed, stopped or out of disk continue as if nothing had been."""

import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from processes import begin, tool
from running import ARCHS, QUICK, same_results


def start(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "train.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed(said, file, *arguments, pause=0.0, timeout=120):
    """A training that gets SIGKILL when it has written the file, and so many seconds have passed.
    said: a new folder for what it prints."""
    said.mkdir()
    child = begin(said, "train", *arguments, validation=VALIDATION)
    deadline = time.monotonic() + timeout
    while not file.exists():
        assert child.exitcode is None, (said / "stderr").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(pause)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def train(*arguments, **options):
    return tool("train", *arguments, validation=VALIDATION, **options)


VALIDATION = 300  # images, in forked processes
# Others validate with all images: they are stopped before, because it is done at the end alone.
LONGER = (
    "--limit-train",
    3000,
    "--limit-test",
    500,
    "--batch-size",
    50,
    "--epochs",
    2,
    "--lr",
    0.02,
)
LONGER += ("--checkpoint-every", 7, "--validate-every", 2)


@pytest.mark.slow
def test_a_killed_and_a_stopped_run_continue_as_if_nothing_had_been(tmp_path):
    """Killed, then stopped by Ctrl-C; kills at every write of all modes: tests/campaign."""
    arguments = ("--mode", "supernet", "--sampler", "fair")
    whole, out = tmp_path / "a", tmp_path / "b"
    done = train(*arguments, *LONGER, "--out", whole)
    assert done.returncode == 0, done.stderr
    arguments += (*LONGER, "--out", out)
    killed(tmp_path / "said", out / "checkpoint.pt", *arguments, pause=0.1)
    assert not (out / "summary.json").exists()
    step = torch.load(out / "checkpoint.pt", weights_only=True)["trainer"]["step"]
    process = start("--resume", "--out", out)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        now = torch.load(out / "checkpoint.pt", weights_only=True)["trainer"]["step"]
        if now > step:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert re.match(r"error: stopped at step \d+ of 120; continue with --resume --out", error)
    done = train("--resume", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "continuing at step" in done.stdout
    same_results(whole, out)


@pytest.mark.nightly  # every push kills a sweep at every write (tests/campaign/test_kills.py)
def test_a_killed_sweep_keeps_finished_networks(tmp_path):
    whole, out = tmp_path / "a", tmp_path / "b"
    arguments = ("--mode", "scratch", "--arch", "all", *QUICK)
    assert train(*arguments, "--out", whole).returncode == 0
    killed(tmp_path / "said", out / ARCHS[0] / "summary.json", *arguments, "--out", out)
    assert not (out / "summary.json").exists()
    finished = (out / ARCHS[0] / "summary.json").stat().st_mtime_ns
    done = train("--resume", "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / ARCHS[0] / "summary.json").stat().st_mtime_ns == finished
    same_results(whole, out)


@pytest.mark.parametrize(
    "execution",
    [
        pytest.param("sliced", marks=pytest.mark.slow),
        pytest.param("masked", marks=pytest.mark.nightly),
    ],
)
def test_same_seed_is_bit_identical_in_two_processes(execution, tmp_path):
    for name in ("a", "b"):
        done = train(
            "--mode",
            "supernet",
            "--execution",
            execution,
            *QUICK,
            "--out",
            tmp_path / name,
        )
        assert done.returncode == 0, done.stderr
    same_results(tmp_path / "a", tmp_path / "b")


def no_space():
    """Files may not grow beyond 100 kB, less than a checkpoint."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    out = tmp_path / "run"
    killed(tmp_path / "said", out / "checkpoint.pt", "--mode", "supernet", *LONGER, "--out", out)
    before = (out / "checkpoint.pt").read_bytes()
    (out / ".times.json.0123456789abcdef.mnas").write_text(
        "{"
    )  # as a kill in the middle of a write leaves it
    done = train("--resume", "--out", out, before=no_space)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: cannot write to .*run \(.*\); what it held before is intact\n", done.stderr
    )
    assert (out / "checkpoint.pt").read_bytes() == before
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    assert train("--resume", "--out", out).returncode == 0
