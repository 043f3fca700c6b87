"""Regret of search on nb_macro, against loops over the published rows."""

import itertools

import numpy as np
import pytest

from benchmarks import regret
from mnas import reference

TABLE = reference.get("nb_macro")
TRUTH = TABLE.distinct.accuracies.mean(1)


def test_a_network_is_scored_by_the_path_whose_identities_are_last():
    paths = regret.stands_for(TABLE)
    assert sorted(set(TABLE.network[[TABLE.rows[path] for path in paths]])) == list(range(3969))
    for path in paths:
        for begin, end in ((0, 2), (2, 5), (5, 8)):
            inner = path[begin + 1 : end]  # behind the layer that changes the shape
            assert list(inner) == sorted(inner, key=lambda index: index == 0)


def test_regret_is_what_a_loop_over_the_published_rows_finds():
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, len(TRUTH)).astype(float)  # ties
    known = random.permutation(len(TRUTH))[:50].tolist()
    most = regret.budgets(TABLE)[1]
    best, picks = 0.0, {}
    for path, accuracies, macs, network in zip(
        TABLE.paths, TABLE.accuracies, TABLE.macs, TABLE.network, strict=True
    ):
        assert len(path) == 8
        if macs <= most:
            if network not in picks:
                picks[network] = np.mean(accuracies)
            best = max(best, picks[network])
    inside = [n for n in known if n in picks]
    highest = max(scores[n] for n in inside)
    expected = best - np.mean([picks[n] for n in inside if scores[n] == highest])
    assert regret.regret(TABLE, scores, known, most) == pytest.approx(expected)
    assert np.isnan(regret.regret(TABLE, scores, [], most))
    assert regret.regret(TABLE, TRUTH, range(len(TRUTH)), most) == 0


def test_the_linear_model_sees_no_other_scores_than_those_of_the_search():
    known = list(range(0, 3969, 9))
    values = TRUTH - 100
    hidden = np.full_like(values, np.nan)
    hidden[known] = values[known]
    found = regret.smoothed(TABLE, hidden, known)
    assert np.isfinite(found).all()
    assert np.array_equal(found, regret.smoothed(TABLE, values, known))
    assert regret.regret(TABLE, found, range(3969), int(TABLE.macs.max())) < 0.3


@pytest.mark.slow
def test_a_search_takes_no_more_scores_than_it_may_and_goes_on(monkeypatch):
    monkeypatch.setattr(regret, "TRIALS", 32)
    monkeypatch.setattr(regret, "SEEDS", 1)
    first, *others = regret.rows_of(TABLE, "published", TRUTH - 100, [])
    assert others == list(regret.rows_of(TABLE, "published", TRUTH - 100, first))
    found = [(rows[0]["aims"], rows[0]["sampler"]) for rows in (first, *others)]
    assert found == list(itertools.product(regret.AIMS, regret.SAMPLERS))
    for rows in (first, *others):
        assert [row["share"] for row in rows if row["pick"] == "best score"] == list(regret.SHARES)
        assert len(rows) == 2 * 4
        assert all(0 < row["scored"] <= 32 for row in rows)
        assert all(row["regret"] >= 0 for row in rows if not np.isnan(row["regret"]))


def test_without_a_search_the_best_of_all_scores_and_the_largest_network_are_taken():
    rows = regret.without_search(TABLE, TRUTH - 100)
    assert [row["regret"] for row in rows if row["sampler"] == "all"] == [0, 0, 0, 0]
    of_largest = TRUTH[TABLE.network[TABLE.rows[(2,) * 8]]]  # mb6_k5 everywhere
    assert rows[-1]["regret"] == pytest.approx(TRUTH.max() - of_largest)


def test_random_paths_that_were_ranked_are_drawn_without_replacement():
    rows = [row for some in regret.of_ranked(TABLE, regret.RANKING) for row in some]
    assert {row["seed"] for row in rows} == set(range(regret.SEEDS))
    assert all(400 < row["scored"] <= 500 for row in rows)
    assert all(0 <= row["regret"] < 20 for row in rows)
