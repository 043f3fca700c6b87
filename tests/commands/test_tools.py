"""What commands write: run directories, scores and exports."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import forget, rows
from processes import tool
from running import ARCHS, QUICK, in_process


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    """A short, real supernet run."""
    out = tmp_path_factory.mktemp("runs") / "supernet"
    done = tool("train", "--mode", "supernet", *QUICK, "--out", out, validation=1000)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "scratch"
    arguments = ("--mode", "scratch", "--arch", "all", *QUICK, "--out", out)
    done = tool("train", *arguments, validation=1000)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_run_directory_follows_the_contract(supernet):
    out, printed = supernet
    assert {p.name for p in out.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "summary.json",
    }
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
        assert set(path) == {
            "arch",
            "val_top1",
            "test_top1",
            "test_loss",
            "params",
            "macs",
            "correct",
        }
        assert 0.3 < path["test_top1"] < 1
        assert f"{100 * path['test_top1']:.2f}" in printed
    assert [(r["epoch"], r["arch"]) for r in rows(out / "metrics.jsonl")] == [
        (e, a) for e in (1, 2) for a in ARCHS
    ]
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
    assert [(r["arch"], r["epoch"]) for r in rows(out / "metrics.jsonl")] == [
        (a, e) for a in ARCHS for e in (1, 2)
    ]
    assert set(torch.load(out / "checkpoint.pt", weights_only=True)["weights"]) == set(ARCHS)
    assert all(arch in printed for arch in ARCHS)


@pytest.mark.parametrize("mode", ["supernet", "scratch"])
def test_evaluate_reproduces_the_summary(mode, supernet, scratch, tmp_path):
    out, _ = {"supernet": supernet, "scratch": scratch}[mode]
    done = tool(
        "evaluate", "--checkpoint", out, "--limit-test", 500, "--out", tmp_path / "rows.jsonl"
    )
    assert done.returncode == 0, done.stderr
    measured = rows(tmp_path / "rows.jsonl")
    for path, row in zip(
        json.loads((out / "summary.json").read_text())["paths"], measured, strict=True
    ):
        assert {key: path[key] for key in row} == row
        assert row["arch"] in done.stdout


def test_evaluate_samples_by_seed_on_validation(supernet, monkeypatch, capsys):
    out, _ = supernet
    drawn = set()
    for seed in range(6):
        arguments = (
            "--checkpoint",
            out,
            "--arch",
            "random",
            "--seed",
            seed,
            "--split",
            "validation",
        )
        _, printed, _ = in_process(monkeypatch, capsys, "evaluate", *arguments, "--limit-test", 50)
        (arch,) = [a for a in ARCHS if a in printed]
        drawn.add(arch)
    assert len(drawn) > 1


@pytest.mark.parametrize("mode", ["supernet", "scratch"])
def test_export_writes_a_network_that_needs_only_torch(mode, supernet, scratch, tmp_path):
    out, _ = {"supernet": supernet, "scratch": scratch}[mode]
    target = tmp_path / "new" / "exported"
    done = tool(
        "export",
        "--checkpoint",
        out,
        "--arch",
        "conv3x3-conv5x5",
        "--out",
        target,
        "--limit-test",
        500,
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in target.iterdir()} == {"model.py", "weights.pt", "verification.json"}
    assert [p.name for p in target.parent.iterdir()] == ["exported"]
    report = json.loads((target / "verification.json").read_text())
    assert report["agrees"]
    assert report["max_abs_difference"]["sliced"] == 0
    assert set(report["max_abs_difference"]) == (
        {"sliced", "masked"} if mode == "supernet" else {"sliced"}
    )
    summary = json.loads((out / "summary.json").read_text())
    assert report["test_top1"] == summary["paths"][1]["test_top1"]
    assert "mnas" not in re.sub(
        r'""".*?"""', "", (target / "model.py").read_text(), flags=re.DOTALL
    )
    script = (
        "import sys; sys.modules['mnas'] = None; import model; print(sum(p.numel() for p in "
        "model.load().parameters()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=target, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == summary["paths"][1]["params"]


def test_export_fails_if_the_written_network_disagrees(supernet, tmp_path, monkeypatch, capsys):
    """Break what is written: the verification must see it, and nothing may stay behind."""
    out, _ = supernet
    save = torch.save

    def save_wrong(state, file):
        if isinstance(state, torch.Tensor):  # the images for the process that verifies
            return save(state, file)
        return save(
            {name: tensor + 1e-3 if name == "0.bias" else tensor for name, tensor in state.items()},
            file,
        )

    monkeypatch.setattr(torch, "save", save_wrong)
    arguments = (
        "--checkpoint",
        out,
        "--arch",
        ARCHS[0],
        "--out",
        tmp_path / "e",
        "--limit-test",
        100,
    )
    status, _, error = in_process(monkeypatch, capsys, "export", *arguments)
    assert status == 1
    assert "disagrees" in error
    assert list(tmp_path.iterdir()) == []


BAD_FILES = {
    "no run": (
        "evaluate",
        ["--checkpoint", "tests"],
        "tests is not a run directory: it has no config.json",
    ),
    "unknown arch": (
        "evaluate",
        ["--checkpoint", "RUN", "--arch", "x"],
        "'x' is not in space mil4",
    ),
    "existing rows": (
        "evaluate",
        ["--checkpoint", "RUN", "--out", "setup.cfg"],
        "setup.cfg exists",
    ),
    "occupied out": (
        "export",
        ["--checkpoint", "RUN", "--arch", ARCHS[0], "--out", "tests"],
        "tests is not empty",
    ),
    "file as out": (
        "export",
        ["--checkpoint", "RUN", "--arch", ARCHS[0], "--out", "setup.cfg"],
        "is a file",
    ),
    "all": (
        "export",
        ["--checkpoint", "RUN", "--arch", "all", "--out", "runs/x"],
        "one network is exported at a time",
    ),
    "no out": ("export", ["--checkpoint", "RUN", "--arch", ARCHS[0]], "--out"),
    "unwritable": (
        "export",
        ["--checkpoint", "RUN", "--arch", ARCHS[0], "--out", "/proc/x"],
        "cannot write /proc/x",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_input_of_evaluate_and_export(case, supernet, monkeypatch, capsys):
    name, arguments, message = BAD_FILES[case]
    arguments = [supernet[0] if a == "RUN" else a for a in arguments]
    status, _, error = in_process(monkeypatch, capsys, name, *arguments)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error


def test_damaged_checkpoints_and_other_settings_are_refused(
    supernet, monkeypatch, capsys, tmp_path
):
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
    status, _, error = in_process(
        monkeypatch, capsys, "train", "--resume", "--out", run, "--lr", 0.2
    )
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
    assert re.fullmatch(
        r"error: loss is (nan|inf) at step \d+ on path conv\dx\d-conv\dx\d; .*\n", done.stderr
    )
