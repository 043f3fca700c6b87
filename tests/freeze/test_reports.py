"""What people report of others: optimizers that count in their groups, parameters replaced under a
mask, processes that share the work. Against separate tensors and modules under stock torch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import mnas

ROWS = torch.tensor([True, False, True, True, False, False])


class CountsInGroups(torch.optim.Optimizer):
    """Adam that counts its steps in its groups."""

    def __init__(self, params, lr=1e-2, betas=(0.9, 0.99), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                state["m"].lerp_(p.grad, 1 - first)
                state["v"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                m = state["m"] / (1 - first ** group["step"])
                v = state["v"] / (1 - second ** group["step"])
                p.sub_(group["lr"] * m / (v.sqrt() + group["eps"]))


@pytest.mark.parametrize("groups", [1, 2])
def test_an_optimizer_that_counts_in_its_groups_goes_on_counting(groups):
    """prime-rl 3109, TransformerEngine 1986. Also after its state was saved and loaded."""
    torch.manual_seed(0)
    net = nn.ParameterDict({name: torch.randn(6, 4) for name in "ab"[:groups]})
    parts = [nn.Parameter(p.detach()[ROWS].clone()) for p in net.values()]
    mnas.GradientMask(net, {"*": ROWS[:, None]})

    def make(optimizer_class, tensors, **options):
        return optimizer_class([{"params": [t]} for t in tensors], **options)

    def ours_of(of):
        given = [{"params": [p]} for p in of.values()]
        return mnas.MaskedOptimizer(CountsInGroups, given, elementwise=True)

    ours, stock = ours_of(net), CountsInGroups([{"params": [p]} for p in parts])
    for number in range(10):
        if number == 6:
            saved = copy.deepcopy(ours.state_dict())
            ours = ours_of(net)
            ours.load_state_dict(saved)
        for optimizer in (ours, stock):
            optimizer.zero_grad()
        for parameter, part in zip(net.values(), parts, strict=True):
            grad = torch.randn(6, 4)
            (parameter * grad).sum().backward()
            (part * grad[ROWS]).sum().backward()
        for optimizer in (ours, stock):
            optimizer.step()
    for parameter, part in zip(net.values(), parts, strict=True):
        assert torch.equal(parameter[ROWS], part)
    assert [group["step"] for group in ours.param_groups] == [10] * groups
    assert [group["step"] for group in ours.state_dict()["param_groups"]] == [10] * groups


# Parameters that take the place of others under a mask, on rows of the second layer.


def pair():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6))


def rows_of(name="1"):
    return {f"{name}.weight": ROWS[:, None], f"{name}.bias": ROWS}


def trains_only_its_rows(net, call=None, weight=None):
    """Train some steps with all that makes frozen entries move; the rows of the weight, or of the
    second layer's, are as a stock optimizer steps them as tensors of their own."""
    weight = net[1].weight if weight is None else weight
    before, part = weight.detach().clone(), nn.Parameter(weight.detach()[ROWS].clone())
    options = {"lr": 0.05, "weight_decay": 0.1}
    ours = mnas.MaskedOptimizer(torch.optim.AdamW, net, **options)
    stock = torch.optim.AdamW([part], **options)
    for seed in range(4):
        ours.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)).to(weight.dtype)
        (call or net)(x).square().mean().backward()
        part.grad = weight.grad[ROWS].clone()
        assert weight.grad[~ROWS].eq(0).all()
        ours.step()
        stock.step()
    assert torch.equal(weight[~ROWS], before[~ROWS])
    assert torch.equal(weight[ROWS], part)
    assert part.ne(before[ROWS]).all()


def assigned(net):
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)


def another_layer(net):
    net[1] = nn.Linear(4, 6)


def another_parameter(net):
    net[1].weight = nn.Parameter(torch.randn(6, 4))


def tied_later(net):
    net.append(nn.Linear(4, 6))
    net[1].weight = net[2].weight
    del net[2]


REPLACED = (assigned, another_layer, another_parameter, tied_later)


@pytest.mark.parametrize("replace", REPLACED)
def test_a_mask_follows_what_takes_the_place_of_a_parameter(replace):
    """pytorch 102212, tutorials 2522."""
    net = pair()
    mask = mnas.GradientMask(net, rows_of())
    replace(net)
    assert "35 of 50 entries can train; in force" in repr(mask)
    trains_only_its_rows(net)
    net(torch.ones(1, 4))
    replace(net)  # with an optimizer of before
    net.zero_grad()
    net(torch.ones(1, 4)).sum().backward()
    assert net[1].weight.grad[~ROWS].eq(0).all()
    mask.remove()
    net.zero_grad()
    net(torch.ones(1, 4)).sum().backward()
    assert net[1].weight.grad.ne(0).any(1).all()


@pytest.mark.parametrize("replace", REPLACED)
def test_a_mask_that_its_module_holds_follows_also_in_copies(replace):
    net = pair()
    net.mask = mnas.GradientMask(net, rows_of())
    twin = copy.deepcopy(net)
    replace(twin)
    trains_only_its_rows(twin)
    trains_only_its_rows(net)


