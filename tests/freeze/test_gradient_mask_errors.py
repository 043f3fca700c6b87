"""Masks that cannot be, named."""

import copy
import gc
import io
import re
import weakref

import pytest
import torch
from test_gradient_mask import adam, filters, loss_of, small_net, snapshot, train
from torch import nn

import mnas
from mnas.freeze import gradient_mask
from mnas.freeze.active import activity_of

BAD = {
    "typo": ({"0.wieght": True}, "'0.wieght' matches no parameter; near: 0.weight"),
    "pattern": ({"conv*": True}, "'conv*' matches no parameter"),
    "module": ({"0": False}, "'0' is a module; write '0.*'"),
    "shape": (
        {"0.weight": torch.ones(4, 1, 3, 2, dtype=torch.bool)},
        "(4, 1, 3, 3) has shape (4, 1, 3, 2)",
    ),
    "one dimension": ({"0.weight": torch.ones(4, dtype=torch.bool)}, "(4, 1, 3, 3) has shape (4,)"),
    "dtype": (
        {"0.bias": torch.ones(4)},
        "has dtype torch.float32; expected torch.bool, as from mask.bool()",
    ),
    "type": ({"0.bias": [True] * 4}, "is a list; expected True, False or a boolean tensor"),
    "number": ({"0.bias": 1}, "is a int; expected True, False or a boolean tensor"),
    "device": (
        {"0.bias": torch.ones(4, dtype=torch.bool, device="meta")},
        "is on meta; move it to cpu",
    ),
    "no name": ({0: False}, "0 is a int; expected the name of a parameter or a pattern"),
    "one bad of many": (
        {"*": False, "4.bias": torch.ones(2, dtype=torch.bool)},
        "(3,) has shape (2,)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_masks_are_refused_and_leave_nothing(case):
    masks, message = BAD[case]
    net = small_net()
    with pytest.raises(ValueError, match=re.escape(message)):
        mnas.GradientMask(net, masks)
    assert all(activity_of(p) is None and not p._backward_hooks for p in net.parameters())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="not a Tensor; call GradientMask"):
        mnas.GradientMask(torch.zeros(1), {})
    with pytest.raises(ValueError, match="must be a mapping, not a list"):
        mnas.GradientMask(small_net(), [])
    with pytest.raises(
        ValueError, match="statistics must be True, False or a mapping by layer name, not a str"
    ):
        mnas.GradientMask(small_net(), {}, statistics="1")
    with pytest.raises(
        ValueError, match="'0' matches no normalisation layer with running statistics; near: 1"
    ):
        mnas.GradientMask(small_net(), {}, statistics={"0": False})
    with pytest.raises(
        ValueError, match=re.escape("'weight' matches nothing: the module has no parameter")
    ):
        mnas.GradientMask(nn.ReLU(), {"weight": False})
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(
        ValueError, match=r"'0\.weight' and '1\.weight' are one tensor; give it one mask"
    ):
        mnas.GradientMask(tied, {"0.weight": True, "1.weight": False})


def test_tied_weights_are_masked_under_either_name():
    for key in ("0.weight", "1.weight"):
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[1].weight = net[0].weight
        mask = torch.tensor([[True, False], [False, False]])
        mnas.GradientMask(net, {key: mask})
        optimizer = adam(net)
        before = net[0].weight.detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert torch.equal(net[1].weight != before, mask)


def test_a_copied_module_is_free_and_a_copied_mask_is_not():
    net = small_net()
    mask = mnas.GradientMask(net, {"0.*": False, "1.*": False}, statistics=True)
    optimizer = adam(net)
    train(net, optimizer)
    free = copy.deepcopy(net)
    masked, its_mask, its_optimizer = copy.deepcopy((net, mask, optimizer))
    assert its_mask.module is masked
    before = snapshot(net)
    train(free, adam(free))
    train(masked, its_optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(torch.equal(before[name], tensor) for name, tensor in free.state_dict().items())
    moved = {
        name
        for name, tensor in masked.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"4.weight", "4.bias"}
    train(net, optimizer)
    assert all(
        torch.equal(masked.state_dict()[name], tensor) for name, tensor in net.state_dict().items()
    )
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loss_of(loaded), loss_of(net))


def test_functional_call_uses_the_given_tensors_unmasked():
    net = small_net()
    mnas.GradientMask(net, {"0.weight": filters(0), "4.weight": False})
    given = {"0.weight": net[0].weight.detach().clone().requires_grad_()}
    torch.func.functional_call(net, given, (torch.randn(5, 1, 8, 8),)).sum().backward()
    assert given["0.weight"].grad.flatten(1).ne(0).any(1).all()
    assert net[0].weight.grad is None
    assert net[4].weight.grad.eq(0).all()


def test_integer_parameters_are_left_alone():
    net = small_net()
    net.codes = nn.Parameter(torch.arange(3), requires_grad=False)
    mask = mnas.GradientMask(net, {"*": False})
    optimizer = adam(net)
    before = snapshot(net)
    train(net, optimizer)
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())
    mask.remove()
    assert all(activity_of(p) is None or p.grad is not None for p in net.parameters())


def test_double_backward_through_the_mask():
    layer = nn.Linear(3, 1, bias=False).double()
    mask = torch.tensor([[True, False, True]])
    mnas.GradientMask(layer, {"weight": mask})
    (grad,) = torch.autograd.grad(
        layer(torch.ones(1, 3).double()).pow(3).sum(), layer.weight, create_graph=True
    )
    assert grad[~mask].eq(0).all()
    torch.testing.assert_close(grad[mask], (3 * layer.weight.sum().square()).expand(2))
    (second,) = torch.autograd.grad(grad.sum(), layer.weight)
    assert second.ne(0).any()


def test_sparse_gradients_are_refused_with_the_remedy():
    layer = nn.Embedding(5, 2, sparse=True)
    mnas.GradientMask(layer, {"weight": torch.ones(5, 1, dtype=torch.bool)})
    with pytest.raises(ValueError, match="sparse gradient; make its layer with sparse=False"):
        layer(torch.tensor([1, 2])).sum().backward()


def test_nothing_keeps_a_module_alive_and_a_graph_outlives_it():
    net = small_net()
    mask = mnas.GradientMask(net, {"0.weight": filters(0)})
    optimizer = adam(net)
    train(net, optimizer)
    loss = loss_of(net)
    gone = [weakref.ref(p) for p in net.parameters()]
    in_force = len(gradient_mask.IN_FORCE)
    del net, mask, optimizer
    loss.backward()
    del loss
    gc.collect()
    assert not any(ref() is not None for ref in gone)
    assert len(gradient_mask.IN_FORCE) < in_force


def test_tensors_without_entries_are_refused_and_leave_nothing():
    lazy = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    for net in (lazy, nn.Linear(2, 2, device="meta")):
        with pytest.raises(ValueError, match="has no entries yet; run a lazy layer once"):
            mnas.GradientMask(net, {"*": False})
        assert all(activity_of(p) is None for p in net.parameters())


def test_masks_that_are_gone_hold_no_memory_for_speed():
    net = small_net()
    mask = mnas.GradientMask(net, {"4.weight": torch.rand(3, 144) < 0.5})
    loss_of(net).backward()
    (masked,) = mask._masked
    assert masked.mask._bits
    mask.remove()
    assert not masked.mask._bits
