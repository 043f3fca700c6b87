"""MaskedOptimizer as a torch.optim.Optimizer; its arithmetic is in test_freezing.py."""

import copy
import re

import pytest
import torch
from conftest import batches
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import mnas
from mnas.freeze.elementwise import ELEMENTWISE, REFUSED

FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


def step(net, optimizer, path, batch):
    x, y = batch
    optimizer.zero_grad()
    F.cross_entropy(net(x, path), y).backward()
    optimizer.step()


def weights(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def test_schedulers_steer_the_wrapped_optimizer(small):
    """The rate that a scheduler sets must be the rate of the next step: with lr 0 nothing moves."""
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 1.0 if epoch == 0 else 0.0
    )
    before = weights(net)
    step(net, optimizer, (0, 0), next(batches(1)))
    assert not torch.equal(before, weights(net))
    scheduler.step()
    before = weights(net)
    step(net, optimizer, (0, 0), next(batches(1)))
    assert torch.equal(before, weights(net))


def test_closure(small):
    net = mnas.Supernet(small)
    twin = copy.deepcopy(net)
    x, y = next(batches(1))
    optimizer, other = (mnas.MaskedOptimizer(torch.optim.SGD, n, lr=0.1) for n in (net, twin))

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x, (1, 0)), y)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    step(twin, other, (1, 0), (x, y))
    assert torch.equal(weights(net), weights(twin))


def test_a_net_moved_after_the_optimizer_was_made_is_still_the_one_that_is_trained(small):
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1)
    net.double()
    x, y = next(batches(1, dtype=torch.float64))
    before = mnas.export(net, (0, 0))
    step(net, optimizer, (0, 0), (x, y))
    after = mnas.export(net, (0, 0))
    assert all(
        not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)
    )


def test_frozen_parameters_stay(small):
    net = mnas.Supernet(small)
    for candidate in net.choices[0].children():
        candidate.weight.requires_grad_(False)
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.1)
    before = mnas.export(net, (0, 0))
    step(net, optimizer, (0, 0), next(batches(1)))
    after = mnas.export(net, (0, 0))
    assert torch.equal(before[0].weight, after[0].weight)
    assert not after[0].weight.requires_grad
    assert not torch.equal(before[3].weight, after[3].weight)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


ROWS = {"0.weight": torch.tensor([True, False, True, False, True])[:, None], "2.bias": False}
IRREGULAR = {"0.weight": torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.5}


def train(net, optimizer, steps, first=0):
    for seed in range(first, first + steps):
        optimizer.zero_grad()
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        net(x).square().mean().backward()
        optimizer.step()


def test_every_optimizer_of_torch_is_exact_or_refused_with_its_reason():
    torch_own = {c for c in vars(torch.optim).values() if isinstance(c, type)} - {
        torch.optim.Optimizer
    }
    assert {c.__name__ for c in torch_own} == {c.__name__ for c in ELEMENTWISE} | set(REFUSED)
    for name, reason in REFUSED.items():
        with pytest.raises(
            ValueError, match=re.escape(f"{name} cannot be masked exactly: {reason}")
        ):
            mnas.MaskedOptimizer(
                getattr(torch.optim, name), nn.Linear(3, 2, bias=False), elementwise=True
            )


def test_the_refused_ones_would_be_wrong():
    """The reasons are true: with half of a matrix left out, the other half is stepped
    differently."""
    torch.manual_seed(0)
    start, grad = torch.randn(4, 6), torch.randn(4, 6)
    for name in ("Muon", "Adafactor"):
        whole, half = nn.Parameter(start.clone()), nn.Parameter(start[:2].clone())
        whole.grad, half.grad = grad, grad[:2]
        for parameter in (whole, half):
            getattr(torch.optim, name)([parameter]).step()
        updates = whole.detach()[:2] - start[:2], half.detach() - start[:2]
        assert (updates[0] - updates[1]).abs().max() > 0.05 * updates[0].abs().max()


