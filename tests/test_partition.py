"""Pieces of parameters: odd layouts under fused kernels, masks that change all the time, tensors of odd sizes."""

import copy
import gc
import weakref

import pytest
import torch
from test_masking import X, three
from torch import nn

import mnas
from mnas import partition
from mnas.partition import Partition
from mnas.places import Blocks, Box, Run, Scattered, place_of


def restrided(form, layer):
    """The layer's weight in memory that is not in the order of its indices."""
    weight = layer.weight.detach()
    if form == "channels last":
        layer.to(memory_format=torch.channels_last)
    elif form == "reversed dimensions":
        layer.weight = nn.Parameter(weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0))
    elif form == "with gaps":
        room = torch.zeros(*weight.shape[:-1], weight.shape[-1] + 5)
        room[..., :-5] = weight
        layer.weight = nn.Parameter(room[..., :-5])
    return layer


@pytest.mark.parametrize("when", ["from the start", "moved between steps", "gradient only"])
@pytest.mark.parametrize("layout", ["channels last", "reversed dimensions", "with gaps"])
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_fused_kernels_never_meet_memory_that_they_misread(optimizer_class, layout, when):
    """Against the plain loop on plain memory. Stock fused kernels are silently wrong in most of these cases."""
    options = {"lr": 0.01, "weight_decay": 0.1, **({"momentum": 0.9} if optimizer_class is torch.optim.SGD else {})}
    torch.manual_seed(0)
    reference = nn.Conv2d(4, 6, 3)
    layer = copy.deepcopy(reference)
    if when == "from the start":
        restrided(layout, layer)
    fused = mnas.MaskedOptimizer(optimizer_class, layer, fused=True, **options)
    plain = optimizer_class(reference.parameters(), **options)
    for number in range(6):
        if when == "moved between steps" and number == 3:
            layer.weight.data = restrided(layout, copy.deepcopy(layer)).weight.data
        grad = torch.randn(reference.weight.shape)
        reference.weight.grad, layer.weight.grad = grad, grad.clone()
        if when == "gradient only":
            holder = nn.Conv2d(4, 6, 3)
            holder.weight = nn.Parameter(grad)
            layer.weight.grad = restrided(layout, holder).weight.detach()
        fused.step()
        plain.step()
    torch.testing.assert_close(layer.weight, reference.weight, rtol=1e-5, atol=1e-6)


def test_masks_that_change_at_every_step_stay_exact_and_few():
    """Random masks would cut a tensor into single entries; pieces with equal step counts are joined again."""
    torch.manual_seed(0)
    layer = nn.Linear(40, 50, bias=False)
    reference = layer.weight.detach().clone()
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, layer, lr=0.1)
    moments, counts = [torch.zeros(50, 40, dtype=torch.float64) for _ in range(2)], torch.zeros(50, 40)
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
        with mnas.GradientMask(module, {"scale": not frozen, "nothing": not frozen, "still": frozen}):
            for m, o in ((module, optimizer), (stock_module, stock)):
                o.zero_grad()
                (m.scale**2 + m.nothing.sum()).backward()
                if not (frozen and m is stock_module):
                    o.step()
    assert torch.equal(module.scale, stock_module.scale)
    assert optimizer.dense_state(module.scale).keys() == stock.state[stock_module.scale].keys()
    assert torch.equal(module.unused, torch.ones(2))


def pattern(kind):
    """Masks of a 16x24 weight that make each kind of place."""
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
    """A layer after some steps of Adam under a mask; act(layer, optimizer, number) happens before each of them."""
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

    torch.testing.assert_close(trained(kind, switch)[0].weight, trained(kind, nothing)[0].weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", PATTERNS)
def test_no_gradient_is_kept_alive(kind):
    layer, _ = trained(kind, nothing)
    gone = weakref.ref(layer.weight.grad.untyped_storage())
    layer.weight.grad = None
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("fused", [False, True])
def test_memory_between_the_entries_of_a_parameter_belongs_to_others(fused):
    room = torch.ones(6, 20)
    layer = nn.Linear(12, 6, bias=False)
    layer.weight = nn.Parameter(room[:, :12])
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, layer, lr=0.1, weight_decay=0.1, fused=fused)
    for mask in (True, (torch.arange(6) < 3)[:, None], torch.rand(6, 12) < 0.5, True):
        with mnas.GradientMask(layer, {"weight": mask}):
            optimizer.zero_grad()
            layer(torch.randn(4, 12)).square().mean().backward()
            optimizer.step()
    assert room[:, 12:].eq(1).all()
    assert room[:, :12].ne(1).all()


