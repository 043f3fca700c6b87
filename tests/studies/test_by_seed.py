"""Bias against variance, against loops; and that each is found where it was put."""

from itertools import combinations
from statistics import fmean

import pytest
from scipy.stats import kendalltau
from test_rankings import TABLE, space, write  # noqa: F401
from test_together import standard

from mnas.studies import rankings, rankings_page
from mnas.studies.by_seed import by_seed


@pytest.fixture(scope="module")
def found(tmp_path_factory, space):  # noqa: F811
    folder = tmp_path_factory.mktemp("seeds")
    read = [rankings.read(write(folder / str(s), space, s, noise=0.3)) for s in (0, 1, 2)]
    read.append(rankings.read(write(folder / "20", space, 0, noise=0.3, resolution=20)))
    return rankings.recipes(read), rankings.judged(read, "reporting", draws=2)


def test_numbers_are_those_of_loops(found):
    recipes, of = found
    rows = {(row["score"], row["metric"]): row for row in by_seed(recipes, of)}
    truth = [round(fmean(runs), 9) for runs in TABLE.distinct.accuracies[of.numbers]]
    scored = recipes[0].seeds[0].scores["loss"] == recipes[0].seeds[0].scores["loss"]  # not NaN
    values = [one.scores["loss"] for one in recipes[0].seeds]
    own = [list(v[of.numbers]) for v in values]
    scales = [dict(zip(scored.nonzero()[0], standard(v[scored]), strict=True)) for v in values]
    mean = [fmean(scale[number] for scale in scales) for number in of.numbers]
    row = rows["loss", "tau"]
    assert row["seeds"] == [0, 1, 2]
    assert row["one"] == pytest.approx(fmean(kendalltau(o, truth)[0] for o in own))
    assert row["all"] == pytest.approx(kendalltau(mean, truth)[0])
    between = fmean(kendalltau(a, b)[0] for a, b in combinations(own, 2))
    assert row["between"] == pytest.approx(between)
    runs = TABLE.distinct.accuracies[of.numbers]
    twos = [[round((a + b) / 2, 9) for a, b in runs[:, pair]] for pair in ([0, 1], [0, 2], [1, 2])]
    alike = fmean(kendalltau(o, two)[0] for o in own for two in twos)
    assert row["alike"] == pytest.approx(alike)
    assert {row["recipe"] for row in rows.values()} == {recipes[0].name}  # one seed has none


def test_noise_goes_with_seeds_and_bias_stays(found):
    """The losses that are written are published errors with independent noise: no bias."""
    recipes, of = found
    row = next(
        row for row in by_seed(recipes, of) if (row["score"], row["metric"]) == ("loss", "tau")
    )
    assert row["all"] > row["one"] + 0.05
    of_bias = [seed.scores["loss"].copy() for seed in recipes[0].seeds]
    for seed in recipes[0].seeds:
        seed.scores["loss"][:] = of_bias[0]  # the same in each
    row = next(
        row for row in by_seed(recipes, of) if (row["score"], row["metric"]) == ("loss", "tau")
    )
    assert row["between"] == pytest.approx(1)
    assert row["all"] == pytest.approx(row["one"])
    for seed, scores in zip(recipes[0].seeds, of_bias, strict=True):
        seed.scores["loss"][:] = scores


def test_the_page_has_a_line_for_each_score():
    numbers = {"one": 0.5, "alike": 0.4, "all": 0.6, "between": 0.9}
    rows = [
        {"recipe": "fair", "score": "loss", "metric": metric, "seeds": [0, 1], **numbers}
        for metric in ("tau", "within")
    ]
    cells = [c.strip() for c in rankings_page.by_seed(rows).splitlines()[2].split("|")[1:-1]]
    assert cells == ["fair", "loss", "2", *("0.500", "0.400", "0.600", "0.900") * 2]
    assert rankings_page.by_seed([]) == "No recipe has two seeds."
