"""Printed intervals hold their level: simulated studies of 3, 5 and 10 seeds, of networks as close
as those of mil4 and as far apart as those of mil9."""

import numpy as np
import pytest

from mnas.studies import statistics

CLOSE = (np.array([99.05, 99.13, 99.13, 99.21]), np.array([99.13, 99.16, 99.20, 99.22]), 0.065)
APART = (
    np.array([98.30, 98.90, 99.20, 98.80, 99.15, 99.30, 98.95, 99.20, 99.30]),
    np.array([98.60, 98.90, 99.04, 99.03, 99.20, 99.28, 99.11, 99.26, 99.30]),
    0.05,
)
STUDIES = 800
OF_ENOUGH = (0.92, 0.98)
NOISE = 0.008  # one standard error of a coverage of 95 % from so many studies, or from 3 x 300
OF_ONE = 0.013  # of 300


def coverage(found):
    """How often intervals hold what they are for: the mean over studies. Only of those printed."""
    mean = np.mean([one.mean for one in found])
    printed = [one for one in found if not np.isnan(one.low)]
    assert len(printed) > 0.8 * len(found)
    return np.mean([one.low <= mean <= one.high for one in printed])


def simulated(quality, noise, seeds, random):
    """Accuracies in per cent, of 10,000 images."""
    return np.round(quality + noise * random.normal(size=(seeds, len(quality))), 2)


@pytest.mark.parametrize("space", [CLOSE, APART], ids=["close", "apart"])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_cover_what_they_are_for(seeds, space):
    random = np.random.default_rng(seeds)
    scratch, inherited, noise = space
    found = {"agreement": [], "ceiling": [], "accuracy": [], "difference": []}
    for _ in range(STUDIES):
        truth = simulated(scratch, noise, seeds, random)
        runs = simulated(inherited, noise, seeds, random)
        found["agreement"].append(statistics.agreement(runs, truth)[1])
        found["ceiling"].append(statistics.ceiling(truth)[1])
        found["accuracy"].append(statistics.interval(runs[:, 0]))
        found["difference"].append(statistics.difference(runs.mean(1), truth.mean(1)))
    low, high = OF_ENOUGH
    for name, intervals in found.items():
        assert low - NOISE <= coverage(intervals) <= high + NOISE, name


@pytest.mark.parametrize("space", [CLOSE, APART], ids=["close", "apart"])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_other_intervals_of_tau_cover_too(seeds, space):
    """From validation to test, where all networks are a little other ones; both ways; of shorter
    training that shares starts with the reference; differences of two arms, against a reference
    that is what it is. A ranking without runs of its own has seldom an interval, and a wide one."""
    random, (scratch, inherited, noise) = np.random.default_rng(seeds), space
    shift = 0.05 * random.normal(size=(2, len(scratch)))
    reference = simulated(scratch, noise, seeds, random).mean(0)
    size = (scratch + 0.04 * np.random.default_rng(1).normal(size=len(scratch)))[None]
    names = ("to test", "other images", "shorter", "paired", "independent", "size")
    found = {name: [] for name in names}
    for _ in range(300):
        truth, runs = (simulated(of, noise, seeds, random) for of in (scratch, inherited))
        own, val = (
            simulated(of + moved, 1.4 * noise, seeds, random)
            for of, moved in zip((scratch, inherited), shift, strict=True)
        )
        found["to test"].append(statistics.agreement(val, truth)[1])
        both = np.stack([runs, val]), np.stack([own, truth])
        found["other images"].append(statistics.agreement(*both)[1])
        start = 0.5 * noise * random.normal(size=truth.shape)
        short, long = (simulated(of, 0.87 * noise, seeds, random) for of in (inherited, scratch))
        found["shorter"].append(statistics.ceiling(short + start, long + start)[1])
        arms = [runs, simulated(inherited, 1.3 * noise, seeds, random)]
        one, other = (statistics.kendall(arm, reference) for arm in arms)
        found["paired"].append(statistics.interval(one - other))
        found["independent"].append(statistics.difference(one, other))
        found["size"].append(statistics.agreement(size, truth)[1])
    sizes = found.pop("size")
    mean, printed = np.mean([one.mean for one in sizes]), [x for x in sizes if not np.isnan(x.low)]
    assert np.mean([one.low <= mean <= one.high for one in printed]) >= OF_ENOUGH[0] - OF_ONE
    low, high = OF_ENOUGH
    for name, intervals in found.items():
        assert low - OF_ONE <= coverage(intervals) <= high + OF_ONE, name


