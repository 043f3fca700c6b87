"""Recalibration: pooled statistics against the closed form, and nothing else changed."""

import json

import pytest
import torch
from conftest import randomise, rows
from running import in_process
from torch import nn

import mnas

X = torch.randn(70, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1


def test_one_layer_gets_the_mean_and_unbiased_variance_of_all_images():
    layer = nn.Sequential(nn.BatchNorm2d(3))
    for batch_size in (70, 32, 7):
        statistics = mnas.recalibrate(layer, X, batch_size)[0]
        torch.testing.assert_close(statistics.running_mean, X.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(statistics.running_var, X.var((0, 2, 3)), rtol=1e-6, atol=1e-6)
        assert statistics.momentum == 0.1


def test_deep_layers_get_those_of_their_own_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 6),
        nn.BatchNorm1d(6),
    )
    randomise(model)
    recalibrated = mnas.recalibrate(model, X, batch_size=70)
    model.train()
    inner = model[0](X)
    outer = model[:5](X)
    torch.testing.assert_close(recalibrated[1].running_mean, inner.mean((0, 2, 3)))
    torch.testing.assert_close(recalibrated[1].running_var, inner.var((0, 2, 3)))
    torch.testing.assert_close(recalibrated[5].running_mean, outer.mean(0))
    torch.testing.assert_close(recalibrated[5].running_var, outer.var(0))


@pytest.mark.parametrize("training", [True, False])
def test_the_supernet_is_bitwise_as_it_was(training):
    net = mnas.Supernet(mnas.spaces.mil9(channels=(4, 6))).train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(20, 1, 28, 28)
    for model, layers in ((net.subnet((1, 2)), 7), (mnas.export(net, (2, 0)), 6)):
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        recalibrated = mnas.recalibrate(model, x)
        assert all(module.training == training for module in recalibrated.modules())
        assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())
        means = [name for name in own if "running_mean" in name]
        assert len(means) == layers
        assert all(not torch.equal(recalibrated.state_dict()[name], own[name]) for name in means)
        for ours, theirs in zip(recalibrated.parameters(), model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training == training


def test_networks_without_statistics_are_only_copied():
    model = nn.Sequential(nn.Linear(3, 2))
    twin = mnas.recalibrate(model, torch.randn(4, 3))
    assert torch.equal(twin[0].weight, model[0].weight)
    assert twin[0].weight.data_ptr() != model[0].weight.data_ptr()


class Detour(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.used(x)


def test_a_layer_out_of_reach_and_an_instance_norm_keep_their_statistics():
    norm = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    assert torch.equal(mnas.recalibrate(norm, X)[1].running_var, torch.ones(3))
    x = torch.randn(501, 2) + 5  # one more than a batch
    twin = mnas.recalibrate(Detour(), x)
    torch.testing.assert_close(twin.used.running_mean, x.mean(0))
    assert torch.equal(twin.unused.running_mean, torch.zeros(2))
    assert torch.equal(twin.unused.running_var, torch.ones(2))


def test_dropout_is_off():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    twin = mnas.recalibrate(model, X)
    torch.testing.assert_close(twin[1].running_mean, X.mean((0, 2, 3)))
    assert twin[0].training


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="got no images"):
        mnas.recalibrate(nn.Sequential(nn.BatchNorm1d(2)), torch.empty(0, 2))


def test_a_space_with_normalisation_is_scored_with_statistics_of_its_own(
    tmp_path, monkeypatch, capsys
):
    """Recalibrated in the summary and in tools/evaluate.py alike; stored ones give other
    numbers."""
    run = tmp_path / "run"
    options = (
        "--mode",
        "supernet",
        "--space",
        "mil9",
        "--limit-train",
        150,
        "--limit-test",
        150,
        "--epochs",
        1,
    )
    assert in_process(monkeypatch, capsys, "train", *options, "--out", run, validation=100)[0] == 0
    summary = json.loads((run / "summary.json").read_text())
    assert [path["arch"] for path in summary["paths"]] == [
        f"d{a}-d{b}" for a in (1, 2, 3) for b in (1, 2, 3)
    ]
    scores = {}
    for bn in ("recalibrate", "stored"):
        out = tmp_path / f"{bn}.jsonl"
        arguments = ("--checkpoint", run, "--bn", bn, "--limit-test", 150, "--out", out)
        assert in_process(monkeypatch, capsys, "evaluate", *arguments)[0] == 0
        scores[bn] = [row["test_loss"] for row in rows(out)]
    config = json.loads((run / "config.json").read_text())
    assert config["bn"] == "recalibrate"
    assert scores["stored"] != scores["recalibrate"]
    out = tmp_path / "default.jsonl"
    assert (
        in_process(
            monkeypatch, capsys, "evaluate", "--checkpoint", run, "--limit-test", 150, "--out", out
        )[0]
        == 0
    )
    assert [row["test_loss"] for row in rows(out)] == scores["recalibrate"]
    assert [path["test_loss"] for path in summary["paths"]] == scores["recalibrate"]
    export = ("--checkpoint", run, "--arch", "d1-d3", "--limit-test", 150)
    for bn, options in (("recalibrate", ()), ("stored", ("--bn", "stored"))):
        assert (
            in_process(
                monkeypatch, capsys, "export", *export, *options, "--out", tmp_path / f"net-{bn}"
            )[0]
            == 0
        )
        report = json.loads((tmp_path / f"net-{bn}" / "verification.json").read_text())
        assert (report["bn"], report["max_abs_difference"]) == (
            bn,
            {"sliced": 0.0, "masked": 0.0},
        )
        weights = torch.load(tmp_path / f"net-{bn}" / "weights.pt", weights_only=True)
        stored = torch.load(run / "checkpoint.pt", weights_only=True)["weights"]["supernet"][
            "model.1.running_mean"
        ]
        assert torch.equal(weights["1.running_mean"], stored) == (bn == "stored")
    assert report["test_top1"] != summary["paths"][2]["test_top1"]
