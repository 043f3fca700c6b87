"""How well a score ranks thousands of networks whose accuracies are published.

Arrays (networks,): scores, higher is better, and the truth. All numbers are of distinct networks.
Where a cheap estimate has won by depth or size alone, `tau_within` and `regret_at_equal` say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Array = NDArray[np.float64]
FEW = 128  # networks of which all pairs at once take less time than scipy's checks of its arguments
GROUPS = 20  # of neighbouring MACs
HALVES_SEED = 20261126  # of the half that recipes are chosen on, and of the one that is reported
RIDGE = 0.1


def tau(scores: ArrayLike, truth: ArrayLike) -> float:
    """Kendall's tau-b (1945); 0 where either is constant."""
    return _tau_b(*_pairs(_rounded(scores), _rounded(truth)))


def _rounded(values: ArrayLike) -> Array:
    """Means of the same numbers in another order differ in the last bits: still a tie."""
    return np.round(np.asarray(values, float), 9)


def tau_within(scores: ArrayLike, truth: ArrayLike, strata: ArrayLike) -> float:
    """Kendall's tau-b over pairs of networks of one stratum: concordant minus discordant pairs of
    all strata, over the geometric mean of the pairs that scores, and that the truth, tells apart.
    strata (networks,): such as depth."""
    scores, truth, strata = _rounded(scores), _rounded(truth), np.asarray(strata)
    inside = [strata == stratum for stratum in np.unique(strata)]
    counts = [_pairs(scores[some], truth[some]) for some in inside]
    return _tau_b(*np.sum(counts, 0)) if counts else 0.0


def _tau_b(agreed: float, of_scores: float, of_truth: float) -> float:
    return float(agreed / np.sqrt(of_scores * of_truth)) if of_scores * of_truth else 0.0


def _pairs(scores: Array, truth: Array) -> tuple[float, float, float]:
    """Concordant minus discordant pairs; pairs that scores, and that the truth, tells apart."""
    if len(scores) <= FEW:
        a, b = (
            np.greater.outer(values, values).astype(float) - np.less.outer(values, values)
            for values in (scores, truth)  # no differences: two that are infinite have none
        )
        return (a * b).sum() / 2, (a * a).sum() / 2, (b * b).sum() / 2
    of_scores, of_truth = _untied(scores), _untied(truth)
    if not of_scores * of_truth:
        return 0.0, of_scores, of_truth
    # The p-value, which nobody reads, is the one that takes no time.
    found = stats.kendalltau(scores, truth, method="asymptotic").statistic
    return found * np.sqrt(of_scores * of_truth), of_scores, of_truth


def _untied(values: Array) -> float:
    """How many pairs have different values."""
    _, counts = np.unique(values, return_counts=True)
    return (len(values) * (len(values) - 1) - (counts * (counts - 1)).sum()) / 2


def neighbours(sizes: ArrayLike, groups: int = GROUPS) -> NDArray[np.int64]:
    """Groups of neighbouring sizes, such as MACs, between their quantiles at 1/groups, 2/groups,
    ...; networks of equal size are in one group, the upper one at a quantile."""
    sizes = np.asarray(sizes, float)
    edges = np.quantile(sizes, np.arange(1, groups) / groups)
    return np.searchsorted(edges, sizes, side="right")


def regret_at_equal(scores: ArrayLike, truth: ArrayLike, groups: ArrayLike) -> float:
    """What is lost by taking the network with the best score of each group: the best truth of the
    group minus that of the pick, a mean over picks that share the best score, and over groups."""
    scores, truth, groups = _rounded(scores), np.asarray(truth, float), np.asarray(groups)
    lost = []
    for group in np.unique(groups):
        of_scores, of_truth = scores[groups == group], truth[groups == group]
        lost.append(of_truth.max() - of_truth[of_scores == of_scores.max()].mean())
    return float(np.mean(lost))


def regret_at_top(scores: ArrayLike, truth: ArrayLike, top: int) -> float:
    """The best truth minus the best of the `top` networks with the best scores, as if these were
    trained. Where more share the last place than there is room for, the expectation over which of
    them are taken."""
    scores, truth = _rounded(scores), np.asarray(truth, float)
    last = np.sort(scores)[-min(top, len(scores))]
    taken, tied = truth[scores > last], np.sort(truth[scores == last])
    room = min(top, len(scores)) - len(taken)
    # That the best of `room` out of n sorted values is among the first j: C(j, room) of C(n, room).
    below = special.comb(np.arange(len(tied) + 1), room) / special.comb(len(tied), room)
    best = np.maximum(tied, taken.max(initial=-np.inf))
    return float(truth.max() - np.diff(below) @ best)


class Quality(NamedTuple):
    """Of a score. within: tau at equal depth. equal: regret at equal MACs, in points of accuracy;
    top10, top50: regret at the top."""

    tau: float
    within: float
    equal: float
    top10: float
    top50: float


@dataclass(frozen=True)
class Networks:
    """Those that are compared. runs (networks, trainings): their published accuracies in percent.
    strata: depth. macs: multiply-accumulates, divided into groups among these networks."""

    runs: Array
    strata: NDArray[np.int64]
    macs: NDArray[np.int64]

    def __getitem__(self, some: ArrayLike) -> Networks:
        return Networks(self.runs[some], self.strata[some], self.macs[some])

    @property
    def truth(self) -> Array:
        """The mean of all trainings (networks,)."""
        return self.runs.mean(1)

    def quality(self, scores: ArrayLike, truth: ArrayLike | None = None) -> Quality:
        """Of scores (networks,); truth: other than the mean of all trainings."""
        truth = self.truth if truth is None else truth
        return Quality(
            tau(scores, truth),
            tau_within(scores, truth, self.strata),
            regret_at_equal(scores, truth, neighbours(self.macs)),
            regret_at_top(scores, truth, 10),
            regret_at_top(scores, truth, 50),
        )

    def ceiling(self) -> Quality:
        """One training of each network as its score, the mean of the others as the truth; the mean
        over which one. What has less noise than a training can exceed it."""
        number = self.runs.shape[1]
        found = [
            self.quality(self.runs[:, run], np.delete(self.runs, run, 1).mean(1))
            for run in range(number)
        ]
        return Quality(*np.mean(found, 0))


