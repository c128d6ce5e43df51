import numpy as np
import pytest

from planimeter.analysis import conditional_mutual_information


def test_a_perfect_order_says_all_and_an_independent_one_nothing(population):
    rng = np.random.default_rng(0)
    y = rng.normal(size=40)
    whole = population({"same": np.exp(y), "turned": -y, "other": rng.normal(size=40)}, {"y": y})
    for name in ("same", "turned"):
        found = conditional_mutual_information(whole, name, "y", permutations=99)
        assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
        assert found.p_value == pytest.approx(0.01)
    nothing = conditional_mutual_information(whole, "other", "y", permutations=99)
    assert nothing.value < 0.05
    assert nothing.p_value > 0.05


def test_it_is_the_binary_formula(population):
    """Two signs that agree in a share q of pairs share 1 - H(q) bits of 1."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 25))
    y = x + noise
    agree = np.sign(x[:, None] - x) == np.sign(y[:, None] - y)
    q = agree[np.triu_indices(25, 1)].mean()
    expected = 1 + q * np.log2(q) + (1 - q) * np.log2(1 - q)
    found = conditional_mutual_information(population({"x": x}, {"y": y}), "x", "y", permutations=9)
    n, without = 25, []
    for i in range(25):
        keep = np.delete(np.arange(25), i)
        q = agree[np.ix_(keep, keep)][np.triu_indices(24, 1)].mean()
        without.append(1 + q * np.log2(q) + (1 - q) * np.log2(1 - q))
    assert found.value == pytest.approx(n * expected - (n - 1) * np.mean(without))


def test_what_a_factor_says_does_not_count(population):
    """The quantity knows the factor alone: within its values it knows nothing."""
    rng = np.random.default_rng(0)
    factor = np.repeat([0, 1, 2], 15)
    y = 10 * factor + rng.normal(size=45)
    quantity = 10 * factor + rng.normal(size=45)
    whole = population({"m": quantity}, {"y": y}, {"f": factor})
    found = conditional_mutual_information(whole, "m", "y", permutations=99)
    assert found.factors == ("f",)
    assert found.value < 0.05
    assert found.p_value > 0.05
    assert conditional_mutual_information(whole, "m", "y", most=0, permutations=9).value > 0.3


def test_few_repetitions_leave_the_low_end_open(population):
    rng = np.random.default_rng(0)
    whole = population({"m": np.arange(6.0)}, {"y": rng.normal(size=6)}, {"f": [0, 0, 0, 1, 1, 1]})
    found = conditional_mutual_information(whole, "m", "y", permutations=9)
    assert found.low == 0
    assert "fewer than 12" in found.notes[0]
    flat = population({"m": np.arange(4.0)}, {"y": np.ones(4)})
    assert np.isnan(conditional_mutual_information(flat, "m", "y").value)
