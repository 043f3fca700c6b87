"""Ranking statistics against scipy, and where they are known by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mnas.studies import statistics

SCORES = st.lists(st.integers(0, 5), min_size=2, max_size=9)


@given(
    st.integers(2, 9).flatmap(
        lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n)] * 2)
    )
)
def test_tau_is_that_of_scipy_ties_included(pair):
    a, b = pair
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert statistics.kendall(a, b) == 0
    else:
        assert statistics.kendall(a, b) == pytest.approx(
            stats.kendalltau(a, b).statistic, abs=1e-12
        )


@given(*[st.lists(st.integers(0, 99), min_size=2, max_size=9)] * 2)
def test_a_difference_of_independent_runs_is_that_of_scipy(a, b):
    found = statistics.difference(a, b)
    if len(set(a)) == len(set(b)) == 1:
        assert found.mean == a[0] - b[0]
        assert np.isnan(found[1:]).all()
    elif min(len(set(a)), len(set(b))) > 1:  # scipy warns of one that is constant
        ends = stats.ttest_ind(a, b, equal_var=False).confidence_interval(statistics.LEVEL)
        assert found == pytest.approx((np.mean(a) - np.mean(b), *ends), abs=1e-9)
    assert np.isnan(statistics.difference(a, b[:1])[1:]).all()


def test_means_of_the_same_accuracies_in_another_order_tie():
    values = np.random.default_rng(0).integers(9_000, 10_000, 10) / 100
    means = np.stack([np.random.default_rng(k).permutation(values) for k in range(40)], 1).mean(0)
    assert len(set(means)) > 1  # in the last bits
    assert statistics.kendall(np.arange(40), means) == 0


def test_four_networks_have_seven_values_of_tau():
    from itertools import permutations

    values = {
        round(float(statistics.kendall(order, range(4))), 9) for order in permutations(range(4))
    }
    assert len(values) == 7


def test_agreement_is_the_mean_of_the_taus_and_its_interval_holds_both_noises():
    random = np.random.default_rng(0)
    truth = random.normal(size=(1, 6)) + 0.3 * random.normal(size=(10, 6))
    runs = truth.mean(0) + 0.3 * random.normal(size=(8, 6))
    taus, found = statistics.agreement(runs, truth)
    assert taus == pytest.approx([stats.kendalltau(run, truth.mean(0)).statistic for run in runs])
    assert found.mean == pytest.approx(taus.mean())
    assert found.low < found.mean < found.high
    _, without = statistics.agreement(runs, np.repeat(truth.mean(0, keepdims=True), 10, axis=0))
    assert without.high - without.low < found.high - found.low


def test_a_single_seed_gives_no_interval():
    taus, found = statistics.agreement([[1, 2, 3]], [[1, 2, 3], [1, 3, 2]])
    assert len(taus) == 1
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(statistics.interval([0.5]).low)
    assert np.isnan(statistics.interval([0.5] * 3).low)
    same = statistics.agreement([[1, 2, 3]] * 5, [[1, 2, 3]] * 5)[1]
    assert (same.mean, np.isnan([same.low, same.high]).all()) == (1, True)
    with pytest.raises(ValueError, match="two runs of each network"):
        statistics.ceiling([[1, 2, 3]])


def test_the_ceiling_leaves_the_run_itself_out():
    runs = np.array([[0, 1, 2], [0, 1, 2], [2, 1, 0]])
    taus, found = statistics.ceiling(runs)
    assert taus.tolist() == [
        0,
        0,
        -1,
    ]  # the others of the first tie, those of the third are against it
    assert found.mean == pytest.approx(-1 / 3)
    elsewhere = np.array([[0, 1, 2], [0, 2, 1], [0, 1, 2]])  # the same runs on other images
    # The mean of the others there: [0, 1.5, 1.5], [0, 1, 2] and [0, 1.5, 1.5].
    taus, _ = statistics.ceiling(runs, elsewhere)
    assert taus.tolist() == pytest.approx([2 / 6**0.5, 1, -2 / 6**0.5])
    both, _ = statistics.ceiling([runs, elsewhere], [elsewhere, runs])
    assert both == pytest.approx((taus + statistics.ceiling(elsewhere, runs)[0]) / 2)


def test_measurements_are_averaged():
    random = np.random.default_rng(0)
    runs, truth = random.normal(size=(2, 6, 4)), random.normal(size=(2, 5, 4))
    taus, found = statistics.agreement(runs, truth)
    each = [statistics.agreement(*pair) for pair in zip(runs, truth, strict=True)]
    assert taus == pytest.approx((each[0][0] + each[1][0]) / 2)
    assert found.mean == pytest.approx((each[0][1].mean + each[1][1].mean) / 2)
    assert statistics.agreement(runs[::-1], truth[::-1])[1] == pytest.approx(found)
    assert statistics.agreement([runs[0]] * 2, [truth[0]] * 2)[1] == pytest.approx(each[0][1])
    one = statistics.ceiling([truth[0]] * 2)
    assert one[1] == pytest.approx(statistics.ceiling(truth[0])[1])


@given(SCORES, st.integers(0, 2**32 - 1))
def test_regret_is_what_the_pick_lacks(scores, seed):
    truth = np.random.default_rng(seed).normal(size=len(scores))
    picks = [t for s, t in zip(scores, truth, strict=True) if s == max(scores)]
    assert statistics.regret(scores, truth) == pytest.approx(max(truth) - np.mean(picks))
    assert statistics.regret([scores, truth], truth)[1] == 0


def test_intervals_are_students():
    values = np.random.default_rng(0).normal(size=10)
    found = statistics.interval(values)
    low, high = stats.t.interval(0.95, 9, values.mean(), stats.sem(values))
    assert found == pytest.approx((values.mean(), low, high))


def test_differences_are_paired_and_corrected_for_all_pairs():
    random = np.random.default_rng(0)
    runs = random.normal(size=(10, 1)) + [[0, 0, 3]] + 0.5 * random.normal(size=(10, 3))
    found = statistics.differences(runs)
    raw = [stats.ttest_rel(runs[:, a], runs[:, b]).pvalue for a, b in ((0, 1), (0, 2), (1, 2))]
    assert [(d.a, d.b) for d in found] == [(0, 1), (0, 2), (1, 2)]
    low, middle, high = np.argsort(raw)
    expected = {
        low: 3 * raw[low],
        middle: max(3 * raw[low], 2 * raw[middle]),
        high: max(2 * raw[middle], raw[high]),
    }
    for number, difference in enumerate(found):
        assert difference.p == pytest.approx(min(1, expected[number]))
        a, b = difference.a, difference.b
        assert difference.mean == pytest.approx((runs[:, a] - runs[:, b]).mean())
    assert found[0].p > 0.05 > found[1].p
    same = statistics.differences([[1, 1], [1, 1]])[0]
    assert (same.mean, same.p) == (0, 1)


@pytest.mark.parametrize("scores", [1.0, None, [1.0, np.nan, 2.0], [1.0, 2.0], [1.0, np.inf, 2.0]])
def test_what_ranks_no_networks_is_refused(scores):
    with pytest.raises(ValueError, match="expected finite numbers"):
        statistics.kendall(scores, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="expected finite numbers"):
        statistics.kendall([1.0, 2.0, 3.0], scores)
