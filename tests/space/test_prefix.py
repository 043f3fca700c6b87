"""Shared prefixes: many paths at once against one after the other, bit for bit."""

import copy
import gc
import weakref

import pytest
import torch
from conftest import batches, randomise
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import mnas
from mnas.networks.export import export
from mnas.space import prefix
from mnas.spaces import Residual


def conv(inputs, outputs, kernel=3):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def with_(*layers):
    return mnas.SearchSpace(
        lambda: nn.Sequential(*[make() for make in layers], nn.Flatten()), input_shape=(1, 6, 6)
    )


def kernels(inputs, outputs):
    return mnas.Choice({f"k{k}": conv(inputs, outputs, k) for k in (1, 3, 5)})


class Forked(nn.Module):
    """No sequence: nothing to share."""

    def __init__(self):
        super().__init__()
        self.first, self.second = kernels(1, 2), kernels(1, 2)

    def forward(self, x):
        return (self.first(x) * self.second(x)).flatten(1)


def in_place():
    """ReLUs in place behind branches, and behind candidates that hand on what they got."""
    return mnas.Choice(
        {
            "relu": nn.ReLU(inplace=True),
            "same": nn.Identity(),
            "drop": nn.Dropout(0.5),
            "elu": nn.ELU(),
        }
    )


def rectified():
    return mnas.Choice(
        {
            "same": nn.Identity(),
            "relu": nn.ReLU(inplace=True),
            "leaky": nn.LeakyReLU(2.0, inplace=True),
        }
    )


SPACES = {
    "mil4": mnas.spaces.mil4,
    "mil4_nested": mnas.spaces.mil4_nested,
    "mil9": mnas.spaces.mil9,
    "in place": lambda: with_(
        lambda: conv(1, 3),
        in_place,
        lambda: nn.ReLU(inplace=True),
        in_place,
        lambda: nn.LeakyReLU(2.0, inplace=True),
    ),
    "in place behind convolutions": lambda: with_(
        lambda: conv(1, 3), rectified, lambda: conv(3, 3), rectified, lambda: conv(3, 2)
    ),
    "first thing": lambda: with_(in_place, in_place),
    "inside": lambda: with_(
        lambda: Residual(kernels(1, 1)), lambda: Residual(kernels(1, 1), nn.BatchNorm2d(1))
    ),
    "no sequence": lambda: mnas.SearchSpace(Forked, input_shape=(1, 6, 6)),
    "used twice": lambda: mnas.SearchSpace(used_twice, input_shape=(1, 6, 6)),
}


def used_twice():
    choice, norm = kernels(1, 1), nn.BatchNorm2d(1)
    return nn.Sequential(
        choice, norm, mnas.Choice({"a": nn.Sigmoid(), "b": nn.ReLU()}), choice, norm, nn.Flatten()
    )


def supernet(name, execution="sliced"):
    torch.manual_seed(0)
    space = SPACES[name]()
    net = mnas.Supernet(space, execution)
    randomise(net)
    for buffer_name, buffer in net.named_buffers():
        if "running_var" in buffer_name:
            buffer.abs_()
    return net, list(space.paths()), torch.randn(5, *space.input_shape)


OWN_NUMBERS = (
    "in place",
    "first thing",
)  # dropout: in training, branches draw what single paths would not
MODES = [
    (name, mode) for name in SPACES for mode in (False, True) if not (mode and name in OWN_NUMBERS)
]


@pytest.mark.parametrize(("name", "training"), MODES)
def test_logits_equal_those_of_one_path_after_the_other(name, training):
    net, paths, x = supernet(name)
    net.train(training)
    paths = [*reversed(paths), paths[0], paths[-1]]  # any order, more than once
    kept = x.clone()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        together = net.forward_paths(x.clone(), paths)
        for path, logits in zip(paths, together, strict=True):
            assert torch.equal(logits, twin(x.clone(), path)), path
    if name != "first thing":
        assert torch.equal(x, kept)
    assert net.forward_paths(x, []) == []


def test_masked_execution_shares_too():
    net, paths, x = supernet("mil4", "masked")
    for path, logits in zip(paths, net.forward_paths(x, paths), strict=True):
        assert torch.equal(logits, net(x, path))


