from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planimeter.errors import InputError
from planimeter.training import constant, linear_decay, steps


def test_linear_decay_has_its_corners():
    factor = linear_decay(200, 0.01)
    assert [factor(e) for e in (0, 50, 100)] == [1, 1, 1]
    assert factor(140) == pytest.approx(1 - 0.99 / 2)
    assert [factor(e) for e in (181, 199, 1000)] == [0.01, 0.01, 0.01]
    assert factor(180) == pytest.approx(0.01)


def test_the_rate_is_halved_when_averaging_starts():
    factor = linear_decay(161, 0.5)  # SWA 0.1 to 0.05, Gadam
    assert factor(0) == 1
    assert {factor(e) for e in range(160, 300)} == {0.5}


@given(st.integers(1, 400), st.floats(0, 1))
def test_linear_decay_never_rises_and_stays_in_its_range(epochs, ratio):
    values = [linear_decay(epochs, ratio)(e) for e in range(epochs + 2)]
    assert all(a >= b - 1e-12 for a, b in pairwise(values))
    assert all(ratio - 1e-12 <= v <= 1 for v in values)


def test_steps_halve():
    factor = steps(30, 0.5)
    assert [factor(e) for e in (0, 29, 30, 59, 60, 149)] == [1, 1, 0.5, 0.5, 0.25, 0.0625]
    assert constant(10**6) == 1


def test_values_out_of_range_are_refused():
    for wrong in (lambda: linear_decay(0), lambda: linear_decay(3, 1.5), lambda: steps(0)):
        with pytest.raises(InputError):
            wrong()
