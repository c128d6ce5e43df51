"""Kernels of low rank: the orthant is a cone, and its probability an integral in r dimensions."""

import math

import pytest
import torch

from planimeter.errors import InputError
from planimeter.prior import empirical_kernel, log_posterior, log_prior, log_priors, minimax_tilting
from planimeter.prior.orthant.closed_forms import exact_log_cone
from planimeter.prior.orthant.cone_monte_carlo import cone_smc
from planimeter.prior.orthant.expectation_propagation import (
    expectation_propagation,
    posterior_covariance,
)
from planimeter.prior.orthant.feasible import has_inside
from planimeter.prior.orthant.low_rank import LowRankKernel, low_rank
from planimeter.prior.orthant.signed_kernel import check_kernel, dense


def features(n, r, seed=0):
    """Random features, and labels that one function of them has."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, r, dtype=torch.float64, generator=generator)
    return a, a @ torch.randn(r, dtype=torch.float64, generator=generator) > 0


def cone_of(a, labels):
    rows = a / a.norm(dim=1, keepdim=True) * (2.0 * labels.double() - 1)[:, None]
    return LowRankKernel(rows, torch.zeros(len(a), dtype=torch.float64), 2.0**-52, clear=True)


def smooth(count=100):
    line = torch.linspace(0, 12.566, count, dtype=torch.float64)
    return line, 3.19 * torch.exp(-0.5 * (line[:, None] - line) ** 2 / 1.47**2)


def spherical_polygon(rows):
    """The share of directions with all rows @ u > 0 in three dimensions, by Girard's theorem."""
    corners = []
    for i in range(len(rows)):
        for j in range(i):
            corner = torch.linalg.cross(rows[i], rows[j])
            corner = corner / corner.norm()
            for sign in (1, -1):
                others = [k for k in range(len(rows)) if k not in (i, j)]
                if bool((rows[others] @ (sign * corner) > 0).all()):
                    corners.append((i, j))
    angles = [
        math.pi - math.acos(float(rows[i] @ rows[j] / rows[i].norm() / rows[j].norm()))
        for i, j in corners
    ]
    return (sum(angles) - (len(angles) - 2) * math.pi) / (4 * math.pi)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [4, 20, 300])
def test_rank_two_is_an_angle(n, dtype):
    for seed in range(5):
        a, labels = features(n, 2, seed)
        if dtype == torch.float64:
            assert log_prior(a @ a.T, labels).method == "exact"
        found = log_prior((a @ a.T).to(dtype), labels, method="exact")
        # The half-planes between which the labels do not change: next normals on either side.
        rows = a * (2.0 * labels.double() - 1)[:, None]
        inside = rows.sum(0)
        for _ in range(100_000):  # the perceptron's rule finds an inner direction
            wrong = (rows @ inside <= 0).nonzero().reshape(-1)
            if not len(wrong):
                break
            inside = inside + rows[wrong[0]]
        middle = math.atan2(float(inside[1]), float(inside[0]))
        turned = torch.remainder(torch.atan2(rows[:, 1], rows[:, 0]) - middle + math.pi, math.tau)
        angle = math.pi - float(turned.max() - turned.min())
        tolerance = 1e-9 if dtype == torch.float64 else 5 * found.stderr
        assert found.value == pytest.approx(math.log(angle / math.tau), abs=tolerance)


@pytest.mark.parametrize("seed", range(4))
def test_sampling_agrees_with_the_angle(seed):
    a, labels = features(30, 2, seed)
    cone = cone_of(a, labels)
    exact = exact_log_cone(cone.factor)[0]
    found = cone_smc(cone, expectation_propagation(cone), particles=1000)
    assert abs(found.log_z - exact) < 4 * found.stderr
    assert found.stderr < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_rank_three_is_a_spherical_polygon(seed):
    a, labels = features(12, 3, seed)
    found = log_prior(a @ a.T, labels)
    exact = math.log(spherical_polygon(cone_of(a, labels).factor))
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr < 0.05


def test_as_many_constraints_as_dimensions_is_an_orthant():
    """Minimax tilting shares nothing with either way."""
    a, labels = features(12, 12)
    reference = minimax_tilting(a @ a.T, labels, samples=100_000)
    cone = cone_of(a, labels)
    found = cone_smc(cone, expectation_propagation(cone))
    assert abs(found.log_z - reference.log_z) < 4 * math.hypot(found.stderr, reference.stderr)


