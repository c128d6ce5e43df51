from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from planimeter.analysis.rank_intervals import population, rank_interval

SAMPLE = {
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
    "kendall": lambda x, y: stats.kendalltau(x, y).statistic,
}


@pytest.mark.parametrize("coefficient", SAMPLE)
@pytest.mark.parametrize("n", [5, 9, 20, 100])
@pytest.mark.parametrize("rho", [0.0, 0.9, 0.99, 1.0])
def test_intervals_cover_as_often_as_they_say(coefficient, n, rho):
    """Where there are few values that the coefficient can take, more often."""
    rng, covered = np.random.default_rng(1), 0
    truth = float(population(coefficient, np.array(rho)))
    for _ in range(1000):
        x, noise = rng.normal(size=(2, n))
        value = SAMPLE[coefficient](x, rho * x + np.sqrt(1 - rho**2) * noise)
        low, high = rank_interval(coefficient, value, n, 0.95)
        covered += low <= truth + 1e-12 and truth - 1e-12 <= high
    assert 0.93 <= covered / 1000 <= (0.975 if n >= 20 and rho < 1 else 1)


@pytest.mark.parametrize("coefficient", SAMPLE)
def test_without_correlation_it_is_the_permutation_test(coefficient):
    """0 is outside exactly for values that fewer than 5 % of all orders of 6 points reach."""
    orders = np.array([SAMPLE[coefficient](np.arange(6), p) for p in permutations(range(6))])
    for value in np.unique(orders.round(12)):
        low, high = rank_interval(coefficient, value, 6, 0.95)
        chance = min(np.mean(orders >= value - 1e-9), np.mean(orders <= value + 1e-9))
        if abs(chance - 0.025) > 0.004:  # what 4000 draws tell apart
            assert (low <= 0 <= high) == (chance > 0.025)


@pytest.mark.parametrize("coefficient", SAMPLE)
@pytest.mark.parametrize("n", [3, 8, 55, 400])
def test_ends_move_with_the_value_and_mirror(coefficient, n):
    intervals = [rank_interval(coefficient, v, n, 0.95) for v in np.linspace(-1, 1, 41)]
    lows, highs = np.array(intervals).T
    assert (np.diff(lows) >= 0).all()
    assert (np.diff(highs) >= 0).all()
    np.testing.assert_allclose(lows, -highs[::-1], atol=1e-9)
    assert lows[-1] < highs[-1] == 1


@pytest.mark.parametrize("coefficient", SAMPLE)
def test_more_points_make_it_narrower_and_more_confidence_wider(coefficient):
    widths = [np.subtract(*rank_interval(coefficient, 0.5, n, 0.95)) for n in (5, 10, 30, 60, 500)]
    assert (np.diff(widths) > 0).all()  # low - high rises towards 0
    low, high = rank_interval(coefficient, 0.5, 30, 0.95)
    lower, higher = rank_interval(coefficient, 0.5, 30, 0.99)
    assert lower < low < high < higher
