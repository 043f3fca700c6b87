"""Recalibration: pooled statistics against the closed form, and nothing else changed."""

import pytest
import torch
from conftest import randomise
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
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6)
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
