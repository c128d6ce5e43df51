import math

import pytest
import torch

from planimeter.errors import InputError
from planimeter.prior import (
    fully_connected_kernel,
    log_evidence,
    log_posterior,
    log_prior,
)


@pytest.fixture
def kernel(digits):
    return fully_connected_kernel(digits[0][:120], sigma_b=0.1)


@pytest.fixture
def labels(digits):
    return digits[1][:120]


def test_is_the_difference_of_prior_and_evidence(kernel, labels):
    found = log_posterior(kernel, labels, train=80)
    prior, evidence = log_prior(kernel, labels), log_evidence(kernel[:80, :80], labels[:80])
    assert found.prior.value == pytest.approx(prior.value, abs=1e-9)
    assert found.evidence.value == pytest.approx(evidence.value, abs=1e-9)
    assert found.value == pytest.approx(prior.value - evidence.value, abs=1e-9)
    assert found.corrected == pytest.approx(found.value, abs=0.1)
    assert found.value < 0
    assert "log P(S)" in str(found)


def test_posteriors_of_all_labels_of_one_more_input_sum_to_one(kernel, labels):
    total = 0.0
    for last in (0, 1):
        extended = torch.cat([labels[:60], torch.tensor([last])])
        total += math.exp(log_posterior(kernel[:61, :61], extended, train=60, runs=16).value)
    assert total == pytest.approx(1.0, abs=0.02)


@pytest.mark.slow
def test_the_paired_error_is_honest_and_smaller_than_that_of_two_separate_runs(kernel, labels):
    found = [log_posterior(kernel, labels, train=110, seed=s, particles=200) for s in range(40)]
    values = torch.tensor([f.value for f in found])
    stated = torch.tensor([f.stderr for f in found]).square().mean().sqrt()
    assert float(values.std()) == pytest.approx(float(stated), rel=0.35)
    apart = torch.tensor([math.hypot(f.prior.stderr, f.evidence.stderr) for f in found])
    assert float(stated) < 0.7 * float(apart.square().mean().sqrt())
    # Against runs that share nothing.
    other = (
        log_prior(kernel, labels, seed=100, runs=32).estimate()
        - log_evidence(kernel[:110, :110], labels[:110], seed=200, runs=32).estimate()
    )
    assert abs(float(values.mean()) - other.value) < 4 * math.hypot(
        other.stderr, float(stated) / math.sqrt(40)
    )


def test_an_impossible_test_label_has_probability_zero():
    x = torch.rand(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[9] = x[2]
    labels = torch.arange(10) % 2
    found = log_posterior(fully_connected_kernel(x), labels, train=6)
    assert found.value == -math.inf
    assert found.as_dict()["value"] == "-inf"
    assert found.prior.impossible == (2, 9)


def test_nonsense_is_refused(kernel, labels):
    for train in (0, 120):
        with pytest.raises(InputError, match="from 1 to 119"):
            log_posterior(kernel, labels, train=train)
    with pytest.raises(InputError, match="method does not apply"):
        log_posterior(kernel, labels, train=5, method="ep")
    x = torch.ones(4, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=r"P\(S\) is 0"):
        log_posterior(fully_connected_kernel(x), torch.arange(4) % 2, train=3)
