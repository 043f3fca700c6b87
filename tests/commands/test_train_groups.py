"""`mnas train --group`: sub-supernets of few-shot search, started from a supernet."""

import json

import pytest
import torch
from running import in_process, same_results
from test_train_rules import stopped

import mnas
from mnas.training import one_run
from mnas.training.trainer import Recipe, supernet_trainer

QUICK = ("--limit-train", 300, "--limit-test", 60, "--batch-size", 30, "--threads", 1)
SUPERNET = ("--mode", "supernet", *QUICK, "--epochs", 1)
GROUP = ("--group", "choice0=conv5x5")
ARCHS = ["conv5x5-conv3x3", "conv5x5-conv5x5"]


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: in_process(monkeypatch, capsys, *arguments, validation=60)


@pytest.fixture
def whole(command, tmp_path):
    out = tmp_path / "whole"
    assert command("train", *SUPERNET, "--out", out)[0] == 0
    return out


def weights(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)["weights"]["supernet"]


def test_a_group_is_trained_as_by_the_library_and_scored_alone(command, whole, tmp_path):
    """Stopped and resumed; then evaluated, ranked, split further and inherited from."""
    run = tmp_path / "group"
    arguments = (*SUPERNET, *GROUP, "--start", whole, "--seed", 7, "--checkpoint-every", 3)
    status, said, error = command("train", *arguments, "--out", run)
    assert status == 0, error
    assert "supernet of mil4 with choice0=conv5x5 (2 architectures)" in said

    config = json.loads((run / "config.json").read_text())
    assert (config["group"], config["start"]) == (["choice0=conv5x5"], str(whole))
    data = one_run.load(config, tmp_path)
    group = mnas.spaces.get("mil4").restricted(choice0="conv5x5")
    start = weights(whole)
    options = {"bn": "recalibrate", "start": start}
    trainer = supernet_trainer(
        group, data.train, data.validation, Recipe(1, batch_size=30), 7, **options
    )
    while not trainer.finished:
        trainer.advance()
    trained = weights(run)
    for name, value in trainer.module.state_dict().items():
        assert torch.equal(value, trained[name])
        outside = ".conv3x3." in name and name.startswith("model.0")
        assert not outside or torch.equal(value, start[name])
    assert not all(torch.equal(value, start[name]) for name, value in trained.items())
    summary = json.loads((run / "summary.json").read_text())
    assert [row["arch"] for row in summary["paths"]] == ARCHS

    rows = tmp_path / "rows.jsonl"
    limits = ("--limit-test", 60, "--threads", 1)
    status, said, _ = command("evaluate", "--checkpoint", run, *limits, "--out", rows)
    assert (status, "supernet of mil4 choice0=conv5x5 on mnist" in said) == (0, True)
    scored = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(r["arch"], r["test_top1"]) for r in scored] == [
        (r["arch"], r["test_top1"]) for r in summary["paths"]
    ]
    ranked = ("--images", 60, "--bn", "stored", "--threads", 1, "--out", tmp_path / "rank")
    status, said, _ = command("rank", "--checkpoint", run, *ranked)
    assert (status, said.startswith("2 paths in ")) == (0, True)

    further = (*SUPERNET, "--start", run, "--out", tmp_path / "further")
    for arguments, message in [
        (("evaluate", "--checkpoint", run, "--arch", "conv3x3-conv3x3"), "is not in space mil4"),
        (("train", *further), "choice0=conv5x5 alone; expected --group with choice0=conv5x5, too"),
        (("train", *further, "--group", "choice0=conv3x3"), "alone; expected --group with"),
        (
            ("train", "--mode", "scratch", "--arch", "conv3x3-conv3x3", "--start", run, *QUICK),
            "'conv3x3-conv3x3' is not in space mil4 with choice0=conv5x5; expected one of",
        ),
        (
            ("train", "--resume", "--out", run, "--group", "choice1=conv3x3"),
            "was begun with --group choice0=conv5x5, not choice1=conv3x3; resume with the same",
        ),
    ]:
        status, _, error = command(*arguments)
        assert (status, error.count("\n")) == (2, 1), error
        assert message in error
    status, said, error = command("train", *further, *GROUP, "choice1=conv3x3")
    assert status == 0, error
    assert "with choice0=conv5x5 and choice1=conv3x3 (1 architectures)" in said


def test_a_group_resumes_bit_for_bit(command, whole, monkeypatch, tmp_path):
    arguments = (*SUPERNET, *GROUP, "--rule", "sandwich", "--start", whole)
    arguments += ("--checkpoint-every", 3, "--sampler", "fair")
    run, other = tmp_path / "a", tmp_path / "b"
    assert command("train", *arguments, "--out", run)[0] == 0
    go_on = stopped(monkeypatch, at=7)
    assert command("train", *arguments, "--out", other)[0] == 1
    go_on()
    status, said, error = command("train", "--resume", "--out", other)
    assert status == 0, error
    assert "continuing at step 6 of 10" in said
    same_results(run, other)


BAD = {
    "no value": (("--group", "choice0"), "--group choice0; expected DECISION=VALUE, each"),
    "twice": (
        ("--group", "choice0=conv3x3", "choice0=conv5x5"),
        "--group choice0=conv5x5; expected DECISION=VALUE, each decision once, of choice0, choice1",
    ),
    "nothing": (("--group",), "--group is empty; expected DECISION=VALUE, as choice0=conv5x5"),
    "a decision of no space": (
        ("--group", "depth=2"),
        "space mil4 has no decision 'depth'; expected one of choice0, choice1",
    ),
    "a value that it has not": (
        ("--group", "choice1=conv7x7"),
        "choice1='conv7x7'; expected one of conv3x3, conv5x5",
    ),
    "a start of another space": (
        ("--space", "mil9", "--group", "choice0=d1", "--start", "WHOLE"),
        "is a run of mil4, not of mil9",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(case, command, request, tmp_path):
    arguments, message = BAD[case]
    if "WHOLE" in arguments:
        arguments = (*arguments[:-1], request.getfixturevalue("whole"))
    status, _, error = command("train", *SUPERNET, *arguments, "--out", tmp_path / "run")
    assert (status, error.count("\n")) == (2, 1), error
    assert message in error
    assert not (tmp_path / "run").exists()


def test_networks_from_scratch_have_no_groups_and_are_no_start(command, tmp_path):
    network = ("--mode", "scratch", "--arch", ARCHS[0], *QUICK, "--epochs", 0.5)
    status, _, error = command("train", *network, *GROUP, "--out", tmp_path / "run")
    assert (status, error.count("\n")) == (2, 1)
    assert "--group choice0=conv5x5 is for --mode supernet; leave it out" in error
    assert command("train", *network, "--out", tmp_path / "run")[0] == 0
    begun = (*SUPERNET, "--start", tmp_path / "run", "--out", tmp_path / "other")
    status, _, error = command("train", *begun)
    assert (status, error.count("\n")) == (2, 1)
    assert "holds networks from scratch; expected the run of a supernet" in error
