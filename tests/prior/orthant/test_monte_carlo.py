import math

import pytest
import torch
from scipy.stats import norm, t

from planimeter.prior.orthant import monte_carlo
from planimeter.prior.orthant.expectation_propagation import (
    EPSolution,
    expectation_propagation,
    posterior_covariance,
)
from planimeter.prior.orthant.monte_carlo import log_mean_and_error, orthant_smc


def equicorrelated(rho, n):
    kernel = torch.full((n, n), rho, dtype=torch.float64)
    kernel.diagonal().fill_(1.0)
    return kernel


def run(kernel, seed=0, max_sweeps=200, **settings):
    solution = expectation_propagation(kernel, max_sweeps=max_sweeps)
    covariance = posterior_covariance(kernel, solution.tau)
    return orthant_smc(solution, covariance, seed=seed, **settings)


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.0, 0.6, 0.95])
def test_two_variables_follow_the_arcsine_law(rho):
    exact = math.log(0.25 + math.asin(rho) / (2 * math.pi))
    result = run(equicorrelated(rho, 2), particles=20000)
    assert abs(result.log_z - exact) < 4 * result.stderr + 1e-6
    assert result.stderr < 0.01


def test_an_exact_value_in_a_hundred_dimensions():
    # rho = 1/2: P = E[Phi(t)^n] = 1 / (n + 1).
    result = run(equicorrelated(0.5, 100))
    assert abs(result.log_z + math.log(101)) < 3.5 * result.stderr


def test_unbiased_however_bad_the_sites():
    """Three sweeps leave EP far from its fixed point; the estimate must not notice."""
    kernel = equicorrelated(0.5, 30)
    poor: EPSolution = expectation_propagation(kernel, max_sweeps=1)
    assert not poor.converged
    covariance = posterior_covariance(kernel, poor.tau)
    result = orthant_smc(poor, covariance, particles=4000, runs=16)
    assert abs(result.log_z + math.log(31)) < 4 * result.stderr
    assert abs(poor.log_z + math.log(31)) > 0.1


def test_the_mean_over_runs_is_unbiased():
    values = torch.tensor(
        [
            z
            for seed in range(30)
            for z in run(equicorrelated(0.5, 5), seed, runs=50, particles=60).runs
        ]
    )
    ratios = (values + math.log(6)).exp()
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / math.sqrt(len(ratios))


def test_the_standard_error_is_honest():
    """95 % intervals cover about as often as they say.

    Weights are skewed to the right, so few particles lean low; that costs a little coverage.
    """
    exact, covered, repetitions = -math.log(31), 0, 200
    for seed in range(repetitions):
        result = run(equicorrelated(0.5, 30), seed=seed, particles=60, runs=8)
        covered += abs(result.log_z - exact) < 1.96 * result.stderr
    assert 0.87 <= covered / repetitions <= 0.995


def test_panels_do_not_change_the_result():
    one, other = (
        run(equicorrelated(0.8, 70), panel=p, particles=100, precision=torch.float64)
        for p in (16, 70)
    )
    assert one.log_z == pytest.approx(other.log_z, abs=1e-9)
    assert one.resamplings == other.resamplings


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_products_in_float32_change_less_than_they_may(rho):
    kernel = equicorrelated(rho, 200)
    double, chosen = (run(kernel, particles=200, precision=p) for p in (torch.float64, None))
    assert chosen.runs != double.runs  # it was float32
    assert torch.tensor(chosen.runs).sub(torch.tensor(double.runs)).abs().max() < 1e-4


def test_a_factor_of_large_entries_stays_in_float64(monkeypatch):
    monkeypatch.setattr(monte_carlo, "_ROUNDING", 1e-9)
    kernel = equicorrelated(0.5, 50)
    assert run(kernel, particles=50).runs == run(kernel, particles=50, precision=torch.float64).runs


def test_log_mean_and_error_of_equal_runs():
    value, stderr = log_mean_and_error(torch.full((4,), -900.0, dtype=torch.float64))
    assert value == pytest.approx(-900.0)
    assert stderr == 0


def test_the_error_is_widened_by_students_t():
    values = torch.tensor([-3.0, -3.1, -2.9, -3.05], dtype=torch.float64)
    ratios = (values + 3).exp()
    plain = float(ratios.std() / ratios.mean()) / 2
    assert log_mean_and_error(values)[1] == pytest.approx(t.ppf(0.975, 3) / norm.ppf(0.975) * plain)


def test_a_wanted_error_is_not_believed_before_eight_runs():
    """Two runs that happen to agree say nothing."""
    for seed in range(4):
        kernel = equicorrelated(0.5, 20)
        assert len(run(kernel, seed, particles=50, runs=2, stderr=10.0).runs) == 8
        assert len(run(kernel, seed, particles=50, runs=2, stderr=10.0, max_runs=5).runs) == 5
        assert len(run(kernel, seed, particles=50, runs=2).runs) == 2


def test_runs_where_nothing_was_found_are_no_number():
    value, stderr = log_mean_and_error(torch.full((4,), -math.inf, dtype=torch.float64))
    assert value == -math.inf
    assert math.isnan(stderr)
