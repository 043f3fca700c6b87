"""Published tables: their figures, and which rows are one network."""

import re
from itertools import product

import numpy as np
import pytest
import torch

import mnas
from mnas import reference
from mnas.reference import tables


@pytest.mark.parametrize(
    ("name", "row", "path", "accuracies", "costs", "number", "total"),
    [
        ("nb_macro", 0, (0,) * 8, (45.32, 45.33, 45.44), (387882, 7713280), 6561, 177632377),
        ("nb_macro", 18, (0, 0, 0, 0, 0, 2, 0, 0), (76.06, 75.62, 76.00), (672298, 16933376),
         6561, 177632377),
        ("channel_macro_mobilenet", 0, (0, 0, 0, 0, 0, 3, 3), (89.81, 89.95, 89.33),
         (346218, 27539456), 1000, 27247379),
        ("channel_macro_resnet", 5, (0, 0, 0, 2, 1, 1, 2), (92.47, 92.35, 92.51),
         (4211018, 297716224), 1000, 27932018),
    ],
)  # fmt: skip
def test_figures_are_those_published(name, row, path, accuracies, costs, number, total):
    """total: of all accuracies, in hundredths of a percent."""
    table = reference.get(name)
    assert len(table) == len(table.rows) == number
    assert table.rows[path] == row
    assert tuple(table.accuracies[row]) == accuracies
    assert (table.params[row], table.macs[row]) == costs
    assert int((table.accuracies * 100).round().sum()) == total


@pytest.mark.parametrize("name", list(reference.TABLES))
def test_costs_and_paths_are_those_of_the_space(name):
    """The costs as published equal those counted on the networks, every row."""
    space, table = mnas.spaces.get(name), reference.get(name)
    for path, params, macs in zip(table.paths.tolist(), table.params, table.macs, strict=True):
        assert mnas.cost(space, space.check(tuple(path))) == (params, macs), path
    assert table.paths.shape == (len(table), len(space.decisions))


def test_rows_are_3969_networks():
    table = reference.get("nb_macro")
    assert len(table.distinct) == 3969
    assert np.bincount(table.realisations).tolist() == [0, 2025, 1620, 0, 324]
    assert 1620 + 324 == 1944
    for column in ("accuracies", "params", "macs"):  # published for one path, copied to the others
        of_networks = getattr(table.distinct, column)
        assert (getattr(table, column) == of_networks[table.network]).all(), column
    assert (table.distinct.network == np.arange(3969)).all()


def test_what_is_one_network_computes_the_same():
    """With the blocks' weights put in the same order, twins are equal to the bit."""
    space = mnas.spaces.get("nb_macro")
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    for path in ((1, 0, 2, 0, 1, 0, 2, 1), (1, 2, 2, 0, 2, 0, 0, 1)):
        twin = tables._blocks_in_order(path)
        assert twin != path
        network, other = (mnas.standalone(space, p).eval() for p in (path, twin))
        weights = list(network.state_dict().values())
        names = list(other.state_dict())
        assert [w.shape for w in weights] == [w.shape for w in other.state_dict().values()]
        other.load_state_dict(dict(zip(names, weights, strict=True)))
        assert torch.equal(network(x), other(x))


def test_twins_against_a_naive_search():
    """All paths of the same first layers and, per stage, the same blocks one after the other."""

    def sentence(path):
        return [(path[a], "".join(str(i) for i in path[a + 1 : b] if i)) for a, b in tables.STAGES]

    table = reference.get("nb_macro")
    assert table.paths.tolist() == [list(path) for path in product(range(3), repeat=8)]
    seen = [str(sentence(path)) for path in table.paths.tolist()]
    alike = {}
    for row, text in enumerate(seen):
        assert table.network[row] == alike.setdefault(text, len(alike))


def test_averaged_is_the_mean_of_the_rows_of_a_network():
    table = reference.get("nb_macro")
    values = np.random.default_rng(0).normal(size=len(table))
    values[:7] = np.nan
    found = table.averaged(values)
    for network in (0, 1, 5, 100, 3968):
        of_network = values[table.network == network]
        of_network = of_network[~np.isnan(of_network)]
        expected = of_network.mean() if len(of_network) else np.nan
        np.testing.assert_allclose(found[network], expected)
    with pytest.raises(ValueError, match=re.escape("shape (3,); expected (6561,)")):
        table.averaged([1, 2, 3])


def test_what_is_unknown_is_named(monkeypatch):
    with pytest.raises(ValueError, match="'mil4'; expected one of nb_macro, channel_macro_mob"):
        reference.get("mil4")
    source = tables.TABLES["nb_macro"]
    monkeypatch.setitem(tables.TABLES, "nb_macro", source._replace(sha256="0" * 64))
    with pytest.raises(ValueError, match=r"nb_macro\.csv\.xz is damaged; install mnas again"):
        reference.get("nb_macro")
