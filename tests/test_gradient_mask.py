"""GradientMask: what it accepts, what it refuses, that it lasts and ends as it says, and what it works with."""

import copy
import gc
import io
import re
import weakref

import pytest
import torch
from torch import nn

import mnas
from mnas import masking
from mnas.masking import ActiveSet


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
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
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"0.weight"}
    assert torch.equal(net[0].weight[[0, 1, 3]], before["0.weight"][[0, 1, 3]])
    steps = optimizer.dense_state(net[0].weight)["step"][:, 0, 0, 0]
    assert steps.tolist() == [0, 0, 3, 0]
    assert [len(state["exp_avg"]) for state in optimizer.state.values()] == [9]


def test_patterns_the_last_key_that_matches_decides():
    net = small_net()
    mask = mnas.GradientMask(net, {"*": False, "[12].*": True, "4.bias": torch.tensor([True, False, False])})
    loss_of(net).backward()
    trained = {name: int(p.grad.ne(0).sum()) for name, p in net.named_parameters()}
    assert trained == {"0.weight": 0, "0.bias": 0, "1.weight": 4, "1.bias": 4, "4.weight": 0, "4.bias": 1}
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
    assert all(not p._backward_hooks and ActiveSet.of(p) is None for p in net.parameters())
    assert not net[1]._forward_hooks
    assert not net[1]._forward_pre_hooks
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    with mask:
        assert ActiveSet.of(net[0].weight).masks


@pytest.mark.parametrize("how", ["block around the backward pass", "installed after it", "gradient by hand"])
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
    assert all(torch.equal(value[frozen], state[key][frozen]) for key, value in optimizer.dense_state(weight).items())
    assert not torch.equal(weight[1], before[1])


def test_what_passes_cut_stays_cut_until_gradients_are_reset():
    net = small_net()
    optimizer = adam(net)
    weight = net[0].weight
    for reset in (optimizer.zero_grad, net.zero_grad, lambda: optimizer.zero_grad(set_to_none=False)):
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
    assert ActiveSet.of(weight) is None


def test_a_pass_without_mask_trains_everything_also_beside_one_with():
    net = small_net()
    optimizer = adam(net)
    before = net[0].weight.detach().clone()
    loss_of(net).backward()
    with mnas.GradientMask(net, {"0.weight": False}):
        loss_of(net).backward()
    optimizer.step()
    assert net[0].weight.ne(before).all()


BAD = {
    "typo": ({"0.wieght": True}, "'0.wieght' matches no parameter; near: 0.weight"),
    "pattern": ({"conv*": True}, "'conv*' matches no parameter"),
    "module": ({"0": False}, "'0' is a module; write '0.*'"),
    "shape": ({"0.weight": torch.ones(4, 1, 3, 2, dtype=torch.bool)}, "(4, 1, 3, 3) has shape (4, 1, 3, 2)"),
    "one dimension": ({"0.weight": torch.ones(4, dtype=torch.bool)}, "(4, 1, 3, 3) has shape (4,)"),
    "dtype": ({"0.bias": torch.ones(4)}, "has dtype torch.float32; expected torch.bool, as from mask.bool()"),
    "type": ({"0.bias": [True] * 4}, "is a list; expected True, False or a boolean tensor"),
    "number": ({"0.bias": 1}, "is a int; expected True, False or a boolean tensor"),
    "device": ({"0.bias": torch.ones(4, dtype=torch.bool, device="meta")}, "is on meta; move it to cpu"),
    "no name": ({0: False}, "0 is a int; expected the name of a parameter or a pattern"),
    "one bad of many": ({"*": False, "4.bias": torch.ones(2, dtype=torch.bool)}, "(3,) has shape (2,)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_masks_are_refused_and_leave_nothing(case):
    masks, message = BAD[case]
    net = small_net()
    with pytest.raises(ValueError, match=re.escape(message)):
        mnas.GradientMask(net, masks)
    assert all(ActiveSet.of(p) is None and not p._backward_hooks for p in net.parameters())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="not a Tensor; call GradientMask"):
        mnas.GradientMask(torch.zeros(1), {})
    with pytest.raises(ValueError, match="must be a mapping, not a list"):
        mnas.GradientMask(small_net(), [])
    with pytest.raises(ValueError, match="statistics must be True, False or a mapping by layer name, not a str"):
        mnas.GradientMask(small_net(), {}, statistics="1")
    with pytest.raises(ValueError, match="'0' matches no normalisation layer with running statistics; near: 1"):
        mnas.GradientMask(small_net(), {}, statistics={"0": False})
    with pytest.raises(ValueError, match=re.escape("'weight' matches nothing: the module has no parameter")):
        mnas.GradientMask(nn.ReLU(), {"weight": False})
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"'0\.weight' and '1\.weight' are one tensor; give it one mask"):
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
    moved = {name for name, tensor in masked.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"4.weight", "4.bias"}
    train(net, optimizer)
    assert all(torch.equal(masked.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
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
    assert all(ActiveSet.of(p) is None or p.grad is not None for p in net.parameters())


def test_double_backward_through_the_mask():
    layer = nn.Linear(3, 1, bias=False).double()
    mask = torch.tensor([[True, False, True]])
    mnas.GradientMask(layer, {"weight": mask})
    (grad,) = torch.autograd.grad(layer(torch.ones(1, 3).double()).pow(3).sum(), layer.weight, create_graph=True)
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
    number = len(masking._ACTIVE_SETS)
    del net, mask, optimizer
    loss.backward()
    del loss
    gc.collect()
    assert not any(ref() is not None for ref in gone)
    assert len(masking._ACTIVE_SETS) < number


def test_tensors_without_entries_are_refused_and_leave_nothing():
    lazy = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    for net in (lazy, nn.Linear(2, 2, device="meta")):
        with pytest.raises(ValueError, match="has no entries yet; run a lazy layer once"):
            mnas.GradientMask(net, {"*": False})
        assert all(ActiveSet.of(p) is None for p in net.parameters())


def test_masks_that_are_gone_hold_no_memory_for_speed():
    net = small_net()
    mask = mnas.GradientMask(net, {"4.weight": torch.rand(3, 144) < 0.5})
    loss_of(net).backward()
    ((_, selector),) = mask._masks
    assert selector._bits
    mask.remove()
    assert not selector._bits
