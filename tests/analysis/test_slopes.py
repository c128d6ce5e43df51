import numpy as np
import pytest
from scipy import stats

from planimeter import InputError
from planimeter.analysis import TooFewError, trend


def test_it_is_linear_regression(population):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12))
    found = trend(population({"q": y}, factors={"x": x}), "q", "x")
    expected = stats.linregress(x, y)
    assert found.value == pytest.approx(expected.slope)
    half = stats.t.ppf(0.975, 10) * expected.stderr
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))


@pytest.mark.parametrize("scale", ["linear", "log", "rank"])
def test_exact_laws(population, scale):
    x = np.array([1e-4, 1e-3, 1e-2, 1e-1] * 2)
    y = {"linear": 3 * x, "log": np.log(x), "rank": np.array([0, 1, 2, 3] * 2)}[scale] + 5
    found = trend(population({"q": y}, factors={"wd": x}), "q", "wd", scale=scale)
    assert found.value == pytest.approx({"linear": 3, "log": 1, "rank": 1}[scale])
    power = trend(
        population({"q": 7 * x**-0.5}, factors={"wd": x}), "q", "wd", scale="log", logarithm=True
    )
    assert (power.value, power.low) == pytest.approx((-0.5, -0.5))


@pytest.mark.parametrize("blocks", [4, 19])
def test_blocks_take_their_levels_out_and_intervals_cover(population, coverage, blocks):
    seed = np.repeat(np.arange(blocks), 3)
    x = np.tile([0.0, 1e-3, 1e-1], blocks)
    rank = np.tile([0, 1, 2], blocks)

    def analyse(rng):
        y = 0.4 * rank + 5 * rng.normal(size=blocks)[seed] + rng.normal(size=3 * blocks)
        whole = population({"q": y}, factors={"wd": x, "seed": seed})
        return trend(whole, "q", "wd", scale="rank", blocks="seed")

    assert 0.93 <= coverage(analyse, 0.4, 800) <= 0.975


def test_what_is_wrong_is_named(population):
    whole = population({"q": np.arange(4.0)}, factors={"x": np.ones(4), "n": np.arange(4)})
    with pytest.raises(TooFewError, match="'x' has one value: there is no trend"):
        trend(whole, "q", "x")
    with pytest.raises(TooFewError, match="one value in every block"):
        trend(whole, "q", "n", blocks="n")
    with pytest.raises(InputError, match="it has no logarithm"):
        trend(whole, "q", "n", scale="log")
    with pytest.raises(TooFewError, match="2 members in 1 blocks"):
        trend(whole.take([0, 1]), "q", "n")
    with pytest.raises(InputError, match="scale is"):
        trend(whole, "q", "n", scale="cubic")
