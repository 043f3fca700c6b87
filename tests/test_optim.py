"""MaskedOptimizer as a torch.optim.Optimizer; its arithmetic is in test_exactness.py."""

import copy
import io

import pytest
import torch
from conftest import batches
from torch.nn import functional as F

import mnas


def step(net, optimizer, path, batch):
    x, y = batch
    optimizer.zero_grad()
    F.cross_entropy(net(x, path), y).backward()
    optimizer.step()


def weights(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


@pytest.mark.parametrize("optimizer_class", mnas.optim.ELEMENTWISE)
def test_state_dict_continues_bit_for_bit_in_a_new_process_of_the_same_net(small, optimizer_class):
    torch.manual_seed(0)
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(optimizer_class, net, lr=0.01)
    stream = list(batches(20))
    paths = list(small.paths()) * 5
    for path, batch in zip(paths[:9], stream[:9], strict=True):
        step(net, optimizer, path, batch)
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    fresh = mnas.Supernet(small)
    resumed = mnas.MaskedOptimizer(optimizer_class, fresh, lr=0.5)
    stored = torch.load(file, weights_only=True)
    fresh.load_state_dict(stored[0])
    resumed.load_state_dict(stored[1])
    assert resumed.param_groups[0]["lr"] == 0.01
    for path, batch in zip(paths[9:], stream[9:], strict=True):
        step(net, optimizer, path, batch)
        step(fresh, resumed, path, batch)
    assert torch.equal(weights(net), weights(fresh))


def test_state_is_kept_only_for_what_was_active(small):
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net)
    step(net, optimizer, (0, 0), next(batches(1)))
    step(net, optimizer, (0, 1), next(batches(1)))
    held = sorted(state["exp_avg"].numel() for state in optimizer.state.values())
    used = [*mnas.export(net, (0, 0)).parameters(), *list(mnas.export(net, (0, 1)).parameters())[2:4]]
    assert held == sorted(p.numel() for p in used)
    steps = [int(state["step"]) for state in optimizer.state.values()]
    assert sorted(steps) == [1] * 4 + [2] * 6


def test_schedulers_steer_the_wrapped_optimizer(small):
    """The rate that a scheduler sets must be the rate of the next step: with lr 0 nothing moves."""
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch == 0 else 0.0)
    before = weights(net)
    step(net, optimizer, (0, 0), next(batches(1)))
    assert not torch.equal(before, weights(net))
    scheduler.step()
    before = weights(net)
    step(net, optimizer, (0, 0), next(batches(1)))
    assert torch.equal(before, weights(net))


def test_closure(small):
    net = mnas.Supernet(small)
    twin = copy.deepcopy(net)
    x, y = next(batches(1))
    optimizer, other = (mnas.MaskedOptimizer(torch.optim.SGD, n, lr=0.1) for n in (net, twin))

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x, (1, 0)), y)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    step(twin, other, (1, 0), (x, y))
    assert torch.equal(weights(net), weights(twin))


def test_a_net_moved_after_the_optimizer_was_made_is_still_the_one_that_is_trained(small):
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1)
    net.double()
    x, y = next(batches(1, dtype=torch.float64))
    before = mnas.export(net, (0, 0))
    step(net, optimizer, (0, 0), (x, y))
    after = mnas.export(net, (0, 0))
    assert all(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_frozen_parameters_stay(small):
    net = mnas.Supernet(small)
    net._choices[0].weight.requires_grad_(False)
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.1)
    before = mnas.export(net, (0, 0))
    step(net, optimizer, (0, 0), next(batches(1)))
    after = mnas.export(net, (0, 0))
    assert torch.equal(before[0].weight, after[0].weight)
    assert not after[0].weight.requires_grad
    assert not torch.equal(before[3].weight, after[3].weight)
