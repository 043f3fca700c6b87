"""Training loops as people write them, for the paths of a supernet and for a layer under masks that
change, against separate modules under stock torch."""

import pytest
import torch
from test_active import Fails
from torch import nn

import mnas

OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}
STEPS = (0, 2, 1, 0, 1, 2, 2)


def batch(number):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(number))


class Paths:
    """A supernet of three paths, and their networks with a common head."""

    def __init__(self):
        torch.manual_seed(0)
        candidates = {"a": nn.Linear(4, 4), "skip": nn.Identity(), "b": nn.Linear(4, 4, bias=False)}
        space = mnas.SearchSpace(
            lambda: nn.Sequential(mnas.Choice(candidates), nn.ReLU(), nn.Linear(4, 2)),
            input_shape=(4,),
        )
        self.net = mnas.Supernet(space)
        self.separate = nn.ModuleList([mnas.export(self.net, (i,)) for i in range(3)])
        for module in self.separate[1:]:
            module[2] = self.separate[0][2]

    def backward(self, i, x, factor=1.0):
        (self.net(x, (i,)).square().mean() * factor).backward()
        (self.separate[i](x).square().mean() * factor).backward()

    def pairs(self):
        """Our entries beside those of the separate modules."""
        for i, module in enumerate(self.separate):
            yield from zip(
                mnas.export(self.net, (i,)).parameters(), module.parameters(), strict=True
            )


