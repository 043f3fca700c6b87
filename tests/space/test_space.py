"""SearchSpace, named spaces and samplers."""

import collections
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mnas


def space_of(*counts):
    def build():
        return nn.Sequential(
            *(mnas.Choice({f"c{i}": nn.Identity() for i in range(n)}) for n in counts)
        )

    return mnas.SearchSpace(build, name="test", input_shape=(1, 2, 2))


counts = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(counts)
def test_paths_names_and_length_agree(counts):
    space = space_of(*counts)
    paths = list(space.paths())
    assert len(paths) == len(set(paths)) == len(space)
    assert [space.parse(space.format(path)) for path in paths] == paths


def test_mil4():
    space = mnas.spaces.get("mil4")
    names = ["conv3x3-conv3x3", "conv3x3-conv5x5", "conv5x5-conv3x3", "conv5x5-conv5x5"]
    assert [space.format(p) for p in space.paths()] == names
    assert space.parse("conv3x3-conv5x5") == (0, 1)
    # by hand: weights and biases; images of 28x28 and 14x14, then the linear layers
    linear = 1568 * 128 + 128 * 10
    params = 16 * 9 + 16 + 32 * 16 * 25 + 32 + linear + 128 + 10
    assert mnas.cost(space, (0, 1)) == (params, 784 * 16 * 9 + 196 * 32 * 16 * 25 + linear)


def test_looking_at_a_space_draws_nothing(small):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    space = mnas.spaces.mil4()
    mnas.cost(space, (0, 0))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    "arch", ["conv3x3", "conv3x3-conv7x7", "", "conv3x3-conv3x3-conv3x3", "(0, 1)"]
)
def test_unknown_architectures_list_the_valid_ones(small, arch):
    with pytest.raises(
        ValueError,
        match=re.escape(f"{arch!r} is not in space mil4; expected one of conv3x3-conv3x3"),
    ):
        small.parse(arch)


@pytest.mark.parametrize("path", [(0,), (0, 2), (0, -1), (0, 1.0), "01", 3, (0, 0, 0)])
def test_invalid_paths_are_refused(small, path):
    with pytest.raises(ValueError, match=re.escape(repr(path))):
        mnas.Supernet(small)(torch.zeros(1, 1, 28, 28), path)


def test_impossible_spaces_are_refused():
    with pytest.raises(ValueError, match="'empty' has no Choice"):
        mnas.SearchSpace(lambda: nn.Sequential(nn.ReLU()), name="empty")
    with pytest.raises(ValueError, match="returned int"):
        mnas.SearchSpace(lambda: 3)
    with pytest.raises(ValueError, match=r"'nope' is unknown; expected one of mil4"):
        mnas.spaces.get("nope")
    with pytest.raises(ValueError, match="'dense' is unknown; expected one of sliced, masked"):
        mnas.Supernet(mnas.spaces.mil4(), execution="dense")


def test_any_model_can_have_choices():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = mnas.Choice({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3, bias=False)})
            self.shared = nn.Linear(3, 3)

        def forward(self, x):
            return self.op(self.shared(x)) + self.op(x)

    net = mnas.Supernet(mnas.SearchSpace(Residual, input_shape=(3,)))
    x = torch.randn(4, 3)
    for path in net.space.paths():
        exported = mnas.export(net, path)
        assert type(exported) is Residual
        assert type(exported.op) is nn.Linear
        assert torch.equal(exported(x), net(x, path))


def test_uniform_sampling_is_uniform_and_seeded():
    space = mnas.spaces.mil4()
    draw = [space.sample(torch.Generator().manual_seed(7)) for _ in range(2)]
    assert draw[0] == draw[1]
    sampler = mnas.UniformSampler(space, seed=0)
    counted = collections.Counter(next(sampler) for _ in range(4000))
    # 4 bins of 1,000 expected: chi-squared with 3 degrees of freedom is below 16.3 in 999 of 1,000
    # fair samplers
    assert sum((counted[p] - 1000) ** 2 / 1000 for p in space.paths()) < 16.3


@given(counts, st.integers(0, 2**32), st.integers(0, 30))
def test_fair_sampling_uses_every_candidate_equally(counts, seed, skipped):
    space = space_of(*counts)
    sampler = mnas.FairSampler(space, seed)
    for position, n in enumerate(counts):
        fresh = mnas.FairSampler(space, seed)
        drawn = [next(fresh)[position] for _ in range(3 * n)]
        assert collections.Counter(drawn) == dict.fromkeys(range(n), 3)
        assert all(sorted(drawn[k * n : (k + 1) * n]) == list(range(n)) for k in range(3))
    for _ in range(skipped):
        next(sampler)
    state = sampler.state_dict()
    resumed = mnas.FairSampler(space, seed + 1)
    resumed.load_state_dict(state)
    assert [next(sampler) for _ in range(10)] == [next(resumed) for _ in range(10)]


UNFIT = {
    "widths": (
        lambda: nn.Sequential(
            mnas.Choice({"w4": nn.Conv2d(1, 4, 3, padding=1), "w6": nn.Conv2d(1, 6, 3, padding=1)}),
            nn.Conv2d(4, 2, 3),
        ),
        "candidate 'w6' of choice 0 does not fit into the network for inputs of 1x28x28",
    ),
    "even kernel": (
        lambda: nn.Sequential(
            mnas.Choice({"k3": nn.Conv2d(1, 2, 3, padding=1), "k4": nn.Conv2d(1, 2, 4, padding=2)}),
            nn.Flatten(),
            nn.Linear(2 * 28 * 28, 3),
        ),
        "candidate 'k4' of choice 0 does not fit",
    ),
    "outputs": (
        lambda: nn.Sequential(
            nn.Flatten(), mnas.Choice({"a": nn.Linear(784, 10), "b": nn.Linear(784, 9)})
        ),
        "with it the output is (2, 9), with the others (2, 10); make them equal",
    ),
    "input shape": (
        lambda: nn.Sequential(mnas.Choice({"a": nn.Conv2d(3, 4, 3)})),
        "or say input_shape=(C, H, W)",
    ),
    "outputs of other kinds": (
        lambda: nn.Sequential(nn.Flatten(), mnas.Choice({"a": nn.Linear(784, 10)}), nn.LSTM(10, 3)),
        "the output is a tuple; return the logits alone",
    ),
}


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_looking_counting_and_masking_draw_nothing_and_follow_the_dtype():
    def build():
        return nn.Sequential(
            nn.Flatten(), mnas.Choice({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)}), Noise()
        ).double()

    before = torch.get_rng_state()
    space = mnas.SearchSpace(build, input_shape=[1, 2, 2])
    assert (space.input_shape, mnas.cost(space, (0,)).params) == ((1, 2, 2), 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", UNFIT)
def test_candidates_that_do_not_fit_are_named_at_construction(case):
    build, message = UNFIT[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        mnas.SearchSpace(build)
