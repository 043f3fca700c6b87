"""Several supernets as one estimator, against loops over networks."""

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from test_rankings import TABLE, space, write  # noqa: F401

from mnas.commands import rank
from mnas.errors import Failure
from mnas.studies import alone_rankings, rankings, uncertainty
from mnas.studies.baselines import baselines
from mnas.studies.rankings import Recipe
from mnas.studies.together import as_one, with_prior


@pytest.fixture(scope="module")
def folders(tmp_path_factory, space):  # noqa: F811
    folder = tmp_path_factory.mktemp("together")
    made = [write(folder / f"small{s}", space, s, noise=0.3) for s in (0, 1)]
    more = {"noise": 0.2, "macs": 5e12, "networks": 400}
    return [*made, *(write(folder / f"large{s}", space, s, resolution=20, **more) for s in (1, 2))]


@pytest.fixture(scope="module")
def recipes(folders):
    return rankings.recipes([rankings.read(path) for path in folders])


@pytest.fixture(scope="module")
def one(recipes, folders):
    return as_one(recipes, folders)


def standard(values):
    mean = fmean(values)
    deviation = math.sqrt(fmean((value - mean) ** 2 for value in values))
    return [(value - mean) / deviation for value in values]


@pytest.mark.parametrize("name", ["loss", "top-1", "smoothed loss", "partly smoothed loss"])
def test_the_score_is_the_mean_of_what_all_have_scored_in_deviations(recipes, one, name):
    assert [of.seed for of in one.seeds] == [1]  # the one that both have
    small, large = recipes[0].seeds[1].scores[name], recipes[1].seeds[0].scores[name]
    both = [n for n in range(len(small)) if not math.isnan(small[n] + large[n])]
    assert 20 < len(both) < sum(not math.isnan(value) for value in small)
    parts = standard([small[n] for n in both]), standard([large[n] for n in both])
    found = one.seeds[0].scores[name]
    assert [n for n in range(len(found)) if not math.isnan(found[n])] == both
    assert found[both] == pytest.approx([fmean(pair) for pair in zip(*parts, strict=True)])


def test_one_that_ranks_nothing_adds_nothing(recipes):
    """What a linear model makes of equal losses differs by rounding, not by nothing."""
    pair = [rankings.read(recipes[0].seeds[1].path), rankings.read(recipes[1].seeds[0].path)]
    for row in pair[1].rows:
        row["val_loss"] = 2.3
    assert 0 < np.ptp(pair[1].predicted) < 1e-9
    parts = [rankings.Recipe(str(n), [one]) for n, one in enumerate(pair)]
    (together,) = as_one(parts, [one.path for one in pair]).seeds
    expected = standard(pair[0].predicted)
    assert 2 * together.predicted == pytest.approx(expected, abs=1e-9)


def test_the_cost_is_the_sum_and_the_name_says_what_differs(recipes, one):
    assert one.name == "fair, 6 epochs, 16 px + 20 px"
    parts = [recipe.cost(TABLE) for recipe in recipes]
    whole = one.cost(TABLE)
    assert whole.pop("machines") == parts[0]["machines"] == ["unknown, ? of ? cores"]
    for key, value in whole.items():
        assert value == pytest.approx(sum(part[key] for part in parts))


def test_a_network_whose_loss_is_not_finite_in_one_is_last(recipes, one):
    small, large = recipes[0].seeds[1], recipes[1].seeds[0]
    both = next(n for n, value in enumerate(one.seeds[0].scores["loss"]) if not math.isnan(value))
    scores = {**small.scores, "loss": small.scores["loss"].copy()}
    scores["loss"][both] = -1e9  # as a loss that is not finite is written
    broken = replace(small)
    broken.__dict__["scores"] = scores
    whole = replace(one.seeds[0], parts=[broken, large])
    by_itself = with_prior(Recipe("", [broken]), {"depth": 0.01}).seeds[0]
    for found in (whole, with_prior(Recipe("", [whole]), {"depth": 0.25}).seeds[0], by_itself):
        values = found.scores["loss"]
        others = [value for n, value in enumerate(values) if n != both and value == value]
        assert values[both] < min(others)
        assert max(others) - min(others) > 1  # deviations: the others are not pressed together


def test_two_with_independent_noise_rank_better_than_each(recipes, one):
    of = rankings.judged([ranking for r in [*recipes, one] for ranking in r.seeds], "both", draws=2)
    rows = rankings.qualities([*recipes, one], of, labels=(20,))
    tau = {row["recipe"]: row["tau"][0] for row in rows if row["score"] == "loss"}
    assert tau[one.name] > max(tau[recipe.name] for recipe in recipes) + 0.02


def test_each_part_is_paired_with_all_together_by_the_seeds_of_both(recipes, one):
    found = [*recipes, one]
    of = rankings.judged([ranking for r in found for ranking in r.seeds], "both", draws=2)
    rows = rankings.qualities(found, of, labels=())
    drawn = uncertainty.over_networks(found, of, 3)
    pairs = [row for row in uncertainty.paired(found, rows, drawn) if row["what"] == "supernets"]
    assert {(row["first"], row["less"], *row["seeds"]) for row in pairs} == {
        (recipe.name, one.name, 1) for recipe in recipes
    }
    for row in uncertainty.intervals(found, of, rows, drawn, 3):
        assert row["images"] is None  # no bits of images are kept of the whole


