import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

from planimeter.errors import InputError
from planimeter.prior import fully_connected_kernel, log_prior
from planimeter.prior.log_prior import binary_signs

# Sequential Monte Carlo with 4 x 2000 particles and its spread over runs (an independent program).
TABLE = [(100, -45.152, 0.010), (300, -82.959, 0.034), (600, -131.456, 0.018)]


@pytest.fixture
def kernel(digits):
    return fully_connected_kernel(digits[0][:100], sigma_b=0.1)


@pytest.fixture
def labels(digits):
    return digits[1][:100]


def agree(found, value, spread):
    """Within three standard errors of the difference; the reference is a mean of 4 runs."""
    return abs(found.value - value) < 3 * math.hypot(found.stderr, spread)


@pytest.mark.parametrize(("n", "value", "spread"), TABLE)
def test_reproduces_the_known_values(digits, n, value, spread):
    found = log_prior(fully_connected_kernel(digits[0][:n], sigma_b=0.1), digits[1][:n])
    assert agree(found, value, spread)
    assert found.converged
    assert found.alarms == ()


@pytest.mark.slow
@pytest.mark.parametrize(("flip", "value", "spread"), [(0.0, -170.013, 0.042)])
def test_reproduces_the_known_value_at_1100(digits, flip, value, spread):
    found = log_prior(fully_connected_kernel(digits[0][:1100], sigma_b=0.1), digits[1][:1100])
    assert agree(found, value, spread)


@pytest.mark.data
@pytest.mark.slow
def test_mnist_has_its_known_value():
    from planimeter.data import load

    mnist = load("mnist")
    kernel = fully_connected_kernel(mnist.inputs[:2000])
    found = log_prior(kernel, mnist.labels[:2000] >= 5, particles=500)
    assert agree(found, -558.82, 0.02)


def test_probit_on_the_kernel_is_heaviside_on_the_kernel_plus_identity(kernel, labels):
    probit = log_prior(kernel, labels, noise=1.0)
    heaviside = log_prior(kernel + torch.eye(100), labels)
    assert probit.ep == pytest.approx(heaviside.ep, abs=1e-9)
    assert probit.value == pytest.approx(heaviside.value, abs=1e-9)
    assert probit.ep == pytest.approx(-58.1604, abs=1e-3)
    assert probit.noise == 1.0


def test_against_scipy_in_six_dimensions():
    a = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    kernel = a @ a.T + 0.5 * torch.eye(6)
    labels = torch.tensor([1, 0, 1, 1, 0, 0])
    signs = binary_signs(labels)
    flipped = (kernel * signs * signs[:, None]).numpy()
    exact = multivariate_normal(cov=flipped, abseps=1e-9, releps=1e-9, maxpts=10**6).cdf([0.0] * 6)
    found = log_prior(kernel, labels, particles=5000)
    assert abs(found.value - math.log(exact)) < 4 * found.stderr
    assert found.stderr < 0.01


def test_labels_may_be_written_either_way(kernel, labels):
    one = log_prior(kernel, labels, particles=50)
    for other in (2 * labels - 1, labels.bool(), (2 * labels - 1).float()):
        assert log_prior(kernel, other, particles=50) == one


