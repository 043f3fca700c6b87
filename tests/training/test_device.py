"""Where training and scoring compute. Without a GPU: nothing names a device; the meta device, which
computes nothing, is as good as any to show it."""

import json

import pytest
import torch
from conftest import batches, forget
from running import in_process
from torch.nn import functional as F

import mnas
from mnas.networks.recalibrate import pool
from mnas.space.sampler import SAMPLERS
from mnas.training import data, runtime
from mnas.training.recipe import Recipe
from mnas.training.registry import RULES, bound
from mnas.training.rules import Step
from mnas.training.trainer import supernet_trainer

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
QUICK = ("--limit-train", 300, "--limit-test", 60, "--batch-size", 30, "--epochs", 1)
QUICK += ("--threads", 1, "--lr", 0.02)
REFUSED = "error: --device cuda: torch finds no GPU here; give --device cpu or auto\n"


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *arguments: in_process(monkeypatch, capsys, *arguments, validation=60)


def step(space, device, bf16=False):
    net = mnas.Supernet(space).to(device)
    x, y = (t.to(device) for t in next(batches(1)))
    sampler = SAMPLERS["fair"](space, 0)
    return Step(net, x, y, sampler, F.cross_entropy, 0.5, net, bf16)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_runs_where_its_tensors_are(rule, small):
    """And the optimizer's state is there, too; on meta an operation with a CPU tensor raises."""
    teacher = mnas.standalone(small, (1, 1)).to("meta").eval()
    options = {"teacher": teacher} if rule == "distilled" else {}
    ours = step(small, "meta")
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, ours.net, lr=0.1, momentum=0.9)
    report = bound(rule, small, "fair", options)(ours)
    assert report.total.is_meta
    if rule == "path_dropout":  # of numbers that are not known nothing is known to be 0
        return
    with report.scaled(optimizer):
        optimizer.step()
    assert optimizer.state
    assert all(state["momentum_buffer"].is_meta for state in optimizer.state.values())


@pytest.mark.parametrize("augment", data.AUGMENT)
def test_images_are_augmented_where_they_are(augment):
    changed = data.AUGMENT[augment](torch.zeros(2, 3, 16, 16, device="meta"))
    assert (changed.is_meta, changed.shape) == (True, (2, 3, 16, 16))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bfloat16_is_of_the_device_of_the_images(device, small, monkeypatch):
    seen, real = [], torch.autocast

    def autocast(device, *arguments):
        seen.append((device, *arguments))
        return real("cpu", *arguments)

    monkeypatch.setattr(torch, "autocast", autocast)
    (logits,) = step(small, device, bf16=True).logits([(0, 1)])
    assert seen == [(device, torch.bfloat16)]
    assert logits.device.type == device


def test_recalibration_sums_where_the_network_is():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3)).to("meta").eval()
    (out,) = pool(net, [torch.empty(5, 1, 8, 8, device="meta")])
    assert out.is_meta
    assert net[1].running_var.is_meta


def test_splits_on_two_devices_are_refused(small, mnist):
    train = mnist.train.first(60)
    mixed = data.Split(train.images.to("meta"), train.labels)
    with pytest.raises(ValueError, match=r"are on cpu, meta; expected one device: call Split\.to"):
        supernet_trainer(small, train, mixed, Recipe(1), 0)


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    for found, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert runtime.device("auto") == expected
        assert runtime.device("cpu") == "cpu"


@no_gpu
def test_the_cpu_is_no_setting_and_a_gpu_that_is_not_there_is_refused(run, tmp_path):
    """Runs from before there was a choice go on: config.json names no CPU."""
    out = tmp_path / "run"
    assert run("train", "--mode", "supernet", "--device", "auto", *QUICK, "--out", out)[0] == 0
    assert "device" not in json.loads((out / "config.json").read_text())
    forget(out, "summary.json")
    assert run("train", "--resume", "--device", "cpu", "--out", out)[0] == 0
    assert run("evaluate", "--checkpoint", out, "--device", "auto", "--limit-test", 60)[0] == 0
    cuda, new = ("--device", "cuda"), tmp_path / "new"
    for command in (
        ("train", "--mode", "supernet", *cuda, *QUICK, "--out", new),
        ("train", "--resume", *cuda, "--out", out),
        ("evaluate", "--checkpoint", out, *cuda),
        ("study", *cuda, "--out", new, "--runs", new / "runs"),
    ):
        assert run(*command) == (2, "", REFUSED)
    assert not new.exists()


@no_gpu
def test_a_run_of_a_gpu_goes_on_with_one_alone(run, tmp_path):
    from mnas.training.environment import environment
    from mnas.training.run_directory import RunDirectory

    out = tmp_path / "run"
    assert run("train", "--mode", "supernet", *QUICK, "--out", out)[0] == 0
    config, other = RunDirectory(out).config(), tmp_path / "other"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        RunDirectory(other).create({**config, "device": "cuda"}, None)
        assert environment("cuda")["gpu"] == "a GPU"
    assert run("train", "--resume", "--out", other) == (2, "", REFUSED)
    status, _, error = run("train", "--resume", "--device", "cpu", "--out", other)
    assert (status, error.count("\n")) == (2, 1)
    assert "was begun with --device cuda, not cpu; resume with the same settings" in error


@gpu
@pytest.mark.parametrize("rule", RULES)
def test_a_gpu_learns_what_the_cpu_does(rule, small, mnist):
    """Losses of the first steps to 1e-3; a state goes from one to the other."""
    found = {}
    for device in ("cpu", "cuda"):
        train = mnist.train.first(120).to(device)
        teacher = mnas.standalone(small, (1, 1)).to(device).eval()
        given = {"teacher": teacher} if rule == "distilled" else {}
        recipe = Recipe(1, batch_size=30)
        trainer = supernet_trainer(
            small, train, train, recipe, 0, rule=rule, rule_options=given, bn="recalibrate"
        )
        found[device] = [trainer.advance() for _ in range(4)]
        assert {p.device.type for p in trainer.module.parameters()} == {device}
        trainer.load_state_dict(trainer.state_dict())
    torch.testing.assert_close(found["cpu"], found["cuda"], rtol=1e-3, atol=1e-3)


@gpu
def test_a_run_on_a_gpu_resumes_and_is_evaluated_on_either(run, tmp_path):
    out = tmp_path / "run"
    arguments = ("--mode", "supernet", "--device", "cuda", "--precision", "bf16", *QUICK)
    assert run("train", *arguments, "--out", out)[0] == 0
    config = json.loads((out / "config.json").read_text())
    assert config["device"] == "cuda"
    assert config["environment"]["gpu"]
    forget(out, "summary.json")
    assert run("train", "--resume", "--out", out)[0] == 0
    for device in ("cpu", "cuda"):
        assert run("evaluate", "--checkpoint", out, "--device", device, "--limit-test", 60)[0] == 0


def test_splits_move(mnist):
    moved = mnist.train.first(3).to("meta")
    assert isinstance(moved, data.Split)
    assert moved.images.is_meta
    assert moved.labels.is_meta