@pytest.mark.parametrize("whole", [False, True])
def test_a_prior_is_added_in_deviations_of_the_networks_that_are_scored(recipes, one, whole):
    of = one if whole else recipes[1]
    found = with_prior(of, {"depth": 0.25, "ReLUs": -0.5})
    free = baselines(TABLE.distinct)
    for before, after in zip(of.seeds, found.seeds, strict=True):
        assert before.scores.keys() == after.scores.keys()
        for name, values in after.scores.items():
            scored = [n for n in range(len(values)) if not math.isnan(values[n])]
            own = standard(before.scores[name][scored])
            depth, relus = (standard(free[name][scored]) for name in ("depth", "ReLUs"))
            assert values[scored] == pytest.approx(
                [a + 0.25 * b - 0.5 * c for a, b, c in zip(own, depth, relus, strict=True)]
            )
            assert len(scored) == sum(not math.isnan(value) for value in before.scores[name])
        own = standard(before.predicted)  # a loss, of all networks: lower is better
        depth, relus = (standard(free[name]) for name in ("depth", "ReLUs"))
        assert after.predicted == pytest.approx(
            [a - 0.25 * b + 0.5 * c for a, b, c in zip(own, depth, relus, strict=True)]
        )


def test_a_prior_by_itself_stands_among_what_is_free(recipes):
    of = rankings.judged(recipes[0].seeds, "choosing", draws=2)
    *_, row = rankings.free(of, {"depth": 1, "ReLUs": 2})
    assert row["score"] == "prior 1 depth + 2 ReLUs"
    free = baselines(TABLE.distinct)
    depth, relus = (standard(free[name][of.numbers]) for name in ("depth", "ReLUs"))
    scores = np.array([a + 2 * b for a, b in zip(depth, relus, strict=True)])
    assert row["tau"] == pytest.approx(of.networks.quality(scores).tau)


def test_a_prior_costs_nothing_and_is_named_and_paired(recipes, one):
    found = [
        *recipes,
        one,
        *(with_prior(of, {"depth": 0.15, "MACs": -1}) for of in [*recipes, one]),
    ]
    assert [of.name for of in found[3:]] == [
        f"{of.name}, prior 0.15 depth - 1 MACs" for of in found[:3]
    ]
    for before, after in zip(found[:3], found[3:], strict=True):
        assert after.cost(TABLE) == before.cost(TABLE)
    of = rankings.judged([ranking for r in found for ranking in r.seeds], "both", draws=2)
    rows = rankings.qualities(found, of, labels=())
    drawn = uncertainty.over_networks(found, of, 3)
    pairs = [row for row in uncertainty.paired(found, rows, drawn) if row["what"] == "prior"]
    assert {(row["first"], row["less"]) for row in pairs} == {("none", "0.15 depth - 1 MACs")}
    assert len(pairs) == 3 * len([r for r in pairs if r["recipe"] == one.name])


def test_a_supernet_that_several_have_scored_is_paid_for_once(space, tmp_path):  # noqa: F811
    paths = [write(tmp_path / name, space, 0, noise=0.1) for name in ("all", "few")]
    parts = [rankings.read(path) for path in paths]
    for part, images in zip(parts, (2000, 500), strict=True):
        part.settings.update(images=images, checkpoint_sha256="0")
    whole = as_one(rankings.recipes(parts), paths).cost(TABLE)
    one = rankings.recipes(parts)[0].cost(TABLE)
    assert whole["training"] == one["training"]
    assert whole["scoring"] == 2 * one["scoring"]


def test_networks_by_themselves_are_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(alone_rankings, "is_alone", lambda path: path == folders[0])
    with pytest.raises(Failure, match=r"small0 is of networks by themselves; --together expects"):
        rank.app(
            ["compare", "--out", str(tmp_path / "out"), "--together", *map(str, folders)],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (
            ["depths=1"],
            "depths is no score without a run of nb_macro; expected depth, MACs, parameters, "
            "ReLUs, depth by stage",
        ),
        (["depth"], "--prior depth: expected a name and a weight other than 0, as depth=0.25"),
        (["depth=much"], "--prior depth=much: expected a name and a weight"),
        (["depth=nan"], "--prior depth=nan: expected a name and a weight"),
        (["depth=0"], "--prior depth=0: expected a name and a weight"),
        (["depth=1", "depth=2"], "--prior depth=2: depth is given twice; leave one out"),
    ],
)
def test_a_prior_that_makes_no_sense_is_refused(folders, tmp_path, prior, words):
    with pytest.raises(Failure, match=words) as error:
        rank.app(
            ["compare", str(folders[0]), "--out", str(tmp_path / "out"), "--prior", *prior],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    assert error.value.status == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("places", "words"), [((0, 1), "of 1 recipe of a supernet"), ((0, 3), "no seed in common")]
)
def test_what_cannot_be_taken_together_is_refused(folders, tmp_path, places, words, capsys):
    some = [str(folders[place]) for place in places]
    with pytest.raises(Failure, match=words):
        rank.app(
            ["compare", *some, "--out", str(tmp_path / "out"), "--together", *some],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    assert not (tmp_path / "out").exists()