class Rows:
    """A layer of which pass 0 trains the first two rows, 1 the next two and 2 all four; and its
    rows as layers of their own."""

    trained = ((0,), (1,), (0, 1))

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Linear(4, 6)
        self.separate = nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])
        with torch.no_grad():
            for part, (weight, bias) in zip(self.separate, self.parts(), strict=True):
                part.weight.copy_(weight), part.bias.copy_(bias)

    def parts(self):
        return list(zip(self.net.weight.split(2), self.net.bias.split(2), strict=True))

    def mask(self, i):
        rows = torch.isin(torch.arange(6) // 2, torch.tensor(self.trained[i]))
        return mnas.GradientMask(self.net, {"weight": rows[:, None], "bias": rows})

    def backward(self, i, x, factor=1.0):
        with self.mask(i):
            (self.net(x).square().mean() * factor).backward()
        for number, part in enumerate(self.separate):
            part.requires_grad_(number in self.trained[i])
        out = torch.cat([part(x) for part in self.separate], 1)
        (out.square().mean() * factor).backward()
        self.separate.requires_grad_(True)

    def pairs(self):
        for part, (weight, bias) in zip(self.separate, self.parts(), strict=True):
            yield weight, part.weight
            yield bias, part.bias


class Training:
    """Both sides under one optimizer each."""

    def __init__(self, kind, name, of=lambda module: module.parameters()):
        self.model = kind()
        optimizer_class, options = OPTIMIZERS[name]
        self.ours = mnas.MaskedOptimizer(optimizer_class, list(of(self.model.net)), **options)
        self.stock = optimizer_class(list(of(self.model.separate)), **options)

    @property
    def parameters(self):
        return list(self.model.net.parameters())

    @property
    def all(self):
        return [*self.parameters, *self.model.separate.parameters()]

    def reset(self):
        self.ours.zero_grad()
        self.stock.zero_grad()

    def step(self):
        self.ours.step()
        self.stock.step()
        self.check()

    def check(self):
        for ours, theirs in self.model.pairs():
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def each_gradient(act):
    def reset(training):
        for parameter in training.parameters:
            if parameter.grad is not None:
                act(parameter)

    return reset


def to(attribute, make):
    return lambda parameter: setattr(parameter, attribute, make(parameter))


def assigned_data(parameter):
    parameter.grad.data = torch.zeros_like(parameter)


def sliced(parameter):
    parameter.grad[:] = 0


RESETS = {
    "None": each_gradient(to("grad", lambda _: None)),
    "zero_()": each_gradient(lambda p: p.grad.zero_()),
    ".data.zero_()": each_gradient(lambda p: p.grad.data.zero_()),
    "detach().zero_()": each_gradient(lambda p: p.grad.detach().zero_()),
    "[:] = 0": each_gradient(sliced),
    "mul_(0)": each_gradient(lambda p: p.grad.mul_(0)),
    "assigned zeros": each_gradient(to("grad", torch.zeros_like)),
    ".data = zeros": each_gradient(assigned_data),
    "foreach_zero_": lambda t: (
        torch._foreach_zero_([p.grad for p in t.parameters if p.grad is not None])
        if any(p.grad is not None for p in t.parameters)
        else None
    ),
    "optimizer": lambda t: t.ours.zero_grad(),
    "optimizer, in place": lambda t: t.ours.zero_grad(set_to_none=False),
    "module": lambda t: t.model.net.zero_grad(),
    "module, in place": lambda t: t.model.net.zero_grad(set_to_none=False),
}

everywhere = [
    pytest.mark.parametrize("kind", [Paths, Rows]),
    pytest.mark.parametrize("name", OPTIMIZERS),
]


def on_both(test):
    for mark in everywhere:
        test = mark(test)
    return test


@pytest.mark.parametrize("how", RESETS)
@on_both
def test_a_reset_is_a_reset_however_it_is_written(how, kind, name):
    """pytorch-examples 3 and 14, SinglePathOneShot 7."""
    training = Training(kind, name)
    for number, i in enumerate(STEPS):
        training.stock.zero_grad()
        RESETS[how](training)
        training.model.backward(i, batch(number))
        training.step()


@on_both
def test_gradients_that_are_views_of_one_flat_buffer(kind, name):
    training = Training(kind, name)
    flat = torch.zeros(sum(p.numel() for p in training.parameters))
    sizes = [p.numel() for p in training.parameters]
    for parameter, part in zip(training.parameters, flat.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    for number, i in enumerate(STEPS):
        training.stock.zero_grad()
        flat.zero_()
        training.model.backward(i, batch(number))
        training.step()


@on_both
def test_gradients_of_which_the_sum_is_zero_are_made_none(kind, name):
    """SinglePathOneShot's own loop."""
    training = Training(kind, name)
    for number, i in enumerate(STEPS):
        training.reset()
        training.model.backward(i, batch(number))
        for parameter in training.all:
            if parameter.grad is not None and parameter.grad.sum() == 0:
                parameter.grad = None
        training.step()


@on_both
def test_gradients_that_are_exactly_zero_are_stepped_like_others(kind, name):
    """Momentum and decay go on in what a pass has reached, as in a layer that a dead unit feeds."""
    training = Training(kind, name)
    for number, i in enumerate(STEPS):
        training.reset()
        training.model.backward(i, batch(number), factor=float(number % 2 == 0))
        for module in (training.model.net, training.model.separate):
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        training.step()


def scaled(tensors):
    for tensor in tensors:
        tensor.grad = tensor.grad * 0.5


def cloned(tensors):
    for tensor in tensors:
        tensor.grad = tensor.grad.clone()


def emptied_and_set(tensors):
    for tensor in tensors:
        grad, tensor.grad = tensor.grad, None
        tensor.grad = grad.sign()


CHANGES = {
    "scaled in place": lambda tensors: [t.grad.mul_(0.5) for t in tensors],
    "scaled": scaled,
    "scaled through data": lambda tensors: [t.grad.data.div_(3) for t in tensors],
    "replaced": cloned,
    "taken out and set": emptied_and_set,
    "clipped by norm": lambda tensors: nn.utils.clip_grad_norm_(tensors, 0.05),
    "clipped by value": lambda tensors: nn.utils.clip_grad_value_(tensors, 0.01),
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("passes", [1, 2])
@on_both
def test_gradients_that_are_changed_before_the_step(how, passes, kind, name):
    """Also those that several paths, or passes under several masks, have added to."""
    training = Training(kind, name)
    for number, i in enumerate(STEPS):
        training.reset()
        for more in range(passes):
            training.model.backward((i + more) % 3, batch(10 * number + more), 1 / passes)
        for module in (training.model.net, training.model.separate):
            CHANGES[how]([p for p in module.parameters() if p.grad is not None])
        training.step()


@on_both
def test_steps_without_a_reset_between_them_add_up(kind, name):
    """What passes have reached goes on being stepped until a reset, as gradients do."""
    training = Training(kind, name)
    for number, i in enumerate(STEPS):
        if number % 3 == 0:
            training.reset()
        training.model.backward(i, batch(number))
        training.step()
        training.step()


def weights_of(module):
    return [p for name, p in module.named_parameters() if name.endswith("weight")]


def biases_of(module):
    return [p for name, p in module.named_parameters() if name.endswith("bias")]


@on_both
def test_two_optimizers_on_one_module(kind, name):
    """One has the weights, the other the biases; both step after a pass, one by one."""
    first = Training(kind, name, weights_of)
    second = Training(kind, "SGD", biases_of)
    second.model = first.model
    for side, of in (("ours", "net"), ("stock", "separate")):
        optimizer = getattr(second, side)
        optimizer.param_groups[0]["params"] = biases_of(getattr(first.model, of))
    for number, i in enumerate(STEPS):
        for training in (first, second):
            training.reset()
        first.model.backward(i, batch(number))
        first.step()
        if number % 2:
            second.step()


@on_both
def test_two_optimizers_of_the_same_parameters(kind, name):
    first, second = Training(kind, name), Training(kind, "SGD")
    second.model = first.model
    for side, of in (("ours", "net"), ("stock", "separate")):
        optimizer = getattr(second, side)
        optimizer.param_groups[0]["params"] = list(getattr(first.model, of).parameters())
    for number, i in enumerate(STEPS):
        first.reset()
        first.model.backward(i, batch(number))
        for training in (first, second):
            training.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_mask_in_force_at_the_step_forbids_what_passes_have_reached(name):
    training = Training(Rows, name)
    for number in range(4):
        training.reset()
        training.model.backward(2, batch(number))
        with training.model.mask(number % 2):
            training.ours.step()
        grads = [p.grad for p in training.model.separate.parameters()]
        for part in training.model.separate[1 - number % 2].parameters():
            part.grad = None
        training.stock.step()
        training.check()
        for part, grad in zip(training.model.separate.parameters(), grads, strict=True):
            part.grad = grad
        training.step()  # the mask is gone, the gradient is not


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_exception_in_the_middle_of_a_backward_pass(name):
    """What was delivered before it is there, as in stock torch; the rest is not, and later passes
    are whole."""
    training = Training(Paths, name)
    net, (first, _, second) = training.model.net, training.model.separate
    for number, reset in enumerate((True, False)):
        training.reset()
        x = batch(number)
        for one, two in ((first, second), (lambda x: net(x, (0,)), lambda x: net(x, (2,)))):
            with pytest.raises(RuntimeError, match="on purpose"):
                one(Fails.apply(two(x).sum() * x)).sum().backward()
        if reset:
            training.reset()
        training.model.backward(1, batch(10 + number))
        training.step()
        assert [p.grad is None for p in net.choices[0].b.parameters()] == [True]
        training.reset()
        training.model.backward(2, batch(20 + number))
        training.step()


@on_both
def test_grad_scaler_with_a_skipped_step(kind, name):
    training = Training(kind, name)
    scalers = [torch.amp.GradScaler("cpu", init_scale=256.0) for _ in range(2)]
    for number, i in enumerate((0, 1, 2, 0, 1, 2)):
        training.reset()
        factor = float("inf") if number == 2 else scalers[0].get_scale()
        training.model.backward(i, batch(number), factor)
        for scaler, optimizer in zip(scalers, (training.ours, training.stock), strict=True):
            scaler.scale(torch.ones(()))
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.1)
            scaler.step(optimizer)
            scaler.update()
        training.check()
        if number == 2:
            assert scalers[0].get_scale() == scalers[1].get_scale() == 128.0