def test_all_labels_together_have_probability_one():
    kernel = fully_connected_kernel(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    total = 0.0
    for code in range(8):
        labels = torch.tensor([code >> k & 1 for k in range(3)])
        total += math.exp(log_prior(kernel, labels, particles=4000).value)
    assert total == pytest.approx(1.0, abs=0.005)


def test_a_single_class_is_legal_and_likely(kernel, labels):
    ones = log_prior(kernel, torch.ones(100))
    zeros = log_prior(kernel, torch.zeros(100))
    assert ones.value == pytest.approx(zeros.value, abs=1e-9)
    assert ones.value > log_prior(kernel, labels).value + 30


def test_contradictory_duplicates_are_impossible():
    x = torch.rand(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[13] = x[4]
    labels = torch.arange(20) % 2
    found = log_prior(fully_connected_kernel(x), labels)
    assert found.value == -math.inf
    assert found.impossible == (4, 13)
    assert "inputs 4 and 13" in str(found)
    assert found.as_dict()["value"] == "-inf"
    assert math.isfinite(log_prior(fully_connected_kernel(x), labels, noise=1.0).value)


def test_duplicates_with_one_label_count_once():
    x = torch.rand(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 2
    once = log_prior(fully_connected_kernel(x), labels)
    x_twice, labels_twice = torch.cat([x, x[:6]]), torch.cat([labels, labels[:6]])
    twice = log_prior(fully_connected_kernel(x_twice), labels_twice)
    assert twice.ep == pytest.approx(once.ep, abs=1e-6)
    assert twice.value == pytest.approx(once.value, abs=1e-6)


def test_near_duplicates_are_not_taken_for_duplicates():
    for gap in (1e-3, 1e-6, 1e-9):
        kernel = torch.tensor([[1.0, 1 - gap], [1 - gap, 1.0]], dtype=torch.float64)
        exact = math.log(0.25 - math.asin(1 - gap) / (2 * math.pi))
        found = log_prior(kernel, torch.tensor([0, 1]), particles=4000)
        assert abs(found.value - exact) < max(4 * found.stderr, 1e-3)


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_the_scale_of_the_outputs_does_not_matter(kernel, labels, scale):
    one, other = log_prior(kernel, labels), log_prior(scale * kernel, labels)
    assert other.value == pytest.approx(one.value, abs=1e-6)


def test_a_rank_deficient_kernel_is_refused_with_what_would_do():
    features = torch.randn(30, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"rank 10 for 30 distinct inputs.*at least 30"):
        log_prior(features @ features.T, torch.arange(30) % 2)


@pytest.mark.parametrize(
    ("kernel", "labels", "message"),
    [
        (torch.eye(3), torch.tensor([0, 1, 2]), r"3 classes \(0, 1, 2\).*binary"),
        (torch.eye(3), torch.tensor([-1, 0, 1]), "3 classes"),
        (torch.eye(3), torch.tensor([]), "empty"),
        (torch.eye(3), torch.tensor([0, float("nan"), 1]), "label 1 is NaN"),
        (torch.eye(3), torch.tensor([0, 1]), r"shape \(3, 3\), but there are 2 labels"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), torch.tensor([0, 1]), r"entry \(0, 1\)"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.tensor([0, 1]), "not symmetric"),
        (
            torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
            torch.tensor([0, 1]),
            "input 1 is 0, not positive",
        ),
        (
            torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
            torch.tensor([1, 1]),
            "not positive semi-definite",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence(kernel, labels, message):
    with pytest.raises(InputError, match=message):
        log_prior(kernel, labels)


def test_bad_settings_are_refused(kernel, labels):
    with pytest.raises(InputError, match="variance"):
        log_prior(kernel, labels, noise=-1.0)
    with pytest.raises(InputError, match="standard error"):
        log_prior(kernel, labels, runs=1)


def test_alarms_ring_where_the_approximations_fail():
    kernel = torch.full((200, 200), 0.9, dtype=torch.float64)
    kernel.diagonal().fill_(1.0)
    found = log_prior(kernel, torch.ones(200), max_sweeps=3)
    assert not found.converged
    assert found.residual > 1e-3
    assert "EP NOT CONVERGED in 3 sweeps, residual" in str(found)
    finished = log_prior(kernel, torch.ones(200))
    assert any("rough here" in a for a in finished.alarms)


def test_the_same_seed_gives_the_same_bits(kernel, labels):
    assert log_prior(kernel, labels, seed=3) == log_prior(kernel, labels, seed=3)
    assert log_prior(kernel, labels, seed=3).value != log_prior(kernel, labels, seed=4).value


def equicorrelated_value(rho, n):
    """P = E Phi(t sqrt(rho / (1 - rho)))^n, by one-dimensional quadrature."""
    root = math.sqrt(rho / (1 - rho))
    integral = quad(lambda t: norm.pdf(t) * math.exp(n * norm.logcdf(root * t)), -12, 12, limit=500)
    return math.log(integral[0])


@pytest.mark.parametrize(("rho", "n"), [(0.99, 20), (0.9, 100), (0.99, 100)])
def test_the_error_is_honest_where_the_posterior_is_far_from_gaussian(rho, n):
    """With plain EP guidance the weights have no variance here, and errors were 6 times small."""
    kernel = torch.full((n, n), rho, dtype=torch.float64)
    kernel.diagonal().fill_(1.0)
    exact = equicorrelated_value(rho, n)
    found = [log_prior(kernel, torch.ones(n), seed=s, particles=400) for s in range(12)]
    values = torch.tensor([f.value for f in found])
    stated = torch.tensor([f.stderr for f in found]).median()
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / math.sqrt(12)
    assert float(values.std()) < 2.0 * float(stated)


def test_what_double_precision_cannot_resolve_is_refused_or_said():
    x = torch.linspace(0, 1, 40, dtype=torch.float64)
    kernel = torch.exp(-((x[:, None] - x) ** 2) / 0.02) + 1e-12 * torch.eye(40)
    with pytest.raises(InputError, match="ill-conditioned"):
        log_prior(kernel, torch.arange(40) % 2)
    found = log_prior(kernel + 1e-10 * torch.eye(40), torch.arange(40) % 2)
    assert any("digits of the value are lost" in a for a in found.alarms)
