import math

import mpmath
import pytest
import torch

from planimeter.prior import fully_connected_kernel
from planimeter.prior.orthant.cumulant_correction import cumulant_correction
from planimeter.prior.orthant.expectation_propagation import (
    expectation_propagation,
    posterior_covariance,
)

# The table of EP and corrected values that this chain is known to give, on unit-norm digits with
# sigma_w^2 = 2, sigma_b^2 = 0.01; computed with an independent program.
TABLE = [
    (100, -45.371, -45.159),
    (300, -83.531, -82.942),
    (600, -132.347, -131.368),
    (1100, -171.328, -169.884),
]


def flipped(kernel, labels):
    signs = 2.0 * labels - 1
    return kernel * signs * signs[:, None]


def equicorrelated(rho, n):
    kernel = torch.full((n, n), rho, dtype=torch.float64)
    kernel.diagonal().fill_(1.0)
    return kernel


@pytest.mark.parametrize(("n", "ep", "corrected"), TABLE)
def test_reproduces_the_known_values(digits, n, ep, corrected):
    x, labels = digits[0][:n], digits[1][:n]
    kernel = flipped(fully_connected_kernel(x, sigma_b=0.1), labels)
    solution = expectation_propagation(kernel)
    assert solution.converged
    assert solution.sweeps <= 15
    assert solution.log_z == pytest.approx(ep, abs=1e-3)
    correction, ratio = cumulant_correction(solution, posterior_covariance(kernel, solution.tau))
    assert solution.log_z + correction == pytest.approx(corrected, abs=5e-3)
    assert ratio < 0.3


def test_adapts_its_damping_where_a_fixed_one_never_converges():
    solution = expectation_propagation(equicorrelated(0.9, 500))
    assert solution.converged
    assert solution.log_z == pytest.approx(-2.08, abs=0.01)
    assert solution.sweeps < 100


def test_does_not_call_a_stopped_run_converged():
    solution = expectation_propagation(equicorrelated(0.9, 50), max_sweeps=3)
    assert not solution.converged
    assert solution.sweeps == 3
    assert solution.residual > 1e-3


def test_independent_variables_are_exact():
    solution = expectation_propagation(torch.diag(torch.tensor([0.1, 1.0, 50.0]).double()))
    assert solution.log_z == pytest.approx(3 * math.log(0.5), abs=1e-9)


def test_two_variables_are_close_to_the_arcsine_law():
    for rho in (-0.5, 0.3, 0.8):
        exact = math.log(0.25 + math.asin(rho) / (2 * math.pi))
        assert expectation_propagation(equicorrelated(rho, 2)).log_z == pytest.approx(
            exact, abs=0.02
        )


def test_jitter_biases_so_none_is_added(digits):
    kernel = flipped(fully_connected_kernel(digits[0][:100], sigma_b=0.1), digits[1][:100])
    for jitter, value in ((1e-2, -45.69), (1e-1, -48.24)):
        biased = expectation_propagation(kernel + jitter * torch.eye(100)).log_z
        assert biased == pytest.approx(value, abs=0.01)


