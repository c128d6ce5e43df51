import numpy as np
import pytest

from planimeter import InputError
from planimeter.analysis import agreement


@pytest.mark.parametrize("n", [3, 9, 55])
def test_intervals_cover_the_ratio_and_limits_another_member(population, coverage, n):
    inside = []

    def analyse(rng):
        true = np.exp(rng.normal(size=n))
        a, b = true * np.exp(0.1 * rng.normal(size=(2, n)))
        found = agreement(population({"a": 1.3 * a, "b": b}), "a", "b")
        another = 1.3 * np.exp(0.1 * 2**0.5 * rng.normal())
        inside.append(found.limits[0] <= another <= found.limits[1])
        return found

    assert 0.93 <= coverage(analyse, 1.3, 2000) <= 0.975
    assert 0.93 <= np.mean(inside) <= 0.975


def test_a_factor_of_two_correlates_and_does_not_agree(population):
    x = np.arange(1.0, 9)
    found = agreement(population({"a": 2 * x, "b": x}), "a", "b")
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert "× 2 [2, 2]" in str(found)
    with pytest.raises(InputError, match="it has no logarithm"):
        agreement(population({"a": x - 2, "b": x}), "a", "b")
    assert np.isnan(agreement(population({"a": x, "b": x}).take([0]), "a", "b").value)
