import numpy as np
import pytest
from scipy import stats

from planimeter import InputError
from planimeter.analysis import TooFewError, granulated_tau, sign_error


def grid(population, rng, repetitions, noise=0.8, by_b=-0.3):
    a, b, _ = (
        v.ravel() for v in np.meshgrid([0, 1, 2], [0, 1, 2], range(repetitions), indexing="ij")
    )
    outcome = a + 0.5 * b + noise * rng.normal(size=a.size)
    quantity = a + by_b * b + 0.5 * outcome + noise * rng.normal(size=a.size)
    return population({"m": quantity}, {"error": outcome}, {"a": a, "b": b})


def test_without_repetitions_it_is_kendalls_in_every_row_and_column(population):
    whole = grid(population, np.random.default_rng(0), 1)
    found = granulated_tau(whole, "m", "error")
    for name, other in (("a", "b"), ("b", "a")):
        rows = [
            stats.kendalltau(p.column("m").values, p.column("error").values).statistic
            for p in whole.by(other).values()
        ]
        assert found.by_factor[name].value == pytest.approx(np.mean(rows))
    assert found.value == pytest.approx(np.mean([r.value for r in found.by_factor.values()]))


def test_a_measure_that_follows_one_strong_factor_is_found_out(population):
    a, b = (v.ravel().astype(float) for v in np.meshgrid(range(4), range(4)))
    whole = population({"m": 100 * a - b}, {"error": 100 * a + b}, {"a": a, "b": b})
    plain = stats.kendalltau(whole.column("m").values, whole.column("error").values).statistic
    found = granulated_tau(whole, "m", "error")
    assert plain == pytest.approx(0.6)
    assert (found.by_factor["a"].value, found.by_factor["b"].value, found.value) == (1, -1, 0)
    errors = sign_error(whole, "m", "error")
    assert (errors.value, errors.worst, errors.environments) == (0.5, 1, 48)
    factor, low, high, others = errors.worst_environment
    assert (factor, low, high, others) == ("b", 0, 1, {"a": 0})


@pytest.mark.slow
@pytest.mark.parametrize("repetitions", [2, 6])
@pytest.mark.parametrize("analysis", [granulated_tau, sign_error])
def test_intervals_cover(population, coverage, repetitions, analysis):
    truth = analysis(grid(population, np.random.default_rng(9), 60), "m", "error").value
    share = coverage(
        lambda rng: analysis(grid(population, rng, repetitions), "m", "error"), truth, 300
    )
    assert 0.92 <= share <= 0.985


def test_what_is_wrong_is_named(population):
    whole = population({"m": np.arange(3.0)}, {"error": np.arange(3.0)}, {"a": [1, 1, 1]})
    with pytest.raises(TooFewError, match="no two members differ in one of a alone"):
        granulated_tau(whole, "m", "error")
    with pytest.raises(TooFewError, match="no two members differ"):
        sign_error(whole, "m", "error")
    with pytest.raises(InputError, match="no factors"):
        granulated_tau(population({"m": np.arange(3.0), "g": np.arange(3.0)}), "m", "g")
    with pytest.raises(InputError, match="no column 'c'"):
        granulated_tau(whole, "m", "error", factors=["c"])
