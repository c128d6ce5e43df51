import math

import pytest
import torch

from planimeter.errors import InputError
from planimeter.prior import fully_connected_kernel, minimax_tilting
from planimeter.prior.minimax_tilting import minimax_log_orthant


def equicorrelated(rho, n):
    kernel = torch.full((n, n), rho, dtype=torch.float64)
    kernel.diagonal().fill_(1.0)
    return kernel


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.0, 0.6, 0.95])
def test_two_variables_follow_the_arcsine_law(rho):
    found = minimax_log_orthant(equicorrelated(rho, 2))
    exact = math.log(0.25 + math.asin(rho) / (2 * math.pi))
    assert found.converged
    assert abs(found.log_z - exact) < 4 * found.stderr + 1e-9


@pytest.mark.parametrize("n", [3, 30, 100])
def test_an_exact_value(n):
    found = minimax_log_orthant(equicorrelated(0.5, n))
    assert abs(found.log_z + math.log(n + 1)) < 4 * found.stderr
    assert found.log_z <= found.bound


def test_the_saddle_bounds_every_weight():
    """No weight exceeds exp(psi): the log mean of few draws of a hard case stays below, too."""
    kernel = equicorrelated(0.5, 60)
    for seed in range(20):
        found = minimax_log_orthant(kernel, samples=2, seed=seed)
        assert found.log_z <= found.bound + 1e-9


# Computed with an independent program, 20,000 draws.
@pytest.mark.parametrize(
    ("n", "flipped", "value", "effective"),
    [(100, 0, -45.14, 3173), (100, 30, -82.49, 4796), (300, 0, -82.92, 188)],
)
def test_reproduces_the_known_values(digits, flip, n, flipped, value, effective):
    kernel = fully_connected_kernel(digits[0][:n], sigma_b=0.1)
    found = minimax_tilting(kernel, flip(digits[1][:n], flipped))
    assert abs(found.log_z - value) < 4 * found.stderr
    assert found.effective_samples == pytest.approx(effective, rel=0.4)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="not positive definite"):
        minimax_log_orthant(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64))
    with pytest.raises(InputError, match="inputs 0 and 1 are the same"):
        minimax_tilting(torch.ones(2, 2, dtype=torch.float64), torch.tensor([0, 1]))
