import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from planimeter.prior.exact_orthant import exact_log_orthant


def correlation(*pairs):
    n = 2 if len(pairs) == 1 else 3
    matrix = torch.eye(n, dtype=torch.float64)
    rows, columns = torch.tril_indices(n, n, -1)
    matrix[rows, columns] = matrix[columns, rows] = torch.tensor(pairs, dtype=torch.float64)
    return matrix


def test_one_variable():
    assert exact_log_orthant(torch.ones(1, 1)) == (math.log(0.5), 0.0)


@given(st.floats(-0.999, 0.999))
def test_two_variables_follow_the_arcsine_law(rho):
    value, _ = exact_log_orthant(correlation(rho))
    assert value == pytest.approx(math.log(0.25 + math.asin(rho) / (2 * math.pi)), abs=1e-9)


def test_two_variables_keep_their_digits_where_they_almost_exclude_each_other():
    # 1 - cos(t) = t^2 / 2: at rho = -1 + 2 sin^2(t / 2), the angle is t.
    value, _ = exact_log_orthant(correlation(-1 + 2 * math.sin(5e-5) ** 2))
    assert value == pytest.approx(math.log(1e-4 / (2 * math.pi)), abs=1e-7)


@pytest.mark.parametrize("rhos", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (-0.3, 0.6, 0.1)])
def test_three_variables_against_scipy(rhos):
    matrix = correlation(*rhos)
    value, error = exact_log_orthant(matrix)
    exact = multivariate_normal(cov=matrix.numpy(), abseps=1e-10).cdf([0.0] * 3)
    assert value == pytest.approx(math.log(exact), abs=1e-6)
    assert error < 1e-12


def test_digits_lost_to_rounding_are_told():
    value, error = exact_log_orthant(correlation(-0.5, -0.5, -0.5 + 1e-15))
    assert error > 1e-3 or value == -math.inf
