"""Running statistics of normalisation layers under a GradientMask."""

import copy

import pytest
import torch
from conftest import randomise
from test_gradient_mask import loss_of, small_net, snapshot
from torch import nn

import mnas


def test_running_statistics_follow_their_channels_or_a_mask_of_their_own():
    kept = torch.tensor([True, False, True, True])
    for statistics in (True, {"1": kept}, {"*": False}):
        net = small_net()
        randomise(net)
        reference = copy.deepcopy(net)
        mask = mnas.GradientMask(net, {"1.*": kept}, statistics=statistics)
        frozen = torch.ones(4, dtype=torch.bool) if statistics == {"*": False} else ~kept
        before = snapshot(net)
        for seed in range(3):
            assert torch.equal(
                loss_of(net, seed), loss_of(reference, seed)
            )  # the batch's own statistics are used
        for name in ("running_mean", "running_var"):
            now, free = getattr(net[1], name), getattr(reference[1], name)
            assert torch.equal(now, torch.where(frozen, before[f"1.{name}"], free))
            assert now.ne(free).sum() == frozen.sum()
        assert int(net[1].num_batches_tracked) == (0 if frozen.all() else 3)
        mask.remove()
        loss_of(net)
        assert net[1].running_mean.ne(before["1.running_mean"]).all()


def test_statistics_move_where_a_channel_can_still_train_or_nobody_asked():
    for masks, statistics in (
        ({"1.weight": False}, True),
        ({"1.*": False}, False),
        ({"0.*": False}, True),
    ):
        net = small_net()
        mnas.GradientMask(net, masks, statistics=statistics)
        loss_of(net)
        assert net[1].running_mean.ne(0).all()


def test_statistics_follow_requires_grad_too():
    net = small_net()
    net[1].requires_grad_(False)
    mnas.GradientMask(net, {}, statistics=True)
    loss_of(net)
    assert net[1].running_mean.eq(0).all()
    assert int(net[1].num_batches_tracked) == 0


def test_statistics_are_put_back_also_if_another_hook_fails():
    net = small_net()

    def fail(*_):
        raise RuntimeError("on purpose")

    net[1].register_forward_hook(fail)
    mnas.GradientMask(net, {"1.*": False}, statistics=True)
    with pytest.raises(RuntimeError, match="on purpose"):
        loss_of(net)
    assert net[1].running_mean.eq(0).all()


def test_a_norm_layer_is_known_by_each_of_its_names():
    norm = nn.BatchNorm1d(4)
    for key in ("0", "1"):
        net = nn.Sequential(norm, norm)
        mask = mnas.GradientMask(net, {}, statistics={key: False})
        net(torch.randn(8, 4) + 1)
        assert norm.running_mean.eq(0).all()
        mask.remove()


def test_a_pass_that_fails_before_the_layer_brings_no_old_statistics_back():
    net = small_net()
    failing = []

    def fail(*_):
        if failing:
            raise RuntimeError("on purpose")

    net[1].register_forward_pre_hook(fail)
    mnas.GradientMask(net, {"1.*": False}, statistics=True)
    loss_of(net)
    failing.append(True)
    nn.init.constant_(net[1].running_mean, 5.0)
    with pytest.raises(RuntimeError, match="on purpose"):
        loss_of(net)
    assert net[1].running_mean.eq(5).all()
