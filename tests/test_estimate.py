import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planimeter.estimate import Estimate, format_with_error

numbers = st.floats(0.1, 100)
errors = st.floats(0.001, 1)


@given(numbers, errors, numbers, errors)
def test_errors_add_in_quadrature(x, dx, y, dy):
    total = Estimate(x, dx) + Estimate(y, dy)
    assert total.value == x + y
    assert total.stderr == pytest.approx(math.hypot(dx, dy))
    assert (Estimate(x, dx) - Estimate(y, dy)).stderr == pytest.approx(math.hypot(dx, dy))


@given(numbers, errors, numbers, errors)
def test_relative_errors_add_for_products_and_quotients(x, dx, y, dy):
    relative = math.hypot(dx / x, dy / y)
    for result in (Estimate(x, dx) * Estimate(y, dy), Estimate(x, dx) / Estimate(y, dy)):
        assert result.stderr == pytest.approx(relative * abs(result.value))


@given(numbers, errors)
def test_functions_follow_their_derivatives(x, dx):
    assert Estimate(x, dx).log().stderr == pytest.approx(dx / x)
    assert Estimate(x, dx).sqrt().stderr == pytest.approx(dx / (2 * math.sqrt(x)))
    assert (3 - Estimate(x, dx)).stderr == pytest.approx(dx)
    assert (2 / Estimate(x, dx)).value == pytest.approx(2 / x)


def test_a_doubtful_operand_makes_the_result_doubtful():
    assert not (Estimate(1.0, converged=False) + Estimate(2.0)).converged
    assert "NOT CONVERGED" in str(Estimate(1.0, converged=False))


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (93.71, 1.23, "93.7 ± 1.2"),
        (-131.4462, 0.0231, "-131.446 ± 0.023"),
        (1234.0, 150.0, "1230 ± 150"),
        (3.2e-9, 4e-11, "(3.200 ± 0.040)e-09"),
        (-2.720499160225947, 1.5e-14, "-2.720499160226 ± 1.5e-14"),
        (0.25, 4e-9, "0.2500000000 ± 4.0e-09"),
        (0.5, 0.0, "0.5"),
    ],
)
def test_prints_to_the_precision_of_the_error(value, stderr, text):
    assert format_with_error(value, stderr) == text


def test_refuses_a_negative_error():
    with pytest.raises(ValueError, match="negative"):
        Estimate(1.0, -0.1)


@given(numbers, errors, numbers, errors)
def test_operands_that_share_an_error_are_no_independent_ones(x, dx, y, dy):
    one, other = Estimate(x, dx), Estimate(y, dy)
    assert (one - one).stderr == 0
    assert (one / one).stderr == pytest.approx(0, abs=1e-12)
    assert (one + one).stderr == pytest.approx(2 * dx)
    assert (one * one).stderr == pytest.approx(2 * x * dx)
    assert (one * one * one).stderr == pytest.approx(3 * x * x * dx)
    assert ((one + other) - other).stderr == pytest.approx(dx)
    assert ((one * other) / other).stderr == pytest.approx(dx)
    assert (one.log() - (2 * one).log()).stderr == pytest.approx(0, abs=1e-12)
    assert ((one * one).sqrt()).stderr == pytest.approx(dx)
    # f = x / (x + y): both slopes with x once
    share = one / (one + other)
    slopes = (y / (x + y) ** 2, -x / (x + y) ** 2)
    assert share.stderr == pytest.approx(math.hypot(slopes[0] * dx, slopes[1] * dy))


def test_equal_estimates_are_not_therefore_the_same_one():
    assert (Estimate(2.0, 0.1) - Estimate(2.0, 0.1)).stderr == pytest.approx(0.1 * 2**0.5)
    assert Estimate(2.0, 0.1) == Estimate(2.0, 0.1)
    assert len({Estimate(2.0, 0.1), Estimate(2.0, 0.1)}) == 1


def test_shared_errors_survive_pickling_together():
    one = Estimate(3.0, 0.2)
    again, double = pickle.loads(pickle.dumps((one, one + one)))
    assert (double - again - again).stderr == pytest.approx(0, abs=1e-15)
    assert again.as_dict() == one.as_dict()
