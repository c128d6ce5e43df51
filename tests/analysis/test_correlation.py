import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from planimeter.analysis.correlation import correlate, correlation_table, correlations
from planimeter.analysis.rank_intervals import population as of_normal
from planimeter.errors import InputError


@given(st.integers(4, 40), st.integers(0, 1000), st.booleans())
def test_coefficients_are_scipys(n, seed, ties):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 5, n).astype(float) if ties else rng.normal(size=n)
    y = x + rng.normal(size=n)
    if np.ptp(x) == 0:
        return
    found = correlations(x, y, bootstrap=20)
    assert found["pearson"].value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["kendall"].value == pytest.approx(stats.kendalltau(x, y).statistic)


@pytest.mark.parametrize("n", [5, 50])
def test_intervals_cover_the_truth_about_as_often_as_they_say(n):
    """The bootstrap alone covers three quarters at n = 5."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        x, noise = rng.normal(size=(2, n))
        interval = correlations(x, 0.6 * x + 0.8 * noise, bootstrap=200, seed=seed)["pearson"]
        covered += interval.low <= 0.6 <= interval.high
    assert 0.92 <= covered / 200 <= 0.99


def test_perfect_ranks_of_a_few_points_leave_room():
    found = correlations(np.arange(5), np.array([1, 2, 4, 9, 30]))
    for name in ("spearman", "kendall"):
        assert found[name].high == found[name].value == 1
        assert found[name].low < 0.5
    turned = correlations(np.arange(5), -np.array([1, 2, 4, 9, 30]))["kendall"]
    assert (turned.low, turned.high) == (-1, pytest.approx(-found["kendall"].low))


def test_too_few_points_say_nothing():
    three = correlations(np.arange(3.0), np.array([0.0, 1.0, 1.5]))["pearson"]
    assert (three.low, three.high) == (-1.0, 1.0)
    assert str(correlations(np.arange(1.0), np.arange(1.0))["kendall"]) == "– (1 network)"


def test_perfect_and_undefined_correlations():
    x = np.arange(10.0)
    assert correlations(x, -x)["kendall"].value == -1
    assert np.isnan(correlations(x, np.ones(10))["pearson"].value)
    assert np.isnan(correlations(x[:2], x[:2])["pearson"].value)


def test_constant_and_broken_samples():
    assert np.isnan(correlations(np.full(7, 0.1), np.arange(7.0))["pearson"].value)
    with pytest.raises(InputError, match="one length"):
        correlations(np.arange(4.0), np.arange(5.0))
    with pytest.raises(InputError, match="finite"):
        correlations(np.array([1.0, np.nan, 2.0]), np.arange(3.0))


@pytest.mark.parametrize("n", [9, 20, 55])
@pytest.mark.parametrize("coefficient", ["pearson", "spearman", "kendall"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_intervals_are_of_the_true_numbers_behind_noisy_ones(
    population, coverage, n, coefficient, noise
):
    def analyse(rng):
        x, rest, error = rng.normal(size=(3, n))
        measured = (x + noise * error, np.full(n, noise))
        whole = population({"x": measured}, {"y": 0.8 * x + 0.6 * rest})
        return correlate(whole, "x", "y", coefficient=coefficient, bootstrap=200)

    truth = 0.8 if coefficient == "pearson" else float(of_normal(coefficient, np.array(0.8)))
    assert 0.93 <= coverage(analyse, truth, 300) <= 0.985


def test_noise_that_hides_everything_leaves_everything_open(population):
    rng = np.random.default_rng(0)
    whole = population({"x": (rng.normal(size=20), np.ones(20))}, {"y": rng.normal(size=20)})
    found = correlate(whole, "x", "y")
    assert (found.low, found.high) == (-1, 1)
    assert "hide" in found.notes[0]


def test_a_table_of_many_measures_is_wrong_as_rarely_as_one(population):
    """Of twenty measures without any correlation, none is taken for one in 19 of 20 tables."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(200):
        measures = {f"m{i}": rng.normal(size=30) for i in range(20)}
        whole = population(measures, {"error": rng.normal(size=30)})
        table = correlation_table(whole, list(measures), "error", coefficient="spearman")
        wrong += any(not r.low <= 0 <= r.high for r in table.values())
    assert wrong / 200 <= 0.08


def test_logarithms_and_unknown_names(population):
    x = np.exp(np.arange(8.0))
    whole = population({"x": x, "below": x - 3}, {"y": np.arange(8.0)})
    assert correlate(whole, "x", "y", logarithm=["x"]).value == pytest.approx(1)
    assert correlate(whole, "x", "y").value < 0.9
    with pytest.raises(InputError, match="'below' of net0 is -2: it has no logarithm"):
        correlate(whole, "below", "y", logarithm=["below"])
    with pytest.raises(InputError, match="no coefficient 'tau'"):
        correlate(whole, "x", "y", coefficient="tau")
