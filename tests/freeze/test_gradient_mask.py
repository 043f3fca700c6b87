"""GradientMask: what it accepts, what it refuses, that it lasts and ends as it says, and what it
works with."""

import pytest
import torch
from torch import nn

import mnas
from mnas.freeze.active import activity_of


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )


def loss_of(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return net(torch.randn(5, 1, 8, 8, generator=generator)).square().mean()


def filters(*trained):
    mask = torch.zeros(4, 1, 1, 1, dtype=torch.bool)
    mask[list(trained)] = True
    return mask


def snapshot(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def adam(net, **options):
    return mnas.MaskedOptimizer(torch.optim.Adam, net, lr=0.1, weight_decay=0.1, **options)


def train(net, optimizer, steps=3):
    for seed in range(steps):
        optimizer.zero_grad()
        loss_of(net, seed).backward()
        optimizer.step()


def test_gradients_are_zero_where_the_mask_is_false_even_if_they_are_not_finite():
    net = small_net()
    mnas.GradientMask(net, {"0.weight": filters(1, 2), "4.*": False})
    for factor in (1.0, float("nan"), float("inf")):
        net.zero_grad()
        (loss_of(net) * factor).backward()
        assert net[0].weight.grad[[0, 3]].eq(0).all()
        assert not net[0].weight.grad[[1, 2]].eq(0).any()
        assert net[4].weight.grad.eq(0).all()
        assert net[1].bias.grad.ne(0).all()
        assert not torch.signbit(net[0].weight.grad[[0, 3]]).any()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
def test_every_dtype(dtype):
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.ones(2, 3, dtype=dtype))
    mask = torch.tensor([[True, False, True], [False, False, True]])
    mnas.GradientMask(layer, {"weight": mask})
    layer.weight.square().sum().abs().backward()
    assert torch.equal(layer.weight.grad != 0, mask)


def test_frozen_entries_buffers_and_state_do_not_move_and_the_others_do():
    net = small_net()
    mnas.GradientMask(net, {"*": False, "0.weight": filters(2)}, statistics=True)
    optimizer = adam(net)
    before = snapshot(net)
    train(net, optimizer)
    moved = {
        name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved == {"0.weight"}
    assert torch.equal(net[0].weight[[0, 1, 3]], before["0.weight"][[0, 1, 3]])
    steps = optimizer.dense_state(net[0].weight)["step"][:, 0, 0, 0]
    assert steps.tolist() == [0, 0, 3, 0]
    assert [len(state["exp_avg"]) for state in optimizer.state.values()] == [9]


def test_patterns_the_last_key_that_matches_decides():
    net = small_net()
    mask = mnas.GradientMask(
        net, {"*": False, "[12].*": True, "4.bias": torch.tensor([True, False, False])}
    )
    loss_of(net).backward()
    trained = {name: int(p.grad.ne(0).sum()) for name, p in net.named_parameters()}
    assert trained == {
        "0.weight": 0,
        "0.bias": 0,
        "1.weight": 4,
        "1.bias": 4,
        "4.weight": 0,
        "4.bias": 1,
    }
    assert repr(mask) == "GradientMask(9 of 483 entries can train; in force)"


def test_masks_are_copied():
    net, mask = small_net(), filters(0)
    mnas.GradientMask(net, {"0.weight": mask})
    mask.fill_(True)
    loss_of(net).backward()
    assert net[0].weight.grad[1:].eq(0).all()


def test_several_masks_combine_and_each_ends_by_itself():
    net = small_net()
    first = mnas.GradientMask(net, {"0.weight": filters(0, 1)})
    second = mnas.GradientMask(net, {"0.weight": filters(1, 2)})
    third = mnas.GradientMask(net, {"0.weight": filters(1, 2)})

    def trained():
        net.zero_grad()
        loss_of(net).backward()
        return net[0].weight.grad.flatten(1).ne(0).all(1).tolist()

    assert trained() == [False, True, False, False]
    second.remove()
    second.remove()
    assert trained() == [False, True, False, False]
    third.remove()
    assert trained() == [True, True, False, False]
    first.remove()
    assert trained() == [True] * 4


def test_the_module_is_as_it_was_after_the_block_also_after_an_error():
    net = small_net()
    keys = list(net.state_dict())
    parameters = list(net.parameters())
    mask = mnas.GradientMask(net, {"*": False}, statistics=True)
    assert list(net.state_dict()) == keys
    assert net[1]._forward_hooks
    with pytest.raises(RuntimeError, match="expected input"), mask:
        net(torch.zeros(1, 2, 8, 8))
    assert "removed" in repr(mask)
    assert all(not p._backward_hooks and activity_of(p) is None for p in net.parameters())
    assert not net[1]._forward_hooks
    assert not net[1]._forward_pre_hooks
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    with mask:
        assert activity_of(net[0].weight).masks


@pytest.mark.parametrize(
    "how", ["block around the backward pass", "installed after it", "gradient by hand"]
)
def test_a_mask_holds_whenever_it_is_given(how):
    net = small_net()
    optimizer = adam(net)
    train(net, optimizer)
    weight = net[0].weight
    before, state = weight.detach().clone(), optimizer.dense_state(weight)
    optimizer.zero_grad()
    mask = {"0.weight": filters(1)}
    if how == "block around the backward pass":
        with mnas.GradientMask(net, mask):
            loss_of(net).backward()
    elif how == "installed after it":
        loss_of(net).backward()
        mnas.GradientMask(net, mask)
    else:
        mnas.GradientMask(net, mask)
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    frozen = [0, 2, 3]
    assert torch.equal(weight[frozen], before[frozen])
    assert all(
        torch.equal(value[frozen], state[key][frozen])
        for key, value in optimizer.dense_state(weight).items()
    )
    assert not torch.equal(weight[1], before[1])


def test_what_passes_cut_stays_cut_until_gradients_are_reset():
    net = small_net()
    optimizer = adam(net)
    weight = net[0].weight
    for reset in (
        optimizer.zero_grad,
        net.zero_grad,
        lambda: optimizer.zero_grad(set_to_none=False),
    ):
        before = weight.detach().clone()
        with mnas.GradientMask(net, {"0.weight": filters(0)}):
            loss_of(net).backward()
        with mnas.GradientMask(net, {"0.weight": filters(1)}):
            loss_of(net).backward()
        optimizer.step()
        assert weight.ne(before).flatten(1).any(1).tolist() == [True, True, False, False]
        reset()
    loss_of(net).backward()
    optimizer.step()
    assert optimizer.dense_state(weight)["step"][:, 0, 0, 0].tolist() == [4, 4, 1, 1]
    optimizer.zero_grad()
    optimizer.step()
    assert activity_of(weight) is None


def test_a_pass_without_mask_trains_everything_also_beside_one_with():
    net = small_net()
    optimizer = adam(net)
    before = net[0].weight.detach().clone()
    loss_of(net).backward()
    with mnas.GradientMask(net, {"0.weight": False}):
        loss_of(net).backward()
    optimizer.step()
    assert net[0].weight.ne(before).all()
