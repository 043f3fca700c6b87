"""Controls of a study: what they train is what they say, and is kept."""

import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, rows

import mnas
from benchmarks import control
from mnas.training import one_run

FEW = ("--limit-train", "256", "--limit-test", "200")


def run(out, *options, few=FEW):
    command = [sys.executable, "-m", "benchmarks.control", "--out", str(out), *few, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)


def test_the_head_is_what_lies_behind_the_last_choice():
    space = mnas.spaces.mil4()
    net, path = mnas.Supernet(space), space.parse("conv3x3-conv3x3")
    head = control.head(net)
    assert list(head) == ["7.weight", "7.bias", "9.weight", "9.bias"]
    share = sum(t.numel() for t in head.values()) / mnas.cost(space, path).params
    assert round(share, 3) == 0.977
    network = mnas.export(net, path).state_dict()
    assert all(torch.equal(network[name], value) for name, value in head.items())
    assert list(control.head(mnas.Supernet(mnas.spaces.mil9())))[-1].endswith("bias")


def test_a_network_begins_with_the_head_alone_of_another():
    """The rest are the weights that the run from scratch of the same seed begins with."""
    space = mnas.spaces.mil4()
    config = {**one_run.DEFAULTS["scratch"], "mode": "scratch", "threads": 1}
    config |= {"seed": 1000, "arch": "conv3x3-conv3x3", "limit_train": 256, "limit_test": 200}
    data = one_run.load(config, ROOT / "data")
    plain, other = (one_run.trainer_of(config, data) for _ in range(2))
    head = control.head(mnas.Supernet(space))
    control.replace(other, head)
    for name, value in other.module.state_dict().items():
        assert torch.equal(value, head.get(name, plain.module.state_dict()[name])), name
    other.advance()
    assert not torch.equal(other.module.state_dict()["9.weight"], head["9.weight"])  # it trains
    with pytest.raises(ValueError, match=r"no weights of this network: 8\.weight"):
        control.replace(other, {"8.weight": head["9.weight"]})


@pytest.mark.slow
def test_rows_are_those_of_plain_trainings_and_are_kept(tmp_path):
    first = run(tmp_path, "--seeds", "1")
    assert first.returncode == 0, first.stderr
    begun = rows(tmp_path / "mil4_mnist.jsonl")
    more = run(tmp_path, "--seeds", "2")
    assert more.returncode == 0, more.stderr
    assert "seed 1000" not in more.stdout  # finished ones are not measured again
    assert "supernet-epochs conv3x3-conv3x3 seed 1001: test top-1" in more.stdout
    found = rows(tmp_path / "mil4_mnist.jsonl")
    assert [row for row in found if row["number"] == 0] == begun
    assert len({control._key(row) for row in found}) == len(found) == 2 * 2 * 4
    for row in found:
        assert (
            row["steps"]
            == 2 * row["epochs"]
            == {"supernet-epochs": 8, "trained-head": 4}[row["kind"]]
        )
        assert row["seed"] == 1000 + row["number"]
        assert row["threads"] == 1
        assert len(row["commit"]) == 40
        assert row["started"] > "2026"
        assert row["seconds"] > 0

    config = {**one_run.DEFAULTS["scratch"], "mode": "scratch", "threads": 1, "epochs": 4}
    config |= {"seed": 1001, "arch": "conv5x5-conv3x3", "limit_train": 256, "limit_test": 200}
    torch.set_num_threads(1)
    data = one_run.load(config, ROOT / "data")
    trainer = one_run.trainer_of(config, data)
    while not trainer.finished:
        trainer.advance()
    (score,) = one_run.results(trainer, data)
    (row,) = [r for r in found if control._key(r) == ("supernet-epochs", 1, "conv5x5-conv3x3")]
    assert {key: row[key] for key in score} == score

    other = run(tmp_path, few=(*FEW[:3], "100"))
    assert other.returncode == 2
    assert "was measured with other settings" in other.stderr
    assert rows(tmp_path / "mil4_mnist.jsonl") == found


@pytest.mark.slow
def test_a_stopped_measurement_goes_on(tmp_path):
    command = [sys.executable, "-m", "benchmarks.control", "--out", str(tmp_path), *FEW]
    with subprocess.Popen(
        [*command, "--seeds", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on with that run" in said
    kept = rows(tmp_path / "mil4_mnist.jsonl")
    assert 3 <= len(kept) < 16
    assert run(tmp_path, "--seeds", "2").returncode == 0
    found = rows(tmp_path / "mil4_mnist.jsonl")
    assert len(found) == 16
    assert all(row in found for row in kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--space", "nb_macro"), "--space nb_macro has 6,561 networks; expected at most 16"),
        (
            ("--page", "docs/results.md", "--study", "nowhere"),
            "nowhere does not hold study.json",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(options, message):
    found = run("nowhere", *options)
    assert found.returncode == 2
    assert found.stderr == f"error: {message}\n"
    assert not (ROOT / "nowhere").exists()
