"""The command line: its contract, its errors, and runs that survive. Slow tests use real processes and real kills."""

import json
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time

import process
import pytest
import torch
from conftest import ROOT, forget, rows, tool

import mnas

ARCHS = ["conv3x3-conv3x3", "conv3x3-conv5x5", "conv5x5-conv3x3", "conv5x5-conv5x5"]
QUICK = ("--limit-train", 2000, "--limit-test", 500, "--batch-size", 50, "--epochs", 2)


def in_process(monkeypatch, capsys, name, *arguments):
    """A tool inside this process, which saves importing torch; returns its status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(process, "prepare", lambda: None)  # hooks and signals of this process are pytest's
    status = 0
    try:
        runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
    except SystemExit as exit_:
        status = exit_.code or 0
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    """A short, real supernet run."""
    out = tmp_path_factory.mktemp("runs") / "supernet"
    done = tool("train", "--mode", "supernet", *QUICK, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "scratch"
    done = tool("train", "--mode", "scratch", "--arch", "all", *QUICK, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


BAD = {
    "no mode": ([], "--mode is missing; expected supernet or scratch"),
    "mode": (["--mode", "nas"], 'Invalid value "nas" for --mode. Choose from: "supernet", "scratch"'),
    "option": (["--mode", "supernet", "--epoch", 3], "Unknown option: --epoch. Did you mean --epochs?"),
    "space": (["--mode", "supernet", "--space", "mil5"], "'mil5' is unknown; expected one of mil4"),
    "dataset": (["--mode", "supernet", "--dataset", "cifar"], "'cifar' is unknown; expected one of mnist"),
    "pictures": (
        ["--mode", "supernet", "--space", "nb_macro"],
        "nb_macro takes pictures of 3x32x32, mnist has 1x28x28",
    ),
    "bn of a net": (["--mode", "scratch", "--arch", "all", "--bn", "stored"], "--bn stored is for --mode supernet"),
    "masked": (
        ["--mode", "supernet", "--space", "mil9", "--execution", "masked"],
        "'d1' cannot be computed inside 'd3' by masking: their layers differ in number; use execution=\"sliced\"",
    ),
    "missing arch": (["--mode", "scratch"], "--arch is missing; expected all, random or one of conv3x3-conv3x3"),
    "unknown arch": (["--mode", "scratch", "--arch", "conv7x7-conv3x3"], "'conv7x7-conv3x3' is not in space mil4"),
    "short arch": (["--mode", "scratch", "--arch", "conv3x3"], "expected one of conv3x3-conv3x3, conv3x3-conv5x5"),
    "arch of a supernet": (["--mode", "supernet", "--arch", ARCHS[0]], "is for --mode scratch"),
    "execution of a net": (["--mode", "scratch", "--arch", "all", "--execution", "masked"], "is for --mode supernet"),
    "zero": (["--mode", "supernet", "--epochs", 0], 'Invalid value "0.0" for --epochs. Must be > 0'),
    "negative": (["--mode", "supernet", "--batch-size", -4], 'Invalid value "-4" for --batch-size'),
    "nan": (["--mode", "supernet", "--lr", "nan"], 'Invalid value "nan" for --lr'),
    "infinite": (["--mode", "supernet", "--lr", "inf"], 'Invalid value "inf" for --lr'),
    "no number": (["--mode", "supernet", "--seed", "x"], '"x" is no whole number. See --help.'),
    "seed with a fraction": (["--mode", "supernet", "--seed", "1.5"], 'Invalid value for --seed: "1.5" is no whole'),
    "count with a fraction": (["--mode", "supernet", "--batch-size", "1.5"], '"1.5" is no whole number'),
    "count as a float": (["--mode", "supernet", "--limit-train", "1e3"], '"1e3" is no whole number'),
    "empty start": (["--mode", "scratch", "--arch", ARCHS[0], "--start", ""], "--start is empty; give it a value"),
    "empty out": (["--mode", "supernet", "--out="], "--out is empty; give it a value or leave it out"),
    "long name": (["--mode", "supernet", "--out", "x" * 256], "a name in the path has 256 bytes, expected 255"),
    "long path": (["--mode", "supernet", "--out", "/".join(["x" * 200] * 30)], "File name too long"),
    "negative seed": (["--mode", "supernet", "--seed", -1], 'Invalid value "-1" for --seed'),
    "file as out": (["--mode", "supernet", "--out", "setup.cfg"], "setup.cfg is a file; give --out a directory"),
    "unwritable out": (["--mode", "supernet", "--out", "/proc/run"], "cannot write to /proc/run"),
    "occupied out": (["--mode", "supernet", "--out", "tests"], "tests is not empty; --resume continues"),
    "resume nothing": (["--resume", "--out", "tests"], "tests is not a run directory: it has no config.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, monkeypatch, capsys):
    arguments, message = BAD[case]
    status, _, error = in_process(monkeypatch, capsys, "train", *arguments)
    assert status == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_space_help_lists_the_spaces(monkeypatch, capsys):
    status, out, _ = in_process(monkeypatch, capsys, "train", "--space", "help")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(mnas.spaces.SPACES)
    assert "6,561 networks on 3x32x32: NAS-Bench-Macro" in out


def test_bad_input_in_a_real_process_leaves_nothing(tmp_path):
    for arguments in (["--mode", "scratch", "--arch", "nope"], ["--mode", "supernet", "--dataset", "cifar"]):
        done = tool("train", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch():
    for name in ("train", "evaluate", "export", "freezing", "spaces", "benchmark", "study", "report"):
        script = (
            f"import sys, runpy; sys.modules['torch'] = sys.modules['mnas'] = None; sys.argv = ['{name}.py', '--help'];"
            f"sys.path.insert(0, 'tools'); runpy.run_path('tools/{name}.py', run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        flags = {
            "freezing": "--only",
            "spaces": "--page",
            "benchmark": "--only",
            "study": "--seeds",
            "report": "rows.js",
        }
        assert flags.get(name, "--arch") in done.stdout


def test_run_directory_follows_the_contract(supernet):
    out, printed = supernet
    assert {p.name for p in out.iterdir()} >= {"config.json", "metrics.jsonl", "checkpoint.pt", "summary.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert {k: summary[k] for k in ("mode", "space", "dataset", "seed")} == {
        "mode": "supernet",
        "space": "mil4",
        "dataset": "mnist",
        "seed": 0,
    }
    assert summary["train_seconds"] > 0
    assert [p["arch"] for p in summary["paths"]] == ARCHS
    for path in summary["paths"]:
        assert set(path) == {"arch", "val_top1", "test_top1", "test_loss", "params", "macs"}
        assert 0.3 < path["test_top1"] < 1
        assert f"{100 * path['test_top1']:.2f}" in printed
    assert [(r["epoch"], r["arch"]) for r in rows(out / "metrics.jsonl")] == [(e, a) for e in (1, 2) for a in ARCHS]
    assert "weights" in torch.load(out / "checkpoint.pt", weights_only=True)
    config = json.loads((out / "config.json").read_text())
    assert config["epochs"] == 2
    assert config["environment"]["torch"] == torch.__version__


def test_scratch_run_holds_every_network(scratch):
    out, printed = scratch
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mode"] == "scratch"
    assert [p["arch"] for p in summary["paths"]] == ARCHS
    assert all(0.3 < p["test_top1"] < 1 for p in summary["paths"])
    assert [(r["arch"], r["epoch"]) for r in rows(out / "metrics.jsonl")] == [(a, e) for a in ARCHS for e in (1, 2)]
    assert set(torch.load(out / "checkpoint.pt", weights_only=True)["weights"]) == set(ARCHS)
    assert all(arch in printed for arch in ARCHS)


@pytest.mark.parametrize("mode", ["supernet", "scratch"])
def test_evaluate_reproduces_the_summary(mode, supernet, scratch, tmp_path):
    out, _ = {"supernet": supernet, "scratch": scratch}[mode]
    done = tool("evaluate", "--checkpoint", out, "--limit-test", 500, "--out", tmp_path / "rows.jsonl")
    assert done.returncode == 0, done.stderr
    measured = rows(tmp_path / "rows.jsonl")
    for path, row in zip(json.loads((out / "summary.json").read_text())["paths"], measured, strict=True):
        assert {key: path[key] for key in row} == row
        assert row["arch"] in done.stdout


def test_evaluate_samples_by_seed_on_validation(supernet, monkeypatch, capsys):
    out, _ = supernet
    drawn = set()
    for seed in range(6):
        arguments = ("--checkpoint", out, "--arch", "random", "--seed", seed, "--split", "validation")
        _, printed, _ = in_process(monkeypatch, capsys, "evaluate", *arguments, "--limit-test", 50)
        (arch,) = [a for a in ARCHS if a in printed]
        drawn.add(arch)
    assert len(drawn) > 1


@pytest.mark.parametrize("mode", ["supernet", "scratch"])
def test_export_writes_a_network_that_needs_only_torch(mode, supernet, scratch, tmp_path):
    out, _ = {"supernet": supernet, "scratch": scratch}[mode]
    target = tmp_path / "new" / "exported"
    done = tool("export", "--checkpoint", out, "--arch", "conv3x3-conv5x5", "--out", target, "--limit-test", 500)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in target.iterdir()} == {"model.py", "weights.pt", "verification.json"}
    assert [p.name for p in target.parent.iterdir()] == ["exported"]
    report = json.loads((target / "verification.json").read_text())
    assert report["agrees"]
    assert report["max_abs_difference"]["sliced"] == 0
    assert set(report["max_abs_difference"]) == ({"sliced", "masked"} if mode == "supernet" else {"sliced"})
    summary = json.loads((out / "summary.json").read_text())
    assert report["test_top1"] == summary["paths"][1]["test_top1"]
    assert "mnas" not in re.sub(r'""".*?"""', "", (target / "model.py").read_text(), flags=re.DOTALL)
    script = (
        "import sys; sys.modules['mnas'] = None; import model; print(sum(p.numel() for p in model.load().parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=target, capture_output=True, text=True, check=True)
    assert int(done.stdout) == summary["paths"][1]["params"]


def test_export_fails_if_the_written_network_disagrees(supernet, tmp_path, monkeypatch, capsys):
    """Break what is written: the verification must see it, and nothing may stay behind."""
    out, _ = supernet
    save = torch.save

    def save_wrong(state, file):
        save({name: tensor + 1e-3 if name == "0.bias" else tensor for name, tensor in state.items()}, file)

    monkeypatch.setattr(torch, "save", save_wrong)
    arguments = ("--checkpoint", out, "--arch", ARCHS[0], "--out", tmp_path / "e", "--limit-test", 100)
    status, _, error = in_process(monkeypatch, capsys, "export", *arguments)
    assert status == 1
    assert "disagrees" in error
    assert list(tmp_path.iterdir()) == []


BAD_FILES = {
    "no run": ("evaluate", ["--checkpoint", "tests"], "tests is not a run directory: it has no config.json"),
    "unknown arch": ("evaluate", ["--checkpoint", "RUN", "--arch", "x"], "'x' is not in space mil4"),
    "existing rows": ("evaluate", ["--checkpoint", "RUN", "--out", "setup.cfg"], "setup.cfg exists"),
    "occupied out": ("export", ["--checkpoint", "RUN", "--arch", ARCHS[0], "--out", "tests"], "tests is not empty"),
    "file as out": ("export", ["--checkpoint", "RUN", "--arch", ARCHS[0], "--out", "setup.cfg"], "is a file"),
    "all": ("export", ["--checkpoint", "RUN", "--arch", "all", "--out", "runs/x"], "one network is exported at a time"),
    "no out": ("export", ["--checkpoint", "RUN", "--arch", ARCHS[0]], "--out"),
    "unwritable": ("export", ["--checkpoint", "RUN", "--arch", ARCHS[0], "--out", "/proc/x"], "cannot write /proc/x"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_input_of_evaluate_and_export(case, supernet, monkeypatch, capsys):
    name, arguments, message = BAD_FILES[case]
    arguments = [supernet[0] if a == "RUN" else a for a in arguments]
    status, _, error = in_process(monkeypatch, capsys, name, *arguments)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error


def test_damaged_checkpoints_and_other_settings_are_refused(supernet, monkeypatch, capsys, tmp_path):
    out, _ = supernet
    run = tmp_path / "run"
    shutil.copytree(out, run)
    forget(run, "summary.json", "metrics.jsonl")
    whole = (out / "checkpoint.pt").read_bytes()
    (run / "checkpoint.pt").write_bytes(whole[:-100])
    status, _, error = in_process(monkeypatch, capsys, "train", "--resume", "--out", run)
    assert status == 2
    assert "checkpoint.pt is damaged" in error
    assert (run / "checkpoint.pt").read_bytes() == whole[:-100]
    (run / "checkpoint.pt").write_bytes(whole)
    status, _, error = in_process(monkeypatch, capsys, "train", "--resume", "--out", run, "--lr", 0.2)
    assert status == 2
    assert "was begun with --lr 0.08, not 0.2" in error


def test_a_finished_run_is_shown_again_not_trained_again(supernet, monkeypatch, capsys):
    out, _ = supernet
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    status, printed, _ = in_process(monkeypatch, capsys, "train", "--resume", "--out", out)
    assert status == 0
    assert "is finished" in printed
    assert before == {p.name: p.read_bytes() for p in out.iterdir()}


def test_divergence_ends_with_step_and_path_and_status_1(tmp_path):
    done = tool("train", "--mode", "supernet", *QUICK, "--lr", 1e6, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert re.fullmatch(r"error: loss is (nan|inf) at step \d+ on path conv\dx\d-conv\dx\d; .*\n", done.stderr)


def start(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "train.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(file, process, timeout=120):
    deadline = time.monotonic() + timeout
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def same_results(a, b):
    """Everything that two identical runs must share: all files but the seconds."""
    for name in ("config.json", "metrics.jsonl", "checkpoint.pt"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    first, second = (json.loads((d / "summary.json").read_text()) for d in (a, b))
    del first["train_seconds"], second["train_seconds"]
    assert first == second


LONGER = ("--limit-train", 6000, "--limit-test", 500, "--batch-size", 50, "--epochs", 2, "--lr", 0.02)
LONGER += ("--checkpoint-every", 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [("--mode", "supernet", "--sampler", "fair"), ("--mode", "supernet"), ("--mode", "scratch", "--arch", ARCHS[1])],
)
def test_killed_and_resumed_runs_equal_the_uninterrupted_one(arguments, tmp_path):
    whole, killed = tmp_path / "a", tmp_path / "b"
    done = tool("train", *arguments, *LONGER, "--out", whole)
    assert done.returncode == 0, done.stderr
    process = start(*arguments, *LONGER, "--out", killed)
    wait_for(killed / "checkpoint.pt", process)
    time.sleep(0.5)
    process.kill()
    process.communicate()
    assert not (killed / "summary.json").exists()
    step = torch.load(killed / "checkpoint.pt", weights_only=True)["trainer"]["step"]
    process = start("--resume", "--out", killed)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        now = torch.load(killed / "checkpoint.pt", weights_only=True)["trainer"]["step"]
        if now > step:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert re.match(r"error: stopped at step \d+ of 240; continue with --resume --out", error)
    done = tool("train", "--resume", "--out", killed)
    assert done.returncode == 0, done.stderr
    assert "continuing at step" in done.stdout
    same_results(whole, killed)


@pytest.mark.slow
def test_a_killed_sweep_keeps_finished_networks(tmp_path):
    whole, killed = tmp_path / "a", tmp_path / "b"
    arguments = ("--mode", "scratch", "--arch", "all", *QUICK)
    assert tool("train", *arguments, "--out", whole).returncode == 0
    process = start(*arguments, "--out", killed)
    wait_for(killed / ARCHS[0] / "summary.json", process)
    process.kill()
    process.communicate()
    finished = (killed / ARCHS[0] / "summary.json").stat().st_mtime_ns
    done = tool("train", "--resume", "--out", killed)
    assert done.returncode == 0, done.stderr
    assert (killed / ARCHS[0] / "summary.json").stat().st_mtime_ns == finished
    same_results(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["sliced", "masked"])
def test_same_seed_is_bit_identical_in_two_processes(execution, tmp_path):
    for name in ("a", "b"):
        done = tool("train", "--mode", "supernet", "--execution", execution, *QUICK, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    same_results(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    out = tmp_path / "run"
    process = start("--mode", "supernet", *LONGER, "--out", out)
    wait_for(out / "checkpoint.pt", process)
    process.kill()
    process.communicate()
    before = (out / "checkpoint.pt").read_bytes()
    (out / ".times.json.0123456789abcdef.mnas").write_text("{")  # as a kill in the middle of a write leaves it

    def no_space():  # files may not grow beyond 100 kB, less than a checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = tool("train", "--resume", "--out", out, preexec_fn=no_space)
    assert done.returncode == 1
    assert re.fullmatch(r"error: cannot write to .*run \(.*\); what it held before is intact\n", done.stderr)
    assert (out / "checkpoint.pt").read_bytes() == before
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    assert tool("train", "--resume", "--out", out).returncode == 0


@pytest.mark.slow
def test_the_default_jobs_reach_99_percent(tmp_path):
    for arguments in (("--mode", "supernet"), ("--mode", "scratch", "--arch", "all")):
        out = tmp_path / arguments[1]
        done = tool("train", *arguments, "--out", out)
        assert done.returncode == 0, done.stderr
        assert all(p["test_top1"] >= 0.99 for p in json.loads((out / "summary.json").read_text())["paths"])
