"""Choice: its candidates in one storage, the one that a path runs, and that nothing is left
behind."""

import copy
import io
import re
import threading

import pytest
import torch
from conftest import batches, randomise
from torch import nn

import mnas


def two_convs():
    return {"conv3x3": nn.Conv2d(2, 3, 3, padding=1), "conv5x5": nn.Conv2d(2, 3, 5, padding=2)}


def test_candidates_are_registered_untouched_and_lie_in_one_storage():
    modules = two_convs()
    choice = mnas.Choice(modules)
    assert [(name, tuple(p.shape)) for name, p in choice.named_parameters()] == [
        (f"{name}.{key}", tuple(tensor.shape))
        for name, module in modules.items()
        for key, tensor in module.named_parameters()
    ]
    merged = choice.merged
    assert {name: tuple(tensor.shape) for name, tensor in merged.items()} == {
        "weight": (224,),  # 54 and 150 entries, each from a multiple of 16 on
        "bias": (32,),
    }
    for index, (name, module) in enumerate(modules.items()):
        assert choice.module(index) is getattr(choice, name)
        candidate = choice.candidate(index)
        assert type(candidate) is nn.Conv2d
        for key, reference in module.named_parameters():
            own, tensor = getattr(choice.module(index), key), getattr(candidate, key)
            assert torch.equal(tensor, reference)
            assert tensor.is_contiguous()
            assert own is not reference
            assert own.is_leaf
            assert own.data_ptr() == tensor.data_ptr()
            assert own.untyped_storage().data_ptr() == merged[key].data_ptr()
            assert own.data_ptr() % 64 == 0
    merged["weight"].fill_(3)
    assert choice.conv3x3.weight.eq(3).all()
    assert choice.conv5x5.weight.eq(3).all()


def test_a_choice_looks_like_a_dict_of_modules():
    choice, plain = mnas.Choice(two_convs()), nn.ModuleDict(two_convs())
    assert repr(choice) == repr(plain).replace("ModuleDict", "Choice")
    assert list(choice.state_dict()) == list(plain.state_dict())
    choice.load_state_dict(plain.state_dict())
    assert all(torch.equal(choice.get_parameter(name), p) for name, p in plain.named_parameters())


def test_memory_format_of_candidates_is_kept():
    choice = mnas.Choice(
        {"a": nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), "b": nn.Conv2d(2, 3, 5)}
    )
    assert choice.candidate(0).weight.is_contiguous(memory_format=torch.channels_last)
    assert choice.candidate(1).weight.is_contiguous()


def test_buffers_merge_too_and_are_updated_in_place():
    space = mnas.SearchSpace(
        lambda: nn.Sequential(mnas.Choice({"bn": nn.BatchNorm2d(2), "bn2": nn.BatchNorm2d(2)})),
        input_shape=(2, 4, 4),
    )
    net = mnas.Supernet(space)
    reference = nn.BatchNorm2d(2)
    x = torch.randn(8, 2, 4, 4)
    assert torch.equal(net(x, (1,)), reference(x))
    first, second = mnas.export(net, (0,))[0], mnas.export(net, (1,))[0]
    assert torch.equal(second.running_mean, reference.running_mean)
    assert int(second.num_batches_tracked) == 1
    assert int(first.num_batches_tracked) == 0
    assert first.running_mean.eq(0).all()


