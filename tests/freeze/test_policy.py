"""Clipping by the norm of active entries; the stock policy on zeroed gradients."""

import pytest
import torch
from conftest import batches
from torch import nn
from torch.nn import functional as F

import mnas


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


ROWS = {"0.weight": torch.tensor([True, False, True, False, True])[:, None], "2.bias": False}
IRREGULAR = {"0.weight": torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.5}


def train(net, optimizer, steps, first=0):
    for seed in range(first, first + steps):
        optimizer.zero_grad()
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        net(x).square().mean().backward()
        optimizer.step()


def step(net, optimizer, path, batch):
    """A path. Stock torch takes zeros as the gradients of the others, which are None."""
    x, y = batch
    optimizer.zero_grad()
    F.cross_entropy(net(x, path), y).backward()
    if not isinstance(optimizer, mnas.MaskedOptimizer):
        for parameter in net.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def weights(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def test_clipping_takes_the_norm_of_active_entries_only():
    net = linear()
    mnas.GradientMask(net, {"*": False, "0.weight": IRREGULAR["0.weight"]})
    net(torch.randn(8, 6)).square().sum().backward()
    active = net[0].weight.grad[IRREGULAR["0.weight"]].clone()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    # The norm adds the same squares with zeros between, in another order.
    torch.testing.assert_close(norm, active.norm(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(
        net[0].weight.grad[IRREGULAR["0.weight"]], active * (0.5 / norm), rtol=1e-5, atol=0.0
    )
    assert net[0].weight.grad[~IRREGULAR["0.weight"]].eq(0).all()


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("form", [{}, {"fused": True}])
def test_policy_torch_is_the_stock_optimizer_on_zeroed_gradients(optimizer_class, form, small):
    options = {
        "lr": 0.1,
        "weight_decay": 0.1,
        **({"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}),
        **form,
    }
    nets = linear(), linear()
    for net in nets:
        mnas.GradientMask(net, ROWS)
    train(nets[0], mnas.MaskedOptimizer(optimizer_class, nets[0], policy="torch", **options), 5)
    train(nets[1], optimizer_class(nets[1].parameters(), **options), 5)
    assert torch.equal(weights(nets[0]), weights(nets[1]))
    assert nets[0][0].weight[1].ne(linear()[0].weight[1]).all()  # frozen entries drift
    supernets = []
    for masked in (True, False):
        torch.manual_seed(0)
        net = mnas.Supernet(small)
        supernets.append(net)
        if masked:
            optimizer = mnas.MaskedOptimizer(optimizer_class, net, policy="torch", **options)
        else:
            optimizer = optimizer_class(net.parameters(), **options)
        for path, batch in zip([(0, 0), (1, 1), (0, 1)] * 2, batches(6), strict=True):
            step(net, optimizer, path, batch)
    assert torch.equal(*map(weights, supernets))