def of_networks(
    scores: ArrayLike, networks: Networks, draws: int = 200, seed: int = HALVES_SEED
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The middle 95 % of tau, and of tau within strata, over networks drawn anew (bootstrap)."""
    scores, random = np.asarray(scores, float), np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        some = random.integers(len(scores), size=len(scores))
        drawn = networks[some]
        found.append(
            (
                tau(scores[some], drawn.truth),
                tau_within(scores[some], drawn.truth, drawn.strata),
            )
        )
    low, high = np.quantile(found, [0.025, 0.975], axis=0).tolist()
    return (low[0], high[0]), (low[1], high[1])


def halves(number: int, seed: int = HALVES_SEED) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct networks by their numbers: those to choose recipes on, and those to report on."""
    order = np.random.default_rng(seed).permutation(number)
    return np.sort(order[: number // 2]), np.sort(order[number // 2 :])


def one_hot(paths: ArrayLike) -> Array:
    """A column of ones, then one for each candidate but the first of each decision: paths
    (networks, decisions) -> (networks, columns)."""
    paths = np.asarray(paths)
    columns = [paths[:, d] == c for d in range(paths.shape[1]) for c in range(1, paths.max() + 1)]
    return np.column_stack([np.ones(len(paths)), *columns]).astype(float)


def linear(design: Array, trained: ArrayLike, accuracies: ArrayLike) -> Array:
    """Scores of all networks by a linear model of log error. design: as from `one_hot`. trained:
    numbers of networks, with their accuracies in percent."""
    return -ridge(design, trained, np.log(100 - np.asarray(accuracies, float)))


def ridge(
    design: Array,
    rows: ArrayLike,
    y: ArrayLike,
    penalty: float = RIDGE,
    free: Array | None = None,
) -> Array:
    """Least squares of y (rows,) on rows of a design (networks, columns), with a penalty on the
    squares of all coefficients but the constant; the values of all networks. free (networks,): a
    further column without a penalty, which is left out where it is the same everywhere."""
    weight = np.full(design.shape[1], penalty)
    weight[0] = 0
    # Beside the constant a second one has no solution, and one up to rounding a wild one.
    if free is not None and np.ptp(free) > 1e-9 * np.abs(free).max():
        design, weight = np.column_stack([design, free]), np.append(weight, 0)
    x = design[rows]
    return design @ np.linalg.solve(x.T @ x + np.diag(weight), x.T @ np.asarray(y, float))


class Worth(NamedTuple):
    """How many fully trained networks a tau is worth to the linear model; infinite: more than were
    tried. The interval holds the middle 95 % of draws of networks and trainings."""

    networks: float
    low: float
    high: float


@dataclass(frozen=True)
class Exchange:
    """taus (draws, sizes): of the linear model fitted to so many networks. Draws are nested: more
    networks are the same and others."""

    sizes: NDArray[np.int64]
    taus: Array

    def worth(self, reached: float) -> Worth:
        """The smallest number at which the mean over draws reaches a tau, between sizes on a
        logarithmic scale; and over single draws."""
        of_draws = [self._first(taus, reached) for taus in self.taus]
        low, high = np.quantile(of_draws, [0.025, 0.975], method="nearest")
        return Worth(self._first(self.taus.mean(0), reached), float(low), float(high))

    def _first(self, taus: Array, reached: float) -> float:
        above = np.flatnonzero(taus >= reached)
        if not len(above):
            return np.inf
        last = above[0]
        if last == 0:
            return float(self.sizes[0])
        share = (reached - taus[last - 1]) / (taus[last] - taus[last - 1])
        small, large = np.log(self.sizes[last - 1 : last + 1])
        return float(np.exp(small + share * (large - small)))


SIZES = (18, 20, 25, 30, 40, 50, 70, 100, 140, 200, 280, 400, 560, 800, 1100, 1500)


def exchange(
    paths: ArrayLike,
    runs: Array,
    strata: ArrayLike,
    fitted: NDArray[np.int64],
    judged: NDArray[np.int64],
    *,
    within: bool = False,
    draws: int = 200,
    seed: int = HALVES_SEED,
) -> Exchange:
    """tau of the linear model by the number of networks it is fitted to, each trained once.

    paths, runs, strata: of all networks. fitted: the networks to draw from; judged: those that tau
    is of, against the mean of all trainings. within: tau at equal strata. A draw is of networks and
    of the training whose accuracies are used. Where networks are in both, at most half of fitted
    are drawn, and tau is of those that were not."""
    design, random = one_hot(paths), np.random.default_rng(seed)
    truth, strata = runs.mean(1), np.asarray(strata)
    shared = np.isin(judged, fitted).any()
    most = len(fitted) // 2 if shared else len(fitted)
    sizes = np.array(sorted({size for size in (*SIZES, most) if size <= most}))
    taus = np.empty((draws, len(sizes)))
    for draw in range(draws):
        order, run = random.permutation(fitted), random.integers(runs.shape[1])
        for number, size in enumerate(sizes):
            some = order[:size]
            on = judged[~np.isin(judged, some)] if shared else judged
            of = linear(design, some, runs[some, run])[on], truth[on]
            taus[draw, number] = tau_within(*of, strata[on]) if within else tau(*of)
    return Exchange(sizes, taus)