def test_candidates_may_be_blocks_and_parameter_free():
    space = mnas.SearchSpace(
        lambda: nn.Sequential(
            mnas.Choice(
                {
                    "skip": nn.Identity(),
                    "block": nn.Sequential(
                        nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)
                    ),
                }
            )
        ),
        input_shape=(2, 4, 4),
    )
    net = mnas.Supernet(space)
    randomise(net)
    x = torch.randn(8, 2, 4, 4)
    assert torch.equal(net(x, (0,)), x)
    assert torch.equal(mnas.export(net, (1,))(x), net(x, (1,)))
    net(x, (1,)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_nothing_is_left_active(small):
    net = mnas.Supernet(small)
    x, _ = next(batches(1))
    net(x, (0, 0))  # notes what is registered
    before = {name: copy.copy(vars(module)) for name, module in net.named_modules()}
    for path in small.paths():
        net(x, path)
    assert before == {name: vars(module) for name, module in net.named_modules()}


def test_threads_run_different_paths_of_one_net(small):
    net = mnas.Supernet(small)
    randomise(net)
    x, _ = next(batches(1))
    with torch.no_grad():
        expected = {path: net(x, path) for path in small.paths()}
        wrong = []

        def work(path):
            with torch.no_grad():
                wrong.extend(
                    path for _ in range(200) if not torch.equal(net(x, path), expected[path])
                )

        threads = [threading.Thread(target=work, args=(path,)) for path in small.paths()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_deep_copy_is_independent(small):
    net = mnas.Supernet(small)
    x, _ = next(batches(1))
    net(x, (0, 0)).sum().backward()
    twin = copy.deepcopy(net)
    twin.zero_grad()
    twin(x, (1, 1)).sum().backward()
    for original, copied in zip(net.choices, twin.choices, strict=True):
        assert original is not copied
        for choice, active in ((original, 0), (copied, 1)):
            for index in range(2):
                reached = [p.grad is not None for p in choice.parameters_of(index)]
                assert reached == [index == active] * 2
            addresses = {p.untyped_storage().data_ptr() for p in choice.parameters()}
            assert addresses == {tensor.data_ptr() for tensor in choice.merged.values()}
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    randomise(twin)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_state_dict_round_trip(small):
    torch.manual_seed(0)
    net, other = mnas.Supernet(small), mnas.Supernet(small)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x, _ = next(batches(1))
    assert torch.equal(net(x, (0, 1)), other(x, (0, 1)))


def test_a_state_without_its_metadata_loads_too():
    """As a plain dict, into candidates with BatchNorm, which torch would fill up with counters of
    batches."""
    net, other = (mnas.Supernet(mnas.spaces.mil9(channels=(4, 6))) for _ in range(2))
    randomise(net)
    other.load_state_dict({name: tensor.clone() for name, tensor in net.state_dict().items()})
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    )
    other.eval()
    assert not any(module.training for module in other.subnet((1, 2)).modules())
    other.train()
    assert all(module.training for module in other.subnet((1, 2)).modules())


def test_a_choice_alone_says_how_it_is_run():
    with pytest.raises(RuntimeError, match=re.escape("net(x, path)")):
        mnas.Choice(two_convs())(torch.zeros(1, 2, 4, 4))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)
        self.b.weight = self.a.weight


class Clash(nn.Module):
    """A parameter and a buffer whose names mean something in a Choice."""

    def __init__(self):
        super().__init__()
        self.names = nn.Parameter(torch.zeros(2))
        self.register_buffer("nested", torch.zeros(2))


def test_names_of_ours_are_no_matter_in_candidates_that_share_nothing():
    choice = mnas.Choice({"a": Clash(), "b": Clash()})
    assert choice.names == ("a", "b")
    assert list(choice.state_dict()) == ["a.names", "a.nested", "b.names", "b.nested"]


