"""Sweeps on a real dask cluster whose workers, scheduler and clients are killed: the same files as
on one machine, and nothing lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import joblib
import pytest
from conftest import ROOT
from processes import tool
from running import ARCHS, SWEEP, in_process, same_sweeps

pytest.importorskip("distributed", reason="pip install 'mnas[dask]'")
from clusters import Cluster, child_of, until

from mnas.errors import Failure
from mnas.training import cluster, sweep

TRAIN = (*SWEEP, "--limit-train", 1000, "--validate-every", 2, "--checkpoint-every", 3)
OWN = "import mnas\n\n\ndef four():\n    return mnas.spaces.mil4()\n"


@pytest.fixture
def start(tmp_path):
    """A cluster of two workers. Returns a function that begins a command on it."""
    made, begun = [], []

    def start(*arguments, allowed_failures=3):
        machines = Cluster(tmp_path, allowed_failures)
        made.append(machines)
        workers = [machines.worker() for _ in range(2)]
        command = [sys.executable, ROOT / "tools" / "train.py", *TRAIN, *arguments]
        command += ["--backend", "dask", "--scheduler", machines.file.name, "--out", "run"]
        process = subprocess.Popen(
            [*map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        begun.append(process)
        return machines, workers, process

    yield start
    for process in begun:
        process.kill()
        process.communicate()
    for machines in made:
        machines.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one machine makes of the same command."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "space.py").write_text(OWN)
    assert tool("train", *TRAIN, "--out", folder / "run").returncode == 0
    return folder / "run"


def under_way(workers, out):
    """Each trains a network that has a checkpoint."""
    until(
        lambda: (
            all(map(child_of, workers))
            and len([*out.glob("*/checkpoint.pt")]) > len([*out.glob("*/summary.json")]) + 1
        )
    )
    return [child_of(worker) for worker in workers]


def ends(children):
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 60)


def nothing_left(out):
    return not [file for file in out.rglob(".*") if file.name != ".lock"]


@pytest.mark.slow
def test_a_study_outlives_a_killed_worker_bit_for_bit(start, whole, tmp_path):
    _, workers, process = start()
    children = under_way(workers, tmp_path / "run")
    workers[0].kill()
    ends(children[:1])  # by itself: it has saved its last step
    out, error = process.communicate(timeout=400)
    assert (process.returncode, error) == (0, "")
    lost = re.search(r"(\S+): worker tcp://\S+ was lost; goes on with worker tcp://\S+\n", out)
    assert f"{lost[1]}: continuing at step" in out
    others = [arch for arch in ARCHS if arch not in lost[1]]  # what a killed worker said is lost
    assert {f"{arch}: epoch {n}" in out for arch in others for n in (1, 2)} == {True}
    assert f"{lost[1]}: epoch 2" in out
    same_sweeps(whole, tmp_path / "run")
    assert nothing_left(tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_loses_too_many_workers_fails_alone(start, whole, tmp_path):
    _, workers, process = start(allowed_failures=0)
    under_way(workers, tmp_path / "run")
    workers[0].kill()
    _, error = process.communicate(timeout=400)
    reason = (
        r"its workers were lost \(tcp://\S+\), more than dask's "
        r"allowed-failures, which is 0"
    )
    assert process.returncode == 1
    assert re.fullmatch(
        rf"error: 1 of 4 runs failed \(\S+: {reason}\); continue with --resume --out run\n", error
    )
    assert len([*(tmp_path / "run").glob("*/summary.json")]) == 3
    done = tool("train", "--resume", "--out", tmp_path / "run")  # on this machine
    assert (done.returncode, done.stderr) == (0, "")
    same_sweeps(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["signal", "client", "scheduler"])
def test_a_stopped_sweep_saves_and_continues(killed, start, whole, tmp_path):
    machines, workers, process = start()
    children = under_way(workers, tmp_path / "run")
    if killed == "signal":
        process.send_signal(signal.SIGTERM)
    elif killed == "client":
        process.kill()
    else:
        machines.scheduler.kill()
    ends(children)
    _, error = process.communicate(timeout=60)
    how = "continue with --resume --out run\n"
    if killed == "signal":
        assert process.returncode == 128 + signal.SIGTERM
        assert re.fullmatch(rf"error: stopped with [0-2] of 4 runs finished; {how}", error)
    if killed == "scheduler":
        assert process.returncode == 1
        reason = r"\(conv.*: the scheduler was lost\)"
        assert re.fullmatch(rf"error: [2-4] of 4 runs failed {reason}; {how}", error)
    # How long a worker takes to notice is the cluster's: what was being trained may be finished.
    checkpoints = {file.parent for file in (tmp_path / "run").glob("*/checkpoint.pt")}
    stopped = {run.name for run in checkpoints if not (run / "summary.json").exists()}
    done = tool("train", "--resume", "--out", tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(re.findall(r"(\S+): continuing at step", done.stdout)) == stopped
    same_sweeps(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_space_of_ones_own_is_found_by_workers_and_other_code_is_refused(start, tmp_path):
    (tmp_path / "space.py").write_text(OWN)
    machines, _, process = start("--space", "space.py:four", "--epochs", 0.1)
    assert process.communicate(timeout=400)[1] == ""
    assert process.returncode == 0
    shutil.copytree(ROOT / "mnas", tmp_path / "other" / "mnas")
    changed = tmp_path / "other" / "mnas" / "errors.py"
    changed.write_text(changed.read_text() + "# changed\n")
    other = machines.worker(PYTHONPATH=str(tmp_path / "other"))
    with cluster.chosen("dask", str(machines.file)) as client:
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 3)
        with pytest.raises(Failure, match=r"^worker tcp://\S+ has other code of mnas .* install"):
            cluster.Dask(client, tmp_path / "run")
    assert nothing_left(tmp_path / "run")
    other.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--scheduler", "tcp://127.0.0.1:1"),
            "--scheduler tcp://127.0.0.1:1 is for --backend dask",
        ),
        (("--backend", "dask"), "--backend dask needs --scheduler: the address that"),
        (
            ("--backend", "dask", "--scheduler", "tcp://127.0.0.1:1"),
            "--scheduler tcp://127.0.0.1:1 does not answer (",
        ),
        (
            ("--backend", "dask", "--scheduler", "10.0.0.1"),
            "--scheduler 10.0.0.1 does not answer (missing port",
        ),
        (("--backend", "dask", "--scheduler", "x://y"), "--scheduler x://y does not answer ("),
        (("--backend", "dask", "--scheduler", "none.json"), "No such file or directory"),
        (("--backend", "dask", "--scheduler", "setup.json"), "the file has no address"),
        (("--backend", "ray"), 'Invalid value "ray" for --backend'),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    monkeypatch.chdir(tmp_path)
    Path("setup.json").write_text("{}")
    for command in (("train", *TRAIN), ("study",)):
        status, _, error = in_process(monkeypatch, capsys, *command, *arguments, "--out", "run")
        assert (status, error.count("\n")) == (2, 1), error
        assert message in error
    assert not Path("run").exists()


def test_an_address_is_read_before_there_is_a_client():
    """One that fails on it waits 20 seconds at the end of the process, and shows a traceback."""
    for given in ("10.0.0.1", "nonsense", "x://y:1"):
        with pytest.raises(ValueError, match=r"missing port|unknown address scheme"):
            cluster._address(given)
    assert cluster._address("tcp://10.0.0.1:8786") == "tcp://10.0.0.1:8786"


class Elsewhere(joblib.parallel.SequentialBackend):
    """A backend of another package, as ray's."""


