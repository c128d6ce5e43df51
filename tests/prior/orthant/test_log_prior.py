import json
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

from planimeter.errors import InputError
from planimeter.prior import fully_connected_kernel, log_prior, log_priors
from planimeter.prior.orthant import signed_kernel
from planimeter.prior.orthant.log_prior import binary_signs

# n, flipped labels, EP, corrected, and sequential Monte Carlo with 4 x 2000 particles and its
# spread over runs (an independent program).
TABLE = [
    (100, 0, -45.371, -45.159, -45.152, 0.010),
    (100, 30, -82.569, -82.515, -82.514, 0.005),
    (300, 0, -83.531, -82.942, -82.959, 0.034),
    (600, 0, -132.347, -131.368, -131.456, 0.018),
    pytest.param(1100, 0, -171.328, -169.884, -170.013, 0.042, marks=pytest.mark.slow),
    pytest.param(1100, 110, -534.320, -533.151, -533.162, 0.026, marks=pytest.mark.slow),
    pytest.param(1797, 0, -214.152, -211.989, -212.12, 0.09, marks=pytest.mark.slow),
]


@pytest.fixture
def kernel(digits):
    return fully_connected_kernel(digits[0][:100], sigma_b=0.1)


@pytest.fixture
def labels(digits):
    return digits[1][:100]


def agree(found, value, spread):
    """Within three standard errors of the difference; the reference is a mean of 4 runs."""
    return abs(found.value - value) < 3 * math.hypot(found.stderr, spread)


@pytest.mark.parametrize(("n", "flipped", "ep", "corrected", "value", "spread"), TABLE)
def test_reproduces_the_known_values(digits, flip, n, flipped, ep, corrected, value, spread):
    kernel = fully_connected_kernel(digits[0][:n], sigma_b=0.1)
    particles = 1000 if n < 1500 else 2000
    found = log_prior(kernel, flip(digits[1][:n], flipped), particles=particles)
    assert found.ep == pytest.approx(ep, abs=2e-3)
    assert found.corrected == pytest.approx(corrected, abs=5e-3)
    assert agree(found, value, spread)
    assert found.converged
    assert found.alarms == ()


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
        (torch.eye(3).half(), torch.tensor([0, 1, 1]), r"float16.*compute it in float64"),
        (torch.eye(3).bfloat16(), torch.tensor([0, 1, 1]), r"bfloat16.*compute it in float64"),
        (torch.eye(3) * 1j, torch.tensor([0, 1, 1]), "a kernel is real"),
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
    with pytest.raises(InputError, match="unknown method 'laplace'"):
        log_prior(kernel, labels, method="laplace")
    with pytest.raises(InputError, match="wanted standard error"):
        log_prior(kernel, labels, stderr=0.0)
    with pytest.raises(InputError, match="at least one sweep"):
        log_prior(kernel, labels, max_sweeps=0)
    with pytest.raises(InputError, match="float16"):
        log_prior(kernel, labels, precision=torch.float16)
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
    assert f"EP {found.ep:.3f} NOT CONVERGED in 3 sweeps, residual" in str(found)
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
    found = [
        log_prior(kernel, torch.ones(n), seed=s, particles=400, method="smc") for s in range(12)
    ]
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


def test_every_method_gives_the_same_value(kernel, labels):
    few = labels[:10]
    small = kernel[:10, :10].contiguous()
    reference = log_prior(small, few, particles=4000)
    assert reference.method == "smc"
    for method in ("minimax", "direct"):
        found = log_prior(small, few, method=method, particles=4000)
        assert found.method == method
        assert abs(found.value - reference.value) < 4 * math.hypot(found.stderr, reference.stderr)
    assert f"(smc; EP {reference.ep:.3f} converged in {reference.sweeps} sw" in str(reference)
    assert "; noise 0" in str(reference)
    ep = log_prior(small, few, method="ep")
    assert ep.value == ep.corrected == pytest.approx(reference.value, abs=0.05)
    assert math.isnan(ep.stderr)
    assert "no error is known" in str(ep)
    assert json.loads(json.dumps(ep.as_dict(), allow_nan=False))["stderr"] is None


def test_auto_is_exact_where_it_can_be_and_counts_where_ep_is_rough():
    kernel = torch.full((100, 100), 0.9, dtype=torch.float64)
    kernel.diagonal().fill_(1.0)
    three = log_prior(kernel[:3, :3], torch.ones(3))
    assert three.method == "exact"
    assert three.value == pytest.approx(math.log(0.125 + 3 * math.asin(0.9) / (4 * math.pi)))
    counted = log_prior(kernel, torch.ones(100))
    assert counted.method == "direct"
    assert abs(counted.value - equicorrelated_value(0.9, 100)) < 4 * counted.stderr
    with pytest.raises(InputError, match="closed forms end at 3"):
        log_prior(kernel, torch.ones(100), method="exact")


def test_more_runs_until_the_wanted_error(kernel, labels):
    first = log_prior(kernel, labels, particles=100)
    wanted = 0.6 * first.stderr
    found = log_prior(kernel, labels, particles=100, stderr=wanted)
    assert found.stderr <= wanted
    assert found.runs[:8] == pytest.approx(first.runs)
    stopped = log_prior(kernel, labels, particles=100, stderr=1e-4, max_runs=12)
    assert len(stopped.runs) == 12
    assert any("was not reached in 12 runs" in alarm for alarm in stopped.alarms)