def test_unbiased_for_any_sites():
    a, labels = features(40, 2, 1)
    cone = cone_of(a, labels)
    poor = expectation_propagation(cone, max_sweeps=1)
    found = cone_smc(cone, poor, particles=4000, runs=16)
    assert abs(found.log_z - exact_log_cone(cone.factor)[0]) < 4 * found.stderr


@pytest.mark.parametrize("negative", [0, 7])
def test_ep_in_r_dimensions_is_ep_in_n(negative):
    a, labels = features(25, 25)
    labels[:negative] = ~labels[:negative]
    cone = cone_of(a, labels)
    plain = cone.factor @ cone.factor.T
    one, other = (expectation_propagation(k, tolerance=1e-9) for k in (cone, plain))
    assert one.log_z == pytest.approx(other.log_z, abs=1e-7)
    torch.testing.assert_close(
        posterior_covariance(cone, one.tau), posterior_covariance(plain, one.tau)
    )
    torch.testing.assert_close(one.mean, other.mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("n", "r"), [(30, 10), (60, 20), (40, 32)])
def test_noise_that_vanishes_leads_there(n, r):
    a, labels = features(n, r)
    found = log_prior(a @ a.T, labels)
    noisy = log_prior(a @ a.T, labels, noise=1e-8, particles=4000)
    assert abs(found.value - noisy.value) < 4 * math.hypot(found.stderr, noisy.stderr)


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_a_smooth_kernel_is_continuous_where_its_spectrum_ends_in_rounding(turns):
    """An RBF kernel on a line: 28 of 100 dimensions in float64, and no gap that says so."""
    line, kernel = smooth()
    labels = torch.sin(turns * line) > 0
    found = log_prior(kernel, labels)
    for noise in (1e-11, 1e-9):
        noisy = log_prior(kernel, labels, noise=noise, particles=4000)
        assert abs(found.value - noisy.value) < 4 * math.hypot(found.stderr, noisy.stderr)


def test_a_smooth_kernel_is_no_proof_that_labels_are_impossible():
    _, kernel = smooth()
    with pytest.raises(InputError, match="ill-conditioned"):
        log_prior(kernel, torch.arange(100) % 2)
    assert math.isfinite(log_prior(kernel, torch.arange(100) % 2, noise=1e-6).value)


def test_labels_that_no_function_has_are_impossible_with_a_proof():
    a, labels = features(40, 5)
    labels[3] = ~labels[3]
    cone = cone_of(a, labels)
    assert not has_inside(cone)[0]
    found = log_prior(a @ a.T, labels)
    assert found.value == -math.inf
    assert found.rank == 5
    against = list(found.impossible)
    assert 2 <= len(against) <= 6
    # A positive combination of these rows is 0: the only one up to a factor.
    combination = torch.linalg.svd(cone.factor[against].T)[2][-1]
    assert float((combination @ cone.factor[against]).norm()) < 1e-12
    assert bool((combination * combination.sum().sign() > 0).all())
    assert "has rank 5, and no function of it has the labels of inputs" in str(found)
    assert found.as_dict()["impossible"] == found.impossible
    # Without one of them it is possible.
    rest = [i for i in range(40) if i != against[0]]
    assert (
        math.isfinite(log_prior(a[rest] @ a[rest].T, labels[rest]).value)
        or has_inside(cone_of(a[rest], labels[rest]))[0] is False
    )


def test_contradictory_duplicates_keep_their_message():
    a, labels = features(20, 4)
    a[7], labels[7] = a[2], ~labels[2]
    found = log_prior(a @ a.T, labels)
    assert found.impossible == (2, 7)
    assert "inputs 2 and 7 are the same but labelled differently" in str(found)


@pytest.mark.parametrize("gap", [1e-9, 1e-11, 1e-12, 2e-13, 1.5e-13])
def test_two_almost_equal_outputs(gap):
    """Of one label they cost nothing; of two, P is the angle between them."""
    n = 100
    kernel = torch.eye(n, dtype=torch.float64)
    kernel[0, 1] = kernel[1, 0] = 1 - gap
    same = log_prior(kernel, torch.ones(n))
    assert same.value == pytest.approx((n - 1) * math.log(0.5), abs=4 * same.stderr + 1e-5)
    labels = torch.ones(n)
    labels[0] = 0
    opposite = log_prior(kernel, labels)
    exact = (n - 2) * math.log(0.5) + math.log(math.acos(1 - gap) / math.tau)
    assert abs(opposite.value - exact) < 4 * opposite.stderr + 5e-3


