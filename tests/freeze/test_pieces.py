"""Pieces of parameters: masks that change all the time, tensors of odd sizes, and parameters
that others move."""

import copy
import gc
import weakref

import pytest
import torch
from test_active import X, three
from test_index import kind_of
from torch import nn

import mnas
from mnas.freeze import pieces
from mnas.freeze.pieces import Pieces


def test_masks_that_change_at_every_step_stay_exact_and_few():
    """Random masks would cut a tensor into single entries; pieces with equal step counts are joined
    again."""
    torch.manual_seed(0)
    layer = nn.Linear(40, 50, bias=False)
    reference = layer.weight.detach().clone()
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, layer, lr=0.1)
    moments, counts = (
        [torch.zeros(50, 40, dtype=torch.float64) for _ in range(2)],
        torch.zeros(50, 40),
    )
    for _ in range(25):
        mask = torch.rand(50, 40) < 0.3
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        with mnas.GradientMask(layer, {"weight": mask}):
            layer(torch.randn(8, 40)).square().mean().backward()
            optimizer.step()
        assert torch.equal(layer.weight[~mask], before[~mask])
        counts += mask
        grad = layer.weight.grad.double()[mask]
        moments[0][mask] = 0.9 * moments[0][mask] + 0.1 * grad
        moments[1][mask] = 0.999 * moments[1][mask] + 0.001 * grad**2
        corrected = moments[0][mask] / (1 - 0.9 ** counts[mask].double())
        scale = (moments[1][mask] / (1 - 0.999 ** counts[mask].double())).sqrt() + 1e-8
        reference[mask] -= (0.1 * corrected / scale).float()
    assert torch.equal(optimizer.dense_state(layer.weight)["step"], counts)
    torch.testing.assert_close(layer.weight.detach(), reference, rtol=1e-4, atol=1e-4)
    assert len(optimizer.state) <= 200


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_scalars_empty_tensors_and_parameters_without_gradient(optimizer_class):
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(2.0))
    module.nothing = nn.Parameter(torch.zeros(0, 3))
    module.still = nn.Parameter(torch.ones(2), requires_grad=False)
    module.unused = nn.Parameter(torch.ones(2))
    options = {"lr": 0.1, **({"momentum": 0.9} if optimizer_class is torch.optim.SGD else {})}
    optimizer = mnas.MaskedOptimizer(optimizer_class, module, **options)
    stock_module = copy.deepcopy(module)
    stock = optimizer_class(stock_module.parameters(), **options)
    for frozen in (False, True, False):
        with mnas.GradientMask(
            module, {"scale": not frozen, "nothing": not frozen, "still": frozen}
        ):
            for m, o in ((module, optimizer), (stock_module, stock)):
                o.zero_grad()
                (m.scale**2 + m.nothing.sum()).backward()
                if not (frozen and m is stock_module):
                    o.step()
    assert torch.equal(module.scale, stock_module.scale)
    assert optimizer.dense_state(module.scale).keys() == stock.state[stock_module.scale].keys()
    assert torch.equal(module.unused, torch.ones(2))


def pattern(kind):
    """Masks of a 16x24 weight that make each kind of index."""
    mask = torch.zeros(16, 24, dtype=torch.bool)
    if kind == "run":
        mask[:7] = True
    elif kind == "box":
        mask[:, :10] = True
    elif kind == "blocks":
        mask[[0, 1, 5, 9]] = True
    else:
        mask = torch.rand(16, 24, generator=torch.Generator().manual_seed(0)) < 0.4
    return mask


PATTERNS = ("run", "box", "blocks", "scattered")


def trained(kind, act, fused=False, steps=6):
    """A layer after some steps of Adam under a mask; act(layer, optimizer, number) happens before
    each of them."""
    torch.manual_seed(0)
    layer = nn.Linear(24, 16, bias=False)
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, layer, lr=0.1, fused=fused)
    mnas.GradientMask(layer, {"weight": pattern(kind)})
    for number in range(steps):
        act(layer, optimizer, number)
        optimizer.zero_grad()
        x = torch.randn(4, 24, generator=torch.Generator().manual_seed(number))
        layer(x).square().mean().backward()
        optimizer.step()
    return layer, optimizer


def nothing(*_):
    pass


@pytest.mark.parametrize("kind", PATTERNS)
def test_weights_that_others_change_between_steps_are_the_ones_that_are_stepped(kind):
    """Through .data, which leaves no trace in the version of the tensor."""
    layer, _ = trained(kind, lambda layer, _, n: layer.weight.data.mul_(0.5) if n == 3 else None)
    torch.manual_seed(0)
    reference = nn.Linear(24, 16, bias=False)
    part = nn.Parameter(reference.weight.detach()[pattern(kind)].clone())
    stock = torch.optim.AdamW([part], lr=0.1)
    for number in range(6):
        if number == 3:
            reference.weight.data.mul_(0.5)
            part.data.mul_(0.5)
        x = torch.randn(4, 24, generator=torch.Generator().manual_seed(number))
        reference.weight.grad = None
        reference(x).square().mean().backward()
        part.grad = reference.weight.grad[pattern(kind)]
        stock.step()
        reference.weight.data[pattern(kind)] = part.detach()
    assert torch.equal(layer.weight, reference.weight)


