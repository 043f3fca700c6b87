"""Candidates that functions make: which are one, how they start, and what is refused."""

import functools
import random
import re

import pytest
import torch
from torch import nn

import mnas
from mnas import Choice, Decision


def space(make, *values, shape=(4,), **options):
    def build():
        return nn.Sequential(Choice(make, Decision("v", values), **options))

    return mnas.SearchSpace(build, input_shape=shape)


class Apply(nn.Module):
    """x through a function that it is given."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Fixed(nn.Module):
    def __init__(self, value, trained=False):
        super().__init__()
        self.value = nn.Parameter(torch.full((4,), float(value)), requires_grad=trained)

    def forward(self, x):
        return x * self.value


class Slotted(nn.Module):
    __slots__ = ("factor",)

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def scaled(value):
    def scale(x):
        return x * value

    return Apply(scale)


def defaulted(value):
    def scale(x, by=value):
        return x * by

    return Apply(scale)


def by_keyword(value):
    def scale(x, *, by=value):
        return x * by

    return Apply(scale)


def with_attribute(value):
    def scale(x):
        return x * scale.by

    scale.by = value
    return Apply(scale)


def of_builtin(value):
    return Apply(torch.tensor(float(value)).mul)


def of_local_class(value):
    class Scale:
        @staticmethod
        def __call__(x):
            return x * value

    return Apply(Scale())


def in_mode(value):
    return nn.Sequential(nn.Dropout(0.5)).train(value > 1)


DIFFERENT = (
    *(Fixed, Slotted, scaled, defaulted, by_keyword, with_attribute, of_builtin, of_local_class),
    in_mode,
)


@pytest.mark.parametrize("make", DIFFERENT)
def test_modules_that_compute_something_else_are_two_candidates(make):
    found = space(make, 1.0, 2.0)
    assert found.size == 2
    net, x = mnas.Supernet(found), torch.ones(1, 4)
    if make is not in_mode:
        assert [float(net(x, (i,)).mean()) for i in (0, 1)] == [1.0, 2.0]


def test_how_trained_parameters_start_tells_no_candidates_apart():
    assert space(lambda v: Fixed(v, trained=True), 1.0, 2.0).size == 1


def test_a_function_that_refers_to_itself_is_compared():
    def make(value):
        def fold(x):
            return x if fold is None else x * value

        return Apply(fold)

    assert space(make, 1.0, 1.5).size == 2


class Normed(nn.Module):
    """A width, a number and a buffer that are computed of the random start."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.scale = 1 / float(self.layer.weight.detach().norm())
        self.register_buffer("start", self.layer.weight.detach().clone())

    def forward(self, x):
        return self.layer(x).sum(1, keepdim=True) * self.scale


@pytest.mark.parametrize("nested", [False, True])
def test_what_is_computed_of_the_start_is_computed_of_a_start(nested):
    torch.manual_seed(0)
    net = mnas.Supernet(space(Normed, 4, 8, nested=nested))
    (choice,) = net.choices
    for index in (0, 1):
        module = choice.candidate(index)
        assert 0.1 < module.scale < 10
        assert torch.equal(module.start, module.layer.weight)


class Crossing(nn.Module):
    """Neither contains the other, so both start what they alone have."""

    def __init__(self, rows):
        super().__init__()
        self.layer = nn.Linear(rows, 10 - rows, bias=False)

    def forward(self, x):
        return self.layer(x[:, : self.layer.in_features]).sum(1, keepdim=True)


def test_all_entries_of_candidates_that_cross_have_a_start():
    torch.manual_seed(0)
    net = mnas.Supernet(space(Crossing, 3, 7, shape=(7,), nested=True))
    (choice,) = net.choices
    assert len(list(choice.parameters())) == 3  # what both have, and what each has alone
    for parameter in choice.parameters():
        assert parameter.ne(0).all()
        assert parameter.abs().max() < 1
    assert [choice.enclosing(index) for index in (0, 1)] == [0, 1]