class Sign(torch.optim.Optimizer):
    """Somebody's own optimizer."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["sum"] = state.get("sum", torch.zeros_like(p)) + p.grad
                    p.sub_(group["lr"] * state["sum"].sign())


def test_optimizers_from_elsewhere_need_a_word():
    net = linear()
    with pytest.raises(
        ValueError, match=r"Sign is not known to work .* say so with elementwise=True"
    ):
        mnas.MaskedOptimizer(Sign, net, lr=0.1)
    optimizer = mnas.MaskedOptimizer(Sign, net, lr=0.1, elementwise=True)
    mnas.GradientMask(net, ROWS)
    before = net[0].weight.detach().clone()
    train(net, optimizer, 3)
    assert net[0].weight.ne(before).all(1).tolist() == [True, False, True, False, True]
    assert optimizer.dense_state(net[0].weight)["sum"].ne(0).any(1).tolist() == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_impossible_arguments_are_refused():
    net = linear()
    with pytest.raises(
        ValueError, match="differentiable=True cannot step the parameters of a module"
    ):
        mnas.MaskedOptimizer(torch.optim.Adam, net, differentiable=True)
    with pytest.raises(ValueError, match="capturable=True is for accelerators"):
        mnas.MaskedOptimizer(torch.optim.Adam, net, capturable=True)
    with pytest.raises(ValueError, match="capturable=True is for accelerators"):
        mnas.MaskedOptimizer(torch.optim.Adam, [{"params": net.parameters(), "capturable": True}])
    with pytest.raises(
        ValueError, match="policy 'melted' is unknown; expected one of frozen, torch"
    ):
        mnas.MaskedOptimizer(torch.optim.Adam, net, policy="melted")
    with pytest.raises(ValueError, match="'sgd' is no optimizer class"):
        mnas.MaskedOptimizer("sgd", net)
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        mnas.MaskedOptimizer(torch.optim.SGD, net, lr=-1.0)
    with pytest.raises(TypeError, match="momentun"):
        mnas.MaskedOptimizer(torch.optim.SGD, net, momentun=0.9)
    with pytest.raises(ValueError, match="empty parameter list"):
        mnas.MaskedOptimizer(torch.optim.SGD, nn.ReLU())


@pytest.mark.parametrize("options", [{"differentiable": True}, {"capturable": True}])
def test_what_is_refused_fails_in_stock_torch_too(options):
    net = linear()
    optimizer = torch.optim.Adam(net.parameters(), **options)
    with pytest.raises(
        (RuntimeError, AssertionError), match=r"in-place operation|must be on supported devices"
    ):
        train(net, optimizer, 1)


SCHEDULERS = {
    "LambdaLR": lambda s, o: s.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda s, o: s.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda s, o: s.StepLR(o, 2),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda s, o: s.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda s, o: s.LinearLR(o),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.8),
    "SequentialLR": lambda s, o: s.SequentialLR(o, [s.ConstantLR(o), s.ExponentialLR(o, 0.9)], [3]),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 5),
    "ChainedScheduler": lambda s, o: s.ChainedScheduler([s.ConstantLR(o), s.ExponentialLR(o, 0.9)]),
    "ReduceLROnPlateau": lambda s, o: s.ReduceLROnPlateau(o, patience=0),
    "CyclicLR": lambda s, o: s.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "CosineAnnealingWarmRestarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, 0.1, total_steps=8),
    "PolynomialLR": lambda s, o: s.PolynomialLR(o, 5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_torch(name):
    """Rates, momenta and weights as under the stock optimizer; and a masked net follows the rate as
    well."""
    assert set(SCHEDULERS) == set(torch.optim.lr_scheduler.__all__) - {"LRScheduler"}
    nets = [linear() for _ in range(3)]
    mnas.GradientMask(
        nets[2], {"0.weight": IRREGULAR["0.weight"], "2.weight": torch.ones(2, 5, dtype=torch.bool)}
    )
    options = {"lr": 0.1, "momentum": 0.9}
    optimizers = [torch.optim.SGD(nets[0].parameters(), **options)]
    optimizers += [mnas.MaskedOptimizer(torch.optim.SGD, net, **options) for net in nets[1:]]
    schedulers = [SCHEDULERS[name](torch.optim.lr_scheduler, optimizer) for optimizer in optimizers]
    for epoch in range(6):
        for net, optimizer, scheduler in zip(nets, optimizers, schedulers, strict=True):
            train(net, optimizer, 1, first=epoch)
            rate = optimizer.param_groups[0]["lr"]
            scheduler.step(*[1.0] * (name == "ReduceLROnPlateau"))
        groups = [
            {k: v for k, v in o.param_groups[0].items() if k not in ("params", "param_names")}
            for o in optimizers
        ]
        assert groups[0] == groups[1] == groups[2]
    assert torch.equal(weights(nets[0]), weights(nets[1]))
    assert not torch.equal(weights(nets[0]), weights(nets[2]))
    assert optimizers[2].inner.param_groups[0]["lr"] == rate


def test_groups_with_options_of_their_own():
    net, twin = linear(), linear()
    masked = mnas.MaskedOptimizer(
        torch.optim.SGD,
        [{"params": net[0].parameters(), "lr": 0.0}, {"params": [net[2].weight]}],
        lr=0.1,
        momentum=0.9,
    )
    stock = torch.optim.SGD(
        [{"params": twin[0].parameters(), "lr": 0.0}, {"params": [twin[2].weight]}],
        lr=0.1,
        momentum=0.9,
    )
    for optimizer, of in ((masked, net), (stock, twin)):
        train(of, optimizer, 2)
        optimizer.add_param_group({"params": [of[2].bias], "weight_decay": 0.5})
        optimizer.param_groups[0]["lr"] = 0.3
        train(of, optimizer, 2)
    assert torch.equal(weights(net), weights(twin))
    assert [len(group["params"]) for group in masked.param_groups] == [2, 1, 1]
    assert masked.param_groups[2]["weight_decay"] == 0.5
    mnas.GradientMask(net, ROWS)
    before = net[0].weight.detach().clone()
    train(net, masked, 1)
    assert net[0].weight.ne(before).all(1).tolist() == [True, False, True, False, True]
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        masked.add_param_group({"params": [net[2].bias]})


def test_adagrad_takes_new_groups():
    """Versions of torch differ in whether a group that is added to the stock one has state; here it
    always has."""
    net = linear()
    optimizer = mnas.MaskedOptimizer(
        torch.optim.Adagrad, net[0], lr=0.1, initial_accumulator_value=0.5
    )
    optimizer.add_param_group({"params": net[2].parameters(), "lr": 0.2})
    before = weights(net)
    train(net, optimizer, 1)
    assert weights(net).ne(before).all()
    assert (optimizer.dense_state(net[2].bias)["sum"] - net[2].bias.grad ** 2).allclose(
        torch.tensor(0.5)
    )


@pytest.mark.parametrize("given", ["a module", "named parameters"])
def test_named_parameters(given):
    net = linear()
    named = net if given == "a module" else net.named_parameters()
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, named)
    mnas.GradientMask(net, ROWS)
    train(net, optimizer, 2)
    names = [name for name, _ in net.named_parameters()]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names


@pytest.mark.parametrize("with_names", [False, True])
def test_a_group_added_to_those_of_a_module_needs_no_names(with_names):
    net = linear()
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net[0])
    added = net[2].named_parameters() if with_names else net[2].parameters()
    optimizer.add_param_group({"params": added, "lr": 0.1})
    names = [["weight", "bias"]] * 2 if with_names else [None, None]
    assert [group.get("param_names") for group in optimizer.param_groups] == names
    before = weights(net)
    train(net, optimizer, 1)
    assert weights(net).ne(before).all()
    again = mnas.MaskedOptimizer(torch.optim.Adam, net[0])
    again.add_param_group({"params": net[2].weight})
    assert [len(group["params"]) for group in again.param_groups] == [2, 1]


def test_hooks_of_step_and_state_run_once():
    net = linear()
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net)
    calls = []
    handles = [
        optimizer.register_step_pre_hook(lambda o, *_: calls.append(("pre", o is optimizer))),
        optimizer.register_step_post_hook(lambda o, *_: calls.append(("post", o is optimizer))),
        register_optimizer_step_pre_hook(
            lambda o, *_: calls.append(("global pre", o is optimizer))
        ),
        register_optimizer_step_post_hook(
            lambda o, *_: calls.append(("global post", o is optimizer))
        ),
        optimizer.register_state_dict_pre_hook(lambda o: calls.append(("state", o is optimizer))),
        optimizer.register_state_dict_post_hook(lambda o, state: {**state, "note": 1}),
        optimizer.register_load_state_dict_pre_hook(
            lambda o, state: calls.append(("load", state["note"]))
        ),
        optimizer.register_load_state_dict_post_hook(
            lambda o: calls.append(("loaded", o is optimizer))
        ),
    ]
    train(net, optimizer, 1)
    assert calls == [("global pre", True), ("pre", True), ("post", True), ("global post", True)]
    calls.clear()
    state = optimizer.state_dict()
    assert state["note"] == 1
    optimizer.load_state_dict(state)
    assert calls == [("state", True), ("load", 1), ("loaded", True)]
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("form", [{}, {"fused": True}])
def test_grad_scaler_on_the_cpu(form):
    """Steps as without it where gradients are finite; where they are not, nothing moves."""
    nets = [linear() for _ in range(2)]
    optimizers = [mnas.MaskedOptimizer(torch.optim.Adam, net, lr=0.1, **form) for net in nets]
    for net in nets:
        mnas.GradientMask(net, ROWS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, 1.0, float("inf"), 1.0):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
        before = weights(nets[1])
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(nets[1](x).square().mean() * factor).backward()
        scaler.step(optimizers[1])
        scaler.update()
        if factor == 1.0:
            nets[0](x).square().mean().backward()
            optimizers[0].step()
        else:
            assert torch.equal(before, weights(nets[1]))
    torch.testing.assert_close(weights(nets[0]), weights(nets[1]), rtol=1e-6, atol=1e-6)
    assert optimizers[1].dense_state(nets[1][0].weight)["step"][:, 0].tolist() == [3, 0, 3, 0, 3]
