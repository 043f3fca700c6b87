"""`torchrun tools/train.py`: real processes that begin, are killed and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, rows
from running import in_process, same_results

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
QUICK = ("--limit-train", 420, "--limit-test", 60, "--batch-size", 42, "--lr", 0.02)
QUICK += ("--bn", "stored", "--checkpoint-every", 5)
SUPERNET = ("--mode", "supernet", *QUICK, "--epochs", 1)
LONG = ("--mode", "supernet", *QUICK, "--epochs", 12, "--validate-every", 12)


def begin(*arguments, number=2, restarts=0, script=ROOT / "tools" / "train.py"):
    """torchrun, under way."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={number}", f"--max-restarts={restarts}"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [*command, str(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )


def train(*arguments, **options):
    process = begin(*arguments, **options)
    out, error = process.communicate(timeout=240)
    return process.returncode, out, error


def errors(text):
    """The lines of ours."""
    return [line for line in text.splitlines() if line.startswith("error: ")]


def worker(parent, rank):
    """The process of that rank."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"{parent} has no rank {rank}")


def kill(process, out, rank):
    """A rank after the first checkpoint; the moment."""
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (out / "summary.json").exists()
    os.kill(worker(process.pid, rank), signal.SIGKILL)
    return time.monotonic()


@pytest.mark.slow
def test_two_processes_make_one_run_that_others_can_read(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    status, said, error = train(*SUPERNET, "--paths-per-rank", "--out", out)
    assert status == 0, error
    assert said.count("results in") == said.count("supernet: epoch 1") == 1
    config = json.loads((out / "config.json").read_text())
    assert (config["processes"], config["paths_per_rank"]) == (2, True)
    assert {row["step"] for row in rows(out / "metrics.jsonl")} == {10}
    updates = [row["updates"] for row in rows(out / "metrics.jsonl")]
    assert sum(updates) == 20  # two paths a step
    status, said, _ = train("--resume", "--out", out)
    assert (status, said.count("is finished")) == (0, 1)

    def run(*arguments):
        return in_process(monkeypatch, capsys, *arguments, validation=60)

    assert run("evaluate", "--checkpoint", out, "--limit-test", 60)[0] == 0
    status, _, error = run("train", "--resume", "--out", out)
    assert (status, error.count("\n")) == (2, 1)
    assert "was begun with torchrun --nproc_per_node 2, not 1; resume with the same" in error


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_resumes(rank, tmp_path):
    """Bit for bit, as one that nobody has killed, each process with paths of its own."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    process = begin(*LONG, "--paths-per-rank", "--out", out)
    killed = kill(process, out, rank)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode == 1
    (line,) = errors(error)
    assert "another process of this training was killed, has failed or does not answer" in line
    assert not (out / "summary.json").exists()
    status, said, error = train("--resume", "--out", out)
    assert status == 0, error
    assert "continuing at step" in said
    assert train(*LONG, "--paths-per-rank", "--out", whole)[0] == 0
    same_results(out, whole)


@pytest.mark.slow
def test_three_processes_go_on_by_themselves_under_max_restarts(tmp_path):
    out = tmp_path / "run"
    process = begin(*LONG, "--out", out, number=3, restarts=1)
    kill(process, out, 2)
    said, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert said.count("continuing at step") == said.count("results in") == 1
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert state["trainer"]["step"] == 120


RESTARTED = """
import os, time
from mnas.training.processes import joined, restarts

again = restarts("RESTART_COUNT")
if again and os.environ["RANK"] == "0":
    time.sleep(3)  # the others ask for its address before it has one
with joined() as processes:
    ranks = processes.gathered(processes.rank)
    if processes.first:
        print("joined", again, ranks, flush=True)
    if not again and processes.rank == 1:
        raise SystemExit(1)
    processes.gathered(0)
"""


@pytest.mark.slow
def test_restarted_processes_wait_for_the_one_that_is_slow(tmp_path):
    """None takes the address of a process that is gone."""
    script = tmp_path / "restarted.py"
    script.write_text(RESTARTED)
    status, said, error = train(script=script, number=3, restarts=1)
    assert status == 0, error
    assert said.splitlines() == ["joined 0 [0, 1, 2]", "joined 1 [0, 1, 2]"]


STANDING_STILL = """
import sys, time
from datetime import timedelta
from mnas.training import processes

processes.STEP = timedelta(seconds=4)
with processes.joined() as group:
    if group.first:
        time.sleep(8)  # alone, longer than a step may take
    assert group.of_first(group.rank) == 0
    assert group.gathered(group.rank) == [0, 1]
    if not group.first:
        time.sleep(600)
    began = time.monotonic()
    try:
        group.gathered(group.rank)
    except processes.LostError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        print("waited", round(time.monotonic() - began), flush=True)
        raise SystemExit(1)
"""


@pytest.mark.slow
def test_a_process_that_stands_still_is_noticed_and_one_that_works_alone_is_waited_for(tmp_path):
    script = tmp_path / "still.py"
    script.write_text(STANDING_STILL)
    status, said, error = train(script=script)
    assert status == 1
    assert said in ("waited 4\n", "waited 5\n", "waited 6\n"), error
    (line,) = errors(error)
    assert "another process of this training was killed, has failed or does not answer" in line


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_all_after_the_same_step(tmp_path):
    out = tmp_path / "run"
    process = begin(*LONG, "--out", out)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    (line,) = errors(error)
    assert "error: stopped at step" in line
    status, said, error = train("--resume", "--out", out)
    assert status == 0, error
    assert "continuing at step" in said


BAD = {
    "not equal": ((), {"number": 4}, "--batch-size 42 for 4 processes; expected a multiple"),
    "no directory": ((), {"restarts": 1}, "--max-restarts of torchrun needs --out"),
    "a sweep": (
        ("--mode", "scratch", "--arch", "all"),
        {},
        "--arch all is for one process; leave out torchrun, --jobs trains several",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_several_processes_is_one_line(case, tmp_path):
    arguments, options, message = BAD[case]
    given = () if case == "no directory" else ("--out", tmp_path / "run")
    first = () if case == "a sweep" else SUPERNET
    status, _, error = train(*first, *arguments, *given, **options)
    assert status == 1  # torchrun's
    assert len({*errors(error)}) == 1, error
    assert message in error


@pytest.mark.slow
def test_other_commands_are_for_one_process(tmp_path):
    arguments = ("--mode", "supernet", "--out", tmp_path / "out")
    status, _, error = train(*arguments, script=ROOT / "tools" / "study.py")
    assert status == 1
    assert {*errors(error)} == {
        "error: study is for one process, torchrun has started 2; leave out torchrun, which is for "
        "train alone"
    }
    assert not [*tmp_path.iterdir()]


def test_own_paths_need_several_processes(tmp_path, monkeypatch, capsys):
    arguments = (*SUPERNET, "--paths-per-rank", "--out", tmp_path / "run")
    status, _, error = in_process(monkeypatch, capsys, "train", *arguments)
    assert (status, error.count("\n")) == (2, 1)
    assert "--paths-per-rank is for --mode supernet under torchrun --nproc_per_node=N" in error
