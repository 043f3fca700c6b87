"""Gradients that are reset, replaced or set by hand, by whoever: what is active then."""

import pytest
import torch
from test_masking import ROWS, X, layer, moved, sgd, three
from torch import nn

import mnas
from mnas.masking import ActiveSet


def test_a_gradient_set_by_hand_on_a_plain_parameter_is_stepped_within_the_masks_in_force():
    net = layer()
    optimizer = sgd(net)
    with mnas.GradientMask(net, ROWS):
        net(X).sum().backward()
        assert moved(net, optimizer.step) == [True, False, True]
    net.zero_grad()
    net.weight.grad = torch.ones(3, 4)  # not that of the masked pass: its records do not hold for it
    assert moved(net, optimizer.step) == [True, True, True]
    mnas.GradientMask(net, ROWS)
    net.weight.grad = torch.ones(3, 4)
    assert moved(net, optimizer.step) == [True, False, True]


def test_a_gradient_set_by_hand_on_a_merged_parameter_trains_what_the_last_pass_reached():
    net = three()
    optimizer = sgd(net)
    parameters = list(net.parameters())
    for path in ((1,), (0,)):
        grads = torch.autograd.grad(net(X, path).square().sum(), parameters)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        assert moved(net, optimizer.step) == [c == path[0] for c in range(3)]
    untouched = three()
    optimizer = sgd(untouched)
    weight = untouched._choices[0].weight
    weight.grad = torch.ones_like(weight)
    assert moved(untouched, optimizer.step) == [True] * 3
    untouched.zero_grad()
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
    assert len(ActiveSet.of(net.weight).records) == 1  # no trace of the masks that are gone
    net.zero_grad()


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
        weight = net.weight if plain else net._choices[0].weight
        if plain:
            mnas.GradientMask(net, ROWS)
        optimizer = sgd(net)
        (net(X) if plain else net(X, (1,))).sum().backward()
        optimizer.step()
        weight.grad.zero_()
        Nothing.apply(X, weight.view(-1, 4)).sum().backward()
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
    middle.weight.register_post_accumulate_grad_hook(lambda _: {"optimizer": optimizer, "net": net}[reset].zero_grad())
    net(middle(net(X, (0,))), (1,)).square().sum().backward()
    assert moved(net, optimizer.step) == [True, False, False]


@pytest.mark.parametrize("reset", ["optimizer", "net", "nobody"])
def test_gradients_that_are_computed_reset_and_set(reset):
    """The usual order of those who use autograd.grad."""
    net = three()
    optimizer = sgd(net)
    weight = net._choices[0].weight
    for path in ((1,), (2,)):
        (grad,) = torch.autograd.grad(net(X, path).square().sum(), weight)
        {"optimizer": optimizer.zero_grad, "net": net.zero_grad, "nobody": lambda: None}[reset]()
        weight.grad = grad
        assert moved(net, optimizer.step) == [c == path[0] for c in range(3)]


def test_a_mask_that_ends_after_a_reset_leaves_nothing():
    net = layer()
    with mnas.GradientMask(net, ROWS):
        net(X).sum().backward()
        net.zero_grad()
    assert ActiveSet.of(net.weight) is None


def test_a_gradient_replaced_after_a_pass_that_reached_nothing_keeps_its_records():
    net = three()
    optimizer = sgd(net)
    weight = net._choices[0].weight
    net(X, (1,)).sum().backward()
    weight.square().sum().backward()
    weight.grad = weight.grad + 1.0
    assert moved(net, optimizer.step) == [False, True, False]


def test_a_gradient_set_by_hand_and_zeroed_in_place_is_reset():
    net = layer()
    mnas.GradientMask(net, ROWS)
    optimizer = sgd(net)
    net.weight.grad = torch.ones(3, 4)
    assert moved(net, optimizer.step) == [True, False, True]
    net.weight.grad.zero_()
    assert moved(net, optimizer.step) == [False] * 3
