"""Why a tau is what it is: the spread of networks, seed noise, compression and bias of sharing; and
how many runs would tell two networks apart.

Runs are arrays (seeds, networks) of scores, as in `mnas.studies.statistics`."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

ALPHA, POWER = 0.05, 0.8
MOST = 100_000


class Spread(NamedTuple):
    """Standard deviations: of the networks, with seed noise taken off (0 where there is nothing
    else), and of a network over seeds; and how reliable a single run is, the share of its variance
    that is the networks'."""

    networks: float
    seeds: float
    reliability: float


def spread(runs: ArrayLike) -> Spread:
    """Two-way analysis of variance, networks x seeds (random effects; Searle, Casella & McCulloch
    1992, "Variance Components"). What a seed does to all networks alike changes no ranking and is
    counted nowhere. Raises ValueError for a single seed or network."""
    runs = np.asarray(runs, float)
    seeds, networks = runs.shape
    if min(runs.shape) < 2:
        raise ValueError(f"runs are {runs.shape}, expected two seeds and two networks at least")
    means = runs.mean(0)
    rest = runs - means - runs.mean(1, keepdims=True) + runs.mean()
    noise = (rest**2).sum() / ((seeds - 1) * (networks - 1))
    true = max(means.var(ddof=1) - noise / seeds, 0.0)
    both = true + noise
    return Spread(float(true**0.5), float(noise**0.5), float(true / both) if both > 0 else 0.0)


def disattenuated(runs: ArrayLike, others: ArrayLike) -> float:
    """The correlation of two ways of training over networks without the seed noise of either
    (Spearman 1904); 1: averaging more runs would order the networks alike, and what is missing is a
    bias that no averaging cures. Of few networks it is rough, and may exceed 1; NaN where noise
    explains the spread of either."""
    one, two = (np.asarray(values, float) for values in (runs, others))
    spreads = spread(one).networks * spread(two).networks
    if spreads < 1e-12:
        return float("nan")
    return float(np.cov(one.mean(0), two.mean(0))[0, 1] / spreads)


def runs_needed(gap: float, noise: float) -> int | None:
    """How many runs of each of two networks tell them apart with probability 0.8: Welch's test of
    independent runs, two-sided at 0.05, by the noncentral t distribution (Cohen 1988, "Statistical
    Power Analysis"). gap: of their true accuracies; noise: standard deviation over seeds. None:
    more than 100,000."""

    def power(number: int) -> float:
        freedom, shift = 2 * number - 2, abs(gap) / noise * (number / 2) ** 0.5
        limit = stats.t.ppf(1 - ALPHA / 2, freedom)
        return float(stats.nct.sf(limit, freedom, shift))

    if not noise:
        return 2 if gap else None
    low, high = 2, 2
    while not power(high) >= POWER:
        low, high = high, 2 * high
        if high > MOST:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle + 1, high)
    return high


def pairs(runs: ArrayLike) -> list[tuple[int, int, float, int | None]]:
    """For each pair of networks: both, the gap of their means, and the runs of each that it would
    need if the measured gap were the true one, with the noise of all networks."""
    runs = np.asarray(runs, float)
    means, noise = runs.mean(0), spread(runs).seeds
    return [
        (a, b, float(means[a] - means[b]), runs_needed(round(means[a] - means[b], 9), noise))
        for a, b in combinations(range(runs.shape[1]), 2)
    ]
