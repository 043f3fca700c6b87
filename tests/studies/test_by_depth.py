"""tau among networks of one depth, against loops."""

from statistics import fmean

import pytest
from scipy.stats import kendalltau
from test_rankings import TABLE, space, write  # noqa: F401

from mnas.studies import rankings, rankings_page
from mnas.studies.by_depth import by_depth


@pytest.fixture(scope="module")
def read(tmp_path_factory, space):  # noqa: F811
    folder = tmp_path_factory.mktemp("depths")
    return [rankings.read(write(folder / str(s), space, s, noise=0.2)) for s in (0, 1)]


def test_tau_of_a_depth_is_over_its_networks_alone(read):
    of = rankings.judged(read, "reporting", draws=2)
    rows = by_depth(rankings.recipes(read), of)
    paths, truth = TABLE.distinct.paths, TABLE.distinct.accuracies
    depths = [sum(candidate > 0 for candidate in paths[number]) for number in of.numbers]
    enough = sorted({depth for depth in depths if depths.count(depth) >= 10})
    assert [row["depth"] for row in rows] == enough
    assert len(enough) > 3
    for row in rows:
        some = [n for n, depth in zip(of.numbers, depths, strict=True) if depth == row["depth"]]
        assert row["networks"] == len(some)
        mean = [round(fmean(truth[n]), 9) for n in some]
        taus = [kendalltau([one.scores[row["score"]][n] for n in some], mean)[0] for one in read]
        assert row["tau"][0] == pytest.approx(fmean(taus))
        others = [
            kendalltau(
                [truth[n][run] for n in some],
                [round(fmean(set_of(truth[n], run)), 9) for n in some],
            )[0]
            for run in range(3)
        ]
        assert row["ceiling"] == pytest.approx(fmean(others))


def set_of(values, left_out):
    return [value for place, value in enumerate(values) if place != left_out]


def test_a_space_of_one_depth_has_no_such_table(read):
    of = rankings.judged(read, "choosing", draws=2)
    some = of.numbers[of.networks.strata == 5]
    of = rankings.judged_on(of.table, of.half, some, of.fitted, 2)
    assert by_depth(rankings.recipes(read), of) == []


def test_the_page_has_a_column_for_each_recipe():
    own = {"depth": 3, "networks": 12, "ceiling": 0.9}
    rows = [{**own, "recipe": name, "tau": [0.5, 0.4, 0.6]} for name in ("fair", "uniform")]
    made = rankings_page.by_depth(rows).splitlines()
    assert [cell.strip() for cell in made[0].split("|")[1:-1]] == [
        *("depth", "networks", "one training", "fair", "uniform")
    ]
    assert [cell.strip() for cell in made[2].split("|")[1:-1]] == [
        *("3", "12", "0.90", "0.50 [0.40, 0.60]", "0.50 [0.40, 0.60]")
    ]
    assert rankings_page.by_depth([]).startswith("All networks have one depth, or no depth has 10")
