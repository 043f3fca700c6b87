"""A path as a module that is kept, and handed to others."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import mnas
from mnas import Choice, Decision


def model():
    width, kernel = Decision("width", (2, 4)), Decision("kernel", (1, 3))

    def conv(w, k):
        return nn.Sequential(nn.Conv2d(1, w, k, padding=k // 2), nn.BatchNorm2d(w), nn.ReLU())

    return nn.Sequential(
        Choice(conv, width, kernel, nested=True),
        nn.Flatten(),
        Choice(lambda w: nn.Linear(16 * w, 3), width, nested=True),
        Choice({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}),
    )


@pytest.fixture
def net():
    torch.manual_seed(0)
    return mnas.Supernet(mnas.SearchSpace(model, input_shape=(1, 4, 4)))


def test_a_subnet_that_is_kept_trains_as_the_path(net):
    twin, path, other = copy.deepcopy(net), (1, 0, 1), (0, 1, 0)
    subnet = twin.subnet(path)
    with torch.no_grad():
        subnet(torch.randn(2, 1, 4, 4))  # in another mode of autograd, without a trace
    with torch.no_grad():
        net(torch.randn(2, 1, 4, 4), path)
    torch.manual_seed(1)
    twin.load_state_dict(net.state_dict())
    optimizers = [mnas.MaskedOptimizer(torch.optim.AdamW, n, lr=0.01) for n in (net, twin)]
    for step in range(6):
        x = torch.randn(4, 1, 4, 4)
        for n, optimizer in zip((net, twin), optimizers, strict=True):
            optimizer.zero_grad()
            n(x, other).sum().backward()  # others move what is shared
            optimizer.step()
            optimizer.zero_grad()
            y = subnet(x) if n is twin else n(x, path)
            y.square().sum().backward()
            if step % 2:  # and gradients of a second pass are added
                (subnet(x) if n is twin else n(x, path)).sum().backward()
            optimizer.step()
        for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(subnet.eval()(x), mnas.export(twin, path).eval()(x))


@pytest.mark.parametrize("fused", [False, True])
def test_a_subnet_sees_what_says_nothing_of_its_writing(net, fused):
    """Fused kernels and `.data` do not count up versions."""
    path, x = (1, 0, 1), torch.randn(4, 1, 4, 4)
    subnet = net.subnet(path)
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.1, fused=fused)
    for _ in range(3):
        optimizer.zero_grad()
        subnet(x).sum().backward()
        optimizer.step()
        assert torch.equal(subnet(x), net(x, path))
    for parameter in net.parameters():
        parameter.data.add_(1)
    assert torch.equal(subnet(x), net(x, path))


def test_tensors_that_are_given_for_a_call_are_used(net):
    path, x = (1, 1, 0), torch.randn(4, 1, 4, 4)
    net.eval()
    subnet, exported = net.subnet(path), mnas.export(net, path)
    given = {name: torch.randn_like(p) for name, p in exported.named_parameters()}
    for _ in range(2):
        with torch.no_grad():
            found = torch.func.functional_call(subnet, given, (x,))
        assert torch.equal(found, torch.func.functional_call(exported, given, (x,)))
        assert torch.equal(subnet(x), net(x, path))


def test_statistics_are_gathered_by_torch_itself(net):
    path, images = (1, 1, 0), torch.randn(64, 1, 4, 4)
    other = net.model[0].candidate(0)[1].running_mean.clone()
    subnet = net.subnet(path)
    update_bn(images.split(64), subnet)
    expected = mnas.recalibrate(mnas.export(net, path), images, 64)
    exported = mnas.export(net, path)
    for name, buffer in exported.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, expected.get_buffer(name))
    assert torch.equal(net.model[0].candidate(0)[1].running_mean, other)


def test_nothing_is_left_of_a_subnet(net):
    hooks = [dict(m._forward_pre_hooks) for m in net.modules()]
    subnet = net.subnet((1, 1, 0))
    assert hooks == [dict(m._forward_pre_hooks) for m in net.modules()]
    exported = mnas.recalibrate(subnet, torch.randn(8, 1, 4, 4))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in exported.modules())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert not subnet(torch.randn(2, 1, 4, 4)).any()
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()})
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(subnet[0].eval()(x), net.model[0].candidate(3).eval()(x))