def test_a_parameter_in_new_memory_is_found_there_with_its_state():
    def move(layer, _, number):
        if number == 3:
            layer.weight.data = layer.weight.data.clone()

    for kind in PATTERNS:
        (stayed, one), (went, other) = trained(kind, nothing), trained(kind, move)
        assert torch.equal(stayed.weight, went.weight)
        states = one.dense_state(stayed.weight), other.dense_state(went.weight)
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_parameter_that_becomes_double_goes_on(kind):
    def widen(layer, optimizer, number):
        if number == 3:
            layer.double()
            for state in optimizer.state.values():
                state.update({k: v.double() for k, v in state.items() if v.ndim})

    torch.manual_seed(0)
    layer = nn.Linear(24, 16, bias=False)
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, layer, lr=0.1)
    mnas.GradientMask(layer, {"weight": pattern(kind)})
    for number in range(6):
        widen(layer, optimizer, number)
        optimizer.zero_grad()
        layer(torch.ones(4, 24, dtype=layer.weight.dtype)).square().mean().backward()
        before = layer.weight.detach().clone()
        optimizer.step()
        assert torch.equal(layer.weight.ne(before), pattern(kind))
    assert optimizer.dense_state(layer.weight)["step"].max() == 6


@pytest.mark.parametrize("kind", PATTERNS)
def test_fused_switched_on_later_meets_no_view_with_gaps(kind):
    def switch(_, optimizer, number):
        optimizer.param_groups[0]["fused"] = number >= 3

    torch.testing.assert_close(
        trained(kind, switch)[0].weight, trained(kind, nothing)[0].weight, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", PATTERNS)
def test_no_gradient_is_kept_alive(kind):
    layer, _ = trained(kind, nothing)
    gone = weakref.ref(layer.weight.grad.untyped_storage())
    layer.weight.grad = None
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("kind", "index"), [*zip(PATTERNS, ("run", "blocks", "rows", "entries"), strict=True)]
)
def test_each_pattern_is_stepped_where_it_is_cheapest(kind, index):
    for fused in (False, True):
        _, optimizer = trained(kind, nothing, fused)
        (of_weight,) = optimizer._pieces.values()
        (active,) = [piece.index for piece in of_weight.pieces if piece.values is not None]
        assert kind_of(active) == index if not (fused and index == "blocks") else not active.is_view


def test_dense_state_is_a_copy():
    layer, optimizer = trained("scattered", nothing)
    optimizer.dense_state(layer.weight)["exp_avg"].zero_()
    assert optimizer.dense_state(layer.weight)["exp_avg"].ne(0).any()


def test_states_of_different_precision_are_not_joined(monkeypatch):
    """Joining them would lose the momentum of one. They are shown in the wider type."""
    monkeypatch.setattr(pieces, "MOST_PIECES", 4)
    torch.manual_seed(0)
    layer = nn.Linear(20, 20, bias=False)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, layer, lr=0.1, momentum=0.9)
    expected, momentum = layer.weight.detach().double(), torch.zeros(20, 20, dtype=torch.float64)
    for number in range(15):
        if number == 2:
            layer.double()
        mask = torch.rand(20, 20) < 0.3
        with mnas.GradientMask(layer, {"weight": mask}):
            layer.weight.grad = grad = torch.randn_like(layer.weight)
            optimizer.step()
        momentum[mask] = 0.9 * momentum[mask] + grad[mask]
        expected[mask] -= 0.1 * momentum[mask]
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-5, atol=1e-6)
    shown = optimizer.dense_state(layer.weight)["momentum_buffer"]
    torch.testing.assert_close(shown, momentum, rtol=1e-5, atol=1e-6)


def cuts(monkeypatch):
    """A list that grows with each time that a parameter is cut anew."""
    calls, cut = [], Pieces._cut
    monkeypatch.setattr(Pieces, "_cut", lambda *a, **k: (calls.append(1), cut(*a, **k)))
    return calls


def test_masks_that_return_need_no_new_pieces(monkeypatch):
    calls = cuts(monkeypatch)
    layer = nn.Linear(24, 16, bias=False)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, layer, lr=0.1, momentum=0.9)
    for number in range(40):
        with mnas.GradientMask(layer, {"weight": pattern(PATTERNS[number % 4])}):
            optimizer.zero_grad()
            layer(torch.ones(4, 24)).sum().backward()
            optimizer.step()
    assert len(calls) <= 4


def test_masks_that_were_in_use_lately_need_no_new_pieces(monkeypatch):
    calls = cuts(monkeypatch)
    monkeypatch.setattr(pieces, "MOST_MASKS", 1)
    layer = nn.Linear(4, 8, bias=False)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, layer, lr=0.1, momentum=0.9)
    made = []
    for rows in (2, 4, 6, 4, 2):
        layer.weight.grad = None
        with mnas.GradientMask(layer, {"weight": torch.arange(8)[:, None] < rows}):
            layer(torch.ones(1, 4)).sum().backward()
            optimizer.step()
        made.append(len(calls))
    assert made == [1, 2, 3, 3, 4]


@pytest.mark.parametrize("fused", [False, True])
def test_paths_of_a_supernet_need_no_pieces(fused):
    net = three()
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9, fused=fused)
    for path in (0, 1, 2, 0, 1):
        optimizer.zero_grad()
        net(X, (path,)).sum().backward()
        optimizer.step()
    assert not optimizer._pieces
    assert set(optimizer.state) == set(net.parameters())


@pytest.mark.parametrize("kind", PATTERNS)
def test_gradients_of_another_type_than_a_masked_parameter(kind):
    layer = nn.Linear(24, 16, bias=False).bfloat16()
    nn.init.ones_(layer.weight)
    mnas.GradientMask(layer, {"weight": pattern(kind)})
    layer.weight.grad_dtype = torch.float32
    layer.weight.grad = torch.ones(16, 24)
    mnas.MaskedOptimizer(torch.optim.SGD, layer, lr=0.5).step()
    assert torch.equal(layer.weight, 1.0 - 0.5 * pattern(kind).bfloat16())
