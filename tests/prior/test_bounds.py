import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.prior import LogProbability, function_error_bound, posterior_error_bound


def log_p(value, stderr=0.3):
    return LogProbability(value, stderr, value, value, (), 0.0, 5, 1e-5, True)


def test_equation_four_of_the_paper():
    bound = function_error_bound(log_p(-200.0), 1000, delta=0.01)
    assert bound.value == pytest.approx((200 + math.log(100)) / 1000)
    assert bound.estimate.stderr == pytest.approx(0.3 / 1000)
    assert not bound.vacuous
    assert "0.99" in str(bound)


def test_the_pac_bayes_bound_inverts_its_statement():
    bound = posterior_error_bound(Estimate(-150.0, 2.0), 500, delta=0.05)
    assert -math.log(1 - bound.value) == pytest.approx((150 + math.log(1000 / 0.05)) / 499)
    assert bound.estimate.stderr == pytest.approx((1 - bound.value) * 2.0 / 499)


@given(st.floats(-5000, 0), st.integers(2, 10_000), st.floats(1e-6, 0.999))
def test_the_second_is_a_probability_and_both_fall_with_log_p(value, m, delta):
    for kind in (function_error_bound, posterior_error_bound):
        bound, rarer = kind(log_p(value), m, delta), kind(log_p(value - 1), m, delta)
        assert 0 <= bound.value <= rarer.value
        assert bound.vacuous == (bound.value >= 0.5)
    assert posterior_error_bound(log_p(value), m, delta).value <= 1


def test_the_error_is_the_spread_of_the_bound():
    low, high = (posterior_error_bound(log_p(-150.0 + d, 0.0), 500).value for d in (-1e-3, 1e-3))
    slope = (low - high) / 2e-3
    assert posterior_error_bound(log_p(-150.0, 2.0), 500).estimate.stderr == pytest.approx(
        2.0 * slope, rel=1e-5
    )


def test_a_bound_that_says_nothing_says_so():
    bound = function_error_bound(log_p(-700.0), 1000)
    assert bound.vacuous
    assert "VACUOUS" in str(bound)


@pytest.mark.parametrize(
    ("value", "m", "delta", "message"),
    [(-5.0, 0, 0.1, "at least"), (-5.0, 10, 0.0, "delta"), (3.0, 10, 0.1, "not the logarithm")],
)
def test_nonsense_is_refused(value, m, delta, message):
    for kind in (function_error_bound, posterior_error_bound):
        with pytest.raises(InputError, match=message):
            kind(log_p(value), m, delta)
