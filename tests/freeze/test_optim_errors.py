"""A MaskedOptimizer after errors, between passes and with gradients of other types: as stock torch,
or better."""

import pytest
import torch
from test_optim import IRREGULAR, linear, train, weights
from torch import nn

import mnas


def test_a_step_between_forward_and_backward_is_noticed_as_in_stock_torch():
    net = linear()
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1)
    mnas.GradientMask(net, IRREGULAR)
    mnas.GradientMask(net, {"2.weight": torch.tensor([True, False])[:, None]})
    loss = net(torch.randn(8, 6)).square().mean()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_groups_that_are_refused_or_deleted_leave_a_working_optimizer():
    net = linear()
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net[0], lr=0.1)
    with pytest.raises(ValueError, match="differentiable=True"):
        optimizer.add_param_group({"params": net[2].parameters(), "differentiable": True})
    assert len(optimizer.param_groups) == 1
    train(net, optimizer, 1)
    optimizer.add_param_group({"params": net[2].parameters()})
    del optimizer.param_groups[0]
    before = weights(net)
    train(net, optimizer, 1)
    assert weights(net).ne(before).tolist() == [False] * 35 + [True] * 12


def test_an_error_in_a_step_does_not_bring_old_weights_back():
    layer = nn.Linear(16, 6, bias=False)
    rows = torch.tensor([0, 1, 3])
    mask = torch.zeros(6, 1, dtype=torch.bool)
    mask[rows] = True
    mnas.GradientMask(layer, {"weight": mask})
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, layer, lr=0.1, momentum=0.9)
    layer.weight.grad = torch.ones(6, 16)
    optimizer.step()
    with torch.no_grad():
        layer.weight.fill_(7.0)
    layer.weight.grad = torch.ones(6, 16).to_sparse()
    with pytest.raises(ValueError, match="sparse gradient; make its layer with sparse=False"):
        optimizer.step()
    assert layer.weight.eq(7.0).all()
    layer.weight.grad = torch.ones(6, 16)
    optimizer.step()
    assert layer.weight.ne(7.0).all(1).tolist() == [True, True, False, True, False, False]


def test_gradients_of_another_type_than_the_parameter():
    nets = [linear().bfloat16() for _ in range(2)]
    mnas.GradientMask(nets[0], {"*.weight": False})
    optimizers = (
        mnas.MaskedOptimizer(torch.optim.SGD, nets[0], lr=0.1),
        torch.optim.SGD(nets[1].parameters(), lr=0.1),
    )
    for net, optimizer in zip(nets, optimizers, strict=True):
        for parameter in net.parameters():
            parameter.grad_dtype = torch.float32
            parameter.grad = torch.full(parameter.shape, 0.3)
        optimizer.step()
    assert torch.equal(nets[0][0].bias, nets[1][0].bias)
    assert torch.equal(nets[0][0].weight, linear().bfloat16()[0].weight)


def test_an_error_in_a_later_parameter_brings_no_old_weights_back():
    layers = nn.ModuleList(nn.Linear(16, 6, bias=False) for _ in range(2))
    rows = torch.tensor([True, True, False, True, False, False])[:, None]
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, layers, lr=0.1)
    with mnas.GradientMask(layers, {"*": rows}):
        layers[0].weight.grad, layers[1].weight.grad = (
            torch.ones(6, 16),
            torch.ones(6, 16).to_sparse(),
        )
        with pytest.raises(ValueError, match="sparse"):
            optimizer.step()
    nn.init.ones_(layers[0].weight)
    layers[1].weight.grad = None
    with mnas.GradientMask(layers, {"*": ~rows}):
        layers[0].weight.grad = torch.ones(6, 16)
        optimizer.step()
    assert layers[0].weight.eq(1).all(1).tolist() == rows.squeeze().tolist()
