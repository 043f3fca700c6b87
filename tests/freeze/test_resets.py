"""Gradients that are reset, replaced or set by hand, by whoever: what is active then."""

import pytest
import torch
from test_active import ROWS, X, layer, moved, own, sgd, three
from torch import nn

import mnas
from mnas.freeze.active import activity_of


def test_a_gradient_set_by_hand_on_a_plain_parameter_is_stepped_within_the_masks_in_force():
    net = layer()
    optimizer = sgd(net)
    with mnas.GradientMask(net, ROWS):
        net(X).sum().backward()
        assert moved(net, optimizer.step) == [True, False, True]
    optimizer.zero_grad()  # what the masked pass has reached is forgotten
    net.weight.grad = torch.ones(3, 4)
    assert moved(net, optimizer.step) == [True, True, True]
    mnas.GradientMask(net, ROWS)
    net.weight.grad = torch.ones(3, 4)
    assert moved(net, optimizer.step) == [True, False, True]


def test_gradients_set_by_hand_on_a_supernet_train_the_path_that_they_belong_to():
    net = three()
    optimizer = sgd(net, momentum=0.9)
    parameters = list(net.parameters())
    for path in ((1,), (0,)):
        loss = net(X, path).square().sum()
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        assert moved(net, optimizer.step) == [c == path[0] for c in range(3)]
    untouched = three()
    optimizer = sgd(untouched)
    for weight in own(untouched):
        weight.grad = torch.ones_like(weight)
    assert moved(untouched, optimizer.step) == [True] * 3
    untouched(X, (0,))  # from its first pass on, zeros are a reset
    untouched.zero_grad()
    for weight in own(untouched):
        weight.grad = torch.zeros_like(weight)
    assert moved(untouched, optimizer.step) == [False] * 3


def test_gradients_allocated_before_the_first_pass():
    net = three()
    optimizer = sgd(net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for path in ((0,), (2,)):
        optimizer.zero_grad(set_to_none=False)
        net(X, path).sum().backward()
        assert moved(net, optimizer.step) == [c == path[0] for c in range(3)]


@pytest.mark.parametrize("reset", ["module", "by hand"])
def test_zeroing_a_gradient_in_place_is_noticed(reset):
    net = layer()
    optimizer = sgd(net, momentum=0.9)
    for number in range(3):
        mask = {"weight": torch.arange(3)[:, None] == number}
        with mnas.GradientMask(net, mask):
            net(X).sum().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        assert moved(net, optimizer.step) == [row == number for row in range(3)]
        net.zero_grad(set_to_none=False) if reset == "module" else net.weight.grad.zero_()
    with mnas.GradientMask(net, ROWS):
        net(X).sum().backward()
        assert len(activity_of(net.weight).reached) == 1  # no trace of the masks that are gone


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        return None, None


def test_a_pass_that_delivers_no_gradient_activates_nothing():
    net = layer()
    mnas.GradientMask(net, ROWS)
    optimizer = sgd(net)
    Nothing.apply(X, net.weight).sum().backward()
    assert moved(net, optimizer.step) == [False] * 3


def test_a_pass_that_delivers_no_gradient_does_not_undo_a_reset():
    for net in (layer(), three()):
        plain = isinstance(net, nn.Linear)
        weight = net.weight if plain else own(net)[1]
        if plain:
            mnas.GradientMask(net, ROWS)
        optimizer = sgd(net)
        (net(X) if plain else net(X, (1,))).sum().backward()
        optimizer.step()
        weight.grad.zero_()
        Nothing.apply(X, weight).sum().backward()
        assert moved(net, optimizer.step) == [False] * 3


def test_nor_does_it_undo_a_gradient_set_by_hand():
    net = layer()
    mnas.GradientMask(net, ROWS)
    optimizer = sgd(net)
    net.weight.grad = torch.ones(3, 4)
    Nothing.apply(X, net.weight).sum().backward()
    assert moved(net, optimizer.step) == [True, False, True]


@pytest.mark.parametrize("reset", ["optimizer", "net"])
def test_a_reset_in_the_middle_of_a_pass(reset):
    """What was delivered before it is forgotten, as in separate tensors; the pass goes on."""
    net, middle = three(), nn.Linear(4, 4)
    optimizer = sgd([*net.parameters(), *middle.parameters()])
    middle.weight.register_post_accumulate_grad_hook(
        lambda _: {"optimizer": optimizer, "net": net}[reset].zero_grad()
    )
    net(middle(net(X, (0,))), (1,)).square().sum().backward()
    assert moved(net, optimizer.step) == [True, False, False]


@pytest.mark.parametrize("reset", ["optimizer", "net", "nobody"])
def test_gradients_that_are_computed_reset_and_set(reset):
    """The usual order of those who use autograd.grad."""
    net = three()
    optimizer = sgd(net, momentum=0.9)
    for path in ((1,), (2,), (1,)):
        weight = own(net)[path[0]]
        (grad,) = torch.autograd.grad(net(X, path).square().sum(), weight)
        {"optimizer": optimizer.zero_grad, "net": net.zero_grad, "nobody": own}[reset](
            *[net] * (reset == "nobody")
        )
        weight.grad = grad
        trained = [c == path[0] for c in range(3)]
        if reset == "nobody" and path != (1,):
            trained[1] = True  # its gradient is still there, as in separate tensors
        assert moved(net, optimizer.step) == trained
        if reset == "nobody" and path == (2,):
            net.zero_grad()


def test_a_mask_that_ends_after_a_reset_leaves_nothing():
    net = layer()
    with mnas.GradientMask(net, ROWS):
        net(X).sum().backward()
        net.zero_grad()
    assert activity_of(net.weight) is None


def test_a_gradient_replaced_after_a_pass_that_reached_nothing_keeps_what_was_reached():
    net = three()
    optimizer = sgd(net)
    weight = own(net)[1]
    net(X, (1,)).sum().backward()
    weight.square().sum().backward()
    weight.grad = weight.grad + 1.0
    assert moved(net, optimizer.step) == [False, True, False]


def test_a_gradient_replaced_under_masks_keeps_what_they_have_cut():
    net = layer()
    optimizer = sgd(net, momentum=0.9)
    with mnas.GradientMask(net, ROWS):
        net(X).sum().backward()
    net.weight.grad = net.weight.grad * 0.5
    assert moved(net, optimizer.step) == [True, False, True]


def test_a_gradient_set_by_hand_and_zeroed_in_place_is_reset():
    net = layer()
    mnas.GradientMask(net, ROWS)
    optimizer = sgd(net)
    net.weight.grad = torch.ones(3, 4)
    assert moved(net, optimizer.step) == [True, False, True]
    net.weight.grad.zero_()
    assert moved(net, optimizer.step) == [False] * 3
