"""Several runs at a time: the same files as one after the other, also when some of it fails or is
killed."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from conftest import forget
from extent import WHOLE
from processes import tool
from running import ARCHS, SWEEP, in_process, same_sweeps

from mnas.errors import Failure
from mnas.training import data, engines, one_run, progress, runtime, sweep
from mnas.training.one_run import Run
from mnas.training.run_directory import RunDirectory

SHORT = (*SWEEP, "--limit-train", 1000, "--validate-every", 2)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "serial"
    done = tool("train", *SHORT, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_two_at_a_time_write_what_one_after_the_other_writes(serial, tmp_path):
    out, printed = serial
    done = tool("train", *SHORT, "--jobs", 2, "--out", tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, "")
    same_sweeps(out, tmp_path / "run")
    epochs = [line for line in done.stdout.splitlines() if ": epoch " in line]
    assert sorted(epochs) == [line for line in printed.splitlines() if ": epoch " in line]
    assert [line.partition(":")[0] for line in sorted(epochs)] == [
        arch for arch in ARCHS for _ in (1, 2)
    ]
    assert re.search(r"s of training; results in .*run\n$", done.stdout)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failed_run_does_not_end_the_others(jobs, serial, tmp_path):
    out, run = serial[0], tmp_path / "run"
    shutil.copytree(out, run)
    forget(run, "summary.json", "metrics.jsonl", "checkpoint.pt")
    forget(run / ARCHS[0], "summary.json")
    whole = (run / ARCHS[0] / "checkpoint.pt").read_bytes()
    (run / ARCHS[0] / "checkpoint.pt").write_bytes(whole[:-100])
    for arch in ARCHS[2:]:
        shutil.rmtree(run / arch)
    (run / ARCHS[2]).write_text("a file")
    done = tool("train", "--resume", "--out", run, "--jobs", jobs)
    error = done.stderr
    assert (done.returncode, error.count("\n")) == (1, 1), error
    assert error.startswith(
        f"error: 2 of 4 runs failed ({ARCHS[0]}: {run / ARCHS[0]}/checkpoint.pt is damaged"
    )
    assert f"; {ARCHS[2]}: " in error
    assert error.endswith(f"; continue with --resume --out {run}\n")
    assert (run / ARCHS[3] / "summary.json").exists()
    assert not (run / "summary.json").exists()
    (run / ARCHS[0] / "checkpoint.pt").write_bytes(whole)
    (run / ARCHS[2]).unlink()
    # Two that go on: test_sweep_kills.py.
    done = tool("train", "--resume", "--out", run, "--jobs", jobs if WHOLE else 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{ARCHS[0]}: continuing at step 40 of 40" in done.stdout
    same_sweeps(out, run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--mode", "scratch", "--arch", "all", "--jobs", 0],
            'Invalid value "0" for --jobs. Must be > 0',
        ),
        (
            ["--mode", "supernet", "--jobs", 2],
            "--jobs 2 is for --mode scratch --arch all; expected 1, leave it out",
        ),
        (
            ["--mode", "scratch", "--arch", ARCHS[0], "--jobs", 3],
            "--jobs 3 is for --mode scratch --arch all",
        ),
    ],
)
def test_bad_jobs_are_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    status, _, error = in_process(
        monkeypatch, capsys, "train", *arguments, "--out", tmp_path / "run"
    )
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("jobs", "threads", "expected", "noted"),
    [(1, (), 6, False), (4, (), 1, False), (9, (), 1, True), (2, (4,), 4, True)],
)
def test_threads_are_divided_and_too_many_are_noted(
    jobs, threads, expected, noted, tmp_path, monkeypatch, capsys
):
    trained = []
    monkeypatch.setattr(runtime, "cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(
        sweep, "train", lambda runs, *_: trained.extend(runs) or [Failure("enough")] * len(runs)
    )
    given = [word for number in threads for word in ("--threads", number)]
    arguments = (
        "--mode",
        "scratch",
        "--arch",
        "all",
        "--jobs",
        jobs,
        *given,
        "--out",
        tmp_path / "run",
    )
    status, _, error = in_process(monkeypatch, capsys, "train", *arguments)
    assert status == 1
    assert [run.name for run in trained] == ARCHS
    assert {run.config["threads"] for run in trained} == {expected}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["threads"] == expected
    assert "jobs" not in trained[0].config
    assert (f"note: --jobs {jobs} with --threads {expected} each on 6 cores" in error) == noted


RESULT = {"arch": "a", "val_top1": 0.5, "test_top1": 0.5, "test_loss": None, "params": 1, "macs": 1}
SUMMARY = {
    "mode": "scratch",
    "space": "mil4",
    "dataset": "mnist",
    "train_seconds": 1,
    "paths": [RESULT],
}


def run_of(path, name="a"):
    return Run(Path(path), {}, name)


def test_outcomes_follow_the_runs_whatever_is_raised(tmp_path, monkeypatch, capsys):
    """Mixed runs: one is finished already, one fails as foreseen, one does not, one is fine."""
    runs = [run_of(tmp_path / name, name) for name in ("done", "failed", "bug", "fine")]
    begun = []

    def train(run, report, *_):
        begun.append(run.name)
        if run.name == "failed":
            raise Failure("loss is nan")
        if run.name == "bug":
            raise KeyError("x")
        finish(run)

    def finish(run):
        directory = RunDirectory(run.path)
        directory.create({"name": run.name})
        directory.finish(SUMMARY | {"seed": len(run.name)})

    finish(runs[0])
    monkeypatch.setattr(one_run, "train", train)
    outcomes = sweep.train(runs, 1, tmp_path, 200)
    assert begun == ["failed", "bug", "fine"]
    assert [outcomes[number]["seed"] for number in (0, 3)] == [4, 4]
    assert [str(o) for o in outcomes[1:3]] == ["loss is nan", "KeyError: 'x'"]
    printed, error = capsys.readouterr()
    assert "Traceback" in error
    assert printed == "failed: failed: loss is nan\nbug: failed: KeyError: 'x'\n"
    with pytest.raises(
        Failure,
        match=r"2 of 4 runs failed \(failed: .*; bug: KeyError: 'x'\); continue with this$",
    ):
        sweep.check(runs, outcomes, "this")
    sweep.check(runs[:1], outcomes[:1], "this")


def test_after_a_signal_no_further_run_begins(tmp_path, monkeypatch):
    runs = [run_of(tmp_path / name, name) for name in ("a", "b", "c")]
    trained = []

    def configure(*_):
        trained.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
        raise Failure("stopped at step 3 of 9", status=128 + signal.SIGTERM)

    monkeypatch.setattr(runtime, "configure_runtime", configure)
    before = signal.getsignal(signal.SIGTERM)
    outcomes = sweep.train(
        [Run(run.path, {"threads": 1, "keep_memory": True}, run.name) for run in runs],
        1,
        tmp_path,
        200,
    )
    assert signal.getsignal(signal.SIGTERM) is before
    assert trained == [True]
    assert [str(o) for o in outcomes] == [
        "stopped at step 3 of 9",
        *["stopped before it began"] * 2,
    ]
    with pytest.raises(
        Failure, match=r"^stopped with 0 of 3 runs finished; continue with this$"
    ) as raised:
        sweep.check(runs, outcomes, "this")
    assert raised.value.status == 143


def test_runtime_settings_reach_the_run_and_can_be_switched_off(tmp_path, monkeypatch):
    seen, orders = [], []
    monkeypatch.setattr(data, "load", processes.remembering(100))
    one_run._load.cache_clear()
    monkeypatch.setattr(runtime, "configure_runtime", lambda *settings: seen.append(settings))
    monkeypatch.setattr(
        runtime, "in_memory_order", lambda images, last: orders.append(last) or images
    )
    for on in (True, False):
        config = {
            **one_run.DEFAULTS["scratch"],
            "mode": "scratch",
            "arch": ARCHS[0],
            "limit_train": 64,
        }
        config |= {"limit_test": 8, "threads": 1, "keep_memory": on, "channels_last": on}
        one_run.train(Run(tmp_path / str(on), config, "a"), lambda *_, **__: 0, tmp_path, 200)
    assert seen == [(1, True), (1, False)]
    assert orders == [True] * 3 + [False] * 3


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_counts_the_steps_of_all_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress.Interruption() as interruption:
        shown = progress.Progress(4, interruption)
        assert shown.report("a") == 0
        shown.report("a", step=10, total=30, loss=2.0)
        shown.report("b", step=5, total=30, loss=1.0)
        shown.report("a", "epoch 1", step=30, total=30, loss=0.5)
        shown.end("a", None)
        assert (shown.bar.n, shown.bar.total) == (35, 120)
        assert shown.bar.postfix == "1 of 4 runs ended, b 1.000"
        os.kill(os.getpid(), signal.SIGINT)
        assert shown.report("b", step=6, total=30, loss=0.9) == signal.SIGINT
        shown.bar.close()
    assert "36/120" in terminal.getvalue()
    assert capsys.readouterr().out == "a: epoch 1\n"


def test_a_child_that_says_nonsense_or_nothing_is_a_failed_run(tmp_path, monkeypatch):
    """Whatever becomes of a child: the run has failed, and the others are trained."""
    runs = [run_of(tmp_path / name, name) for name in ("a", "b", "c")]
    monkeypatch.setattr(sweep, "_longest_first", list)
    script = (
        "import os, sys\n"
        'name = sys.stdin.readline().split(\'"name": "\')[1][0]\n'
        "if name == 'a': os.kill(os.getpid(), 9)\n"
        "if name == 'b': sys.exit(3)\n"
        'print(\'{"failure": "too late", "status": 2}\', flush=True)\n'
    )
    real = subprocess.Popen
    monkeypatch.setattr(
        engines.subprocess,
        "Popen",
        lambda _, **options: real([sys.executable, "-c", script], **options),
    )
    outcomes = sweep.train(runs, 2, tmp_path, 200)
    reasons = [
        "its process was ended from outside (SIGKILL)",
        "its process was ended from outside (exit status 3)",
    ]
    assert [str(outcome) for outcome in outcomes] == [*reasons, "too late"]


@pytest.mark.slow
def test_what_libraries_print_in_a_child_is_no_word_of_the_run(tmp_path, monkeypatch):
    """oneDNN, MKL and others write to descriptor 1 past Python."""
    monkeypatch.setenv("ONEDNN_VERBOSE", "1")
    settings = {"mode": "scratch", "limit_train": 128, "limit_test": 8, "epochs": 1, "threads": 1}
    settings = {
        **one_run.DEFAULTS["scratch"],
        "keep_memory": True,
        "channels_last": True,
    } | settings
    runs = [Run(tmp_path / arch, {**settings, "arch": arch}, arch) for arch in ARCHS[:2]]
    outcomes = sweep.train(runs, 2, tmp_path, 200)
    assert [outcome["paths"][0]["arch"] for outcome in outcomes] == ARCHS[:2]
