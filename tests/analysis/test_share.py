import numpy as np
import pytest
from scipy import stats

from planimeter.analysis import share_above


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 5), (5, 5), (55, 55), (40, 55)])
def test_it_is_the_exact_binomial_interval(population, k, n):
    bound = np.where(np.arange(n) < k, 1.0, 0.0)
    found = share_above(population({"bound": bound, "error": np.full(n, 0.5)}), "bound", "error")
    expected = stats.binomtest(k, n).proportion_ci(method="exact")
    assert found.value == k / n
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_members_without_a_number_do_not_count(population):
    whole = population({"bound": np.array([1.0, np.nan, 1]), "error": np.array([0.5, 0, 2])})
    assert (share_above(whole, "bound", "error").value, share_above(whole, "bound", "error").n) == (
        0.5, 2,
    )  # fmt: skip
    assert np.isnan(share_above(whole.take([1]), "bound", "error").value)
