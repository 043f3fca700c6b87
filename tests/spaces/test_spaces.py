"""The named spaces: published costs, and the exactness table for those with BatchNorm, depth and
blocks."""

import gc
import json
import random
import weakref

import pytest
import torch
from conftest import ROOT, batches, randomise
from oracle import OPTIMIZERS, NaiveChoices, NaiveMil9, assert_same_state
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import mnas

# NAS-Bench-Macro, as published with the benchmark: digits are candidate indices.
PUBLISHED = {
    "00000000": (387882, 7713280),
    "11111111": (1588874, 53246464),
    "22222222": (2932586, 105660928),
    "22212220": (1985514, 85164544),
    "02012100": (890666, 47327744),
}


def step(forward, optimizer, path, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(forward(x, path), y)
    loss.backward()
    optimizer.step()
    return loss


def sane(module):
    """Random numbers everywhere, but variances as variances are."""
    randomise(module)
    for name, buffer in module.named_buffers():
        if "running_var" in name:
            buffer.abs_().add_(0.1)


def images(n, size, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        yield (
            torch.randn(size, *shape, generator=generator),
            torch.randint(10, (size,), generator=generator),
        )


def test_what_mil9_reached_is_on_its_page(monkeypatch):
    """The committed runs, in the table that tools/spaces.py makes: nobody typed it."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from benchmarks import spaces as tool

    runs = ROOT / "results" / "mil9"
    summaries = [json.loads(file.read_text()) for file in runs.glob(tool.SUMMARIES)]
    assert sorted(summary["seed"] for summary in summaries) == [0, 1, 2]
    for summary in summaries:
        scores = [path["test_top1"] for path in summary["paths"]]
        assert (len(scores), min(scores) >= 0.985, sum(scores) / 9 >= 0.99) == (9, True, True)
        assert summary["train_seconds"] <= 360
    assert tool.accuracies(runs) in (ROOT / "docs" / "spaces.md").read_text()


def test_names_and_sizes():
    sizes = {"mil4": 4, "mil4_nested": 4, "mil9": 9, "nb_macro": 6561, "plain": 64}
    for name, size in sizes.items():
        space = mnas.spaces.get(name)
        assert (space.name, len(space)) == (name, size)
        path = space.sample(torch.Generator().manual_seed(0))
        assert space.parse(space.format(path)) == path
    assert len(mnas.spaces.plain(candidates=5)) == 25
    assert mnas.spaces.mil9().format((0, 2)) == "d1-d3"
    assert (
        mnas.spaces.nb_macro()
        .format((0, 1, 2) + (0,) * 5)
        .startswith("identity-mb3_k3-mb6_k5-identity")
    )


@pytest.mark.parametrize("digits", PUBLISHED)
def test_published_costs_of_nb_macro(digits):
    assert mnas.cost(mnas.spaces.nb_macro(), tuple(map(int, digits))) == PUBLISHED[digits]


@pytest.mark.parametrize("name", ["mil4", "mil4_nested", "mil9", "nb_macro", "plain"])
def test_costs_agree_with_counting_on_the_exported_module(name):
    space = mnas.spaces.get(name)
    net = mnas.Supernet(space).eval()
    generator = torch.Generator().manual_seed(1)
    for path in {space.sample(generator) for _ in range(5)}:
        exported = mnas.export(net, path)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            exported(torch.zeros(1, *space.input_shape))
        params = sum(p.numel() for p in exported.parameters())
        assert mnas.cost(space, path) == (params, counter.get_total_flops() // 2)


class Doubled(nn.Module):
    """A model that is no sequence: its choice is used twice."""

    def __init__(self):
        super().__init__()
        self.choice = mnas.Choice(
            {"a": nn.Linear(4, 4), "b": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))}
        )

    def forward(self, x):
        return self.choice(self.choice(x))


def test_costs_of_models_that_are_no_sequences():
    space = mnas.SearchSpace(Doubled, input_shape=(4,))
    assert mnas.cost(space, (0,)) == (20, 32)
    assert mnas.cost(space, (1,)) == (76, 128)
    tied = nn.Linear(4, 4)
    shared = mnas.SearchSpace(
        lambda: nn.Sequential(*[tied] * 2, mnas.Choice({"a": nn.Identity()})), input_shape=(4,)
    )
    assert mnas.cost(shared, (0,)) == (20, 32)


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[0][:, -1]


@pytest.mark.parametrize(
    "tail",
    [
        lambda: [
            nn.Flatten(2),
            nn.LSTM(4, 3, batch_first=True),
            Last(),
        ],  # a part that puts out a tuple
        lambda: [
            nn.Flatten(0, 1),
            nn.Unflatten(0, (-1, 2)),
            nn.Flatten(),
            nn.Linear(8, 3),
        ],  # and one without a batch
    ],
)
def test_costs_of_sequences_whose_parts_put_out_something_else(tail):
    def build():
        return nn.Sequential(
            mnas.Choice({f"k{k}": nn.Conv2d(1, 2, k, padding=k // 2) for k in (1, 3)}), *tail()
        )

    space = mnas.SearchSpace(build, input_shape=(1, 2, 2))
    for path in space.paths():
        network = mnas.standalone(space, path)
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 1, 2, 2))
        params = sum(p.numel() for p in network.parameters())
        macs = counter.get_total_flops() // 2
        # Torch counts nothing for an LSTM: two steps of four gates.
        recurrent = [m for m in network if isinstance(m, nn.LSTM)]
        macs += sum(2 * 4 * m.hidden_size * (m.input_size + m.hidden_size) for m in recurrent)
        assert mnas.cost(space, path) == (params, macs)


def test_a_space_whose_costs_were_counted_can_be_forgotten():
    space = mnas.spaces.mil4()
    mnas.cost(space, (0, 0))
    watched = weakref.ref(space)
    del space
    gc.collect()
    assert watched() is None


def test_costs_where_a_choice_changes_the_size_of_the_next_ones_input():
    space = mnas.SearchSpace(
        lambda: nn.Sequential(
            mnas.Choice({f"s{s}": nn.Conv2d(1, 2, 3, stride=s, padding=1) for s in (1, 2)}),
            mnas.Choice({f"k{k}": nn.Conv2d(2, 2, k, padding=k // 2) for k in (1, 3)}),
            nn.AdaptiveAvgPool2d(1),
        ),
        input_shape=(1, 8, 8),
    )
    macs = [mnas.cost(space, path).macs for path in space.paths()]
    assert macs == [64 * (18 + 4), 64 * (18 + 36), 16 * (18 + 4), 16 * (18 + 36)]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_mil9_equals_layers_that_depths_share(name):
    space = mnas.spaces.mil9(channels=(4, 6))
    torch.manual_seed(1)
    net = mnas.Supernet(space)
    torch.manual_seed(1)
    oracle = NaiveMil9((4, 6))
    optimizer_class, options = OPTIMIZERS[name]
    ours, stock = (
        mnas.MaskedOptimizer(optimizer_class, net, **options),
        optimizer_class(oracle.parameters(), **options),
    )
    chooser = random.Random(0)
    paths = [*space.paths(), *(chooser.choice(list(space.paths())) for _ in range(15))]
    for path, (x, y) in zip(paths, batches(len(paths)), strict=True):
        assert torch.equal(step(net, ours, path, x, y), step(oracle, stock, path, x, y))
    for choice, block in zip(net.choices, (oracle.first, oracle.second), strict=True):
        for layer in range(3):
            for key, reference in (
                (f"{3 * layer}.weight", block.convs[layer].weight),
                (f"{3 * layer + 1}.weight", block.weight[layer]),
                (f"{3 * layer + 1}.bias", block.bias[layer]),
            ):
                (parameter,) = map(choice.get_parameter, choice.shared[key])
                assert torch.equal(parameter, reference)
                assert_same_state(ours.dense_state(parameter), stock.state[reference])
            for depth in range(layer, 3):
                statistics = choice.module(depth)[3 * layer + 1]
                assert torch.equal(statistics.running_mean, block.mean[depth][layer])
                assert torch.equal(statistics.running_var, block.var[depth][layer])
    net.eval()
    oracle.eval()
    for path, (x, _) in zip(space.paths(), batches(9, seed=7), strict=True):
        assert torch.equal(net(x, path), oracle(x, path))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_nb_macro_equals_separate_modules(name):
    space = mnas.spaces.nb_macro()
    torch.manual_seed(1)
    net = mnas.Supernet(space)
    oracle = NaiveChoices(space, net)
    optimizer_class, options = OPTIMIZERS[name]
    ours, stock = (
        mnas.MaskedOptimizer(optimizer_class, net, **options),
        optimizer_class(oracle.parameters(), **options),
    )
    generator = torch.Generator().manual_seed(0)
    for x, y in images(20, 2, space.input_shape):
        path = space.sample(generator)
        assert torch.equal(step(net, ours, path, x, y), step(oracle, stock, path, x, y))
    for path in ((0,) * 8, (1,) * 8, (2,) * 8):
        exported = mnas.export(net, path)
        tensors = [tensor for part in exported for tensor in [*part.parameters(), *part.buffers()]]
        for tensor, reference in zip(tensors, oracle.used(path), strict=True):
            assert torch.equal(tensor, reference)


@pytest.mark.parametrize(("name", "paths"), [("mil4_nested", 4), ("mil9", 9), ("nb_macro", 30)])
def test_exported_networks_compute_what_the_path_computes(name, paths):
    space = mnas.spaces.get(name)
    torch.manual_seed(0)
    net = mnas.Supernet(space)
    sane(net)
    generator = torch.Generator().manual_seed(0)
    chosen = (
        list(space.paths())
        if paths == len(space)
        else [space.sample(generator) for _ in range(paths)]
    )
    for path, (x, _) in zip(chosen, images(paths, 2, space.input_shape), strict=True):
        for training in (True, False):
            net.train(training)
            exported = mnas.export(net, path)
            assert torch.equal(exported(x), net(x, path))
            for ours, theirs in zip(
                mnas.export(net, path).buffers(), exported.buffers(), strict=True
            ):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["mil9", "nb_macro"])
def test_nothing_outside_the_path_moves(name):
    """Parameters, their state and running statistics of a whole supernet, to the bit."""
    space = mnas.spaces.get(name)
    torch.manual_seed(0)
    net = mnas.Supernet(space)
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.01, weight_decay=0.1)
    tensors = [*net.parameters(), *net.buffers()]
    generator = torch.Generator().manual_seed(2)
    for x, y in images(4, 2, space.input_shape):
        path = space.sample(generator)
        before = {tensor: tensor.detach().clone() for tensor in tensors}
        states = {p: optimizer.dense_state(p) for p in net.parameters()}
        step(net, optimizer, path, x, y)
        for choice, index in zip(net.choices, path, strict=True):
            reached = {*choice.parameters_of(index), *choice.module(index).buffers()}
            for tensor in {*choice.parameters(), *choice.buffers()} - reached:
                assert torch.equal(tensor, before[tensor])
            for parameter in set(choice.parameters()) - reached:
                now, then = optimizer.dense_state(parameter), states[parameter]
                assert parameter.grad is None
                assert now.keys() == then.keys()
                assert all(torch.equal(value, then[key]) for key, value in now.items())
            assert all(p.grad is not None for p in choice.parameters_of(index))