def test_posterior_covariance_against_its_definition(digits):
    kernel = flipped(fully_connected_kernel(digits[0][:40]), digits[1][:40])
    tau = torch.rand(40, dtype=torch.float64) + 0.1
    expected = torch.linalg.inv(torch.linalg.inv(kernel) + torch.diag(tau))
    torch.testing.assert_close(posterior_covariance(kernel, tau), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("weakest", [-1, -4, -9])
def test_posterior_covariance_with_weak_sites(digits, weakest):
    n = 530  # three panels
    kernel = flipped(fully_connected_kernel(digits[0][:n]), digits[1][:n])
    kernel += torch.eye(n)
    exponents = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tau = 10 ** (weakest + (3 - weakest) * exponents)
    expected = torch.linalg.inv(torch.linalg.inv(kernel) + torch.diag(tau))
    found = posterior_covariance(kernel, tau)
    torch.testing.assert_close(found, found.T, rtol=0, atol=0)
    units = expected.diagonal().rsqrt()
    errors = (found - expected) * units * units[:, None]
    assert float(errors.abs().max()) < 1e-11


def test_posterior_covariance_where_a_site_is_strong(digits):
    """Two nearly equal inputs with opposite labels, against arithmetic of 60 digits.

    Rounding the entries of B alone moves Sigma by about eps * cond(B); subtracting from the kernel
    loses all of that, T^{-1/2} (I - B^{-1}) T^{-1/2} less than a tenth.
    """
    labels = torch.tensor([0, 1] + 5 * [0, 1])
    lost = []
    for closeness in (1e-3, 1e-4, 1e-5):
        for first in range(4):
            x = digits[0][first : first + 12].clone()
            x[1] = x[0] + closeness * x[2]
            kernel = flipped(fully_connected_kernel(x), labels)
            tau = expectation_propagation(kernel).tau
            with mpmath.workdps(60):
                exact = (mpmath.matrix(kernel.tolist()) ** -1 + mpmath.diag(tau.tolist())) ** -1
            expected = torch.tensor(
                [[float(exact[i, j]) for j in range(12)] for i in range(12)], dtype=torch.float64
            )
            units = expected.diagonal().rsqrt()
            errors = (posterior_covariance(kernel, tau) - expected) * units * units[:, None]
            root = tau.sqrt()
            condition = torch.linalg.cond(root[:, None] * kernel * root + torch.eye(12))
            assert float(condition) > 1e6
            lost.append(errors.abs().max() / (torch.finfo(torch.float64).eps * condition))
    assert float(torch.stack(lost).mean()) < 0.1


@pytest.mark.data
@pytest.mark.slow
def test_mnist_has_its_known_value():
    from planimeter.data import load

    mnist = load("mnist")
    labels = (mnist.labels[:2000] >= 5).long()
    kernel = flipped(fully_connected_kernel(mnist.inputs[:2000]), labels)
    solution = expectation_propagation(kernel)
    assert solution.log_z == pytest.approx(-559.706, abs=1e-2)
    correction, _ = cumulant_correction(solution, posterior_covariance(kernel, solution.tau))
    assert solution.log_z + correction == pytest.approx(-558.706, abs=1e-2)


@pytest.mark.parametrize(("rho", "n", "limit"), [(0.99, 100, 40), (0.999, 100, 40), (0.9, 500, 25)])
def test_secants_take_out_the_collective_oscillation(rho, n, limit):
    solution = expectation_propagation(equicorrelated(rho, n))
    assert solution.converged
    assert solution.sweeps < limit
    assert solution.residual < 1e-3


def test_a_fixed_point_is_where_it_starts_from_itself(digits):
    kernel = flipped(fully_connected_kernel(digits[0][:80], sigma_b=0.1), digits[1][:80])
    first = expectation_propagation(kernel, tolerance=1e-8)
    again = expectation_propagation(kernel, initial=(first.tau, first.nu))
    assert again.sweeps == 1
    assert again.log_z == pytest.approx(first.log_z, abs=1e-7)


def test_the_workspace_holds_the_whitener_of_the_returned_sites(digits):
    kernel = flipped(fully_connected_kernel(digits[0][:80], sigma_b=0.1), digits[1][:80])
    work = torch.empty(80, 80, dtype=torch.float64)
    solution = expectation_propagation(kernel, workspace=work)
    root = solution.tau.sqrt()
    b = torch.eye(80, dtype=torch.float64) + root[:, None] * kernel * root
    torch.testing.assert_close(work, torch.linalg.inv(torch.linalg.cholesky(b)))
    covariance = posterior_covariance(kernel, solution.tau, work)
    assert covariance.data_ptr() == work.data_ptr()
    torch.testing.assert_close(covariance, posterior_covariance(kernel, solution.tau))


def test_single_precision_converges_to_its_rounding(digits):
    kernel = flipped(fully_connected_kernel(digits[0][:300], sigma_b=0.1), digits[1][:300])
    single = expectation_propagation(kernel, precision=torch.float32)
    assert single.converged
    assert single.sweeps < 30
    assert single.log_z == pytest.approx(-83.531, abs=2e-3)
