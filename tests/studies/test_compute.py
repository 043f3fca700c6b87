"""Costs of supernets in MACs x images, against naive sums."""

import itertools
from statistics import fmean

import pytest

import mnas
from mnas import reference
from mnas.networks.cost import extremes, shared_macs
from mnas.studies import compute

CONFIG = {"execution": "sliced", "sampler": "uniform"}


@pytest.fixture(scope="module")
def space():
    return mnas.spaces.get("nb_macro", 16)


def test_a_step_of_one_path_is_the_mean_of_all_networks_and_a_fair_one_thrice_that(space):
    layers = [[0] * 8 for _ in range(3)]
    zero = mnas.cost(space, (0,) * 8).macs
    for layer, candidate in itertools.product(range(8), range(3)):
        path = tuple(candidate if n == layer else 0 for n in range(8))
        layers[candidate][layer] = mnas.cost(space, path).macs - zero
    mean = zero + sum(map(sum, layers)) / 3  # what layers cost adds up
    for sampler in ("uniform", "fair"):
        assert compute.macs_of_step(space, {**CONFIG, "sampler": sampler}) == pytest.approx(mean)
    fair = {**CONFIG, "sampler": "fair", "rule": "fair"}
    assert compute.macs_of_step(space, fair) == pytest.approx(3 * mean)


def test_a_sandwich_shares_beginnings_which_all_pairs_agree_on(space):
    """One random path: the mean over all paths, by their sum less what is shared."""
    smallest, largest = extremes(space)
    every = itertools.product(range(3), repeat=8)
    exact = fmean(shared_macs(space, [largest, smallest, path]) for path in every)
    found = compute.macs_of_step(space, {**CONFIG, "rule": "sandwich", "random_paths": 1})
    assert found == pytest.approx(exact, rel=0.01)
    alone = compute.macs_of_step(space, CONFIG)
    ends = shared_macs(space, [largest, smallest])
    assert ends < found < ends + alone


def test_steps_that_are_no_sum_of_paths_are_unknown(space):
    for other in ({"rule": "path_dropout"}, {"rule": "distilled"}, {"execution": "masked"}):
        assert compute.macs_of_step(space, {**CONFIG, **other}) is None


def test_a_large_space_is_drawn_from():
    space = mnas.spaces.get("spos")
    found = compute.macs_of_step(space, CONFIG)
    low, high = (mnas.cost(space, path).macs for path in extremes(space))
    assert low < found < high


def test_full_trainings_of_the_table():
    table = reference.get("nb_macro")
    assert compute.full_training(table) == 3 * 50 * 50_000 * 105_660_928
    largest = table.macs.max()
    naive = 7 * fmean(macs / largest for macs in table.distinct.macs.tolist())
    assert compute.trained_networks(table, 7) == pytest.approx(naive)
