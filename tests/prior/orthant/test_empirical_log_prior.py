import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.estimate import widening
from planimeter.models.fully_connected import fully_connected
from planimeter.prior import (
    empirical_kernel,
    empirical_log_prior,
    fully_connected_kernel,
    gaussian_initialisation,
    log_prior,
    nngp_kernel,
)

INITIALISE = gaussian_initialisation(math.sqrt(2), 0.1)


def kernel_of(x, networks, seed=0, **settings):
    net = fully_connected(64, [40, 40]).double()
    return empirical_kernel(
        net, x, networks=networks, sigma_b=0.1, initialise=INITIALISE, seed=seed, **settings
    )


def on_kernel(estimate, labels):
    return empirical_log_prior(estimate, labels, particles=20, runs=2)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "networks", "flipped"), [(300, 10, 0), (120, 10, 36), (120, 40, 0)])
def test_the_stated_error_is_the_spread_over_seeds(digits, n, networks, flipped):
    x, y = digits[0][:n], digits[1][:n].clone()
    y[np.random.RandomState(1).permutation(n)[:flipped]] ^= 1
    found = [on_kernel(kernel_of(x, networks, seed), y) for seed in range(20)]
    values = np.array([f.orthant.corrected for f in found])
    stated = math.sqrt(np.mean([f.kernel_stderr**2 for f in found])) / widening(found[0].dof + 1)
    assert 0.6 < stated / values.std(ddof=1) < 1.6
    # And most of what such a kernel is wrong by on average is the stated bias.
    exact = log_prior(fully_connected_kernel(x, sigma_b=0.1), y, particles=20, runs=2).corrected
    bias = np.mean([f.kernel_bias for f in found])
    assert 0.4 < bias / (values.mean() - exact) < 2.5


def test_ten_narrow_networks_are_dominated_by_the_kernels_noise(digits):
    x, y = digits[0][:300], digits[1][:300]
    found = empirical_log_prior(kernel_of(x, 10), y)
    assert found.kernel_stderr > 5 * found.orthant.stderr
    assert found.stderr == math.hypot(found.kernel_stderr, found.orthant.stderr)
    assert found.kernel_bias < -2
    # The value on the analytic kernel is -82.96.
    assert abs(found.debiased.value + 82.96) < 3 * found.stderr
    assert f"from {found.networks} networks" in str(found)
    assert found.as_dict()["orthant"]["value"] == found.value


def test_the_error_is_the_jackknifes(digits):
    x, y = digits[0][:30], digits[1][:30]
    estimate = kernel_of(x, 20, groups=4)
    found = on_kernel(estimate, y)
    thetas = []
    for j in range(4):
        rest = torch.cat([estimate.groups[:j], estimate.groups[j + 1 :]]).mean(0)
        thetas.append(log_prior(rest, y, particles=2, runs=2).corrected)
    assert found.deleted == pytest.approx(thetas, abs=1e-6)
    thetas = np.array(thetas)
    assert found.kernel_stderr == pytest.approx(widening(4) * math.sqrt(3 * thetas.var()), rel=1e-4)
    assert found.kernel_bias == pytest.approx(
        3 * (thetas.mean() - found.orthant.corrected), abs=1e-4
    )


def test_noise_of_the_kernel_is_used(digits):
    x, y = digits[0][:100], digits[1][:100]
    estimate = kernel_of(x, 3, groups=3, noise=1.0)
    assert estimate.networks * estimate.width < 2 * 100
    found = on_kernel(estimate, y)
    assert found.orthant.noise == 1.0
    assert math.isfinite(found.stderr)


def test_too_few_networks_for_the_labels_leave_no_error(digits):
    x, y = digits[0][:100], digits[1][:100]
    narrow = empirical_kernel(
        fully_connected(64, [5]).double(), x, networks=3, groups=3, initialise=INITIALISE
    )
    found = on_kernel(narrow, y)
    assert found.value == -math.inf
    assert found.orthant.rank <= 16
    assert math.isnan(found.stderr)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["kernel_stderr"] is None


def test_contradictions_and_missing_groups(digits):
    x, y = (
        torch.cat([digits[0][:20], digits[0][:1]]),
        torch.cat([digits[1][:20], 1 - digits[1][:1]]),
    )
    found = on_kernel(kernel_of(x, 10), y)
    assert found.value == -math.inf
    assert found.deleted == ()
    with pytest.raises(InputError, match="groups=0"):
        empirical_log_prior(kernel_of(x, 10, groups=0), y)


@pytest.mark.slow
def test_the_jackknifes_interval_covers_the_analytic_kernels_value(digits):
    """One hidden layer: the kernel measured is the analytic one in the mean, at any width."""
    x, labels = digits[0][:60] / 8, digits[1][:60]
    net = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 1)).double()
    initialise = gaussian_initialisation(2**0.5, 0.5)
    truth = log_prior(nngp_kernel(net, x, sigma_w=2**0.5, sigma_b=0.5), labels).value
    covered = 0
    for seed in range(200):
        kernel = empirical_kernel(
            net, x, networks=200, sigma_w=2**0.5, sigma_b=0.5, initialise=initialise, seed=seed
        )
        found = empirical_log_prior(kernel, labels, particles=200, seed=seed).debiased
        covered += abs(found.value - truth) <= 1.96 * found.stderr
    assert 0.92 <= covered / 200 <= 0.985