@pytest.mark.parametrize(("kind", "place"), [*zip(PATTERNS, (Run, Box, Blocks, Scattered), strict=True)])
def test_each_pattern_is_stepped_where_it_is_cheapest(kind, place):
    for fused in (False, True):
        _, optimizer = trained(kind, nothing, fused)
        (pieces_of,) = optimizer._partitions.values()
        (active,) = [piece.place for piece in pieces_of.pieces if piece.values is not None]
        assert type(active) is place if not (fused and place is Box) else not active.is_view


def test_masks_that_return_need_no_new_partition(monkeypatch):
    calls = []
    refine = Partition._refine
    monkeypatch.setattr(Partition, "_refine", lambda *args, **options: calls.append(1) or refine(*args, **options))
    layer = nn.Linear(24, 16, bias=False)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, layer, lr=0.1, momentum=0.9)
    for number in range(40):
        with mnas.GradientMask(layer, {"weight": pattern(PATTERNS[number % 4])}):
            optimizer.zero_grad()
            layer(torch.ones(4, 24)).sum().backward()
            optimizer.step()
    assert len(calls) <= 8


def test_what_was_never_active_costs_no_index_and_pieces_are_in_the_order_of_memory():
    layer, optimizer = trained("scattered", nothing)
    (pieces_of,) = optimizer._partitions.values()
    assert [piece.place is None for piece in pieces_of.pieces].count(True) == 1
    for kind in ("box", "blocks", "run"):
        optimizer.zero_grad()
        with mnas.GradientMask(layer, {"weight": pattern(kind)}):
            layer(torch.ones(4, 24)).sum().backward()
            optimizer.step()
    pieces = optimizer.state_dict()["state"][0]["pieces"]
    firsts = [int(place_of(piece).positions()[0]) for piece in pieces]
    assert firsts == sorted(firsts)
    dense = optimizer.dense_state(layer.weight)
    dense["exp_avg"].zero_()
    assert optimizer.dense_state(layer.weight)["exp_avg"].ne(0).any()


@pytest.mark.parametrize("fused", [False, True])
def test_a_state_moves_to_a_module_in_another_memory_format(fused):
    torch.manual_seed(0)
    nets = [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)]
    optimizers = [mnas.MaskedOptimizer(torch.optim.Adam, net, lr=0.1, fused=fused) for net in nets]
    mask = torch.rand(6, 4, 3, 3) < 0.5
    masks = [mnas.GradientMask(net, {"weight": mask}) for net in nets]
    grads = [torch.randn(6, 4, 3, 3) for _ in range(4)]

    def step(number, grad):
        nets[number].weight.grad = grad.clone()
        optimizers[number].step()

    for grad in grads[:2]:
        step(0, grad)
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for grad in grads[2:]:
        step(0, grad)
        step(1, grad)
    torch.testing.assert_close(nets[0].weight, nets[1].weight, rtol=1e-5, atol=1e-6)
    assert not torch.equal(nets[0].weight, nn.Conv2d(4, 6, 3).weight)
    assert all(mask.module for mask in masks)


def test_states_of_different_precision_are_not_joined(monkeypatch):
    """Joining them would lose the momentum of one. They are shown in the wider type."""
    monkeypatch.setattr(partition, "MOST_PIECES", 4)
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


def count_partitions(monkeypatch):
    calls, refine = [], Partition._refine
    monkeypatch.setattr(Partition, "_refine", lambda *a, **k: (calls.append(1), refine(*a, **k)))
    return calls


def test_masks_that_were_in_use_lately_need_no_new_partition(monkeypatch):
    calls = count_partitions(monkeypatch)
    monkeypatch.setattr(partition, "MOST_IDLE", 1)
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


def test_new_candidates_need_no_new_partition_and_few_active_sets_are_remembered(monkeypatch):
    calls = count_partitions(monkeypatch)
    monkeypatch.setattr(partition, "MOST_FOUND", 2)
    net = three()
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1)
    for path in (0, 1, 2, 0, 1):
        optimizer.zero_grad()
        net(X, (path,)).sum().backward()
        optimizer.step()
        assert len(optimizer._partitions[net._choices[0].weight]._found) <= 2
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["run", "box", "blocks", "scattered"])
def test_gradients_of_another_type_than_a_masked_parameter(kind):
    layer = nn.Linear(24, 16, bias=False).bfloat16()
    nn.init.ones_(layer.weight)
    mnas.GradientMask(layer, {"weight": pattern(kind)})
    layer.weight.grad_dtype = torch.float32
    layer.weight.grad = torch.ones(16, 24)
    mnas.MaskedOptimizer(torch.optim.SGD, layer, lr=0.5).step()
    assert torch.equal(layer.weight, 1.0 - 0.5 * pattern(kind).bfloat16())
