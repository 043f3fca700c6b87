"""Every named space, at a small size, and those of docs/new-space.md: a path is the network of its
own, whatever is shared."""

import copy
import pickle
import re
from functools import cache

import pytest
import torch
from conftest import ROOT, randomise
from torch import nn

import mnas
from mnas.networks.export import baked
from mnas.space.skeleton import compact

LARGE = mnas.spaces.SPACES
SPACES = {
    "mil4": lambda: LARGE["mil4"]((3, 5), 7),
    "mil4_nested": lambda: LARGE["mil4_nested"]((3, 5), 7),
    "mil9": lambda: LARGE["mil9"]((4, 6)),
    "nb_macro": lambda: LARGE["nb_macro"](),
    "plain": lambda: LARGE["plain"](3, (3, 5), 7),
    "channel_macro_mobilenet": lambda: LARGE["channel_macro_mobilenet"](
        (8, 16, 12, 16, 12, 16, 12), image=8
    ),
    "channel_macro_resnet": lambda: LARGE["channel_macro_resnet"](
        (8, 12, 8, 12, 8, 12, 8), image=8
    ),
    "ofa_mbv3": lambda: LARGE["ofa_mbv3"](0.25, classes=10, image=32),
    "ofa_mbv3 with matrices": lambda: LARGE["ofa_mbv3"](0.25, True, classes=10, image=32),
    "nas_bench_201": lambda: LARGE["nas_bench_201"](4, 2, image=8),
    "spos": lambda: LARGE["spos"]((4, 8, 12, 16, 24), (2, 2, 2, 2), 16, 10, 32),
    "autoformer_tiny": lambda: LARGE["autoformer_tiny"](
        (12, 16, 20), (2, 3, 4), head=4, patch=4, classes=10, image=8
    ),
    "proxyless": lambda: LARGE["proxyless"](
        (4, 4, 4, 6, 8, 6, 8, 12), (2, 2, 2, 2, 2, 1), 16, 10, 32
    ),
    "bignas": lambda: LARGE["bignas"](
        (8, 10),
        (((4, 6), (1, 2), (3,), 1, 1), ((12, 14), (1, 2, 3), (3, 5), 2, 3)),
        (12, 16),
        classes=10,
        image=16,
    ),
    "darts": lambda: LARGE["darts"](4, ("normal", "reduce", "normal"), 2, image=8),
    "bender": lambda: LARGE["bender"](4, 2, 2, image=8),
    "language model": lambda: of_page("language_model"),
    "audio": lambda: of_page("audio"),
}


