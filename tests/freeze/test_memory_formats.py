"""Parameters whose memory is not in the order of their indices, has gaps, or changes."""

import copy

import pytest
import torch
from test_pieces import pattern
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


LAYOUTS = ("channels last", "reversed dimensions")


def memory_is_dense(tensor):
    return torch.ops.aten.is_non_overlapping_and_dense(tensor)


@pytest.mark.parametrize("when", ["from the start", "moved between steps", "gradient only"])
@pytest.mark.parametrize("layout", [*LAYOUTS, "with gaps"])
@pytest.mark.parametrize(
    "optimizer_class", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad]
)
def test_fused_kernels_never_meet_memory_that_they_misread(optimizer_class, layout, when):
    """Against the plain loop on plain memory. Stock fused kernels are silently wrong in most of
    these cases. A parameter with gaps is refused."""
    options = {
        "lr": 0.01,
        "weight_decay": 0.1,
        **({"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}),
    }
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
        if not memory_is_dense(layer.weight):
            with pytest.raises(ValueError, match="gaps in memory; make it contiguous"):
                fused.step()
            return
        fused.step()
        plain.step()
    torch.testing.assert_close(layer.weight, reference.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_masked_parameter_with_gaps_in_memory_is_refused_and_nothing_moves(fused):
    room = torch.ones(6, 20)
    layer = nn.Linear(12, 6, bias=False)
    layer.weight = nn.Parameter(room[:, :12])
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, layer, lr=0.1, fused=fused)
    for mask in ((torch.arange(6) < 3)[:, None], torch.rand(6, 12) < 0.5):
        with mnas.GradientMask(layer, {"weight": mask}):
            layer(torch.randn(4, 12)).square().mean().backward()
            with pytest.raises(ValueError, match="gaps in memory; make it contiguous"):
                optimizer.step()
    assert room.eq(1).all()
    layer.weight.data = layer.weight.data.contiguous()
    with mnas.GradientMask(layer, {"weight": mask}):
        optimizer.zero_grad()
        layer(torch.randn(4, 12)).square().mean().backward()
        optimizer.step()
    assert torch.equal(layer.weight.ne(1), mask)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_masked_parameter_in_any_memory_format_equals_a_contiguous_one(layout, fused):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3)
    other = restrided(layout, copy.deepcopy(plain))
    mask = torch.rand(6, 4, 3, 3) < 0.5
    optimizers = []
    for layer in (plain, other):
        mnas.GradientMask(layer, {"weight": mask})
        optimizers.append(mnas.MaskedOptimizer(torch.optim.AdamW, layer, lr=0.1, fused=fused))
    for _ in range(3):
        grad = torch.randn(6, 4, 3, 3)
        for layer, optimizer in zip((plain, other), optimizers, strict=True):
            layer.weight.grad = grad.clone()
            optimizer.step()
    torch.testing.assert_close(plain.weight, other.weight, rtol=1e-5, atol=1e-6)
    states = [o.dense_state(p.weight) for o, p in zip(optimizers, (plain, other), strict=True)]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_masked_parameter_that_changes_its_memory_format_is_refused(fused):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, bias=False)
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, layer, lr=0.1, fused=fused)
    mnas.GradientMask(layer, {"weight": torch.rand(6, 4, 3, 3) < 0.5})
    layer.weight.grad = torch.ones(6, 4, 3, 3)
    optimizer.step()
    before = layer.weight.detach().clone()
    layer.to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="another memory format than when it was first stepped"):
        optimizer.step()
    assert torch.equal(layer.weight, before)
    layer.to(memory_format=torch.contiguous_format)
    optimizer.step()
    assert layer.weight.ne(before).any()


@pytest.mark.parametrize("kind", ["box", "scattered"])
def test_a_state_in_another_memory_format_is_refused_and_nothing_has_changed(kind):
    nets = [nn.Linear(24, 16, bias=False) for _ in range(2)]
    nets[1].weight = nn.Parameter(nets[1].weight.detach().T.contiguous().T)
    optimizers = [mnas.MaskedOptimizer(torch.optim.Adam, net, lr=0.1) for net in nets]
    for net, optimizer in zip(nets, optimizers, strict=True):
        mnas.GradientMask(net, {"weight": pattern(kind)})
        net(torch.ones(4, 24)).sum().backward()
        optimizer.step()
    before = optimizers[1].dense_state(nets[1].weight)
    with pytest.raises(ValueError, match="another memory format; convert the module first"):
        optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    after = optimizers[1].dense_state(nets[1].weight)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