class Waves(nn.Module):
    """A table of constants that depends on the width."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.register_buffer("inverse", 1 / 10_000 ** (torch.arange(0, width, 2) / width))
        self.register_buffer("ones", torch.ones(width))

    def forward(self, x):
        y = self.layer(x) * self.ones
        return (y[:, ::2] * self.inverse).sum(1, keepdim=True)


def test_a_table_that_depends_on_the_width_is_each_candidates_own():
    net = mnas.Supernet(space(Waves, 4, 8, nested=True))
    (choice,) = net.choices
    assert set(choice.canvases) == {"layer.weight", "layer.bias", "ones"}
    for index, width in enumerate((4, 8)):
        assert torch.equal(mnas.export(net, (index,))[0].inverse, Waves(width).inverse)


class Noise(nn.Module):
    """No parameters, and numbers drawn once."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("noise", torch.randn(width, 4))

    def forward(self, x):
        return (x @ self.noise.T).sum(1, keepdim=True)


def test_random_buffers_follow_the_users_seed():
    found = space(Noise, 2, 3)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append([c.noise for c in mnas.Supernet(found).choices[0].children()])
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))


TABLE = {1: nn.Linear(4, 4), 2: nn.Sequential(nn.Linear(4, 4))}


@functools.cache
def cached(value):
    return nn.Linear(4, 4) if value == 1 else nn.Sequential(nn.Linear(4, 4))


@pytest.mark.parametrize(
    "make", [cached, TABLE.get, lambda v: TABLE[1], lambda v: nn.Sequential(TABLE[1])]
)
def test_a_module_that_is_returned_twice_is_refused(make):
    def build():
        return nn.Sequential(Choice(lambda v: make(v), Decision("v", (1, 2))))

    message = "that it has returned before, or a part of one; make a"
    with pytest.raises(ValueError, match=message):  # noqa: PT012 - in one build or the next
        build()
        build()


def test_a_build_that_returns_another_model_is_refused():
    chance = random.Random(0)

    def build():
        names = ["a", "b"]
        chance.shuffle(names)
        return nn.Sequential(Choice({name: nn.Linear(4, 4) for name in names}))

    found = mnas.SearchSpace(build, input_shape=(4,))
    message = "has returned another model than when the space was"
    with pytest.raises(ValueError, match=message):  # noqa: PT012 - one of twenty at least
        for _ in range(20):
            mnas.Supernet(found)


def test_equal_numbers_of_other_types_are_other_values():
    decision = Decision("b", (1, True, 1.0, None, "v1.0", "v1_0"))
    assert [decision.index(v) for v in decision.values] == list(range(6))
    found = space(lambda v: scaled(len(str(v))), "v1.0", "v1_0", "v1")
    assert len(found.choices[0]) == 3


def test_a_decision_inside_of_an_argument_is_refused():
    message = re.escape("a Choice got a Decision inside of another argument; give it as one of")
    with pytest.raises(ValueError, match=message):
        Choice(lambda sizes: nn.Linear(*sizes), (4, Decision("w", (4, 8))))


def test_an_example_stays_as_it_is():
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.add_(1))

    example = torch.zeros(2, 4)
    found = mnas.SearchSpace(lambda: InPlace(Choice({"a": nn.Linear(4, 4)})), example=example)
    mnas.cost(found, (0,))
    assert not example.any()


class Block(nn.Module):
    """With the empty sequence that many residual networks have, and an activation from outside."""

    def __init__(self, width, activation):
        super().__init__()
        self.layer, self.short, self.act = nn.Linear(4, width), nn.Sequential(), activation

    def forward(self, x):
        return self.act(self.layer(self.short(x))).sum(1, keepdim=True)


def test_an_empty_sequence_and_a_shared_activation_make_no_difference():
    activation = nn.ReLU()
    found = space(lambda v: Block(4 if v < 3 else 8, activation), 1, 2, 3)
    assert found.size == 2
    mnas.Supernet(found)


class Scaled(nn.Module):
    """A number beside a width."""

    def __init__(self, width):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, width), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.layer(x).sum(1, keepdim=True) * self.scale


def test_a_kept_subnet_sees_a_shared_number_and_leaves_no_hook_on_what_is_absent():
    def build():
        v = Decision("v", (0, 4, 8))
        return nn.Sequential(
            Choice(lambda v: Scaled(v) if v else nn.Linear(4, 1), v, nested=True),
            Choice(lambda v: nn.Linear(1, v) if v else None, v, nested=True),
            nn.AdaptiveAvgPool1d(1),
        )

    net = mnas.Supernet(mnas.SearchSpace(build, input_shape=(4,)))
    x, subnets = torch.randn(2, 4), [net.subnet((i,)) for i in range(3)]
    assert not any(m._forward_pre_hooks for m in net.modules())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    for index, subnet in enumerate(subnets):
        assert torch.equal(subnet(x), net(x, (index,)))
