import numpy as np
import pytest

from planimeter import InputError
from planimeter.analysis import partial_correlation


def test_it_is_the_formula_of_three_correlations(population):
    rng = np.random.default_rng(0)
    x, y, z = np.linalg.cholesky([[1, 0.5, 0.7], [0.5, 1, 0.6], [0.7, 0.6, 1]]) @ rng.normal(
        size=(3, 40)
    )
    found = partial_correlation(population({"x": x, "z": z}, {"y": y}), "x", "y", given=["z"])
    r = np.corrcoef([x, y, z])
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert found.value == pytest.approx(expected)


def test_what_the_fixed_column_says_alone_is_nothing(population):
    z = np.arange(10.0)
    whole = population({"x": 2 * z + 1, "z": z}, {"y": np.random.default_rng(0).normal(size=10)})
    assert np.isnan(partial_correlation(whole, "x", "y", given=["z"]).value)


@pytest.mark.parametrize("n", [9, 20, 55])
@pytest.mark.parametrize("coefficient", ["pearson", "spearman"])
def test_intervals_cover(population, coverage, n, coefficient):
    def analyse(rng):
        z, a, b = rng.normal(size=(3, n))
        x, y = z + a, z + 0.5 * a + 0.75**0.5 * b
        whole = population({"x": x, "z": z}, {"y": y})
        return partial_correlation(whole, "x", "y", given=["z"], coefficient=coefficient)

    truth = 0.5 if coefficient == "pearson" else 0.4923  # of ranks: by a sample of 4 million
    assert 0.93 <= coverage(analyse, truth) <= 0.975


def test_a_column_cannot_be_fixed_and_correlated(population):
    with pytest.raises(InputError, match="held fixed themselves"):
        partial_correlation(population({"x": np.arange(5.0)}), "x", "x", given=["x"])
