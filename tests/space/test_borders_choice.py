"""Borders of choices and masks: what writes, spreads or loads into the wrong place is refused or
kept out."""

import copy
import math
import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from conftest import ROOT, batches
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import mnas
from mnas.space.choice import Choice


def snapshot(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


WIDTHS = {"channels": (3, 5), "hidden": 7}


def ours(net):
    return mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.05, momentum=0.9, weight_decay=0.01)


def outside(net, path):
    """The parameters of choices where the path does not go, and those where it does."""
    used = [p for c, i in zip(net.choices, path, strict=True) for p in c.parameters_of(i)]
    unused = [p for c in net.choices for p in c.parameters() if all(p is not u for u in used)]
    return unused, used


@pytest.mark.parametrize("execution", ["masked", "sliced"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "path"), [("mil4", (0, 1)), ("mil4", (1, 0)), ("mil4_nested", (0, 0))]
)
def test_nothing_inactive_reaches_a_path(name, path, value, execution):
    space = getattr(mnas.spaces, name)(**WIDTHS)
    torch.manual_seed(0)
    net = mnas.Supernet(space, execution)
    twin, stock = copy.deepcopy(net), mnas.export(net, path)
    unused, used = outside(net, path)
    assert unused
    for parameter in unused:
        parameter.data.fill_(value)
    optimizers = (
        ours(net),
        ours(twin),
        torch.optim.SGD(stock.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01),
    )
    for x, y in batches(5):
        losses = []
        for model, optimizer in zip((net, twin, stock), optimizers, strict=True):
            optimizer.zero_grad()
            logits = model(x) if model is stock else model(x, path)
            losses.append((logits, F.cross_entropy(logits, y)))
            losses[-1][1].backward()
            optimizer.step()
        assert torch.equal(losses[0][0], losses[1][0])
        assert torch.equal(losses[0][1], losses[1][1])
        torch.testing.assert_close(losses[0][0], losses[2][0], rtol=1e-4, atol=1e-5)
    for parameter, clean in zip(used, outside(twin, path)[1], strict=True):
        assert torch.equal(parameter, clean)
    for parameter in unused:
        assert parameter.grad is None
        assert torch.equal(parameter.isnan(), torch.full_like(parameter, math.isnan(value)).bool())
        assert not torch.isfinite(parameter).any()
    a, b = (mnas.export(model, path).state_dict() for model in (net, twin))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "kept", ["net = kept", "torch.kept = kept", "collections.kept = kept", "kept.append(kept)"]
)
def test_nothing_is_printed_when_the_interpreter_ends(kept):
    """Whatever goes last: some of these modules are torn down after those of mnas."""
    script = f"""
        import collections, torch, mnas
        net = mnas.Supernet(mnas.spaces.mil4(channels=(2, 2), hidden=2))
        layer = torch.nn.Linear(3, 3)
        mask = mnas.GradientMask(layer, {{"weight": torch.eye(3) > 0}})
        net(torch.zeros(1, 1, 28, 28), (0, 1)).sum().backward()
        kept = [net, layer, mask]
        {kept}
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=env
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_rows_that_a_forward_pass_rescales_are_not_masked(kind):
    rows = (torch.arange(8) >= 6)[:, None]
    layer = kind(8, 4, max_norm=1.0)
    with pytest.raises(
        ValueError, match=rf"^layer 'given', {kind.__name__} with max_norm=1.0, .*drop max_norm, or"
    ):
        mnas.GradientMask(layer, {"weight": rows})
    mnas.GradientMask(layer, {"weight": torch.ones(8, 1, dtype=torch.bool)})  # all of it trains
    mnas.GradientMask(kind(8, 4), {"weight": rows})
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Sequential(layer))
    for masks in ({"*": False}, {"1.0.weight": rows}, {"1.*": True, "1.0.weight": False}):
        with pytest.raises(ValueError, match=r"^layer '1\.0', "):
            mnas.GradientMask(net, masks)
    mnas.GradientMask(net, {"0.weight": False})
    net[0].weight = layer.weight  # tied
    with pytest.raises(ValueError, match=r"^layer '1\.0', "):
        mnas.GradientMask(net, {"0.weight": rows})
    layer.weight.requires_grad_(False)  # rescaled all the same
    with pytest.raises(ValueError, match=r"^layer '1\.0', "):
        mnas.GradientMask(net, {"0.weight": rows})
    for nested in (False, True):
        with pytest.raises(
            ValueError,
            match=rf"^candidate 'b' has a {kind.__name__} with max_norm=2, .*without max_no",
        ):
            Choice({"a": kind(8, 4), "b": nn.Sequential(kind(8, 4, max_norm=2))}, nested=nested)


def test_looking_for_such_layers_is_no_forward_pass():
    layer = parametrizations.spectral_norm(nn.Embedding(6, 4, max_norm=1.0))
    before = snapshot(layer)
    mnas.GradientMask(
        layer, {"*": False}
    )  # what is rescaled is computed anew each time, not the parameter
    assert same(snapshot(layer), before)
    layer(torch.arange(6))
    assert torch.equal(
        layer.parametrizations.weight.original, before["parametrizations.weight.original"]
    )


def closed_file():
    with (ROOT / "README.md").open() as file:
        return file


def with_attribute(value):
    layer = nn.Conv2d(1, 2, 3)
    layer.thing = value
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: weight_norm(nn.Linear(2, 2)),
            r"old torch.nn.utils.weight_norm, .*parametrizations.weight_norm$",
        ),
        (
            lambda: with_attribute(torch.ones(2, requires_grad=True) * 2),
            r"cannot be copied \(Only Tensors created expl",
        ),
        (
            lambda: with_attribute(threading.Lock()),
            r"cannot be copied \(cannot pickle '_thread.lock' object\); keep",
        ),
        (
            lambda: with_attribute(closed_file()),
            r"cannot be copied \(cannot pickle '_io.TextIO",
        ),
        (
            lambda: with_attribute(x for x in [1]),
            r"cannot be copied \(cannot pickle 'generator' object\)",
        ),
        (
            lambda: nn.LazyConv2d(2, 3),
            r"has 'weight' lazy, sparse or quantized; expected a dense tensor",
        ),
        (lambda: nn.LazyBatchNorm2d(), r"lazy, sparse or quantized"),
        (lambda: with_buffer(torch.eye(2).to_sparse()), r"has 'thing' lazy, sparse or quantized"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_candidates_that_cannot_be_merged_are_named(make, reason):
    match = f"^candidate 'bad' .*{reason}"
    with pytest.raises(ValueError, match=match) as caught:
        Choice({"good": nn.Identity(), "bad": nn.Sequential(make()) if "old" in match else make()})
    assert "\n" not in str(caught.value)


def with_buffer(tensor):
    layer = nn.Identity()
    layer.register_buffer("thing", tensor)
    return layer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "normalised", [spectral_norm, parametrizations.spectral_norm, parametrizations.weight_norm]
)
def test_normalised_candidates_are_as_separate_modules(normalised):
    def build():
        torch.manual_seed(0)
        return {"a": normalised(nn.Linear(5, 4)), "b": nn.Linear(5, 4)}

    net = mnas.Supernet(mnas.SearchSpace(lambda: nn.Sequential(Choice(build())), input_shape=(5,)))
    modules = list(build().values())
    optimizer = ours(net)
    stock = torch.optim.SGD(
        [p for m in modules for p in m.parameters()], lr=0.05, momentum=0.9, weight_decay=0.01
    )
    for seed, index in enumerate([0, 1, 1, 0, 1, 0]):
        x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        stock.zero_grad()
        logits, expected = net(x, (index,)), modules[index](x)
        assert torch.equal(logits, expected)
        logits.square().mean().backward()
        expected.square().mean().backward()
        optimizer.step()
        stock.step()
