import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from planimeter.errors import InputError
from planimeter.prior.intervals import wilson_interval


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0.5, 0.999))
def test_ends_are_where_the_score_test_rejects(samples, fraction, level):
    count = round(fraction * samples)
    lower, upper = wilson_interval(np.array([count]), samples, level)
    z2 = norm.ppf((1 + level) / 2) ** 2
    assert 0 <= lower[0] <= count / samples <= upper[0] <= 1
    for end in (lower[0], upper[0]):
        distance = (count / samples - end) ** 2
        assert math.isclose(distance, z2 * end * (1 - end) / samples, rel_tol=1e-6, abs_tol=1e-12)


def test_coverage_is_near_the_level():
    counts = np.arange(201)
    lower, upper = wilson_interval(counts, 200)
    for p in (0.02, 0.1, 0.5):
        covered = binom.pmf(counts, 200, p)[(lower <= p) & (p <= upper)].sum()
        assert 0.93 < covered < 0.98


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="level"):
        wilson_interval(np.array([1]), 10, 1.0)
    with pytest.raises(InputError, match="between 0 and the 10"):
        wilson_interval(np.array([11]), 10)
