import numpy as np
import pytest

from planimeter.analysis.reliability import rank_reliability, reliability


@pytest.mark.parametrize(
    ("noise", "shape"),
    [(0.0, np.exp), (0.2, np.exp), (0.2, np.array), (0.5, np.array), (1.0, np.array)],
)
def test_it_is_the_share_of_the_variance_that_is_not_noise(noise, shape):
    """Ranks see it on any scale on which the errors are small enough to be carried over."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=4000) + noise * rng.normal(size=4000)
    expected = 1 / (1 + noise**2)
    errors = np.full(4000, noise)
    assert reliability(values, errors) == pytest.approx(expected, abs=0.03)
    slope = 1.0 if shape is not np.exp else np.exp(values)
    assert rank_reliability(shape(values), slope * errors) == pytest.approx(expected, abs=0.12)


def test_nothing_but_noise_is_unreliable():
    rng = np.random.default_rng(0)
    assert reliability(rng.normal(size=500), np.full(500, 1.2)) == 0
    assert rank_reliability(1e-3 * rng.normal(size=500), np.full(500, 1.0)) < 0.05
    assert reliability(np.ones(5), np.ones(5)) == rank_reliability(np.ones(5), np.ones(5)) == 0
