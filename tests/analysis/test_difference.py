import numpy as np
import pytest

from planimeter import InputError
from planimeter.analysis import correlation_difference
from planimeter.analysis.rank_intervals import population as of_normal


@pytest.mark.parametrize("n", [9, 20, 55])
@pytest.mark.parametrize("coefficient", ["pearson", "spearman"])
@pytest.mark.parametrize(("one", "two", "both"), [(0.6, 0.6, 0.5), (0.98, 0.6, 0.55)])
def test_intervals_cover(population, coverage, n, coefficient, one, two, both):
    root = np.linalg.cholesky([[1, both, one], [both, 1, two], [one, two, 1]])

    def analyse(rng):
        a, b, y = root @ rng.normal(size=(3, n))
        whole = population({"a": a, "b": -b}, {"y": y})
        return correlation_difference(whole, "a", "b", "y", signs=(1, -1), coefficient=coefficient)

    truth = one - two
    if coefficient == "spearman":
        truth = float(of_normal("spearman", np.array(one)) - of_normal("spearman", np.array(two)))
    assert 0.92 <= coverage(analyse, truth) <= 0.98


def test_sharing_networks_makes_it_narrower(population):
    rng = np.random.default_rng(0)
    y, rest = rng.normal(size=(2, 40))
    close = {"a": y + rest, "b": y + rest + 0.3 * rng.normal(size=40)}
    apart = {"a": y + rest, "b": y + rng.permutation(rest)}
    widths = []
    for quantities in (close, apart):
        found = correlation_difference(population(quantities, {"y": y}), "a", "b", "y")
        widths.append(found.high - found.low)
    assert widths[0] < 0.7 * widths[1]


def test_a_quantity_against_itself_and_what_is_refused(population):
    x = np.arange(10.0)
    y = x + np.random.default_rng(0).normal(size=10)
    whole = population({"a": x, "b": 2 * x}, {"y": y})
    same = correlation_difference(whole, "a", "b", "y")
    assert same.value == pytest.approx(0)
    apart = population({"a": x, "b": np.random.default_rng(1).permutation(y)}, {"y": y})
    other = correlation_difference(apart, "a", "b", "y")
    assert same.low <= 0 <= same.high
    assert same.high - same.low < 0.3 * (other.high - other.low)
    assert np.isnan(correlation_difference(whole.take([0, 1, 2]), "a", "b", "y").value)
    with pytest.raises(InputError, match="signs are 1 or -1"):
        correlation_difference(whole, "a", "b", "y", signs=(1, 0))
    with pytest.raises(InputError, match="pearson or spearman"):
        correlation_difference(whole, "a", "b", "y", coefficient="kendall")