def test_the_cluster_of_joblib_is_taken_and_others_are_refused(tmp_path, capsys):
    from distributed import Client, LocalCluster

    assert cluster.ambient() is None
    joblib.register_parallel_backend("elsewhere", Elsewhere)
    with joblib.parallel_config("threading"):
        assert cluster.ambient() is None
    with joblib.parallel_config("elsewhere"), pytest.raises(Failure, match="has a Elsewhere, on"):
        sweep.train([], None, tmp_path, 200)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as made,
        Client(made, set_as_default=True) as client,
        joblib.parallel_config("dask"),
        cluster.chosen("local", None) as found,
    ):
        assert found is client
        engine = cluster.Dask(found, tmp_path)
        assert "note: the cluster has no worker yet" in capsys.readouterr().err
        engine.begin("a", {})
        engine.stop()  # a run that waits for a worker is not waited for
        assert engine.said.get(timeout=60) == ("a", {"lost": "it was not begun"})
        engine.close()
        assert nothing_left(tmp_path)


def test_a_run_whose_workers_all_die_before_it_begins_fails_in_the_end(tmp_path, monkeypatch):
    from distributed import Client, LocalCluster
    from distributed.scheduler import KilledWorker

    class Lost:
        def add_done_callback(self, call):
            calls.append(call)

        def result(self):
            raise KilledWorker("task", None, 3)

    calls = []
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as made,
        Client(made) as client,
    ):
        engine = cluster.Dask(client, tmp_path)
        monkeypatch.setattr(client, "submit", lambda *_, **__: Lost())
        monkeypatch.setattr(client, "cancel", lambda _: None)
        engine.begin("a", {})
        for times in range(cluster.AGAIN + 1):
            assert len(calls) == times + 1
            assert engine.said.empty()
            calls[-1](None)
        assert len(calls) == cluster.AGAIN + 1
        name, words = engine.said.get(timeout=1)
        assert name == "a"
        assert words["lost"].startswith("its workers were lost before it began")
        engine.close()


def test_a_worker_that_does_not_see_the_files_says_so(tmp_path):
    seen = {**cluster._versions(), "directory": str(tmp_path), "sign": str(tmp_path)}
    assert cluster.objection(seen) is None
    assert re.match(
        rf"does not see {tmp_path}/x; .* need a common file system",
        cluster.objection({**seen, "sign": f"{tmp_path}/x"}),
    )
    assert cluster.objection({**seen, "torch": "1.0"}).startswith("has other torch (")