def of_page(function):
    """The space that an example declares."""
    page = (ROOT / "docs" / "new-space.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (example,) = [text for text in examples if f"def {function}(" in text]
    names = {"__name__": "example"}
    exec(example, names)
    return names["space"]


def each(slow, otherwise=()):
    """All spaces; the slow ones every night."""
    marks = [[pytest.mark.nightly] if name in slow else list(otherwise) for name in SPACES]
    return [pytest.param(name, marks=mark) for name, mark in zip(SPACES, marks, strict=True)]


# Much like another that is not, or with tests of their own.
SLOW = ("ofa_mbv3", "channel_macro_resnet", "proxyless", "nb_macro", "mil4", "plain")
# Masked execution tries all candidates when it is made.
SLOW_MASKED = (*SLOW, "channel_macro_mobilenet", "ofa_mbv3 with matrices", "spos", "darts")
EACH, EACH_MASKED = each(SLOW), each(SLOW_MASKED)
SPACE = {name: cache(make) for name, make in SPACES.items()}


@cache
def _supernet(name):
    torch.manual_seed(3)
    return mnas.Supernet(SPACE[name]())


def supernet(name, start="random"):
    """With random numbers everywhere, so that zeros and ones hide nothing; or as it begins."""
    net = copy.deepcopy(_supernet(name))
    return sane(net) if start == "random" else net


def sane(net):
    """Random numbers, but variances as variances are."""
    randomise(net)
    for name, buffer in net.named_buffers():
        if "running_var" in name:
            buffer.abs_().add_(0.1)
    return net


def drawn(space, number, seed=0):
    """Paths, not canonical ones: each decision by itself."""
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(int(torch.randint(len(d), (), generator=generator)) for d in space.decisions)
        for _ in range(number)
    ]


def inputs(space, number, size=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    whole = space.inputs().args[0].dtype == torch.long
    for _ in range(number):
        if whole:
            yield torch.randint(50, (size, *space.input_shape), generator=generator)
        else:
            yield torch.randn(size, *space.input_shape, generator=generator)


def step(forward, optimizer, x, seed):
    torch.manual_seed(seed)  # for dropout
    optimizer.zero_grad()
    output = forward(x)
    output.logsumexp(-1).sub(output[..., 0]).mean().backward()  # every input is of class 0
    optimizer.step()
    return output


def equal(one, other):
    """Modules: the same tensors, by name."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_every_named_space_is_here():
    assert {name.split()[0] for name in SPACES} - {"language", "audio"} == set(LARGE)


@pytest.mark.parametrize("name", EACH)
def test_names(name):
    space = SPACE[name]()
    for path in drawn(space, 20):
        canonical = space.canonical(path)
        assert space.key(canonical) == space.key(path)
        assert space.canonical(canonical) == canonical
        assert space.format(path) == space.format(canonical)
        assert space.parse(space.format(path)) == canonical
        assert space.path(space.values(path)) == path


@pytest.mark.parametrize("name", EACH)
def test_a_path_is_its_export(name):
    net = supernet(name)
    for path, x in zip(drawn(net.space, 2), inputs(net.space, 2), strict=True):
        for training in (True, False):
            net.train(training)
            exported = mnas.export(net, path)
            torch.manual_seed(0)
            expected = net(x, path)
            torch.manual_seed(0)
            assert torch.equal(exported(x), expected)
            if training:
                assert equal(mnas.export(net, path), exported)  # statistics, too
        assert sum(p.numel() for p in exported.parameters()) == mnas.cost(net.space, path).params


@pytest.mark.parametrize("name", EACH)
def test_trained_on_one_path_it_is_that_network_trained_alone(name):
    net = supernet(name, "as it begins")
    (path,) = drawn(net.space, 1, seed=5)
    alone = compact(net.subnet(path))
    ours = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.003, weight_decay=0.05)
    stock = torch.optim.AdamW(alone.parameters(), lr=0.003, weight_decay=0.05)
    for number, x in enumerate(inputs(net.space, 5)):
        output = step(lambda x: net(x, path), ours, x, number)
        assert torch.equal(output, step(alone, stock, x, number))
    assert equal(mnas.export(net, path), baked(alone))
    assert all(p.grad is not None for p in alone.parameters())  # nothing that is not used


@pytest.mark.parametrize("name", EACH)
def test_alone_it_starts_as_in_the_supernet(name):
    (path,) = drawn(SPACE[name](), 1, seed=5)
    torch.manual_seed(3)
    assert equal(
        mnas.standalone(SPACE[name](), path), mnas.export(supernet(name, "as it begins"), path)
    )


@pytest.mark.parametrize("name", [one for one in EACH if one.values[0].split()[0] in LARGE])
def test_a_supernet_is_pickled_with_its_space(name):
    net = supernet(name)
    again = pickle.loads(pickle.dumps(net))
    (path,), (x,) = drawn(net.space, 1), inputs(net.space, 1)
    for of in (net, again):
        step(lambda x, of=of: of(x, path), mnas.MaskedOptimizer(torch.optim.SGD, of, lr=0.1), x, 0)
    assert equal(net, again)
    torch.manual_seed(3)
    assert equal(mnas.Supernet(again.space), supernet(name, "as it begins"))


@pytest.mark.parametrize("name", EACH)
def test_many_paths_at_once_are_one_by_one(name):
    net = supernet(name)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # paths at once draw once
    paths = drawn(net.space, 4)
    paths += [(*paths[0][:-1], 0), paths[1]]  # one that shares almost all, and one again
    (x,) = inputs(net.space, 1)
    with torch.no_grad():
        for training in (True, False):
            twin = copy.deepcopy(net.train(training))
            for path, logits in zip(paths, net.forward_paths(x, paths), strict=True):
                assert torch.equal(logits, twin(x, path))


OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", EACH)
def test_what_is_not_on_the_path_stays(name, optimizer):
    """Parameters, their state and buffers, to the bit, though decay and momentum move the rest."""
    net = supernet(name)
    kind, options = OPTIMIZERS[optimizer]
    ours = mnas.MaskedOptimizer(kind, net, **options)
    paths = drawn(net.space, 3)
    for number, x in enumerate(inputs(net.space, 4)):
        path = paths[number % 3]
        reached = {
            tensor
            for choice, index in zip(net.choices, net.space.key(path), strict=True)
            for tensor in (*choice.parameters_of(index), *choice.module(index).buffers())
        }
        rest = [
            tensor
            for choice in net.choices
            for tensor in (*choice.parameters(), *choice.buffers())
            if tensor not in reached
        ]
        before = [tensor.clone() for tensor in rest]
        parameters = [tensor for tensor in rest if isinstance(tensor, nn.Parameter)]
        states = [copy.deepcopy(ours.dense_state(p)) for p in parameters]
        step(lambda x, path=path: net(x, path), ours, x, number)
        assert all(map(torch.equal, rest, before))
        for parameter, state in zip(parameters, states, strict=True):
            assert parameter.grad is None
            now = ours.dense_state(parameter)
            assert now.keys() == state.keys()
            assert all(torch.equal(now[key], value) for key, value in state.items())
        assert any(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", each(SLOW, [pytest.mark.slow]))
def test_training_goes_on_where_it_was_left(name):
    """Many paths in turn, saved and loaded in between: as without."""
    nets = [supernet(name, "as it begins") for _ in range(2)]
    options = {"lr": 0.003, "weight_decay": 0.05}
    optimizers = [mnas.MaskedOptimizer(torch.optim.AdamW, net, **options) for net in nets]
    paths = drawn(nets[0].space, 12)
    for number, (path, x) in enumerate(zip(paths, inputs(nets[0].space, 12), strict=True)):
        if number == 6:
            saved = copy.deepcopy((nets[1].state_dict(), optimizers[1].state_dict()))
            nets[1] = supernet(name)
            optimizers[1] = mnas.MaskedOptimizer(torch.optim.AdamW, nets[1], **options)
            nets[1].load_state_dict(saved[0])
            optimizers[1].load_state_dict(saved[1])
        outputs = [
            step(lambda x, net=net, path=path: net(x, path), optimizer, x, number)
            for net, optimizer in zip(nets, optimizers, strict=True)
        ]
        assert torch.equal(*outputs)
    assert equal(*nets)


@pytest.mark.parametrize("name", EACH)
def test_paths_with_the_same_key_are_one_network(name):
    net = supernet(name).eval()
    (x,) = inputs(net.space, 1)
    for path in drawn(net.space, 3, seed=2):
        same = net.space.canonical(path)
        with torch.no_grad():
            assert torch.equal(net(x, path), net(x, same))


@pytest.mark.parametrize("name", ["nas_bench_201", "darts", "bender"])
def test_all_operations_at_once_by_weights(name):
    """The relaxation of DARTS (section 2.2): weights of decisions, which are in many places; those
    of one value are its path."""
    net = supernet(name).eval()
    (x,) = inputs(net.space, 1)
    weights = [torch.rand(len(d), requires_grad=True) for d in net.space.decisions]
    net(x, weights).sum().backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in weights)
    (path,) = drawn(net.space, 1)
    one = [torch.eye(len(d))[index] for d, index in zip(net.space.decisions, path, strict=True)]
    with torch.no_grad():
        torch.testing.assert_close(net(x, one), net(x, path))


REFUSED = {
    # LayerNorm of a wide layer takes the mean of zeros, too, so none encloses a narrow one.
    "autoformer_tiny": r"embed=12, .* cannot be run behind masks \(.*normalized_shape",
    "language model": r"width=16, .* cannot be run behind masks \(.*normalized_shape",
}


@pytest.mark.parametrize("name", EACH_MASKED)
def test_masked_execution(name):
    """In float64 as slicing, or refused with the reason."""
    space = SPACE[name]()
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            mnas.Supernet(space, "masked")
        return
    masked = sane(mnas.Supernet(space, "masked").double()).eval()
    (x,) = inputs(space, 1)
    x = x.double() if x.is_floating_point() else x
    for path in drawn(space, 3):
        with torch.no_grad():
            expected = masked.subnet(path, "sliced")(x)
            torch.testing.assert_close(masked(x, path), expected)
