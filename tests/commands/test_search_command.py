"""The command that searches a trained supernet, as a user runs it."""

import json

import pytest
import torch
from conftest import rows
from processes import LOADED, tool
from running import ARCHS, QUICK, in_process

import mnas

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "supernet"
    done = tool("train", "--mode", "supernet", *QUICK, "--out", out, validation=500)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_the_front_is_that_of_the_scores_and_goes_on(sampler, supernet, tmp_path):
    kept, out = tmp_path / "search.log", tmp_path / "front.jsonl"
    arguments = ("--checkpoint", supernet, "--sampler", sampler, "--storage", kept, "--batch", 4)
    done = tool("search", *arguments, "--trials", 4, validation=500)
    assert done.returncode == 0, done.stderr
    done = tool("search", *arguments, "--out", out, validation=500)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 networks scored on 500 validation images" in done.stdout
    net = mnas.Supernet(mnas.spaces.mil4())
    state = torch.load(supernet / "checkpoint.pt", weights_only=True)
    net.load_state_dict(state["weights"]["supernet"])
    split = LOADED.validation.first(500)
    images = LOADED.train.first(1000).images
    paths = list(net.space.paths())
    scores = mnas.evaluate_paths(net, paths, split.images, split.labels, bn_images=images)
    scored = [(mnas.cost(net.space, p).macs, s.top1) for p, s in zip(paths, scores, strict=True)]
    expected = {
        (macs, top1)
        for macs, top1 in scored
        if not any(m <= macs and t >= top1 and (m, t) != (macs, top1) for m, t in scored)
    }
    assert {(row["macs"], row["val_top1"]) for row in rows(out)} == expected
    for row in rows(out):
        assert row["arch"] in ARCHS
        assert f"{row['macs']:,}" in done.stdout
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert all(json.loads(line) for line in kept.read_text().splitlines())


def test_the_best_within_a_budget_is_the_last_line(supernet, tmp_path):
    out, kept = tmp_path / "front.jsonl", tmp_path / "search.log"
    arguments = ("--checkpoint", supernet, "--max-macs", 2_000_000, "--storage", kept)
    done = tool("search", *arguments, "--aims", "score", "--out", out, validation=500)
    assert done.returncode == 0, done.stderr
    assert "2 of 4 networks scored on 500 validation images" in done.stdout
    net = mnas.Supernet(mnas.spaces.mil4())
    state = torch.load(supernet / "checkpoint.pt", weights_only=True)
    net.load_state_dict(state["weights"]["supernet"])
    split, images = LOADED.validation.first(500), LOADED.train.first(1000).images
    within = [p for p in net.space.paths() if mnas.cost(net.space, p).macs <= 2_000_000]
    scores = mnas.evaluate_paths(net, within, split.images, split.labels, bn_images=images)
    assert rows(out)[-1]["val_top1"] == max(score.top1 for score in scores)
    assert done.stdout.splitlines()[-2].split()[0] == rows(out)[-1]["arch"]
    done = tool("search", *arguments, validation=500)
    assert done.returncode == 2
    assert "has aims='score', not 'score,cost'" in done.stderr.splitlines()[-1]


def test_latency_is_a_budget_and_a_cost(supernet, tmp_path):
    out = tmp_path / "front.jsonl"
    arguments = ("--checkpoint", supernet, "--by", "latency", "--max-latency", 60_000)
    done = tool("search", *arguments, "--trials", 30, "--out", out, validation=100)
    assert done.returncode == 0, done.stderr
    front = rows(out)
    assert [row["latency_ms"] for row in front] == sorted(row["latency_ms"] for row in front)
    assert "ms" in done.stdout.splitlines()[1]
    done = tool("search", *arguments[:4], "--max-latency", 1e-6, "--trials", 4, validation=100)
    assert done.returncode == 2
    assert "none of 4 networks drawn is within the budget" in done.stderr


def test_mistakes_are_one_line(supernet, tmp_path, monkeypatch, capsys):
    for arguments, message in (
        (("--max-macs", 1000), "none of"),
        (("--sampler", "best"), "sampler"),
        (("--trials", 0), "trials"),
        (("--aims", "cost"), "aims"),
        (("--storage", tmp_path), "cannot hold a search"),
        (("--storage", tmp_path / "no" / "file"), "is no directory"),
        (("--out", supernet / "config.json"), "exists"),
        (("--out", tmp_path / "front.png"), "is the picture"),
        (("--max-latency", 0), "max-latency"),
        (("--checkpoint", tmp_path), "is not a run directory"),
    ):
        options = {"--checkpoint": supernet, "--limit-validation": 20, "--trials": 4}
        options[arguments[0]] = arguments[1]
        line = [word for pair in options.items() for word in pair]
        status, _, error = in_process(monkeypatch, capsys, "search", *line, validation=500)
        assert status == 2, error
        last = error.splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last
