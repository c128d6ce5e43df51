import math

import pytest
import torch

from planimeter.prior import fully_connected_kernel
from planimeter.prior.orthant.cumulant_correction import (
    collective_skewness,
    correction_orders,
    cumulant_correction,
)
from planimeter.prior.orthant.expectation_propagation import (
    expectation_propagation,
    posterior_covariance,
)
from planimeter.prior.orthant.signed_kernel import check_kernel
from planimeter.prior.orthant.truncated import third_and_fourth_cumulants


def skewness(kernel, labels):
    signed = check_kernel(kernel, len(kernel)).signed(2.0 * labels.double() - 1)
    solution = expectation_propagation(signed)
    posterior = posterior_covariance(signed, solution.tau)
    third, fourth = correction_orders(solution, posterior)
    assert cumulant_correction(solution, posterior) == (third + fourth, abs(fourth / third))
    return collective_skewness(solution, posterior, third), solution, posterior


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9])
def test_where_all_outputs_move_together_it_is_the_skewness_of_their_mean(rho):
    n = 200
    kernel = torch.full((n, n), rho, dtype=torch.float64).fill_diagonal_(1.0)
    found, solution, posterior = skewness(kernel, torch.ones(n))
    third, _ = third_and_fourth_cumulants(solution.cavity_mean, solution.cavity_variance)
    spread = math.sqrt(float(posterior.sum()))
    ratio = posterior.sum(1) / (spread * posterior.diagonal())
    assert found == pytest.approx(float(third @ ratio**3), rel=1e-6)
    assert found > 0.35


def test_skewness_in_many_directions_is_not_collective(digits):
    kernel = fully_connected_kernel(digits[0][:200], sigma_b=0.1)
    assert skewness(kernel, digits[1][:200])[0] == 0.0
    # Of one class it is: the same kernel, all outputs positive.
    assert skewness(kernel, torch.ones(200))[0] > 0.9