def test_a_percentile_bootstrap_of_three_would_not():
    """Why there is none: the oracle finds what is too narrow."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(STUDIES):
        taus = statistics.kendall(simulated(CLOSE[1], CLOSE[2], 3, random), CLOSE[0])
        means = taus[random.integers(3, size=(400, 3))].mean(1)
        found.append(statistics.Interval(taus.mean(), *np.percentile(means, [2.5, 97.5])))
    assert coverage(found) < 0.85


def test_regret_has_no_interval_because_students_would_not_hold():
    """Where two networks are equally good the picks are mostly right: few values, and skewed."""
    random = np.random.default_rng(0)
    scratch = np.array([98.83, 99.35, 99.56, 99.15, 99.49, 99.56, 99.24, 99.50, 99.55])
    lost = [
        statistics.regret(simulated(APART[1], 0.055, 5, random), scratch) for _ in range(STUDIES)
    ]
    assert coverage([statistics.interval(np.round(one, 9)) for one in lost]) < 0.9


def test_with_bits_of_images_intervals_hold_other_images_too():
    """Networks are right on images by ability, a luck that all runs of a network share, what a run
    has on all images, and what it has on one image alone: three mixtures, in which seeds and images
    move tau."""
    held = {"both": [], "seeds": [], "ceiling": []}
    for seeds, of_runs, of_cells in ((5, 0.0, 0.3), (5, 0.1, 0.1), (10, 0.05, 0.6)):
        random = np.random.default_rng(0)
        found = {name: [] for name in held}
        for _ in range(300):
            one, two = of_luck(random, seeds, of_runs, of_cells)
            for name, known in (("both", (one, two)), ("seeds", None)):
                taus, interval = statistics.agreement(one.mean(2), two.mean(2), known)
                found[name].append(interval)
                assert len(taus) == seeds
            found["ceiling"].append(statistics.ceiling(two.mean(2), None, (two, two))[1])
        for name, intervals in found.items():
            held[name].append(coverage(intervals))
    low, high = OF_ENOUGH
    assert np.mean(held["seeds"]) < 0.9
    for share in (*held["both"], *held["ceiling"]):
        assert low - OF_ONE <= share <= high + OF_ONE, held
    for name in ("both", "ceiling"):
        assert low - NOISE <= np.mean(held[name]) <= high + NOISE, name
    again = statistics.agreement(one.mean(2), two.mean(2), (one, two))[1]
    assert again == found["both"][-1]  # the same draws every time


def of_luck(random, seeds, of_runs, of_cells):
    """Which of 300 images the runs of five networks have right, and the runs of the reference."""
    ability, common = np.array([0.0, 0.1, 0.2, 0.3, 0.5]), random.normal(size=(5, 300))

    def bits():
        run = of_runs * random.normal(size=(seeds, 5, 1))
        return (
            ability[:, None] + common + run + of_cells * random.normal(size=(seeds, 5, 300)) > -1.5
        )

    return bits(), bits()


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_images_count_by_what_they_do_to_all_runs_alike(shared):
    """Of a difference of two networks, whose variance over images is known: what each run has to
    itself is in the variance over runs already."""
    random = np.random.default_rng(1)
    runs, images = 4, 4000
    common = random.random((1, 2, images)) < 0.7
    own = random.random((runs, 2, images)) < 0.7
    bits = np.where(random.random((1, 1, images)) < shared, common, own)
    found = statistics._of_images((bits,), lambda of: of[..., 0] - of[..., 1])
    expected = shared * 2 * 0.7 * 0.3 / images
    assert abs(found - expected) < 0.35 * 2 * 0.7 * 0.3 / images / runs + 0.2 * expected