BAD = {
    "name of ours": (
        lambda: {"a": nn.ReLU(), "half": nn.Tanh()},
        "'half' is already a name in Choice; rename that candidate",
    ),
    "buffer of ours": (
        lambda: {"a": Clash(), "b": Clash()},
        "'nested' is already a name in Choice; rename that buffer",
    ),
    "no candidates": (dict, "no candidates"),
    "dash in name": (lambda: {"conv-3": nn.Identity()}, "'conv-3' must be letters"),
    "empty name": (lambda: {"": nn.Identity()}, "'' must be letters"),
    "no module": (lambda: {"relu": torch.relu}, "'relu' is a builtin"),
    "nested": (lambda: {"a": mnas.Choice({"b": nn.Identity()})}, "'a' contains a Choice"),
    "dtypes": (
        lambda: {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1).double()},
        "'weight' differs in dtype",
    ),
    "frozen": (
        lambda: {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1).requires_grad_(False)},
        "requires_grad",
    ),
    "tied": (lambda: {"a": Tied()}, "ties 'a.weight' and 'b.weight'"),
    "buffer used twice": (
        lambda: {"a": nn.Sequential(*[nn.BatchNorm2d(1, affine=False)] * 2)},
        "ties '0.running_mean' and '1.running_mean'",
    ),
    "duplicate": (
        lambda: [("a", nn.ReLU()), ("b", nn.ReLU()), ("a", nn.Tanh())],
        "two candidates are named 'a'; give",
    ),
    "no pairs": (
        lambda: [nn.ReLU(), nn.Tanh()],
        "candidates are a list; expected a dict of modules, or",
    ),
    "no mapping": (lambda: 3, "candidates are a int; expected a dict of modules"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_choices_are_refused(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        mnas.Choice(make(), nested=case == "buffer of ours")


SEPARATE = {
    "string": ("*running_mean", "separate='*running_mean'; expected several patterns"),
    "nothing": (
        ("*bn*",),
        "separate pattern '*bn*' matches no tensor; expected some of ['0.bias', '0.num_batches_tra",
    ),
}


@pytest.mark.parametrize("case", SEPARATE)
def test_patterns_that_say_nothing_are_refused(case):
    separate, message = SEPARATE[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        mnas.Choice({"a": nn.Sequential(nn.BatchNorm2d(1))}, nested=True, separate=separate)


def test_pairs_are_as_good_as_a_dict():
    assert mnas.Choice([("a", nn.ReLU()), ("b", nn.Tanh())]).names == ("a", "b")


UNENCLOSED = {
    "identity": {"a": nn.Identity(), "b": nn.Conv2d(1, 1, 3, padding=1)},
    "off centre": {"a": nn.Conv2d(1, 1, 3, padding=0), "b": nn.Conv2d(1, 1, 5, padding=2)},
    "stride": {"a": nn.Conv2d(1, 1, 3, 2, 1), "b": nn.Conv2d(1, 1, 5, 1, 2)},
    "bias": {
        "a": nn.Conv2d(1, 1, 3, padding=1, bias=False),
        "b": nn.Conv2d(1, 1, 5, padding=2),
    },
    "valid": {"a": nn.Conv2d(1, 1, 3, padding="valid"), "b": nn.Conv2d(1, 1, 5, padding="valid")},
    "dilations": {
        "a": nn.Conv2d(1, 1, 3, padding=1),
        "b": nn.Conv2d(1, 1, 3, padding=2, dilation=2),
    },
}


def around(make, a, b):
    """Two hidden widths around a layer."""
    return {
        n: nn.Sequential(nn.Conv2d(1, n_, 1), make(n_), nn.Conv2d(n_, 2, 1))
        for n, n_ in (("a", a), ("b", b))
    }


OTHERWISE = {  # what is written of a layer says nothing, and zeros are not neutral
    "softmax": lambda: {"choice": around(lambda n: nn.Softmax(1), 3, 4)},
    "groups": lambda: {"choice": around(lambda n: nn.Conv2d(n, n, 1, groups=2), 4, 8)},
    "pooling": lambda: {
        "choice": {
            name: nn.Sequential(
                nn.Conv2d(1, 2, 3), nn.AvgPool2d(3, padding=1, count_include_pad=pad)
            )
            for name, pad in (("a", True), ("b", False))
        }
    },
    "widths": lambda: {"choice": {"a": nn.Conv2d(1, 2, 1), "b": nn.Conv2d(1, 3, 1)}},
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_masked_execution_is_refused_where_it_computes_something_else(case):
    options = OTHERWISE[case]()
    candidates = options.pop("choice")

    def build():
        tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.AdaptiveAvgPool1d(1)]
        return nn.Sequential(mnas.Choice(copy.deepcopy(candidates), **options), *tail)

    space = mnas.SearchSpace(build)
    with pytest.raises(
        ValueError,
        match=r"the same behind a mask|cannot be computed inside|no candidate is as large",
    ):
        mnas.Supernet(space, execution="masked")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("case", UNENCLOSED)
def test_candidates_that_no_other_encloses_run_by_themselves(case, nested):
    if nested and case == "bias":
        return  # one has a parameter that the other lacks, and shares the rest
    space = mnas.SearchSpace(
        lambda: nn.Sequential(mnas.Choice(UNENCLOSED[case], nested=nested), nn.AdaptiveAvgPool2d(1))
    )
    net = mnas.Supernet(space, execution="masked")
    assert [net.choices[0].enclosing(index) for index in (0, 1)] == [0, 1]
    x = torch.randn(2, 1, 28, 28)
    for path in space.paths():
        torch.testing.assert_close(net(x, path), net.subnet(path, "sliced")(x))