def test_single_precision_errs_by_little(digits):
    kernel = fully_connected_kernel(digits[0][:300], sigma_b=0.1)
    double, single = (
        log_prior(kernel, digits[1][:300], precision=p) for p in (torch.float64, torch.float32)
    )
    assert single.ep == pytest.approx(double.ep, abs=2e-3)
    assert single.corrected == pytest.approx(double.corrected, abs=2e-3)
    # The same random numbers: what differs is rounding, far under the standard error.
    assert single.value == pytest.approx(double.value, abs=2e-3)


@pytest.mark.slow
def test_single_precision_errs_by_little_at_1100(digits):
    kernel = fully_connected_kernel(digits[0][:1100], sigma_b=0.1)
    double, single = (
        log_prior(kernel, digits[1][:1100], method="ep", precision=p)
        for p in (torch.float64, torch.float32)
    )
    assert abs(single.ep - double.ep) < 3e-3


def ladder(labels, step, rungs):
    rows = labels.repeat(rungs, 1)
    for rung in range(rungs):
        rows[rung, : step * rung] = 1 - rows[rung, : step * rung]
    return rows


def test_several_labellings_agree_with_one_at_a_time(kernel, labels):
    rows = ladder(labels, 5, 4)
    together = log_priors(kernel, rows)
    alone = [log_prior(kernel, row) for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one.ep == pytest.approx(other.ep, abs=3e-4)
        assert one.corrected == pytest.approx(other.corrected, abs=3e-4)
        assert abs(one.value - other.value) < 4 * math.hypot(one.stderr, other.stderr)
    assert together[0] == alone[0]
    assert sum(f.sweeps for f in together[1:]) < 0.8 * sum(f.sweeps for f in alone[1:])


def test_negated_labels_are_neighbours(kernel, labels):
    one, negated = log_priors(kernel, [labels, 1 - labels])
    assert negated.sweeps <= 3
    assert negated.value == pytest.approx(one.value, abs=0.01)


def test_an_impossible_labelling_among_others():
    x = torch.rand(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[13] = x[4]
    good = torch.arange(20) % 2
    good[13] = good[4]
    bad = good.clone()
    bad[4] = 1 - bad[4]
    first, second, third = log_priors(fully_connected_kernel(x), [good, bad, good])
    assert second.impossible == (4, 13)
    assert third.value == pytest.approx(first.value, abs=0.01)
    with pytest.raises(InputError, match="no labellings"):
        log_priors(fully_connected_kernel(x), [])
    with pytest.raises(InputError, match="19 labels"):
        log_priors(fully_connected_kernel(x), [good, good[:19]])


def random_problem(seed, n=12):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, dtype=torch.float64, generator=generator)
    return a @ a.T + 0.2 * torch.eye(n), torch.randint(0, 2, (n,), generator=generator), generator


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_scale_and_global_sign_do_not_matter(seed, scale):
    kernel, labels, _ = random_problem(seed)
    one = log_prior(kernel, labels, particles=50)
    for other in (
        log_prior(scale * kernel, labels, particles=50),
        log_prior(kernel, 1 - labels, particles=50),
    ):
        assert other.ep == pytest.approx(one.ep, abs=1e-6)
        assert other.value == pytest.approx(one.value, abs=1e-6)


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_the_order_of_inputs_does_not_matter(seed):
    kernel, labels, generator = random_problem(seed)
    order = torch.randperm(12, generator=generator)
    one = log_prior(kernel, labels)
    other = log_prior(kernel[order][:, order], labels[order])
    assert other.ep == pytest.approx(one.ep, abs=1e-3)
    assert other.corrected == pytest.approx(one.corrected, abs=1e-3)
    assert abs(other.value - one.value) < 6 * math.hypot(one.stderr, other.stderr)


def test_strong_correlation_does_not_use_up_the_sweeps():
    kernel = torch.full((100, 100), 0.99, dtype=torch.float64)
    kernel.diagonal().fill_(1.0)
    found = log_prior(kernel, torch.ones(100))
    assert found.converged
    assert found.sweeps < 60


def test_a_problem_that_cannot_fit_is_refused_before_it_starts(monkeypatch):
    # One number, seen as a kernel of 300,000 inputs.
    kernel = torch.ones((), dtype=torch.float64).expand(300_000, 300_000)
    monkeypatch.setattr(signed_kernel, "free_memory", lambda device: 10**11)
    with pytest.raises(InputError, match=r"needs 74\d\.\d GB.*100\.0 GB are free"):
        log_prior(kernel, torch.ones(300_000))


PEAK = """
import sys
import torch
from planimeter.prior import fully_connected_kernel, log_prior
def peak(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024
def run(n):
    x = torch.randn(n, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = fully_connected_kernel(x)
    open("/proc/self/clear_refs", "w").write("5")
    before = peak("VmRSS")
    precision = getattr(torch, sys.argv[1])
    log_prior(
        kernel, x[:, 0] > 0, particles=20, runs=2, max_sweeps=3, method="smc", precision=precision
    )
    return (peak("VmHWM") - before) / kernel.nbytes
run(600)
print(run(3000))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_one_matrix_beside_the_kernel_is_enough(precision):
    # Without the setting the C library keeps freed panels for later, which is not what is counted.
    answer = subprocess.run(
        [sys.executable, "-c", PEAK, precision],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
    )
    assert 0.9 < float(answer.stdout) < 1.6  # the rest: panels of 256 in 3000 rows
