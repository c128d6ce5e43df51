import numpy as np
import pytest
from scipy import stats

from planimeter import InputError
from planimeter.analysis import TooFewError, contrast

LARGE, SMALL = {"batch": "large"}, {"batch": "small"}


def two(population, a, b, seeds=None, errors=0.0):
    factors = {"batch": ["large"] * len(a) + ["small"] * len(b)}
    if seeds is not None:
        factors["seed"] = seeds
    values = np.concatenate([a, b])
    return population({"q": (values, np.full(len(values), errors))}, factors=factors)


def test_intervals_are_those_of_the_t_tests(population):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=9) + 1, 2 * rng.normal(size=6)
    found = contrast(two(population, a, b), "q", LARGE, SMALL)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    b = rng.normal(size=9)
    whole = two(population, a, b, [*range(9), *range(9)])
    found = contrast(whole, "q", LARGE, SMALL, pair="seed")
    expected = stats.ttest_rel(a, b).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.n == 9


def test_a_ratio_is_a_difference_of_logarithms(population):
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(size=(2, 7)))
    ratio = contrast(two(population, a, b), "q", LARGE, SMALL, ratio=True)
    logs = contrast(two(population, np.log(a), np.log(b)), "q", LARGE, SMALL)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx(
        np.exp([logs.value, logs.low, logs.high])
    )
    assert str(ratio).startswith("× ")


@pytest.mark.parametrize("n", [3, 9, 55])
@pytest.mark.parametrize("pair", [None, "seed"])
def test_intervals_cover(population, coverage, n, pair):
    def analyse(rng):
        common = rng.normal(size=n) if pair else 0.0
        a, b = common + 0.7 * rng.normal(size=n) + 1, common + 0.3 * rng.normal(size=n)
        whole = two(population, a, b, [*range(n), *range(n)])
        return contrast(whole, "q", LARGE, SMALL, pair=pair)

    assert 0.93 <= coverage(analyse, 1.0, 800) <= 0.975


def test_pairs_are_found_by_their_factor_not_by_their_place(population):
    whole = two(population, np.array([1.0, 2, 3]), np.array([30.0, 10, 20]), [0, 1, 2, 2, 0, 1])
    found = contrast(whole, "q", LARGE, SMALL, pair="seed", ratio=True)
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low == pytest.approx(0)
    partly = contrast(whole.take([0, 1, 3, 4, 5]), "q", LARGE, SMALL, pair="seed")
    assert partly.n == 2
    assert partly.notes == ("1 members have no partner and are left out",)


def test_one_member_each_has_the_errors_of_measurement_alone(population):
    found = contrast(two(population, [3.0], [1.0], errors=0.5), "q", LARGE, SMALL)
    assert found.high - found.value == pytest.approx(1.959964 * 0.5 * 2**0.5)
    exact = contrast(two(population, [3.0], [1.0]), "q", LARGE, SMALL)
    assert (exact.low, exact.high) == (-np.inf, np.inf)


def test_what_is_wrong_is_named(population):
    whole = two(population, np.array([1.0, -2]), np.array([1.0, 2]), [0, 1, 2, 3])
    with pytest.raises(InputError, match="'q' of net1 is -2: a ratio needs positive"):
        contrast(whole, "q", LARGE, SMALL, ratio=True)
    with pytest.raises(InputError, match="in common"):
        contrast(whole, "q", LARGE, LARGE)
    with pytest.raises(TooFewError, match="there are no pairs"):
        contrast(whole, "q", LARGE, SMALL, pair="seed")
    with pytest.raises(InputError, match="more than once"):
        contrast(two(population, [1.0, 2], [1.0, 2], [0, 0, 0, 1]), "q", LARGE, SMALL, pair="seed")
    with pytest.raises(TooFewError, match="no member has"):
        contrast(whole, "q", LARGE, {"batch": "middling"})
