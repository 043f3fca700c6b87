"""Nested candidates: kernels, widths, dilations and depths that share entries, against pieces kept
apart."""

import copy
import re

import pytest
import torch
from conftest import batches, randomise
from oracle import OPTIMIZERS, assert_same_state, random_paths
from torch import nn
from torch.nn import functional as F

import mnas


class PiecewiseConv(nn.Module):
    """A 5x5 kernel in two tensors, its centre and its border; the 3x3 convolution uses the centre
    alone."""

    BORDER = tuple((i, j) for i in range(5) for j in range(5) if not (0 < i < 4 and 0 < j < 4))

    def __init__(self, inputs, outputs):
        super().__init__()
        nn.Conv2d(inputs, outputs, 3)  # the space makes this one, too, and draws its random numbers
        whole = nn.Conv2d(inputs, outputs, 5)
        self.bias = whole.bias
        self.centre = nn.Parameter(whole.weight.detach()[:, :, 1:4, 1:4].clone())
        rows, columns = zip(*self.BORDER, strict=True)
        self.border = nn.Parameter(whole.weight.detach()[:, :, rows, columns].clone())

    def forward(self, x, index):
        if index == 0:
            return F.conv2d(x, self.centre, self.bias, padding=1)
        weight = F.pad(self.centre, (1, 1, 1, 1))
        rows, columns = map(torch.tensor, zip(*self.BORDER, strict=True))
        everywhere = (slice(None), slice(None), rows, columns)
        border = torch.zeros_like(weight.detach()).index_put(
            [
                torch.arange(n).view(shape)
                for n, shape in zip(weight.shape[:2], ((-1, 1, 1), (1, -1, 1)), strict=True)
            ]
            + [rows, columns],
            self.border,
        )
        assert weight.detach()[everywhere].eq(0).all()
        return F.conv2d(x, weight + border, self.bias, padding=2)


