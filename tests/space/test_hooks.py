"""Hooks on a place: they run around whatever candidate runs there, as around a module."""

import pytest
import torch
from torch import nn

import mnas
from mnas import Choice


def conv(kernel):
    return nn.Conv2d(1, 2, kernel, padding=kernel // 2)


@pytest.fixture(params=[False, True], ids=["disjoint", "nested"])
def net(request):
    torch.manual_seed(0)
    space = mnas.SearchSpace(
        lambda: nn.Sequential(
            Choice({"a": conv(1), "b": conv(3)}, nested=request.param), nn.Flatten(), nn.ReLU()
        ),
        input_shape=(1, 3, 3),
    )
    return mnas.Supernet(space)


def hook(module, told):
    """All kinds of hooks, each of which tells of itself; the first two have an effect."""

    def told_to(word, result=None):
        def run(_, *args):
            told.append(word)
            return None if result is None else result(*args)

        return run

    return [
        module.register_forward_pre_hook(
            told_to("before", lambda args, kwargs: ((args[0] + 1,), kwargs)), with_kwargs=True
        ),
        module.register_forward_hook(told_to("after", lambda _, output: 2 * output)),
        module.register_forward_hook(told_to("always"), always_call=True),
        module.register_full_backward_hook(told_to("backward")),
    ]


WAYS = {
    "path": lambda net, x, index: net(x, (index,)),
    "paths": lambda net, x, index: net.forward_paths(x, [(index,)])[0],
    "subnet": lambda net, x, index: net.subnet((index,))(x),
    "mixture": lambda net, x, index: net(x, [torch.eye(2)[index]]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("index", [0, 1])
def test_hooks_of_a_place_run_around_its_candidate(net, way, index):
    choice, x, told = net.choices[0], torch.randn(2, 1, 3, 3, requires_grad=True), []
    plain = net(x, (index,))
    expected = (2 * net.subnet((index,))[0](x + 1)).flatten(1).relu()
    choice.module(index).register_forward_hook(lambda *_: told.append("candidate"))
    handles = hook(choice, told)
    y = WAYS[way](net, x, index)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert told == ["before", "candidate", "after", "always", "backward"]
    for handle in handles:
        handle.remove()
    assert torch.equal(WAYS[way](net, x, index), plain)


def test_what_trains_is_the_same_under_hooks(net):
    path, x = (1,), torch.randn(2, 1, 3, 3)
    net.choices[0].register_forward_hook(lambda *_: None)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net(x, path).square().sum().backward()
    optimizer.step()
    used = {id(p) for p in net.choices[0].parameters_of(1)}
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in used)
