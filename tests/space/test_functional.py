"""Supernets under torch.func and higher derivatives: on tensors in place of their parameters."""

import pytest
import torch
from conftest import batches, randomise

import mnas


def test_functional_call_uses_the_tensors_it_is_given(small):
    net, other = mnas.Supernet(small), mnas.Supernet(small)
    randomise(other)
    x, _ = next(batches(1))
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    logits = torch.func.functional_call(net, given, (x, (1, 0)))
    assert torch.equal(logits, other(x, (1, 0)))
    logits.sum().backward()
    assert given["model.0.conv5x5.weight"].grad.ne(0).any()
    assert given["model.0.conv3x3.weight"].grad is None
    assert all(p.grad is None for p in net.parameters())

    def loss(tensors):
        return torch.func.functional_call(net, tensors, (x, (1, 0))).sum()

    grads = torch.func.grad(loss)({name: p.detach() for name, p in given.items()})
    for name in ("model.0.conv5x5.weight", "model.7.weight"):
        torch.testing.assert_close(grads[name], given[name].grad)


@pytest.mark.parametrize("name", ["mil4", "mil4_nested"])
def test_functional_call_differentiates_by_what_made_the_tensors(name):
    """As a step within a step does (Finn et al., ICML 2017): tensors that are no leaves."""
    net = mnas.Supernet(getattr(mnas.spaces, name)(channels=(3, 5), hidden=7))
    randomise(net)
    path, (x, _) = (1, 0), next(batches(1))
    start = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    made = {name: 2 * tensor for name, tensor in start.items()}
    torch.func.functional_call(net, made, (x, path)).square().sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    net(x, path).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (start[name].grad is None)
        if parameter.grad is not None:
            assert torch.equal(start[name].grad, 2 * parameter.grad)


@pytest.mark.parametrize("name", ["mil4", "mil4_nested"])
def test_double_backward(name):
    net = mnas.Supernet(getattr(mnas.spaces, name)(channels=(3, 5), hidden=7)).double()
    randomise(net)
    path, (x, _) = (1, 0), next(batches(1, dtype=torch.float64))
    plain = mnas.export(net, path)
    norms = []
    for model, inputs in ((net, (x, path)), (plain, (x,))):
        parameters = list(model.parameters())
        loss = model(*inputs).square().sum()
        grads = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        norms.append(sum(grad.square().sum() for grad in grads if grad is not None))
        norms[-1].backward()
    torch.testing.assert_close(*norms)
    for choice, index, layer in zip(net.choices, path, (plain[0], plain[3]), strict=True):
        entries = sum(float(p.grad.sum()) for p in choice.parameters_of(index))
        torch.testing.assert_close(entries, sum(float(p.grad.sum()) for p in layer.parameters()))
        others = {*choice.parameters()}.difference(choice.parameters_of(index))
        assert all(p.grad is None for p in others)