@pytest.mark.parametrize("distance", [1e-6, 1e-8, 1e-10])
def test_almost_equal_inputs_of_one_label_count_once(distance):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, dtype=torch.float64, generator=generator)
    twice = torch.cat([x, x[:5] + distance])
    # Rough: of full rank without the twins.
    kernel = torch.exp(-torch.cdist(twice, twice, compute_mode="donot_use_mm_for_euclid_dist"))
    labels = torch.cat([torch.arange(50) % 2, torch.arange(5) % 2])
    found, alone = log_prior(kernel, labels), log_prior(kernel[:50, :50], labels[:50])
    tolerance = 4 * math.hypot(found.stderr, alone.stderr) + 20 * math.sqrt(distance)
    assert abs(found.value - alone.value) < tolerance


def test_the_factor_is_the_kernel_and_says_what_it_left_out():
    a, _ = features(60, 7)
    signed = check_kernel(a @ a.T, 60).distinct
    found = low_rank(signed, 1e-13, 59)
    assert found.rank == 7
    assert found.clear
    torch.testing.assert_close(found.factor @ found.factor.T, dense(signed))
    assert low_rank(signed, 1e-13, 6) is None
    _, kernel = smooth()
    gradual = low_rank(check_kernel(kernel, 100).distinct, 1e-13, 99)
    assert not gradual.clear
    assert float(gradual.left_out.max()) <= 1e-13


def test_an_indefinite_kernel_is_no_kernel_of_low_rank():
    a, labels = features(30, 4)
    kernel = a @ a.T - 0.01 * torch.eye(30)
    with pytest.raises(InputError, match="not positive semi-definite"):
        log_prior(kernel, labels)


def test_few_random_networks():
    """An empirical kernel of fewer networks than inputs is one of low rank."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
    measured = empirical_kernel(network, x, networks=3, groups=0, noise=1e-9)
    found = log_prior(measured.kernel, torch.ones(40))
    near = log_prior(measured.kernel, torch.ones(40), noise=1e-9, method="smc", particles=4000)
    assert abs(found.value - near.value) < 4 * math.hypot(found.stderr, near.stderr)


def test_every_method_on_a_cone():
    a, labels = features(15, 4)
    reference = log_prior(a @ a.T, labels, method="smc", particles=4000)
    counted = log_prior(a @ a.T, labels, method="direct", particles=4000)
    assert abs(counted.value - reference.value) < 4 * math.hypot(counted.stderr, reference.stderr)
    ep = log_prior(a @ a.T, labels, method="ep")
    assert ep.value == pytest.approx(reference.value, abs=0.3)
    with pytest.raises(InputError, match="minimax tilting needs a kernel of full rank"):
        log_prior(a @ a.T, labels, method="minimax")
    with pytest.raises(InputError, match="15 of rank 4"):
        log_prior(a @ a.T, labels, method="exact")


def test_the_same_seed_gives_the_same_bits_and_runs_are_appended():
    a, labels = features(25, 6)
    first = log_prior(a @ a.T, labels, particles=100)
    assert log_prior(a @ a.T, labels, particles=100) == first
    more = log_prior(a @ a.T, labels, particles=100, runs=12)
    assert more.runs[:8] == first.runs


def test_several_labellings_and_a_posterior_of_low_rank():
    a, labels = features(30, 6)
    other = a @ torch.ones(6, dtype=torch.float64) > 0
    both = log_priors(a @ a.T, [labels, other])
    for found, one in zip(both, (labels, other), strict=True):
        alone = log_prior(a @ a.T, one)
        assert abs(found.value - alone.value) < 4 * math.hypot(found.stderr, alone.stderr)
    # S of full rank, S and E of low rank.
    posterior = log_posterior(a @ a.T, labels, train=5)
    evidence = log_prior(a[:5] @ a[:5].T, labels[:5])
    difference = both[0].value - evidence.value
    error = math.hypot(posterior.stderr, both[0].stderr, evidence.stderr)
    assert abs(posterior.value - difference) < 4 * error


@pytest.mark.slow
def test_intervals_cover():
    a, labels = features(30, 2, 3)
    cone = cone_of(a, labels)
    exact = exact_log_cone(cone.factor)[0]
    solution = expectation_propagation(cone)
    found = [cone_smc(cone, solution, particles=100, seed=s) for s in range(200)]
    covered = sum(abs(f.log_z - exact) <= 1.96 * f.stderr for f in found) / 200
    assert 0.905 <= covered <= 0.99
