"""Restricted spaces, against going through all paths with the values in question."""

import itertools
from importlib import import_module

import pytest
import torch
from torch import nn

import mnas
from mnas.networks import extremes
from mnas.space.sampler import FairSampler, UniformSampler


def depths():
    """An absent block does not depend on its kernel: networks of which another path has the
    value."""
    depth = mnas.Decision("depth", (0, 1, 2))

    def block(number, kernel, depth):
        return nn.Conv2d(4, 4, kernel, padding=kernel // 2) if number <= depth else None

    def build():
        blocks = [
            mnas.Choice(block, number, mnas.Decision(f"k{number}", (3, 1, 5)), depth)
            for number in (1, 2)
        ]
        return nn.Sequential(nn.Conv2d(1, 4, 1), *blocks, nn.Flatten(), nn.Linear(64, 10))

    return mnas.SearchSpace(build, name="depths", input_shape=(1, 4, 4))


CASES = {
    "one of two": (lambda: mnas.spaces.get("mil4"), {"choice1": "conv5x5"}),
    "both": (lambda: mnas.spaces.get("mil4"), {"choice0": "conv3x3", "choice1": "conv5x5"}),
    "depth": (depths, {"depth": 1}),
    "kernel of a block that may be absent": (depths, {"k2": 5}),
    "kernel and depth": (depths, {"k1": 1, "depth": 2}),
    "nothing": (depths, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_restricted_space_has_the_networks_with_its_values(case, monkeypatch):
    make, values = CASES[case]
    whole = make()
    space = whole.restricted(values)
    names = [decision.name for decision in whole.decisions]
    wanted = {
        names.index(n): whole.decisions[names.index(n)].values.index(v) for n, v in values.items()
    }
    everything = itertools.product(*map(range, map(len, whole.decisions)))
    inside = [p for p in everything if all(p[i] == v for i, v in wanted.items())]
    networks = sorted({whole.canonical(path) for path in inside})
    assert list(space.paths()) == networks
    assert (space.size, len(space), space.names()) == (
        len(networks),
        len(networks),
        [whole.format(path) for path in networks],
    )
    keys = {whole.key(path) for path in inside}
    for path in whole.paths():
        assert (path in space) is (whole.key(path) in keys)
        if path in space:
            assert space.parse(whole.format(path)) == path == space.canonical(path)
        else:
            with pytest.raises(ValueError, match=r"is not in space \w+ with .*; expected "):
                space.parse(whole.format(path))
    generator = torch.Generator().manual_seed(0)
    assert {space.sample(generator) for _ in range(40 * len(networks))} == set(networks)
    assert {next(s) for s in [UniformSampler(space, 1)] for _ in range(40 * len(networks))} == set(
        networks
    )
    assert space.path() == min(inside)
    costs = {path: mnas.cost(whole, path).params for path in networks}
    for limit in (1_000, 0):
        monkeypatch.setattr(import_module("mnas.networks.cost"), "EXACT", limit)
        found = extremes(whole.restricted(values), "params")
        assert {costs[found.smallest], costs[found.largest]} == {
            min(costs.values()),
            max(costs.values()),
        }
    assert whole.group == ()
    assert len(list(whole.paths())) == whole.size


def test_a_fair_sampler_deals_what_is_left_to_decide():
    space = mnas.spaces.get("nb_macro").restricted(choice2="mb6_k5")
    paths = [path for s in [FairSampler(space, 0)] for path in itertools.islice(s, 6)]
    assert {path[2] for path in paths} == {2}
    for position in {*range(8)} - {2}:
        assert sorted(path[position] for path in paths[:3]) == [0, 1, 2]
        assert sorted(path[position] for path in paths[3:]) == [0, 1, 2]


def test_a_search_draws_networks_of_the_restricted_space():
    optuna = pytest.importorskip("optuna")
    space = depths().restricted(k2=5)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {mnas.suggest(study.ask(), space) for _ in range(100)}
    assert drawn == set(space.paths())


def test_restrictions_add_up_and_stay_at_another_resolution():
    space = mnas.spaces.get("mil4").restricted(choice0="conv5x5")
    assert space.group == ("choice0=conv5x5",)
    assert space.restricted({"choice1": "conv3x3"}).names() == ["conv5x5-conv3x3"]
    assert space.names() == ["conv5x5-conv3x3", "conv5x5-conv5x5"]
    macro = mnas.spaces.get("nb_macro").restricted(choice2="mb6_k5")
    assert (macro.at(16).input_shape, macro.at(16).size, macro.size) == ((3, 16, 16), 3**7, 3**7)
    assert "2 architectures: conv5x5 - conv3x3|conv5x5" in repr(space)
    for values, message in [
        ({"choice0": "conv3x3"}, "choice0=conv3x3 is not in space mil4 with choice0=conv5x5"),
        ({"choice7": "conv3x3"}, "space mil4 has no decision 'choice7'; expected one of choice0"),
        ({"choice1": "conv7x7"}, "choice1='conv7x7'; expected one of conv3x3, conv5x5"),
    ]:
        with pytest.raises(ValueError, match=message):
            space.restricted(values)
