"""Intervals and paired differences of rankings, against naive loops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import mnas
from mnas import reference
from mnas.studies import rankings, rankings_page, scored, statistics, uncertainty

TABLE = reference.get("nb_macro")
METRICS = uncertainty.TESTED


CONFIG = {"space": "nb_macro", "sampler": "fair", "epochs": 6.0, "resolution": 16}


@pytest.fixture(scope="module")
def read():
    """Recalibrated, stored and drifting: a supernet of each of two seeds, the first two of the same
    weights; and with both settings other."""
    space, random, found = mnas.spaces.get("nb_macro", 16), np.random.default_rng(0), []
    paths = scored.drawn([tuple(path) for path in TABLE.paths.tolist()], 120, 0)
    for bn_images, policy, seeds in (
        (500, "frozen", (0, 1)),
        (None, "frozen", (1, 0)),
        (500, "torch", (1,)),
        (None, "torch", (0, 1)),
    ):
        for seed in seeds:
            rows = []
            for path in paths:
                error = 1 - TABLE.accuracies[TABLE.rows[path]].mean() / 100
                loss = error * np.exp((0.1 if bn_images else 0.3) * random.standard_normal())
                rows.append({"arch": space.format(path), "val_loss": loss, "val_top1": 1 - error})
            settings = {"space": "nb_macro", "resolution": 16, "images": 50}
            settings |= {"bn_images": bn_images, "checkpoint_sha256": f"{policy} {seed}"}
            config = {**CONFIG, "policy": policy, "seed": seed}
            training = {"config": config, "macs": 1e13, "seconds": 1.0}
            correct = random.random((len(rows), 50)) < [[row["val_top1"]] for row in rows]
            cost = {"macs": 1e12, "seconds": 1.0}
            one = rankings.Ranking(Path("none"), settings, training, rows, cost, correct)
            found.append(one)
    return found


@pytest.fixture(scope="module")
def found(read):
    recipes, of = rankings.recipes(read), rankings.judged(read, "choosing", draws=4)
    rows = rankings.qualities(recipes, of, labels=())
    return recipes, of, rows, uncertainty.over_networks(recipes, of, draws=5)


def naive_top1(one, often):
    """Shares of images that are right, one network after the other."""
    shares = {}
    for path, right in zip(one.paths, one.correct, strict=True):
        repeated = np.repeat(right, often)
        shares.setdefault(TABLE.network[TABLE.rows[path]], []).append(repeated.mean())
    return {network: np.mean(of_paths) for network, of_paths in shares.items()}


def test_images_are_drawn_anew_for_all_networks_and_seeds_together(found):
    recipes, of, rows, drawn = found
    recipe = recipes[0]
    got = uncertainty.over_images(recipe, of, draws=3)
    assert got.shape == (2, 3, len(METRICS))
    random = np.random.default_rng(rankings.ranking.HALVES_SEED)
    often = random.multinomial(50, np.full(50, 1 / 50), size=3)
    for seed, one in enumerate(recipe.seeds):
        for draw in range(3):
            shares = naive_top1(one, often[draw])
            quality = of.networks.quality([shares[n] for n in of.numbers])
            assert got[seed, draw] == pytest.approx([getattr(quality, m) for m in METRICS])
    row = next(
        row
        for row in uncertainty.intervals(recipes, of, rows, drawn, draws=3)
        if (row["recipe"], row["score"], row["metric"]) == (recipe.name, "top-1", "tau")
    )
    half = 1.96 * got[..., METRICS.index("tau")].mean(0).std(ddof=1)
    assert row["images"] == pytest.approx([row["mean"] - half, row["mean"] + half])
    without = rankings.Recipe("older", [replace(recipe.seeds[0], correct=None)])
    assert uncertainty.over_images(without, of) is None


def test_networks_are_drawn_anew_for_all_recipes_together(found):
    recipes, of, rows, drawn = found
    random, number = np.random.default_rng(rankings.ranking.HALVES_SEED), len(of.numbers)
    for draw, some in enumerate(random.integers(number, size=(5, number))):
        for recipe in recipes:
            for seed, one in enumerate(recipe.seeds):
                quality = of.networks[some].quality(one.scores["loss"][of.numbers][some])
                expected = [getattr(quality, metric) for metric in METRICS]
                assert drawn[recipe.name, "loss"][seed, draw].tolist() == expected
    twice = [recipes[0], rankings.Recipe("twin", recipes[0].seeds)]
    again = uncertainty.over_networks(twice, of, draws=5)
    assert np.array_equal(again["twin", "top-1"], again[recipes[0].name, "top-1"])
    rows = uncertainty.intervals(recipes, of, rows, drawn, draws=3)
    row = next(r for r in rows if (r["score"], r["metric"]) == ("loss", "within"))
    half = 1.96 * drawn[recipes[0].name, "loss"][..., 0].mean(0).std(ddof=1)
    assert row["networks"] == pytest.approx([row["mean"] - half, row["mean"] + half])
    assert row["images"] is None  # of the loss no bits are kept


def test_what_one_setting_brings_is_a_paired_difference(found):
    recipes, of, rows, drawn = found
    pairs = uncertainty.paired(recipes, rows, drawn)
    settings = {(p["what"], p["first"], p["less"], p["same_supernets"]) for p in pairs}
    recalibrated, stored = "statistics of 500 images", "stored statistics"
    frozen, drifting = (f"momentum off the path {word}" for word in ("frozen", "drifting"))
    assert {s for s in settings if "score" not in s[0]} == {
        ("BatchNorm statistics", recalibrated, stored, True),
        ("momentum off the path", frozen, drifting, False),
    }
    taus = [
        {one.seed: of.networks.quality(one.scores["loss"][of.numbers]).tau for one in r.seeds}
        for r in recipes
    ]
    pair = next(
        p
        for p in pairs
        if (p["what"], p["score"], p["metric"]) == ("BatchNorm statistics", "loss", "tau")
    )
    gaps = [taus[0][seed] - taus[1][seed] for seed in (0, 1)]
    assert pair["seeds"] == [0, 1]
    assert pair["mean"] == pytest.approx(np.mean(gaps))
    assert pair["over_seeds"] == pytest.approx(
        list(stats.ttest_1samp(gaps, 0).confidence_interval(0.95))
    )
    low, high = pair["over_seeds"]
    assert pair["word"] == ("not told apart" if low <= 0 <= high else "different")

    pair = next(
        p
        for p in pairs
        if (p["first"], p["less"], p["score"], p["metric"]) == (frozen, drifting, "loss", "within")
        and p["recipe"] == recipes[0].name
    )
    assert pair["seeds"] == [1]
    assert pair["over_seeds"] is None
    assert pair["word"] == "one seed"  # of each: what another training does is not known
    draws = drawn[recipes[0].name, "loss"][1, :, 0] - drawn[recipes[2].name, "loss"][0, :, 0]
    half = 1.96 * draws.std(ddof=1)
    assert pair["over_networks"] == pytest.approx([pair["mean"] - half, pair["mean"] + half])

    alone = [rankings.Recipe(recipe.name, recipe.seeds[:1]) for recipe in recipes[:2]]
    of_one = rankings.qualities(alone, of, labels=())
    same = uncertainty.paired(alone, of_one, uncertainty.over_networks(alone, of, draws=5))
    for pair in same:
        low, high = pair["over_networks"]
        word = "not told apart" if low <= 0 <= high else "different"
        assert (pair["seeds"], pair["same_supernets"]) == ([0], True)
        assert pair["word"] == f"{word} (one seed: over networks)"

    twins = next(p for p in pairs if p["less"] == "one of its paths" and p["metric"] == "tau")
    of_seeds = [
        of.networks.quality(one.scores["loss"][of.numbers]).tau
        - of.networks.quality(one.scores["loss, one path"][of.numbers]).tau
        for one in recipes[0].seeds
    ]
    assert twins["mean"] == pytest.approx(np.mean(of_seeds))


def test_a_rule_and_its_sampler_are_one_setting_and_two_settings_are_no_pair():
    one = {"sampler": "uniform", "epochs": 6.0}
    other = {"sampler": "fair", "rule": "fair", "epochs": 6.0}
    assert uncertainty.differing(one, other) == (
        "rule",
        ("sampler uniform", "rule fair, sampler fair"),
    )
    assert uncertainty.differing(one, {**other, "epochs": 2.0}) is None
    assert uncertainty.differing(one, one) is None
    images = {**one, "scored images": 500}, {**one, "scored images": 2000}
    words = ("images", ("scored on 500 images", "scored on 2,000 images"))
    assert uncertainty.differing(*images) == words
    averaged = {**one, "scored average": 3}
    words = ("average", ("mean of 3 checkpoints", "last checkpoint"))
    assert uncertainty.differing(averaged, one) == words


def test_the_page_says_what_differs_in_words(found):
    recipes, of, rows, drawn = found
    made = rankings_page.Found(
        *("nb_macro", "choosing", len(of.numbers), [], [], rows, [], [], [], []),
        intervals=uncertainty.intervals(recipes, of, rows, drawn, draws=3),
        paired=uncertainty.paired(recipes, rows, drawn),
    )
    tables = [part(made) for part in (rankings_page._paired, rankings_page._intervals)]
    line = next(x for x in tables[0].splitlines() if "BatchNorm statistics" in x)
    assert "statistics of 500 images − stored statistics | the same" in " ".join(line.split())
    assert any("trained apart" in x for x in tables[0].splitlines())
    assert len(tables[1].splitlines()) == 2 + len(recipes) * len(uncertainty.SCORES) * len(METRICS)


def test_intervals_over_networks_and_over_images_cover_what_they_are_for():
    """Taus whose true value is known: of normal scores, 2/pi arcsin of their correlation; and the
    mean over studies with other images."""
    random, draws = np.random.default_rng(0), uncertainty.DRAWS
    covered = {"networks": [], "images": []}
    ability = 0.4 * np.sort(random.normal(size=40))
    truth, found = ability + 0.05 * random.normal(size=40), []
    for _ in range(250):
        true = random.normal(size=50)
        score = 0.9 * true + (1 - 0.9**2) ** 0.5 * random.normal(size=50)
        some = random.integers(50, size=(draws, 50))
        taus = statistics.kendall(score[some], true[some])
        low, high = uncertainty._around(float(statistics.kendall(score, true)), taus)
        covered["networks"].append(low <= 2 / np.pi * np.arcsin(0.9) <= high)

        luck = random.normal(size=300) + 0.7 * random.normal(size=(40, 300))
        right = ability[:, None] + luck > -1.2
        often = random.multinomial(300, np.full(300, 1 / 300), size=draws) / 300
        measured = float(statistics.kendall(right.mean(1), truth))
        taus = statistics.kendall(often @ right.T, truth)
        found.append((measured, *uncertainty._around(measured, taus)))
    mean = np.mean([measured for measured, *_ in found])
    covered["images"] = [low <= mean <= high for _, low, high in found]
    noise = 0.014  # one standard error of a coverage of 95 % from so many
    for name, which in covered.items():
        assert 0.92 - noise <= np.mean(which) <= 0.98 + noise, name
