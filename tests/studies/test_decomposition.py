"""The decomposition against networks and noises that are known, and power against simulation."""

import numpy as np
import pytest
from scipy import stats

from mnas.studies import decomposition

QUALITY = np.array([0.0, 0.3, 0.5, 1.0, 1.2, 2.0])


def test_spread_finds_the_variances_that_made_the_runs():
    random = np.random.default_rng(0)
    found = [
        decomposition.spread(
            QUALITY + 0.4 * random.normal(size=(5, 6)) + 3 * random.normal(size=(5, 1))
        )
        for _ in range(2000)
    ]
    assert np.mean([f.networks**2 for f in found]) == pytest.approx(QUALITY.var(ddof=1), rel=0.03)
    assert np.mean([f.seeds**2 for f in found]) == pytest.approx(0.16, rel=0.03)
    exact = decomposition.spread([QUALITY, QUALITY + 7])  # a shift of all networks is no noise
    assert exact == pytest.approx((QUALITY.std(ddof=1), 0, 1))
    with pytest.raises(ValueError, match="two seeds and two networks"):
        decomposition.spread([[1.0, 2.0]])


def test_correlation_without_noise_tells_compression_from_bias():
    random = np.random.default_rng(1)
    biased = np.array([0.0, 1.0, 0.2, 0.1, 2.0, 0.9])
    for truth, expected in ((QUALITY, 1.0), (biased, np.corrcoef(QUALITY, biased)[0, 1])):
        found = [
            decomposition.disattenuated(
                0.5 * QUALITY + 0.2 * random.normal(size=(10, 6)),
                truth + 0.4 * random.normal(size=(10, 6)),
            )
            for _ in range(1000)
        ]
        assert np.mean(found) == pytest.approx(expected, abs=0.02)
    assert np.isnan(decomposition.disattenuated([[1, 1], [1, 1]], [[1, 2], [1, 2]]))


@pytest.mark.parametrize("gap", [0.5, 1.0, 2.5])
def test_runs_needed_have_the_power_that_a_simulation_finds(gap):
    random = np.random.default_rng(2)
    number = decomposition.runs_needed(gap, 1.0)

    def power(n):
        one, two = random.normal(size=(2, 20_000, n))
        return (stats.ttest_ind(one + gap, two, axis=1).pvalue < 0.05).mean()

    assert power(number) > 0.79
    assert power(number - 1) < 0.81


def test_pairs_without_a_gap_are_never_told_apart():
    assert decomposition.runs_needed(0, 1) is None
    assert decomposition.runs_needed(0, 0) is None
    assert decomposition.runs_needed(1, 0) == 2
    ((a, b, gap, number),) = decomposition.pairs([[1.0, 2.0], [1.1, 2.3], [0.9, 2.2]])
    noise = decomposition.spread([[1.0, 2.0], [1.1, 2.3], [0.9, 2.2]]).seeds
    assert (a, b, gap) == (0, 1, pytest.approx(1.0 - 6.5 / 3))
    assert number == decomposition.runs_needed(gap, noise)