def test_a_layer_that_is_called_without_its_module_is_followed_as_well():
    net = pair()
    mnas.GradientMask(net, rows_of())
    net[1].weight = nn.Parameter(torch.randn(6, 4))
    trains_only_its_rows(net, lambda x: net[1](net[0](x)))


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_parametrization_that_is_registered_under_a_mask_and_removed():
    net = pair()
    mnas.GradientMask(net, rows_of())
    parametrize.register_parametrization(net[1], "weight", Double())
    trains_only_its_rows(net, weight=net[1].parametrizations.weight.original)
    parametrize.remove_parametrizations(net[1], "weight")
    trains_only_its_rows(net)


def test_pruning_under_a_mask():
    net = pair()
    mnas.GradientMask(net, rows_of())
    prune.random_unstructured(net[1], "weight", amount=2)
    frozen = net[1].weight_orig.detach()[~ROWS].clone()
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert torch.equal(net[1].weight_orig[~ROWS], frozen)
    prune.remove(net[1], "weight")
    trains_only_its_rows(net)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_conversion_that_swaps_tensors(dtype):
    net = pair()
    mnas.GradientMask(net, rows_of())
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        net.to(dtype)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert net[1].weight.dtype == dtype
    trains_only_its_rows(net)


def tied():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6))
    net[1].weight = net[0].weight
    return net


def shares_no_more(net):
    net[1] = nn.Linear(4, 4)


def shape_of_another(net):
    net[2] = nn.Linear(4, 8)


def normalises(net):
    nn.utils.parametrizations.weight_norm(net[2])


def is_gone(net):
    del net[2]


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (assigned, "'0.weight', of shape (4, 4), is several ones now"),  # torch unties it
        (shares_no_more, "'0.weight', of shape (4, 4), is several ones now"),
        (shape_of_another, "'2.weight', of shape (6, 4), is now of shape (8, 4)"),
        (normalises, "'2.weight', of shape (6, 4), is gone"),
        (is_gone, "'2.weight', of shape (6, 4), is gone"),
    ],
)
def test_a_mask_that_cannot_follow_says_so_aloud(replace, message):
    net = tied()
    mask = mnas.GradientMask(
        net, {"[01].weight": torch.rand(4, 4) < 0.5, "2.weight": ROWS[:, None]}
    )
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.1)
    replace(net)
    assert f"not in force: a GradientMask has lost its parameter: {message}" in repr(mask)
    for act in (lambda: net(torch.ones(1, 4)), optimizer.step):
        with pytest.raises(RuntimeError, match="has lost its parameter"):
            act()
    mask.remove()
    assert "removed" in repr(mask)
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()


def test_a_resized_embedding_is_refused_and_a_new_mask_freezes_its_old_rows():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    mask = mnas.GradientMask(net, {"0.weight": torch.arange(5)[:, None] >= 3})
    old = net[0]
    net[0] = nn.Embedding(8, 4)
    with pytest.raises(RuntimeError, match=r"of shape \(5, 4\), is now of shape \(8, 4\)"):
        net(torch.arange(8))
    mask.remove()
    with torch.no_grad():
        net[0].weight[:5] = old.weight
    mnas.GradientMask(net, {"0.weight": torch.arange(8)[:, None] >= 5})
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.arange(8)).square().mean().backward()
        optimizer.step()
    assert torch.equal(net[0].weight[:5], old.weight)
    assert net[0].weight[5:].ne(nn.Embedding(8, 4).weight[5:]).all()


def test_a_layer_of_which_the_statistics_are_frozen_is_not_replaced_in_silence():
    net = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.BatchNorm1d(3)))
    mnas.GradientMask(net, {"1.*": False}, statistics=True)
    for replace in (
        lambda: net[1].__setitem__(0, nn.BatchNorm1d(3)),
        lambda: net.__setitem__(1, nn.ReLU()),
    ):
        replace()
        with pytest.raises(RuntimeError, match=r"lost its layer: '1\.0' is another one now"):
            net(torch.ones(2, 4))


def test_a_functional_call_in_the_middle_leaves_the_mask_where_it_is():
    net = pair()
    mnas.GradientMask(net, rows_of())
    loss = net(torch.ones(1, 4)).sum()
    given = {name: p.detach().clone() for name, p in net.named_parameters()}
    torch.func.functional_call(net, given, (torch.ones(1, 4),))
    torch.func.grad(lambda g: torch.func.functional_call(net, g, (torch.ones(1, 4),)).sum())(given)
    loss.backward()
    assert net[1].weight.grad.ne(0).any(1).tolist() == ROWS.tolist()
    trains_only_its_rows(net)


def test_a_mask_that_has_lost_its_parameter_is_no_matter_of_other_modules():
    net, other = pair(), pair()
    mask = mnas.GradientMask(net, rows_of())
    net[1] = nn.Linear(4, 8)
    with pytest.raises(RuntimeError, match="has lost its parameter"):
        mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1).step()
    mnas.GradientMask(other, rows_of())
    trains_only_its_rows(other)
    assert "not in force" in repr(mask)
