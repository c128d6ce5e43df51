"""Digits that a kernel does not have are said, or the value is refused."""

import math
from dataclasses import replace

import pytest
import torch

from planimeter.errors import InputError
from planimeter.prior import fully_connected_kernel, log_prior
from planimeter.prior.orthant.expectation_propagation import (
    expectation_propagation,
    posterior_covariance,
)
from planimeter.prior.orthant.kernel_rounding import kernel_rounding
from planimeter.prior.orthant.signed_kernel import check_kernel


def repeated(distance, seed=1):
    """60 inputs, and the first of them again at a distance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 5, dtype=torch.float64, generator=generator)
    step = torch.randn(1, 5, dtype=torch.float64, generator=generator)
    labels = torch.arange(60) % 2
    return torch.cat([x, x[:1] + distance * step]), labels


def ep_of(kernel, signs):
    signed = check_kernel(kernel, len(kernel)).signed(signs)
    solution = expectation_propagation(signed, tolerance=1e-10)
    return solution, signed


@pytest.mark.parametrize("distance", [None, 0.1, 0.01])
def test_the_stated_error_is_that_of_random_rounding(distance):
    x, labels = repeated(distance or 1.0)
    signs = 2.0 * torch.cat([labels, 1 - labels[:1]]).double() - 1
    kernel = fully_connected_kernel(x)
    solution, signed = ep_of(kernel, signs)
    size = 3e-8  # of random errors: far more than float64's rounding
    posterior = posterior_covariance(signed, solution.tau)
    stated = kernel_rounding(replace(signed, eps=size), solution, posterior)
    moves = []
    scale = kernel.diagonal().sqrt()
    for seed in range(40):
        noise = torch.randn(61, 61, generator=torch.Generator().manual_seed(seed)).double()
        noise = (noise.tril() + noise.tril(-1).T) * size * scale * scale[:, None]
        moves.append(ep_of(kernel + noise, signs)[0].log_z - solution.log_z)
    seen = math.sqrt(sum(m**2 for m in moves) / len(moves))
    # Twice the error of entries that are rounded by one unit: what other kernels may have.
    assert stated == pytest.approx(2 * seen, rel=0.35)


@pytest.mark.parametrize("distance", [10.0**-k for k in range(1, 13)])
def test_near_duplicates_of_two_labels_at_every_distance(distance):
    """P falls like the distance: by EP in float64, and in float32 as long as it has the digits."""
    x, labels = repeated(distance)
    opposite = torch.cat([labels, 1 - labels[:1]])
    far, reference = repeated(1e-3)[0], 1e-3
    expected = log_prior(fully_connected_kernel(far), opposite, method="ep").corrected
    expected += math.log(distance / reference)
    try:
        double = log_prior(fully_connected_kernel(x), opposite)
    except InputError as error:
        assert distance < 1e-6
        assert "ill-conditioned" in str(error)  # noqa: PT017
    else:
        assert abs(double.value - expected) < 4 * double.stderr + 0.1 + 20 * distance
    single = fully_connected_kernel(x, dtype=torch.float32)
    for kernel in (single, single.double(), single.numpy()):
        if distance <= 1e-8:  # the inputs themselves are equal in float32
            assert "cannot tell equal inputs from almost" in str(log_prior(kernel, opposite))
        elif distance < 3e-3:
            with pytest.raises(InputError, match=r"float32.*compute"):
                log_prior(kernel, opposite)
        else:
            found = log_prior(kernel, opposite)
            assert abs(found.value - double.value) < 3 * math.hypot(found.stderr, double.stderr)


@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-5, 1e-7, 1e-9, 1e-12])
def test_near_duplicates_of_one_label_cost_nothing(distance):
    """The further input has the same label with a probability of 1 - 3.6 distance, to first order
    (seen at 0.03, 0.01 and 0.001), whatever the dtype."""
    x, labels = repeated(distance)
    same = torch.cat([labels, labels[:1]])
    alone = log_prior(fully_connected_kernel(x[:60]), labels)
    found = [
        log_prior(fully_connected_kernel(x, dtype=d), same) for d in (torch.float64, torch.float32)
    ]
    for one in found:
        apart = one.value - alone.value + 3.6 * distance
        assert abs(apart) < 4 * math.hypot(one.stderr, alone.stderr) + distance**2
        assert one.alarms == ()
    assert abs(found[0].value - found[1].value) < math.hypot(found[0].stderr, found[1].stderr)


def test_equal_inputs_in_float32_are_impossible_and_it_is_said_what_float32_can_tell():
    x, labels = repeated(0.0)
    found = log_prior(
        fully_connected_kernel(x, dtype=torch.float32), torch.cat([labels, 1 - labels[:1]])
    )
    assert found.value == -math.inf
    assert found.impossible == (0, 60)
    assert "cannot tell equal inputs from almost equal ones" in str(found)


def test_alternating_labels_on_a_smooth_kernel():
    i = torch.arange(15.0, dtype=torch.float64)
    kernel, turns = torch.exp(-((i[:, None] - i) ** 2) / 8), torch.arange(15) % 2
    exact = log_prior(kernel, turns)
    assert abs(exact.value + 69.3745) < 3 * exact.stderr
    for lesser in (kernel.float(), kernel.float().double()):
        with pytest.raises(InputError, match=r"rounding of float32.*compute it in float64"):
            log_prior(lesser, turns)


@pytest.mark.parametrize("n", [2, 3])
def test_closed_forms_know_the_rounding_of_their_kernel(n):
    gap = 1e-5
    kernel = torch.full((n, n), 0.2, dtype=torch.float64).fill_diagonal_(1.0)
    kernel[0, 1] = kernel[1, 0] = 1 - gap
    labels = torch.tensor([0, 1, 1])[:n]
    exact = log_prior(kernel, labels, method="exact")
    found = log_prior(kernel.float(), labels, method="exact")
    assert exact.stderr < 1e-9
    assert 0 < abs(found.value - exact.value) < 3 * found.stderr < 0.1
    assert "digits of the value are lost" not in str(found)
    kernel[0, 1] = kernel[1, 0] = 1 - 1e-6
    assert "digits of the value are lost" in str(log_prior(kernel.float(), labels, method="exact"))
    kernel[0, 1] = kernel[1, 0] = 1 - 1e-7
    with pytest.raises(InputError, match="float32"):
        log_prior(kernel.float(), labels, method="exact")


def test_image_kernels_in_float32_have_all_digits_that_matter(digits):
    kernel = fully_connected_kernel(digits[0][:100], sigma_b=0.1)
    double, single = log_prior(kernel, digits[1][:100]), log_prior(kernel.float(), digits[1][:100])
    assert single.value == pytest.approx(double.value, abs=1e-3)
    assert single.stderr == pytest.approx(double.stderr, rel=0.01)
    assert single.alarms == ()
