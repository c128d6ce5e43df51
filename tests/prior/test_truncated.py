import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from planimeter.prior import truncated


@pytest.mark.parametrize(
    "h", [-1e6, -200.0, -61.0, -59.0, -40.0, -21.0, -19.0, -8.0, -1.0, 0.0, 2.0, 9.0]
)
def test_moments_and_cumulants_against_high_precision(h):
    """Against central moments by an exact recurrence in 80 digits."""
    with mpmath.workdps(80):
        ratio = mpmath.npdf(h) / mpmath.ncdf(h)
        raw = [mpmath.mpf(1), h + ratio]  # E[z^k], z = h + x, x > -h: integration by parts
        for k in range(2, 5):
            raw.append(h * raw[k - 1] + (k - 1) * raw[k - 2])
        _, m1, m2, m3, m4 = raw
        variance = m2 - m1**2
        third = m3 - 3 * m1 * m2 + 2 * m1**3
        fourth = m4 - 4 * m1 * m3 - 3 * m2**2 + 12 * m1**2 * m2 - 6 * m1**4
        log_mass = mpmath.log(mpmath.ncdf(h))
        expected = [float(v) for v in (log_mass, m1, variance, third, fourth)]
    mean, unit = torch.tensor([h]).double(), torch.ones(1).double()
    found = [*truncated.moments(mean, unit), *truncated.third_and_fourth_cumulants(mean, unit)]
    for value, exact in zip(found[:3], expected[:3], strict=True):
        assert float(value) == pytest.approx(exact, rel=1e-8, abs=1e-16)
    for value, exact in zip(found[3:], expected[3:], strict=True):
        assert float(value) == pytest.approx(
            exact, rel=1e-4, abs=1e-13 * abs(h) ** -4 if h < -1 else 1e-13
        )


def test_scale_enters_as_a_power():
    mean, unit = torch.tensor([0.7]).double(), torch.ones(1).double()
    one, scaled = (truncated.third_and_fourth_cumulants(s * mean, s * s * unit) for s in (1.0, 3.0))
    assert float(scaled[0]) == pytest.approx(27 * float(one[0]))
    assert float(scaled[1]) == pytest.approx(81 * float(one[1]))


@pytest.mark.parametrize("h", [-300.0, -35.0, -29.0, -3.0, 0.0, 4.0])
def test_draws_have_the_truncated_distribution(h):
    u = (torch.arange(2000).double() + 0.5) / 2000
    draws, log_mass = truncated.draw(torch.full((2000,), h, dtype=torch.float64), u)
    assert float(draws.min()) >= -h - 1e-12
    np.testing.assert_allclose(log_mass.numpy(), stats.norm.logcdf(h), rtol=1e-12)
    # The upper tail probability of x given x > -h is uniform.
    upper = np.exp(stats.norm.logsf(draws.numpy()) - stats.norm.logcdf(h))
    np.testing.assert_allclose(np.sort(upper), u.numpy(), rtol=1e-8)
