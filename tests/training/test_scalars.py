"""Scalars for TensorBoard, read back by TensorBoard's own reader; and bars in notebooks."""

import importlib.util
import os

import pytest
import torch
from conftest import rows
from processes import tool
from running import ARCHS, in_process, same_results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAIN = ("--mode", "supernet", "--limit-train", 160, "--limit-test", 50, "--batch-size", 20)
TRAIN += ("--epochs", 2, "--threads", 1)


def read(run):
    """Of each tag its steps and values."""
    found = EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def one_cycle(steps, peak):
    optimizer = torch.optim.SGD([torch.zeros(1)], peak)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, cycle_momentum=False)
    return [(cycle.get_last_lr()[0], optimizer.step(), cycle.step())[0] for _ in range(steps)]


def check(run):
    found, metrics = read(run), rows(run / "metrics.jsonl")
    for tag in ("loss", "lr"):
        assert [step for step, _ in found[tag]] == list(range(1, 17))
    assert [value for _, value in found["lr"]] == pytest.approx(one_cycle(16, 0.08))
    assert [step for step, _ in found["seconds"]] == [8, 16]
    for arch in ARCHS:
        own = [row for row in metrics if row["arch"] == arch]
        for name in ("val_top1", "val_loss", "train_loss"):
            expected = [(row["step"], pytest.approx(row[name])) for row in own if row[name]]
            assert found[f"{name}/{arch}"] == expected
    trained = sum(row["train_loss"] * row["updates"] for row in metrics if row["step"] == 8)
    assert sum(value for _, value in found["loss"][:8]) == pytest.approx(trained, rel=1e-4)


def test_every_step_and_validation_is_there_and_the_run_is_the_same(tmp_path):
    for log, name in ((("--log", "tensorboard"), "with"), ((), "without")):
        done = tool("train", *TRAIN, *log, "--out", tmp_path / name, validation=100)
        assert (done.returncode, done.stderr) == (0, "")
    same_results(tmp_path / "with", tmp_path / "without")
    check(tmp_path / "with")
    assert not (tmp_path / "without" / "tensorboard").exists()


def die_at_11():
    """In the process of a command: end without a word, the scalars so far on disk."""
    from mnas.training.scalars import Scalars

    after = Scalars.after_step

    def dying(self, trainer, losses):
        after(self, trainer, losses)
        if trainer.step == 11:
            self.flush()
            os._exit(9)

    Scalars.after_step = dying


def test_a_run_that_goes_on_has_no_step_twice(tmp_path):
    """Killed at step 11 with a checkpoint of step 8: 9 to 11 are computed, and written, again."""
    out = ("--out", tmp_path / "run", "--log", "tensorboard")
    done = tool("train", *TRAIN, *out, before=die_at_11, validation=100)
    assert done.returncode == 9
    assert [step for step, _ in read(tmp_path / "run")["loss"]] == list(range(1, 12))
    done = tool("train", "--resume", *out, validation=100)
    assert (done.returncode, done.stderr) == (0, "")
    check(tmp_path / "run")


def test_runs_of_a_sweep_have_scalars_each(tmp_path):
    sweep = ("--mode", "scratch", "--arch", "all", "--jobs", 2, *TRAIN[2:])
    done = tool("train", *sweep, "--log", "tensorboard", "--out", tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, "")
    for arch in ARCHS:
        found = read(tmp_path / "run" / arch)
        assert len(found["loss"]) == 16
        assert len(found[f"val_top1/{arch}"]) == 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_of_a_study_have_scalars_each(jobs, tmp_path):
    runs = tmp_path / "runs"
    options = ("--limit-train", 160, "--limit-test", 50, "--threads", 1, "--jobs", jobs)
    options += ("--networks", 2, "--space", "mil9", "--out", tmp_path / "out", "--runs", runs)
    done = tool("study", *options, "--log", "tensorboard", validation=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"; scalars: tensorboard --logdir {runs}\n" in done.stdout
    trained = [config.parent for config in runs.rglob("config.json")]
    assert len(trained) == 3
    for run in trained:
        metrics = rows(run / "metrics.jsonl")
        found = read(run)
        for arch in {row["arch"] for row in metrics}:
            expected = [
                (r["step"], pytest.approx(r["val_top1"])) for r in metrics if r["arch"] == arch
            ]
            assert found[f"val_top1/{arch}"] == expected


def test_what_is_missing_or_unknown_is_one_line(monkeypatch, capsys, tmp_path):
    out = tmp_path / "run"
    status, _, error = in_process(
        monkeypatch, capsys, "train", *TRAIN, "--out", out, "--log", "wandb"
    )
    assert status == 2
    assert "tensorboard" in error
    assert error.count("\n") == 1
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name)
    )
    status, _, error = in_process(
        monkeypatch, capsys, "train", *TRAIN, "--out", out, "--log", "tensorboard"
    )
    expected = "error: tensorboard is not installed; pip install 'mnas[log]'\n"
    assert (status, error) == (2, expected)
    line = ("--out", out, "--runs", out, "--log", "tensorboard")
    status, printed, error = in_process(monkeypatch, capsys, "study", *line)
    assert (status, printed, error) == (2, "", expected)
    assert not out.exists()


@pytest.mark.slow
def test_bars_are_those_of_a_notebook_where_there_is_one():
    import nbclient
    import nbformat

    cell = nbformat.v4.new_code_cell(
        "from mnas.training.progress import Interruption, Progress\n"
        "with Interruption() as interruption:\n"
        "    shown = Progress(1, interruption)\n"
        "    shown.report('run', step=3, total=4, loss=1.0)\n"
        "print(shown.bar.disable, shown.bar.n, type(shown.bar).__mro__[1].__name__)\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    texts = [output.get("text", "") for output in notebook.cells[0].outputs]
    assert "False 3 tqdm_notebook\n" in "".join(texts), notebook.cells[0].outputs
