"""Weights after the last epochs are kept, through kills, and their mean is scored: against a loop
that collects state dicts."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import rows
from running import in_process, same_results

import mnas
from mnas.training import one_run
from mnas.training.saved import open_run
from mnas.training.trainer import Recipe, supernet_trainer

QUICK = ("--limit-train", 300, "--limit-test", 60, "--batch-size", 30, "--threads", 1)
SUPERNET = ("--mode", "supernet", "--space", "mil4_nested", *QUICK, "--epochs", 3.5)
RANK = ("--images", 60, "--bn-images", 50, "--threads", 1)


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: in_process(monkeypatch, capsys, *arguments, validation=60)


def naive(states):
    """The mean of state dicts, number by number."""
    return {
        name: np.mean([state[name].numpy().astype(np.float64) for state in states], 0)
        for name in states[0]
    }


def test_the_mean_of_the_last_epochs_is_kept_and_scored_as_naively_averaged(command, tmp_path):
    run = tmp_path / "run"
    status, _, error = command("train", *SUPERNET, "--keep-checkpoints", 3, "--out", run)
    assert status == 0, error
    assert sorted(file.name for file in run.glob("epoch-*")) == ["epoch-2.pt", "epoch-3.pt"]

    config = json.loads((run / "config.json").read_text())
    assert config["keep_checkpoints"] == 3
    data, space = one_run.load(config, tmp_path), mnas.spaces.get("mil4_nested")
    recipe = Recipe(3.5, batch_size=30)
    trainer = supernet_trainer(space, data.train, data.validation, recipe, 0, bn="recalibrate")
    states = []
    while not trainer.finished:
        trainer.advance()
        if trainer.due:
            states.append({k: v.clone() for k, v in trainer.module.state_dict().items()})
    assert len(states) == 4

    for number in (2, 3):
        out = tmp_path / f"rank-{number}"
        status, _, error = command(
            "rank", "--checkpoint", run, "--average", number, *RANK, "--out", out
        )
        assert status == 0, error
        assert json.loads((out / "settings.json").read_text())["average"] == number
        averaged, kept = naive(states[-number:]), open_run(run).averaged(number)
        for name, value in kept.weights["supernet"].items():
            if value.is_floating_point():
                expected = averaged[name].astype(np.float32)
                assert np.array_equal(value.numpy(), expected), name
                assert not name.endswith("weight") or (expected != states[-1][name].numpy()).any()
            else:
                assert torch.equal(value, states[-1][name])
        net = mnas.Supernet(space).eval()
        net.load_state_dict({k: torch.tensor(v) for k, v in averaged.items()})
        for row in rows(out / "rows.jsonl"):
            path = space.parse(row["arch"])
            network = mnas.recalibrate(mnas.export(net, path), data.train.images[:50])
            score = mnas.evaluate(network, data.validation.images[:60], data.validation.labels[:60])
            assert (row["val_loss"], row["val_top1"]) == (score.loss, score.top1)


def killed_after_an_epoch():
    """SIGKILL between the weights that are kept and the checkpoint of the same write."""
    replace, done = Path.replace, []

    def guarded(self, target):
        if done and done[-1] == "epoch-1.pt" and Path(target).name == "checkpoint.pt":
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(Path(target).name)
        return replace(self, target)

    Path.replace = guarded


def test_a_kill_between_the_two_checkpoints_of_an_epoch_loses_neither(tmp_path):
    arguments = ("--mode", "supernet", *QUICK, "--epochs", 2, "--keep-checkpoints", 2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = processes.tool("train", *arguments, "--out", whole, validation=60)
    assert done.returncode == 0, done.stderr
    line = ("train", *arguments, "--out", killed)
    assert processes.tool(*line, before=killed_after_an_epoch, validation=60).returncode == -9
    assert (killed / "epoch-1.pt").exists()
    done = processes.tool("train", "--resume", "--out", killed, validation=60)
    assert done.returncode == 0, done.stderr
    same_results(whole, killed)
    assert (whole / "epoch-1.pt").read_bytes() == (killed / "epoch-1.pt").read_bytes()


def test_what_cannot_be_averaged_is_refused_in_a_line(command, tmp_path):
    run, usual = tmp_path / "run", ("--mode", "supernet", *QUICK, "--epochs", 2)
    assert command("train", *usual, "--keep-checkpoints", 2, "--out", run)[0] == 0
    average, out = ("rank", "--checkpoint", run, *RANK, "--average"), ("--out", tmp_path / "rank")
    scratch = ("train", "--mode", "scratch", "--arch", "all", *QUICK, "--keep-checkpoints", 2)
    for arguments, message in [
        ((*average, 2, "--bn", "stored", *out), "--average 2 with --bn stored; expected recalib"),
        ((*average, 3, *out), "has kept the weights of 2 epochs, not 3; expected a run"),
        (("train", *usual, "--keep-checkpoints", 3), "--keep-checkpoints 3 of 2 epochs; expected"),
        (("train", "--resume", "--out", run, "--keep-checkpoints", 1), "checkpoints 2, not 1"),
        (scratch, "--keep-checkpoints 2 is for --mode supernet; leave it out"),
    ]:
        status, _, error = command(*arguments)
        assert (status, error.count("\n")) == (2, 1), error
        assert message in error
    assert command(*average, 2, *out)[0] == 0
    status, _, error = command(*average, 1, *out)
    assert (status, "has scores with average=2, not None; give another --out" in error) == (2, True)
    content = bytearray((run / "epoch-1.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "epoch-1.pt").write_bytes(content)
    status, _, error = command(*average, 2, *out)
    assert (status, "epoch-1.pt is damaged, or of another moment of" in error) == (2, True), error
    (
        run / "epoch-1.pt"
    ).unlink()  # not as if fewer had been kept: of more, the others would be taken
    status, _, error = command(*average, 2, *out)
    assert (status, "epoch-1.pt is missing; restore it" in error) == (2, True), error
