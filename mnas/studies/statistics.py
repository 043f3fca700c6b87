"""How well cheap scores rank networks, and how sure one can be of it.

Runs are arrays (seeds, networks) of scores, higher is better. The truth is the mean of runs from
scratch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
FEWEST = 3  # runs, for an interval of tau
DRAWS = 200  # of images, for a variance

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with its 95 % interval; the ends are NaN where values are too few or all equal."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """How much better network `a` is than `b`, over seeds. p: Holm-corrected for all pairs."""

    a: int
    b: int
    mean: float
    low: float
    high: float
    p: float


def kendall(scores: ArrayLike, truth: ArrayLike) -> Array:
    """Kendall's tau-b (1945) of scores (..., networks) with the truth (..., networks); 0 where
    either is constant, because it ranks nothing. Raises ValueError for numbers that are not finite
    or not of the same networks."""
    arrays = [np.asarray(x, float) for x in (scores, truth)]
    if {a.shape[-1:] for a in arrays} != {arrays[0].shape[-1:] or None} or not all(
        np.isfinite(a).all() for a in arrays
    ):
        shapes = " and ".join(str(a.shape) for a in arrays)
        raise ValueError(
            f"scores and truth are {shapes}, expected finite numbers (..., networks) of the same "
            "networks"
        )
    a, b = map(_orders, arrays)
    untied = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), untied, out=np.zeros(untied.shape), where=untied > 0)


def _orders(scores: Array) -> Array:
    """For each pair of networks, which is better: 1, 0 or -1."""
    i, j = np.triu_indices(scores.shape[-1], 1)
    # Means of the same accuracies in another order differ in the last bits: still a tie.
    return np.sign(np.round(scores[..., i] - scores[..., j], 9))


Bits = NDArray[np.bool_]


def agreement(
    runs: ArrayLike, truth_runs: ArrayLike, correct: tuple[Bits, Bits] | None = None
) -> tuple[Array, Interval]:
    """tau of each run with the mean of the truth's runs, and the mean tau.

    Both are arrays (seeds, networks), or (measurements, seeds, networks) of the same runs measured
    several times, such as on several sets of images: tau is then the mean over measurements. A
    single run of scores has no noise of its own, as a number of parameters.

    correct: which images the runs have right, and those of the truth, (seeds, networks, images) of
    the same images. The interval then also holds what other images would change (`_of_images`).

    The interval is for the mean tau that studies of this size have: it holds the noise of the runs
    and that of the truth. It is a jackknife of two samples (Arvesen 1969, "Jackknifing
    U-statistics", Annals of Mathematical Statistics) with the degrees of freedom of Welch (1947).
    Percentile bootstraps of so few runs are too narrow: tests/studies/test_intervals.py."""
    runs, truth_runs = _measured(runs), _measured(truth_runs)
    taus = kendall(runs, truth_runs.mean(1, keepdims=True)).mean(0)
    # tau without each run of the truth; without a run it is the mean of the other taus.
    without = kendall(runs[:, :, None], _others(truth_runs)[:, None]).mean((0, 1))
    parts = [_jackknife(without)]
    if len(taus) > 1:
        parts.append((taus.var(ddof=1) / len(taus), len(taus) - 1))
    images = 0.0
    if correct is not None:
        images = _of_images(correct, lambda a, b: kendall(a, b.mean(1, keepdims=True)))
    return taus, _of_tau(taus, parts, images)


def _of_images(groups: tuple[Bits, ...], taus: Callable[..., Array]) -> float:
    """The variance that images add to a mean tau by what they do to all runs alike, by bootstraps
    (Efron 1979). groups: of runs. taus: of their accuracies, (draws, seeds, networks) each.

    Where all runs share a draw of images the variance is A + the sum of B/n over groups of n runs,
    A of what is alike, B of what an image does to one run alone. The variance over runs holds B/n
    already; counted in both, intervals cover 99 % where 95 are meant. B is the gap between draws
    that a group shares and draws of each run (multiway clustering: Cameron, Gelbach & Miller 2011,
    Journal of Business & Economic Statistics 29, 238-249): these have the variances a + B/n and
    (a + B)/n, where a is of what is alike within that group."""
    number = groups[0].shape[-1]
    random = np.random.default_rng(0)
    weights = random.multinomial(number, np.full(number, 1 / number), size=DRAWS).T / number
    drawn = [np.moveaxis(bits.astype(float) @ weights, -1, 0) for bits in groups]

    def variance(*accuracies: Array) -> float:
        return float(taus(*accuracies).mean(1).var(ddof=1))

    alike, measured = variance(*drawn), [bits.mean(-1)[None] for bits in groups]
    for i, own in enumerate(drawn):
        runs = own.shape[1]
        if runs > 1:
            each = np.stack([np.roll(own[:, run], run, 0) for run in range(runs)], 1)
            together, apart = (
                variance(*measured[:i], group, *measured[i + 1 :]) for group in (own, each)
            )
            alike -= max((runs * apart - together) / (runs - 1), 0)
    return max(alike, 0)


def ceiling(
    runs: ArrayLike,
    truth_runs: ArrayLike | None = None,
    correct: tuple[Bits, Bits] | None = None,
) -> tuple[Array, Interval]:
    """tau of each run from scratch with the mean of the others: what seed noise leaves to an
    estimator that is a run. What has less noise can exceed it. truth_runs: the same runs, measured
    otherwise; shapes, and correct, as for `agreement`.

    The interval is a jackknife over runs: each is left out of the runs and of the means of the
    others, because taus that share their truths are not independent. Raises ValueError for a single
    run."""
    runs = _measured(runs)
    truth_runs = runs if truth_runs is None else _measured(truth_runs)
    number = runs.shape[1]
    if number < 2:
        raise ValueError("a ceiling needs two runs of each network from scratch; train more seeds")
    taus = kendall(runs, _others(truth_runs)).mean(0)
    if number < FEWEST:
        return taus, Interval(float(taus.mean()), np.nan, np.nan)
    left = [[np.delete(those, i, 1) for those in (runs, truth_runs)] for i in range(number)]
    without = np.array([kendall(some, _others(truth)).mean() for some, truth in left])
    images = 0.0
    if correct is not None:
        same = correct[0] is correct[1]
        groups = correct[:1] if same else correct
        images = _of_images(groups, lambda *of: kendall(of[0], _others(of[-1])))
    return taus, _of_tau(taus, [_jackknife(without)], images)


def _others(runs: Array) -> Array:
    """The mean of the other runs, for each (measurements, seeds, networks)."""
    return (runs.sum(1, keepdims=True) - runs) / max(runs.shape[1] - 1, 1)


def _jackknife(without: Array) -> tuple[float, int]:
    """The variance of a statistic, from its values without each run, and its degrees of freedom."""
    number = len(without)
    return float((number - 1) * without.var()), number - 1


def _of_tau(taus: Array, parts: list[tuple[float, int]], images: float) -> Interval:
    """The mean tau with the interval of its variance, which is a sum of independent parts, each
    with its degrees of freedom, and of that of images; none from fewer than three runs, or where
    nothing varies.

    Images add no degrees of freedom: few runs whose jackknife happens to be small would have many,
    and ceilings be covered in 90 % of cases (tests/studies/test_intervals.py)."""
    mean, of_runs = float(taus.mean()), sum(part for part, _ in parts)
    fewest = min(freedom for _, freedom in parts)
    if fewest < FEWEST - 1 or of_runs + images < 1e-12:
        return Interval(mean, np.nan, np.nan)
    shares = sum(part**2 / number for part, number in parts)
    freedom = of_runs**2 / shares if shares > 0 else fewest
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(of_runs + images))
    return Interval(mean, max(mean - half, -1.0), min(mean + half, 1.0))


def _measured(runs: ArrayLike) -> Array:
    """Runs as (measurements, seeds, networks)."""
    array = np.asarray(runs, float)
    return array if array.ndim == 3 else array[None]


def regret(scores: ArrayLike, truth: ArrayLike) -> Array:
    """What is lost by taking the network with the best score (..., networks): the truth of the best
    minus that of the pick; the mean over the picks where several share the best score."""
    scores, truth = np.asarray(scores, float), np.asarray(truth, float)
    best = scores == scores.max(-1, keepdims=True)
    return truth.max() - (best * truth).sum(-1) / best.sum(-1)


def interval(values: ArrayLike) -> Interval:
    """The mean of values (seeds,) with Student's interval; none of equal values, which say nothing
    of how much others would differ."""
    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) < 1e-9:
        return Interval(mean, np.nan, np.nan)
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def difference(values: ArrayLike, others: ArrayLike) -> Interval:
    """The mean of values (seeds,) minus that of independent others (seeds of theirs,), with Welch's
    interval (1947); none where neither varies."""
    pair = [np.asarray(v, float) for v in (values, others)]
    mean = float(pair[0].mean() - pair[1].mean())
    if min(map(len, pair)) < 2:
        return Interval(mean, np.nan, np.nan)
    squares = np.array([v.var(ddof=1) / len(v) for v in pair])
    if not squares.any():
        return Interval(mean, np.nan, np.nan)
    freedom = squares.sum() ** 2 / sum(
        s**2 / (len(v) - 1) for s, v in zip(squares, pair, strict=True)
    )
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(squares.sum())
    return Interval(mean, mean - half, mean + half)


def differences(runs: ArrayLike) -> list[Difference]:
    """All pairs of networks, compared seed by seed (paired t-test), with p-values corrected by
    `holm`."""
    runs = np.asarray(runs, float)
    pairs = list(combinations(range(runs.shape[1]), 2))
    gaps = [interval(runs[:, a] - runs[:, b]) for a, b in pairs]
    corrected = holm([_paired_p(runs[:, a] - runs[:, b]) for a, b in pairs])
    return [
        Difference(a, b, *gap, p) for (a, b), gap, p in zip(pairs, gaps, corrected, strict=True)
    ]


def holm(raw: ArrayLike) -> list[float]:
    """p-values (tests,) corrected for all of them, after Holm (1979)."""
    raw = np.asarray(raw, float)
    order = np.argsort(raw)
    stepped = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    corrected = np.empty_like(raw)
    corrected[order] = np.minimum(stepped, 1)
    return [float(p) for p in corrected]


def _paired_p(gaps: Array) -> float:
    if len(gaps) < 2:
        return np.nan
    if not gaps.std():
        return 0.0 if gaps[0] else 1.0
    return float(stats.ttest_1samp(gaps, 0).pvalue)
