"""The cheapest and the dearest network of a space, against going through all of them."""

from importlib import import_module

import pytest
from torch import nn

import mnas
from mnas.networks import extremes

costs = import_module("mnas.networks.cost")  # mnas.networks.cost is the function


def depths():
    """An absent block does not depend on its kernel: at first raising the kernel changes nothing,
    and once the depth is found it has to be looked at again."""
    depth = mnas.Decision("depth", (0, 1, 2, 3))

    def block(number, kernel, depth):
        return nn.Conv2d(4, 4, kernel, padding=kernel // 2) if number <= depth else None

    def build():
        blocks = [
            mnas.Choice(block, number, mnas.Decision(f"k{number}", (3, 1, 5)), depth)
            for number in (1, 2, 3)
        ]
        return nn.Sequential(nn.Conv2d(1, 4, 1), *blocks, nn.Flatten(), nn.Linear(64, 10))

    return mnas.SearchSpace(build, input_shape=(1, 4, 4))


SPACES = {
    "mil4": mnas.spaces.mil4,
    "mil9": lambda: mnas.spaces.get("mil9"),
    "depths": depths,
    "plain": lambda: mnas.spaces.plain(5, (2, 3), 4),
}


@pytest.mark.parametrize("by", ["macs", "params"])
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("exact", [True, False])
def test_extremes_are_those_of_all_networks(name, by, exact, monkeypatch):
    if not exact:
        monkeypatch.setattr(costs, "EXACT", 0)
    space = SPACES[name]()
    found = extremes(space, by)
    price = {path: getattr(mnas.cost(space, path), by) for path in space.paths()}
    assert price[found.smallest] == min(price.values())
    assert price[found.largest] == max(price.values())
    assert all(space.canonical(path) == path for path in found)
    assert extremes(space, by) is found


def test_parameters_decide_where_macs_are_equal():
    def build():
        wide = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2))
        bare = nn.Conv2d(1, 2, 1, bias=False)
        return nn.Sequential(mnas.Choice({"bn": wide, "bare": bare}), nn.Flatten())

    space = mnas.SearchSpace(build, input_shape=(1, 2, 2))
    assert len({mnas.cost(space, path).macs for path in space.paths()}) == 1
    assert extremes(space) == ((1,), (0,))


def test_a_published_space_is_climbed_to_its_widest_network():
    space = mnas.spaces.get("nb_macro")
    assert space.size > costs.EXACT
    smallest, largest = extremes(space)
    assert largest == (2,) * 8
    price = mnas.cost(space, smallest).macs
    assert all(price <= mnas.cost(space, path).macs for path in list(space.paths())[::97])


def test_another_cost_is_refused(small):
    with pytest.raises(ValueError, match=r"^by='time' is unknown; expected one of params, macs$"):
        extremes(small, "time")