@pytest.mark.parametrize(
    "name", [name for name in SPACES if name not in OWN_NUMBERS and name != "no sequence"]
)
def test_gradients_are_the_sum_of_those_of_the_paths(name):
    net, paths, x = supernet(name)
    net, x = net.double().eval(), x.double()
    one_by_one = copy.deepcopy(net)
    sum(logits.square().sum() for logits in net.forward_paths(x, paths)).backward()
    for path in paths:
        one_by_one(x, path).square().sum().backward()
    for (key, a), b in zip(net.named_parameters(), one_by_one.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12, msg=key)


def test_several_paths_in_a_step_train_only_their_union():
    net, _, x = supernet("mil4")
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.1)
    before = mnas.export(net, (1, 1)).state_dict()
    for logits in net.forward_paths(x, [(0, 0), (0, 1)]):
        logits.sum().backward(retain_graph=True)
    optimizer.step()
    after = mnas.export(net, (1, 1)).state_dict()
    same = {key: torch.equal(after[key], before[key]) for key in before}
    assert same == {
        key: key.startswith("0.") for key in before
    }  # 5x5 of the first choice did not run


def test_what_is_shared_is_computed_once():
    """Multiply-accumulates of the tree, counted: one stem, three first blocks, nine ends."""
    net, paths, x = supernet("mil9")
    price = {path: mnas.cost(net.space, path).macs for path in paths}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.forward_paths(x, paths)
    stem, block = 9 * 16 * 784, 9 * 256 * 784
    first = sum(block * depth for depth in (1, 2, 3))
    rest = sum(price[path] - stem - block * (path[0] + 1) for path in paths)
    middle = 9 * 16 * 32 * 196  # the convolution between the blocks, once for each first block
    assert counter.get_total_flops() // 2 == len(x) * (stem + first + rest - 6 * middle)


class Watch(nn.Module):
    """Counts the outputs that are alive."""

    alive = peak = 0

    def forward(self, x):
        y = x + 1
        Watch.alive += 1
        Watch.peak = max(Watch.peak, Watch.alive)
        weakref.finalize(y, Watch.forget)
        return y

    @staticmethod
    def forget():
        Watch.alive -= 1


@torch.no_grad()
def test_memory_grows_with_depth_and_not_with_the_number_of_paths():
    space = with_(*[lambda: mnas.Choice({"a": Watch(), "b": Watch()})] * 6)
    net = mnas.Supernet(space)
    Watch.alive = Watch.peak = 0
    root = prefix.tree(
        net.model, list(space.paths()), lambda choice, index: choice.candidate(index)
    )
    sums = {number: float(y.sum()) for number, y in prefix.walk(root, torch.zeros(1, 1, 6, 6))}
    assert sums == dict.fromkeys(range(64), 6 * 36.0)
    assert Watch.peak <= 7


class Sneaky(nn.Module):
    """Works in place and does not say so."""

    def forward(self, x):
        return x.add_(1)