class PiecewiseMil4(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.first = PiecewiseConv(1, channels[0])
        self.second = PiecewiseConv(*channels)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(channels[1] * 49, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )

    def forward(self, x, path):
        for conv, index in zip((self.first, self.second), path, strict=True):
            x = F.max_pool2d(F.relu(conv(x, index)), 2)
        return self.head(x)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nested_kernels_equal_a_centre_and_a_border_kept_apart(name):
    """Weights, state and step counts of both pieces, over interleaved paths."""
    space = mnas.spaces.mil4_nested(channels=(3, 5), hidden=7)
    torch.manual_seed(1)
    net = mnas.Supernet(space)
    torch.manual_seed(1)
    oracle = PiecewiseMil4((3, 5), 7)
    optimizer_class, options = OPTIMIZERS[name]
    ours, stock = (
        mnas.MaskedOptimizer(optimizer_class, net, **options),
        optimizer_class(oracle.parameters(), **options),
    )
    for path, (x, y) in zip(random_paths(space, 40), batches(40), strict=True):
        losses = []
        for forward, optimizer in ((net, ours), (oracle, stock)):
            optimizer.zero_grad()
            losses.append(F.cross_entropy(forward(x, path), y))
            losses[-1].backward()
            optimizer.step()
        assert torch.equal(*losses)
    for choice, conv in zip(net.choices, (oracle.first, oracle.second), strict=True):
        centre, border = map(choice.get_parameter, choice.shared["weight"])
        assert torch.equal(centre, conv.centre)
        assert torch.equal(of_border(choice, border.detach()), conv.border)
        assert_same_state(ours.dense_state(centre), stock.state[conv.centre])
        state = {key: of_border(choice, v) for key, v in ours.dense_state(border).items()}
        assert_same_state(state, stock.state[conv.border])
        if "step" in state:
            assert int(ours.dense_state(centre)["step"].max()) > int(state["step"].max())


def of_border(choice, tensor):
    """What belongs to the border's atom, in the order of the oracle."""
    canvas = choice.canvases["weight"]
    whole = torch.zeros(canvas.size)
    canvas.atoms[1].put(tensor, whole)
    rows, columns = zip(*PiecewiseConv.BORDER, strict=True)
    return whole[:, :, rows, columns]


def layers(depth):
    return [
        layer for _ in range(depth) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    ]


# Candidates, and whether masked execution exists for them (None: their outputs differ in size)
DISPARATE = {
    "kernels": (lambda: {f"k{k}": nn.Conv2d(4, 6, k, padding=k // 2) for k in (3, 5, 7)}, True),
    "widths": (
        lambda: {f"w{w}": nn.Conv2d(4, w, 3, padding=1, bias=False) for w in (2, 5, 6)},
        None,
    ),
    "dilation": (
        lambda: {
            "d2": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
            "k5": nn.Conv2d(4, 6, 5, padding=2),
        },
        True,
    ),
    "depthwise": (
        lambda: {f"k{k}": nn.Conv2d(4, 4, k, padding=k // 2, groups=4) for k in (3, 5)},
        True,
    ),
    "linear": (
        lambda: {f"w{w}": nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, w)) for w in (3, 8)},
        None,
    ),
    "one dimension": (
        lambda: {
            f"k{k}": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, k, padding=k // 2))
            for k in (1, 3)
        },
        True,
    ),
    "depth": (lambda: {f"d{d}": nn.Sequential(*layers(d)) for d in (1, 2, 3)}, True),
    "inverted residual": (
        lambda: {
            f"t{t}k{k}": nn.Sequential(
                nn.Conv2d(4, 4 * t, 1, bias=False),
                nn.BatchNorm2d(4 * t),
                nn.Conv2d(4 * t, 4 * t, k, padding=k // 2, groups=4 * t, bias=False),
                nn.BatchNorm2d(4 * t),
                nn.Conv2d(4 * t, 4, 1, bias=False),
            )
            for t, k in ((3, 3), (6, 5), (6, 3))
        },
        True,
    ),
    "wide small and narrow large": (
        lambda: {"w6k3": nn.Conv2d(4, 6, 3, padding=1), "w2k5": nn.Conv2d(4, 2, 5, padding=2)},
        None,
    ),
}


def space_of(make, **options):
    """The choice alone, its output brought to one size."""
    return mnas.SearchSpace(
        lambda: nn.Sequential(
            mnas.Choice(make(), nested=True, **options), nn.Flatten(), nn.AdaptiveAvgPool1d(8)
        ),
        input_shape=(4, 6, 6),
    )


@pytest.mark.parametrize("case", DISPARATE)
def test_every_candidate_computes_what_it_would_alone_on_its_region(case):
    make, maskable = DISPARATE[case]
    space = space_of(make)
    torch.manual_seed(0)
    net = mnas.Supernet(space)
    randomise(net)
    for name, buffer in net.named_buffers():
        if "running_var" in name:
            buffer.abs_()
    x = torch.randn(5, 4, 6, 6)
    for path in space.paths():
        for training in (True, False):
            net.train(training)
            exported = mnas.export(net, path)
            assert torch.equal(exported(x), net(x, path))
            assert all(p.is_contiguous() for p in exported.parameters())
    if maskable is not None:
        masked = mnas.Supernet(space, "masked").double()
        masked.load_state_dict(net.state_dict())
        net.double()
        for path in space.paths():
            for training in (True, False):
                outputs = [each.train(training)(x.double(), path) for each in (masked, net)]
                torch.testing.assert_close(*outputs)
        for ours, theirs in zip(masked.buffers(), net.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("case", "execution"),
    [(case, "sliced") for case in DISPARATE]
    + [(case, "masked") for case, (_, maskable) in DISPARATE.items() if maskable],
)
def test_what_a_path_does_not_reach_does_not_move(case, execution):
    make, _ = DISPARATE[case]
    space = space_of(make)
    torch.manual_seed(0)
    net = mnas.Supernet(space, execution)
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.01, weight_decay=0.1)
    (choice,) = net.choices
    for path in [*space.paths(), *reversed(list(space.paths()))]:
        before = {p: p.detach().clone() for p in choice.parameters()}
        states = {p: optimizer.dense_state(p) for p in choice.parameters()}
        optimizer.zero_grad()
        penalty = 1e-3 * sum(p.square().sum() for p in net.parameters())
        (net(torch.randn(5, 4, 6, 6), path).square().mean() + penalty).backward()
        optimizer.step()
        reached = set(choice.parameters_of(path[0]))
        for parameter, then in before.items():
            state = optimizer.dense_state(parameter)
            assert (parameter.grad is not None) == (parameter in reached)
            assert torch.equal(parameter, then) == (parameter not in reached)
            for name, value in state.items():
                old = states[parameter].get(name, torch.zeros_like(value))
                if parameter not in reached:
                    assert torch.equal(value, old)
                elif name == "step":
                    assert torch.equal(value, old + 1)


def test_regions_are_centres_prefixes_and_strides():
    taps = torch.arange(25.0).view(1, 1, 5, 5)
    large, small, dilated = nn.Conv2d(1, 1, 5), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, dilation=2)
    with torch.no_grad():
        large.weight.copy_(taps)
    choice = mnas.Choice({"small": small, "dilated": dilated, "large": large}, nested=True)
    assert choice.canvases["weight"].size == (1, 1, 5, 5)
    assert sum(p.numel() for p in choice.parameters()) == 25 + 1
    assert torch.equal(choice.candidate(0).weight, taps[:, :, 1:4, 1:4])
    assert torch.equal(choice.candidate(1).weight, taps[:, :, ::2, ::2])
    assert torch.equal(choice.candidate(2).weight, taps)
    spread = {f"k{k}": nn.Conv2d(1, 1, k, dilation=2) for k in (3, 5)}
    # Every tap of this canvas is somebody's.
    assert mnas.Choice(spread, nested=True).canvases["weight"].size == (1, 1, 5, 5)
    wide = mnas.Choice({"a": nn.Linear(2, 3), "b": nn.Linear(4, 5)}, nested=True)
    assert torch.equal(wide.candidate(0).weight, wide.candidate(1).weight[:3, :2])
    assert torch.equal(wide.candidate(0).bias, wide.candidate(1).bias[:3])


def test_statistics_are_separate_or_shared_by_choice():
    def block(depth):
        return nn.Sequential(*[nn.BatchNorm2d(4) for _ in range(depth)])

    candidates = {"d1": block(1), "d2": block(2)}
    x = torch.randn(8, 4, 3, 3)
    for options, shared_statistics, shared_affine in (
        ({}, False, True),
        ({"separate": ()}, True, True),
        ({"separate": ("*",)}, False, False),
    ):
        net = mnas.Supernet(
            mnas.SearchSpace(
                lambda options=options: nn.Sequential(
                    mnas.Choice(copy.deepcopy(candidates), nested=True, **options)
                ),
                input_shape=(4, 3, 3),
            )
        )
        net(x, (0,))
        first, second = mnas.export(net, (0,))[0][0], mnas.export(net, (1,))[0][0]
        assert int(first.num_batches_tracked) == 1
        assert torch.equal(first.running_mean, second.running_mean) == shared_statistics
        (choice,) = net.choices
        assert ("0.running_mean" in choice.canvases) == shared_statistics
        assert ("0.weight" in choice.canvases) == shared_affine
        randomise(net)
        first, second = choice.candidate(0)[0], choice.candidate(1)[0]
        assert torch.equal(first.weight, second.weight) == shared_affine


BAD = {
    "even in odd": (
        lambda: {"k3": nn.Conv2d(1, 1, 3), "k4": nn.Conv2d(1, 1, 4)},
        "have no common centre; use only odd",
    ),
    "dilation across": (
        lambda: {"d3": nn.Conv2d(1, 1, 2, dilation=3), "k3": nn.Conv2d(1, 1, 3)},
        "have no common centre",
    ),
    "dimensions": (
        lambda: {"a": nn.Conv1d(1, 1, 3), "b": nn.Conv2d(1, 1, 3)},
        "needs as many dimensions in every candidate",
    ),
    "dtypes": (
        lambda: {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1).double()},
        "'weight' differs in dtype",
    ),
    "grouped widths": (
        lambda: {"w4": nn.Conv2d(4, 4, 1, groups=2), "w8": nn.Conv2d(8, 8, 1, groups=2)},
        "is no prefix of a wide one (groups of channels: {'w4': '2 of 4', 'w8': '2 of 8'})",
    ),
    "groups": (
        lambda: {"g1": nn.Conv2d(4, 4, 1), "g4": nn.Conv2d(4, 4, 1, groups=4)},
        "is no prefix of a wide one (groups of channels: {'g1': '1 of 4', 'g4': '4 of 4'})",
    ),
    "gates": (
        lambda: {"w2": nn.LSTMCell(2, 2), "w3": nn.LSTMCell(2, 3)},
        "LSTMCell of 'w2' packs several matrices",
    ),
}


def test_what_is_no_convolution_nests_as_a_prefix_in_every_dimension():
    class Positions(nn.Module):
        def __init__(self, length):
            super().__init__()
            self.embedding = nn.Parameter(torch.randn(1, 1, length))

    choice = mnas.Choice({"short": Positions(4), "long": Positions(7)}, nested=True)
    assert choice.canvases["embedding"].size == (1, 1, 7)
    short, long = (choice.candidate(index).embedding for index in (0, 1))
    assert [p.numel() for p in choice.parameters()] == [4, 3]
    assert torch.equal(long[..., :4], short)


def test_depthwise_widths_nest():
    choice = mnas.Choice(
        {f"w{w}": nn.Conv2d(w, 2 * w, k, groups=w) for w, k in ((3, 3), (5, 5))}, nested=True
    )
    narrow, wide = (choice.candidate(index).weight for index in (0, 1))
    assert torch.equal(wide[:6, :, 1:4, 1:4], narrow)


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_nest_is_refused(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        mnas.Choice(make(), nested=True)
