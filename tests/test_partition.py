"""Pieces of parameters: odd layouts under fused kernels, masks that change all the time, tensors of odd sizes."""

import copy

import pytest
import torch
from torch import nn

import mnas


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