class Wrap(nn.Module):
    """Hands on more than a tensor."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


class Grow(nn.Module):
    """Changes the container that it is given, and what is in it."""

    def forward(self, x):
        x["y"] = x["x"].mul_(3)
        return x


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_work_in_place_stays_in_its_branch(mode, order):
    space = with_(
        lambda: conv(1, 1),
        lambda: mnas.Choice([[("a", Sneaky()), ("b", nn.Identity())][i] for i in order]),
        lambda: Wrap(lambda x: {"x": x * 1}),
        lambda: mnas.Choice([[("a", Grow()), ("b", nn.Identity())][i] for i in order]),
        lambda: Wrap(lambda x: x["x"] + x.get("y", 0)),
    )
    net, x = mnas.Supernet(space), torch.randn(2, 1, 6, 6)
    paths = list(space.paths())
    with mode():
        for path, logits in zip(paths, net.forward_paths(x, paths), strict=True):
            assert torch.equal(logits, net(x, path)), path
        labels = torch.tensor([3, 7])
        scores = [mnas.evaluate(export(net, path), x, labels) for path in paths]
        assert mnas.evaluate_paths(net, paths, x, labels) == scores


def test_paths_that_part_at_an_object_are_refused():
    class Holder:
        pass

    def holding(**ends):
        return with_(lambda: Wrap(lambda x: (Holder(), x)), lambda: mnas.Choice(ends))

    space = holding(a=Wrap(lambda x: x[1]), b=Wrap(lambda x: -x[1]))
    space_of_one = holding(a=Wrap(lambda x: x[1]))
    x = torch.zeros(1, 1, 6, 6)
    with pytest.raises(ValueError, match="paths part at a Holder"):
        mnas.Supernet(space).forward_paths(x, [(0,), (1,)])
    assert len(mnas.Supernet(space_of_one).forward_paths(x, [(0,), (0,)])) == 2


def test_nothing_is_kept_after_it(small):
    net, x = mnas.Supernet(small, "masked"), torch.zeros(2, 1, 28, 28)
    mnas.evaluate_paths(net, [(0, 0), (1, 1)], x, torch.tensor([0, 1]))

    def alive():
        return sum(issubclass(type(thing), (nn.Module, torch.Tensor)) for thing in gc.get_objects())

    gc.collect()
    gc.disable()  # what is in a cycle would stay
    try:
        before = alive()
        mnas.evaluate_paths(net, [(0, 0), (1, 1)], x, torch.tensor([0, 1]))
        net.forward_paths(x, [(0, 0), (1, 1)])
        assert alive() == before
    finally:
        gc.enable()


def test_scores_need_images(small):
    net = mnas.Supernet(small)
    network = mnas.export(net, (0, 0))
    nothing = torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64)
    for score in (
        lambda: mnas.evaluate_paths(net, [(0, 0)], *nothing),
        lambda: mnas.evaluate(network, *nothing),
    ):
        with pytest.raises(ValueError, match="there are no images"):
            score()


def test_a_layer_out_of_reach_keeps_its_own_statistics():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            return self.norm(x) if x.mean() > 0 else x

    space = with_(
        lambda: mnas.Choice({"up": Wrap(lambda x: x + 9), "down": Wrap(lambda x: x - 9)}),
        Sometimes,
    )
    net, x, labels = mnas.Supernet(space), torch.randn(8, 1, 6, 6), torch.arange(8)
    shifted = x + 11  # on these, the layer is reached along both paths
    for paths in ([(0,), (1,)], [(1,), (0,)]):
        scores = mnas.evaluate_paths(net, paths, shifted, labels, bn_images=x)
        for path, score in zip(paths, scores, strict=True):
            assert score == mnas.evaluate(mnas.recalibrate(export(net, path), x), shifted, labels)


def test_paths_are_checked(small):
    with pytest.raises(ValueError, match="expected an index below 2"):
        mnas.Supernet(small).forward_paths(torch.zeros(1, 1, 28, 28), [(0, 0), (0, 2)])


def test_hooks_on_a_sequence_run():
    net, paths, x = supernet("mil4")
    patched = copy.deepcopy(net)
    patched.model.forward = lambda x: x
    assert all(torch.equal(y, x) for y in patched.forward_paths(x, paths))
    called = []
    net.model.register_forward_hook(lambda *_: called.append(1))
    net.forward_paths(x, paths)
    assert len(called) == len(paths)


@pytest.mark.parametrize("bn", ["stored", "recalibrate"])
@pytest.mark.parametrize("name", [name for name in SPACES if name != "first thing"])
def test_scores_equal_those_of_exported_networks(name, bn):
    net, paths, x = supernet(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images = torch.randn(700, *x.shape[1:])  # more than a batch
    labels, counted = torch.randint(10, (700,)), []
    bn_images = images[:501] if bn == "recalibrate" else None
    scores = mnas.evaluate_paths(
        net, paths, images, labels, bn_images=bn_images, progress=counted.append
    )
    for path, score in zip(paths, scores, strict=True):
        network = export(net, path)
        network = network if bn_images is None else mnas.recalibrate(network, bn_images)
        assert mnas.evaluate(network, images, labels) == score, path
    assert sum(counted) == 700 * len(paths)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_training_on_all_paths_at_once_learns(small):
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net, lr=0.01)
    ((x, y),) = batches(1, size=16)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = sum(
            F.cross_entropy(logits, y) for logits in net.forward_paths(x, list(small.paths()))
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
