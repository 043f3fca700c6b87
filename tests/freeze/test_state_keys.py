"""Keys of optimizer state: MaskedOptimizer.use_state."""

import copy

import pytest
import torch
from conftest import batches
from torch.nn import functional as F

import mnas


def test_each_key_has_a_state_of_its_own_under_masks():
    """Two AdamW over the same tensors, a mask in each step, and a checkpoint between; a state that
    does not fit changes nothing."""
    torch.manual_seed(0)
    ours = torch.nn.Linear(6, 4)
    rows = torch.tensor([True, True, False, False])
    part = torch.nn.Parameter(ours.weight.detach()[rows].clone())  # what the mask leaves
    kept = ours.weight.detach()[~rows].clone()
    mnas.GradientMask(ours, {"weight": rows[:, None].expand(4, 6)})
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, [ours.weight], lr=0.1)
    stock = {key: torch.optim.AdamW([part], lr=0.1) for key in (None, "a", "b")}
    for number, key in enumerate([None, "a", "b", "a", "a", None, "b", "a"]):
        gradient = torch.randn(4, 6)
        optimizer.zero_grad()
        (ours.weight * gradient).sum().backward()
        part.grad = gradient[rows]
        optimizer.use_state(key)
        optimizer.step()
        stock[key].step()
        assert torch.equal(ours.weight[rows], part)
        assert torch.equal(ours.weight[~rows], kept)
        if number == 4:
            saved = copy.deepcopy(optimizer.state_dict())
            assert (saved["key"], set(saved["other_keys"])) == ("a", {None, "b"})
            optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, [ours.weight], lr=0.1)
            optimizer.load_state_dict(saved)
            bad = copy.deepcopy(saved)
            bad["other_keys"]["b"][0]["shape"] = (9, 9)
            with pytest.raises(ValueError, match="does not fit"):
                optimizer.load_state_dict(bad)
            assert set(optimizer.state_dict()["other_keys"]) == {None, "b"}


KEYS = [None, "a", "b", "a", "a", None, "b", "a", "c"]


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("space", ["mil4", "mil4_nested"])
def test_the_stock_policy_with_keys_is_stock_sgd_whose_state_is_swapped(space, momentum):
    """One stock SGD, zeros as the gradients of what a path does not use, and the state dict of the
    key loaded before each step; a key's momentum goes on moving what it has trained before. A
    checkpoint between."""
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.01, "nesterov": momentum > 0}
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(mnas.Supernet(mnas.spaces.get(space)))
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, nets[0], policy="torch", **options)
    stock = torch.optim.SGD(nets[1].parameters(), **options)
    states = dict.fromkeys(KEYS, copy.deepcopy(stock.state_dict()))
    paths = list(nets[0].space.paths())
    drifted = 0
    for number, (key, (x, y)) in enumerate(zip(KEYS, batches(len(KEYS)), strict=True)):
        path = paths[number % len(paths)]
        for net, stepped in zip(nets, (optimizer, stock), strict=True):
            stepped.zero_grad()
            F.cross_entropy(net(x, path), y).backward()
        unused = [p for p in nets[1].parameters() if p.grad is None]
        for parameter in unused:
            parameter.grad = torch.zeros_like(parameter)
        before = [p.detach().clone() for p in unused]
        optimizer.use_state(key)
        optimizer.step()
        stock.load_state_dict(states[key])
        stock.step()
        states[key] = copy.deepcopy(stock.state_dict())
        for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
            assert torch.equal(ours, theirs)
        drifted += sum(not torch.equal(p, was) for p, was in zip(unused, before, strict=True))
        if number == 4:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = mnas.MaskedOptimizer(torch.optim.SGD, nets[0], policy="torch", **options)
            optimizer.load_state_dict(saved)
    assert drifted > len(KEYS)
